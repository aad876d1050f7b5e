//! Orders of a shard that is held up, what a link keeps for a peer that does not read, and greetings that do not end.

use super::{
    ALLOCATED, MIB, PATIENCE, Scene, UPGRADE, attach, attach_as, attach_kernel, attach_peer, broker, connect, frame,
    message, take_turn,
};
use pushring::{
    Broker, ChannelId, Close, Config, Event, Here, HttpRule, Message, Process, PushError, QueueLimits, RequestId,
};
use serde_json::json;
use std::io::Write;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

/// A handler that holds its shard up from its first message on, until the sender of `until` is gone.
struct HoldsUp {
    begun: Sender<()>,
    until: Option<Receiver<()>>,
}

impl pushring::ShardHandler for HoldsUp {
    fn on_event(&mut self, _: &mut Here<'_>, event: Event) {
        if matches!(event, Event::Message { .. })
            && let Some(until) = self.until.take()
        {
            self.begun.send(()).unwrap();
            // It ends with an error, when the sender is gone.
            let _ = until.recv_timeout(PATIENCE);
        }
    }
}

/// A request that waits for the process' answer.
fn asked(scene: &Scene, process: &Process) -> (std::net::TcpStream, RequestId) {
    process.bind_http("/", HttpRule::default()).unwrap();
    let (client, _) = connect(&scene.broker, "/p:test:sys/", "");
    let mut events = Vec::new();
    loop {
        process.recv_batch(&mut events, PATIENCE).unwrap();
        if let Some(Event::Http(request)) = events.pop() {
            return (client, request.id);
        }
    }
}

