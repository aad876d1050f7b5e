//! A client that speaks permessage-deflate (RFC 7692), which tungstenite does not: the protocol's own client frames,
//! and zlib by `flate2` directly, so that nothing of ours checks itself.

use super::PATIENCE;
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};
use pushring::Broker;
use pushring::internals::proto::client::append_frame;
use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};

const KEY: [u8; 4] = [0xa1, 0x2b, 0x03, 0xfe];

/// A frame from the server.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame {
    /// FIN, RSV1 to RSV3 and the opcode.
    pub first: u8,
    /// As it travelled.
    pub payload: Vec<u8>,
}

/// A message from the server.
#[derive(Debug, PartialEq, Eq)]
pub struct Inflated {
    pub is_text: bool,
    /// Whether it came compressed.
    pub compressed: bool,
    /// How much of it travelled.
    pub wire_bytes: usize,
    pub payload: Vec<u8>,
}

pub struct DeflateClient {
    stream: TcpStream,
    received: Vec<u8>,
    /// `Sec-WebSocket-Extensions` of the answer, if it was there.
    pub answer: Option<String>,
    inflate: Decompress,
}

impl DeflateClient {
    /// Upgrades on `path` with this offer.
    pub fn connect(broker: &Broker, path: &str, offer: &str) -> Self {
        Self::connect_to(broker.address(), path, offer)
    }

    /// The same where a broker is known by its address alone.
    pub fn connect_to(address: impl ToSocketAddrs, path: &str, offer: &str) -> Self {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Extensions: {offer}\r\n\r\n"
        )
        .unwrap();
        let mut client = Self { stream, received: Vec::new(), answer: None, inflate: Decompress::new(false) };
        let head_bytes = loop {
            match client.received.windows(4).position(|four| four == b"\r\n\r\n") {
                Some(at) => break at + 4,
                None => client.read_more(),
            }
        };
        let head = String::from_utf8(client.received.drain(..head_bytes).collect()).unwrap();
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        let field = head.lines().find_map(|line| line.strip_prefix("Sec-WebSocket-Extensions: "));
        client.answer = field.map(str::to_owned);
        if let Some(bits) = field.and_then(|field| field.split("server_max_window_bits=").nth(1)) {
            // A client that has no more room than it asked for.
            client.inflate = Decompress::new_with_window_bits(false, bits.parse().unwrap());
        }
        client
    }

    fn read_more(&mut self) {
        let mut chunk = [0; 64 * 1024];
        let count = self.stream.read(&mut chunk).expect("more bytes in time");
        assert!(count > 0, "the server has closed");
        self.received.extend_from_slice(&chunk[..count]);
    }

    /// The next frame.
    pub fn frame(&mut self) -> Frame {
        loop {
            if let Some(len) = pushring::internals::proto::server_frame_len(&self.received)
                && self.received.len() >= len
            {
                let header = match self.received[1] {
                    126 => 4,
                    127 => 10,
                    _ => 2,
                };
                let frame: Vec<u8> = self.received.drain(..len).collect();
                return Frame { first: frame[0], payload: frame[header..].to_vec() };
            }
            self.read_more();
        }
    }

    /// The next message; control frames on the way to it are skipped.
    pub fn recv(&mut self) -> Inflated {
        let frame = loop {
            let frame = self.frame();
            assert_eq!(frame.first & 0xb0, 0x80, "our messages are whole, and set no bit that was not agreed");
            if frame.first & 0x08 == 0 {
                break frame;
            }
            assert_ne!(frame.first & 0x0f, 8, "closed: {}", String::from_utf8_lossy(&frame.payload));
            assert_eq!(frame.first & 0x40, 0, "a compressed control frame");
        };
        let compressed = frame.first & 0x40 != 0;
        let wire_bytes = frame.payload.len();
        let payload = if compressed { self.inflate(&frame.payload) } else { frame.payload };
        Inflated { is_text: frame.first & 0x0f == 1, compressed, wire_bytes, payload }
    }

    fn inflate(&mut self, payload: &[u8]) -> Vec<u8> {
        let answer = self.answer.as_ref().expect("compression was agreed");
        if answer.contains("server_no_context_takeover") {
            self.inflate.reset(false);
        }
        let whole = [payload, &[0, 0, 0xff, 0xff]].concat();
        let mut out = Vec::new();
        let before = self.inflate.total_in();
        loop {
            let at = (self.inflate.total_in() - before) as usize;
            out.reserve(64 * 1024);
            self.inflate.decompress_vec(&whole[at..], &mut out, FlushDecompress::Sync).expect("it inflates");
            if self.inflate.total_in() - before == whole.len() as u64 && out.len() < out.capacity() {
                return out;
            }
        }
    }

    /// The close frame with which the server ends the connection.
    pub fn recv_close(&mut self) -> (u16, String) {
        loop {
            let frame = self.frame();
            if frame.first & 0x0f == 8 {
                let code = u16::from_be_bytes(*frame.payload.first_chunk().expect("a code"));
                return (code, String::from_utf8(frame.payload[2..].to_vec()).unwrap());
            }
        }
    }

    /// Sends a frame with any first byte.
    pub fn send_frame(&mut self, first: u8, payload: &[u8]) {
        let mut wire = Vec::new();
        append_frame(&mut wire, first, KEY, payload);
        self.stream.write_all(&wire).unwrap();
    }

    /// Sends a compressed message in one frame.
    pub fn send(&mut self, opcode: u8, message: &[u8]) {
        self.send_frame(0xc0 | opcode, &deflated(message));
    }
}

/// The compressed payload of a message.
pub fn deflated(message: &[u8]) -> Vec<u8> {
    let mut compress = Compress::new(Compression::new(6), false);
    let mut out = Vec::with_capacity(message.len() + 100);
    compress.compress_vec(message, &mut out, FlushCompress::Sync).unwrap();
    assert_eq!(compress.total_in(), message.len() as u64);
    assert_eq!(out.split_off(out.len() - 4), [0, 0, 0xff, 0xff]);
    out
}

/// 1 MiB that means 1 GiB of zeros.
pub fn bomb() -> Vec<u8> {
    // RFC 7692 section 7.2.3.1: what ends each piece, so that one follows another, and the message goes without.
    let piece = [&deflated(&vec![0; 1 << 20])[..], &[0, 0, 0xff, 0xff]].concat();
    let mut bomb = piece.repeat(1024);
    bomb.truncate(bomb.len() - 4);
    assert!(bomb.len() < 1_100_000);
    bomb
}

/// Text that compresses somewhat: records whose numbers differ.
pub fn records(bytes: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut out = Vec::new();
    while out.len() < bytes {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        out.extend(format!("{{\"symbol\":\"PUSH\",\"bid\":{},\"at\":{seed}}},", state >> 40).bytes());
    }
    out.truncate(bytes);
    out
}
