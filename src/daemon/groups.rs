//! The CPU time that this OS process' control groups leave it.

use pushring::internals::driver::available::{GroupVersion, group_directories};
use std::fs;
use std::path::{Path, PathBuf};

/// How many cores' worth of time the tightest of these groups leaves this process; none: as many as there are.
pub(crate) fn cores_max(root: &Path) -> Option<f64> {
    let quota = |(version, directory): (GroupVersion, PathBuf)| {
        let read = |file: &str| fs::read_to_string(directory.join(file)).ok();
        let (quota, period) = match version {
            GroupVersion::One => (read("cpu.cfs_quota_us")?, read("cpu.cfs_period_us")?),
            GroupVersion::Two => {
                let text = read("cpu.max")?;
                let (quota, period) = text.trim().split_once(' ')?;
                (quota.to_owned(), period.to_owned())
            }
        };
        // No limit is `max` in the second version and -1 in the first.
        let quota: u64 = quota.trim().parse().ok()?;
        let period: u64 = period.trim().parse().ok().filter(|period| *period > 0)?;
        Some(quota as f64 / period as f64)
    };
    group_directories(root, "cpu").into_iter().filter_map(quota).min_by(f64::total_cmp)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::memory::tests::Root;

    #[test]
    fn the_tightest_quota_counts() {
        let second = Root::new(
            "quota-v2",
            &[
                ("proc/self/cgroup", "0::/a/b\n"),
                ("sys/fs/cgroup/a/cpu.max", "150000 100000\n"),
                ("sys/fs/cgroup/a/b/cpu.max", "max 100000\n"),
            ],
        );
        assert_eq!(cores_max(&second.0), Some(1.5));
        let first = Root::new(
            "quota-v1",
            &[
                ("proc/self/cgroup", "5:cpu,cpuacct:/a\n0::/\n"),
                ("sys/fs/cgroup/cpu/a/cpu.cfs_quota_us", "50000\n"),
                ("sys/fs/cgroup/cpu/a/cpu.cfs_period_us", "100000\n"),
                ("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n"),
                ("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n"),
            ],
        );
        assert_eq!(cores_max(&first.0), Some(0.5));
        let none = Root::new("quota-none", &[("proc/self/cgroup", "0::/\n")]);
        assert_eq!(cores_max(&none.0), None);
    }
}
