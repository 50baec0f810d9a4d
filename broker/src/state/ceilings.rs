//! Up to which timestamp each sender was accepted: what a loss of power must not forget.
//!
//! The replay window is written and not synced, so a loss of power takes its newest nonces. Of what
//! was accepted then, this much is durable: nothing lay above its sender's **ceiling**. After the loss
//! each sender is refused up to its ceiling, and above it no nonce was ever used.
//!
//! A ceiling is the broker's **mark**, which is raised ahead of the clock every few seconds for all
//! senders at once, and the **lead** of that sender, which is none for whoever's clock is right. Both
//! are synced before an envelope above them is accepted: until then it is refused as
//! [`Refusal::Ahead`]. A lead only grows, by whole steps of half a minute, until its sender does not use it
//! for an hour. So a sender costs at most a few syncs, and only its own envelopes wait for them.
//!
//! A file of its own, because a sync of the window would write all of it.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{Error, Result};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use proto_spec::{Refusal, Timestamp};

use crate::locks::lock;

/// How far the mark is raised ahead of the clock. A start this soon after a loss waits for the rest.
const MARK_AHEAD: Duration = Duration::from_secs(8);
/// The mark is raised when it is less than this ahead: what runs ahead by no more has no lead.
const MARK_LEAST: Duration = Duration::from_secs(3);
/// A broker that hears nothing for so long does not raise its mark: it wakes no disk.
const IDLE: Duration = Duration::from_secs(60);
/// Leads are whole steps, so that a sender whose clock drifts does not cost a sync for each envelope.
const LEAD_STEP: Duration = Duration::from_secs(30);
/// A lead that its sender did not use for so long is taken back.
const LEAD_KEPT: Duration = Duration::from_secs(3_600);
/// Senders with a lead of their own. The rest share one, and wait for it together after a loss.
pub const LEADS_MAX: usize = 16_384;
/// A start this much later than the one before may be a clock that was set ahead: it is remembered.
const LEAP: Duration = Duration::from_secs(3_600);
/// Spans of time that are kept in the header. The shortest leap gives way; barred spans are joined.
const SPANS_MAX: usize = 8;

const MAGIC: &[u8; 8] = b"FEMCEIL\x01";
const FILE_NAME: &str = "replay.ceilings";
/// One sector: it is written whole or not at all.
const HEADER_BYTES: usize = 512;
const LEADS_OFFSET: u64 = 4_096;
const LEAD_BYTES: usize = 32;

/// Whose ceiling it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Whose {
    /// An agent's, by the first bytes of its key.
    Agent(u64),
    /// The one that strangers have together.
    Newcomers,
}

/// From the first to the second, both included.
type Span = (Timestamp, Timestamp);

/// What is in the header's sector.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Header {
    mark: Timestamp,
    /// Everybody is refused up to here.
    barred: Timestamp,
    newcomers: Lead,
    /// The one that agents have together who found no room for their own.
    others: Lead,
    /// From the last mark before a start to that start.
    leaps: Vec<Span>,
    /// What was accepted by a clock that an operator has disowned.
    disowned: Vec<Span>,
}

/// How far one sender ran ahead.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Lead {
    /// Above the mark.
    ahead: Duration,
    /// The sender is refused up to here.
    barred: Timestamp,
    /// Not written: when it was last needed.
    used: Timestamp,
}

#[derive(Debug)]
struct Table {
    header: Header,
    /// By agent: the place in the file, and what stands there.
    leads: HashMap<u64, (u32, Lead)>,
    free: Vec<u32>,
    /// What waits for a sync: by sender, the newest timestamp.
    asked: HashMap<Whose, Timestamp>,
}

/// The ceilings of all senders, and their file.
#[derive(Debug)]
pub struct Ceilings {
    file: File,
    skew: Duration,
    /// The durable mark, and up to where anybody may be refused: most envelopes need no more.
    mark: AtomicU64,
    barred: AtomicU64,
    heard: AtomicU64,
    table: Mutex<Table>,
    syncing: Mutex<()>,
}

/// What is to be written, and what is so afterwards.
#[derive(Debug)]
struct Plan {
    header: Header,
    leads: Vec<(u64, u32, Lead)>,
    /// Places whose lead was taken back: written first, since one may be given out again at once.
    blank: Vec<u32>,
}

/// How the broker before this one ended, as its ceilings are concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Before {
    /// There was none.
    None,
    /// Its nonces are remembered.
    Remembered,
    /// Its nonces are lost. Where its ceilings are lost too, everybody is refused up to this.
    Lost(Timestamp),
}

