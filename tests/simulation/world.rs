//! All of it: real shards, inboxes and process queues, stepped by hand over a network in memory under a virtual clock.

use super::client::{Client, Heard, State};
use super::network::{MemoryFlush, Network, Plant};
use super::oracle::{Channel, Ended, Pushed, payload};
use super::rng::{Rng, Trace};
use bytes::Bytes;
use pushring::channel::ChannelId;
use pushring::gateway::{Claims, Dialect, OwnerId, Secret, Settings, Snapshot, WebSocketRule, mint};
use pushring::inbox::{self, Account, Inbox, InboxSender, NeverAsleep};
use pushring::process_id::ProcessId;
use pushring::proto::MessageKind;
use pushring::shard::command::{
    Asked, Close, CloseFrame, Command, Policy, Push, PushFrame, PushKind, PushMany, ShardAudience,
};
use pushring::shard::event::{ClosedBy, Event};
use pushring::shard::flush::SocketId;
use pushring::shard::outcome::{Outcome, Part, Ticket};
use pushring::shard::process_queue::{Batch, ProcessReceiver, QueueLimits, process_queue};
use pushring::shard::{Common, Config, Directory, Effect, Owner, Shard, TICK_MS, Token};
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

const NODE: &str = "sim.os";
const SECRET: &[u8] = b"a secret that only the simulation knows";
const UNIX_S: u64 = 1_000_000;
const PROCESSES: usize = 3;
const PATHS: [&str; 2] = ["/a", "/b"];
const OUTBOUND_BYTES_MAX: usize = 12_000;
/// Control frames of our own are not charged to the budget.
const CONTROL_BYTES_MAX: usize = 8 * 1024;
const CLOSE_CODE: u16 = 4000;

/// What to simulate.
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

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    pub hash: u64,
    /// For each client what it heard.
    pub traces: Vec<u64>,
    pub opened: usize,
    pub pushed: u64,
    pub heard: u64,
    pub messages: u64,
    pub closed: BTreeMap<ClosedBy, usize>,
}

struct Pump {
    shard: Shard,
    inbox: Inbox<Command>,
    readable: VecDeque<(Token, bool)>,
    ticked_ms: u64,
    rng: Rng,
}

