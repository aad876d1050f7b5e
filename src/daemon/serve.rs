//! Running the broker, with the demo or without, until it is told to stop.

use super::acme;
use super::admin::{self, Admin, AdminGuard, ReadyCondition};
use super::certificates::{self, Certificates};
use super::config::{AdminListen, DaemonConfig, DriverValue};
use super::control;
use super::fleet;
use super::hub as hub_settings;
use super::memory::MemoryBudget;
use super::metrics;
use super::program::{ConfigSource, Daemon, Secrets, broker_config};
use super::signals;
use super::systemd;
use super::token::{random_secret, read_admin_token, read_api_token, read_link_token};
use super::units::Size;
use anyhow::Context;
use pushring::Broker;
use pushring::DriverKind;
use pushring::control::Operator;
use pushring::internals::demo;
use pushring::internals::driver::sys;
use pushring::internals::gateway::Secret;
use pushring::internals::tls::Certificate;
use pushring::internals::{hub, push_api};
use pushring::link;
use std::io::Write;
use std::net::TcpListener;
use std::sync::Arc;
use std::thread::JoinHandle;

/// Runs the broker alone.
///
/// # Errors
/// It could not start, or a shard died.
pub(crate) fn serve(source: ConfigSource, listener: Option<TcpListener>) -> anyhow::Result<()> {
    let config = source()?;
    let secrets = Secrets::read(&config, None)?;
    if secrets.first.is_none() && config.may_need_logins() {
        tracing::warn!(
            "no token secret: requests that need a token are refused; set jwt_secret_file (--jwt-secret-file FILE)"
        );
    }
    if !config.has_link() && !config.hub {
        tracing::warn!("no process can attach, so no client is served: set link (--link PATH) or link_tcp");
    }
    if !config.tls_certs.0.is_empty() && config.tls_listen.0.is_none() {
        tracing::warn!("tls_certs is not used, since nothing speaks TLS: set tls_listen (--tls-listen ADDRESS:PORT)");
    }
    acme::prepare(&config)?;
    let certificates = Certificates::read(&config, &Certificates::default())?;
    let admin = config.admin_listen;
    let start = Start { source, listener, admin, config, secrets, certificates, own_secret: None };
    run(start, |_| Ok(Vec::new()))
}

/// Runs the broker with the demo processes and their page.
///
/// # Errors
/// As [`serve`].
pub(crate) fn demo(
    source: ConfigSource,
    listener: Option<TcpListener>,
    over_tls: bool,
    receivers: usize,
) -> anyhow::Result<()> {
    let config = source()?;
    acme::prepare(&config)?;
    let certificates = match over_tls {
        true => demo_certificate(&config)?,
        false => Certificates::read(&config, &Certificates::default())?,
    };
    let own_secret = random_secret()?;
    let secrets = Secrets::read(&config, Some(&own_secret))?;
    let secret = secrets.first.clone().expect("there is one of our own");
    // A demo is tried beside a daemon: it takes the port of its admin listener only when told to.
    let admin = if config.sources.has("admin_listen") { config.admin_listen } else { AdminListen(None) };
    let own_secret = Some(own_secret);
    let start = Start { source, listener, admin, config: config.clone(), secrets, certificates, own_secret };
    run(start, |broker| {
        let mut threads = demo::start(&broker.handle())?;
        // Through a listener that is not loopback, any client that reaches it could take the cookie and act as this
        // node's user.
        let is_loopback = broker.address().ip().to_canonical().is_loopback();
        let cookie_name = pushring::node::settings(&config.node, config.dialect.into()).cookie;
        let login = is_loopback.then(|| demo::page::DemoLogin { node: config.node.clone(), cookie_name, secret });
        let window_ms = config.resume_window.0;
        threads.push(demo::tokens::start(&broker.handle())?);
        let stage = demo::stage::StageOptions { receivers, outbound_bytes_max: config.outbound_bytes_max.0 };
        threads.push(demo::stage::start(&broker.handle(), stage)?);
        let page = demo::page::PageOptions { shards: broker.shards(), window_ms, login };
        threads.push(demo::page::start(&broker.handle(), page)?);
        Ok(threads)
    })
}

/// With what the daemon begins.
struct Start {
    source: ConfigSource,
    /// The listener that the service manager has opened, if it has.
    listener: Option<TcpListener>,
    config: DaemonConfig,
    admin: AdminListen,
    secrets: Secrets,
    certificates: Certificates,
    own_secret: Option<Secret>,
}

