//! The operator's access to a running broker: a Unix socket that only its owner may open, with one line of JSON for the
//! question and one for the answer.
//!
//! [`ControlServer`] opens it beside a broker, in a daemon or in a program that embeds one; [`ask`] is the other side,
//! which `pushring stats` and `pushring disconnects` print as tables. Never TCP: the answers name clients.
//!
//! ```
//! use pushring::{Broker, Config};
//! use pushring::control::{self, ControlAnswer, ControlRequest, ControlServer};
//!
//! let broker = Broker::start(Config { shards: 1, ..Config::default() }).unwrap();
//! let path = std::env::temp_dir().join(format!("pushring-control-{}.sock", std::process::id()));
//! let server = ControlServer::start(&broker, &path).unwrap();
//! let ControlAnswer::Stats(overview) = control::ask(&path, &ControlRequest::Stats {}).unwrap() else { panic!() };
//! assert_eq!(overview.total().accepted, 0);
//! # drop(server);
//! ```
//!
//! Invariants: one question for each connection, which is then closed; a question has 4 KiB and 5 s, its answer 5 s;
//! the number of connections is limited; no answer holds a secret.
//!
//! # Calls that may wait
//!
//! These block the thread that calls them, and no others do:
//!
//! | call | waits for |
//! |---|---|
//! | [`ask`] | the daemon's answer, 10 s at most once the question is sent |
//! | [`Operator::overview`], [`Operator::answer`] | an answer of shards |
//! | [`Operator::drain`] | every shard to have the order |
//!
//! Dropping a [`ControlServer`] waits for its thread.

mod client;
mod metrics;
mod operator;
mod server;
mod usage;
mod wire;

pub use crate::driver::peer_socket::PeerListenError;
#[doc(hidden)]
pub use crate::driver::peer_socket::is_listened_to;
pub use client::{AskError, ask};
pub use metrics::{Exposition, metrics};
pub use operator::{LogCounts, Operator, Program};
pub use server::{ControlServer, ControlStartError};
pub use usage::Usage;
pub use wire::{
    BrokerInfo, Changes, ChannelList, ChannelQuery, ControlAnswer, ControlRequest, Filter, HubCounts, LastReload,
    Overview,
};
