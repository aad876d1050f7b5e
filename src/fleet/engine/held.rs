//! The memory of the fleet's thread for audiences and other nodes, charged to the fleet as to a process.
//!
//! Invariants: audiences, which clients choose, are charged before they are listened to, and refused if there is no
//! memory for them; numbers are bounded by `fleet_subjects_max`, and charged as they are found to be kept; an answer
//! that waits for NATS is charged until it leaves.

use super::Engine;
use crate::admission::{Charge, HeapBytes, HeldAs, ProcessMemory, table_bytes};
use crate::broker::BrokerHandle;
use crate::fleet::subject::AudienceKey;
use crate::fleet::traffic::Publish;
use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::PoisonError;
use tokio::task::AbortHandle;

/// In whose name it is charged.
const NAME: &str = "fleet:pushring:sys";

/// The memory of listening to an audience, beside the tables: a subscription of NATS' client, whose queue is made with
/// room for 32 messages, and the task that reads it.
const SUBSCRIPTION_BYTES: usize = 7 * 1024;

/// The memory of a push whose outcome other nodes are asked for: its asker's end, and the task that gives up.
const ASKING_BYTES: usize = 512;

/// So many audiences are listened to whatever memory there is: those of the processes themselves.
const LISTENS_ANYWAY: usize = 64;

/// See the module.
pub(super) struct FleetMemory {
    memory: ProcessMemory,
    charge: RefCell<Charge>,
}

impl FleetMemory {
    /// The charge of orders for the shards that wait; of none yet.
    pub(super) fn charge_of_orders(&self) -> Charge {
        self.memory.charge_anyway(HeldAs::Orders, 0)
    }

    /// Nothing is kept yet.
    pub(super) fn new(broker: &BrokerHandle) -> Self {
        let memory = broker.memory_for(NAME.parse().expect("it is a process' name"));
        let charge = RefCell::new(memory.charge_anyway(HeldAs::Topics, 0));
        Self { memory, charge }
    }
}

impl Engine {
    /// Returns whether there is memory to listen to one more audience; then it is charged.
    pub(super) fn may_listen(&self) -> bool {
        let may = self.listening.borrow().len() < LISTENS_ANYWAY || self.held.memory.has_room(SUBSCRIPTION_BYTES);
        if may {
            let mut charge = self.held.charge.borrow_mut();
            let bytes = charge.bytes();
            charge.resize(bytes + SUBSCRIPTION_BYTES);
        }
        may
    }

    /// Has an answer to another node sent, behind those that wait for NATS. A node that asks too much, or asks when
    /// memory is short, gets none, and counts this one as silent.
    pub(super) fn answer_soon(&self, answer: Publish) {
        let bytes = answer.subject.heap_bytes() + answer.bytes.heap_bytes() + size_of::<Publish>();
        if let Ok(charge) = self.held.memory.charge(HeldAs::Topics, bytes) {
            let _ = self.answers.try_send((answer, charge));
        }
    }

    /// Charges what is kept now.
    pub(super) fn count_held(&self) {
        let listening = self.listening.borrow();
        let heard = self.state.heard.read().unwrap_or_else(PoisonError::into_inner).capacity();
        let bytes = listening.len() * SUBSCRIPTION_BYTES
            + table_of(&listening)
            + table_bytes::<AudienceKey, ()>(heard)
            + self.asking.borrow().len() * ASKING_BYTES
            + self.member.borrow().heap_bytes()
            + self.remembered.borrow().heap_bytes();
        self.held.charge.borrow_mut().resize(bytes);
    }
}

fn table_of(listening: &HashMap<AudienceKey, AbortHandle>) -> usize {
    table_bytes::<AudienceKey, AbortHandle>(listening.capacity())
}
