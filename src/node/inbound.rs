//! From the node's kernel to the shards: one message after the other, in the order in which the kernel sent them.
//!
//! Orders to shards are collected until they are handed over, so each shard obeys in the order in which the kernel sent.
//! What must have taken effect everywhere before its answer, a change of paths, is given back as a [`Change`]: hand over
//! what was collected, make it, then take the next message. Nothing here waits for anybody.

use super::acting::Collecting;
use super::dispatch::{ActionRequest, Inbound, dispatch};
use super::error::HttpServerError;
use super::identity::{Address, ServerName};
use super::message::{KernelMessage, LazyLoadBlob, Response};
use super::perform::{self, Change, Pending};
use super::rpc::rpc_response_body;
use super::service::{Calls, Name};
use crate::broker::{Batch, KernelHandle, ProcessHandle, PushError};
use crate::gateway::Dialect;
use crate::http;
use crate::process_id::ProcessId;
use rustc_hash::FxHashMap;
use std::sync::Arc;

pub(crate) struct MessageReader {
    pub our_node: String,
    pub dialect: Dialect,
    pub kernel: KernelHandle,
    pub pending: Arc<Pending>,
    pub calls: Arc<Calls>,
    pub name: Arc<Name>,
    pub owners: ActingProcesses,
    /// Orders that were not handed over yet. Full: hand them over before the next message is taken.
    pub batch: Batch,
}

/// What is left to do for a message that was taken.
pub(crate) enum TakenMessage {
    /// Nothing.
    Whole,
    /// This answer goes to the kernel.
    Answer(KernelMessage),
    /// A change, to be made before the next message is taken.
    Change(Change),
}

impl From<Option<KernelMessage>> for TakenMessage {
    fn from(answer: Option<KernelMessage>) -> Self {
        answer.map_or(Self::Whole, Self::Answer)
    }
}

impl MessageReader {
    /// Takes one message.
    ///
    /// # Errors
    /// The broker has stopped.
    pub fn take(&mut self, message: KernelMessage) -> Result<TakenMessage, PushError> {
        if let Some(name) = ServerName::of(&message.target.process) {
            self.name.set(name);
        }
        match dispatch(message, &self.our_node, self.dialect) {
            Inbound::Refused(answer) => Ok(TakenMessage::Answer(answer)),
            Inbound::Action(request) => self.act(request),
            Inbound::Response { id, source, response, blob } => {
                self.respond(id, source, response, blob)?;
                Ok(TakenMessage::Whole)
            }
        }
    }

    fn act(&mut self, request: ActionRequest) -> Result<TakenMessage, PushError> {
        if !request.requester().is_on(&self.our_node) {
            return Ok(self.pending.collect_of_guest(&self.kernel, &mut self.batch, request).into());
        }
        let Some(owner) = self.owners.owner(&self.kernel, &request.requester().process)? else {
            return Ok(TakenMessage::Answer(request.reply.refused(HttpServerError::InvalidSourceProcess)));
        };
        let change = self.pending.collect(owner, &mut self.batch, request);
        Ok(change.map_or(TakenMessage::Whole, TakenMessage::Change))
    }

    fn respond(
        &mut self,
        id: u64,
        mut source: Address,
        response: Response,
        blob: Option<LazyLoadBlob>,
    ) -> Result<(), PushError> {
        if let Some(request) = self.calls.answered(id) {
            let body = rpc_response_body(response, blob);
            let json = http::PreparedResponse::new(200).with("content-type", "application/json").with_body(body.into());
            let (status, headers, body) = json.into_parts();
            let system = self.kernel.system().ok_or(PushError::Stopped)?;
            self.batch.add(system.respond(request, status).headers(headers).body(body));
            return Ok(());
        }
        if source.node == super::OUR {
            source.node = self.our_node.clone();
        }
        if source.node != self.our_node {
            return Ok(());
        }
        match self.owners.owner(&self.kernel, &source.process)? {
            Some(owner) => perform::respond(&Collecting::new(owner, &mut self.batch), id, &response, blob),
            None => Ok(()),
        }
    }
}

/// As many as a node has of processes that ask for something now and then.
const OWNERS_KEPT_MAX: usize = 1024;

/// Those that have asked for something. A full table is begun anew: whoever asks again is found again, and who does not,
/// since its process has gone, is forgotten.
#[derive(Default)]
pub(crate) struct ActingProcesses {
    places: FxHashMap<ProcessId, usize>,
    handles: Vec<ProcessHandle>,
}

impl ActingProcesses {
    /// What acts in the name of `process`; none if there are too many processes.
    ///
    /// # Errors
    /// The broker has stopped.
    fn owner(&mut self, kernel: &KernelHandle, process: &ProcessId) -> Result<Option<&ProcessHandle>, PushError> {
        let place = match self.places.get(process) {
            Some(&place) => place,
            None => {
                let Some(owner) = kernel.owner(process) else {
                    // Too many processes, or no broker: which one, the system's own owner tells.
                    return kernel.system().map(|_| None).ok_or(PushError::Stopped);
                };
                if self.handles.len() >= OWNERS_KEPT_MAX {
                    *self = Self::default();
                }
                self.places.insert(process.clone(), self.handles.len());
                self.handles.push(owner);
                self.handles.len() - 1
            }
        };
        Ok(self.handles.get(place))
    }
}
