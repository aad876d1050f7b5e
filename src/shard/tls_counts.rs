//! A shard's counts for TLS.

use crate::tls::Alert;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Handshakes by what became of them, and alerts by their numbers.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct TlsCounts {
    /// Live connections over TLS, those that shake hands among them.
    pub connections: usize,
    /// Handshakes that were done in full.
    pub full: u64,
    /// Those that took up an earlier connection.
    pub resumed: u64,
    /// Those that we refused.
    pub refused: u64,
    /// Those that the client gave up.
    pub given_up: u64,
    /// Those that took too long.
    pub timed_out: u64,
    /// Clients that were let go since their address shakes hands too often, or has too many connections.
    pub let_go: u64,
    /// Connections that ended without close_notify.
    pub truncated: u64,
    /// How long handshakes took that were done, from the accept on.
    pub times: HandshakeTimes,
    /// Alerts that we sent because of a client's fault.
    pub alerts_sent: BTreeMap<u8, u64>,
    /// Alerts of clients, other than that they are done.
    pub alerts_received: BTreeMap<u8, u64>,
    /// Until when the certificate is valid that ends first, in seconds since 1970.
    pub certificates_end_unix_s: Option<u64>,
}

impl TlsCounts {
    pub(super) fn done(&mut self, is_resumed: bool, took_ms: u32) {
        *(if is_resumed { &mut self.resumed } else { &mut self.full }) += 1;
        self.times.add(took_ms);
    }

    pub(super) fn failed(&mut self, alert: Option<Alert>, by_client: bool) {
        let (count, alerts) = if by_client {
            (&mut self.given_up, &mut self.alerts_received)
        } else {
            (&mut self.refused, &mut self.alerts_sent)
        };
        *count += 1;
        alert.into_iter().for_each(|Alert(alert)| *alerts.entry(alert).or_default() += 1);
    }

    pub(super) fn alert_sent(&mut self, Alert(alert): Alert) {
        *self.alerts_sent.entry(alert).or_default() += 1;
    }

    pub(super) fn alert_received(&mut self, Alert(alert): Alert) {
        *self.alerts_received.entry(alert).or_default() += 1;
    }

    /// By result, as metrics name them.
    pub fn results(&self) -> [(&'static str, u64); 6] {
        [
            ("full", self.full),
            ("resumed", self.resumed),
            ("refused", self.refused),
            ("given_up", self.given_up),
            ("timed_out", self.timed_out),
            ("let_go", self.let_go),
        ]
    }
}

/// How long handshakes took, in milliseconds of the shard's clock: the client's way there and back is in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct HandshakeTimes {
    /// Handshakes that took at most [`bound_ms`](Self::bound_ms) and more than the bound before it.
    pub counts: [u64; Self::BUCKETS],
    /// All together.
    pub sum_ms: u64,
}

impl HandshakeTimes {
    /// The last one has no bound.
    pub const BUCKETS: usize = 14;

    /// The bound of a bucket: powers of two from 1 ms to 4 s; none of the last.
    pub fn bound_ms(bucket: usize) -> Option<u64> {
        (bucket + 1 < Self::BUCKETS).then(|| 1 << bucket)
    }

    fn add(&mut self, took_ms: u32) {
        let bucket = took_ms.clamp(1, 1 << 30).next_power_of_two().ilog2() as usize;
        self.counts[bucket.min(Self::BUCKETS - 1)] += 1;
        self.sum_ms += u64::from(took_ms);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handshake_is_counted_in_the_first_bucket_that_holds_it() {
        let mut times = HandshakeTimes::default();
        for (took_ms, bucket) in [(0, 0), (1, 0), (2, 1), (3, 2), (4096, 12), (4097, 13), (u32::MAX >> 1, 13)] {
            let before = times.counts[bucket];
            times.add(took_ms);
            assert_eq!(times.counts[bucket], before + 1, "{took_ms}");
            assert!(HandshakeTimes::bound_ms(bucket).is_none_or(|bound_ms| u64::from(took_ms) <= bound_ms));
        }
    }
}
