//! Frame headers (RFC 6455 5.2): clients' decoded, ours encoded.
//!
//! Invariants: decoding is all or nothing, and a header is refused at the first byte that makes it invalid; checks run
//! in the order of the bytes, so how the header was cut does not change the reason. An encoded frame is always a whole
//! message (FIN set, shortest length form, not masked, 5.1).

use super::mask::MaskingKey;
use super::violation::Violation;
use crate::sse;

/// The type of a frame (5.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Opcode {
    /// A further fragment of the message in progress.
    Continuation = 0,
    /// The first, mostly the only, fragment of a text message.
    Text = 1,
    /// The first, mostly the only, fragment of a binary message.
    Binary = 2,
    /// The end of the connection, from this side.
    Close = 8,
    /// To be answered by a pong with the same payload.
    Ping = 9,
    /// The answer to a ping, or a sign of life.
    Pong = 10,
}

impl Opcode {
    /// Returns whether the frame is a control frame: never fragmented, 125 bytes at most (5.5).
    #[inline]
    pub const fn is_control(self) -> bool {
        self as u8 & 0x8 != 0
    }

    const fn from_bits(bits: u8) -> Option<Self> {
        match bits {
            0 => Some(Self::Continuation),
            1 => Some(Self::Text),
            2 => Some(Self::Binary),
            8 => Some(Self::Close),
            9 => Some(Self::Ping),
            10 => Some(Self::Pong),
            _ => None,
        }
    }
}

/// The type of a message (5.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MessageKind {
    /// UTF-8.
    Text,
    /// Any bytes.
    Binary,
}

impl From<MessageKind> for Opcode {
    #[inline]
    fn from(kind: MessageKind) -> Self {
        match kind {
            MessageKind::Text => Self::Text,
            MessageKind::Binary => Self::Binary,
        }
    }
}

/// The largest payload of a control frame (5.5).
pub const CONTROL_BYTES_MAX: usize = 125;
/// The longest header of ours: two bytes and a 64-bit length.
pub const SERVER_HEADER_BYTES_MAX: usize = 10;
/// The longest header of a client: as ours, and the masking key.
pub const CLIENT_HEADER_BYTES_MAX: usize = 14;

const FIN: u8 = 0x80;
const RSV1: u8 = 0x40;
const RSV2_AND_3: u8 = 0x30;
const OPCODE_BITS: u8 = 0x0f;
const MASKED: u8 = 0x80;
const LENGTH_BITS: u8 = 0x7f;
const LENGTH_IS_16_BITS: u8 = 126;
const LENGTH_IS_64_BITS: u8 = 127;

/// The header of a frame from a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientHeader {
    /// Whether this is the message's last fragment.
    pub fin: bool,
    /// RSV1: the message that begins with this frame is compressed (RFC 7692 6).
    pub compressed: bool,
    /// The type of the frame.
    pub opcode: Opcode,
    /// The key that masks the payload.
    pub masking_key: MaskingKey,
    /// How much payload follows the header.
    pub payload_bytes: u64,
    /// How long the header itself is: 6, 8 or 14.
    pub header_bytes: usize,
}

/// The frames allowed next on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expected {
    /// Whether a fragmented message is in progress.
    pub continuation: bool,
    /// Whether permessage-deflate was agreed.
    pub compression: bool,
}

/// Decodes the header at the front of `bytes`, or says that more bytes are needed (`None`).
///
/// A violation in the bytes that are there is reported at once, not when the header is whole.
#[inline]
pub fn decode_client_header(bytes: &[u8], expected: Expected) -> Result<Option<ClientHeader>, Violation> {
    let Some((&first, rest)) = bytes.split_first() else { return Ok(None) };
    let opcode = check_first_byte(first, expected)?;
    let Some((&second, rest)) = rest.split_first() else { return Ok(None) };
    if second & MASKED == 0 {
        // 5.1: "The server MUST close the connection upon receiving a frame that is not masked."
        return Err(Violation::Unmasked);
    }
    let length = second & LENGTH_BITS;
    if opcode.is_control() && usize::from(length) > CONTROL_BYTES_MAX {
        return Err(Violation::ControlTooLong);
    }
    let Some((payload_bytes, rest)) = decode_length(length, rest)? else { return Ok(None) };
    let Some((&masking_key, rest)) = rest.split_first_chunk::<4>() else { return Ok(None) };
    Ok(Some(ClientHeader {
        fin: first & FIN != 0,
        compressed: first & RSV1 != 0,
        opcode,
        masking_key,
        payload_bytes,
        header_bytes: bytes.len() - rest.len(),
    }))
}

