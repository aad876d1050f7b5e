//! The next producer of an inbox to be served: they take turns, each for as much work as any other (deficit round
//! robin).
//!
//! Orders are taken out of the inbox into a lane for each producer. A lane is served until its credit is used up, then
//! the next is; an order that is more work than that is suspended and resumed when its lane is next. So a producer with
//! many orders waits for its own, and one with few does not queue behind them.
//!
//! Invariants: orders of one producer are carried out in order, each to its end before the next begins; a lane is in
//! the round once, and exactly while it has something to do; orders in a lane still count as held in the inbox, and
//! against their producer's share of it. It must not know what an order is.

use super::orders::{Account, FinishedOrders, Inbox, QueuedOrder};
use rustc_hash::FxHashMap;
use slab::Slab;
use std::collections::VecDeque;

/// The work for which a lane is served at a time: two dozen of the largest uncut orders, or one slice of a broadcast.
const CREDIT_NS: u64 = 50_000;

/// With so few orders in the inbox, and none in a lane, they are served in order of arrival.
const FEW: usize = 4;

/// Orders taken out of the inbox in one turn, at some 50 ns each.
const TAKEN_MAX: usize = 2_048;

/// An order, or what is left of one.
pub enum OrderOrRest<T, R> {
    /// As it was sent.
    New(T),
    /// It was begun.
    Rest(R),
}

/// Obeys orders.
pub trait OrderServer<T, R> {
    /// Returns whether there is room for one more in this turn.
    fn has_room(&self) -> bool;

    /// Obeys an order, for about `slice_ns` of work. Returns how much it was, and what is left of the order.
    fn execute(&mut self, order: OrderOrRest<T, R>, slice_ns: u64) -> (u64, Option<R>);
}

/// See the module.
pub struct Producers<T, R> {
    inbox: Inbox<T>,
    lanes: Slab<ProducerLane<T, R>>,
    /// By account.
    by_account: FxHashMap<usize, usize>,
    /// Lanes with something to do, the next first.
    round: VecDeque<usize>,
}

struct ProducerLane<T, R> {
    account: Account,
    orders: VecDeque<QueuedOrder<T>>,
    /// The rest of the order that was begun, and the bytes that it stands for.
    rest: Option<(R, u64)>,
    /// The work it may still cause before the next lane is served; below zero, its excess.
    credit_ns: i64,
}

impl<T, R> ProducerLane<T, R> {
    fn next(&mut self) -> Option<(OrderOrRest<T, R>, u64)> {
        if let Some((rest, bytes)) = self.rest.take() {
            return Some((OrderOrRest::Rest(rest), bytes));
        }
        self.orders.pop_front().map(|entry| (OrderOrRest::New(entry.command), entry.bytes))
    }

    fn is_idle(&self) -> bool {
        self.rest.is_none() && self.orders.is_empty()
    }
}

impl<T, R> Producers<T, R> {
    /// The producers of `inbox`.
    pub fn new(inbox: Inbox<T>) -> Self {
        Self { inbox, lanes: Slab::new(), by_account: FxHashMap::default(), round: VecDeque::new() }
    }

    /// The inbox.
    pub fn inbox(&mut self) -> &mut Inbox<T> {
        &mut self.inbox
    }

    /// Returns whether an order waits, here or in the inbox, or a producer is to be told of room.
    pub fn has_orders(&self) -> bool {
        !self.round.is_empty() || !self.inbox.is_empty() || self.inbox.announces()
    }

    /// The bytes that orders stand for that are not done, here or in the inbox.
    pub fn bytes(&self) -> usize {
        self.inbox.bytes()
    }

