//! The client engine: thousands of WebSocket connections on one thread and one epoll set.
//!
//! Invariants: one read buffer serves all connections and no message allocates; an answer made while a read is handled
//! leaves with the other answers of that read in one send; what the engine does not ask for (a close by the server, a
//! protocol error) always reaches the handler. It knows nothing of what the messages mean.

pub(crate) mod engine;
pub(crate) mod frame;
mod handler;
pub(crate) mod handshake;
pub(crate) mod plain;
mod slot;
pub(crate) mod target;
pub(crate) mod tls;

pub(crate) use engine::Engine;
pub(crate) use frame::{Message, Opcode};
pub(crate) use handler::{Closure, Handler, Outbox};
pub(crate) use target::{Registration, Target};
