//! A node speaks with NATS over TLS where it is told to, shows it who it is, and trusts nobody else; and it leaves a
//! server of a cluster that is about to stop for another one, and is there again within seconds.

use super::fleet::{Node, topic, wait_for};
use pushring::fleet::{Credentials, Name, Options, probe};
use std::time::{Duration, Instant};

use crate::support::daemon::TemporaryFile;
use crate::support::nats::Nats;
use crate::support::{PATIENCE, free_port, tls};

/// A user of NATS, as its documentation has it.
const NKEY: (&str, &str) = (
    "UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4",
    "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY",
);

#[test]
fn nats_is_spoken_with_over_tls_and_told_who_it_is() {
    let pair = tls::pair();
    let chain = TemporaryFile::new("fleet-chain.pem", &pair.chain);
    let key = TemporaryFile::new("fleet-key.pem", &pair.key);
    let stranger = TemporaryFile::new("fleet-stranger.pem", &tls::make(&["127.0.0.1"]).chain);
    let settings = format!(
        "tls {{ cert_file: \"{}\", key_file: \"{}\" }}\nauthorization {{ users = [ {{ nkey: {} }} ] }}",
        chain.path(),
        key.path(),
        NKEY.0
    );
    let Some(nats) = Nats::start(&settings) else { return };
    let options = |name: &str, ca: &TemporaryFile, credentials: &str| Options {
        servers: vec![nats.url().replace("nats://", "tls://")],
        ca_file: Some(ca.path().into()),
        credentials: Some(Credentials::new(credentials).unwrap()),
        ..Options::new(Name::new(name).unwrap())
    };
    // One attempt has two seconds, which a busy machine may need for other things.
    let since = Instant::now();
    let probed = loop {
        match probe(&options("a", &chain, NKEY.1)) {
            Ok(probed) => break probed,
            Err(error) => assert!(since.elapsed() < PATIENCE, "{error}"),
        }
    };
    assert_eq!(probed.refused, 0);
    assert!(probe(&options("a", &stranger, NKEY.1)).is_err(), "another certificate is not trusted");
    assert!(probe(&options("a", &chain, "user:password")).is_err(), "it is nobody else");
    let (a, mut b) = (Node::with(options("a", &chain, NKEY.1)), Node::with(options("b", &chain, NKEY.1)));
    a.joined(1);
    b.joined(1);
    b.subscribe("room");
    a.send(&topic("room"), "over TLS");
    assert_eq!(b.recv(), "over TLS");
}

#[test]
fn a_server_that_is_about_to_stop_is_left_for_another() {
    let routes = [free_port(), free_port()];
    let settings = |own: usize| {
        format!(
            "cluster {{ name: tests, listen: \"127.0.0.1:{}\", routes: [\"nats://127.0.0.1:{}\"] }}",
            routes[own],
            routes[1 - own]
        )
    };
    let Some(first) = Nats::start(&settings(0)) else { return };
    let second = Nats::start(&settings(1)).expect("there is one");
    let options =
        |name: &str| Options { servers: vec![first.url(), second.url()], ..Options::new(Name::new(name).unwrap()) };
    let (a, mut b) = (Node::with(options("a")), Node::with(options("b")));
    a.joined(1);
    b.joined(1);
    b.subscribe("room");
    let is_on = |nats: &Nats| {
        let port = format!(":{} ", nats.port);
        move |report: &pushring::FleetReport| report.connected && report.server.contains(&port)
    };
    // The one that b is on.
    let (leaving, staying) = if is_on(&first)(&b.report()) { (&first, &second) } else { (&second, &first) };
    leaving.signal("USR2");
    let since = Instant::now();
    for node in [&a, &b] {
        wait_for(&node.broker, "it is on the other server", is_on(staying));
    }
    println!("after {:?}", since.elapsed());
    // What was lost on the way is counted; what is sent from now on comes.
    let lost_until = Instant::now();
    loop {
        a.send(&topic("room"), "x");
        std::thread::sleep(Duration::from_millis(20));
        if b.report().counts.received > 0 {
            break;
        }
        assert!(lost_until.elapsed() < PATIENCE, "{:?}", b.report());
    }
    assert_eq!(b.recv(), "x");
}
