//! A node kernel's messages to the HTTP server: an action applies only to what its source may change, is answered as
//! the contract says, and every shape reads back what it writes.

use bytes::Bytes;
use pushring::node::{
    ActionRequest, Address, CheckedAction, Dialect, EventMessages, HttpResponse, HttpServerAction, HttpServerError,
    HttpServerRequest, Inbound, KernelMessage, LazyLoadBlob, Message, Request, Response, RpcMessage, RpcResponseBody,
    WsMessageType, WsRegister, dispatch, http_server_process, rpc_request, rpc_response_body,
};
use pushring::{Audience, ChannelId};
use serde::{Serialize, de::DeserializeOwned};
use std::fmt::Debug;

/// Hyperdrive rather than Kinode.
const HYPERDRIVE: u8 = 1;
/// The message comes from another node.
const FROM_AFAR: u8 = 2;
/// A response is expected.
const EXPECTS: u8 = 4;
/// Another process gets the response.
const RSVP: u8 = 8;
/// The message is a response.
const RESPONSE: u8 = 16;
/// The source's process id is one that may not bind.
const ODD_ID: u8 = 32;

/// The separator of body and blob: a byte that no JSON holds.
const BLOB: u8 = 0xff;

const OUR_NODE: &str = "alice.os";
const ID: u64 = 77;

/// A byte of settings, the body, and behind the first byte 255 the blob.
pub fn holds(data: &[u8]) {
    let Some((&settings, rest)) = data.split_first() else { return };
    let mut parts = rest.splitn(2, |&byte| byte == BLOB);
    let body = parts.next().unwrap_or_default();
    let blob = parts.next();
    shapes(body);
    let dialect = if settings & HYPERDRIVE != 0 { Dialect::Hyperdrive } else { Dialect::Kinode };
    judged(envelope(settings, body, blob), dialect, blob);
    rpc(body);
    extension(body, dialect);
}

/// A value of `T` that was read is written and read back as the same, whatever other fields the body has.
fn reads_back<T: Serialize + DeserializeOwned + PartialEq + Debug>(body: &[u8]) {
    let Ok(value) = serde_json::from_slice::<T>(body) else { return };
    let written = serde_json::to_vec(&value).expect("it is plain data");
    let again: T = serde_json::from_slice(&written).expect("what was written is read");
    assert_eq!(again, value);
}

fn shapes(body: &[u8]) {
    let general = serde_json::from_slice::<HttpServerAction>(body).ok();
    assert_eq!(HttpServerAction::from_bytes(body).ok(), general, "the short way differs");
    reads_back::<HttpServerAction>(body);
    reads_back::<HttpServerRequest>(body);
    reads_back::<HttpResponse>(body);
    reads_back::<KernelMessage>(body);
    reads_back::<RpcMessage>(body);
    reads_back::<RpcResponseBody>(body);
    reads_back::<WsRegister>(body);
    reads_back::<Result<(), HttpServerError>>(body);
    if let Ok(HttpServerRequest::Http(request)) = HttpServerRequest::from_bytes(body) {
        // Whatever the url and address are, asking for their parts answers or fails.
        let _ = (request.path(), request.source_socket_addr());
        let _ = request.bound_path(Some("p:p:t.os"));
    }
}

fn envelope(settings: u8, body: &[u8], blob: Option<&[u8]>) -> KernelMessage {
    let address = |text: &str| text.parse::<Address>().expect("a literal address");
    let body = body.to_vec();
    let message = match settings & RESPONSE {
        0 => {
            let expects_response = (settings & EXPECTS != 0).then_some(5);
            Message::Request(Request { body, expects_response, ..Request::default() })
        }
        _ => Message::Response((Response { body, ..Response::default() }, None)),
    };
    let node = if settings & FROM_AFAR != 0 { "bob.os" } else { "our" };
    let process = if settings & ODD_ID != 0 { "P_p:p:t.os" } else { "p:p:t.os" };
    KernelMessage {
        id: ID,
        source: address(&format!("{node}@{process}")),
        target: address("our@http-server:distro:sys"),
        rsvp: (settings & RSVP != 0).then(|| address("our@q:q:t.os")),
        message,
        lazy_load_blob: blob.map(|bytes| LazyLoadBlob { mime: None, bytes: bytes.to_vec() }),
    }
}

fn judged(message: KernelMessage, dialect: Dialect, blob: Option<&[u8]>) {
    let blob_at = message.lazy_load_blob.as_ref().map(|blob| blob.bytes.as_ptr());
    let (source, rsvp) = (message.source.clone(), message.rsvp.clone());
    let request = match &message.message {
        Message::Request(request) => Some(request.clone()),
        Message::Response(_) => None,
    };
    match dispatch(message, OUR_NODE, dialect) {
        Inbound::Response { id, source: from, .. } => assert!(request.is_none() && (id, from) == (ID, source)),
        Inbound::Refused(answer) => {
            assert!(request.is_some());
            is_answer(&answer, &source);
        }
        Inbound::Action(ActionRequest { action, reply }) => {
            let request = request.expect("only a request is acted on");
            let asked = HttpServerAction::from_bytes(&request.body).expect("only what parses is acted on");
            let outgoing = matches!(asked, HttpServerAction::WebSocketExtPushOutgoing { .. });
            let is_asked = request.expects_response.is_some() || rsvp.is_some();
            assert_eq!(reply.wants_success(), is_asked && !outgoing);
            assert_eq!(ActionRequest { action: close(), reply }.requester(), &source);
            is_permitted(&action, &source);
            match &action {
                CheckedAction::Push { message, .. } | CheckedAction::PushMany { message, .. } => {
                    is_sound(message.clone(), &asked, blob.expect("a push has a blob"), blob_at, outgoing);
                }
                _ => {}
            }
        }
    }
}