    /// Has orders executed until there is no room for more: at most `orders_max`, and none once they stand for
    /// `bytes_max` bytes or more.
    pub fn serve(&mut self, orders_max: usize, bytes_max: u64, server: &mut impl OrderServer<T, R>) {
        let mut done = FinishedOrders::default();
        let (mut served, mut taken) = (0, 0);
        while served < orders_max && done.bytes < bytes_max && server.has_room() {
            if self.round.is_empty() {
                if self.inbox.waiting() <= FEW {
                    let Some(entry) = self.inbox.take() else { break };
                    served += 1;
                    self.serve_at_once(entry, server, &mut done);
                    continue;
                }
                match self.take(TAKEN_MAX) {
                    // The oldest is on its way: whoever sends it wakes us.
                    0 => break,
                    more => taken += more,
                }
            } else if taken == 0 {
                // A new producer takes part at once.
                taken += self.take(TAKEN_MAX).max(1);
            }
            served += usize::from(self.serve_one(server, &mut done));
        }
        self.inbox.release(done);
    }

    /// Puts what waits in the inbox into its lanes. Returns how much that was.
    fn take(&mut self, orders_max: usize) -> usize {
        let mut taken = 0;
        let mut last: Option<(usize, usize)> = None;
        while taken < orders_max
            && let Some(entry) = self.inbox.take()
        {
            taken += 1;
            let account = entry.account.number();
            let lane = match last {
                Some((of, lane)) if of == account => lane,
                _ => self.lane(&entry.account),
            };
            last = Some((account, lane));
            self.lanes[lane].orders.push_back(entry);
        }
        taken
    }

    /// The lane of a producer, made if it has none.
    fn lane(&mut self, account: &Account) -> usize {
        let Self { lanes, round, by_account, .. } = self;
        *by_account.entry(account.number()).or_insert_with(|| {
            let credit_ns = CREDIT_NS as i64;
            let lane = ProducerLane { account: account.clone(), orders: VecDeque::new(), rest: None, credit_ns };
            let lane = lanes.insert(lane);
            round.push_back(lane);
            lane
        })
    }

    fn serve_at_once(&mut self, entry: QueuedOrder<T>, server: &mut impl OrderServer<T, R>, done: &mut FinishedOrders) {
        let QueuedOrder { command, bytes, account } = entry;
        let (_, rest) = server.execute(OrderOrRest::New(command), CREDIT_NS);
        match rest {
            None => done.add(&account, bytes),
            Some(rest) => {
                let lane = self.lane(&account);
                self.lanes[lane].rest = Some((rest, bytes));
            }
        }
    }

    /// Serves the lane whose turn it is with one order, or passes its turn on. Returns whether an order was executed.
    fn serve_one(&mut self, server: &mut impl OrderServer<T, R>, done: &mut FinishedOrders) -> bool {
        let Some(&place) = self.round.front() else { return false };
        let lane = &mut self.lanes[place];
        if lane.credit_ns <= 0 {
            lane.credit_ns += CREDIT_NS as i64;
            self.round.rotate_left(1);
            return false;
        }
        let (order, bytes) = lane.next().expect("a lane in the round has something to do");
        let (cost_ns, rest) = server.execute(order, lane.credit_ns as u64);
        lane.credit_ns -= i64::try_from(cost_ns).unwrap_or(i64::MAX / 2);
        match rest {
            Some(rest) => lane.rest = Some((rest, bytes)),
            None => done.add(&lane.account, bytes),
        }
        if lane.is_idle() {
            self.round.pop_front();
            let lane = self.lanes.remove(place);
            self.by_account.remove(&lane.account.number());
        }
        true
    }

    /// Asserts what the module promises.
    pub fn check(&self) {
        assert_eq!(self.round.len(), self.lanes.len(), "every lane is in the round, once");
        assert_eq!(self.by_account.len(), self.lanes.len(), "every lane is its producer's only one");
        for (place, lane) in &self.lanes {
            assert!(self.round.contains(&place) && !lane.is_idle(), "a lane has something to do");
            assert_eq!(self.by_account.get(&lane.account.number()), Some(&place), "a lane is found by its account");
        }
    }
}

#[cfg(test)]
#[path = "fair_tests.rs"]
mod tests;
