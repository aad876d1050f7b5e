//! The `pushring` daemon.

#![deny(unsafe_code)]
#![warn(unreachable_pub)]

mod daemon;

use daemon::cli::{self, ProgramAction};
use daemon::config::{self, DaemonConfig};
use daemon::{ask, doctor, fleet, init, log, program, serve, systemd, token, twins};
use std::io::{self, Write};
use std::net::TcpListener;
use std::process::ExitCode;

/// The exit status of `doctor` when it finds problems.
const PROBLEMS: u8 = 2;

fn main() -> ExitCode {
    let (action, unknown) = match cli::parse() {
        Ok((cli, unknown)) => (cli.action, unknown),
        Err(error) => {
            log::fatal(&error, None);
            return ExitCode::FAILURE;
        }
    };
    let failure = if matches!(action, ProgramAction::Doctor(_)) { ExitCode::from(PROBLEMS) } else { ExitCode::FAILURE };
    let log_format = action.log_format();
    let code = match run(action, &unknown) {
        Ok(code) => code,
        // Whoever reads what is printed has enough: `pushring channels | head`.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            log::fatal(&error, log_format);
            failure
        }
    };
    log::flush();
    code
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

fn run(action: ProgramAction, unknown: &[String]) -> anyhow::Result<ExitCode> {
    match action {
        ProgramAction::Serve(options) => {
            let config = options.load()?;
            let listener = begin(&config, unknown)?;
            serve::serve(Box::new(move || options.load()), listener)?;
        }
        ProgramAction::Demo(options) => {
            let config = options.load()?;
            let listener = begin(&config, unknown)?;
            let (over_tls, receivers) = (options.tls, options.receivers);
            serve::demo(Box::new(move || options.load()), listener, over_tls, receivers)?;
        }
        ProgramAction::Config(options) => {
            let is_template = options.defaults;
            let config = if is_template { DaemonConfig::default() } else { options.options.load()? };
            program::check(&config)?;
            for name in config.old_names() {
                writeln!(io::stderr(), "{name}")?;
            }
            print(&config::write(&config, is_template)?)?;
        }
        ProgramAction::Token(options) => {
            let config = options.load()?;
            log::start(&config)?;
            anyhow::ensure!(!config.jwt_secret_file.as_os_str().is_empty(), "a token needs --jwt-secret-file");
            let secret = token::read_secret("jwt_secret_file", &config.jwt_secret_file)?;
            print(&(token::make_token(&secret, &config.node, options.ttl.duration())? + "\n"))?;
        }
        ProgramAction::Init(options) => print(&init::init(&options.into_wish())?)?,
        ProgramAction::Completions { shell } => print(&cli::completions(shell)?)?,
        ProgramAction::Man { directory } => cli::man(&directory)?,
        ProgramAction::Doctor(options) => {
            let (text, code) = doctor::run(&options.options.load()?, options.json)?;
            print(&text)?;
            return Ok(code);
        }
        ProgramAction::Stats(options) => print(&ask::stats(&options)?)?,
        ProgramAction::Metrics(options) => print(&ask::metrics(&options)?)?,
        ProgramAction::Disconnects(options) => print(&ask::disconnects(options)?)?,
        ProgramAction::Channels(options) => print(&twins::channels(options)?)?,
        ProgramAction::Processes(options) => print(&twins::processes(&options)?)?,
        ProgramAction::Fleet(options) => print(&fleet::show(&options)?)?,
        ProgramAction::Top(options) => twins::top(&options)?,
        ProgramAction::Kick(options) => print(&twins::kick(options)?)?,
        ProgramAction::Reload(options) => print(&twins::reload(&options)?)?,
        ProgramAction::Drain(options) => print(&twins::drain(&options)?)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Starts the log of a daemon; tells the listener that a service manager has opened for it.
fn begin(config: &DaemonConfig, unknown: &[String]) -> anyhow::Result<Option<TcpListener>> {
    // While this is the only thread.
    let listener = systemd::listener();
    log::start(config)?;
    for variable in unknown {
        tracing::warn!(variable, "an unknown environment variable PUSHRING_…: `pushring config` prints all settings");
    }
    for name in config.old_names() {
        tracing::warn!("{name}");
    }
    listener
}

fn print(text: &str) -> anyhow::Result<()> {
    Ok(io::stdout().lock().write_all(text.as_bytes())?)
}
