//! A seed's parameters: the number of participants, the faults, and the limits.
//!
//! A fault that is rare in every seed meets few others; so each seed has some faults often and others not at all.

use super::rng::Rng;
use pushring::Drain;
use pushring::internals::admission;
use pushring::internals::inbox;
use pushring::internals::proto;
use pushring::internals::shard::command::Policy;
use pushring::internals::shard::process_queue::QueueLimits;
use pushring::internals::shard::turn::TurnLimits;
use pushring::internals::shard::work::WorkLimits;
use pushring::internals::shard::{Deflate, ShardConfig};

/// Names that processes have, one process at a time each.
pub const NAMES: usize = 3;

/// Larger messages of clients break the protocol.
pub const MESSAGE_BYTES_MAX: usize = 400_000;

/// How often clients do what, in 10,000 steps of each.
#[derive(Debug, Clone, Copy, Default)]
pub struct ClientRates {
    pub message: usize,
    pub fragments: usize,
    pub ping: usize,
    pub pong: usize,
    pub burst: usize,
    pub request: usize,
    pub stall: usize,
    /// It stops for ever, without a word: its machine has vanished.
    pub half_open: usize,
    pub fin: usize,
    pub reset: usize,
    pub violation: usize,
    pub close: usize,
}

/// How often processes do what, in 10,000 steps of each; faults and endings only.
#[derive(Debug, Clone, Copy, Default)]
pub struct ProcessRates {
    pub nap: usize,
    pub close: usize,
    /// Its link breaks: it neither reads nor pushes until it comes back.
    pub detach: usize,
    /// It ends; another of its name comes later.
    pub end: usize,
    pub grant: usize,
}

/// How many may connect.
#[derive(Debug, Clone, Copy)]
pub struct Crowd {
    pub connections_max: usize,
    pub per_ip_max: u32,
    pub per_process_max: usize,
    pub handshakes_per_ip_per_s_max: u32,
    pub turned_away_max: usize,
}

