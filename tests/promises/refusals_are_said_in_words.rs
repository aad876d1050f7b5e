//! Refusals are sentences, as text or as JSON, with the status of a node's own server: never an empty download. Also
//! the differences from that server in what is accepted, where a status shows them.

use crate::node_support::{Node, Options, http_response};
use serde_json::json;

const APP: &str = "app:app:test.os";
const OWNER: &str = "fake.os@app:app:test.os";

fn start() -> Node {
    let mut node = Node::start(Options::default());
    let bind = |path: &str, local_only: bool| {
        json!({"Bind": {"path": path, "authenticated": false, "local_only": local_only, "cache": false}}).to_string()
    };
    for (path, local_only) in [("/dyn", false), ("/local", true)] {
        assert_eq!(node.ask(OWNER, &bind(path, local_only), None), r#"{"Ok":null}"#);
    }
    node
}

/// A request by hand; status and the whole response.
fn ask(node: &Node, line: &str, fields: &str) -> (u16, String) {
    let close = "connection: close\r\n";
    http_response(node.begin_http(&format!("{line} HTTP/1.1\r\nhost: localhost\r\n{close}{fields}\r\n")))
}

#[track_caller]
fn is_said(response: &str) -> &str {
    let (head, body) = response.split_once("\r\n\r\n").unwrap();
    assert!(head.contains("\r\ncontent-type: text/plain; charset=utf-8"), "{response}");
    assert!(body.contains(' '), "a sentence: {response}");
    body
}

#[test]
fn what_is_refused_is_said_in_a_sentence() {
    let mut node = start();
    for (line, fields, status) in [
        ("GET /", "", 404),
        ("GET /nobody:none:sys/x", "", 404),
        ("POST /app:app:test.os/none", "content-length: 0\r\n", 404),
        ("GET /app:app:test.os/local", "x-forwarded-for: 1.2.3.4\r\n", 403),
        ("POST /rpc:distro:sys/message", "x-forwarded-for: 1.2.3.4\r\n", 403),
        ("TRACE /app:app:test.os/dyn", "", 405),
        ("GET /", "host: again\r\n", 400),
        ("GET /", "expect: miracles\r\n", 417),
    ] {
        let (got, response) = ask(&node, line, fields);
        assert_eq!(got, status, "{line}: {response}");
        is_said(&response);
        if !matches!(status, 400 | 417) {
            let (got, response) = ask(&node, line, &format!("{fields}accept: application/json\r\n"));
            let (head, body) = response.split_once("\r\n\r\n").unwrap();
            assert!(got == status && head.contains("\r\ncontent-type: application/json"), "{response}");
            let body: serde_json::Value = serde_json::from_str(body).unwrap();
            assert!(body["error"].as_str().unwrap().contains(' '), "{response}");
        }
    }
    let browser = "accept: text/html,application/xhtml+xml,application/json;q=0.9,*/*;q=0.8\r\n";
    is_said(&ask(&node, "GET /", browser).1);
    let waiting = node.begin_http("GET /app:app:test.os/dyn HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    let (id, ..) = node.heard();
    node.respond(id, OWNER, "no response", None);
    let (status, response) = http_response(waiting);
    assert_eq!(status, 500);
    is_said(&response);
    let mut one_second = Options::default();
    one_second.config.settings.response_timeout_s = 1;
    let mut node = Node::start(one_second);
    let bind = r#"{"Bind":{"path":"/dyn","authenticated":false,"local_only":false,"cache":false}}"#;
    assert_eq!(node.ask(OWNER, bind, None), r#"{"Ok":null}"#);
    let (status, response) = ask(&node, &format!("GET /{APP}/dyn"), "");
    assert_eq!(status, 408);
    is_said(&response);
}

#[test]
fn an_error_without_a_body_starts_no_download() {
    let mut node = start();
    let mut answer = |body: &str, blob: Option<&[u8]>| {
        let waiting =
            node.begin_http("GET /app:app:test.os/dyn HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        let (id, ..) = node.heard();
        node.respond(id, OWNER, body, blob);
        http_response(waiting).1
    };
    let bare = answer(r#"{"status":404,"headers":{}}"#, None);
    assert!(bare.contains("\r\ncontent-type: text/plain; charset=utf-8\r\n") && bare.ends_with("\r\n\r\n"), "{bare}");
    let own = answer(r#"{"status":404,"headers":{"Content-Type":"text/html"}}"#, None);
    assert!(own.contains("\r\ncontent-type: text/html\r\n"), "{own}");
    for (body, blob) in [(r#"{"status":200,"headers":{}}"#, None), (r#"{"status":404,"headers":{}}"#, Some(&b"x"[..]))]
    {
        let bytes = answer(body, blob);
        assert!(bytes.contains("\r\ncontent-type: application/octet-stream\r\n"), "as nodes have it: {bytes}");
    }
}

#[test]
fn http_2_in_the_clear_is_refused_with_505() {
    let node = start();
    let (status, response) = http_response(node.begin_http("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"));
    assert_eq!(status, 505);
    assert!(is_said(&response).contains("HTTP/1.1"), "{response}");
}