struct Process {
    owner: Arc<Owner>,
    receiver: ProcessReceiver,
    accounts: Vec<Account>,
    rng: Rng,
    /// It takes no events until this step.
    sleeps_until: u64,
    detached: bool,
    /// Pushes to all channels, or those of a path, by shard: a channel may have been opened before we heard of it.
    broadcasts: Vec<Vec<(Option<&'static str>, Pushed)>>,
}

/// A push whose outcome is awaited.
struct Awaited {
    channel: Option<u32>,
    /// How many channels it named, if it did.
    audience: Option<usize>,
    len: usize,
    settled: bool,
}

/// A push, and what became of it.
type Settled = (u64, Outcome);

pub struct World {
    options: Options,
    now_ms: u64,
    step: u64,
    rng: Rng,
    network: Rc<RefCell<Network>>,
    pumps: Vec<Pump>,
    senders: Vec<InboxSender<Command>>,
    tokens: Vec<Option<Token>>,
    clients: Vec<Client>,
    /// What clients heard before we knew their channel.
    early: Vec<Vec<Heard>>,
    processes: Vec<Process>,
    directory: Directory,
    channels: BTreeMap<u32, Channel>,
    channel_of: HashMap<usize, u32>,
    awaited: HashMap<u64, Awaited>,
    settled: crossbeam_channel::Sender<Settled>,
    outcomes: crossbeam_channel::Receiver<Settled>,
    next_push: u64,
    trace: Trace,
    traces: Vec<Trace>,
    heard: u64,
    messages: u64,
}

impl World {
    pub fn new(options: Options) -> Self {
        let mut rng = Rng::stream(options.seed, 1, 0);
        let shards = rng.between(1, 4);
        let network = Rc::new(RefCell::new(Network::default()));
        let mut settings = Settings::new(NODE, Dialect::Kinode);
        settings.secret = Some(Secret::new(SECRET).unwrap());
        let mut directory = Directory::new(Snapshot::new(settings));
        let inboxes: Vec<_> = (0..shards)
            .map(|_| inbox::inbox(inbox::Limits { commands_max: 512, bytes_max: 1 << 20 }, NeverAsleep))
            .collect();
        let (senders, inboxes): (Vec<InboxSender<Command>>, Vec<Inbox<Command>>) = inboxes.into_iter().unzip();
        let processes: Vec<Process> =
            (0..PROCESSES).map(|index| attach(index, &options, &mut directory, &senders)).collect();
        let (config, adopted) = (Arc::new(config()), Arc::new(directory.clone()));
        let common = Common { config, directory: adopted, admission: Arc::default(), memory: Default::default() };
        let pumps = inboxes.into_iter().enumerate().map(|(index, inbox)| {
            let flush = Box::new(MemoryFlush { network: network.clone(), plant: options.plant });
            let seed = options.seed.wrapping_mul(31).wrapping_add(index as u64);
            let shard = Shard::new(index as u32, shards as u32, common.clone(), flush, seed, 0);
            let rng = Rng::stream(options.seed, 3, index as u64);
            Pump { shard, inbox, readable: VecDeque::new(), ticked_ms: 0, rng }
        });
        let pumps = pumps.collect();
        let (settled, outcomes) = crossbeam_channel::unbounded();
        let mut world = Self {
            options,
            now_ms: 0,
            step: 0,
            rng,
            network,
            pumps,
            senders,
            tokens: Vec::new(),
            clients: Vec::new(),
            early: Vec::new(),
            processes,
            directory,
            channels: BTreeMap::new(),
            channel_of: HashMap::new(),
            awaited: HashMap::new(),
            settled,
            outcomes,
            next_push: 1,
            trace: Trace::new(),
            traces: Vec::new(),
            heard: 0,
            messages: 0,
        };
        let clients = world.rng.between(4, 24);
        (0..clients).for_each(|number| world.add_client(number));
        for pump in &mut world.pumps {
            pump.shard.set_unix_ms(UNIX_S * 1000, 0);
        }
        world
    }

    fn add_client(&mut self, number: usize) {
        let mut rng = Rng::stream(self.options.seed, 4, number as u64);
        let owner = rng.below(PROCESSES);
        let socket = self.network.borrow_mut().open(Rng::stream(self.options.seed, 5, number as u64));
        let process = &self.processes[owner].owner.process;
        let (path, registers) = if rng.chance(40) {
            let claims = Claims { username: NODE.into(), subdomain: None, expiration: UNIX_S + 1000 };
            let token = mint(&Secret::new(SECRET).unwrap(), &claims);
            let register = format!("{{\"auth_token\":\"{token}\",\"target_process\":\"{process}\"}}");
            ("/".into(), Some(register))
        } else {
            (format!("/{process}{}", PATHS[rng.below(2)]), None)
        };
        self.clients.push(Client::new(number, socket, owner, &path, registers, rng));
        self.early.push(Vec::new());
        self.tokens.push(None);
        self.traces.push(Trace::new());
    }

    /// Runs it to the end.
    pub fn run(mut self) -> Result<Report, String> {
        for _ in 0..self.options.steps {
            self.one_step(true)?;
        }
        self.calm_down()?;
        self.stop()?;
        Ok(self.report())
    }

    fn one_step(&mut self, faults: bool) -> Result<(), String> {
        self.step += 1;
        self.now_ms += self.rng.between(1, 30) as u64;
        if faults && self.rng.below(400) == 0 {
            self.now_ms += 1500;
        }
        self.clients_act(faults);
        for process in 0..PROCESSES {
            self.process_acts(process, faults)?;
        }
        self.exchange()?;
        for pump in 0..self.pumps.len() {
            self.turn(pump)?;
        }
        self.settle()?;
        let complaint = self.network.borrow_mut().complaints.pop();
        complaint.map_or(Ok(()), Err)
    }

