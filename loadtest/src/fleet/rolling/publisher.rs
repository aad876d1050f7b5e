//! The publisher of one node, in each of its lives: as many messages as it is asked for, whose outcomes it notes.
//!
//! Invariant: a message is noted before it is sent; one whose answer did not come is of unknown outcome.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::super::api::{Answer, Api};
use super::super::common::{BROADCAST, PROCESS, WHOLE_WITHIN};
use super::super::node::name;
use super::scene::{Entrance, MessageId, Said, Scene};
use crate::payload::Stamp;
use crate::sys;

/// How long a node is left alone that does not answer.
const PAUSE: Duration = Duration::from_millis(20);

/// Publishes until the scene is over.
pub(super) fn publish(scene: &Scene<'_>, node: usize) -> anyhow::Result<()> {
    while !scene.is_last.load(Ordering::Acquire) {
        match scene.entrance(node) {
            Some(entrance) => publish_in(scene, node, &entrance),
            None => std::thread::sleep(PAUSE),
        }
    }
    Ok(())
}

/// Publishes for as long as this life of the node takes it.
fn publish_in(scene: &Scene<'_>, node: usize, entrance: &Entrance) {
    let settings = scene.settings;
    let share = settings.nodes as f64;
    let interval = |rate: f64| if rate > 0.0 { Duration::from_secs_f64(share / rate) } else { Duration::MAX };
    let (broadcast_every, unicast_every) = (interval(settings.broadcasts), interval(settings.unicasts));
    let (mut next_broadcast, mut next_unicast) = (Instant::now(), Instant::now());
    let (mut api, mut broadcasts, mut unicasts) = (None, 0u64, 0u64);
    let is_here = || scene.entrance(node).is_some_and(|now| now.life == entrance.life);
    while !scene.is_last.load(Ordering::Acquire) && is_here() {
        let now = Instant::now();
        let next = next_broadcast.min(next_unicast);
        std::thread::sleep(next.saturating_duration_since(now).min(PAUSE));
        if next > Instant::now() {
            continue;
        }
        // One that was held up does not catch up.
        let after = |every: Duration| Instant::now().checked_add(every).unwrap_or(now + WHOLE_WITHIN * 60);
        let (id, to): (MessageId, String) = if next_broadcast <= next_unicast {
            next_broadcast = after(broadcast_every);
            broadcasts += 1;
            ((BROADCAST | entrance.life, broadcasts), format!("process={PROCESS}"))
        } else {
            next_unicast = after(unicast_every);
            let Some((at, channel)) = target(scene, unicasts) else { continue };
            unicasts += 1;
            ((entrance.life, unicasts), format!("process={PROCESS}; channels={}/{channel}", name(at)))
        };
        let mut payload = Vec::new();
        Stamp { run: scene.run, client: id.0, sequence: id.1, time_ns: sys::now_ns() }
            .write(settings.size, &mut payload);
        scene.said.lock().expect("no thread panics with it").insert(id, Said { deliveries: 0, is_partial: true });
        match send(&mut api, entrance, &to, &payload) {
            Some(said) => {
                scene.said.lock().expect("no thread panics with it").insert(id, said);
            }
            None => {
                api = None;
                std::thread::sleep(PAUSE);
            }
        }
    }
}

/// Some client's node and channel.
fn target(scene: &Scene<'_>, number: u64) -> Option<(usize, u32)> {
    let channels = scene.channels.lock().expect("no thread panics with it");
    channels[(number as usize).wrapping_mul(7919) % channels.len()]
}

/// Sends it. None: its outcome is unknown.
fn send(api: &mut Option<Api>, entrance: &Entrance, to: &str, payload: &[u8]) -> Option<Said> {
    let connected = match api.take() {
        Some(connected) => Some(connected),
        None => Api::connect(entrance.api_port, &entrance.token, WHOLE_WITHIN).ok(),
    };
    let mut connected = connected?;
    let Answer { status, body, is_last } = connected.push(&format!("{to}; outcome=nodes"), payload).ok()?;
    if !is_last {
        *api = Some(connected);
    }
    if !format!("{status} ").contains(" 200 ") {
        return None;
    }
    let outcome: Value = serde_json::from_slice(&body).ok()?;
    let of = |outcome: &Value| ["sent", "queued"].iter().filter_map(|count| outcome[count].as_u64()).sum::<u64>();
    let elsewhere: u64 = outcome["nodes"].as_object().map_or(0, |nodes| nodes.values().map(of).sum());
    Some(Said { deliveries: of(&outcome) + elsewhere, is_partial: outcome["partial"] == true })
}
