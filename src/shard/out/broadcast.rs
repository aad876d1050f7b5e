//! The frame of a push in the forms in which channels get it, and a broadcast on its way to its channels.
//!
//! Invariant: a form is encoded once for each slice of a broadcast: between two slices, what it has put into the window may
//! have left, and the segments with it.

use crate::channel::ChannelId;
use crate::gateway::OwnerId;
use crate::proto::{Opcode, server_header};
use crate::shard::command::{PushFrame, PushKind};
use crate::shard::memory::Charge;
use crate::shard::out::deflate::Compressed;
use crate::shard::out::frame::FrameParts;
use crate::shard::out::waiting::SharedPart;
use crate::shard::out::window::{Range, Window};
use crate::shard::policy::Policy;
use crate::shard::table::Table;
use crate::shard::table::cohort::Cohort;
use crate::shard::table::connection::Connection;
use crate::shard::table::slot::Slot;
use bytes::Bytes;
use smallvec::SmallVec;
use std::sync::Arc;

/// A frame of one push in one form: encoded when the first channel needs it, then shared by all.
pub(in crate::shard) struct Encoding {
    pub parts: FrameParts,
    copy_bytes_max: usize,
    range: Option<Range>,
    /// The message, where it is compressed and contexts go on from it.
    pub message: Option<Bytes>,
}

impl Encoding {
    /// `charge` is the payload's claim on memory, for those who keep it by reference.
    pub fn new(kind: PushKind, compressed: bool, payload: Bytes, charge: Charge, copy_bytes_max: usize) -> Self {
        let header = server_header(opcode(kind), compressed, payload.len());
        Self { parts: FrameParts { header, payload, charge }, copy_bytes_max, range: None, message: None }
    }

    pub fn range(&mut self, window: &mut Window) -> Range {
        *self.range.get_or_insert_with(|| {
            if self.parts.payload.len() <= self.copy_bytes_max {
                window.append_joined(self.parts.header.as_slice(), &self.parts.payload)
            } else {
                window.append_blob(Some(self.parts.header), self.parts.payload.clone(), self.parts.charge.clone())
            }
        })
    }
}

/// The forms of a broadcast's frame.
pub(super) struct Forms {
    plain: Encoding,
    /// By window; empty where no channel of the owner has agreed on compression.
    compressed: SmallVec<[(u8, Encoding); 1]>,
}

impl Forms {
    /// `message` is for those contexts that go on from it, where it is compressed.
    pub fn new(
        frame: PushFrame,
        compressed: Option<&Compressed>,
        message: Option<Bytes>,
        mut charge: impl FnMut(&Bytes) -> Charge,
        copy_bytes_max: usize,
    ) -> Self {
        let compressed = compressed.into_iter().flat_map(Compressed::forms);
        let compressed = compressed.map(|(window_bits, payload)| {
            let encoding = Encoding::new(frame.kind, true, payload.clone(), charge(payload), copy_bytes_max);
            (*window_bits, Encoding { message: message.clone(), ..encoding })
        });
        let compressed = compressed.collect();
        let plain_charge = charge(&frame.payload);
        Self { plain: Encoding::new(frame.kind, false, frame.payload, plain_charge, copy_bytes_max), compressed }
    }

    /// They are to be encoded anew.
    pub fn forget_ranges(&mut self) {
        self.plain.range = None;
        self.compressed.iter_mut().for_each(|form| form.1.range = None);
    }

    /// The form that this channel gets.
    pub fn of(&mut self, table: &Table, slot: Slot) -> &mut Encoding {
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
pub(in crate::shard) struct Broadcast {
    pub(super) forms: Forms,
    pub(super) reached: Reached,
    pub(super) except: Arc<[ChannelId]>,
    pub(super) owner: OwnerId,
    pub(super) policy: Option<Policy>,
    pub(super) part: Option<SharedPart>,
}

/// A push of a guest, and the channels that it has yet to reach.
pub(in crate::shard) struct OfGuest {
    pub channels: std::vec::IntoIter<ChannelId>,
    pub guest: Arc<str>,
    pub frame: PushFrame,
    pub part: Option<SharedPart>,
}

pub(super) enum Reached {
    Named(std::vec::IntoIter<ChannelId>),
    All(Cohort),
}

pub(super) fn opcode(kind: PushKind) -> Opcode {
    match kind {
        PushKind::Message(kind) => kind.into(),
        PushKind::Ping => Opcode::Ping,
        PushKind::Pong => Opcode::Pong,
    }
}
