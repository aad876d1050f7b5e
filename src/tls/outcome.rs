//! The results of handshakes and records: plain data, the same with and without the feature `tls`.

use super::{Alert, TlsState};

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

/// Why nothing more is received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReceiveEnd {
    /// The peer has said that it sends nothing more.
    CloseNotify,
    /// The peer has given up.
    Told(Alert),
    /// The peer has broken the protocol, and is to be told so.
    Broken(Alert),
}

/// The result of receiving.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenedRecords {
    /// So many bytes of data, now at the start of what was given.
    pub plain: usize,
    /// So many bytes at the end are the beginning of a record: they are to be given again, with what follows.
    pub rest: usize,
    /// Something is to be sealed and sent, even if there is no data: see
    /// [`Records::seal_due`](super::Records::seal_due).
    pub is_answer_due: bool,
    /// Set if this is the last.
    pub ended: Option<ReceiveEnd>,
}
