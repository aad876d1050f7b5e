//! The texts of `pushring.1` beside messages: the hello, which is the first message, and control texts, which begin
//! with [`MARK`].
//!
//! Invariant: each text is complete and valid UTF-8; positions are counts of messages, and control texts are not
//! counted.

use super::token::ResumeToken;
use crate::channel::ChannelId;
use serde::de::{Error as _, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use std::fmt::Write;
use std::sync::Arc;

/// The first byte of control texts: U+001E, the record separator. A Text message that begins with it is sent with one
/// more.
pub const MARK: u8 = 0x1e;

/// Why a client that came back begins anew, or with a gap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResumeRefusal {
    /// There is no such channel: it was closed, its token was used already, or what was brought is no token.
    Unknown,
    /// The channel ended while its client was away.
    Expired,
    /// The channel goes on, but its history does not reach back so far.
    Trimmed,
    /// The token is another channel's or user's.
    Foreign,
    /// Another daemon gave the token out, or this one before it was started anew.
    Elsewhere,
}

impl ResumeRefusal {
    /// In one word, as it is told.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Expired => "expired",
            Self::Trimmed => "trimmed",
            Self::Foreign => "foreign",
            Self::Elsewhere => "elsewhere",
        }
    }
}

/// The result of resuming, as the client is told it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ResumeAnswer {
    /// The channel is new, not resumed.
    New,
    /// All that was missed follows.
    Resumed {
        /// How many messages of the client have been received.
        received: u64,
    },
    /// So many messages are lost; all behind them follow.
    Gap {
        /// How many.
        lost: u64,
        /// How many messages of the client have been received.
        received: u64,
    },
    /// The channel is another one than was asked for.
    Anew {
        /// Why.
        why: ResumeRefusal,
        /// How many messages of the old one are lost, where that is known.
        lost: Option<u64>,
        /// Where the daemon is reached that gave the token out, where that is another one and known.
        at: Option<Arc<str>>,
    },
}

