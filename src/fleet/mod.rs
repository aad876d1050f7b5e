//! A fleet: brokers on many machines with one audience, over NATS.
//!
//! A broadcast that is sent [everywhere](crate::Broadcast::everywhere) reaches the channels of the process of that name
//! on every node, and a push can name a channel of another node ([`ChannelAt`](crate::ChannelAt)). Between nodes it is
//! delivered once and in order for each source and audience, or it is lost, counted and reported: every message carries
//! a sequence number of its source, and sources announce each second their latest numbers.
//!
//! - `names`, `subject`: which names a subject may contain, and how audiences become subjects;
//! - `header`: the bytes before a payload;
//! - `outgoing`, `incoming`: the numbers that go out, and those received from others; `tails`: the last of each, as
//!   they are written;
//! - `pending_questions`: outcomes that other nodes are asked for;
//! - `presence`: the counts of a topic's subscribers that other nodes have last reported;
//! - `roster`, `interest`: the nodes that are present, and the audiences that this node listens to;
//! - `member`: all of that as one node of a fleet, without I/O: bytes and the time go in, bytes and reports come out;
//! - `traffic`: what goes into a member and comes out of it;
//! - `outbox`: where the broker submits messages for other nodes; `engine`: the thread that talks to NATS,
//!   `connection`: with what it connects.
//!
//! Invariants: local pushes never wait for any of this; every table and queue has a limit; input from another node is
//! treated as hostile until it has been checked, and can affect only what is counted of that node.
//!
//! # Calls that may wait
//!
//! This blocks the thread that calls it, and no others do:
//!
//! | call | waits for |
//! |---|---|
//! | [`probe`](fn@probe) | NATS and the other nodes, 5 s at most |
//!
//! Dropping a [`Fleet`] waits for its thread: for what is queued to leave, half a second at most.

#[cfg(test)]
mod brokers_tests;
#[cfg(test)]
mod bus_tests;
mod connection;
mod engine;
mod header;
mod incoming;
mod interest;
mod log_limiter;
mod member;
mod names;
mod outbox;
mod outgoing;
mod pending_questions;
mod presence;
mod probe;
mod roster;
mod secret;
#[cfg(test)]
mod simulation_tests;
mod standing;
mod subject;
mod tails;
mod traffic;

pub use crate::broker::{FleetCounts, FleetLine, FleetNode, FleetProbe, FleetReport};
pub use engine::{Fleet, FleetStartError};
pub use names::{InvalidName, Name};
pub use probe::probe;
pub use secret::{Credentials, InvalidCredentials};

use std::path::PathBuf;

/// Properties of any bytes, for the fuzz target of this name and the files below `fuzz/seeds/fleet`.
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod properties {
    pub use super::header::holds;
}

/// A node's settings for its fleet.
#[derive(Debug, Clone)]
pub struct Options {
    /// NATS servers, as `nats://127.0.0.1:4222` or `tls://…`; one of them is enough to find the others of its cluster.
    pub servers: Vec<String>,
    /// The fleet: nodes of one name hear each other.
    pub fleet: Name,
    /// This node, under a name that no other node of the fleet has.
    pub node: Name,
    /// The public address of this node alone, as `wss://node-1.example.com`: clients that resume a channel of this node
    /// at another are sent there. Empty: they are not.
    pub public: String,
    /// The node's credentials.
    pub credentials: Option<Credentials>,
    /// Certificates of authorities for the servers, beside the system's own.
    pub ca_file: Option<PathBuf>,
    /// The most bytes that may wait for NATS; one process may hold a quarter of it.
    pub queue_bytes_max: u64,
    /// Audiences that this node listens to at a time, and numbers that it keeps: of its own audiences, and of others'.
    pub subjects_max: usize,
}

impl Options {
    /// For a node of the fleet `main` over a NATS server on this machine.
    pub fn new(node: Name) -> Self {
        Self {
            servers: vec!["nats://127.0.0.1:4222".to_owned()],
            fleet: Name::new("main").expect("it is one"),
            node,
            public: String::new(),
            credentials: None,
            ca_file: None,
            queue_bytes_max: QUEUE_BYTES_MAX_DEFAULT,
            subjects_max: SUBJECTS_MAX_DEFAULT,
        }
    }
}

/// A shard's inbox of payloads has four times as much; all of it is for one queue here.
pub const QUEUE_BYTES_MAX_DEFAULT: u64 = 16 << 20;

/// Some 30 MB of numbers, and 450 MB of subscriptions, when all of them are in use; `memory_budget` bounds them too.
pub const SUBJECTS_MAX_DEFAULT: usize = 64 * 1024;
