//! Clients that come while a broker starts wait until its paths are bound, and are served then: none of them gets a 404
//! for a path that is about to be there, after which an event stream does not come back.

use crate::support;

use pushring::internals::gateway::HttpRule;
use pushring::{AttachOptions, Broker, Config, Event};
use std::io::{Read, Write};
use std::net::TcpStream;
use support::{PATIENCE, process};

#[test]
fn a_client_that_is_early_is_served() {
    let config = Config { shards: 2, driver: support::driver(), opens_later: true, ..Config::default() };
    let broker = Broker::start(config).unwrap();
    let handle = broker.handle();
    let mut early: Vec<TcpStream> = (0..8).map(|_| TcpStream::connect(broker.address()).unwrap()).collect();
    for stream in &mut early {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(b"GET /late:test:sys/ HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    }
    // Each answer ends a turn, and a turn begins with clients that wait.
    for _ in 0..3 {
        assert_eq!(handle.reports().iter().map(|report| report.stats.accepted).sum::<u64>(), 0);
    }
    let mut late = process(&broker, "late", AttachOptions::default());
    late.bind_http("/", HttpRule::default()).unwrap();
    handle.open().unwrap();
    for _ in 0..early.len() {
        let Ok(Some(Event::Http(request))) = late.recv_timeout(PATIENCE) else { panic!("it is asked") };
        late.respond(request.id, 200).body("here").send().unwrap();
    }
    for mut stream in early {
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("here"), "{answer}");
    }
    assert_eq!(handle.reports().iter().map(|report| report.stats.accepted).sum::<u64>(), 8);
}
