//! The header of a message: 46 bytes, the names behind them, then the payload; all numbers are big-endian.
//!
//! | at | bytes | |
//! |---|---|---|
//! | 0 | 1 | `P` |
//! | 1 | 1 | the version, 1 |
//! | 2 | 1 | the kind ([`Kind`]) |
//! | 3 | 1 | the frame: 0 Text, 1 Binary, 2 ping, 3 pong |
//! | 4 | 1 | the policy: 0 as the receiver's process says, 1 close, 2 drop newest, 3 drop oldest, 4 conflate |
//! | 5 | 1 | length of the source's name |
//! | 6 | 2 | length of the process' name |
//! | 8 | 2 | length of the topic or path; for channels how many |
//! | 10 | 8 | the source's incarnation |
//! | 18 | 4 | the stream: each time that the source begins to count for an audience it has a new one |
//! | 22 | 8 | the number within it, from 1 |
//! | 30 | 8 | the key of conflation, else 0 |
//! | 38 | 8 | under which number the source wants to hear what became of it, else 0 |
//! | 46 | | the source, the process, the topic or path or the channels (4 bytes each), the payload |
//!
//! Invariants: a header that is written is read back the same; bytes of any other shape are refused, without a panic;
//! allocations are bounded by the length of the bytes.

use super::names::{NAME_BYTES_MAX, Name};
use super::subject::Kind;
use crate::channel::ChannelId;
use crate::proto::MessageKind;
use crate::shard::command::PushKind;
use crate::words::policy::Policy;

/// The version that is written here.
pub(super) const VERSION: u8 = 1;

const MAGIC: u8 = b'P';

/// The part of a fixed length.
const FIXED_BYTES: usize = 46;

/// The header of a payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    /// The audience's kind.
    pub kind: Kind,
    /// The payload's kind.
    pub frame: PushKind,
    /// The policy for channels over their budget; none: their process' own.
    pub policy: Option<Policy>,
    /// The sending node.
    pub source: Name,
    /// When that node began, so that one that began anew is told from its former self: larger is later.
    pub incarnation: u64,
    /// Which count of the source's it is.
    pub stream: u32,
    /// Its number in that.
    pub sequence: u64,
    /// Under which number the source wants to hear what became of it; 0: it does not.
    pub ask: u64,
    /// Whose channels; empty where it is about a node.
    pub process: String,
    /// The topic or path.
    pub name: String,
    /// For kinds that [have channels](Kind::has_channels), which.
    pub channels: Vec<ChannelId>,
}

/// Why bytes are no message of a fleet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum HeaderError {
    /// Too short, or of another shape.
    #[error("it is no message of a fleet")]
    Malformed,
    /// Of a version that is not spoken here.
    #[error("its version is {0}; this node supports version {VERSION}")]
    Version(u8),
}

/// A name is too long for a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a name or list is too long for a message of a fleet")]
pub(super) struct TooLong;

fn frame_number(frame: PushKind) -> u8 {
    match frame {
        PushKind::Message(MessageKind::Text) => 0,
        PushKind::Message(MessageKind::Binary) => 1,
        PushKind::Ping => 2,
        PushKind::Pong => 3,
        // It is an answer to one client of this broker, and no process can make one.
        PushKind::ControlText { .. } => unreachable!("no control text is sent to other nodes"),
    }
}

/// 0 where a push says none.
fn policy_numbers(policy: Option<Policy>) -> (u8, u64) {
    policy.map_or((0, 0), |policy| (policy.number(), policy.key().unwrap_or(0)))
}

fn policy_of(number: u8, key: u64) -> Option<Option<Policy>> {
    let policy = Policy::EACH.into_iter().find(|policy| policy.number() == number);
    let policy = policy.map(|policy| policy.with_key(key));
    // Only a number and key that name a policy are one.
    (policy_numbers(policy) == (number, key)).then_some(policy)
}

impl Header {
    /// About a node rather than to channels.
    pub(super) fn about(kind: Kind, source: Name, incarnation: u64, sequence: u64) -> Self {
        let frame = PushKind::Message(MessageKind::Binary);
        let (process, name, channels) = Default::default();
        Self { kind, frame, policy: None, source, incarnation, stream: 0, sequence, ask: 0, process, name, channels }
    }

