//! A node's kernel attached over a link: the drop-in (`node::http_server`) with the broker in another program.
//!
//! Threads as there: one takes the kernel's messages, one gives it what arrives, one judges passwords. Invariants: the
//! kernel's queue is filled to its half by what clients send; a message that the link cannot carry is answered here; when
//! the session is lost, every channel that was told as opened is told as closed.

use super::convert;
use super::frame::Frame;
use super::peer::{Arrival, Asked, Attached, ConnectError, Endpoint, Shared};
use super::wire::{Attach, FromPeer, LiveChannel, LoggedIn, Login, ToPeer};
use crate::broker::{Policy, RecvError};
use crate::channel::ChannelId;
use crate::gateway::Secret;
use crate::node::login::token;
use crate::node::outbound::{Ids, ToKernel};
use crate::node::server::{KernelQueue, unix_s};
use crate::node::service::TAKEN_AT_ONCE_MAX;
use crate::node::{Events, Host, HttpServerError, HttpServerRequest, KernelMessage, Message, Reply, ServerName};
use crate::process_id::ProcessId;
use bytes::Bytes;
use crossbeam_channel::Receiver;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// How long a wait for what arrives lasts before it begins anew.
const WAIT_MAX: Duration = Duration::from_secs(3600);

/// The broker has one login judged at a time; more are those that it has given up.
const LOGINS_MAX: usize = 16;

/// What a node gives to a broker in another program. The broker has the rest: where to listen, the dialect, limits.
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
    /// What happens to frames that do not fit a channel's budget.
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
pub enum KernelError {
    /// It was not attached.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The broker has stopped, or was lost for longer than it keeps channels. Those that were open have been told as
    /// closed.
    #[error("the broker has stopped or is lost")]
    Lost,
    /// The secret is empty.
    #[error("the JWT secret is empty")]
    Secret,
    /// No thread.
    #[error("no thread for the link: {0}")]
    Thread(#[from] std::io::Error),
    /// A thread panicked.
    #[error("a thread of the link panicked")]
    Panicked,
}

/// Serves a node's clients through the broker at the other end of a link, until its kernel drops its ends, or the future
/// is dropped; channels are then closed with 1001. A lost connection comes back by itself as long as the broker keeps the
/// channels (`owner_grace`), and nothing is lost or doubled meanwhile. A kernel that attaches anew within that time has
/// its predecessor's channels and paths, and is told of the channels as if they were opened now.
///
/// # Errors
/// See [`KernelError`].
pub async fn http_server<H: Host>(parts: KernelParts<H>) -> Result<(), KernelError> {
    let (started, starting) = oneshot::channel();
    let (ended, ending) = oneshot::channel();
    thread::Builder::new().name("http-server".to_owned()).spawn(move || {
        // Nobody listens once the future was dropped; the session has been ended then.
        let _ = ended.send(serve(parts, started));
    })?;
    // An error before the start comes with the end.
    let _leave = starting.await.ok();
    ending.await.unwrap_or(Err(KernelError::Panicked))
}

/// What arrives.
enum Arrived {
    Live(LiveChannel),
    Kernel(KernelMessage),
    Login(Login),
}

impl Arrival for Arrived {
    fn live(channel: LiveChannel) -> Self {
        Self::Live(channel)
    }

