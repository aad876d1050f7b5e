//! The public keys of an authority that signs tokens: a JSON Web Key Set (RFC 7517), and signatures by its keys (RFC
//! 7515, RFC 7518, RFC 8037).
//!
//! Invariants: a key has exactly one algorithm (RS256, ES256 or EdDSA), and a token that names another is refused, so
//! no public key is ever taken for the secret of HS256; a token's header chooses among the keys of the set and brings
//! none of its own (`jwk`, `jku` and `x5u` are not read); the number of keys, and the cost of checking a signature, are
//! bounded. It must not know where the set comes from.

mod wanted;

pub use wanted::KeysWanted;

use crate::gateway::{Jws, PublicKeys, TokenError};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ED25519, RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents, UnparsedPublicKey,
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL};
use serde::Deserialize;
use serde_json::Value;
use std::fmt;
use std::sync::Arc;

/// The largest set that is read: that many of the largest keys, with certificates beside them.
pub const SET_BYTES_MAX: usize = 256 << 10;

/// Keys of a set: authorities have two or three at a time.
const KEYS_MAX: usize = 100;

/// The largest modulus, in bytes: checking costs grow with its square. The smallest is RFC 7518's (section 3.3).
const RSA_BYTES_MAX: usize = 512;
const RSA_BYTES_MIN: usize = 256;

/// Text that is no set of keys.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SetError {
    /// Not what RFC 7517 section 5 says.
    #[error("it is no JSON Web Key Set ({0})")]
    Malformed(String),
    /// More keys than any authority has.
    #[error("it has {0} keys, more than {KEYS_MAX}")]
    TooMany(usize),
}

/// A key set, as its members are written (RFC 7517 section 5).
#[derive(Deserialize)]
struct WrittenSet {
    keys: Vec<Value>,
}

/// A key, as far as it concerns us (RFC 7517 section 4, RFC 7518 section 6, RFC 8037 section 2).
#[derive(Deserialize)]
struct WrittenKey {
    kty: String,
    kid: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    used_for: Option<String>,
    key_ops: Option<Vec<String>>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

/// The algorithm by which a key signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Algorithm {
    Rs256,
    Es256,
    EdDsa,
}

impl Algorithm {
    /// As tokens and keys name it; RFC 9864 has a second name for EdDSA with this curve.
    fn is_named(self, name: &str) -> bool {
        match self {
            Self::Rs256 => name == "RS256",
            Self::Es256 => name == "ES256",
            Self::EdDsa => matches!(name, "EdDSA" | "Ed25519"),
        }
    }
}

enum Material {
    Rsa {
        n: Vec<u8>,
        e: Vec<u8>,
    },
    /// An uncompressed point of P-256.
    P256([u8; 65]),
    Ed25519([u8; 32]),
}

struct Key {
    kid: Option<Box<str>>,
    material: Material,
}

impl Key {
    /// None: it is of a kind, or for a use, that is not ours (RFC 7517 section 5: such keys are ignored).
    fn read(written: Value) -> Option<Self> {
        let written: WrittenKey = written.is_object().then(|| serde_json::from_value(written).ok())??;
        let is_for_signatures = written.used_for.is_none_or(|used_for| used_for == "sig")
            && written.key_ops.is_none_or(|ops| ops.iter().any(|op| op == "verify"));
        let bytes = |text: Option<String>| BASE64URL.decode(text?).ok();
        let material = match (&*written.kty, written.crv.as_deref()) {
            ("RSA", _) => {
                let (n, e) = (bytes(written.n)?, bytes(written.e)?);
                let is_fit = (RSA_BYTES_MIN..=RSA_BYTES_MAX).contains(&n.len()) && (1..=4).contains(&e.len());
                is_fit.then_some(Material::Rsa { n, e })?
            }
            ("EC", Some("P-256")) => {
                let (x, y) = (bytes(written.x)?, bytes(written.y)?);
                let mut point = [4; 65];
                point.get_mut(1..33).filter(|half| half.len() == x.len())?.copy_from_slice(&x);
                point.get_mut(33..).filter(|half| half.len() == y.len())?.copy_from_slice(&y);
                Material::P256(point)
            }
            ("OKP", Some("Ed25519")) => Material::Ed25519(bytes(written.x)?.try_into().ok()?),
            _ => return None,
        };
        let key = Self { kid: written.kid.map(Into::into), material };
        let is_ours = is_for_signatures && written.alg.is_none_or(|alg| key.algorithm().is_named(&alg));
        is_ours.then_some(key)
    }