fn close() -> CheckedAction {
    CheckedAction::Close { channel: ChannelId::new(0) }
}

/// A refusal names the request and goes to its sender.
fn is_answer(answer: &KernelMessage, source: &Address) {
    assert_eq!((answer.id, &answer.target), (ID, source));
    let refused: Result<(), HttpServerError> =
        serde_json::from_slice(answer.message.body()).expect("an answer's body is a Result");
    assert!(refused.is_err() && matches!(answer.message, Message::Response(_)));
}

/// A process on another node changes no path here, and one with an odd id binds none.
fn is_permitted(action: &CheckedAction, source: &Address) {
    match action {
        CheckedAction::BindHttp { .. } | CheckedAction::BindWebSocket { .. } => {
            assert!(source.is_on(OUR_NODE) && source.process.may_bind());
        }
        CheckedAction::UnbindHttp { .. } | CheckedAction::UnbindWebSocket { .. } => assert!(source.is_on(OUR_NODE)),
        CheckedAction::Grant { guest, .. } => assert!(!guest.is_on(OUR_NODE)),
        CheckedAction::Subscribe { topic, .. } => {
            assert!((1..=pushring::TOPIC_BYTES_MAX).contains(&topic.len()));
        }
        CheckedAction::PushMany { audience: Audience::Topic(topic), .. } => {
            assert!((1..=pushring::TOPIC_BYTES_MAX).contains(&topic.len()));
        }
        CheckedAction::PushMany { .. } | CheckedAction::Push { .. } | CheckedAction::Close { .. } => {}
    }
}

/// A message is what the action said, text only if it is text, and holds the blob's own bytes, not a copy.
fn is_sound(
    message: pushring::Message,
    asked: &HttpServerAction,
    blob: &[u8],
    blob_at: Option<*const u8>,
    wrapped: bool,
) {
    let payload: &Bytes = message.payload();
    if wrapped {
        assert!(payload.len() > blob.len());
        return;
    }
    assert_eq!(payload, blob);
    assert!(blob.is_empty() || Some(payload.as_ptr()) == blob_at, "the blob was copied");
    let (HttpServerAction::WebSocketPush { message_type, .. }
    | HttpServerAction::WebSocketPushMany { message_type, .. }
    | HttpServerAction::WebSocketBroadcast { message_type, .. }
    | HttpServerAction::WebSocketPublish { message_type, .. }) = asked
    else {
        panic!("{asked:?} is no push");
    };
    match message_type {
        WsMessageType::Text => assert!(std::str::from_utf8(blob).is_ok()),
        WsMessageType::Ping | WsMessageType::Pong => assert!(blob.len() <= 125),
        WsMessageType::Binary => {}
        WsMessageType::Close => panic!("a close is no message"),
    }
}

/// An RPC call becomes a request of the server to the process it names, or nothing.
fn rpc(body: &[u8]) {
    let server = Address::new(OUR_NODE, http_server_process());
    let Ok(message) = rpc_request(ID, server, body) else { return };
    let call: RpcMessage = serde_json::from_slice(body).expect("only what parses is called");
    assert_eq!(message.target.process.as_str(), call.process);
    assert_eq!((message.source.node(), message.source.process()), (OUR_NODE, "http-server"));
    assert_ne!(message.target.node(), "our");
    assert_eq!(message.message.body(), call.body.unwrap_or_default().as_bytes());
    assert_eq!(message.lazy_load_blob.is_some(), call.data.is_some());
    let response = Response { body: body.to_vec(), ..Response::default() };
    let answer = rpc_response_body(response, message.lazy_load_blob);
    let answer: RpcResponseBody = serde_json::from_slice(&answer).expect("what was written is read");
    assert_eq!(answer.body, body);
    if let (Some(blob), Some(data)) = (answer.lazy_load_blob, call.data) {
        assert_eq!(blob.bytes, data.as_bytes(), "base64 that is read is written as it was");
    }
}

/// An extension's message, MessagePack or not: it reaches the process, whole, unless it is an action.
fn extension(bytes: &[u8], dialect: Dialect) {
    let process = "p:p:t.os".parse().expect("a literal id");
    let told = EventMessages::new(OUR_NODE, dialect).extension_message(
        ID,
        &process,
        ChannelId::new(1),
        WsMessageType::Binary,
        bytes.to_vec(),
    );
    let Some(told) = told else { return };
    let blob = told.lazy_load_blob.expect("a message is a blob");
    assert!(blob.bytes.len() <= bytes.len());
    if told.id == ID && matches!(told.message, Message::Request(_)) && blob.bytes.len() == bytes.len() {
        assert_eq!(blob.bytes, bytes);
    }
    assert_eq!(told.target.process, process);
}
