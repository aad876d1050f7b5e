//! Processes that run on the shards: no thread, no queue and no wake-up stand between a message and its answer.
//!
//! This is the only way in which code of a process runs on a shard's thread. Invariants: a handler's API has no
//! blocking calls; its time is measured and reported to the shard, which charges it; a panic ends its process, with
//! 1011 for its channels, and nothing else; orders for other shards that find no room wait here, bounded, and the
//! handler is given no events meanwhile.

use super::contained::{HandlerMaker, contained};
use super::here::HandlerThread;
use super::message::Message;
use super::order::{Broadcast, Close, Commands, Order, Push, Reach, Respond, Subscribe, close_frame};
use super::process::{AttachOptions, ProcessHandle, ProcessName, ended_or_failed, failed};
use super::pusher::{Audience, Full, PushError, Pusher, give_each};
use super::{AttachError, Broker, BrokerHandle, BrokerShared, DeliveryOptions, Policy};
use crate::admission::{Charge, HeldAs, ProcessMemory};
use crate::channel::ChannelId;
use crate::driver::clock::monotonic_ns;
use crate::process_id::ProcessId;
use crate::proto::MessageKind;
use crate::queue::events::{ProcessQueue, ProcessReceiver, QueueLimits, process_queue};
use crate::queue::orders::InboxSender;
use crate::shard::Owner;
use crate::shard::command::{CloseFrame, Command, HostCommand, ReportTo};
use crate::shard::event::{ClientMessage, Event, RequestId};
use crate::shard::handler::{Failed, Handler, HandlerContext, HandlerWait};
use crate::shard::outcome::{Outcome, OutcomeCollector as Parts};
use bytes::Bytes;
use crossbeam_channel::{Sender, bounded};
use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

/// The most orders that may wait for room on one other shard, and the bytes that they may keep alive: a quarter of an
/// inbox.
const KEPT_ORDERS_MAX: usize = 4096;
const KEPT_BYTES_MAX: usize = 16 * 1024 * 1024;

/// The code of a process on one shard. Closures with these arguments implement it.
pub trait ShardHandler: 'static {
    /// Handles an event of a channel of this shard, or of an order given here. The whole shard waits until this
    /// returns; the log reports calls longer than 0.25 ms.
    fn on_event(&mut self, here: &mut Here<'_>, event: Event);

    /// Handles a client's message. If no earlier event waits, the payload is still in the read buffer, so using it here
    /// spares the copy into an event. Default: it becomes an [`Event::Message`].
    fn on_message(&mut self, here: &mut Here<'_>, message: ClientMessage<'_>) {
        self.on_event(here, message.into_event());
    }
}

