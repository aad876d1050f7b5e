use super::*;
use crate::{
    gateway::{Claims, HostPolicy, HttpRule, Secret, Settings, WebSocketRule, mint},
    http::{Content, HttpLimits},
};
use bytes::Bytes;
use std::net::SocketAddr;

const NOW: u64 = 1_000;
const APP: &str = "wsecho:wsecho:sys";
const LOOPBACK: &str = "127.0.0.1:5000";
const LOCAL_ONLY: &str = "403 this path is open to clients on this machine only";
const ELSEWHERE: &str = "203.0.113.9:5000";

fn settings(tokens: SubdomainTokens) -> Settings {
    let mut settings = Settings::of_a_node("fake.os", tokens);
    settings.secret = Some(Secret::new(b"key").unwrap());
    settings.login = true;
    settings.rpc_path = Some("/rpc:distro:sys/message");
    settings.expose_local = true;
    settings.hosts = HostPolicy::Any;
    settings
}

/// The paths that the recorded process of the node contract binds, and a few more.
fn snapshot(settings: Settings) -> Snapshot {
    let mut snapshot = Snapshot::new(settings);
    let app: ProcessId = APP.parse().unwrap();
    let owner = OwnerId(7);
    let open = WebSocketRule::default();
    let mut ws = |path, rule| snapshot.bind_websocket(owner, &app, path, rule).unwrap();
    ws("/", open);
    ws("/authed", WebSocketRule { authenticated: true, ..open });
    ws("/sse", WebSocketRule { sse: true, ..open });
    ws("/ext", WebSocketRule { extension: true, ..open });
    ws("/wssecure", WebSocketRule { secure_subdomain: true, ..open });
    let open = HttpRule::default;
    let content = |text: &'static str| Some(Content::new(Some("text/css"), Bytes::from_static(text.as_bytes())).into());
    let mut http = |path, rule| snapshot.bind_http(owner, &app, path, rule).unwrap();
    http("/static", HttpRule { content: content("body{}"), ..open() });
    http("/authstatic", HttpRule { authenticated: true, content: content("secret"), ..open() });
    http("/dyn", open());
    http("/dyn/:id", open());
    http("/local", HttpRule { local_only: true, ..open() });
    http("/authdyn", HttpRule { authenticated: true, ..open() });
    http("/secure", HttpRule { secure_subdomain: true, ..open() });
    let chess = "chess:chess:template.os".parse().unwrap();
    snapshot.bind_http(OwnerId(8), &chess, "/", open()).unwrap();
    snapshot.bind_http(OwnerId(8), &chess, "/auth", HttpRule { authenticated: true, ..open() }).unwrap();
    snapshot.bind_websocket(OwnerId(8), &chess, "/x/:room", WebSocketRule::default()).unwrap();
    snapshot
}

fn hyperdrive() -> Snapshot {
    snapshot(settings(SubdomainTokens::Shared))
}

fn token(subdomain: Option<&str>) -> String {
    let claims = Claims { username: "fake.os".into(), subdomain: subdomain.map(Into::into), expiration: NOW + 1 };
    mint(&Secret::new(b"key").unwrap(), &claims)
}

fn node_cookie() -> String {
    format!("Cookie: hyperware-auth_fake.os={}\r\n", token(None))
}

fn app_cookie() -> String {
    format!("Cookie: hyperware-auth_fake.os@{APP}={}\r\n", token(Some(APP)))
}

const UPGRADE: &str = "Upgrade: websocket\r\nConnection: Upgrade\r\n";

/// A judged request as text: `ws`, `register`, `ask`, `login`, `rpc`, or the status of the answer and its words.
fn judge_from(snapshot: &Snapshot, peer: &str, line: &str, headers: &str) -> String {
    let (method, target) = line.split_once(' ').unwrap();
    let host = if format!("\n{headers}").contains("\nHost:") { "" } else { "Host: localhost:18101\r\n" };
    let text = format!("{method} {target} HTTP/1.1\r\n{host}{headers}\r\n");
    let (head, _) = Head::parse(text.as_bytes(), &HttpLimits::default()).unwrap().unwrap();
    match enter(snapshot, &head, peer.parse::<SocketAddr>().unwrap(), NOW) {
        Entry::Upgrade(upgrade) => format!("ws {} {}", upgrade.path, upgrade.forwarded_for.unwrap_or_default()),
        Entry::Stream(upgrade) => format!("stream {}", upgrade.path),
        Entry::Say(upgrade) => format!("say {}", upgrade.path),
        Entry::Register { .. } => "register".into(),
        Entry::Refuse { code, why } => format!("{code} {why}"),
        Entry::Dynamic(dynamic) => format!("ask {} {}s", dynamic.request.bound_path, dynamic.timeout_s),
        Entry::Login(_) => "login".into(),
        Entry::Rpc { timeout_s } => format!("rpc {timeout_s}s"),
        Entry::Answer(response) => {
            let is_page = response.body().starts_with(b"<!doctype html>");
            let words = if is_page { "login page" } else { std::str::from_utf8(response.body()).unwrap() };
            let location = response.find("location").unwrap_or_default();
            format!("{} {words}{location}", response.status())
        }
    }
}

