//! The clock of a broker: its shards count on it together, so it is one.

use std::time::Instant;

/// Milliseconds since it was started; never goes back.
#[derive(Debug, Clone, Copy)]
pub struct Clock(Instant);

impl Clock {
    /// A clock at 0.
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// The time.
    pub fn now_ms(self) -> u64 {
        self.0.elapsed().as_millis() as u64
    }
}
