//! Requests of a process → calls of the broker, and their outcome → the answer (node contract, section 3).
//!
//! A refusal is sent even if no response was expected, so under a kernel such a push reports its failure, by the
//! request's id.
//!
//! Invariants: nothing here waits for a client; every action that expects an answer is answered exactly once, at once
//! or when its outcome comes back under its ticket. The contract has no error for a full inbox, so pushes wait for
//! room: shards drain at CPU speed.

use super::acting::{Acting, ActingOrders, Collecting};
use super::dispatch::{ActionRequest, CheckedAction, Reply};
use super::error::{HttpServerError, PushCounts};
use super::events::EventMessages;
use super::message::{KernelMessage, LazyLoadBlob, Response};
use super::request::HttpResponse;
use crate::admission::{Charge, HeapBytes, table_bytes};
use crate::broker::{
    self, Batch, BindPathError, DeliveryOptions, GrantError, KernelHandle, Outcome, ProcessHandle, PushError, RequestId,
};
use crate::channel::ChannelId;
use crate::gateway::{HttpRule, WebSocketRule};
use crate::http::{Content, HeaderFields};
use crate::process_id::ProcessId;
use crate::words::audience::Audience;
use bytes::Bytes;
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// RFC 6455 7.1.5, "no status": nodes close with an empty close frame.
pub(crate) const CLOSE_WITHOUT_CODE: u16 = 1005;

/// The most actions whose outcome or answer is outstanding. A node kernel with more is not reading, and waiting for it
/// could be a deadlock.
pub(crate) const ASKED_MAX: usize = 16 * 1024;

/// The most bytes of the addresses to which their answers go: a process chooses how long its own is.
const ADDRESSES_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Actions whose outcome is outstanding, by ticket. Shared by the task that takes actions in and the thread that reads
/// outcomes; actions that expect no answer are not kept here.
#[derive(Debug)]
pub(crate) struct Pending {
    waiting: Mutex<WaitingAction>,
    unasked: Unasked,
}

#[derive(Debug, Default)]
struct WaitingAction {
    /// The last one.
    tickets: u64,
    /// Actions that get no answer.
    unanswered: usize,
    by_ticket: HashMap<u64, (AskedOrder, Reply)>,
    address_bytes: usize,
    /// None: they are those of a process in this program, and its own.
    charge: Option<Charge>,
}

impl WaitingAction {
    /// Returns whether the answer to one more may be outstanding.
    fn has_room(&self, address_bytes: usize) -> bool {
        self.by_ticket.len() < ASKED_MAX && self.address_bytes + address_bytes <= ADDRESSES_BYTES_MAX
    }

    fn take(&mut self, ticket: u64) -> Option<(AskedOrder, Reply)> {
        let (asked, reply) = self.by_ticket.remove(&ticket)?;
        self.address_bytes -= reply.heap_bytes();
        if self.by_ticket.is_empty() && self.by_ticket.capacity() > PLACES_KEPT {
            self.by_ticket = HashMap::new();
        }
        self.settle();
        Some((asked, reply))
    }

    /// Charges what waits now. Room for some is kept when there are none.
    fn settle(&mut self) {
        let places = if self.by_ticket.is_empty() { 0 } else { self.by_ticket.capacity() };
        let bytes = table_bytes::<u64, (AskedOrder, Reply)>(places) + self.address_bytes;
        self.charge.iter_mut().for_each(|charge| charge.resize(bytes));
    }
}

/// Room for so many actions is kept when there are none.
const PLACES_KEPT: usize = 1024;

/// The answer to a refused push or close that expects none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unasked {
    /// Nothing: a response that is not expected would be dropped.
    Silent,
    /// `Event::Failed` with the id of the request, for [`refusal`].
    Failures,
}

#[derive(Debug, Clone, Copy)]
enum AskedOrder {
    Push,
    PushMany,
    Subscribe,
    Close,
    Grant,
}

