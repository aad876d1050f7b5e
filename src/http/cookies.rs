//! Cookies (RFC 6265): finding one in a request, setting one in a response.
//!
//! A name matches exactly, in its case. A page of a sibling domain can plant a second cookie of a name, so that no
//! server may rely on which of them it picks: where a cookie says who the user is, two of them are an error ([`find`]);
//! where it only shows that the one user has logged in, each is looked at ([`all`]).

use super::body::is_token;
use super::head::Head;

/// A request holds more than one cookie of the name asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the cookie comes more than once")]
pub struct Doubled;

/// The values of all cookies called `name`, from every Cookie field of the request; empty where one is not text.
pub fn all<'a>(head: &Head<'a>, name: &str) -> impl Iterator<Item = &'a str> {
    let pairs = head.values("cookie").flat_map(|field| field.split(|&c| c == b';'));
    pairs.filter_map(move |pair| {
        let value = pair.trim_ascii().strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
        Some(std::str::from_utf8(value).unwrap_or_default())
    })
}

/// The value of the only cookie called `name`.
///
/// # Errors
/// When there are several, equal or not.
pub fn find<'a>(head: &Head<'a>, name: &str) -> Result<Option<&'a str>, Doubled> {
    let mut values = all(head, name);
    match (values.next(), values.next()) {
        (_, Some(_)) => Err(Doubled),
        (found, None) => Ok(found),
    }
}

/// The `set-cookie` value of a cookie and its attributes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SetCookie<'a> {
    /// The name.
    pub name: &'a str,
    /// The value.
    pub value: &'a str,
    /// `Domain`: also sent to hosts below this one. Without it the cookie is its host's alone.
    pub domain: Option<&'a str>,
    /// `HttpOnly`: scripts cannot read it.
    pub http_only: bool,
    /// `Secure`: sent over TLS only.
    pub secure: bool,
    /// `Max-Age` in seconds; without it the cookie lasts as long as the browser runs. 0 deletes it.
    pub max_age_s: Option<u64>,
}

/// A name, value or domain that no cookie can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the cookie's name, value or domain holds a forbidden character")]
pub struct BadCookie;

impl SetCookie<'_> {
    /// The field value, with `Path=/` and `SameSite=Lax`. Not `Strict`: browsers take `localhost` and the names below
    /// it for different sites, and a link from elsewhere must find its owner logged in.
    ///
    /// # Errors
    /// When a part holds what RFC 6265 section 4.1.1 does not allow. Names may hold `@` and `:`, as those of nodes do.
    pub fn encode(&self) -> Result<String, BadCookie> {
        let name_char = |c: u8| is_token(c) || matches!(c, b'@' | b':');
        let value_char = |c: u8| c.is_ascii_graphic() && !matches!(c, b'"' | b',' | b';' | b'\\');
        let domain_char = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'-' | b'_');
        let sound = !self.name.is_empty()
            && self.name.bytes().all(name_char)
            && self.value.bytes().all(value_char)
            && self.domain.unwrap_or_default().bytes().all(domain_char);
        if !sound {
            return Err(BadCookie);
        }
        let mut text = format!("{}={}; Path=/; SameSite=Lax", self.name, self.value);
        if let Some(domain) = self.domain {
            text.push_str("; Domain=");
            text.push_str(domain);
        }
        if let Some(seconds) = self.max_age_s {
            text.push_str(&format!("; Max-Age={seconds}"));
        }
        if self.http_only {
            text.push_str("; HttpOnly");
        }
        if self.secure {
            text.push_str("; Secure");
        }
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::HttpLimits;

    fn find_in(cookie_lines: &str, name: &str) -> Result<Option<String>, Doubled> {
        let text = format!("GET / HTTP/1.1\r\nHost: h\r\n{cookie_lines}\r\n");
        let (head, _) = Head::parse(text.as_bytes(), &HttpLimits::default()).unwrap().unwrap();
        find(&head, name).map(|value| value.map(str::to_owned))
    }

    #[test]
    fn only_the_whole_name_matches() {
        let lines = "Cookie: a-auth_n=1; a-auth_nX=2;a-auth_n@p:p:o=3; A-AUTH_N=4; x=a-auth_n=5; b; c=\r\n";
        let found = |name| find_in(lines, name).unwrap();
        assert_eq!(found("a-auth_n").as_deref(), Some("1"));
        assert_eq!(found("a-auth_nX").as_deref(), Some("2"));
        assert_eq!(found("a-auth_n@p:p:o").as_deref(), Some("3"));
        assert_eq!(found("x").as_deref(), Some("a-auth_n=5"));
        assert_eq!(found("c").as_deref(), Some(""));
        assert_eq!(found("b"), None);
        assert_eq!(found("auth_n"), None);
    }

    #[test]
    fn two_of_one_name_are_an_error_wherever_they_stand() {
        assert_eq!(find_in("Cookie: n=1; n=1\r\n", "n"), Err(Doubled));
        assert_eq!(find_in("Cookie: n=1\r\nX: y\r\ncookie: n=2\r\n", "n"), Err(Doubled));
        assert_eq!(find_in("Cookie: n=1; n=\u{ff}\r\n", "n"), Err(Doubled));
        assert_eq!(find_in("Cookie: n=1; m=1\r\nCookie: o=1\r\n", "n"), Ok(Some("1".into())));
        let text = "GET / HTTP/1.1\r\nHost: h\r\nCookie: n=1; m=2; n=\u{ff}\r\ncookie: nn=3;n=\r\n\r\n";
        let (head, _) = Head::parse(text.as_bytes(), &HttpLimits::default()).unwrap().unwrap();
        assert_eq!(all(&head, "n").collect::<Vec<_>>(), ["1", "\u{ff}", ""]);
    }

    #[test]
    fn attributes_are_attributes() {
        let plain = SetCookie {
            name: "n@a:b:c",
            value: "t.o-k_",
            domain: None,
            http_only: true,
            secure: false,
            max_age_s: None,
        };
        assert_eq!(plain.encode().unwrap(), "n@a:b:c=t.o-k_; Path=/; SameSite=Lax; HttpOnly");
        let full = SetCookie { domain: Some("h.example"), http_only: false, secure: true, max_age_s: Some(0), ..plain };
        let text = "n@a:b:c=t.o-k_; Path=/; SameSite=Lax; Domain=h.example; Max-Age=0; Secure";
        assert_eq!(full.encode().unwrap(), text);
        for bad in ["", "a b", "a;b", "a=b", "a\r\nb"] {
            assert_eq!(SetCookie { name: bad, ..plain }.encode(), Err(BadCookie), "{bad:?}");
        }
        for bad in ["a;b", "a b", "a\r\nb", "a\"b"] {
            assert_eq!(SetCookie { value: bad, ..plain }.encode(), Err(BadCookie), "{bad:?}");
            assert_eq!(SetCookie { domain: Some(bad), ..plain }.encode(), Err(BadCookie), "{bad:?}");
        }
    }
}
