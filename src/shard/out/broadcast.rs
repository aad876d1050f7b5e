//! The frame of a push in the forms in which channels get it, and a broadcast on its way to its channels.
//!
//! Invariant: between two slices of a broadcast, its bytes may have left the window, and their segments may be gone:
//! then it is encoded anew. Otherwise all its channels get the same bytes, so that each queue stays one range.

use crate::channel::ChannelId;
use crate::gateway::OwnerId;
use crate::proto::{Opcode, ServerHeader, server_header};
use crate::resume;
use crate::shard::command::{Policy, PushFrame, PushKind};
use crate::shard::memory::SharedCharge;
use crate::shard::out::deflate::Compressed;
use crate::shard::out::frame::FrameParts;
use crate::shard::out::kept::{KeptFor, KeptFrames};
use crate::shard::out::listener_audience::ListenerAudience;
use crate::shard::out::watches::SharedPart;
use crate::shard::out::window::{Cast, Range, Window};
use crate::shard::table::ConnectionTable;
use crate::shard::table::cohort::Cohort;
use crate::shard::table::connection::Connection;
use crate::shard::table::slot::Slot;
use bytes::Bytes;
use smallvec::SmallVec;
use std::sync::Arc;

/// Payloads up to this size are copied to what is kept; larger ones stay where their process put them, for a channel
/// that falls behind in one is not to have a copy of its own.
const KEPT_COPY_BYTES_MAX: usize = 4 * 1024;

/// A frame of one push in one form: encoded when the first channel needs it, then shared by all.
pub(in crate::shard) struct Encoding {
    pub parts: FrameParts,
    copy_bytes_max: usize,
    range: Option<Range>,
    /// The message, where it is compressed and contexts go on from it.
    pub message: Option<Bytes>,
    /// Set for a control text, which is no message: for which connection it is.
    pub control_text_to: Option<u32>,
    /// The message, where it is compressed.
    original: Option<Bytes>,
    /// Where it lies for channels that outlive their connections, as it is.
    kept: Option<Range>,
    /// In which lane of history, where that is known before it is first needed.
    lane: Option<u8>,
}

impl Encoding {
    /// `charge` is the payload's claim on memory, for queues that keep it by reference.
    pub(crate) fn new(
        kind: PushKind,
        compressed: bool,
        payload: Bytes,
        charge: SharedCharge,
        copy_bytes_max: usize,
    ) -> Self {
        let header = server_header(opcode(kind), compressed, payload.len());
        let parts = FrameParts { header, payload, charge };
        let control_text_to = match kind {
            PushKind::ControlText { to_return } => Some(to_return),
            PushKind::Message(_) | PushKind::Ping | PushKind::Pong => None,
        };
        let (range, message, original, kept, lane) = Default::default();
        Self { parts, copy_bytes_max, range, message, control_text_to, original, kept, lane }
    }

    /// An event of a stream: not a frame, but it waits and is sent like one.
    pub(crate) fn of_event(event: Bytes, charge: SharedCharge, copy_bytes_max: usize) -> Self {
        let (header, rest) = ServerHeader::split_from(&event);
        let payload = event.slice(event.len() - rest.len()..);
        let parts = FrameParts { header, payload, charge };
        let (range, message, original, kept, lane) = Default::default();
        Self { parts, copy_bytes_max, range, message, control_text_to: None, original, kept, lane }
    }

    /// Writes the event where it is kept for `of`, from where it is sent, too.
    pub(crate) fn keep_event(
        &mut self,
        kept: &mut KeptFrames,
        of: KeptFor,
        now_ms: u64,
        charge: impl FnOnce(usize) -> SharedCharge,
    ) -> Range {
        let FrameParts { header, payload, charge: claim } = &self.parts;
        let range = if payload.len() <= self.copy_bytes_max.min(KEPT_COPY_BYTES_MAX) {
            kept.append_joined(of, now_ms, [header.as_slice(), b"", payload], charge)
        } else {
            let claim = if claim.is_counted() { claim.clone() } else { charge(payload.len()) };
            kept.append_blob(of, now_ms, *header, payload.clone(), claim)
        };
        self.range = Some(range);
        range
    }

