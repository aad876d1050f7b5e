//! Channels whose connection is lost: each waits for its client to come back, then ends as any channel does.
//!
//! Invariants: a detached channel keeps its place in the table, and counts there against all limits; it has no socket,
//! and nothing waits for it but what is in its log; where a limit is reached, the channels detached longest end first,
//! whichever shard has them: what another shard lets go of here is counted no more, and its end follows.
//! A channel that ended while detached is remembered for a while, so that its client can be told what it has lost.

use super::detached::EndedChannel;
use super::slot::Slot;
use crate::admission::{EvictFrom, EvictedChannel, LimitReached, Prefix};
use crate::channel::ChannelId;
use crate::proto;
use crate::shard::core::{Effect, Shard};
use crate::shard::event::{ClosedBy, Event};
use crate::shard::flush::SocketId;
use crate::shard::owners::directory::Owner;
use crate::shard::table::connection::{Channel, ConnectionPhase, Flag};
use crate::shard::work;

/// Stands for the socket of a place without a connection.
const NO_SOCKET: SocketId = SocketId(-1);

/// The code of an end without a close frame (RFC 6455 7.1.5).
const NO_CLOSE_FRAME: u16 = 1006;

/// The flags that stay when the socket goes: those of lists, and those of the channel.
pub(super) const OF_CHANNEL: u32 =
    Flag::Urgent.bit() | Flag::Bulk.bit() | Flag::InBatch.bit() | Flag::Kept.bit() | Flag::Lags.bit();

/// Those of a channel to which its client cannot come back, though it is not gone yet: it is being closed, or its
/// client broke the protocol and is about to be told so.
pub(super) const ENDS_FOR_GOOD: u32 = Flag::CloseSent.bit() | Flag::Failing.bit();

impl Shard {
    /// The connection of a channel has ended without a close frame. Returns whether the channel outlives it: then it
    /// waits.
    pub(in crate::shard) fn detach(&mut self, slot: Slot) -> bool {
        let connection = &self.table[slot];
        let may_come_back = connection.flags.has(Flag::Kept)
            && !connection.flags.has_any(ENDS_FOR_GOOD)
            && connection.channel().is_some()
            && !self.is_stopping();
        if !may_come_back {
            return false;
        }
        if !self.part_from_socket(slot) {
            self.effects.push(Effect::Abandon(self.table[slot].socket));
        }
        self.work.spend(work::EFFECT_NS);
        self.let_go_of_socket(slot);
        let connection = &mut self.table[slot];
        connection.socket = NO_SOCKET;
        connection.flags.set(Flag::Detached);
        self.begin_wait(slot);
        self.stats.detached += 1;
        self.set_deadline(slot, self.now_ms + self.config.resume.window_ms);
        self.tell_holder(slot, |channel| Event::Detached { channel });
        true
    }

    /// A client that has said over TLS that it is done is told so in kind (RFC 8446 6.1), which takes one send of a
    /// connection apart from the channel. Returns whether its socket is that connection's now; one that takes nothing
    /// is not waited for.
    fn part_from_socket(&mut self, slot: Slot) -> bool {
        let connection = &mut self.table[slot];
        if !connection.owes_goodbye() || connection.outbound.is_blocked() {
            return false;
        }
        let (socket, peer, tls) = (connection.socket, connection.peer.into(), connection.tls.take());
        let sealed = connection.outbound.sealed().to_vec();
        self.table.over_tls -= 1;
        let apart = self.insert(socket, peer, None, false, tls);
        self.table[apart].flags.set(Flag::Uncounted);
        self.effects.push(Effect::Watch(socket, self.table.token(apart)));
        self.send_records(apart, &sealed);
        self.answer_goodbye(apart)
    }

    /// Drops the state of the connection rather than of its channel: queued bytes count as sent, and the client will
    /// report which of them arrived.
    pub(super) fn let_go_of_socket(&mut self, slot: Slot) {
        self.settle_as_queued(slot);
        let connection = &mut self.table[slot];
        if connection.flags.has(Flag::Holds) {
            self.memory.forget(slot);
        }
        self.table.over_tls -= usize::from(connection.tls.take().is_some());
        let connection = &mut self.table[slot];
        self.out.let_go_of_connection(connection, slot);
        connection.unparsed = None;
        connection.pings_unanswered = 0;
        (connection.close_bytes, connection.control_frames) = (0, 0);
        let waits_for_owner = connection.flags.has(Flag::WaitsForOwner);
        connection.flags.keep_only(OF_CHANNEL);
        let ConnectionPhase::Open(channel) = &mut connection.phase else { return };
        let (owner, local) = (channel.owner, &self.owners[channel.owner]);
        if let Some(agreed) = channel.ws.deflate() {
            local.owner.windows.leave(agreed.server_window_bits());
        }
        channel.ws = proto::WebSocketConnection::new(None);
        channel.violation = None;
        channel.ping_ms = Channel::NO_PING;
        if waits_for_owner {
            self.stop_waiting_for_owner(owner);
        }
    }

