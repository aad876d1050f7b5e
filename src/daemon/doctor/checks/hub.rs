//! The hub: whether the keys of its tokens' authority can be fetched from here.

use super::{Finding, Level};
use crate::daemon::config::DaemonConfig;
use crate::daemon::doctor::facts::Facts;

/// The authority's keys, where it has one.
pub(super) fn authority(config: &DaemonConfig, facts: &Facts) -> Option<Finding> {
    const CHECK: &str = "hub's authority";
    let keys = facts.hub_keys.as_ref()?;
    let key = if config.auth_jwks_url.is_empty() { "auth_jwks_file" } else { "auth_jwks_url" };
    Some(match keys {
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
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::expect;
    use super::*;

    #[test]
    fn keys_that_cannot_be_had_are_told() {
        let with =
            |keys: Result<usize, String>| move |_: &mut DaemonConfig, facts: &mut Facts| facts.hub_keys = Some(keys);
        expect(Level::Ok, "has 2 keys", "", with(Ok(2)));
        expect(Level::Problem, "no key of RS256", "authority", with(Ok(0)));
        expect(Level::Problem, "it answers 404", "--auth-jwks-url", with(Err("it answers 404".into())));
    }
}
