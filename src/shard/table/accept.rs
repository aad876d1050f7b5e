//! Admission of new connections and their handshakes: how each is counted.
//!
//! A client that connects directly is counted by its socket's address from the start; one that a balancer relays, once
//! the PROXY header has given its address. Behind a trusted proxy a connection is the proxy's, and may carry requests
//! of many clients, until it becomes a WebSocket: then it is its client's for life, and counted by the address that the
//! proxy forwards.
//!
//! Invariants: what was counted is uncounted once, in [`Shard::remove`](crate::shard::core::Shard); a client over a
//! limit gets a 503, or nothing where too many such answers are being sent already.

use crate::admission::{LimitReached, Notice, Prefix};
use crate::gateway::{self, Settings};
use crate::http::{Head, PreparedResponse};
use crate::shard::core::Shard;
use crate::shard::flush::SocketId;
use crate::shard::intake::exchange::Exchange;
use crate::shard::owners::directory::Owner;
use crate::shard::table::connection::{
    Connection, ConnectionFlags, ConnectionPhase, ConnectionToken, Flag, Handshaking, ListenerKind, Sealed, Tls,
};
use crate::shard::table::slot::Slot;
use crate::shard::work;
use crate::tls::{Records, TlsServer};
use std::net::SocketAddr;

/// The work that the TLS handshakes of one client may cause in a second: a third of a core, as its upgrades may at
/// most.
const CLIENT_HANDSHAKES_NS_PER_S: u64 = 333_000_000;

impl Shard {
    /// A new connection. The answer names it from now on; `None` if there is no telling it more: close its socket.
    pub fn handle_accept(&mut self, socket: SocketId, peer: SocketAddr, now_ms: u64) -> Option<ConnectionToken> {
        self.handle_accept_at(ListenerKind::Plain, socket, peer, now_ms)
    }

    /// A new connection at one of the listeners.
    pub fn handle_accept_at(
        &mut self,
        listener: ListenerKind,
        socket: SocketId,
        peer: SocketAddr,
        now_ms: u64,
    ) -> Option<ConnectionToken> {
        self.now_ms = now_ms;
        self.stats.accepted += 1;
        self.work.spend(work::ACCEPT_NS);
        let has_proxy_header = self.owners.directory().gateway.settings().sends_proxy_header(peer.ip());
        let client = if has_proxy_header { None } else { self.client_at(peer) };
        let mut entered = self.table.admission.enter(client, now_ms);
        if let Err(over) = entered
            && self.make_room(over, client)
        {
            entered = self.table.admission.enter(client, now_ms);
        }
        // There is no word without a handshake, which would cost what the limit saves.
        let shakes = listener == ListenerKind::Tls;
        if entered.is_err() && (shakes || !self.table.admission.begin_turning_away()) {
            self.stats.let_go += 1;
            self.notice(Notice::ClosedUnanswered, || peer.ip().to_string());
            return None;
        }
        let Ok(tls) = self.tls_of(listener, client) else {
            self.table.admission.leave(client, now_ms);
            self.tls_counts.let_go += 1;
            self.notice(Notice::Handshakes, || peer.ip().to_string());
            return None;
        };
        let has_proxy_header = has_proxy_header && entered.is_ok();
        let slot = self.insert(socket, peer, client.filter(|_| entered.is_ok()), has_proxy_header, tls);
        if shakes {
            self.set_deadline(slot, now_ms + self.config.tls_handshake_timeout_ms);
            self.weigh(slot);
        }
        if let Err(over) = entered {
            self.table[slot].flags.set(Flag::TurnedAway);
            let refusal = self.refuse(slot, over);
            self.answer(slot, refusal);
        }
        Some(self.table.token(slot))
    }

