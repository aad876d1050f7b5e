//! A certificate chain and its key, from PEM: its names, its validity, and the cost of signing with it.
//!
//! Invariant: the key is the certificate's. Whether clients trust it is not checked. It must not know files.

use memchr::memmem;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{InconsistentKeys, SignatureAlgorithm, SignatureScheme};
use std::fmt;
use std::sync::Arc;

/// The fault of a pair that cannot be used, and its fix.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CertificateError {
    /// There is no certificate in it, or one that does not parse.
    #[error(
        "no certificate can be read from it ({0}): it is to be PEM, the server's certificate first, its issuers behind it"
    )]
    Chain(String),
    /// There is no private key in it.
    #[error("no private key can be read from it ({0}): it is to be PEM, unencrypted, of an ECDSA, Ed25519 or RSA key")]
    Key(String),
    /// The key can be read with a passphrase alone.
    #[error("the private key is encrypted, and nobody is asked for its passphrase: decrypt it (openssl pkey -in KEY)")]
    Encrypted,
    /// A key that nothing is signed with here.
    #[error("keys of this kind or size are not supported: ECDSA on P-256, P-384 or P-521, Ed25519, RSA from 2048 bits")]
    Unsupported,
    /// The key belongs to another certificate.
    #[error("the key is not the certificate's: give the key for which this certificate was issued")]
    Mismatch,
    /// The key belongs to a certificate behind the first one, of this place.
    #[error(
        "the key is that of certificate {0} in the chain: the server's own is to be the first, its issuers behind it"
    )]
    NotFirst(usize),
    /// There is nothing to choose from.
    #[error("no certificate is given, and a server needs one")]
    None,
}

/// See the module. Cheap to clone.
#[derive(Clone)]
pub struct Certificate {
    pub(super) key: Arc<CertifiedKey>,
    names: Arc<[Box<str>]>,
    not_before_unix_s: u64,
    not_after_unix_s: u64,
    price_ns: u64,
}

impl Certificate {
    /// From the chain, the server's own certificate first, and its key, both PEM.
    ///
    /// # Errors
    /// See [`CertificateError`].
    pub fn from_pem(chain: &[u8], key: &[u8]) -> Result<Self, CertificateError> {
        let chain_error = |error: &dyn fmt::Display| CertificateError::Chain(error.to_string());
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(chain)
            .collect::<Result<_, _>>()
            .map_err(|error| chain_error(&fault(&error)))?;
        let own = chain.first().ok_or_else(|| chain_error(&"there is none"))?;
        let parsed = webpki::EndEntityCert::try_from(own).map_err(|error| chain_error(&format!("{error:?}")))?;
        let names = parsed.valid_dns_names().map(|name| name.to_ascii_lowercase().into()).collect();
        let (not_before_unix_s, not_after_unix_s) = validity(own).ok_or_else(|| chain_error(&"its dates"))?;
        let key_error = |error: &dyn fmt::Display| CertificateError::Key(error.to_string());
        // The markers of PKCS #8 (RFC 7468 11), and of the older form (RFC 1421 4.6.1.1).
        if memmem::find(key, b"ENCRYPTED PRIVATE KEY").or_else(|| memmem::find(key, b"4,ENCRYPTED")).is_some() {
            return Err(CertificateError::Encrypted);
        }
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| key_error(&fault(&error)))?;
        let key = any_supported_type(&key).map_err(|_| CertificateError::Unsupported)?;
        let key = CertifiedKey::new(chain, key);
        if !may_match(&key) {
            let is_its = |issuer: &CertificateDer<'static>| {
                CertifiedKey::new(vec![issuer.clone()], key.key.clone()).keys_match().is_ok()
            };
            let place = key.cert.iter().position(is_its);
            return Err(place.map_or(CertificateError::Mismatch, |at| CertificateError::NotFirst(at + 1)));
        }
        let price_ns = price_ns(&key);
        Ok(Self { key: Arc::new(key), names, not_before_unix_s, not_after_unix_s, price_ns })
    }

    /// The names that it is for, in lower case; `*.` stands for one label.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(|name| &**name)
    }

    /// When it becomes valid, in seconds since 1970.
    pub fn not_before_unix_s(&self) -> u64 {
        self.not_before_unix_s
    }

    /// Until when it is valid, in seconds since 1970.
    pub fn not_after_unix_s(&self) -> u64 {
        self.not_after_unix_s
    }

    /// The cost of a handshake with it, in nanoseconds of a core.
    pub fn price_ns(&self) -> u64 {
        self.price_ns
    }

    /// The certificates, DER, the server's own first.
    pub fn chain(&self) -> impl Iterator<Item = &[u8]> {
        self.key.cert.iter().map(|certificate| &**certificate)
    }

    /// Returns whether it is for the host `name`, in lower case (RFC 6125 6.4.3).
    pub fn is_for(&self, name: &str) -> bool {
        self.names.iter().any(|pattern| matches(pattern, name))
    }

    /// Returns whether it can sign for a client that understands these.
    pub(super) fn can_sign(&self, schemes: &[SignatureScheme]) -> bool {
        self.key.key.choose_scheme(schemes).is_some()
    }
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate").field("names", &self.names).field("not_after", &self.not_after_unix_s).finish()
    }
}

