//! A shard with a process on it and turns over sockets in memory.

use super::{Fan, Taken, UPGRADE};
use pushring::internals::inbox::{Inbox, InboxLimits, NeverAsleep, inbox};
use pushring::internals::proto::MessageKind;
use pushring::internals::shard::command::{CarriedSocket, Command, HostCommand};
use pushring::internals::shard::event::{ClientMessage, Event};
use pushring::internals::shard::flush::SocketId;
use pushring::internals::shard::handler::{Failed, Handler, HandlerContext, HandlerWait};
use pushring::internals::shard::process_queue::QueueLimits;
use pushring::internals::shard::turn::{Accepted, Readiness, SocketRead, Sockets, TurnLimits, Turns};
use pushring::internals::shard::{ConnectionToken, ListenerKind};
use std::convert::Infallible;
use std::sync::Arc;

/// Clients that have been upgraded, all of one process, which runs on the shard and sends Binary messages back.
pub struct Hosted {
    turns: Turns<FedSockets>,
    pub taken: Arc<Taken>,
}

impl Hosted {
    pub fn new(clients: usize) -> Self {
        let Fan { mut shard, taken, owner, .. } = Fan::new(0);
        let make = Box::new(|| Some(Box::new(SendsBack) as Box<dyn Handler<Command>>));
        let host = HostCommand { owner, limits: QueueLimits::default(), make };
        shard.handle_command(Command::Host(Box::new(host)), 0);
        let (_, inbox): (_, Inbox<Command>) = inbox(InboxLimits { commands_max: 16, bytes_max: 1 << 20 }, NeverAsleep);
        let sockets = FedSockets { to_come: clients, tokens: Vec::new(), news: Vec::new(), food: UPGRADE.to_vec() };
        let turns = Turns::new(shard, inbox, sockets, TurnLimits::default(), 0, 0);
        let mut hosted = Self { turns, taken };
        hosted.turns.sockets().news.push(Readiness::Listener);
        hosted.turn();
        (0..clients).for_each(|client| hosted.hear(client, UPGRADE));
        hosted
    }

    /// A client has sent this: turns until there is nothing more to do, and a sleep.
    pub fn hear(&mut self, client: usize, bytes: &[u8]) {
        let sockets = self.turns.sockets();
        sockets.food.clear();
        sockets.food.extend_from_slice(bytes);
        let token = sockets.tokens[client];
        sockets.news.push(Readiness::Connection { token, readable: true, writable: true, end: None });
        self.turn();
    }

    fn turn(&mut self) {
        while self.turns.turn(1, || 0).expect("nothing fails here") {
            self.turns.note_turn(1_000);
        }
        self.turns.note_turn(1_000);
        assert!(self.turns.prepare_sleep());
        self.turns.awake();
    }
}

/// Sockets of which each has the same to say.
struct FedSockets {
    to_come: usize,
    tokens: Vec<ConnectionToken>,
    news: Vec<Readiness>,
    food: Vec<u8>,
}

impl Sockets for FedSockets {
    type Error = Infallible;

    fn poll(&mut self, news: &mut Vec<Readiness>) -> Result<bool, Infallible> {
        news.append(&mut self.news);
        Ok(false)
    }

    fn accept(&mut self) -> Result<Accepted, Infallible> {
        let Some(left) = self.to_come.checked_sub(1) else { return Ok(Accepted::Nobody) };
        self.to_come = left;
        Ok(Accepted::Client(SocketId(left as i32), ([127, 0, 0, 1], 1).into(), ListenerKind::Plain))
    }

    fn watch(&mut self, _: SocketId, token: ConnectionToken) -> bool {
        self.tokens.push(token);
        true
    }

    fn watch_anew(&mut self, _: SocketId, _: ConnectionToken) -> bool {
        true
    }

    fn read(&mut self, _: SocketId, buffer: &mut [u8]) -> SocketRead {
        match self.food.len() {
            0 => SocketRead::Nothing,
            len => {
                buffer[..len].copy_from_slice(&self.food);
                SocketRead::Bytes(len)
            }
        }
    }

    fn shutdown_write(&mut self, _: SocketId) {}

    fn close(&mut self, _: SocketId) {}

    fn release(&mut self, _: SocketId) -> Option<CarriedSocket> {
        None
    }

    fn adopt(&mut self, _: CarriedSocket) -> Option<SocketId> {
        None
    }

    fn stop_listening(&mut self) {}
}

struct SendsBack;

impl Handler<Command> for SendsBack {
    fn run(&mut self, desk: &mut dyn HandlerContext<Command>) -> Result<HandlerWait, Failed> {
        while desk.next_event().is_some() {}
        Ok(HandlerWait::GoesOn)
    }

    fn message(
        &mut self,
        desk: &mut dyn HandlerContext<Command>,
        message: ClientMessage<'_>,
    ) -> Result<HandlerWait, Failed> {
        if message.kind() == MessageKind::Binary {
            assert!(desk.push_at_once(message.channel(), message.kind(), message.bytes()));
        }
        Ok(HandlerWait::GoesOn)
    }

    fn settle(&mut self, _: &mut dyn HandlerContext<Command>) {}

    fn called(&mut self, _: &mut Vec<Event>) -> HandlerWait {
        HandlerWait::GoesOn
    }
}
