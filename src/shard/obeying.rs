//! Orders, one after another, as far as a turn has room for them.
//!
//! Invariant: an order that is put down is the first to be gone on with, so orders of one producer stay in order.

use super::command::Command;
use super::core::Shard;
use super::unfinished::{Long, Unfinished};
use super::work::{self, copy_ns};
use crate::queue::fair::Order;
use std::vec::IntoIter;

impl Shard {
    /// Obeys an order for about `slice_ns` of work, as long as the window has room. Returns what is left of it.
    pub fn obey(&mut self, order: Order<Command, Unfinished>, slice_ns: u64) -> Option<Unfinished> {
        self.work.begin_slice(slice_ns);
        let Unfinished { mut long, mut then } = match order {
            Order::New(Command::Batch(commands)) => Unfinished { long: None, then: commands.into_iter() },
            Order::New(command) => {
                let long = self.obey_one(command)?;
                return Some(Unfinished { long: Some(long), then: IntoIter::default() });
            }
            Order::Rest(rest) => rest,
        };
        loop {
            if let Some(begun) = long.take() {
                long = match begun {
                    Long::Broadcast(broadcast) => self.go_on_pushing(broadcast),
                    Long::Closing(closing) => self.go_on_closing(closing),
                };
            }
            let is_over = self.work.is_slice_over() || self.out.is_window_full();
            if long.is_some() || (is_over && then.len() > 0) {
                return Some(Unfinished { long, then });
            }
            long = self.obey_one(then.next()?);
        }
    }

    fn obey_one(&mut self, command: Command) -> Option<Long> {
        self.stats.commands += 1;
        self.work.spend(work::COMMAND_NS);
        match command {
            Command::Batch(_) => unreachable!("batches hold no batches"),
            Command::Push(push) => {
                self.work.spend(copy_ns(push.frame.payload.len().min(self.config.copy_bytes_max)));
                self.push(push);
            }
            Command::PushMany(many) => return self.push_many(*many),
            Command::PushAsGuest(push) => self.push_as_guest(*push),
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
            Command::OwnerGone { owner, why } => return self.owner_gone(owner, why),
            // Whoever asked may have gone meanwhile.
            Command::Report(to) => drop(to.send(self.report())),
            Command::Disconnects(to) => drop(to.send(self.table.disconnects())),
            Command::Channels { filter, from, limit, to } => {
                drop(to.send(self.channel_page(&filter, from, limit)));
            }
            Command::Processes(to) => drop(to.send(self.channels_by_process())),
            Command::Reconfigure(config) => self.reconfigure(config),
            Command::Drain(drain) => self.drain(*drain),
            Command::Stop { within_ms, told } => self.stop(within_ms, told),
        }
        None
    }
}
