//! TLS 1.3 without a proxy in front (RFC 8446), sans-IO: bytes in, bytes out.
//!
//! A client's handshake is rustls' ([`handshake`]; beside it only `duplex` uses that); it ends in a [`TlsState`] of 112
//! bytes, from which the records of the connection are sealed and opened here ([`Records`]). A connection object of a
//! library costs 3.5 to 15 KiB and seals one message at a time; this one costs 280 bytes at most, and data for a client
//! stays plaintext until it is sent. For links between programs, which are few, the library's object is used
//! ([`Duplex`]).
//!
//! Invariants: TLS 1.3 alone, no early data, no renegotiation; secrets are overwritten when they are dropped, and never
//! printed; no peer's bytes cause a panic. It must not know sockets, clocks (the time of day is given to
//! [`TlsServer::set_unix_s`]), files, or the decrypted contents. Randomness is the cryptographic library's own.

mod alert;
#[cfg(feature = "tls")]
mod duplex;
#[cfg(feature = "tls")]
mod handshake;
#[cfg(feature = "tls")]
mod keys;
mod opened;
mod outcome;
#[cfg(feature = "tls")]
mod record;
#[cfg(not(feature = "tls"))]
mod without;

pub use alert::Alert;
#[cfg(feature = "tls")]
pub use duplex::{Acceptor, Duplex, Trust, TrustError};
#[cfg(feature = "tls")]
pub use handshake::certificate::{Certificate, CertificateError};
#[cfg(feature = "tls")]
pub use handshake::{Handshake, INCOMING_BYTES_MAX, PRICE_NS_RESUMED, TlsServer};
#[cfg(feature = "tls")]
pub use keys::{OVERHEAD_BYTES, PLAIN_BYTES_MAX, RECORD_BYTES_MAX, Suite, TrafficSecret};
pub use opened::{OpenedRecords, ReceiveEnd};
pub use outcome::{Established, HandshakeFailure, HandshakeStep};
#[cfg(feature = "tls")]
pub use record::{RecordDirection, Records, TlsState};
#[cfg(not(feature = "tls"))]
pub use without::{
    Acceptor, Duplex, Handshake, INCOMING_BYTES_MAX, OVERHEAD_BYTES, PLAIN_BYTES_MAX, PRICE_NS_RESUMED,
    RECORD_BYTES_MAX, Records, TlsServer, TlsState, Trust,
};
