//! The bytes to one client, parsed as they leave the shard: responses, then frames, each complete and valid.
//!
//! Written without the product's own parsers, which it judges.

use flate2::{Decompress, FlushDecompress};

/// A receipt of a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    /// A response other than 101.
    Response {
        status: u16,
        is_last: bool,
        body: Vec<u8>,
    },
    /// 101: frames follow.
    Upgraded {
        is_compressed: bool,
    },
    Frame {
        opcode: u8,
        payload: Vec<u8>,
    },
    /// The server's side ended.
    End,
}

/// See the module.
#[derive(Default)]
pub struct Wire {
    partial: Vec<u8>,
    is_upgraded: bool,
    inflate: Option<Inflate>,
    was_closed: bool,
}

struct Inflate {
    stream: Decompress,
    keeps_context: bool,
}

impl Inflate {
    fn message(&mut self, payload: &[u8]) -> Result<Vec<u8>, String> {
        if !self.keeps_context {
            self.stream.reset(false);
        }
        // RFC 7692 7.2.2: what the sender has cut off.
        let whole = [payload, &[0, 0, 0xff, 0xff]].concat();
        let mut out = Vec::new();
        let before = self.stream.total_in();
        loop {
            let at = (self.stream.total_in() - before) as usize;
            out.reserve(8 * 1024);
            let inflated = self.stream.decompress_vec(&whole[at..], &mut out, FlushDecompress::Sync);
            inflated.map_err(|error| format!("a message does not inflate: {error}"))?;
            if self.stream.total_in() - before == whole.len() as u64 && out.len() < out.capacity() {
                return Ok(out);
            }
        }
    }
}

impl Wire {
    /// Takes in what a socket took. Appends what became whole, with the number of bytes behind it that are part of
    /// something else.
    pub fn take(&mut self, bytes: &[u8], whole: &mut Vec<(usize, Heard)>) -> Result<(), String> {
        self.partial.extend_from_slice(bytes);
        let mut at = 0;
        loop {
            let next = if self.is_upgraded { self.frame(at)? } else { self.response(at)? };
            let Some((len, heard)) = next else { break };
            at += len;
            whole.push((self.partial.len() - at, heard));
        }
        self.partial.drain(..at);
        Ok(())
    }

    /// Bytes of something that is not whole.
    pub fn unfinished(&self) -> usize {
        self.partial.len()
    }

    fn response(&mut self, at: usize) -> Result<Option<(usize, Heard)>, String> {
        let rest = &self.partial[at..];
        let Some(end) = rest.windows(4).position(|four| four == b"\r\n\r\n") else { return Ok(None) };
        let head = std::str::from_utf8(&rest[..end]).map_err(|_| "a head that is no text")?;
        let status = head.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok());
        let status: u16 = status.ok_or_else(|| format!("no response starts so: {head}"))?;
        let fields: Vec<(&str, &str)> = head.lines().skip(1).filter_map(|line| line.split_once(": ")).collect();
        let field = |name: &str| fields.iter().find(|field| field.0.eq_ignore_ascii_case(name)).map(|field| field.1);
        if status == 101 {
            if field("sec-websocket-accept") != Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=") {
                return Err(format!("the key is not answered: {head}"));
            }
            let inflate = field("sec-websocket-extensions").map(|agreed| Inflate {
                stream: Decompress::new(false),
                keeps_context: !agreed.contains("server_no_context_takeover"),
            });
            let is_compressed = inflate.is_some();
            (self.is_upgraded, self.inflate) = (true, inflate);
            return Ok(Some((end + 4, Heard::Upgraded { is_compressed })));
        }
        let body_len = match field("content-length").map(str::parse::<usize>) {
            Some(Ok(len)) => len,
            None if matches!(status, 100 | 204 | 304) => 0,
            _ => return Err(format!("how long is the body? {head}")),
        };
        let is_last = field("connection") == Some("close");
        let Some(body) = rest.get(end + 4..end + 4 + body_len) else { return Ok(None) };
        Ok(Some((end + 4 + body_len, Heard::Response { status, is_last, body: body.to_vec() })))
    }

    fn frame(&mut self, at: usize) -> Result<Option<(usize, Heard)>, String> {
        let rest = &self.partial[at..];
        let [first, second, ..] = *rest else { return Ok(None) };
        let (opcode, is_compressed) = (first & 15, first & 0x40 != 0);
        let is_lawful = first & 0xb0 == 0x80
            && second & 0x80 == 0
            && matches!(opcode, 1 | 2 | 8 | 9 | 10)
            && (!is_compressed || opcode < 8)
            && (opcode < 8 || second <= 125);
        if !is_lawful {
            return Err(format!("no frame starts with {first:02x} {second:02x}"));
        }
        if self.was_closed {
            return Err("a frame behind the close frame".into());
        }
        let (header, len) = match second {
            126 => (4, rest.get(2..4).map(|len| u64::from(u16::from_be_bytes([len[0], len[1]])))),
            127 => (10, rest.get(2..10).and_then(|len| len.first_chunk()).map(|len| u64::from_be_bytes(*len))),
            len => (2, Some(u64::from(len))),
        };
        let Some(len) = len.map(|len| len as usize) else { return Ok(None) };
        let Some(payload) = rest.get(header..header + len) else { return Ok(None) };
        let payload = match (is_compressed, &mut self.inflate) {
            (false, _) => payload.to_vec(),
            (true, Some(inflate)) => inflate.message(payload)?,
            (true, None) => return Err("a compressed message, though that was not agreed".into()),
        };
        self.was_closed = opcode == 8;
        Ok(Some((header + len, Heard::Frame { opcode, payload })))
    }
}
