//! The clients that make trouble: those that come and go, those that read slowly, those that fall silent.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};

use serde::Serialize;

use crate::client::engine::{CloseHow, Pace};
use crate::client::{Closure, Engine, Handler, Message, Opcode, Outbox, Target, handshake};
use crate::payload::{STAMP_BYTES, Stamp};
use crate::sys;

/// Connections of the churn that are alive at a time.
const CHURN_SLOTS: usize = 256;

/// A connection of the churn that has not had its echo after this long is a fault.
const ECHO_MAX_NS: u64 = 10_000_000_000;

/// The share of the connections due that must have opened: with fewer, the soak was not what its settings say.
const CHURN_SHARE_MIN: f64 = 0.5;

/// Counts of the churn.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(crate) struct ChurnCounts {
    /// Connections that opened.
    pub opened: u64,
    /// Those that got their message back.
    pub echoed: u64,
    /// Ended by us with a FIN.
    pub fins: u64,
    /// Ended by us with a reset, half of them with the echo still on its way.
    pub resets: u64,
    /// Ended by a closing handshake.
    pub handshakes: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Free,
    Opening,
    Waiting,
    Echoed,
    Leaving,
}

#[derive(Debug)]
struct ChurningClients {
    stages: Vec<Stage>,
    since_ns: Vec<u64>,
    counts: ChurnCounts,
    faults: Vec<String>,
    /// Counts visits, and so decides how each ends.
    visit: Vec<u64>,
    payload: Vec<u8>,
}

/// How visit number `visit` ends: (how, before the echo).
fn ending(visit: u64) -> (CloseHow, bool) {
    match visit % 4 {
        0 => (CloseHow::Tcp, false),
        1 => (CloseHow::Reset, false),
        2 => (CloseHow::Handshake, false),
        _ => (CloseHow::Reset, true),
    }
}

/// More faults than these are not told one by one.
const FAULTS_MAX: usize = 10;

impl ChurningClients {
    fn fault(&mut self, text: String) {
        if self.faults.len() < FAULTS_MAX {
            self.faults.push(text);
        }
    }
}

impl Handler for ChurningClients {
    fn opened(&mut self, client: usize, outbox: &mut Outbox<'_>) {
        self.counts.opened += 1;
        self.stages[client] = Stage::Waiting;
        self.since_ns[client] = sys::now_ns();
        self.payload.clear();
        let stamp = Stamp { run: 0, client: client as u32, sequence: self.visit[client], time_ns: 0 };
        stamp.write(STAMP_BYTES + 40, &mut self.payload);
        outbox.send(Opcode::Binary, &self.payload);
    }

    fn message(&mut self, client: usize, message: &Message<'_>, _: u64, _: &mut Outbox<'_>) {
        if message.opcode == Opcode::Text {
            return;
        }
        let right = Stamp::read(message.head)
            .is_some_and(|stamp| stamp.client as usize == client && stamp.sequence == self.visit[client]);
        if right && message.uniform && self.stages[client] == Stage::Waiting {
            self.counts.echoed += 1;
            self.stages[client] = Stage::Echoed;
        } else {
            self.fault(format!("churn: client {client} got a message that is not its own"));
        }
    }

    fn closed(&mut self, client: usize, closure: &Closure) {
        if self.stages[client] != Stage::Leaving {
            self.fault(format!("churn: connection ended by the server: {}", closure.reason));
        }
        self.stages[client] = Stage::Free;
    }
}

/// Connections that open, send one message, get it back, and leave.
pub(super) struct Churn {
    engine: Engine,
    visitors: ChurningClients,
    interval_ns: f64,
    started: u64,
    start_ns: Option<u64>,
    last_ns: u64,
}

impl Churn {
    /// `rate` of them a second; 0 for none.
    pub(super) fn new(target: Target, rate: f64) -> anyhow::Result<Self> {
        let visitors = ChurningClients {
            stages: vec![Stage::Free; CHURN_SLOTS],
            since_ns: vec![0; CHURN_SLOTS],
            counts: ChurnCounts::default(),
            faults: Vec::new(),
            visit: vec![0; CHURN_SLOTS],
            payload: Vec::new(),
        };
        let interval_ns = if rate > 0.0 { 1e9 / rate } else { f64::INFINITY };
        Ok(Self {
            engine: Engine::new(target, Pace::Block)?,
            visitors,
            interval_ns,
            started: 0,
            start_ns: None,
            last_ns: 0,
        })
    }

