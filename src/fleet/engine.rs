//! The thread that talks to NATS: it publishes what is queued in the outbox, and passes what comes in to the broker.
//!
//! One thread, one runtime, one connection. Incoming messages are passed to the shards on this thread, which waits for
//! none of them: what a process has no room for waits [apart](delivering).
//!
//! Invariants: no other thread waits for this one, and it waits for none. The connection is retried for ever, after a
//! random wait. While it is down, messages that have been accepted wait, and no more are accepted.

mod asking;
mod client;
mod delivering;
mod held;

use self::asking::NodesAsked;
use self::client::NatsClient;
use self::delivering::{ForeignOrder, ForeignOrderQueue, Recipient};
use self::held::FleetMemory;
use super::Options;
use super::connection::{ON_THE_WAY_MAX, connect_options, note_connected, pause_before_leaving, server};
use super::log_limiter::LogLimiter;
use super::member::Member;
use super::names::Name;
use super::outbox::{
    LISTENS_MAX, ListenQuestion, Outbox, QUESTIONS_MAX, QUEUE_MESSAGES_MAX, Question, QueuedPush, State,
};
use super::presence::RememberedCounts;
use super::roster::{Announcement, Change};
use super::subject::{AudienceKey, NamedAudience, Subjects, Target};
use super::traffic::{FleetNews, Publish};
use crate::admission::Charge;
use crate::broker::{BrokerHandle, FleetReport, LocalDelivery, Outcome};
use crate::driver::background::BackgroundRuntime;
use crate::queue::orders::{self, Inbox, Wake};
use crate::shard::outcome::OutcomePart;
use async_nats::connection::State as ConnectionState;
use async_nats::{ConnectOptions, ServerAddr, Subscriber};
use futures_util::StreamExt;
use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio::task::{self, AbortHandle, LocalSet};
use tokio::time::{self, MissedTickBehavior};

/// The interval at which the audiences to listen to are adjusted to the channels here.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// Looks in a second.
const LOOKS_PER_TICK: u32 = 4;

/// Answers to other nodes that may wait for NATS.
const ANSWERS_MAX: usize = 4 * 1024;

/// Channels that other nodes are told of at a time.
const LOOKING_MAX: usize = 4;

/// Messages from this size on are charged until they have left the connection.
const LARGE_BYTES: usize = 64 * 1024;

/// How long what is queued may still take to leave when the fleet is left.
const LEAVE_WITHIN: Duration = Duration::from_millis(500);

/// A node's part in a fleet. Dropping it leaves the fleet; the broker goes on by itself.
pub struct Fleet {
    stop: Arc<Notify>,
    thread: Option<JoinHandle<()>>,
}

/// Why a node did not join a fleet.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FleetStartError {
    /// A server's address.
    #[error(
        "{0:?} is no address of a NATS server: write nats://HOST:PORT or tls://HOST:PORT, without user and password"
    )]
    Server(String),
    /// A credentials file that cannot be used.
    #[error("the credentials cannot be used: {0}")]
    Credentials(String),
    /// There is none.
    #[error("a fleet needs a NATS server")]
    NoServer,
    /// The broker is in one.
    #[error("the broker is in a fleet already, or was: a broker joins one fleet in its life")]
    Taken,
    /// The thread.
    #[error("cannot start the thread of the fleet: {0}")]
    Thread(#[from] std::io::Error),
}

/// Wakes the thread.
struct WakeThread(Arc<Notify>);

impl Wake for WakeThread {
    fn wake(&self) {
        self.0.notify_one();
    }
}

