//! The owners of channels: the directory of all owners, what this shard keeps of each, and their grants to guests.
//!
//! Invariants: an owner has a place here as long as it has channels, events that were not passed on, clients that wait
//! for its answer, or a place in the line of those whose clients wait for room in their queues; it is at most once in
//! the list of owners with events, and at most once in that line. It must not depend on connections except by their
//! place in the table.

mod arena;
pub mod directory;
pub mod grants;
mod guests;
mod line;
pub(super) mod owner;
pub(super) mod sharing;
mod subscribing;
mod subscriptions;
pub mod topics;
mod unread;

use self::directory::{Directory, Owner};
use self::grants::{Grants, PER_CHANNEL_MAX};
use self::line::Line;
use self::owner::LocalOwner;
use self::sharing::SharedRound;
use self::unread::Unread;
use crate::channel::ChannelId;
use crate::gateway::OwnerId;
use crate::proto::Payload;
use crate::queue::events::{EventBatch, QueueLevel, QueueLimits, RoomWanted};
use crate::shard::event::Event;
use crate::shard::table::slot::Slot;
use bytes::Bytes;
use rustc_hash::FxHashMap;
use slab::Slab;
use std::collections::VecDeque;
use std::ops::{Index, IndexMut};
use std::sync::Arc;

/// So many connections of one owner go on at a time.
const RESUMED_MAX: usize = 1024;

/// Events for which a batch has room before there are any, at 80 bytes each.
const EVENTS_EXPECTED_MAX: usize = 4096;

/// See the module.
pub(super) struct Owners {
    /// The shard's number, by which queues call it.
    shard: u32,
    directory: Arc<Directory>,
    locals: Slab<LocalOwner>,
    places: FxHashMap<OwnerId, u32>,
    /// Owners with a batch that has not been handed over.
    touched: Vec<u32>,
    /// So many of them have come since that was last asked for.
    touched_anew: u64,
    /// Processes that run here and have something to do, the next first; each once.
    hosted: VecDeque<u32>,
    /// Whether there is an Opened in those batches.
    opened_untold: bool,
    /// Owners with connections that wait for room in their queue, the next to be looked at first.
    full: Line<u32>,
    /// So many of them are to be looked at before the shard may sleep: a queue may have got room since.
    unlooked: usize,
    grants: Grants,
}

impl Owners {
    /// No owner has a channel on `shard` yet.
    pub(super) fn new(shard: u32, directory: Arc<Directory>) -> Self {
        Self {
            shard,
            directory,
            locals: Slab::new(),
            places: FxHashMap::default(),
            touched: Vec::new(),
            touched_anew: 0,
            hosted: VecDeque::new(),
            opened_untold: false,
            full: Line::default(),
            unlooked: 0,
            grants: Grants::default(),
        }
    }

    /// The attached processes.
    pub(super) fn directory(&self) -> &Arc<Directory> {
        &self.directory
    }

    /// These are attached from now on.
    pub(super) fn adopt(&mut self, directory: Arc<Directory>) {
        self.directory = directory;
    }

    /// The owners with a place here.
    pub(super) fn iter(&self) -> impl ExactSizeIterator<Item = &LocalOwner> {
        self.locals.iter().map(|(_, local)| local)
    }

    /// The owner's place on this shard, if it has one.
    pub(super) fn find(&self, owner: OwnerId) -> Option<u32> {
        self.places.get(&owner).copied()
    }

    /// The owner's place on this shard, made if it has none.
    pub(super) fn place_of(&mut self, owner: &Arc<Owner>) -> u32 {
        *self.places.entry(owner.id).or_insert_with(|| self.locals.insert(LocalOwner::new(owner.clone())) as u32)
    }

    /// Appends an event to the owner's batch of this turn.
    pub(super) fn emit(&mut self, place: u32, event: Event) {
        self.opened_untold |= matches!(event, Event::Opened(_));
        let local = &mut self.locals[place as usize];
        if let Some(unread) = &mut local.unread {
            unread.push(event);
            return self.list_hosted(place);
        }
        let batch = local.batch.get_or_insert_with(|| {
            self.touched.push(place);
            self.touched_anew += 1;
            EventBatch::with_room(local.owner.id, local.events_expected)
        });
        batch.push(event);
    }

