//! Fan-out: one publisher, and every message goes to all clients. With a window of messages in flight (`fanout`), or
//! at a fixed pace whatever the server does (`paced`), so that its latencies omit nothing.

use std::time::Duration;

use anyhow::bail;
use clap::Args;
use serde::{Deserialize, Serialize};

use super::broadcast::{BARRIER, Receivers, RunIds, StallPlan};
use super::{CpuMeter, Used, parse_positive, parse_size, run_number};
use crate::behaviour::{ClientBehaviour, cpus_of_worker};
use crate::bench::Bench;
use crate::client::{Engine, Target};
use crate::ledger::Accounting;
use crate::payload::Stamp;
use crate::proc::CpuTime;
use crate::progress::Progress;
use crate::report::{CpuReport, Report};
use crate::stats::Latency;
use crate::sys;
use crate::workers::{Board, Figure, Phase, Workers, share_of};

/// The process of the demo that sends each message to every other channel.
pub(crate) const RELAY: &str = "relay:pushring:sys";

/// Settings of `fanout`.
#[derive(Debug, Clone, Args, Serialize)]
pub(crate) struct WindowSettings {
    /// Clients that receive.
    #[arg(long, default_value_t = 1000)]
    pub clients: usize,
    /// Bytes of a message.
    #[arg(long, default_value = "128", value_parser = parse_size)]
    pub size: usize,
    /// Messages in flight: the next is sent when all clients have the oldest.
    #[arg(long, default_value_t = 1)]
    pub in_flight: u64,
    /// The publisher writes each message on its own, instead of several in one write.
    #[arg(long)]
    pub(crate) write_each: bool,
    /// Messages to publish.
    #[arg(long, default_value_t = 500)]
    pub messages: u64,
    /// Publish for this long instead, in seconds.
    #[arg(long, conflicts_with_all = ["messages", "stall"], value_parser = parse_positive)]
    pub seconds: Option<f64>,
    /// The number of clients that stop reading for a while, each at its own time.
    #[arg(long, default_value_t = 0)]
    pub stall: usize,
    /// For how many messages each of these clients stops reading.
    #[arg(long, default_value_t = 100)]
    pub stall_messages: u64,
    /// Receive buffer of the clients that stall, in bytes: small, so that what they do not read waits in the server.
    #[arg(long, default_value_t = 8192)]
    pub stall_buffer: usize,
    /// Clients read only after everything was published, and each message waits until the server is idle: this
    /// measures the server while no other program needs a CPU. All messages must fit the sockets' buffers.
    #[arg(long, conflicts_with_all = ["seconds", "stall", "processes"])]
    pub read_after: bool,
    /// OS processes to share the clients among (one opens at most `ulimit -n` sockets).
    #[arg(long, default_value_t = 1)]
    pub processes: usize,
}

/// Settings of `paced`.
#[derive(Debug, Clone, Args, Serialize)]
pub(crate) struct PacedSettings {
    /// Clients that receive.
    #[arg(long, default_value_t = 1000)]
    pub clients: usize,
    /// Bytes of a message.
    #[arg(long, default_value = "128", value_parser = parse_size)]
    pub size: usize,
    /// Messages published each second.
    #[arg(long, default_value_t = 20.0, value_parser = parse_positive)]
    pub rate: f64,
    /// For how long, in seconds.
    #[arg(long, default_value_t = 5.0, value_parser = parse_positive)]
    pub seconds: f64,
    /// This many additional clients stop reading at the first message, for good. Only the deliveries of the others
    /// count.
    #[arg(long, default_value_t = 0)]
    pub stuck: usize,
    /// OS processes to share the clients among.
    #[arg(long, default_value_t = 1)]
    pub processes: usize,
}

/// When the publisher sends.
#[derive(Debug, Clone, Copy)]
enum Schedule {
    Window { in_flight: u64, write_each: bool, messages: u64, seconds: Option<f64> },
    Paced { interval_ns: f64, messages: u64 },
    ReadAfter { messages: u64 },
}

