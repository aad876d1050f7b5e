//! The keys of one direction, and one record sealed or opened with them (RFC 8446 sections 5.2, 5.3, 7.1 to 7.3).
//!
//! Keys are kept raw and set up anew for each record: of a thousand connections, schedules of 635 bytes each leave the
//! cache between two records, and setting one up costs 130 ns. So a direction is 110 bytes.
//!
//! Invariants: a sequence number is used once: sealing and opening raise it, nothing lowers it, and new keys start at
//! 0; a secret is overwritten when it is replaced or dropped. Nothing here branches on a secret; for the ciphers,
//! aws-lc ensures that.

use super::alert::Alert;
use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Aad, Algorithm, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::hkdf::{self, HKDF_SHA256, HKDF_SHA384};
use std::fmt;
use std::io::IoSlice;
use zeroize::{Zeroize, ZeroizeOnDrop};

/// The header of a record: its type, a fixed version, its length.
pub(super) const HEADER_BYTES: usize = 5;

/// The most data of one record.
pub const PLAIN_BYTES_MAX: usize = 1 << 14;

/// The tag that each cipher appends to its ciphertext.
const TAG_BYTES: usize = 16;

/// The difference in length between a record and its data: header, type, tag.
pub const OVERHEAD_BYTES: usize = HEADER_BYTES + 1 + TAG_BYTES;

/// The longest body of a record that a peer may send (RFC 8446 5.2).
pub(super) const SEALED_BYTES_MAX: usize = PLAIN_BYTES_MAX + 256;

/// The longest record of a peer.
pub const RECORD_BYTES_MAX: usize = HEADER_BYTES + SEALED_BYTES_MAX;

/// The longest secret: SHA-384's.
const SECRET_BYTES_MAX: usize = 48;

/// The content type of a TLS 1.3 record, encrypted or not (RFC 8446 5.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum ContentType {
    /// Two bytes: a level without meaning, and what it says.
    Alert = 21,
    /// KeyUpdate, once the connection is established.
    Handshake = 22,
    /// Data; also what every sealed record claims to be.
    ApplicationData = 23,
}

/// A cipher suite of TLS 1.3 (RFC 8446 B.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Suite {
    /// TLS_AES_128_GCM_SHA256
    Aes128Gcm,
    /// TLS_AES_256_GCM_SHA384
    Aes256Gcm,
    /// TLS_CHACHA20_POLY1305_SHA256
    ChaCha20Poly1305,
}

impl Suite {
    fn aead(self) -> &'static Algorithm {
        match self {
            Self::Aes128Gcm => &AES_128_GCM,
            Self::Aes256Gcm => &AES_256_GCM,
            Self::ChaCha20Poly1305 => &CHACHA20_POLY1305,
        }
    }

    fn hkdf(self) -> hkdf::Algorithm {
        match self {
            Self::Aes256Gcm => HKDF_SHA384,
            Self::Aes128Gcm | Self::ChaCha20Poly1305 => HKDF_SHA256,
        }
    }

    /// The length of its traffic secrets, in bytes.
    pub fn secret_bytes(self) -> usize {
        match self {
            Self::Aes256Gcm => 48,
            Self::Aes128Gcm | Self::ChaCha20Poly1305 => 32,
        }
    }

    fn key_bytes(self) -> usize {
        match self {
            Self::Aes128Gcm => 16,
            Self::Aes256Gcm | Self::ChaCha20Poly1305 => 32,
        }
    }
}

/// A traffic secret (RFC 8446 7.1), from which the keys of one direction follow. It is never printed.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct TrafficSecret([u8; SECRET_BYTES_MAX]);

impl TrafficSecret {
    /// As the key schedule gives it: 32 or 48 bytes. `None`: no suite of ours has secrets of that length.
    pub fn new(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != 32 && bytes.len() != SECRET_BYTES_MAX {
            return None;
        }
        let mut secret = [0; SECRET_BYTES_MAX];
        secret[..bytes.len()].copy_from_slice(bytes);
        Some(Self(secret))
    }

    /// HKDF-Expand-Label with an empty context.
    fn expand(&self, suite: Suite, label: &str, out: &mut [u8]) {
        // The longest label of ours is "traffic upd".
        let mut info = [0; 2 + 1 + 6 + 11 + 1];
        let label_len = 6 + label.len();
        info[..2].copy_from_slice(&(out.len() as u16).to_be_bytes());
        info[2] = label_len as u8;
        info[3..9].copy_from_slice(b"tls13 ");
        info[9..3 + label_len].copy_from_slice(label.as_bytes());
        let info = &info[..4 + label_len];
        let prk = hkdf::Prk::new_less_safe(suite.hkdf(), &self.0[..suite.secret_bytes()]);
        prk.expand(&[info], Length(out.len()))
            .and_then(|okm| okm.fill(out))
            .expect("keys are shorter than what HKDF can give");
    }
}

impl fmt::Debug for TrafficSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TrafficSecret(..)")
    }
}

struct Length(usize);

impl hkdf::KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

/// The keys of one direction, and how many records they were used for. See the module.
#[derive(Zeroize, ZeroizeOnDrop)]
pub(super) struct DirectionKeys {
    secret: TrafficSecret,
    key: [u8; 32],
    iv: [u8; 12],
    sequence: u64,
    #[zeroize(skip)]
    suite: Suite,
}

