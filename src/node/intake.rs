//! Messages of the kernel, taken in on the node's own runtime.
//!
//! In turns: what is there is taken, then handed over. Where turns have more than one message, other tasks are let run
//! before one ends, for the node is in the middle of sending, and two that wake each other for every message cost more
//! than the messages. A message that comes alone is handed over at once.
//!
//! Invariants: the node's runtime never waits here. Room in an inbox is awaited; a change of paths is made on a thread that
//! may wait, and awaited before the next message is taken. Never waits for the kernel while the kernel may be waiting for
//! us: an answer that its queue has no room for is kept here. They are few: each belongs to a message that the kernel has
//! taken out of that very queue.

use super::host::Host;
use super::inbound::{MessageReader, TakenMessage};
use super::message::KernelMessage;
use super::perform::Change;
use super::prints::{Prints, VERBOSE};
use super::server::ServerError;
use super::service::TAKEN_AT_ONCE_MAX;
use crate::broker::PushError;
use std::collections::VecDeque;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};
use tokio::task;

/// How many messages are taken before what they push is handed over: the shards are not kept waiting for more of them.
const TAKEN_IN_A_TURN_MAX: usize = 8 * TAKEN_AT_ONCE_MAX;

/// See the module.
pub(super) struct NodeIntake<H: Host> {
    inlet: MessageReader,
    host: Arc<H>,
    from_kernel: mpsc::Receiver<H::Message>,
    to_kernel: mpsc::Sender<H::Message>,
    prints: Prints<H>,
    /// TakenMessage out of the kernel's queue, and not read yet.
    messages: Vec<H::Message>,
    answers: VecDeque<KernelMessage>,
    /// The turn before had more than one message.
    was_burst: bool,
}

/// How the server ended, from whoever waits for that.
pub(super) type ServerEnd = oneshot::Receiver<Result<(), ServerError>>;

impl<H: Host> NodeIntake<H> {
    pub fn new(
        inlet: MessageReader,
        host: Arc<H>,
        from_kernel: mpsc::Receiver<H::Message>,
        to_kernel: mpsc::Sender<H::Message>,
        prints: Prints<H>,
    ) -> Self {
        let messages = Vec::with_capacity(TAKEN_AT_ONCE_MAX);
        let answers = VecDeque::new();
        Self { inlet, host, from_kernel, to_kernel, prints, messages, answers, was_burst: false }
    }

    /// Takes in until the server has ended, which is told, or is to be stopped: the kernel has gone, or the broker has.
    pub async fn run(mut self, ending: &mut ServerEnd) -> Option<Result<(), ServerError>> {
        loop {
            tokio::select! {
                ended = &mut *ending => return Some(ended.unwrap_or(Err(ServerError::Panicked))),
                taken = self.from_kernel.recv_many(&mut self.messages, TAKEN_AT_ONCE_MAX) => if taken == 0 {
                    return None; // The kernel has gone.
                },
                room = self.to_kernel.reserve(), if !self.answers.is_empty() => {
                    give(room.ok()?, &mut self.answers, &*self.host);
                }
            }
            self.turn().await.ok()?;
            while !self.answers.is_empty()
                && let Ok(room) = self.to_kernel.try_reserve()
            {
                give(room, &mut self.answers, &*self.host);
            }
        }
    }

    /// Takes what has come and what comes meanwhile, and hands it over.
    async fn turn(&mut self) -> Result<(), PushError> {
        let mut taken = 0;
        let mut is_burst = self.was_burst;
        while !self.messages.is_empty() {
            taken += self.messages.len();
            is_burst |= self.messages.len() > 1;
            self.take_in().await?;
            if taken >= TAKEN_IN_A_TURN_MAX {
                break;
            }
            if is_burst && self.from_kernel.is_empty() {
                task::yield_now().await;
                is_burst = false;
            }
            let more = std::iter::from_fn(|| self.from_kernel.try_recv().ok());
            self.messages.extend(more.take(TAKEN_AT_ONCE_MAX));
        }
        self.was_burst = taken > 1;
        self.inlet.batch.flush_async().await
    }

    /// Reads what was taken out of the queue.
    async fn take_in(&mut self) -> Result<(), PushError> {
        let mut messages = std::mem::take(&mut self.messages);
        for message in messages.drain(..).filter_map(|message| self.host.to_ours(message)) {
            match self.inlet.take(message)? {
                TakenMessage::Whole => {}
                TakenMessage::Answer(answer) => self.answers.push_back(answer),
                TakenMessage::Change(change) => {
                    self.inlet.batch.flush_async().await?;
                    self.prints.say(VERBOSE, &change.words());
                    self.answers.extend(make(change).await?);
                }
            }
            if self.inlet.batch.is_full() {
                self.inlet.batch.flush_async().await?;
            }
        }
        self.messages = messages;
        Ok(())
    }
}

/// Makes a change on a thread that may wait for the shards.
async fn make(change: Change) -> Result<Option<KernelMessage>, PushError> {
    // An error: the runtime shuts down, and the server with it.
    task::spawn_blocking(|| change.make()).await.unwrap_or(Err(PushError::Stopped))
}

fn give<H: Host>(room: mpsc::Permit<'_, H::Message>, answers: &mut VecDeque<KernelMessage>, host: &H) {
    if let Some(answer) = answers.pop_front() {
        room.send(host.to_node(answer));
    }
}
