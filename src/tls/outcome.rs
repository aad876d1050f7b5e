//! The results of handshakes: plain data, the same with and without the feature `tls`.

use super::alert::Alert;
#[cfg(feature = "tls")]
use super::record::TlsState;
#[cfg(not(feature = "tls"))]
use super::without::TlsState;

/// The result of a client's bytes.
#[derive(Debug)]
pub enum HandshakeStep {
    /// More is to come from the client. Whether it was answered meanwhile: that is what a handshake costs.
    Goes {
        /// Keys were exchanged, and signed for.
        has_answered: bool,
    },
    /// The connection is established.
    Done(Box<Established>),
    /// It is not, and never will be.
    Failed(HandshakeFailure),
}

/// An established connection.
#[derive(Debug)]
pub struct Established {
    /// With which its records go on.
    pub state: TlsState,
    /// Bytes of the client that came behind the handshake: records, or the beginning of one.
    pub rest: Vec<u8>,
    /// It takes up an earlier one.
    pub is_resumed: bool,
}

/// Why there is no connection. What the client is to be told is among the bytes to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HandshakeFailure {
    /// The alert that was sent, or received; `None` where none was, or which is not known.
    pub alert: Option<Alert>,
    /// It was the client that gave up.
    pub by_client: bool,
    /// In words, for logs.
    pub why: String,
}
