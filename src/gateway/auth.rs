//! Tokens: JSON Web Tokens (RFC 7519) signed with HMAC-SHA256, made and checked.
//!
//! Of a node's tokens only HS256 is accepted: the header never chooses the key or the algorithm. Claims are read only
//! after the signature is verified, in constant time.

use crate::words::strict;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL};
use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use std::fmt;

/// The key of a node's tokens. It is never shown.
#[derive(Clone)]
pub struct Secret(Hmac<Sha256>);

/// A key that protects nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the token secret is empty")]
pub struct SecretError;

impl Secret {
    /// A key of these bytes.
    ///
    /// # Errors
    /// When there are none.
    pub fn new(bytes: &[u8]) -> Result<Self, SecretError> {
        if bytes.is_empty() {
            return Err(SecretError);
        }
        Hmac::new_from_slice(bytes).map(Self).map_err(|_| SecretError)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// The claims of a token (node contract, section 5).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// The node that issued it.
    pub username: String,
    /// The process whose secure subdomain it is for; `None` for the node as a whole.
    #[serde(default)]
    pub subdomain: Option<String>,
    /// The second after 1970 from which it is worth nothing.
    pub expiration: u64,
}

/// The times of RFC 7519 sections 4.1.4 and 4.1.5, which no node writes but other issuers may, beside the claims of a
/// node. Seconds after 1970, with a fraction perhaps.
#[derive(Deserialize)]
struct Times {
    exp: Option<f64>,
    nbf: Option<f64>,
}

impl Times {
    fn check(&self, now_unix_s: u64) -> Result<(), TokenError> {
        let now_s = now_unix_s as f64;
        if self.exp.is_some_and(|exp_s| exp_s <= now_s) {
            return Err(TokenError::Expired);
        }
        if self.nbf.is_some_and(|nbf_s| nbf_s > now_s) {
            return Err(TokenError::NotYet);
        }
        Ok(())
    }
}

/// Why a token, or what should have carried one, is refused. Always the client's fault but for `NoSecret`. The words
/// may be told to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    /// No cookie of the name.
    #[error("there is no token")]
    Missing,
    /// Several cookies of the name.
    #[error("there is more than one token")]
    Doubled,
    /// Not three parts of base64url JSON with the claims of a node.
    #[error("the token is malformed")]
    Malformed,
    /// Longer than any that is looked at.
    #[error("the token has more than {TOKEN_BYTES_MAX} bytes")]
    TooLong,
    /// A claim of a hub's token that is none, or is over its limit: which, and what it may be.
    #[error("the token's claim {0}")]
    Claim(&'static str),
    /// An algorithm other than HS256.
    #[error("the token is not signed with HS256")]
    Algorithm,
    /// Signed with an algorithm that no public key of ours has.
    #[error("the token is not signed with RS256, ES256 or EdDSA")]
    NoPublicKeyAlgorithm,
    /// The key that it names is not, or no longer, among those of the authority.
    #[error("the token's key is unknown")]
    KeyUnknown,
    /// The key that it names is not known yet: keys are being fetched.
    #[error("the keys of the tokens' authority are being fetched: try again in a second")]
    KeysPending,
    /// From another authority.
    #[error("the token is another issuer's")]
    Issuer,
    /// It has no `exp`, where one is needed.
    #[error("the token has no expiry (exp)")]
    Endless,
    /// Not signed with this node's key.
    #[error("the token's signature is not valid")]
    Signature,
    /// For another node.
    #[error("the token is for another node")]
    Node,
    /// Its `aud` is missing, or names another audience.
    #[error("the token is for another audience")]
    Audience,
    /// For another subdomain, or for the node where a subdomain is needed, or the reverse.
    #[error("the token is for another subdomain")]
    Subdomain,
    /// Too old.
    #[error("the token has expired")]
    Expired,
    /// Its `nbf` is to come.
    #[error("the token is not valid yet")]
    NotYet,
    /// The server has no key.
    #[error("this server has no token secret")]
    NoSecret,
}

/// `{"alg":"HS256"}` in base64url: what nodes write, byte for byte.
const HEADER: &str = "eyJhbGciOiJIUzI1NiJ9";

/// The longest token that is looked at: several times what the longest names need.
const TOKEN_BYTES_MAX: usize = 4096;

/// Makes a token.
pub fn mint(secret: &Secret, claims: &Claims) -> String {
    let claims = serde_json::to_vec(claims).expect("claims are plain JSON and the writer is memory");
    let mut token = format!("{HEADER}.{}", BASE64URL.encode(claims));
    let mut mac = secret.0.clone();
    mac.update(token.as_bytes());
    token.push('.');
    BASE64URL.encode_string(mac.finalize().into_bytes(), &mut token);
    token
}

#[derive(Deserialize)]
struct JwsHeader {
    alg: String,
    kid: Option<String>,
    /// Extensions that must be understood (RFC 7515 section 4.1.11); we understand none. Whatever it is, `null` too.
    #[serde(default, deserialize_with = "is_there")]
    crit: bool,
}

fn is_there<'de, D: serde::Deserializer<'de>>(from: D) -> Result<bool, D::Error> {
    serde::de::IgnoredAny::deserialize(from).map(|_| true)
}

/// A token taken apart (RFC 7515 section 7.1): nothing of it is believed yet.
pub struct Jws<'t> {
    header: JwsHeader,
    signed: &'t str,
    payload: &'t str,
    signature: Vec<u8>,
}

