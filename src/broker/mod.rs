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
//! // A process' loop; here nobody connects, and a wait that ends is no error.
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
//! Invariants: a push never waits for a client; the directory is changed under one lock and adopted by all shards before
//! a bind answers; no code of a process runs on a shard thread, but that of a process that asks for it (`on_shards`).

mod batch;
mod builder;
mod compression;
mod delivery;
mod elsewhere;
#[cfg(feature = "node")]
mod guest;
mod here;
#[cfg(feature = "node")]
mod kernel;
mod listeners;
mod message;
mod on_shards;
mod operate;
mod order;
mod process;
mod pusher;
mod ticket;

pub use crate::admission::{HeldBytes, TenantReport};
pub use crate::queue::events::{QueueLimits, RecvError};
pub use crate::shard::MemoryReport;
pub use crate::shard::command::{CloseFrame, Policy};
pub use crate::shard::disconnects::Disconnect;
pub use crate::shard::event::{Closed, ClosedBy, ControlKind, Event, HttpAsk, HttpRequest, Opened, RequestId};
pub use crate::shard::operating::{ChannelFilter, ChannelReport, Drain};
pub use crate::shard::outcome::Outcome;
pub use crate::shard::stats::{Durations, Report, Stats};
pub use crate::shard::tls_counts::{HandshakeTimes, TlsCounts};
pub use crate::shard::topics::TopicReport;
pub use crate::words::topic::InvalidTopic;
pub use batch::Batch;
pub use builder::Builder;
pub(crate) use delivery::DeliveryOptions;
#[cfg(feature = "fleet")]
pub(crate) use elsewhere::{Abroad, AbroadTo, Elsewhere, Hands};
pub use elsewhere::{ChannelAt, FleetCounts, FleetLine, FleetNode, FleetReport, InvalidChannelAt};
#[cfg(feature = "node")]
pub use kernel::{GrantError, Kernel, KernelBatch, KernelHandle, KernelOptions};
pub use message::{InvalidMessage, Message, PAYLOAD_BYTES_MAX};
pub use on_shards::{Here, ShardHandler, ShardOrder, ShardProcess};
pub use operate::{Cursor, ProcessReport, TopicQuery};
pub use order::{Asking, Broadcast, Close, Order, Push, Respond, Sending, SendingAsked, Subscribe};
pub use process::{AttachOptions, Process, ProcessHandle, ProcessName, Stopped};
pub use pusher::{Audience, PushError};
pub use ticket::{NotYetKnown, Ticket};

use self::compression::Compression;
use self::pusher::Pusher;
use crate::admission::{self, Budget, Ledger};
use crate::channel::ChannelId;
use crate::driver::clock::Clock;
use crate::driver::flush_send::SendFlush;
use crate::driver::flush_uring::UringFlush;
use crate::driver::kernel_sockets::Listeners;
use crate::driver::listen::ListenError;
use crate::driver::malloc;
use crate::driver::probe::Probe;
use crate::driver::pump::Pump;
use crate::driver::runtime::{DriverKind, RuntimeError, ShardRuntime};
use crate::driver::sys::{self, TcpOptions};
use crate::driver::wake::WakeFd;
use crate::gateway::{BindError, Dialect, OwnerId, Settings, Snapshot};
use crate::process_id::{ParseProcessIdError, ProcessId};
use crate::queue::orders::{self as inbox, Account, Inbox, InboxSender};
use crate::resume::Keys;
use crate::shard::command::{Acknowledge, Command};
use crate::shard::disconnects::DISCONNECTS_MAX;
use crate::shard::flush::Flush;
use crate::shard::turn::Inboxes;
use crate::shard::{Common, Directory, Shard};
use crossbeam_channel::{Receiver, Sender, bounded};
use rpds::HashTrieMapSync;
use std::hash::{BuildHasher, RandomState};
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// The most shards: request ids have 8 bits for them.
const SHARDS_MAX: usize = 256;

