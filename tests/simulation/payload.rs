//! Payloads that tell whose they are: each begins with two numbers, and goes on with letters that depend on them.

use std::sync::LazyLock;

const LETTERS: usize = 26;

static PATTERN: LazyLock<Vec<u8>> =
    LazyLock::new(|| (0..LETTERS + 512 * 1024).map(|at| b'a' + (at % LETTERS) as u8).collect());

fn filler(from: u64, len: usize) -> &'static [u8] {
    let from = (from % LETTERS as u64) as usize;
    &PATTERN[from..from + len]
}

/// The payload of a push.
pub fn of_push(id: u64, len: usize) -> Vec<u8> {
    [format!("{id:016x}").as_bytes(), filler(id, len)].concat()
}

/// The push that a payload belongs to, if it is of one.
pub fn push_id(payload: &[u8]) -> Option<u64> {
    u64::from_str_radix(std::str::from_utf8(payload.get(..16)?).ok()?, 16).ok()
}

/// The payload of a client's message, or the body of its request.
pub fn of_client(client: usize, sequence: u64, len: usize) -> Vec<u8> {
    [token(client, sequence).as_bytes(), filler(sequence, len)].concat()
}

/// The beginning of such a payload.
pub fn token(client: usize, sequence: u64) -> String {
    format!("{client:08}{sequence:08}")
}

/// The client and the number in `token`.
pub fn of_token(token: &str) -> Option<(usize, u64)> {
    Some((token.get(..8)?.parse().ok()?, token.get(8..16)?.parse().ok()?))
}