impl<F: FnMut(&mut Here<'_>, Event) + 'static> ShardHandler for F {
    fn on_event(&mut self, here: &mut Here<'_>, event: Event) {
        self(here, event);
    }
}

impl Broker {
    /// Attaches a process that runs on the shards. See [`BrokerHandle::on_shards`].
    ///
    /// # Errors
    /// As there.
    pub fn on_shards<H: ShardHandler>(
        &self,
        name: impl ProcessName,
        make: impl Fn(usize) -> H + Send + Sync + 'static,
    ) -> Result<ShardProcess, AttachError> {
        self.handle().on_shards(name, make)
    }
}

impl BrokerHandle {
    /// Attaches a process that runs on the shards: `make` is called on each shard's thread with its number, and makes
    /// the handler of the channels that live there. The same events come as to any process, and the same orders go, but
    /// nothing stands between a message and its answer: no thread, no queue, no copy. In return a handler must be quick
    /// and must not wait, for all clients of its shard wait for it. What takes long, or waits for anything, belongs
    /// into a
    /// [`Process`](crate::Process), which is the usual way.
    ///
    /// A handler takes turns with the other work of its shard, and with other handlers, by the time that it takes. One
    /// that takes longer than its part of a turn (0.25 ms) is told of in the log and counted (`handler_slow`). A panic
    /// closes the process' channels with 1011; all others go on.
    ///
    /// ```
    /// use pushring::{Broker, Event, Here, Message};
    ///
    /// let broker = Broker::builder().shards(2).start()?;
    /// let echo = broker.on_shards("echo", |_shard| {
    ///     // What a handler keeps is its shard's own: no lock, no atomics.
    ///     let mut echoed = 0_u64;
    ///     move |here: &mut Here<'_>, event: Event| {
    ///         if let Event::Message { channel, kind, payload } = event {
    ///             echoed += 1;
    ///             let message = Message::of_kind(kind, payload).expect("received text is UTF-8");
    ///             // Never waits: a client that does not keep up meets its budget and the policy.
    ///             let _ = here.push(channel, message).send();
    ///         }
    ///     }
    /// })?;
    /// echo.handle().bind_at("/echo")?;
    /// println!("ws://{}/echo", broker.address());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// See [`AttachError`].
    pub fn on_shards<H: ShardHandler>(
        &self,
        name: impl ProcessName,
        make: impl Fn(usize) -> H + Send + Sync + 'static,
    ) -> Result<ShardProcess, AttachError> {
        self.on_shards_with(name, AttachOptions::default(), make)
    }

    /// As [`on_shards`](Self::on_shards), with options. Its queue is what may wait on each shard.
    ///
    /// # Errors
    /// As there.
    pub fn on_shards_with<H: ShardHandler>(
        &self,
        name: impl ProcessName,
        options: AttachOptions,
        make: impl Fn(usize) -> H + Send + Sync + 'static,
    ) -> Result<ShardProcess, AttachError> {
        let id = name.into_id()?;
        let make = HandlerMaker::new(id.clone(), make);
        attach(&self.shared, id, options, Arc::new(make))
    }
}

fn attach<H: ShardHandler>(
    shared: &Arc<BrokerShared>,
    id: ProcessId,
    options: AttachOptions,
    make: Arc<HandlerMaker<impl Fn(usize) -> H + Send + Sync + 'static>>,
) -> Result<ShardProcess, AttachError> {
    let queues: Vec<_> = shared.inboxes.iter().map(|inbox| queue_to(shared, inbox, options.queue)).collect();
    // Handles on other threads send orders to the first shard.
    let Some((queue, _)) = queues.first() else { return Err(AttachError::Stopped) };
    let owner = Arc::new(Owner::new(shared.new_owner(), id.clone(), queue.clone(), options.wishes()));
    let pusher = Pusher::of_process(shared.clone(), &owner);
    let handle = ProcessHandle { shared: shared.clone(), id: id.clone(), owner: owner.id, pusher };
    // From here on dropping it takes away what was done.
    let process = ShardProcess { handle, end: None, stays: false };
    let (made, all_made) = bounded(queues.len());
    for (shard, (queue, receiver)) in queues.into_iter().enumerate() {
        let start = HandlerStart { shard, handle: process.handle.clone(), queue, receiver };
        let (make, made) = (make.clone(), made.clone());
        let make = Box::new(move || start.make(&make, &made));
        let host = Command::Host(Box::new(HostCommand { owner: owner.clone(), limits: options.queue, make }));
        shared.send_to(shard, host).map_err(|_| AttachError::Stopped)?;
    }
    drop(made);
    let made: Vec<bool> = all_made.iter().collect();
    if made.contains(&false) {
        return Err(AttachError::Panicked(id));
    }
    let attached = shared.change(|directory| {
        if directory.processes.contains_key(&id) {
            return Err(AttachError::Taken(id.clone()));
        }
        directory.attach(owner);
        Ok(())
    });
    attached.map_err(|_| AttachError::Stopped)??;
    Ok(process)
}

/// The queue of what is told to a handler from other threads: outcomes.
fn queue_to(
    shared: &BrokerShared,
    inbox: &InboxSender<Command>,
    limits: QueueLimits,
) -> (ProcessQueue, ProcessReceiver) {
    let inbox = inbox.clone();
    process_queue(shared.inboxes.len(), limits, &shared.memory, move |_| inbox.kick())
}

/// A process that runs on the shards. It binds its paths by its [`handle`](Self::handle), which other threads may use,
/// too; what is asked with that as an event comes to the handler on the first shard. Dropping it takes all of it away,
/// and its channels are closed with 1001.
pub struct ShardProcess {
    handle: ProcessHandle,
    end: Option<CloseFrame>,
    stays: bool,
}

impl ShardProcess {
    /// Its acting half, to be cloned for other threads and tasks.
    pub fn handle(&self) -> &ProcessHandle {
        &self.handle
    }

    /// Its name.
    pub fn id(&self) -> &ProcessId {
        self.handle.id()
    }

    /// Lets it run until the broker stops.
    pub fn detach(mut self) {
        self.stays = true;
    }

    /// Ends it, its channels with this code, which must be one that may travel (RFC 6455 7.4), and reason.
    pub fn end(mut self, code: u16, reason: &str) {
        self.end = Some(close_frame(code, reason));
    }
}

impl Drop for ShardProcess {
    fn drop(&mut self) {
        if !self.stays {
            self.handle.take_away(self.end.take().unwrap_or_else(ended_or_failed));
        }
    }
}

/// The arguments from which a handler starts.
struct HandlerStart {
    shard: usize,
    handle: ProcessHandle,
    queue: ProcessQueue,
    receiver: ProcessReceiver,
}

impl HandlerStart {
    /// On the shard's thread.
    fn make<H: ShardHandler>(
        self,
        make: &HandlerMaker<impl Fn(usize) -> H>,
        made: &Sender<bool>,
    ) -> Option<Box<dyn Handler<Command>>> {
        let Self { shard, handle, queue, receiver } = self;
        let _here = HandlerThread::enter();
        let handler = make.make(shard);
        let _ = made.send(handler.is_some());
        let shared = &handle.shared;
        let pusher = handle.pusher.reporting_to(queue);
        let kept = shared.inboxes.iter().map(|_| WaitingOrders::default()).collect();
        let waker = Waker::from(Arc::new(InboxWake(shared.inboxes[shard].clone())));
        let mut runner = Runner {
            handler: Some(handler?),
            receiver,
            pusher,
            others: OtherShards { shard, kept, waker, large_ns: 0 },
            handle,
            stopwatch: Stopwatch::default(),
        };
        // From now on what comes from elsewhere calls the shard.
        runner.called(&mut Vec::new());
        Some(Box::new(runner))
    }
}

/// Calls a shard.
struct InboxWake(InboxSender<Command>);

impl Wake for InboxWake {
    fn wake(self: Arc<Self>) {
        self.0.kick();
    }
}

/// A handler as its shard sees it.
struct Runner<H> {
    /// Gone only within `drop`.
    handler: Option<H>,
    receiver: ProcessReceiver,
    /// As the handle's, but its events come here.
    pusher: Pusher,
    others: OtherShards,
    handle: ProcessHandle,
    stopwatch: Stopwatch,
}

/// Measures what events take, and tells the shard of it. Reading the clock costs as much as a short event: where events
/// are short it is read behind every few of them.
#[derive(Default)]
struct Stopwatch {
    /// When it was last read; none between reads of clients.
    since_ns: Option<u64>,
    events: u32,
    /// Behind so many events it is read again.
    stride: u32,
}

impl Stopwatch {
    /// Of so many events in a row, one may be the first to be slow.
    const STRIDE_MAX: u32 = 4;

    /// Events are short that take so much at most.
    const SHORT_NS: u64 = 1_000;

    fn start(&mut self) {
        if self.since_ns.is_none() {
            (self.since_ns, self.events, self.stride) = (Some(monotonic_ns()), 0, 1);
        }
    }

    /// An event was taken.
    fn note(&mut self, context: &mut dyn HandlerContext<Command>, large_ns: &mut u64) {
        self.events += 1;
        if self.events >= self.stride {
            self.read(context, large_ns);
        }
    }

    /// No more follow for now.
    fn stop(&mut self, context: &mut dyn HandlerContext<Command>, large_ns: &mut u64) {
        if self.events > 0 {
            self.read(context, large_ns);
        }
        self.since_ns = None;
    }

    /// `large_ns`: what the shard itself took meanwhile.
    fn read(&mut self, context: &mut dyn HandlerContext<Command>, large_ns: &mut u64) {
        let now_ns = monotonic_ns();
        let took_ns = now_ns - self.since_ns.replace(now_ns).unwrap_or(now_ns);
        let took_ns = took_ns.saturating_sub(std::mem::take(large_ns));
        context.took(took_ns);
        let is_short = took_ns <= u64::from(self.events) * Self::SHORT_NS;
        self.stride = if is_short { (2 * self.stride).min(Self::STRIDE_MAX) } else { 1 };
        self.events = 0;
    }
}

/// The way to the other shards.
struct OtherShards {
    /// This one.
    shard: usize,
    /// By shard: orders that found no room there.
    kept: Vec<WaitingOrders>,
    waker: Waker,
    /// The time this shard took for broadcasts of the current event.
    large_ns: u64,
}

#[derive(Default)]
struct WaitingOrders {
    orders: VecDeque<(Option<Command>, usize, Charge)>,
    bytes: usize,
}

impl<H: ShardHandler> Runner<H> {
    fn take_events(&mut self, context: &mut dyn HandlerContext<Command>) {
        self.stopwatch.start();
        while (context.is_last() || self.others.then() == HandlerWait::GoesOn)
            && let Some(event) = context.next_event()
        {
            match event {
                Event::Message { channel, kind, payload } => {
                    self.take_message(context, ClientMessage::of_event(channel, kind, payload));
                }
                event => {
                    if matches!(event, Event::Outcome { .. }) {
                        // It came through the queue, as all of them do.
                        self.receiver.note_outcome_read();
                    }
                    if let Some(handler) = &mut self.handler {
                        handler
                            .on_event(&mut Here::at(&self.pusher, context, &mut self.others, &self.handle.id), event);
                    }
                    self.stopwatch.note(context, &mut self.others.large_ns);
                }
            }
        }
        self.stopwatch.stop(context, &mut self.others.large_ns);
    }

    fn take_message(&mut self, context: &mut dyn HandlerContext<Command>, message: ClientMessage<'_>) {
        self.stopwatch.start();
        if let Some(handler) = &mut self.handler {
            handler.on_message(&mut Here::at(&self.pusher, context, &mut self.others, &self.handle.id), message);
        }
        self.stopwatch.note(context, &mut self.others.large_ns);
    }

    /// Has the handler do something. If it panics, its process ends.
    fn guarded(&mut self, act: impl FnOnce(&mut Self)) -> Result<HandlerWait, Failed> {
        let _here = HandlerThread::enter();
        if contained(|| act(self)).is_none() {
            let (process, shard) = (&self.handle.id, self.others.shard);
            tracing::error!(%process, shard, "a handler panicked: its process ends, its channels are closed with 1011");
            self.handle.take_away(failed());
            return Err(Failed);
        }
        Ok(self.others.then())
    }
}

impl<H: ShardHandler> Handler<Command> for Runner<H> {
    fn run(&mut self, context: &mut dyn HandlerContext<Command>) -> Result<HandlerWait, Failed> {
        self.guarded(|runner| runner.take_events(context))
    }

    fn message(
        &mut self,
        context: &mut dyn HandlerContext<Command>,
        message: ClientMessage<'_>,
    ) -> Result<HandlerWait, Failed> {
        self.guarded(|runner| runner.take_message(context, message))
    }

    fn settle(&mut self, context: &mut dyn HandlerContext<Command>) {
        self.stopwatch.stop(context, &mut self.others.large_ns);
    }

    fn called(&mut self, events: &mut Vec<Event>) -> HandlerWait {
        let mut task = Context::from_waker(&self.others.waker);
        while let Poll::Ready(Ok(batch)) = self.receiver.poll_moved(&mut task) {
            events.extend(batch.events);
        }
        self.others.go_on(&self.pusher)
    }
}

impl<H> Drop for Runner<H> {
    fn drop(&mut self) {
        let _here = HandlerThread::enter();
        let handler = self.handler.take();
        // A panic in the handler's own drop is contained, too.
        if contained(|| drop(handler)).is_none() {
            tracing::error!(process = %self.handle.id, "a handler panicked as it was dropped");
        }
    }
}

impl OtherShards {
    fn then(&self) -> HandlerWait {
        if self.kept.iter().all(|kept| kept.orders.is_empty()) { HandlerWait::GoesOn } else { HandlerWait::Waits }
    }

    /// Hands on what waits for room, as far as there is some.
    fn go_on(&mut self, pusher: &Pusher) -> HandlerWait {
        let mut task = Context::from_waker(&self.waker);
        for (shard, kept) in self.kept.iter_mut().enumerate() {
            while let Some((command, bytes, _)) = kept.orders.front_mut() {
                let bytes = *bytes;
                // A shard that has stopped wants no orders.
                if pusher.poll_send(shard, command, bytes, &mut task).is_pending() {
                    break;
                }
                kept.bytes -= bytes;
                kept.orders.pop_front();
            }
        }
        self.then()
    }

    fn give(&mut self, pusher: &Pusher, shard: usize, mut command: Command, full: Full) -> Result<(), PushError> {
        tell_here(pusher, &mut command);
        let (bytes, kept) = (command.payload_bytes(), &mut self.kept[shard]);
        let mut command = Some(command);
        if kept.orders.is_empty() {
            let mut task = Context::from_waker(&self.waker);
            match pusher.poll_send(shard, &mut command, bytes, &mut task) {
                Poll::Ready(sent) => return sent,
                Poll::Pending if full == Full::Refuse => return Err(PushError::InboxFull),
                Poll::Pending => {}
            }
        } else if full == Full::Refuse
            || kept.orders.len() >= KEPT_ORDERS_MAX
            || kept.bytes.saturating_add(bytes) > KEPT_BYTES_MAX
        {
            return Err(PushError::InboxFull);
        }
        let memory = pusher.memory.as_ref().expect("a process has a memory");
        kept.bytes += bytes;
        kept.orders.push_back((command, bytes, memory.charge_anyway(HeldAs::Orders, bytes)));
        Ok(())
    }
}

/// A failure is an event of the handler that asked, not of the one where the channel lives.
fn tell_here(pusher: &Pusher, command: &mut Command) {
    let (asked, is_failure): (&mut ReportTo, fn(&Outcome) -> bool) = match command {
        Command::Push(push) => (&mut push.asked, |outcome| outcome.not_found + outcome.not_owner + outcome.closed > 0),
        Command::Subscribe(subscribe) => (&mut subscribe.asked, |outcome| outcome.sent == 0),
        Command::Close(close) => (&mut close.asked, |outcome| outcome.not_owner > 0),
        _ => return,
    };
    let ReportTo::Failure(ticket) = *asked else { return };
    let report = pusher.report();
    let told = Parts::split(1, move |outcome| {
        if is_failure(&outcome) {
            report(Event::Failed { ticket, outcome });
        }
    });
    *asked = told.into_iter().next().map_or(ReportTo::Nobody, |part| ReportTo::Outcome(Box::new(part)));
}

/// A handler's view of its shard, given with each event: its location, and the orders that it may give. Nothing here
/// waits.
pub struct Here<'a> {
    pusher: &'a Pusher,
    outlet: ShardOutlet<'a>,
    id: &'a ProcessId,
}

