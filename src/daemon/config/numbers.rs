//! Limits of shards, from the settings.

use super::DaemonConfig;
use pushring::internals::proto;

impl DaemonConfig {
    pub(super) fn limits(&self) -> proto::MessageLimits {
        let derived = proto::MessageLimits::for_messages(self.message_bytes_max.0);
        let or = |given: usize, derived: usize| if given == 0 { derived } else { given };
        proto::MessageLimits {
            frame_bytes_max: or(self.frame_bytes_max.0, derived.frame_bytes_max),
            fragments_max: or(self.fragments_max as usize, derived.fragments_max as usize) as u32,
            ..derived
        }
    }

    pub(super) fn shard(&self) -> pushring::internals::shard::ShardConfig {
        let defaults = pushring::internals::shard::ShardConfig::default();
        pushring::internals::shard::ShardConfig {
            outbound_bytes_max: self.outbound_bytes_max.0,
            policy: self.policy.0,
            limits: self.limits(),
            control_frames_per_s_max: self.control_frames_per_s_max,
            topics_per_channel_max: self.topics_per_channel_max,
            http_limits: pushring::internals::http::HttpLimits {
                head_bytes_max: self.head_bytes_max.0,
                header_count_max: self.header_count_max,
                body_bytes_max: self.body_bytes_max.0,
                chunk_extra_bytes_max: self.chunk_extra_bytes_max.0,
                pipelined_bytes_max: self.pipelined_bytes_max.0,
            },
            register_timeout_ms: self.register_timeout.0,
            tls_handshake_timeout_ms: self.tls_handshake_timeout.0,
            tls_handshakes_per_turn: self.tls_handshakes_per_turn,
            head_timeout_ms: self.head_timeout.0,
            body_timeout_ms: self.body_timeout.0,
            body_bytes_per_s_min: self.body_bytes_per_s_min.0 as u64,
            body_bytes_max_logged_in: self.body_bytes_max_logged_in.0,
            http_idle_timeout_ms: self.http_idle_timeout.0,
            close_timeout_ms: self.close_timeout.0,
            linger_ms: self.linger.0,
            linger_bytes_max: self.linger_bytes_max.0,
            ping_interval_ms: self.ping_interval.0,
            pings_unanswered_max: self.pings_unanswered_max,
            subprotocols: self.subprotocols.0.clone(),
            resume: pushring::internals::shard::Resume {
                window_ms: self.resume_window.0,
                bytes_max: self.resume_bytes_max.0,
                shard_bytes_max: self.resume_shard_bytes_max.0,
            },
            deflate: pushring::internals::shard::Deflate {
                everywhere: self.deflate,
                level: self.deflate_level,
                push_level: self.deflate_push_level,
                bytes_min: self.deflate_bytes_min.0,
                window_bits: self.deflate_window_bits,
                takeover_bytes_max: self.deflate_takeover_bytes_max.0,
                ..defaults.deflate
            },
            ..defaults
        }
    }
}
