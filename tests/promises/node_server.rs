//! The drop-in under a kernel that the test plays: owners on demand, who may push to what, and a kernel that is slow.

use crate::node_support;

use node_support::support::{PATIENCE, recv, recv_close, send};
use node_support::{Node, Options, push};
use pushring::control::{self, Answer, Filter, Request};
use pushring::internals::proto::client::append_frame;
use std::io::Write;
use std::time::Instant;
use tungstenite::Message;

#[test]
fn any_process_has_channels_and_only_it_may_use_them() {
    let mut node = Node::start(Options::default());
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
    let mut node = Node::start(Options { kernel_messages_max: QUEUE, ..Options::default() });
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
    let mut node = Node::start(Options::default());
    let (mut client, _) = node.register("p:p:t.os");
    drop(node.to_server.take());
    assert_eq!(recv_close(&mut client).0, 1001);
    drop(client);
    node.server.join().unwrap().unwrap();
}

#[test]
fn messages_may_be_as_large_as_a_nodes_own_server_takes_them() {
    let mut node = Node::start(Options::default());
    node.bind("large:test:sys", "/");
    let (mut client, _) = node.open("/large:test:sys/");
    // Over the broker's own limit of a message, under the node's of a frame.
    let half = vec![0x55; 10 << 20];
    let mut wire = Vec::new();
    append_frame(&mut wire, 0x02, [0; 4], &half);
    append_frame(&mut wire, 0x80, [0; 4], &half);
    client.get_mut().write_all(&wire).unwrap();
    let blob = node.next().lazy_load_blob.expect("a message has a blob");
    assert!(blob.bytes.len() == 20 << 20 && blob.bytes.iter().all(|&byte| byte == 0x55));
    let header = [&[0x82, 0xff][..], &((16 << 20) + 1_u64).to_be_bytes(), &[0; 4]].concat();
    client.get_mut().write_all(&header).unwrap();
    assert_eq!(recv_close(&mut client).0, 1009);
    let too_large = pushring::node::config().shard.limits.message_bytes_max + 1;
    assert_eq!(too_large, (64 << 20) + 1);
}

#[test]
fn its_operator_may_ask_why_channels_ended() {
    let path = std::env::temp_dir().join(format!("pushring-node-control-{}.sock", std::process::id()));
    let mut node = Node::start(Options { control: Some(path.clone()), ..Options::default() });
    let (mut client, channel) = node.register("p:p:t.os");
    client.close(None).unwrap();
    while client.read().is_ok() {}
    let ends = || match control::ask(&path, &Request::Disconnects(Filter::default())).unwrap() {
        Answer::Disconnects(ends) => ends,
        other => panic!("{other:?}"),
    };
    let deadline = Instant::now() + PATIENCE;
    while ends().is_empty() {
        assert!(Instant::now() < deadline, "the client's end is kept");
    }
    assert_eq!(ends()[0].channel.map(|id| u64::from(id.get())), Some(channel));
    assert_eq!(ends()[0].process.as_ref().map(|id| id.as_str()), Some("p:p:t.os"));
    let Answer::Stats(overview) = control::ask(&path, &Request::Stats {}).unwrap() else { panic!() };
    assert_eq!((overview.about.node.as_str(), overview.about.address), ("fake.os", node.address));
    drop((client, node.to_server.take()));
    node.server.join().unwrap().unwrap();
    assert!(!path.exists(), "it goes with the server");
}
