//! The PROXY header at the beginning of a balancer's connection: it is removed before anything else reads the
//! connection, TLS included, and gives the address of the client.
//!
//! Invariants: the header must come within `head_timeout` of the connect (at the TLS listener, within the time for the
//! handshake) from the proxies configured to send it, and is not looked for from other peers; nothing of the connection
//! is answered before it has come; a relayed client is never treated as local to this machine.

use crate::admission::Notice;
use crate::gateway::proxy_protocol::{ProxiedSource, ProxyHeader};
use crate::shard::core::Shard;
use crate::shard::table::connection::{ConnectionPhase, Flag};
use crate::shard::table::slot::Slot;

impl Shard {
    /// The part of `bytes` after the header: all of them if none is expected or it has come before. `None`: there is
    /// nothing more to read now, and the connection may be gone.
    pub(in crate::shard) fn behind_proxy_header<'b>(
        &mut self,
        slot: Slot,
        bytes: &'b mut [u8],
    ) -> Option<&'b mut [u8]> {
        match &self.table[slot].phase {
            ConnectionPhase::Http(exchange) if exchange.proxy_header.is_some() => self.take_proxy_header(slot, bytes),
            _ => Some(bytes),
        }
    }

    fn take_proxy_header<'b>(&mut self, slot: Slot, bytes: &'b mut [u8]) -> Option<&'b mut [u8]> {
        let ConnectionPhase::Http(exchange) = &mut self.table[slot].phase else { return None };
        let held = exchange.proxy_header.as_mut()?;
        let held_bytes = held.len();
        let parsed = if held.is_empty() {
            ProxyHeader::parse(bytes)
        } else {
            held.extend_from_slice(bytes);
            ProxyHeader::parse(held)
        };
        match parsed {
            Ok(Some(header)) => {
                exchange.proxy_header = None;
                if self.table[slot].flags.has(Flag::Holds) {
                    self.weigh(slot);
                }
                let generation = self.table[slot].generation;
                self.relayed_for(slot, header.source);
                let rest = &mut bytes[header.bytes - held_bytes..];
                if !self.table.is_alive(slot, generation) || rest.is_empty() {
                    return None;
                }
                if self.table[slot].is_shaking() {
                    self.hold(slot, rest);
                    return None;
                }
                Some(rest)
            }
            // Less than the longest header is kept: with as much, it would be whole or no header.
            Ok(None) => {
                if held_bytes == 0 {
                    held.extend_from_slice(bytes);
                }
                self.weigh(slot);
                None
            }
            Err(error) => {
                self.stats.proxy_headers_refused += 1;
                self.notice(Notice::ProxyHeader, || format!("{}: {error}", self.peer_for_log(slot)));
                self.remove(slot);
                None
            }
        }
    }

    /// The connection is that of this client, and is counted for it.
    fn relayed_for(&mut self, slot: Slot, source: ProxiedSource) {
        let connection = &mut self.table[slot];
        match source {
            ProxiedSource::Client(address) => {
                connection.peer = address.into();
                connection.flags.set(Flag::Relayed);
            }
            ProxiedSource::Unknown => connection.flags.set(Flag::Relayed),
            ProxiedSource::Proxy => {}
        }
        self.count_once_known(slot);
    }
}
