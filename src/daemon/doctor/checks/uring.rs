//! io_uring: whether it exists, whether its sends can be used, and which setting forbids it.

use super::{Finding, Level};
use crate::daemon::config::{DaemonConfig, DriverValue};
use crate::daemon::doctor::facts::{Facts, SendingFault, Uring};
use rustix::io::Errno;

const RING: &str = "io_uring";
const SENDING: &str = "batched sends";

/// The mode of seccomp in which a filter decides (prctl(2)).
const SECCOMP_FILTER: u64 = 2;

/// The driver of the shards.
pub(super) fn ring(config: &DaemonConfig, facts: &Facts) -> Finding {
    let kernel = &facts.kernel;
    match (&facts.uring.runtime, config.driver) {
        (Ok(_), DriverValue::Epoll) => Finding::new(
            Level::Note,
            RING,
            format!("not used (--driver epoll), although Linux {kernel} offers it here"),
            "--driver auto, unless there is a reason",
        ),
        (Ok(why), _) => Finding::ok(RING, format!("{why}; Linux {kernel}")),
        (Err(_), DriverValue::Epoll) => Finding::ok(RING, "not used (--driver epoll), and not to be had here"),
        (Err(why), driver) => {
            let (cause, fix) = refusal(&facts.uring, kernel, why);
            match driver {
                DriverValue::Uring => Finding::new(Level::Problem, RING, cause, fix),
                _ => Finding::new(Level::Warning, RING, format!("{cause}; epoll serves, at a higher cost"), fix),
            }
        }
    }
}

/// Why a ring is refused, and what to do.
fn refusal(uring: &Uring, kernel: &str, why: &str) -> (String, String) {
    let errno = match uring.sending {
        Err(SendingFault::NoRing(errno)) => Errno::from_raw_os_error(errno),
        // A ring can be had, but not all that the runtime needs of it.
        _ => return (why.to_owned(), format!("a newer kernel: Linux 6.1 or later (this is {kernel})")),
    };
    let is_filtered = uring.seccomp == Some(SECCOMP_FILTER);
    let allow = "let the filter pass io_uring_setup, io_uring_enter and io_uring_register: \
                 docker run --security-opt seccomp=pushring-seccomp.json (docs/OPERATIONS.md), \
                 or SystemCallFilter=@system-service in a unit";
    let (cause, fix) = match (errno, uring.disabled) {
        (Errno::PERM, Some(2)) => {
            ("forbidden for all by kernel.io_uring_disabled=2", "sysctl -w kernel.io_uring_disabled=0")
        }
        (Errno::PERM, Some(1)) if !uring.is_admin => (
            "forbidden by kernel.io_uring_disabled=1 but for the group kernel.io_uring_group",
            "sysctl -w kernel.io_uring_group=$(id -g), with the daemon's group, or kernel.io_uring_disabled=0",
        ),
        (Errno::PERM | Errno::ACCESS | Errno::NOSYS, _) if is_filtered => ("forbidden by a seccomp filter", allow),
        (Errno::PERM | Errno::ACCESS, _) => (
            "forbidden, though neither by sysctl nor by seccomp",
            "look for denials of io_uring by a security module: ausearch -m avc, or journalctl -k",
        ),
        (Errno::NOSYS, _) => ("not in this kernel", "a kernel with CONFIG_IO_URING, Linux 6.1 or later"),
        (Errno::NOMEM, _) if uring.memlock_bytes.is_some() && version(kernel) < (5, 12) => (
            "refused for want of lockable memory, as which this kernel counts rings",
            "LimitMEMLOCK=infinity in the unit, docker run --ulimit memlock=-1, or ulimit -l unlimited",
        ),
        (Errno::NOMEM, _) => ("refused for want of memory", "free memory, or raise the limit of the control group"),
        (Errno::MFILE | Errno::NFILE, _) => ("refused for want of file descriptors", "raise the limit of open files"),
        _ => return (why.to_owned(), "--driver epoll, and please report it".to_owned()),
    };
    (format!("{cause} ({errno}); Linux {kernel}"), fix.to_owned())
}

/// The ring by which batches leave.
pub(super) fn sending(config: &DaemonConfig, facts: &Facts) -> Finding {
    match &facts.uring.sending {
        _ if config.driver == DriverValue::Epoll || facts.uring.runtime.is_err() => {
            Finding::ok(SENDING, "one by one, as epoll does")
        }
        Ok(()) => Finding::ok(SENDING, "proved on this kernel"),
        Err(SendingFault::NoRing(errno)) => {
            let errno = Errno::from_raw_os_error(*errno);
            let words = format!("no second ring ({errno}): sends go one by one, at a higher cost");
            Finding::new(Level::Warning, SENDING, words, "raise the limits of open files and of memory")
        }
        Err(SendingFault::Unfit(why)) => {
            let words = format!("{why}: sends go one by one, at a higher cost");
            Finding::new(Level::Warning, SENDING, words, "a newer kernel: Linux 6.1 or later")
        }
    }
}

