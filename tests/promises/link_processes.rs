//! A process in another program does what one in the broker's own does, with the same code: it binds, answers, pushes
//! and broadcasts over a link; messages of any size arrive whole and in order; it is told why it is refused.

#[allow(dead_code)]
use crate::chat;
use crate::link_support;
use crate::support;

use link_support::{Linked, Raw, attach, hello, refusal};
use pushring::internals::gateway::{Claims, mint};
use pushring::link::{self, Client, ClientOptions, ConnectError, Endpoint, LinkToken, RefusedCode};
use pushring::process_lib::http::{bind_http_path, bind_ws_path, close_ws, send_response, send_ws_push};
use pushring::process_lib::{self, Address, Exit, HttpServerRequest, WsMessageType, await_message, take_blob};
use pushring::{AttachOptions, Audience, Event, Message as Push};
use serde_json::json;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::Instant;
use support::{PATIENCE, connect, recv, recv_close, send};
use tungstenite::Message;

/// Echoes, answers, closes, panics and ends as its clients say.
fn puppet(our: Address) {
    bind_ws_path("/", false, false).unwrap();
    bind_http_path("/hello/:name", false, false).unwrap();
    assert!(bind_http_path("x".repeat(5000), false, false).is_err());
    loop {
        let message = await_message().unwrap();
        match HttpServerRequest::from_bytes(message.body()).unwrap() {
            HttpServerRequest::WebSocketPush { channel_id, message_type } => {
                let blob = take_blob().unwrap();
                match &blob.bytes[..] {
                    b"panic" => panic!("as it was told to"),
                    b"end" => return,
                    b"close" => close_ws(channel_id).unwrap(),
                    _ => match message_type {
                        WsMessageType::Text | WsMessageType::Binary => {
                            send_ws_push(our.node.clone(), channel_id, message_type, blob).unwrap();
                        }
                        _ => {}
                    },
                }
            }
            HttpServerRequest::Http(request) => {
                let name = request.url_params["name"].clone();
                let body = [name.as_bytes(), &take_blob().unwrap().bytes].concat();
                send_response(203_u16, Some([("x-by".to_string(), "link".to_string())].into()), body).unwrap();
            }
            HttpServerRequest::WebSocketOpen { .. } | HttpServerRequest::WebSocketClose(_) => {}
        }
    }
}

const PUPPET: &str = "/puppet:test:sys/";

fn http(linked: &Linked, request: &str) -> String {
    let mut stream = TcpStream::connect(linked.broker.address()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).unwrap();
    response
}

/// A puppet that has bound its paths when this returns.
fn start(linked: &Linked) -> std::thread::JoinHandle<Exit> {
    let process = process_lib::connect(&linked.path, "puppet:test:sys".parse().unwrap()).unwrap();
    assert_eq!(process.our().to_string(), "local.os@puppet:test:sys");
    let thread = process.spawn(puppet).unwrap();
    let hello = format!("GET {PUPPET}hello/you HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    while !http(linked, &hello).starts_with("HTTP/1.1 203") {
        std::thread::yield_now();
    }
    thread
}

#[test]
fn the_same_process_runs_over_a_link() {
    let linked = Linked::start("same", |_| {});
    let process = start(&linked);
    let mut client = connect(&linked.broker, PUPPET);
    send(&mut client, "hello");
    assert_eq!(recv(&mut client), Message::text("hello"));
    for bytes in [0, 1, 4096, 4097, 20_000, 1 << 20, 5 << 20] {
        send(&mut client, Message::binary(vec![bytes as u8; bytes]));
        assert_eq!(recv(&mut client), Message::binary(vec![bytes as u8; bytes]));
    }
    let request = format!(
        "POST {PUPPET}hello/ann HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: 1\r\n\r\n!"
    );
    let response = http(&linked, &request).to_lowercase();
    assert!(response.starts_with("http/1.1 203") && response.contains("x-by: link"), "{response}");
    assert!(response.ends_with("\r\n\r\nann!"), "{response}");
    send(&mut client, "close");
    assert!(matches!(client.read(), Ok(Message::Close(None))));

    let mut client = connect(&linked.broker, PUPPET);
    send(&mut client, "end");
    assert_eq!(recv_close(&mut client).0, 1001);
    assert_eq!(process.join().unwrap(), Exit::Returned);
    let again = start(&linked);
    let mut client = connect(&linked.broker, PUPPET);
    send(&mut client, "panic");
    assert_eq!(recv_close(&mut client).0, 1011);
    assert_eq!(again.join().unwrap(), Exit::Panicked("as it was told to".into()));
}

