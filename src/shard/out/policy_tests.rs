//! Policies, outcomes and budgets of a whole shard against a naive reference: for each channel a plain list of frames,
//! and for each push the fate that the documentation of the policies gives it. For any order of pushes, sends, closes
//! and failures, each push has the reference's outcome, each socket took the reference's bytes, and each end lost the
//! same.

use crate::admission::{Budget, STEP_BYTES};
use crate::channel::ChannelId;
use crate::shard::command::{
    CloseCommand, CloseFrame, Command, Policy, PushFrame, PushKind, PushMany, ReportTo, ShardAudience, WhenFull,
};
use crate::shard::config::ShardConfig;
use crate::shard::outcome::Outcome;
use crate::shard::stage::{BINARY, Client, OWNER, Settled, Stage, ask, frames};
use bytes::Bytes;
use proptest::prelude::*;
use std::cell::RefCell;
use std::rc::Rc;

const BUDGET: usize = 2000;
const CLIENTS: usize = 3;
/// Payloads above this stay by reference.
const COPY_BYTES_MAX: usize = 300;

struct Frame {
    bytes: Vec<u8>,
    sent: usize,
    /// The report of its outcome, until the socket was offered it.
    asked: Option<Rc<RefCell<Outcome>>>,
}

impl Frame {
    fn left(&self) -> usize {
        self.bytes.len() - self.sent
    }

    fn is_control(&self) -> bool {
        self.bytes[0] & 8 != 0
    }
}

/// The naive twin of one channel and its socket.
#[derive(Default)]
struct Twin {
    queue: Vec<Frame>,
    held: Vec<(u64, Vec<u8>)>,
    is_blocked: bool,
    close_bytes: usize,
    ended: Option<usize>,
    is_gone: bool,
    room: usize,
    left: Vec<u8>,
}

fn close_frame(code: u16, reason: &str) -> Vec<u8> {
    [&[0x88, reason.len() as u8 + 2][..], &code.to_be_bytes(), reason.as_bytes()].concat()
}

impl Twin {
    fn held_bytes(&self) -> usize {
        self.held.iter().map(|(_, bytes)| bytes.len()).sum()
    }

    fn queued(&self) -> usize {
        self.queue.iter().map(Frame::left).sum::<usize>() + self.held_bytes()
    }

    /// How many frames at the front can neither be dropped nor preceded.
    fn in_progress(&self) -> usize {
        usize::from(self.queue.first().is_some_and(|frame| frame.sent > 0))
    }

    fn append(&mut self, bytes: Vec<u8>, asked: Option<Rc<RefCell<Outcome>>>) {
        let held = self.held.drain(..).map(|(_, bytes)| Frame { bytes, sent: 0, asked: None });
        self.queue.extend(held);
        self.queue.push(Frame { bytes, sent: 0, asked });
    }

    /// Offers the socket what waits, once.
    fn flush(&mut self) {
        if self.is_blocked || self.is_gone || self.queued() == 0 {
            return;
        }
        if self.queue.is_empty() {
            let held = self.held.drain(..).map(|(_, bytes)| Frame { bytes, sent: 0, asked: None });
            self.queue.extend(held);
        }
        let mut taken = self.queue.iter().map(Frame::left).sum::<usize>().min(self.room);
        self.room -= taken;
        for frame in &mut self.queue {
            let count = frame.left().min(taken);
            self.left.extend_from_slice(&frame.bytes[frame.sent..frame.sent + count]);
            (frame.sent, taken) = (frame.sent + count, taken - count);
        }
        let done = self.queue.iter().take_while(|frame| frame.left() == 0).count();
        for frame in self.queue.drain(..done) {
            frame.asked.inspect(|asked| asked.borrow_mut().sent += 1);
        }
        self.is_blocked = !self.queue.is_empty();
        let queued = self.queued();
        for asked in self.queue.iter_mut().filter_map(|frame| frame.asked.take()) {
            let mut counts = asked.borrow_mut();
            counts.queued += 1;
            counts.queued_bytes += queued;
        }
    }

    fn settle(&mut self) {
        while !self.is_blocked && !self.is_gone && self.queued() > 0 {
            self.flush();
        }
    }

