//! A balancer's header: its meaning does not depend on how it arrives, nothing after it is read, and its length is
//! limited. A header for any client is read back as that client.

use pushring::internals::gateway::proxy_protocol::{HEADER_BYTES_MAX, LINE_BYTES_MAX, ProxiedSource, ProxyHeader};
use std::net::{IpAddr, SocketAddr};

/// The bytes of a connection from its start.
pub fn holds(data: &[u8]) {
    let whole = ProxyHeader::parse(data);
    for split in 0..data.len() {
        match ProxyHeader::parse(&data[..split]) {
            // With as much, it would be whole or no header.
            Ok(None) => assert!(split < HEADER_BYTES_MAX),
            // An early verdict is the verdict on all bytes.
            early => assert_eq!(early, whole),
        }
    }
    let Ok(Some(header)) = whole else { return };
    let bytes_max = if data.starts_with(b"PROXY") { LINE_BYTES_MAX } else { HEADER_BYTES_MAX };
    assert!(header.bytes <= bytes_max && header.bytes <= data.len());
    assert_eq!(ProxyHeader::parse(&data[..header.bytes]), whole);
    assert_eq!(ProxyHeader::parse(&data[..header.bytes - 1]), Ok(None));
    if let ProxiedSource::Client(client) = header.source {
        reads_back(client);
    }
}

fn reads_back(client: SocketAddr) {
    let (ip, port) = (client.ip(), client.port());
    let (protocol, family) = if ip.is_ipv4() { ("TCP4", 0x11) } else { ("TCP6", 0x21) };
    let octets = match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let ports = [port.to_be_bytes(), [0, 80]].concat();
    let block = [&*octets, &*octets, &*ports].concat();
    let binary = [b"\r\n\r\n\0\r\nQUIT\n", &[0x21, family, 0, block.len() as u8][..], &block].concat();
    for header in [format!("PROXY {protocol} {ip} {ip} {port} 80\r\n").into_bytes(), binary] {
        let read = ProxyHeader { bytes: header.len(), source: ProxiedSource::Client(client) };
        assert_eq!(ProxyHeader::parse(&header), Ok(Some(read)));
    }
}
