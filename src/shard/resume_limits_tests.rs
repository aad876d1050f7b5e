//! Channels that outlive their connections at their limits: memory that is short in the middle of a broadcast or a
//! replay, budgets, history that is never acknowledged, ends of those who are behind.

use super::*;
use crate::admission::ConnectionLimits;
use crate::queue::fair::OrderOrRest;
use crate::shard::operating::Drain;
use crate::shard::stats::Report;

const MIB: usize = 1 << 20;

impl World {
    /// So many clients of shard 0, which have read their hello.
    fn with_clients(config: ShardConfig, memory: Budget, count: usize) -> Self {
        let mut world = Self::new(config, memory, false);
        for at in 0..count {
            world.add_client();
            world.connect(at, 0, usize::MAX, false);
            world.turn();
            world.receive(at, usize::MAX);
        }
        world
    }

    fn report(&self, shard: usize) -> Report {
        self.net.shards[shard].report()
    }

    fn used(&self) -> usize {
        self.report(0).memory.used_bytes()
    }

    /// What a client has received, and what of that was missing.
    fn heard_by(&self, at: usize) -> (u64, u64) {
        (self.clients[at].received, self.clients[at].missing)
    }
}

#[test]
fn a_frame_that_memory_takes_back_amid_its_broadcast_reaches_the_others_all_the_same() {
    let mut world = World::with_clients(ShardConfig::default(), Budget::of(3 * MIB), 3);
    for at in 0..2 {
        world.cut(at, true);
        world.turn();
    }
    // Room for the history of the first channel, and not for a frame beside it: for the second one history goes.
    world.leave_room(0, Some(8 * 1024));
    world.broadcast(0, 100, None);
    assert!(world.report(0).stats.history_shed > 0);
    world.leave_room(0, None);
    for at in 0..2 {
        world.connect(at, 0, usize::MAX, false);
    }
    world.drain();
    assert_eq!([0, 1, 2].map(|at| world.heard_by(at)), [(1, 1), (1, 0), (1, 0)]);
}

const CLIENTS: usize = 40;

/// Clients who are behind in the same history, 800 messages of it.
fn all_behind() -> World {
    let mut world = World::with_clients(ShardConfig::default(), Budget::of(8 * MIB), CLIENTS);
    for at in 0..CLIENTS {
        let socket = world.clients[at].socket.unwrap();
        world.net.wire(socket, |wire| wire.room = 10);
    }
    for _ in 0..800 {
        world.broadcast(0, LONGEST, None);
        world.turn();
    }
    world
}

#[test]
fn closing_those_who_are_behind_in_the_same_history_copies_it_for_none_of_them() {
    let mut world = all_behind();
    let before = world.used();
    assert!((400_000..MIB).contains(&before), "{before}");
    let drain = Drain { grace_ms: 0, over_ms: 0, within_ms: 60_000 };
    world.net.shards[0].handle_command(Command::Drain(Box::new(drain)), world.net.now_ms);
    for _ in 0..5 {
        world.tick(100);
        assert!(world.used() < before + MIB / 4, "{} where {before} were held", world.used());
    }
    world.drain();
    for at in 0..CLIENTS {
        assert_eq!((world.heard_by(at), world.clients[at].is_closed), ((800, 0), true));
    }
}

#[test]
fn the_end_of_a_process_tells_those_who_are_behind_what_finds_no_memory() {
    let mut world = all_behind();
    let why = CloseFrame { code: Some(1001), reason: "the process has ended".into() };
    world.net.shards[0].handle_command(Command::OwnerGone { owner: OWNER, why }, world.net.now_ms);
    for _ in 0..50 {
        assert!(world.used() <= 8 * MIB, "{}", world.used());
        world.turn();
    }
    world.drain();
    let whole = (0..CLIENTS).filter(|&at| world.heard_by(at) == (800, 0)).count();
    assert!((5..CLIENTS).contains(&whole), "{whole} have got all of it");
    for at in 0..CLIENTS {
        assert_eq!((world.clients[at].received, world.clients[at].is_closed), (800, true), "client {at}");
    }
}

