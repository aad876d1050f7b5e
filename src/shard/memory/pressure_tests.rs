//! Short of memory: the fullest go first and by their policy, shared payloads count once, clients being read wait, and
//! none waits for ever. Everything that was counted is uncounted in the end.

use crate::admission::{Budget, Ledger, STEP_BYTES};
use crate::proto::MessageKind;
use crate::proto::client::{append_frame, append_message};
use crate::shard::command::{Command, Policy, PushFrame, PushMany, ShardAudience};
use crate::shard::config::ShardConfig;
use crate::shard::event::{ClosedBy, Event};
use crate::shard::stage::{BINARY, Client, OWNER, Stage, ask, frames};
use bytes::Bytes;
use std::sync::Arc;

const MIB: usize = STEP_BYTES;

fn config(policy: Policy) -> ShardConfig {
    ShardConfig { outbound_bytes_max: 4 * MIB, policy, ..ShardConfig::default() }
}

fn stage(policy: Policy, budget_mib: usize) -> Stage {
    Stage::new(config(policy), Budget::of(budget_mib * MIB))
}

/// Fills a client's queue with frames of 4 KiB payloads of its own.
fn fill(stage: &mut Stage, client: Client, bytes: usize) {
    for at in 0..bytes / 4100 {
        stage.push(client.channel, BINARY, vec![at as u8; 4096].into(), None);
        stage.turn();
    }
}

fn used(stage: &Stage) -> usize {
    stage.shard.report().memory.waiting_bytes()
}

#[test]
fn the_fullest_is_closed_and_all_others_live() {
    let mut stage = stage(Policy::Close, 8);
    let clients: Vec<_> = (0..4).map(|_| stage.open(0)).collect();
    for (client, mib) in std::iter::zip(&clients, [1, 3, 2, 1]) {
        fill(&mut stage, *client, mib * MIB - MIB / 4);
    }
    assert!(stage.closed().is_empty() && used(&stage) > 5 * MIB);
    // Seven eighths are for who is alone.
    fill(&mut stage, clients[3], MIB + MIB / 2);
    let closed = stage.closed();
    assert_eq!(closed.len(), 1);
    assert_eq!((closed[0].channel, closed[0].code, closed[0].by), (clients[1].channel, 1013, ClosedBy::Broker));
    assert!(closed[0].lost_bytes > 2 * MIB);
    assert!(used(&stage) <= 7 * MIB);
    assert_eq!(stage.shard.report().stats.closed_for_memory, 1);
    // The others get all of theirs.
    for client in [clients[0], clients[2], clients[3]] {
        stage.give_room(client, usize::MAX);
        stage.settle();
        let left = stage.wire(client.socket, |wire| std::mem::take(&mut wire.to_client));
        assert!(frames(&left).iter().all(|frame| frame.len() == 4100));
    }
    // The one that was closed is told why.
    stage.give_room(clients[1], usize::MAX);
    stage.settle();
    let left = stage.wire(clients[1].socket, |wire| std::mem::take(&mut wire.to_client));
    assert_eq!(left[..4], [0x88, left.len() as u8 - 2, 0x03, 0xf5]);
    assert_eq!(used(&stage), 0);
}

#[test]
fn however_much_one_turn_takes_the_reserve_is_left() {
    let mut stage = stage(Policy::DropNewest, 16);
    let slow: Vec<_> = (0..24).map(|_| stage.open(0)).collect();
    for round in 0..20 {
        // Much more than there is, before anybody is told what is held.
        for _ in 0..300 {
            slow.iter().for_each(|client| drop(stage.push(client.channel, BINARY, vec![7; 3000].into(), None)));
        }
        // What waits in the inbox is held too, and comes and goes.
        stage.shard.note_inbox(round % 5 * 200_000);
        stage.turn();
        let leased = stage.budget.leased_bytes();
        assert!(leased <= 14 * MIB && used(&stage) > 12 * MIB, "round {round}: {leased} for {}", used(&stage));
    }
}

