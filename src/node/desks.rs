//! A desk for each process of a node: the queue of its requests that were not passed to the shards yet.
//!
//! A kernel has one queue to the server for all its processes, in which a process with many requests delays the others.
//! So messages are put at the desk of their sender as they come, and desks are served side by side: each has its own
//! part of the shards' inboxes (a producer's account), and its own changes of paths, which are made one at a time.
//!
//! Invariants: the requests of one process are carried out in the order in which the kernel sent them, each change of
//! paths before what comes behind it; everything that concerns a guest (a process of another node) is in the order of
//! the guest's desk, so that a push behind a grant finds it. Nothing here waits: work that cannot proceed now is left,
//! and the polling task is woken when it can. Queued work is charged to its process. A desk that is at its limit, or
//! for which there is no memory, [is reported](Desks::is_full): the reader of the kernel's queue stops then, since
//! nothing but that queue can make a kernel wait. Desks without work are forgotten when there are many.

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

/// Messages that may wait at one desk: four times what one process may have in an inbox.
const MESSAGES_MAX: usize = 16 * 1024;

/// What they may take of the heap: a quarter of what one process may have in an inbox.
const BYTES_MAX: usize = 4 * 1024 * 1024;

/// With so many desks, those that have nothing to do are forgotten: as many as a node has of processes that ask for
/// something now and then.
const KEPT_MAX: usize = 1024;

/// How often a desk hands over, or makes a change, before others are served.
const ROUNDS_MAX: usize = 4;

/// Places for waiting jobs that a desk keeps when nothing waits.
const PLACES_KEPT: usize = 16;

/// Whose desk.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum DeskOf {
    /// The node's HTTP server itself: answers to calls of the RPC path.
    System,
    Process(ProcessId),
    /// A process of another node, by its address.
    Guest(Arc<str>),
}

/// What is done at a desk.
pub(crate) enum DeskJob {
    /// An action of a process of the node.
    Act(ActionRequest),
    /// One of a process on another node.
    ActOfGuest(ActionRequest),
    /// A process' answer to the request of a client.
    Respond { id: u64, process: ProcessId, response: Response, blob: Option<LazyLoadBlob> },
    /// The answer to a call of the RPC path.
    Answer { request: RequestId, status: u16, headers: HeaderFields, body: Bytes },
}

impl DeskJob {
    fn who(&self) -> DeskOf {
        match self {
            Self::Act(ActionRequest { action: CheckedAction::Grant { guest, .. }, .. }) => {
                DeskOf::Guest(address(guest))
            }
            Self::Act(request) => DeskOf::Process(request.requester().process.clone()),
            Self::ActOfGuest(request) => DeskOf::Guest(address(request.requester())),
            Self::Respond { process, .. } => DeskOf::Process(process.clone()),
            Self::Answer { .. } => DeskOf::System,
        }
    }

    /// The process at whose desk it is done, if it is one of this node.
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

/// In whose name orders are given.
enum DeskActor {
    Process(ProcessHandle),
    Kernel(KernelHandle),
}

struct Desk {
    actor: DeskActor,
    /// Collected, and not handed over yet.
    batch: Batch,
    /// In order, with what each takes of the heap.
    waiting: VecDeque<(DeskJob, usize)>,
    waiting_bytes: usize,
    charge: Charge,
    /// No memory was left for what was put here last.
    is_short: bool,
    /// What waits waits for it.
    change: Option<ChangeStage>,
    is_listed: bool,
}

/// How far a change of paths is.
enum ChangeStage {
    /// What was asked for before is handed over first.
    Asked(Box<PathChange>),
    /// It is being made.
    Begun(oneshot::Receiver<ChangeResult>),
}

type ChangeResult = Result<Option<KernelMessage>, PushError>;

type AskedChange = (PathChange, oneshot::Sender<ChangeResult>);

/// See the module.
pub(crate) struct Desks {
    kernel: KernelHandle,
    pending: Arc<Pending>,
    places: HashMap<DeskOf, usize>,
    /// The process that was at its desk last, which is where the next job most often belongs.
    last: Option<(ProcessId, usize)>,
    desks: Vec<Desk>,
    forget_at: usize,
    /// Those that have something to do.
    busy: Vec<usize>,
    full: usize,
    changes: mpsc::Sender<Option<AskedChange>>,
}

/// Makes changes of paths, one after the other, on a thread that may wait for the shards.
pub(crate) struct PathChanges {
    asked: mpsc::Receiver<Option<AskedChange>>,
    stop: StopChanges,
}

/// Ends that thread, though there may still be desks.
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
    /// What ends it before the desks are gone.
    pub(crate) fn stopper(&self) -> StopChanges {
        self.stop.clone()
    }

