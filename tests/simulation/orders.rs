//! Actions of processes: read, push, close, answer requests, let guests in, lose their link, end and start again.

use super::hosted::{HostedParts, ORDERS_WAITING_MAX};
use super::oracle::{Fate, Pushed};
use super::payload;
use super::plant::Plant;
use super::process::{PATHS, Phase, Place, Process};
use super::settings::NAMES;
use super::world::{Awaited, World};
use bytes::Bytes;
use pushring::internals::channel::ChannelId;
use pushring::internals::http::PreparedResponse;
use pushring::internals::proto::MessageKind;
use pushring::internals::shard::command::{
    CloseCommand, CloseFrame, Command, GrantCommand, GuestPushCommand, Policy, PushCommand, PushFrame, PushKind,
    PushMany, ReportTo, RespondCommand, ShardAudience,
};
use pushring::internals::shard::deflate::Compressed;
use std::sync::Arc;

/// With what processes close channels.
pub const CLOSE_CODE: u16 = 4000;

/// An order, and what the oracle notes once it was handed over.
pub struct Order {
    pub shard: usize,
    pub command: Command,
    pub note: Note,
    pub awaits: Option<u64>,
}

pub enum Note {
    Nothing,
    Topic { name: &'static str, except: Arc<[ChannelId]>, pushed: Pushed },
    Membership { channel: u32, name: &'static str, is_out: bool },
    Push(u32, Pushed),
    Many { audience: ShardAudience, except: Arc<[ChannelId]>, pushed: Pushed, only: &'static str },
    Guest(Vec<u32>, Pushed),
    Close(u32),
    Grant(u32),
}

impl World {
    pub fn processes_act(&mut self, faults: bool) -> Result<(), String> {
        for name in 0..NAMES {
            if faults && self.current[name].is_none() && self.rng.now_and_then(150) {
                self.attach_again(name);
            }
        }
        for index in 0..self.processes.len() {
            self.process_acts(index, faults)?;
        }
        Ok(())
    }

    fn process_acts(&mut self, index: usize, faults: bool) -> Result<(), String> {
        let (step, rates) = (self.step, self.settings.process);
        let process = &mut self.processes[index];
        let is_over = |until: u64| until <= step || !faults;
        if let Phase::Detached(until) = process.phase {
            if !is_over(until) {
                return Ok(());
            }
            process.phase = Phase::Attached;
            if process.rng.chance(40) {
                // It did not come back in time.
                self.end(index, 1012);
            }
        }
        let process = &mut self.processes[index];
        if process.rng.now_and_then(rates.nap) {
            process.sleeps_until = step + process.rng.between(1, self.settings.nap_steps_max) as u64;
        }
        let naps = !is_over(process.sleeps_until);
        if let Some(hosted) = &process.hosted {
            hosted.nap(naps);
            hosted.call(&self.senders);
        }
        if !naps {
            let batches = if process.rng.chance(50) || !faults || self.options.lawful {
                usize::MAX
            } else {
                process.rng.below(4)
            };
            self.read(index, batches)?;
            self.answer_requests(index, faults);
        }
        if !faults || self.processes[index].phase != Phase::Attached {
            return Ok(());
        }
        let is_behind = |hosted: &HostedParts| hosted.orders_waiting() >= ORDERS_WAITING_MAX;
        let orders = match self.processes[index].hosted.as_ref().is_some_and(is_behind) {
            true => Vec::new(),
            false => self.draw_orders(index),
        };
        if self.processes[index].rng.chance(self.settings.batch_percent) && self.processes[index].hosted.is_none() {
            self.hand_over_batches(index, orders);
        } else {
            for order in orders {
                self.hand_over(index, order);
            }
        }
        let rng = &mut self.processes[index].rng;
        if rng.now_and_then(rates.detach) {
            self.processes[index].phase = Phase::Detached(step + self.rng.between(5, 100) as u64);
        } else if rng.now_and_then(rates.end) {
            let code = rng.pick(&[1001, 1011]);
            self.end(index, code);
        }
        Ok(())
    }

    fn read(&mut self, index: usize, batches_max: usize) -> Result<(), String> {
        for _ in 0..batches_max {
            let Ok(batch) = self.processes[index].receiver.try_recv() else { break };
            if self.is_forgotten(index) {
                continue;
            }
            self.note_batch(index, batch)?;
        }
        Ok(())
    }

    fn draw_orders(&mut self, index: usize) -> Vec<Order> {
        let rates = self.settings.process;
        let mut orders = Vec::new();
        for _ in 0..self.processes[index].rng.below(4) {
            match self.processes[index].rng.below(200) {
                0..140 => orders.extend(self.push_one(index)),
                140..180 => orders.extend(self.push_many(index)),
                180..190 => orders.extend(self.subscribe(index)),
                _ => orders.extend(self.publish(index)),
            }
            if self.processes[index].rng.now_and_then(rates.close) {
                orders.extend(self.close_one(index));
            }
            if self.processes[index].rng.now_and_then(rates.grant) {
                orders.extend(self.grant(index));
                orders.extend(self.push_as_guest(index));
            }
        }
        orders
    }

    /// Makes the parts of a ticket whose outcome is awaited.
    pub fn awaits(
        &mut self,
        parts: usize,
        awaited: Awaited,
    ) -> (u64, Vec<pushring::internals::shard::outcome::OutcomePart>) {
        let id = self.next_push;
        self.next_push += 1;
        self.awaited.insert(id, awaited);
        let outcomes = self.settled.clone();
        let is_lie = self.options.plant == Plant::LiesAboutOutcome;
        let parts = pushring::internals::shard::outcome::OutcomeCollector::split(parts, move |mut outcome| {
            if is_lie {
                std::mem::swap(&mut outcome.sent, &mut outcome.queued);
            }
            // The receiver is gone if the world has ended early.
            let _ = outcomes.send((id, outcome));
        });
        (id, parts)
    }

    pub fn draw_frame(&mut self, index: usize) -> (u8, PushKind, usize) {
        let rng = &mut self.processes[index].rng;
        match rng.below(20) {
            0 => (9, PushKind::Ping, rng.below(100)),
            1 => (10, PushKind::Pong, rng.below(100)),
            2..11 => (1, PushKind::Message(MessageKind::Text), rng.size(self.settings.push_bytes_max)),
            _ => (2, PushKind::Message(MessageKind::Binary), rng.size(self.settings.push_bytes_max)),
        }
    }

    /// The channel of any client, of whatever process. Draws as much whatever there is.
    pub fn draw_channel(&mut self, index: usize) -> Option<u32> {
        let recent = self.clients.len().min(40);
        let number = self.arrived.saturating_sub(self.processes[index].rng.below(recent) + 1);
        self.channel_of.get(&number).copied()
    }

    pub fn shard_of(&self, channel: u32) -> usize {
        ChannelId::new(channel).shard(self.pumps.len() as u32) as usize
    }

    pub fn draw_policy(&mut self, index: usize, opcode: u8) -> Option<Policy> {
        let rng = &mut self.processes[index].rng;
        let key = rng.next() % 4;
        // Of each kind there is; for half of the pushes none.
        let drawn = rng.below(2 * (Policy::EACH.len() + 1));
        let drawn = Policy::EACH
            .iter()
            .cycle()
            .skip(1)
            .take(Policy::EACH.len())
            .flat_map(|policy| {
                let weight = if policy.key().is_some() { 2 } else { 1 };
                std::iter::repeat_n(*policy, weight)
            })
            .nth(drawn);
        match drawn {
            Some(policy) if policy.key().is_some() => (opcode < 8).then_some(policy.with_key(key)),
            policy => policy,
        }
    }

    fn push_one(&mut self, index: usize) -> Option<Order> {
        let (opcode, kind, len) = self.draw_frame(index);
        let drawn = self.draw_channel(index);
        let policy = self.draw_policy(index, opcode);
        let wants = self.processes[index].rng.below(3);
        let Some(channel) = drawn else {
            self.next_push += 1;
            return None;
        };
        let (id, mut parts) =
            self.awaits(1, Awaited { channel: Some(channel), audience: Some(1), ..Awaited::new(len + 26) });
        let asked = match wants {
            0 => ReportTo::Outcome(Box::new(parts.pop().expect("one part"))),
            1 => ReportTo::Failure(id),
            _ => ReportTo::Nobody,
        };
        if wants != 0 {
            self.awaited.remove(&id);
        }
        let owner = &self.processes[index].owner;
        let frame = PushFrame { kind, payload: payload::of_push(id, len).into() };
        let push = PushCommand { channel: ChannelId::new(channel), owner: Some(owner.id), frame, policy, asked };
        let is_ours = self.channels[&channel].owner == index;
        let policy = policy.unwrap_or(owner.policy());
        let pushed = Pushed { id, opcode, len, policy, fate: Fate::Unknown, is_unsure: false, is_guests: false };
        Some(Order {
            shard: self.shard_of(channel),
            command: Command::Push(push),
            note: if is_ours { Note::Push(channel, pushed) } else { Note::Nothing },
            awaits: (wants == 0).then_some(id),
        })
    }

    fn push_many(&mut self, index: usize) -> Vec<Order> {
        let (opcode, kind, len) = self.draw_frame(index);
        let shards = self.pumps.len();
        let choice = self.processes[index].rng.below(3);
        let drawn: Vec<Option<u32>> = (0..6).map(|_| self.draw_channel(index)).collect();
        let only = self.processes[index].rng.pick(&PATHS);
        let policy = self.draw_policy(index, opcode).filter(|_| self.processes[index].rng.chance(30));
        let mut named: Vec<u32> = drawn.into_iter().flatten().collect();
        named.sort_unstable();
        named.dedup();
        let except = if named.len() > 3 && choice != 0 { named.split_off(3) } else { named.split_off(named.len() / 2) };
        let except: Arc<[ChannelId]> = except.into_iter().map(ChannelId::new).collect();
        let audience = (choice == 0).then_some(named.len());
        let (id, mut parts) = self.awaits(shards, Awaited { audience, parts: shards, ..Awaited::new(len + 26) });
        let owner = self.processes[index].owner.clone();
        let bytes: Bytes = payload::of_push(id, len).into();
        let windows = owner.windows.in_use();
        let compressed = (opcode < 8).then(|| Compressed::new(&mut self.deflater, &bytes, windows)).flatten();
        let compressed = compressed.map(Arc::new);
        let pushed_policy = policy.unwrap_or(owner.policy());
        let pushed =
            Pushed { id, opcode, len, policy: pushed_policy, fate: Fate::Unknown, is_unsure: false, is_guests: false };
        let order = |shard: usize| {
            let ours = named.iter().copied().filter(|&id| self.shard_of(id) == shard).map(ChannelId::new);
            let audience = match choice {
                0 => ShardAudience::Channels(ours.collect()),
                1 => ShardAudience::Path(only.into()),
                _ => ShardAudience::Process,
            };
            let many = PushMany {
                audience: audience.clone(),
                except: except.clone(),
                owner: owner.id,
                frame: PushFrame { kind, payload: bytes.clone() },
                compressed: compressed.clone(),
                policy,
                part: parts.pop().map(Box::new),
            };
            let note = Note::Many { audience, except: except.clone(), pushed: pushed.clone(), only };
            Order { shard, command: Command::PushMany(Box::new(many)), note, awaits: Some(id) }
        };
        (0..shards).map(order).collect()
    }

    fn close_one(&mut self, index: usize) -> Option<Order> {
        let channel = self.draw_channel(index)?;
        let is_ours = self.channels[&channel].owner == index;
        let why = CloseFrame { code: Some(CLOSE_CODE), reason: "enough".into() };
        let (id, mut parts) = self.awaits(1, Awaited { audience: Some(1), ..Awaited::new(0) });
        let asked = ReportTo::Outcome(Box::new(parts.pop().expect("one part")));
        let owner = Some(self.processes[index].owner.id);
        let close = CloseCommand { channel: ChannelId::new(channel), owner, why, abruptly: false, asked };
        Some(Order {
            shard: self.shard_of(channel),
            command: Command::Close(Box::new(close)),
            note: if is_ours { Note::Close(channel) } else { Note::Nothing },
            awaits: Some(id),
        })
    }

    fn guest(&self, name: usize) -> Arc<str> {
        format!("guest-{name}").into()
    }

    fn grant(&mut self, index: usize) -> Option<Order> {
        let channel = self.draw_channel(index)?;
        let is_ours = self.channels[&channel].owner == index;
        let guest = self.guest((self.processes[index].name + 1) % NAMES);
        let is_granted = self.processes[index].rng.chance(70);
        let (id, mut parts) = self.awaits(1, Awaited { audience: Some(1), ..Awaited::new(0) });
        let asked = ReportTo::Outcome(Box::new(parts.pop().expect("one part")));
        let owner = self.processes[index].owner.id;
        let grant = GrantCommand { channel: ChannelId::new(channel), owner, guest, is_granted, asked };
        Some(Order {
            shard: self.shard_of(channel),
            command: Command::Grant(Box::new(grant)),
            note: if is_ours && is_granted { Note::Grant(channel) } else { Note::Nothing },
            awaits: Some(id),
        })
    }

    fn push_as_guest(&mut self, index: usize) -> Option<Order> {
        let (opcode, kind, len) = self.draw_frame(index);
        let channel = self.draw_channel(index)?;
        let (id, mut parts) = self.awaits(1, Awaited { audience: Some(1), ..Awaited::new(len + 26) });
        let push = GuestPushCommand {
            channels: vec![ChannelId::new(channel)],
            guest: self.guest(self.processes[index].name),
            frame: PushFrame { kind, payload: payload::of_push(id, len).into() },
            part: parts.pop().map(Box::new),
        };
        let policy = self.processes[self.channels[&channel].owner].owner.policy();
        let pushed = Pushed { id, opcode, len, policy, fate: Fate::Unknown, is_unsure: true, is_guests: true };
        Some(Order {
            shard: self.shard_of(channel),
            command: Command::PushAsGuest(Box::new(push)),
            note: Note::Guest(vec![channel], pushed),
            awaits: Some(id),
        })
    }

    fn answer_requests(&mut self, index: usize, faults: bool) {
        if self.processes[index].is_ended() {
            return;
        }
        for at in (0..self.processes[index].requests.len()).rev() {
            let rng = &mut self.processes[index].rng;
            if faults && rng.chance(60) {
                continue;
            }
            let (request, token) = self.processes[index].requests.swap_remove(at);
            let rng = &mut self.processes[index].rng;
            let (is_forgotten, is_doubled, is_forged) = (rng.chance(5), rng.chance(5), rng.chance(5));
            let body = [token.as_bytes(), &payload::of_push(0, rng.size(self.settings.push_bytes_max))].concat();
            let owner = self.processes[index].owner.id;
            let respond = |owner, body: Vec<u8>| {
                let respond =
                    RespondCommand { request, owner, response: PreparedResponse::new(200).with_body(body.into()) };
                let command = Command::Respond(Box::new(respond));
                Order { shard: request.shard() as usize, command, note: Note::Nothing, awaits: None }
            };
            if is_forged {
                let other = pushring::internals::gateway::OwnerId(owner.0 + 1);
                self.hand_over(index, respond(other, b"of somebody else".to_vec()));
            }
            let is_answered = !is_forgotten && self.hand_over(index, respond(owner, body));
            if is_answered && is_doubled {
                self.hand_over(index, respond(owner, b"once too often".to_vec()));
            }
        }
    }

    fn hand_over_batches(&mut self, index: usize, orders: Vec<Order>) {
        type Batch = (Vec<Command>, Vec<(Note, Option<u64>)>);
        let mut by_shard: Vec<Batch> = self.pumps.iter().map(|_| Default::default()).collect();
        for Order { shard, command, note, awaits } in orders {
            command.join(&mut by_shard[shard].0);
            by_shard[shard].1.push((note, awaits));
        }
        for (shard, (mut commands, notes)) in by_shard.into_iter().enumerate() {
            if commands.is_empty() {
                continue;
            }
            if self.options.plant == Plant::ReversesBatch {
                commands.reverse();
            }
            let is_taken = self.send(index, shard, Command::Batch(commands));
            notes.into_iter().for_each(|(note, awaits)| self.note(index, shard, note, awaits, is_taken));
        }
    }

    fn hand_over(&mut self, index: usize, order: Order) -> bool {
        self.orders_handed += 1;
        if let Some(hosted) = self.processes[index].hosted.as_ref().filter(|_| !self.pumps[order.shard].is_over()) {
            self.largest_order = self.largest_order.max(order.command.payload_bytes());
            hosted.order(order.shard, order);
            hosted.call(&self.senders);
            return true;
        }
        let Order { shard, command, note, awaits } = order;
        let is_lost = self.options.plant == Plant::LosesOrder && self.orders_handed.is_multiple_of(53);
        // The caller does not learn of the loss.
        let is_taken = if is_lost { true } else { self.send(index, shard, command) };
        self.note(index, shard, note, awaits, is_taken);
        is_taken
    }

    fn send(&mut self, index: usize, shard: usize, command: Command) -> bool {
        let bytes = command.payload_bytes();
        self.largest_order = self.largest_order.max(bytes);
        self.senders[shard].try_send(command, bytes, &self.processes[index].accounts[shard]).is_ok()
    }

    pub fn note(&mut self, index: usize, shard: usize, note: Note, awaits: Option<u64>, is_taken: bool) {
        if !is_taken {
            if let Some(awaited) = awaits.and_then(|id| self.awaited.get_mut(&id)) {
                awaited.refused += 1;
            }
            return;
        }
        match note {
            Note::Nothing => {}
            Note::Push(id, pushed) => self.channel(id).push(pushed),
            Note::Topic { name, except, pushed } => self.note_published(index, shard, name, &except, &pushed),
            Note::Membership { channel, name, is_out: false } => drop(self.channel(channel).topics.insert(name)),
            Note::Membership { channel, name, is_out: true } => drop(self.channel(channel).topics.remove(name)),
            Note::Many { audience, except, pushed, only } => {
                self.note_many(index, shard, &audience, &except, &pushed, only);
            }
            Note::Guest(ids, pushed) => {
                for id in ids {
                    // A handler on the shard may let it in before the shard looks at what it has ordered.
                    let is_hosted = self.processes[self.channels[&id].owner].hosted.is_some();
                    let channel = self.channel(id);
                    if channel.has_guests || is_hosted {
                        channel.push(pushed.clone());
                    }
                }
            }
            Note::Close(id) => {
                let channel = self.channel(id);
                let at = channel.pushed.len();
                channel.closed_at.get_or_insert(at);
            }
            Note::Grant(id) => self.channel(id).has_guests = true,
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
        let shards = self.pumps.len() as u32;
        for channel in self.channels.values_mut().filter(|channel| channel.owner == index && channel.ended.is_none()) {
            let id = ChannelId::new(channel.id);
            let is_named = match audience {
                ShardAudience::Channels(named) => named.contains(&id),
                ShardAudience::Path(_) => {
                    self.clients[channel.client].plan.path.as_ref().is_some_and(|path| path.ends_with(only))
                }
                ShardAudience::Process => true,
                ShardAudience::Topic(_) => unreachable!("noted by its name"),
            };
            if is_named && id.shard(shards) as usize == shard && !except.contains(&id) {
                channel.push(pushed.clone());
            }
        }
        let only = match audience {
            ShardAudience::Channels(_) | ShardAudience::Topic(_) => return,
            ShardAudience::Path(_) => Some(only),
            ShardAudience::Process => None,
        };
        self.processes[index].broadcasts[shard].push((only, pushed.clone()));
    }

    /// The process is gone: its paths, then its channels.
    fn end(&mut self, index: usize, code: u16) {
        let owner = self.processes[index].owner.clone();
        self.processes[index].phase = Phase::Ended(code);
        self.processes[index].requests.clear();
        self.current[self.processes[index].name] = None;
        self.was_ended[self.processes[index].name] = true;
        self.directory.remove(owner.id);
        self.adopt();
        for shard in 0..self.pumps.len() {
            self.refuse_hosted(index, shard);
            let why = CloseFrame { code: Some(code), reason: "the process has ended".into() };
            // Behind all that it has ordered.
            self.posted[shard].push_back((Some(index), Command::OwnerGone { owner: owner.id, why }));
        }
        self.post();
    }

    fn attach_again(&mut self, name: usize) {
        let index = self.processes.len();
        let place = Place {
            seed: self.options.seed,
            settings: &self.settings,
            plant: self.options.plant,
            memory: &self.memory,
            senders: &self.senders,
        };
        let (process, hosts) = Process::attach(index, name, &place, &mut self.directory);
        self.processes.push(process);
        self.current[name] = Some(index);
        std::iter::zip(&mut self.posted, hosts).for_each(|(posted, host)| posted.push_back((None, host)));
        self.adopt();
    }

    /// Hands the directory to all shards.
    pub fn adopt(&mut self) {
        let directory = Arc::new(self.directory.clone());
        self.posted.iter_mut().for_each(|posted| posted.push_back((None, Command::Adopt(directory.clone(), None))));
        self.post();
    }

    /// Hands over what the broker itself has for the shards, as far as there is room.
    pub fn post(&mut self) {
        for (shard, posted) in self.posted.iter_mut().enumerate() {
            while let Some((of, command)) = posted.pop_front() {
                let account = of.map_or(&self.accounts[shard], |index| &self.processes[index].accounts[shard]);
                match self.senders[shard].try_send(command, 0, account) {
                    // No longer needed.
                    Ok(()) | Err(pushring::internals::inbox::SendRefused::Stopped(_)) => {}
                    Err(pushring::internals::inbox::SendRefused::Full(command)) => {
                        posted.push_front((of, command));
                        break;
                    }
                }
            }
        }
    }
}
