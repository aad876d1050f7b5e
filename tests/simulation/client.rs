//! A client: upgrades, registers, sends, reads and answers; and does what clients should not.

use super::network::Network;
use super::rng::Rng;
use pushring::proto::MessageKind;
use pushring::proto::client::{FIN, append_frame, append_message};
use pushring::shard::flush::SocketId;

/// What a client received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    Upgraded,
    Frame {
        opcode: u8,
        payload: Vec<u8>,
    },
    /// The server's side ended.
    End,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Upgrading,
    Registering,
    Open,
    /// It has sent a close frame, or answered one.
    Closing,
    /// It broke the protocol, on purpose: whatever comes now is read and ignored.
    Unlawful,
    Gone,
}

pub struct Client {
    pub number: usize,
    pub socket: SocketId,
    pub owner: usize,
    pub path: String,
    pub registers: Option<String>,
    pub state: State,
    rng: Rng,
    outbox: Vec<u8>,
    inbox: Vec<u8>,
    /// Messages that it has sent whole.
    pub sent: u64,
    pub stalled_until: u64,
    pub received_close: Option<u16>,
    pub sent_close_first: bool,
    ended: bool,
    upgraded: bool,
    /// It was answered with something other than 101.
    refused: bool,
}

/// The payload of a client's message.
pub fn message(client: usize, sequence: u64, filler: usize) -> Vec<u8> {
    let mut payload = format!("{client:08}{sequence:08}").into_bytes();
    payload.extend((0..filler).map(|at| b'a' + ((at as u64 + sequence) % 26) as u8));
    payload
}

