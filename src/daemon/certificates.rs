//! The certificates of the TLS listener and of the link: read at the start, on a reload, and when their files change.
//!
//! Invariants: a pair in use was read whole and matches; a pair that cannot be read, once one of its files was, is
//! logged, and the previous one stays in force; no part of a key is ever printed.

use super::acme;
use super::config::{DaemonConfig, WordList};
use super::program::Daemon;
use anyhow::{Context, anyhow, ensure};
use pushring::internals::driver::clock;
use pushring::internals::tls::{Certificate, TlsServer};
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

/// How often the files are looked at: two or three calls of stat(2) each time.
const LOOKED_AT_EVERY: Duration = Duration::from_secs(5);

/// Far more than any chain has.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// A certificate's file and its key's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CertificateFiles {
    /// The setting that names it.
    pub setting: &'static str,
    /// The server's certificate, and its issuers' behind it.
    pub chain: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// The pairs that `config` names, and the one that an authority gives, or will.
///
/// # Errors
/// One of them is none.
pub(crate) fn pairs(config: &DaemonConfig) -> anyhow::Result<Vec<CertificateFiles>> {
    named("tls_certs", &config.tls_certs).chain(acme::pair(config).map(Ok)).collect()
}

/// The pairs for the link over TCP.
///
/// # Errors
/// One of them is none.
pub(crate) fn link_pairs(config: &DaemonConfig) -> anyhow::Result<Vec<CertificateFiles>> {
    named("link_tls_certs", &config.link_tls_certs).collect()
}

fn named(setting: &'static str, list: &WordList) -> impl Iterator<Item = anyhow::Result<CertificateFiles>> {
    list.0.iter().map(move |text| {
        let parts = text.rsplit_once(':').filter(|(chain, key)| !chain.is_empty() && !key.is_empty());
        let (chain, key) = parts.ok_or_else(|| {
            anyhow!("{setting}: {text:?} is no pair: write CHAIN.pem:KEY.pem, the certificates first")
        })?;
        Ok(CertificateFiles { setting, chain: chain.into(), key: key.into() })
    })
}

/// Distinguishes states of a file: which it is, when it was changed, its size. A change of its owner or mode is one.
type Stamp = [(u64, i64, i64, u64); 2];

struct Loaded {
    pair: CertificateFiles,
    stamp: Option<Stamp>,
    certificate: Certificate,
}

/// Those in use. See the module.
#[derive(Default)]
pub(crate) struct Certificates {
    loaded: Vec<Loaded>,
    server: Option<TlsServer>,
}

impl Certificates {
    /// Reads all that `config` names; what is not good is kept as `before` has it.
    ///
    /// # Errors
    /// A pair cannot be used, and `before` has none of these files.
    pub(crate) fn read(config: &DaemonConfig, before: &Self) -> anyhow::Result<Self> {
        Self::load_all(pairs(config)?, before)
    }

