//! The operator's side of the control socket.

use super::wire::{ControlAnswer, ControlRequest, REQUEST_BYTES_MAX};
use crate::driver::peer_socket::{DeadlineReader, PeerStream};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long an answer may take: a shard gives its own within a turn.
const WITHIN: Duration = Duration::from_secs(10);

/// The largest answer, in bytes: a thousand ends with the longest paths that clients can ask for.
const ANSWER_BYTES_MAX: u64 = 64 << 20;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AskError {
    /// There is no socket, or the daemon behind it has gone.
    #[error("no daemon listens at {0}: start it, or name it by --listen or --control")]
    Nobody(PathBuf),
    /// It is another user's.
    #[error("{0} is the control socket of another user: ask as the user that runs the daemon")]
    NotAllowed(PathBuf),
    /// The question is longer than any that is answered.
    #[error("the question has {bytes} bytes, at most {REQUEST_BYTES_MAX} are read: shorten what it names")]
    TooLong {
        /// As it would be sent.
        bytes: usize,
    },
    /// It broke off.
    #[error("the daemon at {path} did not answer: {error}")]
    Io {
        /// The socket.
        path: PathBuf,
        /// The system's error.
        error: io::Error,
    },
    /// It is no daemon of ours, or one of a version that speaks otherwise.
    #[error("the answer from {path} does not parse ({error}): is the daemon of another version?")]
    Garbled {
        /// The socket.
        path: PathBuf,
        /// The fault in the answer.
        error: String,
    },
    /// The daemon says why.
    #[error("the daemon at {path} refuses: {why}")]
    Refused {
        /// The socket.
        path: PathBuf,
        /// In its words.
        why: String,
    },
}

/// Asks the daemon whose control socket is at `path`. Never answers [`ControlAnswer::Refused`].
///
/// # Errors
/// See [`AskError`].
pub fn ask(path: &Path, request: &ControlRequest) -> Result<ControlAnswer, AskError> {
    let owned = || path.to_owned();
    let mut line = serde_json::to_vec(request).map_err(|error| AskError::Io { path: owned(), error: error.into() })?;
    line.push(b'\n');
    if line.len() as u64 > REQUEST_BYTES_MAX {
        return Err(AskError::TooLong { bytes: line.len() });
    }
    let bytes = exchange(path, &line).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => AskError::Nobody(owned()),
        io::ErrorKind::PermissionDenied => AskError::NotAllowed(owned()),
        _ => AskError::Io { path: owned(), error },
    })?;
    match serde_json::from_slice(&bytes) {
        Ok(ControlAnswer::Refused(why)) => Err(AskError::Refused { path: owned(), why }),
        Ok(answer) => Ok(answer),
        Err(error) => Err(AskError::Garbled { path: owned(), error: error.to_string() }),
    }
}

fn exchange(path: &Path, line: &[u8]) -> io::Result<Vec<u8>> {
    let stream = PeerStream::unix(path, WITHIN)?;
    stream.set_write_timeout(Some(WITHIN))?;
    (&stream).write_all(line)?;
    let mut answer = Vec::new();
    let source = DeadlineReader::until(Arc::new(stream), Instant::now() + WITHIN);
    source.take(ANSWER_BYTES_MAX).read_to_end(&mut answer)?;
    Ok(answer)
}
