//! The system's limits: open files, memory, processors.

use super::{Finding, Level};
use crate::daemon::config::DaemonConfig;
use crate::daemon::doctor::facts::{Cores, Files};
use crate::daemon::memory::MemoryBudget;
use crate::daemon::table::bytes;
use pushring::internals::admission::ConnectionLimits;
use pushring::internals::broker::limits_within_files;
use pushring::{SHARD_MEMORY_BYTES_MIN, files_needed};

const FILES: &str = "open files";
const MEMORY: &str = "memory";
const CORES: &str = "cores";

/// The memory of an idle channel beside the budget: the kernel's socket, some 4.3 KiB, and our own 0.5 KiB.
const IDLE_CHANNEL_BYTES: u64 = 5 << 10;

/// As many connections as the settings allow need as many files.
pub(super) fn files(config: &DaemonConfig, files: &Files, shards: usize) -> Finding {
    let (connections_max, turned_away_max) = (config.connections_max, config.turned_away_max);
    let limits = ConnectionLimits { connections_max, turned_away_max, ..ConnectionLimits::default() };
    let needed = files.open + files_needed(&limits, shards) as u64;
    let count = |files: u64| usize::try_from(files).unwrap_or(usize::MAX);
    let within = limits_within_files(limits, shards, count(files.hard), count(files.open));
    let raise = |first: &str| {
        format!(
            "{first}LimitNOFILE={needed} in the unit, docker run --ulimit nofile={needed}:{needed}, or ulimit -Hn {needed} as root"
        )
    };
    if within.connections_max <= 1 && connections_max > 1 {
        let words = format!("the hard limit of {} leaves no room for clients", files.hard);
        return Finding::new(Level::Problem, FILES, words, raise(""));
    }
    if within.connections_max < connections_max {
        let words = format!(
            "the hard limit of {} leaves room for {} connections of {connections_max}",
            files.hard, within.connections_max
        );
        let nr_open = files.nr_open.is_some_and(|nr_open| nr_open < needed);
        let first = if nr_open { format!("sysctl -w fs.nr_open={needed}, then ") } else { String::new() };
        return Finding::new(Level::Warning, FILES, words, raise(&first) + "; or a smaller --connections-max");
    }
    if let Some((max, open)) = files.system
        && max.saturating_sub(open) < needed
    {
        let words = format!("the whole system may open {max} and has opened {open}: {needed} more do not fit");
        return Finding::new(Level::Warning, FILES, words, format!("sysctl -w fs.file-max={}", open + 2 * needed));
    }
    Finding::ok(FILES, format!("room for all {} connections", config.connections_max))
}

/// The budget and the memory beside it must fit the available memory.
pub(super) fn memory(config: &DaemonConfig, available: Option<u64>, shards: usize) -> Finding {
    let Some(available) = available else {
        let words = "the system does not tell what is available";
        return match config.memory_budget {
            MemoryBudget::Auto => Finding::new(Level::Problem, MEMORY, words, "--memory-budget SIZE"),
            _ => Finding::new(Level::Note, MEMORY, words, "see for yourself that the budget fits"),
        };
    };
    let budget = match config.memory_budget {
        MemoryBudget::Auto => available / 2,
        MemoryBudget::Size(size) => size.0 as u64,
        MemoryBudget::Unlimited => {
            let words = "no budget: clients that read slowly can take all of it";
            return Finding::new(Level::Warning, MEMORY, words, "--memory-budget auto");
        }
    };
    let least = (SHARD_MEMORY_BYTES_MIN * shards) as u64;
    let connections = config.connections_max as u64 * IDLE_CHANNEL_BYTES;
    let [free, taken, idle] = [available, budget, connections].map(bytes);
    let fewer = |connections: u64| format!("--connections-max {}", connections / IDLE_CHANNEL_BYTES);
    if budget < least {
        let words = format!("a budget of {taken}, and {shards} shards need {}", bytes(least));
        return Finding::new(Level::Warning, MEMORY, words, format!("--shards {}", shards / 2).replace(" 0", " 1"));
    }
    if budget > available {
        let words = format!("a budget of {taken} with {free} available: the kernel would end the daemon first");
        return Finding::new(Level::Warning, MEMORY, words, "--memory-budget auto, or more memory");
    }
    if budget + connections > available {
        let words = format!(
            "a budget of {taken} and {idle} for {} idle channels, with {free} available",
            config.connections_max
        );
        return Finding::new(Level::Warning, MEMORY, words, fewer(available - budget) + ", or more memory");
    }
    Finding::ok(MEMORY, format!("a budget of {taken} with {free} available; idle channels take up to {idle} more"))
}