/// The answer to an unasked push, subscription or close of `process` that failed.
pub(crate) fn refusal(id: u64, outcome: &Outcome, events: &EventMessages, process: &ProcessId) -> KernelMessage {
    let error = match outcome.dropped {
        0 => HttpServerError::WsChannelNotFound,
        _ => HttpServerError::TooManySubscriptions,
    };
    Reply::unasked(id, events.address_of(process), events.name()).refused(error)
}

impl Pending {
    /// Nothing is outstanding; `charge` is of what will be.
    pub(crate) fn new(unasked: Unasked, charge: Option<Charge>) -> Self {
        // Over a link, answers to a predecessor come too, under tickets that were others.
        let tickets = RandomState::new().hash_one(()) >> 2;
        Self { waiting: Mutex::new(WaitingAction { tickets, charge, ..WaitingAction::default() }), unasked }
    }

    /// Does what `owner` asks. Answers now, or under [`settle`](Self::settle), or not at all if no answer is expected.
    ///
    /// # Errors
    /// The broker has stopped.
    pub(crate) fn perform(
        &self,
        owner: &dyn Acting,
        request: ActionRequest,
    ) -> Result<Option<KernelMessage>, PushError> {
        match self.order(owner, request)? {
            Ordered::Done => Ok(None),
            Ordered::Else(ActionRequest {
                action: CheckedAction::Grant { channel: Some(channel), guest, is_granted },
                reply,
            }) => {
                let delivery = self.ticket(AskedOrder::Grant, reply);
                owner.grant(channel, guest.to_string().into(), is_granted, delivery).map(|()| None)
            }
            Ordered::Else(ActionRequest {
                action: CheckedAction::Grant { channel: None, guest, is_granted },
                reply,
            }) => granted(owner.grant_all(&guest.to_string().into(), is_granted), reply),
            Ordered::Else(ActionRequest { action, reply }) => bind(owner, action, reply),
        }
    }

    /// Does what `owner` asks of channels.
    fn order(&self, owner: &dyn ActingOrders, request: ActionRequest) -> Result<Ordered, PushError> {
        let ActionRequest { action, reply } = request;
        match action {
            CheckedAction::Push { channel, message } => {
                owner.push(channel, message, self.delivery(AskedOrder::Push, reply))?
            }
            CheckedAction::PushMany { audience, except, message } => {
                push_many(owner, audience, &except, message, self.delivery(AskedOrder::PushMany, reply))?;
            }
            CheckedAction::Subscribe { channel, topic, is_out } => {
                owner.subscribe(channel, &topic, is_out, self.delivery(AskedOrder::Subscribe, reply))?;
            }
            CheckedAction::Close { channel } => {
                owner.close(channel, CLOSE_WITHOUT_CODE, "", self.delivery(AskedOrder::Close, reply))?;
            }
            action @ (CheckedAction::BindHttp { .. }
            | CheckedAction::UnbindHttp { .. }
            | CheckedAction::BindWebSocket { .. }
            | CheckedAction::UnbindWebSocket { .. }
            | CheckedAction::Grant { .. }) => return Ok(Ordered::Else(ActionRequest { action, reply })),
        }
        Ok(Ordered::Done)
    }

    /// Collects what `owner` asks of channels. What it asks besides is a [`PathChange`].
    pub(crate) fn collect(
        &self,
        owner: &ProcessHandle,
        batch: &mut Batch,
        request: ActionRequest,
    ) -> Option<PathChange> {
        let collected = self.order(&Collecting::new(owner, batch), request);
        match collected.expect("collecting never fails") {
            Ordered::Done => None,
            Ordered::Else(ActionRequest {
                action: CheckedAction::Grant { channel: Some(channel), guest, is_granted },
                reply,
            }) => {
                let guest = guest.to_string().into();
                batch.add(owner.grant(channel, guest, is_granted, self.ticket(AskedOrder::Grant, reply)));
                None
            }
            Ordered::Else(request) => Some(PathChange { owner: owner.clone(), request }),
        }
    }

