use super::*;
use crate::tls::{Alert, ReceiveEnd, Records};
use ::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use ::rustls::crypto::CryptoProvider;
use ::rustls::pki_types::{CertificateDer, ServerName};
use ::rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme};
use std::io::{IoSlice, Read, Write};

/// Accepts any certificate; the test checks which one arrived.
#[derive(Debug)]
struct Believe(Arc<CryptoProvider>, Vec<SignatureScheme>);

impl ServerCertVerifier for Believe {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        unreachable!("TLS 1.2 is not offered")
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        ::rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.1.clone()
    }
}

fn client_config(suite: Option<CipherSuite>) -> ClientConfig {
    let mut provider = aws_lc_rs::default_provider();
    if let Some(suite) = suite {
        provider.cipher_suites.retain(|offered| offered.suite() == suite);
    }
    config_of(provider)
}

fn config_of(provider: CryptoProvider) -> ClientConfig {
    let schemes = provider.signature_verification_algorithms.supported_schemes();
    config_that_understands(provider, schemes)
}

fn config_that_understands(provider: CryptoProvider, schemes: Vec<SignatureScheme>) -> ClientConfig {
    let provider = Arc::new(provider);
    let builder = ClientConfig::builder_with_provider(provider.clone()).with_protocol_versions(&[&version::TLS13]);
    let verifier = Arc::new(Believe(provider, schemes));
    builder.unwrap().dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth()
}

fn certificate(names: &[&str]) -> Certificate {
    let names: Vec<String> = names.iter().map(|&name| name.into()).collect();
    let made = rcgen::generate_simple_self_signed(names).unwrap();
    Certificate::from_pem(made.cert.pem().as_bytes(), made.signing_key.serialize_pem().as_bytes()).unwrap()
}

fn server(names: &[&[&str]]) -> TlsServer {
    TlsServer::new(names.iter().map(|names| certificate(names)).collect(), 1_800_000_000).unwrap()
}

fn connect(config: &Arc<ClientConfig>, name: &str) -> ClientConnection {
    ClientConnection::new(config.clone(), ServerName::try_from(name.to_owned()).unwrap()).unwrap()
}

/// Lets both talk, `step` bytes of the client's at a time, until the handshake has come to something.
fn shake(client: &mut ClientConnection, handshake: &mut Handshake, step: usize) -> HandshakeStep {
    loop {
        let mut sent = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut sent).unwrap();
        }
        assert!(!sent.is_empty(), "somebody has something to say");
        for bytes in sent.chunks(step) {
            let mut out = Vec::new();
            let step = handshake.receive(bytes, &mut out);
            let mut out = &out[..];
            while !out.is_empty() {
                client.read_tls(&mut out).unwrap();
                let _ = client.process_new_packets();
            }
            if !matches!(step, HandshakeStep::Goes { .. }) {
                return step;
            }
        }
    }
}

fn done(step: HandshakeStep) -> Established {
    match step {
        HandshakeStep::Done(done) => *done,
        other => panic!("{other:?}"),
    }
}

fn received(client: &mut ClientConnection, mut wire: &[u8]) -> Vec<u8> {
    let mut got = Vec::new();
    while !wire.is_empty() {
        client.read_tls(&mut wire).unwrap();
        let state = client.process_new_packets().unwrap();
        let start = got.len();
        got.resize(start + state.plaintext_bytes_to_read(), 0);
        client.reader().read_exact(&mut got[start..]).unwrap();
    }
    got
}

