//! The way in: what a read gave becomes requests, frames and events.

pub(super) mod http;
pub(super) mod receive;
