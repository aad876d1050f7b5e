//! Origin and Host: whether the page that makes a request, and the name it uses for us, are ones we answer.
//!
//! A browser sends our cookies, and reaches our loopback listener, on behalf of any page; `Origin` (RFC 6454) says
//! which page. It is checked wherever something that the browser adds by itself authenticates. A request without it
//! comes from no browser, or from our own page.

use super::settings::{HostPolicy, Settings};
use crate::http::{Authority, Head};

/// Why a request's `Origin` is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OriginError {
    /// A page of another site.
    #[error("the page's Origin is neither this host nor in the list (origins)")]
    Foreign,
    /// `null`: a sandboxed page, a file, a redirect across sites.
    #[error("the page's Origin is opaque")]
    Opaque,
    /// Not an origin, or several.
    #[error("the Origin field is malformed")]
    Malformed,
}

/// Checks the page that makes the request, if a browser says which.
///
/// # Errors
/// When it is neither a page of the host that is asked nor one the operator listed.
pub(super) fn check_origin(head: &Head<'_>, settings: &Settings) -> Result<(), OriginError> {
    if !settings.check_origin {
        return Ok(());
    }
    let mut fields = head.values("origin");
    let Some(origin) = fields.next() else { return Ok(()) };
    let origin = std::str::from_utf8(origin).map_err(|_| OriginError::Malformed)?;
    if fields.next().is_some() {
        return Err(OriginError::Malformed);
    }
    if settings.origins.iter().any(|listed| is_same_origin(listed.trim_end_matches('/'), origin)) {
        return Ok(());
    }
    if origin == "null" {
        return Err(OriginError::Opaque);
    }
    let (scheme, authority) = origin.split_once("://").ok_or(OriginError::Malformed)?;
    // Browser extensions and apps have origins of schemes of their own; they are foreign unless listed.
    let port = default_port(scheme).ok_or(OriginError::Foreign)?;
    let origin = Authority::parse(authority).ok_or(OriginError::Malformed)?;
    // Behind a proxy we cannot see the scheme, unless we are told that it is always TLS; over ours we do. A page that
    // came without TLS may be anybody's who sits on its way, whatever port it names.
    if (settings.behind_tls || head.over_tls) && scheme != "https" {
        return Err(OriginError::Foreign);
    }
    // A host without a port was reached on the default port of the page's scheme: that is what lets browsers leave the
    // port out.
    let same = head
        .authority
        .is_some_and(|host| is_same_host(&host, &origin) && host.port.unwrap_or(port) == origin.port.unwrap_or(port));
    if same { Ok(()) } else { Err(OriginError::Foreign) }
}

/// The origin that a browser names, as it writes it, if that is a listed one.
pub(super) fn listed_origin<'h>(head: &Head<'h>, settings: &Settings) -> Option<&'h str> {
    let origin = head.text("origin")?;
    settings.origins.iter().any(|listed| is_same_origin(listed.trim_end_matches('/'), origin)).then_some(origin)
}

/// Returns whether the request is one that a development server of this machine passes on for a page of an origin in
/// [`Settings::dev_origins`], to an address or to `localhost` itself. `is_subdomain` returns whether a first label is a
/// package's secure subdomain. The caller must know that the sender is on this machine.
pub(super) fn is_dev_origin(head: &Head<'_>, settings: &Settings, is_subdomain: impl Fn(&str) -> bool) -> bool {
    let plain_host = |host: &Authority<'_>| host.is_ip() || host.host.eq_ignore_ascii_case("localhost");
    if settings.dev_origins.is_empty() || !head.authority.as_ref().is_some_and(plain_host) {
        return false;
    }
    let mut fields = head.values("origin");
    let (Some(origin), None) = (fields.next(), fields.next()) else { return false };
    let Ok(origin) = std::str::from_utf8(origin) else { return false };
    let is_listed = settings.dev_origins.iter().any(|listed| is_same_origin(listed.trim_end_matches('/'), origin));
    let host = origin.split_once("://").and_then(|(_, authority)| Authority::parse(authority));
    is_listed
        && may_be_dev_origin(origin)
        && host.is_some_and(|host| host.is_ip() || !is_subdomain(&host.first_label().to_ascii_lowercase()))
}

/// Returns whether this can be an origin of [`Settings::dev_origins`]: a page of the web, and none below `localhost`,
/// where the secure subdomains of a node on this machine are.
pub fn may_be_dev_origin(origin: &str) -> bool {
    let Some((scheme, authority)) = origin.trim_end_matches('/').split_once("://") else { return false };
    let is_apart = |host: Authority<'_>| !host.is_localhost() || host.host.eq_ignore_ascii_case("localhost");
    default_port(&scheme.to_ascii_lowercase()).is_some() && Authority::parse(authority).is_some_and(is_apart)
}

