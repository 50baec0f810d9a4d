//! What a snapshot is written in: numbers of fixed width, texts and lists with their length in front,
//! no names of fields. The format number stands for the order, so it changes with any of these.
//!
//! What is named many times is written once, and by its number afterwards: names, patterns, and what
//! was issued.
//!
//! A type that is written with [`stored!`] names every field it has, so that none can be forgotten: a
//! new one does not compile before it stands there.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Error, ErrorKind, Read as _, Result, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use proto_spec::message::AdminScope;
use proto_spec::{Digest, Name, NamePattern, Org, Pattern, PublicKey, Timestamp};
use rustix::fs::fstatvfs;
use sha2::Digest as _;

use crate::state::registry::Record;

/// Bytes that are read, hashed and written at once.
const BLOCK_BYTES: usize = 1 << 20;
/// Bytes between two syncs: the journal's own syncs wait for no more than these.
const SYNC_BYTES: usize = 16 << 20;
/// What a snapshot leaves free of the disk, for the journal: it is written only where there is room.
const LEFT_FREE_BYTES: u64 = 64 << 20;

/// Something that a snapshot holds.
pub(in crate::state) trait Stored: Sized {
    /// Writes all of it.
    fn put(&self, to: &mut Sink);

    /// Reads it back.
    ///
    /// # Errors
    ///
    /// Where it is cut off, or is none.
    fn take(from: &mut Source) -> Result<Self>;
}

/// Makes a struct [`Stored`]: all its fields, in the order given.
macro_rules! stored {
    ($name:ty { $($field:ident),* $(,)? }) => {
        impl $crate::state::snapshot::Stored for $name {
            fn put(&self, to: &mut $crate::state::snapshot::Sink) {
                let Self { $($field),* } = self;
                $($crate::state::snapshot::Stored::put($field, to);)*
            }

            fn take(from: &mut $crate::state::snapshot::Source) -> std::io::Result<Self> {
                $(let $field = $crate::state::snapshot::Stored::take(from)?;)*
                Ok(Self { $($field),* })
            }
        }
    };
}
pub(in crate::state) use stored;

pub(in crate::state) fn torn(why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::new(ErrorKind::InvalidData, why)
}

/// Where a snapshot is written to. After the first failure nothing more is, and [`Sink::finish`] tells.
pub(in crate::state) struct Sink<'a> {
    file: &'a File,
    block: Vec<u8>,
    hash: sha2::Sha256,
    unsynced: usize,
    stop: &'a AtomicBool,
    written: Result<()>,
    /// Their numbers, by sort.
    texts: [HashMap<String, u32>; 2],
    records: HashMap<Digest, u32>,
}

impl<'a> Sink<'a> {
    /// Writes to `file` until `stop`.
    pub(super) fn new(file: &'a File, stop: &'a AtomicBool) -> Self {
        Self {
            file,
            block: Vec::with_capacity(BLOCK_BYTES),
            hash: sha2::Sha256::new(),
            unsynced: 0,
            stop,
            written: Ok(()),
            texts: Default::default(),
            records: HashMap::new(),
        }
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        self.block.extend_from_slice(bytes);
        if self.block.len() >= BLOCK_BYTES {
            self.flush();
        }
    }

    /// A text of which there are many: written when it is first put.
    fn shared(&mut self, sort: usize, text: &str) {
        let known = &mut self.texts[sort];
        let (number, is_new) = match known.get(text) {
            Some(number) => (*number, false),
            None => (known.len() as u32, true),
        };
        if is_new {
            known.insert(text.into(), number);
        }
        number.put(self);
        if is_new {
            put_text(text, self);
        }
    }

    /// Gives the digest of all that was put, when it is on its way to the disk.
    ///
    /// # Errors
    ///
    /// The first failure: of the disk, for want of room, or because it was stopped.
    pub(super) fn finish(mut self) -> Result<Digest> {
        self.flush();
        self.written?;
        Ok(Digest(self.hash.finalize().into()))
    }

    fn flush(&mut self) {
        if self.written.is_ok() {
            self.written = self.write_block();
        }
        self.block.clear();
    }

