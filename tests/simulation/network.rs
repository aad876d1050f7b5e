//! The network in memory: sockets that take so much, short writes, resets, and bytes that arrive in pieces.

use super::plant::Plant;
use super::rng::Rng;
use super::sealed::Sealed;
use super::settings::Crowd;
use super::wire::{Heard, Wire};
use bytes::{Buf, BytesMut};
use pushring::internals::shard::flush::{Flush, OutgoingBytes, SendParts, ShortSend, SocketId};
use pushring::internals::shard::turn::{Accepted, Readiness, SocketRead};
use pushring::internals::shard::{ConnectionToken, ListenerKind, SocketEnd};
use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::rc::Rc;

const ECONNRESET: i32 = 104;
const EPIPE: i32 = 32;

/// The bytes that a client may have in flight to the shard.
const TO_SERVER_BYTES_MAX: usize = 64 * 1024;

/// The window of every socket once the faults have stopped.
const CALM_WINDOW_BYTES: usize = 64 * 1024;

/// A socket with a smaller one takes less than the largest queue in the shortest time for which an answer to a close
/// frame is waited: a window in each step at most, of which sends that are cut short leave two thirds.
const NARROW_WINDOW_BYTES: usize = 1_250;

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
    /// Its end of TLS, if it came over that.
    tls: Option<Sealed>,
    in_flight: VecDeque<InFlight>,
    /// When the first byte came of what is not whole yet: the rest may be long in coming where little room is.
    began_ms: Option<u64>,
    /// Bytes that the socket took, and those of them that the client has read.
    sent: u64,
    read: u64,
    /// When it last took the end of a response or a frame, and when the shard ended it.
    pub whole_ms: u64,
    pub ended_ms: Option<u64>,
    window: usize,
    rng: Rng,
    /// Bytes that the client has sent and the shard not read.
    pub to_server: BytesMut,
    /// The shard was told that the socket is full.
    pub awaits_room: bool,
    /// It was, at some time: from then on policies may have been applied.
    pub was_full: bool,
    pub client_finished: bool,
    pub reset: bool,
    pub write_shut: bool,
    pub closed: bool,
    peer: SocketAddr,
    /// Whose listener it came to, and since that has accepted it, how it calls it.
    port: usize,
    token: Option<ConnectionToken>,
    /// It stands in its port's list of news.
    is_news: bool,
    /// An edge was told, and it was not read in that turn: for [`Plant::ForgetsRead`].
    told_in_poll: Option<u64>,
    /// It counts as a connection.
    is_counted: bool,
}

impl Socket {
    fn new(mut rng: Rng, window_bytes_max: usize, port: usize, peer: SocketAddr) -> Self {
        Self {
            wire: Wire::default(),
            tls: None,
            in_flight: VecDeque::new(),
            began_ms: None,
            sent: 0,
            read: 0,
            whole_ms: 0,
            ended_ms: None,
            window: rng.between(64, window_bytes_max),
            rng,
            to_server: BytesMut::new(),
            awaits_room: false,
            was_full: false,
            client_finished: false,
            reset: false,
            write_shut: false,
            closed: false,
            peer,
            port,
            token: None,
            is_news: false,
            told_in_poll: None,
            is_counted: false,
        }
    }

    fn unread(&self) -> usize {
        (self.sent - self.read) as usize
    }

    /// Returns whether the client may be slow to get what waits for it, however fast it reads.
    pub fn is_narrow(&self) -> bool {
        self.window < NARROW_WINDOW_BYTES
    }

    /// Returns whether a client that waits for bytes would be told of the end instead.
    pub fn is_at_end(&self) -> bool {
        self.unread() == 0 && (self.write_shut || self.closed)
    }

    /// The bytes that the client may send now.
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
    fn is_writable(&self) -> bool {
        self.reset || self.unread() <= self.window / 2
    }

    /// That is news for a shard that was told that it is full.
    pub fn takes_bytes_again(&self) -> bool {
        self.awaits_room && self.is_writable()
    }

    /// Nothing more arrives, and what was on its way is lost.
    pub fn cut(&mut self) {
        self.reset = true;
        self.in_flight.clear();
        self.read = self.sent;
        self.to_server.clear();
    }