impl Ceilings {
    /// Whether `data` holds them.
    #[must_use]
    pub fn exist(data: &Path) -> bool {
        data.join(FILE_NAME).exists()
    }

    /// Opens those of `data` or makes them. Where nonces were lost everybody is refused up to the own
    /// ceiling.
    ///
    /// # Errors
    ///
    /// When the file cannot be made, read or synced, or is another's.
    pub fn open(data: &Path, skew: Duration, now: Timestamp, before: Before) -> Result<Self> {
        let (file, mut table) = load(data)?;
        let found = table.header.mark;
        let blank = found == Timestamp::default();
        match before {
            Before::Lost(bar) if blank => table.header.barred = bar,
            Before::Lost(_) => table.bar(),
            Before::None | Before::Remembered => {}
        }
        // Before the first start there was nothing either.
        if now > found.later(LEAP) && (!blank || before == Before::None) {
            table.header.leaps.push((found, now));
            if table.header.leaps.len() > SPANS_MAX {
                let length = |span: &Span| span.0.distance(span.1);
                let shortest = (0..SPANS_MAX).min_by_key(|n| length(&table.header.leaps[*n]));
                table.header.leaps.remove(shortest.unwrap_or_default());
            }
        }
        table.header.mark = found.max(now.later(MARK_AHEAD));
        for (_, lead) in table.leads.values_mut() {
            lead.used = now;
        }
        (table.header.newcomers.used, table.header.others.used) = (now, now);
        table.write(&file)?;
        Ok(Self {
            mark: AtomicU64::new(table.header.mark.as_ms()),
            barred: AtomicU64::new(table.barred().as_ms()),
            heard: AtomicU64::new(now.as_ms()),
            table: Mutex::new(table),
            syncing: Mutex::new(()),
            file,
            skew,
        })
    }

    /// A time that the broker of `data` has certainly seen, if it ever ran.
    ///
    /// # Errors
    ///
    /// When the file is there and cannot be read.
    pub fn newest(data: &Path) -> Result<Timestamp> {
        if !Self::exist(data) {
            return Ok(Timestamp::default());
        }
        Ok(load(data)?.1.header.mark.earlier(MARK_AHEAD))
    }

    /// Takes an operator's word that it is `now`, although the broker has seen later times. What was
    /// accepted by the clock that is disowned stays refused when its time comes.
    ///
    /// Where the broker remembers a start that leapt over `now`, everything after that start is
    /// disowned, and senders wait one window. Otherwise it lived through `now` itself, its nonces of
    /// then are forgotten, and everything is refused until the latest time it has seen.
    ///
    /// # Errors
    ///
    /// When the file cannot be written or synced.
    pub fn disown(data: &Path, skew: Duration, now: Timestamp) -> Result<()> {
        let (file, mut table) = load(data)?;
        let header = &mut table.header;
        let reach = header.mark.later(skew);
        let leapt = header
            .leaps
            .iter()
            .find(|(before, after)| before.earlier(MARK_AHEAD) <= now && now < *after)
            .copied();
        header.barred = match leapt {
            Some((before, after)) => {
                let first = after.earlier(skew);
                // Joined when there are many: a wider span refuses more, never less.
                if header.disowned.len() == SPANS_MAX {
                    let last = header.disowned.pop().unwrap_or_default();
                    header.disowned.push((last.0.min(first), last.1.max(reach)));
                } else {
                    header.disowned.push((first, reach));
                }
                now.max(before).later(skew)
            }
            None => header.barred.max(reach),
        };
        header.leaps.retain(|(_, after)| *after <= now);
        header.mark = now.later(MARK_AHEAD);
        (header.newcomers, header.others) = (Lead::default(), Lead::default());
        for (_, lead) in table.leads.values_mut() {
            *lead = Lead::default();
        }
        table.write(&file)
    }

    /// Whether an envelope of this sender lies below what is durable; asks for a sync where it does not.
    ///
    /// # Errors
    ///
    /// [`Refusal::BelowFloor`] where the nonces of `ts` were lost, [`Refusal::Ahead`] where a sync has
    /// to come first.
    pub fn cover(
        &self,
        whose: Whose,
        ts: Timestamp,
        now: Timestamp,
    ) -> std::result::Result<(), Refusal> {
        self.heard.store(now.as_ms(), Ordering::Relaxed);
        let (mark, barred) = (
            Timestamp::from_ms(self.mark.load(Ordering::Acquire)),
            Timestamp::from_ms(self.barred.load(Ordering::Acquire)),
        );
        if ts > barred && ts <= mark {
            return Ok(());
        }
        lock(&self.table).cover(whose, ts, now)
    }

