//! A push broker for WebSocket clients on Linux: thread per core, shared nothing, io_uring.
//!
//! A [`Process`] attaches to a [`Broker`] and owns the channels that clients open on its paths. It receives their
//! [`Event`]s and pushes [`Message`]s to them. A push to a channel, or to thousands, is encoded once and never waits
//! for a client; its [`Outcome`] is reported on request.
//!
//! ```
//! use pushring::{Broker, Message, Policy};
//! use std::time::Duration;
//!
//! let broker = Broker::builder().listen("127.0.0.1:0").shards(1).start()?;
//! let chat = broker.process("chat")?;
//! chat.bind_at("/chat")?;
//! println!("clients connect to ws://{}/chat", broker.address());
//!
//! // To all channels. If a client does not keep up, this push is dropped rather than the client.
//! let ticket = chat.broadcast(Message::text("hello")).policy(Policy::DropNewest).ask().send()?;
//! let outcome = ticket.wait(Duration::from_secs(5))?;
//! assert_eq!(outcome.sent, 0, "no client has connected yet");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! | type | |
//! |---|---|
//! | [`Broker`], [`Broker::builder`] | the shards and their listener |
//! | [`Process`], [`ProcessHandle`] | the owner of channels: binds paths, receives events, pushes; and its half for other threads |
//! | [`Broker::on_shards`] | a process without a thread: its handlers run on the shards, where its channels are |
//! | [`ChannelId`] | one client's WebSocket; its shard is `id % shards` |
//! | [`Message`] | a message to push: Text, Binary, a ping |
//! | [`Event`] | an event of a channel: opened, a message, closed |
//! | [`Push`], [`Broadcast`], [`Subscribe`], [`Close`], [`Respond`] | orders: options by name, and an end that says whether it may wait |
//! | [`Policy`] | the rule for a client that does not keep up |
//! | [`Ticket`], [`Outcome`], [`OnNodes`] | the outcome of a push |
//!
//! # Features
//!
//! | feature | brings | and needs |
//! |---|---|---|
//! | `daemon` (default) | the program `pushring` | `link`, `tls` |
//! | `acme` (default) | certificates of the daemon by ACME | `daemon` |
//! | `fleet` (default) | `fleet`: brokers on many machines with one audience, over NATS | `control` |
//! | `link` | [`link`]: processes and nodes in other programs | `node` |
//! | `node` | [`node`], [`process_lib`]: a node's own HTTP and WebSocket server | `control` |
//! | `control` | [`control`]: statistics, disconnects and metrics for an operator | `driver` |
//! | `tls` | TLS without a proxy in front | |
//! | `driver` | [`Broker`] and its threads, sockets, io_uring and epoll | |
//!
//! An embedder takes `default-features = false, features = ["driver"]`. Without `driver` the core remains, which does
//! no I/O and depends on no crate that could.
//!
//! # Calls that may wait
//!
//! These block the thread that calls them, and no others do. None waits for a client. On a shard's thread, where
//! handlers run ([`Broker::on_shards`]), those that wait for shards panic instead of hanging. The methods of
//! [`Here`] never wait.
//!
//! | call | waits for |
//! |---|---|
//! | `send` of an order, [`Batch::send`], [`Batch::flush`] | room in the inboxes of shards, which drain at the speed of their CPU; `try_send` and `.await` do not block |
//! | [`Process::recv_timeout`], [`Process::recv_blocking`], [`Process::recv_batch`], `Kernel::recv` | an event; [`Process::recv`] is a future |
//! | [`Ticket::wait`] | an outcome; a ticket is a future too |
//! | [`Builder::listen`] | where it is given a name, the look-up of that |
//! | [`Builder::start`], [`Broker::start`] | the threads of all shards |
//! | [`Broker::wait`], [`Broker::stop`], [`BrokerHandle::stop_and_tell`] | the end of the broker; so does dropping a [`Broker`] |
//! | [`Broker::process`], [`Broker::process_with`], [`Broker::on_shards`], [`BrokerHandle::process`], [`BrokerHandle::on_shards`], [`BrokerHandle::on_shards_with`], `BrokerHandle::kernel` | every shard to know of it |
//! | [`ProcessHandle::bind_at`], [`ProcessHandle::bind_at_with`], [`ProcessHandle::bind_http_at`], [`ProcessHandle::unbind_at`], [`ProcessHandle::bind`], [`ProcessHandle::bind_http`], [`ProcessHandle::unbind`], [`ProcessHandle::unbind_http`], and the same of [`Process`] | likewise |
//! | [`Process::end`], [`Process::fail`], [`ShardProcess::end`], `Kernel::end`, `Kernel::fail` | likewise, and so does dropping one of these; on a shard's thread another thread does |
//! | [`BrokerHandle::reports`], [`BrokerHandle::disconnects`], [`BrokerHandle::processes`], [`BrokerHandle::channels`], [`BrokerHandle::fullest_channels`] | an answer of shards |
//! | [`BrokerHandle::reload`], [`BrokerHandle::set_challenges`], [`BrokerHandle::open`], [`BrokerHandle::drain`], [`BrokerHandle::stop`] | every shard to have the order |
//!
//! # Where to look
//!
//! | for | in |
//! |---|---|
//! | embedding the broker | [`Broker`], [`Process`], [`Message`], [`Event`] |
//! | the names of the Kinode process library | [`process_lib`] |
//! | a node's own HTTP and WebSocket server | [`node`] |
//! | processes and nodes in other programs | [`link`] |
//! | an operator's questions to a running broker | [`control`] |
//!
//! The rest is private: `docs/ARCHITECTURE.md` shows the path of a byte through it. Its parts depend on each other in
//! one direction only, which a test enforces: `words, channel, process_id ← proto, http, resume, sse ← gateway,
//! admission, jwks, tls ← shard, queue ← driver ← broker ← demo, control, fleet, hub, push_api ← node ← link ←
//! process_lib ← daemon`.

