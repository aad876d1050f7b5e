//! The unit in which clients are counted: an IPv4 address, or an IPv6 /64.
//!
//! A /64 is the least that a subscriber gets (RFC 6177), so counting single IPv6 addresses would count nothing.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU64;

/// An IPv4 address or the network half of an IPv6 address, in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix(NonZeroU64);

/// Multicast networks, which no client can have (RFC 4291 2.7): IPv4 addresses follow the first, and the second stands
/// for `::/64`.
const IPV4: u64 = 0xffff_ffff_0000_0000;
const ZERO: NonZeroU64 = NonZeroU64::new(0xffff_fffe_0000_0000).unwrap();

impl From<IpAddr> for Prefix {
    /// An IPv4 address in IPv6 clothes counts as IPv4.
    fn from(ip: IpAddr) -> Self {
        Self(match ip.to_canonical() {
            IpAddr::V4(ip) => NonZeroU64::new(IPV4 | u64::from(ip.to_bits())).unwrap_or(ZERO),
            IpAddr::V6(ip) => NonZeroU64::new((ip.to_bits() >> 64) as u64).unwrap_or(ZERO),
        })
    }
}

impl From<Prefix> for IpAddr {
    /// The IPv4 address, or the first address of the IPv6 network.
    fn from(prefix: Prefix) -> Self {
        match prefix.0.get() {
            bits if bits >= IPV4 => Ipv4Addr::from_bits(bits as u32).into(),
            bits if bits == ZERO.get() => Ipv6Addr::UNSPECIFIED.into(),
            bits => Ipv6Addr::from_bits(u128::from(bits) << 64).into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(ip: &str) -> Prefix {
        Prefix::from(ip.parse::<IpAddr>().unwrap())
    }

    #[test]
    fn one_ipv4_address_and_one_64_are_one_client_each() {
        assert_eq!(prefix("10.0.0.1"), prefix("::ffff:10.0.0.1"));
        assert_ne!(prefix("10.0.0.1"), prefix("10.0.0.2"));
        assert_eq!(prefix("2001:db8::1"), prefix("2001:db8:0:0:ffff::1"));
        assert_ne!(prefix("2001:db8::1"), prefix("2001:db8:0:1::1"));
        assert_eq!(prefix("::1"), prefix("::2"));
        assert_ne!(prefix("::1"), prefix("0.0.0.0"));
        assert_eq!(size_of::<Option<Prefix>>(), 8);
        for (ip, back) in
            [("10.0.0.1", "10.0.0.1"), ("0.0.0.0", "0.0.0.0"), ("2001:db8::1", "2001:db8::"), ("::1", "::")]
        {
            assert_eq!(IpAddr::from(prefix(ip)).to_string(), back);
        }
    }
}
