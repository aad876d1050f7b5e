//! All of it: real shards, inboxes and process queues, stepped by hand over a network in memory under a virtual clock.

use super::client::{Client, ClientPlan, Left, Manners, State};
use super::network::{MemoryFlush, Network, Port};
use super::oracle::Channel;
use super::plant::Plant;
use super::process::{self, PATHS, Phase, Place, Process};
use super::pump::{Bell, MemorySockets, Pump, UNIX_S};
use super::rng::{Rng, Trace};
use super::settings::{NAMES, Settings};
use super::wire::Heard;
use pushring::Drain;
use pushring::internals::admission;
use pushring::internals::gateway::{Claims, Secret, Snapshot, mint};
use pushring::internals::inbox::{self, Account, InboxSender};
use pushring::internals::proto::deflate::Deflater;
use pushring::internals::shard::command::Command;
use pushring::internals::shard::event::ClosedBy;
use pushring::internals::shard::outcome::Outcome;
use pushring::internals::shard::{Common, Directory, Shard};
use pushring::node::Dialect;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hash::RandomState;
use std::rc::Rc;
use std::sync::Arc;

const NODE: &str = "sim.os";
const SECRET: &[u8] = b"a secret that only the simulation knows";

/// The parameters of a simulation.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    pub seed: u64,
    pub steps: u64,
    pub plant: Plant,
    /// This client stops reading as soon as its channel is open, and does nothing else.
    pub stalled: Option<usize>,
    /// Clients and processes commit no faults.
    pub lawful: bool,
}

/// The result.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    pub hash: u64,
    /// For each client what it heard.
    pub traces: Vec<u64>,
    pub opened: u64,
    pub pushed: u64,
    pub heard: u64,
    pub messages: u64,
    /// Pings of clients that processes were told of.
    pub pings: u64,
    pub closed: BTreeMap<ClosedBy, u64>,
    /// Responses, by status.
    pub answered: BTreeMap<u16, u64>,
    /// Frames that were dropped, were replaced, and waited.
    pub dropped: u64,
    pub conflated: u64,
    pub queued: u64,
    pub dropped_for_memory: u64,
    pub closed_for_memory: u64,
}

/// A push, close or grant whose outcome is awaited.
#[derive(Debug, Clone, Copy)]
pub struct Awaited {
    pub channel: Option<u32>,
    /// How many channels it named, if it did.
    pub audience: Option<usize>,
    /// Header and payload.
    pub bytes: usize,
    pub parts: usize,
    /// Parts that an inbox did not take.
    pub refused: usize,
    pub outcome: Option<Outcome>,
}

impl Awaited {
    pub fn new(bytes: usize) -> Self {
        Self { channel: None, audience: None, bytes, parts: 1, refused: 0, outcome: None }
    }
}

pub struct World {
    pub options: Options,
    pub settings: Settings,
    pub now_ms: u64,
    pub step: u64,
    /// When the clock jumped, and how far.
    jumps: Vec<(u64, u64)>,
    pub rng: Rng,
    pub network: Rc<RefCell<Network>>,
    pub pumps: Vec<Pump>,
    pub senders: Vec<InboxSender<Command>>,
    /// The broker's own account at each shard, and what it has not handed over yet, in whose name.
    pub accounts: Vec<Account>,
    pub posted: Vec<VecDeque<(Option<usize>, Command)>>,
    pub admission: Arc<admission::Connections>,
    pub memory: admission::Ledger,
    pub clients: Vec<Client>,
    /// So many clients have come.
    pub arrived: usize,
    /// The first push after each client came.
    pub first_push: Vec<u64>,
    /// Receipts of clients before their channel was known.
    pub early: Vec<Vec<(u64, Heard)>>,
    /// All that ever were.
    pub processes: Vec<Process>,
    /// The process of each name, and whether a former one has ended.
    pub current: [Option<usize>; NAMES],
    pub was_ended: [bool; NAMES],
    pub directory: Directory,
    pub channels: BTreeMap<u32, Channel>,
    pub channel_of: HashMap<usize, u32>,
    pub awaited: HashMap<u64, Awaited>,
    pub settled: crossbeam_channel::Sender<(u64, Outcome)>,
    pub outcomes: crossbeam_channel::Receiver<(u64, Outcome)>,
    pub next_push: u64,
    pub orders_handed: u64,
    pub largest_order: usize,
    pub deflater: Deflater,
    pub stopped_ms: Option<u64>,
    /// The drain that stops it, if it is one.
    pub drain: Option<Drain>,
    pub trace: Trace,
    pub traces: Vec<Trace>,
    pub report: Report,
}

