//! A backend over two queues of KernelMessages: for processes under a kernel in the same program, and for tests.

use super::backend::{Backend, BackendDelivery, BackendStopped};
use crate::node::KernelMessage;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::time::Instant;

/// Sends to one queue and receives from another. The process is stopped when the other ends of both are gone.
#[derive(Debug)]
pub struct Mailbox {
    to_kernel: SyncSender<KernelMessage>,
    from_kernel: Receiver<KernelMessage>,
}

impl Mailbox {
    /// A mailbox between these queues. Sending waits for room in the first.
    pub fn new(to_kernel: SyncSender<KernelMessage>, from_kernel: Receiver<KernelMessage>) -> Self {
        Self { to_kernel, from_kernel }
    }
}

impl Backend for Mailbox {
    fn send(&mut self, message: KernelMessage) -> Result<(), BackendStopped> {
        self.to_kernel.send(message).map_err(|_| BackendStopped)
    }

    fn receive(&mut self, deadline: Option<Instant>) -> Result<Option<BackendDelivery>, BackendStopped> {
        let received = match deadline {
            None => self.from_kernel.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(deadline) => self.from_kernel.recv_timeout(deadline.saturating_duration_since(Instant::now())),
        };
        match received {
            Ok(message) => Ok(Some(message.into())),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err(BackendStopped),
        }
    }
}
