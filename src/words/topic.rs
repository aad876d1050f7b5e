//! The name of a topic: UTF-8 of 1 to 255 bytes, compared byte by byte. It means something within one process only.

/// The longest name, in bytes: as long as what people write, and short enough to be counted in one byte anywhere.
pub const TOPIC_BYTES_MAX: usize = 255;

/// A text that names no topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a topic's name has 1 to {TOPIC_BYTES_MAX} bytes, not {0}")]
pub struct InvalidTopic(pub usize);

/// Whether a topic may have this name.
///
/// # Errors
/// It is empty, or over [`TOPIC_BYTES_MAX`].
pub fn check(name: &str) -> Result<(), InvalidTopic> {
    if (1..=TOPIC_BYTES_MAX).contains(&name.len()) { Ok(()) } else { Err(InvalidTopic(name.len())) }
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
    }
}
