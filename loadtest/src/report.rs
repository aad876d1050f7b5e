//! The results of one run, as a table for people and as JSON for programs.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use crate::ledger::Accounting;
use crate::proc::CpuUse;
use crate::stats::LatencySummary;

/// The result of one mode against one server.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Report {
    /// The mode's name.
    pub mode: String,
    /// The server's name.
    pub server: String,
    /// Where it listens.
    pub url: String,
    /// The mode's settings.
    pub settings: serde_json::Value,
    /// The unit counted: `delivery` or `connection`.
    pub unit: String,
    /// How many of them.
    pub count: u64,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// `count / seconds`.
    pub per_second: f64,
    /// From the intended send time to the arrival (connections: from connect to open).
    pub latency: Option<LatencySummary>,
    /// Lost, doubled and other messages.
    pub accounting: Accounting,
    /// The server's CPU time.
    pub cpu: Option<CpuReport>,
    /// Memory of idle channels.
    pub memory: Option<MemoryReport>,
    /// The share of its time the load tester was busy, 0 to 1.
    pub client_busy: f64,
    /// CPU time of everything else on the machine while it was measured, in microseconds.
    pub others_us: Option<f64>,
    /// Caveats for reading the figures.
    pub notes: Vec<String>,
}

/// CPU time of the server over the run.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct CpuReport {
    /// In all.
    pub total: CpuUse,
    /// Microseconds per unit, user and kernel.
    pub us_per_unit: f64,
    /// Of it in user mode.
    pub user_us_per_unit: f64,
    /// Of it in the kernel.
    pub system_us_per_unit: f64,
    /// How many cores were busy on average.
    pub cores: f64,
}

impl CpuReport {
    /// The use over `seconds` shared among `count` units.
    pub(crate) fn new(total: CpuUse, count: u64, seconds: f64) -> Self {
        let per_unit = |us: f64| us / count.max(1) as f64;
        Self {
            total,
            us_per_unit: per_unit(total.total_us),
            user_us_per_unit: per_unit(total.user_us),
            system_us_per_unit: per_unit(total.system_us),
            cores: if seconds > 0.0 { total.total_us / 1e6 / seconds } else { 0.0 },
        }
    }
}

/// The cost of idle channels.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct MemoryReport {
    /// How many channels were open.
    pub channels: u64,
    /// Growth of the server's resident memory per channel, in bytes.
    pub rss_per_channel: f64,
    /// Growth of its anonymous memory per channel, in bytes.
    pub anonymous_per_channel: f64,
    /// Growth of its proportional memory per channel, in bytes.
    pub pss_per_channel: f64,
    /// Growth of the kernel's slab per channel, in bytes, **both ends of the connection**.
    pub slab_both_ends_per_channel: f64,
    /// Growth of TCP buffers per channel, in bytes, both ends.
    pub tcp_both_ends_per_channel: f64,
    /// Change of MemAvailable per channel, in bytes, both ends and both programs.
    pub available_both_ends_per_channel: f64,
    /// The server's resident memory before the first channel.
    pub rss_before: u64,
    /// With all channels open.
    pub rss_open: u64,
    /// After the last one closed.
    pub rss_after: u64,
}

/// Busier than this, a load tester is the bottleneck.
const SATURATED: f64 = 0.95;

/// More cores than this busy with something else, a measurement is not alone on the machine.
const OTHERS_MAX: f64 = 0.1;

/// Less than this is within the ticks that the kernel counts in.
const OTHERS_US_MIN: f64 = 50_000.0;

impl Report {
    /// Adds what follows from the figures themselves.
    pub(crate) fn judge(mut self, server_cpus: usize) -> Self {
        if self.client_busy > SATURATED {
            self.notes.push(format!(
                "the load tester itself was saturated (busy {:.0} % of the time): rates and latencies are its own, \
                 not the server's; the server's CPU per {} still holds",
                self.client_busy * 100.0,
                self.unit
            ));
        }
        let others = self.others_us.unwrap_or(0.0) / 1e6 / self.seconds.max(1e-9);
        if others > OTHERS_MAX && self.others_us.is_some_and(|us| us > OTHERS_US_MIN) {
            self.notes.push(format!(
                "other programs kept {others:.2} cores busy meanwhile: rates and latencies are worse than they could be"
            ));
        }
        if let Some(cpu) = self.cpu.filter(|_| server_cpus > 0) {
            let load = cpu.cores / server_cpus as f64;
            if load < SATURATED && self.client_busy <= SATURATED {
                self.notes.push(format!(
                    "the server was not saturated (busy {:.0} % of the time): the rate is not its capacity",
                    load * 100.0
                ));
            }
        }
        self
    }

    /// The same run, of which each unit stood for `units` of another kind.
    pub(crate) fn each_for(mut self, units: u64, unit: &str) -> Self {
        self.count *= units;
        self.per_second *= units as f64;
        self.cpu = self.cpu.map(|cpu| CpuReport::new(cpu.total, self.count, self.seconds));
        unit.clone_into(&mut self.unit);
        self
    }

    /// The run proves what it should: nothing was lost, doubled, moved, changed or cut off.
    pub(crate) fn is_clean(&self) -> bool {
        self.accounting.is_clean()
    }

