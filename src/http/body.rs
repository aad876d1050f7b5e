//! Request bodies: so many bytes, or chunks (RFC 9112 sections 6 and 7.1), decoded as they arrive.
//!
//! Any split of the same bytes gives the same body or the same refusal. Chunk extensions and trailer fields are read,
//! bounded and dropped. Line ends are CRLF and nothing else: a lone LF inside a chunk extension is how requests are
//! smuggled past proxies.

use super::head::BodyFraming;
use super::limits::{BODY_TOO_LARGE as TOO_LARGE, HttpLimits, Rejection};
use bytes::Bytes;

/// Decodes one body.
#[derive(Debug)]
pub struct Decoder {
    state: BodyProgress,
    body: Vec<u8>,
    body_bytes_max: usize,
    /// Bytes of chunk extensions or trailer that may still come.
    extra_bytes_left: usize,
    extra_bytes_max: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum BodyProgress {
    /// Content-Length: this many bytes are missing.
    Counted(usize),
    /// In the size of a chunk, with this many hexadecimal digits read.
    Size {
        size: usize,
        digits: u8,
    },
    /// White space between a chunk's size and the semicolon of its extension.
    SizePadding {
        size: usize,
    },
    /// In a chunk extension.
    Extension {
        size: usize,
    },
    /// The LF after a chunk's size line.
    SizeLf {
        size: usize,
    },
    /// In a chunk's data.
    Data(usize),
    /// The CR after a chunk's data.
    DataCr,
    /// The LF after a chunk's data.
    DataLf,
    /// At the start of a trailer line, or of the empty line that ends the body.
    TrailerStart,
    /// In the name of a trailer field; names are not empty.
    TrailerName,
    /// In the value of a trailer field.
    TrailerValue,
    /// The LF after a trailer field.
    TrailerLf,
    /// The LF that ends the body.
    LastLf,
    Done,
}

/// A chunk size above this many digits is refused: no body has 2^64 bytes, and leading zeros without end are an attack.
const SIZE_DIGITS_MAX: u8 = 16;

impl Decoder {
    /// A decoder for a body framed as `framing`.
    ///
    /// # Errors
    /// 413 when the announced length is above `limits.body_bytes_max`.
    pub fn new(framing: BodyFraming, limits: &HttpLimits) -> Result<Self, Rejection> {
        let state = match framing {
            BodyFraming::Length(0) => BodyProgress::Done,
            BodyFraming::Length(length) => match usize::try_from(length) {
                Ok(length) if length <= limits.body_bytes_max => BodyProgress::Counted(length),
                _ => return Err(TOO_LARGE),
            },
            BodyFraming::Chunked => BodyProgress::Size { size: 0, digits: 0 },
        };
        Ok(Self {
            state,
            body: Vec::new(),
            body_bytes_max: limits.body_bytes_max,
            extra_bytes_left: limits.chunk_extra_bytes_max,
            extra_bytes_max: limits.chunk_extra_bytes_max,
        })
    }

    /// Takes what belongs to the body from the front of `input` and says how many bytes that were. Whatever is left
    /// belongs to the next request, if [`Self::is_done`].
    ///
    /// # Errors
    /// 400 for chunks that break RFC 9112 section 7.1, 413 for a body, 431 for a trailer above its limit. The decoder
    /// must not be used after that.
    pub fn feed(&mut self, input: &[u8]) -> Result<usize, Rejection> {
        let mut at = 0;
        while at < input.len() && self.state != BodyProgress::Done {
            at += match self.state {
                BodyProgress::Counted(missing) => {
                    let taken = self.take(&input[at..], missing);
                    self.state =
                        if taken == missing { BodyProgress::Done } else { BodyProgress::Counted(missing - taken) };
                    taken
                }
                BodyProgress::Data(missing) => {
                    let taken = self.take(&input[at..], missing);
                    self.state =
                        if taken == missing { BodyProgress::DataCr } else { BodyProgress::Data(missing - taken) };
                    taken
                }
                _ => {
                    self.state = self.step(input[at])?;
                    1
                }
            };
        }
        Ok(at)
    }

