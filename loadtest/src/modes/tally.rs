//! What echo and unicast have in common: messages that each have one receiver, and the report on them.
//!
//! Invariants: the messages to a client are numbered from 0 in the order in which they are sent; each counts once.

use serde::Serialize;

use super::{CpuMeter, run_number};
use crate::cli::Bench;
use crate::client::{Engine, Message};
use crate::ledger::{Accounting, Receipt, Receipts, check};
use crate::payload::Stamp;
use crate::report::{CpuReport, Report};
use crate::stats::Latency;
use crate::sys;

/// The account of one run.
pub struct Tally {
    run: u32,
    size: usize,
    sent: Vec<u64>,
    receipts: Vec<Receipts>,
    /// What came, and how.
    pub accounting: Accounting,
    latency: Latency,
    /// When the last message arrived, or the first was sent.
    pub last_arrival_ns: u64,
}

impl Tally {
    /// An account of `receivers` clients, the first ones, and messages of `size` bytes.
    pub fn new(receivers: usize, size: usize) -> Self {
        Self {
            run: run_number(),
            size,
            sent: vec![0; receivers],
            receipts: vec![Receipts::default(); receivers],
            accounting: Accounting::default(),
            latency: Latency::default(),
            last_arrival_ns: sys::now_ns(),
        }
    }

    /// How many messages were sent to `client`.
    pub fn sent_to(&self, client: usize) -> u64 {
        self.sent[client]
    }

    /// Appends the payload of the next message to `client`, which counts as sent now.
    pub fn write_next(&mut self, client: usize, now_ns: u64, payload: &mut Vec<u8>) {
        let sequence = self.sent[client];
        self.sent[client] += 1;
        Stamp { run: self.run, client: client as u32, sequence, time_ns: now_ns }.write(self.size, payload);
    }

    /// Takes note of a message that `client` got. False when it was none that it should get, or for the second time.
    pub fn take(&mut self, client: usize, message: &Message<'_>, received_ns: u64) -> bool {
        let Some(stamp) = check(message, self.run, self.size, &mut self.accounting) else { return false };
        if stamp.client as usize != client || client >= self.receipts.len() {
            self.accounting.misdelivered += 1;
            return false;
        }
        match self.receipts[client].take(stamp.sequence) {
            Receipt::Duplicate => {
                self.accounting.duplicated += 1;
                return false;
            }
            Receipt::Late => self.accounting.reordered += 1,
            Receipt::Fresh => {}
        }
        self.accounting.delivered += 1;
        self.last_arrival_ns = received_ns;
        self.latency.record(received_ns.saturating_sub(stamp.time_ns));
        true
    }

    /// How many messages are on their way.
    pub fn outstanding(&self) -> u64 {
        self.sent.iter().sum::<u64>() - self.accounting.delivered
    }

    fn finish(mut self) -> (Accounting, Latency) {
        self.accounting.expected = self.sent.iter().sum();
        self.accounting.lost =
            self.receipts.iter().zip(&self.sent).map(|(receipts, &sent)| receipts.missing(sent)).sum();
        (self.accounting, self.latency)
    }
}

/// The part of a run that is measured.
pub struct Stretch<'a> {
    bench: &'a Bench,
    meter: CpuMeter<'a>,
    start_ns: u64,
    busy_before_ns: u64,
}

impl<'a> Stretch<'a> {
    /// Begins now.
    pub fn start(bench: &'a Bench, engine: &Engine) -> anyhow::Result<Self> {
        let meter = CpuMeter::start(&bench.server)?;
        Ok(Self { bench, meter, start_ns: sys::now_ns(), busy_before_ns: engine.busy_ns() })
    }

    /// Ends with the last message that arrived.
    pub fn report(
        self,
        mode: &str,
        settings: &impl Serialize,
        engine: &Engine,
        tally: Tally,
    ) -> anyhow::Result<Report> {
        let used = self.meter.stop()?;
        let elapsed_ns = tally.last_arrival_ns.saturating_sub(self.start_ns).max(1) as f64;
        let busy = (engine.busy_ns() - self.busy_before_ns) as f64 / elapsed_ns;
        let (accounting, latency) = tally.finish();
        let (count, seconds) = (accounting.delivered, elapsed_ns / 1e9);
        let server = &self.bench.server;
        Ok(Report {
            mode: mode.to_owned(),
            server: server.name.clone(),
            url: server.url.clone(),
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
        .judge(server.cpus))
    }
}