impl DirectionKeys {
    /// The keys that follow from `secret`, of which `sequence` records were used.
    pub(super) fn new(suite: Suite, secret: TrafficSecret, sequence: u64) -> Self {
        let mut half = Self { secret, key: [0; 32], iv: [0; 12], sequence, suite };
        half.derive();
        half
    }

    /// RFC 8446 7.3.
    fn derive(&mut self) {
        self.secret.expand(self.suite, "key", &mut self.key[..self.suite.key_bytes()]);
        self.secret.expand(self.suite, "iv", &mut self.iv);
    }

    /// The next generation of keys (RFC 8446 7.2), as a KeyUpdate asks for it.
    pub(super) fn update(&mut self) {
        let mut next = TrafficSecret([0; SECRET_BYTES_MAX]);
        self.secret.expand(self.suite, "traffic upd", &mut next.0[..self.suite.secret_bytes()]);
        self.secret = next;
        self.sequence = 0;
        self.derive();
    }

    /// How many records these keys were used for.
    pub(super) fn sequence(&self) -> u64 {
        self.sequence
    }

    /// From which they follow.
    pub(super) fn secret(&self) -> &TrafficSecret {
        &self.secret
    }

    fn key(&self) -> LessSafeKey {
        let key = &self.key[..self.suite.key_bytes()];
        LessSafeKey::new(UnboundKey::new(self.suite.aead(), key).expect("a key has the length of its cipher"))
    }

    /// The number used once of the next record (RFC 8446 5.3). It is counted as used.
    fn nonce(&mut self) -> Nonce {
        let mut nonce = self.iv;
        std::iter::zip(&mut nonce[4..], self.sequence.to_be_bytes()).for_each(|(byte, of)| *byte ^= of);
        // A connection would need 2^64 records of one generation; it has new keys long before.
        self.sequence = self.sequence.checked_add(1).expect("keys are renewed before numbers run out");
        Nonce::assume_unique_for_key(nonce)
    }

    /// One record of any kind.
    #[cfg(test)]
    pub(super) fn seal_as(&mut self, content: u8, plain: &[u8], into: &mut Vec<u8>) {
        let header = header(plain.len() + 1 + TAG_BYTES);
        let mut body = [plain, &[content]].concat();
        let (key, nonce) = (self.key(), self.nonce());
        key.seal_in_place_append_tag(nonce, Aad::from(header), &mut body).unwrap();
        into.extend_from_slice(&header);
        into.extend_from_slice(&body);
    }

    /// Appends one record of `parts`, joined, which are at most [`PLAIN_BYTES_MAX`] bytes.
    pub(super) fn seal(&mut self, content: ContentType, parts: &[IoSlice<'_>], into: &mut Vec<u8>) {
        let plain_len: usize = parts.iter().map(|part| part.len()).sum();
        assert!(plain_len <= PLAIN_BYTES_MAX, "a record is cut to its size before it is sealed");
        let header = header(plain_len + 1 + TAG_BYTES);
        let (key, nonce) = (self.key(), self.nonce());
        into.reserve(OVERHEAD_BYTES + plain_len);
        into.extend_from_slice(&header);
        let start = into.len();
        let sealed = if let [plain] = parts {
            into.resize(start + plain_len + 1 + TAG_BYTES, 0);
            let (out, rest) = into[start..].split_at_mut(plain_len);
            key.seal_out_of_place_scatter(nonce, Aad::from(header), plain, out, &[content as u8], rest)
        } else {
            parts.iter().for_each(|part| into.extend_from_slice(part));
            into.push(content as u8);
            key.seal_in_place_separate_tag(nonce, Aad::from(header), &mut into[start..])
                .map(|tag| into.extend_from_slice(tag.as_ref()))
        };
        // The ciphers refuse only what is longer than any record.
        sealed.expect("a record is short enough for every cipher");
    }

    /// Decrypts the record of this header and body, in place. Returns its type, as a byte, and the length of its data
    /// at the start of `body`.
    ///
    /// # Errors
    /// The alert for the peer; the connection is over.
    pub(super) fn open(&mut self, header: [u8; HEADER_BYTES], body: &mut [u8]) -> Result<(u8, usize), Alert> {
        let (key, nonce) = (self.key(), self.nonce());
        // RFC 8446 5.2: a record that does not open is bad_record_mac, one too short for its tag among them.
        let inner = key.open_in_place(nonce, Aad::from(header), body).map_err(|_| Alert::BAD_RECORD_MAC)?;
        // RFC 8446 5.2: TLSInnerPlaintext is at most 2^14 + 1 bytes, padding included.
        if inner.len() > PLAIN_BYTES_MAX + 1 {
            return Err(Alert::RECORD_OVERFLOW);
        }
        // RFC 8446 5.4: the last byte that is not zero is the type; without one the record is no record.
        let at = inner.iter().rposition(|&byte| byte != 0).ok_or(Alert::UNEXPECTED_MESSAGE)?;
        Ok((inner[at], at))
    }
}

/// The header of a sealed record (RFC 8446 5.2): it claims to be data of TLS 1.2.
fn header(body_len: usize) -> [u8; HEADER_BYTES] {
    let [high, low] = (body_len as u16).to_be_bytes();
    [ContentType::ApplicationData as u8, 3, 3, high, low]
}

// The cost of a channel over TLS beside a plain one is two of these.
const _: () = assert!(std::mem::size_of::<DirectionKeys>() <= 112);
