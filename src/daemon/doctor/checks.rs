//! Checks of a machine by its facts, for a daemon of given settings: pure, so that each finding has its row in a test.

mod certificates;
mod hub;
mod limits;
mod network;
mod paths;
mod uring;

use super::facts::Facts;
use crate::daemon::config::DaemonConfig;
use crate::daemon::program;
use serde::Serialize;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Level {
    /// As it should be.
    Ok,
    /// Fine, but to be known.
    Note,
    /// The daemon runs, but costs more, holds less or is less safe than it should.
    Warning,
    /// The daemon does not start, or does not do what it is told to.
    Problem,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    /// How bad it is.
    pub level: Level,
    /// The subject, in a word or two.
    pub check: &'static str,
    /// The finding.
    pub found: String,
    /// The fix, mostly a command; none where nothing is to be done.
    pub fix: Option<String>,
}

impl Finding {
    fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self { level: Level::Ok, check, found: found.into(), fix: None }
    }

    fn new(level: Level, check: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { level, check, found: found.into(), fix: Some(fix.into()) }
    }
}

/// All findings, in the order in which they are best read.
pub(super) fn findings(config: &DaemonConfig, facts: &Facts) -> Vec<Finding> {
    let shards = shards(config, facts);
    let mut findings = vec![settings(config)];
    findings.extend(
        config
            .old_names()
            .iter()
            .map(|name| Finding::new(Level::Note, "settings", name.to_string(), "write its new name")),
    );
    findings.extend([uring::ring(config, facts), uring::sending(config, facts)]);
    findings.push(limits::files(config, &facts.files, shards));
    findings.push(limits::memory(config, facts.memory_available_bytes, shards));
    findings.push(limits::cores(config, &facts.cores, shards));
    findings.push(network::listener("listener", "listen", config.address(), &facts.listener));
    if let (Some(_), Some(address), Some(listener)) = (config.listen.0, config.tls_listen.0, &facts.tls_listener) {
        findings.push(network::listener("TLS listener", "tls-listen", address, listener));
    }
    findings.extend(facts.side_listeners.iter().map(network::side_listener));
    findings.extend(certificates::certificates(config, facts));
    findings.extend(network::tcp(config, &facts.network));
    findings.extend(network::entry(config));
    findings.push(network::idle_timeouts(config));
    findings.extend(paths::no_link(config));
    findings.extend(facts.sockets.iter().map(|socket| paths::socket(config, socket)));
    findings.extend(facts.link_tcp.as_ref().and_then(|listener| network::link_tcp(config, listener)));
    findings.extend(certificates::of_link(facts));
    findings.extend(hub::authority(config, facts));
    findings.extend(facts.control_is_homeless.then(paths::no_control));
    findings.extend(facts.fleet.as_ref().map(|probed| network::fleet(config, probed)));
    findings.extend(paths::secrets(config, facts));
    findings
}

/// How many shards the daemon would have.
fn shards(config: &DaemonConfig, facts: &Facts) -> usize {
    if config.shards == 0 { facts.cores.allowed } else { config.shards }
}

fn settings(config: &DaemonConfig) -> Finding {
    match program::check(config) {
        Ok(()) => Finding::ok("settings", "are valid"),
        Err(error) => Finding::new(Level::Problem, "settings", format!("{error:#}"), "change that setting"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The findings beyond those of a good machine, for settings and facts that `change` makes worse.
    #[track_caller]
    pub(super) fn found(change: impl FnOnce(&mut DaemonConfig, &mut Facts)) -> Finding {
        let (mut config, mut facts) = baseline();
        let before = findings(&config, &facts);
        change(&mut config, &mut facts);
        let mut after = findings(&config, &facts);
        after.retain(|finding| !before.contains(finding));
        assert_eq!(after.len(), 1, "{after:#?}");
        after.pop().unwrap()
    }

    /// Checks the level of what is found, a part of its words, and a part of its fix.
    #[track_caller]
    pub(super) fn expect(level: Level, words: &str, fix: &str, change: impl FnOnce(&mut DaemonConfig, &mut Facts)) {
        let finding = found(change);
        let fixed = finding.fix.as_deref().unwrap_or("");
        assert!(finding.level == level && finding.found.contains(words) && fixed.contains(fix), "{finding:#?}");
    }

    fn baseline() -> (DaemonConfig, Facts) {
        let (jwt_secret_file, link) = ("/etc/pushring/secret".into(), "/run/pushring/link".into());
        (DaemonConfig { jwt_secret_file, link, ..DaemonConfig::default() }, Facts::fine())
    }

    #[test]
    fn a_fine_machine_has_nothing_to_complain_of() {
        let (config, facts) = baseline();
        for finding in findings(&config, &facts) {
            assert!(finding.level <= Level::Note, "{finding:#?}");
            assert_eq!(finding.fix.is_some(), finding.level > Level::Ok, "{finding:#?}");
        }
    }

    #[test]
    fn settings_that_are_not_valid() {
        expect(Level::Problem, "deflate_level: from 1 to 9", "change", |config, _| config.deflate_level = 0);
        expect(Level::Problem, "link_tcp", "change", |config, _| config.link_tcp = "localhost".to_owned());
    }
}
