//! The rules of entry that an operator chooses, with their defaults.

use super::{IpPrefix, Secret};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// Which of the two node systems is spoken. They are the same system, renamed (node contract, section 1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dialect {
    /// Kinode 1.0.
    #[default]
    Kinode,
    /// Hyperdrive 1.9.
    Hyperdrive,
}

impl Dialect {
    /// What the name of a login cookie starts with; the node's name follows (node contract, section 5).
    pub fn cookie_prefix(self) -> &'static str {
        match self {
            Self::Kinode => "kinode-auth_",
            Self::Hyperdrive => "hyperware-auth_",
        }
    }

    /// The request header that overrides the time a process has to answer, where there is one.
    pub fn timeout_header(self) -> Option<&'static str> {
        match self {
            Self::Kinode => None,
            Self::Hyperdrive => Some("x-hyperware-http-server-timeout"),
        }
    }
}

/// For which hosts requests are answered. A page of another site can make its name resolve to our address (DNS
/// rebinding), but it cannot change the Host field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostPolicy {
    /// As the listener asks for: [`Self::LoopbackAnd`] these names on a loopback address; elsewhere [`Self::Only`]
    /// these names, or [`Self::Any`] where there are none.
    ByListener(Vec<String>),
    /// Any: for listeners on public addresses.
    Any,
    /// IP literals, `localhost`, names below it, and the names listed.
    LoopbackAnd(Vec<String>),
    /// Only the names listed. `.example.com` stands for every name below `example.com`.
    Only(Vec<String>),
}

impl HostPolicy {
    /// What it comes to for a listener on `address`.
    #[must_use]
    pub fn for_listener(self, address: IpAddr) -> Self {
        match self {
            Self::ByListener(names) if address.to_canonical().is_loopback() => Self::LoopbackAnd(names),
            Self::ByListener(names) if names.is_empty() => Self::Any,
            Self::ByListener(names) => Self::Only(names),
            chosen => chosen,
        }
    }
}

/// The rules of entry.
#[derive(Debug, Clone)]
pub struct Settings {
    /// This node's name, such as `alice.os`: the `username` of its tokens.
    pub node: String,
    /// Which node system is spoken.
    pub dialect: Dialect,
    /// The key of the tokens. Without it, whatever needs a token is refused.
    pub secret: Option<Secret>,
    /// For which hosts requests are answered. Default: [`HostPolicy::ByListener`] without names.
    pub hosts: HostPolicy,
    /// Whether `Origin` is checked where a cookie, or being local, authenticates. Default: yes.
    pub check_origin: bool,
    /// Origins that may use our cookies besides the host itself, such as `https://app.example.com`. Default: none.
    pub origins: Vec<String>,
    /// Proxies whose `X-Forwarded-For` is believed when clients are counted. Default: none.
    pub trusted_proxies: Vec<IpPrefix>,
    /// Whether `local_only` paths, extensions and the RPC path are open to loopback clients. Default: as the node
    /// systems have it, yes for Kinode, no for Hyperdrive.
    pub expose_local: bool,
    /// Whether somebody checks passwords: serves `/login`, and the login page where a token is missing. Default: no.
    pub login: bool,
    /// The page that `/login` serves, UTF-8 HTML in which `${node}` is replaced; `None` is our own. A login page must
    /// POST `{"password_hash":"0x…","subdomain":""}` to `/login`.
    pub login_page: Option<Bytes>,
    /// Whether somebody answers `POST /rpc:distro:sys/message`. Default: no.
    pub rpc: bool,
    /// Whether scripts are kept from reading the login cookie. Default: yes. `@kinode/client-api` needs to read it for
    /// registered channels.
    pub cookie_http_only: bool,
    /// Whether clients reach us over TLS, so that the cookie must not travel without it, and a page loaded without it
    /// is a page of another site. Default: no; for cookies, requests with `X-Forwarded-Proto: https` count as such in
    /// any case.
    pub tls: bool,
    /// Seconds that a process has to answer an HTTP request, where the request does not say. Default: 15.
    pub response_timeout_s: u32,
}

/// The longest time that a request may ask for, in seconds.
pub const RESPONSE_TIMEOUT_MAX_S: u32 = 600;

impl Settings {
    /// The defaults for `node`.
    pub fn new(node: impl Into<String>, dialect: Dialect) -> Self {
        Self {
            node: node.into(),
            dialect,
            secret: None,
            hosts: HostPolicy::ByListener(Vec::new()),
            check_origin: true,
            origins: Vec::new(),
            trusted_proxies: Vec::new(),
            expose_local: dialect == Dialect::Kinode,
            login: false,
            login_page: None,
            rpc: false,
            cookie_http_only: true,
            tls: false,
            response_timeout_s: 15,
        }
    }

    /// Whether `ip` is a proxy whose `X-Forwarded-For` is believed.
    pub fn is_trusted_proxy(&self, ip: IpAddr) -> bool {
        self.trusted_proxies.iter().any(|prefix| prefix.contains(ip))
    }

    /// The name of the login cookie.
    pub fn cookie_name(&self) -> String {
        format!("{}{}", self.dialect.cookie_prefix(), self.node)
    }
}