    /// The shard closes it. Unread bytes of the client cause a reset, which destroys what the client did not read.
    fn close(&mut self, now_ms: u64) {
        self.closed = true;
        self.ended_ms.get_or_insert(now_ms);
        self.token = None;
        if !self.to_server.is_empty() {
            self.cut();
        }
    }

    /// Bytes of something that the client did not get whole.
    pub fn unfinished(&self) -> usize {
        self.wire.unfinished() + self.tls.as_ref().map_or(0, Sealed::unfinished)
    }

    /// The client sends these bytes.
    pub fn send(&mut self, bytes: &[u8]) {
        match &mut self.tls {
            None => self.to_server.extend_from_slice(bytes),
            Some(tls) => self.to_server.extend_from_slice(&tls.seal(bytes)),
        }
    }

    /// The client sends nothing more, and over TLS says so now and then.
    pub fn finish(&mut self) {
        if let Some(tls) = &mut self.tls
            && self.sent.is_multiple_of(2)
            && !self.closed
            && !self.reset
        {
            self.to_server.extend_from_slice(&tls.goodbye());
        }
        self.client_finished = true;
    }

    /// The shard has shut its side. Returns what is wrong with that.
    pub fn shut_write(&mut self, now_ms: u64) -> Option<&'static str> {
        self.write_shut = true;
        self.ended_ms.get_or_insert(now_ms);
        let tls = self.tls.as_ref().filter(|_| !self.reset)?;
        (!tls.has_ended()).then_some("the writing side was shut without close_notify")
    }
}

/// The state of one shard's listener and its set of watched sockets.
pub struct Port {
    rng: Rng,
    backlog: VecDeque<SocketId>,
    /// Clients have come since that was last told.
    has_arrivals: bool,
    pub is_shut: bool,
    /// Sockets with news, each once.
    news: VecDeque<SocketId>,
    polls: u64,
}

impl Port {
    pub fn new(rng: Rng) -> Self {
        Self { rng, backlog: VecDeque::new(), has_arrivals: false, is_shut: false, news: VecDeque::new(), polls: 0 }
    }
}

/// The fate of an accepted client.
#[derive(Debug, Clone, Copy)]
pub struct Admitted {
    pub socket: SocketId,
    /// There were too many.
    pub is_over: bool,
    /// It was closed without a word.
    pub is_let_go: bool,
}

#[derive(Default)]
pub struct Network {
    pub sockets: Vec<Socket>,
    pub ports: Vec<Port>,
    /// How many news a poll tells at most, and of 100 clients so many find no descriptor at first.
    pub events_max: usize,
    pub no_room_percent: usize,
    /// Of 100 clients so many come over TLS.
    pub tls_percent: usize,
    pub crowd: Option<Crowd>,
    /// The client that was accepted last, until it is watched or closed, and whether it was one too many.
    pub accepting: Option<(SocketId, bool)>,
    /// Clients accepted since this was last taken.
    pub admitted: Vec<Admitted>,
    /// In 10,000 sends so many meet a client that resets its connection at that moment.
    pub reset_in_batch: usize,
    /// Those that did.
    pub resets: Vec<SocketId>,
    /// Actions of the shards that no socket allows, or no client understands.
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
    pub fn open(&mut self, rng: Rng, port: usize, peer: SocketAddr) -> SocketId {
        let number = self.sockets.len();
        let mut socket = Socket::new(rng, self.window_bytes_max, port, peer);
        socket.tls = (number * 37 % 100 < self.tls_percent).then(|| Sealed::new(number));
        self.sockets.push(socket);
        SocketId(number as i32)
    }

    /// The client of `socket` connects. Returns whether there is a listener.
    pub fn connect(&mut self, socket: SocketId) -> bool {
        let port = self.socket(socket).port;
        let port = &mut self.ports[port];
        if !port.is_shut {
            port.backlog.push_back(socket);
            port.has_arrivals = true;
        }
        !port.is_shut
    }

    /// Something has happened to `socket`.
    pub fn notify(&mut self, id: SocketId) {
        let socket = self.socket(id);
        if socket.token.is_some() && !std::mem::replace(&mut socket.is_news, true) {
            let port = socket.port;
            self.ports[port].news.push_back(id);
        }
    }

    /// Returns whether a shard that sleeps is woken.
    pub fn has_news(&self, port: usize) -> bool {
        !self.ports[port].news.is_empty() || self.ports[port].has_arrivals
    }

