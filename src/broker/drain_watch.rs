//! Whether the broker drains or stops, and the watchers that are told, once each, when a drain begins.

#[cfg(feature = "link")]
use super::BrokerHandle;
use crate::shard::operating::Drain;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

type TellDrain = Box<dyn FnOnce(Drain) + Send>;

/// See the module.
#[derive(Default)]
pub(super) struct DrainWatch {
    is_marked: AtomicBool,
    state: Mutex<DrainState>,
}

#[derive(Default)]
struct DrainState {
    began: Option<Drain>,
    waiting: Vec<TellDrain>,
}

impl DrainWatch {
    /// It drains or stops from now on.
    pub(super) fn mark(&self) {
        self.is_marked.store(true, Ordering::SeqCst);
    }

    /// Returns whether it does.
    pub(super) fn is_marked(&self) -> bool {
        self.is_marked.load(Ordering::SeqCst)
    }

    /// Notifies all watchers; a second drain is ignored.
    pub(super) fn begin(&self, drain: Drain) {
        let waiting = {
            // Every change is one assignment.
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.began.get_or_insert(drain);
            std::mem::take(&mut state.waiting)
        };
        waiting.into_iter().for_each(|tell| tell(drain));
    }

    #[cfg(feature = "link")]
    fn add(&self, tell: TellDrain) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match state.began {
            None => state.waiting.push(tell),
            Some(drain) => {
                drop(state);
                tell(drain);
            }
        }
    }
}

#[cfg(feature = "link")]
impl BrokerHandle {
    /// Has `tell` called once when the broker begins to drain, or now if it does already. It must not wait.
    pub(crate) fn when_draining(&self, tell: impl FnOnce(Drain) + Send + 'static) {
        self.shared.draining.add(Box::new(tell));
    }
}