/// Options of both modes.
#[derive(Debug, Clone)]
struct Plan {
    clients: usize,
    size: usize,
    processes: usize,
    schedule: Schedule,
    stalling: usize,
    stall_messages: u64,
    stall_buffer: usize,
    stuck: usize,
    ids: RunIds,
}

/// The results of one worker.
#[derive(Debug, Serialize, Deserialize)]
struct Outcome {
    accounting: Accounting,
    latency: Vec<(u64, u64)>,
    busy: f64,
}

/// Runs `fanout`.
pub(crate) fn run_window(bench: &mut Bench, settings: &WindowSettings) -> anyhow::Result<Report> {
    if settings.stall >= settings.clients && settings.stall > 0 {
        bail!("--stall must be below --clients: the clients that read set the pace");
    }
    if settings.in_flight == 0 || settings.messages == 0 {
        bail!("--in-flight and --messages must be at least 1");
    }
    let plan = Plan {
        clients: settings.clients,
        size: settings.size,
        processes: settings.processes,
        schedule: if settings.read_after {
            Schedule::ReadAfter { messages: settings.messages }
        } else {
            let &WindowSettings { in_flight, write_each, messages, seconds, .. } = settings;
            Schedule::Window { in_flight, write_each, messages, seconds }
        },
        stalling: settings.stall,
        stall_messages: settings.stall_messages,
        stall_buffer: settings.stall_buffer,
        stuck: 0,
        ids: new_ids(),
    };
    run(bench, &plan, "fanout", serde_json::to_value(settings)?)
}

/// Runs `paced`.
pub(crate) fn run_paced(bench: &mut Bench, settings: &PacedSettings) -> anyhow::Result<Report> {
    let plan = Plan {
        clients: settings.clients,
        size: settings.size,
        processes: settings.processes,
        schedule: Schedule::Paced {
            interval_ns: 1e9 / settings.rate,
            messages: (settings.rate * settings.seconds).ceil() as u64,
        },
        stalling: 0,
        stall_messages: 0,
        stall_buffer: 0,
        stuck: settings.stuck,
        ids: new_ids(),
    };
    run(bench, &plan, "paced", serde_json::to_value(settings)?)
}

fn new_ids() -> RunIds {
    let run = run_number();
    RunIds { run, warm: !run }
}

fn run(bench: &mut Bench, plan: &Plan, mode: &str, settings: serde_json::Value) -> anyhow::Result<Report> {
    if plan.clients == 0 || plan.processes == 0 {
        bail!("--clients and --processes must be at least 1");
    }
    let behaviour = &bench.behaviour;
    let target = bench.server.target(RELAY, behaviour)?;
    let board = Board::new(plan.processes)?;
    let crew = Workers::start(&board, |worker| follow(&board, worker, plan, &target, behaviour))?;
    let led = lead(&board, &crew, plan, &target, bench);
    if led.is_err() {
        bench.server.check_alive()?;
    }
    let (mut outcome, timing) = led?;
    let mut latency = Latency::default();
    latency.add_pairs(&outcome.latency);
    for other in crew.join::<Outcome>()? {
        outcome.accounting.merge(&other.accounting);
        outcome.busy = outcome.busy.max(other.busy);
        latency.add_pairs(&other.latency);
    }
    let count = outcome.accounting.delivered;
    Ok(Report {
        mode: mode.to_owned(),
        server: bench.server.name.clone(),
        url: bench.server.url.clone(),
        settings,
        unit: "delivery".to_owned(),
        count,
        seconds: timing.seconds,
        per_second: count as f64 / timing.seconds,
        // Unread messages have no latency.
        latency: latency.summary().filter(|_| !matches!(plan.schedule, Schedule::ReadAfter { .. })),
        accounting: outcome.accounting,
        cpu: timing.used.server.map(|total| CpuReport::new(total, count, timing.seconds)),
        memory: None,
        client_busy: outcome.busy,
        others_us: timing.used.others_us,
        notes: timing.note.into_iter().collect(),
    }
    .judge(bench.server.cpus))
}

/// Measurements of worker 0 alone.
struct Timing {
    seconds: f64,
    used: Used,
    note: Option<String>,
}

