//! The core of the broker, one per CPU core, sans-IO.

pub mod flush;
