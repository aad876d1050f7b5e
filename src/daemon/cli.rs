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
#[command(name = "pushring", version)]
pub(crate) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub action: ProgramAction,
}

/// What the program does.
#[derive(Debug, Subcommand)]
pub(crate) enum ProgramAction {
    /// Run the broker until SIGTERM or Ctrl-C
    Serve(SettingsOptions),
    /// Run the broker with demo processes and a page at / that uses them; needs no file
    Demo(DemoOptions),
    /// Print the settings in force as a TOML file, with what each means
    Config(ConfigOptions),
    /// Write what a daemon needs to begin with: commented settings, a secret, a unit for systemd
    Init(InitOptions),
    /// Print a token for development
    Token(TokenOptions),
    /// Look for what stands in a daemon's way on this machine, and print how to mend it
    #[command(after_help = "Give it the settings that the daemon is to have. Ends with 0 where all is well, with 1 \
                            where there are warnings, with 2 where there are problems or settings cannot be read.")]
    Doctor(DoctorOptions),
    /// Print what a running daemon holds and has counted
    Stats(AskOptions),
    /// Print what a running daemon has counted, as text for Prometheus
    Metrics(AskOptions),
    /// Print the last channels that ended in a running daemon, and why; the newest last
    Disconnects(DisconnectsOptions),
    /// Print the live channels of a running daemon
    Channels(ChannelsOptions),
    /// Print the processes that are attached to a running daemon
    Processes(AskOptions),
    /// Print the other nodes of a running daemon's fleet, and what was lost between them
    Fleet(AskOptions),
    /// Show a running daemon's rates, processes, slowest clients and last ends, again and again
    Top(TopOptions),
    /// Close one channel of a running daemon with 1008
    Kick(KickOptions),
    /// Have a running daemon read its settings again; SIGHUP does the same
    Reload(AskOptions),
    /// Have a running daemon close its channels one after another, so that clients come back evenly, then stop
    Drain(DrainOptions),
    /// Print the completions of a shell
    Completions {
        /// Which
        shell: Shell,
    },
    /// Write the manual pages into a directory
    #[command(hide = true)]
    Man {
        /// Where
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

/// Where settings come from.
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

/// With what a daemon begins.
#[derive(Debug, Args)]
pub(crate) struct InitOptions {
    /// Where the files go; what is there already is kept
    #[arg(long, value_name = "DIRECTORY", default_value = "/etc/pushring")]
    dir: PathBuf,
    /// This node's name: the user of its tokens [default: local.os]
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

/// Which settings are printed.
#[derive(Debug, Args)]
pub(crate) struct ConfigOptions {
    /// Where they come from.
    #[command(flatten)]
    pub options: SettingsOptions,
    /// Print the defaults instead, each in a comment: a file to begin with
    #[arg(long)]
    pub defaults: bool,
}

/// Whose token, and for how long.
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
    /// How long it holds: seconds, or a duration as 12h
    #[arg(long, default_value = "24h", value_parser = parse_ttl)]
    pub ttl: Span,
}

fn parse_ttl(text: &str) -> Result<Span, super::units::UnitError> {
    match text.parse::<u64>() {
        Ok(seconds) => Ok(Span(seconds.saturating_mul(1000))),
        Err(_) => text.parse(),
    }
}

/// For which daemon the machine is looked at.
#[derive(Debug, Args)]
pub(crate) struct DoctorOptions {
    /// Its settings.
    #[command(flatten)]
    pub options: SettingsOptions,
    /// Print JSON: one finding a line
    #[arg(long)]
    pub json: bool,
}

/// Which daemon is asked, and how its answer is printed.
#[derive(Debug, Args)]
pub(crate) struct AskOptions {
    /// The daemon's file of settings, for `control` and `listen`
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The daemon's control socket
    #[arg(long, value_name = "PATH|auto")]
    control: Option<ControlPath>,
    /// Where the daemon listens: names its control socket, where that is auto
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = parse_address)]
    listen: Option<SocketAddr>,
    /// Print JSON: one object a line
    #[arg(long)]
    pub json: bool,
}

