//! The cost of the protocol alone, without a socket: frames in and out, unmasking, UTF-8, the upgrade, compression.
//!
//! `cargo bench --bench codec` measures; `cargo test` runs each once. The naive way is a row wherever there is one.

use std::hint::black_box;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use pushring::internals::proto::client::{append_frame, append_message};
use pushring::internals::proto::deflate::{Deflater, Inflater};
use pushring::internals::proto::frame::{server_frame_len, server_header};
use pushring::internals::proto::mask::unmask;
use pushring::internals::proto::utf8::{Utf8Stream, is_utf8};
use pushring::internals::proto::{MessageKind, MessageLimits, Opcode, Scratch, WebSocketConnection, upgrade};

const KEY: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// A read as a busy client fills it: `messages` whole messages of `payload_bytes` each.
fn read_of(kind: MessageKind, messages: usize, payload_bytes: usize) -> Vec<u8> {
    let mut read = Vec::new();
    for _ in 0..messages {
        append_message(&mut read, kind, KEY, &vec![b'x'; payload_bytes]);
    }
    read
}

/// The reader's loop: all events of one read. Gives the bytes of their payloads.
fn receive_all(
    connection: &mut WebSocketConnection,
    read: &mut [u8],
    limits: &MessageLimits,
    scratch: &mut Scratch,
) -> usize {
    let (mut at, mut payload_bytes) = (0, 0);
    while let Ok((consumed, Some(event))) = connection.receive(&mut read[at..], limits, scratch) {
        at += consumed;
        if let pushring::internals::proto::Received::Message { payload, .. } = event {
            payload_bytes += payload.len();
        }
    }
    payload_bytes
}

/// Unmasking changes the read, so each round works on a copy; its cost is a row of its own, to be taken off.
fn decode(c: &mut Criterion) {
    let mut group = c.benchmark_group("decode");
    for (messages, payload_bytes) in [(16, 32), (16, 128), (16, 1024), (1, 16 * 1024)] {
        let shape = format!("{messages}x{payload_bytes}");
        group.throughput(Throughput::Elements(messages as u64));
        for (name, kind) in [("binary", MessageKind::Binary), ("text", MessageKind::Text)] {
            let read = read_of(kind, messages, payload_bytes);
            let (mut connection, limits, mut scratch) =
                (WebSocketConnection::new(None), MessageLimits::default(), Scratch::new());
            let mut buffer = read.clone();
            group.bench_function(BenchmarkId::new(name, &shape), |b| {
                b.iter(|| {
                    buffer.copy_from_slice(black_box(&read));
                    let bytes = receive_all(&mut connection, &mut buffer, &limits, &mut scratch);
                    assert_eq!(bytes, messages * payload_bytes);
                });
            });
            group.bench_function(BenchmarkId::new(format!("{name}-copy-alone"), &shape), |b| {
                b.iter(|| buffer.copy_from_slice(black_box(&read)));
            });
        }
    }
    group.finish();
}

/// The cost of the general path: 1 MiB in fragments, and in reads that cut frames anywhere.
fn assemble(c: &mut Criterion) {
    let mut group = c.benchmark_group("assemble");
    let payload = vec![b'x'; 1 << 20];
    group.throughput(Throughput::Bytes(payload.len() as u64));
    for fragment_bytes in [64, 4096, 1 << 20] {
        let mut stream = Vec::new();
        let last = payload.len() / fragment_bytes - 1;
        for (index, fragment) in payload.chunks(fragment_bytes).enumerate() {
            let first = if index == 0 { 0x01 } else { 0x00 } | if index == last { 0x80 } else { 0x00 };
            append_frame(&mut stream, first, KEY, fragment);
        }
        let (mut connection, limits, mut scratch) =
            (WebSocketConnection::new(None), MessageLimits::default(), Scratch::new());
        group.bench_function(BenchmarkId::new("fragments of", fragment_bytes), |b| {
            b.iter_batched_ref(
                || stream.clone(),
                |stream| {
                    let reads = stream.chunks_mut(64 * 1024);
                    let bytes = reads.map(|read| receive_all(&mut connection, read, &limits, &mut scratch));
                    assert_eq!(bytes.sum::<usize>(), payload.len());
                },
                BatchSize::LargeInput,
            );
        });
    }
    group.finish();
}

fn encode(c: &mut Criterion) {
    let mut group = c.benchmark_group("encode");
    group.bench_function("header", |b| b.iter(|| server_header(Opcode::Binary, false, black_box(1000))));
    for payload_bytes in [32, 128, 1024, 16 * 1024] {
        let payload = vec![b'x'; payload_bytes];
        let mut out = Vec::with_capacity(payload_bytes + 10);
        group.bench_function(BenchmarkId::new("append", payload_bytes), |b| {
            b.iter(|| {
                out.clear();
                out.extend_from_slice(server_header(Opcode::Binary, false, payload.len()).as_slice());
                out.extend_from_slice(black_box(&payload));
                assert_eq!(server_frame_len(&out), Some(out.len()));
            });
        });
    }
    group.finish();
}

