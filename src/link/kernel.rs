//! The broker's end of a node's kernel over a link: the contract of the node's HTTP server (`node::service`), with
//! frames for a queue.
//!
//! Beside the connection's reader and writer a kernel has four threads: one carries out its messages, one changes
//! paths, one turns events into messages, one waits for its answers to password checks. Each may wait for the peer,
//! none with a shard.

use super::convert::{self, live_channel};
use super::frame::{HEAD_BYTES_MAX, LinkFrame};
use super::frame_queue::QueueEnded;
use super::kernel_actor::KernelActor;
use super::session::{Actor, AskedSession, Forget, FrameMark, Registry, Session, SessionEnd, SessionKey, bye, refused};
use super::wire::{ByeCode, HelloRefused, LiveChannel, LoginQuestion, RefusedCode, ToPeer};
use crate::admission::HeapBytes;
use crate::broker::{AttachError, Event, Kernel, KernelOptions};
use crate::gateway::{Claims, RulesOverlay, Secret, Settings, mint};
use crate::node::inbound::MessageReader;
use crate::node::login::{GrantedLogin, PasswordCheck};
use crate::node::outbound::{KernelGone, ToKernel};
use crate::node::service::{Service, TAKEN_AT_ONCE_MAX};
use crate::node::{self, KernelMessage, RPC_PATH, http_server_process};
use crate::process_id::ProcessId;
use crate::proto::close::code;
use crate::queue::orders::this_thread;
use crate::words::policy::Policy;
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::thread;

/// More than MessagePack adds to a message's texts: names of fields, and lengths.
const PACKING_BYTES_MAX: usize = 1 << 10;

/// The fields of a node kernel's hello.
pub(super) struct KernelHello {
    pub node: String,
    pub jwt_secret: Option<Vec<u8>>,
    pub expose_local: Option<bool>,
    pub public_mode: bool,
    pub simulation_mode: bool,
    pub policy: Policy,
}

impl AskedSession for KernelHello {
    fn key(&self) -> SessionKey {
        SessionKey::Kernel
    }

    /// Attaches a kernel, and runs what serves it.
    fn begin(&self, registry: &Arc<Registry>) -> Result<Arc<Session>, HelloRefused> {
        let options = KernelOptions {
            system: http_server_process(),
            queue: super::config::QUEUE,
            policy: self.policy,
            rules: rules(&registry.broker.chosen_settings(), self)?,
        };
        let (kernel, handle) = registry.broker.kernel(options).map_err(|error| match error {
            AttachError::Taken(_) | AttachError::Name(_) => refused(RefusedCode::Taken, "a kernel is attached"),
            AttachError::Panicked(_) | AttachError::Stopped => refused(RefusedCode::Stopped, &error.to_string()),
        })?;
        let actor = KernelActor::new(handle.clone(), registry.config.silence());
        let session = Arc::new(Session::new(Actor::Kernel(Box::new(actor)), handle.memory()));
        let peer = LinkedKernel(session.clone());
        let Service { reader, changes, writer, logins, attempts } = Service::new(handle, peer.clone(), peer);
        let (executed, ended, registry) = (session.clone(), session.clone(), registry.clone());
        let spawned = spawn("link-events", move || {
            // Dropped after the node kernel, so that another may attach then. Made inside the closure: dropping it
            // locks the registry, which the caller holds locked and would deadlock on if the thread could not be
            // started.
            let forget = Forget { session: ended, registry, key: SessionKey::Kernel };
            if writer.run(&kernel) {
                forget.session.end(SessionEnd::Stopped, Some(bye(ByeCode::Stopped, "the broker has stopped")));
            }
            detach(kernel, forget.session.why());
        })
        .and_then(|()| spawn("link-orders", move || execute(&executed, reader)))
        .and_then(|()| spawn("link-paths", move || changes.run(|_| {})))
        .and_then(|()| spawn("link-logins", move || logins.run(&attempts)));
        match spawned {
            Ok(()) => Ok(session),
            Err(error) => {
                session.end(SessionEnd::Failed, None);
                Err(refused(RefusedCode::Full, &format!("no thread: {error}")))
            }
        }
    }

