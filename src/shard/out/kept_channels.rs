//! State of each channel that outlives its connection, in addition to its log: the path and user that may resume it,
//! and the tokens for that.
//!
//! Invariants: a kept channel has an entry here from its first frame to its end, under the place of its connection; the
//! heap use of the log is counted as its owner's.

use super::log::Log;
use crate::proto::close::ClosePayload;
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

/// The tokens with which a channel may be resumed, by their numbers: from the last one known to have been received to
/// the last one issued. So an answer that was lost costs no client its channel, nor does a request that comes late, and
/// is answered where the client is no more; and a token known to be replaced is worthless.
#[derive(Clone, Copy)]
pub(in crate::shard) struct ResumeTokens {
    received: u32,
    last: u32,
}

impl ResumeTokens {
    pub(crate) fn new(first: ResumeToken) -> Self {
        Self { received: first.number(), last: first.number() }
    }

    /// Returns whether a token is good that was made for this channel.
    pub(crate) fn are_good(&self, token: &ResumeToken) -> bool {
        token.number().wrapping_sub(self.received) <= self.last.wrapping_sub(self.received)
    }

    /// The channel was taken up by `used`, which is good. Returns the number of the next one, to be told to its client.
    pub(crate) fn replace(&mut self, used: ResumeToken) -> u32 {
        self.received = used.number();
        self.last = self.last.wrapping_add(1);
        self.last
    }

    /// The client has heard of the last one.
    pub(crate) fn settle(&mut self) {
        self.received = self.last;
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
    /// A close frame that follows what the log still has.
    pub close: Option<Box<ClosePayload>>,
    /// The log's claim on memory, and what it is for.
    charge: SharedCharge,
    charged_bytes: usize,
}

/// Those of one shard.
pub(super) type KeptChannels = FxHashMap<Slot, Box<KeptChannel>>;

impl KeptChannel {
    pub(crate) fn new(token: ResumeToken, holder: ResumeHolder, tells: bool) -> Self {
        let (log, tokens, charge) = (Log::default(), ResumeTokens::new(token), SharedCharge::default());
        Self { log, tokens, holder, received: 0, returns: 0, tells, close: None, charge, charged_bytes: 0 }
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
    fn a_token_is_good_until_a_later_one_is_known_to_have_been_received() {
        let keys = crate::resume::Keys::new(&[1; 32]);
        let token = |number: u32| keys.mint(crate::channel::ChannelId::new(7), number);
        // The last numbers, too.
        for first in [5, u32::MAX - 2] {
            let [a, b, c, d] = [0, 1, 2, 3].map(|number| token(first.wrapping_add(number)));
            let mut tokens = ResumeTokens::new(a);
            let are_good = |tokens: &ResumeTokens| [a, b, c, d].map(|token| tokens.are_good(&token));
            assert_eq!(are_good(&tokens), [true, false, false, false]);
            assert_eq!(token(tokens.replace(a)), b);
            // Again with the first: by whichever of the two answers the client knows how it goes on.
            assert_eq!(token(tokens.replace(a)), c);
            assert_eq!(are_good(&tokens), [true, true, true, false]);
            assert_eq!(token(tokens.replace(b)), d);
            assert_eq!(are_good(&tokens), [false, true, true, true]);
            tokens.settle();
            assert_eq!(are_good(&tokens), [false, false, false, true]);
            assert!(!tokens.are_good(&token(first.wrapping_sub(1))) && !tokens.are_good(&token(first.wrapping_add(4))));
        }
    }

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
