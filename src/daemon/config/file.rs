//! The settings file: parsed with errors that name the place, the fault and the fix; written with each key's
//! description.

use super::renamed::{current, renamed};
use super::{DaemonConfig, SETTINGS, SettingsFlags, TakesEffect};
use anyhow::{anyhow, bail, ensure};
use serde::Deserialize;
use std::fmt::Write;
use std::io::ErrorKind;
use std::ops::Range;
use std::path::Path;

/// How like a key has to be to be suggested: of Jaro and Winkler, from 0 to 1.
const LIKE: f64 = 0.8;

/// The keys that `file` sets, as a table that can be read over the defaults.
///
/// # Errors
/// It cannot be read, is no TOML, or has a key or a value that it should not have: by its line.
pub(super) fn read(file: &Path) -> anyhow::Result<toml::Table> {
    let name = file.display();
    let text = std::fs::read_to_string(file).map_err(|error| match error.kind() {
        ErrorKind::NotFound => anyhow!("there are no settings at {name}: `pushring init` writes some"),
        ErrorKind::InvalidData => anyhow!("{name} is no text in UTF-8, as settings are"),
        _ => anyhow!("cannot read the settings {name}: {error}"),
    })?;
    parse(&text, &name.to_string())
}

/// As [`read`], of the text of a file of this name.
pub(super) fn parse(text: &str, name: &str) -> anyhow::Result<toml::Table> {
    let at = |span: Option<Range<usize>>| match span {
        Some(span) => format!("{name}:{}", text[..span.start].matches('\n').count() + 1),
        None => name.to_owned(),
    };
    let one_line = |error: toml::de::Error| {
        let words = error.message().trim().replace('\n', ", ");
        anyhow::anyhow!("{}: {words}", at(error.span()))
    };
    let spanned = toml::de::DeTable::parse(text).map_err(one_line)?;
    let mut table: toml::Table = toml::from_str(text).map_err(one_line)?;
    for (key, _) in spanned.get_ref() {
        let place = at(Some(key.span()));
        let key = key.get_ref().as_ref();
        if !is_key(current(key)) {
            bail!("{place}: there is no setting {key:?}{}", suggestion(key));
        }
        if let Some(renamed) = renamed(key).filter(|renamed| table.contains_key(renamed.new)) {
            bail!("{place}: {key} is an old name of {}, which is set too: remove {key}", renamed.new);
        }
        let alone = |value| DaemonConfig::deserialize(toml::Table::from_iter([(current(key).to_owned(), value)]));
        let Err(error) = alone(table[key].clone()) else { continue };
        // A number is taken where its digits are, as on the command line: a port needs no quotes.
        let digits = table[key].as_integer().map(|number| toml::Value::from(number.to_string()));
        match digits.filter(|digits| alone(digits.clone()).is_ok()) {
            Some(digits) => table[key] = digits,
            None => {
                let words = error.message().trim().replace('\n', ", ");
                bail!("{place}: {key} = {}: {words} ({})", table[key], example(current(key)));
            }
        }
    }
    Ok(table)
}

/// Returns whether there is such a setting.
pub(super) fn is_key(key: &str) -> bool {
    keys().any(|known| known == key)
}

/// The keys of all settings.
pub(super) fn keys() -> impl Iterator<Item = &'static str> {
    SETTINGS.iter().flat_map(|group| group.settings).map(|setting| setting.key)
}

/// The key that was most likely meant, as a question to be put behind an error.
fn suggestion(key: &str) -> String {
    let likeness = |known: &&str| strsim::jaro_winkler(known, &key.to_lowercase().replace('-', "_"));
    match keys().max_by(|one, other| likeness(one).total_cmp(&likeness(other))) {
        Some(known) if likeness(&known) >= LIKE => format!(": did you mean {known}?"),
        _ => ": `pushring config` prints all that there are".to_owned(),
    }
}

/// How the key is written.
fn example(key: &str) -> String {
    let default = toml::Table::try_from(DaemonConfig::default()).ok().and_then(|table| table.get(key).cloned());
    default.map_or_else(String::new, |value| format!("for example {key} = {value}"))
}

/// `config` as a file with what each key means. With `is_template` each default is a comment, to be made a setting.
///
/// # Errors
/// A value cannot be written as TOML.
pub(crate) fn write(config: &DaemonConfig, is_template: bool) -> anyhow::Result<String> {
    let (table, defaults) = (toml::Table::try_from(config)?, toml::Table::try_from(DaemonConfig::default())?);
    let mut text = String::new();
    for group in SETTINGS {
        if !text.is_empty() {
            text.push('\n');
        }
        writeln!(text, "## {}", group.name)?;
        for setting in group.settings {
            text.push('\n');
            for line in setting.doc.lines() {
                writeln!(text, "# {}", line.trim())?;
            }
            match setting.when {
                TakesEffect::Now => {}
                TakesEffect::NewConnections => writeln!(text, "# A reload changes it for new connections.")?,
                TakesEffect::Restart => writeln!(text, "# A change of it needs a restart.")?,
            }
            let mark = if is_template && table[setting.key] == defaults[setting.key] { "#" } else { "" };
            writeln!(text, "{mark}{} = {}", setting.key, table[setting.key])?;
        }
    }
    Ok(text)
}

