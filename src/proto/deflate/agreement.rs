//! The agreement between client and server (RFC 7692 section 7.1): the four parameters, decided offer by offer.
//!
//! Invariant: the agreement never requires inbound state per connection (the client takes no context over), and
//! outbound state only where the [`Terms`] allow it.

use super::super::extension::{ExtensionOffer, Offers, Parameter};

/// The window of DEFLATE without a parameter: 32 KiB (7.1.2).
pub const WINDOW_BITS_MAX: u8 = 15;
/// RFC 7692 allows 8, but zlib's raw DEFLATE has no window of 256 bytes, so no offer that asks us for it is accepted.
pub const WINDOW_BITS_MIN: u8 = 9;

/// The server's terms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// The base-two logarithm of the largest window that our messages look back on: 9 to 15.
    pub window_bits: u8,
    /// Whether our messages may refer to earlier ones, where the client does not forbid it.
    pub takeover: bool,
}

/// The agreed parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Agreed {
    window_bits: u8,
    takeover: bool,
    /// Whether the offer limited our window, so that the answer must.
    answers_window: bool,
}

impl Agreed {
    /// Agreed without any parameter on our window: no context is taken over.
    pub const DEFAULT: Self = Self { window_bits: WINDOW_BITS_MAX, takeover: false, answers_window: false };

    /// The base-two logarithm of the window that our compressed messages may look back on: 9 to 15. Clients with the
    /// same value can share one compressed message.
    pub const fn server_window_bits(self) -> u8 {
        self.window_bits
    }

    /// Returns whether our messages may refer to those before them.
    pub const fn server_takes_context_over(self) -> bool {
        self.takeover
    }

    /// Appends the value of `Sec-WebSocket-Extensions` that tells the client.
    pub(in crate::proto) fn append_to(self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"permessage-deflate; client_no_context_takeover");
        if !self.takeover {
            out.extend_from_slice(b"; server_no_context_takeover");
        }
        if self.answers_window {
            // 7.1.2.1: accepted "by including the parameter with the same or smaller value".
            out.extend_from_slice(format!("; server_max_window_bits={}", self.window_bits).as_bytes());
        }
    }
}

/// Accepts the first offer that we can keep, or none.
///
/// An offer with a parameter that is unknown, repeated or has an invalid value is declined (7.1), and so is one that
/// wants our window to be 256 bytes. What an offer says of the client's own window binds us to nothing: we inflate
/// with the largest one, and leave `client_max_window_bits` out of the answer (7.1.2.2). `client_no_context_takeover`
/// is part of every answer, which 7.1.1.2 allows whether it was offered or not: an idle connection holds no window.
pub fn negotiate(offers: Offers<'_>, terms: Terms) -> Option<Agreed> {
    offers.into_iter().find_map(|offer| accept(&offer, terms))
}

fn accept(offer: &ExtensionOffer<'_>, terms: Terms) -> Option<Agreed> {
    if !offer.name.eq_ignore_ascii_case(b"permessage-deflate") {
        return None;
    }
    let mut agreed = Agreed { window_bits: terms.window_bits, takeover: terms.takeover, answers_window: false };
    for (index, parameter) in offer.parameters.iter().enumerate() {
        if offer.parameters[..index].iter().any(|earlier| earlier.name.eq_ignore_ascii_case(parameter.name)) {
            return None;
        }
        let is_named = |name: &str| parameter.name.eq_ignore_ascii_case(name.as_bytes());
        if is_named("server_no_context_takeover") || is_named("client_no_context_takeover") {
            if parameter.value().is_some() {
                return None;
            }
            // 7.1.1.1: accepted by keeping to it.
            agreed.takeover &= is_named("client_no_context_takeover");
        } else if is_named("client_max_window_bits") {
            if parameter.value().is_some() {
                window_bits(parameter)?;
            }
        } else if is_named("server_max_window_bits") {
            let bits = window_bits(parameter).filter(|&bits| bits >= WINDOW_BITS_MIN)?;
            agreed.window_bits = bits.min(terms.window_bits);
            agreed.answers_window = true;
        } else {
            return None;
        }
    }
    Some(agreed)
}

