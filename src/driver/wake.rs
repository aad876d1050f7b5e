//! Wakes a sleeping shard from another thread: an eventfd in the shard's [`ReadySet`](super::epoll::ReadySet).
//!
//! Invariant: a wake after the set was last polled is reported by its next poll, drained or not (each write to an
//! eventfd is an edge of its own; a test pins that). So the shard need not read it, which saves a call per wake.

use crate::queue::orders::Wake;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use std::io;

/// An eventfd, written by producers and watched by one shard.
#[derive(Debug)]
pub struct WakeFd(OwnedFd);

impl WakeFd {
    /// A wake that has not been written to.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn new() -> io::Result<Self> {
        Ok(Self(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    /// Forgets the wakes so far. Says whether there were any. Only a level-triggered waiter needs this.
    pub fn drain(&self) -> bool {
        let mut count = [0; 8];
        rustix::io::read(&self.0, &mut count).is_ok()
    }
}

impl Wake for WakeFd {
    fn wake(&self) {
        match rustix::io::write(&self.0, &1_u64.to_ne_bytes()) {
            // The counter stands at its maximum: the shard has been woken 2^64 − 2 times without ever draining.
            Ok(_) | Err(Errno::AGAIN) => {}
            Err(error) => unreachable!("an eventfd takes eight bytes: {error}"),
        }
    }
}

impl AsFd for WakeFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wakes_are_counted_and_forgotten() {
        let wake = WakeFd::new().unwrap();
        assert!(!wake.drain());
        wake.wake();
        wake.wake();
        assert!(wake.drain());
        assert!(!wake.drain());
    }
}
