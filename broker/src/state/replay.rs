//! The replay window of a broker: sharded, with a share for each sender, and written to a
//! preallocated file before anything it let in is delivered.
//!
//! The file survives `kill -9` because the kernel has what was written to it. A loss of power is
//! another boot of the machine without a clean stop: then nothing in the file is believed, and the
//! durable [`Ceilings`] tell up to where each sender is refused.

use std::collections::{HashMap, HashSet};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use dashmap::DashMap;
use proto_spec::admission::Nonces;
use proto_spec::replay::{ReplayWindow, Tag};
use proto_spec::{Digest, Org, PublicKey, Refusal, Timestamp};
use tokio::sync::{Notify, watch};

use super::ceilings::{Before, Ceilings, Whose};

use crate::locks::lock;

const SHARDS: usize = 64;
/// Strangers of all networks together have this part of the window: whoever has many networks takes
/// room from other strangers, never from agents.
const NEWCOMERS_PART: usize = 16;
/// All peers together have this part of the window: the rest is our own agents'.
const PEERS_PART: usize = 2;
/// Marks a record of a newcomer, whose sender is a network: no time has this bit.
const NEWCOMER_BIT: u64 = 1 << 63;
/// Marks a record of a peer's agent; nor has it this one.
const PEER_BIT: u64 = 1 << 62;
/// Records of one segment. A segment belongs to one shard and one bucket of time.
const SEGMENT: usize = 128;
/// Tag, timestamp, sender.
const RECORD_BYTES: usize = 32;
const HEADER_BYTES: u64 = 4_096;
const FILE_NAME: &str = "replay.window";
const MAGIC: &[u8; 8] = b"FEMWIN\x00\x01";

/// Every nonce once, for as long as it could be replayed.
#[derive(Debug)]
pub struct Replay {
    secret: [u8; 32],
    skew: Duration,
    per_sender_max: usize,
    newcomers_max: usize,
    peers_max: usize,
    shards: Vec<Mutex<Shard>>,
    senders: DashMap<Sender, Share>,
    file: Option<WindowFile>,
    free: Mutex<Vec<u32>>,
    ceilings: Option<Ceilings>,
    asked: Notify,
    settled: watch::Sender<u64>,
}

#[derive(Debug)]
struct Shard {
    window: ReplayWindow,
    /// By bucket: the segments it owns, and how much of the last is used.
    segments: HashMap<u64, (Vec<u32>, usize)>,
}

/// Whose share of the window a nonce takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Sender {
    /// An agent of ours, by the first bytes of its key.
    Agent(u64),
    /// An agent of a peer's: by a hash of the peer's name, and one of its own key, which nobody else can make.
    PeersAgent(u32, u32),
    /// All agents of one peer.
    Peer(u32),
    /// All peers together.
    Peers,
    /// Strangers from one network.
    Network(u64),
    /// All strangers together.
    Newcomers,
}

/// How many nonces of one sender are remembered, by bucket.
#[derive(Debug, Default)]
struct Share {
    buckets: Vec<(u64, u32)>,
}

impl Share {
    fn total(&self) -> usize {
        self.buckets.iter().map(|(_, count)| *count as usize).sum()
    }

    fn add(&mut self, bucket: u64) {
        match self.buckets.iter_mut().find(|(known, _)| *known == bucket) {
            Some((_, count)) => *count = count.saturating_add(1),
            None => self.buckets.push((bucket, 1)),
        }
    }

    fn take(&mut self, bucket: u64) {
        if let Some((_, count)) = self.buckets.iter_mut().find(|(known, _)| *known == bucket) {
            *count = count.saturating_sub(1);
        }
    }
}

/// Leaves in `data` the window of a broker of which nothing is known: whoever opens it accepts nothing
/// that could have been accepted before.
///
/// # Errors
///
/// When the file exists or cannot be written.
pub fn leave_unknown(data: &Path, secret: [u8; 32]) -> std::io::Result<()> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(data.join("replay.window"))?;
    file.set_len(HEADER_BYTES)?;
    let window = WindowFile { file };
    window.write_header(&Header {
        secret,
        boot: [0; 16],
        clean: false,
        floor: Timestamp::default(),
    })?;
    window.file.sync_all()
}

/// Why the window could not be opened: the broker does not start.
#[derive(Debug, thiserror::Error)]
#[error("replay window {path}: {why}")]
pub struct WindowError {
    path: String,
    why: String,
}

/// How the broker before this one ended, for the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// There was none.
    First,
    /// It stopped, or was killed and the machine went on: the file is complete.
    Complete,
    /// The machine went down with it, or its window is gone: each sender is refused up to its ceiling.
    PowerLost,
}

impl Replay {
    /// A window without a file, for tests and throw-away brokers.
    #[must_use]
    pub fn in_memory(
        nonces_max: usize,
        per_sender_max: usize,
        skew: Duration,
        secret: [u8; 32],
    ) -> Self {
        Self::with(
            None,
            None,
            nonces_max,
            per_sender_max,
            skew,
            secret,
            Timestamp::default(),
        )
    }

