//! Handshakes, by rustls; no other file of the crate knows it but the certificates that it chooses from, and `duplex`.
//!
//! A handshake ends in the [`TlsState`] of its connection: the two traffic secrets, which rustls passes to its key log
//! as it derives them, and how many records each has sealed already (tickets are records). Nothing of rustls outlives
//! it.
//!
//! Invariants: rustls is given no record after the client's Finished, so it never holds data; the memory held for a
//! client's handshake is bounded by [`INCOMING_BYTES_MAX`]; the time is the last one given to
//! [`TlsServer::set_unix_s`].

pub(super) mod certificate;
mod preference;
mod tickets;

use self::certificate::{Certificate, CertificateError};
use self::preference::prefers_chacha20;
use self::tickets::{ROTATED_EVERY_S, SessionTickets};
use super::alert::Alert;
use super::keys::{HEADER_BYTES, PLAIN_BYTES_MAX, SEALED_BYTES_MAX, Suite, TrafficSecret};
use super::outcome::{Established, HandshakeFailure, HandshakeStep};
use super::record::{RecordDirection, TlsState};
use rustls::crypto::aws_lc_rs::{self, cipher_suite};
use rustls::pki_types::UnixTime;
use rustls::server::{
    ClientHello, ProducesTickets, ResolvesServerCert, ServerConnectionData, UnbufferedServerConnection,
};
use rustls::sign::CertifiedKey;
use rustls::time_provider::TimeProvider;
use rustls::unbuffered::{ConnectionState, EncodeError, EncodeTlsData, InsufficientSizeError, UnbufferedStatus};
use rustls::{
    AlertDescription, CipherSuite, Error, HandshakeKind, KeyLog, PeerMisbehaved, ServerConfig, SignatureScheme, version,
};
use std::cell::RefCell;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The most bytes held for a client before its handshake: the largest ClientHello, and the start of a record after it.
pub const INCOMING_BYTES_MAX: usize = 16 * 1024 + 512;

const TOO_LONG_RECORD: &str = "its records are too long";

/// The cost of a resumed handshake in nanoseconds, measured as [`Certificate::price_ns`] was.
pub const PRICE_NS_RESUMED: u64 = 112_000;

/// The one protocol that is spoken inside.
const ALPN: &[u8] = b"http/1.1";

/// The answer to plain HTTP at this listener, in plain HTTP.
const SPEAK_TLS: &[u8] =
    b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: 45\r\n\
    connection: close\r\n\r\nthis port speaks TLS: use https:// or wss://\n";

/// The time of day as it was told last.
#[derive(Debug, Default)]
struct Time(AtomicU64);

impl Time {
    fn unix_s(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl TimeProvider for Time {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs(self.unix_s())))
    }
}

/// The settings of handshakes, which differ in the choice among the suites that a client offers.
#[derive(Clone)]
struct Configs {
    /// AES-128 if it is offered.
    by_cost: Arc<ServerConfig>,
    /// The client's first.
    as_offered: Arc<ServerConfig>,
}

/// The certificates and ticket keys for handshakes. Cheap to clone.
#[derive(Clone)]
pub struct TlsServer {
    configs: Configs,
    certificates: Arc<[Certificate]>,
    ticketer: Arc<Ticketer>,
}

impl TlsServer {
    /// A server with these certificates; clients that name no host, or an unknown one, get the first. `unix_s` is the
    /// time of day.
    ///
    /// # Errors
    /// There is no certificate.
    pub fn new(certificates: Vec<Certificate>, unix_s: u64) -> Result<Self, CertificateError> {
        let time = Arc::new(Time(AtomicU64::new(unix_s)));
        Self::with(certificates, Arc::new(Ticketer { tickets: SessionTickets::default(), time }))
    }

    /// The same server with other certificates: tickets that were given out stay good.
    ///
    /// # Errors
    /// There is no certificate.
    pub fn with_certificates(&self, certificates: Vec<Certificate>) -> Result<Self, CertificateError> {
        Self::with(certificates, self.ticketer.clone())
    }

    fn with(certificates: Vec<Certificate>, ticketer: Arc<Ticketer>) -> Result<Self, CertificateError> {
        if certificates.is_empty() {
            return Err(CertificateError::None);
        }
        let certificates: Arc<[Certificate]> = certificates.into();
        let by_cost = Arc::new(config(true, certificates.clone(), ticketer.clone()));
        let as_offered = Arc::new(config(false, certificates.clone(), ticketer.clone()));
        Ok(Self { configs: Configs { by_cost, as_offered }, certificates, ticketer })
    }

