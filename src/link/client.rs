//! A process attached over a link, under the calls of the broker's own [`Process`](crate::broker::Process).

use super::convert;
use super::frame::LinkFrame;
use super::peer::{
    AttachedPeer, CHANGED, ConnectError, Endpoint, LinkSendError, NumberedItem, OpenQuestions, PeerAnswer, PeerState,
};
use super::wire::{Attach, FromPeer, LiveChannel, OrderFailure, ToPeer};
use crate::broker::{
    Audience, BindPathError, ChannelAt, Event, GrantError, Message, OnNodes, Outcome, Policy, RecvError, RequestId,
    Stopped,
};
use crate::channel::ChannelId;
use crate::gateway::{HttpRule, WebSocketRule};
use crate::node::Dialect;
use crate::process_id::ProcessId;
use bytes::Bytes;
use std::time::{Duration, Instant};

/// Questions of our own have this bit; those of the caller do not.
const OUR_ASK: u64 = 1 << 63;

/// The settings of a process.
#[derive(Debug, Clone, Copy, Default)]
pub struct ClientOptions {
    /// The policy for frames that exceed a channel's budget, where a push names none.
    pub policy: Policy,
    /// Whether it is told of pings, pongs and close frames ([`Event::Control`]).
    pub wants_control: bool,
    /// Whether it is told when clients subscribe to its topics and leave them ([`Event::Joined`], [`Event::Left`]).
    pub wants_topics: bool,
}

