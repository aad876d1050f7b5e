use super::*;

fn inflate(compressed: &[u8]) -> Result<Vec<u8>, Violation> {
    Inflater::new().inflate(MessageKind::Binary, compressed, 1 << 20).map(Payload::into_vec)
}

#[test]
fn the_examples_of_rfc_7692_inflate() {
    for compressed in [
        // 7.2.3.1, 7.2.3.3, 7.2.3.4, 7.2.3.5; and the last without the padding that it wants.
        &[0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00][..],
        &[0x00, 0x05, 0x00, 0xfa, 0xff, 0x48, 0x65, 0x6c, 0x6c, 0x6f, 0x00],
        &[0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00, 0x00],
        &[0xf2, 0x48, 0x05, 0x00, 0x00, 0x00, 0xff, 0xff, 0xca, 0xc9, 0xc9, 0x07, 0x00],
        &[0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00],
    ] {
        assert_eq!(inflate(compressed), Ok(b"Hello".to_vec()), "{compressed:x?}");
    }
    assert_eq!(inflate(&[0x00]), Ok(Vec::new()), "7.2.3.6");
}

/// Bytes that compress somewhat: words drawn by a small generator.
fn sample(bytes: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut out = Vec::new();
    while out.len() < bytes {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let word = ["push ", "ring ", "channel=", "42,", "κόσμε ", "{\"id\":"][(state >> 33) as usize % 6];
        out.extend(word.as_bytes());
    }
    out.truncate(bytes);
    out
}

#[test]
fn what_is_compressed_inflates_for_every_window_and_nothing_stays_behind() {
    let mut deflater = Deflater::new(6);
    let mut inflater = Inflater::new();
    for window_bits in WINDOW_BITS_MIN..=WINDOW_BITS_MAX {
        for bytes in [50, 600, 5_000, 100_000, 300_000, 60] {
            let message = sample(bytes, u64::from(window_bits));
            let once = deflater.compress(window_bits, &message).expect("it compresses").to_vec();
            assert_eq!(deflater.compress(window_bits, &message), Some(&once[..]), "no context is taken over");
            let inflated = inflater.inflate(MessageKind::Binary, &once, bytes).unwrap().into_vec();
            assert_eq!(inflated, message, "{window_bits} bits, {bytes} bytes");
            // A client that agreed on this window has no larger one.
            let mut small = Decompress::new_with_window_bits(false, window_bits);
            let mut out = Vec::with_capacity(bytes);
            small.decompress_vec(&[&once[..], &CUT_TAIL].concat(), &mut out, FlushDecompress::Sync).unwrap();
            assert_eq!(out, message);
        }
    }
}

#[test]
fn every_level_round_trips() {
    for level in 1..=9 {
        let message = sample(20_000, 3);
        let compressed = Deflater::new(level).compress(15, &message).expect("it compresses").to_vec();
        assert_eq!(inflate(&compressed), Ok(message));
    }
}

#[test]
fn what_does_not_get_smaller_goes_as_it_is() {
    let mut deflater = Deflater::new(1);
    let mut state = 1u32;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    })
    .take(100_000)
    .collect();
    for message in [&b""[..], b"a", b"Hello", &noise] {
        assert_eq!(deflater.compress(15, message), None);
    }
}

#[test]
fn a_bomb_costs_at_most_the_limit() {
    let bomb = vec![0; 16 << 20];
    let compressed = Deflater::new(9).compress(15, &bomb).unwrap().to_vec();
    assert!(compressed.len() < 1 << 15);
    let mut inflater = Inflater::new();
    for limit in [0, 1, 4096, 65_536, 1 << 20] {
        let refused = inflater.inflate(MessageKind::Binary, &compressed, limit).map(|payload| payload.len());
        assert_eq!(refused, Err(Violation::MessageTooBig));
        assert!(inflater.out.capacity() <= LENT_BYTES_MAX);
        let exact = Deflater::new(9).compress(15, &bomb[..limit.max(100)]).unwrap().to_vec();
        let taken = inflater.inflate(MessageKind::Binary, &exact, limit).map(|payload| payload.len());
        assert_eq!(taken, if limit < 100 { Err(Violation::MessageTooBig) } else { Ok(limit) });
    }
}

#[test]
fn what_is_reserved_follows_what_came_out() {
    let compressed = Deflater::new(9).compress(15, &vec![0; 1 << 20]).unwrap().to_vec();
    let mut inflater = Inflater::new();
    let Payload::Owned(inflated) = inflater.inflate(MessageKind::Binary, &compressed, 16 << 20).unwrap() else {
        panic!("a large message is given away");
    };
    assert!(inflated.capacity() <= 2 * inflated.len());
    assert!(inflater.out.capacity() <= LENT_BYTES_MAX);
}

#[test]
fn text_is_checked_as_it_comes_out() {
    let mut deflater = Deflater::new(6);
    let mut text = vec![b'a'; 500_000];
    text[1000] = 0xff;
    let compressed = deflater.compress(15, &text).unwrap().to_vec();
    let mut inflater = Inflater::new();
    let refused = inflater.inflate(MessageKind::Text, &compressed, 400_000).map(|payload| payload.len());
    assert_eq!(refused, Err(Violation::TextNotUtf8), "before the size is");
    text.truncate(900);
    text.push(0xc3);
    let compressed = deflater.compress(15, &text).unwrap();
    assert_eq!(inflater.inflate(MessageKind::Text, compressed, 4096), Err(Violation::TextNotUtf8));
    text.push(0xa9);
    let compressed = deflater.compress(15, &text).unwrap();
    assert_eq!(inflater.inflate(MessageKind::Text, compressed, 4096).map(Payload::into_vec), Ok(text));
}

