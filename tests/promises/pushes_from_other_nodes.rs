//! A process of another node pushes to a channel only if the channel's owner has let it in: node and process decide,
//! not the process alone. A grant is for one channel and ends with it, or for all channels of the owner; it can be
//! withdrawn, it is bounded, and it allows no closing. A process that was not let in learns nothing, not even that the
//! channel exists.

use crate::node_support;

use node_support::support::recv;
use node_support::{Node, Options, push};
use tungstenite::Message;

const OWNER: &str = "fake.os@app:app:test.os";
const GUEST: &str = "bob.os@app:app:test.os";
const NOT_FOUND: &str = r#"{"Err":"WsChannelNotFound"}"#;
const OK: &str = r#"{"Ok":null}"#;

fn grant(word: &str, channel: Option<u64>, address: &str) -> String {
    serde_json::json!({ word: {"channel_id": channel, "address": address} }).to_string()
}

fn start() -> Node {
    let mut node = Node::start(Options::default());
    node.bind("app:app:test.os", "/");
    node
}

const PATH: &str = "/app:app:test.os/";

#[test]
fn nobody_is_let_in_without_a_grant_and_each_grant_is_one_address_and_one_channel() {
    let mut node = start();
    let ((mut client, channel), (mut other, other_channel)) = (node.open(PATH), node.open(PATH));
    assert_eq!(node.ask(GUEST, &push(channel), Some(b"no")), NOT_FOUND);
    assert_eq!(node.ask(OWNER, &grant("WebSocketGrant", Some(channel), GUEST), None), OK);
    assert_eq!(node.ask(GUEST, &push(channel), Some(b"from bob")), OK);
    assert_eq!(recv(&mut client), Message::text("from bob"));
    for (stranger, at) in [
        (GUEST, other_channel),
        ("eve.os@app:app:test.os", channel),
        ("bob.os@other:app:test.os", channel),
        ("fake.os@other:app:test.os", channel),
    ] {
        assert_eq!(node.ask(stranger, &push(at), Some(b"no")), NOT_FOUND, "{stranger}");
    }
    // A success without an expected answer is silent, a failure is not.
    node.tell(5, GUEST, &push(channel), Some(b"unasked"));
    assert_eq!(recv(&mut client), Message::text("unasked"));
    node.tell(6, GUEST, &push(other_channel), Some(b"no"));
    assert_eq!(node.heard(), (6, GUEST.to_string(), NOT_FOUND.to_string()));

    assert_eq!(node.ask(OWNER, &grant("WebSocketRevoke", Some(channel), GUEST), None), OK);
    assert_eq!(node.ask(GUEST, &push(channel), Some(b"no")), NOT_FOUND);
    // Taking back what is not there is no mistake.
    assert_eq!(node.ask(OWNER, &grant("WebSocketRevoke", Some(channel), GUEST), None), OK);

    // The strangers' attempts have reached no client.
    for (client, channel) in [(&mut client, channel), (&mut other, other_channel)] {
        node.tell(9, OWNER, &push(channel), Some(b"last"));
        assert_eq!(recv(client), Message::text("last"));
    }
    node.is_quiet();
}

