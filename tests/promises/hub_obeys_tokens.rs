//! Clients of the hub subscribe, publish and renew as far as their tokens allow, and no further: each attempt to guess,
//! cross or widen a right is refused, and no token appears in an answer or in the log. A channel ends with its token.

use crate::support;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL};
use hmac::{Hmac, KeyInit, Mac};
use pushring::Broker;
use pushring::internals::gateway::{Claims, Grant, HubAccess, Secret, mint, patterns};
use pushring::internals::hub;
use pushring::internals::push_api::{self, ApiOptions, ApiToken};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use support::{Client, PATIENCE, Patient, broker, recv, recv_close, send};
use tungstenite::Message;
use tungstenite::client::IntoClientRequest;

const KEY: &[u8] = b"the secret of the hub, which is another";
const API_TOKEN: &str = "a token of the tests";

fn unix_s() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()
}

/// A token with these claims, for the hub's audience unless they name another.
fn token(mut claims: Value) -> String {
    claims.as_object_mut().unwrap().entry("aud").or_insert("pushring-hub".into());
    let signed = format!("{}.{}", BASE64URL.encode(r#"{"alg":"HS256"}"#), BASE64URL.encode(claims.to_string()));
    let mut mac = Hmac::<sha2::Sha256>::new_from_slice(KEY).unwrap();
    mac.update(signed.as_bytes());
    format!("{signed}.{}", BASE64URL.encode(mac.finalize().into_bytes()))
}

fn start(open: bool) -> Broker {
    start_with(open, |_| {})
}

fn start_with(open: bool, change: impl FnOnce(&mut pushring::Config)) -> Broker {
    let broker = broker(support::driver(), |config| {
        change(config);
        let grant = Grant { may_subscribe: patterns(&["public.*".to_owned()]).unwrap(), ..Grant::default() };
        config.settings.hub = Some(Arc::new(HubAccess {
            secret: Some(Secret::new(KEY).unwrap()),
            audience: "pushring-hub".into(),
            open: open.then(|| Arc::new(grant)),
            ..HubAccess::default()
        }));
    });
    hub::start(&broker.handle()).unwrap();
    let options = ApiOptions {
        token: ApiToken::new(API_TOKEN).unwrap(),
        process: Some(hub::PROCESS.parse().unwrap()),
        keys: Default::default(),
    };
    push_api::start(&broker.handle(), false, broker.handle(), options).unwrap();
    broker
}

/// The status of an upgrade with these fields, or the client.
fn enter(broker: &Broker, path: &str, fields: &[(&str, &str)]) -> Result<Client, (u16, String)> {
    greeted(broker, path, fields).map(|(client, _)| client)
}

/// The same, with what the client is greeted by.
fn greeted(broker: &Broker, path: &str, fields: &[(&str, &str)]) -> Result<(Client, Value), (u16, String)> {
    let mut client = connected(broker, path, fields)?;
    let hello: Value = serde_json::from_str(recv(&mut client).to_text().unwrap()).unwrap();
    assert_eq!(hello["pushring"], 1, "{hello}");
    Ok((client, hello))
}

fn connected(broker: &Broker, path: &str, fields: &[(&str, &str)]) -> Result<Client, (u16, String)> {
    let mut request = format!("ws://{}{path}", broker.address()).into_client_request().unwrap();
    for &(name, value) in fields {
        let name: tungstenite::http::HeaderName = name.parse().unwrap();
        request.headers_mut().insert(name, value.parse().unwrap());
    }
    let stream = TcpStream::connect(broker.address()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    match tungstenite::client(request, Patient(stream)) {
        Ok((client, response)) => {
            assert_eq!(response.headers()["sec-websocket-protocol"], "pushring.1", "nothing else is echoed");
            Ok(client)
        }
        Err(tungstenite::HandshakeError::Failure(tungstenite::Error::Http(response))) => {
            let words = String::from_utf8(response.body().clone().unwrap_or_default()).unwrap();
            Err((response.status().as_u16(), words))
        }
        Err(error) => panic!("{error}"),
    }
}

fn enter_with(broker: &Broker, token: &str) -> Client {
    let protocols = format!("pushring.1, bearer.{token}");
    enter(broker, "/hub", &[("sec-websocket-protocol", &protocols)]).unwrap()
}

/// Sends the hub an order, and returns its answer.
fn ask(client: &mut Client, order: Value) -> Value {
    send(client, format!("\u{1e}{order}"));
    answer(client)
}

fn answer(client: &mut Client) -> Value {
    let text = recv(client).into_text().unwrap().to_string();
    serde_json::from_str(text.strip_prefix('\u{1e}').unwrap_or_else(|| panic!("an answer, not {text}"))).unwrap()
}

/// Publishes over HTTP.
fn publish(broker: &Broker, order: &Value) -> (u16, Value) {
    let json = "Content-Type: application/json\r\n";
    ask_api(broker, "POST /push:pushring:sys/api/push", json, &order.to_string())
}

fn ask_api(broker: &Broker, request: &str, fields: &str, body: &str) -> (u16, Value) {
    let address = broker.address();
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(
        stream,
        "{request} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nAuthorization: Bearer {API_TOKEN}\r\n\
         {fields}Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).unwrap();
    let (head, body) = response.split_once("\r\n\r\n").unwrap();
    (head[9..12].parse().unwrap(), serde_json::from_str(body).unwrap())
}

#[test]
fn a_client_does_what_its_token_says() {
    let broker = start(false);
    let ann = token(json!({"sub": "ann", "topics": ["news"], "may_subscribe": ["room.*"], "may_publish": ["room.7"]}));
    let (mut ann, mut bob) =
        (enter_with(&broker, &ann), enter_with(&broker, &token(json!({"sub": "bob", "may_subscribe": ["room.*"]}))));
    assert_eq!(ask(&mut ann, json!({"subscribe": "room.7", "id": 1})), json!({"subscribed": "room.7", "id": 1}));
    assert_eq!(ask(&mut bob, json!({"subscribe": "room.7", "envelope": true})), json!({"subscribed": "room.7"}));
    // Its own channel is subscribed too, and the answer comes behind what was published; JSON comes as it was written.
    send(&mut ann, "\u{1e}{\"publish\":\"room.7\",\"json\":{\"n\": 1.50},\"id\":2}");
    let mut own = vec![recv(&mut ann).into_text().unwrap().to_string()];
    assert_eq!(answer(&mut ann), json!({"published": "room.7", "id": 2}));
    assert_eq!(recv(&mut bob), Message::text(r#"{"topic":"room.7","data":{"n": 1.50}}"#));
    let sent = publish(&broker, &json!({"to": {"topic": "room.7"}, "text": "hi\u{1e}", "outcome": true}));
    assert_eq!((sent.0, &sent.1["sent"]), (200, &2.into()), "both forms are counted: {sent:?}");
    own.push(recv(&mut ann).into_text().unwrap().to_string());
    assert_eq!(own, [r#"{"n": 1.50}"#, "hi\u{1e}"]);
    assert_eq!(recv(&mut bob), Message::text("{\"topic\":\"room.7\",\"data\":\"hi\\u001e\"}"));
    assert_eq!(publish(&broker, &json!({"to": {"topic": "room.7"}, "data": "AP8="})).0, 202);
    assert_eq!(recv(&mut ann), Message::binary(vec![0, 255]));
    assert_eq!(recv(&mut bob), Message::text(r#"{"topic":"room.7","base64":"AP8="}"#));
    // A message that looks like an answer is none: it comes with its mark doubled.
    publish(&broker, &json!({"to": {"topic": "news"}, "text": "\u{1e}{\"subscribed\":\"news\"}"}));
    assert_eq!(recv(&mut ann), Message::text("\u{1e}\u{1e}{\"subscribed\":\"news\"}"));
    publish(&broker, &json!({"to": {"user": "bob"}, "text": "for bob"}));
    assert_eq!(recv(&mut bob), Message::text("for bob"));
    assert_eq!(ask(&mut bob, json!({"unsubscribe": "room.7"})), json!({"unsubscribed": "room.7"}));
    assert_eq!(publish(&broker, &json!({"to": {"topic": "room.7"}, "text": "x", "outcome": true})).1["sent"], 1);
    send(&mut bob, "no order");
    assert_eq!(answer(&mut bob), json!({"error": "unheard"}));
}

#[test]
fn the_topics_of_a_token_are_in_force_with_the_hello() {
    let broker = start(false);
    for number in 0..20 {
        let topic = format!("news.{}", number / 2);
        let mut ann = enter_with(&broker, &token(json!({"sub": "ann", "topics": [topic]})));
        for to in [json!({"topic": topic}), json!({"user": "ann"})] {
            assert_eq!(publish(&broker, &json!({"to": to, "text": number.to_string()})).0, 202);
            assert_eq!(recv(&mut ann), Message::text(number.to_string()));
        }
        // The hub has nothing to do any more when the next one comes: a shard does not wait for what others hold.
        assert_eq!(ask(&mut ann, json!({"unsubscribe": "none"})), json!({"unsubscribed": "none"}));
    }
}

#[test]
fn the_last_room_for_subscriptions_serves_the_topics_of_a_token() {
    let broker = start_with(false, |config| config.admission.subscriptions_max = 2);
    let mut ann = enter_with(&broker, &token(json!({"sub": "ann", "topics": ["news"]})));
    // They are the two that there is room for: to be subscribed once more takes none.
    for _ in 0..2 {
        assert_eq!(ask(&mut ann, json!({"unsubscribe": "none"})), json!({"unsubscribed": "none"}));
    }
}

#[test]
fn null_is_published_as_any_json_is() {
    let broker = start(false);
    let mut ann = enter_with(&broker, &token(json!({"topics": ["news"], "may_publish": ["news"]})));
    send(&mut ann, "\u{1e}{\"publish\":\"news\",\"json\":null,\"id\":1}");
    assert_eq!(recv(&mut ann), Message::text("null"));
    assert_eq!(answer(&mut ann), json!({"published": "news", "id": 1}));
}

#[test]
fn every_order_is_answered_by_its_number_whatever_is_wrong_with_it() {
    let broker = start(false);
    let mut ann = enter_with(&broker, &token(json!({"sub": "ann", "may_subscribe": ["room.*"]})));
    for (order, answer) in [
        (json!({"subscribe": "room.7", "ack": 0, "id": 1}), json!({"subscribed": "room.7", "id": 1})),
        (json!({"subscribe": "", "id": 2}), json!({"error": "topic", "id": 2})),
        (json!({"subscribe": "\u{1e}user/bob", "id": 3}), json!({"error": "topic", "id": 3})),
        (json!({"subscribe": "x".repeat(256), "id": 4}), json!({"error": "topic", "id": 4})),
        (json!({"subscribe": 7, "id": 5}), json!({"error": "malformed", "id": 5})),
        (json!({"subscribe": "room.8", "envelope": "yes", "id": 6}), json!({"error": "malformed", "id": 6})),
        (json!({"publish": "room.7", "id": 7}), json!({"error": "malformed", "id": 7})),
        (json!({"subscribe": "room.8", "unsubscribe": "room.8", "id": 8}), json!({"error": "malformed", "id": 8})),
        (json!({"subscribe": "room.8", "id": "9"}), json!({"error": "malformed"})),
        (json!({"unsubscribe": "room.7", "id": u64::MAX}), json!({"unsubscribed": "room.7", "id": u64::MAX})),
    ] {
        assert_eq!(ask(&mut ann, order.clone()), answer, "{order}");
    }
}

#[test]
fn rights_are_not_guessed_crossed_or_widened() {
    let broker = start(false);
    let mut client =
        enter_with(&broker, &token(json!({"sub": "ann", "may_subscribe": ["room.*"], "may_publish": ["room.7"]})));
    for (order, error) in [
        (json!({"subscribe": "news"}), "forbidden"),
        (json!({"subscribe": "room."}), "forbidden"),
        (json!({"subscribe": "roomx7"}), "forbidden"),
        (json!({"subscribe": "Room.7"}), "forbidden"),
        (json!({"subscribe": "*"}), "forbidden"),
        (json!({"subscribe": "\u{1e}user/bob"}), "topic"),
        (json!({"subscribe": "\u{1e}envelope/news"}), "topic"),
        (json!({"subscribe": ""}), "topic"),
        (json!({"subscribe": "room.".to_owned() + &"x".repeat(251)}), "topic"),
        (json!({"subscribe": "room.".to_owned() + &"x".repeat(250), "envelope": true}), "topic"),
        (json!({"publish": "room.8", "text": "x"}), "forbidden"),
        (json!({"publish": "room.*", "text": "x"}), "forbidden"),
        (json!({"publish": "\u{1e}user/bob", "text": "x"}), "topic"),
        (json!({"publish": "room.7"}), "malformed"),
        (json!({"subscribe": "room.7", "publish": "room.7", "text": "x"}), "malformed"),
        (json!({"renew": "x.y.z"}), "token"),
        (json!({"renew": token(json!({"sub": "bob", "may_subscribe": ["*"]}))}), "user"),
        (json!({"renew": token(json!({"may_subscribe": ["*"]}))}), "user"),
        (json!({"renew": token(json!({"sub": "ann", "aud": "another"}))}), "token"),
        (json!({"renew": token(json!({"sub": "ann", "exp": 1}))}), "token"),
    ] {
        assert_eq!(ask(&mut client, order.clone()), json!({"error": error}), "{order}");
    }
    // With a token that allows more, more is allowed; and less with one that allows less.
    let wider = token(json!({"sub": "ann", "may_subscribe": ["news"]}));
    assert_eq!(ask(&mut client, json!({"subscribe": "room.7", "envelope": true})), json!({"subscribed": "room.7"}));
    send(&mut client, format!("\u{1e}{}", json!({"renew": wider, "id": 9})));
    assert_eq!(answer(&mut client), json!({"unsubscribed": "room.7"}), "what it does not allow ends");
    assert_eq!(answer(&mut client), json!({"renewed": null, "id": 9}));
    assert_eq!(publish(&broker, &json!({"to": {"topic": "room.7"}, "text": "x", "outcome": true})).1["sent"], 0);
    assert_eq!(ask(&mut client, json!({"subscribe": "news"})), json!({"subscribed": "news"}));
    assert_eq!(ask(&mut client, json!({"subscribe": "room.7"})), json!({"error": "forbidden"}));
    assert_eq!(ask(&mut client, json!({"publish": "room.7", "text": "x"})), json!({"error": "forbidden"}));
    // A text that is no JSON breaks the protocol.
    send(&mut client, "\u{1e}no json");
    assert_eq!(recv_close(&mut client).0, 1008);
}

#[test]
fn the_door_is_open_to_the_hubs_own_tokens_alone() {
    let (broker, open) = (start(false), start(true));
    let good = token(json!({"sub": "ann"}));
    let login = mint(
        &Secret::new(support::SECRET).unwrap(),
        &Claims { username: "local.os".into(), subdomain: None, expiration: unix_s() + 60 },
    );
    let bearer = |token: &str| format!("pushring.1, bearer.{token}");
    let field = "sec-websocket-protocol";
    let status = |broker: &Broker, path: &str, fields: &[(&str, &str)]| match enter(broker, path, fields) {
        Ok(_) => 101,
        Err((status, words)) => {
            assert!(!words.contains(&good) && !words.contains(&login), "{words}");
            status
        }
    };
    let own = format!("http://{}", broker.address());
    let cookie = format!("pushring-hub={good}");
    for (attempt, path, fields, expected) in [
        ("a good token", "/hub", &[(field, &*bearer(&good))][..], 101),
        ("in Authorization", "/hub", &[(field, "pushring.1"), ("authorization", &format!("Bearer {good}"))], 101),
        ("in the cookie", "/hub", &[(field, "pushring.1"), ("cookie", &cookie), ("origin", &own)], 101),
        (
            "in the cookie, from another site",
            "/hub",
            &[(field, "pushring.1"), ("cookie", &cookie), ("origin", "https://evil.example")],
            403,
        ),
        ("none", "/hub", &[(field, "pushring.1")], 401),
        ("in the URL", &format!("/hub?token={good}&access_token={good}"), &[(field, "pushring.1")], 401),
        ("a login token", "/hub", &[(field, &bearer(&login))], 401),
        ("a login cookie", "/hub", &[(field, "pushring.1"), ("cookie", &format!("kinode-auth_local.os={login}"))], 401),
        ("expired", "/hub", &[(field, &bearer(&token(json!({"exp": unix_s() - 1}))))], 401),
        ("for another audience", "/hub", &[(field, &bearer(&token(json!({"aud": "x"}))))], 401),
        ("twice", "/hub", &[(field, &bearer(&good)), ("authorization", &format!("Bearer {good}"))], 401),
        ("without pushring.1", "/hub", &[(field, &format!("bearer.{good}"))], 400),
        ("without any subprotocol", "/hub", &[("authorization", &format!("Bearer {good}"))], 400),
    ] {
        assert_eq!(status(&broker, path, fields), expected, "{attempt}");
    }
    // A page is not shown a status, so it is told by a close frame, whose code says whether another token would do.
    for (protocols, expected) in [
        ("pushring.1", (4401, "there is no token")),
        (&bearer(&token(json!({"exp": unix_s() - 1}))), (4401, "the token has expired")),
        (&bearer(&login), (4401, "the token's signature is not valid")),
        (&bearer(&token(json!({"aud": "x"}))), (4403, "the token is for another audience")),
    ] {
        let mut page = connected(&broker, "/hub", &[(field, protocols), ("origin", &own)]).unwrap();
        let (code, why) = recv_close(&mut page);
        assert_eq!((code, &*why), expected, "{protocols}");
    }
    // The hub's token is no login either, whatever it claims.
    let claims = json!({"username": "local.os", "subdomain": null, "expiration": unix_s() + 60});
    let fields = [("cookie", &*format!("kinode-auth_local.os={}", token(claims)))];
    let process = broker.process("locked").unwrap();
    process.bind_at_with("/locked", pushring::WebSocketRule { authenticated: true, ..Default::default() }).unwrap();
    assert_eq!(status(&broker, "/locked", &fields), 401);
    // An open hub lets others in, for what is public, and judges tokens all the same.
    let mut anybody = enter(&open, "/hub", &[(field, "pushring.1")]).unwrap();
    assert_eq!(ask(&mut anybody, json!({"subscribe": "public.news"})), json!({"subscribed": "public.news"}));
    assert_eq!(ask(&mut anybody, json!({"subscribe": "news"})), json!({"error": "forbidden"}));
    assert_eq!(ask(&mut anybody, json!({"publish": "public.news", "text": "x"})), json!({"error": "forbidden"}));
    assert_eq!(ask(&mut anybody, json!({"renew": good})), json!({"error": "user"}));
    assert_eq!(status(&open, "/hub", &[(field, &bearer(&login))]), 401);
}

#[test]
fn a_channel_ends_with_its_token_unless_it_is_renewed() {
    let broker = start(false);
    let soon = unix_s() + 2;
    let (mut ends, mut lives) = {
        let token = token(json!({"sub": "ann", "exp": soon}));
        (enter_with(&broker, &token), enter_with(&broker, &token))
    };
    let renewed = token(json!({"sub": "ann", "exp": soon + 600}));
    assert_eq!(ask(&mut lives, json!({"renew": renewed})), json!({"renewed": soon + 600}));
    assert_eq!(recv_close(&mut ends), (4401, "the token has ended".to_owned()));
    assert!(unix_s() >= soon);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(ask(&mut lives, json!({"subscribe": "x"})), json!({"error": "forbidden"}), "and this one lives");
}

#[test]
fn whoever_renews_without_end_is_told_to_come_later() {
    let broker = start(false);
    let mine = token(json!({"sub": "ann", "may_subscribe": ["a"]}));
    let mut client = enter_with(&broker, &mine);
    for _ in 0..1000 {
        send(&mut client, format!("\u{1e}{}", json!({"renew": mine})));
    }
    let answers: Vec<Value> = (0..1000).map(|_| answer(&mut client)).collect();
    let renewed = answers.iter().filter(|told| told.get("renewed").is_some()).count();
    let later = answers.iter().filter(|told| told["error"] == "later").count();
    assert!(renewed >= 8 && later > 500 && renewed + later == 1000, "{renewed} {later}");
    // This client goes on, and so do the others.
    assert_eq!(ask(&mut client, json!({"unsubscribe": "a"})), json!({"unsubscribed": "a"}));
    let mut other = enter_with(&broker, &mine);
    assert_eq!(ask(&mut other, json!({"subscribe": "a"})), json!({"subscribed": "a"}));
}

/// Comes with a token, and a channel to take up again.
fn come_back(broker: &Broker, token: &str, channel: &str, resume: &str) -> (Client, Value) {
    come_back_with(broker, token, channel, resume, 0)
}

/// The same, having received so many messages.
fn come_back_with(broker: &Broker, token: &str, channel: &str, resume: &str, received: u64) -> (Client, Value) {
    let protocols = format!("pushring.1, bearer.{token}, resume.{channel}.{resume}.{received}");
    greeted(broker, "/hub", &[("sec-websocket-protocol", &protocols)]).unwrap()
}

#[test]
fn answers_that_a_lost_connection_took_along_are_said_again() {
    let broker = start(false);
    let ann = token(json!({"sub": "ann", "may_subscribe": ["room.*"], "may_publish": ["room.*"]}));
    let protocols = format!("pushring.1, bearer.{ann}");
    let (mut client, hello) = greeted(&broker, "/hub", &[("sec-websocket-protocol", &protocols)]).unwrap();
    // Orders, and a lost connection right behind them: no answer is read.
    for id in 1..=3 {
        send(&mut client, format!("\u{1e}{}", json!({"subscribe": format!("room.{id}"), "id": id})));
    }
    send(&mut client, format!("\u{1e}{}", json!({"subscribe": "room.x"})));
    send(&mut client, format!("\u{1e}{}", json!({"subscribe": "news", "id": 4})));
    // All of them were executed once this one is answered.
    while answer(&mut client)["id"] != 4 {}
    drop(client);
    let channel = hello["channel_id"].to_string();
    let (mut client, hello) = come_back(&broker, &ann, &channel, hello["resume"].as_str().unwrap());
    assert_eq!((&hello["resumed"], hello["channel_id"].to_string()), (&json!(true), channel.clone()), "{hello}");
    assert_eq!(answer(&mut client), json!({"again": 4}), "those that had a number");
    for id in 1..=3 {
        assert_eq!(answer(&mut client), json!({"subscribed": format!("room.{id}"), "id": id}));
    }
    assert_eq!(answer(&mut client), json!({"error": "forbidden", "id": 4}));
    // As many as are kept, the newest of them; and the channel goes on.
    for id in 10..30 {
        assert_eq!(ask(&mut client, json!({"unsubscribe": "room.1", "id": id}))["id"], id);
    }
    drop(client);
    let (mut client, _) = come_back(&broker, &ann, &channel, hello["resume"].as_str().unwrap());
    assert_eq!(answer(&mut client), json!({"again": 16}));
    let ids: Vec<u64> = (0..16).map(|_| answer(&mut client)["id"].as_u64().unwrap()).collect();
    assert_eq!(ids, (14..30).collect::<Vec<_>>());
    assert_eq!(
        ask(&mut client, json!({"publish": "room.9", "text": "x", "id": 99})),
        json!({"published": "room.9", "id": 99})
    );
}

#[test]
fn who_comes_back_has_the_rights_of_the_token_that_it_comes_with() {
    let broker = start(false);
    let wide = token(json!({"sub": "ann", "may_subscribe": ["room.*", "news"], "may_publish": ["room.*"]}));
    let narrow = token(json!({"sub": "ann", "may_subscribe": ["news"]}));
    let protocols = format!("pushring.1, bearer.{wide}");
    let (mut client, hello) = greeted(&broker, "/hub", &[("sec-websocket-protocol", &protocols)]).unwrap();
    for (order, done) in [
        (json!({"subscribe": "room.7", "id": 1}), json!({"subscribed": "room.7", "id": 1})),
        (json!({"subscribe": "room.8", "envelope": true}), json!({"subscribed": "room.8"})),
        (json!({"subscribe": "news"}), json!({"subscribed": "news"})),
    ] {
        assert_eq!(ask(&mut client, order), done);
    }
    drop(client);
    let (channel, secret) = (hello["channel_id"].to_string(), hello["resume"].as_str().unwrap());
    let (mut client, hello) = come_back(&broker, &narrow, &channel, secret);
    assert_eq!((&hello["resumed"], hello["channel_id"].to_string()), (&json!(true), channel.clone()), "{hello}");
    assert_eq!(answer(&mut client), json!({"again": 1}));
    assert_eq!(answer(&mut client), json!({"subscribed": "room.7", "id": 1}));
    assert_eq!(answer(&mut client), json!({"unsubscribed": "room.7"}), "what was true then is not any more");
    assert_eq!(answer(&mut client), json!({"unsubscribed": "room.8"}));
    for (order, error) in [
        (json!({"subscribe": "room.7"}), "forbidden"),
        (json!({"subscribe": "room.8", "envelope": true}), "forbidden"),
        (json!({"publish": "room.7", "text": "x"}), "forbidden"),
    ] {
        assert_eq!(ask(&mut client, order.clone()), json!({"error": error}), "{order}");
    }
    let heard_by = |topic: &str| {
        publish(&broker, &json!({"to": {"topic": topic}, "text": topic, "outcome": true})).1["sent"].as_u64().unwrap()
    };
    assert_eq!((heard_by("room.7"), heard_by("room.8"), heard_by("news")), (0, 0, 1));
    assert_eq!(recv(&mut client), Message::text("news"));
    // And more again with one that allows more.
    drop(client);
    let (mut client, _) = come_back_with(&broker, &wide, &channel, hello["resume"].as_str().unwrap(), 1);
    assert_eq!(answer(&mut client), json!({"again": 1}));
    answer(&mut client);
    assert_eq!(ask(&mut client, json!({"subscribe": "room.7"})), json!({"subscribed": "room.7"}));
}

#[test]
fn a_channel_ends_with_the_token_that_its_client_came_back_with() {
    let broker = start(false);
    // Long enough to come back within.
    let soon = unix_s() + 3;
    let until = |exp: u64| token(json!({"sub": "ann", "exp": exp}));
    let begin = |exp: u64| {
        let protocols = format!("pushring.1, bearer.{}", until(exp));
        greeted(&broker, "/hub", &[("sec-websocket-protocol", &protocols)]).unwrap()
    };
    let back_with = |exp: u64, (client, hello): (Client, Value)| {
        drop(client);
        let channel = hello["channel_id"].to_string();
        let (mut client, hello) = come_back(&broker, &until(exp), &channel, hello["resume"].as_str().unwrap());
        assert_eq!(hello["resumed"], true, "{hello}");
        assert_eq!(answer(&mut client), json!({"again": 0}));
        client
    };
    let mut lives = back_with(soon + 600, begin(soon));
    let mut ends = back_with(soon, begin(soon + 600));
    assert_eq!(recv_close(&mut ends), (4401, "the token has ended".to_owned()));
    assert!(unix_s() >= soon);
    assert_eq!(ask(&mut lives, json!({"subscribe": "x"})), json!({"error": "forbidden"}), "and this one lives");
}

#[test]
fn a_token_may_name_as_many_topics_as_a_channel_may_have() {
    let broker = start(false);
    let topics: Vec<String> = (0..128).map(|n| format!("t{n}")).collect();
    let all = token(json!({"sub": "ann", "topics": topics, "may_subscribe": ["more"]}));
    let mut client = enter_with(&broker, &all);
    // The answer comes behind what the opening has subscribed it to.
    assert_eq!(ask(&mut client, json!({"subscribe": "more"})), json!({"error": "too_many"}));
    for topic in &topics {
        let told = publish(&broker, &json!({"to": {"topic": topic}, "text": topic, "outcome": true})).1;
        assert_eq!(told["sent"], 1, "{topic}");
        assert_eq!(recv(&mut client), Message::text(topic.as_str()));
    }
    assert_eq!(publish(&broker, &json!({"to": {"user": "ann"}, "text": "x", "outcome": true})).1["sent"], 1);
    // Where there is no room for one, its client is told so rather than left to wait for messages.
    let small = start_with(false, |config| config.shard.topics_per_channel_max = 2);
    let mut client = enter_with(&small, &token(json!({"sub": "ann", "topics": ["a", "b", "c"]})));
    assert_eq!(recv_close(&mut client), (1013, "there is no room for a topic of its token".to_owned()));
    let mut client = enter_with(&small, &token(json!({"sub": "ann", "topics": ["a", "b"]})));
    assert_eq!(ask(&mut client, json!({"unsubscribe": "a"})), json!({"unsubscribed": "a"}));
}

/// In whichever form: what a client asked to have messages in is nothing to a backend.
#[test]
fn subscribers_with_an_envelope_are_seen_and_counted_as_others_are() {
    let broker = start(false);
    let ann = token(json!({"sub": "ann", "may_subscribe": ["*"]}));
    let (mut first, hello) =
        greeted(&broker, "/hub", &[("sec-websocket-protocol", &*format!("pushring.1, bearer.{ann}"))]).unwrap();
    let mut second = enter_with(&broker, &ann);
    let long = "l".repeat(255);
    for (client, asked) in [
        (&mut first, [("a", true), ("c", false), (&*long, false)]),
        (&mut second, [("a", false), ("b", true), ("d", true)]),
    ] {
        for (topic, envelope) in asked {
            let order = json!({"subscribe": topic, "envelope": envelope});
            assert_eq!(ask(client, order), json!({"subscribed": topic}));
        }
    }
    let all = json!([
        {"topic": "a", "subscribers": 2}, {"topic": "b", "subscribers": 1}, {"topic": "c", "subscribers": 1},
        {"topic": "d", "subscribers": 1}, {"topic": long, "subscribers": 1},
    ]);
    assert_eq!(look(&broker, "topics"), (200, json!({"topics": all, "next": null})));
    let (mut seen, mut after) = (Vec::new(), String::new());
    loop {
        let (_, page) = look(&broker, &format!("topics?limit=2{after}"));
        seen.extend(page["topics"].as_array().unwrap().clone());
        let Some(next) = page["next"].as_str() else { break };
        after = format!("&after={next}");
    }
    assert_eq!(Value::from(seen), all);
    assert_eq!(look(&broker, "topics?prefix=b").1["topics"], json!([{"topic": "b", "subscribers": 1}]));
    assert_eq!(look(&broker, "topics?prefix=%1e").1["topics"], json!([]));
    for (topic, count) in [("a", 2), ("b", 1)] {
        assert_eq!(look(&broker, &format!("topics/{topic}")), (200, json!({"topic": topic, "subscribers": count})));
        assert_eq!(look(&broker, &format!("topics/{topic}?nodes=true")).1["subscribers"], count);
    }
    assert_eq!(look(&broker, "topics/x").0, 404);
    assert_eq!(look(&broker, &format!("channels/{}", hello["channel_id"])).1["topics"], json!(["a", "c", long]));
}

/// Asks the API.
fn look(broker: &Broker, path: &str) -> (u16, Value) {
    ask_api(broker, &format!("GET /push:pushring:sys/api/{path}"), "", "")
}

#[test]
fn a_channel_is_taken_up_by_its_own_user_with_its_own_secret_once() {
    let broker = start(false);
    let user = |sub: &str| token(json!({"sub": sub, "may_subscribe": ["room.*"]}));
    let (ann, bob) = (user("ann"), user("bob"));
    let new = |token: &str| {
        let protocols = format!("pushring.1, bearer.{token}");
        greeted(&broker, "/hub", &[("sec-websocket-protocol", &protocols)]).unwrap()
    };
    let secret = |hello: &Value| hello["resume"].as_str().unwrap().to_owned();
    let (held, hello) = new(&ann);
    let (channel, own) = (hello["channel_id"].to_string(), secret(&hello));
    let (_other, others) = new(&ann);
    let guessed: String = own.chars().map(|c| if c == 'A' { 'B' } else { 'A' }).collect();
    for (attempt, token, channel, resume, reason) in [
        ("another user's", &bob, &channel, &own, "foreign"),
        ("a guess", &ann, &channel, &guessed, "unknown"),
        ("another channel's secret", &ann, &channel, &secret(&others), "foreign"),
        ("a channel that is not there", &ann, &"4000000000".to_owned(), &own, "unknown"),
    ] {
        let (_client, hello) = come_back(&broker, token, channel, resume);
        assert_eq!(hello["resumed"], false, "{attempt}: {hello}");
        let told = hello["reason"].as_str().unwrap();
        assert!(told == reason || told == "unknown" || told == "foreign" || told == "elsewhere", "{attempt}: {hello}");
        assert_ne!(hello["channel_id"].to_string(), *channel, "{attempt}");
    }
    // They did no harm: the channel is still there, with its client.
    drop(held);
    let (client, back) = come_back(&broker, &ann, &channel, &own);
    assert_eq!((&back["resumed"], back["channel_id"].to_string()), (&json!(true), channel.clone()), "{back}");
    drop(client);
    let (client, _) = come_back(&broker, &ann, &channel, &secret(&back));
    // A secret that was replaced twice is used up.
    let (_, again) = come_back(&broker, &ann, &channel, &own);
    assert_eq!(again["resumed"], false, "{again}");
    drop(client);
}
