//! Types of the broker and of a node's kernel ↔ the heads of frames.

use super::frame::LinkFrame;
use super::wire::{
    BlobHead, FrameKind, FromPeer, GrantedCapability, HttpHead, KernelBody, KernelHead, LiveChannel, OrderFailure,
    OutcomeHead, ToPeer,
};
use crate::broker::{
    BindPathError, Closed, ControlKind, Event, HttpAsk, HttpRequest, InvalidMessage, Message, OnNodes, Opened, Outcome,
    RequestId,
};
use crate::channel::ChannelId;
use crate::gateway::{BindError, ContractRequest, PatternError};
use crate::node::{self, Capability, KernelMessage, LazyLoadBlob, PushCounts};
use crate::proto::MessageKind;
use crate::shard::command::{PushFrame, PushKind};
use bytes::Bytes;
use std::net::{Ipv4Addr, SocketAddr};

/// An event as a frame's head and blob. None: it is not for a process over a link.
pub(super) fn event_out(event: Event) -> Option<(ToPeer, Bytes)> {
    Some(match event {
        Event::Opened(opened) => (ToPeer::Opened(live_channel(&opened)), Bytes::new()),
        Event::Message { channel, kind, payload } => {
            let kind = match kind {
                MessageKind::Text => FrameKind::Text,
                MessageKind::Binary => FrameKind::Binary,
            };
            (ToPeer::Message { channel: channel.get(), kind }, payload)
        }
        Event::Control { channel, kind, payload } => {
            let kind = match kind {
                ControlKind::Ping => FrameKind::Ping,
                ControlKind::Pong => FrameKind::Pong,
                ControlKind::Close => FrameKind::Close,
                // For the hub alone.
                ControlKind::Text => return None,
            };
            (ToPeer::Control { channel: channel.get(), kind }, payload)
        }
        Event::Joined { channel, topic } => {
            (ToPeer::Joined { channel: channel.get(), topic: topic.to_string() }, Bytes::new())
        }
        Event::Left { channel, topic } => {
            (ToPeer::Left { channel: channel.get(), topic: topic.to_string() }, Bytes::new())
        }
        Event::Closed(closed) => (closed_out(*closed), Bytes::new()),
        Event::Detached { channel } => (ToPeer::Detached { channel: channel.get() }, Bytes::new()),
        Event::Resumed { channel, lost, grant: _ } => (ToPeer::Resumed { channel: channel.get(), lost }, Bytes::new()),
        Event::Http(request) => http_out(*request)?,
        Event::Outcome { ticket, outcome } => (ToPeer::Outcome(outcome_out(ticket, &outcome)), Bytes::new()),
        // It is never asked for here.
        Event::Failed { .. } => return None,
    })
}

/// The reverse. None: it is no event.
pub(super) fn event_in(head: ToPeer, blob: Bytes) -> Option<Event> {
    Some(match head {
        ToPeer::Opened(live) => Event::Opened(Box::new(opened(live))),
        ToPeer::Message { channel, kind } => {
            let kind = match kind {
                FrameKind::Text => MessageKind::Text,
                FrameKind::Binary => MessageKind::Binary,
                FrameKind::Ping | FrameKind::Pong | FrameKind::Close => return None,
            };
            Event::Message { channel: ChannelId::new(channel), kind, payload: blob }
        }
        ToPeer::Control { channel, kind } => {
            let kind = match kind {
                FrameKind::Ping => ControlKind::Ping,
                FrameKind::Pong => ControlKind::Pong,
                FrameKind::Close => ControlKind::Close,
                FrameKind::Text | FrameKind::Binary => return None,
            };
            Event::Control { channel: ChannelId::new(channel), kind, payload: blob }
        }
        ToPeer::Joined { channel, topic } => Event::Joined { channel: ChannelId::new(channel), topic: topic.into() },
        ToPeer::Left { channel, topic } => Event::Left { channel: ChannelId::new(channel), topic: topic.into() },
        ToPeer::Closed { channel, code, reason, by, lost_bytes } => {
            let (channel, lost_bytes) = (ChannelId::new(channel), lost_bytes as usize);
            Event::Closed(Box::new(Closed { channel, code, reason, by, lost_bytes }))
        }
        ToPeer::Detached { channel } => Event::Detached { channel: ChannelId::new(channel) },
        ToPeer::Resumed { channel, lost } => Event::Resumed { channel: ChannelId::new(channel), lost, grant: None },
        ToPeer::Http(head) => Event::Http(Box::new(http_in(head, blob))),
        ToPeer::Outcome(head) => Event::Outcome { ticket: head.ask, outcome: outcome_in(&head) },
        _ => return None,
    })
}

pub(super) fn live_channel(opened: &Opened) -> LiveChannel {
    LiveChannel {
        channel: opened.channel.get(),
        process: None,
        path: opened.path.to_string(),
        source: Some(opened.source.to_string()),
        forwarded_for: opened.forwarded_for.as_deref().map(str::to_owned),
        registered: opened.registered,
        extension: opened.extension,
    }
}

