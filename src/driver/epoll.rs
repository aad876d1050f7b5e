//! One epoll set for all sockets of a shard, in which its thread sleeps.
//!
//! Sockets are registered once, edge-triggered for both directions, so an idle connection costs no user memory and a
//! busy one no call but its own reads.
//!
//! Invariants: an edge is reported once. A reader that stops before the socket answers "nothing" has to remember that
//! itself. Events beyond the event buffer stay in the set for the next poll: nothing is lost.

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use std::io;
use std::time::Duration;

/// The events of a socket since it was last reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocketReadiness {
    /// The token it was added under.
    pub token: u64,
    /// Bytes, an end or an error wait to be read.
    pub readable: bool,
    /// It takes bytes (again). Comes along with other news, too, so it says little when nothing is queued.
    pub writable: bool,
    /// The peer has sent its last byte, or nothing travels any more.
    pub hangup: bool,
    /// Nothing travels any more, either way: reset, failed, or both sides have ended.
    pub broken: bool,
}

/// Sockets being watched. Dropping a socket's last descriptor takes it out of the set.
#[derive(Debug)]
pub struct ReadySet {
    epoll: OwnedFd,
}

/// The events of one poll, a buffer to be used again.
pub struct EpollEvents(Vec<epoll::Event>);

impl ReadySet {
    /// An empty set.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn new() -> io::Result<Self> {
        Ok(Self { epoll: epoll::create(CreateFlags::CLOEXEC)? })
    }

    /// Watches `socket` both ways, edge-triggered. What is ready already is reported by the next poll.
    ///
    /// # Errors
    /// It is in the set already, or the system's limit of watches is reached.
    pub fn add(&self, socket: impl AsFd, token: u64) -> io::Result<()> {
        let interest = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        Ok(epoll::add(&self.epoll, socket, EventData::new_u64(token), interest)?)
    }

    /// Watches `source` (a wake, a timer) for reading, edge-triggered.
    ///
    /// # Errors
    /// As for [`add`](Self::add).
    pub fn add_source(&self, source: impl AsFd, token: u64) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, source, EventData::new_u64(token), EventFlags::IN | EventFlags::ET)?)
    }

    /// Watches `listener` for clients, edge-triggered. Where other sets watch the same listener, a client need not wake
    /// all of them (epoll_ctl(2), EPOLLEXCLUSIVE).
    ///
    /// # Errors
    /// As for [`add`](Self::add).
    pub fn add_listener(&self, listener: impl AsFd, token: u64) -> io::Result<()> {
        let interest = EventFlags::IN | EventFlags::ET | EventFlags::EXCLUSIVE;
        Ok(epoll::add(&self.epoll, listener, EventData::new_u64(token), interest)?)
    }

    /// Stops watching `socket`. Events polled before may still name its token.
    ///
    /// # Errors
    /// It is not in the set.
    pub fn remove(&self, socket: impl AsFd) -> io::Result<()> {
        Ok(epoll::delete(&self.epoll, socket)?)
    }

    /// Replaces the content of `events` with what is ready now, without waiting. When they are
    /// [full](EpollEvents::is_full) there may be more.
    ///
    /// # Errors
    /// None that a valid set can have.
    pub fn poll(&self, events: &mut EpollEvents) -> io::Result<()> {
        self.poll_until(events, &Timespec { tv_sec: 0, tv_nsec: 0 })
    }

    /// As [`poll`](Self::poll), but waits for the first event, for `timeout` at most. Nothing else happens on this
    /// thread meanwhile.
    ///
    /// # Errors
    /// None that a valid set can have.
    pub fn wait(&self, events: &mut EpollEvents, timeout: Duration) -> io::Result<()> {
        let timeout = Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: i64::from(timeout.subsec_nanos()) };
        self.poll_until(events, &timeout)
    }

    fn poll_until(&self, events: &mut EpollEvents, timeout: &Timespec) -> io::Result<()> {
        events.0.clear();
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events.0), Some(timeout)) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

impl EpollEvents {
    /// Room for `events_max` events a poll.
    ///
    /// # Panics
    /// When `events_max` is 0.
    pub fn with_capacity(events_max: usize) -> Self {
        assert!(events_max > 0);
        Self(Vec::with_capacity(events_max))
    }

