//! A program that was built without the feature `fleet`: it refuses its settings.

use super::Probed;
use crate::daemon::config::Config;
use anyhow::ensure;
use pushring::Broker;
use std::convert::Infallible;

/// Refuses `fleet_nats`.
///
/// # Errors
/// It is set.
pub fn check(config: &Config) -> anyhow::Result<()> {
    ensure!(config.fleet_nats.0.is_empty(), "fleet_nats: this program was built without the feature fleet");
    Ok(())
}

/// Joins nothing.
///
/// # Errors
/// As [`check`].
pub fn start(config: &Config, _: &Broker) -> anyhow::Result<Option<Infallible>> {
    check(config).map(|()| None)
}

/// Asks nobody.
pub fn probe(config: &Config) -> Option<Result<Probed, String>> {
    check(config).err().map(|error| Err(error.to_string()))
}
