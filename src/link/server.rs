//! The broker's side: listens, accepts peers, and serves each on threads of its own.
//!
//! A connection has a reader (which also carries out orders) and a writer; a session has a third thread, which takes
//! the broker's events. None is a shard's. Invariants: before it has authenticated a peer costs one thread of a limited
//! number and can have 4 KiB read; whatever a peer sends, the thread ends by giving the reason; anything of it that is
//! logged is escaped.

use super::config::{ASKS_MAX, HELLO_BYTES_MAX, HELLO_WITHIN, LinkConfig, QUEUE, WINDOW};
use super::convert;
use super::frame::{FrameReader, GatheredFrames, HEAD_BYTES_MAX, LinkFrame, ReadError};
use super::kernel::KernelHello;
use super::kernel_actor::KernelActor;
use super::orders::{self, ProcessOrders};
use super::process::ProcessHello;
use super::session::{Actor, AskedSession, Registry, Session, SessionClaim, SessionEnd, bye, refused};
use super::stop::Stop;
use super::waiting::{WaitingPlace, WaitingRoom};
use super::wire::{
    Attach, ByeCode, FromPeer, Hello, HelloRefused, LinkWindow, RefusedCode, ToPeer, VERSION_MAX, VERSION_MIN, Welcome,
};
use crate::admission::HeldAs;
use crate::broker::{AttachOptions, BrokerHandle};
use crate::driver::peer_socket::{Credential, DeadlineReader, PeerListenError, PeerListener, PeerStream};
use crate::node::Dialect;
use crate::process_id::{ParseProcessIdError, ProcessId};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How long peers get to take their last events when the server stops.
const STOP_WITHIN: Duration = Duration::from_secs(2);

/// Channels in one `live` frame, by their memory, which is more than what is written of them: some hundreds, unless
/// clients asked for long paths, or claim long addresses.
const LIVE_BYTES_AT_A_TIME: usize = 64 << 10;

/// After an accept that failed, most likely for want of descriptors.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// Why a link was not started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LinkStartError {
    /// The path or the address.
    #[error(transparent)]
    Listen(#[from] PeerListenError),
    /// Any process could reach the address.
    #[error("a link over TCP needs a token")]
    NoToken,
    /// No thread.
    #[error("cannot start a thread of the link: {0}")]
    Thread(#[from] io::Error),
}

/// A running link. Dropping it ends its sessions and closes their channels.
pub struct LinkServer {
    registry: Arc<Registry>,
    listeners: Vec<Arc<PeerListener>>,
    stopping: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl LinkServer {
    /// Lets processes of other programs attach to `broker`.
    ///
    /// # Errors
    /// See [`LinkStartError`].
    pub fn start(broker: BrokerHandle, config: LinkConfig) -> Result<Self, LinkStartError> {
        if config.tcp.is_some() && config.token.is_none() {
            return Err(LinkStartError::NoToken);
        }
        let config = config.fitting();
        let unix = config.path.as_deref().map(|path| PeerListener::unix(path, config.access)).transpose()?;
        let tcp = config.tcp.map(|address| PeerListener::tcp(address, config.tls.clone())).transpose()?;
        let registry = Registry::new(broker, config);
        let listeners = unix.into_iter().chain(tcp).map(Arc::new).collect();
        let mut server = Self { registry, listeners, stopping: Arc::default(), threads: Vec::new() };
        for listener in server.listeners.clone() {
            let (registry, stopping) = (server.registry.clone(), server.stopping.clone());
            server.spawn("link-accept", move || accept(&registry, &listener, &stopping))?;
        }
        let registry = server.registry.clone();
        server.spawn("link-keeper", move || registry.keep())?;
        Ok(server)
    }

    /// Where it listens with TCP, if it does.
    pub fn tcp_address(&self) -> Option<SocketAddr> {
        self.listeners.iter().find_map(|listener| listener.address().ok().flatten())
    }

    /// Lists the attached peers, whenever it is asked.
    pub fn peers(&self) -> LinkPeers {
        LinkPeers(self.registry.clone())
    }

    fn spawn(&mut self, name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
        self.threads.push(thread::Builder::new().name(name.to_owned()).spawn(run)?);
        Ok(())
    }
}

/// Those that are attached over a link.
#[derive(Clone)]
pub struct LinkPeers(Arc<Registry>);

impl LinkPeers {
    /// How many are attached and connected now.
    pub fn attached(&self) -> usize {
        self.0.connected()
    }
}

impl Drop for LinkServer {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::SeqCst);
        self.listeners.iter().for_each(|listener| listener.stop());
        self.registry.stop(&bye(ByeCode::Stopped, "the broker has stopped"), STOP_WITHIN);
        for thread in self.threads.drain(..) {
            // A panic has been reported where it happened.
            let _ = thread.join();
        }
    }
}

