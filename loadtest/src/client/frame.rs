//! RFC 6455 as a client sees it: reads unmasked server frames from bytes as they come, writes masked client frames.
//!
//! Invariants: any split of the same bytes gives the same messages; a message that lies whole in one read is handed on
//! in place, and no message allocates; of a longer one only the first [`HEAD_BYTES`] are kept, the rest is checked as
//! it passes. It knows no sockets.

use crate::payload::{STAMP_BYTES, is_uniform};
use crate::random::Random;

/// How much of a message that came in pieces is kept. Enough for a stamp, for any control frame (RFC 6455 5.5), and for
/// the first message of a channel that outlives its connection.
pub(crate) const HEAD_BYTES: usize = 384;

/// The longest header of a server frame: two bytes and a 64-bit length (RFC 6455 5.2).
const HEADER_BYTES_MAX: usize = 10;

/// The opcodes of RFC 6455 5.2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Opcode {
    /// 0x0
    Continuation,
    /// 0x1
    Text,
    /// 0x2
    Binary,
    /// 0x8
    Close,
    /// 0x9
    Ping,
    /// 0xA
    Pong,
}

impl Opcode {
    fn from_bits(bits: u8) -> Option<Self> {
        Some(match bits {
            0x0 => Self::Continuation,
            0x1 => Self::Text,
            0x2 => Self::Binary,
            0x8 => Self::Close,
            0x9 => Self::Ping,
            0xA => Self::Pong,
            _ => return None,
        })
    }

    fn bits(self) -> u8 {
        match self {
            Self::Continuation => 0x0,
            Self::Text => 0x1,
            Self::Binary => 0x2,
            Self::Close => 0x8,
            Self::Ping => 0x9,
            Self::Pong => 0xA,
        }
    }

    fn is_control(self) -> bool {
        matches!(self, Self::Close | Self::Ping | Self::Pong)
    }
}

/// One message (or control frame) of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Message<'a> {
    /// Never `Continuation`.
    pub opcode: Opcode,
    /// The start of the payload: all of it up to [`HEAD_BYTES`], possibly more.
    pub head: &'a [u8],
    /// The payload's length in bytes.
    pub length: u64,
    /// Whether all bytes behind the stamp are equal.
    pub uniform: bool,
}

/// The server broke RFC 6455; the connection is of no more use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FrameError(pub &'static str);

#[derive(Debug, Clone, Copy)]
struct Header {
    fin: bool,
    opcode: Opcode,
    payload_bytes: u64,
}

/// Reads a header at the start of `bytes`: `Ok(None)` when more are needed, else it and its own length.
fn read_header(bytes: &[u8]) -> Result<Option<(Header, usize)>, FrameError> {
    let &[first, second, ..] = bytes else { return Ok(None) };
    if first & 0x70 != 0 {
        return Err(FrameError("reserved bits set without an extension"));
    }
    if second & 0x80 != 0 {
        return Err(FrameError("server frame is masked"));
    }
    let opcode = Opcode::from_bits(first & 0x0F).ok_or(FrameError("unknown opcode"))?;
    let fin = first & 0x80 != 0;
    if opcode.is_control() && (!fin || second > 125) {
        return Err(FrameError("control frame fragmented or over 125 bytes"));
    }
    let (payload_bytes, used) = match second {
        126 => match bytes.get(2..4) {
            Some(length) => (u64::from(length[0]) << 8 | u64::from(length[1]), 4),
            None => return Ok(None),
        },
        127 => match bytes.get(2..HEADER_BYTES_MAX).and_then(|length| length.first_chunk::<8>()) {
            Some(length) => (u64::from_be_bytes(*length), HEADER_BYTES_MAX),
            None => return Ok(None),
        },
        short => (u64::from(short), 2),
    };
    if payload_bytes >> 63 != 0 {
        return Err(FrameError("64-bit length with the high bit set"));
    }
    Ok(Some((Header { fin, opcode, payload_bytes }, used)))
}

/// A message of which not all has come.
#[derive(Debug, Clone)]
struct Partial {
    opcode: Opcode,
    head: [u8; HEAD_BYTES],
    length: u64,
    body_byte: u8,
    uniform: bool,
}

impl Partial {
    fn new(opcode: Opcode) -> Self {
        Self { opcode, head: [0; HEAD_BYTES], length: 0, body_byte: 0, uniform: true }
    }

    fn append(&mut self, bytes: &[u8]) {
        let have = self.length.min(HEAD_BYTES as u64) as usize;
        let take = bytes.len().min(HEAD_BYTES - have);
        self.head[have..have + take].copy_from_slice(&bytes[..take]);
        let stamp_left = (STAMP_BYTES as u64).saturating_sub(self.length) as usize;
        if let Some(body) = bytes.get(stamp_left..).filter(|body| !body.is_empty()) {
            if self.length <= STAMP_BYTES as u64 {
                self.body_byte = body[0];
            }
            self.uniform &= is_uniform(body, self.body_byte);
        }
        self.length += bytes.len() as u64;
    }

    fn message(&self) -> Message<'_> {
        let kept = self.length.min(HEAD_BYTES as u64) as usize;
        Message { opcode: self.opcode, head: &self.head[..kept], length: self.length, uniform: self.uniform }
    }
}

fn whole(opcode: Opcode, payload: &[u8]) -> Message<'_> {
    let body = payload.get(STAMP_BYTES..).unwrap_or_default();
    let uniform = body.first().is_none_or(|&byte| is_uniform(body, byte));
    Message { opcode, head: payload, length: payload.len() as u64, uniform }
}