    fn with(
        file: Option<WindowFile>,
        ceilings: Option<Ceilings>,
        nonces_max: usize,
        per_sender_max: usize,
        skew: Duration,
        secret: [u8; 32],
        floor: Timestamp,
    ) -> Self {
        let segments = segments_for(nonces_max) as u32;
        let shard = || {
            Mutex::new(Shard {
                window: ReplayWindow::new(floor),
                segments: HashMap::new(),
            })
        };
        Self {
            secret,
            skew,
            per_sender_max,
            newcomers_max: (nonces_max / NEWCOMERS_PART).max(1),
            peers_max: (nonces_max / PEERS_PART).max(1),
            shards: (0..SHARDS).map(|_| shard()).collect(),
            senders: DashMap::new(),
            file,
            free: Mutex::new((0..segments).rev().collect()),
            ceilings,
            asked: Notify::new(),
            settled: watch::Sender::new(0),
        }
    }

    /// Opens or makes the window file of `data`, and remembers again what could still be replayed.
    ///
    /// # Errors
    ///
    /// [`WindowError`] where the file cannot be made, preallocated or read, or is another's.
    pub fn open(
        data: &Path,
        nonces_max: usize,
        per_sender_max: usize,
        skew: Duration,
        fresh_secret: [u8; 32],
        now: Timestamp,
    ) -> Result<(Self, Ended), WindowError> {
        let path = data.join(FILE_NAME);
        let failed = |why: &dyn std::fmt::Display| WindowError {
            path: path.display().to_string(),
            why: why.to_string(),
        };
        // A window that is gone while its ceilings are there was lost.
        let had_ceilings = Ceilings::exist(data);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(|error| failed(&error))?;
        let length = file.metadata().map_err(|error| failed(&error))?.len();
        let segments = segments_for(nonces_max);
        let wanted = HEADER_BYTES + (segments * SEGMENT * RECORD_BYTES) as u64;
        // A first start that was killed before it wrote its header left zeros.
        let header = if length == 0 || Header::is_blank(&file) {
            None
        } else {
            Some(Header::read(&file).map_err(|error| failed(&error))?)
        };
        let boot = boot_id();
        let ended = match &header {
            None if had_ceilings => Ended::PowerLost,
            None => Ended::First,
            Some(header) if header.clean || (header.boot == boot && boot != [0; 16]) => {
                Ended::Complete
            }
            Some(_) => Ended::PowerLost,
        };
        let floor = header.as_ref().map_or(Timestamp::default(), |h| h.floor);
        let before = match ended {
            Ended::First => Before::None,
            Ended::Complete => Before::Remembered,
            // Without ceilings: what could have been accepted by this clock, or by that of the floor.
            Ended::PowerLost => Before::Lost(now.later(skew).max(floor.later(skew * 3))),
        };
        // Durable before the window forgets: a start that is killed between the two begins again.
        let ceilings = Ceilings::open(data, skew, now, before).map_err(|error| failed(&error))?;
        if ended == Ended::PowerLost {
            // What a loss of power left of the records is not believed, and must not mix with others.
            file.set_len(length.min(HEADER_BYTES))
                .map_err(|error| failed(&error))?;
        }
        let secret = header.as_ref().map_or(fresh_secret, |header| header.secret);
        let header = Header {
            secret,
            boot,
            clean: false,
            floor,
        };
        let kept = if ended == Ended::Complete { length } else { 0 };
        // Preallocated: a full disk cannot make the broker forget.
        rustix::fs::fallocate(
            &file,
            rustix::fs::FallocateFlags::empty(),
            0,
            kept.max(wanted),
        )
        .map_err(|error| failed(&format!("{} bytes cannot be set aside: {error}", wanted)))?;
        let window = WindowFile { file };
        window
            .write_header(&header)
            .map_err(|error| failed(&error))?;
        window.file.sync_all().map_err(|error| failed(&error))?;
        let replay = Self::with(
            Some(window),
            Some(ceilings),
            nonces_max,
            per_sender_max,
            skew,
            secret,
            floor,
        );
        if ended == Ended::Complete {
            replay.load(length, now).map_err(|error| failed(&error))?;
            // What was not loaded any more is below the floor from here on.
            replay.expire(now);
        }
        Ok((replay, ended))
    }

    /// A time that the broker of `data` has certainly seen, by its window and its ceilings.
    ///
    /// # Errors
    ///
    /// [`WindowError`] where they cannot be read.
    pub fn newest(data: &Path) -> Result<Timestamp, WindowError> {
        let path = data.join(FILE_NAME);
        let failed = |why: std::io::Error| WindowError {
            path: path.display().to_string(),
            why: why.to_string(),
        };
        let ceiling = Ceilings::newest(data).map_err(failed)?;
        let floor = match File::open(&path) {
            Ok(file) if !Header::is_blank(&file) => Header::read(&file).map_err(failed)?.floor,
            _ => Timestamp::default(),
        };
        Ok(ceiling.max(floor))
    }

