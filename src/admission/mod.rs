//! Who may connect, and how much memory clients and processes may take: the limits that all shards of a broker share.
//!
//! The one exception to "shards share nothing". It is touched when a connection is accepted, shakes hands and ends,
//! when a shard leases memory and publishes at the end of a turn for whom it holds it, and when something waits outside
//! of shards ([`ledger`]), never per push: a few atomics and striped locks, each held for the length of one map
//! operation.
//!
//! Invariants: counts are never negative and never above their limit; what is counted is bounded by what is connected,
//! so strangers cannot make it grow; the time is an argument, on a clock that all shards share.
//!
//! What it must not know: sockets, channels, frames, and where an address comes from (a socket or a trusted proxy).

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
pub use counter::OfProcess;
pub use heap::HeapBytes;
pub use ledger::{
    Charge, HeldAs, HeldBytes, Ledger, MemoryPool, OverBudget, ProcessMemory, Tally, Tenant, TenantReport,
};
pub use memory::{Budget, Lease, LeaseReach, STEP_BYTES};
pub use notices::{Notice, Notices};
pub use places::PeerPlaces;
pub use prefix::Prefix;
pub use waiting::{LetGo, LetGoOf};
