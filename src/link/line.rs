//! One direction of numbered frames, and the acknowledgements of the other: what makes a session outlive a connection.
//!
//! Numbered frames are counted from the session's beginning and kept until the other side acknowledges them; over a new
//! connection they are written again from the first that it does not have. So nothing is lost or doubled, and what may
//! be unacknowledged (the window) bounds what is kept. The same on both sides of a link.
//! A frame that finds nobody writing is written by the thread that has it, as far as that goes without waiting; what is left, and
//! what comes while somebody writes, or close behind such a frame, is the writer's, who writes all that is there at once.
//! An acknowledgement rides on the next frame; alone it goes only when it is a quarter of the window, or late.
//!
//! Invariants: frames are written in the order in which they were put in, by one thread at a time; at most the window, and what is
//! put in without waiting, is kept. Knows nothing of heads or sockets.

use super::frame::{GatheredFrames, LinkFrame, WriteNow};
use super::wire::LinkWindow;
use crate::admission::{Charge, HeapBytes};
use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// So much is taken out at a time: a write that the other side sees soon, and the lock is free meanwhile.
const WRITE_BYTES_MAX: usize = 256 << 10;

/// Frames that may be kept in all: several windows. Answers are put in without waiting, and only acknowledgements make
/// room for them.
const KEPT_FRAMES_MAX: usize = 64 << 10;

/// Places for frames that are kept though there are none.
const PLACES_SPARE: usize = 256;

/// How long an acknowledgement waits for a frame to ride on.
const ACK_WITHIN: Duration = Duration::from_millis(3);

/// More frames than these are the writer's, and more bytes.
const LITTLE_FRAMES_MAX: usize = 256;
const LITTLE_BYTES_MAX: usize = 64 << 10;

/// Frames that come closer together than this are left to the writer, who writes many at once.
const APART: Duration = Duration::from_micros(40);

/// What this side's frames are made of, in the words of its direction.
pub trait LinkDirection {
    /// Beside a frame, until it is acknowledged.
    type Mark;

    /// Acknowledges so many frames.
    fn ack(received: u64) -> LinkFrame;

    /// Says that there is nothing to say.
    fn beat() -> LinkFrame;

    /// The frame is written for the first time.
    fn written(mark: &mut Self::Mark, asks: &mut usize);

    /// What a mark takes of the heap.
    fn mark_bytes(_: &Self::Mark) -> usize {
        0
    }
}

/// See the module.
pub struct FrameQueue<D: LinkDirection> {
    state: Mutex<FrameQueueState<D::Mark>>,
    /// The writer has something to do.
    work: Condvar,
    /// Something else has changed.
    changed: Condvar,
}

struct FrameQueueState<M> {
    window: LinkWindow,
    kept: VecDeque<(LinkFrame, M)>,
    kept_bytes: usize,
    /// What it takes of the heap, but for the places of the queue; and its charge, on the side that has one.
    heap_bytes: usize,
    charge: Option<Charge>,
    /// How many of `kept` went out over this connection.
    written: usize,
    /// How many frames came before `kept`.
    acknowledged: u64,
    /// How many numbered frames of the other side were taken in, how many of these it was told of, and whether to tell.
    received: u64,
    told: u64,
    tell: bool,
    /// When to tell at the latest.
    tell_at: Option<Instant>,
    /// How the connection is written to without waiting, when that was done last, and whether somebody writes now.
    out: Option<Arc<dyn WriteNow>>,
    wrote_at: Option<Instant>,
    writing: bool,
    /// What is left of frames that are written in part.
    rest: Vec<u8>,
    /// Until when the writer sleeps, and what had been received when it fell asleep.
    writer_until: Option<Instant>,
    seen: u64,
    /// Questions that were not answered yet.
    asks: usize,
    /// Counts connections; none: there is none now.
    connection: Option<u64>,
    connections: u64,
    /// Nothing is put in any more. The last frame, behind everything, if there is one.
    ended: Option<Option<LinkFrame>>,
    /// Everything has been written, the last frame included.
    finished: bool,
}

/// The line has ended; nothing is sent any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueEnded;

