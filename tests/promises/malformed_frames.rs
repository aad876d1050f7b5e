//! Every frame that breaks the protocol closes its channel with the right code, as soon as it can be known (often on
//! the header alone), and changes nothing for another channel.

use crate::support;
use pushring::{AttachOptions, ClosedBy};
use std::io::Write;
use support::{Inbound, Push, broker, on_each_driver, process, recv, recv_close, send};
use tungstenite::Message;

/// A masking key of zeros leaves payloads as they are.
const KEY: [u8; 4] = [0; 4];

fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    assert!(payload.len() <= 125);
    [&[first, 0x80 | payload.len() as u8], KEY.as_slice(), payload].concat()
}

/// The fault, the bytes (never followed by more), and the close code.
fn cases() -> Vec<(&'static str, Vec<u8>, u16)> {
    let oversized = [[0x82, 0x80 | 127].as_slice(), &(1_u64 << 30).to_be_bytes(), &KEY].concat();
    let high_bit = [[0x82, 0x80 | 127].as_slice(), &(1_u64 << 63).to_be_bytes()].concat();
    vec![
        ("not masked", vec![0x82, 0x05], 1002),
        ("RSV1 without an extension", vec![0xc2, 0x80], 1002),
        ("RSV2", vec![0xa2, 0x80], 1002),
        ("RSV3", vec![0x92, 0x80], 1002),
        ("reserved data opcode", vec![0x83, 0x80], 1002),
        ("reserved control opcode", vec![0x8b, 0x80], 1002),
        ("a long ping", vec![0x89, 0x80 | 126], 1002),
        ("a fragmented ping", vec![0x09, 0x80], 1002),
        ("a fragmented close", vec![0x08, 0x80], 1002),
        ("nothing to continue", vec![0x80, 0x81], 1002),
        ("a message inside a message", [masked(0x01, b"a"), vec![0x81, 0x81]].concat(), 1002),
        ("16 bits for 5", vec![0x82, 0x80 | 126, 0, 5], 1002),
        ("64 bits for 300", [[0x82, 0x80 | 127].as_slice(), &300_u64.to_be_bytes()].concat(), 1002),
        ("a length with the high bit", high_bit, 1002),
        ("over the limit, on its header", oversized, 1009),
        ("text that is not UTF-8", masked(0x81, b"ab\xff"), 1007),
        ("text that breaks off inside a character", masked(0x81, b"ab\xc3"), 1007),
        ("bad UTF-8 before the end of a frame", [&[0x81, 0x80 | 100][..], &KEY, b"\xc3\x28"].concat(), 1007),
        ("bad UTF-8 in a fragment", [masked(0x01, b"\xc3"), masked(0x80, b"\x28")].concat(), 1007),
        ("a surrogate", masked(0x81, b"\xed\xa0\x80"), 1007),
        ("half a close code", masked(0x88, &[3]), 1002),
        ("close 0", masked(0x88, &0_u16.to_be_bytes()), 1002),
        ("close 999", masked(0x88, &999_u16.to_be_bytes()), 1002),
        ("close 1004", masked(0x88, &1004_u16.to_be_bytes()), 1002),
        ("close 1005", masked(0x88, &1005_u16.to_be_bytes()), 1002),
        ("close 1006", masked(0x88, &1006_u16.to_be_bytes()), 1002),
        ("close 1015", masked(0x88, &1015_u16.to_be_bytes()), 1002),
        ("close 2999", masked(0x88, &2999_u16.to_be_bytes()), 1002),
        ("close 5000", masked(0x88, &5000_u16.to_be_bytes()), 1002),
        ("a close reason that is not UTF-8", masked(0x88, b"\x03\xe8\xff"), 1007),
    ]
}

#[test]
fn every_violation_closes_its_channel_alone_and_at_once() {
    on_each_driver(|driver| {
        let broker = broker(driver, |config| config.shards = 1);
        let process = process(&broker, "frames", AttachOptions::default());
        let mut inbound = Inbound::default();
        let (mut witness, witness_id) = inbound.open(&broker, &process);
        for (what, bytes, code) in cases() {
            let (mut client, channel) = inbound.open(&broker, &process);
            // The writing side stays open: the code comes although more bytes could follow.
            client.get_mut().write_all(&bytes).unwrap();
            assert_eq!(recv_close(&mut client).0, code, "{what}");
            let closed = inbound.closed(&process);
            assert_eq!((closed.channel, closed.code, closed.by), (channel, code, ClosedBy::Violation), "{what}");

            send(&mut witness, Message::text(what));
            assert_eq!(inbound.message(&process, witness_id), what.as_bytes());
            process.push(witness_id, Push::text(what)).try_send().unwrap();
            assert_eq!(recv(&mut witness), Message::text(what));
        }
    });
}

#[test]
fn what_came_before_a_violation_counts_and_what_comes_after_it_does_not() {
    on_each_driver(|driver| {
        let broker = broker(driver, |_| {});
        let process = process(&broker, "frames", AttachOptions::default());
        let mut inbound = Inbound::default();
        let (mut client, channel) = inbound.open(&broker, &process);
        let bytes = [masked(0x81, b"before"), vec![0x83, 0x80], KEY.to_vec(), masked(0x81, b"after")].concat();
        client.get_mut().write_all(&bytes).unwrap();
        assert_eq!(inbound.message(&process, channel), "before");
        assert_eq!(inbound.closed(&process).by, ClosedBy::Violation);
        assert_eq!(recv_close(&mut client).0, 1002);
        // The next thing it is told of is another channel.
        inbound.open(&broker, &process);
    });
}
