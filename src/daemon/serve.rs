//! Running the broker, with the demo or without, until it is told to stop.

use super::config::{Config, Driver};
use super::control;
use super::log;
use super::memory::MemoryBudget;
use super::metrics;
use super::signals;
use super::systemd;
use super::token::{random_secret, read_link_token, read_secret};
use super::units::Size;
use anyhow::Context;
use pushring::Broker;
use pushring::DriverKind;
use pushring::control::{LogCounts, Operator, Program};
use pushring::internals::demo;
use pushring::internals::driver::sys;
use pushring::internals::gateway::Secret;
use pushring::link;
use std::io::Write;
use std::net::TcpListener;
use std::sync::Arc;
use std::thread::JoinHandle;

/// Runs the broker alone.
///
/// # Errors
/// It could not start, or a shard died.
pub fn serve(config: &Config, listener: Option<TcpListener>) -> anyhow::Result<()> {
    let secret = secret_file(config)?;
    if secret.is_none() {
        tracing::warn!("no token secret (--jwt-secret-file): whatever needs a token is refused");
    }
    if config.link.as_os_str().is_empty() && config.link_tcp.is_empty() {
        tracing::warn!("no process can attach, so nobody is served: set link (--link PATH) or link_tcp");
    }
    run(config, listener, secret, |_| Ok(Vec::new()))
}

/// Runs the broker with the demo processes and their page.
///
/// # Errors
/// As [`serve`].
pub fn demo(config: &Config, listener: Option<TcpListener>) -> anyhow::Result<()> {
    let secret = match secret_file(config)? {
        Some(secret) => secret,
        None => random_secret()?,
    };
    run(config, listener, Some(secret.clone()), |broker| {
        let mut threads = demo::start(&broker.handle())?;
        // Whoever reaches a listener that is not loopback could take the cookie and be this node's user.
        let is_loopback = broker.address().ip().to_canonical().is_loopback();
        let cookie_name =
            pushring::internals::gateway::Settings::new(&config.node, config.dialect.into()).cookie_name();
        let login = is_loopback.then(|| demo::page::Login { node: config.node.clone(), cookie_name, secret });
        threads.push(demo::page::start(&broker.handle(), broker.shards(), login)?);
        Ok(threads)
    })
}

fn secret_file(config: &Config) -> anyhow::Result<Option<Secret>> {
    match config.jwt_secret_file.as_os_str().is_empty() {
        true => Ok(None),
        false => read_secret(&config.jwt_secret_file).map(Some),
    }
}

fn link_token(config: &Config) -> anyhow::Result<Option<link::Token>> {
    match config.link_token_file.as_os_str().is_empty() {
        true => Ok(None),
        false => read_link_token(&config.link_token_file).map(Some),
    }
}

fn start_link(broker: &Broker, config: link::Config) -> anyhow::Result<link::Server> {
    if config.tcp.is_some_and(|address| !address.ip().to_canonical().is_loopback()) {
        tracing::warn!("the link over TCP is not encrypted: whoever sees it can read its token and all messages");
    }
    let path = config.path.clone();
    if let Some(home) = path.as_deref().and_then(control::made_for) {
        home.make().with_context(|| format!("cannot make the directory of {}", home.path.display()))?;
    }
    let link = link::Server::start(broker.handle(), config)?;
    if let Some(path) = path {
        tracing::info!(path = %path.display(), "processes may attach");
    }
    if let Some(address) = link.tcp_address() {
        tracing::info!(%address, "processes may attach over TCP");
    }
    Ok(link)
}

/// What the daemon does for its operators beside what its broker does.
struct Daemon;

impl Program for Daemon {
    fn log_counts(&self) -> LogCounts {
        log::counts()
    }
}

type Threads = Vec<JoinHandle<()>>;

fn run(
    config: &Config,
    listener: Option<TcpListener>,
    secret: Option<Secret>,
    attach: impl FnOnce(&Broker) -> anyhow::Result<Threads>,
) -> anyhow::Result<()> {
    // Before anybody can know that we run: a signal from now on stops us cleanly.
    let signals = signals::catch()?;
    match sys::raise_open_files() {
        Ok(files) => tracing::debug!(files, "limit of open files"),
        Err(error) => tracing::warn!(%error, "cannot raise the limit of open files"),
    }
    let link = config.link(link_token(config)?)?;
    let broker = Broker::start(pushring::Config { listener: listener.map(Arc::new), ..config.broker(secret)? })?;
    let operator = Operator::new(&broker, Arc::new(Daemon));
    let mut threads = attach(&broker)?;
    if config.metrics {
        threads.push(metrics::start(operator.clone())?);
    }
    let link = link.map(|link| start_link(&broker, link)).transpose()?;
    let control = config.control.open(broker.address().port(), operator.clone())?;
    signals::obey(signals, operator, config.stop_timeout.duration())?;
    announce(&broker, config);
    systemd::ready(&broker.address().to_string());
    systemd::keep_informed(broker.handle())?;
    let ended = broker.wait();
    systemd::stopping();
    // Behind the broker: processes are told of the end of their channels first.
    drop((link, control));
    for thread in threads {
        if thread.join().is_err() {
            tracing::error!("a process of the daemon has panicked");
        }
    }
    ended?;
    tracing::info!("stopped");
    Ok(())
}

/// The first line on stdout is for tools: they read the port from it.
fn announce(broker: &Broker, config: &Config) {
    let (address, driver) = (broker.address(), broker.driver());
    let memory = broker.memory_bytes_max().map_or(MemoryBudget::Unlimited, |bytes| MemoryBudget::Size(Size(bytes)));
    tracing::info!(%address, node = config.node, shards = broker.shards(), %driver, %memory, "serving");
    if config.driver == Driver::Auto && driver == DriverKind::Epoll {
        tracing::warn!("no io_uring here: epoll serves, at a higher cost; `pushring doctor` says why");
    }
    let mut stdout = std::io::stdout().lock();
    let said = writeln!(stdout, "listening on http://{address}").and_then(|()| stdout.flush());
    if let Err(error) = said {
        tracing::warn!(%error, "nobody reads stdout");
    }
}
