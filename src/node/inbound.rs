//! From the node's kernel to the shards: one message after the other, each into the queue of its sender.
//!
//! The orders of one process are carried out in the order in which the kernel sent them, and a change of paths has
//! taken effect everywhere before the orders behind it are carried out ([`super::request_queues`]). Nothing here
//! waits.

use super::calls::{AddressedName, Calls};
use super::dialect::Dialect;
use super::dispatch::{Inbound, dispatch, is_unreadable};
use super::identity::{Address, ServerName};
use super::message::{KernelMessage, LazyLoadBlob, Response};
use super::request_queues::{QueuedJob, RequestQueues};
use super::rpc::rpc_response_body;
use crate::admission::HeapBytes;
use crate::broker::PushError;
use crate::http::PreparedResponse;
use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll};

pub(crate) struct MessageReader {
    pub our_node: String,
    pub dialect: Dialect,
    pub calls: Arc<Calls>,
    pub name: Arc<AddressedName>,
    pub queues: RequestQueues,
}

impl MessageReader {
    /// Takes one message. Gives the answer, if there is one already; whatever else comes of it comes of
    /// [`poll`](Self::poll).
    ///
    /// # Errors
    /// The broker has stopped.
    pub(crate) fn take(&mut self, message: KernelMessage) -> Result<Option<KernelMessage>, PushError> {
        if let Some(name) = ServerName::of(&message.target.process) {
            self.name.set(name);
        }
        let (bytes, is_unreadable) = (message.heap_bytes(), is_unreadable(&message));
        let job = match dispatch(message, &self.our_node, self.dialect) {
            Inbound::Refused(answer) => return Ok(Some(answer)),
            Inbound::Action(request) if request.requester().is_on(&self.our_node) => QueuedJob::Act(request),
            Inbound::Action(request) => QueuedJob::ActOfGuest(request),
            Inbound::Response { id, source, response, blob } => {
                match self.response(id, source, (!is_unreadable).then_some(response), blob) {
                    Some(job) => job,
                    None => return Ok(None),
                }
            }
        };
        self.queues.put(job, bytes)
    }

    /// As [`RequestQueues::poll`].
    ///
    /// # Errors
    /// The broker has stopped.
    pub(crate) fn poll(
        &mut self,
        context: &mut Context<'_>,
        answers: &mut VecDeque<KernelMessage>,
    ) -> Poll<Result<(), PushError>> {
        self.queues.poll(context, answers)
    }

    /// The job for a response, which may have been lost on its way; none if it comes from another node and answers no
    /// call.
    fn response(
        &self,
        id: u64,
        source: Address,
        response: Option<Response>,
        blob: Option<LazyLoadBlob>,
    ) -> Option<QueuedJob> {
        if let Some(request) = self.calls.answered(id) {
            let answer = match response {
                Some(response) => PreparedResponse::new(200)
                    .with("content-type", "application/json")
                    .with_body(rpc_response_body(response, blob).into()),
                None => PreparedResponse::text(500, "the process' answer is larger than the link takes"),
            };
            let (status, headers, body) = answer.into_parts();
            return Some(QueuedJob::Answer { request, status, headers, body });
        }
        let process = source.is_on(&self.our_node).then_some(source.process)?;
        // Without a body it is no HTTP response, which is answered 500.
        Some(QueuedJob::Respond { id, process, response: response.unwrap_or_default(), blob })
    }
}
