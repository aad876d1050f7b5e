//! One simulated receiver, without I/O: its request, and its reading of the server's bytes.
//!
//! Invariants: the result does not depend on how the bytes are cut; only the first bytes of a message are kept, so a
//! thousand receivers need no room for a thousand messages; bytes that this server would never send end it.

use crate::proto::Opcode;
use crate::proto::client::{FIN, append_frame};
use crate::proto::frame::CONTROL_BYTES_MAX;

/// How many bytes of a message it looks at: its number and when it was pushed, each a little-endian u64.
pub(super) const LOOKED_AT: usize = 16;

/// The longest head of a response that it takes.
const HEAD_BYTES_MAX: usize = 4096;

/// What it has received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ReceiverEvent {
    /// It is in: the 101 has come.
    Open,
    /// A whole message.
    Tick {
        /// The message's number.
        number: u64,
        /// When it was pushed, in nanoseconds of the stage's clock.
        pushed_ns: u64,
    },
    /// A ping, to be answered with these bytes.
    Ping(Vec<u8>),
    /// The server has closed.
    Close,
}

/// The bytes are no answer of this server.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unexpected;

#[derive(Debug, Default)]
pub(super) struct Receiver {
    is_open: bool,
    /// The head of the response; then of the frame that has begun to come: its header, and what is looked at.
    head: Vec<u8>,
    /// How much of the frame is still to come behind that.
    rest: usize,
}

/// The request with which it comes.
pub(super) fn request(host: &str, path: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
}

/// The answer to a ping: masked with zeros, which suffices where no third party sees the traffic (RFC 6455 5.3).
pub(super) fn pong(payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    append_frame(&mut frame, FIN | Opcode::Pong as u8, [0; 4], payload);
    frame
}

impl Receiver {
    /// Takes what has come, and calls `hear` for all that is whole with it.
    pub(super) fn take(&mut self, mut bytes: &[u8], mut hear: impl FnMut(ReceiverEvent)) -> Result<(), Unexpected> {
        if !self.is_open {
            let Some(rest) = self.take_response(bytes)? else { return Ok(()) };
            bytes = rest;
            hear(ReceiverEvent::Open);
        }
        loop {
            if self.head.len() < 2 || self.head.len() < self.wanted()? {
                let Some((&first, rest)) = bytes.split_first() else { return Ok(()) };
                self.head.push(first);
                bytes = rest;
                if self.head.len() < 2 || self.head.len() < self.wanted()? {
                    continue;
                }
                self.rest = self.frame_len() - self.head.len();
            }
            let skipped = self.rest.min(bytes.len());
            self.rest -= skipped;
            bytes = &bytes[skipped..];
            if self.rest > 0 {
                return Ok(());
            }
            if let Some(heard) = self.heard() {
                hear(heard);
            }
            self.head.clear();
        }
    }

