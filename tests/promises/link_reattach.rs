//! A process that loses its connection loses nothing: its channels live on, clients' messages wait, and if it returns
//! in time it is told the live channels and then what happened, in order. After the grace clients get 1012.

use crate::link_support;
use crate::support;

use link_support::{Cutter, Done, Linked, Raw, attach, refusal};
use pushring::node::HttpServerAction;
use pushring::process_lib::http::{bind_ws_path, send_ws_push};
use pushring::process_lib::{self, Address, Exit, HttpServerRequest, Request, WsMessageType, await_message, take_blob};
use pushring::{Event, Message as Push};
use serde_json::{Value, json};
use std::thread;
use std::time::Duration;
use support::{PATIENCE, connect, recv, recv_close, send};
use tungstenite::Message;

fn hello(name: &str) -> Value {
    json!({"version_min": 1, "version_max": 1, "attach": {"process": {"id": format!("{name}:test:sys")}}})
}

/// Binds `/` and waits until that is so.
fn bind(raw: &mut Raw) {
    raw.send(&json!({"bind": {"path": "/", "ask": 1}}), b"");
    assert_eq!(raw.next_said().unwrap().0, "done");
}

fn ack(raw: &mut Raw, received: u64) {
    raw.send(&json!({"ack": {"received": received}}), b"");
}

#[test]
fn a_successor_gets_the_live_channels_then_what_waits() {
    let linked = Linked::start("successor", |_| {});
    let (mut raw, welcome) = Raw::attach(&linked.path, &hello("p"));
    assert_eq!((&welcome["live"], &welcome["received"], &welcome["acknowledged"]), (&json!(0), &json!(0), &json!(0)));
    bind(&mut raw);
    let mut first = connect(&linked.broker, "/p:test:sys/");
    let opened = raw.next_said().unwrap();
    let channel = opened.1["channel"].clone();
    send(&mut first, "seen");
    assert_eq!(raw.next_said().unwrap().2, b"seen");
    // `done`, `opened` and `seen`; what comes from now on is not acknowledged.
    ack(&mut raw, 3);
    send(&mut first, "not acknowledged");
    assert_eq!(raw.next_said().unwrap().2, b"not acknowledged");
    drop(raw);

    send(&mut first, "sent while nobody was there");
    let mut second = connect(&linked.broker, "/p:test:sys/");
    send(&mut second, "from a client that came meanwhile");
    second.close(None).unwrap();

    let (mut raw, welcome) = Raw::attach_again(&linked.path, &hello("p"));
    assert_eq!((&welcome["live"], &welcome["received"], &welcome["acknowledged"]), (&json!(1), &json!(1), &json!(3)));
    let live = raw.next_said().unwrap();
    assert_eq!(live.0, "live");
    assert_eq!((&live.1["channels"][0]["channel"], &live.1["channels"][0]["path"]), (&channel, &json!("/")));
    assert!(live.1["channels"][0]["source"].as_str().unwrap().starts_with("127.0.0.1:"));
    let mut next = || raw.next_said().unwrap();
    let mut of_first = Vec::new();
    let mut of_second = Vec::new();
    while of_first.len() < 2 || of_second.len() < 3 {
        let (name, fields, blob) = next();
        let what = if name == "message" { String::from_utf8(blob).unwrap() } else { name };
        if fields["channel"] == channel { of_first.push(what) } else { of_second.push(what) }
    }
    assert_eq!(of_first, ["not acknowledged", "sent while nobody was there"]);
    assert_eq!(of_second, ["opened", "from a client that came meanwhile", "closed"]);
    // Its paths are bound, and it pushes to the channel that it was told of.
    raw.send(&json!({"push": {"channel": channel, "kind": "text"}}), b"from the successor");
    assert_eq!(recv(&mut first), Message::text("from the successor"));
    connect(&linked.broker, "/p:test:sys/");
}