    /// Makes the calling thread ready for handshakes: where a thread asks aws-lc for random bytes for the first time,
    /// entropy is gathered from the jitter of the processor, which takes up to 30 ms. In a turn, all clients would wait
    /// for that.
    pub fn prepare_thread(&self) {
        let mut bytes = [0; 32];
        // Where there are none, handshakes fail, and say so.
        let _ = ::aws_lc_rs::rand::fill(&mut bytes);
    }

    /// The time of day, for tickets.
    pub fn set_unix_s(&self, unix_s: u64) {
        self.ticketer.time.0.store(unix_s, Ordering::Relaxed);
    }

    /// Its certificates.
    pub fn certificates(&self) -> &[Certificate] {
        &self.certificates
    }

    /// The cost of its most expensive handshake, in nanoseconds of a core: clients choose among the certificates.
    pub fn price_ns(&self) -> u64 {
        self.certificates.iter().map(Certificate::price_ns).max().unwrap_or(0)
    }

    /// Begins a handshake.
    #[doc(hidden)]
    pub fn handshake(&self) -> Handshake {
        Handshake {
            stage: HandshakeStage::Begins(self.configs.clone()),
            incoming: Vec::new(),
            fed: 0,
            has_answered: false,
            secrets: HandshakeSecrets::default(),
        }
    }
}

impl fmt::Debug for TlsServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsServer").field("certificates", &self.certificates).finish()
    }
}

fn config(by_cost: bool, certificates: Arc<[Certificate]>, ticketer: Arc<Ticketer>) -> ServerConfig {
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites = vec![
        cipher_suite::TLS13_AES_128_GCM_SHA256,
        cipher_suite::TLS13_AES_256_GCM_SHA384,
        cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    ];
    let builder = ServerConfig::builder_with_details(Arc::new(provider), ticketer.time.clone());
    let mut config = builder
        .with_protocol_versions(&[&version::TLS13])
        .expect("the provider has suites of TLS 1.3")
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(CertificateResolver(certificates)));
    config.ignore_client_order = by_cost;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.ticketer = ticketer;
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    // A browser has one connection to us at a time, and takes it up with one ticket.
    config.send_tls13_tickets = 1;
    config.max_early_data_size = 0;
    config.key_log = Arc::new(SecretLog);
    config.enable_secret_extraction = true;
    config
}

/// A handshake that goes on.
pub struct Handshake {
    stage: HandshakeStage,
    /// Bytes received and not yet processed.
    incoming: Vec<u8>,
    /// How much of it rustls has seen.
    fed: usize,
    /// Keys were agreed on: from there on an alert in the plain says nothing to the client.
    has_answered: bool,
    secrets: HandshakeSecrets,
}

enum HandshakeStage {
    /// Nothing came yet, or not enough to tell with which settings it goes on.
    Begins(Configs),
    /// rustls has it.
    Goes(Box<UnbufferedServerConnection>),
    /// It has ended.
    Over,
}

impl HandshakeStage {
    /// With the settings for a client that begins so.
    fn begin(configs: &Configs, prefers_chacha20: bool) -> Self {
        let config = if prefers_chacha20 { &configs.as_offered } else { &configs.by_cost };
        let connection = UnbufferedServerConnection::new(config.clone());
        connection.map_or(Self::Over, |connection| Self::Goes(Box::new(connection)))
    }
}

