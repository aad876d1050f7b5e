//! The server under test: started here and pinned, or already listening.
//!
//! Invariants: a server that was started here is ended here, also when a run fails; one that was already listening is
//! never touched. It knows nothing of what is measured.

use std::fs::{self, File};
use std::io::Read;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::behaviour::ClientBehaviour;
use crate::client::tls::TlsOptions;
use crate::client::{Registration, Target};
use crate::compare::fronts::Front;
use crate::{proc, sys};

/// How long a started server may take until it listens, and until it has ended.
const START_MAX: Duration = Duration::from_secs(20);
const STOP_MAX: Duration = Duration::from_secs(10);

/// The text that every server prints on stdout before its address once it listens.
const LISTENING: &str = "listening on http://";

/// How to get at a server.
#[derive(Debug, Clone)]
pub(crate) enum Launch {
    /// It listens already.
    Listening {
        /// Its URL.
        url: String,
        /// Its processes; if empty, looked up by port.
        pids: Vec<u32>,
    },
    /// Start a program that prints `listening on http://ADDRESS`.
    Start {
        /// The program.
        program: PathBuf,
        /// Its arguments.
        arguments: Vec<String>,
    },
    /// Start such a program, and a proxy in front of it that ends TLS.
    Behind {
        /// The proxy.
        front: Front,
        /// Its certificate chain and key.
        pem: PathBuf,
        /// The program.
        program: PathBuf,
        /// Its arguments.
        arguments: Vec<String>,
    },
}

/// A server and where it may run.
#[derive(Debug, Clone)]
pub(crate) struct ServerSpec {
    /// Its name in reports.
    pub name: String,
    /// How to get at it.
    pub launch: Launch,
    /// The CPUs it is pinned to; empty: not pinned.
    pub cpus: Vec<usize>,
    /// Where it speaks TLS, if it is started here and does.
    pub tls: Option<Ends>,
    /// Stands before the names of `echo` and `relay`: which of pushring's own is meant.
    pub prefix: &'static str,
}

/// How a server that is started here speaks TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ends {
    /// On the address that it prints.
    There,
    /// On this port of loopback.
    At(u16),
}

impl ServerSpec {
    /// `pushring demo` on a free port of loopback.
    pub(crate) fn pushring(program: PathBuf, shards: usize, cpus: &[usize]) -> Self {
        let arguments = ["demo", "--listen", "127.0.0.1:0", "--shards", &shards.to_string()].map(str::to_owned);
        Self {
            name: "pushring".into(),
            launch: Launch::Start { program, arguments: arguments.to_vec() },
            cpus: cpus.to_vec(),
            tls: None,
            prefix: "",
        }
    }

    /// The same `pushring demo`, of whose processes those are meant that have threads of their own.
    pub(crate) fn on_threads(self) -> Self {
        Self { name: format!("{}, on threads", self.name), prefix: "threaded-", ..self }
    }

