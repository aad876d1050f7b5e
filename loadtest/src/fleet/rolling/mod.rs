//! A rolling restart of a fleet under load: each node in turn is drained, ends, and begins anew, while all others and
//! it publish. Its clients are told to come back, come back to another node, and are told there that they began anew.
//!
//! All is on loopback: a client must reach every node.
//!
//! Invariant: each message is counted twice, by those that deliver it (the outcome of each node) and by the clients
//! that hear it; a message that a node did not report on, since it ended meanwhile, is counted apart.

mod movers;
mod publisher;
mod scene;

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde::Serialize;

use self::movers::{Heard, movers};
use self::publisher::publish;
use self::scene::{Entrance, Scene};
use super::common::{LAST_WITHIN, Settings, WHOLE_WITHIN};
use super::nats::Nats;
use super::network::Network;
use super::node::{Node, name};
use crate::sys;

/// How long the fleet runs undisturbed before the first restart, and behind each.
const REST: Duration = Duration::from_secs(3);

/// How one restart went.
#[derive(Debug, Serialize)]
struct Restart {
    node: String,
    /// Until the node had ended, until it had begun and the fleet was whole, and until all clients were present.
    drained_ms: u64,
    whole_ms: u64,
    present_ms: u64,
}

/// The results.
#[derive(Debug, Serialize)]
struct Rolling {
    settings: Settings,
    restarts: Vec<Restart>,
    /// Messages to all and to single channels, and those of them that a node did not report on, since it ended.
    broadcasts: usize,
    unicasts: usize,
    partial: usize,
    /// Deliveries that nodes have reported, and those that clients heard, without partial messages.
    said: u64,
    heard: u64,
    /// Messages of which these differ.
    uneven: usize,
    #[serde(flatten)]
    clients: Heard,
}

impl Rolling {
    fn is_exact(&self) -> bool {
        let Heard { moved, began_anew, cut_off, doubled, untold, .. } = &self.clients;
        self.uneven == 0 && cut_off + doubled + untold == 0 && moved == began_anew && *moved > 0
    }
}

/// Runs it. Returns whether each delivery is accounted for, and each client was told.
pub(super) fn run(settings: &Settings) -> anyhow::Result<bool> {
    ensure!(settings.nodes > 1, "--fault rolling: a fleet has two nodes at least");
    let network = Network::Loopback;
    let nats = Nats::start(&network, settings.nats.as_deref(), 1)?;
    let urls = nats.urls();
    let start = |node: usize| Node::start(settings, &network, node, Some(&urls));
    let mut nodes: Vec<Option<Node>> =
        (0..settings.nodes).map(|node| start(node).map(Some)).collect::<Result<_, _>>()?;
    let scene = Scene {
        settings,
        run: sys::now_ns() as u32,
        entrances: Mutex::new(
            nodes.iter().enumerate().map(|(at, node)| Some(entrance(node.as_ref()?, at, 0))).collect(),
        ),
        channels: Mutex::new(vec![None; settings.nodes * settings.clients]),
        said: Mutex::default(),
        present: AtomicUsize::new(0),
        is_last: AtomicBool::new(false),
        is_over: AtomicBool::new(false),
    };
    let (restarts, mut clients) = std::thread::scope(|scope| {
        let movers = scope.spawn(|| movers(&scene));
        let restarts = restart_all(&scene, &mut nodes, &start, scope);
        scene.is_last.store(true, Ordering::Release);
        scene.is_over.store(true, Ordering::Release);
        let clients = movers.join().map_err(|_| anyhow::anyhow!("the clients panicked"))?;
        anyhow::Ok((restarts?, clients?))
    })?;
    let rolling = judge(&scene, restarts, &mut clients);
    match settings.json {
        true => println!("{}", serde_json::to_string_pretty(&rolling)?),
        false => print!("{}", table(&rolling)),
    }
    Ok(rolling.is_exact())
}

fn entrance(node: &Node, at: usize, life: u32) -> Entrance {
    let (url, api_port, token) = (node.server.url.clone(), node.api_port, node.token.clone());
    // Nodes are 64 at most.
    Entrance { url, api_port, token, life: life * 64 + at as u32, is_open: true }
}

