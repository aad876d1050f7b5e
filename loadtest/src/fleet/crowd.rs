//! The clients of one node, and the messages they received.
//!
//! Invariant: each message is counted once: as received, or as wrong (twice, out of order, or for another client).

use std::sync::atomic::Ordering;
use std::sync::mpsc::Sender;
use std::time::Instant;

use anyhow::{Context, bail, ensure};
use serde_json::Value;

use super::common::{BROADCAST, Common, PROCESS, Phase, WHOLE_WITHIN};
use super::node::{Node, name};
use crate::behaviour::ClientBehaviour;
use crate::client::engine::Pace;
use crate::client::tls::TlsOptions;
use crate::client::{Closure, Engine, Handler, Message, Opcode, Outbox};
use crate::payload::Stamp;
use crate::stats::Latency;

/// See the module.
pub(super) struct Crowd<'a> {
    common: &'a Common<'a>,
    node: usize,
    nodes: usize,
    /// The number of its first client among those of all nodes.
    first: usize,
    ids: Vec<Option<u32>>,
    /// The next expected number for each client, from each node that sends to all, and of its own messages.
    next: Vec<u64>,
    next_alone: Vec<u64>,
    /// How many each client has heard of each node that sends to all, and all of them of what is for one.
    pub heard: Vec<u64>,
    pub heard_alone: u64,
    pub received: u64,
    pub wrong: u64,
    closed: Vec<String>,
    pub here: Latency,
    /// The same of what was published while something was wrong.
    pub here_meanwhile: Latency,
    pub elsewhere: Latency,
    pub unicast: Latency,
    /// When the first message of each node came that was published after all was well again; 0: none has.
    pub again_ns: Vec<u64>,
}

impl Handler for Crowd<'_> {
    fn message(&mut self, client: usize, message: &Message<'_>, received_ns: u64, _: &mut Outbox<'_>) {
        if message.opcode == Opcode::Text {
            let said: Option<Value> =
                message.head.get(..message.length as usize).and_then(|text| serde_json::from_slice(text).ok());
            self.ids[client] = said.and_then(|said| said["channel_id"].as_u64()).map(|id| id as u32);
            return;
        }
        let Some(stamp) = Stamp::read(message.head).filter(|stamp| stamp.run == self.common.run && message.uniform)
        else {
            self.wrong += 1;
            return;
        };
        let from = (stamp.client & !BROADCAST) as usize;
        let is_to_all = stamp.client & BROADCAST != 0;
        let next = match is_to_all {
            true => self.next.get_mut(client * self.nodes + from).filter(|_| from < self.nodes),
            false => {
                let is_for_it = stamp.client as usize == self.first + client;
                self.next_alone.get_mut(client).filter(|_| is_for_it)
            }
        };
        match next {
            Some(next) if stamp.sequence >= *next => *next = stamp.sequence + 1,
            _ => {
                self.wrong += 1;
                return;
            }
        }
        self.received += 1;
        self.note(is_to_all, from, client, stamp.time_ns, received_ns);
    }

    fn closed(&mut self, client: usize, closure: &Closure) {
        self.closed.push(format!("client {client}: {}", closure.reason));
    }
}

impl<'a> Crowd<'a> {
    fn new(common: &'a Common<'a>, node: usize) -> Self {
        let (clients, nodes) = (common.settings.clients, common.settings.nodes);
        Self {
            common,
            node,
            nodes,
            first: node * clients,
            ids: vec![None; clients],
            next: vec![0; clients * nodes],
            next_alone: vec![0; clients],
            heard: vec![0; clients * nodes],
            heard_alone: 0,
            received: 0,
            wrong: 0,
            closed: Vec::new(),
            here: Latency::default(),
            here_meanwhile: Latency::default(),
            elsewhere: Latency::default(),
            unicast: Latency::default(),
            again_ns: vec![0; nodes],
        }
    }

    /// Notes a message that has come as it should.
    fn note(&mut self, is_to_all: bool, from: usize, client: usize, sent_ns: u64, received_ns: u64) {
        let (waited_ns, phase) = (received_ns.saturating_sub(sent_ns), self.common.phase_of(sent_ns));
        if !is_to_all {
            self.heard_alone += 1;
            self.unicast.record(waited_ns);
            return;
        }
        self.heard[client * self.nodes + from] += 1;
        if from != self.node {
            self.elsewhere.record(waited_ns);
            if phase == Phase::After && self.again_ns[from] == 0 {
                self.again_ns[from] = received_ns;
            }
        } else if phase == Phase::Meanwhile {
            self.here_meanwhile.record(waited_ns);
        } else {
            self.here.record(waited_ns);
        }
    }

    /// Messages of other nodes that all of its clients have heard of: as many as the node has, if it has lost none
    /// itself.
    pub(super) fn of_others(&self) -> anyhow::Result<u64> {
        let mut sum = self.heard_alone;
        for from in (0..self.nodes).filter(|from| *from != self.node) {
            let heard = |client: usize| self.heard[client * self.nodes + from];
            ensure!(
                (0..self.ids.len()).all(|client| heard(client) == heard(0)),
                "clients of {} have heard different numbers of messages of {}",
                name(self.node),
                name(from)
            );
            sum += heard(0);
        }
        Ok(sum)
    }
}

/// Opens the clients of a node, and reads until all is over.
pub(super) fn crowd<'a>(
    common: &'a Common<'a>,
    node: usize,
    at: &Node,
    opened: &Sender<(usize, Vec<u32>)>,
) -> anyhow::Result<Crowd<'a>> {
    let behaviour = ClientBehaviour {
        pace: Pace::Block,
        cpus: Vec::new(),
        patience: WHOLE_WITHIN,
        sources: 16,
        token: None,
        resumable: false,
        tls_options: TlsOptions { authority: None, classic: false, resumes: false },
    };
    let mut engine = Engine::new(at.server.target(PROCESS, &behaviour)?, Pace::Block)?;
    let mut crowd = Crowd::new(common, node);
    engine.connect_all(0, common.settings.clients, WHOLE_WITHIN, |_| None, &mut crowd, |_| {})?;
    let since = Instant::now();
    while crowd.ids.contains(&None) {
        ensure!(since.elapsed() < WHOLE_WITHIN && crowd.closed.is_empty(), "not every client was told its channel");
        engine.poll(10, &mut crowd)?;
    }
    opened.send((node, crowd.ids.iter().flatten().copied().collect())).context("the run has ended")?;
    let mut counted = 0;
    while !common.is_over.load(Ordering::Acquire) {
        engine.poll(10, &mut crowd)?;
        common.received.fetch_add(crowd.received - counted, Ordering::Relaxed);
        counted = crowd.received;
    }
    if let Some(closed) = crowd.closed.first() {
        bail!("{} clients of {} were closed; {closed}", crowd.closed.len(), name(node));
    }
    Ok(crowd)
}
