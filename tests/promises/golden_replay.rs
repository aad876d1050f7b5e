//! The cases recorded on a real node, replayed against the drop-in under a stand-in kernel: the same messages between
//! kernel and server, and the same bytes or status at the client, apart from ids, ports, dates and tokens, and apart
//! from what each case names as better.

#[allow(dead_code)]
use crate::node_support::node_backend;
use crate::support;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL;
use node_backend::kernel::{self, Direction, Node};
use pushring::Broker;
use pushring::internals::gateway::{Claims, Secret, mint};
use pushring::link;
use pushring::node::Dialect;
use pushring::node::{KernelMessage, Message as NodeMessage, MessageType, WebSocketExtPushData};
use serde_json::{Value, json};
use std::collections::{BTreeSet, HashMap};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, SystemTime};
use support::{PATIENCE, recv, send};
use tungstenite::Message;

const PROCESS: &str = "wsecho:wsecho:sys";

type Client = support::Client;

struct Replay {
    node: Node,
    /// Where the node's server is in another program, so to say: its link and its broker.
    _apart: Option<(link::LinkServer, Broker)>,
    name: &'static str,
    golden: Value,
}

/// A case's name, and what the client does.
type Case = (&'static str, fn(&Replay));

fn golden(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/{name}.json"));
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// A comparable form of messages: ids and channels by the order in which they first appear.
#[derive(Default)]
struct Normal {
    ids: HashMap<String, usize>,
    channels: HashMap<String, usize>,
}

impl Normal {
    fn message(&mut self, direction: &str, message: &Value) -> Value {
        let ids = self.ids.len();
        let id = *self.ids.entry(message["id"].to_string()).or_insert(ids);
        let (kind, inner) = match message["message"].get("Request") {
            Some(request) => ("Request", request),
            None => ("Response", &message["message"]["Response"][0]),
        };
        let mut body = inner["body"]
            .as_str()
            .map_or(inner["body"].clone(), |text| serde_json::from_str(text).unwrap_or_else(|_| text.into()));
        let is_http = body.get("Http").is_some();
        self.mask(&mut body);
        let mut blob = message["lazy_load_blob"].clone();
        if let Some(text) = blob["bytes"].as_str().map(ToString::to_string) {
            let varies = text == "<elided>" || text.starts_with("{\"body\"") || text.len() > 1000;
            if varies || text.starts_with("fanout-done") {
                blob["bytes"] = "VARIES".into();
                blob["len"] = Value::Null;
            }
        }
        let expects = if is_http { Value::Null } else { inner["expects_response"].clone() };
        json!({
            "dir": direction, "id": id, "kind": kind, "source": message["source"], "target": message["target"],
            "rsvp": message["rsvp"], "expects": expects, "inherit": inner["inherit"],
            "metadata": inner.get("metadata").cloned().unwrap_or(Value::Null), "body": body, "blob": blob,
        })
    }

    fn mask(&mut self, body: &mut Value) {
        let Value::Object(fields) = body else { return };
        for (name, value) in fields {
            match name.as_str() {
                "channel_id" | "WebSocketClose" if value.is_number() => {
                    let channels = self.channels.len();
                    *value = (*self.channels.entry(value.to_string()).or_insert(channels)).into();
                }
                "source_socket_addr" => *value = "PEER".into(),
                "headers" if value.get("host").is_some() => *value = Value::Null,
                _ => self.mask(value),
            }
        }
    }
}

/// A message as the recordings show it.
fn shown(message: &KernelMessage) -> Value {
    let mut shown = serde_json::to_value(message).unwrap();
    let (pointer, body) = match &message.message {
        NodeMessage::Request(request) => ("/message/Request/body", &request.body),
        NodeMessage::Response((response, _)) => ("/message/Response/0/body", &response.body),
    };
    *shown.pointer_mut(pointer).unwrap() = show(body);
    if let Some(blob) = &message.lazy_load_blob {
        shown["lazy_load_blob"]["bytes"] = show(&blob.bytes);
        shown["lazy_load_blob"]["len"] = blob.bytes.len().into();
    }
    shown
}

fn show(bytes: &[u8]) -> Value {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.into(),
        Err(_) => {
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            json!({"hex": hex, "len": bytes.len()})
        }
    }
}

impl Replay {
    fn start(name: &'static str) -> Self {
        let expose_local = !name.ends_with(".no_expose_local");
        let id = PROCESS.parse().unwrap();
        let listen = SocketAddr::from(([127, 0, 0, 1], 0));
        let node = kernel::start(listen, expose_local, id, node_backend::wsecho::init).unwrap();
        Self { node, _apart: None, name, golden: golden(name) }
    }

    /// The same with the kernel attached over a link to a broker that has no key for its tokens.
    fn start_apart(name: &'static str) -> Self {
        let mut settings = pushring::node::settings(kernel::NODE, Dialect::Hyperdrive);
        settings.expose_local = !name.ends_with(".no_expose_local");
        let config = pushring::Config { settings, shards: 2, driver: support::driver(), ..pushring::Config::default() };
        let broker = Broker::start(pushring::Config { listen: ([127, 0, 0, 1], 0).into(), ..config }).unwrap();
        let path = std::env::temp_dir().join(format!("pushring-golden-{}", std::process::id()));
        let config = link::LinkConfig { path: Some(path.clone()), ..link::LinkConfig::default() };
        let link = link::LinkServer::start(broker.handle(), config).unwrap();
        let at = kernel::At::Link(path);
        let node = kernel::start(at, false, PROCESS.parse().unwrap(), node_backend::wsecho::init).unwrap();
        Self { node, _apart: Some((link, broker)), name, golden: golden(name) }
    }

    fn next(&self) -> (Direction, KernelMessage) {
        self.node.recorded.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("{}: a message is missing", self.name))
    }

    /// Takes what is not part of the case.
    fn skip(&self, count: usize) {
        (0..count).for_each(|_| drop(self.next()));
    }

    /// The messages of the case, as recorded and as they are; `change` says what is better.
    fn compare(&self, change: impl FnOnce(&mut Vec<Value>)) {
        let (mut ours, mut theirs) = (Normal::default(), Normal::default());
        let messages = self.golden["messages"].as_array().cloned().unwrap_or_default();
        let mut expected: Vec<Value> =
            messages.iter().map(|m| theirs.message(m["dir"].as_str().unwrap(), &m["km"])).collect();
        change(&mut expected);
        let mut got = Vec::new();
        for at in 0..expected.len() {
            let (direction, message) = self.next();
            let direction = match direction {
                Direction::FromServer => "http-server->kernel",
                Direction::ToServer => "kernel->http-server",
            };
            got.push(ours.message(direction, &shown(&message)));
            let (got, expected) = (&got[at], &expected[at]);
            assert_eq!(got, expected, "{}: message {at}\n{got:#}\nis not\n{expected:#}", self.name);
        }
        let more = self.node.recorded.recv_timeout(Duration::from_millis(20));
        assert!(more.is_err(), "{}: {more:?} is one too many", self.name);
    }

    fn same(&self) {
        self.compare(|_| {});
    }

    /// A client of the process' own path; its WebSocketOpen is not part of the case.
    fn client(&self) -> Client {
        self.client_of("", &[])
    }

    fn client_of(&self, path: &str, headers: &[(&str, &str)]) -> Client {
        let (client, status) = self.upgrade(path, headers);
        assert_eq!(status, 101, "{}", self.name);
        self.skip(1);
        client
    }

    /// Upgrades by hand, since some cases are refused.
    fn upgrade(&self, path: &str, headers: &[(&str, &str)]) -> (Client, u16) {
        let mut stream = TcpStream::connect(self.node.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let has = |name: &str| headers.iter().any(|(have, _)| have.eq_ignore_ascii_case(name));
        let mut request = format!("GET /{PROCESS}{path} HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n");
        if path.starts_with("//") {
            request = request.replace(&format!("/{PROCESS}/"), "");
        }
        if !has("host") {
            request += &format!("Host: localhost:{}\r\n", self.node.address.port());
        }
        if !has("sec-websocket-version") {
            request += "Sec-WebSocket-Version: 13\r\n";
        }
        request += "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
        for (name, value) in headers {
            request += &format!("{name}: {value}\r\n");
        }
        stream.write_all((request + "\r\n").as_bytes()).unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).unwrap();
        let status = head[9..12].parse().unwrap();
        assert!(status != 101 || head.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{head}");
        (Client::from_raw_socket(support::Patient::new(stream), tungstenite::protocol::Role::Client, None), status)
    }

    /// The case is one upgrade: its answer, and the process' messages.
    fn upgrades(&self, path: &str, headers: &[(&str, &str)], status: u16) {
        let (_client, got) = self.upgrade(path, headers);
        assert_eq!(got, status, "{}", self.name);
        self.same();
    }

    /// Sends a command to the process; the rest of the case are its messages and the texts that come back.
    fn says(&self, command: &str, replies: &[&str]) {
        let mut client = self.client();
        send(&mut client, command);
        for reply in replies {
            assert_eq!(recv(&mut client), Message::text(*reply), "{}", self.name);
        }
        self.same();
    }

    /// Sends raw bytes; the server's bytes up to its end are the answer.
    fn raw(&self, bytes: &[u8]) -> Vec<u8> {
        let mut client = self.client();
        let stream = client.get_mut();
        stream.write_all(bytes).unwrap();
        let mut answer = Vec::new();
        // A reset after the close frame is an end as well.
        let _ = stream.read_to_end(&mut answer);
        answer
    }

    /// An HTTP request; status and everything behind it.
    fn http(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.node.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut request = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\n");
        if !headers.iter().any(|(name, _)| *name == "Host") {
            request += &format!("Host: localhost:{}\r\n", self.node.address.port());
        }
        for (name, value) in headers {
            request += &format!("{name}: {value}\r\n");
        }
        request += &format!("Content-Length: {}\r\n\r\n{body}", body.len());
        stream.write_all(request.as_bytes()).unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).unwrap();
        (response[9..12].parse().unwrap(), response)
    }

    /// A GET whose status is the recorded one.
    fn gets(&self, path: &str, headers: &[(&str, &str)]) -> String {
        let (status, response) = self.http("GET", path, headers, "");
        assert_eq!(Value::from(status), self.golden["client"]["status"], "{}: {response}", self.name);
        self.same();
        response
    }
}

