//! A rolling restart of a fleet under load, with the drain: clients are told to come back, come back elsewhere, and are
//! told that they began anew there; each message comes once on a channel, and in order of its source; at the end the
//! fleet is whole.

use super::fleet::wait_for;
use crate::support;

use pushring::fleet::{Fleet, Name, Options};
use pushring::{AttachOptions, Broker, Drain, Message, Process, WebSocketRule};
use serde_json::Value;
use std::collections::HashMap;
use std::net::{SocketAddr, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use support::nats::Nats;
use support::{Client, PATIENCE, Patient, broker};
use tungstenite::client::IntoClientRequest;

const NODES: usize = 3;
const CLIENTS: usize = 6;

/// A node in one of its lives.
struct Life {
    name: String,
    sent: u64,
    rooms: Process,
    _fleet: Fleet,
    broker: Broker,
}

impl Life {
    fn begin(nats: &Nats, node: usize, life: usize) -> Self {
        let broker = broker(support::driver(), |_| {});
        let rooms = broker.handle().process("rooms:test:sys", AttachOptions::default()).unwrap();
        rooms.bind("/", WebSocketRule { resume: true, ..WebSocketRule::default() }).unwrap();
        let options = Options { servers: vec![nats.url()], ..Options::new(Name::new(&format!("n{node}")).unwrap()) };
        let fleet = Fleet::start(&broker.handle(), options).unwrap();
        Self { name: format!("n{node}.{life}"), sent: 0, rooms, _fleet: fleet, broker }
    }

    /// Waits until it hears the others, and listens for channels where it has any.
    fn joined(&self) {
        wait_for(&self.broker, "whole again", |report| {
            let there = report.nodes.iter().filter(|node| !node.is_gone && !node.draining);
            report.connected && there.count() == NODES - 1
        });
    }

    /// Sends the next message to all clients of all nodes.
    fn send(&mut self) {
        self.sent += 1;
        let message = Message::text(format!("{} {}", self.name, self.sent));
        // A draining node sends until it has stopped.
        let _ = self.rooms.broadcast(message).everywhere().send();
    }
}

/// State shared by all threads.
struct Scene {
    /// Where nodes listen; none: it is about to begin anew.
    addresses: Mutex<[Option<SocketAddr>; NODES]>,
    /// Clients that were told to come back and began anew elsewhere.
    moved: AtomicUsize,
    /// Clients that have heard the last message of each node.
    done: AtomicUsize,
    is_last: AtomicBool,
}

/// Opens a client at some node, from this one on; none: that node takes none.
fn open(scene: &Scene, node: usize, offers: &str) -> Option<(Client, Value)> {
    let address = scene.addresses.lock().unwrap()[node % NODES]?;
    let stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut request = format!("ws://{address}/rooms:test:sys/").into_client_request().unwrap();
    request.headers_mut().insert("sec-websocket-protocol", offers.parse().unwrap());
    let (mut client, _) = tungstenite::client(request, Patient::new(stream)).ok()?;
    let hello = serde_json::from_str(client.read().ok()?.to_text().ok()?).ok()?;
    Some((client, hello))
}

/// Comes back until it is let in, to the next node first.
fn come_back(scene: &Scene, from: usize, offers: &str) -> (usize, Client, Value) {
    let since = Instant::now();
    for node in from + 1.. {
        if let Some((client, hello)) = open(scene, node, offers) {
            return (node, client, hello);
        }
        assert!(since.elapsed() < PATIENCE, "no node takes a client");
        std::thread::sleep(Duration::from_millis(5));
    }
    unreachable!("nodes are asked for ever")
}

/// One client, until it has heard the last message of each node.
fn client(scene: &Scene, first: usize) {
    let (mut node, mut socket, mut hello) = come_back(scene, first + NODES - 1, "pushring.1");
    let mut last = HashMap::<String, u64>::new();
    let mut ended = std::collections::HashSet::new();
    while ended.len() < NODES {
        match socket.read() {
            Ok(tungstenite::Message::Text(text)) => {
                let Some((source, number)) = text.split_once(' ') else { continue };
                if number == "end" {
                    ended.insert(source.to_owned());
                    continue;
                }
                let number: u64 = number.parse().unwrap();
                let before = last.insert(source.to_owned(), number);
                assert!(before.is_none_or(|before| before < number), "{source}: {number} behind {before:?}");
            }
            Ok(tungstenite::Message::Close(frame)) => {
                let frame = frame.expect("a drain says why");
                assert_eq!(u16::from(frame.code), 1012, "{frame:?}");
                let offers =
                    format!("pushring.1, resume.{}.{}.0", hello["channel_id"], hello["resume"].as_str().unwrap());
                drop(socket);
                (node, socket, hello) = come_back(scene, node, &offers);
                assert_eq!(hello["resumed"], false, "{hello}");
                assert!(hello["reason"].is_string(), "it is told that it began anew, and why: {hello}");
                // Another channel: what it gets there has an order of its own.
                last.clear();
                ended.clear();
                scene.moved.fetch_add(1, Ordering::Relaxed);
            }
            Ok(_) => {}
            Err(error) => panic!("a client of a drained node is closed, not cut off: {error}"),
        }
    }
    scene.done.fetch_add(1, Ordering::Relaxed);
}

#[test]
fn clients_of_a_rolling_restart_begin_anew_elsewhere_and_hear_nothing_twice() {
    let Some(nats) = Nats::start("") else { return };
    let lives: Vec<Mutex<Life>> = (0..NODES).map(|node| Mutex::new(Life::begin(&nats, node, 0))).collect();
    lives.iter().for_each(|life| life.lock().unwrap().joined());
    let addresses = std::array::from_fn(|node| Some(lives[node].lock().unwrap().broker.address()));
    let scene = Scene {
        addresses: Mutex::new(addresses),
        moved: AtomicUsize::new(0),
        done: AtomicUsize::new(0),
        is_last: AtomicBool::new(false),
    };
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| {
                scope.spawn({
                    let scene = &scene;
                    move || client(scene, number)
                })
            })
            .collect();
        // The load: each node sends, for as long as the restarts take.
        scope.spawn(|| {
            while !scene.is_last.load(Ordering::Acquire) {
                for life in &lives {
                    if let Ok(mut life) = life.try_lock() {
                        life.send();
                    }
                }
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        for (node, life) in lives.iter().enumerate() {
            scene.addresses.lock().unwrap()[node] = None;
            let handle = life.lock().unwrap().broker.handle();
            // It ends once its clients have gone, which no machine is too slow for.
            handle.drain(Drain { grace_ms: 0, over_ms: 200, within_ms: PATIENCE.as_millis() as u64 });
            let since = Instant::now();
            while !handle.reports().is_empty() {
                assert!(since.elapsed() < PATIENCE, "it is drained");
                std::thread::sleep(Duration::from_millis(10));
            }
            let mut life = life.lock().unwrap();
            let next = Life::begin(&nats, node, 1);
            next.joined();
            scene.addresses.lock().unwrap()[node] = Some(next.broker.address());
            *life = next;
        }
        scene.is_last.store(true, Ordering::Release);
        // A node listens for its channels a moment after they came: it is said until all have heard it.
        let since = Instant::now();
        while scene.done.load(Ordering::Relaxed) < CLIENTS
            && clients.iter().all(|client| !client.is_finished() || scene.done.load(Ordering::Relaxed) > 0)
        {
            for life in &lives {
                let life = life.lock().unwrap();
                life.rooms.broadcast(Message::text(format!("{} end", life.name))).everywhere().send().unwrap();
            }
            assert!(since.elapsed() < PATIENCE, "not all clients have come back");
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    assert!(scene.moved.load(Ordering::Relaxed) >= CLIENTS, "each node was drained, so each client has moved");
    for life in &lives {
        let counts = life.lock().unwrap().broker.handle().fleet().unwrap().counts;
        assert_eq!(counts.gaps_unknown, 0, "{counts:?}");
    }
}
