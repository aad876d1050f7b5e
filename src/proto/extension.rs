//! The grammar of `Sec-WebSocket-Extensions` (RFC 6455 9.1): a list of offers, each a name and parameters.
//!
//! Invariant: [`Offers`] yields only offers that follow the grammar, in the client's order, without allocating on the
//! heap for any real client. It must not know the meaning of extensions or parameters.

use httparse::Header;
use smallvec::SmallVec;

/// One element of the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExtensionOffer<'a> {
    /// The extension's name.
    pub name: &'a [u8],
    /// Its parameters, in order, repetitions included.
    pub parameters: SmallVec<[Parameter<'a>; 4]>,
}

/// A parameter of an offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parameter<'a> {
    /// Its name.
    pub name: &'a [u8],
    /// Its value if it has one; without quotes, but escaped as it came.
    value_raw: Option<&'a [u8]>,
}

impl<'a> Parameter<'a> {
    /// The bytes of the value, if there is one. Unescaping a token is leaving out the backslashes.
    pub fn value(&self) -> Option<impl Iterator<Item = u8> + use<'a>> {
        self.value_raw.map(|raw| raw.iter().copied().filter(|&byte| byte != b'\\'))
    }
}

/// The header does not follow its grammar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MalformedExtension;

/// The offers of all `Sec-WebSocket-Extensions` fields of a head, which count as one list (9.1). Ends where the
/// grammar is broken; `upgrade::negotiate` made sure beforehand that it is not.
#[derive(Debug, Clone)]
pub struct Offers<'a> {
    headers: std::slice::Iter<'a, Header<'a>>,
    cursor: HeaderCursor<'a>,
}

impl<'a> Offers<'a> {
    /// The offers in a request head.
    pub fn new(headers: &'a [Header<'a>]) -> Self {
        Self { headers: headers.iter(), cursor: HeaderCursor { rest: b"" } }
    }

    fn next_offer(&mut self) -> Result<Option<ExtensionOffer<'a>>, MalformedExtension> {
        while self.cursor.is_at_end_of_list() {
            let field = self.headers.find(|header| header.name.eq_ignore_ascii_case("Sec-WebSocket-Extensions"));
            let Some(field) = field else { return Ok(None) };
            self.cursor = HeaderCursor { rest: field.value };
        }
        self.cursor.offer().map(Some)
    }
}

impl<'a> Iterator for Offers<'a> {
    type Item = ExtensionOffer<'a>;

    fn next(&mut self) -> Option<ExtensionOffer<'a>> {
        self.next_offer().ok().flatten()
    }
}

/// Whether all `Sec-WebSocket-Extensions` fields follow the grammar. 9.1: otherwise the connection "MUST" fail.
pub(super) fn check_grammar<'a>(headers: &'a [Header<'a>]) -> Result<(), MalformedExtension> {
    let mut offers = Offers::new(headers);
    while offers.next_offer()?.is_some() {}
    Ok(())
}

/// Returns whether `bytes` is a token (RFC 9110 5.6.2).
pub(super) fn is_token(bytes: &[u8]) -> bool {
    !bytes.is_empty() && bytes.iter().all(|&byte| is_token_byte(byte))
}

fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[derive(Debug, Clone)]
struct HeaderCursor<'a> {
    rest: &'a [u8],
}

impl<'a> HeaderCursor<'a> {
    /// Skips what may stand between elements: spaces and empty elements.
    fn is_at_end_of_list(&mut self) -> bool {
        let separators = self.rest.iter().take_while(|byte| matches!(byte, b' ' | b'\t' | b',')).count();
        self.rest = &self.rest[separators..];
        self.rest.is_empty()
    }

