//! The attached processes and the paths and names that reach them: immutable, shared by all shards, replaced as a
//! whole.
//!
//! A copy shares everything, and a change copies the few nodes on the path to what it changes: it costs the same
//! however many processes are attached and whatever they have bound, and the old state is freed as soon as it has no
//! user.

use crate::admission::{ProcessCount, ProcessMemory};
use crate::gateway::{OwnerId, Snapshot};
use crate::process_id::ProcessId;
use crate::queue::events::{EventBatch, ProcessQueue, QueueLevel};
use crate::shard::out::deflate::Windows;
use crate::shard::owners::grants::Guests;
use crate::shard::owners::topics::Topics;
use crate::words::policy::Policy;
use rpds::HashTrieMapSync;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

/// A process as the shards see it.
pub struct Owner {
    /// Its number; never reused.
    pub id: OwnerId,
    /// Its name.
    pub process: ProcessId,
    /// Where its events go. Several owners may share one queue (a node kernel's).
    pub queue: ProcessQueue,
    /// Charged for its data outside of shards, and the tenant of its clients' data on shards.
    pub memory: ProcessMemory,
    wishes: Arc<Wishes>,
    /// The compression agreed with its channels.
    pub windows: Arc<Windows>,
    /// How many connections it has.
    pub connections: Arc<ProcessCount>,
    /// The topics of its channels.
    pub topics: Arc<Topics>,
}

/// What a process asks of its broker once and for all; but its successor over a link may ask for something else. The
/// processes of a node kernel share theirs.
#[derive(Debug)]
pub struct Wishes {
    /// Which of [`Policy::EACH`], and its key.
    policy: (AtomicU8, AtomicU64),
    control: AtomicBool,
    topics: AtomicBool,
}

impl Wishes {
    /// The policy for frames that exceed a channel's budget, where a push names none; whether the process is told of
    /// pings, pongs and close frames too; and whether it is told of subscriptions and their ends.
    pub fn new(policy: Policy, control: bool, topics: bool) -> Self {
        let wishes = Self { policy: Default::default(), control: Default::default(), topics: Default::default() };
        wishes.set(policy, control, topics);
        wishes
    }

    /// This policy, and no more events than there must be.
    pub fn of(policy: Policy) -> Self {
        Self::new(policy, false, false)
    }

    /// These from now on. Whoever reads them meanwhile may see some of both.
    pub fn set(&self, policy: Policy, control: bool, topics: bool) {
        let kind = Policy::EACH.iter().position(|each| each.name() == policy.name()).expect("each kind is listed");
        self.policy.0.store(kind as u8, Ordering::Relaxed);
        self.policy.1.store(policy.key().unwrap_or_default(), Ordering::Relaxed);
        self.control.store(control, Ordering::Relaxed);
        self.topics.store(topics, Ordering::Relaxed);
    }

    fn policy(&self) -> Policy {
        let (kind, key) = (&self.policy.0, &self.policy.1);
        Policy::EACH[usize::from(kind.load(Ordering::Relaxed))].with_key(key.load(Ordering::Relaxed))
    }
}

impl Owner {
    /// One that has no channels yet.
    pub fn new(id: OwnerId, process: ProcessId, queue: ProcessQueue, wishes: impl Into<Arc<Wishes>>) -> Self {
        let memory = queue.memory_of(process.clone());
        let (windows, connections, topics) = Default::default();
        Self { id, process, queue, memory, wishes: wishes.into(), windows, connections, topics }
    }

    /// What it asks of its broker.
    pub fn wishes(&self) -> &Wishes {
        &self.wishes
    }

    /// The policy for frames that exceed a channel's budget, where a push names none.
    pub fn policy(&self) -> Policy {
        self.wishes.policy()
    }

    /// Whether it is told of pings, pongs and close frames too.
    pub fn wants_control(&self) -> bool {
        self.wishes.control.load(Ordering::Relaxed)
    }

    /// Whether it is told of subscriptions and their ends.
    pub fn wants_topics(&self) -> bool {
        self.wishes.topics.load(Ordering::Relaxed)
    }

    /// Hands it a batch of events. Returns false when it is gone.
    pub fn send(&self, batch: EventBatch) -> bool {
        self.queue.send(&self.memory, batch)
    }

    /// How full its queue is for one more message, with `pending`, which is not sent yet.
    pub fn level(&self, pending: Option<&EventBatch>) -> QueueLevel {
        self.queue.level(&self.memory, pending)
    }

    /// Returns whether a channel may be opened of which `opened_bytes` are told.
    pub fn has_room_to_open(&self, pending: Option<&EventBatch>, opened_bytes: usize) -> bool {
        self.queue.has_room_to_open(&self.memory, pending, opened_bytes)
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
    pub owners: HashTrieMapSync<OwnerId, Arc<Owner>>,
    /// By name: those that are attached by themselves.
    pub processes: HashTrieMapSync<ProcessId, OwnerId>,
    /// See [`Resolve`].
    pub resolve: Option<Arc<Resolve>>,
    /// Addresses on other nodes that may push to all channels of an owner.
    pub grants: HashTrieMapSync<OwnerId, Guests>,
    /// The owner that handles logins and the RPC path, if there is one.
    pub system: Option<OwnerId>,
}

impl Directory {
    /// No process is attached, nothing is bound.
    pub fn new(gateway: Snapshot) -> Self {
        Self {
            gateway,
            owners: HashTrieMapSync::default(),
            processes: HashTrieMapSync::default(),
            resolve: None,
            grants: HashTrieMapSync::default(),
            system: None,
        }
    }

    /// Attaches a process by itself, under its name.
    pub fn attach(&mut self, owner: Arc<Owner>) {
        self.processes.insert_mut(owner.process.clone(), owner.id);
        self.add(owner);
    }

    /// Adds an owner that is found otherwise than by its name.
    pub fn add(&mut self, owner: Arc<Owner>) {
        self.owners.insert_mut(owner.id, owner);
    }

    /// Takes an owner out, with its name, its paths and what it let others do.
    pub fn remove(&mut self, owner: OwnerId) {
        self.gateway.unbind_owner(owner);
        self.grants.remove_mut(&owner);
        let Some(removed) = self.owners.get(&owner).cloned() else { return };
        self.owners.remove_mut(&owner);
        if self.processes.get(&removed.process) == Some(&owner) {
            self.processes.remove_mut(&removed.process);
        }
    }

    /// Takes an owner out that has bound nothing any more, if a kernel made it: it is made again when it is named
    /// again.
    pub fn remove_if_unused(&mut self, owner: OwnerId) {
        let is_attached = |process: &ProcessId| self.processes.get(process) == Some(&owner);
        if self.owners.get(&owner).is_some_and(|owner| !is_attached(&owner.process))
            && self.system != Some(owner)
            && !self.grants.contains_key(&owner)
            && !self.gateway.has_bound(owner)
        {
            self.remove(owner);
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
        f.debug_struct("Directory")
            .field("processes", &self.processes.keys().collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}