    /// Takes an operator's word that it is `now`: see [`Ceilings::disown`]. For a broker that is stopped.
    ///
    /// # Errors
    ///
    /// [`WindowError`] where a file cannot be written.
    pub fn disown(data: &Path, skew: Duration, now: Timestamp) -> Result<(), WindowError> {
        let path = data.join(FILE_NAME);
        let disowned = Ceilings::disown(data, skew, now).and_then(|()| {
            // Its floor is the disowned clock's. Without it the ceilings count.
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
                _ => File::open(data)?.sync_all(),
            }
        });
        disowned.map_err(|why| WindowError {
            path: path.display().to_string(),
            why: why.to_string(),
        })
    }

    /// Makes durable what senders that run ahead wait for, and raises the mark. Waits for the disk.
    ///
    /// # Errors
    ///
    /// When it cannot be written or synced: who waits is refused again.
    pub fn settle(&self, now: Timestamp) -> std::io::Result<()> {
        let settled = self.ceilings.as_ref().map_or(Ok(()), |it| it.settle(now));
        self.settled.send_modify(|times| *times += 1);
        settled
    }

    /// Changes whenever [`Replay::settle`] is done.
    #[must_use]
    pub fn settled(&self) -> watch::Receiver<u64> {
        self.settled.subscribe()
    }

    /// Returns when somebody was refused as [`Refusal::Ahead`], and [`Replay::settle`] would help.
    pub async fn asked(&self) {
        self.asked.notified().await;
    }

    /// Reads every record back whose nonce could still be replayed.
    fn load(&self, length: u64, now: Timestamp) -> std::io::Result<()> {
        let Some(file) = &self.file else {
            return Ok(());
        };
        let on_disk = (length.saturating_sub(HEADER_BYTES) as usize) / (SEGMENT * RECORD_BYTES);
        let floor = lock(&self.shards[0]).window.floor();
        let mut taken = HashSet::new();
        let mut segment = vec![0; SEGMENT * RECORD_BYTES];
        for index in 0..on_disk {
            file.file
                .read_exact_at(&mut segment, offset(index as u32, 0))?;
            let mut owner = None;
            for (slot, record) in segment.chunks_exact(RECORD_BYTES).enumerate() {
                let Some((tag, ts, sender)) = parse(record) else {
                    continue;
                };
                let bucket = ReplayWindow::bucket_of(ts);
                // Below the floor it is refused anyway, and left by an earlier use of its segment.
                let dead = ts < floor || bucket < ReplayWindow::bucket_of(now.earlier(self.skew));
                if dead {
                    continue;
                }
                let number = tag.shard(SHARDS);
                if lock(&self.shards[number]).window.remember(tag, ts).is_ok() {
                    for share in shares_of(sender) {
                        self.senders.entry(share).or_default().add(bucket);
                    }
                }
                owner = Some((number, bucket, slot + 1));
            }
            if let Some((number, bucket, filled)) = owner {
                taken.insert(index as u32);
                let mut shard = lock(&self.shards[number]);
                let (owned, used) = shard
                    .segments
                    .entry(bucket)
                    .or_insert_with(|| (Vec::new(), SEGMENT));
                // The emptiest is filled on: many starts in a row use up no more than one.
                if filled < *used {
                    owned.push(index as u32);
                    *used = filled;
                } else {
                    owned.insert(0, index as u32);
                }
            }
        }
        // A segment beyond a capacity that was made smaller is kept until it is empty.
        lock(&self.free).retain(|index| !taken.contains(index));
        Ok(())
    }

    fn remember(
        &self,
        sender: Sender,
        whose: Whose,
        share_max: usize,
        tag: Tag,
        ts: Timestamp,
        now: Timestamp,
    ) -> Result<(), Refusal> {
        if let Some(ceilings) = &self.ceilings {
            let covered = ceilings.cover(whose, ts, now);
            if covered == Err(Refusal::Ahead) {
                self.asked.notify_one();
            }
            covered?;
        }
        let bucket = ReplayWindow::bucket_of(ts);
        let take_back = |share| {
            if let Some(mut share) = self.senders.get_mut(&share) {
                share.take(bucket);
            }
        };
        let mut counted = Vec::with_capacity(3);
        for share in shares_of(sender) {
            let max = self.room_for(share, share_max);
            let mut entry = self.senders.entry(share).or_default();
            if entry.total() >= max {
                drop(entry);
                counted.into_iter().for_each(take_back);
                return Err(Refusal::Busy("the sender's share of the replay window"));
            }
            entry.add(bucket);
            counted.push(share);
        }
        let kept = self.record(sender, tag, ts, bucket);
        if kept.is_err() {
            counted.into_iter().for_each(take_back);
        }
        kept
    }

    /// How many nonces this share may have. A peer, and an agent of one, has no more than it leaves for others.
    fn room_for(&self, share: Sender, share_max: usize) -> usize {
        let used = |share| self.senders.get(&share).map_or(0, |share| share.total());
        match share {
            Sender::Newcomers => self.newcomers_max,
            Sender::Peers => self.peers_max,
            Sender::Peer(_) => share_max.min(self.peers_max.saturating_sub(used(Sender::Peers))),
            Sender::PeersAgent(peer, _) => {
                let peers = self.peers_max.saturating_sub(used(Sender::Peers));
                share_max
                    .min(peers)
                    .saturating_sub(used(Sender::Peer(peer)))
            }
            Sender::Agent(_) | Sender::Network(_) => share_max,
        }
    }

    fn record(&self, sender: Sender, tag: Tag, ts: Timestamp, bucket: u64) -> Result<(), Refusal> {
        let mut guard = lock(&self.shards[tag.shard(SHARDS)]);
        let shard = &mut *guard;
        shard.window.remember(tag, ts)?;
        let (owned, used) = shard
            .segments
            .entry(bucket)
            .or_insert_with(|| (Vec::new(), SEGMENT));
        if *used == SEGMENT {
            let Some(segment) = lock(&self.free).pop() else {
                shard.window.forget(tag, ts);
                return Err(Refusal::Busy("the replay window"));
            };
            owned.push(segment);
            *used = 0;
        }
        let segment = owned.last().copied().unwrap_or_default();
        let slot = *used;
        *used += 1;
        drop(guard);
        if let Some(file) = &self.file {
            let mut record = [0; RECORD_BYTES];
            record[..16].copy_from_slice(&tag.to_bytes());
            let (sender, mark) = match sender {
                Sender::Agent(key) => (key, 0),
                Sender::PeersAgent(peer, agent) => {
                    (u64::from(peer) << 32 | u64::from(agent), PEER_BIT)
                }
                Sender::Network(network) => (network, NEWCOMER_BIT),
                // What is shared takes no nonce itself.
                Sender::Peer(_) | Sender::Peers | Sender::Newcomers => (0, NEWCOMER_BIT),
            };
            record[16..24].copy_from_slice(&(ts.as_ms() | mark).to_le_bytes());
            record[24..].copy_from_slice(&sender.to_le_bytes());
            if let Err(error) = file.file.write_all_at(&record, offset(segment, slot)) {
                // The nonce stays used in memory, and the envelope is refused: never the other way.
                tracing::error!(%error, "the replay window cannot be written");
                return Err(Refusal::StorageFull(
                    "the replay window cannot be written".into(),
                ));
            }
        }
        Ok(())
    }

    /// Drops what can no longer be replayed. The floor above it is written first: a segment that is
    /// given out again may still hold old nonces, and a start must know them as dead.
    pub fn expire(&self, now: Timestamp) {
        let mut next = ReplayWindow::new(lock(&self.shards[0]).window.floor());
        next.expire(now, self.skew);
        let floor = next.floor();
        self.write_header(floor, false);
        let oldest = ReplayWindow::bucket_of(floor);
        for shard in &self.shards {
            let mut shard = lock(shard);
            shard.window.expire(now, self.skew);
            let dead: Vec<u64> = shard
                .segments
                .keys()
                .filter(|bucket| **bucket < oldest)
                .copied()
                .collect();
            for bucket in dead {
                if let Some((segments, _)) = shard.segments.remove(&bucket) {
                    lock(&self.free).extend(segments);
                }
            }
        }
        self.senders.retain(|_, share| {
            share.buckets.retain(|(bucket, _)| *bucket >= oldest);
            !share.buckets.is_empty()
        });
    }

    /// Marks the file complete: the next start trusts it even after a reboot.
    pub fn close(&self) {
        let Some(file) = &self.file else {
            return;
        };
        let floor = lock(&self.shards[0]).window.floor();
        // The mark must not be on disk before what it vouches for.
        match file.file.sync_data() {
            Ok(()) => self.write_header(floor, true),
            Err(error) => tracing::error!(%error, "the replay window is not marked complete"),
        }
        let _ = file.file.sync_data();
    }

    fn write_header(&self, floor: Timestamp, clean: bool) {
        if let Some(file) = &self.file {
            let header = Header {
                secret: self.secret,
                boot: boot_id(),
                clean,
                floor,
            };
            if let Err(error) = file.write_header(&header) {
                tracing::error!(%error, "the replay window's header cannot be written");
            }
        }
    }

    /// How many nonces are remembered.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shards
            .iter()
            .map(|shard| lock(shard).window.len())
            .sum()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The part of the window that strangers from one network share.
    #[must_use]
    pub fn newcomers(&self, network: u64, share_max: usize) -> Shared<'_> {
        Shared {
            replay: self,
            of: Of::Network(network),
            share_max,
        }
    }

    /// The part of the window that the agents of one peer share.
    #[must_use]
    pub fn peer(&self, org: &Org, share_max: usize) -> Shared<'_> {
        Shared {
            replay: self,
            of: Of::Peer(head_of(&Digest::of(org.as_str().as_bytes()).0)),
            share_max,
        }
    }
}