    /// The response to its request. Returns what is behind it, once it is whole.
    fn take_response<'a>(&mut self, bytes: &'a [u8]) -> Result<Option<&'a [u8]>, Unexpected> {
        let before = self.head.len();
        self.head.extend_from_slice(&bytes[..bytes.len().min(HEAD_BYTES_MAX)]);
        let Some(at) = self.head.windows(4).position(|four| four == b"\r\n\r\n") else {
            return if self.head.len() >= HEAD_BYTES_MAX { Err(Unexpected) } else { Ok(None) };
        };
        if !self.head.starts_with(b"HTTP/1.1 101 ") {
            return Err(Unexpected);
        }
        self.head.clear();
        self.is_open = true;
        Ok(Some(&bytes[at + 4 - before..]))
    }

    fn header_len(&self) -> usize {
        match self.head[1] {
            126 => 4,
            127 => 10,
            _ => 2,
        }
    }

    /// Of a frame whose header is whole.
    fn payload_len(&self) -> usize {
        match self.head[1] {
            126 => usize::from(u16::from_be_bytes([self.head[2], self.head[3]])),
            127 => self.head[2..10].iter().fold(0, |len, &byte| len << 8 | usize::from(byte)),
            short => usize::from(short),
        }
    }

    fn frame_len(&self) -> usize {
        self.header_len() + self.payload_len()
    }

    /// How much of the frame is kept, as far as that is known. A server masks nothing (RFC 6455 5.1).
    fn wanted(&self) -> Result<usize, Unexpected> {
        let header = self.header_len();
        if self.head[1] & 0x80 != 0 || self.head[0] & 0x70 != 0 {
            return Err(Unexpected);
        }
        if self.head.len() < header {
            return Ok(header);
        }
        let (len, is_control) = (self.payload_len(), self.head[0] & 0x08 != 0);
        if len >> 40 != 0 || is_control && len > CONTROL_BYTES_MAX {
            return Err(Unexpected);
        }
        Ok(header + if is_control { len } else { len.min(LOOKED_AT) })
    }

    fn heard(&self) -> Option<ReceiverEvent> {
        let payload = &self.head[self.header_len()..];
        match self.head[0] & 0x0f {
            0x8 => Some(ReceiverEvent::Close),
            0x9 => Some(ReceiverEvent::Ping(payload.to_vec())),
            0x1 | 0x2 => {
                let (number, rest) = payload.split_first_chunk()?;
                let pushed_ns = rest.first_chunk()?;
                Some(ReceiverEvent::Tick {
                    number: u64::from_le_bytes(*number),
                    pushed_ns: u64::from_le_bytes(*pushed_ns),
                })
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const RESPONSE: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n";

    fn tick(number: u64, len: u16) -> Vec<u8> {
        let mut frame = vec![0x82, 126];
        frame.extend(len.to_be_bytes());
        frame.extend(number.to_le_bytes());
        frame.extend((number + 5).to_le_bytes());
        frame.resize(4 + usize::from(len), 7);
        frame
    }

    fn heard_in<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Result<Vec<ReceiverEvent>, Unexpected> {
        let (mut receiver, mut heard) = (Receiver::default(), Vec::new());
        for piece in pieces {
            receiver.take(piece, |one| heard.push(one))?;
        }
        Ok(heard)
    }

    proptest! {
        #[test]
        fn it_hears_the_same_however_the_bytes_are_cut(cuts in proptest::collection::vec(0_usize..9_000, 0..40)) {
            let ping = [&[0x89, 3][..], b"abc"].concat();
            let stream = [RESPONSE, &tick(1, 200), &ping, &tick(2, 8192), &[0x81, 0], &[0x88, 2, 3, 232]].concat();
            let mut cuts: Vec<usize> = cuts.into_iter().filter(|&cut| cut < stream.len()).collect();
            cuts.extend([0, stream.len()]);
            cuts.sort_unstable();
            let heard = heard_in(cuts.windows(2).map(|pair| &stream[pair[0]..pair[1]]));
            let expected = vec![
                ReceiverEvent::Open,
                ReceiverEvent::Tick { number: 1, pushed_ns: 6 },
                ReceiverEvent::Ping(b"abc".to_vec()),
                ReceiverEvent::Tick { number: 2, pushed_ns: 7 },
                ReceiverEvent::Close,
            ];
            prop_assert_eq!(heard, Ok(expected));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = heard_in([RESPONSE, &bytes]);
            let _ = heard_in([&bytes[..]]);
        }
    }

    #[test]
    fn what_no_server_of_ours_sends_ends_it() {
        for wrong in [&[0x82, 0x81, 0, 0, 0, 0, 1][..], &[0xf2, 1, 1], &[0x89, 126, 0, 200], &[0x82, 127, 255]] {
            let tail = [0; 8];
            assert_eq!(heard_in([RESPONSE, wrong, &tail]), Err(Unexpected), "{wrong:?}");
        }
        assert_eq!(heard_in([&b"HTTP/1.1 503 Service Unavailable\r\n\r\n"[..]]), Err(Unexpected));
        assert_eq!(heard_in([&[b'x'; 5000][..]]), Err(Unexpected));
        assert_eq!(pong(b"ab"), [0x8a, 0x82, 0, 0, 0, 0, b'a', b'b']);
    }
}
