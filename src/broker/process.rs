//! A process attached to a broker: it binds paths, receives events in batches, and pushes.
//!
//! Invariant: dropping it takes everything of it away: its paths, its waiting requests and its channels (closed with
//! 1001, or 1011 when it failed or is dropped by a panic, or as `end` says).

use super::{AttachError, BindPathError, GrantError, Pusher, Shared};
use crate::gateway::{BindError, HttpRule, OwnerId, WebSocketRule};
use crate::process_id::ProcessId;
use crate::proto::close;
use crate::queue::events::{Batch, ProcessReceiver, QueueLimits, RecvError, process_queue};
use crate::shard::command::{CloseFrame, Command, Policy, Respond};
use crate::shard::event::{Event, RequestId};
use crate::shard::{Owner, grants};
use bytes::Bytes;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

/// What a process is attached with.
#[derive(Debug, Clone, Copy, Default)]
pub struct AttachOptions {
    /// How much it may leave unread before its clients are no longer read.
    pub queue: QueueLimits,
    /// What happens to frames that do not fit a channel's budget, where a push does not say.
    pub policy: Policy,
    /// Whether it is told of pings, pongs and close frames ([`Event::Control`]).
    pub wants_control: bool,
}

/// See the module. What it does is its [`OwnerHandle`]'s, which this derefs to; what it hears comes out here.
pub struct Process {
    handle: OwnerHandle,
    receiver: ProcessReceiver,
    end: Option<CloseFrame>,
}

/// The acting half of a process: binds, pushes, closes and responds in its name. Pushing is [`Pusher`]'s, which this
/// derefs to; clone that for other threads.
#[derive(Clone)]
pub struct OwnerHandle {
    pub(super) shared: Arc<Shared>,
    pub(super) id: ProcessId,
    pub(super) owner: OwnerId,
    pub(super) pusher: Pusher,
}

impl Process {
    pub(super) fn attach(shared: Arc<Shared>, id: ProcessId, options: AttachOptions) -> Result<Self, AttachError> {
        let owner = shared.new_owner();
        let wakers = shared.inboxes.clone();
        let (queue, receiver) =
            process_queue(wakers.len(), options.queue, &shared.memory, move |shard| wakers[shard].kick());
        let entry = Arc::new(Owner::new(owner, id.clone(), queue, options.policy, options.wants_control));
        let pusher = Pusher::of_process(shared.clone(), &entry);
        let attached = shared.change(|directory| {
            if directory.processes.contains_key(&id) {
                return Err(AttachError::Taken(id.clone()));
            }
            directory.attach(entry);
            Ok(())
        });
        attached.map_err(|_| AttachError::Stopped)??;
        Ok(Self { handle: OwnerHandle { shared, id, owner, pusher }, receiver, end: None })
    }

    /// Ends it as a panic does: its channels are closed with 1011.
    pub fn fail(mut self) {
        self.end = Some(failed());
    }

    /// Ends it, its channels with this code, which must be one that may travel (RFC 6455 7.4), and reason.
    pub fn end(mut self, code: u16, reason: &str) {
        self.end = Some(close_frame(code, reason));
    }

    /// Waits for events and appends all that are there to `events`, in order for each channel.
    ///
    /// # Errors
    /// Nothing came in time, or the broker has stopped.
    pub fn recv_batch(&self, events: &mut Vec<Event>, timeout: Duration) -> Result<(), RecvError> {
        let mut first = self.receiver.recv(timeout)?.events;
        if events.is_empty() {
            std::mem::swap(events, &mut first);
        } else {
            events.append(&mut first);
        }
        while let Ok(mut batch) = self.receiver.try_recv() {
            events.append(&mut batch.events);
        }
        Ok(())
    }
}

impl OwnerHandle {
    /// Its name.
    pub fn id(&self) -> &ProcessId {
        &self.id
    }

    /// The pushing half, for other threads.
    pub fn pusher(&self) -> Pusher {
        self.pusher.clone()
    }

    /// Makes a [`Process::recv_batch`] that waits, or the next one that would, return without events.
    pub fn wake(&self) {
        if let Some(owner) = self.shared.directory().owners.get(&self.owner) {
            owner.queue.send(Batch::new(self.owner));
        }
    }

    /// Lets clients open channels of this process at `/PROCESS_ID` + `path`. When it returns, they can.
    ///
    /// # Errors
    /// The process may not bind, the path is no pattern, or the broker has stopped.
    pub fn bind(&self, path: &str, rule: WebSocketRule) -> Result<(), BindPathError> {
        self.may_bind()?;
        self.bind_any(path, rule)
    }

    /// As [`bind`](Self::bind), where it was judged already whether the process may.
    pub(crate) fn bind_any(&self, path: &str, rule: WebSocketRule) -> Result<(), BindPathError> {
        self.change(|snapshot| snapshot.bind_websocket(self.owner, &self.id, path, rule))
    }

