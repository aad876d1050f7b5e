//! The state that a shard keeps of one connection: explicit data, nothing hidden in futures.
//!
//! Invariant: between reads a connection owns no read buffer; an idle channel owns no heap but its place in the table.

use crate::admission::Prefix;
use crate::channel::ChannelId;
use crate::gateway;
use crate::proto::{self, Violation};
use crate::shard::flush::SocketId;
use crate::shard::intake::exchange::Exchange;
use crate::shard::memory::Held;
use crate::shard::out::outbound::Outbound;
use crate::shard::owners::owner::OwnerPlace;
use crate::shard::owners::sharing::SharedRound;
use crate::tls::{Handshake, ReceiveEnd, Records, TlsState};
use crate::words::policy::WhenFull;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// Names a connection to the driver: its place in the shard's table and the generation of that place, so that a late
/// readiness event never reaches a successor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ConnectionToken {
    /// The place.
    pub slot: u32,
    /// Its generation.
    pub generation: u32,
}

impl ConnectionToken {
    /// As one number, for the kernel to keep.
    pub fn to_u64(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.slot)
    }

    /// Back from [`ConnectionToken::to_u64`].
    pub fn from_u64(number: u64) -> Self {
        Self { slot: number as u32, generation: (number >> 32) as u32 }
    }
}

/// How a client's connection ends, as its socket tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SocketEnd {
    /// The client has sent its last byte. It may still read.
    Finished,
    /// Nothing travels any more, either way.
    Broken,
}

/// The client's address, in 18 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerAddress {
    ip: [u8; 16],
    port: [u8; 2],
}

impl From<SocketAddr> for PeerAddress {
    fn from(address: SocketAddr) -> Self {
        let ip = match address.ip() {
            IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            IpAddr::V6(ip) => ip,
        };
        Self { ip: ip.octets(), port: address.port().to_ne_bytes() }
    }
}

impl From<PeerAddress> for SocketAddr {
    fn from(peer: PeerAddress) -> Self {
        SocketAddr::new(Ipv6Addr::from(peer.ip).to_canonical(), u16::from_ne_bytes(peer.port))
    }
}

/// The bytes of a message or request that a connection may hold uncounted: 20 MB for 20,000 clients.
const INCOMING_BYTES_MIN: usize = 1024;

/// One connection.
pub(crate) struct Connection {
    pub(in crate::shard) socket: SocketId,
    pub(in crate::shard) generation: u32,
    pub(in crate::shard) flags: ConnectionFlags,
    pub(in crate::shard) pings_unanswered: u8,
    /// The effect of the policy with which the newest frame was pushed to it, if the push named one.
    pub(in crate::shard) policy: Option<WhenFull>,
    /// How long the close frame is that we have sent ([`Flag::CloseSent`]): it is the last in the queue.
    pub(in crate::shard) close_bytes: u8,
    /// The code that it carries.
    pub(in crate::shard) close_code: u16,
    pub(in crate::shard) peer: PeerAddress,
    /// The client it counts for, if any.
    pub(in crate::shard) client: Option<Prefix>,
    pub(in crate::shard) outbound: Outbound,
    pub(in crate::shard) phase: ConnectionPhase,
    /// Bytes that were read but may not be parsed yet: the owner's queue or this client's own queue is full.
    pub(in crate::shard) unparsed: Option<Box<Unparsed>>,
    /// Its TLS state, if its client came to the TLS listener.
    pub(in crate::shard) tls: Option<Box<Tls>>,
    /// The tick at which the current phase must have ended; [`Self::NO_TICK`] if it has no such time. 32 bits are 13
    /// years.
    pub(in crate::shard) deadline_tick: u32,
    /// When the client last gave a sign of life: the low bits of the shard's milliseconds.
    pub(in crate::shard) heard_ms: u32,
    /// When it was last sent a ping, likewise. Says something while `pings_unanswered` is not 0.
    pub(in crate::shard) pinged_ms: u32,
    /// The tick of the one wheel entry that counts; [`Self::NO_TICK`] if there is none.
    pub(in crate::shard) wheel_tick: u32,
    /// When it was accepted, or became a channel: seconds of the shard's own time.
    pub(in crate::shard) since_s: u32,
    /// The low bits of the second in which its last control frame was read, and how many were in that; below 0: how
    /// many more may be, having come while we did not listen.
    pub(in crate::shard) control_s: u16,
    pub(in crate::shard) control_frames: i32,
}

/// See [`Connection::unparsed`]. Boxed, since hardly any connection has one.
pub(in crate::shard) struct Unparsed(pub Box<[u8]>);

/// Which listener a client came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListenerKind {
    /// Plain HTTP.
    Plain,
    /// It begins with a handshake of TLS.
    Tls,
    /// TLS was established elsewhere, and goes on from there.
    Established(Box<TlsState>),
}

