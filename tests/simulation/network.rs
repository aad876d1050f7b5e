//! The network in memory: sockets that take so much, short writes, resets, and bytes that arrive in pieces.

use super::plant::Plant;
use super::rng::Rng;
use super::wire::{Heard, Wire};
use bytes::BytesMut;
use pushring::internals::shard::flush::{Flush, Outgoing, Parts, Short, SocketId};
use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;

const ECONNRESET: i32 = 104;
const EPIPE: i32 = 32;

/// What a client may have on its way to the shard.
const TO_SERVER_BYTES_MAX: usize = 64 * 1024;

/// What every socket takes once the faults have stopped.
const CALM_WINDOW_BYTES: usize = 64 * 1024;

/// Something whole on its way to a client.
struct InFlight {
    /// Where it ends, counted from the first byte that was ever sent.
    end: u64,
    /// When its first byte left.
    at_ms: u64,
    heard: Heard,
}

pub struct Socket {
    wire: Wire,
    in_flight: VecDeque<InFlight>,
    /// When the first byte came of what is not whole yet: the rest may be long in coming where little room is.
    began_ms: Option<u64>,
    /// Bytes that the socket took, and those of them that the client has read.
    sent: u64,
    read: u64,
    window: usize,
    rng: Rng,
    /// What the client has sent and the shard not read.
    pub to_server: BytesMut,
    /// The shard was told that the socket is full.
    pub awaits_room: bool,
    /// It was, at some time: from then on policies may have been applied.
    pub was_full: bool,
    pub client_finished: bool,
    pub reset: bool,
    pub write_shut: bool,
    pub closed: bool,
    /// It stands in the list of those to read, and is to be read until nothing is left.
    pub is_queued: bool,
    pub to_the_end: bool,
}

impl Socket {
    fn new(mut rng: Rng, window_bytes_max: usize) -> Self {
        Self {
            wire: Wire::default(),
            in_flight: VecDeque::new(),
            began_ms: None,
            sent: 0,
            read: 0,
            window: rng.between(64, window_bytes_max),
            rng,
            to_server: BytesMut::new(),
            awaits_room: false,
            was_full: false,
            client_finished: false,
            reset: false,
            write_shut: false,
            closed: false,
            is_queued: false,
            to_the_end: false,
        }
    }

    /// How much the shard gets in one read.
    pub fn read_size(&mut self) -> usize {
        self.rng.between(1, 64 * 1024).min(self.to_server.len())
    }

    fn unread(&self) -> usize {
        (self.sent - self.read) as usize
    }

    /// Whether a client that waits for bytes would be told of the end instead.
    pub fn is_at_end(&self) -> bool {
        self.unread() == 0 && (self.write_shut || self.closed)
    }

    /// What the client may send now.
    pub fn room_to_server(&self) -> usize {
        TO_SERVER_BYTES_MAX.saturating_sub(self.to_server.len())
    }

    /// The client reads at most so many bytes; it hears what became whole, and when that left the shard.
    pub fn receive(&mut self, bytes_max: usize, heard: &mut Vec<(u64, Heard)>) {
        self.read += bytes_max.min(self.unread()) as u64;
        while let Some(next) = self.in_flight.front()
            && next.end <= self.read
        {
            let InFlight { at_ms, heard: what, .. } = self.in_flight.pop_front().expect("it was just seen");
            heard.push((at_ms, what));
        }
    }

    /// The kernel says that a socket is writable when a good part of it is free.
    pub fn takes_bytes_again(&self) -> bool {
        self.awaits_room && (self.reset || self.unread() <= self.window / 2)
    }

    /// Nothing more arrives, and what was on its way is lost.
    pub fn cut(&mut self) {
        self.reset = true;
        self.in_flight.clear();
        self.read = self.sent;
        self.to_server.clear();
    }

    /// The shard closes it. What the client has sent and nobody read becomes a reset, which eats what it did not read.
    pub fn close(&mut self) {
        self.closed = true;
        if !self.to_server.is_empty() {
            self.cut();
        }
    }

    /// Bytes of something that the client did not get whole.
    pub fn unfinished(&self) -> usize {
        self.wire.unfinished()
    }
}

#[derive(Default)]
pub struct Network {
    pub sockets: Vec<Socket>,
    /// What the shards did that no socket allows, and no client understands.
    pub complaints: Vec<String>,
    /// They took what was said to be their last bytes: the end of the stream must follow in the same turn.
    pub ends_due: Vec<SocketId>,
    /// After the faults every send takes what fits.
    pub calm: bool,
    pub now_ms: u64,
    pub short_percent: usize,
    pub window_bytes_max: usize,
    /// How often each push has left whole, by its id.
    pub left: HashMap<u64, usize>,
    pub sends: u64,
}