/// Restarts each node in turn, while all publish.
fn restart_all<'scope, 'env>(
    scene: &'scope Scene<'env>,
    nodes: &mut [Option<Node>],
    start: &dyn Fn(usize) -> anyhow::Result<Node>,
    scope: &'scope std::thread::Scope<'scope, 'env>,
) -> anyhow::Result<Vec<Restart>> {
    let count = nodes.len();
    wait_until_present(scene)?;
    nodes.iter().flatten().try_for_each(|node| node.wait_until_whole(count - 1))?;
    let publishers: Vec<_> = (0..count).map(|node| scope.spawn(move || publish(scene, node))).collect();
    std::thread::sleep(REST);
    let mut restarts = Vec::new();
    for node in 0..count {
        let since = Instant::now();
        if let Some(entrance) = &mut scene.entrances.lock().expect("no thread panics with it")[node] {
            // As a balancer that reads /readyz.
            entrance.is_open = false;
        }
        // SIGTERM, and with `drain_over` a drain.
        drop(nodes[node].take());
        let drained_ms = since.elapsed().as_millis() as u64;
        scene.enter(node, None);
        let fresh = start(node)?;
        wait_until_all_whole(nodes, &fresh, node)?;
        scene.enter(node, Some(entrance(&fresh, node, 1)));
        nodes[node] = Some(fresh);
        let whole_ms = since.elapsed().as_millis() as u64;
        wait_until_present(scene)?;
        restarts.push(Restart {
            node: name(node),
            drained_ms,
            whole_ms,
            present_ms: since.elapsed().as_millis() as u64,
        });
        std::thread::sleep(REST);
    }
    scene.is_last.store(true, Ordering::Release);
    for publisher in publishers {
        publisher.join().map_err(|_| anyhow::anyhow!("a publisher panicked"))?.context("publishing")?;
    }
    // Their last messages are on the way.
    std::thread::sleep(REST.min(LAST_WITHIN));
    Ok(restarts)
}

fn wait_until_present(scene: &Scene<'_>) -> anyhow::Result<()> {
    let (since, clients) = (Instant::now(), scene.settings.nodes * scene.settings.clients);
    while scene.present.load(Ordering::Relaxed) < clients {
        let present = scene.present.load(Ordering::Relaxed);
        ensure!(since.elapsed() < WHOLE_WITHIN, "{present} of {clients} clients are present");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Waits until a node that began anew hears the others, and they hear it.
fn wait_until_all_whole(others: &[Option<Node>], fresh: &Node, at: usize) -> anyhow::Result<()> {
    let since = Instant::now();
    let hears = |node: &Node, name: &str, address: &str| {
        let report = node.report()?;
        let is_it = |node: &serde_json::Value| {
            let is_there = node["node"] == name && node["is_gone"] == false && node["draining"] == false;
            is_there && address.ends_with(node["address"].as_str().unwrap_or("none"))
        };
        anyhow::Ok(report["nodes"].as_array().is_some_and(|nodes| nodes.iter().any(is_it)))
    };
    for (other_at, other) in others.iter().enumerate().filter_map(|(at, node)| Some((at, node.as_ref()?))) {
        while !(hears(other, &name(at), &fresh.server.url)? && hears(fresh, &name(other_at), &other.server.url)?) {
            ensure!(since.elapsed() < WHOLE_WITHIN, "{} and {} do not hear each other", name(at), name(other_at));
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    Ok(())
}

fn judge(scene: &Scene<'_>, restarts: Vec<Restart>, clients: &mut Heard) -> Rolling {
    let said = scene.said.lock().expect("no thread panics with it");
    let mut rolling = Rolling {
        settings: scene.settings.clone(),
        restarts,
        broadcasts: 0,
        unicasts: 0,
        partial: 0,
        said: 0,
        heard: 0,
        uneven: 0,
        clients: std::mem::take(clients),
    };
    for (id, said) in said.iter() {
        match id.0 & super::common::BROADCAST {
            0 => rolling.unicasts += 1,
            _ => rolling.broadcasts += 1,
        }
        let heard = rolling.clients.messages.get(id).copied().unwrap_or(0);
        if said.is_partial {
            rolling.partial += 1;
            // At least what was reported.
            rolling.uneven += usize::from(heard < said.deliveries);
            continue;
        }
        rolling.said += said.deliveries;
        rolling.heard += heard;
        rolling.uneven += usize::from(heard != said.deliveries);
    }
    rolling
}

fn table(rolling: &Rolling) -> String {
    let Settings { nodes, clients, .. } = rolling.settings;
    let Heard { moved, began_anew, cut_off, doubled, untold, missing, again_elsewhere, .. } = &rolling.clients;
    let mut text = format!(
        "a rolling restart of {nodes} nodes \u{d7} {clients} clients on loopback; {} messages to all, {} to single channels\n\n\
         node    ended after ms   whole again ms   clients present ms\n",
        rolling.broadcasts, rolling.unicasts
    );
    for Restart { node, drained_ms, whole_ms, present_ms } in &rolling.restarts {
        text += &format!("{node:<6}{drained_ms:>16}{whole_ms:>17}{present_ms:>21}\n");
    }
    text += &format!(
        "\nclients were told {moved} times to come back, and {began_anew} times elsewhere that they began anew; {cut_off} \
         were cut off\n\
         on one channel {doubled} messages came twice or out of order; {missing} are missing, {untold} of them untold\n\
         {again_elsewhere} messages came again on the channel of another node\n\
         nodes report {} deliveries, clients heard {} of these messages; {} messages differ\n\
         {} messages of which a node that ended has not reported are left out\n",
        rolling.said, rolling.heard, rolling.uneven, rolling.partial
    );
    let verdict = if rolling.is_exact() { "exact" } else { "NOT EXACT" };
    text + verdict + "\n"
}
