//! A bounded soak: connections that come, go and break off, clients that read slowly, never finish their handshake or
//! fall silent, beside clients that must not notice any of it.
//!
//! It asserts that the steady clients get every message once, that each echo comes back, that silent clients are closed
//! in time, that the server's descriptors return to their initial number, and that its resident memory does not grow
//! with time. The exit code reports the result.

mod crowd;
mod trend;

use std::time::Duration;

use anyhow::bail;
use clap::Args;
use serde::Serialize;

use crate::bench::Bench;
use crate::client::Engine;
use crate::client::engine::{CloseHow, Pace};
use crate::ledger::Accounting;
use crate::modes::broadcast::{BARRIER, Receivers, RunIds, StallPlan};
use crate::modes::echo::ECHO;
use crate::modes::fanout::RELAY;
use crate::modes::{parse_amount, parse_positive, parse_size, run_number};
use crate::payload::Stamp;
use crate::progress::Progress;
use crate::report::{CpuReport, thousands};
use crate::stats::LatencySummary;
use crate::{proc, sys};
use crowd::{Churn, SilentClients, SlowReaders};
use trend::Trend;

/// Settings of `soak`.
#[derive(Debug, Clone, Args, Serialize)]
pub(crate) struct Settings {
    /// How long, in minutes.
    #[arg(long, default_value_t = 10.0, value_parser = parse_positive)]
    pub minutes: f64,
    /// Clients that get every message and must lose none.
    #[arg(long, default_value_t = 500)]
    pub steady: usize,
    /// Messages a second to them and to the slow readers.
    #[arg(long, default_value_t = 50.0, value_parser = parse_positive)]
    pub rate: f64,
    /// Bytes of a message.
    #[arg(long, default_value = "512", value_parser = parse_size)]
    pub size: usize,
    /// Connections opened a second that send one message, get it back and leave: by FIN, reset or closing handshake.
    #[arg(long, default_value_t = 200.0, value_parser = parse_amount)]
    pub churn_rate: f64,
    /// Clients that read only now and then. The server may close them; they come again.
    #[arg(long, default_value_t = 50)]
    pub slow: usize,
    /// Connections that send half a request and then nothing.
    #[arg(long, default_value_t = 100)]
    pub half_open: usize,
    /// Seconds after which the server must have closed one of those; 0: never.
    #[arg(long, default_value_t = 20)]
    pub half_open_max_s: u64,
    /// Connections that open a channel and then answer nothing, not even pings.
    #[arg(long, default_value_t = 100)]
    pub silent: usize,
    /// Seconds after which the server must have closed one of those; 0: never.
    #[arg(long, default_value_t = 90)]
    pub silent_max_s: u64,
    /// Growth of resident memory over the measured part that still counts as flat, in KiB.
    #[arg(long, default_value_t = 4096)]
    pub growth_kib_max: u64,
}

/// The results of the soak.
#[derive(Debug, Serialize)]
pub(crate) struct SoakReport {
    /// The server.
    pub server: String,
    /// The settings.
    pub settings: Settings,
    /// How long it ran, in seconds.
    pub seconds: f64,
    /// The account of the steady clients.
    pub accounting: Accounting,
    /// Their latencies.
    pub latency: Option<LatencySummary>,
    /// Connections of the churn that opened, and how they were ended.
    pub churned: crowd::ChurnCounts,
    /// Slow readers that the server closed.
    pub slow_closed: u64,
    /// Half-open connections that the server closed.
    pub half_open_closed: u64,
    /// Silent channels that the server closed.
    pub silent_closed: u64,
    /// Descriptors of the server before, at most, and after.
    pub descriptors: Option<(u64, u64, u64)>,
    /// Resident memory over time.
    pub memory: Option<trend::Flatness>,
    /// The server's CPU time.
    pub cpu: Option<CpuReport>,
    /// Violations.
    pub faults: Vec<String>,
}

/// How long the server is given to let go of closed connections.
const SETTLE: Duration = Duration::from_secs(15);

/// Descriptors a server may open for itself meanwhile (a worker's pipe, a log).
const DESCRIPTORS_OF_ITS_OWN: u64 = 8;

/// Runs the soak; true when everything held.
pub(crate) fn run(bench: &mut Bench, settings: &Settings, json: bool) -> anyhow::Result<bool> {
    if settings.steady == 0 {
        bail!("--steady must be at least 1");
    }
    let report = Soak::new(bench, settings)?.run()?;
    bench.server.check_alive()?;
    if json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{}", report.table());
    }
    Ok(report.faults.is_empty())
}

struct Soak<'a> {
    bench: &'a Bench,
    settings: &'a Settings,
    ids: RunIds,
    engine: Engine,
    steady: Receivers,
    churn: Churn,
    slow: SlowReaders,
    half_open: SilentClients,
    silent: SilentClients,
    payload: Vec<u8>,
    sent: u64,
    trend: Trend,
    descriptors_before: u64,
    descriptors_peak: u64,
}

