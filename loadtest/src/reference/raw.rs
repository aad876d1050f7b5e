//! The floor of a push: a server that does nothing but the system calls. `relay` and `unicast` on one epoll set,
//! sending through io_uring or with `send(2)`.
//!
//! They answer only this program's own handshake. A `unicast` message here is a burst: a count, that many connection
//! ids, and one payload for each, so that the sends are all there is to measure.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, RawFd};

use socket2::{Domain, Protocol, Socket, Type};

use super::{Role, greeting};
use crate::client::frame::xor_with_key;
use crate::client::handshake::ACCEPT;
use crate::sys::{self, Epoll, EventBuffer};

/// A part of the bytes that are being sent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Piece {
    /// Its first byte.
    pub start: usize,
    /// Behind its last byte.
    pub end: usize,
}

/// A send that did not take all of its bytes.
#[derive(Debug)]
pub(crate) struct Short {
    /// Its place in the batch.
    pub index: usize,
    /// The bytes taken.
    pub sent: io::Result<usize>,
}

/// Sends parts of `bytes` to many sockets without waiting for any.
pub(crate) trait SendAll {
    /// Appends to `short` what was not taken whole.
    fn send_all(&mut self, batch: &[(RawFd, Piece)], bytes: &[u8], short: &mut Vec<Short>) -> io::Result<()>;
}

/// `send(2)` in a loop.
pub(crate) struct Loop;

impl SendAll for Loop {
    fn send_all(&mut self, batch: &[(RawFd, Piece)], bytes: &[u8], short: &mut Vec<Short>) -> io::Result<()> {
        for (index, &(fd, piece)) in batch.iter().enumerate() {
            match sys::send_now(fd, &bytes[piece.start..piece.end]) {
                Ok(sent) if sent == piece.end - piece.start => {}
                Ok(sent) => short.push(Short { index, sent: Ok(sent) }),
                Err(error) if error.kind() == ErrorKind::WouldBlock => short.push(Short { index, sent: Ok(0) }),
                Err(error) => short.push(Short { index, sent: Err(error) }),
            }
        }
        Ok(())
    }
}

const ANSWER_HEAD: &str =
    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ";

pub(super) fn answer() -> Vec<u8> {
    format!("{ANSWER_HEAD}{ACCEPT}\r\n\r\n").into_bytes()
}

pub(super) fn listen_on(address: SocketAddr) -> anyhow::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(4096)?;
    let listener = TcpListener::from(socket);
    println!("listening on http://{}", listener.local_addr()?);
    Ok(listener)
}

struct Connection {
    stream: TcpStream,
    role: Option<Role>,
    incoming: Vec<u8>,
}

/// All connections of a raw server.
struct Raw<S> {
    sender: S,
    epoll: Epoll,
    connections: Vec<Option<Connection>>,
    free: Vec<usize>,
    relay: Vec<usize>,
    buffer: Vec<u8>,
    out: Vec<u8>,
    batch: Vec<(RawFd, Piece)>,
    short: Vec<Short>,
}

const LISTENER: u64 = u64::MAX;

/// Serves `relay` and `unicast` through `sender`.
pub(crate) fn serve(address: SocketAddr, sender: impl SendAll) -> anyhow::Result<()> {
    let listener = listen_on(address)?;
    listener.set_nonblocking(true)?;
    let mut raw = Raw {
        sender,
        epoll: Epoll::new()?,
        connections: Vec::new(),
        free: Vec::new(),
        relay: Vec::new(),
        buffer: vec![0; 256 * 1024],
        out: Vec::new(),
        batch: Vec::new(),
        short: Vec::new(),
    };
    raw.epoll.add_readable(listener.as_fd(), LISTENER)?;
    let mut events = EventBuffer::new(256);
    loop {
        let count = raw.epoll.wait(&mut events, -1)?;
        for index in 0..count {
            match events.get(index).token {
                LISTENER => raw.accept(&listener)?,
                token => raw.read(token as usize)?,
            }
        }
    }
}

