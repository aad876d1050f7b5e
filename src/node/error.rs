//! The HTTP server's answers to an action: success, one of five refusals (another for a grant or a subscription), or
//! counts. And why the server itself ended.
//!
//! The JSON of an answer is that of `Result`: `{"Ok":null}` or `{"Err":"WsChannelNotFound"}`. Nodes before Kinode 0.10
//! have other names for the refusals.

use crate::broker::{AttachError, Outcome, ShardDied, StartError};
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

/// Why the server ended, other than by the node's will.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// It did not start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The secret is empty.
    #[error("the JWT secret is empty")]
    Secret,
    /// The broker stopped as it started.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// No thread.
    #[error("cannot start a thread of the server: {0}")]
    Thread(#[from] std::io::Error),
    /// A bug, or a kernel of the system that refuses what it always grants.
    #[error(transparent)]
    Died(#[from] ShardDied),
    /// A thread of the server panicked.
    #[error("a thread of the server panicked")]
    Panicked,
}

/// Why an action was refused. The fault is always the asking process'; nothing was done. It is read by either name that
/// it has had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(from = "ReadHttpServerError")]
pub enum HttpServerError {
    /// The body is no action, or one that the server only sends, or a Text push that is not UTF-8.
    #[error("the request is not an action that the http server performs")]
    MalformedRequest,
    /// The action needs a blob; or an extension push is not Binary.
    #[error("the action needs a blob")]
    NoBlob,
    /// A process with such an id, or on another node, may not bind paths.
    #[error("this process may not bind paths")]
    InvalidSourceProcess,
    /// The payload of a Ping or Pong is over 125 bytes (RFC 6455, section 5.5).
    #[error("a ping or pong carries 125 bytes at most")]
    WsPingPongTooLong,
    /// No live channel of that id belongs to the process.
    #[error("no channel of this id belongs to the process")]
    WsChannelNotFound,
    /// A `WebSocketGrant`, and no other action, met as many guests as a channel (64) or a process (1,024) may have.
    #[error("guest limit reached (64 for a channel, 1024 for a process)")]
    TooManyGrants,
    /// A `WebSocketSubscribe`, and no other action: the channel has as many topics as it may have (128), all channels
    /// together have, or there is no memory.
    #[error("subscription limit reached (128 topics for a channel; subscriptions_max for all), or no memory")]
    TooManySubscriptions,
}

/// A refusal as it may be written.
#[derive(Deserialize)]
enum ReadHttpServerError {
    MalformedRequest,
    NoBlob,
    InvalidSourceProcess,
    WsPingPongTooLong,
    WsChannelNotFound,
    TooManyGrants,
    TooManySubscriptions,
    BadRequest(IgnoredAny),
    PathBindError(IgnoredAny),
    WebSocketPushError { error: String },
}

impl From<ReadHttpServerError> for HttpServerError {
    fn from(read: ReadHttpServerError) -> Self {
        use ReadHttpServerError as Read;
        match read {
            Read::MalformedRequest | Read::BadRequest(_) => Self::MalformedRequest,
            Read::NoBlob => Self::NoBlob,
            Read::InvalidSourceProcess | Read::PathBindError(_) => Self::InvalidSourceProcess,
            Read::WsPingPongTooLong => Self::WsPingPongTooLong,
            Read::WsChannelNotFound => Self::WsChannelNotFound,
            Read::TooManyGrants => Self::TooManyGrants,
            Read::TooManySubscriptions => Self::TooManySubscriptions,
            Read::WebSocketPushError { error } => {
                let others = [Self::WsPingPongTooLong, Self::TooManyGrants, Self::TooManySubscriptions];
                let named = others.into_iter().find(|other| other.to_string() == error);
                named.unwrap_or(Self::WsChannelNotFound)
            }
        }
    }
}

/// A refusal in the words of nodes before Kinode 0.10: their process libraries know no others.
#[derive(Debug, Serialize)]
pub(super) enum OldHttpServerError {
    BadRequest { req: String },
    NoBlob,
    PathBindError { error: String },
    WebSocketPushError { error: String },
}

impl From<HttpServerError> for OldHttpServerError {
    fn from(error: HttpServerError) -> Self {
        let words = error.to_string();
        match error {
            HttpServerError::MalformedRequest => Self::BadRequest { req: words },
            HttpServerError::NoBlob => Self::NoBlob,
            HttpServerError::InvalidSourceProcess => Self::PathBindError { error: words },
            HttpServerError::WsPingPongTooLong
            | HttpServerError::WsChannelNotFound
            | HttpServerError::TooManyGrants
            | HttpServerError::TooManySubscriptions => Self::WebSocketPushError { error: words },
        }
    }
}

/// The outcome of a push to many channels, in channels. The body of the answers to `WebSocketPushMany` and
/// `WebSocketBroadcast`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PushCounts {
    /// Given to the socket at once.
    pub sent: u64,
    /// Waiting in the channel's queue.
    pub queued: u64,
    /// Bytes that wait in those queues.
    pub queued_bytes: u64,
    /// Replaced an older frame of the same key.
    pub conflated: u64,
    /// Dropped by the channel's policy.
    pub dropped: u64,
    /// The channel was closed by its policy or was closing.
    pub closed: u64,
    /// No such channel.
    pub not_found: u64,
    /// The channel belongs to another process.
    pub not_owner: u64,
}

impl From<&Outcome> for PushCounts {
    fn from(outcome: &Outcome) -> Self {
        Self {
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
}

impl From<PushCounts> for Outcome {
    fn from(counts: PushCounts) -> Self {
        Self {
            sent: counts.sent as usize,
            queued: counts.queued as usize,
            queued_bytes: counts.queued_bytes as usize,
            conflated: counts.conflated as usize,
            dropped: counts.dropped as usize,
            closed: counts.closed as usize,
            not_found: counts.not_found as usize,
            not_owner: counts.not_owner as usize,
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_read_by_either_name() {
        for error in [
            HttpServerError::MalformedRequest,
            HttpServerError::NoBlob,
            HttpServerError::InvalidSourceProcess,
            HttpServerError::WsPingPongTooLong,
            HttpServerError::WsChannelNotFound,
            HttpServerError::TooManyGrants,
            HttpServerError::TooManySubscriptions,
        ] {
            let (now, once) = (serde_json::to_vec(&error), serde_json::to_vec(&OldHttpServerError::from(error)));
            for json in [now.unwrap(), once.unwrap()] {
                let read: HttpServerError = serde_json::from_slice(&json).unwrap();
                assert_eq!(read, error, "{}", json.escape_ascii());
            }
        }
    }
}
