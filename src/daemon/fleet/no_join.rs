//! A program that was built without the feature `fleet`: it refuses its settings.

use crate::daemon::config::DaemonConfig;
use anyhow::ensure;
use pushring::{Broker, FleetProbe};
use std::convert::Infallible;

/// Refuses `fleet_nats`.
///
/// # Errors
/// It is set.
pub(crate) fn check(config: &DaemonConfig) -> anyhow::Result<()> {
    ensure!(config.fleet_nats.0.is_empty(), "fleet_nats: this program was built without the feature fleet");
    Ok(())
}

/// Joins nothing.
///
/// # Errors
/// As [`check`].
pub(crate) fn start(config: &DaemonConfig, _: &Broker) -> anyhow::Result<Option<Infallible>> {
    check(config).map(|()| None)
}

/// Probes nothing.
pub(crate) fn probe(config: &DaemonConfig) -> Option<Result<FleetProbe, String>> {
    check(config).err().map(|error| Err(error.to_string()))
}
