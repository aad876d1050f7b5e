//! State of each channel that outlives its connection, in addition to its log: the path and user that may resume it,
//! and the tokens for that.
//!
//! Invariants: a kept channel has an entry here from its first frame to its end, under the place of its connection; the
//! heap use of the log is counted as its owner's.

use super::log::Log;
use crate::resume::ResumeToken;
use crate::shard::memory::SharedCharge;
use crate::shard::table::slot::Slot;
use rustc_hash::FxHashMap;
use sha2::{Digest, Sha256};

/// The path and user that may take a channel up again: a digest, so that a path of any length takes no memory while its
/// channel lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::shard) struct ResumeHolder {
    digest: [u8; 32],
    is_anonymous: bool,
}

impl ResumeHolder {
    /// Of the path that the client asked for, and must ask for again, and the user that was logged in, where the path
    /// requires a login.
    pub(in crate::shard) fn of(path: &str, user: Option<&str>) -> Self {
        let mut hash = Sha256::new();
        hash.update((path.len() as u64).to_be_bytes());
        hash.update(path);
        hash.update(user.unwrap_or_default());
        hash.update([u8::from(user.is_some())]);
        Self { digest: hash.finalize().into(), is_anonymous: user.is_none() }
    }

    /// Returns whether anybody may stand behind it.
    pub(super) fn is_anonymous(self) -> bool {
        self.is_anonymous
    }
}

/// The tokens with which a channel may be resumed: the last one issued, and the last one used, until its client has
/// shown that it received the next. So an answer that was lost costs no client its channel, and a token known to be
/// replaced is worthless.
#[derive(Clone, Copy)]
pub(in crate::shard) struct ResumeTokens {
    last: ResumeToken,
    used: Option<ResumeToken>,
}

impl ResumeTokens {
    pub(crate) fn new(first: ResumeToken) -> Self {
        Self { last: first, used: None }
    }

    pub(crate) fn are_good(&self, token: &ResumeToken) -> bool {
        self.last == *token || self.used == Some(*token)
    }

    /// The channel was taken up by `used`, and `next` is told to its client.
    pub(crate) fn replace(&mut self, used: ResumeToken, next: ResumeToken) {
        if self.last == used {
            self.used = Some(used);
        }
        self.last = next;
    }

    /// The client has heard of the last one.
    pub(crate) fn settle(&mut self) {
        self.used = None;
    }
}

/// A channel that only receives.
pub(in crate::shard) struct Listener {
    /// Whose it is.
    pub holder: ResumeHolder,
    /// With what its client sends.
    pub token: ResumeToken,
}

/// See the module.
pub(in crate::shard) struct KeptChannel {
    pub log: Log,
    pub tokens: ResumeTokens,
    pub holder: ResumeHolder,
    /// How many messages of the client its owner was told.
    pub received: u64,
    /// How often its client has come back.
    pub returns: u32,
    /// Whether its owner is told when it is left and taken up again.
    pub tells: bool,
    /// The log's claim on memory, and what it is for.
    charge: SharedCharge,
    charged_bytes: usize,
}

/// Those of one shard.
pub(super) type KeptChannels = FxHashMap<Slot, Box<KeptChannel>>;

impl KeptChannel {
    pub(crate) fn new(token: ResumeToken, holder: ResumeHolder, tells: bool) -> Self {
        let (log, tokens) = (Log::default(), ResumeTokens::new(token));
        Self { log, tokens, holder, received: 0, returns: 0, tells, charge: SharedCharge::default(), charged_bytes: 0 }
    }

    fn bytes(&self) -> usize {
        size_of::<Self>() + self.log.heap_bytes()
    }

    /// Returns whether its counted heap bytes are the actual ones.
    pub(crate) fn is_counted(&self) -> bool {
        self.bytes() == self.charged_bytes
    }

    /// Counts what it takes of the heap now: `charge` makes the claim of so many bytes.
    pub(crate) fn count(&mut self, charge: impl FnOnce(usize) -> SharedCharge) {
        if !self.is_counted() {
            let bytes = self.bytes();
            (self.charge, self.charged_bytes) = (charge(bytes), bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_holder_is_its_path_and_its_user_and_no_mixture_of_them() {
        let all =
            [("/a", None), ("/a", Some("")), ("/a", Some("b")), ("/ab", None), ("/ab", Some("")), ("/", Some("ab"))];
        for (at, (path, user)) in all.iter().enumerate() {
            let holder = ResumeHolder::of(path, *user);
            for (other, (path, user)) in all.iter().enumerate() {
                assert_eq!(holder == ResumeHolder::of(path, *user), at == other, "{path} {user:?}");
            }
            assert_eq!(holder.is_anonymous(), user.is_none());
        }
    }
}
