//! A backend with a token publishes over HTTP, to a topic, path, list or process, in JSON, raw bytes or batches, and is
//! answered as `docs/PUBLISHING.md` and `docs/openapi.json` say; clients without a token, and pages of other sites,
//! change nothing.

use crate::support;

use pushring::internals::push_api::{self, ApiOptions, ApiToken, IdempotencyKeys};
use pushring::{AttachOptions, Audience, Broker, Config, Event, Process, ProcessId};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use support::daemon::{Daemon, TemporaryFile};
use support::{Client, Inbound, PATIENCE, ShardHolder, broker, connect, on_shard, process, recv};
use tungstenite::Message;

const TOKEN: &str = "a token of the tests";

struct Scene {
    broker: Broker,
    api: Broker,
    rooms: Process,
    clients: Vec<(Client, pushring::ChannelId)>,
}

/// The API in the name of a process, with keys of its own.
fn acting_as(process: &Process) -> ApiOptions {
    ApiOptions {
        token: ApiToken::new(TOKEN).unwrap(),
        process: Some(process.id().clone()),
        keys: IdempotencyKeys::default(),
    }
}

fn start() -> Scene {
    let broker = broker(support::driver(), |_| {});
    let rooms = process(&broker, "rooms", AttachOptions::default());
    let api = Broker::start(Config { shards: 1, driver: support::driver(), ..Config::default() }).unwrap();
    let keys = IdempotencyKeys::default();
    let options = |process| ApiOptions { token: ApiToken::new(TOKEN).unwrap(), process, keys: keys.clone() };
    push_api::start(&api.handle(), true, broker.handle(), options(Some(rooms.id().clone()))).unwrap();
    push_api::start(&broker.handle(), false, broker.handle(), options(None)).unwrap();
    let mut inbound = Inbound::default();
    let clients = (0..3).map(|_| inbound.open(&broker, &rooms)).collect();
    Scene { broker, api, rooms, clients }
}

/// Status, head in lower case, body.
fn ask(address: SocketAddr, request: &str, fields: &str, body: &[u8]) -> (u16, String, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let head = format!(
        "{request} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: {}\r\n{fields}\r\n",
        body.len()
    );
    stream.write_all(&[head.as_bytes(), body].concat()).unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).unwrap();
    let (head, body) = response.split_once("\r\n\r\n").unwrap();
    (head[9..12].parse().unwrap(), head.to_lowercase(), body.to_owned())
}

fn authorized() -> String {
    format!("Authorization: Bearer {TOKEN}\r\n")
}

impl Scene {
    fn ask(&self, request: &str, fields: &str, body: &[u8]) -> (u16, Value) {
        let (status, _, body) = ask(self.api.address(), request, &format!("{}{fields}", authorized()), body);
        (status, serde_json::from_str(&body).unwrap_or_else(|_| panic!("{body}")))
    }

    fn push(&self, order: &Value) -> (u16, Value) {
        self.ask("POST /api/push", "Content-Type: application/json\r\n", order.to_string().as_bytes())
    }
}