    /// A reference server of our own, as another process of this program.
    pub(crate) fn reference(name: &str, cpus: &[usize]) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("finding this program's own file")?;
        let arguments = ["reference", name, "--listen", "127.0.0.1:0"].map(str::to_owned).to_vec();
        let launch = Launch::Start { program, arguments };
        Ok(Self { name: name.to_owned(), launch, cpus: cpus.to_vec(), tls: None, prefix: "" })
    }

    /// The same with this proxy in front, which ends TLS by the chain and key in `pem`.
    pub(crate) fn behind(self, front: Front, pem: &Path) -> Self {
        let Launch::Start { program, arguments } = self.launch else { return self };
        let launch = Launch::Behind { front, pem: pem.to_owned(), program, arguments };
        Self { name: format!("{}+{}", front.name(), self.name), launch, ..self }
    }

    /// The same reference server with TLS.
    pub(crate) fn reference_with_tls(mut self, pem: &Path) -> Self {
        if let Launch::Start { arguments, .. } = &mut self.launch {
            arguments.extend(["--tls".to_owned(), pem.display().to_string()]);
        }
        Self { tls: Some(Ends::There), ..self }
    }

    /// The same `pushring demo` with TLS of its own, where the program has that.
    pub(crate) fn with_tls(mut self, pem: &Path) -> anyhow::Result<Option<Self>> {
        let Launch::Start { program, arguments } = &mut self.launch else { return Ok(None) };
        let help = Command::new(&*program).args(["demo", "--help"]).output().context("asking for its flags")?;
        if !String::from_utf8_lossy(&help.stdout).contains("--tls-listen") {
            return Ok(None);
        }
        let port = free_port()?;
        let (listen, certificate) = (format!("127.0.0.1:{port}"), format!("{0}:{0}", pem.display()));
        arguments.extend(["--tls-listen".to_owned(), listen, "--tls-certs".to_owned(), certificate]);
        Ok(Some(Self { tls: Some(Ends::At(port)), ..self }))
    }

    /// Starts the server, or finds the processes of the one that listens.
    pub(crate) fn start(&self) -> anyhow::Result<Server> {
        match &self.launch {
            Launch::Listening { url, pids } => self.find(url, pids),
            Launch::Start { program, arguments } => self.spawn(program, arguments),
            Launch::Behind { front, pem, program, arguments } => {
                let behind = self.spawn(program, arguments)?;
                self.put_before(*front, pem, behind)
            }
        }
    }

    fn find(&self, url: &str, pids: &[u32]) -> anyhow::Result<Server> {
        let address = Target::parse(url, "/", &TlsOptions::default())?.address;
        // Without its processes a server can still be measured from outside.
        let pids = if pids.is_empty() { proc::listeners(address).unwrap_or_default() } else { pids.to_vec() };
        Ok(Server {
            name: self.name.clone(),
            url: url.to_owned(),
            pids,
            cpus: self.cpus.len(),
            softirq_pids: proc::softirq_threads(&self.cpus),
            front: None,
            child: None,
            prefix: self.prefix,
        })
    }

    fn spawn(&self, program: &PathBuf, arguments: &[String]) -> anyhow::Result<Server> {
        let mut child = self.run(program, arguments)?;
        let address = child.wait_until_listening(&self.name)?;
        let pids = vec![child.child.id()];
        let url = match self.tls {
            None => format!("ws://{address}"),
            Some(Ends::There) => format!("wss://{address}"),
            Some(Ends::At(port)) => format!("wss://127.0.0.1:{port}"),
        };
        let (name, cpus, softirq_pids) = (self.name.clone(), self.cpus.len(), proc::softirq_threads(&self.cpus));
        Ok(Server { name, url, pids, cpus, softirq_pids, front: None, child: Some(child), prefix: self.prefix })
    }

    /// Starts the proxy in front of a server that has been started.
    fn put_before(&self, front: Front, pem: &Path, behind: Server) -> anyhow::Result<Server> {
        let program = front.program().with_context(|| format!("there is no {}", front.name()))?;
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()?));
        let server = Target::parse(&behind.url, "/", &TlsOptions::default())?.address;
        let directory = TemporaryDirectory::new()?;
        let file = directory.path.join("settings");
        fs::write(&file, front.settings(address, server, pem, &directory.path))?;
        let mut running = self.run(&program, &[front.flag().to_owned(), file.display().to_string()])?;
        running.wait_until_open(front.name(), address)?;
        let pids = [behind.pids.clone(), proc::listeners(address)?].concat();
        let name = self.name.clone();
        Ok(Server { name, url: format!("wss://{address}"), pids, front: Some((running, directory)), ..behind })
    }

    /// Starts a program on the server's CPUs.
    fn run(&self, program: &PathBuf, arguments: &[String]) -> anyhow::Result<Running> {
        let log = TemporaryFile::new("log")?;
        let output = File::create(&log.path)?;
        let before = sys::allowed_cpus()?;
        if !self.cpus.is_empty() {
            sys::pin_to(&self.cpus).with_context(|| format!("pinning the server to CPUs {:?}", self.cpus))?;
        }
        let spawned = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("starting {}", program.display()));
        sys::pin_to(&before)?;
        Ok(Running { child: spawned?, log })
    }
}

/// A server that listens.
#[derive(Debug)]
pub(crate) struct Server {
    /// Its name in reports.
    pub name: String,
    /// Where it listens.
    pub url: String,
    /// Its processes; empty when unknown.
    pub pids: Vec<u32>,
    /// To how many CPUs it is pinned; 0 when it is not.
    pub cpus: usize,
    /// The kernel's threads that do what is left of the network's work on those CPUs, where nothing else causes it.
    pub(crate) softirq_pids: Vec<u32>,
    /// The proxy in front of it, which ends first.
    front: Option<(Running, TemporaryDirectory)>,
    child: Option<Running>,
    prefix: &'static str,
}

impl Server {
    /// The endpoint of the demo process `process`: its bound path, or `/` with a registration if there is a token.
    pub(crate) fn target(&self, process: &str, behaviour: &ClientBehaviour) -> anyhow::Result<Target> {
        let token = behaviour.token.as_deref();
        let is_of_two_kinds = ["echo:", "relay:", "unicast:"].iter().any(|name| process.starts_with(name));
        let process = &if is_of_two_kinds { format!("{}{process}", self.prefix) } else { process.to_owned() };
        let path = if token.is_some() { "/".to_owned() } else { format!("/{process}/") };
        let mut target = Target::parse(&self.url, &path, &behaviour.tls_options)?;
        target.sources = behaviour.sources;
        target.protocols = behaviour.resumable.then_some("pushring.1");
        target.registration = token.map(|token| Registration { token: token.to_owned(), process: process.to_owned() });
        Ok(target)
    }

    /// Fails, with the end of its log, if a server that was started here has ended.
    pub(crate) fn check_alive(&mut self) -> anyhow::Result<()> {
        for running in self.front.iter_mut().map(|(running, _)| running).chain(&mut self.child) {
            running.check_alive(&self.name)?;
        }
        Ok(())
    }
}

#[derive(Debug)]
struct Running {
    child: Child,
    log: TemporaryFile,
}

