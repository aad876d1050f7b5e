//! Running the handlers of processes that run on the shards: passing events to them, and their orders to the send path.
//!
//! Invariants: each handler runs at most once a turn, for its credit; time above the credit is deducted in later turns,
//! so a slow one delays others by one event in many turns. It is given no event while an order of its own waits to be
//! carried out: so its orders stay in order, and unfinished work makes its clients wait instead of growing.

use super::command::{Command, HostCommand};
use super::core::Shard;
use super::event::{ClientMessage, Event};
use super::handler::{Failed, HandlerContext, HandlerWait};
use super::handlers::{HandlerState, HostedProcess, PendingOrder};
use super::unfinished::Unfinished;
use super::work::{HANDLER_NS, PASS_NS};
use crate::admission::{HeldAs, Notice};
use crate::channel::ChannelId;
use crate::proto::MessageKind;
use crate::queue::fair::OrderOrRest;

impl Shard {
    /// A process is to run here.
    pub(super) fn host(&mut self, host: HostCommand) {
        let HostCommand { owner, limits, make } = host;
        if let Some(handler) = make() {
            let place = self.owners.host(&owner, limits);
            self.handlers.add(place, handler);
        }
    }

    /// A process does not run here any more: its handler and its events are dropped.
    pub(super) fn dismiss(&mut self, place: u32) {
        self.owners.dismiss(place);
        self.handlers.remove(place);
    }

    /// A process that runs here is gone. Returns whether what it has ordered is to be executed first; `gone` stands
    /// behind that.
    pub(super) fn retires(&mut self, place: u32, gone: impl FnOnce() -> Command) -> bool {
        // One whose orders are being executed is taken out: this is the last of them.
        let Some(mut hosted) = self.handlers.take(place) else { return false };
        let is_busy = !hosted.state.is_empty();
        if is_busy && hosted.handler.take().is_some() {
            let charge = self.owners[place].owner.memory.charge_anyway(HeldAs::Orders, 0);
            hosted.state.keep(PendingOrder { order: OrderOrRest::New(gone()), bytes: 0, charge });
        }
        self.handlers.put_back(place, hosted);
        is_busy
    }

    /// Returns whether a handler has something to do.
    pub(super) fn wants_handlers(&self) -> bool {
        self.owners.hosted_waiting() > 0
    }

    /// Runs the handlers that have events, or waiting orders, until the turn's work reaches the limit. `called`:
    /// another thread has woken the shard for one of them.
    pub(super) fn run_handlers(&mut self, until_ns: u64, called: bool) {
        if self.handlers.is_empty() {
            return;
        }
        if called {
            self.call_handlers();
        }
        // Each once: those listed meanwhile are served in the next turn.
        for _ in 0..self.owners.hosted_waiting() {
            if !self.has_room(until_ns) {
                return;
            }
            let Some(place) = self.owners.next_hosted() else { return };
            let Some(mut hosted) = self.handlers.take(place) else { continue };
            let result = self.run_handler(place, &mut hosted, until_ns, usize::MAX);
            self.owners.settle_unread(place);
            let goes_on = !hosted.state.is_empty() || (!hosted.state.waits && self.owners.unread(place) > 0);
            self.handlers.put_back(place, hosted);
            match result {
                Err(Failed) => self.dismiss(place),
                Ok(()) if goes_on => self.owners.list_hosted(place),
                Ok(()) => {}
            }
        }
    }

    /// Messages may be given to handlers as they are read, until that has cost so much in this turn.
    pub(super) fn begin_reads(&mut self, handlers_ns: u64) {
        // What others have come to is not the first client's.
        self.spend_wakes();
        self.handlers.begin_turn(handlers_ns);
    }

    /// Messages read from now on wait for the next turn. Returns the work of messages given as they were read.
    pub(super) fn end_reads(&mut self) -> u64 {
        self.handlers.at_once_ns_max = 0;
        self.handlers.at_once_ns
    }

    /// The work in this turn of messages given as they were read: it is their handlers', not the readers'.
    pub(super) fn at_once_ns(&self) -> u64 {
        self.handlers.at_once_ns
    }