/// An acknowledgement of frames that were never sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0} frames cannot have been received")]
pub struct NeverSent(pub u64);

impl<D: LinkDirection> FrameQueue<D> {
    /// A line without connection, of a session that begins.
    pub fn new(window: LinkWindow) -> Self {
        Self::of_session(window, 0, 0)
    }

    /// The same of a session in which the other side has so many frames of ours, and we so many of its.
    pub fn of_session(window: LinkWindow, acknowledged: u64, received: u64) -> Self {
        let state = FrameQueueState {
            window,
            kept: VecDeque::new(),
            kept_bytes: 0,
            heap_bytes: 0,
            charge: None,
            written: 0,
            acknowledged,
            received,
            told: received,
            tell: false,
            tell_at: None,
            out: None,
            wrote_at: None,
            writing: false,
            rest: Vec::new(),
            writer_until: None,
            seen: received,
            asks: 0,
            connection: None,
            connections: 0,
            ended: None,
            finished: false,
        };
        Self { state: Mutex::new(state), work: Condvar::new(), changed: Condvar::new() }
    }

    /// The same, with what is kept charged.
    pub fn charged(self, charge: Charge) -> Self {
        self.lock().charge = Some(charge);
        self
    }

    /// Puts frames in, waiting for room.
    ///
    /// # Errors
    /// The line has ended; the frames that are left were not put in.
    pub fn send(&self, frames: impl IntoIterator<Item = (LinkFrame, D::Mark)>) -> Result<(), QueueEnded> {
        let mut frames = frames.into_iter().peekable();
        let mut state = self.lock();
        while frames.peek().is_some() {
            state = self.wait(&self.changed, state, |state| state.ended.is_none() && !state.has_room());
            if state.ended.is_some() {
                return Err(QueueEnded);
            }
            while state.has_room()
                && let Some(frame) = frames.next()
            {
                state.put::<D>(frame);
            }
            state.settle();
            state = self.go(state);
        }
        Ok(())
    }

    /// Puts a frame in, waiting for room as long as there is a connection over which it may come, for at most `patience`.
    /// Returns whether it was put in; it is dropped if not.
    ///
    /// # Errors
    /// The line has ended.
    pub fn offer(&self, frame: LinkFrame, mark: D::Mark, patience: Duration) -> Result<bool, QueueEnded> {
        let until = Instant::now() + patience;
        let may_come = |state: &mut FrameQueueState<D::Mark>| {
            state.ended.is_none() && !state.has_room() && state.connection.is_some()
        };
        let mut state = self.wait_until(&self.changed, self.lock(), until, may_come);
        if state.ended.is_some() {
            return Err(QueueEnded);
        }
        let has_room = state.has_room();
        if has_room {
            state.put::<D>((frame, mark));
            state.settle();
            drop(self.go(state));
        }
        Ok(has_room)
    }

    /// Puts a frame in at once: one whose number is bounded otherwise.
    ///
    /// # Errors
    /// The line has ended.
    pub fn send_now(&self, frame: LinkFrame, mark: D::Mark) -> Result<(), QueueEnded> {
        let mut state = self.lock();
        if state.ended.is_some() {
            return Err(QueueEnded);
        }
        state.put::<D>((frame, mark));
        state.settle();
        drop(self.go(state));
        Ok(())
    }