impl<'a> Here<'a> {
    fn at(
        pusher: &'a Pusher,
        context: &'a mut dyn HandlerContext<Command>,
        others: &'a mut OtherShards,
        id: &'a ProcessId,
    ) -> Self {
        Self { pusher, outlet: ShardOutlet { context, pusher, others }, id }
    }

    /// The number of this shard. A channel lives here if its `id % shards` says so; all that this handler hears of do.
    pub fn shard(&self) -> usize {
        self.outlet.others.shard
    }

    /// The number of shards.
    pub fn shards(&self) -> usize {
        self.pusher.shards()
    }

    /// The name of this process.
    pub fn process(&self) -> &'a ProcessId {
        self.id
    }

    /// Where what is kept for it outside of the broker's own queues is charged.
    pub(crate) fn memory(&self) -> &'a ProcessMemory {
        self.pusher.memory.as_ref().expect("a process has a memory")
    }

    /// A message to a channel of this process, as [`ProcessHandle::push`].
    pub fn push(&mut self, channel: ChannelId, message: Message) -> ShardOrder<'_, Push<'a>> {
        let order = Push { pusher: self.pusher, channel, at: None, message, delivery: DeliveryOptions::default() };
        ShardOrder { order, outlet: &mut self.outlet }
    }

    /// A Binary message to a channel of this process. As [`push`](Self::push) and [`send`](ShardOrder::send), but where
    /// the channel lives here and has nothing in the way, the bytes are copied once, to where they are sent from.
    ///
    /// # Errors
    /// As there.
    pub fn push_binary(&mut self, channel: ChannelId, bytes: &[u8]) -> Result<(), PushError> {
        self.push_bytes(channel, MessageKind::Binary, bytes)
    }

    /// The same for a Text message.
    ///
    /// # Errors
    /// As there.
    pub fn push_text(&mut self, channel: ChannelId, text: &str) -> Result<(), PushError> {
        self.push_bytes(channel, MessageKind::Text, text.as_bytes())
    }

    /// The same for a message as it was received.
    ///
    /// # Errors
    /// As there.
    pub fn pass_on(&mut self, channel: ChannelId, message: &ClientMessage<'_>) -> Result<(), PushError> {
        self.push_bytes(channel, message.kind(), message.bytes())
    }

    /// `bytes` are valid for `kind`.
    fn push_bytes(&mut self, channel: ChannelId, kind: MessageKind, bytes: &[u8]) -> Result<(), PushError> {
        let ShardOutlet { context, pusher, others } = &mut self.outlet;
        if pusher.shard_of(channel) == others.shard && context.push_at_once(channel, kind, bytes) {
            return Ok(());
        }
        self.push(channel, Message::valid(kind, Bytes::copy_from_slice(bytes))).send()
    }

    /// One message to all channels of this process, on all shards, or to those that its options say; as
    /// [`ProcessHandle::broadcast`].
    pub fn broadcast(&mut self, message: Message) -> ShardOrder<'_, Broadcast<'a>> {
        let (audience, except) = (Audience::Process, Vec::new());
        let (pusher, delivery) = (self.pusher, DeliveryOptions::default());
        let order = Broadcast { pusher, audience, except, message, delivery, reach: Reach::Here };
        ShardOrder { order, outlet: &mut self.outlet }
    }

    /// Subscribes a channel of this process to a topic, as [`ProcessHandle::subscribe`].
    pub fn subscribe(&mut self, channel: ChannelId, topic: impl Into<Arc<str>>) -> ShardOrder<'_, Subscribe<'a>> {
        self.subscribe_or_not(channel, topic.into(), false)
    }

    /// Takes a [`subscribe`](Self::subscribe) back, as [`ProcessHandle::unsubscribe`].
    pub fn unsubscribe(&mut self, channel: ChannelId, topic: impl Into<Arc<str>>) -> ShardOrder<'_, Subscribe<'a>> {
        self.subscribe_or_not(channel, topic.into(), true)
    }

    fn subscribe_or_not(&mut self, channel: ChannelId, topic: Arc<str>, is_out: bool) -> ShardOrder<'_, Subscribe<'a>> {
        let delivery = DeliveryOptions::default();
        let order = Subscribe { pusher: self.pusher, channel, topic, is_out, heard: None, delivery };
        ShardOrder { order, outlet: &mut self.outlet }
    }

    /// Closes a channel of this process behind what is queued for it, as [`ProcessHandle::close`].
    pub fn close(&mut self, channel: ChannelId, code: u16, reason: &str) -> ShardOrder<'_, Close<'a>> {
        let why = close_frame(code, reason);
        let order = Close { pusher: self.pusher, channel, why, abruptly: false, delivery: DeliveryOptions::default() };
        ShardOrder { order, outlet: &mut self.outlet }
    }

    /// A response to an HTTP request, as [`ProcessHandle::respond`].
    pub fn respond(&mut self, request: RequestId, status: u16) -> ShardOrder<'_, Respond<'a>> {
        let (headers, body, delivery) = (Vec::new(), Bytes::new(), DeliveryOptions::default());
        let order = Respond { pusher: self.pusher, request, status, headers, body, delivery };
        ShardOrder { order, outlet: &mut self.outlet }
    }
}

