//! permessage-deflate: any bytes inflate as zlib inflates them, never beyond the limit; whatever is compressed comes
//! out again, also for a client that remembers what came before.

use flate2::{Decompress, FlushDecompress, Status};
use pushring::internals::proto::deflate::{DeflateContext, Deflater, Inflater, WINDOW_BITS_MAX, WINDOW_BITS_MIN};
use pushring::internals::proto::{MessageKind, Violation};
use std::cell::RefCell;
use std::io::Read;

/// The bytes are messages to compress, rather than one that is compressed.
const ROUND_TRIP: u8 = 1;
/// The message is text.
const TEXT: u8 = 2;
/// With [`ROUND_TRIP`]: messages may refer to those before.
const TAKEOVER: u8 = 4;

const LIMITS: [usize; 4] = [0, 100, 5_000, 200_000];

/// As many streams as one message may be made of.
const STREAMS_MAX: usize = 1024;

thread_local! {
    /// One for all messages, as in a shard: so what one leaves behind would be found by the next.
    static INFLATER: RefCell<Inflater> = const { RefCell::new(Inflater::new()) };
    static DEFLATER: RefCell<Deflater> = RefCell::new(Deflater::new(6));
}

/// A byte of settings, then a compressed message, or messages to be compressed.
pub fn holds(data: &[u8]) {
    let Some((&settings, rest)) = data.split_first() else { return };
    let kind = if settings & TEXT != 0 { MessageKind::Text } else { MessageKind::Binary };
    if settings & ROUND_TRIP == 0 {
        return inflates_as_zlib(kind, rest, LIMITS[usize::from(settings >> 6)]);
    }
    let bits = WINDOW_BITS_MIN + (settings >> 4) % (WINDOW_BITS_MAX - WINDOW_BITS_MIN + 1);
    if settings & TAKEOVER != 0 { comes_out_in_context(bits, rest) } else { comes_out(bits, rest) }
}

fn inflate(kind: MessageKind, compressed: &[u8], limit: usize) -> Result<Vec<u8>, Violation> {
    INFLATER.with_borrow_mut(|inflater| inflater.inflate(kind, compressed, limit).map(|payload| payload.into_vec()))
}

fn inflates_as_zlib(kind: MessageKind, compressed: &[u8], limit: usize) {
    let inflated = inflate(kind, compressed, limit);
    if let Ok(inflated) = &inflated {
        assert!(inflated.len() <= limit);
    }
    match by_zlib(compressed, limit) {
        Some(expected) if expected.len() > limit => {
            // Another fault may be detected first.
            assert!(inflated.is_err(), "{} bytes are over the limit of {limit}", expected.len());
        }
        Some(expected) if kind == MessageKind::Text && std::str::from_utf8(&expected).is_err() => {
            assert_eq!(inflated, Err(Violation::TextNotUtf8));
        }
        Some(expected) => assert_eq!(inflated, Ok(expected)),
        None => assert!(inflated.is_err(), "zlib does not inflate this"),
    }
}

/// RFC 7692 7.2.2 with flate2's own reader: the four bytes that were cut off are put back, and an empty last block is
/// put behind them, so that a message that ends with a block ends the stream. One that is too big is given up to one
/// byte over the limit.
fn by_zlib(compressed: &[u8], limit: usize) -> Option<Vec<u8>> {
    let whole = [compressed, &[0, 0, 0xff, 0xff, 1, 0, 0, 0xff, 0xff]].concat();
    let mut inflated = Vec::new();
    let mut at = 0;
    for _ in 0..STREAMS_MAX {
        let mut decoder = flate2::bufread::DeflateDecoder::new(&whole[at..]);
        let room = (limit + 1 - inflated.len()) as u64;
        let read = decoder.by_ref().take(room).read_to_end(&mut inflated);
        if inflated.len() > limit {
            return Some(inflated);
        }
        read.ok()?;
        at += decoder.total_in() as usize;
        if at >= compressed.len() {
            return Some(inflated);
        }
    }
    None
}

/// Without context: what is sent is smaller, and our own inflater gives it back.
fn comes_out(bits: u8, message: &[u8]) {
    let compressed =
        DEFLATER.with_borrow_mut(|deflater| deflater.compress(bits, message).map(|payload| payload.to_vec()));
    let Some(compressed) = compressed else { return };
    assert!(compressed.len() < message.len());
    assert_eq!(inflate(MessageKind::Binary, &compressed, message.len()).as_deref(), Ok(message));
    let mut client = Decompress::new_with_window_bits(false, bits);
    assert_eq!(client_inflates(&mut client, &compressed, message.len()), message);
    let too_small = message.len() - 1;
    assert_eq!(inflate(MessageKind::Binary, &compressed, too_small), Err(Violation::MessageTooBig));
}

/// With context: each message is split off at a zero byte, some are never sent compressed, and a client with one
/// inflater for all of them, of just the window that was agreed, reads every one.
fn comes_out_in_context(bits: u8, messages: &[u8]) {
    let mut client = Decompress::new_with_window_bits(false, bits);
    let mut context = DeflateContext::new(bits);
    for message in messages.split(|&byte| byte == 0) {
        let compressed = DEFLATER
            .with_borrow_mut(|deflater| deflater.compress_in(bits, &context, message).map(|payload| payload.to_vec()));
        let Some(compressed) = compressed else { continue };
        assert!(compressed.len() < message.len());
        context.append(message);
        assert_eq!(client_inflates(&mut client, &compressed, message.len()), message);
    }
}

/// A client's inflation of a compressed message that should yield `bytes`.
fn client_inflates(client: &mut Decompress, compressed: &[u8], bytes: usize) -> Vec<u8> {
    let input = [compressed, &[0, 0, 0xff, 0xff]].concat();
    let mut out = Vec::with_capacity(bytes + 64);
    let before = client.total_in();
    let status = client.decompress_vec(&input, &mut out, FlushDecompress::Sync);
    assert!(matches!(status, Ok(Status::Ok | Status::BufError)), "{status:?}");
    assert_eq!(client.total_in() - before, input.len() as u64);
    out
}
