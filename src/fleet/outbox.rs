//! Where the broker submits messages for other nodes, on the thread on which a process pushes.
//!
//! Invariants: nothing here waits; what is not accepted is reported in the outcome at once; the queue to NATS is
//! bounded in messages and bytes, one process holds a quarter of it at most, and what waits is charged to the process.

use super::member::Member;
use super::names::Name;
use super::subject::{AudienceKey, NamedAudience, Target};
use super::traffic::{OutboundPush, OutboundTo};
use crate::admission::{Charge, HeldAs as Held};
use crate::broker::{
    Asker, Audience, ChannelAnswer, ChannelAt, ChannelQuestion, FleetReport, OnNodes, OtherBrokers, OutcomeAsker,
    Presence, RemoteAudience, RemotePush,
};
use crate::channel::ChannelId;
use crate::process_id::ProcessId;
use crate::queue::orders::{Account, InboxSender, SendRefused};
use crate::shard::outcome::{Outcome, OutcomePart};
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use tokio::sync::{Notify, mpsc};

/// Messages that may wait for NATS.
pub(super) const QUEUE_MESSAGES_MAX: u32 = 8 * 1024;

/// Audiences that may wait to be subscribed to; the thread finds others by itself.
pub(super) const LISTENS_MAX: usize = 4 * 1024;

/// The memory of a waiting message beside its payload.
const WAITING_BYTES: usize = size_of::<QueuedPush>() + 64;

/// Accounts of processes without anything in the queue are swept when there are so many.
const ACCOUNTS_SWEEP_MIN: usize = 1024;

/// A message that waits for NATS.
pub(super) struct QueuedPush {
    /// The message.
    pub outbound: OutboundPush,
    /// Receives the outcomes of other nodes.
    pub nodes: Option<OutcomeAsker>,
    /// Its share of the memory budget.
    pub charge: Charge,
}

/// An audience that a channel here is about to belong to.
pub(super) struct ListenQuestion {
    /// The audience.
    pub target: Target,
    /// Settled once NATS knows.
    pub part: Option<Box<OutcomePart>>,
}

/// Questions to other nodes that may wait.
pub(super) const QUESTIONS_MAX: usize = 1024;

/// Questions to other nodes beside the outcomes of pushes.
pub(super) enum Question {
    /// How many subscribers a topic has there.
    Count {
        /// Of which process.
        process: ProcessId,
        /// The topic.
        topic: Arc<str>,
        /// Receives the answer.
        asker: Asker<Presence>,
    },
    /// Something of a channel of one of them.
    Channel {
        /// The node.
        node: Name,
        /// Its channel.
        channel: ChannelId,
        /// The question.
        what: ChannelQuestion,
        /// Receives the answer.
        asker: Asker<ChannelAnswer>,
    },
}

/// State shared by the outbox and its thread.
#[derive(Default)]
pub(super) struct State {
    /// NATS is reached.
    pub is_connected: AtomicBool,
    /// Its server is about to stop: another is to be taken.
    pub is_lame: AtomicBool,
    /// It has come or gone, or is about to.
    pub changed: Notify,
    /// The largest message that NATS takes; 0: it has not said.
    pub payload_bytes_max: AtomicUsize,
    /// Audiences that NATS is known to tell us of.
    pub heard: RwLock<HashSet<AudienceKey>>,
    /// An audience was not noted: the thread is to look for all of them.
    pub is_behind: AtomicBool,
    /// How it stands.
    pub report: Mutex<FleetReport>,
    pub full: AtomicU64,
    pub down: AtomicU64,
    pub too_large: AtomicU64,
}

impl State {
    /// The report, to be read or written.
    pub(super) fn report(&self) -> MutexGuard<'_, FleetReport> {
        // It is replaced whole.
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// See the module.
pub(super) struct Outbox {
    node: Name,
    queue: InboxSender<QueuedPush>,
    accounts: Mutex<HashMap<ProcessId, Account>>,
    listens: mpsc::Sender<ListenQuestion>,
    questions: mpsc::Sender<Question>,
    state: Arc<State>,
}

impl Outbox {
    /// The outbox of `node`.
    pub(super) fn new(
        node: Name,
        queue: InboxSender<QueuedPush>,
        (listens, questions): (mpsc::Sender<ListenQuestion>, mpsc::Sender<Question>),
        state: Arc<State>,
    ) -> Self {
        Self { node, queue, accounts: Mutex::default(), listens, questions, state }
    }

