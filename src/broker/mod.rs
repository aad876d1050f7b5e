//! The embedding API: start a broker, attach processes, push.
//!
//! ```
//! use pushring::{Broker, Event, Message};
//! use std::time::Duration;
//!
//! let broker = Broker::builder().shards(1).start()?;
//! let mut chat = broker.process("chat")?;
//! chat.bind_at("/chat")?;
//! println!("clients connect to ws://{}/chat", broker.address());
//!
//! // A process' loop; here no client connects, and a timeout is no error.
//! while let Some(event) = chat.recv_timeout(Duration::from_millis(1))? {
//!     if let Event::Message { channel, payload, .. } = event {
//!         chat.push(channel, Message::binary(payload)).send()?;
//!     }
//! }
//! drop(chat);
//! broker.stop(Duration::from_secs(1))?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Invariants: a push never waits for a client; the directory is changed under one lock and adopted by all shards
//! before a bind answers; no code of a process runs on a shard thread, unless the process asks for it (`on_shards`).

mod batch;
mod builder;
mod compression;
mod config;
mod contained;
mod delivery;
mod drain_watch;
mod error;
#[cfg(any(feature = "node", feature = "fleet"))]
mod guest;
mod here;
#[cfg(feature = "node")]
mod kernel;
mod listeners;
mod message;
mod on_shards;
mod open_files;
mod operate;
mod order;
mod other_brokers;
mod process;
mod pusher;
mod threads;
mod ticket;
mod together;

pub use crate::admission::{HeldBytes, TenantReport};
pub use crate::queue::events::{QueueLimits, RecvError};
pub use crate::shard::MemoryReport;
pub use crate::shard::command::{CloseFrame, Policy};
pub use crate::shard::disconnects::Disconnect;
pub use crate::shard::event::{
    ClientMessage, Closed, ClosedBy, ControlKind, Event, HttpAsk, HttpRequest, Opened, RequestId,
};
pub use crate::shard::operating::{ChannelFilter, ChannelReport, Drain};
pub use crate::shard::outcome::Outcome;
pub use crate::shard::stats::{Durations, Report, Stats};
pub use crate::shard::tls_counts::{HandshakeTimes, TlsCounts};
pub use crate::shard::topics::TopicReport;
pub use crate::words::topic::InvalidTopic;
pub use batch::Batch;
pub use builder::Builder;
pub use config::Config;
pub(crate) use delivery::DeliveryOptions;
pub use error::{AttachError, BindPathError, ServiceError, ShardDied, StartError};
#[cfg(feature = "node")]
pub use kernel::{GrantError, Kernel, KernelBatch, KernelHandle, KernelOptions};
pub use message::{InvalidMessage, Message, PAYLOAD_BYTES_MAX};
pub use on_shards::{Here, ShardHandler, ShardOrder, ShardProcess};
pub use open_files::{files_needed, limits_within_files};
pub use operate::{Cursor, ProcessReport, TopicQuery};
pub use order::{Asking, AskingNodes, Broadcast, Close, Order, Push, Respond, Sending, SendingAsked, Subscribe};
#[cfg(any(feature = "node", feature = "fleet"))]
pub(crate) use other_brokers::name_of_node;
#[cfg(feature = "fleet")]
pub(crate) use other_brokers::{Asker, LocalDelivery, OtherBrokers, OutcomeAsker, RemoteAudience, RemotePush};
pub(crate) use other_brokers::{ChannelAnswer, ChannelQuestion};
pub use other_brokers::{
    ChannelAt, FleetCounts, FleetLine, FleetNode, FleetProbe, FleetReport, InvalidChannelAt, NODE_ANSWER_WITHIN,
    OnNodes, Presence, Present,
};
pub use process::{AttachOptions, Process, ProcessHandle, ProcessName, Stopped};
pub use pusher::{Audience, PushError};
pub use ticket::{NotYetKnown, Ticket};
pub(crate) use together::CheckedOrder;

