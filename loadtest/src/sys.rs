//! The system calls that neither std nor socket2 wrap: epoll, CPU affinity, a monotonic clock that several OS
//! processes share, fork and shared memory.
//!
//! Invariants: this file and `reference/raw_ring.rs` hold all of the load tester's `unsafe`; every function here checks
//! what the kernel answers and returns it as an `io::Result`. It knows nothing of WebSocket.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::AtomicU64;
use std::time::Duration;

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Nanoseconds of `CLOCK_MONOTONIC`, the same clock in every process of this machine.
pub(crate) fn now_ns() -> u64 {
    clock_ns(libc::CLOCK_MONOTONIC)
}

/// Nanoseconds that the calling thread has run.
pub(crate) fn thread_cpu_ns() -> u64 {
    clock_ns(libc::CLOCK_THREAD_CPUTIME_ID)
}

fn clock_ns(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid timespec for the whole call.
    let result = unsafe { libc::clock_gettime(clock, &mut time) };
    assert_eq!(result, 0, "both clocks are always there on Linux");
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// An epoll event of one file descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ready {
    /// The token the descriptor was added with.
    pub token: u64,
    /// The socket can be written.
    pub writable: bool,
    /// The peer shut its side down, or the socket is broken: read until it says so.
    pub ended: bool,
}

/// An epoll set.
#[derive(Debug)]
pub(crate) struct Epoll {
    fd: OwnedFd,
}

/// The array that [`Epoll::wait`] fills.
pub(crate) struct EventBuffer {
    events: Vec<libc::epoll_event>,
    filled: usize,
}

impl EventBuffer {
    /// Room for `capacity` events of one wait.
    pub(crate) fn new(capacity: usize) -> Self {
        Self { events: vec![libc::epoll_event { events: 0, u64: 0 }; capacity], filled: 0 }
    }

    /// Event `index` of the last wait.
    pub(crate) fn get(&self, index: usize) -> Ready {
        let event = self.events[..self.filled][index];
        let flags = event.events as libc::c_int;
        Ready {
            token: event.u64,
            writable: flags & libc::EPOLLOUT != 0,
            ended: flags & (libc::EPOLLRDHUP | libc::EPOLLHUP | libc::EPOLLERR) != 0,
        }
    }
}

impl Epoll {
    /// An empty set.
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: no pointer is passed; the result is checked before it becomes an owned descriptor.
        let fd = check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        // SAFETY: `fd` was just made and has no other owner.
        Ok(Self { fd: unsafe { OwnedFd::from_raw_fd(fd) } })
    }

    /// Watches `fd` for reading and writing, edge-triggered. Closing the descriptor removes it.
    pub(crate) fn add_edge(&self, fd: BorrowedFd<'_>, token: u64) -> io::Result<()> {
        self.add(fd, token, libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLRDHUP | libc::EPOLLET)
    }

    /// Watches `fd` for reading, level-triggered.
    pub(crate) fn add_readable(&self, fd: BorrowedFd<'_>, token: u64) -> io::Result<()> {
        self.add(fd, token, libc::EPOLLIN | libc::EPOLLRDHUP)
    }

    fn add(&self, fd: BorrowedFd<'_>, token: u64, flags: libc::c_int) -> io::Result<()> {
        let mut event = libc::epoll_event { events: flags as u32, u64: token };
        // SAFETY: both descriptors are open for the call, `event` outlives it.
        check(unsafe { libc::epoll_ctl(self.fd.as_raw_fd(), libc::EPOLL_CTL_ADD, fd.as_raw_fd(), &mut event) })?;
        Ok(())
    }

    /// Waits up to `timeout_ms` (0 returns at once) and returns how many events `buffer` holds now.
    pub(crate) fn wait(&self, buffer: &mut EventBuffer, timeout_ms: i32) -> io::Result<usize> {
        let capacity = buffer.events.len() as libc::c_int;
        // SAFETY: the kernel writes at most `capacity` events into an array of that length.
        let result = unsafe { libc::epoll_wait(self.fd.as_raw_fd(), buffer.events.as_mut_ptr(), capacity, timeout_ms) };
        buffer.filled = match check(result) {
            Ok(count) => count as usize,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => return Err(error),
        };
        Ok(buffer.filled)
    }
}

