//! Every message recorded on a real node parses with our types, is written back to the same bytes, and is what our own
//! rules produce: events from their parts, answers from the actions.

use pushring::ChannelId;
use pushring::node::{
    ActionRequest, Address, CheckedAction, Dialect, EventMessages, HttpResponse, HttpServerAction, HttpServerError,
    HttpServerRequest, Inbound, KernelMessage, LazyLoadBlob, Message, ProcessId, Request, Response,
    WebSocketExtPushData, dispatch, rpc_request, rpc_response_body,
};
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::{fs, path::Path};

const NODE: &str = "fake.os";

struct Case {
    name: String,
    client: Value,
    messages: Vec<(Direction, KernelMessage)>,
}

#[derive(Clone, Copy, PartialEq)]
enum Direction {
    /// From the HTTP server.
    Out,
    /// To the HTTP server.
    In,
}

fn cases() -> Vec<Case> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut cases: Vec<Case> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
        .map(|path| case(&path))
        .collect();
    cases.sort_by(|a, b| a.name.cmp(&b.name));
    assert_eq!(cases.len(), 69, "every recorded case is read");
    cases
}

fn case(path: &Path) -> Case {
    let recorded: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    let messages = recorded.get("messages").and_then(Value::as_array).map(|messages| {
        messages
            .iter()
            .map(|message| {
                let direction = match message["dir"].as_str() {
                    Some("http-server->kernel") => Direction::Out,
                    Some("kernel->http-server") => Direction::In,
                    other => panic!("{other:?}"),
                };
                (direction, kernel_message(&message["km"]))
            })
            .collect()
    });
    Case {
        name: path.file_name().unwrap().to_str().unwrap().to_string(),
        client: recorded["client"].clone(),
        messages: messages.unwrap_or_default(),
    }
}

/// A KernelMessage in its true serde shape, from the recorded one, in which bytes are shown as text.
fn kernel_message(recorded: &Value) -> KernelMessage {
    let mut shaped = recorded.clone();
    let message = &mut shaped["message"];
    let inner = if message.get("Request").is_some() { &mut message["Request"] } else { &mut message["Response"][0] };
    inner["body"] = byte_array(&inner["body"]);
    if let Some(blob) = shaped["lazy_load_blob"].as_object_mut() {
        blob.remove("len");
        let bytes = byte_array(&blob["bytes"]);
        blob.insert("bytes".into(), bytes);
    }
    let message: KernelMessage = serde_json::from_value(shaped.clone()).unwrap();
    assert_eq!(serde_json::to_value(&message).unwrap(), shaped, "no field is lost or added");
    message
}

fn byte_array(shown: &Value) -> Value {
    match shown {
        Value::String(text) => text.as_bytes().into(),
        shown => unhex(shown["hex"].as_str().unwrap()).into(),
    }
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

fn body_text(message: &KernelMessage) -> &str {
    std::str::from_utf8(message.message.body()).unwrap()
}

fn is_rpc(case: &Case) -> bool {
    case.name.starts_with("rpc_")
}

/// Maps of header fields, parameters and queries have no order; everything else has.
fn with_ordered_maps(text: &str) -> String {
    let mut ordered = text.to_string();
    for name in ["headers", "url_params", "query_params"] {
        let key = format!("\"{name}\":");
        let Some(start) = ordered.find(&key).map(|at| at + key.len()) else { continue };
        let mut stream = serde_json::Deserializer::from_str(&ordered[start..]).into_iter::<BTreeMap<String, String>>();
        let map = stream.next().unwrap().unwrap();
        let end = start + stream.byte_offset();
        ordered.replace_range(start..end, &serde_json::to_string(&map).unwrap());
    }
    ordered
}

#[test]
fn every_recorded_body_is_read_and_written_back_alike() {
    let mut kinds: HashMap<&str, usize> = HashMap::new();
    for case in cases().iter().filter(|case| !is_rpc(case)) {
        for (direction, message) in &case.messages {
            let text = body_text(message);
            let (kind, written) = match (direction, &message.message) {
                (Direction::Out, Message::Response(_)) if message.source.node == "our" => {
                    let answer: Result<(), HttpServerError> = serde_json::from_str(text).unwrap();
                    ("answer", serde_json::to_string(&answer).unwrap())
                }
                (Direction::Out, _) => {
                    let event = HttpServerRequest::from_bytes(text.as_bytes()).unwrap();
                    ("event", String::from_utf8(event.to_bytes()).unwrap())
                }
                (Direction::In, Message::Response(_)) => {
                    let response: HttpResponse = serde_json::from_str(text).unwrap();
                    ("http response", String::from_utf8(response.to_bytes()).unwrap())
                }
                (Direction::In, _) if case.name == "malformed_action.json" && text == r#"{"Nope":1}"# => {
                    assert!(serde_json::from_str::<HttpServerAction>(text).is_err());
                    continue;
                }
                (Direction::In, _) => {
                    let action: HttpServerAction = serde_json::from_str(text).unwrap();
                    ("action", serde_json::to_string(&action).unwrap())
                }
            };
            *kinds.entry(kind).or_default() += 1;
            if case.name == "action_websocket_open_rejected.json" && text.contains("WebSocketOpen") {
                // The process wrote this one by hand, its fields in another order.
                let value = |text: &str| serde_json::from_str::<Value>(text).unwrap();
                assert_eq!(value(&written), value(text));
            } else {
                assert_eq!(with_ordered_maps(&written), with_ordered_maps(text), "{}", case.name);
            }
        }
    }
    assert_eq!(kinds, HashMap::from([("answer", 22), ("event", 55), ("http response", 5), ("action", 41)]));
}

