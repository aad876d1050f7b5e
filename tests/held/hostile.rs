//! What strangers and peers can have kept for them that is easily overlooked: heads of requests whose bodies do not
//! come, handshakes that stand still, events of a batch that were not asked for, names and addresses of any length,
//! history that is gone.

use super::{ALLOCATED, MIB, PATIENCE, Scene, UPGRADE, attach, attach_kernel, broker, connect, frame, message, open};
use super::{take_turn, wait_until};
use pushring::internals::broker::KernelOptions;
use pushring::internals::gateway::RulesOverlay;
use pushring::{
    Audience, Broker, ChannelId, Config, Event, Here, HttpRule, Message, Policy, QueueLimits, Resume, WebSocketRule,
};
use serde_json::json;
use std::io::{Read, Write};
use std::sync::atomic::Ordering;
use std::sync::mpsc::channel;
use std::time::Duration;

/// A broker that waits for whatever comes, however busy the machine is.
fn patient() -> Config {
    let mut config = Config { shards: 1, ..Config::default() };
    let patience_ms = PATIENCE.as_millis() as u64;
    (config.shard.head_timeout_ms, config.shard.body_timeout_ms) = (patience_ms, patience_ms);
    config.shard.tls_handshake_timeout_ms = patience_ms;
    config
}

#[test]
fn heads_of_requests_whose_bodies_do_not_come() {
    let _turn = take_turn();
    let broker = Broker::start(patient()).unwrap();
    let process = attach(&broker, QueueLimits::default());
    process.bind_http("/", HttpRule::default()).unwrap();
    let scene = Scene::new(broker);
    let fields: String = (0..60).map(|at| format!("X-{at}: {}\r\n", "c".repeat(200))).collect();
    let head = format!("{fields}Content-Length: 1000\r\n");
    let clients: Vec<_> = (0..60).map(|_| connect(&scene.broker, "/p:test:sys/", &head)).collect();
    scene.judge("heads of requests whose bodies do not come", 60 * 12_000);
    drop(clients);
}

#[test]
fn upgrades_that_do_not_end() {
    const CLIENTS: usize = 300;
    let _turn = take_turn();
    let broker = Broker::start(patient()).unwrap();
    let process = attach(&broker, QueueLimits::default());
    process.bind("/", Default::default()).unwrap();
    let (address, handle) = (broker.address(), broker.handle());
    let come = || -> Vec<_> { (0..CLIENTS).map(|_| std::net::TcpStream::connect(address).unwrap()).collect() };
    // The places of connections are not counted, and are kept.
    let first = come();
    wait_until("they have come", || handle.reports()[0].connections == CLIENTS);
    drop(first);
    wait_until("they have gone", || handle.reports()[0].connections == 0);
    let scene = Scene::new(broker);
    let begun = format!("GET /p:test:sys/ HTTP/1.1\r\nHost: {address}\r\n{UPGRADE}X-Rest: {}", "x".repeat(900));
    let mut clients = come();
    clients.iter_mut().for_each(|client| client.write_all(begun.as_bytes()).unwrap());
    scene.judge("upgrades that do not end", CLIENTS * 1_000);
    drop(clients);
}

#[test]
fn handshakes_of_tls_that_stand_still() {
    let _turn = take_turn();
    let mut config = Config { tls_listen: Some(([127, 0, 0, 1], 0).into()), ..patient() };
    config.shard.tls = Some(super::support::tls::server());
    let scene = Scene::new(Broker::start(config).unwrap());
    let address = scene.broker.tls_address().unwrap();
    let mut greeting = Vec::new();
    super::support::tls::connection(&super::support::tls::client(), "localhost").write_tls(&mut greeting).unwrap();
    let clients: Vec<_> = (0..200)
        .map(|_| {
            let mut client = std::net::TcpStream::connect(address).unwrap();
            client.set_read_timeout(Some(PATIENCE)).unwrap();
            client.write_all(&greeting).unwrap();
            // It is answered, and says no more.
            client.read_exact(&mut [0; 100]).unwrap();
            client
        })
        .collect();
    scene.judge("handshakes that stand still", 200 * 2_500);
    drop(clients);
}

