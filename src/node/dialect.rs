//! The two node systems, which are the same system, renamed (node contract, section 1), and the rules of entry of a
//! node, as data for a broker.

use crate::gateway::{Settings, SubdomainTokens};
use serde::{Deserialize, Serialize};

/// Which of the two node systems is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dialect {
    /// Kinode 1.0.
    #[default]
    Kinode,
    /// Hyperdrive 1.9.
    Hyperdrive,
}

/// Where clients on the node's own machine call its processes (node contract, section 7).
pub(crate) const RPC_PATH: &str = "/rpc:distro:sys/message";

impl Dialect {
    /// The start of a login cookie's name; the node's name follows (node contract, section 5).
    fn cookie_prefix(self) -> &'static str {
        match self {
            Self::Kinode => "kinode-auth_",
            Self::Hyperdrive => "hyperware-auth_",
        }
    }

    fn subdomain_tokens(self) -> SubdomainTokens {
        match self {
            Self::Kinode => SubdomainTokens::Own,
            Self::Hyperdrive => SubdomainTokens::Shared,
        }
    }

    /// The request header that overrides the time a process has to answer, where there is one.
    fn timeout_header(self) -> Option<&'static str> {
        match self {
            Self::Kinode => None,
            Self::Hyperdrive => Some("x-hyperware-http-server-timeout"),
        }
    }

    /// The dialect of the node that a broker of these rules serves: no other rules have the header of Hyperdrive. A
    /// broker that serves no node is taken for one of Kinode.
    pub(crate) fn of(rules: &Settings) -> Self {
        match rules.timeout_header == Self::Hyperdrive.timeout_header() {
            true => Self::Hyperdrive,
            false => Self::Kinode,
        }
    }

    /// Makes `rules` those of the node `name`, in what its clients must find as it is: the names of its tokens and
    /// cookies, and registration at `/`.
    pub(crate) fn rule(self, name: &str, rules: &mut Settings) {
        name.clone_into(&mut rules.user);
        rules.cookie = format!("{}{name}", self.cookie_prefix());
        rules.subdomain_tokens = self.subdomain_tokens();
        rules.timeout_header = self.timeout_header();
        rules.sha256_passwords = self == Self::Kinode;
        rules.registration = true;
    }
}

/// The rules of entry of the node `name`, such as `alice.os`, with the defaults of its system: those of a broker by
/// itself except for tokens, cookies, registration, and paths for this machine alone, which are open in Kinode. Callers
/// that answer logins and RPC calls set `login` and `rpc_path`.
pub fn settings(name: &str, dialect: Dialect) -> Settings {
    let mut rules = Settings { expose_local: dialect == Dialect::Kinode, ..Settings::default() };
    dialect.rule(name, &mut rules);
    rules
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dialect_is_found_in_the_rules_that_it_made() {
        for (dialect, cookie) in
            [(Dialect::Kinode, "kinode-auth_alice.os"), (Dialect::Hyperdrive, "hyperware-auth_alice.os")]
        {
            let rules = settings("alice.os", dialect);
            assert_eq!((Dialect::of(&rules), &*rules.cookie, &*rules.user), (dialect, cookie, "alice.os"));
        }
        assert_eq!(Dialect::of(&Settings::default()), Dialect::Kinode);
    }

    #[test]
    fn the_core_is_tested_with_the_rules_of_nodes() {
        for dialect in [Dialect::Kinode, Dialect::Hyperdrive] {
            let (ours, tested) =
                (settings("alice.os", dialect), Settings::of_a_node("alice.os", dialect.subdomain_tokens()));
            let tested = Settings { expose_local: ours.expose_local, ..tested };
            assert_eq!(format!("{ours:?}"), format!("{tested:?}"));
        }
    }
}
