//! Servers side by side in one run, interleaved A B C A B C, so that a slow phase of the machine hits all alike.
//!
//! Invariants: every cell starts each server afresh (those that listen already excepted); a run that loses a message
//! or fails is shown as such and never averaged away.

pub(crate) mod fronts;
mod html;
pub(crate) mod matrix;
mod svg;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

use crate::behaviour::ClientBehaviour;
use crate::bench::{Bench, ServerArgs};
use crate::client::engine::Pace;
use crate::client::tls::TlsOptions;
use crate::modes::connect::How;
use crate::modes::{parse_amount, parse_positive};
use crate::progress::{self, Progress};
use crate::report::{Report, thousands};
use crate::server::{self, Ends, Launch, ServerSpec};
use crate::stats::Spread;
use crate::sys;
use fronts::Front;
use matrix::{Cell, Job, Metric, Scale};

/// Settings of `compare` and `limit`.
#[derive(Debug, Clone, Args)]
pub(crate) struct CompareArgs {
    /// How often each cell is run with each server.
    #[arg(long, default_value_t = 5)]
    pub runs: usize,
    /// How long a run publishes, in seconds.
    #[arg(long, default_value_t = 1.0, value_parser = parse_positive)]
    pub seconds: f64,
    /// Clients of the smaller fan-outs.
    #[arg(long, default_value_t = 1000)]
    pub few: usize,
    /// Clients of the larger fan-outs, and idle channels.
    #[arg(long, default_value_t = 8000)]
    pub many: usize,
    /// Connections of the handshake cell.
    #[arg(long, default_value_t = 5000)]
    pub churn: u64,
    /// Only cells whose key contains one of these; `stuck` for the test with a stuck client.
    #[arg(long, alias = "only", value_name = "KEY", value_delimiter = ',')]
    pub cells: Vec<String>,
    /// The pushring program [default: `pushring` beside this program].
    #[arg(long, value_name = "PROGRAM")]
    pub start: Option<PathBuf>,
    /// Compare without pushring.
    #[arg(long)]
    pub without_pushring: bool,
    /// Reference servers.
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["warp", "tungstenite"])]
    pub references: Vec<Reference>,
    /// A server that listens already and broadcasts what a client sends to the others: NAME=URL@PID[+PID…].
    #[arg(long, value_name = "NAME=URL@PID")]
    pub extra: Vec<String>,
    /// A server to start afresh for each run, in all cells: NAME=PROGRAM. It serves the paths of the demo's processes
    /// (echo, relay, unicast, sink, and rooms by their paths), is
    /// called with `--listen 127.0.0.1:0`, prints `listening on http://ADDRESS` and ends on SIGTERM.
    #[arg(long, value_name = "NAME=PROGRAM")]
    pub rival: Vec<String>,
    /// TLS 1.3 instead: pushring's own, where the program has it; nginx and HAProxy in front of it, where they are
    /// installed; tokio-rustls with tungstenite; and pushring without TLS. One certificate and key exchange for all.
    #[arg(long)]
    pub tls: bool,
    /// CPUs of the servers.
    #[arg(long, value_delimiter = ',', default_value = "0")]
    pub server_cpus: Vec<usize>,
    /// CPUs of this program.
    #[arg(long, value_delimiter = ',', default_value = "1")]
    pub client_cpus: Vec<usize>,
    /// Shards of pushring [default: one for each CPU of the servers].
    #[arg(long)]
    pub shards: Option<usize>,
    /// Wait in the kernel instead of spinning.
    #[arg(long)]
    pub no_spin: bool,
    /// How long the test with a stuck client publishes, in seconds; 0 skips it.
    #[arg(long, default_value_t = 5.0, value_parser = parse_amount)]
    pub stuck_seconds: f64,
    /// Write everything as JSON.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Write a self-contained HTML report.
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
}

/// The references that may take part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Reference {
    /// A node's HTTP server as it is today, rebuilt on warp.
    Warp,
    /// The same node with pushring in place of that server.
    Node,
    /// tokio-tungstenite, one task per connection, broadcasts encoded once.
    Tungstenite,
    /// pushring whose processes are attached over a link; the CPU of both OS processes is counted.
    Link,
    /// pushring whose clients ask for channels that outlive their connections, so that what they receive is kept.
    Resumable,
}

