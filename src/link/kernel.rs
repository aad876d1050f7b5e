//! The broker's end of a node's kernel over a link: the contract of the node's HTTP server (`node::service`), with
//! frames for a queue.
//!
//! Beside the connection's reader and writer a kernel has four threads: one has its messages obeyed, one changes paths, one
//! words events for it, one waits for it to judge passwords. Each may wait for the peer, none with a shard.

use super::convert::{self, live_channel};
use super::frame::{HEAD_BYTES_MAX, LinkFrame};
use super::line::QueueEnded;
use super::mailroom::KernelInbox;
use super::orders::Stop;
use super::server::bye;
use super::session::{Actor, Forget, FrameMark, Registry, Session, SessionEnd, SessionKey, refused};
use super::wire::{ByeCode, HelloRefused, LiveChannel, LoggedIn, LoginQuestion, RefusedCode, ToPeer};
use crate::admission::{HeapBytes, HeldAs, ProcessFund};
use crate::broker::{AttachError, Event, Kernel, KernelHandle, KernelOptions};
use crate::gateway::{Claims, Secret, Settings, mint};
use crate::node::inbound::MessageReader;
use crate::node::login::{GrantedLogin, PasswordCheck};
use crate::node::outbound::{KernelGone, ToKernel};
use crate::node::service::{Service, TAKEN_AT_ONCE_MAX};
use crate::node::{KernelMessage, http_server_process};
use crate::process_id::ProcessId;
use crate::proto::close::code;
use crate::queue::orders::this_thread;
use crate::words::policy::Policy;
use bytes::Bytes;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll};
use std::thread;
use std::time::Duration;

/// How long a login waits for the node's word; its client has been answered 408 by then.
const LOGIN_WITHIN: Duration = Duration::from_secs(15);

/// What of a head is not the body of its message: addresses, names, and what MessagePack adds.
const BESIDE_BODY_BYTES_MAX: usize = 64 << 10;

/// What a hello says of a kernel.
pub struct KernelHello {
    pub node: String,
    pub jwt_secret: Option<Vec<u8>>,
    pub expose_local: Option<bool>,
    pub policy: Policy,
}

/// What obeys a kernel.
pub struct KernelActor {
    pub mailroom: KernelInbox,
    logins: Logins,
    handle: KernelHandle,
    /// How long what the kernel has sent may find no room: it does not acknowledge what it was sent itself.
    room_within: Duration,
}

impl KernelActor {
    /// Where what is kept for the kernel is charged.
    pub fn purse(&self) -> &ProcessFund {
        self.handle.purse()
    }

    /// Takes a message.
    pub fn take(&self, message: KernelMessage) -> Result<(), Stop> {
        let bytes = message.heap_bytes();
        match self.mailroom.put(message, bytes, self.room_within) {
            Ok(()) => Ok(()),
            Err(super::mailroom::NotTaken::Closed) => Err(Stop::Stopped),
            Err(super::mailroom::NotTaken::Full) => {
                Err(Stop::Violation("more than the window is unacknowledged, in both directions".to_owned()))
            }
        }
    }

    /// Takes the answer to a login.
    pub fn logged_in(&self, answer: LoggedIn, keyfile: Bytes) {
        let LoggedIn { login, token, error } = answer;
        let judged = match error {
            Some(error) => Err(error),
            None => Ok(token.map(|token| GrantedLogin { token, keyfile })),
        };
        self.logins.answer(login, judged);
    }

    /// The session is over.
    pub fn close(&self) {
        self.mailroom.close();
        self.logins.close();
        self.handle.wake();
    }
}