impl Handshake {
    /// Bytes of the client; what it is to be sent is appended to `out`, whatever the answer is.
    pub fn receive(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> HandshakeStep {
        self.incoming.extend_from_slice(bytes);
        let before = out.len();
        if let HandshakeStage::Begins(configs) = &self.stage {
            match speaks_http(&self.incoming) {
                Some(true) => {
                    out.extend_from_slice(SPEAK_TLS);
                    return self.fail(None, false, "it speaks plain HTTP".into());
                }
                Some(false) => {}
                None => return HandshakeStep::Goes { has_answered: false },
            }
            let is_too_long = next_record(&self.incoming).is_some_and(|record| record.is_too_long);
            match prefers_chacha20(&self.incoming) {
                Some(prefers_chacha20) => self.stage = HandshakeStage::begin(configs, prefers_chacha20),
                None if is_too_long => return self.refuse(Alert::RECORD_OVERFLOW, TOO_LONG_RECORD, out),
                None => return HandshakeStep::Goes { has_answered: false },
            }
        }
        loop {
            let Some(record) = next_record(&self.incoming[self.fed..]) else {
                if self.incoming.len() > INCOMING_BYTES_MAX {
                    return self.refuse(Alert::ILLEGAL_PARAMETER, "its messages are too long", out);
                }
                return HandshakeStep::Goes { has_answered: out.len() > before };
            };
            if record.is_too_long {
                return self.refuse(Alert::RECORD_OVERFLOW, TOO_LONG_RECORD, out);
            }
            self.fed += record.len;
            if let Err(error) = self.advance(out) {
                return self.explain(error, before, out);
            }
            self.has_answered |= out.len() > before;
            if matches!(&self.stage, HandshakeStage::Goes(connection) if !connection.is_handshaking()) {
                return self.end();
            }
            if !record.is_whole {
                // Only its head was looked at: nothing too long is waited for.
                self.fed -= record.len;
                return HandshakeStep::Goes { has_answered: out.len() > before };
            }
        }
    }

    /// Bytes of the client that came early: they are handled with the next ones.
    pub fn hold(&mut self, bytes: &[u8]) {
        self.incoming.extend_from_slice(bytes);
    }

    /// The end that an error of rustls' is, which has said its alert behind `before`; not for every error there is.
    fn explain(&mut self, error: Error, before: usize, out: &mut Vec<u8>) -> HandshakeStep {
        if let Error::AlertReceived(alert) = error {
            return self.fail(Some(Alert(alert.into())), true, "the client gave up".into());
        }
        let was_said = out.len() > before;
        match plain_alert(&out[before..]).or_else(|| alert_for(&error)) {
            Some(alert) if !was_said => self.refuse(alert, &error.to_string(), out),
            alert => self.fail(alert, false, error.to_string()),
        }
    }

    /// Frees what it holds: nothing more comes of it.
    pub fn forget(&mut self) {
        (self.stage, self.incoming, self.fed) = (HandshakeStage::Over, Vec::new(), 0);
    }

    /// The heap bytes that it holds in total.
    pub fn heap_bytes(&self) -> usize {
        // Measured: what rustls holds for a connection that shakes hands.
        const RUSTLS_BYTES: usize = 3500;
        let by_rustls = if matches!(self.stage, HandshakeStage::Goes(_)) { RUSTLS_BYTES } else { 0 };
        by_rustls + self.incoming.capacity()
    }

    /// Lets rustls look at what it was fed, until it wants more.
    fn advance(&mut self, out: &mut Vec<u8>) -> Result<(), Error> {
        let HandshakeStage::Goes(connection) = &mut self.stage else { return Err(Error::HandshakeNotComplete) };
        loop {
            CAUGHT.with_borrow_mut(|caught| *caught = HandshakeSecrets::default());
            let UnbufferedStatus { discard, state } = connection.process_tls_records(&mut self.incoming[..self.fed]);
            let goes_on = match state {
                Ok(ConnectionState::EncodeTlsData(mut data)) => encode(&mut data, out),
                Ok(ConnectionState::TransmitTlsData(data)) => {
                    data.done();
                    true
                }
                Ok(ConnectionState::BlockedHandshake | ConnectionState::WriteTraffic(_)) => false,
                Ok(ConnectionState::PeerClosed | ConnectionState::Closed) => {
                    return Err(Error::AlertReceived(AlertDescription::CloseNotify));
                }
                Ok(_) => return Err(Error::General("there is data in a handshake".into())),
                Err(error) => {
                    last_words(connection, out);
                    return Err(error);
                }
            };
            CAUGHT.with_borrow_mut(|caught| self.secrets.take_from(caught));
            self.incoming.drain(..discard);
            self.fed -= discard;
            if !goes_on {
                return Ok(());
            }
        }
    }

    fn end(&mut self) -> HandshakeStep {
        let established = match std::mem::replace(&mut self.stage, HandshakeStage::Over) {
            HandshakeStage::Goes(connection) => established(*connection, &mut self.secrets),
            HandshakeStage::Begins(_) | HandshakeStage::Over => None,
        };
        let Some((state, is_resumed)) = established else {
            return self.fail(None, false, "rustls did not tell the secrets".into());
        };
        let rest = self.incoming.split_off(self.fed);
        HandshakeStep::Done(Box::new(Established { state, rest, is_resumed }))
    }

    /// Sends an alert in plaintext, if the client can still read that, and gives up.
    fn refuse(&mut self, alert: Alert, why: &str, out: &mut Vec<u8>) -> HandshakeStep {
        if !self.has_answered {
            out.extend_from_slice(&[21, 3, 3, 0, 2, 2, alert.0]);
        }
        self.fail(Some(alert), false, why.into())
    }

    fn fail(&mut self, alert: Option<Alert>, by_client: bool, why: String) -> HandshakeStep {
        self.forget();
        HandshakeStep::Failed(HandshakeFailure { alert, by_client, why })
    }
}

/// Appends what rustls has to say; returns whether that could be done.
fn encode(data: &mut EncodeTlsData<'_, ServerConnectionData>, out: &mut Vec<u8>) -> bool {
    let needed = match data.encode(&mut []) {
        Err(EncodeError::InsufficientSize(InsufficientSizeError { required_size })) => required_size,
        _ => 0,
    };
    let start = out.len();
    out.resize(start + needed, 0);
    data.encode(&mut out[start..]).is_ok()
}

/// The alert of a connection that has failed. It is given no further input, and asked only while it has output: with a
/// message begun it would look for the rest, which will not come.
fn last_words(connection: &mut UnbufferedServerConnection, out: &mut Vec<u8>) {
    while connection.wants_write() {
        let Ok(ConnectionState::EncodeTlsData(mut data)) = connection.process_tls_records(&mut []).state else {
            return;
        };
        if !encode(&mut data, out) {
            return;
        }
    }
}

/// The alert for an error, if it was sent encrypted.
fn alert_for(error: &Error) -> Option<Alert> {
    let alert = match error {
        Error::InvalidMessage(message) => AlertDescription::from(*message),
        Error::InappropriateMessage { .. } | Error::InappropriateHandshakeMessage { .. } => {
            AlertDescription::UnexpectedMessage
        }
        Error::NoApplicationProtocol => AlertDescription::NoApplicationProtocol,
        Error::DecryptError => AlertDescription::BadRecordMac,
        Error::PeerSentOversizedRecord => AlertDescription::RecordOverflow,
        // RFC 8446 5.1: no other record stands inside of a message.
        Error::PeerMisbehaved(PeerMisbehaved::MessageInterleavedWithHandshakeMessage) => {
            AlertDescription::UnexpectedMessage
        }
        Error::PeerMisbehaved(_) => AlertDescription::IllegalParameter,
        // RFC 8446 4.2.3: no signature in common, which shows only behind the ServerHello.
        Error::PeerIncompatible(_) => AlertDescription::HandshakeFailure,
        _ => return None,
    };
    Some(Alert(alert.into()))
}

fn established(connection: UnbufferedServerConnection, secrets: &mut HandshakeSecrets) -> Option<(TlsState, bool)> {
    let is_resumed = connection.handshake_kind() == Some(HandshakeKind::Resumed);
    let suite = match connection.negotiated_cipher_suite()?.suite() {
        CipherSuite::TLS13_AES_128_GCM_SHA256 => Suite::Aes128Gcm,
        CipherSuite::TLS13_AES_256_GCM_SHA384 => Suite::Aes256Gcm,
        CipherSuite::TLS13_CHACHA20_POLY1305_SHA256 => Suite::ChaCha20Poly1305,
        _ => return None,
    };
    let (extracted, _) = connection.dangerous_into_kernel_connection().ok()?;
    let send = RecordDirection { secret: secrets.server.take()?, sequence: extracted.tx.0 };
    let receive = RecordDirection { secret: secrets.client.take()?, sequence: extracted.rx.0 };
    Some((TlsState { suite, send, receive }, is_resumed))
}

/// The next input for rustls.
struct NextRecord {
    len: usize,
    is_whole: bool,
    is_too_long: bool,
}

/// The first record of `bytes`, or its head if it is not whole.
fn next_record(bytes: &[u8]) -> Option<NextRecord> {
    let header = bytes.first_chunk::<HEADER_BYTES>()?;
    let inside = usize::from(u16::from_be_bytes([header[3], header[4]]));
    let is_whole = bytes.len() >= HEADER_BYTES + inside;
    // RFC 8446 5.1 and 5.2. What is no record of TLS is for rustls to say.
    let is_too_long = match header[0] {
        23 => inside > SEALED_BYTES_MAX,
        20..=22 => inside > PLAIN_BYTES_MAX,
        _ => false,
    };
    Some(NextRecord { len: HEADER_BYTES + if is_whole { inside } else { 0 }, is_whole, is_too_long })
}

/// Returns whether a client begins as one that speaks HTTP. No record begins with a letter. None: it may yet.
fn speaks_http(bytes: &[u8]) -> Option<bool> {
    const METHODS: [&[u8; 4]; 8] = [b"GET ", b"HEAD", b"POST", b"PUT ", b"DELE", b"OPTI", b"PATC", b"CONN"];
    let start = &bytes[..bytes.len().min(4)];
    let may_be = METHODS.iter().any(|method| method.starts_with(start));
    if may_be && start.len() < 4 { None } else { Some(may_be) }
}

/// The alert at the end of what was sent, if it went out in the plain.
fn plain_alert(sent: &[u8]) -> Option<Alert> {
    let (_, record) = sent.split_last_chunk::<7>()?;
    (record[0] == 21 && record[3..5] == [0, 2]).then_some(Alert(record[6]))
}

/// Chooses a certificate by the host that a client names.
#[derive(Debug)]
pub(super) struct CertificateResolver(pub Arc<[Certificate]>);

impl ResolvesServerCert for CertificateResolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.choose(hello.server_name(), hello.signature_schemes()).map(|certificate| certificate.key.clone())
    }
}

