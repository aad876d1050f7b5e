//! TLS for tests: a certificate made for the run, and clients that trust it alone.

use pushring::internals::tls::{Certificate, TlsServer};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, OnceLock};

/// A certificate and its key, PEM, for `localhost`, `127.0.0.1` and what is below `node.test`.
pub struct Pair {
    pub chain: String,
    pub key: String,
}

/// A new pair for `names`.
pub fn make(names: &[&str]) -> Pair {
    let names: Vec<String> = names.iter().map(|&name| name.into()).collect();
    let made = rcgen::generate_simple_self_signed(names).unwrap();
    Pair { chain: made.cert.pem(), key: made.signing_key.serialize_pem() }
}

/// The pair of this run.
pub fn pair() -> &'static Pair {
    static PAIR: OnceLock<Pair> = OnceLock::new();
    PAIR.get_or_init(|| make(&["localhost", "127.0.0.1", "node.test", "*.node.test"]))
}

pub fn certificate(pair: &Pair) -> Certificate {
    Certificate::from_pem(pair.chain.as_bytes(), pair.key.as_bytes()).unwrap()
}

/// The TLS settings of this run's brokers.
pub fn server() -> TlsServer {
    TlsServer::new(vec![certificate(pair())], 0).unwrap()
}

/// A client that trusts this certificate alone.
pub fn trusts(pair: &Pair) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(pair.chain.as_bytes()).unwrap()).unwrap();
    let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
    let builder = builder.with_protocol_versions(&[&rustls::version::TLS13]).unwrap();
    Arc::new(builder.with_root_certificates(roots).with_no_client_auth())
}

/// A client of the run's certificate.
pub fn client() -> Arc<ClientConfig> {
    static CLIENT: OnceLock<Arc<ClientConfig>> = OnceLock::new();
    CLIENT.get_or_init(|| trusts(pair())).clone()
}

pub fn connection(config: &Arc<ClientConfig>, name: &str) -> ClientConnection {
    ClientConnection::new(config.clone(), ServerName::try_from(name.to_owned()).unwrap()).unwrap()
}

/// Shakes hands.
pub fn connect(mut stream: TcpStream, name: &str) -> io::Result<(TcpStream, ClientConnection)> {
    let mut connection = connection(&client(), name);
    while connection.is_handshaking() {
        connection.complete_io(&mut stream)?;
    }
    Ok((stream, connection))
}

/// The decrypted bytes, from here on.
pub fn read(connection: &mut ClientConnection, stream: &mut impl Stream, buffer: &mut [u8]) -> io::Result<usize> {
    rustls::Stream::new(connection, stream).read(buffer)
}

pub fn write(connection: &mut ClientConnection, stream: &mut impl Stream, bytes: &[u8]) -> io::Result<usize> {
    rustls::Stream::new(connection, stream).write(bytes)
}

pub trait Stream: Read + Write {}
impl<S: Read + Write> Stream for S {}