pub(super) fn opened(live: LiveChannel) -> Opened {
    Opened {
        channel: ChannelId::new(live.channel),
        path: live.path.into(),
        source: address(live.source.as_deref()),
        forwarded_for: live.forwarded_for.map(String::into_boxed_str),
        registered: live.registered,
        extension: live.extension,
        grant: None,
    }
}

/// Brokers always send one that parses.
fn address(text: Option<&str>) -> SocketAddr {
    text.and_then(|text| text.parse().ok()).unwrap_or_else(|| (Ipv4Addr::UNSPECIFIED, 0).into())
}

fn closed_out(closed: Closed) -> ToPeer {
    let Closed { channel, code, reason, by, lost_bytes, .. } = closed;
    ToPeer::Closed { channel: channel.get(), code, reason, by, lost_bytes: lost_bytes as u64 }
}

fn http_out(request: HttpRequest) -> Option<(ToPeer, Bytes)> {
    let HttpRequest { id, ask, body, timeout_s } = request;
    let HttpAsk::Path(asked) = ask else { return None };
    let ContractRequest { source, method, url, bound_path, headers, url_params, query_params, .. } = *asked;
    let head = HttpHead {
        request: id.0,
        timeout_s,
        source: source.to_string(),
        method,
        url,
        bound_path: bound_path.to_string(),
        headers,
        url_params,
        query_params,
    };
    Some((ToPeer::Http(head), body))
}

fn http_in(head: HttpHead, body: Bytes) -> HttpRequest {
    let HttpHead { request, timeout_s, source, method, url, bound_path, headers, url_params, query_params } = head;
    let ask = HttpAsk::Path(Box::new(ContractRequest {
        source: address(Some(&source)),
        method,
        url,
        bound_path: bound_path.into(),
        headers,
        url_params,
        query_params,
        repeated: Default::default(),
    }));
    HttpRequest { id: RequestId(request), ask, body, timeout_s }
}

pub(super) fn outcome_out(ask: u64, outcome: &Outcome) -> OutcomeHead {
    let PushCounts { sent, queued, queued_bytes, conflated, dropped, closed, not_found, not_owner } = outcome.into();
    OutcomeHead {
        ask,
        sent,
        queued,
        queued_bytes,
        conflated,
        dropped,
        closed,
        not_found,
        not_owner,
        fleet_full: outcome.fleet_full as u64,
        fleet_down: outcome.fleet_down as u64,
        fleet_too_large: outcome.fleet_too_large as u64,
        nodes: None,
        partial: false,
    }
}

/// The same with what other nodes say.
pub(super) fn nodes_out(ask: u64, here: &Outcome, nodes: &OnNodes) -> OutcomeHead {
    let said = nodes.said.iter().map(|(node, outcome)| (node.to_string(), Some(outcome.into())));
    let silent = nodes.silent.iter().map(|node| (node.to_string(), None));
    OutcomeHead { nodes: Some(said.chain(silent).collect()), partial: nodes.is_partial, ..outcome_out(ask, here) }
}

/// The outcomes of other nodes.
pub(super) fn nodes_in(head: &OutcomeHead) -> OnNodes {
    let mut nodes = OnNodes { is_partial: head.partial, ..OnNodes::default() };
    for (node, counts) in head.nodes.iter().flatten() {
        match counts {
            Some(counts) => drop(nodes.said.insert(node.as_str().into(), (*counts).into())),
            None => drop(nodes.silent.insert(node.as_str().into())),
        }
    }
    nodes
}

pub(super) fn outcome_in(head: &OutcomeHead) -> Outcome {
    Outcome {
        sent: head.sent as usize,
        queued: head.queued as usize,
        queued_bytes: head.queued_bytes as usize,
        conflated: head.conflated as usize,
        dropped: head.dropped as usize,
        closed: head.closed as usize,
        not_found: head.not_found as usize,
        not_owner: head.not_owner as usize,
        fleet_full: head.fleet_full as usize,
        fleet_down: head.fleet_down as usize,
        fleet_too_large: head.fleet_too_large as usize,
    }
}

/// The message of a push; none for a kind that is not pushed.
pub(super) fn message(kind: FrameKind, blob: Bytes) -> Option<Result<Message, InvalidMessage>> {
    match kind {
        FrameKind::Text => Some(Message::text_bytes(blob)),
        FrameKind::Binary => Some(Ok(Message::binary(blob))),
        FrameKind::Ping => Some(Message::ping(blob)),
        FrameKind::Pong => Some(Message::pong(blob)),
        FrameKind::Close => None,
    }
}

/// The reverse.
pub(super) fn message_out(message: Message) -> (FrameKind, Bytes) {
    let PushFrame { kind, payload } = message.into_frame();
    let kind = match kind {
        // Only the hub makes control texts, and it runs in the broker's own program.
        PushKind::Message(MessageKind::Text) | PushKind::ControlText { .. } => FrameKind::Text,
        PushKind::Message(MessageKind::Binary) => FrameKind::Binary,
        PushKind::Ping => FrameKind::Ping,
        PushKind::Pong => FrameKind::Pong,
    };
    (kind, payload)
}