/// Where orders go: this shard's own outbound path, and the other shards.
struct ShardOutlet<'a> {
    context: &'a mut dyn HandlerContext<Command>,
    pusher: &'a Pusher,
    others: &'a mut OtherShards,
}

trait GiveCommands {
    fn give(&mut self, commands: Commands, full: Full) -> Result<(), PushError>;
}

impl ShardOutlet<'_> {
    fn give_one(&mut self, shard: usize, command: Command, full: Full) -> Result<(), PushError> {
        if shard != self.others.shard {
            return self.others.give(self.pusher, shard, command, full);
        }
        // The time of a broadcast is the shard's own, and it is cut into slices.
        let since_ns = matches!(command, Command::PushMany(_)).then(monotonic_ns);
        let given = self.context.give(command).map_err(|_| PushError::InboxFull);
        if let Some(since_ns) = since_ns {
            self.others.large_ns += monotonic_ns() - since_ns;
        }
        given
    }
}

impl GiveCommands for ShardOutlet<'_> {
    fn give(&mut self, commands: Commands, full: Full) -> Result<(), PushError> {
        give_each(commands, |shard, command| self.give_one(shard, command, full))
    }
}

/// An order of a handler on a shard, with the options of the order that it is. Neither of its ends waits.
#[must_use = "nothing is given before the end is called: try_send or send"]
pub struct ShardOrder<'h, O> {
    order: O,
    outlet: &'h mut (dyn GiveCommands + 'h),
}