/// A connection over TLS.
// Without the feature `tls` there is nothing to be warned of.
#[allow(clippy::large_enum_variant, reason = "it is boxed as a whole, and nearly always the large one")]
pub(in crate::shard) enum Tls {
    /// It shakes hands, and nothing else is read or sent.
    Shaking(Box<Handshaking>),
    /// It is established.
    Open(Sealed),
}

impl Tls {
    /// What it keeps beside its own size.
    pub(in crate::shard) fn heap_bytes(&self) -> usize {
        match self {
            Self::Shaking(shaking) => shaking.handshake.heap_bytes(),
            Self::Open(open) => open.carried.len(),
        }
    }
}

/// See [`Tls::Shaking`].
pub(in crate::shard) struct Handshaking {
    pub handshake: Handshake,
    /// Since when: the low bits of the shard's milliseconds.
    pub since_ms: u32,
    /// So many bytes came with its PROXY header, and wait for its client's turn.
    pub held_bytes: usize,
}

/// See [`Tls::Open`].
pub(in crate::shard) struct Sealed {
    pub records: Records,
    /// The beginning of a record whose rest has not come.
    pub carried: Box<[u8]>,
    /// Its socket was full when it was last offered new records.
    pub is_short: bool,
    /// Our close_notify is sealed, or an alert that says more: nothing follows it.
    pub has_said_goodbye: bool,
    /// The client has said that it sends nothing more.
    pub has_heard_goodbye: bool,
    /// Its records have ended so, and data before the end is still to be looked at.
    pub ended: Option<ReceiveEnd>,
}

impl Sealed {
    pub(crate) fn new(records: Records) -> Self {
        let (is_short, has_said_goodbye, has_heard_goodbye) = Default::default();
        Self { records, carried: [].into(), is_short, has_said_goodbye, has_heard_goodbye, ended: None }
    }
}

/// The phase of a connection.
pub(in crate::shard) enum ConnectionPhase {
    /// HTTP requests and responses, until an upgrade.
    Http(Box<Exchange>),
    /// A WebSocket on `/` whose first message has not come yet.
    Registering(Box<Registering>),
    /// An open channel.
    Open(Channel),
    /// The channel is gone, or there never was one. What is queued is still sent, what comes is discarded.
    Ending(Linger),
}

/// The bytes and time for reading and dropping at the end.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::shard) struct Linger {
    /// The bytes that a refused client may still be sending.
    pub unread_bytes: u64,
    /// How many bytes more than that are dropped before the connection is cut.
    pub spare_bytes: usize,
    /// The bytes received since the deadline was set.
    pub came_bytes: u64,
    /// How long that was before.
    pub window_ms: u64,
}

impl Linger {
    /// Drops bytes. Returns whether more may come.
    pub(crate) fn take(&mut self, bytes: usize) -> bool {
        let bytes = bytes as u64;
        self.came_bytes += bytes;
        let beyond = bytes.saturating_sub(self.unread_bytes);
        self.unread_bytes = self.unread_bytes.saturating_sub(bytes);
        self.spare_bytes = self.spare_bytes.saturating_sub(usize::try_from(beyond).unwrap_or(usize::MAX));
        self.spare_bytes > 0
    }
}

/// See [`ConnectionPhase::Registering`].
pub(in crate::shard) struct Registering {
    pub ws: proto::WebSocketConnection,
    pub forwarded_for: Option<Box<str>>,
}

/// See [`ConnectionPhase::Open`].
pub(in crate::shard) struct Channel {
    pub ws: proto::WebSocketConnection,
    pub id: ChannelId,
    /// The owner's place in the shard's table.
    pub owner: u32,
    /// Its place in the owner's lists.
    pub place: OwnerPlace,
    /// When its last message came: the low bits of the shard's milliseconds.
    pub message_ms: u32,
    /// The violation it is failed for, see [`Flag::Failing`].
    pub violation: Option<Violation>,
    /// The round trip of the last answered ping; [`Self::NO_PING`] if none was.
    pub ping_ms: u16,
    /// The units that it has added to its owner's queue while that is high.
    pub added: SharedRound,
}

impl Channel {
    pub(crate) const NO_PING: u16 = u16::MAX;

    pub(crate) fn ping_ms(&self) -> Option<u16> {
        (self.ping_ms != Self::NO_PING).then_some(self.ping_ms)
    }
}