    /// Collects an order of a process on another node: pushes to channels to which it was let in. It has no path here,
    /// so its broadcasts reach no channel. Returns the answer, if there is one at once.
    pub(crate) fn collect_of_guest(
        &self,
        kernel: &KernelHandle,
        batch: &mut Batch,
        request: ActionRequest,
    ) -> Option<KernelMessage> {
        let guest: Arc<str> = request.requester().to_string().into();
        let ActionRequest { action, reply } = request;
        let (channels, message, asked) = match action {
            CheckedAction::Push { channel, message } => (vec![channel], message, AskedOrder::Push),
            CheckedAction::PushMany { audience: Audience::Channels(channels), message, .. } => {
                (channels, message, AskedOrder::PushMany)
            }
            CheckedAction::PushMany { .. } => return reply.counted(PushCounts::default()),
            CheckedAction::Close { .. } | CheckedAction::Subscribe { .. } | CheckedAction::Grant { .. } => {
                return Some(reply.refused(HttpServerError::WsChannelNotFound));
            }
            // Refused already.
            CheckedAction::BindHttp { .. }
            | CheckedAction::UnbindHttp { .. }
            | CheckedAction::BindWebSocket { .. }
            | CheckedAction::UnbindWebSocket { .. } => {
                return Some(reply.refused(HttpServerError::InvalidSourceProcess));
            }
        };
        batch.add(kernel.push_as_guest(guest, channels, message, self.ticket(asked, reply)));
        None
    }

    /// How the outcome of a push comes back.
    pub(crate) fn delivery_of_push(&self, reply: Reply) -> DeliveryOptions {
        self.delivery(AskedOrder::Push, reply)
    }

    /// How the outcome of an action comes back.
    fn delivery(&self, asked: AskedOrder, reply: Reply) -> DeliveryOptions {
        if reply.wants_success() {
            return self.ticket(asked, reply);
        }
        match (self.unasked, asked) {
            (Unasked::Failures, AskedOrder::Push | AskedOrder::Subscribe | AskedOrder::Close) => {
                DeliveryOptions::asking_failure(reply.id())
            }
            _ => DeliveryOptions::default(),
        }
    }

    /// Requests the order's outcome, unless far too many outcomes are unread.
    fn ticket(&self, asked: AskedOrder, reply: Reply) -> DeliveryOptions {
        let mut waiting = self.waiting();
        let address_bytes = reply.heap_bytes();
        if !waiting.has_room(address_bytes) {
            if waiting.unanswered.is_multiple_of(ASKED_MAX) {
                let count = waiting.by_ticket.len();
                tracing::warn!("{count} answers of the HTTP server wait to be taken: further actions are not answered");
            }
            waiting.unanswered += 1;
            return DeliveryOptions::default();
        }
        waiting.tickets += 1;
        let ticket = waiting.tickets;
        waiting.by_ticket.insert(ticket, (asked, reply));
        waiting.address_bytes += address_bytes;
        waiting.settle();
        DeliveryOptions::asking_event(ticket)
    }

    /// The answer to the action of this ticket.
    pub(crate) fn settle(&self, ticket: u64, outcome: &Outcome) -> Option<KernelMessage> {
        let (asked, reply) = self.waiting().take(ticket)?;
        let gone = match asked {
            AskedOrder::PushMany => return reply.counted(outcome.into()),
            // A channel that is closing takes no more frames: for the process it is gone.
            AskedOrder::Push => outcome.not_found + outcome.not_owner + outcome.closed > 0,
            AskedOrder::Subscribe if outcome.dropped > 0 => {
                return Some(reply.refused(HttpServerError::TooManySubscriptions));
            }
            AskedOrder::Subscribe => outcome.sent == 0,
            // An unknown channel is closed already (node contract, section 3).
            AskedOrder::Close => outcome.not_owner > 0,
            AskedOrder::Grant if outcome.dropped > 0 => return Some(reply.refused(HttpServerError::TooManyGrants)),
            AskedOrder::Grant => outcome.sent == 0,
        };
        if gone { Some(reply.refused(HttpServerError::WsChannelNotFound)) } else { reply.done() }
    }