    /// Makes durable what was asked for, and raises the mark. Waits for the disk.
    ///
    /// # Errors
    ///
    /// When it cannot be written or synced: nothing is raised then.
    pub fn settle(&self, now: Timestamp) -> Result<()> {
        let _one_at_a_time = lock(&self.syncing);
        let heard = Timestamp::from_ms(self.heard.load(Ordering::Relaxed));
        let idle = now > heard.later(IDLE);
        let Some(plan) = lock(&self.table).plan(now, idle, self.skew) else {
            return Ok(());
        };
        for place in &plan.blank {
            let at = LEADS_OFFSET + u64::from(*place) * LEAD_BYTES as u64;
            self.file.write_all_at(&[0; LEAD_BYTES], at)?;
        }
        for (agent, place, lead) in &plan.leads {
            lead.write(&self.file, *place, *agent)?;
        }
        plan.header.write(&self.file)?;
        self.file.sync_data()?;
        let mut table = lock(&self.table);
        table.take_over(&plan);
        self.barred.store(table.barred().as_ms(), Ordering::Release);
        self.mark.store(plan.header.mark.as_ms(), Ordering::Release);
        Ok(())
    }
}

impl Table {
    /// Up to where anybody may be refused.
    fn barred(&self) -> Timestamp {
        let spans = self.header.disowned.iter().map(|span| span.1);
        let leads = self.leads.values().map(|(_, lead)| lead.barred);
        spans
            .chain(leads)
            .chain([self.header.barred, self.header.newcomers.barred])
            .max()
            .unwrap_or_default()
    }

    /// After a loss of power: everybody is refused up to the ceiling.
    fn bar(&mut self) {
        let mark = self.header.mark;
        let header = &mut self.header;
        header.barred = header.barred.max(mark.later(header.others.ahead));
        header.newcomers.bar(mark);
        for (_, lead) in self.leads.values_mut() {
            lead.bar(mark);
        }
    }

    fn cover(
        &mut self,
        whose: Whose,
        ts: Timestamp,
        now: Timestamp,
    ) -> std::result::Result<(), Refusal> {
        let Header {
            mark,
            barred,
            newcomers,
            others,
            disowned,
            ..
        } = &mut self.header;
        let own = match whose {
            Whose::Agent(agent) => self.leads.get_mut(&agent).map(|(_, lead)| lead),
            Whose::Newcomers => Some(newcomers),
        };
        let below = ts <= *barred || own.as_ref().is_some_and(|lead| ts <= lead.barred);
        if below || disowned.iter().any(|(from, to)| *from <= ts && ts <= *to) {
            return Err(Refusal::BelowFloor);
        }
        if ts <= *mark {
            return Ok(());
        }
        let leads = own.into_iter().chain([others]);
        for lead in leads {
            if ts <= mark.later(lead.ahead) {
                lead.used = now;
                return Ok(());
            }
        }
        // Each sender that waits has one entry, and is refused: what waits is bounded by what is known.
        if self.asked.len() < LEADS_MAX || self.asked.contains_key(&whose) {
            let asked = self.asked.entry(whose).or_default();
            *asked = ts.max(*asked);
        }
        Err(Refusal::Ahead)
    }

    fn plan(&mut self, now: Timestamp, idle: bool, skew: Duration) -> Option<Plan> {
        let low = self.header.mark < now.later(MARK_LEAST);
        if self.asked.is_empty() && (idle || !low) {
            return None;
        }
        let mut header = self.header.clone();
        if low {
            header.mark = now.later(MARK_AHEAD);
        }
        let unused = |lead: &Lead| now > lead.used.later(LEAD_KEPT.max(skew * 2));
        let (mut leads, mut blank) = (Vec::new(), Vec::new());
        self.leads.retain(|_, (place, lead)| {
            let over = unused(lead) && now > lead.barred;
            if over {
                blank.push(*place);
            }
            !over
        });
        self.free.extend(&blank);
        for lead in [&mut header.newcomers, &mut header.others] {
            if unused(lead) {
                lead.ahead = Duration::ZERO;
            }
        }
        for (whose, ts) in self.asked.drain() {
            let ahead = steps(header.mark, ts);
            let agent = match whose {
                // The raised mark is enough.
                _ if ahead.is_zero() => continue,
                Whose::Newcomers => {
                    header.newcomers.raise(ahead, now);
                    continue;
                }
                Whose::Agent(agent) => agent,
            };
            if !self.leads.contains_key(&agent)
                && let Some(place) = self.free.pop()
            {
                let none = Lead {
                    used: now,
                    ..Lead::default()
                };
                self.leads.insert(agent, (place, none));
            }
            match self.leads.get(&agent) {
                Some((place, lead)) => {
                    let mut lead = *lead;
                    lead.raise(ahead, now);
                    leads.push((agent, *place, lead));
                }
                None => header.others.raise(ahead, now),
            }
        }
        Some(Plan {
            header,
            leads,
            blank,
        })
    }

