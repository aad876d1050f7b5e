//! A fleet on this machine: several daemons and a nats-server on loopback, clients on each, every delivery counted.
//!
//! Each node has an HTTP client of its own, which publishes to all clients of all nodes and pushes to single channels
//! of the next node. With one node there is no NATS, to compare with. All share this machine's processors, so waits are
//! upper bounds.
//!
//! Invariant: each message says who sent it and its number, so that one that is missing, doubled or out of order is
//! seen.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::Args;
use serde::Serialize;
use serde_json::Value;

use crate::bench::ServerArgs;
use crate::client::engine::Pace;
use crate::client::tls::Manner;
use crate::client::{Closure, Engine, Handler, Message, Opcode, Outbox};
use crate::conduct::Conduct;
use crate::payload::{STAMP_BYTES, Stamp};
use crate::proc::CpuTime;
use crate::server::{Launch, Server, ServerSpec, TemporaryFile, free_port};
use crate::stats::{Latency, LatencySummary};
use crate::sys;

/// Tells each client its channel, and takes what it is sent.
const PROCESS: &str = "unicast:pushring:sys";

/// Marks the sender of a broadcast; other stamps name the client that a message is for.
const BROADCAST: u32 = 1 << 31;

/// How long a fleet may take until it is whole, and its last messages until they have come.
const WHOLE_WITHIN: Duration = Duration::from_secs(30);
const LAST_WITHIN: Duration = Duration::from_secs(10);

/// Settings of `fleet`.
#[derive(Debug, Clone, Args, Serialize)]
pub struct Settings {
    /// Daemons; with one there is no NATS.
    #[arg(long, default_value_t = 3)]
    pub nodes: usize,
    /// Clients of each.
    #[arg(long, default_value_t = 3000)]
    pub clients: usize,
    /// Messages to all clients of all nodes in a second, from all nodes together.
    #[arg(long, default_value_t = 5.0)]
    pub broadcasts: f64,
    /// Messages to single channels of another node in a second, from all nodes together.
    #[arg(long, default_value_t = 1000.0)]
    pub unicasts: f64,
    /// Bytes of a message.
    #[arg(long, default_value_t = 128)]
    pub size: usize,
    /// How long, in seconds.
    #[arg(long, default_value_t = 10.0)]
    pub seconds: f64,
    /// The pushring program to start [default: `pushring` beside this program].
    #[arg(long, value_name = "PROGRAM")]
    pub start: Option<PathBuf>,
    /// The nats-server to start [default: the one that is installed].
    #[arg(long, value_name = "PROGRAM")]
    pub nats: Option<PathBuf>,
    /// Print JSON instead of a table.
    #[arg(long)]
    #[serde(skip)]
    pub json: bool,
}

/// What came of it.
#[derive(Debug, Serialize)]
struct Fleet {
    settings: Settings,
    broadcasts: u64,
    unicasts: u64,
    /// Deliveries that should have come, and those that did not.
    expected: u64,
    missing: u64,
    /// That came twice, out of order, or to whom they were not for.
    wrong: u64,
    /// Messages between nodes that the nodes say are lost, or that did not leave.
    told_lost: u64,
    /// CPU of the daemons for each delivery, in microseconds, and of NATS for each message between nodes.
    us_per_delivery: f64,
    nats_us_per_message: Option<f64>,
    /// From the request to the client, on the node that was asked and on others.
    here: Option<LatencySummary>,
    elsewhere: Option<LatencySummary>,
    unicast: Option<LatencySummary>,
}

/// Runs `fleet`. Returns whether every delivery came once and in order.
pub fn run(settings: &Settings) -> anyhow::Result<bool> {
    ensure!((1..=64).contains(&settings.nodes), "--nodes: 1 to 64");
    ensure!(
        settings.clients > 0 && settings.size >= STAMP_BYTES,
        "--clients: at least 1; --size: at least {STAMP_BYTES}"
    );
    let rates = [settings.broadcasts, settings.unicasts];
    ensure!(rates.iter().all(|rate| rate.is_finite() && *rate >= 0.0), "--broadcasts, --unicasts: a rate in 1/s");
    let nats = (settings.nodes > 1).then(|| Nats::start(settings.nats.as_deref())).transpose()?;
    let nodes = (0..settings.nodes).map(|node| Node::start(settings, node, nats.as_ref()));
    let nodes: Vec<Node> = nodes.collect::<anyhow::Result<_>>()?;
    let fleet = measure(settings, &nodes, nats.as_ref())?;
    if settings.json {
        println!("{}", serde_json::to_string_pretty(&fleet)?);
    } else {
        print!("{}", table(&fleet));
    }
    Ok(fleet.missing == 0 && fleet.wrong == 0)
}