#[test]
fn events_of_a_batch_that_were_not_asked_for() {
    let _turn = take_turn();
    let broker = broker();
    let mut process = attach(&broker, QueueLimits::default());
    process.bind("/", Default::default()).unwrap();
    let (clients, _) = open(&broker, &process, 1);
    let scene = Scene::new(broker);
    (&clients[0]).write_all(&message(&[7; 60]).repeat(990)).unwrap();
    // All of one read are one batch, of which one is asked for.
    while !matches!(process.recv_timeout(PATIENCE).unwrap(), Some(Event::Message { .. })) {}
    scene.judge("events of a batch, one of which was asked for", 60_000);
    let mut left = 989;
    while left > 0 {
        left -= usize::from(matches!(process.recv_timeout(PATIENCE).unwrap(), Some(Event::Message { .. })));
        assert!(scene.held() < 300_000);
    }
    wait_until("nothing is held of nothing", || scene.held() < 4_096);
}

#[test]
fn event_streams_that_are_not_read() {
    let _turn = take_turn();
    let broker = broker();
    let process = attach(&broker, QueueLimits::default());
    process.bind("/", WebSocketRule { sse: true, ..WebSocketRule::default() }).unwrap();
    let streams = super::services::open(&broker, &process, 8, "Accept: text/event-stream\r\n");
    let scene = Scene::new(broker);
    for at in 0..6_000 {
        let (_, channel) = &streams[at % streams.len()];
        let push = process.push(*channel, Message::text(format!("{at}: {}", "x".repeat(2_000))));
        push.policy(Policy::DropOldest).send().unwrap();
    }
    scene.judge("event streams that are not read", 4 * MIB);
}

#[test]
fn large_events_of_streams_that_are_not_read() {
    let _turn = take_turn();
    let broker = broker();
    let process = attach(&broker, QueueLimits::default());
    process.bind("/", WebSocketRule { sse: true, ..WebSocketRule::default() }).unwrap();
    let streams = super::services::open(&broker, &process, 1, "Accept: text/event-stream\r\n");
    let scene = Scene::new(broker);
    for at in 0..40_usize {
        let message = match at % 2 {
            0 => Message::binary(vec![7; 100_000]),
            _ => Message::text("line\n".repeat(20_000)),
        };
        process.push(streams[0].1, message).policy(Policy::DropOldest).send().unwrap();
    }
    scene.judge("large events of streams that are not read", 20 * 100_000);
}

#[test]
fn texts_that_were_made_with_room_to_spare() {
    let _turn = take_turn();
    let broker = broker();
    let process = attach(&broker, QueueLimits::default());
    process.bind("/", WebSocketRule { resume: true, ..WebSocketRule::default() }).unwrap();
    let resumable = format!("{UPGRADE}Sec-WebSocket-Protocol: pushring.1\r\n");
    let clients = super::services::open(&broker, &process, 1, &resumable);
    let scene = Scene::new(broker);
    for _ in 0..40 {
        let mut text = String::with_capacity(200_000);
        text.push_str(&"x".repeat(100_000));
        process.push(clients[0].1, Message::text(text)).policy(Policy::DropOldest).send().unwrap();
    }
    scene.judge("texts that were made with room to spare", 20 * 100_000);
    drop(clients);
}

#[test]
fn names_of_paths_that_event_streams_were_sent_by() {
    let _turn = take_turn();
    let broker = broker();
    let process = attach(&broker, QueueLimits::default());
    let path = format!("/{}", "p".repeat(3_000));
    process.bind_at_with(&path, WebSocketRule { sse: true, ..WebSocketRule::default() }).unwrap();
    let client = connect(&broker, &path, "Accept: text/event-stream\r\n");
    let mut events = Vec::new();
    while !events.iter().any(|event| matches!(event, Event::Opened(_))) {
        process.recv_batch(&mut events, PATIENCE).unwrap();
    }
    let scene = Scene::new(broker);
    for _ in 0..2_000 {
        process.broadcast(Message::text("x".repeat(100))).to(Audience::Path(path.as_str().into())).send().unwrap();
    }
    scene.judge("events of a path with a long name", 300_000);
    drop(client);
}

