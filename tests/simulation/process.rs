//! A process: its owner, its state, and its remaining work.

use super::hosted::HostedParts;
use super::oracle::Pushed;
use super::plant::Plant;
use super::rng::Rng;
use super::settings::Settings;
use pushring::ProcessId;
use pushring::internals::admission::Ledger;
use pushring::internals::gateway::{HttpRule, OwnerId, WebSocketRule};
use pushring::internals::http::Content;
use pushring::internals::inbox::{Account, InboxSender};
use pushring::internals::shard::command::Command;
use pushring::internals::shard::event::RequestId;
use pushring::internals::shard::process_queue::{ProcessReceiver, process_queue};
use pushring::internals::shard::{Directory, Owner, Wishes};
use std::sync::Arc;

/// Where clients open channels.
pub const PATHS: [&str; 2] = ["/a", "/b"];

/// The answer of `/s`.
pub const CONTENT: &[u8] = b"the same for everybody";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    Attached,
    /// Its link is broken until this step.
    Detached(u64),
    /// It has ended; its channels were closed with this code.
    Ended(u16),
}

pub struct Process {
    /// Which name it has.
    pub name: usize,
    pub owner: Arc<Owner>,
    pub receiver: ProcessReceiver,
    /// By shard.
    pub accounts: Vec<Account>,
    pub rng: Rng,
    pub phase: Phase,
    /// It takes no events until this step.
    pub sleeps_until: u64,
    /// Pushes to all channels, or those of a path, by shard: a channel may have been opened before we heard of it.
    pub broadcasts: Vec<Vec<(Option<&'static str>, Pushed)>>,
    /// Requests that it has not answered, with the client's token.
    pub requests: Vec<(RequestId, String)>,
    /// Events counted by tampering.
    pub told: u64,
    /// If it runs on the shards.
    pub hosted: Option<HostedParts>,
}

/// The surroundings of all processes.
#[derive(Clone, Copy)]
pub struct Place<'a> {
    pub seed: u64,
    pub settings: &'a Settings,
    pub plant: Plant,
    pub memory: &'a Ledger,
    pub senders: &'a [InboxSender<Command>],
}

pub fn name(name: usize) -> ProcessId {
    format!("p{name}:sim:sys").parse().expect("a process id")
}

impl Process {
    /// Enters number `index` of all processes into the directory. What shards are to be told before, each, comes with
    /// it.
    pub fn attach(
        index: usize,
        name_index: usize,
        place: &Place<'_>,
        directory: &mut Directory,
    ) -> (Self, Vec<Command>) {
        let Place { seed, settings, plant, memory, senders } = *place;
        let process = name(name_index);
        let kicks = senders.to_vec();
        let limits = plant.queue(settings.queue);
        let (queue, receiver) = process_queue(senders.len(), limits, memory, move |shard| kicks[shard].kick());
        let id = OwnerId(index as u32 + 1);
        let policy = settings.policies[name_index];
        let owner =
            Arc::new(Owner::new(id, process.clone(), queue, Wishes::new(policy, settings.wants_control, false)));
        for path in PATHS {
            let rule = WebSocketRule { deflate: settings.compressed_paths, ..WebSocketRule::default() };
            directory.gateway.bind_websocket(id, &process, path, rule).expect("it binds");
        }
        let content = HttpRule { content: Some(Arc::new(Content::new(None, CONTENT.into()))), ..HttpRule::default() };
        directory.gateway.bind_http(id, &process, "/s", content).expect("it binds");
        directory.gateway.bind_http(id, &process, "/h", HttpRule::default()).expect("it binds");
        directory.attach(owner.clone());
        let (hosted, hosts) = match settings.hosted[name_index] {
            true => Some(HostedParts::new(seed, &owner, limits, senders.len(), settings.is_lawful)).unzip(),
            false => (None, None),
        };
        let process = Self {
            name: name_index,
            owner,
            receiver,
            accounts: senders.iter().map(InboxSender::account).collect(),
            rng: Rng::stream(seed, 2, index as u64),
            phase: Phase::Attached,
            sleeps_until: 0,
            broadcasts: vec![Vec::new(); senders.len()],
            requests: Vec::new(),
            told: 0,
            hosted,
        };
        (process, hosts.unwrap_or_default())
    }

    pub fn is_ended(&self) -> bool {
        matches!(self.phase, Phase::Ended(_))
    }
}
