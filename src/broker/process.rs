//! A process attached to a broker: it binds paths, receives events, and pushes.
//!
//! Invariant: dropping it removes everything that it has: its paths, its waiting requests and its channels (closed with
//! 1001, or 1011 when it failed or is dropped by a panic, or as `end` says).

use super::batch::Batch;
use super::here::away_from_shards;
use super::message::Message;
use super::order::{Broadcast, Close, Push, Reach, Respond, Subscribe, close_frame};
use super::other_brokers::ChannelAt;
use super::pusher::{Audience, Pusher};
use super::{AttachError, BindPathError, BrokerShared};
use crate::admission::{Charge, HeapBytes, HeldAs, ProcessMemory};
use crate::channel::ChannelId;
use crate::gateway::{
    BindError, BoundAt, HeadCheck, HttpRule, OwnerId, Snapshot, WebSocketRule, route_bytes, unbound_bytes,
};
use crate::http::Content;
use crate::process_id::ProcessId;
use crate::proto::close;
use crate::queue::events::{EventBatch, ProcessReceiver, QueueLimits, RecvError, process_queue};
use crate::shard::command::{CloseFrame, Command, Policy};
use crate::shard::event::{Event, RequestId};
use crate::shard::topics::TopicReport;
use crate::shard::{Owner, Wishes};
use bytes::Bytes;
use futures_core::Stream;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

/// The settings of a process.
#[derive(Debug, Clone, Copy, Default)]
pub struct AttachOptions {
    /// How much it may leave unread before its clients are no longer read.
    pub queue: QueueLimits,
    /// The policy for frames that exceed a channel's budget, where a push names none.
    pub policy: Policy,
    /// Whether it is told of pings, pongs and close frames ([`Event::Control`]).
    pub wants_control: bool,
    /// Whether it is told which channels are subscribed to its topics and which have left them ([`Event::Joined`],
    /// [`Event::Left`]).
    pub wants_topics: bool,
}

impl AttachOptions {
    pub(super) fn wishes(&self) -> Wishes {
        Wishes::new(self.policy, self.wants_control, self.wants_topics)
    }
}

/// The broker has stopped: no event will come any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the broker has stopped")]
pub struct Stopped;

/// The name of a process: a plain name (`chat`), or an id of three parts as in a node (`chat:demo:sys`). Sealed.
pub trait ProcessName {
    /// The id.
    #[doc(hidden)]
    fn into_id(self) -> Result<ProcessId, AttachError>;
}

impl ProcessName for ProcessId {
    fn into_id(self) -> Result<ProcessId, AttachError> {
        Ok(self)
    }
}

impl ProcessName for &ProcessId {
    fn into_id(self) -> Result<ProcessId, AttachError> {
        Ok(self.clone())
    }
}

impl ProcessName for &str {
    fn into_id(self) -> Result<ProcessId, AttachError> {
        Ok(ProcessId::named(self)?)
    }
}

impl ProcessName for String {
    fn into_id(self) -> Result<ProcessId, AttachError> {
        self.as_str().into_id()
    }
}

/// A process attached to a broker. It owns the channels that clients open on its paths, hears of them in [`Event`]s,
/// and pushes to them. Dropping it takes all of that away.
///
/// Events come to threads by [`recv_batch`](Self::recv_batch), [`recv_timeout`](Self::recv_timeout) and
/// [`recv_blocking`](Self::recv_blocking), and to tasks by [`recv`](Self::recv) and as a [`Stream`].
///
/// Its [`handle`](Self::handle) does the same from other threads.
pub struct Process {
    handle: ProcessHandle,
    receiver: ProcessReceiver,
    arrived: Mutex<Arrived>,
    end: Option<CloseFrame>,
}

/// Events that were taken out of the queue, and not asked for yet: those of one batch, which stay charged.
#[derive(Default)]
struct Arrived {
    events: VecDeque<Event>,
    /// The claim of as many events as there were when it was last adjusted.
    charge: Option<Charge>,
    charged: usize,
}

