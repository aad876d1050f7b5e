//! Alerts (RFC 8446 section 6): the one-byte reason for the end of a connection.
//!
//! It must not know which side sends them, or when.

use std::fmt;

/// The description of an alert. Peers may send any byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Alert(pub u8);

impl Alert {
    /// Nothing more will be sent.
    pub const CLOSE_NOTIFY: Self = Self(0);
    /// A record that does not belong here.
    pub const UNEXPECTED_MESSAGE: Self = Self(10);
    /// A record that does not open.
    pub const BAD_RECORD_MAC: Self = Self(20);
    /// A record that is too long.
    pub const RECORD_OVERFLOW: Self = Self(22);
    /// A field that must not have this value.
    pub const ILLEGAL_PARAMETER: Self = Self(47);
    /// A message that does not parse.
    pub const DECODE_ERROR: Self = Self(50);
    /// A fault of our own.
    pub const INTERNAL_ERROR: Self = Self(80);
    /// The user has cancelled; close_notify follows.
    pub const USER_CANCELED: Self = Self(90);

    /// Its name in the RFC; numbers without one are all told as `unknown`.
    pub fn name(self) -> &'static str {
        match self.0 {
            0 => "close_notify",
            10 => "unexpected_message",
            20 => "bad_record_mac",
            22 => "record_overflow",
            40 => "handshake_failure",
            42 => "bad_certificate",
            43 => "unsupported_certificate",
            44 => "certificate_revoked",
            45 => "certificate_expired",
            46 => "certificate_unknown",
            47 => "illegal_parameter",
            48 => "unknown_ca",
            49 => "access_denied",
            50 => "decode_error",
            51 => "decrypt_error",
            70 => "protocol_version",
            71 => "insufficient_security",
            80 => "internal_error",
            86 => "inappropriate_fallback",
            90 => "user_canceled",
            109 => "missing_extension",
            110 => "unsupported_extension",
            112 => "unrecognized_name",
            113 => "bad_certificate_status_response",
            115 => "unknown_psk_identity",
            116 => "certificate_required",
            120 => "no_application_protocol",
            _ => "unknown",
        }
    }
}

impl fmt::Display for Alert {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name(), self.0)
    }
}
