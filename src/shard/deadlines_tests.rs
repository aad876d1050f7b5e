//! Deadlines and pings under a clock of the test's own, with the default times.

use super::*;
use crate::shard::command::RespondCommand;
use crate::shard::event::{Closed, ClosedBy};
use crate::shard::table::connection::Flag;
use crate::shard::table::slot::Slot;

const CLOSED: Effect = Effect::Close(SocketId(0));

/// So many messages of one client are more than it may add to a queue that is high, and fewer than may be in two turns
/// of it.
const MORE_THAN_ONE_MAY_ADD: usize = 5_000;

fn channel() -> (Scene, ChannelId) {
    behind(usize::MAX)
}

fn client_frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    append_frame(&mut frame, FIN | opcode, [1, 2, 3, 4], payload);
    frame
}

/// When the socket is closed, if it is within `ms`.
fn closed_at(scene: &mut Scene, ms: u64) -> Option<u64> {
    scene.pass(ms).into_iter().find(|(_, effect)| *effect == CLOSED).map(|(at_ms, _)| at_ms)
}

fn closed_event(scene: &mut Scene) -> (u16, ClosedBy) {
    let closed = closed(scene);
    (closed.code, closed.by)
}

fn closed(scene: &mut Scene) -> Closed {
    let batches = std::iter::from_fn(|| scene.events.try_recv().ok());
    match batches.last().and_then(|batch| batch.events.into_iter().last()) {
        Some(Event::Closed(closed)) => *closed,
        other => panic!("{other:?}"),
    }
}

fn close_by_process(scene: &mut Scene, channel: ChannelId) {
    let why = CloseFrame { code: Some(4000), reason: "".into() };
    let asked = crate::shard::command::ReportTo::Nobody;
    let close = crate::shard::command::CloseCommand { channel, owner: Some(OWNER), why, abruptly: false, asked };
    scene.shard.handle_command(Command::Close(Box::new(close)), scene.now_ms);
    scene.turn();
}

/// The first byte of each frame that has left.
fn opcodes_left(scene: &Scene) -> Vec<u8> {
    let left = scene.left();
    let starts = frames_left(scene).into_iter().scan(0, |at, len| Some(std::mem::replace(at, *at + len)));
    starts.map(|at| left[at]).collect()
}

#[test]
fn a_vanished_client_is_pinged_twice_and_gone_within_75_s() {
    let (mut scene, _) = channel();
    let closed_ms = closed_at(&mut scene, 100_000).unwrap();
    assert!((60_000..=75_000).contains(&closed_ms), "{closed_ms}");
    assert_eq!(closed_event(&mut scene), (1001, ClosedBy::Timeout));
    assert_eq!(opcodes_left(&scene), [0x89, 0x89, 0x88], "two pings, then the close frame");
    assert_eq!(scene.shard.connections(), 0);
}

#[test]
fn a_vanished_client_with_a_full_socket_is_gone_as_soon() {
    // Once the broker reads on, once it waits for the client to take what is queued.
    for queued in [10, 900] {
        let (mut scene, channel) = behind(0);
        scene.push(channel, queued);
        scene.turn();
        scene.read(client_frame(2, b"a"));
        let closed_ms = closed_at(&mut scene, 100_000).unwrap();
        assert!((60_000..=75_000).contains(&closed_ms), "{closed_ms}");
        assert_eq!(closed_event(&mut scene).1, ClosedBy::Timeout);
    }
}

#[test]
fn a_client_that_answers_pings_stays_and_is_pinged_by_chance() {
    let (mut scene, _) = channel();
    let mut pinged_ms = Vec::new();
    for _ in 0..6_000 {
        assert_eq!(scene.pass(TICK_MS), []);
        let pinged = !std::mem::take(&mut scene.wire.0.borrow_mut().left).is_empty();
        if pinged {
            pinged_ms.push(scene.now_ms);
            scene.read(client_frame(10, b""));
        }
    }
    assert!((25..=30).contains(&pinged_ms.len()), "{pinged_ms:?}");
    assert!(pinged_ms.windows(2).all(|pair| (20_000..=25_000).contains(&(pair[1] - pair[0]))), "{pinged_ms:?}");
}

