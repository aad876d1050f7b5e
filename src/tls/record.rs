//! The records of an established connection (RFC 8446 section 5), in both directions.
//!
//! Bytes in and out: no sockets, no clock (the time is an argument). Received records are decrypted in place; records
//! to send are appended to those that the caller has already sealed, and must leave in that order.
//!
//! Invariants: after an end in either direction, nothing of the peer's is decrypted any more; a KeyUpdate that requests
//! one is answered before the next data, once however often it was requested; a peer that sends empty records or new
//! keys without end is disconnected. The caller keeps an incomplete record ([`OpenedRecords::rest`]).

use super::alert::Alert;
use super::keys::{ContentType, DirectionKeys, HEADER_BYTES, PLAIN_BYTES_MAX, SEALED_BYTES_MAX, Suite, TrafficSecret};
use super::opened::{OpenedRecords, ReceiveEnd};
use smallvec::SmallVec;
use std::io::IoSlice;

/// Our own keys are renewed after so many records. AES-GCM stays within its bounds for 2^24.5 full ones (RFC 8446 5.5).
const RECORDS_MAX: u64 = 1 << 23;

/// So many records in a row may bring nothing.
const EMPTY_RECORDS_MAX: u8 = 32;

/// A peer may renew its keys so often within a second: one update each 100 ms, or ten at once.
const KEY_UPDATES_PER_S_MAX: u8 = 10;

/// The one message that may come of the handshake once it is over.
const KEY_UPDATE: u8 = 24;

/// One direction of an established connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordDirection {
    /// The secret from which its keys follow.
    pub secret: TrafficSecret,
    /// How many records were sealed with them.
    pub sequence: u64,
}

/// All that an established connection is: 112 bytes that another process could go on with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsState {
    /// The cipher.
    pub suite: Suite,
    /// The sending direction.
    pub send: RecordDirection,
    /// The receiving direction.
    pub receive: RecordDirection,
}

/// See the module.
pub struct Records {
    send: DirectionKeys,
    receive: DirectionKeys,
    suite: Suite,
    /// How much has come of a handshake message that is not whole: of a KeyUpdate, and what came was right.
    message_len: u8,
    empty_records: u8,
    key_updates: u8,
    key_updates_s: u32,
    is_answer_due: bool,
    has_ended: bool,
}

impl Records {
    /// Goes on where `state` says.
    pub fn new(state: TlsState) -> Self {
        Self {
            send: DirectionKeys::new(state.suite, state.send.secret, state.send.sequence),
            receive: DirectionKeys::new(state.suite, state.receive.secret, state.receive.sequence),
            suite: state.suite,
            message_len: 0,
            empty_records: 0,
            key_updates: 0,
            key_updates_s: 0,
            is_answer_due: false,
            has_ended: false,
        }
    }

    /// Where another could go on, between records.
    pub fn state(&self) -> TlsState {
        let direction =
            |half: &DirectionKeys| RecordDirection { secret: half.secret().clone(), sequence: half.sequence() };
        TlsState { suite: self.suite, send: direction(&self.send), receive: direction(&self.receive) }
    }

