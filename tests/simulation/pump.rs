//! A shard and what drives it, turn by turn, as the driver's pump does it.

use super::network::Network;
use super::plant::Plant;
use super::rng::Rng;
use pushring::internals::inbox::Inbox;
use pushring::internals::shard::command::Command;
use pushring::internals::shard::flush::SocketId;
use pushring::internals::shard::{Effect, Shard, TICK_MS, Token};
use std::collections::VecDeque;

/// Seconds since 1970 when a simulation begins.
pub const UNIX_S: u64 = 1_000_000;

pub struct Pump {
    pub shard: Shard,
    pub inbox: Inbox<Command>,
    readable: VecDeque<Token>,
    ticked_ms: u64,
    rng: Rng,
    plant: Plant,
}

impl Pump {
    pub fn new(shard: Shard, inbox: Inbox<Command>, rng: Rng, plant: Plant) -> Self {
        let mut pump = Self { shard, inbox, readable: VecDeque::new(), ticked_ms: 0, rng, plant };
        pump.shard.set_unix_ms(UNIX_S * 1000, 0);
        pump
    }

    /// The socket has something to read, perhaps its end.
    pub fn queue_read(&mut self, network: &mut Network, token: Token, to_the_end: bool) {
        let Some(id) = self.shard.socket(token) else { return };
        let socket = network.socket(id);
        socket.to_the_end |= to_the_end;
        if !std::mem::replace(&mut socket.is_queued, true) {
            self.readable.push_back(token);
        }
    }

    /// One turn. Answers which sockets were closed.
    pub fn turn(&mut self, network: &std::cell::RefCell<Network>, now_ms: u64) -> Vec<SocketId> {
        let pace = if self.plant == Plant::SlowTicks { 10 } else { 1 };
        if now_ms >= self.ticked_ms + TICK_MS {
            self.ticked_ms = now_ms;
            self.shard.set_unix_ms(UNIX_S * 1000 + now_ms, now_ms);
            self.shard.handle_tick(now_ms / pace);
        }
        self.take_commands(now_ms);
        self.read(network, now_ms);
        self.shard.flush();
        self.shard.end_turn();
        self.carry_out(&mut network.borrow_mut())
    }

    fn take_commands(&mut self, now_ms: u64) {
        let shard = &mut self.shard;
        self.inbox.take_kick();
        shard.note_inbox(self.inbox.bytes());
        if !shard.is_turn_full() {
            let commands_max = self.rng.between(1, 64);
            self.inbox.drain_while(commands_max, 1 << 20, |command| {
                shard.handle_command(command, now_ms);
                !shard.is_turn_full()
            });
        }
    }

    fn read(&mut self, network: &std::cell::RefCell<Network>, now_ms: u64) {
        for _ in 0..self.readable.len() {
            let Some(token) = self.readable.pop_front() else { break };
            let Some(id) = self.shard.socket(token) else { continue };
            network.borrow_mut().socket(id).is_queued = false;
            if !self.shard.wants_read(token) {
                continue;
            }
            let (mut bytes, is_finished) = {
                let mut network = network.borrow_mut();
                let socket = network.socket(id);
                let len = socket.read_size();
                (socket.to_server.split_to(len), socket.reset || socket.client_finished)
            };
            if !bytes.is_empty() {
                self.shard.handle_read(token, &mut bytes, now_ms);
                let mut network = network.borrow_mut();
                let socket = network.socket(id);
                if !socket.to_server.is_empty() || socket.to_the_end {
                    let to_the_end = socket.to_the_end;
                    self.queue_read(&mut network, token, to_the_end);
                }
            } else if is_finished {
                self.shard.handle_end(token, now_ms);
            } else {
                network.borrow_mut().socket(id).to_the_end = false;
            }
        }
    }

    fn carry_out(&mut self, network: &mut Network) -> Vec<SocketId> {
        let mut effects = Vec::new();
        let mut closed = Vec::new();
        self.shard.take_effects(&mut effects);
        effects.retain(|&effect| self.plant.carries_out(effect));
        for effect in effects {
            match effect {
                Effect::Read(token) => self.queue_read(network, token, true),
                Effect::ShutdownWrite(id) => network.socket(id).write_shut = true,
                Effect::Close(id) => {
                    if network.socket(id).closed {
                        network.complaints.push(format!("socket {} is closed twice", id.0));
                    }
                    network.socket(id).close();
                    closed.push(id);
                }
            }
        }
        network.check_ends();
        closed
    }
}
