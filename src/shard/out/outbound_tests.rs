//! The queue against a naive reference, a plain list of frames: for any order of pushes, cuts and drops, the same bytes
//! leave, the same bytes wait, and no range is read after the window has released it.

use super::*;
use crate::proto::{Opcode, server_header};
use crate::shard::memory::SharedCharge;
use crate::shard::out::window::Cast;
use bytes::Bytes;
use proptest::prelude::*;

/// Payloads above this stay by reference.
const COPY_BYTES_MAX: usize = 64;

/// Everything that waits may be offered.
const ALL: usize = usize::MAX / 2;

fn frame(opcode: Opcode, payload: Vec<u8>) -> FrameParts {
    FrameParts {
        header: server_header(opcode, false, payload.len()),
        payload: payload.into(),
        charge: SharedCharge::default(),
    }
}

fn bytes_of(frame: &FrameParts) -> Vec<u8> {
    [frame.header.as_slice(), &frame.payload].concat()
}

/// One thing in the twin's list: a frame, or what was pushed as opaque.
struct Whole {
    bytes: Vec<u8>,
    sent: usize,
    is_opaque: bool,
}

impl Whole {
    fn left(&self) -> &[u8] {
        &self.bytes[self.sent..]
    }

    fn is_control(&self) -> bool {
        !self.is_opaque && self.bytes[0] & 0x08 != 0
    }

    /// Returns whether nothing may be put before its end, and it may not be dropped.
    fn is_in_progress(&self) -> bool {
        self.sent > 0 || self.is_opaque
    }
}

/// The naive twin.
#[derive(Default)]
struct Twin {
    queue: Vec<Whole>,
    held: Vec<(u64, Vec<u8>)>,
    lane: [Option<Vec<u8>>; 2],
    is_blocked: bool,
}

impl Twin {
    fn push(&mut self, bytes: Vec<u8>, is_opaque: bool) {
        self.let_go_of_held();
        self.queue.push(Whole { bytes, sent: 0, is_opaque });
    }

    fn let_go_of_held(&mut self) {
        let held = self.held.drain(..).map(|(_, bytes)| Whole { bytes, sent: 0, is_opaque: false });
        self.queue.extend(held);
    }

    fn conflate(&mut self, key: u64, bytes: Vec<u8>) -> bool {
        match self.held.iter_mut().find(|(held, _)| *held == key) {
            Some((_, old)) => *old = bytes,
            None => {
                self.held.push((key, bytes));
                return false;
            }
        }
        true
    }

    /// How many entries at the front stay where they are.
    fn in_progress(&self) -> usize {
        self.queue.iter().take_while(|whole| whole.is_in_progress()).count()
    }

    fn unblock(&mut self) {
        self.is_blocked = false;
        let boundary = self.in_progress();
        for (at, bytes) in (boundary..).zip(self.lane.iter_mut().filter_map(Option::take)) {
            self.queue.insert(at, Whole { bytes, sent: 0, is_opaque: false });
        }
    }

    fn prepare(&mut self) {
        if self.queue.is_empty() {
            self.let_go_of_held();
        }
    }

    fn offerable(&self) -> Vec<u8> {
        self.queue.iter().flat_map(Whole::left).copied().collect()
    }

    fn queued_bytes(&self) -> usize {
        self.offerable().len() + self.held.iter().map(|(_, bytes)| bytes.len()).sum::<usize>()
    }

    fn sent(&mut self, mut count: usize) {
        while count > 0 {
            let first = &mut self.queue[0];
            let gone = first.left().len().min(count);
            first.sent += gone;
            count -= gone;
            if first.left().is_empty() {
                self.queue.remove(0);
            }
        }
    }

    fn drop_oldest(&mut self, bytes: usize) -> (usize, usize) {
        let (mut frames, mut dropped, mut at) = (0, 0, self.in_progress());
        while dropped < bytes && at < self.queue.len() {
            if self.queue[at].is_control() {
                at += 1;
            } else {
                dropped += self.queue.remove(at).bytes.len();
                frames += 1;
            }
        }
        while dropped < bytes && !self.held.is_empty() {
            dropped += self.held.remove(0).1.len();
            frames += 1;
        }
        (frames, dropped)
    }

