//! How orders get to the shards: which command goes to which shard, which account it is charged to, and whether it
//! waits.

use super::BrokerShared;
use super::delivery::{DeliveryOptions, OutcomeTo};
use super::here::must_not_be_on_a_shard;
use super::message::{Message, PAYLOAD_BYTES_MAX};
use super::order::Commands;
use crate::admission::ProcessMemory;
use crate::channel::ChannelId;
use crate::gateway::OwnerId;
use crate::process_id::ProcessId;
use crate::queue::events::{self as process_queue, ProcessQueue};
use crate::queue::orders::{Account, ReservedPlace, SendRefused};
use crate::shard::Owner;
use crate::shard::command::{Command, PushCommand, ReportTo, ShardAudience};
use crate::shard::deflate::{Compressed, Windows};
use crate::shard::event::Event;
use crate::shard::outcome::{OutcomeCollector as Parts, OutcomePart};
use crate::shard::topics::{Topic, TopicClaim, Topics};
pub use crate::words::audience::Audience;
use crate::words::topic::InvalidTopic;
use smallvec::SmallVec;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

/// Why an order was not accepted. It has reached no channel, except as [`PushError::Partly`] says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PushError {
    /// The shard has as much to do as it may hold, or this process as much of that as one may. Try again soon, or
    /// use an end that waits.
    #[error("the shard's inbox is full")]
    InboxFull,
    /// As `InboxFull`, but some shards had accepted their part of the audience: of an order that a handler on a shard
    /// gives, which has done its own shard's part at once. No other is accepted in part.
    #[error("some shards' inboxes are full; the others have accepted the push")]
    Partly,
    /// The process has as many unread outcomes as it may have messages: read events, then push again. Orders that wait
    /// for room do not report this, so that they wait for shards alone; callers must read as fast as they ask.
    #[error("too many outcomes of earlier pushes are unread")]
    OutcomesUnread,
    /// The message is over [`PAYLOAD_BYTES_MAX`]: push it in parts.
    #[error("a message carries at most {PAYLOAD_BYTES_MAX} bytes")]
    TooLarge,
    /// It goes everywhere, and channels are on one node: push to a channel of another node with
    /// [`push_at`](crate::ProcessHandle::push_at).
    #[error("a list reaches channels of this node: push to channels of others one by one, as NODE/ID")]
    ChannelsAreHere,
    /// It is for one other node, and its audience is no list.
    #[error("channels of one other node are addressed by a list of ids; other audiences reach all nodes")]
    OnlyChannels,
    /// A topic's name is empty or too long.
    #[error(transparent)]
    Topic(#[from] InvalidTopic),
    /// The broker has stopped.
    #[error("the broker has stopped")]
    Stopped,
}

/// Whether to wait when an inbox is full.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Full {
    Refuse,
    Wait,
}

/// The way to the shards in the name of one process, or of the broker's operator. Cheap to clone.
#[derive(Clone)]
pub struct Pusher {
    shared: Arc<BrokerShared>,
    pub(super) owner: Option<OwnerId>,
    /// Whose queue its events go to: its own, or the system's of its kernel.
    queue_of: Option<OwnerId>,
    /// Where its events go, if not there: those of a handler on a shard.
    events: Option<ProcessQueue>,
    /// Where what is kept for its owner is charged.
    pub(super) memory: Option<ProcessMemory>,
    /// The compression agreed with its owner's channels.
    windows: Arc<Windows>,
    /// The topics of its owner's channels.
    pub(super) topics: Arc<Topics>,
    pub(super) accounts: Arc<[Account]>,
}

impl Pusher {
    pub(super) fn of_process(shared: Arc<BrokerShared>, owner: &Owner) -> Self {
        let accounts = accounts_of(&shared, &owner.memory);
        let (windows, topics) = (owner.windows.clone(), owner.topics.clone());
        let memory = Some(owner.memory.clone());
        let owner_id = Some(owner.id);
        Self { shared, owner: owner_id, queue_of: owner_id, events: None, memory, windows, topics, accounts }
    }

    /// The same for another owner of the same kernel.
    #[cfg(feature = "node")]
    pub(super) fn in_name_of(&self, owner: &Owner) -> Self {
        let memory = Some(owner.memory.clone());
        let (windows, topics) = (owner.windows.clone(), owner.topics.clone());
        Self { owner: Some(owner.id), memory, windows, topics, ..self.clone() }
    }

    /// The same, whose orders are a producer's of their own: they take turns with the others', and do not stand behind
    /// them.
    #[cfg(feature = "node")]
    pub(super) fn apart(&self) -> Self {
        let memory = self.memory.as_ref().expect("orders apart are those of an owner");
        Self { accounts: accounts_of(&self.shared, memory), ..self.clone() }
    }