    fn waiting(&self) -> MutexGuard<'_, WaitingAction> {
        // The map that a panic left is whole: each change is one call.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The result of a request that may be an order.
enum Ordered {
    /// It was.
    Done,
    /// It is something else, and was left alone.
    Else(ActionRequest),
}

/// A change of paths, or of the guests of a whole process. It takes effect on every shard before it is answered, so it
/// waits for them: not on a thread that others wait for.
pub(crate) struct PathChange {
    owner: ProcessHandle,
    request: ActionRequest,
}

impl PathChange {
    /// Makes it, and gives the answer, if one is expected or it was refused.
    ///
    /// # Errors
    /// The broker has stopped.
    pub(crate) fn make(self) -> Result<Option<KernelMessage>, PushError> {
        let Self { owner, request: ActionRequest { action, reply } } = self;
        let CheckedAction::Grant { guest, is_granted, .. } = action else { return bind(&owner, action, reply) };
        granted(owner.grant_all(&guest.to_string().into(), is_granted), reply)
    }

    /// A description for the node's terminal.
    pub(crate) fn words(&self) -> String {
        described(&self.request)
    }
}

/// The answer to a grant for all channels.
fn granted(granted: Result<(), GrantError>, reply: Reply) -> Result<Option<KernelMessage>, PushError> {
    match granted {
        Ok(()) => Ok(reply.done()),
        Err(GrantError::TooMany) => Ok(Some(reply.refused(HttpServerError::TooManyGrants))),
        Err(GrantError::Stopped) => Err(PushError::Stopped),
    }
}

/// A bind or unbind, for the node's terminal.
pub(crate) fn described(request: &ActionRequest) -> String {
    let process = &request.requester().process;
    let who = |authenticated: bool, secure: bool| match (authenticated, secure) {
        (_, true) => "secure subdomain",
        (true, _) => "authenticated",
        _ => "unauthenticated",
    };
    match &request.action {
        CheckedAction::BindHttp { path, content, authenticated, local_only, secure } => {
            let place = if *local_only { "local only" } else { "open" };
            let kind = if content.is_some() { "cached" } else { "dynamic" };
            format!("binding {path:?} of {process}: {}, {place}, {kind}", who(*authenticated, *secure))
        }
        CheckedAction::BindWebSocket { path, authenticated, extension, secure } => {
            let kind = if *extension { ", for extensions" } else { "" };
            format!("binding WebSocket {path:?} of {process}: {}{kind}", who(*authenticated, *secure))
        }
        CheckedAction::UnbindHttp { path } => format!("unbinding {path:?} of {process}"),
        CheckedAction::UnbindWebSocket { path } => format!("unbinding WebSocket {path:?} of {process}"),
        CheckedAction::Grant { guest, is_granted: true, .. } => format!("{guest} may push to channels of {process}"),
        CheckedAction::Grant { guest, .. } => format!("{guest} may push to channels of {process} no more"),
        CheckedAction::Push { .. }
        | CheckedAction::PushMany { .. }
        | CheckedAction::Subscribe { .. }
        | CheckedAction::Close { .. } => {
            format!("an order of {process}")
        }
    }
}

fn push_many(
    owner: &dyn ActingOrders,
    audience: Audience,
    except: &[ChannelId],
    message: broker::Message,
    delivery: DeliveryOptions,
) -> Result<(), PushError> {
    let audience = match audience {
        Audience::Path(path) => Audience::Path(as_bound(&path)),
        audience => audience,
    };
    owner.push_many(audience, except, message, delivery)
}

/// The path of a channel, whichever way it was written when it was bound: with or without slashes at its ends.
fn as_bound(path: &str) -> Arc<str> {
    let path = path.strip_suffix('/').unwrap_or(path);
    if path.starts_with('/') { path.into() } else { format!("/{path}").into() }
}

fn bind(owner: &dyn Acting, action: CheckedAction, reply: Reply) -> Result<Option<KernelMessage>, PushError> {
    let bound = match action {
        CheckedAction::BindHttp { path, content, authenticated, local_only, secure } => {
            let content =
                content.map(|LazyLoadBlob { mime, bytes }| Arc::new(Content::new(mime.as_deref(), bytes.into())));
            owner.bind_http(&path, HttpRule { authenticated, local_only, secure_subdomain: secure, content })
        }
        CheckedAction::UnbindHttp { path } => owner.unbind_http(&path),
        CheckedAction::BindWebSocket { path, authenticated, extension, secure } => owner.bind(
            &path,
            WebSocketRule { authenticated, secure_subdomain: secure, extension, ..WebSocketRule::default() },
        ),
        CheckedAction::UnbindWebSocket { path } => owner.unbind(&path),
        _ => unreachable!("only binds come here"),
    };
    match bound {
        Ok(()) => Ok(reply.done()),
        Err(BindPathError::Refused(crate::gateway::BindError::Process)) => {
            Ok(Some(reply.refused(HttpServerError::InvalidSourceProcess)))
        }
        Err(error @ BindPathError::Memory { .. }) => {
            // The contract has no word for it.
            tracing::warn!(%error, "a path was not bound");
            Ok(Some(reply.refused(HttpServerError::MalformedRequest)))
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
    owner: &dyn ActingOrders,
    id: u64,
    response: &Response,
    blob: Option<LazyLoadBlob>,
) -> Result<(), PushError> {
    let Ok(HttpResponse { status, headers }) = serde_json::from_slice(&response.body) else {
        let mime = ("content-type".into(), "text/plain; charset=utf-8".into());
        return owner.respond(RequestId(id), 500, vec![mime], "the process' answer is no HTTP response".into());
    };
    let body: Bytes = blob.map(|blob| blob.bytes.into()).unwrap_or_default();
    let mut fields: HeaderFields = headers.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
    if !fields.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-type")) {
        // The type that nodes' own server gives to bytes; without one, browsers would guess. An error without a body is
        // none: it would have them start a download.
        let is_bare_error = status >= 400 && body.is_empty();
        let mime = if is_bare_error { "text/plain; charset=utf-8" } else { "application/octet-stream" };
        fields.push(("content-type".into(), mime.into()));
    }
    owner.respond(RequestId(id), status, fields, body)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::{HeldAs, Ledger};
    use crate::node::identity::{Address, ServerName};

    #[test]
    fn addresses_to_which_answers_go_are_limited_and_charged() {
        let memory = Ledger::default().pool().memory_of("p:p:t.os".parse().unwrap());
        let pending = Pending::new(Unasked::Silent, Some(memory.charge_anyway(HeldAs::Link, 0)));
        let source = Address::new("n".repeat(100_000), memory.tenant().process().unwrap());
        for id in 0..100 {
            pending.ticket(AskedOrder::Close, Reply::unasked(id, source.clone(), ServerName::default()));
        }
        let (waiting, held) = (pending.waiting().by_ticket.len(), memory.tenant().held().link);
        assert_eq!(waiting, ADDRESSES_BYTES_MAX / 100_000);
        assert!((waiting * 100_000..ADDRESSES_BYTES_MAX + 32 * 1024).contains(&held), "{held}");
        let tickets: Vec<u64> = pending.waiting().by_ticket.keys().copied().collect();
        for ticket in tickets {
            assert!(pending.settle(ticket, &Outcome { not_owner: 1, ..Outcome::default() }).is_some());
        }
        assert_eq!((memory.tenant().held().link, pending.waiting().address_bytes), (0, 0));
    }
}