/// A shard is a thread that wants a core of its own.
pub(super) fn cores(config: &DaemonConfig, cores: &Cores, shards: usize) -> Finding {
    if let Some(quota) = cores.quota.filter(|quota| *quota < shards as f64) {
        let words =
            format!("{shards} shards, and the control group grants {quota:.1} cores: all stop when it is used up");
        let whole = (quota.floor() as usize).max(1);
        let fix = format!("--shards {whole}, or CPUQuota={}% (docker run --cpus {shards})", shards * 100);
        return Finding::new(Level::Warning, CORES, words, fix);
    }
    if shards > cores.allowed {
        let words = format!("{shards} shards on {} cores wait for each other", cores.allowed);
        let fix = format!("--shards {}", cores.allowed);
        return Finding::new(Level::Warning, CORES, words, fix);
    }
    let pinned = if config.pin { ", each on a core of its own" } else { "" };
    Finding::ok(CORES, format!("{shards} shards on {} cores{pinned}", cores.allowed))
}

#[cfg(test)]
mod tests {
    use super::super::tests::expect;
    use super::*;
    use crate::daemon::units::Size;

    #[test]
    fn open_files() {
        expect(Level::Warning, "leaves room for 773 connections of 100000", "LimitNOFILE=101142 ", |_, facts| {
            facts.files.hard = 999;
        });
        expect(Level::Warning, "leaves room", "sysctl -w fs.nr_open=101142, then LimitNOFILE", |_, facts| {
            (facts.files.hard, facts.files.nr_open) = (65_536, Some(65_536));
        });
        expect(Level::Problem, "leaves no room", "docker run --ulimit nofile=", |_, facts| {
            facts.files.hard = 48;
        });
        expect(Level::Warning, "the whole system may open 100000", "sysctl -w fs.file-max=207284", |_, facts| {
            facts.files.system = Some((100_000, 5000));
        });
        let few = DaemonConfig { connections_max: 10, ..DaemonConfig::default() };
        let files = super::files(&few, &Files { hard: 1024, open: 10, nr_open: None, system: None }, 4);
        assert_eq!((files.level, files.found.as_str()), (Level::Ok, "room for all 10 connections"));
    }

    #[test]
    fn memory_and_budget() {
        expect(Level::Warning, "no budget", "--memory-budget auto", |config, _| {
            config.memory_budget = MemoryBudget::Unlimited;
        });
        expect(Level::Warning, "8.0 GiB available: the kernel", "--memory-budget auto", |config, _| {
            config.memory_budget = MemoryBudget::Size(Size(9 << 30));
        });
        expect(Level::Warning, "100000 idle channels", "--connections-max 52428", |_, facts| {
            facts.memory_available_bytes = Some(512 << 20);
        });
        expect(Level::Warning, "4 shards need 16.0 MiB", "--shards 2", |_, facts| {
            facts.memory_available_bytes = Some(20 << 20);
        });
        expect(Level::Problem, "does not tell", "--memory-budget SIZE", |_, facts| facts.memory_available_bytes = None);
        expect(Level::Note, "does not tell", "fits", |config, facts| {
            facts.memory_available_bytes = None;
            config.memory_budget = MemoryBudget::Size(Size(1 << 30));
        });
        expect(Level::Ok, "a budget of 1.0 GiB", "", |config, _| {
            config.memory_budget = MemoryBudget::Size(Size(1 << 30));
        });
    }

    #[test]
    fn processors() {
        expect(Level::Warning, "8 shards on 4 cores", "--shards 4", |config, _| config.shards = 8);
        expect(Level::Warning, "grants 1.5 cores", "--shards 1, or CPUQuota=400%", |_, facts| {
            facts.cores.quota = Some(1.5);
        });
        expect(Level::Warning, "grants 0.5 cores", "--shards 1,", |_, facts| facts.cores.quota = Some(0.5));
        expect(Level::Ok, "2 shards on 4 cores", "", |config, facts| {
            config.shards = 2;
            facts.cores.quota = Some(2.0);
        });
    }
}
