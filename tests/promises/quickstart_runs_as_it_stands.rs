//! `docs/QUICKSTART.md` runs as it stands: its commands start the hub and publish, and what its page says to the hub brings the
//! message. Only addresses are others, since tests run side by side.

use crate::support;

use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::process::Command;
use support::daemon::{Daemon, pushring};
use support::{PATIENCE, Patient, recv, send};
use tungstenite::client::IntoClientRequest;

const PAGE: &str = include_str!("../../docs/QUICKSTART.md");

fn blocks(language: &str) -> Vec<&'static str> {
    let fence = format!("```{language}\n");
    PAGE.match_indices(&fence).map(|(at, _)| PAGE[at + fence.len()..].split("\n```").next().unwrap()).collect()
}

/// What stands between two texts of the page.
fn between<'a>(text: &'a str, before: &str, after: &str) -> &'a str {
    let rest = &text[text.find(before).unwrap_or_else(|| panic!("no {before}")) + before.len()..];
    &rest[..rest.find(after).unwrap()]
}

#[test]
fn the_page_the_daemon_and_the_command_meet() {
    let directory = std::env::temp_dir().join(format!("pushring-quickstart-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let shell = |script: &str| {
        let output = Command::new("sh").args(["-ec", script]).current_dir(&directory).output().unwrap();
        assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let [start, publish] = blocks("sh")[..] else { panic!("two commands") };
    let (make_token, serve) = start.split_once('\n').unwrap();
    shell(make_token);
    let flags: Vec<&str> = serve.split_whitespace().skip(1).collect();
    let mut command = pushring(&flags);
    let addresses = ["--listen", "127.0.0.1:0", "--api-listen", "127.0.0.1:0", "--admin-listen", "off"];
    let mut daemon = Daemon::spawn(command.args(addresses).current_dir(&directory));
    let mut log = BufReader::new(daemon.child.stderr.take().unwrap());
    let api = loop {
        let mut line = String::new();
        assert!(log.read_line(&mut line).unwrap() > 0, "it says where backends publish");
        if line.contains("publish at") {
            break between(&line, "http://", "/api/push").to_owned();
        }
    };

    let page = blocks("html")[0];
    let (url, protocol) = (between(page, "WebSocket(\"", "\""), between(page, "/hub\", \"", "\""));
    let url = url.replace("127.0.0.1:8080", &daemon.address);
    let mut request = url.into_client_request().unwrap();
    request.headers_mut().insert("sec-websocket-protocol", protocol.parse().unwrap());
    request.headers_mut().insert("origin", "https://some.example".parse().unwrap());
    let stream = TcpStream::connect(&daemon.address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let (mut client, response) = tungstenite::client(request, Patient(stream)).unwrap();
    assert_eq!(response.headers()["sec-websocket-protocol"], "pushring.1");
    let order = between(page, "socket.send('", "'").replace("\\u001e", "\u{1e}");
    send(&mut client, order);
    let is_shown = |text: &str| !text.starts_with('\u{1e}') && !text.starts_with("{\"pushring\":1");
    let mut next = || recv(&mut client).into_text().unwrap().to_string();
    assert!(!is_shown(&next()), "the hello is not shown");
    assert_eq!(next(), "\u{1e}{\"id\":1,\"subscribed\":\"public.news\"}");

    let answer = shell(&publish.replace("127.0.0.1:9465", &api));
    assert_eq!(answer, "{\"accepted\":true}");
    let shown = next();
    assert!(is_shown(&shown) && shown == "hello", "{shown}");
    drop(daemon);
    let _ = std::fs::remove_dir_all(&directory);
}
