//! A socket to another program, under TLS: one thread reads, another writes, and both may wait.
//!
//! Invariants: records leave in the order in which they were sealed; a reading thread waits for no writing one: records
//! of the connection's own (an answer to a KeyUpdate) leave with the next write.

use crate::tls::Duplex;
use std::fmt;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The bytes read at a time, and sealed at a time: a record or two.
const PIECE_BYTES: usize = 32 << 10;

/// See the module.
pub struct TlsStream {
    pub tcp: TcpStream,
    duplex: Mutex<Duplex>,
    incoming: Mutex<DecryptedBytes>,
    /// Held by the writing thread; sealed bytes that are not written yet.
    outgoing: Mutex<Vec<u8>>,
}

/// Decrypted bytes that are not consumed.
struct DecryptedBytes {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic leaves a connection that fails at the latest when its next record does not open.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl TlsStream {
    /// A connection that begins; hands are shaken when it is read first.
    pub fn new(tcp: TcpStream, duplex: Duplex) -> Self {
        let incoming = DecryptedBytes { buffer: vec![0; PIECE_BYTES].into(), start: 0, end: 0 };
        Self { tcp, duplex: Mutex::new(duplex), incoming: Mutex::new(incoming), outgoing: Mutex::default() }
    }

    /// Shakes hands.
    ///
    /// # Errors
    /// The other side is not trusted, or speaks no TLS; or the socket's, timeouts among them.
    pub fn shake_hands(&self) -> io::Result<()> {
        let mut incoming = lock(&self.incoming);
        while lock(&self.duplex).is_handshaking() {
            self.advance(&mut incoming)?;
        }
        self.flush_out(&mut lock(&self.outgoing))
    }

    /// Takes in some bytes; where there are none, answers what there is to answer and waits for more.
    fn advance(&self, incoming: &mut DecryptedBytes) -> io::Result<()> {
        if incoming.start == incoming.end {
            // During a handshake no other thread writes. Later the next writer sends pending records, too.
            if lock(&self.duplex).is_handshaking() {
                self.flush_out(&mut lock(&self.outgoing))?;
            }
            let count = (&self.tcp).read(&mut incoming.buffer)?;
            if count == 0 {
                // RFC 8446 6.1: what came before may have been cut off.
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the connection was cut off"));
            }
            (incoming.start, incoming.end) = (0, count);
        }
        let taken = lock(&self.duplex).take_in(&incoming.buffer[incoming.start..incoming.end]);
        match taken {
            Ok(count) => {
                incoming.start += count;
                Ok(())
            }
            Err(error) => {
                // The peer is told why, unless a thread is writing.
                if let Ok(mut outgoing) = self.outgoing.try_lock() {
                    let _ = self.flush_out(&mut outgoing);
                }
                Err(error)
            }
        }
    }

    /// Writes what the connection has to say.
    fn flush_out(&self, outgoing: &mut Vec<u8>) -> io::Result<()> {
        lock(&self.duplex).take_out(outgoing);
        let written = (&self.tcp).write_all(outgoing);
        outgoing.clear();
        written
    }

    /// Ends the connection with an alert, if that can be sent without waiting, and ends waiting reads and writes.
    pub fn shutdown(&self) {
        if let Ok(mut outgoing) = self.outgoing.try_lock() {
            let mut duplex = lock(&self.duplex);
            duplex.end();
            duplex.take_out(&mut outgoing);
            let flags = rustix::net::SendFlags::DONTWAIT | rustix::net::SendFlags::NOSIGNAL;
            // If the socket is full, or the peer closed first, the alert is lost.
            let _ = rustix::net::send(&self.tcp, &outgoing, flags);
        }
        // Fails where the other side was first.
        let _ = self.tcp.shutdown(Shutdown::Both);
    }
}

impl Read for &TlsStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut incoming = lock(&self.incoming);
        if let Some(count) = lock(&self.duplex).read(buffer)? {
            return Ok(count);
        }
        self.advance(&mut incoming)?;
        // One read of the socket at most: the reader checks its deadline before the next, however slowly a record
        // comes.
        lock(&self.duplex).read(buffer)?.ok_or_else(|| io::ErrorKind::Interrupted.into())
    }
}

impl Write for &TlsStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut outgoing = lock(&self.outgoing);
        let taken = lock(&self.duplex).put(&bytes[..bytes.len().min(PIECE_BYTES)])?;
        self.flush_out(&mut outgoing)?;
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl fmt::Debug for TlsStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TlsStream").field(&self.tcp).finish()
    }
}
