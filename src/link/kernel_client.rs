//! A node's kernel attached over a link: the drop-in (`node::http_server`) with the broker in another program.
//!
//! One thread holds the session and gives the kernel what arrives, one sends the kernel's messages (`kernel_outgoing`),
//! one checks passwords. Invariants: it ends with its kernel, or when it is dropped, and never because of its broker; a
//! session that is lost is followed by another, for ever. Messages of clients fill at most half of the kernel's queue.
//! When a session is lost, every channel that was reported as opened is reported as closed, and every request is
//! answered.

use super::convert;
use super::frame::LinkFrame;
use super::kernel_outgoing::{KernelOutgoing, KernelSession, Unanswered};
use super::peer::{AttachedPeer, ConnectError, Endpoint, NumberedItem, OpenQuestions, PeerShared, RETRIES};
use super::wire::{Attach, FromPeer, LiveChannel, LoggedIn, LoginQuestion, ToPeer};
use crate::broker::{Policy, RecvError};
use crate::channel::ChannelId;
use crate::gateway::Secret;
use crate::node::calls::AddressedName;
use crate::node::login::token;
use crate::node::outbound::{KernelGone, MessageIds, ToKernel};
use crate::node::prints::{SHOWN, TerminalPrinter, Warnings};
use crate::node::server::{KernelQueue, spawn, unix_s};
use crate::node::{EventMessages, Host, HttpServerRequest, KernelMessage, Message};
use crate::process_id::ProcessId;
use bytes::Bytes;
use crossbeam_channel::Receiver;
use std::collections::HashMap;
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};

/// How long a wait for what arrives lasts before it begins anew.
const WAIT_MAX: Duration = Duration::from_secs(3600);

/// How long a drop may take to tell the broker that the node has gone.
const LEAVE_WITHIN: Duration = Duration::from_secs(1);

/// How long a shutdown waits for a session whose connection was cut, or that was about to begin.
const END_WITHIN: Duration = Duration::from_secs(1);

/// The broker has one login checked at a time; more are those that it has given up.
const LOGINS_MAX: usize = 16;

/// A node's settings for a broker in another program. The broker has the rest: addresses, dialect, limits.
pub struct KernelParts<H: Host> {
    /// The node's types and its check of passwords.
    pub host: H,
    /// The node's name, which the broker must have been started with.
    pub our_node: String,
    /// Where the broker's link is.
    pub endpoint: Endpoint,
    /// The encoded keyfile, for logins.
    pub keyfile: Vec<u8>,
    /// The key of the node's tokens; the broker's own, if it has one, must be the same.
    pub jwt_secret: Vec<u8>,
    /// Whether `local_only` paths, extensions and the RPC path are open to clients of the broker's machine. None: as
    /// the broker was started.
    pub expose_local: Option<bool>,
    /// Whether there is no login: paths that require one are open to all, as in a node built with `public-mode`.
    pub public_mode: bool,
    /// Whether any password logs in and processes have 600 s to answer, as in a node built with `simulation-mode`.
    pub simulation_mode: bool,
    /// The policy for frames that exceed a channel's budget.
    pub policy: Policy,
    /// Messages of the kernel to the HTTP server.
    pub from_kernel: mpsc::Receiver<H::Message>,
    /// Messages to the kernel's loop.
    pub to_kernel: mpsc::Sender<H::Message>,
    /// Lines for the terminal.
    pub prints: mpsc::Sender<H::Print>,
}

/// Why the server ended, other than by the node's will.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    /// The secret is empty.
    #[error("the JWT secret is empty")]
    Secret,
    /// No thread.
    #[error("cannot start a thread of the link: {0}")]
    Thread(#[from] std::io::Error),
    /// A thread panicked.
    #[error("a thread of the link panicked")]
    Panicked,
}

