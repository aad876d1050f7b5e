//! The times at which an authority is asked: pure functions.

use serde::{Deserialize, Serialize};
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

/// The attempts that have failed in a row, as they are kept across restarts: a daemon that is started again and again
/// asks no more often than one that runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FailedAttempts {
    /// Of whom a certificate was asked for.
    url: String,
    /// For which names.
    names: Vec<String>,
    failures: u32,
    /// Not before that it is asked for again.
    again_unix_s: u64,
}

impl FailedAttempts {
    /// None, yet, at this authority for these names.
    pub(super) fn none(url: &str, names: &[String]) -> Self {
        Self { url: url.to_owned(), names: names.to_vec(), failures: 0, again_unix_s: 0 }
    }

    /// As they were kept, if they are of the same authority and names: others say nothing of these.
    pub(super) fn or_none(kept: Option<Self>, url: &str, names: &[String]) -> Self {
        kept.filter(|kept| kept.url == url && kept.names == names).unwrap_or_else(|| Self::none(url, names))
    }

    /// With the one that begins now: it has failed until it is known that it has not.
    pub(super) fn with_one_more(self, now_unix_s: u64) -> Self {
        let failures = self.failures.saturating_add(1);
        let pause = pause_after(failures, now_unix_s as u32);
        Self { failures, again_unix_s: now_unix_s.saturating_add(pause.as_secs()), ..self }
    }

    /// How long the authority is to be left alone. None: it need not be, or the clock was set back since.
    pub(super) fn pause(&self, now_unix_s: u64) -> Option<Duration> {
        let left = Duration::from_secs(self.again_unix_s.saturating_sub(now_unix_s));
        (!left.is_zero() && left <= PAUSE_MAX.mul_f64(1.1)).then_some(left)
    }
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

    #[test]
    fn failures_are_remembered_of_the_same_authority_and_names_alone() {
        let (url, names) = ("https://a.example/dir", ["x.example".to_owned()]);
        let fresh = FailedAttempts::none(url, &names);
        assert_eq!(fresh.pause(1_000), None);
        let mut kept = fresh.clone();
        for (failures, minutes) in [(1, 5), (2, 10), (3, 20)] {
            kept = kept.with_one_more(1_000);
            let pause = kept.pause(1_000).unwrap().as_secs();
            assert!((minutes * 60..=minutes * 66).contains(&pause) && kept.failures == failures, "{pause} s");
            assert_eq!((kept.pause(1_000 + pause - 1).unwrap().as_secs(), kept.pause(1_000 + pause)), (1, None));
        }
        let again = serde_json::from_slice(&serde_json::to_vec(&kept).unwrap()).unwrap();
        assert_eq!(FailedAttempts::or_none(Some(again), url, &names), kept);
        assert_eq!(FailedAttempts::or_none(Some(kept.clone()), "https://b.example/dir", &names).failures, 0);
        assert_eq!(FailedAttempts::or_none(Some(kept.clone()), url, &["y.example".to_owned()]).failures, 0);
        // A clock that was years ahead when it failed.
        assert_eq!(fresh.with_one_more(1_000_000_000).pause(1_000), None);
    }
}
