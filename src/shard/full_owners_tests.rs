//! Full queues: of many processes a turn looks at some, all have their turn, and a shard that may sleep has looked at
//! all; and of many clients that fill one queue each has its turn.

use super::wires::Wires;
use super::work::{LOOK_AT_OWNER_NS, PASS_NS, WorkLimits};
use super::{Common, Directory, Owner, Shard, ShardConfig, Wishes};
use crate::admission::Ledger;
use crate::gateway::{OwnerId, Settings, Snapshot, SubdomainTokens, WebSocketRule};
use crate::proto::MessageKind;
use crate::proto::client::append_message;
use crate::queue::events::{ProcessReceiver, QueueLimits, process_queue};
use crate::queue::fair::OrderOrRest;
use crate::shard::SocketEnd;
use crate::shard::command::{CloseFrame, Command, Policy};
use crate::shard::event::Event;
use crate::shard::flush::SocketId;
use crate::shard::table::slot::Slot;
use crossbeam_channel::bounded;
use std::sync::Arc;

/// More than a turn looks at.
const OWNERS: u32 = 3000;

/// The work of one look at the very most: an owner's, and a client's that goes on.
const STEP_NS: u64 = 5_000;

struct Crowd {
    shard: Shard,
    queues: Vec<ProcessReceiver>,
    /// The work of a turn's end.
    until_ns: u64,
}

