//! The rules of `dispatch` that no recorded message shows; the recorded ones are replayed in
//! `tests/promises/golden_types.rs`.

use super::*;
use crate::node::http_server_process;
use crate::node::message::Request;

const OUR_NODE: &str = "alice.os";

fn ask_as(source: &str, body: &str, blob: Option<&[u8]>, asked: bool) -> Inbound {
    let request = Request { body: body.into(), expects_response: asked.then_some(5), ..Request::default() };
    let message = KernelMessage {
        id: 9,
        source: source.parse().unwrap(),
        target: Address::new(OUR_NODE, http_server_process()),
        rsvp: None,
        message: Message::Request(request),
        lazy_load_blob: blob.map(|bytes| LazyLoadBlob { mime: None, bytes: bytes.to_vec() }),
    };
    dispatch(message, OUR_NODE, Dialect::Kinode)
}

fn ask(body: &str, blob: Option<&[u8]>) -> Inbound {
    ask_as("alice.os@p:p:t.os", body, blob, false)
}

fn error_of(inbound: Inbound) -> String {
    match inbound {
        Inbound::Refused(answer) => {
            assert_eq!(answer.source.to_string(), "our@http-server:distro:sys");
            String::from_utf8(answer.message.body().to_vec()).unwrap()
        }
        other => panic!("not refused: {other:?}"),
    }
}

fn action_of(inbound: Inbound) -> ActionRequest {
    match inbound {
        Inbound::Action(request) => request,
        other => panic!("no action: {other:?}"),
    }
}