    /// How many bytes it takes before the payload.
    pub(super) fn len(source: usize, process: usize, name: usize, channels: usize) -> usize {
        FIXED_BYTES + source + process + name + 4 * channels
    }

    /// It and the payload, as one piece.
    ///
    /// # Errors
    /// A name does not fit.
    pub(super) fn write(&self, payload: &[u8]) -> Result<Vec<u8>, TooLong> {
        let Self { kind, frame, policy, source, incarnation, stream, sequence, ask, process, name, channels } = self;
        let is_list = kind.has_channels();
        let counted = if is_list { channels.len() } else { name.len() };
        let counted = u16::try_from(counted).map_err(|_| TooLong)?;
        let process_len = u16::try_from(process.len()).map_err(|_| TooLong)?;
        let names = Self::len(source.as_str().len(), process.len(), name.len(), channels.len());
        let mut out = Vec::with_capacity(names + payload.len());
        let (policy, key) = policy_numbers(*policy);
        let source_len = source.as_str().len() as u8;
        out.extend_from_slice(&[MAGIC, VERSION, kind.number(), frame_number(*frame), policy, source_len]);
        out.extend_from_slice(&process_len.to_be_bytes());
        out.extend_from_slice(&counted.to_be_bytes());
        out.extend_from_slice(&incarnation.to_be_bytes());
        out.extend_from_slice(&stream.to_be_bytes());
        out.extend_from_slice(&sequence.to_be_bytes());
        out.extend_from_slice(&key.to_be_bytes());
        out.extend_from_slice(&ask.to_be_bytes());
        out.extend_from_slice(source.as_str().as_bytes());
        out.extend_from_slice(process.as_bytes());
        match is_list {
            true => channels.iter().for_each(|id| out.extend_from_slice(&id.get().to_be_bytes())),
            false => out.extend_from_slice(name.as_bytes()),
        }
        out.extend_from_slice(payload);
        Ok(out)
    }

    /// Reads it; the payload begins at the second value.
    ///
    /// # Errors
    /// The bytes are of another shape or version.
    pub(super) fn read(bytes: &[u8]) -> Result<(Self, usize), HeaderError> {
        let mut reader = Reader { bytes, at: 0 };
        let [magic, version, kind, frame, policy, source_len] = reader.array()?;
        if magic != MAGIC {
            return Err(HeaderError::Malformed);
        }
        if version != VERSION {
            return Err(HeaderError::Version(version));
        }
        let kind = Kind::from_number(kind).ok_or(HeaderError::Malformed)?;
        let frame = match frame {
            0 => PushKind::Message(MessageKind::Text),
            1 => PushKind::Message(MessageKind::Binary),
            2 => PushKind::Ping,
            3 => PushKind::Pong,
            _ => return Err(HeaderError::Malformed),
        };
        let process_len = u16::from_be_bytes(reader.array()?);
        let counted = usize::from(u16::from_be_bytes(reader.array()?));
        let incarnation = u64::from_be_bytes(reader.array()?);
        let stream = u32::from_be_bytes(reader.array()?);
        let sequence = u64::from_be_bytes(reader.array()?);
        let key = u64::from_be_bytes(reader.array()?);
        let ask = u64::from_be_bytes(reader.array()?);
        let policy = policy_of(policy, key).ok_or(HeaderError::Malformed)?;
        let source = reader.text(usize::from(source_len).min(NAME_BYTES_MAX + 1))?;
        let source = Name::new(source).map_err(|_| HeaderError::Malformed)?;
        let process = reader.text(usize::from(process_len))?.to_owned();
        let (mut name, mut channels) = (String::new(), Vec::new());
        match kind.has_channels() {
            true => {
                let ids = reader.take(4 * counted)?.chunks_exact(4);
                channels.extend(ids.map(|id| ChannelId::new(u32::from_be_bytes([id[0], id[1], id[2], id[3]]))));
            }
            false => reader.text(counted)?.clone_into(&mut name),
        }
        let header = Self { kind, frame, policy, source, incarnation, stream, sequence, ask, process, name, channels };
        Ok((header, reader.at))
    }
}

/// Bytes that are read in order.
pub(super) struct Reader<'a> {
    pub bytes: &'a [u8],
    pub at: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn take(&mut self, count: usize) -> Result<&'a [u8], HeaderError> {
        let taken = self.bytes[self.at..].get(..count).ok_or(HeaderError::Malformed)?;
        self.at += count;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], HeaderError> {
        Ok(self.take(N)?.try_into().expect("so many were taken"))
    }

    fn text(&mut self, count: usize) -> Result<&'a str, HeaderError> {
        std::str::from_utf8(self.take(count)?).map_err(|_| HeaderError::Malformed)
    }
}

