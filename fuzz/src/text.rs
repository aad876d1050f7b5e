//! UTF-8 that streams and masks that are undone in pieces equal the plain ways to do it at once.

use super::splits::{pieces, splits};
use pushring::internals::proto::mask;
use pushring::internals::proto::utf8::{Utf8Stream, is_utf8};

/// Four bytes of masking key, then the text.
pub fn holds(data: &[u8]) {
    let Some((&key, text)) = data.split_first_chunk::<4>() else { return };
    let by_std = std::str::from_utf8(text);
    assert_eq!(is_utf8(text), by_std.is_ok());
    // Where std finds a byte that nothing behind it can mend, the stream must fail; where only more is needed, wait.
    let is_hopeless = by_std.is_err_and(|error| error.error_len().is_some());
    let mut naive = text.to_vec();
    naive.iter_mut().enumerate().for_each(|(at, byte)| *byte ^= key[at % 4]);
    for cuts in splits(text) {
        let mut stream = Utf8Stream::default();
        let pushed = pieces(text, &cuts).try_for_each(|piece| stream.push(piece));
        assert_eq!(pushed.is_err(), is_hopeless, "cut at {cuts:?}");
        if pushed.is_ok() {
            assert_eq!(stream.is_complete(), by_std.is_ok());
        }
        let (mut unmasked, mut start) = (text.to_vec(), 0);
        for end in cuts.into_iter().chain([text.len()]) {
            mask::unmask(&mut unmasked[start..end], mask::rotated(key, start));
            start = end;
        }
        assert_eq!(unmasked, naive);
    }
}
