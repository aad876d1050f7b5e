//! The hub: a process of the broker's own, whose clients subscribe and publish by themselves, as far as their tokens let them.
//!
//! Clients connect to `/hub` with the subprotocol `pushring.1` and say what they want in control texts ([`grammar`]); what
//! they may was judged at the door ([`Grant`]) and is obeyed here. Backends publish to it over HTTP (`push_api`). The protocol
//! stands in `docs/PROTOCOL.md`.
//!
//! Invariants: nobody is subscribed to what its grant does not allow, nor publishes there; a channel whose grant has ended is
//! closed with 4401; each order of a client is answered; nothing that is published can be taken for an answer, since answers
//! are control texts. A topic with an envelope is a topic of its own, whose name no client can say.

pub mod grammar;

use self::grammar::{ClientSaid, HubOrder, PublishedPayload};
use crate::broker::{
    AttachOptions, Audience, BrokerHandle, ControlKind, Event, Message, Opened, Process, PushError, ServiceError,
};
use crate::channel::ChannelId;
use crate::gateway::{Grant, WebSocketRule};
use crate::words::topic;
use bytes::Bytes;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};

/// Its name.
pub const PROCESS: &str = "hub:pushring:sys";

/// Where its clients connect.
pub const PATH: &str = "/hub";

/// With what a channel is closed whose token has ended.
const TOKEN_ENDED: (u16, &str) = (4401, "the token has ended");

/// How long a wait for events lasts before it begins anew.
const WAIT_MAX: Duration = Duration::from_secs(3600);

/// Starts the hub of a broker whose settings have a [`HubDoor`](crate::gateway::HubDoor). Ends when the broker stops.
///
/// # Errors
/// See [`ServiceError`].
pub fn start(broker: &BrokerHandle) -> Result<JoinHandle<()>, ServiceError> {
    let process = broker.process(PROCESS, AttachOptions { wants_control: true, ..AttachOptions::default() })?;
    process.bind_at_with(PATH, WebSocketRule { hub: true, resume: true, ..WebSocketRule::default() })?;
    let hub = Hub { process, broker: broker.clone(), sessions: HashMap::new(), ends: BTreeSet::new() };
    Ok(thread::Builder::new().name("hub".to_owned()).spawn(move || hub.run())?)
}

struct Hub {
    process: Process,
    broker: BrokerHandle,
    sessions: HashMap<ChannelId, Arc<Grant>>,
    /// When grants end, in order.
    ends: BTreeSet<(u64, ChannelId)>,
}

type HubResult = Result<(), PushError>;

impl Hub {
    fn run(mut self) {
        let mut events = Vec::new();
        loop {
            if self.process.recv_batch(&mut events, self.patience()).is_err() {
                return;
            }
            // The only error is that the broker has stopped.
            let done = events.drain(..).try_for_each(|event| self.on_event(event));
            if done.and_then(|()| self.end_grants()).is_err() {
                return;
            }
        }
    }

    fn patience(&self) -> Duration {
        let first = self.ends.first().map(|(end_s, _)| Duration::from_secs(end_s.saturating_sub(unix_s())));
        first.map_or(WAIT_MAX, |first| first.clamp(Duration::from_millis(100), WAIT_MAX))
    }

    fn on_event(&mut self, event: Event) -> HubResult {
        match event {
            Event::Opened(opened) => self.opened(*opened),
            Event::Closed(closed) => {
                self.forget(closed.channel);
                Ok(())
            }
            Event::Control { channel, kind: ControlKind::Text, payload } => self.said(channel, &payload),
            // Nobody hears what is said otherwise: whoever sends it is told so.
            Event::Message { channel, .. } => self.answer(channel, &grammar::error("unheard", None)),
            _ => Ok(()),
        }
    }

    fn opened(&mut self, opened: Opened) -> HubResult {
        let (channel, grant) = (opened.channel, opened.grant.unwrap_or_default());
        let user = grant.user.as_deref().and_then(topic::of_user).map(Arc::from);
        for name in user.iter().chain(&grant.topics) {
            self.process.subscribe(channel, name.clone()).send()?;
        }
        self.hold(channel, grant);
        Ok(())
    }

    /// A channel may do this from now on.
    fn hold(&mut self, channel: ChannelId, grant: Arc<Grant>) {
        self.forget(channel);
        if let Some(end_s) = grant.expires_unix_s {
            self.ends.insert((end_s, channel));
        }
        self.sessions.insert(channel, grant);
    }

    fn forget(&mut self, channel: ChannelId) {
        if let Some(end_s) = self.sessions.remove(&channel).and_then(|grant| grant.expires_unix_s) {
            self.ends.remove(&(end_s, channel));
        }
    }

    /// Closes the channels whose grants have ended.
    fn end_grants(&mut self) -> HubResult {
        let now_s = unix_s();
        while let Some(&(end_s, channel)) = self.ends.first()
            && end_s <= now_s
        {
            self.ends.pop_first();
            self.process.close(channel, TOKEN_ENDED.0, TOKEN_ENDED.1).send()?;
        }
        Ok(())
    }