    fn end(&mut self, lost: usize) {
        self.ended = Some(lost);
        for asked in self.queue.iter_mut().filter_map(|frame| frame.asked.take()) {
            asked.borrow_mut().closed += 1;
        }
    }

    fn push(&mut self, bytes: Vec<u8>, policy: Policy, counts: &Rc<RefCell<Outcome>>) {
        let fits = |before: usize| before == 0 || before + bytes.len() <= BUDGET;
        while !self.is_blocked && !fits(self.queued()) && self.close_bytes == 0 {
            self.flush();
        }
        if self.close_bytes > 0 {
            counts.borrow_mut().closed += 1;
            return;
        }
        if !self.is_blocked {
            return self.append(bytes, Some(counts.clone()));
        }
        let key = policy.key().filter(|_| bytes[0] & 8 == 0);
        let place = self.held.iter().position(|(held, _)| Some(*held) == key);
        let replaced = place.map_or(0, |place| self.held[place].1.len());
        if !fits(self.queued() - replaced) {
            match policy.when_full() {
                WhenFull::DropOldest if self.make_room(bytes.len()) => {}
                WhenFull::DropOldest | WhenFull::DropNewest => {
                    counts.borrow_mut().dropped += 1;
                    return;
                }
                WhenFull::Close => {
                    counts.borrow_mut().closed += 1;
                    let before = self.queued();
                    self.queue.truncate(self.in_progress());
                    self.held.clear();
                    let lost = before - self.queued();
                    let why = close_frame(1013, "too slow: the limit of queued bytes is reached");
                    self.close_bytes = why.len();
                    self.is_blocked &= !self.queue.is_empty();
                    self.append(why, None);
                    return self.end(lost);
                }
            }
        }
        match (key, place) {
            (Some(_), Some(place)) => {
                self.held[place].1 = bytes;
                counts.borrow_mut().conflated += 1;
                return;
            }
            (Some(key), None) => self.held.push((key, bytes)),
            (None, _) => self.append(bytes, None),
        }
        let mut counts = counts.borrow_mut();
        counts.queued += 1;
        counts.queued_bytes += self.queued();
    }

    /// Drops the oldest data frames until `len` more bytes fit, or nothing.
    fn make_room(&mut self, len: usize) -> bool {
        let excess = self.queued() + len - BUDGET;
        let from = self.in_progress();
        let data = |frame: &&Frame| !frame.is_control();
        let droppable: usize = self.queue[from..].iter().filter(data).map(Frame::left).sum();
        if len > BUDGET || droppable + self.held_bytes() < excess {
            return false;
        }
        let mut dropped = 0;
        let mut at = from;
        while dropped < excess && at < self.queue.len() {
            if self.queue[at].is_control() {
                at += 1;
            } else {
                dropped += self.queue.remove(at).left();
            }
        }
        while dropped < excess {
            dropped += self.held.remove(0).1.len();
        }
        true
    }
}

#[derive(Debug, Clone)]
enum Op {
    Push { client: usize, is_ping: bool, len: usize, policy: Policy, is_asked: bool },
    Many { clients: Vec<usize>, except: Vec<usize>, len: usize, policy: Policy, all: bool },
    Turn,
    Room { client: usize, room: usize },
    Close { client: usize },
    Gone { client: usize },
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let len = || prop_oneof![8 => 0..400usize, 2 => 400..2500usize, 1 => Just(BUDGET - 4), 1 => Just(BUDGET - 3)];
    // All there are, those that keep more of a channel more often.
    let weight = |policy: &Policy| if policy.when_full() == WhenFull::Close && policy.key().is_none() { 1 } else { 3 };
    let policies: Vec<_> = Policy::EACH.into_iter().flat_map(|policy| vec![policy; weight(&policy)]).collect();
    let policy = || (prop::sample::select(policies.clone()), 0..3u64).prop_map(|(policy, key)| policy.with_key(key));
    let client = || 0..CLIENTS;
    let op = prop_oneof![
        20 => (client(), prop::bool::weighted(0.15), len(), policy(), any::<bool>())
            .prop_map(|(client, is_ping, len, policy, is_asked)| Op::Push { client, is_ping, len, policy, is_asked }),
        5 => (prop::collection::vec(0..CLIENTS + 1, 0..5), prop::collection::vec(client(), 0..2), len(), policy(), any::<bool>())
            .prop_map(|(clients, except, len, policy, all)| Op::Many { clients, except, len, policy, all }),
        10 => Just(Op::Turn),
        8 => (client(), prop_oneof![Just(0), 0..1500usize]).prop_map(|(client, room)| Op::Room { client, room }),
        1 => client().prop_map(|client| Op::Close { client }),
        1 => client().prop_map(|client| Op::Gone { client }),
    ];
    prop::collection::vec(op, 1..120)
}

