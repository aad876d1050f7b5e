//! The HTTP state of one connection: the request that is being received or answered.

use crate::admission::ProcessCount;
use crate::gateway::OwnerId;
use crate::http::{self, connection::HttpPhase};
use crate::shard::event::RequestId;
use std::sync::Arc;

/// A request that waits for a process. Its connection counts as the process' until then.
pub(super) struct PendingRequest {
    pub owner: OwnerId,
    pub request: RequestId,
    connections: Arc<ProcessCount>,
}

impl PendingRequest {
    /// `connections` has counted this one.
    pub(super) fn new(owner: OwnerId, request: RequestId, connections: Arc<ProcessCount>) -> Self {
        Self { owner, request, connections }
    }
}

impl Drop for PendingRequest {
    fn drop(&mut self) {
        self.connections.leave();
    }
}

/// The HTTP state of one connection.
pub(in crate::shard) struct Exchange {
    pub(super) http: http::HttpConnection,
    /// The beginning of a PROXY header that has to come first, as far as it was read.
    pub(in crate::shard) proxy_header: Option<Vec<u8>>,
    /// Whether a response is on its way out.
    pub(super) responding: bool,
    /// How much of it had not left when its deadline was set.
    pub(super) left_bytes: usize,
    /// The process that was asked, and the request's number.
    pub(super) asked: Option<PendingRequest>,
    /// The page whose browser lets it read the response, of another site.
    pub(super) origin: Option<String>,
    /// The response has left: what came behind its request is still to be looked at.
    pub(super) feeds: bool,
    /// The connection's wait when its deadline was set.
    pub(super) phase: HttpPhase,
    /// How much of the body had come then.
    pub(super) body_bytes: usize,
    /// The unread bytes of a refused body then.
    pub(super) unread_bytes: u64,
}

impl Exchange {
    /// `has_proxy_header`: of a balancer's connection, which begins with a PROXY header.
    pub(crate) fn new(limits: http::HttpLimits, has_proxy_header: bool, over_tls: bool) -> Self {
        let http = http::HttpConnection::new(limits);
        let http = if over_tls { http.over_tls() } else { http };
        Self {
            http,
            proxy_header: has_proxy_header.then(Vec::new),
            responding: false,
            feeds: false,
            left_bytes: 0,
            asked: None,
            origin: None,
            phase: HttpPhase::Head,
            body_bytes: 0,
            unread_bytes: 0,
        }
    }

    pub(crate) fn wants_read(&self) -> bool {
        self.http.wants_read() && !self.feeds
    }

    /// The bytes held of requests that are not whole, or wait for their turn, with its own.
    pub(crate) fn held_bytes(&self) -> usize {
        size_of::<Self>() + self.http.held_bytes() + self.proxy_header.as_ref().map_or(0, Vec::capacity)
    }

    /// The most bytes that a refused client may still be sending.
    pub(crate) fn unread_bytes(&self) -> u64 {
        self.http.unread_bytes()
    }

    pub(crate) fn is_answering(&self) -> bool {
        self.responding || self.asked.is_some()
    }

    /// Returns whether a response is on its way out.
    pub(crate) fn responding(&self) -> bool {
        self.responding
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.http.phase() == HttpPhase::Idle && !self.responding
    }
}
