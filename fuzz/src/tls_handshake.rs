//! The first bytes of a client's TLS handshake: the result does not depend on how they are cut, the memory held for
//! them is bounded, and a client that fails is told why by an alert or, if it spoke HTTP, by HTTP.

use super::splits::{pieces, splits};
use pushring::internals::tls::{Certificate, HandshakeStep, INCOMING_BYTES_MAX, TlsServer};
use std::sync::OnceLock;

/// The result of a client's bytes. The reply to one that continues is random.
#[derive(Debug, PartialEq)]
enum Came {
    Goes { was_answered: bool },
    Failed { alert: Option<u8>, by_client: bool },
}

/// All of the input is what the client sends.
pub fn holds(data: &[u8]) {
    let whole = comes_of(data, &[]);
    for cuts in splits(data) {
        assert_eq!(comes_of(data, &cuts), whole, "cut at {cuts:?}");
    }
}

fn comes_of(bytes: &[u8], cuts: &[usize]) -> Came {
    let mut handshake = server().handshake();
    let (mut said, mut was_answered) = (Vec::new(), false);
    for piece in pieces(bytes, cuts) {
        match handshake.receive(piece, &mut said) {
            HandshakeStep::Goes { has_answered } => was_answered |= has_answered,
            HandshakeStep::Failed(failure) => {
                let alert = failure.alert.map(|alert| alert.0);
                // Behind a ServerHello an alert is sealed, and cannot be told here.
                let was_said = match alert {
                    None => said.starts_with(b"HTTP/1.1 400 "),
                    Some(alert) => said.first() == Some(&22) || said == [21, 3, 3, 0, 2, 2, alert],
                };
                assert!(failure.by_client || was_said, "{failure:?}: {said:?} was said");
                return Came::Failed { alert, by_client: failure.by_client };
            }
            HandshakeStep::Done(_) => panic!("no input knows the keys of this handshake"),
        }
        // Behind what is held there may be as much again of a vector that grew.
        assert!(handshake.heap_bytes() <= 4 * INCOMING_BYTES_MAX + piece.len() * 2, "{}", handshake.heap_bytes());
    }
    Came::Goes { was_answered }
}

fn server() -> &'static TlsServer {
    static SERVER: OnceLock<TlsServer> = OnceLock::new();
    SERVER.get_or_init(|| {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned(), "*.node.test".to_owned()]).unwrap();
        let certificate =
            Certificate::from_pem(made.cert.pem().as_bytes(), made.signing_key.serialize_pem().as_bytes());
        TlsServer::new(vec![certificate.unwrap()], 0).unwrap()
    })
}
