//! The comparison as one HTML file: no script, no resource from elsewhere, light and dark.

use std::fmt::Write as _;

use super::matrix::{Metric, WINDOWS};
use super::svg::{self, Bar, Line, escape};
use super::{CellResult, Comparison, Series, figure};

const STYLE: &str = include_str!("report.css");

/// The page.
pub(super) fn page(comparison: &Comparison) -> String {
    let machine = &comparison.machine;
    let mut html = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
         <title>{subject}: comparison</title><style>{STYLE}</style><main>\
         <header><h1>{subject} beside other servers</h1>\
         <p>Servers interleaved in one session, {} × each cell; bars are medians, whiskers go from the best run to the \
         worst. Lower is better unless it says rate.</p>\
         <p class=\"dim\">{} · {} CPUs · Linux {} · servers on CPU {:?}, clients on CPU {:?}</p></header>",
        comparison.runs,
        escape(&machine.cpu),
        machine.cpus,
        escape(&machine.kernel),
        machine.server_cpus,
        machine.client_cpus,
        subject = escape(&comparison.subject),
    );
    html.push_str(&summary(comparison));
    html.push_str(&windows(comparison));
    html.push_str(&latencies(comparison));
    // The windows in between are points of the plot and lines of the table; a section each would only repeat them.
    let between = |key: &str| ["x128-w2", "x128-w4"].iter().any(|end| key.ends_with(end));
    for cell in comparison.cells.iter().filter(|cell| !between(&cell.key)) {
        html.push_str(&cell_section(comparison, cell));
    }
    html.push_str(&stuck(comparison));
    html.push_str("</main></html>\n");
    html
}

fn colour(comparison: &Comparison, server: &str) -> usize {
    comparison.servers.iter().position(|name| name == server).unwrap_or(0) % 8
}

/// All medians in one table.
fn summary(comparison: &Comparison) -> String {
    let mut html = "<section><h2>Summary</h2><div class=\"scroll\"><table><tr><th></th>".to_owned();
    for server in &comparison.servers {
        let _ = write!(html, "<th class=\"c{}\">{}</th>", colour(comparison, server), escape(server));
    }
    html.push_str("</tr>");
    for cell in &comparison.cells {
        for &metric in &cell.metrics {
            let _ = write!(html, "<tr><td>{}</td>", escape(&title(cell, metric)));
            let spreads: Vec<_> = comparison.servers.iter().map(|server| find(cell, server)).collect();
            for series in spreads {
                html.push_str(&summary_entry(series, metric));
            }
            html.push_str("</tr>");
        }
    }
    html.push_str("</table></div></section>");
    html
}

fn summary_entry(series: Option<&Series>, metric: Metric) -> String {
    let Some(series) = series else { return "<td class=\"dim\">–</td>".into() };
    let class = if series.is_clean() { "" } else { " class=\"bad\" title=\"lost messages or failed\"" };
    let value =
        series.spread(metric).map_or("failed".to_owned(), |spread| figure(spread.median, metric).replace(" CPU", ""));
    format!("<td{class}>{}</td>", escape(&value))
}

fn find<'a>(cell: &'a CellResult, server: &str) -> Option<&'a Series> {
    cell.series.iter().find(|series| series.server == server)
}

fn title(cell: &CellResult, metric: Metric) -> String {
    match metric {
        Metric::CpuPerUnit => format!("{}: server CPU", cell.title),
        Metric::BytesPerChannel => cell.title.clone(),
        Metric::LatencyP50 => format!("{}: p50", cell.title),
        Metric::LatencyP99 => format!("{}: p99", cell.title),
    }
}