/// One process' part of the run.
struct Worker<'a> {
    number: usize,
    board: &'a Board,
    engine: Engine,
    receivers: Receivers,
    patience_ns: u64,
}

impl<'a> Worker<'a> {
    fn new(
        board: &'a Board,
        number: usize,
        plan: &Plan,
        target: &Target,
        behaviour: &ClientBehaviour,
    ) -> anyhow::Result<(Self, usize)> {
        let cpus = cpus_of_worker(&behaviour.cpus, number);
        if !cpus.is_empty() {
            sys::pin_to(&cpus)?;
        }
        let clients = share_of(plan.clients, plan.processes, number);
        let first: usize = (0..number).map(|worker| share_of(plan.stalling, plan.processes, worker)).sum();
        let spread = match plan.schedule {
            Schedule::Window { messages, .. } => messages / 2,
            Schedule::Paced { .. } | Schedule::ReadAfter { .. } => 0,
        };
        let stalling = share_of(plan.stalling, plan.processes, number);
        let stalls = StallPlan { clients: stalling, messages: plan.stall_messages, spread, first };
        let receivers = Receivers::new(plan.ids, plan.size, clients, number == 0, stalls);
        let engine = Engine::new(target.clone(), behaviour.pace_of(plan.processes)?)?;
        let patience_ns = behaviour.patience.as_nanos() as u64;
        Ok((Self { number, board, engine, receivers, patience_ns }, clients))
    }

    /// Opens all connections of this worker; the publisher's is the last.
    fn connect(&mut self, clients: usize, plan: &Plan, behaviour: &ClientBehaviour) -> anyhow::Result<()> {
        // Worker 0's connections: the receivers, the publisher, then those that will be stuck.
        let total = clients + if self.number == 0 { 1 + plan.stuck } else { 0 };
        let stalling = share_of(plan.stalling, plan.processes, self.number);
        let buffer = |client| (client < stalling).then_some(plan.stall_buffer);
        let (board, number) = (self.board, self.number);
        let mut bar = (number == 0).then(|| Progress::new("connecting", plan.clients as u64));
        let progress = |open| {
            board.show(number, Figure::Open, open as u64);
            if let Some(bar) = &mut bar {
                bar.set(board.sum(Figure::Open));
            }
        };
        self.engine.connect_all(0, total, behaviour.patience, buffer, &mut self.receivers, progress)?;
        if let Some(closure) = self.receivers.ledger.accounting.closures.first() {
            let closed = self.receivers.ledger.accounting.closed;
            bail!("{closed} of {total} connections did not open; {closure}");
        }
        Ok(())
    }

    /// Handles what is ready and shows the others where this worker is.
    fn step(&mut self, timeout_ms: i32) -> anyhow::Result<()> {
        self.engine.poll(timeout_ms, &mut self.receivers)?;
        let published = self.board.published();
        let draining = self.board.phase() >= Phase::Drain;
        self.receivers.apply_stalls(&mut self.engine, published, draining);
        self.board.show(self.number, Figure::Reached, self.receivers.reached);
        self.board.show(self.number, Figure::Warm, self.receivers.warm);
        self.board.show(self.number, Figure::Complete, self.receivers.window.complete(published));
        Ok(())
    }

    /// Reads until everything published has come, or nothing comes any more.
    fn drain(&mut self) -> anyhow::Result<()> {
        let published = self.board.published();
        let start_ns = sys::now_ns();
        // With connections gone the rest cannot become complete: wait only for what is on its way.
        let gone = self.receivers.ledger.accounting.closed > 0;
        let patience_ns = if gone { self.patience_ns.min(500_000_000) } else { self.patience_ns };
        while self.receivers.ledger.outstanding(published) > 0 && self.board.phase() != Phase::End {
            self.step(10)?;
            let last_ns = self.receivers.last_arrival_ns.max(start_ns);
            if sys::now_ns().saturating_sub(last_ns) > patience_ns {
                break;
            }
        }
        self.board.show(self.number, Figure::LastArrival, self.receivers.last_arrival_ns);
        self.board.show(self.number, Figure::Done, 1);
        Ok(())
    }