    /// The faults stop: what was accepted arrives.
    fn calm_down(&mut self) -> Result<(), String> {
        self.network.borrow_mut().calm = true;
        for _ in 0..400 {
            self.one_step(false)?;
        }
        for channel in self.channels.values().filter(|channel| channel.ended.is_none()) {
            let client = &self.clients[channel.client];
            if client.state != State::Open {
                return Err(channel.complain(&format!("still open, although its client is {:?}", client.state)));
            }
            if client.unfinished() > 0 || client.sent != channel.messages {
                let (sent, got) = (client.sent, channel.messages);
                return Err(channel.complain(&format!("of {sent} messages {got} came, though nothing is in the way")));
            }
            channel.all_have_come(0, channel.pushed.len())?;
        }
        match self.awaited.iter().find(|(_, awaited)| !awaited.settled) {
            Some((id, _)) => Err(format!("push {id} was never settled")),
            None => Ok(()),
        }
    }

    fn stop(&mut self) -> Result<(), String> {
        for sender in &self.senders {
            let sent = sender.try_send(Command::Stop { within_ms: 60_000 }, 0, &sender.account());
            sent.map_err(|refused| format!("an empty inbox refuses: {refused}"))?;
        }
        for _ in 0..1000 {
            self.one_step(false)?;
        }
        if let Some(pump) = self.pumps.iter().find(|pump| !pump.shard.is_stopped()) {
            return Err(format!("a shard keeps {} connections after its stop", pump.shard.connections()));
        }
        match self.channels.values().find(|channel| channel.ended.is_none()) {
            Some(channel) => Err(channel.complain("opened and never closed")),
            None => Ok(()),
        }
    }

    fn report(self) -> Report {
        let mut closed = BTreeMap::new();
        for ended in self.channels.values().filter_map(|channel| channel.ended) {
            *closed.entry(ended.by).or_default() += 1;
        }
        Report {
            hash: self.trace.0,
            traces: self.traces.iter().map(|trace| trace.0).collect(),
            opened: self.channels.len(),
            pushed: self.next_push - 1,
            heard: self.heard,
            messages: self.messages,
            closed,
        }
    }

    fn clients_act(&mut self, faults: bool) {
        for number in 0..self.clients.len() {
            let shard = number % self.pumps.len();
            if self.tokens[number].is_none() && self.step > number as u64 * 3 && faults {
                let peer = ([127, 0, 0, 1], 1000 + number as u16).into();
                let socket = self.clients[number].socket;
                let token = self.pumps[shard].shard.handle_accept(socket, peer, self.now_ms);
                self.tokens[number] = token;
            }
            if self.options.stalled == Some(number) {
                if self.clients[number].state == State::Open {
                    self.clients[number].stalled_until = u64::MAX;
                }
                continue;
            }
            self.clients[number].act(self.step, faults && !self.options.lawful);
            let mut rng = Rng::stream(self.options.seed, 6, number as u64 * 1_000_003 + self.step);
            let lives = self.tokens[number].is_some() && self.clients[number].state != State::Gone;
            if faults && !self.options.lawful && lives && rng.below(2500) == 0 {
                let mut network = self.network.borrow_mut();
                self.clients[number].vanish(&mut network, rng.chance(60));
                if let Some(token) = self.tokens[number] {
                    self.pumps[shard].readable.push_back((token, true));
                }
            }
        }
    }

    fn exchange(&mut self) -> Result<(), String> {
        let network = self.network.clone();
        for number in 0..self.clients.len() {
            let Some(token) = self.tokens[number] else { continue };
            let mut heard = Vec::new();
            let mut network = network.borrow_mut();
            let readable = self.clients[number].exchange(&mut network, self.step, &mut heard)?;
            let pump = &mut self.pumps[number % self.senders.len()];
            if let Some(to_the_end) = readable {
                pump.readable.push_back((token, to_the_end));
            }
            let socket = network.socket(self.clients[number].socket);
            let has_room = socket.to_client.is_empty() || socket.reset;
            if socket.awaits_room && has_room && !socket.closed {
                socket.awaits_room = false;
                pump.shard.handle_writable(token);
            }
            drop(network);
            for heard in heard {
                self.note_heard(number, heard)?;
            }
        }
        Ok(())
    }