#[test]
fn the_end_of_a_process_gives_those_who_are_behind_what_they_have_not_got_a_part_at_a_time() {
    const SLICE_NS: u64 = 50_000;
    let mut world = World::with_clients(ShardConfig::default(), Budget::default(), 1);
    let (id, socket) = (world.channel(0), world.clients[0].socket.unwrap());
    world.net.wire(socket, |wire| wire.room = 10);
    world.push(id, LONGEST, None);
    world.turn();
    for _ in 0..4_000 {
        // In two lanes, so that no two of them touch.
        world.push(id, 0, None);
        world.broadcast(0, 0, None);
    }
    let why = CloseFrame { code: Some(1001), reason: "the process has ended".into() };
    let mut rest = Some(OrderOrRest::New(Command::OwnerGone { owner: OWNER, why }));
    let mut slices = 0;
    while let Some(order) = rest.take() {
        let (shard, now_ms) = (&mut world.net.shards[0], world.net.now_ms);
        shard.begin_turn(now_ms);
        rest = shard.execute(order, SLICE_NS).map(OrderOrRest::Rest);
        assert!(shard.spent_ns() < 2 * SLICE_NS, "{} in one step", shard.spent_ns());
        slices += 1;
        // Meanwhile its client takes some.
        world.net.wire(socket, |wire| wire.room = 1_000);
        world.turn();
    }
    assert!(slices > 3, "{slices}");
    world.drain();
    assert_eq!((world.heard_by(0), world.clients[0].closes), ((8_001, 0), 1));
}

#[test]
fn a_request_that_comes_late_costs_nobody_the_channel() {
    let mut world = World::with_clients(ShardConfig::default(), Budget::default(), 1);
    let id = world.channel(0);
    world.cut(0, true);
    // It asks on shard 1, finds no answer, and asks the channel's own shard, which hears of the first request last.
    world.connect(0, 1, usize::MAX, false);
    world.cut(0, false);
    world.connect(0, 0, usize::MAX, false);
    world.net.shards[0].flush();
    world.receive(0, usize::MAX);
    assert!(world.clients[0].knows_hello);
    world.turn();
    world.push(id, 10, None);
    world.turn();
    // Its connection has been taken over by one that it has given up.
    world.receive(0, usize::MAX);
    assert!(world.clients[0].socket.is_none());
    world.connect(0, 0, usize::MAX, false);
    world.drain();
    assert_eq!((world.channel(0), world.heard_by(0), world.resumed, world.refused), (id, (1, 0), 2, 0));
}

/// Whatever the client does while a close frame waits behind what it has not got yet, the channel ends once, and it is
/// sent one close frame.
#[test]
fn a_close_that_waits_behind_a_log_ends_the_channel_once_however_it_comes_to_that() {
    for way in 0..6 {
        let config = ShardConfig { outbound_bytes_max: 20_000, ..ShardConfig::default() };
        let mut world = World::with_clients(config, Budget::default(), 1);
        let (id, socket) = (world.channel(0), world.clients[0].socket.unwrap());
        world.net.wire(socket, |wire| wire.room = 10);
        for _ in 0..20 {
            world.push(id, LONGEST, None);
            world.turn();
        }
        world.close(id);
        assert!(!world.known[&id].is_closed);
        world.push(id, 1, None);
        world.known.get_mut(&id).unwrap().pushed -= 1;
        match way {
            0 => {}
            // It is closed again, or at once.
            1 => world.close(id),
            2 => {
                let why = CloseFrame { code: Some(1001), reason: "the process has ended".into() };
                world.net.shards[0].handle_command(Command::OwnerGone { owner: OWNER, why }, world.net.now_ms);
            }
            // The client closes too, breaks the protocol, or leaves.
            3 => world.send(0, &[0x88, 0x82, 0, 0, 0, 0, 0x03, 0xe8]),
            4 => world.send(0, &[0x83, 0x80, 0, 0, 0, 0]),
            _ => world.cut(0, true),
        }
        world.turn();
        world.drain();
        let closes = world.clients[0].closes;
        assert_eq!(closes, usize::from(way < 5), "way {way}");
        if way < 3 {
            assert_eq!(world.heard_by(0), (20, 0), "way {way}");
        }
        if way < 2 {
            // Its answer.
            world.send(0, &[0x88, 0x82, 0, 0, 0, 0, 0x0f, 0xa0]);
            world.turn();
        }
        world.hear();
        assert!(world.known[&id].is_closed || way == 2, "way {way}");
        world.tick(100);
    }
}

