//! Echo: each client keeps a window of messages on their way to the server and back.

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

/// The process of the demo that answers each message with itself.
pub(crate) const ECHO: &str = "echo:pushring:sys";

/// Settings of `echo`.
#[derive(Debug, Clone, Args, Serialize)]
pub(crate) struct Settings {
    /// Clients.
    #[arg(long, default_value_t = 100)]
    pub clients: usize,
    /// Messages of each client in flight.
    #[arg(long, default_value_t = 16)]
    pub in_flight: u64,
    /// Bytes of a message.
    #[arg(long, default_value = "32", value_parser = parse_size)]
    pub size: usize,
    /// Messages of each client.
    #[arg(long, default_value_t = 5000)]
    pub messages: u64,
    /// Send for this long instead, in seconds.
    #[arg(long, conflicts_with = "messages", value_parser = parse_positive)]
    pub seconds: Option<f64>,
}

struct Echoes {
    tally: Tally,
    /// Messages each client sends in all; lowered when the time is over.
    messages: u64,
    payload: Vec<u8>,
}

impl Echoes {
    fn next_payload(&mut self, client: usize, now_ns: u64) -> Option<&[u8]> {
        if self.tally.sent_to(client) >= self.messages {
            return None;
        }
        self.payload.clear();
        self.tally.write_next(client, now_ns, &mut self.payload);
        Some(&self.payload)
    }
}

impl Handler for Echoes {
    fn message(&mut self, client: usize, message: &Message<'_>, received_ns: u64, outbox: &mut Outbox<'_>) {
        // Text is what a server says by itself.
        if message.opcode != Opcode::Text
            && self.tally.take(client, message, received_ns)
            && let Some(payload) = self.next_payload(client, received_ns)
        {
            outbox.send(Opcode::Binary, payload);
        }
    }

    fn closed(&mut self, client: usize, closure: &Closure) {
        self.tally.accounting.note_closure(client, &closure.reason);
    }
}

/// Runs `echo`.
pub(crate) fn run(bench: &mut Bench, settings: &Settings) -> anyhow::Result<Report> {
    if settings.clients == 0 || settings.in_flight == 0 {
        bail!("--clients and --in-flight must be at least 1");
    }
    let behaviour = &bench.behaviour;
    let target = bench.server.target(ECHO, behaviour)?;
    let mut engine = Engine::new(target, behaviour.pace)?;
    let mut echoes = Echoes {
        tally: Tally::new(settings.clients, settings.size),
        messages: if settings.seconds.is_some() { u64::MAX } else { settings.messages },
        payload: Vec::new(),
    };
    engine.connect_all(0, settings.clients, behaviour.patience, |_| None, &mut echoes, |_| {})?;
    if echoes.tally.accounting.closed > 0 {
        bail!("not all connections opened; {}", echoes.tally.accounting.closures.concat());
    }
    let stretch = MeasuredRun::start(bench, &engine)?;
    exchange(&mut engine, &mut echoes, settings, behaviour.patience.as_nanos() as u64)?;
    stretch.report("echo", settings, &engine, echoes.tally)
}

fn exchange(engine: &mut Engine, echoes: &mut Echoes, settings: &Settings, patience_ns: u64) -> anyhow::Result<()> {
    let start_ns = sys::now_ns();
    let end_ns = settings.seconds.map(|seconds| start_ns + (seconds * 1e9) as u64);
    let total = settings.messages.saturating_mul(settings.clients as u64);
    let mut bar = Progress::new("echoing", if end_ns.is_some() { 0 } else { total });
    for client in 0..settings.clients {
        for _ in 0..settings.in_flight {
            if let Some(payload) = echoes.next_payload(client, sys::now_ns()) {
                engine.send(client, payload);
            }
        }
        engine.flush(client, echoes);
    }
    echoes.tally.last_arrival_ns = sys::now_ns();
    while echoes.tally.outstanding() > 0 {
        let handled = engine.poll(10, echoes)?;
        let now_ns = sys::now_ns();
        if end_ns.is_some_and(|end_ns| now_ns >= end_ns) {
            echoes.messages = 0;
        }
        if handled == 0 && now_ns.saturating_sub(echoes.tally.last_arrival_ns) > patience_ns {
            break;
        }
        bar.set(echoes.tally.accounting.delivered);
    }
    Ok(())
}