/// RFC 6454 section 5 for origins of the web: scheme, host and port. Others are compared as they are written.
fn is_same_origin(listed: &str, origin: &str) -> bool {
    let parts = |text: &str| {
        let (scheme, authority) = text.split_once("://")?;
        let scheme = scheme.to_ascii_lowercase();
        let port = default_port(&scheme)?;
        let authority = Authority::parse(authority)?;
        Some((scheme, authority.host.to_ascii_lowercase(), authority.port.unwrap_or(port)))
    };
    match (parts(listed), parts(origin)) {
        (Some(listed), Some(origin)) => listed == origin,
        _ => listed.eq_ignore_ascii_case(origin),
    }
}

/// IPv6 addresses have many spellings, and a client need not choose the browsers' one.
fn is_same_host(a: &Authority<'_>, b: &Authority<'_>) -> bool {
    match (a.ipv6(), b.ipv6()) {
        (Some(a), Some(b)) => a == b,
        _ => a.host.eq_ignore_ascii_case(b.host),
    }
}

fn default_port(scheme: &str) -> Option<u16> {
    match scheme {
        "http" => Some(80),
        "https" => Some(443),
        _ => None,
    }
}

/// Returns whether the name by which we are called is one of this machine's own: an address, `localhost`, or one that
/// the operator listed. A name that a page's author chose may lead here too (DNS rebinding), so being local proves
/// nothing where it was used, whatever the listener.
pub(super) fn is_own_host(host: Option<&Authority<'_>>, policy: &HostPolicy) -> bool {
    let names = match policy {
        HostPolicy::Any => &[],
        HostPolicy::ByListener(names) | HostPolicy::Listed(names) => names.as_slice(),
    };
    host.is_none_or(|host| host.is_ip() || host.is_localhost() || is_listed(host, names))
}

/// Returns whether requests for this host are answered. HTTP/1.0 without a Host is: no browser sends it.
pub(super) fn is_host_allowed(host: Option<&Authority<'_>>, policy: &HostPolicy) -> bool {
    match policy {
        HostPolicy::Any => true,
        HostPolicy::ByListener(_) | HostPolicy::Listed(_) => is_own_host(host, policy),
    }
}