impl World {
    pub fn new(options: Options) -> Self {
        let settings = Settings::draw(options.seed, options.steps, options.lawful);
        let network = Network {
            short_percent: settings.short_percent,
            window_bytes_max: settings.window_bytes_max,
            events_max: settings.events_max,
            no_room_percent: settings.no_room_percent,
            tls_percent: settings.tls_percent,
            reset_in_batch: settings.reset_in_batch,
            crowd: settings.crowd,
            ports: (0..settings.shards).map(|port| Port::new(Rng::stream(options.seed, 3, port as u64))).collect(),
            ..Network::default()
        };
        let network = Rc::new(RefCell::new(network));
        let mut gateway = pushring::node::settings(NODE, Dialect::Kinode);
        gateway.secret = Some(Secret::new(SECRET).expect("long enough"));
        gateway.response_timeout_s = 2;
        let mut directory = Directory::new(Snapshot::new(gateway));
        let bells: Vec<Bell> = (0..settings.shards).map(|_| Bell::default()).collect();
        let inboxes = bells.iter().map(|bell| inbox::inbox(settings.inbox, bell.clone()));
        let (senders, inboxes): (Vec<_>, Vec<_>) = inboxes.unzip();
        let memory = settings.memory_bytes.map_or_else(Default::default, admission::Budget::of);
        let memory = admission::Ledger::new(memory);
        let place =
            Place { seed: options.seed, settings: &settings, plant: options.plant, memory: &memory, senders: &senders };
        let attached = (0..NAMES).map(|name| Process::attach(name, name, &place, &mut directory));
        let (processes, mut hosts): (_, Vec<Vec<_>>) =
            attached.map(|(process, hosts)| (process, hosts.into_iter().map(Some).collect())).unzip();
        let admission = Arc::new(admission::Connections::new(settings.admission(), RandomState::new()));
        let common = Common {
            config: Arc::new(options.plant.config(&settings.config)),
            directory: Arc::new(directory.clone()),
            admission: admission.clone(),
            memory: memory.clone(),
            resume: pushring::internals::resume::Keys::new(&[7; 32]),
        };
        let pumps = std::iter::zip(inboxes, bells).enumerate().map(|(index, (inbox, bell))| {
            let flush = Box::new(MemoryFlush { network: network.clone(), plant: options.plant });
            let seed = options.seed.wrapping_mul(31).wrapping_add(index as u64);
            let mut shard = Shard::new(index as u32, settings.shards as u32, common.clone(), flush, seed, 0);
            // Before the first client.
            hosts
                .iter_mut()
                .filter_map(|hosts| hosts.get_mut(index)?.take())
                .for_each(|host| shard.handle_command(host, 0));
            let sockets = MemorySockets { network: network.clone(), port: index, plant: options.plant };
            Pump::new(shard, inbox, bell, sockets, settings.pace)
        });
        let pumps = pumps.collect();
        let (settled, outcomes) = crossbeam_channel::unbounded();
        let mut world = Self {
            options,
            now_ms: 0,
            step: 0,
            jumps: Vec::new(),
            rng: Rng::stream(options.seed, 0, 0),
            network,
            pumps,
            accounts: senders.iter().map(InboxSender::account).collect(),
            posted: senders.iter().map(|_| VecDeque::new()).collect(),
            senders,
            admission,
            memory,
            clients: Vec::new(),
            arrived: 0,
            first_push: Vec::new(),
            early: Vec::new(),
            processes,
            current: std::array::from_fn(Some),
            was_ended: [false; NAMES],
            directory,
            channels: BTreeMap::new(),
            channel_of: HashMap::new(),
            awaited: HashMap::new(),
            settled,
            outcomes,
            next_push: 1,
            orders_handed: 0,
            largest_order: 0,
            deflater: Deflater::new(1),
            stopped_ms: None,
            drain: None,
            trace: Trace::default(),
            traces: Vec::new(),
            report: Report::default(),
            settings,
        };
        (0..world.settings.clients).for_each(|number| world.add_client(number));
        world
    }