impl Arrived {
    /// In the place of those before it, which were all asked for.
    fn put(&mut self, mut batch: EventBatch) {
        self.charge = batch.take_charge();
        self.charged = batch.events.len();
        self.events = batch.events.into();
    }

    fn take(&mut self) -> Option<Event> {
        let event = self.events.pop_front();
        if self.events.is_empty() {
            self.charge = None;
        } else if self.events.len() <= self.charged / 2 {
            // Each event is looked at once more for this, on average: a constant cost.
            self.charged = self.events.len();
            self.events.shrink_to(self.charged);
            let bytes = self.events.iter().map(|event| event.heap_bytes() + size_of::<Event>()).sum();
            self.charge.iter_mut().for_each(|charge| charge.resize(bytes));
        }
        event
    }
}

/// The acting half of a [`Process`]: binds, pushes, closes and responds in its name. Cheap to clone, usable from any
/// thread. Order holds for the calls of one thread.
#[derive(Clone)]
pub struct ProcessHandle {
    pub(super) shared: Arc<BrokerShared>,
    pub(super) id: ProcessId,
    pub(super) owner: OwnerId,
    pub(super) pusher: Pusher,
}

impl Process {
    pub(super) fn attach(
        shared: Arc<BrokerShared>,
        id: ProcessId,
        options: AttachOptions,
    ) -> Result<Self, AttachError> {
        let owner = shared.new_owner();
        let wakers = shared.inboxes.clone();
        let (queue, receiver) =
            process_queue(wakers.len(), options.queue, &shared.memory, move |shard| wakers[shard].kick());
        let entry = Arc::new(Owner::new(owner, id.clone(), queue, options.wishes()));
        let pusher = Pusher::of_process(shared.clone(), &entry);
        let attached = shared.change(|directory| {
            if directory.processes.contains_key(&id) {
                return Err(AttachError::Taken(id.clone()));
            }
            directory.attach(entry);
            Ok(())
        });
        attached.map_err(|_| AttachError::Stopped)??;
        let handle = ProcessHandle { shared, id, owner, pusher };
        Ok(Self { handle, receiver, arrived: Mutex::default(), end: None })
    }

    /// The acting half, to be cloned for other threads and tasks.
    pub fn handle(&self) -> &ProcessHandle {
        &self.handle
    }

    /// Its name.
    pub fn id(&self) -> &ProcessId {
        &self.handle.id
    }

    /// As [`ProcessHandle::bind_at`].
    ///
    /// # Errors
    /// As there.
    pub fn bind_at(&self, path: &str) -> Result<(), BindPathError> {
        self.handle.bind_at(path)
    }

    /// As [`ProcessHandle::bind_at_with`].
    ///
    /// # Errors
    /// As there.
    pub fn bind_at_with(&self, path: &str, rule: WebSocketRule) -> Result<(), BindPathError> {
        self.handle.bind_at_with(path, rule)
    }

    /// As [`ProcessHandle::bind_http_at`].
    ///
    /// # Errors
    /// As there.
    pub fn bind_http_at(&self, path: &str, rule: HttpRule) -> Result<(), BindPathError> {
        self.handle.bind_http_at(path, rule)
    }

    /// As [`ProcessHandle::bind`].
    ///
    /// # Errors
    /// As there.
    pub fn bind(&self, path: &str, rule: WebSocketRule) -> Result<(), BindPathError> {
        self.handle.bind(path, rule)
    }

    /// As [`ProcessHandle::unbind`].
    ///
    /// # Errors
    /// As there.
    pub fn unbind(&self, path: &str) -> Result<(), BindPathError> {
        self.handle.unbind(path)
    }

    /// As [`ProcessHandle::bind_http`].
    ///
    /// # Errors
    /// As there.
    pub fn bind_http(&self, path: &str, rule: HttpRule) -> Result<(), BindPathError> {
        self.handle.bind_http(path, rule)
    }

    /// As [`ProcessHandle::unbind_http`].
    ///
    /// # Errors
    /// As there.
    pub fn unbind_http(&self, path: &str) -> Result<(), BindPathError> {
        self.handle.unbind_http(path)
    }