/// The least memory of a shard, in bytes: a full window, a turn's worth of orders, and as much again for who waits. A
/// smaller [`ShardConfig::memory_bytes_max`] is raised to it.
pub const SHARD_MEMORY_BYTES_MIN: usize = 4 * admission::STEP_BYTES;

/// The largest body of who is logged in where there is no budget to derive it from: a file of 256 MiB as an array of numbers,
/// in which pages send it to a node.
const LARGEST_BODY_WITHOUT_BUDGET: usize = 1 << 30;

/// What a shard opens as it starts: a listener for TLS, two rings, an epoll set and its duplicate, an eventfd; and for
/// a moment the two socket pairs with which a ring is tried.
const FILES_PER_SHARD: usize = 11;

/// What opens and closes files beside the broker.
const FILES_SPARE: usize = 64;

/// How many files a process may have to open for a broker of `shards` shards with `limits`, besides those that it has
/// opened before.
pub fn files_needed(limits: &admission::ConnectionLimits, shards: usize) -> usize {
    let clients = limits.connections_max.saturating_add(limits.turned_away_max);
    clients.saturating_add(shards * FILES_PER_SHARD + FILES_SPARE)
}

/// `limits` as far as a process can keep them that may open `files_max` files and has opened `open` before the broker.
pub fn limits_within_files(
    limits: admission::ConnectionLimits,
    shards: usize,
    files_max: usize,
    open: usize,
) -> admission::ConnectionLimits {
    // A sixteenth where there are few.
    let spare = (files_max / 16).min(FILES_SPARE);
    limits.within_files(files_max.saturating_sub(open + shards * FILES_PER_SHARD + spare))
}

/// What a broker is started with.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where to listen. Port 0 picks a free one. Default 127.0.0.1:0.
    pub listen: SocketAddr,
    /// Whether anybody listens for plain HTTP at `listen`. Default: yes.
    pub listens_plain: bool,
    /// Where to listen for TLS too, with the certificates of `shard.tls`. Default nowhere.
    pub tls_listen: Option<SocketAddr>,
    /// A listener that somebody else has opened, as a service manager does; then `listen` says nothing. One socket for
    /// all shards. Default none: each shard opens one of its own.
    pub listener: Option<Arc<TcpListener>>,
    /// Threads; 0 is one for each core that this process may use.
    pub shards: usize,
    /// Whether each shard stays on a core of its own. Default off: a library does not own the machine.
    pub pin: bool,
    /// io_uring or epoll.
    pub driver: DriverKind,
    /// Who may enter.
    pub settings: Settings,
    /// How many may connect to all shards together.
    pub admission: admission::ConnectionLimits,
    /// The most memory that clients and processes may make the broker hold, in bytes (of whole MiB, at least 4 for each
    /// shard): frames and responses that wait, messages and requests that have not wholly arrived, orders and events
    /// that were not read. Connections themselves, and the allocator's share, come on top. Default none: a library does
    /// not know what else lives on the machine.
    pub memory_bytes_max: Option<usize>,
    /// What each shard obeys.
    pub shard: crate::shard::ShardConfig,
    /// What each shard's inbox may hold.
    pub inbox: inbox::InboxLimits,
    /// Options of client sockets.
    pub tcp: TcpOptions,
}

impl Default for Config {
    /// 16 Ki commands: some 2 MB of slots a shard. 64 MiB of payloads: four of the largest messages, and a quarter of
    /// it for one process is one of them.
    fn default() -> Self {
        Self {
            listen: ([127, 0, 0, 1], 0).into(),
            listens_plain: true,
            tls_listen: None,
            listener: None,
            shards: 0,
            pin: false,
            driver: DriverKind::Auto,
            settings: Settings::new("local.os", Dialect::Kinode),
            admission: admission::ConnectionLimits::default(),
            memory_bytes_max: None,
            shard: crate::shard::ShardConfig::default(),
            inbox: inbox::InboxLimits { commands_max: 16 * 1024, bytes_max: 64 * 1024 * 1024 },
            tcp: TcpOptions { notsent_lowat_bytes: 128 * 1024, user_timeout_ms: 75_000 },
        }
    }
}

