//! What a process asks for → calls of the broker, and what became of it → the answer (node contract, section 3).
//!
//! A refusal is sent even if nobody asked, so under a kernel an unasked push reports its failure, by the request's id.
//!
//! Invariants: nothing here waits for a client; every action that somebody wants to hear of is answered exactly once,
//! at once or when its outcome comes back under its ticket. The contract has no error for a full inbox, so pushes wait
//! for room: shards drain at CPU speed.

use super::acting::Acting;
use super::action::WsMessageType;
use super::dispatch::{Action, ActionRequest, Audience, Reply};
use super::error::{HttpServerError, PushCounts};
use super::identity::Address;
use super::message::{KernelMessage, LazyLoadBlob, Response};
use super::request::HttpResponse;
use crate::broker::{self, BindPathError, InvalidMessage, Message, Outcome, PushError, RequestId};
use crate::gateway::{HttpRule, WebSocketRule};
use crate::http::Content;
use crate::process_id::ProcessId;
use bytes::Bytes;
use std::collections::HashMap;
use std::sync::Arc;

/// RFC 6455 7.1.5, "no status": nodes close with an empty close frame.
pub(crate) const CLOSE_WITHOUT_CODE: u16 = 1005;

/// The actions whose outcome has not come back yet, by ticket.
#[derive(Debug)]
pub(crate) struct Pending {
    waiting: HashMap<u64, (Asked, Reply)>,
    tickets: u64,
    unasked: Unasked,
}

/// What is heard of a refused push or close that nobody asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unasked {
    /// Nothing: a response that nobody waits for would be dropped.
    Silent,
    /// `Event::Failed` with the id of the request, for [`refusal`].
    Failures,
}

#[derive(Debug, Clone, Copy)]
enum Asked {
    Push,
    PushMany,
    Close,
}

/// The answer to an unasked push or close of `process` that failed.
pub(crate) fn refusal(id: u64, our_node: &str, process: &ProcessId) -> KernelMessage {
    Reply::unasked(id, Address::new(our_node, process)).refused(HttpServerError::WsChannelNotFound)
}

/// A channel that is closing takes no more frames: for the process it is gone.
fn push_failed(outcome: &Outcome) -> bool {
    outcome.not_found + outcome.not_owner + outcome.closed > 0
}

/// An unknown channel is closed already (node contract, section 3).
fn close_failed(outcome: &Outcome) -> bool {
    outcome.not_owner > 0
}

impl Pending {
    pub fn new(unasked: Unasked) -> Self {
        Self { waiting: HashMap::new(), tickets: 0, unasked }
    }

    /// Does what `owner` asks. Answers now, or under [`settle`](Self::settle), or not at all if nobody asked.
    ///
    /// # Errors
    /// The broker has stopped.
    pub fn perform(
        &mut self,
        owner: &dyn Acting,
        request: ActionRequest,
    ) -> Result<Option<KernelMessage>, broker::PushError> {
        let ActionRequest { action, reply, .. } = request;
        let asked = match &action {
            Action::Push { .. } => Asked::Push,
            Action::PushMany { .. } => Asked::PushMany,
            Action::Close { .. } => Asked::Close,
            _ => return bind(owner, action, reply),
        };
        let delivery = if reply.wants_success() {
            self.tickets += 1;
            self.waiting.insert(self.tickets, (asked, reply));
            broker::Delivery::default().asking_event(self.tickets)
        } else {
            self.unasked_delivery(asked, reply.id())
        };
        let sent = match action {
            Action::Push { channel, message_type, bytes } => match judged(message_type, bytes) {
                Some(message) => owner.push(channel, message, delivery),
                None => owner.close(channel, CLOSE_WITHOUT_CODE, "", delivery),
            },
            Action::PushMany { audience, message_type, bytes } => {
                let message = judged(message_type, bytes).expect("pushes of type Close to many were refused");
                push_many(owner, audience, message, delivery)
            }
            Action::Close { channel } => owner.close(channel, CLOSE_WITHOUT_CODE, "", delivery),
            _ => unreachable!("binds were done above"),
        };
        sent.map(|()| None)
    }

    fn unasked_delivery(&self, asked: Asked, id: u64) -> broker::Delivery {
        match (self.unasked, asked) {
            (Unasked::Silent, _) | (_, Asked::PushMany) => broker::Delivery::default(),
            (Unasked::Failures, Asked::Push) => broker::Delivery::default().asking_failure(id, push_failed),
            (Unasked::Failures, Asked::Close) => broker::Delivery::default().asking_failure(id, close_failed),
        }
    }