#[test]
fn each_audience_and_form_is_reached() {
    let mut scene = start();
    let ids: Vec<u32> = scene.clients.iter().map(|(_, id)| id.get()).collect();
    scene.rooms.subscribe(scene.clients[0].1, "a b").send().unwrap();
    scene.rooms.subscribe(scene.clients[1].1, "a b").send().unwrap();
    let accepted = (202, json!({"accepted": true}));
    let sent = |count| {
        (
            200,
            json!({"sent": count, "queued": 0, "queued_bytes": 0, "conflated": 0, "dropped": 0, "closed": 0,
                   "not_found": 0, "not_owner": 0}),
        )
    };
    assert_eq!(scene.push(&json!({"to": {"topic": "a b"}, "text": "one", "outcome": true})), sent(2));
    assert_eq!(scene.push(&json!({"to": {"topic": "a b"}, "json": {"n": 2}, "except": [ids[1]]})), accepted);
    let list = json!({"to": {"channels": [ids[0], ids[2]]}, "data": "AP8=", "policy": "drop_newest", "outcome": true});
    assert_eq!(scene.push(&list), sent(2));
    assert_eq!(scene.push(&json!({"to": {"path": "/"}, "text": "path", "outcome": true})), sent(3));
    assert_eq!(scene.push(&json!({"to": {"process": "rooms:test:sys"}, "text": "all", "outcome": true})), sent(3));
    assert_eq!(scene.push(&json!({"to": {"topic": "none"}, "text": "x", "outcome": true})), sent(0));
    let large = vec![7; 50_000];
    assert_eq!(scene.ask("POST /api/push", "Push-To: topic=a%20b; outcome\r\n", &large), sent(2));
    assert_eq!(
        scene.ask("POST /api/push", "Push-To: topic=a b\r\nContent-Type: text/plain\r\n", "é".as_bytes()),
        accepted
    );
    let raw = Message::binary(large);
    let texts = |texts: &[&str]| texts.iter().map(|text| Message::text(*text)).collect::<Vec<_>>();
    let expected = [
        [
            texts(&["one", "{\"n\":2}"]),
            vec![Message::binary(vec![0, 255])],
            texts(&["path", "all"]),
            vec![raw.clone()],
            texts(&["é"]),
        ]
        .concat(),
        [texts(&["one", "path", "all"]), vec![raw], texts(&["é"])].concat(),
        [vec![Message::binary(vec![0, 255])], texts(&["path", "all"])].concat(),
    ];
    for ((client, _), expected) in scene.clients.iter_mut().zip(expected) {
        for message in expected {
            assert_eq!(recv(client), message);
        }
    }
}

#[test]
fn who_may_not_changes_nothing() {
    let scene = start();
    let order = json!({"to": {"process": "rooms:test:sys"}, "text": "secret"}).to_string();
    let json = "Content-Type: application/json\r\n";
    let try_with = |address, path: &str, fields: &str| {
        ask(address, &format!("POST {path}"), &format!("{json}{fields}"), order.as_bytes())
    };
    for (address, path) in [(scene.api.address(), "/api/push"), (scene.broker.address(), "/push:pushring:sys/api/push")]
    {
        let (status, head, _) = try_with(address, path, "");
        assert!(status == 401 && head.contains("www-authenticate: bearer"), "{head}");
        assert_eq!(try_with(address, path, "Authorization: Bearer another token xx\r\n").0, 401);
        assert_eq!(try_with(address, path, &format!("Cookie: token={TOKEN}\r\n")).0, 401);
        for foreign in ["Origin: https://evil.example\r\n", "Origin: null\r\n", "Sec-Fetch-Site: cross-site\r\n"] {
            assert_eq!(try_with(address, path, &format!("{}{foreign}", authorized())).0, 403, "{foreign}");
        }
        assert_eq!(try_with(address, &format!("{path}?token={}", TOKEN.replace(' ', "+")), "").0, 401);
    }
    let own = format!("{}Origin: http://{}\r\n", authorized(), scene.api.address());
    assert_eq!(try_with(scene.api.address(), "/api/push", &own).0, 202);
    assert_eq!(try_with(scene.broker.address(), "/push:pushring:sys/api/push", &authorized()).0, 202);
    // A form, or a page's text, is no JSON.
    for mime in ["text/plain", "application/x-www-form-urlencoded", ""] {
        let fields = format!("{}Content-Type: {mime}\r\n", authorized());
        let (status, _, body) = ask(scene.api.address(), "POST /api/push", &fields, order.as_bytes());
        assert!(status == 400 && body.contains("content-type"), "{mime}: {status} {body}");
    }
    assert_eq!(scene.push(&json!({"to": {"process": "nobody:test:sys"}, "text": "x"})).0, 404);
    assert_eq!(scene.push(&json!({"to": {"topic": "x".repeat(256)}, "text": "x"})).1["field"], "to.topic");
    assert_eq!(scene.push(&json!({"to": {"topic": "a"}, "text": "x".repeat(256 << 10)})).0, 413);
    for (request, status) in [
        ("GET /api/push", 405),
        ("GET /api/", 404),
        ("GET /", 404),
        ("POST /api/topics", 405),
        ("PATCH /api/channels/1", 405),
        ("GET /api/channels/x", 400),
        ("GET /api/channels/1", 404),
        ("DELETE /api/channels/1", 404),
        ("DELETE /api/channels/1?code=1005", 400),
        ("GET /api/topics/%ff", 400),
        ("GET /api/topics/a", 404),
        ("GET /api/topics?limit=x", 400),
    ] {
        assert_eq!(scene.ask(request, "", b"").0, status, "{request}");
    }
    // Two were let in, and a push of the process itself comes behind them.
    scene.rooms.broadcast(pushring::Message::text("end")).to(Audience::Process).send().unwrap();
    for (mut client, _) in scene.clients {
        let texts: Vec<String> = (0..3).map(|_| recv(&mut client).into_text().unwrap().to_string()).collect();
        assert_eq!(texts, ["secret", "secret", "end"]);
    }
}

