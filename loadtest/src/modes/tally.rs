//! The common part of echo, unicast and rooms: messages for a group of receivers each (one, or the others of a room),
//! and the report on them.
//!
//! Invariants: the messages to a group are numbered from 0 in the order in which they are sent; each counts once for
//! each receiver.

use serde::Serialize;

use super::{CpuMeter, run_number};
use crate::bench::Bench;
use crate::client::{Engine, Message};
use crate::ledger::{Accounting, Receipt, Receipts, check};
use crate::payload::Stamp;
use crate::report::{CpuReport, Report};
use crate::stats::Latency;
use crate::sys;

/// The account of one run.
pub(super) struct Tally {
    run: u32,
    size: usize,
    /// Messages to each group.
    sent: Vec<u64>,
    /// Receivers of a group.
    group: usize,
    receipts: Vec<Receipts>,
    /// The messages received, and their order.
    pub accounting: Accounting,
    latency: Latency,
    /// When the last message arrived, or the first was sent.
    pub last_arrival_ns: u64,
}

impl Tally {
    /// An account of `receivers` clients, the first ones, and messages of `size` bytes.
    pub(super) fn new(receivers: usize, size: usize) -> Self {
        Self::of_groups(receivers, 1, size)
    }

    /// An account of so many groups of `group` clients each: the first clients are the first group, and so on.
    pub(super) fn of_groups(groups: usize, group: usize, size: usize) -> Self {
        Self {
            run: run_number(),
            size,
            sent: vec![0; groups],
            group,
            receipts: vec![Receipts::default(); groups * group],
            accounting: Accounting::default(),
            latency: Latency::default(),
            last_arrival_ns: sys::now_ns(),
        }
    }

    /// How many messages were sent to group `group`.
    pub(super) fn sent_to(&self, group: usize) -> u64 {
        self.sent[group]
    }

    /// Appends the payload of the next message to group `group`, which counts as sent now.
    pub(super) fn write_next(&mut self, group: usize, now_ns: u64, payload: &mut Vec<u8>) {
        let sequence = self.sent[group];
        self.sent[group] += 1;
        Stamp { run: self.run, client: group as u32, sequence, time_ns: now_ns }.write(self.size, payload);
    }

    /// Takes note of a message that `client` got. False when it was none that it should get, or for the second time.
    pub(super) fn take(&mut self, client: usize, message: &Message<'_>, received_ns: u64) -> bool {
        let Some(stamp) = check(message, self.run, self.size, &mut self.accounting) else { return false };
        if client >= self.receipts.len() || stamp.client as usize != client / self.group {
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
    pub(super) fn outstanding(&self) -> u64 {
        self.expected() - self.accounting.delivered
    }

    fn expected(&self) -> u64 {
        self.sent.iter().sum::<u64>() * self.group as u64
    }

    fn finish(mut self) -> (Accounting, Latency) {
        self.accounting.expected = self.expected();
        let groups = self.receipts.chunks(self.group).zip(&self.sent);
        let lost = |(group, &sent): (&[Receipts], _)| group.iter().map(|one| one.missing(sent)).sum::<u64>();
        self.accounting.lost = groups.map(lost).sum();
        (self.accounting, self.latency)
    }
}

/// The part of a run that is measured.
pub(super) struct MeasuredRun<'a> {
    bench: &'a Bench,
    meter: CpuMeter,
    start_ns: u64,
    busy_before_ns: u64,
}

impl<'a> MeasuredRun<'a> {
    /// Begins now.
    pub(super) fn start(bench: &'a Bench, engine: &Engine) -> anyhow::Result<Self> {
        let meter = CpuMeter::start(&bench.server)?;
        Ok(Self { bench, meter, start_ns: sys::now_ns(), busy_before_ns: engine.busy_ns() })
    }

    /// Ends with the last message that arrived.
    pub(super) fn report(
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
