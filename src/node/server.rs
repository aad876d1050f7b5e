//! The drop-in: what a node spawns in place of its own HTTP server.
//!
//! Three threads beside the shards: messages of the kernel go in on one, events come out on another, passwords are
//! judged on the third (`service`). Dropping the future stops the server.

use super::host::Host;
use super::identity::http_server_process;
use super::inbound::Inlet;
use super::login::{Gatekeeper, Granted};
use super::message::KernelMessage;
use super::outbound::{KernelGone, ToKernel};
use super::service::{Service, TAKEN_AT_ONCE_MAX};
use crate::broker::{
    AttachError, Broker, Config, Event, Handle, KernelOptions, PushError, QueueLimits, ShardDied, StartError,
};
use crate::control;
use crate::gateway::{Dialect, Secret};
use crate::process_id::ProcessId;
use crate::proto;
use bytes::Bytes;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;
use tokio::sync::mpsc::{self, error::TrySendError};
use tokio::sync::oneshot;

/// How long clients get to answer a close frame when the server stops.
const STOP_WITHIN: Duration = Duration::from_secs(5);

/// What a node gives to its HTTP server.
pub struct Parts<H: Host> {
    /// The node's types and its check of passwords.
    pub host: H,
    /// The node's name.
    pub our_node: String,
    /// Which node system it is.
    pub dialect: Dialect,
    /// Where to listen; nodes listen on 0.0.0.0.
    pub listen: SocketAddr,
    /// The encoded keyfile, for logins.
    pub keyfile: Vec<u8>,
    /// The key of the node's tokens.
    pub jwt_secret: Vec<u8>,
    /// Messages of the kernel to the HTTP server.
    pub from_kernel: mpsc::Receiver<H::Message>,
    /// Messages to the kernel's loop.
    pub to_kernel: mpsc::Sender<H::Message>,
    /// Lines for the terminal.
    pub prints: mpsc::Sender<H::Print>,
    /// Whether loopback features are open: `local_only` paths, extensions, the RPC path.
    pub expose_local: bool,
    /// Where the node's operator asks with `pushring stats` and `pushring disconnects`: a Unix socket for this user alone.
    /// None: nowhere.
    pub control: Option<PathBuf>,
    /// All that a node's own server had no word for: [`config`], or changes to it. `listen` and the settings named above
    /// are overwritten.
    pub config: Config,
}

/// Why the server ended, other than by the node's will.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// It did not start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The secret is empty.
    #[error("the JWT secret is empty")]
    Secret,
    /// The broker stopped as it started.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// No thread.
    #[error("no thread for the server: {0}")]
    Thread(#[from] std::io::Error),
    /// A bug, or a kernel of the system that refuses what it always grants.
    #[error(transparent)]
    Died(#[from] ShardDied),
    /// A thread of the server panicked.
    #[error("a thread of the server panicked")]
    Panicked,
}

/// A broker's defaults, but for the largest frame and message, 16 MiB and 64 MiB: what a node's own server takes.
pub fn config() -> Config {
    let mut config = Config::default();
    config.shard.limits = proto::Limits { frame_bytes_max: 16 << 20, ..proto::Limits::for_messages(64 << 20) };
    config
}

/// Serves HTTP and WebSocket clients for a node until its kernel drops its ends, or the future is dropped.
///
/// # Errors
/// See [`ServerError`].
pub async fn http_server<H: Host>(parts: Parts<H>) -> Result<(), ServerError> {
    let (started, starting) = oneshot::channel();
    let (ended, ending) = oneshot::channel();
    thread::Builder::new().name("http-server".to_owned()).spawn(move || {
        // Nobody listens once the future was dropped; the server has been stopped then.
        let _ = ended.send(serve(parts, started));
    })?;
    // An error before the start comes with the end.
    let _stop = starting.await.ok().map(StopOnDrop);
    ending.await.unwrap_or(Err(ServerError::Panicked))
}

struct StopOnDrop(Handle);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.stop(STOP_WITHIN);
    }
}

