//! Opening connections: how many a second, at what cost, and what each costs while it is idle.
//!
//! First all idle clients are opened, held and closed again, then connections are opened and closed one after another.

use std::time::Duration;

use anyhow::{bail, ensure};
use clap::{Args, ValueEnum};
use serde::Serialize;

use super::fanout::RELAY;
use super::{CpuMeter, parse_amount, parse_positive};
use crate::behaviour::{ClientBehaviour, cpus_of_worker};
use crate::bench::Bench;
use crate::client::engine::CloseHow;
use crate::client::{Closure, Engine, Handler, Message, Outbox, Target};
use crate::ledger::Accounting;
use crate::proc::{KernelMemory, Memory};
use crate::progress::Progress;
use crate::report::{CpuReport, MemoryReport, Report};
use crate::server::Server;
use crate::stats::Latency;
use crate::sys;
use crate::workers::{Board, Figure, Phase, Workers, share_of};

/// Settings of `connect`.
#[derive(Debug, Clone, Args, Serialize)]
pub(crate) struct Settings {
    /// Connections to hold open idle; 0 skips that part.
    #[arg(long, default_value_t = 8000)]
    pub clients: usize,
    /// How long to hold them, in seconds.
    #[arg(long, default_value_t = 1.0, value_parser = parse_amount)]
    pub hold: f64,
    /// Connections to open and close again after that; 0 skips that part.
    #[arg(long, default_value_t = 10_000)]
    pub churn: u64,
    /// How many connections are opened and closed at a time.
    #[arg(long, default_value_t = 64)]
    pub concurrency: usize,
    /// Connections opened per second; without it, the next is opened as soon as one has ended.
    #[arg(long, value_parser = parse_positive)]
    pub(crate) rate: Option<f64>,
    /// How these connections are closed.
    #[arg(long, value_enum, default_value_t = How::Tcp)]
    pub close: How,
    /// Resume TLS sessions of a wss:// server, and fail where it gives no tickets; else each handshake is a full one.
    #[arg(long)]
    pub resumed: bool,
    /// OS processes to share the idle clients among.
    #[arg(long, default_value_t = 1)]
    pub processes: usize,
}

/// How a client disconnects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum How {
    /// TCP's FIN, without a close frame.
    Tcp,
    /// A reset.
    Reset,
    /// The closing handshake of RFC 6455.
    Handshake,
}

impl From<How> for CloseHow {
    fn from(how: How) -> Self {
        match how {
            How::Tcp => Self::Tcp,
            How::Reset => Self::Reset,
            How::Handshake => Self::Handshake,
        }
    }
}

/// Connections opened before the baseline is taken and closed again, so that what a server allocates once does not
/// count as the channels'.
const FIRST_TOUCH: usize = 64;

/// How long a server is given to notice that connections have closed before its memory is read.
const SETTLE: Duration = Duration::from_millis(500);

/// Only counts what ends against our will.
#[derive(Default)]
struct Holding {
    accounting: Accounting,
}

impl Handler for Holding {
    fn message(&mut self, _: usize, _: &Message<'_>, _: u64, _: &mut Outbox<'_>) {}

    fn closed(&mut self, client: usize, closure: &Closure) {
        self.accounting.note_closure(client, &closure.reason);
    }
}

/// Runs `connect`.
pub(crate) fn run(bench: &mut Bench, settings: &Settings) -> anyhow::Result<Report> {
    if settings.processes == 0 || settings.concurrency == 0 {
        bail!("--processes and --concurrency must be at least 1");
    }
    if settings.rate.is_some_and(|rate| rate < 1.0) {
        bail!("--rate must be at least 1 connection a second");
    }
    let mut behaviour = bench.behaviour.clone();
    behaviour.tls_options.resumes = settings.resumed;
    let target = bench.server.target(RELAY, &behaviour)?;
    let mut report = Report {
        mode: "connect".to_owned(),
        server: bench.server.name.clone(),
        url: bench.server.url.clone(),
        settings: serde_json::to_value(settings)?,
        unit: "connection".to_owned(),
        ..Report::default()
    };
    if settings.clients > 0 {
        let (memory, accounting) = hold(&bench.server, settings, &target, &behaviour)?;
        report.memory = memory;
        report.accounting.merge(&accounting);
        if memory.is_none() {
            report.notes.push("the server's processes are unknown: no memory figures (use --server-pid)".into());
        }
    }
    if settings.churn > 0 {
        churn(&bench.server, settings, target, &behaviour, &mut report)?;
    }
    bench.server.check_alive()?;
    Ok(report.judge(bench.server.cpus))
}

