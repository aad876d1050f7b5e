//! The heads of frames: MessagePack maps of one entry, the frame's name and its fields (`docs/LINK.md`).
//!
//! Only shapes. Fields that this version does not know are ignored; names that it does not know are no frames. Peers
//! need not send fields that have a default.

use crate::broker::ClosedBy;
#[cfg(doc)]
use crate::broker::Outcome;
use crate::node;
use crate::node::Dialect;
pub(super) use crate::words::audience::Audience;
use crate::words::policy::Policy;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The versions of the protocol that are spoken here.
pub(super) const VERSION_MIN: u32 = 1;
/// See [`VERSION_MIN`].
pub(super) const VERSION_MAX: u32 = 1;

/// The most topics in one answer: their names fit a head.
pub(super) const TOPICS_MAX: u32 = 1000;

fn topics_default() -> u32 {
    100
}

/// Frames from a peer to the broker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum FromPeer {
    /// The first frame.
    Hello(Hello),
    /// So many numbered frames were taken in.
    Ack {
        /// Since the session began.
        received: u64,
    },
    /// There is nothing else to say.
    Beat {},
    /// The session ends.
    Bye {
        /// Whether as after a panic: channels are closed with 1011 rather than 1001.
        #[serde(default)]
        failed: bool,
    },
    /// The blob to one channel.
    Push {
        channel: u32,
        kind: FrameKind,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        policy: Option<Policy>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ask: Option<u64>,
        /// On this node of the broker's fleet.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        node: Option<String>,
        /// To a channel there that its owner has let this process in to, whatever process that is.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        as_guest: bool,
        /// Whether the outcome that is asked for names other nodes.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        ask_nodes: bool,
    },
    /// The blob to many channels.
    PushMany {
        to: Audience,
        #[serde(default)]
        except: Vec<u32>,
        kind: FrameKind,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        policy: Option<Policy>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ask: Option<u64>,
        /// On every node of the broker's fleet; `to` is no list.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        everywhere: bool,
        /// Whether the outcome that is asked for names other nodes.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        ask_nodes: bool,
    },
    /// Lets a process of another node push to channels of this one.
    Grant {
        guest: String,
        /// To this one; none: to all.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        channel: Option<u32>,
        /// No more.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        revoke: bool,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ask: Option<u64>,
    },
    /// Subscribes a channel to a topic.
    Subscribe {
        channel: u32,
        topic: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ask: Option<u64>,
    },
    /// Takes a channel out of a topic.
    Unsubscribe {
        channel: u32,
        topic: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ask: Option<u64>,
    },
    /// Which topics there are.
    ListTopics {
        #[serde(default, skip_serializing_if = "String::is_empty")]
        prefix: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        after: Option<String>,
        #[serde(default = "topics_default")]
        limit: u32,
        ask: u64,
    },
    /// Closes a channel.
    Close {
        channel: u32,
        #[serde(default)]
        code: Option<u16>,
        #[serde(default)]
        reason: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ask: Option<u64>,
    },
    /// Binds a WebSocket path.
    Bind {
        path: String,
        #[serde(default)]
        authenticated: bool,
        #[serde(default)]
        secure_subdomain: bool,
        #[serde(default)]
        extension: bool,
        #[serde(default)]
        deflate: bool,
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        resume: bool,
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        resume_events: bool,
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        sse: bool,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ask: Option<u64>,
    },
    /// Takes it back.
    Unbind {
        path: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ask: Option<u64>,
    },
    /// Binds an HTTP path.
    BindHttp {
        path: String,
        #[serde(default)]
        authenticated: bool,
        #[serde(default)]
        local_only: bool,
        #[serde(default)]
        secure_subdomain: bool,
        /// Serve the blob, of this media type.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        content: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ask: Option<u64>,
    },
    /// Takes it back.
    UnbindHttp {
        path: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ask: Option<u64>,
    },
    /// Answers an HTTP request with the blob as body.
    Respond {
        request: u64,
        status: u16,
        #[serde(default)]
        headers: Vec<(Box<str>, Box<str>)>,
    },
    /// A message of a node's kernel to the HTTP server; its blob is the frame's.
    Kernel(KernelHead),
    /// The answer to a login; the blob is the node's encoded keyfile, which nodes send along with the cookie.
    LoggedIn(LoggedIn),
}