fn accept(registry: &Arc<Registry>, listener: &PeerListener, stopping: &AtomicBool) {
    let room = Arc::<WaitingRoom>::default();
    loop {
        let stream = match listener.accept() {
            _ if stopping.load(Ordering::SeqCst) => return,
            Ok(stream) => Arc::new(stream),
            // A peer that has left again must not make others wait.
            Err(error) if is_peers_end(&error) => continue,
            Err(error) => {
                tracing::warn!(%error, "a link's connection was not accepted");
                thread::sleep(ACCEPT_AGAIN);
                continue;
            }
        };
        let place = room.enter(&stream);
        let registry = registry.clone();
        let serve = move || LinkConnection { registry, stream }.serve(place);
        if let Err(error) = thread::Builder::new().name("link-peer".to_owned()).spawn(serve) {
            tracing::warn!(%error, "no thread for a link's connection");
        }
    }
}

/// Returns whether a connection ended before it was accepted (accept(2), "Error handling"), and not for want of
/// anything here.
fn is_peers_end(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, InvalidInput, NotConnected};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | InvalidInput | NotConnected)
}

/// Why a connection is over.
enum ConnectionOver {
    /// It failed, ended, or was silent for too long.
    Lost(io::Error),
    /// The peer has ended the session.
    Bye { failed: bool },
    /// The peer broke the protocol, or the broker has stopped.
    Stop(Stop),
}

struct LinkConnection {
    registry: Arc<Registry>,
    stream: Arc<PeerStream>,
}

/// A peer that was let in. Dropping it detaches it.
struct Admitted {
    claim: SessionClaim,
    wants_drain: bool,
    /// Counts the session's connections.
    connection: u64,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.claim.session.frames.disconnect(self.connection);
    }
}

impl Drop for LinkConnection {
    fn drop(&mut self) {
        self.stream.shutdown();
    }
}

impl LinkConnection {
    /// The life of a connection, on its thread.
    fn serve(self, place: WaitingPlace) {
        let deadline = Instant::now() + HELLO_WITHIN;
        let mut reader = FrameReader::new(DeadlineReader::until(self.stream.clone(), deadline), HELLO_BYTES_MAX, 0);
        let admitted = match reader.next() {
            Ok((FromPeer::Hello(hello), _)) => {
                let admitted = self.admit(&hello, place, deadline);
                admitted.inspect_err(|refused| tracing::warn!(?hello, reason = refused.reason, "a peer was refused"))
            }
            Ok((other, _)) => {
                let words = format!("the first frame must be hello, not {}", orders::name(&other));
                Err(refused(RefusedCode::Malformed, &words))
            }
            Err(ReadError::Io(error)) if error.kind() == io::ErrorKind::InvalidData => {
                return tracing::warn!(%error, "a peer's TLS handshake failed");
            }
            Err(ReadError::Io(error)) => return tracing::debug!(%error, "a link's connection ended without a hello"),
            Err(error) => Err(refused(RefusedCode::Malformed, &error.to_string())),
        };
        match admitted {
            Ok(admitted) => self.run(admitted, reader),
            Err(refused) => self.refuse(refused),
        }
    }

    /// Sends the reason.
    fn refuse(&self, refused: HelloRefused) {
        let mut gather = GatheredFrames::default();
        gather.push(&LinkFrame::bare(&ToPeer::Refused(refused)));
        // A peer that does not read does not want to know.
        let _ = self.stream.set_write_timeout(Some(HELLO_WITHIN)).and_then(|()| gather.write(&mut &*self.stream));
    }