impl Nonces for Replay {
    fn remember(
        &self,
        key: &PublicKey,
        nonce: &str,
        ts: Timestamp,
        now: Timestamp,
    ) -> Result<(), Refusal> {
        let tag = Tag::of(&self.secret, key, nonce);
        let agent = head_of(key.as_bytes());
        self.remember(
            Sender::Agent(agent),
            Whose::Agent(agent),
            self.per_sender_max,
            tag,
            ts,
            now,
        )
    }
}

/// A part of the window that several keys share: see [`Replay::newcomers`] and [`Replay::peer`].
#[derive(Debug)]
pub struct Shared<'a> {
    replay: &'a Replay,
    of: Of,
    share_max: usize,
}

/// Whose a shared part is.
#[derive(Debug, Clone, Copy)]
enum Of {
    Network(u64),
    /// By a hash of its name.
    Peer(u64),
}

impl Nonces for Shared<'_> {
    fn remember(
        &self,
        key: &PublicKey,
        nonce: &str,
        ts: Timestamp,
        now: Timestamp,
    ) -> Result<(), Refusal> {
        let tag = Tag::of(&self.replay.secret, key, nonce);
        let (sender, whose) = match self.of {
            Of::Network(network) => (Sender::Network(network), Whose::Newcomers),
            Of::Peer(peer) => {
                // As a tag, so that nobody makes a key that shares another's share.
                let agent = Tag::of(&self.replay.secret, key, "").to_bytes();
                let agent = u32::from_le_bytes([agent[0], agent[1], agent[2], agent[3]]);
                let sender = Sender::PeersAgent((peer >> 32) as u32, agent);
                (sender, Whose::Agent(peer))
            }
        };
        self.replay
            .remember(sender, whose, self.share_max, tag, ts, now)
    }
}

