//! The request target and the authority it is asked of (RFC 9112 section 3.2, RFC 9110 section 7.2).
//!
//! Nothing is decoded and no dot segment is resolved here: a path is matched as it was sent, so two spellings never
//! name one resource by surprise.

use super::limits::Rejection;
use std::net::{Ipv4Addr, Ipv6Addr};

/// A request target, split but not decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestTarget<'a> {
    /// The path, starting with `/`; `*` for the asterisk form.
    pub path: &'a str,
    /// The part after the first `?`.
    pub query: Option<&'a str>,
    /// The authority of an absolute-form target, which overrides the Host field (RFC 9112 section 3.2.2).
    pub authority: Option<Authority<'a>>,
}

/// A host and an optional port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Authority<'a> {
    /// Host and port as sent.
    pub text: &'a str,
    /// A name, an IPv4 address, or an IPv6 address in brackets. Not empty. In the case it was sent in.
    pub host: &'a str,
    /// The port, where one was given and not empty.
    pub port: Option<u16>,
}

impl<'a> Authority<'a> {
    /// Parses `host [":" port]`. Accepts names of letters, digits, `-`, `.`, `_`, and IP literals; refuses user
    /// information, empty hosts and everything else that a URL built from it could misread.
    pub fn parse(text: &'a str) -> Option<Self> {
        let (host, port) = if text.starts_with('[') {
            let (host, rest) = text.split_at(text.find(']')? + 1);
            host[1..host.len() - 1].parse::<Ipv6Addr>().ok()?;
            match rest {
                "" => (host, None),
                _ => (host, Some(rest.strip_prefix(':')?)),
            }
        } else {
            let (host, port) = match text.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (text, None),
            };
            let plain = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'.' | b'_');
            if host.is_empty() || !host.bytes().all(plain) {
                return None;
            }
            (host, port)
        };
        let port = match port {
            None | Some("") => None,
            Some(digits) if digits.bytes().all(|c| c.is_ascii_digit()) => Some(digits.parse().ok()?),
            Some(_) => return None,
        };
        Some(Self { text, host, port })
    }

    /// Returns whether the host is an IP address rather than a name.
    pub fn is_ip(&self) -> bool {
        self.host.starts_with('[') || self.host.parse::<Ipv4Addr>().is_ok()
    }

    /// The host as an IPv6 address, if it is one.
    pub fn ipv6(&self) -> Option<Ipv6Addr> {
        self.host.strip_prefix('[')?.strip_suffix(']')?.parse().ok()
    }

    /// Returns whether the host is `localhost` or below it (RFC 6761 section 6.3), in any case, one trailing dot
    /// allowed.
    pub fn is_localhost(&self) -> bool {
        let host = self.host.strip_suffix('.').unwrap_or(self.host).as_bytes();
        let name = b"localhost";
        match host.len().checked_sub(name.len()) {
            None => false,
            Some(0) => host.eq_ignore_ascii_case(name),
            Some(at) => host[at..].eq_ignore_ascii_case(name) && host[at - 1] == b'.' && at > 1,
        }
    }

    /// The first label of the host: what stands before the first dot.
    pub fn first_label(&self) -> &'a str {
        self.host.split('.').next().unwrap_or_default()
    }
}

impl<'a> RequestTarget<'a> {
    /// Splits the target of a `method` request.
    ///
    /// # Errors
    /// 400 when it has none of the forms of RFC 9112 section 3.2, or holds bytes that no URL has; 501 for CONNECT,
    /// the only user of the authority form.
    pub fn parse(method: &str, text: &'a str) -> Result<Self, Rejection> {
        if method == "CONNECT" {
            return Err(Rejection::new(501, "CONNECT is not supported: this is no proxy"));
        }
        if !text.bytes().all(|c| c.is_ascii_graphic() && c != b'#') {
            return Err(Rejection::new(400, "the request target holds a byte that no URL has"));
        }
        if text.starts_with('/') {
            return Ok(Self::origin(text, None));
        }
        if text == "*" && method == "OPTIONS" {
            return Ok(Self { path: "*", query: None, authority: None });
        }
        Self::absolute(text).ok_or(Rejection::new(400, "the request target is neither a path nor an http URL"))
    }

