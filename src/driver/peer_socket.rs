//! The sockets for peers that are no clients: a Unix socket that only its owner or a named group may open, or TCP,
//! plain or under TLS.
//!
//! Invariants of the Unix socket: no other user can open it from its first moment; a living daemon's is never replaced,
//! a dead one's is; a file that is no socket is never removed; at the end only our own file is removed.

use super::tls_stream::TlsStream;
use crate::tls::{Acceptor, Trust};
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::sockopt;
use socket2::{Domain, SockAddr, Socket, Type};
use std::fs;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a link's directory may stay locked by another daemon that starts: that takes it a moment.
const LOCK_WITHIN: Duration = Duration::from_secs(5);

/// The peer of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Credential {
    /// A process of this user.
    User(u32),
    /// A peer over TCP, which has the token.
    Token,
}

/// The users that may open a Unix socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    /// The permission bits of its file: connecting is writing (unix(7)).
    pub mode: u32,
    /// The group that its file belongs to; none: that of this process.
    pub group: Option<u32>,
}

impl Default for Access {
    /// This user alone.
    fn default() -> Self {
        Self { mode: 0o600, group: None }
    }
}

/// A connected socket.
#[derive(Debug)]
pub enum PeerStream {
    Unix(UnixStream),
    Tcp(TcpStream),
    Tls(Box<TlsStream>),
}

impl PeerStream {
    /// Connects to a Unix socket, within `timeout` where as many wait to be accepted as may.
    pub fn unix(path: &Path, timeout: Duration) -> io::Result<Self> {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        // Linux: connect(2) to a Unix socket waits for room in the backlog as long as a send may take.
        socket.set_write_timeout(Some(timeout))?;
        socket.connect(&SockAddr::unix(path)?).map_err(timed_out)?;
        socket.set_write_timeout(None)?;
        Ok(Self::Unix(rustix::fd::OwnedFd::from(socket).into()))
    }

    /// Connects over TCP, within `timeout` for each address that the name has.
    pub fn tcp(address: &str, timeout: Duration) -> io::Result<Self> {
        connect(address, timeout).map(Self::Tcp)
    }

    /// The same under TLS, to a server that `trust` lets pass; the handshake has `timeout` for each of its steps.
    pub fn tls(address: &str, trust: &Trust, timeout: Duration) -> io::Result<Self> {
        let tcp = connect(address, timeout)?;
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
        let duplex = trust.connect(host.trim_start_matches('[').trim_end_matches(']'))?;
        let stream = TlsStream::new(tcp, duplex);
        stream.tcp.set_read_timeout(Some(timeout))?;
        stream.tcp.set_write_timeout(Some(timeout))?;
        stream.shake_hands().map_err(timed_out)?;
        stream.tcp.set_write_timeout(None)?;
        Ok(Self::Tls(Box::new(stream)))
    }

    /// Returns whether [`write_now`](Self::write_now) may write: a record must leave as a whole, so under TLS writing
    /// may always wait.
    pub fn writes_now(&self) -> bool {
        !matches!(self, Self::Tls(_))
    }

    /// The socket, where it is one of TCP.
    fn tcp_socket(&self) -> Option<&TcpStream> {
        match self {
            Self::Unix(_) => None,
            Self::Tcp(stream) => Some(stream),
            Self::Tls(stream) => Some(&stream.tcp),
        }
    }

    /// The user at the other end; over TCP only the token identifies the peer.
    pub fn user(&self) -> io::Result<Option<u32>> {
        match self {
            Self::Unix(stream) => Ok(Some(sockopt::socket_peercred(stream)?.uid.as_raw())),
            Self::Tcp(_) | Self::Tls(_) => Ok(None),
        }
    }

    /// Where the other end is, if it is elsewhere than on a Unix socket.
    pub fn peer_ip(&self) -> Option<IpAddr> {
        // A peer that is gone already has no address.
        let address_of = |stream: &TcpStream| stream.peer_addr().map_or(IpAddr::from([0; 4]), |address| address.ip());
        self.tcp_socket().map(address_of)
    }

    /// Ends what waits in reading or writing, on either side.
    pub fn shutdown(&self) {
        // Fails where the other side was first.
        let _ = match self {
            Self::Unix(stream) => stream.shutdown(Shutdown::Both),
            Self::Tcp(stream) => stream.shutdown(Shutdown::Both),
            Self::Tls(stream) => {
                stream.shutdown();
                Ok(())
            }
        };
    }

