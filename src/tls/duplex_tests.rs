//! Two sides in memory: the certificates that a client trusts, and bytes that arrive however they are split.

use super::*;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

/// A certificate that has signed itself, and its PEM.
fn own(name: &str) -> (Certificate, String) {
    let made = rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap();
    let pem = made.cert.pem();
    (Certificate::from_pem(pem.as_bytes(), made.signing_key.serialize_pem().as_bytes()).unwrap(), pem)
}

/// A certificate of an authority, and the authority's PEM.
fn issued(name: &str) -> (Certificate, String) {
    let (authority_key, key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = params.self_signed(&authority_key).unwrap().pem();
    let issuer = Issuer::new(params, authority_key);
    let leaf = CertificateParams::new(vec![name.to_owned()]).unwrap().signed_by(&key, &issuer).unwrap().pem();
    (Certificate::from_pem(leaf.as_bytes(), key.serialize_pem().as_bytes()).unwrap(), authority)
}

/// Moves what one side has to say to the other, `step` bytes at a time, and appends what that has heard to `heard`.
fn carry(from: &mut Duplex, to: &mut Duplex, step: usize, heard: &mut Vec<u8>) -> io::Result<bool> {
    let mut sealed = Vec::new();
    from.take_out(&mut sealed);
    for piece in sealed.chunks(step) {
        let mut at = 0;
        while at < piece.len() {
            at += to.take_in(&piece[at..])?;
            let mut buffer = [0; 4096];
            while let Some(count @ 1..) = to.read(&mut buffer)? {
                heard.extend_from_slice(&buffer[..count]);
            }
        }
    }
    Ok(!sealed.is_empty())
}

/// Shakes hands; the error of the client, or of the server.
fn shake(client: &mut Duplex, server: &mut Duplex, step: usize) -> io::Result<()> {
    let mut nothing = Vec::new();
    while carry(client, server, step, &mut nothing)? | carry(server, client, step, &mut nothing)? {}
    assert!(!client.is_handshaking() && !server.is_handshaking());
    assert!(nothing.is_empty());
    Ok(())
}

fn judged(certificate: &Certificate, trusted: &str, host: &str) -> Result<(), String> {
    let mut server = Acceptor::new(vec![certificate.clone()]).unwrap().accept().unwrap();
    let mut client = Trust::from_pem(trusted.as_bytes()).unwrap().connect(host).unwrap();
    shake(&mut client, &mut server, usize::MAX).map_err(|error| error.to_string())
}

#[test]
fn a_server_is_trusted_by_its_own_certificate_or_by_its_authority_and_name() {
    let (certificate, pinned) = own("broker.example");
    assert_eq!(judged(&certificate, &pinned, "127.0.0.1"), Ok(()), "a pinned certificate is known whatever its name");
    let (_, other) = own("broker.example");
    assert!(judged(&certificate, &other, "broker.example").is_err());
    let (certificate, authority) = issued("broker.example");
    assert_eq!(judged(&certificate, &authority, "broker.example"), Ok(()));
    assert!(judged(&certificate, &authority, "another.example").unwrap_err().contains("name"));
    assert!(judged(&certificate, &other, "broker.example").is_err());
    // Several: any of them.
    assert_eq!(judged(&certificate, &format!("{other}{authority}"), "broker.example"), Ok(()));
    for nothing in ["", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
        assert!(Trust::from_pem(nothing.as_bytes()).is_err());
    }
    assert!(Trust::from_pem(authority.as_bytes()).unwrap().connect("no host").is_err());
}

#[test]
fn bytes_arrive_however_they_are_split() {
    let (certificate, pinned) = own("x");
    let acceptor = Acceptor::new(vec![certificate]).unwrap();
    let trust = Trust::from_pem(pinned.as_bytes()).unwrap();
    for step in [1, 7, 4096, usize::MAX] {
        let (mut client, mut server) = (trust.connect("x").unwrap(), acceptor.accept().unwrap());
        shake(&mut client, &mut server, step).unwrap();
        let said: Vec<u8> = (0..100_000_u32).map(|at| at as u8).collect();
        let (mut heard, mut at) = (Vec::new(), 0);
        while at < said.len() {
            at += client.put(&said[at..]).unwrap();
            carry(&mut client, &mut server, step, &mut heard).unwrap();
        }
        assert_eq!(heard, said);
        client.end();
        carry(&mut client, &mut server, step, &mut heard).unwrap();
        assert_eq!(server.read(&mut [0; 8]).unwrap(), Some(0), "the end was said");
    }
}

#[test]
fn certificates_are_replaced_for_whoever_comes_then() {
    let ((first, first_pem), (second, second_pem)) = (own("x"), own("x"));
    let acceptor = Acceptor::new(vec![first]).unwrap();
    let shown = |pem: &str| {
        let mut client = Trust::from_pem(pem.as_bytes()).unwrap().connect("x").unwrap();
        shake(&mut client, &mut acceptor.accept().unwrap(), usize::MAX).is_ok()
    };
    assert!(shown(&first_pem) && !shown(&second_pem));
    acceptor.set_certificates(vec![second]).unwrap();
    assert!(!shown(&first_pem) && shown(&second_pem));
    assert_eq!(acceptor.set_certificates(Vec::new()).err(), Some(CertificateError::None));
    assert!(shown(&second_pem));
}

#[test]
fn what_is_no_tls_is_an_error_and_is_told_by_an_alert() {
    let (certificate, _) = own("x");
    let mut server = Acceptor::new(vec![certificate]).unwrap().accept().unwrap();
    assert_eq!(server.take_in(b"\0\0\0\x6c\0\0\0\0\x81\xa5hello").unwrap_err().kind(), io::ErrorKind::InvalidData);
    let mut out = Vec::new();
    server.take_out(&mut out);
    assert_eq!((out[0], out.len()), (21, 7), "an alert in the plain");
}