/// A process attached over a link. Dropping it ends it, and its channels with 1001.
pub struct Client(AttachedPeer<Event>);

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
        let ClientOptions { wants_control, wants_topics, policy } = options;
        let attach = Attach::Process { id: process.to_string(), wants_control, wants_topics, policy };
        AttachedPeer::connect(endpoint.into(), attach).map(Self)
    }

    /// The name of the broker's node.
    pub fn node(&self) -> &str {
        &self.0.welcome.node
    }

    /// Which node system the broker speaks.
    pub fn dialect(&self) -> Dialect {
        self.0.welcome.dialect
    }

    /// In how long the broker begins to close channels with 1012, and in how long it has told all, if it drains.
    pub fn draining(&self) -> Option<(Duration, Duration)> {
        let [begins, ends] = self.0.shared.lock().draining?;
        let now = Instant::now();
        Some((begins.saturating_duration_since(now), ends.saturating_duration_since(now)))
    }

    /// As [`Process::recv_batch`](crate::broker::Process::recv_batch). What was given by the call before counts as
    /// done.
    ///
    /// # Errors
    /// The session is over.
    pub fn recv_batch(&self, events: &mut Vec<Event>, timeout: Duration) -> Result<usize, Stopped> {
        let before = events.len();
        match self.0.shared.recv(events, timeout) {
            Ok(()) | Err(RecvError::Timeout) => Ok(events.len() - before),
            Err(RecvError::Stopped) => Err(Stopped),
        }
    }

    /// Pushes a message to a channel of this process; waits for room in the link. `ask` asks for an
    /// [`Event::Outcome`] under that number, which is below 2^63. A process that takes over from another is told the
    /// outcomes that this one had asked for, so numbers should not begin at the same place each time.
    ///
    /// # Errors
    /// See [`LinkSendError`].
    pub fn push(
        &self,
        channel: ChannelId,
        message: Message,
        policy: Option<Policy>,
        ask: Option<u64>,
    ) -> Result<(), LinkSendError> {
        self.push_to(channel, None, false, message, policy, ask)
    }

    /// As [`push`](Self::push), to a channel of the process of this name on a node of the broker's fleet.
    ///
    /// # Errors
    /// As there.
    pub fn push_at(
        &self,
        to: &ChannelAt,
        message: Message,
        policy: Option<Policy>,
        ask: Option<u64>,
    ) -> Result<(), LinkSendError> {
        self.push_to(to.channel, Some(to), false, message, policy, ask)
    }

    /// Pushes to a channel of another node of the broker's fleet, whose owner, whatever process that is, may have let
    /// this process in.
    ///
    /// # Errors
    /// As [`push`](Self::push).
    pub fn push_as_guest(&self, to: &ChannelAt, message: Message) -> Result<(), LinkSendError> {
        self.push_to(to.channel, Some(to), true, message, None, None)
    }

    fn push_to(
        &self,
        channel: ChannelId,
        at: Option<&ChannelAt>,
        as_guest: bool,
        message: Message,
        policy: Option<Policy>,
        ask: Option<u64>,
    ) -> Result<(), LinkSendError> {
        let (kind, blob) = convert::message_out(message);
        let node = at.map(|at| at.node.to_string());
        let channel = channel.get();
        self.order(FromPeer::Push { channel, kind, policy, ask, node, as_guest, ask_nodes: false }, blob, ask)
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
    ) -> Result<(), LinkSendError> {
        self.push_to_many(audience, except, false, message, policy, ask)
    }

    /// As [`push_many`](Self::push_many), to the channels of the process of this name on every node of the broker's
    /// fleet: of a topic, of a path or all. A list of channels is of one node, and ends the session.
    ///
    /// # Errors
    /// As there.
    pub fn push_everywhere(
        &self,
        audience: Audience,
        except: &[ChannelId],
        message: Message,
        policy: Option<Policy>,
        ask: Option<u64>,
    ) -> Result<(), LinkSendError> {
        self.push_to_many(audience, except, true, message, policy, ask)
    }

    fn push_to_many(
        &self,
        audience: Audience,
        except: &[ChannelId],
        everywhere: bool,
        message: Message,
        policy: Option<Policy>,
        ask: Option<u64>,
    ) -> Result<(), LinkSendError> {
        let (kind, blob) = convert::message_out(message);
        let except = except.iter().map(|channel| channel.get()).collect();
        let order = FromPeer::PushMany { to: audience, except, kind, policy, ask, everywhere, ask_nodes: false };
        self.order(order, blob, ask)
    }

    /// As [`push_everywhere`](Self::push_everywhere), and waits for what became of it: here, and on each other node,
    /// which has 250 ms to say so.
    ///
    /// # Errors
    /// As there.
    pub fn push_everywhere_asking_nodes(
        &self,
        audience: Audience,
        except: &[ChannelId],
        message: Message,
        policy: Option<Policy>,
    ) -> Result<(Outcome, OnNodes), LinkSendError> {
        let (kind, blob) = convert::message_out(message);
        let (to, except) = (audience, except.iter().map(|channel| channel.get()).collect());
        self.asked_of_nodes(
            |ask| FromPeer::PushMany { to, except, kind, policy, ask, everywhere: true, ask_nodes: true },
            blob,
        )
    }

    /// As [`push_at`](Self::push_at), and waits for what became of it at that node, which has 250 ms to say so.
    ///
    /// # Errors
    /// As there.
    pub fn push_at_asking_node(
        &self,
        to: &ChannelAt,
        message: Message,
        policy: Option<Policy>,
    ) -> Result<(Outcome, OnNodes), LinkSendError> {
        let (kind, blob) = convert::message_out(message);
        let (channel, node) = (to.channel.get(), Some(to.node.to_string()));
        self.asked_of_nodes(
            |ask| FromPeer::Push { channel, kind, policy, ask, node, as_guest: false, ask_nodes: true },
            blob,
        )
    }

    fn asked_of_nodes(
        &self,
        order: impl FnOnce(Option<u64>) -> FromPeer,
        blob: Bytes,
    ) -> Result<(Outcome, OnNodes), LinkSendError> {
        match self.answer_to(|ask| order(Some(ask)), blob)? {
            PeerAnswer::OnNodes(both) => Ok(*both),
            // A message that the broker would not push: checked here before, so it comes from one of another version.
            PeerAnswer::Failed(_) | PeerAnswer::Done | PeerAnswer::Topics(_) => {
                Ok((Outcome { dropped: 1, ..Outcome::default() }, OnNodes::default()))
            }
        }
    }

    /// Lets the process at `guest`, an address on another node (`bob.os@chat:app:me.os`), push to a channel of this
    /// process, or no more. `ask` asks for an [`Event::Outcome`]: 1 as `sent` if it is so now, as `dropped` if the
    /// channel has as many guests as there may be, as `not_found` or `not_owner`.
    ///
    /// # Errors
    /// As [`push`](Self::push).
    pub fn grant(
        &self,
        channel: ChannelId,
        guest: &str,
        is_granted: bool,
        ask: Option<u64>,
    ) -> Result<(), LinkSendError> {
        let channel = Some(channel.get());
        let order = FromPeer::Grant { guest: guest.to_owned(), channel, revoke: !is_granted, ask };
        self.order(order, Bytes::new(), ask)
    }

    /// As [`grant`](Self::grant), for all channels of this process. When it returns, that is so.
    ///
    /// # Errors
    /// See [`GrantError`]; an address that is none is told as the former.
    pub fn grant_all(&self, guest: &str, is_granted: bool) -> Result<(), GrantError> {
        let (guest, revoke) = (guest.to_owned(), !is_granted);
        match self.answer_to(|ask| FromPeer::Grant { guest, channel: None, revoke, ask: Some(ask) }, Bytes::new()) {
            Ok(PeerAnswer::Failed(_)) => Err(GrantError::TooMany),
            Ok(_) => Ok(()),
            Err(_) => Err(GrantError::Stopped),
        }
    }

    /// Subscribes a channel of this process to a topic, a name of 1 to 255 bytes.
    ///
    /// # Errors
    /// As [`push`](Self::push).
    pub fn subscribe(&self, channel: ChannelId, topic: &str, ask: Option<u64>) -> Result<(), LinkSendError> {
        let order = FromPeer::Subscribe { channel: channel.get(), topic: topic.to_owned(), ask };
        self.order(order, Bytes::new(), ask)
    }

    /// Takes a channel of this process out of a topic.
    ///
    /// # Errors
    /// As [`push`](Self::push).
    pub fn unsubscribe(&self, channel: ChannelId, topic: &str, ask: Option<u64>) -> Result<(), LinkSendError> {
        let order = FromPeer::Unsubscribe { channel: channel.get(), topic: topic.to_owned(), ask };
        self.order(order, Bytes::new(), ask)
    }

    /// At most `limit` (1,000 at most) topics of this process that have subscribers, by name, with the number of
    /// channels: those that begin with `prefix` and follow `after`.
    ///
    /// # Errors
    /// As [`push`](Self::push).
    pub fn topics(&self, prefix: &str, after: Option<&str>, limit: u32) -> Result<Vec<(String, u64)>, LinkSendError> {
        let (prefix, after) = (prefix.to_owned(), after.map(str::to_owned));
        match self.answer_to(|ask| FromPeer::ListTopics { prefix, after, limit, ask }, Bytes::new())? {
            PeerAnswer::Topics(topics) => Ok(topics),
            // A broker that knows no topics breaks off instead.
            PeerAnswer::Done | PeerAnswer::Failed(_) | PeerAnswer::OnNodes(_) => Ok(Vec::new()),
        }
    }

    /// Closes a channel of this process behind what is queued for it.
    ///
    /// # Errors
    /// As [`push`](Self::push).
    pub fn close(&self, channel: ChannelId, code: u16, reason: &str, ask: Option<u64>) -> Result<(), LinkSendError> {
        let close = FromPeer::Close { channel: channel.get(), code: Some(code), reason: reason.to_owned(), ask };
        self.order(close, Bytes::new(), ask)
    }

    /// As [`ProcessHandle::bind`](crate::broker::ProcessHandle::bind).
    ///
    /// # Errors
    /// As there.
    pub fn bind(&self, path: &str, rule: WebSocketRule) -> Result<(), BindPathError> {
        let WebSocketRule { authenticated, secure_subdomain, extension, deflate, resume, resume_events, sse, .. } =
            rule;
        let path = path.to_owned();
        let bind = |ask| FromPeer::Bind {
            path,
            authenticated,
            secure_subdomain,
            extension,
            deflate,
            resume,
            resume_events,
            sse,
            ask,
        };
        self.answered(bind, Bytes::new())
    }

    /// Takes a [`bind`](Self::bind) back; open channels stay.
    ///
    /// # Errors
    /// As [`bind`](Self::bind).
    pub fn unbind(&self, path: &str) -> Result<(), BindPathError> {
        self.answered(|ask| FromPeer::Unbind { path: path.to_owned(), ask }, Bytes::new())
    }

    /// As [`ProcessHandle::bind_http`](crate::broker::ProcessHandle::bind_http).
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

    /// Answers an HTTP request. A late response is dropped.
    ///
    /// # Errors
    /// As [`push`](Self::push).
    pub fn respond(
        &self,
        request: RequestId,
        status: u16,
        headers: Vec<(Box<str>, Box<str>)>,
        body: impl Into<Bytes>,
    ) -> Result<(), LinkSendError> {
        self.order(FromPeer::Respond { request: request.0, status, headers }, body.into(), None)
    }

    /// Ends it as a panic does: its channels are closed with 1011.
    pub fn fail(mut self) {
        self.0.failed = true;
    }

    /// Sends an order, once fewer questions than allowed are open, where it asks one.
    fn order(&self, order: FromPeer, blob: Bytes, ask: Option<u64>) -> Result<(), LinkSendError> {
        let (shared, frame) = (&self.0.shared, LinkFrame::bare(&order));
        if !self.0.takes(&frame, &blob) {
            return Err(LinkSendError::TooLarge);
        }
        if ask.is_some() {
            let asks_max = self.0.welcome.asks_max;
            let is_full = |state: &mut PeerState<Event>| state.asked.open >= asks_max && !state.ended;
            shared.lock().wait_while(CHANGED, None, is_full).asked.open += 1;
        }
        shared.frames.send([(frame.with(blob), ())]).map_err(|_| LinkSendError::Stopped)
    }

    /// Sends an order of which the answer is awaited.
    fn answered(&self, order: impl FnOnce(Option<u64>) -> FromPeer, blob: Bytes) -> Result<(), BindPathError> {
        match self.answer_to(|ask| order(Some(ask)), blob) {
            Ok(PeerAnswer::Failed(failure)) => Err(convert::bind_error(failure)),
            Ok(PeerAnswer::Done | PeerAnswer::Topics(_) | PeerAnswer::OnNodes(_)) => Ok(()),
            // A path of a megabyte, or content that no client of this broker could be sent either.
            Err(LinkSendError::TooLarge) => Err(convert::bind_error(OrderFailure::PathTooLong)),
            Err(LinkSendError::Stopped) => Err(BindPathError::Stopped),
        }
    }

    fn answer_to(&self, order: impl FnOnce(u64) -> FromPeer, blob: Bytes) -> Result<PeerAnswer, LinkSendError> {
        let shared = &self.0.shared;
        let ask = {
            let asked = &mut shared.lock().asked;
            asked.last = asked.last.wrapping_add(1);
            asked.answers.insert(asked.last | OUR_ASK, None);
            asked.last | OUR_ASK
        };
        let sent = self.order(order(ask), blob, Some(ask));
        let mut state = shared.lock();
        if let Err(error) = sent {
            state.asked.answers.remove(&ask);
            return Err(error);
        }
        loop {
            if let Some(answer) = state.asked.answers.get_mut(&ask).and_then(Option::take) {
                state.asked.answers.remove(&ask);
                return Ok(answer);
            }
            if state.ended {
                return Err(LinkSendError::Stopped);
            }
            state = state.wait(CHANGED, None);
        }
    }
}

