//! The system calls of a shard thread, as safe functions: reading, accepting, socket options, cores, file limits.
//!
//! Nothing here waits: reads and accepts return at once, whatever mode the socket is in. It must not know connections;
//! a closed socket is a dropped [`OwnedFd`].

use crate::shard::flush::SocketId;
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{self, RecvFlags, SocketFlags, sockopt};
use rustix::process::{Resource, Rlimit};
use rustix::thread::CpuSet;
use std::io::{self, Read};
use std::net::SocketAddr;

/// The result of a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadOutcome {
    /// This many bytes, at least one, now at the start of the buffer.
    Bytes(usize),
    /// Nothing yet.
    Nothing,
    /// The peer has sent its last byte.
    End,
}

/// Reads what `socket` holds, up to the length of `buffer` (not empty), without waiting.
///
/// # Errors
/// The socket is broken, usually `ECONNRESET` or `ETIMEDOUT`; close it.
pub fn receive(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<ReadOutcome> {
    debug_assert!(!buffer.is_empty(), "an empty read cannot be told from the end of the stream");
    loop {
        return match net::recv(&socket, &mut *buffer, RecvFlags::DONTWAIT) {
            Ok((0, _)) => Ok(ReadOutcome::End),
            Ok((length, _)) => Ok(ReadOutcome::Bytes(length)),
            Err(Errno::AGAIN) => Ok(ReadOutcome::Nothing),
            Err(Errno::INTR) => continue,
            Err(broken) => Err(broken.into()),
        };
    }
}

/// The result of accepting.
#[derive(Debug)]
pub enum AcceptOutcome {
    /// A client, non-blocking and close-on-exec, and where it comes from.
    Client(OwnedFd, SocketAddr),
    /// A client that had gone before it was accepted; look again.
    Gone,
    /// No client is waiting.
    Nobody,
    /// The process or the system is out of descriptors or memory. The client still waits in the backlog; let some
    /// time pass or close something first, for the listener stays readable.
    NoRoom(io::Error),
}

/// Accepts one client from a non-blocking listener.
///
/// # Errors
/// The listener itself is broken (`EBADF`, `EINVAL`, …): a fault of ours.
pub fn accept(listener: impl AsFd) -> io::Result<AcceptOutcome> {
    match net::acceptfrom_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
        Ok((socket, Some(address))) => Ok(match SocketAddr::try_from(address) {
            Ok(address) => AcceptOutcome::Client(socket, address),
            Err(_) => AcceptOutcome::Gone,
        }),
        Ok((_, None)) => Ok(AcceptOutcome::Gone),
        Err(Errno::AGAIN) => Ok(AcceptOutcome::Nobody),
        Err(error @ (Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM)) => {
            Ok(AcceptOutcome::NoRoom(error.into()))
        }
        // accept(2): errors already pending on the new socket are passed on, and are to be treated as if the client
        // had not come; EPERM is a firewall's no.
        Err(
            Errno::INTR
            | Errno::CONNABORTED
            | Errno::PERM
            | Errno::PROTO
            | Errno::NETDOWN
            | Errno::NETUNREACH
            | Errno::HOSTDOWN
            | Errno::HOSTUNREACH
            | Errno::NONET
            | Errno::NOPROTOOPT
            | Errno::OPNOTSUPP
            | Errno::TIMEDOUT,
        ) => Ok(AcceptOutcome::Gone),
        Err(broken) => Err(broken.into()),
    }
}

/// Ends the writing direction, and keeps reading possible (a plain close while the peer still sends becomes a reset and
/// may cost it our last bytes).
///
/// # Errors
/// `ENOTCONN` when the peer is gone already.
pub fn shutdown_write(socket: impl AsFd) -> io::Result<()> {
    Ok(net::shutdown(socket, net::Shutdown::Write)?)
}

/// The TCP options of client sockets. Linux copies them from the listener to each accepted socket (a test pins that
/// for this kernel), so they are set once, on the listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpOptions {
    /// `TCP_NOTSENT_LOWAT`, bytes: the socket counts as full when this much waits unsent in the kernel.
    pub notsent_lowat_bytes: u32,
    /// `TCP_USER_TIMEOUT`, ms: how long sent bytes may stay unacknowledged before the connection counts as dead.
    /// 0 leaves it to the system.
    pub user_timeout_ms: u32,
}

/// Sets `options` and `TCP_NODELAY` (frames are merged before they are sent; Nagle would only delay) on a listener,
/// or on a client socket to change its own.
///
/// # Errors
/// A value the kernel refuses, or no TCP socket.
pub fn set_tcp_options(socket: impl AsFd, options: &TcpOptions) -> io::Result<()> {
    sockopt::set_tcp_nodelay(&socket, true)?;
    // The kernel counts with a sign.
    sockopt::set_tcp_user_timeout(&socket, options.user_timeout_ms.min(i32::MAX as u32))?;
    set_tcp_notsent_lowat(socket.as_fd(), options.notsent_lowat_bytes)
}

/// Sets `TCP_NOTSENT_LOWAT` (tcp(7)), for which rustix has no call, and socket2 0.6.0 none either.
#[allow(unsafe_code)]
fn set_tcp_notsent_lowat(socket: BorrowedFd<'_>, bytes: u32) -> io::Result<()> {
    let length = size_of_val(&bytes) as libc::socklen_t;
    // SAFETY: the descriptor is borrowed for the call; the kernel reads `length` bytes at the pointer, which are
    // `bytes`, and keeps nothing of it.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_NOTSENT_LOWAT,
            std::ptr::from_ref(&bytes).cast(),
            length,
        )
    };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The cores this thread may run on, in order.
