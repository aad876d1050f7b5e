//! Memory held for clients is given back to the system when they have gone, under the C library's own allocator: a
//! library in a node cannot choose another.
#![allow(missing_docs)]

use pushring::{Broker, Config};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

const MIB: usize = 1024 * 1024;
const PATIENCE: Duration = Duration::from_secs(60);

fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

fn open(broker: &Broker) -> TcpStream {
    let mut stream = TcpStream::connect(broker.address()).unwrap();
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

#[test]
fn bursts_of_half_sent_messages_leave_nothing_resident() {
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