/// Each shard may hold a segment that is not full for every bucket of the window: these come on top.
fn segments_for(nonces_max: usize) -> usize {
    nonces_max.div_ceil(SEGMENT) + SHARDS * 13
}

/// The shares that a nonce of this sender counts in.
fn shares_of(sender: Sender) -> impl Iterator<Item = Sender> {
    let all = match sender {
        Sender::Network(_) => [Some(Sender::Newcomers), None],
        Sender::PeersAgent(peer, _) => [Some(Sender::Peer(peer)), Some(Sender::Peers)],
        _ => [None, None],
    };
    std::iter::once(sender).chain(all.into_iter().flatten())
}

fn head_of(bytes: &[u8; 32]) -> u64 {
    let mut head = [0; 8];
    head.copy_from_slice(&bytes[..8]);
    u64::from_le_bytes(head)
}

fn offset(segment: u32, slot: usize) -> u64 {
    HEADER_BYTES + ((segment as usize * SEGMENT + slot) * RECORD_BYTES) as u64
}

fn parse(record: &[u8]) -> Option<(Tag, Timestamp, Sender)> {
    let (tag, rest) = record.split_first_chunk::<16>()?;
    let (ts, rest) = rest.split_first_chunk::<8>()?;
    let (sender, _) = rest.split_first_chunk::<8>()?;
    let (marked, sender) = (u64::from_le_bytes(*ts), u64::from_le_bytes(*sender));
    let marks = NEWCOMER_BIT | PEER_BIT;
    let ts = marked & !marks;
    let sender = match marked & marks {
        0 => Sender::Agent(sender),
        PEER_BIT => Sender::PeersAgent((sender >> 32) as u32, sender as u32),
        _ => Sender::Network(sender),
    };
    (ts != 0).then(|| (Tag::from_bytes(*tag), Timestamp::from_ms(ts), sender))
}

/// This boot of the machine; zeros where the system does not say, which counts as another each time.
fn boot_id() -> [u8; 16] {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let digits: Vec<u8> = text.trim().bytes().filter(|byte| *byte != b'-').collect();
    let mut id = [0; 16];
    if digits.len() == 32 {
        for (byte, pair) in id.iter_mut().zip(digits.chunks_exact(2)) {
            let digit = |c: u8| char::from(c).to_digit(16).unwrap_or_default() as u8;
            *byte = digit(pair[0]) << 4 | digit(pair[1]);
        }
    }
    id
}

#[derive(Debug)]
struct WindowFile {
    file: File,
}

#[derive(Debug)]
struct Header {
    secret: [u8; 32],
    boot: [u8; 16],
    clean: bool,
    floor: Timestamp,
}

impl Header {
    fn is_blank(file: &File) -> bool {
        let mut bytes = [0; 65];
        file.read_exact_at(&mut bytes, 0).is_ok() && bytes == [0; 65]
    }

    fn read(file: &File) -> std::io::Result<Self> {
        let mut bytes = [0; 65];
        file.read_exact_at(&mut bytes, 0)?;
        if &bytes[..8] != MAGIC {
            return Err(std::io::Error::other("not a replay window of this format"));
        }
        let mut header = Self {
            secret: [0; 32],
            boot: [0; 16],
            clean: bytes[64] == 1,
            floor: Timestamp::default(),
        };
        header.secret.copy_from_slice(&bytes[8..40]);
        header.boot.copy_from_slice(&bytes[40..56]);
        let mut floor = [0; 8];
        floor.copy_from_slice(&bytes[56..64]);
        header.floor = Timestamp::from_ms(u64::from_le_bytes(floor));
        Ok(header)
    }
}