#[test]
fn a_guest_pushes_and_does_nothing_else() {
    let mut node = start();
    let (mut client, channel) = node.open(PATH);
    assert_eq!(node.ask(OWNER, &grant("WebSocketGrant", Some(channel), GUEST), None), OK);
    assert_eq!(node.ask(GUEST, &format!(r#"{{"WebSocketClose":{channel}}}"#), None), NOT_FOUND);
    let close = format!(r#"{{"WebSocketPush":{{"channel_id":{channel},"message_type":"Close"}}}}"#);
    assert_eq!(node.ask(GUEST, &close, Some(b"")), NOT_FOUND);
    assert_eq!(node.ask(GUEST, &grant("WebSocketGrant", Some(channel), "eve.os@a:b:c"), None), NOT_FOUND);
    assert_eq!(node.ask(GUEST, &grant("WebSocketGrant", None, "eve.os@a:b:c"), None), NOT_FOUND);
    let bind = r#"{"WebSocketBind":{"path":"/","authenticated":false,"extension":false}}"#;
    assert_eq!(node.ask(GUEST, bind, None), r#"{"Err":"InvalidSourceProcess"}"#);

    // The rules for frames hold for guests too.
    assert_eq!(node.ask(GUEST, &push(channel), Some(b"\xff")), r#"{"Err":"MalformedRequest"}"#);
    assert_eq!(node.ask(GUEST, &push(channel), None), r#"{"Err":"NoBlob"}"#);
    // To many: channels of other owners do not exist for it. It has no paths to broadcast on.
    let (_stranger, others) = node.register("other:other:test.os");
    node.heard();
    let many = serde_json::json!({"WebSocketPushMany": {"channel_ids": [channel, others, 1], "message_type": "Text"}});
    let counts = node.ask(GUEST, &many.to_string(), Some(b"many"));
    assert!(counts.contains(r#""sent":1"#) && counts.contains(r#""not_found":2,"not_owner":0"#), "{counts}");
    assert_eq!(recv(&mut client), Message::text("many"));
    let all = r#"{"WebSocketBroadcast":{"path":null,"message_type":"Text"}}"#;
    assert!(node.ask(GUEST, all, Some(b"all")).contains(r#""sent":0"#));
    node.tell(9, OWNER, &push(channel), Some(b"last"));
    assert_eq!(recv(&mut client), Message::text("last"));
}

#[test]
fn a_grant_ends_with_its_channel_and_one_for_all_channels_does_not() {
    let mut node = start();
    let (mut client, channel) = node.open(PATH);
    assert_eq!(node.ask(OWNER, &grant("WebSocketGrant", Some(channel), GUEST), None), OK);
    client.close(None).unwrap();
    assert!(node.heard().2.contains("WebSocketPush"));
    assert!(node.heard().2.contains("WebSocketClose"));
    assert_eq!(node.ask(GUEST, &push(channel), Some(b"late")), NOT_FOUND);
    assert_eq!(node.ask(OWNER, &grant("WebSocketGrant", Some(channel), GUEST), None), NOT_FOUND);

    assert_eq!(node.ask(OWNER, &grant("WebSocketGrant", None, GUEST), None), OK);
    let (mut client, channel) = node.open(PATH);
    assert_eq!(node.ask(GUEST, &push(channel), Some(b"welcome")), OK);
    assert_eq!(recv(&mut client), Message::text("welcome"));
    // Only the owner's channels are open to it.
    let (_stranger, others) = node.register("other:other:test.os");
    node.heard();
    assert_eq!(node.ask(GUEST, &push(others), Some(b"no")), NOT_FOUND);
    assert_eq!(node.ask(OWNER, &grant("WebSocketRevoke", None, GUEST), None), OK);
    assert_eq!(node.ask(GUEST, &push(channel), Some(b"no")), NOT_FOUND);
    node.tell(9, OWNER, &format!(r#"{{"WebSocketClose":{channel}}}"#), None);
    assert!(matches!(client.read().unwrap(), Message::Close(None)));
}

#[test]
fn only_an_owner_grants_and_only_so_much_and_only_to_addresses_elsewhere() {
    let mut node = start();
    let (mut client, channel) = node.open(PATH);
    assert_eq!(node.ask("fake.os@other:app:test.os", &grant("WebSocketGrant", Some(channel), GUEST), None), NOT_FOUND);
    for address in [
        "",
        "bob.os",
        "bob.os@app",
        "@a:b:c",
        "bob.os@a:b:c:d",
        "our@a:b:c",
        "fake.os@a:b:c",
        &format!("{}@a:b:c", "x".repeat(2000)),
    ] {
        for channel in [Some(channel), None] {
            let answer = node.ask(OWNER, &grant("WebSocketGrant", channel, address), None);
            assert_eq!(answer, r#"{"Err":"MalformedRequest"}"#, "{address}");
        }
    }
    let too_many = r#"{"Err":"TooManyGrants"}"#;
    for (channel, guests_max) in [(Some(channel), 64), (None, 1024)] {
        for at in 0..guests_max {
            assert_eq!(node.ask(OWNER, &grant("WebSocketGrant", channel, &format!("n{at}.os@a:b:c")), None), OK);
        }
        assert_eq!(node.ask(OWNER, &grant("WebSocketGrant", channel, "n0.os@a:b:c"), None), OK, "it is in already");
        assert_eq!(node.ask(OWNER, &grant("WebSocketGrant", channel, GUEST), None), too_many);
        assert_eq!(node.ask(OWNER, &grant("WebSocketRevoke", channel, "n0.os@a:b:c"), None), OK);
        assert_eq!(node.ask(OWNER, &grant("WebSocketGrant", channel, GUEST), None), OK);
    }
    assert_eq!(node.ask(GUEST, &push(channel), Some(b"in")), OK);
    assert_eq!(recv(&mut client), Message::text("in"));
    // A failure is reported even if no answer is expected.
    node.tell(8, OWNER, &grant("WebSocketGrant", Some(channel), "one.too@many:a:b"), None);
    assert_eq!(node.heard(), (8, OWNER.to_string(), too_many.to_string()));
}
