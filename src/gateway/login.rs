//! Login: the page, the request that it posts, and the cookie it gets (node contract, sections 5 and 9.6). The node
//! checks the password, and may take its time; nothing here waits.
//!
//! The page sends a hash, never the password: `0x` and the 32 bytes, in hexadecimal, of Argon2id version 19 with 2
//! passes, 19,456 KiB, 1 lane, and as salt the node's name, repeated until it has 8 characters: the key with which
//! nodes encrypt their keyfiles. Keyfiles from before Kinode 0.10 have the SHA-256 of the password instead, which is
//! sent to a Kinode node second.

use super::proxy;
use super::settings::{Settings, SubdomainTokens};
use super::snapshot::Snapshot;
use crate::admission::HeapBytes;
use crate::{
    http::{Head, PreparedResponse, cookies::SetCookie, query},
    process_id::ProcessId,
};
use serde::Deserialize;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// A `POST /login`, without its body. It is all that the answer needs, so the request may be forgotten meanwhile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoginRequest {
    /// The host asked, without port; `None` where there is none, or it is an address.
    host_name: Option<String>,
    is_localhost: bool,
    https: bool,
    redirect: Option<String>,
    /// The client's address, as clients are counted.
    client: IpAddr,
}

impl HeapBytes for LoginRequest {
    fn heap_bytes(&self) -> usize {
        self.host_name.heap_bytes() + self.redirect.heap_bytes()
    }
}

/// The fields that a login page posts.
#[derive(Clone, PartialEq, Eq)]
pub struct LoginCredentials {
    /// `0x…`: see the module. A secret; not shown.
    pub password_hash: String,
    /// The process whose secure subdomain is logged in to, where there is one.
    pub process: Option<ProcessId>,
}

impl fmt::Debug for LoginCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoginCredentials").field("process", &self.process).finish_non_exhaustive()
    }
}

#[derive(Deserialize)]
struct LoginBody {
    password_hash: String,
    #[serde(default)]
    subdomain: Option<String>,
}

/// The largest body of a login, in bytes.
pub const LOGIN_BYTES_MAX: usize = 16 << 10;

impl LoginRequest {
    /// The client's address, as clients are counted.
    pub fn client(&self) -> IpAddr {
        self.client
    }

    /// Reads the request.
    ///
    /// # Errors
    /// 400 when `?redirect=` is not a path of this server: anything else would send the user elsewhere, logged in.
    pub(super) fn new(head: &Head<'_>, peer: SocketAddr, settings: &Settings) -> Result<Self, PreparedResponse> {
        let redirect = query::param(head.target.query, "redirect");
        if redirect.as_deref().is_some_and(|path| !is_local_path(path)) {
            return Err(json_text(400, "the redirect is not a path of this server"));
        }
        Ok(Self {
            client: proxy::client_ip(peer, head, &settings.trusted_proxies),
            host_name: head.authority.filter(|host| !host.is_ip()).map(|host| host.host.to_owned()),
            is_localhost: head.authority.is_none_or(|host| host.is_localhost()),
            https: proxy::is_https(head, settings.behind_tls),
            redirect: redirect.map(Into::into),
        })
    }

    /// Reads the body.
    ///
    /// # Errors
    /// The response to send: 400, or 413 when it is too large.
    #[doc(hidden)]
    pub fn credentials(&self, body: &[u8]) -> Result<LoginCredentials, PreparedResponse> {
        if body.len() > LOGIN_BYTES_MAX {
            return Err(json_text(413, "the login is too large"));
        }
        let posted: LoginBody =
            serde_json::from_slice(body).map_err(|_| json_text(400, "Failed to parse login info"))?;
        let process = match posted.subdomain.as_deref() {
            None | Some("") => None,
            Some(id) => Some(id.parse().map_err(|_| json_text(400, "the subdomain is not a process id"))?),
        };
        Ok(LoginCredentials { password_hash: posted.password_hash, process })
    }