impl<'h, 'p, O: Order<'p>> ShardOrder<'h, O> {
    /// Gives the order. What concerns this shard is done at once, or, when it is more work than is left of this turn,
    /// next. What another shard's inbox has no room for is refused.
    ///
    /// # Errors
    /// It was not accepted: see [`PushError`].
    pub fn try_send(mut self) -> Result<(), PushError> {
        self.order.check()?;
        let pusher = self.order.pusher();
        pusher.may_ask(self.order.delivery())?;
        self.give(Full::Refuse)
    }

    /// Gives the order. What another shard's inbox has no room for is handed over as soon as it has some; until then
    /// this handler is given no further event, and its clients wait instead of the thread.
    ///
    /// # Errors
    /// As much waits already as one process may leave to be done (a quarter of an inbox): [`PushError::InboxFull`]. Or
    /// the broker has stopped, or the message is too large.
    pub fn send(self) -> Result<(), PushError> {
        self.order.check()?;
        self.give(Full::Wait)
    }

    /// To the shards, and behind them to other brokers.
    fn give(mut self, full: Full) -> Result<(), PushError> {
        let (pusher, abroad) = (self.order.pusher(), self.order.take_abroad());
        self.outlet.give(self.order.into_commands(), full)?;
        pusher.give_abroad(abroad);
        Ok(())
    }

