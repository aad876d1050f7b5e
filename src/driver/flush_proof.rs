//! A check, run once per ring on sockets of its own, that its sends have the properties on which
//! [`UringFlush`](super::flush_uring::UringFlush) depends.
//!
//! For a socket pair and a TCP loopback pair, for SEND and for SENDMSG: a send that fits is silent; one that fits
//! partly reports its short count; one into a full socket reports "full"; what the reports add up to is what the peer
//! gets, byte for byte; and when the peer has read everything, nothing more completes or arrives.

use super::sys::{self, ReadOutcome, socket_id};
use crate::shard::flush::{Flush, OutgoingBytes, SendParts, ShortSend};
use rustix::fd::OwnedFd;
use std::io::{self, IoSlice};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;

/// Kernel buffers of the sockets, bytes: small, so that one send overfills them.
const SOCKET_BYTES: usize = 32 << 10;
/// One send, bytes: more than both ends' buffers hold.
const SEND_BYTES: usize = 1 << 20;
/// A socket is full after this many sends, or something is wrong.
const SENDS_MAX: usize = 64;

/// Why there is no ring for sends here. Use [`SendFlush`](super::flush_send::SendFlush).
#[derive(Debug, thiserror::Error)]
pub enum FlushUnavailable {
    /// No ring can be made: io_uring is missing, forbidden (seccomp, `kernel.io_uring_disabled`) or out of memory.
    #[error("no io_uring for sending: {0}")]
    NoRing(#[source] io::Error),
    /// The sockets that the proof needs could not be made.
    #[error("cannot open sockets to test the ring's sends: {0}")]
    NoSockets(#[source] io::Error),
    /// The kernel's sends do not behave as needed.
    #[error("this kernel's io_uring sends lack a property that is needed: {0}")]
    Unfit(String),
}

/// A [`Flush`] that reports what it should never do.
pub(super) trait ProvableFlush: Flush {
    /// Why it was given up for `send(2)`, if it was.
    fn gave_up(&self) -> Option<&str>;

    /// Runs work that the kernel may have deferred, and returns whether an unexpected completion has come.
    fn has_late_completion(&mut self) -> bool;
}

/// Proves `flush` fit for use on this kernel.
pub(super) fn prove(flush: &mut impl ProvableFlush) -> Result<(), FlushUnavailable> {
    // Neighbouring bytes differ, and so do blocks (251 is prime), so a gap or a repeat shows.
    let pattern: Vec<u8> = (0..SEND_BYTES).map(|place| (place % 251) as u8).collect();
    for (kind, pair) in [("socket pair", unix_pair as fn() -> _), ("TCP", tcp_pair)] {
        for gathered in [false, true] {
            let (sender, receiver) = pair().map_err(FlushUnavailable::NoSockets)?;
            let unfit = |why| FlushUnavailable::Unfit(format!("{kind}, gathered {gathered}: {why}"));
            Proof { flush, sender: &sender, receiver: &receiver, gathered, taken: Vec::new() }
                .run(&pattern)
                .map_err(unfit)?;
        }
    }
    Ok(())
}

struct Proof<'a, F> {
    flush: &'a mut F,
    sender: &'a OwnedFd,
    receiver: &'a OwnedFd,
    gathered: bool,
    /// The bytes that the socket took, according to the reports.
    taken: Vec<u8>,
}

impl<F: ProvableFlush> Proof<'_, F> {
    fn run(mut self, pattern: &[u8]) -> Result<(), String> {
        let small = &pattern[..1000];
        if self.send(small)? != small.len() {
            return Err("a small send into an empty socket is reported".to_owned());
        }
        let mut sent_partly = false;
        for _ in 0..SENDS_MAX {
            match self.send(pattern)? {
                0 if sent_partly => return self.check_end(),
                0 => return Err("no short count before the socket was full".to_owned()),
                taken => sent_partly |= taken < pattern.len(),
            }
        }
        Err("the socket is never reported full".to_owned())
    }

    /// Sends `bytes` and returns how many of them the report says were taken.
    fn send(&mut self, bytes: &[u8]) -> Result<usize, String> {
        let (head, tail) = bytes.split_at(bytes.len() / 3);
        let slices = [IoSlice::new(head), IoSlice::new(tail)];
        let parts = if self.gathered { SendParts::Many(&slices) } else { SendParts::One(bytes) };
        let mut short = Vec::new();
        self.flush.send_all(&[OutgoingBytes { socket: socket_id(self.sender), parts, is_last: false }], &mut short);
        if let Some(why) = self.flush.gave_up() {
            return Err(why.to_owned());
        }
        let taken = match short[..] {
            [] => bytes.len(),
            [ShortSend { index: 0, sent: Ok(taken) }] if taken < bytes.len() => taken,
            _ => return Err(format!("an impossible report: {short:?}")),
        };
        self.taken.extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }

    /// The peer reads everything, which makes room for whatever might still be armed; then nothing may have happened.
    fn check_end(&mut self) -> Result<(), String> {
        sys::shutdown_write(self.sender).map_err(|error| error.to_string())?;
        let mut got = Vec::with_capacity(self.taken.len());
        let mut buffer = vec![0; 64 << 10];
        loop {
            match sys::receive(self.receiver, &mut buffer).map_err(|error| error.to_string())? {
                ReadOutcome::Bytes(length) => got.extend_from_slice(&buffer[..length]),
                ReadOutcome::End => break,
                ReadOutcome::Nothing => wait_readable(self.receiver)?,
            }
        }
        if got != self.taken {
            return Err(format!("{} bytes reported as taken, {} arrived, or others", self.taken.len(), got.len()));
        }
        if self.flush.has_late_completion() {
            return Err("a send completed after its call had returned".to_owned());
        }
        match send_all_to_closed(self.flush, self.sender) {
            Err(libc::EPIPE) => Ok(()),
            other => Err(format!("a closed socket answers {other:?}")),
        }
    }
}

fn send_all_to_closed(flush: &mut impl Flush, sender: &OwnedFd) -> Result<usize, i32> {
    let mut short = Vec::new();
    let parts = SendParts::One(b"x");
    flush.send_all(&[OutgoingBytes { socket: socket_id(sender), parts, is_last: false }], &mut short);
    short.first().map_or(Ok(1), |short| short.sent)
}

fn wait_readable(socket: &OwnedFd) -> Result<(), String> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    const WAIT_MAX: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };
    match poll(&mut [PollFd::new(socket, PollFlags::IN)], Some(&WAIT_MAX)) {
        Ok(0) => Err("bytes reported as taken do not arrive".to_owned()),
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

fn unix_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (sender, receiver) = UnixStream::pair()?;
    small_buffers(sender.into(), receiver.into())
}

fn tcp_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let sender = TcpStream::connect(listener.local_addr()?)?;
    loop {
        // Another program may have connected to the port first.
        let (receiver, from) = listener.accept()?;
        if from == sender.local_addr()? {
            return small_buffers(sender.into(), receiver.into());
        }
    }
}

fn small_buffers(sender: OwnedFd, receiver: OwnedFd) -> io::Result<(OwnedFd, OwnedFd)> {
    rustix::io::ioctl_fionbio(&sender, true)?;
    rustix::net::sockopt::set_socket_send_buffer_size(&sender, SOCKET_BYTES)?;
    rustix::net::sockopt::set_socket_recv_buffer_size(&receiver, SOCKET_BYTES)?;
    Ok((sender, receiver))
}
