//! Sends through io_uring with nothing around it: the floor that pushing can be measured against.
//!
//! Invariants: each send is `MSG_WAITALL | MSG_DONTWAIT` with `CQE_SKIP_SUCCESS`, so a completion appears only for a
//! socket that did not take everything, and when `send_all` returns nothing is in flight.

use std::io;
use std::os::fd::RawFd;

use io_uring::{IoUring, opcode, squeue, types};

use super::raw::{Piece, SendAll, Short};

/// Sends of one submission.
const BATCH: usize = 256;

/// A ring of its own.
pub(super) struct Ring(IoUring);

impl Ring {
    /// A ring for [`BATCH`] sends at a time.
    pub(super) fn new() -> io::Result<Self> {
        IoUring::builder().setup_single_issuer().setup_coop_taskrun().build(BATCH as u32).map(Self)
    }

    fn submit_all(&mut self) -> io::Result<()> {
        while !self.0.submission().is_empty() {
            self.0.submit()?;
        }
        Ok(())
    }

    fn collect(&mut self, short: &mut Vec<Short>) {
        for completion in self.0.completion() {
            let index = completion.user_data() as usize;
            let sent = match completion.result() {
                errno if errno == -libc::EAGAIN => Ok(0),
                count if count >= 0 => Ok(count as usize),
                errno => Err(io::Error::from_raw_os_error(-errno)),
            };
            short.push(Short { index, sent });
        }
    }
}

impl SendAll for Ring {
    fn send_all(&mut self, batch: &[(RawFd, Piece)], bytes: &[u8], short: &mut Vec<Short>) -> io::Result<()> {
        for (number, group) in batch.chunks(BATCH).enumerate() {
            for (index, (fd, piece)) in group.iter().enumerate() {
                let part = &bytes[piece.start..piece.end];
                let flags = libc::MSG_WAITALL | libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
                let entry = opcode::Send::new(types::Fd(*fd), part.as_ptr(), part.len() as u32)
                    .flags(flags)
                    .build()
                    .flags(squeue::Flags::SKIP_SUCCESS)
                    .user_data((number * BATCH + index) as u64);
                // SAFETY: `part` lives until this function returns, and it returns only after the kernel has consumed
                // every entry; a send with MSG_DONTWAIT has then read the bytes or has failed, it never waits.
                unsafe { self.0.submission().push(&entry) }.expect("a group is no larger than the ring");
            }
            self.submit_all()?;
            self.collect(short);
        }
        Ok(())
    }
}