/// Nothing of a body is taken in, nor charged to anybody, of a request that is refused for what its head says.
#[test]
fn what_a_head_decides_is_answered_before_the_body() {
    let scene = start();
    let (json, raw) = ("Content-Type: application/json\r\n", "Push-To: process=rooms:test:sys\r\n");
    let own: &str = &authorized();
    let wrong = "Authorization: Bearer another token xx\r\n";
    let long_key = format!("Idempotency-Key: {}\r\n", "k".repeat(256));
    for (address, prefix) in [(scene.api.address(), ""), (scene.broker.address(), "/push:pushring:sys")] {
        for (request, fields, status) in [
            ("POST /api/push", [json, "", ""], "401"),
            ("POST /api/push", [json, wrong, ""], "401"),
            ("POST /api/push", [json, own, "Sec-Fetch-Site: cross-site\r\n"], "403"),
            ("POST /api/push", [json, own, "Origin: https://evil.example\r\n"], "403"),
            ("POST /api/push", [raw, own, raw], "400"),
            ("POST /api/nothing", [json, own, ""], "404"),
            ("PUT /api/push", [json, own, ""], "405"),
            ("POST /api/topics", [json, own, ""], "405"),
            ("PATCH /api/channels/1", [json, own, ""], "405"),
            ("POST /api/push", ["", own, ""], "400"),
            ("POST /api/push", ["Content-Type: text/plain\r\n", own, ""], "400"),
            ("POST /api/push", ["Push-To: topic=\r\n", own, ""], "400"),
            ("POST /api/push", ["Push-To: nothing=1\r\n", own, ""], "400"),
            ("POST /api/push", [raw, own, "Idempotency-Key: \r\n"], "400"),
            ("POST /api/push", [raw, own, &*long_key], "400"),
            ("POST /api/push", [json, own, ""], "413"),
            // And whoever may is told to go on.
            ("POST /api/push", [raw, own, ""], "100"),
            ("POST /api/push", ["Content-Type: application/x-ndjson\r\n", own, ""], "100"),
        ] {
            let (method, path) = request.split_once(' ').unwrap();
            let mut stream = TcpStream::connect(address).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            write!(
                stream,
                "{method} {prefix}{path} HTTP/1.1\r\nHost: {address}\r\nContent-Length: 1000000\r\n\
                 Expect: 100-continue\r\n{}\r\n",
                fields.concat()
            )
            .unwrap();
            let mut line = String::new();
            BufReader::new(stream).read_line(&mut line).unwrap();
            assert_eq!(line.split(' ').nth(1), Some(status), "{request} {fields:?}: {line}");
        }
    }
}

