//! The PROXY protocol, versions 1 and 2: the header with which a balancer that passes bytes on describes a connection
//! (HAProxy's `doc/proxy-protocol.txt`; its sections are cited).
//!
//! Invariants: nothing is read beyond the header, and nothing of it is used before it is complete; a header has at most
//! [`HEADER_BYTES_MAX`] bytes, and an invalid one is an error at its first wrong byte; the work is linear in the bytes.
//! It must not know which peers may send a header: the caller checks that first, since the header is not authenticated.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

/// The longest line of version 1, its end included (section 2.1).
pub const LINE_BYTES_MAX: usize = 107;

/// The longest header. Version 2 could say 64 KiB; what proxies send is below an MSS, as section 2.2 wants it.
pub const HEADER_BYTES_MAX: usize = 4096;

/// The beginning of version 2.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// The beginning of version 1.
const PROXY: &[u8; 6] = b"PROXY ";

/// The signature, version and command, family and protocol, and the length of the rest.
const FIXED_BYTES: usize = 16;
/// Type and length of what stands behind the addresses.
const TLV_BYTES: usize = 3;
const TLV_CRC32C: u8 = 0x03;

/// A whole header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProxyHeader {
    /// How long it is.
    pub bytes: usize,
    /// Whose connection it is.
    pub source: ProxiedSource,
}

/// Whose connection it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxiedSource {
    /// The proxy's own: it looks whether we are well.
    Proxy,
    /// The proxy does not know the client's address, or does not say.
    Unknown,
    /// That of the client at this address.
    Client(SocketAddr),
}

/// Bytes that begin no valid header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProxyHeaderError {
    /// They are something else: the peer was not told to send headers.
    #[error("there is no PROXY header")]
    Absent,
    /// It is longer than it may be.
    #[error("the PROXY header is too long")]
    TooLong,
    /// It breaks the rules of its version.
    #[error("the PROXY header is malformed")]
    Malformed,
    /// Its checksum says that it was changed on its way.
    #[error("the checksum of the PROXY header is wrong")]
    Checksum,
}

impl ProxyHeader {
    /// The header at the start of `bytes`, of either version; `None` while it is not whole.
    ///
    /// # Errors
    /// There is none, or it is not valid: section 2 has the connection aborted.
    pub fn parse(bytes: &[u8]) -> Result<Option<Self>, ProxyHeaderError> {
        if begins_like(bytes, SIGNATURE) {
            parse_binary(bytes)
        } else if begins_like(bytes, PROXY) {
            parse_line(bytes)
        } else {
            Err(ProxyHeaderError::Absent)
        }
    }
}

/// Returns whether `bytes` begin with `start`, as far as they go.
fn begins_like(bytes: &[u8], start: &[u8]) -> bool {
    std::iter::zip(bytes, start).all(|(byte, expected)| byte == expected)
}

/// Version 1 (section 2.1): a line.
fn parse_line(bytes: &[u8]) -> Result<Option<ProxyHeader>, ProxyHeaderError> {
    let window = &bytes[..bytes.len().min(LINE_BYTES_MAX)];
    // "The receiver must wait for the CRLF sequence before starting to decode the addresses."
    let Some(end) = window.windows(2).position(|pair| pair == b"\r\n") else {
        return if window.len() < LINE_BYTES_MAX { Ok(None) } else { Err(ProxyHeaderError::TooLong) };
    };
    let line = std::str::from_utf8(&window[PROXY.len()..end]).map_err(|_| ProxyHeaderError::Malformed)?;
    let (protocol, rest) = line.split_once(' ').unwrap_or((line, ""));
    let source = match protocol {
        "TCP4" => client::<Ipv4Addr>(rest),
        "TCP6" => client::<Ipv6Addr>(rest),
        // "The receiver must ignore anything presented before the CRLF is found."
        "UNKNOWN" => Some(ProxiedSource::Unknown),
        _ => None,
    };
    source.map(|source| Some(ProxyHeader { bytes: end + 2, source })).ok_or(ProxyHeaderError::Malformed)
}

/// `SOURCE DESTINATION SOURCE_PORT DESTINATION_PORT`, with one space between two.
fn client<Ip: FromStr + Into<IpAddr>>(text: &str) -> Option<ProxiedSource> {
    let mut words = text.split(' ');
    let (ip, _): (Ip, Ip) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    let (port, _) = (port(words.next()?)?, port(words.next()?)?);
    words.next().is_none().then(|| ProxiedSource::Client(SocketAddr::new(ip.into(), port)))
}

