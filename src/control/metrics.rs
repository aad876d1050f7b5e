//! An [`Overview`] as text that Prometheus reads, in either of its forms.
//!
//! Names come from the fields of the reports, so a count that is added there is a metric here.

use super::usage::Usage;
use super::wire::Overview;
use crate::admission::HeldAs;
use crate::broker::{ClosedBy, Durations, FleetReport, HandshakeTimes, MemoryReport, Report};
use crate::http::accept::media_ranges;
use crate::tls::Alert;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;
use std::fmt;

/// How metrics are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exposition {
    /// Prometheus' own text, version 0.0.4: what every collector reads.
    Classic,
    /// OpenMetrics 1.0.
    OpenMetrics,
}

impl Exposition {
    /// The format for a client that sends `accept` (RFC 9110 section 12.5.1): the classic text, unless it names
    /// OpenMetrics and prefers it or likes both alike.
    pub fn of_accept(accept: &str) -> Self {
        let weight = |mime: &str| {
            let ranges = media_ranges(accept.as_bytes()).filter(|range| range.accepts(mime));
            ranges.map(|range| range.weight).max()
        };
        let open = weight("application/openmetrics-text");
        let classic = weight("text/plain").unwrap_or(0);
        if open.is_some_and(|open| open >= classic) { Self::OpenMetrics } else { Self::Classic }
    }

    /// Its media type.
    pub fn mime(self) -> &'static str {
        match self {
            Self::Classic => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// All counts of `overview`, by shard, and what the program takes.
pub fn metrics(overview: &Overview, exposition: Exposition) -> String {
    let mut ours = Registry::with_prefix("pushring");
    ours.register_collector(Box::new(Shards(overview.clone())));
    // By the names that all programs have them (Prometheus' "Writing client libraries", process metrics).
    let mut process = Registry::with_prefix("process");
    process.register_collector(Box::new(UsageMetrics(overview.usage)));
    let mut out = String::new();
    for registry in [&ours, &process] {
        text::encode_registry(&mut out, registry).expect("a String takes every write");
    }
    if exposition == Exposition::Classic {
        return classic(&out);
    }
    text::encode_eof(&mut out).expect("a String takes every write");
    out
}

/// OpenMetrics' text as Prometheus' own: there the family of a counter has the name of its samples.
fn classic(open: &str) -> String {
    let mut counters: Vec<&str> = Vec::new();
    for line in open.lines() {
        counters.extend(line.strip_prefix("# TYPE ").and_then(|family| family.strip_suffix(" counter")));
    }
    let mut out = String::with_capacity(open.len());
    for line in open.lines() {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next()) {
            (Some("#"), Some(word), Some(name)) if counters.contains(&name) => {
                out += &format!("# {word} {name}_total {}", words.next().unwrap_or(""));
            }
            _ => out += line,
        }
        out.push('\n');
    }
    out
}

#[derive(Debug)]
struct UsageMetrics(Usage);

impl Collector for UsageMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Self(usage) = self;
        let help = "Time on processors, of user and system, in seconds";
        let mut cpu = encoder.encode_descriptor("cpu_seconds", help, None, MetricType::Counter)?;
        cpu.encode_counter::<NoLabelSet, _, u64>(&(usage.cpu_ms as f64 / 1000.0), None)?;
        let max = usage.open_files_max.map_or(f64::INFINITY, |max| max as f64);
        for (name, help, value) in [
            ("resident_memory_bytes", "Memory in use", usage.resident_bytes as f64),
            ("virtual_memory_bytes", "Addresses in use", usage.virtual_bytes as f64),
            ("open_fds", "Open files", usage.open_files as f64),
            ("max_fds", "How many files may be open", max),
            ("threads", "Threads", usage.threads as f64),
            ("start_time_seconds", "When it started, in seconds after 1970", usage.start_unix_ms as f64 / 1000.0),
        ] {
            gauge(&mut encoder, name, help, value)?;
        }
        Ok(())
    }
}

#[derive(Debug)]
struct Shards(Overview);

/// A value that goes up and down, of one shard.
type GaugeMetric = (&'static str, &'static str, fn(&Report) -> usize);

const GAUGES: [GaugeMetric; 3] = [
    ("connections", "Live connections", |shard| shard.connections),
    ("channels", "Live channels", |shard| shard.channels),
    ("leased_bytes", "What the shard has leased of the memory budget", |shard| shard.memory.leased_bytes),
];

