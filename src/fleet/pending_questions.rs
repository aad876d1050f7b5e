//! Pushes whose outcome other nodes are asked for, and their answers.
//!
//! Invariants: at most [`ASKS_MAX`] at a time, and of [`ASKED_NODES_MAX`] nodes together; only a node that was asked is
//! counted, once; the caller is answered once, either when all nodes have answered or when it
//! [gives up](PendingQuestions::give_up).

use super::header::{HeaderError, Reader};
use crate::admission::{table_bytes, tree_bytes_in_order};
use crate::broker::{OnNodes, Outcome};
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

/// Pushes of which it is waited to hear at a time.
pub(super) const ASKS_MAX: usize = 4096;

/// Answers of which it is waited to hear at a time: each of so many asks may be answered by as many nodes as there are.
const ASKED_NODES_MAX: usize = 128 * 1024;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct PendingQuestions {
    waiting: HashMap<u64, OnNodes>,
    last: u64,
    /// Of all that wait together: the nodes that have not answered, and those that have.
    silent: usize,
    said: usize,
}

impl PendingQuestions {
    /// Asks these nodes: under which number they will say, or what is known if none is to be waited for.
    pub(super) fn ask(&mut self, nodes: BTreeSet<Arc<str>>) -> Result<u64, OnNodes> {
        let is_partial = !nodes.is_empty();
        let on_nodes = OnNodes { silent: nodes, is_partial, ..OnNodes::default() };
        let nodes = on_nodes.silent.len();
        if !is_partial || self.waiting.len() >= ASKS_MAX || self.silent + self.said + nodes > ASKED_NODES_MAX {
            return Err(on_nodes);
        }
        self.last += 1;
        self.silent += nodes;
        self.waiting.insert(self.last, on_nodes);
        Ok(self.last)
    }

    /// Records a node's outcome. Returns all of them if it was the last.
    pub(super) fn answer(&mut self, ask: u64, node: &Arc<str>, outcome: Outcome) -> Option<OnNodes> {
        let on_nodes = self.waiting.get_mut(&ask)?;
        if on_nodes.silent.remove(node) {
            on_nodes.said.insert(node.clone(), outcome);
            self.silent -= 1;
            self.said += 1;
        }
        on_nodes.is_partial = !on_nodes.silent.is_empty();
        if on_nodes.is_partial { None } else { self.give_up(ask) }
    }

    /// The outcomes known so far, where not all nodes have answered.
    pub(super) fn give_up(&mut self, ask: u64) -> Option<OnNodes> {
        let on_nodes = self.waiting.remove(&ask)?;
        self.silent -= on_nodes.silent.len();
        self.said -= on_nodes.said.len();
        Some(on_nodes)
    }

    /// The heap bytes of all that wait, without the nodes' names.
    pub(super) fn heap_bytes(&self) -> usize {
        table_bytes::<u64, OnNodes>(self.waiting.capacity())
            + tree_bytes_in_order::<Arc<str>, ()>(self.silent)
            + tree_bytes_in_order::<Arc<str>, Outcome>(self.said)
    }
}

/// The counts of channels, in the order in which they travel.
pub(super) fn counts_of(outcome: &Outcome) -> [u64; 8] {
    let Outcome { sent, queued, queued_bytes, conflated, dropped, closed, not_found, not_owner, .. } = *outcome;
    [sent, queued, queued_bytes, conflated, dropped, closed, not_found, not_owner].map(|count| count as u64)
}

/// More channels, or queued bytes, than any node has.
const COUNT_MAX: u64 = 1 << 48;

/// A node's outcome of a push: the push's number there, and the counts.
///
/// # Errors
/// The bytes are of another shape.
pub(super) fn read(payload: &[u8]) -> Result<(u64, Outcome), HeaderError> {
    let mut reader = Reader { bytes: payload, at: 0 };
    let ask = u64::from_be_bytes(reader.array()?);
    let mut counts = [0usize; 8];
    for count in &mut counts {
        let told = u64::from_be_bytes(reader.array()?);
        // The counts of all nodes are added up, so none may be so large that the sum overflows.
        *count = usize::try_from(told).ok().filter(|_| told <= COUNT_MAX).ok_or(HeaderError::Malformed)?;
    }
    if reader.at < payload.len() {
        return Err(HeaderError::Malformed);
    }
    let [sent, queued, queued_bytes, conflated, dropped, closed, not_found, not_owner] = counts;
    let counts =
        Outcome { sent, queued, queued_bytes, conflated, dropped, closed, not_found, not_owner, ..Outcome::default() };
    Ok((ask, counts))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes<const N: usize>(names: [&str; N]) -> BTreeSet<Arc<str>> {
        names.into_iter().map(Arc::from).collect()
    }

    #[test]
    fn who_was_asked_is_heard_once() {
        let mut asked = PendingQuestions::default();
        let (a, b, c) = (Arc::from("a"), Arc::from("b"), Arc::from("c"));
        let sent = |sent| Outcome { sent, ..Outcome::default() };
        let one = asked.ask(nodes(["a", "b"])).unwrap();
        assert_eq!(asked.answer(one, &c, sent(9)), None, "it was not asked");
        assert_eq!(asked.answer(one, &a, sent(1)), None);
        assert_eq!(asked.answer(one, &a, sent(2)), None, "once");
        let told = asked.answer(one, &b, sent(3)).unwrap();
        assert_eq!((told.said[&a], told.said[&b], told.is_partial), (sent(1), sent(3), false));
        assert_eq!((asked.answer(one, &b, sent(3)), asked.give_up(one)), (None, None), "told once");
        let two = asked.ask(nodes(["a", "b"])).unwrap();
        assert_eq!(asked.answer(two, &b, sent(3)), None);
        let told = asked.give_up(two).unwrap();
        assert_eq!((told.silent, told.said.len(), told.is_partial), (nodes(["a"]), 1, true));
        assert_eq!(asked.ask(nodes([])), Err(OnNodes::default()), "there is nobody to ask");
    }

    #[test]
    fn it_waits_for_so_many() {
        let mut asked = PendingQuestions::default();
        let asks: Vec<_> = (0..ASKS_MAX).map(|_| asked.ask(nodes(["a"])).unwrap()).collect();
        let told = asked.ask(nodes(["a"])).unwrap_err();
        assert_eq!((told.silent, told.is_partial), (nodes(["a"]), true));
        asked.give_up(asks[7]).unwrap();
        assert!(asked.ask(nodes(["a"])).is_ok());
    }

    #[test]
    fn counts_travel_whole() {
        let outcome = Outcome { sent: 1, queued: 2, queued_bytes: 3, conflated: 4, dropped: 5, ..Outcome::default() };
        let outcome = Outcome { closed: 6, not_found: 7, not_owner: 8, ..outcome };
        let mut bytes = 77u64.to_be_bytes().to_vec();
        counts_of(&outcome).iter().for_each(|count| bytes.extend_from_slice(&count.to_be_bytes()));
        assert_eq!(read(&bytes), Ok((77, outcome)));
        assert!((0..bytes.len()).all(|cut| read(&bytes[..cut]).is_err()));
        bytes.push(0);
        assert!(read(&bytes).is_err());
    }
}
