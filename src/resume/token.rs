//! Resume tokens: 16 bytes, 22 characters of base64url, that any shard of the broker that made them can verify by
//! itself.
//!
//! Two bytes name the run of the broker, four are random, ten are a MAC over those and the channel's id. The MAC keeps
//! strangers from troubling the shard of a channel; that shard compares the whole token with the one it gave out last,
//! so each is good for one return. The key is drawn anew by each run: a token never outlives the channels it was for.

use crate::channel::ChannelId;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// The bytes of a token.
const BYTES: usize = 16;
/// Of them the run's.
const RUN_BYTES: usize = 2;
/// The part of the token that the MAC covers: the run and the random bytes.
const NAME_BYTES: usize = 6;

/// The bytes of a sealed place.
pub const PLACE_BYTES: usize = 16;

/// The characters of a token.
pub const TEXT_BYTES: usize = 22;

/// The purpose of the MAC, so that no other MAC of the same key is a token.
const LABEL: &[u8] = b"pushring resume 1";
/// Those of the two halves of a sealed place.
const PLACE_NONCE: &[u8] = b"pushring place 1";
const PLACE_PAD: &[u8] = b"pushring pad 1";

/// A resume token. A secret of the client that it was given to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ResumeToken([u8; BYTES]);

impl std::fmt::Debug for ResumeToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ResumeToken(..)")
    }
}

impl ResumeToken {
    /// Reads a token as it was given out; `None` if it is none.
    pub fn parse(text: &str) -> Option<Self> {
        let mut bytes = [0; BYTES];
        let is_token = text.len() == TEXT_BYTES && URL_SAFE_NO_PAD.decode_slice(text, &mut bytes) == Ok(BYTES);
        is_token.then_some(Self(bytes))
    }

    /// What tells it from others of its channel: see [`Keys::mint`].
    pub fn number(&self) -> u32 {
        let (_, number) = self.0[..NAME_BYTES].split_last_chunk().expect("a name ends with it");
        u32::from_be_bytes(*number)
    }

    /// As it is given out.
    pub fn text(self) -> String {
        URL_SAFE_NO_PAD.encode(self.0)
    }
}

/// Why a token is not good for a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenMismatch {
    /// Another run of the broker made it, before a restart or elsewhere.
    Elsewhere,
    /// It was made for another channel, or is forged.
    Foreign,
}

/// Makes and verifies the tokens of one run of a broker. Each shard has a clone.
#[derive(Clone)]
pub struct Keys {
    mac: Hmac<Sha256>,
    run: RunId,
    others: OtherRuns,
}

/// The name of a broker's run in its tokens; not secret.
pub type RunId = [u8; RUN_BYTES];

/// Where clients reach the brokers of other runs, as far as that is known. Clones are of one list.
#[derive(Clone, Default)]
pub struct OtherRuns(Arc<Mutex<BTreeMap<RunId, Arc<str>>>>);

impl OtherRuns {
    /// Makes it this list.
    pub fn set(&self, others: BTreeMap<RunId, Arc<str>>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = others;
    }

    /// Where that run's broker is reached. Never waits: while the list is being changed nothing is known.
    fn get(&self, run: &RunId) -> Option<Arc<str>> {
        self.0.try_lock().ok()?.get(run).cloned()
    }
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Keys(..)")
    }
}

impl Keys {
    /// The keys derived from `secret`, which must be known to this broker alone.
    pub fn new(secret: &[u8; 32]) -> Self {
        let mac = <Hmac<Sha256> as KeyInit>::new_from_slice(secret).expect("HMAC takes keys of any length");
        let named = mac.clone().chain_update(b"pushring run").finalize().into_bytes();
        Self { mac, run: [named[0], named[1]], others: OtherRuns::default() }
    }

    /// The name of this run.
    pub fn run(&self) -> RunId {
        self.run
    }

    /// Where clients reach other brokers.
    pub fn others(&self) -> &OtherRuns {
        &self.others
    }

    /// Where clients reach the broker that made a token, if that is another one and known.
    pub fn maker_of(&self, token: &ResumeToken) -> Option<Arc<str>> {
        self.others.get(&[token.0[0], token.0[1]])
    }

    /// The name of this run of the broker, which is no secret.
    pub fn run_number(&self) -> u16 {
        u16::from_be_bytes(self.run)
    }

    /// A token for `channel`; `number` tells it from others that are made for it. The first one of a channel is random,
    /// for ids are used again.
    pub fn mint(&self, channel: ChannelId, number: u32) -> ResumeToken {
        let mut bytes = [0; BYTES];
        bytes[..RUN_BYTES].copy_from_slice(&self.run);
        bytes[RUN_BYTES..NAME_BYTES].copy_from_slice(&number.to_be_bytes());
        let mac = self.over(channel, &bytes[..NAME_BYTES]).finalize().into_bytes();
        bytes[NAME_BYTES..].copy_from_slice(&mac[..BYTES - NAME_BYTES]);
        ResumeToken(bytes)
    }

    /// Verifies a token that a client brings for `channel`, in constant time.
    ///
    /// # Errors
    /// This run of the broker did not make it for that channel.
    pub fn verify(&self, channel: ChannelId, token: &ResumeToken) -> Result<(), TokenMismatch> {
        if token.0[..RUN_BYTES] != self.run {
            return Err(TokenMismatch::Elsewhere);
        }
        let mac = self.over(channel, &token.0[..NAME_BYTES]);
        mac.verify_truncated_left(&token.0[NAME_BYTES..]).map_err(|_| TokenMismatch::Foreign)
    }

