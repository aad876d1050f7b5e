//! The drop-in: a node spawns it in place of its own HTTP server.
//!
//! Messages of the node kernel go in on the node's own runtime, in the future that [`http_server`] returns (`intake`).
//! Threads beside the shards: one starts the broker and waits for its end, one passes events to the node kernel, one
//! changes paths, one checks passwords.
//!
//! Invariants: from the first thread on, a [`ServerLife`] can stop all of them, whether or not there is a broker yet; a
//! future that is dropped has told every client before the drop returns, or [`CLOSE_FRAMES_WITHIN`] later; a dropped
//! server releases its port, and a server that starts anew waits for that.

use super::dialect::{Dialect, RPC_PATH};
use super::error::ServerError;
use super::host::Host;
use super::identity::http_server_process;
use super::intake::NodeIntake;
use super::login::{GrantedLogin, PasswordCheck, token};
use super::message::KernelMessage;
use super::outbound::{KernelGone, ToKernel};
use super::prints::{SHOWN, TerminalPrinter, VERBOSE, Warnings};
use super::service::Service;
use crate::broker::{Broker, BrokerHandle, Config, Event, KernelOptions, QueueLimits, StartError};
use crate::control;
use crate::driver::available;
use crate::driver::listen::ListenError;
use crate::gateway::{RESPONSE_TIMEOUT_MAX_S, RulesOverlay, Secret, Settings};
use crate::process_id::ProcessId;
use crate::proto;
use bytes::Bytes;
use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::mpsc::{self, error::TrySendError};
use tokio::sync::{oneshot, watch};

/// How long clients get to answer a close frame when the server stops.
const STOP_WITHIN: Duration = Duration::from_secs(5);

/// How long a drop may take to send close frames: 10 to 25 µs a channel, and a shard has 100,000 at most
/// (`connections_max`).
const CLOSE_FRAMES_WITHIN: Duration = Duration::from_secs(3);

/// How long a server waits for a port that another has: one that was dropped a moment ago lets go of it at once.
const PORT_WITHIN: Duration = Duration::from_secs(5);

/// How often it checks whether the port is free; there is no notification.
const PORT_LOOK_AGAIN: Duration = Duration::from_millis(5);

/// A node's settings for its HTTP server.
pub struct NodeParts<H: Host> {
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
    /// Where the node's operator asks with `pushring stats` and `pushring disconnects`: a Unix socket for this user
    /// alone. None: nowhere.
    pub control: Option<PathBuf>,
    /// All that a node's own server had no word for: [`config`], or changes to it. `listen` and the settings named
    /// above are overwritten.
    pub config: Config,
}

/// A broker's defaults, except for a node's needs: frames of 16 MiB and messages of 64 MiB; from logged-in clients,
/// bodies as large as memory allows (a file explorer sends a file as an array of numbers, four times its size); and
/// heads of 64 KiB, since on `localhost` a browser also sends the cookies of every other service there. The memory
/// budget is a quarter of what is available when this is called, to the machine and its control groups: the rest is the
/// node's.
pub fn config() -> Config {
    let memory_bytes_max = available::memory_bytes(Path::new("/")).map(|bytes| bytes / 4);
    let mut config = Config { memory_bytes_max, ..Config::default() };
    config.shard.body_bytes_max_logged_in = usize::MAX;
    config.shard.http_limits.head_bytes_max = 64 << 10;
    config.shard.limits =
        proto::MessageLimits { frame_bytes_max: 16 << 20, ..proto::MessageLimits::for_messages(64 << 20) };
    config
}

/// A node's server, beside the future that serves: a handle to end it.
#[derive(Clone)]
pub struct NodeServer {
    life: Arc<ServerLife>,
}

impl NodeServer {
    /// A server, and the future to spawn, which is [`http_server`]'s. Nothing runs before the future does.
    pub fn new<H: Host>(parts: NodeParts<H>) -> (Self, impl Future<Output = Result<(), ServerError>> + Send + 'static) {
        let life = Arc::new(ServerLife::default());
        (Self { life: life.clone() }, serve(life, parts))
    }

    /// Closes every channel with 1001, gives clients `within` to answer, and returns when all threads have ended. A
    /// node awaits it before its `main` returns, also when it has dropped or aborted the future already: the goodbyes
    /// have been said then, and this waits for their answers.
    pub async fn shutdown(&self, within: Duration) {
        if self.life.stop(within) {
            // An error says that the sender has gone; it is our own.
            let _ = self.life.ended.subscribe().wait_for(|has_ended| *has_ended).await;
        }
    }

