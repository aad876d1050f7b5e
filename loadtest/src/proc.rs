//! Figures of `/proc` about the server: CPU time, memory, descriptors, and the process that listens on a port.
//!
//! Invariants: read-only, and only while nothing is measured; a figure that the kernel does not give is `None`, never
//! 0.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

/// The CPU time some processes have used so far, over all their threads.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct CpuTime {
    /// Time on a CPU per thread, to the nanosecond, from `schedstat`; `None` where the kernel does not keep it.
    on_cpu_ns: Option<HashMap<u32, u64>>,
    user_ticks: u64,
    system_ticks: u64,
}

/// CPU time used between two looks.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct CpuUse {
    /// User and system together, in microseconds.
    pub total_us: f64,
    /// The share in user mode. The kernel counts the split in ticks of 10 ms or estimates it, so it is coarse.
    pub user_us: f64,
    /// The share in the kernel.
    pub system_us: f64,
}

/// Microseconds of one clock tick of `/proc/PID/stat`; Linux fixes USER_HZ at 100 on every architecture it counts on.
const TICK_US: f64 = 10_000.0;

impl CpuTime {
    /// The CPU time that the OS processes `pids` have used until now.
    pub(crate) fn of(pids: &[u32]) -> anyhow::Result<Self> {
        let mut sum = Self { on_cpu_ns: Some(HashMap::new()), ..Self::default() };
        for &pid in pids {
            let stat = read(format!("/proc/{pid}/stat"))?;
            let (user, system) = parse_stat_ticks(&stat).with_context(|| format!("/proc/{pid}/stat: `{stat}`"))?;
            sum.user_ticks += user;
            sum.system_ticks += system;
            for task in fs::read_dir(format!("/proc/{pid}/task"))? {
                let path = task?.path();
                let thread = path.file_name().and_then(|name| name.to_str()?.parse::<u32>().ok());
                // A thread that has just ended has no schedstat any more.
                let Ok(on_cpu) = fs::read_to_string(path.join("schedstat")) else { continue };
                let on_cpu = on_cpu.split(' ').next().and_then(|time| time.parse::<u64>().ok());
                match (thread.zip(on_cpu), &mut sum.on_cpu_ns) {
                    (Some((thread, on_cpu)), Some(threads)) => drop(threads.insert(thread, on_cpu)),
                    _ => sum.on_cpu_ns = None,
                }
            }
        }
        Ok(sum)
    }

    /// The CPU time used since `earlier`.
    pub(crate) fn since(&self, earlier: &Self) -> CpuUse {
        let user = self.user_ticks.saturating_sub(earlier.user_ticks) as f64 * TICK_US;
        let system = self.system_ticks.saturating_sub(earlier.system_ticks) as f64 * TICK_US;
        let total_us = match (&self.on_cpu_ns, &earlier.on_cpu_ns) {
            (Some(now), Some(before)) if !now.is_empty() => since_by_thread(now, before),
            _ => user + system,
        };
        let user_share = if user + system > 0.0 { user / (user + system) } else { 0.0 };
        CpuUse { total_us, user_us: total_us * user_share, system_us: total_us * (1.0 - user_share) }
    }
}

/// Microseconds on a CPU, thread by thread, so that one that has ended takes nothing off the others.
fn since_by_thread(now: &HashMap<u32, u64>, before: &HashMap<u32, u64>) -> f64 {
    let used = now.iter().map(|(thread, now)| now.saturating_sub(*before.get(thread).unwrap_or(&0)));
    used.sum::<u64>() as f64 / 1000.0
}

/// The time all CPUs of the machine were busy so far, in microseconds, counted in ticks of 10 ms; what a hypervisor
/// took counts as busy.
pub(crate) fn machine_busy_us() -> anyhow::Result<f64> {
    let stat = read("/proc/stat")?;
    let [user, nice, system, _, _, irq, softirq, steal] =
        ticks_of(stat.lines().next().unwrap_or_default()).with_context(|| format!("/proc/stat: `{stat}`"))?;
    Ok((user + nice + system + irq + softirq + steal) as f64 * TICK_US)
}