/// Attaches a kernel, and runs what serves it.
pub fn begin(registry: &Arc<Registry>, hail: &KernelHello) -> Result<Arc<Session>, HelloRefused> {
    let settings = rules(registry.broker.settings(), hail)?;
    let options = KernelOptions {
        system: http_server_process(),
        queue: super::config::QUEUE,
        policy: hail.policy,
        settings: settings.clone(),
    };
    let (kernel, handle) = registry.broker.kernel(options).map_err(|error| match error {
        AttachError::Taken(_) | AttachError::Name(_) => refused(RefusedCode::Taken, "a kernel is attached"),
        AttachError::Panicked(_) | AttachError::Stopped => refused(RefusedCode::Stopped, &error.to_string()),
    })?;
    let actor = KernelActor {
        mailroom: KernelInbox::charged(handle.purse().charge_anyway(HeldAs::Link, 0)),
        logins: Logins::default(),
        handle: handle.clone(),
        room_within: registry.config.silence(),
    };
    let session = Arc::new(Session::new(Actor::Kernel(Box::new(actor)), handle.purse()));
    let peer = LinkedKernel(session.clone());
    let Service { inlet, changes, outlet, judge, attempts } = Service::new(handle, settings, peer.clone(), peer);
    let forget = Forget { session: session.clone(), registry: registry.clone(), key: SessionKey::Kernel };
    let obeyed = session.clone();
    let spawned = spawn("link-events", move || {
        // Dropped behind the kernel: another may attach then.
        let forget = forget;
        if outlet.run(&kernel) {
            forget.session.end(SessionEnd::Stopped, Some(bye(ByeCode::Stopped, "the broker has stopped")));
        }
        detach(kernel, forget.session.why());
    })
    .and_then(|()| spawn("link-orders", move || obey(&obeyed, inlet)))
    .and_then(|()| spawn("link-paths", move || changes.run(|_| {})))
    .and_then(|()| spawn("link-logins", move || judge.run(&attempts)));
    match spawned {
        Ok(()) => Ok(session),
        Err(error) => {
            session.end(SessionEnd::Failed, None);
            Err(refused(RefusedCode::Full, &format!("no thread: {error}")))
        }
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().name(name.to_owned()).spawn(run).map(drop)
}

/// The rules of entry while the kernel is attached.
fn rules(settings: Settings, hail: &KernelHello) -> Result<Settings, HelloRefused> {
    let no = |reason: &str| refused(RefusedCode::Node, reason);
    if settings.node != hail.node {
        return Err(no(&format!("this broker serves the node {}", settings.node)));
    }
    let theirs = hail.jwt_secret.as_deref().map(Secret::new).transpose();
    let theirs = theirs.map_err(|_| no("the key of the node's tokens is empty"))?;
    let secret = match (settings.secret, theirs) {
        (Some(ours), Some(theirs)) if !is_same(&ours, &theirs) => {
            return Err(no("the broker has another key for the node's tokens"));
        }
        (ours, theirs) => ours.or(theirs),
    };
    let secret = Some(secret.ok_or_else(|| no("neither side has the key of the node's tokens"))?);
    let expose_local = hail.expose_local.unwrap_or(settings.expose_local);
    Ok(Settings { secret, login: true, rpc: true, expose_local, ..settings })
}

/// Whether what one signs is good for the other.
fn is_same(ours: &Secret, theirs: &Secret) -> bool {
    let claims = Claims { username: String::new(), subdomain: None, expiration: 0 };
    ours.open(&mint(theirs, &claims)).is_ok()
}

fn detach(kernel: Kernel, why: SessionEnd) {
    match why {
        SessionEnd::Bye | SessionEnd::Stopped => drop(kernel),
        SessionEnd::Failed | SessionEnd::Violation => kernel.fail(),
        SessionEnd::Grace => kernel.end(code::SERVICE_RESTART, "the node's kernel has gone"),
    }
}

/// Has what the kernel sends obeyed until the session is over, or the broker has stopped: the events say which.
fn obey(session: &Session, mut inlet: MessageReader) {
    let Actor::Kernel(actor) = &session.actor else { return };
    let waker = this_thread();
    let mut context = Context::from_waker(&waker);
    let (mut messages, mut answers) = (Vec::new(), VecDeque::new());
    loop {
        let mut has_more = false;
        if !inlet.desks.is_full() {
            match actor.mailroom.poll_take(&mut context, &mut messages, TAKEN_AT_ONCE_MAX) {
                Poll::Ready(true) => has_more = true,
                Poll::Ready(false) => return,
                Poll::Pending => {}
            }
        }
        let taken = messages.len() as u64;
        for message in messages.drain(..) {
            let Ok(answer) = inlet.take(message) else { return };
            answers.extend(answer);
        }
        // Behind an answer the peer may wait for room in its own window: what can be done is done first.
        let is_done = match inlet.poll(&mut context, &mut answers) {
            Poll::Ready(Ok(())) => true,
            Poll::Ready(Err(_)) => return,
            Poll::Pending => false,
        };
        let answered = answers.drain(..).map(|answer| (convert::kernel_out(answer), FrameMark::Event));
        if answered.into_iter().try_for_each(|answer| session.line.send([answer])).is_err() {
            return;
        }
        if taken > 0 {
            session.line.took(taken, actor.mailroom.is_empty());
        }
        if is_done {
            actor.mailroom.obeyed();
        }
        if !has_more {
            thread::park();
        }
    }
}

/// The kernel, as the service needs it.
#[derive(Clone)]
struct LinkedKernel(Arc<Session>);

impl ToKernel for LinkedKernel {
    type Note = FrameMark;

    fn note(&self, process: Option<&ProcessId>, event: &Event) -> FrameMark {
        match event {
            Event::Opened(opened) => {
                let process = process.map(ToString::to_string);
                FrameMark::Opened(Box::new(LiveChannel { process, ..live_channel(opened) }))
            }
            Event::Closed(closed) => FrameMark::Closed(closed.channel.get()),
            _ => FrameMark::Event,
        }
    }

    fn wait_for_room(&self) -> bool {
        // Sending waits.
        !self.0.line.has_ended()
    }

    fn takes(&self, body_bytes: usize) -> bool {
        body_bytes <= HEAD_BYTES_MAX - BESIDE_BODY_BYTES_MAX
    }

    fn send(&self, message: KernelMessage, note: FrameMark) -> Result<(), KernelGone> {
        self.0.line.send([(convert::kernel_out(message), note)]).map_err(|QueueEnded| KernelGone)
    }
}

impl PasswordCheck for LinkedKernel {
    fn login(&self, password_hash: &str, claim: Option<&ProcessId>) -> Result<Option<GrantedLogin>, String> {
        let Actor::Kernel(actor) = &self.0.actor else { return Err("there is no kernel".to_owned()) };
        let number = actor.logins.begin();
        let (password_hash, subdomain) = (password_hash.to_owned(), claim.map(ToString::to_string));
        let login = ToPeer::Login(LoginQuestion { login: number, password_hash, subdomain });
        let sent = self.0.line.send([(LinkFrame::bare(&login), FrameMark::Event)]);
        sent.map_err(|QueueEnded| "the node's kernel has gone".to_owned())?;
        actor.logins.wait(number)
    }
}

type LoginResult = Result<Option<GrantedLogin>, String>;

/// Logins that wait for the node's word.
#[derive(Default)]
struct Logins {
    state: Mutex<LoginState>,
    changed: Condvar,
}

#[derive(Default)]
struct LoginState {
    count: u64,
    waiting: HashMap<u64, OnceLock<LoginResult>>,
    is_closed: bool,
}

impl Logins {
    fn begin(&self) -> u64 {
        let mut state = self.lock();
        state.count += 1;
        let number = state.count;
        state.waiting.insert(number, OnceLock::new());
        number
    }

    /// An answer that comes too late, or twice, is nobody's.
    fn answer(&self, number: u64, judged: LoginResult) {
        if let Some(waiting) = self.lock().waiting.get(&number) {
            let _ = waiting.set(judged);
        }
        self.changed.notify_all();
    }

    fn wait(&self, number: u64) -> LoginResult {
        let is_open = |state: &mut LoginState| {
            !state.is_closed && state.waiting.get(&number).is_some_and(|waiting| waiting.get().is_none())
        };
        let waited = self.changed.wait_timeout_while(self.lock(), LOGIN_WITHIN, is_open);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner).0;
        let judged = state.waiting.remove(&number).and_then(OnceLock::into_inner);
        judged.unwrap_or_else(|| Err("the node's kernel did not answer in time".to_owned()))
    }

    fn close(&self) {
        self.lock().is_closed = true;
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, LoginState> {
        // Every change is one call on the map, or one assignment.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
