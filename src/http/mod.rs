//! HTTP/1.1 (RFC 9110, RFC 9112), server side: bytes in, whole requests out; responses in, bytes out.
//!
//! Sans-IO: no sockets, no clock (the date of a response is an argument), no threads. A [`HttpConnection`] holds the
//! state of one socket between reads: a partial head, a partial body, pipelined bytes that wait for their turn.
//!
//! Invariants: a request that another reader could frame differently is refused (RFC 9112 section 11.2); all data kept
//! for a peer is bounded by [`HttpLimits`]; after a refusal the connection closes; a response cannot be split or given
//! extra headers by its values, because names are tokens and values hold no control characters.
//!
//! It must not know the rules of entry, the meaning of paths, processes, or WebSocket frames.

pub mod body;
pub mod connection;
pub mod content;
pub mod cookies;
pub mod head;
pub mod query;
pub mod response;
pub mod target;

pub use connection::{AfterResponse, HttpConnection, HttpStep, ParsedRequest};
pub use content::Content;
pub use head::{BodyFraming, Head, Header};
pub use response::{Date, HeaderFields, PreparedResponse, ResponseHeaderError, TooManyFields};
pub use target::{Authority, RequestTarget};

/// The interim answer to `Expect: 100-continue` (RFC 9110 section 10.1.1).
pub const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// The limits of one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HttpLimits {
    /// Request line and header fields together; above it 431. Default 16 KiB: twice what browsers and proxies send at
    /// most (8 KiB), so that a large cookie jar passes.
    pub head_bytes_max: usize,
    /// Header fields of a request, and at most [`HEADERS_MAX`]; above it 431. Default 100.
    pub header_count_max: usize,
    /// A request's body after decoding; above it 413. Default 16 MiB, the largest WebSocket message.
    pub body_bytes_max: usize,
    /// Chunk extensions, and trailer fields, of one request; above it 400 and 431. Both are dropped unread, so this
    /// only bounds wasted work. Default 4 KiB each.
    pub chunk_extra_bytes_max: usize,
    /// Bytes kept behind a request that is being answered; at this mark [`HttpConnection::wants_read`] says no. Default
    /// 64 KiB.
    pub pipelined_bytes_max: usize,
}

/// The most header fields any configuration may allow: the parser's array lives on the stack.
pub const HEADERS_MAX: usize = 128;

impl Default for HttpLimits {
    fn default() -> Self {
        Self {
            head_bytes_max: 16 << 10,
            header_count_max: 100,
            body_bytes_max: 16 << 20,
            chunk_extra_bytes_max: 4 << 10,
            pipelined_bytes_max: 64 << 10,
        }
    }
}

/// The reason for refusing a request before it was routed: the client's fault. The connection answers with this status
/// and closes, since the start of the next request in the stream is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{status}: {reason}")]
pub struct Rejection {
    /// The response's status code, 4xx or 5xx.
    pub status: u16,
    /// The fault, in words that may be sent to the client.
    pub reason: &'static str,
}

/// A body over its limit.
pub const BODY_TOO_LARGE: Rejection = Rejection::new(413, "the body is too large");

impl Rejection {
    pub(crate) const fn new(status: u16, reason: &'static str) -> Self {
        Self { status, reason }
    }

    /// The response to send; it closes the connection.
    pub fn response(self) -> PreparedResponse {
        PreparedResponse::text(self.status, self.reason).closing()
    }
}