    fn write_block(&mut self) -> Result<()> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(Error::new(ErrorKind::Interrupted, "the broker stops"));
        }
        if self.unsynced == 0 {
            let disk = fstatvfs(self.file)?;
            if disk.f_bavail.saturating_mul(disk.f_frsize) < LEFT_FREE_BYTES + SYNC_BYTES as u64 {
                return Err(ErrorKind::StorageFull.into());
            }
        }
        self.hash.update(&self.block);
        self.file.write_all(&self.block)?;
        self.unsynced += self.block.len();
        if self.unsynced >= SYNC_BYTES {
            self.file.sync_data()?;
            self.unsynced = 0;
        }
        Ok(())
    }
}

/// Where a snapshot is read from.
pub(in crate::state) struct Source {
    file: File,
    /// Bytes of the file that are not read.
    left: u64,
    block: Vec<u8>,
    at: usize,
    hash: sha2::Sha256,
    names: Vec<Name>,
    patterns: Vec<Pattern>,
    records: Vec<Arc<Record>>,
}

impl Source {
    /// Reads the next `length` bytes of `file`.
    pub(super) fn new(file: File, length: u64) -> Self {
        Self {
            file,
            left: length,
            block: Vec::new(),
            at: 0,
            hash: sha2::Sha256::new(),
            names: Vec::new(),
            patterns: Vec::new(),
            records: Vec::new(),
        }
    }

    /// The next `count` bytes. No more memory is taken for them than the file has bytes.
    pub(super) fn bytes(&mut self, count: usize) -> Result<&[u8]> {
        if self.block.len() - self.at < count {
            self.fill(count)?;
        }
        let from = self.at;
        self.at += count;
        Ok(&self.block[from..self.at])
    }

    fn fill(&mut self, count: usize) -> Result<()> {
        self.block.drain(..self.at);
        self.at = 0;
        let missing = count.saturating_sub(self.block.len()) as u64;
        if missing > self.left {
            return Err(torn("it is cut off"));
        }
        let more = self.left.min(missing.max(BLOCK_BYTES as u64));
        let from = self.block.len();
        self.block.resize(from + more as usize, 0);
        self.file.read_exact(&mut self.block[from..])?;
        self.hash.update(&self.block[from..]);
        self.left -= more;
        Ok(())
    }

    /// The digest of all, when all is read.
    ///
    /// # Errors
    ///
    /// Where something is left.
    pub(super) fn finish(self) -> Result<(File, Digest)> {
        if self.left > 0 || self.at < self.block.len() {
            return Err(torn("it has more than it should"));
        }
        Ok((self.file, Digest(self.hash.finalize().into())))
    }

    fn text(&mut self) -> Result<&str> {
        let length = u32::take(self)?;
        std::str::from_utf8(self.bytes(length as usize)?).map_err(torn)
    }

    /// A text of which there are many: parsed when it is first read.
    fn shared<T: Clone + std::str::FromStr>(
        &mut self,
        known: impl Fn(&mut Self) -> &mut Vec<T>,
    ) -> Result<T>
    where
        T::Err: std::error::Error + Send + Sync + 'static,
    {
        let number = u32::take(self)? as usize;
        if number == known(self).len() {
            let text = self.text()?.parse().map_err(torn)?;
            known(self).push(text);
        }
        let one = known(self).get(number).cloned();
        one.ok_or_else(|| torn("a text has no number"))
    }
}

fn put_text(text: &str, to: &mut Sink) {
    put_count(text.len(), to);
    to.bytes(text.as_bytes());
}

fn put_count(count: usize, to: &mut Sink) {
    // What is longer cannot be read back, so it is as good as unwritten.
    u32::try_from(count).unwrap_or(u32::MAX).put(to);
}

macro_rules! stored_number {
    ($($name:ty),*) => {$(
        impl Stored for $name {
            fn put(&self, to: &mut Sink) {
                to.bytes(&self.to_be_bytes());
            }

            fn take(from: &mut Source) -> Result<Self> {
                let mut bytes = [0; size_of::<Self>()];
                bytes.copy_from_slice(from.bytes(size_of::<Self>())?);
                Ok(Self::from_be_bytes(bytes))
            }
        }
    )*};
}
stored_number!(u8, u32, u64);

macro_rules! stored_text {
    ($($name:ty),*) => {$(
        impl Stored for $name {
            fn put(&self, to: &mut Sink) {
                put_text(self.as_str(), to);
            }

            fn take(from: &mut Source) -> Result<Self> {
                from.text()?.parse().map_err(torn)
            }
        }
    )*};
}
stored_text!(String, Org, NamePattern);

