//! The public id of a channel, and the shard on which it lives.
//!
//! A channel lives on one shard for life, and its id says which. This file holds the only modulo in the tree.

use serde::{Deserialize, Serialize};
use std::fmt;

/// The id of a channel, as processes and clients see it: unique among live channels of a broker and not reused
/// soon after a channel is gone. Never 0.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ChannelId(u32);

impl ChannelId {
    /// Wraps an id that came from outside. Nothing is promised about a channel of that id being alive.
    pub const fn new(id: u32) -> Self {
        Self(id)
    }

    /// The bare number.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// The shard that owns this channel in a broker of `shards` shards.
    ///
    /// # Panics
    /// When `shards` is 0.
    pub const fn shard(self, shards: u32) -> u32 {
        self.0 % shards
    }
}

impl fmt::Debug for ChannelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ChannelId({})", self.0)
    }
}

impl fmt::Display for ChannelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Mints the ids of one shard: counts up from a random start, skips ids that are alive, never gives 0.
///
/// Counting up (rather than drawing at random) keeps an id out of use for as long as the id space allows, so a late
/// push never reaches a stranger; the random start keeps a restarted broker from repeating its last ids.
#[derive(Debug)]
pub struct ChannelIdMint {
    next: u32,
    shard: u32,
    shards: u32,
}

impl ChannelIdMint {
    /// A mint for `shard` of `shards`, starting somewhere that `seed` decides.
    pub fn new(shard: u32, shards: u32, seed: u32) -> Self {
        assert!(shards > 0 && shard < shards);
        let rounds = u32::MAX / shards;
        Self { next: (seed % rounds) * shards + shard, shard, shards }
    }

    /// The next id for which `is_live` is false. The caller keeps far fewer channels than there are ids.
    pub fn mint(&mut self, is_live: impl Fn(ChannelId) -> bool) -> ChannelId {
        loop {
            let id = ChannelId(self.next);
            self.next = self.next.checked_add(self.shards).unwrap_or(self.shard);
            if id.0 != 0 && !is_live(id) {
                debug_assert_eq!(id.shard(self.shards), self.shard);
                return id;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_say_their_shard_and_are_never_zero() {
        for shards in 1..5 {
            for shard in 0..shards {
                let mut mint = ChannelIdMint::new(shard, shards, 0);
                for _ in 0..10 {
                    let id = mint.mint(|_| false);
                    assert_eq!(id.shard(shards), shard);
                    assert_ne!(id.get(), 0);
                }
            }
        }
    }

    #[test]
    fn live_ids_are_skipped_and_the_count_wraps_on_its_own_residue() {
        let mut mint = ChannelIdMint::new(1, 2, u32::MAX);
        let first = mint.mint(|_| false);
        let second = mint.mint(|id| id.get() == first.get().wrapping_add(2));
        assert_ne!(second.get(), first.get().wrapping_add(2));
        for _ in 0..5 {
            assert_eq!(mint.mint(|_| false).shard(2), 1);
        }
    }
}
