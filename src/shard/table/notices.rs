//! Lines in the log about clients that are refused or closed ([`crate::admission::Notices`]), and their counts.

use super::slot::Slot;
use crate::admission::Notice;
use crate::http::Head;
use crate::shard::core::Shard;

/// The most characters of a client's text in the log.
const SHOWN_CHARS_MAX: usize = 100;

impl Shard {
    /// Counts something that an operator should hear of, and tells of it if that is due. `example`: the latest one.
    pub(in crate::shard) fn notice(&self, notice: Notice, example: impl FnOnce() -> String) {
        if let Some(count) = self.table.admission.notices().note(notice, self.now_ms) {
            // Quoted and escaped: it may be a client's own choice.
            let latest: String = example().chars().take(SHOWN_CHARS_MAX).collect();
            tracing::warn!(count, ?latest, "{}", notice.words());
        }
    }

    /// Logs counts that are due since the last line of their kind; the first shard that looks does.
    pub(in crate::shard) fn tell_overdue_notices(&self) {
        for (notice, count) in self.table.admission.notices().overdue(self.now_ms) {
            tracing::warn!(count, "{}", notice.words());
        }
    }

    /// A connection's client, for the log.
    pub(in crate::shard) fn peer_for_log(&self, slot: Slot) -> String {
        std::net::SocketAddr::from(self.table[slot].peer).ip().to_string()
    }

    /// A request for a host that is not ours was answered 421.
    pub(in crate::shard) fn note_foreign_host(&mut self, head: &Head<'_>) {
        self.stats.misdirected += 1;
        self.notice(Notice::ForeignHost, || head.authority.map_or_else(String::new, |host| host.text.to_owned()));
    }

    /// A request names a client that we do not believe in, unless its peer is a trusted proxy.
    pub(in crate::shard) fn note_forwarded(&mut self, slot: Slot, head: &Head<'_>) {
        if !head.has("x-forwarded-for") {
            return;
        }
        let peer = std::net::SocketAddr::from(self.table[slot].peer).ip();
        if !self.owners.directory().gateway.settings().is_trusted_proxy(peer) {
            self.stats.forwarded_untrusted += 1;
            self.notice(Notice::UntrustedProxy, || peer.to_string());
        }
    }
}