    /// The same of those for the link.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub(crate) fn read_link(config: &DaemonConfig, before: &Self) -> anyhow::Result<Self> {
        Self::load_all(link_pairs(config)?, before)
    }

    fn load_all(pairs: Vec<CertificateFiles>, before: &Self) -> anyhow::Result<Self> {
        let loaded = pairs.into_iter().map(|pair| before.load(pair)).collect::<anyhow::Result<Vec<_>>>()?;
        Self::of(loaded, before)
    }

    /// Those of a certificate that was made at the start, of no file.
    pub(crate) fn made(certificate: Certificate) -> anyhow::Result<Self> {
        let server = Some(TlsServer::new(vec![certificate], clock::unix_s())?);
        Ok(Self { loaded: Vec::new(), server })
    }

    fn of(loaded: Vec<Loaded>, before: &Self) -> anyhow::Result<Self> {
        if loaded.is_empty() {
            return Ok(Self { loaded, server: before.server.clone().filter(|_| before.loaded.is_empty()) });
        }
        let certificates: Vec<_> = loaded.iter().map(|loaded| loaded.certificate.clone()).collect();
        let server = match &before.server {
            // The keys of tickets live on.
            Some(server) => server.with_certificates(certificates)?,
            None => TlsServer::new(certificates, clock::unix_s())?,
        };
        Ok(Self { loaded, server: Some(server) })
    }

    /// The certificates themselves.
    pub(crate) fn all(&self) -> Vec<Certificate> {
        self.loaded.iter().map(|loaded| loaded.certificate.clone()).collect()
    }

    /// The TLS settings of the listener, if there is any certificate.
    pub(crate) fn server(&self) -> Option<&TlsServer> {
        self.server.as_ref()
    }

    /// Returns whether the certificates are other ones than those of `other`.
    pub(crate) fn differ(&self, other: &Self) -> bool {
        let chains = |of: &Self| -> Vec<Vec<Vec<u8>>> {
            let certificates = of.server.iter().flat_map(|server| server.certificates().iter());
            certificates.map(|certificate| certificate.chain().map(<[u8]>::to_vec).collect()).collect()
        };
        chains(self) != chains(other)
    }

    /// Returns whether a file has changed since it was read.
    pub(crate) fn have_changed(&self) -> bool {
        self.loaded.iter().any(|loaded| loaded.stamp != stamp(&loaded.pair))
    }

    fn load(&self, pair: CertificateFiles) -> anyhow::Result<Loaded> {
        // Before they are read: what changes meanwhile is found changed.
        let stamp = stamp(&pair);
        match read(&pair) {
            Ok(certificate) => Ok(Loaded { pair, stamp, certificate }),
            Err(error) => {
                let Some(before) = self.loaded.iter().find(|loaded| loaded.pair == pair) else { return Err(error) };
                let error = format!("{error:#}");
                tracing::error!(error, "a certificate could not be read again: the previous one stays in force");
                Ok(Loaded { pair, stamp, certificate: before.certificate.clone() })
            }
        }
    }
}

/// The certificate of a pair.
///
/// # Errors
/// It cannot be used, and why.
pub(crate) fn read(pair: &CertificateFiles) -> anyhow::Result<Certificate> {
    let (chain, key) = (read_file(pair.setting, &pair.chain)?, read_file(pair.setting, &pair.key)?);
    let mode = fs::metadata(&pair.key).map(|data| data.permissions().mode()).unwrap_or(0);
    if mode & 0o004 != 0 {
        tracing::warn!(file = %pair.key.display(), "every user of this machine can read the TLS key: chmod 600 it");
    }
    let names = || format!("{}: {} and {}", pair.setting, pair.chain.display(), pair.key.display());
    let certificate = Certificate::from_pem(&chain, &key).with_context(names)?;
    warn_of_term(pair, &certificate, clock::unix_s());
    Ok(certificate)
}

/// Clients refuse what is not valid today, and see no word of ours.
fn warn_of_term(pair: &CertificateFiles, certificate: &Certificate, now_unix_s: u64) {
    let file = pair.chain.display();
    if certificate.not_after_unix_s() <= now_unix_s {
        tracing::warn!(%file, "the certificate has expired: clients refuse it; renew it, and it is read by itself");
    } else if certificate.not_before_unix_s() > now_unix_s {
        tracing::warn!(%file, "the certificate is not valid yet: clients refuse it; set this machine's clock, or wait");
    }
}

fn read_file(setting: &str, path: &Path) -> anyhow::Result<Vec<u8>> {
    let name = || format!("{setting}: {}", path.display());
    let mut bytes = Vec::new();
    File::open(path).with_context(name)?.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).with_context(name)?;
    ensure!(bytes.len() as u64 <= FILE_BYTES_MAX, "{setting}: {} is larger than a MiB", path.display());
    Ok(bytes)
}

/// `None`: one of them is not there.
fn stamp(pair: &CertificateFiles) -> Option<Stamp> {
    let of = |path: &Path| {
        let data = fs::metadata(path).ok()?;
        Some((data.ino(), data.ctime(), data.ctime_nsec(), data.size()))
    };
    Some([of(&pair.chain)?, of(&pair.key)?])
}

