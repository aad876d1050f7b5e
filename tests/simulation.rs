//! Whatever the network, clients and processes do, the promises hold: deterministic simulation, 200 seeds of it.
//!
//! `cargo run --release --example simulate` runs more of it, longer; `docs/TESTING.md` says how to repeat a seed.
#![allow(missing_docs)]

#[path = "simulation/mod.rs"]
mod simulation;

use simulation::{Options, Plant, run, run_all};

const STEPS: u64 = 250;

fn options(seed: u64) -> Options {
    Options { seed, steps: STEPS, plant: Plant::None, stalled: None, lawful: false }
}

#[test]
fn every_seed_keeps_the_promises() {
    let tally = run_all(0..200, STEPS, |_, _| {});
    println!("{:?}", tally.sum);
    assert!(tally.failed.is_empty(), "{} seeds failed: {:#?}", tally.failed.len(), tally.failed);
    let sum = tally.sum;
    let all = [sum.heard, sum.messages, sum.dropped, sum.conflated, sum.dropped_for_memory, sum.closed_for_memory];
    assert!(all.iter().all(|&count| count > 0) && sum.closed.len() == 7, "something never happens: {sum:?}");
}

#[test]
fn equal_seeds_give_equal_traces() {
    for seed in 0..5 {
        let (first, second) = (run(options(seed)).unwrap(), run(options(seed)).unwrap());
        assert_eq!(first, second, "seed {seed}");
    }
    assert_ne!(run(options(1)).unwrap().hash, run(options(2)).unwrap().hash);
}

#[test]
fn a_stalled_client_changes_nobody_elses_trace() {
    for seed in 0..15 {
        let lawful = Options { lawful: true, ..options(seed) };
        let flowing = run(lawful).unwrap();
        let stalled = run(Options { stalled: Some(0), ..lawful }).unwrap();
        assert_ne!(flowing.traces[0], stalled.traces[0], "seed {seed}: it did stall");
        assert_eq!(flowing.traces[1..], stalled.traces[1..], "seed {seed}");
    }
}

/// A bug may have no occasion in a seed; in sixty it has.
#[test]
fn every_planted_bug_is_caught() {
    for plant in Plant::ALL {
        let caught = (0..60).find_map(|seed| run(Options { plant, ..options(seed) }).err().map(|why| (seed, why)));
        let (seed, why) = caught.unwrap_or_else(|| panic!("{plant:?} is not caught"));
        println!("{plant:?} in seed {seed}: {why}");
    }
}
