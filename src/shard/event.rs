//! Events from a shard to a process: one enum, one direction.

use super::outcome::Outcome;
use super::table::slot::Slot;
use crate::admission::HeapBytes;
use crate::channel::ChannelId;
use crate::gateway::{ContractRequest, Grant, LoginRequest};
use crate::proto::MessageKind;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::sync::Arc;

/// Something that happened to a process' channels. Events of one channel come in order; `Opened` first, `Closed` last,
/// each exactly once.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Event {
    /// A channel was opened and belongs to this process from now on.
    Opened(Box<Opened>),
    /// A client sent a message.
    Message {
        /// The sender.
        channel: ChannelId,
        /// Text or Binary. Text is valid UTF-8.
        kind: MessageKind,
        /// The whole message.
        payload: Bytes,
    },
    /// A client sent a control frame; only for processes that asked for them. Pings have been answered already.
    Control {
        /// The sender.
        channel: ChannelId,
        /// Ping, Pong or Close.
        kind: ControlKind,
        /// The payload; for Close the reason without the code.
        payload: Bytes,
    },
    /// A channel is subscribed to a topic from now on; only for processes that asked for it.
    Joined {
        /// Which channel.
        channel: ChannelId,
        /// The topic.
        topic: Arc<str>,
    },
    /// A channel is not subscribed to a topic any more; likewise. One that closes leaves its topics first.
    Left {
        /// Which channel.
        channel: ChannelId,
        /// The topic.
        topic: Arc<str>,
    },
    /// The channel is gone.
    Closed(Box<Closed>),
    /// The client of a channel is gone for now; the channel waits for it to come back, and what is pushed to it
    /// meanwhile. Only for paths whose rule asks for it
    /// ([`WebSocketRule::resume_events`](crate::WebSocketRule::resume_events)).
    Detached {
        /// The channel that lost its connection.
        channel: ChannelId,
    },
    /// It has come back; likewise.
    Resumed {
        /// The channel that was resumed.
        channel: ChannelId,
        /// How many messages it has missed that history did not reach back to.
        lost: u64,
        /// The client's rights now, if the hub's token decides: those of the token that it came back with.
        grant: Option<Arc<Grant>>,
    },
    /// An HTTP request for a path of this process; it waits for a response.
    Http(Box<HttpRequest>),
    /// A push or close that asked to hear of failure only has failed: the channel is gone, closing, or another's.
    Failed {
        /// The number that it was given.
        ticket: u64,
        /// The counts.
        outcome: Outcome,
    },
    /// The outcome of a push that asked for it.
    Outcome {
        /// The number that the push was given.
        ticket: u64,
        /// The counts.
        outcome: Outcome,
    },
}

/// A client's message, for a handler on its shard: where no event waits before it, its bytes are still in the read
/// buffer, uncopied.
#[derive(Debug)]
pub struct ClientMessage<'a> {
    channel: ChannelId,
    kind: MessageKind,
    bytes: ReceivedBytes<'a>,
}

#[derive(Debug)]
enum ReceivedBytes<'a> {
    Borrowed(&'a [u8]),
    /// Made where events are handed to handlers, which a driver does.
    #[cfg_attr(not(feature = "driver"), expect(dead_code))]
    Owned(Bytes),
}

impl<'a> ClientMessage<'a> {
    /// One whose bytes lie where they were read.
    pub(crate) fn borrowed(channel: ChannelId, kind: MessageKind, bytes: &'a [u8]) -> Self {
        Self { channel, kind, bytes: ReceivedBytes::Borrowed(bytes) }
    }

    /// One that has been an event.
    #[cfg(feature = "driver")]
    pub(crate) fn of_event(channel: ChannelId, kind: MessageKind, payload: Bytes) -> Self {
        Self { channel, kind, bytes: ReceivedBytes::Owned(payload) }
    }

    /// The sender.
    pub fn channel(&self) -> ChannelId {
        self.channel
    }

    /// Text or Binary. Text is valid UTF-8.
    pub fn kind(&self) -> MessageKind {
        self.kind
    }

    /// The whole message.
    pub fn bytes(&self) -> &[u8] {
        match &self.bytes {
            ReceivedBytes::Borrowed(bytes) => bytes,
            ReceivedBytes::Owned(bytes) => bytes,
        }
    }

    /// The whole message, to be kept: copied if it lies where it was read.
    pub fn into_bytes(self) -> Bytes {
        match self.bytes {
            ReceivedBytes::Borrowed(bytes) => Bytes::copy_from_slice(bytes),
            ReceivedBytes::Owned(bytes) => bytes,
        }
    }

    /// The same as an [`Event::Message`], copied likewise.
    pub fn into_event(self) -> Event {
        Event::Message { channel: self.channel, kind: self.kind, payload: self.into_bytes() }
    }
}