    /// Writes as many of `bytes` as go without waiting: 0 where none do.
    ///
    /// # Errors
    /// The stream's.
    pub fn write_now(&self, bytes: &[u8]) -> io::Result<usize> {
        let flags = rustix::net::SendFlags::DONTWAIT | rustix::net::SendFlags::NOSIGNAL;
        let sent = match self {
            Self::Unix(stream) => rustix::net::send(stream, bytes, flags),
            Self::Tcp(stream) => rustix::net::send(stream, bytes, flags),
            Self::Tls(_) => Err(Errno::AGAIN),
        };
        match sent {
            Ok(count) => Ok(count),
            Err(Errno::AGAIN | Errno::INTR) => Ok(0),
            Err(error) => Err(error.into()),
        }
    }

    pub fn set_read_timeout(&self, timeout: Duration) -> io::Result<()> {
        match self {
            Self::Unix(stream) => stream.set_read_timeout(Some(timeout)),
            Self::Tcp(stream) => stream.set_read_timeout(Some(timeout)),
            Self::Tls(stream) => stream.tcp.set_read_timeout(Some(timeout)),
        }
    }

    pub fn set_write_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        match self {
            Self::Unix(stream) => stream.set_write_timeout(timeout),
            Self::Tcp(stream) => stream.set_write_timeout(timeout),
            Self::Tls(stream) => stream.tcp.set_write_timeout(timeout),
        }
    }
}

impl Read for &PeerStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            PeerStream::Unix(stream) => (&*stream).read(buffer),
            PeerStream::Tcp(stream) => (&*stream).read(buffer),
            PeerStream::Tls(stream) => (&**stream).read(buffer),
        }
    }
}

impl Write for &PeerStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            PeerStream::Unix(stream) => (&*stream).write(bytes),
            PeerStream::Tcp(stream) => (&*stream).write(bytes),
            PeerStream::Tls(stream) => (&**stream).write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Connects a socket, within `timeout` for each address that the name has.
fn connect(address: &str, timeout: Duration) -> io::Result<TcpStream> {
    let mut error = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in address.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, timeout) {
            Ok(stream) => return stream.set_nodelay(true).map(|()| stream),
            Err(failed) => error = failed,
        }
    }
    Err(error)
}

/// The reading end of a stream: with a deadline for all that is read, then with one for each silence.
pub(crate) struct DeadlineReader {
    stream: Arc<PeerStream>,
    deadline: Option<Instant>,
}

impl DeadlineReader {
    /// Everything has to be read by `deadline`.
    pub(crate) fn until(stream: Arc<PeerStream>, deadline: Instant) -> Self {
        Self { stream, deadline: Some(deadline) }
    }

    /// From now on a silence may last so long.
    pub(crate) fn allow_silence(&mut self, silence: Duration) -> io::Result<()> {
        self.deadline = None;
        self.stream.set_read_timeout(silence)
    }
}

impl Read for DeadlineReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if let Some(deadline) = self.deadline {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.stream.set_read_timeout(left)?;
        }
        (&*self.stream).read(buffer).map_err(timed_out)
    }
}

/// The text for a socket's timeout (socket(7), SO_RCVTIMEO and SO_SNDTIMEO).
fn timed_out(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::WouldBlock => io::ErrorKind::TimedOut.into(),
        _ => error,
    }
}

/// The reason why it cannot listen.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PeerListenError {
    /// A daemon that runs has it.
    #[error("{0} is the socket of a daemon that runs")]
    InUse(PathBuf),
    /// It would have to be removed.
    #[error("{0} exists and is no socket: choose another path or remove it")]
    NoSocket(PathBuf),
    /// Everything else.
    #[error("cannot listen on {at}: {error}")]
    Io {
        /// The path or address.
        at: String,
        /// The system's error.
        error: io::Error,
    },
}

/// A listening socket.
pub(crate) enum PeerListener {
    Unix {
        listener: UnixListener,
        _file: SocketFile,
    },
    /// Under TLS, if there is an acceptor.
    Tcp(TcpListener, Option<Acceptor>),
}

/// The file of a Unix socket; removed when this is dropped.
pub(crate) struct SocketFile {
    path: PathBuf,
    /// Device and inode.
    identity: (u64, u64),
}

