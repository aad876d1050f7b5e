//! From the shards to the node's kernel: events become messages.
//!
//! Other modules of a node fail when the kernel's queue is full, so nothing is taken from the shards while it is more
//! than half full: the queue of events fills, and shards stop reading clients. Nothing is dropped.

use super::action::WsMessageType;
use super::events::Events;
use super::host::Host;
use super::login::{self, Attempt, Door};
use super::message::KernelMessage;
use super::perform::{self, Pending};
use super::request::IncomingHttpRequest;
use super::rpc::rpc_request;
use super::server::Calls;
use crate::broker::{ControlKind, Event, HttpAsk, HttpRequest, Kernel, KernelHandle, Opened, RecvError, RequestId};
use crate::channel::ChannelId;
use crate::http::Response;
use crate::process_id::ProcessId;
use crate::proto::MessageKind;
use bytes::Bytes;
use rustc_hash::FxHashSet;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc::{self, error::TrySendError};

/// How long a wait for events lasts before it begins anew.
const WAIT_MAX: Duration = Duration::from_secs(3600);

/// How often the kernel's queue is looked at while it is too full; nobody tells us when it is not.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

pub(super) struct Outlet<H: Host> {
    pub our_node: String,
    pub events: Events,
    pub host: Arc<H>,
    pub kernel: KernelHandle,
    pub pending: Arc<Pending>,
    pub calls: Arc<Calls>,
    pub door: Door,
    pub to_kernel: mpsc::Sender<H::Message>,
    /// Channels whose messages are an extension's.
    pub extensions: FxHashSet<ChannelId>,
    pub ids: Ids,
}

/// The node's kernel has gone.
pub(super) struct KernelGone;

impl<H: Host> Outlet<H> {
    /// Hands on events until the broker stops or the kernel goes.
    pub fn run(mut self, events: &Kernel) {
        loop {
            self.wait_for_room();
            match events.recv(WAIT_MAX) {
                Ok(batch) => {
                    for event in batch.events {
                        let message = match &batch.process {
                            Some(process) => self.message(process, event),
                            None => self.system(event),
                        };
                        if message.is_some_and(|message| self.send(message).is_err()) {
                            return;
                        }
                    }
                }
                Err(RecvError::Timeout) => {}
                Err(RecvError::Stopped) => return,
            }
        }
    }

    fn wait_for_room(&self) {
        while self.to_kernel.capacity() < self.to_kernel.max_capacity() / 2 && !self.to_kernel.is_closed() {
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    fn send(&self, message: KernelMessage) -> Result<(), KernelGone> {
        let mut message = self.host.to_node(message);
        loop {
            match self.to_kernel.try_send(message) {
                Ok(()) => return Ok(()),
                Err(TrySendError::Closed(_)) => return Err(KernelGone),
                Err(TrySendError::Full(back)) => {
                    message = back;
                    std::thread::sleep(LOOK_AGAIN);
                }
            }
        }
    }

    /// What an event is to its process; none if it is not to hear of it.
    fn message(&mut self, process: &ProcessId, event: Event) -> Option<KernelMessage> {
        match event {
            Event::Message { channel, kind, payload } => self.received(process, channel, kind, payload),
            Event::Opened(opened) => Some(self.opened(process, *opened)),
            Event::Control { channel, kind, payload } => {
                let message_type = match kind {
                    ControlKind::Ping => WsMessageType::Ping,
                    ControlKind::Pong => WsMessageType::Pong,
                    ControlKind::Close => WsMessageType::Close,
                };
                Some(self.events.message(self.ids.next(), process, channel, message_type, payload.into()))
            }
            Event::Closed(closed) => {
                self.extensions.remove(&closed.channel);
                Some(self.events.closed(self.ids.next(), process, closed.channel))
            }
            Event::Http(request) => self.http(process, *request),
            Event::Outcome { ticket, outcome } => self.pending.settle(ticket, &outcome),
            Event::Failed { ticket, .. } => Some(perform::refusal(ticket, &self.our_node, process)),
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
                if let Err((id, refusal)) = self.door.enter(Attempt { id, login, body }) {
                    self.answer(id, refusal);
                }
                None
            }
            HttpAsk::Rpc => self.call(id, &body, timeout_s),
            HttpAsk::Path(_) => None,
        }
    }

    fn call(&mut self, id: RequestId, body: &[u8], timeout_s: u32) -> Option<KernelMessage> {
        match rpc_request(id.0, &self.our_node, body) {
            Ok(message) if message.rsvp.is_some() => {
                self.calls.begin(id.0, message.target.clone(), Duration::from_secs(timeout_s.into()));
                Some(message)
            }
            Ok(message) => {
                self.answer(id, Response::new(200));
                Some(message)
            }
            Err(error) => {
                self.answer(id, Response::text(400, error.to_string()));
                None
            }
        }
    }

    fn answer(&self, id: RequestId, response: Response) {
        // None: the broker has stopped, and with it the connection that waits.
        let _ = login::answer(&self.kernel, id, response);
    }
}

/// Ids of messages: a hash, keyed at random, of a count.
pub(super) struct Ids {
    key: RandomState,
    count: u64,
}

impl Ids {
    pub fn new() -> Self {
        Self { key: RandomState::new(), count: 0 }
    }

    fn next(&mut self) -> u64 {
        self.count += 1;
        self.key.hash_one(self.count)
    }
}
