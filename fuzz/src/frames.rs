//! A client's frames: any split gives the same events, and they are those of a second reader that follows RFC 6455
//! sentence by sentence.

use super::received::{Seen, receive};
use super::splits::splits;
use pushring::internals::proto::client::append_frame;
use pushring::internals::proto::close::code_may_travel;
use pushring::internals::proto::deflate::{Agreed, Deflater, Inflater};
use pushring::internals::proto::{MessageKind, MessageLimits};

/// permessage-deflate was agreed.
const COMPRESSION: u8 = 1;
/// The limits are so small that lawful streams meet them.
const TIGHT: u8 = 2;
/// The bytes are no stream but first bytes, lengths and payloads to make frames of.
const FRAMED: u8 = 4;
/// With [`FRAMED`]: payloads with RSV1 are compressed first.
const DEFLATED: u8 = 8;

const TIGHT_LIMITS: MessageLimits = MessageLimits { message_bytes_max: 300, frame_bytes_max: 200, fragments_max: 3 };
const WIDE_LIMITS: MessageLimits =
    MessageLimits { message_bytes_max: 100_000, frame_bytes_max: 70_000, fragments_max: 64 };

/// A byte of settings, then the stream.
pub fn holds(data: &[u8]) {
    let Some((&settings, rest)) = data.split_first() else { return };
    let stream = match settings & FRAMED {
        0 => rest.to_vec(),
        _ => framed(rest, settings & DEFLATED != 0),
    };
    let deflate = (settings & COMPRESSION != 0).then_some(Agreed::DEFAULT);
    let limits = if settings & TIGHT != 0 { TIGHT_LIMITS } else { WIDE_LIMITS };
    let (events, violation) = receive(&stream, &[], &limits, deflate);
    for cuts in splits(&stream) {
        let again = receive(&stream, &cuts, &limits, deflate);
        assert_eq!(again, (events.clone(), violation), "cut at {cuts:?}");
    }
    if let Some(violation) = violation {
        assert!(code_may_travel(violation.close_code()));
    }
    let (expected, end) = Reader { limits, compression: deflate.is_some(), message: None }.read(&stream);
    assert_eq!(events, expected);
    match end {
        // The incomplete part of a frame may be invalid already.
        End::Waits => {}
        End::Closed => assert_eq!(violation, None),
        End::Violated => assert!(violation.is_some(), "the second reader found a violation"),
    }
}

/// Frames of `[first byte, length, payload]`, the last one as long as there are bytes.
fn framed(mut rest: &[u8], deflated: bool) -> Vec<u8> {
    let mut stream = Vec::new();
    let mut deflater = deflated.then(|| Deflater::new(1));
    while let [first, length, behind @ ..] = rest {
        let (payload, behind) = behind.split_at(usize::from(*length).min(behind.len()));
        rest = behind;
        let compressed = match &mut deflater {
            Some(deflater) if first & 0x40 != 0 => deflater.compress(15, payload),
            _ => None,
        };
        append_frame(&mut stream, *first, [0x37, 0xfa, 0x21, 0x3d], compressed.unwrap_or(payload));
    }
    stream
}

/// How a stream ends for the second reader.
enum End {
    Waits,
    Closed,
    Violated,
}

/// The result of a frame, beyond its event.
enum Step {
    Next,
    Closed,
    Violated,
}

/// Reads whole frames only, copies everything, and is meant to be compared with the RFC by eye.
struct Reader {
    limits: MessageLimits,
    compression: bool,
    message: Option<Fragments>,
}

struct Fragments {
    text: bool,
    compressed: bool,
    count: u32,
    bytes: Vec<u8>,
}

struct Header {
    first: u8,
    payload_bytes: u64,
}

impl Header {
    const fn opcode(&self) -> u8 {
        self.first & 0x0f
    }

    const fn is_fin(&self) -> bool {
        self.first & 0x80 != 0
    }

    const fn is_compressed(&self) -> bool {
        self.first & 0x40 != 0
    }
}

impl Reader {
    fn read(mut self, mut stream: &[u8]) -> (Vec<Seen>, End) {
        let mut events = Vec::new();
        loop {
            let Some(Split { header, key, rest }) = split_header(stream) else { return (events, End::Waits) };
            let (Some(header), Some(key)) = (header, key) else { return (events, End::Violated) };
            if !self.admits(&header) {
                return (events, End::Violated);
            }
            let payload_bytes = header.payload_bytes as usize;
            if rest.len() < payload_bytes {
                return (events, End::Waits);
            }
            let (payload, behind) = rest.split_at(payload_bytes);
            stream = behind;
            let payload: Vec<_> = payload.iter().zip(key.into_iter().cycle()).map(|(byte, key)| byte ^ key).collect();
            match self.take(&header, payload, &mut events) {
                Step::Next => {}
                Step::Closed => return (events, End::Closed),
                Step::Violated => return (events, End::Violated),
            }
        }
    }

