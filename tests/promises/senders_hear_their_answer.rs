//! A client that sends first and reads later, as most do, sees the answer that was given before its body or message was
//! complete: a status or a close frame, and no reset.

use crate::node_support::{KEYFILE, Node, Options, token};
use crate::support::{PATIENCE, broker, on_each_driver, process};
use pushring::AttachOptions;
use pushring::internals::gateway::HttpRule;
use serde_json::json;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

const MEBIBYTE: usize = 1 << 20;

/// Sends all of it before it reads a byte.
fn send_then_read(address: SocketAddr, pieces: &[&[u8]]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    for piece in pieces {
        stream.write_all(piece).unwrap();
    }
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    answer
}

#[test]
fn who_sends_first_and_reads_later_sees_the_answer() {
    on_each_driver(|driver| {
        let broker = broker(driver, |_| {});
        let process = process(&broker, "sink", AttachOptions::default());
        process.bind_http("/authed", HttpRule { authenticated: true, ..HttpRule::default() }).unwrap();
        process.bind_http("/open", HttpRule::default()).unwrap();
        for (target, mebibytes, status) in [
            ("/nothing", 1, "404"),
            ("/nothing", 12, "404"),
            ("/nothing", 40, "413"),
            ("/sink:test:sys/authed", 12, "401"),
            ("/sink:test:sys/open", 30, "413"),
        ] {
            let body = vec![b'x'; mebibytes * MEBIBYTE];
            let head = |framing: &str| format!("POST {target} HTTP/1.1\r\nHost: localhost\r\n{framing}\r\n\r\n");
            let counted = head(&format!("Content-Length: {}", body.len()));
            let answer = send_then_read(broker.address(), &[counted.as_bytes(), &body]);
            assert!(answer.starts_with(format!("HTTP/1.1 {status} ").as_bytes()), "{target} {mebibytes}");
            if mebibytes <= 12 {
                let chunk = format!("{:x}\r\n", body.len());
                let pieces = [head("Transfer-Encoding: chunked").into_bytes(), chunk.into_bytes()];
                let answer = send_then_read(broker.address(), &[&pieces[0], &pieces[1], &body, b"\r\n0\r\n\r\n"]);
                assert!(answer.starts_with(format!("HTTP/1.1 {status} ").as_bytes()), "{target} {mebibytes} in chunks");
            }
        }
    });
}

#[test]
fn who_sends_too_large_a_message_hears_1009() {
    on_each_driver(|driver| {
        let broker = broker(driver, |_| {});
        let process = process(&broker, "sink", AttachOptions::default());
        process.bind("/", Default::default()).unwrap();
        for mebibytes in [17, 48] {
            let upgrade = "GET /sink:test:sys/ HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                 Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
            let payload = vec![0; mebibytes * MEBIBYTE];
            let header = [&[0x82, 0xff][..], &(payload.len() as u64).to_be_bytes(), &[0; 4]].concat();
            let answer = send_then_read(broker.address(), &[upgrade.as_bytes(), &header, &payload]);
            let at = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap() + 4;
            assert_eq!((answer[at], &answer[at + 2..at + 4]), (0x88, &1009_u16.to_be_bytes()[..]), "{mebibytes} MiB");
        }
    });
}

#[test]
fn who_is_logged_in_may_send_what_memory_allows() {
    let mut options = Options::default();
    options.config.memory_bytes_max = Some(200 * MEBIBYTE);
    let mut node = Node::start(options);
    let owner = "fake.os@app:app:test.os";
    for path in ["/authed", "/open"] {
        let bind =
            json!({"Bind": {"path": path, "authenticated": path == "/authed", "local_only": false, "cache": false}});
        assert_eq!(node.ask(owner, &bind.to_string(), None), r#"{"Ok":null}"#);
    }
    let body = vec![b'7'; 40 * MEBIBYTE];
    let post = |path: &str, cookie: &str, bytes: usize| {
        format!(
            "POST /app:app:test.os{path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{cookie}\
             Content-Length: {bytes}\r\n\r\n"
        )
    };
    let cookie = format!("Cookie: kinode-auth_fake.os={}\r\n", token(None));
    for path in ["/authed", "/open"] {
        let address = node.address;
        let head = post(path, &cookie, body.len());
        std::thread::scope(|scope| {
            let client = scope.spawn(|| send_then_read(address, &[head.as_bytes(), &body]));
            let request = node.next();
            assert_eq!(request.lazy_load_blob.as_ref().unwrap().bytes.len(), body.len(), "{path}");
            node.respond(request.id, owner, r#"{"status":201,"headers":{}}"#, None);
            assert!(client.join().unwrap().starts_with(b"HTTP/1.1 201 "));
        });
    }
    let stranger = send_then_read(node.address, &[post("/open", "", body.len()).as_bytes(), &body]);
    assert!(stranger.starts_with(b"HTTP/1.1 413 "));
    let page = send_then_read(node.address, &[post("/authed", "", body.len()).as_bytes(), &body]);
    assert!(page.starts_with(b"HTTP/1.1 200 "), "the login page");
    let over = send_then_read(
        node.address,
        &[post("/authed", &cookie, 101 * MEBIBYTE).as_bytes(), &vec![b'7'; 101 * MEBIBYTE]],
    );
    assert!(over.starts_with(b"HTTP/1.1 413 "), "over half of the budget");
    node.is_quiet();
}

#[test]
fn a_call_of_this_machine_may_bring_a_package_and_one_from_elsewhere_nothing() {
    for expose_local in [true, false] {
        let mut options = Options { expose_local, ..Options::default() };
        options.config.memory_bytes_max = Some(200 * MEBIBYTE);
        let mut node = Node::start(options);
        let package = "eHh4".repeat(6 * MEBIBYTE);
        let call = json!({"process": "app:app:test.os", "body": "install", "data": package}).to_string();
        let head = format!(
            "POST /rpc:distro:sys/message HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
             Content-Length: {}\r\n\r\n",
            call.len()
        );
        let answer = send_then_read(node.address, &[head.as_bytes(), call.as_bytes()]);
        if !expose_local {
            assert!(answer.starts_with(b"HTTP/1.1 403 "));
            node.is_quiet();
            continue;
        }
        assert!(answer.starts_with(b"HTTP/1.1 200 "), "{}", answer.escape_ascii());
        let blob = node.next().lazy_load_blob.unwrap();
        assert!(blob.bytes.len() == 18 * MEBIBYTE && blob.bytes.iter().all(|&byte| byte == b'x'));
    }
}

#[test]
fn a_login_is_refused_by_its_size_before_it_has_come() {
    let node = Node::start(Options::default());
    let mut stream = node.begin_http(
        "POST /login HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 10000000\r\n\r\n",
    );
    let mut answer = [0; 13];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 413 ");
    let login = json!({"password_hash": std::str::from_utf8(KEYFILE).unwrap(), "subdomain": ""}).to_string();
    let head = format!(
        "POST /login HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        login.len()
    );
    assert!(send_then_read(node.address, &[head.as_bytes(), login.as_bytes()]).starts_with(b"HTTP/1.1 200 "));
}

#[test]
fn a_node_takes_the_cookies_of_a_whole_localhost() {
    let node = Node::start(Options::default());
    let head = |bytes: usize| {
        format!(
            "GET /login HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nCookie: a={}\r\n\r\n",
            "x".repeat(bytes)
        )
    };
    assert!(send_then_read(node.address, &[head(60_000).as_bytes()]).starts_with(b"HTTP/1.1 200 "));
    assert!(send_then_read(node.address, &[head(70_000).as_bytes()]).starts_with(b"HTTP/1.1 431 "));
}
