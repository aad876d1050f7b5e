//! Sockets in memory, for tests that step shards by hand: each takes as much as it is told to.

use super::ConnectionToken;
use super::flush::{Flush, OutgoingBytes, SendParts, ShortSend};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

/// One socket, as the network has it.
#[derive(Default)]
pub(crate) struct Wire {
    /// Bytes on their way to the client, and to the shard.
    pub to_client: Vec<u8>,
    pub to_server: Vec<u8>,
    /// How much more it takes.
    pub room: usize,
    pub is_full: bool,
    /// Sends fail.
    pub is_cut: bool,
    pub is_closed: bool,
    /// The watcher: a shard, and its token there.
    pub watched: Option<(usize, ConnectionToken)>,
}

/// All sockets, by their numbers; shards and tests share them.
#[derive(Clone, Default)]
pub(crate) struct Wires(Rc<RefCell<BTreeMap<i32, Wire>>>);

impl Wires {
    /// A new socket, which takes so much.
    pub(crate) fn add(&self, socket: i32, room: usize) {
        self.0.borrow_mut().insert(socket, Wire { room, ..Wire::default() });
    }

    pub(crate) fn look<T>(&self, socket: i32, look: impl FnOnce(&mut Wire) -> T) -> T {
        look(self.0.borrow_mut().get_mut(&socket).expect("a socket that there is"))
    }
}

impl Flush for Wires {
    fn send_all(&mut self, batch: &[OutgoingBytes<'_>], short: &mut Vec<ShortSend>) {
        for (index, entry) in batch.iter().enumerate() {
            let bytes = match entry.parts {
                SendParts::One(bytes) => bytes.to_vec(),
                SendParts::Many(parts) => parts.iter().flat_map(|part| part.to_vec()).collect(),
            };
            let sent = self.look(entry.socket.0, |wire| wire.take(&bytes));
            if sent != Ok(bytes.len()) {
                short.push(ShortSend { index, sent });
            }
        }
    }
}

impl Wire {
    /// As `send`: how much of it was taken, or the error's number.
    fn take(&mut self, bytes: &[u8]) -> Result<usize, i32> {
        assert!(!self.is_closed, "nothing is sent to a socket that was closed");
        if self.is_cut {
            return Err(32);
        }
        let taken = bytes.len().min(self.room);
        self.room -= taken;
        self.to_client.extend_from_slice(&bytes[..taken]);
        self.is_full = taken < bytes.len();
        Ok(taken)
    }
}
