//! Text of others (reasons, paths, names, errors of peers) in a form without control sequences and line breaks.

use std::fmt::{self, Write};

/// A writer that passes text on with everything in it that could steer a terminal written out.
pub(crate) struct Plain<W>(pub W);

impl<W: Write> Write for Plain<W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut rest = text;
        while let Some((at, c)) = rest.char_indices().find(|(_, c)| steers(*c)) {
            self.0.write_str(&rest[..at])?;
            write!(self.0, "{}", c.escape_unicode())?;
            rest = &rest[at + c.len_utf8()..];
        }
        self.0.write_str(rest)
    }
}

/// Returns whether it is more than a sign on the screen: control characters, the separators of lines and paragraphs,
/// and marks that turn the direction of writing.
pub(crate) fn steers(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{061c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// `text` as [`Plain`] writes it.
pub(crate) fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    Plain(&mut out).write_str(text).expect("a String takes every write");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_client_wrote_steers_no_terminal() {
        assert_eq!(plain("tschüs \u{1b}[2J\r\n"), "tschüs \\u{1b}[2J\\u{d}\\u{a}");
        assert_eq!(plain("a\u{202e}b\u{9b}c\u{2028}"), "a\\u{202e}b\\u{9b}c\\u{2028}");
        assert_eq!(plain("日本 \\ \""), "日本 \\ \"");
    }
}