use self::compression::Compression;
use self::open_files::fit_to_open_files;
use self::pusher::Pusher;
use self::threads::{LastShard, ShardThread, SharedWake, ThreadEnd};
use crate::admission::{self, Budget, Ledger};
use crate::channel::ChannelId;
use crate::driver::clock::Clock;
use crate::driver::freed_memory::FreedMemory;
use crate::driver::malloc;
use crate::driver::probe::Probe;
use crate::driver::runtime::DriverKind;
use crate::driver::sys;
use crate::driver::wake::WakeFd;
use crate::gateway::{OwnerId, Settings, Snapshot};
use crate::queue::orders::{self as inbox, Account, InboxSender};
use crate::resume::Keys;
use crate::shard::command::{Acknowledge, Command};
use crate::shard::turn::Inboxes;
use crate::shard::{Common, Directory, ShardConfig};
use crossbeam_channel::{Receiver, bounded};
use std::hash::RandomState;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// The most shards: request ids have 8 bits for them.
const SHARDS_MAX: usize = 256;

/// The least memory of a shard, in bytes: a full window, a turn's worth of orders, and as much again for clients with
/// full sockets. A smaller [`Config::memory_bytes_max`] is raised to it.
pub const SHARD_MEMORY_BYTES_MIN: usize = 4 * admission::STEP_BYTES;

/// A running broker. Dropping it stops it at once; [`Broker::stop`] gives clients time.
pub struct Broker {
    shared: Arc<BrokerShared>,
    driver: DriverKind,
    threads: Vec<JoinHandle<()>>,
    ended: Receiver<ThreadEnd>,
    /// Outlives the shards.
    freed_memory: Option<FreedMemory>,
}

/// State shared by handles and processes.
pub(crate) struct BrokerShared {
    inboxes: Vec<InboxSender<Command>>,
    /// By shard.
    probes: Vec<Arc<Probe>>,
    /// For orders of the broker itself.
    accounts: Vec<Account>,
    current: Arc<DirectoryCell>,
    compression: Compression,
    next_owner: Arc<AtomicU32>,
    memory: Ledger,
    admission: Arc<admission::Connections>,
    draining: drain_watch::DrainWatch,
    /// Where it listens; for TLS, if for nothing else.
    address: SocketAddr,
    tls_address: Option<SocketAddr>,
    /// The fleet, once it is set.
    other_brokers: OnceLock<Arc<dyn other_brokers::OtherBrokers>>,
    /// The keys of this run's tokens, and the addresses of other runs' brokers.
    keys: Keys,
}

/// The directory as it is.
struct DirectoryCell {
    /// Locked for a moment at a time.
    directory: Mutex<Directory>,
    /// The directory last sent to the shards. Locked while a change is made and put into the inboxes, so that shards
    /// adopt changes in the order in which they were made.
    adopted: Mutex<Arc<Directory>>,
}

