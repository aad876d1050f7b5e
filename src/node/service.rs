//! The contract between a broker and a node's kernel, wherever the kernel is: in this program (`server`) or at the
//! other end of a link.
//!
//! Four parts for as many threads: messages of the kernel go in (`inbound`), paths are changed (`request_queues`),
//! events come out (`outbound`), passwords are checked (`login`). Starts no threads itself.

use super::calls::{AddressedName, Calls};
use super::dialect::Dialect;
use super::events::EventMessages;
use super::inbound::MessageReader;
use super::login::{LoginAttempts, LoginQueue, PasswordCheck, PasswordWorker};
use super::outbound::{MessageIds, MessageWriter, ToKernel};
use super::perform::{Pending, Unasked};
use super::request_queues::{PathChanges, RequestQueues};
use crate::broker::KernelHandle;
use std::sync::Arc;

/// Messages of a kernel that are taken at once: as many as a node's queue to its HTTP server holds.
pub(crate) const TAKEN_AT_ONCE_MAX: usize = 32;

/// See the module.
pub(crate) struct Service<K: ToKernel, G> {
    pub reader: MessageReader,
    pub changes: PathChanges,
    pub writer: MessageWriter<K>,
    pub logins: PasswordWorker<G>,
    /// The attempts that `logins` checks.
    pub attempts: LoginAttempts,
}

impl<K: ToKernel, G: PasswordCheck> Service<K, G> {
    /// For the kernel that is attached as `kernel`.
    pub(crate) fn new(kernel: KernelHandle, to_kernel: K, password: G) -> Self {
        let settings = kernel.settings();
        let (our_node, dialect) = (settings.user.clone(), Dialect::of(&settings));
        let pending = Arc::new(Pending::new(Unasked::Failures, Some(kernel.waiting())));
        let calls = Arc::new(Calls::default());
        let name = Arc::new(AddressedName::default());
        let (login_queue, attempts) = LoginQueue::new();
        let writer = MessageWriter {
            events: EventMessages::new(&our_node, dialect),
            kernel: kernel.clone(),
            pending: pending.clone(),
            calls: calls.clone(),
            name: name.clone(),
            login_queue,
            to_kernel,
            extensions: Default::default(),
            ids: MessageIds::new(),
        };
        let logins = PasswordWorker { password, kernel: kernel.clone() };
        let (queues, changes) = RequestQueues::new(kernel, pending);
        let reader = MessageReader { our_node, dialect, calls, name, queues };
        Self { reader, changes, writer, logins, attempts }
    }
}
