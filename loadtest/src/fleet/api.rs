//! A connection to a node's HTTP API.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// See the module.
pub(super) struct Api {
    stream: BufReader<TcpStream>,
    head: String,
}

/// A response.
#[derive(Debug)]
pub(super) struct Answer {
    /// Its status line.
    pub status: String,
    /// Its body.
    pub body: Vec<u8>,
    /// The connection ends with it.
    pub is_last: bool,
}

impl Api {
    /// Connects to the API that is there, with its token; an answer may take so long.
    pub(super) fn connect(port: u16, token: &str, patience: Duration) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(patience))?;
        let head = format!(
            "POST /api/push HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer {token}\r\n\
             Content-Type: application/octet-stream\r\n"
        );
        Ok(Self { stream: BufReader::new(stream), head })
    }

    /// Pushes `payload` to what `Push-To` names.
    pub(super) fn push(&mut self, to: &str, payload: &[u8]) -> anyhow::Result<Answer> {
        let mut request =
            format!("{}Push-To: {to}\r\nContent-Length: {}\r\n\r\n", self.head, payload.len()).into_bytes();
        request.extend_from_slice(payload);
        self.stream.get_mut().write_all(&request)?;
        let (mut status, mut length, mut is_last) = (String::new(), 0, false);
        anyhow::ensure!(self.stream.read_line(&mut status)? > 0, "the API has closed the connection");
        loop {
            let mut line = String::new();
            self.stream.read_line(&mut line)?;
            let line = line.trim().to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse()?;
            }
            is_last |= line.strip_prefix("connection:").is_some_and(|value| value.trim() == "close");
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body)?;
        Ok(Answer { status: status.trim().to_owned(), body, is_last })
    }
}
