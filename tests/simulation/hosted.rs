//! A process that runs on the shards: its handler on each, and what passes between that and the world.
//!
//! The world draws its orders as those of any process; the handler gives them between its events, and what it hears and
//! gives stands in one log, in order, which the world reads after each step of the shard.

use super::orders::{Note, Order};
use super::rng::Rng;
use super::world::World;
use pushring::ClientMessage;
use pushring::internals::inbox::InboxSender;
use pushring::internals::shard::Owner;
use pushring::internals::shard::command::{Command, HostCommand};
use pushring::internals::shard::event::Event;
use pushring::internals::shard::handler::{Failed, Handler, HandlerContext, HandlerWait};
use pushring::internals::shard::outcome::Outcome;
use pushring::internals::shard::process_queue::{EventBatch, QueueLimits};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

/// The time of the slowest event.
pub const SLOW_EVENT_NS: u64 = 400_000;

/// A process orders nothing more while one of its handlers has so many orders to give: they are as good as in an inbox,
/// where the oracle expects no more than `IN_INBOXES_MAX`.
pub const ORDERS_WAITING_MAX: usize = 32;

/// The event that only says that there is something to do.
const POKE: u64 = u64::MAX;

/// An event of a handler.
enum Happened {
    Heard(Event),
    Given(Note, Option<u64>),
}

/// One shard's part of a hosted process.
#[derive(Default)]
struct HostedPart {
    orders: VecDeque<Order>,
    log: VecDeque<Happened>,
    naps: bool,
}

/// All of them.
pub struct HostedParts(Vec<Arc<Mutex<HostedPart>>>);

impl HostedParts {
    /// The order that makes each shard run its handler.
    pub fn new(
        seed: u64,
        owner: &Arc<Owner>,
        limits: QueueLimits,
        shards: usize,
        is_eager: bool,
    ) -> (Self, Vec<Command>) {
        let parts: Vec<Arc<Mutex<HostedPart>>> = (0..shards).map(|_| Arc::default()).collect();
        let hosts = parts.iter().enumerate().map(|(shard, part)| {
            let part = part.clone();
            let rng = Rng::stream(seed, 7, u64::from(owner.id.0) << 8 | shard as u64);
            let make = move || {
                Some(Box::new(Hosted { part, rng, is_eager, overslept: Vec::new() }) as Box<dyn Handler<Command>>)
            };
            Command::Host(Box::new(HostCommand { owner: owner.clone(), limits, make: Box::new(make) }))
        });
        let hosts = hosts.collect();
        (Self(parts), hosts)
    }

    /// An order for the handler to give.
    pub fn order(&self, shard: usize, order: Order) {
        self.0[shard].lock().unwrap().orders.push_back(order);
    }

    /// Orders that the handler on the busiest shard has not given yet.
    pub fn orders_waiting(&self) -> usize {
        self.0.iter().map(|part| part.lock().unwrap().orders.len()).max().unwrap_or(0)
    }

    /// Whether its handlers take no events now.
    pub fn nap(&self, naps: bool) {
        self.0.iter().for_each(|part| part.lock().unwrap().naps = naps);
    }

    /// Has the handlers looked at that have something to do.
    pub fn call(&self, senders: &[InboxSender<Command>]) {
        for (part, sender) in std::iter::zip(&self.0, senders) {
            let part = part.lock().unwrap();
            if !part.naps {
                sender.kick();
            }
        }
    }
}

struct Hosted {
    part: Arc<Mutex<HostedPart>>,
    rng: Rng,
    /// It orders what there is at once, so that what one client does has no part in when others are pushed to.
    is_eager: bool,
    /// Events given to it while it was idle.
    overslept: Vec<Event>,
}

impl Hosted {
    /// Handles the events that came as it went idle, before those that have waited since.
    fn wake_up(&mut self, part: &mut HostedPart) {
        part.log.extend(self.overslept.drain(..).map(Happened::Heard));
    }

    fn hear(&mut self, desk: &mut dyn HandlerContext<Command>, part: &mut HostedPart, event: Event, gives: bool) {
        if !matches!(event, Event::Failed { ticket: POKE, .. }) {
            part.log.push_back(Happened::Heard(event));
        }
        if gives {
            self.give(desk, part);
        }
        desk.took(if self.rng.chance(5) { self.rng.below(SLOW_EVENT_NS as usize) as u64 } else { 500 });
    }