impl<'t> Jws<'t> {
    /// Takes a token apart.
    ///
    /// # Errors
    /// It is none, or wants something understood that we do not.
    #[cfg_attr(not(feature = "tls"), allow(dead_code))]
    pub fn parse(token: &'t str) -> Result<Self, TokenError> {
        let Parts { signed, header, payload, signature } = Parts::of(token)?;
        let header: JwsHeader = parse(header)?;
        if header.crit {
            return Err(TokenError::Malformed);
        }
        let signature = BASE64URL.decode(signature).map_err(|_| TokenError::Signature)?;
        Ok(Self { header, signed, payload, signature })
    }

    /// The algorithm that it says it is signed with.
    pub fn alg(&self) -> &str {
        &self.header.alg
    }

    /// The name of the key.
    pub fn kid(&self) -> Option<&str> {
        self.header.kid.as_deref()
    }

    /// The signed part.
    pub fn signed(&self) -> &'t str {
        self.signed
    }

    /// Its claims, in base64url.
    pub fn payload(&self) -> &'t str {
        self.payload
    }

    /// By what.
    pub fn signature(&self) -> &[u8] {
        &self.signature
    }
}

/// The parts of a token, as they were written.
struct Parts<'t> {
    signed: &'t str,
    header: &'t str,
    payload: &'t str,
    signature: &'t str,
}

impl<'t> Parts<'t> {
    fn of(token: &'t str) -> Result<Self, TokenError> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(TokenError::TooLong);
        }
        let (signed, signature) = token.rsplit_once('.').ok_or(TokenError::Malformed)?;
        let (header, payload) = signed.split_once('.').ok_or(TokenError::Malformed)?;
        if payload.contains('.') { Err(TokenError::Malformed) } else { Ok(Self { signed, header, payload, signature }) }
    }
}

impl Secret {
    /// The claims of a token that was signed with this key, whatever they are.
    ///
    /// # Errors
    /// When it was not, or is no token.
    pub fn open(&self, token: &str) -> Result<Claims, TokenError> {
        parse(self.payload(token)?)
    }

    /// The claims of a token signed with this key.
    ///
    /// # Errors
    /// It is no token, was not signed with this key, or claims something else.
    pub(super) fn claims<T: serde::de::DeserializeOwned>(&self, token: &str) -> Result<T, TokenError> {
        parse(self.payload(token)?)
    }

