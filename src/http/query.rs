//! Query strings, decoded as a node does: `application/x-www-form-urlencoded`, so `+` is a space, percent-encoded bytes
//! are UTF-8 with replacement characters for what is not, and the last of several equal names wins (node contract,
//! section 2). Paths are not decoded anywhere.

use std::{borrow::Cow, collections::BTreeMap};

/// The decoded pairs of `query` (without its `?`), the last of equal names kept.
pub fn params(query: Option<&str>) -> BTreeMap<String, String> {
    form_urlencoded::parse(query.unwrap_or_default().as_bytes()).into_owned().collect()
}

/// The decoded value of the last pair called `name`.
pub fn param<'a>(query: Option<&'a str>, name: &str) -> Option<Cow<'a, str>> {
    let pairs = form_urlencoded::parse(query.unwrap_or_default().as_bytes());
    pairs.filter(|(have, _)| have == name).last().map(|(_, value)| value)
}

/// The decoded values of all pairs called `name`, in order.
pub fn all(query: Option<&str>, name: &str) -> Vec<String> {
    let pairs = form_urlencoded::parse(query.unwrap_or_default().as_bytes());
    pairs.filter(|(have, _)| have == name).map(|(_, value)| value.into_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decoded_and_the_last_wins() {
        let query = Some("a=1&b=two+words&a=3&c=%C3%A9%2F&d&=e&f=%ff&g=%zz");
        let params = params(query);
        let expected =
            [("", "e"), ("a", "3"), ("b", "two words"), ("c", "é/"), ("d", ""), ("f", "\u{fffd}"), ("g", "%zz")];
        assert_eq!(params.iter().map(|(k, v)| (&**k, &**v)).collect::<Vec<_>>(), expected);
        assert_eq!(param(query, "a").as_deref(), Some("3"));
        assert_eq!(param(query, "x"), None);
        assert!(super::params(None).is_empty());
    }
}
