//! A node's kernel attached to a broker: many processes, one queue.
//!
//! A node cannot list its processes, so each id becomes an owner when it is first named: by a process that asks for
//! something, or by a client that registers with it. Owners receive control frames as events, and share the kernel's
//! queue. Invariants: an owner keeps its number as long as it has a channel, a path, a request or a handle that acts in
//! its name; one without any of these is forgotten, so that names which clients invent take no place from others; there
//! are at most [`OWNERS_MAX`]; when a kernel detaches, everything of its processes goes with it, and the rules of entry
//! are again the operator's own, which may have changed meanwhile.

use super::guest::{GrantOrder, GuestPushOrder};
use super::pusher::Pusher;
use super::{AttachError, Batch, BrokerShared, DeliveryOptions, Event, Message, ProcessHandle, order, process};
use crate::admission::{Charge, HeldAs, ProcessMemory};
use crate::channel::ChannelId;
use crate::gateway::{OwnerId, RulesOverlay, Settings};
use crate::process_id::ProcessId;
use crate::queue::events::{ProcessQueue, ProcessReceiver, QueueLimits, RecvError, process_queue_for};
use crate::shard::command::{CloseFrame, Command, Policy};
use crate::shard::grants;
use crate::shard::{Owner, Wishes};
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Many times what nodes have of processes.
pub(super) const OWNERS_MAX: usize = 64 * 1024;

/// The memory of an owner beside its name: itself, its tenant, and its places in tables.
const OWNER_BYTES: usize = 950;

/// Owners examined for each one made, to find those that are no longer needed: more than one, so that unneeded owners
/// become fewer however many are made.
const LOOKED_AT_FOR_EACH: usize = 4;

/// The same where there is no room: a few microseconds.
const LOOKED_AT_FOR_ROOM: usize = 256;

/// How often the node kernel has to have read all events before an unneeded owner is forgotten: an event for it may
/// have been on its way the first time.
const READ_OUT_BEFORE: u64 = 2;

/// Outcomes that a node kernel may have asked for and not read: twice the limit of answers that its actions may wait
/// for (`node::perform`), so that as many unrequested failures have room beside them.
const OUTCOMES_MAX: usize = 32 * 1024;

/// The settings of a node kernel.
#[derive(Debug, Clone)]
pub struct KernelOptions {
    /// The process that receives logins and calls of the RPC path.
    pub system: ProcessId,
    /// How much all processes together may leave unread before their clients are no longer read.
    pub queue: QueueLimits,
    /// The policy for frames that exceed a channel's budget, where a push names none.
    pub policy: Policy,
    /// What becomes of the broker's rules of entry while it is attached.
    pub rules: RulesOverlay,
}

/// The receiving half: events of all processes of a node. Dropping it detaches the kernel, and closes the channels of
/// its processes with 1001 (1011 when a panic drops it).
pub struct Kernel {
    shared: Arc<BrokerShared>,
    receiver: ProcessReceiver,
    pusher: Pusher,
    names: OwnerNames,
    read_out: Arc<AtomicU64>,
    system: OwnerId,
    end: Option<CloseFrame>,
}

/// The acting half: cheap to clone, usable from any thread.
#[derive(Clone)]
pub struct KernelHandle {
    shared: Arc<BrokerShared>,
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
    /// Their share of the memory budget, until they are handed on.
    pub(crate) charge: Option<Charge>,
}

/// Why a guest was not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GrantError {
    /// The process has as many guests as it may have, or memory has no room for one more; revoke others.
    #[error("guest limit reached, or no memory: revoke others of this process")]
    TooMany,
    /// The broker has stopped.
    #[error("the broker has stopped")]
    Stopped,
}

type OwnerNames = Arc<Mutex<HashMap<OwnerId, ProcessId>>>;

/// The owners that there are. Held by the directory alone, since it holds the queue's sender.
struct KernelOwners {
    made: Mutex<OwnerTable>,
    names: OwnerNames,
    /// How often the kernel has read everything.
    read_out: Arc<AtomicU64>,
    next: Arc<AtomicU32>,
    queue: ProcessQueue,
    /// Those of all of them: they are told of control frames.
    wishes: Arc<Wishes>,
    /// Charged for all of them: a name that a client has invented is no process'.
    memory: ProcessMemory,
}

#[derive(Default)]
struct OwnerTable {
    by_name: HashMap<ProcessId, KernelOwner>,
    /// All of them, in the order in which they are looked at.
    round: VecDeque<ProcessId>,
}