#[test]
fn what_is_sent_again_closes_nobody_who_comes_back() {
    let config = ShardConfig { outbound_bytes_max: 20_000, ..ShardConfig::default() };
    let mut world = World::with_clients(config, Budget::default(), 1);
    let id = world.channel(0);
    for _ in 0..200 {
        world.push(id, LONGEST, None);
        world.turn();
    }
    // None of that has come.
    world.cut(0, true);
    for len in [100, LONGEST] {
        world.push(id, len, None);
    }
    world.connect(0, 0, 5_000, false);
    for _ in 0..10 {
        world.turn();
        world.push(id, 100, None);
        world.receive(0, 7_000);
        let socket = world.clients[0].socket.unwrap();
        world.net.wire(socket, |wire| wire.room = 7_000);
    }
    world.drain();
    assert_eq!((world.heard_by(0), world.clients[0].is_closed, world.resumed), ((212, 0), false, 1));
    // And what is sent for the first time counts, as ever.
    let socket = world.clients[0].socket.unwrap();
    world.net.wire(socket, |wire| wire.room = 10);
    for _ in 0..40 {
        world.push(id, LONGEST, None);
        world.turn();
    }
    assert!(world.known[&id].is_closed);
}

#[test]
fn a_frame_of_any_size_waits_where_nothing_else_does() {
    // Where nothing may wait, too.
    for outbound_bytes_max in [2_000, 0] {
        for policy in [Policy::Close, Policy::DropNewest, Policy::DropOldest] {
            let config = ShardConfig { outbound_bytes_max, ..ShardConfig::default() };
            let mut world = World::with_clients(config, Budget::default(), 1);
            let id = world.channel(0);
            world.cut(0, true);
            world.push(id, 5_000, Some(policy));
            world.connect(0, 0, usize::MAX, false);
            world.drain();
            assert_eq!(world.heard_by(0), (1, 0), "{policy:?} {outbound_bytes_max}");
        }
    }
}

#[test]
fn nothing_is_dropped_for_a_frame_that_would_not_fit_even_so() {
    let config = ShardConfig { outbound_bytes_max: 2_000, ..ShardConfig::default() };
    let mut world = World::with_clients(config, Budget::of(3 * MIB), 1);
    let (id, socket) = (world.channel(0), world.clients[0].socket.unwrap());
    world.net.wire(socket, |wire| wire.room = 10);
    for len in [1_500, 300, 1_000] {
        world.push(id, len, Some(Policy::DropOldest));
        world.turn();
    }
    assert_eq!(world.report(0).stats.dropped, 1);
    // Nor is history, where memory is short.
    world.leave_room(0, Some(0));
    world.push(id, 1_000, Some(Policy::DropNewest));
    assert_eq!((world.report(0).stats.dropped, world.report(0).stats.history_shed), (2, 0));
    world.leave_room(0, None);
    world.drain();
    assert_eq!(world.heard_by(0), (4, 2));
}

