//! The API on the shard that a request came to, which carries it out if it is short and waits for nothing. Other
//! requests go to the API's thread. All of them were [admitted](super::guard) by their heads.
//!
//! Invariants: the work here is bounded by [`SHORT_BODY_BYTES_MAX`]; requests that wait for the thread are bounded in
//! number and charged in bytes. It must not know outcomes or idempotency keys, except that they need the thread.

use super::answer::ApiAnswer;
use super::body::{OutcomeWanted, PublishOrder};
use super::perform::Performer;
use super::request::{self, AdmittedRequest, PushRequest, SHORT_BODY_BYTES_MAX};
use crate::admission::{HeapBytes, HeldAs};
use crate::broker::{Event, Here, HttpAsk, HttpRequest, RequestId, ShardHandler};
use crossbeam_channel::{Sender, TrySendError};
use std::sync::Arc;

/// See the module. One on each shard.
pub(super) struct ApiOnShard {
    /// The part of a path before `/api`.
    pub prefix: Arc<str>,
    pub performer: Performer,
    /// The way to the API's thread.
    pub thread: Sender<AdmittedRequest>,
}

impl ShardHandler for ApiOnShard {
    fn on_event(&mut self, here: &mut Here<'_>, event: Event) {
        let Event::Http(request) = event else { return };
        let HttpRequest { id, ask: HttpAsk::Path(asked), body, .. } = *request else { return };
        let answer = request::path_of(&asked, &self.prefix).map(str::to_owned).and_then(|path| {
            let request = AdmittedRequest { id, path, asked, body, charge: None };
            match self.done_here(&request) {
                Some(order) => self.performer.push(order?).map(|_| Some(ApiAnswer::accepted())),
                None => self.to_thread(here, request).map(|()| None),
            }
        });
        if let Some(answer) = answer.unwrap_or_else(Some) {
            respond(here, id, answer);
        }
    }
}

impl ApiOnShard {
    /// The order, or its fault, if the request is to be carried out on this thread.
    fn done_here(&self, request: &AdmittedRequest) -> Option<Result<PublishOrder, ApiAnswer>> {
        let AdmittedRequest { path, asked, body, .. } = request;
        let is_short = path == "/push" && body.len() <= SHORT_BODY_BYTES_MAX;
        if !is_short || asked.headers.contains_key("idempotency-key") {
            return None;
        }
        match request::read(asked, body.clone()) {
            Ok(PushRequest::One(order)) if order.outcome == OutcomeWanted::Nothing => Some(Ok(order)),
            // One with an outcome is parsed again on the thread: what waits is the request alone, as it was charged.
            Ok(_) => None,
            Err(refused) => Some(Err(refused)),
        }
    }

    fn to_thread(&self, here: &Here<'_>, mut request: AdmittedRequest) -> Result<(), ApiAnswer> {
        let (memory, bytes) = (here.memory(), request.heap_bytes());
        let charge = if request.body.len() > SHORT_BODY_BYTES_MAX {
            memory.charge(HeldAs::Content, bytes).map_err(|_| ApiAnswer::memory_is_short())?
        } else {
            // So few of these may wait that they need not be refused where memory is short.
            memory.charge_anyway(HeldAs::Content, bytes)
        };
        request.charge = Some(charge);
        self.thread.try_send(request).map_err(|error| match error {
            TrySendError::Full(_) => {
                let why = "too many requests wait to be answered: nothing was done";
                ApiAnswer::error(429, None, why).with("retry-after", "1")
            }
            TrySendError::Disconnected(_) => ApiAnswer::error(503, None, "the API has ended"),
        })
    }
}

fn respond(here: &mut Here<'_>, id: RequestId, answer: ApiAnswer) {
    let (status, fields, body) = answer.into_parts();
    // The only error is that the broker has stopped.
    let _ = here.respond(id, status).headers(fields).body(body).send();
}
