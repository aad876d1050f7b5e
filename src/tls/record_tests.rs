use super::*;
use crate::tls::keys::OVERHEAD_BYTES;
use proptest::prelude::*;

const SUITES: [Suite; 3] = [Suite::Aes128Gcm, Suite::Aes256Gcm, Suite::ChaCha20Poly1305];

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.chunks(2).map(byte).collect()
}

fn direction(suite: Suite, fill: u8, sequence: u64) -> RecordDirection {
    RecordDirection { secret: TrafficSecret::new(&vec![fill; suite.secret_bytes()]).unwrap(), sequence }
}

/// The two ends of one connection: ours, and its client's.
fn pair(suite: Suite) -> (Records, Records) {
    let (a, b) = (direction(suite, 1, 5), direction(suite, 2, 9));
    let ours = TlsState { suite, send: a.clone(), receive: b.clone() };
    (Records::new(ours), Records::new(TlsState { suite, send: b, receive: a }))
}

fn sealed(by: &mut Records, data: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    by.seal(&[IoSlice::new(data)], &mut out);
    out
}

/// A record of any kind, with `padding` zeros behind its type.
fn record(by: &mut Records, content: u8, data: &[u8], padding: usize) -> Vec<u8> {
    // Sealing appends a type of its own, so the inner text is made by hand.
    let mut inner = data.to_vec();
    inner.push(content);
    inner.resize(inner.len() + padding, 0);
    let last = inner.pop().unwrap();
    let mut out = Vec::new();
    by.send.seal_as(last, &inner, &mut out);
    out
}

/// All that comes out of `bytes`, given at once.
fn open(by: &mut Records, bytes: &[u8]) -> (Vec<u8>, OpenedRecords) {
    let mut bytes = bytes.to_vec();
    let opened = by.open(&mut bytes, 0);
    bytes.truncate(opened.plain);
    (bytes, opened)
}

fn refused(by: &mut Records, bytes: &[u8]) -> Alert {
    match open(by, bytes).1.ended {
        Some(ReceiveEnd::Broken(alert)) => alert,
        other => panic!("{other:?}"),
    }
}

/// RFC 8448 section 3: what follows its handshake, byte for byte.
#[test]
fn the_trace_of_rfc_8448_is_sealed_and_opened() {
    let secret = |text| TrafficSecret::new(&hex(text)).unwrap();
    let server = secret("a11af9f05531f856ad47116b45a950328204b4f44bfb6b3a4b4f1f3fcb631643");
    let client = secret("9e40646ce79a7f9dc05af8889bce6552875afa0b06df0087f792ebb7c17504a5");
    // Its ticket is the server's first record under these keys.
    let send = RecordDirection { secret: server, sequence: 1 };
    let receive = RecordDirection { secret: client, sequence: 0 };
    let mut records = Records::new(TlsState { suite: Suite::Aes128Gcm, send, receive });
    let payload: Vec<u8> = (0..50).collect();
    let from_client = hex(
        "17030300 43a23f7054b62c94d0affafe8228ba55cbefacea42f914aa66bcab3f2b9819a8a5b46b395bd54a9a20441e2b62974e1f\
         5a6292a2977014bd1e3deae63aeebb21694915e4",
    );
    let (plain, opened) = open(&mut records, &from_client);
    assert_eq!((plain, opened.ended), (payload.clone(), None));
    let from_server = hex(
        "17030300 432e937e11ef4ac740e538ad36005fc4a46932fc3225d05f82aa1b36e30efaf97d90e6dffc602dcb501a59a8fcc49c4b\
         f2e5f0a21c0047c2abf332540dd032e167c2955d",
    );
    assert_eq!(sealed(&mut records, &payload), from_server);
    let alert = hex("1703030013 c9872760655666b74d7ff1153efd6db6d0b0e3");
    assert_eq!(open(&mut records, &alert).1.ended, Some(ReceiveEnd::CloseNotify));
    let mut out = Vec::new();
    records.seal_alert(Alert::CLOSE_NOTIFY, &mut out);
    assert_eq!(out, hex("1703030013 b58fd67166ebf599d24720cfbe7efa7a8864a9"));
}

