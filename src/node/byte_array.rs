//! Bytes written as an array of numbers, as nodes write them, and read as an array or as MessagePack bin: for
//! `serde(with)`.

use serde::de::{Deserializer, Error, SeqAccess, Visitor};
use serde::{Serialize, Serializer};
use std::fmt;

/// Most that is reserved on the word of a length field alone: the sender may claim 4 GiB and send nothing.
const RESERVE_BYTES_MAX: usize = 64 * 1024;

pub(crate) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    bytes.serialize(serializer)
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    deserializer.deserialize_any(ByteArray)
}

struct ByteArray;

impl<'de> Visitor<'de> for ByteArray {
    type Value = Vec<u8>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of bytes")
    }

    fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Vec<u8>, E> {
        Ok(bytes.to_vec())
    }

    fn visit_byte_buf<E: Error>(self, bytes: Vec<u8>) -> Result<Vec<u8>, E> {
        Ok(bytes)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Vec<u8>, A::Error> {
        let claimed = sequence.size_hint().unwrap_or(0);
        let mut bytes = Vec::with_capacity(claimed.min(RESERVE_BYTES_MAX));
        while let Some(byte) = sequence.next_element()? {
            bytes.push(byte);
        }
        Ok(bytes)
    }
}