/// How much a shard does at a time.
#[derive(Debug, Clone, Copy)]
pub struct TurnPace {
    pub limits: TurnLimits,
    /// Turns in one step of the world, however much there is to do.
    pub turns_max: usize,
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Settings {
    pub shards: usize,
    /// Connections in all.
    pub clients: usize,
    pub addresses: usize,
    /// Of 100 clients so many speak HTTP only, and so many do not do what is expected at the start or end.
    pub http_percent: usize,
    pub sloppy_percent: usize,
    pub client: ClientRates,
    pub process: ProcessRates,
    pub policies: [Policy; NAMES],
    pub wants_control: bool,
    /// Of 100 times when a process acts, it hands several orders over at once.
    pub batch_percent: usize,
    /// The largest socket's window before its client has read.
    pub window_bytes_max: usize,
    /// Of 100 sends so many take less than fits.
    pub short_percent: usize,
    /// The bytes that a client sends or reads in one step.
    pub piece_bytes_max: usize,
    pub push_bytes_max: usize,
    pub message_bytes_max: usize,
    pub queue: QueueLimits,
    pub inbox: inbox::InboxLimits,
    pub memory_bytes: Option<usize>,
    pub crowd: Option<Crowd>,
    pub pace: TurnPace,
    /// How many news of sockets a shard is told at a time, and of 100 clients so many find no descriptor at first.
    pub events_max: usize,
    pub no_room_percent: usize,
    /// Of 100 clients so many come over TLS.
    pub tls_percent: usize,
    /// Of 10,000 sends so many meet a client that resets its connection at that moment.
    pub reset_in_batch: usize,
    /// How many times as likely a client leaves that waits for its process.
    pub impatience: usize,
    /// The longest nap of a process, in steps.
    pub nap_steps_max: usize,
    /// The clock jumps so often, in 10,000 steps.
    pub jumps: usize,
    pub compressed_paths: bool,
    pub config: ShardConfig,
    /// The broker is told to stop in the middle of everything.
    pub stops_at: Option<u64>,
    /// Or it is drained, from that step on.
    pub drains_at: Option<(u64, Drain)>,
    /// Which processes run on the shards.
    pub hosted: [bool; NAMES],
    /// There are no faults.
    pub is_lawful: bool,
}

impl Settings {
    /// The settings of `seed`. `lawful` leaves all faults out.
    pub fn draw(seed: u64, steps: u64, lawful: bool) -> Self {
        let mut rng = Rng::stream(seed, 1, 0);
        let shards = rng.between(1, 4);
        let is_large = rng.chance(25);
        let outbound_bytes_max = if is_large { 600_000 } else { rng.pick(&[3_000, 12_000, 40_000]) };
        let per_100_steps = rng.between(2, 10);
        let mut settings = Self {
            shards,
            clients: 4 + per_100_steps * steps as usize / 100,
            addresses: rng.between(1, 6),
            http_percent: rng.pick(&[0, 15, 40]),
            sloppy_percent: rng.pick(&[0, 10, 40]),
            client: client_rates(&mut rng),
            process: process_rates(&mut rng),
            // A key is a push's to name.
            policies: std::array::from_fn(|_| rng.pick(&Policy::PLAIN)),
            wants_control: rng.chance(30),
            batch_percent: rng.pick(&[0, 20, 90]),
            window_bytes_max: rng.pick(&[200, 6_000, 6_000, 60_000]),
            short_percent: rng.pick(&[0, 20, 70]),
            piece_bytes_max: rng.pick(&[150, 4_000, 4_000, 40_000]),
            push_bytes_max: if is_large { 200_000 } else { 5_000 },
            message_bytes_max: if is_large { 300_000 } else { 3_000 },
            queue: QueueLimits {
                messages_max: rng.pick(&[3, 40, 1_000]),
                bytes_max: rng.pick(&[4_000, 20_000, 1_000_000]),
            },
            inbox: inbox::InboxLimits {
                commands_max: rng.pick(&[16, 512, 512]),
                bytes_max: rng.pick(&[20_000, 1 << 20, 1 << 20]),
            },
            memory_bytes: (is_large && rng.chance(70)).then(|| (shards << 20) + (rng.below(3) << 20)),
            crowd: rng.chance(30).then(|| Crowd {
                connections_max: rng.between(3, 20),
                per_ip_max: rng.pick(&[0, 2, 5]),
                per_process_max: rng.pick(&[0, 2, 8]),
                handshakes_per_ip_per_s_max: rng.pick(&[0, 3]),
                turned_away_max: rng.pick(&[0, 2, 100]),
            }),
            pace: pace(&mut rng),
            events_max: rng.pick(&[1, 7, 512]),
            no_room_percent: rng.pick(&[0, 0, 30]),
            reset_in_batch: rng.pick(&[0, 0, 20]),
            impatience: rng.pick(&[1, 1, 40]),
            nap_steps_max: rng.pick(&[60, 60, 250]),
            jumps: rng.pick(&[0, 25, 100]),
            compressed_paths: rng.chance(40),
            config: config(&mut rng, outbound_bytes_max),
            stops_at: rng.chance(20).then(|| rng.below(steps as usize) as u64),
            drains_at: drain(&mut Rng::stream(seed, 1, 1), steps),
            hosted: hosted(&mut Rng::stream(seed, 1, 2)),
            is_lawful: lawful,
            // From a stream of its own, so that the draws above stay the same.
            tls_percent: Rng::stream(seed, 1, 3).pick(&[0, 50, 100]),
        };
        if rng.chance(30) && !lawful {
            settings.wait_for_processes();
        }
        if lawful {
            settings.be_lawful();
        }
        settings
    }

    /// Processes take long naps behind short queues, and clients leave meanwhile.
    fn wait_for_processes(&mut self) {
        (self.impatience, self.nap_steps_max, self.jumps) = (40, 250, 0);
        self.queue.messages_max = 3;
        self.config.close_timeout_ms = 1_000;
        self.process.nap = 240;
        self.client.message = 2_000;
        self.client.reset = self.client.reset.max(5);
        // Nor does a ping find out that they have left.
        self.config.ping_interval_ms = 60_000;
        (self.client.half_open, self.client.violation) = (0, 0);
    }

    fn be_lawful(&mut self) {
        // A turn ends early after a MiB of input: later orders then wait for the next one.
        self.push_bytes_max = self.push_bytes_max.min(5_000);
        self.http_percent = 0;
        self.sloppy_percent = 0;
        self.client = ClientRates::default();
        self.process = ProcessRates::default();
        self.memory_bytes = None;
        self.crowd = None;
        // So that nothing is put off to a later turn, for what one client costs is then seen in the order of the
        // others.
        let ample_ns = 1 << 40;
        let work = WorkLimits {
            begin_ns: ample_ns,
            orders_ns: ample_ns,
            reads_ns: ample_ns,
            handlers_ns: ample_ns,
            sends_ns: WorkLimits::default().sends_ns,
            until_sent_ns: ample_ns,
            resumes_ns: ample_ns,
            effects_ns: ample_ns,
        };
        self.pace = TurnPace { limits: TurnLimits { work, ..TurnLimits::default() }, turns_max: usize::MAX };
        (self.events_max, self.no_room_percent, self.reset_in_batch) = (512, 0, 0);
        // The rest of a record that was cut short leaves alone, so others may have more or fewer turns in a step.
        self.tls_percent = 0;
        self.jumps = 0;
        (self.stops_at, self.drains_at) = (None, None);
    }