/// Frames from the broker to a peer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum ToPeer {
    /// The answer to a good hello.
    Welcome(Welcome),
    /// Channels that are open.
    Live { channels: Vec<LiveChannel> },
    /// The answer to a bad hello; the broker closes behind it.
    Refused(HelloRefused),
    /// So many numbered frames were taken in and executed.
    Ack { received: u64 },
    /// There is nothing else to say.
    Beat {},
    /// The broker drains: in so many milliseconds it begins to close channels, and in so many it has told all.
    Draining { begins_in_ms: u64, ends_in_ms: u64 },
    /// The broker closes behind this.
    Bye { code: ByeCode, reason: String },
    /// A channel was opened.
    Opened(LiveChannel),
    /// The blob is a client's message.
    Message { channel: u32, kind: FrameKind },
    /// A client sent a control frame with the blob.
    Control { channel: u32, kind: FrameKind },
    /// A channel is gone.
    Closed { channel: u32, code: u16, reason: Box<str>, by: ClosedBy, lost_bytes: u64 },
    /// The client of a channel is gone for now; only for paths bound with `resume_events`.
    Detached { channel: u32 },
    /// It has come back, and has missed so many messages for good.
    Resumed {
        channel: u32,
        #[serde(default)]
        lost: u64,
    },
    /// An HTTP request with the blob as body.
    Http(HttpHead),
    /// A channel is subscribed to a topic now.
    Joined { channel: u32, topic: String },
    /// A channel is not subscribed to it any more.
    Left { channel: u32, topic: String },
    /// Topics, and how many channels are subscribed to each.
    Topics { ask: u64, topics: Vec<(String, u64)> },
    /// The outcome of a push or close that asked for it.
    Outcome(OutcomeHead),
    /// A path was bound or unbound.
    Done { ask: u64 },
    /// An order with an `ask` was refused.
    Failed { ask: u64, code: OrderFailure, reason: String },
    /// A message of the HTTP server to a process; its blob is the frame's.
    Kernel(KernelHead),
    /// A password to check.
    Login(LoginQuestion),
}

/// See [`ToPeer::Login`].
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct LoginQuestion {
    pub login: u64,
    /// The password's hash, as the login page posted it.
    pub password_hash: String,
    /// The process that the token is to be made out to.
    #[serde(default)]
    pub subdomain: Option<String>,
}

/// It carries a secret.
impl std::fmt::Debug for LoginQuestion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LoginQuestion").field("login", &self.login).finish_non_exhaustive()
    }
}

/// See [`FromPeer::LoggedIn`].
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct LoggedIn {
    pub login: u64,
    /// The token, where the password is right.
    #[serde(default)]
    pub token: Option<String>,
    /// Why it could not be checked.
    #[serde(default)]
    pub error: Option<String>,
}

/// It carries a secret.
impl std::fmt::Debug for LoggedIn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LoggedIn").field("login", &self.login).finish_non_exhaustive()
    }
}

/// A peer's introduction.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Hello {
    pub version_min: u32,
    pub version_max: u32,
    pub attach: Attach,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// To go on with a session: its secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    /// With `session`: the numbered frames that were taken in.
    #[serde(default)]
    pub received: u64,
    /// The most that may be sent and not acknowledged; the broker's own limit applies if it is lower.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<LinkWindow>,
    /// Whether this connection is told that the broker drains.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub wants_drain: bool,
}

/// It carries two secrets, so it is not shown.
impl std::fmt::Debug for Hello {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hello").field("attach", &self.attach).finish_non_exhaustive()
    }
}

