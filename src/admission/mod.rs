//! Limits that all shards of a broker share: on connections, and on the memory of clients and processes.
//!
//! The one exception to "shards share nothing". It is touched when a connection is accepted, shakes hands and ends,
//! when a shard leases memory and publishes at the end of a turn how much it holds for each tenant, and when data waits
//! outside of shards ([`ledger`]), never per push: a few atomics and striped locks, each held for one map operation.
//!
//! Invariants: counts are never negative and never above their limit; the memory of the counts is bounded by the
//! connections, so strangers cannot make it grow; the time is an argument, on a clock that all shards share.
//!
//! It must not know sockets, channels, frames, or the source of an address (a socket or a trusted proxy).

mod connections;
mod counter;
mod heap;
pub mod ledger;
mod memory;
mod notices;
mod places;
mod prefix;
mod waiting;

pub use connections::{ConnectionLimits, Connections, LimitReached};
pub use counter::ProcessCount;
pub use heap::{HeapBytes, table_bytes, tree_bytes_in_order};
pub use ledger::{
    Charge, HeldAs, HeldBytes, Ledger, MemoryPool, OverBudget, ProcessMemory, Tally, Tenant, TenantReport,
};
pub use memory::{Budget, Lease, LeaseReach, STEP_BYTES};
pub use notices::{Notice, Notices};
pub use places::PeerPlaces;
pub use prefix::Prefix;
pub use waiting::{EvictFrom, EvictedChannel};
