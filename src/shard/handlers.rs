//! The handlers, on this shard, of processes that run on the shards, and the orders of each that did not fit its turn.
//!
//! Invariants: a handler is in its place unless it runs; the orders kept for one are bounded like one process' part of
//! an inbox, and charged. How orders are carried out is in `handling.rs`.

use super::command::Command;
use super::handler::Handler;
use super::unfinished::Unfinished;
use crate::admission::Charge;
use crate::queue::fair::OrderOrRest;
use rustc_hash::FxHashMap;
use std::collections::VecDeque;

/// Orders that a handler may leave to be done, and what they may keep alive: a quarter of what an inbox holds.
const KEPT_ORDERS_MAX: usize = 4096;
const KEPT_BYTES_MAX: usize = 16 * 1024 * 1024;

/// One process' place on this shard.
pub(super) struct HostedProcess {
    /// None: its process is gone, and what it has ordered is still to be obeyed.
    pub handler: Option<Box<dyn Handler<Command>>>,
    pub state: HandlerState,
}

/// How a handler stands with its shard.
#[derive(Default)]
pub(super) struct HandlerState {
    /// What it may still cost before others are served; below zero, what it has cost too much.
    pub credit_ns: i64,
    /// It takes no events before it has been called.
    pub waits: bool,
    kept: VecDeque<PendingOrder>,
    kept_bytes: usize,
}

/// An order that waits to be obeyed, or gone on with.
pub(super) struct PendingOrder {
    pub order: OrderOrRest<Command, Unfinished>,
    pub bytes: usize,
    pub charge: Charge,
}

impl HandlerState {
    pub(super) fn is_empty(&self) -> bool {
        self.kept.is_empty()
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

    /// What is left of the order that was taken.
    pub(super) fn put_back(&mut self, kept: PendingOrder) {
        self.kept_bytes += kept.bytes;
        self.kept.push_front(kept);
    }
}

/// By their owner's place; one that runs is taken out of it.
#[derive(Default)]
pub(super) struct Handlers(FxHashMap<u32, Option<Box<HostedProcess>>>);

impl Handlers {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn add(&mut self, place: u32, handler: Box<dyn Handler<Command>>) {
        self.0.insert(place, Some(Box::new(HostedProcess { handler: Some(handler), state: HandlerState::default() })));
    }

    /// Takes the hosted process out, to run it.
    pub(super) fn take(&mut self, place: u32) -> Option<Box<HostedProcess>> {
        self.0.get_mut(&place)?.take()
    }

    /// Puts it back.
    pub(super) fn put_back(&mut self, place: u32, hosted: Box<HostedProcess>) {
        if let Some(empty) = self.0.get_mut(&place) {
            *empty = Some(hosted);
        }
    }

    pub(super) fn remove(&mut self, place: u32) {
        self.0.remove(&place);
    }

    pub(super) fn places(&self) -> Vec<u32> {
        self.0.keys().copied().collect()
    }
}