/// Ours against rustls' own record layer, over all suites, lengths and ways to cut.
#[test]
fn a_rustls_client_shakes_hands_and_its_records_and_ours_are_the_same() {
    for suite in [
        CipherSuite::TLS13_AES_128_GCM_SHA256,
        CipherSuite::TLS13_AES_256_GCM_SHA384,
        CipherSuite::TLS13_CHACHA20_POLY1305_SHA256,
    ] {
        let server = server(&[&["localhost"]]);
        for step in [1, 7, 100, usize::MAX] {
            let config = Arc::new(client_config(Some(suite)));
            let mut client = connect(&config, "localhost");
            let done = done(shake(&mut client, &mut server.handshake(), step));
            assert!(!done.is_resumed && done.rest.is_empty());
            let mut records = Records::new(done.state);
            let mut carried = Vec::new();
            let data: Vec<u8> = (0..40_000u32).map(|at| at as u8).collect();
            for (number, len) in [0, 1, 2, 16, 255, 4_000, 16_384, 16_385, 40_000].into_iter().enumerate() {
                if number % 3 == 2 {
                    client.refresh_traffic_keys().unwrap();
                }
                let mut out = Vec::new();
                records.seal(&[IoSlice::new(&data[..len / 2]), IoSlice::new(&data[len / 2..len])], &mut out);
                assert_eq!(received(&mut client, &out), data[..len]);
                client.writer().write_all(&data[..len]).unwrap();
                let (mut sent, mut got) = (Vec::new(), Vec::new());
                while client.wants_write() {
                    client.write_tls(&mut sent).unwrap();
                }
                for bytes in sent.chunks(step.max(50)) {
                    carried.extend_from_slice(bytes);
                    let opened = records.open(&mut carried, number as u32);
                    assert_eq!(opened.ended, None);
                    got.extend_from_slice(&carried[..opened.plain]);
                    carried.drain(..carried.len() - opened.rest);
                }
                assert_eq!(got, data[..len]);
            }
            client.send_close_notify();
            let mut sent = Vec::new();
            client.write_tls(&mut sent).unwrap();
            assert_eq!(records.open(&mut sent, 0).ended, Some(ReceiveEnd::CloseNotify));
            let mut out = Vec::new();
            records.seal_alert(Alert::CLOSE_NOTIFY, &mut out);
            client.read_tls(&mut &out[..]).unwrap();
            assert!(client.process_new_packets().unwrap().peer_has_closed());
        }
    }
}

/// AES-128 costs least; clients without instructions for AES put ChaCha20 first.
#[test]
fn the_suite_is_the_cheapest_or_chacha20_where_a_client_puts_it_first() {
    use CipherSuite::{
        TLS13_AES_128_GCM_SHA256 as AES_128, TLS13_AES_256_GCM_SHA384 as AES_256,
        TLS13_CHACHA20_POLY1305_SHA256 as CHACHA20,
    };
    let server = server(&[&["localhost"]]);
    for (offered, expected) in [
        (&[AES_256, AES_128, CHACHA20][..], Suite::Aes128Gcm),
        (&[AES_256, CHACHA20], Suite::Aes256Gcm),
        (&[CHACHA20, AES_128, AES_256], Suite::ChaCha20Poly1305),
    ] {
        for step in [1, usize::MAX] {
            let mut provider = aws_lc_rs::default_provider();
            let place = |suite| offered.iter().position(|&offered| offered == suite);
            provider.cipher_suites.retain(|suite| place(suite.suite()).is_some());
            provider.cipher_suites.sort_by_key(|suite| place(suite.suite()));
            let config = Arc::new(config_of(provider));
            let done = done(shake(&mut connect(&config, "localhost"), &mut server.handshake(), step));
            assert_eq!(done.state.suite, expected, "{offered:?} in steps of {step}");
        }
    }
}

#[test]
fn what_comes_behind_the_handshake_is_left_to_the_records() {
    let server = server(&[&["localhost"]]);
    let mut client = connect(&Arc::new(client_config(None)), "localhost");
    let mut handshake = server.handshake();
    let mut sent = Vec::new();
    client.write_tls(&mut sent).unwrap();
    let mut out = Vec::new();
    assert!(matches!(handshake.receive(&sent, &mut out), HandshakeStep::Goes { has_answered: true }));
    client.read_tls(&mut &out[..]).unwrap();
    client.process_new_packets().unwrap();
    client.writer().write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    sent.clear();
    while client.wants_write() {
        client.write_tls(&mut sent).unwrap();
    }
    let done = done(handshake.receive(&sent, &mut Vec::new()));
    let mut rest = done.rest;
    let opened = Records::new(done.state).open(&mut rest, 0);
    assert_eq!(&rest[..opened.plain], b"GET / HTTP/1.1\r\n\r\n");
}