    /// Writes what there is without waiting, where nobody writes; else, and for what is left, sees to it that somebody does.
    fn go<'a>(
        &'a self,
        mut state: MutexGuard<'a, FrameQueueState<D::Mark>>,
    ) -> MutexGuard<'a, FrameQueueState<D::Mark>> {
        if state.writing {
            return state;
        }
        let now = Instant::now();
        let is_apart = state.wrote_at.is_none_or(|at| now >= at + APART);
        let may = is_apart && state.ended.is_none() && state.rest.is_empty() && state.is_little();
        let Some(out) = state.out.clone().filter(|_| may) else {
            self.work.notify_all();
            return state;
        };
        (state.wrote_at, state.writing) = (Some(now), true);
        let connection = state.connection;
        let mut gather = GatheredFrames::default();
        state.gather::<D>(&mut gather);
        drop(state);
        let rest = gather.write_now(&*out);
        let mut state = self.lock();
        if state.connection == connection {
            state.writing = false;
            state.rest = rest;
            if state.has_work() {
                self.work.notify_all();
            }
        }
        state
    }

    /// Counts a question, unless `asks_max` are unanswered already, or far too many answers unacknowledged.
    pub fn ask(&self, asks_max: usize) -> bool {
        let mut state = self.lock();
        let may = state.asks < asks_max && state.kept.len() < KEPT_FRAMES_MAX;
        state.asks += usize::from(may);
        may
    }

    /// The other side has so many frames; `each` sees those that it is told of now.
    ///
    /// # Errors
    /// It cannot have them.
    pub fn acknowledge(&self, received: u64, mut each: impl FnMut(D::Mark)) -> Result<(), NeverSent> {
        let mut state = self.lock();
        let Some(count) = received.checked_sub(state.acknowledged).map(|count| count as usize) else {
            // An older one that was overtaken.
            return Ok(());
        };
        if count > state.written {
            return Err(NeverSent(received));
        }
        for (frame, mark) in state.kept.drain(..count).collect::<Vec<_>>() {
            state.kept_bytes -= frame.bytes();
            state.heap_bytes -= frame.heap_bytes() + D::mark_bytes(&mark);
            each(mark);
        }
        state.settle();
        state.written -= count;
        state.acknowledged = received;
        self.changed.notify_all();
        Ok(())
    }

    /// So many more frames of the other side were taken in. It is told with the next frame, at once
    /// when that is much, and soon when `now` says so.
    pub fn took(&self, count: u64, now: bool) {
        let mut state = self.lock();
        state.received += count;
        let untold = state.received - state.told;
        if untold >= u64::from(state.window.frames) / 4 {
            state.tell = true;
            self.work.notify_all();
        } else if now && untold > 0 && state.tell_at.is_none() {
            let tell_at = Instant::now() + ACK_WITHIN;
            state.tell_at = Some(tell_at);
            if state.writer_until.is_some_and(|until| until > tell_at) {
                self.work.notify_all();
            }
        }
    }

    /// Frames that the other side has, and frames of the other side that were taken in.
    pub fn counts(&self) -> (u64, u64) {
        let state = self.lock();
        (state.acknowledged, state.received)
    }

    /// Waits until there is no connection, for at most `patience`; answers whether that is so.
    pub fn wait_disconnected(&self, patience: Duration) -> bool {
        self.wait_for(patience, |state| state.connection.is_none())
    }

    /// Waits until everything is written, or nothing will be, for at most `patience`.
    pub fn wait_finished(&self, patience: Duration) -> bool {
        self.wait_for(patience, |state| state.finished || state.ended.is_some() && state.connection.is_none())
    }

    /// Begins a connection: everything that is not acknowledged goes out over it, and at most `window` is kept from now
    /// on. Answers what [`write`](Self::write) and [`disconnect`](Self::disconnect) are called with.
    pub fn connect(&self, window: LinkWindow) -> u64 {
        let mut state = self.lock();
        state.connections += 1;
        state.connection = Some(state.connections);
        state.window = window;
        state.written = 0;
        state.told = state.received;
        (state.tell, state.tell_at) = (false, None);
        (state.out, state.wrote_at, state.writing) = (None, None, false);
        state.rest = Vec::new();
        state.connections
    }

    /// Has whoever puts a frame in write it itself, where that goes without waiting.
    pub fn write_through(&self, connection: u64, out: Arc<dyn WriteNow>) {
        let mut state = self.lock();
        if state.connection == Some(connection) {
            state.out = Some(out);
        }
    }

    /// The connection is over. Nothing happens where it is no longer the current one.
    pub fn disconnect(&self, connection: u64) {
        let mut state = self.lock();
        if state.connection == Some(connection) {
            state.connection = None;
            state.out = None;
            self.work.notify_all();
            self.changed.notify_all();
        }
    }

    /// Ends the line: nothing is put in any more; what was goes out first, then `last`.
    pub fn end(&self, last: Option<LinkFrame>) {
        let mut state = self.lock();
        if state.ended.is_none() {
            state.ended = Some(last);
            self.work.notify_all();
            self.changed.notify_all();
        }
    }

    /// Whether it has ended.
    pub fn has_ended(&self) -> bool {
        self.lock().ended.is_some()
    }

    /// Writes what there is to write until the connection or the line is over, and something at least every `beat`.
    ///
    /// # Errors
    /// The stream's.
    pub fn write(&self, connection: u64, out: &mut impl Write, beat: Duration) -> io::Result<()> {
        let mut gather = GatheredFrames::default();
        loop {
            let over = {
                let mut state = self.wait_for_work(connection, beat);
                if state.connection != Some(connection) {
                    return Ok(());
                }
                state.writing = true;
                state.gather::<D>(&mut gather)
            };
            gather.write(out)?;
            let mut state = self.lock();
            if state.connection != Some(connection) {
                return Ok(());
            }
            state.writing = false;
            if over {
                state.finished = true;
                self.changed.notify_all();
                return Ok(());
            }
        }
    }

    /// Waits until the writer has something to write, a beat or a late acknowledgement at last, or the connection is over.
    fn wait_for_work(&self, connection: u64, beat: Duration) -> MutexGuard<'_, FrameQueueState<D::Mark>> {
        let beat_at = Instant::now() + beat;
        let is_idle = |state: &FrameQueueState<D::Mark>| {
            state.connection == Some(connection) && (state.writing || !state.has_work())
        };
        let mut state = self.lock();
        while is_idle(&state) {
            let (now, tell_at, received) = (Instant::now(), state.tell_at, state.received);
            if tell_at.is_some_and(|at| at <= now) {
                (state.tell, state.tell_at) = (true, None);
                continue;
            }
            // Where frames come and go the next acknowledgement is soon due: whoever owes it need not wake us for that.
            let is_lively = state.writer_until.is_some() && std::mem::replace(&mut state.seen, received) != received;
            let soon = tell_at.or(is_lively.then_some(now + ACK_WITHIN));
            let until = soon.map_or(beat_at, |soon| soon.min(beat_at));
            if until <= now && !state.writing {
                // A beat.
                break;
            }
            state.writer_until = Some(until);
            let has_time = |state: &mut FrameQueueState<D::Mark>| {
                is_idle(state) && (state.tell_at == tell_at || state.tell_at.is_some_and(|at| at >= until))
            };
            state = self.wait_until(&self.work, state, until.max(now + Duration::from_millis(1)), has_time);
        }
        state.writer_until = None;
        state
    }

    fn lock(&self) -> MutexGuard<'_, FrameQueueState<D::Mark>> {
        // Every change leaves the state whole before anything that could panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(
        &self,
        condvar: &Condvar,
        state: MutexGuard<'a, FrameQueueState<D::Mark>>,
        condition: impl FnMut(&mut FrameQueueState<D::Mark>) -> bool,
    ) -> MutexGuard<'a, FrameQueueState<D::Mark>> {
        condvar.wait_while(state, condition).unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_until<'a>(
        &self,
        condvar: &Condvar,
        state: MutexGuard<'a, FrameQueueState<D::Mark>>,
        until: Instant,
        condition: impl FnMut(&mut FrameQueueState<D::Mark>) -> bool,
    ) -> MutexGuard<'a, FrameQueueState<D::Mark>> {
        let timeout = until.saturating_duration_since(Instant::now());
        condvar.wait_timeout_while(state, timeout, condition).unwrap_or_else(PoisonError::into_inner).0
    }

    fn wait_for(&self, patience: Duration, condition: impl Fn(&FrameQueueState<D::Mark>) -> bool) -> bool {
        let until = Instant::now() + patience;
        condition(&self.wait_until(&self.changed, self.lock(), until, |state| !condition(state)))
    }
}

