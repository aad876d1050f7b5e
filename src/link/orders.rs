//! The orders of a process → calls of the broker, on the thread that reads them.
//!
//! Pushes that were read together are submitted together. Nothing here waits for a client; a full inbox is waited for,
//! and meanwhile the peer is not read.

use super::config::ASKS_MAX;
use super::convert;
use super::frame::LinkFrame;
use super::session::{FrameMark, Session};
use super::stop::Stop;
use super::wire::{Audience, FrameKind, FromPeer, OrderFailure, TOPICS_MAX, ToPeer};
use crate::broker::{
    Batch, BindPathError, ChannelAt, DeliveryOptions, GrantError, InvalidMessage, Message, OnNodes, Outcome, Policy,
    ProcessHandle, RequestId,
};
use crate::channel::ChannelId;
use crate::gateway::{HttpRule, WebSocketRule};
use crate::http::Content;
use crate::node::Address;
use crate::words::topic;
use bytes::Bytes;
use std::sync::{Arc, Mutex, PoisonError};

/// The longest address of a guest, many times what names of nodes and processes have.
const ADDRESS_BYTES_MAX: usize = 1024;

/// RFC 6455 7.1.5: the client is sent no code.
const WITHOUT_CODE: u16 = 1005;

/// Obeys the orders of one process.
pub(super) struct ProcessOrders<'a> {
    session: &'a Arc<Session>,
    owner: &'a ProcessHandle,
    batch: Batch,
    /// Orders that are not counted as taken in yet: those in the batch, and what came between.
    taken: u64,
}

impl<'a> ProcessOrders<'a> {
    pub(super) fn new(session: &'a Arc<Session>, owner: &'a ProcessHandle) -> Self {
        Self { session, owner, batch: owner.batch(), taken: 0 }
    }

    /// Hands over what was collected, and acknowledges it. `now`: nothing else was read yet.
    pub(super) fn flush(&mut self, now: bool) -> Result<(), Stop> {
        self.batch.flush()?;
        self.session.frames.took(std::mem::take(&mut self.taken), now);
        Ok(())
    }

    /// Obeys one order.
    pub(super) fn execute(&mut self, order: FromPeer, blob: Bytes) -> Result<(), Stop> {
        self.taken += 1;
        if let FromPeer::Push { channel, kind, policy: None, ask: None, node: None, .. } = order {
            return self.push(channel, kind, blob);
        }
        // Behind the pushes before it.
        self.batch.flush()?;
        match order {
            FromPeer::Push { channel, kind, policy, ask, node, as_guest, ask_nodes } => {
                let delivery = self.delivery(policy, ask, ask_nodes)?;
                let to = (ChannelId::new(channel), node, as_guest);
                self.push_as(to, delivery, convert::message(kind, blob), (kind, ask))?;
            }
            FromPeer::PushMany { to: Audience::Topic(name), ask, .. } if topic::check(&name).is_err() => {
                self.refuse_topic(&name, ask)?;
            }
            FromPeer::PushMany { to, except, kind, policy, ask, everywhere, ask_nodes } => {
                let delivery = self.delivery(policy, ask, ask_nodes)?;
                let except = except.into_iter().map(ChannelId::new);
                match convert::message(kind, blob) {
                    Some(Ok(message)) => {
                        let broadcast = self.owner.broadcast(message).to(to).except_all(except);
                        broadcast.everywhere_if(everywhere).delivered(delivery).send()?
                    }
                    Some(Err(invalid)) => self.refuse_message(ask, invalid)?,
                    None => return Err(no_push(kind)),
                }
            }
            FromPeer::Subscribe { .. } | FromPeer::Unsubscribe { .. } | FromPeer::ListTopics { .. } => {
                self.execute_of_topics(order)?;
            }
            FromPeer::Grant { guest, channel, revoke, ask } => self.execute_grant(&guest, channel, !revoke, ask)?,
            FromPeer::Close { channel, code, reason, ask } => {
                let delivery = self.delivery(None, ask, false)?;
                let code = code.unwrap_or(WITHOUT_CODE);
                self.owner.close(ChannelId::new(channel), code, &reason).delivered(delivery).send()?;
            }
            FromPeer::Bind { .. } => self.execute_bind(order)?,
            FromPeer::Unbind { path, ask } => self.bound(ask, |owner| owner.unbind(&path))?,
            FromPeer::BindHttp { path, authenticated, local_only, secure_subdomain, content, ask } => {
                let content = content.map(|mime| Arc::new(Content::new(Some(&mime), blob)));
                let rule = HttpRule { authenticated, local_only, secure_subdomain, content };
                self.bound(ask, |owner| owner.bind_http(&path, rule))?;
            }
            FromPeer::UnbindHttp { path, ask } => self.bound(ask, |owner| owner.unbind_http(&path))?,
            FromPeer::Respond { request, status, headers } => {
                self.owner.respond(RequestId(request), status).headers(headers).body(blob).send()?;
            }
            other => return Err(Stop::Violation(format!("{} is no order of a process", name(&other)))),
        }
        Ok(())
    }