    /// As epoll does: an edge names the socket, and its report is its present state.
    pub fn poll(&mut self, port: usize, plant: Plant, news: &mut Vec<Readiness>) -> bool {
        let events_max = self.events_max;
        let Self { ports, sockets, .. } = self;
        let port = &mut ports[port];
        port.polls += 1;
        if std::mem::take(&mut port.has_arrivals) && !port.is_shut {
            news.push(Readiness::Listener);
        }
        while news.len() < events_max
            && let Some(id) = port.news.pop_front()
        {
            let socket = &mut sockets[id.0 as usize];
            socket.is_news = false;
            let Some(token) = socket.token else { continue };
            // Both sides have ended: nothing travels any more.
            let is_broken = socket.reset || (socket.client_finished && socket.write_shut);
            let end =
                if is_broken { Some(SocketEnd::Broken) } else { socket.client_finished.then_some(SocketEnd::Finished) };
            let readable = !socket.to_server.is_empty() || end.is_some();
            let end = end.filter(|_| plant != Plant::HidesHangups);
            let writable = socket.is_writable() && plant != Plant::ForgetsWritable;
            socket.told_in_poll = readable.then_some(port.polls);
            news.push(Readiness::Connection { token, readable, writable, end });
        }
        news.len() == events_max
    }

    pub fn accept(&mut self, port: usize) -> Accepted {
        let (calm, no_room_percent) = (self.calm, self.no_room_percent);
        let port = &mut self.ports[port];
        if port.backlog.is_empty() {
            return Accepted::Nobody;
        }
        if !calm && port.rng.chance(no_room_percent) {
            return Accepted::NoRoom;
        }
        let socket = port.backlog.pop_front().expect("it is not empty");
        if self.socket(socket).reset {
            self.socket(socket).closed = true;
            return Accepted::Gone;
        }
        let peer = self.socket(socket).peer;
        self.accepting = Some((socket, self.is_over_limit(peer)));
        let tls = self.socket(socket).tls.as_ref();
        let kind = tls.map_or(ListenerKind::Plain, |tls| ListenerKind::Established(Box::new(tls.of_the_shard())));
        Accepted::Client(socket, peer, kind)
    }

    fn is_over_limit(&self, peer: SocketAddr) -> bool {
        let Some(crowd) = self.crowd else { return false };
        let counted = self.sockets.iter().filter(|socket| socket.is_counted);
        let (all, of_ip) =
            counted.fold((0, 0), |(all, of_ip), socket| (all + 1, of_ip + usize::from(socket.peer.ip() == peer.ip())));
        all >= crowd.connections_max || (crowd.per_ip_max > 0 && of_ip >= crowd.per_ip_max as usize)
    }

    /// Those that count as connected.
    pub fn counted(&self) -> usize {
        self.sockets.iter().filter(|socket| socket.is_counted).count()
    }

    pub fn watch(&mut self, id: SocketId, token: ConnectionToken) {
        let Some((socket, is_over)) = self.accepting.take() else {
            return self.complaints.push(format!("socket {} is watched, and was not accepted", id.0));
        };
        assert_eq!(socket, id);
        self.socket(id).token = Some(token);
        self.socket(id).is_counted = !is_over;
        self.admitted.push(Admitted { socket, is_over, is_let_go: false });
        self.notify(id);
    }

    /// Only the bytes that are there: a short read has emptied the socket, and later bytes are a new edge.
    pub fn read(&mut self, id: SocketId, buffer: &mut [u8], plant: Plant) -> SocketRead {
        let polls = self.ports[self.sockets[id.0 as usize].port].polls;
        let socket = &mut self.sockets[id.0 as usize];
        if socket.closed {
            self.complaints.push(format!("socket {} is read, and is closed", id.0));
            return SocketRead::End(SocketEnd::Broken);
        }
        if plant == Plant::ForgetsRead && socket.told_in_poll.take().is_some_and(|told| told < polls) {
            return SocketRead::Nothing;
        }
        if socket.to_server.is_empty() {
            return match (socket.reset, socket.client_finished) {
                (true, _) => SocketRead::End(SocketEnd::Broken),
                (_, true) => SocketRead::End(SocketEnd::Finished),
                _ => SocketRead::Nothing,
            };
        }
        let len = socket.rng.between(1, 64 * 1024).min(socket.to_server.len()).min(buffer.len());
        socket.to_server.copy_to_slice(&mut buffer[..len]);
        let is_more = !socket.to_server.is_empty() && len < buffer.len();
        if is_more {
            // The rest has come just now.
            self.notify(id);
        }
        SocketRead::Bytes(len)
    }