/// Serves a node's clients through the broker at the other end of a link, until its kernel drops its ends, or the
/// future is dropped; channels are then closed with 1001.
///
/// The broker may come and go. A lost connection comes back by itself as long as the broker keeps the channels
/// (`owner_grace`), and nothing is lost or doubled meanwhile. When the broker has gone, channels are told as closed;
/// what processes have bound is kept, and bound again at the next broker that answers there, for ever. Until then paths
/// are taken, and pushes are answered as ones to channels that are not there. A kernel that attaches anew within the
/// grace has its predecessor's channels and paths, and is told of the channels as if they were opened now.
///
/// # Errors
/// See [`KernelError`].
pub async fn http_server<H: Host>(parts: KernelParts<H>) -> Result<(), KernelError> {
    live(Arc::default(), parts).await
}

/// A node's server over a link, beside the future that serves: a handle to end it.
#[derive(Clone)]
pub struct LinkedNode {
    life: Arc<SessionLife>,
}

impl LinkedNode {
    /// A server, and the future to spawn, which is [`http_server`]'s. Nothing runs before the future does.
    pub fn new<H: Host>(
        parts: KernelParts<H>,
    ) -> (Self, impl Future<Output = Result<(), KernelError>> + Send + 'static) {
        let life = Arc::new(SessionLife::default());
        (Self { life: life.clone() }, live(life, parts))
    }

    /// Tells the broker that the node has gone, which closes its channels with 1001, and returns once the session has
    /// ended after the node kernel's last frame, provided that the broker takes all `within` that time. It returns a
    /// second later in any case. It may also be awaited after the future was dropped or aborted.
    pub async fn shutdown(&self, within: Duration) {
        if !self.life.is_begun.load(Ordering::SeqCst) {
            return;
        }
        let session = self.life.leave();
        let (awaited, done) = crossbeam_channel::bounded::<()>(0);
        let (late, is_late) = oneshot::channel::<()>();
        let watch_over = move || {
            let _late = late;
            if let Some(session) = session.filter(|session| !session.frames.wait_finished(within)) {
                session.cut();
            }
            // Until no caller waits any more.
            let _ = done.recv_timeout(END_WITHIN);
        };
        // Without it the session takes its own time.
        let _ = thread::Builder::new().name("http-goodbye".to_owned()).spawn(watch_over);
        let mut ended = self.life.ended.subscribe();
        tokio::select! {
            _ = ended.wait_for(|has_ended| *has_ended) => {}
            _ = is_late => {}
        }
        drop(awaited);
    }
}

async fn live<H: Host>(life: Arc<SessionLife>, parts: KernelParts<H>) -> Result<(), KernelError> {
    let _leave = Leave(life.clone());
    let (ended, ending) = oneshot::channel();
    life.is_begun.store(true, Ordering::SeqCst);
    let served = life.clone();
    let spawned = thread::Builder::new().name("http-server".to_owned()).spawn(move || {
        let _ended = Ended(served.clone());
        // There is no receiver once the future was dropped; the session has been ended then.
        let _ = ended.send(serve(&served, parts));
    });
    if let Err(error) = spawned {
        life.ended.send_replace(true);
        return Err(error.into());
    }
    ending.await.unwrap_or(Err(KernelError::Panicked))
}

/// Signals that the server has ended, even by a panic.
struct Ended(Arc<SessionLife>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.ended.send_replace(true);
    }
}

/// An arrival from the broker.
enum KernelArrival {
    Live(LiveChannel),
    Kernel(KernelMessage),
    Login(LoginQuestion),
}

impl NumberedItem for KernelArrival {
    fn live(channel: LiveChannel) -> Self {
        Self::Live(channel)
    }

    fn arrived(head: ToPeer, blob: Vec<u8>, _: &mut OpenQuestions) -> Option<Self> {
        match head {
            ToPeer::Kernel(head) => Some(Self::Kernel(convert::to_kernel(head, blob))),
            ToPeer::Login(login) => Some(Self::Login(login)),
            _ => None,
        }
    }
}

