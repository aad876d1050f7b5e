//! From the node's kernel to the shards: one message after the other, in the order in which the kernel sent them.
//!
//! Pushes are collected until [`Inlet::hand_over`], or until something else is asked: so each shard obeys in the order in
//! which the kernel sent. Waits for room in a shard's inbox, which drains at CPU speed, and never for a client.

use super::dispatch::{Action, ActionRequest, Inbound, dispatch};
use super::error::HttpServerError;
use super::identity::Address;
use super::message::{KernelMessage, LazyLoadBlob, Response};
use super::perform::{self, Pending};
use super::rpc::rpc_response_body;
use super::service::Calls;
use crate::broker::{Batch, KernelHandle, OwnerHandle, PushError};
use crate::gateway::Dialect;
use crate::http;
use crate::process_id::ProcessId;
use rustc_hash::FxHashMap;
use std::sync::Arc;

pub(crate) struct Inlet {
    pub our_node: String,
    pub dialect: Dialect,
    pub kernel: KernelHandle,
    pub pending: Arc<Pending>,
    pub calls: Arc<Calls>,
    pub owners: Owners,
    /// Pushes that were not handed over yet.
    pub batch: Batch,
}

impl Inlet {
    /// Does what one message says, and gives the answer, if there is one now.
    ///
    /// # Errors
    /// The broker has stopped.
    pub fn take(&mut self, message: KernelMessage) -> Result<Option<KernelMessage>, PushError> {
        match dispatch(message, &self.our_node, self.dialect) {
            Inbound::Refused(answer) => Ok(Some(answer)),
            Inbound::Action(request) => self.act(request),
            Inbound::Response { id, source, response, blob } => {
                self.respond(id, source, response, blob)?;
                Ok(None)
            }
        }
    }

    /// Hands over the pushes that were taken.
    ///
    /// # Errors
    /// The broker has stopped.
    pub fn hand_over(&mut self) -> Result<(), PushError> {
        self.batch.send_wait()
    }

    fn act(&mut self, request: ActionRequest) -> Result<Option<KernelMessage>, PushError> {
        if !request.requester().is_on(&self.our_node) {
            self.batch.send_wait()?;
            return self.pending.push_as_guest(&self.kernel, request);
        }
        let Some(owner) = self.owners.owner(&self.kernel, &request.requester().process)? else {
            return Ok(Some(request.reply.refused(HttpServerError::InvalidSourceProcess)));
        };
        match request {
            ActionRequest { action: Action::Push { channel, message }, reply } => {
                let delivery = self.pending.delivery_of_push(reply);
                self.batch.push_wait_as(owner, channel, message, delivery)?;
                Ok(None)
            }
            ActionRequest { action: Action::Grant { channel, guest, is_granted }, reply } => {
                self.batch.send_wait()?;
                self.pending.grant(owner, channel, &guest, is_granted, reply)
            }
            request => {
                self.batch.send_wait()?;
                self.pending.perform(owner, request)
            }
        }
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
            let json = http::Response::new(200).with("content-type", "application/json").with_body(body.into());
            return super::login::answer(&self.kernel, request, json).ok_or(PushError::Stopped);
        }
        if source.node == super::OUR {
            source.node = self.our_node.clone();
        }
        if source.node != self.our_node {
            return Ok(());
        }
        match self.owners.owner(&self.kernel, &source.process)? {
            Some(owner) => perform::respond(owner, id, &response, blob),
            None => Ok(()),
        }
    }
}

/// As many as a node has of processes that ask for something now and then.
const OWNERS_KEPT_MAX: usize = 1024;

/// Those that have asked for something. A full table is begun anew: whoever asks again is found again, and who does not,
/// since its process has gone, is forgotten.
#[derive(Default)]
pub(crate) struct Owners {
    places: FxHashMap<ProcessId, usize>,
    handles: Vec<OwnerHandle>,
}

impl Owners {
    /// What acts in the name of `process`; none if there are too many processes.
    ///
    /// # Errors
    /// The broker has stopped.
    fn owner(&mut self, kernel: &KernelHandle, process: &ProcessId) -> Result<Option<&OwnerHandle>, PushError> {
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