    /// Starts due clients, handles ready ones, disconnects finished ones. Returns how much there was to do.
    pub(super) fn step(&mut self, now_ns: u64) -> anyhow::Result<usize> {
        let start_ns = *self.start_ns.get_or_insert(now_ns);
        self.last_ns = now_ns;
        let due = ((now_ns - start_ns) as f64 / self.interval_ns) as u64;
        while self.started < due {
            let Some(client) = self.visitors.stages.iter().position(|&stage| stage == Stage::Free) else { break };
            self.engine.start(client, None)?;
            self.visitors.stages[client] = Stage::Opening;
            self.visitors.since_ns[client] = now_ns;
            self.visitors.visit[client] = self.started;
            self.started += 1;
        }
        let handled = self.engine.poll(0, &mut self.visitors)?;
        self.send_away(now_ns)?;
        Ok(handled)
    }

    fn send_away(&mut self, now_ns: u64) -> anyhow::Result<()> {
        for client in 0..CHURN_SLOTS {
            let (how, early) = ending(self.visitors.visit[client]);
            let stage = self.visitors.stages[client];
            if stage == Stage::Echoed || (stage == Stage::Waiting && early) {
                match how {
                    CloseHow::Tcp => self.visitors.counts.fins += 1,
                    CloseHow::Reset => self.visitors.counts.resets += 1,
                    CloseHow::Handshake => self.visitors.counts.handshakes += 1,
                }
                self.visitors.stages[client] = Stage::Leaving;
                self.engine.close(client, how)?;
            }
            if self.visitors.stages[client] == Stage::Leaving && !self.engine.is_alive(client) {
                self.visitors.stages[client] = Stage::Free;
            }
            let late = now_ns.saturating_sub(self.visitors.since_ns[client]) > ECHO_MAX_NS;
            if late && !matches!(stage, Stage::Free | Stage::Echoed) {
                self.visitors.fault(format!("churn: client {client} stayed in {stage:?} for over 10 s"));
                self.engine.close(client, CloseHow::Reset)?;
                self.visitors.stages[client] = Stage::Free;
            }
        }
        Ok(())
    }

    /// Ends those still there; the counts and the faults.
    pub(super) fn finish(mut self) -> anyhow::Result<(ChurnCounts, Vec<String>)> {
        for client in 0..CHURN_SLOTS {
            self.engine.close(client, CloseHow::Tcp)?;
        }
        let due = self.start_ns.map_or(0.0, |start_ns| (self.last_ns - start_ns) as f64 / self.interval_ns);
        let opened = self.visitors.counts.opened;
        if (opened as f64) < due * CHURN_SHARE_MIN {
            self.visitors.fault(format!("churn: only {opened} of {due:.0} connections opened"));
        }
        Ok((self.visitors.counts, self.visitors.faults))
    }
}

#[derive(Debug, Default)]
struct SlowHandler {
    closed: u64,
    lost: Vec<usize>,
}

impl Handler for SlowHandler {
    fn message(&mut self, _: usize, _: &Message<'_>, _: u64, _: &mut Outbox<'_>) {}

    fn closed(&mut self, client: usize, _: &Closure) {
        self.closed += 1;
        self.lost.push(client);
    }
}

/// Clients that read for a tenth of the time, each from a small receive buffer.
pub(super) struct SlowReaders {
    engine: Engine,
    reluctant: SlowHandler,
    clients: usize,
    turn_ns: u64,
    turn: u64,
}

const SLOW_TURN_NS: u64 = 200_000_000;
const SLOW_BUFFER_BYTES: usize = 4096;