    fn drop_newest(&mut self, bytes: usize) -> usize {
        let (mut frames, mut dropped, mut at) = (0, 0, self.queue.len());
        while dropped < bytes
            && let Some((_, frame)) = self.held.pop()
        {
            (frames, dropped) = (frames + 1, dropped + frame.len());
        }
        while dropped < bytes && at > self.in_progress() {
            at -= 1;
            if !self.queue[at].is_control() {
                (frames, dropped) = (frames + 1, dropped + self.queue.remove(at).bytes.len());
            }
        }
        frames
    }

    fn drop_behind_boundary(&mut self) -> usize {
        let before = self.queued_bytes();
        if before == 0 {
            return 0;
        }
        self.queue.truncate(self.in_progress());
        self.held.clear();
        self.lane = Default::default();
        self.is_blocked &= !self.queue.is_empty();
        before - self.queued_bytes()
    }
}

#[derive(Debug, Clone)]
enum Op {
    Push {
        is_control: bool,
        len: usize,
        cast: Cast,
    },
    /// Bytes that are no frames, in front of the first frame.
    Opaque {
        len: usize,
    },
    Conflate {
        key: u64,
        len: usize,
    },
    Control {
        lane: ControlLane,
        len: usize,
    },
    /// Another channel's bytes lie between ours.
    Stranger {
        len: usize,
        cast: Cast,
    },
    /// A send of at most `offer` bytes, of which the socket takes `taken`/1000.
    Send {
        offer: usize,
        taken: usize,
    },
    Unblock,
    DropOldest {
        bytes: usize,
    },
    DropNewest {
        bytes: usize,
    },
    DropBehindBoundary,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let len = || prop_oneof![6 => 0..COPY_BYTES_MAX + 1, 3 => COPY_BYTES_MAX + 1..300, 1 => 30_000..40_000usize];
    let cast = || prop_oneof![1 => Just(Cast::One), 3 => Just(Cast::Many)];
    let op = prop_oneof![
        6 => (any::<bool>(), len(), cast()).prop_map(|(is_control, len, cast)| Op::Push { is_control, len, cast }),
        1 => (1..500usize).prop_map(|len| Op::Opaque { len }),
        3 => (0..3u64, len()).prop_map(|(key, len)| Op::Conflate { key, len }),
        2 => (any::<bool>(), 0..20usize).prop_map(|(is_ping, len)| Op::Control {
            lane: if is_ping { ControlLane::Ping } else { ControlLane::Pong },
            len,
        }),
        2 => (1..100usize, cast()).prop_map(|(len, cast)| Op::Stranger { len, cast }),
        5 => (prop_oneof![Just(ALL), 1..600usize], prop_oneof![Just(1000), Just(0), 0..1000usize])
            .prop_map(|(offer, taken)| Op::Send { offer, taken }),
        3 => Just(Op::Unblock),
        1 => (0..500usize).prop_map(|bytes| Op::DropOldest { bytes }),
        1 => (0..500usize).prop_map(|bytes| Op::DropNewest { bytes }),
        1 => Just(Op::DropBehindBoundary),
    ];
    proptest::collection::vec(op, 1..60)
}

/// The queue and its twin side by side, as the shard uses the queue.
#[derive(Default)]
struct Pair {
    window: Window,
    spares: Spares,
    queue: Outbound,
    twin: Twin,
    /// Makes the bytes of each payload differ.
    count: u8,
}

