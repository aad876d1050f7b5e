//! The peer's side of a session: a connection that is re-established by itself.
//!
//! One thread reads, and connects again when the connection is lost, until the broker must have given the session up;
//! another writes. Invariants: what was sent within a session arrives once, in order, also over a new connection;
//! frames are acknowledged when their reader asks for more, so frames that it did not get to before it died are given
//! to its successor, and at once where there is nothing for it to hear of; what is kept is bounded by the window that
//! the broker names. Does not depend on the meaning of frames.

use super::config::{HELLO_WITHIN, WINDOW};
use super::frame::{FrameReader, GatheredFrames, LinkFrame, ReadError};
use super::frame_queue::{FrameQueue, HOLD_WITHIN, LinkDirection};
use super::monitor::{Monitor, MonitorGuard};
use super::token::LinkToken;
use super::wire::{
    self, Attach, FromPeer, Hello, HelloRefused, LiveChannel, OrderFailure, RefusedCode, ToPeer, Welcome,
};
use crate::broker::{OnNodes, Outcome, PushError, RecvError};
use crate::driver::peer_socket::{DeadlineReader, PeerStream};
use crate::driver::retry::RetryPauses;
use crate::tls::Trust;
use bytes::Bytes;
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// The waits between attempts to connect again, so that peers of a broker that restarts do not all come at once.
pub(super) const RETRIES: RetryPauses =
    RetryPauses { least: Duration::from_millis(20), most: Duration::from_millis(250) };

/// How long what was pushed may take to leave when the process ends.
const END_WITHIN: Duration = Duration::from_secs(5);

/// How long the broker may take to end the connection then. It has let go of the name by that time, for a successor.
const CLOSE_WITHIN: Duration = Duration::from_secs(1);

/// Where a broker's link is.
#[derive(Debug, Clone)]
pub enum Endpoint {
    /// A Unix socket.
    Unix(PathBuf),
    /// TCP: `host:port`, and the token of the link. Nothing is encrypted.
    Tcp {
        /// `host:port`
        address: String,
        /// The link's token.
        token: LinkToken,
    },
    /// TCP under TLS.
    Tls {
        /// `host:port`; the host is what the broker's certificate must be for, unless it is trusted itself.
        address: String,
        /// The link's token; it is said only to a broker that is trusted.
        token: LinkToken,
        /// Which brokers are trusted.
        trust: Trust,
    },
}

impl<P: AsRef<Path> + ?Sized> From<&P> for Endpoint {
    fn from(path: &P) -> Self {
        Self::Unix(path.as_ref().to_owned())
    }
}

impl From<PathBuf> for Endpoint {
    fn from(path: PathBuf) -> Self {
        Self::Unix(path)
    }
}

/// Why a process is not attached.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// There is no listener at that address, or the connection failed.
    #[error("the link cannot be reached: {0}")]
    Io(#[from] io::Error),
    /// The broker said no.
    #[error("the broker refuses: {0}")]
    Refused(HelloRefused),
    /// Whatever answers is no broker, or one of a version to come.
    #[error("no broker answers: {0}")]
    Protocol(String),
}

impl From<ReadError> for ConnectError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Io(error) => Self::Io(error),
            error => Self::Protocol(error.to_string()),
        }
    }
}

/// Why something was not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LinkSendError {
    /// Larger than the broker takes over a link.
    #[error("larger than the link takes (the session's blob_bytes_max)")]
    TooLarge,
    /// The session is over.
    #[error("the broker has stopped or is lost")]
    Stopped,
}

impl From<LinkSendError> for PushError {
    /// The only one of the broker's that says as much: the process has to end.
    fn from(_: LinkSendError) -> Self {
        Self::Stopped
    }
}

/// A process' frames.
pub(super) struct Inward;

impl LinkDirection for Inward {
    type Mark = ();

    fn ack(received: u64) -> LinkFrame {
        LinkFrame::bare(&FromPeer::Ack { received })
    }

    fn beat() -> LinkFrame {
        LinkFrame::bare(&FromPeer::Beat {})
    }

    fn written((): &mut (), _: &mut usize) {}
}

/// The meaning of numbered frames to their reader.
pub(super) trait NumberedItem: Sized + Send + 'static {
    /// A channel that was open already when the session began.
    fn live(channel: LiveChannel) -> Self;

    /// A frame. None: nothing to hear of.
    fn arrived(head: ToPeer, blob: Vec<u8>, asked: &mut OpenQuestions) -> Option<Self>;
}