impl CertificateResolver {
    /// Of those that sign as the client understands: the first that has that very host's name; else the first with a
    /// wildcard for it; else the first. Else the first at all, with which the handshake fails as RFC 8446 4.2.3 asks
    /// (`handshake_failure`).
    fn choose(&self, name: Option<&str>, schemes: &[SignatureScheme]) -> Option<&Certificate> {
        let signs = |certificate: &&Certificate| certificate.can_sign(schemes);
        // RFC 6066 3: without the dot at its end, which some clients send all the same.
        let name = name.map(|name| name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase());
        let find =
            |is_it: &dyn Fn(&Certificate) -> bool| self.0.iter().filter(signs).find(|certificate| is_it(certificate));
        let named = name.and_then(|name| {
            find(&|certificate| certificate.names().any(|own| own == name))
                .or_else(|| find(&|certificate| certificate.is_for(&name)))
        });
        named.or_else(|| self.0.iter().find(signs)).or_else(|| self.0.first())
    }
}

#[derive(Debug)]
struct Ticketer {
    tickets: SessionTickets,
    time: Arc<Time>,
}

impl ProducesTickets for Ticketer {
    fn enabled(&self) -> bool {
        true
    }

    /// As long as the key of a ticket opens that is sealed just before it is replaced.
    fn lifetime(&self) -> u32 {
        ROTATED_EVERY_S as u32
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.tickets.seal(plain, self.time.unix_s())
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        self.tickets.open(ticket, self.time.unix_s())
    }
}

/// The secrets of the handshake that this thread advances: rustls tells them by a key log, which is shared by all.
#[derive(Default)]
struct HandshakeSecrets {
    client: Option<TrafficSecret>,
    server: Option<TrafficSecret>,
}

impl HandshakeSecrets {
    fn take_from(&mut self, other: &mut Self) {
        self.client = other.client.take().or(self.client.take());
        self.server = other.server.take().or(self.server.take());
    }
}

thread_local! {
    static CAUGHT: RefCell<HandshakeSecrets> = RefCell::default();
}

#[derive(Debug)]
struct SecretLog;

impl KeyLog for SecretLog {
    fn log(&self, label: &str, _client_random: &[u8], secret: &[u8]) {
        CAUGHT.with_borrow_mut(|caught| match label {
            "CLIENT_TRAFFIC_SECRET_0" => caught.client = TrafficSecret::new(secret),
            "SERVER_TRAFFIC_SECRET_0" => caught.server = TrafficSecret::new(secret),
            _ => {}
        });
    }
}

#[cfg(test)]
#[path = "handshake_tests.rs"]
mod tests;