struct KernelOwner {
    owner: Arc<Owner>,
    _charge: Charge,
    /// Since when it is not needed: how often the kernel had read everything by then.
    unneeded_since: Option<u64>,
}

impl KernelOwner {
    /// Returns whether anything else refers to it: the directory, for its paths; a shard, for its channels and
    /// requests; a handle that acts for it and shares its windows.
    fn is_needed(&self) -> bool {
        Arc::strong_count(&self.owner) > 1 || Arc::strong_count(&self.owner.windows) > 1
    }
}

impl KernelOwners {
    fn resolve(&self, process: &ProcessId) -> Option<Arc<Owner>> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = made.by_name.get_mut(process) {
            entry.unneeded_since = None;
            return Some(entry.owner.clone());
        }
        let is_full = made.by_name.len() >= OWNERS_MAX;
        self.forget_unneeded(&mut made, if is_full { LOOKED_AT_FOR_ROOM } else { LOOKED_AT_FOR_EACH });
        if made.by_name.len() >= OWNERS_MAX {
            return None;
        }
        let bytes = OWNER_BYTES + process.as_str().len();
        let charge = match made.by_name.is_empty() {
            // The system's own.
            true => self.memory.charge_anyway(HeldAs::Topics, bytes),
            false => self.memory.charge(HeldAs::Topics, bytes).ok()?,
        };
        let id = OwnerId(self.next.fetch_add(1, Ordering::Relaxed));
        let owner = Arc::new(Owner::new(id, process.clone(), self.queue.clone(), self.wishes.clone()));
        self.names.lock().unwrap_or_else(PoisonError::into_inner).insert(id, process.clone());
        let entry = KernelOwner { owner: owner.clone(), _charge: charge, unneeded_since: None };
        made.by_name.insert(process.clone(), entry);
        made.round.push_back(process.clone());
        Some(owner)
    }

    /// Looks at so many owners, and forgets those that were not needed for long enough.
    fn forget_unneeded(&self, made: &mut OwnerTable, count: usize) {
        let read_out = self.read_out.load(Ordering::Acquire);
        for _ in 0..count.min(made.round.len()) {
            let Some(process) = made.round.pop_front() else { break };
            let entry = made.by_name.get_mut(&process).expect("owners in the round are made");
            let since = match entry.is_needed() {
                true => None,
                false => Some(entry.unneeded_since.unwrap_or(read_out)),
            };
            entry.unneeded_since = since;
            if since.is_some_and(|since| read_out >= since + READ_OUT_BEFORE) {
                let id = entry.owner.id;
                made.by_name.remove(&process);
                self.names.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
            } else {
                made.round.push_back(process);
            }
        }
    }
}

/// Attaches a kernel. Processes attached by themselves keep their ids; the kernel answers for all others.
pub(super) fn attach(shared: Arc<BrokerShared>, options: KernelOptions) -> Result<(Kernel, KernelHandle), AttachError> {
    let KernelOptions { system, queue: limits, policy, rules } = options;
    let wakers = shared.inboxes.clone();
    let shards = wakers.len();
    let wake = move |shard: usize| wakers[shard].kick();
    let (queue, receiver) = process_queue_for(shards, limits, OUTCOMES_MAX, &shared.memory, wake);
    let (names, read_out) = (OwnerNames::default(), Arc::<AtomicU64>::default());
    let owners = KernelOwners {
        made: Mutex::default(),
        names: names.clone(),
        read_out: read_out.clone(),
        next: shared.next_owner.clone(),
        memory: queue.memory_of(system.clone()),
        queue,
        wishes: Arc::new(Wishes::new(policy, true, false)),
    };
    let owner = owners.resolve(&system).expect("the first is below the limit");
    let system_owner = owner.id;
    let pusher = Pusher::of_process(shared.clone(), &owner);
    let attached = shared.change(|directory| {
        if directory.resolve.is_some() {
            return Err(AttachError::Taken(system.clone()));
        }
        directory.gateway = directory.gateway.clone().with_overlay(Some(rules));
        directory.add(owner);
        directory.system = Some(system_owner);
        directory.resolve = Some(Arc::new(move |process: &ProcessId| owners.resolve(process)));
        Ok(())
    });
    attached.map_err(|_| AttachError::Stopped)??;
    let kernel = Kernel {
        shared: shared.clone(),
        receiver,
        pusher: pusher.clone(),
        names,
        read_out,
        system: system_owner,
        end: None,
    };
    Ok((kernel, KernelHandle { shared, pusher, system }))
}