    /// The same, whose orders are among those of this producer.
    #[cfg(feature = "node")]
    pub(super) fn among(&self, accounts: &Arc<[Account]>) -> Self {
        Self { accounts: accounts.clone(), ..self.clone() }
    }

    /// The same, whose events go to a queue of their own.
    pub(super) fn reporting_to(&self, events: ProcessQueue) -> Self {
        Self { events: Some(events), ..self.clone() }
    }

    pub(super) fn of_operator(shared: Arc<BrokerShared>) -> Self {
        let accounts = shared.accounts.clone().into();
        let (windows, topics) = Default::default();
        Self { shared, owner: None, queue_of: None, events: None, memory: None, windows, topics, accounts }
    }

    /// Has every shard execute an order after all that were handed over before.
    pub(super) fn send_all(&self, command: impl Fn() -> Command) -> Result<(), PushError> {
        must_not_be_on_a_shard();
        for (inbox, account) in std::iter::zip(&self.shared.inboxes, &*self.accounts) {
            let command = command();
            let bytes = command.payload_bytes();
            inbox.send_wait(command, bytes, account).map_err(|_| PushError::Stopped)?;
        }
        Ok(())
    }

    /// The name of the process, as long as it is attached.
    pub(super) fn name(&self) -> Option<ProcessId> {
        let directory = self.shared.directory();
        Some(directory.owners.get(&self.owner?)?.process.clone())
    }

    /// The number of shards.
    pub(super) fn shards(&self) -> usize {
        self.shared.inboxes.len()
    }

    pub(super) fn shard_of(&self, channel: ChannelId) -> usize {
        self.shared.shard_of(channel)
    }

    /// Outcomes that come as events wait in the process' queue until it reads them.
    pub(super) fn may_ask(&self, delivery: &DeliveryOptions) -> Result<(), PushError> {
        let is_event = matches!(delivery.ask, Some(OutcomeTo::Event(_)));
        if is_event && self.queue().is_some_and(|(_, _, queue)| !queue.has_room_for_outcome()) {
            return Err(PushError::OutcomesUnread);
        }
        Ok(())
    }

    /// A message to one channel of this broker, and its shard.
    pub(super) fn push_command(
        &self,
        channel: ChannelId,
        message: Message,
        delivery: DeliveryOptions,
    ) -> (usize, Command) {
        let asked = self.asked(delivery.ask);
        let push = PushCommand { channel, owner: self.owner, frame: message.0, policy: delivery.policy, asked };
        (self.shard_of(channel), Command::Push(push))
    }

    /// Where the outcome of an order for one channel goes.
    pub(super) fn asked(&self, ask: Option<OutcomeTo>) -> ReportTo {
        match ask {
            None => ReportTo::Nobody,
            Some(OutcomeTo::Failure(number)) => ReportTo::Failure(number),
            ask => self.parts(ask, 1).pop().flatten().map_or(ReportTo::Nobody, ReportTo::Outcome),
        }
    }

    /// The shares of `count` shards in the outcome, if it was asked for.
    pub(super) fn parts(&self, ask: Option<OutcomeTo>, count: usize) -> Vec<Option<Box<OutcomePart>>> {
        let parts = match ask {
            None | Some(OutcomeTo::Failure(_)) => return (0..count).map(|_| None).collect(),
            Some(OutcomeTo::Part(part)) => return self.parts_of(part, count),
            Some(OutcomeTo::Ticket(teller)) => Parts::split(count, move |outcome| teller.tell(outcome)),
            Some(OutcomeTo::Event(ticket)) => {
                let report = self.report();
                Parts::split(count, move |outcome| report(Event::Outcome { ticket, outcome }))
            }
        };
        parts.into_iter().map(|part| Some(Box::new(part))).collect()
    }

    /// The shares of `count` shards in a share.
    fn parts_of(&self, part: Box<OutcomePart>, count: usize) -> Vec<Option<Box<OutcomePart>>> {
        if count == 1 {
            return vec![Some(part)];
        }
        let part = Mutex::new(Some(part));
        let parts = Parts::split(count, move |outcome| {
            if let Some(mut part) = part.lock().unwrap_or_else(PoisonError::into_inner).take() {
                part.counts.add(&outcome);
            }
        });
        parts.into_iter().map(|part| Some(Box::new(part))).collect()
    }

    /// The broker behind it.
    pub(super) fn shared(&self) -> &BrokerShared {
        &self.shared
    }

