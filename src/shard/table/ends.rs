//! Recording the ends of channels, for later questions about their reasons.

use crate::proto::close;
use crate::shard::core::Shard;
use crate::shard::disconnects::{Disconnect, WebSocketEnd};
use crate::shard::table::connection::{Connection, ConnectionPhase};
use crate::shard::table::slot::Slot;
use std::net::{IpAddr, SocketAddr};

impl Shard {
    /// Keeps the end of this WebSocket, whose tables still tell of it. Of HTTP connections nothing is kept.
    pub(in crate::shard) fn note_disconnect(&mut self, slot: Slot, end: &WebSocketEnd<'_>) {
        let connection = &self.table[slot];
        let (channel, process, path, ping_ms) = match &connection.phase {
            ConnectionPhase::Open(channel) => {
                let local = &self.owners[channel.owner];
                let process = Some(local.owner.process.clone());
                (Some(channel.id), process, local.path(channel.place).clone(), channel.ping_ms())
            }
            ConnectionPhase::Registering(_) => (None, None, "/".into(), None),
            ConnectionPhase::Http(_) | ConnectionPhase::Ending(_) => return,
        };
        let disconnect = Disconnect {
            unix_ms: self.time_of_day.ahead_ms.wrapping_add(self.now_ms),
            channel,
            process,
            path,
            peer: connection.peer.into(),
            forwarded_for: self.forwarded_for(connection),
            code: end.code,
            reason: close::cut(end.reason, close::REASON_BYTES_MAX).into(),
            by: end.by,
            lost_bytes: end.lost_bytes,
            age_s: self.now_s().saturating_sub(connection.since_s),
            silent_ms: u64::from((self.now_ms as u32).wrapping_sub(connection.heard_ms)),
            pings_unanswered: connection.pings_unanswered,
            ping_ms,
        };
        self.table.disconnects.push(disconnect);
    }

    pub(super) fn forwarded_for(&self, connection: &Connection) -> Option<IpAddr> {
        let peer: SocketAddr = connection.peer.into();
        let is_proxy = self.owners.directory().gateway.settings().is_trusted_proxy(peer.ip());
        connection.client.filter(|_| is_proxy).map(IpAddr::from)
    }

    /// The shard's own time in seconds.
    pub(in crate::shard) fn now_s(&self) -> u32 {
        (self.now_ms / 1000) as u32
    }
}