/// Which ends are asked for.
#[derive(Debug, Args)]
pub(crate) struct DisconnectsOptions {
    /// Which daemon.
    #[command(flatten)]
    pub ask: AskOptions,
    /// Only of channels of this process
    #[arg(long, value_name = "ID")]
    pub process: Option<String>,
    /// Only of this channel
    #[arg(long, value_name = "ID")]
    pub channel: Option<u32>,
    /// Only with this close code; 1006 is a connection that ended without one
    #[arg(long)]
    pub code: Option<u16>,
    /// Only the last so many
    #[arg(long, value_name = "COUNT")]
    pub last: Option<usize>,
}

/// Which channels are asked for.
#[derive(Debug, Args)]
pub(crate) struct ChannelsOptions {
    /// Which daemon.
    #[command(flatten)]
    pub ask: AskOptions,
    /// Only of this process
    #[arg(long, value_name = "ID")]
    pub process: Option<pushring::ProcessId>,
    /// Only those opened on this path, as its process bound it
    #[arg(long)]
    pub path: Option<String>,
    /// Only of clients in this range: an address, or a range as 10.0.0.0/8
    #[arg(long, value_name = "RANGE")]
    pub address: Option<pushring::IpPrefix>,
    /// Those for which most bytes wait, the fullest first
    #[arg(long, conflicts_with_all = ["process", "path", "address", "after"])]
    pub fullest: bool,
    /// The most that are printed
    #[arg(long, value_name = "COUNT", default_value_t = 100)]
    pub limit: usize,
    /// Go on where an answer ended
    #[arg(long, value_name = "CURSOR")]
    pub after: Option<pushring::Cursor>,
}

/// Which channel is closed.
#[derive(Debug, Args)]
pub(crate) struct KickOptions {
    /// Which daemon.
    #[command(flatten)]
    pub ask: AskOptions,
    /// The channel
    pub channel: u32,
    /// What its client is told; at most 123 bytes of it
    #[arg(long)]
    pub reason: Option<String>,
}

/// How a drain goes.
#[derive(Debug, Args)]
pub(crate) struct DrainOptions {
    /// Which daemon.
    #[command(flatten)]
    pub ask: AskOptions,
    /// How long new clients are still taken first [default: the daemon's drain_grace]
    #[arg(long, value_name = "TIME")]
    pub grace: Option<Span>,
    /// For how long channels are closed [default: the daemon's drain_over, or 1m where that is 0]
    #[arg(long, value_name = "TIME")]
    pub over: Option<Span>,
}

/// How often a daemon is looked at.
#[derive(Debug, Args)]
pub(crate) struct TopOptions {
    /// Which daemon.
    #[command(flatten)]
    pub ask: AskOptions,
    /// How long between two looks
    #[arg(long, value_name = "TIME", default_value = "1s")]
    pub every: Span,
    /// How often; for ever, unless it is said
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

/// How the demo is served.
#[derive(Debug, Args)]
pub(crate) struct DemoOptions {
    /// The settings.
    #[command(flatten)]
    pub options: SettingsOptions,
    /// Serve over TLS, with a certificate that is made now: browsers will warn that nobody has signed it
    #[arg(long)]
    pub tls: bool,
    /// How many receivers are simulated beside a page that is open; 0: none
    #[arg(long, value_name = "COUNT", default_value_t = 1000, value_parser = parse_receivers)]
    pub receivers: usize,
}

/// Each takes two descriptors and a seat in the picture.
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
        DaemonConfig::load(self.config.as_deref(), &SettingsFlags { node, jwt_secret_file, ..SettingsFlags::default() })
    }
}

/// Reads the command line and the environment, and tells which variables set nothing. Ends the process when the command
/// line is wrong, or asks for help.
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

/// Ends the process with what clap says, and names the variable that a wrong value comes from: clap names the flag.
fn refuse(error: &clap::Error) -> ! {
    // Nobody may read stderr.
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

/// The command with what a derive cannot say: each setting's environment variable and its default.
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
    fn a_bare_time_to_live_is_seconds() {
        assert_eq!(parse_ttl("90"), Ok(Span::seconds(90)));
        assert_eq!(parse_ttl("2h"), Ok(Span::seconds(7200)));
        assert!(parse_ttl("soon").is_err());
    }
}
