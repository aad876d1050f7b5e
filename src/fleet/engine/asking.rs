//! Questions to other nodes, and answers to theirs.
//!
//! Invariants: a question is settled once, when all nodes have answered or their time is over; another node's question
//! never holds up the thread: shards are asked beside it, by a bounded number at a time.

use super::super::names::Name;
use super::super::outbox::Question;
use super::super::subject::{AudienceKey, NamedAudience, Target};
use super::super::traffic::{ChannelAsked, Numbered, Publish, QuestionResult};
use super::Engine;
use super::delivering::ForeignOrder;
use crate::admission::Charge;
use crate::broker::{
    Asker, ChannelAnswer, ChannelFilter, ChannelQuestion, NODE_ANSWER_WITHIN, OnNodes, Outcome, OutcomeAsker, Presence,
};
use crate::shard::outcome::{OutcomeCollector, OutcomePart};
use std::rc::Rc;
use tokio::sync::mpsc;
use tokio::{task, time};

/// A waiter for other nodes' answers.
pub(super) enum NodesAsked {
    /// The outcome of a push.
    Push(OutcomeAsker),
    /// How many subscribers a topic has.
    Count(AudienceKey, Asker<Presence>),
    /// Of a channel there.
    Channel(Asker<ChannelAnswer>),
}

impl Engine {
    /// Passes the other nodes' answers to the asker.
    pub(super) fn settle(&self, settled: QuestionResult) {
        let asking = self.asking.borrow_mut().remove(&settled.ask);
        if let Some(asking) = asking {
            self.tell_asking(asking, settled);
        }
    }

    fn tell_asking(&self, asking: NodesAsked, QuestionResult { on_nodes, shown, .. }: QuestionResult) {
        match asking {
            NodesAsked::Push(asker) => asker.tell(on_nodes),
            NodesAsked::Count(line, asker) => {
                asker.tell(self.remembered.borrow_mut().presence(line, on_nodes, self.now_ms()));
            }
            NodesAsked::Channel(asker) => asker.tell(match (shown, on_nodes.said.into_values().next()) {
                (Some(report), _) => ChannelAnswer::Shown(report),
                (None, Some(Outcome { closed: 1.., .. })) => ChannelAnswer::Closed,
                (None, Some(_)) => ChannelAnswer::NotFound,
                (None, None) => ChannelAnswer::Silent,
            }),
        }
    }

    /// Waits until others have said it, or have had their time.
    fn wait_for_nodes(self: &Rc<Self>, asked: Result<u64, OnNodes>, asking: NodesAsked) {
        let ask = match asked {
            Ok(ask) => ask,
            Err(on_nodes) => return self.tell_asking(asking, QuestionResult { ask: 0, on_nodes, shown: None }),
        };
        self.asking.borrow_mut().insert(ask, asking);
        let engine = self.clone();
        task::spawn_local(async move {
            time::sleep(NODE_ANSWER_WITHIN).await;
            let on_nodes = engine.member.borrow_mut().give_up(ask);
            if let Some(on_nodes) = on_nodes {
                engine.settle(QuestionResult { ask, on_nodes, shown: None });
            }
        });
    }

    /// Asks others what they are to be asked.
    pub(super) async fn ask_all(self: Rc<Self>, mut questions: mpsc::Receiver<Question>) {
        while let Some(question) = questions.recv().await {
            let asked = match &question {
                Question::Count { process, topic, .. } => self.member.borrow_mut().count(process, topic),
                Question::Channel { node, channel, what, .. } => {
                    self.member.borrow_mut().ask_of_channel(node, *channel, what)
                }
            };
            // A name that is too long for a message exists on no other node.
            let Ok((publish, asked)) = asked else { continue };
            let asking = match question {
                Question::Count { process, topic, asker } => {
                    NodesAsked::Count(Target { process, to: NamedAudience::Topic(topic) }.line(), asker)
                }
                Question::Channel { asker, .. } => NodesAsked::Channel(asker),
            };
            // Without a number there is no asker, so nothing is to be done either.
            let is_asked = asked.is_ok();
            self.wait_for_nodes(asked, asking);
            if is_asked && self.is_connected() {
                self.publish(publish).await;
            }
        }
    }

    /// Answers another node's question about a channel here, or closes the channel for it.
    pub(super) fn hear_of_channel(self: &Rc<Self>, asked: ChannelAsked) {
        if let ChannelQuestion::Close(..) = asked.what {
            return self.deliver(ForeignOrder::Close(asked));
        }
        let ChannelAsked { source, ask, channel, .. } = asked;
        // A node that asks too often gets no answer, and counts this one as silent.
        let Ok(permit) = self.looking.clone().try_acquire_owned() else { return };
        let engine = self.clone();
        task::spawn_local(async move {
            let (broker, filter) =
                (engine.broker.clone(), ChannelFilter { channel: Some(channel), ..Default::default() });
            let found = task::spawn_blocking(move || broker.channels(&filter, 0, 1).0.pop()).await;
            drop(permit);
            let Ok(found) = found else { return };
            let answer = engine.member.borrow_mut().shown(&source, ask, found);
            engine.answer_soon(answer);
        });
    }

    /// The whole outcome of a push here, which is said to the node that asks.
    pub(super) fn part_of(&self, node: Name, ask: u64) -> Box<OutcomePart> {
        let outcomes = self.outcomes.clone();
        let parts = OutcomeCollector::split(1, move |outcome| drop(outcomes.try_send((node.clone(), ask, outcome))));
        Box::new(parts.into_iter().next().expect("there is one part"))
    }

    /// Sends the outcomes of pushes here to the nodes that asked.
    pub(super) async fn answer_all(
        self: Rc<Self>,
        mut outcomes: mpsc::Receiver<(Name, u64, Outcome)>,
        mut answers: mpsc::Receiver<(Publish, Charge)>,
    ) {
        loop {
            let (answer, _charge) = tokio::select! {
                Some((node, ask, outcome)) = outcomes.recv() => {
                    (self.member.borrow_mut().answer(&node, ask, &outcome), None)
                }
                Some((answer, charge)) = answers.recv() => (answer, Some(charge)),
                else => return,
            };
            self.publish(answer).await;
        }
    }

    /// Publishes a push, and what is asked of it.
    pub(super) async fn publish_push(self: &Rc<Self>, numbered: Numbered, nodes: Option<OutcomeAsker>) {
        let Numbered { push, ask, asked } = numbered;
        if let (Some(asked), Some(nodes)) = (asked, nodes) {
            self.wait_for_nodes(asked, NodesAsked::Push(nodes));
        }
        self.publish(push).await;
        if let Some(ask) = ask {
            self.publish(ask).await;
        }
    }
}
