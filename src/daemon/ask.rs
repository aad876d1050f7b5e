//! Questions of an operator to a running daemon, over its control socket, answered as tables for people or as JSON.

use super::cli::{AskOptions, DisconnectsOptions};
use super::plain::plain;
use super::table::{Align, bytes, table};
use anyhow::{Context, bail};
use humantime::{format_duration, format_rfc3339_millis};
use pushring::Disconnect;
use pushring::control::{self, BrokerInfo, ControlAnswer, ControlRequest, Exposition, Filter, Overview, Usage};
use std::time::{Duration, SystemTime};

/// `pushring stats`.
///
/// # Errors
/// No daemon answers.
pub(crate) fn stats(options: &AskOptions) -> anyhow::Result<String> {
    let ControlAnswer::Stats(overview) = ask(options, &ControlRequest::Stats {})? else { bail!(ANOTHER) };
    Ok(match options.json {
        true => serde_json::to_string(&overview)? + "\n",
        false => overview_text(&overview),
    })
}

/// `pushring metrics`.
///
/// # Errors
/// No daemon answers.
pub(crate) fn metrics(options: &AskOptions) -> anyhow::Result<String> {
    let ControlAnswer::Stats(overview) = ask(options, &ControlRequest::Stats {})? else { bail!(ANOTHER) };
    Ok(match options.json {
        true => serde_json::to_string(&overview)? + "\n",
        false => control::metrics(&overview, Exposition::Classic),
    })
}

/// `pushring disconnects`.
///
/// # Errors
/// No daemon answers.
pub(crate) fn disconnects(options: DisconnectsOptions) -> anyhow::Result<String> {
    let DisconnectsOptions { ask: to, process, channel, code, last } = options;
    let process = process.map(|id| id.parse().with_context(|| format!("process: {id:?}"))).transpose()?;
    let filter = Filter { process, channel: channel.map(pushring::ChannelId::new), code, last };
    let ControlAnswer::Disconnects(ends) = ask(&to, &ControlRequest::Disconnects(filter))? else { bail!(ANOTHER) };
    match to.json {
        true => ends.iter().map(|end| Ok(serde_json::to_string(end)? + "\n")).collect(),
        false => Ok(ends_text(&ends)),
    }
}

/// The error for an answer to another question.
pub(super) const ANOTHER: &str = "the daemon sent another kind of answer: is it of another version?";

/// Asks the daemon that `options` name.
pub(super) fn ask(options: &AskOptions, request: &ControlRequest) -> anyhow::Result<ControlAnswer> {
    let config = options.load()?;
    let path = config.control.find(config.address().port()).context("control: it is off")?;
    Ok(control::ask(&path, request)?)
}

fn time(unix_ms: u64) -> String {
    format_rfc3339_millis(SystemTime::UNIX_EPOCH + Duration::from_millis(unix_ms)).to_string()
}

/// A span in words.
pub(super) fn seconds(seconds: u64) -> String {
    format_duration(Duration::from_secs(seconds)).to_string().replace(' ', "")
}

fn overview_text(overview: &Overview) -> String {
    let Overview { about, unix_ms, usage, hub: _, held, shards, fleet: _, reload: _ } = overview;
    let up = seconds(unix_ms.saturating_sub(about.since_unix_ms) / 1000);
    let mut text = format!(
        "pushring {} (pid {}) for {} at {}, on {}, up {up}\n",
        about.version,
        about.pid,
        about.node,
        listeners(about),
        about.driver
    );
    text += &usage_text(usage);
    text.push('\n');
    let row = |name: String, cells: [u64; 5]| {
        let [connections, channels, used, leased, sent] = cells;
        [name, connections.to_string(), channels.to_string(), bytes(used), bytes(leased), bytes(sent)]
    };
    let cells = shards.iter().map(|shard| {
        let memory = &shard.memory;
        [
            shard.connections as u64,
            shard.channels as u64,
            memory.used_bytes() as u64,
            memory.leased_bytes as u64,
            shard.stats.sent_bytes,
        ]
    });
    let cells: Vec<[u64; 5]> = cells.collect();
    let mut sum = [0; 5];
    cells.iter().for_each(|cells| sum.iter_mut().zip(cells).for_each(|(sum, cell)| *sum += cell));
    let mut rows: Vec<_> = cells.iter().enumerate().map(|(shard, cells)| row(shard.to_string(), *cells)).collect();
    rows.push(row("all".to_owned(), sum));
    let heads = ["SHARD", "CONNECTIONS", "CHANNELS", "HELD", "LEASED", "SENT"];
    text += &table(heads.map(|head| (head, Align::Right)), &rows);
    if let Some(memory) = shards.first().map(|shard| &shard.memory) {
        let kept = [memory.process_queue_bytes, memory.content_bytes, memory.topic_bytes, memory.link_bytes];
        let [unread, content, topics, link] = kept.map(|held| bytes(held as u64));
        let budget = memory.budget_bytes.map_or("unlimited".to_owned(), |budget| bytes(budget as u64));
        text += &format!(
            "memory budget {budget}; unread by processes {unread}; routes and their content {content}; topics \
             {topics}; kept by links {link}\n"
        );
    }
    if let Some(first) = held.first() {
        let name = first.process.as_ref().map_or("no process", |process| process.as_str());
        text += &format!("most is held for {name}: {}\n", bytes(first.held.total() as u64));
    }
    text += &tls_text(overview);
    let total = overview.total();
    let closed = pushring::ClosedBy::ALL
        .map(|by| (format!("closed_by_{}", by.name()), total.closed[by as usize], "Channels that it ended."));
    let responses = overview.responses().into_iter();
    let responses =
        responses.map(|(status, count)| (format!("responses_{status}"), count, "HTTP responses of this status."));
    let counts = total.counts().map(|(name, count, doc)| (name.to_owned(), count, doc));
    let rows: Vec<_> = counts
        .chain(closed)
        .chain(responses)
        .map(|(name, count, doc)| [count.to_string(), name, doc.to_owned()])
        .collect();
    text.push('\n');
    text + &table([("COUNT", Align::Right), ("OF", Align::Left), ("", Align::Left)], &rows)
}

