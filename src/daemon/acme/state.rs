//! State across restarts: the account, the certificate with its key, and the attempts that have failed. One directory,
//! for this user alone.
//!
//! Invariants: a file exists whole or not at all; only this user may read one, from its first byte on.

use anyhow::{Context, ensure};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// The chain that the authority has given, and behind it its key: one file, so that they always fit.
pub(super) const CERTIFICATE: &str = "certificate.pem";
/// The same, of our own making.
pub(super) const PLACEHOLDER: &str = "placeholder.pem";
/// The account at the authority.
#[cfg(feature = "acme")]
pub(super) const ACCOUNT: &str = "account.json";
/// Attempts that have failed since a certificate was last issued.
#[cfg(feature = "acme")]
pub(super) const FAILURES: &str = "failures.json";

/// See the module.
#[derive(Debug)]
pub(super) struct AcmeState(PathBuf);

impl AcmeState {
    /// The state in `directory`, which is created if it does not exist.
    ///
    /// # Errors
    /// It cannot be created, or belongs to another user.
    pub(super) fn open(directory: &Path) -> anyhow::Result<Self> {
        let name = || format!("tls_acme_state: {}", directory.display());
        DirBuilder::new().recursive(true).mode(0o700).create(directory).with_context(name)?;
        let found = fs::metadata(directory).with_context(name)?;
        let is_ours = found.uid() == rustix::process::geteuid().as_raw();
        ensure!(is_ours, "{} belongs to another user, who could read the keys: chown it, or name another", name());
        if found.mode() & 0o077 != 0 {
            fs::set_permissions(directory, fs::Permissions::from_mode(0o700)).with_context(name)?;
        }
        ensure!(found.is_dir(), "{} is no directory", name());
        Ok(Self(directory.to_owned()))
    }

    /// The stored file of this name, if there is one.
    ///
    /// # Errors
    /// It cannot be read.
    pub(super) fn read(&self, name: &str) -> anyhow::Result<Option<Vec<u8>>> {
        let path = self.path(name);
        match fs::read(&path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    /// Keeps `bytes` under this name, in the place of what was there.
    ///
    /// # Errors
    /// It cannot be kept; what was there still is.
    pub(super) fn write(&self, name: &str, bytes: &[u8]) -> anyhow::Result<()> {
        let (path, fresh) = (self.path(name), self.path(&format!("{name}.new")));
        let written = || -> io::Result<()> {
            // A leftover file would keep its mode.
            match fs::remove_file(&fresh) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&fresh, &path)?;
            File::open(&self.0)?.sync_all()
        };
        written().with_context(|| format!("cannot write {}", path.display()))
    }

    /// Keeps nothing under this name.
    ///
    /// # Errors
    /// It is still there.
    #[cfg(feature = "acme")]
    pub(super) fn remove(&self, name: &str) -> anyhow::Result<()> {
        let path = self.path(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", path.display()))
            }
            _ => Ok(()),
        }
    }

    /// Where the file of this name is.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::memory::tests::Root;

    #[test]
    fn what_is_kept_is_this_users_alone_and_whole() {
        let root = Root::new("acme", &[]);
        let directory = root.0.join("state/acme");
        let state = AcmeState::open(&directory).unwrap();
        assert_eq!(fs::metadata(&directory).unwrap().mode() & 0o777, 0o700);
        assert_eq!(state.read("a").unwrap(), None);
        fs::write(directory.join("a.new"), "left behind").unwrap();
        for text in ["one", "another, longer"] {
            state.write("a", text.as_bytes()).unwrap();
            assert_eq!(state.read("a").unwrap().unwrap(), text.as_bytes());
            assert_eq!(fs::metadata(directory.join("a")).unwrap().mode() & 0o777, 0o600);
        }
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 1);
        #[cfg(feature = "acme")]
        for _ in 0..2 {
            state.remove("a").unwrap();
            assert_eq!(state.read("a").unwrap(), None);
        }
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o755)).unwrap();
        AcmeState::open(&directory).unwrap();
        assert_eq!(fs::metadata(&directory).unwrap().mode() & 0o777, 0o700, "it is shut again");
        let is_root = std::os::unix::fs::chown(&directory, Some(65_534), None).is_ok();
        let others = if is_root { &directory } else { Path::new("/") };
        let error = AcmeState::open(others).unwrap_err().to_string();
        assert!(error.contains("belongs to another user"), "{error}");
        fs::write(root.0.join("file"), "").unwrap();
        assert!(AcmeState::open(&root.0.join("file")).is_err());
    }
}
