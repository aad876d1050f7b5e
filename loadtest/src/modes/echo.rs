//! Echo: each client keeps a window of messages on their way to the server and back.

use anyhow::bail;
use clap::Args;
use serde::Serialize;

use super::{CpuMeter, parse_size, run_number};
use crate::cli::Bench;
use crate::client::{Closure, Engine, Handler, Message, Opcode, Outbox};
use crate::ledger::{Accounting, Receipt, Receipts, check};
use crate::payload::Stamp;
use crate::progress::Progress;
use crate::report::{CpuReport, Report};
use crate::stats::Latency;
use crate::sys;

/// The process of the demo that answers each message with itself.
pub const ECHO: &str = "echo:pushring:sys";

/// Settings of `echo`.
#[derive(Debug, Clone, Args, Serialize)]
pub struct Settings {
    /// Clients.
    #[arg(long, default_value_t = 100)]
    pub clients: usize,
    /// Messages of each client on their way at a time.
    #[arg(long, default_value_t = 16)]
    pub in_flight: u64,
    /// Bytes of a message.
    #[arg(long, default_value = "32", value_parser = parse_size)]
    pub size: usize,
    /// Messages of each client.
    #[arg(long, default_value_t = 5000)]
    pub messages: u64,
    /// Send for this long instead, in seconds.
    #[arg(long, conflicts_with = "messages")]
    pub seconds: Option<f64>,
}

struct Echoes {
    run: u32,
    size: usize,
    /// Messages each client sends in all; lowered when the time is over.
    messages: u64,
    sent: Vec<u64>,
    receipts: Vec<Receipts>,
    accounting: Accounting,
    latency: Latency,
    last_arrival_ns: u64,
    payload: Vec<u8>,
}

impl Echoes {
    fn next_payload(&mut self, client: usize, now_ns: u64) -> Option<&[u8]> {
        let sequence = self.sent[client];
        if sequence >= self.messages {
            return None;
        }
        self.sent[client] += 1;
        self.payload.clear();
        let stamp = Stamp { run: self.run, client: client as u32, sequence, time_ns: now_ns };
        stamp.write(self.size, &mut self.payload);
        Some(&self.payload)
    }

    fn outstanding(&self) -> u64 {
        self.sent.iter().sum::<u64>() - self.accounting.delivered
    }

    fn finish(mut self) -> (Accounting, Latency) {
        self.accounting.expected = self.sent.iter().sum();
        self.accounting.lost =
            self.receipts.iter().zip(&self.sent).map(|(receipts, &sent)| receipts.missing(sent)).sum();
        (self.accounting, self.latency)
    }
}

impl Handler for Echoes {
    fn message(&mut self, client: usize, message: &Message<'_>, received_ns: u64, outbox: &mut Outbox<'_>) {
        if message.opcode == Opcode::Text {
            return;
        }
        let Some(stamp) = check(message, self.run, self.size, &mut self.accounting) else { return };
        if stamp.client as usize != client {
            self.accounting.misdelivered += 1;
            return;
        }
        match self.receipts[client].take(stamp.sequence) {
            Receipt::Duplicate => {
                self.accounting.duplicated += 1;
                return;
            }
            Receipt::Late => self.accounting.reordered += 1,
            Receipt::Fresh => {}
        }
        self.accounting.delivered += 1;
        self.last_arrival_ns = received_ns;
        self.latency.record(received_ns.saturating_sub(stamp.time_ns));
        if let Some(payload) = self.next_payload(client, received_ns) {
            outbox.send(Opcode::Binary, payload);
        }
    }

    fn closed(&mut self, client: usize, closure: &Closure) {
        self.accounting.note_closure(client, &closure.reason);
    }
}

/// Runs `echo`.
pub fn run(bench: &mut Bench, settings: &Settings) -> anyhow::Result<Report> {
    if settings.clients == 0 || settings.in_flight == 0 {
        bail!("--clients and --in-flight must be at least 1");
    }
    let conduct = &bench.conduct;
    let target = bench.server.target(ECHO, conduct.token.as_deref(), conduct.sources)?;
    let mut engine = Engine::new(target, conduct.pace)?;
    let mut echoes = Echoes {
        run: run_number(),
        size: settings.size,
        messages: if settings.seconds.is_some() { u64::MAX } else { settings.messages },
        sent: vec![0; settings.clients],
        receipts: vec![Receipts::default(); settings.clients],
        accounting: Accounting::default(),
        latency: Latency::default(),
        last_arrival_ns: 0,
        payload: Vec::new(),
    };
    engine.connect_all(0, settings.clients, conduct.patience, |_| None, &mut echoes, |_| {})?;
    if echoes.accounting.closed > 0 {
        bail!("not all connections opened; {}", echoes.accounting.closures.concat());
    }
    let meter = CpuMeter::start(&bench.server)?;
    let (start_ns, busy_before) = (sys::now_ns(), engine.busy_ns());
    exchange(&mut engine, &mut echoes, settings, conduct.patience.as_nanos() as u64)?;
    let used = meter.stop()?;
    let elapsed_ns = echoes.last_arrival_ns.saturating_sub(start_ns).max(1) as f64;
    let busy = (engine.busy_ns() - busy_before) as f64 / elapsed_ns;
    let (accounting, latency) = echoes.finish();
    let (count, seconds) = (accounting.delivered, elapsed_ns / 1e9);
    Ok(Report {
        mode: "echo".to_owned(),
        server: bench.server.name.clone(),
        url: bench.server.url.clone(),
        settings: serde_json::to_value(settings)?,
        unit: "delivery".to_owned(),
        count,
        seconds,
        per_second: count as f64 / seconds,
        latency: latency.summary(),
        accounting,
        cpu: used.server.map(|total| CpuReport::new(total, count, seconds)),
        memory: None,
        client_busy: busy.min(1.0),
        others_us: used.others_us,
        notes: Vec::new(),
    }
    .judge(bench.server.cpus))
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
    echoes.last_arrival_ns = sys::now_ns();
    while echoes.outstanding() > 0 {
        let handled = engine.poll(10, echoes)?;
        let now_ns = sys::now_ns();
        if end_ns.is_some_and(|end_ns| now_ns >= end_ns) {
            echoes.messages = 0;
        }
        if handled == 0 && now_ns.saturating_sub(echoes.last_arrival_ns) > patience_ns {
            break;
        }
        bar.set(echoes.accounting.delivered);
    }
    Ok(())
}
