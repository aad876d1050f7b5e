//! The drop-in under a kernel that the test plays: owners on demand, who may push to what, and a kernel that is slow.
#![allow(missing_docs)]

#[allow(dead_code)]
#[path = "../examples/node_backend.rs"]
mod node_backend;
mod support;

use node_backend::adapter::{MyNode, NodeMessage};
use node_backend::kernel::{KEYFILE, NODE, SECRET};
use pushring::broker::Config;
use pushring::gateway::{Claims, Dialect, Secret, mint};
use pushring::node::{self, Address, KernelMessage, LazyLoadBlob, Request, http_server_process};
use std::net::{SocketAddr, TcpStream};
use std::thread::JoinHandle;
use support::{Client, PATIENCE, recv, recv_close, send};
use tokio::sync::mpsc;
use tungstenite::Message;

/// A node whose kernel is the test.
struct Node {
    address: SocketAddr,
    to_server: Option<mpsc::Sender<NodeMessage>>,
    /// A second end, as other modules of a node have one.
    to_kernel: mpsc::Sender<NodeMessage>,
    from_server: mpsc::Receiver<NodeMessage>,
    server: JoinHandle<Result<(), node::ServerError>>,
}

fn start(kernel_messages_max: usize) -> Node {
    let (to_server, from_kernel) = mpsc::channel(32);
    let (to_kernel, from_server) = mpsc::channel(kernel_messages_max);
    let (prints, mut printed) = mpsc::channel(32);
    let parts = node::Parts {
        host: MyNode { name: NODE.into(), jwt_secret: SECRET.to_vec() },
        our_node: NODE.into(),
        dialect: Dialect::Kinode,
        listen: ([127, 0, 0, 1], 0).into(),
        keyfile: KEYFILE.to_vec(),
        jwt_secret: SECRET.to_vec(),
        from_kernel,
        to_kernel: to_kernel.clone(),
        prints,
        expose_local: false,
        config: Config { shards: 2, ..Config::default() },
    };
    let server = std::thread::spawn(|| {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(node::http_server(parts))
    });
    let line: String = printed.blocking_recv().unwrap();
    let address = line.rsplit(' ').next().unwrap().parse().unwrap();
    Node { address, to_server: Some(to_server), to_kernel, from_server, server }
}

impl Node {
    fn tell(&self, id: u64, source: &str, body: &str, blob: Option<&[u8]>) {
        let message = KernelMessage {
            id,
            source: source.parse().unwrap(),
            target: Address::new(NODE, http_server_process()),
            rsvp: None,
            message: node::Message::Request(Request { body: body.into(), ..Request::default() }),
            lazy_load_blob: blob.map(|bytes| LazyLoadBlob { mime: None, bytes: bytes.to_vec() }),
        };
        self.to_server.as_ref().unwrap().blocking_send(NodeMessage(message)).unwrap();
    }

    fn next(&mut self) -> KernelMessage {
        self.from_server.blocking_recv().unwrap().0
    }

    /// The next message: its id, target and body.
    fn heard(&mut self) -> (u64, String, String) {
        let message = self.next();
        let body = String::from_utf8(message.message.body().to_vec()).unwrap();
        (message.id, message.target.to_string(), body)
    }

    fn register(&mut self, process: &str) -> (Client, u64) {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut client = tungstenite::client(format!("ws://{}/", self.address), stream).unwrap().0;
        let claims = Claims { username: NODE.into(), subdomain: None, expiration: 4_000_000_000 };
        let token = mint(&Secret::new(SECRET).unwrap(), &claims);
        let register = serde_json::json!({"auth_token": token, "target_process": process, "encrypted": false});
        send(&mut client, register.to_string());
        let reply: serde_json::Value = serde_json::from_str(recv(&mut client).to_text().unwrap()).unwrap();
        (client, reply["channel_id"].as_u64().unwrap())
    }
}

fn push(channel: u64) -> String {
    format!(r#"{{"WebSocketPush":{{"channel_id":{channel},"message_type":"Text"}}}}"#)
}

#[test]
fn any_process_has_channels_and_only_it_may_use_them() {
    let mut node = start(1000);
    let (mut client, channel) = node.register("my_package:my_package:template.os");
    let opened = format!(r#"{{"WebSocketOpen":{{"path":"/","channel_id":{channel}}}}}"#);
    let (_, target, body) = node.heard();
    assert_eq!((target.as_str(), body), ("fake.os@my_package:my_package:template.os", opened));

    // Another process, and the same process of another node: refused, though nobody asked.
    let refused = r#"{"Err":"WsChannelNotFound"}"#.to_string();
    let strangers = ["fake.os@other:other:template.os", "evil.os@my_package:my_package:template.os"];
    for (id, stranger) in (1..).zip(strangers) {
        node.tell(id, stranger, &push(channel), Some(b"stolen"));
        assert_eq!(node.heard(), (id, stranger.to_string(), refused.clone()));
        node.tell(id + 10, stranger, &format!(r#"{{"WebSocketClose":{channel}}}"#), None);
        assert_eq!(node.heard(), (id + 10, stranger.to_string(), refused.clone()));
    }
    node.tell(20, strangers[1], r#"{"WebSocketBind":{"path":"/","authenticated":false,"extension":false}}"#, None);
    assert_eq!(node.heard().2, r#"{"Err":"InvalidSourceProcess"}"#);

    node.tell(30, "our@my_package:my_package:template.os", &push(channel), Some(b"hello"));
    assert_eq!(recv(&mut client), Message::text("hello"));
    // Its own mistakes are told as well, and the close of a channel that never was is a success.
    node.tell(31, "our@my_package:my_package:template.os", &push(channel ^ 1), Some(b"hello"));
    assert_eq!(node.heard(), (31, "fake.os@my_package:my_package:template.os".into(), refused));
    node.tell(32, "our@my_package:my_package:template.os", r#"{"WebSocketClose":1}"#, None);

    send(&mut client, "over to you");
    let message = node.next();
    assert_eq!(message.lazy_load_blob.unwrap().bytes, b"over to you");
}

#[test]
fn a_slow_kernel_is_never_full_and_misses_nothing() {
    const QUEUE: usize = 64;
    const MESSAGES: usize = 5000;
    let mut node = start(QUEUE);
    let (mut client, _) = node.register("p:p:t.os");
    assert!(node.heard().2.contains("WebSocketOpen"));
    let sender = std::thread::spawn(move || {
        for at in 0..MESSAGES {
            send(&mut client, at.to_string());
        }
        client
    });
    // The kernel does nothing until half of its queue is taken, and then goes on.
    while node.to_kernel.capacity() >= QUEUE / 2 {
        std::thread::yield_now();
    }
    for at in 0..MESSAGES {
        // Other modules of the node fail when the queue is full: there is always room for them.
        assert!(node.to_kernel.capacity() >= QUEUE / 4, "message {at}");
        let message = node.next();
        assert_eq!(message.lazy_load_blob.unwrap().bytes, at.to_string().as_bytes());
    }
    drop(sender.join().unwrap());
    assert!(node.heard().2.contains("WebSocketClose"));
}

#[test]
fn the_server_ends_with_its_kernel() {
    let mut node = start(1000);
    let (mut client, _) = node.register("p:p:t.os");
    drop(node.to_server.take());
    assert_eq!(recv_close(&mut client).0, 1001);
    drop(client);
    node.server.join().unwrap().unwrap();
}