    /// A count of what a shard has sent to listeners, for clients to bring back: equal counts look alike, and nobody
    /// without the keys learns a count or makes a place up. The construction is SIV (RFC 5297 section 1.3): the MAC of
    /// the count is the nonce under which it is encrypted.
    pub fn seal_place(&self, shard: u32, count: u64) -> [u8; PLACE_BYTES] {
        let nonce = self.half(PLACE_NONCE, shard, count.to_be_bytes());
        let sealed = count ^ u64::from_be_bytes(self.half(PLACE_PAD, shard, nonce));
        let mut place = [0; PLACE_BYTES];
        place[..8].copy_from_slice(&nonce);
        place[8..].copy_from_slice(&sealed.to_be_bytes());
        place
    }

    /// The count. `None`: it was not sealed by this run of the broker for that shard.
    pub fn open_place(&self, shard: u32, place: &[u8; PLACE_BYTES]) -> Option<u64> {
        let (nonce, sealed) = place.split_first_chunk::<8>()?;
        let sealed = u64::from_be_bytes(*sealed.first_chunk()?);
        let count = sealed ^ u64::from_be_bytes(self.half(PLACE_PAD, shard, *nonce));
        let mac = self.labelled(PLACE_NONCE, shard).chain_update(count.to_be_bytes());
        mac.verify_truncated_left(nonce).is_ok().then_some(count)
    }

    fn labelled(&self, label: &[u8], shard: u32) -> Hmac<Sha256> {
        self.mac.clone().chain_update(label).chain_update(shard.to_be_bytes())
    }

    fn half(&self, label: &[u8], shard: u32, of: [u8; 8]) -> [u8; 8] {
        let whole = self.labelled(label, shard).chain_update(of).finalize().into_bytes();
        *whole.first_chunk().expect("a digest has 32 bytes")
    }

    fn over(&self, channel: ChannelId, name: &[u8]) -> Hmac<Sha256> {
        self.mac.clone().chain_update(LABEL).chain_update(channel.get().to_be_bytes()).chain_update(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(id: u32) -> ChannelId {
        ChannelId::new(id)
    }

    #[test]
    fn a_sealed_place_is_opened_by_the_keys_and_the_shard_that_sealed_it() {
        let (keys, others) = (Keys::new(&[1; 32]), Keys::new(&[2; 32]));
        for count in [0, 1, 2, 1 << 40, u64::MAX] {
            let place = keys.seal_place(3, count);
            assert_eq!(keys.open_place(3, &place), Some(count));
            assert_eq!((keys.open_place(2, &place), others.open_place(3, &place)), (None, None));
            for bit in 0..PLACE_BYTES * 8 {
                let mut forged = place;
                forged[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(keys.open_place(3, &forged), None, "bit {bit}");
            }
        }
        // Neighbours have nothing in common to count by.
        let distance = |a: [u8; PLACE_BYTES], b: [u8; PLACE_BYTES]| -> u32 {
            a.iter().zip(b).map(|(a, b)| (a ^ b).count_ones()).sum()
        };
        let near = (0..100).map(|count| distance(keys.seal_place(0, count), keys.seal_place(0, count + 1))).min();
        assert!(near > Some(30), "{near:?}");
    }

    #[test]
    fn a_token_is_good_for_its_channel_in_its_run() {
        let (ours, theirs) = (Keys::new(&[7; 32]), Keys::new(&[8; 32]));
        let token = ours.mint(id(3), 1);
        assert_eq!(token.text().len(), TEXT_BYTES);
        assert_eq!(ResumeToken::parse(&token.text()), Some(token));
        assert_eq!(ours.verify(id(3), &token), Ok(()));
        assert_eq!(ours.verify(id(4), &token), Err(TokenMismatch::Foreign));
        assert_eq!(theirs.verify(id(3), &token), Err(TokenMismatch::Elsewhere));
        assert_eq!(theirs.maker_of(&token), None);
        theirs.others().set([(ours.run(), "wss://a.example.com".into())].into());
        assert_eq!(theirs.clone().maker_of(&token).as_deref(), Some("wss://a.example.com"));
        assert_ne!(ours.mint(id(3), 2), token);
        assert_eq!(
            [1, 0x0102_0304, u32::MAX].map(|number| ours.mint(id(3), number).number()),
            [1, 0x0102_0304, u32::MAX]
        );
    }

    #[test]
    fn no_bit_of_a_token_can_be_changed() {
        let keys = Keys::new(&[7; 32]);
        let token = keys.mint(id(3), 0x1234_5678);
        for bit in 0..BYTES * 8 {
            let mut other = token;
            other.0[bit / 8] ^= 1 << (bit % 8);
            assert!(keys.verify(id(3), &other).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn what_is_no_token_is_none_and_none_is_printed() {
        for text in
            ["", "AAAAAAAAAAAAAAAAAAAAA", "AAAAAAAAAAAAAAAAAAAAAAA", "AAAAAAAAAAAAAAAAAAAAA+", "AAAAAAAAAAAAAAAAAAAAAB"]
        {
            assert!(ResumeToken::parse(text).is_none(), "{text}");
        }
        let keys = Keys::new(&[7; 32]);
        let token = keys.mint(id(3), 1);
        assert!(!format!("{token:?} {keys:?}").contains(&token.text()));
    }
}
