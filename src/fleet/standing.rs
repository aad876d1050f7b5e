//! How far other nodes had counted when this node began to listen: messages with later numbers are for this node, and
//! from the first one on each must arrive or is lost.
//!
//! A node that begins to listen asks, by a message after its subscriptions, and each node answers how far it is: its
//! number for each audience asked about, and how many counts it has begun. Counts begun later are entirely for this
//! node.
//!
//! Invariants: the state is bounded in questions and audiences; the oldest is dropped first, and for it, as for nodes
//! that have not answered, the time decides. A question lost with a connection is reported, since it is unknown what
//! else was lost: with this node's, when it is made anew, with that of another node, when that is heard again, however
//! long it was silent.

use super::subject::AudienceKey;
use crate::admission::table_bytes;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// Audiences in one question: its answer takes 19 kB at most.
pub(super) const LINES_PER_QUESTION: usize = 512;

/// How long questions and answers are kept, if there is room: as long as a silent node is known. It may come back and
/// tell of a count that it had begun just behind its answer, or without having answered.
const KEPT_MS: u64 = super::roster::FORGOTTEN_AFTER_MS;

/// Questions that are kept.
const QUESTIONS_MAX: usize = 1024;

/// Their audiences, of some 100 bytes each.
const LINES_MAX: usize = 64 * 1024;

/// The memory of an answer.
const SAID_BYTES: usize = 2 * size_of::<(Arc<str>, CountsReached)>();

/// How far a node's counts had come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CountsReached {
    /// When the node began.
    pub incarnation: u64,
    /// The last count that it had begun.
    pub streams: u32,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct CountsAtStart {
    /// To be asked for.
    new: Vec<AudienceKey>,
    questions: BTreeMap<u64, StandingQuestion>,
    /// In which question each was asked for.
    of: HashMap<AudienceKey, u64>,
    asked: u64,
    lines: usize,
}

#[derive(Debug)]
struct StandingQuestion {
    at_ms: u64,
    lines: Vec<AudienceKey>,
    /// Those that have not said it, and those that went away before.
    waits_for: BTreeSet<Arc<str>>,
    left: BTreeSet<Arc<str>>,
    said: BTreeMap<Arc<str>, CountsReached>,
}

impl CountsAtStart {
    /// This node begins to listen to an audience.
    pub(super) fn listens(&mut self, line: AudienceKey) {
        self.new.push(line);
    }

    /// It does not listen any more.
    pub(super) fn leaves(&mut self, line: &AudienceKey) {
        self.of.remove(line);
        self.new.retain(|new| new != line);
    }