fn unmask_by_size(c: &mut Criterion) {
    let mut group = c.benchmark_group("unmask");
    for bytes in [7, 32, 125, 1024, 16 * 1024, 1 << 20] {
        let mut payload = vec![b'x'; bytes + 1];
        group.throughput(Throughput::Bytes(bytes as u64));
        // From an odd address, as behind a header of six bytes more often than not.
        group.bench_function(BenchmarkId::new("words", bytes), |b| {
            b.iter(|| unmask(black_box(&mut payload[1..]), black_box(KEY)));
        });
        group.bench_function(BenchmarkId::new("naive", bytes), |b| {
            b.iter(|| {
                let key = black_box(KEY);
                for (index, byte) in black_box(&mut payload[1..]).iter_mut().enumerate() {
                    *byte ^= key[index % 4];
                }
            });
        });
    }
    group.finish();
}

fn utf8_by_size(c: &mut Criterion) {
    let mut group = c.benchmark_group("utf8");
    for bytes in [32, 1024, 64 * 1024] {
        for (name, word) in [("ascii", "pushring "), ("mixed", "κόσμε ☃ ")] {
            let mut text = word.repeat(bytes / word.len() + 1);
            while text.len() > bytes {
                text.pop();
            }
            group.throughput(Throughput::Bytes(text.len() as u64));
            group.bench_function(BenchmarkId::new(format!("{name}/whole"), bytes), |b| {
                b.iter(|| assert!(is_utf8(black_box(text.as_bytes()))));
            });
            group.bench_function(BenchmarkId::new(format!("{name}/std"), bytes), |b| {
                b.iter(|| assert!(std::str::from_utf8(black_box(text.as_bytes())).is_ok()));
            });
            group.bench_function(BenchmarkId::new(format!("{name}/in-pieces-of-999"), bytes), |b| {
                b.iter(|| {
                    let mut stream = Utf8Stream::default();
                    let pieces = black_box(text.as_bytes()).chunks(999);
                    pieces.for_each(|piece| stream.push(piece).expect("it is text"));
                    assert!(stream.is_complete());
                });
            });
        }
    }
    group.finish();
}

/// A browser's request.
const REQUEST: &[u8] = b"GET /echo:pushring:sys/ HTTP/1.1\r\nHost: localhost:8080\r\nConnection: Upgrade\r\n\
    Pragma: no-cache\r\nCache-Control: no-cache\r\n\
    User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Safari/537.36\r\n\
    Upgrade: websocket\r\nOrigin: http://localhost:8080\r\nSec-WebSocket-Version: 13\r\n\
    Accept-Encoding: gzip, deflate, br, zstd\r\nAccept-Language: en-GB,en;q=0.9\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
    Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n\r\n";

fn upgrade_of_a_browser(c: &mut Criterion) {
    let mut group = c.benchmark_group("upgrade");
    group.bench_function("parse-negotiate-answer", |b| {
        let mut out = Vec::with_capacity(512);
        b.iter(|| {
            let mut headers = [httparse::EMPTY_HEADER; 32];
            let mut request = httparse::Request::new(&mut headers);
            let parsed = request.parse(black_box(REQUEST)).expect("it parses");
            assert!(parsed.is_complete());
            let upgrade = upgrade::negotiate("GET", 1, request.headers, &[]).expect("it is lawful");
            out.clear();
            upgrade::append_response(&mut out, &upgrade, None);
            out.len()
        });
    });
    group.finish();
}

fn deflate(c: &mut Criterion) {
    let mut group = c.benchmark_group("deflate");
    let record = r#"{"channel_id":4242,"symbol":"PUSH","bid":101.25,"ask":101.5,"at":1767225600123},"#;
    for bytes in [128, 1024, 16 * 1024] {
        let records = record.repeat(bytes / record.len() + 1);
        let message = &records.as_bytes()[..bytes];
        group.throughput(Throughput::Bytes(bytes as u64));
        for level in [1, 3, 6] {
            let mut deflater = Deflater::new(level);
            group.bench_function(BenchmarkId::new(format!("compress-level-{level}"), bytes), |b| {
                b.iter(|| deflater.compress(15, black_box(message)).map(<[u8]>::len));
            });
        }
        let compressed = Deflater::new(6).compress(15, message).expect("it compresses").to_vec();
        let mut inflater = Inflater::new();
        group.bench_function(BenchmarkId::new("inflate", bytes), |b| {
            b.iter(|| {
                let inflated = inflater.inflate(MessageKind::Text, black_box(&compressed), 1 << 20);
                assert_eq!(inflated.expect("it inflates").len(), bytes);
            });
        });
    }
    group.finish();
}

criterion_group!(benches, decode, assemble, encode, unmask_by_size, utf8_by_size, upgrade_of_a_browser, deflate);
criterion_main!(benches);
