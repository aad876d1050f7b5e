//! From the node's kernel to the shards: one message after the other, in the order in which the kernel sent them.
//!
//! Waits for room in a shard's inbox, which drains at CPU speed, and never for a client.

use super::dispatch::{Action, ActionRequest, Inbound, dispatch};
use super::error::HttpServerError;
use super::identity::Address;
use super::message::{KernelMessage, LazyLoadBlob, Response};
use super::perform::{self, Pending};
use super::rpc::rpc_response_body;
use super::server::Calls;
use crate::broker::{KernelHandle, OwnerHandle, PushError, RequestId};
use crate::gateway::Dialect;
use crate::http;
use crate::process_id::ProcessId;
use std::collections::HashMap;
use std::sync::Arc;

pub(super) struct Inlet {
    pub our_node: String,
    pub dialect: Dialect,
    pub kernel: KernelHandle,
    pub pending: Arc<Pending>,
    pub calls: Arc<Calls>,
    /// Those that have asked for something; as many as the kernel has owners at most.
    pub owners: HashMap<ProcessId, OwnerHandle>,
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

    fn act(&mut self, request: ActionRequest) -> Result<Option<KernelMessage>, PushError> {
        if request.requester.node != self.our_node {
            // Binds were refused already; a process of another node owns no channel here, whatever its name.
            return Ok(match request.action {
                Action::PushMany { .. } | Action::Push { .. } | Action::Close { .. } => {
                    Some(request.reply.refused(HttpServerError::WsChannelNotFound))
                }
                _ => Some(request.reply.refused(HttpServerError::InvalidSourceProcess)),
            });
        }
        let process = request.requester.process.clone();
        match self.owner(&process)? {
            Some(owner) => self.pending.perform(&owner, request),
            None => Ok(Some(request.reply.refused(HttpServerError::InvalidSourceProcess))),
        }
    }

    fn respond(
        &mut self,
        id: u64,
        mut source: Address,
        response: Response,
        blob: Option<LazyLoadBlob>,
    ) -> Result<(), PushError> {
        if source.node == super::OUR {
            source.node = self.our_node.clone();
        }
        if self.calls.is_answered(id, &source) {
            let body = rpc_response_body(response, blob);
            let json = http::Response::new(200).with("content-type", "application/json").with_body(body.into());
            return super::login::answer(&self.kernel, RequestId(id), json).ok_or(PushError::Stopped);
        }
        if source.node != self.our_node {
            return Ok(());
        }
        match self.owner(&source.process)? {
            Some(owner) => perform::respond(&owner, id, &response, blob),
            None => Ok(()),
        }
    }

    fn owner(&mut self, process: &ProcessId) -> Result<Option<OwnerHandle>, PushError> {
        if let Some(owner) = self.owners.get(process) {
            return Ok(Some(owner.clone()));
        }
        let Some(owner) = self.kernel.owner(process) else {
            // Too many processes, or no broker: which one, its own owner tells.
            return self.kernel.system().map(|_| None).ok_or(PushError::Stopped);
        };
        self.owners.insert(process.clone(), owner.clone());
        Ok(Some(owner))
    }
}
