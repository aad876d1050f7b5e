//! The queue of log lines. A thread that logs queues its line and goes on; another thread writes.
//!
//! Invariants: queueing a line neither waits nor fails; the queue is bounded in lines and bytes; a line that found no
//! room, or could not be written, is counted, and the log says how many were lost as soon as it is written again.

use crate::daemon::plain::steers;
use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use pushring::control::LogCounts;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fd::AsFd;
use rustix::io::Errno;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};
use tracing_subscriber::fmt::MakeWriter;

/// Lines that may wait.
const LINES_MAX: usize = 4096;

/// Bytes that may wait: far more than as many lines have, unless peers choose what is in them.
const BYTES_MAX: usize = 1 << 20;

/// Whether a line's text is JSON, in which signs are written out otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// Its fields are plain already, and it may have colours.
    Text,
    /// One object.
    Json,
}

enum Item {
    Line(Vec<u8>),
    /// Told when all before it has been written.
    Flush(Sender<()>),
}

/// The way to the thread that writes.
#[derive(Clone)]
pub(super) struct LogWriter {
    sender: Sender<Item>,
    form: Form,
    shared: Arc<LogShared>,
}

#[derive(Default)]
struct LogShared {
    waiting_bytes: AtomicUsize,
    lost: AtomicU64,
    /// Those of them that the log has not told of yet.
    unreported: AtomicU64,
    errors: AtomicU64,
}

impl LogShared {
    fn lose(&self) {
        self.unreported.fetch_add(1, Relaxed);
        self.lost.fetch_add(1, Relaxed);
    }
}

impl LogWriter {
    /// Starts the thread that writes to `to`.
    ///
    /// # Errors
    /// There is none.
    pub(super) fn start(to: impl AsFd + Send + 'static, form: Form) -> io::Result<Self> {
        let (sender, receiver) = bounded(LINES_MAX);
        let shared = Arc::<LogShared>::default();
        let (of_thread, out) = (shared.clone(), LogOutput { to, is_torn: false });
        thread::Builder::new().name("log".to_owned()).spawn(move || write_all(&receiver, &of_thread, out))?;
        Ok(Self { sender, form, shared })
    }

    /// Counts of lost lines so far.
    pub(super) fn counts(&self) -> LogCounts {
        let LogShared { lost, errors, .. } = &*self.shared;
        LogCounts { lines_lost: lost.load(Relaxed), write_errors: errors.load(Relaxed) }
    }

    /// Waits until all that was put down has been written, but not longer than `within`.
    pub(super) fn flush(&self, within: Duration) {
        let until = Instant::now() + within;
        let (written, wait) = bounded(1);
        // Both fail only if the log has no reader.
        if self.sender.send_deadline(Item::Flush(written), until).is_ok() {
            let _ = wait.recv_deadline(until);
        }
    }

    fn put(&self, line: Vec<u8>) {
        // Counted as it is allocated, before the writer can take it.
        let bytes = line.capacity();
        let waiting = self.shared.waiting_bytes.fetch_add(bytes, Relaxed) + bytes;
        let put = match waiting <= BYTES_MAX {
            true => self.sender.try_send(Item::Line(line)),
            false => Err(TrySendError::Full(Item::Line(line))),
        };
        if put.is_err() {
            self.shared.waiting_bytes.fetch_sub(bytes, Relaxed);
            self.shared.lose();
        }
    }
}

impl<'a> MakeWriter<'a> for LogWriter {
    type Writer = LogLine<'a>;

    fn make_writer(&'a self) -> LogLine<'a> {
        LogLine(self)
    }
}

/// Takes one line, whole: that is how events are written.
pub(super) struct LogLine<'a>(&'a LogWriter);

impl Write for LogLine<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.put(match self.0.form {
            Form::Text => line.to_vec(),
            Form::Json => plain_json(line),
        });
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// JSON need not write out all that steers a terminal (RFC 8259 section 7): only its strings can contain it.
fn plain_json(line: &[u8]) -> Vec<u8> {
    let Ok(text) = std::str::from_utf8(line) else { return line.to_vec() };
    let mut out = Vec::with_capacity(line.len());
    let mut sign = [0; 4];
    for c in text.chars() {
        match c != '\n' && steers(c) {
            true => out.extend_from_slice(format!("\\u{:04x}", u32::from(c)).as_bytes()),
            false => out.extend_from_slice(c.encode_utf8(&mut sign).as_bytes()),
        }
    }
    out
}

fn write_all(lines: &Receiver<Item>, shared: &LogShared, mut out: LogOutput<impl AsFd>) {
    for item in lines {
        match item {
            Item::Flush(written) => drop(written.send(())),
            Item::Line(line) => {
                let result = out.write(&line);
                shared.waiting_bytes.fetch_sub(line.capacity(), Relaxed);
                match result {
                    // Said once there is room for it, or it would be lost as well.
                    Ok(()) if lines.len() < LINES_MAX / 2 => tell_lost(shared),
                    Ok(()) => {}
                    Err(_) => {
                        shared.errors.fetch_add(1, Relaxed);
                        shared.lose();
                    }
                }
            }
        }
    }
}