#[test]
fn a_frame_that_memory_cannot_hold_even_without_its_channel_ends_the_channel_alone() {
    // The payload counts as soon as it is pushed, so the channel is closed, then cut, and there is still no room.
    for policy in [Policy::Close, Policy::DropOldest, Policy::Conflate { key: 1 }] {
        let mut stage = stage(policy, 1);
        let client = stage.open(10);
        stage.push(client.channel, BINARY, vec![b'x'; 8 * 1024].into(), None);
        stage.turn();
        let outcome = stage.push(client.channel, BINARY, vec![b'y'; 2 * MIB].into(), Some(policy));
        stage.turn();
        let outcome = outcome.try_recv().unwrap();
        assert_eq!(outcome.closed + outcome.dropped, 1, "{policy:?}: {outcome:?}");
        stage.give_room(client, usize::MAX);
        stage.settle();
        assert_eq!(stage.closed().len(), outcome.closed, "{policy:?}");
        let other = stage.open(usize::MAX);
        let delivered = stage.push(other.channel, BINARY, Bytes::from_static(b"all is well"), None);
        stage.turn();
        assert_eq!(delivered.try_recv().unwrap().sent, 1);
    }
}

#[test]
fn the_fullest_drops_half_of_its_frames_where_its_policy_says_so() {
    for (policy, first_kept) in [(Policy::DropOldest, false), (Policy::DropNewest, true)] {
        let mut stage = stage(policy, 8);
        let [full, other] = [stage.open(0), stage.open(0)];
        fill(&mut stage, full, 3 * MIB);
        let other_bytes = 4 * MIB - MIB / 8;
        fill(&mut stage, other, other_bytes);
        stage.push(full.channel, BINARY, Bytes::from_static(b"a ping stays"), None);
        let third = stage.open(0);
        fill(&mut stage, third, 2 * MIB);
        assert!(stage.closed().is_empty() && used(&stage) <= 8 * MIB);
        let stats = stage.shard.report().stats;
        assert!(stats.dropped_for_memory > 0 && stats.dropped == stats.dropped_for_memory);
        stage.give_room(other, usize::MAX);
        stage.give_room(full, usize::MAX);
        stage.settle();
        let left = stage.wire(other.socket, |wire| std::mem::take(&mut wire.to_client));
        let kept = frames(&left);
        assert!(kept.len() < other_bytes / 4100, "it was the fullest");
        assert_eq!(kept[0][4] == 0, first_kept, "{policy:?} drops at its own end");
    }
}

#[test]
fn a_payload_for_many_counts_once() {
    let mut stage = stage(Policy::Close, 8);
    let clients: Vec<_> = (0..50).map(|_| stage.open(0)).collect();
    let payload = Bytes::from(vec![1; MIB]);
    let (part, asked) = ask();
    let many = PushMany {
        audience: ShardAudience::Process,
        except: Arc::new([]),
        owner: OWNER,
        frame: PushFrame { kind: BINARY, payload },
        compressed: None,
        policy: None,
        part,
    };
    stage.shard.handle_command(Command::PushMany(Box::new(many)), 0);
    stage.settle();
    assert_eq!(asked.try_recv().unwrap().queued, 50);
    assert!(stage.closed().is_empty());
    assert!((MIB..MIB + 64 * 1024).contains(&used(&stage)), "{}", used(&stage));
    for client in clients {
        stage.give_room(client, usize::MAX);
        stage.settle();
    }
    assert_eq!(used(&stage), 0);
}

fn broadcast(stage: &mut Stage, payload: Vec<u8>, policy: Policy) {
    let many = PushMany {
        audience: ShardAudience::Process,
        except: Arc::new([]),
        owner: OWNER,
        frame: PushFrame { kind: BINARY, payload: payload.into() },
        compressed: None,
        policy: Some(policy),
        part: None,
    };
    stage.shard.handle_command(Command::PushMany(Box::new(many)), 0);
    stage.settle();
}

#[test]
fn many_who_fall_behind_in_the_same_large_frame_hold_it_once() {
    let mut stage = stage(Policy::Close, 64);
    let clients: Vec<_> = (0..200).map(|at| stage.open(1000 + 7 * at)).collect();
    let payload: Vec<u8> = (0..50_000).map(|at| at as u8).collect();
    broadcast(&mut stage, payload.clone(), Policy::DropNewest);
    let held = used(&stage);
    assert!((50_000..50_000 + 200 * 1000).contains(&held), "{held} bytes for what 200 have in common");
    // Frames of every size behind it, and then everything arrives whole.
    let mut sent = vec![payload];
    for size in [10, 3_000, 5_000, 20_000, 1] {
        sent.push(vec![size as u8; size]);
        broadcast(&mut stage, vec![size as u8; size], Policy::DropNewest);
    }
    for client in clients {
        stage.give_room(client, usize::MAX);
        stage.settle();
        let left = stage.wire(client.socket, |wire| std::mem::take(&mut wire.to_client));
        let whole: Vec<u8> = sent
            .iter()
            .flat_map(|payload| {
                let header = crate::proto::server_header(crate::proto::Opcode::Binary, false, payload.len());
                [header.as_slice(), payload].concat()
            })
            .collect();
        assert!(whole == left, "{} bytes of {}", left.len(), whole.len());
    }
    assert_eq!(used(&stage), 0);
}

