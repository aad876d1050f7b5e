//! Reverse proxies: the origin of a request, as far as it can be known.

use crate::http::{Head, head::list};
use serde::{Deserialize, Serialize};
use std::{
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

/// A range of addresses, `10.0.0.0/8` or a single address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct IpPrefix {
    address: IpAddr,
    bits: u8,
}

/// Text that is no [`IpPrefix`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an address range is `address` or `address/bits`, with at most 32 or 128 bits")]
pub struct ParseIpPrefixError;

impl FromStr for IpPrefix {
    type Err = ParseIpPrefixError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits.parse::<u8>().map_err(|_| ParseIpPrefixError)?)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| ParseIpPrefixError)?;
        let bits_max = if address.is_ipv4() { 32 } else { 128 };
        match bits.unwrap_or(bits_max) {
            bits if bits <= bits_max => Ok(Self { address, bits }),
            _ => Err(ParseIpPrefixError),
        }
    }
}

impl TryFrom<String> for IpPrefix {
    type Error = ParseIpPrefixError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<IpPrefix> for String {
    fn from(prefix: IpPrefix) -> Self {
        format!("{}/{}", prefix.address, prefix.bits)
    }
}

impl IpPrefix {
    /// Returns whether every address of its family lies in it.
    pub fn is_everybody(&self) -> bool {
        self.bits == 0
    }

    /// Returns whether `ip` lies in the range. An IPv4 address in IPv6 clothes counts as IPv4.
    pub fn contains(&self, ip: IpAddr) -> bool {
        let wide = |ip: IpAddr| -> (u32, u128) {
            match ip.to_canonical() {
                IpAddr::V4(ip) => (96, ip.to_ipv6_mapped().to_bits()),
                IpAddr::V6(ip) => (0, ip.to_bits()),
            }
        };
        let ((family, ours), (other_family, theirs)) = (wide(self.address), wide(ip));
        let shared = if self.address.is_ipv4() { 96 } else { 0 } + u32::from(self.bits);
        family == other_family && (shared == 0 || (ours ^ theirs) >> (128 - shared) == 0)
    }
}

/// The sender of a request, as seen from the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestSource {
    /// The other end of the connection; of one that a balancer relays, as the balancer says (PROXY protocol).
    pub address: SocketAddr,
    /// Whether a balancer relays it. Then it is not from this machine, wherever the balancer is and whatever it says.
    pub is_relayed: bool,
}

impl RequestSource {
    /// Returns whether it is on this machine, as far as the connection tells.
    pub(super) fn is_on_this_machine(&self) -> bool {
        !self.is_relayed && self.address.ip().to_canonical().is_loopback()
    }
}

impl From<SocketAddr> for RequestSource {
    /// One that has connected to us itself.
    fn from(address: SocketAddr) -> Self {
        Self { address, is_relayed: false }
    }
}

/// The address to count a client under: the peer's, or, where the peer is a trusted proxy, the last entry of
/// `X-Forwarded-For` that no trusted proxy wrote. Entries further left are the client's own claims.
pub fn client_ip(peer: SocketAddr, head: &Head<'_>, trusted: &[IpPrefix]) -> IpAddr {
    let is_trusted = |ip: IpAddr| trusted.iter().any(|prefix| prefix.contains(ip));
    let mut client = peer.ip().to_canonical();
    if trusted.is_empty() || !is_trusted(client) {
        return client;
    }
    let fields: Vec<&[u8]> = head.values("x-forwarded-for").collect();
    for entry in fields.iter().rev().flat_map(|field| field.rsplit(|&c| c == b',')) {
        let Some(ip) = std::str::from_utf8(entry).ok().and_then(|text| parse_forwarded(text.trim())) else { break };
        client = ip;
        if !is_trusted(ip) {
            break;
        }
    }
    client
}

/// An address, with or without brackets and port, as proxies write them.
fn parse_forwarded(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let ip = bare.parse().ok().or_else(|| text.parse::<SocketAddr>().ok().map(|address| address.ip()));
    ip.map(|ip: IpAddr| ip.to_canonical())
}

/// The client's address as told to processes behind a proxy: the first `X-Forwarded-For` entry, else `X-Real-IP`, else
/// `Cf-Connecting-Ip` (node contract, section 2). The client's claim, not checked.
pub(super) fn forwarded_for(head: &Head<'_>) -> Option<String> {
    let first =
        |name| head.text(name).and_then(|text| text.split(',').map(str::trim).next()).filter(|ip| !ip.is_empty());
    let claimed = first("x-forwarded-for").or_else(|| first("x-real-ip")).or_else(|| first("cf-connecting-ip"));
    claimed.map(str::to_owned)
}

/// Returns whether a proxy says that it stands between the client and us (node contract, section 6).
pub(super) fn is_behind_proxy(head: &Head<'_>) -> bool {
    ["x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-real-ip", "forwarded", "cf-connecting-ip"]
        .iter()
        .any(|name| head.has(name))
}