/// `table` with what flags and the environment say instead.
pub(super) fn overlaid(mut table: toml::Table, flags: &SettingsFlags) -> anyhow::Result<DaemonConfig> {
    table.extend(of_flags(flags)?);
    Ok(table.try_into()?)
}

/// What flags and the environment say, under the keys of the file.
///
/// # Errors
/// A number is larger than a file could say it.
pub(super) fn of_flags(flags: &SettingsFlags) -> anyhow::Result<toml::Table> {
    let said = serde_json::to_value(flags)?;
    for (key, value) in said.as_object().into_iter().flatten() {
        let is_sayable = value.as_u64().is_none_or(|number| i64::try_from(number).is_ok());
        ensure!(is_sayable, "{key}: at most {}", i64::MAX);
    }
    Ok(toml::Table::try_from(flags)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        format!("{:#}", parse(text, "p.toml").unwrap_err())
    }

    #[test]
    fn errors_say_where_what_and_how_instead() {
        for (text, words) in [
            ("\n\nshrads = 2", "p.toml:3: there is no setting \"shrads\": did you mean shards?"),
            ("head-timeout = \"3s\"", "p.toml:1: there is no setting \"head-timeout\": did you mean head_timeout?"),
            ("[pushring]\nshards = 1", "p.toml:1: there is no setting \"pushring\""),
            ("\nhead_timeout = 10", "p.toml:2: head_timeout = 10: 10 has no unit: write \"10s\" or \"10ms\""),
            ("head_timeout = \"10\"", "(for example head_timeout = \"10s\")"),
            ("listen = 9000", "(for example listen = \"127.0.0.1:8080\")"),
            ("listen = \"9000\"", "(for example listen = \"127.0.0.1:8080\")"),
            ("shards = \"2\"", "p.toml:1: shards = \"2\": "),
            ("hosts = \"a.b\"", "(for example hosts = [])"),
            ("outbound_bytes_max = \"1Mb\"", "64KiB"),
            ("policy = \"drop\"", "is none of close, drop-newest, "),
            ("memory_budget = true", "\"auto\""),
            ("shards = 1\nshards = 2", "p.toml:2: duplicate key"),
            ("tls = 1", "p.toml:1: tls = 1: "),
            ("tls = 1", "(for example behind_tls = false)"),
            ("\nbehind_tls = true\ntls = true", "p.toml:3: tls is an old name of behind_tls, which is set too"),
            ("shards = ", "p.toml:1: "),
        ] {
            let error = error(text);
            assert!(error.contains(words) && !error.contains('\n') && error.starts_with("p.toml:"), "{text}: {error}");
        }
    }

    #[test]
    fn a_number_is_taken_where_its_digits_are() {
        for (number, text) in [
            ("tls_redirect = 443", "tls_redirect = \"443\""),
            ("link_group = 77", "link_group = \"77\""),
            ("link_mode = 660", "link_mode = \"0660\""),
            ("resume_window = 0", "resume_window = \"0s\""),
        ] {
            let config = |text| overlaid(parse(text, "p.toml").unwrap(), &SettingsFlags::default()).unwrap();
            assert_eq!(config(number), config(text), "{number}");
        }
        // An address needs more than a port, and one that is none is told as it was written.
        for (text, words) in [
            ("listen = 9000", "p.toml:1: listen = 9000: "),
            ("tls_redirect = 0", "p.toml:1: tls_redirect = 0: "),
            ("tls_redirect = 65536", "p.toml:1: tls_redirect = 65536: "),
            ("tls_redirect = true", "p.toml:1: tls_redirect = true: "),
            ("link_mode = 0o660", "p.toml:1: link_mode = 432: "),
        ] {
            assert!(error(text).starts_with(words), "{}", error(text));
        }
    }

    #[test]
    fn a_template_says_the_defaults_in_comments() {
        let template = write(&DaemonConfig::default(), true).unwrap();
        assert_eq!(parse(&template, "").unwrap(), toml::Table::new());
        let set: String = template.lines().map(|line| format!("{}\n", uncommented(line))).collect();
        assert_eq!(overlaid(parse(&set, "").unwrap(), &SettingsFlags::default()).unwrap(), DaemonConfig::default());
        assert_eq!(
            overlaid(parse(&write(&DaemonConfig::default(), false).unwrap(), "").unwrap(), &SettingsFlags::default())
                .unwrap(),
            DaemonConfig::default()
        );
    }

    /// A setting of a template, as a setting.
    fn uncommented(line: &str) -> &str {
        line.strip_prefix('#').filter(|rest| !rest.starts_with([' ', '#'])).unwrap_or(line)
    }
}
