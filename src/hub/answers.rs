//! The last answers given to a channel, to be sent again after its connection was lost: it is unknown which of them
//! arrived.
//!
//! Invariants: bounded in number, and charged; the newest are kept, so of the orders whose answer a client has not
//! received (no more than [`ANSWERS_MAX`]) each that was carried out has its answer here. When memory is short older
//! ones are dropped, then all.

use crate::admission::{Charge, HeldAs, ProcessMemory};
use std::collections::VecDeque;

/// The most answers of a channel that may be outstanding; a client has no more orders unanswered (`docs/PROTOCOL.md`).
pub(super) const ANSWERS_MAX: usize = 16;

/// See the module.
#[derive(Default)]
pub(super) struct Answers {
    kept: VecDeque<(String, Charge)>,
}

impl Answers {
    /// The last is this.
    pub(super) fn keep(&mut self, answer: String, memory: &ProcessMemory) {
        if self.kept.len() == ANSWERS_MAX {
            self.kept.pop_front();
        }
        let bytes = answer.capacity() + size_of::<(String, Charge)>();
        loop {
            if let Ok(charge) = memory.charge(HeldAs::Content, bytes) {
                return self.kept.push_back((answer, charge));
            }
            if self.kept.pop_front().is_none() {
                return;
            }
        }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.kept.len()
    }

    /// In the order in which they were given.
    pub(super) fn iter(&self) -> impl Iterator<Item = &str> {
        self.kept.iter().map(|(answer, _)| &**answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::{Budget, Ledger};
    use crate::queue::events::{QueueLimits, process_queue};

    #[test]
    fn the_newest_are_kept_and_charged() {
        let (queue, _) = process_queue(1, QueueLimits::default(), &Ledger::new(Budget::default()), |_| {});
        let memory = queue.memory_of("hub:pushring:sys".parse().unwrap());
        let mut answers = Answers::default();
        for n in 0..100 {
            answers.keep(n.to_string(), &memory);
        }
        let kept: Vec<&str> = answers.iter().collect();
        assert_eq!((answers.len(), kept[0], kept[15]), (ANSWERS_MAX, "84", "99"));
        assert!(memory.tenant().total() >= ANSWERS_MAX * size_of::<(String, Charge)>());
        drop(answers);
        assert_eq!(memory.tenant().total(), 0);
    }
}