    /// Appends `parts`, joined, in as many records as they need.
    pub fn seal(&mut self, parts: &[IoSlice<'_>], into: &mut Vec<u8>) {
        let mut taken = SmallVec::<[IoSlice<'_>; 16]>::new();
        let mut room = PLAIN_BYTES_MAX;
        for part in parts {
            let mut part: &[u8] = part;
            while part.len() > room {
                let (now, later) = part.split_at(room);
                taken.push(IoSlice::new(now));
                self.seal_one(ContentType::ApplicationData, &taken, into);
                taken.clear();
                (part, room) = (later, PLAIN_BYTES_MAX);
            }
            if !part.is_empty() {
                taken.push(IoSlice::new(part));
                room -= part.len();
            }
        }
        if !taken.is_empty() {
            self.seal_one(ContentType::ApplicationData, &taken, into);
        }
    }

    /// Appends an alert; the last that is sealed.
    pub fn seal_alert(&mut self, alert: Alert, into: &mut Vec<u8>) {
        // RFC 8446 6: the level says nothing any more; these are what others send.
        let level = if alert == Alert::CLOSE_NOTIFY { 1 } else { 2 };
        self.seal_one(ContentType::Alert, &[IoSlice::new(&[level, alert.0])], into);
    }

    /// Appends the answer to a KeyUpdate that asked for one, if it is due.
    pub fn seal_due(&mut self, into: &mut Vec<u8>) {
        if std::mem::take(&mut self.is_answer_due) {
            self.renew(into);
        }
    }

    fn seal_one(&mut self, content: ContentType, parts: &[IoSlice<'_>], into: &mut Vec<u8>) {
        // RFC 8446 4.6.3: the answer comes before the next data.
        self.seal_due(into);
        if self.send.sequence() >= RECORDS_MAX {
            self.renew(into);
        }
        self.send.seal(content, parts, into);
    }

    /// RFC 8446 4.6.3: says with the old keys that new ones follow. Asks for nothing: the peer knows its own limits.
    fn renew(&mut self, into: &mut Vec<u8>) {
        self.send.seal(ContentType::Handshake, &[IoSlice::new(&[KEY_UPDATE, 0, 0, 1, 0])], into);
        self.send.update();
    }

    /// Opens all whole records of `bytes`, in place, and joins their data at its start. `now_s` is a clock of seconds.
    pub fn open(&mut self, bytes: &mut [u8], now_s: u32) -> OpenedRecords {
        let mut opened = OpenedRecords { records: 0, plain: 0, rest: 0, is_answer_due: false, ended: None };
        let mut at = 0;
        while !self.has_ended && at < bytes.len() {
            match self.open_one(&mut bytes[opened.plain..], at - opened.plain, now_s) {
                Ok(None) => {
                    opened.rest = bytes.len() - at;
                    break;
                }
                Ok(Some(record)) => {
                    opened.records += 1;
                    at += record.bytes;
                    opened.plain += record.plain;
                    opened.ended = record.ended;
                }
                Err(alert) => opened.ended = Some(ReceiveEnd::Broken(alert)),
            }
            self.has_ended |= opened.ended.is_some();
        }
        opened.is_answer_due = self.is_answer_due;
        opened
    }

    /// Opens the record that begins `at` bytes into `bytes`, if it is whole, and moves its data to the start of them.
    fn open_one(&mut self, bytes: &mut [u8], at: usize, now_s: u32) -> Result<Option<Record>, Alert> {
        let Some(&header) = bytes[at..].first_chunk::<HEADER_BYTES>() else {
            // A wrong type is reported at once.
            return if bytes[at] == ContentType::ApplicationData as u8 {
                Ok(None)
            } else {
                Err(Alert::UNEXPECTED_MESSAGE)
            };
        };
        // RFC 8446 5.1: the version says nothing. Nothing but data, as which all that is sealed goes, follows a
        // handshake.
        let [content, _, _, high, low] = header;
        if content != ContentType::ApplicationData as u8 {
            return Err(Alert::UNEXPECTED_MESSAGE);
        }
        let body_len = usize::from(u16::from_be_bytes([high, low]));
        if body_len > SEALED_BYTES_MAX {
            return Err(Alert::RECORD_OVERFLOW);
        }
        let start = at + HEADER_BYTES;
        let Some(body) = bytes.get_mut(start..start + body_len) else { return Ok(None) };
        let (content, len) = self.receive.open(header, body)?;
        let mut record = Record { bytes: HEADER_BYTES + body_len, plain: 0, ended: None };
        self.count_empty(content, len)?;
        const ALERT: u8 = ContentType::Alert as u8;
        const HANDSHAKE: u8 = ContentType::Handshake as u8;
        const APPLICATION_DATA: u8 = ContentType::ApplicationData as u8;
        match content {
            // RFC 8446 5.1: no other record stands inside of a message.
            ALERT | APPLICATION_DATA if self.message_len > 0 => return Err(Alert::UNEXPECTED_MESSAGE),
            APPLICATION_DATA => {
                bytes.copy_within(start..start + len, 0);
                record.plain = len;
            }
            ALERT => record.ended = told(&bytes[start..start + len])?,
            HANDSHAKE => self.receive_message(&bytes[start..start + len], now_s)?,
            _ => return Err(Alert::UNEXPECTED_MESSAGE),
        }
        Ok(Some(record))
    }

    fn count_empty(&mut self, content: u8, len: usize) -> Result<(), Alert> {
        let has_data = content == ContentType::ApplicationData as u8 && len > 0;
        self.empty_records = if has_data { 0 } else { self.empty_records + 1 };
        if self.empty_records > EMPTY_RECORDS_MAX { Err(Alert::UNEXPECTED_MESSAGE) } else { Ok(()) }
    }

    /// After the handshake only a KeyUpdate may follow (RFC 8446 4.6.3): the server requests no certificate, and
    /// clients send no tickets.
    fn receive_message(&mut self, fragment: &[u8], now_s: u32) -> Result<(), Alert> {
        // RFC 8446 5.1: fragments are not empty.
        if fragment.is_empty() {
            return Err(Alert::UNEXPECTED_MESSAGE);
        }
        for (number, &byte) in fragment.iter().enumerate() {
            let at = self.message_len;
            self.message_len += 1;
            match at {
                0 if byte != KEY_UPDATE => return Err(Alert::UNEXPECTED_MESSAGE),
                // Its length: one byte.
                1 | 2 if byte != 0 => return Err(Alert::DECODE_ERROR),
                3 if byte != 1 => return Err(Alert::DECODE_ERROR),
                4 if byte > 1 => return Err(Alert::ILLEGAL_PARAMETER),
                // RFC 8446 5.1: nothing stands behind a message after which keys change.
                4 if number + 1 < fragment.len() => return Err(Alert::UNEXPECTED_MESSAGE),
                4 => {
                    self.message_len = 0;
                    self.is_answer_due |= byte == 1;
                    return self.update_receive(now_s);
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn update_receive(&mut self, now_s: u32) -> Result<(), Alert> {
        if std::mem::replace(&mut self.key_updates_s, now_s) != now_s {
            self.key_updates = 0;
        }
        self.key_updates += 1;
        if self.key_updates > KEY_UPDATES_PER_S_MAX {
            return Err(Alert::UNEXPECTED_MESSAGE);
        }
        self.receive.update();
        Ok(())
    }
}

struct Record {
    bytes: usize,
    plain: usize,
    ended: Option<ReceiveEnd>,
}

/// The meaning of the peer's alert (RFC 8446 6).
fn told(alert: &[u8]) -> Result<Option<ReceiveEnd>, Alert> {
    match *alert {
        [] => Err(Alert::UNEXPECTED_MESSAGE),
        // RFC 8446 6.1: what does not say an error by itself; close_notify follows.
        [_, said] if Alert(said) == Alert::USER_CANCELED => Ok(None),
        [_, said] if Alert(said) == Alert::CLOSE_NOTIFY => Ok(Some(ReceiveEnd::CloseNotify)),
        // RFC 8446 6.2: any other is an end, whatever its level.
        [_, said] => Ok(Some(ReceiveEnd::Told(Alert(said)))),
        // RFC 8446 5.1: one alert, whole, to a record.
        _ => Err(Alert::DECODE_ERROR),
    }
}

#[cfg(test)]
#[path = "record_tests.rs"]
mod tests;
