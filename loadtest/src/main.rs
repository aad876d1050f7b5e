//! Simulates thousands of WebSocket clients and measures the server they talk to. It shares no code with the server.

#![warn(unreachable_pub)]

mod behaviour;
mod bench;
mod cli;
mod client;
mod compare;
mod fleet;
mod ledger;
mod machine_gaps;
mod modes;
mod neighbours;
mod payload;
mod proc;
mod process_hogs;
mod progress;
mod random;
mod reference;
mod report;
mod server;
mod soak;
mod stats;
mod sys;
mod workers;

use std::process::ExitCode;

use clap::Parser;

use bench::{Bench, Run};
use cli::{Cli, Command};
use report::Report;

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(2),
        Err(error) => {
            eprintln!("loadtest: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether everything held.
fn run(cli: Cli) -> anyhow::Result<bool> {
    sys::descriptors_max()?;
    match cli.command {
        Command::Connect(run) => measure(&run, modes::connect::run),
        Command::Fanout(run) => measure(&run, modes::fanout::run_window),
        Command::Paced(run) => measure(&run, modes::fanout::run_paced),
        Command::Echo(run) => measure(&run, modes::echo::run),
        Command::Unicast(run) => measure(&run, modes::unicast::run),
        Command::Rooms(run) => measure(&run, modes::rooms::run),
        Command::Inbound(run) => measure(&run, modes::inbound::run),
        Command::Soak(run) => soak::run(&mut run.server.open()?, &run.settings, run.server.json),
        Command::Fleet(settings) => fleet::run(&settings),
        Command::Neighbours(run) => neighbours::run(&run),
        Command::Limit(args) => compare::run_limit(&args),
        Command::Compare(args) => compare::run(&args),
        Command::Reference(args) => reference::run(&args).map(|()| true),
    }
}

fn measure<S: clap::Args>(
    run: &Run<S>,
    mode: impl Fn(&mut Bench, &S) -> anyhow::Result<Report>,
) -> anyhow::Result<bool> {
    let mut bench = run.server.open()?;
    let report = mode(&mut bench, &run.settings)?;
    if run.server.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{}", report.table());
    }
    Ok(report.is_clean())
}
