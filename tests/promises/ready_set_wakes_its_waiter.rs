//! A shard's epoll set wakes the thread that waits in it for all that happens: not only for sockets, but for commands
//! of other threads, and for events that a poll with a small buffer left in the set; and for nothing else.

use crate::support::PATIENCE;
use pushring::internals::driver::epoll::{EpollEvents, ReadySet};
use pushring::internals::driver::sys::{ReadOutcome, receive};
use pushring::internals::driver::wake::WakeFd;
use pushring::internals::inbox::{InboxLimits, Wake, inbox};
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

/// Each byte is sent only after the one before it was seen: the thread goes to sleep each time, and one lost wake fails
/// the test.
#[test]
fn each_byte_wakes_the_waiter() {
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
    let (set, mut events) = (ReadySet::new().unwrap(), EpollEvents::with_capacity(8));
    set.add(&there, 1).unwrap();
    let mut buffer = [0; 8];
    while sees.load(Ordering::Relaxed) < 500 {
        set.wait(&mut events, PATIENCE).unwrap();
        assert_ne!(events.iter().count(), 0, "a wake was lost");
        for event in events.iter().filter(|event| event.readable) {
            assert_eq!(event.token, 1);
            while let ReadOutcome::Bytes(length) = receive(&there, &mut buffer).unwrap() {
                sees.fetch_add(length as u32, Ordering::Release);
            }
        }
    }
    sender.join().unwrap();
}

#[test]
fn events_left_in_the_set_wake_the_waiter_again() {
    let (set, mut events) = (ReadySet::new().unwrap(), EpollEvents::with_capacity(1));
    let mut pairs: Vec<_> = (0..10).map(|_| UnixStream::pair().unwrap()).collect();
    for (token, (_, there)) in pairs.iter().enumerate() {
        set.add(there, token as u64).unwrap();
    }
    for round in 0..3 {
        let mut seen = [false; 10];
        for _ in 0..10 {
            set.wait(&mut events, PATIENCE).unwrap();
            events.iter().for_each(|event| seen[event.token as usize] = true);
        }
        assert_eq!(seen, [true; 10], "round {round}");
        pairs.iter_mut().for_each(|(here, _)| here.write_all(b"x").unwrap());
    }
}

#[test]
fn a_waiter_without_news_sleeps() {
    let (set, mut events) = (ReadySet::new().unwrap(), EpollEvents::with_capacity(8));
    let (mut here, there) = UnixStream::pair().unwrap();
    set.add(&there, 1).unwrap();
    set.poll(&mut events).unwrap();
    for _ in 0..100 {
        set.wait(&mut events, Duration::from_micros(10)).unwrap();
        assert_eq!(events.iter().count(), 0, "ready, though all was reported");
    }
    here.write_all(b"x").unwrap();
    set.wait(&mut events, PATIENCE).unwrap();
    assert_eq!(events.iter().count(), 1);
}

/// The whole way of a push between threads: inbox, wake flag, eventfd, epoll set.
#[test]
fn a_sleeping_shard_is_woken_for_each_command() {
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
    let (set, mut events) = (ReadySet::new().unwrap(), EpollEvents::with_capacity(8));
    set.add_source(&*wake, 0).unwrap();
    let mut next = 0;
    while next < 2000 {
        inbox.drain(16, u64::MAX, |number| {
            assert_eq!(number, next);
            next += 1;
        });
        handles.store(next, Ordering::Release);
        if next < 2000 && inbox.prepare_sleep() {
            set.wait(&mut events, PATIENCE).unwrap();
            assert_ne!(events.iter().count(), 0, "a wake was lost");
            inbox.awake();
        }
    }
    producer.join().unwrap();
}

struct SharedWake(Arc<WakeFd>);

impl Wake for SharedWake {
    fn wake(&self) {
        self.0.wake();
    }
}
