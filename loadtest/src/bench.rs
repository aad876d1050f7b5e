//! The server of a run: which one, how it is started, and what must live as long as it.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;

use crate::behaviour::ClientBehaviour;
use crate::client::engine::Pace;
use crate::client::tls::TlsOptions;
use crate::modes::parse_positive;
use crate::server::{self, Launch, Server, ServerSpec, TemporaryFile};
use crate::sys;

/// A mode's own settings and the server it runs against.
#[derive(Debug, Args)]
pub(crate) struct Run<S: Args> {
    #[command(flatten)]
    pub settings: S,
    #[command(flatten)]
    pub server: ServerArgs,
}

/// The server, and how this program connects to it.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Server")]
pub(crate) struct ServerArgs {
    /// A running server: ws://HOST:PORT[/PATH] or wss://… Without it, `pushring demo` is started.
    #[arg(long)]
    pub url: Option<String>,
    /// An OS process of that server, whose CPU time and memory are measured (repeatable). On loopback it is found from
    /// the port.
    #[arg(long)]
    pub server_pid: Vec<u32>,
    /// The pushring program to start [default: `pushring` beside this program].
    #[arg(long, value_name = "PROGRAM")]
    pub start: Option<PathBuf>,
    /// Start a reference server instead (see `loadtest reference --help`).
    #[arg(long, value_name = "NAME", conflicts_with_all = ["url", "start"])]
    pub reference: Option<String>,
    /// Shards of the started pushring.
    #[arg(long, default_value_t = 1)]
    pub shards: usize,
    /// CPUs to pin the started server to, such as 0 or 0,1.
    #[arg(long, value_delimiter = ',')]
    pub server_cpus: Vec<usize>,
    /// CPUs to pin this program to.
    #[arg(long, value_delimiter = ',')]
    pub client_cpus: Vec<usize>,
    /// Wait in epoll instead of spinning. Spinning spares the server the cost of waking this program.
    #[arg(long)]
    pub no_spin: bool,
    /// Open registered channels at `/` instead of channels bound to the process' path.
    #[arg(long)]
    pub registered: bool,
    /// Offer the subprotocol pushring.1: the channels outlive their connections, and what they receive is kept for a
    /// while.
    #[arg(long, conflicts_with = "registered")]
    pub resumable: bool,
    /// The token of registered channels [default: made by `pushring token` when pushring is started here].
    #[arg(long, env = "LOADTEST_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// The node name in the token of registered channels.
    #[arg(long, default_value = "local.os")]
    pub node: String,
    /// Spread the clients over this many source addresses 127.0.0.1, 127.0.0.2, … of a loopback server.
    #[arg(long, default_value_t = 16)]
    pub sources: u8,
    /// Fail when nothing arrives for this long, in seconds.
    #[arg(long, default_value_t = 10.0, value_parser = parse_positive)]
    pub patience: f64,
    /// The started server speaks TLS, with a self-signed certificate made at the start.
    #[arg(long, conflicts_with = "url")]
    pub tls: bool,
    /// Check the certificate of a wss:// server against the authority in this PEM file; without it, any is accepted.
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// Offer X25519 alone to a wss:// server, instead of X25519MLKEM768 first, as browsers do.
    #[arg(long)]
    pub classic: bool,
    /// Print JSON instead of a table.
    #[arg(long)]
    pub json: bool,
}

/// A started server and what must live as long as it.
#[derive(Debug)]
pub(crate) struct Bench {
    /// The server.
    pub server: Server,
    /// How clients behave.
    pub behaviour: ClientBehaviour,
    _files: Vec<TemporaryFile>,
}

impl ServerArgs {
    /// Starts or finds the server, and pins this program.
    pub(crate) fn open(&self) -> anyhow::Result<Bench> {
        self.open_with(&[])
    }

    /// The same, and a pushring that is started gets these arguments too.
    pub(crate) fn open_with(&self, more: &[&str]) -> anyhow::Result<Bench> {
        let (mut spec, token, secret) = self.spec()?;
        let mut files = Vec::from_iter(secret);
        if self.tls {
            let certificate = server::make_certificate()?;
            let with_tls = match self.reference {
                Some(_) => Some(spec.reference_with_tls(&certificate.path)),
                None => spec.with_tls(&certificate.path)?,
            };
            spec = with_tls.context("this pushring was built without TLS: it has no --tls-listen")?;
            files.push(certificate);
        }
        if self.reference.is_none()
            && let Launch::Start { arguments, .. } = &mut spec.launch
        {
            arguments.extend(more.iter().map(|&argument| argument.to_owned()));
        }
        let server = spec.start()?;
        if !self.client_cpus.is_empty() {
            sys::pin_to(&self.client_cpus).with_context(|| format!("pinning to CPUs {:?}", self.client_cpus))?;
        }
        // On the only CPU of a machine spinning would keep the server from it.
        let spin = !self.no_spin && (!self.client_cpus.is_empty() || sys::allowed_cpus()?.len() > 1);
        let behaviour = ClientBehaviour {
            pace: if spin { Pace::Spin } else { Pace::Block },
            cpus: self.client_cpus.clone(),
            patience: Duration::try_from_secs_f64(self.patience).context("--patience")?,
            sources: self.sources,
            token,
            resumable: self.resumable,
            tls_options: TlsOptions { authority: self.ca.clone(), classic: self.classic, resumes: false },
        };
        Ok(Bench { server, behaviour, _files: files })
    }

    fn spec(&self) -> anyhow::Result<(ServerSpec, Option<String>, Option<TemporaryFile>)> {
        let token = self.token.clone().filter(|_| self.registered);
        if let Some(url) = &self.url {
            if self.registered && token.is_none() {
                bail!("registered channels of a server that was not started here need --token");
            }
            let launch = Launch::Listening { url: url.clone(), pids: self.server_pid.clone() };
            return Ok((
                ServerSpec { name: "server".into(), launch, cpus: self.server_cpus.clone(), tls: None, prefix: "" },
                token,
                None,
            ));
        }
        if let Some(reference) = &self.reference {
            // The reference servers take any token.
            let token = self.registered.then(|| token.unwrap_or_else(|| "any".into()));
            return Ok((ServerSpec::reference(reference, &self.server_cpus)?, token, None));
        }
        let program = Self::find_pushring(self.start.as_ref())?;
        let mut spec = ServerSpec::pushring(program.clone(), self.shards, &self.server_cpus);
        if !self.registered {
            return Ok((spec, None, None));
        }
        let secret = server::make_secret()?;
        let token = match token {
            Some(token) => token,
            None => server::make_token(&program, &self.node, &secret.path)?,
        };
        if let Launch::Start { arguments, .. } = &mut spec.launch {
            arguments.extend(["--node".into(), self.node.clone(), "--jwt-secret-file".into()]);
            arguments.push(secret.path.display().to_string());
        }
        Ok((spec, Some(token), Some(secret)))
    }

    /// The pushring program to start: `start`, or the one beside this program.
    pub(crate) fn find_pushring(start: Option<&PathBuf>) -> anyhow::Result<PathBuf> {
        let program = match start {
            Some(program) => program.clone(),
            None => std::env::current_exe()?.with_file_name("pushring"),
        };
        if !program.is_file() {
            bail!("no pushring at {}: build it (`cargo build --release`), or use --start or --url", program.display());
        }
        Ok(program)
    }
}

impl Bench {
    /// A bench around a server that is up.
    pub(crate) fn new(server: Server, behaviour: ClientBehaviour) -> Self {
        Self { server, behaviour, _files: Vec::new() }
    }
}