    /// The signed claims, still in base64url.
    fn payload<'t>(&self, token: &'t str) -> Result<&'t str, TokenError> {
        let Parts { signed, header, payload, signature } = Parts::of(token)?;
        if header != HEADER {
            let header: JwsHeader = parse(header)?;
            if header.alg != "HS256" {
                return Err(TokenError::Algorithm);
            }
            if header.crit {
                return Err(TokenError::Malformed);
            }
        }
        let mut sent = [0; 64];
        let sent_bytes = BASE64URL.decode_slice(signature, &mut sent).map_err(|_| TokenError::Signature)?;
        let mut mac = self.0.clone();
        mac.update(signed.as_bytes());
        mac.verify_slice(&sent[..sent_bytes]).map_err(|_| TokenError::Signature)?;
        Ok(payload)
    }

    /// Checks a token for `node` at `now_unix_s`, and that `subdomain` is acceptable for what it should open.
    ///
    /// # Errors
    /// The first rule it breaks.
    pub fn verify(
        &self,
        token: &str,
        node: &str,
        now_unix_s: u64,
        subdomain: impl FnOnce(Option<&str>) -> bool,
    ) -> Result<(), TokenError> {
        let payload = self.payload(token)?;
        let claims: Claims = parse(payload)?;
        if claims.username != node {
            return Err(TokenError::Node);
        }
        if !subdomain(claims.subdomain.as_deref()) {
            return Err(TokenError::Subdomain);
        }
        if claims.expiration <= now_unix_s {
            return Err(TokenError::Expired);
        }
        parse::<Times>(payload)?.check(now_unix_s)
    }
}

