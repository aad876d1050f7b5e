//! The opening handshake of RFC 6455 section 4 as a client does it.
//!
//! Invariants: the key is always the RFC's own sample nonce, so the one right answer is known and is compared whole;
//! every answer but a 101 with that answer is an error in words.

/// `Sec-WebSocket-Key` of every request (the sample of RFC 6455 1.3).
pub(crate) const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

/// The `Sec-WebSocket-Accept` that belongs to [`KEY`].
pub(crate) const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// A longer answer is not a handshake.
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// The request for `path` on `host`.
pub(crate) fn request(host: &str, path: &str) -> Vec<u8> {
    request_with(host, path, "")
}

/// The same, with more lines of header fields.
fn request_with(host: &str, path: &str, fields: &str) -> Vec<u8> {
    format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\n{fields}\r\n"
    )
    .into_bytes()
}

/// The same, which offers these subprotocols.
pub(crate) fn request_offering(host: &str, path: &str, protocols: &str) -> Vec<u8> {
    request_with(host, path, &format!("Sec-WebSocket-Protocol: {protocols}\r\n"))
}

/// The length of the answer's head once it is whole and right; `None` while more bytes are needed.
pub(crate) fn check_answer(bytes: &[u8]) -> Result<Option<usize>, String> {
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
        return if bytes.len() > HEAD_BYTES_MAX { Err("endless answer to the upgrade".into()) } else { Ok(None) };
    };
    let head = String::from_utf8_lossy(&bytes[..end]);
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap_or_default();
    if status.split(' ').nth(1) != Some("101") {
        return Err(format!("upgrade answered with `{status}`"));
    }
    let accept = lines
        .filter_map(|line| line.split_once(':'))
        .find_map(|(name, value)| name.trim().eq_ignore_ascii_case("sec-websocket-accept").then_some(value.trim()));
    match accept {
        Some(ACCEPT) => Ok(Some(end + 4)),
        Some(other) => Err(format!("wrong Sec-WebSocket-Accept `{other}`")),
        None => Err("101 without Sec-WebSocket-Accept".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(accept: &str) -> Vec<u8> {
        format!("HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nsec-websocket-accept: {accept}\r\n\r\n")
            .into_bytes()
    }

    #[test]
    fn the_right_answer_is_found_at_any_split() {
        let mut bytes = answer(ACCEPT);
        let head = bytes.len();
        bytes.extend_from_slice(&[0x82, 0]);
        for end in 0..head {
            assert_eq!(check_answer(&bytes[..end]), Ok(None));
        }
        assert_eq!(check_answer(&bytes), Ok(Some(head)));
    }

    #[test]
    fn other_answers_are_errors() {
        assert!(check_answer(b"HTTP/1.1 404 Not Found\r\n\r\n").unwrap_err().contains("404"));
        assert!(check_answer(&answer("nonsense")).unwrap_err().contains("nonsense"));
        assert!(check_answer(b"HTTP/1.1 101 S\r\nupgrade: websocket\r\n\r\n").is_err());
        assert!(check_answer(&[b'x'; HEAD_BYTES_MAX + 1]).is_err());
    }
}
