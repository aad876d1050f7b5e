//! The source of each setting that was given, for errors about its value.

use super::renamed::{self, OldName};
use super::{SettingsFlags, file, variable_in_use};
use std::collections::BTreeMap;
use std::path::Path;

/// The source of each setting that was given.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Sources {
    by_key: BTreeMap<String, String>,
    /// Keys of the file that have other names now.
    old_names: Vec<OldName>,
    /// The certificate is made at the start, by the demo's own flag `--tls`.
    makes_certificate: bool,
}

impl Sources {
    /// Of a file that has `told` under the current names of its keys, of which `old_names` had others.
    pub(crate) fn new(
        told: &toml::Table,
        path: Option<&Path>,
        flags: &SettingsFlags,
        old_names: Vec<OldName>,
    ) -> anyhow::Result<Self> {
        let name = path.unwrap_or(Path::new("")).display();
        let mut by_key: BTreeMap<_, _> = told.keys().map(|key| (key.clone(), format!("in {name}"))).collect();
        by_key.extend(file::of_flags(flags)?.into_iter().map(|(key, _)| {
            let source = source_of(&key);
            (key, source)
        }));
        Ok(Self { by_key, old_names, makes_certificate: false })
    }

    /// Those of a demo with `--tls`: no setting names its certificate, and the flag is no old name.
    pub(crate) fn with_a_certificate_made(self) -> Self {
        Self { makes_certificate: true, ..self }
    }

    /// Returns whether the setting was given, though it be its default.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.by_key.contains_key(key)
    }

    /// Returns whether the certificate is made at the start.
    pub(crate) fn makes_certificate(&self) -> bool {
        self.makes_certificate
    }

    /// The old names under which settings were given: in the file, and when this process was started.
    pub(crate) fn old_names(&self) -> Vec<OldName> {
        let of_start = renamed::old_names_of_start().into_iter();
        let is_old = |name: &OldName| !(self.makes_certificate && name.given == "--tls");
        self.old_names.iter().cloned().chain(of_start.filter(is_old)).collect()
    }

    /// Adds the source of the setting to `error`, whose first word is a key.
    pub(crate) fn locate(&self, error: anyhow::Error) -> anyhow::Error {
        let words = format!("{error:#}");
        match words.split_once(':').and_then(|(key, _)| self.by_key.get(key)) {
            Some(source) => error.context(source.clone()),
            None => error,
        }
    }
}

/// Whether the command line or the environment has given `key`.
fn source_of(key: &str) -> String {
    let (flag, variable) = (format!("--{}", key.replace('_', "-")), variable_in_use(key));
    let is_flag = |arg: String| arg == flag || arg.strip_prefix(&flag).is_some_and(|rest| rest.starts_with('='));
    let is_set = |name: &str| std::env::var_os(name).is_some();
    match std::env::args_os().filter_map(|arg| arg.into_string().ok()).any(is_flag) {
        false if is_set(&variable) => format!("in the variable {variable}"),
        false if key == "log" && is_set("RUST_LOG") => "in the variable RUST_LOG".to_owned(),
        _ => format!("at {flag}"),
    }
}
