//! The publisher of one node: over its HTTP API, each kind of message at its rate.
//!
//! Invariant: it is known of each message whether it may have left for other nodes.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::ensure;
use serde_json::Value;

use super::common::{BROADCAST, Common, PROCESS, WHOLE_WITHIN};
use super::node::{Node, name};
use crate::payload::Stamp;
use crate::sys;

/// A publisher this late was delayed, and does not catch up.
const LATE_S: f64 = 0.5;

/// Publishes until the time is over.
pub(super) fn publish(common: &Common<'_>, node: usize, at: &Node, ids: &[Vec<u32>]) -> anyhow::Result<()> {
    let settings = common.settings;
    let mut api = Api::connect(at, settings.fault.is_some(), WHOLE_WITHIN + settings.fault_time())?;
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
            let has_left = api.push(&format!("process={PROCESS}"), &payload)?;
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
            let has_left = api.push(&format!("process={PROCESS}; channels={channel}"), &payload)?;
            (sent_to[to], unicasts) = (sent_to[to] + 1, unicasts + 1);
            common.unicasts.fetch_add(1, Ordering::Relaxed);
            common.left_for[target].fetch_add(u64::from(has_left), Ordering::Relaxed);
        }
    }
}

/// A connection to the HTTP API.
struct Api {
    stream: BufReader<TcpStream>,
    head: String,
    asks: bool,
}

impl Api {
    fn connect(node: &Node, asks: bool, patience: Duration) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", node.api_port))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(patience))?;
        let head = format!(
            "POST /api/push HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nAuthorization: Bearer {}\r\n\
             Content-Type: application/octet-stream\r\n",
            node.api_port, node.token
        );
        Ok(Self { stream: BufReader::new(stream), head, asks })
    }

    /// Pushes. Returns whether it may have left for other nodes.
    fn push(&mut self, to: &str, payload: &[u8]) -> anyhow::Result<bool> {
        let (asked, expected) = if self.asks { ("; outcome=true", " 200 ") } else { ("", " 202 ") };
        let mut request =
            format!("{}Push-To: {to}{asked}\r\nContent-Length: {}\r\n\r\n", self.head, payload.len()).into_bytes();
        request.extend_from_slice(payload);
        self.stream.get_mut().write_all(&request)?;
        let (mut status, mut length) = (String::new(), 0);
        self.stream.read_line(&mut status)?;
        loop {
            let mut line = String::new();
            self.stream.read_line(&mut line)?;
            let line = line.trim().to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse()?;
            }
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body)?;
        if self.asks && status.contains(" 503 ") {
            // It was done, and a node that stood still in between has not said how: nothing kept it from leaving.
            return Ok(true);
        }
        ensure!(status.contains(expected), "{}: {}", status.trim(), String::from_utf8_lossy(&body));
        let outcome: Value = if self.asks { serde_json::from_slice(&body)? } else { Value::Null };
        Ok(["fleet_down", "fleet_full", "fleet_too_large"].iter().all(|why| outcome.get(why).is_none()))
    }
}