#![deny(unsafe_code)]
#![warn(unreachable_pub)]

mod admission;
#[cfg(feature = "driver")]
mod broker;
mod channel;
#[cfg(feature = "control")]
pub mod control;
#[cfg(feature = "driver")]
mod demo;
#[cfg(feature = "driver")]
mod driver;
#[cfg(feature = "fleet")]
pub mod fleet;
mod gateway;
mod http;
#[cfg(feature = "driver")]
mod hub;
#[cfg(feature = "tls")]
mod jwks;
#[cfg(feature = "link")]
pub mod link;
#[cfg(feature = "node")]
pub mod node;
mod process_id;
#[cfg(feature = "node")]
pub mod process_lib;
mod proto;
#[cfg(feature = "driver")]
mod push_api;
mod queue;
mod resume;
mod shard;
mod sse;
mod tls;
mod words;

pub use admission::{ConnectionLimits, HeldAs, HeldBytes, TenantReport};
#[cfg(feature = "driver")]
pub use broker::{
    Asking, AskingNodes, AttachError, AttachOptions, Batch, BindPathError, Broadcast, Broker, BrokerHandle, Builder,
    ChannelAt, Close, Config, Cursor, FleetCounts, FleetLine, FleetNode, FleetProbe, FleetReport, Here,
    InvalidChannelAt, InvalidMessage, Message, NODE_ANSWER_WITHIN, NotYetKnown, OnNodes, Order, PAYLOAD_BYTES_MAX,
    Presence, Present, Process, ProcessHandle, ProcessName, ProcessReport, Push, PushError, Respond,
    SHARD_MEMORY_BYTES_MIN, Sending, SendingAsked, ShardDied, ShardHandler, ShardOrder, ShardProcess, StartError,
    Stopped, Subscribe, Ticket, TopicQuery, files_needed,
};
#[cfg(feature = "node")]
pub use broker::{GrantError, Kernel, KernelBatch, KernelHandle, KernelOptions};
pub use channel::ChannelId;
#[cfg(feature = "driver")]
pub use driver::listen::ListenError;
#[cfg(feature = "driver")]
pub use driver::runtime::{DriverKind, RuntimeError};
#[cfg(feature = "driver")]
pub use driver::sys::TcpOptions;
pub use gateway::{
    BindError, Claims, HostPolicy, HttpBinding, HttpRule, IpPrefix, RulesOverlay, Secret, Settings, SubdomainTokens,
    WebSocketBinding, WebSocketRule, mint,
};
pub use gateway::{
    Challenges, ContractRequest, Grant, HubAccess, LoginRequest, OwnerId, ParseIpPrefixError, PatternError, PublicKeys,
    SecretError, TokenAuthority, TokenError, TopicPattern,
};
pub use http::{Content, HttpLimits};
pub use process_id::{ParseProcessIdError, ProcessId};
pub use proto::{MessageKind, MessageLimits};
pub use queue::events::{QueueLimits, RecvError};
pub use queue::orders::InboxLimits;
pub use shard::command::CloseFrame;
pub use shard::disconnects::Disconnect;
pub use shard::durations::Durations;
pub use shard::event::{ClientMessage, Closed, ClosedBy, ControlKind, Event, HttpAsk, HttpRequest, Opened, RequestId};
pub use shard::operating::{ChannelFilter, ChannelReport, Drain};
pub use shard::outcome::Outcome;
pub use shard::stats::{Report, Stats};
pub use shard::tls_counts::{HandshakeTimes, TlsCounts};
pub use shard::topics::TopicReport;
pub use shard::{Deflate, MemoryReport, Resume, ShardConfig};
pub use tls::{Acceptor, Duplex, TlsServer};
#[cfg(feature = "tls")]
pub use tls::{Certificate, CertificateError};
pub use words::audience::Audience;
pub use words::close_reason::{CLOSE_REASONS, ClientNext, CloseReason};
pub use words::policy::{InvalidPolicy, Policy};
pub use words::topic::{InvalidTopic, TOPIC_BYTES_MAX};

/// The parts behind the public names, for this project's own daemon, tests, benches and fuzz targets. Nothing here
/// keeps its name or its shape from one version to the next.
#[doc(hidden)]
pub mod internals {
    macro_rules! parts {
        ($($(#[$when:meta])? $part:ident)*) => {
            $($(#[$when])? pub mod $part { pub use crate::$part::*; })*
        };
    }
    parts! {
        admission channel gateway http process_id proto queue resume shard sse tls
        #[cfg(feature = "driver")] broker
        #[cfg(feature = "driver")] demo
        #[cfg(feature = "driver")] driver
        #[cfg(feature = "driver")] hub
        #[cfg(feature = "tls")] jwks
        #[cfg(feature = "driver")] push_api
    }
    pub use queue::orders as inbox;
}

/// The code in the README, compiled.
#[cfg(all(doctest, feature = "driver"))]
#[doc = include_str!("../README.md")]
struct Readme;
