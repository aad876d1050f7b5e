//! Gathers facts about this machine. Each probe is undone: rings, sockets, and a bind without a listen.

use super::facts::{
    Chain, Cores, Facts, Files, ListenResult, Network, PathState, SecretFile, SendingFault, Shown, SideListener,
    SocketDirectory, SocketPath, TlsFiles, Uring,
};
use super::listeners;
use crate::daemon::certificates::{self, CertificateFiles};
use crate::daemon::config::DaemonConfig;
use crate::daemon::control::{ControlPath, made_for};
use crate::daemon::program::Secrets;
use crate::daemon::{acme, fleet, groups, hub, memory, token};
use pushring::control::{self, ControlAnswer, ControlRequest};
use pushring::internals::driver::clock;
use pushring::internals::driver::flush_uring::{FlushUnavailable, UringFlush};
use pushring::internals::driver::listen::{ListenError, probe};
use pushring::internals::driver::runtime::{DriverKind, ShardRuntime};
use pushring::internals::driver::sys;
use rustix::process::{Resource, getrlimit};
use rustls::pki_types::CertificateDer;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use webpki::EndEntityCert;

/// The bit of `CAP_SYS_ADMIN` (capabilities(7)).
const CAP_SYS_ADMIN: u64 = 1 << 21;

/// Gathers the facts for a daemon of these settings. `root` is `/`, in which `/proc` and `/sys` are looked for.
pub(super) fn gather(config: &DaemonConfig, root: &Path) -> Facts {
    let system = System { root };
    let control = config.control.place(config.address().port());
    Facts {
        kernel: system.text("kernel/osrelease"),
        uring: system.uring(),
        files: system.files(),
        network: system.network(),
        memory_available_bytes: memory::available_bytes(root).ok().map(|bytes| bytes as u64),
        cores: Cores { allowed: sys::allowed_cores().map_or(1, |cores| cores.len()), quota: groups::cores_max(root) },
        listener: system.listener(config, config.address()),
        control_is_homeless: config.control == ControlPath::Auto && control.is_none(),
        sockets: sockets(config, control.as_deref()),
        link_tcp: config.link_tcp.parse().ok().map(|address| system.listener(config, address)),
        secret: secret(&config.jwt_secret_file, token::secret_bytes),
        hub_keys: hub::read_keys_once(config).map_err(|error| format!("{error:#}")).transpose(),
        secrets_fault: Secrets::read(config, None).err().map(|error| format!("{error:#}")),
        other_secrets: other_secrets(config),
        tls_listener: config.tls_listen.0.map(|address| system.listener(config, address)),
        side_listeners: system.side_listeners(config),
        // A mismatched pair is a finding of its own.
        tls: certificates::pairs(config).unwrap_or_default().into_iter().map(tls_files).collect(),
        link_tls: certificates::link_pairs(config).unwrap_or_default().into_iter().map(tls_files).collect(),
        has_aes: system.has_aes(),
        now_unix_s: clock::unix_s(),
        fleet: fleet::probe(config),
    }
}

/// The files of all secrets and tokens but the first.
fn other_secrets(config: &DaemonConfig) -> Vec<(&'static str, SecretFile)> {
    let files = [
        ("second token secret", &config.jwt_second_secret_file),
        ("link token", &config.link_token_file),
        ("hub's secret", &config.hub_secret_file),
        ("admin token", &config.admin_token_file),
        ("API token", &config.api_token_file),
    ];
    let files = files.map(|(check, file)| (check, secret(file, token::secret_bytes)));
    let webhook = secret(&config.hub_webhook_secret_file, hub::webhook_secret_bytes);
    let all = files.into_iter().chain([("webhook secret", webhook)]);
    all.filter_map(|(check, file)| Some((check, file?))).collect()
}

