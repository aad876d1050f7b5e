//! The nodes of the fleet: those that have been heard from, since when, and what they report of themselves.
//!
//! Invariants: at most [`NODES_MAX`] nodes; one that has been silent for long is forgotten, and makes room; when a node
//! is heard again after it was gone, that is reported with the length of its absence.

use crate::broker::name_of_node;
use crate::resume::RunId;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The most nodes that are known at a time.
pub(super) const NODES_MAX: usize = 1024;

/// A node says that it is there each second; after five it is gone.
pub(super) const GONE_AFTER_MS: u64 = 5_000;

/// A node that is gone is forgotten after this.
pub(super) const FORGOTTEN_AFTER_MS: u64 = 10 * 60 * 1000;

/// A node's announcement of itself, each second.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Announcement {
    /// Its version of pushring.
    pub version: String,
    /// The name of the node that it serves.
    pub kernel: String,
    /// Where it listens.
    pub address: String,
    /// Where clients reach it alone, if it was told.
    pub public: String,
    /// The name of its run in the tokens with which its clients resume.
    pub run: Option<RunId>,
    /// Its live channels.
    pub channels: u64,
    /// Audiences that it listens to.
    pub listens: u64,
    /// Goes up when it has reason to believe that it missed announcements: others are to say everything again.
    pub asks: u64,
    /// It begins nothing new: clients should go elsewhere.
    pub draining: bool,
}

/// A node that was heard.
#[derive(Debug)]
pub(super) struct KnownNode {
    /// When it began.
    pub incarnation: u64,
    /// Its last announcement.
    pub about: Announcement,
    /// When it was first heard, and last.
    pub since_ms: u64,
    /// See there.
    pub heard_ms: u64,
    /// It was told that it is gone.
    pub is_gone: bool,
    /// Counts of its own that it has forgotten, as it last said.
    pub forgotten: Option<u64>,
}

/// The change that an announcement brings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// Nothing.
    None,
    /// It is new.
    New,
    /// It was gone for so long.
    Back {
        /// Milliseconds.
        away_ms: u64,
    },
    /// It began anew.
    Restarted {
        /// Its clock, by which beginnings are told apart, went back meanwhile.
        is_clock_back: bool,
    },
    /// It is a word of its former self, or there are too many nodes: it is not believed.
    Ignored,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Roster {
    nodes: BTreeMap<Arc<str>, KnownNode>,
}

impl Roster {
    /// Notes that a node is there. With it, whether it asks others to say everything again.
    pub(super) fn hear(
        &mut self,
        source: &Arc<str>,
        incarnation: u64,
        about: Announcement,
        now_ms: u64,
    ) -> (Change, bool) {
        if let Some(known) = self.nodes.get_mut(source) {
            let is_clock_back = incarnation < known.incarnation;
            if is_clock_back && known.heard_ms + GONE_AFTER_MS > now_ms {
                // The later one is there.
                return (Change::Ignored, false);
            }
            let is_asking = about.asks != known.about.asks || incarnation != known.incarnation;
            let change = match (incarnation != known.incarnation, known.is_gone) {
                (true, _) => Change::Restarted { is_clock_back },
                (false, true) => Change::Back { away_ms: now_ms.saturating_sub(known.heard_ms) },
                (false, false) => Change::None,
            };
            if matches!(change, Change::Restarted { .. }) {
                (known.since_ms, known.forgotten) = (now_ms, None);
            }
            (known.incarnation, known.about, known.heard_ms, known.is_gone) = (incarnation, about, now_ms, false);
            return (change, is_asking);
        }
        if self.nodes.len() >= NODES_MAX {
            return (Change::Ignored, false);
        }
        let known =
            KnownNode { incarnation, about, since_ms: now_ms, heard_ms: now_ms, is_gone: false, forgotten: None };
        self.nodes.insert(source.clone(), known);
        (Change::New, true)
    }

    /// Notes how many counts a node says that it has forgotten. Returns whether that is news: there are more than it
    /// said before, or, where it has not said before, the last `is_ours`.
    pub(super) fn forgets(&mut self, source: &str, incarnation: u64, forgotten: u64, is_ours: bool) -> bool {
        let Some(known) = self.nodes.get_mut(source).filter(|known| known.incarnation == incarnation) else {
            return false;
        };
        match known.forgotten.replace(forgotten) {
            Some(before) => forgotten > before,
            None => forgotten > 0 && is_ours,
        }
    }

    /// The nodes that have become silent, each told once.
    pub(super) fn gone(&mut self, now_ms: u64) -> Vec<Arc<str>> {
        self.nodes.retain(|_, known| known.heard_ms + FORGOTTEN_AFTER_MS > now_ms);
        let mut gone = Vec::new();
        for (name, known) in &mut self.nodes {
            if !known.is_gone && known.heard_ms + GONE_AFTER_MS <= now_ms {
                known.is_gone = true;
                gone.push(name.clone());
            }
        }
        gone
    }

