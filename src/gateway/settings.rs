//! The rules of entry that an operator chooses, with their defaults.

use super::{HubAccess, IpPrefix, Secret, TokenError};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use std::sync::Arc;

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
    /// As the listener asks for: [`Self::Listed`] with these names, but [`Self::Any`] where there are none and the
    /// address is not loopback.
    ByListener(Vec<String>),
    /// Any: for listeners on public addresses.
    Any,
    /// The names listed, IP literals, `localhost` and names below it. `.example.com` stands for every name below
    /// `example.com`. No foreign page can have an address or `localhost` for its name, and it is by these that probes,
    /// metrics and the machine itself ask.
    Listed(Vec<String>),
}

impl HostPolicy {
    /// What it comes to for a listener on `address`.
    #[must_use]
    pub fn for_listener(self, address: IpAddr) -> Self {
        match self {
            Self::ByListener(names) if names.is_empty() && !address.to_canonical().is_loopback() => Self::Any,
            Self::ByListener(names) => Self::Listed(names),
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
    /// The name of the login cookie; `None` is as the node system has it.
    pub cookie: Option<String>,
    /// Whether clients may open `/`, where nothing is bound, and say in their first message which process they want to
    /// talk to, as clients of nodes do. Else it is a path like any other.
    pub registration: bool,
    /// The key of the tokens. Without it, whatever needs a token is refused.
    pub secret: Option<Secret>,
    /// A key by which tokens are accepted too: the one before, or the next, while keys are changed. Default: none.
    pub second_secret: Option<Secret>,
    /// For which hosts requests are answered. Default: [`HostPolicy::ByListener`] without names.
    pub hosts: HostPolicy,
    /// Whether `Origin` is checked where a cookie, or being local, authenticates. Default: yes.
    pub check_origin: bool,
    /// Origins that may use our cookies besides the host itself, such as `https://app.example.com`. Default: none.
    pub origins: Vec<String>,
    /// Origins of pages under development, such as `http://localhost:3000`: what their development server passes on,
    /// from this machine to an address or to `localhost`, counts as sent by a page of ours. Any page on that port can
    /// use the owner's session then. Never a name below `localhost`, nor a secure subdomain. Default: none.
    pub dev_origins: Vec<String>,
    /// Proxies whose `X-Forwarded-For` is believed when clients are counted. Default: none.
    pub trusted_proxies: Vec<IpPrefix>,
    /// Balancers that put a PROXY header, of version 1 or 2, before the bytes of each client: from these it is
    /// required, from others it is not read, and it tells the client's address. Default: none.
    pub proxy_protocol_from: Vec<IpPrefix>,
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
    /// is a page of another site, whatever `X-Forwarded-Proto` says. Default: no; then requests whose
    /// `X-Forwarded-Proto` begins with `https` count as such for cookies and redirects.
    pub behind_tls: bool,
    /// Where requests that come without TLS are sent: to this port of the host that they name. Default: nowhere, they
    /// are answered.
    pub redirect_to_tls: Option<u16>,
    /// Whether there is no login: authenticated paths are open to everybody, on every host, and so are registrations.
    /// What is for this machine alone stays so. Default: no; the `public-mode` of Hyperdrive.
    pub public_mode: bool,
    /// Whether this is a node of a simulation, which any password opens; its login page is told so. Default: no; the
    /// `simulation-mode` of both node systems.
    pub simulation_mode: bool,
    /// Seconds that a process has to answer an HTTP request, where the request does not say. Default: 15.
    pub response_timeout_s: u32,
    /// Who is let in to the hub. Default: nobody.
    pub hub: Option<Arc<HubAccess>>,
}

/// The longest time that a request may ask for, in seconds.
pub const RESPONSE_TIMEOUT_MAX_S: u32 = 600;

impl Default for Settings {
    /// For a broker that is in no node: clients open the paths that processes have bound, and nothing else; no path is
    /// open to clients for being on this machine. Where there is a secret, tokens are for the user `local` and travel
    /// in the cookie `pushring-auth`.
    fn default() -> Self {
        Self {
            cookie: Some("pushring-auth".to_owned()),
            registration: false,
            expose_local: false,
            ..Self::new("local", Dialect::default())
        }
    }
}

impl Settings {
    /// The defaults for a node of this name.
    pub fn new(node: impl Into<String>, dialect: Dialect) -> Self {
        Self {
            node: node.into(),
            dialect,
            cookie: None,
            registration: true,
            secret: None,
            second_secret: None,
            hosts: HostPolicy::ByListener(Vec::new()),
            check_origin: true,
            origins: Vec::new(),
            dev_origins: Vec::new(),
            trusted_proxies: Vec::new(),
            proxy_protocol_from: Vec::new(),
            expose_local: dialect == Dialect::Kinode,
            login: false,
            login_page: None,
            rpc: false,
            cookie_http_only: true,
            behind_tls: false,
            redirect_to_tls: None,
            public_mode: false,
            simulation_mode: false,
            response_timeout_s: 15,
            hub: None,
        }
    }

    /// Returns whether `ip` is a proxy whose `X-Forwarded-For` is believed.
    pub fn is_trusted_proxy(&self, ip: IpAddr) -> bool {
        self.trusted_proxies.iter().any(|prefix| prefix.contains(ip))
    }

    /// Returns whether connections from `ip` begin with a PROXY header.
    pub fn sends_proxy_header(&self, ip: IpAddr) -> bool {
        self.proxy_protocol_from.iter().any(|prefix| prefix.contains(ip))
    }

    /// Checks a token: that one of the keys signed it, for this node, and that it has not expired. `subdomain` says
    /// whether the process that the token is for, or none, is the right one.
    ///
    /// # Errors
    /// The first rule it breaks.
    pub fn verify(
        &self,
        token: &str,
        now_unix_s: u64,
        subdomain: impl Fn(Option<&str>) -> bool,
    ) -> Result<(), TokenError> {
        let secret = self.secret.as_ref().ok_or(TokenError::NoSecret)?;
        match (secret.verify(token, &self.node, now_unix_s, &subdomain), &self.second_secret) {
            (Err(TokenError::Signature), Some(second)) => second.verify(token, &self.node, now_unix_s, subdomain),
            (verified, _) => verified,
        }
    }

    /// The name of the login cookie.
    pub fn cookie_name(&self) -> String {
        self.cookie.clone().unwrap_or_else(|| format!("{}{}", self.dialect.cookie_prefix(), self.node))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::{Claims, mint};

    #[test]
    fn while_keys_are_changed_tokens_of_both_are_accepted() {
        let keys = ["one", "two", "three"].map(|key| Secret::new(key.as_bytes()).unwrap());
        let claims = Claims { username: "n".to_owned(), subdomain: None, expiration: 2 };
        let tokens = keys.each_ref().map(|key| mint(key, &claims));
        let mut settings = Settings::new("n", Dialect::Kinode);
        let verify = |settings: &Settings, now_unix_s| {
            tokens.each_ref().map(|token| settings.verify(token, now_unix_s, |subdomain| subdomain.is_none()))
        };
        assert_eq!(verify(&settings, 1), [Err(TokenError::NoSecret); 3]);
        settings.secret = Some(keys[0].clone());
        assert_eq!(verify(&settings, 1), [Ok(()), Err(TokenError::Signature), Err(TokenError::Signature)]);
        settings.second_secret = Some(keys[1].clone());
        assert_eq!(verify(&settings, 1), [Ok(()), Ok(()), Err(TokenError::Signature)]);
        assert_eq!(
            verify(&settings, 2),
            [Err(TokenError::Expired), Err(TokenError::Expired), Err(TokenError::Signature)]
        );
    }
}
