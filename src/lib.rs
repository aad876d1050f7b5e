//! A push broker for WebSocket clients on Linux: thread per core, shared nothing, io_uring.
//!
//! Processes attach to a [`Broker`], clients open channels of theirs, and a push to a channel, or to
//! thousands, is encoded once and never waits for a client:
//!
//! ```
//! use pushring::{Audience, Broker, Config, Delivery, Message};
//!
//! let broker = Broker::start(Config { shards: 1, ..Config::default() }).unwrap();
//! let process = broker.process("news:demo:sys".parse().unwrap()).unwrap();
//! process.bind("/", Default::default()).unwrap();
//! // Clients connect to ws://ADDRESS/news:demo:sys/; all that are there get this, and the sender can ask how it went.
//! let (delivery, ticket) = Delivery::default().asking();
//! process.push_many(Audience::Process, &[], Message::text("hello"), delivery).unwrap();
//! let outcome = ticket.wait(std::time::Duration::from_secs(5)).unwrap();
//! assert_eq!(outcome.sent, 0, "nobody has connected yet");
//! ```
//!
//! # Features
//!
//! | feature | brings | and needs |
//! |---|---|---|
//! | `daemon` (default) | the program `pushring` | `link` |
//! | `link` | [`link`]: processes and nodes in other programs | `node` |
//! | `node` | [`node`], [`process_lib`]: a node's own HTTP and WebSocket server | `control` |
//! | `control` | [`control`]: statistics, disconnects and metrics for an operator | `driver` |
//! | `driver` | [`Broker`] and all that is said of it here: threads, sockets, io_uring and epoll | |
//!
//! An embedder takes `default-features = false, features = ["driver"]`. Without `driver` the core remains, which does no
//! I/O and depends on no crate that could.
//!
//! # Where to look
//!
//! | for | in |
//! |---|---|
//! | embedding the broker | [`Broker`], [`Process`], [`Message`], [`Event`] |
//! | the names of the Kinode process library | [`process_lib`] |
//! | a node's own HTTP and WebSocket server | [`node`] |
//! | processes and nodes in other programs | [`link`] |
//! | what an operator asks of a running broker | [`control`] |
//!
//! What is behind these is private: `docs/ARCHITECTURE.md` shows the way of a byte through it. Its parts know each other
//! in one direction only, and a test holds it: `channel, process_id ← proto, http ← gateway, admission ← shard, queue ←
//! driver ← broker ← demo, node, process_lib, link, control`.

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
mod gateway;
mod http;
#[cfg(feature = "link")]
pub mod link;
#[cfg(feature = "node")]
pub mod node;
mod process_id;
#[cfg(feature = "node")]
pub mod process_lib;
mod proto;
mod queue;
mod shard;

#[cfg(feature = "driver")]
pub use broker::{
    AttachError, AttachOptions, Audience, Batch, BindPathError, Broker, Config, Cursor, Delivery, GrantError, Handle,
    InvalidMessage, Message, OwnerHandle, Process, ProcessReport, PushError, Pusher, SHARD_MEMORY_BYTES_MIN, ShardDied,
    StartError, Ticket, files_needed,
};
pub use channel::ChannelId;
#[cfg(feature = "driver")]
pub use driver::runtime::DriverKind;
pub use gateway::{
    BindError, Claims, HostPolicy, HttpBinding, HttpRule, IpPrefix, Secret, Settings, WebSocketBinding, WebSocketRule,
    mint,
};
pub use process_id::{ParseProcessIdError, ProcessId};
pub use proto::MessageKind;
pub use queue::events::{QueueLimits, RecvError};
pub use shard::MemoryReport;
pub use shard::command::{CloseFrame, Policy};
pub use shard::disconnects::Disconnect;
pub use shard::event::{Closed, ClosedBy, ControlKind, Event, HttpAsk, HttpRequest, Opened, RequestId};
pub use shard::operating::{ChannelFilter, ChannelReport, Drain};
pub use shard::outcome::Outcome;
pub use shard::stats::{Report, Stats};

/// The parts behind the public names, for this project's own daemon, tests, benches and fuzz targets. Nothing here keeps
/// its name or its shape from one version to the next.
#[doc(hidden)]
pub mod internals {
    macro_rules! parts {
        ($($(#[$when:meta])? $part:ident)*) => {
            $($(#[$when])? pub mod $part { pub use crate::$part::*; })*
        };
    }
    parts! {
        admission channel gateway http process_id proto queue shard
        #[cfg(feature = "driver")] broker
        #[cfg(feature = "driver")] demo
        #[cfg(feature = "driver")] driver
    }
    pub use queue::orders as inbox;
}
