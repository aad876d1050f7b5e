//! The sockets of one shard as the kernel has them: descriptors, its listeners, and one epoll set for all of them.
//!
//! Invariants: descriptors are owned here and closed here, and found by their number, which the kernel counts up from
//! 0; a descriptor leaves the epoll set by being closed.

use super::clock::Clock;
use super::epoll::{EpollEvents, ReadySet};
use super::listen::BACKLOG;
use super::sys;
use super::wake::WakeFd;
use crate::shard::command::CarriedSocket;
use crate::shard::flush::SocketId;
use crate::shard::turn::{Accepted, Readiness, SocketRead, Sockets};
use crate::shard::{ConnectionToken, ListenerKind, SocketEnd};
use std::io;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::time::Duration;

/// Readiness events taken from the kernel at a time.
const EVENTS_MAX: usize = 512;

/// How often it is said that there is no room: clients that come and go at the limit could fill the log.
const NO_ROOM_SAID_EVERY_MS: u64 = 60_000;

/// Tokens of what is no connection: generations start at 1.
const TOKEN_WAKE: u64 = 0;
const TOKEN_LISTENER: u64 = 1;

/// Where clients of one shard come in. At least one of them.
pub struct Listeners {
    /// Whose clients begin with HTTP.
    pub plain: Option<TcpListener>,
    /// Whose clients begin with TLS.
    pub tls: Option<TcpListener>,
}

/// See the module.
pub struct KernelSockets {
    listeners: Listeners,
    /// The one to look at first: each has its turn.
    tls_first: bool,
    ready: ReadySet,
    events: EpollEvents,
    /// The events are those of a wait, and have not been told.
    has_waited: bool,
    /// By number.
    sockets: Vec<Option<OwnedFd>>,
    clock: Clock,
    /// When it was last said that there is no descriptor for a client.
    no_room_said_ms: Option<u64>,
}

impl KernelSockets {
    /// Those that come through `listeners`. `wake` ends a wait for news.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn new(listeners: Listeners, wake: &WakeFd, clock: Clock) -> io::Result<Self> {
        let ready = ReadySet::new()?;
        ready.add_source(wake, TOKEN_WAKE)?;
        for listener in [&listeners.plain, &listeners.tls].into_iter().flatten() {
            ready.add_listener(listener, TOKEN_LISTENER)?;
        }
        Ok(Self {
            listeners,
            tls_first: false,
            ready,
            events: EpollEvents::with_capacity(EVENTS_MAX),
            has_waited: false,
            sockets: Vec::new(),
            clock,
            no_room_said_ms: None,
        })
    }

    /// Has a thread with nothing to do wait for news, for `timeout` at most. The next poll tells them.
    ///
    /// # Errors
    /// None that a valid set can have.
    pub fn wait(&mut self, timeout: Duration) -> io::Result<()> {
        self.ready.wait(&mut self.events, timeout)?;
        self.has_waited = true;
        Ok(())
    }

    fn socket(&self, id: SocketId) -> Option<&OwnedFd> {
        self.sockets.get(id.0 as usize)?.as_ref()
    }

    fn keep(&mut self, socket: OwnedFd) -> SocketId {
        let id = sys::socket_id(&socket);
        let place = id.0 as usize;
        if self.sockets.len() <= place {
            self.sockets.resize_with(place + 1, || None);
        }
        self.sockets[place] = Some(socket);
        id
    }

    fn accept_at(&mut self, over_tls: bool) -> io::Result<Accepted> {
        let listener = if over_tls { &self.listeners.tls } else { &self.listeners.plain };
        let Some(listener) = listener else { return Ok(Accepted::Nobody) };
        let kind = if over_tls { ListenerKind::Tls } else { ListenerKind::Plain };
        Ok(match sys::accept(listener)? {
            sys::AcceptOutcome::Client(socket, peer) => Accepted::Client(self.keep(socket), peer, kind),
            sys::AcceptOutcome::Gone => Accepted::Gone,
            sys::AcceptOutcome::Nobody => Accepted::Nobody,
            sys::AcceptOutcome::NoRoom(error) => {
                self.say_no_room(&error);
                Accepted::NoRoom
            }
        })
    }

    fn say_no_room(&mut self, error: &io::Error) {
        let now_ms = self.clock.now_ms();
        if self.no_room_said_ms.is_none_or(|said_ms| now_ms >= said_ms + NO_ROOM_SAID_EVERY_MS) {
            self.no_room_said_ms = Some(now_ms);
            tracing::warn!(%error, backlog = BACKLOG, "no room for more clients; they wait in the backlog");
        }
    }
}