/// A kind of memory that a shard holds.
type HeldKind = (&'static str, fn(&MemoryReport) -> usize);

const HELD: [HeldKind; 6] = [
    ("queued", |memory| memory.queued_bytes),
    ("shared", |memory| memory.shared_bytes),
    ("window", |memory| memory.window_bytes),
    ("spare", |memory| memory.spare_bytes),
    ("incoming", |memory| memory.incoming_bytes),
    ("inbox", |memory| memory.inbox_bytes),
];

/// A histogram of a shard, with its metric's name and help.
type Timed = (&'static str, &'static str, fn(&Report) -> &Durations);

const TIMED: [Timed; 2] = [
    (
        "turn_cpu_seconds",
        "How long turns of the shard's thread were, in seconds of its own time on a processor",
        |shard| &shard.turns,
    ),
    (
        "push_delay_seconds",
        "How long pushes took from their call until the kernel had been offered them, sampled ten times a second",
        |shard| &shard.push_delays,
    ),
];

impl Collector for Shards {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Overview { about, usage, shards, .. } = &self.0;
        let labels = [("version", &*about.version), ("node", &*about.node), ("driver", &*about.driver)];
        let mut build = encoder.encode_descriptor("build_info", "Which broker this is", None, MetricType::Gauge)?;
        build.encode_family(&labels)?.encode_gauge(&1u64)?;
        let start = about.since_unix_ms as f64 / 1000.0;
        gauge(&mut encoder, "start_time_seconds", "When it started, in seconds after 1970", start)?;
        if let Some(memory) = shards.first().map(|shard| &shard.memory) {
            let (unread, budget) = (memory.process_queue_bytes as f64, memory.budget_bytes);
            gauge(&mut encoder, "process_queue_bytes", "Events that processes have not read", unread)?;
            gauge(&mut encoder, "content_bytes", "Routes and their static content", memory.content_bytes as f64)?;
            gauge(&mut encoder, "topic_bytes", "Topics and their subscriptions", memory.topic_bytes as f64)?;
            gauge(&mut encoder, "link_bytes", "What links keep for their peers", memory.link_bytes as f64)?;
            let budget = budget.map_or(f64::INFINITY, |bytes| bytes as f64);
            gauge(&mut encoder, "memory_budget_bytes", "What clients and processes may make it hold", budget)?;
        }
        self.encode_held(&mut encoder)?;
        for (name, help, count) in [
            ("log_lines_lost", "Lines that the log has lost", usage.log_lines_lost),
            ("log_write_errors", "Writes of the log that failed", usage.log_write_errors),
        ] {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            family.encode_counter::<NoLabelSet, _, u64>(&count, None)?;
        }
        if let Some(fleet) = &self.0.fleet {
            encode_fleet(&mut encoder, fleet)?;
        }
        self.encode_hub(&mut encoder)?;
        self.encode_shards(&mut encoder)
    }
}

fn encode_fleet(encoder: &mut DescriptorEncoder<'_>, fleet: &FleetReport) -> fmt::Result {
    let here = fleet.nodes.iter().filter(|node| !node.is_gone).count();
    for (name, help, value) in [
        ("fleet_connected", "Whether NATS is reached", f64::from(u8::from(fleet.connected))),
        ("fleet_nodes", "Other nodes that are there", here as f64),
        ("fleet_queued", "Messages that wait for NATS", fleet.queued as f64),
        ("fleet_queued_bytes", "What waits for NATS", fleet.queued_bytes as f64),
        ("fleet_listens", "Audiences that this node listens to", fleet.listens as f64),
    ] {
        gauge(encoder, name, help, value)?;
    }
    if let Some(us) = fleet.round_trip_us {
        gauge(encoder, "fleet_round_trip_seconds", "The way to NATS and back", us as f64 / 1e6)?;
    }
    for (name, count, doc) in fleet.counts.all() {
        let (name, doc) = (format!("fleet_{name}"), doc.trim().trim_end_matches('.'));
        let mut family = encoder.encode_descriptor(&name, doc, None, MetricType::Counter)?;
        family.encode_counter::<NoLabelSet, _, u64>(&count, None)?;
    }
    Ok(())
}

impl Shards {
    /// Counts of the hub's requests to others, where there is a hub.
    fn encode_hub(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let Some(hub) = &self.0.hub else { return Ok(()) };
        gauge(encoder, "hub_keys", "Keys that tokens of the hub are checked with", hub.keys as f64)?;
        let waiting = hub.webhook_events_waiting as f64;
        gauge(encoder, "webhook_events_waiting", "Events that wait for the backend", waiting)?;
        for (name, help, count) in [
            ("hub_key_fetches", "Times that keys of the tokens' authority were to be read", hub.key_fetches),
            ("hub_key_fetches_failed", "Those that failed", hub.key_fetches_failed),
            ("webhook_calls", "Requests to the backend that is told of the hub's clients", hub.webhook_calls),
            ("webhook_calls_failed", "Those that were not taken", hub.webhook_calls_failed),
            ("webhook_events_delivered", "Events that the backend has taken", hub.webhook_events_delivered),
            ("webhook_events_lost", "Events that it will never hear of", hub.webhook_events_lost),
        ] {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            family.encode_counter::<NoLabelSet, _, u64>(&count, None)?;
        }
        Ok(())
    }