#[test]
fn who_knows_the_session_takes_it_over_and_who_does_not_waits_for_its_end() {
    let linked = Linked::start("session", |_| {});
    let (mut old, welcome) = Raw::attach(&linked.path, &hello("p"));
    bind(&mut old);
    let code = |hello: &Value| refusal(&linked.path, &link_support::frame(&json!({"hello": hello})));
    assert_eq!(code(&hello("p")), "taken");
    let mut resume = hello("p");
    resume["session"] = welcome["session"].clone();
    resume["received"] = json!(1);
    let (mut new, again) = Raw::attach(&linked.path, &resume);
    assert_eq!((&again["session"], &again["acknowledged"]), (&welcome["session"], &json!(1)));
    assert!(old.next_said().is_none_or(|(name, ..)| name == "bye"), "the old connection is over");
    let mut client = connect(&linked.broker, "/p:test:sys/");
    send(&mut client, "hello");
    assert_eq!(new.next_said().unwrap().0, "opened");
    assert_eq!(new.next_said().unwrap().2, b"hello");
    // Acknowledging a frame that was never sent ends the session.
    drop(new);
    resume["received"] = json!(100);
    assert_eq!(code(&resume), "malformed");
    assert_eq!(recv_close(&mut client).0, 1011);

    // A successor without the secret takes what is detached, and its predecessor has lost it.
    let (raw, welcome) = Raw::attach_again(&linked.path, &hello("p"));
    drop(raw);
    let (_successor, other) = Raw::attach_again(&linked.path, &hello("p"));
    assert_ne!(welcome["session"], other["session"]);
    resume["session"] = welcome["session"].clone();
    resume["received"] = json!(0);
    assert_eq!(code(&resume), "session");
}

#[test]
fn after_the_grace_clients_get_1012_and_the_id_is_free() {
    let linked = Linked::start("grace", |config| config.owner_grace = Duration::from_millis(300));
    let (mut raw, welcome) = Raw::attach(&linked.path, &hello("p"));
    assert_eq!(welcome["owner_grace_ms"], 300);
    bind(&mut raw);
    let mut client = connect(&linked.broker, "/p:test:sys/");
    drop(raw);
    assert_eq!(recv_close(&mut client).0, 1012);
    let mut resume = hello("p");
    resume["session"] = welcome["session"].clone();
    assert_eq!(refusal(&linked.path, &link_support::frame(&json!({"hello": resume}))), "session");
    let (_raw, welcome) = Raw::attach_again(&linked.path, &hello("p"));
    assert_eq!((&welcome["live"], &welcome["received"]), (&json!(0), &json!(0)));
    assert!(support::try_connect(&linked.broker, "/p:test:sys/").is_err(), "its paths went with it");
}

#[test]
fn a_bye_ends_at_once() {
    for (failed, code) in [(false, 1001), (true, 1011)] {
        let linked = Linked::start(&format!("bye-{code}"), |config| config.owner_grace = Duration::from_secs(3600));
        let (mut raw, _) = Raw::attach(&linked.path, &hello("p"));
        bind(&mut raw);
        let mut client = connect(&linked.broker, "/p:test:sys/");
        raw.send(&json!({"bye": {"failed": failed}}), b"");
        assert_eq!(recv_close(&mut client).0, code);
        // The next one need not wait.
        Raw::attach(&linked.path, &hello("p"));
    }
}

#[test]
fn a_successor_is_told_what_it_wants_and_its_policy_holds() {
    let linked = Linked::start("wishes", |_| {});
    let hello = |policy: &str, wants: bool| {
        let mut hello = hello("p");
        let process = &mut hello["attach"]["process"];
        (process["policy"], process["wants_control"], process["wants_topics"]) =
            (json!(policy), json!(wants), json!(wants));
        hello
    };
    let (mut raw, _) = Raw::attach(&linked.path, &hello("close", false));
    bind(&mut raw);
    let mut client = connect(&linked.broker, "/p:test:sys/");
    let channel = raw.next_said().unwrap().1["channel"].clone();
    ack(&mut raw, 2);
    drop(raw);
    let (mut raw, _) = Raw::attach_again(&linked.path, &hello("drop_newest", true));
    assert_eq!(raw.next_said().unwrap().0, "live");
    send(&mut client, Message::Ping("are you there".into()));
    let (name, fields, blob) = raw.next_said().unwrap();
    assert_eq!((name.as_str(), &fields["kind"], &*blob), ("control", &json!("ping"), &b"are you there"[..]));
    raw.send(&json!({"subscribe": {"channel": channel, "topic": "room"}}), b"");
    assert_eq!(raw.next_said().unwrap().0, "joined");
    // The client reads no more.
    let blob = vec![7; 256 << 10];
    let outcome = loop {
        raw.send(&json!({"push": {"channel": channel, "kind": "binary", "ask": 7}}), &blob);
        let (name, outcome, _) = raw.next_said().unwrap();
        assert_eq!(name, "outcome");
        if outcome["dropped"] != 0 || outcome["closed"] != 0 {
            break outcome;
        }
    };
    assert_eq!((&outcome["dropped"], &outcome["closed"]), (&json!(1), &json!(0)));
    // And back.
    drop(raw);
    let (mut raw, _) = Raw::attach_again(&linked.path, &hello("close", false));
    let mut other = connect(&linked.broker, "/p:test:sys/");
    send(&mut other, Message::Ping("nobody hears it".into()));
    send(&mut other, "a message");
    loop {
        let (name, _, blob) = raw.next_said().unwrap();
        assert_ne!(blob, b"nobody hears it");
        if name == "message" {
            break;
        }
    }
}