/// Of two, this reader and a proxy before it could take different ones.
#[test]
fn what_a_request_has_once_is_refused_twice_and_named() {
    let scene = start();
    let doors = [(scene.api.address(), ""), (scene.broker.address(), "/push:pushring:sys")];
    for (address, prefix) in doors {
        let ask = |method_and_path: &str, fields: &str| {
            let (method, path) = method_and_path.split_once(' ').unwrap();
            let (status, _, body) = ask(address, &format!("{method} {prefix}{path}"), fields, b"x");
            (status, serde_json::from_str::<Value>(&body).unwrap_or_else(|_| panic!("{body}"))["field"].clone())
        };
        let to = format!("{}Push-To: process=rooms:test:sys\r\n", authorized());
        assert_eq!(ask("POST /api/push", &to), (202, Value::Null));
        for (field, value) in [
            ("Push-To", "process=rooms:test:sys"),
            ("Idempotency-Key", "a"),
            ("Content-Type", "text/plain"),
            ("Authorization", &format!("Bearer {TOKEN}")),
            ("Origin", &format!("http://{address}")),
            ("Sec-Fetch-Site", "none"),
        ] {
            let twice = format!("{field}: {value}\r\n{}: {value}\r\n", field.to_uppercase());
            let others = if to.contains(field) { to.replace(field, "X-Other") } else { to.clone() };
            assert_eq!(
                ask("POST /api/push", &format!("{others}{twice}")),
                (400, field.to_lowercase().into()),
                "{field}"
            );
        }
        for (request, parameter) in [
            ("GET /api/topics?process=a:b:c&process=a:b:c", "process"),
            ("GET /api/topics?process=a:b:c&limit=1&limit=2", "limit"),
            ("DELETE /api/channels/1?code=1000&code=1001", "code"),
            ("DELETE /api/channels/1?reason=a&reason=b", "reason"),
        ] {
            assert_eq!(ask(request, &authorized()), (400, parameter.into()), "{request}");
        }
        // A list may stand in several fields (RFC 9110 section 5.3), and what is not read here is not judged.
        assert_eq!(ask("POST /api/push?a=1&a=2", &format!("{to}Accept: a/b\r\nAccept: c/d\r\n")), (202, Value::Null));
    }
    scene.rooms.broadcast(pushring::Message::text("end")).to(Audience::Process).send().unwrap();
    for (mut client, _) in scene.clients {
        let heard: Vec<_> = (0..5).map(|_| recv(&mut client).into_data()).collect();
        assert_eq!(heard, [&b"x"[..], b"x", b"x", b"x", b"end"]);
    }
}

