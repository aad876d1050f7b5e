//! What a kernel has sent and nobody has obeyed yet: between the thread that reads and the one that obeys.
//!
//! The one that obeys may wait for the peer to acknowledge what it was sent; the one that reads must go on meanwhile,
//! since it reads the acknowledgements. Invariants: order is kept; what waits is bounded by two windows, which a peer
//! that keeps within its own never fills for long.

use super::config::WINDOW;
use crate::admission::Charge;
use crate::node::KernelMessage;
use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

const FRAMES_MAX: usize = 2 * WINDOW.frames as usize;
const BYTES_MAX: usize = 2 * WINDOW.bytes as usize;

/// See the module.
#[derive(Default)]
pub struct KernelInbox {
    state: Mutex<KernelInboxState>,
    changed: Condvar,
}

#[derive(Default)]
struct KernelInboxState {
    waiting: VecDeque<(KernelMessage, usize)>,
    /// What they take of the heap.
    bytes: usize,
    /// How many were taken out and are not obeyed yet, and what they take.
    in_hand: usize,
    in_hand_bytes: usize,
    charge: Option<Charge>,
    /// How many were ever put in.
    received: u64,
    is_closed: bool,
}

/// Why a message was not put in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotTaken {
    /// Nobody obeys any more.
    Closed,
    /// There was no room all the time.
    Full,
}

impl KernelInboxState {
    /// Charges what is here now.
    fn settle(&mut self) {
        let places = self.waiting.capacity() * size_of::<(KernelMessage, usize)>();
        if let Some(charge) = &mut self.charge {
            charge.resize(self.bytes + self.in_hand_bytes + places);
        }
    }
}

impl KernelInbox {
    /// An empty one, whose messages are charged.
    pub fn charged(charge: Charge) -> Self {
        Self {
            state: Mutex::new(KernelInboxState { charge: Some(charge), ..KernelInboxState::default() }),
            changed: Condvar::default(),
        }
    }

    /// Puts a message in, which takes so many bytes of the heap; waits for room for at most `patience`.
    ///
    /// # Errors
    /// See [`NotTaken`].
    pub fn put(&self, message: KernelMessage, bytes: usize, patience: Duration) -> Result<(), NotTaken> {
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
                self.changed.notify_all();
                Ok(())
            }
        }
    }

    /// Waits for messages and takes up to `count` of them out, into `messages`. What was taken before counts as obeyed.
    /// False: it is closed, and empty.
    pub fn take(&self, messages: &mut Vec<KernelMessage>, count: usize) -> bool {
        let mut state = self.lock();
        (state.in_hand, state.in_hand_bytes) = (0, 0);
        state.settle();
        self.changed.notify_all();
        let is_empty = |state: &mut KernelInboxState| state.waiting.is_empty() && !state.is_closed;
        state = self.changed.wait_while(state, is_empty).unwrap_or_else(PoisonError::into_inner);
        let count = count.min(state.waiting.len());
        let taken: Vec<_> = state.waiting.drain(..count).collect();
        state.in_hand_bytes = taken.iter().map(|(_, bytes)| bytes).sum::<usize>();
        state.bytes -= state.in_hand_bytes;
        state.in_hand = count;
        messages.extend(taken.into_iter().map(|(message, _)| message));
        self.changed.notify_all();
        count > 0
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.lock().waiting.is_empty()
    }

    /// How many were ever put in.
    pub fn received(&self) -> u64 {
        self.lock().received
    }

    /// Waits until everything is obeyed, for at most `patience`.
    pub fn wait_obeyed(&self, patience: Duration) {
        let is_busy = |state: &mut KernelInboxState| !state.waiting.is_empty() || state.in_hand > 0;
        drop(self.changed.wait_timeout_while(self.lock(), patience, is_busy));
    }

    /// Nothing is put in any more, and what waits is forgotten.
    pub fn close(&self) {
        let mut state = self.lock();
        state.is_closed = true;
        state.waiting = VecDeque::new();
        (state.bytes, state.in_hand, state.in_hand_bytes) = (0, 0, 0);
        state.settle();
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
        assert!(room.take(&mut taken, 2));
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
        assert!(room.is_empty() && !room.take(&mut taken, 1));
        room.wait_obeyed(Duration::from_secs(60));
    }
}
