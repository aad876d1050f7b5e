//! A process' state between its calls: the requests that wait for a response and their deadlines, the request that the
//! next response answers, and the blob of the message received last.
//!
//! The rules are those of a node's kernel. A request that expects a response becomes the prompting message, and a
//! response brings back the one that prompted its request. A response without an outstanding request is dropped. A
//! timeout loses against a response delivered before it was noticed. It must not know threads or sockets.

use super::backend::{Backend, BackendDelivery, BackendPush, BackendRequest, BackendStopped, Blob, SendErrorKind};
use super::message::{Message, SendError};
use crate::node::{self, Address, KernelMessage, LazyLoadBlob, WsMessageType};
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

/// Most deliveries that are looked through for a late response when a timeout is noticed.
const DRAIN_DELIVERIES_MAX: usize = 4096;

pub(super) struct ProcessState {
    our: Address,
    backend: Box<dyn Backend>,
    prompting: Option<Prompting>,
    blob: Option<Blob>,
    outstanding: HashMap<u64, Outstanding>,
    /// When each outstanding request times out.
    timeouts: BTreeSet<(Instant, u64)>,
    /// Deliveries that arrived but were not given to the process yet.
    arrived: VecDeque<BackendDelivery>,
    ids: RequestIds,
}

/// The recipient of a response.
#[derive(Clone)]
struct Prompting {
    id: u64,
    source: Address,
    rsvp: Option<Address>,
}

struct Outstanding {
    target: Address,
    context: Option<Vec<u8>>,
    prompting: Option<Prompting>,
    /// None: further away than the clock reaches.
    deadline: Option<Instant>,
    /// Whether its response or failure waits to be received; a second one is dropped.
    answered: bool,
}

/// A request as the process built it.
pub(super) struct OutgoingRequest {
    pub target: Address,
    pub request: node::Request,
    pub context: Option<Vec<u8>>,
    pub blob: Option<LazyLoadBlob>,
}

pub(super) type ReceivedMessage = Result<Message, SendError>;

impl ProcessState {
    pub(super) fn new(our: Address, backend: Box<dyn Backend>) -> Self {
        Self {
            our,
            backend,
            prompting: None,
            blob: None,
            outstanding: HashMap::new(),
            timeouts: BTreeSet::new(),
            arrived: VecDeque::new(),
            ids: RequestIds::new(),
        }
    }

    pub(super) fn our(&self) -> &Address {
        &self.our
    }

    pub(super) fn blob(&self) -> Option<&Blob> {
        self.blob.as_ref()
    }

    pub(super) fn take_blob(&mut self) -> Option<Blob> {
        self.blob.take()
    }

    pub(super) fn into_backend(self) -> Box<dyn Backend> {
        self.backend
    }

    /// Sends a request and returns its id.
    pub(super) fn send(&mut self, outgoing: OutgoingRequest) -> Result<u64, BackendStopped> {
        let OutgoingRequest { target, request, context, blob } = outgoing;
        let inherited = self.prompting.clone().filter(|_| request.inherit);
        let id = match &inherited {
            Some(prompting) => prompting.id,
            None => self.unused_id(),
        };
        let rsvp = match request.expects_response {
            Some(_) => Some(self.our.clone()),
            None => inherited.and_then(|prompting| prompting.rsvp),
        };
        let blob = self.blob_to_send(blob, request.inherit);
        if let Some(timeout_s) = request.expects_response {
            self.expect(id, target.clone(), context, timeout_s);
        }
        let message = node::Message::Request(request);
        let source = self.our.clone();
        self.backend.send(KernelMessage { id, source, target, rsvp, message, lazy_load_blob: blob })?;
        Ok(id)
    }

    /// Pushes to a channel of `node`'s server, expecting no answer.
    pub(super) fn push(
        &mut self,
        node: String,
        channel_id: u32,
        message_type: WsMessageType,
        blob: LazyLoadBlob,
    ) -> Result<(), BackendStopped> {
        let id = self.unused_id();
        self.backend.push(BackendPush { id, source: self.our.clone(), node, channel_id, message_type, blob })
    }

    /// Answers the prompting message; false if there is none.
    pub(super) fn respond(
        &mut self,
        response: node::Response,
        blob: Option<LazyLoadBlob>,
    ) -> Result<bool, BackendStopped> {
        let Some(Prompting { id, source, rsvp }) = self.prompting.clone() else { return Ok(false) };
        let blob = self.blob_to_send(blob, response.inherit);
        self.backend.send(KernelMessage {
            id,
            source: self.our.clone(),
            target: rsvp.unwrap_or(source),
            rsvp: None,
            message: node::Message::Response((response, None)),
            lazy_load_blob: blob,
        })?;
        Ok(true)
    }

    /// The next message or failure; none when `deadline` passed.
    pub(super) fn receive(&mut self, deadline: Option<Instant>) -> Result<Option<ReceivedMessage>, BackendStopped> {
        Ok(self.next_delivery(deadline)?.map(|delivery| self.take(delivery)))
    }

    /// The response to request `id`, or why there is none. Everything else waits until it is received.
    pub(super) fn receive_response(&mut self, id: u64) -> Result<ReceivedMessage, BackendStopped> {
        if let Some(at) = self.arrived.iter().position(|delivery| answered(delivery) == Some(id)) {
            let delivery = self.arrived.remove(at).expect("the position was just found");
            return Ok(self.take(delivery));
        }
        let mut others = std::mem::take(&mut self.arrived);
        let answer = loop {
            match self.next_delivery(None) {
                Ok(Some(delivery)) if answered(&delivery) == Some(id) => break Ok(delivery),
                Ok(Some(delivery)) => others.push_back(delivery),
                Ok(None) => unreachable!("nothing but a deadline ends a wait without a delivery"),
                Err(stopped) => break Err(stopped),
            }
        };
        others.append(&mut self.arrived);
        self.arrived = others;
        answer.map(|delivery| self.take(delivery))
    }

