//! Rooms: clients in many small groups; a message of one member goes to the others of its room. With a window of
//! messages in flight over all rooms, or at a fixed rate; beside members that read slowly, and others that come and go.
//!
//! Invariants: in each room one member sends and the others receive, each every message once. Slow members and visitors
//! are neither counted nor waited for, but cost the server what they cost.

use anyhow::bail;
use clap::Args;
use serde::Serialize;

use super::tally::{MeasuredRun, Tally};
use super::{parse_amount, parse_positive, parse_size};
use crate::bench::Bench;
use crate::client::engine::CloseHow;
use crate::client::{Closure, Engine, Handler, Message, Opcode, Outbox};
use crate::progress::Progress;
use crate::random::Random;
use crate::report::Report;
use crate::sys;

/// The process of the demo that sends each message to every other channel with the same path.
pub(crate) const ROOMS: &str = "rooms:pushring:sys";

/// Settings of `rooms`.
#[derive(Debug, Clone, Args, Serialize)]
pub(crate) struct Settings {
    /// Members of all rooms.
    #[arg(long, default_value_t = 1000)]
    pub clients: usize,
    /// Members of a room.
    #[arg(long, default_value_t = 10)]
    pub room: usize,
    /// Bytes of a message.
    #[arg(long, default_value = "128", value_parser = parse_size)]
    pub size: usize,
    /// Messages in flight, over all rooms.
    #[arg(long, default_value_t = 1)]
    pub in_flight: u64,
    /// A fixed rate instead of a window: messages a second over all rooms.
    #[arg(long, conflicts_with = "in_flight", value_parser = parse_positive)]
    pub rate: Option<f64>,
    /// Additional members that read only five times a second, in percent of --clients.
    #[arg(long, default_value_t = 0.0, value_parser = parse_amount)]
    pub slow_percent: f64,
    /// Clients per second that join a room and leave it a second later.
    #[arg(long, default_value_t = 0.0, value_parser = parse_amount)]
    pub joins: f64,
    /// For how long, in seconds.
    #[arg(long, default_value_t = 5.0, value_parser = parse_positive)]
    pub seconds: f64,
}

/// How long a visitor stays, and how often a slow member reads.
const VISIT_NS: u64 = 1_000_000_000;
const SLOW_READ_NS: u64 = 200_000_000;

/// The roles of clients: `0..receivers` are counted, then come the senders, one of each room, the slow ones, the
/// visitors.
#[derive(Debug, Clone, Copy)]
struct Roles {
    rooms: usize,
    receivers: usize,
    slow: usize,
}

impl Roles {
    fn new(settings: &Settings) -> Self {
        let rooms = settings.clients / settings.room;
        let slow = (settings.clients as f64 * settings.slow_percent / 100.0).round() as usize;
        Self { rooms, receivers: rooms * (settings.room - 1), slow }
    }

    fn sender_of(&self, room: usize) -> usize {
        self.receivers + room
    }

    fn first_slow(&self) -> usize {
        self.receivers + self.rooms
    }

    fn first_visitor(&self) -> usize {
        self.first_slow() + self.slow
    }

    fn room_of(&self, client: usize) -> usize {
        match client.checked_sub(self.receivers) {
            None => client / (self.receivers / self.rooms),
            Some(further) => further % self.rooms,
        }
    }
}

struct Members {
    tally: Tally,
    cast: Roles,
}

impl Handler for Members {
    fn message(&mut self, client: usize, message: &Message<'_>, received_ns: u64, _outbox: &mut Outbox<'_>) {
        // Text is what a server says by itself.
        if message.opcode != Opcode::Text && client < self.cast.receivers {
            self.tally.take(client, message, received_ns);
        }
    }

    fn closed(&mut self, client: usize, closure: &Closure) {
        if client < self.cast.first_slow() {
            self.tally.accounting.note_closure(client, &closure.reason);
        }
    }
}

/// Runs `rooms`.
pub(crate) fn run(bench: &mut Bench, settings: &Settings) -> anyhow::Result<Report> {
    if settings.room < 2 || settings.clients < settings.room || settings.in_flight == 0 {
        bail!("--room must be at least 2, --clients at least --room, --in-flight at least 1");
    }
    if bench.behaviour.token.is_some() {
        bail!("rooms are paths: --registered channels have none");
    }
    let behaviour = &bench.behaviour;
    let cast = Roles::new(settings);
    let target = bench.server.target(ROOMS, behaviour)?;
    let mut engine =
        Engine::new(target, behaviour.pace)?.with_tails(move |client| format!("r{}", cast.room_of(client)));
    let mut members = Members { tally: Tally::of_groups(cast.rooms, settings.room - 1, settings.size), cast };
    engine.connect_all(0, cast.first_visitor(), behaviour.patience, |_| None, &mut members, |_| {})?;
    if members.tally.accounting.closed > 0 {
        bail!("not all connections opened; {}", members.tally.accounting.closures.concat());
    }
    let stretch = MeasuredRun::start(bench, &engine)?;
    talk(&mut engine, &mut members, settings, behaviour.patience.as_nanos() as u64)?;
    stretch.report("rooms", settings, &engine, members.tally)
}