#[test]
fn history_that_is_gone_is_forgotten_by_those_who_never_acknowledge_it() {
    let config = ShardConfig { ping_interval_ms: 0, ..ShardConfig::default() };
    let mut world = World::with_clients(config, Budget::default(), 1);
    let (id, before) = (world.channel(0), world.used());
    for _ in 0..3_000 {
        // In two lanes, so that no two of them touch.
        world.push(id, 0, None);
        world.broadcast(0, 0, None);
        world.turn();
        world.receive(0, usize::MAX);
    }
    let full = world.used() - before;
    assert!(full > 6_000 * 24, "{full}");
    for _ in 0..130 {
        world.tick(900);
    }
    let left = world.used() - before;
    assert!(left < 10_000, "{left} of {full}");
    // What is lost is known all the same.
    world.cut(0, true);
    world.push(id, 0, None);
    world.clients[0].received -= 5;
    world.connect(0, 1, usize::MAX, false);
    world.drain();
    assert_eq!((world.heard_by(0), world.gaps), ((6_001, 5), 1));
}

#[test]
fn the_beginning_of_a_record_is_counted_where_its_client_returns() {
    for shard in [0, 1] {
        let mut world = World::with_clients(ShardConfig::default(), Budget::default(), 1);
        world.cut(0, true);
        world.over_tls = true;
        let mut is_over_tls = false;
        world.connect_with(0, shard, usize::MAX, false, |mut request| {
            is_over_tls = !request.starts_with(b"GET");
            // 10,000 of the 16,000 bytes that this record will have.
            request.extend_from_slice(&[0x17, 3, 3, 0x3e, 0x80]);
            request.resize(request.len() + 10_000, 7);
            request
        });
        if !is_over_tls {
            return;
        }
        world.turn();
        world.turn();
        world.receive(0, usize::MAX);
        assert_eq!((world.resumed, world.refused), (1, 0));
        let incoming = world.report(0).memory.incoming_bytes;
        assert_eq!(incoming, 10_005, "on shard {shard}");
    }
}

#[test]
fn a_drain_ends_those_who_wait_and_sends_the_others_what_they_are_behind_by() {
    let mut world = World::new(ShardConfig::default(), Budget::default(), false);
    for at in 0..2 {
        world.add_client();
        world.connect(at, 0, usize::MAX, false);
        world.turn();
        world.receive(at, usize::MAX);
    }
    let [here, away] = [0, 1].map(|at| world.channel(at));
    world.cut(1, true);
    let socket = world.clients[0].socket.unwrap();
    world.net.wire(socket, |wire| wire.room = 10);
    for id in [here, away, here, away, here] {
        world.push(id, 100, None);
        world.turn();
    }
    let drain = Drain { grace_ms: 0, over_ms: 0, within_ms: 1_000 };
    for shard in &mut world.net.shards {
        shard.handle_command(Command::Drain(Box::new(drain)), world.net.now_ms);
    }
    for _ in 0..5 {
        world.tick(100);
        world.receive(0, usize::MAX);
        world.net.wire(socket, |wire| wire.room = 1 << 20);
    }
    assert!(world.known[&away].is_closed, "nobody comes back to a broker that stops");
    assert_eq!((world.clients[0].received, world.clients[0].missing), (3, 0));
    assert!(world.clients[0].is_closed);
}

/// Three channels of one address, on two shards, whose clients are gone in this order, and no place for a fourth.
fn full_of_those_who_wait(limits: ConnectionLimits) -> World {
    let mut world = World::new(ShardConfig::default(), Budget::default(), false);
    world.net.shards[0].table.admission().set_limits(limits);
    for shard in [1, 0, 1] {
        let at = world.add_client();
        world.connect(at, shard, usize::MAX, false);
        world.turn();
        world.receive(at, usize::MAX);
        assert_eq!(ChannelId::new(world.channel(at)).shard(SHARDS) as usize, shard);
    }
    for at in 0..3 {
        world.cut(at, true);
        world.turn();
    }
    world
}

