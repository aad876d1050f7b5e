//! Runs seeds of the deterministic simulation, as many and as long as asked, and says which fail and how to repeat
//! them.
//!
//! ```text
//! cargo run --release --example simulate -- --seeds 0..10000 --steps 2000
//! cargo run --release --example simulate -- --seed 4711 --steps 2000
//! ```

#[path = "../tests/simulation/mod.rs"]
mod simulation;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use std::ops::Range;

/// Simulate pushring: shards, network, clients and processes, all from one seed.
#[derive(Parser)]
struct Arguments {
    /// These seeds, the last one excluded.
    #[arg(long, default_value = "0..1000", value_parser = range, conflicts_with = "seed")]
    seeds: Range<u64>,
    /// This seed alone.
    #[arg(long)]
    seed: Option<u64>,
    /// Steps of 1 to 30 ms each, before the faults stop.
    #[arg(long, default_value_t = 400)]
    steps: u64,
}

fn range(text: &str) -> Result<Range<u64>> {
    let (from, to) = text.split_once("..").context("seeds are given as FROM..TO")?;
    Ok(from.parse()?..to.parse()?)
}

fn main() -> Result<()> {
    let Arguments { seeds, seed, steps } = Arguments::parse();
    let seeds = seed.map_or(seeds, |seed| seed..seed + 1);
    let bar = ProgressBar::new(seeds.end.saturating_sub(seeds.start));
    bar.set_style(ProgressStyle::with_template("{bar:40} {pos}/{len} seeds, {eta} left; {msg}")?);
    let again = |seed: u64| format!("cargo run --release --example simulate -- --seed {seed} --steps {steps}");
    let tally = simulation::run_all(seeds.clone(), steps, |tally, failed| {
        bar.inc(1);
        bar.set_message(format!("{} failed", tally.failed.len()));
        if let Some((seed, why)) = failed {
            println!("seed {seed}: {why}\n  again: {}", again(*seed));
        }
    });
    bar.finish();
    println!("{:#?}", tally.sum);
    ensure!(tally.failed.is_empty(), "{} of {} seeds failed", tally.failed.len(), seeds.end - seeds.start);
    Ok(())
}
