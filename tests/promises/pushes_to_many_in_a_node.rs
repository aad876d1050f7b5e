//! One action reaches many channels with one encoding of its blob: each place in a list once, each channel of a path or
//! process once, less the exceptions; and is answered with counts that add up, whatever the list holds.

use crate::node_support;

use node_support::support::{Client, recv};
use node_support::{Node, Options};
use serde_json::{Value, json};
use tungstenite::Message;

const OWNER: &str = "fake.os@app:app:test.os";
const TARGET: &str = "app:app:test.os";

fn many(channels: &[u64], kind: &str) -> String {
    json!({"WebSocketPushMany": {"channel_ids": channels, "message_type": kind}}).to_string()
}

fn broadcast(path: Option<&str>, except: &[u64]) -> String {
    json!({"WebSocketBroadcast": {"path": path, "message_type": "Text", "except": except}}).to_string()
}

/// Three channels on `/`, one on `/b`, one that was registered; and one of another process.
struct Scene {
    node: Node,
    clients: Vec<(Client, u64)>,
    stranger: (Client, u64),
}

fn start() -> Scene {
    let mut node = Node::start(Options::default());
    node.bind(TARGET, "/");
    node.bind(TARGET, "/b/");
    node.bind("other:other:test.os", "/");
    let paths = ["", "", "/", "/b"].map(|path| format!("/{TARGET}{path}"));
    let mut clients: Vec<_> = paths.iter().map(|path| node.open(path)).collect();
    clients.push(node.register(TARGET));
    node.heard();
    let stranger = node.open("/other:other:test.os");
    Scene { node, clients, stranger }
}

impl Scene {
    fn id(&self, at: usize) -> u64 {
        self.clients[at].1
    }

    /// Pushes, and answers what was counted: sent, not found, not owned.
    #[track_caller]
    fn count(&mut self, body: &str, text: &str) -> [u64; 3] {
        let answer: Value = serde_json::from_str(&self.node.ask(OWNER, body, Some(text.as_bytes()))).unwrap();
        let counts = answer["Ok"].as_object().unwrap_or_else(|| panic!("{answer}"));
        let names = ["sent", "not_found", "not_owner"];
        let others = counts.iter().filter(|(name, _)| !names.contains(&name.as_str()));
        assert!(others.into_iter().all(|(_, count)| *count == 0), "{answer}");
        names.map(|name| counts[name].as_u64().unwrap())
    }

    /// The exact messages of each client.
    #[track_caller]
    fn got(&mut self, expected: [&[&str]; 5]) {
        let all: Vec<u64> = self.clients.iter().map(|(_, id)| *id).collect();
        self.node.tell(1, OWNER, &many(&all, "Text"), Some(b"end"));
        for (at, ((client, _), texts)) in self.clients.iter_mut().zip(expected).enumerate() {
            for text in texts.iter().chain(&["end"]) {
                assert_eq!(recv(client), Message::text(*text), "client {at}");
            }
        }
        self.node.tell(1, "fake.os@other:other:test.os", &node_support::push(self.stranger.1), Some(b"mine"));
        assert_eq!(recv(&mut self.stranger.0), Message::text("mine"));
    }
}

#[test]
fn a_list_is_pushed_place_by_place() {
    let mut scene = start();
    let [first, second] = [scene.id(0), scene.id(1)];
    let others = scene.stranger.1;
    assert_eq!(scene.count(&many(&[], "Text"), "nobody"), [0, 0, 0]);
    assert_eq!(scene.count(&many(&[first, 1, others, second], "Text"), "two"), [2, 1, 1]);
    assert_eq!(scene.count(&many(&[first, first], "Text"), "twice"), [2, 0, 0]);
    // As large as a body can reasonably be: each channel once, and all unknown ones counted.
    let mut huge: Vec<u64> = (0..200_000).map(|at| 1 + (at % 1000)).filter(|id| *id != others).collect();
    let mine: Vec<u64> = scene.clients.iter().map(|(_, id)| *id).collect();
    huge.retain(|id| !mine.contains(id));
    let strangers = huge.len() as u64;
    huge.extend(&mine);
    assert_eq!(scene.count(&many(&huge, "Text"), "huge"), [5, strangers, 0]);
    scene.got([&["two", "twice", "twice", "huge"], &["two", "huge"], &["huge"], &["huge"], &["huge"]]);
}

#[test]
fn a_broadcast_reaches_a_path_or_all_but_the_exceptions() {
    let mut scene = start();
    let [first, fourth, fifth] = [scene.id(0), scene.id(3), scene.id(4)];
    // A registered channel is on `/`; slashes at the ends of a path mean nothing.
    assert_eq!(scene.count(&broadcast(Some("/"), &[]), "root"), [4, 0, 0]);
    assert_eq!(scene.count(&broadcast(Some("b"), &[first]), "b"), [1, 0, 0]);
    assert_eq!(scene.count(&broadcast(Some("/b/"), &[fourth]), "nobody"), [0, 0, 0]);
    assert_eq!(scene.count(&broadcast(Some("/none"), &[]), "nobody"), [0, 0, 0]);
    let stranger = scene.stranger.1;
    assert_eq!(scene.count(&broadcast(None, &[first, first, 1, stranger, fifth]), "all"), [3, 0, 0]);
    assert_eq!(scene.count(r#"{"WebSocketBroadcast":{"message_type":"Text"}}"#, "every"), [5, 0, 0]);
    let huge: Vec<u64> = (0..100_000).map(|at| at ^ 0x8000_0000).collect();
    assert_eq!(scene.count(&broadcast(None, &huge), "huge"), [5, 0, 0]);
    let [of_root, of_all] = [["root", "all", "every", "huge"], ["every", "huge", "", ""]];
    scene.got([
        &["root", of_all[0], of_all[1]],
        &of_root,
        &of_root,
        &["b", "all", "every", "huge"],
        &["root", "every", "huge"],
    ]);
}

#[test]
fn frames_are_what_one_push_would_make_of_them() {
    let mut scene = start();
    let all: Vec<u64> = scene.clients.iter().map(|(_, id)| *id).collect();
    for (body, blob, error) in [
        (many(&all, "Text"), None, "NoBlob"),
        (broadcast(None, &[]), None, "NoBlob"),
        (many(&all, "Text"), Some(&b"\xff"[..]), "MalformedRequest"),
        (many(&all, "Close"), Some(b""), "MalformedRequest"),
        (many(&all, "Ping"), Some(&[b'x'; 126]), "WsPingPongTooLong"),
        (many(&[1 << 32], "Text"), Some(b"x"), "MalformedRequest"),
    ] {
        assert_eq!(scene.node.ask(OWNER, &body, blob), format!(r#"{{"Err":"{error}"}}"#), "{body}");
    }
    // Success is silent if no answer is expected.
    scene.node.tell(2, OWNER, &broadcast(None, &[]), Some(b"silent"));
    scene.node.tell(3, OWNER, &many(&[1, 2], "Text"), Some(b"nobody"));
    scene.got([&["silent"]; 5]);
    scene.node.is_quiet();
    let ping = many(&all, "Ping");
    assert!(scene.node.ask(OWNER, &ping, Some(b"p")).contains(r#""sent":5"#));
    for (client, _) in &mut scene.clients {
        assert_eq!(client.read().unwrap(), Message::Ping("p".into()));
    }
}
