//! A push broker for WebSocket clients on Linux: thread per core, shared nothing, io_uring.
//!
//! Processes attach to a [`Broker`](broker::Broker), clients open channels of theirs, and a push to a channel, or to
//! thousands, is encoded once and never waits for a client:
//!
//! ```
//! use pushring::broker::{Audience, Broker, Config, Delivery, Message};
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
//! | embedding the broker | [`broker`] |
//! | the names of the Kinode process library | [`process_lib`] |
//! | a node's own HTTP and WebSocket server | [`node`] |
//! | processes and nodes in other programs | [`link`] |
//! | what an operator asks of a running broker | [`control`] |
//! | small processes to read first | [`demo`] |
//! | where a byte comes in and a push goes out | [`shard`], driven by [`driver::pump`] |
//! | RFC 6455 and RFC 7692 | [`proto`] |
//! | HTTP/1.1 | [`http`] |
//! | routes, tokens, origins: who may enter | [`gateway`] |
//! | limits that all shards share: how many may connect | [`admission`] |
//! | how a push reaches its shard | [`inbox`], [`channel`] |
//!
//! Left never imports right, and a test holds it: `channel, process_id ← proto, http ← gateway, admission ← shard, inbox ←
//! driver ← broker ← demo, node, process_lib, link, control`.

pub mod admission;
pub mod broker;
pub mod channel;
pub mod control;
pub mod demo;
pub mod driver;
pub mod gateway;
pub mod http;
pub mod inbox;
pub mod link;
pub mod node;
pub mod process_id;
pub mod process_lib;
pub mod proto;
pub mod shard;
