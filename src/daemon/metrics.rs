//! A process that answers Prometheus: `metrics:pushring:sys`, at `/`, to this machine alone.

use anyhow::Context;
use pushring::control;
use pushring::internals::gateway::HttpRule;
use pushring::{AttachOptions, Broker, Event, RecvError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Starts it.
///
/// # Errors
/// It cannot be attached, or there is no thread.
pub fn start(broker: &Broker) -> anyhow::Result<JoinHandle<()>> {
    let (about, handle) = (control::about(broker), broker.handle());
    let process = handle.process("metrics:pushring:sys".parse()?, AttachOptions::default())?;
    process.bind_http("/", HttpRule { local_only: true, ..HttpRule::default() })?;
    let work = move || {
        let mut events = Vec::new();
        loop {
            match process.recv_batch(&mut events, Duration::from_secs(3600)) {
                Ok(_) | Err(RecvError::Timeout) => {}
                Err(_) => return,
            }
            for event in events.drain(..) {
                let Event::Http(request) = event else { continue };
                let text = control::metrics(&control::overview(about.clone(), &handle));
                let mime = ("content-type".into(), control::METRICS_MIME.into());
                // Only a broker that has stopped refuses; the next batch tells.
                let _ = process.respond(request.id, 200, vec![mime], text);
            }
        }
    };
    thread::Builder::new().name("metrics".to_owned()).spawn(work).context("no thread for metrics")
}
