//! Memory held for clients is given back to the system when they have gone, under the C library's own allocator: a
//! library in a node cannot choose another.
#![allow(missing_docs)]

use pushring::{Broker, Config, Message, Policy};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::{Mutex, MutexGuard, PoisonError};
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
