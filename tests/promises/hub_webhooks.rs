//! A backend hears by signed requests what clients of the hub do, in order: one that is away for a while hears it once
//! it is back, by the same request, and what did not fit or was given up is counted and told by number. The receiver of
//! the operator's page takes what we sign, once, and nothing that we did not.

use crate::support;

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use support::daemon::{Daemon, TemporaryFile, pushring};
use support::{Client, PATIENCE, Patient, recv, send};
use tungstenite::client::IntoClientRequest;

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYo=";

fn daemon(port: u16, secret: &TemporaryFile, more: &[&str]) -> Daemon {
    let url = format!("http://127.0.0.1:{port}/told?by=us");
    let args = ["serve", "--hub", "--hub-open", "--hub-webhook-url", &url, "--hub-webhook-secret-file", secret.path()];
    Daemon::spawn(pushring(&[&args, more].concat()).args(["--listen", "127.0.0.1:0", "--hub-open-publish", "public.*"]))
}

fn connect(daemon: &Daemon) -> Client {
    let mut request = format!("ws://{}/hub", daemon.address).into_client_request().unwrap();
    request.headers_mut().insert("sec-websocket-protocol", "pushring.1".parse().unwrap());
    let mut client = tungstenite::client(request, Patient::new(daemon.stream())).unwrap().0;
    assert!(recv(&mut client).to_text().unwrap().starts_with("{\"pushring\":1"));
    client
}

/// A backend that a test answers for: each request, and where its answer's status goes.
fn backend() -> (u16, Receiver<(Request, Sender<u16>)>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (asked, requests) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let asked = asked.clone();
            std::thread::spawn(move || serve(stream.unwrap(), &asked));
        }
    });
    (port, requests)
}

struct Request {
    head: Vec<String>,
    body: String,
}

impl Request {
    fn field(&self, name: &str) -> &str {
        let of = |line: &'_ String| line.split_once(": ").is_some_and(|(own, _)| own.eq_ignore_ascii_case(name));
        self.head.iter().find(|line| of(line)).and_then(|line| line.split_once(": ")).unwrap().1
    }

    fn events(&self) -> (u64, Vec<Value>) {
        let body: Value = serde_json::from_str(&self.body).unwrap();
        (body["lost"].as_u64().unwrap(), body["events"].as_array().unwrap().clone())
    }

    fn is_signed(&self) -> bool {
        let key = BASE64.decode(&SECRET[6..]).unwrap();
        let mut mac = Hmac::<sha2::Sha256>::new_from_slice(&key).unwrap();
        mac.update(
            format!("{}.{}.{}", self.field("webhook-id"), self.field("webhook-timestamp"), self.body).as_bytes(),
        );
        self.field("webhook-signature") == format!("v1,{}", BASE64.encode(mac.finalize().into_bytes()))
    }
}

/// Serves the requests of one connection.
fn serve(mut stream: TcpStream, asked: &Sender<(Request, Sender<u16>)>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    loop {
        let lines = reader.by_ref().lines();
        let head: Vec<String> = lines.map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
        if head.is_empty() {
            return;
        }
        let mut request = Request { head, body: String::new() };
        let length: u64 = request.field("content-length").parse().unwrap();
        reader.by_ref().take(length).read_to_string(&mut request.body).unwrap();
        let (answer, answered) = channel();
        // The test is over.
        let Ok(()) = asked.send((request, answer)) else { return };
        let Ok(status) = answered.recv() else { return };
        if write!(stream, "HTTP/1.1 {status} x\r\nContent-Length: 0\r\n\r\n").is_err() {
            return;
        }
    }
}

fn name(event: &Value) -> &str {
    event["event"].as_str().unwrap()
}

