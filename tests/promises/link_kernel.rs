//! A whole node attached over a link: its kernel comes and goes, and its clients lose nothing that they were promised.
//! Its messages are the contract, case by case, in `golden_replay`; here is what only a link has: admission,
//! resumption, and the end.

use crate::link_support;
use crate::node_support;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use link_support::{Cutter, Done, Linked, Raw, frame, refusal};
use node_support::support::{self, recv, recv_close, send};
use node_support::{KEYFILE, NODE, Node, SECRET, http_response, push};
use pushring::internals::gateway::{Claims, Secret, Settings, mint};
use pushring::link;
use pushring::node::Dialect;
use pushring::{Broker, Config};
use serde_json::{Value, json};
use std::io::Write;
use std::time::Duration;
use tungstenite::Message;

const APP: &str = "app:app:test.os";
const PATH: &str = "/app:app:test.os/";

fn start(name: &str, secret: Option<&[u8]>, change: impl FnOnce(&mut link::LinkConfig)) -> Linked {
    start_with(pushring::node::settings(NODE, Dialect::Hyperdrive), name, secret, change)
}

fn start_with(
    mut settings: Settings,
    name: &str,
    secret: Option<&[u8]>,
    change: impl FnOnce(&mut link::LinkConfig),
) -> Linked {
    settings.secret = secret.map(|secret| pushring::internals::gateway::Secret::new(secret).unwrap());
    let config = Config { settings, shards: 2, driver: support::driver(), ..Config::default() };
    let broker = Broker::start(Config { listen: ([127, 0, 0, 1], 0).into(), ..config }).unwrap();
    Linked::at(broker, name, change)
}

fn hello(node: &str, secret: Option<&[u8]>) -> Value {
    let kernel = json!({"node": node, "jwt_secret": secret});
    json!({"version_min": 1, "version_max": 1, "attach": {"kernel": kernel}})
}

/// A message of a process to the HTTP server.
fn order(id: u64, body: &str, expects_response: Option<u64>) -> Value {
    let request = json!({"expects_response": expects_response, "body": body.as_bytes()});
    let (source, target) = (format!("{NODE}@{APP}"), format!("{NODE}@http-server:distro:sys"));
    json!({"kernel": {"id": id, "source": source, "target": target, "message": {"request": request}, "blob": {}}})
}

/// The body of the next message to the kernel.
fn said(raw: &mut Raw) -> String {
    let (name, fields, _) = raw.next_said().unwrap();
    assert_eq!(name, "kernel", "{fields}");
    let message = &fields["message"];
    message.get("request").or_else(|| message.get("response")).unwrap()["body"].as_str().unwrap().to_owned()
}

const BIND: &str = r#"{"WebSocketBind":{"path":"/","authenticated":false,"extension":false}}"#;

/// A call of the RPC path.
fn rpc(body: &str) -> String {
    rpc_of(&json!({"process": APP, "body": body}))
}

fn rpc_of(call: &Value) -> String {
    let call = call.to_string();
    let head = "POST /rpc:distro:sys/message HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length";
    format!("{head}: {}\r\n\r\n{call}", call.len())
}