fn judge(line: &str, headers: &str) -> String {
    judge_from(&hyperdrive(), LOOPBACK, line, headers)
}

fn ws(path: &str, headers: &str) -> String {
    judge(&format!("GET {path}"), &format!("{UPGRADE}{headers}"))
}

#[test]
fn a_stream_is_let_in_where_the_path_allows_it() {
    let stream = |path: &str| judge(&format!("GET /{APP}{path}"), "Accept: text/event-stream\r\n");
    assert_eq!(stream("/sse"), "stream /sse");
    assert!(!stream("/authed").starts_with("stream"));
    assert_eq!(judge(&format!("POST /{APP}/sse"), "SSE-Channel: 7.x\r\n"), "say /sse");
    assert!(judge(&format!("GET /{APP}/sse"), "").starts_with("404"));
}

#[test]
fn bound_websockets_open() {
    assert_eq!(ws("/wsecho:wsecho:sys", ""), "ws / ");
    assert_eq!(ws("/wsecho:wsecho:sys/?a=b", ""), "ws / ");
    assert_eq!(ws("/chess:chess:template.os/x/room%201/", ""), "ws /x/room%201 ");
    assert_eq!(ws("/wsecho:wsecho:sys", "X-Forwarded-For: 203.0.113.7, 10.0.0.1\r\n"), "ws / 203.0.113.7");
    assert_eq!(ws("/wsecho:wsecho:sys/authed", &node_cookie()), "ws /authed ");
    assert_eq!(ws("/wsecho:wsecho:sys/ext", ""), "ws /ext ");
    let host = "Host: wsecho-sys.localhost:18101\r\n";
    assert_eq!(ws("/wsecho:wsecho:sys/wssecure", &format!("{host}{}", app_cookie())), "ws /wssecure ");
}

#[test]
fn an_unbound_websocket_path_is_an_http_path() {
    assert_eq!(ws("/nobody:none:sys", ""), "404 nothing is bound to this path");
    assert_eq!(ws("/wsecho:wsecho:sys/nope", ""), "404 nothing is bound to this path");
    assert_eq!(ws("/wsecho:wsecho:sys/dyn", ""), "ask /wsecho:wsecho:sys/dyn 15s");
    assert_eq!(
        judge("GET /wsecho:wsecho:sys", ""),
        "404 only WebSockets are served at this path: use ws:// or wss://",
        "and an HTTP request never takes a WebSocket path"
    );
}

#[test]
fn refused_websockets_hear_the_true_status() {
    assert_eq!(ws("/wsecho:wsecho:sys/authed", ""), "401 there is no token");
    assert_eq!(ws("/wsecho:wsecho:sys/authed", &app_cookie()), "401 there is no token");
    let elsewhere = ws("/wsecho:wsecho:sys/wssecure", &app_cookie());
    assert_eq!(elsewhere, "403 this path is open on its package's secure subdomain only");
    let host = "Host: wsecho-sys.localhost:18101\r\n";
    let with_node_token = ws("/wsecho:wsecho:sys/wssecure", &format!("{host}{}", node_cookie()));
    assert_eq!(with_node_token, "401 there is no token", "localhost subdomains need their own");
    let foreign = format!("{}Origin: http://evil.com\r\n", node_cookie());
    let hijack = ws("/wsecho:wsecho:sys/authed", &foreign);
    assert_eq!(hijack, "403 the page's Origin is neither this host nor in the list (origins)");
    let same = format!("{}Origin: http://localhost:18101\r\n", node_cookie());
    assert_eq!(ws("/wsecho:wsecho:sys/authed", &same), "ws /authed ");
    assert_eq!(ws("/wsecho:wsecho:sys", "Origin: http://evil.com\r\n"), "ws / ", "an open path is open to all");
}