    /// Lowers the limit of the body.
    ///
    /// # Errors
    /// 413 if the bytes received or announced exceed it.
    pub fn lower_limit(&mut self, body_bytes_max: usize) -> Result<(), Rejection> {
        self.body_bytes_max = self.body_bytes_max.min(body_bytes_max);
        let announced = match self.state {
            BodyProgress::Counted(missing) | BodyProgress::Data(missing) => missing,
            // The line of a chunk's size may be cut anywhere, and what it says was held to the limit before.
            BodyProgress::Size { size, .. }
            | BodyProgress::SizePadding { size }
            | BodyProgress::Extension { size }
            | BodyProgress::SizeLf { size } => size,
            _ => 0,
        };
        if self.body.len() + announced > self.body_bytes_max { Err(TOO_LARGE) } else { Ok(()) }
    }

    /// Bytes of the body that have come, without framing.
    pub fn body_bytes(&self) -> usize {
        self.body.len()
    }

    /// The most bytes that may still follow: the missing rest of a counted body; of a chunked one, as much as the limit
    /// leaves.
    pub fn unread_bytes(&self) -> u64 {
        match self.state {
            BodyProgress::Done => 0,
            BodyProgress::Counted(missing) => missing as u64,
            _ => self.body_bytes_max.saturating_sub(self.body.len()) as u64,
        }
    }

    /// Returns whether the body is whole.
    pub fn is_done(&self) -> bool {
        self.state == BodyProgress::Done
    }

    /// The bytes allocated for the body.
    pub fn allocated_bytes(&self) -> usize {
        self.body.capacity()
    }

    /// The body so far, without framing, in no more memory than it takes: it may wait long for its process.
    pub fn into_body(mut self) -> Bytes {
        self.body.shrink_to_fit();
        self.body.into()
    }

    fn take(&mut self, input: &[u8], missing: usize) -> usize {
        let taken = missing.min(input.len());
        self.body.extend_from_slice(&input[..taken]);
        taken
    }

    /// One byte of chunk framing.
    fn step(&mut self, byte: u8) -> Result<BodyProgress, Rejection> {
        match (self.state, byte) {
            (BodyProgress::Size { size, digits }, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                self.size(size, digits, byte)
            }
            (BodyProgress::Size { digits: 0, .. }, _) => Err(BAD_SIZE),
            (BodyProgress::Size { size, .. }, b' ' | b'\t') => self.extra(400, BodyProgress::SizePadding { size }),
            (BodyProgress::Size { size, .. } | BodyProgress::SizePadding { size }, b';') => {
                self.extra(400, BodyProgress::Extension { size })
            }
            (BodyProgress::SizePadding { size }, b' ' | b'\t') => self.extra(400, BodyProgress::SizePadding { size }),
            (BodyProgress::Size { size, .. } | BodyProgress::Extension { size }, b'\r') => {
                Ok(BodyProgress::SizeLf { size })
            }
            (BodyProgress::Extension { size }, byte) if is_text(byte) => {
                self.extra(400, BodyProgress::Extension { size })
            }
            (BodyProgress::SizeLf { size: 0 }, b'\n') => {
                self.extra_bytes_left = self.extra_bytes_max;
                Ok(BodyProgress::TrailerStart)
            }
            (BodyProgress::SizeLf { size }, b'\n') => Ok(BodyProgress::Data(size)),
            (BodyProgress::DataCr, b'\r') => Ok(BodyProgress::DataLf),
            (BodyProgress::DataLf, b'\n') => Ok(BodyProgress::Size { size: 0, digits: 0 }),
            (BodyProgress::TrailerStart, b'\r') => Ok(BodyProgress::LastLf),
            (BodyProgress::TrailerStart | BodyProgress::TrailerName, byte) if is_token(byte) => {
                self.extra(431, BodyProgress::TrailerName)
            }
            (BodyProgress::TrailerName, b':') => self.extra(431, BodyProgress::TrailerValue),
            (BodyProgress::TrailerValue, b'\r') => Ok(BodyProgress::TrailerLf),
            (BodyProgress::TrailerValue, byte) if is_text(byte) => self.extra(431, BodyProgress::TrailerValue),
            (BodyProgress::TrailerLf, b'\n') => Ok(BodyProgress::TrailerStart),
            (BodyProgress::LastLf, b'\n') => Ok(BodyProgress::Done),
            (
                BodyProgress::TrailerStart
                | BodyProgress::TrailerName
                | BodyProgress::TrailerValue
                | BodyProgress::TrailerLf
                | BodyProgress::LastLf,
                _,
            ) => Err(Rejection::new(400, "the trailer after the last chunk is malformed")),
            (BodyProgress::DataCr | BodyProgress::DataLf, _) => {
                Err(Rejection::new(400, "a chunk is longer than its size says"))
            }
            _ => Err(BAD_SIZE),
        }
    }