/// Digits, without a sign and without zeros in front.
fn port(text: &str) -> Option<u16> {
    let is_plain = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    text.parse().ok().filter(|_| is_plain)
}

/// Version 2 (section 2.2).
fn parse_binary(bytes: &[u8]) -> Result<Option<ProxyHeader>, ProxyHeaderError> {
    let is_relayed = match bytes.get(12) {
        Some(0x20) | None => false,
        Some(0x21) => true,
        // "Receivers must drop connections presenting unexpected values here."
        Some(_) => return Err(ProxyHeaderError::Malformed),
    };
    let Some(fixed) = bytes.first_chunk::<FIXED_BYTES>() else { return Ok(None) };
    let (family, protocol) = (fixed[13] >> 4, fixed[13] & 15);
    // Of a LOCAL connection the family is ignored.
    if is_relayed && (family > 3 || protocol > 2) {
        return Err(ProxyHeaderError::Malformed);
    }
    let length = FIXED_BYTES + usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
    if length > HEADER_BYTES_MAX {
        return Err(ProxyHeaderError::TooLong);
    }
    let Some(header) = bytes.get(..length) else { return Ok(None) };
    let block = &header[FIXED_BYTES..];
    let (source, addresses_bytes) = match (is_relayed, family, protocol) {
        (false, ..) => (ProxiedSource::Proxy, None),
        (true, 1, 1 | 2) => (client_of::<4>(block)?, Some(12)),
        (true, 2, 1 | 2) => (client_of::<16>(block)?, Some(36)),
        (true, 3, 1 | 2) if block.len() < 216 => return Err(ProxyHeaderError::Malformed),
        (true, 3, 1 | 2) => (ProxiedSource::Unknown, Some(216)),
        (true, ..) => (ProxiedSource::Unknown, None),
    };
    let checksum_at = match addresses_bytes {
        Some(addresses_bytes) => find_checksum(header, FIXED_BYTES + addresses_bytes)?,
        // The contents are skipped, whatever they are; by convention they hold no addresses.
        None => find_checksum(header, FIXED_BYTES).unwrap_or(None),
    };
    match checksum_at {
        Some(at) if !is_whole(header, at) => Err(ProxyHeaderError::Checksum),
        _ => Ok(Some(ProxyHeader { bytes: length, source })),
    }
}

/// The source of two addresses of `N` bytes and two ports.
fn client_of<const N: usize>(block: &[u8]) -> Result<ProxiedSource, ProxyHeaderError>
where
    IpAddr: From<[u8; N]>,
{
    let ip = block.first_chunk::<N>();
    let ports = block.get(2 * N..2 * N + 4);
    let (Some(ip), Some(ports)) = (ip, ports) else { return Err(ProxyHeaderError::Malformed) };
    Ok(ProxiedSource::Client(SocketAddr::new(IpAddr::from(*ip), u16::from_be_bytes([ports[0], ports[1]]))))
}

/// Where in the header the checksum stands, if there is one, among the values behind the addresses, which end at `at`.
fn find_checksum(header: &[u8], mut at: usize) -> Result<Option<usize>, ProxyHeaderError> {
    let mut found = None;
    while at < header.len() {
        let Some(tlv) = header[at..].first_chunk::<TLV_BYTES>() else { return Err(ProxyHeaderError::Malformed) };
        let length = usize::from(u16::from_be_bytes([tlv[1], tlv[2]]));
        let value = at + TLV_BYTES;
        if tlv[0] == TLV_CRC32C && (length != 4 || found.replace(value).is_some()) {
            return Err(ProxyHeaderError::Malformed);
        }
        at = value + length;
    }
    if at == header.len() { Ok(found) } else { Err(ProxyHeaderError::Malformed) }
}

/// Returns whether the checksum at `at` is that of the header with zeros in its place (section 2.2.3).
fn is_whole(header: &[u8], at: usize) -> bool {
    let (before, value, behind) = (&header[..at], &header[at..at + 4], &header[at + 4..]);
    let crc = [before, &[0; 4], behind].into_iter().fold(!0, crc32c);
    (!crc).to_be_bytes() == *value
}

