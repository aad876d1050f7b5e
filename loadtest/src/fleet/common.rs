//! State shared by the parts of a run: its settings, its faults, and the counts of all threads.

use std::path::PathBuf;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::modes::{parse_amount, parse_positive, parse_size};

/// Tells each client its channel, and receives its messages.
pub(super) const PROCESS: &str = "unicast:pushring:sys";

/// Marks the sender of a broadcast; other stamps name the client that a message is for.
pub(super) const BROADCAST: u32 = 1 << 31;

/// How long a fleet may take until it is whole, and its last messages until they have come.
pub(super) const WHOLE_WITHIN: Duration = Duration::from_secs(60);
pub(super) const LAST_WITHIN: Duration = Duration::from_secs(10);

/// A fault of a fleet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Fault {
    /// NATS is killed and restarted.
    NatsKilled,
    /// One of two NATS servers announces its shutdown (lame duck mode) and stops.
    NatsLame,
    /// A node is stopped (SIGSTOP).
    NodeStopped,
    /// A node is stopped for 150 ms of each 250 ms.
    NodeSlow,
    /// A node is cut off from NATS; in network namespaces only.
    Partition,
    /// No fault: each node in turn is drained and begins anew (on loopback).
    Rolling,
}

impl Fault {
    /// The node that is disturbed itself, whose own clients wait with it.
    pub(crate) fn of_node(self) -> Option<usize> {
        matches!(self, Self::NodeStopped | Self::NodeSlow).then_some(0)
    }

    /// How many NATS servers it needs.
    pub(crate) fn servers(self) -> usize {
        if self == Self::NatsLame { 2 } else { 1 }
    }
}

/// Settings of `fleet`.
#[derive(Debug, Clone, Args, Serialize)]
pub(crate) struct Settings {
    /// Daemons; with one there is no NATS.
    #[arg(long, default_value_t = 3)]
    pub nodes: usize,
    /// Clients of each.
    #[arg(long, default_value_t = 3000)]
    pub clients: usize,
    /// Messages to all clients of all nodes in a second, from all nodes together.
    #[arg(long, default_value_t = 5.0, value_parser = parse_amount)]
    pub broadcasts: f64,
    /// Messages to single channels of another node in a second, from all nodes together.
    #[arg(long, default_value_t = 1000.0, value_parser = parse_amount)]
    pub unicasts: f64,
    /// Bytes of a message.
    #[arg(long, default_value = "128", value_parser = parse_size)]
    pub size: usize,
    /// How long, in seconds.
    #[arg(long, default_value_t = 10.0, value_parser = parse_positive)]
    pub seconds: f64,
    /// The pushring program to start [default: `pushring` beside this program].
    #[arg(long, value_name = "PROGRAM")]
    pub start: Option<PathBuf>,
    /// The nats-server to start [default: the one that is installed].
    #[arg(long, value_name = "PROGRAM")]
    pub nats: Option<PathBuf>,
    /// The fault, 5 s after the start; the run takes as long as that does, and 10 s more.
    #[arg(long)]
    pub fault: Option<Fault>,
    /// How long the fault lasts, in seconds.
    #[arg(long, default_value_t = 20.0, value_parser = parse_positive)]
    pub fault_seconds: f64,
    /// First run one node with as many clients in total, to compare the cost of a delivery.
    #[arg(long)]
    pub beside_one: bool,
    /// Run everything on loopback, even where network namespaces can be made.
    #[arg(long)]
    pub loopback: bool,
    /// Print JSON instead of a table.
    #[arg(long)]
    #[serde(skip)]
    pub json: bool,
}

impl Settings {
    /// How long a fault holds a node up.
    pub(crate) fn fault_time(&self) -> Duration {
        Duration::from_secs_f64(self.fault.map_or(0.0, |_| self.fault_seconds))
    }
}

/// State shared by all threads.
pub(super) struct Common<'a> {
    pub settings: &'a Settings,
    pub run: u32,
    /// Publishing may begin, and reading may end.
    pub begin: Barrier,
    pub is_over: AtomicBool,
    /// Messages to all that each node was given, and messages to single channels.
    pub broadcasts: Vec<AtomicU64>,
    pub unicasts: AtomicU64,
    /// Of those that each node was given, and of those for a channel of each: how many may have left for other nodes.
    pub left: Vec<AtomicU64>,
    pub left_for: Vec<AtomicU64>,
    pub received: AtomicU64,
    /// When the fault began and when all was well again; 0: not yet.
    pub began_ns: AtomicU64,
    pub ended_ns: AtomicU64,
}

/// When a message was published: while something was wrong, or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Before,
    Meanwhile,
    After,
}

impl Common<'_> {
    /// When a message was published that was sent at this time.
    pub(super) fn phase_of(&self, sent_ns: u64) -> Phase {
        let [began_ns, ended_ns] = [&self.began_ns, &self.ended_ns].map(|at_ns| at_ns.load(Ordering::Relaxed));
        match (began_ns, ended_ns) {
            (0, _) => Phase::Before,
            (began_ns, _) if sent_ns < began_ns => Phase::Before,
            (_, ended_ns) if ended_ns > 0 && sent_ns > ended_ns => Phase::After,
            _ => Phase::Meanwhile,
        }
    }
}
