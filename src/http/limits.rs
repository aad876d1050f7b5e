//! The limits of a connection, and the refusal of a request that is over one, or malformed.
//!
//! It must not know how requests are parsed or refusals are sent.

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
    /// Bytes kept behind a request that is being answered; at this mark
    /// [`HttpConnection::wants_read`](super::HttpConnection::wants_read) says no. Default 64 KiB.
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
pub const BODY_TOO_LARGE: Rejection =
    Rejection::new(413, "the body is larger than body_bytes_max, or than body_bytes_max_logged_in of who is logged in");

impl Rejection {
    pub(crate) const fn new(status: u16, reason: &'static str) -> Self {
        Self { status, reason }
    }
}
