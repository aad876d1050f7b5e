//! Logins that wait to be checked: a limited number of each client, one of each in turn.
//!
//! Invariants: a client that asks often delays others by one login at most for each of theirs, and takes no place from
//! them: when all places are taken, the last login of the client that has most is dropped, those included that were
//! checked since nothing waited last. So however many addresses a flood comes from, each of them is checked once before
//! a client that has just come. Does not depend on passwords, nor on how long a check takes.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Those of all clients. At some 50 ms a login this is half a minute of work, and with the longest bodies 8 MiB.
pub(crate) const WAITING_MAX: usize = 512;

/// The most attempts of one client, which may be many people behind one address: at some 50 ms a login, the last waits
/// six seconds.
pub(crate) const PER_CLIENT_MAX: usize = 128;

/// Clients of which it is known how often they were checked.
const CHECKED_MAX: usize = 4_096;

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
    /// How often each client was checked since nothing waited last.
    checked: HashMap<C, usize>,
    count: usize,
    is_closed: bool,
}

/// Both ends.
pub(crate) fn attempts<C: Hash + Eq + Copy, A>() -> (AttemptSender<C, A>, AttemptReceiver<C, A>) {
    let waiting = WaitingAttempts {
        of_client: HashMap::new(),
        turns: VecDeque::new(),
        checked: HashMap::new(),
        count: 0,
        is_closed: false,
    };
    let shared = Arc::new(AttemptQueue { waiting: Mutex::new(waiting), changed: Condvar::new() });
    (AttemptSender(shared.clone()), AttemptReceiver(shared))
}

impl<C: Hash + Eq + Copy, A> AttemptSender<C, A> {
    /// Lets an attempt of `client` wait. Returns the one for which there is no place, if that is so: this or another.
    #[must_use]
    pub(super) fn enter(&self, client: C, attempt: A) -> Option<A> {
        let mut waiting = self.0.lock();
        let own = waiting.of_client.get(&client).map_or(0, VecDeque::len);
        if own >= PER_CLIENT_MAX {
            return Some(attempt);
        }
        let mut refused = None;
        if waiting.count >= WAITING_MAX {
            let most = waiting.turns.iter().copied().max_by_key(|&client| waiting.asked(client));
            let own_asked = waiting.asked(client);
            let Some(most) = most.filter(|&most| waiting.asked(most) > own_asked + 1) else { return Some(attempt) };
            refused = waiting.drop_last(most);
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

impl<C: Hash + Eq + Copy, A> WaitingAttempts<C, A> {
    fn checked(&self, client: C) -> usize {
        self.checked.get(&client).copied().unwrap_or(0)
    }

    /// How many of its attempts wait, and were checked lately.
    fn asked(&self, client: C) -> usize {
        self.of_client.get(&client).map_or(0, VecDeque::len) + self.checked(client)
    }

    /// The last attempt of a client does not wait any more.
    fn drop_last(&mut self, client: C) -> Option<A> {
        let of_client = self.of_client.get_mut(&client)?;
        let last = of_client.pop_back()?;
        if of_client.is_empty() {
            self.of_client.remove(&client);
            self.turns.retain(|&other| other != client);
        }
        self.count -= 1;
        Some(last)
    }

    /// Removes the next client from the round: of those that were checked least, the one that has waited longest.
    fn next_client(&mut self) -> Option<C> {
        let least = (0..self.turns.len()).min_by_key(|&at| self.checked(self.turns[at]))?;
        self.turns.remove(least)
    }

    fn note_checked(&mut self, client: C) {
        if self.count == 0 || self.checked.len() >= CHECKED_MAX {
            self.checked.clear();
        }
        if self.count > 0 {
            *self.checked.entry(client).or_default() += 1;
        }
    }
}

impl<C, A> Drop for AttemptSender<C, A> {
    fn drop(&mut self) {
        self.0.lock().is_closed = true;
        self.0.changed.notify_all();
    }
}

impl<C: Hash + Eq + Copy, A> AttemptReceiver<C, A> {
    /// Waits for the next attempt: the first of the next client. None: the sender is gone, and the queue is empty.
    pub(crate) fn next(&self) -> Option<A> {
        let waiting = self.0.lock();
        let is_idle = |waiting: &mut WaitingAttempts<C, A>| waiting.count == 0 && !waiting.is_closed;
        let mut waiting = self.0.changed.wait_while(waiting, is_idle).unwrap_or_else(PoisonError::into_inner);
        let client = waiting.next_client()?;
        let of_client = waiting.of_client.get_mut(&client).expect("whose turn it is has something waiting");
        let attempt = of_client.pop_front().expect("and not nothing");
        if of_client.is_empty() {
            waiting.of_client.remove(&client);
        } else {
            waiting.turns.push_back(client);
        }
        waiting.count -= 1;
        waiting.note_checked(client);
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
    fn a_flood_from_as_many_addresses_as_there_are_places_keeps_nobody_out() {
        const OWNER: usize = 0;
        let (entrance, attempts) = attempts();
        // Twice as many clients ask again and again, in turn: sixteen for each that is checked.
        let mut bots = (1..=2 * WAITING_MAX).cycle();
        let mut flood = |count| bots.by_ref().take(count).any(|bot| entrance.enter(bot, bot) == Some(OWNER));
        flood(2 * WAITING_MAX);
        let (mut waits, mut refused) = (false, 0);
        for checks in 1.. {
            waits = waits || entrance.enter(OWNER, OWNER).is_none();
            refused += usize::from(!waits);
            if attempts.next() == Some(OWNER) {
                assert!(checks <= WAITING_MAX + 2, "{checks} checks, after {refused} refusals");
                break;
            }
            waits &= !flood(16);
            assert!(checks < 3 * WAITING_MAX, "the owner is kept out");
        }
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