impl Fleet {
    /// Joins a fleet with `broker`. NATS need not be there yet.
    ///
    /// # Errors
    /// See [`FleetStartError`].
    pub fn start(broker: &BrokerHandle, options: Options) -> Result<Self, FleetStartError> {
        let servers = options.servers.iter().map(|text| server(text)).collect::<Result<Vec<_>, _>>()?;
        if servers.is_empty() {
            return Err(FleetStartError::NoServer);
        }
        let state = Arc::<State>::default();
        let connect = connect_options(&options, &state)?.retry_on_initial_connect();
        let wake = Arc::<Notify>::default();
        let limits = orders::InboxLimits { commands_max: QUEUE_MESSAGES_MAX, bytes_max: options.queue_bytes_max };
        let (queue, inbox) = orders::inbox(limits, WakeThread(wake.clone()));
        let (listens, listens_in) = mpsc::channel(LISTENS_MAX);
        // Audiences from before the start are not announced, so the engine must look for them.
        state.is_behind.store(true, Ordering::Release);
        let (questions, questions_in) = mpsc::channel(QUESTIONS_MAX);
        let outbox = Arc::new(Outbox::new(options.node.clone(), queue, (listens, questions), state.clone()));
        if !broker.set_other_brokers(outbox) {
            return Err(FleetStartError::Taken);
        }
        let stop = Arc::<Notify>::default();
        let start = EngineStart {
            broker: broker.clone(),
            options,
            state,
            servers,
            connect,
            inbox,
            wake,
            listens_in,
            questions_in,
        };
        let (stopped, log) = (stop.clone(), tracing::dispatcher::get_default(tracing::Dispatch::clone));
        let thread = std::thread::Builder::new().name("fleet".to_owned());
        let runtime = BackgroundRuntime::new()?;
        let thread = thread.spawn(move || {
            let _log = tracing::dispatcher::set_default(&log);
            let _down = Down(start.state.clone());
            // Tasks that are dropped need the runtime.
            let _entered = runtime.get().enter();
            LocalSet::new().block_on(runtime.get(), start.work(stopped));
        })?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.stop.notify_one();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread of the fleet has panicked");
        }
    }
}

/// However the thread ends, nothing more is taken.
struct Down(Arc<State>);

impl Drop for Down {
    fn drop(&mut self) {
        self.0.is_connected.store(false, Ordering::Release);
        if std::thread::panicking() {
            tracing::error!("the thread of the fleet has panicked: other nodes are not reached until a restart");
        }
    }
}

/// With what the thread begins.
struct EngineStart {
    broker: BrokerHandle,
    options: Options,
    state: Arc<State>,
    servers: Vec<ServerAddr>,
    connect: ConnectOptions,
    inbox: Inbox<QueuedPush>,
    wake: Arc<Notify>,
    listens_in: mpsc::Receiver<ListenQuestion>,
    questions_in: mpsc::Receiver<Question>,
}

/// State shared by the thread's tasks.
struct Engine {
    broker: BrokerHandle,
    state: Arc<State>,
    client: NatsClient,
    member: RefCell<Member>,
    hands: RefCell<LocalDelivery>,
    /// By recipient: those for whose orders the shards have no room now.
    waiting: RefCell<HashMap<Recipient, ForeignOrderQueue>>,
    began: Instant,
    began_unix_ms: u64,
    listening: RefCell<HashMap<AudienceKey, AbortHandle>>,
    /// The askers for other nodes' outcomes.
    asking: RefCell<HashMap<u64, NodesAsked>>,
    remembered: RefCell<RememberedCounts>,
    /// The memory of all of this.
    held: FleetMemory,
    /// Outcomes for pushes of other nodes that ask.
    outcomes: mpsc::Sender<(Name, u64, Outcome)>,
    /// Answers that need no push.
    answers: mpsc::Sender<(Publish, Charge)>,
    subjects: Subjects,
    options: Options,
    round_trip_us: Cell<Option<u64>>,
    is_asking: Cell<bool>,
    looking: Arc<Semaphore>,
    /// Connections that were seen to be made.
    connects: Cell<u64>,
    /// An audience found no room: when some is free, all topics are asked for again.
    has_refused: Cell<bool>,
    stop: Arc<Notify>,
    log: RefCell<LogLimiter>,
}

