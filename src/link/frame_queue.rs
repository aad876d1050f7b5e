//! One direction of numbered frames, and the acknowledgements of the other: the reason why a session outlives a
//! connection.
//!
//! Numbered frames are counted from the session's beginning and kept until the other side acknowledges them; over a new
//! connection they are written again from the first that it does not have. So nothing is lost or doubled, and the limit
//! of unacknowledged bytes (the window) bounds what is kept. The same on both sides of a link.
//!
//! If no thread is writing, a frame is written by the thread that has it, as far as that goes without waiting. The
//! rest, and frames that come while another thread writes, or soon after such a frame, are left to the writer thread,
//! which writes all that is there at once. An acknowledgement is sent with the next frame; alone it goes only when it
//! is a quarter of the window, or late.
//!
//! Invariants: frames are written in the order in which they were put in, by one thread at a time; at most the window,
//! and what is put in without waiting, is kept. Does not depend on heads or sockets.

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

/// Frames closer together than this are left to the writer thread, which writes many at once.
const APART: Duration = Duration::from_micros(40);

/// The frames of one direction.
pub(super) trait LinkDirection {
    /// Beside a frame, until it is acknowledged.
    type Mark;

    /// Acknowledges so many frames.
    fn ack(received: u64) -> LinkFrame;

    /// A frame without content, which shows that the peer is alive.
    fn beat() -> LinkFrame;

    /// The frame is written for the first time.
    fn written(mark: &mut Self::Mark, asks: &mut usize);

    /// The heap bytes of a mark.
    fn mark_bytes(_: &Self::Mark) -> usize {
        0
    }
}

/// See the module.
pub(super) struct FrameQueue<D: LinkDirection> {
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
    /// The heap bytes, without the places of the queue; and the charge for them, on the broker's side.
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
    /// A frame outside of the numbering, sent once to the peer of this connection; and whether it was sent.
    notice: Option<LinkFrame>,
    is_noticed: bool,
    /// When to tell at the latest.
    tell_at: Option<Instant>,
    /// How to write to the connection without waiting, the time of the last such write, and whether a thread writes
    /// now.
    out: Option<Arc<dyn WriteNow>>,
    wrote_at: Option<Instant>,
    writing: bool,
    /// The rest of frames that are partly written.
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

/// The queue has ended; nothing is sent any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct QueueEnded;

/// An acknowledgement of frames that were never sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0} frames are acknowledged, more than were sent")]
pub(super) struct NeverSent(pub u64);

impl<D: LinkDirection> FrameQueue<D> {
    /// A queue without connection, of a session that begins.
    pub(super) fn new(window: LinkWindow) -> Self {
        Self::of_session(window, 0, 0)
    }