    /// One push with all its options.
    fn push_as(
        &self,
        (channel, node, as_guest): (ChannelId, Option<String>, bool),
        delivery: DeliveryOptions,
        message: Option<Result<Message, InvalidMessage>>,
        (kind, ask): (FrameKind, Option<u64>),
    ) -> Result<(), Stop> {
        match message {
            Some(Ok(message)) => {
                let push = match node.map(|node| ChannelAt { node: node.into(), channel }) {
                    None => self.owner.push(channel, message),
                    Some(at) if as_guest => self.owner.push_as_guest(&at, message),
                    Some(at) => self.owner.push_at(&at, message),
                };
                Ok(push.delivered(delivery).send()?)
            }
            Some(Err(invalid)) => self.refuse_message(ask, invalid),
            None => Err(no_push(kind)),
        }
    }

    fn execute_bind(&self, order: FromPeer) -> Result<(), Stop> {
        if let FromPeer::Bind {
            path,
            authenticated,
            secure_subdomain,
            extension,
            deflate,
            resume,
            resume_events,
            sse,
            ask,
        } = order
        {
            let hub = false;
            let rule =
                WebSocketRule { authenticated, secure_subdomain, extension, deflate, resume, hub, resume_events, sse };
            self.bound(ask, |owner| owner.bind(&path, rule))?;
        }
        Ok(())
    }

    fn execute_of_topics(&self, order: FromPeer) -> Result<(), Stop> {
        match order {
            FromPeer::Subscribe { topic: name, ask, .. } | FromPeer::Unsubscribe { topic: name, ask, .. }
                if topic::check(&name).is_err() =>
            {
                self.refuse_topic(&name, ask)?;
            }
            FromPeer::Subscribe { channel, topic, ask } => {
                let delivery = self.delivery(None, ask, false)?;
                self.owner.subscribe(ChannelId::new(channel), topic).delivered(delivery).send()?;
            }
            FromPeer::Unsubscribe { channel, topic, ask } => {
                let delivery = self.delivery(None, ask, false)?;
                self.owner.unsubscribe(ChannelId::new(channel), topic).delivered(delivery).send()?;
            }
            FromPeer::ListTopics { prefix, after, limit, ask } => {
                self.ask()?;
                let limit = limit.min(TOPICS_MAX) as usize;
                let topics = self.owner.topics(&prefix, after.as_deref(), limit).into_iter();
                let topics = topics.map(|report| (report.topic.to_string(), report.subscribers as u64)).collect();
                self.answer(ToPeer::Topics { ask, topics })?;
            }
            _ => unreachable!("only orders about topics come here"),
        }
        Ok(())
    }