    fn note_heard(&mut self, number: usize, heard: Heard) -> Result<(), String> {
        self.trace.number(number as u64);
        self.trace.number(self.step);
        if let Heard::Frame { opcode, payload } = &heard {
            // Control frames of the server's own depend on time, and so on when others were looked at.
            self.trace.add(payload);
            if matches!(opcode, 1 | 2) && !payload.starts_with(b"{") {
                self.traces[number].number(self.step);
                self.traces[number].add(&payload[16.min(payload.len())..]);
            }
        }
        match self.channel_of.get(&number) {
            Some(id) => self.judge_heard(*id, heard),
            None => {
                self.early[number].push(heard);
                Ok(())
            }
        }
    }

    fn judge_heard(&mut self, id: u32, heard: Heard) -> Result<(), String> {
        let channel = self.channels.get_mut(&id).expect("channels are never forgotten");
        match heard {
            Heard::Upgraded | Heard::End => Ok(()),
            Heard::Frame { opcode: 8, payload } => {
                let code = payload.first_chunk().map_or(1005, |code| u16::from_be_bytes(*code));
                match channel.closed_at {
                    // It stands behind everything that was pushed before it.
                    Some(at) if code == CLOSE_CODE => channel.all_have_come(0, at),
                    None if code == CLOSE_CODE => Err(channel.complain("closed, though its process did not ask")),
                    _ => Ok(()),
                }
            }
            Heard::Frame { opcode, payload } => {
                self.heard += 1;
                channel.heard(opcode, &payload)
            }
        }
    }

    /// As the driver's pump does it.
    fn turn(&mut self, index: usize) -> Result<(), String> {
        let now_ms = self.now_ms;
        let pump = &mut self.pumps[index];
        if now_ms >= pump.ticked_ms + TICK_MS {
            pump.ticked_ms = now_ms;
            pump.shard.handle_tick(now_ms);
        }
        pump.inbox.take_kick();
        if !pump.shard.is_turn_full() {
            let commands_max = pump.rng.between(1, 64);
            let shard = &mut pump.shard;
            pump.inbox.drain(commands_max, 1 << 20, |command| shard.handle_command(command, now_ms));
        }
        for _ in 0..pump.readable.len() {
            let Some((token, to_the_end)) = pump.readable.pop_front() else { break };
            if !pump.shard.wants_read(token) {
                continue;
            }
            let Some(socket) = pump.shard.socket(token) else { continue };
            let (mut bytes, finished, reset) = {
                let mut network = self.network.borrow_mut();
                let socket = network.socket(socket);
                let len = socket.read_size().min(socket.to_server.len());
                let bytes: Vec<u8> = socket.to_server.drain(..len).collect();
                (bytes, socket.client_finished && socket.to_server.is_empty(), socket.reset)
            };
            let more = !self.network.borrow_mut().socket(socket).to_server.is_empty();
            if reset || (bytes.is_empty() && finished) {
                pump.shard.handle_end(token, now_ms);
            } else if !bytes.is_empty() {
                pump.shard.handle_read(token, &mut bytes, now_ms);
                if more || finished || to_the_end {
                    pump.readable.push_back((token, true));
                }
            }
        }
        pump.shard.flush();
        pump.shard.end_turn();
        self.carry_out(index);
        Ok(())
    }