/// The life of the server, on a thread of its own.
fn serve<H: Host>(parts: Parts<H>, started: oneshot::Sender<Handle>) -> Result<(), ServerError> {
    let Parts { host, our_node, dialect, listen, keyfile, jwt_secret, from_kernel, to_kernel, prints, .. } = parts;
    let mut config = Config { listen, ..parts.config };
    let settings = &mut config.settings;
    settings.node = our_node;
    settings.dialect = dialect;
    settings.secret = Some(Secret::new(&jwt_secret).map_err(|_| ServerError::Secret)?);
    settings.expose_local = parts.expose_local;
    (settings.login, settings.rpc) = (true, true);
    let policy = config.shard.policy;
    let broker = Broker::start(config)?;
    let stop = StopOnDrop(broker.handle());
    // Beside what the kernel's queue holds, a quarter of it may wait here.
    let queue = QueueLimits { messages_max: (to_kernel.max_capacity() / 4).max(1), ..QueueLimits::default() };
    let settings = broker.handle().settings();
    let options = KernelOptions { system: http_server_process(), queue, policy, settings: settings.clone() };
    let (kernel_events, kernel) = broker.handle().kernel(options)?;
    let host = Arc::new(host);
    let queue = KernelQueue { host: host.clone(), to_kernel: to_kernel.clone() };
    let password = Password { host: host.clone(), keyfile: keyfile.into() };
    let Service { inlet, outlet, judge, attempts } = Service::new(kernel, settings, queue, password);

    // Full: the terminal has more to show than anybody reads.
    let _ = prints.try_send(host.print(format!("http-server: listening on {}", broker.address())));

    // Ends with `outlet`, which holds the door.
    thread::Builder::new().name("http-login".to_owned()).spawn(move || judge.run(&attempts))?;
    let outlet_stop = StopOnDrop(broker.handle());
    thread::Builder::new().name("http-to-kernel".to_owned()).spawn(move || {
        let _stop = outlet_stop;
        outlet.run(&kernel_events);
    })?;
    // A node without it serves as well.
    let control =
        parts.control.map(|path| control::Server::start(&broker, &path)).transpose().unwrap_or_else(|error| {
            let _ = prints.try_send(host.print(format!("http-server: no control socket: {error}")));
            None
        });
    let (stopped, stopping) = oneshot::channel();
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    thread::Builder::new().name("http-from-kernel".to_owned()).spawn(move || {
        let _stop = stop;
        runtime.block_on(Intake::new(inlet, host, from_kernel, to_kernel).run(stopping));
    })?;
    // Dropped at once if the node does not want it any more; then its guard is dropped too and stops it.
    let _ = started.send(broker.handle());
    let result = broker.wait();
    drop::<oneshot::Sender<()>>(stopped);
    drop(control);
    Ok(result?)
}

/// How often the kernel's queue is looked at while it is too full; nobody tells us when it is not.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// The queue of a node's kernel. Other modules of a node fail when it is full, so nothing is taken from the shards while
/// it is more than half full.
pub(crate) struct KernelQueue<H: Host> {
    pub host: Arc<H>,
    pub to_kernel: mpsc::Sender<H::Message>,
}

impl<H: Host> ToKernel for KernelQueue<H> {
    type Note = ();

    fn note(&self, _: Option<&ProcessId>, _: &Event) {}

    fn wait_for_room(&self) -> bool {
        while self.to_kernel.capacity() < self.to_kernel.max_capacity() / 2 && !self.to_kernel.is_closed() {
            thread::sleep(LOOK_AGAIN);
        }
        !self.to_kernel.is_closed()
    }

    fn takes(&self, _: usize) -> bool {
        true
    }

    fn send(&self, message: KernelMessage, (): ()) -> Result<(), KernelGone> {
        let mut message = self.host.to_node(message);
        loop {
            match self.to_kernel.try_send(message) {
                Ok(()) => return Ok(()),
                Err(TrySendError::Closed(_)) => return Err(KernelGone),
                Err(TrySendError::Full(back)) => {
                    message = back;
                    thread::sleep(LOOK_AGAIN);
                }
            }
        }
    }
}

