//! Messages of the kernel, received on the node's own runtime.
//!
//! In turns: available messages are taken, then passed on. Where turns have more than one message, the task yields
//! before one ends, for the node is in the middle of sending, and two tasks that wake each other for every message cost
//! more than the messages. A message that comes alone is passed on at once.
//!
//! Invariants: the node's runtime never waits here, and no process waits for another's room in an inbox or change of
//! paths ([`super::request_queues`]); messages are left in the queue only while a queue is at its limit. Never waits
//! for the kernel while the kernel may be waiting for the server: an answer that its queue has no room for is kept
//! here. They are few: each belongs to a message that the kernel has taken out of that very queue.

use super::error::ServerError;
use super::host::Host;
use super::inbound::MessageReader;
use super::message::KernelMessage;
use super::service::TAKEN_AT_ONCE_MAX;
use crate::broker::PushError;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use tokio::sync::{mpsc, oneshot};
use tokio::task;

/// How many messages are taken before what they push is handed over: the shards are not kept waiting for more of them.
const TAKEN_IN_A_TURN_MAX: usize = 8 * TAKEN_AT_ONCE_MAX;

/// See the module.
pub(super) struct NodeIntake<H: Host> {
    reader: MessageReader,
    host: Arc<H>,
    from_kernel: mpsc::Receiver<H::Message>,
    to_kernel: mpsc::Sender<H::Message>,
    /// Taken out of the kernel's queue, and not read yet.
    messages: Vec<H::Message>,
    answers: VecDeque<KernelMessage>,
    /// The turn before had more than one message.
    was_burst: bool,
}

/// How the server ended, from the thread that waits for that.
pub(super) type ServerEnd = oneshot::Receiver<Result<(), ServerError>>;

impl<H: Host> NodeIntake<H> {
    pub(super) fn new(
        reader: MessageReader,
        host: Arc<H>,
        from_kernel: mpsc::Receiver<H::Message>,
        to_kernel: mpsc::Sender<H::Message>,
    ) -> Self {
        let messages = Vec::with_capacity(TAKEN_AT_ONCE_MAX);
        let answers = VecDeque::new();
        Self { reader, host, from_kernel, to_kernel, messages, answers, was_burst: false }
    }

    /// Takes in until the server has ended, which is told, or is to be stopped: the kernel has gone, or the broker has.
    pub(super) async fn run(mut self, ending: &mut ServerEnd) -> Option<Result<(), ServerError>> {
        loop {
            let Self { reader, host, from_kernel, to_kernel, messages, answers, .. } = &mut self;
            let (takes, is_busy, has_answers) =
                (!reader.queues.is_full(), reader.queues.is_busy(), !answers.is_empty());
            tokio::select! {
                ended = &mut *ending => return Some(ended.unwrap_or(Err(ServerError::Panicked))),
                taken = from_kernel.recv_many(messages, TAKEN_AT_ONCE_MAX), if takes => if taken == 0 {
                    // The kernel has gone. What it has asked for is done.
                    poll_fn(|context| reader.poll(context, answers)).await.ok()?;
                    return None;
                },
                handed_over = poll_fn(|context| reader.poll(context, answers)), if is_busy => handed_over.ok()?,
                room = to_kernel.reserve(), if has_answers => give(room.ok()?, answers, &**host),
            }
            self.turn().await.ok()?;
            while !self.answers.is_empty()
                && let Ok(room) = self.to_kernel.try_reserve()
            {
                give(room, &mut self.answers, &*self.host);
            }
        }
    }

    /// Takes what has come and what comes meanwhile, and hands over what there is room for.
    async fn turn(&mut self) -> Result<(), PushError> {
        let mut taken = 0;
        let mut is_burst = self.was_burst;
        while !self.messages.is_empty() {
            taken += self.messages.len();
            is_burst |= self.messages.len() > 1;
            self.take_in()?;
            if taken >= TAKEN_IN_A_TURN_MAX || self.reader.queues.is_full() {
                break;
            }
            if is_burst && self.from_kernel.is_empty() {
                task::yield_now().await;
                is_burst = false;
            }
            // Their places in the queue come back together, so that the node is woken once.
            let Self { from_kernel, messages, .. } = self;
            poll_fn(|context| Poll::Ready(from_kernel.poll_recv_many(context, messages, TAKEN_AT_ONCE_MAX).is_ready()))
                .await;
        }
        self.was_burst = taken > 1;
        let Self { reader, answers, .. } = self;
        // What cannot be handed over now is when the task is woken.
        poll_fn(|context| match reader.poll(context, answers) {
            Poll::Ready(done) => Poll::Ready(done),
            Poll::Pending => Poll::Ready(Ok(())),
        })
        .await
    }

    /// Reads what was taken out of the queue.
    fn take_in(&mut self) -> Result<(), PushError> {
        for message in self.messages.drain(..).filter_map(|message| self.host.to_ours(message)) {
            self.answers.extend(self.reader.take(message)?);
        }
        Ok(())
    }
}

fn give<H: Host>(room: mpsc::Permit<'_, H::Message>, answers: &mut VecDeque<KernelMessage>, host: &H) {
    if let Some(answer) = answers.pop_front() {
        room.send(host.to_node(answer));
    }
}