    fn origin(text: &'a str, authority: Option<Authority<'a>>) -> Self {
        match text.split_once('?') {
            Some((path, query)) => Self { path, query: Some(query), authority },
            None => Self { path: text, query: None, authority },
        }
    }

    fn absolute(text: &'a str) -> Option<Self> {
        let (scheme, rest) = text.split_once("://")?;
        if !["http", "https", "ws", "wss"].iter().any(|known| scheme.eq_ignore_ascii_case(known)) {
            return None;
        }
        let (authority, rest) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        let authority = Some(Authority::parse(authority)?);
        Some(match rest.strip_prefix('?') {
            Some(query) => Self { path: "/", query: Some(query), authority },
            None if rest.is_empty() => Self { path: "/", query: None, authority },
            None => Self::origin(rest, authority),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn authorities() {
        for (text, host, port) in [
            ("example.com", "example.com", None),
            ("Example.COM:80", "Example.COM", Some(80)),
            ("a_b-c.localhost:18101", "a_b-c.localhost", Some(18101)),
            ("127.0.0.1:", "127.0.0.1", None),
            ("[::1]:8080", "[::1]", Some(8080)),
            ("[2001:db8::1]", "[2001:db8::1]", None),
        ] {
            let authority = Authority::parse(text).unwrap();
            assert_eq!((authority.host, authority.port, authority.text), (host, port, text));
        }
        for bad in [
            "",
            ":80",
            "a b",
            "user@host",
            "host/path",
            "host:8o",
            "host:65536",
            "host:-1",
            "host:+1",
            "a:1:2",
            "[::1",
            "[::g]",
            "[::1]x",
            "::1",
            "a,b",
            "a\\b",
            "é",
            "host?",
            "a%41",
            "[::1%25eth0]",
        ] {
            assert_eq!(Authority::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn localhost_and_addresses() {
        for yes in ["localhost", "LOCALHOST:80", "a.localhost", "x.y.localhost.", "localhost."] {
            assert!(Authority::parse(yes).unwrap().is_localhost(), "{yes}");
        }
        for no in ["evillocalhost", "localhost.evil.com", "example.com", "127.0.0.1", ".localhost"] {
            assert!(!Authority::parse(no).unwrap().is_localhost(), "{no}");
        }
        assert!(Authority::parse("127.0.0.1:1").unwrap().is_ip());
        assert!(Authority::parse("[::1]").unwrap().is_ip());
        assert!(!Authority::parse("1.2.3.4.example").unwrap().is_ip());
    }

    #[test]
    fn target_forms() {
        let parse = |text| RequestTarget::parse("GET", text).map(|t| (t.path, t.query, t.authority.map(|a| a.text)));
        assert_eq!(parse("/"), Ok(("/", None, None)));
        assert_eq!(parse("/a%20b/../c?x=1?y"), Ok(("/a%20b/../c", Some("x=1?y"), None)));
        assert_eq!(parse("//host/x"), Ok(("//host/x", None, None)));
        assert_eq!(parse("http://h:8/p?q"), Ok(("/p", Some("q"), Some("h:8"))));
        assert_eq!(parse("HTTPS://h"), Ok(("/", None, Some("h"))));
        assert_eq!(parse("ws://h?q"), Ok(("/", Some("q"), Some("h"))));
        assert_eq!(RequestTarget::parse("OPTIONS", "*").unwrap().path, "*");
        for bad in ["*", "path", "", "ftp://h/", "http://", "http://u@h/", "http:///p", "/a#b", "/a b", "/\u{e9}", "?q"]
        {
            assert_eq!(RequestTarget::parse("GET", bad).unwrap_err().status, 400, "{bad}");
        }
        assert_eq!(RequestTarget::parse("CONNECT", "h:443").unwrap_err().status, 501);
    }
}