impl Client {
    pub fn new(number: usize, socket: SocketId, owner: usize, path: &str, registers: Option<String>, rng: Rng) -> Self {
        let head = format!(
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        Self {
            number,
            socket,
            owner,
            path: path.into(),
            registers,
            state: State::Upgrading,
            rng,
            outbox: head.into_bytes(),
            inbox: Vec::new(),
            sent: 0,
            stalled_until: 0,
            received_close: None,
            sent_close_first: false,
            ended: false,
            upgraded: false,
            refused: false,
        }
    }

    fn frame(&mut self, first: u8, payload: &[u8]) {
        let key = (self.rng.next() as u32).to_le_bytes();
        append_frame(&mut self.outbox, first, key, payload);
    }

    /// One step of an open client's own will.
    pub fn act(&mut self, step: u64, faults: bool) {
        // One that stalls for ever is silent, too: its machine has vanished.
        if self.state != State::Open || !faults || self.stalled_until == u64::MAX {
            return;
        }
        match self.rng.below(4000) {
            0..300 => self.send_message(),
            300..340 => self.send_fragmented(),
            340..380 => self.frame(FIN | 9, b"c-ping"),
            380..390 => self.frame(FIN | 10, b"c-pong"),
            390..400 => (0..self.rng.between(5, 60)).for_each(|_| self.send_message()),
            400..415 => self.stalled_until = step + self.rng.between(5, 80) as u64,
            415 => self.stalled_until = u64::MAX,
            417 => self.violate(),
            419..421 => self.close(),
            _ => {}
        }
    }

    fn send_message(&mut self) {
        let filler = self.rng.size(3000);
        let payload = message(self.number, self.sent, filler);
        let kind = if self.rng.chance(50) { MessageKind::Text } else { MessageKind::Binary };
        append_message(&mut self.outbox, kind, (self.rng.next() as u32).to_le_bytes(), &payload);
        self.sent += 1;
    }

    fn send_fragmented(&mut self) {
        let filler = self.rng.size(2000);
        let payload = message(self.number, self.sent, filler);
        let cut = self.rng.below(payload.len());
        self.frame(2, &payload[..cut]);
        if self.rng.chance(50) {
            self.frame(FIN | 9, b"c-between");
        }
        self.frame(FIN, &payload[cut..]);
        self.sent += 1;
    }

    fn violate(&mut self) {
        match self.rng.below(4) {
            0 => self.frame(FIN | 3, b"reserved opcode"),
            1 => self.frame(FIN, b"a continuation of nothing"),
            2 => self.frame(FIN | 1, b"\xff\xfe"),
            _ => self.outbox.extend_from_slice(&[0x81, 0x01, b'x']),
        }
        self.state = State::Unlawful;
    }

    pub fn close(&mut self) {
        self.frame(FIN | 8, &4001u16.to_be_bytes());
        self.sent_close_first = true;
        self.state = State::Closing;
    }

    /// Moves some bytes in each direction, in pieces of random size. Answers what it heard, and whether the shard has
    /// something new to read, and whether that may be an end.
    pub fn exchange(
        &mut self,
        network: &mut Network,
        step: u64,
        heard: &mut Vec<Heard>,
    ) -> Result<Option<bool>, String> {
        let calm = network.calm;
        let socket = network.socket(self.socket);
        if socket.reset || self.ended {
            return Ok(None);
        }
        let mut readable = None;
        if !self.outbox.is_empty() && !socket.closed {
            let len = if calm { self.outbox.len() } else { self.rng.below(4000).min(self.outbox.len()) };
            socket.to_server.extend(self.outbox.drain(..len));
            readable = (len > 0).then_some(false);
        }
        if self.stalled_until <= step || calm {
            let waiting = socket.to_client.len();
            let len = if calm { waiting } else { self.rng.below(4000).min(waiting) };
            self.inbox.extend(socket.to_client.drain(..len));
            if socket.to_client.is_empty() && (socket.write_shut || socket.closed) {
                self.ended = true;
                // A client that sees the end of our bytes ends its own.
                socket.client_finished = true;
                readable = Some(true);
            }
        }
        self.parse(heard)?;
        if self.ended {
            heard.push(Heard::End);
            self.state = State::Gone;
        }
        Ok(readable)
    }

    /// The connection ends without a word: by a reset, or by FIN.
    pub fn vanish(&mut self, network: &mut Network, by_reset: bool) {
        let socket = network.socket(self.socket);
        self.state = State::Gone;
        self.stalled_until = 0;
        socket.client_finished = true;
        if by_reset {
            socket.reset = true;
            socket.to_client.clear();
            socket.to_server.clear();
        }
    }

    fn parse(&mut self, heard: &mut Vec<Heard>) -> Result<(), String> {
        if self.refused {
            self.inbox.clear();
            return Ok(());
        }
        if !self.upgraded {
            let Some(end) = self.inbox.windows(4).position(|window| window == b"\r\n\r\n") else { return Ok(()) };
            let head: Vec<u8> = self.inbox.drain(..end + 4).collect();
            if !head.starts_with(b"HTTP/1.1 101 ") {
                // Its process was gone.
                self.refused = true;
                self.state = State::Unlawful;
                return Ok(());
            }
            heard.push(Heard::Upgraded);
            self.upgraded = true;
            if self.state == State::Upgrading {
                self.state = State::Open;
            }
            if let Some(register) = self.registers.clone().filter(|_| self.state == State::Open) {
                self.state = State::Registering;
                append_message(&mut self.outbox, MessageKind::Text, [1, 2, 3, 4], register.as_bytes());
            }
        }
        while let Some((opcode, payload)) = self.next_frame()? {
            self.answer(opcode, &payload)?;
            heard.push(Heard::Frame { opcode, payload });
        }
        Ok(())
    }

    fn next_frame(&mut self) -> Result<Option<(u8, Vec<u8>)>, String> {
        if !self.upgraded || self.inbox.len() < 2 {
            return Ok(None);
        }
        let (first, second) = (self.inbox[0], self.inbox[1]);
        let opcode = first & 15;
        if first & 0xf0 != 0x80 || second & 0x80 != 0 || !matches!(opcode, 1 | 2 | 8 | 9 | 10) {
            return Err(format!("client {}: no frame starts with {first:02x} {second:02x}", self.number));
        }
        let (header, len) = match second {
            126 if self.inbox.len() >= 4 => (4, usize::from(u16::from_be_bytes([self.inbox[2], self.inbox[3]]))),
            126 => return Ok(None),
            127 => return Err(format!("client {}: a frame of over 64 KiB", self.number)),
            len => (2, usize::from(len)),
        };
        if self.inbox.len() < header + len {
            return Ok(None);
        }
        if self.received_close.is_some() {
            return Err(format!("client {}: a frame behind the close frame", self.number));
        }
        let frame: Vec<u8> = self.inbox.drain(..header + len).collect();
        Ok(Some((opcode, frame[header..].to_vec())))
    }

    fn answer(&mut self, opcode: u8, payload: &[u8]) -> Result<(), String> {
        match opcode {
            9 if matches!(self.state, State::Open | State::Registering) => self.frame(FIN | 10, payload),
            8 => {
                let code = payload.first_chunk().map_or(1005, |code| u16::from_be_bytes(*code));
                self.received_close = Some(code);
                if matches!(self.state, State::Open | State::Registering) {
                    self.frame(FIN | 8, payload);
                    self.state = State::Closing;
                }
            }
            1 if self.state == State::Registering => self.state = State::Open,
            _ => {}
        }
        Ok(())
    }

    /// Bytes of a frame that has not come whole.
    pub fn unfinished(&self) -> usize {
        self.inbox.len()
    }
}
