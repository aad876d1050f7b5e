//! The log, on stderr.

use super::config::{Config, LogFormat};
use anyhow::Context;
use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;

/// Starts logging. Once.
///
/// # Errors
/// The filter is none.
pub fn start(config: &Config) -> anyhow::Result<()> {
    let filter = EnvFilter::builder().parse(&config.log).with_context(|| format!("log: {:?}", config.log))?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match config.log_format {
        LogFormat::Text => log.with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => log.json().init(),
    }
    Ok(())
}
