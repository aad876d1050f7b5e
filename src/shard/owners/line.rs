//! A line of those who wait for room, which one of them may use up.
//!
//! Many are let go at once, and the first may take all the room that there is. Who then finds none has been passed over
//! and keeps its place: if it went to the end, the first, which wants to go on and waits again, would be there before
//! it, and be the first again for as long as it has something to say.
//!
//! Invariant: those who were passed over stand first, in the order in which they were let go; so whoever had room
//! stands behind all who were let go with it and had none. It must not know who waits, nor for what.

use std::collections::VecDeque;

/// See the module.
#[derive(Debug)]
pub(in crate::shard) struct Line<T> {
    waiting: VecDeque<T>,
    /// How many were passed over: the first ones.
    passed_over: usize,
}

impl<T> Default for Line<T> {
    fn default() -> Self {
        Self { waiting: VecDeque::new(), passed_over: 0 }
    }
}

impl<T: Copy + PartialEq> Line<T> {
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(super) fn contains(&self, one: T) -> bool {
        self.waiting.contains(&one)
    }

    /// Puts one at the end, or where it stood if it was let go and has found no room.
    pub(super) fn push(&mut self, one: T, is_passed_over: bool) {
        if is_passed_over {
            self.waiting.insert(self.passed_over, one);
            self.passed_over += 1;
        } else {
            self.waiting.push_back(one);
        }
    }

    pub(super) fn pop_front(&mut self) -> Option<T> {
        self.passed_over = self.passed_over.saturating_sub(1);
        self.waiting.pop_front()
    }

    /// Lets the first `count` go, in order.
    pub(super) fn let_go(&mut self, count: usize) -> impl Iterator<Item = T> {
        self.passed_over = self.passed_over.saturating_sub(count);
        self.waiting.drain(..count)
    }

    /// Those stay for whom `stays` is true.
    pub(super) fn retain(&mut self, mut stays: impl FnMut(T) -> bool) {
        let (mut at, mut passed_over) = (0, 0);
        self.waiting.retain(|&one| {
            let does = stays(one);
            passed_over += usize::from(does && at < self.passed_over);
            at += 1;
            does
        });
        self.passed_over = passed_over;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_have_their_turn_though_there_is_room_for_one_at_a_time() {
        let mut line = Line::default();
        (0..10).for_each(|one| line.push(one, false));
        let mut served = Vec::new();
        for _ in 0..30 {
            // So many are let go, of whom the first takes all the room and waits again.
            let going: Vec<u32> = line.let_go(6).collect();
            served.push(going[0]);
            line.push(going[0], false);
            going[1..].iter().for_each(|&one| line.push(one, true));
        }
        assert_eq!(served, (0..30).map(|turn| turn % 10).collect::<Vec<_>>());
    }

    #[test]
    fn who_leaves_the_line_takes_no_place_from_those_passed_over() {
        let mut line = Line::default();
        [7, 8].into_iter().for_each(|one| line.push(one, false));
        [1, 2, 3].into_iter().for_each(|one| line.push(one, true));
        line.retain(|one| one != 2 && one != 8);
        line.push(4, true);
        assert_eq!((line.pop_front(), line.len(), line.contains(7)), (Some(1), 3, true));
        line.push(5, true);
        assert_eq!(line.let_go(4).collect::<Vec<_>>(), [3, 4, 5, 7]);
        assert!(line.is_empty());
    }
}