impl Pair {
    fn payload(&mut self, len: usize) -> Vec<u8> {
        self.count = self.count.wrapping_add(1);
        (0..len).map(|at| (at as u8).wrapping_mul(31).wrapping_add(self.count)).collect()
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Push { is_control, len, cast } => self.push(is_control, len, cast),
            Op::Opaque { len } => self.push_opaque(len),
            Op::Conflate { key, len } => self.conflate(key, len),
            Op::Control { lane, len } => self.control(lane, len),
            Op::Stranger { len, cast } => {
                self.window.append_joined(cast, b"", &vec![0xee; len]);
            }
            Op::Send { offer, taken } => self.send(offer, taken),
            Op::Unblock => {
                self.queue.unblock();
                self.twin.unblock();
            }
            Op::DropOldest { bytes } if self.queue.is_blocked() => {
                let can_drop = self.queue.can_drop(bytes);
                let dropped = self.queue.drop_oldest(bytes, &self.window);
                assert_eq!(dropped, self.twin.drop_oldest(bytes));
                assert_eq!(can_drop, dropped.1 >= bytes);
            }
            Op::DropNewest { bytes } if self.queue.is_blocked() => {
                assert_eq!(self.queue.drop_newest(bytes, &self.window), self.twin.drop_newest(bytes));
            }
            Op::DropOldest { .. } | Op::DropNewest { .. } => {}
            Op::DropBehindBoundary => {
                let dropped = self.queue.drop_behind_boundary(&self.window, &mut self.spares);
                assert_eq!(dropped, self.twin.drop_behind_boundary());
            }
        }
        assert_eq!(self.queue.is_blocked(), self.twin.is_blocked);
        assert_eq!(self.queue.offerable_bytes(), self.twin.offerable().len());
        assert_eq!(self.queue.queued_bytes(), self.twin.queued_bytes());
        if let Some(backlog) = &self.queue.backlog {
            backlog.pieces.check();
        }
        for key in 0..3 {
            let held = self.twin.held.iter().find(|(held, _)| *held == key);
            assert_eq!(self.queue.held_len(key), held.map_or(0, |(_, bytes)| bytes.len()));
        }
    }

    fn push(&mut self, is_control: bool, len: usize, cast: Cast) {
        let payload = self.payload(if is_control { len.min(125) } else { len });
        let frame = frame(if is_control { Opcode::Ping } else { Opcode::Binary }, payload);
        self.twin.push(bytes_of(&frame), false);
        if self.queue.is_blocked() {
            self.queue.push_behind(&frame, COPY_BYTES_MAX);
        } else {
            let range = if frame.payload.len() <= COPY_BYTES_MAX || frame.payload.len() > 30_000 {
                self.window.append_joined(cast, frame.header.as_slice(), &frame.payload)
            } else {
                self.window.append_blob(cast, Some(frame.header), frame.payload.clone(), SharedCharge::default())
            };
            self.queue.push_range(range, COPY_BYTES_MAX, &self.window, &mut self.spares);
        }
    }

    fn push_opaque(&mut self, len: usize) {
        if self.queue.is_blocked() || !self.queue.is_empty() {
            return;
        }
        let bytes = self.payload(len);
        let range = self.window.append_joined(Cast::Many, b"", &bytes);
        self.queue.push_opaque(range, &self.window, &mut self.spares);
        self.twin.push(bytes, true);
    }

    fn conflate(&mut self, key: u64, len: usize) {
        if self.queue.is_blocked() {
            let payload = self.payload(len);
            let frame = frame(Opcode::Text, payload);
            let replaced = self.twin.conflate(key, bytes_of(&frame));
            assert_eq!(self.queue.conflate(key, frame, COPY_BYTES_MAX), replaced);
        }
    }

    fn control(&mut self, lane: ControlLane, len: usize) {
        if self.queue.is_blocked() {
            let payload = self.payload(len);
            let bytes = bytes_of(&frame(if lane == ControlLane::Ping { Opcode::Ping } else { Opcode::Pong }, payload));
            self.queue.set_lane(lane, ControlFrame::from_slice(&bytes));
            self.twin.lane[lane as usize] = Some(bytes);
        }
    }

    /// A shard's batch: offer, record the result, and release the window.
    fn send(&mut self, offer: usize, taken: usize) {
        if self.queue.is_blocked() {
            return;
        }
        self.twin.prepare();
        let expected = self.twin.offerable();
        assert_eq!(self.queue.prepare(COPY_BYTES_MAX), !expected.is_empty());
        if expected.is_empty() {
            return;
        }
        if let Some(slice) = self.queue.as_slice(&self.window) {
            assert_eq!(slice, expected);
        }
        let mut parts = Vec::new();
        let offered = self.queue.gather(&self.window, offer, ALL, &mut parts);
        assert_eq!(offered, offer.min(expected.len()));
        let gathered: Vec<u8> = parts.iter().flat_map(|part| part.iter().copied()).collect();
        assert_eq!(gathered, expected[..offered]);
        let sent = offered * taken / 1000;
        self.twin.sent(sent);
        if sent == self.queue.offerable_bytes() {
            self.queue.sent_all(&mut self.spares);
        } else {
            self.twin.is_blocked = sent < offered;
            self.queue.sent_some(sent, sent < offered, &self.window, &mut self.spares);
        }
        self.window.release_all();
        assert_eq!(self.window.bytes(), 0);
    }

    /// Whatever has happened, all that still waits leaves whole, and nothing is kept.
    fn drain(&mut self) {
        for _ in 0..3 {
            self.apply(Op::Unblock);
            self.apply(Op::Send { offer: ALL, taken: 1000 });
        }
        assert!(self.queue.is_empty());
        assert_eq!(self.twin.queued_bytes(), 0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_queue_sends_what_its_twin_sends(ops in ops()) {
        let mut pair = Pair::default();
        for op in ops {
            pair.apply(op);
        }
        pair.drain();
    }
}

fn run(ops: impl IntoIterator<Item = Op>) -> Pair {
    let mut pair = Pair::default();
    ops.into_iter().for_each(|op| pair.apply(op));
    pair
}

const SMALL: Op = Op::Push { is_control: false, len: 10, cast: Cast::One };

#[test]
fn a_socket_that_takes_everything_needs_one_range() {
    let mut pair = run([SMALL, SMALL, SMALL]);
    assert!(pair.queue.backlog.is_none() && pair.queue.as_slice(&pair.window).is_some());
    pair.drain();
}

#[test]
fn a_held_value_never_follows_a_newer_one() {
    // Held while the socket was full; then it took bytes again, and a newer value came before the next send.
    let mut pair = run([
        SMALL,
        Op::Send { offer: ALL, taken: 500 },
        Op::Conflate { key: 1, len: 10 },
        Op::Unblock,
        SMALL,
        Op::Send { offer: ALL, taken: 1000 },
    ]);
    pair.drain();
}

#[test]
fn of_more_keys_than_may_wait_the_value_that_came_first_joins_the_queue() {
    let mut pair = run([SMALL, Op::Send { offer: ALL, taken: 500 }]);
    let keys = KEYS_MAX as u64 + 10;
    let value = |key: u64| frame(Opcode::Binary, key.to_be_bytes().to_vec());
    (0..keys).for_each(|key| assert!(!pair.queue.conflate(key, value(key), COPY_BYTES_MAX)));
    assert_eq!((pair.queue.held_values(), pair.queue.held_len(9), pair.queue.held_len(10)), (KEYS_MAX, 0, 10));
    // A newer value of such a key follows it; of the others it takes the place.
    assert!(pair.queue.conflate(10, value(10), COPY_BYTES_MAX) && !pair.queue.conflate(0, value(0), COPY_BYTES_MAX));
    pair.queue.unblock();
    let mut left = Vec::new();
    while pair.queue.prepare(COPY_BYTES_MAX) {
        let mut parts = Vec::new();
        let offered = pair.queue.gather(&pair.window, ALL, ALL, &mut parts);
        parts.iter().for_each(|part| left.extend_from_slice(part));
        drop(parts);
        assert_eq!(offered, pair.queue.offerable_bytes());
        pair.queue.sent_all(&mut pair.spares);
    }
    let values = left.len() / 10;
    let heard: Vec<u64> = (0..values)
        .map(|at| u64::from_be_bytes(left[left.len() - 10 * (values - at)..][2..10].try_into().unwrap()))
        .collect();
    let expected: Vec<u64> = (0..keys).chain([0]).collect();
    assert!(heard.ends_with(&expected), "{} values", heard.len());
}

#[test]
fn a_pong_enters_right_behind_the_frame_in_progress() {
    let pong = Op::Control { lane: ControlLane::Pong, len: 3 };
    let mut pair = run([SMALL, SMALL, Op::Send { offer: ALL, taken: 200 }, pong.clone(), pong, Op::Unblock]);
    let first = pair.twin.queue[0].left().to_vec();
    pair.twin.prepare();
    assert_eq!(pair.twin.queue.len(), 3, "the newer pong took the place of the older one");
    assert!(pair.queue.prepare(COPY_BYTES_MAX));
    let mut parts = Vec::new();
    pair.queue.gather(&pair.window, ALL, ALL, &mut parts);
    assert_eq!(&*parts[0], first);
    assert_eq!(parts[1][0], 0x8a);
}

#[test]
fn dropping_the_oldest_keeps_the_frame_in_progress_and_control_frames() {
    let ping = Op::Push { is_control: true, len: 4, cast: Cast::One };
    let mut pair = run([SMALL, SMALL, ping, SMALL, Op::Send { offer: ALL, taken: 100 }]);
    let (frames, bytes) = pair.queue.drop_oldest(ALL, &pair.window);
    assert_eq!((frames, bytes), (2, 24));
    assert_eq!(pair.twin.drop_oldest(ALL), (2, 24));
    assert_eq!(pair.queue.queued_bytes(), pair.twin.queued_bytes());
    pair.drain();
}

#[test]
fn a_large_payload_is_never_copied() {
    let payload = Bytes::from(vec![7; 1000]);
    let large = FrameParts {
        header: server_header(Opcode::Binary, false, 1000),
        payload: payload.clone(),
        charge: SharedCharge::default(),
    };
    let mut pair = Pair::default();
    let range = pair.window.append_blob(Cast::Many, Some(large.header), payload.clone(), SharedCharge::default());
    pair.queue.push_range(range, COPY_BYTES_MAX, &pair.window, &mut pair.spares);
    pair.queue.sent_some(100, true, &pair.window, &mut pair.spares);
    pair.window.release_all();
    pair.queue.push_behind(&large, COPY_BYTES_MAX);
    let mut parts = Vec::new();
    assert_eq!(pair.queue.gather(&pair.window, ALL, ALL, &mut parts), 2 * 1004 - 100);
    assert_eq!(parts[0].as_ptr(), payload[96..].as_ptr());
    assert_eq!(parts[2].as_ptr(), payload.as_ptr());
}

#[test]
fn what_is_pinned_when_the_socket_fills_is_not_dropped() {
    let mut window = Window::default();
    let mut spares = Spares::default();
    let mut queue = Outbound::default();
    let frame = |name: u8| FrameParts {
        header: server_header(Opcode::Binary, false, 10),
        payload: Bytes::from(vec![name; 10]),
        charge: Default::default(),
    };
    for name in 0..3 {
        let range = window.append_joined(Cast::Many, frame(name).header.as_slice(), &frame(name).payload);
        queue.push_range(range, COPY_BYTES_MAX, &window, &mut spares);
    }
    // Half of the first frame has left; the others are pinned with it.
    queue.sent_some(6, true, &window, &mut spares);
    queue.pin();
    for name in 3..6 {
        queue.push_behind(&frame(name), COPY_BYTES_MAX);
    }
    assert!(queue.can_drop(36) && !queue.can_drop(37));
    assert_eq!(queue.drop_oldest(13, &window), (2, 24));
    queue.push_behind(&frame(6), COPY_BYTES_MAX);
    queue.unblock();
    let mut parts = Vec::new();
    queue.gather(&window, ALL, ALL, &mut parts);
    let sent: Vec<u8> = parts.iter().flat_map(|part| part.to_vec()).collect();
    let expected: Vec<u8> =
        [0, 1, 2, 5, 6].map(|name| [frame(name).header.as_slice(), &frame(name).payload].concat()).concat();
    assert_eq!(sent, expected[6..]);
    // Once the socket takes bytes again nothing is pinned, until it is said again.
    queue.sent_some(6, true, &window, &mut spares);
    assert!(queue.can_drop(48) && !queue.can_drop(49));
}

#[test]
fn spare_queues_are_bounded_and_counted() {
    let (mut window, mut spares) = (Window::default(), Spares::default());
    let mut queues: Vec<Outbound> = (0..4000).map(|_| Outbound::default()).collect();
    for _ in 0..2 {
        for queue in &mut queues {
            // What lies between keeps one from going on where the other ends.
            let range = window.append_joined(Cast::Many, b"", b"frame");
            window.append_joined(Cast::Many, b"", b"of another");
            queue.push_range(range, COPY_BYTES_MAX, &window, &mut spares);
        }
    }
    assert_eq!((spares.len(), spares.heap_bytes()), (0, 0), "all of them are in use");
    queues.iter_mut().for_each(|queue| queue.sent_all(&mut spares));
    let of_one = spares.bytes / spares.len();
    assert!((Spares::BYTES_MAX..Spares::BYTES_MAX + of_one).contains(&spares.bytes), "{}", spares.bytes);
    let sum = spares.backlogs.iter().map(|backlog| backlog.spare_bytes()).sum::<usize>();
    assert_eq!(spares.heap_bytes(), sum + spares.backlogs.capacity() * size_of::<usize>());
    let (spare, taken) = (spares.bytes, spares.take());
    assert_eq!(spares.bytes, spare - taken.spare_bytes());
}

#[test]
fn small_frames_are_counted_as_they_come_and_dropped_by_the_chunk() {
    let (mut window, mut spares, mut queue) = (Window::default(), Spares::default(), Outbound::default());
    let empty = frame(Opcode::Binary, Vec::new());
    let range = window.append_joined(Cast::Many, empty.header.as_slice(), b"");
    queue.push_range(range, COPY_BYTES_MAX, &window, &mut spares);
    queue.sent_some(1, true, &window, &mut spares);
    (0..20_000).for_each(|_| queue.push_behind(&empty, COPY_BYTES_MAX));
    let ping = frame(Opcode::Ping, Vec::new());
    queue.push_behind(&ping, COPY_BYTES_MAX);
    let pieces = queue.backlog.as_ref().unwrap().pieces.len();
    // Nothing of it is gone through again, however often the socket turned out to be full.
    assert!(queue.backlog.as_ref().unwrap().pieces.iter().skip(1).all(|piece| piece.is_counted()));
    queue.pin();
    queue.sent_some(0, true, &window, &mut spares);
    assert!(queue.can_drop(40_000) && !queue.can_drop(40_001));
    assert_eq!(queue.drop_oldest(39_990, &window), (19_995, 39_990));
    assert!(pieces > 9 && queue.backlog.as_ref().unwrap().pieces.len() <= 3);
    assert_eq!(queue.drop_oldest(40_000, &window), (5, 10));
    assert_eq!(queue.queued_bytes(), 1 + 2, "the frame in progress, and the ping");
}

#[test]
fn control_frames_are_stepped_over_a_bounded_number_at_a_time() {
    let (mut window, mut spares, mut queue) = (Window::default(), Spares::default(), Outbound::default());
    let [empty, ping] = [Opcode::Binary, Opcode::Ping].map(|opcode| frame(opcode, Vec::new()));
    let range = window.append_joined(Cast::Many, empty.header.as_slice(), b"");
    queue.push_range(range, COPY_BYTES_MAX, &window, &mut spares);
    queue.sent_some(1, true, &window, &mut spares);
    let count = 2 * STEPS_MAX;
    for _ in 0..count {
        queue.push_behind(&ping, COPY_BYTES_MAX);
        queue.push_behind(&empty, COPY_BYTES_MAX);
    }
    // Each of them once, so that it goes on where it was; and the frames behind them are not counted again.
    assert_eq!(queue.drop_oldest(usize::MAX, &window).0, STEPS_MAX);
    assert!(queue.backlog.as_ref().unwrap().pieces.iter().skip(1).all(|piece| piece.is_counted()));
    assert_eq!(queue.drop_oldest(usize::MAX, &window).0, count - STEPS_MAX);
    assert_eq!(queue.queued_bytes(), 1 + 2 * count);
}