    fn arrived(head: ToPeer, blob: Vec<u8>, _: &mut Asked) -> Option<Self> {
        match head {
            ToPeer::Kernel(head) => Some(Self::Kernel(convert::kernel_in(head, blob))),
            ToPeer::Login(login) => Some(Self::Login(login)),
            _ => None,
        }
    }
}

/// Ends the session when it is dropped.
#[derive(Clone)]
struct Leave {
    shared: Arc<Shared<Arrived>>,
    left: Arc<AtomicBool>,
}

impl Drop for Leave {
    fn drop(&mut self) {
        if !self.left.swap(true, Ordering::SeqCst) {
            self.shared.line.end(Some(Frame::bare(&FromPeer::Bye { failed: false })));
        }
    }
}

/// The life of the server, on a thread of its own.
fn serve<H: Host>(parts: KernelParts<H>, started: oneshot::Sender<Leave>) -> Result<(), KernelError> {
    let KernelParts { host, our_node, endpoint, keyfile, jwt_secret, policy, from_kernel, to_kernel, prints } = parts;
    let secret = Secret::new(&jwt_secret).map_err(|_| KernelError::Secret)?;
    let attach = Attach::Kernel { node: our_node.clone(), jwt_secret: Some(jwt_secret), policy: policy.into() };
    let attached = Attached::<Arrived>::connect(endpoint, attach)?;
    let host = Arc::new(host);
    let left = Arc::new(AtomicBool::new(false));
    let leave = || Leave { shared: attached.shared.clone(), left: left.clone() };
    let (logins, waiting) = crossbeam_channel::bounded(LOGINS_MAX);
    let password = Password {
        host: host.clone(),
        keyfile: keyfile.into(),
        secret,
        node: our_node.clone(),
        shared: attached.shared.clone(),
    };
    // Ends with `logins`.
    thread::Builder::new().name("http-login".to_owned()).spawn(move || password.run(&waiting))?;
    let outgoing = Outgoing {
        host: host.clone(),
        shared: attached.shared.clone(),
        head_bytes_max: attached.welcome.head_bytes_max as usize,
        blob_bytes_max: attached.welcome.blob_bytes_max as usize,
    };
    let (_stopped, stopping) = oneshot::channel();
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let leaving = leave();
    thread::Builder::new().name("http-from-kernel".to_owned()).spawn(move || {
        let _leaving = leaving;
        runtime.block_on(outgoing.run(from_kernel, stopping));
    })?;
    // Full: the terminal has more to show than anybody reads.
    let _ = prints.try_send(host.print(0, format!("http-server: listening on {}", attached.welcome.listening)));
    // Dropped at once if the node does not want it any more; then the session ends at once.
    let _ = started.send(leave());
    let events = Events::new(&our_node, attached.welcome.dialect);
    let queue = KernelQueue { host, to_kernel, is_given_up: left.clone() };
    let incoming = Incoming { events, queue, logins, ids: Ids::new(), open: HashMap::new() };
    incoming.run(&attached.shared, &left)
}

/// From the broker to the kernel.
struct Incoming<H: Host> {
    events: Events,
    queue: KernelQueue<H>,
    logins: crossbeam_channel::Sender<Login>,
    ids: Ids,
    /// The channels that the kernel was told of, and whose they are.
    open: HashMap<u32, ProcessId>,
}

impl<H: Host> Incoming<H> {
    fn run(mut self, shared: &Shared<Arrived>, left: &AtomicBool) -> Result<(), KernelError> {
        let mut items = Vec::new();
        while self.queue.wait_for_room() {
            match shared.recv(&mut items, WAIT_MAX) {
                Ok(()) => {}
                Err(RecvError::Timeout) => continue,
                Err(RecvError::Stopped) if left.load(Ordering::SeqCst) => break,
                Err(RecvError::Stopped) => {
                    self.close_all();
                    return Err(KernelError::Lost);
                }
            }
            for item in items.drain(..) {
                if let Some(message) = self.message(shared, item)
                    && self.queue.send(message, ()).is_err()
                {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn message(&mut self, shared: &Shared<Arrived>, item: Arrived) -> Option<KernelMessage> {
        match item {
            Arrived::Live(live) => self.live(live),
            Arrived::Kernel(message) => {
                self.note(&message);
                Some(message)
            }
            Arrived::Login(login) => {
                if let Err(refused) = self.logins.try_send(login) {
                    answer(shared, refused.into_inner().login, Err("too many logins at once".to_owned()), Bytes::new());
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
    fn close_all(&mut self) {
        for (channel, process) in std::mem::take(&mut self.open) {
            let closed = self.events.closed(self.ids.next(), &process, ChannelId::new(channel));
            if self.queue.send(closed, ()).is_err() {
                return;
            }
        }
    }
}

/// From the kernel to the broker.
struct Outgoing<H: Host> {
    host: Arc<H>,
    shared: Arc<Shared<Arrived>>,
    head_bytes_max: usize,
    blob_bytes_max: usize,
}

impl<H: Host> Outgoing<H> {
    /// Sends until the kernel goes or the session is over. Waits for the broker, which takes in at CPU speed.
    async fn run(self, mut from_kernel: mpsc::Receiver<H::Message>, mut stopping: oneshot::Receiver<()>) {
        let mut messages = Vec::with_capacity(TAKEN_AT_ONCE_MAX);
        loop {
            tokio::select! {
                _ = &mut stopping => return,
                taken = from_kernel.recv_many(&mut messages, TAKEN_AT_ONCE_MAX) => if taken == 0 {
                    return; // The kernel has gone.
                },
            }
            let ours = messages.drain(..).filter_map(|message| self.host.to_ours(message));
            let frames = ours.filter_map(|message| self.frame(message)).map(|frame| (frame, ()));
            if self.shared.line.send(frames).is_err() {
                return;
            }
        }
    }

    /// None: it is larger than the link takes, and has been refused.
    fn frame(&self, message: KernelMessage) -> Option<Frame> {
        let (id, source) = (message.id, message.source.clone());
        let server = ServerName::of(&message.target.process).unwrap_or_default();
        let is_request = matches!(message.message, Message::Request(_));
        let frame = convert::kernel_from(message);
        if frame.fits(self.head_bytes_max, self.blob_bytes_max) {
            return Some(frame);
        }
        if is_request {
            let refusal = Reply::unasked(id, source, server).refused(HttpServerError::MalformedRequest);
            self.shared.tell(Arrived::Kernel(refusal));
            return None;
        }
        // What does not parse is answered 500.
        Some(convert::kernel_from(crate::node::unreadable_response(id, source)))
    }
}

/// Judges passwords.
struct Password<H> {
    host: Arc<H>,
    keyfile: Bytes,
    secret: Secret,
    node: String,
    shared: Arc<Shared<Arrived>>,
}

impl<H: Host> Password<H> {
    fn run(self, waiting: &Receiver<Login>) {
        for Login { login, password_hash, subdomain } in waiting {
            let judged = match subdomain.map(|id| id.parse::<ProcessId>()).transpose() {
                Ok(process) if self.host.is_password(&self.keyfile, &password_hash) => {
                    Ok(Some(token(&self.secret, &self.node, process.as_ref(), unix_s())))
                }
                Ok(_) => Ok(None),
                Err(error) => Err(error.to_string()),
            };
            answer(&self.shared, login, judged, self.keyfile.clone());
        }
    }
}

/// Answers a login; the keyfile goes along with a right password alone.
fn answer(shared: &Shared<Arrived>, login: u64, judged: Result<Option<String>, String>, keyfile: Bytes) {
    let (token, error) = match judged {
        Ok(token) => (token, None),
        Err(error) => (None, Some(error)),
    };
    let blob = if token.is_some() { keyfile } else { Bytes::new() };
    let frame = Frame::bare(&FromPeer::LoggedIn(LoggedIn { login, token, error })).with(blob);
    // Over: nobody waits for it any more. Few at a time, so it waits for no room.
    let _ = shared.line.send_now(frame, ());
}
