//! One direction of numbered frames, and the acknowledgements of the other: the reason why a session outlives a
//! connection.
//!
//! Numbered frames are counted from the session's beginning and kept until the other side acknowledges them; over a new
//! connection they are written again from the first that it does not have. So nothing is lost or doubled, and the limit
//! of unacknowledged bytes (the window) bounds what is kept. The same on both sides of a link.
//!
//! If no thread is writing, a frame is written by the thread that has it, as far as that goes without waiting. The
//! rest, and frames that come while another thread writes, or soon after such a frame, are left to the writer thread,
//! which writes all that is there at once. Frames of a thread that has several events to handle are held back until it
//! asks for more, and leave together. An acknowledgement is sent with the next frame; alone it goes only when it is a
//! quarter of the window, or late.
//!
//! Invariants: frames are written in the order in which they were put in, by one thread at a time; at most the window,
//! and what is put in without waiting, is kept. Does not depend on heads or sockets.

use super::frame::{GatheredFrames, LinkFrame, WriteNow};
use super::monitor::{Monitor, MonitorGuard};
use super::wire::LinkWindow;
use crate::admission::{Charge, HeapBytes};
use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::Arc;
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

/// So much is taken out at a time: a write that the other side sees soon, and the lock is free meanwhile.
const WRITE_BYTES_MAX: usize = 256 << 10;

/// Frames that may be kept in all: several windows. Answers are put in without waiting, and only acknowledgements make
/// room for them.
const KEPT_FRAMES_MAX: usize = 64 << 10;

/// Places for frames that are kept though there are none.
const PLACES_SPARE: usize = 256;

/// How long an acknowledgement waits for a frame to ride on, and a frame for the others of its thread.
pub(super) const HOLD_WITHIN: Duration = Duration::from_millis(5);

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
    state: Monitor<FrameQueueState<D::Mark>, 2>,
}

/// The writer has something to do.
const WORK: usize = 0;
/// Something else has changed.
const CHANGED: usize = 1;

type Locked<'a, M> = MonitorGuard<'a, FrameQueueState<M>, 2>;

