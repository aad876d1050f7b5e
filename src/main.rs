//! The `pushring` daemon.

mod daemon;

use daemon::cli::{self, Action};
use daemon::{ask, doctor, log, serve, token};
use std::io::Write;
use std::process::ExitCode;

/// What `doctor` ends with where it finds problems.
const PROBLEMS: u8 = 2;

fn main() -> ExitCode {
    let action = cli::parse().action;
    let failure = if matches!(action, Action::Doctor(_)) { ExitCode::from(PROBLEMS) } else { ExitCode::FAILURE };
    let log_format = action.log_format();
    let code = run(action).unwrap_or_else(|error| {
        log::fatal(&error, log_format);
        failure
    });
    log::flush();
    code
}

fn run(action: Action) -> anyhow::Result<ExitCode> {
    match action {
        Action::Serve(options) => {
            let config = options.load()?;
            log::start(&config)?;
            serve::serve(&config)?;
        }
        Action::Demo(options) => {
            let config = options.load()?;
            log::start(&config)?;
            serve::demo(&config)?;
        }
        Action::Config(options) => {
            let config = options.load()?;
            config.broker(None)?;
            config.link(None)?;
            print(&config.to_toml()?)?;
        }
        Action::Token(options) => {
            let config = options.load()?;
            log::start(&config)?;
            anyhow::ensure!(!config.jwt_secret_file.as_os_str().is_empty(), "a token needs --jwt-secret-file");
            let secret = token::read_secret(&config.jwt_secret_file)?;
            print(&(token::make_token(&secret, &config.node, options.ttl.duration())? + "\n"))?;
        }
        Action::Doctor(options) => {
            let (text, code) = doctor::run(&options.options.load()?, options.json)?;
            print(&text)?;
            return Ok(code);
        }
        Action::Stats(options) => print(&ask::stats(&options)?)?,
        Action::Metrics(options) => print(&ask::metrics(&options)?)?,
        Action::Disconnects(options) => print(&ask::disconnects(options)?)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn print(text: &str) -> anyhow::Result<()> {
    Ok(std::io::stdout().lock().write_all(text.as_bytes())?)
}
