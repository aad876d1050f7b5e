//! A monoio task that awaits the shard's epoll set sleeps over nothing, on both drivers: not over sockets, not over
//! wakes from other threads, and not over events that a poll with a small buffer left in the set.

use pushring::internals::driver::epoll::{EpollEvents, ReadySet};
use pushring::internals::driver::runtime::{DriverKind, ShardRuntime, yield_now};
use pushring::internals::driver::sys::{ReadOutcome, receive};
use pushring::internals::driver::wake::WakeFd;
use pushring::internals::inbox::{InboxLimits, Wake, inbox};
use std::cell::Cell;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

const DRIVERS: [DriverKind; 2] = [DriverKind::Uring, DriverKind::Epoll];

/// Each byte is sent only after the one before it was seen: the waiter goes to sleep each time, and one lost wake
/// hangs the test.
#[test]
fn each_byte_wakes_the_waiter() {
    for kind in DRIVERS {
        let (mut here, there) = UnixStream::pair().unwrap();
        let seen = Arc::new(AtomicU32::new(0));
        let sees = seen.clone();
        let sender = thread::spawn(move || {
            for number in 0..500 {
                while seen.load(Ordering::Acquire) < number {
                    thread::yield_now();
                }
                here.write_all(&[7]).unwrap();
            }
        });
        ShardRuntime::new(kind).unwrap().block_on(async move {
            let (set, mut events) = (ReadySet::new().unwrap(), EpollEvents::with_capacity(8));
            let waiter = set.waiter().unwrap();
            set.add(&there, 1).unwrap();
            let mut buffer = [0; 8];
            while sees.load(Ordering::Relaxed) < 500 {
                waiter.ready().await.unwrap();
                set.poll(&mut events).unwrap();
                for event in events.iter().filter(|event| event.readable) {
                    assert_eq!(event.token, 1);
                    while let ReadOutcome::Bytes(length) = receive(&there, &mut buffer).unwrap() {
                        sees.fetch_add(length as u32, Ordering::Release);
                    }
                }
            }
        });
        sender.join().unwrap();
    }
}

#[test]
fn events_left_in_the_set_wake_the_waiter_again() {
    for kind in DRIVERS {
        ShardRuntime::new(kind).unwrap().block_on(async move {
            let (set, mut events) = (ReadySet::new().unwrap(), EpollEvents::with_capacity(1));
            let waiter = set.waiter().unwrap();
            let mut pairs: Vec<_> = (0..10).map(|_| UnixStream::pair().unwrap()).collect();
            for (token, (_, there)) in pairs.iter().enumerate() {
                set.add(there, token as u64).unwrap();
            }
            for round in 0..3 {
                let mut seen = [false; 10];
                for _ in 0..10 {
                    waiter.ready().await.unwrap();
                    set.poll(&mut events).unwrap();
                    events.iter().for_each(|event| seen[event.token as usize] = true);
                }
                assert_eq!(seen, [true; 10], "{kind}, round {round}");
                pairs.iter_mut().for_each(|(here, _)| here.write_all(b"x").unwrap());
            }
        });
    }
}

#[test]
fn a_waiter_without_news_sleeps() {
    for kind in DRIVERS {
        ShardRuntime::new(kind).unwrap().block_on(async move {
            let (set, mut events) = (ReadySet::new().unwrap(), EpollEvents::with_capacity(8));
            let waiter = set.waiter().unwrap();
            let (mut here, there) = UnixStream::pair().unwrap();
            set.add(&there, 1).unwrap();
            set.poll(&mut events).unwrap();
            let woken = Rc::new(Cell::new(0));
            let wakes = woken.clone();
            let task = monoio::spawn(async move {
                waiter.ready().await.unwrap();
                wakes.set(wakes.get() + 1);
            });
            for _ in 0..1000 {
                yield_now().await_in_task().await;
            }
            assert_eq!(woken.get(), 0, "{kind}: ready, though all was reported");
            here.write_all(b"x").unwrap();
            task.await;
            assert_eq!(woken.get(), 1);
        });
    }
}

/// `block_on`'s own future must not yield; this runs it in a task.
trait InTask {
    fn await_in_task(self) -> monoio::task::JoinHandle<()>;
}

impl<F: Future<Output = ()> + 'static> InTask for F {
    fn await_in_task(self) -> monoio::task::JoinHandle<()> {
        monoio::spawn(self)
    }
}

/// The whole way of a push between threads: inbox, wake flag, eventfd, epoll set, runtime.
#[test]
fn a_sleeping_shard_is_woken_for_each_command() {
    for kind in DRIVERS {
        let wake = Arc::new(WakeFd::new().unwrap());
        let (sender, mut inbox) = inbox(InboxLimits { commands_max: 64, bytes_max: 1 << 20 }, SharedWake(wake.clone()));
        let handled = Arc::new(AtomicU32::new(0));
        let handles = handled.clone();
        let producer = thread::spawn(move || {
            let account = sender.account();
            for number in 0..2000 {
                // Sometimes one by one, so that the shard sleeps in between, sometimes in bursts.
                while number % 5 == 0 && handled.load(Ordering::Acquire) < number {
                    thread::yield_now();
                }
                sender.send_wait(number, 1, &account).unwrap();
            }
        });
        ShardRuntime::new(kind).unwrap().block_on(async move {
            let (set, mut events) = (ReadySet::new().unwrap(), EpollEvents::with_capacity(8));
            let waiter = set.waiter().unwrap();
            set.add_source(&*wake, 0).unwrap();
            let mut next = 0;
            while next < 2000 {
                inbox.drain(16, u64::MAX, |number| {
                    assert_eq!(number, next);
                    next += 1;
                });
                handles.store(next, Ordering::Release);
                if next < 2000 && inbox.prepare_sleep() {
                    waiter.ready().await.unwrap();
                    inbox.awake();
                    set.poll(&mut events).unwrap();
                }
            }
        });
        producer.join().unwrap();
    }
}

struct SharedWake(Arc<WakeFd>);

impl Wake for SharedWake {
    fn wake(&self) {
        self.0.wake();
    }
}