#[test]
fn the_certificate_is_the_one_for_the_host_that_is_named() {
    let server = server(&[&["first.example"], &["second.example", "*.wild.example"], &["own.wild.example"]]);
    let config = Arc::new(client_config(None));
    for (name, expected) in [
        ("first.example", 0),
        ("second.example", 1),
        ("SECOND.example", 1),
        ("a.wild.example", 1),
        ("own.wild.example", 2),
        ("wild.example", 0),
        ("a.b.wild.example", 0),
        ("unknown.example", 0),
        ("127.0.0.1", 0),
    ] {
        let mut client = connect(&config, name);
        done(shake(&mut client, &mut server.handshake(), usize::MAX));
        let got = &client.peer_certificates().unwrap()[0];
        assert_eq!(Some(&got[..]), server.certificates()[expected].chain().next(), "{name}");
    }
}

/// RFC 6066 3: rustls' own clients leave the dot out, others do not.
#[test]
fn a_host_is_the_same_with_a_dot_at_its_end() {
    let certificates = CertificateResolver([certificate(&["first.example"]), certificate(&["*.wild.example"])].into());
    let schemes = [SignatureScheme::ECDSA_NISTP256_SHA256];
    for (name, expected) in
        [("a.wild.example", 1), ("A.Wild.Example.", 1), ("first.example.", 0), ("a.wild.example..", 0), (".", 0)]
    {
        let chosen = certificates.choose(Some(name), &schemes).unwrap();
        assert_eq!(chosen.names().next(), certificates.0[expected].names().next(), "{name}");
    }
}

#[test]
fn a_ticket_takes_up_a_connection_on_a_server_with_other_certificates() {
    let before = server(&[&["localhost"]]);
    let config = Arc::new(client_config(None));
    let resumes = |server: &TlsServer| {
        let mut client = connect(&config, "localhost");
        let mut handshake = server.handshake();
        done(shake(&mut client, &mut handshake, usize::MAX)).is_resumed
    };
    assert!(!resumes(&before));
    assert!(resumes(&before));
    let after = before.with_certificates(vec![certificate(&["localhost"])]).unwrap();
    assert!(resumes(&after), "the keys of tickets are the same");
    after.set_unix_s(1_800_000_000 + 3 * ROTATED_EVERY_S);
    assert!(!resumes(&after), "and rotated");
}

#[test]
fn who_offers_what_we_do_not_speak_is_told_so() {
    let server = server(&[&["localhost"]]);
    let mut config = client_config(None);
    config.alpn_protocols = vec![b"h2".to_vec()];
    let mut client = connect(&Arc::new(config.clone()), "localhost");
    let failure = failed(shake(&mut client, &mut server.handshake(), usize::MAX));
    assert_eq!(failure.alert.map(Alert::name), Some("no_application_protocol"));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let mut client = connect(&Arc::new(config), "localhost");
    done(shake(&mut client, &mut server.handshake(), usize::MAX));
    assert_eq!(client.alpn_protocol(), Some(&b"http/1.1"[..]));
}

/// RFC 8446 4.2.3 and 4.4.2.2: there is no certificate for it, which is a failed handshake and no matter of rights.
#[test]
fn who_understands_no_signature_of_ours_is_told_so() {
    let server = server(&[&["localhost"]]);
    let config = config_that_understands(aws_lc_rs::default_provider(), vec![SignatureScheme::RSA_PSS_SHA256]);
    let mut client = connect(&Arc::new(config), "localhost");
    let failure = failed(shake(&mut client, &mut server.handshake(), usize::MAX));
    assert_eq!(failure.alert.map(Alert::name), Some("handshake_failure"));
}

fn failed(step: HandshakeStep) -> HandshakeFailure {
    match step {
        HandshakeStep::Failed(failure) => failure,
        other => panic!("{other:?}"),
    }
}