    pub fn admission(&self) -> admission::ConnectionLimits {
        let defaults = admission::ConnectionLimits::default();
        self.crowd.map_or(defaults.clone(), |crowd| admission::ConnectionLimits {
            connections_max: crowd.connections_max,
            connections_per_ip_max: crowd.per_ip_max,
            connections_per_process_max: crowd.per_process_max,
            handshakes_per_ip_per_s_max: crowd.handshakes_per_ip_per_s_max,
            turned_away_max: crowd.turned_away_max,
            ..defaults
        })
    }
}

/// Nothing in two of five seeds, else `usual` or some times as often.
fn sometimes(rng: &mut Rng, usual: usize) -> usize {
    rng.pick(&[0, 0, 1, 1, 4]) * usual
}

/// Narrow turns, but then many of them: a shard is busy, not slow.
fn pace(rng: &mut Rng) -> TurnPace {
    let share = |rng: &mut Rng, usual: u64| rng.pick(&[1, usual / 20, usual]);
    let usual = WorkLimits::default();
    let work = WorkLimits {
        begin_ns: share(rng, usual.begin_ns).max(2),
        orders_ns: share(rng, usual.orders_ns),
        reads_ns: share(rng, usual.reads_ns),
        handlers_ns: share(rng, usual.handlers_ns),
        sends_ns: share(rng, usual.sends_ns),
        until_sent_ns: usual.until_sent_ns,
        resumes_ns: share(rng, usual.resumes_ns),
        effects_ns: share(rng, usual.effects_ns),
    };
    let limits = TurnLimits {
        work,
        commands_max: rng.pick(&[1, 8, 64, 1_024]),
        command_bytes_max: rng.pick(&[1, 20_000, 1 << 20]),
        reads_max: rng.pick(&[1, 5, 256]),
    };
    let is_narrow =
        work != usual || limits.commands_max.min(limits.reads_max) < 64 || limits.command_bytes_max < 1 << 20;
    TurnPace { limits, turns_max: if is_narrow { 1_000 } else { rng.pick(&[1, 1_000]) } }
}

/// Short enough to be over before the world is.
fn drain(rng: &mut Rng, steps: u64) -> Option<(u64, Drain)> {
    let drain = Drain { grace_ms: rng.pick(&[0, 200, 2_000]), over_ms: rng.pick(&[0, 500, 5_000]), within_ms: 2_000 };
    rng.chance(15).then(|| (rng.below(steps as usize) as u64, drain))
}

fn hosted(rng: &mut Rng) -> [bool; NAMES] {
    std::array::from_fn(|_| rng.chance(30))
}

fn client_rates(rng: &mut Rng) -> ClientRates {
    ClientRates {
        message: rng.pick(&[200, 750, 2_000]),
        fragments: sometimes(rng, 100),
        ping: sometimes(rng, 100),
        pong: sometimes(rng, 25),
        burst: sometimes(rng, 25),
        request: rng.pick(&[300, 1_000]),
        stall: sometimes(rng, 40),
        half_open: sometimes(rng, 4),
        fin: sometimes(rng, 3),
        reset: sometimes(rng, 5),
        violation: sometimes(rng, 5),
        close: sometimes(rng, 5),
    }
}

fn process_rates(rng: &mut Rng) -> ProcessRates {
    ProcessRates {
        nap: sometimes(rng, 60),
        close: sometimes(rng, 70),
        detach: sometimes(rng, 15),
        end: sometimes(rng, 10),
        grant: sometimes(rng, 100),
    }
}

fn config(rng: &mut Rng, outbound_bytes_max: usize) -> ShardConfig {
    let defaults = ShardConfig::default();
    ShardConfig {
        outbound_bytes_max,
        limits: proto::MessageLimits::for_messages(MESSAGE_BYTES_MAX),
        copy_bytes_max: rng.pick(&[512, 4_096]),
        copy_shared_bytes_max: rng.pick(&[4_096, 65_520]),
        deflate: Deflate {
            everywhere: rng.chance(20),
            bytes_min: 64,
            window_bits: rng.pick(&[15, 15, 10]),
            takeover_bytes_max: rng.pick(&[0, 100_000, 10_000_000]),
            ..defaults.deflate
        },
        head_timeout_ms: 2_000,
        body_timeout_ms: 2_000,
        http_idle_timeout_ms: 3_000,
        register_timeout_ms: 2_000,
        close_timeout_ms: rng.pick(&[1_000, 3_000]),
        linger_ms: 1_000,
        ping_interval_ms: 2_000,
        pings_unanswered_max: rng.between(1, 2) as u8,
        ..defaults
    }
}
