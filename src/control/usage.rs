//! The machine's resources that the broker's OS process uses, as the system accounts for them (proc(5)).

use rustix::process::{Resource, getrlimit};
use serde::{Deserialize, Serialize};
use std::fs;
use std::os::unix::fs::MetadataExt;

/// The program at one moment. What the system does not tell is 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Usage {
    /// Time on processors, of user and system, in milliseconds.
    pub cpu_ms: u64,
    /// Memory that it has in use.
    pub resident_bytes: u64,
    /// Addresses that it has in use.
    pub virtual_bytes: u64,
    /// Its threads.
    pub threads: u64,
    /// Its open files.
    pub open_files: u64,
    /// How many it may open; none: as many as it likes.
    pub open_files_max: Option<u64>,
    /// When it started, in milliseconds after 1970.
    pub start_unix_ms: u64,
    /// Lines that its log has lost.
    pub log_lines_lost: u64,
    /// Writes of its log that failed.
    pub log_write_errors: u64,
}

impl Usage {
    /// This program, now; of its log it knows nothing.
    pub fn now() -> Self {
        let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        let boot = fs::read_to_string("/proc/stat").unwrap_or_default();
        let open_files = open_files();
        Self { open_files, open_files_max: getrlimit(Resource::Nofile).current, ..parse(&stat, &boot) }
    }
}

fn parse(stat: &str, boot: &str) -> Usage {
    // The second field is the program's name, which may contain anything but is in brackets.
    let fields: Vec<u64> = match stat.rsplit_once(')') {
        Some((_, rest)) => rest.split_ascii_whitespace().map(|field| field.parse().unwrap_or(0)).collect(),
        None => Vec::new(),
    };
    // By their numbers in proc(5); the third is the first behind the name.
    let field = |number: usize| fields.get(number - 3).copied().unwrap_or(0);
    let ms = |ticks: u64| ticks.saturating_mul(1000) / rustix::param::clock_ticks_per_second().max(1);
    let boot_s: u64 = boot.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok()).unwrap_or(0);
    Usage {
        cpu_ms: ms(field(14) + field(15)),
        threads: field(20),
        start_unix_ms: boot_s * 1000 + ms(field(22)),
        virtual_bytes: field(23),
        resident_bytes: field(24) * rustix::param::page_size() as u64,
        ..Usage::default()
    }
}

fn open_files() -> u64 {
    // Since Linux 6.2 the directory's size is their number; counting tens of thousands takes a while.
    match fs::metadata("/proc/self/fd") {
        Ok(metadata) if metadata.size() > 0 => metadata.size(),
        // The one that lists them is open as well.
        _ => fs::read_dir("/proc/self/fd").map_or(0, |files| files.count().saturating_sub(1) as u64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_system_accounts() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 800 0 0 0 150 50 0 0 20 0 9 0 4200 1000000 30 18446744073709551615";
        let program = parse(stat, "cpu 1 2\nbtime 1000\nprocesses 7\n");
        let ticks = rustix::param::clock_ticks_per_second();
        assert_eq!((program.cpu_ms, program.threads), (200_000 / ticks, 9));
        assert_eq!(
            (program.virtual_bytes, program.resident_bytes),
            (1_000_000, 30 * rustix::param::page_size() as u64)
        );
        assert_eq!(program.start_unix_ms, 1_000_000 + 4_200_000 / ticks);
        assert_eq!(parse("", ""), Usage::default());
    }

    #[test]
    fn this_program_is_seen() {
        let program = Usage::now();
        assert!(program.resident_bytes > 1 << 20 && program.threads > 0 && program.open_files > 2, "{program:?}");
        assert!(program.start_unix_ms > 1_600_000_000_000 && program.open_files_max.is_some_and(|max| max > 10));
    }
}
