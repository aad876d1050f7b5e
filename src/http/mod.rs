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

pub mod accept;
pub mod body;
pub mod connection;
pub mod content;
pub mod cookies;
pub mod head;
pub mod limits;
pub mod query;
pub mod response;
pub mod target;

pub use connection::{AfterResponse, HttpConnection, HttpStep, ParsedRequest};
pub use content::Content;
pub use head::{BodyFraming, Head, Header};
pub use limits::{BODY_TOO_LARGE, HEADERS_MAX, HttpLimits, Rejection};
pub use response::{Date, HeaderFields, PreparedResponse, ResponseHeaderError, TooManyFields};
pub use target::{Authority, RequestTarget};

/// The interim answer to `Expect: 100-continue` (RFC 9110 section 10.1.1).
pub const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
