//! Examines a fleet's NATS from a machine that may join it: for `pushring doctor`.

use super::connection::{connect_options, server};
use super::engine::FleetStartError;
use super::header::{Header, HeaderError};
use super::names::Name;
use super::roster::{Announcement, NODES_MAX};
use super::subject::{Kind, Subjects};
use super::{Options, outbox::State};
use crate::broker::FleetProbe;
use crate::driver::background::BackgroundRuntime;
use async_nats::Subscriber;
use futures_util::StreamExt;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long all of it may take.
const WITHIN: Duration = Duration::from_secs(5);

/// How long other nodes are listened to, which announce themselves each second; and longer than NATS takes to say that
/// something is not permitted, behind an answer that was.
const HEARD_WITHIN: Duration = Duration::from_millis(1500);

/// The most characters of a version that are kept.
const VERSION_CHARS_MAX: usize = 64;

/// Connects, asks, subscribes and publishes as a node does, and leaves. Blocks the thread for some seconds at most.
///
/// # Errors
/// Why nothing was heard, in words.
pub fn probe(options: &Options) -> Result<FleetProbe, String> {
    let runtime = BackgroundRuntime::new().map_err(|error| error.to_string())?;
    let within = runtime.get().block_on(async { tokio::time::timeout(WITHIN, ask(options)).await });
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
    let mut others = OtherNodes { own: options.node.clone(), subjects, nodes: BTreeMap::new(), spoken_elsewhere: None };
    // It is over when it has had its time.
    let _ = tokio::time::timeout(HEARD_WITHIN, others.hear(&mut listening[0])).await;
    let OtherNodes { nodes, spoken_elsewhere, .. } = others;
    let info = client.server_info();
    let refused = state.report().counts.server_errors;
    let (version, payload_bytes_max) = (info.version, info.max_payload);
    Ok(FleetProbe { version, payload_bytes_max, round_trip, refused, nodes, spoken_elsewhere })
}

/// The other nodes that announce themselves.
struct OtherNodes {
    own: Name,
    subjects: Subjects,
    nodes: BTreeMap<String, String>,
    spoken_elsewhere: Option<u8>,
}

impl OtherNodes {
    /// Hears them until the connection ends.
    async fn hear(&mut self, announced: &mut Subscriber) {
        while let Some(message) = announced.next().await {
            self.take(&message.subject, &message.payload);
        }
    }

    fn take(&mut self, subject: &str, bytes: &[u8]) {
        let Some(parts) = self.subjects.parse(subject).filter(|parts| parts.source != self.own.as_str()) else {
            return;
        };
        let (header, at) = match Header::read(bytes) {
            Ok(read) => read,
            Err(HeaderError::Version(version)) => return self.spoken_elsewhere = Some(version),
            Err(HeaderError::Malformed) => return,
        };
        let is_its = header.kind == Kind::Node && header.source.as_str() == parts.source;
        if let Ok(about) = serde_json::from_slice::<Announcement>(&bytes[at..])
            && is_its
            && self.nodes.len() < NODES_MAX
        {
            self.nodes.insert(parts.source.to_owned(), about.version.chars().take(VERSION_CHARS_MAX).collect());
        }
    }
}
