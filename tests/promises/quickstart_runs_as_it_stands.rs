//! `docs/QUICKSTART.md` runs as it stands: its commands start the hub and publish, what its page says to the hub brings
//! the message, and so do its programs in Python, Node and Rust. Only addresses are others, since tests run side by
//! side.

use crate::support;
use crate::{link_support, quickstart, quickstart_process};

use link_support::Linked;
use pushring::process_lib;
use std::process::Command;
use support::hub::{Hub, between, blocks};
use support::{Client, Patient, recv, send};
use tungstenite::Message;
use tungstenite::client::IntoClientRequest;

const PAGE: &str = include_str!("../../docs/QUICKSTART.md");

/// The daemon as the page starts it.
fn hub(name: &str) -> Hub {
    let start = blocks(PAGE, "sh")[0];
    let (make_token, serve) = start.split_once('\n').unwrap();
    let flags: Vec<&str> = serve.split_whitespace().skip(1).collect();
    assert_eq!(flags, ["serve", "--hub", "--hub-open", "--api-token-file", "api-token"]);
    Hub::prepared(name, |directory| drop(shell(make_token, directory)), &[])
}

fn shell(script: &str, directory: &std::path::Path) -> String {
    let output = Command::new("sh").args(["-ec", script]).current_dir(directory).output().unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Acts as the web page of the document.
fn open_page(hub: &Hub) -> Client {
    let page = blocks(PAGE, "html")[0];
    let (url, protocol) = (between(page, "WebSocket(\"", "\""), between(page, "/hub\", \"", "\""));
    let url = url.replace("127.0.0.1:8080", &hub.daemon.address);
    let mut request = url.into_client_request().unwrap();
    request.headers_mut().insert("sec-websocket-protocol", protocol.parse().unwrap());
    request.headers_mut().insert("origin", "https://some.example".parse().unwrap());
    let (mut client, response) = tungstenite::client(request, Patient::new(hub.daemon.stream())).unwrap();
    assert_eq!(response.headers()["sec-websocket-protocol"], "pushring.1");
    send(&mut client, between(page, "socket.send('", "'").replace("\\u001e", "\u{1e}"));
    assert!(!is_shown(&text(&mut client)), "the hello is not shown");
    assert_eq!(text(&mut client), "\u{1e}{\"id\":1,\"subscribed\":\"public.news\"}");
    client
}

fn text(client: &mut Client) -> String {
    recv(client).into_text().unwrap().to_string()
}

fn is_shown(text: &str) -> bool {
    !text.starts_with('\u{1e}') && !text.starts_with("{\"pushring\":1")
}

#[test]
fn the_page_the_daemon_and_the_command_meet() {
    let hub = hub("quickstart");
    let mut client = open_page(&hub);
    let publish = blocks(PAGE, "sh")[1].replace("127.0.0.1:9465", &hub.api);
    assert_eq!(shell(&publish, &hub.directory), "{\"accepted\":true}");
    let shown = text(&mut client);
    assert!(is_shown(&shown) && shown == "hello", "{shown}");
}

fn is_there(program: &str, version: &str) -> bool {
    let is_there = Command::new(program).args(["-c", version]).output().is_ok_and(|output| output.status.success());
    if !is_there {
        println!("NOT RUN: there is no {program} that is new enough");
    }
    is_there
}

#[test]
fn python_publishes() {
    if !is_there("python3", "import sys; sys.exit(sys.version_info < (3, 10))") {
        return;
    }
    let hub = hub("quickstart-python");
    let mut client = open_page(&hub);
    let [program] = blocks(PAGE, "python")[..] else { panic!("one program") };
    let output = Command::new("python3")
        .args(["-B", "-c", &program.replace("127.0.0.1:9465", &hub.api)])
        .env("PYTHONPATH", concat!(env!("CARGO_MANIFEST_DIR"), "/clients/python/src"))
        .current_dir(&hub.directory)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "1 clients\n");
    assert_eq!(text(&mut client), "hello from Python");
}

#[test]
fn node_subscribes_and_publishes() {
    if !Command::new("node").arg("--version").output().is_ok_and(|output| output.status.success()) {
        println!("NOT RUN: there is no Node");
        return;
    }
    let hub = hub("quickstart-node");
    let mut client = open_page(&hub);
    let package = hub.directory.join("node_modules/@pushring");
    std::fs::create_dir_all(&package).unwrap();
    std::os::unix::fs::symlink(concat!(env!("CARGO_MANIFEST_DIR"), "/clients/js"), package.join("client")).unwrap();
    let [program] = blocks(PAGE, "js")[..] else { panic!("one program") };
    let program = program.replace("127.0.0.1:8080", &hub.daemon.address).replace("127.0.0.1:9465", &hub.api);
    // It goes on for ever: so does this, until it has shown its message.
    let shown = "console.log = (...words) => { process.stdout.write(JSON.stringify(words)); process.exit(); };\n";
    std::fs::write(hub.directory.join("news.mjs"), format!("{shown}{program}")).unwrap();
    let output = Command::new("timeout")
        .args(["120", "node", "--experimental-websocket", "--no-warnings", "news.mjs"])
        .current_dir(&hub.directory)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "[{\"from\":\"Node\"}]");
    assert_eq!(text(&mut client), "{\"from\":\"Node\"}");
}

/// The program that stands there is the example, but for its first line of documentation.
fn is_the_example(program: &str, example: &str) {
    assert_eq!(program.trim_end(), example.split_once("\n\n").unwrap().1.trim_end());
}

#[test]
fn rust_has_the_broker_in_its_own_program() {
    is_the_example(blocks(PAGE, "rust")[0], include_str!("../../examples/quickstart.rs"));
    let broker = support::broker(support::driver(), |_| {});
    let handle = broker.handle();
    let room = std::thread::spawn(move || quickstart::serve(&handle).is_err());
    let mut clients = [0; 2].map(|_| support::connect_once_bound(&broker, "/room"));
    send(&mut clients[0], "hello");
    assert_eq!(recv(&mut clients[1]), Message::text("hello"));
    broker.stop(std::time::Duration::from_secs(1)).unwrap();
    assert!(room.join().unwrap(), "it ends with the broker");
}

#[test]
fn a_kinode_process_attaches() {
    is_the_example(blocks(PAGE, "rust")[1], include_str!("../../examples/quickstart_process.rs"));
    let linked = Linked::start("quickstart", |_| {});
    let process = process_lib::connect(&linked.path, "echo:rust:sys".parse().unwrap()).unwrap();
    let process = process.spawn(quickstart_process::init).unwrap();
    let mut client = support::connect_once_bound(&linked.broker, "/echo:rust:sys/");
    send(&mut client, "hello");
    assert_eq!(recv(&mut client), Message::text("hello"));
    linked.stop();
    process.join().unwrap();
}