    /// Takes out the handler of a process for messages to be given to it as they lie, if that may be: nothing stands
    /// before them, and the turn has room.
    #[inline]
    pub(super) fn begin_at_once(&mut self, place: u32) -> Option<TakenHandler> {
        if !self.has_room_at_once(place) {
            return None;
        }
        let mut hosted = self.handlers.take(place)?;
        if hosted.handler.is_none() || !hosted.state.may_hear() {
            self.handlers.put_back(place, hosted);
            return None;
        }
        hosted.state.told_ns = self.work.spent_ns();
        Some(TakenHandler { place, hosted, has_failed: false })
    }

    fn has_room_at_once(&self, place: u32) -> bool {
        self.handlers.at_once_left_ns() > 0 && !self.out.is_window_full() && self.owners.has_taken_all(place)
    }

    /// Gives it one. Returns whether it may be given another.
    #[inline]
    pub(super) fn give_at_once(&mut self, hears: &mut TakenHandler, message: ClientMessage<'_>) -> bool {
        let TakenHandler { place, hosted, has_failed } = hears;
        let HostedProcess { handler: Some(handler), state } = &mut **hosted else { return false };
        self.stats.handler_events += 1;
        let before_ns = self.work.spent_ns();
        let until_ns = before_ns + self.handlers.at_once_left_ns();
        let mut at = RunningHandler { shard: self, place: *place, state, until_ns, events_left: 0 };
        let result = handler.message(&mut at, message);
        self.handlers.at_once_ns += self.work.spent_ns() - before_ns;
        state.waits = result == Ok(HandlerWait::Waits);
        *has_failed = result.is_err();
        !*has_failed && state.may_hear() && self.has_room_at_once(*place)
    }

    /// It was given what there is: what it has not told of the time that this took is told now.
    #[inline]
    pub(super) fn end_at_once(&mut self, hears: TakenHandler) {
        let TakenHandler { place, mut hosted, has_failed } = hears;
        if has_failed {
            return self.dismiss(place);
        }
        let HostedProcess { handler, state } = &mut *hosted;
        if let Some(handler) = handler {
            let before_ns = self.work.spent_ns();
            handler.settle(&mut RunningHandler { shard: self, place, state, until_ns: before_ns, events_left: 0 });
            self.handlers.at_once_ns += self.work.spent_ns() - before_ns;
        }
        let goes_on = !state.is_empty();
        self.handlers.put_back(place, hosted);
        if goes_on {
            self.owners.list_hosted(place);
        }
    }

    /// The shard has let go of its last connection: handlers hear what they have not heard yet, and go.
    pub(super) fn run_handlers_last(&mut self) {
        for place in self.handlers.places() {
            let Some(mut hosted) = self.handlers.take(place) else { continue };
            hosted.state = HandlerState::default();
            hosted.state.credit_ns = i64::MAX;
            // Reports on the orders that it gives now could go on without end.
            let events = self.owners.unread(place);
            let _ = self.run_handler(place, &mut hosted, u64::MAX, events);
            drop(hosted);
            self.dismiss(place);
        }
    }

    fn call_handlers(&mut self) {
        let mut events = Vec::new();
        for place in self.handlers.places() {
            let Some(mut hosted) = self.handlers.take(place) else { continue };
            if let Some(handler) = &mut hosted.handler {
                hosted.state.waits = handler.called(&mut events) == HandlerWait::Waits;
            }
            events.drain(..).for_each(|event| self.owners.emit(place, event));
            if !hosted.state.waits && self.owners.unread(place) > 0 {
                self.owners.list_hosted(place);
            }
            self.handlers.put_back(place, hosted);
        }
    }

    /// Goes on with what a handler has ordered, then has it take `events_max` events at most.
    fn run_handler(
        &mut self,
        place: u32,
        hosted: &mut HostedProcess,
        until_ns: u64,
        events_max: usize,
    ) -> Result<(), Failed> {
        let HostedProcess { handler, state } = hosted;
        if state.credit_ns <= 0 {
            self.work.spend(PASS_NS);
            return Ok(());
        }
        self.execute_kept(state, until_ns);
        let Some(handler) = handler.as_mut().filter(|_| !state.waits && state.is_empty()) else { return Ok(()) };
        state.told_ns = self.work.spent_ns();
        let mut at = RunningHandler { shard: self, place, state, until_ns, events_left: events_max };
        let then = handler.run(&mut at)?;
        at.state.waits = then == HandlerWait::Waits;
        Ok(())
    }