impl DirectoryCell {
    fn directory(&self) -> MutexGuard<'_, Directory> {
        // A panic while the lock was held left the directory as it was: it is changed by one assignment.
        self.directory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn adopted(&self) -> MutexGuard<'_, Arc<Directory>> {
        self.adopted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The rules of entry at a listener of this address.
fn rules_of_entry(mut settings: Settings, address: SocketAddr) -> Settings {
    settings.hosts = settings.hosts.for_listener(address.ip());
    if !settings.dev_origins.is_empty() {
        let origins = settings.dev_origins.join(", ");
        tracing::warn!(origins, "dev_origins: pages there can use the session of any user who is logged in");
    }
    settings
}

/// What all shards begin with.
fn common_start(
    mut shard: ShardConfig,
    admission: admission::ConnectionLimits,
    memory: Option<Budget>,
    directory: Arc<Directory>,
) -> Result<Common, StartError> {
    operate::fit_numbers(&mut shard, memory.as_ref().and_then(Budget::bytes));
    Ok(Common {
        config: Arc::new(shard),
        directory,
        // Where a client's entry lies is not to be guessed.
        admission: Arc::new(admission::Connections::new(admission, RandomState::new())),
        memory: Ledger::new(memory.unwrap_or_default()),
        resume: Keys::new(&sys::random_bytes()?),
    })
}

/// What handles share, before there are shards.
fn shared_start(
    common: &Common,
    current: Arc<DirectoryCell>,
    (address, tls_address): (SocketAddr, Option<SocketAddr>),
) -> BrokerShared {
    BrokerShared {
        inboxes: Vec::new(),
        probes: Vec::new(),
        accounts: Vec::new(),
        current,
        compression: Compression::new(common.config.deflate),
        next_owner: Arc::new(AtomicU32::new(1)),
        memory: common.memory.clone(),
        admission: common.admission.clone(),
        draining: drain_watch::DrainWatch::default(),
        address,
        tls_address,
        other_brokers: OnceLock::new(),
        keys: common.resume.clone(),
    }
}

impl Broker {
    /// Starts the shards and listens.
    ///
    /// # Errors
    /// See [`StartError`]; nothing is left running.
    pub fn start(config: Config) -> Result<Self, StartError> {
        malloc::give_back_what_is_freed();
        let cores = sys::allowed_cores()?;
        let shards = if config.shards == 0 { cores.len() } else { config.shards }.clamp(1, SHARDS_MAX);
        let (listeners, address, tls_address) = listeners::open(&config, shards)?;
        let directory = Directory::new(Snapshot::new(rules_of_entry(config.settings.clone(), address)));
        let (ended_sender, ended) = bounded(shards);
        let adopted = Arc::new(directory.clone());
        let current =
            Arc::new(DirectoryCell { directory: Mutex::new(directory), adopted: Mutex::new(adopted.clone()) });
        let memory = config.memory_bytes_max.map(|bytes| Budget::of(bytes.max(shards * SHARD_MEMORY_BYTES_MIN)));
        let inbox_limits = config.inbox.within_budget(memory.as_ref().and_then(Budget::bytes), shards);
        let admission = fit_to_open_files(config.admission, shards, 0);
        let common = common_start(config.shard, admission, memory, adopted)?;
        let freed_memory = FreedMemory::watch(common.memory.budget())?;
        let clock = Clock::start();
        let last_shard = Arc::new(LastShard(current.clone()));
        let mut broker = Self {
            shared: Arc::new(shared_start(&common, current, (address, tls_address))),
            driver: config.driver,
            threads: Vec::new(),
            ended,
            freed_memory,
        };
        let (mut inboxes, mut probes, mut starts) = (Vec::new(), Vec::new(), Vec::new());
        for listeners in listeners {
            let wake = Arc::new(WakeFd::new()?);
            let (sender, inbox) = inbox::inbox(inbox_limits, SharedWake(wake.clone()));
            let probe = Arc::new(Probe::new(clock));
            inboxes.push(sender);
            probes.push(probe.clone());
            starts.push((listeners, wake, inbox, probe));
        }
        let peers: Inboxes = Arc::new(OnceLock::from(inboxes.clone()));
        // Before the first shard runs: on an error from here on the broker is dropped, which stops those that do.
        broker.connect(inboxes, probes);
        let (ready_sender, ready) = bounded(shards);
        for (index, (listeners, wake, inbox, probe)) in starts.into_iter().enumerate() {
            let shard = ShardThread {
                index,
                shards,
                core: config.pin.then(|| cores[index % cores.len()]),
                driver: config.driver,
                common: common.clone(),
                clock,
                inbox,
                listeners,
                wake,
                probe,
                last_shard: last_shard.clone(),
                shared: Arc::downgrade(&broker.shared),
                peers: peers.clone(),
                opens_later: config.opens_later,
                log: tracing::dispatcher::get_default(tracing::Dispatch::clone),
            };
            let (ready, ended) = (ready_sender.clone(), ended_sender.clone());
            let thread = std::thread::Builder::new().name(format!("shard-{index}"));
            broker.threads.push(thread.spawn(move || shard.work(&ready, ended))?);
        }
        drop((ready_sender, last_shard));
        for _ in 0..shards {
            broker.driver = ready.recv().map_err(|_| std::io::Error::other("a shard died as it started"))??;
        }
        Ok(broker)
    }

    /// Makes the shards' inboxes known, before the broker is shared.
    fn connect(&mut self, inboxes: Vec<InboxSender<Command>>, probes: Vec<Arc<Probe>>) {
        let shared = Arc::get_mut(&mut self.shared).expect("it is not shared yet");
        shared.accounts = inboxes.iter().map(InboxSender::account).collect();
        let wakers = inboxes.clone();
        shared.memory.set_call_shards(move || wakers.iter().for_each(InboxSender::kick));
        (shared.inboxes, shared.probes) = (inboxes, probes);
    }

    /// A broker's settings by name, to be [started](Builder::start).
    pub fn builder() -> Builder {
        Builder::new()
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.shared.address
    }

    /// Where it listens for TLS, if it does.
    pub fn tls_address(&self) -> Option<SocketAddr> {
        self.shared.tls_address
    }

    /// The driver in use: io_uring or epoll.
    pub fn driver(&self) -> DriverKind {
        self.driver
    }

