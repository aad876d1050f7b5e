//! TLS between two programs, by rustls on both sides: few connections, each with a thread that reads and writes it.
//!
//! Sans-IO like the rest: bytes in, bytes out. The shards' own record layer would save memory, which is not scarce
//! here. Invariants: TLS 1.3 alone; a client continues only with a server whose certificate it was given, or whose
//! certificate for the name is issued by an authority it was given; no tickets, no early data. The only clock is
//! rustls' own, read when a certificate is verified.

use super::handshake::CertificateResolver;
use super::handshake::certificate::{Certificate, CertificateError, fault};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    ClientConfig, ClientConnection, Connection, DigitallySignedStruct, RootCertStore, ServerConfig, ServerConnection,
    SignatureScheme, version,
};
use std::fmt;
use std::io::{self, Read, Write};
use std::sync::{Arc, PoisonError, RwLock};

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// The side that is connected to: certificates, which may be replaced. Clones are the same one.
#[derive(Clone)]
pub struct Acceptor(Arc<RwLock<Arc<ServerConfig>>>);

impl Acceptor {
    /// With these certificates; clients that name no host, or an unknown one, get the first.
    ///
    /// # Errors
    /// There is no certificate.
    pub fn new(certificates: Vec<Certificate>) -> Result<Self, CertificateError> {
        Ok(Self(Arc::new(RwLock::new(Self::config(certificates)?))))
    }

    /// Has connections from now on shown these certificates.
    ///
    /// # Errors
    /// There is no certificate; then nothing has changed.
    pub fn set_certificates(&self, certificates: Vec<Certificate>) -> Result<(), CertificateError> {
        let config = Self::config(certificates)?;
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = config;
        Ok(())
    }

    fn config(certificates: Vec<Certificate>) -> Result<Arc<ServerConfig>, CertificateError> {
        if certificates.is_empty() {
            return Err(CertificateError::None);
        }
        let builder = ServerConfig::builder_with_provider(provider()).with_protocol_versions(&[&version::TLS13]);
        let builder = builder.expect("the provider has suites of TLS 1.3").with_no_client_auth();
        let mut config = builder.with_cert_resolver(Arc::new(CertificateResolver(certificates.into())));
        config.send_tls13_tickets = 0;
        Ok(Arc::new(config))
    }

    /// The server's side of a connection that begins.
    ///
    /// # Errors
    /// The cryptographic library gives no randomness.
    pub fn accept(&self) -> io::Result<Duplex> {
        let config = self.0.read().unwrap_or_else(PoisonError::into_inner).clone();
        Ok(Duplex(ServerConnection::new(config).map_err(io::Error::other)?.into()))
    }
}

impl fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Acceptor")
    }
}

/// Certificates that cannot be trusted, since there are none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no certificate can be trusted: {0}; it is to be PEM, of the server's own certificate or of the authority's")]
pub struct TrustError(String);

/// Which servers a client goes on with. Cheap to clone.
#[derive(Clone)]
pub struct Trust(Arc<ClientConfig>);

impl Trust {
    /// From PEM. A server is trusted that shows one of these certificates itself, whatever its name and dates say; or
    /// one that one of these has issued, for the name that was connected to, and today.
    ///
    /// # Errors
    /// See [`TrustError`].
    pub fn from_pem(certificates: &[u8]) -> Result<Self, TrustError> {
        let pinned = CertificateDer::pem_slice_iter(certificates).collect::<Result<Vec<_>, _>>();
        let pinned = pinned.map_err(|error| TrustError(fault(&error).to_owned()))?;
        let mut roots = RootCertStore::empty();
        let (taken, _) = roots.add_parsable_certificates(pinned.iter().cloned());
        if taken == 0 {
            return Err(TrustError("there is none in it that parses".to_owned()));
        }
        let authorities = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider()).build();
        let authorities = authorities.map_err(|error| TrustError(error.to_string()))?;
        let builder = ClientConfig::builder_with_provider(provider()).with_protocol_versions(&[&version::TLS13]);
        let builder = builder.expect("the provider has suites of TLS 1.3").dangerous();
        let verifier = ServerVerifier { pinned, authorities, provider: provider() };
        let config = builder.with_custom_certificate_verifier(Arc::new(verifier)).with_no_client_auth();
        Ok(Self(Arc::new(config)))
    }

    /// The client's side of a connection to `host`, a name or an address.
    ///
    /// # Errors
    /// It is neither.
    pub fn connect(&self, host: &str) -> io::Result<Duplex> {
        let name = ServerName::try_from(host.to_owned());
        let name =
            name.map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "the host is no name and no address"))?;
        Ok(Duplex(ClientConnection::new(self.0.clone(), name).map_err(io::Error::other)?.into()))
    }
}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Trust")
    }
}

/// Verifies the certificate of a server.
#[derive(Debug)]
struct ServerVerifier {
    pinned: Vec<CertificateDer<'static>>,
    authorities: Arc<WebPkiServerVerifier>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        own: &CertificateDer<'_>,
        issuers: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if self.pinned.iter().any(|pinned| pinned == own) {
            return Ok(ServerCertVerified::assertion());
        }
        self.authorities.verify_server_cert(own, issuers, name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        own: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, own, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        own: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, own, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// One side of a connection. What it has to say is to be taken out whenever something was put or taken in, also behind
/// an error.
pub struct Duplex(Connection);

impl Duplex {
    /// Returns whether it is not established yet.
    pub fn is_handshaking(&self) -> bool {
        self.0.is_handshaking()
    }

    /// Bytes of the other side, sealed; returns how many of them were taken in. What they hold is to be read before
    /// more is.
    ///
    /// # Errors
    /// They are none of this connection, or the other side is not trusted.
    pub fn take_in(&mut self, mut bytes: &[u8]) -> io::Result<usize> {
        let taken = self.0.read_tls(&mut bytes)?;
        self.0.process_new_packets().map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        Ok(taken)
    }

    /// Reads the peer's data into `buffer`; none if there is none yet, 0 bytes at its end.
    ///
    /// # Errors
    /// The connection is broken.
    pub fn read(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        match self.0.reader().read(buffer) {
            Ok(count) => Ok(Some(count)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Accepts as many of `bytes` as fit, and returns their number.
    ///
    /// # Errors
    /// The connection has ended.
    pub fn put(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.writer().write(bytes)
    }

    /// Appends to `out` what is to be sent.
    pub fn take_out(&mut self, out: &mut Vec<u8>) {
        while self.0.wants_write() {
            let written = self.0.write_tls(out);
            debug_assert!(written.is_ok(), "memory takes everything");
        }
    }

    /// Ends the writing direction (RFC 8446 6.1).
    pub fn end(&mut self) {
        self.0.send_close_notify();
    }
}

#[cfg(test)]
#[path = "duplex_tests.rs"]
mod tests;