    /// The memory held for the processes with most.
    fn encode_held(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "What is held for a process, by kind; of the fullest 100";
        let mut family = encoder.encode_descriptor("process_held_bytes", help, None, MetricType::Gauge)?;
        for tenant in self.0.held.iter().take(100) {
            let process = tenant.process.as_ref().map_or("", |process| process.as_str());
            for kind in HeldAs::ALL {
                let bytes = tenant.held.of(kind) as u64;
                if bytes > 0 {
                    family.encode_family(&([("process", process)], [("kind", kind.name())]))?.encode_gauge(&bytes)?;
                }
            }
        }
        Ok(())
    }

    fn encode_shards(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let shards = || self.0.shards.iter().map(|shard| (("shard", shard.shard), shard));
        for (name, help, value) in GAUGES {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for (label, shard) in shards() {
                family.encode_family(&[label])?.encode_gauge(&(value(shard) as u64))?;
            }
        }
        let help = "What the shard holds for clients and processes";
        let mut family = encoder.encode_descriptor("held_bytes", help, None, MetricType::Gauge)?;
        for (label, shard) in shards() {
            for (kind, value) in HELD {
                let bytes = value(&shard.memory) as u64;
                family.encode_family(&([label], [("kind", kind)]))?.encode_gauge(&bytes)?;
            }
        }
        for (name, help, of) in TIMED {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
            for (label, shard) in shards() {
                let durations = of(shard);
                let bounds = (0..Durations::BUCKETS)
                    .map(|bucket| Durations::bound_us(bucket).map_or(f64::MAX, |us| us as f64 / 1e6));
                let buckets: Vec<(f64, u64)> = bounds.zip(durations.counts).collect();
                let (sum_s, count) = (durations.sum_us as f64 / 1e6, durations.count());
                family.encode_family(&[label])?.encode_histogram::<NoLabelSet>(sum_s, count, &buckets, None)?;
            }
        }
        let mut family = encoder.encode_descriptor("closed", "Channels closed", None, MetricType::Counter)?;
        for (label, shard) in shards() {
            for by in ClosedBy::ALL {
                let labels = ([label], [("by", by.name())]);
                family
                    .encode_family(&labels)?
                    .encode_counter::<NoLabelSet, _, u64>(&shard.stats.closed[by as usize], None)?;
            }
        }
        let help = "HTTP responses, upgrades included";
        let mut family = encoder.encode_descriptor("responses", help, None, MetricType::Counter)?;
        for (label, shard) in shards() {
            for (status, count) in &shard.responses {
                let labels = ([label], [("status", *status)]);
                family.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(count, None)?;
            }
        }
        self.encode_tls(encoder)?;
        self.encode_counts(encoder)
    }

