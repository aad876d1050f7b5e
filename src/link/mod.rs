//! Processes, and whole nodes, in other programs: they attach over a socket and do what those in this one do.
//!
//! The protocol is specified in `docs/LINK.md`; any language can speak it. The broker's side is [`LinkServer`]; a process
//! written in Rust connects with [`process_lib::connect`](crate::process_lib::connect), or with [`Client`] where it wants
//! the broker's own types; a node spawns [`http_server`].
//!
//! Layers: `wire` are the heads of frames, `frame` puts them on a stream, `line` numbers them and keeps what was not
//! acknowledged. At the broker `session` is what outlives a connection, `server` lets in and reads, `waiting` is where those
//! are who have not said who they are, `process` and `kernel`
//! are what runs behind; at the peer `peer` outlives connections, under `client` and `kernel_client`.
//! Invariants: no thread of a shard runs here; nothing grows without a bound, whatever the other side does; a frame that
//! was sent within a session arrives once, in order, over however many connections.

mod bindings;
mod client;
mod config;
mod convert;
mod frame;
mod kernel;
mod kernel_actor;
mod kernel_client;
mod kernel_inbox;
mod kernel_outgoing;
mod line;
mod orders;
mod peer;
mod process;
#[cfg(any(test, fuzzing))]
pub mod properties;
mod server;
mod session;
mod stop;
mod token;
mod waiting;
mod wire;

pub use crate::driver::peer_socket::{Access, PeerListenError};
#[cfg(feature = "tls")]
pub use crate::tls::TrustError;
pub use crate::tls::{Acceptor, Trust};
pub use client::{Client, ClientOptions};
pub use config::LinkConfig;
pub use kernel_client::{KernelError, KernelParts, LinkedNode, http_server};
pub use peer::{ConnectError, Endpoint, LinkSendError};
pub use server::{LinkPeers, LinkServer, LinkStartError};
pub use token::{LinkToken, LinkTokenError};
pub use wire::{HelloRefused, RefusedCode};
