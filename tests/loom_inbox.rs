//! The inbox's sleep, wake and wait for room, in every order that the memory model allows.
//!
//! The very files that the inbox is built from are compiled here against loom's atomics, around a stand-in queue whose
//! own operations order as little as a correct queue's may. A lost wake leaves a thread asleep for ever, which loom
//! reports as a deadlock; the last tests plant such bugs and expect the report. Run it with
//! `cargo test --test loom_inbox`.

#[path = "../src/inbox/gauge.rs"]
#[allow(dead_code)]
mod gauge;
#[path = "../src/inbox/room.rs"]
mod room;
#[path = "../src/inbox/wake_flag.rs"]
mod wake_flag;

/// What `src/inbox/sync.rs` is to the inbox.
mod sync {
    pub(super) use loom::sync::Mutex;
    pub(super) use loom::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
}

use gauge::{Gauge, Limits};
use loom::sync::{Arc, Notify};
use loom::thread;
use room::{Room, Waiter};
use sync::{AtomicBool, AtomicU64, Ordering, fence};
use wake_flag::WakeFlag;

mod loom_notify {
    //! An eventfd, or a thread's parking place: remembers one notification.
    pub(super) struct Event(pub(super) super::Notify);
}
use loom_notify::Event;

/// A queue of which only the length matters.
struct Queue {
    commands: AtomicU64,
    flag: WakeFlag,
    eventfd: Event,
}

impl Queue {
    fn new() -> Arc<Self> {
        Arc::new(Self { commands: AtomicU64::new(0), flag: WakeFlag::new(), eventfd: Event(Notify::new()) })
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
            self.eventfd.0.notify();
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
                self.eventfd.0.wait();
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
                        queue.eventfd.0.notify();
                    }
                })
            })
            .collect();
        while !kicked.swap(false, Ordering::AcqRel) {
            if queue.flag.prepare_sleep(|| kicked.load(Ordering::Acquire)) {
                queue.eventfd.0.wait();
                queue.flag.awake();
            }
        }
        kickers.into_iter().for_each(|kicker| kicker.join().unwrap());
    });
}

/// A thread that waits for room.
#[derive(Clone)]
struct Parked(Arc<Event>);

impl Waiter for Parked {
    fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    fn wake(self) {
        self.0.0.notify();
    }
}

fn limits(commands_max: u32) -> Limits {
    Limits { commands_max, bytes_max: 100 }
}

fn take_wait(gauge: &Gauge, room: &Room<Parked>) {
    let parked = Parked(Arc::new(Event(Notify::new())));
    let mut registered = false;
    while !gauge.try_take(10) {
        if registered {
            parked.0.0.wait();
        } else {
            room.register(parked.clone());
        }
        registered = !registered;
    }
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
            shared.1.announce();
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

#[test]
#[should_panic(expected = "deadlock")]
fn loom_finds_a_shard_that_looks_before_it_sets_the_flag() {
    model(|| {
        let queue = Queue::new();
        let producer = {
            let queue = queue.clone();
            thread::spawn(move || queue.send())
        };
        while queue.drain() == 0 {
            if queue.is_empty() && queue.flag.prepare_sleep(|| false) {
                queue.eventfd.0.wait();
            }
        }
        producer.join().unwrap();
    });
}

#[test]
#[should_panic(expected = "deadlock")]
fn loom_finds_a_producer_without_its_fence() {
    model(|| {
        let queue = Queue::new();
        let asleep = Arc::new(AtomicBool::new(false));
        let producer = {
            let (queue, asleep) = (queue.clone(), asleep.clone());
            thread::spawn(move || {
                queue.push();
                if asleep.load(Ordering::Relaxed) {
                    queue.eventfd.0.notify();
                }
            })
        };
        while queue.drain() == 0 {
            asleep.store(true, Ordering::Relaxed);
            fence(Ordering::SeqCst);
            if queue.is_empty() {
                queue.eventfd.0.wait();
            }
        }
        producer.join().unwrap();
    });
}

#[test]
#[should_panic(expected = "deadlock")]
fn loom_finds_a_waiter_that_does_not_look_again() {
    model(|| {
        let shared = Arc::new((Gauge::new(limits(1)), Room::new()));
        assert!(shared.0.try_take(10));
        let waiter = {
            let shared = shared.clone();
            thread::spawn(move || {
                let parked = Parked(Arc::new(Event(Notify::new())));
                while !shared.0.try_take(10) {
                    shared.1.register(parked.clone());
                    parked.0.0.wait();
                }
            })
        };
        shared.0.release(1, 10);
        shared.1.announce();
        waiter.join().unwrap();
    });
}