/// CRC-32C (RFC 9260 appendix A), of `bytes` behind what `crc` is of.
fn crc32c(crc: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(crc, |crc, &byte| crc >> 8 ^ CRC32C[usize::from(crc as u8 ^ byte)])
}

const CRC32C: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    fn client(address: &str) -> ProxiedSource {
        ProxiedSource::Client(address.parse().unwrap())
    }

    fn binary(command: u8, family: u8, block: &[u8]) -> Vec<u8> {
        let length = u16::try_from(block.len()).unwrap().to_be_bytes();
        [&SIGNATURE[..], &[command, family], &length, block].concat()
    }

    const V4: [u8; 12] = [203, 0, 113, 7, 10, 0, 0, 1, 0xdc, 0x04, 0x01, 0xbb];

    /// At every split the answer is the same, and nothing behind the header is looked at.
    fn parsed(header: &[u8]) -> Result<ProxyHeader, ProxyHeaderError> {
        let whole = ProxyHeader::parse(header);
        for split in 0..header.len() {
            match ProxyHeader::parse(&header[..split]) {
                Ok(None) => {}
                early => assert_eq!((early, whole.is_err()), (whole, true), "at {split} of {header:?}"),
            }
        }
        let behind = [header, b"GET / HTTP/1.1\r\n\r\n"].concat();
        if let Ok(Some(found)) = whole {
            assert_eq!((ProxyHeader::parse(&behind), found.bytes), (whole, header.len()));
        }
        whole.map(|header| header.expect("it is whole"))
    }

    #[test]
    fn lines() {
        for (line, source) in [
            ("PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n", client("192.168.0.1:56324")),
            ("PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n", client("255.255.255.255:65535")),
            ("PROXY TCP6 2001:db8::7 ::1 0 1\r\n", client("[2001:db8::7]:0")),
            ("PROXY TCP6 ::FFFF:1.2.3.4 ::1 1 1\r\n", client("[::ffff:1.2.3.4]:1")),
            ("PROXY UNKNOWN\r\n", ProxiedSource::Unknown),
            ("PROXY UNKNOWN ffff::1 what ever\r\n", ProxiedSource::Unknown),
            ("PROXY UNKNOWN a lone \r and a lone \n\r\n", ProxiedSource::Unknown),
        ] {
            assert_eq!(parsed(line.as_bytes()).map(|header| header.source), Ok(source), "{line}");
        }
        let longest = format!("PROXY UNKNOWN {}\r\n", "f".repeat(LINE_BYTES_MAX - 16));
        assert_eq!(parsed(longest.as_bytes()).map(|header| header.bytes), Ok(LINE_BYTES_MAX));
    }

    #[test]
    fn lines_that_are_none() {
        for line in [
            "PROXY \r\n",
            "PROXY TCP4\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 1\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 1 1 \r\n",
            "PROXY TCP4  1.2.3.4 1.2.3.4 1 1\r\n",
            "PROXY  TCP4 1.2.3.4 1.2.3.4 1 1\r\n",
            "PROXY TCP4 1.2.3.4\t1.2.3.4 1 1\r\n",
            "PROXY TCP4 01.2.3.4 1.2.3.4 1 1\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3 1 1\r\n",
            "PROXY TCP4 1.2.3.256 1.2.3.4 1 1\r\n",
            "PROXY TCP4 ::1 ::1 1 1\r\n",
            "PROXY TCP6 1.2.3.4 1.2.3.4 1 1\r\n",
            "PROXY TCP6 fe80::1%eth0 ::1 1 1\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 +1 1\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 01 1\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 65536 1\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 1 1\n\r\n",
            "PROXY tcp4 1.2.3.4 1.2.3.4 1 1\r\n",
            "PROXY UDP4 1.2.3.4 1.2.3.4 1 1\r\n",
            "PROXY UNKNOWNS\r\n",
        ] {
            assert_eq!(parsed(line.as_bytes()), Err(ProxyHeaderError::Malformed), "{line}");
        }
        assert_eq!(parsed(b"PROXY TCP4 \xff\r\n"), Err(ProxyHeaderError::Malformed));
        for text in ["GET / HTTP/1.1\r\n", "proxy TCP4", "PROXYTCP4", "\r\n\r\nG", "\x16\x03\x01"] {
            assert_eq!(parsed(text.as_bytes()), Err(ProxyHeaderError::Absent), "{text}");
        }
        let endless = format!("PROXY TCP4 {}", "1".repeat(100));
        assert_eq!(ProxyHeader::parse(&endless.as_bytes()[..106]), Ok(None));
        assert_eq!(ProxyHeader::parse(endless.as_bytes()), Err(ProxyHeaderError::TooLong));
    }

    #[test]
    fn binary_headers() {
        let v6 = [&[0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9][..], &[0; 16], &[0, 80, 0, 81]].concat();
        let tlv = |kind: u8, value: &[u8]| [&[kind, 0, value.len() as u8][..], value].concat();
        for (header, source) in [
            (binary(0x21, 0x11, &V4), client("203.0.113.7:56324")),
            (binary(0x21, 0x12, &V4), client("203.0.113.7:56324")),
            (binary(0x21, 0x21, &v6), client("[2001:db8::9]:80")),
            (binary(0x21, 0x11, &[&V4[..], &tlv(4, b""), &tlv(0xea, b"vpce")].concat()), client("203.0.113.7:56324")),
            (binary(0x21, 0x31, &[1; 216]), ProxiedSource::Unknown),
            (binary(0x21, 0x00, &[]), ProxiedSource::Unknown),
            (binary(0x21, 0x10, &V4), ProxiedSource::Unknown),
            (binary(0x21, 0x01, &[9; 5]), ProxiedSource::Unknown),
            (binary(0x20, 0x00, &[]), ProxiedSource::Proxy),
            (binary(0x20, 0x11, &V4), ProxiedSource::Proxy),
            (binary(0x20, 0xff, &[7; 99]), ProxiedSource::Proxy),
        ] {
            assert_eq!(parsed(&header).map(|header| header.source), Ok(source), "{header:?}");
        }
        let longest = binary(0x20, 0, &vec![0; HEADER_BYTES_MAX - 16]);
        assert!(parsed(&longest).is_ok());
        assert_eq!(parsed(&binary(0x20, 0, &vec![0; HEADER_BYTES_MAX - 15])), Err(ProxyHeaderError::TooLong));
    }

    #[test]
    fn binary_headers_that_are_none() {
        for (command, family, block) in [
            (0x11, 0x11, &V4[..]),
            (0x22, 0x11, &V4),
            (0x21, 0x41, &V4),
            (0x21, 0x13, &V4),
            (0x21, 0x11, &V4[1..]),
            (0x21, 0x21, &V4),
            (0x21, 0x31, &[0; 215]),
            (0x21, 0x11, &[&V4[..], &[4]].concat()),
            (0x21, 0x11, &[&V4[..], &[4, 0, 1]].concat()),
            (0x21, 0x11, &[&V4[..], &[4, 0xff, 0xff, 0]].concat()),
            (0x21, 0x11, &[&V4[..], &[3, 0, 3, 1, 2, 3]].concat()),
            (0x21, 0x11, &[&V4[..], &[3, 0, 4, 0, 0, 0, 0], &[3, 0, 4, 0, 0, 0, 0]].concat()),
        ] {
            let header = binary(command, family, block);
            assert_eq!(parsed(&header), Err(ProxyHeaderError::Malformed), "{header:?}");
        }
    }

    #[test]
    fn a_checksum_is_checked_where_there_is_one() {
        assert_eq!(!crc32c(!0, b"123456789"), 0xe306_9283);
        for (command, family, addresses) in [(0x21, 0x11, &V4[..]), (0x20, 0, &[]), (0x21, 0, &[])] {
            let mut header = binary(command, family, &[addresses, &[4, 0, 1, 9, 3, 0, 4, 0, 0, 0, 0]].concat());
            let at = header.len() - 4;
            let crc = !crc32c(!0, &header);
            header[at..].copy_from_slice(&crc.to_be_bytes());
            assert!(parsed(&header).is_ok());
            for changed in [at, at + 3, at - 4] {
                header[changed] ^= 1;
                assert_eq!(parsed(&header), Err(ProxyHeaderError::Checksum));
                header[changed] ^= 1;
            }
            header[at - 3] = 4;
            assert!(parsed(&header).is_ok(), "it is no checksum any more");
        }
    }
}
