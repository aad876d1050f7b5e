//! A fleet on this machine: several daemons and a nats-server, in network namespaces of their own or on loopback,
//! clients on each, every delivery counted.
//!
//! Each node has an HTTP client of its own, which publishes to all clients of all nodes and pushes to single channels
//! of the next node. With one node there is no NATS, to compare with. All share this machine's processors, so waits are
//! upper bounds. A fault may befall the fleet in the middle, or a rolling restart.
//!
//! Invariant: each message names its sender and number, so that one that is missing, duplicated or out of order is
//! detected.

mod api;
mod common;
mod crowd;
mod fault;
mod nats;
mod network;
mod node;
mod publish;
mod rolling;

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde::Serialize;

pub(crate) use self::common::Settings;

use self::common::{Common, Fault, LAST_WITHIN};
use self::crowd::{Crowd, crowd};
use self::fault::FaultOutcome;
use self::nats::Nats;
use self::network::{Network, Place};
use self::node::Node;
use self::publish::publish;
use crate::payload::STAMP_BYTES;
use crate::proc::CpuTime;
use crate::stats::{Latency, LatencySummary};
use crate::sys;

/// The results.
#[derive(Debug, Serialize)]
struct Fleet {
    settings: Settings,
    place: &'static str,
    broadcasts: u64,
    unicasts: u64,
    /// Deliveries that should have come, and those that did not.
    expected: u64,
    missing: u64,
    /// Messages that came twice, out of order, or to the wrong client.
    wrong: u64,
    /// Messages between nodes that the nodes say are lost, or that did not leave.
    told_lost: u64,
    /// CPU of the daemons for each delivery, in microseconds, and of NATS for each message between nodes.
    us_per_delivery: f64,
    nats_us_per_message: Option<f64>,
    /// From the request to the client, on the node that was asked and on others.
    here: Option<LatencySummary>,
    elsewhere: Option<LatencySummary>,
    unicast: Option<LatencySummary>,
    /// CPU of one node with as many clients for each delivery, in microseconds.
    one_us_per_delivery: Option<f64>,
    aftermath: Option<FaultOutcome>,
}

impl Fleet {
    /// Messages between nodes: to each other one, and to single channels.
    fn between(&self) -> u64 {
        self.broadcasts * (self.settings.nodes as u64 - 1) + self.unicasts
    }

    /// The daemons' cost of a message between nodes beside its deliveries, and the cost of a delivery relative to that
    /// on one node; costs that cannot be separated are counted wholly in one or the other.
    fn beside_one(&self) -> Option<(f64, f64)> {
        let one_us = self.one_us_per_delivery?;
        let deliveries = (self.expected - self.missing) as f64;
        let more_us = (self.us_per_delivery - one_us) * deliveries;
        Some((more_us / self.between().max(1) as f64, self.us_per_delivery / one_us))
    }

    fn is_exact(&self) -> bool {
        match &self.aftermath {
            None => self.missing == 0 && self.wrong == 0,
            Some(aftermath) => self.wrong == 0 && aftermath.accounts.iter().all(fault::NodeAccount::is_exact),
        }
    }
}

/// Runs `fleet`. Returns whether every delivery came once and in order.
pub(crate) fn run(settings: &Settings) -> anyhow::Result<bool> {
    ensure!((1..=64).contains(&settings.nodes), "--nodes: 1 to 64");
    ensure!(
        settings.clients > 0 && settings.size >= STAMP_BYTES,
        "--clients: at least 1; --size: at least {STAMP_BYTES}"
    );
    let rates = [settings.broadcasts, settings.unicasts];
    ensure!(rates.iter().all(|rate| rate.is_finite() && *rate >= 0.0), "--broadcasts, --unicasts: a rate in 1/s");
    ensure!(
        settings.fault_seconds.is_finite() && settings.fault_seconds >= 0.0,
        "--fault-seconds: a number of seconds"
    );
    ensure!(settings.fault.is_none() || settings.nodes > 1, "--fault: a fleet has two nodes at least");
    if settings.fault == Some(Fault::Rolling) {
        return rolling::run(settings);
    }
    let mut settings = settings.clone();
    if settings.fault.is_some() {
        let least = fault::LEAD + settings.fault_time() + fault::REST;
        settings.seconds = settings.seconds.max(least.as_secs_f64());
    }
    let one = settings.beside_one.then(|| {
        let clients = settings.nodes * settings.clients;
        run_one(&Settings { nodes: 1, clients, fault: None, ..settings.clone() })
    });
    let mut fleet = run_one(&settings)?;
    fleet.one_us_per_delivery = one.transpose()?.map(|one| one.us_per_delivery);
    if settings.json {
        println!("{}", serde_json::to_string_pretty(&fleet)?);
    } else {
        print!("{}", table(&fleet));
    }
    Ok(fleet.is_exact())
}