impl<'a> Soak<'a> {
    fn new(bench: &'a Bench, settings: &'a Settings) -> anyhow::Result<Self> {
        let run = run_number();
        let ids = RunIds { run, warm: !run };
        let behaviour = &bench.behaviour;
        let relay = bench.server.target(RELAY, behaviour)?;
        let echo = bench.server.target(ECHO, behaviour)?;
        let stalls = StallPlan { clients: 0, messages: 0, spread: 0, first: 0 };
        Ok(Self {
            bench,
            settings,
            ids,
            engine: Engine::new(relay.clone(), Pace::Block)?,
            steady: Receivers::new(ids, settings.size, settings.steady, true, stalls),
            silent: SilentClients::silent(&echo, settings.silent, settings.silent_max_s),
            churn: Churn::new(echo, settings.churn_rate)?,
            half_open: SilentClients::half_open(&relay, settings.half_open, settings.half_open_max_s),
            slow: SlowReaders::new(relay, settings.slow)?,
            payload: Vec::new(),
            sent: 0,
            trend: Trend::default(),
            descriptors_before: 0,
            descriptors_peak: 0,
        })
    }

    fn run(mut self) -> anyhow::Result<SoakReport> {
        let pids = self.bench.server.pids.clone();
        self.descriptors_before = if pids.is_empty() { 0 } else { proc::descriptors(&pids)? };
        let patience = self.bench.behaviour.patience;
        self.engine.connect_all(0, self.settings.steady + 1, patience, |_| None, &mut self.steady, |_| {})?;
        self.warm_up(patience)?;
        let meter = crate::modes::CpuMeter::start(&self.bench.server)?;
        let start_ns = sys::now_ns();
        self.soak(start_ns, &pids)?;
        self.drain(patience)?;
        let cpu = meter.stop()?.server;
        let seconds = (sys::now_ns() - start_ns) as f64 / 1e9;
        self.finish(seconds, cpu, &pids)
    }

    fn publish(&mut self, stamp: Stamp) -> anyhow::Result<()> {
        self.payload.clear();
        stamp.write(self.settings.size, &mut self.payload);
        if !self.engine.send(self.settings.steady, &self.payload) {
            let reason = self.steady.publisher_gone.clone().unwrap_or_default();
            bail!("the publisher's connection is gone: {reason}");
        }
        self.engine.flush(self.settings.steady, &mut self.steady);
        Ok(())
    }

    /// Until every steady client has got a message and then the last of those that do not count.
    fn warm_up(&mut self, patience: Duration) -> anyhow::Result<()> {
        let everyone = self.settings.steady as u64;
        let deadline_ns = sys::now_ns() + patience.as_nanos() as u64;
        let mut sequence = 0;
        while self.steady.warm < everyone {
            let client = if self.steady.reached < everyone { 0 } else { BARRIER };
            self.publish(Stamp { run: self.ids.warm, client, sequence, time_ns: 0 })?;
            sequence += 1;
            let next_ns = sys::now_ns() + 200_000_000;
            while sys::now_ns() < next_ns && self.steady.warm < everyone {
                self.engine.poll(10, &mut self.steady)?;
                if client != BARRIER && self.steady.reached == everyone {
                    break;
                }
            }
            if sys::now_ns() > deadline_ns {
                bail!("only {} of {everyone} clients got anything", self.steady.reached);
            }
        }
        Ok(())
    }

    fn soak(&mut self, start_ns: u64, pids: &[u32]) -> anyhow::Result<()> {
        let length_ns = (self.settings.minutes * 60e9) as u64;
        let interval_ns = 1e9 / self.settings.rate;
        // Some two hundred looks at the memory, not more than four a second.
        let look_ns = (length_ns / 200).max(250_000_000);
        let (mut next_look_ns, mut now_ns) = (start_ns, start_ns);
        let mut bar = Progress::new("soaking", length_ns / 1_000_000_000);
        while now_ns < start_ns + length_ns {
            let due_ns = start_ns + (self.sent as f64 * interval_ns) as u64;
            if now_ns >= due_ns {
                let client = self.settings.steady as u32;
                self.publish(Stamp { run: self.ids.run, client, sequence: self.sent, time_ns: due_ns })?;
                self.sent += 1;
            }
            let handled = self.engine.poll(0, &mut self.steady)? + self.churn.step(now_ns)? + self.slow.step(now_ns)?;
            self.half_open.step(now_ns)?;
            self.silent.step(now_ns)?;
            if handled == 0 {
                self.engine.poll(1, &mut self.steady)?;
            }
            now_ns = sys::now_ns();
            if now_ns >= next_look_ns && !pids.is_empty() {
                next_look_ns = now_ns + look_ns;
                self.trend.add((now_ns - start_ns) as f64 / 1e9, proc::Memory::of(pids)?.rss);
                self.descriptors_peak = self.descriptors_peak.max(proc::descriptors(pids)?);
            }
            bar.set((now_ns - start_ns) / 1_000_000_000);
        }
        Ok(())
    }

