//! One listener per shard on one address, shared by `SO_REUSEPORT`.
//!
//! The kernel spreads clients over all listeners of an address, also over those of another OS process of the same user:
//! a second daemon would silently get half of the first one's clients. So the address is bound once without
//! `SO_REUSEPORT` first, which fails when another program listens there. (Two daemons started in the same instant can
//! still both pass.)
//!
//! A listener that another program has opened, such as a service manager, is one socket for all shards: each watches
//! it, and the first shard to accept gets the client.

use super::sys::{TcpOptions, set_tcp_options};
use socket2::{Domain, Protocol, Socket, Type};
use std::io;
use std::net::{SocketAddr, TcpListener};

/// Clients that may wait to be accepted, per listener; the kernel cuts it to `net.core.somaxconn`.
pub const BACKLOG: i32 = 4096;

/// The reason why an address cannot be listened on: a fault of the configuration, and its fix.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ListenError {
    /// Another process listens there.
    #[error("{0} is in use: stop the process that listens there, or choose another port")]
    InUse(SocketAddr),
    /// A port below `net.ipv4.ip_unprivileged_port_start`.
    #[error("port {} needs privileges: choose one from 1024 on, or give the program CAP_NET_BIND_SERVICE", .0.port())]
    NotAllowed(SocketAddr),
    /// The address belongs to no interface.
    #[error("{} is no address of this machine: use one of its own, or 0.0.0.0 or [::] for all", .0.ip())]
    NotHere(SocketAddr),
    /// The socket that was handed over does not listen, or not to TCP.
    #[error("the socket handed over is no TCP listener: {0}")]
    NoListener(#[source] io::Error),
    /// Anything else.
    #[error("cannot listen on {address}: {source}")]
    Other {
        /// Where.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Opens `count` non-blocking listeners on `address` with `options`, which accepted sockets inherit. With port 0 the
/// first picks a port for all.
///
/// # Errors
/// The address cannot be had.
pub fn listen(address: SocketAddr, count: usize, options: &TcpOptions) -> Result<Vec<TcpListener>, ListenError> {
    let explain = |error| explain(address, error);
    probe(address)?;
    let mut listeners = Vec::with_capacity(count);
    let mut shared = address;
    for _ in 0..count {
        let listener = open(shared, options).map_err(explain)?;
        shared = listener.local_addr().map_err(explain)?;
        listeners.push(listener);
    }
    Ok(listeners)
}

/// Gives `count` shards the same `listener`, opened elsewhere, with `options`.
///
/// # Errors
/// It is no listener.
pub fn share(listener: &TcpListener, count: usize, options: &TcpOptions) -> Result<Vec<TcpListener>, ListenError> {
    let shared = || {
        if !socket2::SockRef::from(listener).is_listener()? {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        }
        set_tcp_options(listener, options)?;
        listener.set_nonblocking(true)?;
        std::iter::repeat_with(|| listener.try_clone()).take(count).collect()
    };
    shared().map_err(ListenError::NoListener)
}

/// Checks whether a program could listen on `address` now, without listening.
///
/// # Errors
/// As [`listen`].
pub fn probe(address: SocketAddr) -> Result<(), ListenError> {
    bind(address, false).map(drop).map_err(|error| explain(address, error))
}

fn explain(address: SocketAddr, error: io::Error) -> ListenError {
    match error.kind() {
        io::ErrorKind::AddrInUse => ListenError::InUse(address),
        io::ErrorKind::PermissionDenied => ListenError::NotAllowed(address),
        io::ErrorKind::AddrNotAvailable => ListenError::NotHere(address),
        _ => ListenError::Other { address, source: error },
    }
}

fn open(address: SocketAddr, options: &TcpOptions) -> io::Result<TcpListener> {
    let socket = bind(address, true)?;
    set_tcp_options(&socket, options)?;
    socket.set_nonblocking(true)?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn bind(address: SocketAddr, shared: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // Otherwise connections that are still closing keep a restarted daemon from its port. It does not allow binding
    // where another program listens.
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::sys::{AcceptOutcome, accept};
    use std::net::TcpStream;

    const OPTIONS: TcpOptions = TcpOptions { notsent_lowat_bytes: 131_072, user_timeout_ms: 0 };

    fn anywhere() -> SocketAddr {
        "127.0.0.1:0".parse().unwrap()
    }

    #[test]
    fn all_listeners_share_the_port_that_the_first_picked() {
        let listeners = listen(anywhere(), 3, &OPTIONS).unwrap();
        let address = listeners[0].local_addr().unwrap();
        assert_ne!(address.port(), 0);
        assert!(listeners.iter().all(|listener| listener.local_addr().unwrap() == address));
        let clients: Vec<_> = (0..50).map(|_| TcpStream::connect(address).unwrap()).collect();
        let mut accepted = 0;
        for listener in &listeners {
            while let AcceptOutcome::Client(..) = accept(listener).unwrap() {
                accepted += 1;
            }
        }
        assert_eq!(accepted, clients.len());
    }

    #[test]
    fn one_listener_serves_all() {
        let theirs = TcpListener::bind(anywhere()).unwrap();
        let address = theirs.local_addr().unwrap();
        let listeners = share(&theirs, 2, &OPTIONS).unwrap();
        let _clients: Vec<_> = (0..4).map(|_| TcpStream::connect(address).unwrap()).collect();
        for listener in [&listeners[0], &listeners[1], &listeners[1], &listeners[0]] {
            assert!(matches!(accept(listener).unwrap(), AcceptOutcome::Client(..)));
        }
        assert!(
            !matches!(accept(&listeners[0]).unwrap(), AcceptOutcome::Client(..)),
            "and no accept waits for a client"
        );
        let silent = socket2::Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        assert!(matches!(share(&silent.into(), 1, &OPTIONS), Err(ListenError::NoListener(_))));
    }

    #[test]
    fn a_second_daemon_is_refused() {
        let first = listen(anywhere(), 2, &OPTIONS).unwrap();
        let address = first[0].local_addr().unwrap();
        let error = listen(address, 2, &OPTIONS).unwrap_err();
        assert!(matches!(error, ListenError::InUse(at) if at == address));
        assert!(error.to_string().contains("choose another port"));
    }

    #[test]
    fn a_restart_gets_its_port_back_at_once() {
        let first = listen(anywhere(), 1, &OPTIONS).unwrap();
        let address = first[0].local_addr().unwrap();
        let client = TcpStream::connect(address).unwrap();
        let AcceptOutcome::Client(server, _) = accept(&first[0]).unwrap() else { panic!("a client waits") };
        // We close first, so it is our side that stays in TIME_WAIT.
        drop((server, first));
        drop(client);
        listen(address, 1, &OPTIONS).unwrap();
    }

    #[test]
    fn an_address_of_another_machine_is_explained() {
        let error = listen("192.0.2.1:0".parse().unwrap(), 1, &OPTIONS).unwrap_err();
        assert!(matches!(error, ListenError::NotHere(_)));
        assert!(error.to_string().contains("0.0.0.0"));
    }
}
