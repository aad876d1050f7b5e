//! Records of an established connection: whatever a client seals, or does not, is heard as a second reader hears it,
//! however it is cut; and what we answer is opened by that reader, whose keys follow from RFC 8446 7 by code of its own.

use super::splits::{pieces, splits};
use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Aad, Algorithm, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::hkdf::{self, HKDF_SHA256, HKDF_SHA384};
use pushring::internals::tls::{Alert, ReceiveEnd, RecordDirection, Records, Suite, TlsState, TrafficSecret};
use std::io::IoSlice;

const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const DATA: u8 = 23;

/// Records without data that may come in a row, and key updates within a second: the limits that we document.
const EMPTY_MAX: usize = 32;
const UPDATES_MAX: usize = 10;

/// A byte of settings, then instructions of `[what, length, bytes]`.
pub fn holds(data: &[u8]) {
    let Some((&settings, mut rest)) = data.split_first() else { return };
    let suite = [Suite::Aes128Gcm, Suite::Aes256Gcm, Suite::ChaCha20Poly1305][usize::from(settings % 3)];
    let (mut client, mut wire, mut reader) = (Direction::new(suite, 1), Vec::new(), Reader::default());
    while let [what, len, behind @ ..] = rest {
        let (bytes, behind) = behind.split_at(usize::from(*len).min(behind.len()));
        rest = behind;
        let content = match what & 3 {
            0 => DATA,
            1 => HANDSHAKE,
            2 => ALERT,
            _ => {
                // Not sealed.
                wire.extend_from_slice(bytes);
                reader.is_lost |= !bytes.is_empty();
                continue;
            }
        };
        client.seal(content, bytes, usize::from(what >> 2), &mut wire);
        if reader.hear(content, bytes) {
            client.renew();
        }
    }
    let (heard, end, answers) = open(suite, &wire, &[]);
    if reader.is_lost {
        assert!(heard.starts_with(&reader.heard), "what came before it was heard");
    } else {
        assert_eq!((&heard, end), (&reader.heard, reader.end));
    }
    for cuts in splits(&wire) {
        assert_eq!(open(suite, &wire, &cuts), (heard.clone(), end, answers), "cut at {cuts:?}");
    }
}

/// The data that our side receives from `wire`, its end, and whether our side renews its own keys before it sends
/// again.
fn open(suite: Suite, wire: &[u8], cuts: &[usize]) -> (Vec<u8>, Option<ReceiveEnd>, bool) {
    let direction =
        |number| RecordDirection { secret: TrafficSecret::new(&secret(suite, number)).unwrap(), sequence: 0 };
    let mut records = Records::new(TlsState { suite, send: direction(2), receive: direction(1) });
    let (mut carried, mut heard) = (Vec::new(), Vec::new());
    let (mut end, mut is_answer_due) = (None, false);
    for piece in pieces(wire, cuts) {
        carried.extend_from_slice(piece);
        let opened = records.open(&mut carried, 0);
        heard.extend_from_slice(&carried[..opened.plain]);
        is_answer_due |= opened.is_answer_due;
        end = end.or(opened.ended);
        if end.is_some() {
            // Nothing of a peer that has ended is opened.
            carried.clear();
            assert_eq!(records.open(&mut wire.to_vec(), 0).plain, 0);
        } else {
            carried.drain(..carried.len() - opened.rest);
        }
    }
    says(suite, &mut records, is_answer_due);
    (heard, end, is_answer_due)
}

/// Our next record is opened, after one KeyUpdate if that was requested.
fn says(suite: Suite, records: &mut Records, is_answer_due: bool) {
    let said = b"what we say".as_slice();
    let mut out = Vec::new();
    records.seal(&[IoSlice::new(&said[..5]), IoSlice::new(&said[5..])], &mut out);
    let mut ours = Direction::new(suite, 2);
    if is_answer_due {
        let (update, behind) = ours.open(&out);
        assert_eq!(update, [24, 0, 0, 1, 0, HANDSHAKE], "the answer to a KeyUpdate asks for none");
        ours.renew();
        out = behind.to_vec();
    }
    let (data, behind) = ours.open(&out);
    assert_eq!((&data[..], behind), (&[said, &[DATA]].concat()[..], &[][..]));
}

/// Follows RFC 8446 5 and 6 for what a client seals.
#[derive(Default)]
struct Reader {
    heard: Vec<u8>,
    end: Option<ReceiveEnd>,
    /// The start of a message.
    message: Vec<u8>,
    empty: usize,
    updates: usize,
    /// Something came that was not sealed: what follows it cannot be told.
    is_lost: bool,
}