#[test]
fn forged_cookies_are_refused() {
    let good = token(None);
    let foreign_key = mint(
        &Secret::new(b"other").unwrap(),
        &Claims { username: "fake.os".into(), subdomain: None, expiration: NOW + 1 },
    );
    for (cookie, words) in [
        (format!("hyperware-auth_fake.osX={good}"), "there is no token"),
        (format!("xhyperware-auth_fake.os={good}"), "there is no token"),
        (format!("kinode-auth_fake.os={good}"), "there is no token"),
        (format!("HYPERWARE-AUTH_fake.os={good}"), "there is no token"),
        (format!("hyperware-auth_fake.os@{APP}={good}"), "there is no token"),
        ("hyperware-auth_fake.os=".into(), "there is no token"),
        ("hyperware-auth_fake.os=; a=b; hyperware-auth_fake.os=x".into(), "the token is malformed"),
        (format!("hyperware-auth_fake.os={}", token(Some(APP))), "the token is for another subdomain"),
        (format!("hyperware-auth_fake.os={foreign_key}"), "the token's signature is not valid"),
        (format!("hyperware-auth_fake.os=\"{good}\""), "the token's signature is not valid"),
    ] {
        let refused = ws("/wsecho:wsecho:sys/authed", &format!("Cookie: {cookie}\r\n"));
        assert!(refused.starts_with("401 "), "{cookie}: {refused}");
        if !cookie.contains('"') {
            assert_eq!(refused, format!("401 {words}"), "{cookie}");
        }
    }
    // Of the host and of its domain, from a login before and one that holds.
    let name = "hyperware-auth_fake.os";
    for cookies in [
        format!("x=y; {name}={foreign_key}; {name}={good}"),
        format!("{name}={good}; {name}="),
        format!("{name}={good}\r\nCookie: {name}=1"),
    ] {
        assert_eq!(ws("/wsecho:wsecho:sys/authed", &format!("Cookie: {cookies}\r\n")), "ws /authed ", "{cookies}");
    }
    let flood = format!("Cookie: {}{name}={good}\r\n", format!("{name}=x; ").repeat(32));
    assert_eq!(ws("/wsecho:wsecho:sys/authed", &flood), "401 the token is malformed");
}

#[test]
fn the_root_registers_unless_it_is_bound() {
    let mut snapshot = hyperdrive();
    let root = |snapshot: &Snapshot| judge_from(snapshot, LOOPBACK, "GET /?x", UPGRADE);
    assert_eq!(root(&snapshot), "register");
    assert_eq!(judge("GET /", ""), "404 nothing is bound to this path");
    let homepage = "homepage:homepage:sys".parse().unwrap();
    snapshot.bind_websocket(OwnerId(9), &homepage, "/", WebSocketRule::default()).unwrap();
    assert_eq!(root(&snapshot), "ws / ");
    snapshot.unbind_websocket(OwnerId(9), &homepage, "/").unwrap();
    assert_eq!(root(&snapshot), "register");
    snapshot.bind_websocket(OwnerId(9), &homepage, "/our/x", WebSocketRule::default()).unwrap();
    assert_eq!(judge_from(&snapshot, LOOPBACK, "GET /our/x", UPGRADE), "ws /our/x ");
}

#[test]
fn extensions_and_local_paths_are_for_this_machine() {
    let mut closed = settings(SubdomainTokens::Shared);
    closed.expose_local = false;
    let (open, closed) = (hyperdrive(), snapshot(closed));
    let judge = |snapshot, peer, headers: &str| {
        let upgrade = format!("{UPGRADE}{headers}");
        [
            judge_from(snapshot, peer, "GET /wsecho:wsecho:sys/ext", &upgrade),
            judge_from(snapshot, peer, "GET /wsecho:wsecho:sys/local", headers),
            judge_from(snapshot, peer, "POST /rpc:distro:sys/message", headers),
        ]
    };
    let refused = ["403 this path is open to extensions on the node's own machine only", LOCAL_ONLY, LOCAL_ONLY];
    assert_eq!(judge(&open, LOOPBACK, ""), ["ws /ext ", "ask /wsecho:wsecho:sys/local 15s", "rpc 15s"]);
    assert_eq!(judge(&open, "[::ffff:127.0.0.1]:1", "")[2], "rpc 15s");
    assert_eq!(judge(&open, ELSEWHERE, ""), refused);
    assert_eq!(judge(&closed, LOOPBACK, ""), refused);
    for header in ["X-Forwarded-For: 1.2.3.4", "X-Forwarded-Proto: http", "X-Forwarded-Host: h", "X-Real-IP: x"] {
        assert_eq!(judge(&open, LOOPBACK, &format!("{header}\r\n")), refused, "{header}");
    }
    let foreign = judge(&open, LOOPBACK, "Origin: https://evil.com\r\n");
    assert!(foreign[0].starts_with("403 the page's") && foreign[2].starts_with("403 the page's"), "{foreign:?}");
    let post = judge_from(&open, LOOPBACK, "POST /wsecho:wsecho:sys/local", "Origin: null\r\n");
    assert_eq!(post, "403 the page's Origin is opaque");
    let kinode = snapshot(settings(SubdomainTokens::Own));
    assert_eq!(judge(&kinode, LOOPBACK, "")[2], "rpc 15s");
}