#[test]
fn the_chat_example_runs_over_a_link() {
    let linked = Linked::start("chat", |_| {});
    let id: process_lib::ProcessId = "chat:chat:template.os".parse().unwrap();
    let process = process_lib::connect(&linked.path, id).unwrap().spawn(chat::process::init).unwrap();
    let claims = Claims { username: "local.os".into(), subdomain: None, expiration: u64::MAX };
    let token = mint(&pushring::internals::gateway::Secret::new(support::SECRET).unwrap(), &claims);
    let register = serde_json::json!({
        "auth_token": token, "target_process": "chat:chat:template.os", "encrypted": false
    });
    let mut clients: Vec<_> = (0..3).map(|_| connect(&linked.broker, "/")).collect();
    for client in &mut clients {
        send(client, register.to_string());
        assert!(recv(client).to_text().unwrap().starts_with("{\"channel_id\":"));
    }
    send(&mut clients[0], r#"{"Send":{"author":"ann","content":"hi"}}"#);
    for client in &mut clients {
        assert_eq!(recv(client), Message::text(r#"{"author":"ann","content":"hi"}"#));
    }
    linked.stop();
    assert_eq!(process.join().unwrap(), Exit::Stopped);
}

#[test]
fn order_and_content_hold_under_load_in_both_directions() {
    const MESSAGES: u32 = 20_000;
    let linked = Linked::start("load", |_| {});
    let process = attach(&linked.path, "load");
    process.bind("/", Default::default()).unwrap();
    let mut clients: Vec<_> = (0..3).map(|_| connect(&linked.broker, "/load:test:sys/")).collect();
    std::thread::scope(|scope| {
        for client in &mut clients {
            scope.spawn(move || {
                let (mut sent, mut next) = (0, 0);
                while next < MESSAGES {
                    while sent < MESSAGES && sent < next + 1000 {
                        client.write(Message::binary(sent.to_le_bytes().to_vec())).unwrap();
                        sent += 1;
                    }
                    client.flush().unwrap();
                    while next < sent {
                        assert_eq!(recv(client), Message::binary(next.to_le_bytes().to_vec()));
                        next += 1;
                    }
                }
            });
        }
        let mut events = Vec::new();
        let mut echoed = 0;
        while echoed < 3 * MESSAGES {
            assert!(process.recv_batch(&mut events, PATIENCE).unwrap() > 0, "events come");
            for event in events.drain(..) {
                if let Event::Message { channel, payload, .. } = event {
                    process.push(channel, Push::binary(payload), None, None).unwrap();
                    echoed += 1;
                }
            }
        }
    });
}

#[test]
fn a_process_that_only_asks_need_not_take_anything() {
    let linked = Linked::start("asking", |_| {});
    let process = attach(&linked.path, "asks");
    for _ in 0..1000 {
        process.bind("/a", Default::default()).unwrap();
        process.unbind("/a").unwrap();
    }
    // Answers that are not acknowledged are kept, and 65,536 of them are a violation.
    let deadline = Instant::now() + PATIENCE;
    let kept = || linked.broker.handle().held_by_process().iter().map(|tenant| tenant.held.link).sum::<usize>();
    while kept() > 32 << 10 {
        assert!(Instant::now() < deadline, "{} bytes are kept", kept());
        thread::yield_now();
    }
}

#[test]
fn broadcasts_and_outcomes_come_back_under_their_number() {
    let linked = Linked::start("outcomes", |_| {});
    let process = attach(&linked.path, "many");
    process.bind("/a", Default::default()).unwrap();
    process.bind("/b", Default::default()).unwrap();
    let mut clients: Vec<_> =
        ["a", "a", "b"].map(|path| connect(&linked.broker, &format!("/many:test:sys/{path}"))).into();
    let mut channels = Vec::new();
    let mut events = Vec::new();
    while channels.len() < 3 {
        assert!(process.recv_batch(&mut events, PATIENCE).unwrap() > 0, "events come");
        for event in events.drain(..) {
            let Event::Opened(opened) = event else { panic!("{event:?}") };
            assert!(opened.source.ip().is_loopback() && !opened.registered);
            channels.push((opened.path.to_string(), opened.channel));
        }
    }
    channels.sort();
    let outcome = |ask| {
        let mut events = Vec::new();
        assert!(process.recv_batch(&mut events, PATIENCE).unwrap() > 0, "events come");
        match &events[..] {
            [Event::Outcome { ticket, outcome }] if *ticket == ask => *outcome,
            other => panic!("{other:?}"),
        }
    };
    process.push_many(Audience::Path("/a".into()), &[channels[0].1], Push::text("path"), None, Some(7)).unwrap();
    assert_eq!(outcome(7).sent, 1);
    process.push_many(Audience::Process, &[], Push::text("all"), None, Some(8)).unwrap();
    assert_eq!(outcome(8).sent, 3);
    let stranger = pushring::ChannelId::new(channels[0].1.get() ^ 0x8000_0000);
    process
        .push_many(Audience::Channels(vec![channels[2].1, stranger]), &[], Push::text("list"), None, Some(9))
        .unwrap();
    let counts = outcome(9);
    assert_eq!((counts.sent, counts.not_found), (1, 1));
    process.close(channels[2].1, 4000, "enough", Some(10)).unwrap();
    assert_eq!(outcome(10).closed, 1);
    // The one that was excepted hears but the second push.
    let first: Vec<_> = clients[..2].iter_mut().map(|client| recv(client).into_text().unwrap().to_string()).collect();
    for (client, first) in clients.iter_mut().zip(&first) {
        if first == "path" {
            assert_eq!(recv(client), Message::text("all"));
        }
    }
    assert_eq!(first.iter().filter(|text| *text == "path").count(), 1, "{first:?}");
    assert_eq!(recv(&mut clients[2]), Message::text("all"));
    assert_eq!(recv(&mut clients[2]), Message::text("list"));
    assert_eq!(recv_close(&mut clients[2]), (4000, "enough".to_string()));
}

#[test]
fn an_answer_does_not_wait_behind_events_that_nobody_acknowledges() {
    let linked = Linked::start("answers", |_| {});
    let attach = json!({"process": {"id": "p:test:sys"}});
    let hello =
        json!({"version_min": 1, "version_max": 1, "attach": attach, "window": {"frames": 4, "bytes": 1 << 20}});
    let (mut raw, welcome) = Raw::attach(&linked.path, &hello);
    assert_eq!(welcome["window"]["frames"], 4);
    raw.send(&json!({"bind": {"path": "/", "ask": 1}}), b"");
    assert_eq!(raw.next_said().unwrap().0, "done");
    let mut client = connect(&linked.broker, "/p:test:sys/");
    for n in 0..20 {
        send(&mut client, n.to_string());
    }
    let (_, opened, _) = raw.next_said().unwrap();
    for n in 0..2 {
        assert_eq!(raw.next_said().unwrap().2, n.to_string().as_bytes());
    }
    // The window is full: of the other messages none comes, and each answer does.
    let push = json!({"push": {"channel": opened["channel"], "kind": "text", "ask": 2}});
    raw.send(&push, b"hello");
    let (name, outcome, _) = raw.next_said().unwrap();
    assert_eq!((&*name, &outcome["ask"], &outcome["sent"]), ("outcome", &json!(2), &json!(1)));
    raw.send(&json!({"subscribe": {"channel": opened["channel"], "topic": "a", "ask": 3}}), b"");
    let (name, outcome, _) = raw.next_said().unwrap();
    assert_eq!((&*name, &outcome["ask"], &outcome["sent"]), ("outcome", &json!(3), &json!(1)));
    raw.send(&json!({"ack": {"received": 6}}), b"");
    for n in 2..6 {
        assert_eq!(raw.next_said().unwrap().2, n.to_string().as_bytes());
    }
    linked.stop();
}

#[test]
fn what_is_refused_is_refused_in_words() {
    let linked = Linked::start("refused", |_| {});
    let _process = attach(&linked.path, "one");
    let code = |bytes: &[u8]| refusal(&linked.path, bytes);
    let attach = |id: &str| serde_json::json!({"process": {"id": id}});
    let with = |change: fn(&mut serde_json::Value), id: &str| {
        let mut hello = serde_json::json!({"version_min": 1, "version_max": 1, "attach": attach(id)});
        change(&mut hello);
        link_support::frame(&serde_json::json!({"hello": hello}))
    };
    for (bytes, expected) in [
        (with(|_| (), "one:test:sys"), "taken"),
        (with(|_| (), "one:test"), "malformed"),
        (with(|h| (h["version_min"], h["version_max"]) = (2.into(), 9.into()), "two:test:sys"), "version"),
        (with(|h| h["version_max"] = 0.into(), "two:test:sys"), "version"),
        (with(|h| h["session"] = "0123".into(), "one:test:sys"), "session"),
        (with(|h| h["session"] = "0123".into(), "two:test:sys"), "session"),
        (with(|h| h["attach"] = serde_json::json!({"x": {}}), "two:test:sys"), "malformed"),
        (link_support::frame(&serde_json::json!({"beat": {}})), "malformed"),
        (b"\0\0\0\x04\0\0\0\0\xff\xff\xff\xff".to_vec(), "malformed"),
        (b"\xff\xff\xff\xff\0\0\0\0".to_vec(), "malformed"),
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), "malformed"),
    ] {
        assert_eq!(code(&bytes), expected, "{:?}", String::from_utf8_lossy(&bytes));
    }
    let taken = Client::connect(&linked.path, &"one:test:sys".parse().unwrap(), ClientOptions::default());
    assert!(matches!(taken, Err(ConnectError::Refused(refused)) if refused.code == RefusedCode::Taken));
    // An id that a process in the broker's own program has.
    let _inside = support::process(&linked.broker, "inside", AttachOptions::default());
    assert_eq!(code(&hello("inside:test:sys")), "taken");
}

#[test]
fn over_tcp_the_token_is_needed() {
    let token = LinkToken::new("a token that only this test knows").unwrap();
    let expected = token.clone();
    let linked = Linked::start("tcp", move |config| {
        config.tcp = Some(([127, 0, 0, 1], 0).into());
        config.token = Some(expected);
    });
    let address = linked.server.as_ref().unwrap().tcp_address().unwrap().to_string();
    let id = "tcp:test:sys".parse().unwrap();
    let wrong =
        Endpoint::Tcp { address: address.clone(), token: LinkToken::new("a token that somebody has guessed").unwrap() };
    let refused = Client::connect(wrong, &id, ClientOptions::default());
    assert!(matches!(refused, Err(ConnectError::Refused(refused)) if refused.code == RefusedCode::Token));
    let process = process_lib::connect(Endpoint::Tcp { address, token }, "puppet:test:sys".parse().unwrap()).unwrap();
    let thread = process.spawn(puppet).unwrap();
    let mut client = support::connect_once_bound(&linked.broker, PUPPET);
    send(&mut client, "hello");
    assert_eq!(recv(&mut client), Message::text("hello"));
    linked.stop();
    assert_eq!(thread.join().unwrap(), Exit::Stopped);

    let config = link::LinkConfig { tcp: Some(([127, 0, 0, 1], 0).into()), ..link::LinkConfig::default() };
    let broker = support::demo(|_| {});
    assert!(matches!(link::LinkServer::start(broker.handle(), config), Err(link::LinkStartError::NoToken)));
}