    /// The memory budget for clients and processes, in bytes; `None` is unlimited.
    pub fn memory_bytes_max(&self) -> Option<usize> {
        self.shared.memory.budget().bytes()
    }

    /// The number of shards.
    pub fn shards(&self) -> usize {
        self.shared.inboxes.len()
    }

    /// For operators of the broker, from any thread.
    pub fn handle(&self) -> BrokerHandle {
        BrokerHandle { shared: self.shared.clone(), pusher: Pusher::of_operator(self.shared.clone()) }
    }

    /// Attaches a process: by a plain name (`chat`), or by an id of three parts as nodes have them. Waits until every
    /// shard knows it.
    ///
    /// # Errors
    /// See [`AttachError`].
    pub fn process(&self, name: impl ProcessName) -> Result<Process, AttachError> {
        self.handle().process(name, AttachOptions::default())
    }

    /// As [`process`](Self::process), with options.
    ///
    /// # Errors
    /// As there.
    pub fn process_with(&self, name: impl ProcessName, options: AttachOptions) -> Result<Process, AttachError> {
        self.handle().process(name, options)
    }

    /// Waits until the broker has been stopped through a [`BrokerHandle`], or a shard has died.
    ///
    /// # Errors
    /// A shard has died; the others have been stopped.
    pub fn wait(mut self) -> Result<(), ShardDied> {
        here::must_not_be_on_a_shard();
        join(std::mem::take(&mut self.threads), &self.ended)
    }

    /// Closes every channel with 1001, gives clients `within` to answer, and ends.
    ///
    /// # Errors
    /// A shard has died.
    pub fn stop(self, within: Duration) -> Result<(), ShardDied> {
        here::must_not_be_on_a_shard();
        self.shared.stop(within, None);
        self.wait()
    }
}

/// Waits for the ends of all shards.
fn join(threads: Vec<JoinHandle<()>>, ended: &Receiver<ThreadEnd>) -> Result<(), ShardDied> {
    let mut result = Ok(());
    for _ in 0..threads.len() {
        let Ok((shard, ended)) = ended.recv() else { break };
        // The others have been stopped.
        result = result.and(ended.map_err(|why| ShardDied { shard, why }));
    }
    for thread in threads {
        // A panic has been reported through `ended`.
        let _ = thread.join();
    }
    result
}

impl Drop for Broker {
    fn drop(&mut self) {
        let (shared, ended) = (self.shared.clone(), self.ended.clone());
        let (threads, freed_memory) = (std::mem::take(&mut self.threads), self.freed_memory.take());
        // The last to have it may be a handler, whose shard cannot wait for its own end.
        here::away_from_shards("end of a broker", move || {
            shared.stop(Duration::ZERO, None);
            // A caller that needs the result calls `stop` or `wait`.
            let _ = join(threads, &ended);
            drop(freed_memory);
        });
    }
}

/// The operator's handle to a broker: cheap to clone, usable from any thread.
#[derive(Clone)]
pub struct BrokerHandle {
    shared: Arc<BrokerShared>,
    pusher: Pusher,
}

impl BrokerHandle {
    /// Where memory is charged that a part of the broker keeps, in the name of `part`.
    #[cfg_attr(not(feature = "fleet"), allow(dead_code))]
    pub(crate) fn memory_for(&self, part: crate::process_id::ProcessId) -> admission::ProcessMemory {
        self.shared.memory.pool().memory_of(part)
    }

    /// Attaches a process.
    ///
    /// # Errors
    /// See [`AttachError`].
    pub fn process(&self, name: impl ProcessName, options: AttachOptions) -> Result<Process, AttachError> {
        Process::attach(self.shared.clone(), name.into_id()?, options)
    }

    /// Attaches a node's kernel, for all processes that are not attached by themselves.
    ///
    /// # Errors
    /// There is a kernel already, or the broker has stopped.
    #[cfg(feature = "node")]
    pub fn kernel(&self, options: KernelOptions) -> Result<(Kernel, KernelHandle), AttachError> {
        kernel::attach(self.shared.clone(), options)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.shared.address
    }

    /// Where it listens for TLS, if it does.
    pub fn tls_address(&self) -> Option<SocketAddr> {
        self.shared.tls_address
    }

    /// The rules of entry.
    pub fn settings(&self) -> Settings {
        self.shared.directory().gateway.settings().clone()
    }

