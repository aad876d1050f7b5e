//! A client's end of a connection over TLS, which was established before it connects: its secrets follow from its
//! number.

use pushring::internals::tls::{Alert, ReceiveEnd, RecordDirection, Records, Suite, TlsState, TrafficSecret};
use std::io::IoSlice;

/// With so many records behind them keys are renewed.
const RECORDS_MAX: u64 = 1 << 23;

pub struct Sealed {
    ours: TlsState,
    records: Records,
    /// The beginning of a record.
    carried: Vec<u8>,
    has_ended: bool,
}

impl Sealed {
    pub fn new(number: usize) -> Self {
        let suite = [Suite::Aes128Gcm, Suite::Aes256Gcm, Suite::ChaCha20Poly1305][number % 3];
        let direction = |fill: u8| {
            let mut secret = vec![fill; suite.secret_bytes()];
            secret[..8].copy_from_slice(&(number as u64).to_be_bytes());
            // Of every other one either side renews its keys soon.
            let sequence = if number.is_multiple_of(2) { 1 } else { RECORDS_MAX - 1 - number as u64 % 20 };
            RecordDirection { secret: TrafficSecret::new(&secret).unwrap(), sequence }
        };
        let (down, up) = (direction(1), direction(2));
        let ours = TlsState { suite, send: down.clone(), receive: up.clone() };
        let records = Records::new(TlsState { suite, send: up, receive: down });
        Self { ours, records, carried: Vec::new(), has_ended: false }
    }

    /// With what the shard goes on.
    pub fn of_the_shard(&self) -> TlsState {
        self.ours.clone()
    }

    pub fn seal(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        self.records.seal(&[IoSlice::new(bytes)], &mut out);
        out
    }

    pub fn goodbye(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        self.records.seal_alert(Alert::CLOSE_NOTIFY, &mut out);
        out
    }

    /// The completed data, and the number of bytes of an incomplete record after it.
    pub fn open(&mut self, bytes: &[u8]) -> Result<(Vec<u8>, usize), String> {
        if self.has_ended && !bytes.is_empty() {
            return Err("bytes behind close_notify".into());
        }
        self.carried.extend_from_slice(bytes);
        let opened = self.records.open(&mut self.carried, 0);
        match opened.ended {
            None => {}
            Some(ReceiveEnd::CloseNotify) => self.has_ended = true,
            Some(ended) => return Err(format!("a record does not open: {ended:?}")),
        }
        let plain = self.carried[..opened.plain].to_vec();
        self.carried.drain(..self.carried.len() - opened.rest);
        Ok((plain, opened.rest))
    }

    pub fn unfinished(&self) -> usize {
        self.carried.len()
    }

    /// Returns whether nothing more is to come.
    pub fn has_ended(&self) -> bool {
        self.has_ended
    }
}
