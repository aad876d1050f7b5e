//! A client: connects, upgrades, registers, sends, reads and answers, or sends HTTP requests; and does what clients
//! should not.

use super::network::Socket;
use super::payload;
use super::rng::Rng;
use super::settings::{ClientRates, MESSAGE_BYTES_MAX, Settings};
use super::wire::Heard;
use bytes::BytesMut;
use flate2::{Compress, Compression, FlushCompress};
use pushring::internals::proto::MessageKind;
use pushring::internals::proto::client::{FIN, append_frame, append_message};
use pushring::internals::shard::flush::SocketId;
use std::collections::VecDeque;
use std::net::IpAddr;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It has not come yet.
    Away,
    Upgrading,
    Registering,
    Open,
    /// It has sent a close frame, or answered one.
    Closing,
    /// It broke the protocol, on purpose: whatever comes now is read and ignored.
    Unlawful,
    /// It speaks HTTP and nothing else.
    Http,
    Gone,
}

/// A client's misbehaviour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manners {
    Good,
    /// Half a request, and no more.
    HalfHead,
    NeverRegisters,
    BadToken,
    IgnoresClose,
    /// It never ends its side of the connection.
    NeverEnds,
}

/// How a client went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    Fin,
    Reset,
    /// Without a word.
    Silently,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    Process,
    Content,
    Nowhere,
    /// The request does not arrive whole.
    Half,
}

/// A client's plan when it connects.
pub struct ClientPlan {
    pub number: usize,
    pub socket: SocketId,
    /// Which process, by the place of its name.
    pub name: usize,
    pub ip: IpAddr,
    pub arrives_at: u64,
    /// `/` and the process' id.
    pub root: String,
    /// Where it upgrades; none: it speaks HTTP.
    pub path: Option<String>,
    /// A `WsRegister`, if it registers.
    pub registers: Option<String>,
    pub manners: Manners,
    /// It does not wait for the answer to its upgrade: what it has to say comes behind its request.
    pub is_eager: bool,
}

pub struct Client {
    pub plan: ClientPlan,
    pub state: State,
    rates: ClientRates,
    piece_bytes_max: usize,
    message_bytes_max: usize,
    rng: Rng,
    outbox: BytesMut,
    is_compressed: bool,
    /// Messages and requests that it has sent whole.
    pub sent: u64,
    pub stalled_until: u64,
    pub was_stalled: bool,
    pub received_close: Option<u16>,
    /// The code of its close frame, if it was the first.
    pub sent_close: Option<u16>,
    /// The close code that its fault deserves.
    pub violated: Option<u16>,
    pub left: Option<Left>,
    pub left_ms: u64,
    /// Requests that were not answered yet.
    pub asked: VecDeque<(u64, Ask)>,
    /// A response said that it is the last, or the request was refused.
    pub was_refused: bool,
    pub is_turned_away: bool,
    pub accepted_ms: u64,
    pub upgraded_ms: u64,
}

impl Client {
    pub fn new(plan: ClientPlan, settings: &Settings, rng: Rng) -> Self {
        Self {
            plan,
            state: State::Away,
            rates: settings.client,
            piece_bytes_max: settings.piece_bytes_max,
            message_bytes_max: settings.message_bytes_max,
            rng,
            outbox: BytesMut::new(),
            is_compressed: false,
            sent: 0,
            stalled_until: 0,
            was_stalled: false,
            received_close: None,
            sent_close: None,
            violated: None,
            left: None,
            left_ms: 0,
            asked: VecDeque::new(),
            was_refused: false,
            is_turned_away: false,
            accepted_ms: 0,
            upgraded_ms: 0,
        }
    }

    pub fn number(&self) -> usize {
        self.plan.number
    }

