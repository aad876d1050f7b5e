//! The media ranges of Accept: what a client can do with (RFC 9110 sections 12.4.2 and 12.5.1).
//!
//! It must not know which media types there are.

/// One range, as it was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MediaRange<'a> {
    /// Type and subtype, without parameters.
    pub mime: &'a [u8],
    /// How much it is liked, in thousandths. 0: it is not acceptable.
    pub weight: u16,
}

/// The ranges of one Accept field. One whose weight is none is not acceptable: who sent it, and why, is not known.
pub fn media_ranges(field: &[u8]) -> impl Iterator<Item = MediaRange<'_>> {
    split_unquoted(field, b',').map(<[u8]>::trim_ascii).filter(|range| !range.is_empty()).map(|range| {
        let mut parts = split_unquoted(range, b';').map(<[u8]>::trim_ascii);
        let mime = parts.next().unwrap_or_default();
        let weight = parts.find_map(|part| match part {
            [b'q' | b'Q', b'=', weight @ ..] => Some(weight_of(weight).unwrap_or(0)),
            _ => None,
        });
        MediaRange { mime, weight: weight.unwrap_or(1000) }
    })
}

impl MediaRange<'_> {
    /// Returns whether it names this media type, and not only by a wildcard, and the client can do with it.
    pub fn accepts(&self, mime: &str) -> bool {
        self.weight > 0 && self.mime.eq_ignore_ascii_case(mime.as_bytes())
    }
}

/// The parts between separators that are not in a quoted string (RFC 9110 section 5.6.4).
fn split_unquoted(text: &[u8], separator: u8) -> impl Iterator<Item = &[u8]> {
    let (mut is_quoted, mut is_escaped) = (false, false);
    text.split(move |&byte| {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if is_quoted => is_escaped = true,
            b'"' => is_quoted = !is_quoted,
            _ => return byte == separator && !is_quoted,
        }
        false
    })
}

/// `0`, `1`, or up to three decimals between them.
fn weight_of(text: &[u8]) -> Option<u16> {
    let (whole, decimals) = match text {
        [b'0'] => (0, &[][..]),
        [b'1'] => (1000, &[][..]),
        [b'0', b'.', decimals @ ..] => (0, decimals),
        [b'1', b'.', decimals @ ..] => (1000, decimals),
        _ => return None,
    };
    if decimals.len() > 3 || !decimals.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let thousandths = std::iter::zip(decimals, [100, 10, 1]).map(|(digit, unit)| u16::from(digit - b'0') * unit);
    Some(whole + thousandths.sum::<u16>()).filter(|weight| *weight <= 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_and_weights_are_read_as_they_are_meant() {
        let ranges = |field: &'static str| {
            let ranges = media_ranges(field.as_bytes());
            ranges.map(|range| (str::from_utf8(range.mime).unwrap(), range.weight)).collect::<Vec<_>>()
        };
        for (field, expected) in [
            ("", &[][..]),
            (" , ,", &[]),
            ("text/event-stream", &[("text/event-stream", 1000)]),
            ("a/b;q=0", &[("a/b", 0)]),
            ("a/b;q=0.", &[("a/b", 0)]),
            ("a/b;q=0.000", &[("a/b", 0)]),
            ("a/b ; Q=0.5 , */*;q=0.001", &[("a/b", 500), ("*/*", 1)]),
            ("a/b;charset=utf-8;q=0.25;level=1", &[("a/b", 250)]),
            ("a/b;q=1.000,c/d;q=1", &[("a/b", 1000), ("c/d", 1000)]),
            // What is in quotes separates nothing.
            (r#"a/b;x=",;q=0";q=0.3, c/d"#, &[("a/b", 300), ("c/d", 1000)]),
            (r#"a/b;x="\",q=1";q=0.4"#, &[("a/b", 400)]),
            // These are no weights.
            ("a/b;q=2", &[("a/b", 0)]),
            ("a/b;q=1.001", &[("a/b", 0)]),
            ("a/b;q=0.0001", &[("a/b", 0)]),
            (
                "a/b;q=-1, a/b;q=, a/b;q=x, a/b;q=.5, a/b;q=0,5",
                &[("a/b", 0), ("a/b", 0), ("a/b", 0), ("a/b", 0), ("a/b", 0), ("5", 1000)],
            ),
        ] {
            assert_eq!(ranges(field), expected, "{field}");
        }
    }

    #[test]
    fn a_media_type_is_accepted_by_its_name_in_any_case() {
        let accepts = |field: &str| media_ranges(field.as_bytes()).any(|range| range.accepts("text/event-stream"));
        for field in
            ["text/event-stream", "*/*, TEXT/EVENT-STREAM", "text/event-stream;q=0.001", "a/b,text/event-stream"]
        {
            assert!(accepts(field), "{field}");
        }
        for field in ["*/*", "text/*", "text/event-stream;q=0", "text/event-stream; Q=0.0, */*", "text/event-stream2"] {
            assert!(!accepts(field), "{field}");
        }
    }
}