    fn algorithm(&self) -> Algorithm {
        match self.material {
            Material::Rsa { .. } => Algorithm::Rs256,
            Material::P256(_) => Algorithm::Es256,
            Material::Ed25519(_) => Algorithm::EdDsa,
        }
    }

    fn has_signed(&self, jws: &Jws<'_>) -> bool {
        let (message, signature) = (jws.signed().as_bytes(), jws.signature());
        match &self.material {
            Material::Rsa { n, e } => {
                RsaPublicKeyComponents { n, e }.verify(&RSA_PKCS1_2048_8192_SHA256, message, signature).is_ok()
            }
            Material::P256(point) => {
                UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).verify(message, signature).is_ok()
            }
            Material::Ed25519(key) => UnparsedPublicKey::new(&ED25519, key).verify(message, signature).is_ok(),
        }
    }
}

/// See the module. Never changed: another takes its place.
#[derive(Default)]
pub struct KeySet {
    keys: Vec<Key>,
    /// Requests another fetch; none: the keys are never fetched again.
    wanted: Option<Arc<KeysWanted>>,
    /// Whether the first set is still to come, so that no key can be called unknown yet.
    is_pending: bool,
}

impl KeySet {
    /// A set without keys, while the first are fetched.
    pub fn none_yet(wanted: Arc<KeysWanted>) -> Self {
        Self { keys: Vec::new(), wanted: Some(wanted), is_pending: true }
    }

    /// Reads a set. Keys of kinds that are not ours are left out; `wanted` is told of keys that are not in it.
    ///
    /// # Errors
    /// It is none.
    pub fn parse(text: &[u8], wanted: Option<Arc<KeysWanted>>) -> Result<Self, SetError> {
        let set: WrittenSet =
            serde_json::from_slice(text).map_err(|error| SetError::Malformed(format!("{:?}", error.classify())))?;
        if set.keys.len() > KEYS_MAX {
            return Err(SetError::TooMany(set.keys.len()));
        }
        Ok(Self { keys: set.keys.into_iter().filter_map(Key::read).collect(), wanted, is_pending: false })
    }

    /// How many keys may have signed a token.
    pub fn usable_keys(&self) -> usize {
        self.keys.len()
    }

    /// The one key that may have signed a token with this header.
    fn find(&self, alg: &str, kid: Option<&str>) -> Result<&Key, TokenError> {
        let is_known = [Algorithm::Rs256, Algorithm::Es256, Algorithm::EdDsa].iter().any(|known| known.is_named(alg));
        if !is_known {
            return Err(TokenError::NoPublicKeyAlgorithm);
        }
        let mut fitting = self.keys.iter().filter(|key| {
            let is_named = kid.is_none_or(|kid| key.kid.as_deref() == Some(kid));
            is_named && key.algorithm().is_named(alg)
        });
        match (fitting.next(), fitting.next()) {
            // Without a name it must be the only one: signatures are not tried with one key after another.
            (Some(key), None) => Ok(key),
            (Some(key), Some(_)) if kid.is_some() => Ok(key),
            _ if self.wanted.as_ref().is_some_and(|wanted| wanted.ask()) || self.is_pending => {
                Err(TokenError::KeysPending)
            }
            _ => Err(TokenError::KeyUnknown),
        }
    }
}

impl PublicKeys for KeySet {
    fn payload<'t>(&self, token: &'t str) -> Result<&'t str, TokenError> {
        let jws = Jws::parse(token)?;
        let key = self.find(jws.alg(), jws.kid())?;
        if key.has_signed(&jws) { Ok(jws.payload()) } else { Err(TokenError::Signature) }
    }
}

/// Keys are public, but do not belong in a log.
impl fmt::Debug for KeySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeySet({} keys)", self.keys.len())
    }
}

#[cfg(test)]
mod tests;
