//! The drop-in under a node kernel that the test plays: owners on demand, permissions to push, and a slow kernel.

use crate::node_support;

use node_support::support::{PATIENCE, recv, recv_close, send};
use node_support::{NODE, Node, Options, http_response, push, request};
use pushring::ProcessId;
use pushring::control::{self, ControlAnswer, ControlRequest, Filter};
use pushring::internals::proto::client::append_frame;
use pushring::node::{Address, KernelMessage};
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

    // Another process, and the same process of another node: refused, though no answer is expected.
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
    let ends = || match control::ask(&path, &ControlRequest::Disconnects(Filter::default())).unwrap() {
        ControlAnswer::Disconnects(ends) => ends,
        other => panic!("{other:?}"),
    };
    let deadline = Instant::now() + PATIENCE;
    while ends().is_empty() {
        assert!(Instant::now() < deadline, "the client's end is kept");
    }
    assert_eq!(ends()[0].channel.map(|id| u64::from(id.get())), Some(channel));
    assert_eq!(ends()[0].process.as_ref().map(|id| id.as_str()), Some("p:p:t.os"));
    let ControlAnswer::Stats(overview) = control::ask(&path, &ControlRequest::Stats {}).unwrap() else { panic!() };
    assert_eq!((overview.about.node.as_str(), overview.about.address), ("fake.os", node.address));
    drop((client, node.to_server.take()));
    node.server.join().unwrap().unwrap();
    assert!(!path.exists(), "it goes with the server");
}