fn tell_lost(shared: &LogShared) {
    let lines = shared.unreported.swap(0, Relaxed);
    if lines > 0 {
        tracing::warn!(lines, "lines of this log were lost: it could not be written, or not fast enough");
    }
}

/// Where lines are written.
struct LogOutput<F> {
    to: F,
    /// The last line was written in part.
    is_torn: bool,
}

impl<F: AsFd> LogOutput<F> {
    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        if self.is_torn {
            self.write_bytes(b"\n")?;
            self.is_torn = false;
        }
        self.write_bytes(line)
    }

    fn write_bytes(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match rustix::io::write(&self.to, bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    bytes = &bytes[count..];
                    self.is_torn = !bytes.is_empty();
                }
                Err(Errno::INTR) => {}
                // Another program that shares stderr has set it to non-blocking. Only this thread waits.
                Err(Errno::AGAIN) => wait_writable(&self.to)?,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

fn wait_writable(to: &impl AsFd) -> io::Result<()> {
    match poll(&mut [PollFd::new(to, PollFlags::OUT)], None) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::Read;

    const SOON: Duration = Duration::from_millis(50);
    const PATIENCE: Duration = Duration::from_secs(60);

    fn pipe() -> (File, File) {
        let (read, write) = io::pipe().unwrap();
        (std::os::fd::OwnedFd::from(read).into(), std::os::fd::OwnedFd::from(write).into())
    }

    fn put(lines: &LogWriter, text: &str) {
        lines.make_writer().write_all(text.as_bytes()).unwrap();
    }

    fn lost(lines: &LogWriter) -> (u64, u64) {
        let LogCounts { lines_lost, write_errors } = lines.counts();
        (lines_lost, write_errors)
    }

    #[test]
    fn lines_arrive_in_order() {
        let (mut read, write) = pipe();
        let lines = LogWriter::start(write, Form::Text).unwrap();
        (0..100).for_each(|number| put(&lines, &format!("{number}\n")));
        lines.flush(PATIENCE);
        let expected: String = (0..100).map(|number| format!("{number}\n")).collect();
        let mut text = vec![0; expected.len()];
        read.read_exact(&mut text).unwrap();
        assert_eq!((text, lost(&lines)), (expected.into_bytes(), (0, 0)));
    }

    #[test]
    fn a_reader_that_stands_still_costs_lines_and_no_time() {
        let (mut read, write) = pipe();
        let lines = LogWriter::start(write, Form::Text).unwrap();
        let line = "x".repeat(999) + "\n";
        (0..10_000).for_each(|_| put(&lines, &line));
        let (lines_lost, errors) = lost(&lines);
        // The bytes in the pipe are unknown; those waiting are at most the bound.
        assert!(errors == 0 && lines_lost >= 10_000 - (BYTES_MAX as u64 + (1 << 20)) / 1000, "{lines_lost}");
        lines.flush(SOON);
        let mut text = vec![0; 1000 * (10_000 - lines_lost) as usize];
        read.read_exact(&mut text).unwrap();
        assert!(text.chunks(1000).all(|read| read == line.as_bytes()), "no line is torn");
        put(&lines, "there is room again\n");
        let mut rest = [0; 20];
        read.read_exact(&mut rest).unwrap();
        assert_eq!(&rest, b"there is room again\n");
    }

    #[test]
    fn a_reader_that_is_gone_costs_lines_alone() {
        let (read, write) = pipe();
        drop(read);
        let lines = LogWriter::start(write, Form::Text).unwrap();
        (0..10).for_each(|_| put(&lines, "nobody reads this\n"));
        lines.flush(PATIENCE);
        assert_eq!(lost(&lines), (10, 10));
        let full = LogWriter::start(File::options().write(true).open("/dev/full").unwrap(), Form::Text).unwrap();
        put(&full, "the disk is full\n");
        full.flush(PATIENCE);
        assert_eq!(lost(&full), (1, 1));
    }

    #[test]
    fn a_descriptor_that_does_not_block_is_waited_for() {
        let (mut read, write) = pipe();
        rustix::io::ioctl_fionbio(&write, true).unwrap();
        let lines = LogWriter::start(write, Form::Text).unwrap();
        // Twice what a pipe holds, in lines of which it takes parts.
        (0..200).for_each(|_| put(&lines, &("y".repeat(699) + "\n")));
        let mut text = vec![0; 700 * 200];
        read.read_exact(&mut text).unwrap();
        assert!(text.chunks(700).all(|line| line[698..] == *b"y\n"));
        assert_eq!(lost(&lines), (0, 0));
    }

    #[test]
    fn json_keeps_its_meaning() {
        let value = serde_json::json!({ "a": "\u{9b}2J \u{7f} \u{202e} ü \u{1b} \n" });
        let line = plain_json((value.to_string() + "\n").as_bytes());
        let text = std::str::from_utf8(&line).unwrap();
        assert!(text.strip_suffix('\n').unwrap().chars().all(|c| !steers(c)), "{text}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(text).unwrap(), value);
    }
}
