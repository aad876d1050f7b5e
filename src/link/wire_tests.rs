//! `docs/LINK.md` against the code: its examples are frames, byte for byte, and it names every frame and field.

use super::super::frame::{FrameReader, GatheredFrames, LinkFrame};
use super::*;
use crate::channel::ChannelId;
use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::fmt::Debug;

const PAGE: &str = include_str!("../../docs/LINK.md");

struct Example {
    is_peers: bool,
    head: Value,
    blob: String,
    bytes: Vec<u8>,
}

fn examples() -> Vec<Example> {
    let blocks = PAGE.split("```frame ").skip(1).map(|rest| rest.split("```").next().unwrap());
    blocks.map(example).collect()
}

fn example(block: &str) -> Example {
    let mut lines = block.lines();
    let is_peers = match lines.next() {
        Some("peer") => true,
        Some("broker") => false,
        other => panic!("whose frame is that? {other:?}"),
    };
    let head = serde_json::from_str(lines.next().unwrap()).unwrap();
    let (blob, hex): (Vec<&str>, Vec<&str>) = lines.partition(|line| line.starts_with("blob: "));
    let blob = blob.first().map(|line| line["blob: ".len()..].to_owned()).unwrap_or_default();
    let bytes = hex.iter().flat_map(|line| line.split(' ')).map(|byte| u8::from_str_radix(byte, 16).unwrap());
    Example { is_peers, head, blob, bytes: bytes.collect() }
}

/// Reads the example's bytes, and writes what they say.
fn check<T: DeserializeOwned + Serialize + Debug>(example: &Example) {
    let (head, blob): (T, Bytes) = FrameReader::new(&example.bytes[..], 4096, 4096).next().unwrap();
    assert_eq!(serde_json::to_value(&head).unwrap(), example.head);
    assert_eq!(blob, example.blob.as_bytes(), "{head:?}");
    let mut gather = GatheredFrames::default();
    gather.push(&LinkFrame::bare(&head).with(blob));
    let mut written = Vec::new();
    gather.write(&mut written).unwrap();
    let hex: Vec<String> = written.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(written, example.bytes, "{head:?} is {}", hex.join(" "));
    // Another language's: the same head from its JSON, whatever the width of integers.
    let again: T = rmp_serde::from_slice(&rmp_serde::to_vec_named(&example.head).unwrap()).unwrap();
    assert_eq!(serde_json::to_value(&again).unwrap(), example.head);
}

#[test]
fn the_pages_examples_are_frames() {
    let examples = examples();
    assert!(examples.len() >= 8);
    for example in &examples {
        if example.is_peers { check::<FromPeer>(example) } else { check::<ToPeer>(example) }
    }
}

fn address() -> node::Address {
    "our@app:app:sys".parse().unwrap()
}

fn kernel_heads() -> Vec<KernelHead> {
    let granted = || vec![GrantedCapability { issuer: address(), params: String::new(), signature: vec![1] }];
    let bodies = [
        KernelBody::Request {
            inherit: false,
            expects_response: None,
            body: vec![1],
            metadata: None,
            capabilities: granted(),
        },
        KernelBody::Response { inherit: false, body: vec![1], metadata: None, capabilities: granted(), context: None },
    ];
    let head = |message| KernelHead {
        id: 1,
        source: address(),
        target: address(),
        rsvp: None,
        message,
        blob: Some(BlobHead { mime: None }),
    };
    bodies.map(head).into()
}

fn hello(attach: Attach) -> FromPeer {
    FromPeer::Hello(Hello {
        version_min: 1,
        version_max: 1,
        attach,
        token: Some(String::new()),
        session: Some(String::new()),
        received: 0,
        window: Some(LinkWindow { frames: 1, bytes: 1 }),
        wants_drain: true,
    })
}