#[test]
fn clients_that_came_together_are_not_pinged_together() {
    let (mut scene, _) = channel();
    for number in 1..1000 {
        let peer = ([127, 0, 0, 1], 1).into();
        let token = scene.shard.handle_accept(SocketId(number), peer, 0).unwrap();
        scene.client = token;
        scene.upgrade("/p:sim:sys/ws");
    }
    let mut most = 0;
    for _ in 0..260 {
        let before = scene.shard.report().stats.sends;
        scene.pass(TICK_MS);
        most = most.max(scene.shard.report().stats.sends - before);
    }
    // 1,000 pings over 3.75 s are 27 a tick.
    assert!((20..=40).contains(&most), "{most}");
}

#[test]
fn intervals_longer_than_the_wheel_are_kept() {
    let (mut scene, _) = channel();
    scene.shard.config = Arc::new(ShardConfig { ping_interval_ms: 200_000, ..ShardConfig::default() });
    // The first was set under the old interval, and the client is heard of before it.
    scene.pass(15_000);
    scene.read(client_frame(10, b""));
    scene.pass(155_000);
    assert_eq!(scene.left(), b"");
    scene.pass(45_000);
    assert_eq!(opcodes_left(&scene), [0x89]);
    let closed_ms = closed_at(&mut scene, 500_000).unwrap();
    assert!((15_000 + 480_000..=15_000 + 600_000).contains(&closed_ms), "{closed_ms}");
}

#[test]
fn whom_we_do_not_read_is_not_judged_by_its_silence() {
    let (mut scene, _) = channel();
    let flood = client_frame(2, b"").repeat(MORE_THAN_ONE_MAY_ADD);
    scene.read(flood);
    scene.turn();
    assert_eq!(scene.pass(300_000), [], "its process takes nothing");
    while scene.events.try_recv().is_ok() {}
    scene.pass(TICK_MS);
    // From now on it is heard again, and has the full time.
    let resumed_ms = scene.now_ms;
    let closed_ms = closed_at(&mut scene, 100_000).unwrap();
    assert!((60_000..=75_000).contains(&(closed_ms - resumed_ms)), "{closed_ms}");
}

#[test]
fn a_client_that_waits_for_memory_or_for_its_turn_is_not_closed_for_its_silence() {
    for flag in [Flag::WaitsForMemory, Flag::Resumes] {
        let (mut scene, _) = channel();
        let slot = scene.shard.table.resolve(scene.client).unwrap();
        scene.shard.table[slot].flags.set(flag);
        assert_eq!(scene.pass(300_000), [], "{flag:?}");
    }
}

#[test]
fn nobody_is_judged_by_what_came_while_we_were_stopped() {
    let (mut scene, _) = channel();
    // Two pings are out, and the answer arrives while the whole process stands still.
    scene.pass(56_000);
    assert_eq!(opcodes_left(&scene), [0x89, 0x89]);
    scene.now_ms += 3_600_000;
    assert_eq!(scene.pass(TICK_MS), []);
    scene.read(client_frame(10, b""));
    assert_eq!(scene.pass(19_000), []);
    // Stopped again: three intervals have passed at once, and yet each ping is given its time.
    scene.wire.0.borrow_mut().left.clear();
    scene.now_ms += 80_000;
    let stopped_ms = scene.now_ms;
    let closed_ms = closed_at(&mut scene, 100_000).unwrap();
    assert!(closed_ms - stopped_ms >= 40_000, "{}", closed_ms - stopped_ms);
}

