//! The inbound path through TLS: a handshake, then records, which are opened in the read buffer.
//!
//! Until a handshake is over nothing is parsed and nothing but the handshake is sent. After it the data of all records
//! of a read is joined and handled like any other bytes; an incomplete record at the end of a read is kept with the
//! connection, and the next read is appended to it.
//!
//! Invariants: a handshake spends its cost from the turn's budget when keys are exchanged; the client is sent the alert
//! that matches the reason why TLS ends, and an end without close_notify is distinguished from one with it.

use crate::admission::Prefix;
use crate::shard::core::{Effect, Shard};
use crate::shard::event::ClosedBy;
use crate::shard::table::connection::{ConnectionToken, Flag, Sealed, SocketEnd, Tls};
use crate::shard::table::slot::Slot;
use crate::shard::work::{self, copy_ns};
use crate::tls::{Alert, Established, HandshakeFailure, HandshakeStep, PRICE_NS_RESUMED, ReceiveEnd, Records};
use std::net::SocketAddr;

/// Why a channel ended that was ended without close_notify (RFC 8446 6.1).
pub(in crate::shard) const TRUNCATED: &str = "the client ended TLS without close_notify: what it said last may be lost";

impl Shard {
    /// Puts the kept part of an incomplete record at the start of `buffer`; the next read follows it, and
    /// [`handle_read`](Self::handle_read) is given both. Returns its length.
    pub fn carried(&self, token: ConnectionToken, buffer: &mut [u8]) -> usize {
        let Some(slot) = self.table.resolve(token) else { return 0 };
        let connection = &self.table[slot];
        let bytes = connection.carried_bytes();
        if let Some(Tls::Open(open)) = connection.tls.as_deref() {
            buffer[..bytes].copy_from_slice(&open.carried[..bytes]);
        }
        bytes
    }

    /// Whose this connection is, if it shakes hands: it is read apart from others, for that is dear. Behind a balancer
    /// only its PROXY header says whose it is, which is read like anything.
    pub(in crate::shard) fn shaking_client(&self, token: ConnectionToken) -> Option<Prefix> {
        let connection = &self.table[self.table.resolve(token)?];
        let shakes = connection.is_shaking() && !connection.awaits_proxy_header();
        shakes.then(|| SocketAddr::from(connection.peer).ip().into())
    }

    /// What came with a PROXY header waits until it is its client's turn.
    pub(in crate::shard) fn hold(&mut self, slot: Slot, bytes: &[u8]) {
        let Some(Tls::Shaking(shaking)) = self.table[slot].tls.as_deref_mut() else { return };
        shaking.handshake.hold(bytes);
        shaking.held_bytes = bytes.len();
        self.weigh(slot);
        self.effects.push(Effect::Read(self.table.token(slot)));
    }

    /// It was this connection's turn. If nothing has come, what was [held](Self::hold) is all there is.
    pub(in crate::shard) fn shake_on(&mut self, token: ConnectionToken) {
        let Some(slot) = self.table.resolve(token) else { return };
        let connection = &self.table[slot];
        let has_held = matches!(connection.tls.as_deref(), Some(Tls::Shaking(shaking)) if shaking.held_bytes > 0);
        if has_held && !connection.is_paused() {
            self.shake(slot, &[]);
        }
    }

    /// The work that the handshakes of one turn may cause.
    pub(in crate::shard) fn handshakes_ns(&self) -> u64 {
        let price_ns = self.config.tls.as_ref().map_or(0, |server| server.price_ns());
        price_ns * u64::from(self.config.tls_handshakes_per_turn)
    }

    /// Bytes of a client that came over TLS.
    pub(in crate::shard) fn receive_records(&mut self, slot: Slot, bytes: &mut [u8]) {
        match self.table[slot].tls.as_deref_mut() {
            Some(Tls::Shaking(_)) => self.shake(slot, bytes),
            Some(Tls::Open(open)) => {
                let opened = open.records.open(bytes, (self.now_ms / 1000) as u32);
                open.carried = bytes[bytes.len() - opened.rest..].into();
                open.ended = open.ended.or(opened.ended);
                self.work.spend(work::open_ns(opened.records, bytes.len()));
                let token = self.table.token(slot);
                match &mut bytes[..opened.plain] {
                    // Nothing was said: a record is not whole, or there is none of data.
                    [] => self.weigh_incoming(slot),
                    plain => self.receive(slot, plain),
                }
                // It may be gone, or go on as a channel elsewhere, which then ends there.
                if !self.table.is_alive(slot, token.generation) {
                    return;
                }
                if opened.is_answer_due {
                    self.answer_new_keys(slot);
                }
                self.end_records(slot);
            }
            None => {}
        }
    }

    /// What a client's records have ended with comes behind their data: while some of that may not be parsed yet, its
    /// client is one that hangs up.
    pub(in crate::shard) fn end_records(&mut self, slot: Slot) {
        let token = self.table.token(slot);
        let connection = &mut self.table[slot];
        let must_wait = connection.is_paused() || connection.unparsed.is_some();
        let Some(Tls::Open(open)) = connection.tls.as_deref_mut() else { return };
        if must_wait && open.ended.is_some() {
            self.handle_hangup(token, SocketEnd::Finished);
            return self.hurry_end(slot);
        }
        match open.ended.take() {
            None => {}
            Some(ReceiveEnd::CloseNotify) => self.heard_goodbye(token, slot),
            Some(ReceiveEnd::Told(alert)) => self.gave_up(slot, alert),
            Some(ReceiveEnd::Broken(alert)) => self.refuse_records(slot, alert),
        }
    }

