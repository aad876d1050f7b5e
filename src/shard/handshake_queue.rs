//! The order in which handshaking connections are read: by arrival, one address after another.
//!
//! A handshake costs a hundred times what a read does, so a turn does a few of them, and the others wait unread in
//! their sockets. All cost about the same, so an address gets one handshake per round, however many it has begun.
//!
//! Invariant: an address is in the round once, as long as one of its connections waits. It must not depend on sockets
//! or costs.

use super::table::connection::ConnectionToken;
use crate::admission::Prefix;
use std::collections::{HashMap, VecDeque};

/// See the module.
#[derive(Debug, Default)]
pub(super) struct HandshakeQueue {
    waiting: HashMap<Prefix, VecDeque<ConnectionToken>>,
    round: VecDeque<Prefix>,
}

impl HandshakeQueue {
    /// One more of `client` waits.
    pub(super) fn push(&mut self, client: Prefix, token: ConnectionToken) {
        let waiting = self.waiting.entry(client).or_default();
        if waiting.is_empty() {
            self.round.push_back(client);
        }
        waiting.push_back(token);
    }

    /// Whose turn it is.
    pub(super) fn pop(&mut self) -> Option<ConnectionToken> {
        let client = self.round.pop_front()?;
        let waiting = self.waiting.get_mut(&client)?;
        let token = waiting.pop_front();
        if waiting.is_empty() {
            self.waiting.remove(&client);
        } else {
            self.round.push_back(client);
        }
        token
    }

    /// Returns whether no connection waits.
    pub(super) fn is_empty(&self) -> bool {
        self.round.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    #[test]
    fn addresses_take_turns_and_each_is_in_order() {
        let mut shaking = HandshakeQueue::default();
        let client = |last| Prefix::from(std::net::IpAddr::from(Ipv4Addr::new(127, 0, 0, last)));
        let token = |slot| ConnectionToken { slot, generation: 1 };
        for slot in 0..3 {
            shaking.push(client(1), token(slot));
        }
        shaking.push(client(2), token(9));
        assert_eq!(shaking.pop(), Some(token(0)));
        shaking.push(client(3), token(5));
        let rest: Vec<_> = std::iter::from_fn(|| shaking.pop()).map(|token| token.slot).collect();
        assert_eq!(rest, [9, 1, 5, 2]);
        assert!(shaking.is_empty() && shaking.waiting.is_empty());
    }
}
