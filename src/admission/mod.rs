//! Who may connect, and how much memory clients may take: the limits that all shards of a broker share.
//!
//! The one exception to "shards share nothing". It is touched when a connection is accepted, shakes hands and ends, and
//! when a shard leases memory, never per message: a few atomics and striped locks, each held for the length of one map
//! operation.
//!
//! Invariants: counts are never negative and never above their limit; what is counted is bounded by what is connected, so
//! strangers cannot make it grow; the time is an argument, on a clock that all shards share.
//!
//! What it must not know: sockets, channels, frames, and where an address comes from (a socket or a trusted proxy).

mod connections;
mod memory;
mod prefix;

pub use connections::{Connections, Limits, Over};
pub use memory::{Budget, Lease, STEP_BYTES};
pub use prefix::Prefix;
