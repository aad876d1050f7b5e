//! Inbound: clients send bursts of messages that the server takes without an answer, all but the last of each burst.
//!
//! Invariants: a burst follows when the answer to the one before has come; so the messages that were answered, times
//! the length of a burst, are those that the server has taken.

use anyhow::bail;
use clap::Args;
use serde::Serialize;

use super::tally::{MeasuredRun, Tally};
use super::{parse_positive, parse_size};
use crate::bench::Bench;
use crate::client::{Closure, Engine, Handler, Message, Opcode, Outbox};
use crate::progress::Progress;
use crate::report::Report;
use crate::sys;

/// The process of the demo that takes Text without an answer, and answers each Binary message with itself.
pub(crate) const SINK: &str = "sink:pushring:sys";

/// Settings of `inbound`.
#[derive(Debug, Clone, Args, Serialize)]
pub(crate) struct Settings {
    /// Clients.
    #[arg(long, default_value_t = 100)]
    pub clients: usize,
    /// Messages of a burst, which a client sends at once.
    #[arg(long, default_value_t = 64)]
    pub burst: u64,
    /// Bytes of a message.
    #[arg(long, default_value = "200", value_parser = parse_size)]
    pub size: usize,
    /// For how long, in seconds.
    #[arg(long, default_value_t = 5.0, value_parser = parse_positive)]
    pub seconds: f64,
}

struct Bursts {
    tally: Tally,
    /// Text, so that only the last of a burst is answered.
    filler: Vec<u8>,
    last: Vec<u8>,
    fillers: u64,
    is_over: bool,
}

impl Bursts {
    /// A burst of `client`, a message at a time.
    fn give(&mut self, client: usize, now_ns: u64, mut send: impl FnMut(Opcode, &[u8])) {
        for _ in 0..self.fillers {
            send(Opcode::Text, &self.filler);
        }
        self.last.clear();
        self.tally.write_next(client, now_ns, &mut self.last);
        send(Opcode::Binary, &self.last);
    }
}

impl Handler for Bursts {
    fn message(&mut self, client: usize, message: &Message<'_>, received_ns: u64, outbox: &mut Outbox<'_>) {
        if message.opcode != Opcode::Text && self.tally.take(client, message, received_ns) && !self.is_over {
            self.give(client, received_ns, |opcode, payload| outbox.send(opcode, payload));
        }
    }

    fn closed(&mut self, client: usize, closure: &Closure) {
        self.tally.accounting.note_closure(client, &closure.reason);
    }
}

/// Runs `inbound`.
pub(crate) fn run(bench: &mut Bench, settings: &Settings) -> anyhow::Result<Report> {
    if settings.clients == 0 || settings.burst == 0 {
        bail!("--clients and --burst must be at least 1");
    }
    let behaviour = &bench.behaviour;
    let mut engine = Engine::new(bench.server.target(SINK, behaviour)?, behaviour.pace)?;
    let mut bursts = Bursts {
        tally: Tally::new(settings.clients, settings.size),
        filler: vec![b'x'; settings.size],
        last: Vec::new(),
        fillers: settings.burst - 1,
        is_over: false,
    };
    engine.connect_all(0, settings.clients, behaviour.patience, |_| None, &mut bursts, |_| {})?;
    if bursts.tally.accounting.closed > 0 {
        bail!("not all connections opened; {}", bursts.tally.accounting.closures.concat());
    }
    let stretch = MeasuredRun::start(bench, &engine)?;
    exchange(&mut engine, &mut bursts, settings, behaviour.patience.as_nanos() as u64)?;
    Ok(stretch.report("inbound", settings, &engine, bursts.tally)?.each_for(settings.burst, "message"))
}

fn exchange(engine: &mut Engine, bursts: &mut Bursts, settings: &Settings, patience_ns: u64) -> anyhow::Result<()> {
    let start_ns = sys::now_ns();
    let end_ns = start_ns + (settings.seconds * 1e9) as u64;
    let mut bar = Progress::new("sending", 0);
    for client in 0..settings.clients {
        bursts.give(client, sys::now_ns(), |opcode, payload| {
            engine.send_as(client, opcode, payload);
        });
        engine.flush(client, bursts);
    }
    bursts.tally.last_arrival_ns = sys::now_ns();
    while bursts.tally.outstanding() > 0 {
        let handled = engine.poll(10, bursts)?;
        let now_ns = sys::now_ns();
        bursts.is_over = now_ns >= end_ns;
        if handled == 0 && now_ns.saturating_sub(bursts.tally.last_arrival_ns) > patience_ns {
            break;
        }
        bar.set(bursts.tally.accounting.delivered * settings.burst);
    }
    Ok(())
}
