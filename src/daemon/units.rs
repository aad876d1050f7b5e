//! Sizes and durations as people write them: `1MiB`, `64KiB`, `500`; `10s`, `250ms`, `2m`, `1h`.
//!
//! Invariant: what is printed reads back as the same value.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// Text that is no size or no duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no {what}")]
pub(crate) struct UnitError {
    text: String,
    what: &'static str,
}

const A_SIZE: &str = "size: write bytes as 500, 64KiB, 1MiB, 2GiB (or kB, MB, GB)";
const A_DURATION: &str = "duration: write it with its unit, as 250ms, 10s, 2m, 1h";

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size(pub usize);

/// A number of milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span(pub u64);

impl Span {
    /// A whole number of seconds.
    pub(crate) const fn seconds(seconds: u64) -> Self {
        Self(seconds * 1000)
    }

    /// As the standard library has it.
    pub(crate) fn duration(self) -> Duration {
        Duration::from_millis(self.0)
    }
}

const SIZE_UNITS: [(&str, u64); 8] = [
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1000),
    ("B", 1),
    ("", 1),
];

const DURATION_UNITS: [(&str, u64); 4] = [("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

/// The value of a number followed by one of `units`.
fn parse(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor = units.iter().find(|(name, _)| *name == unit.trim_start())?.1;
    number.parse::<u64>().ok()?.checked_mul(factor)
}

impl FromStr for Size {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let bytes = parse(text, &SIZE_UNITS).and_then(|bytes| usize::try_from(bytes).ok());
        bytes.map(Self).ok_or_else(|| UnitError { text: text.to_owned(), what: A_SIZE })
    }
}

impl FromStr for Span {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let zero = (text.trim() == "0").then_some(0);
        let ms = zero.or_else(|| parse(text, &DURATION_UNITS));
        ms.map(Self).ok_or_else(|| UnitError { text: text.to_owned(), what: A_DURATION })
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.0 as u64;
        let (unit, factor) = SIZE_UNITS[..3]
            .iter()
            .find(|(_, factor)| bytes >= *factor && bytes.is_multiple_of(*factor))
            .unwrap_or(&("B", 1));
        write!(f, "{}{unit}", bytes / factor)
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = self.0;
        let (unit, factor) = DURATION_UNITS
            .iter()
            .find(|(_, factor)| ms >= *factor && ms.is_multiple_of(*factor))
            .unwrap_or(&("s", 1000));
        write!(f, "{}{unit}", ms / factor)
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Size {
    /// A bare number is bytes.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "a size: 500, \"64KiB\", \"1MiB\"")]
        enum SizeText {
            Number(usize),
            Text(String),
        }
        match SizeText::deserialize(deserializer)? {
            SizeText::Number(bytes) => Ok(Self(bytes)),
            SizeText::Text(text) => text.parse().map_err(de::Error::custom),
        }
    }
}

impl<'de> Deserialize<'de> for Span {
    /// A bare number could be anything, so there must be a unit.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct SpanVisitor;

        impl de::Visitor<'_> for SpanVisitor {
            type Value = Span;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a duration as \"250ms\", \"10s\", \"2m\"")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Span, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Span, E> {
                Err(E::custom(format!("{number} has no unit: write \"{number}s\" or \"{number}ms\"")))
            }
        }

        deserializer.deserialize_any(SpanVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in
            [("0", 0), ("500", 500), ("500B", 500), ("64KiB", 65_536), ("1 MiB", 1 << 20), ("2kB", 2000)]
        {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
        for text in ["", "MiB", "-1", "1.5MiB", "1mib", "1KB", "99999999999GiB", "1MiBs"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }

    #[test]
    fn durations() {
        for (text, ms) in [("0", 0), ("0s", 0), ("250ms", 250), ("10s", 10_000), ("2m", 120_000), ("1h", 3_600_000)] {
            assert_eq!(text.parse(), Ok(Span(ms)), "{text}");
        }
        for text in ["", "10", "s", "-1s", "1.5s", "10 seconds"] {
            assert!(text.parse::<Span>().is_err(), "{text}");
        }
    }

    #[test]
    fn printed_as_they_are_read() {
        for bytes in [0, 1, 1000, 1024, 1025, 65_536, 1 << 20, 3 << 30] {
            assert_eq!(Size(bytes).to_string().parse(), Ok(Size(bytes)));
        }
        for ms in [0, 1, 999, 1000, 1500, 60_000, 61_000, 3_600_000] {
            assert_eq!(Span(ms).to_string().parse(), Ok(Span(ms)));
        }
        assert_eq!((Size(1 << 20).to_string(), Span(90_000).to_string()), ("1MiB".into(), "90s".into()));
    }
}
