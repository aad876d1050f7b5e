//! The requests of each process of a node that were not passed to the shards yet: one queue for each process.
//!
//! A node kernel has one queue to the server for all its processes, in which a process with many requests delays the
//! others. So messages are moved to a queue of their sender as they come, and these queues are served side by side:
//! each has its own part of the shards' inboxes (a producer's account), and its own changes of paths, made one at a
//! time.
//!
//! Invariants: the requests of one process are carried out in the order in which the kernel sent them, each change of
//! paths before the requests after it; everything that concerns a guest (a process of another node) is in the order of
//! the guest's queue, so that a push after a grant finds it. Nothing here waits: work that cannot proceed now is left,
//! and the polling task is woken when it can. Queued work is charged to its process. A queue that is at its limit, or
//! for which there is no memory, [is reported](RequestQueues::is_full): the reader of the kernel's queue stops then,
//! since nothing but that queue can make a kernel wait. Queues without work are forgotten when there are many, or fewer
//! whose owners have long names.

use super::acting::Collecting;
use super::dispatch::{ActionRequest, CheckedAction};
use super::error::HttpServerError;
use super::identity::Address;
use super::message::{KernelMessage, LazyLoadBlob, Response};
use super::perform::{self, PathChange, Pending};
use crate::admission::Charge;
use crate::broker::{Batch, KernelHandle, ProcessHandle, PushError, RequestId};
use crate::http::HeaderFields;
use crate::process_id::ProcessId;
use bytes::Bytes;
use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, mpsc};
use std::task::{Context, Poll};
use tokio::sync::oneshot;

/// The most messages in one queue: four times as many as one process may have in an inbox.
const MESSAGES_MAX: usize = 16 * 1024;

/// The most heap bytes of one queue: a quarter of those that one process may have in an inbox.
const BYTES_MAX: usize = 4 * 1024 * 1024;

/// With so many queues, idle ones are forgotten: as many as a node has processes with requests now and then.
const KEPT_MAX: usize = 1024;

/// One whose owner has so long a name counts as two.
const NAME_BYTES: usize = 4096;

/// How often a queue passes requests on, or makes a change, before others are served.
const ROUNDS_MAX: usize = 4;

/// Places for waiting jobs that an empty queue keeps.
const PLACES_KEPT: usize = 16;

/// The owner of a queue.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum QueueOwner {
    /// The node's HTTP server itself: answers to calls of the RPC path.
    System,
    Process(ProcessId),
    /// A process of another node, by its address.
    Guest(Arc<str>),
}

impl QueueOwner {
    fn name_bytes(&self) -> usize {
        match self {
            Self::System => 0,
            Self::Process(process) => process.as_str().len(),
            Self::Guest(address) => address.len(),
        }
    }
}

/// A request in a queue.
pub(crate) enum QueuedJob {
    /// An action of a process of the node.
    Act(ActionRequest),
    /// One of a process on another node.
    ActOfGuest(ActionRequest),
    /// A process' answer to the request of a client.
    Respond { id: u64, process: ProcessId, response: Response, blob: Option<LazyLoadBlob> },
    /// The answer to a call of the RPC path.
    Answer { request: RequestId, status: u16, headers: HeaderFields, body: Bytes },
}

impl QueuedJob {
    fn owner(&self) -> QueueOwner {
        match self {
            Self::Act(ActionRequest { action: CheckedAction::Grant { guest, .. }, .. }) => {
                QueueOwner::Guest(address(guest))
            }
            Self::Act(request) => QueueOwner::Process(request.requester().process.clone()),
            Self::ActOfGuest(request) => QueueOwner::Guest(address(request.requester())),
            Self::Respond { process, .. } => QueueOwner::Process(process.clone()),
            Self::Answer { .. } => QueueOwner::System,
        }
    }

    /// The process whose queue it belongs to, if it is one of this node.
    fn process(&self) -> Option<&ProcessId> {
        match self {
            Self::Act(ActionRequest { action: CheckedAction::Grant { .. }, .. }) => None,
            Self::Act(request) => Some(&request.requester().process),
            Self::Respond { process, .. } => Some(process),
            Self::ActOfGuest(_) | Self::Answer { .. } => None,
        }
    }
}

fn address(address: &Address) -> Arc<str> {
    address.to_string().into()
}

/// The handle with which a queue's orders are given.
enum QueueHandle {
    Process(ProcessHandle),
    Kernel(KernelHandle),
}