    fn take_over(&mut self, plan: &Plan) {
        self.header = plan.header.clone();
        for (agent, place, lead) in &plan.leads {
            self.leads.insert(*agent, (*place, *lead));
        }
    }

    /// Writes and syncs everything.
    fn write(&self, file: &File) -> Result<()> {
        for (agent, (place, lead)) in &self.leads {
            lead.write(file, *place, *agent)?;
        }
        self.header.write(file)?;
        file.sync_all()
    }
}

impl Lead {
    fn raise(&mut self, ahead: Duration, now: Timestamp) {
        (self.ahead, self.used) = (self.ahead.max(ahead), now);
    }

    fn bar(&mut self, mark: Timestamp) {
        self.barred = self.barred.max(mark.later(self.ahead));
    }

    fn write(&self, file: &File, place: u32, agent: u64) -> Result<()> {
        let mut bytes = [0; LEAD_BYTES];
        let fields = [agent, ms(self.ahead), self.barred.as_ms(), 1];
        put(&mut bytes, fields);
        file.write_all_at(&bytes, LEADS_OFFSET + u64::from(place) * LEAD_BYTES as u64)
    }
}

impl Header {
    fn write(&self, file: &File) -> Result<()> {
        let spans = |spans: &[Span]| {
            let mut fields = [0; SPANS_MAX * 2];
            for (pair, span) in fields.chunks_exact_mut(2).zip(spans) {
                (pair[0], pair[1]) = (span.0.as_ms(), span.1.as_ms());
            }
            fields
        };
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(MAGIC);
        let fields = [
            self.mark.as_ms(),
            self.barred.as_ms(),
            ms(self.newcomers.ahead),
            self.newcomers.barred.as_ms(),
            ms(self.others.ahead),
        ];
        let spans = spans(&self.leaps).into_iter().chain(spans(&self.disowned));
        put(&mut bytes[8..], fields.into_iter().chain(spans));
        file.write_all_at(&bytes, 0)
    }

    fn read(bytes: &[u8; HEADER_BYTES]) -> Result<Self> {
        if *bytes == [0; HEADER_BYTES] {
            return Ok(Self::default());
        }
        if &bytes[..8] != MAGIC {
            return Err(Error::other("not the ceilings of this format"));
        }
        let fields: Vec<u64> = take(&bytes[8..]).collect();
        let lead = |ahead: u64, barred: u64| Lead {
            ahead: Duration::from_millis(ahead),
            barred: Timestamp::from_ms(barred),
            used: Timestamp::default(),
        };
        let spans = |from: usize| {
            fields[from..from + SPANS_MAX * 2]
                .chunks_exact(2)
                .map(|pair| (Timestamp::from_ms(pair[0]), Timestamp::from_ms(pair[1])))
                .filter(|span| span.1 != Timestamp::default())
                .collect()
        };
        Ok(Self {
            mark: Timestamp::from_ms(fields[0]),
            barred: Timestamp::from_ms(fields[1]),
            newcomers: lead(fields[2], fields[3]),
            others: lead(fields[4], 0),
            leaps: spans(5),
            disowned: spans(5 + SPANS_MAX * 2),
        })
    }
}

