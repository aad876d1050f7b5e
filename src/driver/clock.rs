//! The clock of a broker: one for all of its shards, which compare times.

use std::time::{Instant, SystemTime};

/// Time since it was started; never goes back.
#[derive(Debug, Clone, Copy)]
pub struct Clock(Instant);

impl Clock {
    /// A clock at 0.
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// The time in nanoseconds.
    pub fn now_ns(self) -> u64 {
        // 584 years.
        self.0.elapsed().as_nanos() as u64
    }

    /// The time in milliseconds.
    pub fn now_ms(self) -> u64 {
        self.0.elapsed().as_millis() as u64
    }

    /// The time in microseconds.
    pub fn now_us(self) -> u64 {
        self.0.elapsed().as_micros() as u64
    }
}

/// Nanoseconds since a moment in the past, for measuring durations.
pub fn monotonic_ns() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    // The clock begins at 0 and never goes back.
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// The time that this thread has had a processor, in nanoseconds.
pub fn thread_cpu_ns() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    // A thread's own time begins at 0.
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// The time of day, in milliseconds since 1970.
pub fn unix_ms() -> u64 {
    // A clock before 1970 only makes tokens look valid that expired long ago; it is the operator's to set.
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}

/// The same in seconds.
pub fn unix_s() -> u64 {
    unix_ms() / 1000
}
