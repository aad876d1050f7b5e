//! The effect of greedy processes on another one: echo latency of a well-behaved client on a shard of hogs.
//!
//! For each hog a fresh server with one shard: the hog works, one client of another process sends a message at a time
//! and waits for it to come back. Both, and the server, share this machine's processors, so the waits are an upper
//! bound; the server itself reports the length of its turns, in its thread's CPU time.
//!
//! A turn may take 2 ms of its thread: a run fails if more than one in a thousand of a server's turns took longer. How
//! long a thread seems to run that does nothing is reported beside it (`machine_gaps`), and how much of the server's
//! CPUs the host of a virtual machine took while a hog worked: a turn may seem longer by that.
//!
//! Invariant: a hog keeps to the protocol; its process takes and drops its messages, or relays them. Hogs that are
//! processes of their own are in `process_hogs.rs`.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::behaviour::ClientBehaviour;
use crate::bench::{Bench, Run};
use crate::client::engine::Pace;
use crate::client::plain::open;
use crate::client::{Closure, Engine, Handler, Message, Opcode, Outbox, Target, frame};
use crate::machine_gaps::{self, MachineGaps};
use crate::modes::echo::ECHO;
use crate::modes::parse_positive;
use crate::proc;
use crate::process_hogs::{self, HOG, ProcessHog};
use crate::stats::{Latency, LatencySummary};

/// Takes messages and drops those of the kind Text.
const DROPS: &str = "unicast:pushring:sys";
/// Sends each message on to all its other channels.
const RELAYS: &str = "relay:pushring:sys";

/// Clients whose messages are relayed.
const RELAY_SENDERS: usize = 4;

/// The innocent client's pause between two messages.
const PAUSE: Duration = Duration::from_millis(1);

/// How long an echo may take.
const ECHO_MAX: Duration = Duration::from_secs(20);

/// How long a turn may be, by the bound of a bucket that the server counts in, in microseconds; of a thousand turns one
/// may be longer, for what else happens on a machine is in it too.
const TURN_US_MAX: f64 = 2_048.0;
const TURNS_SHARE: f64 = 0.999;

/// A load that takes all that it can get.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Hog {
    /// No load, for comparison.
    None,
    /// Clients send empty fragments, 62 to a message, as fast as they are taken.
    Fragments,
    /// Clients send empty messages as fast as they are taken.
    Messages,
    /// Clients send messages of 60 KiB as fast as they are taken.
    Uploads,
    /// Other clients of the same process send it messages as fast as they are taken, and it sends them back.
    Siblings,
    /// A process broadcasts small messages to many channels as fast as the broker lets it.
    Broadcasts,
    /// Clients connect and leave as fast as they can.
    Churn,
    /// A process that reads nothing for a while, then lets all its clients go on at once.
    Resumes,
    /// A process that answers requests with 100,000 header fields.
    Headers,
    /// A process that pushes to one channel named 200,000 times.
    SameId,
    /// A process that conflates 60,000 values whose keys collide.
    Keys,
    /// A process that queues pings and drops the oldest.
    Pings,
    /// Requests for paths of 15 KiB where a pattern has 16 wildcards.
    Patterns,
    /// A process that binds 16,000 paths and takes them back.
    Binds,
}

impl Hog {
    /// The behaviour of its own process; none: it uses the demo's.
    fn of_process(self) -> Option<ProcessHog> {
        Some(match self {
            Self::None
            | Self::Fragments
            | Self::Messages
            | Self::Uploads
            | Self::Siblings
            | Self::Broadcasts
            | Self::Churn => return None,
            Self::Resumes => ProcessHog::Resumes,
            Self::Headers => ProcessHog::Headers,
            Self::SameId => ProcessHog::SameId,
            Self::Keys => ProcessHog::Keys,
            Self::Pings => ProcessHog::Pings,
            Self::Patterns => ProcessHog::Patterns,
            Self::Binds => ProcessHog::Binds,
        })
    }
}

/// Settings of `neighbours`.
#[derive(Debug, Clone, Args, Serialize)]
pub(crate) struct Settings {
    /// The hogs, one after the other [default: all].
    #[arg(long, value_delimiter = ',')]
    pub hogs: Vec<Hog>,
    /// Clients of a hog that send.
    #[arg(long, default_value_t = 300)]
    pub clients: usize,
    /// Channels of a hog that broadcasts, and clients of one that lets them go on at once.
    #[arg(long, default_value_t = 5000)]
    pub channels: usize,
    /// How long each hog works, in seconds.
    #[arg(long, default_value_t = 5.0, value_parser = parse_positive)]
    pub seconds: f64,
}

