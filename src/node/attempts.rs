//! Logins that wait to be checked: a limited number of each client, one of each in turn.
//!
//! Invariants: a client that asks often delays others by one login at most for each of theirs, and takes no place from
//! them: when all places are taken, the last login of the client that has most is dropped. Does not depend on
//! passwords, nor on how long a check takes.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Those of all clients. At some 50 ms a login this is half a minute of work, and with the longest bodies 8 MiB.
pub(crate) const WAITING_MAX: usize = 512;

/// Those of one client, who may be many people behind one address: at some 50 ms a login, the last waits six seconds.
pub(crate) const PER_CLIENT_MAX: usize = 128;

/// The end that puts attempts in. When it is dropped, those that wait are still taken.
pub(crate) struct AttemptSender<C, A>(Arc<AttemptQueue<C, A>>);

/// The end that takes them out.
pub(crate) struct AttemptReceiver<C, A>(Arc<AttemptQueue<C, A>>);

struct AttemptQueue<C, A> {
    waiting: Mutex<WaitingAttempts<C, A>>,
    changed: Condvar,
}

struct WaitingAttempts<C, A> {
    of_client: HashMap<C, VecDeque<A>>,
    /// Clients that have something waiting, each once, in the order of their turns.
    turns: VecDeque<C>,
    count: usize,
    is_closed: bool,
}

/// Both ends.
pub(crate) fn attempts<C: Hash + Eq + Copy, A>() -> (AttemptSender<C, A>, AttemptReceiver<C, A>) {
    let waiting = WaitingAttempts { of_client: HashMap::new(), turns: VecDeque::new(), count: 0, is_closed: false };
    let shared = Arc::new(AttemptQueue { waiting: Mutex::new(waiting), changed: Condvar::new() });
    (AttemptSender(shared.clone()), AttemptReceiver(shared))
}

impl<C: Hash + Eq + Copy, A> AttemptSender<C, A> {
    /// Lets an attempt of `client` wait. Answers the one for which there is no place, if that is so: this or another.
    #[must_use]
    pub fn enter(&self, client: C, attempt: A) -> Option<A> {
        let mut waiting = self.0.lock();
        let of_client =
            |waiting: &WaitingAttempts<C, A>, client| waiting.of_client.get(&client).map_or(0, VecDeque::len);
        let own = of_client(&waiting, client);
        if own >= PER_CLIENT_MAX {
            return Some(attempt);
        }
        let mut refused = None;
        if waiting.count >= WAITING_MAX {
            let most = waiting.turns.iter().copied().max_by_key(|&client| of_client(&waiting, client));
            let Some(most) = most.filter(|&most| of_client(&waiting, most) > own + 1) else { return Some(attempt) };
            refused = waiting.of_client.get_mut(&most).and_then(VecDeque::pop_back);
            waiting.count -= 1;
        }
        waiting.count += 1;
        if own == 0 {
            waiting.turns.push_back(client);
        }
        waiting.of_client.entry(client).or_default().push_back(attempt);
        self.0.changed.notify_one();
        refused
    }
}

impl<C, A> Drop for AttemptSender<C, A> {
    fn drop(&mut self) {
        self.0.lock().is_closed = true;
        self.0.changed.notify_all();
    }
}

impl<C: Hash + Eq + Copy, A> AttemptReceiver<C, A> {
    /// Waits for the next attempt: the first of the client whose turn it is. None: the entrance is gone, and nobody
    /// waits.
    pub fn next(&self) -> Option<A> {
        let waiting = self.0.lock();
        let is_idle = |waiting: &mut WaitingAttempts<C, A>| waiting.count == 0 && !waiting.is_closed;
        let mut waiting = self.0.changed.wait_while(waiting, is_idle).unwrap_or_else(PoisonError::into_inner);
        let client = waiting.turns.pop_front()?;
        let of_client = waiting.of_client.get_mut(&client).expect("whose turn it is has something waiting");
        let attempt = of_client.pop_front().expect("and not nothing");
        if of_client.is_empty() {
            waiting.of_client.remove(&client);
        } else {
            waiting.turns.push_back(client);
        }
        waiting.count -= 1;
        Some(attempt)
    }
}

impl<C, A> AttemptQueue<C, A> {
    fn lock(&self) -> MutexGuard<'_, WaitingAttempts<C, A>> {
        // Nothing in between the changes of a call can panic.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_take_turns_and_each_keeps_its_order() {
        let (entrance, attempts) = attempts();
        for (client, attempt) in [(1, "a"), (1, "b"), (1, "c"), (2, "x"), (2, "y"), (3, "i")] {
            assert_eq!(entrance.enter(client, attempt), None);
        }
        drop(entrance);
        assert_eq!(std::iter::from_fn(|| attempts.next()).collect::<String>(), "axibyc");
    }

    #[test]
    fn whoever_has_most_makes_room_for_others() {
        let (entrance, attempts) = attempts();
        for client in 0..WAITING_MAX / PER_CLIENT_MAX {
            for n in 0..PER_CLIENT_MAX {
                assert_eq!(entrance.enter(client, n), None);
            }
            assert_eq!(entrance.enter(client, 99), Some(99), "a client has its own limit");
        }
        for n in 0..WAITING_MAX / PER_CLIENT_MAX {
            assert_eq!(entrance.enter(1000 + n, 1000), Some(PER_CLIENT_MAX - 1), "one of the many goes");
        }
        for client in 2000..3000 {
            let refused = entrance.enter(client, 2000);
            assert!(refused.is_some(), "there is no more room");
        }
        drop(entrance);
        assert_eq!(std::iter::from_fn(|| attempts.next()).count(), WAITING_MAX);
    }
}
