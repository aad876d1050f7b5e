//! A client's frames: masked, valid or not. For code that acts as a client: tests, benchmarks, simulation.
//!
//! Invariant: each frame is masked and well-formed in its lengths; whether its first byte is valid is the caller's
//! choice.

use super::frame::{self, MessageKind, Opcode};
use super::mask::{self, MaskingKey};

/// FIN: the last, or only, fragment of a message (RFC 6455 5.2).
pub const FIN: u8 = 0x80;

/// Appends a frame of the given first byte (FIN, reserved bits, opcode), masked with `masking_key`.
pub fn append_frame(out: &mut Vec<u8>, first: u8, masking_key: MaskingKey, payload: &[u8]) {
    let header_at = out.len();
    out.extend_from_slice(frame::server_header(Opcode::Binary, false, payload.len()).as_slice());
    out[header_at] = first;
    out[header_at + 1] |= 0x80;
    out.extend_from_slice(&masking_key);
    let payload_at = out.len();
    out.extend_from_slice(payload);
    mask::unmask(&mut out[payload_at..], masking_key);
}

/// Appends a whole message in one frame.
pub fn append_message(out: &mut Vec<u8>, kind: MessageKind, masking_key: MaskingKey, payload: &[u8]) {
    append_frame(out, FIN | Opcode::from(kind) as u8, masking_key, payload);
}