#[test]
fn a_backend_that_was_away_hears_it_by_the_same_request() {
    let (port, requests) = backend();
    let secret = TemporaryFile::new("webhook-away", SECRET);
    let daemon = daemon(port, &secret, &[]);
    let mut client = connect(&daemon);
    let (first, answer) = requests.recv_timeout(PATIENCE).unwrap();
    assert!(first.head[0].starts_with("POST /told?by=us HTTP/1.1") && first.is_signed(), "{:?}", first.head);
    assert_eq!((first.events().0, name(&first.events().1[0])), (0, "opened"));
    // Meanwhile more happens; none of it waits for the backend.
    send(&mut client, "\u{1e}{\"subscribe\":\"public.x\",\"id\":1}");
    assert_eq!(recv(&mut client).to_text().unwrap(), "\u{1e}{\"id\":1,\"subscribed\":\"public.x\"}");
    send(&mut client, "hello");
    send(&mut client, tungstenite::Message::binary(vec![0, 255]));
    send(&mut client, "\u{1e}{\"unsubscribe\":\"public.x\",\"id\":2}");
    assert_eq!(recv(&mut client).to_text().unwrap(), "\u{1e}{\"id\":2,\"unsubscribed\":\"public.x\"}");
    client.close(None).unwrap();
    while client.read().is_ok() {}
    answer.send(503).unwrap();
    let (again, answer) = requests.recv_timeout(PATIENCE).unwrap();
    assert!(again.is_signed() && again.field("webhook-id") == first.field("webhook-id"));
    assert_eq!(again.body, first.body);
    answer.send(204).unwrap();
    let mut events = Vec::new();
    while events.len() < 5 {
        let (request, answer) = requests.recv_timeout(PATIENCE).unwrap();
        assert!(request.is_signed() && request.field("webhook-id") != first.field("webhook-id"));
        events.extend(request.events().1);
        answer.send(200).unwrap();
    }
    let names: Vec<&str> = events.iter().map(name).collect();
    assert_eq!(names, ["subscribed", "message", "message", "unsubscribed", "closed"]);
    assert_eq!((&events[1]["text"], &events[2]["base64"]), (&json!("hello"), &json!("AP8=")));
    assert_eq!(events[4]["by"], "client");
    daemon.signal("TERM");
    let (code, log) = daemon.wait();
    assert_eq!(code, Some(0), "{log}");
    assert!(!log.contains(&SECRET[6..]) && !log.contains("by=us"), "{log}");
}

#[test]
fn what_does_not_fit_is_counted_and_told() {
    let (port, requests) = backend();
    let secret = TemporaryFile::new("webhook-full", SECRET);
    let daemon =
        daemon(port, &secret, &["--hub-webhook-events-max", "2", "--hub-webhook-events", "message", "--metrics"]);
    let mut client = connect(&daemon);
    send(&mut client, "0");
    let (first, answer) = requests.recv_timeout(PATIENCE).unwrap();
    assert_eq!(first.events().1[0]["text"], "0");
    // Two wait, and for the others the client is told that they were not taken.
    for n in 1..=5 {
        send(&mut client, n.to_string());
    }
    for _ in 3..=5 {
        assert_eq!(recv(&mut client).to_text().unwrap(), "\u{1e}{\"error\":\"busy\"}");
    }
    // Operators see it while the backend has not answered.
    let metrics = daemon.get("/metrics:pushring:sys/", "");
    for line in ["pushring_webhook_events_lost_total 3", "pushring_webhook_events_waiting 2"] {
        assert!(metrics.contains(line), "{line}: {metrics}");
    }
    answer.send(200).unwrap();
    let (second, answer) = requests.recv_timeout(PATIENCE).unwrap();
    let (lost, events) = second.events();
    assert_eq!((lost, &events[0]["text"], &events[1]["text"]), (0, &json!("1"), &json!("2")), "these came before");
    answer.send(200).unwrap();
    send(&mut client, "6");
    let (third, answer) = requests.recv_timeout(PATIENCE).unwrap();
    assert_eq!((third.events().0, &third.events().1[0]["text"]), (3, &json!("6")), "in their place");
    let metrics = daemon.get("/metrics:pushring:sys/", "");
    for line in ["pushring_webhook_events_lost_total 3", "pushring_webhook_events_delivered_total 3"] {
        assert!(metrics.contains(line), "{line}: {metrics}");
    }
    answer.send(200).unwrap();
}