    /// The `subdomain` claim of the token to make: the process on `localhost` hosts, whose subdomains share no cookie
    /// with the host above, and everywhere where each subdomain has a login; else none (node contract, section 5).
    #[doc(hidden)]
    pub fn claim<'c>(&self, settings: &Settings, credentials: &'c LoginCredentials) -> Option<&'c ProcessId> {
        credentials.process.as_ref().filter(|_| self.is_localhost || settings.subdomain_tokens == SubdomainTokens::Own)
    }

    /// The answer to a right password: 303 to the redirect, or 200 with `body`, a JSON string; and the cookie. Nodes
    /// send their encoded keyfile in base64 as that string.
    #[doc(hidden)]
    pub fn accepted(
        &self,
        settings: &Settings,
        credentials: &LoginCredentials,
        token: &str,
        body: &str,
    ) -> PreparedResponse {
        let mut name = settings.cookie.clone();
        if let Some(process) = &credentials.process {
            name.push('@');
            name.push_str(process.as_str());
        }
        let shared = settings.subdomain_tokens == SubdomainTokens::Shared && credentials.process.is_none();
        let cookie = SetCookie {
            name: &name,
            value: token,
            domain: self.host_name.as_deref().filter(|_| shared),
            http_only: settings.cookie_http_only,
            secure: self.https,
            max_age_s: None,
        };
        let Ok(cookie) = cookie.encode() else {
            return json_text(500, "Failed to generate Auth JWT: it is no cookie value");
        };
        let response = match &self.redirect {
            Some(path) => PreparedResponse::new(303).header("location", path.clone()),
            None => Ok(json_text(200, body)),
        };
        let response = response.and_then(|response| response.header("set-cookie", cookie));
        response.unwrap_or_else(|_| json_text(500, "the answer cannot be sent"))
    }

    /// The answer to a wrong password, 401 (500 in the original), with a reason for the page to show.
    #[doc(hidden)]
    pub fn refused(&self, reason: &str) -> PreparedResponse {
        json_text(401, reason).with("www-authenticate", "Cookie")
    }
}

/// A JSON string, as nodes answer logins.
fn json_text(status: u16, text: &str) -> PreparedResponse {
    let json = serde_json::to_vec(text).expect("a string is JSON");
    PreparedResponse::new(status)
        .with("content-type", "application/json")
        .with("cache-control", "no-store")
        .with_body(json.into())
}

/// Returns whether browsers take `path` for a path of this host: not for `//host/`, `/\host/`, or a URL with white
/// space that they would remove first.
fn is_local_path(path: &str) -> bool {
    let mut bytes = path.bytes();
    bytes.next() == Some(b'/')
        && !matches!(bytes.next(), Some(b'/' | b'\\'))
        && path.bytes().all(|c| c.is_ascii_graphic())
}

/// The page as a response. It is 200 also where it stands in for a page that needs a token, as in nodes, so it must
/// not be kept in place of that page. Only pages of the node frame it: a widget of the homepage may need a login, and a
/// stranger's frame around a login is a trap.
pub(super) fn page_response(snapshot: &Snapshot, head: &Head<'_>) -> PreparedResponse {
    let ancestors = frame_ancestors(snapshot, head);
    let policy = match snapshot.settings.login_page {
        // This page's own needs are not known here.
        Some(_) => ancestors,
        None => format!("{PAGE_POLICY}; {ancestors}"),
    };
    PreparedResponse::new(200)
        .with("content-type", "text/html; charset=utf-8")
        .with("cache-control", "no-store")
        .header("content-security-policy", policy)
        .expect("a host that was parsed is a plain word")
        .with_body(snapshot.login_page.clone())
}

/// Our page needs its own script and style, and to post to us.
const PAGE_POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; \
                           connect-src 'self'; base-uri 'none'; form-action 'none'";

/// The origins that may frame the page: its own, and on a secure subdomain that of the node, whose homepage frames
/// widgets. Host and port are as the browser sent them; the scheme is left out, so the page's own or a safer one
/// applies (CSP level 3, section 6.7.2.8).
fn frame_ancestors(snapshot: &Snapshot, head: &Head<'_>) -> String {
    let node = head.authority.filter(|host| !host.is_ip()).and_then(|host| {
        let (label, node) = host.text.split_once('.')?;
        snapshot.subdomains.contains_key(&*label.to_ascii_lowercase()).then_some(node)
    });
    match node {
        Some(node) => format!("frame-ancestors 'self' {node}"),
        None => "frame-ancestors 'self'".to_owned(),
    }
}

/// Whether the visitor is logged in, as the page asks it.
pub(super) fn state(is_logged_in: bool) -> PreparedResponse {
    let json = serde_json::json!({ "logged_in": is_logged_in });
    PreparedResponse::new(200)
        .with("content-type", "application/json")
        .with("cache-control", "no-store")
        .with_body(json.to_string().into())
}

#[cfg(test)]
#[path = "login_tests.rs"]
mod tests;