struct RequestQueue {
    actor: QueueHandle,
    /// The bytes of its owner's name.
    name_bytes: usize,
    /// Collected, and not handed over yet.
    batch: Batch,
    /// In order, with what each takes of the heap.
    waiting: VecDeque<(QueuedJob, usize)>,
    waiting_bytes: usize,
    charge: Charge,
    /// No memory was left for what was put here last.
    is_short: bool,
    /// The waiting requests wait for it.
    change: Option<ChangeStage>,
    is_listed: bool,
}

/// How far a change of paths is.
enum ChangeStage {
    /// Earlier requests are passed on first.
    Asked(Box<PathChange>),
    /// It is being made.
    Begun(oneshot::Receiver<ChangeResult>),
}

type ChangeResult = Result<Option<KernelMessage>, PushError>;

type AskedChange = (PathChange, oneshot::Sender<ChangeResult>);

/// See the module.
pub(crate) struct RequestQueues {
    kernel: KernelHandle,
    pending: Arc<Pending>,
    places: HashMap<QueueOwner, usize>,
    /// The process of the last request, which is most often that of the next one.
    last: Option<(ProcessId, usize)>,
    queues: Vec<RequestQueue>,
    /// As many as they are, and more where names are long.
    weight: usize,
    forget_at: usize,
    /// Those with something to do.
    busy: Vec<usize>,
    full: usize,
    changes: mpsc::Sender<Option<AskedChange>>,
}

/// Makes changes of paths, one after the other, on a thread that may wait for the shards.
pub(crate) struct PathChanges {
    asked: mpsc::Receiver<Option<AskedChange>>,
    stop: StopChanges,
}

/// Ends that thread, though there may still be queues.
#[derive(Clone)]
pub(crate) struct StopChanges(mpsc::Sender<Option<AskedChange>>);

impl StopChanges {
    /// After the change that is being made.
    pub(crate) fn stop(&self) {
        // It may have ended.
        let _ = self.0.send(None);
    }
}

impl PathChanges {
    /// Ends it before the queues are gone.
    pub(crate) fn stopper(&self) -> StopChanges {
        self.stop.clone()
    }

    /// Runs until the queues are gone. Each change is passed to `said` first.
    pub(crate) fn run(self, said: impl Fn(&PathChange)) {
        let Self { asked, stop } = self;
        drop(stop);
        while let Ok(Some((change, to))) = asked.recv() {
            said(&change);
            // No caller waits any more once the server ends.
            let _ = to.send(change.make());
        }
    }
}

impl RequestQueues {
    pub(crate) fn new(kernel: KernelHandle, pending: Arc<Pending>) -> (Self, PathChanges) {
        let (changes, asked) = mpsc::channel();
        let stop = StopChanges(changes.clone());
        let (places, forget_at) = (HashMap::new(), KEPT_MAX);
        let (queues, busy) = (Vec::new(), Vec::new());
        let queues = Self { kernel, pending, places, last: None, queues, weight: 0, forget_at, busy, full: 0, changes };
        (queues, PathChanges { asked, stop })
    }

    /// Queues a job that takes so many bytes, or does it at once. Returns the answer, if there is one already.
    ///
    /// # Errors
    /// The broker has stopped.
    pub(crate) fn put(&mut self, job: QueuedJob, bytes: usize) -> Result<Option<KernelMessage>, PushError> {
        let Some(place) = self.place(&job)? else {
            return Ok(match job {
                QueuedJob::Act(request) => Some(request.reply.refused(HttpServerError::InvalidSourceProcess)),
                _ => None,
            });
        };
        let queue = &mut self.queues[place];
        if !std::mem::replace(&mut queue.is_listed, true) {
            self.busy.push(place);
        }
        if queue.takes_at_once() {
            return match (job, &queue.actor) {
                // Nearly every job.
                (
                    QueuedJob::Act(ActionRequest { action: CheckedAction::Push { channel, message }, reply }),
                    QueueHandle::Process(_),
                ) => {
                    queue.batch.push(channel, message, self.pending.delivery_of_push(reply));
                    Ok(None)
                }
                (job, _) => queue.begin(job, &self.kernel, &self.pending),
            };
        }
        let was_full = queue.is_full();
        queue.push(job, bytes);
        self.full += usize::from(queue.is_full() && !was_full);
        Ok(None)
    }

    /// Returns whether no more should be queued for now.
    pub(crate) fn is_full(&self) -> bool {
        self.full > 0
    }