impl Running {
    fn check_alive(&mut self, name: &str) -> anyhow::Result<()> {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            // In a process forked since: the server's parent will notice.
            Err(error) if error.raw_os_error() == Some(libc::ECHILD) => Ok(()),
            Err(error) => Err(error.into()),
            Ok(Some(status)) => bail!("{name} ended by itself ({status}):\n{}", self.log.tail()),
        }
    }

    fn wait_until_open(&mut self, name: &str, address: SocketAddr) -> anyhow::Result<()> {
        let start = Instant::now();
        while TcpStream::connect(address).is_err() {
            self.check_alive(name)?;
            if start.elapsed() > START_MAX {
                bail!("{name} does not listen on {address} after {START_MAX:?}:\n{}", self.log.tail());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    fn wait_until_listening(&mut self, name: &str) -> anyhow::Result<String> {
        let start = Instant::now();
        loop {
            let text = fs::read_to_string(&self.log.path)?;
            let address = text.lines().find_map(|line| line.split_once(LISTENING)).map(|(_, rest)| rest);
            // A line that has no end yet may still lack digits of the port.
            if let Some(address) = address.filter(|_| text.ends_with('\n')) {
                let end = address.find(|c: char| c.is_whitespace() || c == '/').unwrap_or(address.len());
                return Ok(address[..end].to_owned());
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("{name} did not start ({status}):\n{}", self.log.tail());
            }
            if start.elapsed() > START_MAX {
                bail!("{name} did not print `{LISTENING}…` within {START_MAX:?}:\n{}", self.log.tail());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn stop(&mut self) -> anyhow::Result<()> {
        sys::terminate(self.child.id())?;
        let start = Instant::now();
        while self.child.try_wait()?.is_none() {
            if start.elapsed() > STOP_MAX {
                self.child.kill()?;
                self.child.wait()?;
                bail!("the server did not stop on SIGTERM within {STOP_MAX:?} and was killed");
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(Some(_)))
            && let Err(error) = self.stop()
        {
            eprintln!("loadtest: {error:#}");
        }
    }
}

/// A file that goes away with its owner.
#[derive(Debug)]
pub(crate) struct TemporaryFile {
    /// Where it is.
    pub path: PathBuf,
}

impl TemporaryFile {
    /// An empty file that only this user can read.
    pub(crate) fn new(kind: &str) -> anyhow::Result<Self> {
        use std::os::unix::fs::OpenOptionsExt;
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("loadtest-{}-{}-{number}.{kind}", std::process::id(), sys::now_ns());
        let path = std::env::temp_dir().join(name);
        fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        Ok(Self { path })
    }

    fn tail(&self) -> String {
        let text = fs::read_to_string(&self.path).unwrap_or_else(|error| format!("(no log: {error})"));
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

impl Drop for TemporaryFile {
    fn drop(&mut self) {
        // The worst that a failure leaves behind is a small file in the temporary directory.
        let _ = fs::remove_file(&self.path);
    }
}

/// A directory that goes away with its owner.
#[derive(Debug)]
pub(crate) struct TemporaryDirectory {
    path: PathBuf,
}

impl TemporaryDirectory {
    fn new() -> anyhow::Result<Self> {
        use std::os::unix::fs::DirBuilderExt;
        let path = std::env::temp_dir().join(format!("loadtest-{}-{}", std::process::id(), sys::now_ns()));
        // A proxy's workers have another user.
        fs::DirBuilder::new().mode(0o755).create(&path)?;
        Ok(Self { path })
    }
}

impl Drop for TemporaryDirectory {
    fn drop(&mut self) {
        // The worst that a failure leaves behind is a small directory among temporary ones.
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// A free port of loopback.
pub(crate) fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// A certificate for this machine, made now and signed by itself, with its key behind it.
pub(crate) fn make_certificate() -> anyhow::Result<TemporaryFile> {
    let names = ["localhost", "127.0.0.1"].map(str::to_owned);
    let made = rcgen::generate_simple_self_signed(names).context("making a certificate")?;
    let file = TemporaryFile::new("pem")?;
    fs::write(&file.path, made.cert.pem() + &made.signing_key.serialize_pem())?;
    Ok(file)
}

/// A fresh secret in a file, for `pushring --jwt-secret-file`.
pub(crate) fn make_secret() -> anyhow::Result<TemporaryFile> {
    let mut bytes = [0; 32];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    let file = TemporaryFile::new("secret")?;
    fs::write(&file.path, bytes.map(|byte| format!("{byte:02x}")).concat())?;
    Ok(file)
}

/// Asks `pushring token` for a token of the secret in `secret_file`.
pub(crate) fn make_token(pushring: &PathBuf, node: &str, secret_file: &PathBuf) -> anyhow::Result<String> {
    let output = Command::new(pushring)
        .args(["token", "--node", node, "--jwt-secret-file"])
        .arg(secret_file)
        .output()
        .with_context(|| format!("running {} token", pushring.display()))?;
    if !output.status.success() {
        bail!("pushring token failed ({}): {}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    let token = String::from_utf8(output.stdout).context("the token is not UTF-8")?;
    Ok(token.trim().to_owned())
}