    fn carry_out(&mut self, index: usize) {
        let pump = &mut self.pumps[index];
        let mut effects = Vec::new();
        pump.shard.take_effects(&mut effects);
        let mut network = self.network.borrow_mut();
        for effect in effects {
            match effect {
                Effect::Read(token) => pump.readable.push_back((token, true)),
                Effect::ShutdownWrite(SocketId(id)) => network.sockets[id as usize].write_shut = true,
                Effect::Close(SocketId(id)) => {
                    let socket = &mut network.sockets[id as usize];
                    if std::mem::replace(&mut socket.closed, true) {
                        network.complaints.push(format!("socket {id} is closed twice"));
                    }
                }
            }
        }
    }

    fn process_acts(&mut self, index: usize, faults: bool) -> Result<(), String> {
        if !self.options.lawful && self.processes[index].rng.below(150) == 0 {
            let pause = self.processes[index].rng.between(1, 60) as u64;
            self.processes[index].sleeps_until = self.step + pause;
        }
        if !faults || self.processes[index].sleeps_until <= self.step {
            let batches = self.processes[index].rng.below(4);
            let batches = if faults && !self.options.lawful { batches } else { usize::MAX };
            for _ in 0..batches {
                let Ok(batch) = self.processes[index].receiver.try_recv() else { break };
                self.note_batch(index, batch)?;
            }
        }
        if !faults || self.processes[index].detached {
            return Ok(());
        }
        for _ in 0..self.processes[index].rng.below(4) {
            match self.processes[index].rng.below(200) {
                0..140 => self.push_one(index),
                140..190 => self.push_many(index),
                190..192 if !self.options.lawful => self.close_one(index),
                192 if !self.options.lawful && self.processes[index].rng.chance(3) => self.detach(index),
                _ => {}
            }
        }
        Ok(())
    }

    fn note_batch(&mut self, index: usize, batch: Batch) -> Result<(), String> {
        if batch.owner != self.processes[index].owner.id {
            return Err(format!("process {index} got the events of another"));
        }
        for event in batch.events {
            match event {
                Event::Opened(opened) => {
                    let number = usize::from(opened.source.port() - 1000);
                    self.note_opened(index, number, opened.channel, &opened.path, opened.registered)?;
                }
                Event::Message { channel, payload, .. } => {
                    self.messages += 1;
                    let channel = self.live_channel(index, channel)?;
                    channel.message(&payload)?;
                }
                Event::Closed(closed) => {
                    self.trace.number(u64::from(closed.channel.get()) << 16 | u64::from(closed.code));
                    let channel = self.live_channel(index, closed.channel)?;
                    channel.ended = Some(Ended { code: closed.code, by: closed.by });
                    let number = channel.client;
                    self.judge_closed(number, closed.channel.get())?;
                }
                Event::Failed { .. } => return Err("nobody asked to hear of failures only".into()),
                Event::Control { .. } | Event::Http(_) | Event::Outcome { .. } => {
                    return Err(format!("process {index} did not ask for {event:?}"));
                }
            }
        }
        Ok(())
    }

    fn note_opened(
        &mut self,
        index: usize,
        number: usize,
        id: ChannelId,
        path: &str,
        registered: bool,
    ) -> Result<(), String> {
        let client = &self.clients[number];
        let shards = self.pumps.len();
        if client.owner != index || id.shard(shards as u32) as usize != number % shards {
            return Err(format!("client {number} became channel {id} of process {index}"));
        }
        let mut channel = Channel::new(id.get(), number, index, registered);
        for (only, pushed) in &self.processes[index].broadcasts[number % shards] {
            if only.is_none_or(|only| only == path) {
                channel.push(Pushed { may_be_dropped: true, ..pushed.clone() });
            }
        }
        if self.channels.insert(id.get(), channel).is_some() || self.channel_of.insert(number, id.get()).is_some() {
            return Err(format!("channel {id} of client {number} was opened twice"));
        }
        for heard in std::mem::take(&mut self.early[number]) {
            self.judge_heard(id.get(), heard)?;
        }
        Ok(())
    }

    fn live_channel(&mut self, index: usize, id: ChannelId) -> Result<&mut Channel, String> {
        match self.channels.get_mut(&id.get()) {
            Some(channel) if channel.owner == index && channel.ended.is_none() => Ok(channel),
            Some(channel) => Err(channel.complain(&format!("an event for process {index}, or after Closed"))),
            None => Err(format!("an event of channel {id} before its Opened")),
        }
    }

