//! `stage:pushring:sys`: one process pushes to a thousand receivers, some of which can be told to stop reading, and
//! shows what the others notice of it.
//!
//! - At `/stage:pushring:sys/` pages watch: each gets the receivers' messages (Binary), and a report as Text four times
//!   a second. It may send `{"stall":100}` and `{"policy":"close"}` (`drop`, `conflate`).
//! - The receivers are simulated, but their connections are real: sockets to the broker's own listener (`crowd`). They
//!   exist while a page watches.
//!
//! Invariants: without a page nothing is pushed and no receiver is connected; reports are measured, or the broker's own
//! outcomes; a page can stall at most half of the receivers.

mod crowd;
mod receiver;

use self::crowd::{Crowd, ReceiverAddress};
use crate::broker::{
    AttachOptions, Audience, BrokerHandle, Event, Message, Opened, Outcome, Policy, Process, PushError, ServiceError,
};
use crate::channel::ChannelId;
use crate::driver::sys;
use crate::gateway::WebSocketRule;
use crate::shard::operating::ChannelFilter;
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

const PROCESS: &str = "stage:pushring:sys";
const TICK: Duration = Duration::from_millis(50);
const TICKS_A_REPORT: u64 = 5;

/// Large enough that a receiver which stops reading is over its budget within seconds, and sent by reference, so that
/// the queues share its bytes.
const TICK_BYTES: usize = 8 << 10;

/// The reports over which times are looked at: two seconds.
const REPORTS_LOOKED_AT: usize = 8;

/// How long a shard is waited for, which answers within a turn or two.
const SHARD_WITHIN: Duration = Duration::from_secs(2);

/// How long a wait for a page lasts before it begins anew.
const WAIT_MAX: Duration = Duration::from_secs(3600);

/// The close code of a channel that did not keep up.
const TRY_AGAIN_LATER: u16 = 1013;

const TICKS: &str = "ticks";

/// With what the stage begins.
#[derive(Debug, Clone, Copy)]
pub struct StageOptions {
    /// How many are simulated.
    pub receivers: usize,
    /// The outbound budget of a channel, for display only.
    pub outbound_bytes_max: usize,
}

/// The policy for receivers that do not keep up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum StagePolicy {
    #[default]
    Close,
    Drop,
    Conflate,
}

impl From<StagePolicy> for Policy {
    fn from(policy: StagePolicy) -> Self {
        match policy {
            StagePolicy::Close => Self::Close,
            StagePolicy::Drop => Self::DropOldest,
            StagePolicy::Conflate => Self::Conflate { key: 0 },
        }
    }
}

/// A page's request.
#[derive(Debug, Deserialize)]
struct PageRequest {
    stall: Option<usize>,
    policy: Option<StagePolicy>,
}

/// A report to the pages.
#[derive(Serialize)]
struct StageReport<'a> {
    receivers: usize,
    open: usize,
    stalled: usize,
    policy: StagePolicy,
    bytes: usize,
    per_s: u64,
    budget: usize,
    /// Of receivers that read, from push to read, over two seconds.
    p50_us: Option<u32>,
    p99_us: Option<u32>,
    /// The bytes waiting for the receiver with most.
    fullest: usize,
    /// The outcome of the last message.
    sent: usize,
    queued: usize,
    conflated: usize,
    dropped: usize,
    /// Since the first page came.
    closed_in_all: usize,
    missed_in_all: u64,
    trouble: Option<&'a str>,
    /// A letter for each: `o` reads, `c` catches up, `s` is stalled, `x` was closed for that, `.` is not there.
    seats: String,
}

/// Starts the stage. It ends with the broker.
///
/// # Errors
/// See [`ServiceError`]; there is no thread, descriptor or randomness.
pub fn start(broker: &BrokerHandle, options: StageOptions) -> Result<JoinHandle<()>, ServiceError> {
    let process = broker.process(PROCESS, AttachOptions::default())?;
    // Clients must not take a receiver's place by chance.
    let key = u64::from_le_bytes(sys::random_bytes()?);
    let seats_at = format!("/seat-{key:016x}/");
    process.bind("/", WebSocketRule::default())?;
    process.bind(&format!("{seats_at}:seat"), WebSocketRule::default())?;
    let began = Instant::now();
    // With a TLS listener alone there is none for receivers that speak plain HTTP.
    let is_plain = broker.tls_address() != Some(broker.address());
    let receivers = if is_plain { options.receivers } else { 0 };
    let ranks = ranks(receivers).into();
    let path = format!("/{PROCESS}{seats_at}");
    let crowd = Crowd::start(ReceiverAddress {
        address: reachable(broker.address()),
        path,
        ranks: Clone::clone(&ranks),
        began,
    })?;
    let stage = DemoStage {
        process,
        broker: broker.clone(),
        options: StageOptions { receivers, ..options },
        crowd,
        seats_at,
        began,
        ranks,
        seats: vec![ReceiverChannel::default(); receivers],
        seat_of: HashMap::new(),
        pages: HashSet::new(),
        policy: StagePolicy::default(),
        stalled: 0,
        number: 0,
        last: Outcome::default(),
        times: VecDeque::new(),
        closed: 0,
        missed: 0,
        trouble: (!is_plain).then(|| "the receivers speak no TLS: run the demo without --tls to see them".to_owned()),
    };
    Ok(thread::Builder::new().name("stage".to_owned()).spawn(move || stage.run())?)
}