    /// Its connection is gone, and makes room for another; the socket is closed in a later turn.
    pub fn let_go(&mut self, id: SocketId) {
        self.socket(id).is_counted = false;
    }

    pub fn close(&mut self, id: SocketId) {
        if let Some((socket, is_over)) = self.accepting.take() {
            assert_eq!(socket, id);
            self.admitted.push(Admitted { socket, is_over, is_let_go: true });
        }
        if self.socket(id).closed {
            self.complaints.push(format!("socket {} is closed twice", id.0));
        }
        let now_ms = self.now_ms;
        self.socket(id).close(now_ms);
        self.socket(id).is_counted = false;
    }

    pub fn stop_listening(&mut self, port: usize) {
        self.ports[port].is_shut = true;
        for id in std::mem::take(&mut self.ports[port].backlog) {
            self.socket(id).closed = true;
            self.socket(id).cut();
        }
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

    fn send(&mut self, entry: &OutgoingBytes<'_>, plant: Plant) -> Result<(usize, usize), i32> {
        let bytes: Vec<u8> = match entry.parts {
            SendParts::One(bytes) => bytes.to_vec(),
            SendParts::Many(parts) => parts.iter().map(|part| &**part).collect::<Vec<_>>().concat(),
        };
        assert!(!bytes.is_empty(), "a send of nothing");
        self.sends += 1;
        if !self.calm && self.sockets[entry.socket.0 as usize].rng.now_and_then(self.reset_in_batch) {
            self.sockets[entry.socket.0 as usize].cut();
            self.resets.push(entry.socket);
            self.notify(entry.socket);
        }
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
        let opened = match &mut socket.tls {
            None => Ok((bytes.to_vec(), 0)),
            Some(tls) => tls.open(bytes),
        };
        // The bytes of a record are readable once it is complete.
        let mut unopened = 0;
        let taken = opened.and_then(|(plain, rest)| {
            unopened = rest;
            socket.wire.take(&plain, &mut whole)
        });
        if let Err(why) = taken {
            self.complaints.push(format!("client {place}: {why}"));
        }
        let is_sealed = socket.tls.is_some();
        socket.sent += bytes.len() as u64;
        if !bytes.is_empty() {
            socket.began_ms.get_or_insert(self.now_ms);
        }
        for (behind, heard) in whole {
            socket.whole_ms = self.now_ms;
            if let Heard::Frame { payload, .. } = &heard
                && let Some(id) = super::payload::push_id(payload)
            {
                *self.left.entry(id).or_default() += 1;
            }
            let at_ms = std::mem::replace(&mut socket.began_ms, (behind > 0).then_some(self.now_ms));
            let at_ms = at_ms.unwrap_or(self.now_ms);
            let behind = if is_sealed { unopened } else { behind };
            socket.in_flight.push_back(InFlight { end: socket.sent - behind as u64, at_ms, heard });
        }
    }
}

/// The shards' side of the network.
pub struct MemoryFlush {
    pub network: Rc<RefCell<Network>>,
    pub plant: Plant,
}

impl Flush for MemoryFlush {
    fn send_all(&mut self, batch: &[OutgoingBytes<'_>], short: &mut Vec<ShortSend>) {
        let mut network = self.network.borrow_mut();
        for (index, entry) in batch.iter().enumerate() {
            assert!(batch[..index].iter().all(|other| other.socket != entry.socket), "a socket twice in a batch");
            match network.send(entry, self.plant) {
                Err(errno) => short.push(ShortSend { index, sent: Err(errno) }),
                Ok((taken, offered)) if taken == offered => {}
                Ok(_) if self.plant == Plant::LosesTail => {}
                Ok((taken, _)) => {
                    let again = usize::from(self.plant == Plant::SendsAgain && taken > 0);
                    short.push(ShortSend { index, sent: Ok(taken - again) });
                }
            }
        }
    }
}