    /// The same, compressed of `original`.
    pub(crate) fn of(self, original: Bytes) -> Self {
        Self { original: Some(original), ..self }
    }

    /// The message as it is.
    fn plain(&self) -> &Bytes {
        self.original.as_ref().unwrap_or(&self.parts.payload)
    }

    fn is_text(&self) -> bool {
        // RFC 6455 5.2: the opcode is the low half of the first byte, and 1 is Text.
        self.parts.header.as_slice()[0] & 0x0f == 1
    }

    /// Returns whether it is a Text that would be taken for a control text (`docs/PROTOCOL.md`).
    fn is_escaped(&self) -> bool {
        self.is_text() && resume::text::is_marked(self.plain())
    }

    /// Returns whether a channel that has agreed on compression gets this form rather than the kept one.
    pub(crate) fn is_better_compressed(&self) -> bool {
        self.original.is_some() && !self.is_escaped()
    }

    /// Where it is kept, once a channel needed that.
    #[inline]
    pub(crate) fn kept(&self) -> Option<Range> {
        self.kept
    }

    /// How long the frame is that is kept.
    #[inline]
    pub(crate) fn kept_len(&self) -> usize {
        self.kept.map_or_else(|| self.measure_kept(), |range| range.len())
    }

    fn measure_kept(&self) -> usize {
        let len = self.plain().len() + usize::from(self.is_escaped());
        server_header(Opcode::Text, false, len).as_slice().len() + len
    }

    /// The frame for channels that outlive their connections, of `owner`: not compressed, and escaped where need be.
    /// `channel` is the first.
    pub(crate) fn kept_range(
        &mut self,
        kept: &mut KeptFrames,
        (owner, channel): (OwnerId, ChannelId),
        now_ms: u64,
        charge: impl FnOnce(usize) -> SharedCharge,
    ) -> Range {
        // Memory that was made for this channel may have been the frame's own.
        if let Some(range) = self.kept.filter(|&range| kept.has(range)) {
            return range;
        }
        let of = KeptFor { owner, lane: self.lane.unwrap_or_else(|| kept.lane_of(&channel)) };
        let is_escaped = self.is_escaped();
        let payload = self.plain();
        let mark: &[u8] = if is_escaped { &[resume::MARK] } else { &[] };
        let opcode = if self.is_text() { Opcode::Text } else { Opcode::Binary };
        let header = server_header(opcode, false, mark.len() + payload.len());
        let range = if mark.len() + payload.len() <= self.copy_bytes_max.min(KEPT_COPY_BYTES_MAX) {
            kept.append_joined(of, now_ms, [header.as_slice(), mark, payload], charge)
        } else if is_escaped {
            let payload: Bytes = [mark, payload].concat().into();
            let claim = charge(payload.len());
            kept.append_blob(of, now_ms, header, payload, claim)
        } else {
            // It may be that of the push, or have to be made: a compressed form claims its own bytes.
            let claim = match self.original.is_none() && self.parts.charge.is_counted() {
                true => self.parts.charge.clone(),
                false => charge(payload.len()),
            };
            kept.append_blob(of, now_ms, header, payload.clone(), claim)
        };
        self.kept = Some(range);
        range
    }

    fn keep_ranges(&mut self, is_there: impl Fn(Range) -> bool) {
        self.range = self.range.filter(|&range| is_there(range));
        self.kept = self.kept.filter(|&range| is_there(range));
    }

    /// Where it is sent from: written there, with others for as many, when it is first asked for.
    #[inline]
    pub(crate) fn range(&mut self, cast: Cast, window: &mut Window) -> Range {
        match self.range {
            Some(range) => range,
            None => self.write(cast, window),
        }
    }

    #[cold]
    fn write(&mut self, cast: Cast, window: &mut Window) -> Range {
        let FrameParts { header, payload, charge } = &self.parts;
        let range = if payload.len() > self.copy_bytes_max {
            window.append_blob(cast, Some(*header), payload.clone(), charge.clone())
        } else if charge.is_counted() {
            window.append_large(cast, header, payload, charge)
        } else {
            window.append_joined(cast, header.as_slice(), payload)
        };
        self.range = Some(range);
        range
    }
}

