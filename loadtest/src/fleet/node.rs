//! A daemon of a fleet, and where it is published to and asked.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure};
use serde_json::Value;

use super::common::{Fault, Settings, WHOLE_WITHIN};
use super::network::{Network, Place};
use crate::bench::ServerArgs;
use crate::server::{Launch, Server, ServerSpec, TemporaryFile, free_port};
use crate::sys;

/// See the module.
pub(super) struct Node {
    /// The daemon.
    pub server: Server,
    /// Where its HTTP API is.
    pub api_port: u16,
    /// The API's token.
    pub token: String,
    program: PathBuf,
    control: TemporaryFile,
    _token_file: TemporaryFile,
}

impl Node {
    /// Starts one, in its place; without NATS it is alone.
    pub(super) fn start(
        settings: &Settings,
        network: &Network,
        node: usize,
        nats: Option<&str>,
    ) -> anyhow::Result<Self> {
        network.inside(Place::Node(node), || {
            let program = ServerArgs::find_pushring(settings.start.as_ref())?;
            let mut spec = ServerSpec::pushring(program.clone(), 1, &[]);
            let (control, token_file) = (TemporaryFile::new("sock")?, crate::server::make_secret()?);
            // A socket is made where nothing is.
            std::fs::remove_file(&control.path)?;
            let token = std::fs::read_to_string(&token_file.path)?;
            let api_port = free_port()?;
            let Launch::Start { arguments, .. } = &mut spec.launch else { bail!("a daemon is started here") };
            arguments.extend(["--api-listen".to_owned(), format!("127.0.0.1:{api_port}")]);
            arguments.extend(["--api-token-file".to_owned(), token_file.path.display().to_string()]);
            arguments.extend(["--control".to_owned(), control.path.display().to_string()]);
            if settings.fault == Some(Fault::Rolling) {
                // New clients are turned away soon, and those there are closed over this time.
                arguments.extend(["--drain-grace", "500ms", "--drain-over", "3s"].map(str::to_owned));
            }
            if let Some(nats) = nats {
                arguments.extend(["--fleet-nats".to_owned(), nats.to_owned(), "--fleet-node".to_owned(), name(node)]);
            }
            Ok(Self { server: spec.start()?, program, control, api_port, token, _token_file: token_file })
        })
    }

    /// How its fleet stands.
    pub(super) fn report(&self) -> anyhow::Result<Value> {
        let asked = ["fleet", "--json", "--control"];
        let output = Command::new(&self.program).args(asked).arg(&self.control.path).output()?;
        ensure!(output.status.success(), "pushring fleet: {}", String::from_utf8_lossy(&output.stderr));
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// Waits until it hears so many others, and listens for its clients.
    pub(super) fn wait_until_whole(&self, others: usize) -> anyhow::Result<()> {
        let since = Instant::now();
        loop {
            let report = self.report()?;
            let there = report["nodes"]
                .as_array()
                .map_or(0, |nodes| nodes.iter().filter(|node| node["is_gone"] == false).count());
            // The process, and the path that its clients are on.
            if report["connected"] == true
                && there == others
                && report["listens"].as_u64().is_some_and(|listens| listens >= 2)
            {
                return Ok(());
            }
            ensure!(since.elapsed() < WHOLE_WITHIN, "the fleet is not whole: {report}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Sends it a signal.
    pub(super) fn signal(&self, signal: libc::c_int) -> anyhow::Result<()> {
        self.server.pids.iter().try_for_each(|pid| Ok(sys::signal(*pid, signal)?))
    }
}

/// A node's name in its fleet.
pub(super) fn name(node: usize) -> String {
    format!("n{node}")
}
