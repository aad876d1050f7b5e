//! A connection on its way to the shard of the channel that its client returns for: plain data, and nothing of the
//! shard that accepted it.
//!
//! Invariant: it is counted by admission all the way, and uncounted if it gets lost. It must not know sockets except by
//! their number.

use crate::admission::{self, HeapBytes, Prefix};
use crate::gateway::{Grant, OwnerId};
use crate::proto::deflate::Agreed;
use crate::resume::{MalformedElement, ResumeAsk};
use crate::shard::flush::SocketId;
use crate::shard::table::connection::Tls;
use crate::sse::EventId;
use std::any::Any;
use std::net::SocketAddr;
use std::sync::Arc;

/// The request of a kept channel's client.
#[derive(Debug, Clone)]
pub(in crate::shard) struct ResumeRequest {
    /// The user that was logged in, where the path requires a login.
    pub user: Option<Arc<str>>,
    /// The client's rights at the hub.
    pub grant: Option<Arc<Grant>>,
    /// Whether the owner is told when the channel is left and taken up again.
    pub tells: bool,
    /// The channel to take up again, if any.
    pub ask: Option<Result<ResumeAsk, MalformedElement>>,
    /// For a channel that only receives.
    pub stream: Option<StreamRequest>,
}

/// The request of an event stream's client.
#[derive(Debug, Clone, Copy)]
pub(in crate::shard) struct StreamRequest {
    /// The event that it heard last, if it comes back; an error, if it names none of ours.
    pub last: Option<Result<EventId, ()>>,
}

/// An upgraded connection that is to become a channel which outlives it.
pub(in crate::shard) struct Upgraded {
    /// The 101.
    pub response: Vec<u8>,
    pub agreed: Option<Agreed>,
    pub owner: OwnerId,
    pub bound_path: Arc<str>,
    pub path: Arc<str>,
    pub forwarded_for: Option<Box<str>>,
    pub extension: bool,
    pub wish: ResumeRequest,
    /// The client's bytes after its request.
    pub leftover: Vec<u8>,
}

/// A connection on its way to the shard of the channel that it is for.
pub struct Arrival {
    pub(super) peer: SocketAddr,
    pub(super) counted: CountedConnection,
    /// With what its records go on, and those that were sealed and have not left.
    pub(super) tls: Option<Box<Tls>>,
    pub(super) sealed: Vec<u8>,
    pub(super) upgraded: Upgraded,
}

impl Arrival {
    /// The bytes it keeps alive while it waits.
    pub fn heap_bytes(&self) -> usize {
        let tls = self.tls.as_deref().map_or(0, |tls| size_of::<Tls>() + tls.heap_bytes()) + self.sealed.capacity();
        let Upgraded { response, path, forwarded_for, leftover, .. } = &self.upgraded;
        let named = path.heap_bytes() + forwarded_for.heap_bytes();
        size_of::<Self>() + tls + response.capacity() + leftover.capacity() + named
    }
}

/// An arrival, and where it goes.
pub struct Handover {
    /// Its socket here.
    pub socket: SocketId,
    /// The shard that it is for.
    pub to: u32,
    /// All else.
    pub arrival: Box<Arrival>,
}

/// A connection that is counted, and is uncounted if it gets lost on its way.
pub(super) struct CountedConnection {
    admission: Option<Arc<admission::Connections>>,
    client: Option<Prefix>,
    at_ms: u64,
}

impl CountedConnection {
    pub(super) fn new(admission: &Arc<admission::Connections>, client: Option<Prefix>, at_ms: u64) -> Self {
        Self { admission: Some(admission.clone()), client, at_ms }
    }

    /// It has arrived, and is counted where it is.
    pub(super) fn arrived(mut self) -> Option<Prefix> {
        self.admission = None;
        self.client
    }
}

impl Drop for CountedConnection {
    fn drop(&mut self) {
        if let Some(admission) = &self.admission {
            admission.leave(self.client, self.at_ms);
        }
    }
}

/// A socket between two shards, as the driver carries it. Dropping it closes the socket.
pub struct CarriedSocket(pub Box<dyn Any + Send>);
