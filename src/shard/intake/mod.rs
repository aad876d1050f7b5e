//! The inbound path: the bytes of a read become requests, frames and events.
//!
//! Invariant: bytes are parsed where they are read, and where a turn resumes paused clients ([`Intake::resume`]),
//! nowhere else: a send that made room for a client only marks the client as ready to resume.

pub(super) mod exchange;
mod http;
mod proxy_header;
pub(super) mod receive;
pub(super) mod records;

use crate::proto::Scratch;
use crate::shard::table::connection::{Connection, Flag};
use crate::shard::table::slot::Slot;
use std::collections::VecDeque;

/// Messages are inflated so much at a time.
const INFLATE_STEP_BYTES: usize = 64 * 1024;

/// See the module.
pub(super) struct Intake {
    /// The shard's number, for the ids of requests.
    shard: u32,
    scratch: Option<Box<Scratch>>,
    /// Connections that were paused, for whatever reason, and may go on.
    resume: VecDeque<Slot>,
    rng: u64,
}

impl Intake {
    /// Nothing was read yet. `seed` decides the ids of requests.
    pub(super) fn new(shard: u32, seed: u64) -> Self {
        Self {
            shard,
            scratch: Some(Box::new(Scratch::in_steps(INFLATE_STEP_BYTES))),
            resume: VecDeque::new(),
            rng: seed | 1,
        }
    }

    /// This connection may go on with what was read but not parsed, with its next request, or with its socket.
    pub(super) fn resume(&mut self, connection: &mut Connection, slot: Slot) {
        if connection.flags.set_new(Flag::Resumes) {
            self.resume.push_back(slot);
        }
    }

    /// Returns whether any paused client may resume.
    pub(super) fn wants_resume(&self) -> bool {
        !self.resume.is_empty()
    }

    /// A number that clients cannot predict if the seed was random (xorshift64*).
    pub(super) fn random(&mut self) -> u64 {
        self.rng ^= self.rng >> 12;
        self.rng ^= self.rng << 25;
        self.rng ^= self.rng >> 27;
        self.rng.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// Asserts what the module promises, as far as this part knows it.
    pub(super) fn check(&self) {
        assert!(self.scratch.is_some(), "nothing is being parsed between turns");
    }
}