    /// A connection that has been counted as `client`'s.
    pub(super) fn insert(
        &mut self,
        socket: SocketId,
        peer: SocketAddr,
        client: Option<Prefix>,
        has_proxy_header: bool,
        tls: Option<Box<Tls>>,
    ) -> Slot {
        let (now_ms, over_tls) = (self.now_ms, tls.is_some());
        let deadline_ms = now_ms + self.config.head_timeout_ms;
        self.table.over_tls += usize::from(over_tls);
        // Never 0: tokens of that generation are the driver's own.
        self.table.next_generation = self.table.next_generation.wrapping_add(1).max(1);
        let generation = self.table.next_generation;
        let slot = Slot::new(self.table.connections.insert(Connection {
            socket,
            generation,
            flags: ConnectionFlags::default(),
            pings_unanswered: 0,
            policy: None,
            close_bytes: 0,
            close_code: 0,
            peer: peer.into(),
            client,
            outbound: Default::default(),
            phase: ConnectionPhase::Http(Box::new(Exchange::new(
                self.config.http_limits(),
                has_proxy_header,
                over_tls,
            ))),
            unparsed: None,
            tls,
            deadline_tick: Self::tick_of(deadline_ms),
            heard_ms: now_ms as u32,
            pinged_ms: 0,
            wheel_tick: Connection::NO_TICK,
            since_s: (now_ms / 1000) as u32,
            control_s: 0,
            control_frames: 0,
        }) as u32);
        self.schedule(slot, deadline_ms);
        slot
    }

    /// As what a connection from `address` counts, if it does.
    fn client_at(&self, address: SocketAddr) -> Option<Prefix> {
        let is_proxy = self.owners.directory().gateway.settings().is_trusted_proxy(address.ip());
        if is_proxy { None } else { self.table.admission.client(address.ip()) }
    }

    /// Counts a connection whose client is known only now. A client over a limit is told so.
    pub(in crate::shard) fn count_once_known(&mut self, slot: Slot) {
        let address: SocketAddr = self.table[slot].peer.into();
        let Some(client) = self.client_at(address) else { return };
        match self.table.admission.enter_client(client, self.now_ms) {
            Ok(()) => {
                self.table[slot].client = Some(client);
                let server = self.config.tls.as_ref().filter(|_| self.table[slot].is_shaking());
                if server.is_some_and(|server| !self.may_shake(client, server)) {
                    self.tls_counts.let_go += 1;
                    self.notice(Notice::Handshakes, || address.ip().to_string());
                    self.remove(slot);
                }
            }
            Err(over) if self.table.admission.begin_turning_away() => {
                self.table.admission.leave(None, self.now_ms);
                self.table[slot].flags.set(Flag::TurnedAway);
                let refusal = self.refuse(slot, over);
                self.answer(slot, refusal);
            }
            Err(_) => {
                self.stats.let_go += 1;
                self.notice(Notice::ClosedUnanswered, || address.ip().to_string());
                self.remove(slot);
            }
        }
    }

    /// The TLS state of a connection at `listener`, if it has one. `Err`: its client makes too many handshakes, or the
    /// server cannot make one.
    fn tls_of(&self, listener: ListenerKind, client: Option<Prefix>) -> Result<Option<Box<Tls>>, ()> {
        match listener {
            ListenerKind::Plain => Ok(None),
            ListenerKind::Established(state) => Ok(Some(Box::new(Tls::Open(Sealed::new(Records::new(*state)))))),
            ListenerKind::Tls => {
                let server = self.config.tls.as_ref().ok_or(())?;
                if client.is_some_and(|client| !self.may_shake(client, server)) {
                    return Err(());
                }
                let shaking =
                    Handshaking { handshake: server.handshake(), since_ms: self.now_ms as u32, held_bytes: 0 };
                Ok(Some(Box::new(Tls::Shaking(Box::new(shaking)))))
            }
        }
    }

    /// Counts a handshake of TLS. Returns whether this client may do it: a third of a core, whatever the server's key
    /// costs.
    fn may_shake(&self, client: Prefix, server: &TlsServer) -> bool {
        let rate = u32::try_from(CLIENT_HANDSHAKES_NS_PER_S / server.price_ns().max(1)).unwrap_or(u32::MAX);
        self.table.admission.take_tls_handshake(client, rate, self.now_ms)
    }