/// Where this machine reaches a listener.
fn reachable(listener: SocketAddr) -> SocketAddr {
    let ip = match listener.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listener.port())
}

/// In what order seats stall: scattered, so that a picture of them shows it.
fn ranks(receivers: usize) -> Vec<usize> {
    let mut seats: Vec<usize> = (0..receivers).collect();
    seats.sort_by_key(|&seat| (seat as u32).wrapping_mul(0x9e37_79b1));
    let mut ranks = vec![0; receivers];
    for (rank, seat) in seats.into_iter().enumerate() {
        ranks[seat] = rank;
    }
    ranks
}

#[derive(Clone, Copy, Default)]
struct ReceiverChannel {
    channel: Option<ChannelId>,
    was_closed: bool,
}

struct DemoStage {
    process: Process,
    broker: BrokerHandle,
    options: StageOptions,
    crowd: Crowd,
    seats_at: String,
    began: Instant,
    ranks: std::sync::Arc<[usize]>,
    seats: Vec<ReceiverChannel>,
    seat_of: HashMap<ChannelId, usize>,
    pages: HashSet<ChannelId>,
    policy: StagePolicy,
    stalled: usize,
    number: u64,
    last: Outcome,
    times: VecDeque<Vec<u32>>,
    closed: usize,
    missed: u64,
    trouble: Option<String>,
}

impl DemoStage {
    fn run(mut self) {
        let mut events = Vec::new();
        let mut due = Instant::now();
        loop {
            let patience = match self.pages.is_empty() {
                true => WAIT_MAX,
                false => due.saturating_duration_since(Instant::now()),
            };
            if self.process.recv_batch(&mut events, patience).is_err() {
                return;
            }
            // The only error is that the broker has stopped.
            if events.drain(..).try_for_each(|event| self.on_event(event)).is_err() {
                return;
            }
            let now = Instant::now();
            if self.pages.is_empty() || now < due {
                continue;
            }
            // A tick that is late is not made good by two at once.
            due = now + TICK;
            if self.tick().is_err() {
                return;
            }
        }
    }

