//! Unicast: one publisher, each message to one random channel, a window of messages in flight.

use anyhow::bail;
use clap::Args;
use serde::Serialize;

use super::tally::{MeasuredRun, Tally};
use super::{parse_positive, parse_size};
use crate::bench::Bench;
use crate::client::{Closure, Engine, Handler, Message, Opcode, Outbox};
use crate::progress::Progress;
use crate::random::Random;
use crate::report::Report;
use crate::sys;

/// The process of the demo that sends a message on to the channel named by its first four bytes.
pub(crate) const UNICAST: &str = "unicast:pushring:sys";

/// Settings of `unicast`.
#[derive(Debug, Clone, Args, Serialize)]
pub(crate) struct Settings {
    /// Clients that receive.
    #[arg(long, default_value_t = 1000)]
    pub clients: usize,
    /// Messages on their way at a time.
    #[arg(long, default_value_t = 64)]
    pub in_flight: u64,
    /// Bytes of a message as it arrives.
    #[arg(long, default_value = "128", value_parser = parse_size)]
    pub size: usize,
    /// Messages to send.
    #[arg(long, default_value_t = 100_000)]
    pub messages: u64,
    /// Send for this long instead, in seconds.
    #[arg(long, conflicts_with = "messages", value_parser = parse_positive)]
    pub seconds: Option<f64>,
    /// Many messages in one command: a count, that many channel ids, and a payload for each. Only the references
    /// `raw-ring` and `raw-send` understand it; what is measured then is the sends alone.
    #[arg(long)]
    pub bursts: bool,
}

struct Arrivals {
    tally: Tally,
    /// Those that receive; the publisher is the one behind them.
    clients: usize,
    channels: Vec<Option<u32>>,
    known: usize,
}

/// The channel id in a `{"channel_id":N}`.
pub(crate) fn channel_id_of(text: &[u8]) -> Option<u32> {
    #[derive(serde::Deserialize)]
    struct Greeting {
        channel_id: u32,
    }
    serde_json::from_slice::<Greeting>(text).ok().map(|greeting| greeting.channel_id)
}

impl Handler for Arrivals {
    fn message(&mut self, client: usize, message: &Message<'_>, received_ns: u64, _outbox: &mut Outbox<'_>) {
        if message.opcode == Opcode::Text {
            // A registered channel hears its id twice: from the registration and from the process.
            if let Some(id) = channel_id_of(message.head)
                && self.channels[client].replace(id).is_none()
            {
                self.known += 1;
            }
            return;
        }
        self.tally.take(client, message, received_ns);
    }

    fn closed(&mut self, client: usize, closure: &Closure) {
        self.tally.accounting.note_closure(client, &closure.reason);
    }
}

/// Runs `unicast`.
pub(crate) fn run(bench: &mut Bench, settings: &Settings) -> anyhow::Result<Report> {
    if settings.clients == 0 || settings.in_flight == 0 {
        bail!("--clients and --in-flight must be at least 1");
    }
    let behaviour = &bench.behaviour;
    let target = bench.server.target(UNICAST, behaviour)?;
    let mut engine = Engine::new(target, behaviour.pace)?;
    let mut arrivals = Arrivals {
        tally: Tally::new(settings.clients, settings.size),
        clients: settings.clients,
        channels: vec![None; settings.clients + 1],
        known: 0,
    };
    let patience_ns = behaviour.patience.as_nanos() as u64;
    engine.connect_all(0, settings.clients + 1, behaviour.patience, |_| None, &mut arrivals, |_| {})?;
    learn_channels(&mut engine, &mut arrivals, patience_ns)?;

    let stretch = MeasuredRun::start(bench, &engine)?;
    publish(&mut engine, &mut arrivals, settings, patience_ns)?;
    stretch.report("unicast", settings, &engine, arrivals.tally)
}

fn learn_channels(engine: &mut Engine, arrivals: &mut Arrivals, patience_ns: u64) -> anyhow::Result<()> {
    let deadline_ns = sys::now_ns() + patience_ns;
    while arrivals.known < arrivals.channels.len() {
        engine.poll(10, arrivals)?;
        if arrivals.tally.accounting.closed > 0 {
            bail!("not all connections opened; {}", arrivals.tally.accounting.closures.concat());
        }
        if sys::now_ns() > deadline_ns {
            bail!("only {} of {} clients were told their channel id", arrivals.known, arrivals.channels.len());
        }
    }
    Ok(())
}

/// Composes the publisher's messages.
struct Composer {
    random: Random,
    ids: Vec<u8>,
    payloads: Vec<u8>,
    message: Vec<u8>,
}

impl Composer {
    /// Adds one message to a random client.
    fn add(&mut self, arrivals: &mut Arrivals, now_ns: u64) {
        let client = self.random.below(arrivals.clients);
        let id = arrivals.channels[client].unwrap_or_default();
        self.ids.extend_from_slice(&id.to_le_bytes());
        arrivals.tally.write_next(client, now_ns, &mut self.payloads);
    }

    /// Queues what was added: a message each, or one for all.
    fn queue(&mut self, engine: &mut Engine, publisher: usize, size: usize, burst: bool) {
        if burst {
            self.message.clear();
            self.message.extend_from_slice(&((self.ids.len() / 4) as u32).to_le_bytes());
            self.message.extend_from_slice(&self.ids);
            self.message.extend_from_slice(&self.payloads);
            engine.send(publisher, &self.message);
        } else {
            for (id, payload) in self.ids.chunks(4).zip(self.payloads.chunks(size)) {
                self.message.clear();
                self.message.extend_from_slice(id);
                self.message.extend_from_slice(payload);
                engine.send(publisher, &self.message);
            }
        }
        self.ids.clear();
        self.payloads.clear();
    }
}

fn publish(engine: &mut Engine, arrivals: &mut Arrivals, settings: &Settings, patience_ns: u64) -> anyhow::Result<()> {
    let start_ns = sys::now_ns();
    let end_ns = settings.seconds.map(|seconds| start_ns + (seconds * 1e9) as u64);
    let mut messages = if end_ns.is_some() { u64::MAX } else { settings.messages };
    let mut bar = Progress::new("sending", if end_ns.is_some() { 0 } else { messages });
    let mut composer =
        Composer { random: Random::new(start_ns), ids: Vec::new(), payloads: Vec::new(), message: Vec::new() };
    let mut sent = 0;
    arrivals.tally.last_arrival_ns = start_ns;
    loop {
        let now_ns = sys::now_ns();
        if end_ns.is_some_and(|end_ns| now_ns >= end_ns) {
            messages = sent;
        }
        let done = arrivals.tally.accounting.delivered;
        if sent >= messages && done >= sent {
            return Ok(());
        }
        if now_ns.saturating_sub(arrivals.tally.last_arrival_ns) > patience_ns || arrivals.tally.accounting.closed > 0 {
            return Ok(());
        }
        // A burst leaves when the one before has arrived; single messages leave as soon as the window has room.
        let may_send = !settings.bursts || done == sent;
        let before = sent;
        while may_send && sent < messages && sent < done + settings.in_flight {
            composer.add(arrivals, now_ns);
            sent += 1;
        }
        if sent > before {
            composer.queue(engine, arrivals.clients, settings.size, settings.bursts);
            engine.flush(arrivals.clients, arrivals);
        }
        engine.poll(10, arrivals)?;
        bar.set(done);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_greeting_is_read() {
        assert_eq!(channel_id_of(br#"{"channel_id":17}"#), Some(17));
        assert_eq!(channel_id_of(b"hello"), None);
    }
}