/// The state of a pair of files, as the daemon would load it.
fn tls_files(pair: CertificateFiles) -> TlsFiles {
    let key_mode = fs::metadata(&pair.key).ok().map(|metadata| metadata.permissions().mode() & 0o777);
    let shown = certificates::read(&pair).map(|certificate| Shown {
        names: certificate.names().map(str::to_owned).collect(),
        not_before_unix_s: certificate.not_before_unix_s(),
        not_after_unix_s: certificate.not_after_unix_s(),
        chain: chain_of(&certificate.chain().collect::<Vec<_>>()),
    });
    let (is_awaited, shown) = (acme::is_placeholder(&pair), shown.map_err(|error| format!("{error:#}")));
    TlsFiles { chain: pair.chain, key: pair.key, key_mode, is_awaited, shown }
}

/// How certificates hang together, by the names in them.
fn chain_of(certificates: &[&[u8]]) -> Chain {
    let names = |der: &[u8]| {
        let certificate = CertificateDer::from(der.to_vec());
        let parsed = EndEntityCert::try_from(&certificate).ok()?;
        Some((parsed.issuer().to_vec(), parsed.subject().to_vec()))
    };
    let names: Vec<_> = certificates.iter().map(|der| names(der)).collect();
    let is_broken = |pair: &[Option<(Vec<u8>, Vec<u8>)>]| match pair {
        [Some((issuer, _)), Some((_, subject))] => issuer != subject,
        _ => true,
    };
    match &names[..] {
        [Some((issuer, subject)), ..] if issuer == subject => Chain::OwnSignature,
        [_] => Chain::Alone,
        _ => names.windows(2).position(is_broken).map_or(Chain::Whole, |at| Chain::Broken(at + 1)),
    }
}

/// The system's files.
struct System<'a> {
    root: &'a Path,
}

impl System<'_> {
    /// The text of a sysctl, by its path; empty where there is none.
    fn text(&self, path: &str) -> String {
        fs::read_to_string(self.root.join("proc/sys").join(path)).unwrap_or_default().trim().to_owned()
    }

    fn numbers(&self, path: &str) -> Vec<u64> {
        self.text(path).split_ascii_whitespace().filter_map(|number| number.parse().ok()).collect()
    }

    fn number(&self, path: &str) -> Option<u64> {
        self.numbers(path).first().copied()
    }

    fn uring(&self) -> Uring {
        let status = fs::read_to_string(self.root.join("proc/self/status")).unwrap_or_default();
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let capabilities = field("CapEff:").and_then(|bits| u64::from_str_radix(bits, 16).ok()).unwrap_or(0);
        Uring {
            runtime: match ShardRuntime::new(DriverKind::Uring) {
                Ok(runtime) => Ok(runtime.why().to_owned()),
                Err(error) => Err(error.to_string()),
            },
            sending: match UringFlush::new() {
                Ok(_) => Ok(()),
                Err(FlushUnavailable::NoRing(error)) => Err(SendingFault::NoRing(error.raw_os_error().unwrap_or(0))),
                Err(error) => Err(SendingFault::Unfit(error.to_string())),
            },
            disabled: self.number("kernel/io_uring_disabled"),
            seccomp: field("Seccomp:").and_then(|mode| mode.parse().ok()),
            is_admin: capabilities & CAP_SYS_ADMIN != 0,
            memlock_bytes: getrlimit(Resource::Memlock).current,
        }
    }

    /// As the kernel names them: `flags` on x86, `Features` on ARM.
    fn has_aes(&self) -> bool {
        let text = fs::read_to_string(self.root.join("proc/cpuinfo")).unwrap_or_default();
        let mut fields = text.lines().filter_map(|line| line.split_once(':'));
        fields.any(|(name, value)| {
            matches!(name.trim(), "flags" | "Features") && value.split(' ').any(|flag| flag == "aes")
        })
    }

    fn files(&self) -> Files {
        let (open, max) = match self.numbers("fs/file-nr")[..] {
            [open, _, max] => (open, max),
            _ => (0, u64::MAX),
        };
        Files {
            hard: getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX),
            open: sys::open_files().map_or(0, |(_, open)| open as u64),
            nr_open: self.number("fs/nr_open"),
            system: Some((max, open)),
        }
    }

    fn network(&self) -> Network {
        let last = |path: &str| self.numbers(path).get(2).copied();
        let port = |number: u64| u16::try_from(number).unwrap_or(u16::MAX);
        Network {
            somaxconn: self.number("net/core/somaxconn"),
            syn_backlog: self.number("net/ipv4/tcp_max_syn_backlog"),
            syncookies: self.number("net/ipv4/tcp_syncookies"),
            port_range: match self.numbers("net/ipv4/ip_local_port_range")[..] {
                [first, last] => Some((port(first), port(last))),
                _ => None,
            },
            reserved_ports: self.text("net/ipv4/ip_local_reserved_ports"),
            tcp_memory_bytes: last("net/ipv4/tcp_mem").map(|pages| pages * rustix::param::page_size() as u64),
            send_buffer_bytes_max: last("net/ipv4/tcp_wmem"),
            conntrack: self
                .number("net/netfilter/nf_conntrack_max")
                .zip(self.number("net/netfilter/nf_conntrack_count")),
        }
    }
}

