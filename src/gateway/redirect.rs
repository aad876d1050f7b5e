//! Redirecting requests without TLS to it, all but those with which a certificate authority validates a name.
//!
//! Invariants: a client is redirected to the host that it named, and only if that is one of ours; a challenge is
//! answered while it is outstanding and for no other token, on any host (RFC 8555 8.3).

use super::proxy::is_https;
use super::snapshot::Snapshot;
use crate::http::{Head, PreparedResponse};

/// Where an authority asks (RFC 8555 8.3).
const CHALLENGES: &str = "/.well-known/acme-challenge/";

/// The answer to an authority's question, if this is one.
pub(super) fn challenge(snapshot: &Snapshot, head: &Head<'_>) -> Option<PreparedResponse> {
    if snapshot.challenges.is_empty() || !matches!(head.method, "GET" | "HEAD") {
        return None;
    }
    let answer = snapshot.challenges.get(head.target.path.strip_prefix(CHALLENGES)?)?;
    let response =
        PreparedResponse::new(200).with("content-type", "application/octet-stream").with("cache-control", "no-store");
    Some(response.with_body(answer.clone().into()))
}

/// The redirect for a request that requires TLS. A WebSocket client gets it too: browsers do not follow it, but their
/// console shows it.
pub(super) fn to_tls(snapshot: &Snapshot, head: &Head<'_>) -> Option<PreparedResponse> {
    let settings = &snapshot.settings;
    let port = settings.redirect_to_tls.filter(|_| !is_https(head, settings.behind_tls))?;
    let Some(host) = head.authority.filter(|_| head.target.path.starts_with('/')) else {
        return Some(PreparedResponse::text(403, "this is served over TLS only: use https:// or wss://").closing());
    };
    let port = if port == 443 { String::new() } else { format!(":{port}") };
    let query = head.target.query.map(|query| format!("?{query}")).unwrap_or_default();
    // RFC 9110 section 15.4.9: the method and the body stay what they are.
    let redirect = PreparedResponse::new(308)
        .header("location", format!("https://{}{port}{}{query}", host.host, head.target.path));
    Some(redirect.unwrap_or_else(|_| PreparedResponse::text(400, "the host cannot be part of a location")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::{Entry, HostPolicy, Settings, enter};
    use crate::http::HttpLimits;
    use std::collections::BTreeMap;
    use std::net::SocketAddr;

    fn snapshot(port: Option<u16>) -> Snapshot {
        let mut settings = Settings::of_a_node("n", crate::gateway::SubdomainTokens::Own);
        settings.hosts = HostPolicy::Listed(vec!["example.com".to_owned()]);
        settings.redirect_to_tls = port;
        let mut snapshot = Snapshot::new(settings);
        snapshot.set_challenges(BTreeMap::from([("to-ken_1".to_owned(), "to-ken_1.print".to_owned())]));
        snapshot
    }

    /// The status, and where it leads or what it says.
    fn answered(snapshot: &Snapshot, request: &str) -> (u16, String) {
        let text = format!("{request}\r\n\r\n");
        let (head, _) = Head::parse(text.as_bytes(), &HttpLimits::default()).unwrap().unwrap();
        let Entry::Answer(response) = enter(snapshot, &head, SocketAddr::from(([203, 0, 113, 1], 1)), 0) else {
            panic!()
        };
        let body = String::from_utf8(response.body().to_vec()).unwrap();
        (response.status(), response.find("location").map_or(body, str::to_owned))
    }

    #[test]
    fn plain_requests_are_sent_on_to_the_host_that_they_name() {
        let upgrade = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13";
        for (port, request, location) in [
            (443, "GET / HTTP/1.1\r\nHost: example.com", "https://example.com/"),
            (443, "GET /a/?b=c%20d HTTP/1.1\r\nHost: Example.com:8080", "https://Example.com/a/?b=c%20d"),
            (8443, "POST /x HTTP/1.1\r\nHost: example.com:80\r\nContent-Length: 0", "https://example.com:8443/x"),
            (8443, "GET //evil.example HTTP/1.1\r\nHost: [::1]:8080", "https://[::1]:8443//evil.example"),
            (443, "GET http://example.com/y HTTP/1.1\r\nHost: other.example", "https://example.com/y"),
            (443, &format!("GET / HTTP/1.1\r\nHost: example.com\r\n{upgrade}"), "https://example.com/"),
        ] {
            assert_eq!(answered(&snapshot(Some(port)), request), (308, location.to_owned()), "{request}");
        }
        assert_eq!(answered(&snapshot(Some(443)), "GET / HTTP/1.1\r\nHost: evil.example").0, 421);
        assert_eq!(answered(&snapshot(Some(443)), "OPTIONS * HTTP/1.1\r\nHost: example.com").0, 403);
        assert_eq!(answered(&snapshot(Some(443)), "GET / HTTP/1.0").0, 403);
        assert_eq!(answered(&snapshot(None), "GET /x HTTP/1.1\r\nHost: example.com").0, 404);
        let forwarded = "GET /x HTTP/1.1\r\nHost: example.com\r\nX-Forwarded-Proto: https";
        assert_eq!(answered(&snapshot(Some(443)), forwarded).0, 404, "else it would go round in circles");
    }

    #[test]
    fn a_challenge_that_is_outstanding_is_answered_whatever_the_host() {
        for port in [None, Some(443)] {
            let snapshot = snapshot(port);
            let asked = |method: &str, token: &str| {
                let request = format!("{method} {CHALLENGES}{token} HTTP/1.1\r\nHost: evil.example");
                answered(&snapshot, &request)
            };
            assert_eq!(asked("GET", "to-ken_1"), (200, "to-ken_1.print".to_owned()));
            for (method, token) in [("GET", "to-ken_2"), ("GET", ""), ("GET", "to-ken_1/"), ("POST", "to-ken_1")] {
                assert_eq!(asked(method, token).0, 421, "{method} {token}");
            }
            let mut over = snapshot.clone();
            over.set_challenges(BTreeMap::new());
            assert_eq!(answered(&over, &format!("GET {CHALLENGES}to-ken_1 HTTP/1.1\r\nHost: evil.example")).0, 421);
        }
    }
}
