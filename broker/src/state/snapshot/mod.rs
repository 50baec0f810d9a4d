//! A snapshot: what the journal's records up to one of them come to, so that a start reads only those
//! after it.
//!
//! It is a shortcut and never the truth. A start follows the journal's chain through every record all
//! the same, and takes a snapshot only where that chain passes through the head that the snapshot
//! names, and where a key of this broker's signed it: whoever can write to the data directory and has no
//! key cannot make the broker believe what is not on record. Any other is left aside, and the whole
//! journal is read.
//!
//! It is written beside the journal as `snapshot.new`, synced, and renamed to `snapshot`.

mod codec;
mod keep;

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read as _, Result};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use proto_spec::signature::Signature;
use proto_spec::{Digest, PublicKey, SigningKey};

use super::keys::Held;
use super::peers::Peer;
use super::pending::Denied;
use super::proposals::Waiting;
use super::{
    Misfit, State, Taking, broker_keys, charter, recoveries, registry, revocations, trust,
};
use crate::change::Change;
use crate::journal::{Embedded, Head, JournalError};
pub(in crate::state) use codec::{Sink, Source, Stored, put_named, stored, take_named, torn};
pub use keep::Snapshots;

/// The last byte is the format's number.
const MAGIC: &[u8; 8] = b"FEMSNAP\x03";
const FILE_NAME: &str = "snapshot";
const UNFINISHED: &str = "snapshot.new";
/// Behind everything else: the broker's signature over [`signed`].
const SIGNATURE_BYTES: u64 = 64;

/// All that is durable of a [`State`].
#[derive(Debug, Default)]
pub struct Image {
    pub(super) charter: charter::Written,
    pub(super) broker_keys: broker_keys::Image,
    pub(super) recoveries: recoveries::Known,
    pub(super) roots: Vec<Held>,
    pub(super) registry: registry::Image,
    pub(super) revocations: revocations::Image,
    pub(super) peers: Vec<Peer>,
    pub(super) trust: trust::Image,
    pub(super) budgets: Vec<(Digest, u32)>,
    pub(super) proposals: Vec<Waiting>,
    pub(super) denied: Vec<Denied>,
}
stored!(Image {
    charter,
    broker_keys,
    recoveries,
    roots,
    registry,
    revocations,
    peers,
    trust,
    budgets,
    proposals,
    denied,
});

impl Image {
    /// Two of the same state are the same, and what is sorted is quicker to put back.
    fn sort(&mut self) {
        self.registry.sort();
        self.revocations.sort();
        self.budgets.sort_unstable();
    }
}

/// What the broker signs: no envelope begins like this.
fn signed(digest: Digest) -> Vec<u8> {
    [MAGIC.as_slice(), &digest.0].concat()
}

/// Writes what the records up to `head` come to into `data`, in place of any other.
///
/// # Errors
///
/// When it cannot be written or synced, too little of the disk would be left free, or `stop` is set:
/// what was there is as it was.
pub(super) fn write(
    data: &Path,
    head: Head,
    mut image: Image,
    key: &SigningKey,
    stop: &AtomicBool,
) -> Result<()> {
    image.sort();
    let unfinished = data.join(UNFINISHED);
    let written = write_to(&unfinished, head, &image, key, stop)
        .and_then(|()| std::fs::rename(&unfinished, data.join(FILE_NAME)));
    if written.is_err() {
        // Its room is needed.
        let _ = std::fs::remove_file(&unfinished);
    }
    written?;
    File::open(data)?.sync_all()
}

fn write_to(
    path: &Path,
    head: Head,
    image: &Image,
    key: &SigningKey,
    stop: &AtomicBool,
) -> Result<()> {
    // One that a crash left unfinished is written over.
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    let mut sink = Sink::new(&file, stop);
    sink.bytes(MAGIC);
    key.public().put(&mut sink);
    head.next.put(&mut sink);
    head.last.put(&mut sink);
    image.put(&mut sink);
    let digest = sink.finish()?;
    std::io::Write::write_all(&mut &file, &key.sign(&signed(digest)).0)?;
    file.sync_all()
}

/// A snapshot that was found, of which nothing is believed yet.
struct Found {
    /// Who is said to have signed it.
    signer: PublicKey,
    head: Head,
    rest: Source,
}