impl<S: SendAll> Raw<S> {
    fn accept(&mut self, listener: &TcpListener) -> anyhow::Result<()> {
        loop {
            let stream = match listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::ConnectionAborted => continue,
                Err(error) => return Err(error.into()),
            };
            stream.set_nodelay(true)?;
            let id = self.free.pop().unwrap_or(self.connections.len());
            self.epoll.add_readable(stream.as_fd(), id as u64)?;
            let connection = Connection { stream, role: None, incoming: Vec::new() };
            if id == self.connections.len() {
                self.connections.push(Some(connection));
            } else {
                self.connections[id] = Some(connection);
            }
        }
    }

    fn read(&mut self, id: usize) -> anyhow::Result<()> {
        let Some(Some(connection)) = self.connections.get_mut(id) else { return Ok(()) };
        let count = (&connection.stream).read(&mut self.buffer).unwrap_or(0);
        if count == 0 {
            self.connections[id] = None;
            self.relay.retain(|&other| other != id);
            self.free.push(id);
            return Ok(());
        }
        connection.incoming.extend_from_slice(&self.buffer[..count]);
        match connection.role {
            None => self.upgrade(id),
            Some(role) => self.forward(id, role),
        }
    }

    fn upgrade(&mut self, id: usize) -> anyhow::Result<()> {
        let Some(Some(connection)) = self.connections.get_mut(id) else { return Ok(()) };
        if !connection.incoming.ends_with(b"\r\n\r\n") {
            return Ok(());
        }
        let head = String::from_utf8_lossy(&connection.incoming);
        let role = head.split(' ').nth(1).and_then(Role::of_path).unwrap_or(Role::Echo);
        let mut bytes = answer();
        if role == Role::Unicast {
            let text = greeting(id as u32);
            bytes.extend_from_slice(&[0x81, text.len() as u8]);
            bytes.extend_from_slice(text.as_bytes());
        }
        connection.incoming.clear();
        connection.role = Some(role);
        connection.stream.write_all(&bytes)?;
        if role == Role::Relay {
            self.relay.push(id);
        }
        Ok(())
    }

    /// Encodes all whole frames that have come and sends them on, each receiver's in one piece.
    fn forward(&mut self, id: usize, role: Role) -> anyhow::Result<()> {
        let Some(Some(connection)) = self.connections.get_mut(id) else { return Ok(()) };
        self.out.clear();
        self.batch.clear();
        let mut incoming = std::mem::take(&mut connection.incoming);
        let mut used = 0;
        while let Some(frame) = client_frame(&incoming[used..]) {
            let payload = &mut incoming[used + frame.header..used + frame.end];
            xor_with_key(payload, frame.key);
            used += frame.end;
            match role {
                Role::Unicast => self.encode_burst(payload),
                _ => encode(payload, &mut self.out),
            }
        }
        incoming.drain(..used);
        if role == Role::Relay && !self.out.is_empty() {
            let all = Piece { start: 0, end: self.out.len() };
            let others = self.relay.iter().filter(|&&other| other != id);
            let sockets = others.filter_map(|&other| self.connections[other].as_ref());
            self.batch.extend(sockets.map(|other| (sys::number_of(&other.stream), all)));
        }
        if let Some(Some(connection)) = self.connections.get_mut(id) {
            connection.incoming = incoming;
        }
        self.send()
    }

    fn encode_burst(&mut self, payload: &[u8]) {
        let Some((count, rest)) = payload.split_first_chunk::<4>() else { return };
        let count = u32::from_le_bytes(*count) as usize;
        let Some((ids, payloads)) = rest.split_at_checked(count * 4).filter(|_| count > 0) else { return };
        for (id, part) in ids.as_chunks::<4>().0.iter().zip(payloads.chunks(payloads.len() / count)) {
            let target = self.connections.get(u32::from_le_bytes(*id) as usize);
            let Some(Some(connection)) = target else { continue };
            let start = self.out.len();
            encode(part, &mut self.out);
            self.batch.push((sys::number_of(&connection.stream), Piece { start, end: self.out.len() }));
        }
    }

    /// Sends the batch; what a socket does not take at once is written waiting, for the floor never stalls its readers.
    fn send(&mut self) -> anyhow::Result<()> {
        self.sender.send_all(&self.batch, &self.out, &mut self.short)?;
        for Short { index, sent } in std::mem::take(&mut self.short) {
            let (fd, piece) = self.batch[index];
            let Ok(sent) = sent else { continue };
            // A client that went away in between loses what was meant for it.
            let _ = sys::send_waiting(fd, &self.out[piece.start + sent..piece.end]);
        }
        Ok(())
    }
}

struct ClientFrame {
    header: usize,
    key: [u8; 4],
    end: usize,
}

/// The masked frame at the start of `bytes`, if it is there whole.
fn client_frame(bytes: &[u8]) -> Option<ClientFrame> {
    let (length, offset) = match bytes.get(1)? & 0x7F {
        126 => (u64::from(u16::from_be_bytes(*bytes.get(2..)?.first_chunk()?)), 4),
        127 => (u64::from_be_bytes(*bytes.get(2..)?.first_chunk()?), 10),
        short => (u64::from(short), 2),
    };
    let key = *bytes.get(offset..)?.first_chunk()?;
    let end = offset + 4 + length as usize;
    (bytes.len() >= end).then_some(ClientFrame { header: offset + 4, key, end })
}

/// Appends an unmasked Binary frame.
fn encode(payload: &[u8], out: &mut Vec<u8>) {
    out.push(0x82);
    match payload.len() {
        short @ 0..=125 => out.push(short as u8),
        medium @ 126..=0xFFFF => {
            out.push(126);
            out.extend_from_slice(&(medium as u16).to_be_bytes());
        }
        long => {
            out.push(127);
            out.extend_from_slice(&(long as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(payload);
}