/// The clients that are not counted.
struct Crowd {
    cast: Roles,
    joins: f64,
    start_ns: u64,
    /// Visitors that have come, and that have left.
    came: usize,
    left: usize,
    slow_read_ns: u64,
}

impl Crowd {
    fn go_on(&mut self, engine: &mut Engine, members: &mut Members, now_ns: u64) -> anyhow::Result<()> {
        let due = |since_ns: u64| (since_ns as f64 * self.joins / 1e9) as usize;
        let elapsed_ns = now_ns - self.start_ns;
        let (come, leave) = (due(elapsed_ns), due(elapsed_ns.saturating_sub(VISIT_NS)));
        while self.left < leave {
            engine.close(self.cast.first_visitor() + self.left, CloseHow::Tcp)?;
            self.left += 1;
        }
        while self.came < come {
            engine.start(self.cast.first_visitor() + self.came, None)?;
            self.came += 1;
        }
        if self.cast.slow > 0 && now_ns - self.slow_read_ns >= SLOW_READ_NS {
            self.slow_read_ns = now_ns;
            for client in self.cast.first_slow()..self.cast.first_visitor() {
                engine.set_paused(client, false, members);
                engine.set_paused(client, true, members);
            }
        }
        Ok(())
    }
}

/// The senders.
struct RoomSenders<'a> {
    settings: &'a Settings,
    start_ns: u64,
    sent: u64,
    random: Random,
    payload: Vec<u8>,
}

impl RoomSenders<'_> {
    /// When the next message is to leave: at its time, so that what a slow server delays is not left out of its
    /// latencies, or as soon as the window has room.
    fn next_ns(&self, delivered: u64, now_ns: u64) -> Option<u64> {
        let receivers = (self.settings.room - 1) as u64;
        match self.settings.rate {
            Some(rate) => Some(self.start_ns + (self.sent as f64 * 1e9 / rate) as u64)
                .filter(|&intended_ns| intended_ns <= now_ns),
            None => (self.sent * receivers < delivered + self.settings.in_flight * receivers).then_some(now_ns),
        }
    }

    /// Sends what is due now, each message in a room by chance.
    fn go_on(&mut self, engine: &mut Engine, members: &mut Members, now_ns: u64) {
        while let Some(intended_ns) = self.next_ns(members.tally.accounting.delivered, now_ns) {
            let room = self.random.below(members.cast.rooms);
            self.payload.clear();
            members.tally.write_next(room, intended_ns, &mut self.payload);
            let sender = members.cast.sender_of(room);
            engine.send(sender, &self.payload);
            engine.flush(sender, members);
            self.sent += 1;
        }
    }
}

fn talk(engine: &mut Engine, members: &mut Members, settings: &Settings, patience_ns: u64) -> anyhow::Result<()> {
    let cast = members.cast;
    let start_ns = sys::now_ns();
    let end_ns = start_ns + (settings.seconds * 1e9) as u64;
    let mut crowd = Crowd { cast, joins: settings.joins, start_ns, came: 0, left: 0, slow_read_ns: 0 };
    let mut speakers = RoomSenders { settings, start_ns, sent: 0, random: Random::new(start_ns), payload: Vec::new() };
    let mut bar = Progress::new("talking", 0);
    members.tally.last_arrival_ns = start_ns;
    loop {
        let now_ns = sys::now_ns();
        if now_ns < end_ns {
            speakers.go_on(engine, members, now_ns);
            crowd.go_on(engine, members, now_ns)?;
        } else if members.tally.outstanding() == 0 {
            return Ok(());
        }
        let is_silent = now_ns.saturating_sub(members.tally.last_arrival_ns) > patience_ns;
        if is_silent || members.tally.accounting.closed > 0 {
            return Ok(());
        }
        engine.poll(1, members)?;
        bar.set(members.tally.accounting.delivered);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_has_a_room() {
        let settings = Settings {
            clients: 100,
            room: 10,
            size: 128,
            in_flight: 1,
            rate: None,
            slow_percent: 5.0,
            joins: 0.0,
            seconds: 1.0,
        };
        let cast = Roles::new(&settings);
        assert_eq!((cast.rooms, cast.receivers, cast.slow, cast.first_visitor()), (10, 90, 5, 105));
        assert!((0..90).all(|client| cast.room_of(client) == client / 9));
        assert!((0..10).all(|room| cast.room_of(cast.sender_of(room)) == room));
    }
}