/// Why a broker did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// What [`Builder::listen`] was given.
    #[error("{0} is no address to listen on: write ADDRESS:PORT, as in 127.0.0.1:8080")]
    Address(String),
    /// The address.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The driver.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// There is nowhere to listen: a listener for TLS needs certificates.
    #[error("there is nowhere to listen: give certificates for TLS, or an address for plain HTTP")]
    Nowhere,
    /// Something that the system normally grants.
    #[error("cannot start a shard: {0}")]
    Io(#[from] std::io::Error),
}

/// Why a process was not attached.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AttachError {
    /// Its name is none.
    #[error(transparent)]
    Name(#[from] ParseProcessIdError),
    /// Another process of that id is attached.
    #[error("a process {0} is attached already")]
    Taken(ProcessId),
    /// The handler of a process that was to run on the shards could not be made: what makes it panicked.
    #[error("a handler of {0} could not be made: what makes it panicked")]
    Panicked(ProcessId),
    /// The broker has stopped.
    #[error("the broker has stopped")]
    Stopped,
}

/// Why a path was not bound.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BindPathError {
    /// The process or the path.
    #[error(transparent)]
    Refused(#[from] BindError),
    /// What is kept for processes has filled its part of the memory budget: unbind something, or raise the budget.
    #[error(
        "the memory budget has no room for a route of {bytes} bytes: what is kept for processes fills half of it, or this \
         process more than half of its share (memory_budget)"
    )]
    Memory {
        /// What the route would hold, its content included.
        bytes: usize,
    },
    /// The process has ended, or the broker has stopped.
    #[error("the process has ended or the broker has stopped")]
    Stopped,
}

/// A shard thread ended on its own: a bug, or a kernel that refuses what it always grants. The broker has stopped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("shard {shard} died: {why}")]
pub struct ShardDied {
    /// Which.
    pub shard: usize,
    /// What it said.
    pub why: String,
}

/// A running broker. Dropping it stops it at once; [`Broker::stop`] gives clients time.
pub struct Broker {
    shared: Arc<BrokerShared>,
    driver: DriverKind,
    threads: Vec<JoinHandle<()>>,
    ended: Receiver<ThreadEnd>,
}

type ThreadEnd = (usize, Result<(), String>);

/// What handles and processes share.
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
    draining: AtomicBool,
    /// Where it listens; for TLS, if for nothing else.
    address: SocketAddr,
    tls_address: Option<SocketAddr>,
    /// Who reaches other brokers, once somebody does.
    elsewhere: OnceLock<Arc<dyn elsewhere::Elsewhere>>,
}

