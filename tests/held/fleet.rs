//! What a fleet keeps of the audiences that a node listens to, of the numbers of what is said to them, of pushes that
//! wait for NATS, and of those whose outcome other nodes are asked for.

use super::services::{EndOnDrop, batch, open, send_again_and_again, start_api};
use super::{ALLOCATED, MIB, PATIENCE, Scene, UPGRADE, attach, broker, take_turn};
use crate::support::nats::Nats;
use pushring::fleet::{Fleet, Name, Options};
use pushring::{Audience, Message, Process, QueueLimits};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const CHANNELS: usize = 64;
const TOPICS_OF_EACH: usize = 64;
const TOPICS: usize = CHANNELS * TOPICS_OF_EACH;

struct Node {
    process: Process,
    _fleet: Fleet,
    scene: Scene,
}

impl Node {
    fn start(nats: &Nats, name: &str) -> Self {
        let broker = broker();
        let process = attach(&broker, QueueLimits::default());
        process.bind("/", Default::default()).unwrap();
        let options = Options { servers: vec![nats.url()], ..Options::new(Name::new(name).unwrap()) };
        let fleet = Fleet::start(&broker.handle(), options).unwrap();
        Self { process, _fleet: fleet, scene: Scene::new(broker) }
    }

    fn wait_for(&self, what: &str, is_so: impl Fn(&pushring::FleetReport) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let report = self.scene.broker.handle().fleet().unwrap();
            if is_so(&report) {
                return;
            }
            assert!(Instant::now() < deadline, "{what}: {report:#?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn name_of(topic: usize) -> String {
    format!("topic/{topic}")
}

#[test]
fn audiences_that_a_node_listens_to_and_numbers_of_what_is_said_to_them() {
    let _turn = take_turn();
    let Some(nats) = Nats::start("") else { return };
    let [mut here, mut there] = two_nodes(&nats);
    let clients = open(&there.scene.broker, &there.process, CHANNELS, UPGRADE);
    here.scene.begin_anew();
    there.scene.begin_anew();
    for topic in 0..TOPICS {
        there.process.subscribe(clients[topic / TOPICS_OF_EACH].1, name_of(topic)).send().unwrap();
    }
    there.wait_for("it listens", |report| report.listens >= TOPICS as u64);
    Scene::judge_together(&[&here.scene, &there.scene], "audiences of a fleet", TOPICS * 4096);

    here.scene.begin_anew();
    there.scene.begin_anew();
    for topic in 0..TOPICS {
        let push = here.process.broadcast(Message::text("x")).to(Audience::Topic(name_of(topic).into()));
        push.everywhere().send().unwrap();
        if topic % 1024 == 0 {
            here.wait_for("it has left", |report| report.queued == 0);
        }
    }
    there.wait_for("all is heard", |report| report.counts_in >= TOPICS as u64);
    Scene::judge_together(&[&here.scene, &there.scene], "numbers of a fleet", TOPICS * 300);
}

/// Two nodes that hear each other.
fn two_nodes(nats: &Nats) -> [Node; 2] {
    let nodes = ["here", "there"].map(|name| Node::start(nats, name));
    for node in &nodes {
        node.wait_for("they hear each other", |report| report.connected && report.nodes.len() == 1);
    }
    nodes
}

#[test]
fn pushes_that_wait_for_nats() {
    const WAITING_MIN: usize = 3 * MIB;
    let _turn = take_turn();
    let Some(nats) = Nats::start("") else { return };
    let node = Node::start(&nats, "here");
    let handle = node.scene.broker.handle();
    // What waits outside of shards is asked of the ledger.
    let held = || handle.held_by_process().iter().map(|tenant| tenant.held.total()).sum::<usize>();
    let deadline = Instant::now() + PATIENCE;
    // It is noticed after a while that NATS has stopped, and nothing is taken then: on a busy machine, before enough
    // waits. NATS goes on, and it is tried again.
    let before = loop {
        node.wait_for("NATS is reached", |report| report.connected && report.queued == 0);
        let before = (held(), ALLOCATED.load(Ordering::Relaxed));
        nats.signal("STOP");
        while held() < before.0 + WAITING_MIN && handle.fleet().unwrap().connected {
            for _ in 0..8 {
                let push = node.process.broadcast(Message::binary(vec![7; 20_000]));
                push.to(Audience::Topic("a topic".into())).everywhere().send().unwrap();
            }
        }
        if held() >= before.0 + WAITING_MIN {
            break before;
        }
        assert!(Instant::now() < deadline, "{} held", held() - before.0);
        nats.signal("CONT");
    };
    loop {
        let (held, allocated) = (held() - before.0, ALLOCATED.load(Ordering::Relaxed) - before.1);
        let ratio = held as f64 / allocated as f64;
        if held >= WAITING_MIN && (0.8..=1.25).contains(&ratio) {
            println!("pushes that wait for NATS: {held} held, {allocated} allocated, {ratio:.2}");
            break;
        }
        assert!(Instant::now() < deadline, "{held} held, {allocated} allocated, {ratio:.2}");
        std::thread::sleep(Duration::from_millis(50));
    }
    nats.signal("CONT");
}

#[test]
fn batches_of_which_other_nodes_are_asked() {
    let _turn = take_turn();
    let Some(nats) = Nats::start("") else { return };
    let [mut here, there] = two_nodes(&nats);
    start_api(&here.scene.broker, &here.process);
    let (address, goes_on) = (here.scene.broker.address(), AtomicBool::new(true));
    let request = batch(address, "{\"to\":{\"topic\":\"a\"},\"text\":\"x\",\"outcome\":\"nodes\"}\n", 4_000);
    here.scene.begin_anew();
    std::thread::scope(|scope| {
        let _end = EndOnDrop(&goes_on);
        (0..4).for_each(|_| drop(scope.spawn(|| send_again_and_again(address, &request, &goes_on))));
        here.scene.judge("lines of which other nodes are asked", 2 * MIB);
    });
    drop(there);
}