    fn account(&self, process: &ProcessId) -> Account {
        let mut accounts = self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(account) = accounts.get(process) {
            return account.clone();
        }
        if accounts.len() >= ACCOUNTS_SWEEP_MIN {
            // Processes that hold something keep their accounts; these are at most one for each queued message.
            accounts.retain(|_, account| account.held() != (0, 0));
        }
        let account = self.queue.account();
        accounts.insert(process.clone(), account.clone());
        account
    }

    fn try_push(&self, abroad: RemotePush) -> (Outcome, Option<OutcomeAsker>) {
        let RemotePush { memory, to, frame, policy, part: _, nodes } = abroad;
        let down = Outcome { fleet_down: 1, ..Outcome::default() };
        let full = Outcome { fleet_full: 1, ..Outcome::default() };
        let too_large = Outcome { fleet_too_large: 1, ..Outcome::default() };
        let Some(process) = memory.tenant().process().cloned() else { return (Outcome::default(), nodes) };
        let to = match to {
            RemoteAudience::All(Audience::Topic(name)) => OutboundTo::All(NamedAudience::Topic(name)),
            RemoteAudience::All(Audience::Path(path)) => OutboundTo::All(NamedAudience::Path(path)),
            RemoteAudience::All(Audience::Process) => OutboundTo::All(NamedAudience::Process),
            RemoteAudience::All(Audience::Channels(_)) => unreachable!("lists are refused where they are given"),
            RemoteAudience::Channels { node, list, as_guest } => match Name::new(&node) {
                Ok(node) if as_guest => OutboundTo::Guest(node, list),
                Ok(node) => OutboundTo::Channels(node, list),
                // No node is called so.
                Err(_) => return (Outcome { not_found: list.len(), ..Outcome::default() }, nodes),
            },
        };
        if !self.state.is_connected.load(Ordering::Acquire) {
            return (down, nodes);
        }
        let outbound = OutboundPush { process, to, frame, policy, asks: nodes.is_some() };
        let bytes = Member::bytes_of(&self.node, &outbound);
        let payload_bytes_max = self.state.payload_bytes_max.load(Ordering::Relaxed);
        if payload_bytes_max > 0 && bytes > payload_bytes_max || !Member::fits(&outbound) {
            return (too_large, nodes);
        }
        let held = WAITING_BYTES + outbound.heap_bytes();
        let Ok(charge) = memory.charge(Held::Orders, held) else { return (full, nodes) };
        let account = self.account(&outbound.process);
        match self.queue.try_send(QueuedPush { outbound, nodes, charge }, bytes, &account) {
            Ok(()) => (Outcome::default(), None),
            Err(SendRefused::Full(waiting)) => (full, waiting.nodes),
            Err(SendRefused::Stopped(waiting)) => (down, waiting.nodes),
        }
    }

    /// The outcome for nodes that a push has not reached.
    fn unreached(&self) -> OnNodes {
        let report = self.state.report();
        let there = report.nodes.iter().filter(|node| !node.is_gone);
        let silent = there.map(|node| node.node.as_str().into()).collect();
        OnNodes { silent, is_partial: true, ..OnNodes::default() }
    }

    fn count(&self, outcome: &Outcome) {
        let State { full, down, too_large, .. } = &*self.state;
        for (count, more) in
            [(full, outcome.fleet_full), (down, outcome.fleet_down), (too_large, outcome.fleet_too_large)]
        {
            count.fetch_add(more as u64, Ordering::Relaxed);
        }
    }
}

impl OtherBrokers for Outbox {
    fn push(&self, mut abroad: RemotePush) {
        let part = abroad.part.take();
        let (outcome, nodes) = self.try_push(abroad);
        self.count(&outcome);
        if let Some(nodes) = nodes {
            nodes.tell(self.unreached());
        }
        if let Some(mut part) = part {
            part.counts.add(&outcome);
        }
    }

