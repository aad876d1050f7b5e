use super::*;

type Seen = Vec<(Opcode, Vec<u8>, u64, bool)>;

fn server_frame(fin: bool, opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![u8::from(fin) << 7 | opcode];
    match payload.len() {
        short @ 0..=125 => frame.push(short as u8),
        medium @ 126..=0xFFFF => {
            frame.push(126);
            frame.extend_from_slice(&(medium as u16).to_be_bytes());
        }
        long => {
            frame.push(127);
            frame.extend_from_slice(&(long as u64).to_be_bytes());
        }
    }
    frame.extend_from_slice(payload);
    frame
}

fn read_in_chunks(bytes: &[u8], chunk: usize) -> Result<Seen, FrameError> {
    let mut parser = Parser::default();
    let mut seen = Seen::new();
    for piece in bytes.chunks(chunk) {
        parser.feed(piece, &mut |message| {
            let head = &message.head[..message.head.len().min(HEAD_BYTES)];
            seen.push((message.opcode, head.to_vec(), message.length, message.uniform));
        })?;
    }
    Ok(seen)
}

#[test]
fn any_split_gives_the_same_messages() {
    let mut stream = Vec::new();
    stream.extend(server_frame(true, 2, b""));
    stream.extend(server_frame(true, 1, b"{\"channel_id\":7}"));
    stream.extend(server_frame(false, 2, &[1; 40]));
    stream.extend(server_frame(true, 9, b"beat"));
    stream.extend(server_frame(false, 0, b""));
    stream.extend(server_frame(true, 0, &[1; 300]));
    stream.extend(server_frame(true, 2, &[5; 70_000]));
    let mut odd = vec![5; 1000];
    odd[999] = 6;
    stream.extend(server_frame(true, 2, &odd));
    stream.extend(server_frame(true, 8, &[0x03, 0xE9]));

    let whole = read_in_chunks(&stream, stream.len()).unwrap();
    let lengths: Vec<u64> = whole.iter().map(|message| message.2).collect();
    assert_eq!(lengths, [0, 16, 4, 340, 70_000, 1000, 2]);
    let uniform: Vec<bool> = whole.iter().map(|message| message.3).collect();
    assert_eq!(uniform, [true, true, true, true, true, false, true]);
    assert_eq!(whole[2].0, Opcode::Ping);
    assert_eq!(whole[2].1, b"beat");
    for chunk in (1..40).chain([127, 128, 129, 4096]) {
        assert_eq!(read_in_chunks(&stream, chunk).unwrap(), whole, "chunks of {chunk}");
    }
}

#[test]
fn violations_are_seen() {
    let cases: [(&[u8], &str); 7] = [
        (&[0xC2, 0], "reserved bits set without an extension"),
        (&[0x82, 0x80, 0, 0, 0, 0], "server frame is masked"),
        (&[0x83, 0], "unknown opcode"),
        (&[0x09, 0], "control frame fragmented or over 125 bytes"),
        (&[0x88, 126, 0, 126], "control frame fragmented or over 125 bytes"),
        (&[0x80, 0], "continuation without a message"),
        (&[0x82, 127, 0x80, 0, 0, 0, 0, 0, 0, 0], "64-bit length with the high bit set"),
    ];
    for (bytes, reason) in cases {
        assert_eq!(read_in_chunks(bytes, 1), Err(FrameError(reason)));
        assert_eq!(read_in_chunks(bytes, bytes.len()), Err(FrameError(reason)));
    }
    assert_eq!(read_in_chunks(&[0x02, 0, 0x82, 0], 4), Err(FrameError("new message inside a fragmented one")));
}

#[test]
fn masking_twice_gives_the_payload_back_and_matches_the_naive_twin() {
    let key = [1, 2, 3, 250];
    for length in 0..40 {
        let plain: Vec<u8> = (0..length).map(|byte: u8| byte.wrapping_mul(7)).collect();
        let naive: Vec<u8> = plain.iter().enumerate().map(|(index, byte)| byte ^ key[index % 4]).collect();
        let mut masked = plain.clone();
        xor_with_key(&mut masked, key);
        assert_eq!(masked, naive);
    }
}

#[test]
fn client_frames_carry_the_shortest_length_and_the_mask() {
    for (size, header) in [(0usize, 6), (125, 6), (126, 8), (65_535, 8), (65_536, 14)] {
        let mut out = Vec::new();
        write_masked(Opcode::Binary, &vec![3; size], [9, 9, 9, 9], &mut out);
        assert_eq!(out.len(), size + header);
        assert_eq!(out[0], 0x82);
        assert_ne!(out[1] & 0x80, 0);
        assert!(is_uniform(&out[header..], 3 ^ 9));
    }
}