    /// The answer to the action of this ticket.
    pub fn settle(&mut self, ticket: u64, outcome: &Outcome) -> Option<KernelMessage> {
        let (asked, reply) = self.waiting.remove(&ticket)?;
        let gone = match asked {
            Asked::PushMany => return reply.counted(counts(outcome)),
            Asked::Push => push_failed(outcome),
            Asked::Close => close_failed(outcome),
        };
        if gone { Some(reply.refused(HttpServerError::WsChannelNotFound)) } else { reply.done() }
    }
}

/// The message of a push; none for Close.
///
/// # Errors
/// The bytes are not what such a message may hold.
pub(crate) fn message(message_type: WsMessageType, bytes: impl Into<Bytes>) -> Result<Option<Message>, InvalidMessage> {
    match message_type {
        WsMessageType::Text => Message::text_bytes(bytes).map(Some),
        WsMessageType::Binary => Ok(Some(Message::binary(bytes))),
        WsMessageType::Ping => Message::ping(bytes).map(Some),
        WsMessageType::Pong => Message::pong(bytes).map(Some),
        WsMessageType::Close => Ok(None),
    }
}

fn judged(message_type: WsMessageType, bytes: Vec<u8>) -> Option<Message> {
    message(message_type, bytes).expect("`dispatch` has judged the bytes")
}

fn push_many(
    owner: &dyn Acting,
    audience: Audience,
    message: Message,
    delivery: broker::Delivery,
) -> Result<(), PushError> {
    let (audience, except) = match audience {
        Audience::Channels(channels) => (broker::Audience::Channels(channels), Vec::new()),
        Audience::Path { path, except } => (broker::Audience::Path(path.into()), except),
    };
    owner.push_many(audience, &except, message, delivery)
}

fn counts(outcome: &Outcome) -> PushCounts {
    PushCounts {
        sent: outcome.sent as u64,
        queued: outcome.queued as u64,
        queued_bytes: outcome.queued_bytes as u64,
        conflated: outcome.conflated as u64,
        dropped: outcome.dropped as u64,
        closed: outcome.closed as u64,
        not_found: outcome.not_found as u64,
        not_owner: outcome.not_owner as u64,
    }
}

fn bind(owner: &dyn Acting, action: Action, reply: Reply) -> Result<Option<KernelMessage>, PushError> {
    let bound = match action {
        Action::BindHttp { path, content, authenticated, local_only, secure } => {
            let content =
                content.map(|LazyLoadBlob { mime, bytes }| Arc::new(Content::new(mime.as_deref(), bytes.into())));
            owner.bind_http(&path, HttpRule { authenticated, local_only, secure_subdomain: secure, content })
        }
        Action::UnbindHttp { path } => owner.unbind_http(&path),
        Action::BindWebSocket { path, authenticated, extension, secure } => owner.bind(
            &path,
            WebSocketRule { authenticated, secure_subdomain: secure, extension, ..WebSocketRule::default() },
        ),
        Action::UnbindWebSocket { path } => owner.unbind(&path),
        _ => unreachable!("only binds come here"),
    };
    match bound {
        Ok(()) => Ok(reply.done()),
        Err(BindPathError::Refused(crate::gateway::BindError::Process)) => {
            Ok(Some(reply.refused(HttpServerError::InvalidSourceProcess)))
        }
        Err(BindPathError::Refused(_)) => Ok(Some(reply.refused(HttpServerError::MalformedRequest))),
        Err(BindPathError::Stopped) => Err(PushError::Stopped),
    }
}

/// Answers the HTTP request of this id with a process' Response. One that is no [`HttpResponse`] gives 500.
///
/// # Errors
/// The broker has stopped.
pub(crate) fn respond(
    owner: &dyn Acting,
    id: u64,
    response: &Response,
    blob: Option<LazyLoadBlob>,
) -> Result<(), PushError> {
    let Ok(HttpResponse { status, headers }) = serde_json::from_slice(&response.body) else {
        return owner.respond(RequestId(id), 500, Vec::new(), Bytes::new());
    };
    let headers = headers.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
    owner.respond(RequestId(id), status, headers, blob.map(|blob| blob.bytes.into()).unwrap_or_default())
}
