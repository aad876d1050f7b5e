//! Counts of a shard: plain numbers, read by asking the shard ([`super::command::Command::Report`]).

pub use super::durations::Durations;
use super::event::ClosedBy;
use super::memory::MemoryReport;
use super::tls_counts::TlsCounts;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Declares every count once: as a field, and for code that shows them all.
macro_rules! counts {
    ($( $(#[doc = $doc:literal])+ $name:ident, )+) => {
        /// Counts since the shard began.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(default)]
        pub struct Stats {
            $( $(#[doc = $doc])+ pub $name: u64, )+
            /// Channels closed, by the side that ended them, in the order of [`ClosedBy`].
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
    /// Clients closed without an answer, since too many others were being answered 503.
    let_go,
    /// Channels opened.
    opened,
    /// Orders carried out.
    commands,
    /// Frames pushed to channels, each channel counted.
    pushed,
    /// Messages to one channel that were compressed. Broadcasts are compressed by their pushers.
    compressed,
    /// Pushes to channels that do not exist or belong to another process.
    pushes_unknown,
    /// Frames that waited behind a full socket.
    queued,
    /// Frames that replaced an older one of their key.
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
    /// Events that handlers on the shards have taken.
    handler_events,
    /// The time that handlers took for them.
    handler_ns,
    /// Events for which a handler took longer than its part of a turn, 0.25 ms.
    handler_slow,
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
    /// Connections of balancers closed because they did not begin with a valid PROXY header.
    proxy_headers_refused,
    /// Registrations refused.
    registrations_refused,
    /// Subscriptions of channels to topics.
    subscribed,
    /// Subscriptions ended, by the process or with their channel.
    unsubscribed,
    /// Subscriptions refused: too many, or no memory.
    subscriptions_refused,
    /// Channels whose connections were lost, and that waited for their clients to resume.
    detached,
    /// Channels that clients have resumed.
    resumed,
    /// Those of them whose clients had missed more than was kept.
    resumed_with_gap,
    /// Those of them whose old connections still seemed alive.
    taken_over,
    /// Clients that tried to resume a channel and got a new one.
    resumes_refused,
    /// Segments of history released because memory was short, or a shard kept too much.
    history_shed,
}

/// A shard at one moment.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    /// The number of the shard.
    pub shard: u32,
    /// Live connections.
    pub connections: usize,
    /// Live channels.
    pub channels: usize,
    /// Subscriptions of channels to topics.
    #[serde(default)]
    pub subscriptions: usize,
    /// Those of them that wait for their clients to come back.
    #[serde(default)]
    pub detached: usize,
    /// Bytes kept for clients that resume; they are among those that wait by reference.
    #[serde(default)]
    pub history_bytes: usize,
    /// Bytes that wait for their first send.
    pub window_bytes: usize,
    /// Memory held for clients and processes.
    pub memory: MemoryReport,
    /// How long its turns were, in time on its processor: what others waited for in vain is not in it.
    #[serde(default)]
    pub turns: Durations,
    /// How long pushes took from their call until the kernel had been offered them, sampled ten times a second.
    #[serde(default)]
    pub push_delays: Durations,
    /// Counts.
    pub stats: Stats,
    /// TLS counts, if it speaks TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsCounts>,
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

    pub(super) fn serialize<S: Serializer>(counts: &Counts, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(ClosedBy::ALL.iter().map(|by| (by, counts[*by as usize])))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Counts, D::Error> {
        let named = BTreeMap::<ClosedBy, u64>::deserialize(deserializer)?;
        Ok(ClosedBy::ALL.map(|by| named.get(&by).copied().unwrap_or(0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
