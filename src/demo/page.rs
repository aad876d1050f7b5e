//! The demo's page: `homepage:homepage:sys`, whose paths are the node's own, serves it at `/`.
//!
//! The page uses the demo processes like any other page: over channels that it opens on bound paths, and over one for
//! which it registers with the node's token. The token comes as the login cookie, without a login, and only to browsers
//! on this machine with no proxy in between. A program that listens elsewhere must pass no [`DemoLogin`].
//!
//! A request to `/` by a method other than GET is echoed, for tools that test HTTP servers.

use crate::broker::ServiceError;
use crate::broker::{AttachOptions, BrokerHandle, Event, HttpAsk, HttpRequest, Process, PushError};
use crate::gateway::{Claims, ContractRequest, HttpRule, Secret, mint};
use crate::http::Content;
use bytes::Bytes;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::SystemTime;

const HTML: &str = include_str!("page/page.html");
const JAVASCRIPT: &str = "text/javascript; charset=utf-8";

/// The files that the page loads. The client library is the published one.
const FILES: &[(&str, &str, &str)] = &[
    ("/demo/page.js", JAVASCRIPT, include_str!("page/page.js")),
    ("/demo/channels.js", JAVASCRIPT, include_str!("page/channels.js")),
    ("/demo/stage.js", JAVASCRIPT, include_str!("page/stage.js")),
    ("/demo/tokens.js", JAVASCRIPT, include_str!("page/tokens.js")),
    ("/demo/room.js", JAVASCRIPT, include_str!("page/room.js")),
    ("/demo/rates.js", JAVASCRIPT, include_str!("page/rates.js")),
    ("/demo/client.js", JAVASCRIPT, include_str!("../../clients/js/index.js")),
    ("/demo/tokens.txt", "text/plain; charset=utf-8", super::tokens::TEXT),
    ("/demo/page.css", "text/css; charset=utf-8", include_str!("page/page.css")),
    ("/favicon.svg", "image/svg+xml", include_str!("page/icon.svg")),
];

/// Nothing from elsewhere, and no script but ours. `ws:` is written out because not all browsers count it as `'self'`.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
     connect-src 'self' ws: wss:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// How long the page's token holds, in seconds. Each load of the page makes a new one.
const TOKEN_TTL_S: u64 = 24 * 60 * 60;

/// The user as whom the page's visitors are logged in.
pub struct DemoLogin {
    /// The node, the tokens' user.
    pub node: String,
    /// The name of its login cookie.
    pub cookie_name: String,
    /// The key of its tokens.
    pub secret: Secret,
}

impl DemoLogin {
    /// `SameSite` keeps other sites' pages from using it. It is not `HttpOnly`: the page's script sends the token in a
    /// message to register for a channel.
    fn set_cookie(&self) -> String {
        // Before 1970 every token has expired, and this one is refused as such.
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let claims = Claims { username: self.node.clone(), subdomain: None, expiration: now.as_secs() + TOKEN_TTL_S };
        format!("{}={}; Path=/; SameSite=Lax", self.cookie_name, mint(&self.secret, &claims))
    }
}

/// The settings of the page.
pub struct PageOptions {
    /// How many shards there are, which is only shown.
    pub shards: usize,
    /// How long a channel waits for its client, likewise, in milliseconds.
    pub window_ms: u64,
    /// The user as whom its visitors are logged in, if they are.
    pub login: Option<DemoLogin>,
}

/// Starts the process.
///
/// # Errors
/// See [`ServiceError`].
pub fn start(broker: &BrokerHandle, options: PageOptions) -> Result<JoinHandle<()>, ServiceError> {
    let PageOptions { shards, window_ms, login } = options;
    let process = broker.process("homepage:homepage:sys", AttachOptions::default())?;
    for &(path, mime, text) in FILES {
        let content = Content::new(Some(mime), Bytes::from_static(text.as_bytes()));
        process.bind_http(path, HttpRule { content: Some(Arc::new(content)), ..HttpRule::default() })?;
    }
    process.bind_http("/", HttpRule::default())?;
    let cookie_name = login.as_ref().map_or("", |login| &login.cookie_name);
    let html = HTML.replace("{{cookie}}", &escape(cookie_name)).replace("{{shards}}", &shards.to_string());
    let page = Page { html: html.replace("{{window_ms}}", &window_ms.to_string()).into(), login };
    Ok(thread::Builder::new().name("page".to_owned()).spawn(move || {
        super::run(&process, |process, _, event| page.on_event(process, event));
    })?)
}

/// For an attribute in double quotes.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('"', "&quot;").replace('<', "&lt;")
}

struct Page {
    html: Bytes,
    login: Option<DemoLogin>,
}

impl Page {
    fn on_event(&self, process: &Process, event: Event) -> Result<(), PushError> {
        let Event::Http(request) = event else { return Ok(()) };
        let HttpRequest { id, ask: HttpAsk::Path(ask), body, .. } = *request else { return Ok(()) };
        if !matches!(&*ask.method, "GET" | "HEAD") {
            // Never as a page: the echoed bytes are the client's.
            let plain = [("content-type", "text/plain; charset=utf-8"), ("x-content-type-options", "nosniff")];
            return process.respond(id, 200).headers(headers(&plain)).body(body).send();
        }
        let mut headers = headers(&[
            ("content-type", "text/html; charset=utf-8"),
            ("content-security-policy", CONTENT_SECURITY_POLICY),
            ("x-content-type-options", "nosniff"),
            ("referrer-policy", "no-referrer"),
            // Each visitor's token is its own.
            ("cache-control", "no-store"),
        ]);
        if let Some(login) = self.login.as_ref().filter(|_| is_from_here(&ask)) {
            headers.push(("set-cookie".into(), login.set_cookie().into()));
        }
        process.respond(id, 200).headers(headers).body(self.html.clone()).send()
    }
}

fn headers(pairs: &[(&str, &str)]) -> Vec<(Box<str>, Box<str>)> {
    pairs.iter().map(|&(name, value)| (name.into(), value.into())).collect()
}

/// Returns whether the client is on this machine: the connection's other end is, and no proxy says that it speaks for
/// another.
fn is_from_here(request: &ContractRequest) -> bool {
    let proxied = ["x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-real-ip", "forwarded", "via"];
    request.source.ip().to_canonical().is_loopback() && !proxied.iter().any(|&name| request.headers.contains_key(name))
}
