//! The handle to the outcome of one push: available once, awaited by a thread or by a task.

use crate::queue::orders::wake_task;
use crate::shard::outcome::Outcome;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// The claim to the outcome of one push that was accepted: for a thread that [waits](Self::wait), or as a future.
///
/// The outcome is there as soon as every shard has offered the frame to its sockets; clients do not delay it.
#[derive(Debug)]
#[must_use = "ask only for outcomes that are used"]
pub struct Ticket<T = Outcome>(Arc<TicketShared<T>>);

/// The outcome was not known in time. The ticket stays good: wait again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the outcome of the push was not known in time; the ticket stays valid")]
pub struct NotYetKnown;

#[derive(Debug)]
struct TicketShared<T> {
    state: Mutex<TicketState<T>>,
    changed: Condvar,
}

#[derive(Debug)]
struct TicketState<T> {
    outcome: Option<T>,
    waiting: Option<Waker>,
}

/// The other end of a [`Ticket`], or of a call that takes its place.
pub(super) struct TicketSender<T = Outcome>(TicketTarget<T>);

/// A call that is made once.
type TicketCall<T> = Box<dyn FnOnce(T) + Send>;

enum TicketTarget<T> {
    Ticket(Arc<TicketShared<T>>),
    /// None: it was made.
    Call(Mutex<Option<TicketCall<T>>>),
}

impl<T> std::fmt::Debug for TicketSender<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TicketSender")
    }
}

pub(super) fn ticket<T>() -> (TicketSender<T>, Ticket<T>) {
    let state = Mutex::new(TicketState { outcome: None, waiting: None });
    let told = Arc::new(TicketShared { state, changed: Condvar::new() });
    (TicketSender(TicketTarget::Ticket(told.clone())), Ticket(told))
}

impl<T> TicketSender<T> {
    /// Has `call` made with the outcome, on the thread that delivers it, which may be a shard's: it must not wait.
    #[cfg_attr(not(feature = "link"), allow(dead_code))]
    pub(super) fn calling(call: impl FnOnce(T) + Send + 'static) -> Self {
        Self(TicketTarget::Call(Mutex::new(Some(Box::new(call)))))
    }

    /// Delivers the outcome. The caller may no longer wait for it.
    pub(super) fn tell(&self, outcome: T) {
        match &self.0 {
            TicketTarget::Ticket(shared) => shared.tell(outcome),
            TicketTarget::Call(call) => {
                let call = call.lock().unwrap_or_else(PoisonError::into_inner).take();
                if let Some(call) = call {
                    call(outcome);
                }
            }
        }
    }
}

impl<T: Clone> Ticket<T> {
    /// Waits for the outcome. Blocks the thread; in async code, await the ticket.
    ///
    /// # Errors
    /// It was not known within `timeout`.
    pub fn wait(&self, timeout: Duration) -> Result<T, NotYetKnown> {
        super::here::must_not_be_on_a_shard();
        let is_open = |state: &mut TicketState<T>| state.outcome.is_none();
        let waited = self.0.changed.wait_timeout_while(self.0.state(), timeout, is_open);
        waited.unwrap_or_else(PoisonError::into_inner).0.outcome.clone().ok_or(NotYetKnown)
    }

    /// The heap bytes of a ticket whose outcome is not known yet.
    #[cfg_attr(not(feature = "daemon"), allow(dead_code))]
    pub(crate) const HEAP_BYTES: usize = size_of::<TicketShared<T>>() + 2 * size_of::<usize>();

    /// One that nobody has told yet, for tests of what waits for it.
    #[cfg(test)]
    pub(crate) fn untold() -> (impl FnOnce(T), Self) {
        let (teller, ticket) = ticket();
        (move |outcome| teller.tell(outcome), ticket)
    }

    /// Returns whether the outcome is known.
    #[cfg_attr(not(feature = "daemon"), allow(dead_code))]
    pub(crate) fn is_known(&self) -> bool {
        self.0.state().outcome.is_some()
    }

    /// The outcome, if it is known already. Never waits.
    pub fn get(&self) -> Option<T> {
        self.0.state().outcome.clone()
    }
}

impl<T: Clone> Future for Ticket<T> {
    type Output = T;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        let mut state = self.0.state();
        match state.outcome.clone() {
            Some(outcome) => Poll::Ready(outcome),
            None => {
                state.waiting = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl<T> TicketShared<T> {
    fn tell(&self, outcome: T) {
        let mut state = self.state();
        state.outcome = Some(outcome);
        let waiting = state.waiting.take();
        drop(state);
        self.changed.notify_all();
        if let Some(waker) = waiting {
            wake_task(waker);
        }
    }

    fn state(&self) -> MutexGuard<'_, TicketState<T>> {
        // The state that a panic left is whole: each change is one assignment.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_waker_that_panics_is_not_the_fault_of_who_delivers() {
        struct Panics;
        impl std::task::Wake for Panics {
            fn wake(self: Arc<Self>) {
                panic!("an executor is broken, as it should be in this test");
            }
        }
        let (teller, ticket) = ticket();
        let mut ticket = std::pin::pin!(ticket);
        let waker = Waker::from(Arc::new(Panics));
        assert!(ticket.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        teller.tell(7);
        assert_eq!(ticket.get(), Some(7));
    }

    #[test]
    fn a_ticket_outlives_a_wait_that_was_too_short() {
        let (teller, ticket) = ticket();
        assert_eq!(ticket.wait(Duration::ZERO), Err(NotYetKnown));
        let outcome = Outcome { sent: 1, ..Outcome::default() };
        let other = std::thread::spawn(move || teller.tell(outcome));
        assert_eq!(ticket.wait(Duration::from_secs(60)), Ok(outcome));
        assert_eq!(ticket.get(), Some(outcome), "and tells it as often as it is asked");
        other.join().unwrap();
    }

    #[test]
    fn a_task_is_woken() {
        let (teller, mut ticket) = ticket();
        let mut context = Context::from_waker(Waker::noop());
        assert!(Pin::new(&mut ticket).poll(&mut context).is_pending());
        teller.tell(Outcome::default());
        assert_eq!(Pin::new(&mut ticket).poll(&mut context), Poll::Ready(Outcome::default()));
    }
}