    fn size(&self, size: usize, digits: u8, digit: u8) -> Result<BodyProgress, Rejection> {
        if digits == SIZE_DIGITS_MAX {
            return Err(BAD_SIZE);
        }
        let value = (digit as char).to_digit(16).ok_or(BAD_SIZE)? as usize;
        let size = size.checked_mul(16).and_then(|size| size.checked_add(value)).ok_or(TOO_LARGE)?;
        match self.body.len().checked_add(size) {
            Some(total) if total <= self.body_bytes_max => Ok(BodyProgress::Size { size, digits: digits + 1 }),
            _ => Err(TOO_LARGE),
        }
    }

    /// Goes on to `next` if one more byte that is only dropped may come.
    fn extra(&mut self, status: u16, next: BodyProgress) -> Result<BodyProgress, Rejection> {
        self.extra_bytes_left = self
            .extra_bytes_left
            .checked_sub(1)
            .ok_or(Rejection::new(status, "the chunk extensions or the trailer are too long"))?;
        Ok(next)
    }
}

const BAD_SIZE: Rejection = Rejection::new(400, "a chunk does not start with its size in hexadecimal and CRLF");

/// Bytes allowed in a field value or a chunk extension: no control characters but tab (RFC 9110 section 5.5).
pub(crate) fn is_text(byte: u8) -> bool {
    byte == b'\t' || (byte >= 0x20 && byte != 0x7f)
}

/// Bytes allowed in a field name (RFC 9110 section 5.6.2).
pub(crate) fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> HttpLimits {
        HttpLimits { body_bytes_max: 32, chunk_extra_bytes_max: 24, ..HttpLimits::default() }
    }

    /// Decodes `input` in pieces of `step` bytes: the body and what is left over, or the status of the refusal.
    fn decode(framing: BodyFraming, input: &[u8], step: usize) -> Result<(Bytes, usize, bool), u16> {
        let mut decoder = Decoder::new(framing, &limits()).map_err(|r| r.status)?;
        let mut used = 0;
        for piece in input.chunks(step) {
            let taken = decoder.feed(piece).map_err(|r| r.status)?;
            used += taken;
            if taken < piece.len() {
                break;
            }
        }
        Ok((Bytes::new(), used, decoder.is_done())).map(|(_, used, done)| (decoder.into_body(), used, done))
    }

    fn every_split(framing: BodyFraming, input: &[u8]) -> Result<(Bytes, usize, bool), u16> {
        let whole = decode(framing, input, input.len().max(1));
        for step in 1..input.len() {
            assert_eq!(decode(framing, input, step), whole, "{:?} in pieces of {step}", input.escape_ascii());
        }
        whole
    }

    #[test]
    fn counted_bodies() {
        let ok = |body: &'static str, used, done| Ok((Bytes::from_static(body.as_bytes()), used, done));
        assert_eq!(every_split(BodyFraming::Length(0), b"GET"), ok("", 0, true));
        assert_eq!(every_split(BodyFraming::Length(5), b"helloGET"), ok("hello", 5, true));
        assert_eq!(every_split(BodyFraming::Length(5), b"hel"), ok("hel", 3, false));
        assert_eq!(every_split(BodyFraming::Length(33), b""), Err(413));
        assert_eq!(every_split(BodyFraming::Length(u64::MAX), b""), Err(413));
    }