    fn listen(&self, process: &ProcessId, topic: &Arc<str>, part: Option<Box<OutcomePart>>) {
        let target = Target { process: process.clone(), to: NamedAudience::Topic(topic.clone()) };
        if self.state.heard.read().unwrap_or_else(PoisonError::into_inner).contains(&target.line()) {
            return;
        }
        let is_connected = self.state.is_connected.load(Ordering::Acquire);
        let refused = match is_connected {
            true => {
                self.listens.try_send(ListenQuestion { target, part }).err().map(mpsc::error::TrySendError::into_inner)
            }
            false => Some(ListenQuestion { target, part }),
        };
        if let Some(mut listen) = refused {
            self.state.is_behind.store(true, Ordering::Release);
            if let Some(part) = &mut listen.part {
                let count = if is_connected { &mut part.counts.fleet_full } else { &mut part.counts.fleet_down };
                *count = 1;
            }
        }
    }

    fn count(&self, process: &ProcessId, topic: &Arc<str>, asker: Asker<Presence>) {
        // Where too many ask already it is dropped, and that tells that nothing is known.
        drop(self.questions.try_send(Question::Count { process: process.clone(), topic: topic.clone(), asker }));
    }

    fn ask_of_channel(&self, at: &ChannelAt, what: ChannelQuestion, asker: Asker<ChannelAnswer>) {
        match Name::new(&at.node) {
            // Where it is dropped, that tells that the node has said nothing.
            Ok(node) => drop(self.questions.try_send(Question::Channel { node, channel: at.channel, what, asker })),
            // No node is called so.
            Err(_) => asker.tell(ChannelAnswer::NotFound),
        }
    }

    fn node(&self) -> &str {
        self.node.as_str()
    }

    fn report(&self) -> FleetReport {
        let mut report = self.state.report().clone();
        let (queued, queued_bytes) = self.queue.held();
        report.connected = self.state.is_connected.load(Ordering::Acquire);
        (report.queued, report.queued_bytes) = (queued, queued_bytes);
        let State { full, down, too_large, .. } = &*self.state;
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let counts = &mut report.counts;
        (counts.full, counts.down, counts.too_large) = (count(full), count(down), count(too_large));
        report
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::{Budget, Ledger};
    use crate::proto::MessageKind;
    use crate::queue::orders::{self, InboxLimits};
    use crate::shard::command::{PushFrame, PushKind};

    struct NoWake;

    impl orders::Wake for NoWake {
        fn wake(&self) {}
    }

    #[test]
    fn what_nats_does_not_take_is_told_at_once_and_one_process_does_not_fill_the_queue() {
        let limits = InboxLimits { commands_max: 16, bytes_max: 1 << 20 };
        let (queue, mut inbox) = orders::inbox(limits, NoWake);
        let ((listens, _listens), (questions, _questions)) = (mpsc::channel(1), mpsc::channel(1));
        let state = Arc::<State>::default();
        let outbox = Outbox::new(Name::new("a").unwrap(), queue, (listens, questions), state.clone());
        let pool = Ledger::new(Budget::default()).pool();
        let push = |process: &str, len: usize| {
            let payload = vec![b'x'; len].into();
            outbox.try_push(RemotePush {
                memory: pool.memory_of(process.parse().unwrap()),
                to: RemoteAudience::All(Audience::Process),
                frame: PushFrame { kind: PushKind::Message(MessageKind::Text), payload },
                policy: None,
                part: None,
                nodes: None,
            })
        };
        let told = |process: &str, len| {
            let outcome = push(process, len).0;
            (outcome.fleet_full, outcome.fleet_down, outcome.fleet_too_large)
        };
        assert_eq!(told("p:a:b", 1), (0, 1, 0), "NATS is not reached");
        state.is_connected.store(true, Ordering::Release);
        state.payload_bytes_max.store(1000, Ordering::Relaxed);
        assert_eq!(told("p:a:b", 1000), (0, 0, 1), "with its header it is larger than NATS takes");
        let taken = (0..16).filter(|_| told("p:a:b", 1) == (0, 0, 0)).count();
        assert_eq!((taken, told("p:a:b", 1)), (4, (1, 0, 0)), "a quarter of the queue, and then it is full");
        assert_eq!(told("q:a:b", 1), (0, 0, 0), "there is room for others");
        let mut left = 0;
        inbox.drain(100, u64::MAX, |_| left += 1);
        assert_eq!((left, told("p:a:b", 1)), (5, (0, 0, 0)), "there is room again");
    }
}