impl EngineStart {
    async fn work(self, stop: Arc<Notify>) {
        let Self { broker, options, state, servers, connect, inbox, wake, listens_in, questions_in } = self;
        let client = match connect.connect(servers.clone()).await {
            Ok(client) => NatsClient::new(client, servers),
            Err(error) => {
                // With retries from the first attempt on, only settings fail here: TLS files above all.
                tracing::error!(%error, "fleet: cannot begin to connect; other nodes are not reached until a restart");
                state.report().server = error.to_string();
                return;
            }
        };
        let began_unix_ms = unix_ms();
        let (outcomes, outcomes_in) = mpsc::channel(ANSWERS_MAX);
        let (answers, answers_in) = mpsc::channel(ANSWERS_MAX);
        let engine = Rc::new(Engine {
            asking: RefCell::default(),
            remembered: RefCell::default(),
            held: FleetMemory::new(&broker),
            outcomes,
            answers,
            hands: RefCell::new(LocalDelivery::new(&broker)),
            waiting: RefCell::default(),
            member: RefCell::new(Member::new(&options, began_unix_ms, began_unix_ms)),
            began: Instant::now(),
            began_unix_ms,
            listening: RefCell::default(),
            subjects: Subjects::new(options.fleet.clone()),
            round_trip_us: Cell::default(),
            is_asking: Cell::default(),
            looking: Arc::new(Semaphore::new(LOOKING_MAX)),
            connects: Cell::default(),
            has_refused: Cell::default(),
            log: RefCell::default(),
            stop: stop.clone(),
            broker,
            state,
            client,
            options,
        });
        let subjects = engine.member.borrow().subscriptions();
        for subject in subjects {
            if engine.subscribe(subject).await.is_none() {
                return;
            }
        }
        task::spawn_local(engine.clone().watch());
        task::spawn_local(engine.clone().listen_to_new(listens_in));
        task::spawn_local(engine.clone().publish_all(inbox, wake));
        task::spawn_local(engine.clone().answer_all(outcomes_in, answers_in));
        task::spawn_local(engine.clone().ask_all(questions_in));
        task::spawn_local(engine.clone().tick());
        stop.notified().await;
        // Accepted messages should leave, and the others should notice the end soon.
        let _ = time::timeout(LEAVE_WITHIN, engine.client.get().flush()).await;
    }
}

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}

impl Engine {
    /// Milliseconds after 1970 that never go back.
    fn now_ms(&self) -> u64 {
        self.began_unix_ms + self.began.elapsed().as_millis() as u64
    }

    fn is_connected(&self) -> bool {
        self.state.is_connected.load(Ordering::Acquire)
    }

    /// Subscribes; what comes is handled by a task of its own, without giving way, so that nothing piles up behind the
    /// connection.
    async fn subscribe(self: &Rc<Self>, subject: String) -> Option<AbortHandle> {
        let subscriber = match self.client.get().subscribe(subject).await {
            Ok(subscriber) => subscriber,
            Err(error) => {
                tracing::error!(%error, "fleet: cannot subscribe");
                return None;
            }
        };
        let engine = self.clone();
        Some(task::spawn_local(task::unconstrained(engine.receive(subscriber))).abort_handle())
    }

    async fn receive(self: Rc<Self>, mut subscriber: Subscriber) {
        while let Some(message) = subscriber.next().await {
            let received = self.member.borrow_mut().receive(&message.subject, &message.payload, self.now_ms());
            received.told.iter().for_each(|told| self.tell(told));
            if let Some(settled) = received.settled {
                self.settle(settled);
            }
            if let Some(asked) = received.of_channel {
                self.hear_of_channel(asked);
            }
            if let Some((process, topic, node, ask)) = received.count {
                let sent = self.hands.borrow().subscribers(&process, &topic);
                let _ = self.outcomes.try_send((node, ask, Outcome { sent, ..Outcome::default() }));
            }
            if let Some(answer) = received.answer {
                self.answer_soon(answer);
            }
            if let Some(delivery) = received.delivery {
                self.deliver(ForeignOrder::Push(delivery));
            }
        }
    }