    /// Lets a process of another node in, or no more: to one channel, which is answered with its outcome, or to all.
    fn execute_grant(&self, guest: &str, channel: Option<u32>, is_granted: bool, ask: Option<u64>) -> Result<(), Stop> {
        let is_address = guest.len() <= ADDRESS_BYTES_MAX && guest.parse::<Address>().is_ok();
        let guest: Arc<str> = guest.into();
        let failed = match channel {
            _ if !is_address => Some((OrderFailure::GuestAddress, "a guest is named NODE@PROCESS:PACKAGE:PUBLISHER")),
            Some(channel) => {
                let delivery = self.delivery(None, ask, false)?;
                let mut batch = self.owner.batch();
                batch.add(self.owner.grant(ChannelId::new(channel), guest, is_granted, delivery));
                return Ok(batch.flush()?);
            }
            None => match self.owner.grant_all(&guest, is_granted) {
                Ok(()) => None,
                Err(GrantError::TooMany) => Some((OrderFailure::TooManyGuests, "guest limit reached: revoke others")),
                Err(GrantError::Stopped) => return Err(Stop::Stopped),
            },
        };
        match (failed, ask) {
            (None, None) => Ok(()),
            (Some((_, reason)), None) => {
                tracing::warn!(process = %self.owner.id(), reason, "a grant was refused; the peer did not ask for the answer");
                Ok(())
            }
            (None, Some(ask)) => self.ask().and_then(|()| self.answer(ToPeer::Done { ask })),
            (Some((code, reason)), Some(ask)) => {
                let reason = reason.to_owned();
                self.ask().and_then(|()| self.answer(ToPeer::Failed { ask, code, reason }))
            }
        }
    }

    fn push(&mut self, channel: u32, kind: FrameKind, blob: Bytes) -> Result<(), Stop> {
        match convert::message(kind, blob) {
            Some(Ok(message)) => {
                self.batch.push(ChannelId::new(channel), message, DeliveryOptions::default());
                if self.batch.is_full() { Ok(self.batch.flush()?) } else { Ok(()) }
            }
            Some(Err(invalid)) => self.refuse_message(None, invalid),
            None => Err(no_push(kind)),
        }
    }

    /// How a push or close is delivered. A question is answered once its outcome is known, and not among the events: a
    /// peer may await it while it handles one, and those behind that may fill the window. One that other nodes are
    /// asked too is answered once both are known.
    fn delivery(&self, policy: Option<Policy>, ask: Option<u64>, ask_nodes: bool) -> Result<DeliveryOptions, Stop> {
        let delivery = match ask {
            None => DeliveryOptions::default(),
            Some(ask) => {
                self.ask()?;
                match ask_nodes {
                    false => self.asking(ask),
                    true => self.asking_nodes(ask),
                }
            }
        };
        Ok(delivery.with_policy(policy))
    }

    fn asking(&self, ask: u64) -> DeliveryOptions {
        let session = self.session.clone();
        DeliveryOptions::telling_here(move |outcome| {
            let head = ToPeer::Outcome(convert::outcome_out(ask, &outcome));
            // The only error is that the session is over. Shards come by here: they do not write.
            let _ = session.frames.send_later(LinkFrame::bare(&head), FrameMark::Answer);
        })
    }

    fn asking_nodes(&self, ask: u64) -> DeliveryOptions {
        let halves = Arc::<Mutex<(Option<Outcome>, Option<OnNodes>)>>::default();
        let (session, of_here) = (self.session.clone(), halves.clone());
        let answer = move |halves: &(Option<Outcome>, Option<OnNodes>)| {
            if let (Some(here), Some(nodes)) = halves {
                let head = ToPeer::Outcome(convert::nodes_out(ask, here, nodes));
                // The only error is that the session is over. Shards come by here: they do not write.
                let _ = session.frames.send_later(LinkFrame::bare(&head), FrameMark::Answer);
            }
        };
        let answer_here = answer.clone();
        let here = move |outcome| {
            let mut halves = of_here.lock().unwrap_or_else(PoisonError::into_inner);
            halves.0 = Some(outcome);
            answer_here(&halves);
        };
        let nodes = move |nodes| {
            let mut halves = halves.lock().unwrap_or_else(PoisonError::into_inner);
            halves.1 = Some(nodes);
            answer(&halves);
        };
        DeliveryOptions::telling(here, nodes)
    }

