//! The last counts of topics' subscribers from other nodes, for requests that these nodes do not answer in time.
//!
//! Invariant: at most [`REMEMBERED_MAX`] topics and nodes; the least recently updated ones are forgotten first.

use super::names::NAME_BYTES_MAX;
use super::subject::AudienceKey;
use crate::admission::{table_bytes, tree_bytes_in_order};
use crate::broker::{OnNodes, Presence, Present};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

/// Topics and nodes of which something is remembered: with their names some MB.
pub(super) const REMEMBERED_MAX: usize = 16 * 1024;

const _: () = assert!(REMEMBERED_MAX * (2 * size_of::<AudienceKey>() + NAME_BYTES_MAX + 64) < 4 << 20);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct RememberedCounts {
    said: HashMap<(AudienceKey, Arc<str>), RememberedCount>,
    /// In the order in which they were heard.
    by_age: BTreeMap<u64, (AudienceKey, Arc<str>)>,
    count: u64,
}

#[derive(Debug)]
struct RememberedCount {
    subscribers: usize,
    at_ms: u64,
    place: u64,
}

impl RememberedCounts {
    /// The heap bytes of the counts kept.
    pub(super) fn heap_bytes(&self) -> usize {
        table_bytes::<(AudienceKey, Arc<str>), RememberedCount>(self.said.capacity())
            + tree_bytes_in_order::<u64, (AudienceKey, Arc<str>)>(self.by_age.len())
            + self.said.len() * (2 * size_of::<usize>() + NAME_BYTES_MAX / 2)
    }

    /// The presence in a topic, from the nodes' answers just now.
    pub(super) fn presence(&mut self, line: AudienceKey, now: OnNodes, now_ms: u64) -> Presence {
        let mut presence = Presence { is_partial: now.is_partial, ..Presence::default() };
        for (node, outcome) in now.said {
            self.remember(line, &node, outcome.sent, now_ms);
            presence.nodes.insert(node, Present { subscribers: outcome.sent, age: Duration::ZERO });
        }
        for node in now.silent {
            match self.said.get(&(line, node.clone())) {
                None => drop(presence.unknown.insert(node)),
                Some(RememberedCount { subscribers, at_ms, .. }) => {
                    let age = Duration::from_millis(now_ms.saturating_sub(*at_ms));
                    presence.nodes.insert(node, Present { subscribers: *subscribers, age });
                }
            }
        }
        presence
    }

    fn remember(&mut self, line: AudienceKey, node: &Arc<str>, subscribers: usize, at_ms: u64) {
        self.count += 1;
        let place = self.count;
        let key = (line, node.clone());
        if let Some(before) = self.said.insert(key.clone(), RememberedCount { subscribers, at_ms, place }) {
            self.by_age.remove(&before.place);
        }
        self.by_age.insert(place, key);
        if self.said.len() > REMEMBERED_MAX
            && let Some((_, oldest)) = self.by_age.pop_first()
        {
            self.said.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::subject::{NamedAudience, Target};
    use super::*;
    use crate::broker::Outcome;

    fn line(topic: &str) -> AudienceKey {
        Target { process: "a:b:c".parse().unwrap(), to: NamedAudience::Topic(topic.into()) }.line()
    }

    fn said(nodes: &[(&str, usize)], silent: &[&str]) -> OnNodes {
        let said = nodes.iter().map(|&(node, sent)| (node.into(), Outcome { sent, ..Outcome::default() }));
        let is_partial = !silent.is_empty();
        OnNodes { said: said.collect(), silent: silent.iter().map(|&node| node.into()).collect(), is_partial }
    }

    #[test]
    fn who_is_silent_is_told_of_with_its_age() {
        let mut remembered = RememberedCounts::default();
        let first = remembered.presence(line("x"), said(&[("a", 3), ("b", 0)], &[]), 1_000);
        assert_eq!((first.nodes["a"].subscribers, first.nodes["b"].age, first.is_partial), (3, Duration::ZERO, false));
        let later = remembered.presence(line("x"), said(&[("b", 1)], &["a", "c"]), 6_000);
        assert_eq!(later.nodes["a"], Present { subscribers: 3, age: Duration::from_secs(5) });
        assert_eq!((later.nodes["b"].subscribers, later.is_partial), (1, true));
        assert!(later.unknown.contains("c") && later.unknown.len() == 1);
        assert!(remembered.presence(line("y"), said(&[], &["a"]), 6_000).unknown.contains("a"), "of that topic");
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut remembered = RememberedCounts::default();
        for topic in 0..REMEMBERED_MAX + 2 {
            remembered.presence(line(&topic.to_string()), said(&[("a", 1)], &[]), 0);
        }
        assert_eq!((remembered.said.len(), remembered.by_age.len()), (REMEMBERED_MAX, REMEMBERED_MAX));
        assert!(remembered.presence(line("0"), said(&[], &["a"]), 0).unknown.contains("a"), "the oldest is forgotten");
        assert!(remembered.presence(line("2"), said(&[], &["a"]), 0).unknown.is_empty());
    }
}
