//! The operator's door to a running broker: a Unix socket that only its owner may open, where a line of JSON asks and a
//! line of JSON answers.
//!
//! [`Server`] opens it beside a broker, in a daemon or in a program that embeds one; [`ask`] is the other side, and
//! `pushring stats` and `pushring disconnects` are it with tables. Never TCP: what is told here names clients.
//!
//! ```
//! use pushring::{Broker, Config};
//! use pushring::control::{self, Answer, Request, Server};
//!
//! let broker = Broker::start(Config { shards: 1, ..Config::default() }).unwrap();
//! let path = std::env::temp_dir().join(format!("pushring-door-{}.sock", std::process::id()));
//! let door = Server::start(&broker, &path).unwrap();
//! let Answer::Stats(overview) = control::ask(&path, &Request::Stats {}).unwrap() else { panic!() };
//! assert_eq!(overview.total().accepted, 0);
//! # drop(door);
//! ```
//!
//! Invariants: one question a connection, then it is closed; a question has 4 KiB and 5 s, its answer 5 s; so many at a
//! time and no more; no secret is told.

mod client;
mod metrics;
mod operator;
mod server;
mod usage;
mod wire;

pub use crate::driver::peer_socket::ListenError;
pub use client::{AskError, ask};
pub use metrics::{Exposition, metrics};
pub use operator::{LogCounts, Operator, Program};
pub use server::{Server, StartError};
pub use usage::Usage;
pub use wire::{About, Answer, Changes, ChannelList, ChannelQuery, Filter, Overview, Request};