/// As what.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Attach {
    /// One process.
    Process {
        id: String,
        /// Whether it is told of pings, pongs and close frames.
        #[serde(default)]
        wants_control: bool,
        /// Whether it is told when clients subscribe to its topics and leave them.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        wants_topics: bool,
        #[serde(default)]
        policy: Policy,
    },
    /// A node's kernel, for all its processes.
    Kernel {
        node: String,
        /// Whether `local_only` paths, extensions and the RPC path are open to clients of the broker's machine; none:
        /// as the broker was started.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        expose_local: Option<bool>,
        /// Whether there is no login, and paths that require one are open to all.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        public_mode: bool,
        /// Whether the node is simulated: its processes have the longest time to answer, and its login page is told so.
        /// Which passwords are right, the kernel says.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        simulation_mode: bool,
        /// The key of the node's tokens, for a broker that was started without one.
        #[serde(default, with = "bin_or_nil", skip_serializing_if = "Option::is_none")]
        jwt_secret: Option<Vec<u8>>,
        #[serde(default)]
        policy: Policy,
    },
}

impl std::fmt::Debug for Attach {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Process { id, .. } => write!(f, "process {id:?}"),
            Self::Kernel { node, .. } => write!(f, "kernel of {node:?}"),
        }
    }
}

/// The most that may be unacknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LinkWindow {
    /// Frames.
    pub frames: u32,
    /// Bytes of heads and blobs; one frame may be larger.
    pub bytes: u32,
}

/// See [`ToPeer::Welcome`].
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Welcome {
    pub version: u32,
    pub node: String,
    pub dialect: Dialect,
    /// Where clients are served: address and port.
    pub listening: String,
    /// The secret of this session.
    pub session: String,
    /// The peer's numbered frames that were taken in; its next one is the one behind.
    pub received: u64,
    /// The broker's numbered frames that were acknowledged; the next one is the one behind.
    pub acknowledged: u64,
    /// How many channels the `live` frames list that follow.
    pub live: u64,
    pub window: LinkWindow,
    pub head_bytes_max: u32,
    pub blob_bytes_max: u32,
    pub asks_max: u32,
    pub beat_ms: u32,
    pub owner_grace_ms: u64,
}

/// It carries the session's secret.
impl std::fmt::Debug for Welcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Welcome").field("version", &self.version).field("node", &self.node).finish_non_exhaustive()
    }
}

/// Why a hello is refused.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, thiserror::Error)]
#[error("{code}: {reason}")]
#[non_exhaustive]
pub struct HelloRefused {
    /// Why.
    pub code: RefusedCode,
    /// In words.
    pub reason: String,
    /// The oldest version that the broker speaks.
    pub version_min: u32,
    /// The newest.
    pub version_max: u32,
}

/// See [`HelloRefused`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum RefusedCode {
    /// No version that both speak.
    Version,
    /// No hello, or an invalid one.
    Malformed,
    /// No token, or another.
    Token,
    /// The id is attached.
    Taken,
    /// The session to go on with is gone, and its channels with it.
    Session,
    /// The kernel is of another node, or there is no key for its tokens.
    Node,
    /// As many are attached as may be.
    Full,
    /// The broker stops.
    Stopped,
}

/// Why the broker ends a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum ByeCode {
    /// The peer broke the protocol.
    Violation,
    /// The broker has stopped.
    Stopped,
}

/// Why an order failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum OrderFailure {
    /// A process of this id may not bind.
    ProcessId,
    /// The path is longer than paths may be.
    PathTooLong,
    /// The path has more parameters than paths may have.
    PathParams,
    /// Text that is not UTF-8.
    NotUtf8,
    /// A ping or pong of more than 125 bytes.
    ControlTooLong,
    /// A topic's name is empty or over 255 bytes.
    TopicName,
    /// A guest's address is none.
    GuestAddress,
    /// As many guests as there may be.
    TooManyGuests,
    /// The memory budget has no room for the route and its content.
    Memory,
    /// The broker has stopped.
    Stopped,
}

macro_rules! shown_as_on_the_wire {
    ($($kind:ty),+) => {
        $(impl std::fmt::Display for $kind {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.serialize(f)
            }
        })+
    };
}

shown_as_on_the_wire!(RefusedCode, ByeCode, OrderFailure);

/// Kinds of frames of a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum FrameKind {
    Text,
    Binary,
    Ping,
    Pong,
    Close,
}

/// An open channel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LiveChannel {
    pub channel: u32,
    /// Whose; only where a kernel is told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<String>,
    pub path: String,
    /// The client's address and port; a kernel hears of it in the Hyperdrive dialect only.
    #[serde(default)]
    pub source: Option<String>,
    #[serde(default)]
    pub forwarded_for: Option<String>,
    #[serde(default)]
    pub registered: bool,
    #[serde(default)]
    pub extension: bool,
}

