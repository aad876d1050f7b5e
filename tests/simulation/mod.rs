//! Deterministic simulation: real shards, inboxes and process queues over a network in memory, with clients and
//! processes that do everything they may and much that they should not, judged by a plain FIFO for each channel.
//!
//! A seed decides everything: the participants, the faults and their frequency ([`settings`]), and all events.
//! [`world`] steps the parts by hand, [`hearing`] and [`oracle`] judge the receipts of clients and processes,
//! [`ending`] the rules for every moment and for the end. [`plant`] has bugs that prove the judges.
#![allow(dead_code, missing_docs)]

mod client;
mod ending;
mod hearing;
mod hosted;
mod network;
mod oracle;
mod orders;
mod payload;
mod plant;
mod process;
mod pump;
mod rng;
mod sealed;
mod settings;
mod topics;
mod wire;
mod world;

pub use plant::Plant;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use world::World;
pub use world::{Options, Report};

/// Runs one seed. A panic inside is a finding like any other.
pub fn run(options: Options) -> Result<Report, String> {
    catch_unwind(AssertUnwindSafe(|| World::new(options).run())).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        Err(text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).into())).unwrap_or_else(|| "a panic".into()))
    })
}

/// The results of many seeds.
#[derive(Default)]
pub struct Tally {
    pub sum: Report,
    /// Seeds that failed, and why.
    pub failed: Vec<(u64, String)>,
}

/// Runs many seeds on all cores; `each` hears of every seed that is done, and of its failure, from several threads.
pub fn run_all(seeds: Range<u64>, steps: u64, each: impl Fn(&Tally, Option<&(u64, String)>) + Sync) -> Tally {
    let (next, tally) = (AtomicU64::new(seeds.start), Mutex::new(Tally::default()));
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                break;
            }
            let result = run(Options { seed, steps, plant: Plant::None, stalled: None, lawful: false });
            let mut tally = tally.lock().expect("no panic passes `run`");
            match result {
                Ok(report) => {
                    tally.sum.add(&report);
                    each(&tally, None);
                }
                Err(why) => {
                    tally.failed.push((seed, why));
                    each(&tally, tally.failed.last());
                }
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, Into::into);
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
    let mut tally = tally.into_inner().expect("no panic passes `run`");
    tally.failed.sort_unstable();
    tally
}

impl Report {
    fn add(&mut self, other: &Self) {
        self.opened += other.opened;
        self.pushed += other.pushed;
        self.heard += other.heard;
        self.messages += other.messages;
        self.pings += other.pings;
        self.dropped += other.dropped;
        self.conflated += other.conflated;
        self.queued += other.queued;
        self.dropped_for_memory += other.dropped_for_memory;
        self.closed_for_memory += other.closed_for_memory;
        other.closed.iter().for_each(|(&by, count)| *self.closed.entry(by).or_default() += count);
        other.answered.iter().for_each(|(&status, count)| *self.answered.entry(status).or_default() += count);
    }
}
