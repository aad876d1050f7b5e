//! A node speaks TLS with NATS if configured, authenticates itself, and trusts no other server; it leaves a server of a
//! cluster that is about to stop for another one, and is connected again within seconds.

use super::fleet::{Node, topic, wait_for};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL;
use nkeys::{KeyPair, KeyPairType};
use pushring::fleet::{Credentials, Name, Options, probe};
use serde_json::{Value, json};
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

/// A JWT of these claims, as `nsc` makes it: signed by `issuer`, made out to `subject`.
fn jwt(issuer: &KeyPair, subject: &KeyPair, name: &str, nats: Value) -> String {
    let part = |json: Value| BASE64URL.encode(json.to_string());
    let claims = json!({
        "jti": name, "iat": 1_700_000_000, "iss": issuer.public_key(), "name": name, "sub": subject.public_key(),
        "nats": nats,
    });
    let signed = format!("{}.{}", part(json!({"typ": "JWT", "alg": "ed25519-nkey"})), part(claims));
    let signature = BASE64URL.encode(issuer.sign(signed.as_bytes()).unwrap());
    format!("{signed}.{signature}")
}

/// The credentials file of a node that may say and hear what docs/FLEET.md lets it, of an account's.
fn credentials(account: &KeyPair, node: &str, key: u8) -> String {
    let user = KeyPair::new_from_raw(KeyPairType::User, [key; 32]).unwrap();
    let hears = ["topic.*", "path.*", "process.*", "node.all", "tails.all", "ask.all", "count.all"];
    let hears = hears.map(str::to_owned).into_iter().chain(["channels", "answer"].map(|kind| format!("{kind}.{node}")));
    let hears = hears.map(|kind| format!("pushring.v1.main.*.{kind}"));
    let hears: Vec<_> = hears.chain([format!("pushring.v1.main.{node}.inbox.>")]).collect();
    let says = [format!("pushring.v1.main.{node}.>")];
    let rights = json!({
        "pub": {"allow": says}, "sub": {"allow": hears}, "subs": -1, "data": -1, "payload": -1, "type": "user",
        "version": 2,
    });
    let token = jwt(account, &user, node, rights);
    format!(
        "-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n-----BEGIN USER NKEY SEED-----\n{}\n\
         ------END USER NKEY SEED------\n",
        user.seed().unwrap()
    )
}

#[test]
fn a_credentials_file_with_a_jwt_lets_a_node_in_as_itself_alone() {
    let pair = |of, key| KeyPair::new_from_raw(of, [key; 32]).unwrap();
    let (operator, account) = (pair(KeyPairType::Operator, 1), pair(KeyPairType::Account, 2));
    let limits = json!({
        "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1, "leaf": -1,
    });
    let of_operator = jwt(&operator, &operator, "operator", json!({"type": "operator", "version": 2}));
    let rights =
        json!({"limits": limits, "default_permissions": {"pub": {}, "sub": {}}, "type": "account", "version": 2});
    let of_account = jwt(&operator, &account, "fleet", rights);
    let settings = format!(
        "operator: {of_operator}\nresolver: MEMORY\nresolver_preload: {{ {}: {of_account} }}",
        account.public_key()
    );
    let Some(nats) = Nats::start(&settings) else { return };
    let options = |name: &str, file: &str| Options {
        servers: vec![nats.url()],
        credentials: Some(Credentials::new(file).unwrap()),
        ..Options::new(Name::new(name).unwrap())
    };
    let files = [credentials(&account, "a", 3), credentials(&account, "b", 4)];
    let (a, mut b) = (Node::with(options("a", &files[0])), Node::with(options("b", &files[1])));
    a.joined(1);
    b.joined(1);
    b.subscribe("room");
    a.send(&topic("room"), "signed");
    assert_eq!(b.recv(), "signed");
    assert_eq!((a.report().counts.server_errors, b.report().counts.server_errors), (0, 0), "all that it needs");
    // With another node's file it may not publish as itself, and a file signed by a stranger is refused.
    let since = Instant::now();
    let refused = loop {
        match probe(&options("c", &files[0])) {
            Ok(probed) => break probed.refused,
            Err(error) => assert!(since.elapsed() < PATIENCE, "{error}"),
        }
    };
    assert!(refused > 0);
    let stranger = credentials(&pair(KeyPairType::Account, 9), "a", 5);
    assert!(probe(&options("a", &stranger)).is_err());
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
    // Messages lost on the way are counted; later ones arrive.
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
