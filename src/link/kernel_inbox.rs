//! Messages that a kernel has sent and that were not carried out yet: between the reading and the executing thread.
//!
//! The executing thread may wait for the peer to acknowledge what it was sent; the reading thread must continue
//! meanwhile, since it reads the acknowledgements. Invariants: order is kept; what waits is bounded by two windows,
//! which a peer that keeps within its own never fills for long. A message that was taken out is charged by the thread
//! that took it.

use super::config::WINDOW;
use crate::admission::Charge;
use crate::node::KernelMessage;
use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

const FRAMES_MAX: usize = 2 * WINDOW.frames as usize;
const BYTES_MAX: usize = 2 * WINDOW.bytes as usize;

/// See the module.
#[derive(Default)]
pub(super) struct KernelInbox {
    state: Mutex<KernelInboxState>,
    changed: Condvar,
}

#[derive(Default)]
struct KernelInboxState {
    waiting: VecDeque<(KernelMessage, usize)>,
    /// Their heap bytes.
    bytes: usize,
    /// Whether the frame taken out last may still be unfinished.
    in_hand: bool,
    /// The task that waits for frames.
    taker: Option<Waker>,
    charge: Option<Charge>,
    /// How many frames have come: those that were ever put in, and those that need not be.
    received: u64,
    is_closed: bool,
}

/// Why a message was not put in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NotTaken {
    /// The thread that carries out messages has ended.
    Closed,
    /// There was no room all the time.
    Full,
}

impl KernelInboxState {
    /// Charges what is here now.
    fn settle(&mut self) {
        let places = self.waiting.capacity() * size_of::<(KernelMessage, usize)>();
        if let Some(charge) = &mut self.charge {
            charge.resize(self.bytes + places);
        }
    }
}

impl KernelInbox {
    /// An empty one, whose messages are charged.
    pub(super) fn charged(charge: Charge) -> Self {
        Self {
            state: Mutex::new(KernelInboxState { charge: Some(charge), ..KernelInboxState::default() }),
            changed: Condvar::default(),
        }
    }

    /// Puts a message in, which takes so many bytes of the heap; waits for room for at most `patience`.
    ///
    /// # Errors
    /// See [`NotTaken`].
    pub(super) fn put(&self, message: KernelMessage, bytes: usize, patience: Duration) -> Result<(), NotTaken> {
        let is_full = |state: &mut KernelInboxState| {
            !state.is_closed
                && !state.waiting.is_empty()
                && (state.waiting.len() >= FRAMES_MAX || state.bytes >= BYTES_MAX)
        };
        let waited = self.changed.wait_timeout_while(self.lock(), patience, is_full);
        let (mut state, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        match () {
            () if state.is_closed => Err(NotTaken::Closed),
            () if timeout.timed_out() => Err(NotTaken::Full),
            () => {
                state.waiting.push_back((message, bytes));
                state.bytes += bytes;
                state.received += 1;
                state.settle();
                state.taker.take().iter().for_each(Waker::wake_by_ref);
                Ok(())
            }
        }
    }

    /// Takes up to `count` messages out, into `messages`; while there are none, the task of `context` is woken when
    /// there are. False: it is closed.
    pub(super) fn poll_take(
        &self,
        context: &mut Context<'_>,
        messages: &mut Vec<KernelMessage>,
        count: usize,
    ) -> Poll<bool> {
        let mut state = self.lock();
        if state.waiting.is_empty() {
            if state.is_closed {
                return Poll::Ready(false);
            }
            state.taker = Some(context.waker().clone());
            return Poll::Pending;
        }
        let count = count.min(state.waiting.len());
        let mut bytes = 0;
        messages.extend(state.waiting.drain(..count).map(|(message, of_message)| {
            bytes += of_message;
            message
        }));
        state.bytes -= bytes;
        state.in_hand = true;
        state.settle();
        self.changed.notify_all();
        Poll::Ready(true)
    }

    /// All that was taken out is executed.
    pub(super) fn executed(&self) {
        let mut state = self.lock();
        if std::mem::take(&mut state.in_hand) {
            self.changed.notify_all();
        }
    }

    /// Returns whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.lock().waiting.is_empty()
    }

    /// A frame has come that is carried out at once, ahead of what waits.
    pub(super) fn pass(&self) {
        self.lock().received += 1;
    }

    /// How many frames have come.
    pub(super) fn received(&self) -> u64 {
        self.lock().received
    }

    /// Waits until everything is executed, for at most `patience`.
    pub(super) fn wait_executed(&self, patience: Duration) {
        let is_busy = |state: &mut KernelInboxState| !state.waiting.is_empty() || state.in_hand;
        drop(self.changed.wait_timeout_while(self.lock(), patience, is_busy));
    }

    /// Nothing is put in any more, and what waits is forgotten.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.is_closed = true;
        state.waiting = VecDeque::new();
        (state.bytes, state.in_hand) = (0, false);
        state.settle();
        state.taker.take().iter().for_each(Waker::wake_by_ref);
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, KernelInboxState> {
        // Nothing between two changes of one call can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::{Address, Message, Request, http_server_process};

    fn message(id: u64) -> KernelMessage {
        let address = Address::new("n", http_server_process());
        let message = Message::Request(Request::default());
        KernelMessage { id, source: address.clone(), target: address, rsvp: None, message, lazy_load_blob: None }
    }

    #[test]
    fn it_keeps_order_and_bounds_and_ends() {
        let room = KernelInbox::default();
        for id in 0..FRAMES_MAX as u64 {
            room.put(message(id), 1, Duration::ZERO).unwrap();
        }
        assert_eq!(room.put(message(0), 1, Duration::ZERO), Err(NotTaken::Full));
        let mut taken = Vec::new();
        let mut context = Context::from_waker(Waker::noop());
        assert_eq!(room.poll_take(&mut context, &mut taken, 2), Poll::Ready(true));
        assert_eq!(taken.iter().map(|message| message.id).collect::<Vec<_>>(), [0, 1]);
        // One message may be larger than all that may wait.
        room.put(message(9), BYTES_MAX, Duration::ZERO).unwrap();
        assert_eq!(room.put(message(9), 1, Duration::ZERO), Err(NotTaken::Full));
        assert_eq!(room.received(), FRAMES_MAX as u64 + 1);
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| room.put(message(10), 1, Duration::from_secs(60)));
            room.close();
            assert_eq!(waiting.join().unwrap(), Err(NotTaken::Closed));
        });
        assert!(room.is_empty());
        assert_eq!(room.poll_take(&mut context, &mut taken, 1), Poll::Ready(false));
        room.wait_executed(Duration::from_secs(60));
    }
}
