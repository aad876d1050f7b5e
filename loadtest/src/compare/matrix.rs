//! The comparisons: the cells of the matrix, and the figure of a run that counts in each.

use serde::{Deserialize, Serialize};

use crate::bench::Bench;
use crate::modes::connect::How;
use crate::modes::{connect, echo, fanout, inbound, rooms, unicast};
use crate::report::Report;

/// The figure that a cell is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Metric {
    /// Server CPU time per delivery or connection, in µs.
    CpuPerUnit,
    /// Resident user memory per idle channel, in bytes.
    BytesPerChannel,
    /// Median latency, in ms.
    LatencyP50,
    /// 99th percentile of latency, in ms.
    LatencyP99,
}

impl Metric {
    /// Its value in a report, if it was measured.
    pub(crate) fn of(self, report: &Report) -> Option<f64> {
        match self {
            Self::CpuPerUnit => report.cpu.map(|cpu| cpu.us_per_unit),
            Self::BytesPerChannel => report.memory.map(|memory| memory.rss_per_channel),
            Self::LatencyP50 => report.latency.map(|latency| latency.p50_us / 1000.0),
            Self::LatencyP99 => report.latency.map(|latency| latency.p99_us / 1000.0),
        }
    }

    /// Its unit.
    pub(crate) fn unit(self) -> &'static str {
        match self {
            Self::CpuPerUnit => "µs CPU",
            Self::BytesPerChannel => "B",
            Self::LatencyP50 | Self::LatencyP99 => "ms",
        }
    }
}

/// A run that gives the figures of one or more cells.
#[derive(Debug, Clone)]
pub(crate) enum Job {
    /// `fanout`
    Fanout(fanout::WindowSettings),
    /// `paced`
    Paced(fanout::PacedSettings),
    /// `echo`
    Echo(echo::Settings),
    /// `unicast`
    Unicast(unicast::Settings),
    /// `connect`
    Connect(connect::Settings),
    /// `rooms`
    Rooms(rooms::Settings),
    /// `inbound`
    Inbound(inbound::Settings),
}

impl Job {
    /// Runs it.
    pub(crate) fn run(&self, bench: &mut Bench) -> anyhow::Result<Report> {
        match self {
            Self::Fanout(settings) => fanout::run_window(bench, settings),
            Self::Paced(settings) => fanout::run_paced(bench, settings),
            Self::Echo(settings) => echo::run(bench, settings),
            Self::Unicast(settings) => unicast::run(bench, settings),
            Self::Connect(settings) => connect::run(bench, settings),
            Self::Rooms(settings) => rooms::run(bench, settings),
            Self::Inbound(settings) => inbound::run(bench, settings),
        }
    }
}

/// One line of the comparison.
#[derive(Debug, Clone)]
pub(crate) struct Cell {
    /// A short name for JSON and the command line.
    pub key: String,
    /// Its description.
    pub title: String,
    /// The run.
    pub job: Job,
    /// The figures that are compared.
    pub metrics: Vec<Metric>,
}

/// How large the matrix is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scale {
    /// How long each run publishes, in seconds.
    pub seconds: f64,
    /// Clients of the smaller fan-outs and of unicast.
    pub few: usize,
    /// Clients of the larger fan-out and idle channels.
    pub many: usize,
    /// Connections of the handshake cell.
    pub churn: u64,
}

/// Settings of a fan-out that is timed.
pub(crate) fn fanout_settings(clients: usize, size: usize, in_flight: u64, seconds: f64) -> fanout::WindowSettings {
    fanout::WindowSettings {
        clients,
        size,
        in_flight,
        write_each: false,
        messages: u64::MAX,
        seconds: Some(seconds),
        stall: 0,
        stall_messages: 0,
        stall_buffer: 0,
        read_after: false,
        processes: 1,
    }
}

fn size_name(size: usize) -> String {
    if size.is_multiple_of(1024) { format!("{} KiB", size / 1024) } else { format!("{size} B") }
}

/// A fan-out cell.
pub(crate) fn fanout_cell(clients: usize, size: usize, in_flight: u64, seconds: f64) -> Cell {
    Cell {
        key: format!("fanout-{clients}x{size}-w{in_flight}"),
        title: format!("{clients} clients, {}, {in_flight} in flight", size_name(size)),
        job: Job::Fanout(fanout_settings(clients, size, in_flight, seconds)),
        metrics: vec![Metric::CpuPerUnit],
    }
}

