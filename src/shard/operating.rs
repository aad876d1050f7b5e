//! Requests of operators to a running shard: list channels page by page, list attached processes, change settings,
//! drain.
//!
//! Invariants: a request costs a bounded part of a turn, however many channels there are, and is repeated for the rest;
//! a drain tells each channel once, and at most as many at a time as its pace allows; the requester may be gone before
//! the answer. It must not depend on the requester or its purpose.

use crate::channel::ChannelId;
use crate::gateway::IpPrefix;
use crate::process_id::ProcessId;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// Which channels are asked for; all that is left out lets everything pass.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ChannelFilter {
    /// Only this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub channel: Option<ChannelId>,
    /// Of this process.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[serde(default, deserialize_with = "crate::process_id::read_back_option")]
    pub process: Option<ProcessId>,
    /// Opened on this path, as it is bound.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<Box<str>>,
    /// Of clients in this range, as we or a trusted proxy see them: an address, or `10.0.0.0/8`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<IpPrefix>,
    /// With at least so many bytes that wait to be sent.
    #[serde(skip_serializing_if = "is_zero")]
    pub queued_bytes_min: usize,
}

fn is_zero(count: &usize) -> bool {
    *count == 0
}

/// One channel at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChannelReport {
    /// Its id.
    pub channel: ChannelId,
    /// Whose it is.
    #[serde(deserialize_with = "crate::process_id::read_back")]
    pub process: ProcessId,
    /// The bound path, without the process id.
    pub path: Arc<str>,
    /// The other end of the connection.
    pub peer: SocketAddr,
    /// The client as a trusted proxy forwarded it (of an IPv6 address the /64).
    pub forwarded_for: Option<IpAddr>,
    /// Bytes that wait to be sent, or for a client that is away.
    pub queued_bytes: usize,
    /// Bytes that were sent, and are kept for a client that may come back.
    #[serde(default)]
    pub kept_bytes: usize,
    /// Whether its connection is lost, and its client is waited for.
    #[serde(default)]
    pub is_detached: bool,
    /// How long it has been open, in seconds.
    pub age_s: u32,
    /// How long the client has said nothing, in milliseconds.
    pub silent_ms: u64,
    /// The round trip of our last answered ping, in milliseconds.
    pub ping_ms: Option<u16>,
    /// Whether a close frame has been sent, and its answer is awaited.
    pub is_closing: bool,
    /// How many topics it is subscribed to.
    #[serde(default)]
    pub subscriptions: usize,
    /// Which, by name; told where this one channel is asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub topics: Vec<Arc<str>>,
}

/// A part of the answer to a [`ChannelFilter`].
#[derive(Debug, Clone, Default)]
pub struct ChannelPage {
    /// In the order of the shard's table.
    pub channels: Vec<ChannelReport>,
    /// Where to go on; none: that was all.
    pub next: Option<u32>,
}

/// How channels are closed so that their clients come back evenly, here or elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drain {
    /// How long new clients are still taken, so that balancers can turn away first.
    pub grace_ms: u64,
    /// Then channels are closed with 1012, one after another, for so long.
    pub over_ms: u64,
    /// Then the rest are closed as by a stop, and have so long to answer.
    pub within_ms: u64,
}

/// A drain in progress.
pub(super) struct Draining {
    pub(super) closes_from_ms: u64,
    pub(super) closes_until_ms: u64,
    pub(super) within_ms: u64,
    /// Channels when the closes began, and how many have been told since; none before.
    pub(super) progress: Option<DrainProgress>,
}

/// How far it has come.
#[derive(Clone, Copy, Default)]
pub(super) struct DrainProgress {
    pub(super) channels: usize,
    pub(super) told: usize,
    /// The place in the connection table to look at next.
    pub(super) next: usize,
    /// How many are to be told by now; all: the drain is over.
    pub(super) due: usize,
    /// How many places are to be looked at before the next tick.
    pub(super) places: usize,
}
