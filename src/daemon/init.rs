//! `pushring init`: a daemon's first files in one directory: commented settings, a secret, a unit.
//!
//! Invariants: existing files are left alone; a secret is readable for its owner alone, and never printed.

use super::config::{self, DaemonConfig, Listen};
use super::program;
use anyhow::{Context, bail};
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The unit that packages ship; its program and its directory are put in.
const UNIT: &str = include_str!("../../packaging/pushring.service");
const UNIT_PROGRAM: &str = "/usr/bin/pushring";
const UNIT_DIRECTORY: &str = "/etc/pushring";

/// Where a service may make its link: elsewhere it may make nothing (ProtectSystem=).
const SERVICE_LINK: &str = "/run/pushring/link.sock";

/// Where a package puts its unit.
const PACKAGED_UNITS: [&str; 2] = ["/usr/lib/systemd/system/pushring.service", "/lib/systemd/system/pushring.service"];

/// Behind it stands why.
const NOTHING: &str = "nothing was written";

/// The answers to its questions.
#[derive(Debug)]
pub(crate) struct InitAnswers {
    /// Where the files go.
    pub directory: PathBuf,
    /// Whose node is served.
    pub node: Option<String>,
    /// Where clients connect.
    pub listen: Option<SocketAddr>,
}

/// Writes the missing files into the directory; returns a text about what was done and what to do next.
///
/// # Errors
/// A file cannot be written.
pub(crate) fn init(wish: &InitAnswers) -> anyhow::Result<String> {
    // A unit needs whole paths.
    let directory = std::path::absolute(&wish.directory)?;
    let is_system = directory == Path::new(UNIT_DIRECTORY);
    let secret = directory.join("jwt-secret");
    // A service's directory is there while it runs; others keep the socket beside the settings.
    let link = if is_system { SERVICE_LINK.into() } else { directory.join("link.sock") };
    let admin_token = directory.join("admin-token");
    let mut config = DaemonConfig {
        jwt_secret_file: secret.clone(),
        admin_token_file: admin_token.clone(),
        link: link.clone(),
        ..DaemonConfig::default()
    };
    config.node = wish.node.clone().unwrap_or(config.node);
    config.listen = wish.listen.map_or(config.listen, Listen::at);
    program::check(&config).context(NOTHING)?;
    let program = std::env::current_exe().context("cannot find the path of this program")?;
    let packaged = PACKAGED_UNITS.iter().find(|path| is_system && Path::new(path).exists());
    let unit_text = match packaged {
        Some(_) => None,
        None => Some(unit_of(&program, &directory).context(NOTHING)?),
    };

    make_directory(&directory)?;
    let settings = directory.join("pushring.toml");
    let mut said = String::new();
    let mut put = |path: &Path, mode: u32, text: &str, what: &str| -> anyhow::Result<()> {
        let word = if write_new(path, mode, text)? { "wrote" } else { "kept " };
        said += &format!("{word} {}  {what}\n", path.display());
        Ok(())
    };
    put(&settings, 0o644, &config::write(&config, true)?, "the settings, with what each means")?;
    put(&secret, 0o600, &(new_secret()? + "\n"), "the secret that login tokens are signed with")?;
    put(&admin_token, 0o600, &(new_secret()? + "\n"), "the token that the admin page asks for")?;
    let unit = directory.join("pushring.service");
    if let Some(text) = &unit_text {
        put(&unit, 0o644, text, "a unit for systemd")?;
    }
    Ok(said + &next(&settings, &link, unit_text.is_some().then_some(&*unit), &program))
}

fn make_directory(directory: &Path) -> anyhow::Result<()> {
    match DirBuilder::new().recursive(true).mode(0o755).create(directory) {
        Err(error) => Err(error).with_context(|| format!("cannot make {}: choose another --dir", directory.display())),
        Ok(()) => Ok(()),
    }
}

/// Whether it was written: what is there is left alone.
fn write_new(path: &Path, mode: u32, text: &str) -> anyhow::Result<bool> {
    let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
    match file {
        Ok(mut file) => {
            let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_all());
            // Half a file would be kept for ever.
            written
                .inspect_err(|_| drop(fs::remove_file(path)))
                .with_context(|| format!("cannot write {}", path.display()))?;
            Ok(true)
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error).with_context(|| format!("cannot write {}", path.display())),
    }
}

/// Text, so that it can be copied: 32 bytes of chance.
fn new_secret() -> anyhow::Result<String> {
    let mut bytes = [0; 32];
    File::open("/dev/urandom").and_then(|mut random| random.read_exact(&mut bytes)).context("/dev/urandom")?;
    Ok(BASE64_URL_SAFE_NO_PAD.encode(bytes))
}

/// The unit for this program and these settings.
fn unit_of(program: &Path, directory: &Path) -> anyhow::Result<String> {
    let word = |path: &Path| -> anyhow::Result<String> {
        let text = path.to_str().filter(|text| !text.contains(|c: char| c.is_whitespace() || "\"'\\%$:".contains(c)));
        match text {
            Some(text) => Ok(text.to_owned()),
            None => bail!("{} cannot stand in a unit: choose a path of plain letters", path.display()),
        }
    };
    let unit = UNIT.replace(UNIT_PROGRAM, &word(program)?).replace(UNIT_DIRECTORY, &word(directory)?);
    match directory == Path::new(UNIT_DIRECTORY) {
        true => Ok(unit),
        false => {
            Ok(unit.replace("\nDynamicUser=", &format!("\nEnvironment=PUSHRING_LINK={SERVICE_LINK}\nDynamicUser=")))
        }
    }
}

