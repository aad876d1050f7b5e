//! From an upgraded connection to a channel: at once where the path was bound, or after `WsRegister`.
//!
//! Invariants: the id is minted here, on the shard that owns it; Opened is passed on before the client learns of its
//! channel, and before anything that the client sends; the registration's reply is the first frame of its channel.

use crate::admission::HeapBytes;
use crate::gateway::{self, Grant};
use crate::proto::{self, Opcode, close, server_header};
use crate::resume::ResumeAnswer;
use crate::shard::command::CloseFrame;
use crate::shard::core::Shard;
use crate::shard::event::{ClosedBy, Event, Opened};
use crate::shard::intake::receive::ANSWER_GRACE_MS;
use crate::shard::out::kept_channels::ResumeHolder;
use crate::shard::owners::directory::Owner;
use crate::shard::owners::sharing::SharedRound;
use crate::shard::table::connection::{Channel, Connection, ConnectionPhase, Linger, Registering};
use crate::shard::table::slot::Slot;
use crate::shard::work;
use crate::words::close_reason;
use std::sync::Arc;

/// The options of a new channel.
pub(in crate::shard) struct Opening {
    pub ws: proto::WebSocketConnection,
    pub owner: Arc<Owner>,
    /// The bound path, for audiences.
    pub bound_path: Arc<str>,
    /// The path that the client asked for, without the process id.
    pub path: Arc<str>,
    pub forwarded_for: Option<Box<str>>,
    pub registered: bool,
    pub extension: bool,
    /// Where the channel is to outlive its connection.
    pub keeps: Option<Kept>,
    /// The client's rights at the hub.
    pub grant: Option<Arc<Grant>>,
}

/// The state of a new channel that outlives its connection.
pub(in crate::shard) struct Kept {
    /// The path and user that may resume it.
    pub holder: ResumeHolder,
    /// Whether its owner is told when it is left and taken up again.
    pub tells: bool,
    /// The answer to its client.
    pub answer: ResumeAnswer,
}

impl Shard {
    /// Makes the connection a channel and tells its owner.
    pub(in crate::shard) fn open_channel(&mut self, slot: Slot, opening: Opening) {
        let channels = &self.table.channels;
        let id = self.table.mint.mint(|id| channels.contains_key(&id));
        self.table.channels.insert(id, slot);
        let owner = self.owners.place_of(&opening.owner);
        if let Some(agreed) = opening.ws.deflate() {
            opening.owner.windows.enter(agreed.server_window_bits());
        }
        let place = self.owners[owner].add(opening.bound_path, slot);
        let connection = &mut self.table[slot];
        connection.phase = ConnectionPhase::Open(Channel {
            ws: opening.ws,
            id,
            owner,
            place,
            message_ms: (self.now_ms as u32).wrapping_sub(ANSWER_GRACE_MS),
            violation: None,
            ping_ms: Channel::NO_PING,
            added: SharedRound::default(),
        });
        connection.deadline_tick = Connection::NO_TICK;
        connection.since_s = (self.now_ms / 1000) as u32;
        let source = connection.peer.into();
        self.stats.opened += 1;
        self.schedule_probe(slot);
        if opening.registered {
            self.reply_registered(slot, id.get());
        }
        if let Some(keeps) = opening.keeps {
            self.keep(slot, id, keeps);
        }
        let opened = Opened {
            channel: id,
            path: opening.path,
            source,
            forwarded_for: opening.forwarded_for,
            registered: opening.registered,
            extension: opening.extension,
            grant: opening.grant,
        };
        self.owners.emit(owner, Event::Opened(Box::new(opened)));
    }

    /// Subscribes a client of the hub to the topics of its token, in the turn in which its channel opens: a client that
    /// has its hello gets what is published from then on. Where there is no room now, the hub does it, or closes the
    /// channel.
    pub(super) fn join_own_topics(&mut self, slot: Slot, grant: &Grant) {
        let Some((id, place)) = self.table[slot].channel().map(|channel| (channel.id, channel.owner)) else { return };
        let owner = self.owners[place].owner.clone();
        for name in grant.own_topics() {
            self.work.spend(work::SUBSCRIBE_NS);
            let listed = self.out.journals.get(&owner.id).and_then(|journal| journal.topic(&name));
            let claim = match listed {
                Some(topic) => Some(owner.topics.hold(topic, self.index())),
                None => owner.topics.try_claim(&name, self.index(), self.shards as usize, &owner.memory),
            };
            if let Some(claim) = claim {
                self.join(id, slot, claim);
            }
        }
    }

    /// The first message on `/`.
    pub(in crate::shard) fn register(&mut self, slot: Slot, message: &[u8]) {
        let registration = match gateway::register(&self.owners.directory().gateway, message, self.time_of_day.unix_s) {
            Ok(registration) => registration,
            Err(error) => return self.refuse_registration(slot, error.close_code(), &error.to_string()),
        };
        let Some(owner) = self.owners.directory().find(&registration.target) else {
            let reason = format!("no process {} is attached", registration.target);
            return self.refuse_registration(slot, close_reason::code::NO_SUCH_PROCESS, &reason);
        };
        if !self.owners.has_room_to_open(&owner, size_of::<Opened>() + self.forwarded_bytes(slot)) {
            return self.refuse_registration(slot, close::code::TRY_AGAIN_LATER, "the process has too much to do");
        }
        if !self.count_of_process(&owner) {
            self.stats.turned_away += 1;
            self.stats.turned_away_per_process += 1;
            let reason = format!("{} has as many connections as one process may have", owner.process);
            return self.refuse_registration(slot, close::code::TRY_AGAIN_LATER, &reason);
        }
        let ending = ConnectionPhase::Ending(Linger::default());
        let phase = std::mem::replace(&mut self.table[slot].phase, ending);
        let ConnectionPhase::Registering(registering) = phase else {
            unreachable!("only a registering connection registers")
        };
        let Registering { ws, forwarded_for } = *registering;
        let path: Arc<str> = "/".into();
        let opening = Opening {
            ws,
            owner,
            bound_path: path.clone(),
            path,
            forwarded_for,
            registered: true,
            extension: false,
            keeps: None,
            grant: None,
        };
        self.open_channel(slot, opening);
    }

    fn forwarded_bytes(&self, slot: Slot) -> usize {
        match &self.table[slot].phase {
            ConnectionPhase::Registering(registering) => registering.forwarded_for.heap_bytes(),
            _ => 0,
        }
    }

    pub(in crate::shard) fn refuse_registration(&mut self, slot: Slot, code: u16, reason: &str) {
        self.stats.registrations_refused += 1;
        let why = CloseFrame { code: Some(code), reason: reason.into() };
        self.close_now(slot, &why, ClosedBy::Violation);
    }

    fn reply_registered(&mut self, slot: Slot, id: u32) {
        let reply = format!("{{\"channel_id\":{id}}}");
        let header = server_header(Opcode::Text, false, reply.len());
        // The socket may be full: the client registers before it has taken the 101, or the pongs that it asked for.
        self.append_own(slot, header, reply.as_bytes());
    }
}