impl Kernel {
    /// Waits for events of one process.
    ///
    /// # Errors
    /// Nothing came in time, or the broker has stopped.
    pub fn recv(&self, timeout: Duration) -> Result<KernelBatch, RecvError> {
        let mut batch = match self.receiver.try_recv() {
            Ok(batch) => batch,
            Err(_) => {
                self.read_out.fetch_add(1, Ordering::Release);
                self.receiver.recv(timeout)?
            }
        };
        let charge = batch.take_charge();
        if batch.owner == self.system {
            return Ok(KernelBatch { process: None, events: batch.events, charge });
        }
        let process = self.names.lock().unwrap_or_else(PoisonError::into_inner).get(&batch.owner).cloned();
        // An owner that was forgotten has no channel, and orders nothing any more.
        let events = if process.is_some() { batch.events } else { Vec::new() };
        Ok(KernelBatch { process, events, charge })
    }

    /// Detaches it as a panic does: its channels are closed with 1011.
    pub fn fail(mut self) {
        self.end = Some(process::failed());
    }

    /// Detaches it; channels are closed with this code, which must be one that may travel (RFC 6455 7.4), and reason.
    pub fn end(mut self, code: u16, reason: &str) {
        self.end = Some(order::close_frame(code, reason));
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        let why = self.end.take().unwrap_or_else(process::ended_or_failed);
        let owners =
            || -> Vec<OwnerId> { self.names.lock().unwrap_or_else(PoisonError::into_inner).keys().copied().collect() };
        // Both fail only when the broker has stopped, and then there is nothing to take away.
        let _ = self.shared.change(|directory| {
            directory.gateway = directory.gateway.clone().with_overlay(None);
            owners().into_iter().for_each(|owner| directory.remove(owner));
            (directory.resolve, directory.system) = (None, None);
            Ok::<(), std::convert::Infallible>(())
        });
        // Again: until every shard had the change, clients could still name new ones.
        for owner in owners() {
            let _ = self.pusher.send_all(|| Command::OwnerGone { owner, why: why.clone() });
        }
    }
}

impl KernelHandle {
    /// A handle that acts for `process`. None: there are too many processes, or the broker has stopped.
    pub fn owner(&self, process: &ProcessId) -> Option<ProcessHandle> {
        let owner = self.shared.directory().find(process)?;
        Some(ProcessHandle {
            shared: self.shared.clone(),
            id: process.clone(),
            owner: owner.id,
            pusher: self.pusher.in_name_of(&owner),
        })
    }

    /// Collects orders of any of its processes, and of guests.
    pub fn batch(&self) -> Batch {
        Batch::new(self.pusher.clone())
    }

    /// Makes a [`Kernel::recv`] that waits, or the next one that would, return without events.
    pub fn wake(&self) {
        if let Some(system) = self.system() {
            system.wake();
        }
    }

    /// The same, whose orders are a producer's of their own.
    pub(crate) fn apart(&self) -> Self {
        Self { pusher: self.pusher.apart(), ..self.clone() }
    }

    /// Where what waits for its processes to be served is charged.
    pub(crate) fn waiting(&self) -> Charge {
        self.pusher.memory.as_ref().expect("a kernel has a memory").charge_anyway(HeldAs::Link, 0)
    }

    /// Has something else become of the broker's rules of entry from now on.
    ///
    /// # Errors
    /// The broker has stopped.
    #[cfg(feature = "link")]
    pub(crate) fn set_rules(&self, rules: RulesOverlay) -> Result<(), super::PushError> {
        let changed = self.shared.change(|directory| {
            directory.gateway = directory.gateway.clone().with_overlay(Some(rules));
            Ok::<(), std::convert::Infallible>(())
        })?;
        changed.unwrap_or_else(|never| match never {});
        Ok(())
    }

    /// Has another policy for frames that exceed a channel's budget from now on, for all its processes.
    #[cfg(feature = "link")]
    pub(crate) fn set_policy(&self, policy: Policy) {
        let directory = self.shared.directory();
        if let Some(system) = directory.system.and_then(|system| directory.owners.get(&system)) {
            system.wishes().set(policy, true, false);
        }
    }

    /// The rules of entry in force.
    pub(crate) fn settings(&self) -> Settings {
        self.shared.directory().gateway.settings().clone()
    }

    /// The handle that answers logins and calls of the RPC path. None: the broker has stopped.
    pub fn system(&self) -> Option<ProcessHandle> {
        self.owner(&self.system)
    }
}