#[test]
fn what_a_predecessor_asked_answers_no_question_of_its_successor() {
    let linked = Linked::start("asked-before", |_| {});
    let (mut raw, _) = Raw::attach(&linked.path, &hello("p"));
    // As the first questions of a process would be numbered that counted from one.
    for number in 1..=3_u64 {
        raw.send(&json!({"bind": {"path": "/", "ask": (1 << 63) | number}}), b"");
        assert_eq!(raw.next_said().unwrap().0, "done");
        raw.send(&json!({"push": {"channel": 1, "kind": "text", "ask": number}}), b"to nobody");
        let (_, outcome, _) = raw.next_said().unwrap();
        assert_eq!(outcome["not_found"], 1);
    }
    // It acknowledges none of these answers: they come to its successor.
    let mut client = connect(&linked.broker, "/p:test:sys/");
    drop(raw);
    let process = loop {
        match process_lib::connect(&linked.path, "p:test:sys".parse().unwrap()) {
            Ok(process) => break process,
            Err(_) => thread::yield_now(),
        }
    };
    let successor = process.spawn(|_| {
        let (path, message_type, except) = (None, WsMessageType::Text, Vec::new());
        let broadcast = HttpServerAction::WebSocketBroadcast { path, message_type, except };
        let request = Request::to(("our", "http-server", "distro", "sys"));
        let request = request.body(serde_json::to_vec(&broadcast).unwrap()).blob_bytes("to somebody");
        let answer = request.send_and_await_response(5).unwrap().unwrap();
        let counts = &serde_json::from_slice::<Value>(answer.body()).unwrap()["Ok"];
        assert_eq!((&counts["sent"], &counts["not_found"]), (&json!(1), &json!(0)), "{counts}");
        bind_ws_path("/:a".repeat(17), false, false).unwrap_err();
    });
    assert_eq!(recv(&mut client), Message::text("to somebody"));
    assert_eq!(successor.unwrap().join().unwrap(), Exit::Returned);
}

#[test]
fn http_requests_that_waited_are_answered_by_the_successor_or_time_out() {
    use std::io::{Read, Write};
    let linked = Linked::start("http", |_| {});
    let (mut raw, _) = Raw::attach(&linked.path, &hello("p"));
    raw.send(&json!({"bind_http": {"path": "/x", "ask": 1}}), b"");
    assert_eq!(raw.next_said().unwrap().0, "done");
    drop(raw);
    let mut client = std::net::TcpStream::connect(linked.broker.address()).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.write_all(b"GET /p:test:sys/x?q=1 HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").unwrap();
    let (mut raw, _) = Raw::attach_again(&linked.path, &hello("p"));
    // Its answer to the bind was not acknowledged.
    assert_eq!(raw.next_said().unwrap().0, "done");
    let (name, fields, _) = raw.next_said().unwrap();
    assert_eq!((name.as_str(), &fields["method"], &fields["query_params"]["q"]), ("http", &json!("GET"), &json!("1")));
    let respond = json!({"respond": {"request": fields["request"], "status": 200, "headers": [["x-a", "b"]]}});
    raw.send(&respond, b"late but there");
    let mut response = String::new();
    client.read_to_string(&mut response).unwrap();
    assert!(response.starts_with("HTTP/1.1 200") && response.ends_with("late but there"), "{response}");
    assert!(response.contains("x-a: b"), "{response}");
}

