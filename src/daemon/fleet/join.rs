//! Joining a fleet, in a program that was built with the feature `fleet`.

use crate::daemon::config::DaemonConfig;
use crate::daemon::token::read_fleet_credentials;
use anyhow::{Context, ensure};
use pushring::fleet::{Fleet, Name, Options};
use pushring::{Broker, FleetProbe};

/// The longest address that clients are told.
const PUBLIC_BYTES_MAX: usize = 512;

/// As what the daemon joins a fleet; none: it joins none.
///
/// # Errors
/// An invalid value, with its key.
fn options(config: &DaemonConfig) -> anyhow::Result<Option<Options>> {
    try_options(config).map_err(|error| config.sources.locate(error))
}

fn try_options(config: &DaemonConfig) -> anyhow::Result<Option<Options>> {
    let servers = config.fleet_nats.0.clone();
    let node = match config.fleet_node.as_str() {
        "" => Name::of_node(&config.node),
        node => Name::new(node),
    };
    let (fleet, node) = (Name::new(&config.fleet_name).context("fleet_name")?, node.context("fleet_node")?);
    for server in &servers {
        let is_fit = server.starts_with("nats://") || server.starts_with("tls://");
        ensure!(is_fit, "fleet_nats: {server:?} is no address: write nats://HOST:PORT or tls://HOST:PORT");
        ensure!(!server.contains('@'), "fleet_nats: user and password belong into fleet_credentials_file");
    }
    let public = config.fleet_address.clone();
    let is_url = ["ws://", "wss://", "http://", "https://"].iter().any(|scheme| public.starts_with(scheme));
    ensure!(
        public.is_empty()
            || is_url && public.len() <= PUBLIC_BYTES_MAX && public.bytes().all(|byte| byte.is_ascii_graphic()),
        "fleet_address: {public:?} is no address that clients can use: write wss://HOST, at most {PUBLIC_BYTES_MAX} bytes"
    );
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
        public,
        credentials: file(&config.fleet_credentials_file).map(|path| read_fleet_credentials(&path)).transpose()?,
        ca_file: file(&config.fleet_ca_file),
        queue_bytes_max: config.fleet_queue_bytes_max.0 as u64,
        subjects_max: config.fleet_subjects_max,
    }))
}

/// Joins the fleet that the settings name, if they name one.
///
/// # Errors
/// A setting is invalid. That NATS is not reached is no error: it is tried again for ever.
pub(crate) fn start(config: &DaemonConfig, broker: &Broker) -> anyhow::Result<Option<Fleet>> {
    let Some(options) = options(config)? else { return Ok(None) };
    let (name, node) = (options.fleet.clone(), options.node.clone());
    if config.fleet_node.is_empty() && config.node == DaemonConfig::default().node {
        tracing::warn!(%node, "this node's name in the fleet is the default one: give each node its own (fleet_node)");
    }
    let fleet = Fleet::start(&broker.handle(), options)?;
    tracing::info!(fleet = %name, %node, "part of a fleet");
    Ok(Some(fleet))
}

/// Probes NATS for a daemon of these settings; none: no fleet is configured.
pub(crate) fn probe(config: &DaemonConfig) -> Option<Result<FleetProbe, String>> {
    match options(config) {
        Ok(None) => None,
        Ok(Some(options)) => Some(pushring::fleet::probe(&options)),
        Err(error) => Some(Err(format!("{error:#}"))),
    }
}

/// Checks the settings.
///
/// # Errors
/// By the key of one that cannot.
pub(crate) fn check(config: &DaemonConfig) -> anyhow::Result<()> {
    options(config).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::config::SettingsFlags;
    use crate::daemon::fleet::{QUEUE_BYTES_MAX_DEFAULT, SUBJECTS_MAX_DEFAULT};

    fn read(text: &str) -> Result<Option<Options>, String> {
        options(&DaemonConfig::layered(text, &SettingsFlags::default()).unwrap()).map_err(|error| format!("{error:#}"))
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
            ("fleet_address = \"node-1:8080\"", "fleet_address"),
            ("fleet_subjects_max = 0", "fleet_subjects_max"),
            ("fleet_nats = [\"nats://h\"]\nfleet_credentials_file = \"/no/such\"", "fleet_credentials_file"),
        ] {
            let error = read(text).map(drop).unwrap_err();
            assert!(error.contains(key), "{text}: {error}");
        }
    }

    #[test]
    fn the_defaults_are_the_librarys_own() {
        assert_eq!(QUEUE_BYTES_MAX_DEFAULT as u64, pushring::fleet::QUEUE_BYTES_MAX_DEFAULT);
        assert_eq!(SUBJECTS_MAX_DEFAULT, pushring::fleet::SUBJECTS_MAX_DEFAULT);
    }
}