#[test]
fn rpc_is_posted_and_optional() {
    assert_eq!(judge("GET /rpc:distro:sys/message", ""), "405 the method is not allowed here");
    assert_eq!(judge("POST /rpc:distro:sys/message/", ""), "rpc 15s");
    let without = snapshot(Settings::of_a_node("fake.os", SubdomainTokens::Own));
    assert_eq!(judge_from(&without, LOOPBACK, "POST /rpc:distro:sys/message", ""), "404 nothing is bound to this path");
    assert_eq!(judge_from(&without, LOOPBACK, "GET /login", ""), "404 nothing is bound to this path");
}

#[test]
fn static_content_answers_get_and_head() {
    assert_eq!(judge("GET /wsecho:wsecho:sys/static", ""), "200 body{}");
    assert_eq!(judge("HEAD /wsecho:wsecho:sys/static/", ""), "200 body{}");
    assert_eq!(judge("POST /wsecho:wsecho:sys/static", ""), "ask /wsecho:wsecho:sys/static 15s");
    assert_eq!(judge("GET /wsecho:wsecho:sys/static", "If-None-Match: *\r\n"), "304 ");
    assert_eq!(judge("GET /wsecho:wsecho:sys/authstatic", "If-None-Match: *\r\n"), "200 login page");
    assert_eq!(judge("GET /wsecho:wsecho:sys/authstatic", &node_cookie()), "200 secret");
}

#[test]
fn unauthenticated_requests_get_the_login_page() {
    assert_eq!(judge("GET /wsecho:wsecho:sys/authdyn", ""), "200 login page");
    assert_eq!(judge("GET /wsecho:wsecho:sys/authdyn", &node_cookie()), "ask /wsecho:wsecho:sys/authdyn 15s");
    let host = "Host: wsecho-sys.localhost:18101\r\n";
    assert_eq!(judge("GET /wsecho:wsecho:sys/secure", host), "200 login page");
    let mut without = settings(SubdomainTokens::Shared);
    without.login = false;
    let without_login = judge_from(&snapshot(without.clone()), LOOPBACK, "GET /wsecho:wsecho:sys/authdyn", "");
    assert_eq!(without_login, "401 there is no token");
    without.secret = None;
    let without_secret = judge_from(&snapshot(without), LOOPBACK, "GET /wsecho:wsecho:sys/authdyn", &node_cookie());
    assert_eq!(without_secret, "401 this server has no token secret");
}

#[test]
fn what_a_cookie_lets_change_is_asked_from_our_own_pages_only() {
    let post = |origin: &str| judge("POST /wsecho:wsecho:sys/authdyn", &format!("{}{origin}", node_cookie()));
    assert_eq!(post(""), "ask /wsecho:wsecho:sys/authdyn 15s");
    assert_eq!(post("Origin: http://localhost:18101\r\n"), "ask /wsecho:wsecho:sys/authdyn 15s");
    assert!(post("Origin: http://localhost:9\r\n").starts_with("403 "));
    let get = judge("GET /wsecho:wsecho:sys/authdyn", &format!("{}Origin: http://evil.com\r\n", node_cookie()));
    assert_eq!(get, "ask /wsecho:wsecho:sys/authdyn 15s");
    assert!(judge("POST /wsecho:wsecho:sys/dyn", "Origin: http://evil.com\r\n").starts_with("ask "));
}

#[test]
fn secure_paths_redirect_to_their_subdomain() {
    let from =
        |host: &str, more: &str| judge("GET /wsecho:wsecho:sys/secure/?x=1&y=%20", &format!("Host: {host}\r\n{more}"));
    let to = "wsecho:wsecho:sys/secure?x=1&y=%20";
    assert_eq!(from("localhost:18101", ""), format!("307 http://wsecho-sys.localhost:18101/{to}"));
    assert_eq!(from("node.example", ""), format!("307 http://wsecho-sys.node.example/{to}"));
    let https = from("node.example", "X-Forwarded-Proto: https\r\n");
    assert_eq!(https, format!("307 https://wsecho-sys.node.example/{to}"));
    assert_eq!(from("127.0.0.1:80", ""), format!("307 http://wsecho-sys.localhost:80/{to}"));
    let address = judge_from(&hyperdrive(), ELSEWHERE, "GET /wsecho:wsecho:sys/secure", "Host: 192.0.2.1\r\n");
    assert!(address.starts_with("403 "), "{address}");
}