#[test]
fn any_length_comes_through_in_as_many_records_as_it_needs() {
    for suite in SUITES {
        let (mut ours, mut client) = pair(suite);
        for len in [1_usize, 2, 127, 128, 16_383, 16_384, 16_385, 32_768, 50_000] {
            let data: Vec<u8> = (0..len).map(|at| at as u8).collect();
            let out = sealed(&mut ours, &data);
            assert_eq!(out.len(), len + len.div_ceil(PLAIN_BYTES_MAX) * OVERHEAD_BYTES);
            assert_eq!(open(&mut client, &out).0, data);
        }
        let before = ours.state();
        assert!(sealed(&mut ours, b"").is_empty(), "nothing is no record");
        assert_eq!(ours.state(), before);
    }
}

#[test]
fn another_goes_on_from_the_state() {
    let (mut ours, mut client) = pair(Suite::Aes256Gcm);
    sealed(&mut client, b"lost");
    let out = [sealed(&mut ours, b"one"), sealed(&mut Records::new(ours.state()), b"two")].concat();
    assert_eq!(open(&mut client, &out).0, b"onetwo");
}

#[test]
fn keys_are_renewed_when_the_peer_does_and_answered_once() {
    for suite in SUITES {
        let (mut ours, mut client) = pair(suite);
        let mut out = sealed(&mut client, b"before");
        for _ in 0..2 {
            client.send.seal(ContentType::Handshake, &[IoSlice::new(&[KEY_UPDATE, 0, 0, 1, 1])], &mut out);
            client.send.update();
        }
        out.extend(sealed(&mut client, b"after"));
        let (plain, opened) = open(&mut ours, &out);
        assert_eq!((&plain[..], opened.is_answer_due), (&b"beforeafter"[..], true));
        let before = ours.send.secret().clone();
        let out = sealed(&mut ours, b"with new keys");
        assert_ne!(*ours.send.secret(), before);
        assert_eq!(out.len(), 13 + 5 + 2 * OVERHEAD_BYTES, "one answer, before the data");
        let (plain, opened) = open(&mut client, &out);
        assert_eq!((&plain[..], opened.is_answer_due), (&b"with new keys"[..], false));
        let mut out = Vec::new();
        ours.seal_due(&mut out);
        assert!(out.is_empty(), "it was answered");
    }
}

#[test]
fn our_keys_are_renewed_before_they_have_sealed_too_much() {
    let suite = Suite::Aes128Gcm;
    let state = |send, receive| TlsState { suite, send, receive };
    let (a, b) = (direction(suite, 1, RECORDS_MAX - 1), direction(suite, 2, 0));
    let mut ours = Records::new(state(a.clone(), b.clone()));
    let mut client = Records::new(state(b, a));
    let mut out = sealed(&mut ours, b"last");
    out.extend(sealed(&mut ours, b"first"));
    assert_eq!(ours.state().send.sequence, 1);
    let (plain, opened) = open(&mut client, &out);
    assert_eq!((&plain[..], opened.is_answer_due), (&b"lastfirst"[..], false), "and ours asks for nothing");
}

#[test]
fn padding_and_one_byte_records_are_data_like_any() {
    let (mut ours, mut client) = pair(Suite::Aes128Gcm);
    let mut out = Vec::new();
    for byte in b"slowly" {
        out.extend(record(&mut client, 23, &[*byte], 0));
    }
    for padding in [1, 255, PLAIN_BYTES_MAX - 4] {
        out.extend(record(&mut client, 23, b"padd", padding));
    }
    let (plain, opened) = open(&mut ours, &out);
    assert_eq!((&plain[..], opened.records), (&b"slowlypaddpaddpadd"[..], 9));
}

#[test]
fn records_without_data_are_taken_for_a_while() {
    let (mut ours, mut client) = pair(Suite::Aes128Gcm);
    for _ in 0..3 {
        let empty: Vec<u8> = (0..EMPTY_RECORDS_MAX).flat_map(|_| record(&mut client, 23, b"", 9)).collect();
        assert_eq!(open(&mut ours, &empty).1.ended, None);
        assert_eq!(open(&mut ours, &sealed(&mut client, b"x")).0, b"x");
    }
    let empty: Vec<u8> = (0..=EMPTY_RECORDS_MAX).flat_map(|_| record(&mut client, 23, b"", 0)).collect();
    assert_eq!(refused(&mut ours, &empty), Alert::UNEXPECTED_MESSAGE);
}

