//! Requests of shards, which never wait, for a key that they miss: the key fetcher serves them at most once in a while.
//!
//! Invariant: [`KeysWanted::rest`] and [`KeysWanted::end_rest`] are called between two fetches that tokens have asked
//! for: so the fetcher, not the clients that show tokens, decides on their rate.

use std::fmt;
use std::sync::atomic::{AtomicU8, Ordering};

/// Requests are ignored: the keys were fetched just now.
const RESTING: u8 = 0;
/// A client with an unknown key may have the keys fetched.
const READY: u8 = 1;
/// They are being fetched, or will be at once.
const WANTED: u8 = 2;

/// See the module.
pub struct KeysWanted {
    state: AtomicU8,
    wake: Box<dyn Fn() + Send + Sync>,
}

impl KeysWanted {
    /// Keys are wanted from the start. `wake` is called when they are wanted again, on the thread that misses one: it
    /// must not wait.
    pub fn new(wake: impl Fn() + Send + Sync + 'static) -> Self {
        Self { state: AtomicU8::new(WANTED), wake: Box::new(wake) }
    }

    /// A key is missing. Returns whether keys are being fetched, so that it is worth to come again.
    pub fn ask(&self) -> bool {
        match self.state.compare_exchange(READY, WANTED, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => {
                (self.wake)();
                true
            }
            Err(state) => state == WANTED,
        }
    }

    /// Returns whether keys are to be fetched.
    pub fn is_wanted(&self) -> bool {
        self.state.load(Ordering::Acquire) == WANTED
    }

    /// The keys are being fetched, whether requested or not.
    pub fn begin(&self) {
        self.state.store(WANTED, Ordering::Release);
    }

    /// The fetch has ended, well or not: requests are ignored until [`Self::end_rest`].
    pub fn rest(&self) {
        self.state.store(RESTING, Ordering::Release);
    }

    /// From now on an unknown key may request a fetch.
    pub fn end_rest(&self) {
        // Not where they are being fetched again already.
        let _ = self.state.compare_exchange(RESTING, READY, Ordering::AcqRel, Ordering::Acquire);
    }
}

impl fmt::Debug for KeysWanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeysWanted({})", self.is_wanted())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::AtomicU32;

    #[test]
    fn keys_are_asked_for_once_between_two_rests() {
        let woken = Arc::new(AtomicU32::new(0));
        let counted = woken.clone();
        let wanted = KeysWanted::new(move || {
            counted.fetch_add(1, Ordering::Relaxed);
        });
        assert!(wanted.is_wanted() && wanted.ask(), "from the start, and nobody need be woken");
        wanted.rest();
        for _ in 0..100 {
            assert!(!wanted.ask() && !wanted.is_wanted());
        }
        assert_eq!(woken.load(Ordering::Relaxed), 0);
        wanted.end_rest();
        for _ in 0..100 {
            assert!(wanted.ask() && wanted.is_wanted());
        }
        assert_eq!(woken.load(Ordering::Relaxed), 1);
        wanted.end_rest();
        assert!(wanted.is_wanted(), "it does not end what is going on");
    }
}