    /// `extension-token *( ";" extension-param )`, up to the end or a comma.
    fn offer(&mut self) -> Result<ExtensionOffer<'a>, MalformedExtension> {
        let mut offer = ExtensionOffer { name: self.token()?, parameters: SmallVec::new() };
        while self.takes(b';') {
            offer.parameters.push(self.parameter()?);
        }
        if self.rest.is_empty() || self.takes(b',') { Ok(offer) } else { Err(MalformedExtension) }
    }

    /// `token [ "=" (token | quoted-string) ]`.
    fn parameter(&mut self) -> Result<Parameter<'a>, MalformedExtension> {
        let name = self.token()?;
        if !self.takes(b'=') {
            return Ok(Parameter { name, value_raw: None });
        }
        let value = if self.takes(b'"') { self.quoted_token()? } else { self.token()? };
        Ok(Parameter { name, value_raw: Some(value) })
    }

    fn token(&mut self) -> Result<&'a [u8], MalformedExtension> {
        self.skip_spaces();
        let (token, rest) = self.rest.split_at(self.rest.iter().take_while(|&&byte| is_token_byte(byte)).count());
        self.rest = rest;
        if token.is_empty() { Err(MalformedExtension) } else { Ok(token) }
    }

    /// The text before the closing quote. 9.1: "the value after quoted-string unescaping MUST conform to the 'token'
    /// ABNF".
    fn quoted_token(&mut self) -> Result<&'a [u8], MalformedExtension> {
        let mut escaped = false;
        for (at, &byte) in self.rest.iter().enumerate() {
            match byte {
                b'"' if !escaped && at > 0 => {
                    let quoted = &self.rest[..at];
                    self.rest = &self.rest[at + 1..];
                    return Ok(quoted);
                }
                b'\\' if !escaped => escaped = true,
                byte if is_token_byte(byte) => escaped = false,
                _ => return Err(MalformedExtension),
            }
        }
        Err(MalformedExtension)
    }

    /// Skips spaces, then `byte` if it is there.
    fn takes(&mut self, byte: u8) -> bool {
        self.skip_spaces();
        let is_there = self.rest.first() == Some(&byte);
        self.rest = &self.rest[usize::from(is_there)..];
        is_there
    }

    fn skip_spaces(&mut self) {
        self.rest = self.rest.trim_ascii_start();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The offers as text: `name(param=value,param)`.
    fn read(values: &[&str]) -> Result<String, MalformedExtension> {
        let headers: Vec<_> =
            values.iter().map(|value| Header { name: "sec-websocket-extensions", value: value.as_bytes() }).collect();
        check_grammar(&headers)?;
        let offers = Offers::new(&headers).map(|offer| {
            let parameters = offer.parameters.iter().map(|parameter| {
                let name = String::from_utf8_lossy(parameter.name).into_owned();
                match parameter.value() {
                    Some(value) => format!("{name}={}", value.map(char::from).collect::<String>()),
                    None => name,
                }
            });
            format!("{}({})", String::from_utf8_lossy(offer.name), parameters.collect::<Vec<_>>().join(","))
        });
        Ok(offers.collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn lists_are_read_across_fields() {
        assert_eq!(read(&[]), Ok(String::new()));
        assert_eq!(read(&["", " , ,"]), Ok(String::new()));
        assert_eq!(read(&["foo, bar; baz=2", ",", "bar;baz=\"3\";q"]), Ok("foo() bar(baz=2) bar(baz=3,q)".into()));
        assert_eq!(read(&["a ; b = \"\\1\\0\" ,c"]), Ok("a(b=10) c()".into()));
    }

    #[test]
    fn what_breaks_the_grammar_is_malformed() {
        for value in [
            "a b",
            ";a",
            "a;",
            "a;;b",
            "a;b=",
            "a;b=\"",
            "a;b=\"\"",
            "a;b=\"1",
            "a;b=\"1 2\"",
            "a;b=1=2",
            "a;b=\"\\",
            "é",
        ] {
            assert_eq!(read(&[value]), Err(MalformedExtension), "{value}");
            assert_eq!(read(&["fine", value]), Err(MalformedExtension), "{value}");
        }
    }
}