/// The status that answers a GET.
fn status_of(linked: &Linked, path: &str) -> u16 {
    let mut stream = std::net::TcpStream::connect(linked.broker.address()).unwrap();
    stream.set_read_timeout(Some(support::PATIENCE)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").unwrap();
    http_response(stream).0
}

#[test]
fn one_kernel_of_the_right_node_with_the_right_key_is_let_in() {
    let linked = start("kernel-in", Some(SECRET), |_| {});
    let code = |hello: Value| refusal(&linked.path, &frame(&json!({"hello": hello})));
    assert_eq!(code(hello("other.os", Some(SECRET))), "node");
    assert_eq!(code(hello(NODE, Some(b"another key"))), "node");
    assert_eq!(code(hello(NODE, Some(b""))), "node");
    let (raw, _) = Raw::attach(&linked.path, &hello(NODE, None));
    assert_eq!(code(hello(NODE, Some(SECRET))), "taken");
    drop(raw);

    let keyless = start("kernel-keyless", None, |_| {});
    assert_eq!(refusal(&keyless.path, &frame(&json!({"hello": hello(NODE, None)}))), "node");
    let (mut raw, welcome) = Raw::attach(&keyless.path, &hello(NODE, Some(SECRET)));
    assert_eq!(welcome["listening"], json!(keyless.broker.address().to_string()));
    raw.send(&json!({"push": {"channel": 1, "kind": "text"}}), b"");
    assert_eq!(raw.next_said().unwrap().1["code"], "violation");
}

#[test]
fn a_node_serves_its_clients_over_a_link_and_leaves_nothing_behind() {
    let linked = start("kernel-life", None, |_| {});
    assert_eq!(status_of(&linked, "/login"), 404);
    let mut node = Node::attach(&linked.path);
    assert_eq!(node.address, linked.broker.address());
    node.bind(APP, "/");
    let (mut client, channel) = node.open(PATH);
    // By reference through both programs, and in order with what is small.
    let blob = vec![7; 1 << 20];
    node.tell(1, &format!("our@{APP}"), &push(channel).replace("Text", "Binary"), Some(&blob));
    node.tell(2, &format!("our@{APP}"), &push(channel), Some(b"behind it"));
    assert_eq!(recv(&mut client), Message::binary(blob.clone()));
    assert_eq!(recv(&mut client), Message::text("behind it"));
    send(&mut client, Message::binary(blob.clone()));
    assert_eq!(node.next().lazy_load_blob.unwrap().bytes, blob);
    let (mut registered, _) = node.register("any:any:test.os");
    assert!(node.heard().2.contains("WebSocketOpen"));

    // The password is judged at the other end.
    for (hash, expected) in [(KEYFILE, 200), (b"0xbad", 401)] {
        let body = json!({"password_hash": String::from_utf8_lossy(hash), "subdomain": ""}).to_string();
        let post = format!(
            "POST /login HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        let (status, response) = http_response(node.begin_http(&post));
        assert_eq!(status, expected, "{response}");
        assert_eq!(response.contains("hyperware-auth_fake.os="), expected == 200, "{response}");
    }
    let (status_of_rpc, _) = http_response(node.begin_http(&rpc(&"x".repeat(1 << 20))));
    assert_eq!(status_of_rpc, 403, "the rpc path is not open here");
    let huge = vec![b'x'; (16 << 20) + 1];
    assert_eq!(node.ask(&format!("{NODE}@{APP}"), &push(channel), Some(&huge)), r#"{"Err":"MalformedRequest"}"#);

    drop(node.to_server.take());
    node.server.join().unwrap().unwrap();
    assert_eq!(recv_close(&mut client).0, 1001);
    assert_eq!(recv_close(&mut registered).0, 1001);
    // Its paths, its login page and its processes went with it; another one may come.
    while status_of(&linked, "/login") != 404 {
        std::thread::yield_now();
    }
    assert!(support::try_connect(&linked.broker, PATH).is_err());
    Node::attach(&linked.path).bind(APP, "/");
}

#[test]
fn settings_that_are_read_again_leave_a_node_what_it_has_said() {
    let linked = start("kernel-reload", None, |_| {});
    let (mut node, mut prints) =
        Node::attach_with(linked.path.as_path().into(), |parts| parts.expose_local = Some(true));
    node.address = node_support::listening(&mut prints);
    let page = r#"{"Bind":{"path":"/page","authenticated":true,"local_only":false,"cache":true}}"#;
    assert_eq!(node.ask(&format!("{NODE}@{APP}"), page, Some(b"inside")), r#"{"Ok":null}"#);
    let cookie = format!("cookie: hyperware-auth_{NODE}={}\r\n", node_support::token(None));
    let is_as_before = |node: &mut Node| {
        let head = format!("GET {PATH}page HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{cookie}\r\n");
        let (status, response) = http_response(node.begin_http(&head));
        assert!(status == 200 && response.ends_with("inside"), "{response}");
        assert_eq!(status_of(&linked, "/login"), 200);
        assert_eq!(http_response(node.begin_http(&rpc("hello"))).0, 200);
        assert_eq!(node.next().message.body(), b"hello");
    };
    is_as_before(&mut node);
    // As a signal, a renewed certificate and fetched keys have them read again.
    let settings = pushring::node::settings(NODE, Dialect::Hyperdrive);
    let settings = Settings { origins: vec!["https://new.example".to_owned()], ..settings };
    linked.broker.handle().reload(&Config { settings, ..Config::default() }).unwrap();
    is_as_before(&mut node);
    assert_eq!(linked.broker.handle().settings().origins, ["https://new.example"]);
    drop(node.to_server.take());
    node.server.join().unwrap().unwrap();
    while status_of(&linked, "/login") != 404 {
        std::thread::yield_now();
    }
    let left = linked.broker.handle().settings();
    assert_eq!((left.origins, left.expose_local), (vec!["https://new.example".to_owned()], false));
}

#[test]
fn a_call_that_fits_no_frame_is_refused_and_the_next_one_is_not() {
    let settings = Settings { expose_local: true, ..pushring::node::settings(NODE, Dialect::Hyperdrive) };
    let linked = start_with(settings, "kernel-calls", None, |_| {});
    let mut node = Node::attach(&linked.path);
    let (status, reason) = http_response(node.begin_http(&rpc(&"x".repeat(1 << 20))));
    assert_eq!(status, 413, "{reason}");
    for body in ["x".repeat(1_040_000).as_str(), "small"] {
        assert_eq!(http_response(node.begin_http(&rpc(body))).0, 200);
        let request = node.next();
        assert_eq!(request.target.to_string(), format!("{NODE}@{APP}"));
        assert!(request.message.body() == body.as_bytes());
    }
}

#[test]
fn names_that_no_address_can_hold_are_refused_and_the_session_goes_on() {
    let settings = Settings { expose_local: true, ..pushring::node::settings(NODE, Dialect::Hyperdrive) };
    let linked = start_with(settings, "kernel-names", None, |_| {});
    let mut node = Node::attach(&linked.path);
    node.bind(APP, "/");
    let (mut client, channel) = node.open(PATH);
    for call in [
        json!({"node": "", "process": APP}),
        json!({"node": "bob@os", "process": APP, "expects_response": 5}),
        json!({"process": "app:app:test@os"}),
    ] {
        let (status, reason) = http_response(node.begin_http(&rpc_of(&call)));
        assert_eq!(status, 400, "{call}: {reason}");
    }
    let mut registered = node.client("/");
    let register = json!({"auth_token": node_support::token(None), "target_process": "app:app:test@os"});
    send(&mut registered, register.to_string());
    assert_eq!(recv_close(&mut registered).0, 4400);
    // The kernel has heard nothing of all that, and the channel is still there.
    node.is_quiet();
    node.tell(1, &format!("our@{APP}"), &push(channel), Some(b"still here"));
    assert_eq!(recv(&mut client), Message::text("still here"));
}

#[test]
fn a_call_may_bring_much_and_an_answer_that_fits_no_frame_is_told_as_lost() {
    let settings = Settings { expose_local: true, ..pushring::node::settings(NODE, Dialect::Hyperdrive) };
    let linked = start_with(settings, "kernel-packages", None, |_| {});
    let mut node = Node::attach(&linked.path);
    // More than the window of the link.
    let package = vec![7; 9 << 20];
    let data = BASE64.encode(&package);
    let call =
        json!({"process": APP, "expects_response": 15, "body": "install", "mime": "application/zip", "data": data});
    for (answer, status) in [("x".repeat(1 << 20), 500), ("installed".to_owned(), 200)] {
        let stream = node.begin_http(&rpc_of(&call));
        let asked = node.next();
        assert_eq!(asked.message.body(), b"install");
        let blob = asked.lazy_load_blob.unwrap();
        assert!(blob.mime() == Some("application/zip") && blob.bytes == package);
        node.respond(asked.id, &format!("our@{APP}"), &answer, None);
        let (told, response) = http_response(stream);
        assert_eq!(told, status, "{response}");
    }
}

#[test]
fn a_successor_gets_the_live_channels_of_every_process_then_what_waits() {
    let linked = start("kernel-next", None, |_| {});
    let (mut raw, _) = Raw::attach(&linked.path, &hello(NODE, Some(SECRET)));
    raw.send(&order(1, BIND, Some(5)), b"");
    assert_eq!(said(&mut raw), r#"{"Ok":null}"#);
    let mut client = support::connect(&linked.broker, PATH);
    let opened: Value = serde_json::from_str(&said(&mut raw)).unwrap();
    let channel = opened["WebSocketOpen"]["channel_id"].as_u64().unwrap();
    raw.send(&json!({"ack": {"received": 2}}), b"");
    send(&mut client, "not acknowledged");
    assert!(said(&mut raw).contains("WebSocketPush"));
    drop(raw);
    send(&mut client, "sent while nobody was there");

    let mut node = loop {
        // Until the broker has noticed that the connection before is gone.
        match std::panic::catch_unwind(|| Node::attach(&linked.path)) {
            Ok(node) => break node,
            Err(_) => std::thread::yield_now(),
        }
    };
    let (_, target, body) = node.heard();
    assert_eq!(target, format!("{NODE}@{APP}"));
    let again: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(again["WebSocketOpen"]["channel_id"], channel);
    assert!(again["WebSocketOpen"]["source_socket_addr"].as_str().unwrap().starts_with("127.0.0.1:"));
    for expected in ["not acknowledged", "sent while nobody was there"] {
        assert_eq!(node.next().lazy_load_blob.unwrap().bytes, expected.as_bytes());
    }
    node.tell(2, &format!("our@{APP}"), &push(channel), Some(b"from the successor"));
    assert_eq!(recv(&mut client), Message::text("from the successor"));
}

#[test]
fn a_successor_is_judged_as_the_first_was_and_brings_its_own_rules() {
    let linked = start("kernel-succeeds", None, |_| {});
    let hello = |node: &str, key: &[u8], is_open: bool| {
        let mut hello = hello(node, Some(key));
        for mode in ["public_mode", "simulation_mode", "expose_local"] {
            hello["attach"]["kernel"][mode] = json!(is_open);
        }
        hello
    };
    let modes = || {
        let Settings { public_mode, simulation_mode, expose_local, response_timeout_s, .. } =
            linked.broker.handle().settings();
        (public_mode, simulation_mode, expose_local, response_timeout_s)
    };
    let claims = || Claims { username: NODE.to_owned(), subdomain: None, expiration: 2 };
    let opens = |key: &[u8]| {
        let token = mint(&Secret::new(key).unwrap(), &claims());
        linked.broker.handle().settings().verify(&token, 1, |subdomain| subdomain.is_none()).is_ok()
    };
    let (raw, _) = Raw::attach(&linked.path, &hello(NODE, SECRET, true));
    assert_eq!(modes(), (true, true, true, 600));
    drop(raw);
    // Until the broker has noticed that the connection before is gone.
    let code = |hello: &Value| loop {
        match refusal(&linked.path, &frame(&json!({ "hello": hello }))) {
            code if code == "taken" => std::thread::yield_now(),
            code => break code,
        }
    };
    assert_eq!(code(&hello("other.os", SECRET, false)), "node");
    assert_eq!(code(&hello(NODE, b"", false)), "node");
    assert_eq!((modes(), opens(SECRET)), ((true, true, true, 600), true), "who was refused has changed nothing");
    let (raw, _) = Raw::attach(&linked.path, &hello(NODE, b"a new key", false));
    assert_eq!(modes(), (false, false, false, 15));
    assert_eq!((opens(b"a new key"), opens(SECRET)), (true, false));
    drop(raw);
    linked.stop();
}

#[test]
fn the_policy_of_a_successor_holds_for_the_channels_that_it_takes_over() {
    let linked = start("kernel-policy", None, |_| {});
    let hello = |policy: &str| {
        let mut hello = hello(NODE, Some(SECRET));
        hello["attach"]["kernel"]["policy"] = json!(policy);
        hello
    };
    let (mut raw, _) = Raw::attach(&linked.path, &hello("close"));
    raw.send(&order(1, BIND, Some(5)), b"");
    assert_eq!(said(&mut raw), r#"{"Ok":null}"#);
    // It never reads.
    let _client = support::connect(&linked.broker, PATH);
    let opened: Value = serde_json::from_str(&said(&mut raw)).unwrap();
    let channel = opened["WebSocketOpen"]["channel_id"].as_u64().unwrap();
    raw.send(&json!({"ack": {"received": 2}}), b"");
    drop(raw);
    let (mut raw, _) = Raw::attach_again(&linked.path, &hello("drop_newest"));
    assert_eq!(raw.next_said().unwrap().0, "live");
    let push = format!(r#"{{"WebSocketPushMany":{{"channel_ids":[{channel}],"message_type":"Binary"}}}}"#);
    let blob = vec![7; 256 << 10];
    let counts = loop {
        raw.send(&order(2, &push, Some(5)), &blob);
        let counts: Value = serde_json::from_str(&said(&mut raw)).unwrap();
        if counts["Ok"]["dropped"] != 0 || counts["Ok"]["closed"] != 0 {
            break counts["Ok"].clone();
        }
    };
    assert_eq!((&counts["dropped"], &counts["closed"]), (&json!(1), &json!(0)));
}

#[test]
fn a_kernel_that_stays_away_leaves_1012_and_one_that_is_left_is_told_of_every_close() {
    let linked = start("kernel-away", None, |config| config.owner_grace = Duration::from_millis(50));
    let (mut raw, _) = Raw::attach(&linked.path, &hello(NODE, Some(SECRET)));
    raw.send(&order(1, BIND, Some(5)), b"");
    assert_eq!(said(&mut raw), r#"{"Ok":null}"#);
    let mut client = support::connect(&linked.broker, PATH);
    drop(raw);
    assert_eq!(recv_close(&mut client).0, 1012);
    drop(client);

    // The channels of the first have gone when the id is free again.
    let mut node = Node::attach(&linked.path);
    node.bind(APP, "/");
    let (mut client, channel) = node.open(PATH);
    linked.stop();
    assert_eq!(recv_close(&mut client).0, 1001);
    assert_eq!(node.heard().2, format!(r#"{{"WebSocketClose":{channel}}}"#));
    // It waits for another broker, until its kernel goes.
    drop(node.to_server.take());
    node.server.join().unwrap().unwrap();
    assert!(node.from_server.try_recv().is_err(), "once is enough");
}

#[test]
fn the_answer_to_a_login_is_counted_like_any_other_frame() {
    let linked = start("kernel-login-counts", None, |_| {});
    let hello = hello(NODE, Some(SECRET));
    let (mut raw, welcome) = Raw::attach(&linked.path, &hello);
    let mut stream = std::net::TcpStream::connect(linked.broker.address()).unwrap();
    stream.set_read_timeout(Some(support::PATIENCE)).unwrap();
    let body = r#"{"password_hash":"0x1","subdomain":""}"#;
    let head = "POST /login HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length";
    write!(stream, "{head}: {}\r\n\r\n{body}", body.len()).unwrap();
    let (name, fields, _) = raw.next_said().unwrap();
    assert_eq!(name, "login", "{fields}");
    raw.send(&json!({"logged_in": {"login": fields["login"], "token": null, "error": null}}), b"");
    assert_eq!(http_response(stream).0, 401);
    let acknowledged = std::iter::from_fn(|| raw.next()).find(|(name, ..)| name == "ack").expect("it is acknowledged");
    assert_eq!(acknowledged.1["received"], 1);
    drop(raw);
    // Else its kernel would say once more what stands last.
    let mut again = hello;
    again["session"] = welcome["session"].clone();
    again["received"] = json!(1);
    assert_eq!(Raw::attach(&linked.path, &again).1["received"], 1);
}

#[test]
fn a_kernels_link_that_is_cut_again_and_again_loses_and_doubles_nothing() {
    const MESSAGES: u32 = 2_000;
    const LOGINS: usize = 20;
    let linked = start("kernel-cut", None, |_| {});
    let cutter = Cutter::start(&linked);
    let mut node = Node::attach(&cutter.path);
    node.bind(APP, "/");
    let (mut client, _) = node.open(PATH);
    let address = node.address;
    std::thread::scope(|scope| {
        let done = Done::default();
        let (cutter, is_done) = (&cutter, done.0.clone());
        scope.spawn(move || cutter.cut_until(&is_done));
        let logins = scope.spawn(|| {
            for _ in 0..LOGINS {
                let mut stream = std::net::TcpStream::connect(address).unwrap();
                stream.set_read_timeout(Some(support::PATIENCE)).unwrap();
                let body = json!({"password_hash": String::from_utf8_lossy(KEYFILE), "subdomain": ""}).to_string();
                let head = "POST /login HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length";
                write!(stream, "{head}: {}\r\n\r\n{body}", body.len()).unwrap();
                assert_eq!(http_response(stream).0, 200);
            }
        });
        scope.spawn(|| {
            for echoed in 0..MESSAGES {
                let message = node.next();
                let body: Value = serde_json::from_slice(message.message.body()).unwrap();
                let channel = body["WebSocketPush"]["channel_id"].as_u64().unwrap();
                let blob = message.lazy_load_blob.unwrap().bytes;
                node.tell(
                    u64::from(echoed) + 10,
                    &format!("our@{APP}"),
                    &push(channel).replace("Text", "Binary"),
                    Some(&blob),
                );
            }
        });
        link_support::exchange(&mut client, MESSAGES);
        logins.join().unwrap();
    });
}

#[test]
fn a_kernel_that_acknowledges_nothing_is_not_kept_for_ever() {
    let linked = start("kernel-deaf", None, |config| config.beat = Duration::from_millis(100));
    let (mut raw, _) = Raw::attach(&linked.path, &hello(NODE, Some(SECRET)));
    // Each is refused with an answer that it never acknowledges.
    let order = frame(&order(1, "\"?\"", None)).repeat(256);
    let mut reading = Raw(raw.0.try_clone().unwrap());
    let reader = std::thread::spawn(move || {
        std::iter::from_fn(|| reading.next()).find(|(name, ..)| name == "bye").map(|(_, fields, _)| fields)
    });
    for _ in 0..1000 {
        if raw.0.write_all(&order).is_err() {
            break;
        }
    }
    let bye = reader.join().unwrap();
    // Its connection may have been cut before the frame.
    assert!(bye.is_none_or(|bye| bye["code"] == "violation"));
    while status_of(&linked, "/login") != 404 {
        std::thread::yield_now();
    }
}

#[test]
fn a_kernel_says_whether_this_machine_has_privileges() {
    for (says, status_of_rpc) in [(None, 403), (Some(false), 403), (Some(true), 200)] {
        let linked = start("kernel-exposed", Some(SECRET), |_| {});
        let mut hello = hello(NODE, None);
        hello["attach"]["kernel"]["expose_local"] = json!(says);
        let (mut raw, _) = Raw::attach(&linked.path, &hello);
        let mut stream = std::net::TcpStream::connect(linked.broker.address()).unwrap();
        stream.set_read_timeout(Some(support::PATIENCE)).unwrap();
        stream.write_all(rpc("hello").as_bytes()).unwrap();
        assert_eq!(http_response(stream).0, status_of_rpc, "{says:?}");
        if status_of_rpc == 200 {
            assert_eq!(said(&mut raw), "hello");
        }
    }
}