/// Everything a comparison found.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Comparison {
    /// The machine it ran on.
    pub machine: Machine,
    /// Runs of each cell.
    pub runs: usize,
    /// The base of the ratios.
    pub subject: String,
    /// The servers, in order.
    pub servers: Vec<String>,
    /// The cells.
    pub cells: Vec<CellResult>,
    /// The test with a stuck client, per server.
    pub stuck: Vec<Series>,
}

/// Where the figures come from.
#[derive(Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub(crate) struct Machine {
    pub kernel: String,
    pub cpu: String,
    pub cpus: usize,
    pub server_cpus: Vec<usize>,
    pub client_cpus: Vec<usize>,
}

impl Machine {
    fn look(args: &CompareArgs) -> anyhow::Result<Self> {
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo")?;
        let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
        Ok(Self {
            kernel: std::fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            cpu: model.map_or("unknown", |(_, model)| model.trim()).to_owned(),
            cpus: cpuinfo.lines().filter(|line| line.starts_with("processor")).count(),
            server_cpus: args.server_cpus.clone(),
            client_cpus: args.client_cpus.clone(),
        })
    }
}

/// One cell with every server.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct CellResult {
    /// Its short name.
    pub key: String,
    /// Its title.
    pub title: String,
    /// The figures compared.
    pub metrics: Vec<Metric>,
    /// Per server.
    pub series: Vec<Series>,
}

/// The runs of one server in one cell.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Series {
    /// The server.
    pub server: String,
    /// The report of each run.
    pub reports: Vec<Report>,
    /// Runs that failed, and why.
    pub failures: Vec<String>,
}

impl Series {
    fn new(server: &str) -> Self {
        Self { server: server.to_owned(), reports: Vec::new(), failures: Vec::new() }
    }

    /// Median and ends of a figure over the runs.
    pub(crate) fn spread(&self, metric: Metric) -> Option<Spread> {
        self.spread_of(|report| metric.of(report))
    }

    /// Median and ends of anything a report has.
    pub(crate) fn spread_of(&self, figure: impl Fn(&Report) -> Option<f64>) -> Option<Spread> {
        Spread::of(&self.reports.iter().filter_map(figure).collect::<Vec<_>>())
    }

    /// No run failed or lost anything.
    pub(crate) fn is_clean(&self) -> bool {
        self.failures.is_empty() && self.reports.iter().all(Report::is_clean)
    }
}