    /// Looks at what is new when the connection has come.
    async fn watch(self: Rc<Self>) {
        loop {
            self.state.changed.notified().await;
            if self.state.is_lame.swap(false, Ordering::AcqRel) {
                // Accepted messages leave first; nodes must not leave all at once.
                time::sleep(pause_before_leaving()).await;
                let _ = time::timeout(LEAVE_WITHIN, self.client.get().flush()).await;
                // It fails where the client has ended, and then there is nothing to leave.
                let _ = self.client.get().force_reconnect().await;
            }
            let connects = self.connects_made();
            if self.is_connected() && self.connects.replace(connects) != connects {
                let bytes_max = self.client.get().server_info().max_payload;
                self.state.payload_bytes_max.store(bytes_max, Ordering::Relaxed);
                let told = self.member.borrow_mut().reconnected(self.now_ms());
                told.iter().for_each(|told| self.tell(told));
            }
        }
    }

    fn connects_made(&self) -> u64 {
        self.client.connects()
    }

    /// Looks whether NATS is reached. The connection tells it by events too, and sooner; but behind too many others
    /// they are lost.
    fn look_at_connection(&self) {
        note_connected(&self.state, self.client.get().connection_state() == ConnectionState::Connected);
        if self.connects_made() != self.connects.get() {
            self.state.changed.notify_one();
        }
    }

    async fn publish_all(self: Rc<Self>, mut inbox: Inbox<QueuedPush>, wake: Arc<Notify>) {
        // What the connection holds of large messages stays charged until they have left it.
        let mut on_the_way = VecDeque::new();
        loop {
            while !self.is_connected() {
                time::sleep(LOOK_INTERVAL / 5).await;
            }
            let mut next = None;
            inbox.drain(1, u64::MAX, |waiting| next = Some(waiting));
            if let Some(QueuedPush { outbound, nodes, charge }) = next {
                let numbered = self.member.borrow_mut().publish(outbound, self.now_ms());
                if let Ok(numbered) = numbered {
                    self.publish_push(numbered, nodes).await;
                }
                if charge.bytes() >= LARGE_BYTES {
                    on_the_way.push_back(charge);
                    if on_the_way.len() > ON_THE_WAY_MAX + 1 {
                        on_the_way.pop_front();
                    }
                }
                continue;
            }
            if !on_the_way.is_empty() {
                // It fails where the connection has ended, and with it all that was in it.
                let _ = self.client.get().flush().await;
                on_the_way.clear();
                continue;
            }
            if inbox.prepare_sleep() {
                wake.notified().await;
            }
            inbox.awake();
        }
    }

    async fn publish(&self, publish: Publish) {
        let Publish { subject, bytes } = publish;
        // It fails where the message is too large for a server that takes less than the one before: the gap is told
        // there.
        if let Err(error) = self.client.get().publish(subject, bytes).await {
            tracing::debug!(%error, "fleet: a message was not published");
        }
    }

    async fn listen_to_new(self: Rc<Self>, mut listens: mpsc::Receiver<ListenQuestion>) {
        while let Some(first) = listens.recv().await {
            let mut batch = vec![first];
            while let Ok(more) = listens.try_recv() {
                batch.push(more);
            }
            let (mut lines, mut parts) = (Vec::new(), Vec::new());
            for ListenQuestion { target, part } in batch {
                let line = self.listen(&target).await;
                match (part, &line) {
                    (Some(part), Some(_)) => parts.push(*part),
                    // It is told now: no answer of NATS is waited for.
                    (Some(mut part), None) => part.counts.fleet_full = 1,
                    (None, _) => {}
                }
                lines.extend(line);
            }
            self.ask_standing().await;
            task::spawn_local(self.clone().confirm(lines, parts));
        }
    }

    /// Subscribes to an audience, if that was not done. None: there are too many.
    async fn listen(self: &Rc<Self>, target: &Target) -> Option<AudienceKey> {
        let (line, wanted) = self.member.borrow_mut().listen_if(target, self.now_ms(), || self.may_listen());
        match wanted {
            super::interest::Wanted::Already => Some(line),
            super::interest::Wanted::Full => {
                let why = "fleet: audience limit reached (fleet_subjects_max, memory_budget)";
                self.log(1, |more| tracing::warn!(more, "{why}"));
                self.has_refused.set(true);
                None
            }
            super::interest::Wanted::New => {
                self.subscribe_to(line).await;
                Some(line)
            }
        }
    }

