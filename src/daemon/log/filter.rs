//! The log's filter: a level, or targets with levels, as `info,pushring::link=debug`.

use anyhow::{Context, bail, ensure};
use tracing_subscriber::EnvFilter;

const EXAMPLES: &str = "write error, warn, info, debug, trace or off, or a part of pushring with a level of its own: \
                        info,pushring::shard=debug";

/// Other names of levels: syslog's, and those of other programs.
const ALIASES: [(&str, &str); 6] = [
    ("warning", "warn"),
    ("err", "error"),
    ("fatal", "error"),
    ("critical", "error"),
    ("notice", "info"),
    ("none", "off"),
];

/// A crate that logs at `info` what this program logs by itself, a few lines at a time: each refusal of a NATS server,
/// so one for each push where a permission is missing. It says so only to those who name it, or ask for more than info.
const TALKATIVE: &str = "async_nats";

/// The filter that `text` describes.
///
/// # Errors
/// A word that is neither a level nor a part of this program: a filter would take it for the name of a part, and let
/// nothing else pass.
pub(crate) fn parse(text: &str) -> anyhow::Result<EnvFilter> {
    let mut words: Vec<String> =
        text.split(',').map(str::trim).filter(|word| !word.is_empty()).map(word).collect::<Result<_, _>>()?;
    ensure!(!words.is_empty(), "log: it is empty: {EXAMPLES}");
    if words.iter().any(|word| word == "info") && !words.iter().any(|word| word.starts_with(TALKATIVE)) {
        words.push(format!("{TALKATIVE}=warn"));
    }
    EnvFilter::builder().parse(words.join(",")).with_context(|| format!("log: {text:?} is no filter: {EXAMPLES}"))
}

fn word(word: &str) -> anyhow::Result<String> {
    let (target, level) = match word.split_once('=') {
        Some((target, level)) => (Some(target), level),
        None => (None, word),
    };
    let known = level_of(level);
    match (target, known) {
        (None, Some(level)) => Ok(level),
        // A part alone: all that it says.
        (None, None) if word.starts_with("pushring") => Ok(word.to_owned()),
        (Some(target), Some(level)) => Ok(format!("{target}={level}")),
        (_, None) => bail!("log: {level:?} is no level: {EXAMPLES}"),
    }
}

fn level_of(word: &str) -> Option<String> {
    let lower = word.to_ascii_lowercase();
    let alias = ALIASES.iter().find(|(alias, _)| *alias == lower).map(|(_, level)| *level);
    let level = alias.unwrap_or(&lower);
    matches!(level, "off" | "error" | "warn" | "info" | "debug" | "trace").then(|| level.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_parts() {
        for (text, filter) in [
            ("info", "async_nats=warn,info"),
            ("info,async_nats=info", "async_nats=info,info"),
            ("debug", "debug"),
            ("WARNING", "warn"),
            ("Error, pushring::link=Warning", "pushring::link=warn,error"),
            ("pushring::shard=debug", "pushring::shard=debug"),
            ("off", "off"),
            ("pushring::link", "pushring::link=trace"),
        ] {
            assert_eq!(parse(text).unwrap().to_string(), filter, "{text}");
        }
    }

    #[test]
    fn what_would_silence_everything_is_refused() {
        for text in ["verbose", "warn;info", "info,quiet", "pushring::shard=loud", "", " , ", "pushring="] {
            let error = format!("{:#}", parse(text).unwrap_err());
            assert!(error.starts_with("log: ") && error.contains("pushring::shard=debug"), "{text}: {error}");
        }
    }
}