    /// The same of a session in which the other side has so many frames of ours, and we so many of its.
    pub(super) fn of_session(window: LinkWindow, acknowledged: u64, received: u64) -> Self {
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
            notice: None,
            is_noticed: false,
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
    pub(super) fn charged(self, charge: Charge) -> Self {
        self.lock().charge = Some(charge);
        self
    }

    /// Puts frames in, waiting for room.
    ///
    /// # Errors
    /// The queue has ended; the frames that are left were not put in.
    pub(super) fn send(&self, frames: impl IntoIterator<Item = (LinkFrame, D::Mark)>) -> Result<(), QueueEnded> {
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

    /// Puts a frame in, waiting for room as long as there is a connection over which it may come, for at most
    /// `patience`. Returns whether it was put in; it is dropped if not.
    ///
    /// # Errors
    /// The queue has ended.
    pub(super) fn offer(&self, frame: LinkFrame, mark: D::Mark, patience: Duration) -> Result<bool, QueueEnded> {
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
    /// The queue has ended.
    pub(super) fn send_now(&self, frame: LinkFrame, mark: D::Mark) -> Result<(), QueueEnded> {
        let mut state = self.lock();
        if state.ended.is_some() {
            return Err(QueueEnded);
        }
        state.put::<D>((frame, mark));
        state.settle();
        drop(self.go(state));
        Ok(())
    }

    /// The same from a thread that does nothing else for it than this: another one writes.
    ///
    /// # Errors
    /// The line has ended.
    pub(super) fn send_later(&self, frame: LinkFrame, mark: D::Mark) -> Result<(), QueueEnded> {
        let mut state = self.lock();
        if state.ended.is_some() {
            return Err(QueueEnded);
        }
        state.put::<D>((frame, mark));
        state.settle();
        self.work.notify_all();
        Ok(())
    }

    /// Writes what goes without waiting, if no thread is writing; otherwise, and for the rest, wakes the writer thread.
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
    pub(super) fn ask(&self, asks_max: usize) -> bool {
        let mut state = self.lock();
        let may = state.asks < asks_max && state.kept.len() < KEPT_FRAMES_MAX;
        state.asks += usize::from(may);
        may
    }

    /// The other side has so many frames; `each` sees those that it is told of now.
    ///
    /// # Errors
    /// It cannot have them.
    pub(super) fn acknowledge(&self, received: u64, mut each: impl FnMut(D::Mark)) -> Result<(), NeverSent> {
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
    pub(super) fn took(&self, count: u64, now: bool) {
        let mut state = self.lock();
        state.received += count;
        let unacknowledged = state.received - state.told;
        if unacknowledged >= u64::from(state.window.frames) / 4 {
            state.tell = true;
            self.work.notify_all();
        } else if now && unacknowledged > 0 && state.tell_at.is_none() {
            let tell_at = Instant::now() + ACK_WITHIN;
            state.tell_at = Some(tell_at);
            if state.writer_until.is_some_and(|until| until > tell_at) {
                self.work.notify_all();
            }
        }
    }

    /// Frames that the other side has, and frames of the other side that were taken in.
    pub(super) fn counts(&self) -> (u64, u64) {
        let state = self.lock();
        (state.acknowledged, state.received)
    }

    /// Waits until there is no connection, for at most `patience`; returns whether there is none.
    pub(super) fn wait_disconnected(&self, patience: Duration) -> bool {
        self.wait_for(patience, |state| state.connection.is_none())
    }

    /// Waits until everything is written, or nothing will be, for at most `patience`.
    pub(super) fn wait_finished(&self, patience: Duration) -> bool {
        self.wait_for(patience, |state| state.finished || state.ended.is_some() && state.connection.is_none())
    }

    /// Begins a connection: everything that is not acknowledged goes out over it, and at most `window` is kept from now
    /// on. Returns what [`write`](Self::write) and [`disconnect`](Self::disconnect) are called with.
    pub(super) fn connect(&self, window: LinkWindow) -> u64 {
        let mut state = self.lock();
        state.connections += 1;
        state.connection = Some(state.connections);
        state.window = window;
        state.written = 0;
        state.told = state.received;
        (state.tell, state.tell_at) = (false, None);
        (state.notice, state.is_noticed) = (None, false);
        (state.out, state.wrote_at, state.writing) = (None, None, false);
        state.rest = Vec::new();
        state.connections
    }

    /// Sends the peer of this connection, if there is one, a frame without a number, once; it is not acknowledged.
    pub(super) fn notice(&self, frame: LinkFrame) {
        let mut state = self.lock();
        if state.connection.is_some() && !state.is_noticed {
            (state.notice, state.is_noticed) = (Some(frame), true);
            self.work.notify_all();
        }
    }

    /// From now on threads that add a frame write it themselves, if that goes without waiting.
    pub(super) fn write_through(&self, connection: u64, out: Arc<dyn WriteNow>) {
        let mut state = self.lock();
        if state.connection == Some(connection) {
            state.out = Some(out);
        }
    }

    /// The connection is over. Nothing happens where it is no longer the current one.
    pub(super) fn disconnect(&self, connection: u64) {
        let mut state = self.lock();
        if state.connection == Some(connection) {
            state.connection = None;
            state.out = None;
            self.work.notify_all();
            self.changed.notify_all();
        }
    }

    /// Ends the queue: nothing is put in any more; what was goes out first, then `last`.
    pub(super) fn end(&self, last: Option<LinkFrame>) {
        let mut state = self.lock();
        if state.ended.is_none() {
            state.ended = Some(last);
            self.work.notify_all();
            self.changed.notify_all();
        }
    }

    /// Returns whether it has ended.
    pub(super) fn has_ended(&self) -> bool {
        self.lock().ended.is_some()
    }

    /// Writes what there is to write until the connection or the queue is over, and something at least every `beat`.
    ///
    /// # Errors
    /// The stream's.
    pub(super) fn write(&self, connection: u64, out: &mut impl Write, beat: Duration) -> io::Result<()> {
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

    /// Waits until the writer has something to write, a beat or a late acknowledgement at last, or the connection is
    /// over.
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
            // With frames in both directions the next acknowledgement is soon due, and this thread need not be woken
            // for it.
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

    /// Returns whether the pending bytes are so few that they may be written without waiting; a rest is copied.
    fn is_little(&self) -> bool {
        self.kept.len() - self.written <= LITTLE_FRAMES_MAX
            && self.kept.range(self.written..).map(|(frame, _)| frame.bytes()).sum::<usize>() <= LITTLE_BYTES_MAX
    }

    fn has_work(&self) -> bool {
        self.written < self.kept.len()
            || self.tell
            || self.notice.is_some()
            || self.ended.is_some()
            || !self.rest.is_empty()
    }

    /// Takes out what is to be written next: something in any case. Returns whether nothing will come behind it.
    fn gather<D: LinkDirection<Mark = M>>(&mut self, gather: &mut GatheredFrames) -> bool {
        gather.begin_with(&mut self.rest);
        (self.tell, self.tell_at) = (false, None);
        if self.told < self.received {
            self.told = self.received;
            gather.push(&D::ack(self.received));
        }
        if let Some(notice) = self.notice.take() {
            gather.push(&notice);
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
#[path = "frame_queue_tests.rs"]
mod tests;