/// A nats-server on loopback, which ends with its owner.
struct Nats {
    child: Child,
    url: String,
}

impl Nats {
    fn start(program: Option<&Path>) -> anyhow::Result<Self> {
        let found = ["/usr/sbin/nats-server", "/usr/bin/nats-server", "/usr/local/bin/nats-server"].map(Path::new);
        let program = program.or(found.into_iter().find(|program| program.is_file()));
        let program =
            program.context("there is no nats-server: install it (apt-get install nats-server), or use --nats")?;
        let port = free_port()?;
        let mut command = Command::new(program);
        command.args(["-a", "127.0.0.1", "-p", &port.to_string()]).stdin(Stdio::null());
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().context("starting nats-server")?;
        let nats = Self { child, url: format!("nats://127.0.0.1:{port}") };
        let since = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            ensure!(since.elapsed() < WHOLE_WITHIN, "nats-server does not listen");
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(nats)
    }
}

impl Drop for Nats {
    fn drop(&mut self) {
        // It holds nothing that is to be kept.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A daemon, and where it is published to and asked.
struct Node {
    server: Server,
    program: PathBuf,
    control: TemporaryFile,
    api_port: u16,
    token: String,
    _token_file: TemporaryFile,
}

impl Node {
    fn start(settings: &Settings, node: usize, nats: Option<&Nats>) -> anyhow::Result<Self> {
        let program = ServerArgs::find_pushring(settings.start.as_ref())?;
        let mut spec = ServerSpec::pushring(program.clone(), 1, &[]);
        let (control, token_file) = (TemporaryFile::new("sock")?, crate::server::make_secret()?);
        // A socket is made where nothing is.
        std::fs::remove_file(&control.path)?;
        let token = std::fs::read_to_string(&token_file.path)?;
        let api_port = free_port()?;
        let Launch::Start { arguments, .. } = &mut spec.launch else { bail!("a daemon is started here") };
        arguments.extend(["--api-listen".to_owned(), format!("127.0.0.1:{api_port}")]);
        arguments.extend(["--api-token-file".to_owned(), token_file.path.display().to_string()]);
        arguments.extend(["--control".to_owned(), control.path.display().to_string()]);
        if let Some(nats) = nats {
            arguments.extend(["--fleet-nats".to_owned(), nats.url.clone(), "--fleet-node".to_owned(), name(node)]);
        }
        Ok(Self { server: spec.start()?, program, control, api_port, token, _token_file: token_file })
    }

    /// How its fleet stands.
    fn report(&self) -> anyhow::Result<Value> {
        let asked = ["fleet", "--json", "--control"];
        let output = Command::new(&self.program).args(asked).arg(&self.control.path).output()?;
        ensure!(output.status.success(), "pushring fleet: {}", String::from_utf8_lossy(&output.stderr));
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    fn wait_until_whole(&self, others: usize) -> anyhow::Result<()> {
        let since = Instant::now();
        loop {
            let report = self.report()?;
            let there = report["nodes"]
                .as_array()
                .map_or(0, |nodes| nodes.iter().filter(|node| node["is_gone"] == false).count());
            // The process, and the path that its clients are on.
            if report["connected"] == true
                && there == others
                && report["listens"].as_u64().is_some_and(|listens| listens >= 2)
            {
                return Ok(());
            }
            ensure!(since.elapsed() < WHOLE_WITHIN, "the fleet is not whole: {report}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn name(node: usize) -> String {
    format!("n{node}")
}

fn pids(nodes: &[Node]) -> Vec<u32> {
    nodes.iter().flat_map(|node| node.server.pids.iter().copied()).collect()
}

/// What all threads share.
struct Common<'a> {
    settings: &'a Settings,
    run: u32,
    /// Publishing may begin, and reading may end.
    begin: Barrier,
    is_over: AtomicBool,
    /// Messages to all that each node was given, and messages to single channels.
    broadcasts: Vec<AtomicU64>,
    unicasts: AtomicU64,
    received: AtomicU64,
}

fn measure(settings: &Settings, nodes: &[Node], nats: Option<&Nats>) -> anyhow::Result<Fleet> {
    let count = nodes.len();
    let common = Common {
        settings,
        run: sys::now_ns() as u32,
        begin: Barrier::new(count + 1),
        is_over: AtomicBool::new(false),
        broadcasts: (0..count).map(|_| AtomicU64::new(0)).collect(),
        unicasts: AtomicU64::new(0),
        received: AtomicU64::new(0),
    };
    std::thread::scope(|scope| {
        let (open, opened) = channel();
        let crowds: Vec<_> = (0..count)
            .map(|node| {
                let (common, open) = (&common, open.clone());
                scope.spawn(move || crowd(common, node, &nodes[node], &open))
            })
            .collect();
        drop(open);
        let prepared = prepare(count, nodes, &opened);
        let result = prepared.and_then(|ids| publish_all(&common, nodes, nats, &ids));
        common.is_over.store(true, Ordering::Release);
        let crowds = crowds.into_iter().map(|crowd| crowd.join().map_err(|_| anyhow::anyhow!("a crowd panicked"))?);
        let crowds: Vec<Crowd> = crowds.collect::<anyhow::Result<_>>()?;
        account(&common, nodes, crowds, result?)
    })
}

/// The channels of each node, once all clients are there and the nodes hear each other.
fn prepare(count: usize, nodes: &[Node], opened: &Receiver<(usize, Vec<u32>)>) -> anyhow::Result<Vec<Vec<u32>>> {
    let mut ids = vec![Vec::new(); count];
    for _ in 0..count {
        let (node, of_node) = opened.recv().context("the clients of a node did not open")?;
        ids[node] = of_node;
    }
    if count > 1 {
        nodes.iter().try_for_each(|node| node.wait_until_whole(count - 1))?;
    }
    Ok(ids)
}

/// CPU that was used while it was published.
struct Used {
    daemons_us: f64,
    nats_us: Option<f64>,
}

fn publish_all(common: &Common<'_>, nodes: &[Node], nats: Option<&Nats>, ids: &[Vec<u32>]) -> anyhow::Result<Used> {
    let pids = pids(nodes);
    let of_nats = || nats.map(|nats| CpuTime::of(&[nats.child.id()])).transpose();
    let (before, nats_before) = (CpuTime::of(&pids)?, of_nats()?);
    std::thread::scope(|scope| {
        let publishers = (0..nodes.len()).map(|node| scope.spawn(move || publish(common, node, &nodes[node], ids)));
        let publishers: Vec<_> = publishers.collect();
        common.begin.wait();
        publishers.into_iter().try_for_each(|publisher| {
            publisher.join().map_err(|_| anyhow::anyhow!("a publisher panicked"))?.context("publishing")
        })
    })?;
    let since = Instant::now();
    while common.received.load(Ordering::Relaxed) < expected(common) && since.elapsed() < LAST_WITHIN {
        std::thread::sleep(Duration::from_millis(20));
    }
    let nats_us = of_nats()?.zip(nats_before).map(|(after, before)| after.since(&before).total_us);
    Ok(Used { daemons_us: CpuTime::of(&pids)?.since(&before).total_us, nats_us })
}

fn broadcasts(common: &Common<'_>) -> u64 {
    common.broadcasts.iter().map(|count| count.load(Ordering::Relaxed)).sum()
}

fn expected(common: &Common<'_>) -> u64 {
    let clients = (common.settings.clients * common.settings.nodes) as u64;
    broadcasts(common) * clients + common.unicasts.load(Ordering::Relaxed)
}

/// Publishes through one node's HTTP API, each kind at its pace.
fn publish(common: &Common<'_>, node: usize, at: &Node, ids: &[Vec<u32>]) -> anyhow::Result<()> {
    let settings = common.settings;
    let mut api = Api::connect(at)?;
    let target = (node + 1) % ids.len();
    let mut sent_to = vec![0u64; ids[target].len()];
    let share = ids.len() as f64;
    common.begin.wait();
    let (start, mut payload) = (Instant::now(), Vec::new());
    let (mut broadcasts, mut unicasts) = (0u64, 0u64);
    let due = |rate: f64, count: u64| if rate > 0.0 { count as f64 / (rate / share) } else { f64::INFINITY };
    loop {
        let (broadcast_s, unicast_s) = (due(settings.broadcasts, broadcasts), due(settings.unicasts, unicasts));
        let next_s = broadcast_s.min(unicast_s);
        if next_s >= settings.seconds {
            return Ok(());
        }
        std::thread::sleep(Duration::from_secs_f64(next_s).saturating_sub(start.elapsed()));
        payload.clear();
        let (time_ns, run) = (sys::now_ns(), common.run);
        if broadcast_s <= unicast_s {
            let stamp = Stamp { run, client: BROADCAST | node as u32, sequence: broadcasts, time_ns };
            stamp.write(settings.size, &mut payload);
            api.push(&format!("process={PROCESS}"), &payload)?;
            broadcasts += 1;
            common.broadcasts[node].fetch_add(1, Ordering::Relaxed);
        } else {
            let to = (unicasts as usize).wrapping_mul(7919) % sent_to.len();
            let client = (target * settings.clients + to) as u32;
            Stamp { run, client, sequence: sent_to[to], time_ns }.write(settings.size, &mut payload);
            // Alone there is no fleet, and no node has a name.
            let id = ids[target][to];
            let channel = if ids.len() == 1 { id.to_string() } else { format!("{}/{id}", name(target)) };
            api.push(&format!("process={PROCESS}; channels={channel}"), &payload)?;
            (sent_to[to], unicasts) = (sent_to[to] + 1, unicasts + 1);
            common.unicasts.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// A connection to the HTTP API.
struct Api {
    stream: BufReader<TcpStream>,
    head: String,
}

impl Api {
    fn connect(node: &Node) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", node.api_port))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(WHOLE_WITHIN))?;
        let head = format!(
            "POST /api/push HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nAuthorization: Bearer {}\r\n\
             Content-Type: application/octet-stream\r\n",
            node.api_port, node.token
        );
        Ok(Self { stream: BufReader::new(stream), head })
    }

    fn push(&mut self, to: &str, payload: &[u8]) -> anyhow::Result<()> {
        let mut request =
            format!("{}Push-To: {to}\r\nContent-Length: {}\r\n\r\n", self.head, payload.len()).into_bytes();
        request.extend_from_slice(payload);
        self.stream.get_mut().write_all(&request)?;
        let (mut status, mut length) = (String::new(), 0);
        self.stream.read_line(&mut status)?;
        loop {
            let mut line = String::new();
            self.stream.read_line(&mut line)?;
            let line = line.trim().to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse()?;
            }
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body)?;
        ensure!(status.contains(" 202 "), "{}: {}", status.trim(), String::from_utf8_lossy(&body));
        Ok(())
    }
}

/// The clients of one node, and what came.
struct Crowd {
    run: u32,
    node: usize,
    nodes: usize,
    /// The number of its first client among those of all nodes.
    first: usize,
    ids: Vec<Option<u32>>,
    /// What each client is to hear next: of each node that sends to all, and of what is for it alone.
    next: Vec<u64>,
    next_alone: Vec<u64>,
    received: u64,
    wrong: u64,
    closed: Vec<String>,
    here: Latency,
    elsewhere: Latency,
    unicast: Latency,
}

impl Handler for Crowd {
    fn message(&mut self, client: usize, message: &Message<'_>, received_ns: u64, _: &mut Outbox<'_>) {
        if message.opcode == Opcode::Text {
            let said: Option<Value> =
                message.head.get(..message.length as usize).and_then(|text| serde_json::from_slice(text).ok());
            self.ids[client] = said.and_then(|said| said["channel_id"].as_u64()).map(|id| id as u32);
            return;
        }
        let Some(stamp) = Stamp::read(message.head).filter(|stamp| stamp.run == self.run && message.uniform) else {
            self.wrong += 1;
            return;
        };
        let waited_ns = received_ns.saturating_sub(stamp.time_ns);
        let next = if stamp.client & BROADCAST != 0 {
            let from = (stamp.client & !BROADCAST) as usize;
            let latency = if from == self.node { &mut self.here } else { &mut self.elsewhere };
            latency.record(waited_ns);
            self.next.get_mut(client * self.nodes + from).filter(|_| from < self.nodes)
        } else {
            self.unicast.record(waited_ns);
            let is_for_it = stamp.client as usize == self.first + client;
            self.next_alone.get_mut(client).filter(|_| is_for_it)
        };
        match next {
            Some(next) if stamp.sequence >= *next => {
                *next = stamp.sequence + 1;
                self.received += 1;
            }
            _ => self.wrong += 1,
        }
    }

    fn closed(&mut self, client: usize, closure: &Closure) {
        self.closed.push(format!("client {client}: {}", closure.reason));
    }
}

/// Opens the clients of a node, and reads until all is over.
fn crowd(common: &Common<'_>, node: usize, at: &Node, opened: &Sender<(usize, Vec<u32>)>) -> anyhow::Result<Crowd> {
    let (clients, nodes) = (common.settings.clients, common.settings.nodes);
    let conduct = Conduct {
        pace: Pace::Block,
        cpus: Vec::new(),
        patience: WHOLE_WITHIN,
        sources: 16,
        token: None,
        manner: Manner { authority: None, classic: false, resumes: false },
    };
    let mut engine = Engine::new(at.server.target(PROCESS, &conduct)?, Pace::Block)?;
    let mut crowd = Crowd {
        run: common.run,
        node,
        nodes,
        first: node * clients,
        ids: vec![None; clients],
        next: vec![0; clients * nodes],
        next_alone: vec![0; clients],
        received: 0,
        wrong: 0,
        closed: Vec::new(),
        here: Latency::default(),
        elsewhere: Latency::default(),
        unicast: Latency::default(),
    };
    engine.connect_all(0, clients, WHOLE_WITHIN, |_| None, &mut crowd, |_| {})?;
    let since = Instant::now();
    while crowd.ids.contains(&None) {
        ensure!(since.elapsed() < WHOLE_WITHIN && crowd.closed.is_empty(), "not all clients are told their channels");
        engine.poll(10, &mut crowd)?;
    }
    opened.send((node, crowd.ids.iter().flatten().copied().collect())).context("the run has ended")?;
    let mut counted = 0;
    while !common.is_over.load(Ordering::Acquire) {
        engine.poll(10, &mut crowd)?;
        common.received.fetch_add(crowd.received - counted, Ordering::Relaxed);
        counted = crowd.received;
    }
    if let Some(closed) = crowd.closed.first() {
        bail!("{} clients of {} were closed; {closed}", crowd.closed.len(), name(node));
    }
    Ok(crowd)
}

fn account(common: &Common<'_>, nodes: &[Node], crowds: Vec<Crowd>, used: Used) -> anyhow::Result<Fleet> {
    let mut told_lost = 0;
    if nodes.len() > 1 {
        for node in nodes {
            let counts = &node.report()?["counts"];
            told_lost +=
                ["lost", "gaps_unknown", "full", "down"].iter().filter_map(|name| counts[name].as_u64()).sum::<u64>();
        }
    }
    let (mut here, mut elsewhere, mut unicast) = (Latency::default(), Latency::default(), Latency::default());
    let (mut received, mut wrong) = (0, 0);
    for crowd in crowds {
        received += crowd.received;
        wrong += crowd.wrong;
        here.add_pairs(&crowd.here.pairs());
        elsewhere.add_pairs(&crowd.elsewhere.pairs());
        unicast.add_pairs(&crowd.unicast.pairs());
    }
    let (broadcasts, unicasts) = (broadcasts(common), common.unicasts.load(Ordering::Relaxed));
    let between = broadcasts * (nodes.len() as u64 - 1) + unicasts;
    Ok(Fleet {
        settings: common.settings.clone(),
        broadcasts,
        unicasts,
        expected: expected(common),
        missing: expected(common).saturating_sub(received),
        wrong,
        told_lost,
        us_per_delivery: used.daemons_us / received.max(1) as f64,
        nats_us_per_message: used.nats_us.map(|us| us / between.max(1) as f64),
        here: here.summary(),
        elsewhere: elsewhere.summary(),
        unicast: unicast.summary(),
    })
}

fn table(fleet: &Fleet) -> String {
    let Settings { nodes, clients, .. } = fleet.settings;
    let mut text = format!(
        "{nodes} nodes \u{d7} {clients} clients; {} messages to all, {} to single channels\n\
         {} deliveries expected, {} missing, {} wrong; the nodes tell of {} messages that were lost\n\
         daemons: {:.3} µs of CPU a delivery",
        fleet.broadcasts,
        fleet.unicasts,
        fleet.expected,
        fleet.missing,
        fleet.wrong,
        fleet.told_lost,
        fleet.us_per_delivery
    );
    if let Some(us) = fleet.nats_us_per_message {
        text += &format!("; NATS: {us:.1} µs a message between nodes");
    }
    text += "\n\n                      p50 ms    p99 ms    max ms\n";
    let rows =
        [("to all, here", &fleet.here), ("to all, elsewhere", &fleet.elsewhere), ("to one channel", &fleet.unicast)];
    for (name, waits) in rows {
        if let Some(waits) = waits {
            let figures = [waits.p50_us, waits.p99_us, waits.max_us].map(|us| format!("{:>10.2}", us / 1000.0));
            text += &format!("{name:<18}{}\n", figures.concat());
        }
    }
    text
}