/// Properties of any bytes, for the fuzz target of this name and the files below `fuzz/seeds/fleet`.
///
/// # Panics
/// One does not hold.
#[cfg(any(test, fuzzing))]
pub fn holds(data: &[u8]) {
    let Ok((header, at)) = Header::read(data) else { return };
    assert!(at <= data.len());
    let written = header.write(&data[at..]).expect("what was read fits");
    assert_eq!(written, data, "what was read is written the same");
    let names = (header.source.as_str().len(), header.process.len(), header.name.len(), header.channels.len());
    assert_eq!(at, Header::len(names.0, names.1, names.2, names.3));
    for cut in [0, 1, at / 2, at.saturating_sub(1)] {
        assert!(Header::read(&data[..cut]).is_err(), "a part of it is none");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header() -> impl Strategy<Value = Header> {
        let kind = (0..Kind::ALL.len() as u8).prop_map(|number| Kind::from_number(number).unwrap());
        let frame = prop_oneof![
            Just(PushKind::Message(MessageKind::Text)),
            Just(PushKind::Message(MessageKind::Binary)),
            Just(PushKind::Ping),
            Just(PushKind::Pong),
        ];
        let policy = (prop::option::of(prop::sample::select(Policy::EACH.to_vec())), any::<u64>());
        let policy = policy.prop_map(|(policy, key)| policy.map(|policy| policy.with_key(key)));
        let numbers = (any::<u64>(), any::<u32>(), any::<u64>(), any::<u64>());
        let names = ("[a-zA-Z0-9_-]{1,64}", ".{0,40}", ".{0,40}", prop::collection::vec(any::<u32>(), 0..20));
        (kind, frame, policy, numbers, names).prop_map(|(kind, frame, policy, numbers, names)| {
            let is_list = kind.has_channels();
            let channels = names.3.into_iter().map(ChannelId::new).collect();
            Header {
                kind,
                frame,
                policy,
                source: Name::new(&names.0).unwrap(),
                incarnation: numbers.0,
                stream: numbers.1,
                sequence: numbers.2,
                ask: numbers.3,
                process: names.1,
                name: if is_list { String::new() } else { names.2 },
                channels: if is_list { channels } else { Vec::new() },
            }
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(header in header(), payload in prop::collection::vec(any::<u8>(), 0..50)) {
            let bytes = header.write(&payload).unwrap();
            let (read, at) = Header::read(&bytes).unwrap();
            prop_assert_eq!(&read, &header);
            prop_assert_eq!(&bytes[at..], &payload[..]);
            holds(&bytes);
            for cut in 0..at {
                prop_assert_eq!(Header::read(&bytes[..cut]), Err(HeaderError::Malformed));
            }
        }

        #[test]
        fn any_bytes_are_read_or_refused(mut bytes in prop::collection::vec(any::<u8>(), 0..120), is_near in any::<bool>()) {
            if is_near && bytes.len() > 5 {
                bytes[..2].copy_from_slice(&[MAGIC, VERSION]);
                bytes[2] %= 14;
                bytes[3] %= 5;
                bytes[4] %= 6;
            }
            holds(&bytes);
        }
    }

    #[test]
    fn every_kept_input_keeps_its_property() {
        let seeds = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/seeds/fleet")).unwrap();
        let seeds: Vec<_> = seeds.map(|seed| std::fs::read(seed.unwrap().path()).unwrap()).collect();
        assert!(seeds.iter().filter(|seed| Header::read(seed).is_ok()).count() > 5);
        seeds.iter().for_each(|seed| holds(seed));
    }

    #[test]
    fn other_versions_are_told_from_noise() {
        let bytes = Header::about(Kind::Node, Name::new("a").unwrap(), 1, 1).write(b"").unwrap();
        let mut newer = bytes.clone();
        newer[1] = 2;
        assert_eq!(Header::read(&newer), Err(HeaderError::Version(2)));
        let mut noise = bytes;
        noise[0] = b'{';
        assert_eq!(Header::read(&noise), Err(HeaderError::Malformed));
    }
}
