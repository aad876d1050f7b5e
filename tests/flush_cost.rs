//! What a send costs by batch size, by ring and by `send(2)`: the figures in `driver::flush_uring`. Not a test of
//! anything, so ignored: `cargo test --release --test flush_cost -- --ignored --nocapture`.

use pushring::driver::epoll::{Events, ReadySet};
use pushring::driver::flush_send::SendFlush;
use pushring::driver::flush_uring::UringFlush;
use pushring::driver::sys::{Received, allowed_cores, pin_to_core, raise_open_files, receive, socket_id};
use pushring::shard::flush::{Flush, Outgoing, Parts};
use rustix::time::{ClockId, clock_gettime};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

const CONNECTIONS: usize = 1000;
const ROUNDS: usize = 15;
const BATCHES: [usize; 8] = [1, 2, 3, 4, 8, 16, 64, 256];

fn thread_cpu_ns() -> i64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec * 1_000_000_000 + time.tv_nsec
}

/// Reads everything from all of `peers` for as long as anybody sends.
fn drain_for_ever(peers: Vec<TcpStream>, got: &AtomicU64) {
    let (set, mut events) = (ReadySet::new().unwrap(), Events::with_capacity(512));
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
                    Ok(Received::Bytes(length)) => got.fetch_add(length as u64, Ordering::Release),
                    Ok(Received::Nothing) => break,
                    Ok(Received::End) | Err(_) => {
                        open[event.token as usize] = false;
                        break;
                    }
                };
            }
        }
    }
}

#[test]
#[ignore = "measures; see the head of this file"]
fn cpu_per_send_by_batch_size() {
    raise_open_files().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (mut here, mut there) = (Vec::new(), Vec::new());
    for _ in 0..CONNECTIONS {
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

    let mut ring = UringFlush::new().unwrap().with_batch_min(1);
    let mut sent_bytes = 0;
    for bytes in [128, 1024] {
        let frame = vec![7; bytes];
        let batch: Vec<_> = here
            .iter()
            .map(|socket| Outgoing { socket: socket_id(socket), parts: Parts::One(&frame), is_last: false })
            .collect();
        println!("{bytes} bytes: batch, send(2) median [best], ring median [best], µs of CPU per send");
        for size in BATCHES {
            let mut costs = [Vec::new(), Vec::new()];
            for round in 0..2 * ROUNDS {
                let flush: &mut dyn Flush = if round % 2 == 0 { &mut SendFlush } else { &mut ring };
                let mut short = Vec::new();
                let before = thread_cpu_ns();
                for chunk in batch.chunks(size) {
                    flush.send_all(chunk, &mut short);
                }
                costs[round % 2].push((thread_cpu_ns() - before) as f64 / CONNECTIONS as f64 / 1000.0);
                assert!(short.is_empty());
                sent_bytes += (CONNECTIONS * bytes) as u64;
                while got.load(Ordering::Acquire) < sent_bytes {
                    std::hint::spin_loop();
                }
            }
            for cost in &mut costs {
                cost.sort_by(f64::total_cmp);
            }
            let [send, ring] = &costs;
            println!("{size:>6}  {:.2} [{:.2}]  {:.2} [{:.2}]", send[ROUNDS / 2], send[0], ring[ROUNDS / 2], ring[0]);
        }
    }
    drop(here);
    reader.join().unwrap();
}
