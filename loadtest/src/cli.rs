//! The command line.

use clap::{Parser, Subcommand};

use crate::bench::Run;
use crate::compare::CompareArgs;
use crate::fleet;
use crate::modes::{connect, echo, fanout, inbound, rooms, unicast};
use crate::neighbours;
use crate::reference::ReferenceArgs;
use crate::soak;

/// Simulates thousands of WebSocket clients and measures the server they talk to.
#[derive(Debug, Parser)]
#[command(name = "loadtest", version, max_term_width = 100)]
pub(crate) struct Cli {
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// The modes.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Opening: the rate of connect + upgrade + close, and the memory of idle channels.
    Connect(Run<connect::Settings>),
    /// Fan-out: a publisher, every message goes to all clients, a window of messages in flight.
    Fanout(Run<fanout::WindowSettings>),
    /// Fan-out at a fixed pace, for latencies.
    Paced(Run<fanout::PacedSettings>),
    /// Echo: each client gets its own messages back.
    Echo(Run<echo::Settings>),
    /// Unicast: messages to random channels.
    Unicast(Run<unicast::Settings>),
    /// Rooms: each message goes to the other members of a small room, while some members are slow or come and go.
    Rooms(Run<rooms::Settings>),
    /// Inbound: messages that the server receives and does not answer.
    Inbound(Run<inbound::Settings>),
    /// Soak: churn, resets, slow readers and half-open peers for a stated time; the other clients must not be affected.
    Soak(Run<soak::Settings>),
    /// Neighbours: the effect of greedy clients and processes on another process' echo latency.
    Neighbours(Run<neighbours::Settings>),
    /// Fleet: several daemons and a nats-server on loopback, clients on each, every delivery counted.
    Fleet(fleet::Settings),
    /// The lower bound: what the system calls alone cost on this machine.
    Limit(CompareArgs),
    /// Runs several servers in turn through the same cells, and reports their ratios.
    Compare(CompareArgs),
    /// Runs a reference server.
    Reference(ReferenceArgs),
}
