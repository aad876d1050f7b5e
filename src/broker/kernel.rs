//! A node's kernel attached to a broker: many processes, one queue.
//!
//! A node cannot tell which processes exist, so each id is an owner as soon as somebody names it: a process that asks
//! for something, or a client that registers with it. Owners are told of control frames, and share the kernel's queue.
//! Invariants: an owner keeps its number as long as the kernel is attached; there are at most [`OWNERS_MAX`], so that a
//! client with a token cannot grow them for ever; a kernel that goes takes everything of its processes along, and the
//! rules of entry are again what they were before it came.

use super::{AttachError, Batch, Delivery, Event, Message, OwnerHandle, PushError, Pusher, Shared, process};
use crate::channel::ChannelId;
use crate::gateway::{OwnerId, Settings};
use crate::process_id::ProcessId;
use crate::queue::events::{ProcessQueue, ProcessReceiver, QueueLimits, RecvError, process_queue};
use crate::shard::Owner;
use crate::shard::command::{CloseFrame, Command, Policy};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Many times what nodes have of processes; some 10 MB.
pub const OWNERS_MAX: usize = 64 * 1024;

/// What a kernel is attached with.
#[derive(Debug, Clone)]
pub struct KernelOptions {
    /// Who is told of logins and of calls of the RPC path.
    pub system: ProcessId,
    /// How much all processes together may leave unread before their clients are no longer read.
    pub queue: QueueLimits,
    /// What happens to frames that do not fit a channel's budget, where a push does not say.
    pub policy: Policy,
    /// The rules of entry while it is attached.
    pub settings: Settings,
}

/// The receiving half: events of all processes of a node. Dropping it detaches the kernel, and closes the channels of
/// its processes with 1001 (1011 when a panic drops it).
pub struct Kernel {
    shared: Arc<Shared>,
    receiver: ProcessReceiver,
    names: Names,
    system: OwnerId,
    /// The rules of entry before it came.
    before: Settings,
    end: Option<CloseFrame>,
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
pub(super) fn attach(shared: Arc<Shared>, options: KernelOptions) -> Result<(Kernel, KernelHandle), AttachError> {
    let KernelOptions { system, queue: limits, policy, settings } = options;
    let wakers = shared.inboxes.clone();
    let (queue, receiver) = process_queue(wakers.len(), limits, &shared.memory, move |shard| wakers[shard].kick());
    let names = Names::default();
    let by_name = Mutex::default();
    let owners = Owners { by_name, names: names.clone(), next: shared.next_owner.clone(), queue, policy };
    let owner = owners.resolve(&system).expect("the first is below the limit");
    let system_owner = owner.id;
    let pusher = Pusher::of_process(shared.clone(), &owner);
    let mut before = settings.clone();
    let attached = shared.change(|directory| {
        if directory.resolve.is_some() {
            return Err(AttachError::Taken(system.clone()));
        }
        before = directory.gateway.settings().clone();
        directory.gateway = directory.gateway.clone().with_settings(settings);
        directory.owners.insert(owner.id, owner);
        directory.system = Some(system_owner);
        directory.resolve = Some(Arc::new(move |process: &ProcessId| owners.resolve(process)));
        Ok(())
    });
    attached.map_err(|_| AttachError::Stopped)??;
    let kernel = Kernel { shared: shared.clone(), receiver, names, system: system_owner, before, end: None };
    Ok((kernel, KernelHandle { shared, pusher, system }))
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

    /// Detaches it as a panic does: its channels are closed with 1011.
    pub fn fail(mut self) {
        self.end = Some(process::failed());
    }

    /// Detaches it; channels are closed with this code, which must be one that may travel (RFC 6455 7.4), and reason.
    pub fn end(mut self, code: u16, reason: &str) {
        self.end = Some(process::close_frame(code, reason));
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        let why = self.end.take().unwrap_or_else(process::ended_or_failed);
        let owners =
            || -> Vec<OwnerId> { self.names.lock().unwrap_or_else(PoisonError::into_inner).keys().copied().collect() };
        // Both fail only when the broker has stopped, and then there is nothing to take away.
        let _ = self.shared.change(|directory| {
            directory.gateway = directory.gateway.clone().with_settings(self.before.clone());
            owners().into_iter().for_each(|owner| directory.remove_owner(owner));
            (directory.resolve, directory.system) = (None, None);
            Ok::<(), std::convert::Infallible>(())
        });
        // Again: until every shard had the change, clients could still name new ones.
        for owner in owners() {
            let _ = self.shared.send_all(|_| Command::OwnerGone { owner, why: why.clone() });
        }
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

    /// Makes a [`Kernel::recv`] that waits, or the next one that would, return without events.
    pub fn wake(&self) {
        if let Some(system) = self.system() {
            system.wake();
        }
    }

    /// What answers logins and calls of the RPC path. None: the broker has stopped.
    pub fn system(&self) -> Option<OwnerHandle> {
        self.owner(&self.system)
    }
}