    /// Tells the owner of a kept channel, if it wants such events.
    pub(super) fn tell_holder(&mut self, slot: Slot, event: impl FnOnce(ChannelId) -> Event) {
        if self.out.kept_channels.get(&slot).is_some_and(|kept_channel| kept_channel.tells)
            && let Some(channel) = self.table[slot].channel()
        {
            let (id, owner) = (channel.id, channel.owner);
            self.owners.emit(owner, event(id));
        }
    }

    /// A channel that waits for its client ends, and this is what its owner is told.
    pub(in crate::shard) fn end_detached(&mut self, slot: Slot, code: u16, reason: &str, by: ClosedBy) {
        let lost = self.queued_bytes(slot);
        if let Some(kept_channel) = self.out.kept_channels.get(&slot)
            && let Some(channel) = self.table[slot].channel()
        {
            let (tokens, holder, position) = (kept_channel.tokens, kept_channel.holder, kept_channel.log.position());
            self.table.detached.remember(channel.id, EndedChannel { tokens, holder, position });
        }
        self.end_wait(slot);
        self.end_channel(slot, code, reason, by, lost);
        self.remove(slot);
    }

    /// Its client has not come back in time.
    pub(in crate::shard) fn window_over(&mut self, slot: Slot) {
        self.end_detached(slot, NO_CLOSE_FRAME, "the client did not come back in time", ClosedBy::Connection);
    }

    /// From now on the channel may be let go of by any shard.
    fn begin_wait(&mut self, slot: Slot) {
        let connection = &self.table[slot];
        let Some(channel) = connection.channel() else { return };
        let process = &self.owners[channel.owner].owner.connections;
        let entry = self.table.admission.begin_wait(channel.id.get(), connection.client, process);
        self.table.detached.enter(slot, entry);
    }

    /// It cannot be any more. Returns whether it still counts: else another has its place already.
    pub(super) fn end_wait(&mut self, slot: Slot) -> bool {
        let Some(entry) = self.table.detached.leave(slot) else { return !self.table[slot].flags.has(Flag::Uncounted) };
        let is_counted = self.table.admission.end_wait(entry);
        if !is_counted {
            self.table[slot].flags.set(Flag::Uncounted);
        }
        is_counted
    }

    /// There are too many, in all or of one client: the first detached goes first. Returns whether one has gone.
    pub(super) fn make_room(&mut self, over: LimitReached, client: Option<Prefix>) -> bool {
        match (over, client) {
            (LimitReached::Total, _) => self.let_go_of_first(EvictFrom::Anyone),
            (LimitReached::PerIp, Some(client)) => self.let_go_of_first(EvictFrom::Client(client)),
            (LimitReached::PerIp, None) => false,
        }
    }

    /// The same for one process.
    pub(super) fn make_room_for_process(&mut self, owner: &Owner) -> bool {
        self.let_go_of_first(EvictFrom::Process(&owner.connections))
    }

    fn let_go_of_first(&mut self, of: EvictFrom<'_>) -> bool {
        let Some(gone) = self.table.admission.evict(of, self.now_ms) else { return false };
        let shard = ChannelId::new(gone.id).shard(self.shards);
        if shard == self.index() {
            self.evict(gone);
        } else {
            self.evicted.push((shard, gone));
        }
        true
    }

    /// Another has the place of a channel that waited here.
    pub(in crate::shard) fn evict(&mut self, gone: EvictedChannel) {
        let slot = self.table.slot_of(ChannelId::new(gone.id));
        // It may have ended by itself, or been asked for, since.
        if let Some(slot) = slot.filter(|&slot| self.table.detached.entry(slot) == Some(gone.entry)) {
            self.end_let_go(slot);
        }
    }

    /// The end of a channel whose place another has.
    pub(super) fn end_let_go(&mut self, slot: Slot) {
        let reason = "there were too many connections, and its client was not there";
        self.end_detached(slot, NO_CLOSE_FRAME, reason, ClosedBy::Broker);
    }
}