#[test]
fn places_of_history_that_is_gone() {
    let _turn = take_turn();
    let mut config = Config { shards: 1, ..Config::default() };
    config.shard.resume = Resume { shard_bytes_max: MIB, ..Resume::default() };
    let broker = Broker::start(config).unwrap();
    let process = attach(&broker, QueueLimits::default());
    process.bind("/", WebSocketRule { resume: true, ..WebSocketRule::default() }).unwrap();
    let resumable = format!("{UPGRADE}Sec-WebSocket-Protocol: pushring.1\r\n");
    let clients = super::services::open(&broker, &process, 1, &resumable);
    let scene = Scene::new(broker);
    // In a lane of its own, where it stays: older than all that comes and goes.
    process.push(clients[0].1, Message::text("quiet")).send().unwrap();
    for _ in 0..60_000 {
        let push = process.broadcast(Message::binary(vec![7; 4_200])).to(Audience::Process);
        push.policy(Policy::DropOldest).send().unwrap();
    }
    let history = || scene.broker.handle().reports()[0].history_bytes;
    wait_until("what exceeds the limit goes", || history() <= MIB);
    scene.judge("places of history that is gone", MIB / 2);
    drop(clients);
}

#[test]
fn paths_with_long_names_bound_and_unbound() {
    const PATHS: usize = 200;
    let _turn = take_turn();
    let broker = broker();
    let process = attach(&broker, QueueLimits::default());
    let mut scene = Scene::new(broker);
    for (what, path) in [("paths", "p".repeat(3_900)), ("patterns", format!(":id/{}", "p".repeat(3_900)))] {
        let path = |at: usize| format!("/{at}/{path}");
        scene.begin_anew();
        for at in 0..PATHS {
            process.bind(&path(at), WebSocketRule::default()).unwrap();
            process.bind_http(&path(at), HttpRule::default()).unwrap();
        }
        scene.judge(&format!("{what}, bound"), 4 * PATHS * 3_900);
        for at in 0..PATHS {
            process.unbind(&path(at)).unwrap();
            process.unbind_http(&path(at)).unwrap();
        }
        scene.judge(&format!("{what}, unbound"), 2 * PATHS * 3_900);
    }
}

#[test]
fn topics_that_come_and_go() {
    let _turn = take_turn();
    let broker = broker();
    let process = attach(&broker, QueueLimits::default());
    process.bind("/", Default::default()).unwrap();
    let (clients, channels) = open(&broker, &process, 20);
    let scene = Scene::new(broker);
    for round in 0..20 {
        let name = |at: usize, topic: usize| format!("{round}/{at}/{topic}/{}", "t".repeat(100));
        for (at, &channel) in channels.iter().enumerate() {
            (0..100).for_each(|topic| process.subscribe(channel, name(at, topic)).send().unwrap());
        }
        if round == 19 {
            scene.judge("topics that have come", 20 * 100 * 300);
        }
        for (at, &channel) in channels.iter().enumerate() {
            (0..100).for_each(|topic| process.unsubscribe(channel, name(at, topic)).send().unwrap());
        }
    }
    let allocated = || ALLOCATED.load(Ordering::Relaxed) - scene.idle;
    wait_until("topics that have gone take nothing", || scene.held() < 32 * 1024 && allocated() < 128 * 1024);
    drop(clients);
}

#[test]
fn names_that_a_kernels_clients_invent() {
    let _turn = take_turn();
    let broker = broker();
    let options = KernelOptions {
        system: "http-server:distro:sys".parse().unwrap(),
        queue: QueueLimits::default(),
        policy: Policy::default(),
        rules: RulesOverlay::new(|chosen| chosen),
    };
    // It reads nothing, so none of them is forgotten.
    let (_kernel, handle) = broker.handle().kernel(options).unwrap();
    let mut scene = Scene::new(broker);
    for (what, bytes) in [("short", 20), ("long", 10_000)] {
        scene.begin_anew();
        for at in 0..1_000 {
            let name = format!("{}-{at}:invented:sys", "n".repeat(bytes));
            assert!(handle.owner(&name.parse().unwrap()).is_some());
        }
        scene.judge(&format!("{what} names that clients invent"), 1_000 * (700 + bytes));
    }
}