/// Opens and holds `settings.clients` connections; returns what they cost.
fn hold(
    server: &Server,
    settings: &Settings,
    target: &Target,
    behaviour: &ClientBehaviour,
) -> anyhow::Result<(Option<MemoryReport>, Accounting)> {
    let board = Board::new(settings.processes)?;
    let crew = Workers::start(&board, |worker| follow(&board, worker, settings, target, behaviour))?;
    let mut holding = Holding::default();
    let mut engine = Engine::new(target.clone(), behaviour.pace_of(settings.processes)?)?;
    engine.connect_all(0, FIRST_TOUCH, behaviour.patience, |_| None, &mut holding, |_| {})?;
    close_all(&mut engine, FIRST_TOUCH)?;
    wait(&mut engine, &mut holding, SETTLE)?;

    let before = look(server)?;
    board.set_phase(Phase::Run);
    let own = share_of(settings.clients, settings.processes, 0);
    let mut bar = Progress::new("connecting", settings.clients as u64);
    engine.connect_all(
        0,
        own,
        behaviour.patience,
        |_| None,
        &mut holding,
        |open| {
            board.show(0, Figure::Open, open as u64);
            bar.set(board.sum(Figure::Open));
        },
    )?;
    let deadline_ns = sys::now_ns() + behaviour.patience.as_nanos() as u64;
    while board.sum(Figure::Open) < settings.clients as u64 {
        crew.check()?;
        engine.poll(10, &mut holding)?;
        if sys::now_ns() > deadline_ns || holding.accounting.closed > 0 {
            let reason = holding.accounting.closures.first().cloned().unwrap_or_default();
            bail!("only {} of {} connections opened {reason}", board.sum(Figure::Open), settings.clients);
        }
    }
    wait(&mut engine, &mut holding, Duration::try_from_secs_f64(settings.hold)?)?;
    let open = look(server)?;
    let mut accounting = holding.accounting.clone();
    close_all(&mut engine, own)?;
    for other in crew.join::<Accounting>()? {
        accounting.merge(&other);
    }
    wait(&mut engine, &mut holding, SETTLE)?;
    let after = look(server)?;
    let memory = before
        .zip(open)
        .zip(after)
        .map(|((before, open), after)| memory_report(settings.clients as u64, before, open, after));
    Ok((memory, accounting))
}

fn follow(
    board: &Board,
    number: usize,
    settings: &Settings,
    target: &Target,
    behaviour: &ClientBehaviour,
) -> anyhow::Result<Accounting> {
    let cpus = cpus_of_worker(&behaviour.cpus, number);
    if !cpus.is_empty() {
        sys::pin_to(&cpus)?;
    }
    let mut holding = Holding::default();
    let mut engine = Engine::new(target.clone(), behaviour.pace_of(settings.processes)?)?;
    while board.phase() < Phase::Run {
        engine.poll(5, &mut holding)?;
    }
    let own = share_of(settings.clients, settings.processes, number);
    engine.connect_all(
        0,
        own,
        behaviour.patience,
        |_| None,
        &mut holding,
        |open| {
            board.show(number, Figure::Open, open as u64);
        },
    )?;
    while board.phase() < Phase::End {
        engine.poll(10, &mut holding)?;
    }
    Ok(holding.accounting)
}

fn close_all(engine: &mut Engine, clients: usize) -> anyhow::Result<()> {
    for client in 0..clients {
        engine.close(client, CloseHow::Tcp)?;
    }
    Ok(())
}

fn wait(engine: &mut Engine, holding: &mut Holding, time: Duration) -> anyhow::Result<()> {
    let end_ns = sys::now_ns() + time.as_nanos() as u64;
    while sys::now_ns() < end_ns {
        engine.poll(10, holding)?;
    }
    Ok(())
}

fn look(server: &Server) -> anyhow::Result<Option<(Memory, KernelMemory)>> {
    if server.pids.is_empty() {
        return Ok(None);
    }
    Ok(Some((Memory::of(&server.pids)?, KernelMemory::now()?)))
}

fn memory_report(
    channels: u64,
    (before, kernel_before): (Memory, KernelMemory),
    (open, kernel_open): (Memory, KernelMemory),
    (after, _): (Memory, KernelMemory),
) -> MemoryReport {
    let growth = |from: u64, to: u64| (to as f64 - from as f64) / channels as f64;
    MemoryReport {
        channels,
        rss_per_channel: growth(before.rss, open.rss),
        anonymous_per_channel: growth(before.anonymous, open.anonymous),
        pss_per_channel: growth(before.pss, open.pss),
        slab_both_ends_per_channel: growth(kernel_before.slab, kernel_open.slab),
        tcp_both_ends_per_channel: growth(kernel_before.tcp, kernel_open.tcp),
        available_both_ends_per_channel: growth(kernel_before.available, kernel_open.available),
        rss_before: before.rss,
        rss_open: open.rss,
        rss_after: after.rss,
    }
}