struct Pair {
    stage: Stage,
    clients: Vec<Client>,
    twins: Vec<Twin>,
    asked: Vec<(Settled, Rc<RefCell<Outcome>>, usize)>,
    count: u8,
}

impl Pair {
    fn new(budget: Budget) -> Self {
        let config =
            ShardConfig { outbound_bytes_max: BUDGET, copy_bytes_max: COPY_BYTES_MAX, ..ShardConfig::default() };
        let mut stage = Stage::new(config, budget);
        let clients = (0..CLIENTS).map(|_| stage.open(0)).collect();
        let twins = (0..CLIENTS).map(|_| Twin::default()).collect();
        Self { stage, clients, twins, asked: Vec::new(), count: 0 }
    }

    fn payload(&mut self, len: usize) -> Bytes {
        self.count = self.count.wrapping_add(1);
        (0..len).map(|at| (at as u8).wrapping_mul(31).wrapping_add(self.count)).collect()
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Push { client, is_ping, len, policy, is_asked } => {
                let payload = self.payload(if is_ping { len.min(125) } else { len });
                let kind = if is_ping { PushKind::Ping } else { BINARY };
                let (channel, counts) = (self.clients[client].channel, Rc::default());
                if is_asked {
                    let asked = self.stage.push(channel, kind, payload.clone(), Some(policy));
                    self.asked.push((asked, Rc::clone(&counts), 1));
                } else {
                    self.stage.push_as(channel, kind, payload.clone(), Some(policy), ReportTo::Nobody);
                }
                self.twin_push(client, if is_ping { 0x89 } else { 0x82 }, &payload, policy, &counts);
            }
            Op::Many { clients, except, len, policy, all } => self.push_many(clients, except, len, policy, all),
            Op::Turn => self.turn(),
            Op::Room { client, room } => {
                self.stage.give_room(self.clients[client], room);
                self.twins[client].room = room;
                self.twins[client].is_blocked = false;
            }
            Op::Close { client } => {
                let why = CloseFrame { code: Some(1000), reason: "bye".into() };
                let channel = self.clients[client].channel;
                let close = CloseCommand { channel, owner: Some(OWNER), why, abruptly: false, asked: ReportTo::Nobody };
                self.stage.shard.handle_command(Command::Close(Box::new(close)), 0);
                let twin = &mut self.twins[client];
                if twin.close_bytes == 0 && twin.ended.is_none() {
                    twin.close_bytes = 7;
                    twin.append(close_frame(1000, "bye"), None);
                }
            }
            Op::Gone { client } => {
                self.stage.shard.handle_end(self.clients[client].token, crate::shard::SocketEnd::Broken, 0);
                let twin = &mut self.twins[client];
                if twin.ended.is_none() {
                    twin.end(twin.queued().saturating_sub(twin.close_bytes));
                }
                twin.is_gone = true;
            }
        }
    }

    fn push_many(&mut self, clients: Vec<usize>, except: Vec<usize>, len: usize, policy: Policy, all: bool) {
        let payload = self.payload(len);
        let unknown = ChannelId::new(u32::MAX);
        let id = |at: &usize| self.clients.get(*at).map_or(unknown, |client| client.channel);
        let mut left_out: Vec<ChannelId> = except.iter().map(id).collect();
        left_out.sort_unstable();
        let audience =
            if all { ShardAudience::Process } else { ShardAudience::Channels(clients.iter().map(id).collect()) };
        let (part, asked) = ask();
        let frame = PushFrame { kind: BINARY, payload: payload.clone() };
        let except_ids = left_out.into();
        let policy_given = Some(policy);
        let many = PushMany {
            audience,
            except: except_ids,
            owner: OWNER,
            frame,
            compressed: None,
            policy: policy_given,
            part,
        };
        self.stage.shard.handle_command(Command::PushMany(Box::new(many)), 0);
        let counts: Rc<RefCell<Outcome>> = Rc::default();
        let reached: Vec<usize> =
            if all { (0..CLIENTS).filter(|&at| self.twins[at].ended.is_none()).collect() } else { clients };
        let reached: Vec<usize> = reached.into_iter().filter(|at| !except.contains(at)).collect();
        for &at in &reached {
            self.twin_push(at, 0x82, &payload, policy, &counts);
        }
        self.asked.push((asked, counts, reached.len()));
    }

    fn twin_push(&mut self, at: usize, first: u8, payload: &[u8], policy: Policy, counts: &Rc<RefCell<Outcome>>) {
        match self.twins.get_mut(at).filter(|twin| twin.ended.is_none()) {
            None => counts.borrow_mut().not_found += 1,
            Some(twin) => {
                let mut frame = vec![first];
                match payload.len() {
                    len @ 0..126 => frame.push(len as u8),
                    len => frame.extend([126, (len >> 8) as u8, len as u8]),
                }
                frame.extend_from_slice(payload);
                twin.push(frame, policy, counts);
            }
        }
    }

    fn turn(&mut self) {
        self.stage.settle();
        self.twins.iter_mut().for_each(Twin::settle);
    }

    /// Both have done the same.
    fn compare(&mut self) {
        self.turn();
        for (settled, counts, _) in self.asked.drain(..) {
            assert_eq!(settled.try_recv().expect("every push has an outcome"), *counts.borrow());
        }
        for closed in self.stage.closed() {
            let at = self.clients.iter().position(|client| client.channel == closed.channel).unwrap();
            assert_eq!(self.twins[at].ended, Some(closed.lost_bytes), "lost by {at}: {closed:?}");
        }
        for at in 0..CLIENTS {
            let left = self.stage.wire(self.clients[at].socket, |wire| wire.to_client.clone());
            assert!(left == self.twins[at].left, "socket {at}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_shard_does_what_its_twin_does(ops in ops()) {
        let mut pair = Pair::new(Budget::default());
        for op in ops {
            pair.apply(op);
            let is_over = |twin: &Twin| twin.queued() > BUDGET + twin.close_bytes && twin.queue.len() > 1 + usize::from(twin.close_bytes > 0);
            prop_assert!(!pair.twins.iter().any(is_over), "only a single frame may be over the budget");
        }
        pair.compare();
    }

    /// With little memory the twin cannot tell which goes first; but the rules for all still hold.
    #[test]
    fn short_of_memory_frames_stay_whole_and_pushes_are_answered(ops in ops(), hoard in 0..3usize) {
        let mut pair = Pair::new(Budget::of(STEP_BYTES));
        // Nearly all of it is taken by a client that the operations do not touch.
        let hoarder = pair.stage.open(0);
        let taken = STEP_BYTES - [500, 3000, 10_000][hoard];
        pair.stage.push(hoarder.channel, BINARY, vec![0; taken].into(), Some(Policy::DropNewest));
        pair.stage.turn();
        for op in ops {
            let is_many_to_all = matches!(op, Op::Many { all: true, .. });
            pair.apply(op);
            if is_many_to_all {
                // The hoarder is of the audience too.
                pair.asked.pop();
            }
        }
        pair.stage.settle();
        let memory = pair.stage.shard.report().memory;
        prop_assert!(memory.used_bytes() <= STEP_BYTES, "{memory:?}");
        for (settled, _, audience) in pair.asked.drain(..) {
            let counts = settled.try_recv().expect("every push has an outcome");
            let Outcome { sent, queued, conflated, dropped, closed, not_found, not_owner, .. } = counts;
            prop_assert_eq!(sent + queued + conflated + dropped + closed + not_found + not_owner, audience);
        }
        // Kept frames leave whole.
        for client in pair.clients.clone() {
            pair.stage.give_room(client, usize::MAX);
        }
        pair.stage.settle();
        for at in 0..CLIENTS {
            if !pair.twins[at].is_gone {
                let left = pair.stage.wire(pair.clients[at].socket, |wire| wire.to_client.clone());
                frames(&left);
            }
        }
    }
}
