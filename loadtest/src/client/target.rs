//! Where the clients connect to, and as what.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs};

use anyhow::{Context, bail};

/// The first message of a registered channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registration {
    /// The token (a secret: never printed).
    pub token: String,
    /// The process that owns the channel.
    pub process: String,
}

impl Registration {
    /// The message as Text.
    pub fn message(&self) -> String {
        serde_json::json!({"auth_token": self.token, "target_process": self.process, "encrypted": false}).to_string()
    }
}

/// A WebSocket endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Where to connect.
    pub address: SocketAddr,
    /// The `Host` header.
    pub host: String,
    /// The path of the upgrade request.
    pub path: String,
    /// Set for registered channels.
    pub registration: Option<Registration>,
    /// Over how many addresses 127.0.0.1, 127.0.0.2, … the clients are spread (loopback servers only).
    pub sources: u8,
}

impl Target {
    /// Parses `ws://HOST:PORT[/PATH]` (or `http://`); a missing path becomes `default_path`.
    pub fn parse(url: &str, default_path: &str) -> anyhow::Result<Self> {
        let rest = url
            .strip_prefix("ws://")
            .or_else(|| url.strip_prefix("http://"))
            .with_context(|| format!("`{url}` is no ws:// URL (TLS is not spoken)"))?;
        let (host, path) = match rest.split_once('/') {
            Some((host, "")) => (host, default_path.to_owned()),
            Some((host, path)) => (host, format!("/{path}")),
            None => (rest, default_path.to_owned()),
        };
        let with_port = if host.rsplit(']').next().is_some_and(|tail| tail.contains(':')) {
            host.to_owned()
        } else {
            format!("{host}:80")
        };
        let Some(address) = with_port.to_socket_addrs().with_context(|| format!("looking up `{host}`"))?.next() else {
            bail!("`{host}` has no address")
        };
        Ok(Self { address, host: host.to_owned(), path, registration: None, sources: 1 })
    }

    /// The address client number `client` connects from, if it matters.
    pub fn source(&self, client: usize) -> Option<SocketAddr> {
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
        let target = Target::parse("ws://127.0.0.1:8080", "/relay:pushring:sys/").unwrap();
        assert_eq!(target.address, "127.0.0.1:8080".parse().unwrap());
        assert_eq!((target.host.as_str(), target.path.as_str()), ("127.0.0.1:8080", "/relay:pushring:sys/"));
        assert_eq!(Target::parse("http://127.0.0.1:80/", "/d").unwrap().path, "/d");
        assert_eq!(Target::parse("ws://127.0.0.1/a/b?c", "/d").unwrap().path, "/a/b?c");
        assert_eq!(Target::parse("ws://127.0.0.1", "/").unwrap().address.port(), 80);
        assert!(Target::parse("wss://127.0.0.1/", "/").is_err());
    }

    #[test]
    fn sources_are_spread_only_on_loopback() {
        let mut target = Target::parse("ws://127.0.0.1:1", "/").unwrap();
        assert_eq!(target.source(5), None);
        target.sources = 4;
        assert_eq!(target.source(5), Some("127.0.0.2:0".parse().unwrap()));
        target.address = "192.0.2.1:80".parse().unwrap();
        assert_eq!(target.source(5), None);
    }
}
