//! When a snapshot is written: beside the registrar, which is the only one that knows of a moment
//! between two changes.

use std::io::{Error, Result};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use super::{Image, write};
use crate::journal::Head;
use crate::state::State;
use crate::voice::Voice;

/// At least so many records are made between two snapshots: what a start reads in a moment.
pub(super) const RECORDS_MIN: u64 = 16_384;
/// And at least this part of what is live: writing costs in proportion to all of it.
const LIVE_PART: u64 = 8;

/// Writes a snapshot whenever enough records follow the one before, on a thread of its own.
///
/// Whoever drops it waits until that thread has stopped, which it does within a block.
#[derive(Debug)]
pub struct Snapshots {
    data: PathBuf,
    voice: Arc<Voice>,
    /// The number of the first record that the last snapshot does not have, also where writing it failed.
    since: u64,
    writing: Option<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
}

impl Snapshots {
    /// Of a journal in `data` whose records from `since` on are in no snapshot.
    #[must_use]
    pub fn new(data: PathBuf, voice: Arc<Voice>, since: u64) -> Self {
        Self {
            data,
            voice,
            since,
            writing: None,
            stop: Arc::default(),
        }
    }

    /// Begins to write one if it is time. `state` is what the records up to `head` come to, and nobody
    /// changes it meanwhile; it is held for as long as it takes to count what is live.
    pub fn keep(&mut self, state: &State, head: Head) {
        let live = (state.registry.len() + state.revocations.len()) as u64;
        let due = RECORDS_MIN.max(live / LIVE_PART);
        let is_writing = self.writing.as_ref().is_some_and(|one| !one.is_finished());
        if is_writing || head.next.saturating_sub(self.since) < due {
            return;
        }
        self.since = head.next;
        if let Err(error) = self.begin(state.image(), head) {
            tracing::warn!(%error, "no snapshot is written");
        }
    }

    /// Waits until what is being written is written.
    #[cfg(test)]
    pub(super) fn wait(&mut self) {
        if let Some(writing) = self.writing.take() {
            writing.join().unwrap();
        }
    }

    fn begin(&mut self, image: Image, head: Head) -> Result<()> {
        let key = self.voice.key();
        let (data, stop) = (self.data.clone(), Arc::clone(&self.stop));
        let write = move || {
            // Calls come first. Where the system does not allow it, they share.
            let _ = rustix::process::nice(10);
            let begun = Instant::now();
            let written = write(&data, head, image, &key, &stop);
            let took_ms = begun.elapsed().as_millis() as u64;
            match written {
                Ok(()) => tracing::info!(records = head.next, took_ms, "a snapshot is written"),
                Err(error) => not_written(&error),
            }
        };
        let thread = std::thread::Builder::new().name("snapshot".into());
        self.writing = Some(thread.spawn(write)?);
        Ok(())
    }
}

fn not_written(error: &Error) {
    if error.kind() == std::io::ErrorKind::Interrupted {
        tracing::debug!("the broker stops before its snapshot is written");
    } else {
        tracing::warn!(%error, "the snapshot was not written: the one before stays");
    }
}

impl Drop for Snapshots {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(writing) = self.writing.take() {
            let _ = writing.join();
        }
    }
}
