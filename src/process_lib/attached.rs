//! The backend of a process at a broker, in the same program or over a link: pushes and messages without JSON or a node
//! kernel in between.
//!
//! Requests to the HTTP server of our node are carried out here; there is no node kernel, so other processes and nodes
//! are offline. Events become messages whose JSON is written only when it is read. It must not know contexts or
//! timeouts.

use super::backend::{
    Backend, BackendDelivery, BackendPush, BackendRequest, BackendStopped, Blob, Exit, SendErrorKind,
};
use super::body::Body;
use super::runtime::run;
use crate::broker::{
    self, AttachError, AttachOptions, BrokerHandle, ChannelAt, Closed, ControlKind, Event, HttpAsk, HttpRequest,
    Opened, Process, name_of_node,
};
use crate::channel::ChannelId;
use crate::node::acting::Acting;
use crate::node::perform::{self, Pending, Unasked};
use crate::node::{
    Address, Dialect, EventMessages, HttpServerRequest, Inbound, IncomingHttpRequest, KernelMessage, Message, OUR,
    ProcessId, WsMessageType, dispatch, frame, http_server_process, is_http_server,
};
use crate::proto::MessageKind;
use bytes::Bytes;
use std::collections::{HashSet, VecDeque};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How long a wait without a deadline lasts before it begins anew.
const WAIT_MAX: Duration = Duration::from_secs(3600);

/// Attaches a process to a broker in this program and runs it on a thread of its own, named after it.
///
/// It owns the channels that register with its id, and may bind paths. When it ends, its channels are closed with 1001;
/// when it panics, with 1011. When the broker stops, it is stopped.
///
/// # Errors
/// Its id is taken, the broker has stopped, or the system gives no thread.
pub fn spawn_on(
    broker: &BrokerHandle,
    process: ProcessId,
    init: impl FnOnce(Address) + Send + 'static,
) -> Result<JoinHandle<Exit>, SpawnError> {
    let backend = AttachedProcess::new(broker, process)?;
    let our = backend.our.clone();
    let name = our.process.to_string();
    Ok(thread::Builder::new().name(name).spawn(move || run(our, Box::new(backend), init))?)
}

/// Why a process does not run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SpawnError {
    /// The broker refused it.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// No thread.
    #[error("cannot start the thread of a process: {0}")]
    Thread(#[from] std::io::Error),
}

/// Where a process is attached: what it hears comes out here, and it acts through it.
pub(super) trait Attachment: Send {
    /// The handle that acts in its name.
    fn acting(&self) -> &dyn Acting;

    /// Appends what there is to hear, as [`Process::recv_batch`].
    fn recv_batch(&self, events: &mut Vec<Event>, timeout: Duration) -> Result<usize, broker::Stopped>;

    /// Applies the process' exit to its channels.
    fn ended(self: Box<Self>, exit: &Exit);
}

/// A process attached to a broker, in this program or over a link.
pub struct AttachedProcess {
    attachment: Box<dyn Attachment>,
    our: Address,
    server: Address,
    dialect: Dialect,
    pending: Pending,
    /// Channels whose messages are an extension's.
    extensions: HashSet<ChannelId>,
    /// Messages received and not yet given to the process.
    arrived: VecDeque<BackendDelivery>,
    events: Vec<Event>,
}

impl AttachedProcess {
    /// Attaches `process`. Node name and dialect are the broker's.
    ///
    /// # Errors
    /// Its id is taken, or the broker has stopped.
    pub fn new(broker: &BrokerHandle, process: ProcessId) -> Result<Self, AttachError> {
        // A node's processes are told of control frames.
        let options = AttachOptions { wants_control: true, ..AttachOptions::default() };
        let settings = broker.settings();
        let dialect = Dialect::of(&settings);
        let our = Address::new(settings.user, process.clone());
        Ok(Self::at(Box::new(broker.process(process, options)?), our, dialect))
    }

    /// The process `our`, attached as it is.
    pub(super) fn at(attachment: Box<dyn Attachment>, our: Address, dialect: Dialect) -> Self {
        Self {
            attachment,
            server: Address::new(our.node.clone(), http_server_process()),
            our,
            dialect,
            pending: Pending::new(Unasked::Silent, None),
            extensions: HashSet::new(),
            arrived: VecDeque::new(),
            events: Vec::new(),
        }
    }

    /// The process' id.
    #[cfg(feature = "link")]
    pub(super) fn our(&self) -> &Address {
        &self.our
    }