    fn with(self, option: impl FnOnce(O) -> O) -> Self {
        Self { order: option(self.order), outlet: self.outlet }
    }
}

impl ShardOrder<'_, Push<'_>> {
    /// As [`Push::policy`].
    pub fn policy(self, policy: Policy) -> Self {
        self.with(|push| push.policy(policy))
    }

    /// As [`Push::ask_event`]: this handler hears of the outcome.
    pub fn ask_event(self, number: u64) -> Self {
        self.with(|push| push.ask_event(number))
    }

    /// As [`Push::ask_failure`]: this handler hears of a failure.
    pub fn ask_failure(self, number: u64) -> Self {
        self.with(|push| push.ask_failure(number))
    }
}

impl ShardOrder<'_, Broadcast<'_>> {
    /// As [`Broadcast::to`].
    pub fn to(self, audience: impl Into<Audience>) -> Self {
        self.with(|broadcast| broadcast.to(audience))
    }

    /// As [`Broadcast::everywhere`].
    pub fn everywhere(self) -> Self {
        self.with(Broadcast::everywhere)
    }

    /// As [`Broadcast::except`].
    pub fn except(self, channel: ChannelId) -> Self {
        self.with(|broadcast| broadcast.except(channel))
    }

    /// As [`Broadcast::except_all`].
    pub fn except_all(self, channels: impl IntoIterator<Item = ChannelId>) -> Self {
        self.with(|broadcast| broadcast.except_all(channels))
    }