fn run_one(settings: &Settings) -> anyhow::Result<Fleet> {
    let network = if settings.loopback { Network::Loopback } else { Network::make(settings.nodes) };
    let servers = settings.fault.map_or(1, Fault::servers);
    let nats = (settings.nodes > 1).then(|| Nats::start(&network, settings.nats.as_deref(), servers)).transpose()?;
    let urls = nats.as_ref().map(Nats::urls);
    let nodes = (0..settings.nodes).map(|node| Node::start(settings, &network, node, urls.as_deref()));
    let nodes: Vec<Node> = nodes.collect::<anyhow::Result<_>>()?;
    measure(settings, &network, &nodes, nats)
}

/// The processes of all daemons.
fn pids(nodes: &[Node]) -> Vec<u32> {
    nodes.iter().flat_map(|node| node.server.pids.iter().copied()).collect()
}

fn measure(
    settings: &Settings,
    network: &Network,
    nodes: &[Node],
    mut nats: Option<Nats<'_>>,
) -> anyhow::Result<Fleet> {
    let count = nodes.len();
    let counts = || (0..count).map(|_| AtomicU64::new(0)).collect();
    let common = Common {
        settings,
        run: sys::now_ns() as u32,
        begin: Barrier::new(count + 1 + usize::from(settings.fault.is_some())),
        is_over: AtomicBool::new(false),
        broadcasts: counts(),
        unicasts: AtomicU64::new(0),
        left: counts(),
        left_for: counts(),
        received: AtomicU64::new(0),
        began_ns: AtomicU64::new(0),
        ended_ns: AtomicU64::new(0),
    };
    std::thread::scope(|scope| {
        let (open, opened) = channel();
        let crowds: Vec<_> = (0..count)
            .map(|node| {
                let (common, open) = (&common, open.clone());
                let enter = move || network.enter(Place::Node(node));
                scope.spawn(move || enter().and_then(|()| crowd(common, node, &nodes[node], &open)))
            })
            .collect();
        drop(open);
        let prepared = prepare(count, nodes, &opened);
        let result = prepared.and_then(|ids| publish_all(&common, network, nodes, nats.as_mut(), &ids));
        common.is_over.store(true, Ordering::Release);
        let crowds = crowds.into_iter().map(|crowd| crowd.join().map_err(|_| anyhow::anyhow!("a crowd panicked"))?);
        let crowds: Vec<Crowd<'_>> = crowds.collect::<anyhow::Result<_>>()?;
        account(&common, network, nodes, crowds, result?)
    })
}

/// The channels of each node, once all clients are there and the nodes hear each other.
fn prepare(count: usize, nodes: &[Node], opened: &Receiver<(usize, Vec<u32>)>) -> anyhow::Result<Vec<Vec<u32>>> {
    let mut ids = vec![Vec::new(); count];
    for _ in 0..count {
        let (node, of_node) = opened.recv().context("the clients of a node did not open")?;
        ids[node] = of_node;
    }
    if count > 1 {
        nodes.iter().try_for_each(|node| node.wait_until_whole(count - 1))?;
    }
    Ok(ids)
}

/// The CPU time used while publishing.
struct Used {
    daemons_us: f64,
    nats_us: Option<f64>,
    /// Before, and at most.
    memory_mib: [f64; 2],
}

fn publish_all(
    common: &Common<'_>,
    network: &Network,
    nodes: &[Node],
    nats: Option<&mut Nats<'_>>,
    ids: &[Vec<u32>],
) -> anyhow::Result<Used> {
    let (pids, fault) = (pids(nodes), common.settings.fault);
    let nats_pids = nats.as_ref().map(|nats| nats.pids());
    // One that is killed takes its count with it.
    let of_nats = || nats_pids.as_deref().filter(|_| fault.is_none()).map(CpuTime::of).transpose();
    let (before, nats_before, memory_before) = (CpuTime::of(&pids)?, of_nats()?, fault::memory_mib(&pids)?);
    let mut memory_most = memory_before;
    std::thread::scope(|scope| {
        let publishers = (0..nodes.len()).map(|node| {
            let enter = move || network.enter(Place::Node(node));
            scope.spawn(move || enter().and_then(|()| publish(common, node, &nodes[node], ids)))
        });
        let publishers: Vec<_> = publishers.collect();
        let befalls =
            fault.zip(nats).map(|(fault, nats)| scope.spawn(move || fault::run(common, fault, nodes, nats, network)));
        common.begin.wait();
        while fault.is_some() && !publishers.iter().all(std::thread::ScopedJoinHandle::is_finished) {
            memory_most = memory_most.max(fault::memory_mib(&pids)?);
            std::thread::sleep(Duration::from_millis(200));
        }
        let befallen = befalls.map_or(Ok(Ok(())), std::thread::ScopedJoinHandle::join);
        befallen.map_err(|_| anyhow::anyhow!("a fault panicked"))?.context("the fault")?;
        publishers.into_iter().try_for_each(|publisher| {
            publisher.join().map_err(|_| anyhow::anyhow!("a publisher panicked"))?.context("publishing")
        })
    })?;
    match fault {
        Some(_) => fault::wait_until_settled(common, nodes)?,
        None => wait_for_last(common),
    }
    let nats_us = of_nats()?.zip(nats_before).map(|(after, before)| after.since(&before).total_us);
    let daemons_us = CpuTime::of(&pids)?.since(&before).total_us;
    Ok(Used { daemons_us, nats_us, memory_mib: [memory_before, memory_most] })
}