/// Has the daemon read its certificates again whenever their files have changed, as long as there is one.
pub(crate) fn watch(daemon: &Arc<Daemon>) -> anyhow::Result<()> {
    let daemon: Weak<Daemon> = Arc::downgrade(daemon);
    let work = move || {
        loop {
            thread::sleep(LOOKED_AT_EVERY);
            let Some(daemon) = daemon.upgrade() else { return };
            daemon.look_at_certificates();
        }
    };
    thread::Builder::new().name("certificates".to_owned()).spawn(work).context("no thread for certificates")?;
    Ok(())
}

impl Daemon {
    /// Reads the certificates again if their files have changed.
    fn look_at_certificates(&self) {
        if !self.have_certificates_changed() {
            return;
        }
        match self.reload_certificates() {
            Ok(true) => tracing::info!("certificates read again"),
            Ok(false) => {}
            Err(error) => {
                let error = format!("{error:#}");
                tracing::error!(error, "the certificates could not be read again: the previous ones stay in force");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(directory: &Path, name: &str) {
        let made = rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap();
        fs::write(directory.join("chain.pem"), made.cert.pem()).unwrap();
        fs::write(directory.join("key.pem"), made.signing_key.serialize_pem()).unwrap();
    }

    fn names(certificates: &Certificates) -> Vec<String> {
        let server = certificates.server().unwrap();
        server.certificates().iter().flat_map(|certificate| certificate.names()).map(str::to_owned).collect()
    }

    #[test]
    fn a_bad_pair_leaves_the_one_before_in_force() {
        let directory = std::env::temp_dir().join(format!("pushring-certificates-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let path = |name: &str| directory.join(name).display().to_string();
        let config = DaemonConfig {
            tls_certs: format!("{}:{}", path("chain.pem"), path("key.pem")).parse().unwrap(),
            ..DaemonConfig::default()
        };
        let nothing = Certificates::default();
        let error = format!("{:#}", Certificates::read(&config, &nothing).err().unwrap());
        assert!(error.starts_with("tls_certs: ") && error.contains("chain.pem"), "{error}");
        write(&directory, "first.example");
        let first = Certificates::read(&config, &nothing).unwrap();
        assert_eq!(names(&first), ["first.example"]);
        assert!(!first.have_changed());
        write(&directory, "second.example");
        assert!(first.have_changed());
        let second = Certificates::read(&config, &first).unwrap();
        assert_eq!((names(&second), second.differ(&first)), (vec!["second.example".to_owned()], true));
        // Half of a pair has been changed.
        fs::copy(path("chain.pem"), path("old.pem")).unwrap();
        write(&directory, "third.example");
        fs::copy(path("old.pem"), path("chain.pem")).unwrap();
        let kept = Certificates::read(&config, &second).unwrap();
        assert_eq!((names(&kept), kept.differ(&second)), (vec!["second.example".to_owned()], false));
        assert!(!kept.have_changed(), "it is told once");
        // What could not be read may be readable now: its contents are the same.
        fs::set_permissions(path("key.pem"), fs::Permissions::from_mode(0o640)).unwrap();
        assert!(kept.have_changed());
        let kept = Certificates::read(&config, &kept).unwrap();
        assert!(!kept.have_changed());
        fs::remove_file(path("key.pem")).unwrap();
        assert!(kept.have_changed());
        assert_eq!(names(&Certificates::read(&config, &kept).unwrap()), ["second.example"]);
        fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn what_is_no_pair_is_told() {
        for text in ["chain.pem", "chain.pem:", ":key.pem"] {
            let config = DaemonConfig { tls_certs: text.parse().unwrap(), ..DaemonConfig::default() };
            assert!(pairs(&config).unwrap_err().to_string().contains("CHAIN.pem:KEY.pem"));
        }
    }
}
