//! The loop over all connections: starts them, waits for epoll, reads, answers, closes.

use std::io::{self, ErrorKind};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::frame::{MaskKeys, Opcode};
use super::handler::{Closure, Handler};
use super::handshake;
use super::slot::{Context, Phase, Slot, SlotState};
use super::target::Target;
use super::tls::Tls;
use crate::sys::{self, Epoll, EventBuffer};

/// One read takes at most this much; large enough that a read rarely has to be repeated, small enough for the L2 cache.
const READ_BUFFER_BYTES: usize = 128 * 1024;

/// Events of one epoll wait.
const EVENTS_MAX: usize = 1024;

/// How many connections may be on their way to open at a time, well under any listen backlog.
pub(crate) const CONNECTING_MAX: usize = 256;

/// How a connection is closed from our side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CloseHow {
    /// The TCP connection ends without a close frame.
    Tcp,
    /// The TCP connection is reset.
    Reset,
    /// A close frame with 1000; the socket stays until the server has answered and ended it.
    Handshake,
}

/// Whether the loop waits in the kernel or asks again and again. Spinning costs the server no wake-ups, which is how
/// its own costs are measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pace {
    /// Ask again and again.
    Spin,
    /// Wait in the kernel.
    Block,
}

/// All connections of one thread.
pub(crate) struct Engine {
    epoll: Epoll,
    events: EventBuffer,
    buffer: Box<[u8]>,
    slots: Vec<Option<Slot>>,
    target: Target,
    request: Vec<u8>,
    /// The text after the target's path, by client.
    tail: Option<Box<dyn Fn(usize) -> String>>,
    masks: MaskKeys,
    pace: Pace,
    connecting: usize,
    open: usize,
    resumed: u64,
    busy_ns: u64,
}

impl Engine {
    /// An engine without connections.
    pub(crate) fn new(target: Target, pace: Pace) -> io::Result<Self> {
        Ok(Self {
            epoll: Epoll::new()?,
            events: EventBuffer::new(EVENTS_MAX),
            buffer: vec![0; READ_BUFFER_BYTES].into_boxed_slice(),
            slots: Vec::new(),
            request: target.request(""),
            tail: None,
            target,
            masks: MaskKeys::new(sys::now_ns()),
            pace,
            connecting: 0,
            open: 0,
            resumed: 0,
            busy_ns: 0,
        })
    }

    /// Has each client ask for a path of its own: the target's, followed by what `tail` gives for its number.
    pub(crate) fn with_tails(self, tail: impl Fn(usize) -> String + 'static) -> Self {
        Self { tail: Some(Box::new(tail)), ..self }
    }

    /// Returns whether client `client` has a socket.
    pub(crate) fn is_alive(&self, client: usize) -> bool {
        self.slots.get(client).is_some_and(Option::is_some)
    }

    /// Returns whether client `client` is upgraded (and registered, where asked for) and not closing.
    pub(crate) fn is_open(&self, client: usize) -> bool {
        matches!(self.slots.get(client), Some(Some(slot)) if slot.phase == Phase::Open)
    }

    /// Time spent with work at hand so far, in nanoseconds; the rest was waiting for the server.
    pub(crate) fn busy_ns(&self) -> u64 {
        self.busy_ns
    }

    /// How many connections have resumed a TLS session so far.
    pub(crate) fn resumed(&self) -> u64 {
        self.resumed
    }