#[test]
fn a_batch_is_answered_line_by_line_and_a_key_is_obeyed_once() {
    let mut scene = start();
    let mut lines: Vec<String> = (0..1000)
        .map(|n| json!({"to": {"path": "/"}, "text": n.to_string(), "outcome": n == 999}).to_string())
        .collect();
    lines[500] = "{".into();
    lines[501] = r#"{"to":{"topic":7},"text":"x"}"#.into();
    lines.insert(10, String::new());
    let fields = format!("{}Content-Type: application/x-ndjson\r\nIdempotency-Key: once\r\n", authorized());
    let (status, head, body) = ask(scene.api.address(), "POST /api/push", &fields, lines.join("\n").as_bytes());
    assert!(status == 200 && head.contains("application/x-ndjson"), "{head}");
    let answers: Vec<Value> = body.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(answers.len(), 1000);
    assert_eq!(
        (&answers[0]["status"], &answers[500]["field"], &answers[501]["field"]),
        (&202.into(), &"body".into(), &"to.topic".into())
    );
    assert_eq!(answers[999]["outcome"]["sent"], 3);
    let again = ask(scene.api.address(), "POST /api/push", &fields, lines.join("\n").as_bytes());
    assert!(again.1.contains("idempotency-replayed: true") && again.2 == body, "{}", again.1);
    let fields = "Content-Type: application/json\r\nIdempotency-Key: once\r\n";
    let (status, told) = scene.ask("POST /api/push", fields, br#"{"to":{"path":"/"},"text":"other"}"#);
    assert_eq!((status, &told["field"]), (409, &"idempotency-key".into()));
    for n in (0..1000).filter(|n| !(500..502).contains(n)) {
        assert_eq!(recv(&mut scene.clients[0].0), Message::text(n.to_string()));
    }
}

#[test]
fn a_batch_of_any_number_of_lines_is_answered_as_far_as_there_is_memory_for_it() {
    let broker = broker(support::driver(), |config| (config.shards, config.memory_bytes_max) = (1, Some(8 << 20)));
    let rooms = process(&broker, "rooms", AttachOptions::default());
    let options = acting_as(&rooms);
    push_api::start(&broker.handle(), false, broker.handle(), options).unwrap();
    let fields = format!("{}Content-Type: application/x-ndjson\r\n", authorized());
    let lines = 400_000;
    let body = "x\n".repeat(lines);
    let (status, _, answers) = ask(broker.address(), "POST /push:pushring:sys/api/push", &fields, body.as_bytes());
    assert_eq!(status, 200);
    let answers: Vec<Value> = answers.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let (last, others) = answers.split_last().unwrap();
    assert!((1_000..lines / 2).contains(&others.len()), "{} lines were answered", others.len());
    assert!(others.iter().all(|answer| answer["status"] == 400), "each is no JSON");
    assert!(last["status"] == 429 && last["error"].as_str().unwrap().contains("memory_budget"), "{last}");
}

#[test]
fn a_key_is_one_whichever_listener_it_comes_to_and_a_full_table_is_told() {
    let mut scene = start();
    let fields = format!("{}Idempotency-Key: both\r\nPush-To: process=rooms:test:sys\r\n", authorized());
    let (status, _, told) = ask(scene.api.address(), "POST /api/push", &fields, b"once");
    assert_eq!(status, 202, "{told}");
    let (status, head, again) = ask(scene.broker.address(), "POST /push:pushring:sys/api/push", &fields, b"once");
    assert!(status == 202 && again == told && head.contains("idempotency-replayed: true"), "{head}");
    // Where memory is short, keys are refused before anything is pushed, and requests without one are served.
    let options = acting_as(&scene.rooms);
    let config = Config { shards: 1, driver: support::driver(), memory_bytes_max: Some(2 << 20), ..Config::default() };
    let small = Broker::start(config).unwrap();
    push_api::start(&small.handle(), true, scene.broker.handle(), options).unwrap();
    let mut stream = BufReader::new(TcpStream::connect(small.address()).unwrap());
    stream.get_ref().set_read_timeout(Some(PATIENCE)).unwrap();
    let mut keyed = |key: Option<usize>| {
        let key = key.map(|key| format!("Idempotency-Key: {key}\r\n")).unwrap_or_default();
        let fields = format!("Host: {}\r\n{}{key}", small.address(), authorized());
        let request = format!("POST /api/push HTTP/1.1\r\n{fields}Push-To: topic=nobody\r\nContent-Length: 1\r\n\r\nx");
        stream.get_mut().write_all(request.as_bytes()).unwrap();
        let head: Vec<String> =
            stream.by_ref().lines().map(Result::unwrap).take_while(|line| !line.is_empty()).collect();
        let field = |name: &str| head.iter().find_map(|line| line.to_lowercase().strip_prefix(name).map(str::to_owned));
        let mut body = vec![0; field("content-length: ").unwrap().parse().unwrap()];
        stream.read_exact(&mut body).unwrap();
        (head[0][9..12].parse::<u16>().unwrap(), field("retry-after: "), String::from_utf8(body).unwrap())
    };
    let taken = (0..100_000).position(|key| keyed(Some(key)).0 != 202).expect("there is an end");
    assert!(taken > 100, "{taken}");
    let (status, later, told) = keyed(Some(taken));
    assert_eq!((status, later.as_deref()), (429, Some("60")), "{told}");
    assert!(told.contains("nothing was pushed"), "{told}");
    assert_eq!((keyed(None).0, keyed(Some(0)).0), (202, 202), "without a key, and with one that is known");
    assert_eq!(recv(&mut scene.clients[0].0), Message::binary(&b"once"[..]));
    scene.rooms.broadcast(pushring::Message::text("end")).to(Audience::Process).send().unwrap();
    assert_eq!(recv(&mut scene.clients[0].0), Message::text("end"));
}

#[test]
fn topics_and_channels_are_looked_at_and_closed() {
    let mut scene = start();
    let channel = scene.clients[0].1;
    for topic in ["a/1", "a/2", "b"] {
        assert_eq!(scene.rooms.subscribe(channel, topic).ask().send().unwrap().wait(PATIENCE).unwrap().sent, 1);
    }
    let (status, page) = scene.ask("GET /api/topics?prefix=a/&limit=1", "", b"");
    assert_eq!((status, page), (200, json!({"topics": [{"topic": "a/1", "subscribers": 1}], "next": "a/1"})));
    let (_, page) = scene.ask("GET /api/topics?after=a/1", "", b"");
    assert_eq!((page["topics"].as_array().unwrap().len(), &page["next"]), (2, &Value::Null));
    for limit in ["0", "-1", "+1", "1.5", "", "18446744073709551616"] {
        let (status, told) = scene.ask(&format!("GET /api/topics?limit={limit}"), "", b"");
        assert_eq!((status, &told["field"]), (400, &json!("limit")), "{limit}");
    }
    let (_, page) = scene.ask("GET /api/topics?limit=18446744073709551615", "", b"");
    assert_eq!(page["topics"].as_array().unwrap().len(), 3, "whatever was asked, the API goes on");
    assert_eq!(scene.ask("GET /api/topics/a%2F2", "", b""), (200, json!({"topic": "a/2", "subscribers": 1})));
    let (status, told) = scene.ask(&format!("GET /api/channels/{channel}"), "", b"");
    assert_eq!((status, &told["topics"]), (200, &json!(["a/1", "a/2", "b"])));
    let close = format!("DELETE /api/channels/{channel}?code=4000&reason=enough");
    assert_eq!(scene.ask(&close, "", b"").0, 202);
    assert_eq!(support::recv_close(&mut scene.clients[0].0), (4000, "enough".to_owned()));
}

/// However long a page may be, and whatever the names: none is left out, and the last page is told from the others.
#[test]
fn every_topic_is_on_one_page() {
    let broker = broker(support::driver(), |config| config.shard.topics_per_channel_max = 3000);
    let rooms = process(&broker, "rooms", AttachOptions::default());
    let (_client, channel) = Inbound::default().open(&broker, &rooms);
    let mut names: Vec<String> = (0..1500).map(|n| format!("room/{n:04}")).collect();
    names.extend(["\0", "\t", "\u{1d}x", "\u{1f}", "z"].map(str::to_owned));
    names.sort();
    // Topics of users stand between them, and are nobody's to see.
    for name in names.iter().cloned().chain((0..1200).map(|n| format!("\u{1e}user/{n}"))) {
        rooms.subscribe(channel, name).send().unwrap();
    }
    assert_eq!(rooms.subscribe(channel, "z").ask().send().unwrap().wait(PATIENCE).unwrap().sent, 1);
    let options = acting_as(&rooms);
    push_api::start(&broker.handle(), false, broker.handle(), options).unwrap();
    for limit in [1000, 999, 501, 100] {
        let (mut seen, mut after) = (Vec::new(), String::new());
        for page in 1.. {
            let request = format!("GET /push:pushring:sys/api/topics?limit={limit}{after}");
            let (_, _, body) = ask(broker.address(), &request, &authorized(), b"");
            let told: Value = serde_json::from_str(&body).unwrap();
            let topics = told["topics"].as_array().unwrap();
            assert!(topics.len() == limit || told["next"].is_null(), "page {page} of {limit}: {}", topics.len());
            seen.extend(topics.iter().map(|topic| topic["topic"].as_str().unwrap().to_owned()));
            let Some(next) = told["next"].as_str() else { break };
            let next: String = next.bytes().map(|byte| format!("%{byte:02x}")).collect();
            after = format!("&after={next}");
        }
        assert!(seen == names, "{limit}: {} of {}", seen.len(), names.len());
    }
}

/// A process id, as the description has it: a plain name, or three parts that hold no `:` and no `@`.
const PROCESS_PATTERN: &str = "^([a-z0-9_-]{1,64}|[^:@]+:[^:@]+:[^:@]+)$";

#[test]
fn the_description_names_what_is_served() {
    let spec: Value = serde_json::from_str(include_str!("../../docs/openapi.json")).unwrap();
    assert_eq!(spec["openapi"], "3.1.0");
    let scene = start();
    let mut seen = 0;
    for (path, methods) in spec["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap().iter().filter(|(name, _)| *name != "parameters") {
            // Each is there, and says no more than what is described.
            let path = path.replace("{topic}", "a").replace("{channel}", "1").replace("{node}", "n");
            let (status, _) = scene.ask(&format!("{} {path}", method.to_uppercase()), "", b"");
            assert!(
                status != 405 && operation["responses"].get(status.to_string()).is_some(),
                "{method} {path}: {status}"
            );
            // Whatever is asked for may be refused for these.
            for status in ["400", "401", "403", "429", "503"] {
                assert!(operation["responses"].get(status).is_some(), "{method} {path} says nothing of {status}");
            }
            seen += 1;
        }
    }
    assert_eq!(seen, 7);
    // What is described as a process id is one.
    let text = spec.to_string();
    assert_eq!(text.matches(&json!(PROCESS_PATTERN).to_string()).count(), 3);
    for (id, is_one) in [("a-7_b", true), ("A", false), ("a:b:c.os", true), ("a:b", false), ("a@b:c:d", false)] {
        assert_eq!(ProcessId::named(id).is_ok(), is_one, "{id}");
    }
    // Each field of an order, of an outcome and of a channel is described, and no other.
    let schemas = &spec["components"]["schemas"];
    for name in schemas["Order"]["properties"].as_object().unwrap().keys() {
        let (_, told) = scene.push(&json!({"to": {"topic": "a"}, name: {"no": "value"}}));
        let is_unknown = told["field"] == **name && told["error"].to_string().contains("there is no such field");
        assert!(!is_unknown, "{name}: {told}");
    }
    let (_, outcome) = scene.push(&json!({"to": {"topic": "a"}, "text": "x", "outcome": true}));
    let (_, channel) = scene.ask(&format!("GET /api/channels/{}", scene.clients[0].1), "", b"");
    for (told, schema) in [(&outcome, "Outcome"), (&channel, "Channel")] {
        let described = schemas[schema]["properties"].as_object().unwrap();
        for name in told.as_object().unwrap().keys() {
            assert!(described.contains_key(name), "{schema} says nothing of {name}");
        }
    }
}