/// One of each frame of a peer, all fields given. A variant that is missing here does not compile in `of_peer`.
fn peers_frames() -> Vec<FromPeer> {
    let policies = Policy::EACH.map(|policy| policy.with_key(1));
    let kinds = [FrameKind::Text, FrameKind::Binary, FrameKind::Ping, FrameKind::Pong, FrameKind::Close];
    let process = |policy| Attach::Process { id: String::new(), wants_control: true, wants_topics: true, policy };
    let kernel = Attach::Kernel {
        node: String::new(),
        expose_local: Some(true),
        public_mode: true,
        simulation_mode: true,
        jwt_secret: Some(vec![1]),
        policy: Policy::Close,
    };
    let audiences = [
        Audience::Channels(vec![ChannelId::new(1)]),
        Audience::Path("".into()),
        Audience::Topic("".into()),
        Audience::Process,
    ];
    let (path, ask) = (String::new(), Some(1));
    let mut frames = vec![
        hello(kernel),
        FromPeer::Ack { received: 1 },
        FromPeer::Beat {},
        FromPeer::Bye { failed: true },
        FromPeer::Subscribe { channel: 1, topic: String::new(), ask },
        FromPeer::Unsubscribe { channel: 1, topic: String::new(), ask },
        FromPeer::ListTopics { prefix: "@".into(), after: Some(String::new()), limit: 1, ask: 1 },
        FromPeer::Close { channel: 1, code: Some(1000), reason: String::new(), ask },
        FromPeer::Bind {
            path: path.clone(),
            authenticated: true,
            secure_subdomain: true,
            extension: true,
            deflate: true,
            resume: true,
            resume_events: true,
            sse: true,
            ask,
        },
        FromPeer::Unbind { path: path.clone(), ask },
        FromPeer::BindHttp {
            path: path.clone(),
            authenticated: true,
            local_only: true,
            secure_subdomain: true,
            content: Some(String::new()),
            ask,
        },
        FromPeer::UnbindHttp { path, ask },
        FromPeer::Grant { guest: String::new(), channel: Some(1), revoke: true, ask },
        FromPeer::Respond { request: 1, status: 200, headers: vec![] },
        FromPeer::LoggedIn(LoggedIn { login: 1, token: Some(String::new()), error: Some(String::new()) }),
    ];
    frames.extend(policies.map(|policy| hello(process(policy))));
    frames.extend(kinds.map(|kind| FromPeer::Push {
        channel: 1,
        kind,
        policy: Some(Policy::Close),
        ask,
        node: None,
        as_guest: true,
        ask_nodes: true,
    }));
    frames.extend(audiences.map(|to| FromPeer::PushMany {
        to,
        except: vec![],
        kind: FrameKind::Text,
        policy: None,
        ask,
        everywhere: true,
        ask_nodes: true,
    }));
    frames.extend(kernel_heads().into_iter().map(FromPeer::Kernel));
    frames
}

fn live() -> LiveChannel {
    LiveChannel {
        channel: 1,
        process: Some(String::new()),
        path: String::new(),
        source: None,
        forwarded_for: None,
        registered: true,
        extension: true,
    }
}

/// The same of the broker.
fn brokers_frames() -> Vec<ToPeer> {
    let welcome = Welcome {
        version: 1,
        node: String::new(),
        dialect: Dialect::Kinode,
        listening: String::new(),
        session: String::new(),
        received: 1,
        acknowledged: 1,
        live: 1,
        window: LinkWindow { frames: 1, bytes: 1 },
        head_bytes_max: 1,
        blob_bytes_max: 1,
        asks_max: 1,
        beat_ms: 1,
        owner_grace_ms: 1,
    };
    let strings = BTreeMap::new;
    let http = HttpHead {
        request: 1,
        timeout_s: 1,
        source: String::new(),
        method: String::new(),
        url: String::new(),
        bound_path: String::new(),
        headers: strings(),
        url_params: strings(),
        query_params: strings(),
    };
    let refusals = [
        RefusedCode::Version,
        RefusedCode::Malformed,
        RefusedCode::Token,
        RefusedCode::Taken,
        RefusedCode::Session,
        RefusedCode::Node,
        RefusedCode::Full,
        RefusedCode::Stopped,
    ];
    let failures = [
        OrderFailure::ProcessId,
        OrderFailure::PathTooLong,
        OrderFailure::PathParams,
        OrderFailure::NotUtf8,
        OrderFailure::ControlTooLong,
        OrderFailure::Memory,
        OrderFailure::TopicName,
        OrderFailure::GuestAddress,
        OrderFailure::TooManyGuests,
        OrderFailure::Stopped,
    ];
    let reason = String::new;
    let mut frames = vec![
        ToPeer::Welcome(welcome.clone()),
        ToPeer::Welcome(Welcome { dialect: Dialect::Hyperdrive, ..welcome }),
        ToPeer::Live { channels: vec![live()] },
        ToPeer::Ack { received: 1 },
        ToPeer::Beat {},
        ToPeer::Draining { begins_in_ms: 1, ends_in_ms: 1 },
        ToPeer::Bye { code: ByeCode::Violation, reason: reason() },
        ToPeer::Bye { code: ByeCode::Stopped, reason: reason() },
        ToPeer::Opened(live()),
        ToPeer::Message { channel: 1, kind: FrameKind::Text },
        ToPeer::Control { channel: 1, kind: FrameKind::Ping },
        ToPeer::Joined { channel: 1, topic: String::new() },
        ToPeer::Left { channel: 1, topic: String::new() },
        ToPeer::Topics { ask: 1, topics: vec![] },
        ToPeer::Detached { channel: 1 },
        ToPeer::Resumed { channel: 1, lost: 1 },
        ToPeer::Http(http),
        ToPeer::Outcome(OutcomeHead {
            nodes: Some([("partial".to_owned(), Some(node::PushCounts::default()))].into()),
            partial: true,
            ..OutcomeHead::default()
        }),
        ToPeer::Done { ask: 1 },
        ToPeer::Login(LoginQuestion { login: 1, password_hash: String::new(), subdomain: None }),
    ];
    let refused = |code| ToPeer::Refused(HelloRefused { code, reason: reason(), version_min: 1, version_max: 1 });
    frames.extend(refusals.map(refused));
    frames.extend(failures.map(|code| ToPeer::Failed { ask: 1, code, reason: reason() }));
    frames.extend(ClosedBy::ALL.map(|by| ToPeer::Closed {
        channel: 1,
        code: 1000,
        reason: "".into(),
        by,
        lost_bytes: 1,
    }));
    frames.extend(kernel_heads().into_iter().map(ToPeer::Kernel));
    frames
}