    /// Gives some of what is to be given, in order.
    fn give(&mut self, desk: &mut dyn HandlerContext<Command>, part: &mut HostedPart) {
        for _ in 0..if self.is_eager { usize::MAX } else { self.rng.below(6) } {
            let Some(Order { command, note, awaits, .. }) = part.orders.pop_front() else { return };
            if let Err(command) = desk.give(command) {
                part.orders.push_front(Order { shard: 0, command, note, awaits });
                return;
            }
            part.log.push_back(Happened::Given(note, awaits));
        }
    }
}

impl Handler<Command> for Hosted {
    fn run(&mut self, desk: &mut dyn HandlerContext<Command>) -> Result<HandlerWait, Failed> {
        let part = self.part.clone();
        let mut part = part.lock().unwrap();
        if desk.is_last() {
            self.wake_up(&mut part);
        }
        while (desk.is_last() || !part.naps)
            && let Some(event) = desk.next_event()
        {
            self.hear(desk, &mut part, event, true);
        }
        Ok(if part.naps { HandlerWait::Waits } else { HandlerWait::GoesOn })
    }

    fn message(
        &mut self,
        desk: &mut dyn HandlerContext<Command>,
        message: ClientMessage<'_>,
    ) -> Result<HandlerWait, Failed> {
        let part = self.part.clone();
        let mut part = part.lock().unwrap();
        if part.naps {
            // It fell asleep since it was last asked.
            self.overslept.push(message.into_event());
            return Ok(HandlerWait::Waits);
        }
        // An eager one orders when it is called, in its part of the turn, whatever it is called for.
        self.hear(desk, &mut part, message.into_event(), !self.is_eager);
        Ok(if part.naps { HandlerWait::Waits } else { HandlerWait::GoesOn })
    }

    fn settle(&mut self, _: &mut dyn HandlerContext<Command>) {}

    fn called(&mut self, events: &mut Vec<Event>) -> HandlerWait {
        let part = self.part.clone();
        let mut part = part.lock().unwrap();
        if part.naps {
            return HandlerWait::Waits;
        }
        self.wake_up(&mut part);
        if !part.orders.is_empty() {
            events.push(Event::Failed { ticket: POKE, outcome: Outcome::default() });
        }
        HandlerWait::GoesOn
    }
}

impl World {
    /// Takes in what the handlers on a shard have heard and given.
    pub fn note_hosted(&mut self, shard: usize) -> Result<(), String> {
        for index in 0..self.processes.len() {
            let Some(parts) = &self.processes[index].hosted else { continue };
            let log = std::mem::take(&mut parts.0[shard].lock().unwrap().log);
            for happened in log {
                match happened {
                    Happened::Heard(event) => {
                        let mut batch = EventBatch::new(self.processes[index].owner.id);
                        batch.push(event);
                        self.note_batch(index, batch)?;
                    }
                    Happened::Given(note, awaits) => self.note(index, shard, note, awaits, true),
                }
            }
            if self.pumps[shard].is_over() {
                self.refuse_hosted(index, shard);
            }
        }
        Ok(())
    }

    /// Orders that a process gave its handlers and that they no longer carry out.
    pub fn refuse_hosted(&mut self, index: usize, shard: usize) {
        let Some(parts) = &self.processes[index].hosted else { return };
        let orders = std::mem::take(&mut parts.0[shard].lock().unwrap().orders);
        for Order { note, awaits, .. } in orders {
            self.note(index, shard, note, awaits, false);
        }
    }

    /// Returns whether handlers have orders to give.
    pub fn has_hosted_orders(&self) -> bool {
        self.processes.iter().filter_map(|process| process.hosted.as_ref()).any(|hosted| hosted.orders_waiting() > 0)
    }

    /// Its process ran on the shards and is gone: it has not heard of what happened to its channels since.
    pub fn is_forgotten(&self, owner: usize) -> bool {
        self.processes[owner].hosted.is_some() && self.processes[owner].is_ended()
    }
}