    /// How many owners have events of this turn that had none when this was last asked: each is to be woken for them.
    pub(super) fn take_touched(&mut self) -> u64 {
        std::mem::take(&mut self.touched_anew)
    }

    /// Gives a payload a life of its own, for an event of this turn to the owner.
    pub(super) fn keep(&mut self, place: u32, payload: Payload<'_>) -> Bytes {
        self.locals[place as usize].arena.keep(payload)
    }

    /// From now on the owner's events stay here, for a handler of its own.
    pub(super) fn host(&mut self, owner: &Arc<Owner>, limits: QueueLimits) -> u32 {
        let place = self.place_of(owner);
        self.locals[place as usize].unread = Some(Unread::new(limits, &owner.memory));
        place
    }

    /// The owner has no handler here any more. Later messages of its clients are treated as those of a process that is
    /// gone.
    pub(super) fn dismiss(&mut self, place: u32) {
        if self.locals[place as usize].unread.take().is_some() {
            self.hosted.retain(|&hosted| hosted != place);
            self.forget_if_idle(place);
        }
    }

    /// How many processes that run here have something to do.
    pub(super) fn hosted_waiting(&self) -> usize {
        self.hosted.len()
    }

    /// Takes the next of them off the list.
    pub(super) fn next_hosted(&mut self) -> Option<u32> {
        let place = self.hosted.pop_front()?;
        let local = &mut self.locals[place as usize];
        if let Some(unread) = &mut local.unread {
            unread.is_listed = false;
        }
        if local.is_full {
            // It is about to make room.
            self.look_at_full();
        }
        Some(place)
    }

    /// One of them has taken what it takes in this turn.
    pub(super) fn settle_unread(&mut self, place: u32) {
        if let Some(local) = self.locals.get_mut(place as usize) {
            local.settle_unread();
        }
    }

    /// Puts one of them on it.
    pub(super) fn list_hosted(&mut self, place: u32) {
        if let Some(unread) = self.locals.get_mut(place as usize).and_then(|local| local.unread.as_mut())
            && !std::mem::replace(&mut unread.is_listed, true)
        {
            self.hosted.push_back(place);
        }
    }

    /// How many events one of them has not taken.
    pub(super) fn unread(&self, place: u32) -> usize {
        self.locals.get(place as usize).and_then(|local| local.unread.as_ref()).map_or(0, Unread::len)
    }

    /// Returns whether a process runs here that has taken all its events.
    pub(super) fn has_taken_all(&self, place: u32) -> bool {
        let unread = self.locals.get(place as usize).and_then(|local| local.unread.as_ref());
        unread.is_some_and(|unread| unread.len() == 0)
    }

    /// The next of those events.
    pub(super) fn take_unread(&mut self, place: u32) -> Option<Event> {
        self.locals[place as usize].unread.as_mut()?.take()
    }

    /// Gives an event to an owner that may have no channel here. One that has gone does not hear of it.
    pub(super) fn tell(&mut self, owner: OwnerId, event: Event) {
        if let Some(&place) = self.places.get(&owner) {
            return self.emit(place, event);
        }
        // An owner that a kernel made and that has bound nothing is not in the directory, but shares its system's
        // queue.
        let owners = &self.directory.owners;
        let found = owners.get(&owner).or_else(|| owners.get(&self.directory.system?));
        if let Some(found) = found {
            let mut batch = EventBatch::new(owner);
            batch.push(event);
            found.send(batch);
        }
    }

    /// Hands the events of this turn to their processes.
    pub(super) fn hand_over(&mut self) {
        self.opened_untold = false;
        for &place in &self.hosted {
            self.locals[place as usize].settle_unread();
        }
        while let Some(place) = self.touched.pop() {
            let local = &mut self.locals[place as usize];
            if let Some(mut batch) = local.batch.take() {
                local.events_expected = batch.events.len().min(EVENTS_EXPECTED_MAX);
                batch.add_spare(local.arena.end_batch());
                // A process that is gone has an OwnerGone on its way to us, which closes its channels.
                local.owner.send(batch);
            }
            self.forget_if_idle(place);
        }
    }