    /// Where it listens, once it does.
    pub fn address(&self) -> Option<SocketAddr> {
        self.life.state().broker.as_ref().map(BrokerHandle::address)
    }
}

/// Serves HTTP and WebSocket clients for a node until its kernel drops its ends, or the future is dropped, which says
/// a close frame to every client. To await the end of a server that is dropped, see [`NodeServer`].
///
/// # Errors
/// See [`ServerError`].
///
/// # Panics
/// Outside a tokio runtime.
pub async fn http_server<H: Host>(parts: NodeParts<H>) -> Result<(), ServerError> {
    serve(Arc::default(), parts).await
}

/// Stops a server; it exists from before the first of its threads until after the last.
pub(super) struct ServerLife {
    state: Mutex<ServerState>,
    stopping: Condvar,
    /// The future was dropped: what is left is not waited for.
    pub is_given_up: Arc<AtomicBool>,
    ended: watch::Sender<bool>,
}

#[derive(Default)]
struct ServerState {
    is_begun: bool,
    is_stopping: bool,
    broker: Option<BrokerHandle>,
}

impl Default for ServerLife {
    fn default() -> Self {
        Self {
            state: Mutex::default(),
            stopping: Condvar::new(),
            is_given_up: Arc::default(),
            ended: watch::Sender::new(false),
        }
    }
}

impl ServerLife {
    fn state(&self) -> MutexGuard<'_, ServerState> {
        // Every change is one assignment.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of a broker that runs now. Returns whether it may.
    fn begin(&self, broker: BrokerHandle) -> bool {
        let mut state = self.state();
        state.broker = Some(broker);
        !state.is_stopping
    }

    /// Has it stop, or not start at all. Returns whether it has ever begun.
    fn stop(&self, within: Duration) -> bool {
        let (broker, is_begun) = self.mark_stopping();
        if let Some(broker) = broker {
            broker.stop(within);
        }
        is_begun
    }

    fn mark_stopping(&self) -> (Option<BrokerHandle>, bool) {
        let mut state = self.state();
        state.is_stopping = true;
        self.stopping.notify_all();
        (state.broker.clone(), state.is_begun)
    }

    /// Waits a moment; returns whether it is to stop.
    fn pause(&self, moment: Duration) -> bool {
        let waited = self.stopping.wait_timeout_while(self.state(), moment, |state| !state.is_stopping);
        waited.unwrap_or_else(PoisonError::into_inner).0.is_stopping
    }
}

/// Ends the server with its future.
struct StopOnDrop(Arc<ServerLife>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.is_given_up.store(true, Ordering::Relaxed);
        if let (Some(broker), _) = self.0.mark_stopping() {
            // The node may exit a moment later, and its threads with it, so clients are told before this returns. If
            // the server has ended, it returns at once.
            broker.stop_and_tell(STOP_WITHIN, CLOSE_FRAMES_WITHIN);
        }
    }
}

async fn serve<H: Host>(life: Arc<ServerLife>, parts: NodeParts<H>) -> Result<(), ServerError> {
    let (started, starting) = oneshot::channel();
    let (ended, mut ending) = oneshot::channel();
    let _give_up = StopOnDrop(life.clone());
    life.state().is_begun = true;
    let supervised = life.clone();
    let spawned = thread::Builder::new().name("http-server".to_owned()).spawn(move || {
        let _ended = ServerEnded(supervised.clone());
        // There is no receiver once the future was dropped.
        let _ = ended.send(supervise(&supervised, parts, started));
    });
    if let Err(error) = spawned {
        life.ended.send_replace(true);
        return Err(error.into());
    }
    // An error before the start comes with the end.
    if let Ok(intake) = starting.await
        && let Some(ended) = intake.run(&mut ending).await
    {
        return ended;
    }
    life.stop(STOP_WITHIN);
    ending.await.unwrap_or(Err(ServerError::Panicked))
}

/// Signals the end of all threads, even by a panic.
struct ServerEnded(Arc<ServerLife>);

impl Drop for ServerEnded {
    fn drop(&mut self) {
        self.0.ended.send_replace(true);
    }
}

fn say_addresses<H: Host>(prints: &TerminalPrinter<H>, broker: &Broker) {
    prints.say(SHOWN, &format!("listening on {}", broker.address()));
    if let Some(address) = broker.tls_address().filter(|address| *address != broker.address()) {
        prints.say(SHOWN, &format!("listening for TLS on {address}"));
    }
}