    /// Subscribes to an audience that is listened to. Where the client has ended, it is subscribed to at the next one.
    async fn subscribe_to(self: &Rc<Self>, line: AudienceKey) {
        let subject = self.member.borrow().subscription(&line);
        let Some(task) = self.subscribe(subject).await else { return };
        // While the client took no orders it may have been given up, or subscribed to once more.
        let spare = match self.member.borrow().listens_to(&line) {
            true => self.listening.borrow_mut().insert(line, task),
            false => Some(task),
        };
        if let Some(spare) = spare {
            spare.abort();
        }
    }

    /// Asks others how far they have counted for what is listened to anew, behind the subscriptions.
    async fn ask_standing(&self) {
        if self.is_connected() {
            let asked = self.member.borrow_mut().ask_standing(self.now_ms());
            for publish in asked {
                self.publish(publish).await;
            }
        }
    }

    /// Notes that NATS knows of these audiences, once it has answered something that was asked behind them.
    async fn confirm(self: Rc<Self>, lines: Vec<AudienceKey>, mut parts: Vec<OutcomePart>) {
        match self.ask().await {
            Some(_) => {
                let mut heard = self.state.heard.write().unwrap_or_else(PoisonError::into_inner);
                let listening = self.listening.borrow();
                heard.extend(lines.into_iter().filter(|line| listening.contains_key(line)));
            }
            None => parts.iter_mut().for_each(|part| part.counts.fleet_down = 1),
        }
    }

    /// Asks NATS for a reply that it makes itself, in the order of its input: that there is no listener.
    async fn ask(&self) -> Option<Duration> {
        if !self.is_connected() {
            return None;
        }
        let (asked, nowhere) = (Instant::now(), self.subjects.nowhere(&self.options.node));
        match self.client.get().request(nowhere, bytes::Bytes::new()).await {
            Err(error) if error.kind() == async_nats::RequestErrorKind::NoResponders => Some(asked.elapsed()),
            // A peer with permission listens there: that is an answer too.
            Ok(_) => Some(asked.elapsed()),
            Err(_) => None,
        }
    }

    async fn tick(self: Rc<Self>) {
        let mut looks = time::interval(LOOK_INTERVAL);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        for look in 0u32.. {
            looks.tick().await;
            self.leave_who_never_ends().await;
            if look % LOOKS_PER_TICK == 0 {
                self.begin_anew_if_ended().await;
            }
            self.look_at_connection();
            self.look().await;
            if look % LOOKS_PER_TICK == 0 {
                self.say_and_judge().await;
            }
            self.count_held();
            self.report();
        }
    }

    /// Subscribes to audiences that have members here, and unsubscribes from those that have had none for long.
    async fn look(self: &Rc<Self>) {
        if !self.is_connected() {
            return;
        }
        let mut wanted = Vec::new();
        for (process, paths) in self.hands.borrow().paths() {
            wanted.extend(
                paths.into_iter().map(|path| Target { process: process.clone(), to: NamedAudience::Path(path) }),
            );
            wanted.push(Target { process, to: NamedAudience::Process });
        }
        let with_channels: std::collections::HashSet<Target> = wanted.iter().cloned().collect();
        if self.state.is_behind.swap(false, Ordering::AcqRel) {
            for (process, topics) in self.hands.borrow().topics() {
                wanted.extend(
                    topics
                        .into_iter()
                        .map(|topic| Target { process: process.clone(), to: NamedAudience::Topic(topic) }),
                );
            }
        }
        for target in wanted {
            self.listen(&target).await;
        }
        self.ask_standing().await;
        let has_members = |target: &Target| match &target.to {
            NamedAudience::Topic(topic) => self.hands.borrow().has_subscribers(&target.process, topic),
            NamedAudience::Path(_) | NamedAudience::Process => with_channels.contains(target),
        };
        let idle = self.member.borrow_mut().sweep(self.now_ms(), has_members);
        if idle.is_empty() {
            return;
        }
        if self.has_refused.replace(false) {
            self.state.is_behind.store(true, Ordering::Release);
        }
        {
            let mut heard = self.state.heard.write().unwrap_or_else(PoisonError::into_inner);
            for (line, _) in &idle {
                heard.remove(line);
                if let Some(task) = self.listening.borrow_mut().remove(line) {
                    // Its end is the subscription's.
                    task.abort();
                }
            }
        }
        // A client that subscribed before found the topic listened to; one that subscribes later asks for it again.
        for (_, target) in idle {
            if let NamedAudience::Topic(topic) = &target.to
                && self.hands.borrow().has_subscribers(&target.process, topic)
            {
                self.listen(&target).await;
            }
        }
    }