    /// The next delivery that belongs to this process' requests, be it a timeout.
    fn next_delivery(&mut self, deadline: Option<Instant>) -> Result<Option<BackendDelivery>, BackendStopped> {
        loop {
            if let Some(delivery) = self.arrived.pop_front() {
                return Ok(Some(delivery));
            }
            let timeout = self.timeouts.first().map(|(at, _)| *at);
            if timeout.is_some_and(|at| at <= Instant::now()) {
                self.time_out()?;
                continue;
            }
            let wake_at = [deadline, timeout].into_iter().flatten().min();
            match self.backend.receive(wake_at)? {
                Some(delivery) if self.is_expected(&delivery) => return Ok(Some(delivery)),
                Some(_) => {}
                None if deadline.is_some_and(|at| at <= Instant::now()) => return Ok(None),
                None => {}
            }
        }
    }

    /// Queues a failure for each request whose time is over, behind what was delivered before.
    fn time_out(&mut self) -> Result<(), BackendStopped> {
        let now = Instant::now();
        for _ in 0..DRAIN_DELIVERIES_MAX {
            match self.backend.receive(Some(now))? {
                Some(delivery) if self.is_expected(&delivery) => self.arrived.push_back(delivery),
                Some(_) => {}
                None => break,
            }
        }
        while let Some((at, id)) = self.timeouts.first().copied() {
            if at > now {
                break;
            }
            let timeout = BackendDelivery::Undelivered { id, kind: SendErrorKind::Timeout };
            if self.is_expected(&timeout) {
                self.arrived.push_back(timeout);
            }
        }
        Ok(())
    }

    /// Returns whether the process is to see this. An answer that it waits for can no longer time out.
    fn is_expected(&mut self, delivery: &BackendDelivery) -> bool {
        let Some(id) = answered(delivery) else { return true };
        match self.outstanding.get_mut(&id) {
            Some(outstanding) if !outstanding.answered => {
                outstanding.answered = true;
                if let Some(at) = outstanding.deadline {
                    self.timeouts.remove(&(at, id));
                }
                true
            }
            _ => false,
        }
    }

    fn take(&mut self, delivery: BackendDelivery) -> ReceivedMessage {
        match delivery {
            BackendDelivery::Request(request) => Ok(self.take_request(request)),
            BackendDelivery::Response { id, source, response, blob } => {
                self.blob = blob;
                let context = self.outstanding.remove(&id).and_then(|outstanding| {
                    self.prompting = outstanding.prompting;
                    outstanding.context
                });
                Ok(Message::Response {
                    source,
                    body: response.body.into(),
                    metadata: response.metadata,
                    context,
                    capabilities: response.capabilities.into_iter().map(|(capability, _)| capability).collect(),
                })
            }
            BackendDelivery::Undelivered { id, kind } => {
                self.blob = None;
                let outstanding = self.outstanding.remove(&id).expect("only expected answers are taken, and once");
                self.prompting = outstanding.prompting;
                Err(SendError { kind, target: outstanding.target, context: outstanding.context })
            }
        }
    }

    fn take_request(&mut self, request: BackendRequest) -> Message {
        let BackendRequest { id, source, rsvp, expects_response, body, metadata, capabilities, blob } = request;
        self.blob = blob;
        if expects_response.is_some() || rsvp.is_some() {
            self.prompting = Some(Prompting { id, source: source.clone(), rsvp });
        }
        Message::Request { source, expects_response, body, metadata, capabilities }
    }

    fn expect(&mut self, id: u64, target: Address, context: Option<Vec<u8>>, timeout_s: u64) {
        let deadline = Instant::now().checked_add(Duration::from_secs(timeout_s));
        let outstanding = Outstanding { target, context, prompting: self.prompting.clone(), deadline, answered: false };
        let before = self.outstanding.insert(id, outstanding);
        if let Some(Outstanding { deadline: Some(at), .. }) = before {
            self.timeouts.remove(&(at, id));
        }
        if let Some(at) = deadline {
            self.timeouts.insert((at, id));
        }
    }

    fn blob_to_send(&self, own: Option<LazyLoadBlob>, inherit: bool) -> Option<LazyLoadBlob> {
        own.or_else(|| self.blob.clone().filter(|_| inherit).map(LazyLoadBlob::from))
    }

    fn unused_id(&mut self) -> u64 {
        loop {
            let id = self.ids.next();
            if !self.outstanding.contains_key(&id) {
                return id;
            }
        }
    }
}

fn answered(delivery: &BackendDelivery) -> Option<u64> {
    match delivery {
        BackendDelivery::Request(_) => None,
        BackendDelivery::Response { id, .. } | BackendDelivery::Undelivered { id, .. } => Some(*id),
    }
}

/// Ids that other processes of the node do not use: a hash, keyed at random, of a count.
struct RequestIds {
    key: RandomState,
    count: u64,
}

impl RequestIds {
    fn new() -> Self {
        Self { key: RandomState::new(), count: 0 }
    }

    fn next(&mut self) -> u64 {
        self.count += 1;
        self.key.hash_one(self.count)
    }
}