/// Major and minor number of a release; unreadable is very new.
fn version(release: &str) -> (u32, u32) {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().unwrap_or(u32::MAX));
    (numbers.next().unwrap_or(u32::MAX), numbers.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::super::tests::expect;
    use super::*;

    fn refused(facts: &mut Facts, errno: Errno) {
        facts.uring.runtime = Err("io_uring refused".to_owned());
        facts.uring.sending = Err(SendingFault::NoRing(errno.raw_os_error()));
    }

    /// As [`expect`], but for the remark on sends, which comes with any refusal.
    #[track_caller]
    fn ring_is(level: Level, words: &str, fix: &str, change: impl FnOnce(&mut DaemonConfig, &mut Facts)) {
        let (mut config, mut facts) = (DaemonConfig::default(), Facts::fine());
        change(&mut config, &mut facts);
        let finding = ring(&config, &facts);
        let fixed = finding.fix.as_deref().unwrap_or("");
        assert!(finding.level == level && finding.found.contains(words) && fixed.contains(fix), "{finding:#?}");
        assert_eq!(sending(&config, &facts).level, Level::Ok, "said once");
    }

    #[test]
    fn each_refusal_has_its_cause_and_its_fix() {
        ring_is(Level::Warning, "kernel.io_uring_disabled=2", "io_uring_disabled=0", |_, facts| {
            refused(facts, Errno::PERM);
            facts.uring.disabled = Some(2);
        });
        ring_is(Level::Warning, "kernel.io_uring_disabled=1", "kernel.io_uring_group", |_, facts| {
            refused(facts, Errno::PERM);
            facts.uring.disabled = Some(1);
        });
        ring_is(Level::Problem, "seccomp", "docker run --security-opt", |config, facts| {
            refused(facts, Errno::PERM);
            facts.uring.seccomp = Some(2);
            config.driver = DriverValue::Uring;
        });
        ring_is(Level::Warning, "seccomp", "SystemCallFilter=", |_, facts| {
            refused(facts, Errno::NOSYS);
            facts.uring.seccomp = Some(2);
        });
        ring_is(Level::Warning, "neither by sysctl", "ausearch", |_, facts| {
            refused(facts, Errno::PERM);
            (facts.uring.disabled, facts.uring.is_admin) = (Some(1), true);
        });
        ring_is(Level::Warning, "not in this kernel", "CONFIG_IO_URING", |_, facts| refused(facts, Errno::NOSYS));
        ring_is(Level::Warning, "lockable", "LimitMEMLOCK=infinity", |_, facts| {
            refused(facts, Errno::NOMEM);
            (facts.uring.memlock_bytes, facts.kernel) = (Some(64 << 10), "5.4.0-1-generic".to_owned());
        });
        ring_is(Level::Warning, "want of memory", "control group", |_, facts| {
            refused(facts, Errno::NOMEM);
            facts.uring.memlock_bytes = Some(64 << 10);
        });
        ring_is(Level::Warning, "descriptors", "open files", |_, facts| refused(facts, Errno::MFILE));
        ring_is(Level::Warning, "io_uring refused", "report", |_, facts| refused(facts, Errno::IO));
        ring_is(Level::Warning, "not all that is needed", "Linux 6.1", |_, facts| {
            facts.uring.runtime = Err("not all that is needed".to_owned());
        });
        ring_is(Level::Ok, "not to be had", "", |config, facts| {
            refused(facts, Errno::PERM);
            config.driver = DriverValue::Epoll;
        });
        ring_is(Level::Note, "--driver epoll", "--driver auto", |config, _| config.driver = DriverValue::Epoll);
    }

    #[test]
    fn sends_that_are_not_fit() {
        expect(Level::Warning, "short count", "Linux 6.1", |_, facts| {
            facts.uring.sending = Err(SendingFault::Unfit("no short count".to_owned()));
        });
        expect(Level::Warning, "no second ring", "open files", |_, facts| {
            facts.uring.sending = Err(SendingFault::NoRing(Errno::MFILE.raw_os_error()));
        });
    }

    #[test]
    fn releases() {
        for (release, numbers) in [("6.8.0-41-generic", (6, 8)), ("5.4", (5, 4)), ("", (u32::MAX, 0))] {
            assert_eq!(version(release), numbers);
        }
    }
}