/// The microseconds in which the host of this virtual machine ran something else than these CPUs although they had
/// work, since the machine started; of all CPUs where none are named. `None` where the kernel does not say.
pub(crate) fn stolen_us(cpus: &[usize]) -> anyhow::Result<Option<f64>> {
    let stat = read("/proc/stat")?;
    let names: Vec<String> = cpus.iter().map(|cpu| format!("cpu{cpu}")).collect();
    let is_asked_for = |line: &&str| {
        let name = line.split_whitespace().next().unwrap_or_default();
        if cpus.is_empty() { name == "cpu" } else { names.iter().any(|asked| asked == name) }
    };
    let lines = stat.lines().filter(is_asked_for);
    let ticks: Option<Vec<u64>> = lines.map(|line| ticks_of(line).map(|[.., steal]| steal)).collect();
    let ticks = ticks.filter(|ticks| ticks.len() == cpus.len().max(1));
    Ok(ticks.map(|ticks| ticks.iter().sum::<u64>() as f64 * TICK_US))
}

/// The columns user, nice, system, idle, iowait, irq, softirq and steal of a line of `/proc/stat`.
fn ticks_of(line: &str) -> Option<[u64; 8]> {
    let mut fields = line.split_whitespace().skip(1).map(|field| field.parse().ok());
    let mut ticks = [0; 8];
    for tick in &mut ticks {
        *tick = fields.next()??;
    }
    Some(ticks)
}

/// Fields 14 and 15 of `/proc/PID/stat`; the command's name in parentheses may hold anything, so count from its end.
fn parse_stat_ticks(stat: &str) -> Option<(u64, u64)> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11);
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

/// The memory some processes hold, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Memory {
    /// Resident.
    pub rss: u64,
    /// Resident, shared pages divided among their users.
    pub pss: u64,
    /// Resident and not backed by a file.
    pub anonymous: u64,
}

impl Memory {
    /// The memory of the OS processes `pids` now.
    pub(crate) fn of(pids: &[u32]) -> anyhow::Result<Self> {
        let mut sum = Self::default();
        for &pid in pids {
            let rollup = read(format!("/proc/{pid}/smaps_rollup"))?;
            sum.rss += field_kb(&rollup, "Rss:").context("no Rss")? * 1024;
            sum.pss += field_kb(&rollup, "Pss:").context("no Pss")? * 1024;
            sum.anonymous += field_kb(&rollup, "Anonymous:").context("no Anonymous")? * 1024;
        }
        Ok(sum)
    }
}

/// The kernel's memory that sockets show up in, for the whole machine, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KernelMemory {
    /// All slab caches: sockets, files, inodes, epoll items.
    pub slab: u64,
    /// Pages of TCP buffers.
    pub tcp: u64,
    /// The memory that the kernel reports as available.
    pub available: u64,
}

impl KernelMemory {
    /// Now.
    pub(crate) fn now() -> anyhow::Result<Self> {
        let meminfo = read("/proc/meminfo")?;
        let sockstat = read("/proc/net/sockstat")?;
        let tcp_pages = sockstat
            .lines()
            .find(|line| line.starts_with("TCP:"))
            .and_then(|line| line.split_whitespace().skip_while(|&word| word != "mem").nth(1)?.parse::<u64>().ok());
        Ok(Self {
            slab: field_kb(&meminfo, "Slab:").context("no Slab")? * 1024,
            tcp: tcp_pages.context("no TCP mem in /proc/net/sockstat")? * 4096,
            available: field_kb(&meminfo, "MemAvailable:").context("no MemAvailable")? * 1024,
        })
    }
}

fn field_kb(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
}

fn read(path: impl AsRef<Path>) -> anyhow::Result<String> {
    let path = path.as_ref();
    fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))
}

/// How many descriptors the processes `pids` have open.
pub(crate) fn descriptors(pids: &[u32]) -> anyhow::Result<u64> {
    let mut sum = 0;
    for pid in pids {
        sum += fs::read_dir(format!("/proc/{pid}/fd")).with_context(|| format!("descriptors of {pid}"))?.count() as u64;
    }
    Ok(sum)
}

/// The kernel's threads `ksoftirqd/CPU`, which do the rest of the network's work on these CPUs: caused by a server
/// pinned there, and missing in its own CPU time.
pub(crate) fn softirq_threads(cpus: &[usize]) -> Vec<u32> {
    if cpus.is_empty() {
        return Vec::new();
    }
    let names: Vec<String> = cpus.iter().map(|cpu| format!("ksoftirqd/{cpu}")).collect();
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| {
        fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| names.iter().any(|of| of == name.trim()))
    })
    .collect()
}

