//! The environment variables of settings: `PUSHRING_` and the key.
//!
//! Invariant: a variable with the prefix that sets nothing is reported.

use super::file::{is_key, keys};
use super::renamed::{current, renamed};
use anyhow::{bail, ensure};
use std::ffi::{OsStr, OsString};

const PREFIX: &str = "PUSHRING_";

/// Variables of other programs: Kubernetes gives these to every container beside a service named `pushring`.
fn is_of_kubernetes(name: &str) -> bool {
    name.starts_with("PORT")
        || name.contains("SERVICE_HOST")
        || name.contains("SERVICE_PORT")
        || name.contains("_PORT_")
}

/// The variable of a setting.
pub(crate) fn variable(key: &str) -> String {
    format!("{PREFIX}{}", key.to_uppercase())
}

/// Looks through the variables of this program, and tells those that set nothing.
///
/// # Errors
/// One that is most likely misspelt, and one that is empty: a file of variables or a container's often has those by
/// mistake, and a secret that is missed then lets strangers in.
pub(crate) fn check(is_list: impl Fn(&str) -> bool) -> anyhow::Result<Vec<String>> {
    examine(std::env::vars_os(), is_list)
}

fn examine(
    variables: impl Iterator<Item = (OsString, OsString)>,
    is_list: impl Fn(&str) -> bool,
) -> anyhow::Result<Vec<String>> {
    let mut unknown = Vec::new();
    let variables: Vec<_> = variables.collect();
    for (name, value) in &variables {
        let Some(rest) = name.to_str().and_then(|name| name.strip_prefix(PREFIX)) else { continue };
        let key = rest.to_lowercase();
        if key == "config" || (is_key(current(&key)) && variable(&key) == format!("{PREFIX}{rest}")) {
            let is_set = value != OsStr::new("") || is_list(current(&key));
            ensure!(is_set, "{PREFIX}{rest} is set and empty: unset it, or give {key} a value");
            if let Some(now) = renamed(&key).map(|renamed| variable(renamed.new)) {
                let is_both = variables.iter().any(|(name, _)| *name == *now);
                ensure!(!is_both, "{PREFIX}{rest} is an old name of {now}, which is set too: unset {PREFIX}{rest}");
            }
            continue;
        }
        if is_of_kubernetes(rest) {
            continue;
        }
        // A slip or two; none in short words, which are most likely meant: PUSHRING_BIN is no PUSHRING_PIN.
        let slips = |known: &&str| strsim::osa_distance(known, &key);
        match keys().min_by_key(slips) {
            Some(known) if slips(&known) <= (key.len() / 4).min(2) => {
                bail!("{PREFIX}{rest} sets nothing: did you mean {}?", variable(known));
            }
            _ => unknown.push(format!("{PREFIX}{rest}")),
        }
    }
    Ok(unknown)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(variables: &[(&str, &str)]) -> Result<Vec<String>, String> {
        let variables = variables.iter().map(|(name, value)| (name.into(), value.into()));
        examine(variables, |key| key == "hosts").map_err(|error| error.to_string())
    }

    #[test]
    fn what_sets_nothing_is_told() {
        assert_eq!(checked(&[("PATH", ""), ("PUSHRING_SHARDS", "2"), ("PUSHRING_HOSTS", "")]), Ok(vec![]));
        for name in ["PUSHRING_FAVOURITE_COLOUR", "PUSHRING_BIN"] {
            assert_eq!(checked(&[(name, "red")]), Ok(vec![name.to_owned()]));
        }
        let kubernetes = [
            ("PUSHRING_PORT", "tcp://10.0.0.1:8080"),
            ("PUSHRING_PORT_8080_TCP_ADDR", "10.0.0.1"),
            ("PUSHRING_SERVICE_HOST", "10.0.0.1"),
            ("PUSHRING_SERVICE_PORT_HTTP", "8080"),
        ];
        assert_eq!(checked(&kubernetes), Ok(vec![]));
    }

    #[test]
    fn an_old_name_is_one_beside_which_the_new_one_is_not_set() {
        assert_eq!(checked(&[("PUSHRING_TLS", "true")]), Ok(vec![]));
        let error = checked(&[("PUSHRING_BEHIND_TLS", "true"), ("PUSHRING_TLS", "true")]).unwrap_err();
        assert!(error.contains("an old name of PUSHRING_BEHIND_TLS"), "{error}");
    }

    #[test]
    fn slips_and_empty_ones_are_errors() {
        for (name, value, words) in [
            ("PUSHRING_POLCY", "close", "did you mean PUSHRING_POLICY?"),
            ("PUSHRING_MEMORY_BUGDET", "1GiB", "did you mean PUSHRING_MEMORY_BUDGET?"),
            ("PUSHRING_HOST", "a.b", "did you mean PUSHRING_HOSTS?"),
            ("PUSHRING_shards", "2", "did you mean PUSHRING_SHARDS?"),
            ("PUSHRING_JWT_SECRET_FILE", "", "PUSHRING_JWT_SECRET_FILE is set and empty"),
            ("PUSHRING_CONFIG", "", "PUSHRING_CONFIG is set and empty"),
        ] {
            let error = checked(&[(name, value)]).unwrap_err();
            assert!(error.contains(name) && error.contains(words), "{error}");
        }
    }
}