/// ProtectHome= and PrivateTmp= hide it from a service.
fn is_hidden(path: &Path) -> bool {
    ["/home", "/root", "/tmp"].iter().any(|hidden| path.starts_with(hidden))
}

fn next(settings: &Path, link: &Path, unit: Option<&Path>, program: &Path) -> String {
    let is_unit_blind = is_hidden(settings);
    let settings = settings.display();
    let mut text = format!("\nNext:\n  pushring doctor --config {settings}\n");
    match unit {
        Some(_) if is_unit_blind => {
            text += &format!("  pushring serve --config {settings}\n");
            text += "For a service of systemd, which sees no home and no /tmp, choose another --dir.\n";
        }
        Some(unit) => {
            if is_hidden(program) {
                text += &format!(
                    "  install {} /usr/local/bin/pushring   and name it in ExecStart of the unit: systemd sees no home\n",
                    program.display()
                );
            }
            text += &format!("  systemctl enable --now {}\n", unit.display());
            text += &format!("or, without systemd:\n  pushring serve --config {settings}\n");
            if link != Path::new(SERVICE_LINK) {
                text += &format!("\nAs a service it has its link at {SERVICE_LINK}.");
            }
        }
        None => text += "  systemctl enable --now pushring\n",
    }
    text += &format!(
        "\nOperators look at http://{}/ with the token in the file admin-token.",
        DaemonConfig::default().admin_listen
    );
    text += &format!(
        "\nProcesses attach at {} (docs/LINK.md); those of other users need link_group.\nBehind a proxy set hosts, \
         trusted_proxies and behind_tls.\n",
        link.display()
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::memory::tests::Root;
    use crate::daemon::units::Span;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn what_is_written_has_effect_and_is_kept() {
        let root = Root::new("init", &[]);
        let directory = root.0.join("etc");
        let wish = InitAnswers { directory: directory.clone(), node: Some("alice.os".to_owned()), listen: None };
        let said = init(&wish).unwrap();
        assert_eq!(said.matches("wrote ").count(), 4, "{said}");
        let config =
            DaemonConfig::load(Some(&directory.join("pushring.toml")), &config::SettingsFlags::default()).unwrap();
        assert_eq!((config.node.as_str(), &config.link), ("alice.os", &directory.join("link.sock")));
        let secret = directory.join("jwt-secret");
        assert_eq!(fs::metadata(&secret).unwrap().permissions().mode() & 0o777, 0o600);
        let text = fs::read_to_string(&secret).unwrap();
        assert!(text.trim_end().len() == 43 && !said.contains(text.trim_end()), "{said}");
        assert_eq!(crate::daemon::token::secret_bytes(&secret).unwrap(), 43);
        let again = init(&wish).unwrap();
        assert_eq!((again.matches("kept ").count(), again.matches("wrote ").count()), (4, 0), "{again}");
        assert_eq!(fs::read_to_string(&secret).unwrap(), text);
    }

    #[test]
    fn a_directory_that_no_unit_can_name_stays_empty() {
        let root = Root::new("init-spaces", &[("there", "")]);
        let directory = root.0.join("a b");
        let error = init(&InitAnswers { directory: directory.clone(), node: None, listen: None }).unwrap_err();
        let error = format!("{error:#}");
        assert!(error.starts_with("nothing was written") && error.contains("plain letters"), "{error}");
        assert!(!directory.exists());
    }

    #[test]
    fn the_unit_names_this_program_and_these_settings() {
        let unit = unit_of(Path::new("/opt/bin/pushring"), Path::new("/srv/broker")).unwrap();
        assert!(unit.contains("\nExecStart=/opt/bin/pushring serve --config /srv/broker/pushring.toml\n"), "{unit}");
        assert!(
            unit.contains("\nLoadCredential=jwt-secret:/srv/broker/jwt-secret\n") && !unit.contains("/etc/"),
            "{unit}"
        );
        assert!(unit_of(Path::new("/opt/a b"), Path::new("/srv")).is_err());
        // Beside its settings a service may make no socket.
        assert!(unit.contains("\nEnvironment=PUSHRING_LINK=/run/pushring/link.sock\n"), "{unit}");
        let usual = unit_of(Path::new(UNIT_PROGRAM), Path::new(UNIT_DIRECTORY)).unwrap();
        assert_eq!(usual, UNIT);
    }

    #[test]
    fn a_directory_that_systemd_hides_is_for_no_service() {
        let [link, unit, program] = ["link.sock", "pushring.service", "pushring"].map(Path::new);
        let next = |settings: &str| next(Path::new(settings), link, Some(unit), program);
        assert!(next("/srv/broker/pushring.toml").contains("systemctl enable --now pushring.service"));
        let hidden = next("/home/ann/pushring.toml");
        assert!(!hidden.contains("systemctl") && hidden.contains("choose another --dir"), "{hidden}");
    }

    /// A drain of the unit's length ends before systemd's patience does.
    #[test]
    fn the_unit_waits_for_a_whole_drain() {
        let value = |key: &str| UNIT.lines().find_map(|line| line.strip_prefix(key)).unwrap().parse::<Span>().unwrap();
        let config = DaemonConfig::default();
        let drain_ms = value("Environment=PUSHRING_DRAIN_OVER=").0 + config.drain_grace.0 + config.stop_timeout.0;
        assert!(value("TimeoutStopSec=").0 > drain_ms);
    }
}