impl Crowd {
    /// So many processes, whose queues have room for one message each, or that share one with such room; each with so
    /// many clients, which have sent so many messages.
    fn new(processes: u32, is_shared: bool, clients: u32, messages: usize) -> Self {
        let mut gateway = Snapshot::new(Settings::of_a_node("sim.os", SubdomainTokens::Own));
        let (ledger, mut queues, mut owners) = (Ledger::default(), Vec::new(), Vec::new());
        let limits = QueueLimits { messages_max: 1, bytes_max: 1 << 20 };
        let (shared, events) = process_queue(1, limits, &ledger, |_| {});
        queues.push(events);
        for number in 0..processes {
            let (id, process) = (OwnerId(number + 1), format!("p{number}:full:sys").parse().unwrap());
            gateway.bind_websocket(id, &process, "/", WebSocketRule::default()).unwrap();
            let (own, events) = process_queue(1, limits, &ledger, |_| {});
            let queue = if is_shared { shared.clone() } else { own };
            owners.push(Arc::new(Owner::new(id, process, queue, Wishes::of(Policy::Close))));
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
        let mut crowd = Self {
            shard: Shard::new(0, 1, common, Box::new(wires.clone()), 3, 0),
            queues,
            until_ns: WorkLimits::default().resumes_ns,
        };
        for client in 0..processes * clients {
            wires.add(client as i32, usize::MAX);
            crowd.come(client, client / clients, messages);
        }
        let upgraded = wires.look(0, |wire| std::mem::take(&mut wire.to_client));
        assert!(upgraded.starts_with(b"HTTP/1.1 101"));
        crowd
    }

    /// A client comes, and sends messages that say which it is.
    fn come(&mut self, client: u32, process: u32, messages: usize) {
        let token =
            self.shard.handle_accept(SocketId(client as i32), ([127, 0, 0, 1], 1).into(), 0).expect("there is room");
        let head = format!(
            "GET /p{process}:full:sys/ HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        self.shard.handle_read(token, &mut head.into_bytes(), 0);
        while self.shard.flush() {}
        let mut bytes = Vec::new();
        (0..messages).for_each(|_| append_message(&mut bytes, MessageKind::Binary, [1, 2, 3, 4], &[client as u8]));
        self.shard.handle_read(token, &mut bytes, 0);
    }

    /// The end of one turn; returns whether the shard wants another at once.
    fn turn(&mut self) -> bool {
        self.shard.begin_turn(1);
        let until_ns = self.until_ns;
        self.shard.end_turn_within(until_ns);
        let spent_ns = self.shard.spent_ns();
        assert!(spent_ns <= until_ns + STEP_NS, "{spent_ns}");
        self.shard.goes_on()
    }

    /// Whose messages processes have been given since the last time.
    fn heard(&mut self) -> Vec<u8> {
        let mut heard = Vec::new();
        for queue in &self.queues {
            while let Ok(batch) = queue.try_recv() {
                heard.extend(batch.events.iter().filter_map(|event| match event {
                    Event::Message { payload, .. } => payload.first().copied(),
                    _ => None,
                }));
            }
        }
        heard
    }

    /// Whose messages a process is given that reads one after another.
    fn heard_one_by_one(&mut self, messages: usize) -> Vec<u8> {
        let mut all = Vec::new();
        self.shard.end_turn();
        for _ in 0..messages {
            let heard = self.heard();
            assert_eq!(heard.len(), 1, "there is room for one");
            all.extend(heard);
            self.shard.handle_call();
            let turns = (0..100).take_while(|_| self.turn()).count();
            assert!(turns < 100, "it ends");
        }
        all
    }
}

#[test]
fn a_turn_looks_at_some_of_the_owners_whose_queues_are_full_and_all_have_their_turn() {
    let mut crowd = Crowd::new(OWNERS, false, 1, 2);
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
    assert_eq!(crowd.heard().len(), OWNERS as usize, "one message of each; the others wait");
    crowd.shard.handle_call();
    while crowd.turn() {
        turns += 1;
        assert!(turns < 200, "it ends");
    }
    assert_eq!(crowd.heard().len(), OWNERS as usize, "and now the others");
}

#[test]
fn owners_whose_waiting_clients_leave_are_forgotten_a_turns_worth_at_a_time() {
    let mut crowd = Crowd::new(OWNERS, true, 1, 2);
    crowd.shard.end_turn();
    while crowd.turn() {}
    // All but the first, whose message is the one that the queue has room for.
    let waiting = crowd.shard.owners.full();
    assert!(waiting >= OWNERS as usize - 1, "{waiting}");
    for slot in 0..OWNERS {
        let token = crowd.shard.table.token(Slot::new(slot));
        crowd.shard.handle_end(token, SocketEnd::Broken, 1);
    }
    crowd.shard.end_turn();
    // None was taken out of the middle of the line, which would have cost as much as that is long.
    assert!(crowd.shard.owners.full() > waiting / 2, "{} of {waiting}", crowd.shard.owners.full());
    crowd.shard.handle_call();
    let turns = (0..100).take_while(|_| crowd.turn()).count();
    assert!((2..100).contains(&turns), "{turns} turns");
    assert_eq!((crowd.shard.owners.full(), crowd.shard.owners.iter().count()), (0, 0));
}

#[test]
fn processes_that_go_while_their_queues_are_full_leave_nothing_behind() {
    let mut crowd = Crowd::new(OWNERS, false, 1, 2);
    crowd.shard.end_turn();
    while crowd.turn() {}
    assert_eq!(crowd.shard.owners.full(), OWNERS as usize);
    // Wherever they stand in the line, of which a turn looks at a part.
    let gone = || (1..=OWNERS).step_by(OWNERS as usize / 8).map(OwnerId);
    for owner in gone() {
        let why = CloseFrame { code: Some(1001), reason: "the process has ended".into() };
        crowd.shard.handle_command(Command::OwnerGone { owner, why }, 1);
    }
    let turns = (0..100).take_while(|_| crowd.turn()).count();
    assert!(turns < 100, "it ends");
    let left: Vec<OwnerId> = gone().filter(|owner| crowd.shard.owners.find(*owner).is_some()).collect();
    assert_eq!((left, crowd.shard.owners.full()), (vec![], OWNERS as usize - gone().count()));
}

#[test]
fn a_shard_that_is_over_knows_no_process_whose_queue_was_full() {
    let mut crowd = Crowd::new(3, false, 1, 2);
    crowd.shard.end_turn();
    while crowd.turn() {}
    for slot in 0..3 {
        let token = crowd.shard.table.token(Slot::new(slot));
        crowd.shard.handle_end(token, SocketEnd::Broken, 1);
    }
    crowd.shard.owners.hand_over();
    assert_eq!(crowd.shard.owners.full(), 3, "they were not looked at again");
    crowd.shard.withdraw();
    assert_eq!((crowd.shard.owners.full(), crowd.shard.owners.iter().count()), (0, 0));
}

#[test]
fn what_operators_ask_of_many_processes_is_counted() {
    let mut crowd = Crowd::new(OWNERS, true, 1, 0);
    crowd.shard.end_turn();
    let mut cost_of = |command| {
        crowd.shard.begin_turn(1);
        assert!(crowd.shard.execute(OrderOrRest::New(command), u64::MAX).is_none());
        crowd.shard.spent_ns()
    };
    let ((to_report, report), (to_processes, processes)) = (bounded(1), bounded(1));
    assert!(cost_of(Command::Report(to_report)) >= u64::from(OWNERS) * PASS_NS);
    assert!(cost_of(Command::Processes(to_processes)) >= u64::from(OWNERS) * PASS_NS);
    assert_eq!((report.len(), processes.recv().unwrap().len()), (1, OWNERS as usize));
}

#[test]
fn clients_that_fill_a_queue_have_their_turns_one_after_another() {
    // The one that has filled it first is the first to wait.
    let heard = Crowd::new(1, false, 4, 20).heard_one_by_one(13);
    assert_eq!(heard, [0, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3]);
}

#[test]
fn processes_that_share_a_full_queue_have_their_turns_and_so_have_the_clients_of_each() {
    // Two clients of one and two of the other. Each turn hands over what it was given, and lets one of them go on: else
    // each process would be given something in the same turn.
    let mut crowd = Crowd::new(2, true, 2, 20);
    crowd.until_ns = 2 * (LOOK_AT_OWNER_NS + 2 * PASS_NS) + 2;
    let heard = crowd.heard_one_by_one(13);
    assert_eq!(heard, [0, 0, 2, 1, 3, 0, 2, 1, 3, 0, 2, 1, 3]);
}
