//! Under a node's kernel, one client that stops reading does not affect others: while an app pushes to every channel,
//! one by one as apps do, the others miss nothing and wait no longer than without it; neither the stuck client's queue
//! nor its end changes that.
//!
//! The full size is 200 channels, 300 pushes a second of 1 KiB to each for 20 s, and a stuck client that leaves at 14
//! s:
//! `PUSHRING_STUCK=full cargo test --release --test promises a_stuck_client_delays_nobody_in_a_node -- --nocapture`.
//! Otherwise it is scaled down. 99 of 100 waits may be 50 ms, or, where the machine itself is not that quick, a few
//! times what the same channels waited just before without a stuck client; single ones may be the machine's, which
//! sometimes gives a program no core for long.

use crate::node_support;

use node_support::support::PATIENCE;
use node_support::{NODE, Node, Options, request};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::time::Timespec;
use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

const PROCESS: &str = "app:app:test.os";
const PAYLOAD_BYTES: usize = 1024;
const FRAME_BYTES: usize = 4 + PAYLOAD_BYTES;
const PUSHES_PER_S: u32 = 300;
const WAIT_MAX: Duration = Duration::from_millis(50);

/// Times in pushes: a slow machine makes no fewer, and it takes many to fill what a kernel keeps for a client.
struct Scale {
    channels: usize,
    control: u64,
    leaves_after: u64,
    ends_after: u64,
}

fn scale() -> Scale {
    let full = std::env::var("PUSHRING_STUCK").is_ok_and(|scale| scale == "full");
    let (channels, times) = if full { (200, [5.0, 14.0, 20.0]) } else { (20, [0.5, 1.5, 2.5]) };
    let [control, leaves_after, ends_after] = times.map(|seconds| (seconds * f64::from(PUSHES_PER_S)) as u64);
    Scale { channels, control, leaves_after, ends_after }
}

/// A raw client: frames are read by their length, since all are alike.
fn connect(node: &Node, receive_buffer_bytes: Option<usize>) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    if let Some(bytes) = receive_buffer_bytes {
        socket.set_recv_buffer_size(bytes).unwrap();
    }
    socket.connect(&node.address.into()).unwrap();
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let upgrade = format!(
        "GET /{PROCESS}/ HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    stream.write_all(upgrade.as_bytes()).unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    stream
}

fn opened(node: &mut Node) -> u64 {
    let body: serde_json::Value = serde_json::from_str(&node.heard().2).unwrap();
    body["WebSocketOpen"]["channel_id"].as_u64().unwrap()
}

/// The messages seen by the clients that read.
struct Seen {
    /// Frames of each.
    frames: Vec<u64>,
    /// The longest time from a push to its arrival, of pushes in the control phase, and of those after it.
    worst: [Duration; 2],
    /// The same at the 99th percentile.
    p99: [Duration; 2],
    /// The same in the middle.
    median: [Duration; 2],
}