/// Asks the node itself.
struct Password<H> {
    host: Arc<H>,
    keyfile: Bytes,
}

impl<H: Host> Gatekeeper for Password<H> {
    fn login(&self, password_hash: &str, claim: Option<&ProcessId>) -> Result<Option<Granted>, String> {
        let token = self.host.login(&self.keyfile, password_hash, claim)?;
        Ok(token.map(|token| Granted { token, keyfile: self.keyfile.clone() }))
    }
}

/// How many messages are taken before what they push is handed over: the shards are not kept waiting for more of them.
const TAKEN_IN_A_TURN_MAX: usize = 8 * TAKEN_AT_ONCE_MAX;

/// Takes messages of the kernel in, until it goes or the broker stops.
///
/// In turns: what is there is taken, then handed over. Where turns have more than one message, another thread is let run
/// before one ends, for the node is in the middle of sending: two threads that wake each other for every message cost
/// more than the messages. A message that comes alone is handed over at once.
///
/// Never waits for the kernel while the kernel may be waiting for us: an answer that its queue has no room for is kept
/// here. They are few: each belongs to a message that the kernel has taken out of that very queue.
struct Intake<H: Host> {
    inlet: Inlet,
    host: Arc<H>,
    from_kernel: mpsc::Receiver<H::Message>,
    to_kernel: mpsc::Sender<H::Message>,
    /// Taken out of the kernel's queue, and not read yet.
    messages: Vec<H::Message>,
    answers: VecDeque<KernelMessage>,
    /// The turn before had more than one message.
    was_burst: bool,
}

impl<H: Host> Intake<H> {
    fn new(
        inlet: Inlet,
        host: Arc<H>,
        from_kernel: mpsc::Receiver<H::Message>,
        to_kernel: mpsc::Sender<H::Message>,
    ) -> Self {
        let messages = Vec::with_capacity(TAKEN_AT_ONCE_MAX);
        Self { inlet, host, from_kernel, to_kernel, messages, answers: VecDeque::new(), was_burst: false }
    }

    async fn run(mut self, mut stopping: oneshot::Receiver<()>) {
        loop {
            tokio::select! {
                _ = &mut stopping => return,
                taken = self.from_kernel.recv_many(&mut self.messages, TAKEN_AT_ONCE_MAX) => if taken == 0 {
                    return; // The kernel has gone.
                },
                room = self.to_kernel.reserve(), if !self.answers.is_empty() => match room {
                    Ok(room) => give(room, &mut self.answers, &*self.host),
                    Err(_) => return,
                },
            }
            if self.turn().is_err() {
                return;
            }
            while !self.answers.is_empty()
                && let Ok(room) = self.to_kernel.try_reserve()
            {
                give(room, &mut self.answers, &*self.host);
            }
        }
    }

    /// Takes what has come and what comes meanwhile, and hands it over.
    fn turn(&mut self) -> Result<(), PushError> {
        let mut taken = 0;
        let mut is_burst = self.was_burst;
        while !self.messages.is_empty() {
            taken += self.messages.len();
            is_burst |= self.messages.len() > 1;
            for message in self.messages.drain(..).filter_map(|message| self.host.to_ours(message)) {
                self.answers.extend(self.inlet.take(message)?);
            }
            if taken >= TAKEN_IN_A_TURN_MAX {
                break;
            }
            if is_burst && self.from_kernel.is_empty() {
                thread::yield_now();
                is_burst = false;
            }
            let more = std::iter::from_fn(|| self.from_kernel.try_recv().ok());
            self.messages.extend(more.take(TAKEN_AT_ONCE_MAX));
        }
        self.was_burst = taken > 1;
        self.inlet.hand_over()
    }
}

fn give<H: Host>(room: mpsc::Permit<'_, H::Message>, answers: &mut VecDeque<KernelMessage>, host: &H) {
    if let Some(answer) = answers.pop_front() {
        room.send(host.to_node(answer));
    }
}