impl WindowFile {
    fn write_header(&self, header: &Header) -> std::io::Result<()> {
        let mut bytes = [0; 65];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..40].copy_from_slice(&header.secret);
        bytes[40..56].copy_from_slice(&header.boot);
        bytes[56..64].copy_from_slice(&header.floor.as_ms().to_le_bytes());
        bytes[64] = u8::from(header.clean);
        self.file.write_all_at(&bytes, 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto_spec::SigningKey;

    const SKEW: Duration = Duration::from_secs(300);
    const NOW: Timestamp = Timestamp::from_ms(1_800_000_000_000);

    fn key(n: u8) -> PublicKey {
        SigningKey::from_seed(&[n; 32]).public()
    }

    fn nonce(n: usize) -> String {
        format!("nonce-{n:016}")
    }

    fn use_nonce(replay: &Replay, n: usize) -> Result<(), Refusal> {
        Nonces::remember(replay, &key(1), &nonce(n), NOW, NOW)
    }

    fn open(data: &Path, now: Timestamp) -> (Replay, Ended) {
        Replay::open(data, 64 * SEGMENT, 100_000, SKEW, [9; 32], now).unwrap()
    }

    #[test]
    fn a_full_window_refuses_instead_of_forgetting() {
        let replay = Replay::in_memory(64 * SEGMENT, 1_000_000, SKEW, [9; 32]);
        let room = segments_for(64 * SEGMENT) * SEGMENT;
        let mut accepted = Vec::new();
        for n in 0..room * 5 / 4 {
            match use_nonce(&replay, n) {
                Ok(()) => accepted.push(n),
                Err(refusal) => assert!(matches!(refusal, Refusal::Busy(_)), "{refusal}"),
            }
        }
        // Each shard fills its own segments: at most one of each is not full.
        let least = room - SHARDS * SEGMENT;
        assert!(
            (least..=room).contains(&accepted.len()),
            "{} of {room}",
            accepted.len()
        );
        for n in &accepted {
            assert_eq!(use_nonce(&replay, *n), Err(Refusal::Replayed));
        }
        // Time makes room again, and only time.
        replay.expire(NOW.later(SKEW * 3));
        let later = NOW.later(SKEW * 3);
        Nonces::remember(&replay, &key(1), &nonce(0), later, later).unwrap();
    }

    #[test]
    fn one_sender_cannot_take_another_senders_share() {
        let replay = Replay::in_memory(64 * SEGMENT, 100, SKEW, [9; 32]);
        for n in 0..100 {
            use_nonce(&replay, n).unwrap();
        }
        assert!(matches!(use_nonce(&replay, 100), Err(Refusal::Busy(_))));
        Nonces::remember(&replay, &key(2), &nonce(0), NOW, NOW).unwrap();
        assert!(matches!(
            use_nonce(&replay, 5),
            Err(Refusal::Busy(_) | Refusal::Replayed)
        ));
    }

    #[test]
    fn newcomers_of_many_networks_cannot_take_the_agents_room() {
        let data = tempfile::tempdir().unwrap();
        let (replay, _) = open(data.path(), NOW);
        let knock = |replay: &Replay, network: u64| {
            let stranger = replay.newcomers(network, 8);
            Nonces::remember(&stranger, &key(3), &nonce(network as usize), NOW, NOW)
        };
        let room = 64 * SEGMENT / NEWCOMERS_PART;
        for network in 0..room as u64 {
            knock(&replay, network).unwrap();
        }
        assert!(matches!(knock(&replay, 1 << 40), Err(Refusal::Busy(_))));
        use_nonce(&replay, 0).unwrap();
        // A kill and a start change nothing about it.
        drop(replay);
        let (replay, _) = open(data.path(), NOW);
        assert!(matches!(knock(&replay, 1 << 40), Err(Refusal::Busy(_))));
        use_nonce(&replay, 1).unwrap();
        replay.expire(NOW.later(SKEW * 3));
        assert!(replay.senders.is_empty());
    }

    #[test]
    fn peers_leave_half_of_the_window_to_our_own_agents_and_each_leaves_room_for_the_next() {
        let data = tempfile::tempdir().unwrap();
        let (replay, _) = open(data.path(), NOW);
        let says = |replay: &Replay, peer: &str, agent: u8, n: usize| {
            let share = replay.peer(&peer.parse().unwrap(), 100_000);
            let key = key(agent);
            Nonces::remember(&share, &key, &nonce(n), NOW, NOW)
        };
        let fill = |replay: &Replay, peer: &str, agent: u8| {
            (0..)
                .take_while(|n| says(replay, peer, agent, *n).is_ok())
                .count()
        };
        let room = 64 * SEGMENT / PEERS_PART;
        // It leaves as much to others of its peer, and that one to other peers.
        let mut peers = fill(&replay, "globex", 2);
        assert_eq!(peers, room.div_ceil(3));
        for (first, peer) in [(20, "initech"), (40, "hooli"), (60, "umbrella")] {
            for agent in first..first + 20 {
                peers += fill(&replay, peer, agent);
            }
        }
        assert!((room * 3 / 4..=room).contains(&peers), "{peers} of {room}");
        says(&replay, "late", 80, 0).unwrap();
        use_nonce(&replay, 0).unwrap();
        // A kill and a start change nothing about it.
        drop(replay);
        let (replay, _) = open(data.path(), NOW);
        assert_eq!(fill(&replay, "globex", 2), 0);
        assert_eq!(
            says(&replay, "globex", 2, 0),
            Err(Refusal::Busy("the sender's share of the replay window"))
        );
        use_nonce(&replay, 1).unwrap();
        replay.expire(NOW.later(SKEW * 3));
        assert!(replay.senders.is_empty());
    }

    #[test]
    fn what_an_earlier_use_of_a_segment_left_is_not_remembered_again() {
        let data = tempfile::tempdir().unwrap();
        let (replay, _) = open(data.path(), NOW);
        for n in 0..SEGMENT * 2 {
            use_nonce(&replay, n).unwrap();
        }
        // All of it expires; then one record is written over the first slot of one segment.
        let later = NOW.later(SKEW * 3);
        replay.expire(later);
        let again = || Nonces::remember(&replay, &key(1), &nonce(0), later, later);
        assert_eq!(again(), Err(Refusal::Ahead), "it was idle");
        replay.settle(later).unwrap();
        again().unwrap();
        drop(replay);
        let (replay, ended) = open(data.path(), later);
        assert_eq!((ended, replay.len()), (Ended::Complete, 1));
        // And with the clock set back to then, what is below the floor stays refused.
        drop(replay);
        let (replay, _) = open(data.path(), NOW);
        assert_eq!(use_nonce(&replay, 7), Err(Refusal::BelowFloor));
    }

    #[test]
    fn many_starts_in_a_row_use_up_no_room() {
        let data = tempfile::tempdir().unwrap();
        for start in 0..200 {
            let (replay, _) = open(data.path(), NOW);
            for n in 0..10 {
                use_nonce(&replay, start * 10 + n).unwrap();
            }
        }
        let (replay, _) = open(data.path(), NOW);
        assert_eq!(replay.len(), 2_000);
        assert!(lock(&replay.free).len() > segments_for(64 * SEGMENT) - 2 * SHARDS);
        for n in 0..2_000 {
            assert_eq!(use_nonce(&replay, n), Err(Refusal::Replayed), "{n}");
        }
    }

    #[test]
    fn a_header_that_was_never_written_is_a_first_start() {
        let data = tempfile::tempdir().unwrap();
        let file = File::create(data.path().join("replay.window")).unwrap();
        file.set_len(1 << 20).unwrap();
        let (replay, ended) = open(data.path(), NOW);
        assert_eq!(ended, Ended::First);
        use_nonce(&replay, 0).unwrap();
    }

    #[test]
    fn a_nonce_stays_used_when_the_broker_is_killed_and_the_machine_goes_on() {
        let data = tempfile::tempdir().unwrap();
        let (replay, ended) = open(data.path(), NOW);
        assert_eq!(ended, Ended::First);
        for n in 0..1_000 {
            use_nonce(&replay, n).unwrap();
        }
        // Dropped without `close`, as a killed process leaves it.
        drop(replay);
        let (replay, ended) = open(data.path(), NOW);
        assert_eq!(ended, Ended::Complete);
        for n in 0..1_000 {
            assert_eq!(use_nonce(&replay, n), Err(Refusal::Replayed), "{n}");
        }
        use_nonce(&replay, 1_000).unwrap();
        assert_eq!(replay.len(), 1_001);
    }

    /// As another boot of the machine finds the window: whatever else is in it.
    fn reboot(data: &Path) {
        let file = OpenOptions::new().write(true).open(data.join(FILE_NAME));
        file.unwrap().write_all_at(&[7; 16], 40).unwrap();
    }

    #[test]
    fn after_a_loss_of_power_each_sender_is_refused_up_to_its_own_ceiling() {
        let data = tempfile::tempdir().unwrap();
        let (replay, _) = open(data.path(), NOW);
        let ahead = NOW.later(Duration::from_secs(240));
        let fast =
            |replay: &Replay, n, ts, now| Nonces::remember(replay, &key(2), &nonce(n), ts, now);
        use_nonce(&replay, 0).unwrap();
        assert_eq!(fast(&replay, 0, ahead, NOW), Err(Refusal::Ahead));
        replay.settle(NOW).unwrap();
        fast(&replay, 0, ahead, NOW).unwrap();
        drop(replay);
        reboot(data.path());
        let start = NOW.later(Duration::from_secs(30));
        let (replay, ended) = open(data.path(), start);
        assert_eq!((ended, replay.len()), (Ended::PowerLost, 0));
        assert_eq!(use_nonce(&replay, 0), Err(Refusal::BelowFloor));
        Nonces::remember(&replay, &key(1), &nonce(1), start, start).unwrap();
        for (n, ts) in [(0, ahead), (1, start)] {
            assert_eq!(fast(&replay, n, ts, start), Err(Refusal::BelowFloor));
        }
        // Killed while it waits: it waits on.
        drop(replay);
        let (replay, ended) = open(data.path(), start);
        assert_eq!(ended, Ended::Complete);
        assert_eq!(fast(&replay, 0, ahead, start), Err(Refusal::BelowFloor));
        let over = ahead.later(Duration::from_secs(60));
        assert_eq!(fast(&replay, 0, over, over), Err(Refusal::Ahead));
        replay.settle(over).unwrap();
        fast(&replay, 0, over, over).unwrap();
    }

    #[test]
    fn a_window_that_is_gone_is_a_loss() {
        let data = tempfile::tempdir().unwrap();
        let (replay, _) = open(data.path(), NOW);
        use_nonce(&replay, 0).unwrap();
        replay.close();
        std::fs::remove_file(data.path().join(FILE_NAME)).unwrap();
        let (replay, ended) = open(data.path(), NOW);
        assert_eq!(ended, Ended::PowerLost);
        assert_eq!(use_nonce(&replay, 0), Err(Refusal::BelowFloor));
    }

    /// Numbers from a seed.
    struct Dice(u64);

    impl Dice {
        fn below(&mut self, bound: u64) -> u64 {
            self.0 = self
                .0
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) % bound
        }
    }

