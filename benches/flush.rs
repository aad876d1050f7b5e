//! The cost of a send by batch size, by ring and by `send(2)`, in CPU time of the sending thread: the figures in
//! `driver::flush_uring`.
//!
//! `cargo bench --bench flush` measures; `cargo test` goes through it once with few connections. No wall clock, so not
//! with the bench library.

use pushring::internals::driver::epoll::{EpollEvents, ReadySet};
use pushring::internals::driver::flush_send::SendFlush;
use pushring::internals::driver::flush_uring::UringFlush;
use pushring::internals::driver::sys::{ReadOutcome, allowed_cores, pin_to_core, raise_open_files, receive, socket_id};
use pushring::internals::shard::flush::{Flush, OutgoingBytes, SendParts};
use rustix::time::{ClockId, clock_gettime};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// How much is done.
struct Effort {
    connections: usize,
    /// For each of the two ways.
    rounds: usize,
}

const MEASURING: Effort = Effort { connections: 1000, rounds: 15 };
const TRYING: Effort = Effort { connections: 20, rounds: 1 };
/// Longer than any round takes.
const PATIENCE: Duration = Duration::from_secs(60);
const BATCHES: [usize; 8] = [1, 2, 3, 4, 8, 16, 64, 256];

fn thread_cpu_ns() -> i64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec * 1_000_000_000 + time.tv_nsec
}

/// Reads everything from all of `peers` until the sender ends.
fn drain_for_ever(peers: Vec<TcpStream>, got: &AtomicU64) {
    let (set, mut events) = (ReadySet::new().unwrap(), EpollEvents::with_capacity(512));
    for (token, peer) in peers.iter().enumerate() {
        set.add(peer, token as u64).unwrap();
    }
    let mut buffer = vec![0; 64 << 10];
    // The end of a stream can be news twice: once with the last bytes, once by itself.
    let mut open = vec![true; peers.len()];
    while open.contains(&true) {
        set.poll(&mut events).unwrap();
        for event in events.iter().filter(|event| event.readable) {
            loop {
                match receive(&peers[event.token as usize], &mut buffer) {
                    Ok(ReadOutcome::Bytes(length)) => got.fetch_add(length as u64, Ordering::Release),
                    Ok(ReadOutcome::Nothing) => break,
                    Ok(ReadOutcome::End) | Err(_) => {
                        open[event.token as usize] = false;
                        break;
                    }
                };
            }
        }
    }
}

/// Sends `frame` to all of `here` in batches of `size` and gives the CPU time of one send in microseconds.
fn cpu_us_per_send(flush: &mut dyn Flush, here: &[TcpStream], frame: &[u8], size: usize) -> f64 {
    let batch: Vec<_> = here
        .iter()
        .map(|socket| OutgoingBytes { socket: socket_id(socket), parts: SendParts::One(frame), is_last: false })
        .collect();
    let mut short = Vec::new();
    let before = thread_cpu_ns();
    for chunk in batch.chunks(size) {
        flush.send_all(chunk, &mut short);
    }
    let spent_ns = thread_cpu_ns() - before;
    assert!(short.is_empty(), "a socket was full");
    spent_ns as f64 / here.len() as f64 / 1000.0
}

/// Spins, so that the sender is not put to sleep between rounds.
fn wait_until(got: &AtomicU64, bytes: u64) {
    let deadline = Instant::now() + PATIENCE;
    while got.load(Ordering::Acquire) < bytes {
        assert!(Instant::now() < deadline, "the reader got {got:?} of {bytes} bytes");
        std::hint::spin_loop();
    }
}

fn median_and_best(mut costs: Vec<f64>) -> (f64, f64) {
    costs.sort_by(f64::total_cmp);
    (costs[costs.len() / 2], costs[0])
}

fn main() {
    let effort = if std::env::args().any(|argument| argument == "--bench") { MEASURING } else { TRYING };
    raise_open_files().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (mut here, mut there) = (Vec::new(), Vec::new());
    for _ in 0..effort.connections {
        there.push(TcpStream::connect(listener.local_addr().unwrap()).unwrap());
        here.push(listener.accept().unwrap().0);
        here.last().unwrap().set_nodelay(true).unwrap();
    }
    let got = Arc::new(AtomicU64::new(0));
    let counts = got.clone();
    let cores = allowed_cores().unwrap();
    let reader_core = cores[cores.len() - 1];
    let reader = thread::spawn(move || {
        pin_to_core(reader_core).unwrap();
        drain_for_ever(there, &counts);
    });
    pin_to_core(cores[0]).unwrap();

    let mut ring = UringFlush::new().ok().map(|ring| ring.with_batch_min(1));
    if ring.is_none() {
        println!("no io_uring here: send(2) against itself");
    }
    let mut sent_bytes = 0;
    for bytes in [128, 1024] {
        let frame = vec![7; bytes];
        println!("{bytes} bytes: batch, send(2) median [best], ring median [best], µs of CPU per send");
        for size in BATCHES {
            let mut costs = [Vec::new(), Vec::new()];
            for round in 0..2 * effort.rounds {
                let flush: &mut dyn Flush = match &mut ring {
                    Some(ring) if round % 2 == 1 => ring,
                    _ => &mut SendFlush,
                };
                costs[round % 2].push(cpu_us_per_send(flush, &here, &frame, size));
                sent_bytes += (here.len() * bytes) as u64;
                wait_until(&got, sent_bytes);
            }
            let [(send, send_best), (ring, ring_best)] = costs.map(median_and_best);
            println!("{size:>6}  {send:.2} [{send_best:.2}]  {ring:.2} [{ring_best:.2}]");
        }
    }
    drop(here);
    reader.join().unwrap();
}