impl PeerListener {
    /// Listens on a Unix socket that only the users in `access` may open.
    pub(crate) fn unix(path: &Path, access: Access) -> Result<Self, PeerListenError> {
        let failed = |error: io::Error| PeerListenError::Io { at: path.display().to_string(), error };
        // Held until the socket has its name, so that of two daemons that start the second sees the first.
        let _lock = lock_directory(path).map_err(failed)?;
        match fs::symlink_metadata(path) {
            Ok(metadata) if !metadata.file_type().is_socket() => {
                return Err(PeerListenError::NoSocket(path.to_owned()));
            }
            Ok(_) => match is_listened_to(path) {
                Ok(true) => return Err(PeerListenError::InUse(path.to_owned())),
                Ok(false) => {}
                Err(error) => return Err(failed(error)),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
        let (listener, file) = bind_and_rename(path, access).map_err(failed)?;
        Ok(Self::Unix { listener, _file: file })
    }

    /// Listens on TCP; under TLS with an acceptor.
    pub(crate) fn tcp(address: SocketAddr, acceptor: Option<Acceptor>) -> Result<Self, PeerListenError> {
        let listener = TcpListener::bind(address);
        Ok(Self::Tcp(listener.map_err(|error| PeerListenError::Io { at: address.to_string(), error })?, acceptor))
    }

    /// The next connection. An error after [`stop`](Self::stop).
    pub(crate) fn accept(&self) -> io::Result<PeerStream> {
        match self {
            Self::Unix { listener, .. } => Ok(PeerStream::Unix(listener.accept()?.0)),
            Self::Tcp(listener, acceptor) => {
                let stream = listener.accept()?.0;
                stream.set_nodelay(true)?;
                Ok(match acceptor {
                    None => PeerStream::Tcp(stream),
                    Some(acceptor) => PeerStream::Tls(Box::new(TlsStream::new(stream, acceptor.accept()?))),
                })
            }
        }
    }

    /// Ends what waits in [`accept`](Self::accept).
    pub(crate) fn stop(&self) {
        // Linux: accept(2) then gives EINVAL, for either kind.
        let _ = match self {
            Self::Unix { listener, .. } => rustix::net::shutdown(listener, rustix::net::Shutdown::Both),
            Self::Tcp(listener, _) => rustix::net::shutdown(listener, rustix::net::Shutdown::Both),
        };
    }

    /// The address, where it is TCP.
    pub(crate) fn address(&self) -> io::Result<Option<SocketAddr>> {
        match self {
            Self::Unix { .. } => Ok(None),
            Self::Tcp(listener, _) => listener.local_addr().map(Some),
        }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let is_ours = fs::symlink_metadata(&self.path).is_ok_and(|metadata| identity(&metadata) == self.identity);
        if is_ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the socket");
        }
    }
}

/// Whether a daemon listens on the socket, even one that no longer accepts. Does not wait for it.
///
/// # Errors
/// There is no such socket, or it is not to be connected to.
pub fn is_listened_to(path: &Path) -> io::Result<bool> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    match socket.connect(&SockAddr::unix(path)?) {
        Ok(()) => Ok(true),
        // Linux: EAGAIN where the backlog is full.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(false),
        Err(error) => Err(error),
    }
}

