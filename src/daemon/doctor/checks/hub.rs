//! The hub: whether the keys of its tokens' authority can be fetched from here, and the files of its secrets.

use super::paths::secret_file;
use super::{Finding, Level};
use crate::daemon::config::DaemonConfig;
use crate::daemon::doctor::facts::Facts;

/// All that is found of it.
pub(super) fn hub(config: &DaemonConfig, facts: &Facts) -> Vec<Finding> {
    let keys = facts.hub_keys.as_ref().map(|keys| of_keys(config, keys));
    let secrets = facts.hub_secrets.iter().map(|(check, file)| secret_file(check, file));
    keys.into_iter().chain(secrets).collect()
}

fn of_keys(config: &DaemonConfig, keys: &Result<usize, String>) -> Finding {
    const CHECK: &str = "hub's authority";
    let key = if config.auth_jwks_url.is_empty() { "auth_jwks_file" } else { "auth_jwks_url" };
    match keys {
        Ok(0) => {
            let words = format!("{key} has no key of RS256, ES256 or EdDSA: every token is refused");
            Finding::new(Level::Problem, CHECK, words, "have the authority sign by one of these")
        }
        Ok(keys) => Finding::ok(CHECK, format!("{key} has {keys} keys that tokens can be checked with")),
        Err(why) => {
            let fix =
                "mend --auth-jwks-url (or --auth-jwks-file, --auth-jwks-ca): no token is accepted until it can be read";
            Finding::new(Level::Problem, CHECK, format!("{key}: {why}"), fix)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::expect;
    use super::*;
    use crate::daemon::doctor::facts::SecretFile;

    #[test]
    fn keys_that_cannot_be_had_are_told() {
        let with =
            |keys: Result<usize, String>| move |_: &mut DaemonConfig, facts: &mut Facts| facts.hub_keys = Some(keys);
        expect(Level::Ok, "has 2 keys", "", with(Ok(2)));
        expect(Level::Problem, "no key of RS256", "authority", with(Ok(0)));
        expect(Level::Problem, "it answers 404", "--auth-jwks-url", with(Err("it answers 404".into())));
        expect(Level::Warning, "every user of this machine", "chmod 600", |_, facts| {
            let file = SecretFile { path: "/etc/webhook".into(), mode: Ok(0o644), bytes: 32 };
            facts.hub_secrets.push(("webhook secret", file));
        });
    }
}
