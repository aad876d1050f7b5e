//! The module without the feature `tls`: types that have no values, so that shards need no `cfg`.

use super::alert::Alert;
use super::opened::OpenedRecords;
use super::outcome::HandshakeStep;
use std::io::{self, IoSlice};

/// A type without values. Private, so that code outside is not warned about unreachable statements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Never {}

/// As with the feature; not enforced here.
pub const PLAIN_BYTES_MAX: usize = 1 << 14;
/// As with the feature.
pub const OVERHEAD_BYTES: usize = 22;
/// Nothing is carried from one read to the next.
pub const RECORD_BYTES_MAX: usize = 0;
/// As with the feature.
pub const INCOMING_BYTES_MAX: usize = 16 * 1024;
/// As with the feature.
pub const PRICE_NS_RESUMED: u64 = 0;

/// There is none.
#[derive(Debug, Clone)]
pub struct TlsServer(Never);

impl TlsServer {
    /// Not called.
    pub fn set_unix_s(&self, _: u64) {
        match self.0 {}
    }

    /// Not called.
    pub fn prepare_thread(&self) {
        match self.0 {}
    }

    /// Not called.
    pub fn certificates(&self) -> &[Certificate] {
        match self.0 {}
    }

    /// Not called.
    pub fn price_ns(&self) -> u64 {
        match self.0 {}
    }

    /// Not called.
    pub fn handshake(&self) -> Handshake {
        match self.0 {}
    }
}

/// There is none.
#[derive(Debug, Clone)]
pub struct Certificate(Never);

impl Certificate {
    /// Not called.
    pub fn not_after_unix_s(&self) -> u64 {
        match self.0 {}
    }
}

/// There is none.
pub struct Handshake(Never);

impl Handshake {
    /// Not called.
    pub fn receive(&mut self, _: &[u8], _: &mut Vec<u8>) -> HandshakeStep {
        match self.0 {}
    }

    /// Not called.
    pub fn hold(&mut self, _: &[u8]) {
        match self.0 {}
    }

    /// Not called.
    pub fn forget(&mut self) {
        match self.0 {}
    }

    /// Not called.
    pub fn heap_bytes(&self) -> usize {
        match self.0 {}
    }
}

/// There is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsState(Never);

/// There is none.
pub struct Records(Never);

impl Records {
    /// Not called.
    pub fn new(state: TlsState) -> Self {
        match state.0 {}
    }

    /// Not called.
    pub fn open(&mut self, _: &mut [u8], _: u32) -> OpenedRecords {
        match self.0 {}
    }

    /// Not called.
    pub fn seal(&mut self, _: &[IoSlice<'_>], _: &mut Vec<u8>) {
        match self.0 {}
    }

    /// Not called.
    pub fn seal_alert(&mut self, _: Alert, _: &mut Vec<u8>) {
        match self.0 {}
    }

    /// Not called.
    pub fn seal_due(&mut self, _: &mut Vec<u8>) {
        match self.0 {}
    }
}

/// There is none.
#[derive(Debug, Clone)]
pub struct Acceptor(Never);

impl Acceptor {
    /// Not called.
    pub fn accept(&self) -> io::Result<Duplex> {
        match self.0 {}
    }
}

/// There is none.
#[derive(Debug, Clone)]
pub struct Trust(Never);

impl Trust {
    /// Not called.
    pub fn connect(&self, _: &str) -> io::Result<Duplex> {
        match self.0 {}
    }
}

/// There is none.
pub struct Duplex(Never);

impl Duplex {
    /// Not called.
    pub fn is_handshaking(&self) -> bool {
        match self.0 {}
    }

    /// Not called.
    pub fn take_in(&mut self, _: &[u8]) -> io::Result<usize> {
        match self.0 {}
    }

    /// Not called.
    pub fn read(&mut self, _: &mut [u8]) -> io::Result<Option<usize>> {
        match self.0 {}
    }

    /// Not called.
    pub fn put(&mut self, _: &[u8]) -> io::Result<usize> {
        match self.0 {}
    }

    /// Not called.
    pub fn take_out(&mut self, _: &mut Vec<u8>) {
        match self.0 {}
    }

    /// Not called.
    pub fn end(&mut self) {
        match self.0 {}
    }
}