#[test]
fn whoever_says_much_makes_room_for_whoever_says_little() {
    let (port, requests) = backend();
    let secret = TemporaryFile::new("webhook-share", SECRET);
    let daemon = daemon(port, &secret, &["--hub-webhook-events-max", "4", "--hub-webhook-events", "message"]);
    let [mut loud, mut quiet] = [(); 2].map(|()| connect(&daemon));
    send(&mut loud, "0");
    let (first, answer) = requests.recv_timeout(PATIENCE).unwrap();
    assert_eq!(first.events().1[0]["text"], "0");
    for n in 1..=5 {
        send(&mut loud, n.to_string());
    }
    let busy = "\u{1e}{\"error\":\"busy\"}";
    assert_eq!(recv(&mut loud).to_text().unwrap(), busy, "four wait");
    send(&mut quiet, "hello");
    assert_eq!(recv(&mut loud).to_text().unwrap(), busy, "three wait");
    answer.send(200).unwrap();
    let (second, answer) = requests.recv_timeout(PATIENCE).unwrap();
    let (lost, events) = second.events();
    let texts: Vec<&str> = events.iter().map(|event| event["text"].as_str().unwrap()).collect();
    assert_eq!((lost, texts), (2, vec!["1", "2", "3", "hello"]));
    answer.send(200).unwrap();
}

#[test]
fn what_is_given_up_is_told_with_what_follows() {
    let (port, requests) = backend();
    let secret = TemporaryFile::new("webhook-up", SECRET);
    // Not a second's patience: the first pause is longer.
    let daemon = daemon(port, &secret, &["--hub-webhook-give-up", "1ms", "--hub-webhook-events", "message"]);
    let mut client = connect(&daemon);
    send(&mut client, "lost");
    let (first, answer) = requests.recv_timeout(PATIENCE).unwrap();
    assert_eq!(first.events().0, 0);
    answer.send(500).unwrap();
    send(&mut client, "heard");
    let (second, answer) = requests.recv_timeout(PATIENCE).unwrap();
    assert_eq!((second.events().0, &second.events().1[0]["text"]), (1, &json!("heard")));
    answer.send(200).unwrap();
}

/// It has taken the events, whatever else it says, or never ends to say: sent again they would come twice.
#[test]
fn a_backend_that_answers_200_and_goes_on_has_taken_them() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let secret = TemporaryFile::new("webhook-long", SECRET);
    let daemon = daemon(listener.local_addr().unwrap().port(), &secret, &["--hub-webhook-events", "message"]);
    let mut client = connect(&daemon);
    let framings = ["Content-Length: 10000000", "Content-Length: 7", "Transfer-Encoding: chunked"];
    let mut open = Vec::new();
    for (n, framing) in framings.into_iter().enumerate() {
        send(&mut client, n.to_string());
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let (mut request, mut part) = (Vec::new(), [0; 4096]);
        while !request.ends_with(b"]}") {
            let bytes = stream.read(&mut part).unwrap();
            request.extend_from_slice(&part[..bytes]);
        }
        let request = String::from_utf8(request).unwrap();
        let is_next = request.contains(r#"{"lost":0,"#) && request.matches(&format!(r#""text":"{n}""#)).count() == 1;
        assert!(is_next && request.matches("\"text\"").count() == 1, "{n}: {request}");
        write!(stream, "HTTP/1.1 200 OK\r\n{framing}\r\n\r\n").unwrap();
        if n == 0 {
            let mut stream = stream.try_clone().unwrap();
            std::thread::spawn(move || while stream.write_all(&[b'x'; 4096]).is_ok() {});
        }
        open.push(stream);
    }
}

