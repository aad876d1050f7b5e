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
mod broker;
mod channel;
pub mod control;
mod demo;
mod driver;
mod gateway;
mod http;
pub mod link;
pub mod node;
mod process_id;
pub mod process_lib;
mod proto;
mod queue;
mod shard;

pub use broker::{
    AttachError, AttachOptions, Audience, Batch, BindPathError, Broker, ChannelFilter, ChannelReport, CloseFrame,
    Closed, ClosedBy, Config, ControlKind, Cursor, Delivery, Disconnect, Drain, Event, GrantError, Handle, HttpAsk,
    HttpRequest, InvalidMessage, MemoryReport, Message, Opened, Outcome, OwnerHandle, Policy, Process, ProcessReport,
    PushError, Pusher, QueueLimits, RecvError, Report, RequestId, SHARD_MEMORY_BYTES_MIN, ShardDied, StartError, Stats,
    Ticket, files_needed,
};
pub use channel::ChannelId;
pub use driver::runtime::DriverKind;
pub use gateway::{
    BindError, Claims, HostPolicy, HttpBinding, HttpRule, IpPrefix, Secret, Settings, WebSocketBinding, WebSocketRule,
    mint,
};
pub use process_id::{ParseProcessIdError, ProcessId};

/// The parts behind the public names, for this project's own daemon, tests, benches and fuzz targets. Nothing here keeps
/// its name or its shape from one version to the next.
#[doc(hidden)]
pub mod internals {
    macro_rules! parts {
        ($($part:ident)*) => {
            $(pub mod $part { pub use crate::$part::*; })*
        };
    }
    parts!(admission broker channel demo driver gateway http process_id proto queue shard);
    pub use queue::orders as inbox;
}
