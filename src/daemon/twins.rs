//! An operator's commands for a running daemon, over its control socket. The admin page asks the same questions.

use super::ask::{ANOTHER, ask, ends_text, seconds};
use super::cli::{AskOptions, ChannelsOptions, DrainOptions, KickOptions, TopOptions};
use super::plain::plain;
use super::table::{Align, bytes, table};
use anyhow::bail;
use pushring::control::{Changes, ChannelQuery, ControlAnswer, ControlRequest, Filter, Overview};
use pushring::{ChannelFilter, ChannelReport, Disconnect, ProcessReport};
use serde::Serialize;
use serde_json::json;
use std::io::{IsTerminal, Write};
use std::thread;

/// Rows of each table of `top`.
const TOP_ROWS: usize = 8;

/// Clears the terminal and begins at its top (ECMA-48).
const CLEAR: &str = "\u{1b}[H\u{1b}[2J";

/// `pushring channels`.
///
/// # Errors
/// No daemon answers.
pub(crate) fn channels(options: ChannelsOptions) -> anyhow::Result<String> {
    let ChannelsOptions { ask: to, process, path, address, fullest, limit, after } = options;
    let filter = ChannelFilter { process, path: path.map(Into::into), address, ..ChannelFilter::default() };
    let query = ChannelQuery { filter, after, limit: Some(limit), fullest };
    let ControlAnswer::Channels(list) = ask(&to, &ControlRequest::Channels(query))? else { bail!(ANOTHER) };
    if to.json {
        let channels = list.channels.iter().map(serde_json::to_string);
        let more = list.next.map(|next| Ok(json!({ "next": next }).to_string()));
        return channels.chain(more).map(|line| Ok(line? + "\n")).collect();
    }
    let more = list.next.map_or(String::new(), |next| format!("there are more: --after {next}\n"));
    Ok(channels_text(&list.channels) + &more)
}

/// `pushring processes`.
///
/// # Errors
/// No daemon answers.
pub(crate) fn processes(options: &AskOptions) -> anyhow::Result<String> {
    let ControlAnswer::Processes(processes) = ask(options, &ControlRequest::Processes {})? else { bail!(ANOTHER) };
    match options.json {
        true => processes.iter().map(|process| Ok(serde_json::to_string(process)? + "\n")).collect(),
        false => Ok(processes_text(&processes)),
    }
}

/// `pushring kick`.
///
/// # Errors
/// No daemon answers, or it has no such channel.
pub(crate) fn kick(options: KickOptions) -> anyhow::Result<String> {
    let KickOptions { ask: to, channel, reason } = options;
    let request = ControlRequest::Kick { channel: pushring::ChannelId::new(channel), reason };
    let answer = ask(&to, &request)?;
    let ControlAnswer::Kicked(channel) = answer else { bail!(ANOTHER) };
    Ok(match to.json {
        true => serde_json::to_string(&answer)? + "\n",
        false => format!("channel {channel} is being closed\n"),
    })
}

/// `pushring reload`.
///
/// # Errors
/// No daemon answers, or its settings are wrong; then nothing has changed.
pub(crate) fn reload(options: &AskOptions) -> anyhow::Result<String> {
    let ControlAnswer::Reloaded(changes) = ask(options, &ControlRequest::Reload {})? else { bail!(ANOTHER) };
    Ok(match options.json {
        true => serde_json::to_string(&changes)? + "\n",
        false => changes_text(&changes),
    })
}

/// `pushring drain`.
///
/// # Errors
/// No daemon answers.
pub(crate) fn drain(options: &DrainOptions) -> anyhow::Result<String> {
    let ms = |span: Option<super::units::Span>| span.map(|span| span.0);
    let request = ControlRequest::Drain { grace_ms: ms(options.grace), over_ms: ms(options.over) };
    let ControlAnswer::Draining(drain) = ask(&options.ask, &request)? else { bail!(ANOTHER) };
    Ok(match options.ask.json {
        true => serde_json::to_string(&drain)? + "\n",
        false => format!(
            "draining: new clients are taken for {} s more, then channels are closed for {} s, then it stops\n",
            drain.grace_ms / 1000,
            drain.over_ms / 1000
        ),
    })
}

/// `pushring top`: looks again and again, until it has looked `--count` times, the daemon is gone, or Ctrl-C.
///
/// # Errors
/// No daemon answers.
pub(crate) fn top(options: &TopOptions) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    let clear = if out.is_terminal() && !options.ask.json { CLEAR } else { "" };
    let mut before: Option<Look> = None;
    let mut left = options.count;
    while left != Some(0) {
        let look = Look::at(&options.ask)?;
        let text = match options.ask.json {
            true => serde_json::to_string(&look)? + "\n",
            false => look.text(before.as_ref().map(|before| &*before.stats)),
        };
        write!(out, "{clear}{text}")?;
        out.flush()?;
        before = Some(look);
        left = left.map(|left| left - 1);
        if left != Some(0) {
            thread::sleep(options.every.duration());
        }
    }
    Ok(())
}

/// What `top` shows at a time.
#[derive(Serialize)]
struct Look {
    stats: Box<Overview>,
    /// Those for which most waits.
    channels: Vec<ChannelReport>,
    /// Those with most channels.
    processes: Vec<ProcessReport>,
    /// The last ends.
    disconnects: Vec<Disconnect>,
}

