//! Pushes to channels that only receive (event streams): a push is one event for all of them, written once into the
//! history, from which it is sent and, for returning clients, sent again.
//!
//! Invariants: an event is made only where there are listeners, or were a while ago; what waits for a listener is
//! bounded, and dropped, as frames are: an event stands in the queue as a frame does.

use crate::gateway::OwnerId;
use crate::resume;
use crate::shard::command::{Policy, PushKind};
use crate::shard::core::Shard;
use crate::shard::memory::SharedCharge;
use crate::shard::out::broadcast::{Encoding, Forms, UnfinishedBroadcast};
use crate::shard::out::journal::Journal;
use crate::shard::out::kept::FRAME_BYTES_MAX;
use crate::shard::out::listener_audience::ListenerAudience;
use crate::shard::out::push::fits;
use crate::shard::out::window::Cast;
use crate::shard::owners::topics::{Topic, TopicClaim};
use crate::shard::table::connection::Flag;
use crate::shard::table::slot::Slot;
use crate::shard::work::copy_ns;
use crate::sse;
use bytes::Bytes;
use std::sync::Arc;

impl Shard {
    /// The event of a push for listeners.
    pub(super) fn event_for(
        &mut self,
        owner: OwnerId,
        audience: ListenerAudience,
        (kind, payload): (PushKind, &Bytes),
        policy: Option<Policy>,
    ) -> Encoding {
        let copy_bytes_max = self.config.copy_bytes_max;
        let kind = match kind {
            PushKind::Message(kind) => kind,
            PushKind::ControlText { .. } => {
                let text = payload.strip_prefix(&[resume::MARK]).unwrap_or(payload);
                return Encoding::of_event(sse::control(text).into(), SharedCharge::default(), copy_bytes_max);
            }
            PushKind::Ping | PushKind::Pong => {
                return Encoding::of_event(Bytes::from_static(sse::COMMENT), SharedCharge::default(), copy_bytes_max);
            }
        };
        let now_ms = self.now_ms;
        let journal = self.out.journals.entry(owner).or_insert_with(|| Journal::new(now_ms));
        let (count, keeper) = (journal.next(), journal.keeper(owner, &audience));
        let id = self.event_id(count);
        // With the prefix of each line, a large one may exceed the length that a kept entry can name.
        let event = Bytes::from(match payload.len() > FRAME_BYTES_MAX / 4 {
            true => sse::gap("size", id),
            false => sse::message(id, kind, payload),
        });
        self.work.spend(copy_ns(2 * event.len()));
        let of = self.owners.find(owner).map(|place| self.owners[place].owner.clone());
        let charge = self.charge(&event, policy, of.as_deref());
        let memory = &mut self.memory;
        let mut encoding = Encoding::of_event(event, charge, copy_bytes_max);
        let range =
            encoding.keep_event(&mut self.out.window.kept, keeper, now_ms, |bytes| memory.charge(bytes, of.as_deref()));
        if let Some(journal) = self.out.journals.get_mut(&owner) {
            journal.record(audience, range, now_ms);
            journal.count(|bytes| memory.charge(bytes, of.as_deref()));
        }
        encoding
    }

    /// The event of a broadcast, made once.
    pub(super) fn make_event(
        &mut self,
        forms: &mut Forms,
        owner: OwnerId,
        audience: &ListenerAudience,
        policy: Option<Policy>,
    ) {
        if forms.event.is_none() {
            forms.event = Some(self.event_for(owner, audience.clone(), forms.message(), policy));
        }
    }

    /// A broadcast has no present listeners, but some are waited for that would receive it.
    pub(super) fn keep_for_those_who_left(&mut self, broadcast: &mut UnfinishedBroadcast) {
        let UnfinishedBroadcast { forms, heard_by: Some(audience), hides, owner, policy, .. } = broadcast else {
            return;
        };
        let is_awaited = self.out.journals.get(owner).is_some_and(|journal| journal.awaits(audience, self.now_ms));
        if is_awaited && matches!(forms.kind, PushKind::Message(_)) {
            let recorded = if *hides { &ListenerAudience::Listed } else { audience };
            self.make_event(forms, *owner, recorded, *policy);
        }
    }

    /// A broadcast has ended. If no listener received it as an event, former members of its audience that are no longer
    /// waited for have missed it.
    pub(super) fn note_unheard(&mut self, broadcast: &UnfinishedBroadcast) {
        if let UnfinishedBroadcast { forms, heard_by: Some(audience), owner, .. } = broadcast
            && forms.event.is_none()
            && matches!(forms.kind, PushKind::Message(_))
            && let Some(journal) = self.out.journals.get_mut(owner)
        {
            journal.skip(audience);
        }
    }

