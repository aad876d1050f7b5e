use super::{Client, PATIENCE, WsMessage, decode_keyfile, node_support, recv};
use adapter::Node;
use lib::types::core as theirs;
use pushring::node::Host;
use std::net::TcpStream;
use theirs::{MessageReceiver, MessageSender, PrintSender};
use tokio::sync::mpsc;

struct Identity {
    name: String,
}

const NODE: &str = "fake.os";

fn address(node: &str, process: &str) -> theirs::Address {
    let process = theirs::ProcessId::new(Some(process), "app", "test.os");
    theirs::Address { node: node.into(), process }
}

fn request(body: &str, blob: Option<Vec<u8>>, expects_response: Option<u64>) -> theirs::KernelMessage {
    theirs::KernelMessage {
        id: 7,
        source: address(NODE, "app"),
        target: theirs::Address { node: NODE.into(), process: theirs::HTTP_SERVER_PROCESS_ID.clone() },
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
    let blob = vec![7; 1 << 20];
    let at = blob.as_ptr();
    let ours = Node.to_ours(request("body", Some(blob), Some(5))).unwrap();
    assert_eq!((ours.id, ours.source.to_string()), (7, "fake.os@app:app:test.os".into()));
    assert!(pushring::node::is_http_server(&ours.target.process));
    let back = Node.to_node(ours);
    assert_eq!(back.lazy_load_blob.unwrap().bytes.as_ptr(), at);
    assert_eq!((back.source, back.target.process), (address(NODE, "app"), theirs::HTTP_SERVER_PROCESS_ID.clone()));
    let theirs::Message::Request(request) = back.message else { panic!("a request") };
    assert_eq!(
        (request.expects_response, request.metadata.as_deref(), &request.body[..]),
        (Some(5), Some("kept"), &b"body"[..])
    );
    assert!(Node.is_password(b"0xfeed", "0xfeed") && !Node.is_password(b"0xfeed", "0xbad"));
    assert_eq!(Node.print(2, "said".into()).verbosity, 2);
}

#[test]
fn a_node_with_it_serves_and_says_goodbye() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let (to_server, http_server_receiver) = mpsc::channel(32);
        let (kernel_message_sender, mut from_server) = mpsc::channel(100_000);
        let (print_sender, mut prints) = mpsc::channel(32);
        let (quit, quitting) = tokio::sync::oneshot::channel::<()>();
        let quitting = async { drop(quitting.await) };
        let main = tokio::spawn(main(http_server_receiver, kernel_message_sender, print_sender, quitting));
        let line = prints.recv().await.unwrap().content;
        let port = line.rsplit(':').next().unwrap().parse::<u16>().unwrap();
        let bind = r#"{"WebSocketBind":{"path":"/","authenticated":false,"extension":false}}"#;
        to_server.send(request(bind, None, Some(5))).await.unwrap();
        let answer = from_server.recv().await.unwrap();
        assert_eq!(answer.source.process, theirs::HTTP_SERVER_PROCESS_ID.clone());
        let theirs::Message::Response((answer, _)) = answer.message else { panic!() };
        assert_eq!(answer.body, br#"{"Ok":null}"#);
        // Behind what this machine may give reason to warn of.
        let bound = "binding WebSocket \"/\" of app:app:test.os";
        while !prints.recv().await.unwrap().content.contains(bound) {}
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let url = format!("ws://127.0.0.1:{port}/app:app:test.os/");
        let mut client: Client = tungstenite::client(url, node_support::support::Patient::new(stream)).unwrap().0;
        let theirs::Message::Request(opened) = from_server.recv().await.unwrap().message else { panic!() };
        let opened: serde_json::Value = serde_json::from_slice(&opened.body).unwrap();
        let push = node_support::push(opened["WebSocketOpen"]["channel_id"].as_u64().unwrap());
        to_server.send(request(&push, Some(b"hello".to_vec()), None)).await.unwrap();
        assert_eq!(recv(&mut client), WsMessage::text("hello"));
        drop(quit);
        assert_eq!(main.await.unwrap(), "graceful exit");
        assert_eq!(super::support::recv_close(&mut client).0, 1001);
    });
}