    /// Judges a hello; tells a peer that is let in its channels.
    fn admit(&self, hello: &Hello, place: WaitingPlace, deadline: Instant) -> Result<Admitted, HelloRefused> {
        if hello.version_max < VERSION_MIN || hello.version_min > VERSION_MAX {
            return Err(refused(RefusedCode::Version, "there is no version that both sides speak"));
        }
        let credential = self.credential(hello)?;
        // From here on waiting is bounded for each session.
        drop(place);
        let asked: Box<dyn AskedSession> = match &hello.attach {
            Attach::Process { id, wants_control, wants_topics, policy } => {
                let id: ProcessId = id
                    .parse()
                    .map_err(|error: ParseProcessIdError| refused(RefusedCode::Malformed, &format!("id: {error}")))?;
                let (wants_control, wants_topics) = (*wants_control, *wants_topics);
                let options = AttachOptions { queue: QUEUE, policy: *policy, wants_control, wants_topics };
                Box::new(ProcessHello { id, options })
            }
            Attach::Kernel { node, expose_local, public_mode, simulation_mode, jwt_secret, policy } => {
                let (node, jwt_secret) = (node.clone(), jwt_secret.clone());
                Box::new(KernelHello {
                    node,
                    jwt_secret,
                    expose_local: *expose_local,
                    public_mode: *public_mode,
                    simulation_mode: *simulation_mode,
                    policy: *policy,
                })
            }
        };
        let claim = self.registry.claim(&*asked, hello, credential, &self.stream, deadline)?;
        let session = &claim.session;
        if hello.session.is_some()
            && let Err(error) = session.acknowledge(hello.received)
        {
            session.end(SessionEnd::Violation, None);
            return Err(refused(RefusedCode::Malformed, &error.to_string()));
        }
        let window = hello.window.map_or(WINDOW, |wanted| LinkWindow {
            frames: wanted.frames.clamp(1, WINDOW.frames),
            bytes: wanted.bytes.clamp(1, WINDOW.bytes),
        });
        let replaced = || refused(RefusedCode::Taken, "another has taken the session");
        let connection = claim.connect(window).ok_or_else(replaced)?;
        self.welcome(&claim, window);
        Ok(Admitted { claim, connection, wants_drain: hello.wants_drain })
    }

    fn credential(&self, hello: &Hello) -> Result<Credential, HelloRefused> {
        match self.stream.user() {
            // The socket's mode admits no other user.
            Ok(Some(user)) => Ok(Credential::User(user)),
            Ok(None) => {
                let expected = self.registry.config.token.as_ref();
                let is_right = expected.zip(hello.token.as_deref()).is_some_and(|(token, shown)| token.is(shown));
                let refusal = || refused(RefusedCode::Token, "the token is missing or wrong");
                is_right.then_some(Credential::Token).ok_or_else(refusal)
            }
            Err(error) => Err(refused(RefusedCode::Token, &format!("the token could not be read: {error}"))),
        }
    }

    /// The first frames to a peer that was let in. When they do not reach it, reading fails next.
    fn welcome(&self, claim: &SessionClaim, window: LinkWindow) {
        let Registry { broker, config, .. } = &*self.registry;
        let settings = broker.settings();
        let (acknowledged, received) = claim.session.counts();
        let live = claim.session.live();
        let welcome = ToPeer::Welcome(Welcome {
            version: VERSION_MAX,
            dialect: Dialect::of(&settings),
            node: settings.user,
            listening: broker.address().to_string(),
            session: claim.secret.clone(),
            received,
            acknowledged,
            live: live as u64,
            window,
            head_bytes_max: HEAD_BYTES_MAX as u32,
            blob_bytes_max: u32::try_from(config.blob_bytes_max).unwrap_or(u32::MAX),
            asks_max: ASKS_MAX as u32,
            beat_ms: u32::try_from(config.beat.as_millis()).unwrap_or(u32::MAX),
            owner_grace_ms: u64::try_from(config.owner_grace.as_millis()).unwrap_or(u64::MAX),
        });
        let mut gather = GatheredFrames::default();
        gather.push(&LinkFrame::bare(&welcome));
        let write = |gather: &mut GatheredFrames| {
            self.stream.set_write_timeout(Some(HELLO_WITHIN)).and_then(|()| gather.write(&mut &*self.stream))
        };
        // A few at a time: there may be very many, and nothing changes them meanwhile.
        let (mut after, mut written) = (None, Ok(()));
        while written.is_ok()
            && let channels = claim.session.live_after(after, LIVE_BYTES_AT_A_TIME)
            && let Some(last) = channels.last()
        {
            after = Some(last.channel);
            gather.push(&LinkFrame::bare(&ToPeer::Live { channels }));
            written = write(&mut gather);
        }
        let written = written.and_then(|()| write(&mut gather));
        if written.and_then(|()| self.stream.set_write_timeout(None)).is_err() {
            self.stream.shutdown();
        }
    }