/// Returns whether the client used TLS to reach this server, or the first of the proxies: over a TLS connection, and
/// wherever the operator says so (`behind_tls`), always; otherwise the first entry of `X-Forwarded-Proto`, that of the
/// proxy nearest to the client, decides. A client that lies harms only itself: the answer decides on its own redirect
/// and cookie.
pub(super) fn is_https(head: &Head<'_>, behind_tls: bool) -> bool {
    let mut entries = head.values("x-forwarded-proto").flat_map(list);
    let is_tls = |scheme: &[u8]| [b"https".as_slice(), b"wss"].iter().any(|tls| scheme.eq_ignore_ascii_case(tls));
    behind_tls || head.over_tls || entries.next().is_some_and(is_tls)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::HttpLimits;

    fn with_head<T>(headers: &str, then: impl FnOnce(&Head<'_>) -> T) -> T {
        let text = format!("GET / HTTP/1.1\r\nHost: h\r\n{headers}\r\n");
        then(&Head::parse(text.as_bytes(), &HttpLimits::default()).unwrap().unwrap().0)
    }

    #[test]
    fn prefixes() {
        let contains = |prefix: &str, ip: &str| prefix.parse::<IpPrefix>().unwrap().contains(ip.parse().unwrap());
        assert!(contains("10.0.0.0/8", "10.255.0.1") && !contains("10.0.0.0/8", "11.0.0.0"));
        assert!(contains("10.0.0.0/8", "::ffff:10.1.1.1"));
        assert!(contains("1.2.3.4", "1.2.3.4") && !contains("1.2.3.4", "1.2.3.5"));
        assert!(contains("0.0.0.0/0", "9.9.9.9") && !contains("0.0.0.0/0", "2001:db8::1"));
        assert!(contains("::/0", "2001:db8::1") && contains("2001:db8::/32", "2001:db8:1::"));
        assert!(!contains("2001:db8::/32", "2001:db9::"));
        for bad in ["", "10.0.0.0/33", "::/129", "x/8", "10.0.0.0/", "10.0.0.0/-1"] {
            assert_eq!(bad.parse::<IpPrefix>(), Err(ParseIpPrefixError), "{bad}");
        }
    }

    #[test]
    fn a_client_is_who_the_last_trusted_proxy_saw() {
        let trusted = ["127.0.0.0/8".parse().unwrap(), "10.0.0.0/8".parse().unwrap()];
        let ip = |peer: &str, headers: &str| {
            with_head(headers, |head| client_ip(peer.parse().unwrap(), head, &trusted).to_string())
        };
        assert_eq!(ip("127.0.0.1:9", ""), "127.0.0.1");
        assert_eq!(ip("127.0.0.1:9", "X-Forwarded-For: 6.6.6.6, 203.0.113.7\r\n"), "203.0.113.7");
        assert_eq!(ip("127.0.0.1:9", "X-Forwarded-For: 6.6.6.6, 203.0.113.7, 10.1.1.1\r\n"), "203.0.113.7");
        assert_eq!(ip("127.0.0.1:9", "X-Forwarded-For: 203.0.113.7\r\nX-Forwarded-For: 10.1.1.1\r\n"), "203.0.113.7");
        assert_eq!(ip("127.0.0.1:9", "X-Forwarded-For: [2001:db8::1]:80\r\n"), "2001:db8::1");
        assert_eq!(ip("127.0.0.1:9", "X-Forwarded-For: unknown\r\n"), "127.0.0.1");
        assert_eq!(ip("8.8.8.8:9", "X-Forwarded-For: 203.0.113.7\r\n"), "8.8.8.8", "not a proxy of ours");
        assert_eq!(ip("[::ffff:8.8.8.8]:9", ""), "8.8.8.8");
    }

    #[test]
    fn what_processes_are_told() {
        let told = |headers: &str| with_head(headers, forwarded_for);
        let all = "Cf-Connecting-Ip: 3\r\nX-Real-IP: 2\r\nX-Forwarded-For: 203.0.113.7, 10.0.0.1\r\n";
        assert_eq!(told(all).as_deref(), Some("203.0.113.7"));
        assert_eq!(told("Cf-Connecting-Ip: 3\r\nX-Real-IP: 2\r\n").as_deref(), Some("2"));
        assert_eq!(told("Cf-Connecting-Ip: 3\r\n").as_deref(), Some("3"));
        assert_eq!(told("X-Forwarded-For: , 9\r\nX-Real-IP: 2\r\n").as_deref(), Some("2"), "an empty claim is none");
        assert_eq!(told(""), None);
        for name in ["X-Forwarded-For", "x-forwarded-proto", "X-Forwarded-Host", "X-Real-Ip", "Forwarded"] {
            assert!(with_head(&format!("{name}: x\r\n"), is_behind_proxy), "{name}");
        }
        assert!(!with_head("", is_behind_proxy));
    }

    #[test]
    fn schemes() {
        let is_https = |fields: &str, tls| with_head(fields, |head| super::is_https(head, tls));
        for fields in ["HTTPS", "https,http", "https, https", " https , http", "wss", "WSS,ws", ",https"] {
            assert!(is_https(&format!("X-Forwarded-Proto: {fields}\r\n"), false), "{fields}");
        }
        assert!(is_https("X-Forwarded-Proto: https\r\nX-Forwarded-Proto: http\r\n", false));
        for fields in ["http", "http,https", "ws", "", ",", "httpsx", "\"https\""] {
            let field = format!("X-Forwarded-Proto: {fields}\r\n");
            assert!(!is_https(&field, false), "{fields}");
            assert!(is_https(&field, true), "{fields}: the operator knows better");
        }
        assert!(is_https("", true) && !is_https("", false));
    }
}