    /// Takes in what the broker has for this process; false if nothing came before the timeout, or it was woken for
    /// nothing.
    fn take_in(&mut self, timeout: Duration) -> Result<bool, BackendStopped> {
        let mut events = std::mem::take(&mut self.events);
        let received = self.attachment.recv_batch(&mut events, timeout);
        for event in events.drain(..) {
            let delivery = self.delivery(event);
            self.arrived.extend(delivery);
        }
        self.events = events;
        received.map(|count| count > 0).map_err(|broker::Stopped| BackendStopped)
    }

    /// The delivery for an event; none if the process does not receive such events.
    fn delivery(&mut self, event: Event) -> Option<BackendDelivery> {
        match event {
            Event::Opened(opened) => Some(self.opened(*opened)),
            Event::Message { channel, kind, payload } => {
                let message_type = match kind {
                    MessageKind::Text => WsMessageType::Text,
                    MessageKind::Binary => WsMessageType::Binary,
                };
                self.message(channel, message_type, payload)
            }
            Event::Control { channel, kind, payload } => {
                let message_type = match kind {
                    ControlKind::Ping => WsMessageType::Ping,
                    ControlKind::Pong => WsMessageType::Pong,
                    ControlKind::Close => WsMessageType::Close,
                    // For the hub alone.
                    ControlKind::Text => return None,
                };
                Some(self.pushed(channel, message_type, payload))
            }
            Event::Closed(closed) => Some(self.closed(&closed)),
            // The node contract knows no such channels.
            Event::Detached { .. } | Event::Resumed { .. } => None,
            Event::Http(request) => self.http(*request),
            // Asked for only where a kernel carries the refusal, or by processes that want to be told of topics.
            Event::Failed { .. } | Event::Joined { .. } | Event::Left { .. } => None,
            Event::Outcome { ticket, outcome } => {
                let answer = self.pending.settle(ticket, &outcome)?;
                self.answer(answer)
            }
        }
    }

    fn opened(&mut self, opened: Opened) -> BackendDelivery {
        if opened.extension {
            self.extensions.insert(opened.channel);
        }
        let (source_socket_addr, forwarded_for) = match self.dialect {
            Dialect::Kinode => (None, None),
            Dialect::Hyperdrive => (Some(opened.source.to_string()), opened.forwarded_for.map(String::from)),
        };
        self.told(HttpServerRequest::WebSocketOpen {
            path: opened.path.to_string(),
            channel_id: opened.channel.get(),
            source_socket_addr,
            forwarded_for,
        })
    }

    fn message(&mut self, channel: ChannelId, message_type: WsMessageType, payload: Bytes) -> Option<BackendDelivery> {
        if !self.extensions.contains(&channel) {
            return Some(self.pushed(channel, message_type, payload));
        }
        let events = EventMessages::new(&self.our.node, self.dialect);
        let message = events.extension_message(0, &self.our.process, channel, message_type, payload.into())?;
        Some(message.into())
    }

    fn pushed(&self, channel: ChannelId, message_type: WsMessageType, bytes: Bytes) -> BackendDelivery {
        let event = HttpServerRequest::WebSocketPush { channel_id: channel.get(), message_type };
        self.request(0, self.server.clone(), None, event, Some(Blob { mime: None, bytes }))
    }

    fn closed(&mut self, closed: &Closed) -> BackendDelivery {
        self.extensions.remove(&closed.channel);
        // Node contract, section 2: of all events, only this one comes from `our`.
        let server = Address::new(OUR, http_server_process());
        self.request(0, server, None, HttpServerRequest::WebSocketClose(closed.channel.get()), None)
    }

    fn http(&self, request: HttpRequest) -> Option<BackendDelivery> {
        let HttpAsk::Path(incoming) = request.ask else {
            // Asked of the node alone, and no process is.
            return None;
        };
        let event = HttpServerRequest::Http(IncomingHttpRequest::from(*incoming));
        let blob = Blob { mime: None, bytes: request.body };
        Some(self.request(request.id.0, self.server.clone(), Some(request.timeout_s.into()), event, Some(blob)))
    }

    fn told(&self, event: HttpServerRequest) -> BackendDelivery {
        self.request(0, self.server.clone(), None, event, None)
    }

    fn request(
        &self,
        id: u64,
        source: Address,
        expects_response: Option<u64>,
        event: HttpServerRequest,
        blob: Option<Blob>,
    ) -> BackendDelivery {
        BackendDelivery::Request(BackendRequest {
            id,
            source,
            rsvp: None,
            expects_response,
            body: Body::from_event(event),
            metadata: None,
            capabilities: Vec::new(),
            blob,
        })
    }

