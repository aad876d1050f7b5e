//! A nats-server, or two of one cluster, which end with their owner.

use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use super::network::{Network, Place};
use crate::server::free_port;
use crate::sys;

/// How long a server may take until it listens.
const LISTENS_WITHIN: Duration = Duration::from_secs(30);

/// See the module.
pub(super) struct Nats<'a> {
    network: &'a Network,
    program: PathBuf,
    servers: Vec<(Vec<String>, u16, Option<Child>)>,
}

impl<'a> Nats<'a> {
    /// Starts so many, in the hub's place.
    pub(super) fn start(network: &'a Network, program: Option<&Path>, servers: usize) -> anyhow::Result<Self> {
        let found = ["/usr/sbin/nats-server", "/usr/bin/nats-server", "/usr/local/bin/nats-server"].map(Path::new);
        let program = program.or(found.into_iter().find(|program| program.is_file()));
        let program = program
            .context("no nats-server found: install it (apt-get install nats-server), or name it with --nats")?;
        let ports =
            network.inside(Place::Hub, || (0..2 * servers).map(|_| free_port()).collect::<Result<Vec<_>, _>>())?;
        let (clients, routes) = ports.split_at(servers);
        let arguments = |server: usize| {
            let mut arguments =
                vec!["-a".to_owned(), network.hub().to_owned(), "-p".to_owned(), clients[server].to_string()];
            if servers > 1 {
                let others = (0..servers).filter(|other| *other != server);
                let others: Vec<_> = others.map(|other| format!("nats://127.0.0.1:{}", routes[other])).collect();
                let own = format!("nats://127.0.0.1:{}", routes[server]);
                arguments.extend(["--cluster_name", "loadtest", "--cluster", &own, "--routes"].map(str::to_owned));
                arguments.push(others.join(","));
            }
            arguments
        };
        let servers = (0..servers).map(|server| (arguments(server), clients[server], None)).collect();
        let mut nats = Self { network, program: program.to_owned(), servers };
        (0..nats.servers.len()).try_for_each(|server| nats.run(server))?;
        Ok(nats)
    }

    /// Runs a server that does not run, and waits until it listens.
    pub(super) fn run(&mut self, server: usize) -> anyhow::Result<()> {
        let Self { network, program, servers } = self;
        let (arguments, port, child) = &mut servers[server];
        let (hub, port) = (network.hub(), *port);
        *child = Some(network.inside(Place::Hub, || {
            let mut command = Command::new(&*program);
            command.args(&*arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            let child = command.spawn().context("starting nats-server")?;
            let since = Instant::now();
            while TcpStream::connect((hub, port)).is_err() {
                ensure!(since.elapsed() < LISTENS_WITHIN, "nats-server does not listen");
                std::thread::sleep(Duration::from_millis(5));
            }
            Ok(child)
        })?);
        Ok(())
    }

    /// Kills a server with SIGKILL.
    pub(super) fn kill(&mut self, server: usize) {
        if let Some(mut child) = self.servers[server].2.take() {
            // It holds nothing that is to be kept.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Has a server announce that it is about to stop.
    pub(super) fn lame(&self, server: usize) -> anyhow::Result<()> {
        Ok(sys::signal(self.servers[server].2.as_ref().context("it runs")?.id(), libc::SIGUSR2)?)
    }

    /// Where they listen, for a setting.
    pub(super) fn urls(&self) -> String {
        let urls = self.servers.iter().map(|(_, port, _)| format!("nats://{}:{port}", self.network.hub()));
        urls.collect::<Vec<_>>().join(",")
    }

    /// Those that run.
    pub(super) fn pids(&self) -> Vec<u32> {
        self.servers.iter().filter_map(|(_, _, child)| child.as_ref().map(Child::id)).collect()
    }
}

impl Drop for Nats<'_> {
    fn drop(&mut self) {
        (0..self.servers.len()).for_each(|server| self.kill(server));
    }
}
