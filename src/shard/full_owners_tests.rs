//! Many processes whose queues are full at the same time: a turn looks at some of them, all have their turn, and a
//! shard that may sleep has looked at all.

use super::wires::Wires;
use super::work::WorkLimits;
use super::{Common, ConnectionToken, Directory, Owner, Shard, ShardConfig};
use crate::admission::Ledger;
use crate::gateway::{OwnerId, Settings, Snapshot, SubdomainTokens, WebSocketRule};
use crate::proto::MessageKind;
use crate::proto::client::append_message;
use crate::queue::events::{ProcessReceiver, QueueLimits, process_queue};
use crate::shard::command::Policy;
use crate::shard::event::Event;
use crate::shard::flush::SocketId;
use std::sync::Arc;

/// More than a turn looks at.
const OWNERS: u32 = 3000;

/// The work of one look at the very most: an owner's, and a client's that goes on.
const STEP_NS: u64 = 5_000;

struct Crowd {
    shard: Shard,
    queues: Vec<ProcessReceiver>,
}

impl Crowd {
    /// Processes that have room for one message, each with a client that has sent two.
    fn new() -> Self {
        let mut gateway = Snapshot::new(Settings::of_a_node("sim.os", SubdomainTokens::Own));
        let (ledger, mut queues, mut owners) = (Ledger::default(), Vec::new(), Vec::new());
        for number in 0..OWNERS {
            let (id, process) = (OwnerId(number + 1), format!("p{number}:full:sys").parse().unwrap());
            gateway.bind_websocket(id, &process, "/", WebSocketRule::default()).unwrap();
            let limits = QueueLimits { messages_max: 1, bytes_max: 1 << 20 };
            let (queue, events) = process_queue(1, limits, &ledger, |_| {});
            owners.push(Arc::new(Owner::new(id, process, queue, Policy::Close, false)));
            queues.push(events);
        }
        let mut directory = Directory::new(gateway);
        owners.into_iter().for_each(|owner| directory.attach(owner));
        let wires = Wires::default();
        let common = Common {
            config: Arc::new(ShardConfig::default()),
            directory: Arc::new(directory),
            admission: Arc::default(),
            memory: ledger,
            resume: crate::resume::Keys::new(&[7; 32]),
        };
        let mut crowd = Self { shard: Shard::new(0, 1, common, Box::new(wires.clone()), 3, 0), queues };
        for number in 0..OWNERS {
            wires.add(number as i32, usize::MAX);
            crowd.come(number);
        }
        let upgraded = wires.look(7, |wire| std::mem::take(&mut wire.to_client));
        assert!(upgraded.starts_with(b"HTTP/1.1 101"));
        crowd
    }

    fn come(&mut self, number: u32) -> ConnectionToken {
        let token =
            self.shard.handle_accept(SocketId(number as i32), ([127, 0, 0, 1], 1).into(), 0).expect("there is room");
        let head = format!(
            "GET /p{number}:full:sys/ HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        self.shard.handle_read(token, &mut head.into_bytes(), 0);
        while self.shard.flush() {}
        let mut messages = Vec::new();
        (0..2).for_each(|_| append_message(&mut messages, MessageKind::Binary, [1, 2, 3, 4], b"x"));
        self.shard.handle_read(token, &mut messages, 0);
        token
    }

    /// The end of one turn; returns whether the shard wants another at once.
    fn turn(&mut self) -> bool {
        self.shard.begin_turn(1);
        let until_ns = WorkLimits::default().resumes_ns;
        self.shard.end_turn_within(until_ns);
        let spent_ns = self.shard.spent_ns();
        assert!(spent_ns <= until_ns + STEP_NS, "{spent_ns}");
        self.shard.goes_on()
    }

    /// The messages that processes have been given since the last time.
    fn heard(&mut self) -> usize {
        let mut count = 0;
        for queue in &self.queues {
            while let Ok(batch) = queue.try_recv() {
                count += batch.events.iter().filter(|event| matches!(event, Event::Message { .. })).count();
            }
        }
        count
    }
}

#[test]
fn a_turn_looks_at_some_of_the_owners_whose_queues_are_full_and_all_have_their_turn() {
    let mut crowd = Crowd::new();
    // The events of those who came are handed over once.
    crowd.shard.end_turn();
    let mut turns = 0;
    while crowd.turn() {
        turns += 1;
        assert!(turns < 100, "it ends");
    }
    assert!(turns >= 2, "{turns} turns for {OWNERS} owners");
    // As long as nobody calls, the shard may sleep.
    assert!(!crowd.turn());
    assert_eq!(crowd.heard(), OWNERS as usize, "one message of each; the others wait");
    crowd.shard.handle_call();
    while crowd.turn() {
        turns += 1;
        assert!(turns < 200, "it ends");
    }
    assert_eq!(crowd.heard(), OWNERS as usize, "and now the others");
}