#[test]
fn a_link_that_is_cut_again_and_again_loses_and_doubles_nothing() {
    const MESSAGES: u32 = 30_000;
    let linked = Linked::start("cut", |_| {});
    let cutter = Cutter::start(&linked);
    let process = attach(&cutter.path, "p");
    process.bind("/", Default::default()).unwrap();
    let mut client = connect(&linked.broker, "/p:test:sys/");
    thread::scope(|scope| {
        let done = Done::default();
        let (cutter, is_done) = (&cutter, done.0.clone());
        scope.spawn(move || cutter.cut_until(&is_done));
        scope.spawn(|| {
            let mut events = Vec::new();
            let mut echoed = 0;
            while echoed < MESSAGES {
                assert!(process.recv_batch(&mut events, PATIENCE).unwrap() > 0, "events come");
                for event in events.drain(..) {
                    match event {
                        Event::Opened(_) => {}
                        Event::Message { channel, payload, .. } => {
                            process.push(channel, Push::binary(payload), None, None).unwrap();
                            echoed += 1;
                        }
                        other => panic!("{other:?}"),
                    }
                }
            }
        });
        link_support::exchange(&mut client, MESSAGES);
    });
    // And it ends as cleanly as any.
    drop(process);
    assert!([1001, 1012].contains(&recv_close(&mut client).0));
}

/// Counts what a client sends, and tells it the count.
fn counter(our: Address) {
    bind_ws_path("/", false, false).unwrap();
    let mut count = 0;
    loop {
        let message = await_message().unwrap();
        if let Ok(HttpServerRequest::WebSocketPush { channel_id, message_type: WsMessageType::Text }) =
            HttpServerRequest::from_bytes(message.body())
        {
            count += 1;
            let mut blob = take_blob().unwrap();
            blob.bytes = count.to_string().into_bytes();
            send_ws_push(our.node.clone(), channel_id, WsMessageType::Text, blob).unwrap();
        }
    }
}

#[test]
fn a_process_of_the_library_comes_back_by_itself_and_ends_when_it_cannot() {
    let linked = Linked::start("library", |config| config.owner_grace = Duration::from_millis(2500));
    let cutter = Cutter::start(&linked);
    let process = process_lib::connect(&cutter.path, "count:test:sys".parse().unwrap()).unwrap();
    let thread = process.spawn(counter).unwrap();
    let mut client = support::connect_once_bound(&linked.broker, "/count:test:sys/");
    for count in 1..20 {
        send(&mut client, "x");
        if count % 5 == 0 {
            assert!(cutter.cut());
        }
        assert_eq!(recv(&mut client), Message::text(count.to_string()), "its state is still there");
    }
    // The way to the broker is gone for good.
    std::fs::remove_file(&cutter.path).unwrap();
    cutter.cut();
    assert_eq!(recv_close(&mut client).0, 1012);
    assert_eq!(thread.join().unwrap(), Exit::Stopped);
}

#[test]
fn a_successor_in_the_library_is_told_its_channels_as_if_they_were_opened_now() {
    let linked = Linked::start("told", |_| {});
    let (mut raw, _) = Raw::attach(&linked.path, &hello("p"));
    bind(&mut raw);
    let mut clients: Vec<_> = (0..70).map(|_| connect(&linked.broker, "/p:test:sys/")).collect();
    for _ in 0..70 {
        assert_eq!(raw.next_said().unwrap().0, "opened");
    }
    ack(&mut raw, 71);
    drop(raw);
    send(&mut clients[0], "waiting");
    let process = loop {
        match pushring::link::Client::connect(&linked.path, &"p:test:sys".parse().unwrap(), Default::default()) {
            Ok(process) => break process,
            Err(_) => thread::yield_now(),
        }
    };
    let mut events = Vec::new();
    while events.len() < 71 {
        assert!(process.recv_batch(&mut events, PATIENCE).unwrap() > 0, "events come");
    }
    let opened: std::collections::BTreeSet<_> = events[..70]
        .iter()
        .map(|event| match event {
            Event::Opened(opened) => opened.channel,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(opened.len(), 70);
    assert!(matches!(&events[70], Event::Message { channel, .. } if opened.contains(channel)));
    // Acknowledgements go on where they were, so that its own successor is told the same.
    drop(process);
    assert_eq!(recv_close(&mut clients[1]).0, 1001);
}