#[test]
fn frames_in_progress_of_many_clients_are_bounded_too() {
    // Nothing can be dropped of any of them: each has begun to take its only frame.
    let mut stage = stage(Policy::DropNewest, 1);
    (0..500).for_each(|_| _ = stage.open(100));
    broadcast(&mut stage, vec![7; 4_000], Policy::DropNewest);
    // Their ends are told in the turn after.
    stage.turn();
    let held = used(&stage);
    assert!(held <= MIB + MIB / 4, "{held}");
    let closed = stage.closed();
    assert!(!closed.is_empty() && closed.iter().all(|closed| (closed.code, closed.by) == (1013, ClosedBy::Broker)));
    assert_eq!(stage.shard.report().stats.closed_for_memory, closed.len() as u64);
}

#[test]
fn ranges_that_do_not_touch_are_few_and_counted() {
    let mut stage = stage(Policy::Close, 64);
    let clients: Vec<_> = (0..40).map(|_| stage.open(usize::MAX)).collect();
    stage.shard.begin_turn(0);
    // Pushes to all and, between them, to each: for no client are two in a row adjacent.
    for _ in 0..200 {
        let many = PushMany {
            audience: ShardAudience::Process,
            except: Arc::new([]),
            owner: OWNER,
            frame: PushFrame { kind: BINARY, payload: Bytes::from_static(b"all") },
            compressed: None,
            policy: None,
            part: None,
        };
        stage.shard.handle_command(Command::PushMany(Box::new(many)), 0);
        for client in &clients {
            stage.push(client.channel, BINARY, Bytes::from_static(b"one"), None);
        }
        stage.shard.begin_turn(0);
    }
    let held = used(&stage);
    let real: usize = stage.shard.table.iter().map(|(_, connection)| connection.held().own).sum();
    assert!(held >= real && (40 * 500..40 * 12_000).contains(&real), "{held} counted, {real} held");
    stage.settle();
    for client in clients {
        let left = stage.wire(client.socket, |wire| std::mem::take(&mut wire.to_client));
        assert_eq!(frames(&left).iter().filter(|frame| frame.ends_with(b"all")).count(), 200);
    }
    assert_eq!(used(&stage), 0);
}

/// The first `bytes` of a Binary message of 2 MiB.
fn upload(bytes: std::ops::Range<usize>) -> Vec<u8> {
    let mut message = Vec::new();
    append_message(&mut message, MessageKind::Binary, [0; 4], &vec![5; 2 * MIB]);
    message[bytes.start..bytes.end.min(message.len())].to_vec()
}

#[test]
fn a_client_in_the_middle_of_a_message_waits_until_others_have_drained() {
    let mut stage = stage(Policy::DropNewest, 8);
    let uploader = stage.open(usize::MAX);
    assert!(stage.read(uploader.token, &upload(0..MIB)));
    let slow: Vec<_> = (0..4).map(|_| stage.open(0)).collect();
    for &client in &slow {
        fill(&mut stage, client, MIB + MIB / 4 - 44 * 1024);
    }
    stage.turn();
    // A client between messages is read as usual.
    let mut small = Vec::new();
    append_message(&mut small, MessageKind::Text, [0; 4], b"hello");
    assert!(stage.read(slow[0].token, &small));
    let mut at = MIB;
    while stage.shard.wants_read(uploader.token) {
        stage.shard.handle_read(uploader.token, &mut upload(at..at + 65536), 0);
        stage.turn();
        at += 65536;
        assert!(at < 2 * MIB, "it never had to wait");
    }
    stage.to_read.clear();
    stage.turn();
    assert!(stage.to_read.is_empty(), "nothing has drained");
    for client in slow {
        stage.give_room(client, usize::MAX);
    }
    stage.settle();
    stage.turn();
    assert_eq!(stage.to_read, [uploader.token]);
    assert!(stage.read(uploader.token, &upload(at..usize::MAX)));
    stage.turn();
    let whole = |event: &Event| matches!(event, Event::Message { payload, .. } if payload.len() == 2 * MIB);
    assert_eq!(stage.heard().iter().filter(|event| whole(event)).count(), 1);
    assert_eq!(used(&stage), 0);
}

