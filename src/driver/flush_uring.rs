//! [`Flush`] by a small io_uring of the shard's own thread, beside monoio's.
//!
//! A whole batch costs one system call per [`ENTRIES`] sends, and a send that took everything posts no completion. Each
//! send carries `MSG_WAITALL | MSG_DONTWAIT` and `IOSQE_CQE_SKIP_SUCCESS`: with both message flags a short write is a
//! failure, hence reported, and nothing waits; without either of them a short write would be silent or stay armed
//! with our buffer. No kernel documents that as a promise, so [`UringFlush::new`] proves it on sockets of its own
//! (`flush_proof.rs`) and gives the ring up where it does not hold.
//!
//! Invariants: when `send_all` returns, the submission queue is empty and no send is in flight, so no pointer into the
//! batch survives. A ring that breaks that, or that the kernel will not serve, is given up for `send(2)` for good.
//!
//! A batch of fewer than [`BATCH_MIN`] entries leaves by `send(2)`, which is cheaper there. CPU µs per send of 128
//! bytes to 1,000 loopback connections, median of 15 alternating rounds each (`benches/flush.rs`; 2 cores, Linux 6.18,
//! other work running, so compare within a row):
//!
//! | batch | 1 | 2 | 3 | 4 | 8 | 16 | 64 | 256 |
//! |---|---|---|---|---|---|---|---|---|
//! | `send(2)` | 3.64 | 2.61 | 2.65 | 3.03 | 2.90 | 2.54 | 2.71 | 2.89 |
//! | ring | 4.07 | 2.85 | 2.77 | 3.02 | 2.84 | 2.37 | 2.38 | 2.46 |

#![allow(unsafe_code)]

pub use super::flush_proof::FlushUnavailable;
use super::flush_proof::{self, ProvableFlush};
use super::flush_send::{self, SendFlush};
use crate::shard::flush::{Flush, OutgoingBytes, PARTS_MAX, SendParts, ShortSend};
use io_uring::squeue::{Entry, Flags};
use io_uring::{IoUring, opcode, types::Fd};
use std::io;

/// Sends per submission. More than 64 gains nothing measurable; 256 is the shard's batch.
pub const ENTRIES: u32 = 256;

/// From this many sends on the ring is used.
pub const BATCH_MIN: usize = 4;

/// The most bytes the kernel takes in one send; it would cut a longer one without calling it short.
const SEND_BYTES_MAX: usize = 0x7fff_f000;

const SEND_FLAGS: i32 = libc::MSG_WAITALL | libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;

/// How often in a row the kernel may refuse a submission for lack of memory or because it was interrupted.
const REFUSALS_MAX: u32 = 64;

/// Sends batches through its own ring. Made and used on one thread.
pub struct UringFlush {
    ring: Option<IoUring>,
    /// The headers of the chunk being submitted. Its pointers are stale between calls and never followed then.
    headers: Vec<libc::msghdr>,
    batch_min: usize,
    gave_up: Option<String>,
}

impl UringFlush {
    /// A ring whose sends have been proved on this kernel; takes about a millisecond.
    ///
    /// # Errors
    /// There is no such ring; see [`FlushUnavailable`].
    pub fn new() -> Result<Self, FlushUnavailable> {
        let mut flush = Self::unproved().map_err(FlushUnavailable::NoRing)?;
        flush.batch_min = 1;
        flush_proof::prove(&mut flush)?;
        flush.batch_min = BATCH_MIN;
        Ok(flush)
    }

    fn unproved() -> io::Result<Self> {
        let ring = build_ring()?;
        Ok(Self {
            ring: Some(ring),
            headers: Vec::with_capacity(ENTRIES as usize),
            batch_min: BATCH_MIN,
            gave_up: None,
        })
    }

    /// From how many sends on a batch uses the ring; below, `send(2)`. For measurements and tests;
    /// [`BATCH_MIN`] is measured to be best.
    #[must_use]
    pub fn with_batch_min(mut self, batch_min: usize) -> Self {
        self.batch_min = batch_min;
        self
    }

    /// Why the ring was given up for `send(2)` while running, if it was. It has been logged.
    pub fn gave_up(&self) -> Option<&str> {
        self.gave_up.as_deref()
    }

    /// At most once: without a ring nothing can break.
    fn give_up(&mut self, why: String) {
        tracing::warn!(why, "the io_uring for sends has failed: send(2) is used from now on, at a higher cost");
        self.ring = None;
        self.gave_up = Some(why);
    }

