//! The contract between a broker and a node's kernel, wherever the kernel is: in this program (`server`) or at the other
//! end of a link.
//!
//! Three parts for three threads: messages of the kernel go in (`inbound`), events come out (`outbound`), passwords are
//! judged (`login`). Knows no threads itself.

use super::events::Events;
use super::identity::Address;
use super::inbound::{Inlet, Owners};
use super::login::{Attempt, Door, Gatekeeper, Judge};
use super::outbound::{Ids, Outlet, ToKernel};
use super::perform::{Pending, Unasked};
use crate::broker::KernelHandle;
use crate::gateway::Settings;
use crossbeam_channel::Receiver;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Messages of a kernel that are taken at once: as many as a node's queue to its HTTP server holds.
pub(crate) const TAKEN_AT_ONCE_MAX: usize = 32;

/// See the module.
pub(crate) struct Service<K: ToKernel, G> {
    pub inlet: Inlet,
    pub outlet: Outlet<K>,
    pub judge: Judge<G>,
    /// What the judge is run with.
    pub attempts: Receiver<Attempt>,
}

impl<K: ToKernel, G: Gatekeeper> Service<K, G> {
    /// For the kernel that is attached as `kernel`, under these rules of entry.
    pub fn new(kernel: KernelHandle, settings: Settings, to_kernel: K, gatekeeper: G) -> Self {
        let (our_node, dialect) = (settings.node.clone(), settings.dialect);
        let pending = Arc::new(Pending::new(Unasked::Failures));
        let calls = Arc::new(Calls::default());
        let (door, attempts) = Door::new();
        let outlet = Outlet {
            our_node: our_node.clone(),
            events: Events::new(&our_node, dialect),
            kernel: kernel.clone(),
            pending: pending.clone(),
            calls: calls.clone(),
            door,
            to_kernel,
            extensions: Default::default(),
            ids: Ids::new(),
        };
        let judge = Judge { gatekeeper, kernel: kernel.clone(), settings };
        let batch = kernel.batch();
        let inlet = Inlet { our_node, dialect, kernel, pending, calls, owners: Owners::default(), batch };
        Self { inlet, outlet, judge, attempts }
    }
}

/// Calls of the RPC path that wait for a process, by the id of their message.
#[derive(Default)]
pub(crate) struct Calls(Mutex<HashMap<u64, (Address, Instant)>>);

impl Calls {
    fn calls(&self) -> MutexGuard<'_, HashMap<u64, (Address, Instant)>> {
        // What a panic left behind is whole: every change is one call on the map.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `target` is asked. Whatever waited too long is forgotten: its client has had its answer.
    pub fn begin(&self, id: u64, target: Address, timeout: Duration) {
        let now = Instant::now();
        let mut calls = self.calls();
        if calls.len() == calls.capacity() {
            calls.retain(|_, (_, until)| *until > now);
        }
        calls.insert(id, (target, now + timeout));
    }

    /// Whether a call of this id waited for `source`, which has answered it now.
    pub fn is_answered(&self, id: u64, source: &Address) -> bool {
        let mut calls = self.calls();
        let waited = calls.get(&id).is_some_and(|(target, _)| target == source);
        waited && calls.remove(&id).is_some()
    }
}