impl KernelHandle {
    /// Where what is kept for it outside of the broker's own queues is charged.
    #[cfg(feature = "link")]
    pub(crate) fn memory(&self) -> &crate::admission::ProcessMemory {
        self.pusher.memory.as_ref().expect("a kernel has a memory")
    }

    /// A push to channels in the name of `guest`, the address of a process on another node: to those that their owners
    /// have let it in to. The others are counted as `not_found`, as if they did not exist.
    pub(crate) fn push_as_guest(
        &self,
        guest: Arc<str>,
        channels: Vec<ChannelId>,
        message: Message,
        delivery: DeliveryOptions,
    ) -> GuestPushOrder<'_> {
        GuestPushOrder { pusher: &self.pusher, guest, channels, message, delivery }
    }
}

impl ProcessHandle {
    /// The same, whose orders are a producer's of their own.
    pub(crate) fn apart(&self) -> Self {
        Self { pusher: self.pusher.apart(), ..self.clone() }
    }

    /// The same, whose orders are among those of `batch`.
    pub(crate) fn among(&self, batch: &Batch) -> Self {
        Self { pusher: self.pusher.among(batch.accounts()), ..self.clone() }
    }

    /// Where what waits for it to be served is charged.
    pub(crate) fn waiting(&self) -> Charge {
        self.pusher.memory.as_ref().expect("a process has a memory").charge_anyway(HeldAs::Link, 0)
    }

    /// Lets the process at `guest`, an address on another node, push to a channel of this process, or no more. The
    /// outcome counts 1 as `sent` if it is so now, as `not_found` or `not_owner`, or as `dropped` if the channel has as
    /// many guests as there may be ([`grants`]), or memory has no room.
    pub(crate) fn grant(
        &self,
        channel: ChannelId,
        guest: Arc<str>,
        is_granted: bool,
        delivery: DeliveryOptions,
    ) -> GrantOrder<'_> {
        GrantOrder { pusher: &self.pusher, channel, guest, is_granted, delivery }
    }

    /// As [`grant`](Self::grant), for all channels of this process. When it returns, that is so.
    ///
    /// # Errors
    /// See [`GrantError`].
    pub(crate) fn grant_all(&self, guest: &Arc<str>, is_granted: bool) -> Result<(), GrantError> {
        let changed = self.shared.change(|directory| {
            let mut guests = directory.grants.get(&self.owner).cloned().unwrap_or_default();
            let is_done = guests.change(guest, is_granted, grants::PER_OWNER_MAX, self.memory());
            match guests.is_empty() {
                true => drop(directory.grants.remove_mut(&self.owner)),
                false => directory.grants.insert_mut(self.owner, guests),
            }
            if is_done { Ok(()) } else { Err(GrantError::TooMany) }
        });
        changed.map_err(|_| GrantError::Stopped)?
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::Ledger;
    use crate::queue::events::process_queue;

    #[test]
    fn names_that_clients_invent_take_no_place() {
        let (queue, _receiver) = process_queue(1, QueueLimits::default(), &Ledger::default(), |_| {});
        let owners = KernelOwners {
            made: Mutex::default(),
            names: OwnerNames::default(),
            read_out: Arc::default(),
            next: Arc::new(AtomicU32::new(1)),
            memory: queue.memory_of("http-server:distro:sys".parse().unwrap()),
            queue,
            wishes: Arc::new(Wishes::of(Policy::Close)),
        };
        let resolve = |name: String| owners.resolve(&name.parse().unwrap());
        let count = || owners.made.lock().unwrap().by_name.len();
        let kept = resolve("kept:test:sys".to_owned()).unwrap();
        for n in 1..OWNERS_MAX {
            assert!(resolve(format!("a{n}:test:sys")).is_some());
        }
        // As long as the kernel has not read what may be on its way to them, they are kept.
        assert!(resolve("one:test:sys".to_owned()).is_none() && count() == OWNERS_MAX);
        owners.read_out.fetch_add(READ_OUT_BEFORE, Ordering::Relaxed);
        for n in 0..OWNERS_MAX {
            owners.read_out.fetch_add(1, Ordering::Relaxed);
            assert!(resolve(format!("b{n}:test:sys")).is_some(), "{n}");
        }
        assert!(count() < OWNERS_MAX / 2, "{}", count());
        assert_eq!(owners.names.lock().unwrap().len(), count());
        assert!(Arc::ptr_eq(&resolve("kept:test:sys".to_owned()).unwrap(), &kept));
    }
}
