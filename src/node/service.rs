//! The contract between a broker and a node's kernel, wherever the kernel is: in this program (`server`) or at the other
//! end of a link.
//!
//! Four parts for as many threads: messages of the kernel go in (`inbound`), paths are changed (`desks`), events come out
//! (`outbound`), passwords are judged (`login`). Knows no threads itself.

use super::desks::{Changes, Desks};
use super::events::EventMessages;
use super::identity::ServerName;
use super::inbound::MessageReader;
use super::login::{LoginAttempts, LoginQueue, PasswordCheck, PasswordWorker};
use super::outbound::{MessageIds, MessageWriter, ToKernel};
use super::perform::{Pending, Unasked};
use crate::broker::{KernelHandle, RequestId};
use crate::gateway::Settings;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Messages of a kernel that are taken at once: as many as a node's queue to its HTTP server holds.
pub(crate) const TAKEN_AT_ONCE_MAX: usize = 32;

/// See the module.
pub(crate) struct Service<K: ToKernel, G> {
    pub inlet: MessageReader,
    pub changes: Changes,
    pub outlet: MessageWriter<K>,
    pub judge: PasswordWorker<G>,
    /// What the judge is run with.
    pub attempts: LoginAttempts,
}

impl<K: ToKernel, G: PasswordCheck> Service<K, G> {
    /// For the kernel that is attached as `kernel`, under these rules of entry.
    pub fn new(kernel: KernelHandle, settings: Settings, to_kernel: K, gatekeeper: G) -> Self {
        let (our_node, dialect) = (settings.node.clone(), settings.dialect);
        let pending = Arc::new(Pending::new(Unasked::Failures));
        let calls = Arc::new(Calls::default());
        let name = Arc::new(Name::default());
        let (door, attempts) = LoginQueue::new();
        let outlet = MessageWriter {
            events: EventMessages::new(&our_node, dialect),
            kernel: kernel.clone(),
            pending: pending.clone(),
            calls: calls.clone(),
            name: name.clone(),
            door,
            to_kernel,
            extensions: Default::default(),
            ids: MessageIds::new(),
        };
        let judge = PasswordWorker { gatekeeper, kernel: kernel.clone(), settings };
        let (desks, changes) = Desks::new(kernel, pending);
        let inlet = MessageReader { our_node, dialect, calls, name, desks };
        Self { inlet, changes, outlet, judge, attempts }
    }
}

/// The name under which the node last addressed the server, and hears of it.
#[derive(Default)]
pub(crate) struct Name(AtomicBool);

impl Name {
    pub fn set(&self, name: ServerName) {
        let is_old = name == ServerName::Old;
        if self.0.load(Ordering::Relaxed) != is_old {
            self.0.store(is_old, Ordering::Relaxed);
        }
    }

    pub fn get(&self) -> ServerName {
        if self.0.load(Ordering::Relaxed) { ServerName::Old } else { ServerName::Current }
    }
}

/// Calls of the RPC path that wait for an answer, by the id of their message.
///
/// Whoever was asked may pass a call on (a request that inherits), and then another process answers, maybe of another
/// node: so an answer is known by the id alone. That is drawn for the call ([`MessageIds`]), and told to nobody but those who may
/// answer.
#[derive(Default)]
pub(crate) struct Calls(Mutex<HashMap<u64, (RequestId, Instant)>>);

impl Calls {
    fn calls(&self) -> MutexGuard<'_, HashMap<u64, (RequestId, Instant)>> {
        // What a panic left behind is whole: every change is one call on the map.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The client of `request` waits for the answer to the message of this id. Whatever waited too long is forgotten:
    /// its client has had its answer.
    pub fn begin(&self, id: u64, request: RequestId, timeout: Duration) {
        let now = Instant::now();
        let mut calls = self.calls();
        if calls.len() == calls.capacity() {
            calls.retain(|_, (_, until)| *until > now);
        }
        calls.insert(id, (request, now + timeout));
    }

    /// The request that a message of this id answers, if it answers one. Nothing answers it again.
    pub fn answered(&self, id: u64) -> Option<RequestId> {
        self.calls().remove(&id).map(|(request, _)| request)
    }
}