    fn said(&mut self, channel: ChannelId, text: &[u8]) -> HubResult {
        let Some(grant) = self.sessions.get(&channel).cloned() else { return Ok(()) };
        let ClientSaid { order, id } = match grammar::read(text) {
            Ok(Some(said)) => said,
            // An acknowledgement, which the shard has obeyed.
            Ok(None) => return Ok(()),
            Err(why) => return self.answer(channel, &grammar::error(why, None)),
        };
        let answer = match order {
            HubOrder::Subscribe { topic, envelope } => self.subscribe(channel, &grant, &topic, envelope)?,
            HubOrder::Unsubscribe { topic } => {
                self.process.unsubscribe(channel, &*topic).send()?;
                if let Some(twin) = grammar::twin(&topic) {
                    self.process.unsubscribe(channel, twin).send()?;
                }
                Ok(("unsubscribed", topic.into()))
            }
            HubOrder::Publish { topic, payload } if grant.may_publish(&topic) => {
                publish(&self.process, &topic, payload)?;
                Ok(("published", topic.into()))
            }
            HubOrder::Publish { .. } => Err("forbidden"),
            HubOrder::Renew { token } => self.renew(channel, &grant, &token),
        };
        let answer = match answer {
            Ok((done, what)) => grammar::done(done, &what, id),
            Err(why) => grammar::error(why, id),
        };
        self.answer(channel, &answer)
    }

    fn subscribe(
        &self,
        channel: ChannelId,
        grant: &Grant,
        name: &str,
        envelope: bool,
    ) -> Result<Result<(&'static str, serde_json::Value), &'static str>, PushError> {
        if !grant.may_subscribe(name) {
            return Ok(Err("forbidden"));
        }
        let twin = grammar::twin(name);
        let (into, out_of) = match (envelope, twin) {
            (true, None) => return Ok(Err("topic")),
            (true, Some(twin)) => (twin, Some(name.to_owned())),
            (false, twin) => (name.to_owned(), twin),
        };
        // In one form at a time: the answer is the last word.
        let joined = self.process.subscribe(channel, into).ask().send()?.wait(Duration::from_secs(5));
        if !joined.is_ok_and(|outcome| outcome.sent == 1) {
            return Ok(Err("too_many"));
        }
        if let Some(out_of) = out_of {
            self.process.unsubscribe(channel, out_of).send()?;
        }
        Ok(Ok(("subscribed", name.into())))
    }

    /// A new token of the same user takes the place of the one before. What it does not allow cannot be asked for any more;
    /// topics that are subscribed to stay so.
    fn renew(
        &mut self,
        channel: ChannelId,
        before: &Grant,
        token: &str,
    ) -> Result<(&'static str, serde_json::Value), &'static str> {
        let settings = self.broker.settings();
        let door = settings.hub.as_ref().ok_or("forbidden")?;
        let grant = door.open(token, unix_s()).map_err(|_| "token")?;
        if grant.user != before.user {
            return Err("user");
        }
        let expires = grant.expires_unix_s;
        self.hold(channel, Arc::new(grant));
        Ok(("renewed", expires.into()))
    }

    fn answer(&self, channel: ChannelId, text: &str) -> HubResult {
        self.process.push(channel, Message::control_text(text)).send()
    }
}

/// Publishes to a topic of the hub, in both forms in which it may be subscribed to.
fn publish(process: &Process, name: &str, payload: PublishedPayload) -> HubResult {
    if let Some(enveloped) = envelope(|name| process.subscribers(name), name, &payload) {
        process.broadcast(Message::text(enveloped.1)).to(Audience::Topic(enveloped.0.into())).send()?;
    }
    let message = match payload {
        PublishedPayload::Text(text) | PublishedPayload::Json(text) => Message::text(text),
        PublishedPayload::Binary(bytes) => Message::binary(bytes),
    };
    process.broadcast(message).to(Audience::Topic(name.into())).send()
}

/// The topic and text of a message for those who have subscribed with an envelope, if there are any.
pub(crate) fn envelope(
    subscribers: impl Fn(&str) -> usize,
    name: &str,
    payload: &PublishedPayload,
) -> Option<(String, String)> {
    let twin = grammar::twin(name).filter(|twin| subscribers(twin) > 0)?;
    let text = grammar::enveloped(name, payload);
    Some((twin, text))
}

/// What a message is, for an envelope.
pub(crate) fn payload_of(message: &Message) -> PublishedPayload {
    let bytes: &Bytes = message.payload();
    match std::str::from_utf8(bytes) {
        Ok(text) if message.is_text() => PublishedPayload::Text(text.to_owned()),
        _ => PublishedPayload::Binary(bytes.clone()),
    }
}

/// The same of a message that is JSON.
pub(crate) fn json_of(message: &Message) -> PublishedPayload {
    match std::str::from_utf8(message.payload()) {
        Ok(json) => PublishedPayload::Json(json.to_owned()),
        Err(_) => payload_of(message),
    }
}

fn unix_s() -> u64 {
    // A clock before 1970 is the operator's to set.
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}