    fn outcome(self, busy_ns: u64, start_ns: u64) -> Outcome {
        let elapsed_ns = self.board.max(Figure::LastArrival).saturating_sub(start_ns).max(1);
        Outcome {
            latency: self.receivers.latency.pairs(),
            busy: (busy_ns as f64 / elapsed_ns as f64).min(1.0),
            accounting: self.receivers.ledger.finish(self.board.published()),
        }
    }
}

/// Workers 1..: receive until worker 0 says that it is over.
fn follow(
    board: &Board,
    number: usize,
    plan: &Plan,
    target: &Target,
    behaviour: &ClientBehaviour,
) -> anyhow::Result<Outcome> {
    let (mut worker, clients) = Worker::new(board, number, plan, target, behaviour)?;
    worker.connect(clients, plan, behaviour)?;
    while board.phase() < Phase::Run {
        worker.step(10)?;
    }
    let (start_ns, busy_before) = (sys::now_ns(), worker.engine.busy_ns());
    while board.phase() == Phase::Run {
        worker.step(10)?;
    }
    worker.drain()?;
    let busy_ns = worker.engine.busy_ns() - busy_before;
    // Connections stay open until all workers are done: a close would cost the server time that is being measured.
    while board.phase() < Phase::End {
        worker.step(10)?;
    }
    Ok(worker.outcome(busy_ns, start_ns))
}

/// Worker 0: publishes, and decides.
fn lead(
    board: &Board,
    crew: &Workers<'_>,
    plan: &Plan,
    target: &Target,
    bench: &Bench,
) -> anyhow::Result<(Outcome, Timing)> {
    let behaviour = &bench.behaviour;
    let (mut worker, clients) = Worker::new(board, 0, plan, target, behaviour)?;
    worker.connect(clients, plan, behaviour)?;
    let all = (plan.clients + 1 + plan.stuck) as u64;
    wait_until(&mut worker, crew, "all workers to connect", || board.sum(Figure::Open) >= all)?;
    let mut publisher = Publisher { client: clients, plan, payload: Vec::new(), warm_sent: 0 };
    board.set_phase(Phase::Warm);
    publisher.warm_up(&mut worker, crew)?;

    let meter = CpuMeter::start(&bench.server)?;
    let (start_ns, busy_before) = (sys::now_ns(), worker.engine.busy_ns());
    board.set_phase(Phase::Run);
    let mut send_phase_ns = None;
    let note = match plan.schedule {
        Schedule::Window { in_flight, write_each, messages, seconds } => {
            publisher.publish_window(&mut worker, crew, (in_flight, write_each), messages, seconds)?
        }
        Schedule::Paced { interval_ns, messages } => {
            publisher.publish_paced(&mut worker, crew, interval_ns, messages)?
        }
        Schedule::ReadAfter { messages } => {
            send_phase_ns = Some(publisher.publish_unread(&mut worker, &bench.server.pids, messages)?);
            None
        }
    };
    board.set_phase(Phase::Drain);
    worker.drain()?;
    let workers = plan.processes as u64;
    wait_until(&mut worker, crew, "all workers to drain", || board.sum(Figure::Done) == workers)?;
    let mut used = meter.stop()?;
    if plan.processes > 1 {
        // The other workers are not strangers, and what they used is not known here.
        used.others_us = None;
    }
    worker.receivers.release_stuck(&mut worker.engine, plan.stuck)?;
    let note = note.or_else(|| worker.receivers.stuck_closed.take());
    let busy_ns = worker.engine.busy_ns() - busy_before;
    let until_last_ns = board.max(Figure::LastArrival).saturating_sub(start_ns).max(1);
    let seconds = send_phase_ns.unwrap_or(until_last_ns) as f64 / 1e9;
    Ok((worker.outcome(busy_ns, start_ns), Timing { seconds, used, note }))
}