    fn drain(&mut self, patience: Duration) -> anyhow::Result<()> {
        let deadline_ns = sys::now_ns() + patience.as_nanos() as u64;
        while self.steady.ledger.outstanding(self.sent) > 0 && sys::now_ns() < deadline_ns {
            self.engine.poll(10, &mut self.steady)?;
        }
        Ok(())
    }

    /// Closes everything, waits until the server has let go, and judges.
    fn finish(mut self, seconds: f64, cpu: Option<proc::CpuUse>, pids: &[u32]) -> anyhow::Result<SoakReport> {
        for client in 0..=self.settings.steady {
            self.engine.close(client, CloseHow::Tcp)?;
        }
        let (churned, mut faults) = self.churn.finish()?;
        let slow_closed = self.slow.finish()?;
        let (half_open_closed, half_open_fault) = self.half_open.finish("half-open");
        let (silent_closed, silent_fault) = self.silent.finish("silent");
        faults.extend(half_open_fault.into_iter().chain(silent_fault));
        let descriptors = if pids.is_empty() {
            None
        } else {
            let after = settle(pids, self.descriptors_before + DESCRIPTORS_OF_ITS_OWN)?;
            Some((self.descriptors_before, self.descriptors_peak, after))
        };
        let memory = self.trend.flatness();
        let accounting = self.steady.ledger.finish(self.sent);
        if !accounting.is_clean() {
            faults.push(format!("steady clients: {accounting:?}"));
        }
        if let Some((before, _, after)) =
            descriptors.filter(|&(before, _, after)| after > before + DESCRIPTORS_OF_ITS_OWN)
        {
            faults.push(format!("the server holds {after} descriptors, {before} before: a leak"));
        }
        if let Some(memory) = memory.filter(|memory| memory.growth_kib > self.settings.growth_kib_max as f64) {
            faults.push(format!("resident memory grew by {:.0} KiB: not flat", memory.growth_kib));
        }
        Ok(SoakReport {
            server: self.bench.server.name.clone(),
            settings: self.settings.clone(),
            seconds,
            latency: self.steady.latency.summary(),
            cpu: cpu.map(|total| CpuReport::new(total, accounting.delivered, seconds)),
            accounting,
            churned,
            slow_closed,
            half_open_closed,
            silent_closed,
            descriptors,
            memory,
            faults,
        })
    }
}

/// Waits until the server has at most `most` descriptors, and returns how many it has in the end.
fn settle(pids: &[u32], most: u64) -> anyhow::Result<u64> {
    let deadline_ns = sys::now_ns() + SETTLE.as_nanos() as u64;
    loop {
        let now = proc::descriptors(pids)?;
        if now <= most || sys::now_ns() > deadline_ns {
            return Ok(now);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

impl SoakReport {
    fn table(&self) -> String {
        let a = &self.accounting;
        let c = &self.churned;
        let mut text = format!(
            "soak\n  server        {} for {:.0} s\n  steady        {} delivered of {}, lost {}, duplicated {}, closed {}\n",
            self.server,
            self.seconds,
            thousands(a.delivered),
            thousands(a.expected),
            a.lost,
            a.duplicated,
            a.closed
        );
        if let Some(latency) = self.latency {
            text.push_str(&format!(
                "  latency       p50 {:.2} ms  p99 {:.2} ms  max {:.2} ms\n",
                latency.p50_us / 1e3,
                latency.p99_us / 1e3,
                latency.max_us / 1e3
            ));
        }
        text.push_str(&format!(
            "  churn         {} opened, {} echoed; ended by FIN {}, reset {}, handshake {}\n\
             \x20 slow          {} closed by the server\n  half-open     {} closed by the server\n  silent        {} closed by the server\n",
            thousands(c.opened),
            thousands(c.echoed),
            c.fins,
            c.resets,
            c.handshakes,
            self.slow_closed,
            self.half_open_closed,
            self.silent_closed
        ));
        if let Some((before, peak, after)) = self.descriptors {
            text.push_str(&format!("  descriptors   {before} before, {peak} at most, {after} after\n"));
        }
        if let Some(m) = self.memory {
            text.push_str(&format!(
                "  resident      {:.0} KiB on average, {:+.0} KiB over the measured part\n",
                m.mean_kib, m.growth_kib
            ));
        }
        text.extend(self.faults.iter().map(|fault| format!("  FAULT         {fault}\n")));
        text.push_str(&format!("  verdict       {}\n", if self.faults.is_empty() { "held" } else { "DID NOT HOLD" }));
        text
    }
}
