//! A client's rights at the hub: the claims of its token, checked when it connects.
//!
//! A hub's token is a JSON Web Token (RFC 7519) that names the hub in `aud`. It is signed either with a secret of the
//! hub's own, or by an authority whose public keys the hub has. A login token has no such `aud` and is signed with
//! another secret, so neither is accepted in place of the other.
//!
//! Invariants: claims are read only after the signature is verified; whatever a token does not allow is refused; no
//! pattern matches the names that the broker reserves; no token appears in an error or in debug output.

use super::auth::{self, Secret, TokenError};
use crate::admission::HeapBytes;
use crate::http::{Head, cookies};
use crate::words::topic;
use serde::Deserialize;
use std::fmt;
use std::sync::Arc;

/// The cookie that a token may come in.
pub(super) const COOKIE: &str = "pushring-hub";

/// The prefix of a subprotocol that carries a token.
const PROTOCOL_PREFIX: &str = "bearer.";

/// Topics that a token may subscribe to at once, as many as a channel has by default.
const TOPICS_MAX: usize = 128;

/// Patterns of each kind in a token.
const PATTERNS_MAX: usize = 64;

const WRONG_SUBSCRIBE: TokenError =
    TokenError::Claim("may_subscribe has 64 patterns at most: names of topics, or their beginnings and *");
const WRONG_PUBLISH: TokenError =
    TokenError::Claim("may_publish has 64 patterns at most: names of topics, or their beginnings and *");
const WRONG_TOPICS: TokenError =
    TokenError::Claim("topics has 128 names at most, of 1 to 255 bytes, none of them reserved");
const WRONG_USER: TokenError = TokenError::Claim("sub has 1 to 200 bytes");

/// The hub's rules of entry.
#[derive(Debug, Clone, Default)]
pub struct HubAccess {
    /// The key of its tokens. Without it, and without an authority, no token opens it.
    pub secret: Option<Secret>,
    /// The value that `aud` must have in tokens signed with the secret.
    pub audience: String,
    /// The authority that signs the tokens; if there is one, the secret is not accepted.
    pub authority: Option<TokenAuthority>,
    /// How long a token opens it at a time, in seconds, however far off its own end is; none: until then.
    pub lifetime_max_s: Option<u64>,
    /// The rights of clients without a token; none: they are refused.
    pub open: Option<Arc<Grant>>,
}

/// An authority that signs tokens with a private key.
#[derive(Debug, Clone)]
pub struct TokenAuthority {
    /// The value that `iss` of a token must have.
    pub issuer: String,
    /// The value that `aud` of a token must have.
    pub audience: String,
    /// By which it is known.
    pub keys: Arc<dyn PublicKeys>,
}

/// Keys that tell whether a token was signed.
pub trait PublicKeys: fmt::Debug + Send + Sync {
    /// The claims of a token that was signed by one of them, still in base64url.
    ///
    /// # Errors
    /// It was not, or which key that would be is not known (yet).
    fn payload<'t>(&self, token: &'t str) -> Result<&'t str, TokenError>;
}

/// A client's rights.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Grant {
    /// The user; none: anonymous.
    pub user: Option<Box<str>>,
    /// Topics to which it is subscribed at once.
    pub topics: Vec<Arc<str>>,
    /// Topics to which it may subscribe.
    pub may_subscribe: Vec<TopicPattern>,
    /// Topics to which it may publish.
    pub may_publish: Vec<TopicPattern>,
    /// The second after 1970 from which all that is over; none: never.
    pub expires_unix_s: Option<u64>,
    /// Its topics are all that it will ever be subscribed to: of an event stream, whose client names them when it comes
    /// back.
    pub is_fixed: bool,
}

impl Grant {
    /// The topics to which a channel is subscribed as it opens: its user's, and those that are named.
    pub fn own_topics(&self) -> impl Iterator<Item = Arc<str>> {
        let of_user = self.user.as_deref().and_then(topic::of_user).map(Arc::from);
        of_user.into_iter().chain(self.topics.iter().cloned())
    }
}

/// Names of topics: one, or all that begin alike (`public.*`; `*` is all).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicPattern {
    text: Box<str>,
    /// Whether the text is the beginning of names, rather than one.
    is_prefix: bool,
}

impl TopicPattern {
    /// Reads a pattern: a name, or the beginning of names and `*`. None: it is too long, or reaches what is reserved.
    pub fn parse(text: &str) -> Option<Self> {
        let (name, is_prefix) = text.strip_suffix('*').map_or((text, false), |prefix| (prefix, true));
        let is_lawful =
            name.len() <= topic::TOPIC_BYTES_MAX && !topic::is_reserved(name) && (is_prefix || !name.is_empty());
        is_lawful.then(|| Self { text: name.into(), is_prefix })
    }

