//! UTF-8 that is checked as it streams.
//!
//! Invariant: [`Utf8Stream::push`] fails on the first byte that no UTF-8 text can have at that place, even inside a
//! sequence that has not ended, however the text is cut into pieces (RFC 6455 8.1; Autobahn 6.4 tells the difference).

/// Returns whether `bytes` is UTF-8 from start to end.
#[inline]
pub fn is_utf8(bytes: &[u8]) -> bool {
    simdutf8::basic::from_utf8(bytes).is_ok()
}

/// The bytes are not UTF-8.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotUtf8;

/// The state of a text of which some has been seen: what the sequence in progress still needs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Utf8Stream {
    /// Continuation bytes still missing, 0 between characters.
    missing: u8,
    /// The least valid value of the next continuation byte; meaningless when none is missing.
    lowest: u8,
    /// The greatest valid value of the next continuation byte.
    highest: u8,
}

impl Utf8Stream {
    /// Checks the next piece of the text. After an error the stream is of no more use.
    pub fn push(&mut self, piece: &[u8]) -> Result<(), NotUtf8> {
        let mut rest = piece;
        while self.missing > 0 {
            let Some((&byte, after)) = rest.split_first() else { return Ok(()) };
            self.push_byte(byte)?;
            rest = after;
        }
        let (whole, unfinished) = rest.split_at(rest.len() - unfinished_bytes(rest));
        if !is_utf8(whole) {
            return Err(NotUtf8);
        }
        unfinished.iter().try_for_each(|&byte| self.push_byte(byte))
    }

    /// Returns whether the text may end here: true between characters.
    pub fn is_complete(&self) -> bool {
        self.missing == 0
    }

    /// One byte by Table 3-7 of the Unicode standard: the lead says how many follow, and the first that follows has a
    /// narrower range where the encoding would be too long, a surrogate, or above U+10FFFF.
    fn push_byte(&mut self, byte: u8) -> Result<(), NotUtf8> {
        if self.missing > 0 {
            if byte < self.lowest || byte > self.highest {
                return Err(NotUtf8);
            }
            (self.missing, self.lowest, self.highest) = (self.missing - 1, 0x80, 0xbf);
            return Ok(());
        }
        (self.missing, self.lowest, self.highest) = match byte {
            0x00..=0x7f => (0, 0, 0),
            0xc2..=0xdf => (1, 0x80, 0xbf),
            0xe0 => (2, 0xa0, 0xbf),
            0xed => (2, 0x80, 0x9f),
            0xe1..=0xef => (2, 0x80, 0xbf),
            0xf0 => (3, 0x90, 0xbf),
            0xf1..=0xf3 => (3, 0x80, 0xbf),
            0xf4 => (3, 0x80, 0x8f),
            0x80..=0xc1 | 0xf5..=0xff => return Err(NotUtf8),
        };
        Ok(())
    }
}

/// How many bytes at the end of `bytes` begin a sequence that ends beyond it (0 to 3). They may still be wrong.
fn unfinished_bytes(bytes: &[u8]) -> usize {
    for (behind, &byte) in bytes.iter().rev().take(3).enumerate() {
        let needed = match byte {
            0xc0..=0xdf => 2,
            0xe0..=0xef => 3,
            0xf0..=0xff => 4,
            0x80..=0xbf => continue,
            0x00..=0x7f => return 0,
        };
        return if needed > behind + 1 { behind + 1 } else { 0 };
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The index of the first byte that is refused, by pushing pieces of `piece_bytes`; None when all are taken.
    fn refused_piece(text: &[u8], piece_bytes: usize) -> Option<usize> {
        let mut stream = Utf8Stream::default();
        text.chunks(piece_bytes).position(|piece| stream.push(piece).is_err())
    }

    /// The naive twin: a text of one more byte is refused when std knows that nothing could make it right.
    fn first_bad_byte(text: &[u8]) -> Option<usize> {
        (0..text.len()).find(|&at| std::str::from_utf8(&text[..=at]).is_err_and(|error| error.error_len().is_some()))
    }

    const TEXTS: &[&[u8]] = &[
        b"",
        b"Hello",
        "κόσμε".as_bytes(),
        "a\u{80}\u{7ff}\u{800}\u{d7ff}\u{e000}\u{ffff}\u{10000}\u{10ffff}".as_bytes(),
        b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xf4\x90\x80\x80edited",
        b"\xed\xa0\x80",
        b"\xe0\x9f\xbf",
        b"\xf0\x8f\xbf\xbf",
        b"\xc0\xaf",
        b"\xc1\xbf",
        b"\xf5\x80\x80\x80",
        b"\xff",
        b"\x80",
        b"ok\xe2\x82",
        b"ok\xe2\x28\xa1",
        b"0123456789012345678901234567890123456789012345678901234567890123456789\xf0\x9f\x98",
        b"0123456789012345678901234567890123456789012345678901234567890123456789\xf0\x9f\x98\x80\xc3\x28",
    ];

    #[test]
    fn every_cut_agrees_with_the_naive_twin() {
        for text in TEXTS {
            for piece_bytes in 1..=text.len().max(1) {
                let expected = first_bad_byte(text).map(|at| at / piece_bytes);
                assert_eq!(refused_piece(text, piece_bytes), expected, "{text:x?} in pieces of {piece_bytes}");
            }
        }
    }

    #[test]
    fn all_pairs_and_many_triples_agree_with_std() {
        for first in 0..=255u8 {
            for second in 0..=255u8 {
                for third in [0x00, 0x41, 0x7f, 0x80, 0x8f, 0x90, 0x9f, 0xa0, 0xbf, 0xc2, 0xed, 0xf4, 0xff] {
                    let text = [first, second, third];
                    assert_eq!(refused_piece(&text, 1), first_bad_byte(&text), "{text:x?}");
                    assert_eq!(refused_piece(&text, 3).is_some(), first_bad_byte(&text).is_some(), "{text:x?}");
                }
            }
        }
    }

    #[test]
    fn an_end_inside_a_character_is_seen() {
        for text in TEXTS.iter().filter(|text| first_bad_byte(text).is_none()) {
            let mut stream = Utf8Stream::default();
            stream.push(text).unwrap();
            assert_eq!(stream.is_complete(), std::str::from_utf8(text).is_ok(), "{text:x?}");
        }
    }
}