    /// A table for people.
    pub(crate) fn table(&self) -> String {
        let mut rows = vec![
            ("server", format!("{} ({})", self.server, self.url)),
            ("settings", settings_line(&self.settings)),
            (
                "rate",
                format!(
                    "{} {} in {:.2} s = {} per second",
                    thousands(self.count),
                    plural(&self.unit, self.count),
                    self.seconds,
                    thousands(self.per_second as u64)
                ),
            ),
        ];
        if let Some(l) = self.latency {
            rows.push((
                "latency",
                format!(
                    "p50 {}  p90 {}  p99 {}  p99.9 {}  max {}",
                    time(l.p50_us),
                    time(l.p90_us),
                    time(l.p99_us),
                    time(l.p999_us),
                    time(l.max_us)
                ),
            ));
        }
        rows.push(("messages", self.accounting_line()));
        if let Some(cpu) = self.cpu {
            rows.push((
                "server CPU",
                format!(
                    "{:.3} µs per {} (user {:.3}, kernel {:.3}), {:.2} cores busy",
                    cpu.us_per_unit, self.unit, cpu.user_us_per_unit, cpu.system_us_per_unit, cpu.cores
                ),
            ));
        }
        if let Some(memory) = self.memory {
            rows.extend(memory.rows());
        }
        rows.push(("load tester", format!("busy {:.0} %", self.client_busy * 100.0)));
        rows.extend(self.accounting.closures.iter().map(|closure| ("closed", closure.clone())));
        rows.extend(self.notes.iter().map(|note| ("note", note.clone())));
        // Where nothing was to be delivered, nothing shows that nothing is lost.
        let verdict = match (self.accounting.expected > 0, self.is_clean()) {
            (true, true) => "lossless",
            (true, false) => "NOT LOSSLESS",
            (false, true) => "clean: no connection failed",
            (false, false) => "NOT CLEAN",
        };
        rows.push(("verdict", verdict.into()));
        let mut text = format!("{}\n", self.mode);
        for (name, value) in rows {
            let _ = writeln!(text, "  {name:14}{value}");
        }
        text
    }

    fn accounting_line(&self) -> String {
        let a = &self.accounting;
        let mut line = match a.expected {
            0 => "no message was to be delivered".to_owned(),
            expected => format!(
                "{} delivered of {}, lost {}, duplicated {}",
                thousands(a.delivered),
                thousands(expected),
                a.lost,
                a.duplicated
            ),
        };
        for (name, count) in [
            ("reordered", a.reordered),
            ("corrupted", a.corrupted),
            ("misdelivered", a.misdelivered),
            ("foreign", a.foreign),
            ("connections closed", a.closed),
        ] {
            if count > 0 {
                let _ = write!(line, ", {name} {count}");
            }
        }
        line
    }
}

impl MemoryReport {
    fn rows(&self) -> Vec<(&'static str, String)> {
        vec![
            (
                "user memory",
                format!(
                    "{:.0} B resident ({:.0} B anonymous) per idle channel, {} channels",
                    self.rss_per_channel,
                    self.anonymous_per_channel,
                    thousands(self.channels)
                ),
            ),
            (
                "kernel memory",
                format!(
                    "{:.0} B slab, {:.0} B TCP buffers per connection, both ends; MemAvailable {:+.0} B",
                    self.slab_both_ends_per_channel,
                    self.tcp_both_ends_per_channel,
                    self.available_both_ends_per_channel
                ),
            ),
            (
                "resident",
                format!(
                    "{} KiB before, {} KiB with all open, {} KiB after closing",
                    self.rss_before / 1024,
                    self.rss_open / 1024,
                    self.rss_after / 1024
                ),
            ),
        ]
    }
}

fn settings_line(settings: &serde_json::Value) -> String {
    let Some(map) = settings.as_object() else { return settings.to_string() };
    let shown = map.iter().filter(|(_, value)| !value.is_null());
    shown.map(|(name, value)| format!("{name} {value}")).collect::<Vec<_>>().join(", ")
}

fn plural(unit: &str, count: u64) -> String {
    match (unit, count) {
        (_, 1) => unit.to_owned(),
        ("delivery", _) => "deliveries".to_owned(),
        _ => format!("{unit}s"),
    }
}

/// A time in the unit that suits it.
pub(crate) fn time(us: f64) -> String {
    match us {
        us if us < 1000.0 => format!("{us:.0} µs"),
        us if us < 1_000_000.0 => format!("{:.2} ms", us / 1000.0),
        us => format!("{:.2} s", us / 1_000_000.0),
    }
}

/// A number with commas.
pub(crate) fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_readable() {
        assert_eq!(thousands(0), "0");
        assert_eq!(thousands(999), "999");
        assert_eq!(thousands(1_234_567), "1,234,567");
        assert_eq!(time(999.4), "999 µs");
        assert_eq!(time(1500.0), "1.50 ms");
        assert_eq!(time(2_500_000.0), "2.50 s");
    }

    #[test]
    fn a_saturated_load_tester_says_so_and_a_loss_is_not_clean() {
        let mut report = Report { client_busy: 0.99, unit: "delivery".into(), ..Report::default() }.judge(1);
        assert!(report.notes[0].contains("load tester itself was saturated"));
        assert!(report.is_clean() && report.table().contains("clean: no connection failed"));
        assert!(!report.table().contains("lossless"), "nothing was to be delivered: {}", report.table());
        (report.accounting.expected, report.accounting.delivered) = (2, 2);
        assert!(report.is_clean() && report.table().contains("lossless"));
        report.accounting.lost = 1;
        assert!(!report.is_clean() && report.table().contains("NOT LOSSLESS"));
    }
}