    /// Takes a [`bind`](Self::bind) back; open channels stay.
    ///
    /// # Errors
    /// As [`bind`](Self::bind).
    pub fn unbind(&self, path: &str) -> Result<(), BindPathError> {
        self.change(|snapshot| snapshot.unbind_websocket(&self.id, path))
    }

    /// Serves HTTP requests for `/PROCESS_ID` + `path`: content at once, others as [`Event::Http`].
    ///
    /// # Errors
    /// As [`bind`](Self::bind).
    pub fn bind_http(&self, path: &str, rule: HttpRule) -> Result<(), BindPathError> {
        self.may_bind()?;
        self.bind_http_any(path, rule)
    }

    /// As [`bind_http`](Self::bind_http), where it was judged already whether the process may.
    pub(crate) fn bind_http_any(&self, path: &str, rule: HttpRule) -> Result<(), BindPathError> {
        self.change(|snapshot| snapshot.bind_http(self.owner, &self.id, path, rule))
    }

    /// Takes a [`bind_http`](Self::bind_http) back.
    ///
    /// # Errors
    /// As [`bind`](Self::bind).
    pub fn unbind_http(&self, path: &str) -> Result<(), BindPathError> {
        self.change(|snapshot| snapshot.unbind_http(&self.id, path))
    }

    /// Answers an HTTP request. An answer that comes too late reaches nobody.
    ///
    /// # Errors
    /// The broker has stopped.
    pub fn respond(
        &self,
        request: RequestId,
        status: u16,
        headers: Vec<(Box<str>, Box<str>)>,
        body: impl Into<Bytes>,
    ) -> Result<(), super::PushError> {
        self.pusher.respond(Respond { request, owner: self.owner, status, headers, body: body.into() })
    }

    /// Lets the process at `guest`, an address on another node, push to all channels of this process, or no more. When
    /// it returns, that is so.
    ///
    /// # Errors
    /// See [`GrantError`].
    pub fn grant_all(&self, guest: &Arc<str>, is_granted: bool) -> Result<(), GrantError> {
        let changed = self.shared.change(|directory| {
            let mut guests = directory.grants.get(&self.owner).cloned().unwrap_or_default();
            let is_done = grants::change(&mut guests, guest, is_granted, grants::PER_OWNER_MAX);
            match guests.is_empty() {
                true => drop(directory.grants.remove_mut(&self.owner)),
                false => directory.grants.insert_mut(self.owner, guests),
            }
            if is_done { Ok(()) } else { Err(GrantError::TooMany) }
        });
        changed.map_err(|_| GrantError::Stopped)?
    }

    fn may_bind(&self) -> Result<(), BindPathError> {
        if self.id.may_bind() { Ok(()) } else { Err(BindError::Process.into()) }
    }

    fn change(
        &self,
        change: impl FnOnce(&mut crate::gateway::Snapshot) -> Result<(), crate::gateway::BindError>,
    ) -> Result<(), BindPathError> {
        let changed = self.shared.change(|directory| {
            // An owner of a kernel enters the directory with its first bind. One that is gone binds nothing.
            let owner = directory.find(&self.id).filter(|owner| owner.id == self.owner);
            directory.add(owner.ok_or(BindPathError::Stopped)?);
            change(&mut directory.gateway)?;
            directory.remove_if_unused(self.owner);
            Ok::<(), BindPathError>(())
        });
        changed.map_err(|_| BindPathError::Stopped)?
    }
}

impl Deref for Process {
    type Target = OwnerHandle;

    fn deref(&self) -> &OwnerHandle {
        &self.handle
    }
}

impl Deref for OwnerHandle {
    type Target = Pusher;

    fn deref(&self) -> &Pusher {
        &self.pusher
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let why = self.end.take().unwrap_or_else(ended_or_failed);
        let owner = self.owner;
        // Both fail only when the broker has stopped, and then there is nothing to take away.
        let _ = self.shared.change(|directory| {
            directory.remove(owner);
            Ok::<(), std::convert::Infallible>(())
        });
        let _ = self.shared.send_all(|_| Command::OwnerGone { owner, why: why.clone() });
    }
}

pub(super) fn close_frame(code: u16, reason: &str) -> CloseFrame {
    CloseFrame { code: close::code_may_travel(code).then_some(code), reason: reason.into() }
}

/// Why channels are closed whose process is dropped without a word.
pub(super) fn ended_or_failed() -> CloseFrame {
    match std::thread::panicking() {
        true => failed(),
        false => CloseFrame { code: Some(close::code::GOING_AWAY), reason: "the process has ended".into() },
    }
}

pub(super) fn failed() -> CloseFrame {
    CloseFrame { code: Some(close::code::INTERNAL_ERROR), reason: "the process failed".into() }
}