    /// Until the desks are gone. `said` is told of each.
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

impl Desks {
    pub(crate) fn new(kernel: KernelHandle, pending: Arc<Pending>) -> (Self, PathChanges) {
        let (changes, asked) = mpsc::channel();
        let stop = StopChanges(changes.clone());
        let (places, forget_at) = (HashMap::new(), KEPT_MAX);
        let (desks, busy) = (Vec::new(), Vec::new());
        let desks = Self { kernel, pending, places, last: None, desks, forget_at, busy, full: 0, changes };
        (desks, PathChanges { asked, stop })
    }

    /// Puts a job that takes so many bytes at its desk, or does it at once. Gives the answer, if there is one already.
    ///
    /// # Errors
    /// The broker has stopped.
    pub(crate) fn put(&mut self, job: DeskJob, bytes: usize) -> Result<Option<KernelMessage>, PushError> {
        let Some(place) = self.place(&job)? else {
            return Ok(match job {
                DeskJob::Act(request) => Some(request.reply.refused(HttpServerError::InvalidSourceProcess)),
                _ => None,
            });
        };
        let desk = &mut self.desks[place];
        if !std::mem::replace(&mut desk.is_listed, true) {
            self.busy.push(place);
        }
        if desk.takes_at_once() {
            return match (job, &desk.actor) {
                // Nearly every job.
                (
                    DeskJob::Act(ActionRequest { action: CheckedAction::Push { channel, message }, reply }),
                    DeskActor::Process(_),
                ) => {
                    desk.batch.push(channel, message, self.pending.delivery_of_push(reply));
                    Ok(None)
                }
                (job, _) => desk.begin(job, &self.kernel, &self.pending),
            };
        }
        let was_full = desk.is_full();
        desk.push(job, bytes);
        self.full += usize::from(desk.is_full() && !was_full);
        Ok(None)
    }

    /// Returns whether no more should be put at desks for now.
    pub(crate) fn is_full(&self) -> bool {
        self.full > 0
    }

    /// Returns whether anything was not handed over.
    pub(crate) fn is_busy(&self) -> bool {
        !self.busy.is_empty()
    }

    /// Goes on with all that can go on; answers go to `answers`. Ready: everything was handed over. Else the task is
    /// woken when more can be.
    ///
    /// # Errors
    /// The broker has stopped.
    pub(crate) fn poll(
        &mut self,
        context: &mut Context<'_>,
        answers: &mut VecDeque<KernelMessage>,
    ) -> Poll<Result<(), PushError>> {
        let Self { kernel, pending, desks, busy, full, changes, .. } = self;
        let mut over = None;
        busy.retain(|&place| {
            let desk = &mut desks[place];
            let was_full = desk.is_full();
            let is_done = match desk.poll(context, (kernel, pending, changes), answers) {
                Poll::Ready(Ok(())) => true,
                Poll::Ready(Err(error)) => {
                    over = Some(error);
                    true
                }
                Poll::Pending => false,
            };
            *full -= usize::from(was_full && !desk.is_full());
            desk.is_listed = !is_done;
            !is_done
        });
        match over {
            Some(error) => Poll::Ready(Err(error)),
            None if busy.is_empty() => Poll::Ready(Ok(())),
            None => Poll::Pending,
        }
    }

    /// The desk where a job is done, made if there is none. None: there are too many processes.
    fn place(&mut self, job: &DeskJob) -> Result<Option<usize>, PushError> {
        let Some(process) = job.process() else { return self.desk(job.who()) };
        if let Some((last, place)) = &self.last
            && last == process
        {
            return Ok(Some(*place));
        }
        let process = process.clone();
        let place = self.desk(DeskOf::Process(process.clone()))?;
        self.last = place.map(|place| (process, place));
        Ok(place)
    }