/// Where clients connect.
fn listeners(about: &BrokerInfo) -> String {
    let plain = Some(about.address).filter(|address| about.tls_address != Some(*address));
    let listeners = [("http", plain), ("https", about.tls_address)];
    let open = listeners.into_iter().filter_map(|(scheme, address)| Some(format!("{scheme}://{}", address?)));
    open.collect::<Vec<_>>().join(" and ")
}

/// The counts of TLS handshakes, and the end of the certificate's validity.
fn tls_text(overview: &Overview) -> String {
    let shards = || overview.shards.iter().filter_map(|shard| shard.tls.as_ref());
    let Some(first) = shards().next() else { return String::new() };
    let connections: usize = shards().map(|tls| tls.connections).sum();
    let results = first.results().into_iter().enumerate().map(|(place, (name, _))| {
        let count: u64 = shards().map(|tls| tls.results()[place].1).sum();
        format!("{count} {}", name.replace('_', " "))
    });
    let end = first.certificates_end_unix_s.map_or(String::new(), |end_s| {
        let days = end_s.saturating_sub(overview.unix_ms / 1000) / 86_400;
        format!("; its certificate ends in {days} days, {}", &time(end_s * 1000)[..10])
    });
    let results = results.collect::<Vec<_>>().join(", ");
    format!("TLS: {connections} connections; handshakes: {results}{end}\n")
}

/// The machine's resources that the program uses, and the lines that its log has lost.
fn usage_text(usage: &Usage) -> String {
    let files = usage.open_files_max.map_or("as many as it likes".to_owned(), |max| max.to_string());
    let (resident, cpu) = (bytes(usage.resident_bytes), format_duration(Duration::from_millis(usage.cpu_ms)));
    let mut text =
        format!("{resident} resident, {cpu} of processor time, {} open files of {files}\n", usage.open_files);
    if usage.log_lines_lost > 0 {
        text += &format!("{} lines of the log were lost: is it read, and is there room?\n", usage.log_lines_lost);
    }
    text
}

/// Ends as a table.
pub(super) fn ends_text(ends: &[Disconnect]) -> String {
    if ends.is_empty() {
        return "none\n".to_owned();
    }
    let rows: Vec<_> = ends.iter().map(row).collect();
    let heads = [
        ("WHEN", Align::Left),
        ("CHANNEL", Align::Right),
        ("PROCESS", Align::Left),
        ("PATH", Align::Left),
        ("CLIENT", Align::Left),
        ("CODE", Align::Right),
        ("BY", Align::Left),
        ("LOST", Align::Right),
        ("OPEN", Align::Right),
        ("SILENT", Align::Right),
        ("PING", Align::Right),
        ("REASON", Align::Left),
    ];
    table(heads, &rows)
}

fn row(end: &Disconnect) -> [String; 12] {
    let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let peer = match end.forwarded_for {
        Some(client) => format!("{client} by {}", end.peer),
        None => end.peer.to_string(),
    };
    let ping = match (end.pings_unanswered, end.ping_ms) {
        (0, ping_ms) => or_none(ping_ms.map(|ms| format!("{ms}ms"))),
        (unanswered, _) => format!("{unanswered} unanswered"),
    };
    [
        time(end.unix_ms),
        or_none(end.channel.map(|channel| channel.to_string())),
        or_none(end.process.as_ref().map(|process| plain(process.as_str()))),
        plain(&end.path),
        peer,
        end.code.to_string(),
        end.by.name().to_owned(),
        bytes(end.lost_bytes as u64),
        seconds(end.age_s.into()),
        seconds(end.silent_ms / 1000),
        ping,
        plain(&end.reason),
    ]
}