impl<M> FrameQueueState<M> {
    /// One frame may be larger than the window.
    fn has_room(&self) -> bool {
        self.kept.is_empty()
            || self.kept.len() < self.window.frames as usize && self.kept_bytes < self.window.bytes as usize
    }

    fn put<D: LinkDirection<Mark = M>>(&mut self, frame: (LinkFrame, M)) {
        self.kept_bytes += frame.0.bytes();
        self.heap_bytes += frame.0.heap_bytes() + D::mark_bytes(&frame.1);
        self.kept.push_back(frame);
    }

    /// Charges what is kept now.
    fn settle(&mut self) {
        if self.kept.capacity() > PLACES_SPARE && self.kept.len() < self.kept.capacity() / 4 {
            self.kept.shrink_to(2 * self.kept.len());
        }
        if let Some(charge) = &mut self.charge {
            charge.resize(self.heap_bytes + self.kept.capacity() * size_of::<(LinkFrame, M)>());
        }
    }

    /// Whether what is to be written is so little that it may be tried without waiting: what is left of that is copied.
    fn is_little(&self) -> bool {
        self.kept.len() - self.written <= LITTLE_FRAMES_MAX
            && self.kept.range(self.written..).map(|(frame, _)| frame.bytes()).sum::<usize>() <= LITTLE_BYTES_MAX
    }