    /// The last subscriber that a topic had on this shard has left: what is published to it does not come here.
    pub(in crate::shard) fn topic_left(&mut self, owner: OwnerId, topic: &Topic) {
        if topic.counted(self.owners.shard()) == 0
            && let Some(journal) = self.out.journals.get_mut(&owner)
        {
            journal.skip(&ListenerAudience::Topic(topic.name().clone()));
        }
    }

    /// What a listener has asked for, unless as much waits for it as may.
    pub(in crate::shard) fn answer_listener(&mut self, slot: Slot, event: &[u8]) {
        if fits(self.table[slot].outbound.queued_bytes(), event.len(), self.config.outbound_bytes_max) {
            self.append_event(slot, event);
        }
    }

    /// Bytes of a stream that concern one listener.
    pub(in crate::shard) fn append_event(&mut self, slot: Slot, event: &[u8]) {
        let outbound = &mut self.table[slot].outbound;
        if outbound.is_blocked() {
            outbound.push_copied_behind(event);
            return self.weigh(slot);
        }
        let range = self.out.window.append_joined(Cast::One, event, b"");
        self.append_range(slot, range, None);
    }

    /// The audience of one listener alone.
    pub(super) fn audience_of(&self, slot: Slot) -> ListenerAudience {
        let listener = self.out.listeners.get(&slot);
        listener.map_or(ListenerAudience::Listed, |listener| ListenerAudience::One(listener.holder))
    }

    /// How long departed listeners are waited for.
    fn waits_until_ms(&self) -> u64 {
        self.now_ms + self.config.resume.reach_ms(self.config.dead_after_ms())
    }

    /// A listener is subscribed to a topic from now on.
    pub(in crate::shard) fn listens_to_topic(&mut self, place: u32, topic: Arc<str>) {
        if let Some(journal) = self.out.journals.get_mut(&self.owners[place].owner.id) {
            journal.join(&ListenerAudience::Topic(topic));
        }
        self.count_journal(place);
    }

    /// A listener leaves this topic. It may come back for it, if it leaves with its connection; `claim` is for then.
    pub(in crate::shard) fn listens_no_longer(
        &mut self,
        slot: Slot,
        place: u32,
        topic: &Arc<str>,
        claim: Option<TopicClaim>,
    ) {
        let until_ms = if claim.is_some() { self.waits_until_ms() } else { 0 };
        let by = self.table[slot].client;
        if let Some(journal) = self.out.journals.get_mut(&self.owners[place].owner.id) {
            journal.part(ListenerAudience::Topic(topic.clone()), by, until_ms, claim);
        }
    }

    /// A listener is gone, and may come back.
    pub(in crate::shard) fn listener_left(&mut self, slot: Slot, place: u32, bound_path: Arc<str>) {
        if !self.table[slot].flags.take(Flag::Sse) {
            return;
        }
        self.out.listeners.remove(&slot);
        let (until_ms, by) = (self.waits_until_ms(), self.table[slot].client);
        if let Some(journal) = self.out.journals.get_mut(&self.owners[place].owner.id) {
            journal.leave([ListenerAudience::Process, ListenerAudience::Path(bound_path)], by, until_ms);
        }
        self.count_journal(place);
    }

    /// Counts what a journal takes, for its process.
    pub(in crate::shard) fn count_journal(&mut self, place: u32) {
        let (owner, memory) = (&*self.owners[place].owner, &mut self.memory);
        if let Some(journal) = self.out.journals.get_mut(&owner.id) {
            journal.count(|bytes| memory.charge(bytes, Some(owner)));
        }
    }

    /// Releases journals that are not needed any more, and entries of others that are too old, and counts what the
    /// others take: listeners leave though nothing is pushed. Once a tick.
    pub(super) fn trim_journals(&mut self, before_ms: u64) {
        let (now_ms, kept, owners, memory) = (self.now_ms, &self.out.window.kept, &self.owners, &mut self.memory);
        self.out.journals.retain(|&id, journal| {
            let is_needed = !journal.trim(before_ms, now_ms, kept);
            if is_needed {
                let owner = owners.find(id).map(|place| &*owners[place].owner);
                journal.count(|bytes| memory.charge(bytes, owner));
            }
            is_needed
        });
    }
}
