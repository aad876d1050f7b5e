//! Orders for which their shards have room, and that are not given yet: several are given together, or none is.
//!
//! Invariant: what was admitted is accepted by all its shards, whatever others send meanwhile; what is dropped gives
//! its room back, and nothing of it was done.

use super::order::{Asking, AskingNodes, Broadcast, Order};
use super::other_brokers::{OnNodes, RemotePush};
use super::pusher::{AdmittedCommands, PushError, Pusher};
use super::ticket::Ticket;

/// See the module.
#[must_use = "nothing is given before it is submitted"]
pub(crate) struct AdmittedOrder<'p> {
    pusher: &'p Pusher,
    commands: AdmittedCommands<'p>,
    abroad: Option<RemotePush>,
}

impl<'p> AdmittedOrder<'p> {
    fn of(mut order: impl Order<'p>) -> Result<Self, PushError> {
        order.check()?;
        let (pusher, abroad) = (order.pusher(), order.take_abroad());
        Ok(Self { pusher, commands: pusher.admit(order.into_commands())?, abroad })
    }

    /// Gives it to the shards, and behind them to other brokers.
    pub(crate) fn submit(self) {
        self.commands.submit();
        self.pusher.give_abroad(self.abroad);
    }
}

impl<'p> Broadcast<'p> {
    /// Takes room for it, and never waits.
    ///
    /// # Errors
    /// It was not accepted: see [`PushError`].
    pub(crate) fn admit(self) -> Result<AdmittedOrder<'p>, PushError> {
        AdmittedOrder::of(self)
    }
}

impl<'p> Asking<'p, Broadcast<'p>> {
    /// As [`Broadcast::admit`].
    pub(crate) fn admit(self) -> Result<(AdmittedOrder<'p>, Ticket), PushError> {
        let (order, ticket) = self.with_ticket();
        Ok((AdmittedOrder::of(order)?, ticket))
    }
}

impl<'p> AskingNodes<'p, Broadcast<'p>> {
    /// As [`Broadcast::admit`].
    pub(crate) fn admit(self) -> Result<(AdmittedOrder<'p>, (Ticket, Ticket<OnNodes>)), PushError> {
        let (order, tickets) = self.with_tickets();
        Ok((AdmittedOrder::of(order)?, tickets))
    }
}
