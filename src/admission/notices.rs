//! Log lines for operators about clients that are refused or closed: at most one a minute of each kind, with a count.
//!
//! Invariants: the first of a kind is logged at once; those within a minute of a line are counted and logged with the
//! next one, or when the minute is over, so that no count is lost; all shards count, one logs.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// The kind of a notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notice {
    /// A request for a host that is not ours.
    ForeignHost,
    /// `X-Forwarded-For` of a peer that is no trusted proxy.
    UntrustedProxy,
    /// Connections in all.
    Connections,
    /// Connections of one client.
    ConnectionsPerIp,
    /// Handshakes of one client.
    Handshakes,
    /// More clients over a limit than are told so.
    ClosedUnanswered,
    /// A client that reads too slowly.
    Backpressure,
    /// Memory is short.
    Memory,
    /// A balancer's connection without a valid PROXY header.
    ProxyHeader,
    /// A process that runs on the shards was slow.
    SlowHandler,
}

impl Notice {
    const ALL: [Self; 10] = [
        Self::ForeignHost,
        Self::UntrustedProxy,
        Self::Connections,
        Self::ConnectionsPerIp,
        Self::Handshakes,
        Self::ClosedUnanswered,
        Self::Backpressure,
        Self::Memory,
        Self::ProxyHeader,
        Self::SlowHandler,
    ];

    /// The event, and the setting that fixes it.
    pub const fn words(self) -> &'static str {
        match self {
            Self::ForeignHost => {
                "requests were refused with 421: their host is not served here; if it should be, list it in `hosts`"
            }
            Self::UntrustedProxy => {
                "X-Forwarded-For is not trusted, so all clients of this proxy count as one: list it in `trusted_proxies`"
            }
            Self::Connections => "clients were turned away with 503: `connections_max` is reached",
            Self::ConnectionsPerIp => {
                "clients were turned away with 503: their address has `connections_per_ip_max` (`per_ip_exempt` excepts \
                 addresses, `trusted_proxies` tells a proxy's clients apart)"
            }
            Self::Handshakes => {
                "clients were turned away with 503: their address is over `handshakes_per_ip_per_s_max` (`per_ip_exempt` \
                 excepts addresses, `trusted_proxies` tells a proxy's clients apart)"
            }
            Self::ClosedUnanswered => {
                "clients were closed without an answer: `turned_away_max` others were being answered"
            }
            Self::Backpressure => {
                "channels were closed with 1013: their clients did not keep up; raise `outbound_bytes_max`, choose \
                 another `policy`, or conflate"
            }
            Self::Memory => {
                "clients were closed or refused: memory is short; raise `memory_budget`, or lower `connections_max` or \
                 `outbound_bytes_max`"
            }
            Self::ProxyHeader => {
                "connections were closed: they do not begin with a valid PROXY header; have the balancer send one \
                 (`send-proxy`, `proxy_protocol on`), or take its address out of `proxy_protocol_from`"
            }
            Self::SlowHandler => {
                "a handler on a shard took more than 0.25 ms for an event, while all others on that shard waited: slow work \
                 belongs into a process with a thread of its own (`Broker::process`)"
            }
        }
    }
}

/// How long a kind is not told of again.
const QUIET_MS: u64 = 60_000;

/// The counts of all kinds, shared by all shards.
#[derive(Debug, Default)]
pub struct Notices([NoticeCount; Notice::ALL.len()]);

#[derive(Debug, Default)]
struct NoticeCount {
    count: AtomicU64,
    /// From when on it may be told again; 0 if it never was.
    quiet_until_ms: AtomicU64,
}

impl Notices {
    /// Counts one. Returns how many are to be told of now, if they are.
    pub fn note(&self, notice: Notice, now_ms: u64) -> Option<u64> {
        let unreported = &self.0[notice as usize];
        unreported.count.fetch_add(1, Relaxed);
        unreported.take(now_ms)
    }

    /// Counts that have not been logged, and are due.
    pub fn overdue(&self, now_ms: u64) -> impl Iterator<Item = (Notice, u64)> {
        let waiting = Notice::ALL.into_iter().filter(|&notice| self.0[notice as usize].count.load(Relaxed) > 0);
        waiting.filter_map(move |notice| Some((notice, self.0[notice as usize].take(now_ms)?)))
    }
}

impl NoticeCount {
    fn take(&self, now_ms: u64) -> Option<u64> {
        let quiet_until_ms = self.quiet_until_ms.load(Relaxed);
        if now_ms < quiet_until_ms {
            return None;
        }
        // Of several that come at once, one tells.
        let until_ms = now_ms + QUIET_MS;
        self.quiet_until_ms.compare_exchange(quiet_until_ms, until_ms, Relaxed, Relaxed).ok()?;
        Some(self.count.swap(0, Relaxed)).filter(|&count| count > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_a_minute_and_no_count_is_lost() {
        let notices = Notices::default();
        assert_eq!(notices.note(Notice::Memory, 0), Some(1));
        for now_ms in 1..100 {
            assert_eq!(notices.note(Notice::Memory, now_ms), None);
        }
        assert_eq!(notices.note(Notice::ClosedUnanswered, 50), Some(1), "another kind");
        assert_eq!(notices.overdue(59_999).count(), 0);
        assert_eq!(notices.overdue(60_000).collect::<Vec<_>>(), [(Notice::Memory, 99)]);
        assert_eq!(notices.overdue(500_000).count(), 0, "nothing is left to tell");
        assert_eq!(notices.note(Notice::Memory, 119_999), None);
        assert_eq!(notices.note(Notice::Memory, 120_000), Some(2));
    }

    #[test]
    fn each_kind_has_its_place_and_names_what_mends_it() {
        for (at, notice) in Notice::ALL.into_iter().enumerate() {
            assert_eq!(notice as usize, at);
            assert!(notice.words().contains('`'), "{notice:?}");
        }
    }
}
