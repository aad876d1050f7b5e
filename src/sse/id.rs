//! The `id:` of an event and the `Last-Event-ID` of a request: the run of the broker, the shard, and a place in what
//! its process was to send to listeners there. The place is sealed, and no byte position: either would reveal traffic
//! of others.

use crate::resume::PLACE_BYTES;
use crate::words::strict::digits;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use std::fmt;

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventId {
    /// The run of the broker.
    pub run: u16,
    /// The shard.
    pub shard: u32,
    /// How many events there were, this one included, sealed by that run's keys.
    pub place: [u8; PLACE_BYTES],
}

impl EventId {
    /// Reads what [`Display`](fmt::Display) has written. None: it is not ours.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('.');
        let (run, shard, sealed) = (parts.next()?, parts.next()?, parts.next()?);
        if parts.next().is_some() || run.len() != 4 {
            return None;
        }
        let run = run.bytes().all(|byte| byte.is_ascii_hexdigit()).then(|| u16::from_str_radix(run, 16).ok())??;
        let mut place = [0; PLACE_BYTES];
        let is_whole = URL_SAFE_NO_PAD.decode_slice(sealed, &mut place) == Ok(PLACE_BYTES);
        is_whole.then_some(Self { run, shard: digits(shard)?, place })
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}.{}.{}", self.run, self.shard, URL_SAFE_NO_PAD.encode(self.place))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_nothing_else() {
        for id in [
            EventId { run: 0, shard: 0, place: [0; PLACE_BYTES] },
            EventId { run: 0xfffe, shard: 63, place: [0xff; PLACE_BYTES] },
        ] {
            assert_eq!(EventId::parse(&id.to_string()), Some(id));
        }
        let place = "AAAAAAAAAAAAAAAAAAAAAA";
        for text in ["", "0000.0", "x"].map(str::to_owned).into_iter().chain([
            format!("0000.0.{place}.0"),
            format!("000.0.{place}"),
            format!("+000.0.{place}"),
            format!("0000.+1.{place}"),
            format!("0000.4294967296.{place}"),
            format!("0000.1.{place}A"),
            format!("0000.1.{}", &place[1..]),
            "0000.1.17".to_owned(),
        ]) {
            assert_eq!(EventId::parse(&text), None, "{text}");
        }
    }
}
