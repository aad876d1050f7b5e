//! The log, on stderr.
//!
//! Invariants: a thread that logs never waits for the log's reader, and no fault of the log (no reader, full disk) ends
//! or stops anything: such lines are counted (`lines`). Text from outside controls no terminal and starts no line of
//! its own (`fields`, `lines`). The reason for the daemon's end is in the format of the log.

mod fields;
mod filter;
mod lines;

use super::config::{DaemonConfig, LogFormat};
use super::plain::plain;
use anyhow::Context;
pub(crate) use filter::parse as parse_filter;
use lines::{Form, LogWriter};
use pushring::control::LogCounts;
use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::Write;
use std::panic::{self, PanicHookInfo};
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;
use tracing_subscriber::{EnvFilter, reload};

/// How long the end of the program waits for its last lines to be written.
const FLUSH_WITHIN: Duration = Duration::from_secs(1);

static LINES: OnceLock<LogWriter> = OnceLock::new();

type SetFilter = Box<dyn Fn(EnvFilter) -> Result<(), reload::Error> + Send + Sync>;

static SET_FILTER: OnceLock<SetFilter> = OnceLock::new();

/// Starts logging. Once.
///
/// # Errors
/// The filter is none, or there is no thread.
pub(crate) fn start(config: &DaemonConfig) -> anyhow::Result<()> {
    start_with(parse_filter(&config.log)?, config.log_format)
}

fn start_with(filter: EnvFilter, format: LogFormat) -> anyhow::Result<()> {
    let form = match format {
        LogFormat::Text => Form::Text,
        LogFormat::Json => Form::Json,
    };
    let lines = LogWriter::start(std::io::stderr(), form).context("no thread for the log")?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).log_internal_errors(false).with_writer(lines.clone());
    let set_filter: SetFilter = match format {
        LogFormat::Text => {
            let log = log.fmt_fields(fields::PlainFields).with_ansi(is_coloured()).with_filter_reloading();
            let handle = log.reload_handle();
            log.init();
            Box::new(move |filter| handle.reload(filter))
        }
        LogFormat::Json => {
            let log = log.json().with_filter_reloading();
            let handle = log.reload_handle();
            log.init();
            Box::new(move |filter| handle.reload(filter))
        }
    };
    SET_FILTER.set(set_filter).ok().expect("the log is started once");
    LINES.set(lines).ok().expect("the log is started once");
    panic::set_hook(Box::new(report_panic));
    Ok(())
}

/// Logs what `filter` lets pass from now on.
///
/// # Errors
/// The log is going away.
pub(crate) fn set_filter(filter: EnvFilter) -> anyhow::Result<()> {
    SET_FILTER.get().map_or(Ok(()), |set| set(filter)).context("the log's filter cannot be changed")
}

/// Counts of lost lines.
pub(crate) fn counts() -> LogCounts {
    LINES.get().map(LogWriter::counts).unwrap_or_default()
}

/// Waits for what has been logged to be written, but not for long.
pub(crate) fn flush() {
    if let Some(lines) = LINES.get() {
        lines.flush(FLUSH_WITHIN);
    }
}

/// Reports why the program ends: in the log if there is one, else in `format`, as far as that is known.
pub(crate) fn fatal(error: &anyhow::Error, format: Option<LogFormat>) {
    if LINES.get().is_none() && format == Some(LogFormat::Json) {
        // Without a thread it is said as text below.
        let _ = start_with(EnvFilter::new("error"), LogFormat::Json);
    }
    match LINES.get().is_some() && tracing::enabled!(tracing::Level::ERROR) {
        true => tracing::error!("{error:#}"),
        // stderr may be closed.
        false => drop(writeln!(std::io::stderr(), "pushring: {}", plain(&format!("{error:#}")))),
    }
    flush();
}

/// Returns whether stderr is a terminal that wants colours: see <https://no-color.org>, and `TERM=dumb`.
fn is_coloured() -> bool {
    anstream::AutoStream::choice(&std::io::stderr()) != anstream::ColorChoice::Never
}

/// Logs a panic: the standard hook would block while stderr has no reader.
fn report_panic(panic: &PanicHookInfo<'_>) {
    let payload = panic.payload();
    let words =
        payload.downcast_ref::<&str>().copied().or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    let (current, words) = (thread::current(), words.unwrap_or("a value that is no text"));
    let thread = current.name().unwrap_or("unnamed");
    let place = panic.location().map(ToString::to_string);
    let backtrace = Backtrace::capture();
    match backtrace.status() {
        BacktraceStatus::Captured => tracing::error!(thread, place, %backtrace, "panicked: {words}"),
        _ => tracing::error!(thread, place, "panicked: {words}"),
    }
}