#[test]
fn every_recorded_event_is_what_we_would_send() {
    let events = EventMessages::new(NODE, Dialect::Hyperdrive);
    let mut compared = 0;
    for case in cases().iter().filter(|case| !is_rpc(case)) {
        for (_, recorded) in case.messages.iter().filter(|(direction, _)| *direction == Direction::Out) {
            let Ok(event) = HttpServerRequest::from_bytes(recorded.message.body()) else { continue };
            let owner = &recorded.target.process;
            let made = made_event(&events, recorded, event, owner);
            assert_eq!(with_ordered_maps(body_text(&made)), with_ordered_maps(body_text(recorded)), "{}", case.name);
            assert_eq!(without_body(made), without_body(recorded.clone()), "{}", case.name);
            compared += 1;
        }
    }
    assert_eq!(compared, 55);
}

fn made_event(
    events: &EventMessages,
    recorded: &KernelMessage,
    event: HttpServerRequest,
    owner: &ProcessId,
) -> KernelMessage {
    let id = recorded.id;
    let bytes = recorded.lazy_load_blob.clone().map(|blob| blob.bytes);
    match event {
        HttpServerRequest::WebSocketOpen { path, channel_id, source_socket_addr, forwarded_for } => {
            let peer = source_socket_addr.unwrap().parse().unwrap();
            events.opened(id, owner, ChannelId::new(channel_id), path, peer, forwarded_for)
        }
        HttpServerRequest::WebSocketPush { channel_id, message_type } => {
            let (channel, bytes) = (ChannelId::new(channel_id), bytes.unwrap());
            match &recorded.message {
                Message::Request(_) => events.message(id, owner, channel, message_type, bytes),
                Message::Response(_) => {
                    let message_type_inside = pushring::node::MessageType::Response;
                    let data = WebSocketExtPushData { id, message_type: message_type_inside, blob: bytes };
                    let frame = data.encode(Dialect::Hyperdrive);
                    events.extension_message(0, owner, channel, message_type, frame).unwrap()
                }
            }
        }
        HttpServerRequest::WebSocketClose(channel_id) => events.closed(id, owner, ChannelId::new(channel_id)),
        HttpServerRequest::Http(incoming) => events.http(id, owner, incoming, bytes.unwrap(), 600),
    }
}

fn without_body(mut message: KernelMessage) -> KernelMessage {
    match &mut message.message {
        Message::Request(request) => request.body.clear(),
        Message::Response((response, _)) => response.body.clear(),
    }
    message
}

/// The answer to an action from a broker that owns the case's channels.
fn performed(request: ActionRequest, owners: &HashMap<ChannelId, Address>) -> Option<KernelMessage> {
    let is_owner = |channel| owners.get(channel).map(|owner| owner == request.requester());
    match &request.action {
        CheckedAction::Push { channel, .. } if is_owner(channel) != Some(true) => {
            Some(request.reply.refused(HttpServerError::WsChannelNotFound))
        }
        CheckedAction::Close { channel } if is_owner(channel) == Some(false) => {
            Some(request.reply.refused(HttpServerError::WsChannelNotFound))
        }
        _ => request.reply.done(),
    }
}

