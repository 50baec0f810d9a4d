//! Times as people type them: absolute (`2026-12-31T18:00:00Z`) or from now (`7d`, `1h 30m`).

use std::time::{Duration, SystemTime};

use proto_spec::Timestamp;

/// An instant as it was typed; it becomes one when it is known what *now* is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum When {
    /// RFC 3339.
    At(Timestamp),
    /// So long from now.
    In(Duration),
}

impl When {
    /// The instant that is meant.
    pub(crate) fn from(self, now: Timestamp) -> Timestamp {
        match self {
            Self::At(at) => at,
            Self::In(span) => now.later(span),
        }
    }
}

impl std::str::FromStr for When {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(at) = text.parse::<jiff::Timestamp>() {
            let ms = u64::try_from(at.as_millisecond()).map_err(|_| "that is before 1970")?;
            return Ok(Self::At(Timestamp::from_ms(ms)));
        }
        duration(text).map(Self::In).map_err(|_| {
            "write an instant as 2026-12-31T18:00:00Z, or a time from now as 7d, 12h or '1h 30m'".into()
        })
    }
}

/// An instant that has passed: RFC 3339, or so long ago.
pub(crate) fn past(text: &str) -> Result<Timestamp, String> {
    match text.parse()? {
        When::At(at) => Ok(at),
        When::In(span) => {
            let span = u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
            Ok(Timestamp::from_ms(now().as_ms().saturating_sub(span)))
        }
    }
}

/// A length of time: `30s`, `7d`, `1h 30m`. A day is 24 hours; months and years have no one length.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let say =
        |_| "write a length of time as 30s, 12h, 7d or '1h 30m' (no months or years)".to_owned();
    let span: jiff::Span = text.parse().map_err(say)?;
    let length = span
        .to_duration(jiff::SpanRelativeTo::days_are_24_hours())
        .map_err(say)?;
    match Duration::try_from(length) {
        Ok(length) if !length.is_zero() => Ok(length),
        _ => Err("a length of time is more than nothing, and not in the past".into()),
    }
}

/// This machine's clock.
pub(crate) fn now() -> Timestamp {
    let since = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    Timestamp::from_ms(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// As people and programs read it: RFC 3339 in UTC, to the second.
pub(crate) fn show(at: Timestamp) -> String {
    let ms = i64::try_from(at.as_ms() / 1_000 * 1_000).unwrap_or(i64::MAX);
    match jiff::Timestamp::from_millisecond(ms) {
        Ok(at) => at.to_string(),
        Err(_) => "beyond the calendar".into(),
    }
}

/// An instant, and how far from now it is: `2026-12-31T18:00:00Z (in 7d)`.
pub(crate) fn show_from(at: Timestamp, now: Timestamp) -> String {
    let apart = rough(now.distance(at));
    if at > now {
        format!("{} (in {apart})", show(at))
    } else {
        format!("{} ({apart} ago)", show(at))
    }
}

/// A length of time in its largest fitting unit.
pub(crate) fn rough(length: Duration) -> String {
    let seconds = length.as_secs();
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds / 60),
        7_200..172_800 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_ms(1_800_000_000_000);

    #[test]
    fn a_time_is_absolute_or_from_now() {
        let cases = [
            ("7d", NOW.later(Duration::from_secs(7 * 86_400))),
            ("1h 30m", NOW.later(Duration::from_secs(5_400))),
            ("1h30m", NOW.later(Duration::from_secs(5_400))),
            ("2w", NOW.later(Duration::from_secs(14 * 86_400))),
            ("90s", NOW.later(Duration::from_secs(90))),
            ("1970-01-01T00:00:01Z", Timestamp::from_ms(1_000)),
            ("1970-01-01T01:00:01+01:00", Timestamp::from_ms(1_000)),
        ];
        for (text, expected) in cases {
            assert_eq!(text.parse::<When>().unwrap().from(NOW), expected, "{text}");
        }
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_not_a_time() {
        for text in [
            "",
            "7",
            "soon",
            "2026-12-31",
            "2026-12-31T18:00",
            "1mo",
            "1y",
            "-1d",
            "0s",
            "1d ago",
            "1960-01-01T00:00:00Z",
        ] {
            assert!(text.parse::<When>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn times_are_shown_in_utc_with_their_distance() {
        let at = Timestamp::from_ms(1_800_000_000_999);
        assert_eq!(show(at), "2027-01-15T08:00:00Z");
        assert_eq!(
            show_from(at.later(Duration::from_secs(7_200)), at),
            "2027-01-15T10:00:00Z (in 2h)"
        );
        assert_eq!(
            show_from(NOW, NOW.later(Duration::from_secs(90))),
            "2027-01-15T08:00:00Z (90s ago)"
        );
        assert_eq!(show(Timestamp::from_ms(u64::MAX)), "beyond the calendar");
    }
}