    /// Sends `chunk`, at most [`ENTRIES`] entries, whose first has the index `base` in the batch. Returns how many
    /// entries the kernel took; fewer than all only when the ring is unusable.
    fn send_chunk(
        ring: &mut IoUring,
        headers: &mut Vec<libc::msghdr>,
        chunk: &[OutgoingBytes<'_>],
        base: usize,
        short: &mut Vec<ShortSend>,
    ) -> (usize, Result<(), String>) {
        headers.clear();
        let mut queue = ring.submission();
        for (offset, outgoing) in chunk.iter().enumerate() {
            let entry = entry(outgoing, headers).flags(Flags::SKIP_SUCCESS).user_data((base + offset) as u64);
            // SAFETY: the entry points into `chunk` (borrowed until we return) and into `headers`, which has room for
            // a whole chunk and so does not move while it grows. The kernel follows these pointers during
            // `submit_all` only: it takes each entry and, for DONTWAIT, finishes it there (proved at start), and
            // entries it did not take are not left behind: the caller drops a ring that has any.
            unsafe { queue.push(&entry) }.expect("a chunk fits the empty queue");
        }
        drop(queue);
        let result = submit_all(ring);
        let left = ring.submission().len();
        for completion in ring.completion() {
            let index = completion.user_data() as usize;
            let sent = match completion.result() {
                refused if refused == -libc::EAGAIN => Ok(0),
                error if error < 0 => Err(-error),
                taken => Ok(taken as usize),
            };
            short.push(ShortSend { index, sent });
        }
        (chunk.len() - left, result)
    }
}

impl ProvableFlush for UringFlush {
    fn gave_up(&self) -> Option<&str> {
        self.gave_up.as_deref()
    }