impl System<'_> {
    fn listener(&self, config: &DaemonConfig, address: SocketAddr) -> ListenResult {
        match probe(address) {
            Ok(()) => ListenResult::Free,
            Err(ListenError::InUse(_)) => self.user_of(config, address),
            Err(ListenError::NotAllowed(_)) => ListenResult::NotAllowed,
            Err(ListenError::NotHere(_)) => ListenResult::NotHere,
            Err(error) => ListenResult::Fault(error.to_string()),
        }
    }

    fn side_listeners(&self, config: &DaemonConfig) -> Vec<SideListener> {
        let api = config.api_listen.0.filter(|_| !config.api_token_file.as_os_str().is_empty());
        let all = [("admin listener", "admin-listen", config.admin_listen.0), ("API listener", "api-listen", api)];
        let side = |(check, flag, address): (_, _, Option<SocketAddr>)| {
            let address = address?;
            Some(SideListener { check, flag, address, result: self.listener(config, address) })
        };
        all.into_iter().filter_map(side).collect()
    }

    /// The program that listens there already: a daemon of ours, if its control socket or its program says so.
    fn user_of(&self, config: &DaemonConfig, address: SocketAddr) -> ListenResult {
        let program = listeners::program(self.root, address.port());
        let is_ours = |pid: u32| fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|path| is_pushring(&path));
        match (asked(config).filter(|_| address == config.address()), program) {
            (Some(pid), _) => ListenResult::Ours { pid },
            (None, Some((_, pid))) if is_ours(pid) => ListenResult::Ours { pid },
            (None, program) => ListenResult::InUse(program),
        }
    }
}

/// Returns whether it is the program that this one is. One that was replaced is marked so (proc(5)).
fn is_pushring(path: &Path) -> bool {
    let name =
        |path: &Path| path.file_name().map(|name| name.to_string_lossy().trim_end_matches(" (deleted)").to_owned());
    std::env::current_exe().is_ok_and(|own| name(&own) == name(path))
}

/// The daemon of ours that listens on that port, if its control socket says so.
fn asked(config: &DaemonConfig) -> Option<u32> {
    let path = config.control.find(config.address().port())?;
    match control::ask(&path, &ControlRequest::Stats {}) {
        Ok(ControlAnswer::Stats(overview)) if overview.about.address.port() == config.address().port() => {
            Some(overview.about.pid)
        }
        _ => None,
    }
}

fn sockets(config: &DaemonConfig, control: Option<&Path>) -> Vec<SocketPath> {
    let link = Some(config.link.as_path()).filter(|path| !path.as_os_str().is_empty());
    // An invalid setting is a finding of its own.
    let mode = config.link_access().map_or(0o600, |access| access.mode);
    let link = link.map(|path| {
        let mut socket = socket("link", path, mode);
        let made = made_for(path).map(|_| SocketDirectory { is_writable: true, mode: 0o711 });
        socket.directory = socket.directory.or(made);
        socket
    });
    let control = control.map(|path| {
        let mut socket = socket("control", path, 0o600);
        // The daemon makes the directory that it was not told of.
        let made = (config.control == ControlPath::Auto).then_some(SocketDirectory { is_writable: true, mode: 0o700 });
        socket.directory = socket.directory.or(made);
        socket
    });
    link.into_iter().chain(control).collect()
}

