//! The inbox's sleep, wake and wait for room, in every order that the memory model allows.
//!
//! The very files that the inbox is built from are compiled here against loom's atomics, around a stand-in queue whose
//! own operations order as little as a correct queue's may. A lost wake leaves a thread asleep for ever, which loom
//! reports as a deadlock; the last tests plant bugs and expect loom to find them. Run it with
//! `cargo test --test loom_inbox`.

#[path = "../src/queue/gauge.rs"]
#[allow(dead_code)]
mod gauge;
#[path = "../src/queue/ring.rs"]
#[allow(dead_code)]
mod ring;
#[path = "../src/queue/room.rs"]
#[allow(dead_code)]
mod room;
#[path = "../src/queue/sleep.rs"]
mod sleep;
#[path = "../src/queue/wake_flag.rs"]
mod wake_flag;

/// Stands in for `src/queue/sync.rs`.
mod sync {
    pub(super) use loom::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};
    pub(super) use loom::sync::{Condvar, Mutex, MutexGuard};

    /// Time does not pass in a model: a thread that is not woken sleeps for ever.
    pub(super) fn wait_timeout_while<T>(
        condvar: &Condvar,
        mut guard: MutexGuard<'_, T>,
        _timeout: std::time::Duration,
        mut waits: impl FnMut() -> bool,
    ) {
        while waits() {
            guard = condvar.wait(guard).unwrap();
        }
        drop(guard);
    }
}

use gauge::{Gauge, InboxLimits};
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;
use ring::ring;
use room::{Room, Waiter};
use sleep::Sleep;
use std::time::Duration;
use sync::{AtomicBool, AtomicU64, Ordering, fence};
use wake_flag::WakeFlag;

/// An eventfd, or the token of a parked thread: remembers a ring until a thread has waited for it.
struct Notify {
    rung: Mutex<bool>,
    bell: Condvar,
}

impl Notify {
    fn new() -> Self {
        Self { rung: Mutex::new(false), bell: Condvar::new() }
    }

    fn notify(&self) {
        *self.rung.lock().unwrap() = true;
        self.bell.notify_one();
    }

    fn wait(&self) {
        let mut rung = self.rung.lock().unwrap();
        while !*rung {
            rung = self.bell.wait(rung).unwrap();
        }
        *rung = false;
    }
}

/// A queue of which only the length matters.
struct Queue {
    commands: AtomicU64,
    flag: WakeFlag,
    eventfd: Notify,
    /// Stands in for an eventfd without a waiting thread.
    rung: AtomicBool,
    /// A flag for a protocol that lacks a fence.
    unfenced: AtomicBool,
}

impl Queue {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            commands: AtomicU64::new(0),
            flag: WakeFlag::new(),
            eventfd: Notify::new(),
            rung: AtomicBool::new(false),
            unfenced: AtomicBool::new(false),
        })
    }

    fn push(&self) {
        self.commands.fetch_add(1, Ordering::Release);
    }

    fn is_empty(&self) -> bool {
        self.commands.load(Ordering::Acquire) == 0
    }

    fn drain(&self) -> u64 {
        self.commands.swap(0, Ordering::Acquire)
    }

    fn send(&self) {
        self.push();
        if self.flag.must_wake() {
            self.eventfd.notify();
        }
    }

    /// The shard's loop until it has got `expected` commands.
    fn consume(&self, expected: u64) {
        let mut got = 0;
        loop {
            got += self.drain();
            if got == expected {
                return;
            }
            if self.flag.prepare_sleep(|| !self.is_empty()) {
                self.eventfd.wait();
                self.flag.awake();
            }
        }
    }
}

/// Two producers or the like and a shard; three preemptions find every bug of this kind and keep it fast.
fn model(test: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(test);
}

#[test]
fn no_command_is_slept_over() {
    model(|| {
        let queue = Queue::new();
        let producers: Vec<_> = (0..2)
            .map(|_| {
                let queue = queue.clone();
                thread::spawn(move || queue.send())
            })
            .collect();
        queue.consume(2);
        producers.into_iter().for_each(|producer| producer.join().unwrap());
    });
}

#[test]
fn one_producer_can_wake_a_shard_again_and_again() {
    model(|| {
        let queue = Queue::new();
        let producer = {
            let queue = queue.clone();
            thread::spawn(move || {
                queue.send();
                queue.send();
            })
        };
        queue.consume(2);
        producer.join().unwrap();
    });
}