#[test]
fn a_trickled_head_does_not_extend_its_deadline() {
    let mut scene = Scene::new(usize::MAX);
    scene.pass(2_000);
    for byte in b"GET / HTTP/1.1\r\nX: yyyyyyyyyyyyyyyyyyyy".chunks(1) {
        scene.read(byte.to_vec());
        scene.pass(200);
    }
    assert_eq!(scene.left(), b"", "at {} ms", scene.now_ms);
    scene.pass(10_000 - scene.now_ms);
    assert!(scene.left().starts_with(b"HTTP/1.1 408 "));
    // Nor does it keep the connection by sending on.
    for _ in 0..19 {
        scene.read(b"y".to_vec());
        assert_eq!(closed_at(&mut scene, 100), None);
    }
    assert_eq!(closed_at(&mut scene, 200), Some(12_000));
}

#[test]
fn a_head_behind_a_response_has_the_time_of_a_head() {
    let mut scene = Scene::new(usize::MAX);
    scene.read(b"GET /nothing HTTP/1.1\r\nHost: localhost\r\n\r\nGET".to_vec());
    scene.turn();
    assert!(scene.left().starts_with(b"HTTP/1.1 404 "));
    scene.wire.0.borrow_mut().left.clear();
    scene.pass(9_900);
    assert_eq!(scene.left(), b"");
    scene.pass(200);
    assert!(scene.left().starts_with(b"HTTP/1.1 408 "));
}