    /// As [`ProcessHandle::push`].
    pub fn push(&self, channel: ChannelId, message: Message) -> Push<'_> {
        self.handle.push(channel, message)
    }

    /// As [`ProcessHandle::push_at`].
    pub fn push_at(&self, to: &ChannelAt, message: Message) -> Push<'_> {
        self.handle.push_at(to, message)
    }

    /// As [`ProcessHandle::broadcast`].
    pub fn broadcast(&self, message: Message) -> Broadcast<'_> {
        self.handle.broadcast(message)
    }

    /// As [`ProcessHandle::subscribe`].
    pub fn subscribe(&self, channel: ChannelId, topic: impl Into<Arc<str>>) -> Subscribe<'_> {
        self.handle.subscribe(channel, topic)
    }

    /// As [`ProcessHandle::unsubscribe`].
    pub fn unsubscribe(&self, channel: ChannelId, topic: impl Into<Arc<str>>) -> Subscribe<'_> {
        self.handle.unsubscribe(channel, topic)
    }

    /// As [`ProcessHandle::topics`].
    pub fn topics(&self, prefix: &str, after: Option<&str>, limit: usize) -> Vec<TopicReport> {
        self.handle.topics(prefix, after, limit)
    }

    /// As [`ProcessHandle::subscribers`].
    pub fn subscribers(&self, topic: &str) -> usize {
        self.handle.subscribers(topic)
    }

    /// As [`ProcessHandle::close`].
    pub fn close(&self, channel: ChannelId, code: u16, reason: &str) -> Close<'_> {
        self.handle.close(channel, code, reason)
    }

    /// As [`ProcessHandle::disconnect`].
    pub fn disconnect(&self, channel: ChannelId) -> Close<'_> {
        self.handle.disconnect(channel)
    }

    /// As [`ProcessHandle::respond`].
    pub fn respond(&self, request: RequestId, status: u16) -> Respond<'_> {
        self.handle.respond(request, status)
    }

    /// As [`ProcessHandle::batch`].
    pub fn batch(&self) -> Batch {
        self.handle.batch()
    }

    /// The next event, for a task of any executor: `while let Ok(event) = process.recv().await`. Dropping the future
    /// loses nothing.
    ///
    /// # Errors
    /// The broker has stopped.
    pub fn recv(&mut self) -> impl Future<Output = Result<Event, Stopped>> + Send + '_ {
        poll_fn(|context| self.poll_recv(context))
    }

    /// The next event, for hand-written futures: the task of `context` is woken when there is one.
    ///
    /// # Errors
    /// The broker has stopped.
    pub fn poll_recv(&mut self, context: &mut Context<'_>) -> Poll<Result<Event, Stopped>> {
        let arrived = self.arrived.get_mut().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(event) = arrived.take() {
                return Poll::Ready(Ok(event));
            }
            match ready!(self.receiver.poll_recv(context)) {
                // Without events: `wake` was called.
                Ok(batch) => arrived.put(batch),
                Err(_) => return Poll::Ready(Err(Stopped)),
            }
        }
    }

    /// The next event, if there is one within `timeout`; none is no error. Blocks the thread.
    ///
    /// # Errors
    /// The broker has stopped.
    pub fn recv_timeout(&mut self, timeout: Duration) -> Result<Option<Event>, Stopped> {
        let arrived = self.arrived.get_mut().unwrap_or_else(PoisonError::into_inner);
        if arrived.events.is_empty() {
            match self.receiver.recv(timeout) {
                Ok(batch) => arrived.put(batch),
                Err(RecvError::Timeout) => {}
                Err(RecvError::Stopped) => return Err(Stopped),
            }
        }
        Ok(arrived.take())
    }

    /// The next event, whenever it comes. Blocks the thread.
    ///
    /// # Errors
    /// The broker has stopped.
    pub fn recv_blocking(&mut self) -> Result<Event, Stopped> {
        loop {
            if let Some(event) = self.recv_timeout(A_WHILE)? {
                return Ok(event);
            }
        }
    }

    /// Waits for events and appends all that are there to `events`, in order for each channel. Returns their number: 0
    /// after `timeout`, or when a handle has [woken](ProcessHandle::wake) it. Blocks the thread.
    ///
    /// # Errors
    /// The broker has stopped.
    pub fn recv_batch(&self, events: &mut Vec<Event>, timeout: Duration) -> Result<usize, Stopped> {
        let before = events.len();
        events.extend(std::mem::take(&mut *self.arrived()).events);
        if events.len() == before {
            let mut first = match self.receiver.recv(timeout) {
                Ok(batch) => batch.events,
                Err(RecvError::Timeout) => return Ok(0),
                Err(RecvError::Stopped) => return Err(Stopped),
            };
            if events.is_empty() {
                std::mem::swap(events, &mut first);
            } else {
                events.append(&mut first);
            }
        }
        while let Ok(mut batch) = self.receiver.try_recv() {
            events.append(&mut batch.events);
        }
        Ok(events.len() - before)
    }

    /// Ends it as a panic does: its channels are closed with 1011.
    pub fn fail(mut self) {
        self.end = Some(failed());
    }

    /// Ends it, its channels with this code, which must be one that may travel (RFC 6455 7.4), and reason.
    pub fn end(mut self, code: u16, reason: &str) {
        self.end = Some(close_frame(code, reason));
    }

    fn arrived(&self) -> MutexGuard<'_, Arrived> {
        self.arrived.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(feature = "link")]
