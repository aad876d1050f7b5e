//! The floors of a connection, which comes, is upgraded and goes: nothing but the system calls.
//!
//! [`serve_accepts`] is the bare loop of accept, recv, send, close. It ends each connection itself, so the client's end
//! is processed where the client runs. No server can do that: [`serve_sessions`] leaves the end to the client, and so
//! has to watch many sockets at a time, to see the end, and to answer it.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;

use super::raw::{answer, listen_on};
use crate::sys::{Epoll, EventBuffer};

/// accept, recv, send, close.
pub(super) fn serve_accepts(address: SocketAddr) -> anyhow::Result<()> {
    let listener = listen_on(address)?;
    let answer = answer();
    let mut buffer = [0; 4096];
    loop {
        let (mut stream, _) = listener.accept()?;
        // A client that is gone again is no reason to stop.
        if stream.read(&mut buffer).is_ok_and(|count| count > 0) {
            let _ = stream.write_all(&answer);
        }
    }
}

const LISTENER: u64 = u64::MAX;

/// A close frame with 1000.
const CLOSE: [u8; 4] = [0x88, 2, 0x03, 0xE8];

struct Session {
    stream: TcpStream,
    upgraded: bool,
}

/// accept and watch; recv and send the answer; recv the end and close. A client's close frame is answered, and the
/// connection closed (RFC 6455 7.1.1).
pub(super) fn serve_sessions(address: SocketAddr) -> anyhow::Result<()> {
    let listener = listen_on(address)?;
    listener.set_nonblocking(true)?;
    let (epoll, mut events) = (Epoll::new()?, EventBuffer::new(256));
    epoll.add_readable(listener.as_fd(), LISTENER)?;
    let mut sessions = Sessions { places: Vec::new(), free: Vec::new(), answer: answer() };
    loop {
        let count = epoll.wait(&mut events, -1)?;
        for index in 0..count {
            if events.get(index).token != LISTENER {
                sessions.read(events.get(index).token as usize);
                continue;
            }
            loop {
                match listener.accept() {
                    Ok((stream, _)) => sessions.open(stream, &epoll)?,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) if error.kind() == ErrorKind::ConnectionAborted => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
    }
}

struct Sessions {
    places: Vec<Option<Session>>,
    free: Vec<usize>,
    answer: Vec<u8>,
}

impl Sessions {
    fn open(&mut self, stream: TcpStream, epoll: &Epoll) -> anyhow::Result<()> {
        let place = self.free.pop().unwrap_or(self.places.len());
        epoll.add_readable(stream.as_fd(), place as u64)?;
        if place == self.places.len() {
            self.places.push(None);
        }
        self.places[place] = Some(Session { stream, upgraded: false });
        Ok(())
    }

    fn read(&mut self, place: usize) {
        let Some(Some(session)) = self.places.get_mut(place) else { return };
        let mut buffer = [0; 4096];
        let count = (&session.stream).read(&mut buffer).unwrap_or(0);
        let ends = count == 0 || session.upgraded;
        if count > 0 {
            // A client that is gone again needs no answer.
            let answer: &[u8] = if session.upgraded { &CLOSE } else { &self.answer };
            let _ = (&session.stream).write_all(answer);
            session.upgraded = true;
        }
        if ends {
            self.places[place] = None;
            self.free.push(place);
        }
    }
}