#[test]
fn whose_token_a_secure_subdomain_takes() {
    let secure = |tokens, host: &str, cookie: &str| {
        let settings = settings(tokens);
        let system = settings.cookie.split_once('-').unwrap().0.to_owned();
        let headers = format!("Host: {host}\r\n{}", cookie.replace("hyperware", &system));
        judge_from(&snapshot(settings), LOOPBACK, "GET /wsecho:wsecho:sys/secure", &headers)
    };
    let asked = "ask /wsecho:wsecho:sys/secure 15s";
    let (local, public) = ("wsecho-sys.localhost", "wsecho-sys.node.example");
    let own_name_node_token = format!("Cookie: hyperware-auth_fake.os@{APP}={}\r\n", token(None));
    // That of the subdomain is from before the node had a new key.
    let both = format!("{}Cookie: hyperware-auth_fake.os@{APP}=a.b.c\r\n", node_cookie());
    for (tokens, host, cookie, expected) in [
        (SubdomainTokens::Shared, local, app_cookie(), asked),
        (SubdomainTokens::Shared, local, node_cookie(), "200 login page"),
        (SubdomainTokens::Shared, local, own_name_node_token.clone(), "200 login page"),
        (SubdomainTokens::Shared, public, app_cookie(), asked),
        (SubdomainTokens::Shared, public, node_cookie(), asked),
        (SubdomainTokens::Shared, public, own_name_node_token.clone(), asked),
        (SubdomainTokens::Shared, public, both.clone(), asked),
        (SubdomainTokens::Shared, local, both.clone(), "200 login page"),
        (SubdomainTokens::Own, public, both, "200 login page"),
        (SubdomainTokens::Own, local, app_cookie(), asked),
        (SubdomainTokens::Own, public, app_cookie(), asked),
        (SubdomainTokens::Own, public, node_cookie(), "200 login page"),
        (SubdomainTokens::Own, public, own_name_node_token, "200 login page"),
    ] {
        assert_eq!(secure(tokens, host, &cookie), expected, "{tokens:?} {host} {cookie}");
    }
}

#[test]
fn a_secure_subdomain_serves_its_own_package() {
    let through =
        |path: &str| judge(&format!("GET {path}"), &format!("Host: wsecho-sys.localhost\r\n{}", node_cookie()));
    let refused = "403 secure subdomain can only serve its associated package";
    assert_eq!(through("/chess:chess:template.os/auth"), refused);
    assert_eq!(through("/wsecho:wsecho:sys/authdyn"), "ask /wsecho:wsecho:sys/authdyn 15s");
    assert_eq!(through("/chess:chess:template.os"), "ask /chess:chess:template.os 15s", "it is open anyway");
    // Hosts have no case.
    let headers = |cookie: String| format!("Host: WSECHO-sys.LocalHost\r\n{cookie}");
    assert_eq!(judge("GET /chess:chess:template.os/auth", &headers(node_cookie())), refused);
    assert_eq!(judge("GET /wsecho:wsecho:sys/secure", &headers(app_cookie())), "ask /wsecho:wsecho:sys/secure 15s");
}

#[test]
fn an_unbound_path_falls_back_to_the_base() {
    assert_eq!(judge("GET /chess:chess:template.os/deep/er", ""), "ask /chess:chess:template.os 15s");
    assert_eq!(judge("GET /wsecho:wsecho:sys/none", ""), "404 nothing is bound to this path");
    // Who comes to a WebSocket's path without an upgrade is told what would do.
    let for_upgrades = "404 only WebSockets are served at this path: use ws:// or wss://";
    assert_eq!(judge("GET /wsecho:wsecho:sys/ext", ""), for_upgrades);
    assert_eq!(judge("POST /wsecho:wsecho:sys/ext", ""), for_upgrades);
    let mut snapshot = hyperdrive();
    let rule = WebSocketRule { sse: true, ..WebSocketRule::default() };
    snapshot.bind_websocket(OwnerId(9), &"homepage:homepage:sys".parse().unwrap(), "/stream", rule).unwrap();
    let streams = judge_from(&snapshot, LOOPBACK, "POST /stream", "");
    assert!(streams.starts_with("404 ") && streams.contains("SSE-Channel"), "{streams}");
    // Below the base, and whether or not they were ever bound.
    for path in ["/auth", "/never", "/files/:id"] {
        snapshot.unbind_http(OwnerId(8), &"chess:chess:template.os".parse().unwrap(), path).unwrap();
    }
    let chess = |path: &str| judge_from(&snapshot, LOOPBACK, &format!("GET /chess:chess:template.os/{path}"), "");
    for path in ["auth", "never", "files/7"] {
        assert_eq!(chess(path), "404 nothing is bound to this path", "{path}");
    }
    assert_eq!(chess("files"), "ask /chess:chess:template.os 15s");
}

#[test]
fn slashes_at_the_end_make_no_other_path() {
    for path in ["dyn", "dyn/", "dyn//"] {
        assert_eq!(judge(&format!("GET /wsecho:wsecho:sys/{path}"), ""), "ask /wsecho:wsecho:sys/dyn 15s", "{path}");
    }
}