///
/// # Errors
/// The kernel has more cores than a `cpu_set_t` holds.
pub fn allowed_cores() -> io::Result<Vec<usize>> {
    let set = rustix::thread::sched_getaffinity(None)?;
    Ok((0..CpuSet::MAX_CPU).filter(|&core| set.is_set(core)).collect())
}

/// Keeps this thread on `core`, one of [`allowed_cores`].
///
/// # Errors
/// `EINVAL` when the core is not there or not allowed.
pub fn pin_to_core(core: usize) -> io::Result<()> {
    if core >= CpuSet::MAX_CPU {
        return Err(Errno::INVAL.into());
    }
    let mut set = CpuSet::new();
    set.set(core);
    Ok(rustix::thread::sched_setaffinity(None, &set)?)
}

/// Raises this process' soft limit of open files to its hard limit and returns it (`u64::MAX` when unlimited).
///
/// # Errors
/// The system refuses, although any process may raise its soft limit up to the hard one.
pub fn raise_open_files() -> io::Result<u64> {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        rustix::process::setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })?;
    }
    Ok(limit.maximum.unwrap_or(u64::MAX))
}

/// How many files this process may have open (`u64::MAX` when unlimited), and how many it has.
///
/// # Errors
/// There is no `/proc`.
pub fn open_files() -> io::Result<(u64, usize)> {
    let limit = rustix::process::getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    // Without the one that reads the list.
    Ok((limit, std::fs::read_dir("/proc/self/fd")?.count().saturating_sub(1)))
}

/// The number by which a shard names `socket` in a flush. Valid as long as `socket` stays open.
pub fn socket_id(socket: impl AsFd) -> SocketId {
    SocketId(socket.as_fd().as_raw_fd())
}

/// The descriptor behind a [`SocketId`], for the length of one call.
#[allow(unsafe_code)]
pub(super) fn borrow(socket: &SocketId) -> BorrowedFd<'_> {
    assert!(socket.0 >= 0, "a socket id is an open descriptor");
    // SAFETY: not -1, just checked. An id comes from `socket_id`, and the connection that owns the descriptor hands
    // it out for the length of a flush, during which it stays open. Were it stale nevertheless, the kernel would
    // answer EBADF or write to another file of ours: wrong, but no memory is at stake.
    unsafe { BorrowedFd::borrow_raw(socket.0) }
}

/// Unpredictable bytes.
///
/// # Errors
/// The system has no `/dev/urandom`.
pub fn random_bytes<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::net::{Shutdown, TcpListener, TcpStream};

    fn pair(listener: &TcpListener) -> (TcpStream, OwnedFd) {
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let AcceptOutcome::Client(server, from) = accept(listener).unwrap() else { panic!("a client waits") };
        assert_eq!(from, client.local_addr().unwrap());
        (client, server)
    }

    fn listener() -> TcpListener {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        listener
    }

    #[test]
    fn a_read_tells_bytes_from_nothing_from_the_end() {
        let (mut client, server) = pair(&listener());
        let mut buffer = [0; 8];
        assert_eq!(receive(&server, &mut buffer).unwrap(), ReadOutcome::Nothing);
        client.write_all(b"push").unwrap();
        assert_eq!(receive(&server, &mut buffer).unwrap(), ReadOutcome::Bytes(4));
        assert_eq!(&buffer[..4], b"push");
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(receive(&server, &mut buffer).unwrap(), ReadOutcome::End);
    }

    #[test]
    fn an_idle_listener_answers_at_once() {
        assert!(matches!(accept(listener()).unwrap(), AcceptOutcome::Nobody));
    }

    #[test]
    fn a_reset_peer_is_an_error() {
        let (client, server) = pair(&listener());
        socket2::SockRef::from(&client).set_linger(Some(std::time::Duration::ZERO)).unwrap();
        drop(client);
        let error = receive(&server, &mut [0; 8]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }

    #[test]
    fn accepted_sockets_inherit_the_listeners_options() {
        let listener = listener();
        let options = TcpOptions { notsent_lowat_bytes: 131_072, user_timeout_ms: 45_000 };
        set_tcp_options(&listener, &options).unwrap();
        let (client, server) = pair(&listener);
        assert!(sockopt::tcp_nodelay(&server).unwrap());
        assert_eq!(sockopt::tcp_user_timeout(&server).unwrap(), 45_000);
        assert_eq!(socket2::SockRef::from(&server).tcp_notsent_lowat().unwrap(), 131_072);
        assert!(rustix::io::fcntl_getfd(&server).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
        assert!(rustix::fs::fcntl_getfl(&server).unwrap().contains(rustix::fs::OFlags::NONBLOCK));
        assert!(!sockopt::tcp_nodelay(&client).unwrap(), "the other end keeps its own");
    }

    #[test]
    fn a_thread_is_pinned_inside_its_affinity_only() {
        std::thread::spawn(|| {
            let core = *allowed_cores().unwrap().last().unwrap();
            pin_to_core(core).unwrap();
            assert_eq!(allowed_cores().unwrap(), [core]);
            assert_eq!(rustix::thread::sched_getcpu(), core);
            assert!(pin_to_core(CpuSet::MAX_CPU - 1).is_err());
            assert!(pin_to_core(usize::MAX).is_err());
        })
        .join()
        .unwrap();
    }

    #[test]
    fn open_files_are_counted() {
        // Other tests open and close some meanwhile.
        let held: Vec<_> = (0..100).map(|_| listener()).collect();
        let (limit, open) = open_files().unwrap();
        assert!(open >= held.len() && open as u64 <= limit, "{open} of {limit}");
    }

    #[test]
    fn the_file_limit_goes_up_to_the_hard_one() {
        let files = raise_open_files().unwrap();
        assert_eq!(rustix::process::getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX), files);
    }
}