#[test]
fn a_kick_is_not_slept_over() {
    model(|| {
        let queue = Queue::new();
        let kicked = Arc::new(AtomicBool::new(false));
        let kickers: Vec<_> = (0..2)
            .map(|_| {
                let (queue, kicked) = (queue.clone(), kicked.clone());
                thread::spawn(move || {
                    if !kicked.swap(true, Ordering::AcqRel) && queue.flag.must_wake() {
                        queue.eventfd.notify();
                    }
                })
            })
            .collect();
        while !kicked.swap(false, Ordering::AcqRel) {
            if queue.flag.prepare_sleep(|| kicked.load(Ordering::Acquire)) {
                queue.eventfd.wait();
                queue.flag.awake();
            }
        }
        kickers.into_iter().for_each(|kicker| kicker.join().unwrap());
    });
}

#[test]
fn the_ring_gives_all_that_was_pushed_and_is_not_slept_over() {
    // One place for two values: a producer meets a full ring, or a place that was emptied in another thread.
    model(|| {
        let (ring, mut consumer) = ring(1);
        let (flag, eventfd) = (Arc::new(WakeFlag::new()), Arc::new(Notify::new()));
        let producers: Vec<_> = [1, 2]
            .into_iter()
            .map(|value| {
                let (ring, flag, eventfd) = (ring.clone(), flag.clone(), eventfd.clone());
                thread::spawn(move || {
                    let refused = ring.try_push(value).err();
                    if refused.is_none() && flag.must_wake() {
                        eventfd.notify();
                    }
                    refused
                })
            })
            .collect();
        let mut seen = Vec::new();
        while seen.is_empty() {
            match consumer.pop() {
                Some(value) => seen.push(value),
                None if flag.prepare_sleep(|| !consumer.is_empty()) => {
                    eventfd.wait();
                    flag.awake();
                }
                None => {}
            }
        }
        seen.extend(producers.into_iter().filter_map(|producer| producer.join().unwrap()));
        seen.extend(consumer.pop());
        seen.sort_unstable();
        assert_eq!(seen, [1, 2], "each came once, or was given back");
    });
}

/// A thread that waits for room.
#[derive(Clone)]
struct Parked(Arc<Notify>);

impl Waiter for Parked {
    fn id(&self) -> [usize; 2] {
        [std::ptr::from_ref(&*self.0).addr(), 0]
    }

    fn wake(self) {
        self.0.notify();
    }
}

fn limits(commands_max: u32) -> InboxLimits {
    InboxLimits { commands_max, bytes_max: 100 }
}

fn take_wait(gauge: &Gauge, room: &Room<Parked>) {
    let parked = Parked(Arc::new(Notify::new()));
    let mut registered = false;
    while !gauge.try_take(10) {
        if registered {
            parked.0.wait();
        } else {
            room.register(1, parked.clone());
        }
        registered = !registered;
    }
}

/// To one after the other, as a shard does in its next turns.
fn announce(room: &Room<Parked>) {
    while room.announce(1) {}
}

#[test]
fn who_waits_for_room_gets_it() {
    model(|| {
        let shared = Arc::new((Gauge::new(limits(2)), Room::new()));
        assert!(shared.0.try_take(10) && shared.0.try_take(10));
        let waiters: Vec<_> = (0..2)
            .map(|_| {
                let shared = shared.clone();
                thread::spawn(move || take_wait(&shared.0, &shared.1))
            })
            .collect();
        for _ in 0..2 {
            shared.0.release(1, 10);
            announce(&shared.1);
        }
        waiters.into_iter().for_each(|waiter| waiter.join().unwrap());
        assert_eq!(shared.0.held(), (2, 20));
    });
}

#[test]
fn a_gauge_never_holds_more_than_its_limit() {
    model(|| {
        let gauge = Arc::new(Gauge::new(limits(1)));
        let takers: Vec<_> = (0..2)
            .map(|_| {
                let gauge = gauge.clone();
                thread::spawn(move || gauge.try_take(10))
            })
            .collect();
        let taken = takers.into_iter().map(|taker| taker.join().unwrap()).filter(|taken| *taken).count();
        assert_eq!(taken, 1);
        assert_eq!(gauge.held(), (1, 10));
    });
}

/// One round of a sleep against one `send`, by its outcome: whether the shard went to sleep over a command without a
/// ring. (A real sleep would end in a deadlock, which loom cannot unwind.)
fn sleeps_over_a_command(send: fn(&Queue), may_sleep: fn(&Queue) -> bool) {
    model(move || {
        let queue = Queue::new();
        let producer = {
            let queue = queue.clone();
            thread::spawn(move || send(&queue))
        };
        let sleeps = may_sleep(&queue);
        producer.join().unwrap();
        assert!(!sleeps || queue.rung.load(Ordering::Acquire), "slept over a command");
    });
}

fn sound_send(queue: &Queue) {
    queue.push();
    if queue.flag.must_wake() {
        queue.rung.store(true, Ordering::Release);
    }
}

fn sound_sleep(queue: &Queue) -> bool {
    queue.flag.prepare_sleep(|| !queue.is_empty())
}