impl Found {
    /// Opens the snapshot of `data`, if there is one.
    fn open(data: &Path) -> Result<Option<Self>> {
        let file = match File::open(data.join(FILE_NAME)) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let length = file.metadata()?.len().saturating_sub(SIGNATURE_BYTES);
        let mut rest = Source::new(file, length);
        match rest.bytes(MAGIC.len())? {
            magic if magic == MAGIC => {}
            magic if magic[..7] == MAGIC[..7] => return Err(torn("it is of another format")),
            _ => return Err(torn("it is no snapshot")),
        }
        let signer = Stored::take(&mut rest)?;
        let (next, last) = Stored::take(&mut rest)?;
        let head = Head { next, last };
        Ok(Some(Self { signer, head, rest }))
    }

    /// Reads all of it.
    ///
    /// # Errors
    ///
    /// Where it cannot be read, is torn, or its signer did not sign it.
    fn read(mut self) -> Result<Image> {
        let image = Image::take(&mut self.rest)?;
        let (mut file, digest) = self.rest.finish()?;
        let mut signature = [0; SIGNATURE_BYTES as usize];
        file.read_exact(&mut signature)?;
        if self.signer.verifies(&signed(digest), &Signature(signature)) {
            Ok(image)
        } else {
            Err(torn("it is altered"))
        }
    }
}

/// Opens the journal of `data` and fills `state`, which is empty, with what it says: from the snapshot
/// that a key which `is_ours` signed and the records after it, or from all records. Gives the number of the
/// first record that was read.
///
/// # Errors
///
/// As [`Embedded::open`]: a damaged record stops it wherever it lies. And where a record does not fit.
pub fn read_back(
    data: &Path,
    state: &State,
    is_ours: impl Fn(&PublicKey) -> bool,
) -> std::result::Result<(Embedded, u64), Unreadable> {
    let why = match Found::open(data) {
        Ok(None) => None,
        Ok(Some(found)) if !is_ours(&found.signer) => {
            Some("it is not signed by this broker's key".into())
        }
        Ok(Some(found)) => match read_back_after(data, found, state)? {
            Ok(done) => return Ok(done),
            Err(why) => Some(why),
        },
        Err(error) => Some(error.to_string()),
    };
    if let Some(why) = why {
        tracing::warn!(
            why,
            "the snapshot is not used: the whole journal is read, which takes longer"
        );
    }
    let mut fits = Ok(());
    let journal = Embedded::open_giving(data, &mut |change| take(state, &change, &mut fits))?;
    fits?;
    Ok((journal, 0))
}

/// Takes a change over, unless one before it did not fit.
fn take(state: &State, change: &Change, fits: &mut std::result::Result<(), Misfit>) {
    if fits.is_ok() {
        *fits = state.apply(change, Taking::Back);
    }
}

/// Why a data directory is not what a broker starts from.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    /// Its journal.
    #[error("{0}")]
    Journal(#[from] JournalError),
    /// Something that its journal says.
    #[error(transparent)]
    Misfit(#[from] Misfit),
}

/// As [`read_back`], from this snapshot alone. Where it is not to be used `state` is still empty, and
/// the inner error says why.
fn read_back_after(
    data: &Path,
    found: Found,
    state: &State,
) -> std::result::Result<std::result::Result<(Embedded, u64), String>, Unreadable> {
    let head = found.head;
    let mut fits = Ok(());
    std::thread::scope(|scope| {
        // While it is read, the chain is followed up to its head.
        let mut reading = Some(scope.spawn(|| found.read()));
        let mut unread = None;
        let mut load = || {
            if let Some(reading) = reading.take() {
                match reading.join() {
                    Ok(Ok(image)) => state.load(image),
                    Ok(Err(error)) => unread = Some(error.to_string()),
                    Err(_) => unread = Some("reading it panicked".into()),
                }
            }
            unread.is_none()
        };
        let opened = Embedded::open_giving_since(data, head, &mut |change| {
            // Nothing comes here before the chain has passed through the head.
            if load() {
                take(state, &change, &mut fits);
            }
        });
        match opened {
            Ok(journal) => {
                load();
                fits?;
                Ok(unread.map_or(Ok((journal, head.next)), Err))
            }
            Err(error @ JournalError::Elsewhere(_)) => Ok(Err(error.to_string())),
            Err(error) => Err(error.into()),
        }
    })
}

#[cfg(test)]
mod tests;