/// What a run measured.
#[derive(Debug, Serialize)]
struct Neighbours {
    hogs: Vec<HogEffect>,
    machine: MachineGaps,
}

/// The effect of one hog.
#[derive(Debug, Serialize)]
struct HogEffect {
    hog: Hog,
    echoes: u64,
    wait: Option<LatencySummary>,
    /// 99 of 100, 999 of 1,000 and all turns of the server took no longer, in microseconds of its thread's time.
    turns_us: Option<[f64; 3]>,
    /// What the machine's host took of the server's CPUs meanwhile, in microseconds, where the kernel says so.
    stolen_us: Option<f64>,
}

impl HogEffect {
    /// Returns whether every echo came, and turns were as short as they should be.
    fn is_good(&self) -> bool {
        self.wait.is_some() && self.turns_us.is_none_or(|[_, most, _]| most <= TURN_US_MAX)
    }
}

/// Runs `neighbours`. Returns whether every echo came, and no turns were too long.
pub(crate) fn run(run: &Run<Settings>) -> anyhow::Result<bool> {
    let settings = &run.settings;
    let hogs = if settings.hogs.is_empty() { Hog::value_variants().to_vec() } else { settings.hogs.clone() };
    let mut felt = Vec::new();
    let link = std::env::temp_dir().join(format!("loadtest-neighbours-{}.sock", std::process::id()));
    for hog in hogs {
        let mut bench = run.server.open_with(&["--metrics=true", "--link", &link.to_string_lossy()])?;
        let before_us = proc::stolen_us(&run.server.server_cpus)?;
        let mut effect = measure(&mut bench, settings, hog, &link).with_context(|| format!("beside {hog:?}"))?;
        let stolen_us = proc::stolen_us(&run.server.server_cpus)?;
        effect.stolen_us = stolen_us.zip(before_us).map(|(stolen_us, before_us)| stolen_us - before_us);
        felt.push(effect);
    }
    let (cpus, others) = (&run.server.server_cpus, &run.server.client_cpus);
    let machine = machine_gaps::measure(cpus, others, Duration::from_secs_f64(settings.seconds))
        .context("reading a thread's own time")?;
    let measured = Neighbours { hogs: felt, machine };
    if run.server.json {
        println!("{}", serde_json::to_string_pretty(&measured)?);
    } else {
        print!("{}", table(&measured));
    }
    Ok(measured.hogs.iter().all(HogEffect::is_good))
}

fn measure(bench: &mut Bench, settings: &Settings, hog: Hog, link: &Path) -> anyhow::Result<HogEffect> {
    let of = |process| bench.server.target(process, &ClientBehaviour { sources: 1, ..bench.behaviour.clone() });
    let (echo, drops, relays, own) = (of(ECHO)?, of(DROPS)?, of(RELAYS)?, of(HOG)?);
    ensure!(echo.tls.is_none(), "neighbours speaks no TLS: give it a ws:// URL");
    let innocent = open(&echo)?;
    let is_over = AtomicBool::new(false);
    let mut wait = Latency::default();
    let echoes = std::thread::scope(|scope| {
        let hog_thread = scope.spawn(|| match hog.of_process() {
            Some(hog) => process_hogs::work(hog, link, &own, settings.channels, &is_over),
            None => work(hog, settings, [&echo, &drops, &relays], &is_over),
        });
        let result = exchange(innocent, Duration::from_secs_f64(settings.seconds), &mut wait);
        is_over.store(true, Ordering::Relaxed);
        let worked = hog_thread.join().map_err(|_| anyhow::anyhow!("the hog panicked"))?;
        worked.context("the hog")?;
        result
    })?;
    bench.server.check_alive()?;
    Ok(HogEffect { hog, echoes, wait: wait.summary(), turns_us: turns(&echo)?, stolen_us: None })
}

