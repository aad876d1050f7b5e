//! The engine's events about its connections, and the place for a handler's answers.

use super::frame::{MaskKeys, Message, Opcode, write_masked};

/// Where a handler puts what the connection it was called for should send.
#[derive(Debug)]
pub(crate) struct Outbox<'a> {
    pub(super) bytes: &'a mut Vec<u8>,
    pub(super) masks: &'a mut MaskKeys,
}

impl Outbox<'_> {
    /// Queues one message.
    pub(crate) fn send(&mut self, opcode: Opcode, payload: &[u8]) {
        write_masked(opcode, payload, self.masks.next_key(), self.bytes);
    }
}

/// Handles a connection's events. `client` is the number given to the engine when the connection was started.
pub(crate) trait Handler {
    /// The connection is upgraded (and registered, where asked for).
    fn opened(&mut self, client: usize, outbox: &mut Outbox<'_>) {
        let _ = (client, outbox);
    }

    /// A Text or Binary message came; `received_ns` is when it was read.
    fn message(&mut self, client: usize, message: &Message<'_>, received_ns: u64, outbox: &mut Outbox<'_>);

    /// The connection ended, or never opened, without us asking for it.
    fn closed(&mut self, client: usize, closure: &Closure);
}

/// Why a connection ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Closure {
    /// The code of the server's close frame, if one came.
    pub code: Option<u16>,
    /// In words.
    pub reason: String,
}

impl Closure {
    pub(super) fn because(reason: impl Into<String>) -> Self {
        Self { code: None, reason: reason.into() }
    }
}