fn own(path: &str) -> String {
    format!("/{PROCESS}{path}")
}

fn token(subdomain: Option<&str>) -> String {
    let secret = Secret::new(kernel::SECRET).unwrap();
    let subdomain = subdomain.map(ToString::to_string);
    mint(&secret, &Claims { username: kernel::NODE.to_string(), subdomain, expiration: 4_000_000_000 })
}

fn cookie() -> String {
    format!("hyperware-auth_{}={}", kernel::NODE, token(None))
}

fn secure_cookie() -> String {
    format!("hyperware-auth_{}@{PROCESS}={}", kernel::NODE, token(Some(PROCESS)))
}

/// The body that a login page posts.
fn login(password_hash: &[u8], subdomain: &str) -> String {
    json!({"password_hash": String::from_utf8_lossy(password_hash), "subdomain": subdomain}).to_string()
}

/// How long after the answer to a login its token expires.
fn login_lasts_s(response: &str) -> u64 {
    let value = |start: &str, end: &str| response.split_once(start).unwrap().1.split_once(end).unwrap().0;
    let claims = BASE64URL.decode(value("hyperware-auth_fake.os=", ";").split('.').nth(1).unwrap()).unwrap();
    let claims: Value = serde_json::from_slice(&claims).unwrap();
    let said = httpdate::parse_http_date(value("\ndate: ", "\r\n")).unwrap();
    claims["expiration"].as_u64().unwrap() - said.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()
}