impl Reader {
    /// Returns whether the client's keys are new from here on.
    fn hear(&mut self, content: u8, bytes: &[u8]) -> bool {
        if self.end.is_some() || self.is_lost {
            return false;
        }
        self.empty = if content == DATA && !bytes.is_empty() { 0 } else { self.empty + 1 };
        let mut renews = false;
        let result = if self.empty > EMPTY_MAX {
            Err(Alert::UNEXPECTED_MESSAGE)
        } else {
            match content {
                HANDSHAKE => self.hear_message(bytes).map(|is_update| {
                    renews = is_update;
                    None
                }),
                _ if !self.message.is_empty() => Err(Alert::UNEXPECTED_MESSAGE),
                DATA => {
                    self.heard.extend_from_slice(bytes);
                    Ok(None)
                }
                _ => match bytes {
                    [] => Err(Alert::UNEXPECTED_MESSAGE),
                    [_, 90] => Ok(None),
                    [_, 0] => Ok(Some(ReceiveEnd::CloseNotify)),
                    [_, why] => Ok(Some(ReceiveEnd::Told(Alert(*why)))),
                    _ => Err(Alert::DECODE_ERROR),
                },
            }
        };
        self.end = result.unwrap_or_else(|alert| Some(ReceiveEnd::Broken(alert)));
        renews
    }

    fn hear_message(&mut self, bytes: &[u8]) -> Result<bool, Alert> {
        if bytes.is_empty() {
            return Err(Alert::UNEXPECTED_MESSAGE);
        }
        self.message.extend_from_slice(bytes);
        // An invalid message is reported at the first byte that shows it.
        match self.message[..] {
            [kind, ..] if kind != 24 => Err(Alert::UNEXPECTED_MESSAGE),
            [_, 1..=255, ..] | [_, _, 1..=255, ..] | [_, _, _, 0 | 2..=255, ..] => Err(Alert::DECODE_ERROR),
            [_, _, _, _, 2..=255, ..] => Err(Alert::ILLEGAL_PARAMETER),
            [_, _, _, _, _] => {
                self.message.clear();
                self.updates += 1;
                if self.updates > UPDATES_MAX { Err(Alert::UNEXPECTED_MESSAGE) } else { Ok(true) }
            }
            [_, _, _, _, _, ..] => Err(Alert::UNEXPECTED_MESSAGE),
            _ => Ok(false),
        }
    }
}

fn secret(suite: Suite, number: u8) -> Vec<u8> {
    vec![number; suite.secret_bytes()]
}

/// One direction by code of its own.
struct Direction {
    suite: Suite,
    secret: Vec<u8>,
    sequence: u64,
}

struct Length(usize);

impl hkdf::KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

impl Direction {
    fn new(suite: Suite, number: u8) -> Self {
        Self { suite, secret: secret(suite, number), sequence: 0 }
    }

    fn expand(&self, label: &str, len: usize) -> Vec<u8> {
        let hash = if self.suite == Suite::Aes256Gcm { HKDF_SHA384 } else { HKDF_SHA256 };
        let label = [b"tls13 ", label.as_bytes()].concat();
        let info = [&[0, len as u8, label.len() as u8], &*label, &[0]].concat();
        let mut out = vec![0; len];
        let prk = hkdf::Prk::new_less_safe(hash, &self.secret);
        prk.expand(&[&info], Length(len)).unwrap().fill(&mut out).unwrap();
        out
    }

    fn renew(&mut self) {
        self.secret = self.expand("traffic upd", self.secret.len());
        self.sequence = 0;
    }

    fn cipher(&mut self) -> (LessSafeKey, Nonce) {
        let cipher: &Algorithm = match self.suite {
            Suite::Aes128Gcm => &AES_128_GCM,
            Suite::Aes256Gcm => &AES_256_GCM,
            Suite::ChaCha20Poly1305 => &CHACHA20_POLY1305,
        };
        let key = LessSafeKey::new(UnboundKey::new(cipher, &self.expand("key", cipher.key_len())).unwrap());
        let mut nonce: [u8; 12] = self.expand("iv", 12).try_into().unwrap();
        std::iter::zip(&mut nonce[4..], self.sequence.to_be_bytes()).for_each(|(byte, of)| *byte ^= of);
        self.sequence += 1;
        (key, Nonce::assume_unique_for_key(nonce))
    }

    fn seal(&mut self, content: u8, bytes: &[u8], padding: usize, wire: &mut Vec<u8>) {
        let mut body = [bytes, &[content], &vec![0; padding]].concat();
        let [high, low] = (body.len() as u16 + 16).to_be_bytes();
        let header = [DATA, 3, 3, high, low];
        let (key, nonce) = self.cipher();
        key.seal_in_place_append_tag(nonce, Aad::from(header), &mut body).unwrap();
        wire.extend_from_slice(&header);
        wire.extend_from_slice(&body);
    }

    /// The data of the first record of `wire` with its type after it, and the bytes after the record.
    fn open<'a>(&mut self, wire: &'a [u8]) -> (Vec<u8>, &'a [u8]) {
        let header: [u8; 5] = wire[..5].try_into().unwrap();
        let (body, behind) = wire[5..].split_at(usize::from(u16::from_be_bytes([header[3], header[4]])));
        let (key, nonce) = self.cipher();
        let mut body = body.to_vec();
        let inner = key.open_in_place(nonce, Aad::from(header), &mut body).expect("our record opens");
        (inner.to_vec(), behind)
    }
}
