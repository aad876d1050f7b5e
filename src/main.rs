//! The `pushring` daemon.
fn main() {}