/// A certificate for this machine's own names, made now and forgotten at the end.
fn demo_certificate(config: &DaemonConfig) -> anyhow::Result<Certificates> {
    let mut names = vec!["localhost".to_owned(), "*.localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
    let own = config.address().ip().to_string();
    if !names.contains(&own) {
        names.push(own);
    }
    names.extend(config.hosts.0.iter().filter(|host| !host.starts_with(['.', '*'])).cloned());
    let made = rcgen::generate_simple_self_signed(names).context("no certificate could be made")?;
    let (chain, key) = (made.cert.pem(), made.signing_key.serialize_pem());
    tracing::warn!(
        "the certificate is self-signed, made for this run: browsers will warn about it (NET::ERR_CERT_AUTHORITY_INVALID, \
         SEC_ERROR_UNKNOWN_ISSUER) and go on when you say so; for curl, -k"
    );
    Certificates::made(Certificate::from_pem(chain.as_bytes(), key.as_bytes())?)
}

fn link_token(config: &DaemonConfig) -> anyhow::Result<Option<link::LinkToken>> {
    match config.link_token_file.as_os_str().is_empty() {
        true => Ok(None),
        false => read_link_token(&config.link_token_file).map(Some),
    }
}

fn start_link(broker: &Broker, config: link::LinkConfig) -> anyhow::Result<link::LinkServer> {
    if config.tls.is_none() && config.tcp.is_some_and(|address| !address.ip().to_canonical().is_loopback()) {
        tracing::warn!(
            "the link over TCP is not encrypted: its token and all messages can be read on the network; set link_tls_certs"
        );
    }
    let path = config.path.clone();
    if let Some(home) = path.as_deref().and_then(control::made_for) {
        home.make().with_context(|| format!("cannot make the directory of {}", home.path.display()))?;
    }
    let link = link::LinkServer::start(broker.handle(), config)?;
    if let Some(path) = path {
        tracing::info!(path = %path.display(), "processes may attach");
    }
    if let Some(address) = link.tcp_address() {
        tracing::info!(%address, "processes may attach over TCP");
    }
    Ok(link)
}

type Threads = Vec<JoinHandle<()>>;

fn run(start: Start, attach: impl FnOnce(&Broker) -> anyhow::Result<Threads>) -> anyhow::Result<()> {
    let Start { source, listener, config, admin, secrets, certificates, own_secret } = start;
    let idle = config.idle_hub_settings()?;
    if !idle.is_empty() {
        tracing::warn!("{}: of no use, since there is no hub: set hub (--hub)", idle.join(", "));
    }
    let keys = hub_settings::begin_keys(&config).map_err(|error| config.sources.locate(error))?;
    let secrets = Secrets { keys: keys.clone(), ..secrets };
    // Before the daemon is reported as running: a signal from now on stops it cleanly.
    let signals = signals::catch()?;
    match sys::raise_open_files() {
        Ok(files) => tracing::debug!(files, "limit of open files"),
        Err(error) => tracing::warn!(%error, "cannot raise the limit of open files"),
    }
    let link_certificates = Certificates::read_link(&config, &Certificates::default())?;
    let acceptor = link_certificates.server().map(|_| link::Acceptor::new(link_certificates.all())).transpose()?;
    let link = config.link(link_token(&config)?)?.map(|link| link::LinkConfig { tls: acceptor.clone(), ..link });
    let started = broker_config(&config, secrets.clone(), &certificates)?;
    let started = pushring::Config { listener: listener.map(Arc::new), ..started };
    let broker = Broker::start(started)?;
    let state = (config.clone(), secrets, certificates);
    let daemon =
        Arc::new(Daemon::new(source, broker.handle(), state, (acceptor.clone(), link_certificates), own_secret));
    let operator = Operator::new(&broker, daemon.clone());
    let mut threads = attach(&broker)?;
    if config.metrics {
        threads.push(metrics::start(operator.clone())?);
    }
    let fleet = fleet::start(&config, &broker)?;
    let link = link.map(|link| start_link(&broker, link)).transpose()?;
    if config.hub {
        start_hub(&config, &broker, &daemon, &mut threads)?;
        hub_settings::start_keys(&daemon, &config, keys)?;
    }
    let api = start_api(&config, &broker, &mut threads)?;
    let control = config.control.open(broker.address().port(), operator.clone())?;
    let admin = start_admin(&config, admin, operator.clone(), link.as_ref())?;
    if broker.tls_address().is_some() || acceptor.is_some() {
        certificates::watch(&daemon)?;
    }
    acme::start(&daemon, &broker.handle(), &config)?;
    signals::handle(signals, operator, daemon)?;
    // Clients of a daemon that was started anew come at once: what serves them is bound by now.
    broker.handle().open()?;
    announce(&broker, &config);
    systemd::ready(&broker.address().to_string());
    systemd::keep_informed(broker.handle())?;
    let ended = broker.wait();
    systemd::stopping();
    // Behind the broker: processes are told of the end of their channels first.
    drop((link, api, control, admin, fleet));
    for thread in threads {
        if thread.join().is_err() {
            tracing::error!("a process of the daemon has panicked");
        }
    }
    ended?;
    tracing::info!("stopped");
    Ok(())
}

/// Starts the hub, and what tells a backend of it.
fn start_hub(config: &DaemonConfig, broker: &Broker, daemon: &Daemon, threads: &mut Threads) -> anyhow::Result<()> {
    let calls = hub_settings::call_limits(config).map(hub::WebhookQueue::new);
    if let Some(calls) = &calls {
        threads.push(hub_settings::start_calls(daemon, config, calls.clone())?);
    }
    threads.push(hub::start_with(&broker.handle(), calls, config.hub_sse)?);
    tracing::info!(path = hub::PATH, open = config.hub_open, "the hub is served");
    Ok(())
}

/// Starts what backends publish over HTTP to. That its address is taken stops no daemon; that its token is none does.
fn start_api(config: &DaemonConfig, broker: &Broker, threads: &mut Threads) -> anyhow::Result<Option<Broker>> {
    if config.api_token_file.as_os_str().is_empty() {
        return Ok(None);
    }
    let token = read_api_token(&config.api_token_file)?;
    let process = config.hub.then(|| hub::PROCESS.parse()).transpose()?;
    let keys = push_api::IdempotencyKeys::default();
    let options = || push_api::ApiOptions { token: token.clone(), process: process.clone(), keys: keys.clone() };
    if config.api_on_listen {
        threads.push(push_api::start(&broker.handle(), false, broker.handle(), options())?);
    }
    let Some(address) = config.api_listen.0 else { return Ok(None) };
    if !address.ip().to_canonical().is_loopback() {
        tracing::warn!(
            "the API is not encrypted: its token and all messages can be read on the network; use a loopback address (api_listen)"
        );
    }
    match Broker::start(config.api_broker(address)?) {
        Ok(api) => {
            threads.push(push_api::start(&api.handle(), true, broker.handle(), options())?);
            api.handle().open()?;
            tracing::info!(address = %api.address(), "backends may publish at http://{}/api/push", api.address());
            Ok(Some(api))
        }
        Err(error) => {
            tracing::warn!(%error, "no API: choose another address with api_listen, or off");
            Ok(None)
        }
    }
}

/// Starts the admin listener. That its address is taken stops no daemon; that its token is none does.
fn start_admin(
    config: &DaemonConfig,
    listen: AdminListen,
    operator: Operator,
    link: Option<&link::LinkServer>,
) -> anyhow::Result<Option<Admin>> {
    let token = match config.admin_token_file.as_os_str().is_empty() {
        true => None,
        false => Some(read_admin_token(&config.admin_token_file)?),
    };
    let Some(address) = listen.0 else { return Ok(None) };
    let peers = link.map(link::LinkServer::peers);
    let need_link = move || match &peers {
        None => Err("no link is set (link, link_tcp)".to_owned()),
        Some(peers) => match peers.attached() {
            0 => Err("no process of another program is attached".to_owned()),
            attached => Ok(format!("{attached} attached")),
        },
    };
    let needs_link = config.ready_needs.0.iter().any(|need| need == "link");
    let need = needs_link.then(|| ReadyCondition { name: "link", is_met: Box::new(need_link) });
    let has_token = token.is_some();
    let guard = AdminGuard::new(token, config.admin_hosts.0.clone());
    match Admin::start(address, admin::AdminParts { operator, guard, needs: need.into_iter().collect() }) {
        Ok(admin) => {
            let address = admin.address();
            if !address.ip().to_canonical().is_loopback() {
                tracing::warn!(
                    "the admin listener is not encrypted: its token and all answers can be read on the network; use a loopback address (admin_listen)"
                );
            }
            tracing::info!(%address, has_token, "admin listener at http://{address}/");
            Ok(Some(admin))
        }
        Err(error) => {
            let error = format!("{error:#}");
            tracing::warn!(error, "no admin listener: choose another address with admin_listen, or off");
            Ok(None)
        }
    }
}

/// The first line on stdout is for tools: they read the port from it.
fn announce(broker: &Broker, config: &DaemonConfig) {
    let (address, driver) = (broker.address(), broker.driver());
    let memory = broker.memory_bytes_max().map_or(MemoryBudget::Unlimited, |bytes| MemoryBudget::Size(Size(bytes)));
    tracing::info!(%address, node = config.node, shards = broker.shards(), %driver, %memory, "serving");
    if config.driver == DriverValue::Auto && driver == DriverKind::Epoll {
        tracing::warn!("no io_uring here: epoll serves, at a higher cost; `pushring doctor` says why");
    }
    let mut stdout = std::io::stdout().lock();
    let plain = Some(address).filter(|address| broker.tls_address() != Some(*address));
    let listeners = [("http", plain), ("https", broker.tls_address())];
    let mut open = listeners.into_iter().filter_map(|(scheme, address)| Some((scheme, address?)));
    let said = open
        .try_for_each(|(scheme, address)| writeln!(stdout, "listening on {scheme}://{address}"))
        .and_then(|()| stdout.flush());
    if let Err(error) = said {
        tracing::warn!(%error, "cannot write the address to stdout");
    }
}