    /// Serves a peer that was let in.
    fn run(&self, admitted: Admitted, mut reader: FrameReader<DeadlineReader>) {
        let (claim, connection) = (&admitted.claim, admitted.connection);
        let session = claim.session.clone();
        tracing::info!(peer = ?claim.key(), "attached");
        reader.set_limits(HEAD_BYTES_MAX, self.registry.config.blob_bytes_max);
        reader.charge_to(session.memory().charge_anyway(HeldAs::Link, 0));
        let silence = self.registry.config.silence();
        if admitted.wants_drain {
            self.registry.notice_draining(&session);
        }
        let writer = self.spawn_writer(session.clone(), connection);
        let over = match (writer.as_ref(), reader.source_mut().allow_silence(silence)) {
            (Ok(_), Ok(())) => read(&session, &mut reader),
            (Err(error), _) => ConnectionOver::Lost(io::Error::other(error.to_string())),
            (_, Err(error)) => ConnectionOver::Lost(error),
        };
        let patience = match &over {
            ConnectionOver::Lost(error) => {
                tracing::info!(peer = ?claim.key(), %error, "detached");
                Duration::ZERO
            }
            ConnectionOver::Bye { failed } => {
                session.end(if *failed { SessionEnd::Failed } else { SessionEnd::Bye }, None);
                Duration::ZERO
            }
            ConnectionOver::Stop(Stop::Violation(words)) => {
                tracing::warn!(peer = ?claim.key(), words, "a peer violated the link's protocol: its channels are closed with 1011");
                session.end(SessionEnd::Violation, Some(bye(ByeCode::Violation, words)));
                STOP_WITHIN
            }
            ConnectionOver::Stop(Stop::Stopped) => STOP_WITHIN,
        };
        session.frames.wait_finished(patience);
        self.stream.shutdown();
        drop(admitted);
        if let Ok(writer) = writer {
            // A panic has been reported where it happened.
            let _ = writer.join();
        }
    }

    fn spawn_writer(&self, session: Arc<Session>, connection: u64) -> io::Result<JoinHandle<()>> {
        let (stream, beat) = (self.stream.clone(), self.registry.config.beat);
        thread::Builder::new().name("link-write".to_owned()).spawn(move || {
            if stream.writes_now() {
                session.frames.write_through(connection, stream.clone());
            }
            let written = session.frames.write(connection, &mut &*stream, beat);
            // Whether it is over or has failed: nothing is to be read any more.
            if written.is_err() || session.frames.has_ended() {
                stream.shutdown();
            }
        })
    }
}

/// Reads and executes until the connection is over.
fn read(session: &Arc<Session>, reader: &mut FrameReader<DeadlineReader>) -> ConnectionOver {
    let owner = match &session.actor {
        Actor::Process(owner) => owner,
        Actor::Kernel(kernel) => return read_kernel(session, reader, kernel),
    };
    let mut orders = ProcessOrders::new(session, owner);
    let over = read_process(session, reader, &mut orders).unwrap_err();
    // Everything read was sent before the end, so it is carried out.
    match orders.flush(true) {
        Ok(()) => over,
        Err(stop) => ConnectionOver::Stop(stop),
    }
}

fn read_process(
    session: &Session,
    reader: &mut FrameReader<DeadlineReader>,
    orders: &mut ProcessOrders<'_>,
) -> Result<std::convert::Infallible, ConnectionOver> {
    loop {
        if !reader.is_ready() {
            orders.flush(true).map_err(ConnectionOver::Stop)?;
        }
        match reader.next()? {
            (FromPeer::Beat {}, _) => {}
            (FromPeer::Ack { received }, _) => session.acknowledge(received).map_err(violation)?,
            (FromPeer::Bye { failed }, _) => return Err(ConnectionOver::Bye { failed }),
            (order, blob) => orders.execute(order, blob).map_err(ConnectionOver::Stop)?,
        }
    }
}

/// The same of a kernel, whose messages another thread executes.
fn read_kernel(session: &Session, reader: &mut FrameReader<DeadlineReader>, kernel: &KernelActor) -> ConnectionOver {
    let over = loop {
        let (head, blob) = match reader.next_owned() {
            Ok(next) => next,
            Err(error) => break error.into(),
        };
        let done = match head {
            FromPeer::Beat {} => Ok(()),
            FromPeer::Ack { received } => session.acknowledge(received).map_err(violation),
            FromPeer::Bye { failed } => break ConnectionOver::Bye { failed },
            FromPeer::Kernel(head) => kernel.take(convert::kernel_in(head, blob)).map_err(ConnectionOver::Stop),
            FromPeer::LoggedIn(answer) => {
                kernel.logged_in(answer, blob.into());
                session.frames.took(1, true);
                Ok(())
            }
            other => Err(violation(format!("{} is no frame of a kernel", orders::name(&other)))),
        };
        if let Err(over) = done {
            break over;
        }
    };
    if !matches!(over, ConnectionOver::Lost(_)) {
        // Everything read was sent before the end, so it is carried out.
        kernel.inbox.wait_executed(STOP_WITHIN);
    }
    over
}

impl From<ReadError> for ConnectionOver {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Io(error) => Self::Lost(error),
            error => violation(error),
        }
    }
}

fn violation(error: impl std::fmt::Display) -> ConnectionOver {
    ConnectionOver::Stop(Stop::Violation(error.to_string()))
}