#[test]
fn an_idle_connection_is_closed_without_a_word() {
    let mut scene = Scene::new(usize::MAX);
    scene.read(b"GET /nothing HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec());
    scene.turn();
    scene.wire.0.borrow_mut().left.clear();
    assert_eq!(scene.pass(74_900), []);
    assert_eq!(scene.pass(200), [(75_000, Effect::ShutdownWrite(SocketId(0)))]);
    assert_eq!(scene.left(), b"");
}

#[test]
fn a_trickled_body_does_not_extend_its_deadline() {
    let mut scene = Scene::new(usize::MAX);
    let head = "POST /p:sim:sys/http HTTP/1.1\r\nHost: localhost\r\nContent-Length: 500\r\n\r\n";
    scene.read(head.into());
    for _ in 0..99 {
        scene.read(b"y".to_vec());
        scene.pass(TICK_MS);
    }
    assert_eq!(scene.left(), b"");
    scene.pass(TICK_MS);
    assert!(scene.left().starts_with(b"HTTP/1.1 408 "));
}

#[test]
fn a_body_may_take_as_long_as_its_line_needs() {
    let mut scene = Scene::new(usize::MAX);
    scene.read(b"POST /p:sim:sys/http HTTP/1.1\r\nHost: localhost\r\nContent-Length: 200000\r\n\r\n".to_vec());
    // 4 KB a second, with a stall of 6 s now and then.
    for at in 0..50 {
        scene.read(vec![b'y'; 4_000]);
        scene.turn();
        if at < 49 {
            scene.pass(if at % 9 == 8 { 6_000 } else { 1_000 });
        }
    }
    assert_eq!(scene.left(), b"", "{} ms", scene.now_ms);
    let batches = std::iter::from_fn(|| scene.events.try_recv().ok());
    let asked = batches.flat_map(|batch| batch.events).find_map(|event| match event {
        Event::Http(request) => Some(request.body.len()),
        _ => None,
    });
    assert_eq!(asked, Some(200_000));
}

#[test]
fn a_large_body_that_trickles_is_cut() {
    let mut scene = Scene::new(usize::MAX);
    scene.read(b"POST /p:sim:sys/http HTTP/1.1\r\nHost: localhost\r\nContent-Length: 200000\r\n\r\n".to_vec());
    for _ in 0..10 {
        scene.read(vec![b'y'; 4_000]);
        scene.pass(1_000);
    }
    // Half of the least rate.
    for _ in 0..99 {
        scene.read(vec![b'y'; 50]);
        scene.pass(TICK_MS);
    }
    assert_eq!(scene.left(), b"");
    scene.pass(TICK_MS);
    assert!(scene.left().starts_with(b"HTTP/1.1 408 "));
}

/// Refused at its head, or its first bytes; what has left.
fn refused(first: &[u8]) -> Scene {
    let mut scene = Scene::new(usize::MAX);
    scene.read(first.to_vec());
    scene.turn();
    assert!(scene.left().starts_with(b"HTTP/1.1 4"), "{}", scene.left().escape_ascii());
    scene
}

const UPLOAD: &[u8] = b"POST /nothing HTTP/1.1\r\nHost: localhost\r\nContent-Length: 6000000\r\n\r\n";

#[test]
fn an_upload_that_was_refused_is_read_to_its_end_and_then_for_a_while() {
    let mut scene = refused(UPLOAD);
    for _ in 0..60 {
        assert_eq!(closed_at(&mut scene, 9_000), None, "at {} ms", scene.now_ms);
        scene.read(vec![b'y'; 100_000]);
    }
    let all_ms = scene.now_ms;
    assert_eq!(closed_at(&mut scene, 10_000), Some(all_ms + 2_000));
    // Bytes beyond the body are dropped as usual: a megabyte, then the connection is cut.
    let mut scene = refused(UPLOAD);
    for _ in 0..69 {
        scene.read(vec![b'y'; 100_000]);
    }
    assert_eq!(closed_at(&mut scene, TICK_MS), None);
    scene.read(vec![b'y'; 200_000]);
    assert!(closed_at(&mut scene, TICK_MS).is_some());
}

#[test]
fn a_refused_upload_without_an_announced_end_has_the_room_of_a_body() {
    for first in [
        &b"POST /nothing HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nfffff\r\n"[..],
        b"POST /nothing HTTP/1.1\r\nHost: localhost\r\nHost: again\r\nContent-Length: 9\r\n\r\n",
    ] {
        let mut scene = refused(first);
        for _ in 0..16 {
            scene.read(vec![b'y'; 1 << 20]);
            assert_eq!(closed_at(&mut scene, 1_000), None);
        }
        scene.read(vec![b'y'; 2 << 20]);
        assert!(closed_at(&mut scene, TICK_MS).is_some());
    }
}

#[test]
fn nobody_waits_for_an_upload_that_trickles_or_for_one_in_a_stop() {
    let mut scene = refused(UPLOAD);
    for _ in 0..99 {
        scene.read(vec![b'y'; 100]);
        assert_eq!(closed_at(&mut scene, TICK_MS), None);
    }
    assert!(closed_at(&mut scene, 2 * TICK_MS).is_some(), "under a kilobyte a second");
    let mut scene = refused(UPLOAD);
    scene.shard.handle_command(Command::Stop { within_ms: 60_000, told: None }, scene.now_ms);
    for _ in 0..99 {
        scene.read(vec![b'y'; 10_000]);
        assert_eq!(closed_at(&mut scene, TICK_MS), None);
    }
    assert!(closed_at(&mut scene, 2 * TICK_MS).is_some());
}

#[test]
fn the_rest_of_a_message_that_was_refused_is_read_too() {
    // The header of a frame of 20 MB: over the limit.
    let large = [&[0x82, 0xff][..], &20_000_000_u64.to_be_bytes(), &[1, 2, 3, 4]].concat();
    // Text that is none from its first byte on, and a fragment of a message that becomes too large.
    let torn = [&[0x81, 0xff][..], &16_000_000_u64.to_be_bytes(), &[0, 0, 0, 0, 0xff, 0xff]].concat();
    let begun =
        [client_frame(2, b"x"), [&[0x02, 0xff][..], &20_000_000_u64.to_be_bytes(), &[1, 2, 3, 4]].concat()].concat();
    for (frame, code, megabytes) in [(large, 1009_u16, 20), (torn, 1007, 16), (begun, 1009, 36)] {
        let (mut scene, _) = channel();
        scene.read(frame);
        scene.turn();
        scene.pass(300);
        let told = scene.left();
        assert!(told.windows(2).any(|bytes| bytes == code.to_be_bytes()), "{}", told.escape_ascii());
        for _ in 0..megabytes {
            scene.read(vec![0; 1_000_000]);
            assert_eq!(closed_at(&mut scene, 1_000), None, "{code} at {} ms", scene.now_ms);
        }
        assert!(closed_at(&mut scene, 25_000).is_some());
    }
}

#[test]
fn a_response_may_be_slow_but_not_stand_still() {
    let mut scene = Scene::new(100);
    scene.read(b"GET /nothing HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec());
    scene.turn();
    for _ in 0..3 {
        assert_eq!(closed_at(&mut scene, 74_900), None);
        scene.give_room(1);
        scene.turn();
    }
    assert_eq!(closed_at(&mut scene, 151_000), Some(300_000));
}

#[test]
fn neither_bytes_nor_pings_extend_a_registration() {
    let mut scene = Scene::new(usize::MAX);
    scene.upgrade("/");
    scene.wire.0.borrow_mut().left.clear();
    let mut register = client_frame(1, &[b' '; 120]).into_iter();
    for _ in 0..99 {
        scene.read(register.by_ref().take(1).collect());
        scene.pass(TICK_MS);
    }
    assert_eq!(scene.left(), b"");
    scene.pass(TICK_MS);
    assert_eq!(scene.left()[..4], [0x88, 36, 0x11, 0x38], "4408");

    let mut scene = Scene::new(usize::MAX);
    scene.upgrade("/");
    for _ in 0..100 {
        scene.read(client_frame(9, b""));
        scene.pass(TICK_MS);
    }
    assert!(scene.left().windows(4).any(|bytes| bytes == [0x88, 36, 0x11, 0x38]));
}

#[test]
fn a_close_frame_is_answered_in_time_or_not_at_all() {
    let (mut scene, channel) = channel();
    close_by_process(&mut scene, channel);
    assert_eq!(scene.left(), [0x88, 2, 0x0f, 0xa0]);
    // It goes on as if nothing had been said.
    for _ in 0..49 {
        scene.read(client_frame(2, b"a"));
        scene.read(client_frame(9, b"a"));
        assert_eq!(scene.pass(TICK_MS), []);
    }
    assert_eq!(scene.pass(TICK_MS), [(5_000, CLOSED)]);
    assert_eq!(scene.left(), [0x88, 2, 0x0f, 0xa0], "nothing follows a close frame");
    assert_eq!(closed_event(&mut scene), (1006, ClosedBy::Process));
}

#[test]
fn an_answer_that_we_do_not_read_is_not_called_missing() {
    let (mut scene, channel) = channel();
    scene.read(client_frame(2, b"").repeat(QueueLimits::default().messages_max + 1));
    scene.turn();
    close_by_process(&mut scene, channel);
    scene.read(client_frame(8, &4000_u16.to_be_bytes()));
    assert_eq!(closed_at(&mut scene, 10_000), Some(5_000));
    let closed = closed(&mut scene);
    assert_eq!((closed.code, closed.by), (1006, ClosedBy::Process));
    assert_eq!(&*closed.reason, "the process does not read its events");
}

#[test]
fn whoever_does_not_answer_the_close_of_a_stop_was_closed_by_the_broker() {
    let (mut scene, _) = channel();
    scene.shard.handle_command(Command::Stop { within_ms: 60_000, told: None }, 0);
    scene.turn();
    assert_eq!(closed_at(&mut scene, 100_000), Some(60_000));
    assert_eq!(closed_event(&mut scene), (1006, ClosedBy::Broker));
}

#[test]
fn a_closed_clients_last_bytes_are_waited_for_in_bounds() {
    // It closes, but does not take our answer; or it takes it, and sends on, against RFC 6455 5.5.1.
    let (mut scene, channel) = behind(0);
    scene.push(channel, 10);
    scene.turn();
    scene.read(client_frame(8, &1000_u16.to_be_bytes()));
    assert_eq!(closed_at(&mut scene, 10_000), Some(5_000));

    let (mut scene, _) = self::channel();
    scene.read([client_frame(8, &1000_u16.to_be_bytes()), vec![0]].concat());
    scene.turn();
    for _ in 0..19 {
        scene.read(vec![0; 1000]);
        assert_eq!(closed_at(&mut scene, TICK_MS), None);
    }
    assert_eq!(closed_at(&mut scene, 200), Some(2_000));
}

#[test]
fn control_frames_are_counted_by_the_second() {
    let (mut scene, _) = channel();
    for _ in 0..3 {
        for _ in 0..50 {
            scene.read(client_frame(9, b"p"));
            scene.read(client_frame(10, b"unasked"));
        }
        scene.turn();
        assert_eq!(scene.pass(1000), []);
    }
    scene.wire.0.borrow_mut().left.clear();
    // A flood in one read: the violation drops the answers that have not left.
    scene.read(client_frame(9, b"p").repeat(5000));
    scene.turn();
    let left = scene.left();
    assert_eq!((left[0], &left[2..4], left.len()), (0x88, &1008_u16.to_be_bytes()[..], 2 + usize::from(left[1])));
    assert_eq!(closed_event(&mut scene), (1008, ClosedBy::Violation));
}

/// Pings of a client that came behind more messages than its process takes, and what it is told once that takes them.
fn pinged_meanwhile(pings: usize) -> Vec<u8> {
    let (mut scene, _) = channel();
    let messages = client_frame(2, b"").repeat(MORE_THAN_ONE_MAY_ADD);
    scene.read([messages, client_frame(9, b"p").repeat(pings)].concat());
    scene.turn();
    scene.pass(2_000);
    assert_eq!(scene.left(), b"");
    while scene.events.try_recv().is_ok() {}
    scene.pass(2 * TICK_MS);
    opcodes_left(&scene)
}

#[test]
fn control_frames_that_came_while_we_did_not_listen_are_not_called_a_flood() {
    assert_eq!(pinged_meanwhile(250), [0x8a; 250]);
    assert_eq!(pinged_meanwhile(400).last(), Some(&0x88), "more than that is one");

    // The process was stopped for half a minute.
    for (pings, last) in [(2_000, 0x8a), (4_000, 0x88)] {
        let (mut scene, _) = channel();
        scene.now_ms += 30_000;
        scene.shard.handle_tick(scene.now_ms);
        scene.read(client_frame(9, b"p").repeat(pings));
        // More than is taken in at a time.
        (0..2).for_each(|_| _ = scene.turn());
        assert_eq!(opcodes_left(&scene).last(), Some(&last));
    }
}

#[test]
fn an_answer_behind_what_the_process_was_slow_to_take_is_not_called_missing() {
    let (mut scene, channel) = channel();
    close_by_process(&mut scene, channel);
    scene.read(client_frame(2, b"").repeat(QueueLimits::default().messages_max + 1));
    scene.turn();
    scene.pass(4_000);
    // It takes them at last; the answer is still on its way when the time is up.
    while scene.events.try_recv().is_ok() {}
    assert_eq!(closed_at(&mut scene, 10_000), Some(5_000));
    assert_eq!(&*closed(&mut scene).reason, "the process does not read its events");
}

#[test]
fn whoever_is_read_again_has_all_its_pings_before_it() {
    let (mut scene, _) = channel();
    scene.pass(35_000);
    assert_eq!(opcodes_left(&scene), [0x89]);
    // Its pong may have come while there was no memory to read it.
    scene.shard.resume_reading(Slot::new(scene.client.slot));
    let resumed_ms = scene.now_ms;
    let closed_ms = closed_at(&mut scene, 100_000).unwrap();
    assert!((60_000..=75_000).contains(&(closed_ms - resumed_ms)), "{closed_ms}");
}

#[test]
fn a_client_that_waited_for_a_response_may_ping_no_more_than_others() {
    let mut scene = Scene::new(usize::MAX);
    scene.read(b"GET /p:sim:sys/http HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec());
    scene.turn();
    scene.ask_upgrade("/p:sim:sys/ws");
    scene.pass(10_000);
    let Some(Event::Http(request)) = scene.events.try_recv().unwrap().events.pop() else { panic!("no request") };
    let respond =
        RespondCommand { request: request.id, owner: OWNER, response: crate::http::PreparedResponse::new(200) };
    scene.shard.handle_command(Command::Respond(Box::new(respond)), scene.now_ms);
    scene.turn();
    scene.read(client_frame(9, b"p").repeat(200));
    scene.pass(2 * TICK_MS);
    let left = scene.left();
    assert!(left.starts_with(b"HTTP/1.1 200 ") && left.windows(4).any(|bytes| bytes == b" 101"));
    let why = b"too many control frames per second";
    assert!(left.windows(why.len()).any(|bytes| bytes == why));
}

fn asked(path: &str) -> (Scene, crate::shard::event::RequestId) {
    let mut scene = Scene::new(usize::MAX);
    scene.read(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").into_bytes());
    scene.turn();
    let Some(Event::Http(request)) = scene.events.try_recv().unwrap().events.pop() else { panic!("no request") };
    (scene, request.id)
}

fn respond(scene: &mut Scene, request: crate::shard::event::RequestId) {
    let respond = RespondCommand { request, owner: OWNER, response: crate::http::PreparedResponse::new(200) };
    scene.shard.handle_command(Command::Respond(Box::new(respond)), scene.now_ms);
}

#[test]
fn a_request_that_waits_when_the_broker_stops_is_answered_by_its_process_or_with_503() {
    let (mut scene, request) = asked("/p:sim:sys/http");
    scene.shard.handle_command(Command::Stop { within_ms: 4_000, told: None }, scene.now_ms);
    scene.pass(1_000);
    assert_eq!(scene.left(), b"");
    respond(&mut scene, request);
    scene.pass(TICK_MS);
    assert!(scene.left().starts_with(b"HTTP/1.1 200 "));

    let (mut scene, request) = asked("/p:sim:sys/http");
    scene.shard.handle_command(Command::Stop { within_ms: 4_000, told: None }, scene.now_ms);
    scene.pass(2_000 + TICK_MS);
    assert!(scene.left().starts_with(b"HTTP/1.1 503 "));
    respond(&mut scene, request);
    scene.pass(2_000);
    assert!(scene.shard.is_stopped() && !scene.left().windows(4).any(|bytes| bytes == b" 200"));

    // One that has not wholly come, and one that is stopped without patience.
    let mut scene = Scene::new(usize::MAX);
    scene.read(b"POST /p:sim:sys/http HTTP/1.1\r\nHost: localhost\r\ncontent-length: 9\r\n\r\nhalf".to_vec());
    scene.shard.handle_command(Command::Stop { within_ms: 0, told: None }, scene.now_ms);
    scene.turn();
    scene.pass(TICK_MS);
    assert!(scene.left().starts_with(b"HTTP/1.1 503 ") && scene.shard.is_stopped());
}

#[test]
fn a_stop_gives_clients_as_long_as_it_says_to_take_what_is_queued() {
    let (mut scene, channel) = channel();
    scene.wire.0.borrow_mut().room = 0;
    scene.push(channel, 500);
    scene.turn();
    scene.shard.handle_command(Command::Stop { within_ms: 20_000, told: None }, scene.now_ms);
    // Longer than a close frame is waited for otherwise.
    assert_eq!(closed_at(&mut scene, 15_000), None);
    scene.give_room(usize::MAX);
    scene.turn();
    assert_eq!(opcodes_left(&scene).last(), Some(&0x88));
    assert_eq!(closed_at(&mut scene, 10_000), Some(20_000), "it has not answered");
}

#[test]
fn requests_that_wait_are_refused_when_their_process_goes_and_only_they() {
    let (mut scene, request) = asked("/p:sim:sys/http");
    let why = CloseFrame { code: Some(1001), reason: "gone".into() };
    let gone = |scene: &mut Scene, owner| {
        let command = Command::OwnerGone { owner, why: why.clone() };
        scene.shard.handle_command(command, scene.now_ms);
        scene.turn();
    };
    gone(&mut scene, crate::gateway::OwnerId(77));
    assert_eq!(scene.left(), b"");
    gone(&mut scene, OWNER);
    assert!(scene.left().starts_with(b"HTTP/1.1 500 "));
    respond(&mut scene, request);
    scene.turn();
    assert!(!scene.left().windows(4).any(|bytes| bytes == b" 200"));
}
