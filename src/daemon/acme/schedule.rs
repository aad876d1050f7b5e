//! The times at which an authority is asked: pure functions.

use std::time::Duration;

/// Certificates that live shorter than this are renewed at half their time: there is less of it for failures.
const SHORT_LIVED_S: u64 = 10 * 24 * 3600;

/// Authorities count failures: Let's Encrypt lets five validations of a name fail in an hour.
const PAUSE_MIN: Duration = Duration::from_secs(5 * 60);
const PAUSE_MAX: Duration = Duration::from_secs(12 * 3600);

/// When a certificate that is good from one time to another should have a successor.
pub(super) fn due_unix_s(not_before_unix_s: u64, not_after_unix_s: u64) -> u64 {
    let life_s = not_after_unix_s.saturating_sub(not_before_unix_s);
    let left_s = if life_s < SHORT_LIVED_S { life_s / 2 } else { life_s / 3 };
    not_after_unix_s - left_s
}

/// The wait after so many failures in a row: five minutes, doubled each time, up to half a day. `chance` adds up to a
/// tenth, so that daemons that failed together do not retry together.
pub(super) fn pause_after(failures: u32, chance: u32) -> Duration {
    let doubled = PAUSE_MIN.saturating_mul(1 << failures.saturating_sub(1).min(16));
    let pause = doubled.min(PAUSE_MAX);
    pause + pause.mul_f64(f64::from(chance.wrapping_mul(0x9e37_79b9)) / f64::from(u32::MAX) / 10.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renewals_leave_time_for_failures() {
        const DAY_S: u64 = 24 * 3600;
        assert_eq!(due_unix_s(0, 90 * DAY_S), 60 * DAY_S);
        assert_eq!(due_unix_s(DAY_S, 7 * DAY_S), 4 * DAY_S);
        assert_eq!(due_unix_s(5, 5), 5);
        assert_eq!(due_unix_s(9, 5), 5);
    }

    #[test]
    fn pauses_grow_and_end_growing() {
        let minutes = |failures| pause_after(failures, 0).as_secs() / 60;
        assert_eq!([1, 2, 3, 8, 9, 1000].map(minutes), [5, 10, 20, 640, 720, 720]);
        for chance in [1, 7, 0x7fff_ffff, u32::MAX] {
            let pause = pause_after(1, chance);
            assert!((PAUSE_MIN..=PAUSE_MIN.mul_f64(1.1)).contains(&pause), "{pause:?}");
        }
    }
}