    fn judge_closed(&self, number: usize, id: u32) -> Result<(), String> {
        let (client, channel) = (&self.clients[number], &self.channels[&id]);
        let ended = channel.ended.expect("it was just set");
        let why = |what: &str| Err(channel.complain(&format!("{what}: {ended:?}")));
        match ended.by {
            ClosedBy::Client if !client.sent_close_first => why("its client did not close"),
            ClosedBy::Client if channel.messages != client.sent => {
                why("messages before the client's close are missing")
            }
            ClosedBy::Violation if self.options.lawful || ended.code == 1006 => why("no violation"),
            ClosedBy::Process if ended.code == CLOSE_CODE && channel.closed_at.is_none() => why("nobody asked"),
            _ => Ok(()),
        }
    }

    fn part(&mut self, parts: usize, awaited: Awaited) -> (u64, Vec<Part>) {
        let id = self.next_push;
        self.next_push += 1;
        self.awaited.insert(id, awaited);
        let outcomes = self.settled.clone();
        // Nobody listens any more when the world has ended early.
        (
            id,
            Ticket::split(parts, move |outcome| {
                let _ = outcomes.send((id, outcome));
            }),
        )
    }

    fn draw_frame(&mut self, index: usize) -> (u8, PushKind, usize) {
        let rng = &mut self.processes[index].rng;
        match rng.below(20) {
            0 => (9, PushKind::Ping, rng.below(100)),
            1 => (10, PushKind::Pong, rng.below(100)),
            2..11 => (1, PushKind::Message(MessageKind::Text), rng.size(5000)),
            _ => (2, PushKind::Message(MessageKind::Binary), rng.size(5000)),
        }
    }

    /// The channel of any client, of whatever process. Draws as much whatever there is.
    fn draw_channel(&mut self, index: usize) -> Option<u32> {
        let number = self.processes[index].rng.below(self.clients.len());
        self.channel_of.get(&number).copied()
    }

    fn push_one(&mut self, index: usize) {
        let (opcode, kind, filler) = self.draw_frame(index);
        let drawn = self.draw_channel(index);
        let rng = &mut self.processes[index].rng;
        let key = rng.next() % 4;
        let policy = match rng.below(10) {
            0 => Some(Policy::DropNewest),
            1 => Some(Policy::DropOldest),
            2 | 3 if opcode < 8 => Some(Policy::Conflate { key }),
            4 => Some(Policy::Close),
            _ => None,
        };
        let Some(channel) = drawn else {
            self.next_push += 1;
            return;
        };
        let owner = self.processes[index].owner.clone();
        let awaited = Awaited { channel: Some(channel), audience: Some(1), len: filler + 26, settled: false };
        let (id, mut parts) = self.part(1, awaited);
        let push = Push {
            channel: ChannelId::new(channel),
            owner: Some(owner.id),
            frame: PushFrame { kind, payload: payload(id, filler).into() },
            policy,
            asked: parts.pop().map_or(Asked::Nobody, |part| Asked::Outcome(Box::new(part))),
        };
        let is_ours = self.channels[&channel].owner == index;
        if self.send(index, self.channels[&channel].client % self.pumps.len(), Command::Push(push)) && is_ours {
            let may_be_dropped = policy.unwrap_or(owner.policy) == Policy::DropNewest;
            let key = if let Some(Policy::Conflate { key }) = policy { Some(key) } else { None };
            let lossy = policy.unwrap_or(owner.policy) == Policy::DropOldest;
            let channel = self.channels.get_mut(&channel).expect("it was just read");
            channel.lossy |= lossy;
            channel.push(Pushed { id, opcode, filler, key, may_be_dropped, refused: false });
        }
    }

