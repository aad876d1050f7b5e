//! The daemon's part in a fleet: its settings, its start, and what operators see of it.

use super::ask::{ANOTHER, ask};
use super::cli::AskOptions;
use super::config::Config;
use super::plain::plain;
use super::table::{Align, bytes, table};
use super::token::read_fleet_credentials;
use anyhow::{Context, bail, ensure};
use humantime::format_rfc3339_millis;
use pushring::control::{Answer, Request};
use pushring::fleet::{self, Fleet, Name, Options, Probed};
use pushring::{Broker, FleetLine, FleetNode, FleetReport};
use std::time::{Duration, SystemTime};

/// As what the daemon joins a fleet; none: it joins none.
///
/// # Errors
/// A value that cannot be obeyed, by its key.
pub fn options(config: &Config) -> anyhow::Result<Option<Options>> {
    let servers = config.fleet_nats.0.clone();
    let node = match config.fleet_node.as_str() {
        "" => config.node.replace('.', "-"),
        node => node.to_owned(),
    };
    let (fleet, node) = (Name::new(&config.fleet_name).context("fleet_name")?, Name::new(&node).context("fleet_node")?);
    for server in &servers {
        let is_fit = server.starts_with("nats://") || server.starts_with("tls://");
        ensure!(is_fit, "fleet_nats: {server:?} is no address: write nats://HOST:PORT or tls://HOST:PORT");
        ensure!(!server.contains('@'), "fleet_nats: user and password belong into fleet_credentials_file");
    }
    ensure!(config.fleet_queue_bytes_max.0 > 0, "fleet_queue_bytes_max: must be more than 0");
    ensure!(config.fleet_subjects_max > 0, "fleet_subjects_max: must be more than 0");
    let file = |path: &std::path::Path| Some(path.to_owned()).filter(|path| !path.as_os_str().is_empty());
    if servers.is_empty() {
        return Ok(None);
    }
    Ok(Some(Options {
        servers,
        fleet,
        node,
        credentials: file(&config.fleet_credentials_file).map(|path| read_fleet_credentials(&path)).transpose()?,
        ca_file: file(&config.fleet_ca_file),
        queue_bytes_max: config.fleet_queue_bytes_max.0 as u64,
        subjects_max: config.fleet_subjects_max,
    }))
}

/// Joins the fleet that the settings name, if they name one.
///
/// # Errors
/// A setting cannot be obeyed. That NATS is not reached is no error: it is tried again for ever.
pub fn start(config: &Config, broker: &Broker) -> anyhow::Result<Option<Fleet>> {
    let Some(options) = options(config)? else { return Ok(None) };
    let (name, node) = (options.fleet.clone(), options.node.clone());
    if config.fleet_node.is_empty() && config.node == Config::default().node {
        tracing::warn!(%node, "this node's name in the fleet is the default one: give each node its own (fleet_node)");
    }
    let fleet = Fleet::start(&broker.handle(), options)?;
    tracing::info!(fleet = %name, %node, "part of a fleet");
    Ok(Some(fleet))
}

/// What NATS says to a daemon of these settings; none: it is to be in no fleet.
pub fn probe(config: &Config) -> Option<Result<Probed, String>> {
    match options(config) {
        Ok(None) => None,
        Ok(Some(options)) => Some(fleet::probe(&options)),
        Err(error) => Some(Err(format!("{error:#}"))),
    }
}

/// `pushring fleet`.
///
/// # Errors
/// No daemon answers, or it is in no fleet.
pub fn show(to: &AskOptions) -> anyhow::Result<String> {
    match ask(to, &Request::Fleet {})? {
        Answer::Fleet(report) if to.json => Ok(serde_json::to_string(&report)? + "\n"),
        Answer::Fleet(report) => Ok(text(&report)),
        Answer::Refused(why) => bail!(why),
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
        let (name, version, address) = (plain(&node.node), plain(&node.version), plain(&node.address));
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
    use crate::daemon::config::Flags;

    fn read(text: &str) -> Result<Option<Options>, String> {
        options(&Config::layered(text, &Flags::default()).unwrap()).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn settings_name_a_fleet_or_say_what_is_wrong() {
        assert!(read("").unwrap().is_none());
        let options = read("fleet_nats = [\"nats://h:4222\"]\nnode = \"chat.os\"").unwrap().unwrap();
        assert_eq!((options.node.as_str(), options.fleet.as_str()), ("chat-os", "main"));
        for (text, key) in [
            ("fleet_nats = [\"h:4222\"]", "fleet_nats"),
            ("fleet_nats = [\"nats://u:p@h\"]", "fleet_credentials_file"),
            ("fleet_node = \"a.b\"", "fleet_node"),
            ("fleet_name = \"a b\"", "fleet_name"),
            ("fleet_subjects_max = 0", "fleet_subjects_max"),
            ("fleet_nats = [\"nats://h\"]\nfleet_credentials_file = \"/no/such\"", "fleet_credentials_file"),
        ] {
            let error = read(text).map(drop).unwrap_err();
            assert!(error.contains(key), "{text}: {error}");
        }
    }

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