/// Sends messages and waits for each to come back.
fn exchange(mut stream: TcpStream, how_long: Duration, wait: &mut Latency) -> anyhow::Result<u64> {
    stream.set_read_timeout(Some(ECHO_MAX))?;
    let (started, mut echoes) = (Instant::now(), 0_u64);
    let (mut out, mut answer) = (Vec::new(), [0; 10]);
    // The hog has half a second to get going.
    let warm = Duration::from_millis(500);
    while started.elapsed() < how_long + warm {
        out.clear();
        frame::write_masked(Opcode::Binary, &echoes.to_le_bytes(), [1, 2, 3, 4], &mut out);
        let sent = Instant::now();
        stream.write_all(&out)?;
        stream.read_exact(&mut answer).context("an echo did not come")?;
        if answer[..2] != [0x82, 8] || answer[2..] != echoes.to_le_bytes() {
            bail!("another answer than the message: {answer:?}");
        }
        if started.elapsed() > warm {
            wait.record(sent.elapsed().as_nanos() as u64);
        }
        echoes += 1;
        std::thread::sleep(PAUSE);
    }
    Ok(echoes)
}

fn work(hog: Hog, settings: &Settings, [echo, drops, relays]: [&Target; 3], over: &AtomicBool) -> anyhow::Result<()> {
    let frames = |first: &[&[u8]], times: usize| first.concat().repeat(times);
    const MASK: [u8; 4] = [0; 4];
    match hog {
        Hog::None => Ok(()),
        Hog::Fragments => {
            let [first, middle, last] =
                [[0x01, 0x80], [0x00, 0x80], [0x80, 0x80]].map(|head| [&head[..], &MASK].concat());
            let message = [first, middle.repeat(60), last].concat();
            flood(drops, settings.clients, &message.repeat(170), over)
        }
        Hog::Messages => flood(drops, settings.clients, &frames(&[&[0x81, 0x80], &MASK], 10_000), over),
        Hog::Uploads => {
            let mut message = Vec::new();
            frame::write_masked(Opcode::Text, &[b'x'; 60 * 1024], MASK, &mut message);
            flood(drops, settings.clients, &message, over)
        }
        Hog::Siblings => {
            let mut message = Vec::new();
            frame::write_masked(Opcode::Binary, &[7; 16], MASK, &mut message);
            flood(echo, settings.clients, &message.repeat(100), over)
        }
        Hog::Broadcasts => broadcast(relays, settings.channels, over),
        Hog::Churn => {
            while !over.load(Ordering::Relaxed) {
                drop(open(drops)?);
            }
            Ok(())
        }
        _ => bail!("{hog:?} is a process of its own"),
    }
}

/// Sends `bytes` again and again on each of `clients` connections.
fn flood(target: &Target, clients: usize, bytes: &[u8], over: &AtomicBool) -> anyhow::Result<()> {
    let mut streams: Vec<(TcpStream, usize)> = Vec::with_capacity(clients);
    for _ in 0..clients {
        let stream = open(target)?;
        stream.set_nonblocking(true)?;
        streams.push((stream, 0));
    }
    let mut drain = vec![0; 16 * 1024];
    while !over.load(Ordering::Relaxed) {
        let mut has_sent = false;
        for (stream, at) in &mut streams {
            match stream.write(&bytes[*at..]) {
                Ok(count) => {
                    has_sent = true;
                    *at = (*at + count) % bytes.len();
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error).context("sending"),
            }
            match stream.read(&mut drain) {
                Ok(0) => bail!("the server ended a connection"),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error).context("reading"),
            }
        }
        if !has_sent {
            std::thread::sleep(Duration::from_micros(200));
        }
    }
    Ok(())
}

/// Takes everything and keeps nothing.
#[derive(Default)]
struct Audience {
    closed: Vec<String>,
}

impl Handler for Audience {
    fn message(&mut self, _: usize, _: &Message<'_>, _: u64, _: &mut Outbox<'_>) {}

    fn closed(&mut self, _: usize, closure: &Closure) {
        self.closed.push(closure.reason.clone());
    }
}

fn broadcast(target: &Target, channels: usize, over: &AtomicBool) -> anyhow::Result<()> {
    let mut engine = Engine::new(target.clone(), Pace::Block)?;
    let mut audience = Audience::default();
    engine.connect_all(0, channels, ECHO_MAX, |_| None, &mut audience, |_| {})?;
    let mut message = Vec::new();
    frame::write_masked(Opcode::Binary, &[7; 16], [0; 4], &mut message);
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| flood(target, RELAY_SENDERS, &message.repeat(100), over));
        while !over.load(Ordering::Relaxed) {
            engine.poll(10, &mut audience)?;
        }
        sender.join().map_err(|_| anyhow::anyhow!("a sender panicked"))?
    })?;
    // A client that does not keep up on a busy machine is closed, as it should be.
    Ok(())
}

