//! The handlers, on this shard, of processes that run on the shards, and the orders of each that did not fit its turn.
//!
//! Invariants: a handler is in its place unless it runs; the orders kept for one are bounded like one process' part of
//! an inbox, and charged. How orders are carried out is in `handling.rs`.

use super::command::Command;
use super::handler::Handler;
use super::unfinished::Unfinished;
use super::work::HANDLER_NS;
use crate::admission::Charge;
use crate::queue::fair::OrderOrRest;
use std::collections::VecDeque;

/// The most orders that a handler may leave unfinished, and the bytes they may keep alive: a quarter of an inbox.
const KEPT_ORDERS_MAX: usize = 4096;
const KEPT_BYTES_MAX: usize = 16 * 1024 * 1024;

/// One process' place on this shard.
pub(super) struct HostedProcess {
    /// None: its process is gone, and what it has ordered is still to be executed.
    pub handler: Option<Box<dyn Handler<Command>>>,
    pub state: HandlerState,
}

/// How a handler stands with its shard.
#[derive(Default)]
pub(super) struct HandlerState {
    /// The work it may still cause before others are served; below zero, its excess.
    pub credit_ns: i64,
    /// The turn's work when the handler last reported its own, or began.
    pub(super) told_ns: u64,
    /// The turn of which it has the credit.
    turn: u64,
    /// It takes no events before it has been called.
    pub waits: bool,
    kept: VecDeque<PendingOrder>,
    kept_bytes: usize,
}

/// An order that waits to be executed, or gone on with.
pub(super) struct PendingOrder {
    pub order: OrderOrRest<Command, Unfinished>,
    pub bytes: usize,
    pub charge: Charge,
}

impl HandlerState {
    /// Credit comes once a turn, and what was not used of it is not saved.
    fn begin_turn(&mut self, turn: u64, credit_ns: i64) {
        if std::mem::replace(&mut self.turn, turn) != turn {
            self.credit_ns = self.credit_ns.saturating_add(credit_ns).min(credit_ns);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// Returns whether it may be given a message.
    pub(super) fn may_hear(&self) -> bool {
        !self.waits && self.credit_ns > 0 && self.kept.is_empty()
    }

    /// Returns whether an order of so many bytes may wait behind the others. One that is larger than all may be waits
    /// alone.
    pub(super) fn has_room(&self, bytes: usize) -> bool {
        self.kept.is_empty()
            || self.kept.len() < KEPT_ORDERS_MAX && self.kept_bytes.saturating_add(bytes) <= KEPT_BYTES_MAX
    }

    pub(super) fn keep(&mut self, kept: PendingOrder) {
        self.kept_bytes += kept.bytes;
        self.kept.push_back(kept);
    }

    pub(super) fn take(&mut self) -> Option<PendingOrder> {
        let kept = self.kept.pop_front()?;
        self.kept_bytes -= kept.bytes;
        Some(kept)
    }

    /// Puts the rest of the taken order back.
    pub(super) fn put_back(&mut self, kept: PendingOrder) {
        self.kept_bytes += kept.bytes;
        self.kept.push_front(kept);
    }
}

/// By their owner's place.
#[derive(Default)]
pub(super) struct Handlers {
    places: Vec<HandlerPlace>,
    count: usize,
    turn: u64,
    /// The work that each may cause in it.
    credit_ns: i64,
    /// The work that messages given as they are read may cause, and have caused in this turn.
    pub(super) at_once_ns_max: u64,
    pub(super) at_once_ns: u64,
}

#[derive(Default)]
enum HandlerPlace {
    #[default]
    Nobody,
    Here(Box<HostedProcess>),
    /// It is taken out, since it runs.
    Runs,
}

impl Handlers {
    /// The part of a new turn begins in which handlers run: they have credit again, each for all of it.
    pub(super) fn begin_turn(&mut self, handlers_ns: u64) {
        self.turn += 1;
        // However narrow the turn, one that was slow has paid for it after some turns.
        self.credit_ns = i64::try_from(handlers_ns.max(HANDLER_NS)).unwrap_or(i64::MAX / 2);
        (self.at_once_ns_max, self.at_once_ns) = (handlers_ns, 0);
    }

    /// The work that messages given as they are read may still cause.
    pub(super) fn at_once_left_ns(&self) -> u64 {
        self.at_once_ns_max.saturating_sub(self.at_once_ns)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub(super) fn add(&mut self, place: u32, handler: Box<dyn Handler<Command>>) {
        let place = place as usize;
        if self.places.len() <= place {
            self.places.resize_with(place + 1, HandlerPlace::default);
        }
        let hosted = HostedProcess { handler: Some(handler), state: HandlerState::default() };
        self.count += usize::from(matches!(self.places[place], HandlerPlace::Nobody));
        self.places[place] = HandlerPlace::Here(Box::new(hosted));
    }

    /// Takes the hosted process out, to run it. It has the credit of this turn.
    pub(super) fn take(&mut self, place: u32) -> Option<Box<HostedProcess>> {
        let there = self.places.get_mut(place as usize)?;
        match std::mem::replace(there, HandlerPlace::Runs) {
            HandlerPlace::Here(mut hosted) => {
                hosted.state.begin_turn(self.turn, self.credit_ns);
                Some(hosted)
            }
            other => {
                *there = other;
                None
            }
        }
    }

    /// Puts it back.
    pub(super) fn put_back(&mut self, place: u32, hosted: Box<HostedProcess>) {
        if let Some(empty @ HandlerPlace::Runs) = self.places.get_mut(place as usize) {
            *empty = HandlerPlace::Here(hosted);
        }
    }

    pub(super) fn remove(&mut self, place: u32) {
        if let Some(there) = self.places.get_mut(place as usize) {
            self.count -= usize::from(!matches!(std::mem::take(there), HandlerPlace::Nobody));
        }
    }

    pub(super) fn places(&self) -> Vec<u32> {
        let is_taken =
            |(place, there): (usize, &HandlerPlace)| (!matches!(there, HandlerPlace::Nobody)).then_some(place as u32);
        self.places.iter().enumerate().filter_map(is_taken).collect()
    }
}