pub(super) fn invalid(error: InvalidMessage) -> OrderFailure {
    match error {
        InvalidMessage::NotUtf8 => OrderFailure::NotUtf8,
        InvalidMessage::TooLarge => unreachable!("a frame's blob is limited below what a message may have"),
        InvalidMessage::ControlTooLong => OrderFailure::ControlTooLong,
    }
}

pub(super) fn bind_failure(error: &BindPathError) -> OrderFailure {
    match error {
        // No process over a link has a plain name, which has no subdomain.
        BindPathError::Refused(BindError::Process | BindError::NoSubdomain) => OrderFailure::ProcessId,
        BindPathError::Refused(BindError::Pattern(PatternError::TooLong)) => OrderFailure::PathTooLong,
        BindPathError::Refused(BindError::Pattern(PatternError::TooManyParams)) => OrderFailure::PathParams,
        BindPathError::Memory { .. } => OrderFailure::Memory,
        BindPathError::Stopped => OrderFailure::Stopped,
    }
}

pub(super) fn bind_error(failure: OrderFailure) -> BindPathError {
    match failure {
        OrderFailure::ProcessId => BindError::Process.into(),
        OrderFailure::PathTooLong => BindError::Pattern(PatternError::TooLong).into(),
        OrderFailure::PathParams => BindError::Pattern(PatternError::TooManyParams).into(),
        // How large it was is known to the broker alone.
        OrderFailure::Memory => BindPathError::Memory { bytes: 0 },
        OrderFailure::Stopped
        | OrderFailure::NotUtf8
        | OrderFailure::ControlTooLong
        | OrderFailure::TopicName
        | OrderFailure::GuestAddress
        | OrderFailure::TooManyGuests => BindPathError::Stopped,
    }
}

/// A message to a kernel.
pub(super) fn kernel_out(message: KernelMessage) -> LinkFrame {
    let (head, blob) = take_apart(message);
    LinkFrame::bare(&ToPeer::Kernel(head)).with(blob)
}

/// A message of a kernel.
pub(super) fn kernel_from(message: KernelMessage) -> LinkFrame {
    let (head, blob) = take_apart(message);
    LinkFrame::bare(&FromPeer::Kernel(head)).with(blob)
}

/// A message as a head and the bytes of its blob.
pub(super) fn take_apart(message: KernelMessage) -> (KernelHead, Bytes) {
    let KernelMessage { id, source, target, rsvp, message, lazy_load_blob } = message;
    let message = match message {
        node::Message::Request(node::Request { inherit, expects_response, body, metadata, capabilities }) => {
            let capabilities = capabilities.into_iter().map(GrantedCapability::from).collect();
            KernelBody::Request { inherit, expects_response, body, metadata, capabilities }
        }
        node::Message::Response((node::Response { inherit, body, metadata, capabilities }, context)) => {
            let capabilities = capabilities.into_iter().map(GrantedCapability::from).collect();
            KernelBody::Response { inherit, body, metadata, capabilities, context }
        }
    };
    let (blob, bytes) = match lazy_load_blob {
        Some(LazyLoadBlob { mime, bytes }) => (Some(BlobHead { mime }), bytes.into()),
        None => (None, Bytes::new()),
    };
    (KernelHead { id, source, target, rsvp, message, blob }, bytes)
}

/// The reverse, at the broker's side: capabilities and metadata stay behind, for the HTTP server looks at neither, and
/// a kernel could make them long.
pub(super) fn kernel_in(mut head: KernelHead, bytes: Vec<u8>) -> KernelMessage {
    match &mut head.message {
        KernelBody::Request { metadata, capabilities, .. } | KernelBody::Response { metadata, capabilities, .. } => {
            (*metadata, *capabilities) = (None, Vec::new());
        }
    }
    to_kernel(head, bytes)
}

/// The reverse, at the kernel's side: what the HTTP server sends, whole.
pub(super) fn to_kernel(head: KernelHead, bytes: Vec<u8>) -> KernelMessage {
    let KernelHead { id, source, target, rsvp, message, blob } = head;
    let message = match message {
        KernelBody::Request { inherit, expects_response, body, metadata, capabilities } => {
            let capabilities = capabilities.into_iter().map(Into::into).collect();
            node::Message::Request(node::Request { inherit, expects_response, body, metadata, capabilities })
        }
        KernelBody::Response { inherit, body, metadata, capabilities, context } => {
            let capabilities = capabilities.into_iter().map(Into::into).collect();
            node::Message::Response((node::Response { inherit, body, metadata, capabilities }, context))
        }
    };
    let lazy_load_blob = blob.map(|BlobHead { mime }| LazyLoadBlob { mime, bytes });
    KernelMessage { id, source, target, rsvp, message, lazy_load_blob }
}

impl From<(Capability, Vec<u8>)> for GrantedCapability {
    fn from((Capability { issuer, params }, signature): (Capability, Vec<u8>)) -> Self {
        Self { issuer, params, signature }
    }
}

impl From<GrantedCapability> for (Capability, Vec<u8>) {
    fn from(granted: GrantedCapability) -> Self {
        let GrantedCapability { issuer, params, signature } = granted;
        (Capability { issuer, params }, signature)
    }
}
