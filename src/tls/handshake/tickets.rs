//! Tickets for resuming sessions (RFC 8446 4.6.1): their contents are sealed by keys of ours, so shards share the keys
//! and nothing else.
//!
//! A key seals for [`ROTATED_EVERY_S`] and opens for as long again, then it is overwritten: a stolen key opens tickets
//! of that time. It opens no connection: a client that resumes exchanges keys anew.
//!
//! Invariant: one key seals at a time. It must not know clocks: the time is an argument.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::rand;
use std::fmt;
use std::sync::{PoisonError, RwLock};
use zeroize::{Zeroize, ZeroizeOnDrop};

/// How long one key seals.
pub(super) const ROTATED_EVERY_S: u64 = 12 * 3600;

const NAME_BYTES: usize = 16;

#[derive(Clone, Zeroize, ZeroizeOnDrop)]
struct TicketKey {
    name: [u8; NAME_BYTES],
    key: [u8; 32],
    made_s: u64,
}

impl TicketKey {
    fn new(now_s: u64) -> Option<Self> {
        let mut key = Self { name: [0; NAME_BYTES], key: [0; 32], made_s: now_s };
        rand::fill(&mut key.name).and_then(|()| rand::fill(&mut key.key)).ok()?;
        Some(key)
    }

    fn cipher(&self) -> LessSafeKey {
        LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &self.key).expect("a key has the length of its cipher"))
    }
}

/// See the module.
#[derive(Default)]
pub(super) struct SessionTickets {
    /// The one that seals, and the one before it.
    keys: RwLock<[Option<TicketKey>; 2]>,
}

impl SessionTickets {
    /// Seals `plain`: the key's name, a number used once, what is sealed. `None` if there is no randomness.
    pub(super) fn seal(&self, plain: &[u8], now_s: u64) -> Option<Vec<u8>> {
        let key = self.current(now_s)?;
        let mut nonce = [0; NONCE_LEN];
        rand::fill(&mut nonce).ok()?;
        let mut ticket = Vec::with_capacity(NAME_BYTES + NONCE_LEN + plain.len() + AES_256_GCM.tag_len());
        ticket.extend_from_slice(&key.name);
        ticket.extend_from_slice(&nonce);
        ticket.extend_from_slice(plain);
        let sealed = &mut ticket[NAME_BYTES + NONCE_LEN..];
        let nonce = Nonce::assume_unique_for_key(nonce);
        let tag = key.cipher().seal_in_place_separate_tag(nonce, Aad::from(key.name), sealed).ok()?;
        ticket.extend_from_slice(tag.as_ref());
        Some(ticket)
    }

    /// Opens what a client claims to be a ticket of ours.
    pub(super) fn open(&self, ticket: &[u8], now_s: u64) -> Option<Vec<u8>> {
        let (name, rest) = ticket.split_first_chunk::<NAME_BYTES>()?;
        let (nonce, sealed) = rest.split_first_chunk::<NONCE_LEN>()?;
        let key = {
            let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
            let is_it = |key: &&TicketKey| key.name == *name && now_s < key.made_s + 2 * ROTATED_EVERY_S;
            keys.iter().flatten().find(is_it)?.clone()
        };
        let mut plain = sealed.to_vec();
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let len = key.cipher().open_in_place(nonce, Aad::from(*name), &mut plain).ok()?.len();
        plain.truncate(len);
        Some(plain)
    }

    /// The key that seals now. The one before the one before is overwritten.
    fn current(&self, now_s: u64) -> Option<TicketKey> {
        let is_current = |key: &TicketKey| now_s < key.made_s + ROTATED_EVERY_S;
        {
            let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(key) = keys[0].as_ref().filter(|key| is_current(key)) {
                return Some(key.clone());
            }
        }
        let mut keys = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        // Another shard may have been quicker.
        if !keys[0].as_ref().is_some_and(is_current) {
            keys[1] = keys[0].replace(TicketKey::new(now_s)?);
        }
        keys[0].clone()
    }
}

impl fmt::Debug for SessionTickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SessionTickets(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_opens_until_its_key_is_two_rotations_old() {
        let tickets = SessionTickets::default();
        let ticket = tickets.seal(b"resume me", 1000).unwrap();
        let opened = |now_s| tickets.open(&ticket, now_s);
        assert_eq!(opened(1000).unwrap(), b"resume me");
        assert_eq!(opened(999 + 2 * ROTATED_EVERY_S).unwrap(), b"resume me");
        assert_eq!(opened(1000 + 2 * ROTATED_EVERY_S), None, "even where nobody has rotated");
        let second = tickets.seal(b"later", 1000 + ROTATED_EVERY_S).unwrap();
        assert_ne!(second[..NAME_BYTES], ticket[..NAME_BYTES], "another key");
        assert_eq!(opened(1000 + ROTATED_EVERY_S).unwrap(), b"resume me");
        tickets.seal(b"latest", 1000 + 2 * ROTATED_EVERY_S).unwrap();
        assert_eq!(opened(1000), None, "the key is gone");
    }

    #[test]
    fn whatever_was_changed_does_not_open() {
        let tickets = SessionTickets::default();
        let ticket = tickets.seal(b"resume me", 0).unwrap();
        for at in 0..ticket.len() {
            let mut changed = ticket.clone();
            changed[at] ^= 1;
            assert_eq!(tickets.open(&changed, 0), None, "at {at}");
            assert_eq!(tickets.open(&ticket[..at], 0), None, "cut at {at}");
        }
        assert_eq!(SessionTickets::default().open(&ticket, 0), None, "another server's");
    }
}