    /// Returns whether any request was not passed on.
    pub(crate) fn is_busy(&self) -> bool {
        !self.busy.is_empty()
    }

    /// Continues all queues that can proceed; answers go to `answers`. Ready: everything was passed on. Otherwise the
    /// task is woken when more can be.
    ///
    /// # Errors
    /// The broker has stopped.
    pub(crate) fn poll(
        &mut self,
        context: &mut Context<'_>,
        answers: &mut VecDeque<KernelMessage>,
    ) -> Poll<Result<(), PushError>> {
        let Self { kernel, pending, queues, busy, full, changes, .. } = self;
        let mut over = None;
        busy.retain(|&place| {
            let queue = &mut queues[place];
            let was_full = queue.is_full();
            let is_done = match queue.poll(context, (kernel, pending, changes), answers) {
                Poll::Ready(Ok(())) => true,
                Poll::Ready(Err(error)) => {
                    over = Some(error);
                    true
                }
                Poll::Pending => false,
            };
            *full -= usize::from(was_full && !queue.is_full());
            queue.is_listed = !is_done;
            !is_done
        });
        match over {
            Some(error) => Poll::Ready(Err(error)),
            None if busy.is_empty() => Poll::Ready(Ok(())),
            None => Poll::Pending,
        }
    }

    /// The queue of a job, made if there is none. None: there are too many processes.
    fn place(&mut self, job: &QueuedJob) -> Result<Option<usize>, PushError> {
        let Some(process) = job.process() else { return self.queue(job.owner()) };
        if let Some((last, place)) = &self.last
            && last == process
        {
            return Ok(Some(*place));
        }
        let process = process.clone();
        let place = self.queue(QueueOwner::Process(process.clone()))?;
        self.last = place.map(|place| (process, place));
        Ok(place)
    }

    /// The queue of a process, made if it has none. None: there are too many processes.
    fn queue(&mut self, who: QueueOwner) -> Result<Option<usize>, PushError> {
        if let Some(&place) = self.places.get(&who) {
            return Ok(Some(place));
        }
        let actor = match &who {
            QueueOwner::System => QueueHandle::Process(self.kernel.system().ok_or(PushError::Stopped)?.apart()),
            QueueOwner::Guest(_) => QueueHandle::Kernel(self.kernel.apart()),
            QueueOwner::Process(process) => match self.kernel.owner(process) {
                Some(owner) => QueueHandle::Process(owner.apart()),
                // Too many processes, or no broker: which one, the system's own owner tells.
                None => return self.kernel.system().map(|_| None).ok_or(PushError::Stopped),
            },
        };
        if self.weight >= self.forget_at {
            self.forget_idle();
        }
        let (batch, charge) = match &actor {
            QueueHandle::Process(process) => (process.batch(), process.waiting()),
            QueueHandle::Kernel(kernel) => (kernel.batch(), kernel.waiting()),
        };
        let waiting = VecDeque::new();
        let (waiting_bytes, is_short, change, is_listed, name_bytes) = (0, false, None, false, who.name_bytes());
        let mut queue =
            RequestQueue { actor, name_bytes, batch, waiting, waiting_bytes, charge, is_short, change, is_listed };
        queue.settle();
        self.weight += queue.weight();
        self.queues.push(queue);
        self.places.insert(who, self.queues.len() - 1);
        Ok(Some(self.queues.len() - 1))
    }

    /// Forgets idle queues. One with orders in an inbox stays: those of a new one would be another producer's, and
    /// might overtake them.
    fn forget_idle(&mut self) {
        self.last = None;
        let mut left = Vec::new();
        let mut moved: Vec<Option<usize>> = Vec::with_capacity(self.queues.len());
        for queue in self.queues.drain(..) {
            let stays = queue.is_listed || !queue.batch.is_done();
            moved.push(stays.then_some(left.len()));
            if stays {
                left.push(queue);
            }
        }
        self.queues = left;
        self.places.retain(|_, place| match moved[*place] {
            Some(now) => {
                *place = now;
                true
            }
            None => false,
        });
        for place in &mut self.busy {
            *place = moved[*place].expect("a queue with something to do stays");
        }
        self.weight = self.queues.iter().map(RequestQueue::weight).sum();
        self.forget_at = (2 * self.weight).max(KEPT_MAX);
    }
}

impl RequestQueue {
    fn weight(&self) -> usize {
        1 + self.name_bytes / NAME_BYTES
    }

