//! What `docs/NODE.md` tells a node to write compiles against types shaped like a node's own, and serves; blobs go through
//! it by moves.
#![allow(missing_docs)]

mod node_support;
mod support;

use node_support::support::{Client, recv};
use pushring::node::{Host, http_server_process};
use std::net::TcpStream;
use tokio::sync::mpsc;
use tungstenite::Message;

/// A node's types, as far as its HTTP server meets them.
mod lib {
    pub mod core {
        pub struct ProcessId(String, String, String);

        impl ProcessId {
            pub fn new(process: Option<&str>, package: &str, publisher: &str) -> Self {
                Self(process.unwrap_or_default().into(), package.into(), publisher.into())
            }

            pub fn process(&self) -> &str {
                &self.0
            }

            pub fn package(&self) -> &str {
                &self.1
            }

            pub fn publisher(&self) -> &str {
                &self.2
            }
        }

        pub struct Address {
            pub node: String,
            pub process: ProcessId,
        }

        pub struct KernelMessage {
            pub id: u64,
            pub source: Address,
            pub target: Address,
            pub rsvp: Option<Address>,
            pub message: Message,
            pub lazy_load_blob: Option<LazyLoadBlob>,
        }

        pub enum Message {
            Request(Request),
            Response((Response, Option<Vec<u8>>)),
        }

        pub struct Request {
            pub inherit: bool,
            pub expects_response: Option<u64>,
            pub body: Vec<u8>,
            pub metadata: Option<String>,
            #[expect(dead_code, reason = "the HTTP server gives none and takes none")]
            pub capabilities: Vec<(Capability, Vec<u8>)>,
        }

        pub struct Response {
            pub inherit: bool,
            pub body: Vec<u8>,
            pub metadata: Option<String>,
            #[expect(dead_code, reason = "the HTTP server gives none and takes none")]
            pub capabilities: Vec<(Capability, Vec<u8>)>,
        }

        #[expect(dead_code, reason = "the HTTP server gives none and takes none")]
        pub struct Capability {
            pub issuer: Address,
            pub params: String,
        }

        pub struct LazyLoadBlob {
            pub mime: Option<String>,
            pub bytes: Vec<u8>,
        }

        #[expect(dead_code, reason = "terminals show them")]
        pub struct Printout {
            pub verbosity: u8,
            pub content: String,
        }
    }
}

mod keygen {
    use super::lib::core::ProcessId;

    pub fn decode_keyfile(keyfile: &[u8], password_hash: &str) -> Result<(), &'static str> {
        if keyfile == password_hash.as_bytes() { Ok(()) } else { Err("wrong password") }
    }

    pub fn generate_jwt(_: &[u8], node: &str, subdomain: &Option<ProcessId>) -> Option<String> {
        let subdomain = subdomain.as_ref().map(|id| format!("{}:{}:{}", id.process(), id.package(), id.publisher()));
        Some(format!("{node}/{}", subdomain.unwrap_or_default()))
    }
}

/// The very text of the page.
mod adapter {
    use super::{keygen, lib};

    include!("node_adapter/adapter.rs");
}

use adapter::Adapter;
use lib::core as theirs;
use pushring::node as ours;

const NODE: &str = "fake.os";

/// Where a node spawned its own server; the very text of the page.
fn spawn_server(
    recv_in_server: mpsc::Receiver<theirs::KernelMessage>,
    send_to_loop: mpsc::Sender<theirs::KernelMessage>,
    print_sender: mpsc::Sender<theirs::Printout>,
) -> tokio::task::JoinHandle<Result<(), ours::ServerError>> {
    let (our_name, jwt_secret_bytes) = (NODE.to_string(), b"secret".to_vec());
    let (encoded_keyfile, our_port, expose_local) = (b"0xfeed".to_vec(), 0, false);
    include!("node_adapter/spawn.rs")
}

