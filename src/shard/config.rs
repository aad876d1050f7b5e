//! The settings of a shard.

use crate::words::policy::Policy;
use crate::{http, proto, tls};

/// See each field. All durations are milliseconds, all sizes bytes.
#[derive(Debug, Clone)]
pub struct ShardConfig {
    /// The most bytes that may wait for one channel. Default 1 MiB: some 20 s of video-rate telemetry at 50 KB/s, and
    /// 20 GiB at worst for 20,000 channels that all stopped reading.
    pub outbound_bytes_max: usize,
    /// The policy for a frame that does not fit, if neither push nor process names one.
    pub policy: Policy,
    /// The limits of clients' messages.
    pub limits: proto::MessageLimits,
    /// The limits of an HTTP request.
    pub http_limits: http::HttpLimits,
    /// Compression of messages.
    pub deflate: Deflate,
    /// Subprotocols that clients may choose (RFC 6455 1.9); of those a client offers, its first that is here is
    /// agreed. The broker itself gives them no meaning. Default none.
    pub subprotocols: Vec<String>,
    /// Channels that outlive their connections.
    pub resume: Resume,
    /// How long a client may take from the upgrade on `/` to its `WsRegister`.
    pub register_timeout_ms: u64,
    /// The largest body of a request whose client is logged in; the others' is in `http_limits`, and so is the least
    /// that it comes to.
    pub body_bytes_max_logged_in: usize,
    /// The TLS settings; `None`: no TLS.
    pub tls: Option<tls::TlsServer>,
    /// How long a handshake of TLS may take.
    pub tls_handshake_timeout_ms: u64,
    /// Handshakes of TLS for which keys are exchanged in one turn, while others wait in their sockets. Default 8, about
    /// a millisecond.
    pub tls_handshakes_per_turn: u32,
    /// How long a request head may take.
    pub head_timeout_ms: u64,
    /// How long a body may come more slowly than `body_bytes_per_s_min`: so much time it has if it is small, and as
    /// much again as long as it brings that.
    pub body_timeout_ms: u64,
    /// The least rate of bodies, and of what is read and dropped behind a refusal.
    pub body_bytes_per_s_min: u64,
    /// How long a kept-alive HTTP connection may stay without a request, and a response without being taken. Default
    /// 75 s: longer than proxies keep idle connections, so that we do not close just as a request comes.
    pub http_idle_timeout_ms: u64,
    /// How long a client may take to answer our close frame, behind what is queued for it.
    pub close_timeout_ms: u64,
    /// How long we read on after our last byte, so that the client sees it rather than a reset; longer, as bodies are
    /// read, while more comes of what it was refused for.
    pub linger_ms: u64,
    /// How much we read on, likewise, beyond what it was refused for.
    pub linger_bytes_max: usize,
    /// A silent client is sent a ping after at most this long; 0 for never. Each waits between 80 and 95 % of it, by
    /// chance, so that clients that came together are not pinged together.
    pub ping_interval_ms: u64,
    /// So many pings may stay unanswered before the client is gone: at most `ping_interval_ms` times one more than
    /// these after its last sign of life.
    pub pings_unanswered_max: u8,
    /// Pings and pongs that a client may send within a second; more close it with 1008. 0 is no limit.
    pub control_frames_per_s_max: u16,
    /// Topics that one channel may be subscribed to; 65,535 at most. Default 128: a page that shows so many things at
    /// once.
    pub topics_per_channel_max: usize,
    /// Payloads up to this size are copied next to their header for one channel. Measured: one joined buffer beats
    /// a gathering write for small frames; a copy of 4 KiB costs less than the second part does.
    pub copy_bytes_max: usize,
    /// The same for a frame that goes to many channels, where one copy serves all.
    pub copy_shared_bytes_max: usize,
}

impl ShardConfig {
    /// The memory that the HTTP of one connection may use, whichever client it turns out to be from.
    pub(in crate::shard) fn http_limits(&self) -> http::HttpLimits {
        let body_bytes_max = self.http_limits.body_bytes_max.max(self.body_bytes_max_logged_in);
        http::HttpLimits { body_bytes_max, ..self.http_limits }
    }

    /// Brings what no shard can count with into the range that it can: a time that is to be for ever is ten years.
    #[cfg(feature = "driver")]
    pub(crate) fn fit(&mut self) {
        for time_ms in [
            &mut self.register_timeout_ms,
            &mut self.tls_handshake_timeout_ms,
            &mut self.head_timeout_ms,
            &mut self.body_timeout_ms,
            &mut self.http_idle_timeout_ms,
            &mut self.close_timeout_ms,
            &mut self.linger_ms,
            &mut self.ping_interval_ms,
            &mut self.resume.window_ms,
        ] {
            *time_ms = (*time_ms).min(LONGEST_MS);
        }
        self.topics_per_channel_max = self.topics_per_channel_max.min(u16::MAX.into());
        // Of none at all those that have begun would wait for ever.
        self.tls_handshakes_per_turn = self.tls_handshakes_per_turn.max(1);
        let Deflate { level, push_level, window_bits, .. } = &mut self.deflate;
        (*level, *push_level) = ((*level).clamp(1, 9), (*push_level).clamp(1, 9));
        *window_bits = (*window_bits).clamp(9, 15);
    }