#[test]
fn nobody_sleeps_over_a_command_in_one_round() {
    sleeps_over_a_command(sound_send, sound_sleep);
}

#[test]
#[should_panic(expected = "slept over a command")]
fn loom_finds_a_shard_that_looks_before_it_sets_the_flag() {
    sleeps_over_a_command(sound_send, |queue| queue.is_empty() && queue.flag.prepare_sleep(|| false));
}

#[test]
#[should_panic(expected = "slept over a command")]
fn loom_finds_a_producer_that_looks_before_it_pushes() {
    let send = |queue: &Queue| {
        let must_wake = queue.flag.must_wake();
        queue.push();
        if must_wake {
            queue.rung.store(true, Ordering::Release);
        }
    };
    sleeps_over_a_command(send, sound_sleep);
}

#[test]
#[should_panic(expected = "slept over a command")]
fn loom_finds_a_producer_without_its_fence() {
    let send = |queue: &Queue| {
        queue.push();
        if queue.unfenced.load(Ordering::Relaxed) {
            queue.rung.store(true, Ordering::Release);
        }
    };
    sleeps_over_a_command(send, |queue| {
        queue.unfenced.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        queue.is_empty()
    });
}

#[test]
#[should_panic(expected = "waits beside free room")]
fn loom_finds_a_waiter_that_does_not_look_again() {
    model(|| {
        let shared = Arc::new((Gauge::new(limits(1)), Room::new()));
        assert!(shared.0.try_take(10));
        let waiter = {
            let shared = shared.clone();
            thread::spawn(move || {
                let rung = Rung(Arc::new(AtomicBool::new(false)));
                let waits = !shared.0.try_take(10);
                if waits {
                    shared.1.register(1, rung.clone());
                }
                (waits, rung)
            })
        };
        shared.0.release(1, 10);
        shared.1.announce(1);
        let (waits, rung) = waiter.join().unwrap();
        assert!(!waits || rung.0.load(Ordering::Acquire), "waits beside free room");
    });
}

/// A waiter of which one can ask whether it was woken.
#[derive(Clone)]
struct Rung(Arc<AtomicBool>);

impl Waiter for Rung {
    fn id(&self) -> [usize; 2] {
        [std::ptr::from_ref(&*self.0).addr(), 0]
    }

    fn wake(self) {
        self.0.store(true, Ordering::Release);
    }
}

/// A process' queue, of which only the length matters, and how its process sleeps.
struct Events {
    batches: AtomicU64,
    sleep: Sleep<Task>,
}

/// The waker of a task that waits for events.
struct Task(Arc<Notify>);

impl Waiter for Task {
    fn id(&self) -> [usize; 2] {
        [std::ptr::from_ref(&*self.0).addr(), 0]
    }

    fn wake(self) {
        self.0.notify();
    }
}

impl Events {
    fn new() -> Arc<Self> {
        Arc::new(Self { batches: AtomicU64::new(0), sleep: Sleep::new() })
    }

    fn send(&self) {
        self.batches.fetch_add(1, Ordering::Release);
        self.sleep.wake();
    }

    /// The process' loop until it has got `expected` batches.
    fn receive(&self, expected: u64) {
        let mut got = 0;
        while got < expected {
            got += self.batches.swap(0, Ordering::Acquire);
            if got < expected {
                self.sleep.until(Duration::MAX, || self.batches.load(Ordering::Acquire) > 0);
            }
        }
    }
}

#[test]
fn no_batch_is_slept_over() {
    model(|| {
        let events = Events::new();
        let shards: Vec<_> = (0..2)
            .map(|_| {
                let events = events.clone();
                thread::spawn(move || events.send())
            })
            .collect();
        events.receive(2);
        shards.into_iter().for_each(|shard| shard.join().unwrap());
    });
}

#[test]
fn one_shard_can_wake_a_process_again_and_again() {
    model(|| {
        let events = Events::new();
        let shard = {
            let events = events.clone();
            thread::spawn(move || {
                events.send();
                events.send();
            })
        };
        events.receive(2);
        shard.join().unwrap();
    });
}

#[test]
fn a_task_that_waits_for_events_is_woken() {
    model(|| {
        let events = Events::new();
        let shard = {
            let events = events.clone();
            thread::spawn(move || {
                events.send();
                events.send();
            })
        };
        let mut got = events.batches.swap(0, Ordering::Acquire);
        while got < 2 {
            let woken = Arc::new(Notify::new());
            events.sleep.register(Task(woken.clone()));
            let more = events.batches.swap(0, Ordering::Acquire);
            if more == 0 {
                woken.wait();
            }
            got += more + events.batches.swap(0, Ordering::Acquire);
        }
        shard.join().unwrap();
    });
}
