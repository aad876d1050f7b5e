//! The fan-out of a shard in memory: one order becomes a frame, ranges and batches of sends into sockets that take
//! everything and cost nothing.
//!
//! `cargo bench --bench shard` measures; `cargo test` runs each once. Throughput is in deliveries.

#[path = "../tests/shard_support/mod.rs"]
mod shard_support;

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use shard_support::Fan;
use std::sync::atomic::Ordering;

fn fan_out(c: &mut Criterion) {
    let mut group = c.benchmark_group("fan-out");
    for channels in [1, 100, 10_000] {
        let mut fan = Fan::new(channels);
        for (frames, payload_bytes) in [(1, 128), (16, 128), (1, 16 * 1024), (1, 1 << 20)] {
            let payload = Bytes::from(vec![b'x'; payload_bytes]);
            let shape = format!("{frames}x{payload_bytes}");
            group.throughput(Throughput::Elements((channels * frames) as u64));
            group.bench_function(BenchmarkId::new(shape, channels), |b| {
                b.iter(|| {
                    let before = fan.taken.bytes.load(Ordering::Relaxed);
                    for _ in 0..frames {
                        fan.shard.handle_command(Fan::broadcast(payload.clone()), 1);
                    }
                    // A broadcast is worked off in slices, one a turn.
                    while fan.taken.bytes.load(Ordering::Relaxed) - before < channels * frames * payload_bytes {
                        fan.turn();
                    }
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, fan_out);
criterion_main!(benches);