    async fn say_and_judge(self: &Rc<Self>) {
        let reports = self.broker.connections() as u64;
        let about = Announcement {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            kernel: self.broker.settings().user,
            address: self.broker.address().to_string(),
            public: self.options.public.clone(),
            run: Some(self.broker.run()),
            channels: reports,
            draining: self.broker.is_draining(),
            ..Announcement::default()
        };
        self.broker.set_other_runs(self.member.borrow().runs());
        if self.is_connected() {
            let (said, told) = self.member.borrow_mut().tick(self.now_ms(), about);
            told.iter().for_each(|told| self.tell(told));
            for publish in said {
                self.publish(publish).await;
            }
            if !self.is_asking.replace(true) {
                let engine = self.clone();
                task::spawn_local(async move {
                    let round_trip = engine.ask().await;
                    engine.round_trip_us.set(round_trip.map(|passed| passed.as_micros() as u64));
                    engine.is_asking.set(false);
                });
            }
        }
    }

    fn report(&self) {
        let (now_ms, info) = (self.now_ms(), self.client.get().server_info());
        let member = self.member.borrow();
        let (nodes, losses) = member.seen(now_ms);
        let [listens, counts_out, counts_in] = member.sizes();
        let mut report = self.state.report();
        let mut counts = member.counts;
        counts.listens_refused = member.listens_refused();
        (counts.connects, counts.server_errors) = (self.connects_made(), report.counts.server_errors);
        *report = FleetReport {
            fleet: self.options.fleet.to_string(),
            node: self.options.node.to_string(),
            server: format!("{}:{} (nats-server {})", info.host, info.port, info.version),
            round_trip_us: self.round_trip_us.get(),
            payload_bytes_max: info.max_payload as u64,
            listens,
            counts_out,
            counts_in,
            counts,
            nodes,
            losses,
            ..FleetReport::default()
        };
    }

    /// Reports to clients that count positions, and to the log.
    fn tell(self: &Rc<Self>, told: &FleetNews) {
        if let FleetNews::Lost { to: Some(target), count: Some(count), .. } = told {
            self.deliver(ForeignOrder::Loss(target.clone(), u32::try_from(*count).unwrap_or(u32::MAX)));
        }
        match told {
            FleetNews::Lost { source, count, .. } => {
                let lost = count.map_or("an unknown number".to_owned(), |count| count.to_string());
                self.log(0, |more| tracing::warn!(node = %source, lost, more, "fleet: messages of a node are lost"));
            }
            FleetNews::Refused { source, why } => {
                self.log(2, |more| tracing::warn!(node = source, %why, more, "fleet: a message was refused"));
            }
            FleetNews::Node { node, change } => match change {
                Change::New => tracing::info!(%node, "fleet: a node has joined"),
                Change::Back { away_ms } => tracing::warn!(%node, away_ms, "fleet: a node is back"),
                Change::Restarted { .. } => tracing::info!(%node, "fleet: a node has restarted"),
                Change::None | Change::Ignored => {}
            },
            FleetNews::Gone { node } => tracing::warn!(%node, "fleet: a node is silent"),
        }
    }

    fn log(&self, what: usize, line: impl FnOnce(u64)) {
        if let Some(more) = self.log.borrow_mut().may(what, self.now_ms()) {
            line(more);
        }
    }
}