    /// It connects.
    pub fn come(&mut self) {
        let Some(path) = &self.plan.path else {
            self.state = State::Http;
            return;
        };
        self.state = State::Upgrading;
        let offers = ["", "Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits=10\r\n"];
        let offer = match self.rng.below(3) {
            0 => "Sec-WebSocket-Extensions: permessage-deflate\r\n",
            other => offers[other - 1],
        };
        let head = format!(
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n{offer}\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        let len = if self.plan.manners == Manners::HalfHead { head.len() / 2 } else { head.len() };
        self.outbox.extend_from_slice(&head.as_bytes()[..len]);
        if self.plan.is_eager {
            self.register();
            (0..self.rng.between(1, 40)).for_each(|_| self.send_message());
        }
    }

    fn register(&mut self) {
        let Some(register) = self.plan.registers.clone().filter(|_| self.plan.manners != Manners::NeverRegisters)
        else {
            return;
        };
        self.append(|out| append_message(out, MessageKind::Text, [1, 2, 3, 4], register.as_bytes()));
    }

    pub fn may_become_a_channel(&self) -> bool {
        match self.plan.manners {
            Manners::HalfHead => false,
            Manners::BadToken | Manners::NeverRegisters => self.plan.registers.is_none(),
            _ => self.plan.path.is_some(),
        }
    }

    fn append(&mut self, append: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = Vec::new();
        append(&mut bytes);
        self.outbox.extend_from_slice(&bytes);
    }

    fn frame(&mut self, first: u8, payload: &[u8]) {
        let key = (self.rng.next() as u32).to_le_bytes();
        self.append(|out| append_frame(out, first, key, payload));
    }

    /// One step of its own will.
    pub fn act(&mut self, step: u64) {
        // One that stalls for ever is silent, too.
        if self.left.is_some() || self.stalled_until == u64::MAX {
            return;
        }
        match self.state {
            State::Open => self.act_open(step),
            State::Http if !self.was_refused && !self.is_turned_away => self.act_http(step),
            _ => {}
        }
    }

    pub fn stall(&mut self, until: u64) {
        self.stalled_until = until;
        self.was_stalled = true;
    }

    fn act_open(&mut self, step: u64) {
        let rates = self.rates;
        let (mut drawn, mut passed) = (self.rng.below(10_000), false);
        let mut is = |rate: usize| {
            let hit = !passed && drawn < rate;
            passed |= hit;
            drawn = drawn.wrapping_sub(rate);
            hit
        };
        if is(rates.message) {
            self.send_message();
        } else if is(rates.fragments) {
            self.send_fragments();
        } else if is(rates.ping) {
            self.frame(FIN | 9, b"c-ping");
        } else if is(rates.pong) {
            self.frame(FIN | 10, b"c-pong");
        } else if is(rates.burst) {
            (0..self.rng.between(5, 60)).for_each(|_| self.send_message());
        } else if is(rates.stall) {
            let until = step + self.rng.between(5, 80) as u64;
            self.stall(until);
        } else if is(rates.half_open) {
            self.stall(u64::MAX);
            self.left = Some(Left::Silently);
        } else if is(rates.violation) {
            self.violate();
        } else if is(rates.close) {
            self.close();
        }
    }

    fn act_http(&mut self, step: u64) {
        if self.rng.now_and_then(self.rates.request) && self.asked.len() < 5 {
            for _ in 0..self.rng.between(1, 2) {
                if !self.was_refused {
                    self.request();
                }
            }
        }
        if self.rng.now_and_then(self.rates.stall) {
            let until = step + self.rng.between(5, 80) as u64;
            self.stall(until);
        }
    }

    /// How it goes without a word of the protocol, if it does so now: `impatience` times as often as usual.
    pub fn wants_to_leave(&mut self, impatience: usize) -> Option<Left> {
        if matches!(self.state, State::Away | State::Gone) || self.left.is_some() {
            return None;
        }
        if self.rng.now_and_then(self.rates.fin * impatience) {
            return Some(Left::Fin);
        }
        self.rng.now_and_then(self.rates.reset * impatience).then_some(Left::Reset)
    }

    fn send_message(&mut self) {
        let len = self.rng.size(self.message_bytes_max);
        let message = payload::of_client(self.number(), self.sent, len);
        let kind = if self.rng.chance(50) { MessageKind::Text } else { MessageKind::Binary };
        self.sent += 1;
        if self.is_compressed && self.rng.chance(30) {
            let opcode = if kind == MessageKind::Text { 1 } else { 2 };
            return self.frame(FIN | 0x40 | opcode, &deflated(&message));
        }
        let key = (self.rng.next() as u32).to_le_bytes();
        self.append(|out| append_message(out, kind, key, &message));
    }

    fn send_fragments(&mut self) {
        let len = self.rng.size(self.message_bytes_max);
        let message = payload::of_client(self.number(), self.sent, len);
        let cut = self.rng.below(message.len());
        self.frame(2, &message[..cut]);
        if self.rng.chance(50) {
            self.frame(FIN | 9, b"c-between");
        }
        self.frame(FIN, &message[cut..]);
        self.sent += 1;
    }

    fn violate(&mut self) {
        let code = match self.rng.below(7) {
            0 => {
                self.frame(FIN | 3, b"reserved opcode");
                1002
            }
            1 => {
                self.frame(FIN, b"a continuation of nothing");
                1002
            }
            2 => {
                self.frame(FIN | 0x20 | 1, b"reserved bit");
                1002
            }
            3 => {
                self.outbox.extend_from_slice(&[0x81, 0x01, b'x']);
                1002
            }
            4 => {
                self.frame(FIN | 1, b"\xff\xfe");
                1007
            }
            5 => {
                let len = (MESSAGE_BYTES_MAX as u64 + 1).to_be_bytes();
                self.outbox.extend_from_slice(&[&[0x82, 0xff], &len[..], b"mask"].concat());
                1009
            }
            // Unless it takes so long that they are too few in each second: then it goes unnoticed.
            _ => {
                (0..300).for_each(|_| self.frame(FIN | 9, b"c-flood"));
                1008
            }
        };
        self.violated = Some(code);
        self.state = State::Unlawful;
    }

    fn close(&mut self) {
        let (code, len) = [(4001, 2), (1000, 2), (1005, 0)][self.rng.below(3)];
        self.frame(FIN | 8, &u16::to_be_bytes(code)[..len]);
        self.sent_close = Some(code);
        self.state = State::Closing;
    }

    fn request(&mut self) {
        let (sequence, root) = (self.sent, self.plan.root.clone());
        let fields = format!("HTTP/1.1\r\nHost: localhost\r\nX-Token: {}\r\n", payload::token(self.number(), sequence));
        let len = self.rng.size(self.message_bytes_max);
        let body = payload::of_client(self.number(), sequence, len);
        let (ask, mut request) = match self.rng.below(20) {
            0..3 => (Ask::Content, format!("GET {root}/s {fields}\r\n").into_bytes()),
            3 => (Ask::Nowhere, format!("GET /nowhere {fields}\r\n").into_bytes()),
            4..10 => (Ask::Process, format!("GET {root}/h {fields}\r\n").into_bytes()),
            10..15 => {
                let head = format!("POST {root}/h {fields}Content-Length: {}\r\n\r\n", body.len());
                (Ask::Process, [head.as_bytes(), &body].concat())
            }
            _ => {
                let head = format!("POST {root}/h {fields}Transfer-Encoding: chunked\r\n\r\n");
                let (one, other) = body.split_at(self.rng.between(1, body.len() - 1));
                let mut request = head.into_bytes();
                for chunk in [one, other] {
                    request.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                    request.extend_from_slice(chunk);
                    request.extend_from_slice(b"\r\n");
                }
                request.extend_from_slice(b"0\r\n\r\n");
                (Ask::Process, request)
            }
        };
        let is_half = self.plan.manners == Manners::HalfHead && self.rng.chance(20);
        if is_half {
            request.truncate(request.len() - self.rng.between(1, 20));
        }
        self.outbox.extend_from_slice(&request);
        self.asked.push_back((sequence, if is_half { Ask::Half } else { ask }));
        self.was_refused |= is_half;
        self.sent += 1;
    }

    /// Moves some bytes in each direction. Returns whether the shard has something new to read.
    pub fn exchange(&mut self, socket: &mut Socket, calm: bool, step: u64, heard: &mut Vec<(u64, Heard)>) -> bool {
        if socket.reset || matches!(self.state, State::Away | State::Gone) || self.left == Some(Left::Silently) {
            return false;
        }
        let mut readable = false;
        if !self.outbox.is_empty() && !socket.closed && !socket.client_finished {
            let piece = if calm { usize::MAX } else { self.rng.below(self.piece_bytes_max) };
            let len = piece.min(self.outbox.len()).min(socket.room_to_server());
            socket.send(&self.outbox.split_to(len));
            readable = len > 0;
        }
        if self.stalled_until <= step || (calm && self.stalled_until != u64::MAX) {
            let piece = if calm { usize::MAX } else { self.rng.below(self.piece_bytes_max) };
            socket.receive(piece, heard);
            if socket.is_at_end() {
                heard.push((0, Heard::End));
                self.state = State::Gone;
                if self.plan.manners != Manners::NeverEnds {
                    // A client that sees the end of our bytes ends its own.
                    socket.finish();
                    readable = true;
                }
            }
        }
        readable
    }

    /// The connection ends without a word of the protocol. Returns whether the shard is told.
    pub fn leave(&mut self, socket: &mut Socket, how: Left, now_ms: u64) {
        (self.left, self.left_ms) = (Some(how), now_ms);
        self.state = State::Gone;
        self.stalled_until = 0;
        match how {
            Left::Fin => socket.finish(),
            Left::Reset => socket.cut(),
            Left::Silently => {}
        }
    }

    /// Does what a client does when it has heard that.
    pub fn answer(&mut self, heard: &Heard, now_ms: u64) {
        match heard {
            Heard::Upgraded { is_compressed } => {
                self.is_compressed = *is_compressed;
                self.upgraded_ms = now_ms;
                if self.state == State::Upgrading {
                    self.begin();
                }
            }
            Heard::Response { status: 100, .. } | Heard::End => {}
            Heard::Response { is_last, .. } => {
                self.was_refused |= *is_last;
                if self.plan.path.is_some() && self.state != State::Gone {
                    self.was_refused = true;
                    self.state = State::Unlawful;
                }
            }
            Heard::Frame { opcode, payload } => self.answer_frame(*opcode, payload),
        }
    }

    fn begin(&mut self) {
        self.state = if self.plan.registers.is_some() { State::Registering } else { State::Open };
        if !self.plan.is_eager {
            self.register();
        }
    }

    fn answer_frame(&mut self, opcode: u8, payload: &[u8]) {
        let is_lively = matches!(self.state, State::Open | State::Registering);
        match opcode {
            9 if is_lively => self.frame(FIN | 10, payload),
            8 => {
                self.received_close = Some(payload.first_chunk().map_or(1005, |code| u16::from_be_bytes(*code)));
                if is_lively && self.plan.manners != Manners::IgnoresClose {
                    self.frame(FIN | 8, payload);
                }
                if is_lively {
                    self.state = State::Closing;
                }
            }
            1 if self.state == State::Registering => self.state = State::Open,
            _ => {}
        }
    }
}

fn deflated(message: &[u8]) -> Vec<u8> {
    let mut compress = Compress::new(Compression::new(1), false);
    let mut out = Vec::with_capacity(message.len() + 100);
    compress.compress_vec(message, &mut out, FlushCompress::Sync).expect("it compresses");
    assert_eq!(compress.total_in(), message.len() as u64);
    // RFC 7692 7.2.1: the end of every such message, which is not sent.
    out.truncate(out.len() - 4);
    out
}