/// Connections that come and go.
struct Churning {
    started_ns: Vec<u64>,
    opened: Vec<usize>,
    gone: Vec<usize>,
    latency: Latency,
    accounting: Accounting,
}

impl Handler for Churning {
    fn opened(&mut self, client: usize, _: &mut Outbox<'_>) {
        self.latency.record(sys::now_ns() - self.started_ns[client]);
        self.opened.push(client);
    }

    fn message(&mut self, _: usize, _: &Message<'_>, _: u64, _: &mut Outbox<'_>) {}

    fn closed(&mut self, client: usize, closure: &Closure) {
        // A server may end the connection as soon as it has answered (the raw accept loop does): it was open, so that
        // is no failure.
        if !self.opened.contains(&client) {
            self.accounting.note_closure(client, &closure.reason);
        }
        self.gone.push(client);
    }
}

fn churn(
    server: &Server,
    settings: &Settings,
    target: Target,
    behaviour: &ClientBehaviour,
    report: &mut Report,
) -> anyhow::Result<()> {
    let slots = settings.concurrency.min(settings.churn as usize);
    let is_tls = target.tls.is_some();
    let mut engine = Engine::new(target, behaviour.pace)?;
    let mut churning = Churning {
        started_ns: vec![0; slots],
        opened: Vec::new(),
        gone: Vec::new(),
        latency: Latency::default(),
        accounting: Accounting::default(),
    };
    let meter = CpuMeter::start(server)?;
    let start_ns = sys::now_ns();
    let done = come_and_go(&mut engine, &mut churning, settings, slots, behaviour.patience)?;
    // The server's side of the last closes belongs to the bill.
    std::thread::sleep(Duration::from_millis(20));
    let used = meter.stop()?;
    let elapsed_ns = sys::now_ns() - start_ns;
    report.count = done;
    report.seconds = elapsed_ns as f64 / 1e9;
    report.per_second = done as f64 / report.seconds;
    report.latency = churning.latency.summary();
    report.others_us = used.others_us;
    report.cpu = used.server.map(|total| CpuReport::new(total, done, report.seconds));
    report.client_busy = engine.busy_ns() as f64 / elapsed_ns as f64;
    report.accounting.merge(&churning.accounting);
    if is_tls {
        let resumed = engine.resumed();
        report.notes.push(format!("TLS: {} full handshakes, {resumed} resumed", done.saturating_sub(resumed)));
        // The first of each slot has nothing to resume.
        let resumable = done.saturating_sub(slots as u64);
        ensure!(
            !settings.resumed || resumed * 10 >= resumable * 9,
            "of {resumable} connections that could have resumed a session, {resumed} did: the server gives no tickets, or \
             does not take them"
        );
    }
    Ok(())
}

fn come_and_go(
    engine: &mut Engine,
    churning: &mut Churning,
    settings: &Settings,
    slots: usize,
    patience: Duration,
) -> anyhow::Result<u64> {
    let mut bar = Progress::new("opening", settings.churn);
    let (mut started, mut done) = (0, 0);
    let mut free: Vec<usize> = (0..slots).collect();
    let mut leaving = Vec::new();
    let start_ns = sys::now_ns();
    let mut moved_ns = start_ns;
    while done < settings.churn {
        let due = settings.rate.map_or(settings.churn, |rate| ((sys::now_ns() - start_ns) as f64 / 1e9 * rate) as u64);
        while started < settings.churn.min(due)
            && let Some(client) = free.pop()
        {
            churning.started_ns[client] = sys::now_ns();
            engine.start(client, None)?;
            started += 1;
        }
        if engine.poll(if settings.rate.is_some() { 1 } else { 10 }, churning)? > 0 {
            moved_ns = sys::now_ns();
        } else if sys::now_ns() - moved_ns > patience.as_nanos() as u64 {
            bail!("gave up after {done} connections: none was opened or closed within --patience");
        }
        for client in std::mem::take(&mut churning.opened) {
            engine.close(client, settings.close.into())?;
            leaving.push(client);
        }
        // A connection that failed is gone without having been open.
        for client in std::mem::take(&mut churning.gone) {
            if !leaving.contains(&client) {
                leaving.push(client);
            }
        }
        leaving.retain(|&client| {
            let ended = !engine.is_alive(client);
            if ended {
                free.push(client);
                done += 1;
            }
            !ended
        });
        bar.set(done);
    }
    Ok(done)
}