    /// As [`Broadcast::policy`].
    pub fn policy(self, policy: Policy) -> Self {
        self.with(|broadcast| broadcast.policy(policy))
    }

    /// As [`Broadcast::ask_event`]: this handler hears of the outcome.
    pub fn ask_event(self, number: u64) -> Self {
        self.with(|broadcast| broadcast.ask_event(number))
    }
}

impl ShardOrder<'_, Close<'_>> {
    /// As [`Close::ask_event`]: this handler hears of the outcome.
    pub fn ask_event(self, number: u64) -> Self {
        self.with(|close| close.ask_event(number))
    }

    /// As [`Close::ask_failure`]: this handler hears of a failure.
    pub fn ask_failure(self, number: u64) -> Self {
        self.with(|close| close.ask_failure(number))
    }
}

impl ShardOrder<'_, Subscribe<'_>> {
    /// As [`Subscribe::ask_event`]: this handler hears of the outcome.
    pub fn ask_event(self, number: u64) -> Self {
        self.with(|subscribe| subscribe.ask_event(number))
    }

    /// As [`Subscribe::ask_failure`]: this handler hears of a failure.
    pub fn ask_failure(self, number: u64) -> Self {
        self.with(|subscribe| subscribe.ask_failure(number))
    }
}

impl ShardOrder<'_, Respond<'_>> {
    /// As [`Respond::header`].
    pub fn header(self, name: impl Into<Box<str>>, value: impl Into<Box<str>>) -> Self {
        self.with(|respond| respond.header(name, value))
    }

    /// As [`Respond::headers`].
    pub fn headers(self, fields: impl IntoIterator<Item = (Box<str>, Box<str>)>) -> Self {
        self.with(|respond| respond.headers(fields))
    }

    /// As [`Respond::body`].
    pub fn body(self, body: impl Into<Bytes>) -> Self {
        self.with(|respond| respond.body(body))
    }
}