impl Network {
    /// A socket whose numbers depend only on `rng`.
    pub fn open(&mut self, rng: Rng) -> SocketId {
        self.sockets.push(Socket::new(rng, self.window_bytes_max));
        SocketId(self.sockets.len() as i32 - 1)
    }

    pub fn socket(&mut self, id: SocketId) -> &mut Socket {
        &mut self.sockets[id.0 as usize]
    }

    /// After the effects of a turn.
    pub fn check_ends(&mut self) {
        for SocketId(id) in std::mem::take(&mut self.ends_due) {
            let socket = &self.sockets[id as usize];
            if !socket.closed && !socket.write_shut {
                self.complaints.push(format!("socket {id} was to end with its last send, and did not"));
            }
        }
    }

    fn send(&mut self, entry: &Outgoing<'_>, plant: Plant) -> Result<(usize, usize), i32> {
        let bytes: Vec<u8> = match entry.parts {
            Parts::One(bytes) => bytes.to_vec(),
            Parts::Many(parts) => parts.iter().map(|part| &**part).collect::<Vec<_>>().concat(),
        };
        assert!(!bytes.is_empty(), "a send of nothing");
        self.sends += 1;
        let (calm, short_percent, turn) = (self.calm, self.short_percent, self.sends.is_multiple_of(97));
        let socket = &mut self.sockets[entry.socket.0 as usize];
        if socket.closed || socket.write_shut {
            let state = if socket.closed { "closed" } else { "shut" };
            self.complaints.push(format!("{} bytes for socket {}, which is {state}", bytes.len(), entry.socket.0));
            return Err(EPIPE);
        }
        if socket.reset {
            return Err(ECONNRESET);
        }
        let window = if calm { socket.window.max(CALM_WINDOW_BYTES) } else { socket.window };
        let room = window.saturating_sub(socket.unread());
        let mut taken = bytes.len().min(room);
        if !calm && socket.rng.chance(short_percent) {
            taken = socket.rng.below(taken + 1);
        }
        socket.awaits_room = taken < bytes.len();
        socket.was_full |= socket.awaits_room;
        let place = entry.socket.0 as usize;
        if entry.is_last && taken == bytes.len() {
            self.ends_due.push(entry.socket);
        }
        match plant {
            Plant::WrongSocket if turn => self.arrive((place + 1) % self.sockets.len(), &bytes[..taken]),
            Plant::Duplicates if turn => {
                self.arrive(place, &bytes[..taken]);
                self.arrive(place, &bytes[taken / 2..taken]);
            }
            _ => self.arrive(place, &bytes[..taken]),
        }
        Ok((taken, bytes.len()))
    }

    fn arrive(&mut self, place: usize, bytes: &[u8]) {
        let socket = &mut self.sockets[place];
        let mut whole = Vec::new();
        if let Err(why) = socket.wire.take(bytes, &mut whole) {
            self.complaints.push(format!("client {place}: {why}"));
        }
        socket.sent += bytes.len() as u64;
        if !bytes.is_empty() {
            socket.began_ms.get_or_insert(self.now_ms);
        }
        for (behind, heard) in whole {
            if let Heard::Frame { payload, .. } = &heard
                && let Some(id) = super::payload::push_id(payload)
            {
                *self.left.entry(id).or_default() += 1;
            }
            let at_ms = std::mem::replace(&mut socket.began_ms, (behind > 0).then_some(self.now_ms));
            let at_ms = at_ms.unwrap_or(self.now_ms);
            socket.in_flight.push_back(InFlight { end: socket.sent - behind as u64, at_ms, heard });
        }
    }
}

/// The shards' door to the network.
pub struct MemoryFlush {
    pub network: Rc<RefCell<Network>>,
    pub plant: Plant,
}

impl Flush for MemoryFlush {
    fn send_all(&mut self, batch: &[Outgoing<'_>], short: &mut Vec<Short>) {
        let mut network = self.network.borrow_mut();
        for (index, entry) in batch.iter().enumerate() {
            assert!(batch[..index].iter().all(|other| other.socket != entry.socket), "a socket twice in a batch");
            match network.send(entry, self.plant) {
                Err(errno) => short.push(Short { index, sent: Err(errno) }),
                Ok((taken, offered)) if taken == offered => {}
                Ok(_) if self.plant == Plant::LosesTail => {}
                Ok((taken, _)) => {
                    let again = usize::from(self.plant == Plant::SendsAgain && taken > 0);
                    short.push(Short { index, sent: Ok(taken - again) });
                }
            }
        }
    }
}