    /// A peer that asks for new keys is given them, though there be nothing to say (RFC 8446 4.6.3).
    fn answer_new_keys(&mut self, slot: Slot) {
        let Some(Tls::Open(open)) = self.table[slot].tls.as_deref_mut() else { return };
        if open.has_said_goodbye {
            return;
        }
        let mut record = Vec::new();
        open.records.seal_due(&mut record);
        self.send_records(slot, &record);
    }

    fn heard_goodbye(&mut self, token: ConnectionToken, slot: Slot) {
        if let Some(Tls::Open(open)) = self.table[slot].tls.as_deref_mut() {
            open.has_heard_goodbye = true;
        }
        self.handle_end(token, SocketEnd::Finished, self.now_ms);
    }

    /// A client that is done is told by `close_notify` that we are, too, before its connection is closed (RFC 8446
    /// 6.1), and nothing else any more. Returns whether the connection stays open for that.
    pub(in crate::shard) fn answer_goodbye(&mut self, slot: Slot) -> bool {
        let owes_goodbye = self.table[slot].owes_goodbye();
        let Some(Tls::Open(open)) = self.table[slot].tls.as_deref_mut().filter(|_| owes_goodbye) else { return false };
        open.has_said_goodbye = true;
        let mut record = Vec::new();
        open.records.seal_alert(Alert::CLOSE_NOTIFY, &mut record);
        // Nothing more comes that could turn the close into a reset.
        self.table[slot].flags.set(Flag::HalfClosed);
        self.send_only_records(slot, &record);
        self.end_connection(slot);
        true
    }

    /// The client says by an alert that it goes. It is told nothing any more.
    fn gave_up(&mut self, slot: Slot, alert: Alert) {
        self.tls_counts.alert_received(alert);
        if let Some(Tls::Open(open)) = self.table[slot].tls.as_deref_mut() {
            (open.has_heard_goodbye, open.has_said_goodbye) = (true, true);
        }
        self.connection_failed_for(slot, &format!("the client ended TLS with the alert {alert}"));
    }

    /// The client has broken TLS: it is told so, and nothing else any more (RFC 8446 6.2).
    fn refuse_records(&mut self, slot: Slot, alert: Alert) {
        self.tls_counts.alert_sent(alert);
        let mut record = Vec::new();
        if let Some(Tls::Open(open)) = self.table[slot].tls.as_deref_mut()
            && !std::mem::replace(&mut open.has_said_goodbye, true)
        {
            open.records.seal_alert(alert, &mut record);
        }
        self.stats.violations += 1;
        self.break_off(slot, &format!("the client broke TLS: {alert}"), ClosedBy::Violation);
        self.send_only_records(slot, &record);
        self.end_connection(slot);
    }

    fn shake(&mut self, slot: Slot, bytes: &[u8]) {
        let Some(Tls::Shaking(shaking)) = self.table[slot].tls.as_deref_mut() else { return };
        let (mut out, since_ms) = (Vec::new(), shaking.since_ms);
        self.work.spend(work::shake_ns(bytes.len() + std::mem::take(&mut shaking.held_bytes)));
        match shaking.handshake.receive(bytes, &mut out) {
            HandshakeStep::Goes { has_answered } => {
                if has_answered {
                    self.work.spend(self.price_ns());
                }
                self.send_records(slot, &out);
                self.weigh(slot);
            }
            HandshakeStep::Done(done) => {
                self.tls_counts.done(done.is_resumed, (self.now_ms as u32).wrapping_sub(since_ms));
                self.established(slot, *done, &out);
            }
            HandshakeStep::Failed(failure) => self.handshake_failed(slot, &failure, &out),
        }
    }

    /// The work of a handshake with a key exchange. Whether it resumes an earlier session is known only at its end;
    /// that saves little.
    fn price_ns(&self) -> u64 {
        self.config.tls.as_ref().map_or(PRICE_NS_RESUMED, |server| server.price_ns())
    }

    fn established(&mut self, slot: Slot, done: Established, out: &[u8]) {
        let Established { state, mut rest, .. } = done;
        // Where the handshake stood: what lives long is not allocated among what goes away.
        if let Some(tls) = self.table[slot].tls.as_deref_mut() {
            *tls = Tls::Open(Sealed::new(Records::new(state)));
        }
        self.send_records(slot, out);
        self.set_deadline(slot, self.now_ms + self.config.head_timeout_ms);
        self.work.spend(copy_ns(rest.len()));
        self.receive_records(slot, &mut rest);
        if self.table.contains(slot) {
            self.weigh(slot);
        }
    }

    fn handshake_failed(&mut self, slot: Slot, failure: &HandshakeFailure, out: &[u8]) {
        self.tls_counts.failed(failure.alert, failure.by_client);
        // Keys may have been exchanged, and signed for, before it failed by what came along.
        self.work.spend(self.price_ns());
        if out.is_empty() {
            return self.remove(slot);
        }
        self.send_records(slot, out);
        self.end_connection(slot);
    }

    /// The time for a handshake is up. The client is not told: TLS has no alert for it.
    pub(in crate::shard) fn handshake_expired(&mut self, slot: Slot) {
        self.tls_counts.timed_out += 1;
        self.remove(slot);
    }
}