/// The life of the server, on a thread of its own: starts everything, and returns when everything has ended.
fn supervise<H: Host>(
    life: &Arc<ServerLife>,
    parts: NodeParts<H>,
    started: oneshot::Sender<NodeIntake<H>>,
) -> Result<(), ServerError> {
    let host = Arc::new(parts.host);
    let prints = TerminalPrinter::new(host.clone(), parts.prints);
    let warnings = Warnings::new(prints.clone());
    let said = warnings.clone();
    said.also_printed(move || {
        let secret = Secret::new(&parts.jwt_secret).map_err(|_| ServerError::Secret)?;
        let mut config = Config { listen: parts.listen, ..parts.config };
        config.settings.expose_local = parts.expose_local;
        config.settings = in_a_node(config.settings, parts.dialect, &parts.our_node, &secret);
        let any_password = config.settings.simulation_mode;
        let policy = config.shard.policy;
        let Some(broker) = start(config, life, &prints)? else { return Ok(()) };
        if !life.begin(broker.handle()) {
            return Ok(broker.stop(Duration::ZERO)?);
        }
        // Beside what the kernel's queue holds, a quarter of it may wait here.
        let messages_max = (parts.to_kernel.max_capacity() / 4).max(1);
        let queue = QueueLimits { messages_max, ..QueueLimits::default() };
        let rules = RulesOverlay::new(|chosen| chosen);
        let options = KernelOptions { system: http_server_process(), queue, policy, rules };
        let (kernel_events, kernel) = broker.handle().kernel(options)?;
        let is_given_up = life.is_given_up.clone();
        let queue = KernelQueue { host: host.clone(), to_kernel: parts.to_kernel.clone(), is_given_up };
        let password = NodePasswordCheck {
            host: host.clone(),
            keyfile: parts.keyfile.into(),
            secret,
            node: parts.our_node,
            any_password,
        };
        let Service { reader, changes, writer, logins, attempts } = Service::new(kernel, queue, password);

        // An operator may use the control socket as soon as the address is known.
        let control = parts.control.map(|path| control::ControlServer::start(&broker, &path)).transpose();
        say_addresses(&prints, &broker);
        warnings.release();

        // Ends with `writer`, which holds the login queue.
        let login = spawn("http-login", &warnings, move || logins.run(&attempts))?;
        let writer_life = life.clone();
        let to_kernel = spawn("http-to-kernel", &warnings, move || {
            writer.run(&kernel_events);
            writer_life.stop(STOP_WITHIN);
        })?;
        let (said, changes_end) = (prints.clone(), changes.stopper());
        let work = move || changes.run(|change| said.say(VERBOSE, &change.words()));
        let paths = spawn("http-paths", &warnings, work)?;
        // A node without it serves as well.
        let control = control.unwrap_or_else(|error| {
            prints.say(SHOWN, &format!("no control socket: {error}"));
            None
        });
        // Given back if the node does not want it any more: the drop of its future has stopped the broker.
        let _ = started.send(NodeIntake::new(reader, host, parts.from_kernel, parts.to_kernel));
        let result = broker.wait();
        drop(control);
        changes_end.stop();
        let has_panicked = [to_kernel, login, paths].map(|thread| thread.join().is_err()).contains(&true);
        if has_panicked { Err(ServerError::Panicked) } else { Ok(result?) }
    })
}

pub(crate) fn spawn(
    name: &str,
    warnings: &Arc<Warnings>,
    run: impl FnOnce() + Send + 'static,
) -> std::io::Result<thread::JoinHandle<()>> {
    let warnings = warnings.clone();
    thread::Builder::new().name(name.to_owned()).spawn(move || warnings.also_printed(run))
}

/// Starts the broker, waiting for a port that is not free yet. None: it is not wanted any more.
fn start<H: Host>(
    config: Config,
    life: &ServerLife,
    prints: &TerminalPrinter<H>,
) -> Result<Option<Broker>, ServerError> {
    let deadline = Instant::now() + PORT_WITHIN;
    let mut is_said = false;
    loop {
        match Broker::start(config.clone()) {
            Err(StartError::Listen(ListenError::InUse(address))) if Instant::now() < deadline => {
                if !std::mem::replace(&mut is_said, true) {
                    tracing::debug!(%address, "waiting for the port");
                }
                if life.pause(PORT_LOOK_AGAIN) {
                    return Ok(None);
                }
            }
            started => {
                let broker = started.inspect_err(|error| prints.say(SHOWN, &error.to_string()))?;
                return Ok(Some(broker));
            }
        }
    }
}