#[inline]
fn check_first_byte(first: u8, expected: Expected) -> Result<Opcode, Violation> {
    if first & RSV2_AND_3 != 0 {
        return Err(Violation::ReservedBits);
    }
    let Some(opcode) = Opcode::from_bits(first & OPCODE_BITS) else { return Err(Violation::ReservedOpcode) };
    // RFC 7692 6: only where agreed, and only on the first frame of a data message.
    let may_be_compressed = expected.compression && matches!(opcode, Opcode::Text | Opcode::Binary);
    if first & RSV1 != 0 && !may_be_compressed {
        return Err(Violation::ReservedBits);
    }
    match opcode {
        Opcode::Continuation if !expected.continuation => Err(Violation::LoneContinuation),
        // 5.4: "The fragments of one message MUST NOT be interleaved between the fragments of another message".
        Opcode::Text | Opcode::Binary if expected.continuation => Err(Violation::MessageInsideMessage),
        // 5.5: control frames "MUST NOT be fragmented".
        Opcode::Close | Opcode::Ping | Opcode::Pong if first & FIN == 0 => Err(Violation::ControlFragmented),
        _ => Ok(opcode),
    }
}

/// 5.2: "the minimal number of bytes MUST be used to encode the length", and "the most significant bit MUST be 0".
#[inline]
fn decode_length(length: u8, rest: &[u8]) -> Result<Option<(u64, &[u8])>, Violation> {
    match length {
        LENGTH_IS_16_BITS => {
            let Some((bytes, rest)) = rest.split_first_chunk::<2>() else { return Ok(None) };
            let length = u64::from(u16::from_be_bytes(*bytes));
            if length < u64::from(LENGTH_IS_16_BITS) {
                return Err(Violation::LengthNotMinimal);
            }
            Ok(Some((length, rest)))
        }
        LENGTH_IS_64_BITS => {
            let Some((bytes, rest)) = rest.split_first_chunk::<8>() else { return Ok(None) };
            let length = u64::from_be_bytes(*bytes);
            if length >> 63 != 0 {
                return Err(Violation::LengthHighBit);
            }
            if length <= u64::from(u16::MAX) {
                return Err(Violation::LengthNotMinimal);
            }
            Ok(Some((length, rest)))
        }
        _ => Ok(Some((u64::from(length), rest))),
    }
}

/// The whole small message that stands at the front of `bytes`: an unfragmented, uncompressed data frame with a
/// length of seven bits. Nearly every frame a client sends is one, so it is told by two bytes.
#[inline]
pub(super) fn small_message(bytes: &[u8]) -> Option<ShortMessage> {
    let &[first, second, a, b, c, d, ref rest @ ..] = bytes else { return None };
    let kind = match first {
        0x81 => MessageKind::Text,
        0x82 => MessageKind::Binary,
        _ => return None,
    };
    // Below zero (wraps to above 125) without the mask bit; 126 and 127 announce a longer form.
    let payload_bytes = usize::from(second.wrapping_sub(MASKED));
    let is_whole = payload_bytes <= CONTROL_BYTES_MAX && payload_bytes <= rest.len();
    is_whole.then_some(ShortMessage {
        kind,
        masking_key: [a, b, c, d],
        payload_bytes,
        header_bytes: SMALL_HEADER_BYTES,
    })
}