/// See [`crate::gateway::ContractRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct HttpHead {
    pub request: u64,
    pub timeout_s: u32,
    pub source: String,
    pub method: String,
    pub url: String,
    pub bound_path: String,
    pub headers: BTreeMap<String, String>,
    pub url_params: BTreeMap<String, String>,
    pub query_params: BTreeMap<String, String>,
}

/// An [`Outcome`] as this protocol writes it. The counts are fields of the head itself, and spelled out here, because a
/// flattened struct is read through a buffer of the whole map: several allocations for each answer.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct OutcomeHead {
    pub ask: u64,
    pub sent: u64,
    pub queued: u64,
    pub queued_bytes: u64,
    pub conflated: u64,
    pub dropped: u64,
    pub closed: u64,
    pub not_found: u64,
    pub not_owner: u64,
    #[serde(default, skip_serializing_if = "is_none")]
    pub fleet_full: u64,
    #[serde(default, skip_serializing_if = "is_none")]
    pub fleet_down: u64,
    #[serde(default, skip_serializing_if = "is_none")]
    pub fleet_too_large: u64,
    /// With `ask_nodes`: what each other node has said; none of one that has not said it in time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes: Option<BTreeMap<String, Option<node::PushCounts>>>,
    /// The counts are not those of all nodes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub partial: bool,
}

/// Frames stay as they were where there is no fleet.
fn is_none(count: &u64) -> bool {
    *count == 0
}

/// A KernelMessage without its blob's bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct KernelHead {
    pub id: u64,
    pub source: node::Address,
    pub target: node::Address,
    #[serde(default)]
    pub rsvp: Option<node::Address>,
    pub message: KernelBody,
    /// There is a blob: the frame's.
    #[serde(default)]
    pub blob: Option<BlobHead>,
}

/// Detail about a blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct BlobHead {
    #[serde(default)]
    pub mime: Option<String>,
}

/// See [`node::Message`].
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum KernelBody {
    Request {
        #[serde(default)]
        inherit: bool,
        #[serde(default)]
        expects_response: Option<u64>,
        #[serde(with = "bin")]
        body: Vec<u8>,
        #[serde(default)]
        metadata: Option<String>,
        #[serde(default)]
        capabilities: Vec<GrantedCapability>,
    },
    Response {
        #[serde(default)]
        inherit: bool,
        #[serde(with = "bin")]
        body: Vec<u8>,
        #[serde(default)]
        metadata: Option<String>,
        #[serde(default)]
        capabilities: Vec<GrantedCapability>,
        #[serde(default, with = "bin_or_nil")]
        context: Option<Vec<u8>>,
    },
}

impl KernelBody {
    /// The bytes of the body.
    pub(super) fn bytes(&self) -> usize {
        let (Self::Request { body, .. } | Self::Response { body, .. }) = self;
        body.len()
    }
}

/// Bodies carry tokens and private messages.
impl std::fmt::Debug for KernelBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Request { .. } => write!(f, "request of {} bytes", self.bytes()),
            Self::Response { .. } => write!(f, "response of {} bytes", self.bytes()),
        }
    }
}

/// A capability and its signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrantedCapability {
    pub issuer: node::Address,
    pub params: String,
    #[serde(with = "bin")]
    pub signature: Vec<u8>,
}

/// Bytes as MessagePack bin; an array of numbers is read, too.
mod bin {
    use crate::node::byte_array;
    use serde::{Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(bytes)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        byte_array::deserialize(deserializer)
    }
}

/// The same or nil.
mod bin_or_nil {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    struct Bin(#[serde(with = "super::bin")] Vec<u8>);

    pub(super) fn serialize<S: Serializer>(bytes: &Option<Vec<u8>>, serializer: S) -> Result<S::Ok, S::Error> {
        bytes.clone().map(Bin).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<u8>>, D::Error> {
        Ok(Option::<Bin>::deserialize(deserializer)?.map(|Bin(bytes)| bytes))
    }
}

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;
