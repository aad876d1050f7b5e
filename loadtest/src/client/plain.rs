//! One client without an engine: a socket that is upgraded, to be read and written by hand.
//!
//! Invariant: nothing behind the head of the answer is read.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use crate::client::{Target, handshake};

/// How long an answer may take.
const ANSWER_MAX: Duration = Duration::from_secs(20);

/// A connection that is upgraded.
pub(crate) fn open(target: &Target) -> anyhow::Result<TcpStream> {
    let mut stream = TcpStream::connect(target.address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(ANSWER_MAX))?;
    stream.write_all(&handshake::request(&target.host, &target.path))?;
    let mut head = Vec::new();
    // Byte by byte: what comes behind the head is not ours to take.
    while handshake::check_answer(&head).map_err(anyhow::Error::msg)?.is_none() {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    Ok(stream)
}