/// 7.1.2: "a decimal integer value without leading zeroes between 8 to 15 inclusive".
fn window_bits(parameter: &Parameter<'_>) -> Option<u8> {
    let mut digits = parameter.value()?;
    match (digits.next()?, digits.next(), digits.next()) {
        (b'8', None, None) => Some(8),
        (b'9', None, None) => Some(9),
        (b'1', Some(last @ b'0'..=b'5'), None) => Some(10 + last - b'0'),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use httparse::Header;

    const TERMS: Terms = Terms { window_bits: WINDOW_BITS_MAX, takeover: false };

    /// The answer to an offer, without what is in every answer.
    fn answer(value: &str, terms: Terms) -> Option<String> {
        let headers = [Header { name: "Sec-WebSocket-Extensions", value: value.as_bytes() }];
        negotiate(Offers::new(&headers), terms).map(|agreed| {
            let mut out = Vec::new();
            agreed.append_to(&mut out);
            let answer = String::from_utf8(out).unwrap();
            let always = "permessage-deflate; client_no_context_takeover";
            answer.strip_prefix(always).expect("always").to_owned()
        })
    }

    #[test]
    fn offers_are_accepted_with_what_the_answer_must_say() {
        for (offer, window) in [
            ("permessage-deflate", ""),
            ("permessage-deflate; client_max_window_bits", ""),
            ("permessage-deflate; client_max_window_bits=10", ""),
            ("permessage-deflate; client_max_window_bits=8", ""),
            ("Permessage-Deflate; Server_No_Context_Takeover; client_no_context_takeover", ""),
            ("permessage-deflate; server_max_window_bits=15", "; server_max_window_bits=15"),
            ("permessage-deflate; server_max_window_bits=\"10\"", "; server_max_window_bits=10"),
            ("permessage-deflate; server_max_window_bits=9", "; server_max_window_bits=9"),
            ("x-webkit-deflate-frame, permessage-deflate", ""),
            ("permessage-deflate; server_max_window_bits=8, permessage-deflate", ""),
            (
                "permessage-deflate; unknown, permessage-deflate; server_max_window_bits=12",
                "; server_max_window_bits=12",
            ),
        ] {
            let expected = format!("; server_no_context_takeover{window}");
            assert_eq!(answer(offer, TERMS), Some(expected), "{offer}");
        }
    }

    #[test]
    fn offers_that_cannot_be_kept_are_declined() {
        for offer in [
            "",
            "permessage-bzip2",
            "permessage-deflate; unknown",
            "permessage-deflate; server_no_context_takeover=1",
            "permessage-deflate; client_no_context_takeover=true",
            "permessage-deflate; server_no_context_takeover; server_no_context_takeover",
            "permessage-deflate; server_max_window_bits",
            "permessage-deflate; server_max_window_bits=7",
            "permessage-deflate; server_max_window_bits=8",
            "permessage-deflate; server_max_window_bits=16",
            "permessage-deflate; server_max_window_bits=010",
            "permessage-deflate; server_max_window_bits=1x",
            "permessage-deflate; server_max_window_bits=100",
            "permessage-deflate; server_max_window_bits=10; server_max_window_bits=10",
            "permessage-deflate; client_max_window_bits=0",
            "permessage-deflate; client_max_window_bits=16",
            "permessage-deflate; client_max_window_bits; client_max_window_bits=10",
        ] {
            assert_eq!(answer(offer, TERMS), None, "{offer}");
        }
    }

    #[test]
    fn context_is_taken_over_only_on_our_terms_and_the_clients() {
        let terms = Terms { window_bits: 12, takeover: true };
        for (offer, expected) in [
            ("permessage-deflate", ""),
            ("permessage-deflate; client_no_context_takeover", ""),
            ("permessage-deflate; server_no_context_takeover", "; server_no_context_takeover"),
            ("permessage-deflate; server_max_window_bits=10", "; server_max_window_bits=10"),
            // A smaller window of ours needs no word (7.1.2.1), but where the client asks it is told the truth.
            ("permessage-deflate; server_max_window_bits=15", "; server_max_window_bits=12"),
        ] {
            assert_eq!(answer(offer, terms).as_deref(), Some(expected), "{offer}");
        }
    }
}