/// Reads all streams until each has had `last + 1` frames in order, or nothing has come for long.
fn read_all(
    mut streams: Vec<TcpStream>,
    start: Instant,
    control_pushes: u64,
    last: &Receiver<u64>,
) -> Result<Seen, String> {
    streams.iter().for_each(|stream| stream.set_nonblocking(true).unwrap());
    let mut pending = vec![Vec::with_capacity(64 * 1024); streams.len()];
    let mut frames = vec![0_u64; streams.len()];
    let mut waits: [Vec<Duration>; 2] = [Vec::new(), Vec::new()];
    let (mut end, mut heard_at) = (None, Instant::now());
    while end.is_none_or(|end| frames.iter().any(|&frames| frames < end)) {
        end = end.or_else(|| last.try_recv().ok());
        if heard_at.elapsed() > PATIENCE {
            return Err(format!("nothing comes any more: {frames:?} of {end:?}"));
        }
        let mut ready: Vec<PollFd<'_>> = streams.iter().map(|s| PollFd::new(s, PollFlags::IN)).collect();
        poll(&mut ready, Some(&Timespec { tv_sec: 0, tv_nsec: 20_000_000 })).unwrap();
        let ready: Vec<bool> = ready.iter().map(|fd| !fd.revents().is_empty()).collect();
        for at in (0..streams.len()).filter(|&at| ready[at]) {
            let mut chunk = [0; 64 * 1024];
            match streams[at].read(&mut chunk) {
                Ok(0) => return Err(format!("channel {at} ended after {} frames", frames[at])),
                Ok(bytes) => pending[at].extend_from_slice(&chunk[..bytes]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
                Err(error) => return Err(error.to_string()),
            }
            heard_at = Instant::now();
            let whole = pending[at].len() / FRAME_BYTES * FRAME_BYTES;
            for frame in pending[at][..whole].chunks(FRAME_BYTES) {
                let number = |from: usize| u64::from_be_bytes(frame[from..from + 8].try_into().unwrap());
                if frame[..4] != [0x82, 126, 4, 0] || number(4) != frames[at] {
                    return Err(format!("channel {at} got push {} as its {}th", number(4), frames[at]));
                }
                frames[at] += 1;
                let wait = start.elapsed().saturating_sub(Duration::from_nanos(number(12)));
                waits[usize::from(number(4) >= control_pushes)].push(wait);
            }
            pending[at].drain(..whole);
        }
    }
    waits.iter_mut().for_each(|waits| waits.sort_unstable());
    let at = |share: f64| waits.each_ref().map(|waits| waits[((waits.len() - 1) as f64 * share) as usize]);
    Ok(Seen { frames, worst: at(1.0), p99: at(0.99), median: at(0.5) })
}

#[test]
fn others_miss_nothing_and_wait_no_longer() {
    let Scale { channels: count, control, leaves_after, ends_after } = scale();
    // Stuck until it leaves: its budget is larger than all messages to it.
    let mut options = Options::default();
    options.config.shard.outbound_bytes_max = 16 * 1024 * 1024;
    let mut node = Node::start(options);
    node.bind(PROCESS, "/");
    let (mut streams, mut channels) = (Vec::new(), Vec::new());
    for _ in 1..count {
        streams.push(connect(&node, None));
        channels.push(opened(&mut node));
    }
    let start = Instant::now();
    let (end, last) = channel();
    let reader = std::thread::spawn(move || read_all(streams, start, control, &last));

    let source = format!("{NODE}@{PROCESS}");
    let (mut stuck, mut refused) = (None, 0);
    let mut pushed = 0;
    let mut tick = |node: &mut Node, channels: &[u64], payload: &mut Vec<u8>| {
        let due = start + Duration::from_secs(1) * pushed as u32 / PUSHES_PER_S;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        payload[..8].copy_from_slice(&u64::to_be_bytes(pushed));
        payload[8..16].copy_from_slice(&u64::to_be_bytes(start.elapsed().as_nanos() as u64));
        for channel in channels {
            let body = format!(r#"{{"WebSocketPush":{{"channel_id":{channel},"message_type":"Binary"}}}}"#);
            node.hand_in(request(pushed, &source, body.as_bytes(), Some(payload), None));
        }
        pushed += 1;
    };
    let mut payload = vec![0; PAYLOAD_BYTES];
    for _ in 0..control {
        tick(&mut node, &channels, &mut payload);
    }
    // Now one more, which never reads, in the midst of the others.
    let mut silent = Some(connect(&node, Some(4096)));
    let stuck_id = opened(&mut node);
    channels.insert(channels.len() / 2, stuck_id);
    let mut closes: HashMap<String, u32> = HashMap::new();
    for at in 0..ends_after {
        tick(&mut node, &channels, &mut payload);
        if at == leaves_after {
            let many = serde_json::json!({"WebSocketPushMany": {"channel_ids": [stuck_id], "message_type": "Binary"}});
            stuck = Some(node.ask(&source, &many.to_string(), Some(b"?")));
            drop(silent.take()); // With bytes unread, this resets the connection.
        }
        while let Ok(message) = node.from_server.try_recv() {
            let body = String::from_utf8(message.0.message.body().to_vec()).unwrap();
            if body.contains("WebSocketClose") {
                channels.retain(|&channel| channel != stuck_id);
                *closes.entry(body).or_default() += 1;
            } else {
                assert_eq!(body, r#"{"Err":"WsChannelNotFound"}"#);
                refused += 1;
            }
        }
    }
    end.send(pushed).unwrap();
    let seen = reader.join().unwrap().unwrap();
    let stuck = stuck.expect("it left");
    assert!(stuck.contains(r#""queued":1"#), "it was not stuck: {stuck}");
    assert_eq!(closes, HashMap::from([(format!(r#"{{"WebSocketClose":{stuck_id}}}"#), 1)]));
    assert!(seen.frames.iter().all(|&frames| frames == pushed), "{:?} of {pushed}", seen.frames);
    println!(
        "{} channels, {pushed} pushes each, none missed, {refused} refused to the one that left; wait p99 and worst: \
         {:?} and {:?} before it came, {:?} and {:?} with it",
        channels.len(),
        seen.p99[0],
        seen.worst[0],
        seen.p99[1],
        seen.worst[1]
    );
    // Who waits for the client waits until it leaves. A few wait for a busy machine.
    for (waits, most) in [(seen.median, WAIT_MAX), (seen.p99, 10 * WAIT_MAX)] {
        let allowed = most.max(waits[0] * 4);
        assert!(waits[1] <= allowed, "{:?} is over {allowed:?}", waits[1]);
    }
}
