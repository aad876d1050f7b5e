//! The client for Python holds what its page promises, against the daemon and against a broker that misbehaves, and the
//! page runs as it stands. Run where Python is there; where it is not, the test says so.

use crate::support;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use support::hub::{Hub, blocks};
use support::nats::Nats;
use support::{free_port, recv, send, tls};
use tungstenite::Message;

const LINK_TOKEN: &str = "a token of the link";
const API_TOKEN: &str = "a token of the api";
const PAGE: &str = include_str!("../../clients/python/README.md");

fn clients() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/python")
}

/// None, if there is no Python 3.10 or newer, or one that finds the client.
fn python() -> Option<Command> {
    let mut command = Command::new("python3");
    let check = "import sys; sys.exit(sys.version_info < (3, 10))";
    if !Command::new("python3").args(["-c", check]).status().is_ok_and(|status| status.success()) {
        println!("NOT RUN: there is no Python 3.10");
        return None;
    }
    command.arg("-B").env("PYTHONPATH", clients().join("src"));
    Some(command)
}

fn passes(command: &mut Command) {
    let ran = command.output().unwrap();
    assert!(ran.status.success(), "{}\n{}", String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
}

#[test]
fn processes_and_publishers_work() {
    let Some(mut python) = python() else { return };
    let pair = tls::pair();
    let prepare = |directory: &Path| {
        for (name, text) in
            [("chain", &*pair.chain), ("key", &pair.key), ("token", LINK_TOKEN), ("api-token", API_TOKEN)]
        {
            std::fs::write(directory.join(name), text).unwrap();
        }
    };
    // A port that was free a moment ago.
    let tcp = format!("127.0.0.1:{}", free_port());
    let over_tcp = ["--link-tcp", &tcp, "--link-token-file", "token", "--link-tls-certs", "chain:key"];
    let hub = Hub::prepared("python", prepare, &[&["--link", "link"], &over_tcp[..]].concat());
    passes(
        python
            .arg(clients().join("tests/test_client.py"))
            .env("PUSHRING_URL", format!("http://{}", hub.daemon.address))
            .env("PUSHRING_LINK", hub.directory.join("link"))
            .env("PUSHRING_LINK_TCP", &tcp)
            .env("PUSHRING_LINK_TOKEN", LINK_TOKEN)
            .env("PUSHRING_LINK_TRUST", hub.directory.join("chain"))
            .env("PUSHRING_API", format!("http://{}", hub.api))
            .env("PUSHRING_TOKEN", &hub.token),
    );
}

/// In a fleet of one node.
#[test]
fn publishers_name_channels_by_their_nodes() {
    let Some(mut python) = python() else { return };
    let Some(nats) = Nats::start("") else { return };
    let hub = Hub::start("python-fleet", &["--fleet-nats", &nats.url(), "--fleet-node", "node-1"]);
    passes(
        python
            .arg(clients().join("tests/test_client.py"))
            .arg("Published.test_channels_of_other_nodes_are_named_in_every_form")
            .env("PUSHRING_URL", format!("http://{}", hub.daemon.address))
            .env("PUSHRING_LINK", "")
            .env("PUSHRING_LINK_TCP", "")
            .env("PUSHRING_API", format!("http://{}", hub.api))
            .env("PUSHRING_TOKEN", &hub.token)
            .env("PUSHRING_NODE", "node-1"),
    );
}

#[test]
fn a_broker_that_misbehaves_is_survived() {
    let Some(mut python) = python() else { return };
    passes(python.arg(clients().join("tests/test_faults.py")));
}

/// The client, its tests, and the programs of its page and of the quickstart.
#[test]
fn it_is_typed_and_so_are_programs_that_use_it() {
    let Some(mut python) = python() else { return };
    let mypy = Command::new("python3").args(["-m", "mypy", "--version"]).output();
    if !mypy.is_ok_and(|mypy| mypy.status.success()) {
        println!("NOT RUN: there is no mypy");
        return;
    }
    let directory = std::env::temp_dir().join(format!("pushring-typed-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    // Whether an outcome is asked for may be known only when it runs.
    let asks = "import pushring\n\n\nasync def ask(room: pushring.Process, does: bool) -> None:\n    \
                print(await room.push(7, 'x', outcome=does), await room.broadcast('x', outcome=does))\n    \
                print((await room.push(7, 'x', outcome=True)).sent)\n\n\n\
                async def publish(to: pushring.Publisher, does: bool) -> None:\n    \
                print(to.publish('x', topic='t', outcome=does), await to.publish_async('x', user='u', outcome=does))\n    \
                print(to.publish(json=7, topic='t', outcome=True).sent)\n    \
                print((await to.publish_async('x', topic='t', outcome=True)).sent)\n";
    let pages = [PAGE, include_str!("../../docs/QUICKSTART.md")];
    for (at, program) in pages.iter().flat_map(|page| blocks(page, "python")).chain([asks]).enumerate() {
        std::fs::write(directory.join(format!("program_{at}.py")), format!("{program}\n")).unwrap();
    }
    let checked = python
        .args(["-m", "mypy", "--strict", "--cache-dir", "/dev/null"])
        .args([clients().join("src"), clients().join("tests"), directory.clone()])
        .output()
        .unwrap();
    std::fs::remove_dir_all(&directory).unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
}

struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn its_page_runs_as_it_stands() {
    let Some(mut python) = python() else { return };
    let hub = Hub::start("python-page", &["--link", "link"]);
    let [room, publish] = blocks(PAGE, "python")[..] else { panic!("two programs") };
    let room = room.replace("/tmp/pushring.sock", hub.directory.join("link").to_str().unwrap());
    let mut program = Program(python.args(["-c", &room]).stdout(Stdio::piped()).spawn().unwrap());
    let mut line = String::new();
    BufReader::new(program.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.trim_end().ends_with(&format!("ws://{}/room:python:sys/", hub.daemon.address)), "{line}");
    let mut clients = [hub.daemon.connect("/room:python:sys/"), hub.daemon.connect("/room:python:sys/")];
    for (from, to, message) in [(0, 1, Message::text("to all")), (1, 0, Message::binary(vec![0, 1]))] {
        send(&mut clients[from], message.clone());
        assert_eq!(recv(&mut clients[to]), message);
    }
    let publish = publish.replace("127.0.0.1:9465", &hub.api);
    passes(self::python().unwrap().args(["-c", &publish]).current_dir(&hub.directory));
}