/// Throughput and CPU time against the window.
fn windows(comparison: &Comparison) -> String {
    let cells: Vec<&CellResult> = WINDOWS
        .iter()
        .filter_map(|window| {
            let end = format!("x128-w{window}");
            comparison.cells.iter().find(|cell| cell.key.ends_with(&end))
        })
        .collect();
    if cells.len() < WINDOWS.len() {
        return String::new();
    }
    let steps: Vec<String> = WINDOWS.iter().map(|window| window.to_string()).collect();
    let plot = |unit: &str, value: &dyn Fn(&Series) -> Option<f64>| {
        let lines: Vec<Line> = comparison
            .servers
            .iter()
            .map(|server| Line {
                name: server.clone(),
                colour: colour(comparison, server),
                values: cells.iter().map(|cell| find(cell, server).and_then(value)).collect(),
            })
            .filter(|line| line.values.iter().any(Option::is_some))
            .collect();
        svg::lines(&steps, unit, &lines)
    };
    let rate = plot("deliveries a second", &|series| Some(series.spread_of(|report| Some(report.per_second))?.median));
    let cpu = plot("µs CPU per delivery", &|series| Some(series.spread(Metric::CpuPerUnit)?.median));
    format!(
        "<section><h2>Throughput against window</h2><p>Messages of 128 bytes to all clients. The x axis is how many are in \
         flight: the more, the more a server may send together.</p>{rate}<h3>Server CPU per delivery</h3>{cpu}</section>"
    )
}

/// The percentiles of the paced runs.
fn latencies(comparison: &Comparison) -> String {
    let Some(cell) = comparison.cells.iter().find(|cell| cell.key == "paced") else { return String::new() };
    let steps = ["p50", "p90", "p99", "p99.9", "max"].map(str::to_owned);
    let lines: Vec<Line> = cell
        .series
        .iter()
        .map(|series| {
            let median = |pick: fn(&crate::stats::LatencySummary) -> f64| {
                Some(series.spread_of(|report| report.latency.as_ref().map(pick))?.median / 1000.0)
            };
            Line {
                name: series.server.clone(),
                colour: colour(comparison, &series.server),
                values: vec![
                    median(|latency| latency.p50_us),
                    median(|latency| latency.p90_us),
                    median(|latency| latency.p99_us),
                    median(|latency| latency.p999_us),
                    median(|latency| latency.max_us),
                ],
            }
        })
        .collect();
    format!(
        "<section><h2>Latency percentiles</h2><p>{}; counted from the time a message was due.</p>{}</section>",
        escape(&cell.title),
        svg::lines(&steps, "ms", &lines)
    )
}

fn cell_section(comparison: &Comparison, cell: &CellResult) -> String {
    let mut html = String::new();
    for &metric in &cell.metrics {
        let base = find(cell, &comparison.subject).and_then(|series| series.spread(metric));
        let bars: Vec<Bar> = cell
            .series
            .iter()
            .filter_map(|series| {
                let spread = series.spread(metric)?;
                let ratio = base
                    .filter(|_| series.server != comparison.subject)
                    .map_or(String::new(), |base| format!("  ({:.2} ×)", spread.median / base.median));
                let mark = if series.is_clean() { "" } else { "  not clean" };
                Some(Bar {
                    name: series.server.clone(),
                    colour: colour(comparison, &series.server),
                    value: (spread.median, spread.min, spread.max),
                    label: format!("{}{ratio}{mark}", figure(spread.median, metric)),
                })
            })
            .collect();
        let _ = write!(html, "<section><h2>{}</h2>{}", escape(&title(cell, metric)), svg::bars(&bars));
        for series in &cell.series {
            for failure in &series.failures {
                let _ = write!(html, "<p class=\"bad\">{}: {}</p>", escape(&series.server), escape(failure));
            }
        }
        html.push_str("</section>");
    }
    html
}

fn stuck(comparison: &Comparison) -> String {
    if comparison.stuck.is_empty() {
        return String::new();
    }
    let bars: Vec<Bar> = comparison
        .stuck
        .iter()
        .flat_map(|series| series.reports.iter().map(move |report| (series, report)))
        .map(|(series, report)| {
            let share = 100.0 * report.accounting.delivered as f64 / report.accounting.expected.max(1) as f64;
            let p99 = report.latency.map_or(0.0, |latency| latency.p99_us / 1000.0);
            Bar {
                name: series.server.clone(),
                colour: colour(comparison, &series.server),
                value: (share, share, share),
                label: format!("{share:.1} % delivered, p99 {p99:.1} ms"),
            }
        })
        .collect();
    format!(
        "<section><h2>One client stops reading</h2><p>A hundred others go on: 200 messages of 16 KiB a second. How much \
         of it reaches them?</p>{}</section>",
        svg::bars(&bars)
    )
}