/// Lets the kernel choose the source port only when the socket connects, so that thousands of sockets may share a
/// source address (`IP_BIND_ADDRESS_NO_PORT`).
pub(crate) fn bind_address_no_port(socket: &impl AsFd) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: `on` is a c_int and its size is passed with it.
    check(unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    })?;
    Ok(())
}

/// Moves the calling thread, and every thread and process it starts from now on, into the network namespace of `file`.
pub(crate) fn enter_network(file: &impl AsFd) -> io::Result<()> {
    // SAFETY: the descriptor is open as long as it is borrowed, and the call changes nothing but this thread's
    // namespace.
    check(unsafe { libc::setns(file.as_fd().as_raw_fd(), libc::CLONE_NEWNET) })?;
    Ok(())
}

/// Sends a signal to a process.
pub(crate) fn signal(pid: u32, signal: libc::c_int) -> io::Result<()> {
    let pid = libc::pid_t::try_from(pid).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    // SAFETY: the call takes no memory.
    check(unsafe { libc::kill(pid, signal) })?;
    Ok(())
}

/// Pins the calling thread, and every thread and process it starts from now on, to `cpus`.
pub(crate) fn pin_to(cpus: &[usize]) -> io::Result<()> {
    // SAFETY: a cpu_set_t of zeros is the empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    for &cpu in cpus {
        if cpu >= libc::CPU_SETSIZE as usize {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("no CPU {cpu}")));
        }
        // SAFETY: `cpu` is below CPU_SETSIZE, so the bit lies inside the set.
        unsafe { libc::CPU_SET(cpu, &mut set) };
    }
    // SAFETY: `set` is initialised and its size is passed with it.
    check(unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set) })?;
    Ok(())
}

/// The CPUs the calling thread may run on.
pub(crate) fn allowed_cpus() -> io::Result<Vec<usize>> {
    // SAFETY: a cpu_set_t of zeros is the empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes at most the size that is passed.
    check(unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut set) })?;
    // SAFETY: every index is below CPU_SETSIZE.
    Ok((0..libc::CPU_SETSIZE as usize).filter(|&cpu| unsafe { libc::CPU_ISSET(cpu, &set) }).collect())
}

/// Asks process `pid` to end (SIGTERM). Only for processes that this one started.
pub(crate) fn terminate(pid: u32) -> io::Result<()> {
    // SAFETY: no pointer is passed.
    check(unsafe { libc::kill(pid as libc::pid_t, libc::SIGTERM) })?;
    Ok(())
}

/// The most file descriptors this process may open.
pub(crate) fn descriptors_max() -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is valid for the whole call.
    check(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) })?;
    let raised = libc::rlimit { rlim_cur: limit.rlim_max, rlim_max: limit.rlim_max };
    // SAFETY: `raised` is valid for the whole call.
    check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raised) })?;
    Ok(raised.rlim_cur)
}

/// Counters that this process shares with the ones it forks.
#[derive(Debug)]
pub(crate) struct SharedCounters {
    start: *const AtomicU64,
    count: usize,
}

impl SharedCounters {
    /// `count` counters, all zero. The mapping lives until the process ends.
    pub(crate) fn new(count: usize) -> io::Result<Self> {
        let bytes = count.max(1) * size_of::<AtomicU64>();
        // SAFETY: a fresh anonymous mapping; nothing existing is replaced.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            Err(io::Error::last_os_error())
        } else {
            Ok(Self { start: start.cast(), count })
        }
    }

    /// The counters.
    pub(crate) fn all(&self) -> &[AtomicU64] {
        // SAFETY: the mapping is page aligned, zeroed, at least `count` atomics long and never unmapped; zero is a
        // valid AtomicU64.
        unsafe { std::slice::from_raw_parts(self.start, self.count) }
    }
}