impl Sockets for KernelSockets {
    type Error = io::Error;

    fn poll(&mut self, news: &mut Vec<Readiness>) -> io::Result<bool> {
        // The wait returned the events that ended it.
        if !std::mem::take(&mut self.has_waited) {
            self.ready.poll(&mut self.events)?;
        }
        news.extend(self.events.iter().filter_map(|event| match event.token {
            TOKEN_WAKE => None,
            TOKEN_LISTENER => Some(Readiness::Listener),
            token => Some(Readiness::Connection {
                token: ConnectionToken::from_u64(token),
                readable: event.readable,
                writable: event.writable,
                end: if event.broken { Some(SocketEnd::Broken) } else { event.hangup.then_some(SocketEnd::Finished) },
            }),
        }));
        Ok(self.events.is_full())
    }

    fn accept(&mut self) -> io::Result<Accepted> {
        self.tls_first = !self.tls_first;
        match self.accept_at(self.tls_first)? {
            Accepted::Nobody => self.accept_at(!self.tls_first),
            accepted => Ok(accepted),
        }
    }

    fn watch(&mut self, socket: SocketId, token: ConnectionToken) -> bool {
        let Some(descriptor) = self.socket(socket) else { return false };
        match self.ready.add(descriptor, token.to_u64()) {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(%error, "a client was disconnected: its socket cannot be watched");
                false
            }
        }
    }

    fn watch_anew(&mut self, socket: SocketId, token: ConnectionToken) -> bool {
        if let Some(descriptor) = self.socket(socket) {
            // One that comes from another shard is in no set yet.
            let _ = self.ready.remove(descriptor);
        }
        self.watch(socket, token)
    }

    fn read(&mut self, socket: SocketId, buffer: &mut [u8]) -> SocketRead {
        let Some(socket) = self.socket(socket) else { return SocketRead::End(SocketEnd::Broken) };
        match sys::receive(socket, buffer) {
            Ok(sys::ReadOutcome::Bytes(count)) => SocketRead::Bytes(count),
            Ok(sys::ReadOutcome::Nothing) => SocketRead::Nothing,
            Ok(sys::ReadOutcome::End) => SocketRead::End(SocketEnd::Finished),
            Err(_) => SocketRead::End(SocketEnd::Broken),
        }
    }

    fn shutdown_write(&mut self, socket: SocketId) {
        if let Some(socket) = self.socket(socket) {
            // The peer may have gone already; the next read finds that out.
            let _ = sys::shutdown_write(socket);
        }
    }

    fn close(&mut self, SocketId(number): SocketId) {
        drop(self.sockets[number as usize].take());
    }

    fn release(&mut self, SocketId(number): SocketId) -> Option<CarriedSocket> {
        let socket = self.sockets.get_mut(number as usize)?.take()?;
        // It stays open, so it must leave the set by name.
        self.ready.remove(&socket).ok()?;
        Some(CarriedSocket(Box::new(socket)))
    }

    fn adopt(&mut self, carried: CarriedSocket) -> Option<SocketId> {
        let socket: Box<OwnedFd> = carried.0.downcast().ok()?;
        Some(self.keep(*socket))
    }

    fn stop_listening(&mut self) {
        self.listeners = Listeners { plain: None, tls: None };
    }
}
