//! A client's preferred cipher, from its ClientHello before rustls reads it.
//!
//! A client that puts ChaCha20 first has no instructions for AES and gets that. For any other the order means little,
//! and AES-128 is the cheapest here: SHA-384, the hash of AES-256's suite, is a fifth of a handshake's cost.
//!
//! Invariant: the result does not depend on how the bytes are cut. It checks nothing: rustls refuses an invalid
//! ClientHello.

use crate::tls::keys::{HEADER_BYTES, SEALED_BYTES_MAX};

const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const TLS_CHACHA20_POLY1305_SHA256: [u8; 2] = [0x13, 0x03];

/// The bytes of a ClientHello before the length of its session id: type, length, version, random (RFC 8446 4, 4.1.2).
const SESSION_ID_AT: usize = 4 + 2 + 32;

/// Returns whether the client puts ChaCha20 first; `None` as long as more bytes are needed to tell.
pub(super) fn prefers_chacha20(bytes: &[u8]) -> Option<bool> {
    let (&kind, record) = bytes.split_first()?;
    if kind != HANDSHAKE {
        return Some(false);
    }
    let len = usize::from(u16::from_be_bytes(*record.get(2..)?.first_chunk()?));
    let body = &bytes[HEADER_BYTES..];
    // Cut into records so small, or longer than any: the order is not looked at.
    if len > SEALED_BYTES_MAX || body.first().is_some_and(|&kind| kind != CLIENT_HELLO) {
        return Some(false);
    }
    match first_suite(&body[..len.min(body.len())]) {
        None if body.len() >= len => Some(false),
        suite => suite.map(|suite| suite == TLS_CHACHA20_POLY1305_SHA256),
    }
}

/// The first suite of a ClientHello that is one.
fn first_suite(hello: &[u8]) -> Option<[u8; 2]> {
    let session_id_len = usize::from(*hello.get(SESSION_ID_AT)?);
    let suites = hello.get(SESSION_ID_AT + 1 + session_id_len + 2..)?;
    let first = *suites.first_chunk::<2>()?;
    // RFC 8701: a value that means nothing may stand before the others.
    let is_grease = first[0] == first[1] && first[0] & 0x0f == 0x0a;
    if is_grease { suites[2..].first_chunk().copied() } else { Some(first) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(session_id_len: u8, suites: &[[u8; 2]]) -> Vec<u8> {
        let suites = suites.concat();
        let random = [7; 32];
        let session_id = vec![9; usize::from(session_id_len)];
        let body =
            [&[1, 0, 1, 0, 3, 3], &random[..], &[session_id_len], &session_id, &[0, suites.len() as u8], &suites];
        let body = body.concat();
        [&[22, 3, 1, 0, body.len() as u8], &body[..]].concat()
    }

    #[test]
    fn the_first_suite_is_found_however_the_hello_comes() {
        let (aes, chacha, grease) = ([0x13, 0x01], TLS_CHACHA20_POLY1305_SHA256, [0xba, 0xba]);
        for session_id_len in [0, 32] {
            for (suites, prefers) in [
                (&[chacha, aes][..], true),
                (&[grease, chacha, aes], true),
                (&[aes, chacha], false),
                (&[grease, aes, chacha], false),
                (&[], false),
                (&[grease], false),
            ] {
                let hello = hello(session_id_len, suites);
                assert_eq!(prefers_chacha20(&hello), Some(prefers), "{suites:?}");
                for cut in 0..hello.len() {
                    let early = prefers_chacha20(&hello[..cut]);
                    assert!(early.is_none() || early == Some(prefers), "{suites:?} cut at {cut}");
                }
            }
        }
    }

    #[test]
    fn what_is_no_hello_is_told_at_once() {
        for bytes in
            [&b"SSH-2.0"[..], &[21, 3, 3, 0, 2], &[22, 3, 3, 0xff, 0xff], &[22, 3, 3, 0, 9, 2], &[22, 3, 1, 0, 0]]
        {
            assert_eq!(prefers_chacha20(bytes), Some(false), "{bytes:?}");
        }
        for bytes in [&[][..], &[22], &[22, 3, 1, 0]] {
            assert_eq!(prefers_chacha20(bytes), None, "{bytes:?}");
        }
    }
}