#[test]
fn whoever_waits_longest_gives_way_whichever_shard_has_it() {
    let limits = ConnectionLimits::default;
    for limits in [
        ConnectionLimits { connections_max: 3, ..limits() },
        ConnectionLimits { connections_per_ip_max: 3, ..limits() },
        ConnectionLimits { connections_per_process_max: 3, ..limits() },
    ] {
        let mut world = full_of_those_who_wait(limits);
        for gone in 0..3 {
            let at = world.add_client();
            world.connect(at, 0, usize::MAX, false);
            world.turn();
            world.turn();
            world.receive(at, usize::MAX);
            assert!(world.clients[at].knows_hello, "there was room");
            let closed: Vec<bool> = (0..3).map(|at| world.known[&world.channel(at)].is_closed).collect();
            assert_eq!(closed, (0..3).map(|at| at <= gone).collect::<Vec<_>>(), "in order, one at a time");
            assert_eq!(world.net.shards[0].table.admission().total(), 3);
        }
        let at = world.add_client();
        world.connect(at, 1, usize::MAX, false);
        world.turn();
        let socket = world.clients[at].socket.unwrap();
        let is_refused = world.net.wire(socket, |wire| wire.to_client.starts_with(b"HTTP/1.1 503 "));
        assert!(is_refused, "nobody waits any more");
    }
}

#[test]
fn whoever_comes_back_when_another_has_its_place_is_told_what_it_has_lost() {
    let mut world = full_of_those_who_wait(ConnectionLimits { connections_max: 3, ..ConnectionLimits::default() });
    let gone = world.channel(0);
    world.push(gone, 10, None);
    // Shard 1 has not heard yet that its channel has to go.
    world.net.accept(0, usize::MAX).unwrap();
    assert!(!world.known[&gone].is_closed && world.net.shards[0].table.admission().total() == 3);
    world.connect(0, 1, usize::MAX, false);
    for _ in 0..3 {
        world.turn();
        world.receive(0, usize::MAX);
    }
    assert!(world.known[&gone].is_closed && world.channel(0) != gone);
    assert_eq!((world.refused, world.resumed), (1, 0));
    let admission = world.net.shards[0].table.admission();
    assert_eq!(admission.total(), 3, "the newcomer, who came back, and one who waits");
}

/// A client that breaks the protocol is told so a moment later, for its process may still answer what came before. In
/// that moment its channel has ended for good already.
#[test]
fn who_breaks_the_protocol_does_not_come_back_before_it_is_told() {
    for is_noticed in [true, false] {
        let mut world = World::new(ShardConfig::default(), Budget::default(), false);
        let at = world.add_client();
        world.connect(at, 0, usize::MAX, false);
        world.turn();
        world.receive(at, usize::MAX);
        let id = world.channel(at);
        world.say(at);
        let not_masked = [0x81, 1, b'x'];
        world.send(at, &not_masked);
        world.cut(at, is_noticed);
        world.connect(at, 1, usize::MAX, false);
        world.drain();
        assert_eq!((world.resumed, world.refused), (0, 1), "its end was noticed: {is_noticed}");
        world.tick(200);
        assert!(world.known[&id].is_closed && world.channel(at) != id);
    }
}

#[test]
fn the_newest_ping_is_answered_before_an_earlier_one_that_waits() {
    let mut world = World::with_clients(ShardConfig::default(), Budget::default(), 1);
    let (id, socket) = (world.channel(0), world.clients[0].socket.unwrap());
    let ping = |world: &mut World| {
        world.clients[0].pinged += 1;
        world.write(0, format!("\u{1e}{{\"ping\":{}}}", world.clients[0].pinged).as_bytes());
    };
    world.net.wire(socket, |wire| wire.room = 10);
    world.push(id, 100, None);
    ping(&mut world);
    world.turn();
    // Its socket is full.
    ping(&mut world);
    ping(&mut world);
    world.drain();
    assert_eq!((world.heard_by(0), world.clients[0].ponged), ((1, 0), 1), "the answer to the first comes last");
}
