//! Masking (RFC 6455 5.3): the payload XORed with a four-byte key, over and over.
//!
//! Invariant: [`unmask`] in pieces, each with the key [`rotated`] by the pieces before it, equals [`unmask`] at once.
//! The naive twin in the tests is the definition; this one works on words so that the compiler can use vectors.

/// The four bytes that a client drew for one frame, or a rotation of them.
pub type MaskingKey = [u8; 4];

/// Unmasks (or masks: it is the same) `payload` in place; its first byte meets `key[0]`.
#[inline]
pub fn unmask(payload: &mut [u8], key: MaskingKey) {
    let [a, b, c, d] = key;
    let word = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    // Blocks of 32 bytes let the compiler use whole vector registers; words and bytes finish what is left. Unaligned
    // loads cost nothing on the machines we run on, so nothing is done about alignment.
    let (blocks, rest) = payload.as_chunks_mut::<32>();
    for block in blocks {
        for bytes in block.as_chunks_mut::<8>().0 {
            *bytes = (u64::from_ne_bytes(*bytes) ^ word).to_ne_bytes();
        }
    }
    let (words, tail) = rest.as_chunks_mut::<8>();
    for bytes in words {
        *bytes = (u64::from_ne_bytes(*bytes) ^ word).to_ne_bytes();
    }
    for (index, byte) in tail.iter_mut().enumerate() {
        *byte ^= key[index & 3];
    }
}

/// The key for the rest of a payload of which `done_bytes` are already unmasked.
#[inline]
pub fn rotated(mut key: MaskingKey, done_bytes: usize) -> MaskingKey {
    key.rotate_left(done_bytes & 3);
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: MaskingKey = [0x37, 0xfa, 0x21, 0x3d];

    /// RFC 6455 5.3, word for word: `transformed-octet-i = original-octet-i XOR masking-key-octet-(i MOD 4)`.
    fn unmask_naive(payload: &mut [u8], key: MaskingKey) {
        for (i, byte) in payload.iter_mut().enumerate() {
            *byte ^= key[i % 4];
        }
    }

    fn sample(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i as u8).wrapping_mul(31).wrapping_add(7)).collect()
    }

    #[test]
    fn equals_the_naive_twin_at_every_length_and_alignment() {
        for len in 0..200 {
            for offset in 0..33 {
                let mut fast = sample(len + offset);
                let mut naive = fast.clone();
                unmask(&mut fast[offset..], KEY);
                unmask_naive(&mut naive[offset..], KEY);
                assert_eq!(fast, naive, "len {len}, offset {offset}");
            }
        }
    }

    #[test]
    fn resumes_at_every_offset() {
        for len in [0, 1, 3, 4, 5, 31, 32, 33, 64, 77, 130] {
            for cut in 0..=len {
                let mut whole = sample(len);
                let mut pieces = whole.clone();
                unmask(&mut whole, KEY);
                let (head, tail) = pieces.split_at_mut(cut);
                unmask(head, KEY);
                unmask(tail, rotated(KEY, cut));
                assert_eq!(whole, pieces, "len {len}, cut {cut}");
            }
        }
    }

    #[test]
    fn the_rfc_example_is_hello() {
        let mut payload = [0x7f, 0x9f, 0x4d, 0x51, 0x58];
        unmask(&mut payload, KEY);
        assert_eq!(&payload, b"Hello");
    }
}
