//! Access to the API: only requests with its token, and none from a page of another site, even with the token; and of
//! those only what the API serves.
//!
//! Invariants: the token is compared in constant time, and is never shown; all of this is judged by the head, before a
//! byte of the body is taken in.

use super::answer::ApiAnswer;
use super::request::{self, ApiCall};
use crate::gateway::{ContractRequest, HeadCheck};
use crate::http::PreparedResponse;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// The least bytes of a token: as much as one that `openssl rand -base64 12` makes.
const TOKEN_BYTES_MIN: usize = 16;

/// The API's token, as its digest: what is compared says nothing of how much of it was right.
#[derive(Clone)]
pub struct ApiToken([u8; 32]);

/// A token that is too short to be worth anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a token of at least {TOKEN_BYTES_MIN} characters is needed")]
pub struct TokenTooShort;

impl ApiToken {
    /// `text` without white space around it.
    ///
    /// # Errors
    /// It is too short.
    pub fn new(text: &str) -> Result<Self, TokenTooShort> {
        let text = text.trim();
        if text.len() < TOKEN_BYTES_MIN { Err(TokenTooShort) } else { Ok(Self(Sha256::digest(text).into())) }
    }

    fn is(&self, shown: &str) -> bool {
        let shown: [u8; 32] = Sha256::digest(shown).into();
        std::iter::zip(self.0, shown).fold(0, |differs, (ours, theirs)| differs | (ours ^ theirs)) == 0
    }
}

/// See the module.
pub(super) struct ApiGuard {
    token: ApiToken,
    /// The part of a path before `/api`.
    prefix: Arc<str>,
}

impl fmt::Debug for ApiGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiGuard(..)")
    }
}

impl HeadCheck for ApiGuard {
    fn check(&self, request: &ContractRequest) -> Result<(), PreparedResponse> {
        self.judge(request).map_err(ApiAnswer::into_response)
    }
}

impl ApiGuard {
    pub(super) fn new(token: ApiToken, prefix: Arc<str>) -> Self {
        Self { token, prefix }
    }

    fn judge(&self, asked: &ContractRequest) -> Result<(), ApiAnswer> {
        request::check_repeated(asked)?;
        self.admit(&asked.headers)?;
        match ApiCall::of(&asked.method, request::path_of(asked, &self.prefix)?)? {
            ApiCall::Push => request::check_push(asked),
            ApiCall::Topics | ApiCall::Topic(_) | ApiCall::Channel(_) | ApiCall::Close(_) => Ok(()),
        }
    }

    /// Whether a request with these fields, named in lower case, is looked at.
    fn admit(&self, headers: &BTreeMap<String, String>) -> Result<(), ApiAnswer> {
        let field = |name: &str| headers.get(name).map(String::as_str);
        // Browsers say where a request comes from (Fetch Metadata; RFC 6454). No page has any business here.
        let is_foreign = |site: &str| !matches!(site, "same-origin" | "none");
        if field("sec-fetch-site").is_some_and(is_foreign) || !is_own(field("origin"), field("host")) {
            return Err(ApiAnswer::error(403, None, "pages of other sites may not use this"));
        }
        let shown = field("authorization").and_then(|value| value.split_once(' '));
        let bearer = shown.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")).map(|(_, token)| token.trim());
        match bearer {
            Some(shown) if self.token.is(shown) => Ok(()),
            Some(_) => Err(unauthorized("the token is wrong: it is in the file api_token_file")),
            None => Err(unauthorized("this needs the token of api_token_file: Authorization: Bearer TOKEN")),
        }
    }
}

fn is_own(origin: Option<&str>, host: Option<&str>) -> bool {
    let Some(origin) = origin else { return true };
    let own =
        |scheme: &str| origin.strip_prefix(scheme).zip(host).is_some_and(|(of, host)| of.eq_ignore_ascii_case(host));
    own("http://") || own("https://")
}

/// RFC 9110 section 15.5.2: a 401 names the scheme.
fn unauthorized(why: &str) -> ApiAnswer {
    ApiAnswer::error(401, None, why).with("www-authenticate", "Bearer realm=\"pushring\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_shows_the_token_and_is_no_foreign_page_is_let_in() {
        let guard = ApiGuard::new(ApiToken::new(" 0123456789abcdef\n").unwrap(), "".into());
        assert!(!format!("{guard:?}").contains("0123"));
        assert!(ApiToken::new("short").is_err());
        let status = |fields: &[(&str, &str)]| {
            let headers = fields.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
            guard.admit(&headers).map_or_else(|answer| answer.status, |()| 200)
        };
        let good = ("authorization", "Bearer 0123456789abcdef");
        let host = ("host", "127.0.0.1:9465");
        assert_eq!(status(&[good]), 200);
        assert_eq!(status(&[("authorization", "bearer  0123456789abcdef")]), 200);
        for bad in ["", "Bearer", "Bearer x", "Bearer 0123456789abcdeg", "Basic 0123456789abcdef", "0123456789abcdef"] {
            assert_eq!(status(&[("authorization", bad)]), 401, "{bad}");
        }
        assert_eq!(status(&[]), 401);
        for site in ["cross-site", "same-site", "", "CROSS-SITE"] {
            assert_eq!(status(&[good, ("sec-fetch-site", site)]), 403, "{site}");
        }
        assert_eq!(status(&[good, ("sec-fetch-site", "none")]), 200);
        for origin in ["https://evil.example", "null", "http://127.0.0.1", "http://127.0.0.1:9465.evil.example"] {
            assert_eq!(status(&[good, host, ("origin", origin)]), 403, "{origin}");
        }
        assert_eq!(status(&[good, ("origin", "http://127.0.0.1:9465")]), 403, "without a host it is nobody's");
        assert_eq!(status(&[good, host, ("origin", "http://127.0.0.1:9465")]), 200);
    }
}
