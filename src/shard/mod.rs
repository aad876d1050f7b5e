//! The core of the broker, one per CPU core, sans-IO: connections, channels, and what waits to be sent.
//!
//! Where to look: a byte comes in at [`Shard::handle_read`] (`receive.rs`, `http.rs`), a push at
//! [`Shard::handle_command`] (`push.rs`); frames are encoded once into the window (`window.rs`), wait for each channel
//! as ranges of it (`outbound.rs`) and leave in batches (`sending.rs`, through [`flush::Flush`]). Connections are let
//! in by `entering.rs`, channels begin in `opening.rs` and end in `closing.rs`. Orders come in as [`command::Command`], news go out as [`event::Event`].
//!
//! Invariants: a shard shares nothing that is touched per message; it never waits; the same calls with the same bytes
//! and times give the same result. It must not know sockets, clocks, randomness, threads or futures.

mod closing;
pub mod command;
pub mod config;
mod conflation;
mod connection;
mod core;
mod deadlines;
pub mod deflate;
pub mod directory;
pub mod disconnects;
mod entering;
pub mod event;
pub mod flush;
pub mod grants;
mod http;
mod memory;
mod opening;
mod outbound;
pub mod outcome;
mod owner;
mod pressure;
pub mod process_queue;
mod push;
mod receive;
mod sending;
#[cfg(test)]
#[path = "stage_tests.rs"]
mod stage;
pub mod stats;
#[cfg(test)]
mod tests;
mod wheel;
mod window;

pub use self::core::{Common, Effect, Shard};
pub use config::{Config, Deflate};
pub use connection::Token;
pub use directory::{Directory, Owner};
pub use memory::MemoryReport;
pub use wheel::TICK_MS;