#[test]
fn whatever_is_no_action_is_malformed() {
    for body in [
        "",
        "null",
        "{}",
        "[]",
        "7",
        "\"WebSocketPush\"",
        r#"{"Nope":1}"#,
        r#"{"WebSocketPush":{}}"#,
        r#"{"WebSocketPush":{"channel_id":"7","message_type":"Text"}}"#,
        r#"{"WebSocketPush":{"channel_id":4294967296,"message_type":"Text"}}"#,
        r#"{"WebSocketPush":{"channel_id":-1,"message_type":"Text"}}"#,
        r#"{"WebSocketPush":{"channel_id":7.5,"message_type":"Text"}}"#,
        r#"{"WebSocketPush":{"channel_id":7,"channel_id":8,"message_type":"Text"}}"#,
        r#"{"WebSocketPush":{"channel_id":7,"message_type":"text"}}"#,
        r#"{"WebSocketPush":{"channel_id":7,"message_type":"Text"}} x"#,
        r#"{"WebSocketPush":{"channel_id":7,"message_type":"Text"},"WebSocketClose":7}"#,
        r#"{"WebSocketClose":{"channel_id":7}}"#,
        r#"{"WebSocketClose":99999999999999999999999999}"#,
        r#"{"WebSocketOpen":{"path":"/","channel_id":7}}"#,
        r#"{"WebSocketExtPushData":{"id":1,"kinode_message_type":"Request","blob":[1]}}"#,
        r#"{"Bind":{"path":7,"authenticated":false,"local_only":false,"cache":false}}"#,
        r#"{"Bind":{"path":"/"}}"#,
        r#"{"WebSocketPushMany":{"channel_ids":[7,-1],"message_type":"Text"}}"#,
        r#"{"WebSocketPushMany":{"channel_ids":[7],"message_type":"Close"}}"#,
        r#"{"WebSocketBroadcast":{"path":"/","message_type":"Close"}}"#,
    ] {
        assert_eq!(error_of(ask(body, Some(b"x"))), r#"{"Err":"MalformedRequest"}"#, "{body}");
    }
}

#[test]
fn bodies_that_are_not_utf8_or_nest_without_end_are_malformed() {
    let mut message = match ask("{}", None) {
        Inbound::Refused(answer) => answer,
        other => panic!("{other:?}"),
    };
    let nested = "[".repeat(1 << 20).into_bytes();
    for body in [b"\xff\xfe".to_vec(), b"{\"WebSocketUnbind\":{\"path\":\"\xff\"}}".to_vec(), nested] {
        message.message = Message::Request(Request { body, ..Request::default() });
        assert!(error_of(dispatch(message.clone(), OUR_NODE, Dialect::Kinode)).contains("MalformedRequest"));
    }
}

#[test]
fn a_push_needs_a_blob_that_fits_its_frame() {
    let push = |kind: &str| format!(r#"{{"WebSocketPush":{{"channel_id":7,"message_type":"{kind}"}}}}"#);
    let many = |kind: &str| format!(r#"{{"WebSocketPushMany":{{"channel_ids":[7],"message_type":"{kind}"}}}}"#);
    for body in [push("Text"), push("Close"), many("Binary")] {
        assert_eq!(error_of(ask(&body, None)), r#"{"Err":"NoBlob"}"#);
    }
    for kind in ["Ping", "Pong"] {
        for body in [push(kind), many(kind)] {
            assert_eq!(error_of(ask(&body, Some(&[0; 126]))), r#"{"Err":"WsPingPongTooLong"}"#);
            action_of(ask(&body, Some(&[0xff; 125])));
        }
    }
    for body in [push("Text"), many("Text")] {
        assert_eq!(error_of(ask(&body, Some(&[0xff]))), r#"{"Err":"MalformedRequest"}"#);
    }
    let expected =
        CheckedAction::Push { channel: ChannelId::new(7), message: broker::Message::binary(vec![0xff; 126]) };
    assert_eq!(action_of(ask(&push("Binary"), Some(&[0xff; 126]))).action, expected);
}

#[test]
fn a_push_of_type_close_closes() {
    let body = r#"{"WebSocketPush":{"channel_id":7,"message_type":"Close"}}"#;
    assert_eq!(action_of(ask(body, Some(b""))).action, CheckedAction::Close { channel: ChannelId::new(7) });
}

#[test]
fn only_a_process_of_this_node_with_a_plain_id_binds() {
    let binds = [
        r#"{"Bind":{"path":"/x","authenticated":false,"local_only":false,"cache":true}}"#,
        r#"{"SecureBind":{"path":"/x","cache":true}}"#,
        r#"{"WebSocketBind":{"path":"/x","authenticated":false,"extension":false}}"#,
        r#"{"WebSocketSecureBind":{"path":"/x","extension":false}}"#,
    ];
    for body in binds {
        for source in ["alice.os@my_p:p:t.os", "alice.os@p:p.x:t.os", "alice.os@P:p:t.os", "bob.os@p:p:t.os"] {
            // The source is judged before the blob, which is missing too.
            assert_eq!(error_of(ask_as(source, body, None, false)), r#"{"Err":"InvalidSourceProcess"}"#, "{source}");
        }
        action_of(ask_as("our@p:p:t.os", body, Some(b"x"), false));
    }
    for body in [r#"{"Unbind":{"path":"/x"}}"#, r#"{"WebSocketUnbind":{"path":"/x"}}"#] {
        assert_eq!(error_of(ask_as("bob.os@p:p:t.os", body, None, false)), r#"{"Err":"InvalidSourceProcess"}"#);
        action_of(ask(body, None));
    }
}

#[test]
fn a_cached_bind_needs_its_content_and_another_ignores_it() {
    let bind = |cache| format!(r#"{{"SecureBind":{{"path":"/x","cache":{cache}}}}}"#);
    assert_eq!(error_of(ask(&bind(true), None)), r#"{"Err":"NoBlob"}"#);
    let content_of = |inbound| match action_of(inbound).action {
        CheckedAction::BindHttp { content, authenticated: true, local_only: false, secure: true, .. } => content,
        other => panic!("{other:?}"),
    };
    assert!(content_of(ask(&bind(true), Some(b"x"))).is_some());
    assert!(content_of(ask(&bind(false), Some(b"x"))).is_none());
}

#[test]
fn the_answer_goes_where_the_message_came_from() {
    let request = action_of(ask_as("our@my_p:my_p:t.os", r#"{"WebSocketClose":7}"#, None, false));
    assert!(request.requester().is_on(OUR_NODE));
    let answer = request.reply.refused(HttpServerError::WsChannelNotFound);
    assert_eq!((answer.id, answer.target.to_string()), (9, "our@my_p:my_p:t.os".to_string()));
}

#[test]
fn success_is_told_only_to_who_asked() {
    let close = r#"{"WebSocketClose":7}"#;
    let silent = action_of(ask(close, None)).reply;
    assert!(!silent.wants_success());
    assert_eq!(silent.done(), None);

    let asked = action_of(ask_as("alice.os@p:p:t.os", close, None, true)).reply;
    let answer = asked.done().unwrap();
    assert_eq!(answer.target.to_string(), "alice.os@p:p:t.os");
    assert_eq!(answer.message.body(), br#"{"Ok":null}"#);

    let on_behalf = Reply {
        server: ServerName::Current,
        id: 1,
        source: "alice.os@p:p:t.os".parse().unwrap(),
        on_success: Some("alice.os@q:q:t.os".parse().unwrap()),
    };
    assert_eq!(on_behalf.done().unwrap().target.to_string(), "alice.os@q:q:t.os");
}

#[test]
fn a_push_to_many_is_answered_with_counts() {
    let body = r#"{"WebSocketBroadcast":{"path":"/","message_type":"Text","except":[7]}}"#;
    let request = action_of(ask_as("alice.os@p:p:t.os", body, Some(b"x"), true));
    let (audience, except) = (Audience::Path("/".into()), vec![ChannelId::new(7)]);
    assert_eq!(request.action, CheckedAction::PushMany { audience, except, message: broker::Message::text("x") });
    let answer = request.reply.counted(PushCounts { sent: 3, ..PushCounts::default() }).unwrap();
    assert!(answer.message.body().starts_with(br#"{"Ok":{"sent":3,"queued":0"#));
}

#[test]
fn an_extension_push_is_never_answered_with_success() {
    let body = |kind: &str| {
        format!(
            r#"{{"WebSocketExtPushOutgoing":{{"channel_id":7,"message_type":"{kind}","desired_reply_type":"Request"}}}}"#
        )
    };
    let request = action_of(ask_as("alice.os@p:p:t.os", &body("Binary"), Some(b"x"), true));
    assert!(!request.reply.wants_success());
    let refused = request.reply.refused(HttpServerError::WsChannelNotFound);
    assert_eq!(refused.message.body(), br#"{"Err":"WsChannelNotFound"}"#);
    assert_eq!(error_of(ask(&body("Binary"), None)), r#"{"Err":"NoBlob"}"#);
    assert_eq!(error_of(ask(&body("Text"), Some(b"x"))), r#"{"Err":"NoBlob"}"#);
}

#[test]
fn the_blob_of_a_push_is_moved() {
    let bytes = vec![7; 1 << 20];
    let at = bytes.as_ptr();
    let blob = LazyLoadBlob { mime: None, bytes };
    match push(7, WsMessageType::Binary, blob).unwrap() {
        CheckedAction::Push { message, .. } => assert_eq!(message.payload().as_ptr(), at),
        other => panic!("{other:?}"),
    }
}