    /// The client is gone.
    pub(in crate::shard) fn uncount(&self, connection: &Connection) {
        if connection.flags.has(Flag::TurnedAway) {
            self.table.admission.end_turning_away();
        } else if !connection.flags.has(Flag::Uncounted) {
            self.table.admission.leave(connection.client, self.now_ms);
        }
    }

    /// The client that an upgrade request is counted for, if any.
    pub(in crate::shard) fn client_of(&self, slot: Slot, settings: &Settings, head: &Head<'_>) -> Option<Prefix> {
        let connection = &self.table[slot];
        let peer: SocketAddr = connection.peer.into();
        if !settings.is_trusted_proxy(peer.ip()) {
            return connection.client;
        }
        let ip = gateway::client_ip(peer, head, &settings.trusted_proxies);
        // A proxy that forwards no address speaks for itself, or is set up wrongly: not its clients' fault.
        (!settings.is_trusted_proxy(ip)).then(|| self.table.admission.client(ip)).flatten()
    }

    /// The answer to an upgrade request of a client that shakes hands too often.
    pub(in crate::shard) fn refuse_handshake(
        &mut self,
        slot: Slot,
        client: Option<Prefix>,
    ) -> Option<PreparedResponse> {
        if client.is_none_or(|client| self.table.admission.take_handshake(client, self.now_ms)) {
            return None;
        }
        self.stats.handshakes_refused += 1;
        self.notice(Notice::Handshakes, || self.peer_for_log(slot));
        let full = PreparedResponse::text(503, "too many connections per second from your address");
        Some(full.with("retry-after", "1").closing())
    }

    /// Counts a connection of a proxy that becomes a WebSocket as its client's. The answer is the refusal, if it is
    /// one.
    pub(in crate::shard) fn count_forwarded(&mut self, slot: Slot, client: Option<Prefix>) -> Option<PreparedResponse> {
        let client = client.filter(|_| self.table[slot].client.is_none())?;
        match self.table.admission.enter_client(client, self.now_ms) {
            Ok(()) => self.table[slot].client = Some(client),
            Err(over) => return Some(self.refuse(slot, over)),
        }
        None
    }

    /// Counts a connection as one of a process. Returns whether it may have one more.
    pub(in crate::shard) fn count_of_process(&mut self, owner: &Owner) -> bool {
        let enter = |shard: &Self| {
            shard.table.admission.enter_process(&owner.connections, shard.owners.directory().owners.size())
        };
        enter(self) || (self.make_room_for_process(owner) && enter(self))
    }

    /// The answer where it may not.
    pub(in crate::shard) fn refuse_for_process(&mut self, owner: &Owner) -> PreparedResponse {
        self.stats.turned_away += 1;
        self.stats.turned_away_per_process += 1;
        let why = format!("{} has as many connections as one process may have", owner.process);
        PreparedResponse::text(503, why).with("retry-after", "5").closing()
    }

    fn refuse(&mut self, slot: Slot, over: LimitReached) -> PreparedResponse {
        let kind = if over == LimitReached::Total { Notice::Connections } else { Notice::ConnectionsPerIp };
        self.notice(kind, || self.peer_for_log(slot));
        let why = match over {
            LimitReached::Total => "the server has as many connections as it takes",
            LimitReached::PerIp => "there are as many connections from your address as the server takes",
        };
        self.stats.turned_away += 1;
        self.stats.turned_away_per_ip += u64::from(over == LimitReached::PerIp);
        PreparedResponse::text(503, why).with("retry-after", "5").closing()
    }
}

#[cfg(test)]
mod tests {
    use crate::admission::Budget;
    use crate::shard::config::ShardConfig;
    use crate::shard::stage::Stage;

    #[test]
    fn no_connection_has_the_drivers_own_generation() {
        let mut stage = Stage::new(ShardConfig::default(), Budget::default());
        stage.shard.table.next_generation = u32::MAX - 1;
        let generations = [(); 3].map(|()| stage.connect().0.generation);
        assert_eq!(generations, [u32::MAX, 1, 2]);
    }
}