    /// The questions to ask, with their numbers: answers are awaited from these nodes.
    pub(super) fn ask<'a>(
        &mut self,
        nodes: impl Iterator<Item = &'a Arc<str>>,
        now_ms: u64,
    ) -> Vec<(u64, Vec<AudienceKey>)> {
        if self.new.is_empty() {
            return Vec::new();
        }
        let waits_for: BTreeSet<Arc<str>> = nodes.cloned().collect();
        let mut new = std::mem::take(&mut self.new);
        // Two nodes that come back have it asked again twice.
        new.sort_unstable();
        new.dedup();
        let asked = new.chunks(LINES_PER_QUESTION).map(|lines| {
            self.asked += 1;
            self.lines += lines.len();
            self.of.extend(lines.iter().map(|&line| (line, self.asked)));
            let (lines, waits_for) = (lines.to_vec(), waits_for.clone());
            let (left, said) = Default::default();
            let question = StandingQuestion { at_ms: now_ms, lines: lines.clone(), waits_for, left, said };
            self.questions.insert(self.asked, question);
            (self.asked, lines)
        });
        let asked = asked.collect();
        while self.questions.len() > QUESTIONS_MAX || self.lines > LINES_MAX {
            self.forget_first();
        }
        asked
    }

    /// A node says how far it was when it was asked. Returns whether that is news.
    pub(super) fn hear(&mut self, question: u64, node: &Arc<str>, stood: CountsReached) -> bool {
        let Some(asked) = self.questions.get_mut(&question) else { return false };
        asked.waits_for.remove(node);
        asked.left.remove(node);
        let is_news = asked.said.len() < super::roster::NODES_MAX && !asked.said.contains_key(node);
        if is_news {
            asked.said.insert(node.clone(), stood);
        }
        is_news
    }

    /// Returns whether an audience was asked for under this number.
    pub(super) fn was_asked(&self, question: u64, line: &AudienceKey) -> bool {
        self.of.get(line) == Some(&question)
    }

    /// Returns whether a node has begun a count after this node began to listen to its audience. None: it is not known.
    pub(super) fn is_younger(&self, line: &AudienceKey, node: &str, incarnation: u64, stream: u32) -> Option<bool> {
        let stood = self.questions.get(self.of.get(line)?)?.said.get(node)?;
        Some((incarnation, stream) > (stood.incarnation, stood.streams))
    }

    /// The connection of `node`, or that of this one, was made anew: what was asked and not answered may be lost, and
    /// with it what came behind it. It is to be asked again.
    pub(super) fn broken(&mut self, node: Option<&Arc<str>>) -> Vec<(Arc<str>, AudienceKey)> {
        let mut lost = Vec::new();
        for (number, question) in &mut self.questions {
            let broken: Vec<Arc<str>> = match node {
                Some(node) => question.waits_for.take(node).or(question.left.take(node)).into_iter().collect(),
                None => std::mem::take(&mut question.waits_for).into_iter().collect(),
            };
            for line in question.lines.iter().filter(|line| !broken.is_empty() && self.of.get(line) == Some(number)) {
                lost.extend(broken.iter().map(|node| (node.clone(), *line)));
                self.new.push(*line);
            }
        }
        lost
    }

    /// A node is gone: nothing is heard of it, unless it comes back.
    pub(super) fn gone(&mut self, node: &Arc<str>) {
        for question in self.questions.values_mut() {
            question.left.extend(question.waits_for.take(node));
        }
    }

    /// A node has begun anew: what its former self had not answered does not matter.
    pub(super) fn restarted(&mut self, node: &Arc<str>) {
        for question in self.questions.values_mut() {
            question.waits_for.remove(node);
            question.left.remove(node);
        }
    }

    /// The heap bytes kept.
    pub(super) fn heap_bytes(&self) -> usize {
        let said: usize = self.questions.values().map(|question| question.said.len()).sum();
        said * SAID_BYTES
            + (self.new.capacity() + self.lines) * size_of::<AudienceKey>()
            + self.questions.len() * 2 * size_of::<(u64, StandingQuestion)>()
            + table_bytes::<AudienceKey, u64>(self.of.capacity())
    }

    /// Forgets what has been known for long enough.
    pub(super) fn sweep(&mut self, now_ms: u64) {
        let is_old = |question: &StandingQuestion| question.at_ms + KEPT_MS <= now_ms;
        while self.questions.first_key_value().is_some_and(|(_, question)| is_old(question)) {
            self.forget_first();
        }
    }

    fn forget_first(&mut self) {
        let Some((number, question)) = self.questions.pop_first() else { return };
        self.lines -= question.lines.len();
        for line in question.lines {
            if self.of.get(&line) == Some(&number) {
                self.of.remove(&line);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::subject::Kind;
    use super::*;

    fn line(n: u32) -> AudienceKey {
        let mut hash = [0; 16];
        hash[..4].copy_from_slice(&n.to_be_bytes());
        AudienceKey { kind: Kind::Topic, hash }
    }

    fn nodes() -> [Arc<str>; 2] {
        ["a".into(), "b".into()]
    }

    #[test]
    fn a_count_is_younger_that_its_node_had_not_begun() {
        let mut standing = CountsAtStart::default();
        standing.listens(line(1));
        let asked = standing.ask(nodes().iter(), 0);
        assert_eq!(asked, [(1, vec![line(1)])]);
        assert!(standing.ask(nodes().iter(), 0).is_empty() && standing.was_asked(1, &line(1)));
        assert_eq!(standing.is_younger(&line(1), "a", 7, 4), None);
        assert!(standing.hear(1, &"a".into(), CountsReached { incarnation: 7, streams: 3 }));
        assert!(!standing.hear(1, &"a".into(), CountsReached { incarnation: 7, streams: 9 }), "once");
        let younger = |incarnation, stream| standing.is_younger(&line(1), "a", incarnation, stream);
        assert_eq!([younger(7, 3), younger(7, 4), younger(8, 1), younger(6, 9)], [false, true, true, false].map(Some));
        assert_eq!(standing.is_younger(&line(2), "a", 7, 4), None);
        standing.sweep(KEPT_MS - 1);
        assert_eq!(standing.is_younger(&line(1), "a", 7, 4), Some(true), "a node that comes back late tells of it yet");
        standing.sweep(KEPT_MS);
        assert_eq!(standing.is_younger(&line(1), "a", 7, 4), None);
        assert!(standing.of.is_empty() && standing.lines == 0);
    }

    #[test]
    fn what_was_not_answered_before_a_connection_broke_is_told_and_asked_again() {
        let mut standing = CountsAtStart::default();
        let [a, b] = nodes();
        standing.listens(line(1));
        standing.ask(nodes().iter(), 0);
        standing.hear(1, &a, CountsReached { incarnation: 1, streams: 0 });
        assert_eq!(standing.broken(Some(&a)), [], "it has answered");
        assert_eq!(standing.broken(None), [(b.clone(), line(1))]);
        assert_eq!(standing.broken(None), [], "told once");
        assert_eq!(standing.ask(nodes().iter(), 1), [(2, vec![line(1)])]);
        // It is away for longer than it takes to be called gone, and comes back without having answered.
        standing.gone(&b);
        standing.sweep(KEPT_MS);
        assert_eq!(standing.broken(None), [(a.clone(), line(1))], "nobody waits for one that is gone");
        assert_eq!(standing.broken(Some(&b)), [(b.clone(), line(1))]);
        assert_eq!(standing.ask(nodes().iter(), 2), [(3, vec![line(1)])]);
        standing.restarted(&b);
        assert_eq!(standing.broken(Some(&b)), [], "what its former self had not answered is over");
        standing.leaves(&line(1));
        assert_eq!(standing.broken(None), [], "nobody listens");
    }

    #[test]
    fn there_is_room_for_so_much() {
        let mut standing = CountsAtStart::default();
        for n in 0..2 * LINES_MAX as u32 {
            standing.listens(line(n));
        }
        let asked = standing.ask([].iter(), 0);
        assert!(asked.iter().all(|(_, lines)| lines.len() <= LINES_PER_QUESTION));
        assert_eq!((standing.lines, standing.of.len()), (LINES_MAX, LINES_MAX));
        for n in 0..2 * QUESTIONS_MAX as u32 {
            standing.listens(line(n));
            standing.ask([].iter(), 0);
        }
        assert_eq!(standing.questions.len(), QUESTIONS_MAX);
    }
}