    fn push_many(&mut self, index: usize) {
        let (opcode, kind, filler) = self.draw_frame(index);
        let shards = self.pumps.len();
        let choice = self.processes[index].rng.below(3);
        let drawn: Vec<Option<u32>> = (0..6).map(|_| self.draw_channel(index)).collect();
        let only = PATHS[self.processes[index].rng.below(2)];
        let mut named: Vec<u32> = drawn.into_iter().flatten().collect();
        named.sort_unstable();
        named.dedup();
        let except = if named.len() > 3 && choice != 0 { named.split_off(3) } else { named.split_off(named.len() / 2) };
        let except: Arc<[ChannelId]> = except.into_iter().map(ChannelId::new).collect();
        let targets: Vec<(usize, ShardAudience)> = (0..shards)
            .map(|shard| {
                let ours =
                    named.iter().map(|&id| ChannelId::new(id)).filter(|id| id.shard(shards as u32) as usize == shard);
                let audience = match choice {
                    0 => ShardAudience::Channels(ours.collect()),
                    1 => ShardAudience::Path(only.into()),
                    _ => ShardAudience::Process,
                };
                (shard, audience)
            })
            .collect();
        let audience = (choice == 0).then_some(named.len());
        let awaited = Awaited { channel: None, audience, len: filler + 26, settled: false };
        let (id, mut parts) = self.part(shards, awaited);
        let owner = self.processes[index].owner.clone();
        let bytes: Bytes = payload(id, filler).into();
        let pushed = Pushed {
            id,
            opcode,
            filler,
            key: None,
            may_be_dropped: owner.policy == Policy::DropNewest,
            refused: false,
        };
        for (shard, audience) in targets {
            let many = PushMany {
                audience: audience.clone(),
                except: except.clone(),
                owner: owner.id,
                frame: PushFrame { kind, payload: bytes.clone() },
                compressed: None,
                policy: None,
                part: parts.pop().map(Box::new),
            };
            if !self.send(index, shard, Command::PushMany(Box::new(many))) {
                // Its part of the audience is not reached.
                self.awaited.get_mut(&id).expect("it was just made").audience = None;
                continue;
            }
            self.note_many(index, shard, &audience, &except, &pushed, only);
        }
    }

    fn note_many(
        &mut self,
        index: usize,
        shard: usize,
        audience: &ShardAudience,
        except: &[ChannelId],
        pushed: &Pushed,
        only: &'static str,
    ) {
        let lossy = self.processes[index].owner.policy == Policy::DropOldest;
        let shards = self.pumps.len() as u32;
        for channel in self.channels.values_mut().filter(|channel| channel.owner == index) {
            let id = ChannelId::new(channel.id);
            let path = &self.clients[channel.client].path;
            let is_named = match audience {
                ShardAudience::Channels(named) => named.contains(&id),
                ShardAudience::Path(_) => path.ends_with(only),
                ShardAudience::Process => true,
            };
            if is_named && id.shard(shards) as usize == shard && !except.contains(&id) {
                channel.lossy |= lossy;
                channel.push(pushed.clone());
            }
        }
        let only = match audience {
            ShardAudience::Channels(_) => return,
            ShardAudience::Path(_) => Some(only),
            ShardAudience::Process => None,
        };
        self.processes[index].broadcasts[shard].push((only, pushed.clone()));
    }

    fn close_one(&mut self, index: usize) {
        let Some(id) = self.draw_channel(index).filter(|id| self.channels[id].owner == index) else { return };
        let why = CloseFrame { code: Some(CLOSE_CODE), reason: "enough".into() };
        let owner = Some(self.processes[index].owner.id);
        let close = Close { channel: ChannelId::new(id), owner, why, asked: Asked::Nobody };
        let shard = self.channels[&id].client % self.pumps.len();
        if self.send(index, shard, Command::Close(Box::new(close))) {
            let channel = self.channels.get_mut(&id).expect("it was just read");
            let at = channel.pushed.len();
            channel.closed_at.get_or_insert(at);
        }
    }