/// Whether the node wants to be served, and the session to end if not.
struct SessionLife {
    session: Mutex<Option<Arc<PeerShared<KernelArrival>>>>,
    leaving: Condvar,
    has_left: Arc<AtomicBool>,
    is_begun: AtomicBool,
    ended: watch::Sender<bool>,
}

impl Default for SessionLife {
    fn default() -> Self {
        Self {
            session: Mutex::default(),
            leaving: Condvar::new(),
            has_left: Arc::default(),
            is_begun: AtomicBool::new(false),
            ended: watch::Sender::new(false),
        }
    }
}

impl SessionLife {
    fn session(&self) -> MutexGuard<'_, Option<Arc<PeerShared<KernelArrival>>>> {
        // Every change is one assignment.
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has_left(&self) -> bool {
        self.has_left.load(Ordering::SeqCst)
    }

    /// Ends the session, now or when it begins; gives it.
    fn leave(&self) -> Option<Arc<PeerShared<KernelArrival>>> {
        let session = self.session();
        self.has_left.store(true, Ordering::SeqCst);
        self.leaving.notify_all();
        let session = session.clone()?;
        session.frames.end(Some(LinkFrame::bare(&FromPeer::Bye { failed: false })));
        Some(session)
    }

    /// Waits a moment, or until it is to leave.
    fn pause(&self, moment: Duration) {
        drop(self.leaving.wait_timeout_while(self.session(), moment, |_| !self.has_left()));
    }
}

/// Ends the session when it is dropped. The node may be gone a moment later, so the broker is told before the drop
/// returns.
struct Leave(Arc<SessionLife>);

impl Drop for Leave {
    fn drop(&mut self) {
        if let Some(session) = self.0.leave() {
            session.frames.wait_finished(LEAVE_WITHIN);
        }
    }
}

/// The life of the server, on a thread of its own.
fn serve<H: Host>(life: &Arc<SessionLife>, parts: KernelParts<H>) -> Result<(), KernelError> {
    let secret = Secret::new(&parts.jwt_secret).map_err(|_| KernelError::Secret)?;
    let host = Arc::new(parts.host);
    let prints = TerminalPrinter::new(host.clone(), parts.prints);
    let warnings = Warnings::new(prints.clone());
    warnings.release();
    let attach = Attach::Kernel {
        node: parts.our_node.clone(),
        expose_local: parts.expose_local,
        public_mode: parts.public_mode,
        simulation_mode: parts.simulation_mode,
        jwt_secret: Some(parts.jwt_secret),
        policy: parts.policy,
    };
    let (logins, waiting) = crossbeam_channel::bounded(LOGINS_MAX);
    let (keyfile, node) = (parts.keyfile.into(), parts.our_node.clone());
    let password =
        LinkedPasswordCheck { host: host.clone(), keyfile, secret, node, any_password: parts.simulation_mode };
    // Ends with `logins`.
    spawn("http-login", &warnings, move || password.run(&waiting))?;
    let (unanswered, name) = (Arc::new(Unanswered::default()), Arc::new(AddressedName::default()));
    let (our_node, to_kernel) = (parts.our_node.clone(), parts.to_kernel.clone());
    let outgoing =
        KernelOutgoing::new(host.clone(), our_node, prints.clone(), to_kernel, unanswered.clone(), name.clone());
    let (to_outgoing, sessions) = mpsc::channel(1);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    let (leave, from_kernel) = (life.clone(), parts.from_kernel);
    // Ends with `to_outgoing`, or with the kernel.
    spawn("http-from-kernel", &warnings, move || {
        runtime.block_on(outgoing.run(from_kernel, sessions));
        leave.leave();
    })?;
    let queue = KernelQueue { host, to_kernel: parts.to_kernel, is_given_up: life.has_left.clone() };
    let events = EventMessages::new(&parts.our_node, Default::default());
    let incoming =
        KernelIncoming { events, name, queue, logins, unanswered, ids: MessageIds::new(), open: HashMap::new() };
    warnings.also_printed(|| incoming.serve(life, &parts.endpoint, &attach, &to_outgoing, &prints));
    Ok(())
}