    /// The operator's rules of entry, of which a kernel that is attached may make others.
    #[cfg(feature = "link")]
    pub(crate) fn chosen_settings(&self) -> Settings {
        self.shared.directory().gateway.chosen_settings().clone()
    }

    /// A message to any channel, of any owner.
    pub fn push(&self, channel: ChannelId, message: Message) -> Push<'_> {
        Push { pusher: &self.pusher, channel, at: None, message, delivery: DeliveryOptions::default() }
    }

    /// Closes any channel, behind what is queued for it. The code must be one that may travel (RFC 6455 7.4); the
    /// client is sent none otherwise.
    pub fn close(&self, channel: ChannelId, code: u16, reason: &str) -> Close<'_> {
        let why = order::close_frame(code, reason);
        Close { pusher: &self.pusher, channel, why, abruptly: false, delivery: DeliveryOptions::default() }
    }

    /// How often a broadcast was compressed: once for each window that its channels have agreed on, however many they
    /// are.
    pub fn broadcast_compressions(&self) -> u64 {
        self.shared.compression.made()
    }

    /// The memory held for each process that has any, the largest first.
    pub fn held_by_process(&self) -> Vec<TenantReport> {
        self.shared.memory.report()
    }

    /// Closes every channel with 1001, gives clients `within` to answer, and lets [`Broker::wait`] return.
    pub fn stop(&self, within: Duration) {
        let shared = self.shared.clone();
        here::away_from_shards("stop of a broker", move || shared.stop(within, None));
    }

    /// As [`stop`](Self::stop), and returns once no shard listens and every client has been sent its close, as far as
    /// its socket takes it (some µs a channel), or after `patience`.
    pub fn stop_and_tell(&self, within: Duration, patience: Duration) {
        here::must_not_be_on_a_shard();
        let (told, all_told) = bounded::<()>(1);
        self.shared.stop(within, Some(Arc::new(told)));
        // The last shard drops the last sender; nothing is ever sent.
        let _ = all_told.recv_timeout(patience);
    }
}

impl BrokerShared {
    fn directory(&self) -> MutexGuard<'_, Directory> {
        self.current.directory()
    }

    /// Changes the directory; returns when all shards have adopted it. Others may change it meanwhile.
    fn change<E>(&self, change: impl FnOnce(&mut Directory) -> Result<(), E>) -> Result<Result<(), E>, PushError> {
        here::must_not_be_on_a_shard();
        let mut adopted = self.current.adopted();
        let mut changed = self.directory().clone();
        if let Err(error) = change(&mut changed) {
            return Ok(Err(error));
        }
        // Freed here, when no shard has it any more: that may take time.
        let _before = std::mem::replace(&mut *adopted, Arc::new(changed.clone()));
        let _current_before = std::mem::replace(&mut *self.directory(), changed);
        let (sender, all_have_it) = bounded::<()>(1);
        let acknowledge = Arc::new(sender);
        self.send_all(|_| Command::Adopt(adopted.clone(), Some(acknowledge.clone())))?;
        drop((adopted, acknowledge));
        // The last shard drops the last sender; nothing is ever sent.
        let _ = all_have_it.recv();
        Ok(Ok(()))
    }

    fn send_all(&self, command: impl Fn(usize) -> Command) -> Result<(), PushError> {
        (0..self.inboxes.len()).try_for_each(|shard| self.send_to(shard, command(shard)))
    }

    /// One order of the broker itself.
    fn send_to(&self, shard: usize, command: Command) -> Result<(), PushError> {
        here::must_not_be_on_a_shard();
        let bytes = command.payload_bytes();
        self.inboxes[shard].send_wait(command, bytes, &self.accounts[shard]).map_err(|_| PushError::Stopped)
    }

    fn shard_of(&self, channel: ChannelId) -> usize {
        channel.shard(self.inboxes.len() as u32) as usize
    }

    fn stop(&self, within: Duration, told: Acknowledge) {
        self.draining.mark();
        let within_ms = u64::try_from(within.as_millis()).unwrap_or(u64::MAX / 2);
        // Those that have stopped already are what is wanted.
        for (inbox, account) in std::iter::zip(&self.inboxes, &self.accounts) {
            let _ = inbox.send_wait(Command::Stop { within_ms, told: told.clone() }, 0, account);
        }
    }

    fn new_owner(&self) -> OwnerId {
        OwnerId(self.next_owner.fetch_add(1, Ordering::Relaxed))
    }
}
