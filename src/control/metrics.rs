//! An [`Overview`] as text that Prometheus reads (OpenMetrics 1.0).
//!
//! Names come from the fields of the reports, so a count that is added there is a metric here.

use super::wire::Overview;
use crate::broker::{ClosedBy, MemoryReport, Report};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;
use std::fmt;

/// The media type of [`metrics`].
pub const METRICS_MIME: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// All counts of `overview`, by shard.
pub fn metrics(overview: &Overview) -> String {
    let mut registry = Registry::with_prefix("pushring");
    registry.register_collector(Box::new(Shards(overview.clone())));
    let mut out = String::new();
    text::encode(&mut out, &registry).expect("a String takes every write");
    out
}

#[derive(Debug)]
struct Shards(Overview);

/// A value that goes up and down, of one shard.
type Gauge = (&'static str, &'static str, fn(&Report) -> usize);

const GAUGES: [Gauge; 3] = [
    ("connections", "Live connections", |shard| shard.connections),
    ("channels", "Live channels", |shard| shard.channels),
    ("leased_bytes", "What the shard has leased of the memory budget", |shard| shard.memory.leased_bytes),
];

/// What a shard holds, of one kind.
type HeldKind = (&'static str, fn(&MemoryReport) -> usize);

const HELD: [HeldKind; 5] = [
    ("queued", |memory| memory.queued_bytes),
    ("shared", |memory| memory.shared_bytes),
    ("window", |memory| memory.window_bytes),
    ("incoming", |memory| memory.incoming_bytes),
    ("inbox", |memory| memory.inbox_bytes),
];

impl Collector for Shards {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Overview { about, shards, .. } = &self.0;
        let info = [("version", &*about.version), ("node", &*about.node), ("driver", &*about.driver)];
        encoder.encode_descriptor("build", "Which broker this is", None, MetricType::Info)?.encode_info(&info)?;
        let start = about.since_unix_ms as f64 / 1000.0;
        gauge(&mut encoder, "start_time_seconds", "When it started, in seconds after 1970", start)?;
        if let Some(memory) = shards.first().map(|shard| &shard.memory) {
            let (unread, budget) = (memory.process_queue_bytes as f64, memory.budget_bytes);
            gauge(&mut encoder, "process_queue_bytes", "Events that processes have not read", unread)?;
            let budget = budget.map_or(f64::INFINITY, |bytes| bytes as f64);
            gauge(&mut encoder, "memory_budget_bytes", "What clients and processes may make it hold", budget)?;
        }
        self.encode_shards(&mut encoder)
    }
}

impl Shards {
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
        let mut family = encoder.encode_descriptor("closed", "Channels closed", None, MetricType::Counter)?;
        for (label, shard) in shards() {
            for by in ClosedBy::ALL {
                let labels = ([label], [("by", by.name())]);
                family
                    .encode_family(&labels)?
                    .encode_counter::<NoLabelSet, _, u64>(&shard.stats.closed[by as usize], None)?;
            }
        }
        self.encode_counts(encoder)
    }

    fn encode_counts(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let counts: Vec<Vec<_>> = self.0.shards.iter().map(|shard| shard.stats.counts().collect()).collect();
        for (place, (name, _, doc)) in counts.first().into_iter().flatten().enumerate() {
            let mut family = encoder.encode_descriptor(name, doc.trim_end_matches('.'), None, MetricType::Counter)?;
            for (shard, counts) in std::iter::zip(&self.0.shards, &counts) {
                let labels = [("shard", shard.shard)];
                family.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&counts[place].1, None)?;
            }
        }
        Ok(())
    }
}

fn gauge(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: f64) -> fmt::Result {
    encoder.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&value)
}
