//! Properties of any bytes that a peer sends, as functions that panic where one does not hold.
//!
//! Each property has a fuzz target of its name, and `tests/promises/fuzz_corpus_replay.rs` feeds it every file below
//! `seeds/` in an ordinary test run. A property is deterministic: all its choices come from the bytes. The first byte
//! of most inputs holds settings, so that one target covers several ways to use what it tests.

pub mod actions;
pub mod deflate;
pub mod event_streams;
pub mod frames;
pub mod http_request;
pub mod hub;
pub mod proxy_protocol;
pub mod received;
pub mod registration;
pub mod resume;
pub mod splits;
pub mod text;
pub mod tls_handshake;
pub mod tls_records;
pub mod upgrade;

/// A property by the name of its target.
pub type Property = (&'static str, fn(&[u8]));

/// All but `fleet`, `link` and `push_api`, whose messages and orders only the library itself can see.
pub const PROPERTIES: &[Property] = &[
    ("actions", actions::holds),
    ("deflate", deflate::holds),
    ("event_streams", event_streams::holds),
    ("frames", frames::holds),
    ("http_request", http_request::holds),
    ("hub", hub::holds),
    ("proxy_protocol", proxy_protocol::holds),
    ("registration", registration::holds),
    ("resume", resume::holds),
    ("text", text::holds),
    ("tls_handshake", tls_handshake::holds),
    ("tls_records", tls_records::holds),
    ("upgrade", upgrade::holds),
];