fn socket(setting: &'static str, path: &Path, wanted_mode: u32) -> SocketPath {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let directory = fs::metadata(parent).ok().filter(fs::Metadata::is_dir).map(|metadata| SocketDirectory {
        is_writable: rustix::fs::access(parent, rustix::fs::Access::WRITE_OK).is_ok(),
        mode: metadata.permissions().mode() & 0o7777,
    });
    let there = match fs::symlink_metadata(path) {
        Err(_) => PathState::Nothing,
        Ok(metadata) if !metadata.file_type().is_socket() => PathState::NoSocket,
        Ok(metadata) => match control::is_listened_to(path) {
            Ok(false) => PathState::DeadSocket,
            _ => PathState::Socket { mode: metadata.permissions().mode() & 0o777 },
        },
    };
    SocketPath { setting, path: path.to_owned(), wanted_mode, directory, there }
}

fn secret(path: &Path, count: impl Fn(&Path) -> anyhow::Result<usize>) -> Option<SecretFile> {
    let path = Some(path).filter(|path| !path.as_os_str().is_empty())?;
    let bytes = count(path);
    let mode = fs::metadata(path).map(|metadata| metadata.permissions().mode() & 0o777);
    let mode = match &bytes {
        Ok(_) => mode.map_err(|error| error.to_string()),
        Err(error) => Err(format!("{error:#}")),
    };
    Some(SecretFile { path: path.to_owned(), mode, bytes: bytes.unwrap_or(0) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::memory::tests::Root;

    #[test]
    fn a_daemon_that_accepts_nobody_keeps_nobody_waiting() {
        use socket2::{Domain, SockAddr, Socket, Type};
        let path = std::env::temp_dir().join(format!("pushring-doctor-hung-{}", std::process::id()));
        let there = || socket("link", &path, 0o600).there;
        assert!(matches!(there(), PathState::Nothing));
        let listener = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        listener.bind(&SockAddr::unix(&path).unwrap()).unwrap();
        assert!(matches!(there(), PathState::DeadSocket));
        listener.listen(1).unwrap();
        // More of them than the backlog has room for, and none is accepted.
        (0..8).for_each(|_| assert!(matches!(there(), PathState::Socket { .. })));
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn the_systems_files_are_read() {
        let root = Root::new(
            "facts",
            &[
                ("proc/sys/kernel/osrelease", "5.15.0\n"),
                ("proc/sys/kernel/io_uring_disabled", "1\n"),
                ("proc/self/status", "Name:\tx\nCapEff:\t0000000000200000\nSeccomp:\t2\nSeccomp_filters:\t1\n"),
                ("proc/sys/fs/nr_open", "1048576\n"),
                ("proc/sys/fs/file-nr", "1200\t0\t9000\n"),
                ("proc/sys/net/core/somaxconn", "128\n"),
                ("proc/sys/net/ipv4/ip_local_port_range", "32768\t60999\n"),
                ("proc/sys/net/ipv4/tcp_mem", "10\t20\t30\n"),
                ("proc/sys/net/ipv4/tcp_wmem", "4096\t16384\t4194304\n"),
                ("proc/sys/net/netfilter/nf_conntrack_max", "65536\n"),
                ("proc/sys/net/netfilter/nf_conntrack_count", "7\n"),
            ],
        );
        let facts = gather(
            &DaemonConfig {
                listen: crate::daemon::config::Listen::at(([127, 0, 0, 1], 0).into()),
                control: ControlPath::Off,
                ..DaemonConfig::default()
            },
            &root.0,
        );
        assert_eq!((facts.kernel.as_str(), facts.uring.disabled), ("5.15.0", Some(1)));
        assert_eq!((facts.uring.seccomp, facts.uring.is_admin), (Some(2), true));
        assert_eq!((facts.files.nr_open, facts.files.system), (Some(1_048_576), Some((9000, 1200))));
        let network = &facts.network;
        assert_eq!((network.somaxconn, network.syn_backlog), (Some(128), None));
        assert_eq!((network.port_range, network.conntrack), (Some((32_768, 60_999)), Some((65_536, 7))));
        assert_eq!(network.tcp_memory_bytes, Some(30 * rustix::param::page_size() as u64));
        assert_eq!(network.send_buffer_bytes_max, Some(4_194_304));
        assert_eq!((facts.listener, facts.sockets.len(), facts.secret.is_none()), (ListenResult::Free, 0, true));
        assert!(facts.cores.allowed > 0);
    }

    #[test]
    fn certificates_are_seen_as_clients_will_see_them() {
        use rcgen::{CertificateParams, IsCa, Issuer, KeyPair};
        let root = Root::new("certificates", &[("proc/cpuinfo", "flags\t\t: fpu aes avx\n")]);
        assert!(System { root: &root.0 }.has_aes() && !System { root: Path::new("/nowhere") }.has_aes());
        let [own, ca, other] = [0; 3].map(|_| KeyPair::generate().unwrap());
        let mut authority = CertificateParams::new(Vec::new()).unwrap();
        authority.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        authority.distinguished_name.push(rcgen::DnType::CommonName, "an authority");
        let authority_pem = authority.self_signed(&ca).unwrap().pem();
        let server = CertificateParams::new(vec!["example.com".to_owned()]).unwrap();
        let pem = server.signed_by(&own, &Issuer::from_params(&authority, &ca)).unwrap().pem();
        let selfish = server.self_signed(&own).unwrap().pem();
        let seen = |chain: &str, key: &KeyPair| {
            let (chain_file, key_file) = (root.0.join("chain.pem"), root.0.join("key.pem"));
            fs::write(&chain_file, chain).unwrap();
            fs::write(&key_file, key.serialize_pem()).unwrap();
            fs::set_permissions(&key_file, fs::Permissions::from_mode(0o640)).unwrap();
            tls_files(CertificateFiles { setting: "tls_certs", chain: chain_file, key: key_file })
        };
        for (chain, found) in [
            (format!("{pem}{authority_pem}"), Chain::Whole),
            (pem.clone(), Chain::Alone),
            (selfish.clone(), Chain::OwnSignature),
            (format!("{pem}{selfish}"), Chain::Broken(1)),
            (format!("{pem}{authority_pem}{selfish}"), Chain::Broken(2)),
        ] {
            let shown = seen(&chain, &own).shown.unwrap();
            assert_eq!((shown.chain, shown.is_for("example.com")), (found, true));
            assert!(shown.not_before_unix_s < shown.not_after_unix_s);
        }
        assert_eq!(seen(&pem, &own).key_mode, Some(0o640));
        assert!(seen(&pem, &other).shown.unwrap_err().contains("key"));
        assert!(seen("nothing", &own).shown.is_err());
    }

    #[test]
    fn what_stands_in_the_way_is_seen() {
        let root = Root::new("sockets", &[("file", "text")]);
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let system = System { root: Path::new("/") };
        let listener =
            |address| system.listener(&DaemonConfig { control: ControlPath::Off, ..DaemonConfig::default() }, address);
        // This test is not named as the program is, but its own: so it is one of ours.
        assert_eq!(listener(address), ListenResult::Ours { pid: std::process::id() });
        assert_eq!(listener(([192, 0, 2, 1], 80).into()), ListenResult::NotHere);
        let socket = |setting, path: &Path| socket(setting, path, 0o600);
        let path = root.0.join("socket");
        assert_eq!(socket("link", &path).there, PathState::Nothing);
        let living = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert!(matches!(socket("link", &path).there, PathState::Socket { .. }));
        drop(living);
        assert_eq!(socket("link", &path).there, PathState::DeadSocket);
        assert_eq!(socket("link", &root.0.join("file")).there, PathState::NoSocket);
        assert_eq!(socket("link", &root.0.join("no/such")).directory, None);
        assert!(secret(&root.0.join("none"), token::secret_bytes).unwrap().mode.is_err());
        let there = secret(&root.0.join("file"), token::secret_bytes).unwrap();
        assert!(there.bytes == 4 && there.mode.is_ok(), "{there:?}");
    }
}