#[test]
fn bytes_that_are_no_handshake_are_refused_at_once_and_bounded() {
    let server = server(&[&["localhost"]]);
    let refused = |bytes: &[u8]| {
        let mut out = Vec::new();
        let failure = failed(server.handshake().receive(bytes, &mut out));
        (failure.alert.map(Alert::name), out)
    };
    let (alert, out) = refused(b"GET / HTTP/1.1\r\n");
    assert_eq!((alert, &out[..12]), (None, &b"HTTP/1.1 400"[..]));
    let body = out.windows(4).position(|end| end == b"\r\n\r\n").unwrap() + 4;
    let length = format!("content-length: {}\r\n", out.len() - body);
    assert!(String::from_utf8(out).unwrap().contains(&length));
    assert_eq!(refused(b"SSH-2.0-OpenSSH\r\n").0, Some("decode_error"));
    assert_eq!(refused(&[23, 3, 3, 0, 5, 1, 2, 3, 4, 5]).0, Some("unexpected_message"));
    assert_eq!(refused(&[22, 3, 3, 0xff, 0xff]).0, Some("record_overflow"));
    assert_eq!(refused(&[22, 3, 3, 0x40, 0x01]).0, Some("record_overflow"));
    // A ClientHello of TLS 1.2: no supported_versions.
    let mut hello = vec![22, 3, 1, 0, 55, 1, 0, 0, 51, 3, 3];
    hello.extend([7; 32]);
    hello.extend([0, 0, 2, 0xc0, 0x2b, 1, 0, 0, 8, 0, 13, 0, 4, 0, 2, 4, 3]);
    assert_eq!(refused(&hello).0, Some("protocol_version"));
    // A message that never ends, in records that do.
    let mut handshake = server.handshake();
    let mut record = vec![22, 3, 1, 0x10, 0, 1, 0, 0xff, 0xff];
    record.resize(5 + 0x1000, 0);
    let mut steps = 0;
    let failure = loop {
        match handshake.receive(&record, &mut Vec::new()) {
            HandshakeStep::Goes { has_answered: false } => {
                record[5..9].fill(0);
                steps += 1;
            }
            other => break failed(other),
        }
        assert!(steps < 6 && handshake.heap_bytes() < 64 * 1024);
    };
    assert_eq!(failure.alert, Some(Alert::ILLEGAL_PARAMETER));
}

#[test]
fn a_client_that_gives_up_is_told_from_one_that_is_refused() {
    let server = server(&[&["localhost"]]);
    let failure = failed(server.handshake().receive(&[21, 3, 3, 0, 2, 2, 48], &mut Vec::new()));
    assert_eq!((failure.by_client, failure.alert.map(Alert::name)), (true, Some("unknown_ca")));
}

#[test]
fn a_record_that_was_changed_is_refused() {
    let server = server(&[&["localhost"]]);
    let mut client = connect(&Arc::new(client_config(None)), "localhost");
    let mut handshake = server.handshake();
    let (mut sent, mut out) = (Vec::new(), Vec::new());
    client.write_tls(&mut sent).unwrap();
    handshake.receive(&sent, &mut out);
    client.read_tls(&mut &out[..]).unwrap();
    client.process_new_packets().unwrap();
    sent.clear();
    client.write_tls(&mut sent).unwrap();
    *sent.last_mut().unwrap() ^= 1;
    out.clear();
    let failure = failed(handshake.receive(&sent, &mut out));
    assert!(!failure.by_client && !out.is_empty(), "{failure:?}");
}

/// rustls keeps an incomplete message; it is not examined after an error.
#[test]
fn what_stands_within_a_message_is_refused_like_anywhere() {
    let server = server(&[&["localhost"]]);
    let mut hello = Vec::new();
    connect(&Arc::new(client_config(None)), "localhost").write_tls(&mut hello).unwrap();
    for end in [5 + 1, 5 + 4, 100, hello.len() - 1] {
        let part = &hello[5..end];
        let begun = [&[22, 3, 1][..], &(part.len() as u16).to_be_bytes(), part].concat();
        // Data, an alert, a change of the cipher, what is no record.
        for behind in [&[23, 3, 3, 0, 1, 0][..], &[21, 3, 3, 0, 2, 2, 40], &[20, 3, 3, 0, 1, 1], &[99; 20]] {
            let (mut handshake, mut out) = (server.handshake(), Vec::new());
            let step = handshake.receive(&begun, &mut out);
            assert!(matches!(step, HandshakeStep::Goes { has_answered: false }), "{step:?}");
            let failure = failed(handshake.receive(behind, &mut out));
            assert!(failure.alert.is_some() && out.ends_with(&[failure.alert.unwrap().0]), "{failure:?} {out:?}");
        }
    }
}