impl Process {
    /// As [`recv_batch`](Self::recv_batch), one batch at a time, with the memory charge of its events, for callers that
    /// keep them waiting elsewhere.
    pub(crate) fn recv_charged(&self, events: &mut Vec<Event>, timeout: Duration) -> Result<Option<Charge>, Stopped> {
        match self.receiver.recv(timeout) {
            Ok(mut batch) => {
                events.append(&mut batch.events);
                Ok(batch.take_charge())
            }
            Err(RecvError::Timeout) => Ok(None),
            Err(RecvError::Stopped) => Err(Stopped),
        }
    }
}

/// How long a wait without an end lasts before it begins anew.
const A_WHILE: Duration = Duration::from_secs(3600);

/// The events of the process; ends when the broker has stopped.
impl Stream for Process {
    type Item = Event;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Event>> {
        self.get_mut().poll_recv(context).map(Result::ok)
    }
}

impl ProcessHandle {
    /// Its name.
    pub fn id(&self) -> &ProcessId {
        &self.id
    }

    /// Returns whether the process that this acts for is still attached.
    pub fn is_attached(&self) -> bool {
        self.shared.directory().owners.contains_key(&self.owner)
    }

    /// Where what is kept for it outside of the broker's own queues is charged.
    pub(crate) fn memory(&self) -> &ProcessMemory {
        self.pusher.memory.as_ref().expect("a process has a memory")
    }

