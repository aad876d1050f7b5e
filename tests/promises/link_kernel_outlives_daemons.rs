//! A node over a link outlives its daemon: it waits for the next one, binds its paths there again, and tells its
//! processes of channels that ended; nothing is duplicated, and no process of the node waits.

use crate::node_support::{self, NODE, Node, http_response, listening, push};
use crate::support::daemon::{Daemon, pushring};
use crate::support::{Client, PATIENCE, Patient, driver, recv, recv_close, send};
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Instant;
use tungstenite::Message;

const APP: &str = "fake.os@app:app:test.os";
const PATH: &str = "/app:app:test.os/";
const BIND: &str = r#"{"WebSocketBind":{"path":"/","authenticated":false,"extension":false}}"#;
const PAGE: &str = r#"{"Bind":{"path":"/page","authenticated":false,"local_only":false,"cache":true}}"#;
const BASE: &str = r#"{"Bind":{"path":"/","authenticated":false,"local_only":false,"cache":true}}"#;
const OK: &str = r#"{"Ok":null}"#;

/// A place for a link, and an address for the daemons that come and go.
struct Place {
    directory: PathBuf,
    link: PathBuf,
    address: SocketAddr,
}

impl Place {
    fn new(name: &str) -> Self {
        let directory = std::env::temp_dir().join(format!("pushring-outlives-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let address = TcpListener::bind((Ipv4Addr::new(127, 44, 55, 66), 0)).unwrap().local_addr().unwrap();
        Self { link: directory.join("link"), directory, address }
    }

    fn daemon(&self) -> Daemon {
        let (listen, driver) = (self.address.to_string(), driver().to_string());
        let link = self.link.to_str().unwrap();
        Daemon::spawn(&mut pushring(&[
            "serve",
            "--node",
            NODE,
            "--dialect",
            "kinode",
            "--link",
            link,
            "--listen",
            &listen,
            "--driver",
            &driver,
            "--shards",
            "2",
            "--outbound-bytes-max",
            "64MiB",
        ]))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// A channel at the path, as soon as the daemon has it.
fn connect(address: SocketAddr) -> Client {
    let until = Instant::now() + PATIENCE;
    loop {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        match tungstenite::client(format!("ws://{address}{PATH}"), Patient::new(stream)) {
            Ok((client, _)) => return client,
            Err(error) => assert!(Instant::now() < until, "the path is not back: {error}"),
        }
        std::thread::yield_now();
    }
}

fn attach(link: &Path) -> (Node, tokio::sync::mpsc::Receiver<String>) {
    Node::attach_at(link)
}

#[test]
fn a_node_that_is_there_first_is_answered_and_bound_when_the_daemon_comes() {
    let place = Place::new("first");
    let (mut node, mut prints) = attach(&place.link);
    // Taken at once, though no broker is there; a request that a broker would refuse is refused.
    assert_eq!(node.ask(APP, BIND, None), OK);
    // Unbound before the base is bound, which would take it else.
    assert_eq!(node.ask(APP, r#"{"Unbind":{"path":"/gone"}}"#, None), OK);
    assert_eq!(node.ask(APP, PAGE, Some(b"content")), OK);
    assert_eq!(node.ask(APP, BASE, Some(b"the base")), OK);
    assert_eq!(node.ask(APP, PAGE, None), r#"{"Err":"NoBlob"}"#);
    assert_eq!(node.ask("fake.os@a_p_p:app:test.os", BIND, None), r#"{"Err":"InvalidSourceProcess"}"#);
    assert_eq!(node.ask(APP, &push(7), Some(b"to nobody")), r#"{"Err":"WsChannelNotFound"}"#);
    // Refused even where no answer is expected.
    let wrapped =
        r#"{"WebSocketExtPushOutgoing":{"channel_id":7,"message_type":"Binary","desired_reply_type":"Request"}}"#;
    let subscribe = r#"{"WebSocketSubscribe":{"channel_id":7,"topic":"t"}}"#;
    for (id, order) in (1..).zip([&*push(7), wrapped, subscribe, &subscribe.replace("Subs", "Unsubs")]) {
        node.tell(id, APP, order, Some(b"to nobody"));
        assert_eq!(node.heard(), (id, APP.into(), r#"{"Err":"WsChannelNotFound"}"#.into()), "{order}");
    }
    assert_eq!(node.ask(APP, r#"{"WebSocketClose":7}"#, None), OK);
    let many = r#"{"WebSocketPushMany":{"channel_ids":[7,8],"message_type":"Text"}}"#;
    assert!(node.ask(APP, many, Some(b"to nobody")).contains(r#""not_found":2"#));
    assert!(prints.blocking_recv().unwrap().contains("no broker serves this node"));

    let daemon = place.daemon();
    assert_eq!(listening(&mut prints), place.address);
    let mut client = connect(place.address);
    assert!(node.heard().2.contains("WebSocketOpen"), "and no answer to what was bound again");
    send(&mut client, "hello");
    assert_eq!(node.next().lazy_load_blob.unwrap().bytes, b"hello");
    // Bound and unbound behind the path on which the client came, perhaps a moment later.
    for (path, status, end) in [("page", 200, "content"), ("other", 200, "the base"), ("gone", 404, "")] {
        let until = Instant::now() + PATIENCE;
        loop {
            let mut stream = TcpStream::connect(place.address).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            write!(stream, "GET {PATH}{path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").unwrap();
            let (told, page) = http_response(stream);
            if told == status && page.ends_with(end) {
                break;
            }
            assert!(Instant::now() < until, "{path}: {page}");
        }
    }
    drop(node.to_server.take());
    assert_eq!(recv_close(&mut client).0, 1001);
    node.server.join().unwrap().unwrap();
    drop(daemon);
}

/// The messages about one channel until it is closed: the numbers that its client sent.
fn numbers_until_closed(node: &mut Node, channel: u64) -> Vec<u64> {
    let mut numbers = Vec::new();
    loop {
        let message = node.next();
        let body: serde_json::Value = serde_json::from_slice(message.message.body()).unwrap();
        if body["WebSocketClose"] == channel {
            return numbers;
        }
        if let Some(push) = body.get("WebSocketPush").filter(|push| push["message_type"] == "Text") {
            assert_eq!(push["channel_id"], channel);
            let text = String::from_utf8(message.lazy_load_blob.unwrap().bytes).unwrap();
            numbers.push(text.parse().unwrap());
        } else {
            // Pushes that came too late are answered; nothing else is said.
            assert_eq!(body, serde_json::json!({"Err": "WsChannelNotFound"}));
        }
    }
}

#[test]
fn twenty_daemons_die_under_load_and_the_node_lives() {
    let place = Place::new("twenty");
    let (mut node, mut prints) = attach(&place.link);
    assert_eq!(node.ask(APP, BIND, None), OK);
    let mut slowest = std::time::Duration::ZERO;
    let mut daemon = place.daemon();
    let mut began = Instant::now();
    for round in 0..20 {
        assert_eq!(listening(&mut prints), place.address);
        let mut client = connect(place.address);
        slowest = slowest.max(began.elapsed());
        let opened = node.heard().2;
        let opened: serde_json::Value = serde_json::from_str(&opened).unwrap();
        let channel = opened["WebSocketOpen"]["channel_id"].as_u64().unwrap_or_else(|| panic!("{round}: {opened}"));

        // Load in both directions, in the middle of which the daemon is killed.
        let mut writer = client.get_ref().try_clone().unwrap();
        let sending = std::thread::spawn(move || {
            for number in 0_u64.. {
                let mut frame = Vec::new();
                let text = number.to_string();
                pushring::internals::proto::client::append_frame(&mut frame, 0x81, [1, 2, 3, 4], text.as_bytes());
                if writer.write_all(&frame).is_err() {
                    return number;
                }
            }
            unreachable!()
        });
        let to_server = node.to_server.clone().unwrap();
        let pushing = std::thread::spawn(move || {
            for number in 0..2000_u64 {
                let text = number.to_string();
                let message =
                    node_support::request(100 + number, APP, push(channel).as_bytes(), Some(text.as_bytes()), None);
                // The kernel never waits for a daemon that has gone.
                to_server.blocking_send(node_support::NodeMessage(message)).unwrap();
            }
        });
        for expected in 0..100 {
            assert_eq!(recv(&mut client), Message::text(expected.to_string()), "round {round}");
        }
        daemon.child.kill().unwrap();
        daemon.child.wait().unwrap();
        let mut next = 100;
        while let Ok(message) = client.read() {
            assert_eq!(message, Message::text(next.to_string()), "round {round}: once, and in order");
            next += 1;
        }
        pushing.join().unwrap();
        let sent = sending.join().unwrap();
        daemon = place.daemon();
        began = Instant::now();
        let heard = numbers_until_closed(&mut node, channel);
        assert!(heard.len() as u64 <= sent && heard.iter().copied().eq(0..heard.len() as u64), "once, and in order");
        drop(client);
    }
    println!("paths were back within {slowest:?} of the daemon's first line");
    // Questions are still answered: nothing was left over.
    while node.from_server.try_recv().is_ok() {}
    assert_eq!(node.ask(APP, BIND, None), OK);
    drop(node.to_server.take());
    node.server.join().unwrap().unwrap();
}

#[test]
fn a_daemon_that_hangs_keeps_no_kernel_waiting() {
    const PUSHES: u64 = 40;
    let place = Place::new("hangs");
    let daemon = place.daemon();
    let (mut node, mut prints) = attach(&place.link);
    assert_eq!(listening(&mut prints), place.address);
    assert_eq!(node.ask(APP, BIND, None), OK);
    let mut client = connect(place.address);
    let opened: serde_json::Value = serde_json::from_str(&node.heard().2).unwrap();
    let channel = opened["WebSocketOpen"]["channel_id"].as_u64().unwrap();
    daemon.signal("STOP");
    let blob = |number: u64| [&number.to_be_bytes()[..], &vec![7; 1 << 20]].concat();
    let binary = push(channel).replace("Text", "Binary");
    for number in 0..PUSHES {
        node.tell(number, APP, &binary, Some(&blob(number)));
    }
    // The link's window is kept, and what is more is answered.
    let mut refused = vec![node.heard()];
    while refused.last().unwrap().0 < PUSHES - 1 {
        refused.push(node.heard());
    }
    assert!(refused.iter().all(|(_, _, body)| body == r#"{"Err":"WsChannelNotFound"}"#));
    daemon.signal("CONT");
    let refused: Vec<u64> = refused.iter().map(|(id, ..)| *id).collect();
    for number in (0..PUSHES).filter(|number| !refused.contains(number)) {
        assert_eq!(recv(&mut client).into_data()[..8], number.to_be_bytes());
    }
    node.is_quiet();
}