    /// Puts an event into the queue of this owner, where it still is.
    pub(super) fn report(&self) -> impl Fn(Event) + Send + Sync + 'static {
        let queue = self.queue();
        move |event| {
            if let Some((owner, memory, queue)) = &queue {
                let mut batch = process_queue::EventBatch::new(*owner);
                batch.push(event);
                queue.send(memory, batch);
            }
        }
    }

    /// This owner, and the queue of its events.
    fn queue(&self) -> Option<(OwnerId, ProcessMemory, ProcessQueue)> {
        if let Some(events) = &self.events {
            return Some((self.owner?, self.memory.clone()?, events.clone()));
        }
        let directory = self.shared.directory();
        let queue = directory.owners.get(&self.queue_of?)?.queue.clone();
        Some((self.owner?, self.memory.clone()?, queue))
    }

    /// Counts a channel of this owner into a topic. None: there is no memory for that.
    pub(super) fn claim(&self, channel: ChannelId, topic: &Arc<str>) -> Option<TopicClaim> {
        let shard = self.shard_of(channel) as u32;
        self.topics.claim(topic, shard, self.shards(), self.memory.as_ref()?)
    }

    /// A topic of this owner that has subscribers.
    pub(super) fn topic(&self, name: &str) -> Option<Arc<Topic>> {
        self.topics.find(name)
    }

    /// The message compressed for the channels of this owner, where that pays.
    pub(super) fn compress(&self, message: &Message) -> Option<Arc<Compressed>> {
        self.shared.compression.compress(&message.0, &self.windows)
    }

    /// The part of an audience on each shard that has one; a long list in several.
    pub(super) fn split(&self, audience: Audience) -> Vec<(usize, ShardAudience)> {
        let shards = self.shards();
        match audience {
            Audience::Process => (0..shards).map(|shard| (shard, ShardAudience::Process)).collect(),
            Audience::Path(path) => (0..shards).map(|shard| (shard, ShardAudience::Path(path.clone()))).collect(),
            Audience::Topic(name) => match self.topic(&name) {
                Some(topic) => topic.shards().map(|shard| (shard, ShardAudience::Topic(topic.clone()))).collect(),
                None => Vec::new(),
            },
            Audience::Channels(channels) if shards == 1 => parts_of_list(0, channels),
            Audience::Channels(channels) => {
                let mut lists = vec![Vec::new(); shards];
                for channel in channels {
                    lists[self.shard_of(channel)].push(channel);
                }
                lists.into_iter().enumerate().flat_map(|(shard, list)| parts_of_list(shard, list)).collect()
            }
        }
    }

    /// Gives an order: one command, or one for each shard that has a part of it. Where it may not wait, all shards get
    /// their parts, or none does.
    pub(super) fn give(&self, commands: Commands, full: Full) -> Result<(), PushError> {
        if full == Full::Refuse && commands.len() > 1 {
            return self.admit(commands).map(AdmittedCommands::submit);
        }
        commands.into_iter().try_for_each(|(shard, command)| self.send(shard, command, full))
    }

    /// Takes room at each shard for its part of an order.
    fn admit(&self, commands: Commands) -> Result<AdmittedCommands<'_>, PushError> {
        let admit_one = |(shard, command): (usize, Command)| -> Result<_, PushError> {
            let inbox = &self.shared.inboxes[shard];
            let place = inbox.try_reserve(command.payload_bytes(), &self.accounts[shard]).map_err(refused)?;
            Ok((self.shared.probes[shard].ride_on(command), place))
        };
        joined(commands).into_iter().map(admit_one).collect::<Result<_, _>>().map(AdmittedCommands)
    }

    fn send(&self, shard: usize, command: Command, full: Full) -> Result<(), PushError> {
        let bytes = command.payload_bytes();
        self.send_bytes(shard, command, bytes, full)
    }

    /// As [`send`](Self::send), where it is known already what the command keeps alive.
    pub(super) fn send_bytes(&self, shard: usize, command: Command, bytes: usize, full: Full) -> Result<(), PushError> {
        let (inbox, account) = (&self.shared.inboxes[shard], &self.accounts[shard]);
        let command = self.shared.probes[shard].ride_on(command);
        match full {
            Full::Wait => {
                must_not_be_on_a_shard();
                inbox.send_wait(command, bytes, account).map_err(|_| PushError::Stopped)
            }
            Full::Refuse => inbox.try_send(command, bytes, account).map_err(refused),
        }
    }

    /// As [`send_bytes`](Self::send_bytes), for a task that waits for room.
    pub(super) fn poll_send(
        &self,
        shard: usize,
        command: &mut Option<Command>,
        bytes: usize,
        context: &mut Context<'_>,
    ) -> Poll<Result<(), PushError>> {
        *command = command.take().map(|command| self.shared.probes[shard].ride_on(command));
        let sent = self.shared.inboxes[shard].poll_send(command, bytes, &self.accounts[shard], context);
        sent.map_err(|_| PushError::Stopped)
    }
}

