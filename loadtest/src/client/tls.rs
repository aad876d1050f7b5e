//! TLS 1.3 as a client speaks it: rustls, between a connection's bytes and its socket.
//!
//! Invariants: a certificate is checked only where an authority is given, for what is measured here is mostly our own;
//! sessions are resumed only when told so, and how many were is counted. It knows no frames.

use std::collections::VecDeque;
use std::io::{self, BufRead, ErrorKind, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, ensure};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ClientSessionStore, Resumption, Tls12ClientSessionValue, Tls13ClientSessionValue};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, HandshakeKind, NamedGroup, RootCertStore, SignatureScheme,
    version,
};

/// Sessions that are remembered: more than connections are on their way at a time.
const SESSIONS_MAX: usize = 4096;

/// The sessions of one server that may be resumed, each once. The store that comes with rustls remembers eight of a
/// server, so that of many connections at a time most would shake hands in full.
#[derive(Debug, Default)]
struct Sessions(Mutex<Resumable>);

#[derive(Debug, Default)]
struct Resumable {
    group: Option<NamedGroup>,
    tickets: VecDeque<Tls13ClientSessionValue>,
}

impl Sessions {
    fn with<T>(&self, look: impl FnOnce(&mut Resumable) -> T) -> T {
        look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl ClientSessionStore for Sessions {
    fn set_kx_hint(&self, _: ServerName<'static>, group: NamedGroup) {
        self.with(|sessions| sessions.group = Some(group));
    }

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        self.with(|sessions| sessions.group)
    }

    fn insert_tls13_ticket(&self, _: ServerName<'static>, ticket: Tls13ClientSessionValue) {
        self.with(|sessions| {
            sessions.tickets.truncate(SESSIONS_MAX - 1);
            sessions.tickets.push_front(ticket);
        });
    }

    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.with(|sessions| sessions.tickets.pop_front())
    }

    // TLS 1.2 is not offered.
    fn set_tls12_session(&self, _: ServerName<'static>, _: Tls12ClientSessionValue) {}

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        None
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {}
}

/// How TLS is spoken with a server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct TlsOptions {
    /// The certificate that must have signed the server's; none: any certificate is accepted.
    pub authority: Option<PathBuf>,
    /// X25519 alone is offered, instead of X25519MLKEM768 first, as browsers do.
    pub classic: bool,
    /// Sessions are resumed; else each handshake is a full one.
    pub resumes: bool,
}

/// State shared by all connections to a server.
#[derive(Debug, Clone)]
pub(crate) struct Tls {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

impl Tls {
    /// To the server of this name or address, in this manner.
    pub(crate) fn new(host: &str, tls_options: &TlsOptions) -> anyhow::Result<Self> {
        let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned())
            .with_context(|| format!("`{host}` is no name that a certificate can have"))?;
        let mut provider = aws_lc_rs::default_provider();
        if tls_options.classic {
            provider.kx_groups = vec![aws_lc_rs::kx_group::X25519];
        }
        let provider = Arc::new(provider);
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&version::TLS13])
            .context("this build of rustls has no TLS 1.3")?;
        let mut config = match &tls_options.authority {
            Some(file) => builder.with_root_certificates(roots(file)?).with_no_client_auth(),
            None => builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(Unchecked(provider)))
                .with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config.resumption = match tls_options.resumes {
            true => Resumption::store(Arc::new(Sessions::default())),
            false => Resumption::disabled(),
        };
        Ok(Self { config: Arc::new(config), name })
    }

    /// A connection that has not begun.
    pub(crate) fn session(&self) -> io::Result<Session> {
        let mut connection = ClientConnection::new(self.config.clone(), self.name.clone()).map_err(io::Error::other)?;
        // The caller bounds the queued bytes.
        connection.set_buffer_limit(None);
        Ok(Session(Box::new(connection)))
    }
}

fn roots(file: &Path) -> anyhow::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    let context = || format!("reading certificates of {}", file.display());
    for certificate in CertificateDer::pem_file_iter(file).with_context(context)? {
        roots.add(certificate.with_context(context)?).with_context(context)?;
    }
    ensure!(!roots.is_empty(), "{} holds no certificate", file.display());
    Ok(roots)
}

/// TLS on one connection.
#[derive(Debug)]
pub(crate) struct Session(Box<ClientConnection>);

impl Session {
    /// Seals `bytes` after those that wait, once the handshake is over, and sends as much as the socket takes. `bytes`
    /// is empty afterwards.
    pub(crate) fn send(&mut self, bytes: &mut Vec<u8>, mut stream: &TcpStream) -> io::Result<()> {
        self.0.writer().write_all(bytes)?;
        bytes.clear();
        while self.0.wants_write() {
            match self.0.write_tls(&mut stream) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Returns whether something waits for the socket.
    pub(crate) fn has_output(&self) -> bool {
        self.0.wants_write()
    }

    /// Opens what came, and hands it on in pieces.
    pub(crate) fn receive(
        &mut self,
        mut bytes: &[u8],
        mut take: impl FnMut(&[u8]) -> Result<(), String>,
    ) -> Result<(), String> {
        while !bytes.is_empty() {
            self.0.read_tls(&mut bytes).map_err(|error| format!("TLS: {error}"))?;
            self.0.process_new_packets().map_err(|error| format!("TLS: {error}"))?;
            let mut reader = self.0.reader();
            // Nothing more, or the end of the session: that of the connection follows.
            while let Ok(plain) = reader.fill_buf()
                && !plain.is_empty()
            {
                take(plain)?;
                let count = plain.len();
                reader.consume(count);
            }
        }
        Ok(())
    }

    /// Returns whether the session was resumed, as far as is known.
    pub(crate) fn is_resumed(&self) -> bool {
        self.0.handshake_kind() == Some(HandshakeKind::Resumed)
    }

    /// Sends the end of the data, if the socket takes it.
    pub(crate) fn say_goodbye(&mut self, stream: &TcpStream) {
        self.0.send_close_notify();
        // The connection ends either way.
        let _ = self.send(&mut Vec::new(), stream);
    }
}

/// Takes any certificate, but checks that the server has its key.
#[derive(Debug)]
struct Unchecked(Arc<CryptoProvider>);

impl ServerCertVerifier for Unchecked {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not offered".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
