//! The command line.

use super::config::{self, DaemonConfig, Listen, LogFormat, SettingsFlags, parse_address};
use super::control::ControlPath;
use super::init::InitAnswers;
use super::units::Span;
use clap::error::{ContextKind, ContextValue};
use clap::{Args, Command, CommandFactory, FromArgMatches, Parser, Subcommand};
use clap_complete::Shell;
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// A push broker for WebSocket clients: browsers open channels, processes push to them.
#[derive(Debug, Parser)]
#[command(name = "pushring", version, max_term_width = 100)]
pub(crate) struct Cli {
    /// The command.
    #[command(subcommand)]
    pub action: ProgramAction,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum ProgramAction {
    /// Run the broker until SIGTERM or Ctrl-C
    Serve(SettingsOptions),
    /// Run the broker with demo processes and a page at / that uses them; needs no file
    Demo(DemoOptions),
    /// Print the settings in force as a TOML file, with comments
    Config(ConfigOptions),
    /// Write a daemon's first files: commented settings, a secret, a token, a systemd unit
    Init(InitOptions),
    /// Print a token for development
    Token(TokenOptions),
    /// Check this machine and the settings for a daemon, and print how to fix what is wrong
    #[command(after_help = "Pass the settings of the daemon. The exit status is 0 if all is well, 1 with warnings, 2 \
                            with problems or unreadable settings.")]
    Doctor(DoctorOptions),
    /// Print a running daemon's state and counts
    Stats(AskOptions),
    /// Print a running daemon's metrics, as text for Prometheus
    Metrics(AskOptions),
    /// Print the last channels that ended in a running daemon, with reasons; the newest last
    Disconnects(DisconnectsOptions),
    /// Print the live channels of a running daemon
    Channels(ChannelsOptions),
    /// Print the processes attached to a running daemon
    Processes(AskOptions),
    /// Print the other nodes of a running daemon's fleet, and the messages lost between them
    Fleet(AskOptions),
    /// Show a running daemon's rates, processes, slowest clients and last ends, refreshed
    Top(TopOptions),
    /// Close one channel of a running daemon with 1008
    Kick(KickOptions),
    /// Have a running daemon read its settings again; SIGHUP does the same
    Reload(AskOptions),
    /// Have a running daemon close its channels one after another, so that clients come back evenly, then stop
    Drain(DrainOptions),
    /// Print the completions of a shell
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Write the manual pages into a directory
    #[command(hide = true)]
    Man {
        /// The directory
        directory: PathBuf,
    },
}

impl ProgramAction {
    /// The format of the log, as far as it is known before the file has been read.
    pub(crate) fn log_format(&self) -> Option<LogFormat> {
        match self {
            Self::Serve(options) | Self::Demo(DemoOptions { options, .. }) => options.flags.log_format,
            _ => None,
        }
    }
}

/// The sources of settings.
#[derive(Debug, Args)]
pub(crate) struct SettingsOptions {
    /// A TOML file of settings; `pushring config` prints one
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// All settings.
    #[command(flatten)]
    pub flags: SettingsFlags,
    /// Do not pin shards to cores; the same as --pin=false
    #[arg(long, help_heading = "Threads")]
    no_pin: bool,
}

/// The first files of a daemon.
#[derive(Debug, Args)]
pub(crate) struct InitOptions {
    /// The directory for the files; existing ones are kept
    #[arg(long, value_name = "DIRECTORY", default_value = "/etc/pushring")]
    dir: PathBuf,
    /// This node's name: the `username` of its tokens [default: local.os]
    #[arg(long)]
    node: Option<String>,
    /// Where clients connect [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = parse_address)]
    listen: Option<SocketAddr>,
}

impl InitOptions {
    /// As [`super::init`] takes it.
    pub(crate) fn into_wish(self) -> InitAnswers {
        InitAnswers { directory: self.dir, node: self.node, listen: self.listen }
    }
}

/// The settings to print.
#[derive(Debug, Args)]
pub(crate) struct ConfigOptions {
    /// Their sources.
    #[command(flatten)]
    pub options: SettingsOptions,
    /// Print the defaults instead, each in a comment: a file to begin with
    #[arg(long)]
    pub defaults: bool,
}

/// The token's node and lifetime.
#[derive(Debug, Args)]
pub(crate) struct TokenOptions {
    /// A TOML file of settings, for `node` and `jwt_secret_file`
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The node that the token is for
    #[arg(long)]
    node: Option<String>,
    /// The file with the node's secret
    #[arg(long, value_name = "FILE")]
    jwt_secret_file: Option<PathBuf>,
    /// Its lifetime: seconds, or a duration as 12h
    #[arg(long, default_value = "24h", value_parser = parse_ttl)]
    pub ttl: Span,
}

fn parse_ttl(text: &str) -> Result<Span, super::units::UnitError> {
    match text.parse::<u64>() {
        Ok(seconds) => Ok(Span(seconds.saturating_mul(1000))),
        Err(_) => text.parse(),
    }
}

/// The daemon for which the machine is checked.
#[derive(Debug, Args)]
pub(crate) struct DoctorOptions {
    /// Its settings.
    #[command(flatten)]
    pub options: SettingsOptions,
    /// Print JSON: one finding a line
    #[arg(long)]
    pub json: bool,
}

/// The daemon to ask, and the format of its answer.
#[derive(Debug, Args)]
pub(crate) struct AskOptions {
    /// The daemon's file of settings, for `control` and `listen`
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The daemon's control socket
    #[arg(long, value_name = "PATH|auto")]
    control: Option<ControlPath>,
    /// The daemon's listen address, which names its control socket if that is auto
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = parse_address)]
    listen: Option<SocketAddr>,
    /// Print JSON: one object a line
    #[arg(long)]
    pub json: bool,
}

