//! How one order is delivered, in addition to its contents: the policy, and the recipient of its outcome.

#[cfg(feature = "link")]
use super::other_brokers::OnNodes;
use super::other_brokers::OutcomeAsker;
use super::ticket::TicketSender;
use crate::shard::command::Policy;
#[cfg(feature = "link")]
use crate::shard::outcome::Outcome;
use crate::shard::outcome::OutcomePart;

/// See the module.
#[derive(Debug, Default)]
pub struct DeliveryOptions {
    /// The policy for channels over their budget; `None` uses the process' own.
    pub(super) policy: Option<Policy>,
    pub(super) ask: Option<OutcomeTo>,
    /// Receives the outcomes of the fleet's other nodes.
    pub(super) nodes: Option<OutcomeAsker>,
}

/// Where an outcome goes.
#[derive(Debug)]
pub(super) enum OutcomeTo {
    /// To the ticket.
    Ticket(TicketSender),
    /// Among the events of the process, under this number.
    Event(u64),
    /// As an event, but only if it failed.
    Failure(u64),
    /// Into this part of a larger one.
    Part(Box<OutcomePart>),
}

#[cfg(feature = "node")]
impl DeliveryOptions {
    /// Asks for the outcome as an [`Event::Outcome`](crate::Event::Outcome) with this number.
    pub(crate) fn asking_event(ticket: u64) -> Self {
        Self { ask: Some(OutcomeTo::Event(ticket)), ..Self::default() }
    }

    /// Asks for an [`Event::Failed`](crate::Event::Failed) with this number, if it failed.
    pub(crate) fn asking_failure(ticket: u64) -> Self {
        Self { ask: Some(OutcomeTo::Failure(ticket)), ..Self::default() }
    }

    /// Has `here` called with what became of it, on a thread that must not wait.
    #[cfg(feature = "link")]
    pub(crate) fn telling_here(here: impl FnOnce(Outcome) + Send + 'static) -> Self {
        Self { ask: Some(OutcomeTo::Ticket(TicketSender::calling(here))), ..Self::default() }
    }

    /// Has `here` called with what became of it on this node, and `nodes` with what the other nodes of the fleet say,
    /// each on a thread that must not wait.
    #[cfg(feature = "link")]
    pub(crate) fn telling(
        here: impl FnOnce(Outcome) + Send + 'static,
        nodes: impl FnOnce(OnNodes) + Send + 'static,
    ) -> Self {
        Self { nodes: Some(OutcomeAsker::calling(nodes)), ..Self::telling_here(here) }
    }

    /// With this policy.
    #[cfg(feature = "link")]
    pub(crate) fn with_policy(self, policy: Option<Policy>) -> Self {
        Self { policy, ..self }
    }

    /// The policy, and the number of an outcome that was asked for as an event.
    ///
    /// # Panics
    /// When it was asked for otherwise: only the broker itself can answer that.
    #[cfg(feature = "link")]
    pub(crate) fn into_parts(self) -> (Option<Policy>, Option<u64>) {
        match self.ask {
            None => (self.policy, None),
            Some(OutcomeTo::Event(ticket)) => (self.policy, Some(ticket)),
            Some(OutcomeTo::Ticket(_) | OutcomeTo::Failure(..) | OutcomeTo::Part(_)) => {
                panic!("this outcome cannot be asked for over a link")
            }
        }
    }
}