    fn has_work(&self) -> bool {
        self.written < self.kept.len() || self.tell || self.ended.is_some() || !self.rest.is_empty()
    }

    /// Takes out what is to be written next: something in any case. Answers whether nothing will come behind it.
    fn gather<D: LinkDirection<Mark = M>>(&mut self, gather: &mut GatheredFrames) -> bool {
        gather.begin_with(&mut self.rest);
        (self.tell, self.tell_at) = (false, None);
        if self.told < self.received {
            self.told = self.received;
            gather.push(&D::ack(self.received));
        }
        while gather.bytes() < WRITE_BYTES_MAX
            && let Some((frame, mark)) = self.kept.get_mut(self.written)
        {
            gather.push(frame);
            D::written(mark, &mut self.asks);
            self.written += 1;
        }
        if let Some(last) = self.ended.as_ref().filter(|_| self.written == self.kept.len()) {
            last.iter().for_each(|last| gather.push(last));
            return true;
        }
        if gather.bytes() == 0 {
            gather.push(&D::beat());
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::super::frame::FrameReader;
    use super::*;

    /// Frames are numbers; acknowledgements are numbers above a thousand, and a beat is zero.
    struct Numbers;

    impl LinkDirection for Numbers {
        type Mark = u64;

        fn ack(received: u64) -> LinkFrame {
            LinkFrame::bare(&(1000 + received))
        }

        fn beat() -> LinkFrame {
            LinkFrame::bare(&0_u64)
        }

        fn written(_: &mut u64, asks: &mut usize) {
            *asks = asks.saturating_sub(1);
        }
    }

    const WINDOW: LinkWindow = LinkWindow { frames: 8, bytes: 1000 };

    fn frame(number: u64) -> (LinkFrame, u64) {
        (LinkFrame::bare(&number), number)
    }

    /// What goes out until the line ends.
    fn written(line: &FrameQueue<Numbers>, connection: u64) -> Vec<u64> {
        let mut bytes = Vec::new();
        line.write(connection, &mut bytes, Duration::from_secs(60)).unwrap();
        let mut reader = FrameReader::new(&bytes[..], 64, 0);
        std::iter::from_fn(|| reader.next().ok().map(|(number, _)| number)).collect()
    }

    #[test]
    fn what_was_not_acknowledged_goes_out_again_once() {
        let line = FrameQueue::<Numbers>::new(WINDOW);
        line.send((1..=4).map(frame)).unwrap();
        let first = line.connect(WINDOW);
        assert_eq!(line.acknowledge(1, |_| ()), Err(NeverSent(1)), "nothing was written yet");
        std::thread::scope(|scope| {
            scope.spawn(|| line.write(first, &mut io::sink(), Duration::from_secs(60)).unwrap());
            let mut seen = Vec::new();
            while line.acknowledge(3, |mark| seen.push(mark)).is_err() {
                std::thread::yield_now();
            }
            assert_eq!(seen, [1, 2, 3]);
            line.disconnect(first);
        });
        assert_eq!(line.acknowledge(2, |_| panic!("an old one")), Ok(()));
        let second = line.connect(WINDOW);
        line.disconnect(first);
        line.send([frame(5)]).unwrap();
        line.end(Some(frame(99).0));
        assert_eq!(written(&line, second), [4, 5, 99]);
        assert_eq!(line.send([frame(6)]), Err(QueueEnded));
        assert!(line.wait_finished(Duration::ZERO));
    }

    #[test]
    fn a_full_window_waits_for_acknowledgements() {
        let line = FrameQueue::<Numbers>::new(WINDOW);
        let connection = line.connect(WINDOW);
        std::thread::scope(|scope| {
            let sender = scope.spawn(|| line.send((1..=20).map(frame)));
            scope.spawn(|| line.write(connection, &mut io::sink(), Duration::from_secs(60)).unwrap());
            let mut seen = 0;
            while seen < 20 {
                assert!(line.lock().kept.len() <= WINDOW.frames as usize);
                let _ = line.acknowledge(seen + 1, |mark| seen = mark);
                std::thread::yield_now();
            }
            assert_eq!(sender.join().unwrap(), Ok(()));
            line.disconnect(connection);
        });
        assert_eq!((line.counts(), line.lock().kept_bytes), ((20, 0), 0));
    }

    #[test]
    fn what_finds_no_room_is_not_waited_for_where_none_can_come() {
        let line = FrameQueue::<Numbers>::new(WINDOW);
        let never = Duration::from_secs(3600);
        for number in 1..=8 {
            assert_eq!(line.offer(frame(number).0, number, never), Ok(true));
        }
        assert_eq!(line.offer(frame(9).0, 9, never), Ok(false), "nobody is there to make room");
        let connection = line.connect(WINDOW);
        assert_eq!(line.offer(frame(9).0, 9, Duration::from_millis(1)), Ok(false), "nobody has made room in time");
        std::thread::scope(|scope| {
            let offered = scope.spawn(|| line.offer(frame(9).0, 9, never));
            scope.spawn(|| line.write(connection, &mut io::sink(), Duration::from_secs(60)).unwrap());
            while line.acknowledge(1, |_| ()).is_err() {
                std::thread::yield_now();
            }
            assert_eq!(offered.join().unwrap(), Ok(true));
            line.end(None);
        });
        assert_eq!(line.offer(frame(10).0, 10, never), Err(QueueEnded));
    }

    #[test]
    fn the_other_side_is_told_what_was_taken_in() {
        let line = FrameQueue::<Numbers>::new(WINDOW);
        let connection = line.connect(WINDOW);
        line.took(1, false);
        assert!(!line.lock().has_work(), "that is little");
        line.took(1, false);
        assert!(line.lock().has_work(), "a quarter of the window");
        line.took(1, true);
        line.end(None);
        assert_eq!(written(&line, connection), [1003]);
    }

    #[test]
    fn questions_are_counted_until_their_answer_is_written() {
        let line = FrameQueue::<Numbers>::new(WINDOW);
        assert!(line.ask(2) && line.ask(2) && !line.ask(2));
        let connection = line.connect(WINDOW);
        line.send_now(frame(1).0, 1).unwrap();
        line.end(None);
        assert_eq!(written(&line, connection), [1]);
        assert!(line.ask(2));
    }

    #[test]
    fn answers_that_are_never_acknowledged_end_the_asking() {
        let line = FrameQueue::<Numbers>::new(WINDOW);
        let connection = line.connect(WINDOW);
        std::thread::scope(|scope| {
            scope.spawn(|| line.write(connection, &mut io::sink(), Duration::from_secs(60)).unwrap());
            let mut answers = 0;
            while line.lock().kept.len() < KEPT_FRAMES_MAX {
                // Written, so answered, and taken out by nobody.
                match line.ask(2) {
                    true => line.send_now(frame(1).0, 1).unwrap(),
                    false => std::thread::yield_now(),
                }
                answers += 1;
            }
            assert!(!line.ask(usize::MAX) && answers >= KEPT_FRAMES_MAX);
            line.disconnect(connection);
        });
    }

    /// Takes a few bytes at a time, then none for a while.
    struct Narrow {
        taken: Mutex<Vec<u8>>,
        calls: Mutex<usize>,
    }

    impl WriteNow for Narrow {
        fn write_now(&self, bytes: &[u8]) -> io::Result<usize> {
            let mut calls = self.calls.lock().unwrap();
            *calls += 1;
            let count = if calls.is_multiple_of(3) { 0 } else { bytes.len().min(5) };
            self.taken.lock().unwrap().extend_from_slice(&bytes[..count]);
            Ok(count)
        }
    }

    /// The same pipe, waited for.
    impl Write for &Narrow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let count = bytes.len().min(7);
            self.taken.lock().unwrap().extend_from_slice(&bytes[..count]);
            Ok(count)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn who_has_a_frame_writes_it_and_what_does_not_go_is_the_writers_in_order() {
        let line = FrameQueue::<Numbers>::new(LinkWindow { frames: 10_000, bytes: 1 << 20 });
        let pipe = Arc::new(Narrow { taken: Mutex::default(), calls: Mutex::default() });
        let connection = line.connect(LinkWindow { frames: 10_000, bytes: 1 << 20 });
        line.write_through(connection, pipe.clone());
        std::thread::scope(|scope| {
            scope.spawn(|| line.write(connection, &mut &*pipe, Duration::from_secs(60)).unwrap());
            for number in 1..=3_000 {
                line.send([frame(number)]).unwrap();
                if number % 100 == 0 {
                    std::thread::sleep(2 * APART);
                }
            }
            line.end(Some(frame(99_999).0));
            assert!(line.wait_finished(Duration::from_secs(60)));
        });
        let bytes = pipe.taken.lock().unwrap().clone();
        let mut reader = FrameReader::new(&bytes[..], 64, 0);
        let seen: Vec<u64> = std::iter::from_fn(|| reader.next().ok().map(|(number, _)| number)).collect();
        assert_eq!(seen[..3_000], (1..=3_000).collect::<Vec<_>>());
        assert_eq!(seen[3_000..], [99_999]);
        assert!(*pipe.calls.lock().unwrap() > 3, "some were written by who had them");
    }

    #[test]
    fn a_frame_is_written_without_the_writer_and_an_acknowledgement_rides_on_it() {
        let line = FrameQueue::<Numbers>::new(WINDOW);
        let (here, there) = std::os::unix::net::UnixStream::pair().unwrap();
        let stream = Arc::new(crate::driver::peer_socket::PeerStream::Unix(here));
        let connection = line.connect(WINDOW);
        line.write_through(connection, stream);
        line.took(1, true);
        line.send([frame(7)]).unwrap();
        let mut reader = FrameReader::new(&there, 64, 0);
        let mut next = || reader.next::<u64>().unwrap().0;
        assert_eq!((next(), next()), (1001, 7), "nobody else has written");
    }

    #[test]
    fn an_acknowledgement_that_finds_no_frame_goes_alone_soon() {
        let line = FrameQueue::<Numbers>::new(WINDOW);
        let (mut here, there) = std::os::unix::net::UnixStream::pair().unwrap();
        let connection = line.connect(WINDOW);
        std::thread::scope(|scope| {
            scope.spawn(|| line.write(connection, &mut here, Duration::from_secs(60)).unwrap());
            let mut reader = FrameReader::new(&there, 64, 0);
            for count in 1..=3 {
                line.took(1, true);
                assert_eq!(reader.next::<u64>().unwrap().0, 1000 + count, "long before a beat");
            }
            line.disconnect(connection);
        });
    }

    #[test]
    fn a_silent_line_beats() {
        let line = FrameQueue::<Numbers>::new(WINDOW);
        let connection = line.connect(WINDOW);
        let (mut here, there) = std::os::unix::net::UnixStream::pair().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| line.write(connection, &mut here, Duration::from_millis(1)).unwrap());
            let mut reader = FrameReader::new(&there, 64, 0);
            for _ in 0..3 {
                assert_eq!(reader.next::<u64>().unwrap().0, 0);
            }
            line.disconnect(connection);
        });
    }
}