    fn detach(&mut self, index: usize) {
        let owner = self.processes[index].owner.clone();
        self.directory.gateway.unbind_owner(owner.id);
        self.directory.owners.remove(&owner.id);
        self.directory.processes.remove(&owner.process);
        self.processes[index].detached = true;
        let directory = Arc::new(self.directory.clone());
        for sender in &self.senders {
            let why = CloseFrame { code: Some(1001), reason: "detached".into() };
            for command in [Command::Adopt(directory.clone(), None), Command::OwnerGone { owner: owner.id, why }] {
                // An account of its own, and inboxes are far from full here.
                let sent = sender.try_send(command, 0, &sender.account());
                assert!(sent.is_ok(), "the inbox is full");
            }
        }
    }

    fn send(&mut self, index: usize, shard: usize, command: Command) -> bool {
        let bytes = command.payload_bytes();
        self.senders[shard].try_send(command, bytes, &self.processes[index].accounts[shard]).is_ok()
    }

    /// Takes in the outcomes of pushes.
    fn settle(&mut self) -> Result<(), String> {
        while let Ok((id, outcome)) = self.outcomes.try_recv() {
            let Some(awaited) = self.awaited.get_mut(&id) else { return Err(format!("nobody asked for push {id}")) };
            if std::mem::replace(&mut awaited.settled, true) {
                return Err(format!("push {id} was settled twice"));
            }
            let Outcome { sent, queued, queued_bytes, conflated, dropped, closed, not_found, not_owner } = outcome;
            let total = sent + queued + conflated + dropped + closed + not_found + not_owner;
            let was_refused = total == 0 && awaited.channel.is_some();
            if awaited.audience.is_some_and(|audience| audience != total) && !was_refused {
                return Err(format!("push {id} to {:?} channels: {outcome:?}", awaited.audience));
            }
            let most = OUTBOUND_BYTES_MAX.max(awaited.len) + CONTROL_BYTES_MAX;
            if queued_bytes > most * queued {
                return Err(format!("push {id} waits in too long a queue: {outcome:?}"));
            }
            if let Some(channel) = awaited.channel {
                let channel = self.channels.get_mut(&channel).expect("channels are never forgotten");
                let was_taken = sent + queued + conflated > 0;
                if let Some(pushed) = channel.find(id) {
                    pushed.refused = !was_taken;
                    // An accepted frame may no longer be dropped by its own policy.
                    pushed.may_be_dropped &= !was_taken;
                }
            }
        }
        Ok(())
    }
}

fn config() -> Config {
    Config {
        outbound_bytes_max: OUTBOUND_BYTES_MAX,
        copy_bytes_max: 512,
        copy_shared_bytes_max: 4096,
        ping_interval_ms: 2_000,
        close_timeout_ms: 3_000,
        linger_ms: 1_000,
        ..Config::default()
    }
}

fn attach(index: usize, options: &Options, directory: &mut Directory, senders: &[InboxSender<Command>]) -> Process {
    let process = ProcessId::new(&format!("p{index}"), "sim", "sys").unwrap();
    let limits = QueueLimits { messages_max: 40, bytes_max: 20_000 };
    let kicks = senders.to_vec();
    let (queue, receiver) = process_queue(senders.len(), limits, &Default::default(), move |shard| kicks[shard].kick());
    let id = OwnerId(index as u32 + 1);
    let policy = [Policy::Close, Policy::DropNewest, Policy::DropOldest][index % 3];
    let owner = Arc::new(Owner::new(id, process.clone(), queue, policy, false));
    for path in PATHS {
        directory.gateway.bind_websocket(id, &process, path, WebSocketRule::default()).unwrap();
    }
    directory.owners.insert(id, owner.clone());
    directory.processes.insert(process, id);
    Process {
        owner,
        receiver,
        accounts: senders.iter().map(InboxSender::account).collect(),
        rng: Rng::stream(options.seed, 2, index as u64),
        sleeps_until: 0,
        detached: false,
        broadcasts: vec![Vec::new(); senders.len()],
    }
}
