//! The `id:` of an event and the `Last-Event-ID` of a request: the run of the broker, the shard, and a count of what
//! its process was to send to listeners there. It has no byte positions, since they would reveal traffic of others.

use std::fmt;

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventId {
    /// The run of the broker.
    pub run: u16,
    /// The shard.
    pub shard: u32,
    /// How many events there were, this one included.
    pub count: u64,
}

impl EventId {
    /// Reads what [`Display`](fmt::Display) has written. None: it is not ours.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('.');
        let (run, shard, count) = (parts.next()?, parts.next()?, parts.next()?);
        let is_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        if parts.next().is_some() || run.len() != 4 || !is_digits(shard) || !is_digits(count) {
            return None;
        }
        let run = run.bytes().all(|byte| byte.is_ascii_hexdigit()).then(|| u16::from_str_radix(run, 16).ok())??;
        Some(Self { run, shard: shard.parse().ok()?, count: count.parse().ok()? })
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}.{}.{}", self.run, self.shard, self.count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_nothing_else() {
        for id in [EventId { run: 0, shard: 0, count: 0 }, EventId { run: 0xfffe, shard: 63, count: u64::MAX }] {
            assert_eq!(EventId::parse(&id.to_string()), Some(id));
        }
        for text in ["", "0000.0", "0000.0.0.0", "000.0.1", "+000.0.1", "0000.+1.1", "0000.1.18446744073709551616", "x"]
        {
            assert_eq!(EventId::parse(text), None, "{text}");
        }
    }
}