#[test]
fn hosts_that_are_not_ours() {
    let mut settings = settings(SubdomainTokens::Shared);
    settings.hosts = HostPolicy::Listed(vec![]);
    let snapshot = snapshot(settings);
    let judge = |host: &str, target: &str| {
        judge_from(&snapshot, LOOPBACK, &format!("GET {target}"), &format!("Host: {host}\r\n"))
    };
    assert_eq!(judge("evil.com", "/wsecho:wsecho:sys/static"), "421 this server does not answer for that host");
    assert_eq!(judge("localhost", "/wsecho:wsecho:sys/static"), "200 body{}");
    assert!(judge("localhost", "http://evil.com/wsecho:wsecho:sys/static").starts_with("421"), "the target overrides");
    assert_eq!(judge("evil.com", "http://localhost/wsecho:wsecho:sys/static"), "200 body{}");
}

#[test]
fn a_name_that_leads_here_makes_nobody_local() {
    // A listener that answers for any host: a page may have made its own name resolve to this machine.
    for host in ["localhost", "a.localhost:8080", "127.0.0.1", "[::1]:8080", "192.168.0.9"] {
        let host = format!("Host: {host}\r\n");
        assert_eq!(judge("POST /rpc:distro:sys/message", &host), "rpc 15s", "{host}");
        assert_eq!(ws("/wsecho:wsecho:sys/ext", &host), "ws /ext ", "{host}");
        assert_eq!(judge("POST /wsecho:wsecho:sys/local", &host), "ask /wsecho:wsecho:sys/local 15s", "{host}");
    }
    for host in ["evil.com", "localhost.evil.com", "127.0.0.1.evil.com", "node.example"] {
        let host = format!("Host: {host}\r\nOrigin: http://{host}\r\n");
        assert_eq!(judge("POST /rpc:distro:sys/message", &host), LOCAL_ONLY, "{host}");
        assert!(ws("/wsecho:wsecho:sys/ext", &host).starts_with("403 "), "{host}");
        assert_eq!(judge("POST /wsecho:wsecho:sys/local", &host), LOCAL_ONLY, "{host}");
    }
    let mut listed = settings(SubdomainTokens::Shared);
    listed.hosts = HostPolicy::Listed(vec!["node.example".into()]);
    let rpc = judge_from(&snapshot(listed), LOOPBACK, "POST /rpc:distro:sys/message", "Host: node.example\r\n");
    assert_eq!(rpc, "rpc 15s");
}

#[test]
fn pages_under_development_are_served_through_this_machine_alone() {
    let mut settings = settings(SubdomainTokens::Shared);
    settings.dev_origins =
        ["http://localhost:3000", "http://evil.localhost:3000", "http://chess-template-os.example:1"]
            .map(Into::into)
            .to_vec();
    let mut snapshot = snapshot(settings);
    let chess = "chess:chess:template.os".parse().unwrap();
    let secure = HttpRule { secure_subdomain: true, ..HttpRule::default() };
    snapshot.bind_http(OwnerId(8), &chess, "/secure", secure).unwrap();
    let post = |peer: &str, host: &str, origin: &str, more: &str| {
        let headers = format!("Host: {host}\r\nOrigin: {origin}\r\n{}{more}", node_cookie());
        let posted = judge_from(&snapshot, peer, "POST /wsecho:wsecho:sys/authdyn", &headers);
        let upgrade = format!("{UPGRADE}{headers}");
        let opened = judge_from(&snapshot, peer, "GET /wsecho:wsecho:sys/authed", &upgrade);
        assert_eq!(posted.starts_with("ask"), opened.starts_with("ws"), "{posted} {opened}");
        posted.starts_with("ask")
    };
    let page = "http://localhost:3000";
    for host in ["127.0.0.1:8080", "localhost:8080", "[::1]:8080"] {
        assert!(post(LOOPBACK, host, page, ""), "{host}");
    }
    assert!(!post(ELSEWHERE, "127.0.0.1:8080", page, ""), "from elsewhere");
    for proxied in ["X-Forwarded-For: 127.0.0.1\r\n", "Forwarded: for=x\r\n", "X-Real-IP: 1.2.3.4\r\n"] {
        assert!(!post(LOOPBACK, "127.0.0.1:8080", page, proxied), "{proxied}");
    }
    for host in ["wsecho-sys.localhost:8080", "node.example", "localhost.evil.com"] {
        assert!(!post(LOOPBACK, host, page, ""), "{host}");
    }
    let others = [
        "http://localhost:3001",
        "https://localhost:3000",
        "http://localhost:3000.evil.com",
        "http://evil.localhost:3000",
        "http://chess-template-os.example:1",
        "http://127.0.0.1:3000",
        "null",
    ];
    for origin in others {
        assert!(!post(LOOPBACK, "127.0.0.1:8080", origin, ""), "{origin}");
    }
}