fn wait_until(
    worker: &mut Worker<'_>,
    crew: &Workers<'_>,
    what: &str,
    mut condition: impl FnMut() -> bool,
) -> anyhow::Result<()> {
    // Twice the patience: a worker that gives up by itself takes one to say so.
    let deadline_ns = sys::now_ns() + 2 * worker.patience_ns;
    while !condition() {
        crew.check()?;
        worker.step(10)?;
        if sys::now_ns() > deadline_ns {
            bail!("gave up waiting for {what}");
        }
    }
    Ok(())
}

/// The sending side.
struct Publisher<'a> {
    client: usize,
    plan: &'a Plan,
    payload: Vec<u8>,
    warm_sent: u64,
}

/// How long one message of the warm-up is given before another is sent.
const WARM_INTERVAL_NS: u64 = 200_000_000;

impl Publisher<'_> {
    fn queue(&mut self, worker: &mut Worker<'_>, stamp: Stamp) -> anyhow::Result<()> {
        self.payload.clear();
        stamp.write(self.plan.size, &mut self.payload);
        if worker.engine.send(self.client, &self.payload) {
            return Ok(());
        }
        let reason = worker.receivers.publisher_gone.clone().unwrap_or_else(|| "not open".into());
        bail!("the publisher's connection is gone: {reason}")
    }

    fn queue_counted(&mut self, worker: &mut Worker<'_>, sequence: u64, time_ns: u64) -> anyhow::Result<()> {
        let stamp = Stamp { run: self.plan.ids.run, client: self.client as u32, sequence, time_ns };
        self.queue(worker, stamp)?;
        worker.board.set_published(sequence + 1);
        Ok(())
    }

    fn queue_warm(&mut self, worker: &mut Worker<'_>, client: u32) -> anyhow::Result<()> {
        let stamp = Stamp { run: self.plan.ids.warm, client, sequence: self.warm_sent, time_ns: sys::now_ns() };
        self.warm_sent += 1;
        self.queue(worker, stamp)?;
        worker.engine.flush(self.client, &mut worker.receivers);
        Ok(())
    }

    /// A channel may become part of the audience a moment after its upgrade. So publish until each client has received
    /// something, then one last message, behind which nothing old is on its way.
    fn warm_up(&mut self, worker: &mut Worker<'_>, crew: &Workers<'_>) -> anyhow::Result<()> {
        let clients = self.plan.clients as u64;
        let board = worker.board;
        let deadline_ns = sys::now_ns() + worker.patience_ns;
        while board.sum(Figure::Reached) < clients {
            self.queue_warm(worker, 0)?;
            let next_ns = sys::now_ns() + WARM_INTERVAL_NS;
            while board.sum(Figure::Reached) < clients && sys::now_ns() < next_ns {
                worker.step(10)?;
                crew.check()?;
            }
            if sys::now_ns() > deadline_ns {
                let reached = board.sum(Figure::Reached);
                let reason = worker.receivers.ledger.accounting.closures.first().cloned().unwrap_or_default();
                bail!("only {reached} of {clients} clients got anything {reason}");
            }
        }
        self.queue_warm(worker, BARRIER)?;
        wait_until(worker, crew, "the warm-up to arrive", || board.sum(Figure::Warm) == clients)
    }

    /// The closed loop. Returns why it ended early, if it did.
    fn publish_window(
        &mut self,
        worker: &mut Worker<'_>,
        crew: &Workers<'_>,
        (in_flight, write_each): (u64, bool),
        messages: u64,
        seconds: Option<f64>,
    ) -> anyhow::Result<Option<String>> {
        let board = worker.board;
        let start_ns = sys::now_ns();
        let end_ns = seconds.map(|seconds| start_ns + (seconds * 1e9) as u64);
        let mut bar = Progress::new("publishing", if end_ns.is_some() { 0 } else { messages });
        let (mut sent, mut complete, mut moved_ns) = (0, 0, start_ns);
        loop {
            let now_ns = sys::now_ns();
            let over = end_ns.map_or(sent >= messages, |end_ns| now_ns >= end_ns);
            if over && complete >= sent {
                return Ok(None);
            }
            let before = sent;
            while sent < complete + in_flight && if end_ns.is_some() { !over } else { sent < messages } {
                self.queue_counted(worker, sent, now_ns)?;
                sent += 1;
                if write_each {
                    worker.engine.flush(self.client, &mut worker.receivers);
                }
            }
            if sent > before && !write_each {
                worker.engine.flush(self.client, &mut worker.receivers);
            }
            worker.step(10)?;
            let now_complete = board.min(Figure::Complete);
            if now_complete > complete {
                (complete, moved_ns) = (now_complete, now_ns);
                bar.set(complete);
            } else if let Some(note) = gave_up(worker, now_ns, moved_ns, complete) {
                return Ok(Some(note));
            }
            crew.check()?;
        }
    }

    /// The open loop: message `n` is due at `n` intervals, and its latency counts from then, late or not.
    fn publish_paced(
        &mut self,
        worker: &mut Worker<'_>,
        crew: &Workers<'_>,
        interval_ns: f64,
        messages: u64,
    ) -> anyhow::Result<Option<String>> {
        let start_ns = sys::now_ns();
        let mut bar = Progress::new("publishing", messages);
        let mut sent = 0;
        while sent < messages {
            let due_ns = start_ns + (sent as f64 * interval_ns) as u64;
            let now_ns = sys::now_ns();
            if now_ns >= due_ns {
                self.queue_counted(worker, sent, due_ns)?;
                worker.engine.flush(self.client, &mut worker.receivers);
                sent += 1;
                bar.set(sent);
            }
            // Whole milliseconds that are surely left; the rest is polled away.
            let wait_ms = due_ns.saturating_sub(now_ns) / 1_000_000;
            worker.step(wait_ms.min(10) as i32)?;
            crew.check()?;
        }
        Ok(None)
    }
}

