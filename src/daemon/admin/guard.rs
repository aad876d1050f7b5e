//! Access to the admin listener: any web page can have its visitor's browser send to loopback, and any local user can
//! connect there.
//!
//! Invariants: requests of other sites' pages are refused whatever they carry; but for probes and metrics on loopback,
//! nothing is answered without the token; the token is compared in constant time, and never shown.

use axum::http::header::{AUTHORIZATION, HOST, ORIGIN};
use axum::http::{HeaderMap, StatusCode};
use pushring::internals::http::Authority;
use sha2::{Digest, Sha256};
use std::net::IpAddr;

/// The paths that loopback may read without a token: probes and collectors have none.
const OPEN_ON_LOOPBACK: [&str; 3] = ["/livez", "/readyz", "/metrics"];

/// The least bytes of a token: as much as one that `openssl rand -base64 12` makes.
const TOKEN_BYTES_MIN: usize = 16;

/// The token that operators show, as its digest: what is compared says nothing of how much of it was right.
#[derive(Clone)]
pub(crate) struct AdminToken([u8; 32]);

impl AdminToken {
    /// `text` without white space around it.
    ///
    /// # Errors
    /// It is too short to be worth anything.
    pub(crate) fn new(text: &str) -> anyhow::Result<Self> {
        let text = text.trim();
        anyhow::ensure!(text.len() >= TOKEN_BYTES_MIN, "a token of at least {TOKEN_BYTES_MIN} characters is needed");
        Ok(Self(Sha256::digest(text).into()))
    }

    fn is(&self, shown: &str) -> bool {
        let shown: [u8; 32] = Sha256::digest(shown).into();
        std::iter::zip(self.0, shown).fold(0, |differs, (ours, theirs)| differs | (ours ^ theirs)) == 0
    }
}

