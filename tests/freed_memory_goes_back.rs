//! Memory held for clients is given back to the system when they have gone, under the C library's own allocator: a
//! library in a node cannot choose another.
#![allow(missing_docs)]

use pushring::{Broker, Config, Message, Policy};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const MIB: usize = 1024 * 1024;
const PATIENCE: Duration = Duration::from_secs(60);

fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

fn open(broker: &Broker) -> TcpStream {
    upgrade(broker, TcpStream::connect(broker.address()).unwrap())
}

/// For whom the kernel keeps little.
fn open_narrow(broker: &Broker) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.connect(&broker.address().into()).unwrap();
    upgrade(broker, socket.into())
}

fn upgrade(broker: &Broker, mut stream: TcpStream) -> TcpStream {
    let address = broker.address();
    write!(
        stream,
        "GET /half:test:sys/ HTTP/1.1\r\nHost: {address}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    .unwrap();
    let mut response = [0; 12];
    stream.read_exact(&mut response).unwrap();
    assert_eq!(&response, b"HTTP/1.1 101");
    stream
}

/// Clients that send 3 of 4 MiB each, all at the same time, and leave.
fn burst(broker: &Broker) {
    let mut half = vec![0; 3 * MIB];
    half[..10].copy_from_slice(&[0x82, 0xff, 0, 0, 0, 0, 0, 0x40, 0, 0]);
    let mut clients: Vec<_> = (0..24).map(|_| open(broker)).collect();
    // A little of each at a time, so that what is held grows side by side.
    for part in half.chunks(MIB / 4) {
        clients.iter_mut().for_each(|client| client.write_all(part).unwrap());
    }
    wait_until(|| incoming(broker) > 24 * 2 * MIB);
    drop(clients);
    wait_until(|| incoming(broker) == 0);
}

fn incoming(broker: &Broker) -> usize {
    broker.handle().reports().iter().map(|report| report.memory.incoming_bytes).sum()
}

#[track_caller]
fn wait_until(condition: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "it did not come to that");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The tests measure the whole program, so they take turns.
static TURN: Mutex<()> = Mutex::new(());

fn take_turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn bursts_of_half_sent_messages_leave_nothing_resident() {
    let _turn = take_turn();
    let broker = Broker::start(Config { shards: 2, ..Config::default() }).unwrap();
    let process = broker.process("half:test:sys").unwrap();
    process.bind("/", Default::default()).unwrap();
    // The first one leaves buffers that are used again.
    burst(&broker);
    let before = resident_bytes();
    (0..3).for_each(|_| burst(&broker));
    let after = resident_bytes();
    println!("{} MiB resident before, {} after", before / MIB, after / MIB);
    assert!(before < 48 * MIB && after < before + 16 * MIB, "{} MiB before, {} after", before / MIB, after / MIB);
}

#[test]
fn frames_that_filled_the_budget_leave_nothing_resident() {
    let _turn = take_turn();
    let config = Config { shards: 1, memory_bytes_max: Some(48 * MIB), ..Config::default() };
    let broker = Broker::start(config).unwrap();
    let process = broker.process("half:test:sys").unwrap();
    process.bind("/", Default::default()).unwrap();
    let clients: Vec<_> = (0..60).map(|_| open_narrow(&broker)).collect();
    let leased = || broker.handle().reports()[0].memory.leased_bytes;
    let (before, leased_before) = (resident_bytes(), leased());
    // The kernel takes the first of them. Of many sizes, so that they lie in many allocations.
    let (mut number, deadline) = (0, Instant::now() + PATIENCE);
    while leased() < 36 * MIB {
        for _ in 0..20 {
            number += 1;
            let payload = vec![7; if number < 10 { 60_000 } else { 300 + number * 37 % 3500 }];
            process.broadcast(Message::binary(payload)).policy(Policy::DropNewest).send().unwrap();
        }
        assert!(Instant::now() < deadline, "{} MiB leased after {number} pushes", leased() / MIB);
    }
    let full = resident_bytes();
    drop(clients);
    wait_until(|| leased() <= leased_before + 12 * MIB);
    // The allocator is asked within some seconds to give back what it keeps of that.
    wait_until(|| resident_bytes() < before + 16 * MIB);
    println!("{} MiB resident before, {} full, {} after", before / MIB, full / MIB, resident_bytes() / MIB);
    assert!(full > before + 30 * MIB, "{} MiB before, {} full", before / MIB, full / MIB);
}

/// Samples the resident memory until it is dropped.
struct PeakWatch {
    peak: Arc<AtomicUsize>,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl PeakWatch {
    fn start() -> Self {
        let (peak, is_over) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let (top, over) = (peak.clone(), is_over.clone());
        let thread = std::thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                top.fetch_max(resident_bytes(), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        Self { peak, is_over, thread: Some(thread) }
    }
}

impl Drop for PeakWatch {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
    }
}

/// Pushes of these lengths, one after another, until they filled the budget and have churned in it for a while; returns
/// the most that was resident beyond what was before.
fn churn(policy: impl Fn(u64) -> Policy, len: impl Fn(usize) -> usize) -> usize {
    const BUDGET: usize = 32 * MIB;
    let config = Config { shards: 2, memory_bytes_max: Some(BUDGET), ..Config::default() };
    let broker = Broker::start(config).unwrap();
    let process = broker.process("half:test:sys").unwrap();
    process.bind("/", Default::default()).unwrap();
    let clients: Vec<_> = (0..400).map(|_| open_narrow(&broker)).collect();
    // The kernel takes what it takes.
    for _ in 0..5 {
        process.broadcast(Message::binary(vec![7; 60_000])).policy(Policy::DropNewest).send().unwrap();
    }
    let before = resident_bytes();
    let watch = PeakWatch::start();
    let reports = || broker.handle().reports();
    let leased = || reports().iter().map(|report| report.memory.leased_bytes).sum::<usize>();
    let (mut number, mut pushed_full, deadline) = (0, 0, Instant::now() + PATIENCE);
    // Until it was full, and half as many pushes again; or all clients were closed.
    while pushed_full <= number / 3 || number == 0 {
        for _ in 0..50 {
            number += 1;
            let message = Message::binary(vec![7; len(number)]);
            process.broadcast(message).policy(policy(number as u64)).send().unwrap();
        }
        if pushed_full > 0 || leased() >= BUDGET / 4 * 3 {
            pushed_full += 50;
        }
        let is_served = reports().iter().map(|report| report.channels).sum::<usize>() > 0;
        if !is_served {
            break;
        }
        assert!(Instant::now() < deadline, "{} MiB leased after {number} pushes", leased() / MIB);
    }
    let peak = watch.peak.load(Ordering::Relaxed) - before;
    drop((watch, clients));
    println!("{number} pushes: {} MiB beyond {} for a budget of {}", peak / MIB, before / MIB, BUDGET / MIB);
    assert!(pushed_full > 0, "the budget was never full");
    // A quarter, and what a broker takes for itself as soon as it has work.
    assert!(peak <= BUDGET / 4 * 5 + 8 * MIB, "{} MiB for a budget of {}", peak / MIB, BUDGET / MIB);
    peak
}

#[test]
fn what_churns_under_any_policy_and_in_any_size_stays_within_the_budget() {
    let _turn = take_turn();
    // What one channel holds grows by little steps, and what the others have freed fits none of them.
    churn(|key| Policy::Conflate { key }, |_| 100);
    churn(|_| Policy::Close, |_| 1500);
    churn(|_| Policy::DropNewest, |number| 300 + number * 37 % 3500);
    churn(|_| Policy::DropOldest, |number| 300 + number * 7919 % 9000);
}
