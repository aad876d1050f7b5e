//! A process in the same program as its broker: binds, answers HTTP requests, hears answers, and ends as it should.

use crate::support;

use pushring::Broker;
use pushring::process_lib::http::{bind_http_path, bind_ws_path, close_ws, send_response, send_ws_push};
use pushring::process_lib::{
    self, Address, Exit, HttpServerAction, HttpServerError, HttpServerRequest, Request, SendErrorKind, WsMessageType,
    await_message, get_blob,
};
use pushring::process_lib::{MessageType, take_blob};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread::JoinHandle;
use support::{connect, demo, on_each_driver, recv, recv_close, send};
use tungstenite::Message;

const SERVER: (&str, &str, &str, &str) = ("our", "http_server", "distro", "sys");

/// Echoes, and does what its clients say.
fn puppet(our: Address) {
    bind_ws_path("/", false, false).unwrap();
    bind_http_path("/hello/:name", false, false).unwrap();
    loop {
        let message = await_message().unwrap();
        assert_eq!(message.source().process(), "http-server");
        match HttpServerRequest::from_bytes(message.body()).unwrap() {
            HttpServerRequest::WebSocketPush { channel_id, message_type } => {
                let blob = get_blob().unwrap();
                match &blob.bytes[..] {
                    b"panic" => panic!("as it was told to"),
                    b"end" => return,
                    b"close" => close_ws(channel_id).unwrap(),
                    b"ask" => {
                        send_ws_push(our.node.clone(), channel_id, WsMessageType::Text, asked(channel_id)).unwrap()
                    }
                    _ if message_type == WsMessageType::Text => {
                        send_ws_push("our".into(), channel_id, message_type, take_blob().unwrap()).unwrap();
                    }
                    _ => {}
                }
            }
            HttpServerRequest::Http(request) => {
                let name = &request.url_params["name"];
                let headers = [("x-method".to_string(), request.method.clone())].into();
                send_response(203_u16, Some(headers), [name.as_bytes(), &get_blob().unwrap().bytes].concat()).unwrap();
            }
            HttpServerRequest::WebSocketOpen { .. } | HttpServerRequest::WebSocketClose(_) => {}
        }
    }
}

/// The server's answers to a few actions, as one line.
fn asked(channel_id: u32) -> process_lib::LazyLoadBlob {
    let ask = |action: HttpServerAction, blob: Option<&str>| {
        let mut request = Request::to(SERVER).body(serde_json::to_vec(&action).unwrap());
        request.blob = blob.map(|text| process_lib::LazyLoadBlob { mime: None, bytes: text.into() });
        let answer = request.send_and_await_response(5).unwrap().unwrap();
        serde_json::from_slice::<Result<serde_json::Value, HttpServerError>>(answer.body()).unwrap()
    };
    let push = |channel_id| HttpServerAction::WebSocketPush { channel_id, message_type: WsMessageType::Text };
    assert_eq!(ask(push(channel_id), Some("first")), Ok(serde_json::Value::Null));
    assert_eq!(ask(push(channel_id), None), Err(HttpServerError::NoBlob));
    assert_eq!(ask(push(channel_id ^ 0x8000_0000), Some("x")), Err(HttpServerError::WsChannelNotFound));
    let many = HttpServerAction::WebSocketPushMany {
        channel_ids: vec![channel_id, channel_id ^ 0x8000_0000],
        message_type: WsMessageType::Text,
    };
    let counts = ask(many, Some("second")).unwrap();
    assert_eq!(counts["sent"].as_u64().unwrap() + counts["queued"].as_u64().unwrap(), 1);
    assert_eq!(counts["not_found"], 1);
    let forbidden = HttpServerAction::WebSocketExtPushOutgoing {
        channel_id,
        message_type: WsMessageType::Text,
        desired_reply_type: MessageType::Request,
    };
    assert_eq!(ask(forbidden, Some("x")), Err(HttpServerError::NoBlob));
    let elsewhere = Request::to(("our", "vfs", "distro", "sys")).body("x").send_and_await_response(5).unwrap();
    assert_eq!(elsewhere.unwrap_err().kind, SendErrorKind::Offline);
    process_lib::LazyLoadBlob { mime: None, bytes: b"asked".to_vec() }
}