/// The server has sent a message to all when it has used no CPU time for this long: some ticks, as the kernel brings a
/// running thread's time up to date only once in one.
const QUIET_NS: u64 = 12_000_000;

/// How often that is looked at; so exactly is the end of a message's sends known.
const LOOK: Duration = Duration::from_micros(500);

impl Publisher<'_> {
    /// Sends one message after the other while no client reads; returns how long the server was busy with them, in
    /// nanoseconds.
    fn publish_unread(&mut self, worker: &mut Worker<'_>, pids: &[u32], messages: u64) -> anyhow::Result<u64> {
        if pids.is_empty() {
            bail!("--read-after needs the server's processes: use --server-pid");
        }
        let mut bar = Progress::new("publishing", messages);
        worker.receivers.pause_all(&mut worker.engine, true);
        let mut busy_ns = 0;
        for sequence in 0..messages {
            let start_ns = sys::now_ns();
            self.queue_counted(worker, sequence, start_ns)?;
            worker.engine.flush(self.client, &mut worker.receivers);
            busy_ns += until_quiet(pids)?.saturating_sub(start_ns);
            bar.set(sequence);
        }
        worker.receivers.pause_all(&mut worker.engine, false);
        Ok(busy_ns)
    }
}

/// Waits until the server is idle, asleep so that all CPUs are the server's, and returns since when it is.
fn until_quiet(pids: &[u32]) -> anyhow::Result<u64> {
    let (mut seen, mut changed_ns) = (CpuTime::of(pids)?, sys::now_ns());
    loop {
        std::thread::sleep(LOOK);
        let (now, now_ns) = (CpuTime::of(pids)?, sys::now_ns());
        if now != seen {
            (seen, changed_ns) = (now, now_ns);
        } else if now_ns - changed_ns > QUIET_NS {
            return Ok(changed_ns);
        }
    }
}

fn gave_up(worker: &Worker<'_>, now_ns: u64, moved_ns: u64, complete: u64) -> Option<String> {
    let accounting = &worker.receivers.ledger.accounting;
    if accounting.closed > 0 {
        return Some(format!("stopped publishing: the server closed {} connections", accounting.closed));
    }
    (now_ns.saturating_sub(moved_ns) > worker.patience_ns)
        .then(|| format!("stopped publishing: message {complete} did not reach everyone in time"))
}