/// A peer that is attached. Dropping it ends the session.
pub(super) struct AttachedPeer<T: NumberedItem> {
    pub shared: Arc<PeerShared<T>>,
    pub welcome: Welcome,
    /// Whether the session ends as after a panic.
    pub failed: bool,
    reader: Option<JoinHandle<()>>,
}

/// State that outlives connections.
pub(super) struct PeerShared<T> {
    endpoint: Endpoint,
    /// The hello of each connection.
    hello: Hello,
    pub frames: FrameQueue<Inward>,
    state: Monitor<PeerState<T>, 1>,
}

/// Something has changed of what a peer knows.
pub(super) const CHANGED: usize = 0;

/// The mutable state.
pub(super) struct PeerState<T> {
    /// Frames that the process has not taken yet.
    inbound: VecDeque<ReadFrame<T>>,
    /// How many the process has taken and not come back from.
    handed: u64,
    /// When it took them.
    handed_at: Option<Instant>,
    /// Numbered frames that arrived, from the session's beginning.
    arrived: u64,
    pub asked: OpenQuestions,
    stream: Option<Arc<PeerStream>>,
    /// From when until when the broker closes channels, if it drains.
    pub draining: Option<[Instant; 2]>,
    /// Nothing arrives any more.
    pub ended: bool,
}

/// Questions and answers.
pub(super) struct OpenQuestions {
    /// Questions that are not answered yet.
    pub open: u32,
    /// The number of the last one: those of a predecessor, whose answers may still come, were other ones.
    pub last: u64,
    /// What callers wait for, and the answers to it.
    pub answers: HashMap<u64, Option<PeerAnswer>>,
}

impl OpenQuestions {
    fn new() -> Self {
        Self { open: 0, last: RandomState::new().hash_one(()) >> 1, answers: HashMap::new() }
    }
}

/// The answer to a question of this side.
pub(super) enum PeerAnswer {
    /// It was done.
    Done,
    /// It was not.
    Failed(OrderFailure),
    /// Topics, and how many are subscribed to each.
    Topics(Vec<(String, u64)>),
    /// The outcome of a push here, and on other nodes.
    OnNodes(Box<(Outcome, OnNodes)>),
}

struct ReadFrame<T> {
    /// None: nothing that the process is to hear of.
    item: Option<T>,
    /// Whether it is a numbered frame; the list of channels is not.
    numbered: bool,
}

/// A connection on which the broker has said welcome.
struct Greeted {
    stream: Arc<PeerStream>,
    reader: FrameReader<DeadlineReader>,
    welcome: Welcome,
    live: Vec<LiveChannel>,
}

impl<T: NumberedItem> AttachedPeer<T> {
    /// Attaches. Channels that are open already come first.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub(super) fn connect(endpoint: Endpoint, attach: Attach) -> Result<Self, ConnectError> {
        let token = match &endpoint {
            Endpoint::Unix(_) => None,
            Endpoint::Tcp { token, .. } | Endpoint::Tls { token, .. } => Some(token.text().to_owned()),
        };
        let hello = Hello {
            version_min: wire::VERSION_MIN,
            version_max: wire::VERSION_MAX,
            attach,
            token,
            session: None,
            received: 0,
            window: None,
            wants_drain: true,
        };
        let Greeted { stream, reader, welcome, live } = greet(&endpoint, &hello, |_| ())?;
        let live = live.into_iter().map(|live| ReadFrame { item: Some(T::live(live)), numbered: false });
        let state = PeerState {
            inbound: live.collect(),
            handed: 0,
            handed_at: None,
            arrived: welcome.acknowledged,
            asked: OpenQuestions::new(),
            stream: None,
            draining: None,
            ended: false,
        };
        let shared = Arc::new(PeerShared {
            endpoint,
            hello: Hello { session: Some(welcome.session.clone()), ..hello },
            frames: FrameQueue::of_session(WINDOW, welcome.received, welcome.acknowledged),
            state: Monitor::new(state),
        });
        let (life, first) = (shared.clone(), welcome.clone());
        let reader = thread::Builder::new()
            .name("link-read".to_owned())
            .spawn(move || life.live(Greeted { stream, reader, welcome: first, live: Vec::new() }))?;
        Ok(Self { shared, welcome, failed: false, reader: Some(reader) })
    }

    /// Returns whether the broker takes a frame with this blob.
    pub(super) fn takes(&self, frame: &LinkFrame, blob: &Bytes) -> bool {
        blob.len() <= self.welcome.blob_bytes_max as usize && frame.fits(self.welcome.head_bytes_max as usize, 0)
    }
}

