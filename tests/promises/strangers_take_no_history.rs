//! One client of the open hub cannot displace the events that another client of an event stream has missed.

use crate::support;

use pushring::internals::gateway::{Grant, HubAccess, patterns};
use pushring::internals::hub;
use pushring::internals::push_api::{self, ApiOptions, ApiToken};
use pushring::{Broker, TopicQuery};
use serde_json::json;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};
use support::{PATIENCE, broker};

/// Topics of one stream.
const TOPICS: usize = 100;

/// So many strangers leave more audiences than are remembered (4,096 of a process on a shard).
const STRANGERS: usize = 45;

fn open_hub() -> Broker {
    let broker = broker(support::driver(), |config| {
        let grant = Grant { may_subscribe: patterns(&["public.*".to_owned()]).unwrap(), ..Grant::default() };
        config.shards = 1;
        config.settings.hub = Some(Arc::new(HubAccess {
            secret: None,
            audience: "pushring-hub".into(),
            open: Some(Arc::new(grant)),
            authority: None,
            lifetime_max_s: None,
        }));
    });
    hub::start_with(&broker.handle(), None, true).unwrap();
    let token = ApiToken::new("a token of the tests").unwrap();
    let options = ApiOptions { token, process: Some(hub::PROCESS.parse().unwrap()), keys: Default::default() };
    push_api::start(&broker.handle(), false, broker.handle(), options).unwrap();
    broker
}

fn connect_from(from: [u8; 4], to: SocketAddr) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((from, 0)).into()).unwrap();
    socket.connect(&to.into()).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// An event stream, and the id that its client heard last.
struct Stream {
    lines: BufReader<TcpStream>,
    last: String,
}

impl Stream {
    fn open(broker: &Broker, from: [u8; 4], topics: &[String], last: &str) -> Self {
        let address = broker.address();
        let mut stream = connect_from(from, address);
        let query: Vec<String> = topics.iter().map(|topic| format!("topic={topic}")).collect();
        let last = if last.is_empty() { String::new() } else { format!("Last-Event-ID: {last}\r\n") };
        let head = format!(
            "GET /hub?{} HTTP/1.1\r\nHost: {address}\r\nAccept: text/event-stream\r\n{last}\r\n",
            query.join("&")
        );
        stream.write_all(head.as_bytes()).unwrap();
        let mut stream = Self { lines: BufReader::new(stream), last: String::new() };
        let head = stream.block("\r\n\r\n");
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        stream
    }

    fn block(&mut self, end: &str) -> String {
        let mut text = String::new();
        while !text.ends_with(end) {
            assert!(self.lines.read_line(&mut text).unwrap() > 0, "the stream has ended: {text}");
        }
        text
    }

    /// The next event.
    fn next(&mut self) -> String {
        let event = loop {
            let event = self.block("\n\n");
            if event.contains("data: ") {
                break event;
            }
        };
        if let Some(id) = event.lines().find_map(|line| line.strip_prefix("id: ")) {
            self.last = id.to_owned();
        }
        event
    }
}

/// Publishes to a topic, and waits for the answer.
fn publish(broker: &Broker, topic: &str, text: &str) {
    let body = json!({"to": {"topic": topic}, "text": text, "outcome": true}).to_string();
    let mut client = TcpStream::connect(broker.address()).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(
        client,
        "POST /push:pushring:sys/api/push HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer a token of the tests\r\n\
         Content-Type: application/json\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        broker.address(),
        body.len()
    )
    .unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

/// Waits until so many channels are subscribed to a topic.
fn wait_subscribed(broker: &Broker, topic: &str, count: usize) {
    let deadline = Instant::now() + PATIENCE;
    let process = hub::PROCESS.parse().unwrap();
    let query = TopicQuery { process, prefix: topic.to_owned(), after: None, limit: None };
    while broker.handle().topics(&query).first().map_or(0, |report| report.subscribers) < count {
        assert!(Instant::now() < deadline, "nobody is subscribed to {topic}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until at most so many connections are left.
fn wait_connections(broker: &Broker, most: usize) {
    let deadline = Instant::now() + PATIENCE;
    while broker.handle().reports().iter().map(|report| report.connections).sum::<usize>() > most {
        assert!(Instant::now() < deadline, "who left is still counted");
        std::thread::sleep(Duration::from_millis(5));
    }
}

const OWNER: [u8; 4] = [127, 0, 0, 7];
const STRANGER: [u8; 4] = [127, 0, 0, 66];

#[test]
fn who_leaves_thousands_of_topics_costs_nobody_else_what_it_missed() {
    let broker = open_hub();
    let topics = ["public.mine".to_owned()];
    let mut mine = Stream::open(&broker, OWNER, &topics, "");
    assert!(mine.next().contains("event: channel"));
    wait_subscribed(&broker, "public.mine", 1);
    publish(&broker, "public.mine", "heard");
    assert!(mine.next().contains("data: heard"));
    let last = mine.last.clone();
    drop(mine);
    wait_connections(&broker, 0);
    publish(&broker, "public.mine", "missed");
    for stranger in 0..STRANGERS {
        // It listens to what is the owner's, too.
        let mut topics: Vec<String> = (0..TOPICS - 1).map(|at| format!("public.{stranger}.{at}")).collect();
        topics.push("public.mine".to_owned());
        let mut stream = Stream::open(&broker, STRANGER, &topics, "");
        assert!(stream.next().contains("event: channel"));
        wait_subscribed(&broker, &format!("public.{stranger}.{}", TOPICS - 2), 1);
        drop(stream);
        wait_connections(&broker, 0);
    }
    publish(&broker, "public.mine", "missed, too");
    let mut back = Stream::open(&broker, OWNER, &topics, &last);
    assert!(back.next().contains("event: channel"));
    for text in ["missed", "missed, too"] {
        let event = back.next();
        assert!(event.contains(&format!("data: {text}\n")), "{event}");
    }
}