/// Decodes a part of a token, which is a JSON object (RFC 7519 section 7.2).
pub(super) fn parse<T: serde::de::DeserializeOwned>(part: &str) -> Result<T, TokenError> {
    let bytes = BASE64URL.decode(part).map_err(|_| TokenError::Malformed)?;
    strict::object(&bytes).ok_or(TokenError::Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_000;

    fn secret() -> Secret {
        Secret::new(b"key").unwrap()
    }

    fn claims(username: &str, subdomain: Option<&str>, expiration: u64) -> Claims {
        Claims { username: username.into(), subdomain: subdomain.map(Into::into), expiration }
    }

    fn check(token: &str) -> Result<(), TokenError> {
        secret().verify(token, "fake.os", NOW, |subdomain| subdomain.is_none())
    }

    /// Signs any header and payload with `key`.
    fn forge(key: &[u8], header: &str, payload: &str) -> String {
        let signed = format!("{}.{}", BASE64URL.encode(header), BASE64URL.encode(payload));
        let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap();
        mac.update(signed.as_bytes());
        format!("{signed}.{}", BASE64URL.encode(mac.finalize().into_bytes()))
    }

    #[test]
    fn a_minted_token_is_what_nodes_write() {
        let token = mint(&secret(), &claims("fake.os", None, 1_811_143_488));
        let node_wrote = "eyJhbGciOiJIUzI1NiJ9.eyJ1c2VybmFtZSI6ImZha2Uub3MiLCJzdWJkb21haW4iOm51bGwsImV4cGlyYXRpb24iOjE4MTExNDM0ODh9.";
        assert!(token.starts_with(node_wrote), "{token}");
        assert_eq!(check(&token), Ok(()));
        assert_eq!(secret().open(&token), Ok(claims("fake.os", None, 1_811_143_488)));
    }

    #[test]
    fn known_answer() {
        // RFC 7515 appendix A.1: header with white space and `typ`, 64-byte key.
        let key = BASE64URL
            .decode("AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow")
            .unwrap();
        let token = "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
        let key = Secret::new(&key).unwrap();
        assert_eq!(key.open(token), Err(TokenError::Malformed), "signed, but no claims of a node");
        let torn = token.replace("dBjf", "eBjf");
        assert_eq!(key.open(&torn), Err(TokenError::Signature));
    }

    #[test]
    fn forged_tokens_are_refused_each_for_its_reason() {
        let good = r#"{"username":"fake.os","subdomain":null,"expiration":2000}"#;
        let hs256 = r#"{"alg":"HS256"}"#;
        let none = format!("{}.{}.", BASE64URL.encode(r#"{"alg":"none"}"#), BASE64URL.encode(good));
        let unsigned = format!("{}.{}.", BASE64URL.encode(hs256), BASE64URL.encode(good));
        let valid = forge(b"key", hs256, good);
        let cases = [
            (none, TokenError::Algorithm),
            (unsigned, TokenError::Signature),
            (forge(b"key", r#"{"alg":"HS512"}"#, good), TokenError::Algorithm),
            (forge(b"key", r#"{"alg":"hs256"}"#, good), TokenError::Algorithm),
            (forge(b"key", r#"{"alg":"RS256"}"#, good), TokenError::Algorithm),
            (forge(b"key", r#"{"alg":"none","alg":"HS256"}"#, good), TokenError::Malformed),
            (forge(b"key", r#"{"alg":"HS256","crit":["b64"],"b64":false}"#, good), TokenError::Malformed),
            (forge(b"key", r#"{"alg":"HS256","crit":null}"#, good), TokenError::Malformed),
            (forge(b"key", r#"["HS256",null,null]"#, good), TokenError::Malformed),
            (forge(b"key", hs256, r#"["fake.os",null,2000]"#), TokenError::Malformed),
            (forge(b"key", r#"{}"#, good), TokenError::Malformed),
            (forge(b"kez", hs256, good), TokenError::Signature),
            (forge(b"", hs256, good), TokenError::Signature),
            (forge(b"key", hs256, &good.replace("2000", "1000")), TokenError::Expired),
            (forge(b"key", hs256, &good.replace("fake.os", "fake.osx")), TokenError::Node),
            (forge(b"key", hs256, &good.replace("fake.os", "FAKE.OS")), TokenError::Node),
            (forge(b"key", hs256, &good.replace("null", r#""p:p:o""#)), TokenError::Subdomain),
            (forge(b"key", hs256, &good.replace("null", r#""""#)), TokenError::Subdomain),
            (forge(b"key", hs256, &good.replace("2000", "-1")), TokenError::Malformed),
            (forge(b"key", hs256, &good.replace("2000", "\"2000\"")), TokenError::Malformed),
            (forge(b"key", hs256, r#"{"username":"fake.os","subdomain":null}"#), TokenError::Malformed),
            (forge(b"key", hs256, "[]"), TokenError::Malformed),
            (format!("{valid}x"), TokenError::Signature),
            (format!("{valid}="), TokenError::Signature),
            (format!(" {valid}"), TokenError::Malformed),
            (valid[..valid.len() - 1].into(), TokenError::Signature),
            (valid.replacen('.', "..", 1), TokenError::Malformed),
            (format!("{valid}.{valid}"), TokenError::Malformed),
            ("".into(), TokenError::Malformed),
            ("..".into(), TokenError::Malformed),
            ("a.b".into(), TokenError::Malformed),
            ("x".repeat(5000), TokenError::TooLong),
        ];
        assert_eq!(check(&valid), Ok(()));
        for (token, error) in cases {
            assert_eq!(check(&token), Err(error), "{token}");
        }
    }

    #[test]
    fn the_times_of_other_issuers_count_beside_the_nodes_own() {
        let judge = |more: &str| {
            let claims = format!(r#"{{"username":"fake.os","subdomain":null,"expiration":2000,{more}}}"#);
            check(&forge(b"key", r#"{"alg":"HS256"}"#, &claims))
        };
        for good in [r#""exp":1001"#, r#""exp":1000.5"#, r#""nbf":1000,"exp":1e12"#, r#""nbf":-1"#, r#""iat":9e9"#] {
            assert_eq!(judge(good), Ok(()), "{good}");
        }
        for (bad, error) in [
            (r#""exp":1000"#, TokenError::Expired),
            (r#""exp":999.9"#, TokenError::Expired),
            (r#""exp":0"#, TokenError::Expired),
            (r#""nbf":1001"#, TokenError::NotYet),
            (r#""nbf":1000.1,"exp":3000"#, TokenError::NotYet),
            (r#""exp":"3000""#, TokenError::Malformed),
            (r#""nbf":[]"#, TokenError::Malformed),
            (r#""exp":3000,"exp":4000"#, TokenError::Malformed),
            (r#""exp":1e999"#, TokenError::Malformed),
        ] {
            assert_eq!(judge(bad), Err(error), "{bad}");
        }
    }

    #[test]
    fn every_changed_character_is_noticed() {
        let token = mint(&secret(), &claims("fake.os", None, 2000));
        for at in 0..token.len() {
            let mut torn = token.clone().into_bytes();
            torn[at] = if torn[at] == b'A' { b'B' } else { b'A' };
            let torn = String::from_utf8(torn).unwrap();
            assert!(check(&torn).is_err(), "changed at {at}");
        }
    }

    #[test]
    fn a_secret_is_not_empty_and_not_shown() {
        assert_eq!(Secret::new(b"").err(), Some(SecretError));
        assert_eq!(format!("{:?}", Secret::new(b"swordfish").unwrap()), "Secret");
    }
}