#[test]
fn what_is_no_deflate_or_cut_short_is_refused() {
    assert_eq!(inflate(&[0x07]), Err(Violation::NotDeflate), "block type 3");
    assert_eq!(inflate(&[0xff; 20]), Err(Violation::NotDeflate));
    let message = sample(5_000, 9);
    let compressed = Deflater::new(6).compress(15, &message).unwrap().to_vec();
    for cut in 1..compressed.len() - 1 {
        assert_ne!(inflate(&compressed[..cut]), Ok(message.clone()), "cut at {cut}");
    }
    // A stored block that declares more than comes: without the check it would swallow the tail and pass.
    assert_eq!(inflate(&[0x00, 0x20, 0x00, 0xdf, 0xff, b'a']), Err(Violation::NotDeflate));
}

#[test]
fn last_blocks_without_end_are_refused() {
    let empty_last_block = [0x03, 0x00];
    assert_eq!(inflate(&empty_last_block.repeat(STREAMS_MAX)), Ok(Vec::new()));
    assert_eq!(inflate(&empty_last_block.repeat(STREAMS_MAX + 1)), Err(Violation::NotDeflate));
}

#[test]
fn a_context_makes_messages_smaller_and_is_what_the_client_remembers() {
    for level in [1, 3, 6, 9] {
        for window_bits in WINDOW_BITS_MIN..=WINDOW_BITS_MAX {
            let mut deflater = Deflater::new(level);
            let mut context = DeflateContext::new(window_bits);
            // One inflater with no more window than was agreed, for all messages.
            let mut client = Decompress::new_with_window_bits(false, window_bits);
            let mut sent_bytes = Vec::new();
            for bytes in [300, 300, 60, 5_000, 300, 100_000, 300] {
                let message = sample(bytes, 7);
                let compressed = deflater.compress_in(window_bits, &context, &message).expect("it compresses").to_vec();
                let mut out = Vec::with_capacity(bytes + 1);
                client.decompress_vec(&[&compressed[..], &CUT_TAIL].concat(), &mut out, FlushDecompress::Sync).unwrap();
                assert!(out == message, "level {level}, {window_bits} bits, {bytes} bytes");
                context.append(&message);
                assert!(
                    context.bytes.capacity() + size_of::<DeflateContext>() <= DeflateContext::bytes_max(window_bits)
                );
                sent_bytes.push(compressed.len());
            }
            assert!(sent_bytes[1] < sent_bytes[0] * 3 / 4, "{sent_bytes:?} at level {level}, {window_bits} bits");
        }
    }
}

#[test]
fn a_context_that_was_cleared_refers_to_nothing_before() {
    let mut deflater = Deflater::new(6);
    let mut context = DeflateContext::new(15);
    let message = sample(1_000, 1);
    context.append(&message);
    context.clear();
    let alone = deflater.compress(15, &message).unwrap().to_vec();
    assert_eq!(deflater.compress_in(15, &context, &message), Some(&alone[..]));
}

#[test]
fn steps_come_to_what_one_step_does_and_none_is_long() {
    const STEP: usize = 10_000;
    let bomb = vec![b'b'; 3 << 20];
    let text = sample(700_000, 5);
    // Blocks with nothing in them, a message in as many streams as there may be, and what is none.
    let empty_blocks = [0x00, 0x00, 0x00, 0xff, 0xff].repeat(200_000);
    let streams = [0x03, 0x00].repeat(STREAMS_MAX);
    let mut cut = Deflater::new(6).compress(15, &text).unwrap().to_vec();
    cut.truncate(cut.len() / 2);
    let of = |message: &[u8]| Deflater::new(9).compress(15, message).unwrap().to_vec();
    for compressed in [of(&bomb), of(&text), of(&text[..60]), empty_blocks, streams, cut, vec![0x00]] {
        for limit in [1 << 20, 4 << 20] {
            let once = Inflater::new().inflate(MessageKind::Text, &compressed, limit).map(Payload::into_vec);
            let mut inflater = Inflater::new();
            let mut spent_max = 0;
            let mut part = inflater.begin(MessageKind::Text, Payload::Borrowed(&compressed), limit, STEP);
            let in_steps = loop {
                match part {
                    Ok(Inflated::Whole(_, payload)) => break Ok(payload.into_vec()),
                    Err(violation) => break Err(violation),
                    Ok(Inflated::Part(inflating)) => {
                        spent_max = spent_max.max(inflater.take_spent_bytes());
                        // Another message in between leaves nothing behind.
                        assert_eq!(inflater.inflate(MessageKind::Binary, &[0x00], 1), Ok(Payload::Borrowed(&[])));
                        inflater.take_spent_bytes();
                        assert!(inflating.heap_bytes() >= inflating.gathered.len());
                        part = inflater.go_on(inflating, STEP);
                    }
                }
            };
            assert_eq!(in_steps, once);
            assert!(spent_max <= STEP + LENT_BYTES_MAX + FED_BYTE_COST * FED_BYTES_MAX + STREAM_COST, "{spent_max}");
        }
    }
}