    /// The server's answer, if it is for this process: no other can be reached.
    fn answer(&self, answer: KernelMessage) -> Option<BackendDelivery> {
        let for_us = answer.target.process == self.our.process && answer.target.is_on(&self.our.node);
        for_us.then(|| answer.into())
    }

    fn serve(&mut self, message: KernelMessage) -> Result<(), BackendStopped> {
        let answer = match dispatch(message, &self.our.node, self.dialect) {
            Inbound::Response { id, response, blob, .. } => {
                perform::respond(self.attachment.acting(), id, &response, blob).map_err(|_| BackendStopped)?;
                None
            }
            Inbound::Action(request) => {
                self.pending.perform(self.attachment.acting(), request).map_err(|_| BackendStopped)?
            }
            Inbound::Refused(answer) => Some(answer),
        };
        let delivery = answer.and_then(|answer| self.answer(answer));
        self.arrived.extend(delivery);
        Ok(())
    }
}

impl AttachedProcess {
    /// A push to another node: over the fleet, as far as the owner of the channel there lets this process in.
    fn push_elsewhere(&mut self, push: BackendPush) -> Result<(), BackendStopped> {
        let to = ChannelAt { node: name_of_node(&push.node).into(), channel: ChannelId::new(push.channel_id) };
        match frame(push.message_type, push.blob.bytes) {
            Ok(Some(message)) => {
                if !self.attachment.acting().push_as_guest(&to, message).map_err(|_| BackendStopped)? {
                    tracing::warn!(to = %push.node, "dropped a push: there is neither a kernel nor a fleet to deliver it");
                }
            }
            Ok(None) => tracing::warn!(to = %push.node, "dropped a close: only its own node ends a channel"),
            // A node would send a refusal that no caller awaits.
            Err(invalid) => tracing::debug!(process = %self.our, %to, %invalid, "a push was refused"),
        }
        Ok(())
    }
}

impl Backend for AttachedProcess {
    fn send(&mut self, message: KernelMessage) -> Result<(), BackendStopped> {
        if is_http_server(&message.target.process) && message.target.is_on(&self.our.node) {
            return self.serve(message);
        }
        if let Message::Request(request) = &message.message
            && request.expects_response.is_some()
        {
            self.arrived.push_back(BackendDelivery::Undelivered { id: message.id, kind: SendErrorKind::Offline });
        } else {
            tracing::warn!(to = %message.target, "dropped a message: there is no kernel to deliver it");
        }
        Ok(())
    }

    fn receive(&mut self, deadline: Option<Instant>) -> Result<Option<BackendDelivery>, BackendStopped> {
        loop {
            if let Some(delivery) = self.arrived.pop_front() {
                return Ok(Some(delivery));
            }
            let timeout = deadline.map_or(WAIT_MAX, |at| at.saturating_duration_since(Instant::now()).min(WAIT_MAX));
            let came = self.take_in(timeout)?;
            if !came && deadline.is_some_and(|at| at <= Instant::now()) {
                return Ok(None);
            }
        }
    }

    fn push(&mut self, push: BackendPush) -> Result<(), BackendStopped> {
        if push.node != self.our.node && push.node != OUR {
            return self.push_elsewhere(push);
        }
        let channel = ChannelId::new(push.channel_id);
        let pushed = match frame(push.message_type, push.blob.bytes) {
            Ok(Some(message)) => self.attachment.acting().push(channel, message, broker::DeliveryOptions::default()),
            Ok(None) => self.attachment.acting().close(
                channel,
                perform::CLOSE_WITHOUT_CODE,
                "",
                broker::DeliveryOptions::default(),
            ),
            Err(invalid) => {
                // A node would send a refusal that no caller awaits.
                tracing::debug!(process = %self.our, %channel, %invalid, "a push was refused");
                return Ok(());
            }
        };
        pushed.map_err(|_| BackendStopped)
    }

    fn ended(self: Box<Self>, exit: &Exit) {
        self.attachment.ended(exit);
    }
}

impl Attachment for Process {
    fn acting(&self) -> &dyn Acting {
        self.handle()
    }

    fn recv_batch(&self, events: &mut Vec<Event>, timeout: Duration) -> Result<usize, broker::Stopped> {
        self.recv_batch(events, timeout)
    }

    fn ended(self: Box<Self>, exit: &Exit) {
        if matches!(exit, Exit::Panicked(_)) {
            self.fail();
        }
    }
}
