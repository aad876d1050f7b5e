//! The receiving side of a fan-out: the messages that each client received, the complete ones, and the clients that
//! stop reading.
//!
//! Invariants: the window moves only when every client that paces it has the oldest message; stalled clients do not
//! pace it, but their messages are counted all the same.

use std::collections::VecDeque;

use crate::client::{Closure, Engine, Handler, Message, Opcode, Outbox};
use crate::ledger::Ledger;
use crate::payload::Stamp;
use crate::stats::Latency;

/// Marks the last message of the warm-up, in place of the sender's number.
pub(crate) const BARRIER: u32 = u32::MAX;

/// Parameters common to all workers of a run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RunIds {
    /// The messages that count.
    pub run: u32,
    /// The messages of the warm-up.
    pub warm: u32,
}

/// Which messages all pacing clients of this worker have.
#[derive(Debug)]
pub(crate) struct Window {
    pacing: u32,
    base: u64,
    left: VecDeque<u32>,
}

impl Window {
    /// A window paced by `pacing` clients.
    pub(crate) fn new(pacing: usize) -> Self {
        Self { pacing: pacing as u32, base: 0, left: VecDeque::new() }
    }

    /// A pacing client got `sequence` for the first time.
    pub(crate) fn take(&mut self, sequence: u64) {
        let Some(index) = sequence.checked_sub(self.base).map(|index| index as usize) else { return };
        if self.left.len() <= index {
            self.left.resize(index + 1, self.pacing);
        }
        self.left[index] -= 1;
        while self.left.front() == Some(&0) {
            self.left.pop_front();
            self.base += 1;
        }
    }

    /// Every pacing client has all messages before this one.
    pub(crate) fn complete(&self, published: u64) -> u64 {
        if self.pacing == 0 { published } else { self.base }
    }
}

/// Clients that stop reading for a while, each at its own time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StallPlan {
    /// How many of the first clients do.
    pub clients: usize,
    /// For how many published messages each stops.
    pub messages: u64,
    /// The stalls begin spread over this many messages.
    pub spread: u64,
    /// Clients of the other workers before ours.
    pub first: usize,
}

impl StallPlan {
    fn begins(&self, client: usize) -> u64 {
        let number = (self.first + client) as u64;
        number * self.spread / (self.clients as u64 + self.first as u64).max(1)
    }
}