    /// Judges it as the one before was judged, and puts its policy and its rules of entry in force.
    fn succeed(&self, registry: &Registry, session: &Session) -> Result<(), HelloRefused> {
        let rules = rules(&registry.broker.chosen_settings(), self)?;
        let Actor::Kernel(actor) = &session.actor else { unreachable!("a kernel's key is no process'") };
        actor.set_policy(self.policy);
        actor.set_rules(rules).map_err(|error| refused(RefusedCode::Stopped, &error.to_string()))
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().name(name.to_owned()).spawn(run).map(drop)
}

/// What becomes of the rules of entry while the kernel is attached.
fn rules(settings: &Settings, hello: &KernelHello) -> Result<RulesOverlay, HelloRefused> {
    let no = |reason: &str| refused(RefusedCode::Node, reason);
    if settings.user != hello.node {
        return Err(no(&format!("this broker serves the node {}", settings.user)));
    }
    let theirs = hello.jwt_secret.as_deref().map(Secret::new).transpose();
    let theirs = theirs.map_err(|_| no("the key of the node's tokens is empty"))?;
    match (&settings.secret, &theirs) {
        (Some(ours), Some(theirs)) if !is_same(ours, theirs) => {
            return Err(no("the broker has another key for the node's tokens"));
        }
        (None, None) => return Err(no("neither side has the key of the node's tokens")),
        _ => {}
    }
    let &KernelHello { expose_local, public_mode, simulation_mode, .. } = hello;
    let over = move |chosen: Settings| {
        node::in_its_mode(Settings {
            secret: theirs.clone().or(chosen.secret),
            login: true,
            rpc_path: Some(RPC_PATH),
            expose_local: expose_local.unwrap_or(chosen.expose_local),
            public_mode,
            simulation_mode,
            ..chosen
        })
    };
    node::warn_of_its_mode(&over(settings.clone()));
    Ok(RulesOverlay::new(over))
}

/// Returns whether what one signs is good for the other.
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

/// Has what the kernel sends executed until the session is over, or the broker has stopped: the events say which.
fn execute(session: &Session, mut reader: MessageReader) {
    let Actor::Kernel(actor) = &session.actor else { return };
    let waker = this_thread();
    let mut context = Context::from_waker(&waker);
    let (mut messages, mut answers) = (Vec::new(), VecDeque::new());
    loop {
        let mut has_more = false;
        if !reader.queues.is_full() {
            match actor.inbox.poll_take(&mut context, &mut messages, TAKEN_AT_ONCE_MAX) {
                Poll::Ready(true) => has_more = true,
                Poll::Ready(false) => return,
                Poll::Pending => {}
            }
        }
        let taken = messages.len() as u64;
        for message in messages.drain(..) {
            let Ok(answer) = reader.take(message) else { return };
            answers.extend(answer);
        }
        // Behind an answer the peer may wait for room in its own window: what can be done is done first.
        let is_done = match reader.poll(&mut context, &mut answers) {
            Poll::Ready(Ok(())) => true,
            Poll::Ready(Err(_)) => return,
            Poll::Pending => false,
        };
        let answered = answers.drain(..).map(|answer| (convert::kernel_out(answer), FrameMark::Event));
        if answered.into_iter().try_for_each(|answer| session.frames.send([answer])).is_err() {
            return;
        }
        if taken > 0 {
            session.frames.took(taken, actor.inbox.is_empty());
        }
        if is_done {
            actor.inbox.executed();
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
        !self.0.frames.has_ended()
    }

    fn takes(&self, message: &KernelMessage) -> bool {
        // The bytes of the blob are not the head's, and have a limit of their own, which no body of a client exceeds.
        let blob_bytes = message.lazy_load_blob.as_ref().map_or(0, |blob| blob.bytes.capacity());
        message.heap_bytes() - blob_bytes <= HEAD_BYTES_MAX - PACKING_BYTES_MAX
    }

    fn send(&self, message: KernelMessage, note: FrameMark) -> Result<(), KernelGone> {
        self.0.frames.send([(convert::kernel_out(message), note)]).map_err(|QueueEnded| KernelGone)
    }
}

impl PasswordCheck for LinkedKernel {
    fn login(&self, password_hash: &str, claim: Option<&ProcessId>) -> Result<Option<GrantedLogin>, String> {
        let Actor::Kernel(actor) = &self.0.actor else { return Err("there is no kernel".to_owned()) };
        let number = actor.logins.begin();
        let (password_hash, subdomain) = (password_hash.to_owned(), claim.map(ToString::to_string));
        let login = ToPeer::Login(LoginQuestion { login: number, password_hash, subdomain });
        let sent = self.0.frames.send([(LinkFrame::bare(&login), FrameMark::Event)]);
        sent.map_err(|QueueEnded| "the node's kernel has gone".to_owned())?;
        actor.logins.wait(number)
    }
}
