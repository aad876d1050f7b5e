//! The process' side: a connection that comes back by itself, under the calls of the broker's own
//! [`Process`](crate::broker::Process).
//!
//! One thread reads, and connects again when the connection is lost, until the broker must have given the session up;
//! another writes. Invariants: what was pushed within a session arrives once, in order, also over a new connection;
//! events are acknowledged when the process asks for more, so what it did not get to before it died is given to its
//! successor; what is kept is bounded by the window that the broker names.

use super::config::{HELLO_WITHIN, WINDOW};
use super::convert;
use super::frame::{Frame, FrameReader, Gather, ReadError};
use super::line::{Direction, Line};
use super::socket::{Source, Stream};
use super::token::Token;
use super::wire::{self, Attach, Failure, FromPeer, Hello, LiveChannel, Refused, RefusedCode, ToPeer, Welcome};
use crate::broker::{Audience, BindPathError, Event, Message, Outcome, Policy, PushError, RecvError, RequestId};
use crate::channel::ChannelId;
use crate::gateway::{Dialect, HttpRule, WebSocketRule};
use crate::process_id::ProcessId;
use bytes::Bytes;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// The waits between attempts to connect again.
const AGAIN_MIN: Duration = Duration::from_millis(20);
const AGAIN_MAX: Duration = Duration::from_secs(1);

/// How long what was pushed may take to leave when the process ends.
const END_WITHIN: Duration = Duration::from_secs(5);