/// The unicast cell.
pub(crate) fn unicast_cell(clients: usize, seconds: f64) -> Cell {
    let settings = unicast::Settings {
        clients,
        in_flight: 64,
        size: 128,
        messages: u64::MAX,
        seconds: Some(seconds),
        bursts: false,
    };
    Cell {
        key: "unicast".into(),
        title: format!("unicast to random channels of {clients}, 64 in flight"),
        job: Job::Unicast(settings),
        metrics: vec![Metric::CpuPerUnit],
    }
}

/// Connections that come and go, 64 at a time.
fn churn_settings(churn: u64) -> connect::Settings {
    connect::Settings {
        clients: 0,
        hold: 0.0,
        churn,
        concurrency: 64,
        rate: None,
        close: How::Tcp,
        resumed: false,
        processes: 1,
    }
}

/// A handshake cell: the client ends TCP, or WebSocket first.
pub(crate) fn handshake_cell(churn: u64, close: How) -> Cell {
    let settings = connect::Settings { close, ..churn_settings(churn) };
    let (key, title) = match close {
        How::Handshake => ("closing-handshake", "connect + upgrade + closing handshake"),
        How::Tcp | How::Reset => ("handshake", "connect + upgrade + close"),
    };
    Cell { key: key.into(), title: title.into(), job: Job::Connect(settings), metrics: vec![Metric::CpuPerUnit] }
}

/// A cell of TLS handshakes: full ones, or of sessions that are resumed.
fn tls_handshake_cell(churn: u64, resumed: bool) -> Cell {
    let settings = connect::Settings { resumed, ..churn_settings(churn) };
    let (key, title) = match resumed {
        false => ("handshake-full", "connect + TLS + upgrade + close"),
        true => ("handshake-resumed", "connect + resumed TLS + upgrade + close"),
    };
    Cell { key: key.into(), title: title.into(), job: Job::Connect(settings), metrics: vec![Metric::CpuPerUnit] }
}

/// The matrix of servers that speak TLS.
pub(crate) fn tls_cells(scale: Scale) -> Vec<Cell> {
    let Scale { seconds, few, churn, .. } = scale;
    let fanouts = [(128, 1), (128, 16), (1024, 1), (16 * 1024, 1)];
    let mut all: Vec<Cell> = fanouts.map(|(size, window)| fanout_cell(few, size, window, seconds)).into();
    all.extend([tls_handshake_cell(churn, false), tls_handshake_cell(churn, true)]);
    let others = ["echo", "idle", "paced"];
    all.extend(cells(scale).into_iter().filter(|cell| others.contains(&&*cell.key)));
    all
}

/// Cells in which few messages can be merged: one there and back, one to ten, to one of a thousand at a rate that
/// leaves CPUs idle, and to small rooms.
fn sparse_cells(seconds: f64) -> Vec<Cell> {
    let settings = echo::Settings { clients: 1, in_flight: 1, size: 32, messages: u64::MAX, seconds: Some(seconds) };
    let alone = Cell {
        key: "sparse-echo".into(),
        title: "one message at a time to a sleeping server and back".into(),
        job: Job::Echo(settings),
        metrics: vec![Metric::CpuPerUnit, Metric::LatencyP50],
    };
    let ten = Cell { key: "sparse-broadcast".into(), ..fanout_cell(10, 128, 1, seconds) };
    let pair = rooms::Settings { room: 2, rate: Some(10_000.0), ..rooms_settings(1000, seconds) };
    let apart = Cell {
        key: "sparse-unicast".into(),
        title: "one message to one of 500, 10,000 a second".into(),
        job: Job::Rooms(pair),
        metrics: vec![Metric::CpuPerUnit, Metric::LatencyP99],
    };
    vec![alone, ten, apart]
}

fn rooms_settings(clients: usize, seconds: f64) -> rooms::Settings {
    let (slow_percent, joins) = (0.0, 0.0);
    rooms::Settings { clients, room: 10, size: 128, in_flight: 1, rate: None, slow_percent, joins, seconds }
}