#[test]
fn only_pages_of_the_node_frame_the_login_page() {
    let mut snapshot = hyperdrive();
    let ancestors = |snapshot: &Snapshot, host: &str| {
        let text = format!("GET /wsecho:wsecho:sys/secure HTTP/1.1\r\nHost: {host}\r\n\r\n");
        let (head, _) = Head::parse(text.as_bytes(), &HttpLimits::default()).unwrap().unwrap();
        let response = login::page_response(snapshot, &head);
        assert_eq!(response.find("x-frame-options"), None);
        let policy = response.find("content-security-policy").unwrap();
        policy.rsplit("; ").next().unwrap().to_owned()
    };
    for (host, expected) in [
        ("localhost:8080", "frame-ancestors 'self'"),
        ("wsecho-sys.localhost:8080", "frame-ancestors 'self' localhost:8080"),
        ("WSecho-sys.node.example", "frame-ancestors 'self' node.example"),
        ("other.node.example", "frame-ancestors 'self'"),
        ("127.0.0.1:8080", "frame-ancestors 'self'"),
        ("[::1]", "frame-ancestors 'self'"),
    ] {
        assert_eq!(ancestors(&snapshot, host), expected, "{host}");
    }
    let mut own_page = settings(SubdomainTokens::Shared);
    own_page.login_page = Some(Bytes::from_static(b"<p>"));
    snapshot = snapshot.with_settings(own_page);
    assert_eq!(ancestors(&snapshot, "wsecho-sys.localhost"), "frame-ancestors 'self' localhost");
}

#[test]
fn the_login_page_can_ask_whether_it_is_needed() {
    let ask = |target: &str, headers: &str| {
        judge(&format!("GET {target}"), &format!("Accept: application/json\r\n{headers}"))
    };
    let (yes, no) = (r#"200 {"logged_in":true}"#, r#"200 {"logged_in":false}"#);
    let host = "Host: wsecho-sys.localhost:1\r\n";
    assert_eq!(ask("/login", ""), no);
    assert_eq!(ask("/login?subdomain=", &node_cookie()), yes);
    assert_eq!(ask(&format!("/login?subdomain={APP}"), &format!("{host}{}", app_cookie())), yes);
    assert_eq!(ask(&format!("/login?subdomain={APP}"), &format!("{host}{}", node_cookie())), no);
    assert_eq!(ask(&format!("/login?subdomain={APP}"), &app_cookie()), no, "it is another host's cookie");
    assert_eq!(ask("/login?subdomain=x", &node_cookie()), no);
    assert_eq!(judge("GET /login", "Accept: text/html, application/json\r\n"), "200 login page");
}

#[test]
fn hosts_depend_on_the_listener_unless_chosen() {
    let by_listener = |names: &[&str], address: &str| {
        HostPolicy::ByListener(names.iter().map(|&name| name.into()).collect()).for_listener(address.parse().unwrap())
    };
    let name = || vec!["a.b".into()];
    for address in ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"] {
        assert_eq!(by_listener(&[], address), HostPolicy::Listed(vec![]));
        assert_eq!(by_listener(&["a.b"], address), HostPolicy::Listed(name()));
    }
    for address in ["0.0.0.0", "::", "192.168.0.9", "2001:db8::1"] {
        assert_eq!(by_listener(&[], address), HostPolicy::Any);
        assert_eq!(by_listener(&["a.b"], address), HostPolicy::Listed(name()));
    }
    let loopback = "127.0.0.1".parse().unwrap();
    assert_eq!(HostPolicy::Any.for_listener(loopback), HostPolicy::Any);
    assert_eq!(HostPolicy::Listed(name()).for_listener(loopback), HostPolicy::Listed(name()));
}

#[test]
fn logins() {
    assert_eq!(judge("GET /login", ""), "200 login page");
    assert_eq!(judge("HEAD /login/", ""), "200 login page");
    assert_eq!(judge("POST /login", ""), "login");
    assert_eq!(judge("PUT /login", ""), "405 the method is not allowed here");
    assert!(judge("POST /login", "Origin: http://evil.com\r\n").starts_with("403 "));
    assert!(judge("POST /login?redirect=//evil.com", "").starts_with("400 "));
}

#[test]
fn methods_that_no_path_takes() {
    assert_eq!(judge("TRACE /wsecho:wsecho:sys/dyn", ""), "405 the method is not allowed here");
    assert_eq!(judge("OPTIONS *", ""), "204 ");
    assert_eq!(judge("PROPFIND /wsecho:wsecho:sys/dyn", ""), "ask /wsecho:wsecho:sys/dyn 15s");
}