/// The same with a length of sixteen bits.
#[inline]
pub(super) fn medium_message(bytes: &[u8]) -> Option<ShortMessage> {
    let &[first, second, high, low, a, b, c, d, ref rest @ ..] = bytes else { return None };
    let kind = match first {
        0x81 => MessageKind::Text,
        0x82 => MessageKind::Binary,
        _ => return None,
    };
    let payload_bytes = usize::from(u16::from_be_bytes([high, low]));
    // 5.2: a shorter one in this form is a violation, for the full decoder to tell.
    let is_whole = second == MASKED | LENGTH_IS_16_BITS
        && payload_bytes >= usize::from(LENGTH_IS_16_BITS)
        && payload_bytes <= rest.len();
    is_whole.then_some(ShortMessage {
        kind,
        masking_key: [a, b, c, d],
        payload_bytes,
        header_bytes: MEDIUM_HEADER_BYTES,
    })
}

/// See [`small_message`] and [`medium_message`].
pub(super) struct ShortMessage {
    pub kind: MessageKind,
    pub masking_key: MaskingKey,
    pub payload_bytes: usize,
    /// What stands before the payload.
    pub header_bytes: usize,
}

/// The header bytes of a [`small_message`].
const SMALL_HEADER_BYTES: usize = 6;

/// The header bytes of a [`medium_message`].
const MEDIUM_HEADER_BYTES: usize = 8;

/// The header of a frame of ours, inline.
#[derive(Clone, Copy)]
pub struct ServerHeader {
    bytes: [u8; SERVER_HEADER_BYTES_MAX],
    len: u8,
}

impl ServerHeader {
    /// The two to ten bytes of the header.
    #[inline]
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    /// The same, and behind it whatever makes it as long as any.
    #[inline]
    pub(crate) fn padded(&self) -> &[u8; SERVER_HEADER_BYTES_MAX] {
        &self.bytes
    }
}

impl AsRef<[u8]> for ServerHeader {
    #[inline]
    fn as_ref(&self) -> &[u8] {
        self.as_slice()
    }
}

impl std::fmt::Debug for ServerHeader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("ServerHeader").field(&self.as_slice()).finish()
    }
}

impl ServerHeader {
    /// The first bytes of something that is no frame, but waits and is sent like one; returns the rest of it, too.
    pub fn split_from(bytes: &[u8]) -> (Self, &[u8]) {
        let (first, rest) = bytes.split_at(bytes.len().min(SERVER_HEADER_BYTES_MAX));
        let mut header = Self { bytes: [0; SERVER_HEADER_BYTES_MAX], len: first.len() as u8 };
        header.bytes[..first.len()].copy_from_slice(first);
        (header, rest)
    }
}

/// The header of an unfragmented, unmasked frame with `payload_bytes` of payload; `compressed` sets RSV1.
///
/// # Panics
/// When a control frame would be compressed or over [`CONTROL_BYTES_MAX`]: callers check what processes give them.
#[inline]
pub fn server_header(opcode: Opcode, compressed: bool, payload_bytes: usize) -> ServerHeader {
    assert!(!opcode.is_control() || (payload_bytes <= CONTROL_BYTES_MAX && !compressed), "unlawful control frame");
    let mut bytes = [0; SERVER_HEADER_BYTES_MAX];
    bytes[0] = FIN | if compressed { RSV1 } else { 0 } | opcode as u8;
    let len = if payload_bytes < usize::from(LENGTH_IS_16_BITS) {
        bytes[1] = payload_bytes as u8;
        2
    } else if let Ok(length) = u16::try_from(payload_bytes) {
        bytes[1] = LENGTH_IS_16_BITS;
        bytes[2..4].copy_from_slice(&length.to_be_bytes());
        4
    } else {
        bytes[1] = LENGTH_IS_64_BITS;
        bytes[2..].copy_from_slice(&(payload_bytes as u64).to_be_bytes());
        10
    };
    ServerHeader { bytes, len }
}

