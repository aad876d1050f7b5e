//! The publisher of one node: over its HTTP API, each kind of message at its rate.
//!
//! Invariant: it is known of each message whether it may have left for other nodes.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::ensure;
use serde_json::Value;

use super::api::{Answer, Api};
use super::common::{BROADCAST, Common, PROCESS, WHOLE_WITHIN};
use super::node::{Node, name};
use crate::payload::Stamp;
use crate::sys;

/// A publisher this late was delayed, and does not catch up.
const LATE_S: f64 = 0.5;

/// Publishes until the time is over.
pub(super) fn publish(common: &Common<'_>, node: usize, at: &Node, ids: &[Vec<u32>]) -> anyhow::Result<()> {
    let settings = common.settings;
    let asks = settings.fault.is_some();
    let mut api = Api::connect(at.api_port, &at.token, WHOLE_WITHIN + settings.fault_time())?;
    let target = (node + 1) % ids.len();
    let mut sent_to = vec![0u64; ids[target].len()];
    let share = ids.len() as f64;
    common.begin.wait();
    let (start, mut late_s, mut payload) = (Instant::now(), 0.0, Vec::new());
    let (mut broadcasts, mut unicasts) = (0u64, 0u64);
    let due = |rate: f64, count: u64| if rate > 0.0 { count as f64 / (rate / share) } else { f64::INFINITY };
    loop {
        let (broadcast_s, unicast_s) = (due(settings.broadcasts, broadcasts), due(settings.unicasts, unicasts));
        let next_s = broadcast_s.min(unicast_s) + late_s;
        let now_s = start.elapsed().as_secs_f64();
        if next_s.max(now_s) >= settings.seconds {
            return Ok(());
        }
        if now_s > next_s + LATE_S {
            late_s += now_s - next_s;
        }
        std::thread::sleep(Duration::from_secs_f64((next_s - now_s).max(0.0)));
        payload.clear();
        let (time_ns, run) = (sys::now_ns(), common.run);
        if broadcast_s <= unicast_s {
            let stamp = Stamp { run, client: BROADCAST | node as u32, sequence: broadcasts, time_ns };
            stamp.write(settings.size, &mut payload);
            let has_left = push(&mut api, asks, &format!("process={PROCESS}"), &payload)?;
            broadcasts += 1;
            common.broadcasts[node].fetch_add(1, Ordering::Relaxed);
            common.left[node].fetch_add(u64::from(has_left), Ordering::Relaxed);
        } else {
            let to = (unicasts as usize).wrapping_mul(7919) % sent_to.len();
            let client = (target * settings.clients + to) as u32;
            Stamp { run, client, sequence: sent_to[to], time_ns }.write(settings.size, &mut payload);
            // Alone there is no fleet, and no node has a name.
            let id = ids[target][to];
            let channel = if ids.len() == 1 { id.to_string() } else { format!("{}/{id}", name(target)) };
            let has_left = push(&mut api, asks, &format!("process={PROCESS}; channels={channel}"), &payload)?;
            (sent_to[to], unicasts) = (sent_to[to] + 1, unicasts + 1);
            common.unicasts.fetch_add(1, Ordering::Relaxed);
            common.left_for[target].fetch_add(u64::from(has_left), Ordering::Relaxed);
        }
    }
}

/// Pushes, and asks for the outcome if `asks`. Returns whether it may have left for other nodes.
fn push(api: &mut Api, asks: bool, to: &str, payload: &[u8]) -> anyhow::Result<bool> {
    let (asked, expected) = if asks { ("; outcome=true", " 200 ") } else { ("", " 202 ") };
    let Answer { status, body, .. } = api.push(&format!("{to}{asked}"), payload)?;
    // The status line may end with its code.
    let status = format!("{status} ");
    if asks && status.contains(" 503 ") {
        // It was done, and a node that stood still in between has not said how: nothing kept it from leaving.
        return Ok(true);
    }
    ensure!(status.contains(expected), "{}: {}", status.trim(), String::from_utf8_lossy(&body));
    let outcome: Value = if asks { serde_json::from_slice(&body)? } else { Value::Null };
    Ok(["fleet_down", "fleet_full", "fleet_too_large"].iter().all(|why| outcome.get(why).is_none()))
}