    #[test]
    fn no_nonce_is_accepted_twice_whatever_power_and_clocks_do() {
        for seed in 0..48 {
            history(&mut Dice(seed), seed);
        }
    }

    fn history(dice: &mut Dice, seed: u64) {
        const SECOND: Duration = Duration::from_secs(1);
        let data = tempfile::tempdir().unwrap();
        let ceilings = data.path().join("replay.ceilings");
        let mut now = NOW;
        let (mut replay, _) = open(data.path(), now);
        // What a loss of power leaves: the window's header, and the ceilings as they were synced.
        let mut synced = std::fs::read(&ceilings).unwrap();
        let offsets: Vec<i64> = (0..5).map(|n| n * dice.below(300_000) as i64 / 4).collect();
        let mut accepted: Vec<(u8, usize, Timestamp)> = Vec::new();
        for n in 0..150 {
            let drift = dice.below(12_000);
            now = now.later(Duration::from_millis(drift * drift / 12_000));
            match dice.below(20) {
                0 => replay.expire(now),
                1 | 2 => {
                    replay.settle(now).unwrap();
                    synced = std::fs::read(&ceilings).unwrap();
                }
                3 => {
                    drop(replay);
                    let ended;
                    (replay, ended) = open(data.path(), now);
                    assert_eq!(ended, Ended::Complete);
                    synced = std::fs::read(&ceilings).unwrap();
                }
                4 => {
                    drop(replay);
                    std::fs::write(&ceilings, &synced).unwrap();
                    reboot(data.path());
                    // It may be back at once, and with a clock that is a little slow.
                    let away = SECOND * dice.below(40) as u32;
                    now = now.earlier(SECOND * 5).later(away);
                    let ended;
                    (replay, ended) = open(data.path(), now);
                    assert_eq!(ended, Ended::PowerLost);
                    synced = std::fs::read(&ceilings).unwrap();
                    if away > SECOND * 13 {
                        let honest = Nonces::remember(&replay, &key(9), &nonce(n), now, now);
                        assert_eq!(honest, Ok(()), "seed {seed}: a right clock waits");
                        accepted.push((9, n, now));
                    }
                }
                who => {
                    let who = who as u8 % 5;
                    let (ms, off) = (now.as_ms() as i64, offsets[usize::from(who)]);
                    let sign = if who.is_multiple_of(2) { 1 } else { -1 };
                    let ts = Timestamp::from_ms((ms + sign * off) as u64);
                    let mut sent = attempt(&replay, who, n, ts, now);
                    if sent == Err(Refusal::Ahead) && dice.below(4) > 0 {
                        replay.settle(now).unwrap();
                        synced = std::fs::read(&ceilings).unwrap();
                        sent = attempt(&replay, who, n, ts, now);
                        assert_ne!(sent, Err(Refusal::Ahead), "seed {seed}");
                    }
                    if sent.is_ok() {
                        accepted.push((who, n, ts));
                    }
                }
            }
            for (who, n, ts) in &accepted {
                if ts.distance(now) <= SKEW {
                    let again = attempt(&replay, *who, *n, *ts, now);
                    assert!(again.is_err(), "seed {seed}: {who} {n} {ts:?} at {now:?}");
                }
            }
        }
        assert!(accepted.len() > 20, "seed {seed}: {}", accepted.len());
    }