/// The whole length, header and payload, of the frame of ours that starts at `bytes[0]`; `None` when not even its
/// header is there. For walking queued frames, or events of a stream; `bytes` must have been written by this module.
#[inline]
pub fn server_frame_len(bytes: &[u8]) -> Option<usize> {
    if bytes.first().is_some_and(|&first| sse::is_event(first)) {
        return sse::event_len(bytes);
    }
    let (&[_, second], rest) = bytes.split_first_chunk::<2>()?;
    debug_assert!(second & MASKED == 0, "our frames are not masked");
    match second {
        LENGTH_IS_16_BITS => rest.first_chunk().map(|length| 4 + usize::from(u16::from_be_bytes(*length))),
        // Written from a usize, so it fits one.
        LENGTH_IS_64_BITS => rest.first_chunk().map(|length| 10 + u64::from_be_bytes(*length) as usize),
        length => Some(2 + usize::from(length)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Expected = Expected { continuation: false, compression: false };
    const FURTHER: Expected = Expected { continuation: true, compression: false };
    const DEFLATE: Expected = Expected { continuation: false, compression: true };

    /// The header a lawful client would write, from RFC 6455 5.2.
    fn client_header(first: u8, payload_bytes: u64) -> Vec<u8> {
        let mut header = vec![first];
        match payload_bytes {
            0..=125 => header.push(0x80 | payload_bytes as u8),
            126..=0xffff => {
                header.push(0x80 | 126);
                header.extend((payload_bytes as u16).to_be_bytes());
            }
            _ => {
                header.push(0x80 | 127);
                header.extend(payload_bytes.to_be_bytes());
            }
        }
        header.extend([1, 2, 3, 4]);
        header
    }

    #[test]
    fn lengths_are_decoded_all_or_nothing() {
        for payload_bytes in [0, 1, 125, 126, 127, 128, 0xfffe, 0xffff, 0x1_0000, 1 << 31, 1 << 40, (1 << 63) - 1] {
            let header = client_header(0x82, payload_bytes);
            for cut in 0..header.len() {
                assert_eq!(decode_client_header(&header[..cut], FIRST), Ok(None));
            }
            let mut longer = header.clone();
            longer.extend([0xee; 5]);
            for bytes in [&header, &longer] {
                let decoded = decode_client_header(bytes, FIRST).unwrap().unwrap();
                let expected = ClientHeader {
                    fin: true,
                    compressed: false,
                    opcode: Opcode::Binary,
                    masking_key: [1, 2, 3, 4],
                    payload_bytes,
                    header_bytes: header.len(),
                };
                assert_eq!(decoded, expected);
            }
        }
    }

    /// The rules of RFC 6455 5.2, 5.4 and 5.5 for a first byte, written out naively.
    fn verdict(first: u8, expected: Expected) -> Result<(), Violation> {
        let (fin, rsv1, rsv23, opcode) = (first & 0x80 != 0, first & 0x40 != 0, first & 0x30 != 0, first & 0x0f);
        if rsv23 {
            return Err(Violation::ReservedBits);
        }
        if (3..=7).contains(&opcode) || opcode >= 11 {
            return Err(Violation::ReservedOpcode);
        }
        if rsv1 && !(expected.compression && [1, 2].contains(&opcode)) {
            return Err(Violation::ReservedBits);
        }
        if opcode >= 8 && !fin {
            return Err(Violation::ControlFragmented);
        }
        if opcode == 0 && !expected.continuation {
            return Err(Violation::LoneContinuation);
        }
        if [1, 2].contains(&opcode) && expected.continuation {
            return Err(Violation::MessageInsideMessage);
        }
        Ok(())
    }

    #[test]
    fn every_first_byte_is_judged_alone() {
        for first in 0..=255 {
            for expected in [FIRST, FURTHER, DEFLATE, Expected { continuation: true, compression: true }] {
                let alone = decode_client_header(&[first], expected).map(|_| ());
                assert_eq!(alone, verdict(first, expected), "{first:#x} {expected:?}");
                let whole = decode_client_header(&client_header(first, 5), expected).map(|_| ());
                assert_eq!(whole, verdict(first, expected), "{first:#x} {expected:?}");
            }
        }
    }

    #[test]
    fn unlawful_lengths_are_refused_before_the_masking_key() {
        let refused: &[(&[u8], Violation)] = &[
            (&[0x82, 0x05], Violation::Unmasked),
            (&[0x82, 0x7f], Violation::Unmasked),
            (&[0x89, 0xfe], Violation::ControlTooLong),
            (&[0x88, 0xff], Violation::ControlTooLong),
            (&[0x82, 0xfe, 0, 125], Violation::LengthNotMinimal),
            (&[0x82, 0xff, 0, 0, 0, 0, 0, 0, 0xff, 0xff], Violation::LengthNotMinimal),
            (&[0x82, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0], Violation::LengthHighBit),
            (&[0x82, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], Violation::LengthHighBit),
        ];
        for (bytes, violation) in refused {
            assert_eq!(decode_client_header(bytes, FIRST), Err(*violation), "{bytes:x?}");
            assert_eq!(decode_client_header(&bytes[..bytes.len() - 1], FIRST), Ok(None), "{bytes:x?}");
        }
    }

    #[test]
    fn a_small_message_is_what_the_full_decoder_says() {
        for first in 0..=255u8 {
            for second in 0..=255u8 {
                let mut bytes = vec![first, second, 9, 8, 7, 6];
                bytes.extend([0; 125]);
                let full = decode_client_header(&bytes, FIRST).ok().flatten().filter(|header| {
                    header.fin && !header.opcode.is_control() && header.header_bytes == SMALL_HEADER_BYTES
                });
                let small = small_message(&bytes);
                assert_eq!(small.is_some(), full.is_some(), "{first:#x} {second:#x}");
                if let (Some(small), Some(full)) = (small, full) {
                    assert_eq!(Opcode::from(small.kind), full.opcode);
                    assert_eq!(small.payload_bytes as u64, full.payload_bytes);
                    assert_eq!(small.masking_key, full.masking_key);
                    assert!(small_message(&bytes[..5 + small.payload_bytes]).is_none());
                }
            }
        }
    }

    #[test]
    fn a_medium_message_is_what_the_full_decoder_says() {
        for (first, length) in [0x81, 0x82, 0x01, 0x80, 0x88, 0xc1]
            .into_iter()
            .zip([0, 125, 126, 300, 65_535, 127].iter().cycle())
            .chain([(0x82, &126), (0x81, &125), (0x82, &9_000)])
        {
            for second in [0xfe, 0x7e, 0xff, 0xfd] {
                let mut bytes = vec![first, second, (length >> 8) as u8, *length as u8, 9, 8, 7, 6];
                bytes.resize(8 + *length as usize, 0);
                let full = decode_client_header(&bytes, FIRST).ok().flatten().filter(|header| {
                    header.fin && !header.opcode.is_control() && header.header_bytes == MEDIUM_HEADER_BYTES
                });
                let medium = medium_message(&bytes);
                assert_eq!(medium.is_some(), full.is_some(), "{first:#x} {second:#x} {length}");
                if let (Some(medium), Some(full)) = (medium, full) {
                    assert_eq!((Opcode::from(medium.kind), medium.masking_key), (full.opcode, full.masking_key));
                    assert_eq!(medium.payload_bytes as u64, full.payload_bytes);
                    assert!(medium_message(&bytes[..bytes.len() - 1]).is_none());
                }
            }
        }
    }

    #[test]
    fn our_frames_are_unmasked_whole_and_of_the_shortest_form() {
        let cases: &[(usize, &[u8])] = &[
            (0, &[0x82, 0]),
            (125, &[0x82, 125]),
            (126, &[0x82, 126, 0, 126]),
            (0xffff, &[0x82, 126, 0xff, 0xff]),
            (0x1_0000, &[0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0]),
        ];
        for (payload_bytes, header) in cases {
            assert_eq!(server_header(Opcode::Binary, false, *payload_bytes).as_slice(), *header);
            let mut out = vec![0xaa];
            out.extend_from_slice(server_header(Opcode::Binary, false, *payload_bytes).as_slice());
            out.resize(out.len() + payload_bytes, 7);
            assert_eq!(out.len(), 1 + header.len() + payload_bytes);
            assert_eq!(server_frame_len(&out[1..]), Some(out.len() - 1));
            for cut in 0..header.len() {
                assert_eq!(server_frame_len(&header[..cut]), None);
            }
        }
        assert_eq!(server_header(Opcode::Text, true, 3).as_slice(), &[0xc1, 3]);
        assert_eq!(server_header(Opcode::Pong, false, 0).as_slice(), &[0x8a, 0]);
    }

    #[test]
    #[should_panic(expected = "unlawful control frame")]
    fn a_long_control_frame_is_a_bug_of_ours() {
        server_header(Opcode::Ping, false, 126);
    }
}