    /// Starts connection number `client`, which must not be alive. `receive_buffer_bytes` bounds what the kernel takes
    /// for a client that does not read.
    pub(crate) fn start(&mut self, client: usize, receive_buffer_bytes: Option<usize>) -> io::Result<()> {
        assert!(!self.is_alive(client), "client {client} is already connected");
        let socket = Socket::new(Domain::for_address(self.target.address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_nonblocking(true)?;
        socket.set_tcp_nodelay(true)?;
        if let Some(bytes) = receive_buffer_bytes {
            socket.set_recv_buffer_size(bytes)?;
        }
        if let Some(source) = self.target.source(client) {
            sys::bind_address_no_port(&socket)?;
            socket.bind(&source.into())?;
        }
        match socket.connect(&self.target.address.into()) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
            Err(error) => return Err(error),
        }
        let stream = TcpStream::from(socket);
        let tls = self.target.tls.as_ref().map(Tls::session).transpose()?;
        self.epoll.add_edge(stream.as_fd(), client as u64)?;
        if self.slots.len() <= client {
            self.slots.resize_with(client + 1, || None);
        }
        if let Some(tail) = &self.tail {
            self.request = self.target.request(&tail(client));
        }
        self.slots[client] = Some(Slot::new(stream, &self.request, tls));
        self.connecting += 1;
        Ok(())
    }

    /// The same, where the client offers these subprotocols.
    pub(crate) fn start_offering(&mut self, client: usize, protocols: &str) -> io::Result<()> {
        self.request = handshake::request_offering(&self.target.host, &self.target.path, protocols);
        self.start(client, None)
    }

    /// Queues a Binary message of client `client`; false when it is not open. [`Engine::flush`] sends it.
    pub(crate) fn send(&mut self, client: usize, payload: &[u8]) -> bool {
        self.send_as(client, Opcode::Binary, payload)
    }

    /// The same, for a message of another kind.
    pub(crate) fn send_as(&mut self, client: usize, opcode: Opcode, payload: &[u8]) -> bool {
        match self.slots.get_mut(client) {
            Some(Some(slot)) if slot.phase == Phase::Open => {
                slot.queue(opcode, payload, &mut self.masks);
                true
            }
            _ => false,
        }
    }

    /// Sends what client `client` has queued, as far as its socket takes it.
    pub(crate) fn flush(&mut self, client: usize, handler: &mut impl Handler) {
        let Some(Some(slot)) = self.slots.get_mut(client) else { return };
        if let Err(error) = slot.flush() {
            let fate = slot.end(error.to_string());
            self.settle(client, Phase::Open, fate, handler);
        }
    }

    /// Stops or resumes reading of client `client`. Resuming reads at once what has come meanwhile.
    pub(crate) fn set_paused(&mut self, client: usize, paused: bool, handler: &mut impl Handler) {
        let Some(Some(slot)) = self.slots.get_mut(client) else { return };
        slot.paused = paused;
        if !paused && std::mem::take(&mut slot.ready_while_paused) {
            self.read(client, true, handler);
        }
    }

    /// Closes client `client`, if it is alive.
    pub(crate) fn close(&mut self, client: usize, how: CloseHow) -> io::Result<()> {
        let Some(place) = self.slots.get_mut(client) else { return Ok(()) };
        let Some(slot) = place else { return Ok(()) };
        if how == CloseHow::Handshake && slot.phase == Phase::Open {
            slot.queue(Opcode::Close, &1000u16.to_be_bytes(), &mut self.masks);
            slot.phase = Phase::Closing;
            self.open -= 1;
            return slot.flush();
        }
        if how == CloseHow::Reset {
            SockRef::from(&slot.stream).set_linger(Some(Duration::ZERO))?;
        }
        if how == CloseHow::Tcp && slot.phase == Phase::Open {
            slot.say_goodbye();
        }
        match slot.phase {
            Phase::Open => self.open -= 1,
            Phase::Closing => {}
            Phase::Connecting | Phase::Upgrading | Phase::Registering => self.connecting -= 1,
        }
        *place = None;
        Ok(())
    }

    /// Handles what is ready, waiting up to `timeout_ms` if nothing is and the pace allows it. Returns how many
    /// connections were handled.
    pub(crate) fn poll(&mut self, timeout_ms: i32, handler: &mut impl Handler) -> io::Result<usize> {
        self.poll_blocking(if self.pace == Pace::Spin { 0 } else { timeout_ms }, handler)
    }

    /// Like [`Engine::poll`], but waits whatever the pace.
    pub(crate) fn poll_blocking(&mut self, timeout_ms: i32, handler: &mut impl Handler) -> io::Result<usize> {
        let count = self.epoll.wait(&mut self.events, timeout_ms)?;
        if count == 0 {
            return Ok(0);
        }
        let start_ns = sys::now_ns();
        for index in 0..count {
            let ready = self.events.get(index);
            self.handle(ready, handler);
        }
        self.busy_ns += sys::now_ns() - start_ns;
        Ok(count)
    }

    fn handle(&mut self, ready: sys::Ready, handler: &mut impl Handler) {
        let client = ready.token as usize;
        let Some(Some(slot)) = self.slots.get_mut(client) else { return };
        let before = slot.phase;
        if before == Phase::Connecting {
            match slot.stream.take_error() {
                Ok(None) if ready.writable => slot.phase = Phase::Upgrading,
                Ok(None) => return,
                Ok(Some(error)) | Err(error) => {
                    let fate = SlotState::Ended(Closure::because(format!("connect: {error}")), false);
                    return self.settle(client, before, fate, handler);
                }
            }
        }
        if ready.writable
            && slot.has_output()
            && let Err(error) = slot.flush()
        {
            let fate = slot.end(error.to_string());
            return self.settle(client, before, fate, handler);
        }
        if slot.paused {
            slot.ready_while_paused = true;
            return;
        }
        self.read(client, ready.ended, handler);
    }

    fn read(&mut self, client: usize, ended: bool, handler: &mut impl Handler) {
        let Some(Some(slot)) = self.slots.get_mut(client) else { return };
        let before = slot.phase;
        let mut context = Context { masks: &mut self.masks, registration: self.target.registration.as_ref() };
        let fate = slot.read_all(ended, &mut self.buffer, &mut context, client, handler);
        self.settle(client, before, fate, handler);
    }

    /// Keeps the counts after client `client`, which was in phase `before`, was handled.
    fn settle(&mut self, client: usize, before: Phase, fate: SlotState, handler: &mut impl Handler) {
        let Some(Some(slot)) = self.slots.get(client) else { return };
        let was_connecting = !matches!(before, Phase::Open | Phase::Closing);
        let is_connecting = !matches!(slot.phase, Phase::Open | Phase::Closing);
        if was_connecting && !is_connecting {
            self.connecting -= 1;
            self.open += 1;
            self.resumed += u64::from(slot.is_resumed());
        }
        let SlotState::Ended(closure, asked) = fate else { return };
        match slot.phase {
            Phase::Open => self.open -= 1,
            Phase::Closing => {}
            _ => self.connecting -= 1,
        }
        self.slots[client] = None;
        if !asked {
            handler.closed(client, &closure);
        }
    }

    /// Starts clients `first..first + count` and polls until all are open, at most [`CONNECTING_MAX`] on their way at a
    /// time. `receive_buffer_bytes` is asked for each. Fails when nothing moves for `patience`.
    pub(crate) fn connect_all(
        &mut self,
        first: usize,
        count: usize,
        patience: Duration,
        receive_buffer_bytes: impl Fn(usize) -> Option<usize>,
        handler: &mut impl Handler,
        mut progress: impl FnMut(usize),
    ) -> anyhow::Result<()> {
        let end = first + count;
        let open_before = self.open;
        let mut next = first;
        let mut moved_ns = sys::now_ns();
        while next < end || self.connecting > 0 {
            while next < end && self.connecting < CONNECTING_MAX {
                self.start(next, receive_buffer_bytes(next)).map_err(|error| explain_connect(next, &error))?;
                next += 1;
            }
            if self.poll(100, handler)? > 0 {
                moved_ns = sys::now_ns();
            } else if sys::now_ns() - moved_ns > patience.as_nanos() as u64 {
                anyhow::bail!("{} connections neither opened nor failed within {patience:?}", self.connecting);
            }
            progress(self.open - open_before);
        }
        Ok(())
    }
}

fn explain_connect(client: usize, error: &io::Error) -> anyhow::Error {
    let hint = match (error.raw_os_error(), error.kind()) {
        (Some(libc::EMFILE), _) => " (raise `ulimit -n`, or use more --processes)",
        (_, ErrorKind::AddrNotAvailable | ErrorKind::AddrInUse) => " (out of source ports: use more --sources)",
        _ => "",
    };
    anyhow::anyhow!("client {client}: connect: {error}{hint}")
}
