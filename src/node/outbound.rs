//! From the shards to the node's kernel: events become messages.
//!
//! Nothing is taken from the shards while the kernel has no room: the queue of events fills, and shards stop reading
//! clients. Nothing is dropped.

use super::action::WsMessageType;
use super::calls::{AddressedName, Calls};
use super::events::EventMessages;
use super::login::{self, LoginQueue};
use super::message::KernelMessage;
use super::perform::{self, Pending};
use super::request::IncomingHttpRequest;
use super::rpc::rpc_request;
use crate::broker::{ControlKind, Event, HttpAsk, HttpRequest, Kernel, KernelHandle, Opened, RecvError, RequestId};
use crate::channel::ChannelId;
use crate::http::PreparedResponse;
use crate::process_id::ProcessId;
use crate::proto::MessageKind;
use bytes::Bytes;
use rustc_hash::FxHashSet;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

/// How long a wait for events lasts before it begins anew.
const WAIT_MAX: Duration = Duration::from_secs(3600);

/// The way to the node's kernel, wherever that is.
pub(crate) trait ToKernel {
    /// Detail that accompanies a message.
    type Note;

    /// The note for the message that `event` becomes; without `process`, for one of the system's.
    fn note(&self, process: Option<&ProcessId>, event: &Event) -> Self::Note;

    /// Waits until the kernel has room for what clients send. Returns false when it has gone.
    fn wait_for_room(&self) -> bool;

    /// Returns whether a message can be sent at all.
    fn takes(&self, message: &KernelMessage) -> bool;

    /// Sends a message, waiting for room.
    ///
    /// # Errors
    /// The kernel has gone.
    fn send(&self, message: KernelMessage, note: Self::Note) -> Result<(), KernelGone>;
}

/// The node's kernel has gone.
pub(crate) struct KernelGone;

pub(crate) struct MessageWriter<K: ToKernel> {
    pub events: EventMessages,
    pub kernel: KernelHandle,
    pub pending: Arc<Pending>,
    pub calls: Arc<Calls>,
    pub name: Arc<AddressedName>,
    pub login_queue: LoginQueue,
    pub to_kernel: K,
    /// Channels whose messages are an extension's.
    pub extensions: FxHashSet<ChannelId>,
    pub ids: MessageIds,
}

impl<K: ToKernel> MessageWriter<K> {
    /// Hands on events until the broker stops or the kernel goes. Returns whether the broker has stopped.
    pub(crate) fn run(mut self, events: &Kernel) -> bool {
        while self.to_kernel.wait_for_room() {
            match events.recv(WAIT_MAX) {
                Ok(batch) => {
                    self.events.set_name(self.name.get());
                    // Sending waits for the kernel: what waits meanwhile stays charged.
                    let _charge = batch.charge;
                    for event in batch.events {
                        let note = self.to_kernel.note(batch.process.as_ref(), &event);
                        let message = match &batch.process {
                            Some(process) => self.message(process, event),
                            None => self.system(event),
                        };
                        if message.is_some_and(|message| self.to_kernel.send(message, note).is_err()) {
                            return false;
                        }
                    }
                }
                Err(RecvError::Timeout) => {}
                Err(RecvError::Stopped) => return true,
            }
        }
        false
    }

    /// The message for an event; none if its process does not receive such events.
    fn message(&mut self, process: &ProcessId, event: Event) -> Option<KernelMessage> {
        match event {
            Event::Message { channel, kind, payload } => self.received(process, channel, kind, payload),
            Event::Opened(opened) => Some(self.opened(process, *opened)),
            Event::Control { channel, kind, payload } => {
                let message_type = match kind {
                    ControlKind::Ping => WsMessageType::Ping,
                    ControlKind::Pong => WsMessageType::Pong,
                    ControlKind::Close => WsMessageType::Close,
                    // For the hub alone.
                    ControlKind::Text => return None,
                };
                Some(self.events.message(self.ids.next(), process, channel, message_type, payload.into()))
            }
            Event::Closed(closed) => {
                self.extensions.remove(&closed.channel);
                Some(self.events.closed(self.ids.next(), process, closed.channel))
            }
            // The node contract knows no such channels.
            Event::Detached { .. } | Event::Resumed { .. } => None,
            Event::Http(request) => self.http(process, *request),
            Event::Outcome { ticket, outcome } => self.pending.settle(ticket, &outcome),
            Event::Failed { ticket, outcome } => Some(perform::refusal(ticket, &outcome, &self.events, process)),
            // The contract knows nothing of them, and no kernel asks for them.
            Event::Joined { .. } | Event::Left { .. } => None,
        }
    }

