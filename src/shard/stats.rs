//! What a shard counts: plain numbers, read by asking the shard ([`super::command::Command::Report`]).

use super::core::Shard;
use super::memory::MemoryReport;

/// Counts since the shard began. The broker adds those of its shards.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Connections accepted.
    pub accepted: u64,
    /// Clients answered 503 because there were too many connections.
    pub turned_away: u64,
    /// Those of them whose own address had too many.
    pub turned_away_per_ip: u64,
    /// Clients answered 503 because their address had too many handshakes per second.
    pub handshakes_refused: u64,
    /// Clients let go without a word, since too many were being turned away.
    pub let_go: u64,
    /// Channels opened.
    pub opened: u64,
    /// Channels closed, by who ended them, in the order of [`super::event::ClosedBy`].
    pub closed: [u64; 7],
    /// Orders obeyed.
    pub commands: u64,
    /// Frames pushed to channels, each channel counted.
    pub pushed: u64,
    /// Pushes to channels that do not exist or belong to another process.
    pub pushes_unknown: u64,
    /// Frames that waited behind a full socket.
    pub queued: u64,
    /// Frames that took the place of an older one of their key.
    pub conflated: u64,
    /// Frames that a policy dropped.
    pub dropped: u64,
    /// Frames refused because the channel was closing.
    pub refused_closing: u64,
    /// Channels closed because their budget was exceeded.
    pub closed_over_budget: u64,
    /// Frames dropped because memory was short; they are among `dropped` too.
    pub dropped_for_memory: u64,
    /// Connections closed, or requests refused, because memory was short.
    pub closed_for_memory: u64,
    /// Channels closed because pings were not answered.
    pub timed_out: u64,
    /// Sends, each of one connection's queue.
    pub sends: u64,
    /// Sends that did not take all they were offered.
    pub short_sends: u64,
    /// Bytes that sockets took.
    pub sent_bytes: u64,
    /// Messages received.
    pub received: u64,
    /// Bytes received.
    pub received_bytes: u64,
    /// Clients that broke the protocol.
    pub violations: u64,
    /// HTTP requests, upgrades included.
    pub requests: u64,
    /// Registrations refused.
    pub registrations_refused: u64,
}

/// A shard at one moment.
#[derive(Debug, Clone, Copy)]
pub struct Report {
    /// Which.
    pub shard: u32,
    /// Live connections.
    pub connections: usize,
    /// Live channels.
    pub channels: usize,
    /// Bytes that wait for their first send.
    pub window_bytes: usize,
    /// What it holds for clients and processes.
    pub memory: MemoryReport,
    /// Counts.
    pub stats: Stats,
}

impl Shard {
    /// The shard as it is now.
    pub fn report(&self) -> Report {
        Report {
            shard: self.index,
            connections: self.connections.len(),
            channels: self.channels.len(),
            window_bytes: self.window.bytes(),
            memory: self.memory_report(),
            stats: self.stats,
        }
    }
}
