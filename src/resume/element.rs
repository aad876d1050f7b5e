//! The element of `Sec-WebSocket-Protocol` with which a client resumes: `resume.ID.TOKEN.RECEIVED`.
//!
//! It carries a secret, so it is parsed only here, never echoed, and removed from any head that is passed on
//! ([`without_secrets`]).

use super::token::ResumeToken;
use crate::channel::ChannelId;
use crate::words::strict::digits;

const PREFIX: &str = "resume.";

/// Elements that begin so are secrets of their client: this one, and login tokens where a page cannot send a header.
const SECRETS: [&str; 2] = [PREFIX, "bearer."];

/// A client's request to resume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResumeAsk {
    /// Its channel.
    pub channel: ChannelId,
    /// Its token, not checked yet.
    pub token: ResumeToken,
    /// How many messages of that channel it has received, those it was told to be dropped among them.
    pub received: u64,
}

/// Something began as an element to resume with, but is none; or there are several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MalformedElement;

/// Looks for the element among the subprotocols that a client offers.
pub fn find<'a>(offered: impl Iterator<Item = &'a [u8]>) -> Option<Result<ResumeAsk, MalformedElement>> {
    let mut elements = offered.filter(|element| element.starts_with(PREFIX.as_bytes()));
    let first = elements.next()?;
    if elements.next().is_some() {
        return Some(Err(MalformedElement));
    }
    Some(parse(&first[PREFIX.len()..]).ok_or(MalformedElement))
}

fn parse(element: &[u8]) -> Option<ResumeAsk> {
    let mut parts = std::str::from_utf8(element).ok()?.split('.');
    let channel = digits(parts.next()?)?;
    let token = ResumeToken::parse(parts.next()?)?;
    let received = digits(parts.next()?)?;
    parts.next().is_none().then_some(ResumeAsk { channel: ChannelId::new(channel), token, received })
}

/// Returns whether a subprotocol element is a secret of the client that offers it. Names of subprotocols have a case,
/// but a token under a misspelt one is as secret.
pub fn is_secret(element: &[u8]) -> bool {
    let begins_so =
        |prefix: &str| element.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix.as_bytes()));
    SECRETS.into_iter().any(begins_so)
}

/// A `Sec-WebSocket-Protocol` field as others may see it: without the elements that are secrets.
pub fn without_secrets(value: &str) -> String {
    let elements = value.split(',').map(str::trim).filter(|element| !is_secret(element.as_bytes()));
    elements.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resume::token::Keys;
    use proptest::prelude::*;

    fn offered(elements: &[&str]) -> Option<Result<ResumeAsk, MalformedElement>> {
        find(elements.iter().map(|element| element.as_bytes()))
    }

    #[test]
    fn the_element_is_found_among_others_and_once() {
        let token = Keys::new(&[1; 32]).mint(ChannelId::new(7), 5);
        let element = format!("resume.7.{}.120", token.text());
        let ask = ResumeAsk { channel: ChannelId::new(7), token, received: 120 };
        assert_eq!(offered(&["pushring.1", &element]), Some(Ok(ask)));
        assert_eq!(offered(&["pushring.1", "resumed"]), None);
        assert_eq!(offered(&[&element, &element]), Some(Err(MalformedElement)));
        for broken in ["resume.", "resume.7", "resume.7.x.1", "resume.+7.x.1"] {
            assert_eq!(offered(&[broken]), Some(Err(MalformedElement)), "{broken}");
        }
        let text = token.text();
        for broken in [
            format!("resume.4294967296.{text}.1"),
            format!("resume.7.{text}."),
            format!("resume..{text}.1"),
            format!("resume.7.{text}.-1"),
            format!("resume.7.{text}.18446744073709551616"),
            format!("resume.7.{text}.1.2"),
        ] {
            assert_eq!(offered(&[&broken]), Some(Err(MalformedElement)), "{broken}");
        }
    }

    #[test]
    fn secrets_are_taken_out_and_nothing_else() {
        let field = "pushring.1, resume.7.secret.1 ,bearer.secret,chat";
        assert_eq!(without_secrets(field), "pushring.1, chat");
        assert_eq!(without_secrets("resume.7.secret.1"), "");
        assert_eq!(without_secrets("Bearer.secret, RESUME.7.secret.1, bearer, resumed"), "bearer, resumed");
    }

    proptest! {
        #[test]
        fn whatever_is_offered_is_judged_without_a_panic(element in proptest::collection::vec(any::<u8>(), 0..60)) {
            let element = [b"resume.", &element[..]].concat();
            prop_assert!(find(std::iter::once(&element[..])).is_some());
        }

        #[test]
        fn what_is_written_is_read(id: u32, random: u32, received: u64) {
            let token = Keys::new(&[1; 32]).mint(ChannelId::new(id), random);
            let element = format!("resume.{id}.{}.{received}", token.text());
            let ask = ResumeAsk { channel: ChannelId::new(id), token, received };
            prop_assert_eq!(find(std::iter::once(element.as_bytes())), Some(Ok(ask)));
        }
    }
}