struct FrameQueueState<M> {
    window: LinkWindow,
    kept: VecDeque<(LinkFrame, M)>,
    kept_bytes: usize,
    /// The heap bytes, without the places of the queue; and the charge for them, on the broker's side.
    heap_bytes: usize,
    charge: Option<Charge>,
    /// How many of `kept` went out over this connection, and the bytes of the others.
    written: usize,
    unwritten_bytes: usize,
    /// How many frames came before `kept`, and how many ever went out, over whatever connection.
    acknowledged: u64,
    sent: u64,
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
    /// The thread whose frames are held back, and until when.
    hold: Option<(ThreadId, Instant)>,
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
            unwritten_bytes: 0,
            acknowledged,
            sent: acknowledged,
            received,
            told: received,
            tell: false,
            notice: None,
            is_noticed: false,
            tell_at: None,
            out: None,
            wrote_at: None,
            writing: false,
            hold: None,
            rest: Vec::new(),
            writer_until: None,
            seen: received,
            asks: 0,
            connection: None,
            connections: 0,
            ended: None,
            finished: false,
        };
        Self { state: Monitor::new(state) }
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
        self.send_and(frames, Self::go)
    }

    /// The same from a thread that has nothing else to do: it writes them itself, however close together they come.
    ///
    /// # Errors
    /// As there.
    pub(super) fn send_through(
        &self,
        frames: impl IntoIterator<Item = (LinkFrame, D::Mark)>,
    ) -> Result<(), QueueEnded> {
        self.send_and(frames, |queue, state| queue.write_now(state, true))
    }

    fn send_and<'a>(
        &'a self,
        frames: impl IntoIterator<Item = (LinkFrame, D::Mark)>,
        go: impl Fn(&'a Self, Locked<'a, D::Mark>) -> Locked<'a, D::Mark>,
    ) -> Result<(), QueueEnded> {
        let mut frames = frames.into_iter().peekable();
        let mut state = self.lock();
        while frames.peek().is_some() {
            if !state.has_room() && state.hold.take().is_some() {
                state.signal(WORK);
            }
            state = state.wait_while(CHANGED, None, |state| state.ended.is_none() && !state.has_room());
            if state.ended.is_some() {
                return Err(QueueEnded);
            }
            while state.has_room()
                && let Some(frame) = frames.next()
            {
                state.put::<D>(frame);
            }
            state.settle();
            state = go(self, state);
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
        let mut state = self.lock().wait_while(CHANGED, Some(until), may_come);
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
        state.signal(WORK);
        Ok(())
    }

    /// Writes what goes without waiting, if no thread is writing; otherwise, and for the rest, wakes the writer thread.
    /// Frames that this thread holds back stay where they are.
    fn go<'a>(&'a self, mut state: Locked<'a, D::Mark>) -> Locked<'a, D::Mark> {
        let now = Instant::now();
        if let Some((thread, until)) = state.hold
            && now < until
            && thread == thread::current().id()
            && state.is_little()
        {
            if state.writer_until.is_some_and(|writer_until| writer_until > until) {
                state.signal(WORK);
            }
            return state;
        }
        let is_apart = state.wrote_at.is_none_or(|at| now >= at + APART);
        self.write_now(state, is_apart)
    }

    /// Writes what goes without waiting, where it `may`; otherwise, and for the rest, wakes the writer. A thread that
    /// is writing takes what comes meanwhile.
    fn write_now<'a>(&'a self, mut state: Locked<'a, D::Mark>, may: bool) -> Locked<'a, D::Mark> {
        state.hold = None;
        if state.writing {
            return state;
        }
        let may = may && state.ended.is_none() && state.rest.is_empty() && state.is_little();
        let Some(out) = state.out.clone().filter(|_| may) else {
            state.signal(WORK);
            return state;
        };
        (state.wrote_at, state.writing) = (Some(Instant::now()), true);
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
                state.signal(WORK);
            }
        }
        state
    }

    /// Frames of this thread are held back from now on, for [`HOLD_WITHIN`] at most: it is about to put in several.
    pub(super) fn hold(&self) {
        self.lock().hold = Some((thread::current().id(), Instant::now() + HOLD_WITHIN));
    }

    /// Writes what is held back.
    pub(super) fn release(&self) {
        let mut state = self.lock();
        if state.hold.take().is_some() && state.unwritten() > 0 {
            drop(self.write_now(state, true));
        }
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
        // A connection may be taken over by a hello that was late, and end before everything is written once more.
        if received > state.sent {
            return Err(NeverSent(received));
        }
        for (place, (frame, mark)) in state.kept.drain(..count).collect::<Vec<_>>().into_iter().enumerate() {
            state.kept_bytes -= frame.bytes();
            if place >= state.written {
                state.unwritten_bytes -= frame.bytes();
            }
            state.heap_bytes -= frame.heap_bytes() + D::mark_bytes(&mark);
            each(mark);
        }
        state.settle();
        state.written = state.written.saturating_sub(count);
        state.acknowledged = received;
        state.signal(CHANGED);
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
            state.signal(WORK);
        } else if now && unacknowledged > 0 && state.tell_at.is_none() {
            let tell_at = Instant::now() + HOLD_WITHIN;
            state.tell_at = Some(tell_at);
            if state.writer_until.is_some_and(|until| until > tell_at) {
                state.signal(WORK);
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
        (state.out, state.wrote_at, state.writing, state.hold) = (None, None, false, None);
        state.unwritten_bytes = state.kept_bytes;
        state.rest = Vec::new();
        state.connections
    }

    /// Sends the peer of this connection, if there is one, a frame without a number, once; it is not acknowledged.
    pub(super) fn notice(&self, frame: LinkFrame) {
        let mut state = self.lock();
        if state.connection.is_some() && !state.is_noticed {
            (state.notice, state.is_noticed) = (Some(frame), true);
            state.signal(WORK);
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
            state.signal(WORK);
            state.signal(CHANGED);
        }
    }

    /// Ends the queue: nothing is put in any more; what was goes out first, then `last`.
    pub(super) fn end(&self, last: Option<LinkFrame>) {
        let mut state = self.lock();
        if state.ended.is_none() {
            state.ended = Some(last);
            state.signal(WORK);
            state.signal(CHANGED);
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
                state.signal(CHANGED);
                return Ok(());
            }
        }
    }

    /// Waits until the writer has something to write, a beat or a late acknowledgement at last, or the connection is
    /// over.
    fn wait_for_work(&self, connection: u64, beat: Duration) -> Locked<'_, D::Mark> {
        let beat_at = Instant::now() + beat;
        let is_idle = |state: &FrameQueueState<D::Mark>| {
            state.connection == Some(connection) && (state.writing || !state.has_work())
        };
        let mut state = self.lock();
        while is_idle(&state) {
            let (now, due_at, received) = (Instant::now(), state.due_at(), state.received);
            if due_at.is_some_and(|at| at <= now) {
                state.fall_due(now);
                continue;
            }
            // With frames in both directions the next acknowledgement is soon due, and frames are held back, and this
            // thread need not be woken for either.
            let is_lively = state.writer_until.is_some() && std::mem::replace(&mut state.seen, received) != received;
            let lively_until = is_lively.then_some(now + HOLD_WITHIN);
            let until = due_at.into_iter().chain(lively_until).fold(beat_at, Instant::min);
            if until <= now && !state.writing {
                // A beat.
                break;
            }
            state.writer_until = Some(until);
            let has_time = |state: &mut FrameQueueState<D::Mark>| {
                is_idle(state) && (state.due_at() == due_at || state.due_at().is_none_or(|at| at >= until))
            };
            // While another thread writes, nothing can be done at the time.
            let until = if state.writing { until.max(now + HOLD_WITHIN) } else { until };
            state = state.wait_while(WORK, Some(until), has_time);
        }
        state.writer_until = None;
        state
    }

    fn lock(&self) -> Locked<'_, D::Mark> {
        self.state.lock()
    }

    fn wait_for(&self, patience: Duration, condition: impl Fn(&FrameQueueState<D::Mark>) -> bool) -> bool {
        // As long as no clock counts is for ever.
        let until = Instant::now().checked_add(patience);
        condition(&self.lock().wait_while(CHANGED, until, |state| !condition(state)))
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
        self.unwritten_bytes += frame.0.bytes();
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

    /// When an acknowledgement is late, or a frame was held back for long enough.
    fn due_at(&self) -> Option<Instant> {
        let held_until = self.hold.map(|(_, until)| until);
        self.tell_at.into_iter().chain(held_until).min()
    }

    /// What is due goes out next.
    fn fall_due(&mut self, now: Instant) {
        if self.tell_at.is_some_and(|at| at <= now) {
            (self.tell, self.tell_at) = (true, None);
        }
        self.hold = self.hold.filter(|(_, until)| *until > now);
    }

    /// How many frames are to be written.
    fn unwritten(&self) -> usize {
        self.kept.len() - self.written
    }

    /// Returns whether the pending bytes are so few that they may be written without waiting; a rest is copied.
    fn is_little(&self) -> bool {
        self.unwritten() <= LITTLE_FRAMES_MAX && self.unwritten_bytes <= LITTLE_BYTES_MAX
    }

    fn has_work(&self) -> bool {
        self.unwritten() > 0 && self.hold.is_none()
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
            self.unwritten_bytes -= frame.bytes();
            D::written(mark, &mut self.asks);
            self.written += 1;
            self.sent = self.sent.max(self.acknowledged + self.written as u64);
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
