//! How a busy task lets others run under monoio 0.2.4. MUST NOT BE DELETED: the shard's pump stands on it.
//!
//! A shard under load never runs out of work, so its pump gives way with `yield_now`: sockets and other tasks must then
//! get their turn, on both drivers. The first tests pin that it works, and what it does not do (timers). The last ones
//! pin why the obvious ways are wrong; when a newer monoio makes one of those fail, `yield_now` may become simpler.

use monoio::io::AsyncReadRent;
use pushring::internals::driver::runtime::{DriverKind, ShardRuntime, yield_now};
use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant};

/// Turns of a busy task, after which whoever has not run is starved. The tests that expect a reader need a few turns.
const TURNS_MAX: u32 = 20_000;

const DRIVERS: [DriverKind; 2] = [DriverKind::Uring, DriverKind::Epoll];

/// Runs a busy task that gives way with `give_way` beside a reader whose byte is there. Returns whether the reader had
/// run by the end of the busy task, and how many turns that took.
fn beside_a_busy_task<F: Future<Output = ()>>(kind: DriverKind, give_way: impl Fn() -> F + 'static) -> (bool, u32) {
    ShardRuntime::new(kind).unwrap().block_on(async move {
        let (mut here, there) = UnixStream::pair().unwrap();
        there.set_nonblocking(true).unwrap();
        let has_read = Rc::new(Cell::new(false));
        let reads = has_read.clone();
        let reader = monoio::spawn(async move {
            let mut there = monoio::net::UnixStream::from_std(there).unwrap();
            let (read, _) = there.read(vec![0; 8]).await;
            reads.set(read.unwrap() == 4);
        });
        // Lets the reader reach its wait, then makes it ready.
        monoio::time::sleep(Duration::ZERO).await;
        here.write_all(b"push").unwrap();
        let result = monoio::spawn(async move {
            let mut turns = 0;
            while !has_read.get() && turns < TURNS_MAX {
                turns += 1;
                give_way().await;
            }
            (has_read.get(), turns)
        })
        .await;
        reader.await;
        result
    })
}

#[test]
fn a_task_that_yields_lets_a_ready_reader_run() {
    for kind in DRIVERS {
        let (has_read, turns) = beside_a_busy_task(kind, yield_now);
        assert!(has_read && turns < 100, "{kind}: the reader waits after {turns} turns");
    }
}

#[test]
fn two_tasks_that_yield_take_turns() {
    for kind in DRIVERS {
        let order = ShardRuntime::new(kind).unwrap().block_on(async {
            let order = Rc::new(std::cell::RefCell::new(Vec::new()));
            let tasks: Vec<_> = (0..2)
                .map(|name| {
                    let order = order.clone();
                    monoio::spawn(async move {
                        for _ in 0..50 {
                            order.borrow_mut().push(name);
                            yield_now().await;
                        }
                    })
                })
                .collect();
            for task in tasks {
                task.await;
            }
            order.take()
        });
        assert_eq!(order.len(), 100);
        assert!(order.chunks(2).all(|turns| turns == [0, 1]), "{kind}: {order:?}");
    }
}

/// Timers wait until no task is runnable. So a busy pump reads the clock each turn; when it goes idle, timers run.
#[test]
fn a_task_that_only_yields_starves_timers_until_it_waits() {
    for kind in DRIVERS {
        let (during, after) = ShardRuntime::new(kind).unwrap().block_on(async {
            let slept = Rc::new(Cell::new(false));
            let sleeps = slept.clone();
            let sleeper = monoio::spawn(async move {
                monoio::time::sleep(Duration::from_millis(1)).await;
                sleeps.set(true);
            });
            let busy = slept.clone();
            let during = monoio::spawn(async move {
                let end = Instant::now() + Duration::from_millis(20);
                while Instant::now() < end {
                    yield_now().await;
                }
                busy.get()
            })
            .await;
            sleeper.await;
            (during, slept.get())
        });
        assert_eq!((during, after), (false, true), "{kind}");
    }
}

/// A task that wakes itself goes to the front of the run queue.
#[test]
fn waking_oneself_in_a_task_starves_readers() {
    for kind in DRIVERS {
        let (has_read, turns) = beside_a_busy_task(kind, || {
            let mut yielded = false;
            poll_fn(move |context| {
                if yielded {
                    return Poll::Ready(());
                }
                yielded = true;
                context.waker().wake_by_ref();
                Poll::Pending
            })
        });
        assert!(!has_read, "{kind}: monoio has become fair to self-waking tasks");
        assert_eq!(turns, TURNS_MAX);
    }
}

/// The future of `block_on` is polled in a loop of its own while it wakes itself: no task and no I/O run.
#[test]
fn waking_oneself_in_block_on_starves_everything() {
    for kind in DRIVERS {
        let ran = ShardRuntime::new(kind).unwrap().block_on(async {
            let ran = Rc::new(Cell::new(false));
            let runs = ran.clone();
            let _task = monoio::spawn(async move { runs.set(true) });
            let mut turns = 0;
            poll_fn(|context| {
                turns += 1;
                if turns == TURNS_MAX {
                    return Poll::Ready(());
                }
                context.waker().wake_by_ref();
                Poll::Pending
            })
            .await;
            ran.get()
        });
        assert!(!ran, "{kind}: monoio has become fair to block_on's self-waking future");
    }
}

/// `sleep(0)` gives way, but a timer has a resolution of a millisecond.
#[test]
fn sleeping_for_nothing_costs_a_millisecond() {
    for kind in DRIVERS {
        let took = ShardRuntime::new(kind).unwrap().block_on(async {
            let start = Instant::now();
            for _ in 0..10 {
                monoio::time::sleep(Duration::ZERO).await;
            }
            start.elapsed()
        });
        assert!(took > Duration::from_millis(5), "{kind}: ten took {took:?}");
    }
}