/// Compiles only while every variant is named here; [`peers_frames`] and [`brokers_frames`] have the same ones.
fn numbers(peers: &FromPeer, brokers: &ToPeer) -> (usize, usize) {
    let of_peer = match peers {
        FromPeer::Hello(_) => 0,
        FromPeer::Ack { .. } => 1,
        FromPeer::Beat {} => 2,
        FromPeer::Bye { .. } => 3,
        FromPeer::Push { .. } => 4,
        FromPeer::PushMany { .. } => 5,
        FromPeer::Close { .. } => 6,
        FromPeer::Bind { .. } => 7,
        FromPeer::Unbind { .. } => 8,
        FromPeer::BindHttp { .. } => 9,
        FromPeer::UnbindHttp { .. } => 10,
        FromPeer::Respond { .. } => 11,
        FromPeer::Kernel(_) => 12,
        FromPeer::LoggedIn(_) => 13,
        FromPeer::Subscribe { .. } => 14,
        FromPeer::Unsubscribe { .. } => 15,
        FromPeer::ListTopics { .. } => 16,
        FromPeer::Grant { .. } => 17,
    };
    let of_broker = match brokers {
        ToPeer::Welcome(_) => 0,
        ToPeer::Live { .. } => 1,
        ToPeer::Refused(_) => 2,
        ToPeer::Ack { .. } => 3,
        ToPeer::Beat {} => 4,
        ToPeer::Bye { .. } => 5,
        ToPeer::Opened(_) => 6,
        ToPeer::Message { .. } => 7,
        ToPeer::Control { .. } => 8,
        ToPeer::Closed { .. } => 9,
        ToPeer::Http(_) => 10,
        ToPeer::Outcome(_) => 11,
        ToPeer::Done { .. } => 12,
        ToPeer::Failed { .. } => 13,
        ToPeer::Kernel(_) => 14,
        ToPeer::Login(_) => 15,
        ToPeer::Joined { .. } => 16,
        ToPeer::Left { .. } => 17,
        ToPeer::Topics { .. } => 18,
        ToPeer::Detached { .. } => 19,
        ToPeer::Resumed { .. } => 20,
        ToPeer::Draining { .. } => 21,
    };
    (of_peer, of_broker)
}

/// Names of frames and fields, and the words that are values.
fn words(value: &Value, into: &mut Vec<String>) {
    match value {
        Value::Object(fields) => fields.iter().for_each(|(name, value)| {
            into.push(name.clone());
            words(value, into);
        }),
        Value::Array(values) => values.iter().for_each(|value| words(value, into)),
        Value::String(word) if !word.is_empty() && !word.contains('@') => into.push(word.clone()),
        _ => {}
    }
}

#[test]
fn the_page_names_every_frame_and_field() {
    let (peers, brokers) = (peers_frames(), brokers_frames());
    let of_peer: std::collections::BTreeSet<_> = peers.iter().map(|frame| numbers(frame, &brokers[0]).0).collect();
    let of_broker: std::collections::BTreeSet<_> = brokers.iter().map(|frame| numbers(&peers[0], frame).1).collect();
    assert_eq!((of_peer.len(), of_broker.len()), (18, 22), "a frame is missing in this test");
    let mut named = Vec::new();
    peers.iter().for_each(|frame| words(&serde_json::to_value(frame).unwrap(), &mut named));
    brokers.iter().for_each(|frame| words(&serde_json::to_value(frame).unwrap(), &mut named));
    let text: String = PAGE.split("```").step_by(2).collect();
    // Names in backticks, or in JSON within them in quotes.
    let code: Vec<&str> = text.split('`').skip(1).step_by(2).collect();
    for name in named {
        let is_there = code.iter().any(|code| *code == name || code.contains(&format!("\"{name}\"")));
        assert!(is_there, "`{name}` is not in docs/LINK.md");
    }
}
