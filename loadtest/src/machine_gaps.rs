//! What a machine adds to the CPU time of a thread that does nothing but read that time: interrupts, and on a virtual
//! machine whatever its host took of the processor. The floor of all times of single turns.

use std::io;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::sys;

/// Gaps between two readings of a thread's own CPU time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(crate) struct MachineGaps {
    /// For how long it was read, in seconds.
    pub seconds: f64,
    /// Gaps of over 2 ms.
    pub over_2_ms: u64,
    /// The longest, in microseconds.
    pub longest_us: f64,
}

const LONG_NS: u64 = 2_000_000;

/// Reads the time for so long, on a thread of its own that runs on `cpus` only; on any where there are none.
pub(crate) fn measure(cpus: &[usize], how_long: Duration) -> io::Result<MachineGaps> {
    let watch = || {
        if !cpus.is_empty() {
            sys::pin_to(cpus)?;
        }
        let (started, mut last_ns, mut gaps) = (Instant::now(), sys::thread_cpu_ns(), MachineGaps::default());
        let mut longest_ns = 0;
        while started.elapsed() < how_long {
            let now_ns = sys::thread_cpu_ns();
            let gap_ns = now_ns - last_ns;
            gaps.over_2_ms += u64::from(gap_ns > LONG_NS);
            longest_ns = longest_ns.max(gap_ns);
            last_ns = now_ns;
        }
        (gaps.seconds, gaps.longest_us) = (how_long.as_secs_f64(), longest_ns as f64 / 1000.0);
        Ok(gaps)
    };
    std::thread::scope(|scope| scope.spawn(watch).join().expect("it does not panic"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_sees_its_time_go_by() {
        let gaps = measure(&[], Duration::from_millis(20)).unwrap();
        assert!(gaps.longest_us > 0.0 && gaps.seconds == 0.02, "{gaps:?}");
        assert!(measure(&[100_000], Duration::ZERO).is_err(), "there is no such CPU");
    }
}
