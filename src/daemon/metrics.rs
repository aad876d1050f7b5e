//! A process that answers Prometheus: `metrics:pushring:sys`, at `/`, to this machine alone.

use anyhow::Context;
use pushring::control::{self, Exposition, Operator};
use pushring::internals::gateway::HttpRule;
use pushring::{Event, HttpAsk, HttpRequest};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Starts it.
///
/// # Errors
/// It cannot be attached, or there is no thread.
pub(crate) fn start(operator: Operator) -> anyhow::Result<JoinHandle<()>> {
    let process = operator.broker().process("metrics:pushring:sys", Default::default())?;
    process.bind_http("/", HttpRule { local_only: true, ..HttpRule::default() })?;
    let work = move || {
        let mut events = Vec::new();
        while process.recv_batch(&mut events, Duration::from_secs(3600)).is_ok() {
            for event in events.drain(..) {
                let Event::Http(request) = event else { continue };
                let exposition = Exposition::of_accept(accept(&request));
                let text = control::metrics(&operator.overview(), exposition);
                let response = process.respond(request.id, 200).header("content-type", exposition.mime());
                // Only a broker that has stopped refuses; the next batch tells.
                let _ = response.header("vary", "accept").body(text).send();
            }
        }
    };
    thread::Builder::new().name("metrics".to_owned()).spawn(work).context("no thread for metrics")
}

fn accept(request: &HttpRequest) -> &str {
    match &request.ask {
        HttpAsk::Path(asked) => asked.headers.get("accept").map_or("", String::as_str),
        _ => "",
    }
}