/// The same of a recording.
fn recorded_login_lasts_s(golden: &Value) -> u64 {
    let fields = golden["client"]["headers"].as_array().unwrap().iter();
    let lines = fields.map(|field| format!("\n{}: {}\r\n", field[0].as_str().unwrap(), field[1].as_str().unwrap()));
    login_lasts_s(&lines.collect::<String>())
}

/// A masked frame with a key of zeros.
fn frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    [&[0x80 | opcode, 0x80 | payload.len() as u8, 0, 0, 0, 0], payload].concat()
}

fn close(r: &Replay, frame_bytes: &[u8], code: &[u8]) {
    let answer = r.raw(frame_bytes);
    assert!(answer.starts_with(&[0x88]) && answer[2..].starts_with(code), "{}: {answer:02x?}", r.name);
    r.same();
}

fn extension(r: &Replay, kind: MessageType) {
    let mut client = r.client_of("/ext", &[]);
    let data = WebSocketExtPushData { id: 77, message_type: kind, blob: b"ext-reply".to_vec() };
    send(&mut client, Message::binary(data.encode(pushring::node::Dialect::Hyperdrive)));
    r.same();
}

fn subdomain_host(r: &Replay) -> String {
    format!("wsecho-sys.localhost:{}", r.node.address.port())
}