    /// A message to a channel of this process. If the channel is gone, unknown or another process', that is no error of
    /// the call: [ask](Push::ask) for the outcome.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use pushring::{Broker, ChannelId, Message};
    /// # use std::time::Duration;
    /// # let broker = Broker::builder().shards(1).start()?;
    /// # let chat = broker.process("chat")?;
    /// # let channel = ChannelId::new(7);
    /// chat.push(channel, Message::text("hello")).try_send()?; // never waits
    /// chat.push(channel, Message::text("hello")).send()?; // waits for room in the shard's inbox
    /// let ticket = chat.push(channel, Message::text("hello")).ask().send()?;
    /// let outcome = ticket.wait(Duration::from_secs(5))?;
    /// assert_eq!(outcome.not_found, 1, "no client has connected yet");
    /// # Ok(())
    /// # }
    /// ```
    pub fn push(&self, channel: ChannelId, message: Message) -> Push<'_> {
        Push { pusher: &self.pusher, channel, at: None, message, delivery: Default::default() }
    }

    /// One message to all channels of this process, or to those that its options say.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use pushring::{Audience, Broker, ChannelId, Message, Policy};
    /// # let broker = Broker::builder().shards(1).start()?;
    /// # let chat = broker.process("chat")?;
    /// # let sender = ChannelId::new(7);
    /// chat.broadcast(Message::text("hello")).except(sender).policy(Policy::DropNewest).send()?;
    /// chat.broadcast(Message::text("hello")).to(vec![sender]).send()?;
    /// chat.broadcast(Message::text("hello")).to(Audience::Path("/lobby".into())).try_send()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn broadcast(&self, message: Message) -> Broadcast<'_> {
        let (audience, except) = (Audience::Process, Vec::new());
        Broadcast { pusher: &self.pusher, audience, except, message, delivery: Default::default(), reach: Reach::Here }
    }

    /// Subscribes a channel of this process to a topic: a name of 1 to 255 bytes, which means something within this
    /// process only. What is published behind it reaches the channel, until it is unsubscribed or ends. To subscribe
    /// again changes nothing.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use pushring::{Audience, Broker, ChannelId, Message};
    /// # let broker = Broker::builder().shards(1).start()?;
    /// # let chat = broker.process("chat")?;
    /// # let channel = ChannelId::new(7);
    /// chat.subscribe(channel, "room/7").send()?;
    /// chat.broadcast(Message::text("hello")).to(Audience::Topic("room/7".into())).except(channel).send()?;
    /// chat.unsubscribe(channel, "room/7").send()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn subscribe(&self, channel: ChannelId, topic: impl Into<Arc<str>>) -> Subscribe<'_> {
        let topic = topic.into();
        Subscribe { pusher: &self.pusher, channel, topic, is_out: false, heard: None, delivery: Default::default() }
    }

    /// Takes a channel of this process out of a topic. One that is not subscribed to it stays so.
    pub fn unsubscribe(&self, channel: ChannelId, topic: impl Into<Arc<str>>) -> Subscribe<'_> {
        let topic = topic.into();
        Subscribe { pusher: &self.pusher, channel, topic, is_out: true, heard: None, delivery: Default::default() }
    }

    /// At most `limit` topics of this process that have subscribers, by name: those that begin with `prefix` and follow
    /// `after`. Asks no shard.
    pub fn topics(&self, prefix: &str, after: Option<&str>, limit: usize) -> Vec<TopicReport> {
        self.pusher.topics.page(prefix, after, limit)
    }

    /// How many channels are subscribed to a topic of this process, those that are about to be among them. Asks no
    /// shard.
    pub fn subscribers(&self, topic: &str) -> usize {
        self.pusher.topic(topic).map_or(0, |topic| topic.subscribers())
    }

    /// Closes a channel of this process behind what is queued for it. The code must be one that may travel (RFC 6455
    /// 7.4); the client is sent none otherwise.
    pub fn close(&self, channel: ChannelId, code: u16, reason: &str) -> Close<'_> {
        let why = close_frame(code, reason);
        Close { pusher: &self.pusher, channel, why, abruptly: false, delivery: Default::default() }
    }

    /// Ends the connection of a channel at once and without a close frame, as a network that fails does. A channel that
    /// outlives its connection (`resume`) waits for its client; any other ends with 1006. For tests of clients that
    /// come back, and for clients that a process wants to see on another network.
    pub fn disconnect(&self, channel: ChannelId) -> Close<'_> {
        let why = CloseFrame { code: None, reason: "".into() };
        Close { pusher: &self.pusher, channel, why, abruptly: true, delivery: Default::default() }
    }

    /// A response to an HTTP request. A late response is dropped.
    pub fn respond(&self, request: RequestId, status: u16) -> Respond<'_> {
        let (headers, body) = (Vec::new(), Bytes::new());
        Respond { pusher: &self.pusher, request, status, headers, body, delivery: Default::default() }
    }

    /// Collects orders, so that many cost as little to hand over as one.
    pub fn batch(&self) -> Batch {
        Batch::new(self.pusher.clone())
    }

    /// Makes a [`Process::recv_batch`] that waits, or the next one that would, return without events.
    pub fn wake(&self) {
        if let Some(owner) = self.shared.directory().owners.get(&self.owner) {
            owner.queue.wake(self.owner);
        }
    }

    /// Lets clients open channels of this process at `path`, a whole path of the broker, with or without a token. Waits
    /// until every shard knows it: when it returns, they can.
    ///
    /// # Errors
    /// The path is no pattern, or the broker has stopped.
    pub fn bind_at(&self, path: &str) -> Result<(), BindPathError> {
        self.bind_at_with(path, WebSocketRule::default())
    }

    /// As [`bind_at`](Self::bind_at), with a rule of entry.
    ///
    /// # Errors
    /// As there.
    pub fn bind_at_with(&self, path: &str, rule: WebSocketRule) -> Result<(), BindPathError> {
        let charge = Some(self.charge_route(path, None)?);
        self.change(|snapshot| {
            snapshot.bind_websocket_charged(self.owner, &self.id, BoundAt::Whole(path), rule, charge)
        })
    }

    /// Serves HTTP requests for `path`, a whole path of the broker: content at once, others as [`Event::Http`]. Waits
    /// as
    /// [`bind_at`](Self::bind_at) does.
    ///
    /// # Errors
    /// As there.
    pub fn bind_http_at(&self, path: &str, rule: HttpRule) -> Result<(), BindPathError> {
        self.bind_http_checked(BoundAt::Whole(path), rule, None)
    }

    /// Takes a [`bind_at`](Self::bind_at) and a [`bind_http_at`](Self::bind_http_at) back; open channels stay.
    ///
    /// # Errors
    /// As there.
    pub fn unbind_at(&self, path: &str) -> Result<(), BindPathError> {
        let at = BoundAt::Whole(path);
        let [websocket, http] = [(); 2].map(|()| Some(self.charge_unbound(path)));
        self.change(|snapshot| {
            snapshot.unbind_websocket_charged(self.owner, &self.id, at, websocket)?;
            snapshot.unbind_http_charged(self.owner, &self.id, at, http)
        })
    }

    /// Lets clients open channels of this process at `/PROCESS_ID` + `path`, as a node's processes do. Waits until
    /// every shard knows it: when it returns, they can.
    ///
    /// # Errors
    /// The process may not bind, the path is no pattern, or the broker has stopped.
    pub fn bind(&self, path: &str, rule: WebSocketRule) -> Result<(), BindPathError> {
        self.may_bind()?;
        self.bind_any(path, rule)
    }

    /// As [`bind`](Self::bind), where the caller has checked that the process may.
    pub(crate) fn bind_any(&self, path: &str, rule: WebSocketRule) -> Result<(), BindPathError> {
        let charge = Some(self.charge_route(path, None)?);
        self.change(|snapshot| snapshot.bind_websocket_charged(self.owner, &self.id, BoundAt::Own(path), rule, charge))
    }

    /// Takes a [`bind`](Self::bind) back; open channels stay.
    ///
    /// # Errors
    /// As [`bind`](Self::bind).
    pub fn unbind(&self, path: &str) -> Result<(), BindPathError> {
        let charge = Some(self.charge_unbound(path));
        self.change(|snapshot| snapshot.unbind_websocket_charged(self.owner, &self.id, BoundAt::Own(path), charge))
    }

    /// Serves HTTP requests for `/PROCESS_ID` + `path`: content at once, others as [`Event::Http`]. Waits as
    /// [`bind`](Self::bind) does.
    ///
    /// # Errors
    /// As [`bind`](Self::bind).
    pub fn bind_http(&self, path: &str, rule: HttpRule) -> Result<(), BindPathError> {
        self.may_bind()?;
        self.bind_http_any(path, rule)
    }

    /// As [`bind_http`](Self::bind_http), where the caller has checked that the process may.
    pub(crate) fn bind_http_any(&self, path: &str, rule: HttpRule) -> Result<(), BindPathError> {
        self.bind_http_checked(BoundAt::Own(path), rule, None)
    }

    /// As [`bind_http_any`](Self::bind_http_any); `check` judges requests by their heads.
    pub(crate) fn bind_http_checked(
        &self,
        path: BoundAt<'_>,
        rule: HttpRule,
        check: Option<Arc<dyn HeadCheck>>,
    ) -> Result<(), BindPathError> {
        let (BoundAt::Own(text) | BoundAt::Whole(text)) = path;
        let charge = Some(self.charge_route(text, rule.content.as_deref())?);
        self.change(|snapshot| snapshot.bind_http_charged(self.owner, &self.id, path, (rule, check), charge))
    }

    /// Takes a [`bind_http`](Self::bind_http) back.
    ///
    /// # Errors
    /// As [`bind`](Self::bind).
    pub fn unbind_http(&self, path: &str) -> Result<(), BindPathError> {
        let charge = Some(self.charge_unbound(path));
        self.change(|snapshot| snapshot.unbind_http_charged(self.owner, &self.id, BoundAt::Own(path), charge))
    }

    /// Has the wishes of a successor over a link in force from now on.
    #[cfg(feature = "link")]
    pub(crate) fn set_wishes(&self, options: &AttachOptions) {
        if let Some(owner) = self.shared.directory().owners.get(&self.owner) {
            owner.wishes().set(options.policy, options.wants_control, options.wants_topics);
        }
    }

    /// Charges what a route holds of memory.
    fn charge_route(&self, path: &str, content: Option<&Content>) -> Result<Charge, BindPathError> {
        let bytes = route_bytes(&self.id, path) + content.map_or(0, Content::held_bytes);
        self.memory().charge(HeldAs::Content, bytes).map_err(|_| BindPathError::Memory { bytes })
    }

    /// Charges what is remembered of a path that is unbound, which cannot be refused: few are remembered.
    fn charge_unbound(&self, path: &str) -> Charge {
        self.memory().charge_anyway(HeldAs::Content, unbound_bytes(&self.id, path))
    }

    fn may_bind(&self) -> Result<(), BindPathError> {
        if self.id.may_bind() { Ok(()) } else { Err(BindError::Process.into()) }
    }

    fn change(&self, change: impl FnOnce(&mut Snapshot) -> Result<(), BindError>) -> Result<(), BindPathError> {
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

impl Drop for Process {
    fn drop(&mut self) {
        self.handle.take_away(self.end.take().unwrap_or_else(ended_or_failed));
    }
}

impl ProcessHandle {
    /// Takes away all that the process has. Waits until it has no path any more; on a shard's thread another one does.
    pub(super) fn take_away(&self, why: CloseFrame) {
        let Self { shared, owner, pusher, .. } = self.clone();
        away_from_shards("end of a process", move || {
            // Both fail only when the broker has stopped, and then there is nothing to take away.
            let _ = shared.change(|directory| {
                directory.remove(owner);
                Ok::<(), std::convert::Infallible>(())
            });
            let _ = pusher.send_all(|| Command::OwnerGone { owner, why: why.clone() });
        });
    }
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

#[cfg(test)]
mod tests {
    use super::unbound_bytes;
    use crate::broker::Broker;

    #[test]
    fn what_is_remembered_of_unbound_paths_is_counted_and_bounded() {
        let broker = Broker::builder().shards(1).start().unwrap();
        let process = broker.process("p").unwrap();
        let held = || process.handle().memory().tenant().held().content;
        process.bind_at("/whole").unwrap();
        process.handle().unbind_at("/whole").unwrap();
        assert_eq!(held(), unbound_bytes(&process.handle().id, "/whole"), "it was bound for one of the two");
        let path = |number: usize| format!("/{number}/{}", "x".repeat(1000));
        let unbind = |numbers: std::ops::Range<usize>| {
            for number in numbers {
                process.unbind(&path(number)).unwrap();
                process.unbind_http(&path(number)).unwrap();
            }
        };
        unbind(0..10);
        let few = held();
        assert!(few > 20 * 1_000, "{few}");
        unbind(10..256);
        let most = held();
        unbind(256..300);
        assert!((25 * few..most + few / 10).contains(&held()), "the oldest are forgotten: {few}, {most}, {}", held());
    }
}