/// How long the server's turns were: the bounds of 99, 99.9 and 100 % of them.
fn turns(target: &Target) -> anyhow::Result<Option<[f64; 3]>> {
    let mut stream = TcpStream::connect(target.address)?;
    stream.set_read_timeout(Some(ECHO_MAX))?;
    let host = &target.host;
    write!(stream, "GET /metrics:pushring:sys/ HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let buckets: Vec<(f64, f64)> = text.lines().filter_map(bucket).collect();
    Ok(bounds(&buckets))
}

/// The bound in microseconds and the count of a bucket of turns.
fn bucket(line: &str) -> Option<(f64, f64)> {
    let rest = line.strip_prefix("pushring_turn_cpu_seconds_bucket{")?;
    let (labels, count) = rest.split_once("} ")?;
    let bound = labels.split(',').find_map(|label| label.strip_prefix("le=\"")?.strip_suffix('"'))?;
    let bound_us = if bound == "+Inf" { f64::INFINITY } else { bound.parse::<f64>().ok()? * 1e6 };
    Some((bound_us, count.trim().parse().ok()?))
}

fn bounds(buckets: &[(f64, f64)]) -> Option<[f64; 3]> {
    let all = buckets.last()?.1;
    let of = |share: f64| buckets.iter().find(|bucket| bucket.1 >= all * share).map(|bucket| bucket.0);
    Some([of(0.99)?, of(TURNS_SHARE)?, of(1.0)?])
}

fn table(Neighbours { hogs, machine }: &Neighbours) -> String {
    let mut text = format!(
        "{:<12}{:>8}{:>10}{:>10}{:>10}{:>11}   {}\n",
        "hog", "echoes", "p50 ms", "p99 ms", "max ms", "stolen ms", "turns: 99 %, 99.9 %, all at most, ms of CPU"
    );
    for HogEffect { hog, echoes, wait, turns_us, stolen_us } in hogs {
        let name = hog.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned());
        text += &format!("{name:<12}{echoes:>8}");
        match wait {
            Some(wait) => {
                for us in [wait.p50_us, wait.p99_us, wait.max_us] {
                    text += &format!("{:>10.2}", us / 1000.0);
                }
            }
            None => text += &format!("{:>30}", "no echo came"),
        }
        text += &stolen_us.map_or_else(|| format!("{:>11}", "–"), |us| format!("{:>11.0}", us / 1000.0));
        if let Some(turns) = turns_us {
            text += &format!("   {}", turns.map(|us| format!("{:.3}", us / 1000.0)).join(", "));
        }
        if wait.is_some() && turns_us.is_some_and(|[_, most, _]| most > TURN_US_MAX) {
            text += "   TOO LONG";
        }
        text.push('\n');
    }
    let MachineGaps { seconds, over_2_ms, longest_us } = machine;
    let longest_ms = longest_us / 1000.0;
    text + &format!(
        "a thread that reads its own CPU time for {seconds} s, while another one spins: at most {longest_ms:.3} ms \
         between two readings, {over_2_ms} times over 2 ms\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bounds_of_turns_are_read_from_metrics() {
        let text = "# TYPE pushring_turn_cpu_seconds histogram\n\
                    pushring_turn_cpu_seconds_sum{shard=\"0\"} 1\n\
                    pushring_turn_cpu_seconds_bucket{le=\"0.000016\",shard=\"0\"} 990\n\
                    pushring_turn_cpu_seconds_bucket{le=\"0.000032\",shard=\"0\"} 999\n\
                    pushring_turn_cpu_seconds_bucket{le=\"+Inf\",shard=\"0\"} 1000\n";
        let buckets: Vec<_> = text.lines().filter_map(bucket).collect();
        assert_eq!(buckets.len(), 3);
        let [most, nearly_all, all] = bounds(&buckets).unwrap();
        assert!((most - 16.0).abs() < 1e-6 && (nearly_all - 32.0).abs() < 1e-6 && all.is_infinite());
        assert_eq!(bounds(&[]), None);
    }
}
