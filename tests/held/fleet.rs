//! What a fleet keeps of the audiences that a node listens to, and of the numbers of what is said to them.

use super::services::open;
use super::{PATIENCE, Scene, UPGRADE, attach, broker, take_turn};
use crate::support::nats::Nats;
use pushring::fleet::{Fleet, Name, Options};
use pushring::{Audience, Message, Process, QueueLimits};
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
    let (mut here, mut there) = (Node::start(&nats, "here"), Node::start(&nats, "there"));
    for node in [&here, &there] {
        node.wait_for("they hear each other", |report| report.connected && report.nodes.len() == 1);
    }
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
