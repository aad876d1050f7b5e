//! The legs between a process and a shard: orders into the shard's inbox, events into the process' queue, and a round
//! trip of both across threads.
//!
//! `cargo bench --bench inbox` measures; `cargo test` runs each once. Throughput is in orders, or events.

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use pushring::ChannelId;
use pushring::internals::admission::ProcessMemory;
use pushring::internals::gateway::OwnerId;
use pushring::internals::inbox::{Account, InboxLimits, InboxSender, Wake, inbox};
use pushring::internals::proto::MessageKind;
use pushring::internals::shard::event::Event;
use pushring::internals::shard::process_queue::{EventBatch, ProcessQueue, QueueLimits, process_queue};
use std::thread::{self, Thread};
use std::time::Duration;

const BATCHES: [usize; 3] = [1, 16, 160];
const LIMITS: InboxLimits = InboxLimits { commands_max: 16 * 1024, bytes_max: 64 * 1024 * 1024 };
/// Longer than any round trip takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// As large as an order to a shard.
type Order = [u64; 12];

/// A shard that never sleeps needs no waking.
struct Awake;

impl Wake for Awake {
    fn wake(&self) {}
}

/// Wakes a shard that sleeps by parking its thread.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(&self) {
        self.0.unpark();
    }
}

fn event() -> Event {
    Event::Message { channel: ChannelId::new(1), kind: MessageKind::Binary, payload: Bytes::from_static(b"payload") }
}

fn send(sender: &InboxSender<Order>, account: &Account, count: usize) {
    for at in 0..count {
        assert!(sender.try_send([at as u64; 12], 128, account).is_ok(), "the inbox has room");
    }
}

fn send_events(queue: &ProcessQueue, memory: &ProcessMemory, count: usize) {
    let mut batch = EventBatch::new(OwnerId(1));
    (0..count).for_each(|_| batch.push(event()));
    assert!(queue.send(memory, batch), "the process is there");
}

fn process_to_shard(c: &mut Criterion) {
    let mut group = c.benchmark_group("process-to-shard");
    let (sender, mut inbox) = inbox::<Order>(LIMITS, Awake);
    let account = sender.account();
    for batch in BATCHES {
        group.throughput(Throughput::Elements(batch as u64));
        group.bench_function(BenchmarkId::from_parameter(batch), |b| {
            b.iter(|| {
                send(&sender, &account, batch);
                assert_eq!(inbox.drain(batch, u64::MAX, |order| assert_ne!(order[0], u64::MAX)), batch);
            });
        });
    }
    group.finish();
}

fn shard_to_process(c: &mut Criterion) {
    let mut group = c.benchmark_group("shard-to-process");
    let (queue, receiver) = process_queue(1, QueueLimits::default(), &Default::default(), |_| {});
    let memory = queue.memory_of("bench:bench:sys".parse().unwrap());
    for batch in BATCHES {
        group.throughput(Throughput::Elements(batch as u64));
        group.bench_function(BenchmarkId::from_parameter(batch), |b| {
            b.iter(|| {
                send_events(&queue, &memory, batch);
                assert_eq!(receiver.try_recv().expect("it was sent").events.len(), batch);
            });
        });
    }
    group.finish();
}

/// Orders go to a thread that answers each with an event and sleeps when it has none: the wake flag is part of it.
fn round_trip(c: &mut Criterion) {
    let mut group = c.benchmark_group("round-trip");
    let (queue, receiver) = process_queue(1, QueueLimits::default(), &Default::default(), |_| {});
    let memory = queue.memory_of("bench:bench:sys".parse().unwrap());
    let (to_main, from_shard) = crossbeam_channel::bounded(1);
    let shard = thread::spawn(move || {
        let (sender, mut inbox) = inbox::<Order>(LIMITS, Unpark(thread::current()));
        to_main.send(sender).expect("the benchmark waits for it");
        loop {
            let mut orders = 0;
            inbox.drain(1024, u64::MAX, |_| orders += 1);
            if orders > 0 {
                send_events(&queue, &memory, orders);
            } else if inbox.take_kick() {
                // The benchmark's word for the end.
                return;
            } else if inbox.prepare_sleep() {
                thread::park();
                inbox.awake();
            }
        }
    });
    let sender: InboxSender<Order> = from_shard.recv().expect("the shard has started");
    let account = sender.account();
    for batch in BATCHES {
        group.throughput(Throughput::Elements(batch as u64));
        group.bench_function(BenchmarkId::from_parameter(batch), |b| {
            b.iter(|| {
                send(&sender, &account, batch);
                let mut answered = 0;
                while answered < batch {
                    answered += receiver.recv(PATIENCE).expect("every order is answered").events.len();
                }
            });
        });
    }
    group.finish();
    sender.kick();
    shard.join().expect("the shard ends");
}

criterion_group!(benches, process_to_shard, shard_to_process, round_trip);
criterion_main!(benches);