    /// TLS counts of shards that speak it.
    fn encode_tls(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let shards = || self.0.shards.iter().filter_map(|shard| Some((("shard", shard.shard), shard.tls.as_ref()?)));
        let Some((_, first)) = shards().next() else { return Ok(()) };
        if let Some(end_s) = first.certificates_end_unix_s {
            let help = "When the first of the certificates of TLS ends, in seconds after 1970";
            gauge(encoder, "tls_certificate_end_seconds", help, end_s as f64)?;
        }
        let help = "Live connections over TLS";
        let mut family = encoder.encode_descriptor("tls_connections", help, None, MetricType::Gauge)?;
        for (label, tls) in shards() {
            family.encode_family(&[label])?.encode_gauge(&(tls.connections as u64))?;
        }
        let help = "Handshakes of TLS, by what became of them";
        let mut family = encoder.encode_descriptor("tls_handshakes", help, None, MetricType::Counter)?;
        for (label, tls) in shards() {
            for (result, count) in tls.results() {
                let labels = ([label], [("result", result)]);
                family.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&count, None)?;
            }
        }
        let help = "How long handshakes of TLS took that were done, from the accept on, in seconds";
        let mut family = encoder.encode_descriptor("tls_handshake_seconds", help, None, MetricType::Histogram)?;
        for (label, tls) in shards() {
            let bounds = (0..HandshakeTimes::BUCKETS)
                .map(|bucket| HandshakeTimes::bound_ms(bucket).map_or(f64::MAX, |ms| ms as f64 / 1e3));
            let buckets: Vec<(f64, u64)> = bounds.zip(tls.times.counts).collect();
            let (sum_s, count) = (tls.times.sum_ms as f64 / 1e3, tls.times.counts.iter().sum());
            family.encode_family(&[label])?.encode_histogram::<NoLabelSet>(sum_s, count, &buckets, None)?;
        }
        let help = "Alerts of TLS, sent because of a client's fault, or received";
        let mut family = encoder.encode_descriptor("tls_alerts", help, None, MetricType::Counter)?;
        for (label, tls) in shards() {
            for (direction, alerts) in [("sent", &tls.alerts_sent), ("received", &tls.alerts_received)] {
                for (&alert, count) in alerts {
                    let labels = ([label], [("direction", direction), ("alert", Alert(alert).name())]);
                    family.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(count, None)?;
                }
            }
        }
        let help = "Connections that ended TLS without close_notify";
        let mut family = encoder.encode_descriptor("tls_truncated", help, None, MetricType::Counter)?;
        for (label, tls) in shards() {
            family.encode_family(&[label])?.encode_counter::<NoLabelSet, _, u64>(&tls.truncated, None)?;
        }
        Ok(())
    }

    fn encode_counts(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let counts: Vec<Vec<_>> = self.0.shards.iter().map(|shard| shard.stats.counts().collect()).collect();
        for (place, (name, _, doc)) in counts.first().into_iter().flatten().enumerate() {
            // Prometheus wants times in seconds.
            let time = name.strip_suffix("_ns").map(|name| format!("{name}_seconds"));
            let (shown, doc) = (time.as_deref().unwrap_or(name), doc.trim_end_matches('.'));
            let mut family = encoder.encode_descriptor(shown, doc, None, MetricType::Counter)?;
            for (shard, counts) in std::iter::zip(&self.0.shards, &counts) {
                let labels = [("shard", shard.shard)];
                let mut family = family.encode_family(&labels)?;
                let value = counts[place].1;
                match time {
                    Some(_) => family.encode_counter::<NoLabelSet, _, u64>(&(value as f64 / 1e9), None)?,
                    None => family.encode_counter::<NoLabelSet, _, u64>(&value, None)?,
                }
            }
        }
        Ok(())
    }
}

fn gauge(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: f64) -> fmt::Result {
    encoder.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn openmetrics_is_for_those_who_ask_for_it() {
        let scrape = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
                      text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        for (accept, exposition) in [
            ("", Exposition::Classic),
            ("*/*", Exposition::Classic),
            ("text/html,*/*;q=0.8", Exposition::Classic),
            ("text/plain;q=0.9, application/openmetrics-text;q=0.2", Exposition::Classic),
            ("application/openmetrics-text;q=0", Exposition::Classic),
            ("application/openmetrics-textual", Exposition::Classic),
            ("application/openmetrics-text", Exposition::OpenMetrics),
            (scrape, Exposition::OpenMetrics),
        ] {
            assert_eq!(Exposition::of_accept(accept), exposition, "{accept}");
        }
    }

    /// All that pages name, of a broker that has every part.
    #[test]
    fn metrics_that_pages_name_are_there() {
        let broker = crate::broker::Broker::builder().shards(1).start().unwrap();
        let process = broker.process("chat").unwrap();
        process.bind_at("/chat").unwrap();
        let mut overview = crate::control::Operator::new(&broker, std::sync::Arc::new(())).overview();
        (overview.hub, overview.fleet) = (Some(Default::default()), Some(Default::default()));
        overview.shards[0].tls = Some(Default::default());
        let text = metrics(&overview, Exposition::Classic);
        let pages = [
            include_str!("../../docs/OPERATIONS.md"),
            include_str!("../../docs/FLEET.md"),
            include_str!("../../docs/LIMITS.md"),
        ];
        let mut count = 0;
        for after in pages.iter().flat_map(|page| page.split("`pushring_").skip(1)) {
            let name: String = after.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect();
            let whole = match after[name.len()..].starts_with('…') || name.ends_with('_') {
                true => format!("\n# TYPE pushring_{name}"),
                false => format!("\n# TYPE pushring_{name} "),
            };
            assert!(text.contains(&whole), "pushring_{name}: {text}");
            count += 1;
        }
        assert!(count > 10, "{count}");
    }

    #[test]
    fn the_classic_text_names_counters_as_their_samples() {
        let open = "# HELP a_b Help, of: a_b.\n# TYPE a_b counter\na_b_total{c=\"# TYPE a_b counter\"} 1\n\
                    # HELP d E.\n# TYPE d gauge\nd 2\n";
        let expected = "# HELP a_b_total Help, of: a_b.\n# TYPE a_b_total counter\n\
                        a_b_total{c=\"# TYPE a_b counter\"} 1\n# HELP d E.\n# TYPE d gauge\nd 2\n";
        assert_eq!(classic(open), expected);
    }
}