/// The processes that listen on the port of `address` on this machine. Fails when `address` is not of this machine or
/// nothing is found.
pub(crate) fn listeners(address: SocketAddr) -> anyhow::Result<Vec<u32>> {
    if !address.ip().is_loopback() {
        bail!("{address} is not on loopback: name the server's process with --server-pid");
    }
    let mut inodes = HashSet::new();
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        let Ok(text) = fs::read_to_string(table) else { continue };
        inodes.extend(text.lines().filter_map(|line| listening_inode(line, address)));
    }
    let mut pids = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        // Processes end, and those of other users hide their descriptors: neither is the one we look for.
        let Ok(descriptors) = fs::read_dir(entry.path().join("fd")) else { continue };
        let listens = descriptors.flatten().filter_map(|fd| fs::read_link(fd.path()).ok()).any(|link| {
            let inode = link.to_str().and_then(|link| link.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok());
            inode.is_some_and(|inode: u64| inodes.contains(&inode))
        });
        if listens {
            pids.push(pid);
        }
    }
    if pids.is_empty() { bail!("no process found that listens on {address}: use --server-pid") } else { Ok(pids) }
}

/// The inode of a `/proc/net/tcp` line, if it listens on the port of `address` there or on all addresses.
fn listening_inode(line: &str, address: SocketAddr) -> Option<u64> {
    const LISTEN: &str = "0A";
    let fields: Vec<&str> = line.split_whitespace().collect();
    let (ip, port) = fields.get(1)?.split_once(':')?;
    let covers = ip.bytes().all(|digit| digit == b'0') || hex_of(address.ip()) == ip;
    (*fields.get(3)? == LISTEN && covers && u16::from_str_radix(port, 16).ok()? == address.port())
        .then(|| fields.get(9)?.parse().ok())?
}

/// An address as `/proc/net/tcp` writes it: 32-bit words in the machine's byte order.
fn hex_of(ip: IpAddr) -> String {
    let octets = match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let words = octets.as_chunks::<4>().0.iter();
    words.map(|word| format!("{:08X}", u32::from_ne_bytes(*word))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn a_listener_of_ours_is_found() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        assert_eq!(listeners(address).unwrap(), [std::process::id()]);
        drop(listener);
        assert!(listeners(address).is_err());
        assert!(listeners("192.0.2.1:80".parse().unwrap()).is_err());
    }

    #[test]
    fn what_the_host_took_is_counted_by_cpu() {
        let cpus = crate::sys::allowed_cpus().unwrap();
        let (one, all) = (stolen_us(&cpus[..1]).unwrap(), stolen_us(&[]).unwrap());
        assert!(one.is_some() && one <= all, "{one:?} of {all:?}");
        assert_eq!(stolen_us(&[100_000]).unwrap(), None, "there is no such CPU");
        assert_eq!(ticks_of("cpu0 1 2 3 4 5 6 7 8 9 10"), Some([1, 2, 3, 4, 5, 6, 7, 8]));
        assert_eq!(ticks_of("cpu0 1 2 3 4 5 6 7"), None);
    }

    #[test]
    fn our_own_use_can_be_read() {
        let own = [std::process::id()];
        let before = CpuTime::of(&own).unwrap();
        let mut sum = 0u64;
        for step in 0..2_000_000u64 {
            sum = std::hint::black_box(sum.wrapping_mul(31).wrapping_add(step));
        }
        let used = CpuTime::of(&own).unwrap().since(&before);
        assert!(used.total_us > 0.0 && (used.user_us + used.system_us - used.total_us).abs() < 0.01, "{used:?}");
        assert!(Memory::of(&own).unwrap().rss > 100_000);
        assert!(descriptors(&own).unwrap() >= 3);
        assert!(KernelMemory::now().unwrap().slab > 0);
        assert!(CpuTime::of(&[u32::MAX]).is_err());
    }

    #[test]
    fn the_name_of_a_process_cannot_shift_the_fields() {
        let stat = "7 (a) b) c) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14";
        assert_eq!(parse_stat_ticks(stat), Some((11, 12)));
    }
}
