//! The name of a topic: UTF-8 of 1 to 255 bytes, compared byte by byte. It means something within one process only.

/// The longest name, in bytes: as long as what people write, and short enough to be counted in one byte anywhere.
pub const TOPIC_BYTES_MAX: usize = 255;

/// A text that names no topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a topic's name has 1 to {TOPIC_BYTES_MAX} bytes, not {0}")]
#[non_exhaustive]
pub struct InvalidTopic(pub usize);

/// Whether a topic may have this name.
///
/// # Errors
/// It is empty, or over [`TOPIC_BYTES_MAX`].
pub(crate) fn check(name: &str) -> Result<(), InvalidTopic> {
    if (1..=TOPIC_BYTES_MAX).contains(&name.len()) { Ok(()) } else { Err(InvalidTopic(name.len())) }
}

/// The prefix of names that the broker reserves.
const RESERVED: char = '\u{1e}';

/// All reserved names stand before this one.
#[cfg_attr(not(feature = "daemon"), allow(dead_code))]
pub(crate) const BEHIND_RESERVED: &str = "\u{1e}\u{10ffff}";

/// The longest name of a user that a topic is made of.
pub(crate) const USER_BYTES_MAX: usize = 200;

/// Returns whether only the broker itself subscribes to it; such topics are never reported.
pub(crate) fn is_reserved(name: &str) -> bool {
    name.starts_with(RESERVED)
}

/// The prefix of the topics of users.
const OF_USER: &str = "\u{1e}user/";

/// Returns whether it is the topic of a user: the broker's own, and in no count of what a channel asked for.
pub(crate) fn is_of_user(name: &str) -> bool {
    name.starts_with(OF_USER)
}

/// The topic of all channels of one user. None: the name is empty or over [`USER_BYTES_MAX`].
pub(crate) fn of_user(user: &str) -> Option<String> {
    (1..=USER_BYTES_MAX).contains(&user.len()).then(|| format!("{OF_USER}{user}"))
}

/// The topic for subscribers that want another topic's messages with an envelope. None: its name would be too long.
#[cfg_attr(not(feature = "driver"), allow(dead_code))]
pub(crate) fn enveloped(name: &str) -> Option<String> {
    let twin = format!("{RESERVED}envelope/{name}");
    check(&twin).is_ok().then_some(twin)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_bounded_in_bytes_and_nothing_else() {
        assert_eq!(check(""), Err(InvalidTopic(0)));
        for name in ["a", "a/b.c:*", "\0", " ", "räume", &"x".repeat(255), &"é".repeat(127)] {
            assert_eq!(check(name), Ok(()), "{name}");
        }
        assert_eq!(check(&"é".repeat(128)), Err(InvalidTopic(256)));
        for user in ["a", &"u".repeat(200), "\u{10ffff}"] {
            let topic = of_user(user).unwrap();
            assert!(check(&topic).is_ok() && is_reserved(&topic) && is_of_user(&topic), "{user}");
        }
        assert_eq!((of_user(""), of_user(&"u".repeat(201))), (None, None));
        assert!(*of_user("\u{10ffff}").unwrap() < *BEHIND_RESERVED && !is_reserved("a\u{1e}"));
    }
}