/// Where in the byte stream of one connection we are.
#[derive(Debug, Default)]
pub(crate) struct Parser {
    header: [u8; HEADER_BYTES_MAX],
    header_bytes: usize,
    frame: Option<(Header, u64)>,
    message: Option<Box<Partial>>,
    control: Option<Box<Partial>>,
}

impl Parser {
    /// Reads the next bytes and hands every message that they complete to `sink`.
    pub(crate) fn feed(&mut self, mut bytes: &[u8], sink: &mut impl FnMut(Message<'_>)) -> Result<(), FrameError> {
        while !bytes.is_empty() {
            if self.frame.is_none() {
                bytes = self.begin_frame(bytes, sink)?;
            }
            let Some((header, left)) = self.frame else { continue };
            let take = left.min(bytes.len() as u64);
            let (payload, rest) = bytes.split_at(take as usize);
            self.partial(header.opcode).append(payload);
            self.frame = Some((header, left - take));
            bytes = rest;
            if left == take {
                self.end_frame(header, sink);
            }
        }
        Ok(())
    }

    /// Takes a header off `bytes`, and the payload with it when the message lies there whole.
    fn begin_frame<'a>(&mut self, bytes: &'a [u8], sink: &mut impl FnMut(Message<'_>)) -> Result<&'a [u8], FrameError> {
        let (header, rest) = if self.header_bytes == 0 {
            match read_header(bytes)? {
                Some((header, used)) => (header, &bytes[used..]),
                None => return Ok(self.keep_header(bytes)),
            }
        } else {
            match self.resume_header(bytes)? {
                Some(found) => found,
                None => return Ok(&[]),
            }
        };
        self.check_order(header.opcode)?;
        if header.fin && header.opcode != Opcode::Continuation && header.payload_bytes <= rest.len() as u64 {
            let (payload, rest) = rest.split_at(header.payload_bytes as usize);
            sink(whole(header.opcode, payload));
            return Ok(rest);
        }
        self.frame = Some((header, header.payload_bytes));
        self.partial(header.opcode);
        if header.payload_bytes == 0 {
            self.end_frame(header, sink);
        }
        Ok(rest)
    }

    fn keep_header<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        self.header[..bytes.len()].copy_from_slice(bytes);
        self.header_bytes = bytes.len();
        &[]
    }

    /// Goes on with a header whose first bytes came in an earlier read.
    fn resume_header<'a>(&mut self, bytes: &'a [u8]) -> Result<Option<(Header, &'a [u8])>, FrameError> {
        let before = self.header_bytes;
        let take = bytes.len().min(HEADER_BYTES_MAX - before);
        self.header[before..before + take].copy_from_slice(&bytes[..take]);
        match read_header(&self.header[..before + take])? {
            Some((header, used)) => {
                self.header_bytes = 0;
                Ok(Some((header, &bytes[used - before..])))
            }
            None => {
                self.header_bytes = before + take;
                Ok(None)
            }
        }
    }

    /// RFC 6455 5.4: a continuation needs a message begun, and a new message must wait for the end of the one before.
    fn check_order(&self, opcode: Opcode) -> Result<(), FrameError> {
        match (opcode, self.message.is_some()) {
            (Opcode::Continuation, false) => Err(FrameError("continuation without a message")),
            (Opcode::Text | Opcode::Binary, true) => Err(FrameError("new message inside a fragmented one")),
            _ => Ok(()),
        }
    }

    fn partial(&mut self, opcode: Opcode) -> &mut Partial {
        let place = if opcode.is_control() { &mut self.control } else { &mut self.message };
        place.get_or_insert_with(|| Box::new(Partial::new(opcode)))
    }

    fn end_frame(&mut self, header: Header, sink: &mut impl FnMut(Message<'_>)) {
        self.frame = None;
        let place = if header.opcode.is_control() { &mut self.control } else { &mut self.message };
        if header.fin
            && let Some(partial) = place.take()
        {
            sink(partial.message());
        }
    }
}

/// Masking keys (RFC 6455 5.3). A load tester has no secret to hide from proxies, so xorshift is enough.
#[derive(Debug)]
pub(crate) struct MaskKeys(Random);

impl MaskKeys {
    /// Keys that follow from `seed`.
    pub(crate) fn new(seed: u64) -> Self {
        Self(Random::new(seed))
    }

    /// The next key.
    pub(crate) fn next_key(&mut self) -> [u8; 4] {
        ((self.0.number() >> 16) as u32).to_le_bytes()
    }
}

/// Appends a masked, unfragmented client frame to `out`.
pub(crate) fn write_masked(opcode: Opcode, payload: &[u8], key: [u8; 4], out: &mut Vec<u8>) {
    out.push(0x80 | opcode.bits());
    match payload.len() {
        short @ 0..=125 => out.push(0x80 | short as u8),
        medium @ 126..=0xFFFF => {
            out.push(0x80 | 126);
            out.extend_from_slice(&(medium as u16).to_be_bytes());
        }
        long => {
            out.push(0x80 | 127);
            out.extend_from_slice(&(long as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(&key);
    let start = out.len();
    out.extend_from_slice(payload);
    xor_with_key(&mut out[start..], key);
}

/// Masks or unmasks `bytes` in place, beginning with the key's first byte.
pub(crate) fn xor_with_key(bytes: &mut [u8], key: [u8; 4]) {
    let word = u64::from_ne_bytes([key[0], key[1], key[2], key[3], key[0], key[1], key[2], key[3]]);
    let (chunks, tail) = bytes.as_chunks_mut::<8>();
    for chunk in chunks {
        *chunk = (u64::from_ne_bytes(*chunk) ^ word).to_ne_bytes();
    }
    for (index, byte) in tail.iter_mut().enumerate() {
        *byte ^= key[index % 4];
    }
}

#[cfg(test)]
mod tests;
