//! Requests of the published process libraries are understood, and the answers are ones that they read: the JSON shapes
//! of `kinode_process_lib` 0.10 and 1.0, and of `hyperware_process_lib` 1.2, 2.3 and 3.0, as their sources have them.

use pushring::ChannelId;
use pushring::node::{
    Dialect, EventMessages, HttpServerAction, HttpServerError, HttpServerRequest, IncomingHttpRequest,
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::HashMap;

/// The actions that all of them send, but for the extension's, whose field has the name of the node system.
#[derive(Serialize)]
enum Action {
    Bind { path: String, authenticated: bool, local_only: bool, cache: bool },
    SecureBind { path: String, cache: bool },
    Unbind { path: String },
    WebSocketBind { path: String, authenticated: bool, extension: bool },
    WebSocketSecureBind { path: String, extension: bool },
    WebSocketUnbind { path: String },
    WebSocketPush { channel_id: u32, message_type: MessageType },
    WebSocketClose(u32),
}

#[derive(Debug, Serialize, Deserialize, PartialEq)]
enum MessageType {
    Text,
    Binary,
    Ping,
    Pong,
    Close,
}

/// Their incoming messages, up to 2.x.
#[derive(Debug, Deserialize, PartialEq)]
enum Request {
    Http(Box<Incoming>),
    WebSocketOpen { path: String, channel_id: u32 },
    WebSocketPush { channel_id: u32, message_type: MessageType },
    WebSocketClose(u32),
}

/// The additional fields of an open in 3.0.
#[derive(Debug, Deserialize)]
enum RequestOf3 {
    WebSocketOpen {
        channel_id: u32,
        #[serde(default)]
        source_socket_addr: Option<String>,
        #[serde(default)]
        forwarded_for: Option<String>,
    },
}

#[derive(Debug, Deserialize, PartialEq)]
struct Incoming {
    source_socket_addr: Option<String>,
    method: String,
    url: String,
    bound_path: String,
    headers: HashMap<String, String>,
    url_params: HashMap<String, String>,
    query_params: HashMap<String, String>,
}

#[derive(Debug, Deserialize, PartialEq)]
enum ServerError {
    MalformedRequest,
    NoBlob,
    InvalidSourceProcess,
    WsPingPongTooLong,
    WsChannelNotFound,
}

#[test]
fn their_actions_are_read_as_they_write_them() {
    let path = || "/x".to_owned();
    let actions = [
        Action::Bind { path: path(), authenticated: true, local_only: false, cache: true },
        Action::SecureBind { path: path(), cache: false },
        Action::Unbind { path: path() },
        Action::WebSocketBind { path: path(), authenticated: true, extension: true },
        Action::WebSocketSecureBind { path: path(), extension: false },
        Action::WebSocketUnbind { path: path() },
        Action::WebSocketPush { channel_id: 7, message_type: MessageType::Binary },
        Action::WebSocketClose(7),
    ];
    for action in actions {
        let theirs = serde_json::to_value(&action).unwrap();
        let ours: HttpServerAction = serde_json::from_value(theirs.clone()).unwrap();
        assert_eq!(serde_json::to_value(&ours).unwrap(), theirs, "nothing is lost, nothing is added");
    }
    for field in ["kinode_message_type", "hyperware_message_type"] {
        let theirs = json!({"WebSocketExtPushData": {"id": 1, field: "Request", "blob": [1, 2]}});
        serde_json::from_value::<HttpServerAction>(theirs).unwrap();
    }
    let theirs = json!({"WebSocketExtPushOutgoing": {
        "channel_id": 7, "message_type": "Binary", "desired_reply_type": "Response"}});
    serde_json::from_value::<HttpServerAction>(theirs).unwrap();
}

#[test]
fn our_requests_are_read_as_they_read_them() {
    let process = "p:p:t.os".parse().unwrap();
    for dialect in [Dialect::Kinode, Dialect::Hyperdrive] {
        let events = EventMessages::new("alice.os", dialect);
        let (channel, peer) = (ChannelId::new(7), "127.0.0.1:5000".parse().unwrap());
        let opened = events.opened(0, &process, channel, "/ws".into(), peer, Some("10.0.0.1".into()));
        let Request::WebSocketOpen { path, channel_id: 7 } = serde_json::from_slice(opened.message.body()).unwrap()
        else {
            panic!("{opened:?}");
        };
        assert_eq!(path, "/ws");
        let RequestOf3::WebSocketOpen { channel_id, source_socket_addr, forwarded_for } =
            serde_json::from_slice(opened.message.body()).unwrap();
        assert_eq!(channel_id, 7);
        let is_told = dialect == Dialect::Hyperdrive;
        assert_eq!((source_socket_addr.is_some(), forwarded_for.is_some()), (is_told, is_told));

        let request = |request: HttpServerRequest| -> Request {
            serde_json::from_value(serde_json::to_value(request).unwrap()).unwrap()
        };
        let incoming = IncomingHttpRequest {
            source_socket_addr: Some("127.0.0.1:5000".into()),
            method: "GET".into(),
            url: "http://localhost/p:p:t.os/x".into(),
            bound_path: "/p:p:t.os/x".into(),
            ..Default::default()
        };
        let Request::Http(read) = request(HttpServerRequest::Http(incoming)) else { panic!("an HTTP request") };
        assert_eq!((&*read.method, &*read.bound_path), ("GET", "/p:p:t.os/x"));
        assert_eq!(request(HttpServerRequest::WebSocketClose(7)), Request::WebSocketClose(7));
    }
    for (ours, theirs) in [
        (HttpServerError::MalformedRequest, ServerError::MalformedRequest),
        (HttpServerError::NoBlob, ServerError::NoBlob),
        (HttpServerError::InvalidSourceProcess, ServerError::InvalidSourceProcess),
        (HttpServerError::WsPingPongTooLong, ServerError::WsPingPongTooLong),
        (HttpServerError::WsChannelNotFound, ServerError::WsChannelNotFound),
    ] {
        let answer = serde_json::to_vec(&Err::<(), _>(ours)).unwrap();
        assert_eq!(serde_json::from_slice::<Result<(), ServerError>>(&answer).unwrap(), Err(theirs));
    }
}