/// A server and the cells it takes part in.
struct Contender {
    spec: ServerSpec,
    kind: ContenderKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ContenderKind {
    Full,
    /// All but what only the demo's own processes do: rooms, and taking messages without an answer.
    Reference,
    /// Work of its threads: broadcasts, echoes and unicasts.
    OnThreads,
    /// Only fan-out and paced.
    BroadcastOnly,
    /// The same, to channels that outlive their connections.
    Resumable,
    /// The floor of pushes.
    RawPush,
    /// The floor of handshakes, which ends every connection itself.
    RawAccept,
    /// The floor of connections that their clients end.
    RawSession,
}

impl Contender {
    /// The job as this server can do it, if it can.
    fn job(&self, job: &Job) -> Option<Job> {
        match (self.kind, job) {
            (ContenderKind::Full, job) => Some(job.clone()),
            (ContenderKind::Reference, Job::Rooms(_) | Job::Inbound(_)) => None,
            (ContenderKind::Reference, job) => Some(job.clone()),
            (ContenderKind::OnThreads, Job::Fanout(_) | Job::Paced(_) | Job::Echo(_) | Job::Unicast(_)) => {
                Some(job.clone())
            }
            (ContenderKind::BroadcastOnly | ContenderKind::Resumable, Job::Fanout(_) | Job::Paced(_)) => {
                Some(job.clone())
            }
            (ContenderKind::RawPush, Job::Fanout(_)) => Some(job.clone()),
            (ContenderKind::RawPush, Job::Unicast(settings)) => {
                let mut settings = settings.clone();
                settings.bursts = true;
                Some(Job::Unicast(settings))
            }
            (ContenderKind::RawAccept, Job::Connect(settings)) if settings.close == How::Handshake => None,
            (ContenderKind::RawAccept | ContenderKind::RawSession, Job::Connect(settings)) if settings.clients == 0 => {
                Some(job.clone())
            }
            _ => None,
        }
    }
}

fn raw_contenders(args: &CompareArgs) -> anyhow::Result<Vec<Contender>> {
    let raw = |name: &str, kind| -> anyhow::Result<Contender> {
        Ok(Contender { spec: ServerSpec::reference(name, &args.server_cpus)?, kind })
    };
    Ok(vec![
        raw("raw-ring", ContenderKind::RawPush)?,
        raw("raw-send", ContenderKind::RawPush)?,
        raw("raw-accept", ContenderKind::RawAccept)?,
        raw("raw-session", ContenderKind::RawSession)?,
    ])
}

fn pushring(args: &CompareArgs) -> anyhow::Result<ServerSpec> {
    let program = ServerArgs::find_pushring(args.start.as_ref())?;
    let shards = args.shards.unwrap_or(args.server_cpus.len().max(1));
    Ok(ServerSpec::pushring(program, shards, &args.server_cpus))
}

fn contenders(args: &CompareArgs) -> anyhow::Result<Vec<Contender>> {
    let mut list = Vec::new();
    if !args.without_pushring {
        let spec = pushring(args)?;
        list.push(Contender { spec: spec.clone(), kind: ContenderKind::Full });
        list.push(Contender { spec: spec.on_threads(), kind: ContenderKind::OnThreads });
    }
    for reference in &args.references {
        let (name, kind) = match reference {
            Reference::Resumable => {
                let spec = ServerSpec { name: "resumable".into(), ..pushring(args)? };
                list.push(Contender { spec, kind: ContenderKind::Resumable });
                continue;
            }
            Reference::Warp => ("warp", ContenderKind::Reference),
            Reference::Node => ("node", ContenderKind::Reference),
            Reference::Tungstenite => ("tungstenite", ContenderKind::Reference),
            Reference::Link => ("link", ContenderKind::OnThreads),
        };
        list.push(Contender { spec: ServerSpec::reference(name, &args.server_cpus)?, kind });
    }
    for rival in &args.rival {
        list.push(Contender { spec: parse_rival(rival, args)?, kind: ContenderKind::Full });
    }
    for extra in &args.extra {
        list.push(Contender { spec: parse_extra(extra, args)?, kind: ContenderKind::BroadcastOnly });
    }
    list.extend(raw_contenders(args)?);
    Ok(list)
}

/// Those that speak TLS, by the chain and key in `pem`, and pushring without it.
fn tls_contenders(args: &CompareArgs, pem: &Path) -> anyhow::Result<Vec<Contender>> {
    let mut list = Vec::new();
    let full = |spec| Contender { spec, kind: ContenderKind::Full };
    if !args.without_pushring {
        let plain = pushring(args)?;
        match plain.clone().with_tls(pem)? {
            Some(own) => list.push(full(own)),
            None => println!("pushring with TLS: skipped; this program was built without it (no --tls-listen)"),
        }
        for front in [Front::Nginx, Front::Haproxy] {
            match front.program() {
                Some(_) => list.push(full(plain.clone().behind(front, pem))),
                None => println!("{0} + pushring: skipped; {0} is not installed", front.name()),
            }
        }
        list.push(full(ServerSpec { name: "plain".to_owned(), ..plain }));
    }
    let reference = ServerSpec::reference("tungstenite", &args.server_cpus)?.reference_with_tls(pem);
    list.push(full(ServerSpec { name: "tokio-rustls".to_owned(), ..reference }));
    for rival in &args.rival {
        list.push(full(ServerSpec { tls: Some(Ends::There), ..parse_rival(rival, args)? }));
    }
    Ok(list)
}

fn parse_rival(rival: &str, args: &CompareArgs) -> anyhow::Result<ServerSpec> {
    let (name, program) = rival.split_once('=').with_context(|| format!("--rival {rival}: expected NAME=PROGRAM"))?;
    let arguments = ["--listen", "127.0.0.1:0"].map(str::to_owned).to_vec();
    let launch = Launch::Start { program: program.into(), arguments };
    Ok(ServerSpec { name: name.to_owned(), launch, cpus: args.server_cpus.clone(), tls: None, prefix: "" })
}

fn parse_extra(extra: &str, args: &CompareArgs) -> anyhow::Result<ServerSpec> {
    let form = || format!("--extra {extra}: expected NAME=URL@PID[+PID…]");
    let (name, rest) = extra.split_once('=').with_context(form)?;
    let (url, pids) = rest.rsplit_once('@').with_context(form)?;
    let pids = pids.split('+').map(str::parse).collect::<Result<Vec<u32>, _>>().with_context(form)?;
    let launch = Launch::Listening { url: url.to_owned(), pids };
    Ok(ServerSpec { name: name.to_owned(), launch, cpus: args.server_cpus.clone(), tls: None, prefix: "" })
}

/// Runs `compare`; true when every run of the first server was clean.
pub(crate) fn run(args: &CompareArgs) -> anyhow::Result<bool> {
    let scale = Scale { seconds: args.seconds, few: args.few, many: args.many, churn: args.churn };
    if args.tls {
        let certificate = server::make_certificate()?;
        return measure(args, matrix::tls_cells(scale), tls_contenders(args, &certificate.path)?, 0.0);
    }
    measure(args, matrix::cells(scale), contenders(args)?, args.stuck_seconds)
}

/// Runs `limit`: the floors alone, over connections and sizes.
pub(crate) fn run_limit(args: &CompareArgs) -> anyhow::Result<bool> {
    let mut cells = Vec::new();
    for (clients, size) in [
        (args.few, 32),
        (args.many, 32),
        (args.few, 128),
        (args.many, 128),
        (args.few, 1024),
        (args.many, 1024),
        (args.few, 16 * 1024),
        (args.many, 16 * 1024),
    ] {
        cells.push(matrix::fanout_cell(clients, size, 1, args.seconds));
    }
    cells.push(matrix::fanout_cell(args.few, 128, 16, args.seconds));
    cells.push(matrix::unicast_cell(args.few, args.seconds));
    cells.push(matrix::handshake_cell(args.churn, How::Tcp));
    cells.push(matrix::handshake_cell(args.churn, How::Handshake));
    measure(args, cells, raw_contenders(args)?, 0.0)
}

fn measure(
    args: &CompareArgs,
    mut cells: Vec<Cell>,
    contenders: Vec<Contender>,
    stuck_seconds: f64,
) -> anyhow::Result<bool> {
    cells.retain(|cell| args.cells.is_empty() || args.cells.iter().any(|part| cell.key.contains(part.as_str())));
    cells.retain(|cell| contenders.iter().any(|contender| contender.job(&cell.job).is_some()));
    if (cells.is_empty() && args.cells.iter().all(|part| part != "stuck")) || args.runs == 0 {
        bail!("nothing to compare: check --cells and --runs");
    }
    let behaviour = behaviour(args)?;
    let mut comparison = Comparison {
        machine: Machine::look(args)?,
        runs: args.runs,
        subject: contenders[0].spec.name.clone(),
        servers: contenders.iter().map(|contender| contender.spec.name.clone()).collect(),
        cells: Vec::new(),
        stuck: Vec::new(),
    };
    let stuck_wanted = stuck_seconds > 0.0 && (args.cells.is_empty() || args.cells.iter().any(|part| part == "stuck"));
    let able = cells.iter().map(|cell| contenders.iter().filter(|one| one.job(&cell.job).is_some()).count());
    let mut bar = Progress::new("starting", (able.sum::<usize>() * args.runs) as u64);
    progress::hide();
    for cell in &cells {
        let result = run_cell(cell, &contenders, args, &behaviour, &mut bar);
        bar.suspend(|| print!("{}", cell_table(&result, &comparison.subject)));
        comparison.cells.push(result);
        save(&comparison, args)?;
    }
    drop(bar);
    if stuck_wanted {
        comparison.stuck = run_stuck(&contenders, args.runs, stuck_seconds, &behaviour);
        print!("{}", stuck_table(&comparison.stuck));
        save(&comparison, args)?;
    }
    let series = comparison.cells.iter().flat_map(|cell| &cell.series).chain(&comparison.stuck);
    Ok(series.filter(|series| series.server == comparison.subject).all(Series::is_clean))
}

/// Writes what there is so far, so that a run that is broken off leaves something.
fn save(comparison: &Comparison, args: &CompareArgs) -> anyhow::Result<()> {
    if let Some(path) = &args.json {
        let json = serde_json::to_vec_pretty(comparison)?;
        std::fs::write(path, json).with_context(|| format!("writing {}", path.display()))?;
    }
    if let Some(path) = &args.html {
        std::fs::write(path, html::page(comparison)).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

fn behaviour(args: &CompareArgs) -> anyhow::Result<ClientBehaviour> {
    if !args.client_cpus.is_empty() {
        sys::pin_to(&args.client_cpus).context("pinning the load tester")?;
    }
    Ok(ClientBehaviour {
        pace: if args.no_spin { Pace::Block } else { Pace::Spin },
        cpus: args.client_cpus.clone(),
        patience: Duration::from_secs(10),
        sources: 16,
        token: None,
        resumable: false,
        // The common set: OpenSSL has the hybrid exchange only since 3.5.
        tls_options: TlsOptions { classic: true, ..TlsOptions::default() },
    })
}

fn run_cell(
    cell: &Cell,
    contenders: &[Contender],
    args: &CompareArgs,
    behaviour: &ClientBehaviour,
    bar: &mut Progress,
) -> CellResult {
    let able: Vec<(&Contender, Job)> =
        contenders.iter().filter_map(|contender| Some((contender, contender.job(&cell.job)?))).collect();
    let mut series: Vec<Series> = able.iter().map(|(contender, _)| Series::new(&contender.spec.name)).collect();
    for run in 0..args.runs {
        for ((contender, job), series) in able.iter().zip(&mut series) {
            bar.step(format!("{} {}/{} {}", cell.key, run + 1, args.runs, contender.spec.name));
            one_run(contender, job, behaviour, series);
        }
    }
    CellResult { key: cell.key.clone(), title: cell.title.clone(), metrics: cell.metrics.clone(), series }
}

/// Starts the server, runs the job, ends the server. A failure is a result like any other.
fn one_run(contender: &Contender, job: &Job, behaviour: &ClientBehaviour, series: &mut Series) {
    let result = contender.spec.start().and_then(|server| {
        let resumable = contender.kind == ContenderKind::Resumable;
        let mut bench = Bench::new(server, ClientBehaviour { resumable, ..behaviour.clone() });
        let result = within(RUN_MAX, || job.run(&mut bench));
        if result.is_err() {
            bench.server.check_alive()?;
        }
        result
    });
    match result {
        Ok(report) => series.reports.push(report),
        Err(error) => series.failures.push(format!("{error:#}")),
    }
}

/// The longest that one run may take, however the server behaves: many times what the slowest takes.
const RUN_MAX: Duration = Duration::from_secs(60);

/// Runs a job in a process of its own, which is ended when it takes longer than `limit`.
fn within(limit: Duration, job: impl FnOnce() -> anyhow::Result<Report>) -> anyhow::Result<Report> {
    let mut child = sys::fork(|mut pipe| {
        let result = job().map_err(|error| format!("{error:#}"));
        let written = serde_json::to_vec(&result).map(|json| pipe.write_all(&json));
        i32::from(!matches!(written, Ok(Ok(()))))
    })?;
    let report = sys::read_to_end_within(&mut child.report, limit)?;
    if report.is_none() {
        sys::terminate(child.pid)?;
    }
    let code = sys::wait_for(child.pid)?;
    let Some(report) = report else { bail!("gave up after {limit:?}") };
    let result: Result<Report, String> =
        serde_json::from_slice(&report).with_context(|| format!("the run ended with {code}"))?;
    result.map_err(anyhow::Error::msg)
}

fn run_stuck(contenders: &[Contender], runs: usize, seconds: f64, behaviour: &ClientBehaviour) -> Vec<Series> {
    let mut behaviour = behaviour.clone();
    // A server that stalls would never go on: see that, and do not wait long for it.
    behaviour.patience = Duration::from_secs(3);
    let job = Job::Paced(matrix::stuck_settings(seconds));
    let able = contenders.iter().filter(|contender| contender.job(&job).is_some());
    able.map(|contender| {
        let mut series = Series::new(&contender.spec.name);
        (0..runs).for_each(|_| one_run(contender, &job, &behaviour, &mut series));
        series
    })
    .collect()
}

fn figure(value: f64, metric: Metric) -> String {
    match metric {
        Metric::BytesPerChannel => format!("{} B", thousands(value.max(0.0) as u64)),
        _ if value < 1.0 => format!("{value:.3} {}", metric.unit()),
        _ => format!("{value:.2} {}", metric.unit()),
    }
}

fn metric_name(metric: Metric) -> &'static str {
    match metric {
        Metric::CpuPerUnit => "server CPU",
        Metric::BytesPerChannel => "resident",
        Metric::LatencyP50 => "p50",
        Metric::LatencyP99 => "p99",
    }
}

fn cell_table(cell: &CellResult, subject: &str) -> String {
    let mut text = format!("{}  [{}]\n", cell.title, cell.key);
    for &metric in &cell.metrics {
        let base = cell.series.iter().find(|series| series.server == subject).and_then(|own| own.spread(metric));
        for series in &cell.series {
            let line = match series.spread(metric) {
                Some(spread) => {
                    let ratio =
                        base.map_or(String::new(), |base| format!("  {:5.2} × {subject}", spread.median / base.median));
                    format!(
                        "{:>12}  [{} – {}]{ratio}",
                        figure(spread.median, metric),
                        figure(spread.min, metric),
                        figure(spread.max, metric)
                    )
                }
                None => "not measured".to_owned(),
            };
            let rate = series.spread_of(|report| Some(report.per_second)).filter(|_| metric == Metric::CpuPerUnit);
            let rate = rate.map_or(String::new(), |rate| format!("  {}/s", thousands(rate.median as u64)));
            let fault = if series.is_clean() { "" } else { "  NOT CLEAN" };
            text.push_str(&format!("  {:12} {:10} {line}{rate}{fault}\n", series.server, metric_name(metric)));
        }
    }
    for series in &cell.series {
        text.extend(series.failures.iter().map(|failure| format!("  {}: {failure}\n", series.server)));
        let accounts = series.reports.iter().filter(|report| !report.is_clean()).map(|report| &report.accounting);
        text.extend(accounts.map(|account| {
            format!(
                "  {}: lost {}, duplicated {}, reordered {}, closed {} {}\n",
                series.server,
                account.lost,
                account.duplicated,
                account.reordered,
                account.closed,
                account.closures.join("; ")
            )
        }));
    }
    text
}

fn stuck_table(stuck: &[Series]) -> String {
    let mut text = "one client stops reading, 100 others: 200 messages of 16 KiB a second\n".to_owned();
    for series in stuck {
        let lines = series.reports.iter().map(|report| {
            let a = &report.accounting;
            let p99 = report.latency.map_or(0.0, |latency| latency.p99_us / 1000.0);
            let note = report.notes.iter().find(|note| note.contains("stuck")).cloned().unwrap_or_default();
            let share = 100.0 * a.delivered as f64 / a.expected.max(1) as f64;
            format!("  {:12} {share:6.2} % delivered to the others, p99 {p99:.1} ms  {note}\n", series.server)
        });
        text.extend(lines);
        text.extend(series.failures.iter().map(|failure| format!("  {}: {failure}\n", series.server)));
    }
    text
}

#[cfg(test)]
mod tests;
