//! A lock with conditions that cost nothing where no thread waits for them, and that wakes only after it was released:
//! a thread that is woken runs at once where it shares a core, and would wait for the lock next.
//!
//! Invariant: a thread that waits says so under the lock, and whoever signals takes that note under the lock: a signal
//! that finds none was given before the waiting thread last looked.

use std::ops::{Deref, DerefMut};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// `value` under a lock, with `CONDITIONS` that threads may wait for, by number.
pub(super) struct Monitor<T, const CONDITIONS: usize> {
    state: Mutex<Monitored<T, CONDITIONS>>,
    conditions: [Condvar; CONDITIONS],
}

struct Monitored<T, const CONDITIONS: usize> {
    value: T,
    /// Whether a thread waits that was not woken yet.
    awaited: [bool; CONDITIONS],
}

/// The lock, held. Dropping it wakes those that were signalled.
pub(super) struct MonitorGuard<'a, T, const CONDITIONS: usize> {
    conditions: &'a [Condvar; CONDITIONS],
    /// None: it is being dropped, or a thread waits with it.
    state: Option<MutexGuard<'a, Monitored<T, CONDITIONS>>>,
    signalled: [bool; CONDITIONS],
}

impl<T, const CONDITIONS: usize> Monitor<T, CONDITIONS> {
    pub(super) fn new(value: T) -> Self {
        let state = Mutex::new(Monitored { value, awaited: [false; CONDITIONS] });
        Self { state, conditions: [const { Condvar::new() }; CONDITIONS] }
    }

    /// Takes the lock. Whatever panics under it leaves the value whole.
    pub(super) fn lock(&self) -> MonitorGuard<'_, T, CONDITIONS> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        MonitorGuard { conditions: &self.conditions, state: Some(state), signalled: [false; CONDITIONS] }
    }
}

impl<'a, T, const CONDITIONS: usize> MonitorGuard<'a, T, CONDITIONS> {
    /// Has all threads that wait for this condition look again, once the lock is released.
    pub(super) fn signal(&mut self, condition: usize) {
        self.signalled[condition] = true;
    }

    /// Waits until the condition is signalled, or `until`. It may also return for no reason.
    pub(super) fn wait(mut self, condition: usize, until: Option<Instant>) -> Self {
        // What this one waits for may come from those that are to be woken.
        self.take_woken().into_iter().flatten().for_each(Condvar::notify_all);
        let mut state = self.state.take().expect("it is held between calls");
        state.awaited[condition] = true;
        let condvar = &self.conditions[condition];
        self.state = Some(match until {
            Some(until) => {
                let timeout = until.saturating_duration_since(Instant::now());
                condvar.wait_timeout(state, timeout).unwrap_or_else(PoisonError::into_inner).0
            }
            None => condvar.wait(state).unwrap_or_else(PoisonError::into_inner),
        });
        self
    }

    /// Waits for the condition as long as `waits`, which is asked first and after each signal, and not beyond `until`.
    pub(super) fn wait_while(
        mut self,
        condition: usize,
        until: Option<Instant>,
        mut waits: impl FnMut(&mut T) -> bool,
    ) -> Self {
        while waits(&mut self) && until.is_none_or(|until| Instant::now() < until) {
            self = self.wait(condition, until);
        }
        self
    }

    /// The conditions to signal for which a thread waits.
    fn take_woken(&mut self) -> [Option<&'a Condvar>; CONDITIONS] {
        let Some(state) = &mut self.state else { return [None; CONDITIONS] };
        let conditions = self.conditions;
        std::array::from_fn(|at| {
            let is_signalled = std::mem::take(&mut self.signalled[at]);
            (is_signalled && std::mem::take(&mut state.awaited[at])).then_some(&conditions[at])
        })
    }
}

impl<T, const CONDITIONS: usize> Drop for MonitorGuard<'_, T, CONDITIONS> {
    fn drop(&mut self) {
        let woken = self.take_woken();
        self.state = None;
        woken.into_iter().flatten().for_each(Condvar::notify_all);
    }
}

impl<T, const CONDITIONS: usize> Deref for MonitorGuard<'_, T, CONDITIONS> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.state.as_ref().expect("it is held between calls").value
    }
}

impl<T, const CONDITIONS: usize> DerefMut for MonitorGuard<'_, T, CONDITIONS> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.state.as_mut().expect("it is held between calls").value
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::thread;
    use std::time::Duration;

    #[test]
    fn a_signal_reaches_whoever_waits_and_no_other_condition() {
        let monitor = Arc::new(Monitor::<[u32; 2], 2>::new([0; 2]));
        let waiters = [0, 1].map(|at| {
            let monitor = monitor.clone();
            thread::spawn(move || {
                for _ in 0..1000 {
                    let mut state = monitor.lock().wait_while(at, None, |state| state[at] == 0);
                    state[at] = 0;
                    state.signal(at);
                }
            })
        });
        for _ in 0..1000 {
            for at in [0, 1] {
                let mut state = monitor.lock().wait_while(at, None, |state| state[at] != 0);
                state[at] = 1;
                state.signal(at);
            }
        }
        waiters.into_iter().for_each(|waiter| waiter.join().unwrap());
    }

    #[test]
    fn a_wait_ends_in_time_and_wakes_others_first() {
        let monitor = Arc::new(Monitor::<bool, 2>::new(false));
        let other = {
            let monitor = monitor.clone();
            thread::spawn(move || {
                let mut state = monitor.lock().wait_while(0, None, |given| !*given);
                *state = false;
                state.signal(1);
            })
        };
        let mut state = monitor.lock();
        *state = true;
        state.signal(0);
        // Without another release of the lock.
        drop(state.wait_while(1, None, |given| *given));
        other.join().unwrap();
        let now = Instant::now();
        drop(monitor.lock().wait_while(0, Some(now + Duration::from_millis(5)), |_| true));
        assert!(now.elapsed() >= Duration::from_millis(5));
    }
}