#[test]
fn timeouts() {
    let timeout = |tokens, value: &str| {
        let headers = format!("X-Hyperware-Http-Server-Timeout: {value}\r\n");
        judge_from(&snapshot(settings(tokens)), LOOPBACK, "GET /wsecho:wsecho:sys/dyn", &headers)
            .rsplit_once(' ')
            .unwrap()
            .1
            .to_owned()
    };
    for (value, expected) in
        [("60", "60s"), ("601", "600s"), ("0", "1s"), ("99999999999", "600s"), ("x", "15s"), ("", "15s")]
    {
        assert_eq!(timeout(SubdomainTokens::Shared, value), expected, "{value}");
        assert_eq!(timeout(SubdomainTokens::Own, value), "15s");
    }
}

#[test]
fn what_a_process_is_told() {
    let text = "POST /wsecho:wsecho:sys/dyn/abc%20d/?a=1&b=two+words&a=3 HTTP/1.1\r\nHost: Localhost:18101\r\n\
        X-Multi: v0\r\nx-multi: v1\r\nX-Text: \u{e9}\r\nX-Bytes: \u{e8}\r\nContent-Length: 0\r\n\r\n";
    let mut bytes = text.as_bytes().to_vec();
    let at = text.find('\u{e8}').unwrap();
    bytes.splice(at..at + 2, [0xe8]);
    let (head, _) = Head::parse(&bytes, &HttpLimits::default()).unwrap().unwrap();
    let snapshot = hyperdrive();
    let Entry::Dynamic(dynamic) = enter(&snapshot, &head, LOOPBACK.parse::<SocketAddr>().unwrap(), NOW) else {
        panic!()
    };
    let map =
        |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect::<BTreeMap<_, _>>();
    let headers = [
        ("host", "Localhost:18101"),
        ("x-multi", "v1"),
        ("x-text", "\u{e9}"),
        ("x-bytes", ""),
        ("content-length", "0"),
    ];
    let expected = ContractRequest {
        source: LOOPBACK.parse().unwrap(),
        method: "POST".into(),
        url: "http://Localhost/wsecho:wsecho:sys/dyn/abc%20d".into(),
        bound_path: "/wsecho:wsecho:sys/dyn/:id".into(),
        headers: map(&headers),
        url_params: map(&[("id", "abc%20d")]),
        query_params: map(&[("a", "3"), ("b", "two words")]),
        repeated: ["a", "x-multi"].map(str::to_owned).into(),
    };
    assert_eq!((dynamic.owner, dynamic.process.as_str(), dynamic.request), (OwnerId(7), APP, expected));
    let old = "GET /wsecho:wsecho:sys/dyn HTTP/1.0\r\n\r\n";
    let (head, _) = Head::parse(old.as_bytes(), &HttpLimits::default()).unwrap().unwrap();
    let Entry::Dynamic(dynamic) = enter(&snapshot, &head, LOOPBACK.parse::<SocketAddr>().unwrap(), NOW) else {
        panic!()
    };
    assert_eq!(dynamic.request.url, "http://localhost/wsecho:wsecho:sys/dyn");
}

#[test]
fn who_is_let_in_without_a_login_is_not_logged_in() {
    let is_logged_in = |public_mode: bool, path: &str, cookie: &str| {
        let snapshot = snapshot(Settings { public_mode, ..settings(SubdomainTokens::Shared) });
        let head = format!("POST /{APP}{path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n{cookie}\r\n");
        let (head, _) = Head::parse(head.as_bytes(), &HttpLimits::default()).unwrap().unwrap();
        match enter(&snapshot, &head, ELSEWHERE.parse::<SocketAddr>().unwrap(), NOW) {
            Entry::Dynamic(dynamic) => Some(dynamic.is_logged_in),
            _ => None,
        }
    };
    for public_mode in [false, true] {
        assert_eq!(is_logged_in(public_mode, "/dyn", ""), Some(false));
        assert_eq!(is_logged_in(public_mode, "/dyn", &node_cookie()), Some(true));
        assert_eq!(is_logged_in(public_mode, "/authdyn", &node_cookie()), Some(true));
    }
    assert_eq!(is_logged_in(false, "/authdyn", ""), None, "the login page");
    assert_eq!(is_logged_in(true, "/authdyn", ""), Some(false));
}

#[test]
fn what_a_client_comes_back_with_is_not_a_process_to_see() {
    let offer = "Sec-WebSocket-Protocol: pushring.1, resume.7.secret.1 ,bearer.secret,chat\r\n";
    let text = format!("GET /{APP}/dyn HTTP/1.1\r\nHost: localhost\r\n{offer}\r\n");
    let (head, _) = Head::parse(text.as_bytes(), &HttpLimits::default()).unwrap().unwrap();
    let snapshot = hyperdrive();
    let Entry::Dynamic(dynamic) = enter(&snapshot, &head, LOOPBACK.parse::<SocketAddr>().unwrap(), NOW) else {
        panic!("it is bound")
    };
    assert_eq!(dynamic.request.headers["sec-websocket-protocol"], "pushring.1, chat");
}