#[test]
fn every_recorded_action_gets_the_recorded_answer() {
    let (mut actions, mut answers) = (0, 0);
    for case in cases() {
        let mut owners = HashMap::new();
        for (direction, message) in &case.messages {
            if let (Direction::Out, Ok(event)) = (direction, HttpServerRequest::from_bytes(message.message.body())) {
                if let HttpServerRequest::WebSocketOpen { channel_id, .. }
                | HttpServerRequest::WebSocketPush { channel_id, .. } = event
                {
                    owners.insert(ChannelId::new(channel_id), Address::new(NODE, &message.target.process));
                }
                continue;
            }
            if *direction == Direction::Out || !matches!(message.message, Message::Request(_)) {
                continue;
            }
            let made = match dispatch(message.clone(), NODE, Dialect::Hyperdrive) {
                Inbound::Action(request) => performed(request, &owners),
                Inbound::Refused(answer) => Some(answer),
                Inbound::Response { .. } => panic!("{} is a request", case.name),
            };
            assert_eq!(made, recorded_answer(&case, message), "{}", case.name);
            actions += 1;
            answers += usize::from(made.is_some());
        }
    }
    assert_eq!((actions, answers), (42, 22));
}

/// The first recorded answer to `request`, where we do not answer better.
fn recorded_answer(case: &Case, request: &KernelMessage) -> Option<KernelMessage> {
    if case.name == "push_text_invalid_utf8.json" {
        // The node rewrites the text without a word; we send nothing else than was said, and say so.
        let answer = Message::Response((
            Response { body: br#"{"Err":"MalformedRequest"}"#.into(), ..Response::default() },
            None,
        ));
        return Some(KernelMessage {
            source: "our@http-server:distro:sys".parse().unwrap(),
            target: request.source.clone(),
            rsvp: None,
            message: answer,
            lazy_load_blob: None,
            ..*request
        });
    }
    // `action_websocket_open_rejected` holds two answers, Err and Ok, to one request; we give only the first.
    let answers = case.messages.iter().filter(|(direction, message)| {
        *direction == Direction::Out && message.id == request.id && message.source.node == "our"
    });
    answers.map(|(_, message)| message.clone()).next()
}

#[test]
fn a_recorded_http_response_is_told_apart_from_an_action() {
    let mut responses = 0;
    for case in cases() {
        for (_, message) in case.messages.iter().filter(|(direction, _)| *direction == Direction::In) {
            if let Message::Response((response, _)) = &message.message {
                let expected = Inbound::Response {
                    id: message.id,
                    source: message.source.clone(),
                    response: response.clone(),
                    blob: message.lazy_load_blob.clone(),
                };
                assert_eq!(dispatch(message.clone(), NODE, Dialect::Hyperdrive), expected);
                responses += 1;
            }
        }
    }
    assert_eq!(responses, 6);
}

#[test]
fn the_recorded_frame_to_an_extension_is_what_we_send() {
    let case = named("ext_push_out_req.json");
    let (_, outgoing) = case.messages.iter().find(|(direction, _)| *direction == Direction::In).unwrap();
    let Inbound::Action(request) = dispatch(outgoing.clone(), NODE, Dialect::Hyperdrive) else { panic!("refused") };
    let CheckedAction::Push { message, .. } = request.action else { panic!("{:?}", request.action) };
    assert_eq!(*message.payload(), unhex(case.client["binary_hex"].as_str().unwrap()));
}

#[test]
fn the_recorded_rpc_call_and_its_answer_are_ours() {
    let case = named("rpc_expects.json");
    let [(_, request), (_, answer)] = &case.messages[..] else { panic!("two messages") };
    let call = r#"{"node":null,"process":"wsecho:wsecho:sys","inherit":null,"expects_response":5,"body":"{\"q\": 1}",
        "metadata":"meta","context":null,"mime":"text/plain","data":"cnBjLWJsb2I="}"#;
    assert_eq!(rpc_request(request.id, request.source.clone(), call.as_bytes()).unwrap(), *request);
    let Message::Response((response, _)) = &answer.message else { panic!("a response") };
    let body = rpc_response_body(response.clone(), answer.lazy_load_blob.clone());
    assert_eq!(std::str::from_utf8(&body).unwrap(), case.client["body"].as_str().unwrap());
}

fn named(name: &str) -> Case {
    cases().into_iter().find(|case| case.name == name).unwrap()
}

#[test]
fn the_types_can_be_built_by_hand() {
    let message = KernelMessage {
        id: 1,
        source: Address::new("our", "p:p:t.os".parse::<ProcessId>().unwrap()),
        target: Address::new("our", pushring::node::http_server_process()),
        rsvp: None,
        message: Message::Request(Request { body: b"{}".to_vec(), ..Request::default() }),
        lazy_load_blob: Some(LazyLoadBlob { mime: None, bytes: Vec::new() }),
    };
    assert!(matches!(dispatch(message, NODE, Dialect::Kinode), Inbound::Refused(_)));
}
