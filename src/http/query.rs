//! Query strings, decoded as a node does: `application/x-www-form-urlencoded`, so `+` is a space, percent-encoded bytes
//! are UTF-8 with replacement characters for what is not, and the last of several equal names wins (node contract,
//! section 2). Paths are not decoded anywhere.

use std::borrow::Cow;

/// The decoded pairs of `query` (without its `?`), in order.
pub fn pairs(query: Option<&str>) -> impl Iterator<Item = (String, String)> {
    form_urlencoded::parse(query.unwrap_or_default().as_bytes()).into_owned()
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
    fn decoded_in_order_and_the_last_wins() {
        let query = Some("a=1&b=two+words&a=3&c=%C3%A9%2F&d&=e&f=%ff&g=%zz");
        let expected = [
            ("a", "1"),
            ("b", "two words"),
            ("a", "3"),
            ("c", "é/"),
            ("d", ""),
            ("", "e"),
            ("f", "\u{fffd}"),
            ("g", "%zz"),
        ];
        assert!(pairs(query).eq(expected.map(|(name, value)| (name.to_owned(), value.to_owned()))));
        assert_eq!(param(query, "a").as_deref(), Some("3"));
        assert_eq!(param(query, "x"), None);
        assert_eq!(pairs(None).count(), 0);
    }
}