/// A small fact of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::shard) enum Flag {
    /// Stands in the shard's urgent list.
    Urgent,
    /// Stands in the shard's bulk list.
    Bulk,
    /// Is part of the batch that is being sent.
    InBatch,
    /// Bytes may wait in the socket that were not read when it said so.
    Readable,
    /// Stands in its owner's list of connections that wait for room in the owner's queue.
    WaitsForOwner,
    /// Is not read until the client has taken half of what is queued for it.
    WaitsForClient,
    /// The outcome of a queued frame was asked for.
    Watched,
    /// We have sent a close frame.
    CloseSent,
    /// The writing side is shut, or will be once everything queued has left.
    Shutdown,
    /// The client has sent its last byte: it still waits for an HTTP response, or it has sent its close frame.
    HalfClosed,
    /// The client broke the protocol; it is not read any more, and is told when its process had time to answer what it
    /// said before.
    Failing,
    /// There were too many when it connected: it is told so, and counts as nothing else.
    TurnedAway,
    /// It gave no sign of life: its end is not waited for.
    Silent,
    /// The shard's memory counts something that it holds.
    Holds,
    /// Is not read until there is memory for what it sends.
    WaitsForMemory,
    /// Its owner's queue was full, since we have sent a close frame if we have.
    HasWaited,
    /// Stands in the list of those that may go on: see `intake`.
    Resumes,
    /// Its socket has said that the client sends nothing more; that end may still stand behind bytes that were not
    /// read.
    HangsUp,
    /// And that nothing reaches the client any more.
    Broken,
    /// A balancer relays it, as its PROXY header has said: the client is not on this machine.
    Relayed,
    /// Its channel outlives it.
    Kept,
    /// There is no connection: the channel waits for its client to come back.
    Detached,
    /// Pushes to its channel wait in the log.
    Lags,
    /// Its channel only receives: it is sent events, not frames.
    Sse,
    /// It was detached, and another has its place: it is counted no more.
    Uncounted,
}

impl Flag {
    /// Its place among [`ConnectionFlags`].
    pub(crate) const fn bit(self) -> u32 {
        1 << self as u32
    }
}

/// Those that are true of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub(in crate::shard) struct ConnectionFlags(u32);

impl ConnectionFlags {
    pub(crate) fn has(self, flag: Flag) -> bool {
        self.0 & flag.bit() != 0
    }

    pub(crate) fn set(&mut self, flag: Flag) {
        self.0 |= flag.bit();
    }

    /// Returns whether one of those is set whose bits these are.
    pub(crate) fn has_any(self, bits: u32) -> bool {
        self.0 & bits != 0
    }

    /// Clears all but those whose bits these are.
    pub(crate) fn keep_only(&mut self, bits: u32) {
        self.0 &= bits;
    }

    /// Sets the flag; returns whether it was not set before.
    pub(crate) fn set_new(&mut self, flag: Flag) -> bool {
        let is_new = !self.has(flag);
        self.set(flag);
        is_new
    }

    /// Clears the flag; returns whether it was set.
    pub(crate) fn take(&mut self, flag: Flag) -> bool {
        let had = self.has(flag);
        self.0 &= !flag.bit();
        had
    }
}

impl Connection {
    /// Later than any tick: they last 13 years.
    pub(in crate::shard) const NO_TICK: u32 = u32::MAX;

    /// Returns whether reading is paused by us.
    #[inline]
    pub(in crate::shard) fn is_paused(&self) -> bool {
        // Of one that resumes, earlier bytes are parsed before those read now.
        const PAUSED: u32 = Flag::WaitsForOwner.bit()
            | Flag::WaitsForClient.bit()
            | Flag::WaitsForMemory.bit()
            | Flag::Failing.bit()
            | Flag::Resumes.bit();
        self.flags.has_any(PAUSED)
    }

    /// The client has given a sign of life.
    pub(in crate::shard) fn heard(&mut self, now_ms: u64) {
        self.heard_ms = now_ms as u32;
        self.pings_unanswered = 0;
    }

    /// We have not listened since the client was last heard, or for `unheard_ms_max`: control frames that are read now
    /// may have come in all that time.
    pub(in crate::shard) fn excuse_control(&mut self, now_ms: u64, unheard_ms_max: u64, frames_per_s_max: u16) {
        let unheard_ms = u64::from((now_ms as u32).wrapping_sub(self.heard_ms)).min(unheard_ms_max);
        let frames = u32::try_from(unheard_ms * u64::from(frames_per_s_max) / 1000).unwrap_or(u32::MAX);
        self.control_frames = self.control_frames.saturating_sub_unsigned(frames);
    }

    /// Counts a control frame. Returns whether the client may send one more in this second.
    pub(in crate::shard) fn may_send_control(&mut self, now_ms: u64, frames_per_s_max: u16) -> bool {
        let second = (now_ms / 1000) as u16;
        if std::mem::replace(&mut self.control_s, second) != second {
            self.control_frames = self.control_frames.min(0);
        }
        self.control_frames = self.control_frames.saturating_add(1);
        frames_per_s_max == 0 || self.control_frames <= i32::from(frames_per_s_max)
    }