fn is_listed(host: &Authority<'_>, names: &[String]) -> bool {
    let host = host.host.strip_suffix('.').unwrap_or(host.host).to_ascii_lowercase();
    names.iter().any(|name| {
        let name = name.to_ascii_lowercase();
        match name.starts_with('.') {
            true => host.ends_with(&name) && host.len() > name.len(),
            false => host == name,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::HttpLimits;

    fn check(host: &str, origin: &str) -> Result<(), OriginError> {
        let mut settings = Settings::of_a_node("n", crate::gateway::SubdomainTokens::Own);
        settings.origins = ["https://app.example.com", "https://q.example:443/", "HTTP://R.example", "x-ext://abc"]
            .map(Into::into)
            .to_vec();
        let text = format!("GET / HTTP/1.1\r\nHost: {host}\r\n{origin}\r\n");
        check_origin(&Head::parse(text.as_bytes(), &HttpLimits::default()).unwrap().unwrap().0, &settings)
    }

    #[test]
    fn the_same_host_and_port_or_listed() {
        for (host, origin) in [
            ("h:8080", ""),
            ("h:8080", "Origin: http://h:8080\r\n"),
            ("H.example", "Origin: http://h.EXAMPLE\r\n"),
            ("h", "Origin: https://h\r\n"),
            ("h:80", "Origin: http://h\r\n"),
            ("h", "Origin: http://h:80\r\n"),
            ("h:443", "Origin: https://h\r\n"),
            ("[::1]:8080", "Origin: http://[::1]:8080\r\n"),
            ("h", "Origin: https://app.example.com\r\n"),
            ("h", "Origin: x-ext://abc\r\n"),
            ("h", "Origin: https://q.example\r\n"),
            ("h", "Origin: http://r.example:80\r\n"),
            ("[0:0::1]:8080", "Origin: http://[::1]:8080\r\n"),
            ("h.", "Origin: http://h.\r\n"),
        ] {
            assert_eq!(check(host, origin), Ok(()), "{host} {origin}");
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for (host, origin, error) in [
            ("h:8080", "Origin: http://h\r\n", OriginError::Foreign),
            ("h", "Origin: http://h:8080\r\n", OriginError::Foreign),
            ("h", "Origin: https://h:80\r\n", OriginError::Foreign),
            ("h.example", "Origin: http://evil.h.example\r\n", OriginError::Foreign),
            ("h.example", "Origin: http://h.example.evil\r\n", OriginError::Foreign),
            ("h", "Origin: http://app.example.com\r\n", OriginError::Foreign),
            ("h", "Origin: https://app.example.com.evil\r\n", OriginError::Foreign),
            ("h", "Origin: file://\r\n", OriginError::Foreign),
            ("h", "Origin: x-ext://other\r\n", OriginError::Foreign),
            ("h", "Origin: https://r.example\r\n", OriginError::Foreign),
            ("h", "Origin: https://app.example.com:444\r\n", OriginError::Foreign),
            ("h", "Origin: http://h.\r\n", OriginError::Foreign),
            ("h", "Origin: HTTP://h\r\n", OriginError::Foreign),
            ("[::1]:8080", "Origin: http://[::2]:8080\r\n", OriginError::Foreign),
            ("127.0.0.1:8080", "Origin: http://localhost:8080\r\n", OriginError::Foreign),
            ("h", "Origin: http://[::1\r\n", OriginError::Malformed),
            ("h", "Origin: http://\r\n", OriginError::Malformed),
            ("h", "Origin: http://h:80:80\r\n", OriginError::Malformed),
            ("h", "Origin: http://h:99999\r\n", OriginError::Malformed),
            ("h", "Origin: http://h, http://h\r\n", OriginError::Malformed),
            ("h", "Origin: \u{e9}\r\n", OriginError::Malformed),
            ("h", "Origin: NULL\r\n", OriginError::Malformed),
            ("h", "Origin: null\r\n", OriginError::Opaque),
            ("h", "Origin:\r\n", OriginError::Malformed),
            ("h", "Origin: h\r\n", OriginError::Malformed),
            ("h", "Origin: http://u@h\r\n", OriginError::Malformed),
            ("h", "Origin: http://h/\r\n", OriginError::Malformed),
            ("h", "Origin: http://h http://evil\r\n", OriginError::Malformed),
            ("h", "Origin: http://h\r\nOrigin: http://evil\r\n", OriginError::Malformed),
        ] {
            assert_eq!(check(host, origin), Err(error), "{host} {origin}");
        }
    }

    #[test]
    fn behind_tls_a_page_without_it_is_another_site() {
        let mut settings = Settings::of_a_node("n", crate::gateway::SubdomainTokens::Own);
        settings.behind_tls = true;
        let check = |host: &str, origin: &str| {
            let text = format!("GET / HTTP/1.1\r\nHost: {host}\r\nOrigin: {origin}\r\n\r\n");
            check_origin(&Head::parse(text.as_bytes(), &HttpLimits::default()).unwrap().unwrap().0, &settings)
        };
        assert_eq!(check("h", "https://h"), Ok(()));
        assert_eq!(check("h:8443", "https://h:8443"), Ok(()));
        for (host, origin) in
            [("h", "http://h"), ("h:8443", "http://h:8443"), ("h:80", "http://h"), ("h", "http://h:443")]
        {
            assert_eq!(check(host, origin), Err(OriginError::Foreign), "{host} {origin}");
        }
        assert_eq!(check("h", "https://h:443"), Ok(()));
    }

    #[test]
    fn hosts() {
        let allowed = |host: &str, policy: &HostPolicy| is_host_allowed(Authority::parse(host).as_ref(), policy);
        let loopback = HostPolicy::Listed(vec!["node.example".into()]);
        for yes in ["127.0.0.1:8080", "[::1]", "192.168.1.5", "localhost:1", "chess-sys.localhost", "Node.Example."] {
            assert!(allowed(yes, &loopback), "{yes}");
        }
        for no in ["evil.com", "localhost.evil.com", "127.0.0.1.evil.com", "x.node.example", "0x7f.1", "2130706433"] {
            assert!(!allowed(no, &loopback), "{no}");
            assert!(!allowed(no, &HostPolicy::ByListener(Vec::new())), "{no}: nobody has asked the listener");
            assert!(allowed(no, &HostPolicy::Any), "{no}");
        }
        let names = HostPolicy::Listed(vec!["a.example".into(), ".b.example".into()]);
        for yes in ["A.example:8", "x.y.b.example", "localhost:9", "10.244.0.5:8080", "[fe80::1]"] {
            assert!(allowed(yes, &names), "{yes}");
        }
        for no in ["b.example", "xb.example", "x.a.example", "localhost.b.example.com"] {
            assert!(!allowed(no, &names), "{no}");
        }
        assert!(is_host_allowed(None, &names));
    }
}
