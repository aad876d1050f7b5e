//! The chat example works as a chat: all in the room hear a message, those who left do not, and invalid input does no
//! harm.

#[allow(dead_code)]
use crate::chat;
use crate::support;

use pushring::ChannelId;
use pushring::node::{Dialect, EventMessages, HttpResponse, IncomingHttpRequest, KernelMessage};
use pushring::process_lib::{self, Address, Exit, HttpServerRequest, Mailbox, WsMessageType};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

const ALICE: ChannelId = ChannelId::new(7);
const BOB: ChannelId = ChannelId::new(8);

struct Node {
    our: Address,
    events: EventMessages,
    to_process: SyncSender<KernelMessage>,
    from_process: Receiver<KernelMessage>,
}

impl Node {
    fn say(&self, channel: ChannelId, text: &str) {
        let message = self.events.message(0, &self.our.process, channel, WsMessageType::Text, text.into());
        self.to_process.send(message).unwrap();
    }

    fn open(&self, channel: ChannelId) {
        let peer = "127.0.0.1:5000".parse().unwrap();
        self.to_process.send(self.events.opened(0, &self.our.process, channel, "/".into(), peer, None)).unwrap();
    }

    /// The next push: to which channel, and what.
    fn pushed(&self) -> (u32, String) {
        let push = self.from_process.recv().unwrap();
        assert_eq!(push.target.to_string(), "local.os@http-server:distro:sys");
        match HttpServerRequest::from_bytes(push.message.body()).unwrap() {
            HttpServerRequest::WebSocketPush { channel_id, message_type: WsMessageType::Text } => {
                (channel_id, String::from_utf8(push.lazy_load_blob.unwrap().bytes).unwrap())
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn everybody_in_the_room_hears() {
    let (to_kernel, from_process) = sync_channel(64);
    let (to_process, from_kernel) = sync_channel(64);
    let our: Address = "local.os@chat:chat:template.os".parse().unwrap();
    let process = process_lib::spawn(our.clone(), Box::new(Mailbox::new(to_kernel, from_kernel)), chat::process::init);
    let node = Node { events: EventMessages::new(&our.node, Dialect::Hyperdrive), our, to_process, from_process };

    node.open(ALICE);
    node.open(BOB);
    node.say(ALICE, "no json at all");
    node.say(ALICE, r#"{"Send":{"author":"alice","content":"hello"}}"#);
    let hello = r#"{"author":"alice","content":"hello"}"#.to_string();
    let mut heard = [node.pushed(), node.pushed()];
    heard.sort();
    assert_eq!(heard, [(7, hello.clone()), (8, hello.clone())]);

    node.to_process.send(node.events.closed(0, &node.our.process, ALICE)).unwrap();
    node.say(BOB, r#"{"Send":{"author":"bob","content":"anybody?"}}"#);
    assert_eq!(node.pushed(), (8, r#"{"author":"bob","content":"anybody?"}"#.to_string()));
    node.say(BOB, r#""History""#);
    assert_eq!(node.pushed(), (8, hello));
    assert_eq!(node.pushed().0, 8);

    let bound_path = "/chat:chat:template.os/history".to_string();
    let incoming = IncomingHttpRequest { method: "GET".into(), bound_path, ..Default::default() };
    node.to_process.send(node.events.http(9, &node.our.process, incoming, Vec::new(), 15)).unwrap();
    let answer = node.from_process.recv().unwrap();
    let response: HttpResponse = serde_json::from_slice(answer.message.body()).unwrap();
    assert_eq!((answer.id, response.status), (9, 200));
    assert!(answer.lazy_load_blob.unwrap().bytes.ends_with(br#""content":"anybody?"}]"#));

    drop(node);
    assert_eq!(process.unwrap().join().unwrap(), Exit::Stopped);
}

fn join(chat: &chat::Chat, kind: fn(String) -> tungstenite::Message) -> (support::Client, u64) {
    let mut client = support::connect(&chat.broker, "/");
    let register = serde_json::json!({
        "auth_token": chat.token, "target_process": "chat:chat:template.os", "encrypted": false,
    });
    support::send(&mut client, kind(register.to_string()));
    let reply: serde_json::Value = serde_json::from_str(support::recv(&mut client).to_text().unwrap()).unwrap();
    (client, reply["channel_id"].as_u64().unwrap())
}

#[test]
fn clients_of_a_real_broker_chat() {
    let chat = chat::start(([127, 0, 0, 1], 0).into()).unwrap();
    let (mut alice, alice_id) = join(&chat, tungstenite::Message::text);
    let (mut bob, bob_id) = join(&chat, |text| tungstenite::Message::binary(text.into_bytes()));
    assert_ne!(alice_id, bob_id);

    let hello = r#"{"author":"alice","content":"hello"}"#;
    support::send(&mut alice, r#"{"Send":{"author":"alice","content":"hello"}}"#);
    assert_eq!(support::recv(&mut alice), tungstenite::Message::text(hello));
    assert_eq!(support::recv(&mut bob), tungstenite::Message::text(hello));

    alice.close(None).unwrap();
    while alice.read().is_ok() {}
    let again = r#"{"author":"bob","content":"anybody?"}"#;
    support::send(&mut bob, r#"{"Send":{"author":"bob","content":"anybody?"}}"#);
    assert_eq!(support::recv(&mut bob), tungstenite::Message::text(again));
    support::send(&mut bob, r#""History""#);
    assert_eq!(support::recv(&mut bob), tungstenite::Message::text(hello));
    assert_eq!(support::recv(&mut bob), tungstenite::Message::text(again));

    chat.broker.handle().stop(support::PATIENCE);
    assert_eq!(support::recv_close(&mut bob).0, 1001);
    while bob.read().is_ok() {}
    assert_eq!(chat.process.join().unwrap(), Exit::Stopped);
    chat.broker.wait().unwrap();
}