fn refused<T>(why: SendRefused<T>) -> PushError {
    match why {
        SendRefused::Full(_) => PushError::InboxFull,
        SendRefused::Stopped(_) => PushError::Stopped,
    }
}

/// The commands of an order, for which all its shards have room. Dropping it gives the room back.
struct AdmittedCommands<'p>(SmallVec<[(Command, ReservedPlace<'p, Command>); 1]>);

impl AdmittedCommands<'_> {
    /// Has the shards execute them.
    fn submit(self) {
        self.0.into_iter().for_each(|(command, place)| place.put(command));
    }
}

/// Those for one shard as one command, for which there is room as soon as its producer holds nothing there, however
/// large it is.
fn joined(mut commands: Commands) -> Commands {
    // Those for one shard stay in order.
    commands.sort_by_key(|&(shard, _)| shard);
    let mut joined = Commands::new();
    for (shard, command) in commands {
        match joined.last_mut() {
            Some((last, Command::Batch(batch))) if *last == shard => batch.push(command),
            Some((last, first)) if *last == shard => {
                let before = std::mem::replace(first, Command::Batch(Vec::new()));
                *first = Command::Batch(vec![before, command]);
            }
            _ => joined.push((shard, command)),
        }
    }
    joined
}

/// A producer's accounts with all shards. What they hold is told as held for the owner of `memory`.
fn accounts_of(shared: &BrokerShared, memory: &ProcessMemory) -> Arc<[Account]> {
    let accounts: Arc<[Account]> = shared.inboxes.iter().map(|inbox| inbox.account()).collect();
    let of_shards = Arc::downgrade(&accounts);
    let bytes = |accounts: Arc<[Account]>| accounts.iter().map(|account| account.held().1 as usize).sum();
    memory.tenant().add_orders(move || of_shards.upgrade().map(bytes));
    accounts
}

/// Gives each shard its command, one after another, and tells what came of it for all of them.
pub(super) fn give_each(
    commands: Commands,
    mut give: impl FnMut(usize, Command) -> Result<(), PushError>,
) -> Result<(), PushError> {
    let (mut accepted, mut refused) = (0, 0);
    for (shard, command) in commands {
        match give(shard, command) {
            Ok(()) => accepted += 1,
            Err(PushError::InboxFull) => refused += 1,
            Err(error) => return Err(error),
        }
    }
    match (accepted, refused) {
        (_, 0) => Ok(()),
        (0, _) => Err(PushError::InboxFull),
        _ => Err(PushError::Partly),
    }
}

/// Channels of a list in one command. A shard does others' work between commands, and a channel that a list names again
/// and again costs a send each time.
const LISTED_MAX: usize = 1024;

/// A shard's part of a list, in commands that do not keep it long.
fn parts_of_list(shard: usize, list: Vec<ChannelId>) -> Vec<(usize, ShardAudience)> {
    if (1..=LISTED_MAX).contains(&list.len()) {
        return vec![(shard, ShardAudience::Channels(list))];
    }
    list.chunks(LISTED_MAX).map(|part| (shard, ShardAudience::Channels(part.to_vec()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::together::CheckedOrder;
    use crate::broker::{Broker, Config};
    use crate::queue::orders::InboxLimits;

    #[test]
    fn what_is_more_than_one_may_hold_is_accepted_whole_where_nothing_waits() {
        let inbox = InboxLimits { commands_max: 8, bytes_max: 4 << 10 };
        let broker = Broker::start(Config { shards: 1, inbox, ..Config::default() }).unwrap();
        let process = broker.process("p").unwrap();
        // Three orders for the shard, each with more bytes than a quarter of the inbox.
        let list = vec![ChannelId::new(0); 2 * LISTED_MAX + 1];
        let push = || process.broadcast(Message::binary(vec![0; 2000])).to(list.clone()).ask().try_send();
        let counts = push().unwrap().wait(std::time::Duration::from_secs(20)).unwrap();
        assert_eq!(counts.not_found, list.len());
    }

    #[test]
    fn two_forms_that_are_more_than_one_may_hold_are_accepted_where_nothing_waits() {
        let inbox = InboxLimits { commands_max: 8, bytes_max: 4 << 10 };
        let broker = Broker::start(Config { shards: 2, inbox, ..Config::default() }).unwrap();
        let process = broker.process("p").unwrap();
        let form = || process.broadcast(Message::binary(vec![0; 800])).checked().unwrap();
        // Each is less than a quarter of an inbox, and both are more.
        assert_eq!(CheckedOrder::give_all(vec![form(), form()]), Ok(()));
    }
}
