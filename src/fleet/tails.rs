//! A node's last number for an audience, as it is written in announcements and questions.

use super::header::{HeaderError, Reader};
use super::outgoing::Tail;
use super::subject::{AudienceKey, Kind};

/// An audience by its hash.
pub(super) const LINE_BYTES: usize = 1 + 16;
/// An audience, and its count.
pub(super) const TAIL_BYTES: usize = LINE_BYTES + 4 + 8 + 8;

pub(super) fn write_tail(tail: &Tail, out: &mut Vec<u8>) {
    let Tail { line, stream, last, age_ms } = tail;
    out.push(line.kind.number());
    out.extend_from_slice(&line.hash);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(&last.to_be_bytes());
    out.extend_from_slice(&age_ms.to_be_bytes());
}

pub(super) fn read_line(reader: &mut Reader<'_>) -> Result<AudienceKey, HeaderError> {
    let [kind] = reader.array()?;
    let kind = Kind::from_number(kind).ok_or(HeaderError::Malformed)?;
    Ok(AudienceKey { kind, hash: reader.array()? })
}

pub(super) fn read_tail(reader: &mut Reader<'_>) -> Result<Tail, HeaderError> {
    let line = read_line(reader)?;
    let stream = u32::from_be_bytes(reader.array()?);
    let (last, age_ms) = (u64::from_be_bytes(reader.array()?), u64::from_be_bytes(reader.array()?));
    Ok(Tail { line, stream, last, age_ms })
}
