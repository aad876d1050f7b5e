//! NATS in memory, for fleets that are stepped by hand: nodes' connections, their subscriptions, and messages on their
//! way. What a node gives its connection arrives there in order; what one source sends to one subject keeps its order
//! on the way to each node, and nothing else does. Messages are lost singly, as with a node that reads too slowly, and
//! all of them with a connection.

use super::simulation_tests::{Rng, arrives_ms};
use super::traffic::Publish;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// What a node gives its connection.
pub(super) enum Given {
    Subscribe(String),
    Publish(Publish),
    /// To be answered behind everything before it.
    Ping(u64),
}

#[derive(Default)]
struct Connection {
    is_up: bool,
    subjects: BTreeSet<String>,
    given: VecDeque<(u64, Given)>,
    /// By source and subject, with when each arrives.
    on_the_way: BTreeMap<(usize, String), VecDeque<(u64, Publish)>>,
    pongs: VecDeque<(u64, u64)>,
}

#[derive(Default)]
pub(super) struct Bus {
    connections: Vec<Connection>,
    /// Of a hundred messages.
    pub lost: u64,
}

/// Returns whether a subject belongs to a subscription.
fn is_of(subject: &str, subscription: &str) -> bool {
    let (of, to) = (subscription.split('.'), subject.split('.'));
    of.clone().count() == to.clone().count() && std::iter::zip(of, to).all(|(of, to)| of == "*" || of == to)
}

/// Questions and their answers are lost with a connection only.
fn may_be_lost(subject: &str) -> bool {
    !matches!(subject.split('.').nth(4), Some("ask" | "answer" | "count"))
}

impl Bus {
    pub(super) fn of(nodes: usize) -> Self {
        Self { connections: (0..nodes).map(|_| Connection::default()).collect(), lost: 0 }
    }

    /// A node's connection begins, with its subscriptions.
    pub(super) fn connect(&mut self, node: usize, subjects: &BTreeSet<String>) {
        self.connections[node] = Connection { is_up: true, subjects: subjects.clone(), ..Connection::default() };
    }

    /// It ends, with all that is on its way.
    pub(super) fn cut(&mut self, node: usize) {
        self.connections[node] = Connection::default();
    }

    pub(super) fn give(&mut self, rng: &mut Rng, node: usize, given: Given, now_ms: u64) {
        let connection = &mut self.connections[node];
        if connection.is_up {
            let last_ms = connection.given.back().map_or(0, |(at_ms, _)| *at_ms);
            let slow_ms = if rng.below(4) == 0 { 250 } else { 50 };
            connection.given.push_back((last_ms.max(now_ms + rng.below(slow_ms)), given));
        }
    }

    /// The server handles what has arrived.
    pub(super) fn work(&mut self, rng: &mut Rng, now_ms: u64) {
        for node in 0..self.connections.len() {
            while let Some((_, given)) = self.connections[node].given.pop_front_if(|(at_ms, _)| *at_ms <= now_ms) {
                match given {
                    Given::Subscribe(subject) => {
                        self.connections[node].subjects.insert(subject);
                    }
                    Given::Publish(publish) => self.pass_on(rng, node, &publish, now_ms),
                    Given::Ping(number) => {
                        self.connections[node].pongs.push_back((now_ms + rng.below(50), number));
                    }
                }
            }
        }
    }

    fn pass_on(&mut self, rng: &mut Rng, from: usize, publish: &Publish, now_ms: u64) {
        let lost = if may_be_lost(&publish.subject) { self.lost } else { 0 };
        for (to, connection) in self.connections.iter_mut().enumerate().filter(|(to, _)| *to != from) {
            let listens = connection.subjects.iter().any(|subscription| is_of(&publish.subject, subscription));
            if to != from
                && listens
                && let Some(arrives_ms) = arrives_ms(rng, lost, false, now_ms)
            {
                let way = connection.on_the_way.entry((from, publish.subject.clone())).or_default();
                way.push_back((arrives_ms, publish.clone()));
            }
        }
    }

    /// The next message that arrives at a node, and its source.
    pub(super) fn next(&mut self, rng: &mut Rng, to: usize, now_ms: u64) -> Option<(usize, Publish)> {
        let ways = &mut self.connections[to].on_the_way;
        ways.retain(|_, way| !way.is_empty());
        let due: Vec<_> = ways.iter().filter(|(_, way)| way[0].0 <= now_ms).map(|(key, _)| key.clone()).collect();
        let key = due.get(rng.below(due.len().max(1) as u64) as usize)?;
        let (_, publish) = ways.get_mut(key)?.pop_front()?;
        Some((key.0, publish))
    }

    /// The next answer to what a node has asked the server.
    pub(super) fn pong(&mut self, to: usize, now_ms: u64) -> Option<u64> {
        Some(self.connections[to].pongs.pop_front_if(|(at_ms, _)| *at_ms <= now_ms)?.1)
    }
}
