//! A process between two queues: its messages in and out, and its end. Nothing here waits for a clock: a timeout of
//! zero seconds is over at once.

use super::*;
use crate::channel::ChannelId;
use crate::node::{self, Dialect, EventMessages, KernelMessage, http_server_process};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};

const OUR: &str = "alice.os@p:p:t.os";

fn address(text: &str) -> Address {
    text.parse().unwrap()
}

/// The kernel's ends of a process' queues.
struct Kernel {
    to_process: SyncSender<KernelMessage>,
    from_process: Receiver<KernelMessage>,
}

/// Runs `process` on this thread to its end. `kernel` fills its queue beforehand, so nothing has to wait.
fn run_with(deliveries: Vec<KernelMessage>, process: impl FnOnce()) -> (Exit, Vec<KernelMessage>) {
    let (to_kernel, from_process) = sync_channel(64);
    let (to_process, from_kernel) = sync_channel(64);
    for delivery in deliveries {
        to_process.send(delivery).unwrap();
    }
    drop(to_process);
    let exit = run(address(OUR), Box::new(Mailbox::new(to_kernel, from_kernel)), |_| process());
    (exit, from_process.try_iter().collect())
}

/// Runs `process` on its own thread beside `kernel`.
fn run_beside(kernel: impl FnOnce(&Kernel), process: impl FnOnce(Address) + Send + 'static) -> Exit {
    let (to_kernel, from_process) = sync_channel(64);
    let (to_process, from_kernel) = sync_channel(64);
    let running = spawn(address(OUR), Box::new(Mailbox::new(to_kernel, from_kernel)), process).unwrap();
    kernel(&Kernel { to_process, from_process });
    running.join().unwrap()
}

fn request(id: u64, source: &str, body: &[u8], expects_response: Option<u64>) -> KernelMessage {
    KernelMessage {
        id,
        source: address(source),
        target: address(OUR),
        rsvp: None,
        message: node::Message::Request(node::Request { body: body.to_vec(), expects_response, ..Default::default() }),
        lazy_load_blob: None,
    }
}

fn response(id: u64, body: &[u8], blob: Option<&[u8]>) -> KernelMessage {
    let response = node::Response { body: body.to_vec(), ..Default::default() };
    KernelMessage {
        message: node::Message::Response((response, Some(b"the sender's own".to_vec()))),
        lazy_load_blob: blob.map(|bytes| LazyLoadBlob { mime: None, bytes: bytes.to_vec() }),
        ..request(id, "alice.os@q:q:t.os", b"", None)
    }
}

fn client_message(id: u64, bytes: &[u8]) -> KernelMessage {
    let events = EventMessages::new("alice.os", Dialect::Kinode);
    events.message(id, &address(OUR).process, ChannelId::new(7), WsMessageType::Text, bytes.to_vec())
}

