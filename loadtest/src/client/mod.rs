//! The client engine: thousands of WebSocket connections on one thread and one epoll set.
//!
//! Invariants: one read buffer serves all connections and no message allocates; an answer made while a read is handled
//! leaves with the other answers of that read in one send; what the engine does not ask for (a close by the server, a
//! protocol error) always reaches the handler. It knows nothing of what the messages mean.

pub mod engine;
pub mod frame;
mod handler;
pub mod handshake;
pub mod plain;
mod slot;
pub mod target;
pub mod tls;

pub use engine::Engine;
pub use frame::{Message, Opcode};
pub use handler::{Closure, Handler, Outbox};
pub use target::{Registration, Target};
