//! State shared by the side that receives from the kernel and the side that sends to it: the name by which the node
//! calls the server, and calls of the RPC path that wait for an answer.

use super::identity::ServerName;
use crate::broker::RequestId;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The name under which the node last addressed the server, and hears of it.
#[derive(Default)]
pub(crate) struct AddressedName(AtomicBool);

impl AddressedName {
    pub(crate) fn set(&self, name: ServerName) {
        let is_old = name == ServerName::Old;
        if self.0.load(Ordering::Relaxed) != is_old {
            self.0.store(is_old, Ordering::Relaxed);
        }
    }

    pub(crate) fn get(&self) -> ServerName {
        if self.0.load(Ordering::Relaxed) { ServerName::Old } else { ServerName::Current }
    }
}

/// Calls of the RPC path that wait for an answer, by the id of their message.
///
/// The process that is asked may pass a call on (a request that inherits), and then another process answers, perhaps on
/// another node: so an answer is known by the id alone. The id is random ([`MessageIds`](super::outbound::MessageIds))
/// and sent only to processes that may answer.
#[derive(Default)]
pub(crate) struct Calls(Mutex<HashMap<u64, (RequestId, Instant)>>);

impl Calls {
    fn calls(&self) -> MutexGuard<'_, HashMap<u64, (RequestId, Instant)>> {
        // The map that a panic left is whole: each change is one call.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The client of `request` waits for the answer to the message of this id. Whatever waited too long is forgotten:
    /// its client has had its answer.
    pub(crate) fn begin(&self, id: u64, request: RequestId, timeout: Duration) {
        let now = Instant::now();
        let mut calls = self.calls();
        if calls.len() == calls.capacity() {
            calls.retain(|_, (_, until)| *until > now);
        }
        calls.insert(id, (request, now + timeout));
    }

    /// The request that a message of this id answers, if it answers one. Nothing answers it again.
    pub(crate) fn answered(&self, id: u64) -> Option<RequestId> {
        self.calls().remove(&id).map(|(request, _)| request)
    }
}
