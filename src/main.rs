//! The `pushring` daemon.

mod daemon;

use daemon::cli::{self, Action};
use daemon::{ask, log, serve, token};
use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    match run(cli::parse().action) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pushring: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(action: Action) -> anyhow::Result<()> {
    match action {
        Action::Serve(options) => {
            let config = options.load()?;
            log::start(&config)?;
            serve::serve(&config)
        }
        Action::Demo(options) => {
            let config = options.load()?;
            log::start(&config)?;
            serve::demo(&config)
        }
        Action::Config(options) => {
            let config = options.load()?;
            config.broker(None)?;
            config.link(None)?;
            print(&config.to_toml()?)
        }
        Action::Token(options) => {
            let config = options.load()?;
            log::start(&config)?;
            anyhow::ensure!(!config.jwt_secret_file.as_os_str().is_empty(), "a token needs --jwt-secret-file");
            let secret = token::read_secret(&config.jwt_secret_file)?;
            print(&(token::make_token(&secret, &config.node, options.ttl.duration())? + "\n"))
        }
        Action::Stats(options) => print(&ask::stats(&options)?),
        Action::Disconnects(options) => print(&ask::disconnects(options)?),
    }
}

fn print(text: &str) -> anyhow::Result<()> {
    Ok(std::io::stdout().lock().write_all(text.as_bytes())?)
}