/// The first message of a connection.
pub fn hello(channel: ChannelId, token: ResumeToken, window_ms: u64, answer: ResumeAnswer) -> String {
    let mut text =
        format!(r#"{{"pushring":1,"channel_id":{channel},"resume":"{}","window_ms":{window_ms}"#, token.text());
    // Writing into a String cannot fail.
    let _ = match answer {
        ResumeAnswer::New => Ok(()),
        ResumeAnswer::Resumed { received } => write!(text, r#","resumed":true,"received":{received}"#),
        ResumeAnswer::Gap { lost, received } => {
            let why = ResumeRefusal::Trimmed.name();
            write!(text, r#","resumed":false,"reason":"{why}","lost":{lost},"received":{received}"#)
        }
        ResumeAnswer::Anew { why, lost, at } => {
            let _ = write!(text, r#","resumed":false,"reason":"{}""#, why.name());
            let _ = lost.map(|lost| write!(text, r#","lost":{lost}"#));
            at.map_or(Ok(()), |at| write!(text, r#","at":{}"#, serde_json::Value::from(&*at)))
        }
    };
    text.push('}');
    text
}

/// A text for the loss of the next `count` messages: the client counts them as received.
pub fn dropped(count: u64) -> String {
    format!("\u{1e}{{\"dropped\":{count}}}")
}

/// The answer to a ping of a client.
pub fn pong(number: u32) -> String {
    format!("\u{1e}{{\"pong\":{number}}}")
}

/// The meaning of a client's control text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Control {
    /// The client has received so many messages; what came before them may be forgotten.
    pub ack: Option<u64>,
    /// The client asks whether its connection still works, and for this number back.
    pub ping: Option<u32>,
    /// Whether the text has more fields, which are not for us.
    pub says_more: bool,
}

impl Control {
    /// Whether it says nothing to us: it is its process' then.
    pub fn is_for_others(self) -> bool {
        self.says_more || (self.ack.is_none() && self.ping.is_none())
    }
}

/// A control text that is no JSON object, or whose fields are of the wrong kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoControl;

impl<'de> Deserialize<'de> for Control {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_map(ControlVisitor)
    }
}

#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "snake_case")]
enum ControlField {
    Ack,
    Ping,
    #[serde(other)]
    Unknown,
}

struct ControlVisitor;

impl<'de> Visitor<'de> for ControlVisitor {
    type Value = Control;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a control text")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Control, A::Error> {
        let (mut said, mut has_ack, mut has_ping) = (Control::default(), false, false);
        while let Some(field) = fields.next_key()? {
            match field {
                ControlField::Ack if std::mem::replace(&mut has_ack, true) => {
                    return Err(A::Error::duplicate_field("ack"));
                }
                ControlField::Ping if std::mem::replace(&mut has_ping, true) => {
                    return Err(A::Error::duplicate_field("ping"));
                }
                ControlField::Ack => said.ack = fields.next_value()?,
                ControlField::Ping => said.ping = fields.next_value()?,
                ControlField::Unknown => {
                    fields.next_value::<IgnoredAny>()?;
                    said.says_more = true;
                }
            }
        }
        Ok(said)
    }
}

/// Reads what follows [`MARK`].
///
/// # Errors
/// It is no control text.
pub fn control(text: &[u8]) -> Result<Control, NoControl> {
    serde_json::from_slice(text).map_err(|_| NoControl)
}

/// Returns whether a Text message must be escaped, or is a control text.
pub fn is_marked(text: &[u8]) -> bool {
    text.first() == Some(&MARK)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resume::token::Keys;

    #[test]
    fn each_answer_says_what_the_client_must_know() {
        let (id, token) = (ChannelId::new(7), Keys::new(&[1; 32]).mint(ChannelId::new(7), 1));
        let hello = |answer| {
            let text = hello(id, token, 30_000, answer);
            let head = format!(r#"{{"pushring":1,"channel_id":7,"resume":"{}","window_ms":30000"#, token.text());
            let value: serde_json::Value = serde_json::from_str(&text).unwrap();
            assert_eq!(value["resume"].as_str().unwrap().len(), 22);
            text.strip_prefix(&head).unwrap().to_owned()
        };
        assert_eq!(hello(ResumeAnswer::New), "}");
        assert_eq!(hello(ResumeAnswer::Resumed { received: 3 }), r#","resumed":true,"received":3}"#);
        assert_eq!(
            hello(ResumeAnswer::Gap { lost: 4, received: 3 }),
            r#","resumed":false,"reason":"trimmed","lost":4,"received":3}"#
        );
        let expired = ResumeAnswer::Anew { why: ResumeRefusal::Expired, lost: Some(9), at: None };
        assert_eq!(hello(expired), r#","resumed":false,"reason":"expired","lost":9}"#);
        let elsewhere = |at| ResumeAnswer::Anew { why: ResumeRefusal::Elsewhere, lost: None, at };
        assert_eq!(hello(elsewhere(None)), r#","resumed":false,"reason":"elsewhere"}"#);
        let at = Some("wss://a\"b".into());
        assert_eq!(hello(elsewhere(at)), r#","resumed":false,"reason":"elsewhere","at":"wss://a\"b"}"#);
    }

    #[test]
    fn control_texts_are_objects_and_unknown_fields_say_nothing() {
        assert_eq!(dropped(3), "\u{1e}{\"dropped\":3}");
        assert_eq!(pong(3), "\u{1e}{\"pong\":3}");
        let (nothing, ack) = (Control::default(), |received| Control { ack: Some(received), ..Control::default() });
        assert_eq!(control(br#" {"ack":12} "#), Ok(ack(12)));
        assert_eq!(control(br#"{"subscribe":"a","\u0061ck":12}"#), Ok(Control { says_more: true, ..ack(12) }));
        assert_eq!(control(br#"{"ping":7,"ack":12}"#), Ok(Control { ping: Some(7), ..ack(12) }));
        assert_eq!(control(br#"{"ack":null,"ping":null}"#), Ok(nothing));
        assert_eq!(control(br#"{"later":true}"#), Ok(Control { says_more: true, ..nothing }));
        let is_for_others = |text: &[u8]| control(text).unwrap().is_for_others();
        assert!(is_for_others(b"{}") && is_for_others(br#"{"ping":1,"publish":"a"}"#));
        assert!(!is_for_others(br#"{"ping":1}"#) && !is_for_others(br#"{"ack":1}"#));
        for wrong in [
            &b""[..],
            b"12",
            b"[12]",
            br#"{"ack":1,"ack":1}"#,
            br#"{"ping":1,"ping":2}"#,
            br#"{"ping":4294967296}"#,
            br#"{"ping":"1"}"#,
            br#"{"ack":-1}"#,
            br#"{"ack":"1"}"#,
            br#"{"ack":1}x"#,
            b"\xff",
        ] {
            assert_eq!(control(wrong), Err(NoControl));
        }
        assert!(is_marked("\u{1e}x".as_bytes()) && !is_marked(b"x") && !is_marked(b""));
    }
}