impl Look {
    fn at(daemon: &AskOptions) -> anyhow::Result<Self> {
        let ControlAnswer::Stats(stats) = ask(daemon, &ControlRequest::Stats {})? else { bail!(ANOTHER) };
        let query = ChannelQuery { limit: Some(TOP_ROWS), fullest: true, ..ChannelQuery::default() };
        let ControlAnswer::Channels(list) = ask(daemon, &ControlRequest::Channels(query))? else { bail!(ANOTHER) };
        let ControlAnswer::Processes(mut processes) = ask(daemon, &ControlRequest::Processes {})? else {
            bail!(ANOTHER)
        };
        let last = Filter { last: Some(TOP_ROWS), ..Filter::default() };
        let ControlAnswer::Disconnects(disconnects) = ask(daemon, &ControlRequest::Disconnects(last))? else {
            bail!(ANOTHER)
        };
        processes.sort_by_key(|process| std::cmp::Reverse(process.channels));
        processes.truncate(TOP_ROWS);
        Ok(Self { stats, channels: list.channels, processes, disconnects })
    }

    fn text(&self, before: Option<&Overview>) -> String {
        let parts = [
            rates_text(&self.stats, before),
            processes_text(&self.processes),
            "clients for which most waits:\n".to_owned() + &channels_text(&self.channels),
            "last ends:\n".to_owned() + &ends_text(&self.disconnects),
        ];
        parts.join("\n")
    }
}

fn rates_text(now: &Overview, before: Option<&Overview>) -> String {
    let about = &now.about;
    let up = seconds(now.unix_ms.saturating_sub(about.since_unix_ms) / 1000);
    let head = format!("pushring {} for {} at {}, up {up}\n\n", about.version, about.node, about.address);
    let rows: Vec<_> = now
        .shards
        .iter()
        .map(|shard| {
            let old = before.and_then(|before| before.shards.iter().find(|old| old.shard == shard.shard));
            let passed_ms = before.map_or(0, |before| now.unix_ms.saturating_sub(before.unix_ms));
            // Before there is a second look there are no rates.
            let rate = |value: fn(&pushring::Stats) -> u64| {
                let more = old.map(|old| value(&shard.stats).saturating_sub(value(&old.stats)));
                more.filter(|_| passed_ms > 0).map(|more| more * 1000 / passed_ms)
            };
            let counted = |rate: Option<u64>| rate.map_or("-".to_owned(), |rate| rate.to_string());
            [
                shard.shard.to_string(),
                shard.connections.to_string(),
                shard.channels.to_string(),
                counted(rate(|stats| stats.pushed)),
                counted(rate(|stats| stats.received)),
                rate(|stats| stats.sent_bytes).map_or("-".to_owned(), bytes),
                bytes(shard.memory.used_bytes() as u64),
            ]
        })
        .collect();
    let heads = ["SHARD", "CONNECTIONS", "CHANNELS", "PUSHED/s", "IN/s", "SENT/s", "HELD"];
    head + &table(heads.map(|head| (head, Align::Right)), &rows)
}

fn processes_text(processes: &[ProcessReport]) -> String {
    if processes.is_empty() {
        return "no process is attached\n".to_owned();
    }
    let row = |process: &ProcessReport| [plain(process.process.as_str()), process.channels.to_string()];
    let rows: Vec<_> = processes.iter().map(row).collect();
    table([("PROCESS", Align::Left), ("CHANNELS", Align::Right)], &rows)
}

fn channels_text(channels: &[ChannelReport]) -> String {
    if channels.is_empty() {
        return "none\n".to_owned();
    }
    let row = |channel: &ChannelReport| {
        let peer = match channel.forwarded_for {
            Some(client) => format!("{client} by {}", channel.peer),
            None => channel.peer.to_string(),
        };
        let client = if channel.is_detached { format!("{peer}, away") } else { peer };
        [
            channel.channel.to_string(),
            plain(channel.process.as_str()),
            plain(&channel.path),
            client,
            bytes(channel.queued_bytes as u64),
            bytes(channel.kept_bytes as u64),
            seconds(channel.age_s.into()),
            seconds(channel.silent_ms / 1000),
            channel.ping_ms.map_or("-".to_owned(), |ms| format!("{ms}ms")),
        ]
    };
    let heads = [
        ("CHANNEL", Align::Right),
        ("PROCESS", Align::Left),
        ("PATH", Align::Left),
        ("CLIENT", Align::Left),
        ("QUEUED", Align::Right),
        ("KEPT", Align::Right),
        ("OPEN", Align::Right),
        ("SILENT", Align::Right),
        ("PING", Align::Right),
    ];
    table(heads, &channels.iter().map(row).collect::<Vec<_>>())
}

/// The changes of a reload, as text for `pushring reload` and the log.
pub(crate) fn changes_text(changes: &Changes) -> String {
    let Changes { now, new_connections, restart } = changes;
    let parts = [("in force", now), ("for new connections", new_connections), ("after a restart only", restart)];
    let lines = parts.iter().filter(|(_, keys)| !keys.is_empty());
    let text: String = lines.map(|(when, keys)| format!("{when}: {}\n", keys.join(", "))).collect();
    if text.is_empty() { "nothing has changed\n".to_owned() } else { text }
}
