//! Orders of one process that are given together: all of them are accepted, or none is.
//!
//! Invariant: what all of them have for a shard is one order there. So they find room wherever nothing of their process
//! waits, however large they are.

use super::order::{Asking, AskingNodes, Broadcast, Commands, Order};
use super::other_brokers::{OnNodes, RemotePush};
use super::pusher::{Full, PushError, Pusher};
use super::ticket::Ticket;

/// An order that can be given. See the module.
#[must_use = "nothing is given before all are"]
pub(crate) struct CheckedOrder<'p> {
    pusher: &'p Pusher,
    commands: Commands,
    abroad: Option<RemotePush>,
}

impl<'p> CheckedOrder<'p> {
    fn of(mut order: impl Order<'p>) -> Result<Self, PushError> {
        order.check()?;
        let (pusher, abroad) = (order.pusher(), order.take_abroad());
        Ok(Self { pusher, commands: order.into_commands(), abroad })
    }

    /// Gives all of them to the shards, and behind them to other brokers. Never waits.
    ///
    /// # Errors
    /// None was accepted: see [`PushError`].
    pub(crate) fn give_all(orders: Vec<Self>) -> Result<(), PushError> {
        let Some(pusher) = orders.first().map(|order| order.pusher) else { return Ok(()) };
        let (mut commands, mut abroad) = (Commands::new(), Vec::new());
        for order in orders {
            commands.extend(order.commands);
            abroad.push(order.abroad);
        }
        pusher.give(commands, Full::Refuse)?;
        abroad.into_iter().for_each(|abroad| pusher.give_abroad(abroad));
        Ok(())
    }
}

impl<'p> Broadcast<'p> {
    /// To be given with others.
    ///
    /// # Errors
    /// It cannot be given at all: see [`PushError`].
    pub(crate) fn checked(self) -> Result<CheckedOrder<'p>, PushError> {
        CheckedOrder::of(self)
    }
}

impl<'p> Asking<'p, Broadcast<'p>> {
    /// As [`Broadcast::checked`].
    pub(crate) fn checked(self) -> Result<(CheckedOrder<'p>, Ticket), PushError> {
        let (order, ticket) = self.with_ticket();
        Ok((CheckedOrder::of(order)?, ticket))
    }
}

impl<'p> AskingNodes<'p, Broadcast<'p>> {
    /// As [`Broadcast::checked`].
    pub(crate) fn checked(self) -> Result<(CheckedOrder<'p>, (Ticket, Ticket<OnNodes>)), PushError> {
        let (order, tickets) = self.with_tickets();
        Ok((CheckedOrder::of(order)?, tickets))
    }
}