/// The clients of one worker.
#[derive(Debug)]
pub(crate) struct Receivers {
    ids: RunIds,
    clients: usize,
    publisher: Option<usize>,
    /// The messages received by each client.
    pub ledger: Ledger,
    /// Latencies of the clients that do not stall.
    pub latency: Latency,
    /// The complete messages.
    pub window: Window,
    /// When the last message that counts arrived.
    pub last_arrival_ns: u64,
    /// Clients that got a message of the warm-up, and those that got its last.
    pub reached: u64,
    pub warm: u64,
    warmth: Vec<Warmth>,
    stalls: StallPlan,
    stall_states: Vec<StallState>,
    to_pause: Vec<usize>,
    paused: Vec<(usize, u64)>,
    /// The publisher's connection ended.
    pub publisher_gone: Option<String>,
    /// The run is over: what comes now changes no account.
    over: bool,
    /// A client that was stuck on purpose was closed by the server.
    pub stuck_closed: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Warmth {
    Cold,
    Reached,
    Warm,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum StallState {
    Never,
    Ahead,
    Begun,
}

impl Receivers {
    /// `clients` receivers of messages of `size` bytes; the publisher, if it is this worker's, is the one after them.
    pub(crate) fn new(ids: RunIds, size: usize, clients: usize, publishes: bool, stalls: StallPlan) -> Self {
        let stalling = stalls.clients.min(clients);
        let mut stall_states = vec![StallState::Never; clients];
        stall_states[..stalling].fill(StallState::Ahead);
        Self {
            ids,
            clients,
            publisher: publishes.then_some(clients),
            ledger: Ledger::new(ids.run, size, clients),
            latency: Latency::default(),
            window: Window::new(clients - stalling),
            last_arrival_ns: 0,
            reached: 0,
            warm: 0,
            warmth: vec![Warmth::Cold; clients],
            stalls,
            stall_states,
            to_pause: Vec::new(),
            paused: Vec::new(),
            publisher_gone: None,
            over: false,
            stuck_closed: None,
        }
    }

    /// Pauses those whose stall begins, resumes those whose stall is over at `published` messages.
    pub(crate) fn apply_stalls(&mut self, engine: &mut Engine, published: u64, resume_all: bool) {
        for client in std::mem::take(&mut self.to_pause) {
            if self.is_stuck(client) {
                engine.set_paused(client, true, self);
            } else if !resume_all {
                engine.set_paused(client, true, self);
                self.paused.push((client, published + self.stalls.messages));
            }
        }
        if self.paused.iter().any(|&(_, until)| resume_all || until <= published) {
            let (over, still): (Vec<_>, Vec<_>) =
                self.paused.drain(..).partition(|&(_, until)| resume_all || until <= published);
            self.paused = still;
            for (client, _) in over {
                engine.set_paused(client, false, self);
            }
        }
    }

    /// Ends the run, and lets the stuck clients read again to learn what became of them. A server that had stalled may
    /// go on then, but too late to count.
    pub(crate) fn release_stuck(&mut self, engine: &mut Engine, stuck: usize) -> std::io::Result<()> {
        self.over = true;
        for client in self.clients + 1..=self.clients + stuck {
            engine.set_paused(client, false, self);
        }
        // The rest is in the kernels' buffers already; it has ended after a tenth of a second of silence.
        while stuck > 0 && engine.poll_blocking(100, self)? > 0 {}
        Ok(())
    }

    /// Stops or resumes reading of all receivers.
    pub(crate) fn pause_all(&mut self, engine: &mut Engine, paused: bool) {
        for client in 0..self.clients {
            engine.set_paused(client, paused, self);
        }
    }

    /// Clients beyond the publisher get stuck for good, and their messages do not count.
    fn is_stuck(&self, client: usize) -> bool {
        client > self.clients
    }

    fn warm_up(&mut self, client: usize, stamp: Stamp) {
        if self.warmth[client] == Warmth::Cold {
            self.warmth[client] = Warmth::Reached;
            self.reached += 1;
        }
        if stamp.client == BARRIER && self.warmth[client] == Warmth::Reached {
            self.warmth[client] = Warmth::Warm;
            self.warm += 1;
        }
    }
}

impl Handler for Receivers {
    fn message(&mut self, client: usize, message: &Message<'_>, received_ns: u64, _outbox: &mut Outbox<'_>) {
        // Text is what a server says by itself: the reply to a registration, a greeting.
        if self.over || Some(client) == self.publisher || message.opcode == Opcode::Text {
            return;
        }
        if self.is_stuck(client) {
            if Stamp::read(message.head).is_some_and(|stamp| stamp.run == self.ids.run) {
                self.to_pause.push(client);
            }
            return;
        }
        if let Some(stamp) = Stamp::read(message.head)
            && stamp.run == self.ids.warm
        {
            return self.warm_up(client, stamp);
        }
        let Some(stamp) = self.ledger.take(client, message) else { return };
        self.last_arrival_ns = received_ns;
        match self.stall_states[client] {
            StallState::Never => {
                self.latency.record(received_ns.saturating_sub(stamp.time_ns));
                self.window.take(stamp.sequence);
            }
            StallState::Ahead if stamp.sequence >= self.stalls.begins(client) => {
                self.stall_states[client] = StallState::Begun;
                self.to_pause.push(client);
            }
            StallState::Ahead | StallState::Begun => {}
        }
    }

    fn closed(&mut self, client: usize, closure: &Closure) {
        if self.is_stuck(client) {
            self.stuck_closed = Some(format!("the stuck client was closed: {}", closure.reason));
            return;
        }
        if Some(client) == self.publisher {
            self.publisher_gone = Some(closure.reason.clone());
        }
        self.ledger.accounting.note_closure(client, &closure.reason);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_moves_only_when_every_pacing_client_has_the_oldest() {
        let mut window = Window::new(2);
        window.take(0);
        window.take(1);
        window.take(1);
        assert_eq!(window.complete(2), 0);
        window.take(0);
        assert_eq!(window.complete(2), 2);
        assert_eq!(Window::new(0).complete(9), 9);
    }

    #[test]
    fn stalls_begin_spread_out() {
        let plan = StallPlan { clients: 10, messages: 5, spread: 100, first: 0 };
        assert_eq!(plan.begins(0), 0);
        assert_eq!(plan.begins(5), 50);
        assert!(plan.begins(9) < 100);
    }
}