impl HeapBytes for Event {
    fn heap_bytes(&self) -> usize {
        match self {
            Self::Opened(opened) => opened.heap_bytes(),
            Self::Message { payload, .. } | Self::Control { payload, .. } => payload.heap_bytes(),
            Self::Joined { topic, .. } | Self::Left { topic, .. } => topic.heap_bytes(),
            Self::Closed(closed) => closed.heap_bytes(),
            Self::Http(request) => request.heap_bytes(),
            Self::Resumed { grant, .. } => grant.as_ref().map_or(0, |grant| grant.heap_bytes()),
            Self::Detached { .. } | Self::Failed { .. } | Self::Outcome { .. } => 0,
        }
    }
}

impl HeapBytes for Opened {
    fn heap_bytes(&self) -> usize {
        let grant = self.grant.as_ref().map_or(0, |grant| grant.heap_bytes());
        self.path.heap_bytes() + self.forwarded_for.heap_bytes() + grant
    }
}

impl HeapBytes for Closed {
    fn heap_bytes(&self) -> usize {
        self.reason.heap_bytes()
    }
}

impl HeapBytes for HttpRequest {
    fn heap_bytes(&self) -> usize {
        self.body.heap_bytes()
            + match &self.ask {
                HttpAsk::Path(request) => request.heap_bytes(),
                HttpAsk::Login(login) => login.heap_bytes(),
                HttpAsk::Rpc => 0,
            }
    }
}

/// The kinds of control frames (RFC 6455 5.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ControlKind {
    /// 5.5.2
    Ping,
    /// 5.5.3
    Pong,
    /// 5.5.1
    Close,
    /// A control text of the subprotocol `pushring.1` that orders something of the process (`docs/PROTOCOL.md`),
    /// without the mark that it begins with.
    Text,
}

/// A new channel.
#[derive(Debug, Clone)]
pub struct Opened {
    /// Its id.
    pub channel: ChannelId,
    /// The path without the leading process id; `/` if nothing else.
    pub path: Arc<str>,
    /// Where the client's connection comes from.
    pub source: SocketAddr,
    /// The client's address as a proxy forwarded it, if it did. Not verified.
    pub forwarded_for: Option<Box<str>>,
    /// Whether the client registered (with `WsRegister`) rather than connect to a bound path.
    pub registered: bool,
    /// Whether the path was bound for extensions.
    pub extension: bool,
    /// The client's rights, if the hub's token decides.
    pub grant: Option<Arc<Grant>>,
}

/// The end of a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Closed {
    /// Its id.
    pub channel: ChannelId,
    /// The close code: as the closing side sent it, or what RFC 6455 7.1.5 says where none was sent (1005, 1006).
    pub code: u16,
    /// The reason in words, perhaps empty.
    pub reason: Box<str>,
    /// The side that ended it.
    pub by: ClosedBy,
    /// Bytes of accepted pushes that never left.
    pub lost_bytes: usize,
}

/// The side that ended a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[non_exhaustive]
#[serde(rename_all = "snake_case")]
pub enum ClosedBy {
    /// The client sent a close frame.
    Client,
    /// The client's connection ended or failed without one.
    Connection,
    /// The process closed it, ended or panicked.
    Process,
    /// The client broke the protocol.
    Violation,
    /// The client did not keep up with what was pushed to it.
    Backpressure,
    /// The client did not answer pings, or was idle too long.
    Timeout,
    /// The broker stopped, or had to save memory.
    Broker,
}

impl ClosedBy {
    /// All of them, in order.
    pub const ALL: [Self; 7] = [
        Self::Client,
        Self::Connection,
        Self::Process,
        Self::Violation,
        Self::Backpressure,
        Self::Timeout,
        Self::Broker,
    ];

    /// In one word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Connection => "connection",
            Self::Process => "process",
            Self::Violation => "violation",
            Self::Backpressure => "backpressure",
            Self::Timeout => "timeout",
            Self::Broker => "broker",
        }
    }
}

/// An HTTP request that waits for a response.
#[derive(Debug, Clone)]
pub struct HttpRequest {
    /// To be given back with the response.
    pub id: RequestId,
    /// The request.
    pub ask: HttpAsk,
    /// The body, perhaps empty.
    pub body: Bytes,
    /// Seconds within which the response is awaited; then the client gets 408.
    pub timeout_s: u32,
}

/// An HTTP request as its process sees it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum HttpAsk {
    /// Something on a path of the process.
    Path(Box<ContractRequest>),
    /// A login; only for the owner that the directory names as the system.
    Login(Box<LoginRequest>),
    /// A call of the RPC path; likewise.
    Rpc,
}

/// Names a waiting HTTP request: its shard, its place there, and bits that cannot be guessed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RequestId(pub u64);

impl RequestId {
    /// How many of the low bits tell the shard: a broker has at most 256.
    pub const SHARD_BITS: u32 = 8;

    /// The shard on which the request waits.
    pub fn shard(self) -> u32 {
        self.0 as u32 & ((1 << Self::SHARD_BITS) - 1)
    }

    /// Its place there.
    pub(super) fn slot(self) -> Slot {
        Slot::new(self.0 as u32 >> Self::SHARD_BITS)
    }
}