/// The directory as it is.
struct DirectoryCell {
    /// Locked for a moment at a time.
    directory: Mutex<Directory>,
    /// What the shards were told last. Locked while a change is made and put into the inboxes, so that shards adopt changes
    /// in the order in which they were made.
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
        let mut settings = config.settings.clone();
        settings.hosts = settings.hosts.for_listener(address.ip());
        if !settings.dev_origins.is_empty() {
            let origins = settings.dev_origins.join(", ");
            tracing::warn!(origins, "dev_origins: pages there can use the session of whoever is logged in");
        }
        let directory = Directory::new(Snapshot::new(settings));
        let (ended_sender, ended) = bounded(shards);
        let admission = fit_to_open_files(config.admission, shards, 0);
        let adopted = Arc::new(directory.clone());
        let current =
            Arc::new(DirectoryCell { directory: Mutex::new(directory), adopted: Mutex::new(adopted.clone()) });
        let memory = config.memory_bytes_max.map(|bytes| Budget::of(bytes.max(shards * SHARD_MEMORY_BYTES_MIN)));
        let mut shard = config.shard;
        // A body takes up to twice its size when it grows.
        let half = memory.as_ref().and_then(Budget::bytes).map_or(LARGEST_BODY_WITHOUT_BUDGET, |bytes| bytes / 2);
        shard.body_bytes_max_logged_in = shard.body_bytes_max_logged_in.min(half);
        let common = Common {
            config: Arc::new(shard),
            directory: adopted,
            // Where a client's entry lies is not to be guessed.
            admission: Arc::new(admission::Connections::new(admission, RandomState::new())),
            memory: Ledger::new(memory.unwrap_or_default()),
            resume: Keys::new(&sys::random_bytes()?),
        };
        let clock = Clock::start();
        let last_shard = Arc::new(LastShard(current.clone()));
        let mut broker = Self {
            shared: Arc::new(BrokerShared {
                inboxes: Vec::new(),
                probes: Vec::new(),
                accounts: Vec::new(),
                current,
                compression: Compression::new(common.config.deflate),
                next_owner: Arc::new(AtomicU32::new(1)),
                memory: common.memory.clone(),
                admission: common.admission.clone(),
                draining: AtomicBool::new(false),
                address,
                tls_address,
                elsewhere: OnceLock::new(),
            }),
            driver: config.driver,
            threads: Vec::new(),
            ended,
        };
        let (ready_sender, ready) = bounded(shards);
        let (mut inboxes, mut probes) = (Vec::new(), Vec::new());
        let peers = Inboxes::default();
        for (index, listeners) in listeners.into_iter().enumerate() {
            let wake = Arc::new(WakeFd::new()?);
            let (sender, inbox) = inbox::inbox(config.inbox, SharedWake(wake.clone()));
            inboxes.push(sender);
            let probe = Arc::new(Probe::new(clock));
            probes.push(probe.clone());
            let seat = ShardThread {
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
                peers: peers.clone(),
                log: tracing::dispatcher::get_default(tracing::Dispatch::clone),
            };
            let (ready, ended) = (ready_sender.clone(), ended_sender.clone());
            let thread = std::thread::Builder::new().name(format!("shard-{index}"));
            broker.threads.push(thread.spawn(move || seat.work(&ready, ended))?);
        }
        drop((ready_sender, last_shard));
        let shared = Arc::get_mut(&mut broker.shared).expect("nobody else has it yet");
        // Set once: nobody else does.
        let _ = peers.set(inboxes.clone());
        shared.accounts = inboxes.iter().map(InboxSender::account).collect();
        let wakers = inboxes.clone();
        common.memory.set_call_shards(move || wakers.iter().for_each(InboxSender::kick));
        (shared.inboxes, shared.probes) = (inboxes, probes);
        // On an error the broker is dropped, which stops the shards that did start.
        for _ in 0..shards {
            broker.driver = ready.recv().map_err(|_| std::io::Error::other("a shard died as it started"))??;
        }
        Ok(broker)
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

    /// What it runs on: io_uring or epoll.
    pub fn driver(&self) -> DriverKind {
        self.driver
    }

    /// What clients and processes may make it hold, in bytes; `None` is without limit.
    pub fn memory_bytes_max(&self) -> Option<usize> {
        self.shared.memory.budget().bytes()
    }

    /// The number of shards.
    pub fn shards(&self) -> usize {
        self.shared.inboxes.len()
    }

    /// For whoever operates the broker, from any thread.
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
        self.join()
    }

    /// Closes every channel with 1001, gives clients `within` to answer, and ends.
    ///
    /// # Errors
    /// A shard has died.
    pub fn stop(mut self, within: Duration) -> Result<(), ShardDied> {
        self.shared.stop(within, None);
        self.join()
    }

    fn join(&mut self) -> Result<(), ShardDied> {
        let mut result = Ok(());
        for _ in 0..self.threads.len() {
            let Ok((shard, ended)) = self.ended.recv() else { break };
            if let Err(why) = ended {
                // Never N − 1 shards: a part of all channels would be gone without a word.
                self.shared.stop(Duration::ZERO, None);
                result = result.and(Err(ShardDied { shard, why }));
            }
        }
        for thread in self.threads.drain(..) {
            // A panic has been reported through `ended`.
            let _ = thread.join();
        }
        result
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.shared.stop(Duration::ZERO, None);
        // Whoever wants to know calls `stop` or `wait`.
        let _ = self.join();
    }
}