    fn add_client(&mut self, number: usize) {
        let mut rng = Rng::stream(self.options.seed, 4, number as u64);
        let name = rng.below(NAMES);
        let process = process::name(name);
        let spread = self.options.steps * 4 / 5;
        let manners =
            [Manners::HalfHead, Manners::NeverRegisters, Manners::BadToken, Manners::IgnoresClose, Manners::NeverEnds];
        let sloppy = rng.pick(&manners);
        let manners = if rng.chance(self.settings.sloppy_percent) { sloppy } else { Manners::Good };
        let (path, registers) = match (rng.chance(self.settings.http_percent), rng.chance(40)) {
            (true, _) => (None, None),
            (_, true) => (Some("/".to_owned()), Some(register(&process.to_string(), manners == Manners::BadToken))),
            _ => (Some(format!("/{process}{}", rng.pick(&PATHS))), None),
        };
        // From a stream of its own, so that what else is drawn stays the same.
        let is_eager = Rng::stream(self.options.seed, 8, number as u64).chance(25)
            && path.is_some()
            && !matches!(manners, Manners::HalfHead | Manners::NeverRegisters)
            && !self.options.lawful;
        let ip = [10, 0, 0, rng.below(self.settings.addresses) as u8].into();
        let (port, peer) = (number % self.pumps.len(), (ip, 1000 + number as u16).into());
        let socket = self.network.borrow_mut().open(Rng::stream(self.options.seed, 5, number as u64), port, peer);
        let plan = ClientPlan {
            number,
            socket,
            name,
            ip,
            arrives_at: number as u64 * spread / self.settings.clients as u64,
            root: format!("/{process}"),
            path,
            registers,
            manners,
            is_eager,
        };
        self.clients.push(Client::new(plan, &self.settings, rng));
        self.early.push(Vec::new());
        self.first_push.push(0);
        self.traces.push(Trace::default());
    }

    /// Runs it to the end.
    pub fn run(mut self) -> Result<Report, String> {
        for _ in 0..self.options.steps {
            if self.settings.stops_at == Some(self.step) {
                self.tell_to_stop(2_000);
            }
            if let Some((_, drain)) = self.settings.drains_at.filter(|(at, _)| *at == self.step) {
                self.tell_to_drain(drain);
            }
            let pace = self.rng.between(1, 30) as u64;
            if self.rng.now_and_then(self.settings.jumps) {
                let jump = self.rng.pick(&[1_500, 5_000, 40_000]);
                self.jumps.push((self.now_ms, jump));
                self.now_ms += jump;
            }
            self.one_step(pace, true)?;
        }
        self.calm_down()?;
        self.finish()
    }

    pub fn one_step(&mut self, pace_ms: u64, faults: bool) -> Result<(), String> {
        self.step += 1;
        self.now_ms += pace_ms;
        self.network.borrow_mut().now_ms = self.now_ms;
        self.post();
        self.clients_act(faults);
        self.processes_act(faults)?;
        self.exchange()?;
        for index in 0..self.pumps.len() {
            self.pumps[index].work(self.now_ms, !faults)?;
            self.note_admitted()?;
            self.note_resets();
            self.note_hosted(index)?;
            self.settle()?;
        }
        self.check_descriptors()?;
        self.check_budgets()?;
        let complaint = self.network.borrow_mut().complaints.pop();
        complaint.map_or(Ok(()), Err)
    }

    pub fn tell_to_stop(&mut self, within_ms: u64) {
        if self.stopped_ms.is_none() {
            self.stopped_ms = Some(self.now_ms);
            self.posted.iter_mut().for_each(|posted| posted.push_back((None, Command::Stop { within_ms, told: None })));
            self.post();
        }
    }

    fn tell_to_drain(&mut self, drain: Drain) {
        if self.stopped_ms.is_none() {
            (self.stopped_ms, self.drain) = (Some(self.now_ms), Some(drain));
            self.posted.iter_mut().for_each(|posted| posted.push_back((None, Command::Drain(Box::new(drain)))));
            self.post();
        }
    }