    fn on_event(&mut self, event: Event) -> Result<(), PushError> {
        match event {
            Event::Opened(opened) => self.opened(&opened),
            Event::Message { channel, payload, .. } => {
                if self.pages.contains(&channel)
                    && let Ok(wish) = serde_json::from_slice::<PageRequest>(&payload)
                {
                    self.grant(&wish);
                }
                Ok(())
            }
            Event::Closed(closed) => {
                self.closed(closed.channel, closed.code);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn opened(&mut self, opened: &Opened) -> Result<(), PushError> {
        let channel = opened.channel;
        let Some(seat) = opened.path.strip_prefix(&*self.seats_at) else {
            if self.pages.is_empty() {
                (self.closed, self.missed, self.last) = Default::default();
                self.crowd.take_measured();
                self.times.clear();
            }
            self.pages.insert(channel);
            self.crowd.invite(self.options.receivers);
            return self.process.subscribe(channel, TICKS).send();
        };
        match seat.parse::<usize>().ok().filter(|&seat| seat < self.seats.len()) {
            Some(seat) => {
                self.seats[seat] = ReceiverChannel { channel: Some(channel), was_closed: false };
                self.seat_of.insert(channel, seat);
                self.process.subscribe(channel, TICKS).send()
            }
            None => self.process.close(channel, 1008, "there is no such seat").send(),
        }
    }

    fn closed(&mut self, channel: ChannelId, code: u16) {
        if let Some(seat) = self.seat_of.remove(&channel) {
            let was_closed = code == TRY_AGAIN_LATER;
            self.closed += usize::from(was_closed);
            if self.seats[seat].channel == Some(channel) {
                self.seats[seat] = ReceiverChannel { channel: None, was_closed };
            }
        } else if self.pages.remove(&channel) && self.pages.is_empty() {
            // The next page finds everything as it was.
            self.grant(&PageRequest { stall: Some(0), policy: Some(StagePolicy::default()) });
            self.crowd.invite(0);
        }
    }

    fn grant(&mut self, wish: &PageRequest) {
        if let Some(stalled) = wish.stall {
            self.stalled = stalled.min(self.options.receivers / 2);
            self.crowd.stall(self.stalled);
        }
        self.policy = wish.policy.unwrap_or(self.policy);
    }

    /// Pushes one message to all, and now and then the report of it to pages.
    fn tick(&mut self) -> Result<(), PushError> {
        self.number += 1;
        let mut payload = vec![0; TICK_BYTES];
        payload[..8].copy_from_slice(&self.number.to_le_bytes());
        self.crowd.pushed(self.number);
        payload[8..16].copy_from_slice(&(self.began.elapsed().as_nanos() as u64).to_le_bytes());
        let push = self.process.broadcast(Message::binary(payload)).to(Audience::Topic(TICKS.into()));
        let ticket = push.policy(self.policy.into()).ask().send()?;
        if let Ok(outcome) = ticket.wait(SHARD_WITHIN) {
            self.last = outcome;
        }
        if self.number.is_multiple_of(TICKS_A_REPORT) {
            let report = self.report();
            let pages: Vec<ChannelId> = self.pages.iter().copied().collect();
            self.process.broadcast(Message::text(report)).to(pages).policy(Policy::DropNewest).send()?;
        }
        Ok(())
    }

    fn report(&mut self) -> String {
        let measured = self.crowd.take_measured();
        self.missed += measured.missed;
        if measured.trouble.is_some() {
            self.trouble = measured.trouble;
        } else if self.seat_of.len() == self.options.receivers && self.options.receivers > 0 {
            self.trouble = None;
        }
        self.times.push_back(measured.times_us);
        if self.times.len() > REPORTS_LOOKED_AT {
            self.times.pop_front();
        }
        let mut times: Vec<u32> = self.times.iter().flatten().copied().collect();
        let report = StageReport {
            receivers: self.options.receivers,
            open: self.seat_of.len(),
            stalled: self.stalled,
            policy: self.policy,
            bytes: TICK_BYTES,
            per_s: (Duration::from_secs(1).as_millis() / TICK.as_millis()) as u64,
            budget: self.options.outbound_bytes_max,
            p50_us: part_of(&mut times, 0.5),
            p99_us: part_of(&mut times, 0.99),
            fullest: self.fullest(),
            sent: self.last.sent,
            queued: self.last.queued,
            conflated: self.last.conflated,
            dropped: self.last.dropped,
            closed_in_all: self.closed,
            missed_in_all: self.missed,
            trouble: self.trouble.as_deref(),
            seats: (0..self.seats.len()).map(|seat| self.letter(seat)).collect(),
        };
        serde_json::to_string(&report).expect("a report is JSON")
    }

    fn letter(&self, seat: usize) -> char {
        let ReceiverChannel { channel, was_closed } = self.seats[seat];
        match channel {
            None if was_closed => 'x',
            None => '.',
            Some(_) if self.ranks[seat] < self.stalled => 's',
            Some(_) if self.crowd.is_catching_up(seat) => 'c',
            Some(_) => 'o',
        }
    }

    /// The bytes waiting for the receiver with most; asked of the broker while some are stalled.
    fn fullest(&self) -> usize {
        if self.stalled == 0 {
            return 0;
        }
        let filter =
            ChannelFilter { process: Some(self.process.id().clone()), queued_bytes_min: 1, ..ChannelFilter::default() };
        let (channels, _) = self.broker.channels(&filter, 0, self.options.receivers);
        channels.iter().map(|channel| channel.queued_bytes).max().unwrap_or(0)
    }
}

/// The value below which this part of `times` lies.
fn part_of(times: &mut [u32], part: f64) -> Option<u32> {
    let at = ((times.len() as f64 * part) as usize).min(times.len().checked_sub(1)?);
    Some(*times.select_nth_unstable(at).1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_number_stalls_and_its_seats_are_scattered() {
        let ranks = ranks(1000);
        let stalled = |count: usize| (0..1000).filter(|&seat| ranks[seat] < count).collect::<Vec<_>>();
        for count in [0, 1, 10, 100, 500] {
            assert_eq!(stalled(count).len(), count);
        }
        let row = |at: usize| stalled(100).iter().filter(|&&seat| seat / 100 == at).count();
        assert!((0..10).all(|at| (3..30).contains(&row(at))), "{:?}", (0..10).map(row).collect::<Vec<_>>());
    }

    #[test]
    fn parts_of_times() {
        assert_eq!(part_of(&mut [], 0.99), None);
        assert_eq!(part_of(&mut [7], 0.99), Some(7));
        let mut times: Vec<u32> = (0..100).rev().collect();
        assert_eq!((part_of(&mut times, 0.5), part_of(&mut times, 0.99)), (Some(50), Some(99)));
    }

    #[test]
    fn wishes_are_what_the_page_says() {
        let wish: PageRequest = serde_json::from_str(r#"{"stall":100,"policy":"drop"}"#).unwrap();
        assert_eq!((wish.stall, wish.policy), (Some(100), Some(StagePolicy::Drop)));
        assert!(serde_json::from_str::<PageRequest>(r#"{"policy":"other"}"#).is_err());
        assert_eq!(reachable("0.0.0.0:80".parse().unwrap()).to_string(), "127.0.0.1:80");
        assert_eq!(reachable("[::]:80".parse().unwrap()).to_string(), "[::1]:80");
    }
}
