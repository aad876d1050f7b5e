//! What a machine adds to the CPU time of a thread that does nothing but read that time: interrupts, and on a virtual
//! machine whatever its host took of the processor. The floor of all times of single turns.
//!
//! The other processors are kept busy meanwhile, as they are while a server is measured: a host that gives its machines
//! a quota of CPU time stops those that use all of it, and one busy thread does not.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
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

/// Reads the time for so long, on a thread of its own that runs on `cpus` only, while another one spins on `others`; on
/// any CPUs where there are none.
pub(crate) fn measure(cpus: &[usize], others: &[usize], how_long: Duration) -> io::Result<MachineGaps> {
    let is_over = AtomicBool::new(false);
    let watch = || {
        pin_to(cpus)?;
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
    let spin = || {
        pin_to(others)?;
        while !is_over.load(Ordering::Relaxed) {
            std::hint::spin_loop();
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let (watch, spin) = (scope.spawn(watch), scope.spawn(spin));
        let gaps = watch.join().expect("it does not panic");
        is_over.store(true, Ordering::Relaxed);
        let spun: io::Result<()> = spin.join().expect("it does not panic");
        spun.and(gaps)
    })
}

fn pin_to(cpus: &[usize]) -> io::Result<()> {
    if cpus.is_empty() { Ok(()) } else { sys::pin_to(cpus) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_sees_its_time_go_by() {
        let gaps = measure(&[], &[], Duration::from_millis(20)).unwrap();
        assert!(gaps.longest_us > 0.0 && gaps.seconds == 0.02, "{gaps:?}");
        assert!(measure(&[100_000], &[], Duration::ZERO).is_err(), "there is no such CPU");
        assert!(measure(&[], &[100_000], Duration::ZERO).is_err(), "there is no such CPU");
    }
}