/// The ends to print.
#[derive(Debug, Args)]
pub(crate) struct DisconnectsOptions {
    /// The daemon.
    #[command(flatten)]
    pub ask: AskOptions,
    /// Only channels of this process
    #[arg(long, value_name = "ID")]
    pub process: Option<String>,
    /// Only this channel
    #[arg(long, value_name = "ID")]
    pub channel: Option<u32>,
    /// Only with this close code; 1006 is a connection that ended without one
    #[arg(long)]
    pub code: Option<u16>,
    /// At most so many, the last ones
    #[arg(long, value_name = "COUNT")]
    pub last: Option<usize>,
}

/// The channels to print.
#[derive(Debug, Args)]
pub(crate) struct ChannelsOptions {
    /// The daemon.
    #[command(flatten)]
    pub ask: AskOptions,
    /// Only channels of this process
    #[arg(long, value_name = "ID")]
    pub process: Option<pushring::ProcessId>,
    /// Only channels opened on this path, as its process bound it
    #[arg(long)]
    pub path: Option<String>,
    /// Only channels of clients in this range: an address, or a range as 10.0.0.0/8
    #[arg(long, value_name = "RANGE")]
    pub address: Option<pushring::IpPrefix>,
    /// The channels with most waiting bytes, the fullest first
    #[arg(long, conflicts_with_all = ["process", "path", "address", "after"])]
    pub fullest: bool,
    /// The most channels to print
    #[arg(long, value_name = "COUNT", default_value_t = 100)]
    pub limit: usize,
    /// Continue after the cursor of an earlier answer
    #[arg(long, value_name = "CURSOR")]
    pub after: Option<pushring::Cursor>,
}

/// The channel to close.
#[derive(Debug, Args)]
pub(crate) struct KickOptions {
    /// The daemon.
    #[command(flatten)]
    pub ask: AskOptions,
    /// The channel
    pub channel: u32,
    /// The reason sent to its client; at most 123 bytes of it
    #[arg(long)]
    pub reason: Option<String>,
}

/// The times of a drain.
#[derive(Debug, Args)]
pub(crate) struct DrainOptions {
    /// The daemon.
    #[command(flatten)]
    pub ask: AskOptions,
    /// How long new clients are still accepted first [default: the daemon's drain_grace]
    #[arg(long, value_name = "TIME")]
    pub grace: Option<Span>,
    /// The time over which channels are closed [default: the daemon's drain_over, or 1m if that is 0]
    #[arg(long, value_name = "TIME")]
    pub over: Option<Span>,
}

/// The interval and number of refreshes.
#[derive(Debug, Args)]
pub(crate) struct TopOptions {
    /// The daemon.
    #[command(flatten)]
    pub ask: AskOptions,
    /// The interval between refreshes
    #[arg(long, value_name = "TIME", default_value = "1s")]
    pub every: Span,
    /// The number of refreshes; unlimited by default
    #[arg(long)]
    pub count: Option<u64>,
}

