//! Registering on `/`: what opens a channel, and what each refusal says (node contract, section 4).

use crate::support;

use pushring::Broker;
use pushring::internals::gateway::{Claims, Secret, mint};
use serde_json::json;
use support::{Client, SECRET, connect, demo, on_each_driver, recv, recv_close, send};
use tungstenite::Message;

/// Far in the future.
const NEVER: u64 = 1 << 40;

fn token(secret: &[u8], node: &str, expiration: u64) -> String {
    let claims = Claims { username: node.to_owned(), subdomain: None, expiration };
    mint(&Secret::new(secret).unwrap(), &claims)
}

fn good() -> String {
    token(SECRET, "local.os", NEVER)
}

fn refused(broker: &Broker, first: impl Into<Message>) -> (u16, String) {
    let mut client = connect(broker, "/");
    send(&mut client, first);
    recv_close(&mut client)
}

fn channel_id(client: &mut Client) -> u64 {
    let reply: serde_json::Value = serde_json::from_str(recv(client).to_text().unwrap()).unwrap();
    assert_eq!(reply.as_object().unwrap().len(), 1, "{reply}");
    reply["channel_id"].as_u64().unwrap()
}

#[test]
fn text_and_binary_open_a_channel_whose_messages_go_to_the_target() {
    on_each_driver(|_| {
        let broker = demo(|_| {});
        let register = json!({ "auth_token": good(), "target_process": "echo:pushring:sys" }).to_string();
        let mut ids = Vec::new();
        for first in [Message::text(register.clone()), Message::binary(register.clone().into_bytes())] {
            let mut client = connect(&broker, "/");
            // A message sent right after the registration waits for it.
            send(&mut client, first);
            send(&mut client, Message::text("early"));
            ids.push(channel_id(&mut client));
            assert_eq!(recv(&mut client), Message::text("early"));
        }
        assert!(ids[0] > 0 && ids[1] > 0 && ids[0] != ids[1]);
    });
}

#[test]
fn malformed_registrations_close_with_4400() {
    on_each_driver(|_| {
        let broker = demo(|_| {});
        let no_id = json!({ "auth_token": good(), "target_process": "echo" }).to_string();
        for first in ["hello", "{}", "[]", "{\"auth_token\":\"x\"}", &no_id] {
            let (code, reason) = refused(&broker, first);
            assert!(code == 4400 && !reason.is_empty(), "{first}: {code} {reason}");
        }
        assert_eq!(refused(&broker, Message::binary(vec![0xff; 10])).0, 4400);
    });
}

#[test]
fn tokens_that_do_not_hold_close_with_4401() {
    on_each_driver(|_| {
        let broker = demo(|_| {});
        for (token, words) in [
            (token(b"another secret", "local.os", NEVER), "signature"),
            (token(SECRET, "other.os", NEVER), "another node"),
            (token(SECRET, "local.os", 1), "expired"),
            ("x".to_owned(), "malformed"),
        ] {
            let first = json!({ "auth_token": token, "target_process": "echo:pushring:sys" }).to_string();
            let (code, reason) = refused(&broker, first);
            assert!(code == 4401 && reason.contains(words), "{code} {reason}");
        }
    });
}

#[test]
fn an_unknown_process_closes_with_4404_but_only_for_who_has_a_token() {
    on_each_driver(|_| {
        let broker = demo(|_| {});
        let first = |token: &str| json!({ "auth_token": token, "target_process": "no:such:process" }).to_string();
        let (code, reason) = refused(&broker, first(&good()));
        assert!(code == 4404 && !reason.is_empty(), "{code} {reason}");
        assert_eq!(refused(&broker, first("x")).0, 4401);
    });
}

#[test]
fn who_does_not_register_in_time_is_closed_with_4408() {
    on_each_driver(|_| {
        let broker = demo(|config| config.shard.register_timeout_ms = 50);
        let mut silent = connect(&broker, "/");
        let (code, reason) = recv_close(&mut silent);
        assert!(code == 4408 && !reason.is_empty(), "{code} {reason}");
    });
}

#[test]
fn encryption_is_refused_with_4501_rather_than_left_out() {
    on_each_driver(|_| {
        let broker = demo(|_| {});
        let first =
            json!({ "auth_token": good(), "target_process": "echo:pushring:sys", "encrypted": true }).to_string();
        let (code, reason) = refused(&broker, first);
        assert!(code == 4501 && reason.contains("encrypted"), "{code} {reason}");
    });
}