fn rpc(r: &Replay, body: &str) -> String {
    let (status, response) = r.http("POST", "/rpc:distro:sys/message", &[("Content-Type", "application/json")], body);
    assert_eq!(Value::from(status), r.golden["client"]["status"], "{}: {response}", r.name);
    r.same();
    response
}

const RPC_CALL: &str = r#"{"node":null,"process":"wsecho:wsecho:sys","inherit":null,"expects_response":5,
    "body":"{\"q\": 1}","metadata":"meta","context":null,"mime":"text/plain","data":"cnBjLWJsb2I="}"#;

const CASES: &[Case] = &[
    ("action_websocket_open_rejected", |r| {
        let mut client = r.client();
        send(&mut client, "openreq");
        assert!(recv(&mut client).to_text().unwrap().starts_with("openreq {\"Err\":\"MalformedRequest\"} src="));
        // Better: a refused action has one answer, not a second one that says Ok.
        r.compare(|expected| drop(expected.remove(3)));
    }),
    ("auth_http", |r| drop(r.gets(&own("/authdyn"), &[("Cookie", &cookie())]))),
    ("client_close_1000", |r| close(r, &frame(8, b"\x03\xe8bye"), b"\x03\xe8")),
    ("client_close_1001_raw", |r| close(r, &frame(8, b"\x03\xe9away"), b"\x03\xe9")),
    ("client_close_empty_raw", |r| close(r, &frame(8, b""), b"")),
    ("client_ping_in", |r| {
        let mut client = r.client();
        send(&mut client, Message::Ping("cc".into()));
        assert_eq!(client.read().unwrap(), Message::Pong("cc".into()));
        r.same();
    }),
    ("client_tcp_fin", |r| {
        drop(r.client());
        r.same();
    }),
    ("client_tcp_rst", |r| {
        let client = r.client();
        socket2::SockRef::from(client.get_ref()).set_linger(Some(Duration::ZERO)).unwrap();
        drop(client);
        r.same();
    }),
    ("ext_push_in_other_action", |r| {
        let mut client = r.client_of("/ext", &[]);
        send(&mut client, Message::binary(b"\x81\xaeWebSocketClose\x07".to_vec()));
        r.same();
    }),
    ("ext_push_in_req", |r| extension(r, MessageType::Request)),
    ("ext_push_in_resp", |r| extension(r, MessageType::Response)),
    ("ext_push_out_req", |r| {
        let mut client = r.client_of("/ext", &[]);
        send(&mut client, "extpush req");
        let frame = recv(&mut client).into_data();
        assert!(frame.starts_with(b"\x81\xb4WebSocketExtPushData\x83\xa2id"), "{frame:?}");
        assert!(frame.ends_with(b"\xb6hyperware_message_type\xa7Request\xa4blob\x9bext-payload"), "{frame:?}");
        r.same();
    }),
    ("ext_push_text_noblob", |r| {
        let mut client = r.client_of("/ext", &[]);
        send(&mut client, "exttext");
        r.same();
    }),
    ("fanout_3x10_one_client", |r| {
        let mut client = r.client();
        send(&mut client, "fanout 3 10");
        for at in 0..3 {
            assert_eq!(recv(&mut client), Message::binary(format!("f{at} xxxxxxx").into_bytes()));
        }
        assert!(recv(&mut client).to_text().unwrap().starts_with("fanout-done 1 chans "));
        r.same();
    }),
    ("http_after_unbind", |r| {
        let mut client = r.client();
        send(&mut client, "unbind");
        recv(&mut client);
        r.skip(6);
        r.gets(&own("/static"), &[]);
    }),
    ("http_dynamic_get", |r| {
        let response = r.gets(&own("/dyn?a=1&b=two%20words&a=3"), &[]).to_lowercase();
        assert!(response.contains("\r\nx-echo: 1\r\n") && response.contains("\r\nset-cookie: a=1; b=2\r\n"));
    }),
    ("http_dynamic_post", |r| {
        let (status, response) = r.http("POST", &own("/dyn/abc%20d"), &[], "payload-bytes");
        assert_eq!(status, 201, "{response}");
        r.same();
    }),
    ("http_get_on_ws_path", |r| drop(r.gets(&own(""), &[]))),
    ("http_local_only", |r| drop(r.gets(&own("/local"), &[]))),
    ("http_local_only.no_expose_local", |r| drop(r.gets(&own("/local"), &[]))),
    ("http_root", |r| drop(r.gets("/", &[]))),
    ("http_static", |r| {
        let response = r.gets(&own("/static"), &[]);
        assert!(response.contains("\r\ncontent-type: text/css\r\n") && response.ends_with("\r\n\r\nbody{}"));
    }),
    ("http_unknown_process", |r| drop(r.gets("/nobody:none:sys/x", &[]))),
    ("login_get", |r| {
        // Recorded headers and no message; the page itself is our own.
        let response = r.gets("/login", &[]);
        assert!(response.contains("\r\ncontent-type: text/html; charset=utf-8\r\n"), "{response}");
        assert!(response.contains("fake.os"), "the page names the node: {response}");
    }),
    ("login_post", |r| {
        let (status, response) = r.http("POST", "/login", &[], &login(kernel::KEYFILE, ""));
        assert_eq!(status, 200, "{response}");
        assert!(response.contains("\r\nset-cookie: hyperware-auth_fake.os=eyJhbGciOiJIUzI1NiJ9."), "{response}");
        let (lasts, recorded) = (login_lasts_s(&response), recorded_login_lasts_s(&r.golden));
        assert!(lasts.abs_diff(recorded) < 60, "a login lasts {lasts} s instead of {recorded}");
        // Better: real attributes instead of header fields of their own.
        assert!(response.contains("; HttpOnly") && response.contains("; SameSite=Lax"), "{response}");
        let (status, _) = r.http("POST", "/login", &[], &login(b"0xbad", ""));
        assert_eq!(status, 401, "better than 500: the password is wrong");
    }),
    ("login_post_subdomain", |r| {
        let (status, response) = r.http("POST", "/login", &[], &login(kernel::KEYFILE, PROCESS));
        assert_eq!(status, 200, "{response}");
        assert!(response.contains("\r\nset-cookie: hyperware-auth_fake.os@wsecho:wsecho:sys=eyJ"), "{response}");
    }),
    ("malformed_action", |r| {
        r.says("malformed", &[r#"malformed {"Err":"MalformedRequest"} src=fake.os@http-server:distro:sys"#]);
    }),
    ("push_ping_out", |r| {
        let mut client = r.client();
        send(&mut client, "ping");
        assert_eq!(client.read().unwrap(), Message::Ping("pp".into()));
        client.flush().unwrap();
        r.same();
    }),
    ("push_pong_out", |r| {
        let mut client = r.client();
        send(&mut client, "pong");
        assert_eq!(client.read().unwrap(), Message::Pong("qq".into()));
        r.same();
    }),
    ("push_text_invalid_utf8", |r| {
        let mut client = r.client();
        send(&mut client, "badutf8");
        // Better: the bytes are not rewritten, and the process hears why nothing was sent.
        r.compare(|expected| {
            let id = expected[1]["id"].clone();
            expected.push(json!({
                "dir": "http-server->kernel", "id": id, "kind": "Response", "source": "our@http-server:distro:sys",
                "target": "fake.os@wsecho:wsecho:sys", "rsvp": null, "expects": null, "inherit": false,
                "metadata": null, "body": {"Err": "MalformedRequest"}, "blob": null,
            }));
        });
    }),
    ("push_unknown_channel_expects", |r| {
        r.says("unknown", &[r#"unknown {"Err":"WsChannelNotFound"} src=fake.os@http-server:distro:sys"#]);
    }),
    ("push_with_expects_response", |r| {
        r.says("pushack", &["acked", r#"pushack {"Ok":null} src=fake.os@http-server:distro:sys"#]);
    }),
    ("push_without_blob", |r| {
        r.says("noblob", &[r#"noblob {"Err":"NoBlob"} src=fake.os@http-server:distro:sys"#]);
    }),
    ("rpc_bad_json", |r| drop(rpc(r, "{"))),
    ("rpc_expects", |r| {
        let response = rpc(r, RPC_CALL);
        assert!(response.ends_with(r.golden["client"]["body"].as_str().unwrap()), "{response}");
    }),
    ("rpc_expects.no_expose_local", |r| drop(rpc(r, RPC_CALL))),
    ("secure_cookie", |r| {
        r.gets(&own("/secure"), &[("Host", &subdomain_host(r)), ("Cookie", &secure_cookie())]);
    }),
    ("secure_no_cookie", |r| drop(r.gets(&own("/secure"), &[("Host", &subdomain_host(r))]))),
    ("secure_wrong_host", |r| {
        let response = r.gets(&own("/secure?x=1"), &[("Cookie", &cookie())]);
        let location = format!("\r\nlocation: http://{}{}\r\n", subdomain_host(r), own("/secure?x=1"));
        assert!(response.contains(&location), "{response}");
    }),
    ("server_closeme", |r| {
        let mut client = r.client();
        send(&mut client, "closeme");
        assert_eq!(client.read().unwrap(), Message::Close(None));
        while client.read().is_ok() {}
        r.same();
    }),
    ("server_closeme_raw_no_reply", |r| {
        let mut client = r.client();
        let mut answer = [0; 2];
        client.get_mut().write_all(&frame(1, b"closeme")).unwrap();
        client.get_mut().read_exact(&mut answer).unwrap();
        assert_eq!(answer, [0x88, 0]);
        r.same();
    }),
    ("server_closepush", |r| {
        let mut client = r.client();
        send(&mut client, "closepush");
        assert_eq!(client.read().unwrap(), Message::Close(None));
        while client.read().is_ok() {}
        r.same();
    }),
    ("server_closeme_raw_then_client_close", |r| {
        // The same client goes on where `server_closeme_raw_no_reply` ends: it answers the close frame after all.
        let mut client = r.client();
        client.get_mut().write_all(&frame(1, b"closeme")).unwrap();
        let mut answer = [0; 2];
        client.get_mut().read_exact(&mut answer).unwrap();
        r.skip(2);
        client.get_mut().write_all(&frame(8, b"")).unwrap();
        let mut rest = Vec::new();
        client.get_mut().read_to_end(&mut rest).unwrap();
        assert!(rest.is_empty(), "{rest:?} behind the close frame");
        r.same();
    }),
    ("unauth_http", |r| drop(r.gets(&own("/authdyn"), &[]))),
    ("unauth_http_static", |r| drop(r.gets(&own("/authstatic"), &[]))),
    ("unbind", |r| r.says("unbind", &["unbind Ok(()) Ok(())"])),
    // Better: the close frame says what was wrong; the original's is empty or carries an invalid code.
    ("violation_close_999", |r| close(r, &frame(8, b"\x03\xe7"), b"\x03\xea")),
    ("violation_frame_17MiB_header", |r| close(r, b"\x82\xff\0\0\0\0\x01\x10\0\0\0\0\0\0", b"\x03\xf1")),
    ("violation_ping_126", |r| close(r, &[b"\x89\xfe\0\x7e\0\0\0\0", &[b'p'; 126][..]].concat(), b"\x03\xea")),
    ("violation_text_invalid_utf8", |r| close(r, &frame(1, b"\xff\xfe"), b"\x03\xef")),
    ("violation_unmasked", |r| close(r, b"\x81\x02hi", b"\x03\xea")),
    ("ws_authed_cookie", |r| r.upgrades("/authed", &[("Cookie", &cookie())], 101)),
    // Better: the true status where the original says 404.
    ("ws_authed_no_cookie", |r| r.upgrades("/authed", &[], 401)),
    ("ws_bad_version", |r| r.upgrades("", &[("Sec-WebSocket-Version", "12")], 426)),
    ("ws_deflate_offer", |r| r.upgrades("", &[("Sec-WebSocket-Extensions", "permessage-deflate")], 101)),
    ("ws_ext", |r| r.upgrades("/ext", &[], 101)),
    ("ws_ext.no_expose_local", |r| r.upgrades("/ext", &[], 403)),
    ("ws_open", |r| r.upgrades("", &[], 101)),
    ("ws_push_70000_binary", |r| {
        let mut client = r.client();
        send(&mut client, Message::binary(vec![b'B'; 70_000]));
        assert_eq!(recv(&mut client), Message::binary(vec![b'B'; 70_000]));
        r.same();
    }),
    ("ws_push_empty_text", |r| r.says("", &[""])),
    ("ws_push_in_binary_and_echo", |r| {
        let mut client = r.client();
        send(&mut client, Message::binary(vec![0, 1, 0xfe, 0xff]));
        assert_eq!(recv(&mut client), Message::binary(vec![0, 1, 0xfe, 0xff]));
        r.same();
    }),
    ("ws_push_in_text_and_echo", |r| r.says("hello", &["hello"])),
    ("ws_secure_cookie", |r| {
        r.upgrades("/wssecure", &[("Host", &subdomain_host(r)), ("Cookie", &secure_cookie())], 101);
    }),
    ("ws_secure_wrong_host", |r| r.upgrades("/wssecure", &[("Cookie", &secure_cookie())], 403)),
    ("ws_subpath_unbound", |r| r.upgrades("/nope", &[], 404)),
    ("ws_trailing_slash", |r| r.upgrades("/", &[], 101)),
    ("ws_unknown_process", |r| r.upgrades("//nobody:none:sys", &[], 404)),
    ("ws_xff", |r| r.upgrades("", &[("X-Forwarded-For", "203.0.113.7, 10.0.0.1")], 101)),
];

#[test]
fn binding_is_as_recorded() {
    Replay::start("bind").same();
}

#[test]
fn every_case_is_as_recorded() {
    replay_all(Replay::start);
}

#[test]
fn every_case_is_as_recorded_over_a_link() {
    replay_all(Replay::start_apart);
}

fn replay_all(start: fn(&'static str) -> Replay) {
    let mut failed = Vec::new();
    for (name, act) in CASES {
        let replay = start(name);
        replay.skip(24); // The binds, which are a case of their own.
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| act(&replay))).is_err() {
            failed.push(*name);
        }
    }
    assert!(failed.is_empty(), "{} of {} failed: {failed:?}", failed.len(), CASES.len());
}

#[test]
fn every_recorded_case_is_replayed() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let names = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let recorded: BTreeSet<String> = names.filter_map(|name| name.strip_suffix(".json").map(Into::into)).collect();
    let replayed = CASES.iter().map(|(name, _)| *name).chain(["bind"]).map(Into::into);
    assert_eq!(recorded, replayed.collect::<BTreeSet<String>>());
}
