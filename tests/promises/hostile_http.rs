//! Names, values, paths and queries of clients and processes stay text: no response is split, no field is added, no
//! path leads elsewhere, and invalid UTF-8 does no harm.

use crate::support;

use bytes::Bytes;
use pushring::internals::gateway::{ContractRequest, HttpRule};
use pushring::internals::http::Content;
use pushring::{AttachOptions, Broker, Event, HttpAsk, Process};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Instant;
use support::{PATIENCE, broker, on_each_driver};

fn process(broker: &Broker, name: &str) -> Process {
    let id = format!("{name}:test:sys");
    broker.handle().process(id, AttachOptions::default()).unwrap()
}

/// Sends a request that asks for the close.
fn ask(broker: &Broker, target: &[u8], fields: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(broker.address()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let parts = [b"GET ", target, b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n", fields, b"\r\n"];
    stream.write_all(&parts.concat()).unwrap();
    stream
}

/// The one response, to the end of the connection: status, lines of the head behind it, and body.
fn answer(mut stream: TcpStream) -> (u16, Vec<String>, String) {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let (head, body) = text.split_once("\r\n\r\n").expect("a whole head");
    let mut lines = head.split("\r\n").map(str::to_owned);
    let status = lines.next().unwrap()["HTTP/1.1 ".len()..][..3].parse().unwrap();
    (status, lines.collect(), body.to_owned())
}

/// The next request of this process, and its answer.
fn serve(process: &Process, respond: impl FnOnce(&ContractRequest) -> (Vec<(Box<str>, Box<str>)>, Bytes)) {
    let deadline = Instant::now() + PATIENCE;
    let mut events = Vec::new();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        assert!(process.recv_batch(&mut events, left).unwrap() > 0, "a request comes");
        for event in events.drain(..) {
            let Event::Http(request) = event else { continue };
            let HttpAsk::Path(ask) = &request.ask else { continue };
            let (headers, body) = respond(ask);
            return process.respond(request.id, 200).headers(headers).body(body).send().unwrap();
        }
    }
}

fn field(name: &str, value: &str) -> (Box<str>, Box<str>) {
    (name.into(), value.into())
}

#[test]
fn no_field_of_a_process_splits_its_response() {
    on_each_driver(|driver| {
        let broker = broker(driver, |_| {});
        let process = process(&broker, "fields");
        process.bind_http("/", HttpRule::default()).unwrap();
        for (name, value) in [
            ("x-lf", "a\nx-injected: 1"),
            ("x-cr", "a\rx-injected: 1"),
            ("x-crlf", "a\r\nx-injected: 1"),
            ("x-end", "a\r\n\r\nHTTP/1.1 200 OK\r\nx-injected: 1\r\n\r\n"),
            ("x-nul", "a\0b"),
            ("x-del", "a\u{7f}"),
            ("x\r\nx-injected", "1"),
            ("x-injected: 1\r\nx", "1"),
            ("x-injected ", "1"),
            ("x-injected:", "1"),
            ("", "x-injected: 1"),
            ("x-\u{e4}", "x-injected"),
            // Framing is the broker's own.
            ("content-length", "0"),
            ("Content-Length", "999999"),
            ("transfer-encoding", "chunked"),
            ("Connection", "keep-alive"),
            ("upgrade", "h2c"),
            ("trailer", "x-injected"),
        ] {
            let stream = ask(&broker, b"/fields:test:sys/", b"");
            serve(&process, |_| (vec![field("x-good", "1"), field(name, value)], Bytes::from_static(b"body")));
            let (status, lines, body) = answer(stream);
            let names: Vec<_> = lines.iter().map(|line| line.split_once(": ").unwrap().0).collect();
            assert_eq!(names, ["x-good", "content-length", "date", "connection"], "{name:?}: {value:?}");
            assert_eq!((status, &*lines[1], &*lines[3]), (200, "content-length: 4", "connection: close"));
            assert_eq!(body, "body", "{name:?}: {value:?}");
        }
    });
}

#[test]
fn what_a_client_sends_comes_back_as_no_field() {
    on_each_driver(|driver| {
        let broker = broker(driver, |_| {});
        let process = process(&broker, "mirror");
        process.bind_http("/*rest", HttpRule::default()).unwrap();
        let secure = HttpRule { secure_subdomain: true, ..HttpRule::default() };
        process.bind_http("/secure/*rest", secure).unwrap();
        let mime = "text/html\r\nx-injected: 1";
        let content = Some(Arc::new(Content::new(Some(mime), Bytes::from_static(b"page"))));
        process.bind_http("/page", HttpRule { content, ..HttpRule::default() }).unwrap();

        // A process that puts what it was sent, decoded, into fields of its own.
        let stream = ask(&broker, b"/mirror:test:sys/a?next=%2f%0d%0ax-injected:%201%00", b"X-Sent: a\tb\r\n");
        serve(&process, |request| {
            assert_eq!(request.query_params["next"], "/\r\nx-injected: 1\0");
            let fields = vec![
                field("location", &request.query_params["next"]),
                field("x-url", &request.url),
                field("x-sent", &request.headers["x-sent"]),
            ];
            (fields, Bytes::new())
        });
        let (_, lines, _) = answer(stream);
        assert_eq!(lines[..2], ["x-url: http://localhost/mirror:test:sys/a", "x-sent: a\tb"]);
        assert!(!lines.iter().any(|line| line.starts_with("location") || line.starts_with("x-injected")), "{lines:?}");

        // Redirects repeat the target as it was sent: undecoded.
        let (status, lines, _) = answer(ask(&broker, b"/mirror:test:sys/secure/%0d%0ax-injected:1?a=%0d%0ab", b""));
        let location = lines.iter().find_map(|line| line.strip_prefix("location: "));
        assert!(
            status == 307 && location.is_some_and(|to| to.ends_with("/secure/%0d%0ax-injected:1?a=%0d%0ab")),
            "{lines:?}"
        );

        let (status, lines, body) = answer(ask(&broker, b"/mirror:test:sys/page", b""));
        assert!(!lines.iter().any(|line| line.starts_with("x-injected")), "{lines:?}");
        assert_eq!((status, &*body), (200, "page"));
    });
}

/// Paths are compared as they are sent: no spelling of a path leads to what another process, or a rule of this one,
/// keeps.
#[test]
fn no_spelling_of_a_path_leads_elsewhere() {
    on_each_driver(|driver| {
        let broker = broker(driver, |_| {});
        let (open, closed) = (process(&broker, "open"), process(&broker, "closed"));
        let page = |text: &'static [u8]| Some(Arc::new(Content::new(None, Bytes::from_static(text))));
        open.bind_http("/page", HttpRule { content: page(b"open"), ..HttpRule::default() }).unwrap();
        let secret = HttpRule { content: page(b"secret"), authenticated: true, ..HttpRule::default() };
        closed.bind_http("/page", secret).unwrap();
        assert_eq!(answer(ask(&broker, b"/open:test:sys/page", b"")).2, "open");
        assert_ne!(answer(ask(&broker, b"/closed:test:sys/page", b"")).0, 200);
        for target in [
            &b"/open:test:sys/../closed:test:sys/page"[..],
            b"/open:test:sys/page/../../closed:test:sys/page",
            b"/open:test:sys/%2e%2e/closed:test:sys/page",
            b"/open:test:sys/..%2fclosed:test:sys%2fpage",
            b"/open:test:sys/..\\closed:test:sys\\page",
            b"/open:test:sys/.%00./closed:test:sys/page",
            b"/open:test:sys/%252e%252e/closed:test:sys/page",
            b"/open:test:sys/%c0%ae%c0%ae/closed:test:sys/page",
            b"//closed:test:sys/page",
            b"/./closed:test:sys/page",
            b"/closed:test:sys//page",
            b"/closed:test:sys/%70age",
            b"/closed:test:sys/page%00",
            b"/closed:test:sys/page;a=b",
            b"/CLOSED:test:sys/page",
            b"/closed%3atest%3asys/page",
            b"/etc/passwd",
            b"/../../../../etc/passwd",
            b"/open:test:sys/../../../../etc/passwd",
            b"http://localhost/open:test:sys/../closed:test:sys/page",
            b"http://localhost//closed:test:sys/page",
        ] {
            let (status, _, body) = answer(ask(&broker, target, b""));
            assert!(status >= 400 && !body.contains("secret"), "{}: {status} {body}", target.escape_ascii());
        }
    });
}

#[test]
fn bytes_that_are_no_utf8_harm_nobody() {
    on_each_driver(|driver| {
        let broker = broker(driver, |_| {});
        let process = process(&broker, "bytes");
        process.bind_http("/:name", HttpRule::default()).unwrap();
        let guarded = HttpRule { authenticated: true, ..HttpRule::default() };
        process.bind_http("/guarded/page", guarded).unwrap();
        let fields = b"X-Raw: \xff\xfe\r\nCookie: a=\xc3\x28; kinode-auth_local.os=\xff\r\n\
            Origin: http://\xffh\r\nReferer: \xf0\x9f\r\n";
        let stream = ask(&broker, b"/bytes:test:sys/%ff%fe?%ff=%c3%28&a=%f0%9f&b=%zz&c=%", fields);
        serve(&process, |request| {
            assert_eq!(request.url_params["name"], "%ff%fe", "undecoded");
            assert_eq!((&*request.query_params["\u{fffd}"], &*request.query_params["a"]), ("\u{fffd}(", "\u{fffd}"));
            assert_eq!((&*request.query_params["b"], &*request.query_params["c"]), ("%zz", "%"));
            assert_eq!(request.headers["x-raw"], "");
            (vec![field("x-echo", &request.query_params["a"])], Bytes::from_static(b"\xff\xfe"))
        });
        assert_eq!(answer(stream).0, 200);
        for (target, fields, status) in [
            (&b"/bytes:test:sys/\xff"[..], &b""[..], 400),
            (b"/bytes:test:sys/?\xc3\x28", b"", 400),
            (b"/bytes:test:sys/a", b"X-\xff: a\r\n", 400),
            (b"http://\xffh/", b"", 400),
            (b"/%ff:test:sys/a", b"", 404),
            (b"/%ff%fe%fd", b"", 404),
        ] {
            assert_eq!(answer(ask(&broker, target, fields)).0, status, "{}", target.escape_ascii());
        }
        let (status, ..) =
            answer(ask(&broker, b"/bytes:test:sys/guarded/page", b"Cookie: kinode-auth_local.os=\xff\r\n"));
        assert!(matches!(status, 302..=403), "not let in: {status}");
    });
}