#[test]
fn the_page_shows_what_compiles_here() {
    let page = include_str!("../docs/NODE.md");
    for text in [include_str!("node_adapter/adapter.rs"), include_str!("node_adapter/spawn.rs")] {
        let indented = text.lines().next().is_some_and(|line| line.starts_with("    "));
        let shown: String = text
            .lines()
            .map(|line| line.strip_prefix(if indented { "    " } else { "" }).unwrap_or(line))
            .fold(String::new(), |shown, line| shown + line + "\n");
        assert!(page.contains(&shown), "docs/NODE.md does not show:\n{shown}");
    }
}

fn address(node: &str, process: &str) -> theirs::Address {
    let process = theirs::ProcessId::new(Some(process), "app", "test.os");
    theirs::Address { node: node.into(), process }
}

fn request(body: &str, blob: Option<Vec<u8>>, expects_response: Option<u64>) -> theirs::KernelMessage {
    theirs::KernelMessage {
        id: 7,
        source: address(NODE, "app"),
        target: theirs::Address {
            node: NODE.into(),
            process: theirs::ProcessId::new(Some("http-server"), "distro", "sys"),
        },
        rsvp: None,
        message: theirs::Message::Request(theirs::Request {
            inherit: false,
            expects_response,
            body: body.into(),
            metadata: Some("kept".into()),
            capabilities: Vec::new(),
        }),
        lazy_load_blob: blob.map(|bytes| theirs::LazyLoadBlob { mime: None, bytes }),
    }
}

#[test]
fn messages_go_through_it_whole_and_blobs_by_moves() {
    let adapter = Adapter { our_node: NODE.into(), jwt_secret: vec![] };
    let blob = vec![7; 1 << 20];
    let at = blob.as_ptr();
    let ours = adapter.to_ours(request("body", Some(blob), Some(5))).unwrap();
    assert_eq!((ours.id, ours.source.to_string()), (7, "fake.os@app:app:test.os".into()));
    assert_eq!(ours.target.process, http_server_process());
    let back = adapter.to_node(ours);
    assert_eq!(back.lazy_load_blob.unwrap().bytes.as_ptr(), at);
    let theirs::Message::Request(request) = back.message else { panic!("a request") };
    assert_eq!(
        (request.expects_response, request.metadata.as_deref(), &request.body[..]),
        (Some(5), Some("kept"), &b"body"[..])
    );
    assert_eq!(adapter.login(b"0xfeed", "0xbad", None), Ok(None));
    let process = "app:app:test.os".parse().unwrap();
    assert_eq!(adapter.login(b"0xfeed", "0xfeed", Some(&process)), Ok(Some("fake.os/app:app:test.os".into())));
}

#[test]
fn a_node_with_it_serves() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let (to_server, recv_in_server) = mpsc::channel(32);
        let (send_to_loop, mut from_server) = mpsc::channel(100_000);
        let (print_sender, mut prints) = mpsc::channel(32);
        let server = spawn_server(recv_in_server, send_to_loop, print_sender);
        let line = prints.recv().await.unwrap().content;
        let port = line.rsplit(':').next().unwrap().parse::<u16>().unwrap();
        let bind = r#"{"WebSocketBind":{"path":"/","authenticated":false,"extension":false}}"#;
        to_server.send(request(bind, None, Some(5))).await.unwrap_or_else(|_| panic!("the server has gone"));
        let theirs::Message::Response((answer, _)) = from_server.recv().await.unwrap().message else { panic!() };
        assert_eq!(answer.body, br#"{"Ok":null}"#);
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(node_support::support::PATIENCE)).unwrap();
        let url = format!("ws://127.0.0.1:{port}/app:app:test.os/");
        let mut client: Client = tungstenite::client(url, stream).unwrap().0;
        let theirs::Message::Request(opened) = from_server.recv().await.unwrap().message else { panic!() };
        let opened: serde_json::Value = serde_json::from_slice(&opened.body).unwrap();
        let push = node_support::push(opened["WebSocketOpen"]["channel_id"].as_u64().unwrap());
        let sent = to_server.send(request(&push, Some(b"hello".to_vec()), None)).await;
        sent.unwrap_or_else(|_| panic!("the server has gone"));
        assert_eq!(recv(&mut client), Message::text("hello"));
        drop((client, to_server));
        server.await.unwrap().unwrap();
    });
}