/// The forms of a broadcast's frame.
pub(super) struct Forms {
    plain: Encoding,
    /// By window; empty where no channel of the owner has agreed on compression.
    compressed: SmallVec<[(u8, Encoding); 1]>,
    /// For listeners of event streams; made when the first of them needs it.
    pub event: Option<Encoding>,
    pub kind: PushKind,
}

impl Forms {
    /// `message` is for those contexts that go on from it, where it is compressed.
    pub(super) fn new(
        frame: PushFrame,
        compressed: Option<&Compressed>,
        message: Option<Bytes>,
        mut charge: impl FnMut(&Bytes) -> SharedCharge,
        copy_bytes_max: usize,
    ) -> Self {
        let compressed = compressed.into_iter().flat_map(Compressed::forms);
        let compressed = compressed.map(|(window_bits, payload)| {
            let encoding = Encoding::new(frame.kind, true, payload.clone(), charge(payload), copy_bytes_max);
            (*window_bits, Encoding { message: message.clone(), ..encoding }.of(frame.payload.clone()))
        });
        let compressed = compressed.collect();
        let (kind, plain_charge) = (frame.kind, charge(&frame.payload));
        let plain = Encoding::new(kind, false, frame.payload, plain_charge, copy_bytes_max);
        Self { plain, compressed, event: None, kind }
    }

    /// In history they lie in this lane, if it is known.
    pub(super) fn kept_in(mut self, lane: Option<u8>) -> Self {
        self.plain.lane = lane;
        self.compressed.iter_mut().for_each(|form| form.1.lane = lane);
        self
    }

    /// Those that are not where they were are to be encoded anew.
    pub(super) fn keep_ranges(&mut self, is_there: impl Fn(Range) -> bool) {
        self.plain.keep_ranges(&is_there);
        self.compressed.iter_mut().for_each(|form| form.1.keep_ranges(&is_there));
        self.event.iter_mut().for_each(|event| event.keep_ranges(&is_there));
    }

    /// The message as it is.
    pub(super) fn message(&self) -> (PushKind, &Bytes) {
        (self.kind, &self.plain.parts.payload)
    }

    /// The form that every channel gets that is sent frames, where there is only one.
    #[inline]
    pub(super) fn only(&mut self) -> Option<&mut Encoding> {
        self.compressed.is_empty().then_some(&mut self.plain)
    }

    /// The form that this channel gets.
    pub(super) fn of(&mut self, table: &ConnectionTable, slot: Slot) -> &mut Encoding {
        if !self.compressed.is_empty()
            && let Some(channel) = table.get(slot).and_then(Connection::channel)
            && let Some(agreed) = channel.ws.deflate()
            && let Some(form) = self.compressed.iter_mut().find(|form| form.0 == agreed.server_window_bits())
        {
            return &mut form.1;
        }
        &mut self.plain
    }
}

/// A push to many channels, and those that it has yet to reach.
pub(in crate::shard) struct UnfinishedBroadcast {
    pub(super) forms: Forms,
    pub(super) reached: PushTargets,
    /// The audience, where clients may listen to event streams.
    pub(super) heard_by: Option<ListenerAudience>,
    /// Whether a present or former listener of event streams is left out.
    pub(super) hides: bool,
    pub(super) except: Arc<[ChannelId]>,
    pub(super) owner: OwnerId,
    pub(super) policy: Option<Policy>,
    pub(super) part: Option<SharedPart>,
}

/// Messages that were lost before they came here, and the channels that are to count them yet.
pub(in crate::shard) struct UncountedLoss {
    pub(super) channels: Cohort,
    pub(super) count: u32,
}

/// A push of a guest, and the channels that it has yet to reach.
pub(in crate::shard) struct GuestPush {
    pub channels: std::vec::IntoIter<ChannelId>,
    pub guest: Arc<str>,
    pub frame: PushFrame,
    pub part: Option<SharedPart>,
}

pub(super) enum PushTargets {
    Named(std::vec::IntoIter<ChannelId>),
    All(Cohort),
}

pub(super) fn opcode(kind: PushKind) -> Opcode {
    match kind {
        PushKind::Message(kind) => kind.into(),
        PushKind::Ping => Opcode::Ping,
        PushKind::Pong => Opcode::Pong,
        PushKind::ControlText { .. } => Opcode::Text,
    }
}
