//! The transport of a process' messages: the seam between this library and the program that runs the process.
//!
//! A backend moves messages and nothing else. Matching responses to requests, contexts, timeouts, the prompting message
//! and the current blob are kept above it, so that they are the same in the broker's own process, behind a socket and
//! in a test.

use super::body::Body;
use crate::node::{
    Address, Capability, HttpServerRequest, KernelMessage, LazyLoadBlob, Message, Request, Response, WsMessageType,
    http_server_process,
};
use bytes::Bytes;
use std::time::Instant;

/// Nothing is delivered any more, in either direction. The process has to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the process was stopped")]
pub struct BackendStopped;

/// How a process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exit {
    /// Its function returned.
    Returned,
    /// It was stopped from outside.
    Stopped,
    /// It panicked, with this message.
    Panicked(String),
}

/// Why a request did not reach its target, or its response not us.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum SendErrorKind {
    /// The target's node or process cannot be reached.
    Offline,
    /// No response came in time.
    Timeout,
}

impl SendErrorKind {
    /// Returns whether it is `Offline`.
    pub fn is_offline(&self) -> bool {
        matches!(self, Self::Offline)
    }

    /// Returns whether it is `Timeout`.
    pub fn is_timeout(&self) -> bool {
        matches!(self, Self::Timeout)
    }
}

/// Moves the messages of one process. Used on that process' thread only.
pub trait Backend: Send {
    /// Hands on a message. May wait until the receiver has room, never for a client or an answer. What cannot be
    /// delivered comes back as [`BackendDelivery::Undelivered`] if a response was expected, else it is lost, as in a
    /// node.
    ///
    /// # Errors
    /// When the process was stopped.
    fn send(&mut self, message: KernelMessage) -> Result<(), BackendStopped>;

    /// The next delivery; none when `deadline` has passed, which it may have before the call: then only what is here
    /// already is given. Without a deadline, waits.
    ///
    /// # Errors
    /// When the process was stopped and everything delivered before was taken.
    fn receive(&mut self, deadline: Option<Instant>) -> Result<Option<BackendDelivery>, BackendStopped>;

    /// Pushes to a channel of the HTTP server of `push.node` and expects no answer. A backend beside the broker
    /// overrides this to skip the JSON.
    ///
    /// # Errors
    /// When the process was stopped.
    fn push(&mut self, push: BackendPush) -> Result<(), BackendStopped> {
        self.send(push.into_message())
    }

    /// The process ended. Whatever it held is released when this returns.
    fn ended(self: Box<Self>, exit: &Exit) {
        let _ = exit;
    }
}

/// A push that expects no answer.
#[derive(Debug)]
pub struct BackendPush {
    /// The id of its KernelMessage.
    pub id: u64,
    /// The sender.
    pub source: Address,
    /// The node whose server has the channel.
    pub node: String,
    /// The channel.
    pub channel_id: u32,
    /// The type of the frame.
    pub message_type: WsMessageType,
    /// The payload.
    pub blob: LazyLoadBlob,
}

impl BackendPush {
    /// The Request that says the same.
    pub fn into_message(self) -> KernelMessage {
        let body = HttpServerRequest::WebSocketPush { channel_id: self.channel_id, message_type: self.message_type };
        KernelMessage {
            id: self.id,
            source: self.source,
            target: Address::new(self.node, http_server_process()),
            rsvp: None,
            message: Message::Request(Request { body: body.to_bytes(), ..Request::default() }),
            lazy_load_blob: Some(self.blob),
        }
    }
}

/// A delivery of a backend to its process.
#[derive(Debug)]
pub enum BackendDelivery {
    /// A request.
    Request(BackendRequest),
    /// The response to the request of this id.
    Response {
        /// The id of the request.
        id: u64,
        /// The process that answers.
        source: Address,
        /// The answer.
        response: Response,
        /// Its blob.
        blob: Option<Blob>,
    },
    /// The request of this id could not be delivered.
    Undelivered {
        /// The id of the request.
        id: u64,
        /// Why.
        kind: SendErrorKind,
    },
}

/// A request to the process.
#[derive(Debug)]
pub struct BackendRequest {
    /// Its id, which the response carries too.
    pub id: u64,
    /// The requester.
    pub source: Address,
    /// The recipient of the response, if that is not the source.
    pub rsvp: Option<Address>,
    /// Seconds within which the response is expected; none: it expects none.
    pub expects_response: Option<u64>,
    /// The body.
    pub body: Body,
    /// Text beside the body.
    pub metadata: Option<String>,
    /// Capabilities that came with it.
    pub capabilities: Vec<Capability>,
    /// Its blob.
    pub blob: Option<Blob>,
}

/// A received blob: shared bytes, copied only when the process takes them as its own.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Blob {
    /// The MIME type.
    pub mime: Option<String>,
    /// The bytes.
    pub bytes: Bytes,
}

impl From<LazyLoadBlob> for Blob {
    fn from(blob: LazyLoadBlob) -> Self {
        Self { mime: blob.mime, bytes: blob.bytes.into() }
    }
}

impl From<Blob> for LazyLoadBlob {
    /// Copies only if the bytes are shared.
    fn from(blob: Blob) -> Self {
        Self { mime: blob.mime, bytes: blob.bytes.into() }
    }
}

impl From<KernelMessage> for BackendDelivery {
    fn from(message: KernelMessage) -> Self {
        let KernelMessage { id, source, rsvp, message, lazy_load_blob, .. } = message;
        let blob = lazy_load_blob.map(Blob::from);
        match message {
            Message::Request(request) => Self::Request(BackendRequest {
                id,
                source,
                rsvp,
                expects_response: request.expects_response,
                body: request.body.into(),
                metadata: request.metadata,
                capabilities: request.capabilities.into_iter().map(|(capability, _)| capability).collect(),
                blob,
            }),
            // The context beside a response is the sender's, not ours.
            Message::Response((response, _)) => Self::Response { id, source, response, blob },
        }
    }
}