    /// Obeys what a handler ordered in turns before, in order.
    fn execute_kept(&mut self, state: &mut HandlerState, until_ns: u64) {
        while state.credit_ns > 0
            && self.has_room(until_ns)
            && let Some(PendingOrder { order, bytes, charge }) = state.take()
        {
            if let Some(rest) = self.execute_in(state, order, until_ns) {
                state.put_back(PendingOrder { order: OrderOrRest::Rest(rest), bytes, charge });
            }
        }
    }

    /// Obeys an order of a handler, as far as its credit and the turn have room for it.
    fn execute_in(
        &mut self,
        state: &mut HandlerState,
        order: OrderOrRest<Command, Unfinished>,
        until_ns: u64,
    ) -> Option<Unfinished> {
        let before_ns = self.work.spent_ns();
        let slice_ns = until_ns.saturating_sub(before_ns).min(state.credit_ns.max(0) as u64);
        let rest = self.execute(order, slice_ns);
        state.credit_ns -= cost(self.work.spent_ns() - before_ns);
        rest
    }
}

fn cost(ns: u64) -> i64 {
    i64::try_from(ns).unwrap_or(i64::MAX / 2)
}

/// A handler that is taken out to be given messages as they lie.
pub(super) struct TakenHandler {
    place: u32,
    hosted: Box<HostedProcess>,
    has_failed: bool,
}

/// A handler that runs.
struct RunningHandler<'a> {
    shard: &'a mut Shard,
    place: u32,
    state: &'a mut HandlerState,
    until_ns: u64,
    events_left: usize,
}

impl HandlerContext<Command> for RunningHandler<'_> {
    fn next_event(&mut self) -> Option<Event> {
        let goes_on = self.state.is_empty() && self.state.credit_ns > 0 && self.shard.has_room(self.until_ns);
        self.events_left = if goes_on { self.events_left.checked_sub(1)? } else { return None };
        let event = self.shard.owners.take_unread(self.place)?;
        self.shard.stats.handler_events += 1;
        Some(event)
    }

    fn is_last(&self) -> bool {
        self.shard.is_stopped()
    }

    fn took(&mut self, ns: u64) {
        self.shard.stats.handler_ns += ns;
        // Its orders have been counted as they were executed, and took a part of that time.
        let extra_ns = ns.saturating_sub(self.shard.spent_ns() - self.state.told_ns);
        self.shard.spend(extra_ns);
        self.state.credit_ns -= cost(extra_ns);
        self.state.told_ns = self.shard.spent_ns();
        if ns > HANDLER_NS {
            self.shard.stats.handler_slow += 1;
            let process = || format!("{}, {} µs", self.shard.owners[self.place].owner.process, ns / 1000);
            self.shard.notice(Notice::SlowHandler, process);
        }
    }

    fn push_at_once(&mut self, channel: ChannelId, kind: MessageKind, payload: &[u8]) -> bool {
        if !self.state.is_empty() || !self.shard.has_room(self.until_ns) {
            return false;
        }
        let before_ns = self.shard.spent_ns();
        let owner = self.shard.owners[self.place].owner.id;
        let is_done = self.shard.push_slice_at_once(channel, owner, kind, payload);
        self.state.credit_ns -= cost(self.shard.spent_ns() - before_ns);
        is_done
    }

    fn give(&mut self, order: Command) -> Result<(), Command> {
        let bytes = order.payload_bytes();
        let order = if self.state.is_empty() && self.shard.has_room(self.until_ns) {
            match self.shard.execute_in(self.state, OrderOrRest::New(order), self.until_ns) {
                None => return Ok(()),
                Some(rest) => OrderOrRest::Rest(rest),
            }
        } else if self.state.has_room(bytes) {
            OrderOrRest::New(order)
        } else {
            return Err(order);
        };
        let charge = self.shard.owners[self.place].owner.memory.charge_anyway(HeldAs::Orders, bytes);
        self.state.keep(PendingOrder { order, bytes, charge });
        Ok(())
    }
}
