//! The driver of a shard in the simulation: the product's own turns over sockets in memory, and sleep between them.

use super::hosted::SLOW_EVENT_NS;
use super::network::Network;
use super::plant::Plant;
use super::settings::TurnPace;
use pushring::internals::inbox::{Inbox, Wake};
use pushring::internals::shard::command::{CarriedSocket, Command};
use pushring::internals::shard::flush::SocketId;
use pushring::internals::shard::turn::{Accepted, Readiness, SocketRead, Sockets, Turns};
use pushring::internals::shard::{ConnectionToken, Shard, TICK_MS};
use std::cell::RefCell;
use std::convert::Infallible;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Seconds since 1970 when a simulation begins.
pub const UNIX_S: u64 = 1_000_000;

/// The last step of each part of a turn goes over its part: a push that is compressed, and two slices of what clients
/// send, each with a step of inflating more than they may be, and an event of a slow handler.
const STEPS_NS_MAX: u64 = 600_000 + 2 * (100_000 + 2 * 130_000) + 200_000 + SLOW_EVENT_NS;

/// The last send of a batch, of as much as one client is offered.
const LAST_SEND_NS: u64 = 3_500 + (256 << 10) / 4;

/// More turns without a pause than anything that waits can need.
const TURNS_MAX: usize = 20_000;

/// Wakes a pump that sleeps.
#[derive(Clone, Default)]
pub struct Bell(Arc<AtomicBool>);

impl Wake for Bell {
    fn wake(&self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// The sockets of one shard.
pub struct MemorySockets {
    pub network: Rc<RefCell<Network>>,
    pub port: usize,
    pub plant: Plant,
}

impl Sockets for MemorySockets {
    type Error = Infallible;

    fn poll(&mut self, news: &mut Vec<Readiness>) -> Result<bool, Infallible> {
        Ok(self.network.borrow_mut().poll(self.port, self.plant, news))
    }

    fn accept(&mut self) -> Result<Accepted, Infallible> {
        Ok(self.network.borrow_mut().accept(self.port))
    }

    fn watch(&mut self, socket: SocketId, token: ConnectionToken) -> bool {
        self.network.borrow_mut().watch(socket, token);
        true
    }

    fn watch_anew(&mut self, socket: SocketId, token: ConnectionToken) -> bool {
        self.watch(socket, token)
    }

    fn release(&mut self, socket: SocketId) -> Option<CarriedSocket> {
        Some(CarriedSocket(Box::new(socket)))
    }

    fn adopt(&mut self, carried: CarriedSocket) -> Option<SocketId> {
        carried.0.downcast().ok().map(|socket| *socket)
    }

    fn read(&mut self, socket: SocketId, buffer: &mut [u8]) -> SocketRead {
        self.network.borrow_mut().read(socket, buffer, self.plant)
    }

    fn shutdown_write(&mut self, socket: SocketId) {
        let mut network = self.network.borrow_mut();
        let now_ms = network.now_ms;
        if let Some(wrong) = network.socket(socket).shut_write(now_ms) {
            network.complaints.push(format!("socket {}: {wrong}", socket.0));
        }
    }

    fn close(&mut self, socket: SocketId) {
        if self.plant != Plant::KeepsSocket || socket.0 % 3 != 0 {
            self.network.borrow_mut().close(socket);
        }
    }

    fn stop_listening(&mut self) {
        self.network.borrow_mut().stop_listening(self.port);
    }
}

enum State {
    At(Box<Turns<MemorySockets>>),
    /// The shard has stopped.
    Over(Box<Shard>),
}

pub struct Pump {
    state: Option<State>,
    bell: Bell,
    is_asleep: bool,
    woken_ms: u64,
    pace: TurnPace,
    plant: Plant,
    network: Rc<RefCell<Network>>,
    port: usize,
}

impl Pump {
    pub fn new(shard: Shard, inbox: Inbox<Command>, bell: Bell, sockets: MemorySockets, pace: TurnPace) -> Self {
        let (plant, network, port) = (sockets.plant, sockets.network.clone(), sockets.port);
        let turns = Turns::new(shard, inbox, sockets, pace.limits, 0, UNIX_S * 1000);
        let state = Some(State::At(Box::new(turns)));
        Self { state, bell, is_asleep: false, woken_ms: 0, pace, plant, network, port }
    }

    pub fn shard(&self) -> &Shard {
        match self.state.as_ref().expect("only gone within `work`") {
            State::At(turns) => turns.shard(),
            State::Over(shard) => shard,
        }
    }

    /// The shard once it has stopped.
    pub fn stopped(&mut self) -> Option<&mut Shard> {
        match &mut self.state {
            Some(State::Over(shard)) => Some(shard),
            _ => None,
        }
    }

    pub fn is_over(&self) -> bool {
        matches!(self.state, Some(State::Over(_)))
    }

    /// Works as the driver's thread does: turn after turn while there is something to do, then asleep until it is
    /// woken, by the clock at the latest. At most as many turns as the pace allows, unless `calm`.
    pub fn work(&mut self, now_ms: u64, calm: bool) -> Result<(), String> {
        let Some(State::At(turns)) = &mut self.state else { return Ok(()) };
        if self.is_asleep {
            let is_woken = self.bell.0.load(Ordering::SeqCst) || self.network.borrow().has_news(self.port);
            if !is_woken && now_ms < self.woken_ms + TICK_MS {
                return Ok(());
            }
            turns.awake();
            self.is_asleep = false;
        }
        let shown_ms = if self.plant == Plant::SlowTicks { now_ms / 10 } else { now_ms };
        for turn in 0.. {
            if !calm && turn == self.pace.turns_max {
                return Ok(());
            }
            if turn == TURNS_MAX {
                return Err(format!("shard {} finds no rest", self.port));
            }
            self.woken_ms = now_ms;
            let Ok(is_busy) = turns.turn(shown_ms, || UNIX_S * 1000 + shown_ms);
            let mut network = self.network.borrow_mut();
            network.check_ends();
            turns.closes_put_off().for_each(|socket| network.let_go(socket));
            drop(network);
            let (least_ns, spent_ns) = (self.pace.limits.work.turn_ns(), turns.shard().spent_ns());
            if spent_ns > least_ns + STEPS_NS_MAX + LAST_SEND_NS {
                return Err(format!(
                    "a turn of {spent_ns} ns of work, where {least_ns} and a step of each kind are due"
                ));
            }
            if turns.is_over() {
                break;
            }
            if !is_busy {
                self.bell.0.store(false, Ordering::SeqCst);
                if turns.prepare_sleep() {
                    // What the ready set has to tell ends a sleep at once: else it would depend on what others want
                    // whether a client is heard in this step or in the next.
                    if self.network.borrow().has_news(self.port) {
                        turns.awake();
                        continue;
                    }
                    self.is_asleep = true;
                    return Ok(());
                }
            }
        }
        if let Some(State::At(turns)) = self.state.take() {
            self.state = Some(State::Over(Box::new(turns.into_shard())));
        }
        Ok(())
    }
}