impl AskOptions {
    /// The settings in force.
    pub(crate) fn load(&self) -> anyhow::Result<DaemonConfig> {
        let (control, listen) = (self.control.clone(), self.listen.map(Listen::at));
        DaemonConfig::load(self.config.as_deref(), &SettingsFlags { control, listen, ..SettingsFlags::default() })
    }
}

/// The demo's settings.
#[derive(Debug, Args)]
pub(crate) struct DemoOptions {
    /// The settings.
    #[command(flatten)]
    pub options: SettingsOptions,
    /// Serve over TLS, with a self-signed certificate made at the start; browsers will warn about it
    #[arg(long)]
    pub tls: bool,
    /// The number of simulated receivers while a page is open
    #[arg(long, value_name = "COUNT", default_value_t = 1000, value_parser = parse_receivers)]
    pub receivers: usize,
}

/// Each takes two descriptors and a place in the picture.
fn parse_receivers(text: &str) -> Result<usize, String> {
    let count = text.parse().map_err(|error| format!("{error}"))?;
    if count <= 10_000 { Ok(count) } else { Err("at most 10000".to_owned()) }
}

impl DemoOptions {
    /// The settings in force: with `--tls`, TLS takes the place of plain HTTP.
    pub(crate) fn load(&self) -> anyhow::Result<DaemonConfig> {
        let config = self.options.load()?;
        if !self.tls {
            return Ok(config);
        }
        anyhow::ensure!(
            config.tls_certs.0.is_empty(),
            "tls_certs: --tls makes a certificate of its own: give one or the other"
        );
        let address = config.tls_listen.0.or(config.listen.0);
        let sources = config.sources.with_a_certificate_made();
        Ok(DaemonConfig { listen: Listen(None), tls_listen: Listen(address), sources, ..config })
    }
}

impl SettingsOptions {
    /// The settings in force.
    pub(crate) fn load(&self) -> anyhow::Result<DaemonConfig> {
        let mut flags = self.flags.clone();
        if self.no_pin {
            flags.pin = Some(false);
        }
        if flags.log.is_none() {
            flags.log = std::env::var("RUST_LOG").ok().filter(|filter| !filter.trim().is_empty());
        }
        DaemonConfig::load(self.config.as_deref(), &flags)
    }
}

impl TokenOptions {
    /// The settings in force.
    pub(crate) fn load(&self) -> anyhow::Result<DaemonConfig> {
        let (node, jwt_secret_file) = (self.node.clone(), self.jwt_secret_file.clone());
        let flags = SettingsFlags { node, jwt_secret_file, ..SettingsFlags::default() };
        let config = DaemonConfig::load(self.config.as_deref(), &flags)?;
        config.check_node().map_err(|error| config.sources.locate(error))?;
        Ok(config)
    }
}

/// Reads the command line and the environment, and returns the variables that set nothing. Ends the OS process if the
/// command line is wrong or asks for help.
///
/// # Errors
/// A variable is misspelt or empty.
pub(crate) fn parse() -> anyhow::Result<(Cli, Vec<String>)> {
    let matches = command().try_get_matches();
    if let Err(error) = &matches
        && !error.use_stderr()
    {
        error.exit();
    }
    let defaults = toml::Table::try_from(DaemonConfig::default())?;
    let unknown = config::check_environment(|key| defaults.get(key).is_some_and(toml::Value::is_array))?;
    let cli = matches.and_then(|matches| Cli::from_arg_matches(&matches)).unwrap_or_else(|error| refuse(&error));
    Ok((cli, unknown))
}

/// Ends the OS process with clap's error, and names the variable that a wrong value comes from: clap names the flag.
fn refuse(error: &clap::Error) -> ! {
    // stderr may be closed.
    let _ = error.print();
    if let Some(variable) = variable_of(error) {
        let _ = writeln!(std::io::stderr(), "The value is that of the environment variable {variable}.");
    }
    std::process::exit(error.exit_code())
}

fn variable_of(error: &clap::Error) -> Option<String> {
    let Some(ContextValue::String(arg)) = error.get(ContextKind::InvalidArg) else { return None };
    let flag = arg.split([' ', '=']).next()?;
    let variable = config::variable_in_use(&flag.strip_prefix("--")?.replace('-', "_"));
    let is_given = std::env::args().any(|arg| arg == flag || arg.starts_with(&format!("{flag}=")));
    (!is_given && std::env::var_os(&variable).is_some()).then_some(variable)
}