    fn received(
        &mut self,
        process: &ProcessId,
        channel: ChannelId,
        kind: MessageKind,
        payload: Bytes,
    ) -> Option<KernelMessage> {
        let message_type = match kind {
            MessageKind::Text => WsMessageType::Text,
            MessageKind::Binary => WsMessageType::Binary,
        };
        let (id, bytes) = (self.ids.next(), payload.into());
        if self.extensions.contains(&channel) {
            return self.events.extension_message(id, process, channel, message_type, bytes);
        }
        Some(self.events.message(id, process, channel, message_type, bytes))
    }

    fn opened(&mut self, process: &ProcessId, opened: Opened) -> KernelMessage {
        if opened.extension {
            self.extensions.insert(opened.channel);
        }
        let (path, forwarded_for) = (opened.path.to_string(), opened.forwarded_for.map(String::from));
        self.events.opened(self.ids.next(), process, opened.channel, path, opened.source, forwarded_for)
    }

    fn http(&self, process: &ProcessId, request: HttpRequest) -> Option<KernelMessage> {
        let HttpAsk::Path(incoming) = request.ask else { unreachable!("only the system is asked for the rest") };
        let incoming = IncomingHttpRequest::from(*incoming);
        Some(self.events.http(request.id.0, process, incoming, request.body.into(), request.timeout_s.into()))
    }

    /// Logins, RPC calls, and what became of pushes from other nodes.
    fn system(&mut self, event: Event) -> Option<KernelMessage> {
        let request = match event {
            Event::Http(request) => request,
            Event::Outcome { ticket, outcome } => return self.pending.settle(ticket, &outcome),
            _ => return None,
        };
        let HttpRequest { id, ask, body, timeout_s } = *request;
        match ask {
            HttpAsk::Login(login) => {
                if let Some((id, refusal)) = self.login_queue.enter(id, login, &body) {
                    self.answer(id, refusal);
                }
                None
            }
            HttpAsk::Rpc => self.call(id, &body, timeout_s),
            HttpAsk::Path(_) => None,
        }
    }

    fn call(&mut self, request: RequestId, body: &[u8], timeout_s: u32) -> Option<KernelMessage> {
        let id = self.ids.next();
        match rpc_request(id, self.events.server(), body) {
            Ok(message) if !self.to_kernel.takes(&message) => {
                let words = "what the call says beside its data is larger than the node's kernel can be sent";
                self.answer(request, PreparedResponse::text(413, words));
                None
            }
            Ok(message) if message.rsvp.is_some() => {
                self.calls.begin(id, request, Duration::from_secs(timeout_s.into()));
                Some(message)
            }
            Ok(message) => {
                self.answer(request, PreparedResponse::new(200));
                Some(message)
            }
            Err(error) => {
                self.answer(request, PreparedResponse::text(400, error.to_string()));
                None
            }
        }
    }

    fn answer(&self, id: RequestId, response: PreparedResponse) {
        // None: the broker has stopped, and with it the connection that waits.
        let _ = login::answer(&self.kernel, id, response);
    }
}

/// Ids of messages: a hash, keyed at random, of a count.
pub(crate) struct MessageIds {
    key: RandomState,
    count: u64,
}

impl MessageIds {
    pub(crate) fn new() -> Self {
        Self { key: RandomState::new(), count: 0 }
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.count += 1;
        self.key.hash_one(self.count)
    }
}
