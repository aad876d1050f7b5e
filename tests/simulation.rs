//! Deterministic simulation: real shards, inboxes and process queues over a network in memory, with clients and
//! processes that do everything they may and much that they should not, judged by a plain FIFO for each channel.
//!
//! `PUSHRING_SIM_SEED=n` runs one seed, `PUSHRING_SIM_SEEDS=n` so many, `PUSHRING_SIM_STEPS=n` so long.
#![allow(missing_docs)]

#[path = "simulation/client.rs"]
mod client;
#[path = "simulation/network.rs"]
mod network;
#[path = "simulation/oracle.rs"]
mod oracle;
#[path = "simulation/rng.rs"]
mod rng;
#[path = "simulation/world.rs"]
mod world;

use network::Plant;
use std::panic::{AssertUnwindSafe, catch_unwind};
use world::{Options, Report, World};

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text}")))
}

fn options(seed: u64) -> Options {
    let steps = number("PUSHRING_SIM_STEPS").unwrap_or(400);
    Options { seed, steps, plant: Plant::None, stalled: None, lawful: false }
}

/// A panic inside is a finding like any other.
fn run(options: Options) -> Result<Report, String> {
    catch_unwind(AssertUnwindSafe(|| World::new(options).run())).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        Err(text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).into())).unwrap_or_else(|| "a panic".into()))
    })
}

#[test]
fn every_seed_keeps_the_promises() {
    let seeds = match number("PUSHRING_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("PUSHRING_SIM_SEEDS").unwrap_or(50),
    };
    let (mut failed, mut pushed, mut heard, mut messages) = (Vec::new(), 0, 0, 0);
    let mut closed = std::collections::BTreeMap::new();
    for seed in seeds.clone() {
        match run(options(seed)) {
            Ok(report) => {
                pushed += report.pushed;
                heard += report.heard;
                messages += report.messages;
                report.closed.into_iter().for_each(|(by, count)| *closed.entry(by).or_insert(0) += count);
            }
            Err(why) => failed.push(format!("PUSHRING_SIM_SEED={seed}: {why}")),
        }
    }
    println!("seeds {seeds:?}: {pushed} pushes, {heard} frames heard, {messages} messages, closed {closed:?}");
    assert!(failed.is_empty(), "{} seeds failed:\n{}", failed.len(), failed.join("\n"));
    assert!(heard > 0 && messages > 0, "nothing happened");
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
    for seed in 0..10 {
        let lawful = Options { lawful: true, ..options(seed) };
        let flowing = run(lawful).unwrap();
        let stalled = run(Options { stalled: Some(0), ..lawful }).unwrap();
        assert_ne!(flowing.traces[0], stalled.traces[0], "seed {seed}: it did stall");
        assert_eq!(flowing.traces[1..], stalled.traces[1..], "seed {seed}");
    }
}

/// The oracle must find the bug in nearly every seed; a bug that never had its turn finds nothing to find.
fn must_be_caught(plant: Plant) {
    let caught = (0..10).filter(|&seed| run(Options { plant, ..options(seed) }).is_err()).count();
    assert!(caught >= 8, "{plant:?} was caught in {caught} of 10 seeds");
}

#[test]
fn a_lost_tail_is_caught() {
    must_be_caught(Plant::LosesTail);
}

#[test]
fn bytes_on_the_wrong_socket_are_caught() {
    must_be_caught(Plant::WrongSocket);
}

#[test]
fn doubled_bytes_are_caught() {
    must_be_caught(Plant::Duplicates);
}

#[test]
fn bytes_that_are_sent_again_are_caught() {
    must_be_caught(Plant::SendsAgain);
}