/// The command, with the environment variable and the default of each setting, which a derive cannot add.
fn command() -> Command {
    let defaults = toml::Table::try_from(DaemonConfig::default()).expect("the defaults are plain TOML");
    let mut command = Cli::command();
    for name in [
        "serve",
        "demo",
        "config",
        "token",
        "doctor",
        "stats",
        "metrics",
        "disconnects",
        "channels",
        "processes",
        "fleet",
        "top",
        "kick",
        "reload",
        "drain",
    ] {
        command = command.mut_subcommand(name, |command| command.mut_args(|arg| describe(arg, &defaults)));
    }
    // There `--tls` is a flag of its own; elsewhere it is an old name.
    command.mut_subcommand("demo", |demo| demo.mut_arg("behind_tls", |arg| arg.alias(None)))
}

/// The completions of `shell`.
///
/// # Errors
/// They are no text.
pub(crate) fn completions(shell: Shell) -> anyhow::Result<String> {
    let mut out = Vec::new();
    clap_complete::generate(shell, &mut command(), "pushring", &mut out);
    Ok(String::from_utf8(out)?)
}

/// Writes `pushring.1` and the page of each command into `directory`.
///
/// # Errors
/// A file cannot be written.
pub(crate) fn man(directory: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(directory)?;
    clap_mangen::generate_to(command().disable_help_subcommand(true), directory)?;
    Ok(())
}

fn describe(arg: clap::Arg, defaults: &toml::Table) -> clap::Arg {
    let key = arg.get_id().to_string();
    let default = defaults.get(&key);
    if default.is_none() && key != "config" {
        return arg;
    }
    let arg = match default.map(toml::Value::to_string).filter(|value| !matches!(value.as_str(), "\"\"" | "[]")) {
        Some(value) => {
            let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
            arg.help(format!("{help} [default: {}]", value.trim_matches('"')))
        }
        None => arg,
    };
    arg.env(config::variable_in_use(&key)).hide_env_values(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_is_sound() {
        command().debug_assert();
    }

    #[test]
    fn help_is_at_most_100_columns_wide() {
        let mut command = command();
        command.build();
        let names: Vec<_> = command.get_subcommands().map(|command| command.get_name().to_owned()).collect();
        for name in names {
            // What a terminal says is not asked: a test may have one.
            let help = command.find_subcommand_mut(&name).unwrap().render_long_help().to_string();
            let widest = help.lines().max_by_key(|line| line.chars().count()).unwrap();
            assert!(widest.chars().count() <= 100, "{name}: {widest}");
        }
    }

    #[test]
    fn every_setting_has_a_variable_and_help() {
        let command = command();
        let serve = command.find_subcommand("serve").unwrap();
        for key in toml::Table::try_from(DaemonConfig::default()).unwrap().keys() {
            let arg = serve.get_arguments().find(|arg| arg.get_id().as_str() == key).unwrap();
            assert_eq!(arg.get_env().unwrap().to_str(), Some(&*format!("PUSHRING_{}", key.to_uppercase())));
            assert_eq!(arg.get_long().unwrap(), key.replace('_', "-"));
            assert!(!arg.get_help().unwrap().to_string().is_empty(), "{key}");
        }
    }

    #[test]
    fn switches_and_their_opposites() {
        let pin = |args: &[&str]| {
            let matches = command().try_get_matches_from([&["pushring", "config"], args].concat()).unwrap();
            let ProgramAction::Config(options) = Cli::from_arg_matches(&matches).unwrap().action else { panic!() };
            options.options.load().unwrap().pin
        };
        assert!(pin(&[]) && pin(&["--pin"]) && pin(&["--pin=true"]));
        assert!(!pin(&["--no-pin"]) && !pin(&["--pin=false"]));
    }

    #[test]
    fn a_token_is_for_a_node_that_can_be_served() {
        let load = |node: &str| {
            let matches = command().try_get_matches_from(["pushring", "token", "--node", node]).unwrap();
            let ProgramAction::Token(options) = Cli::from_arg_matches(&matches).unwrap().action else { panic!() };
            options.load()
        };
        assert!(load("alice.os").is_ok());
        for node in ["", "a b", "a;b", "a\nb", "\u{e4}"] {
            let error = format!("{:#}", load(node).unwrap_err());
            assert!(error.contains("node: "), "{error}");
        }
    }

    #[test]
    fn a_bare_time_to_live_is_seconds() {
        assert_eq!(parse_ttl("90"), Ok(Span::seconds(90)));
        assert_eq!(parse_ttl("2h"), Ok(Span::seconds(7200)));
        assert!(parse_ttl("soon").is_err());
    }
}