impl SlowReaders {
    /// `clients` of them.
    pub(super) fn new(target: Target, clients: usize) -> anyhow::Result<Self> {
        let reluctant = SlowHandler { closed: 0, lost: (0..clients).collect() };
        Ok(Self { engine: Engine::new(target, Pace::Block)?, reluctant, clients, turn_ns: 0, turn: 0 })
    }

    /// Every turn another tenth may read. Returns how much there was to do.
    pub(super) fn step(&mut self, now_ns: u64) -> anyhow::Result<usize> {
        if now_ns >= self.turn_ns {
            self.turn_ns = now_ns + SLOW_TURN_NS;
            self.turn += 1;
            for client in std::mem::take(&mut self.reluctant.lost) {
                self.engine.start(client, Some(SLOW_BUFFER_BYTES))?;
            }
            for client in 0..self.clients {
                let reads = client as u64 % 10 == self.turn % 10;
                // Clients that are not open yet must read in order to become so.
                let paused = !reads && self.engine.is_open(client);
                self.engine.set_paused(client, paused, &mut self.reluctant);
            }
        }
        Ok(self.engine.poll(0, &mut self.reluctant)?)
    }

    /// Ends them; how many the server had closed.
    pub(super) fn finish(mut self) -> anyhow::Result<u64> {
        for client in 0..self.clients {
            self.engine.close(client, CloseHow::Reset)?;
        }
        Ok(self.reluctant.closed)
    }
}

/// Connections that say something and then nothing more, whatever they are asked. They read, so that the server cannot
/// tell them from lively ones but by their silence. It closes them; they come again.
pub(super) struct SilentClients {
    address: SocketAddr,
    /// All that each of them ever says.
    words: Vec<u8>,
    streams: Vec<Option<(TcpStream, u64)>>,
    closed: u64,
    cursor: usize,
    /// The longest that the server may take to close one, in nanoseconds; 0: for ever.
    life_max_ns: u64,
    longest_ns: u64,
}

impl SilentClients {
    /// `count` connections that send half of an upgrade request.
    pub(super) fn half_open(target: &Target, count: usize, life_max_s: u64) -> Self {
        let mut words = handshake::request(&target.host, &target.path);
        words.truncate(words.len() / 2);
        Self::new(target, words, count, life_max_s)
    }

    /// `count` connections that open a channel and then answer no ping.
    pub(super) fn silent(target: &Target, count: usize, life_max_s: u64) -> Self {
        Self::new(target, handshake::request(&target.host, &target.path), count, life_max_s)
    }

    fn new(target: &Target, words: Vec<u8>, count: usize, life_max_s: u64) -> Self {
        let streams = (0..count).map(|_| None).collect();
        let life_max_ns = life_max_s * 1_000_000_000;
        Self { address: target.address, words, streams, closed: 0, cursor: 0, life_max_ns, longest_ns: 0 }
    }

    /// Looks after one of them.
    pub(super) fn step(&mut self, now_ns: u64) -> anyhow::Result<()> {
        if self.streams.is_empty() {
            return Ok(());
        }
        self.cursor = (self.cursor + 1) % self.streams.len();
        let place = &mut self.streams[self.cursor];
        match place {
            None => {
                let mut stream = TcpStream::connect(self.address)?;
                stream.set_nonblocking(true)?;
                stream.write_all(&self.words)?;
                *place = Some((stream, now_ns));
            }
            Some((stream, since_ns)) => {
                self.longest_ns = self.longest_ns.max(now_ns.saturating_sub(*since_ns));
                let ended = match stream.read(&mut [0; 1024]) {
                    Ok(count) => count == 0,
                    Err(error) => error.kind() != ErrorKind::WouldBlock,
                };
                if ended {
                    self.closed += 1;
                    *place = None;
                }
            }
        }
        Ok(())
    }

    /// Ends them. How many the server had closed, and the fault if one of them lived for too long.
    pub(super) fn finish(self, who: &str) -> (u64, Option<String>) {
        let lived_s = self.longest_ns / 1_000_000_000;
        let is_late = self.life_max_ns > 0 && self.longest_ns > self.life_max_ns;
        let fault = is_late.then(|| format!("{who}: one was still there after {lived_s} s"));
        (self.closed, fault)
    }
}