fn load(data: &Path) -> Result<(File, Table)> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(data.join(FILE_NAME))?;
    let length = LEADS_OFFSET + (LEADS_MAX * LEAD_BYTES) as u64;
    // Preallocated: a full disk cannot keep a ceiling from being raised.
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, length)?;
    // The name of a file that was made just now is durable only with its folder.
    File::open(data)?.sync_all()?;
    let mut header = [0; HEADER_BYTES];
    file.read_exact_at(&mut header, 0)?;
    let header = Header::read(&header)?;
    let mut bytes = vec![0; LEADS_MAX * LEAD_BYTES];
    file.read_exact_at(&mut bytes, LEADS_OFFSET)?;
    let (mut leads, mut free) = (HashMap::new(), Vec::new());
    for (place, bytes) in (0..).zip(bytes.chunks_exact(LEAD_BYTES)) {
        let fields: Vec<u64> = take(bytes).collect();
        let lead = Lead {
            ahead: Duration::from_millis(fields[1]),
            barred: Timestamp::from_ms(fields[2]),
            used: Timestamp::default(),
        };
        if fields[3] == 0 {
            free.push(place);
            continue;
        }
        // A lead that was taken back is left where it was; of two of one sender the longer counts.
        let entry = leads.entry(fields[0]).or_insert((place, lead));
        if entry.0 != place {
            entry.1.ahead = entry.1.ahead.max(lead.ahead);
            entry.1.barred = entry.1.barred.max(lead.barred);
            free.push(place);
        }
    }
    free.reverse();
    let table = Table {
        header,
        leads,
        free,
        asked: HashMap::new(),
    };
    Ok((file, table))
}

/// How far `ts` lies above `mark`, in whole steps.
fn steps(mark: Timestamp, ts: Timestamp) -> Duration {
    let above = ts.as_ms().saturating_sub(mark.as_ms());
    LEAD_STEP * above.div_ceil(ms(LEAD_STEP)) as u32
}

fn ms(duration: Duration) -> u64 {
    duration.as_millis() as u64
}

fn put(bytes: &mut [u8], fields: impl IntoIterator<Item = u64>) {
    for (bytes, field) in bytes.chunks_exact_mut(8).zip(fields) {
        bytes.copy_from_slice(&field.to_le_bytes());
    }
}

