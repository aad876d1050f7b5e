//! A node's kernel attached to a broker: many processes, one queue.
//!
//! A node cannot tell which processes exist, so each id is an owner as soon as somebody names it: a process that asks
//! for something, or a client that registers with it. Owners are told of control frames, and share the kernel's queue.
//! Invariants: an owner keeps its number as long as the kernel is attached; there are at most [`OWNERS_MAX`], so that a
//! client with a token cannot grow them for ever.

use super::{AttachError, Batch, Delivery, Event, Message, OwnerHandle, PushError, Pusher, Shared};
use crate::channel::ChannelId;
use crate::gateway::OwnerId;
use crate::process_id::ProcessId;
use crate::shard::Owner;
use crate::shard::command::Policy;
use crate::shard::process_queue::{ProcessQueue, ProcessReceiver, QueueLimits, RecvError, process_queue};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Many times what nodes have of processes; some 10 MB.
pub const OWNERS_MAX: usize = 64 * 1024;

/// The receiving half: events of all processes of a node.
pub struct Kernel {
    receiver: ProcessReceiver,
    names: Names,
    system: OwnerId,
}

/// The acting half: cheap to clone, usable from any thread.
#[derive(Clone)]
pub struct KernelHandle {
    shared: Arc<Shared>,
    pusher: Pusher,
    /// Logins and calls of the RPC path are its business.
    system: ProcessId,
}

/// Events of one process.
#[derive(Debug)]
pub struct KernelBatch {
    /// Whose; none: the system's, which are logins and calls of the RPC path.
    pub process: Option<ProcessId>,
    /// In order.
    pub events: Vec<Event>,
}

type Names = Arc<Mutex<HashMap<OwnerId, ProcessId>>>;

/// The owners made so far. Held by the directory alone, since it holds the queue's sender.
struct Owners {
    by_name: Mutex<HashMap<ProcessId, Arc<Owner>>>,
    names: Names,
    next: Arc<AtomicU32>,
    queue: ProcessQueue,
    policy: Policy,
}

impl Owners {
    fn resolve(&self, process: &ProcessId) -> Option<Arc<Owner>> {
        let mut by_name = self.by_name.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(owner) = by_name.get(process) {
            return Some(owner.clone());
        }
        if by_name.len() >= OWNERS_MAX {
            return None;
        }
        let id = OwnerId(self.next.fetch_add(1, Ordering::Relaxed));
        let owner = Arc::new(Owner::new(id, process.clone(), self.queue.clone(), self.policy, true));
        self.names.lock().unwrap_or_else(PoisonError::into_inner).insert(id, process.clone());
        by_name.insert(process.clone(), owner.clone());
        Some(owner)
    }
}

/// Attaches a kernel. Processes attached by themselves keep their ids; the kernel answers for all others.
pub(super) fn attach(
    shared: Arc<Shared>,
    system: ProcessId,
    limits: QueueLimits,
    policy: Policy,
) -> Result<(Kernel, KernelHandle), AttachError> {
    let wakers = shared.inboxes.clone();
    let (queue, receiver) = process_queue(wakers.len(), limits, &shared.memory, move |shard| wakers[shard].kick());
    let names = Names::default();
    let by_name = Mutex::default();
    let owners = Owners { by_name, names: names.clone(), next: shared.next_owner.clone(), queue, policy };
    let owner = owners.resolve(&system).expect("the first is below the limit");
    let system_owner = owner.id;
    let pusher = Pusher::of_process(shared.clone(), &owner);
    let attached = shared.change(|directory| {
        if directory.resolve.is_some() {
            return Err(AttachError::Taken(system.clone()));
        }
        directory.owners.insert(owner.id, owner);
        directory.system = Some(system_owner);
        directory.resolve = Some(Arc::new(move |process: &ProcessId| owners.resolve(process)));
        Ok(())
    });
    attached.map_err(|_| AttachError::Stopped)??;
    Ok((Kernel { receiver, names, system: system_owner }, KernelHandle { shared, pusher, system }))
}

impl Kernel {
    /// Waits for events of one process.
    ///
    /// # Errors
    /// Nothing came in time, or the broker has stopped.
    pub fn recv(&self, timeout: Duration) -> Result<KernelBatch, RecvError> {
        let batch = self.receiver.recv(timeout)?;
        let names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        let process = names.get(&batch.owner).filter(|_| batch.owner != self.system).cloned();
        Ok(KernelBatch { process, events: batch.events })
    }
}

impl KernelHandle {
    /// What acts in the name of `process`. None: there are too many processes, or the broker has stopped.
    pub fn owner(&self, process: &ProcessId) -> Option<OwnerHandle> {
        let owner = self.shared.directory().find(process)?;
        Some(OwnerHandle {
            shared: self.shared.clone(),
            id: process.clone(),
            owner: owner.id,
            pusher: self.pusher.in_name_of(&owner),
        })
    }

    /// Collects pushes of any of its processes.
    pub fn batch(&self) -> Batch {
        self.pusher.batch()
    }

    /// Pushes to channels in the name of `guest`, the address of a process on another node: to those that their owners
    /// have let it in to. The others are counted as `not_found`, as if they did not exist.
    ///
    /// # Errors
    /// The broker has stopped.
    pub fn push_as_guest(
        &self,
        guest: &Arc<str>,
        channels: Vec<ChannelId>,
        message: &Message,
        delivery: Delivery,
    ) -> Result<(), PushError> {
        self.pusher.push_as_guest(guest, channels, message, delivery)
    }

    /// What answers logins and calls of the RPC path. None: the broker has stopped.
    pub fn system(&self) -> Option<OwnerHandle> {
        self.owner(&self.system)
    }
}
