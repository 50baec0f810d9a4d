//! Server-sent events, as far as MCP uses them: what a stream's events hold, event by event, and where it goes on
//! after it broke off. Pure.
//!
//! Source: WHATWG HTML, *Server-sent events*.

use std::time::Duration;

use ::http::HeaderValue;

/// Bytes of an event's id; after an event with a longer one no stream goes on.
const ID_BYTES_MAX: usize = 1 << 10;

/// Reads events from bytes as they come.
#[derive(Debug, Default)]
pub(super) struct Events {
    line: Vec<u8>,
    data: Vec<u8>,
    has_data: bool,
    /// The last byte was a carriage return: a line feed after it belongs to it.
    after_return: bool,
    /// The id that this event and those after it have.
    id: Option<HeaderValue>,
    /// That of the last event which ended.
    last: Option<HeaderValue>,
    retry: Option<Duration>,
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

    /// After which event the stream goes on, where the server says how.
    pub(super) fn last(&self) -> Option<&HeaderValue> {
        self.last.as_ref()
    }

    /// How long the server wants to be left alone before.
    pub(super) fn retry(&self) -> Duration {
        self.retry.unwrap_or_default()
    }

    /// Another stream goes on where this one broke off: half an event is none.
    pub(super) fn begin_again(&mut self) {
        let (last, retry) = (self.last.take(), self.retry);
        *self = Self {
            id: last.clone(),
            last,
            retry,
            ..Self::default()
        };
    }

    fn end_line(&mut self) -> Option<Vec<u8>> {
        let line = std::mem::take(&mut self.line);
        if line.is_empty() {
            let has_data = std::mem::take(&mut self.has_data);
            let data = std::mem::take(&mut self.data);
            self.last = self.id.clone();
            return has_data.then_some(data);
        }
        let colon = line.iter().position(|byte| *byte == b':');
        let (field, value) = line.split_at(colon.unwrap_or(line.len()));
        let value = value.strip_prefix(b":").unwrap_or(value);
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match field {
            b"data" => {
                if self.has_data {
                    self.data.push(b'\n');
                }
                self.data.extend(value);
                self.has_data = true;
            }
            b"id" => self.id = id(value),
            b"retry" => self.retry = milliseconds(value).or(self.retry),
            _ => {}
        }
        None
    }
}

/// What a request can say of an event.
fn id(value: &[u8]) -> Option<HeaderValue> {
    let fits = (1..=ID_BYTES_MAX).contains(&value.len());
    fits.then(|| HeaderValue::from_bytes(value).ok()).flatten()
}

fn milliseconds(value: &[u8]) -> Option<Duration> {
    let is_number = value.iter().all(u8::is_ascii_digit);
    let text = std::str::from_utf8(value).ok().filter(|_| is_number)?;
    text.parse().ok().map(Duration::from_millis)
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
    fn a_stream_goes_on_after_the_last_event_that_ended() {
        let mut events = Events::default();
        let mut after = |bytes: &[u8]| {
            events.take(bytes, 1_000).unwrap();
            let last = events.last().map(|id| id.to_str().unwrap().to_owned());
            (last, events.retry().as_millis())
        };
        let some = |id: &str| Some(id.to_owned());
        assert_eq!(after(b"data: x\n\n"), (None, 0));
        assert_eq!(after(b"id: 1\nretry: 500\ndata:"), (None, 500));
        assert_eq!(after(b"\n\n"), (some("1"), 500));
        // Without data it is no event that anybody hears, but one after which to go on.
        assert_eq!(after(b"id:a b\n\nretry: soon\nid: 3\n"), (some("a b"), 500));
        events.begin_again();
        assert_eq!(events.last().unwrap(), "a b");
        assert!(events.take(b"data: y\n\n", 1_000).unwrap() == [b"y"]);
        for none in [
            "id\n\n".into(),
            format!("id: {}\n\n", "x".repeat(ID_BYTES_MAX + 1)),
            "id: a\u{1}\n\n".into(),
        ] {
            events.take(none.as_bytes(), 9_999).unwrap();
            assert_eq!(events.last(), None, "{none:?}");
        }
    }

    #[test]
    fn an_event_that_never_ends_is_an_error() {
        let mut events = Events::default();
        events.take(b"data: ", 1_000).unwrap();
        assert!(events.take(&[b'x'; 1_001], 1_000).is_err());
    }
}