#[test]
fn a_backend_that_does_not_answer_does_not_hold_up_the_end() {
    let (port, requests) = backend();
    let secret = TemporaryFile::new("webhook-end", SECRET);
    let daemon = daemon(port, &secret, &["--hub-webhook-events", "message"]);
    let mut client = connect(&daemon);
    // Several requests' worth of events, of which the first is never answered.
    send(&mut client, "first");
    let _unanswered = requests.recv_timeout(PATIENCE).unwrap();
    for n in 0..250 {
        send(&mut client, n.to_string());
    }
    // The hub has them all: it answers in order.
    send(&mut client, "\u{1e}{\"subscribe\":\"public.x\",\"id\":1}");
    assert_eq!(recv(&mut client).to_text().unwrap(), "\u{1e}{\"id\":1,\"subscribed\":\"public.x\"}");
    daemon.signal("TERM");
    let began = std::time::Instant::now();
    let (code, log) = daemon.wait();
    // Each request alone may take 10 s.
    assert!(code == Some(0) && began.elapsed() < std::time::Duration::from_secs(30), "{:?}: {log}", began.elapsed());
    assert!(log.contains("webhooks that were still waiting are lost") && log.contains("events=250"), "{log}");
}

/// The page's own receiver; killed when the test is over.
struct Python {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
    port: u16,
}

impl Python {
    fn start(secret: &TemporaryFile) -> Self {
        let page = include_str!("../../docs/OPERATIONS.md");
        let script = page.split("```python\n").find(|block| block.contains("webhook-signature")).unwrap();
        let script = TemporaryFile::new("receiver.py", script.split("\n```").next().unwrap());
        let mut child = Command::new("python3")
            .args([script.path(), secret.path(), "0"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let port = lines.next().unwrap().unwrap().parse().unwrap();
        Self { child, lines, port }
    }

    fn event(&mut self) -> Value {
        serde_json::from_str(&self.lines.next().unwrap().unwrap()).unwrap()
    }

    /// The status of a request that is signed by `signature`.
    fn status(&self, stamp: u64, signature: &str) -> u16 {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(
            stream,
            "POST / HTTP/1.0\r\nwebhook-id: msg_x\r\nwebhook-timestamp: {stamp}\r\nwebhook-signature: {signature}\r\n\
             Content-Length: 23\r\n\r\n{{\"lost\":0,\"events\":[7]}}"
        )
        .unwrap();
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).unwrap();
        line.split(' ').nth(1).unwrap().parse().unwrap()
    }
}

impl Drop for Python {
    fn drop(&mut self) {
        // It runs until it is killed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_receiver_of_the_page_takes_what_is_ours_alone() {
    let secret = TemporaryFile::new("webhook-page", SECRET);
    let mut python = Python::start(&secret);
    let daemon = daemon(python.port, &secret, &[]);
    let mut client = connect(&daemon);
    send(&mut client, "hello");
    assert_eq!(name(&python.event()), "opened");
    assert_eq!(python.event()["text"], "hello");
    let now_s = std::time::SystemTime::now().duration_since(std::time::SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let signed = |stamp: u64| {
        let key = BASE64.decode(&SECRET[6..]).unwrap();
        let mut mac = Hmac::<sha2::Sha256>::new_from_slice(&key).unwrap();
        mac.update(format!("msg_x.{stamp}.{{\"lost\":0,\"events\":[7]}}").as_bytes());
        format!("v1,{}", BASE64.encode(mac.finalize().into_bytes()))
    };
    assert_eq!(python.status(now_s, ""), 401);
    assert_eq!(python.status(now_s, &signed(now_s - 1)), 401);
    assert_eq!(python.status(now_s - 1000, &signed(now_s - 1000)), 401, "said again much later");
    for _ in 0..2 {
        assert_eq!(python.status(now_s, &signed(now_s)), 204);
    }
    assert_eq!(python.event(), json!(7));
    client.close(None).unwrap();
    assert_eq!(name(&python.event()), "closed", "and not the same again");
}