#[test]
fn the_daemon_serves_it_with_a_token_alone() {
    let token = TemporaryFile::new("api-token", "another token of the tests\n");
    let daemon = Daemon::start(&["demo", "--api-token-file", token.path(), "--api-listen", "off", "--api-on-listen"]);
    let mut client = daemon.connect("/echo:pushring:sys/");
    let address: SocketAddr = daemon.address.parse().unwrap();
    let fields = "Authorization: Bearer another token of the tests\r\nContent-Type: application/json\r\n";
    let order = br#"{"to":{"path":"/","process":"echo:pushring:sys"},"text":"hello"}"#;
    assert_eq!(ask(address, "POST /push:pushring:sys/api/push", fields, order).0, 202);
    assert_eq!(recv(&mut client), Message::text("hello"));
    drop(daemon);
    // On an address of its own: which, its log says.
    let mut daemon = Daemon::start(&["demo", "--api-token-file", token.path(), "--api-listen", "127.0.0.1:0"]);
    let mut log = BufReader::new(daemon.child.stderr.take().unwrap());
    let address: SocketAddr = loop {
        let mut line = String::new();
        assert!(log.read_line(&mut line).unwrap() > 0, "it says where");
        if let Some((_, rest)) = line.split_once("publish at http://") {
            break rest.split('/').next().unwrap().parse().unwrap();
        }
    };
    let mut client = daemon.connect("/echo:pushring:sys/");
    assert_eq!(ask(address, "POST /api/push", fields, order).0, 202);
    assert_eq!(recv(&mut client), Message::text("hello"));
    assert_eq!(ask(daemon.address.parse().unwrap(), "POST /push:pushring:sys/api/push", fields, order).0, 404);
}