/// Orders of one kind, until there is no room for another; returns how many there were.
fn fill(mut order: impl FnMut() -> Result<(), PushError>) -> usize {
    let mut count = 0;
    loop {
        match order() {
            Ok(()) => count += 1,
            Err(PushError::InboxFull | PushError::Partly) => return count,
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn orders_of_a_shard_that_is_held_up() {
    let _turn = take_turn();
    let broker = broker();
    let process = attach(&broker, QueueLimits::default());
    let others =
        ["lists", "reasons"].map(|name| attach_as(&broker, &format!("{name}:test:sys"), QueueLimits::default()));
    let (begun, has_begun) = channel();
    let (release, until) = channel::<()>();
    let until = std::sync::Mutex::new(Some(until));
    let handler = move |_| HoldsUp { begun: begun.clone(), until: until.lock().unwrap().take() };
    let holds = broker.on_shards("holds:test:sys", handler).unwrap();
    holds.handle().bind("/", Default::default()).unwrap();
    let scene = Scene::new(broker);
    let (client, request) = asked(&scene, &process);
    let (mut held_up, status) = connect(&scene.broker, "/holds:test:sys/", UPGRADE);
    assert!(status.ends_with("101"));
    held_up.write_all(&message(b"now")).unwrap();
    has_begun.recv_timeout(PATIENCE).unwrap();
    // What is held is asked of the ledger: the shard does not answer.
    let held = || scene.broker.handle().held_by_process().iter().map(|tenant| tenant.held.total()).sum::<usize>();
    let judge = |what: &str, before: (usize, isize), least: usize| {
        let (held, allocated) = (held() - before.0, ALLOCATED.load(Ordering::Relaxed) - before.1);
        let ratio = held as f64 / allocated as f64;
        println!("{what}: {held} held, {allocated} allocated, {ratio:.2}");
        assert!(held >= least && (0.8..=1.25).contains(&ratio), "{what}: {held} held, {allocated} allocated");
    };
    let now = || (held(), ALLOCATED.load(Ordering::Relaxed));
    let [lists, reasons] = &others;
    let before = now();
    let list: Vec<ChannelId> = (0..2_000).map(|id| ChannelId::new(id * 4)).collect();
    let count = fill(|| lists.broadcast(Message::binary(vec![1; 100])).to(list.clone()).try_send());
    assert!(count > 100, "{count}");
    judge("lists of channels", before, MIB);
    let before = now();
    let reason = "r".repeat(123);
    let count = fill(|| {
        let close: Close<'_> = reasons.close(ChannelId::new(4), 4000, reason.as_str());
        close.try_send()
    });
    assert!(count > 1_000, "{count}");
    judge("reasons of closes", before, MIB / 2);
    let before = now();
    let count = fill(|| {
        let field = |at: usize| (format!("x-{at}").into(), "v".repeat(150).into());
        process.respond(request, 200).headers((0..40).map(field)).body(vec![2; 200]).try_send()
    });
    assert!(count > 100, "{count}");
    judge("fields of responses", before, MIB);
    drop((release, client));
    let deadline = Instant::now() + PATIENCE;
    while scene.held() > 64 * 1024 {
        assert!(Instant::now() < deadline, "{} held of nothing", scene.held());
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn answers_that_a_peer_does_not_read() {
    let _turn = take_turn();
    let broker = broker();
    let (_server, mut peer) = attach_peer(&broker, "/");
    let scene = Scene::new(broker);
    peer.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    let asks: Vec<u8> =
        (2..66).flat_map(|ask| frame(&json!({"push": {"channel": 7, "kind": "binary", "ask": ask}}))).collect();
    // Until the broker reads no more of a peer that takes no answers.
    let mut rounds = 0;
    while peer.write_all(&asks).is_ok() {
        rounds += 1;
        assert!(rounds < 4_000, "answers have an end");
    }
    scene.judge("answers that are not read", 256 * 1024);
    drop(peer);
}

#[test]
fn messages_of_a_kernel_that_reads_nothing() {
    const NODE: &str = "test.os";
    let _turn = take_turn();
    let (scene, _server, mut peer) = attach_kernel(NODE);
    // Each is answered with an error, and has capabilities and metadata that are more than its body.
    let issuer = format!("{NODE}@app:app:sys");
    let capability = json!({"issuer": issuer, "params": "p".repeat(150), "signature": vec![7; 100]});
    let asks: Vec<u8> = (0..16)
        .flat_map(|id| {
            let (metadata, capabilities) = ("m".repeat(300), vec![&capability; 4]);
            let (body, within_s) = (b"no order", 5);
            let request = json!({
                "expects_response": within_s, "body": body, "metadata": metadata, "capabilities": capabilities,
            });
            let target = format!("{NODE}@http-server:distro:sys");
            let message = json!({"id": id, "source": issuer, "target": target, "message": {"request": request}});
            frame(&json!({"kernel": message}))
        })
        .collect();
    let mut rounds = 0;
    while peer.write_all(&asks).is_ok() {
        rounds += 1;
        assert!(rounds < 10_000, "what waits has an end");
    }
    assert!(rounds > 0, "it was let in");
    scene.judge("messages of a kernel, and answers to it", MIB);
    drop(peer);
}

#[test]
fn greetings_of_tls_that_do_not_end() {
    let _turn = take_turn();
    let mut config = Config { shards: 1, tls_listen: Some(([127, 0, 0, 1], 0).into()), ..Config::default() };
    config.shard.tls = Some(super::support::tls::server());
    let scene = Scene::new(Broker::start(config).unwrap());
    let address = scene.broker.tls_address().unwrap();
    // A record, and in it a ClientHello (RFC 8446 4.1.2) of 15,000 bytes, of which 14,000 come.
    let mut greeting = vec![0; 14_000];
    greeting[..11].copy_from_slice(&[22, 3, 1, 0x3a, 0x9c, 1, 0, 0x3a, 0x98, 3, 3]);
    let clients: Vec<_> = (0..60)
        .map(|_| {
            let mut client = std::net::TcpStream::connect(address).unwrap();
            client.write_all(&greeting).unwrap();
            client
        })
        .collect();
    scene.judge("greetings that do not end", 60 * 13_000);
    drop(clients);
}