/// How often the kernel's queue is checked while it is too full; there is no notification when it has room.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// The queue of a node's kernel. Other modules of a node fail when it is full, so nothing is taken from the shards
/// while it is more than half full.
pub(crate) struct KernelQueue<H: Host> {
    pub host: Arc<H>,
    pub to_kernel: mpsc::Sender<H::Message>,
    /// Set when the rest is no longer waited for.
    pub is_given_up: Arc<AtomicBool>,
}

impl<H: Host> KernelQueue<H> {
    fn has_gone(&self) -> bool {
        self.to_kernel.is_closed() || self.is_given_up.load(Ordering::Relaxed)
    }
}

impl<H: Host> ToKernel for KernelQueue<H> {
    type Note = ();

    fn note(&self, _: Option<&ProcessId>, _: &Event) {}

    fn wait_for_room(&self) -> bool {
        while self.to_kernel.capacity() < self.to_kernel.max_capacity() / 2 && !self.has_gone() {
            thread::sleep(LOOK_AGAIN);
        }
        !self.has_gone()
    }

    fn takes(&self, _: &KernelMessage) -> bool {
        true
    }

    fn send(&self, message: KernelMessage, (): ()) -> Result<(), KernelGone> {
        let mut message = self.host.to_node(message);
        loop {
            match self.to_kernel.try_send(message) {
                Ok(()) => return Ok(()),
                Err(TrySendError::Closed(_)) => return Err(KernelGone),
                Err(TrySendError::Full(_)) if self.has_gone() => return Err(KernelGone),
                Err(TrySendError::Full(back)) => {
                    message = back;
                    thread::sleep(LOOK_AGAIN);
                }
            }
        }
    }
}

/// The rules of entry of a node.
fn in_a_node(mut settings: Settings, dialect: Dialect, our_node: &str, secret: &Secret) -> Settings {
    dialect.rule(our_node, &mut settings);
    settings.secret = Some(secret.clone());
    (settings.login, settings.rpc_path) = (true, Some(RPC_PATH));
    let settings = in_its_mode(settings);
    warn_of_its_mode(&settings);
    settings
}

/// The rules of entry of a node in the modes that they name.
pub(crate) fn in_its_mode(mut settings: Settings) -> Settings {
    if settings.simulation_mode {
        // As there: processes are stepped through by hand.
        settings.response_timeout_s = RESPONSE_TIMEOUT_MAX_S;
    }
    settings
}

/// Tells the operator of the modes that open a node.
pub(crate) fn warn_of_its_mode(settings: &Settings) {
    if settings.simulation_mode {
        tracing::warn!("simulation mode: any password logs in");
    }
    if settings.public_mode {
        tracing::warn!("public mode: there is no login, and any client may open paths that need one in other modes");
    }
}

/// Seconds since 1970. A clock before that only makes tokens that have expired already.
pub(crate) fn unix_s() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Asks the node itself.
struct NodePasswordCheck<H> {
    host: Arc<H>,
    keyfile: Bytes,
    secret: Secret,
    node: String,
    /// A simulated node.
    any_password: bool,
}

impl<H: Host> PasswordCheck for NodePasswordCheck<H> {
    fn login(&self, password_hash: &str, claim: Option<&ProcessId>) -> Result<Option<GrantedLogin>, String> {
        if !self.any_password && !self.host.is_password(&self.keyfile, password_hash) {
            return Ok(None);
        }
        let token = token(&self.secret, &self.node, claim, unix_s());
        Ok(Some(GrantedLogin { token, keyfile: self.keyfile.clone() }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::attempts::{PER_CLIENT_MAX, WAITING_MAX};

    #[test]
    fn the_page_has_the_numbers_that_are_in_force() {
        let page: Vec<&str> = include_str!("../../docs/NODE.md").split_whitespace().collect();
        let page = page.join(" ");
        for said in [
            format!("it waits up to {} s;", PORT_WITHIN.as_secs()),
            format!("when the drop returns, or after {} s;", CLOSE_FRAMES_WITHIN.as_secs()),
            format!("{PER_CLIENT_MAX} of a client may wait, {WAITING_MAX} in all,"),
        ] {
            assert!(page.contains(&said), "docs/NODE.md does not say: {said}");
        }
    }
}