    /// After so long without a sign of life a client is known to be gone: by pings that it did not answer.
    pub(in crate::shard) fn dead_after_ms(&self) -> u64 {
        match self.ping_interval_ms {
            0 => UNPINGED_DEAD_AFTER_MS,
            interval_ms => interval_ms.saturating_mul(u64::from(self.pings_unanswered_max) + 1),
        }
    }

    /// The bytes that must have arrived within `window_ms` for a client to be waited for.
    pub(in crate::shard) fn least_bytes(&self, window_ms: u64) -> u64 {
        self.body_bytes_per_s_min.saturating_mul(window_ms) / 1000
    }
}

impl Default for ShardConfig {
    fn default() -> Self {
        Self {
            outbound_bytes_max: 1024 * 1024,
            policy: Policy::Close,
            limits: proto::MessageLimits::default(),
            http_limits: http::HttpLimits::default(),
            deflate: Deflate::default(),
            subprotocols: Vec::new(),
            resume: Resume::default(),
            register_timeout_ms: 10_000,
            body_bytes_max_logged_in: 0,
            tls: None,
            tls_handshake_timeout_ms: 10_000,
            tls_handshakes_per_turn: 8,
            head_timeout_ms: 10_000,
            body_timeout_ms: 10_000,
            body_bytes_per_s_min: 1024,
            http_idle_timeout_ms: 75_000,
            close_timeout_ms: 5_000,
            linger_ms: 2_000,
            linger_bytes_max: 1024 * 1024,
            ping_interval_ms: 25_000,
            pings_unanswered_max: 2,
            control_frames_per_s_max: 100,
            topics_per_channel_max: 128,
            copy_bytes_max: 4 * 1024,
            copy_shared_bytes_max: 64 * 1024 - 16,
        }
    }
}

/// No deadline is further away: ticks are counted in 32 bits.
#[cfg(feature = "driver")]
const LONGEST_MS: u64 = 10 * 365 * 24 * 3_600_000;

/// Where clients are not pinged, the system itself finds out that a client has vanished, by what is sent to it.
const UNPINGED_DEAD_AFTER_MS: u64 = 75_000;

/// Channels that outlive their connections (subprotocol `pushring.1`), on the paths whose binding says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resume {
    /// How long a channel waits for its client to come back. Default 30 s: a change of networks, a lift, a short sleep.
    pub window_ms: u64,
    /// How much of what was sent to one channel is remembered at most, in bytes of frames. Default 1 MiB, as much as
    /// may wait for one.
    pub bytes_max: usize,
    /// How much a shard remembers for all channels together: bytes that many were sent count once. Default 64 MiB.
    pub shard_bytes_max: usize,
}

impl Default for Resume {
    fn default() -> Self {
        Self { window_ms: 30_000, bytes_max: 1024 * 1024, shard_bytes_max: 64 * 1024 * 1024 }
    }
}

impl Resume {
    /// How far back history is of use: a client that is found to be gone after `dead_after_ms` may come back as long as
    /// its channel waits for it.
    pub(in crate::shard) fn reach_ms(&self, dead_after_ms: u64) -> u64 {
        self.window_ms.saturating_add(dead_after_ms)
    }
}

/// Compression of messages (permessage-deflate, RFC 7692).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deflate {
    /// Whether clients may agree on it on every path, those that register included. Default off: then they may on the
    /// paths whose binding says so.
    pub everywhere: bool,
    /// How hard broadcasts are compressed, once on the thread that pushes them: 1 (fast) to 9 (small), as zlib counts.
    /// Default 3: a quarter fewer bytes than at 1, and next to nothing more for each channel that is reached.
    pub level: u8,
    /// The same for messages to one channel, which its shard compresses. Default 1: at 3 a message of 1 KiB takes twice
    /// the time, more than a send costs.
    pub push_level: u8,
    /// Smaller messages are sent as they are.
    pub bytes_min: usize,
    /// Larger messages to one channel are sent uncompressed: the shard compresses those, and all others on it wait
    /// meanwhile. Broadcasts are compressed on the thread that pushes them, whatever their size.
    pub shard_bytes_max: usize,
    /// The base-two logarithm of the window that our messages look back on, 9 to 15; a client may ask for less.
    pub window_bits: u8,
    /// How much memory this shard spends on letting messages refer to earlier ones (context takeover): for each channel
    /// that agrees on it a window, 32 KiB at 15 bits. Clients beyond that agree on compression without it. Default 0.
    pub takeover_bytes_max: usize,
}

impl Default for Deflate {
    fn default() -> Self {
        Self {
            everywhere: false,
            level: 3,
            push_level: 1,
            bytes_min: 512,
            shard_bytes_max: 32 * 1024,
            window_bits: 15,
            takeover_bytes_max: 0,
        }
    }
}