    fn has_late_completion(&mut self) -> bool {
        let Some(ring) = &mut self.ring else { return false };
        // SAFETY: the flags ask for nothing but GETEVENTS (1): no submission, no wait, no argument.
        let _ = unsafe { ring.submitter().enter::<libc::sigset_t>(0, 0, 1, None) };
        !ring.completion().is_empty()
    }
}

impl Flush for UringFlush {
    fn send_all(&mut self, batch: &[OutgoingBytes<'_>], short: &mut Vec<ShortSend>) {
        if batch.len() < self.batch_min {
            return SendFlush.send_all(batch, short);
        }
        let mut done = 0;
        while done < batch.len() {
            let Some(ring) = &mut self.ring else { break };
            if !ring.completion().is_empty() {
                self.give_up("a send completed after its call had returned".to_owned());
                break;
            }
            let chunk = &batch[done..batch.len().min(done + ENTRIES as usize)];
            let (taken, result) = Self::send_chunk(ring, &mut self.headers, chunk, done, short);
            done += taken;
            if let Err(why) = result {
                self.give_up(why);
            }
        }
        let reported = short.len();
        SendFlush.send_all(&batch[done..], short);
        for late in &mut short[reported..] {
            late.index += done;
        }
    }
}

/// The send of one entry; a header it needs is put behind the others.
fn entry(outgoing: &OutgoingBytes<'_>, headers: &mut Vec<libc::msghdr>) -> Entry {
    let socket = Fd(outgoing.socket.0);
    assert!(flush_send::length(&outgoing.parts) <= SEND_BYTES_MAX, "a send is bounded by its channel's budget");
    let flags = SEND_FLAGS | if outgoing.is_last { libc::MSG_MORE } else { 0 };
    match outgoing.parts {
        SendParts::One(bytes) => opcode::Send::new(socket, bytes.as_ptr(), bytes.len() as u32).flags(flags).build(),
        SendParts::Many(slices) => {
            assert!(slices.len() <= PARTS_MAX && headers.len() < headers.capacity());
            // SAFETY: a msghdr is plain old data for which all zeroes mean "nothing".
            let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
            // std guarantees that an IoSlice has the layout of an iovec; the kernel only reads a sender's.
            header.msg_iov = slices.as_ptr().cast_mut().cast();
            header.msg_iovlen = slices.len() as _;
            headers.push(header);
            opcode::SendMsg::new(socket, &headers[headers.len() - 1]).flags(flags as u32).build()
        }
    }
}

/// Submits until the queue is empty. The completion queue holds twice the submission queue and was empty, so it cannot
/// overflow.
fn submit_all(ring: &mut IoUring) -> Result<(), String> {
    let mut refusals = 0;
    loop {
        let before = ring.submission().len();
        if before == 0 {
            return Ok(());
        }
        // A submission may be short without an error: the kernel stops at an entry it finds malformed (and completes
        // it), unless the ring has SUBMIT_ALL.
        let error = match ring.submit() {
            Ok(_) if ring.submission().len() < before => {
                refusals = 0;
                continue;
            }
            Ok(_) => "the kernel takes no sends".to_owned(),
            Err(error) => match error.raw_os_error() {
                Some(libc::EINTR | libc::EAGAIN | libc::EBUSY) => error.to_string(),
                _ => return Err(format!("the ring is broken: {error}")),
            },
        };
        refusals += 1;
        if refusals == REFUSALS_MAX {
            return Err(format!("the ring is stuck: {error}"));
        }
    }
}

/// Newer flags first; an older kernel answers EINVAL to those it does not know.
fn build_ring() -> io::Result<IoUring> {
    let build = |setup: &dyn Fn(&mut io_uring::Builder)| {
        let mut builder = IoUring::builder();
        setup(builder.dontfork());
        builder.build(ENTRIES)
    };
    build(&|builder| {
        builder.setup_single_issuer().setup_coop_taskrun().setup_submit_all();
    })
    .or_else(|_| {
        build(&|builder| {
            builder.setup_coop_taskrun().setup_submit_all();
        })
    })
    .or_else(|_| build(&|_| {}))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::sys::socket_id;
    use std::os::unix::net::UnixStream;
    use std::sync::{Arc, Mutex};

    #[test]
    fn a_ring_that_breaks_is_given_up_without_losing_a_send() {
        let log = logged(broken_ring);
        assert_eq!(log.matches("tried out").count(), 1, "{log}");
    }

    fn broken_ring() {
        let mut flush = UringFlush::new().unwrap();
        let (here, _there) = UnixStream::pair().unwrap();
        let (broken, _) = UnixStream::pair().unwrap();
        let batch = [
            OutgoingBytes { socket: socket_id(&here), parts: SendParts::One(b"x"), is_last: false },
            OutgoingBytes { socket: socket_id(&broken), parts: SendParts::One(b"x"), is_last: false },
        ];
        flush.give_up("tried out".to_owned());
        let mut short = Vec::new();
        flush.send_all(&batch, &mut short);
        assert_eq!(short, [ShortSend { index: 1, sent: Err(libc::EPIPE) }]);
        assert_eq!(flush.gave_up(), Some("tried out"));
    }

    /// The log meanwhile, at the level of warnings and above. All tests that give up a ring run through this: if there
    /// is no subscriber when a callsite first logs, tracing caches that there never will be.
    fn logged(run: impl FnOnce()) -> String {
        #[derive(Clone, Default)]
        struct Log(Arc<Mutex<Vec<u8>>>);
        impl io::Write for Log {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0.lock().unwrap().write(bytes)
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let log = Log::default();
        let writer = log.clone();
        let subscriber =
            tracing_subscriber::fmt().with_max_level(tracing::Level::WARN).with_writer(move || writer.clone()).finish();
        tracing::subscriber::with_default(subscriber, run);
        String::from_utf8(std::mem::take(&mut log.0.lock().unwrap())).unwrap()
    }

    #[test]
    fn a_late_completion_ends_the_ring_and_is_logged_once() {
        let log = logged(late_completion);
        assert_eq!(log.matches("WARN").count(), 1, "{log}");
        assert!(log.contains("has failed") && log.contains("a send completed after its call had returned"), "{log}");
    }

    fn late_completion() {
        let mut flush = UringFlush::new().unwrap();
        let ring = flush.ring.as_mut().unwrap();
        // SAFETY: a Nop points nowhere.
        unsafe { ring.submission().push(&opcode::Nop::new().build()) }.unwrap();
        ring.submit().unwrap();
        let (broken, _) = UnixStream::pair().unwrap();
        let outgoing = OutgoingBytes { socket: socket_id(&broken), parts: SendParts::One(b"x"), is_last: false };
        let mut short = Vec::new();
        flush.send_all(&[outgoing; BATCH_MIN], &mut short);
        assert!(flush.gave_up().is_some());
        assert_eq!(short.iter().map(|short| short.index).collect::<Vec<_>>(), [0, 1, 2, 3]);
        flush.send_all(&[outgoing; BATCH_MIN], &mut short);
    }
}
