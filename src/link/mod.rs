//! Processes, and whole nodes, in other programs: they attach over a socket and have the same functions as those in
//! this program.
//!
//! The protocol is specified in `docs/LINK.md`; any language can implement it. The broker's side is [`LinkServer`]; a
//! process written in Rust connects with [`process_lib::connect`](crate::process_lib::connect), or with [`Client`]
//! where it needs the broker's own types; a node spawns [`http_server`].
//!
//! Layers: `wire` defines the heads of frames, `frame` puts them on a stream, `frame_queue` numbers them and keeps
//! those that were not acknowledged. At the broker `session` is the state that outlives a connection, `server` accepts
//! and reads, `waiting` holds connections that have not identified themselves, `process` and `kernel` are the two kinds
//! of session; at the peer `peer` outlives connections, under `client` and `kernel_client`. Invariants: no thread of a
//! shard runs here; nothing grows without a bound, whatever the other side does; a frame that was sent within a session
//! arrives once, in order, over however many connections.
//!
//! # Calls that may wait
//!
//! These block the thread that calls them, and no others do:
//!
//! | call | waits for |
//! |---|---|
//! | [`Client::connect`] | the broker's welcome, 10 s at most once it is connected |
//! | [`Client::recv_batch`] | an event |
//! | [`Client::push`], [`Client::push_at`], [`Client::push_as_guest`], [`Client::push_many`], [`Client::push_everywhere`], [`Client::grant`], [`Client::subscribe`], [`Client::unsubscribe`], [`Client::close`], [`Client::respond`] | room in the link, which drains as the broker acknowledges |
//! | [`Client::push_at_asking_node`], [`Client::push_everywhere_asking_nodes`], [`Client::grant_all`], [`Client::topics`], [`Client::bind`], [`Client::unbind`], [`Client::bind_http`], [`Client::unbind_http`] | likewise, and the broker's answer |
//! | [`Client::fail`] | the broker to take the end, 5 s at most; so does dropping a [`Client`] |
//!
//! Dropping a [`LinkServer`] waits for its threads.

mod bindings;
mod client;
mod config;
mod convert;
mod frame;
mod frame_queue;
mod kernel;
mod kernel_actor;
mod kernel_client;
mod kernel_inbox;
mod kernel_outgoing;
mod monitor;
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