#[test]
fn send_ws_push_is_the_documented_request() {
    let (exit, sent) = run_with(vec![], || {
        let blob = LazyLoadBlob { mime: Some("text/plain".into()), bytes: b"hi".to_vec() };
        send_ws_push("bob.os".to_string(), 7, WsMessageType::Text, blob.clone()).unwrap();
        Request::new()
            .target(Address::new("bob.os", "http-server:distro:sys".parse::<ProcessId>().unwrap()))
            .body(
                serde_json::json!(HttpServerRequest::WebSocketPush {
                    channel_id: 7,
                    message_type: WsMessageType::Text
                })
                .to_string()
                .as_bytes()
                .to_vec(),
            )
            .blob(blob)
            .send()
            .unwrap();
    });
    assert_eq!(exit, Exit::Returned);
    let [by_helper, by_hand] = &sent[..] else { panic!("{sent:?}") };
    assert_ne!(by_helper.id, by_hand.id);
    assert_eq!(KernelMessage { id: by_hand.id, ..by_helper.clone() }, *by_hand);
    assert_eq!(by_hand.source, address(OUR));
    assert_eq!(by_hand.message.body(), br#"{"WebSocketPush":{"channel_id":7,"message_type":"Text"}}"#);
}

#[test]
fn messages_come_in_order_with_their_blobs() {
    let (exit, _) = run_with(vec![client_message(1, b"one"), request(2, "bob.os@q:q:t.os", b"two", None)], || {
        let first = await_message().unwrap();
        assert!(first.is_request() && first.is_local(&our()) && first.is_process("http-server:distro:sys"));
        assert_eq!(get_blob().unwrap().bytes, b"one");
        assert_eq!(first.blob().unwrap().bytes, b"one");
        assert_eq!(take_blob().unwrap().bytes, b"one");
        assert_eq!(get_blob(), None);
        let second = await_message().unwrap();
        assert_eq!((second.body(), get_blob()), (&b"two"[..], None));
        assert!(!second.is_local(&our()));
    });
    assert_eq!(exit, Exit::Returned);
}

#[test]
fn a_response_answers_the_last_request_that_waits() {
    let mut on_behalf = request(2, "alice.os@q:q:t.os", b"", Some(5));
    on_behalf.rsvp = Some(address("alice.os@r:r:t.os"));
    let deliveries = vec![request(1, "bob.os@q:q:t.os", b"", Some(5)), client_message(9, b""), on_behalf];
    let (_, sent) = run_with(deliveries, || {
        assert!(Response::new().body(b"").send().unwrap_err().to_string().contains("no request"));
        await_message().unwrap();
        await_message().unwrap(); // Expects nothing, so the first one is still to be answered.
        Response::new().body("a").blob_bytes("b").blob_mime("text/plain").send().unwrap();
        await_message().unwrap();
        Response::new().body("c").send().unwrap();
        assert!(Response::new().send().is_err(), "a response needs a body");
    });
    let [first, second] = &sent[..] else { panic!("{sent:?}") };
    assert_eq!((first.id, first.target.to_string()), (1, "bob.os@q:q:t.os".to_string()));
    assert_eq!(first.lazy_load_blob, Some(LazyLoadBlob::new(Some("text/plain"), *b"b")));
    assert_eq!((second.id, second.target.to_string()), (2, "alice.os@r:r:t.os".to_string()));
}

#[test]
fn an_awaited_response_overtakes_and_brings_back_what_prompted_its_request() {
    let kernel = |kernel: &Kernel| {
        kernel.to_process.send(request(1, "bob.os@q:q:t.os", b"prompt", Some(5))).unwrap();
        let asked = kernel.from_process.recv().unwrap();
        assert_eq!(asked.rsvp, Some(address(OUR)));
        kernel.to_process.send(request(2, "carol.os@q:q:t.os", b"later", Some(5))).unwrap();
        kernel.to_process.send(response(asked.id, b"answer", Some(b"blob"))).unwrap();
        kernel.to_process.send(response(asked.id, b"twice", None)).unwrap();
        let answered = kernel.from_process.recv().unwrap();
        assert_eq!((answered.id, answered.target.to_string()), (1, "bob.os@q:q:t.os".to_string()));
        kernel.to_process.send(request(3, "dave.os@q:q:t.os", b"last", None)).unwrap();
        assert!(kernel.from_process.recv().is_err(), "the process is done");
    };
    let exit = run_beside(kernel, |_| {
        assert_eq!(await_message().unwrap().body(), b"prompt");
        let answer = Request::to(("our", "q", "q", "t.os")).body("ask").send_and_await_response(60).unwrap().unwrap();
        assert_eq!((answer.body(), answer.context()), (&b"answer"[..], None));
        assert_eq!(get_blob().unwrap().bytes, b"blob");
        Response::new().body("done").send().unwrap();
        assert_eq!(await_message().unwrap().body(), b"later");
        assert_eq!(await_message().unwrap().body(), b"last", "the second answer is dropped");
    });
    assert_eq!(exit, Exit::Returned);
}

#[test]
fn a_response_brings_the_context_that_we_kept_and_not_the_senders() {
    let kernel = |kernel: &Kernel| {
        let asked = kernel.from_process.recv().unwrap();
        kernel.to_process.send(response(asked.id ^ 1, b"nobody asked", None)).unwrap();
        kernel.to_process.send(response(asked.id, b"answer", None)).unwrap();
    };
    let exit = run_beside(kernel, |_| {
        Request::to(("our", "q", "q", "t.os")).body("").expects_response(60).context("kept").send().unwrap();
        let answer = await_message().unwrap();
        assert_eq!((answer.body(), answer.context()), (&b"answer"[..], Some(&b"kept"[..])));
    });
    assert_eq!(exit, Exit::Returned);
}

/// A backend whose deliveries are all here already, and which answers each request at once if `answers`.
#[derive(Default)]
struct Script {
    deliveries: std::collections::VecDeque<BackendDelivery>,
    answers: bool,
}

impl Backend for Script {
    fn send(&mut self, message: KernelMessage) -> Result<(), BackendStopped> {
        if self.answers {
            self.deliveries.push_back(response(message.id, b"answer", None).into());
        }
        Ok(())
    }

    fn receive(&mut self, deadline: Option<Instant>) -> Result<Option<BackendDelivery>, BackendStopped> {
        assert!(deadline.is_some() || !self.deliveries.is_empty(), "this would wait for ever");
        Ok(self.deliveries.pop_front())
    }
}

fn ask() -> Request {
    Request::to(("our", "q", "q", "t.os")).body("").context("kept")
}

#[test]
fn a_request_that_nobody_answers_times_out_behind_what_came_before() {
    let before = request(1, "bob.os@q:q:t.os", b"came before", Some(5));
    let script = Script { deliveries: [before.into()].into(), ..Script::default() };
    let exit = run(address(OUR), Box::new(script), |_| {
        ask().expects_response(0).send().unwrap();
        ask().expects_response(u64::MAX).send().unwrap();
        assert_eq!(await_message().unwrap().body(), b"came before");
        let error = await_message().unwrap_err();
        assert!(error.kind().is_timeout());
        assert_eq!((error.context(), error.target().to_string()), (Some(&b"kept"[..]), "our@q:q:t.os".to_string()));
        assert_eq!(await_message_timeout(Duration::ZERO).unwrap(), None, "it fails once");
        let error = ask().send_and_await_response(0).unwrap().unwrap_err();
        assert!(error.kind().is_timeout());
    });
    assert_eq!(exit, Exit::Returned);
}

#[test]
fn a_timeout_loses_against_a_response_that_is_here() {
    let script = Script { answers: true, ..Script::default() };
    let exit = run(address(OUR), Box::new(script), |_| {
        ask().expects_response(0).send().unwrap();
        let answer = await_message().unwrap();
        assert_eq!((answer.body(), answer.context()), (&b"answer"[..], Some(&b"kept"[..])));
        assert_eq!(await_message_timeout(Duration::ZERO).unwrap(), None);
        assert!(ask().send_and_await_response(0).unwrap().is_ok());
    });
    assert_eq!(exit, Exit::Returned);
}

#[test]
fn a_request_that_cannot_be_delivered_says_so_once() {
    struct Offline(Vec<u64>);
    impl Backend for Offline {
        fn send(&mut self, message: KernelMessage) -> Result<(), BackendStopped> {
            self.0.push(message.id);
            self.0.push(message.id);
            Ok(())
        }
        fn receive(&mut self, _: Option<Instant>) -> Result<Option<BackendDelivery>, BackendStopped> {
            Ok(self.0.pop().map(|id| BackendDelivery::Undelivered { id, kind: SendErrorKind::Offline }))
        }
    }
    let exit = run(address(OUR), Box::new(Offline(Vec::new())), |_| {
        assert!(ask().send_and_await_response(60).unwrap().unwrap_err().kind().is_offline());
        ask().send().unwrap();
        assert_eq!(await_message_timeout(Duration::ZERO).unwrap(), None, "nobody waits for what expects nothing");
    });
    assert_eq!(exit, Exit::Returned);
}

#[test]
fn an_inheriting_request_hands_on_id_blob_and_response_target() {
    let mut prompt = request(1, "bob.os@q:q:t.os", b"", None);
    prompt.rsvp = Some(address("carol.os@r:r:t.os"));
    prompt.lazy_load_blob = Some(LazyLoadBlob { mime: None, bytes: b"handed on".to_vec() });
    let (_, sent) = run_with(vec![prompt.clone()], || {
        await_message().unwrap();
        Request::to(("our", "s", "s", "t.os")).body("").inherit(true).send().unwrap();
        Request::to(("our", "s", "s", "t.os")).body("").send().unwrap();
    });
    let [inheriting, plain] = &sent[..] else { panic!("{sent:?}") };
    assert_eq!(
        (inheriting.id, &inheriting.rsvp, &inheriting.lazy_load_blob),
        (1, &prompt.rsvp, &prompt.lazy_load_blob)
    );
    assert_eq!((&plain.rsvp, &plain.lazy_load_blob), (&None, &None));
    assert_ne!(plain.id, 1);
}

#[test]
fn an_incomplete_request_is_refused() {
    run_with(vec![], || {
        assert!(Request::new().body("x").send().unwrap_err().to_string().contains("target"));
        assert!(Request::to(("our", "q", "q", "t.os")).send().unwrap_err().to_string().contains("body"));
    });
}

#[test]
fn a_stopped_process_ends_at_its_next_wait_and_its_destructors_run() {
    struct Dropped(Arc<Mutex<bool>>);
    impl Drop for Dropped {
        fn drop(&mut self) {
            *self.0.lock().unwrap() = true;
        }
    }
    let dropped = Arc::new(Mutex::new(false));
    let guard = Dropped(dropped.clone());
    let (exit, _) = run_with(vec![client_message(1, b"last words")], move || {
        let _guard = guard;
        loop {
            let _ = await_message();
        }
    });
    assert_eq!(exit, Exit::Stopped);
    assert!(*dropped.lock().unwrap());
}

#[test]
fn a_panic_ends_only_its_process_and_the_backend_hears_of_it() {
    struct Witness(Arc<Mutex<Option<Exit>>>);
    impl Backend for Witness {
        fn send(&mut self, _: KernelMessage) -> Result<(), BackendStopped> {
            Ok(())
        }
        fn receive(&mut self, _: Option<Instant>) -> Result<Option<BackendDelivery>, BackendStopped> {
            Err(BackendStopped)
        }
        fn ended(self: Box<Self>, exit: &Exit) {
            *self.0.lock().unwrap() = Some(exit.clone());
        }
    }
    let seen = Arc::new(Mutex::new(None));
    let exit = spawn(address(OUR), Box::new(Witness(seen.clone())), |_| panic!("a bug")).unwrap().join().unwrap();
    assert_eq!(exit, Exit::Panicked("a bug".into()));
    assert_eq!(*seen.lock().unwrap(), Some(exit));
}

#[test]
fn a_wait_with_a_timeout_takes_what_is_here_and_then_gives_up() {
    let kernel = |kernel: &Kernel| {
        kernel.to_process.send(request(1, "bob.os@q:q:t.os", b"here", None)).unwrap();
        kernel.from_process.recv().unwrap();
        assert!(kernel.from_process.recv().is_err(), "the process is done");
    };
    let exit = run_beside(kernel, |_| {
        assert_eq!(await_message().unwrap().body(), b"here");
        assert_eq!(await_message_timeout(Duration::ZERO).unwrap(), None);
        Request::to(("our", "q", "q", "t.os")).body("").send().unwrap();
    });
    assert_eq!(exit, Exit::Returned);
}

#[test]
fn binds_ask_the_server_and_give_its_answer() {
    let kernel = |kernel: &Kernel| {
        let expected = [
            (r#"{"WebSocketBind":{"path":"/","authenticated":true,"extension":false}}"#, r#"{"Ok":null}"#),
            (
                r#"{"Bind":{"path":"/s","authenticated":false,"local_only":false,"cache":true}}"#,
                r#"{"Err":"InvalidSourceProcess"}"#,
            ),
        ];
        for (action, answer) in expected {
            let asked = kernel.from_process.recv().unwrap();
            assert_eq!(asked.target, Address::new("our", http_server_process()));
            assert_eq!(std::str::from_utf8(asked.message.body()).unwrap(), action);
            kernel.to_process.send(response(asked.id, answer.as_bytes(), None)).unwrap();
        }
        assert!(kernel.from_process.recv().is_err(), "an encrypted bind asks nobody");
    };
    let exit = run_beside(kernel, |_| {
        http::bind_ws_path("/", true, false).unwrap();
        let refused = http::bind_http_static_path("/s", false, false, None, vec![]).unwrap_err();
        assert_eq!(refused.downcast_ref(), Some(&HttpServerError::InvalidSourceProcess));
        assert!(http::bind_ws_path("/", true, true).is_err());
    });
    assert_eq!(exit, Exit::Returned);
}

#[test]
fn an_http_request_is_answered_with_status_headers_and_blob() {
    let events = EventMessages::new("alice.os", Dialect::Kinode);
    let incoming = IncomingHttpRequest { method: "GET".into(), ..Default::default() };
    let message = events.http(5, &address(OUR).process, incoming, b"asked".to_vec(), 15);
    let (_, sent) = run_with(vec![message], || {
        let message = await_message().unwrap();
        let request = HttpServerRequest::from_bytes(message.body()).unwrap().request().unwrap();
        assert_eq!((request.method.as_str(), get_blob().unwrap().bytes), ("GET", b"asked".to_vec()));
        http::send_response(404_u16, None, b"nothing".to_vec()).unwrap();
    });
    assert_eq!((sent[0].id, &sent[0].target), (5, &Address::new("alice.os", http_server_process())));
    assert_eq!(sent[0].message.body(), br#"{"status":404,"headers":{}}"#);
    assert_eq!(sent[0].lazy_load_blob.as_ref().unwrap().bytes, b"nothing");
}

/// The names and calls of the published libraries: `kinode_process_lib` from 0.10 on, `hyperware_process_lib` 1.x and
/// 2.x.
#[test]
fn the_server_of_todays_libraries_asks_the_same_and_keeps_who_is_connected() {
    use http::server::{HttpBindingConfig, HttpServer, WsBindingConfig, send_ws_push};
    let kernel = |kernel: &Kernel| {
        let expected = [
            (r#"{"WebSocketBind":{"path":"/ws","authenticated":false,"extension":false}}"#, r#"{"Ok":null}"#),
            (r#"{"Bind":{"path":"/a","authenticated":true,"local_only":false,"cache":false}}"#, r#"{"Ok":null}"#),
            (
                r#"{"Bind":{"path":"/b","authenticated":true,"local_only":false,"cache":false}}"#,
                r#"{"Err":"InvalidSourceProcess"}"#,
            ),
            (r#"{"Unbind":{"path":"/a"}}"#, r#"{"Ok":null}"#),
            (r#"{"SecureBind":{"path":"/s","cache":true}}"#, "what?"),
        ];
        for (action, answer) in expected {
            let asked = kernel.from_process.recv().unwrap();
            assert_eq!(std::str::from_utf8(asked.message.body()).unwrap(), action);
            kernel.to_process.send(response(asked.id, answer.as_bytes(), None)).unwrap();
        }
        let pushed: Vec<_> = kernel.from_process.iter().collect();
        let bodies = pushed.iter().map(|message| std::str::from_utf8(message.message.body()).unwrap());
        let push = |channel| format!(r#"{{"WebSocketPush":{{"channel_id":{channel},"message_type":"Text"}}}}"#);
        assert_eq!(bodies.collect::<Vec<_>>(), [push(7), push(8)]);
        assert!(pushed.iter().all(|message| message.lazy_load_blob.as_ref().unwrap().bytes == b"hi"));
    };
    let exit = run_beside(kernel, |_| {
        let mut server = HttpServer::new(5);
        server.bind_ws_path("/ws", WsBindingConfig::default().authenticated(false)).unwrap();
        let refused = server.bind_multiple_http_paths(vec!["/a", "/b"], HttpBindingConfig::default());
        assert_eq!(refused, Err(http::server::HttpServerError::InvalidSourceProcess), "and /a is unbound again");
        let content = HttpBindingConfig::default().secure_subdomain(true).static_content(Some(LazyLoadBlob::default()));
        let unheard = server.bind_http_path("/s", content);
        assert_eq!(unheard, Err(http::server::HttpServerError::UnexpectedResponse));
        let open = server.parse_request(br#"{"WebSocketOpen":{"path":"/ws","channel_id":7}}"#).unwrap();
        server.handle_request(open, |_| unreachable!(), |_, _, _| unreachable!());
        let hi = LazyLoadBlob { mime: None, bytes: b"hi".to_vec() };
        server.ws_push_all_channels("/ws", WsMessageType::Text, hi.clone());
        server.handle_request(HttpServerRequest::WebSocketClose(7), |_| unreachable!(), |_, _, _| unreachable!());
        server.ws_push_all_channels("/ws", WsMessageType::Text, hi.clone());
        assert!(server.get_ws_channels().is_empty());
        send_ws_push(8, WsMessageType::Text, hi);
    });
    assert_eq!(exit, Exit::Returned);
}