    /// Returns whether a job can be done now, for nothing stands before it.
    fn takes_at_once(&self) -> bool {
        self.waiting.is_empty() && self.is_free()
    }

    fn is_free(&self) -> bool {
        self.change.is_none() && !self.batch.is_full()
    }

    /// Goes on as far as it can now.
    fn poll(
        &mut self,
        context: &mut Context<'_>,
        (kernel, pending, changes): (&KernelHandle, &Pending, &mpsc::Sender<Option<AskedChange>>),
        answers: &mut VecDeque<KernelMessage>,
    ) -> Poll<Result<(), PushError>> {
        for _ in 0..ROUNDS_MAX {
            if self.batch.poll_flush(context)?.is_pending() {
                self.settle();
                return Poll::Pending;
            }
            match self.change.take() {
                Some(ChangeStage::Asked(change)) => {
                    let (done, begun) = oneshot::channel();
                    changes.send(Some((*change, done))).map_err(|_| PushError::Stopped)?;
                    self.change = Some(ChangeStage::Begun(begun));
                    continue;
                }
                Some(ChangeStage::Begun(mut begun)) => match Pin::new(&mut begun).poll(context) {
                    Poll::Ready(changed) => answers.extend(changed.unwrap_or(Err(PushError::Stopped))?),
                    Poll::Pending => {
                        self.change = Some(ChangeStage::Begun(begun));
                        self.settle();
                        return Poll::Pending;
                    }
                },
                None if self.waiting.is_empty() => {
                    self.settle();
                    return Poll::Ready(Ok(()));
                }
                None => {}
            }
            while self.is_free()
                && let Some((job, bytes)) = self.waiting.pop_front()
            {
                self.waiting_bytes -= bytes;
                answers.extend(self.begin(job, kernel, pending)?);
            }
        }
        // Others are served in between.
        self.settle();
        context.waker().wake_by_ref();
        Poll::Pending
    }

    fn is_full(&self) -> bool {
        self.waiting.len() >= MESSAGES_MAX || self.waiting_bytes >= BYTES_MAX || self.is_short
    }

    fn push(&mut self, job: QueuedJob, bytes: usize) {
        self.waiting.push_back((job, bytes));
        self.waiting_bytes += bytes;
        let more = self.held_bytes().saturating_sub(self.charge.bytes());
        self.is_short |= self.charge.grow(more).is_err();
        self.settle();
    }

    /// Charges what is here now.
    fn settle(&mut self) {
        if self.waiting.is_empty() {
            self.is_short = false;
            self.waiting.shrink_to(PLACES_KEPT);
        }
        let bytes = self.held_bytes();
        self.charge.resize(bytes);
    }

    fn held_bytes(&self) -> usize {
        let waiting = self.waiting.capacity() * size_of::<(QueuedJob, usize)>() + self.waiting_bytes;
        size_of::<Self>() + self.name_bytes + waiting + self.batch.payload_bytes()
    }

    /// Does a job: collects its orders, or has its change begun.
    fn begin(
        &mut self,
        job: QueuedJob,
        kernel: &KernelHandle,
        pending: &Pending,
    ) -> Result<Option<KernelMessage>, PushError> {
        let change = match (job, &self.actor) {
            (QueuedJob::Act(request), QueueHandle::Process(owner)) => pending.collect(owner, &mut self.batch, request),
            (QueuedJob::Act(request), QueueHandle::Kernel(_)) => {
                // A grant, in the queue of the guest.
                let Some(owner) = kernel.owner(&request.requester().process) else {
                    return Ok(Some(request.reply.refused(HttpServerError::InvalidSourceProcess)));
                };
                pending.collect(&owner.among(&self.batch), &mut self.batch, request)
            }
            (QueuedJob::ActOfGuest(request), QueueHandle::Kernel(guests)) => {
                return Ok(pending.collect_of_guest(guests, &mut self.batch, request));
            }
            (QueuedJob::Respond { id, response, blob, .. }, QueueHandle::Process(owner)) => {
                perform::respond(&Collecting::new(owner, &mut self.batch), id, &response, blob)?;
                None
            }
            (QueuedJob::Answer { request, status, headers, body }, QueueHandle::Process(system)) => {
                self.batch.add(system.respond(request, status).headers(headers).body(body));
                None
            }
            _ => unreachable!("a job is done at its own queue"),
        };
        self.change = change.map(|change| ChangeStage::Asked(Box::new(change)));
        Ok(None)
    }
}

#[cfg(test)]
#[path = "request_queues_tests.rs"]
mod tests;