#[test]
fn a_full_inbox_is_told_and_when_to_come_again() {
    let broker = broker(support::driver(), |config| {
        config.shards = 1;
        config.inbox.bytes_max = 4 << 10;
    });
    let rooms = process(&broker, "rooms", AttachOptions::default());
    // A handler has the shard for as long as the test likes.
    let (release, released) = std::sync::mpsc::channel::<()>();
    let (stuck, is_stuck) = std::sync::mpsc::channel();
    let waits = std::sync::Mutex::new(Some((released, stuck)));
    let holder = broker.on_shards("holder", move |_| {
        let mut waits = waits.lock().unwrap().take();
        move |_: &mut pushring::Here<'_>, _: pushring::Event| {
            if let Some((released, stuck)) = waits.take() {
                stuck.send(()).unwrap();
                // An end of the test is as good.
                let _ = released.recv();
            }
        }
    });
    let holder = holder.unwrap();
    // Dropped before the holder, however the test ends: leaving a shard waits for it.
    let release = release;
    holder.handle().bind_at("/holder").unwrap();
    // Not waited for: the answer to its handshake is sent behind the handler.
    let mut client = TcpStream::connect(broker.address()).unwrap();
    let handshake = format!(
        "GET /holder HTTP/1.1\r\nHost: {}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        broker.address()
    );
    client.write_all(handshake.as_bytes()).unwrap();
    is_stuck.recv_timeout(PATIENCE).unwrap();
    let api = Broker::start(Config { shards: 1, driver: support::driver(), ..Config::default() }).unwrap();
    let options = acting_as(&rooms);
    push_api::start(&api.handle(), true, broker.handle(), options).unwrap();
    let push = |mime: &str, more: &str, body: &[u8]| {
        let fields = format!("{}Content-Type: {mime}\r\n{more}", authorized());
        ask(api.address(), "POST /api/push", &fields, body)
    };
    // To the shard itself, whatever channels it has.
    let to = format!("Push-To: process={}; channels=0\r\n", rooms.id());
    // A producer holds a quarter of an inbox at most, but for one order that comes first.
    assert_eq!(push("text/plain", &to, &[b'x'; 2000]).0, 202);
    for _ in 0..2 {
        // Refusals are not kept: the request may be tried again with the same key.
        let (status, head, body) = push("text/plain", &format!("{to}Idempotency-Key: k\r\n"), b"x");
        assert!(status == 429 && head.contains("\r\nretry-after: 1\r\n"), "{head}");
        assert!(body.contains("nothing was pushed") && !head.contains("idempotency-replayed"), "{head}{body}");
    }
    let line = json!({"to": {"process": rooms.id(), "channels": [0]}, "text": "x"}).to_string();
    let (status, _, answers) = push("application/x-ndjson", "", format!("{line}\n{line}\n").as_bytes());
    assert_eq!((status, answers.matches("\"status\":429").count()), (200, 2), "{answers}");
    release.send(()).unwrap();
    let end = std::time::Instant::now() + PATIENCE;
    while push("text/plain", &format!("{to}Idempotency-Key: k\r\n"), b"x").0 != 202 {
        assert!(std::time::Instant::now() < end, "it is not stuck any more");
    }
    drop(client);
}

