//! A fault in the middle of a run, and the judgement of it.
//!
//! Invariant: two independent counts decide: the messages that clients received and nodes reported lost, and those that
//! publishers were told had left.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::common::{Common, Fault, LAST_WITHIN};
use super::crowd::Crowd;
use super::nats::Nats;
use super::network::Network;
use super::node::{Node, name};
use crate::proc::Memory;
use crate::stats::{Latency, LatencySummary};
use crate::sys;

/// How long a fleet runs undisturbed before it.
pub(super) const LEAD: Duration = Duration::from_secs(5);

/// How long it runs behind it.
pub(super) const REST: Duration = Duration::from_secs(10);

/// Lets it happen for so long; returns when all is well again.
fn befall(fault: Fault, seconds: f64, nodes: &[Node], nats: &mut Nats<'_>, network: &Network) -> anyhow::Result<()> {
    let time = Duration::from_secs_f64(seconds);
    match fault {
        Fault::NatsKilled => {
            nats.kill(0);
            std::thread::sleep(time);
            nats.run(0)?;
        }
        Fault::NatsLame => {
            nats.lame(0)?;
            std::thread::sleep(time);
        }
        Fault::NodeStopped => {
            nodes[0].signal(libc::SIGSTOP)?;
            std::thread::sleep(time);
            nodes[0].signal(libc::SIGCONT)?;
        }
        Fault::NodeSlow => {
            let since = Instant::now();
            while since.elapsed() < time {
                nodes[0].signal(libc::SIGSTOP)?;
                std::thread::sleep(Duration::from_millis(150));
                nodes[0].signal(libc::SIGCONT)?;
                std::thread::sleep(Duration::from_millis(100));
            }
        }
        Fault::Partition => {
            network.cut(0, true)?;
            std::thread::sleep(time);
            network.cut(0, false)?;
        }
        Fault::Rolling => unreachable!("it is run by itself"),
    }
    Ok(())
}

/// The result for a node's share.
#[derive(Debug, Serialize)]
pub(super) struct NodeAccount {
    /// The node.
    pub node: String,
    /// Messages of other nodes that have left for it, as publishers were told.
    pub left: u64,
    /// Those that its clients have heard.
    pub heard: u64,
    /// Those that it tells to be lost, and gaps of which it does not know the size.
    pub told_lost: u64,
    pub gaps_unknown: u64,
}

impl NodeAccount {
    /// Returns whether nothing is missing and untold, nor told and there.
    pub(super) fn is_exact(&self) -> bool {
        self.left == self.heard + self.told_lost && self.gaps_unknown == 0
    }
}

/// The result.
#[derive(Debug, Serialize)]
pub(super) struct FaultOutcome {
    pub fault: Fault,
    pub accounts: Vec<NodeAccount>,
    /// From the request to the client of the same node, while it lasted, on nodes that were not disturbed themselves.
    pub here_meanwhile: Option<LatencySummary>,
    /// Its 99th percentile against that of the rest of the run.
    pub p99_ratio: Option<f64>,
    /// From when all was well again to when each node has heard a later message of each other one; none: one has not.
    pub recovered_ms: Option<f64>,
    /// Resident memory of all daemons, before and at most.
    pub memory_before_mib: f64,
    pub memory_most_mib: f64,
}

/// Resident memory of processes, in MiB.
pub(super) fn memory_mib(pids: &[u32]) -> anyhow::Result<f64> {
    Ok(Memory::of(pids)?.rss as f64 / f64::from(1 << 20))
}

/// Messages of other nodes that have left for a node.
fn left_for(common: &Common<'_>, node: usize) -> u64 {
    let of_others = (0..common.left.len()).filter(|from| *from != node);
    let to_all: u64 = of_others.map(|from| common.left[from].load(Ordering::Relaxed)).sum();
    to_all + common.left_for[node].load(Ordering::Relaxed)
}

