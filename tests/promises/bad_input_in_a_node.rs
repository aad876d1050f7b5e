//! Whatever a process of a node says, and whatever a client says to it, is answered as the contract says: malformed
//! actions with one refusal each, responses that no client could read with 500, header fields that would split a
//! response without effect, bytes that are no text with 400. Nothing that came before or behind is lost, and nothing
//! reaches a process that it does not belong to.

use crate::node_support;

use node_support::support::{recv, send};
use node_support::{Node, Options, push, request};
use pushring::node::KernelMessage;
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::TcpStream;
use tungstenite::Message;

const APP: &str = "fake.os@app:app:test.os";
const OTHER: &str = "fake.os@other:other:test.os";
const OK: &str = r#"{"Ok":null}"#;

fn refusal(error: &str) -> String {
    format!(r#"{{"Err":"{error}"}}"#)
}

/// A node with the WebSocket path `/` of APP and of OTHER.
fn start() -> Node {
    let mut node = Node::start(Options::default());
    node.bind("app:app:test.os", "/");
    node.bind("other:other:test.os", "/");
    node
}

#[test]
fn what_is_no_action_is_refused_once_and_disturbs_nothing() {
    let mut node = start();
    let (mut client, channel) = node.open("/app:app:test.os/");
    let (mut stranger, others) = node.open("/other:other:test.os/");
    let number = |number: &str| {
        [
            format!(r#"{{"WebSocketPush":{{"channel_id":{number},"message_type":"Text"}}}}"#),
            format!(r#"{{"WebSocketClose":{number}}}"#),
            format!(r#"{{"WebSocketPushMany":{{"channel_ids":[{channel},{number}],"message_type":"Text"}}}}"#),
            format!(r#"{{"WebSocketBroadcast":{{"path":"/","message_type":"Text","except":[{number}]}}}}"#),
            format!(r#"{{"WebSocketGrant":{{"channel_id":{number},"address":"bob.os@a:b:c"}}}}"#),
            format!(
                r#"{{"WebSocketExtPushOutgoing":{{"channel_id":{number},"message_type":"Binary","desired_reply_type":"Request"}}}}"#
            ),
        ]
    };
    let numbers =
        ["4294967296", "-1", "1e400", "18446744073709551616", "1.5", "\"7\"", "[7]", "{}", "true", "007", "0x7"];
    let bind = |path: &str| {
        [
            format!(r#"{{"Bind":{{"path":{path},"authenticated":false,"local_only":false,"cache":false}}}}"#),
            format!(r#"{{"WebSocketUnbind":{{"path":{path}}}}}"#),
        ]
    };
    let paths = ["7", "null", "[\"/\"]", "\"\\ud800\"", "\"\u{0}\""];
    let mut bodies: Vec<Vec<u8>> = numbers.into_iter().flat_map(number).map(String::into_bytes).collect();
    bodies.extend(paths.into_iter().flat_map(bind).map(String::into_bytes));
    for text in [
        "",
        " ",
        "null",
        "7",
        "[]",
        "{}",
        "\"WebSocketPush\"",
        r#"{"Nope":1}"#,
        r#"{"websocketpush":{"channel_id":7,"message_type":"Text"}}"#,
        r#"{"WebSocketPush":{"channel_id":7,"message_type":"Frame"}}"#,
        r#"{"WebSocketPush":{"channel_id":7}}"#,
        r#"{"WebSocketPush":null}"#,
        r#"{"WebSocketPush":[7,"Text"],"x":1}"#,
        r#"{"WebSocketPush":{"channel_id":7,"channel_id":7,"message_type":"Text"}}"#,
        r#"{"WebSocketClose":7,"WebSocketClose":7}"#,
        r#"{"WebSocketOpen":{"path":"/","channel_id":7}}"#,
        r#"{"WebSocketExtPushData":{"id":1,"kinode_message_type":"Request","blob":[1]}}"#,
        r#"{"WebSocketClose":7"#,
        r#"{"WebSocketClose":7}}"#,
        r#"{"WebSocketClose":NaN}"#,
        r#"{'WebSocketClose':7}"#,
    ] {
        bodies.push(text.into());
    }
    bodies.extend([
        b"\xff\xfe\x00".to_vec(),
        b"{\"WebSocketUnbind\":{\"path\":\"\xc3\x28\"}}".to_vec(),
        "[".repeat(100_000).into_bytes(),
        "{\"a\":".repeat(100_000).into_bytes(),
    ]);
    for (id, body) in (1..).zip(&bodies) {
        // No answer is expected; a refusal is sent all the same, and once.
        node.hand_in(request(id, APP, body, Some(b"x"), None));
        let shown = String::from_utf8_lossy(&body[..body.len().min(120)]).into_owned();
        assert_eq!(node.heard(), (id, APP.to_string(), refusal("MalformedRequest")), "{shown}");
    }
    node.is_quiet();
    for (client, owner, channel) in [(&mut client, APP, channel), (&mut stranger, OTHER, others)] {
        node.tell(1, owner, &push(channel), Some(b"the first that arrives"));
        assert_eq!(recv(client), Message::text("the first that arrives"));
        send(client, "still heard");
        assert_eq!(node.next().target.to_string(), owner);
    }
}

#[test]
fn ids_that_are_nobodys_reach_nobody() {
    let mut node = start();
    let (mut stranger, others) = node.open("/other:other:test.os/");
    for channel in [0, 1, u64::from(u32::MAX), others] {
        for kind in ["Text", "Binary", "Ping", "Pong", "Close"] {
            let push = push(channel).replace("Text", kind);
            let expected = if kind == "Close" && channel != others { OK.into() } else { refusal("WsChannelNotFound") };
            assert_eq!(node.ask(APP, &push, Some(b"x")), expected, "{push}");
        }
        let close = format!(r#"{{"WebSocketClose":{channel}}}"#);
        assert_eq!(node.ask(APP, &close, None) == OK, channel != others);
    }
    node.tell(1, OTHER, &push(others), Some(b"mine"));
    assert_eq!(recv(&mut stranger), Message::text("mine"));
}

#[test]
fn paths_that_climb_are_only_odd_names_below_the_process() {
    let mut node = start();
    let bind = |path: &str| {
        json!({"Bind": {"path": path, "authenticated": false, "local_only": false, "cache": true}}).to_string()
    };
    for path in [
        "/../other:other:test.os/x",
        "../../other:other:test.os/x",
        "//other:other:test.os/x",
        "/%2e%2e/other:other:test.os/x",
        "\\..\\other:other:test.os\\x",
        "/x\r\nx-evil: 1",
        "/x\0",
        "/\u{202e}x y?z#w",
        "http://localhost/other:other:test.os/x",
    ] {
        assert_eq!(node.ask(APP, &bind(path), Some(b"stolen")), OK, "{path}");
        let websocket = json!({"WebSocketBind": {"path": path, "authenticated": false, "extension": false}});
        assert_eq!(node.ask(APP, &websocket.to_string(), None), OK, "{path}");
    }
    for path in ["/x".repeat(2049), "/:a".repeat(17)] {
        assert_eq!(node.ask(APP, &bind(&path), Some(b"")), refusal("MalformedRequest"));
    }
    assert_eq!(get(&node, "/other:other:test.os/x").0, 404);
    assert_eq!(get(&node, "/x").0, 404);
    // As it was bound, byte for byte, it is the process' own.
    assert_eq!(get(&node, "/app:app:test.os/../other:other:test.os/x").0, 200);
    // A request does not climb into another process' paths either.
    assert_eq!(node.ask(OTHER, &bind("/secret"), Some(b"secret")), OK);
    for path in [
        "/app:app:test.os/../other:other:test.os/secret",
        "/app:app:test.os/%2e%2e/other:other:test.os/secret",
        "/app:app:test.os/..;/other:other:test.os/secret",
        "//other:other:test.os/secret",
        "/./other:other:test.os/secret",
        "/other%3Aother%3Atest.os/secret",
        "/OTHER:other:test.os/secret",
    ] {
        let (status, response) = get(&node, path);
        assert!(!response.contains("secret"), "{path}: {status} {response}");
    }
    node.is_quiet();
}

fn get(node: &Node, path: &str) -> (u16, String) {
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    node_support::http_response(node.begin_http(&request))
}

/// One response of a connection that stays: head and body by its length.
fn read_response(stream: &mut TcpStream) -> (u16, String, Vec<u8>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap_or_else(|error| panic!("{error} behind {}", head.escape_ascii()));
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
    stream.read_exact(&mut body).unwrap();
    (head[9..12].parse().unwrap(), head, body)
}

const DYNAMIC: &str = r#"{"Bind":{"path":"/dyn","authenticated":false,"local_only":false,"cache":false}}"#;

/// Asks the process, over a connection that stays open.
fn ask_process(node: &mut Node, stream: &mut TcpStream, path: &str) -> KernelMessage {
    write!(stream, "GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
    let message = node.next();
    assert!(message.message.body().starts_with(b"{\"Http\""));
    message
}

#[test]
fn a_process_response_cannot_split_or_frame_what_the_client_reads() {
    let mut node = start();
    assert_eq!(node.ask(APP, DYNAMIC, None), OK);
    let mut stream = node.begin_http("");
    let fields = |name: &str, value: &str| json!({"status": 200, "headers": {name: value}}).to_string();
    let evil = "x\r\nx-evil: 1\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil";
    let mut cases: Vec<(Vec<u8>, u16)> = vec![
        (fields("x-a", evil).into(), 200),
        (fields(evil, "1").into(), 200),
        (fields("x-a", "1\nx-evil: 1").into(), 200),
        (fields("x-a", "1\rx-evil: 1").into(), 200),
        (fields("x-a", "1\0").into(), 200),
        (fields("x-evil: 1\r\nx", "1").into(), 200),
        (fields("", "1").into(), 200),
        (fields("x a", "1").into(), 200),
        (fields("content-type", evil).into(), 200),
        (fields("Content-Length", "1").into(), 200),
        (fields("content-length", "99999").into(), 200),
        (fields("Transfer-Encoding", "chunked").into(), 200),
        (fields("connection", "close").into(), 200),
        (fields("upgrade", "websocket").into(), 200),
        (r#"{"status":200,"headers":{},"extra":[1,2]}"#.into(), 200),
        (r#"{"status":200,"headers":{"x":"1","x":"2"}}"#.into(), 200),
        (r#"{"status":200}"#.into(), 500),
        (r#"{"headers":{}}"#.into(), 500),
        (r#"{"status":"200","headers":{}}"#.into(), 500),
        (r#"{"status":200,"status":200,"headers":{}}"#.into(), 500),
        (r#"{"status":65536,"headers":{}}"#.into(), 500),
        (r#"{"status":-1,"headers":{}}"#.into(), 500),
        (r#"{"status":1e400,"headers":{}}"#.into(), 500),
        (r#"{"status":200,"headers":{"x":1}}"#.into(), 500),
        (r#"{"status":200,"headers":[]}"#.into(), 500),
        ("".into(), 500),
        ("null".into(), 500),
        (b"{\"status\":200,\"headers\":{\"x\":\"\xff\"}}".to_vec(), 500),
        ("[".repeat(100_000).into(), 500),
    ];
    // Statuses that are not final in HTTP (RFC 9110 section 15).
    for status in [0, 1, 99, 100, 101, 103, 199, 600, 999, 1000, 65535] {
        cases.push((json!({"status": status, "headers": {}}).to_string().into(), 500));
    }
    for (body, expected) in cases {
        let asked = ask_process(&mut node, &mut stream, "/app:app:test.os/dyn");
        let mut response = request(asked.id, APP, b"", Some(b"\xffbody"), None);
        let shown = String::from_utf8_lossy(&body[..body.len().min(100)]).into_owned();
        response.message =
            pushring::node::Message::Response((pushring::node::Response { body, ..Default::default() }, None));
        node.hand_in(response);
        // One response, of our framing: the connection is read on by the next case.
        let (status, head, content) = read_response(&mut stream);
        assert_eq!(status, expected, "{shown}\n{head}");
        assert!(!head.contains("evil") && !head.contains("chunked") && !head.contains("upgrade"), "{shown}\n{head}");
        assert!(expected != 200 || content == b"\xffbody", "{shown}\n{head}");
    }
    node.is_quiet();
}

#[test]
fn a_media_type_that_is_none_splits_nothing() {
    let mut node = start();
    let cached = DYNAMIC.replace("false}}", "true}}");
    let mut message = request(77, APP, cached.as_bytes(), Some(b"body"), Some(5));
    message.lazy_load_blob.as_mut().unwrap().mime = Some("text/html\r\nx-evil: 1".into());
    node.hand_in(message);
    assert_eq!(node.heard().2, OK);
    let (status, response) = get(&node, "/app:app:test.os/dyn");
    assert!(status == 200 && !response.contains("evil") && response.ends_with("\r\n\r\nbody"), "{response}");
}

#[test]
fn only_who_was_asked_answers() {
    let mut node = start();
    assert_eq!(node.ask(APP, DYNAMIC, None), OK);
    let mut stream = node.begin_http("");
    let asked = ask_process(&mut node, &mut stream, "/app:app:test.os/dyn");
    let answer = |text: &str| (json!({"status": 200, "headers": {}}).to_string(), text.as_bytes().to_vec());
    for stranger in [OTHER, "bob.os@app:app:test.os", "fake.os@http-server:distro:sys", "our@other:other:test.os"] {
        let (body, blob) = answer("stolen");
        node.respond(asked.id, stranger, &body, Some(&blob));
    }
    // Answers without a question.
    for id in [0, 1, asked.id ^ 1, u64::MAX] {
        let (body, blob) = answer("nobody asked");
        node.respond(id, APP, &body, Some(&blob));
    }
    let (body, blob) = answer("mine");
    node.respond(asked.id, "our@app:app:test.os", &body, Some(&blob));
    // Too late.
    node.respond(asked.id, APP, &body, Some(b"again"));
    assert_eq!(read_response(&mut stream).2, b"mine");
    let asked = ask_process(&mut node, &mut stream, "/app:app:test.os/dyn?next");
    node.respond(asked.id, APP, &body, Some(b"next"));
    assert_eq!(read_response(&mut stream).2, b"next");
    node.is_quiet();
}

#[test]
fn bytes_that_are_no_text_stay_out_of_what_is_text_and_whole_in_what_is_not() {
    let mut node = start();
    assert_eq!(node.ask(APP, DYNAMIC, None), OK);
    let send_raw = |node: &Node, bytes: &[u8]| {
        let mut stream = node.begin_http("");
        stream.write_all(bytes).unwrap();
        stream
    };
    // In a target: no request at all (RFC 9112 section 3.2).
    for target in [&b"/app:app:test.os/dyn/\xff"[..], b"/app:app:test.os/dyn?\xc3\x28", b"/\x00"] {
        let head = [b"GET ", target, b" HTTP/1.1\r\nhost: localhost\r\n\r\n"].concat();
        assert_eq!(read_response(&mut send_raw(&node, &head)).0, 400, "{}", target.escape_ascii());
    }
    // Encoded, it is a name like any other, and its decoded form is text whatever it was.
    let _stream = send_raw(&node, b"GET /app:app:test.os/dyn?a=%ff%00&b=%zz HTTP/1.1\r\nhost: localhost\r\n\r\n");
    let asked: Value = serde_json::from_slice(node.next().message.body()).unwrap();
    assert_eq!(asked["Http"]["query_params"]["b"], "%zz");
    // A field's value may be any bytes (RFC 9110 section 5.5); what is no text is handed on as none, as nodes do.
    let head = b"POST /app:app:test.os/dyn HTTP/1.1\r\nhost: localhost\r\nx-odd: \xff\xfe\r\nx-plain: a\r\n\
        content-length: 4\r\n\r\n\xff\x00\xfe\x80";
    let _stream = send_raw(&node, head);
    let message = node.next();
    let asked: Value = serde_json::from_slice(message.message.body()).unwrap();
    assert_eq!(asked["Http"]["headers"]["x-plain"], "a");
    assert_eq!(asked["Http"]["headers"]["x-odd"], "");
    assert_eq!(message.lazy_load_blob.unwrap().bytes, b"\xff\x00\xfe\x80");
    // A binary message is any bytes, both ways.
    let (mut client, channel) = node.open("/app:app:test.os/");
    let bytes: Vec<u8> = (0..=255).collect();
    node.tell(1, APP, &push(channel).replace("Text", "Binary"), Some(&bytes));
    assert_eq!(recv(&mut client), Message::binary(bytes.clone()));
    send(&mut client, Message::binary(bytes.clone()));
    assert_eq!(node.next().lazy_load_blob.unwrap().bytes, bytes);
    assert_eq!(node.ask(APP, &push(channel), Some(&bytes)), refusal("MalformedRequest"));
    node.is_quiet();
}
