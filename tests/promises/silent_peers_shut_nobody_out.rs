//! A peer that connects to a link and stays silent, or lies about its identity, keeps no other out.

use crate::link_support::{Linked, Raw, attach, frame};
use crate::support::PATIENCE;
use pushring::link::{Client, ClientOptions, Endpoint, LinkToken};
use serde_json::json;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;

const TOKEN: &str = "a token of the link";

fn linked(name: &str) -> Linked {
    Linked::start(name, |config| {
        config.tcp = Some(([127, 0, 0, 1], 0).into());
        config.token = Some(LinkToken::new(TOKEN).unwrap());
    })
}

#[test]
fn silent_connections_keep_nobody_out() {
    let linked = linked("silent");
    let address = linked.server.as_ref().unwrap().tcp_address().unwrap();
    let mut silent: Vec<TcpStream> = (0..64).map(|_| TcpStream::connect(address).unwrap()).collect();
    let silent_unix: Vec<UnixStream> = (0..64).map(|_| UnixStream::connect(&linked.path).unwrap()).collect();
    // The oldest were closed to make room; the others may still speak.
    for stream in &mut silent[..60] {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        assert!(matches!(stream.read(&mut [0]), Ok(0) | Err(_)));
    }
    let endpoint = Endpoint::Tcp { address: address.to_string(), token: LinkToken::new(TOKEN).unwrap() };
    let over_tcp = Client::connect(endpoint, &"tcp:test:sys".parse().unwrap(), ClientOptions::default()).unwrap();
    let over_unix = attach(&linked.path, "unix");
    drop((over_tcp, over_unix, silent, silent_unix));
    linked.stop();
}

#[test]
fn a_session_is_asked_for_by_a_few_at_a_time() {
    let linked = linked("crowd");
    let hello = json!({"version_min": 1, "version_max": 1, "attach": {"process": {"id": "one:test:sys"}}});
    let (_first, welcome) = Raw::attach(&linked.path, &hello);
    let mut again = hello.clone();
    again["session"] = welcome["session"].clone();
    // Each takes the session from the one before, which is told so or cut off; none is left waiting.
    let mut crowd: Vec<Raw> = (0..50).map(|_| Raw::connect(&linked.path)).collect();
    for raw in &mut crowd {
        // Some have been sent away as the oldest of too many.
        let _ = raw.0.write_all(&frame(&json!({"hello": again})));
    }
    let welcomed = crowd.iter_mut().filter_map(Raw::next).filter(|(name, ..)| name == "welcome").count();
    assert!(welcomed >= 1, "nobody has got it");
    drop(crowd);
    linked.stop();
}
