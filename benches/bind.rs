//! What binding a path costs a process, where few paths are bound and where many are: µs a path, medians.
//!
//! The broker replaces the state of all shards with each change and waits until they have taken it over, so a bind that
//! copied what is there would cost the more the more is bound. Run by `cargo test`, it binds a few.

use pushring::{AttachOptions, Broker, Config, HttpRule, Process};
use std::time::Instant;

/// How many paths are bound when those that count are.
const BOUND: [usize; 4] = [100, 1_000, 8_000, 32_000];

/// Paths that count at each.
const COUNTED: usize = 1_000;

fn main() {
    let is_measured = std::env::args().any(|argument| argument == "--bench");
    let broker = Broker::start(Config { shards: 2, ..Config::default() }).expect("a broker starts");
    let process = broker.handle().process("bench:bench:sys", AttachOptions::default()).expect("the name is free");
    let mut bound = 0;
    for target in if is_measured { &BOUND[..] } else { &BOUND[..1] } {
        let counted = if is_measured { COUNTED } else { 10 };
        (bound..*target).for_each(|at| bind(&process, at));
        bound = *target;
        let mut took_us: Vec<f64> = (bound..bound + counted).map(|at| timed_us(|| bind(&process, at))).collect();
        let mut back_us: Vec<f64> = (bound..bound + counted).map(|at| timed_us(|| unbind(&process, at))).collect();
        println!(
            "{bound:6} paths bound: {:6.1} µs to bind one more, {:6.1} to take it back",
            median(&mut took_us),
            median(&mut back_us)
        );
    }
}

fn path(at: usize) -> String {
    format!("/files/{at}/content")
}

fn bind(process: &Process, at: usize) {
    process.bind_http(&path(at), HttpRule::default()).expect("there is room for a path");
}

fn unbind(process: &Process, at: usize) {
    process.unbind_http(&path(at)).expect("the broker runs");
}

fn timed_us(work: impl FnOnce()) -> f64 {
    let since = Instant::now();
    work();
    since.elapsed().as_secs_f64() * 1e6
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
