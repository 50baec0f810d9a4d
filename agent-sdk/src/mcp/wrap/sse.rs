//! Server-sent events, as far as MCP uses them: what a stream's events hold, event by event. Pure.
//!
//! Source: WHATWG HTML, *Server-sent events*. Ids and retry times are not looked at: nothing is resumed.

/// Reads events from bytes as they come.
#[derive(Debug, Default)]
pub(super) struct Events {
    line: Vec<u8>,
    data: Vec<u8>,
    has_data: bool,
    /// The last byte was a carriage return: a line feed after it belongs to it.
    after_return: bool,
}

impl Events {
    /// Takes more bytes; gives the data of the events that they complete.
    ///
    /// # Errors
    ///
    /// Where one event is longer than `most` bytes.
    pub(super) fn take(&mut self, bytes: &[u8], most: usize) -> Result<Vec<Vec<u8>>, String> {
        let mut events = Vec::new();
        for byte in bytes {
            let after_return = std::mem::replace(&mut self.after_return, *byte == b'\r');
            match byte {
                b'\n' if after_return => {}
                b'\n' | b'\r' => events.extend(self.end_line()),
                other => self.line.push(*other),
            }
            if self.line.len() + self.data.len() > most {
                return Err(format!("it sent an event of more than {most} bytes"));
            }
        }
        Ok(events)
    }

    fn end_line(&mut self) -> Option<Vec<u8>> {
        if self.line.is_empty() {
            let has_data = std::mem::take(&mut self.has_data);
            let data = std::mem::take(&mut self.data);
            return has_data.then_some(data);
        }
        if let Some(value) = self.line.strip_prefix(b"data:") {
            if self.has_data {
                self.data.push(b'\n');
            }
            self.data.extend(value.strip_prefix(b" ").unwrap_or(value));
            self.has_data = true;
        }
        self.line.clear();
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8], at_once: usize) -> Vec<String> {
        let mut events = Events::default();
        let parts = bytes.chunks(at_once);
        let read = parts.flat_map(|part| events.take(part, 1_000).unwrap());
        read.map(|data| String::from_utf8(data).unwrap()).collect()
    }

    #[test]
    fn events_are_read_however_they_are_cut_and_their_lines_end() {
        let text = b": keep-alive\n\nid: 1\nretry: 5\ndata:\n\nevent: message\r\ndata: {\"a\":1}\r\n\r\ndata:x\rdata: y\r\rdata: unfinished";
        for at_once in [1, 2, 3, 7, 1_000] {
            assert_eq!(read(text, at_once), ["", "{\"a\":1}", "x\ny"], "{at_once}");
        }
    }

    #[test]
    fn an_event_that_never_ends_is_an_error() {
        let mut events = Events::default();
        events.take(b"data: ", 1_000).unwrap();
        assert!(events.take(&[b'x'; 1_001], 1_000).is_err());
    }
}
