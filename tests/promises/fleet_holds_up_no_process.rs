//! A process that is behind holds up no other's messages from other nodes: what a shard has no room for waits for its
//! process alone. What is more than may wait is lost and told, to the message, like what NATS loses.

use super::fleet::{from_ghost, wait_for};
use crate::support;

use pushring::fleet::{Fleet, Name, Options};
use pushring::{AttachOptions, Broker, ChannelId, Outcome, Process, WebSocketRule};
use serde_json::Value;
use std::net::TcpStream;
use support::nats::Nats;
use support::{Client, PATIENCE, Patient, ShardHolder, broker, on_shard, recv, recv_close};
use tungstenite::client::IntoClientRequest;

/// A node with little room in its inboxes, and two processes: `slow` has a client on the first shard, `quick` one on
/// the other, and each is subscribed to the topic `room` of its process.
struct Scene {
    slow: Client,
    quick: Client,
    /// Theirs.
    channels: [ChannelId; 2],
    holder: ShardHolder,
    _fleet: Fleet,
    _processes: [Process; 2],
    broker: Broker,
}

/// A client that counts, of the process of this name, and its channel.
fn open(broker: &Broker, name: &str) -> (Client, ChannelId) {
    let stream = TcpStream::connect(broker.address()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut request = format!("ws://{}/{name}:test:sys/", broker.address()).into_client_request().unwrap();
    request.headers_mut().insert("sec-websocket-protocol", "pushring.1".parse().unwrap());
    let (mut client, _) = tungstenite::client(request, Patient::new(stream)).unwrap();
    let hello: Value = serde_json::from_str(client.read().unwrap().to_text().unwrap()).unwrap();
    (client, ChannelId::new(hello["channel_id"].as_u64().unwrap() as u32))
}

fn kept(broker: &Broker, name: &str) -> Process {
    let process = broker.handle().process(format!("{name}:test:sys"), AttachOptions::default()).unwrap();
    process.bind("/", WebSocketRule { resume: true, ..WebSocketRule::default() }).unwrap();
    process
}

fn start(nats: &Nats) -> Scene {
    let broker = broker(support::driver(), |config| {
        config.inbox.bytes_max = 4 << 10;
        config.shard.outbound_bytes_max = 64 << 20;
    });
    let (slow, quick) = (kept(&broker, "slow"), kept(&broker, "quick"));
    let fleet = Options { servers: vec![nats.url()], ..Options::new(Name::new("b").unwrap()) };
    let fleet = Fleet::start(&broker.handle(), fleet).unwrap();
    wait_for(&broker, "it is there", |report| report.connected);
    let client_of = |process: &Process, shard| {
        let name = process.id().as_str().split(':').next().unwrap().to_owned();
        let (client, channel) = on_shard(shard, || open(&broker, &name));
        let outcome = process.subscribe(channel, "room").ask().send().unwrap().wait(PATIENCE).unwrap();
        assert_eq!(outcome, Outcome { sent: 1, ..Outcome::default() });
        (client, channel)
    };
    let ((of_slow, slows), (of_quick, quicks)) = (client_of(&slow, 0), client_of(&quick, 1));
    Scene {
        slow: of_slow,
        quick: of_quick,
        channels: [slows, quicks],
        holder: ShardHolder::new(&broker),
        _fleet: fleet,
        _processes: [slow, quick],
        broker,
    }
}

fn text(client: &mut Client) -> String {
    recv(client).into_text().unwrap().to_string()
}

#[test]
fn what_a_process_has_no_room_for_waits_for_it_alone() {
    let Some(nats) = Nats::start("") else { return };
    let mut scene = start(&nats);
    scene.holder.hold();
    let mut sent: Vec<_> = (1..=500).map(|n| from_ghost("slow:test:sys", n, &n.to_string())).collect();
    sent.push(from_ghost("quick:test:sys", 1, "through"));
    nats.publish(r#"{"verbose":false}"#, &sent);
    assert_eq!(text(&mut scene.quick), "through");
    scene.holder.release();
    for number in 1..=500 {
        assert_eq!(text(&mut scene.slow), number.to_string());
    }
    assert_eq!(wait_for(&scene.broker, "it is told", |_| true).counts.lost, 0);
}

/// A message of a node of the name `ghost` about a channel here, in the name of `process` there.
fn to_channel(kind: u8, process: &str, sequence: u64, channel: ChannelId, payload: &[u8]) -> (String, Vec<u8>) {
    let mut bytes = vec![b'P', 1, kind, 0, 0, 5];
    bytes.extend((process.len() as u16).to_be_bytes());
    bytes.extend(1u16.to_be_bytes());
    bytes.extend(1u64.to_be_bytes());
    bytes.extend(1u32.to_be_bytes());
    bytes.extend(sequence.to_be_bytes());
    bytes.extend([0; 16]);
    bytes.extend_from_slice(format!("ghost{process}").as_bytes());
    bytes.extend(channel.get().to_be_bytes());
    bytes.extend_from_slice(payload);
    ("pushring.v1.main.ghost.channels.b".to_owned(), bytes)
}

#[test]
fn a_guest_for_whom_there_is_no_room_holds_up_no_close_of_an_operator() {
    const GUEST: u8 = 8;
    const CLOSE: u8 = 11;
    let Some(nats) = Nats::start("") else { return };
    let mut scene = start(&nats);
    let [slow, quick] = scene.channels;
    scene.holder.hold();
    let mut sent: Vec<_> = (1..=500).map(|n| to_channel(GUEST, "guest:test:sys", n, slow, b"no grant")).collect();
    sent.push(to_channel(CLOSE, "", 1, quick, &[&4000u16.to_be_bytes()[..], b"enough"].concat()));
    nats.publish(r#"{"verbose":false}"#, &sent);
    assert_eq!(recv_close(&mut scene.quick), (4000, "enough".to_owned()));
    scene.holder.release();
    assert_eq!(wait_for(&scene.broker, "all have come", |report| report.counts.received == 500).counts.lost, 0);
}

#[test]
fn what_is_more_than_may_wait_is_told_to_the_message() {
    const SENT: u64 = 250;
    let Some(nats) = Nats::start("") else { return };
    let mut scene = start(&nats);
    scene.holder.hold();
    // 25 MB, of which 16 MiB may wait.
    let padding = "x".repeat(100 << 10);
    let numbered = |n: u64| from_ghost("slow:test:sys", n, &format!("{n} {padding}"));
    for part in 0..5 {
        let part: Vec<_> = (part * SENT / 5..(part + 1) * SENT / 5).map(|n| numbered(n + 1)).collect();
        nats.publish(r#"{"verbose":false}"#, &part);
    }
    nats.publish(r#"{"verbose":false}"#, &[from_ghost("quick:test:sys", 1, "through")]);
    assert_eq!(text(&mut scene.quick), "through");
    wait_for(&scene.broker, "all have come", |report| report.counts.received == SENT + 1);
    scene.holder.release();
    let (mut heard, mut dropped) = (0, 0);
    while dropped == 0 {
        let text = text(&mut scene.slow);
        match text.strip_prefix("\u{1e}{\"dropped\":") {
            Some(told) => dropped = told.trim_end_matches('}').parse().unwrap(),
            None => {
                heard += 1;
                assert!(text.starts_with(&format!("{heard} ")), "once and in order");
            }
        }
    }
    assert_eq!(heard + dropped, SENT);
    assert!((140..=165).contains(&heard), "{heard} have waited");
    let report = wait_for(&scene.broker, "it is told", |report| report.counts.lost > 0);
    assert_eq!((report.counts.lost, report.losses.len()), (dropped, 1), "{report:#?}");
    assert_eq!((&*report.losses[0].node, report.losses[0].lost), ("ghost", Some(dropped)));
    // And it goes on behind the gap.
    nats.publish(r#"{"verbose":false}"#, &[numbered(SENT + 1)]);
    assert!(text(&mut scene.slow).starts_with(&format!("{} ", SENT + 1)));
}