    /// Returns whether a name is among them.
    pub fn matches(&self, name: &str) -> bool {
        if topic::is_reserved(name) {
            return false;
        }
        match self.is_prefix {
            true => name.len() > self.text.len() && name.starts_with(&*self.text),
            false => name == &*self.text,
        }
    }
}

/// Claims as they are written. Unknown ones are ignored (RFC 7519 section 4).
#[derive(Deserialize)]
struct GrantClaims {
    iss: Option<String>,
    aud: Option<TokenAudience>,
    sub: Option<String>,
    exp: Option<f64>,
    nbf: Option<f64>,
    #[serde(default)]
    topics: Vec<String>,
    #[serde(default)]
    may_subscribe: Vec<String>,
    #[serde(default)]
    may_publish: Vec<String>,
}

/// RFC 7519 section 4.1.3: one, or several.
#[derive(Deserialize)]
#[serde(untagged)]
enum TokenAudience {
    One(String),
    Several(Vec<String>),
}

impl TokenAudience {
    fn names(&self, audience: &str) -> bool {
        match self {
            Self::One(one) => one == audience,
            Self::Several(several) => several.iter().any(|one| one == audience),
        }
    }
}

/// Where a token came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Carrier {
    /// The client put it there itself.
    Own,
    /// A cookie, which browsers send along with requests of any page.
    Cookie,
}

/// The token that a request carries: as a subprotocol, in `Authorization`, or in the cookie.
pub(super) fn token_of<'h>(head: &'h Head<'_>) -> Result<Option<(&'h str, Carrier)>, TokenError> {
    let mut found = None;
    let fields = |name: &'static str| head.headers().iter().filter(move |field| field.name.eq_ignore_ascii_case(name));
    let text = |value: &'h [u8]| std::str::from_utf8(value).map_err(|_| TokenError::Malformed);
    for field in fields("sec-websocket-protocol") {
        for element in text(field.value)?.split(',').map(str::trim) {
            if let Some(token) = element.strip_prefix(PROTOCOL_PREFIX)
                && found.replace((token, Carrier::Own)).is_some()
            {
                return Err(TokenError::Doubled);
            }
        }
    }
    for field in fields("authorization") {
        let scheme = text(field.value)?.split_once(' ');
        if let Some((_, token)) = scheme.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            && found.replace((token.trim(), Carrier::Own)).is_some()
        {
            return Err(TokenError::Doubled);
        }
    }
    if found.is_none() {
        let cookie = cookies::find(head, COOKIE).map_err(|_| TokenError::Doubled)?;
        found = cookie.filter(|token| !token.is_empty()).map(|token| (token, Carrier::Cookie));
    }
    Ok(found)
}

impl HubAccess {
    /// The rights that a token grants.
    ///
    /// # Errors
    /// The first rule it breaks.
    pub fn open(&self, token: &str, now_unix_s: u64) -> Result<Grant, TokenError> {
        let claims = self.claims(token)?;
        let now_s = now_unix_s as f64;
        if claims.exp.is_some_and(|exp_s| exp_s <= now_s) {
            return Err(TokenError::Expired);
        }
        if claims.nbf.is_some_and(|nbf_s| nbf_s > now_s) {
            return Err(TokenError::NotYet);
        }
        if claims.sub.as_ref().is_some_and(|user| topic::of_user(user).is_none()) {
            return Err(WRONG_USER);
        }
        if claims.topics.len() > TOPICS_MAX {
            return Err(WRONG_TOPICS);
        }
        let name = |name: String| -> Result<Arc<str>, TokenError> {
            let is_lawful = topic::check(&name).is_ok() && !topic::is_reserved(&name);
            if is_lawful { Ok(name.into()) } else { Err(WRONG_TOPICS) }
        };
        Ok(Grant {
            user: claims.sub.map(Into::into),
            topics: claims.topics.into_iter().map(name).collect::<Result<_, _>>()?,
            may_subscribe: patterns(&claims.may_subscribe).ok_or(WRONG_SUBSCRIBE)?,
            may_publish: patterns(&claims.may_publish).ok_or(WRONG_PUBLISH)?,
            expires_unix_s: self.end_unix_s(claims.exp, now_unix_s),
            is_fixed: false,
        })
    }