    /// The name by which owners of channels know a node: that of the node that it serves where its own says so, which
    /// NATS' permissions keep others from taking.
    pub(super) fn known_as(&self, source: &str) -> String {
        let kernel = self.nodes.get(source).map(|known| known.about.kernel.as_str());
        kernel.filter(|kernel| name_of_node(kernel) == source).unwrap_or(source).to_owned()
    }

    /// Where clients reach those that are there and say so, by what names their runs; not where two have the same.
    pub(super) fn runs(&self) -> BTreeMap<RunId, Arc<str>> {
        let mut runs = BTreeMap::new();
        // Clients are given a plain address, whatever a node announces.
        let is_plain = |public: &str| !public.is_empty() && public.bytes().all(|byte| byte.is_ascii_graphic());
        for known in self.nodes.values() {
            let Some(run) = known.about.run else { continue };
            // One that is gone, or says no address, may have given the channel all the same.
            let at = (!known.is_gone && is_plain(&known.about.public)).then(|| Arc::from(&*known.about.public));
            runs.entry(run).and_modify(|at| *at = None).or_insert(at);
        }
        runs.into_iter().filter_map(|(run, at)| Some((run, at?))).collect()
    }

    /// The names of those that are there.
    pub(super) fn there(&self) -> impl Iterator<Item = &Arc<str>> {
        self.nodes.iter().filter(|(_, known)| !known.is_gone).map(|(name, _)| name)
    }

    /// All nodes, by name.
    pub(super) fn nodes(&self) -> impl Iterator<Item = (&Arc<str>, &KnownNode)> {
        self.nodes.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hear(roster: &mut Roster, name: &str, incarnation: u64, now_ms: u64) -> Change {
        roster.hear(&name.into(), incarnation, Announcement::default(), now_ms).0
    }

    #[test]
    fn nodes_come_go_and_come_back() {
        let mut roster = Roster::default();
        assert_eq!(hear(&mut roster, "a", 1, 0), Change::New);
        assert_eq!(hear(&mut roster, "a", 1, 1000), Change::None);
        assert!(roster.gone(5999).is_empty());
        assert_eq!(roster.gone(6000), ["a".into()]);
        assert!(roster.gone(7000).is_empty(), "told once");
        assert_eq!(hear(&mut roster, "a", 1, 9000), Change::Back { away_ms: 8000 });
        assert_eq!(hear(&mut roster, "a", 2, 9500), Change::Restarted { is_clock_back: false });
        assert_eq!(hear(&mut roster, "a", 1, 9600), Change::Ignored);
        // Whose clock has gone back is believed once its former self is silent.
        assert_eq!(hear(&mut roster, "a", 1, 9500 + GONE_AFTER_MS), Change::Restarted { is_clock_back: true });
        assert_eq!(roster.gone(20_000 + FORGOTTEN_AFTER_MS).len() + roster.nodes().count(), 0);
    }

    #[test]
    fn who_missed_something_asks_for_it() {
        let mut roster = Roster::default();
        let mut ask = |asks| roster.hear(&"a".into(), 1, Announcement { asks, ..Announcement::default() }, 0).1;
        assert_eq!([ask(0), ask(0), ask(1), ask(1)], [true, false, true, false]);
        let mut forgets = |of, incarnation, forgotten| roster.forgets(of, incarnation, forgotten, false);
        assert_eq!([forgets("a", 1, 3), forgets("a", 1, 5), forgets("a", 1, 5)], [false, true, false]);
        assert!(!forgets("b", 1, 5) && !forgets("a", 2, 9));
        roster.hear(&"c".into(), 1, Announcement::default(), 0);
        assert!(roster.forgets("c", 1, 1, true), "of one that was not heard, if it was in our time");
    }

    #[test]
    fn clients_are_told_where_a_run_is_that_one_node_has() {
        let mut roster = Roster::default();
        let mut hear = |name: &str, run: u8, public: &str| {
            let about = Announcement { run: Some([run, 0]), public: public.to_owned(), ..Announcement::default() };
            roster.hear(&name.into(), 1, about, 0);
        };
        hear("a", 1, "wss://a");
        hear("b", 2, "");
        hear("c", 3, "wss://c");
        hear("d", 3, "wss://d");
        hear("e", 4, "wss://e\"\n");
        assert_eq!(roster.runs(), [([1, 0], "wss://a".into())].into());
        roster.gone(GONE_AFTER_MS);
        assert!(roster.runs().is_empty());
    }

    #[test]
    fn there_are_only_so_many() {
        let mut roster = Roster::default();
        for n in 0..NODES_MAX {
            assert_eq!(hear(&mut roster, &n.to_string(), 1, 0), Change::New);
        }
        assert_eq!(hear(&mut roster, "one more", 1, 0), Change::Ignored);
        roster.gone(FORGOTTEN_AFTER_MS);
        assert_eq!(hear(&mut roster, "one more", 1, FORGOTTEN_AFTER_MS), Change::New);
    }
}