    /// Whether a frame with this header may come now.
    fn admits(&self, header: &Header) -> bool {
        let is_control = header.opcode() >= 8;
        let is_start = matches!(header.opcode(), 1 | 2);
        let opcode_is_known = matches!(header.opcode(), 0..=2 | 8..=10);
        let reserved_is_clear = header.first & 0x30 == 0 && (!header.is_compressed() || (self.compression && is_start));
        let control_is_sound = !is_control || (header.is_fin() && header.payload_bytes <= 125);
        let is_in_order = is_control || is_start == self.message.is_none();
        let (so_far, count) = self.message.as_ref().map_or((0, 0), |message| (message.bytes.len(), message.count));
        let fits = is_control
            || (header.payload_bytes <= self.limits.frame_bytes_max as u64
                && header.payload_bytes <= (self.limits.message_bytes_max - so_far) as u64
                && (is_start || count < self.limits.fragments_max));
        opcode_is_known && reserved_is_clear && control_is_sound && is_in_order && fits
    }

    fn take(&mut self, header: &Header, payload: Vec<u8>, events: &mut Vec<Seen>) -> Step {
        match header.opcode() {
            8 => return close(&payload, events),
            9 => events.push(Seen::Ping(payload)),
            10 => events.push(Seen::Pong(payload)),
            opcode => return self.take_data(opcode, header, &payload, events),
        }
        Step::Next
    }

    fn take_data(&mut self, opcode: u8, header: &Header, payload: &[u8], events: &mut Vec<Seen>) -> Step {
        let compressed = header.is_compressed();
        let start = || Fragments { text: opcode == 1, compressed, count: 0, bytes: Vec::new() };
        let message = self.message.get_or_insert_with(start);
        message.count += 1;
        message.bytes.extend_from_slice(payload);
        if message.text && !message.compressed {
            let is_hopeless = |error: std::str::Utf8Error| header.is_fin() || error.error_len().is_some();
            if std::str::from_utf8(&message.bytes).is_err_and(is_hopeless) {
                return Step::Violated;
            }
        }
        if !header.is_fin() {
            return Step::Next;
        }
        let Some(Fragments { text, compressed, bytes, .. }) = self.message.take() else { return Step::Next };
        let bytes = if compressed {
            let kind = if text { MessageKind::Text } else { MessageKind::Binary };
            // The inflater has a property of its own.
            match Inflater::new().inflate(kind, &bytes, self.limits.message_bytes_max) {
                Ok(payload) => payload.into_vec(),
                Err(_) => return Step::Violated,
            }
        } else {
            bytes
        };
        events.push(if text { Seen::Text(bytes) } else { Seen::Binary(bytes) });
        Step::Next
    }
}

/// RFC 6455 5.5.1 and 7.4: no payload, or a code that may travel and a reason in UTF-8.
fn close(payload: &[u8], events: &mut Vec<Seen>) -> Step {
    let (code, reason) = match payload {
        [] => (None, &[][..]),
        [_] => return Step::Violated,
        [high, low, reason @ ..] => (Some(u16::from_be_bytes([*high, *low])), reason),
    };
    let may_travel = matches!(code, None | Some(1000..=1003 | 1007..=1014 | 3000..=4999));
    match String::from_utf8(reason.to_vec()) {
        Ok(reason) if may_travel => {
            events.push(Seen::Close(code, reason));
            Step::Closed
        }
        _ => Step::Violated,
    }
}

/// A stream split behind the header of its first frame.
struct Split<'a> {
    /// None: its length is not in the shortest form, or above 63 bits.
    header: Option<Header>,
    /// None: the frame is not masked.
    key: Option<[u8; 4]>,
    rest: &'a [u8],
}

/// None as long as the header is not whole.
fn split_header(stream: &[u8]) -> Option<Split<'_>> {
    let [first, second, rest @ ..] = stream else { return None };
    let (payload_bytes, least, rest) = match second & 0x7f {
        126 => rest.split_first_chunk().map(|(length, rest)| (u64::from(u16::from_be_bytes(*length)), 126, rest))?,
        127 => rest.split_first_chunk().map(|(length, rest)| (u64::from_be_bytes(*length), 65_536, rest))?,
        length => (u64::from(length), 0, rest),
    };
    let is_sound = payload_bytes >= least && payload_bytes >> 63 == 0;
    let header = is_sound.then_some(Header { first: *first, payload_bytes });
    if second & 0x80 == 0 {
        return Some(Split { header, key: None, rest });
    }
    let (key, rest) = rest.split_first_chunk()?;
    Some(Split { header, key: Some(*key), rest })
}
