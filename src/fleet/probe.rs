//! Examines a fleet's NATS from a machine that may join it: for `pushring doctor`.

use super::connection::{connect_options, server};
use super::engine::FleetStartError;
use super::subject::{Kind, Subjects};
use super::{Options, outbox::State};
use crate::broker::FleetProbe;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long all of it may take.
const WITHIN: Duration = Duration::from_secs(5);

/// How long NATS gets to say that something is not permitted, behind an answer that was.
const REFUSED_WITHIN: Duration = Duration::from_millis(200);

/// Connects, asks, subscribes and publishes as a node does, and leaves. Blocks the thread for some seconds at most.
///
/// # Errors
/// Why nothing was heard, in words.
pub fn probe(options: &Options) -> Result<FleetProbe, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    let within = runtime.block_on(async { tokio::time::timeout(WITHIN, ask(options)).await });
    within.unwrap_or_else(|_| Err(format!("no answer within {} s", WITHIN.as_secs())))
}

async fn ask(options: &Options) -> Result<FleetProbe, String> {
    let said = |error: FleetStartError| error.to_string();
    let servers = options.servers.iter().map(|text| server(text)).collect::<Result<Vec<_>, _>>().map_err(said)?;
    let state = Arc::<State>::default();
    let client = connect_options(options, &state).map_err(said)?.connect(servers);
    let client = client.await.map_err(|error| error.to_string())?;
    let subjects = Subjects::new(options.fleet.clone());
    let mut listening = Vec::new();
    for subject in [
        subjects.of_all("*", Kind::Node),
        subjects.of_all("*", Kind::Tails),
        subjects.of_all("*", Kind::Ask),
        subjects.of_all("*", Kind::Count),
        subjects.to_node("*", Kind::Channels, options.node.as_str()),
        subjects.to_node("*", Kind::Answer, options.node.as_str()),
    ] {
        listening.push(client.subscribe(subject).await.map_err(|error| error.to_string())?);
    }
    let asked = Instant::now();
    match client.request(subjects.nowhere(&options.node), bytes::Bytes::new()).await {
        // Without permission for the request there is no answer, only an error of the server's.
        Err(error)
            if error.kind() != async_nats::RequestErrorKind::NoResponders
                && state.report().counts.server_errors == 0 =>
        {
            return Err(error.to_string());
        }
        _ => {}
    }
    let round_trip = asked.elapsed();
    tokio::time::sleep(REFUSED_WITHIN).await;
    let info = client.server_info();
    let refused = state.report().counts.server_errors;
    Ok(FleetProbe { version: info.version, payload_bytes_max: info.max_payload, round_trip, refused })
}