    /// The desk of a process, made if it has none. None: there are too many processes.
    fn desk(&mut self, who: DeskOf) -> Result<Option<usize>, PushError> {
        if let Some(&place) = self.places.get(&who) {
            return Ok(Some(place));
        }
        let actor = match &who {
            DeskOf::System => DeskActor::Process(self.kernel.system().ok_or(PushError::Stopped)?.apart()),
            DeskOf::Guest(_) => DeskActor::Kernel(self.kernel.apart()),
            DeskOf::Process(process) => match self.kernel.owner(process) {
                Some(owner) => DeskActor::Process(owner.apart()),
                // Too many processes, or no broker: which one, the system's own owner tells.
                None => return self.kernel.system().map(|_| None).ok_or(PushError::Stopped),
            },
        };
        if self.desks.len() >= self.forget_at {
            self.forget_idle();
        }
        let (batch, charge) = match &actor {
            DeskActor::Process(process) => (process.batch(), process.waiting()),
            DeskActor::Kernel(kernel) => (kernel.batch(), kernel.waiting()),
        };
        let waiting = VecDeque::new();
        let (waiting_bytes, is_short, change, is_listed) = (0, false, None, false);
        self.desks.push(Desk { actor, batch, waiting, waiting_bytes, charge, is_short, change, is_listed });
        self.places.insert(who, self.desks.len() - 1);
        Ok(Some(self.desks.len() - 1))
    }

    /// Forgets desks of which nothing waits anywhere. One with orders in an inbox stays: those of a new one would be
    /// another producer's, and might overtake them.
    fn forget_idle(&mut self) {
        self.last = None;
        let mut left = Vec::new();
        let mut moved: Vec<Option<usize>> = Vec::with_capacity(self.desks.len());
        for desk in self.desks.drain(..) {
            let stays = desk.is_listed || !desk.batch.is_done();
            moved.push(stays.then_some(left.len()));
            if stays {
                left.push(desk);
            }
        }
        self.desks = left;
        self.places.retain(|_, place| match moved[*place] {
            Some(now) => {
                *place = now;
                true
            }
            None => false,
        });
        for place in &mut self.busy {
            *place = moved[*place].expect("a desk with something to do stays");
        }
        self.forget_at = (2 * self.desks.len()).max(KEPT_MAX);
    }
}

impl Desk {
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

    fn push(&mut self, job: DeskJob, bytes: usize) {
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
        self.waiting.capacity() * size_of::<(DeskJob, usize)>() + self.waiting_bytes + self.batch.payload_bytes()
    }

    /// Does a job: collects its orders, or has its change begun.
    fn begin(
        &mut self,
        job: DeskJob,
        kernel: &KernelHandle,
        pending: &Pending,
    ) -> Result<Option<KernelMessage>, PushError> {
        let change = match (job, &self.actor) {
            (DeskJob::Act(request), DeskActor::Process(owner)) => pending.collect(owner, &mut self.batch, request),
            (DeskJob::Act(request), DeskActor::Kernel(_)) => {
                // A grant, at the desk of the guest.
                let Some(owner) = kernel.owner(&request.requester().process) else {
                    return Ok(Some(request.reply.refused(HttpServerError::InvalidSourceProcess)));
                };
                pending.collect(&owner.among(&self.batch), &mut self.batch, request)
            }
            (DeskJob::ActOfGuest(request), DeskActor::Kernel(guests)) => {
                return Ok(pending.collect_of_guest(guests, &mut self.batch, request));
            }
            (DeskJob::Respond { id, response, blob, .. }, DeskActor::Process(owner)) => {
                perform::respond(&Collecting::new(owner, &mut self.batch), id, &response, blob)?;
                None
            }
            (DeskJob::Answer { request, status, headers, body }, DeskActor::Process(system)) => {
                self.batch.add(system.respond(request, status).headers(headers).body(body));
                None
            }
            _ => unreachable!("a job is done at its own desk"),
        };
        self.change = change.map(|change| ChangeStage::Asked(Box::new(change)));
        Ok(None)
    }
}

#[cfg(test)]
#[path = "desks_tests.rs"]
mod tests;
