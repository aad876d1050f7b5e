//! The client engine: thousands of WebSocket connections on one thread and one epoll set.
//!
//! Invariants: one read buffer serves all connections and no message allocates; an answer made while a read is handled
//! leaves with the other answers of that read in one send; what the engine does not ask for (a close by the server, a
//! protocol error) always reaches the handler. It knows nothing of what the messages mean.

pub mod engine;
pub mod frame;
pub mod handshake;
mod slot;
pub mod target;
pub mod tls;

pub use engine::Engine;
pub use frame::{Message, Opcode};
pub use slot::Closure;
pub use target::{Registration, Target};

use frame::{MaskKeys, write_masked};

/// Where a handler puts what the connection it was called for should send.
#[derive(Debug)]
pub struct Outbox<'a> {
    bytes: &'a mut Vec<u8>,
    masks: &'a mut MaskKeys,
}

impl Outbox<'_> {
    /// Queues one message.
    pub fn send(&mut self, opcode: Opcode, payload: &[u8]) {
        write_masked(opcode, payload, self.masks.next_key(), self.bytes);
    }
}

/// What happens to the connections. `client` is the number the engine was given when the connection was started.
pub trait Handler {
    /// The connection is upgraded (and registered, where asked for).
    fn opened(&mut self, client: usize, outbox: &mut Outbox<'_>) {
        let _ = (client, outbox);
    }

    /// A Text or Binary message came; `received_ns` is when it was read.
    fn message(&mut self, client: usize, message: &Message<'_>, received_ns: u64, outbox: &mut Outbox<'_>);

    /// The connection ended, or never opened, without us asking for it.
    fn closed(&mut self, client: usize, closure: &Closure);
}