    #[test]
    fn chunked_bodies() {
        for (input, body) in [
            ("0\r\n\r\n", ""),
            ("5\r\nhello\r\n0\r\n\r\n", "hello"),
            ("5;a=b\r\nhello\r\n06 ; q=\"x\"\r\n world\r\n000\r\nX-Trailer: 1\r\nY:\r\n\r\n", "hello world"),
            ("A\r\n0123456789\r\na\r\n0123456789\r\n0\r\n\r\n", "01234567890123456789"),
        ] {
            let expected = Ok((Bytes::from_static(body.as_bytes()), input.len(), true));
            assert_eq!(every_split(BodyFraming::Chunked, input.as_bytes()), expected, "{input:?}");
            let pipelined = format!("{input}GET / HTTP/1.1");
            assert_eq!(every_split(BodyFraming::Chunked, pipelined.as_bytes()), expected, "{pipelined:?}");
        }
    }

    /// A head decides on the limit of its body, of which any part may have come along.
    #[test]
    fn a_limit_is_lowered_wherever_the_body_was_cut() {
        for (framing, input) in [
            (BodyFraming::Length(20), &b"01234567890123456789"[..]),
            (BodyFraming::Chunked, b"14\r\n01234567890123456789\r\n0\r\n\r\n"),
            (BodyFraming::Chunked, b"2\r\n01\r\n12 ;a=b\r\n234567890123456789\r\n0\r\n\r\n"),
        ] {
            for cut in 0..input.len() {
                for (limit, fits) in [(19, false), (20, true)] {
                    let mut decoder = Decoder::new(framing, &limits()).unwrap();
                    decoder.feed(&input[..cut]).unwrap();
                    let lowered = decoder.lower_limit(limit).and_then(|()| decoder.feed(&input[cut..]));
                    let expected = if fits { Ok(input.len() - cut) } else { Err(TOO_LARGE) };
                    assert_eq!(lowered, expected, "{:?} cut at {cut}", input.escape_ascii());
                    assert!(
                        decoder.body_bytes() <= limit.max(cut),
                        "taken in: {:?} cut at {cut}",
                        input.escape_ascii()
                    );
                }
            }
        }
    }

    #[test]
    fn chunk_framing_is_strict() {
        for (input, status) in [
            ("\r\n", 400),
            ("g\r\n", 400),
            ("-1\r\n", 400),
            ("+5\r\nhello\r\n", 400),
            ("0x5\r\nhello\r\n", 400),
            (" 5\r\nhello\r\n", 400),
            ("5\nhello\r\n", 400),
            ("5\rhello", 400),
            ("5 \r\nhello\r\n", 400),
            ("5;a\nhello\r\n0\r\n\r\n", 400),
            ("5;a\r\rhello", 400),
            ("5;a\0\r\nhello", 400),
            (";a\r\n", 400),
            ("5\r\nhelloX", 400),
            ("5\r\nhello\n", 400),
            ("5\r\nhello\r\r", 400),
            ("0\r\n\n", 400),
            ("0\r\n: x\r\n\r\n", 400),
            ("0\r\nname\r\n\r\n", 400),
            ("0\r\nna me: x\r\n\r\n", 400),
            ("0\r\n folded\r\n\r\n", 400),
            ("0\r\nname: x\n\r\n", 400),
            ("0\r\nname: x\r\r\n", 400),
            ("0\r\n\rX", 400),
            ("21\r\n", 413),
            ("10\r\n0123456789abcdef\r\n11\r\n", 413),
            ("ffffffffffffffff\r\n", 413),
            ("00000000000000001\r\n", 400),
            ("1;0123456789012345678901234567890123456789\r\n", 400),
            ("0\r\nA:0123456789012345678901234567890123456789\r\n", 431),
        ] {
            assert_eq!(every_split(BodyFraming::Chunked, input.as_bytes()), Err(status), "{input:?}");
        }
    }
}