/// Rooms of several sizes, and rooms of fifty as they are used.
fn room_cells(seconds: f64) -> Vec<Cell> {
    let cell = |key: &str, title: &str, metrics: &[Metric], settings| Cell {
        key: key.into(),
        title: title.into(),
        job: Job::Rooms(settings),
        metrics: metrics.into(),
    };
    let base = |clients| rooms_settings(clients, seconds);
    let mixed = rooms::Settings { room: 50, rate: Some(500.0), slow_percent: 2.0, joins: 200.0, ..base(5000) };
    let cpu = &[Metric::CpuPerUnit];
    vec![
        cell(
            "rooms-2",
            "rooms of 2 among 1,000, 4 in flight",
            cpu,
            rooms::Settings { room: 2, in_flight: 4, ..base(1000) },
        ),
        cell("rooms-10", "rooms of 10 among 1,000, 1 in flight", cpu, base(1000)),
        cell(
            "rooms-50",
            "rooms of 50 among 5,000, 4 in flight",
            cpu,
            rooms::Settings { room: 50, in_flight: 4, ..base(5000) },
        ),
        cell(
            "rooms-mixed",
            "rooms of 50 among 5,000, 500 messages a second, 2 % slow, 200 joins a second",
            &[Metric::CpuPerUnit, Metric::LatencyP99],
            rooms::Settings { seconds: seconds * 3.0, ..mixed },
        ),
    ]
}

/// From a few clients to twice the larger fan-out: what each delivery costs beside the floor of each. With the usual
/// scale 10, 100, 1,000, 4,000 and 16,000.
fn growth_cells(Scale { seconds, few, many, .. }: Scale) -> Vec<Cell> {
    let mut sizes = vec![(few / 100).max(1), (few / 10).max(1), few, (many / 2).max(1), 2 * many];
    sizes.sort_unstable();
    sizes.dedup();
    let cell = |clients| Cell { key: format!("growth-{clients}"), ..fanout_cell(clients, 128, 1, seconds) };
    sizes.into_iter().map(cell).collect()
}

/// Messages from clients, one in a read and sixty-four.
fn inbound_cells(seconds: f64) -> [Cell; 2] {
    [1, 64].map(|burst| Cell {
        key: format!("inbound-{burst}"),
        title: format!("inbound 200 B from 100 clients, {burst} a read, the last answered"),
        job: Job::Inbound(inbound::Settings { clients: 100, burst, size: 200, seconds }),
        metrics: vec![Metric::CpuPerUnit],
    })
}

/// The windows of the throughput plot.
pub(crate) const WINDOWS: [u64; 5] = [1, 2, 4, 8, 16];

/// The whole matrix.
pub(crate) fn cells(scale: Scale) -> Vec<Cell> {
    let Scale { seconds, few, many, churn } = scale;
    let mut cells: Vec<Cell> = WINDOWS.iter().map(|&window| fanout_cell(few, 128, window, seconds)).collect();
    let each = fanout_settings(few, 128, 16, seconds);
    cells.push(Cell {
        key: format!("fanout-{few}x128-w16-each"),
        title: format!("{few} clients, 128 B, 16 in flight, each published in a write of its own"),
        job: Job::Fanout(fanout::WindowSettings { write_each: true, ..each }),
        metrics: vec![Metric::CpuPerUnit],
    });
    for (clients, size, window) in [(few, 1024, 1), (few, 16 * 1024, 1), (many, 128, 1), (many, 128, 8)] {
        cells.push(fanout_cell(clients, size, window, seconds));
    }
    cells.push(unicast_cell(few, seconds));
    cells.extend(sparse_cells(seconds));
    cells.extend(room_cells(seconds));
    cells.extend(inbound_cells(seconds));
    cells.extend(growth_cells(scale));
    cells.push(Cell {
        key: "echo".into(),
        title: "echo 32 B, 100 clients, 16 in flight".into(),
        job: Job::Echo(echo::Settings {
            clients: 100,
            in_flight: 16,
            size: 32,
            messages: u64::MAX,
            seconds: Some(seconds),
        }),
        metrics: vec![Metric::CpuPerUnit],
    });
    cells.push(handshake_cell(churn, How::Tcp));
    cells.push(handshake_cell(churn, How::Handshake));
    cells.push(Cell {
        key: "idle".into(),
        title: format!("idle memory per channel, {many} open"),
        job: Job::Connect(connect::Settings { clients: many, hold: 0.5, ..churn_settings(0) }),
        metrics: vec![Metric::BytesPerChannel],
    });
    cells.push(Cell {
        key: "paced".into(),
        title: format!("latency at 20 messages a second to {few}"),
        job: Job::Paced(fanout::PacedSettings {
            clients: few,
            size: 128,
            rate: 20.0,
            seconds: seconds * 2.0,
            stuck: 0,
            processes: 1,
        }),
        metrics: vec![Metric::LatencyP50, Metric::LatencyP99],
    });
    cells
}

/// One client that never reads beside a hundred that do, enough bytes to fill any kernel buffer in two seconds.
pub(crate) fn stuck_settings(seconds: f64) -> fanout::PacedSettings {
    fanout::PacedSettings { clients: 100, size: 16 * 1024, rate: 200.0, seconds, stuck: 1, processes: 1 }
}