impl NumberedItem for Event {
    fn live(channel: LiveChannel) -> Self {
        Self::Opened(Box::new(convert::opened(channel)))
    }

    fn arrived(head: ToPeer, blob: Vec<u8>, asked: &mut OpenQuestions) -> Option<Self> {
        match head {
            ToPeer::Done { ask } => answered(asked, ask, PeerAnswer::Done),
            ToPeer::Failed { ask, code, .. } => answered(asked, ask, PeerAnswer::Failed(code)),
            ToPeer::Topics { ask, topics } => answered(asked, ask, PeerAnswer::Topics(topics)),
            ToPeer::Outcome(head) if head.ask & OUR_ASK != 0 => {
                let both = (convert::outcome_in(&head), convert::nodes_in(&head));
                answered(asked, head.ask, PeerAnswer::OnNodes(Box::new(both)))
            }
            head => {
                asked.open -= u32::from(matches!(head, ToPeer::Outcome(_)) && asked.open > 0);
                convert::event_in(head, blob.into())
            }
        }
    }
}

fn answered(asked: &mut OpenQuestions, ask: u64, answer: PeerAnswer) -> Option<Event> {
    if ask & OUR_ASK != 0 {
        // Those to questions of a predecessor are nobody's.
        if let Some(awaited) = asked.answers.get_mut(&ask) {
            *awaited = Some(answer);
            asked.open = asked.open.saturating_sub(1);
        }
        return None;
    }
    asked.open = asked.open.saturating_sub(1);
    // A message that the broker would not push: checked here before, so it comes from one of another version.
    let outcome = Outcome { dropped: 1, ..Outcome::default() };
    matches!(answer, PeerAnswer::Failed(_)).then_some(Event::Outcome { ticket: ask, outcome })
}