/// A forked process and the read end of the pipe it reports through.
#[derive(Debug)]
pub(crate) struct Forked {
    /// Its process id.
    pub pid: u32,
    /// The child's output; ends when the child ends.
    pub report: File,
}

/// Forks. The child runs `work` with the write end of the pipe, then ends with the exit code that `work` returns; the
/// parent gets the child. Must be called while the process has a single thread.
pub(crate) fn fork(work: impl FnOnce(File) -> i32) -> io::Result<Forked> {
    let threads = std::fs::read_dir("/proc/self/task")?.count();
    assert_eq!(threads, 1, "fork while other threads run would copy their locks as they are");
    let (reader, writer) = io::pipe()?;
    // SAFETY: the process has one thread (checked above), so the child holds no lock of another.
    match check(unsafe { libc::fork() })? {
        0 => {
            drop(reader);
            let work = std::panic::AssertUnwindSafe(|| work(File::from(OwnedFd::from(writer))));
            // A panic must not unwind into what the parent owns; its message is printed already.
            let code = std::panic::catch_unwind(work).unwrap_or(101);
            // SAFETY: ends the child at once, without running the parent's exit handlers a second time.
            unsafe { libc::_exit(code) }
        }
        pid => Ok(Forked { pid: pid as u32, report: File::from(OwnedFd::from(reader)) }),
    }
}

/// Reads to the end of `file`; `None` when that takes longer than `limit`.
pub(crate) fn read_to_end_within(file: &mut File, limit: Duration) -> io::Result<Option<Vec<u8>>> {
    let deadline_ns = now_ns() + limit.as_nanos() as u64;
    let (mut bytes, mut buffer) = (Vec::new(), [0; 16 * 1024]);
    loop {
        let left_ms = deadline_ns.saturating_sub(now_ns()).div_ceil(1_000_000);
        let mut poll = libc::pollfd { fd: file.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one pollfd, valid for the whole call.
        let ready = check(unsafe { libc::poll(&mut poll, 1, left_ms.min(i32::MAX as u64) as libc::c_int) })?;
        if ready == 0 {
            return Ok(None);
        }
        match file.read(&mut buffer)? {
            0 => return Ok(Some(bytes)),
            count => bytes.extend_from_slice(&buffer[..count]),
        }
    }
}

/// Waits for a forked child and returns its exit code, or the negated signal that ended it.
pub(crate) fn wait_for(pid: u32) -> io::Result<i32> {
    let mut status = 0;
    // SAFETY: `status` is valid for the whole call.
    check(unsafe { libc::waitpid(pid as libc::pid_t, &mut status, 0) })?;
    Ok(if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { -libc::WTERMSIG(status) })
}

fn send(fd: RawFd, bytes: &[u8], flags: libc::c_int) -> io::Result<usize> {
    // SAFETY: the pointer and length are those of a live slice; a descriptor that is not open gives EBADF.
    let sent = unsafe { libc::send(fd, bytes.as_ptr().cast(), bytes.len(), flags | libc::MSG_NOSIGNAL) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(sent as usize) }
}

/// Sends what the socket takes at once.
pub(crate) fn send_now(fd: RawFd, bytes: &[u8]) -> io::Result<usize> {
    send(fd, bytes, libc::MSG_DONTWAIT)
}

/// Sends everything, waiting as long as it takes.
pub(crate) fn send_waiting(fd: RawFd, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        bytes = &bytes[send(fd, bytes, 0)?..];
    }
    Ok(())
}

/// The number of a descriptor, for `/proc` and io_uring.
pub(crate) fn number_of(fd: &impl AsFd) -> RawFd {
    fd.as_fd().as_raw_fd()
}