#[test]
fn new_keys_without_end_are_refused() {
    let (mut ours, mut client) = pair(Suite::Aes128Gcm);
    let mut update = |now_s, ours: &mut Records| {
        let mut out = sealed(&mut client, b"x");
        client.renew(&mut out);
        ours.open(&mut out, now_s).ended
    };
    for now_s in 1..4 {
        for _ in 0..KEY_UPDATES_PER_S_MAX {
            assert_eq!(update(now_s, &mut ours), None);
        }
    }
    assert_eq!(update(3, &mut ours), Some(ReceiveEnd::Broken(Alert::UNEXPECTED_MESSAGE)));
}

#[test]
fn what_breaks_the_protocol_is_refused_with_the_alert_for_it() {
    let hello = |content, bytes: &[u8]| {
        let (mut ours, mut client) = pair(Suite::Aes128Gcm);
        refused(&mut ours, &record(&mut client, content, bytes, 0))
    };
    assert_eq!(hello(22, &[1, 0, 0, 1, 0]), Alert::UNEXPECTED_MESSAGE, "a ClientHello");
    assert_eq!(hello(22, &[KEY_UPDATE, 0, 0, 2, 0, 0]), Alert::DECODE_ERROR);
    assert_eq!(hello(22, &[KEY_UPDATE, 0, 0, 0]), Alert::DECODE_ERROR);
    assert_eq!(hello(22, &[KEY_UPDATE, 0, 0, 1, 2]), Alert::ILLEGAL_PARAMETER);
    assert_eq!(hello(22, &[KEY_UPDATE, 0, 0, 1, 0, KEY_UPDATE]), Alert::UNEXPECTED_MESSAGE, "something behind it");
    assert_eq!(hello(22, &[]), Alert::UNEXPECTED_MESSAGE);
    assert_eq!(hello(21, &[]), Alert::UNEXPECTED_MESSAGE);
    assert_eq!(hello(21, &[1]), Alert::DECODE_ERROR);
    assert_eq!(hello(21, &[1, 0, 1, 0]), Alert::DECODE_ERROR);
    assert_eq!(hello(20, &[1]), Alert::UNEXPECTED_MESSAGE);
    assert_eq!(hello(0, &[]), Alert::UNEXPECTED_MESSAGE, "no type at all");
    let plain = |bytes: &[u8]| refused(&mut pair(Suite::Aes128Gcm).0, bytes);
    assert_eq!(plain(&[21, 3, 3, 0, 2, 1, 0]), Alert::UNEXPECTED_MESSAGE, "not sealed");
    assert_eq!(plain(b"G"), Alert::UNEXPECTED_MESSAGE);
    assert_eq!(plain(&[23, 3, 3, 0x41, 1]), Alert::RECORD_OVERFLOW, "before the rest of it has come");
    assert_eq!(plain(&[23, 3, 3, 0, 0]), Alert::BAD_RECORD_MAC);
    assert_eq!(plain(&[23, 3, 3, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), Alert::BAD_RECORD_MAC);
    let (mut ours, mut client) = pair(Suite::Aes128Gcm);
    let too_long = record(&mut client, 23, &vec![1; PLAIN_BYTES_MAX], 1);
    assert_eq!(refused(&mut ours, &too_long), Alert::RECORD_OVERFLOW, "with its padding");
}

#[test]
fn a_message_may_come_in_fragments_with_nothing_between() {
    let (mut ours, mut client) = pair(Suite::Aes128Gcm);
    let fragments: Vec<u8> =
        [KEY_UPDATE, 0, 0, 1, 0].iter().flat_map(|byte| record(&mut client, 22, &[*byte], 0)).collect();
    assert_eq!(open(&mut ours, &fragments).1.ended, None);
    client.send.update();
    assert_eq!(open(&mut ours, &sealed(&mut client, b"new")).0, b"new");
    for between in [23, 21] {
        let (mut ours, mut client) = pair(Suite::Aes128Gcm);
        let out = [record(&mut client, 22, &[KEY_UPDATE, 0], 0), record(&mut client, between, &[1, 0], 0)].concat();
        assert_eq!(refused(&mut ours, &out), Alert::UNEXPECTED_MESSAGE);
    }
}

#[test]
fn alerts_end_what_is_received_but_for_user_canceled() {
    let (mut ours, mut client) = pair(Suite::Aes128Gcm);
    let mut out = record(&mut client, 21, &[1, Alert::USER_CANCELED.0], 0);
    out.extend(sealed(&mut client, b"said before"));
    client.seal_alert(Alert::CLOSE_NOTIFY, &mut out);
    out.extend(sealed(&mut client, b"behind the end"));
    let (plain, opened) = open(&mut ours, &out);
    assert_eq!((&plain[..], opened.ended), (&b"said before"[..], Some(ReceiveEnd::CloseNotify)));
    assert_eq!(
        open(&mut ours, &out).1,
        OpenedRecords { records: 0, plain: 0, rest: 0, is_answer_due: false, ended: None },
        "it is over"
    );
    let (mut ours, mut client) = pair(Suite::Aes128Gcm);
    let fatal = record(&mut client, 21, &[1, 48], 0);
    assert_eq!(open(&mut ours, &fatal).1.ended, Some(ReceiveEnd::Told(Alert(48))), "whatever its level");
}

#[test]
fn whatever_bit_is_changed_the_record_does_not_open() {
    let (_, mut client) = pair(Suite::Aes128Gcm);
    let out = sealed(&mut client, b"intact");
    for bit in 5 * 8..out.len() * 8 {
        let mut changed = out.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(refused(&mut pair(Suite::Aes128Gcm).0, &changed), Alert::BAD_RECORD_MAC);
    }
    let (mut ours, _) = pair(Suite::Aes128Gcm);
    assert_eq!(open(&mut ours, &out).0, b"intact");
    assert_eq!(refused(&mut ours, &out), Alert::BAD_RECORD_MAC, "a record that comes twice");
}

proptest! {
    /// However records are cut and joined, the output equals the input.
    #[test]
    fn any_split_gives_the_same(
        messages in proptest::collection::vec((0..2000usize, 0..4usize), 1..12),
        cuts in proptest::collection::vec(1..700usize, 1..60),
        suite in 0..3usize,
    ) {
        let (mut ours, mut client) = pair(SUITES[suite]);
        let (mut sent, mut wire) = (Vec::new(), Vec::new());
        for (number, (len, kind)) in messages.into_iter().enumerate() {
            let data = vec![number as u8; len];
            match kind {
                0 => client.renew(&mut wire),
                1 => wire.extend(record(&mut client, 23, &data, 7)),
                // In two parts, which are one record.
                _ => client.seal(&[IoSlice::new(&data[..len / 3]), IoSlice::new(&data[len / 3..])], &mut wire),
            }
            if kind > 0 {
                sent.extend_from_slice(&data);
            }
        }
        let (mut got, mut rest, mut cuts) = (Vec::new(), Vec::new(), cuts.iter().cycle());
        let mut wire = &wire[..];
        while !wire.is_empty() {
            let (now, later) = wire.split_at((*cuts.next().unwrap()).min(wire.len()));
            wire = later;
            rest.extend_from_slice(now);
            // A second for each: renewing is not refused here.
            let opened = ours.open(&mut rest, got.len() as u32 ^ later.len() as u32);
            prop_assert_eq!(opened.ended, None);
            got.extend_from_slice(&rest[..opened.plain]);
            rest.drain(..rest.len() - opened.rest);
        }
        prop_assert_eq!(got, sent);
        prop_assert!(rest.is_empty());
    }

    /// Whatever comes, nothing panics, and nothing but a whole record of the client's opens.
    #[test]
    fn any_bytes_are_borne(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let (mut ours, _) = pair(Suite::Aes128Gcm);
        prop_assert_eq!(open(&mut ours, &bytes).0, b"");
    }
}
