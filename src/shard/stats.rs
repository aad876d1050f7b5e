//! What a shard counts: plain numbers, read by asking the shard ([`super::command::Command::Report`]).

use super::event::ClosedBy;
use super::memory::MemoryReport;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Declares every count once: as a field, and for who shows them all.
macro_rules! counts {
    ($( $(#[doc = $doc:literal])+ $name:ident, )+) => {
        /// Counts since the shard began.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(default)]
        pub struct Stats {
            $( $(#[doc = $doc])+ pub $name: u64, )+
            /// Channels closed, by who ended them, in the order of [`ClosedBy`].
            #[serde(with = "by_name")]
            pub closed: [u64; ClosedBy::ALL.len()],
        }

        impl Stats {
            /// All but `closed`: name, value, and what is counted.
            pub fn counts(&self) -> impl Iterator<Item = (&'static str, u64, &'static str)> {
                [$( (stringify!($name), self.$name, concat!($($doc),+).trim_ascii()), )+].into_iter()
            }
        }

        impl std::ops::AddAssign for Stats {
            fn add_assign(&mut self, other: Self) {
                $( self.$name += other.$name; )+
                std::iter::zip(&mut self.closed, other.closed).for_each(|(sum, more)| *sum += more);
            }
        }
    };
}

counts! {
    /// Connections accepted.
    accepted,
    /// Clients answered 503 because there were too many connections.
    turned_away,
    /// Those of them whose own address had too many.
    turned_away_per_ip,
    /// Clients answered 503, or closed with 1013, because their process had too many connections; among `turned_away`.
    turned_away_per_process,
    /// Clients answered 503 because their address had too many handshakes per second.
    handshakes_refused,
    /// Clients let go without a word, since too many were being turned away.
    let_go,
    /// Channels opened.
    opened,
    /// Orders obeyed.
    commands,
    /// Frames pushed to channels, each channel counted.
    pushed,
    /// Messages to one channel that were compressed. Broadcasts are compressed by who pushes them.
    compressed,
    /// Pushes to channels that do not exist or belong to another process.
    pushes_unknown,
    /// Frames that waited behind a full socket.
    queued,
    /// Frames that took the place of an older one of their key.
    conflated,
    /// Frames that a policy dropped.
    dropped,
    /// Frames refused because the channel was closing.
    refused_closing,
    /// Channels closed because their budget was exceeded.
    closed_over_budget,
    /// Frames dropped because memory was short; they are among `dropped` too.
    dropped_for_memory,
    /// Connections closed, or requests refused, because memory was short.
    closed_for_memory,
    /// Channels closed because pings were not answered.
    timed_out,
    /// Sends, each of one connection's queue.
    sends,
    /// Sends that did not take all they were offered.
    short_sends,
    /// Bytes that sockets took.
    sent_bytes,
    /// Messages received.
    received,
    /// Bytes received.
    received_bytes,
    /// Clients that broke the protocol.
    violations,
    /// HTTP requests, upgrades included.
    requests,
    /// Requests answered 421, for hosts that are not ours.
    misdirected,
    /// Requests with X-Forwarded-For whose peer is no trusted proxy.
    forwarded_untrusted,
    /// Connections of balancers closed, for they did not begin with a valid PROXY header.
    proxy_headers_refused,
    /// Registrations refused.
    registrations_refused,
    /// Subscriptions of channels to topics.
    subscribed,
    /// Subscriptions ended, by the process or with their channel.
    unsubscribed,
    /// Subscriptions refused: too many, or no memory.
    subscriptions_refused,
}

/// How long the turns of a shard's thread were, in time on its processor: what others waited for in vain is not in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct TurnTimes {
    /// Turns that took at most [`bound_us`](Self::bound_us) and more than the bound before it.
    pub counts: [u64; Self::BUCKETS],
    /// All together, in microseconds.
    pub sum_us: u64,
    /// The longest, in microseconds.
    pub max_us: u64,
}

impl TurnTimes {
    /// The last one has no bound.
    pub const BUCKETS: usize = 14;

    /// The bound of a bucket: powers of two from 16 µs to 64 ms; none of the last.
    pub fn bound_us(bucket: usize) -> Option<u64> {
        (bucket + 1 < Self::BUCKETS).then(|| 16 << bucket)
    }

    /// One more turn.
    pub fn add(&mut self, cpu_ns: u64) {
        let us = cpu_ns.div_ceil(1000);
        let bucket = (us.max(1).next_power_of_two().ilog2() as usize).saturating_sub(4).min(Self::BUCKETS - 1);
        self.counts[bucket] += 1;
        self.sum_us += us;
        self.max_us = self.max_us.max(us);
    }

    /// How many turns there were.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }
}

/// A shard at one moment.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    /// Which.
    pub shard: u32,
    /// Live connections.
    pub connections: usize,
    /// Live channels.
    pub channels: usize,
    /// Subscriptions of channels to topics.
    #[serde(default)]
    pub subscriptions: usize,
    /// Bytes that wait for their first send.
    pub window_bytes: usize,
    /// What it holds for clients and processes.
    pub memory: MemoryReport,
    /// How long its turns were.
    #[serde(default)]
    pub turns: TurnTimes,
    /// Counts.
    pub stats: Stats,
    /// HTTP responses by their status, that of an upgrade, 101, among them.
    #[serde(default)]
    pub responses: BTreeMap<u16, u64>,
}

/// Counts of ends, each under its name, so that a reader needs no order.
mod by_name {
    use crate::shard::event::ClosedBy;
    use serde::{Deserialize, Deserializer, Serializer};
    use std::collections::BTreeMap;

    type Counts = [u64; ClosedBy::ALL.len()];

    pub fn serialize<S: Serializer>(counts: &Counts, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(ClosedBy::ALL.iter().map(|by| (by, counts[*by as usize])))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Counts, D::Error> {
        let named = BTreeMap::<ClosedBy, u64>::deserialize(deserializer)?;
        Ok(ClosedBy::ALL.map(|by| named.get(&by).copied().unwrap_or(0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_is_counted_in_the_first_bucket_that_holds_it() {
        let mut turns = TurnTimes::default();
        for (cpu_ns, bucket) in [(0, 0), (16_000, 0), (16_001, 1), (2_000_000, 7), (65_536_000, 12), (65_537_000, 13)] {
            let before = turns.counts[bucket];
            turns.add(cpu_ns);
            assert_eq!(turns.counts[bucket], before + 1, "{cpu_ns}");
            assert!(TurnTimes::bound_us(bucket).is_none_or(|bound_us| cpu_ns <= bound_us * 1000), "{cpu_ns}");
        }
        assert_eq!((turns.count(), turns.max_us), (6, 65_537));
    }

    #[test]
    fn counts_are_written_by_name() {
        for (place, by) in ClosedBy::ALL.into_iter().enumerate() {
            assert_eq!(by as usize, place);
            assert_eq!(serde_json::to_value(by).unwrap(), by.name());
        }
        let stats = Stats { closed: [1, 2, 3, 4, 5, 6, 7], opened: 30, ..Stats::default() };
        let text = serde_json::to_string(&stats).unwrap();
        assert!(text.contains(r#""closed":{"client":1,"connection":2,"#), "{text}");
        assert_eq!(serde_json::from_str::<Stats>(&text).unwrap(), stats);
        let mut twice = stats;
        twice += stats;
        assert_eq!((twice.closed[6], twice.opened), (14, 60));
        assert!(twice.counts().any(|count| count == ("opened", 60, "Channels opened.")));
        assert_eq!(serde_json::from_str::<Stats>("{}").unwrap(), Stats::default(), "a count that is not there is 0");
    }
}
