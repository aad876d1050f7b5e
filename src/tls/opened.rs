//! The results of received records: plain data, the same with and without the feature `tls`.

use super::alert::Alert;

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
    /// So many records were whole.
    pub records: usize,
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