#[test]
fn clients_that_wait_for_each_other_are_refused_one_by_one() {
    let mut stage = stage(Policy::Close, 8);
    let clients: Vec<_> = (0..12).map(|_| stage.open(usize::MAX)).collect();
    let mut sent: Vec<usize> = vec![0; clients.len()];
    let (mut whole, mut refused) = (0, 0);
    // All send at the same pace, and much more than there is memory for.
    for round in 0..2000 {
        stage.tick(round * 50);
        for (client, sent) in std::iter::zip(&clients, &mut sent) {
            if *sent <= 2 * MIB && stage.shard.wants_read(client.token) {
                let now_ms = stage.now_ms;
                stage.shard.handle_read(client.token, &mut upload(*sent..*sent + 65536), now_ms);
                *sent += 65536;
            }
        }
        stage.turn();
        assert!(used(&stage) <= 12 * MIB, "{}", used(&stage));
        for event in stage.heard() {
            match event {
                Event::Message { .. } => whole += 1,
                Event::Closed(closed) => {
                    assert_eq!((closed.code, closed.by), (1013, ClosedBy::Broker));
                    refused += 1;
                }
                other => panic!("{other:?}"),
            }
        }
        if whole + refused == clients.len() {
            break;
        }
    }
    assert_eq!(whole + refused, clients.len(), "somebody waits for ever");
    assert!(whole >= 3, "only {whole} got through");
    assert_eq!(used(&stage), 0);
}

#[test]
fn a_request_whose_body_finds_no_memory_is_answered_503() {
    let mut stage = stage(Policy::Close, 6);
    let head = "POST /p:sim:sys/http HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3000000\r\n\r\n";
    let clients: Vec<_> = (0..3).map(|_| stage.connect()).collect();
    for &(token, _) in &clients {
        stage.read(token, head.as_bytes());
    }
    for round in 0..200 {
        stage.tick(round * 50);
        for &(token, _) in &clients {
            stage.read(token, &[b'x'; 65536]);
        }
        stage.turn();
    }
    let answered = clients.iter().filter(|&&(_, socket)| {
        let left = stage.wire(socket, |wire| String::from_utf8_lossy(&wire.to_client).into_owned());
        assert!(left.is_empty() || left.starts_with("HTTP/1.1 503 ") && left.contains("retry-after: 1"), "{left}");
        !left.is_empty()
    });
    let answered = answered.count();
    let asked = stage.heard().iter().filter(|event| matches!(event, Event::Http(_))).count();
    assert!(answered > 0 && asked > 0 && answered + asked == 3, "{answered} refused, {asked} asked");
}

#[test]
fn a_frame_without_memory_meets_its_own_policy() {
    // All memory is in frames in progress: no connection can make room.
    let mut stage = stage(Policy::DropNewest, 4);
    let clients: Vec<_> = (0..3).map(|_| stage.open(10)).collect();
    for client in &clients {
        stage.push(client.channel, BINARY, vec![1; 4 * MIB / 3 - 1000].into(), None);
        stage.turn();
    }
    let last = stage.open(0);
    stage.push(last.channel, BINARY, vec![1; 4000].into(), None);
    stage.turn();
    for (policy, count) in [(Policy::DropNewest, 1), (Policy::DropOldest, 2), (Policy::Close, 3)] {
        let outcome = stage.push(last.channel, BINARY, vec![1; 4000].into(), Some(policy)).try_recv().unwrap();
        let expected = if policy == Policy::Close { (0, 1) } else { (1, 0) };
        assert_eq!((outcome.dropped, outcome.closed), expected, "{policy:?} {count}");
    }
    let closed = stage.closed();
    assert_eq!(closed.len(), 0, "events are handed over at the end of the turn");
    stage.turn();
    assert_eq!(stage.closed().iter().map(|closed| closed.channel).collect::<Vec<_>>(), [last.channel]);
}