impl<T: NumberedItem> Drop for AttachedPeer<T> {
    fn drop(&mut self) {
        let failed = self.failed || thread::panicking();
        self.shared.frames.end(Some(LinkFrame::bare(&FromPeer::Bye { failed })));
        self.shared.frames.wait_finished(END_WITHIN);
        self.shared.wait_closed(CLOSE_WITHIN);
        self.shared.cut();
        self.shared.lock().signal(CHANGED);
        if let Some(reader) = self.reader.take() {
            // A panic has been reported where it happened.
            let _ = reader.join();
        }
    }
}

impl<T: NumberedItem> PeerShared<T> {
    pub(super) fn lock(&self) -> MonitorGuard<'_, PeerState<T>, 1> {
        self.state.lock()
    }

    /// Waits until the broker has ended the connection, if there is one.
    fn wait_closed(&self, patience: Duration) {
        let until = Instant::now() + patience;
        drop(self.lock().wait_while(CHANGED, Some(until), |state| state.stream.is_some()));
    }

    /// Cuts the connection, if there is one.
    pub(super) fn cut(&self) {
        if let Some(stream) = &self.lock().stream {
            stream.shutdown();
        }
    }

    /// Waits for what arrives and appends all that is there. What was given by the call before counts as taken in.
    ///
    /// # Errors
    /// Nothing came in time, or the session is over.
    pub(super) fn recv(&self, items: &mut Vec<T>, timeout: Duration) -> Result<(), RecvError> {
        self.frames.release();
        let mut state = self.lock();
        let is_quick = state.handed_at.take().is_some_and(|at| at.elapsed() < HOLD_WITHIN);
        let done = std::mem::take(&mut state.handed);
        self.frames.took(done, state.inbound.is_empty());
        let until = Instant::now().checked_add(timeout);
        loop {
            let before = items.len();
            while let Some(ReadFrame { item, numbered }) = state.inbound.pop_front() {
                state.handed += u64::from(numbered);
                items.extend(item);
            }
            match () {
                () if items.len() > before => {
                    state.handed_at = Some(Instant::now());
                    drop(state);
                    if is_quick && items.len() - before > 1 {
                        // What it sends for all of these leaves together.
                        self.frames.hold();
                    }
                    return Ok(());
                }
                () if state.ended => return Err(RecvError::Stopped),
                () if until.is_some_and(|until| Instant::now() >= until) => return Err(RecvError::Timeout),
                () => {}
            }
            // Only answers to questions, so the process has nothing to do for them.
            let done = std::mem::take(&mut state.handed);
            self.frames.took(done, true);
            state = state.wait(CHANGED, until);
        }
    }

    /// The life of the reading thread: one connection after the other.
    fn live(&self, first: Greeted) {
        let mut next = Some(first);
        while let Some(greeted) = next {
            let grace = Duration::from_millis(greeted.welcome.owner_grace_ms);
            let error = self.serve(greeted);
            if self.frames.has_ended() {
                break;
            }
            tracing::warn!(broker = ?self.endpoint, error = %error, "the link's connection is lost; connecting again");
            next = self.again(Instant::now() + grace);
        }
        self.frames.end(None);
        let mut state = self.lock();
        state.ended = true;
        state.signal(CHANGED);
    }

    /// Reads from one connection until it is lost.
    fn serve(&self, greeted: Greeted) -> ReadError {
        let Greeted { stream, mut reader, welcome, .. } = greeted;
        self.lock().stream = Some(stream.clone());
        let connection = self.frames.connect(welcome.window);
        if stream.writes_now() {
            self.frames.write_through(connection, stream.clone());
        }
        let beat = Duration::from_millis(welcome.beat_ms.into());
        let write = || {
            if self.frames.write(connection, &mut &*stream, beat).is_err() {
                stream.shutdown();
            }
        };
        let error = thread::scope(|scope| {
            let writer = thread::Builder::new().name("link-write".to_owned()).spawn_scoped(scope, write);
            let silence = reader.source_mut().allow_silence(3 * beat);
            let error = match writer.and(silence) {
                Ok(()) => self.read(&mut reader).unwrap_err(),
                Err(error) => error.into(),
            };
            if !matches!(error, ReadError::Io(_)) {
                // It would come again, over each connection.
                tracing::error!(broker = ?self.endpoint, %error, "the broker's frame cannot be read: the session ends");
                self.frames.end(Some(LinkFrame::bare(&FromPeer::Bye { failed: true })));
                self.frames.wait_finished(HELLO_WITHIN);
            }
            stream.shutdown();
            self.frames.disconnect(connection);
            error
        });
        let mut state = self.lock();
        state.stream = None;
        state.signal(CHANGED);
        error
    }

    fn read(&self, reader: &mut FrameReader<DeadlineReader>) -> Result<std::convert::Infallible, ReadError> {
        // The process is woken once for all frames of a read.
        let mut is_told = true;
        loop {
            if !is_told && !reader.is_ready() {
                self.lock().signal(CHANGED);
                is_told = true;
            }
            let (head, blob) = reader.next_owned()?;
            match head {
                ToPeer::Beat {} => {}
                ToPeer::Ack { received } => self.frames.acknowledge(received, |()| ()).map_err(io::Error::other)?,
                ToPeer::Draining { begins_in_ms, ends_in_ms } => {
                    let (begins_in, ends_in) = (Duration::from_millis(begins_in_ms), Duration::from_millis(ends_in_ms));
                    tracing::warn!(broker = ?self.endpoint, ?begins_in, ?ends_in, "the broker drains: its channels are closed");
                    let now = Instant::now();
                    self.lock().draining = now.checked_add(begins_in).zip(now.checked_add(ends_in)).map(<[_; 2]>::from);
                }
                ToPeer::Bye { code, reason } => {
                    tracing::warn!(broker = ?self.endpoint, %code, reason, "the broker has ended the session");
                    self.frames.end(None);
                    return Err(io::Error::from(io::ErrorKind::ConnectionAborted).into());
                }
                numbered => {
                    self.arrived(numbered, blob);
                    is_told = false;
                }
            }
        }
    }

    fn arrived(&self, head: ToPeer, blob: Vec<u8>) {
        let mut state = self.lock();
        state.arrived += 1;
        let item = T::arrived(head, blob, &mut state.asked);
        if item.is_none() && state.inbound.is_empty() && state.handed == 0 {
            // Nothing that the process has to take stands before it: one that only asks need not take anything.
            return self.frames.took(1, true);
        }
        state.inbound.push_back(ReadFrame { item, numbered: true });
    }

    /// A connection is made again: whoever ends the session cuts it from now on, though the broker says nothing on it.
    fn greets(&self, stream: &Arc<PeerStream>) {
        self.lock().stream = Some(stream.clone());
        if self.frames.has_ended() {
            stream.shutdown();
        }
    }

    /// Connects again, with pauses that grow, until `deadline`. None: the session is over.
    fn again(&self, deadline: Instant) -> Option<Greeted> {
        let mut failures = 0;
        loop {
            let hello = Hello { received: self.lock().arrived, ..self.hello.clone() };
            match greet(&self.endpoint, &hello, |stream| self.greets(stream)) {
                Ok(greeted) => {
                    tracing::info!(broker = ?self.endpoint, "the link is connected again");
                    self.lock().draining = None;
                    // It has been told so by the welcome; it cannot be wrong about what it has itself.
                    let _ = self.frames.acknowledge(greeted.welcome.received, |()| ());
                    return Some(greeted);
                }
                Err(ConnectError::Refused(refused)) if is_final(refused.code) => {
                    tracing::warn!(broker = ?self.endpoint, %refused, "the session is over");
                    return None;
                }
                Err(error) => tracing::debug!(broker = ?self.endpoint, %error, "the link is not connected yet"),
            }
            failures += 1;
            let pause = RETRIES.after(failures);
            if Instant::now() + pause >= deadline || self.frames.has_ended() {
                return None;
            }
            thread::sleep(pause);
        }
    }
}

