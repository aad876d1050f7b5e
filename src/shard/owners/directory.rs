//! Who is attached to the broker and what it may be reached by: immutable, shared by all shards, swapped whole.

use crate::gateway::{OwnerId, Snapshot};
use crate::process_id::ProcessId;
use crate::queue::events::ProcessQueue;
use crate::shard::command::Policy;
use crate::shard::out::deflate::Windows;
use rustc_hash::FxHashMap;
use std::collections::HashMap;
use std::sync::Arc;

/// A process as the shards see it.
pub struct Owner {
    /// Its number; never reused.
    pub id: OwnerId,
    /// Its name.
    pub process: ProcessId,
    /// Where its events go. Several owners may share one queue (a node kernel's).
    pub queue: ProcessQueue,
    /// What happens to frames that do not fit a channel's budget, where a push does not say.
    pub policy: Policy,
    /// Whether it is told of pings, pongs and close frames too.
    pub wants_control: bool,
    /// What its channels have agreed on compression.
    pub windows: Arc<Windows>,
}

impl Owner {
    /// One that has no channels yet.
    pub fn new(id: OwnerId, process: ProcessId, queue: ProcessQueue, policy: Policy, wants_control: bool) -> Self {
        Self { id, process, queue, policy, wants_control, windows: Arc::default() }
    }
}

/// Finds, or makes, the owner for a process that a client registers with and the directory does not know. A node
/// cannot tell which processes exist, so it makes one; a broker that knows its processes answers `None`.
pub type Resolve = dyn Fn(&ProcessId) -> Option<Arc<Owner>> + Send + Sync;

/// See the module.
#[derive(Clone)]
pub struct Directory {
    /// Routes and rules of entry.
    pub gateway: Snapshot,
    /// By number.
    pub owners: FxHashMap<OwnerId, Arc<Owner>>,
    /// By name.
    pub processes: HashMap<ProcessId, OwnerId>,
    /// See [`Resolve`].
    pub resolve: Option<Arc<Resolve>>,
    /// Addresses on other nodes that may push to all channels of an owner.
    pub grants: Arc<FxHashMap<OwnerId, Vec<Arc<str>>>>,
    /// Who handles logins and the RPC path, where anybody does.
    pub system: Option<OwnerId>,
}

impl Directory {
    /// Nobody is attached, nothing is bound.
    pub fn new(gateway: Snapshot) -> Self {
        Self {
            gateway,
            owners: FxHashMap::default(),
            processes: HashMap::new(),
            resolve: None,
            grants: Arc::default(),
            system: None,
        }
    }

    /// Takes an owner out, with its paths and what it let others do. Its name is the caller's to take back.
    pub fn remove_owner(&mut self, owner: OwnerId) {
        self.gateway.unbind_owner(owner);
        self.owners.remove(&owner);
        // Shards share the grants: a copy is made only where something changes.
        if self.grants.contains_key(&owner) {
            Arc::make_mut(&mut self.grants).remove(&owner);
        }
    }

    /// The owner of that name, made if need be.
    pub fn find(&self, process: &ProcessId) -> Option<Arc<Owner>> {
        match self.processes.get(process).and_then(|id| self.owners.get(id)) {
            Some(owner) => Some(owner.clone()),
            None => self.resolve.as_ref()?(process),
        }
    }
}

impl std::fmt::Debug for Directory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Directory").field("processes", &self.processes).finish_non_exhaustive()
    }
}