    fn ask(&self) -> Result<(), Stop> {
        match self.session.frames.ask(ASKS_MAX) {
            true => Ok(()),
            false => Err(Stop::Violation(format!(
                "more than {ASKS_MAX} questions at a time, or answers that are not acknowledged"
            ))),
        }
    }

    /// Binds or unbinds, and answers if that was asked.
    fn bound(
        &self,
        ask: Option<u64>,
        change: impl FnOnce(&ProcessHandle) -> Result<(), BindPathError>,
    ) -> Result<(), Stop> {
        if ask.is_some() {
            self.ask()?;
        }
        let bound = change(self.owner);
        if let (Err(error), None) = (&bound, ask) {
            tracing::warn!(process = %self.owner.id(), %error, "a path was not bound; the peer did not ask for the answer");
        }
        match (bound, ask) {
            (Err(BindPathError::Stopped), None) => Err(Stop::Stopped),
            (_, None) => Ok(()),
            (Ok(()), Some(ask)) => self.answer(ToPeer::Done { ask }),
            (Err(error), Some(ask)) => {
                let (code, reason) = (convert::bind_failure(&error), error.to_string());
                self.answer(ToPeer::Failed { ask, code, reason })
            }
        }
    }

    /// The question, if there was one, has been counted when its delivery was made.
    fn refuse_message(&self, ask: Option<u64>, invalid: InvalidMessage) -> Result<(), Stop> {
        match ask {
            Some(ask) => {
                self.answer(ToPeer::Failed { ask, code: convert::invalid(invalid), reason: invalid.to_string() })
            }
            None => {
                tracing::warn!(process = %self.owner.id(), %invalid, "a push was refused; the peer did not ask for the answer");
                Ok(())
            }
        }
    }

    /// A name that no topic has; the question, if there was one, has not been counted yet.
    fn refuse_topic(&self, name: &str, ask: Option<u64>) -> Result<(), Stop> {
        let Err(invalid) = topic::check(name) else { return Ok(()) };
        match ask {
            Some(ask) => {
                self.ask()?;
                self.answer(ToPeer::Failed { ask, code: OrderFailure::TopicName, reason: invalid.to_string() })
            }
            None => {
                tracing::warn!(process = %self.owner.id(), %invalid, "an order was refused; the peer did not ask for the answer");
                Ok(())
            }
        }
    }

    fn answer(&self, head: ToPeer) -> Result<(), Stop> {
        self.session.frames.send_now(LinkFrame::bare(&head), FrameMark::Answer).map_err(|_| Stop::Stopped)
    }
}

fn no_push(kind: FrameKind) -> Stop {
    Stop::Violation(format!("{kind:?} is not pushed: close"))
}

/// The frame's name, without its contents.
pub(super) fn name(frame: &FromPeer) -> &'static str {
    match frame {
        FromPeer::Hello(_) => "hello",
        FromPeer::Ack { .. } => "ack",
        FromPeer::Beat {} => "beat",
        FromPeer::Bye { .. } => "bye",
        FromPeer::Push { .. } => "push",
        FromPeer::PushMany { .. } => "push_many",
        FromPeer::Grant { .. } => "grant",
        FromPeer::Subscribe { .. } => "subscribe",
        FromPeer::Unsubscribe { .. } => "unsubscribe",
        FromPeer::ListTopics { .. } => "list_topics",
        FromPeer::Close { .. } => "close",
        FromPeer::Bind { .. } => "bind",
        FromPeer::Unbind { .. } => "unbind",
        FromPeer::BindHttp { .. } => "bind_http",
        FromPeer::UnbindHttp { .. } => "unbind_http",
        FromPeer::Respond { .. } => "respond",
        FromPeer::Kernel(_) => "kernel",
        FromPeer::LoggedIn(_) => "logged_in",
    }
}