/// Actions of processes and guests whose addresses are long, from a kernel that reads nothing.
#[test]
fn answers_that_a_kernel_expects_and_does_not_read() {
    const NODE: &str = "test.os";
    let _turn = take_turn();
    let (scene, server, mut peer) = attach_kernel(NODE);
    let asks = |round: usize| -> Vec<u8> {
        let name = format!("{}-{}", "n".repeat(20_000), round % 50);
        let of_process = format!("{NODE}@{name}:app:sys");
        let of_guest = format!("{name}@app:app:sys");
        (0..16)
            .flat_map(|id| {
                let source = if id < 12 { &of_process } else { &of_guest };
                let request = json!({"expects_response": 5, "body": br#"{"WebSocketClose":7}"#, "capabilities": []});
                let target = format!("{NODE}@http-server:distro:sys");
                let message = json!({"id": id, "source": source, "target": target, "message": {"request": request}});
                frame(&json!({"kernel": message}))
            })
            .collect()
    };
    let rounds = (0..200).take_while(|&round| peer.write_all(&asks(round)).is_ok()).count();
    assert!(rounds > 10, "{rounds}");
    scene.judge("answers that a kernel expects and does not read", 4 * MIB);
    // Its threads take their time to let go of all that.
    let idle = scene.idle;
    drop((peer, server, scene));
    wait_until("all of it is freed", || ALLOCATED.load(Ordering::Relaxed) < idle + MIB as isize);
}

/// Its events wait while orders of its for another shard find no room there.
#[test]
fn events_of_a_process_on_the_shards_whose_orders_wait() {
    let _turn = take_turn();
    let broker = Broker::start(Config { shards: 2, ..Config::default() }).unwrap();
    let (begun, has_begun) = channel();
    let (release, until) = channel::<()>();
    let (until, begun) = (std::sync::Mutex::new(until), std::sync::Mutex::new(begun));
    let held_up = std::sync::Arc::new((begun, until));
    let (opened, has_opened) = channel();
    let opened = std::sync::Mutex::new(opened);
    // A message of one byte holds its shard up; another is sent on to the channel that it names.
    let process = broker.on_shards("p:test:sys", move |_| {
        let (held_up, opened) = (held_up.clone(), opened.lock().unwrap().clone());
        move |here: &mut Here<'_>, event: Event| match event {
            Event::Opened(new) => opened.send(new.channel).unwrap(),
            Event::Message { payload, .. } if payload.len() == 1 => {
                held_up.0.lock().unwrap().send(()).unwrap();
                // It ends with an error, when the sender is gone.
                let _ = held_up.1.lock().unwrap().recv_timeout(PATIENCE);
            }
            Event::Message { payload, .. } => {
                let to = ChannelId::new(u32::from_be_bytes(payload[..4].try_into().unwrap()));
                let _ = here.push(to, Message::binary(payload)).send();
            }
            _ => {}
        }
    });
    let process = process.unwrap();
    process.handle().bind("/", Default::default()).unwrap();
    let scene = Scene::new(broker);
    let mut clients: Vec<(std::net::TcpStream, ChannelId)> = Vec::new();
    while clients.iter().all(|(_, id)| id.shard(2) == clients[0].1.shard(2)) {
        let (client, status) = connect(&scene.broker, "/p:test:sys/", UPGRADE);
        assert!(status.ends_with("101"), "{status}");
        clients.push((client, has_opened.recv_timeout(PATIENCE).unwrap()));
        assert!(clients.len() < 200);
    }
    let (stuck, stuck_channel) = clients.pop().unwrap();
    let (client, _) = clients.pop().unwrap();
    (&stuck).write_all(&message(b"!")).unwrap();
    has_begun.recv_timeout(PATIENCE).unwrap();
    // That shard does not answer: what is held is asked of the ledger.
    let held = || scene.broker.handle().held_by_process().iter().map(|tenant| tenant.held.total()).sum::<usize>();
    let before = (held(), ALLOCATED.load(Ordering::Relaxed));
    let mut payload = stuck_channel.get().to_be_bytes().to_vec();
    payload.resize(100, 7);
    client.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    let burst = message(&payload).repeat(600);
    let rounds = (0..400).take_while(|_| (&client).write_all(&burst).is_ok()).count();
    assert!(rounds > 10, "{rounds}");
    let judged = || (held() - before.0, ALLOCATED.load(Ordering::Relaxed) - before.1);
    wait_until("what waits on the shards is counted", || {
        let (held, allocated) = judged();
        held > MIB && (0.8..=1.25).contains(&(held as f64 / allocated as f64))
    });
    println!("events and orders that wait on the shards: {:?}", judged());
    drop((release, clients, stuck));
}