    /// Returns whether a message is here that is not wholly inflated.
    pub(in crate::shard) fn is_inflating(&self) -> bool {
        match &self.phase {
            ConnectionPhase::Open(channel) => channel.ws.is_inflating(),
            ConnectionPhase::Registering(registering) => registering.ws.is_inflating(),
            ConnectionPhase::Http(_) | ConnectionPhase::Ending(_) => false,
        }
    }

    /// Received bytes that are incomplete, or may not be parsed yet. The start of a message is not worth counting.
    pub(in crate::shard) fn incoming_bytes(&self) -> usize {
        let partial = match &self.phase {
            ConnectionPhase::Http(exchange) => exchange.held_bytes(),
            ConnectionPhase::Registering(registering) => {
                registering.ws.held_bytes() + registering.forwarded_for.as_ref().map_or(0, |named| named.len())
            }
            ConnectionPhase::Open(channel) => channel.ws.held_bytes(),
            ConnectionPhase::Ending(_) => 0,
        };
        let sealed = self.tls.as_deref().map_or(0, Tls::heap_bytes);
        let bytes = partial + sealed + self.unparsed.as_ref().map_or(0, |unparsed| unparsed.0.len());
        if bytes < INCOMING_BYTES_MIN { 0 } else { bytes }
    }

    /// How long the beginning of a record is that waits for its rest.
    pub(in crate::shard) fn carried_bytes(&self) -> usize {
        match self.tls.as_deref() {
            Some(Tls::Open(open)) if !matches!(self.phase, ConnectionPhase::Ending(_)) => open.carried.len(),
            _ => 0,
        }
    }

    /// Lets go of what came of its client and was not looked at.
    pub(in crate::shard) fn forget_incoming(&mut self) {
        self.unparsed = None;
        match self.tls.as_deref_mut() {
            Some(Tls::Shaking(shaking)) => shaking.handshake.forget(),
            Some(Tls::Open(open)) => open.carried = [].into(),
            None => {}
        }
    }

    /// Returns whether a PROXY header is still to come, and until then nothing else.
    pub(in crate::shard) fn awaits_proxy_header(&self) -> bool {
        matches!(&self.phase, ConnectionPhase::Http(exchange) if exchange.proxy_header.is_some())
    }

    /// Returns whether nothing was said on it yet but for its handshake of TLS.
    pub(in crate::shard) fn is_shaking(&self) -> bool {
        matches!(self.tls.as_deref(), Some(Tls::Shaking(_)))
    }

    /// Returns whether its client has ended it without the word that it says all that was said has come (RFC 8446 6.1).
    pub(in crate::shard) fn is_truncated(&self) -> bool {
        matches!(self.tls.as_deref(), Some(Tls::Open(open)) if !open.has_heard_goodbye)
    }

    /// Returns whether its client has said that it is done, and was not told so in kind.
    pub(in crate::shard) fn owes_goodbye(&self) -> bool {
        matches!(self.tls.as_deref(), Some(Tls::Open(open)) if open.has_heard_goodbye && !open.has_said_goodbye)
    }

    /// The memory that it makes the shard hold.
    pub(in crate::shard) fn held(&self) -> Held {
        let queued = self.outbound.backlog_bytes();
        Held { queued, own: self.outbound.own_bytes(), incoming: self.incoming_bytes() }
    }

    /// The source of this connection's requests, for the rules of entry.
    pub(in crate::shard) fn client_of_requests(&self) -> gateway::RequestSource {
        gateway::RequestSource { address: self.peer.into(), is_relayed: self.flags.has(Flag::Relayed) }
    }

    /// The channel, if it is one.
    pub(in crate::shard) fn channel(&self) -> Option<&Channel> {
        match &self.phase {
            ConnectionPhase::Open(channel) => Some(channel),
            _ => None,
        }
    }

    /// The same, to change.
    pub(in crate::shard) fn channel_mut(&mut self) -> Option<&mut Channel> {
        match &mut self.phase {
            ConnectionPhase::Open(channel) => Some(channel),
            _ => None,
        }
    }
}

// A table entry is what an idle channel costs, next to its place in three small tables.
const _: () = assert!(std::mem::size_of::<Connection>() <= 176);

// And what one over TLS costs more.
const _: () = assert!(std::mem::size_of::<Tls>() <= 280);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_comes_back_as_the_address_it_was() {
        for text in ["127.0.0.1:80", "[::1]:65535", "[2001:db8::1]:443", "255.1.2.3:0"] {
            let address: SocketAddr = text.parse().unwrap();
            assert_eq!(SocketAddr::from(PeerAddress::from(address)), address);
        }
    }

    #[test]
    fn a_token_survives_the_kernel() {
        let token = ConnectionToken { slot: u32::MAX - 1, generation: 7 };
        assert_eq!(ConnectionToken::from_u64(token.to_u64()), token);
    }
}
