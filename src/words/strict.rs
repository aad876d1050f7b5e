//! Readers that take nothing but what is meant: those of the standard library and of serde take more.

use serde::Deserialize;
use std::str::FromStr;

/// A number of digits alone: `parse` would take a sign.
pub(crate) fn digits<T: FromStr>(text: &str) -> Option<T> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// A JSON object: a derived reader would take an array for the fields in their order.
pub(crate) fn object<'t, T: Deserialize<'t>>(text: &'t [u8]) -> Option<T> {
    let is_object = text.trim_ascii_start().first() == Some(&b'{');
    is_object.then(|| serde_json::from_slice(text).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_has_digits_alone() {
        assert_eq!((digits("0"), digits("007"), digits("4294967295")), (Some(0), Some(7), Some(u32::MAX)));
        for text in ["", "+7", "-7", " 7", "7 ", "7.0", "4294967296", "٧"] {
            assert_eq!(digits::<u32>(text), None, "{text:?}");
        }
    }

    #[test]
    fn an_object_is_no_list_of_its_fields() {
        #[derive(Debug, PartialEq, Deserialize)]
        struct Pair {
            a: u8,
            b: Option<u8>,
        }
        assert_eq!(object(br#" {"a":1,"b":2} "#), Some(Pair { a: 1, b: Some(2) }));
        for text in [&b""[..], b"[1,2]", b" [1,2]", b"1", br#"{"a":1}{"#, br#"{"b":2}"#, b"\xff"] {
            assert_eq!(object::<Pair>(text), None, "{}", text.escape_ascii());
        }
    }
}