    /// The last of the senders is a stranger.
    fn attempt(
        replay: &Replay,
        who: u8,
        n: usize,
        ts: Timestamp,
        now: Timestamp,
    ) -> Result<(), Refusal> {
        match who {
            4 => Nonces::remember(&replay.newcomers(4, 1_000), &key(who), &nonce(n), ts, now),
            _ => Nonces::remember(replay, &key(who), &nonce(n), ts, now),
        }
    }

    #[test]
    fn a_clean_stop_is_trusted_after_a_reboot() {
        let data = tempfile::tempdir().unwrap();
        let (replay, _) = open(data.path(), NOW);
        use_nonce(&replay, 0).unwrap();
        replay.close();
        drop(replay);
        reboot(data.path());
        let (replay, ended) = open(data.path(), NOW);
        assert_eq!(ended, Ended::Complete);
        assert_eq!(use_nonce(&replay, 0), Err(Refusal::Replayed));
        use_nonce(&replay, 1).unwrap();
    }

    #[test]
    fn the_floor_outlives_a_restart() {
        let data = tempfile::tempdir().unwrap();
        let (replay, _) = open(data.path(), NOW);
        use_nonce(&replay, 0).unwrap();
        replay.expire(NOW.later(SKEW * 4));
        drop(replay);
        // The clock was stepped back: what was dropped is still refused.
        let (replay, _) = open(data.path(), NOW);
        assert_eq!(use_nonce(&replay, 0), Err(Refusal::BelowFloor));
    }
}
