//! The core of the broker, one per CPU core, sans-IO: connections, channels, and what waits to be sent.
//!
//! Where to look: a byte comes in at [`Shard::handle_read`] (`intake/`), a push at [`Shard::handle_command`]
//! (`out/push.rs`); frames are encoded once into the window (`out/window.rs`), wait for each channel as ranges of it
//! (`out/outbound.rs`) and leave in batches (`out/sending.rs`, through [`flush::Flush`]). Connections are accepted by
//! `table/accept.rs`, channels begin in `table/opening.rs` and end in `table/closing.rs`. Orders come in as
//! [`command::Command`]; processes are told of what happened by [`event::Event`].
//!
//! Invariants: a shard shares nothing that is touched per message; it never waits; the same calls with the same bytes
//! and times give the same result. It must not depend on sockets, clocks, randomness, threads or futures.

pub mod command;
pub mod config;
mod core;
pub mod disconnects;
pub mod durations;
pub mod event;
mod executing;
pub mod flush;
#[cfg(test)]
#[path = "full_owners_tests.rs"]
mod full_owners;
pub mod handler;
mod handlers;
mod handling;
mod handshake_queue;
#[cfg(all(test, feature = "tls"))]
#[path = "handshakes_tests.rs"]
mod handshakes;
mod intake;
mod memory;
pub mod operating;
mod out;
pub mod outcome;
mod owners;
mod read_queue;
#[cfg(all(test, feature = "tls"))]
#[path = "records_end_tests.rs"]
mod records_end;
#[cfg(test)]
#[path = "resume_tests.rs"]
mod resume_simulation;
#[cfg(test)]
#[path = "stage_tests.rs"]
mod stage;
pub mod stats;
#[cfg(test)]
#[path = "stream_tests.rs"]
mod stream_simulation;
mod table;
#[cfg(test)]
mod tests;
pub mod tls_counts;
pub mod turn;
#[cfg(test)]
#[path = "two_shards_tests.rs"]
pub(crate) mod two_shards;
pub mod unfinished;
#[cfg(test)]
#[path = "wires_tests.rs"]
mod wires;
pub mod work;

pub use self::core::{Common, Effect, Shard};
pub use config::{Deflate, Resume, ShardConfig};
pub use memory::MemoryReport;
pub use out::deflate;
pub use owners::directory::{Directory, Owner, Wishes};
pub use owners::{directory, grants, topics};
pub use table::connection::{ConnectionToken, ListenerKind, SocketEnd};
pub use table::wheel::TICK_MS;

pub use crate::queue::events as process_queue;