/// From the broker to the kernel.
struct KernelIncoming<H: Host> {
    events: EventMessages,
    name: Arc<AddressedName>,
    queue: KernelQueue<H>,
    logins: crossbeam_channel::Sender<(LoginQuestion, Arc<PeerShared<KernelArrival>>)>,
    unanswered: Arc<Unanswered>,
    ids: MessageIds,
    /// The channels that the kernel was told of, and whose they are.
    open: HashMap<u32, ProcessId>,
}

impl<H: Host> KernelIncoming<H> {
    /// One session after the other, until the node goes.
    fn serve(
        mut self,
        life: &SessionLife,
        endpoint: &Endpoint,
        attach: &Attach,
        to_outgoing: &mpsc::Sender<Option<KernelSession<KernelArrival>>>,
        prints: &TerminalPrinter<H>,
    ) {
        let mut failures = 0;
        let mut said = String::new();
        let mut is_first = true;
        while !life.has_left() {
            match AttachedPeer::<KernelArrival>::connect(endpoint.clone(), attach.clone()) {
                Ok(attached) => {
                    (failures, said, is_first) = (0, String::new(), false);
                    let over = self.session(life, &attached, to_outgoing, prints);
                    life.session().take();
                    if over.is_err() {
                        life.leave();
                        return;
                    }
                }
                Err(error) => {
                    if std::mem::take(&mut is_first) && to_outgoing.blocking_send(None).is_err() {
                        return;
                    }
                    tell_once(&mut said, endpoint, &error);
                    failures += 1;
                    life.pause(RETRIES.after(failures));
                }
            }
        }
    }

    /// A session, from its beginning to its end.
    fn session(
        &mut self,
        life: &SessionLife,
        attached: &AttachedPeer<KernelArrival>,
        to_outgoing: &mpsc::Sender<Option<KernelSession<KernelArrival>>>,
        prints: &TerminalPrinter<H>,
    ) -> Result<(), KernelGone> {
        let welcome = &attached.welcome;
        *life.session() = Some(attached.shared.clone());
        if life.has_left() {
            // It came in between. Dropping the session ends it.
            return Ok(());
        }
        self.events.set_dialect(welcome.dialect);
        prints.say(SHOWN, &format!("listening on {}", welcome.listening));
        let session = KernelSession {
            shared: attached.shared.clone(),
            dialect: welcome.dialect,
            head_bytes_max: welcome.head_bytes_max as usize,
            blob_bytes_max: welcome.blob_bytes_max as usize,
        };
        to_outgoing.blocking_send(Some(session)).map_err(|_| KernelGone)?;
        self.run(&attached.shared)?;
        if life.has_left() {
            return Ok(());
        }
        self.close_all()?;
        self.unanswered.give_up().into_iter().try_for_each(|answer| self.queue.send(answer, ()))
    }

    /// Gives the kernel what arrives, until the session is over.
    fn run(&mut self, shared: &Arc<PeerShared<KernelArrival>>) -> Result<(), KernelGone> {
        let mut items = Vec::new();
        while self.queue.wait_for_room() {
            match shared.recv(&mut items, WAIT_MAX) {
                Ok(()) => {}
                Err(RecvError::Timeout) => continue,
                Err(RecvError::Stopped) => return Ok(()),
            }
            self.events.set_name(self.name.get());
            for item in items.drain(..) {
                if let Some(message) = self.message(shared, item) {
                    self.queue.send(message, ())?;
                }
            }
        }
        Err(KernelGone)
    }

