//! Tokens of the hub, however they come, renewals, resume tokens, the API's token and the webhooks' secret pass through
//! a daemon that logs everything, and none of them, nor a signature of one, is in its log, in an answer, or in what an
//! operator is told.

use crate::support;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL};
use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Value, json};
use std::io::{Read, Write};
use support::daemon::{Daemon, TemporaryFile, pushring};
use support::{Patient, free_port, recv, send};
use tungstenite::client::IntoClientRequest;

const KEY: &str = "a-secret-of-the-hub-which-is-long-enough";
const API_TOKEN: &str = "a-token-of-the-api-of-some-length";
const WEBHOOK: &str = "a-secret-of-the-webhooks-of-some-length";

/// A token of `user`, signed by `key`.
fn token(key: &str, user: &str) -> String {
    let claims = json!({"aud": "pushring-hub", "sub": user, "may_subscribe": ["*"]}).to_string();
    let signed = format!("{}.{}", BASE64URL.encode(r#"{"alg":"HS256"}"#), BASE64URL.encode(claims));
    let mut mac = Hmac::<sha2::Sha256>::new_from_slice(key.as_bytes()).unwrap();
    mac.update(signed.as_bytes());
    format!("{signed}.{}", BASE64URL.encode(mac.finalize().into_bytes()))
}

/// Comes with these fields; what the client is greeted by, or the answer.
fn enter(daemon: &Daemon, path: &str, fields: &[(&str, String)]) -> Result<(support::Client, Value), String> {
    let mut request = format!("ws://{}{path}", daemon.address).into_client_request().unwrap();
    for (name, value) in fields {
        let name: tungstenite::http::HeaderName = name.parse().unwrap();
        request.headers_mut().append(name, value.parse().unwrap());
    }
    match tungstenite::client(request, Patient::new(daemon.stream())) {
        Ok((mut client, response)) => {
            assert_eq!(response.headers()["sec-websocket-protocol"], "pushring.1");
            let hello = recv(&mut client).into_text().unwrap();
            Ok((client, serde_json::from_str(&hello).unwrap()))
        }
        Err(tungstenite::HandshakeError::Failure(tungstenite::Error::Http(answer))) => {
            let body = answer.body().clone().unwrap_or_default();
            Err(format!("{:?} {}", answer.headers(), String::from_utf8_lossy(&body)))
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn no_secret_of_the_hub_is_told_to_anybody() {
    let [key, api, webhook] = [("hub-key", KEY), ("hub-api", API_TOKEN), ("hub-webhook", WEBHOOK)]
        .map(|(name, text)| TemporaryFile::new(name, text));
    // There is no listener: events cannot be delivered, and that is logged.
    let nobody = format!("127.0.0.1:{}", free_port());
    let url = format!("http://{nobody}/a-path-that-is-a-secret");
    let mut command = pushring(&["serve", "--hub", "--hub-open", "--log", "trace", "--listen", "127.0.0.1:0"]);
    command.args(["--hub-secret-file", key.path(), "--api-token-file", api.path(), "--api-listen", "off"]);
    command.args(["--api-on-listen", "--hub-webhook-url", &url, "--hub-webhook-secret-file", webhook.path()]);
    command.args(["--hub-webhook-give-up", "1ms"]);
    let mut daemon = Daemon::spawn(&mut command);
    let mut logged = daemon.child.stderr.take().unwrap();
    let reader = std::thread::spawn(move || {
        let mut log = String::new();
        logged.read_to_string(&mut log).unwrap();
        log
    });
    let (ann, bob, forged) = (token(KEY, "ann"), token(KEY, "bob"), token("another", "ann"));
    let protocol = |elements: &str| ("sec-websocket-protocol", format!("pushring.1, {elements}"));
    let mut told = Vec::new();
    for fields in [
        vec![protocol(&format!("bearer.{forged}"))],
        vec![protocol("x"), ("authorization", format!("Bearer {forged}"))],
        vec![protocol("x"), ("cookie", format!("pushring-hub={forged}"))],
        vec![protocol(&format!("bearer.{ann}")), ("authorization", format!("Bearer {bob}"))],
        vec![("sec-websocket-protocol", format!("bearer.{ann}"))],
        vec![protocol("x"), ("cookie", format!("pushring-hub={ann}")), ("origin", "https://evil.example".to_owned())],
    ] {
        told.push(enter(&daemon, "/hub", &fields).map(drop).unwrap_err());
    }
    told.push(enter(&daemon, "/elsewhere", &[protocol(&format!("bearer.{ann}, resume.1.x.0"))]).map(drop).unwrap_err());
    let (mut client, hello) = enter(&daemon, "/hub", &[protocol(&format!("bearer.{ann}"))]).unwrap();
    for order in [json!({"renew": forged}), json!({"renew": bob}), json!({"renew": ann}), json!({"renew": 7})] {
        send(&mut client, format!("\u{1e}{order}"));
        told.push(recv(&mut client).into_text().unwrap().to_string());
    }
    let (first, channel) = (hello["resume"].as_str().unwrap().to_owned(), hello["channel_id"].clone());
    drop(client);
    let element = |resume: &str| protocol(&format!("bearer.{ann}, resume.{channel}.{resume}.0"));
    let (client, hello) = enter(&daemon, "/hub", &[element(&first)]).unwrap();
    let second = hello["resume"].as_str().unwrap().to_owned();
    drop(client);
    let (client, _) = enter(&daemon, "/hub", &[element("AAAAAAAAAAAAAAAAAAAAAA")]).unwrap();
    drop(client);
    for shown in [API_TOKEN, "a-wrong-token-of-the-api", KEY] {
        told.push(daemon.get("/push:pushring:sys/api/topics", &format!("Authorization: Bearer {shown}\r\n")));
        told.push(daemon.get("/push:pushring:sys/api/push", &format!("Authorization: Bearer {shown}\r\n")));
    }
    let mut stream = daemon.stream();
    write!(stream, "GET /hub?token={ann} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", daemon.address).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    told.push(answer);
    daemon.signal("TERM");
    assert!(daemon.child.wait().unwrap().success());
    let log = reader.join().unwrap();
    assert!(log.contains("TRACE") || log.contains("DEBUG") || log.lines().count() > 3, "{log}");
    assert!(log.contains("a webhook was given up"), "{log}");
    told.push(log);
    let signature = |token: &str| token.rsplit('.').next().unwrap().to_owned();
    let tokens = [&ann, &bob, &forged].map(|token| [token.clone(), signature(token)]).concat();
    let others = [KEY, API_TOKEN, WEBHOOK, "a-wrong-token-of-the-api", "a-path-that-is-a-secret", &first, &second];
    for text in &told {
        for secret in tokens.iter().map(String::as_str).chain(others) {
            assert!(!text.contains(secret), "{secret} is told:\n{text}");
        }
    }
}