    /// The claims of a token for this hub, if it is signed by the hub's secret or authority.
    fn claims(&self, token: &str) -> Result<GrantClaims, TokenError> {
        let (claims, audience): (GrantClaims, &str) = match (&self.authority, &self.secret) {
            (Some(authority), _) => {
                let claims: GrantClaims = auth::parse(authority.keys.payload(token)?)?;
                if claims.iss.as_deref() != Some(&authority.issuer) {
                    return Err(TokenError::Issuer);
                }
                (claims, &authority.audience)
            }
            (None, Some(secret)) => (secret.claims(token)?, &self.audience),
            (None, None) => return Err(TokenError::NoSecret),
        };
        if !claims.aud.as_ref().is_some_and(|aud| aud.names(audience)) {
            return Err(TokenError::Audience);
        }
        // Removing a key from the set revokes none of the tokens that it signed, so each must expire.
        if self.authority.is_some() && claims.exp.is_none() {
            return Err(TokenError::Endless);
        }
        Ok(claims)
    }

    /// When a token that was shown now is over. Past the largest number it never is.
    fn end_unix_s(&self, exp_s: Option<f64>, now_unix_s: u64) -> Option<u64> {
        let latest = self.lifetime_max_s.map(|lifetime_s| now_unix_s.saturating_add(lifetime_s));
        let own = exp_s.map(|exp_s| exp_s.ceil() as u64);
        own.into_iter().chain(latest).min()
    }

    /// Returns whether judging a request has cost what checking a signature by a public key does.
    pub(crate) fn checks_signature_of(&self, head: &Head<'_>) -> bool {
        self.authority.is_some() && !matches!(token_of(head), Ok(None))
    }
}

/// Reads patterns. None: one is none, or there are too many.
pub fn patterns(texts: &[String]) -> Option<Vec<TopicPattern>> {
    if texts.len() > PATTERNS_MAX {
        return None;
    }
    texts.iter().map(|text| TopicPattern::parse(text)).collect()
}

impl HeapBytes for Grant {
    fn heap_bytes(&self) -> usize {
        let patterns = |patterns: &Vec<TopicPattern>| {
            let texts: usize = patterns.iter().map(|pattern| pattern.text.len()).sum();
            patterns.capacity() * size_of::<TopicPattern>() + texts
        };
        let own = 2 * size_of::<usize>() + size_of::<Self>();
        own + self.user.heap_bytes()
            + self.topics.heap_bytes()
            + patterns(&self.may_subscribe)
            + patterns(&self.may_publish)
    }
}

impl Grant {
    /// The same, subscribed at once to these too and to nothing else later, with an envelope or without.
    ///
    /// # Errors
    /// Why it may not be, in one sentence.
    pub(super) fn for_stream(&self, names: Vec<String>, envelope: bool) -> Result<Self, &'static str> {
        // Before they are looked at: each is compared with all that may be subscribed to.
        if self.topics.len() + names.len() > TOPICS_MAX {
            return Err("that is more topics than a channel may have");
        }
        let mut grant = Self { is_fixed: true, ..self.clone() };
        let mut named = Vec::with_capacity(names.len());
        for name in names {
            if topic::check(&name).is_err() || !self.may_subscribe(&name) {
                return Err("one of these topics may not be subscribed to");
            }
            named.push(Arc::from(name));
        }
        grant.topics.extend(named);
        if envelope {
            let twins = grant.topics.iter().map(|name| topic::enveloped(name).map(Arc::from));
            grant.topics =
                twins.collect::<Option<_>>().ok_or("the name of one of these topics is too long for an envelope")?;
        }
        Ok(grant)
    }

    /// Returns whether it may subscribe to a topic: one that its token subscribes to, or allows.
    pub fn may_subscribe(&self, name: &str) -> bool {
        if self.is_fixed {
            return false;
        }
        self.topics.iter().any(|topic| &**topic == name)
            || self.may_subscribe.iter().any(|pattern| pattern.matches(name))
    }

    /// Returns whether another allows the same, until whenever.
    #[cfg_attr(not(feature = "driver"), allow(dead_code))]
    pub(crate) fn allows_the_same(&self, other: &Self) -> bool {
        let Self { user, topics, may_subscribe, may_publish, expires_unix_s: _, is_fixed } = self;
        (user, topics, may_subscribe, may_publish, is_fixed)
            == (&other.user, &other.topics, &other.may_subscribe, &other.may_publish, &other.is_fixed)
    }

    /// Returns whether it is over.
    #[cfg_attr(not(feature = "driver"), allow(dead_code))]
    pub(crate) fn has_ended(&self, now_unix_s: u64) -> bool {
        self.expires_unix_s.is_some_and(|end_s| end_s <= now_unix_s)
    }

    /// Returns whether it may publish to a topic.
    pub fn may_publish(&self, name: &str) -> bool {
        self.may_publish.iter().any(|pattern| pattern.matches(name))
    }
}

#[cfg(test)]
#[path = "grant_tests.rs"]
mod tests;