/// Returns whether trying again cannot help.
fn is_final(code: RefusedCode) -> bool {
    match code {
        RefusedCode::Full | RefusedCode::Taken => false,
        RefusedCode::Version
        | RefusedCode::Malformed
        | RefusedCode::Token
        | RefusedCode::Session
        | RefusedCode::Node
        | RefusedCode::Stopped => true,
    }
}

/// Connects, says hello, and reads what a broker says first. `connected` sees the stream before it is waited for.
fn greet(
    endpoint: &Endpoint,
    hello: &Hello,
    connected: impl FnOnce(&Arc<PeerStream>),
) -> Result<Greeted, ConnectError> {
    let stream = Arc::new(match endpoint {
        Endpoint::Unix(path) => PeerStream::unix(path, HELLO_WITHIN)?,
        Endpoint::Tcp { address, .. } => PeerStream::tcp(address, HELLO_WITHIN)?,
        Endpoint::Tls { address, trust, .. } => PeerStream::tls(address, trust, HELLO_WITHIN)?,
    });
    connected(&stream);
    let mut gather = GatheredFrames::default();
    gather.push(&LinkFrame::bare(&FromPeer::Hello(hello.clone())));
    gather.write(&mut &*stream)?;
    let deadline = Instant::now() + 2 * HELLO_WITHIN;
    let source = DeadlineReader::until(stream.clone(), deadline);
    // The broker limits its own frames.
    let mut reader = FrameReader::new(source, super::frame::HEAD_BYTES_MAX, u32::MAX as usize);
    let welcome = match reader.next()?.0 {
        ToPeer::Welcome(welcome) if welcome.version == wire::VERSION_MAX => welcome,
        ToPeer::Welcome(welcome) => {
            return Err(ConnectError::Protocol(format!("it speaks version {}", welcome.version)));
        }
        ToPeer::Refused(refused) => return Err(ConnectError::Refused(refused)),
        _ => return Err(ConnectError::Protocol("its first frame is no welcome".to_owned())),
    };
    reader.set_limits(super::frame::HEAD_BYTES_MAX, welcome.blob_bytes_max as usize);
    let mut live = Vec::new();
    while (live.len() as u64) < welcome.live {
        match reader.next()?.0 {
            ToPeer::Live { channels } => live.extend(channels),
            _ => return Err(ConnectError::Protocol("its list of channels is too short".to_owned())),
        }
    }
    Ok(Greeted { stream, reader, welcome, live })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::Policy;
    use crate::link::{Client, ClientOptions};
    use crate::node::Dialect;
    use std::io::Write;
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::sync::mpsc;

    /// Reads a hello.
    fn hear(stream: UnixStream) -> UnixStream {
        let mut reader = FrameReader::new(stream.try_clone().unwrap(), 4096, 0);
        assert!(matches!(reader.next().unwrap().0, FromPeer::Hello(_)));
        stream
    }

    fn say_welcome(mut stream: &UnixStream) {
        let welcome = Welcome {
            version: wire::VERSION_MAX,
            dialect: Dialect::default(),
            node: "local.os".to_owned(),
            listening: "127.0.0.1:1".to_owned(),
            session: "secret".to_owned(),
            received: 0,
            acknowledged: 0,
            live: 0,
            window: WINDOW,
            head_bytes_max: 4096,
            blob_bytes_max: 4096,
            asks_max: 1,
            beat_ms: 60_000,
            owner_grace_ms: 600_000,
        };
        let mut gather = GatheredFrames::default();
        gather.push(&LinkFrame::bare(&ToPeer::Welcome(welcome)));
        gather.write(&mut stream).unwrap();
    }

    #[test]
    fn a_frame_that_cannot_be_read_ends_the_session_instead_of_coming_again() {
        let path = std::env::temp_dir().join(format!("pushring-unreadable-{}", std::process::id()));
        let listener = UnixListener::bind(&path).unwrap();
        let broker = thread::spawn(move || {
            let mut stream = hear(listener.accept().unwrap().0);
            say_welcome(&stream);
            // A head that is nil.
            stream.write_all(&[0, 0, 0, 1, 0, 0, 0, 0, 0xc0]).unwrap();
            let mut reader = FrameReader::new(stream, 4096, 0);
            let has_failed = loop {
                if let FromPeer::Bye { failed } = reader.next().expect("it says why it goes").0 {
                    break failed;
                }
            };
            (listener, has_failed)
        });
        let client = Client::connect(&path, &"p:mute:sys".parse().unwrap(), ClientOptions::default()).unwrap();
        client.recv_batch(&mut Vec::new(), Duration::from_secs(60)).expect_err("nothing comes any more");
        let (listener, has_failed) = broker.join().unwrap();
        assert!(has_failed);
        listener.set_nonblocking(true).unwrap();
        assert_eq!(listener.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock, "it is not asked for again");
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_process_ends_in_time_though_its_broker_says_nothing_any_more() {
        let path = std::env::temp_dir().join(format!("pushring-mute-{}", std::process::id()));
        let listener = UnixListener::bind(&path).unwrap();
        let (heard, is_heard) = mpsc::channel();
        let broker = thread::spawn(move || {
            say_welcome(&hear(listener.accept().unwrap().0));
            // Lost; on the next one it hangs.
            let again = hear(listener.accept().unwrap().0);
            heard.send(()).unwrap();
            again
        });
        let options = ClientOptions { policy: Policy::Close, ..ClientOptions::default() };
        let client = Client::connect(&path, &"p:mute:sys".parse().unwrap(), options).unwrap();
        is_heard.recv().unwrap();
        let began = Instant::now();
        drop(client);
        // Long before it would give the hello up.
        assert!(began.elapsed() < END_WITHIN, "{:?}", began.elapsed());
        drop(broker.join().unwrap());
        std::fs::remove_file(&path).unwrap();
    }
}
