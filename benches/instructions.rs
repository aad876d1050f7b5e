//! The codec's and the shard's hot paths as fixed amounts of work, for counting their instructions.
//!
//! `.ci/instructions` runs each under callgrind, at the base commit and at the head, and compares the counts. Run by
//! `cargo test`, it does each once. Counts do not depend on what else the machine does, so a few percent are news.

#[path = "../tests/shard_support/mod.rs"]
mod shard_support;

use pushring::internals::proto::client::append_message;
use pushring::internals::proto::mask::unmask;
use pushring::internals::proto::{MessageKind, MessageLimits, Scratch, WebSocketConnection};
use shard_support::Fan;
use shard_support::hosted::Hosted;
use std::hint::black_box;
use std::sync::atomic::Ordering;

const KEY: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// Rounds that are counted, and before them some that let buffers grow.
const ROUNDS: usize = 20;

/// A name, the units of work in a round, and what makes the round.
type Work = (&'static str, usize, fn() -> Box<dyn FnMut()>);

const WORKS: [Work; 13] = [
    ("read 16 messages of 32 B, a message", 16, || read(16, 32)),
    ("read 1 message of 16 KiB", 1, || read(1, 16 * 1024)),
    ("unmask 64 KiB", 1, unmask_64_kib),
    ("broadcast 128 B to 1,000, a delivery", 1000, || broadcast(1, 128)),
    ("broadcast 16 × 128 B to 1,000, a delivery", 16_000, || broadcast(16, 128)),
    ("broadcast 128 B to 1,000 whose history is kept, a delivery", 1000, broadcast_kept),
    ("broadcast 16 KiB to 1,000, a delivery", 1000, || broadcast(1, 16 * 1024)),
    ("push 128 B to each of 1,000, a push", 1000, unicast),
    ("echo 16 messages of 32 B to each of 100, a message", 1600, echo),
    ("broadcast 128 B to 10, all of it", 1, || broadcast_to(10, 1, 128)),
    ("a message of 32 B alone, and back on the shard: a turn", 100, || on_shard(MessageKind::Binary, 1, 32)),
    ("echo 16 messages of 32 B on the shard, a message", 1600, || on_shard(MessageKind::Binary, 16, 32)),
    ("take 64 messages of 200 B on the shard, a message", 6400, || on_shard(MessageKind::Text, 64, 200)),
];

/// Client messages as one read gives them.
fn messages(count: usize, payload_bytes: usize) -> Vec<u8> {
    messages_of(MessageKind::Binary, count, payload_bytes)
}

fn messages_of(kind: MessageKind, count: usize, payload_bytes: usize) -> Vec<u8> {
    let mut read = Vec::new();
    for _ in 0..count {
        append_message(&mut read, kind, KEY, &vec![b'x'; payload_bytes]);
    }
    read
}

fn read(count: usize, payload_bytes: usize) -> Box<dyn FnMut()> {
    let (read, limits) = (messages(count, payload_bytes), MessageLimits::default());
    let (mut connection, mut scratch) = (WebSocketConnection::new(None), Scratch::new());
    let mut buffer = read.clone();
    Box::new(move || {
        // Unmasking changes the buffer; the copy is a small part of the count.
        buffer.copy_from_slice(&read);
        let mut at = 0;
        while let Ok((consumed, Some(event))) = connection.receive(&mut buffer[at..], &limits, &mut scratch) {
            black_box(event);
            at += consumed;
        }
        assert_eq!(at, buffer.len());
    })
}

fn unmask_64_kib() -> Box<dyn FnMut()> {
    let mut payload = vec![b'x'; 64 * 1024 + 1];
    Box::new(move || unmask(black_box(&mut payload[1..]), KEY))
}

fn broadcast(frames: usize, payload_bytes: usize) -> Box<dyn FnMut()> {
    broadcast_to(1000, frames, payload_bytes)
}

fn broadcast_to(channels: usize, frames: usize, payload_bytes: usize) -> Box<dyn FnMut()> {
    let mut fan = Fan::new(channels);
    let payload = bytes::Bytes::from(vec![b'x'; payload_bytes]);
    Box::new(move || {
        for _ in 0..frames {
            fan.shard.handle_command(Fan::broadcast(payload.clone()), 1);
        }
        fan.turn();
    })
}

/// To channels that outlive their connections: beside the same to others, what history costs.
fn broadcast_kept() -> Box<dyn FnMut()> {
    const UPGRADE: &[u8] = b"GET /fan:bench:sys/kept HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n\
        Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\
        Sec-WebSocket-Protocol: pushring.1\r\n\r\n";
    let mut fan = Fan::new(0);
    (0..1000).for_each(|at| fan.open_with(at, UPGRADE));
    fan.turn();
    let payload = bytes::Bytes::from(vec![b'x'; 128]);
    Box::new(move || {
        let before = fan.taken.bytes.load(Ordering::Relaxed);
        fan.shard.handle_command(Fan::broadcast(payload.clone()), 1);
        fan.turn();
        assert!(fan.taken.bytes.load(Ordering::Relaxed) - before >= 1000 * 128, "all have it");
    })
}

fn unicast() -> Box<dyn FnMut()> {
    let mut fan = Fan::new(1000);
    let payload = bytes::Bytes::from(vec![b'x'; 128]);
    Box::new(move || {
        for at in 0..fan.channels.len() {
            fan.shard.handle_command(Fan::unicast(fan.channels[at], payload.clone()), 1);
        }
        fan.turn();
    })
}

fn echo() -> Box<dyn FnMut()> {
    let mut fan = Fan::new(100);
    let read = messages(16, 32);
    let mut buffer = read.clone();
    Box::new(move || {
        for at in 0..fan.tokens.len() {
            buffer.copy_from_slice(&read);
            fan.shard.handle_read(fan.tokens[at], &mut buffer, 1);
        }
        fan.shard.end_turn();
        assert_eq!(fan.answer_messages(), 1600);
        fan.turn();
    })
}

/// A process on the shard and 100 clients: a read of so many messages, and a turn, for each. Binary is sent back.
fn on_shard(kind: MessageKind, count: usize, payload_bytes: usize) -> Box<dyn FnMut()> {
    let mut hosted = Hosted::new(100);
    let read = messages_of(kind, count, payload_bytes);
    let answers = if kind == MessageKind::Binary { 100 } else { 0 };
    Box::new(move || {
        let before = hosted.taken.sends.load(Ordering::Relaxed);
        (0..100).for_each(|client| hosted.hear(client, &read));
        assert_eq!(hosted.taken.sends.load(Ordering::Relaxed) - before, answers);
    })
}

/// The region that callgrind collects.
#[inline(never)]
fn counted_rounds(round: &mut dyn FnMut()) {
    for _ in 0..ROUNDS {
        round();
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["list"] => {
            for (name, units, _) in WORKS {
                println!("{}\t{name}", ROUNDS * units);
            }
        }
        ["run", name] => {
            let (_, _, work) = WORKS.iter().find(|(work, ..)| *work == name).expect("a name from the list");
            let mut round = work();
            (0..ROUNDS).for_each(|_| round());
            counted_rounds(&mut *round);
        }
        // By cargo, with arguments of its own.
        _ => WORKS.iter().for_each(|(_, _, work)| work()()),
    }
}
