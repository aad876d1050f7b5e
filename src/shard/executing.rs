//! Carrying out orders, one after another, as far as a turn has room for them, and the shard's own chores.
//!
//! Invariant: a suspended order is the first to be resumed, so orders of one producer stay in order.

use super::command::Command;
use super::core::Shard;
use super::unfinished::{LongOrder, Unfinished};
use super::work::{self, copy_ns};
use crate::queue::fair::OrderOrRest;
use std::vec::IntoIter;

impl Shard {
    /// Obeys an order for about `slice_ns` of work, as long as the window has room. Returns what is left of it.
    pub fn execute(&mut self, order: OrderOrRest<Command, Unfinished>, slice_ns: u64) -> Option<Unfinished> {
        self.work.begin_slice(slice_ns);
        let Unfinished { mut long, mut then } = match order {
            OrderOrRest::New(Command::Batch(commands)) => Unfinished { long: None, then: commands.into_iter() },
            OrderOrRest::New(command) => {
                let long = self.execute_one(command)?;
                return Some(Unfinished { long: Some(long), then: IntoIter::default() });
            }
            OrderOrRest::Rest(rest) => rest,
        };
        loop {
            if let Some(begun) = long.take() {
                long = self.go_on_with(begun);
            }
            let is_over = self.work.is_slice_over() || self.out.is_window_full();
            if long.is_some() || (is_over && then.len() > 0) {
                return Some(Unfinished { long, then });
            }
            long = self.execute_one(then.next()?);
        }
    }

    /// Continues an order for one slice. Returns the rest of it.
    fn go_on_with(&mut self, long: LongOrder) -> Option<LongOrder> {
        match long {
            LongOrder::Broadcast(broadcast) => self.go_on_pushing(broadcast),
            LongOrder::Each(each) => self.push_each(each),
            LongOrder::GuestPush(push) => self.go_on_pushing_as_guest(push),
            LongOrder::UncountedLoss(missing) => self.go_on_missing(missing),
            LongOrder::Closing(closing) => self.go_on_closing(closing),
            LongOrder::Stopping(stopping) => self.go_on_stopping(stopping),
            LongOrder::Cutting(cutting) => self.go_on_cutting(cutting),
        }
    }

    /// Continues work that no process ordered, until the turn has cost so much.
    pub(in crate::shard) fn do_chores(&mut self, until_ns: u64) {
        while self.work.spent_ns() < until_ns
            && let Some(chore) = self.chores.pop_front()
        {
            self.work.begin_slice(until_ns - self.work.spent_ns());
            if let Some(rest) = self.go_on_with(chore) {
                return self.chores.push_front(rest);
            }
        }
    }

    fn execute_one(&mut self, command: Command) -> Option<LongOrder> {
        if let Command::Probe { asked_us } = command {
            self.timings.probe(asked_us);
            return None;
        }
        if let Command::PushEach(each) = command {
            return self.push_each(each);
        }
        self.stats.commands += 1;
        self.work.spend(work::COMMAND_NS);
        match command {
            Command::Batch(_) => unreachable!("batches hold no batches"),
            Command::Probe { .. } | Command::PushEach(_) => unreachable!("executed above"),
            Command::Push(push) => {
                self.work.spend(copy_ns(push.frame.payload.len().min(self.config.copy_bytes_max)));
                self.push(push);
            }
            Command::PushMany(many) => return self.push_many(*many),
            Command::PushAsGuest(push) => return self.push_as_guest(*push),
            Command::LostMessages(miss) => return self.miss(*miss),
            Command::Subscribe(subscribe) => self.subscribe(*subscribe),
            Command::Grant(grant) => self.grant(*grant),
            Command::Close(close) => self.close_by_process(*close),
            Command::Respond(respond) => {
                self.work.spend(work::FIELD_NS * respond.response.field_count() as u64);
                self.respond(*respond);
            }
            Command::Adopt(directory, acknowledge) => {
                self.owners.adopt(directory);
                // Dropping our share is the answer.
                drop(acknowledge);
            }
            Command::Arrive(carried, arrival) => self.arrivals.push((carried, arrival)),
            Command::Evict(gone) => self.evict(gone),
            Command::Said(said) => {
                self.work.spend(copy_ns(said.payload.len()));
                self.hear(*said);
            }
            Command::Host(host) => self.host(*host),
            Command::OwnerGone { owner, why } => return self.owner_gone(owner, why),
            // The requester may have gone meanwhile.
            Command::Report(to) => {
                self.work.spend(self.owners.iter().len() as u64 * work::PASS_NS);
                drop(to.send(self.report()));
            }
            Command::Disconnects(to) => {
                let disconnects = self.table.disconnects();
                self.work.spend(disconnects.len() as u64 * work::TELL_NS);
                drop(to.send(disconnects));
            }
            Command::Channels { filter, from, limit, to } => {
                drop(to.send(self.channel_page(&filter, from, limit)));
            }
            Command::Processes(to) => drop(to.send(self.channels_by_process())),
            Command::Open => self.is_open = true,
            Command::Reconfigure(config) => self.reconfigure(config),
            Command::Drain(drain) => self.drain(*drain),
            Command::Stop { within_ms, told } => return self.stop(within_ms, told),
        }
        None
    }
}