    /// Returns whether the last poll filled the buffer.
    pub fn is_full(&self) -> bool {
        self.0.len() == self.0.capacity()
    }

    /// The events of the last poll.
    pub fn iter(&self) -> impl Iterator<Item = SocketReadiness> + '_ {
        self.0.iter().map(|event| {
            let (flags, data) = (event.flags, event.data);
            let hangup = flags.intersects(EventFlags::RDHUP | EventFlags::HUP);
            let broken = flags.intersects(EventFlags::ERR | EventFlags::HUP);
            SocketReadiness {
                token: data.u64(),
                readable: hangup || broken || flags.contains(EventFlags::IN),
                writable: flags.contains(EventFlags::OUT),
                hangup,
                broken,
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::wake::WakeFd;
    use crate::queue::orders::Wake;
    use std::io::{Read, Write};
    use std::net::Shutdown;
    use std::os::unix::net::UnixStream;

    fn polled(set: &ReadySet, events: &mut EpollEvents) -> Vec<SocketReadiness> {
        set.poll(events).unwrap();
        events.iter().collect()
    }

    #[test]
    fn an_edge_is_reported_once() {
        let (mut here, there) = UnixStream::pair().unwrap();
        let (set, mut events) = (ReadySet::new().unwrap(), EpollEvents::with_capacity(4));
        set.add(&there, u64::MAX).unwrap();
        let fresh = SocketReadiness { token: u64::MAX, readable: false, writable: true, hangup: false, broken: false };
        assert_eq!(polled(&set, &mut events), [fresh]);
        assert_eq!(polled(&set, &mut events), []);
        here.write_all(b"x").unwrap();
        assert_eq!(polled(&set, &mut events), [SocketReadiness { readable: true, ..fresh }]);
        assert_eq!(polled(&set, &mut events), [], "unread, but no news");
        here.shutdown(Shutdown::Write).unwrap();
        assert_eq!(polled(&set, &mut events), [SocketReadiness { readable: true, hangup: true, ..fresh }]);
        set.remove(&there).unwrap();
        drop(here);
        assert_eq!(polled(&set, &mut events), []);
        assert!(set.remove(&there).is_err());
    }

    #[test]
    fn a_full_socket_reports_when_it_takes_bytes_again() {
        let (mut here, mut there) = UnixStream::pair().unwrap();
        there.set_nonblocking(true).unwrap();
        let (set, mut events) = (ReadySet::new().unwrap(), EpollEvents::with_capacity(4));
        set.add(&there, 7).unwrap();
        polled(&set, &mut events);
        let mut queued = 0;
        while let Ok(taken) = there.write(&[0; 4096]) {
            queued += taken;
        }
        assert_eq!(polled(&set, &mut events), []);
        here.read_exact(&mut vec![0; queued]).unwrap();
        let news = polled(&set, &mut events);
        assert!(news.len() == 1 && news[0].writable && news[0].token == 7);
    }

    #[test]
    fn what_does_not_fit_the_buffer_comes_next_time() {
        let (set, mut events) = (ReadySet::new().unwrap(), EpollEvents::with_capacity(2));
        let pairs: Vec<_> = (0..5).map(|_| UnixStream::pair().unwrap()).collect();
        for (token, (_, there)) in pairs.iter().enumerate() {
            set.add(there, token as u64).unwrap();
        }
        let mut seen = Vec::new();
        loop {
            seen.extend(polled(&set, &mut events).iter().map(|event| event.token));
            if !events.is_full() {
                break;
            }
        }
        seen.sort_unstable();
        assert_eq!(seen, [0, 1, 2, 3, 4]);
    }

    #[test]
    fn each_wake_is_news_though_nobody_drains() {
        let (set, mut events) = (ReadySet::new().unwrap(), EpollEvents::with_capacity(2));
        let wake = WakeFd::new().unwrap();
        set.add_source(&wake, 1).unwrap();
        for _ in 0..100 {
            assert_eq!(polled(&set, &mut events), []);
            wake.wake();
            wake.wake();
            let news = polled(&set, &mut events);
            assert!(news.len() == 1 && news[0].readable);
        }
    }
}
