//! The daemon's part in a fleet: its settings, its start, and what operators see of it.

use super::ask::{ANOTHER, ask};
use super::cli::AskOptions;
use super::plain::plain;
use super::table::{Align, bytes, table};
use anyhow::bail;
use humantime::format_rfc3339_millis;
use pushring::control::{ControlAnswer, ControlRequest};
use pushring::{FleetLine, FleetNode, FleetReport};
use std::time::{Duration, SystemTime};

#[cfg(feature = "fleet")]
mod join;
#[cfg(not(feature = "fleet"))]
mod no_join;

#[cfg(feature = "fleet")]
pub(crate) use join::{check, probe, start};
#[cfg(not(feature = "fleet"))]
pub(crate) use no_join::{check, probe, start};

/// The default of the bytes that may wait for NATS.
pub(crate) const QUEUE_BYTES_MAX_DEFAULT: usize = 16 << 20;

/// How many audiences are listened to and counted unless it is said.
pub(crate) const SUBJECTS_MAX_DEFAULT: usize = 64 * 1024;

/// `pushring fleet`.
///
/// # Errors
/// No daemon answers, or it is in no fleet.
pub(crate) fn show(to: &AskOptions) -> anyhow::Result<String> {
    match ask(to, &ControlRequest::Fleet {})? {
        ControlAnswer::Fleet(report) if to.json => Ok(serde_json::to_string(&report)? + "\n"),
        ControlAnswer::Fleet(report) => Ok(text(&report)),
        ControlAnswer::Refused(why) => bail!(why),
        _ => bail!(ANOTHER),
    }
}

fn text(report: &FleetReport) -> String {
    let reached = if report.connected { "reached" } else { "NOT REACHED" };
    let round_trip = report.round_trip_us.map_or("-".to_owned(), |us| format!("{us} µs"));
    let mut text = format!(
        "{} in the fleet {}; NATS at {} is {reached}, there and back in {round_trip}\nlistens to {} audiences; {} messages \
         wait ({})\n\n",
        plain(&report.node),
        plain(&report.fleet),
        plain(&report.server),
        report.listens,
        report.queued,
        bytes(report.queued_bytes),
    );
    let state = |node: &FleetNode| match (node.is_gone, node.draining) {
        (true, _) => "gone",
        (false, true) => "draining",
        (false, false) => "there",
    };
    let row = |node: &FleetNode| {
        let heard = format!("{}ms", node.heard_ms);
        let address = if node.public.is_empty() { &node.address } else { &node.public };
        let (name, version, address) = (plain(&node.node), plain(&node.version), plain(address));
        [name, state(node).to_owned(), version, address, node.channels.to_string(), heard, node.lost.to_string()]
    };
    let heads = [
        ("NODE", Align::Left),
        ("IS", Align::Left),
        ("VERSION", Align::Left),
        ("ADDRESS", Align::Left),
        ("CHANNELS", Align::Right),
        ("HEARD", Align::Right),
        ("LOST", Align::Right),
    ];
    match report.nodes.is_empty() {
        true => text += "no other node was heard\n",
        false => text += &table(heads, &report.nodes.iter().map(row).collect::<Vec<_>>()),
    }
    if !report.losses.is_empty() {
        text += "\nlost last:\n";
        let row = |line: &FleetLine| {
            let time = format_rfc3339_millis(SystemTime::UNIX_EPOCH + Duration::from_millis(line.unix_ms)).to_string();
            let lost = line.lost.map_or("unknown".to_owned(), |lost| lost.to_string());
            [time, plain(&line.node), lost, plain(&line.to)]
        };
        let heads = [("WHEN", Align::Left), ("NODE", Align::Left), ("LOST", Align::Right), ("TO", Align::Left)];
        text += &table(heads, &report.losses.iter().map(row).collect::<Vec<_>>());
    }
    let counts =
        report.counts.all().map(|(name, count, doc)| [count.to_string(), name.to_owned(), doc.trim().to_owned()]);
    text.push('\n');
    text + &table([("COUNT", Align::Right), ("OF", Align::Left), ("", Align::Left)], &counts.collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fleet_is_shown_in_tables() {
        let node = FleetNode { node: "b".into(), lost: 3, ..FleetNode::default() };
        let line = FleetLine { node: "b".into(), to: "a:b:c topic \u{1b}x".into(), lost: None, ..FleetLine::default() };
        let report = FleetReport { node: "a".into(), nodes: vec![node], losses: vec![line], ..FleetReport::default() };
        let text = text(&report);
        for words in ["NOT REACHED", "there", "unknown", "gaps_unknown", "topic \\u{1b}x"] {
            assert!(text.contains(words), "{words}: {text}");
        }
    }
}