/// Waits until each node has what has left for it, or tells it to be lost.
pub(super) fn wait_until_settled(common: &Common<'_>, nodes: &[Node]) -> anyhow::Result<()> {
    let since = Instant::now();
    loop {
        let mut is_settled = true;
        for (at, node) in nodes.iter().enumerate() {
            let counts = &node.report()?["counts"];
            let told = ["received", "lost"].iter().filter_map(|count| counts[count].as_u64()).sum::<u64>();
            is_settled &= told == left_for(common, at);
        }
        if is_settled || since.elapsed() > LAST_WITHIN {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Judges it.
pub(super) fn judge(
    common: &Common<'_>,
    fault: Fault,
    nodes: &[Node],
    crowds: &[Crowd<'_>],
    here: Option<LatencySummary>,
    [memory_before_mib, memory_most_mib]: [f64; 2],
) -> anyhow::Result<FaultOutcome> {
    let (mut accounts, mut meanwhile) = (Vec::new(), Latency::default());
    let mut last_ns = Some(0);
    let ended_ns = common.ended_ns.load(Ordering::Relaxed);
    for (at, (node, crowd)) in nodes.iter().zip(crowds).enumerate() {
        let counts = &node.report()?["counts"];
        let count = |name: &str| counts[name].as_u64().unwrap_or(0);
        accounts.push(NodeAccount {
            node: name(at),
            left: left_for(common, at),
            heard: crowd.of_others()?,
            told_lost: count("lost"),
            gaps_unknown: count("gaps_unknown"),
        });
        if fault.of_node() != Some(at) {
            meanwhile.add_pairs(&crowd.here_meanwhile.pairs());
        }
        for from in (0..nodes.len()).filter(|from| *from != at) {
            let again_ns = crowd.again_ns[from];
            last_ns = last_ns.filter(|_| again_ns > 0).map(|last_ns| again_ns.max(last_ns));
        }
    }
    let here_meanwhile = meanwhile.summary();
    let p99_ratio = here_meanwhile.as_ref().zip(here).map(|(during, besides)| during.p99_us / besides.p99_us);
    let recovered_ms = last_ns.map(|last_ns| last_ns.saturating_sub(ended_ns) as f64 / 1e6);
    Ok(FaultOutcome { fault, accounts, here_meanwhile, p99_ratio, recovered_ms, memory_before_mib, memory_most_mib })
}

/// Notes the times, and lets it happen in between.
pub(super) fn run(
    common: &Common<'_>,
    fault: Fault,
    nodes: &[Node],
    nats: &mut Nats<'_>,
    network: &Network,
) -> anyhow::Result<()> {
    common.begin.wait();
    std::thread::sleep(LEAD);
    common.began_ns.store(sys::now_ns(), Ordering::Relaxed);
    befall(fault, common.settings.fault_seconds, nodes, nats, network)?;
    common.ended_ns.store(sys::now_ns(), Ordering::Relaxed);
    Ok(())
}

/// For people.
pub(super) fn table(aftermath: &FaultOutcome) -> String {
    let FaultOutcome { accounts, here_meanwhile, p99_ratio, recovered_ms, .. } = aftermath;
    let mut text = String::from("\nnode   left for it     heard  told lost  of unknown size\n");
    for account in accounts {
        let NodeAccount { node, left, heard, told_lost, gaps_unknown } = account;
        let verdict = if account.is_exact() { "exact" } else { "NOT EXACT" };
        text += &format!("{node:<6}{left:>12}{heard:>10}{told_lost:>11}{gaps_unknown:>17}  {verdict}\n");
    }
    if let (Some(waits), Some(ratio)) = (here_meanwhile, p99_ratio) {
        text += &format!("local pushes meanwhile: p99 {:.2} ms, {ratio:.2} × that besides\n", waits.p99_us / 1000.0);
    }
    text += &match recovered_ms {
        Some(ms) => format!("each node heard each other again after {ms:.0} ms\n"),
        None => "NOT RECOVERED: a node receives nothing more from another\n".to_owned(),
    };
    let (before, most) = (aftermath.memory_before_mib, aftermath.memory_most_mib);
    text + &format!("memory of all daemons: {before:.1} MiB before, {most:.1} MiB at most\n")
}