/// Questions of our own have this bit; those of the caller do not.
const OUR_ASK: u64 = 1 << 63;

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
        token: Token,
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
pub enum ConnectError {
    /// Nobody listens there, or the connection failed.
    #[error("the link cannot be reached: {0}")]
    Io(#[from] io::Error),
    /// The broker said no.
    #[error("the broker refuses: {0}")]
    Refused(Refused),
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
pub enum SendError {
    /// Larger than the broker takes over a link.
    #[error("larger than the link takes")]
    TooLarge,
    /// The session is over.
    #[error("the broker has stopped or is lost")]
    Stopped,
}

impl From<SendError> for PushError {
    /// The only one of the broker's that says as much: the process has to end.
    fn from(_: SendError) -> Self {
        Self::Stopped
    }
}

/// What a process is attached with.
#[derive(Debug, Clone, Copy, Default)]
pub struct ClientOptions {
    /// What happens to frames that do not fit a channel's budget, where a push does not say.
    pub policy: Policy,
    /// Whether it is told of pings, pongs and close frames ([`Event::Control`]).
    pub wants_control: bool,
}

/// A process attached over a link. Dropping it ends it, and its channels with 1001.
pub struct Client {
    shared: Arc<Shared>,
    reader: Option<JoinHandle<()>>,
    welcome: Welcome,
    failed: bool,
}

/// A process' frames.
struct Inward;

impl Direction for Inward {
    type Mark = ();

    fn ack(received: u64) -> Frame {
        Frame::bare(&FromPeer::Ack { received })
    }

    fn beat() -> Frame {
        Frame::bare(&FromPeer::Beat {})
    }

    fn written((): &mut (), _: &mut usize) {}
}

struct Shared {
    endpoint: Endpoint,
    /// What this process says whenever it connects.
    hello: Hello,
    line: Line<Inward>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// What arrived and was not taken by the process.
    inbound: VecDeque<Arrived>,
    /// How many the process has taken and not come back from.
    handed: u64,
    /// Numbered frames that arrived, from the session's beginning.
    arrived: u64,
    /// Answers to our own questions.
    answers: HashMap<u64, Result<(), Failure>>,
    /// Questions that are not answered yet.
    asks: u32,
    asked: u64,
    stream: Option<Arc<Stream>>,
    /// Nothing arrives any more.
    ended: bool,
}

struct Arrived {
    /// None: nothing that the process is to hear of.
    event: Option<Event>,
    /// Whether it is a numbered frame; the list of channels is not.
    numbered: bool,
}

/// A connection on which the broker has said welcome.
struct Greeted {
    stream: Arc<Stream>,
    reader: FrameReader<Source>,
    welcome: Welcome,
    live: Vec<LiveChannel>,
}

impl Client {
    /// Attaches a process. Channels that a process of that id had left behind are its own, and come as the first
    /// events, as if they were opened now.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub fn connect(
        endpoint: impl Into<Endpoint>,
        process: &ProcessId,
        options: ClientOptions,
    ) -> Result<Self, ConnectError> {
        let endpoint = endpoint.into();
        let token = match &endpoint {
            Endpoint::Unix(_) => None,
            Endpoint::Tcp { token, .. } => Some(token.text().to_owned()),
        };
        let hello = Hello {
            version_min: wire::VERSION_MIN,
            version_max: wire::VERSION_MAX,
            attach: Attach::Process {
                id: process.to_string(),
                wants_control: options.wants_control,
                policy: options.policy.into(),
            },
            token,
            session: None,
            received: 0,
            window: None,
        };
        let Greeted { stream, reader, welcome, live } = greet(&endpoint, &hello)?;
        let opened = |live| Event::Opened(Box::new(convert::opened(live)));
        let inbound = live.into_iter().map(|live| Arrived { event: Some(opened(live)), numbered: false }).collect();
        let state = State { inbound, arrived: welcome.acknowledged, ..State::default() };
        let shared = Arc::new(Shared {
            endpoint,
            hello: Hello { session: Some(welcome.session.clone()), ..hello },
            line: Line::of_session(WINDOW, welcome.received, welcome.acknowledged),
            state: Mutex::new(state),
            changed: Condvar::new(),
        });
        let (life, first) = (shared.clone(), welcome.clone());
        let reader = thread::Builder::new()
            .name("link-read".to_owned())
            .spawn(move || life.live(Greeted { stream, reader, welcome: first, live: Vec::new() }))?;
        Ok(Self { shared, reader: Some(reader), welcome, failed: false })
    }

    /// The name of the broker's node.
    pub fn node(&self) -> &str {
        &self.welcome.node
    }

    /// Which node system the broker speaks.
    pub fn dialect(&self) -> Dialect {
        self.welcome.dialect
    }

    /// As [`Process::recv_batch`](crate::broker::Process::recv_batch). What was given by the call before counts as done.
    ///
    /// # Errors
    /// Nothing came in time, or the session is over.
    pub fn recv_batch(&self, events: &mut Vec<Event>, timeout: Duration) -> Result<(), RecvError> {
        let mut state = self.shared.lock();
        let done = std::mem::take(&mut state.handed);
        self.shared.line.took(done, state.inbound.is_empty());
        let mut left = timeout;
        let until = Instant::now().checked_add(timeout);
        loop {
            let before = events.len();
            while let Some(Arrived { event, numbered }) = state.inbound.pop_front() {
                state.handed += u64::from(numbered);
                events.extend(event);
            }
            match () {
                () if events.len() > before => return Ok(()),
                () if state.ended => return Err(RecvError::Stopped),
                () if left.is_zero() => return Err(RecvError::Timeout),
                () => {}
            }
            // Answers to questions alone: nothing that the process would come back from.
            let done = std::mem::take(&mut state.handed);
            self.shared.line.took(done, true);
            state = self.shared.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
            left = until.map_or(timeout, |until| until.saturating_duration_since(Instant::now()));
        }
    }

    /// Pushes a message to a channel of this process; waits for room in the link. `ask` asks for an
    /// [`Event::Outcome`] under that number, which is below 2^63.
    ///
    /// # Errors
    /// See [`SendError`].
    pub fn push(
        &self,
        channel: ChannelId,
        message: Message,
        policy: Option<Policy>,
        ask: Option<u64>,
    ) -> Result<(), SendError> {
        let (kind, blob) = convert::message_out(message);
        let policy = policy.map(Into::into);
        self.order(FromPeer::Push { channel: channel.get(), kind, policy, ask }, blob, ask)
    }

    /// Pushes one message to many channels of this process, encoded once for each of the broker's shards.
    ///
    /// # Errors
    /// As [`push`](Self::push).
    pub fn push_many(
        &self,
        audience: Audience,
        except: &[ChannelId],
        message: Message,
        policy: Option<Policy>,
        ask: Option<u64>,
    ) -> Result<(), SendError> {
        let (kind, blob) = convert::message_out(message);
        let except = except.iter().map(|channel| channel.get()).collect();
        let policy = policy.map(Into::into);
        self.order(FromPeer::PushMany { to: audience.into(), except, kind, policy, ask }, blob, ask)
    }

    /// Closes a channel of this process behind what is queued for it.
    ///
    /// # Errors
    /// As [`push`](Self::push).
    pub fn close(&self, channel: ChannelId, code: u16, reason: &str, ask: Option<u64>) -> Result<(), SendError> {
        let close = FromPeer::Close { channel: channel.get(), code: Some(code), reason: reason.to_owned(), ask };
        self.order(close, Bytes::new(), ask)
    }

    /// As [`OwnerHandle::bind`](crate::broker::OwnerHandle::bind).
    ///
    /// # Errors
    /// As there.
    pub fn bind(&self, path: &str, rule: WebSocketRule) -> Result<(), BindPathError> {
        let WebSocketRule { authenticated, secure_subdomain, extension, deflate } = rule;
        let path = path.to_owned();
        let bind = |ask| FromPeer::Bind { path, authenticated, secure_subdomain, extension, deflate, ask };
        self.answered(bind, Bytes::new())
    }

    /// Takes a [`bind`](Self::bind) back; open channels stay.
    ///
    /// # Errors
    /// As [`bind`](Self::bind).
    pub fn unbind(&self, path: &str) -> Result<(), BindPathError> {
        self.answered(|ask| FromPeer::Unbind { path: path.to_owned(), ask }, Bytes::new())
    }

    /// As [`OwnerHandle::bind_http`](crate::broker::OwnerHandle::bind_http).
    ///
    /// # Errors
    /// As there.
    pub fn bind_http(&self, path: &str, rule: HttpRule) -> Result<(), BindPathError> {
        let HttpRule { authenticated, local_only, secure_subdomain, content } = rule;
        let path = path.to_owned();
        let (content, blob) = match content {
            Some(content) => (Some(content.mime().to_owned()), content.bytes().clone()),
            None => (None, Bytes::new()),
        };
        let bind = |ask| FromPeer::BindHttp { path, authenticated, local_only, secure_subdomain, content, ask };
        self.answered(bind, blob)
    }

    /// Takes a [`bind_http`](Self::bind_http) back.
    ///
    /// # Errors
    /// As [`bind`](Self::bind).
    pub fn unbind_http(&self, path: &str) -> Result<(), BindPathError> {
        self.answered(|ask| FromPeer::UnbindHttp { path: path.to_owned(), ask }, Bytes::new())
    }

    /// Answers an HTTP request. An answer that comes too late reaches nobody.
    ///
    /// # Errors
    /// As [`push`](Self::push).
    pub fn respond(
        &self,
        request: RequestId,
        status: u16,
        headers: Vec<(Box<str>, Box<str>)>,
        body: impl Into<Bytes>,
    ) -> Result<(), SendError> {
        self.order(FromPeer::Respond { request: request.0, status, headers }, body.into(), None)
    }

    /// Ends it as a panic does: its channels are closed with 1011.
    pub fn fail(mut self) {
        self.failed = true;
    }

    /// Sends an order, once fewer questions than allowed are open, where it asks one.
    fn order(&self, order: FromPeer, blob: Bytes, ask: Option<u64>) -> Result<(), SendError> {
        let frame = Frame::bare(&order);
        if blob.len() > self.welcome.blob_bytes_max as usize || frame.bytes() > self.welcome.head_bytes_max as usize {
            return Err(SendError::TooLarge);
        }
        if ask.is_some() {
            let mut state = self.shared.lock();
            while state.asks >= self.welcome.asks_max && !state.ended {
                state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            state.asks += 1;
        }
        self.shared.line.send([(frame.with(blob), ())]).map_err(|_| SendError::Stopped)
    }

    /// Sends an order of which the answer is awaited.
    fn answered(&self, order: impl FnOnce(Option<u64>) -> FromPeer, blob: Bytes) -> Result<(), BindPathError> {
        let ask = {
            let mut state = self.shared.lock();
            state.asked += 1;
            state.asked | OUR_ASK
        };
        self.order(order(Some(ask)), blob, Some(ask)).map_err(|error| match error {
            // A path of a megabyte, or content that no client of this broker could be sent either.
            SendError::TooLarge => convert::bind_error(Failure::PathTooLong),
            SendError::Stopped => BindPathError::Stopped,
        })?;
        let mut state = self.shared.lock();
        loop {
            if let Some(answer) = state.answers.remove(&ask) {
                return answer.map_err(convert::bind_error);
            }
            if state.ended {
                return Err(BindPathError::Stopped);
            }
            state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let failed = self.failed || thread::panicking();
        self.shared.line.end(Some(Frame::bare(&FromPeer::Bye { failed })));
        self.shared.line.wait_finished(END_WITHIN);
        if let Some(stream) = &self.shared.lock().stream {
            stream.shutdown();
        }
        self.shared.changed.notify_all();
        if let Some(reader) = self.reader.take() {
            // A panic has been reported where it happened.
            let _ = reader.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change is one call on a collection, or one assignment.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The life of the reading thread: one connection after the other.
    fn live(&self, first: Greeted) {
        let mut next = Some(first);
        while let Some(greeted) = next {
            let grace = Duration::from_millis(greeted.welcome.owner_grace_ms);
            let error = self.serve(greeted);
            if self.line.has_ended() {
                break;
            }
            tracing::warn!(broker = ?self.endpoint, error = %error, "the link is lost");
            next = self.again(Instant::now() + grace);
        }
        self.line.end(None);
        self.lock().ended = true;
        self.changed.notify_all();
    }

    /// Reads from one connection until it is lost.
    fn serve(&self, greeted: Greeted) -> ReadError {
        let Greeted { stream, mut reader, welcome, .. } = greeted;
        self.lock().stream = Some(stream.clone());
        let connection = self.line.connect(welcome.window);
        let beat = Duration::from_millis(welcome.beat_ms.into());
        let error = thread::scope(|scope| {
            scope.spawn(|| {
                if self.line.write(connection, &mut &*stream, beat).is_err() {
                    stream.shutdown();
                }
            });
            let error = reader.source_mut().allow_silence(3 * beat).map_err(ReadError::from);
            let error = match error {
                Ok(()) => self.read(&mut reader).unwrap_err(),
                Err(error) => error,
            };
            stream.shutdown();
            self.line.disconnect(connection);
            error
        });
        self.lock().stream = None;
        error
    }

    fn read(&self, reader: &mut FrameReader<Source>) -> Result<std::convert::Infallible, ReadError> {
        loop {
            let (head, blob) = reader.next()?;
            match head {
                ToPeer::Beat {} => {}
                ToPeer::Ack { received } => self.line.acknowledge(received, |()| ()).map_err(io::Error::other)?,
                ToPeer::Bye { code, reason } => {
                    tracing::warn!(broker = ?self.endpoint, %code, reason, "the broker has ended the session");
                    self.line.end(None);
                    return Err(io::Error::from(io::ErrorKind::ConnectionAborted).into());
                }
                numbered => self.arrived(numbered, blob),
            }
        }
    }

    fn arrived(&self, head: ToPeer, blob: Bytes) {
        let mut state = self.lock();
        state.arrived += 1;
        let event = match head {
            ToPeer::Done { ask } => state.answer(ask, Ok(())),
            ToPeer::Failed { ask, code, .. } => state.answer(ask, Err(code)),
            head => {
                state.asks -= u32::from(matches!(head, ToPeer::Outcome(_)) && state.asks > 0);
                convert::event_in(head, blob)
            }
        };
        state.inbound.push_back(Arrived { event, numbered: true });
        self.changed.notify_all();
    }

    /// Connects again, with pauses that grow, until `deadline`. None: the session is over.
    fn again(&self, deadline: Instant) -> Option<Greeted> {
        let mut pause = AGAIN_MIN;
        loop {
            let hello = Hello { received: self.lock().arrived, ..self.hello.clone() };
            match greet(&self.endpoint, &hello) {
                Ok(greeted) => {
                    tracing::info!(broker = ?self.endpoint, "the link is back");
                    // It has been told so by the welcome; it cannot be wrong about what it has itself.
                    let _ = self.line.acknowledge(greeted.welcome.received, |()| ());
                    return Some(greeted);
                }
                Err(ConnectError::Refused(refused)) if is_final(refused.code) => {
                    tracing::warn!(broker = ?self.endpoint, %refused, "the session is over");
                    return None;
                }
                Err(error) => tracing::debug!(broker = ?self.endpoint, %error, "the link is not back yet"),
            }
            if Instant::now() + pause >= deadline || self.line.has_ended() {
                return None;
            }
            thread::sleep(pause);
            pause = (2 * pause).min(AGAIN_MAX);
        }
    }
}

impl State {
    fn answer(&mut self, ask: u64, answer: Result<(), Failure>) -> Option<Event> {
        self.asks = self.asks.saturating_sub(1);
        if ask & OUR_ASK != 0 {
            self.answers.insert(ask, answer);
            return None;
        }
        // A message that the broker would not push: checked here before, so it comes from one of another version.
        answer.err().map(|_| Event::Outcome { ticket: ask, outcome: Outcome { dropped: 1, ..Outcome::default() } })
    }
}

/// Whether trying again cannot help.
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

/// Connects, says hello, and reads what a broker says first.
fn greet(endpoint: &Endpoint, hello: &Hello) -> Result<Greeted, ConnectError> {
    let stream = Arc::new(match endpoint {
        Endpoint::Unix(path) => Stream::unix(path)?,
        Endpoint::Tcp { address, .. } => Stream::tcp(address, HELLO_WITHIN)?,
    });
    let mut gather = Gather::default();
    gather.push(&Frame::bare(&FromPeer::Hello(hello.clone())));
    gather.write(&mut &*stream)?;
    let deadline = Instant::now() + 2 * HELLO_WITHIN;
    let source = Source::until(stream.clone(), deadline);
    // What a broker may send is its own to bound.
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