macro_rules! stored_shared {
    ($($name:ty, $known:ident, $sort:literal);*) => {$(
        impl Stored for $name {
            fn put(&self, to: &mut Sink) {
                to.shared($sort, self.as_str());
            }

            fn take(from: &mut Source) -> Result<Self> {
                from.shared(|source| &mut source.$known)
            }
        }
    )*};
}
stored_shared!(Name, names, 0; Pattern, patterns, 1);

impl Stored for Arc<str> {
    fn put(&self, to: &mut Sink) {
        put_text(self, to);
    }

    fn take(from: &mut Source) -> Result<Self> {
        Ok(from.text()?.into())
    }
}

impl Stored for bool {
    fn put(&self, to: &mut Sink) {
        u8::from(*self).put(to);
    }

    fn take(from: &mut Source) -> Result<Self> {
        match u8::take(from)? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(torn("a truth value is neither")),
        }
    }
}

impl Stored for [u8; 32] {
    fn put(&self, to: &mut Sink) {
        to.bytes(self);
    }

    fn take(from: &mut Source) -> Result<Self> {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(from.bytes(32)?);
        Ok(bytes)
    }
}

impl Stored for Digest {
    fn put(&self, to: &mut Sink) {
        self.0.put(to);
    }

    fn take(from: &mut Source) -> Result<Self> {
        Stored::take(from).map(Self)
    }
}

impl Stored for PublicKey {
    fn put(&self, to: &mut Sink) {
        self.as_bytes().put(to);
    }

    fn take(from: &mut Source) -> Result<Self> {
        Self::from_bytes(&Stored::take(from)?).map_err(torn)
    }
}

impl Stored for Timestamp {
    fn put(&self, to: &mut Sink) {
        self.as_ms().put(to);
    }

    fn take(from: &mut Source) -> Result<Self> {
        Stored::take(from).map(Self::from_ms)
    }
}

stored!(AdminScope { grantable, names });

impl<T: Stored> Stored for Option<T> {
    fn put(&self, to: &mut Sink) {
        self.is_some().put(to);
        if let Some(one) = self {
            one.put(to);
        }
    }

    fn take(from: &mut Source) -> Result<Self> {
        bool::take(from)?.then(|| T::take(from)).transpose()
    }
}

impl<T: Stored> Stored for Vec<T> {
    fn put(&self, to: &mut Sink) {
        put_count(self.len(), to);
        self.iter().for_each(|one| one.put(to));
    }

    fn take(from: &mut Source) -> Result<Self> {
        // Collected as they are found: the count alone takes no memory.
        (0..u32::take(from)?).map(|_| T::take(from)).collect()
    }
}

impl<A: Stored, B: Stored> Stored for (A, B) {
    fn put(&self, to: &mut Sink) {
        self.0.put(to);
        self.1.put(to);
    }

    fn take(from: &mut Source) -> Result<Self> {
        Ok((A::take(from)?, B::take(from)?))
    }
}

/// What stands on record of an agent is the same [`Record`] that stands in the list of what was issued:
/// the list comes first, and others name its records.
impl Stored for Arc<Record> {
    fn put(&self, to: &mut Sink) {
        to.records.insert(self.id, to.records.len() as u32);
        Record::put(self, to);
    }

    fn take(from: &mut Source) -> Result<Self> {
        let record = Self::new(Record::take(from)?);
        from.records.push(Self::clone(&record));
        Ok(record)
    }
}

/// Names records that were put before.
pub(in crate::state) fn put_named(records: &[Arc<Record>], to: &mut Sink) {
    put_count(records.len(), to);
    for record in records {
        let number = to.records.get(&record.id).copied();
        // One that was not put cannot be read back.
        number.unwrap_or(u32::MAX).put(to);
    }
}

/// The records that are named here, and were read before.
///
/// # Errors
///
/// Where one was not.
pub(in crate::state) fn take_named(from: &mut Source) -> Result<Vec<Arc<Record>>> {
    let count = u32::take(from)?;
    let take = |_| {
        let number = u32::take(from)? as usize;
        let named = from.records.get(number).cloned();
        named.ok_or_else(|| torn("an agent has a grant that was not issued"))
    };
    (0..count).map(take).collect()
}