/// Why a request is refused: the status, and what the operator does about it.
pub(super) type AdminRefusal = (StatusCode, &'static str);

/// See the module.
#[derive(Clone)]
pub(crate) struct AdminGuard {
    token: Option<AdminToken>,
    /// Names besides loopback ones under which this listener may be asked.
    hosts: Vec<String>,
}

impl AdminGuard {
    /// Without a token, all that needs one is refused.
    pub(crate) fn new(token: Option<AdminToken>, hosts: Vec<String>) -> Self {
        Self { token, hosts }
    }

    /// Whether a request of `peer` for `path` is answered.
    ///
    /// # Errors
    /// See [`AdminRefusal`].
    pub(crate) fn admit(&self, peer: IpAddr, path: &str, headers: &HeaderMap) -> Result<(), AdminRefusal> {
        let host = self.host(headers)?;
        same_site(&host, headers)?;
        if peer.to_canonical().is_loopback() && OPEN_ON_LOOPBACK.contains(&path) {
            return Ok(());
        }
        let Some(token) = &self.token else {
            return Err((
                StatusCode::UNAUTHORIZED,
                "this needs the admin token, and none is set: set admin_token_file",
            ));
        };
        let shown = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        let shown = shown.and_then(|value| value.split_once(' '));
        let bearer = shown.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")).map(|(_, token)| token.trim());
        match bearer {
            Some(shown) if token.is(shown) => Ok(()),
            Some(_) => Err((StatusCode::UNAUTHORIZED, "the admin token is wrong: it is in the file admin_token_file")),
            None => Err((StatusCode::UNAUTHORIZED, "this needs the admin token: Authorization: Bearer TOKEN")),
        }
    }

    /// A page can make a name of its own resolve to loopback (DNS rebinding), but it cannot change the Host field.
    fn host(&self, headers: &HeaderMap) -> Result<String, AdminRefusal> {
        let told = headers.get(HOST).and_then(|value| value.to_str().ok()).unwrap_or("");
        let Some(authority) = Authority::parse(told) else {
            return Err((StatusCode::BAD_REQUEST, "the Host field is missing or malformed"));
        };
        let name = authority.host.to_ascii_lowercase();
        let address = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        let is_loopback = name == "localhost" || address.is_ok_and(|ip| ip.to_canonical().is_loopback());
        if is_loopback || self.hosts.iter().any(|known| known.eq_ignore_ascii_case(&name)) {
            return Ok(told.to_ascii_lowercase());
        }
        Err((StatusCode::MISDIRECTED_REQUEST, "this listener is not asked under that name: list it in admin_hosts"))
    }
}

/// Browsers say where a request comes from (Fetch Metadata; RFC 6454): only the listener's own pages may ask, and the
/// visitor by the address bar.
fn same_site(host: &str, headers: &HeaderMap) -> Result<(), AdminRefusal> {
    const FOREIGN: AdminRefusal = (StatusCode::FORBIDDEN, "pages of other sites may not ask this listener");
    if let Some(site) = headers.get("sec-fetch-site")
        && site != "same-origin"
        && site != "none"
    {
        return Err(FOREIGN);
    }
    let Some(origin) = headers.get(ORIGIN) else { return Ok(()) };
    let origin = origin.to_str().unwrap_or("").to_ascii_lowercase();
    let own = ["http://", "https://"].iter().any(|scheme| origin.strip_prefix(scheme) == Some(host));
    if own { Ok(()) } else { Err(FOREIGN) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::{HeaderName, HeaderValue};
    use std::net::Ipv4Addr;

    const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
    const ELSEWHERE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

    fn ask(peer: IpAddr, path: &str, fields: &[(&'static str, &str)]) -> u16 {
        let guard =
            AdminGuard::new(Some(AdminToken::new(" 0123456789abcdef\n").unwrap()), vec!["ops.example.com".to_owned()]);
        let field = |&(name, value): &(&'static str, &str)| {
            (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())
        };
        match guard.admit(peer, path, &fields.iter().map(field).collect()) {
            Ok(()) => 200,
            Err((status, _)) => status.as_u16(),
        }
    }

    #[test]
    fn probes_and_metrics_need_no_token_on_loopback_and_everything_else_does() {
        let host = ("host", "127.0.0.1:9464");
        for path in OPEN_ON_LOOPBACK {
            assert_eq!(ask(HERE, path, &[host]), 200);
            assert_eq!(ask("::ffff:127.0.0.1".parse().unwrap(), path, &[host]), 200);
            assert_eq!(ask(ELSEWHERE, path, &[host]), 401);
        }
        for path in ["/", "/stats.json", "/channels", "/livez/", "/metrics/x"] {
            assert_eq!(ask(HERE, path, &[host]), 401);
            assert_eq!(ask(HERE, path, &[host, ("authorization", "Bearer 0123456789abcdef")]), 200);
            assert_eq!(ask(ELSEWHERE, path, &[host, ("authorization", "bearer 0123456789abcdef")]), 200);
            for wrong in ["Bearer 0123456789abcdeg", "Bearer", "Basic 0123456789abcdef", "0123456789abcdef", "Bearer "]
            {
                assert_eq!(ask(HERE, path, &[host, ("authorization", wrong)]), 401, "{wrong}");
            }
        }
        let without = AdminGuard::new(None, Vec::new());
        let headers = HeaderMap::from_iter([(HOST, HeaderValue::from_static("localhost"))]);
        assert!(without.admit(HERE, "/livez", &headers).is_ok());
        assert_eq!(without.admit(HERE, "/stats.json", &headers).unwrap_err().0, StatusCode::UNAUTHORIZED);
    }

    #[test]
    fn names_that_may_be_anybodys_are_not_answered() {
        for (host, status) in [
            ("localhost:9464", 200),
            ("LOCALHOST", 200),
            ("[::1]:9464", 200),
            ("127.9.9.9", 200),
            ("ops.example.com", 200),
            ("evil.example.com:9464", 421),
            ("localhost.evil.example", 421),
            ("192.0.2.1", 421),
            ("", 400),
        ] {
            assert_eq!(ask(HERE, "/livez", &[("host", host)]), status, "{host}");
        }
        assert_eq!(ask(HERE, "/livez", &[]), 400);
    }

    #[test]
    fn pages_of_other_sites_ask_nothing() {
        let host = ("host", "localhost:9464");
        let token = ("authorization", "Bearer 0123456789abcdef");
        for (field, status) in [
            (("origin", "http://localhost:9464"), 200),
            (("origin", "http://localhost:8080"), 403),
            (("origin", "https://evil.example"), 403),
            (("origin", "null"), 403),
            (("sec-fetch-site", "none"), 200),
            (("sec-fetch-site", "same-origin"), 200),
            (("sec-fetch-site", "same-site"), 403),
            (("sec-fetch-site", "cross-site"), 403),
        ] {
            assert_eq!(ask(HERE, "/drain", &[host, token, field]), status, "{field:?}");
            assert_eq!(ask(HERE, "/livez", &[host, field]), status, "{field:?}");
        }
    }

    #[test]
    fn short_tokens_are_no_tokens() {
        assert!(AdminToken::new("0123456789abcde").is_err());
        assert!(AdminToken::new("\n   \n").is_err());
    }
}