    fn message(&mut self, shared: &Arc<PeerShared<KernelArrival>>, item: KernelArrival) -> Option<KernelMessage> {
        match item {
            KernelArrival::Live(live) => self.live(live),
            KernelArrival::Kernel(message) => {
                if matches!(message.message, Message::Response(_))
                    && let Some(words) = self.unanswered.answered(message.id)
                {
                    let answer = String::from_utf8_lossy(message.message.body()).into_owned();
                    tracing::warn!(answer, "{words} was bound before, and the restarted broker refuses it");
                    return None;
                }
                self.note(&message);
                Some(message)
            }
            KernelArrival::Login(login) => {
                if let Err(refused) = self.logins.try_send((login, shared.clone())) {
                    let (LoginQuestion { login, .. }, shared) = refused.into_inner();
                    answer(&shared, login, Err("too many logins at once".to_owned()), Bytes::new());
                }
                None
            }
        }
    }

    /// A channel of a kernel before us.
    fn live(&mut self, live: LiveChannel) -> Option<KernelMessage> {
        let process: ProcessId = live.process.as_deref()?.parse().ok()?;
        let opened = convert::opened(live);
        self.open.insert(opened.channel.get(), process.clone());
        let (path, forwarded_for) = (opened.path.to_string(), opened.forwarded_for.map(String::from));
        Some(self.events.opened(self.ids.next(), &process, opened.channel, path, opened.source, forwarded_for))
    }

    fn note(&mut self, message: &KernelMessage) {
        let body = message.message.body();
        if !body.starts_with(b"{\"WebSocketOpen\"") && !body.starts_with(b"{\"WebSocketClose\"") {
            return;
        }
        match HttpServerRequest::from_bytes(body) {
            Ok(HttpServerRequest::WebSocketOpen { channel_id, .. }) => {
                self.open.insert(channel_id, message.target.process.clone());
            }
            Ok(HttpServerRequest::WebSocketClose(channel_id)) => drop(self.open.remove(&channel_id)),
            _ => {}
        }
    }

    /// The broker will not say it any more.
    fn close_all(&mut self) -> Result<(), KernelGone> {
        for (channel, process) in std::mem::take(&mut self.open) {
            let closed = self.events.closed(self.ids.next(), &process, ChannelId::new(channel));
            self.queue.send(closed, ())?;
        }
        Ok(())
    }
}

/// TerminalPrinter why there is no broker, and prints it again only when the reason changes.
fn tell_once(said: &mut String, endpoint: &Endpoint, error: &ConnectError) {
    let words = error.to_string();
    if *said != words {
        tracing::warn!(broker = ?endpoint, error = words, "no broker serves this node; trying again until one does");
        *said = words;
    }
}

/// Judges passwords.
struct LinkedPasswordCheck<H> {
    host: Arc<H>,
    keyfile: Bytes,
    secret: Secret,
    node: String,
    /// A simulated node.
    any_password: bool,
}

impl<H: Host> LinkedPasswordCheck<H> {
    fn run(self, waiting: &Receiver<(LoginQuestion, Arc<PeerShared<KernelArrival>>)>) {
        for (LoginQuestion { login, password_hash, subdomain }, shared) in waiting {
            let judged = match subdomain.map(|id| id.parse::<ProcessId>()).transpose() {
                Ok(process) if self.any_password || self.host.is_password(&self.keyfile, &password_hash) => {
                    Ok(Some(token(&self.secret, &self.node, process.as_ref(), unix_s())))
                }
                Ok(_) => Ok(None),
                Err(error) => Err(error.to_string()),
            };
            answer(&shared, login, judged, self.keyfile.clone());
        }
    }
}

/// Answers a login; the keyfile is sent only with a right password.
fn answer(shared: &PeerShared<KernelArrival>, login: u64, judged: Result<Option<String>, String>, keyfile: Bytes) {
    let (token, error) = match judged {
        Ok(token) => (token, None),
        Err(error) => (None, Some(error)),
    };
    let blob = if token.is_some() { keyfile } else { Bytes::new() };
    let frame = LinkFrame::bare(&FromPeer::LoggedIn(LoggedIn { login, token, error })).with(blob);
    // After the end no frame is expected. There are few at a time, so it does not wait for room.
    let _ = shared.frames.send_now(frame, ());
}