/// The head and body of a call of the RPC path that waits for an answer.
fn rpc_call(process: &str) -> String {
    let call = format!(r#"{{"process":"{process}","expects_response":15,"body":"hello"}}"#);
    let head = "POST /rpc:distro:sys/message HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length";
    format!("{head}: {}\r\n\r\n{call}", call.len())
}

#[test]
fn a_call_that_was_passed_on_is_answered_by_whoever_has_it() {
    let mut node = Node::start(Options { expose_local: true, ..Options::default() });
    // The process asked, another of the node, and one of another node: each had the call passed on to it, under its id.
    for answerer in ["our@asked:app:test.os", "fake.os@other:other:test.os", "bob.os@other:other:test.os"] {
        let stream = node.begin_http(&rpc_call("asked:app:test.os"));
        let call = node.next();
        assert_eq!(call.target.to_string(), "fake.os@asked:app:test.os");
        assert_eq!(call.rsvp.unwrap().to_string(), "fake.os@http-server:distro:sys");
        // An answer to something else.
        node.respond(call.id ^ 1, answerer, "stolen", None);
        node.respond(call.id, answerer, "hi", Some(b"blob"));
        node.respond(call.id, answerer, "twice", None);
        let (status, response) = http_response(stream);
        assert_eq!(status, 200, "{answerer}: {response}");
        let body = response.split("\r\n\r\n").nth(1).unwrap();
        let body: pushring::node::RpcResponseBody = serde_json::from_str(body).unwrap();
        assert_eq!((body.body, body.lazy_load_blob.unwrap().bytes), (b"hi".to_vec(), b"YmxvYg==".to_vec()));
    }
    node.is_quiet();
}

/// A request to the server under the name that nodes had for it before Kinode 0.10.
fn to_old_name(id: u64, source: &str, body: &str, blob: Option<&[u8]>, expects: Option<u64>) -> KernelMessage {
    let target = Address::new(NODE, "http_server:distro:sys".parse::<ProcessId>().unwrap());
    KernelMessage { target, ..request(id, source, body.as_bytes(), blob, expects) }
}

#[test]
fn an_old_node_hears_from_the_name_that_it_knows() {
    let mut node = Node::start(Options::default());
    let (app, of_app) = ("our@my_app:my_app:test.os", "/my_app:my_app:test.os/");
    let bind = r#"{"WebSocketBind":{"path":"/","authenticated":false,"encrypted":false,"extension":false}}"#;
    // To the new name, an id with an underscore binds nothing.
    assert_eq!(node.ask(app, bind, None), r#"{"Err":"InvalidSourceProcess"}"#);
    let heard = |node: &mut Node| {
        let message = node.next();
        (message.source.to_string(), String::from_utf8(message.message.body().to_vec()).unwrap())
    };
    let ours = "our@http_server:distro:sys".to_owned();
    node.hand_in(to_old_name(1, app, bind, None, Some(5)));
    assert_eq!(heard(&mut node), (ours.clone(), r#"{"Ok":null}"#.into()));
    // Encryption that does not exist is not promised.
    for bind in [bind, r#"{"WebSocketSecureBind":{"path":"/","encrypted":false,"extension":false}}"#] {
        node.hand_in(to_old_name(2, app, &bind.replace(r#""encrypted":false"#, r#""encrypted":true"#), None, None));
        let (source, refused) = heard(&mut node);
        assert!(source == ours && refused.starts_with(r#"{"Err":{"BadRequest":{"req":""#), "{refused}");
    }
    let client = node.client(of_app);
    let (source, opened) = heard(&mut node);
    assert_eq!(source, "fake.os@http_server:distro:sys", "{opened}");
    // The refusals have the names that its process libraries know, at once or when a shard has found out.
    let with_blob: (u64, &str, Option<&[u8]>, &str) = (
        3,
        &push(1),
        Some(b"stray"),
        r#"{"WebSocketPushError":{"error":"no channel of this id belongs to the process"}}"#,
    );
    let without = (4, &*push(1), None, r#""NoBlob""#);
    let by_nobody = (
        5,
        r#"{"Bind":{"path":"/","authenticated":false,"local_only":false,"cache":false}}"#,
        None,
        r#"{"PathBindError":{"error":"this process may not bind paths"}}"#,
    );
    for (id, body, blob, refused) in [with_blob, without, by_nobody] {
        let source = if id == 5 { "bob.os@other:other:test.os" } else { "our@other:other:test.os" };
        node.hand_in(to_old_name(id, source, body, blob, None));
        assert_eq!(heard(&mut node), (ours.clone(), format!(r#"{{"Err":{refused}}}"#)));
    }
    drop(client);
    let (source, closed) = heard(&mut node);
    assert_eq!(source, ours, "{closed}");
}

/// A login by hand: the status, and the value of the cookie.
fn log_in(node: &Node, hash: &str) -> (u16, String) {
    let body = format!(r#"{{"password_hash":"{hash}","subdomain":""}}"#);
    let head = "POST /login HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length";
    let (status, response) = http_response(node.begin_http(&format!("{head}: {}\r\n\r\n{body}", body.len())));
    let cookie = response.split("kinode-auth_fake.os=").nth(1).and_then(|rest| rest.split(';').next());
    (status, cookie.unwrap_or_default().to_owned())
}

fn get(node: &Node, path: &str, fields: &str) -> (u16, String) {
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{fields}\r\n");
    http_response(node.begin_http(&request))
}

const PAGE: &str = r#"{"Bind":{"path":"/page","authenticated":true,"local_only":false,"cache":true}}"#;
const SECURE_PAGE: &str = r#"{"SecureBind":{"path":"/secure","cache":true}}"#;

#[test]
fn a_simulated_node_is_opened_by_any_password() {
    let mut options = Options::default();
    options.config.settings.simulation_mode = true;
    let mut node = Node::start(options);
    assert_eq!(node.ask("fake.os@app:app:test.os", PAGE, Some(b"inside")), r#"{"Ok":null}"#);
    assert!(!get(&node, "/app:app:test.os/page", "").1.contains("inside"), "a cookie is needed there too");
    let (status, cookie) = log_in(&node, "0xwhatever");
    assert_eq!(status, 200);
    let (status, page) = get(&node, "/app:app:test.os/page", &format!("Cookie: kinode-auth_fake.os={cookie}\r\n"));
    assert!(status == 200 && page.contains("inside"), "{page}");
    // Its processes may be stepped through by hand: 600 s.
    let dynamic = r#"{"Bind":{"path":"/dyn","authenticated":false,"local_only":false,"cache":false}}"#;
    assert_eq!(node.ask("fake.os@app:app:test.os", dynamic, None), r#"{"Ok":null}"#);
    let _stream = node.begin_http("GET /app:app:test.os/dyn HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let pushring::node::Message::Request(asked) = node.next().message else { panic!("a request") };
    assert_eq!(asked.expects_response, Some(600));

    let node = Node::start(Options::default());
    assert_eq!(log_in(&node, "0xwhatever").0, 401, "a node that is none");
}

#[test]
fn a_public_node_has_no_login() {
    let mut options = Options::default();
    options.config.settings.public_mode = true;
    let mut node = Node::start(options);
    let app = "fake.os@app:app:test.os";
    for bind in [PAGE, SECURE_PAGE, r#"{"WebSocketSecureBind":{"path":"/","extension":false}}"#] {
        assert_eq!(node.ask(app, bind, Some(b"inside")), r#"{"Ok":null}"#);
    }
    let local = r#"{"Bind":{"path":"/local","authenticated":true,"local_only":true,"cache":true}}"#;
    assert_eq!(node.ask(app, local, Some(b"inside")), r#"{"Ok":null}"#);
    for path in ["/page", "/secure"] {
        let (status, page) = get(&node, &format!("/app:app:test.os{path}"), "");
        assert!(status == 200 && page.ends_with("inside"), "{path}: {page}");
    }
    assert_eq!(get(&node, "/app:app:test.os/local", "").0, 403, "what is for this machine alone stays so");
    let (mut client, channel) = node.open("/app:app:test.os/");
    node.tell(1, app, &push(channel), Some(b"hello"));
    assert_eq!(recv(&mut client), Message::text("hello"));
    let mut registered = node.client("/");
    send(&mut registered, r#"{"auth_token":"none","target_process":"app:app:test.os"}"#);
    assert!(recv(&mut registered).to_text().unwrap().contains("channel_id"));
}
