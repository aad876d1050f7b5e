//! The broker's side of the control socket.

use super::operator::Operator;
use super::wire::{ControlAnswer, REQUEST_BYTES_MAX};
use crate::broker::Broker;
use crate::driver::peer_socket::{Access, DeadlineReader, PeerListenError, PeerListener, PeerStream};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How long a question may take to come, and its answer to go.
const WITHIN: Duration = Duration::from_secs(5);

/// Questions at a time, a thread each.
const CONNECTIONS_MAX: usize = 8;

/// After an accept that failed, most likely for want of descriptors.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// Why there is no control socket.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ControlStartError {
    /// The path.
    #[error(transparent)]
    Listen(#[from] PeerListenError),
    /// No thread.
    #[error("cannot start a thread of the control socket: {0}")]
    Thread(#[from] io::Error),
}

/// An open control socket. Dropping it closes and removes it.
pub struct ControlServer {
    listener: Arc<PeerListener>,
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl ControlServer {
    /// Opens a control socket of `broker` at `path`, for this user alone.
    ///
    /// # Errors
    /// See [`ControlStartError`]. The socket of a daemon that runs, and a file that is no socket, are left alone.
    pub fn start(broker: &Broker, path: &Path) -> Result<Self, ControlStartError> {
        Self::for_operator(Operator::new(broker, Arc::new(())), path)
    }

    /// The same for a program that does more for its operators than its broker does by itself.
    ///
    /// # Errors
    /// As [`ControlServer::start`].
    pub fn for_operator(operator: Operator, path: &Path) -> Result<Self, ControlStartError> {
        let listener = Arc::new(PeerListener::unix(path, Access::default())?);
        let stopping = Arc::<AtomicBool>::default();
        let service = ControlService { operator, open: Arc::default() };
        let (accepting, stop) = (listener.clone(), stopping.clone());
        let thread = thread::Builder::new().name("control".to_owned()).spawn(move || {
            accept(&service, &accepting, &stop);
        })?;
        Ok(Self { listener, stopping, thread: Some(thread) })
    }
}

impl Drop for ControlServer {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::SeqCst);
        self.listener.stop();
        // A panic has been reported where it happened.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

#[derive(Clone)]
struct ControlService {
    operator: Operator,
    open: Arc<AtomicUsize>,
}

/// A question's place among those at a time.
struct QuestionPermit(Arc<AtomicUsize>);

impl Drop for QuestionPermit {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

fn accept(service: &ControlService, listener: &PeerListener, stopping: &AtomicBool) {
    loop {
        let stream = match listener.accept() {
            _ if stopping.load(Ordering::SeqCst) => return,
            Ok(stream) => stream,
            Err(error) => {
                tracing::warn!(%error, "an operator's connection was not accepted");
                thread::sleep(ACCEPT_AGAIN);
                continue;
            }
        };
        let is_full = service.open.fetch_add(1, Ordering::SeqCst) >= CONNECTIONS_MAX;
        let place = QuestionPermit(service.open.clone());
        if is_full {
            // It fits any socket buffer.
            let _ = write(&stream, &ControlAnswer::Refused("too many ask at the same time: ask again".to_owned()));
            continue;
        }
        let service = service.clone();
        let serve = move || service.serve(stream, place);
        if let Err(error) = thread::Builder::new().name("control-ask".to_owned()).spawn(serve) {
            tracing::warn!(%error, "no thread for an operator's question");
        }
    }
}

impl ControlService {
    fn serve(&self, stream: PeerStream, place: QuestionPermit) {
        let stream = Arc::new(stream);
        let served = read(stream.clone()).and_then(|line| write(&stream, &self.answer(&line)));
        if let Err(error) = served {
            tracing::debug!(%error, "an operator's question was not answered");
        }
        // Before the connection: a client that sees its end may ask again at once.
        drop((place, stream));
    }

    fn answer(&self, line: &[u8]) -> ControlAnswer {
        match serde_json::from_slice(line) {
            Ok(request) => self.operator.answer(request),
            Err(error) => ControlAnswer::Refused(format!("no question: {error}")),
        }
    }
}

/// One line, or all there is until the other side has ended its own.
fn read(stream: Arc<PeerStream>) -> io::Result<Vec<u8>> {
    let source = DeadlineReader::until(stream, Instant::now() + WITHIN);
    let mut line = Vec::new();
    BufReader::new(source.take(REQUEST_BYTES_MAX)).read_until(b'\n', &mut line)?;
    Ok(line)
}

fn write(stream: &PeerStream, answer: &ControlAnswer) -> io::Result<()> {
    stream.set_write_timeout(Some(WITHIN))?;
    let mut bytes = serde_json::to_vec(answer)?;
    bytes.push(b'\n');
    let mut stream = stream;
    stream.write_all(&bytes)
}
