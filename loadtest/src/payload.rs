//! The contents of the load tester's messages, by which a receiver identifies each one.
//!
//! Invariants: a payload is a stamp of [`STAMP_BYTES`] and a body of one repeated byte that follows from the sequence
//! number; so a truncated, mixed or altered message is detected, whatever server it went through.

/// Bytes of the stamp; no message is shorter.
pub(crate) const STAMP_BYTES: usize = 24;

/// A message's sender, number and scheduled time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    /// The run; messages of another run or of strangers do not count.
    pub run: u32,
    /// The client that sent it (or, for unicast, that it is meant for).
    pub client: u32,
    /// Counts from 0 per run.
    pub sequence: u64,
    /// The intended send time, `sys::now_ns`.
    pub time_ns: u64,
}

impl Stamp {
    /// Appends the whole payload of `size` bytes (at least [`STAMP_BYTES`]).
    pub(crate) fn write(&self, size: usize, payload: &mut Vec<u8>) {
        debug_assert!(size >= STAMP_BYTES);
        let start = payload.len();
        payload.extend_from_slice(&self.run.to_le_bytes());
        payload.extend_from_slice(&self.client.to_le_bytes());
        payload.extend_from_slice(&self.sequence.to_le_bytes());
        payload.extend_from_slice(&self.time_ns.to_le_bytes());
        payload.resize(start + size, self.body_byte());
    }

    /// Reads the stamp at the start of a payload.
    pub(crate) fn read(payload: &[u8]) -> Option<Self> {
        let (head, _) = payload.split_first_chunk::<STAMP_BYTES>()?;
        let (run, rest) = head.split_first_chunk::<4>()?;
        let (client, rest) = rest.split_first_chunk::<4>()?;
        let (sequence, rest) = rest.split_first_chunk::<8>()?;
        let (time_ns, _) = rest.split_first_chunk::<8>()?;
        Some(Self {
            run: u32::from_le_bytes(*run),
            client: u32::from_le_bytes(*client),
            sequence: u64::from_le_bytes(*sequence),
            time_ns: u64::from_le_bytes(*time_ns),
        })
    }

    /// The byte that fills the body.
    pub(crate) fn body_byte(&self) -> u8 {
        (self.sequence as u8) ^ 0xA5
    }
}

/// Returns whether all of `bytes` equal `byte`. Written as a fold so that it is vectorised.
pub(crate) fn is_uniform(bytes: &[u8], byte: u8) -> bool {
    bytes.iter().fold(0, |difference, &next| difference | (next ^ byte)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_survives_the_way_through_a_payload() {
        let stamp = Stamp { run: 7, client: 300, sequence: 1 << 40, time_ns: u64::MAX - 1 };
        let mut payload = vec![9];
        stamp.write(128, &mut payload);
        assert_eq!(payload.len(), 129);
        assert_eq!(Stamp::read(&payload[1..]), Some(stamp));
        assert!(is_uniform(&payload[1 + STAMP_BYTES..], stamp.body_byte()));
        payload[100] ^= 1;
        assert!(!is_uniform(&payload[1 + STAMP_BYTES..], stamp.body_byte()));
    }

    #[test]
    fn a_short_payload_has_no_stamp() {
        assert_eq!(Stamp::read(&[0; STAMP_BYTES - 1]), None);
    }
}