#[test]
fn what_a_client_that_goes_away_held_is_free_again() {
    let mut stage = stage(Policy::Close, 8);
    let client = stage.open(0);
    fill(&mut stage, client, 2 * MIB);
    let mut begun = Vec::new();
    append_frame(&mut begun, 2, [0; 4], &vec![1; 100_000]);
    stage.read(client.token, &begun);
    stage.push(client.channel, BINARY, vec![1; MIB].into(), Some(Policy::Conflate { key: 1 }));
    stage.turn();
    assert!(used(&stage) > 3 * MIB);
    stage.shard.handle_end(client.token, crate::shard::SocketEnd::Broken, 0);
    stage.turn();
    assert_eq!(used(&stage), 0);
    stage.turn();
    assert!(stage.budget.leased_bytes() <= 9 * MIB);
}

#[test]
fn pushes_that_say_drop_newest_are_dropped_and_close_nobody() {
    // The process' own default would close.
    let mut stage = stage(Policy::Close, 4);
    let clients: Vec<_> = (0..40).map(|_| stage.open(2000)).collect();
    for _ in 0..200 {
        for client in &clients {
            stage.push(client.channel, BINARY, vec![7; 1000].into(), Some(Policy::DropNewest));
        }
        stage.turn();
        assert!(used(&stage) <= 4 * MIB, "{}", used(&stage));
    }
    let stats = stage.shard.report().stats;
    assert!(stage.closed().is_empty() && stats.closed_for_memory == 0);
    assert!(stats.dropped > 0);
}

#[test]
fn a_value_that_all_hold_counts_once_and_small_frames_as_they_are_allocated() {
    let mut stage = stage(Policy::Close, 64);
    let clients: Vec<_> = (0..200).map(|_| stage.open(0)).collect();
    for client in &clients {
        stage.push(client.channel, BINARY, vec![1; 100].into(), None);
    }
    stage.turn();
    let before = used(&stage);
    // Held up by now: each gets a chunk, and what is in it is not counted again.
    for client in &clients {
        stage.push(client.channel, BINARY, vec![2; 100].into(), None);
    }
    stage.turn();
    let chunks = used(&stage) - before;
    assert!((200 * 4096..200 * 5000).contains(&chunks), "{chunks}");
    for client in &clients {
        stage.push(client.channel, BINARY, vec![3; 100].into(), None);
    }
    stage.turn();
    assert_eq!(used(&stage) - before, chunks, "there is room in the chunks");
    let value = vec![4; 4000];
    let before = used(&stage);
    let many = PushMany {
        audience: ShardAudience::Process,
        except: Arc::new([]),
        owner: OWNER,
        frame: PushFrame { kind: BINARY, payload: value.into() },
        compressed: None,
        policy: Some(Policy::Conflate { key: 1 }),
        part: None,
    };
    stage.shard.handle_command(Command::PushMany(Box::new(many)), 0);
    stage.turn();
    let held = used(&stage) - before;
    assert!((4000..200 * 1500).contains(&held), "the value is in memory once, its places for each: {held}");
}

#[test]
fn who_holds_most_gives_first_on_whichever_shard() {
    let ledger = Ledger::new(Budget::of(32 * MIB));
    let mut greedy = Stage::beside(config(Policy::DropNewest), &ledger);
    let mut modest = Stage::beside(config(Policy::Close), &ledger);
    let slow: Vec<_> = (0..40).map(|_| greedy.open(0)).collect();
    for round in 0..400 {
        for client in &slow {
            greedy.push(client.channel, BINARY, vec![round as u8; 4096].into(), None);
        }
        greedy.turn();
    }
    assert!(used(&greedy) > 20 * MIB, "{}", used(&greedy));
    // Together a quarter of the budget: half of a share.
    let others: Vec<_> = (0..24).map(|_| modest.open(0)).collect();
    for _ in 0..80 {
        for client in &others {
            modest.push(client.channel, BINARY, vec![1; 4096].into(), None);
        }
        modest.turn();
        greedy.turn();
    }
    assert!(modest.closed().is_empty() && modest.shard.report().stats.dropped == 0);
    assert!(used(&modest) > 7 * MIB && used(&greedy) + used(&modest) <= 32 * MIB);
    assert!(greedy.shard.report().stats.dropped_for_memory > 0 && greedy.closed().is_empty());
}