    /// How much later than its time something may happen, if its time began then: a tick, a step, and all that the
    /// clock has jumped meanwhile, with the second that clients are given after each jump.
    pub fn slack_ms(&self, since_ms: u64) -> u64 {
        let jumped: u64 = self.jumps.iter().filter(|jump| jump.0 + jump.1 >= since_ms).map(|jump| jump.1 + 1_300).sum();
        400 + jumped
    }

    pub fn has_jumped(&self) -> bool {
        !self.jumps.is_empty()
    }

    pub fn channel(&mut self, id: u32) -> &mut Channel {
        self.channels.get_mut(&id).expect("channels are never forgotten")
    }

    fn clients_act(&mut self, faults: bool) {
        for number in 0..self.clients.len() {
            if faults && self.clients[number].state == State::Away && self.step > self.clients[number].plan.arrives_at {
                self.connect(number);
            }
            // Until its channel is open it does the same as ever: ids are minted in the order of opening.
            if self.options.stalled == Some(number) && self.clients[number].state == State::Open {
                self.clients[number].stall(u64::MAX);
                continue;
            }
            if faults {
                self.clients[number].act(self.step);
                let impatience = if self.waits_for_process(number) { self.settings.impatience } else { 1 };
                if let Some(how) = self.clients[number].wants_to_leave(impatience) {
                    self.leave(number, how);
                }
            }
        }
    }

    fn leave(&mut self, number: usize, how: Left) {
        let mut network = self.network.borrow_mut();
        let client = &mut self.clients[number];
        client.leave(network.socket(client.plan.socket), how, self.now_ms);
        if how != Left::Silently {
            network.notify(client.plan.socket);
        }
    }

    /// Its process takes nothing: what it asks is not answered, and once the queue is full it is not read.
    fn waits_for_process(&self, number: usize) -> bool {
        let client = &self.clients[number];
        let process = self.current[client.plan.name].map(|index| &self.processes[index]);
        let is_idle =
            process.is_some_and(|process| process.sleeps_until > self.step || process.phase != Phase::Attached);
        is_idle || !client.asked.is_empty()
    }

    fn connect(&mut self, number: usize) {
        if self.network.borrow_mut().connect(self.clients[number].plan.socket) {
            self.arrived = self.arrived.max(number + 1);
            self.first_push[number] = self.next_push;
            self.clients[number].come();
        }
    }

    fn note_admitted(&mut self) -> Result<(), String> {
        for admitted in std::mem::take(&mut self.network.borrow_mut().admitted) {
            let number = admitted.socket.0 as usize;
            let client = &mut self.clients[number];
            client.accepted_ms = self.now_ms;
            client.is_turned_away = admitted.is_over;
            if admitted.is_let_go && !admitted.is_over {
                return Err(format!("client {number} is let go, though no limit is reached"));
            }
            if admitted.is_let_go {
                client.state = State::Gone;
            }
        }
        Ok(())
    }

    fn note_resets(&mut self) {
        let mut network = self.network.borrow_mut();
        for socket in std::mem::take(&mut network.resets) {
            let client = &mut self.clients[socket.0 as usize];
            client.leave(network.socket(socket), Left::Reset, self.now_ms);
        }
    }

    fn exchange(&mut self) -> Result<(), String> {
        let network = self.network.clone();
        for number in 0..self.clients.len() {
            if self.clients[number].state == State::Away {
                continue;
            }
            let mut heard = Vec::new();
            let mut network = network.borrow_mut();
            let calm = network.calm;
            let client = &mut self.clients[number];
            let socket = network.socket(client.plan.socket);
            let is_readable = client.exchange(socket, calm, self.step, &mut heard);
            if socket.takes_bytes_again() || is_readable {
                socket.awaits_room &= !socket.takes_bytes_again();
                network.notify(client.plan.socket);
            }
            drop(network);
            for (at_ms, heard) in heard {
                self.note_heard(number, at_ms, heard)?;
            }
        }
        Ok(())
    }
}

fn register(process: &str, is_bad: bool) -> String {
    let claims = Claims { username: NODE.into(), subdomain: None, expiration: UNIX_S + 100_000_000 };
    let mut token = mint(&Secret::new(SECRET).expect("long enough"), &claims);
    if is_bad {
        token.pop();
    }
    format!("{{\"auth_token\":\"{token}\",\"target_process\":\"{process}\"}}")
}