/// A puppet on a broker.
fn start() -> (Broker, JoinHandle<Exit>) {
    let broker = demo(|_| {});
    let process = run(&broker);
    (broker, process)
}

/// A puppet that has bound its paths when this returns: an answer from it says so.
fn run(broker: &Broker) -> JoinHandle<Exit> {
    let id = "puppet:puppet:sys".parse().unwrap();
    let process = process_lib::spawn_on(&broker.handle(), id, puppet).unwrap();
    let hello = "GET /puppet:puppet:sys/hello/you HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    while !http(broker, hello).starts_with("HTTP/1.1 203") {
        std::thread::yield_now();
    }
    process
}

fn http(broker: &Broker, request: &str) -> String {
    let mut stream = TcpStream::connect(broker.address()).unwrap();
    stream.set_read_timeout(Some(support::PATIENCE)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).unwrap();
    response
}

#[test]
fn pushes_and_answers_go_both_ways() {
    on_each_driver(|_| {
        let (broker, _process) = start();
        let mut client = connect(&broker, "/puppet:puppet:sys/");
        send(&mut client, "hello");
        assert_eq!(recv(&mut client), Message::text("hello"));
        send(&mut client, "ask");
        for expected in ["first", "second", "asked"] {
            assert_eq!(recv(&mut client), Message::text(expected));
        }
        send(&mut client, "close");
        assert!(matches!(client.read(), Ok(Message::Close(None))));
    });
}

#[test]
fn http_requests_are_answered_by_the_process() {
    on_each_driver(|_| {
        let (broker, _process) = start();
        let request = "POST /puppet:puppet:sys/hello/ann HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
                       content-length: 1\r\n\r\n!";
        let response = http(&broker, request).to_lowercase();
        assert!(response.starts_with("http/1.1 203"), "{response}");
        assert!(response.contains("\r\nx-method: post\r\n") && response.ends_with("\r\n\r\nann!"), "{response}");
    });
}

#[test]
fn a_panic_closes_its_own_channels_with_1011_and_nobody_elses() {
    on_each_driver(|_| {
        let (broker, process) = start();
        let mut echo = connect(&broker, "/echo:pushring:sys/");
        let mut clients = [connect(&broker, "/puppet:puppet:sys/"), connect(&broker, "/puppet:puppet:sys/")];
        for client in &mut clients {
            send(client, "hello");
            assert_eq!(recv(client), Message::text("hello"));
        }
        send(&mut clients[0], "panic");
        for client in &mut clients {
            assert_eq!(recv_close(client).0, 1011);
        }
        assert_eq!(process.join().unwrap(), Exit::Panicked("as it was told to".into()));
        send(&mut echo, "still there");
        assert_eq!(recv(&mut echo), Message::text("still there"));
    });
}

#[test]
fn a_process_that_ends_closes_its_channels_with_1001_and_its_id_is_free_again() {
    on_each_driver(|_| {
        let (broker, process) = start();
        let mut client = connect(&broker, "/puppet:puppet:sys/");
        let id = "puppet:puppet:sys".parse().unwrap();
        assert!(process_lib::spawn_on(&broker.handle(), id, puppet).is_err(), "its id is taken");
        send(&mut client, "end");
        assert_eq!(recv_close(&mut client).0, 1001);
        assert_eq!(process.join().unwrap(), Exit::Returned);
        let again = run(&broker);
        drop(broker);
        assert_eq!(again.join().unwrap(), Exit::Stopped);
    });
}

#[test]
fn a_stopped_broker_stops_its_processes() {
    on_each_driver(|_| {
        let (broker, process) = start();
        broker.handle().stop(std::time::Duration::ZERO);
        assert_eq!(process.join().unwrap(), Exit::Stopped);
        broker.wait().unwrap();
    });
}