/// The operator's door to a broker: cheap to clone, usable from any thread.
#[derive(Clone)]
pub struct BrokerHandle {
    shared: Arc<BrokerShared>,
    pusher: Pusher,
}

impl BrokerHandle {
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

    /// A message to any channel, whoever owns it.
    pub fn push(&self, channel: ChannelId, message: Message) -> Push<'_> {
        Push { pusher: &self.pusher, channel, at: None, message, delivery: DeliveryOptions::default() }
    }

    /// Closes any channel, behind what is queued for it. The code must be one that may travel (RFC 6455 7.4); the client
    /// is sent none otherwise.
    pub fn close(&self, channel: ChannelId, code: u16, reason: &str) -> Close<'_> {
        let why = order::close_frame(code, reason);
        Close { pusher: &self.pusher, channel, why, delivery: DeliveryOptions::default() }
    }

    /// How often a broadcast was compressed: once for each window that its channels have agreed on, however many they
    /// are.
    pub fn broadcast_compressions(&self) -> u64 {
        self.shared.compression.made()
    }

    /// What is held for each process, the fullest first; without those for whom nothing is held.
    pub fn held_by_process(&self) -> Vec<TenantReport> {
        self.shared.memory.report()
    }

    /// The shards as they are now, in order. Empty once the broker has stopped.
    pub fn reports(&self) -> Vec<Report> {
        let (sender, reports) = bounded(self.shared.inboxes.len());
        // A shard that has stopped drops its copy of the sender.
        let _ = self.shared.send_all(|_| Command::Report(sender.clone()));
        drop(sender);
        let mut reports: Vec<Report> = reports.iter().collect();
        reports.sort_unstable_by_key(|report| report.shard);
        reports
    }

    /// The last 1,000 channels that ended, and why, the newest last; clients that opened a WebSocket and did not register
    /// are among them. Empty once the broker has stopped.
    pub fn disconnects(&self) -> Vec<Disconnect> {
        let (sender, shards) = bounded(self.shared.inboxes.len());
        // A shard that has stopped drops its copy of the sender.
        let _ = self.shared.send_all(|_| Command::Disconnects(sender.clone()));
        drop(sender);
        let mut all: Vec<Disconnect> = shards.iter().flatten().collect();
        all.sort_by_key(|disconnect| disconnect.unix_ms);
        all.split_off(all.len().saturating_sub(DISCONNECTS_MAX))
    }

    /// Closes every channel with 1001, gives clients `within` to answer, and lets [`Broker::wait`] return.
    pub fn stop(&self, within: Duration) {
        self.shared.stop(within, None);
    }

    /// As [`stop`](Self::stop), and returns when nobody listens any more and every client has been told, as far as its
    /// socket takes it: that takes some µs a channel. After `patience` in any case.
    pub fn stop_and_tell(&self, within: Duration, patience: Duration) {
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
        self.draining.store(true, Ordering::SeqCst);
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

/// Lowers `limits` to what the limit of open files leaves for clients, of which `clients` have their files open already.
fn fit_to_open_files(
    limits: admission::ConnectionLimits,
    shards: usize,
    clients: usize,
) -> admission::ConnectionLimits {
    // Without a /proc to count in, the system's limit will show itself.
    let Ok((files_max, open)) = sys::open_files() else { return limits };
    let files_max = usize::try_from(files_max).unwrap_or(usize::MAX);
    let fitting = limits_within_files(limits.clone(), shards, files_max + clients, open);
    if fitting.connections_max < limits.connections_max {
        let (configured, connections_max) = (limits.connections_max, fitting.connections_max);
        tracing::warn!(
            connections_max,
            configured,
            files_max,
            "fewer connections than configured: the limit of open files allows no more"
        );
    }
    fitting
}

/// An eventfd that the inbox and the pump share.
struct SharedWake(Arc<WakeFd>);

impl inbox::Wake for SharedWake {
    fn wake(&self) {
        self.0.wake();
    }
}

/// All that a shard's thread begins with.
struct ShardThread {
    index: usize,
    shards: usize,
    core: Option<usize>,
    driver: DriverKind,
    common: Common,
    clock: Clock,
    inbox: Inbox<Command>,
    listeners: Listeners,
    wake: Arc<WakeFd>,
    probe: Arc<Probe>,
    last_shard: Arc<LastShard>,
    peers: Inboxes,
    /// Where whoever started the broker hears what its threads log.
    log: tracing::Dispatch,
}

/// Empties the directory when the last shard has let go of it: nobody is attached to a broker that has stopped. It
/// holds the last senders of the processes' queues, and with them the processes learn that nothing will come any more.
struct LastShard(Arc<DirectoryCell>);

impl Drop for LastShard {
    fn drop(&mut self) {
        let emptied = {
            let mut directory = self.0.directory();
            directory.owners = HashTrieMapSync::default();
            directory.processes = HashTrieMapSync::default();
            directory.resolve = None;
            directory.system = None;
            directory.clone()
        };
        *self.0.adopted() = Arc::new(emptied);
    }
}

impl ShardThread {
    /// The life of a shard's thread.
    fn work(self, ready: &Sender<Result<DriverKind, StartError>>, ended: Sender<ThreadEnd>) {
        let _log = tracing::dispatcher::set_default(&self.log);
        // Dropped behind all else of this shard, the directory that it has adopted included.
        let _last_shard = self.last_shard.clone();
        let farewell = ThreadExit::new(self.index, ended);
        let (mut runtime, pump) = match self.prepare() {
            Ok(prepared) => prepared,
            Err(error) => {
                // The starter has the error and needs no farewell beside it.
                let _ = ready.send(Err(error));
                return farewell.say(Ok(()));
            }
        };
        let _ = ready.send(Ok(runtime.kind()));
        let result = runtime.block_on(async {
            // In a task of its own: the future given to `block_on` is polled in a loop that looks at no I/O.
            monoio::spawn(pump.run()).await
        });
        farewell.say(result.map_err(|error| error.to_string()));
    }

    fn prepare(self) -> Result<(ShardRuntime, Pump), StartError> {
        if let Some(core) = self.core {
            sys::pin_to_core(core)?;
        }
        let runtime = ShardRuntime::new(self.driver)?;
        tracing::debug!(shard = self.index, driver = runtime.why(), "shard started");
        let flusher: Box<dyn Flush> = match runtime.kind() {
            DriverKind::Epoll => Box::new(SendFlush),
            DriverKind::Auto | DriverKind::Uring => match UringFlush::new() {
                Ok(flusher) => Box::new(flusher),
                Err(error) => {
                    tracing::warn!(%error, "sending one by one");
                    Box::new(SendFlush)
                }
            },
        };
        // Where channel ids start, and what makes request ids hard to guess.
        let seed = RandomState::new().hash_one(self.index);
        let (index, shards) = (self.index as u32, self.shards as u32);
        let shard = Shard::new(index, shards, self.common, flusher, seed, self.clock.now_ms());
        let pump = Pump::new(shard, self.inbox, self.listeners, &self.wake, self.clock, self.probe)?.among(self.peers);
        Ok((runtime, pump))
    }
}

/// Tells the broker that a shard's thread has ended, even by a panic.
struct ThreadExit {
    shard: usize,
    ended: Sender<ThreadEnd>,
    result: Result<(), String>,
}

impl ThreadExit {
    fn new(shard: usize, ended: Sender<ThreadEnd>) -> Self {
        Self { shard, ended, result: Err("it panicked".to_owned()) }
    }

    fn say(mut self, result: Result<(), String>) {
        self.result = result;
    }
}

impl Drop for ThreadExit {
    fn drop(&mut self) {
        let _ = self.ended.send((self.shard, std::mem::replace(&mut self.result, Ok(()))));
    }
}