    /// As [`hand_over`](Self::hand_over), if a channel was opened: what its client then says elsewhere must not
    /// overtake that.
    pub(super) fn hand_over_opened(&mut self) {
        if self.opened_untold {
            self.hand_over();
        }
    }

    /// Returns whether one more message may be given to the owner.
    pub(super) fn has_room(&self, place: u32) -> bool {
        self.locals[place as usize].level() != QueueLevel::Full
    }

    /// A client that has added `had` is about to give the owner one more message.
    ///
    /// # Errors
    /// It may not, before there is so much room.
    pub(super) fn may_add(&mut self, place: u32, had: SharedRound) -> Result<(), RoomWanted> {
        let local = &mut self.locals[place as usize];
        match local.level() {
            QueueLevel::Low => local.sharing.close(),
            QueueLevel::Full => return Err(RoomWanted::Half),
            level => {
                // The owners of a node share its queue.
                let waiting = local.waiting.len() + self.full.len();
                if !local.sharing.may_add(level, local.limits(), had, waiting) {
                    return Err(RoomWanted::Low);
                }
            }
        }
        Ok(())
    }

    /// A client has given the owner a message of so many bytes.
    pub(super) fn count_added(&self, place: u32, had: &mut SharedRound, message_bytes: usize) {
        let local = &self.locals[place as usize];
        if local.sharing.is_open() {
            local.sharing.count(local.limits(), had, message_bytes);
        }
    }

    /// Returns whether a channel of the owner may be opened of which `opened_bytes` are told.
    pub(super) fn has_room_to_open(&self, owner: &Owner, opened_bytes: usize) -> bool {
        let local = self.find(owner.id).map(|place| &self.locals[place as usize]);
        match local.and_then(|local| local.unread.as_ref()) {
            Some(unread) => unread.has_room_to_open(&owner.memory, opened_bytes),
            None => owner.has_room_to_open(local.and_then(|local| local.batch.as_ref()), opened_bytes),
        }
    }

    /// The shard's number.
    pub(super) fn shard(&self) -> u32 {
        self.shard
    }

    /// This connection waits until the owner has so much room. `is_passed_over` tells that it was let go, and those
    /// before it have left no room.
    pub(super) fn wait_for_room(&mut self, place: u32, slot: Slot, wanted: RoomWanted, is_passed_over: bool) {
        let local = &mut self.locals[place as usize];
        local.waiting.push(slot, is_passed_over);
        local.sharing.is_waited_for |= wanted == RoomWanted::Low;
        if !std::mem::replace(&mut local.is_full, true) {
            // The owners of a node share its queue, and so its room.
            self.full.push(place, is_passed_over);
            // It has not been asked yet to say when there is room.
            self.look_at_full();
        }
    }

    /// A queue that had no room may have some: whose clients wait is to be looked at.
    pub(super) fn look_at_full(&mut self) {
        self.unlooked = self.full.len();
    }

    /// How many owners there are whose clients wait for room.
    pub(super) fn full(&self) -> usize {
        self.full.len()
    }

    /// Returns whether the next turn is to go on with that.
    pub(super) fn looks_on(&self) -> bool {
        self.unlooked > 0
    }

    /// This connection does not wait for the owner's answer any more.
    pub(super) fn forget_asked(&mut self, owner: OwnerId, slot: Slot) {
        if let Some(place) = self.find(owner) {
            self[place].asked.remove(&slot);
            self.forget_if_idle(place);
        }
    }

