//! The last channels that ended on this shard, and why: what an operator looks up when a user reports "I was
//! disconnected".
//!
//! A ring of plain records, filled where a channel ends and read by asking the shard
//! ([`super::command::Command::Disconnects`]). It holds only what is known anyway; nothing is counted for it per
//! message. Clients that opened a WebSocket and never became a channel are in it too, without a channel id.

use super::event::ClosedBy;
use crate::channel::ChannelId;
use crate::process_id::ProcessId;
use crate::proto::close;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// How many a broker tells of. Each shard keeps as many, some 200 bytes each, so that those of all shards together are
/// the last ones however unevenly they end.
pub const DISCONNECTS_MAX: usize = 1_000;

/// As much is kept of a path, so that what the ring takes does not depend on what processes bind.
pub(super) const PATH_BYTES_MAX: usize = 256;

/// The end of one channel, or of a WebSocket that never became one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disconnect {
    /// When, in milliseconds after 1970.
    pub unix_ms: u64,
    /// Its id; none where the client had not registered.
    pub channel: Option<ChannelId>,
    /// Whose it was.
    #[serde(default, deserialize_with = "crate::process_id::read_back_option")]
    pub process: Option<ProcessId>,
    /// The bound path, without the process id, cut to 256 bytes; `/` where the client had not registered.
    pub path: Arc<str>,
    /// The other end of the connection.
    pub peer: SocketAddr,
    /// The client as a trusted proxy forwarded it (of an IPv6 address the /64); none where there was none.
    pub forwarded_for: Option<IpAddr>,
    /// The close code: see [`super::event::Closed::code`].
    pub code: u16,
    /// The reason in words, perhaps empty: as much of it as a close frame holds.
    pub reason: Box<str>,
    /// The side that ended it.
    pub by: ClosedBy,
    /// Bytes of accepted pushes that never left.
    pub lost_bytes: usize,
    /// How long it had been open, in seconds.
    pub age_s: u32,
    /// How long the client had said nothing, in milliseconds.
    pub silent_ms: u64,
    /// Pings of ours that were not answered.
    pub pings_unanswered: u8,
    /// The round trip of our last answered ping, in milliseconds; none where there was none, or it took over a minute.
    pub ping_ms: Option<u16>,
}

/// See the module.
#[derive(Default)]
pub(super) struct Disconnects(VecDeque<Disconnect>);

impl Disconnects {
    pub(super) fn push(&mut self, mut disconnect: Disconnect) {
        if disconnect.path.len() > PATH_BYTES_MAX {
            disconnect.path = close::cut(&disconnect.path, PATH_BYTES_MAX).into();
        }
        if self.0.len() == DISCONNECTS_MAX {
            self.0.pop_front();
        }
        self.0.push_back(disconnect);
    }

    pub(super) fn to_vec(&self) -> Vec<Disconnect> {
        self.0.iter().cloned().collect()
    }
}

/// How a WebSocket ended.
pub(super) struct WebSocketEnd<'a> {
    pub code: u16,
    pub reason: &'a str,
    pub by: ClosedBy,
    pub lost_bytes: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ring_keeps_the_last_ones() {
        let mut ring = Disconnects::default();
        for unix_ms in 0..DISCONNECTS_MAX as u64 + 5 {
            ring.push(Disconnect {
                unix_ms,
                channel: None,
                process: None,
                path: "/é".repeat(PATH_BYTES_MAX).into(),
                peer: ([127, 0, 0, 1], 1).into(),
                forwarded_for: None,
                code: 1000,
                reason: "".into(),
                by: ClosedBy::Client,
                lost_bytes: 0,
                age_s: 0,
                silent_ms: 0,
                pings_unanswered: 0,
                ping_ms: None,
            });
        }
        let kept = ring.to_vec();
        assert_eq!((kept.len(), kept[0].unix_ms, kept[kept.len() - 1].unix_ms), (DISCONNECTS_MAX, 5, 1004));
        let longest = kept.iter().map(|disconnect| disconnect.path.len()).max().unwrap();
        assert!((PATH_BYTES_MAX - 3..=PATH_BYTES_MAX).contains(&longest), "{longest}");
    }
}