fn identity(metadata: &fs::Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

/// Locks the directory of `path` until the answer is dropped.
fn lock_directory(path: &Path) -> io::Result<rustix::fd::OwnedFd> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let directory = rustix::fs::open(parent, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let until = Instant::now() + LOCK_WITHIN;
    loop {
        match rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(directory),
            Err(Errno::WOULDBLOCK) if Instant::now() < until => std::thread::sleep(Duration::from_millis(10)),
            Err(Errno::WOULDBLOCK) => return Err(io::Error::other("another program holds the lock of its directory")),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Binds beside `path` and renames: the old socket's name goes over to the new one in one step.
fn bind_and_rename(path: &Path, access: Access) -> io::Result<(UnixListener, SocketFile)> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".~");
    let beside = PathBuf::from(beside);
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // Linux: bind(2) creates the file with the mode of the socket. No peer can connect before listen(2) in any case.
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    socket.bind(&SockAddr::unix(&beside)?)?;
    let metadata = fs::symlink_metadata(&beside)?;
    let named = if metadata.mode() & 0o777 == 0o600 {
        // Before a peer can connect.
        open_to(&beside, access).and_then(|()| socket.listen(64)).and_then(|()| fs::rename(&beside, path))
    } else {
        Err(io::Error::other("the system did not give the socket its mode"))
    };
    if let Err(error) = named {
        let _ = fs::remove_file(&beside);
        return Err(error);
    }
    let file = SocketFile { path: path.to_owned(), identity: identity(&metadata) };
    Ok((rustix::fd::OwnedFd::from(socket).into(), file))
}

/// Opens it to the users in `access`.
fn open_to(path: &Path, access: Access) -> io::Result<()> {
    if let Some(group) = access.group {
        let given = rustix::fs::chown(path, None, Some(rustix::fs::Gid::from_raw(group)));
        given.map_err(|error| match error {
            Errno::PERM => io::Error::other(format!(
                "the socket cannot be given to the group {group}: this user must be its member \
                 (SupplementaryGroups= in a unit, or usermod -aG)"
            )),
            error => error.into(),
        })?;
    }
    // Not narrowed by the umask, as bind(2) would.
    rustix::fs::chmod(path, Mode::from_raw_mode(access.mode)).map_err(Into::into)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    struct Directory(PathBuf);

    impl Directory {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("pushring-socket-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn names(directory: &Directory) -> usize {
        fs::read_dir(&directory.0).unwrap().count()
    }

    #[test]
    fn it_has_its_mode_from_birth_and_goes_with_its_listener() {
        let directory = Directory::new("mode");
        let path = directory.0.join("link");
        let listener = PeerListener::unix(&path, Access::default()).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(names(&directory), 1);
        let there = PeerStream::unix(&path, PATIENCE).unwrap();
        let here = listener.accept().unwrap();
        assert_eq!(here.user().unwrap(), there.user().unwrap());
        drop(listener);
        assert_eq!(names(&directory), 0);
    }

    #[test]
    fn a_living_daemon_keeps_its_socket_and_a_dead_one_does_not() {
        let directory = Directory::new("stale");
        let path = directory.0.join("link");
        let living = PeerListener::unix(&path, Access::default()).unwrap();
        assert!(matches!(PeerListener::unix(&path, Access::default()), Err(PeerListenError::InUse(_))));
        PeerStream::unix(&path, PATIENCE).unwrap();
        let PeerListener::Unix { listener, _file: file } = living else { unreachable!() };
        drop(listener); // As when a daemon is killed: the file stays.
        let successor = PeerListener::unix(&path, Access::default()).unwrap();
        drop(file); // It is another's now.
        PeerStream::unix(&path, PATIENCE).unwrap();
        drop(successor);
    }

    #[test]
    fn a_daemon_that_accepts_nobody_is_there_and_nobody_waits_for_it() {
        let directory = Directory::new("hung");
        let path = directory.0.join("link");
        let _hung = PeerListener::unix(&path, Access::default()).unwrap();
        let mut waiting = Vec::new();
        // Linux takes one more than the backlog.
        while let Ok(stream) = PeerStream::unix(&path, Duration::from_millis(1)) {
            waiting.push(stream);
            assert!(waiting.len() < 4096, "the backlog has an end");
        }
        assert_eq!(PeerStream::unix(&path, Duration::from_millis(1)).unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert!(matches!(PeerListener::unix(&path, Access::default()), Err(PeerListenError::InUse(_))));
    }

    #[test]
    fn what_is_no_socket_stays() {
        let directory = Directory::new("file");
        let path = directory.0.join("link");
        fs::write(&path, "precious").unwrap();
        assert!(matches!(PeerListener::unix(&path, Access::default()), Err(PeerListenError::NoSocket(_))));
        assert_eq!(fs::read(&path).unwrap(), b"precious");
        let long = directory.0.join("x".repeat(200));
        assert!(matches!(PeerListener::unix(&long, Access::default()), Err(PeerListenError::Io { .. })));
    }

    #[test]
    fn of_many_that_start_at_once_one_gets_it() {
        let directory = Directory::new("race");
        let path = directory.0.join("link");
        let listeners: Vec<_> = std::thread::scope(|scope| {
            let starts: Vec<_> = (0..8).map(|_| scope.spawn(|| PeerListener::unix(&path, Access::default()))).collect();
            starts.into_iter().map(|start| start.join().unwrap()).collect()
        });
        assert_eq!(listeners.iter().filter(|listener| listener.is_ok()).count(), 1);
    }

    #[test]
    fn a_stopped_listener_accepts_no_more() {
        let directory = Directory::new("stop");
        let listeners = [
            PeerListener::unix(&directory.0.join("link"), Access::default()).unwrap(),
            PeerListener::tcp(([127, 0, 0, 1], 0).into(), None).unwrap(),
        ];
        for listener in &listeners {
            std::thread::scope(|scope| {
                let accepting = scope.spawn(|| listener.accept());
                listener.stop();
                assert!(accepting.join().unwrap().is_err());
            });
        }
    }

    #[test]
    fn a_deadline_holds_for_all_reads_together() {
        let (here, there) = UnixStream::pair().unwrap();
        let mut source =
            DeadlineReader::until(Arc::new(PeerStream::Unix(here)), Instant::now() + Duration::from_millis(500));
        (&there).write_all(b"x").unwrap();
        let mut bytes = [0; 8];
        assert_eq!(source.read(&mut bytes).unwrap(), 1);
        assert_eq!(source.read(&mut bytes).unwrap_err().kind(), io::ErrorKind::TimedOut);
        (&there).write_all(b"x").unwrap();
        assert_eq!(source.read(&mut bytes).unwrap_err().kind(), io::ErrorKind::TimedOut, "it has passed");
    }
}