    /// Looks at the next owner whose clients wait, and takes out those that may go on, since its queue has room: to
    /// `resume`, in order, and no more at a time than a turn could let go on.
    pub(super) fn take_resumable(&mut self, resume: impl FnMut(Slot)) {
        let waited_for = self.full.len();
        let Some(place) = self.full.pop_front() else { return };
        self.unlooked = self.unlooked.saturating_sub(1);
        let may_go_on = self.may_go_on(place);
        let local = &mut self.locals[place as usize];
        if local.waiting.is_empty() {
            // All that waited have left.
            return self.leave_line(place);
        }
        let wait = || local.unread.is_some() || !local.owner.queue.wait_for_room(self.shard as usize, local.wanted());
        // A handler here need not be asked to say when there is room: this is looked at again once it has run.
        if !may_go_on && wait() {
            return self.full.push(place, false);
        }
        let going = local.waiting.len().min(RESUMED_MAX);
        if local.sharing.is_waited_for {
            local.sharing.begin_next(local.waiting.len() + waited_for);
        }
        local.waiting.let_go(going).for_each(resume);
        if local.waiting.is_empty() {
            self.leave_line(place);
        } else {
            self.full.push(place, false);
            self.unlooked += 1;
        }
    }

    /// No connection of the owner waits any more.
    fn leave_line(&mut self, place: u32) {
        let local = &mut self.locals[place as usize];
        (local.waiting, local.is_full, local.sharing.is_waited_for) = (Line::default(), false, false);
        self.forget_if_idle(place);
    }

    fn may_go_on(&self, place: u32) -> bool {
        let local = &self.locals[place as usize];
        let wanted = local.wanted();
        match &local.unread {
            Some(unread) => unread.has(wanted) && self.has_room(place),
            // Memory may have come free though nothing was read: looking for room finds that out.
            None => (local.owner.queue.has(wanted) || self.has_room(place)) && local.owner.queue.has(wanted),
        }
    }

    /// Forgets an owner that has nothing left here.
    pub(super) fn forget_if_idle(&mut self, place: u32) {
        let local = &self.locals[place as usize];
        if local.is_idle() {
            self.places.remove(&local.owner.id);
            self.locals.remove(place as usize);
        }
    }

    /// Lets a guest in to a channel of the owner, or no more. Returns whether it is so now.
    pub(super) fn change_guests(&mut self, place: u32, channel: ChannelId, guest: &Arc<str>, is_granted: bool) -> bool {
        let memory = &self.locals[place as usize].owner.memory;
        let guests = self.grants.entry(channel).or_default();
        let is_done = guests.change(guest, is_granted, PER_CHANNEL_MAX, memory);
        if guests.is_empty() {
            self.grants.remove(&channel);
        }
        is_done
    }

    /// A channel has ended: its guests are forgotten.
    pub(super) fn forget_guests(&mut self, channel: ChannelId) {
        self.grants.remove(&channel);
    }

    /// Asserts what the module promises, as far as this part knows it.
    pub(super) fn check(&self) {
        assert_eq!(self.places.len(), self.locals.len(), "every owner is found by its number");
        for (place, local) in &self.locals {
            let place = place as u32;
            assert_eq!(self.find(local.owner.id), Some(place), "an owner is where its number says");
            assert!(!local.is_idle(), "an owner of whom nothing is left is forgotten");
            assert_eq!(local.batch.is_some(), self.touched.contains(&place), "owners with events are listed");
            assert_eq!(local.is_full, self.full.contains(place), "full owners are listed");
            assert!(local.waiting.is_empty() || local.is_full, "owners that are waited for are listed");
            assert!(self.unlooked <= self.full.len(), "what is to be looked at is listed");
            local.subscriptions.check(self.shard);
            let is_hosted = self.hosted.iter().filter(|&&hosted| hosted == place).count();
            assert_eq!(is_hosted, local.unread.as_ref().map_or(0, |unread| usize::from(unread.is_listed)));
        }
    }
}

impl Index<u32> for Owners {
    type Output = LocalOwner;

    fn index(&self, place: u32) -> &LocalOwner {
        &self.locals[place as usize]
    }
}

impl IndexMut<u32> for Owners {
    fn index_mut(&mut self, place: u32) -> &mut LocalOwner {
        &mut self.locals[place as usize]
    }
}
