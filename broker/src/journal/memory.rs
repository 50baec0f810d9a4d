//! A journal that forgets when it is dropped: for tests and throw-away brokers.

use super::{Change, Head, Journal, JournalError};

/// Records in memory, chained like durable ones.
#[derive(Debug)]
pub struct Memory {
    records: Vec<Vec<u8>>,
    head: Head,
}

impl Default for Memory {
    fn default() -> Self {
        Self {
            records: Vec::new(),
            head: Head::START,
        }
    }
}

impl Journal for Memory {
    fn append(&mut self, changes: &[&Change]) -> Result<(), JournalError> {
        for change in changes {
            let (record, head) = self
                .head
                .record(change)
                .map_err(|error| JournalError::Write(error.to_string()))?;
            self.records.push(record);
            self.head = head;
        }
        Ok(())
    }

    fn replay(&mut self, each: &mut dyn FnMut(Change)) -> Result<(), JournalError> {
        let mut head = Head::START;
        for (number, record) in self.records.iter().enumerate() {
            let (change, next) = head.read(number as u64, record)?;
            head = next;
            each(change);
        }
        Ok(())
    }

    fn head(&self) -> Head {
        self.head
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_memory_journal_conforms() {
        super::super::conformance::what_was_appended_replays_in_order(&mut super::Memory::default());
    }
}