#[test]
fn a_push_that_one_shard_has_no_room_for_reaches_no_other_shard() {
    let broker = broker(support::driver(), |config| config.inbox.bytes_max = 4 << 10);
    let rooms = process(&broker, "rooms", AttachOptions::default());
    let mut inbound = Inbound::default();
    let mut open = || {
        let client = connect(&broker, "/rooms:test:sys/");
        loop {
            // Those of the other shard leave.
            if let Event::Opened(opened) = inbound.next(&rooms) {
                return (client, opened.channel);
            }
        }
    };
    let mut clients = [0, 1].map(|shard| on_shard(shard, &mut open));
    for (_, channel) in &clients {
        let outcome = rooms.subscribe(*channel, "all").ask().send().unwrap().wait(PATIENCE).unwrap();
        assert_eq!(outcome.sent, 1);
    }
    let mut holder = ShardHolder::new(&broker);
    let api = Broker::start(Config { shards: 1, driver: support::driver(), ..Config::default() }).unwrap();
    let options = acting_as(&rooms);
    push_api::start(&api.handle(), true, broker.handle(), options).unwrap();
    let push = |to: &str, body: &[u8]| {
        let fields = format!("{}Content-Type: text/plain\r\nPush-To: {to}\r\n", authorized());
        ask(api.address(), "POST /api/push", &fields, body)
    };
    let ids = clients.each_ref().map(|(_, id)| id.get());
    holder.hold();
    // The API's part of the first shard's inbox is full.
    assert_eq!(push(&format!("channels={}", ids[0]), &[b'x'; 2000]).0, 202);
    let everybody = format!("process={}", rooms.id());
    let list = format!("channels={},{}", ids[1], ids[0]);
    for to in ["topic=all", "path=/", &everybody, &list] {
        for more in ["", ";outcome", ";outcome=nodes"] {
            let (status, head, body) = push(&format!("{to}{more}"), b"again");
            assert!(status == 429 && head.contains("\r\nretry-after: 1\r\n"), "{to}: {head}");
            assert!(body.contains("nothing was pushed"), "{body}");
        }
    }
    assert_eq!(push(&format!("channels={}", ids[1]), b"alone").0, 202);
    assert_eq!(recv(&mut clients[1].0), Message::text("alone"), "it has nothing of what was refused");
    holder.release();
    assert_eq!(recv(&mut clients[0].0).len(), 2000);
    let end = std::time::Instant::now() + PATIENCE;
    while push("topic=all", b"once").0 != 202 {
        assert!(std::time::Instant::now() < end, "there is room again");
    }
    for (client, _) in &mut clients {
        assert_eq!(recv(client), Message::text("once"));
    }
}