fn take(bytes: &[u8]) -> impl Iterator<Item = u64> {
    bytes.chunks_exact(8).map(|chunk| {
        let mut field = [0; 8];
        field.copy_from_slice(chunk);
        u64::from_le_bytes(field)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SKEW: Duration = Duration::from_secs(300);
    const NOW: Timestamp = Timestamp::from_ms(1_800_000_000_000);
    const HOUR: Duration = Duration::from_secs(3_600);

    fn open(data: &Path, now: Timestamp, before: Before) -> Ceilings {
        Ceilings::open(data, SKEW, now, before).unwrap()
    }

    fn lost(data: &Path, now: Timestamp) -> Ceilings {
        open(data, now, Before::Lost(Timestamp::default()))
    }

    fn secs(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn a_sender_with_a_right_clock_never_waits_for_a_sync() {
        let data = tempfile::tempdir().unwrap();
        let ceilings = open(data.path(), NOW, Before::None);
        for second in 0..3_600 {
            let now = NOW.later(secs(second));
            let late = now.later(Duration::from_millis(999));
            ceilings.cover(Whose::Agent(1), late, late).unwrap();
            ceilings
                .cover(Whose::Agent(2), late.later(secs(1)), late)
                .unwrap();
            ceilings.settle(late).unwrap();
        }
        assert!(lock(&ceilings.table).leads.is_empty());
    }

    #[test]
    fn a_sender_that_runs_ahead_waits_for_a_bounded_number_of_syncs() {
        let data = tempfile::tempdir().unwrap();
        let ceilings = open(data.path(), NOW, Before::None);
        let mut waits = 0;
        for tenths in 0..36_000 {
            let now = NOW.later(Duration::from_millis(tenths * 100));
            if tenths % 10 == 0 {
                ceilings.settle(now).unwrap();
            }
            // It creeps ahead as slowly as it can, to meet each step.
            let ts = now.later(Duration::from_millis(tenths * 100).min(SKEW));
            if ceilings.cover(Whose::Agent(1), ts, now) == Err(Refusal::Ahead) {
                waits += 1;
                ceilings.settle(now).unwrap();
                ceilings.cover(Whose::Agent(1), ts, now).unwrap();
            }
        }
        assert!(waits <= 10, "{waits}");
        // A right clock takes the lead back; then a loss of power costs that sender nothing.
        let later = NOW.later(HOUR * 3);
        ceilings.cover(Whose::Agent(1), later, later).unwrap_err();
        ceilings.settle(later).unwrap();
        drop(ceilings);
        let start = later.later(secs(60));
        let ceilings = lost(data.path(), start);
        ceilings.cover(Whose::Agent(1), start, start).unwrap();
    }

    #[test]
    fn senders_beyond_the_table_share_one_ceiling() {
        let data = tempfile::tempdir().unwrap();
        let ceilings = open(data.path(), NOW, Before::None);
        let ts = NOW.later(secs(100));
        let senders = LEADS_MAX as u64 + 10;
        for _ in 0..2 {
            for sender in 0..senders {
                let _ = ceilings.cover(Whose::Agent(sender), ts, NOW);
            }
            ceilings.settle(NOW).unwrap();
        }
        for sender in 0..senders {
            ceilings.cover(Whose::Agent(sender), ts, NOW).unwrap();
        }
        drop(ceilings);
        let start = NOW.later(secs(60));
        let ceilings = lost(data.path(), start);
        for sender in [0, senders - 1, senders + 1] {
            let refused = ceilings.cover(Whose::Agent(sender), start, start);
            assert_eq!(refused, Err(Refusal::BelowFloor), "{sender}");
        }
    }

    #[test]
    fn what_could_not_be_synced_is_not_relied_on() {
        let data = tempfile::tempdir().unwrap();
        let mut ceilings = open(data.path(), NOW, Before::None);
        let ts = NOW.later(secs(100));
        assert_eq!(
            ceilings.cover(Whose::Newcomers, ts, NOW),
            Err(Refusal::Ahead)
        );
        let read_only = File::open(data.path().join(FILE_NAME)).unwrap();
        let file = std::mem::replace(&mut ceilings.file, read_only);
        ceilings.settle(NOW).unwrap_err();
        assert_eq!(
            ceilings.cover(Whose::Newcomers, ts, NOW),
            Err(Refusal::Ahead)
        );
        ceilings.file = file;
        ceilings.settle(NOW).unwrap();
        ceilings.cover(Whose::Newcomers, ts, NOW).unwrap();
    }

    #[test]
    fn what_a_disowned_clock_accepted_stays_refused_when_its_time_comes() {
        let data = tempfile::tempdir().unwrap();
        drop(open(data.path(), NOW, Before::None));
        // Stopped; started with a clock a year ahead; then the clock is set right.
        let (year, minute) = (HOUR * 24 * 365, secs(60));
        let wrong = NOW.later(year);
        let ceilings = open(data.path(), wrong, Before::Remembered);
        let ahead = wrong.later(secs(200));
        for _ in 0..2 {
            let _ = ceilings.cover(Whose::Agent(1), ahead, wrong);
            ceilings.settle(wrong).unwrap();
        }
        ceilings.cover(Whose::Agent(1), ahead, wrong).unwrap();
        drop(ceilings);
        let now = NOW.later(minute);
        assert_eq!(Ceilings::newest(data.path()).unwrap(), wrong);
        Ceilings::disown(data.path(), SKEW, now).unwrap();
        let ceilings = lost(data.path(), now);
        // One window for those whom it accepted by the right clock, then all is as ever.
        let soon = now.later(SKEW).later(secs(1));
        assert_eq!(
            ceilings.cover(Whose::Agent(1), now, now),
            Err(Refusal::BelowFloor)
        );
        let _ = ceilings.cover(Whose::Agent(1), soon, soon);
        ceilings.settle(soon).unwrap();
        ceilings.cover(Whose::Agent(1), soon, soon).unwrap();
        drop(ceilings);
        let ceilings = open(data.path(), wrong, Before::Remembered);
        for ts in [wrong.earlier(SKEW), wrong, ahead] {
            assert_eq!(
                ceilings.cover(Whose::Agent(1), ts, wrong),
                Err(Refusal::BelowFloor)
            );
        }
    }

    #[test]
    fn a_time_that_the_broker_lived_through_cannot_be_had_again() {
        let data = tempfile::tempdir().unwrap();
        let ceilings = open(data.path(), NOW, Before::None);
        let (hour, half) = (NOW.later(HOUR), NOW.later(HOUR / 2));
        for minute in 0..=60 {
            let now = NOW.later(secs(60 * minute));
            let _ = ceilings.cover(Whose::Agent(1), now, now);
            ceilings.settle(now).unwrap();
        }
        drop(ceilings);
        Ceilings::disown(data.path(), SKEW, half).unwrap();
        let ceilings = lost(data.path(), half);
        for ts in [half, hour, hour.later(SKEW)] {
            assert_eq!(
                ceilings.cover(Whose::Agent(1), ts, ts),
                Err(Refusal::BelowFloor)
            );
        }
    }
}