fn wait_for_last(common: &Common<'_>) {
    let since = Instant::now();
    while common.received.load(Ordering::Relaxed) < expected(common) && since.elapsed() < LAST_WITHIN {
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn broadcasts(common: &Common<'_>) -> u64 {
    common.broadcasts.iter().map(|count| count.load(Ordering::Relaxed)).sum()
}

fn expected(common: &Common<'_>) -> u64 {
    let clients = (common.settings.clients * common.settings.nodes) as u64;
    broadcasts(common) * clients + common.unicasts.load(Ordering::Relaxed)
}

fn account(
    common: &Common<'_>,
    network: &Network,
    nodes: &[Node],
    crowds: Vec<Crowd<'_>>,
    used: Used,
) -> anyhow::Result<Fleet> {
    let mut told_lost = 0;
    if nodes.len() > 1 {
        for node in nodes {
            let counts = &node.report()?["counts"];
            told_lost +=
                ["lost", "gaps_unknown", "full", "down"].iter().filter_map(|name| counts[name].as_u64()).sum::<u64>();
        }
    }
    let (mut here, mut elsewhere, mut unicast) = (Latency::default(), Latency::default(), Latency::default());
    let (mut received, mut wrong) = (0, 0);
    for crowd in &crowds {
        received += crowd.received;
        wrong += crowd.wrong;
        here.add_pairs(&crowd.here.pairs());
        elsewhere.add_pairs(&crowd.elsewhere.pairs());
        unicast.add_pairs(&crowd.unicast.pairs());
    }
    let (broadcasts, unicasts) = (broadcasts(common), common.unicasts.load(Ordering::Relaxed));
    let aftermath =
        common.settings.fault.map(|fault| fault::judge(common, fault, nodes, &crowds, here.summary(), used.memory_mib));
    let between = broadcasts * (nodes.len() as u64 - 1) + unicasts;
    Ok(Fleet {
        settings: common.settings.clone(),
        place: network.words(),
        broadcasts,
        unicasts,
        expected: expected(common),
        missing: expected(common).saturating_sub(received),
        wrong,
        told_lost,
        us_per_delivery: used.daemons_us / received.max(1) as f64,
        nats_us_per_message: used.nats_us.map(|us| us / between.max(1) as f64),
        here: here.summary(),
        elsewhere: elsewhere.summary(),
        unicast: unicast.summary(),
        one_us_per_delivery: None,
        aftermath: aftermath.transpose()?,
    })
}

fn table(fleet: &Fleet) -> String {
    let Settings { nodes, clients, .. } = fleet.settings;
    let mut text = format!(
        "{nodes} nodes \u{d7} {clients} clients {}; {} messages to all, {} to single channels\n\
         {} deliveries expected, {} missing, {} wrong; the nodes tell of {} messages that were lost\n\
         daemons: {:.3} µs of CPU a delivery",
        fleet.place,
        fleet.broadcasts,
        fleet.unicasts,
        fleet.expected,
        fleet.missing,
        fleet.wrong,
        fleet.told_lost,
        fleet.us_per_delivery
    );
    if let Some(us) = fleet.nats_us_per_message {
        text += &format!("; NATS: {us:.1} µs a message between nodes");
    }
    if let (Some(one_us), Some((more_us, ratio))) = (fleet.one_us_per_delivery, fleet.beside_one()) {
        text += &format!(
            "\none node with as many clients: {one_us:.3} µs; {ratio:.2} × as much in the fleet, or {more_us:.1} µs more \
             for each message between nodes"
        );
    }
    text += "\n\n                      p50 ms    p99 ms    max ms\n";
    let rows = [
        ("to all, own node", &fleet.here),
        ("to all, other nodes", &fleet.elsewhere),
        ("to one channel", &fleet.unicast),
    ];
    for (name, waits) in rows {
        if let Some(waits) = waits {
            let figures = [waits.p50_us, waits.p99_us, waits.max_us].map(|us| format!("{:>10.2}", us / 1000.0));
            text += &format!("{name:<18}{}\n", figures.concat());
        }
    }
    match &fleet.aftermath {
        Some(aftermath) => text + &fault::table(aftermath),
        None => text,
    }
}
