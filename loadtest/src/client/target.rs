//! Where the clients connect to, and as what.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs};

use anyhow::{Context, bail};

use super::handshake;
use super::tls::{Tls, TlsOptions};

/// The first message of a registered channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Registration {
    /// The token (a secret: never printed).
    pub token: String,
    /// The process that owns the channel.
    pub process: String,
}

impl Registration {
    /// The message as Text.
    pub(crate) fn message(&self) -> String {
        serde_json::json!({"auth_token": self.token, "target_process": self.process, "encrypted": false}).to_string()
    }
}

/// A WebSocket endpoint.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    /// Where to connect.
    pub address: SocketAddr,
    /// The `Host` header.
    pub host: String,
    /// The path of the upgrade request.
    pub path: String,
    /// Set for `wss://`.
    pub tls: Option<Tls>,
    /// The subprotocols that the clients offer.
    pub protocols: Option<&'static str>,
    /// Set for registered channels.
    pub registration: Option<Registration>,
    /// Over how many addresses 127.0.0.1, 127.0.0.2, … the clients are spread (loopback servers only).
    pub sources: u8,
}

impl Target {
    /// Parses `ws://HOST:PORT[/PATH]` or `wss://` (or `http://`, `https://`); a missing path becomes `default_path`.
    pub(crate) fn parse(url: &str, default_path: &str, tls_options: &TlsOptions) -> anyhow::Result<Self> {
        let (scheme, rest) = url.split_once("://").unwrap_or_default();
        let (port, is_tls) = match scheme {
            "ws" | "http" => (80, false),
            "wss" | "https" => (443, true),
            _ => bail!("`{url}` is no ws:// or wss:// URL"),
        };
        let (host, path) = match rest.split_once('/') {
            Some((host, "")) => (host, default_path.to_owned()),
            Some((host, path)) => (host, format!("/{path}")),
            None => (rest, default_path.to_owned()),
        };
        let with_port = if host.rsplit(']').next().is_some_and(|tail| tail.contains(':')) {
            host.to_owned()
        } else {
            format!("{host}:{port}")
        };
        let Some(address) = with_port.to_socket_addrs().with_context(|| format!("looking up `{host}`"))?.next() else {
            bail!("`{host}` has no address")
        };
        let name = with_port.rsplit_once(':').map_or(host, |(name, _)| name);
        let tls = is_tls.then(|| Tls::new(name, tls_options)).transpose()?;
        Ok(Self { address, host: host.to_owned(), path, tls, protocols: None, registration: None, sources: 1 })
    }

    /// The upgrade request for its path, followed by `tail`.
    pub(super) fn request(&self, tail: &str) -> Vec<u8> {
        let path = format!("{}{tail}", self.path);
        match self.protocols {
            None => handshake::request(&self.host, &path),
            Some(protocols) => handshake::request_offering(&self.host, &path, protocols),
        }
    }

    /// The address client number `client` connects from, if it matters.
    pub(crate) fn source(&self, client: usize) -> Option<SocketAddr> {
        let loopback = matches!(self.address.ip(), IpAddr::V4(ip) if ip.is_loopback());
        if !loopback || self.sources <= 1 {
            return None;
        }
        let last = (client % usize::from(self.sources)) as u8 + 1;
        Some(SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, 0, 0, last)), 0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_taken_apart() {
        let parse = |url: &str, default_path: &str| Target::parse(url, default_path, &TlsOptions::default());
        let target = parse("ws://127.0.0.1:8080", "/relay:pushring:sys/").unwrap();
        assert_eq!(target.address, "127.0.0.1:8080".parse().unwrap());
        assert_eq!((target.host.as_str(), target.path.as_str()), ("127.0.0.1:8080", "/relay:pushring:sys/"));
        assert_eq!(parse("http://127.0.0.1:80/", "/d").unwrap().path, "/d");
        assert_eq!(parse("ws://127.0.0.1/a/b?c", "/d").unwrap().path, "/a/b?c");
        assert_eq!(parse("ws://127.0.0.1", "/").unwrap().address.port(), 80);
        let target = parse("wss://[::1]/", "/").unwrap();
        assert!(target.tls.is_some() && target.address == "[::1]:443".parse().unwrap());
        assert!(parse("ftp://127.0.0.1/", "/").is_err() && parse("127.0.0.1", "/").is_err());
    }

    #[test]
    fn what_is_offered_stands_in_the_request() {
        let mut target = Target::parse("ws://127.0.0.1:1/a", "/", &TlsOptions::default()).unwrap();
        let request = |target: &Target| String::from_utf8(target.request("/b")).unwrap();
        assert!(request(&target).starts_with("GET /a/b ") && !request(&target).contains("Protocol"));
        target.protocols = Some("pushring.1");
        assert!(request(&target).contains("\r\nSec-WebSocket-Protocol: pushring.1\r\n"));
    }

    #[test]
    fn sources_are_spread_only_on_loopback() {
        let mut target = Target::parse("ws://127.0.0.1:1", "/", &TlsOptions::default()).unwrap();
        assert_eq!(target.source(5), None);
        target.sources = 4;
        assert_eq!(target.source(5), Some("127.0.0.2:0".parse().unwrap()));
        target.address = "192.0.2.1:80".parse().unwrap();
        assert_eq!(target.source(5), None);
    }
}
