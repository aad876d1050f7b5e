//! The interface between the shard and the code that sends its bytes: one call sends a batch, and borrows shard memory
//! only until it returns.
//!
//! Invariants: when `send_all` returns, nothing of the batch is in flight and no pointer into it survives; a send that
//! took everything is not reported; any other is reported exactly once. The shard applies the reports after the call,
//! so it needs no unsafe. Implementations live in the driver (io_uring, `send(2)`) and in the simulation (memory).

use std::io::IoSlice;

/// A socket as the driver numbers it. The shard only hands it back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SocketId(pub i32);

/// The next bytes for one socket.
#[derive(Debug, Clone, Copy)]
pub struct OutgoingBytes<'a> {
    /// The socket.
    pub socket: SocketId,
    /// The bytes, in order.
    pub parts: SendParts<'a>,
    /// The end of the stream follows in this very turn, if the socket takes all bytes: they may wait for it and leave
    /// in one segment with it.
    pub is_last: bool,
}

/// The bytes of one send: one slice, or several that leave as if joined.
#[derive(Debug, Clone, Copy)]
pub enum SendParts<'a> {
    /// A single contiguous slice, never empty.
    One(&'a [u8]),
    /// At most [`PARTS_MAX`] slices, together never empty.
    Many(&'a [IoSlice<'a>]),
}

/// The most slices one send may gather: Linux' `UIO_MAXIOV`.
pub const PARTS_MAX: usize = 1024;

/// A send that did not take all of its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShortSend {
    /// Its place in the batch.
    pub index: usize,
    /// How many bytes were taken, or why the socket is broken (an errno). A full socket is `Ok(0)`.
    pub sent: Result<usize, i32>,
}

/// Sends batches.
pub trait Flush {
    /// Offers each entry of `batch` to its socket without waiting for any, in any order between sockets, and appends
    /// to `short` every entry that was not taken whole. The batch names no socket twice.
    fn send_all(&mut self, batch: &[OutgoingBytes<'_>], short: &mut Vec<ShortSend>);
}