/// What is wrong with PEM. Nothing is told of what stands in it: that may be a key.
pub(in crate::tls) fn fault(error: &pem::Error) -> &'static str {
    match error {
        pem::Error::MissingSectionEnd { .. } => "it is cut off in the middle of a section",
        pem::Error::IllegalSectionStart { .. } => {
            "a line that begins a section goes on behind it: line breaks are lost"
        }
        pem::Error::Base64Decode(_) => "what stands in a section is no base64",
        pem::Error::NoItemsFound => "there is none",
        _ => "it is no PEM",
    }
}

/// A key that does not tell its public half is not known to be wrong.
fn may_match(key: &CertifiedKey) -> bool {
    matches!(key.keys_match(), Ok(()) | Err(rustls::Error::InconsistentKeys(InconsistentKeys::Unknown)))
}

/// A star is the whole first label, and stands for one that is not empty.
fn matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_prefix("*.") {
        Some(parent) => name.split_once('.').is_some_and(|(label, rest)| !label.is_empty() && rest == parent),
        None => pattern == name,
    }
}

/// The cost of a full handshake by the key that signs it, with the key exchange that browsers offer (X25519MLKEM768):
/// P-256 and RSA 2048 measured, the others estimated from the cost of signing (`docs/LIMITS.md`).
fn price_ns(key: &CertifiedKey) -> u64 {
    let public_key_bytes = key.key.public_key().map_or(0, |key| key.len());
    match key.key.algorithm() {
        SignatureAlgorithm::RSA => match public_key_bytes {
            ..=300 => 341_000,
            301..=430 => 820_000,
            _ => 1_700_000,
        },
        SignatureAlgorithm::ECDSA if public_key_bytes > 130 => 400_000,
        SignatureAlgorithm::ECDSA if public_key_bytes > 100 => 230_000,
        _ => 119_000,
    }
}

/// From when to when a certificate is valid (RFC 5280 4.1.2.5), in seconds since 1970.
fn validity(certificate: &[u8]) -> Option<(u64, u64)> {
    const SEQUENCE: u8 = 0x30;
    const VERSION: u8 = 0xa0;
    let (_, certificate) = Der(certificate).next(Some(SEQUENCE))?;
    let (mut fields, _) = Der(certificate.0).split(SEQUENCE)?;
    if fields.0.first() == Some(&VERSION) {
        fields.next(Some(VERSION))?;
    }
    // Its number, its signature's algorithm, its issuer.
    for _ in 0..3 {
        fields.next(None)?;
    }
    let (mut dates, _) = fields.split(SEQUENCE)?;
    Some((dates.time()?, dates.time()?))
}

/// The unread rest of DER.
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    /// Takes the next value; its tag, and what is in it.
    fn next(&mut self, tag: Option<u8>) -> Option<(u8, Der<'a>)> {
        let (&found, rest) = self.0.split_first()?;
        let (&short, rest) = rest.split_first()?;
        let (len, rest) = match short {
            ..=0x7f => (usize::from(short), rest),
            0x81 => (usize::from(*rest.first()?), rest.get(1..)?),
            0x82 => (usize::from(u16::from_be_bytes(*rest.first_chunk()?)), rest.get(2..)?),
            // No certificate has parts beyond 64 KiB.
            _ => return None,
        };
        let content = rest.get(..len)?;
        self.0 = &rest[len..];
        (tag.is_none_or(|tag| tag == found)).then_some((found, Der(content)))
    }

    /// The inside of the next value, and what follows it.
    fn split(mut self, tag: u8) -> Option<(Der<'a>, Der<'a>)> {
        let (_, inside) = self.next(Some(tag))?;
        Some((inside, self))
    }

    /// UTCTime or GeneralizedTime, as certificates write them: to the second, in UTC.
    fn time(&mut self) -> Option<u64> {
        const UTC_TIME: u8 = 0x17;
        let (tag, text) = self.next(None)?;
        let digits = text.0.strip_suffix(b"Z")?;
        let number = |from: usize, to: usize| std::str::from_utf8(digits.get(from..to)?).ok()?.parse::<u64>().ok();
        let (year, at) = if tag == UTC_TIME {
            // RFC 5280 4.1.2.5.1: two digits, from 1950 on.
            let year = number(0, 2)?;
            (if year < 50 { 2000 + year } else { 1900 + year }, 2)
        } else {
            (number(0, 4)?, 4)
        };
        let part = |at: usize| number(at, at + 2);
        let days = days_since_1970(year, part(at)?, part(at + 2)?)?;
        Some(((days * 24 + part(at + 4)?) * 60 + part(at + 6)?) * 60 + part(at + 8)?)
    }
}

/// Of the Gregorian calendar. Dates before 1970 count as that day.
fn days_since_1970(year: u64, month: u64, day: u64) -> Option<u64> {
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    // Years that begin in March: a leap day is the last of one.
    let year = if month <= 2 { year.checked_sub(1)? } else { year };
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let days = year * 365 + year / 4 - year / 100 + year / 400 + day_of_year;
    Some(days.saturating_sub(719_468))
}

#[cfg(test)]
#[path = "certificate_tests.rs"]
mod tests;
