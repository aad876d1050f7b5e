//! Facts about a machine that decide whether a daemon can run well on it. Plain data: gathered in one place, checked in
//! others, and written down by tests.

use pushring::FleetProbe;
use std::net::SocketAddr;
use std::path::PathBuf;

/// See the module. What the system does not tell is `None`.
#[derive(Debug, Clone)]
pub(super) struct Facts {
    /// The kernel's release: `6.8.0-41-generic`.
    pub kernel: String,
    /// io_uring.
    pub uring: Uring,
    /// Open files.
    pub files: Files,
    /// TCP.
    pub network: Network,
    /// The memory that this OS process may still take, in bytes.
    pub memory_available_bytes: Option<u64>,
    /// Processors.
    pub cores: Cores,
    /// The address that the daemon is to listen on.
    pub listener: ListenResult,
    /// The paths of the configured Unix sockets, including the control socket's default.
    pub sockets: Vec<SocketPath>,
    /// There is to be a control socket, and no directory for it.
    pub control_is_homeless: bool,
    /// The address of the link over TCP, if one is named.
    pub link_tcp: Option<ListenResult>,
    /// The file of the token secret, if one is named.
    pub secret: Option<SecretFile>,
    /// The number of usable keys of the hub's authority, or why it is unknown; none: it has no authority.
    pub hub_keys: Option<Result<usize, String>>,
    /// Why the daemon would not take the secrets of tokens together.
    pub secrets_fault: Option<String>,
    /// The files of other secrets and tokens that are named, and what each is.
    pub other_secrets: Vec<(&'static str, SecretFile)>,
    /// The address on which TLS is to be spoken, if one is named.
    pub tls_listener: Option<ListenResult>,
    /// The listeners for operators and backends that are wanted.
    pub side_listeners: Vec<SideListener>,
    /// The pairs of certificates and keys that are named.
    pub tls: Vec<TlsFiles>,
    /// The same of the link over TCP.
    pub link_tls: Vec<TlsFiles>,
    /// Whether the processor has instructions for AES.
    pub has_aes: bool,
    /// The time of day.
    pub now_unix_s: u64,
    /// The answer of the fleet's NATS, or its error; none: no fleet is configured.
    pub fleet: Option<Result<FleetProbe, String>>,
}

/// A listener without which the daemon starts all the same.
#[derive(Debug, Clone)]
pub(super) struct SideListener {
    /// What it is.
    pub check: &'static str,
    /// The flag that says where.
    pub flag: &'static str,
    /// Where.
    pub address: SocketAddr,
    /// Whether it can be had.
    pub result: ListenResult,
}

/// A certificate's file and its key's.
#[derive(Debug, Clone)]
pub(super) struct TlsFiles {
    /// The certificate, and its issuers' behind it.
    pub chain: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// The key's permission bits, where they can be seen.
    pub key_mode: Option<u32>,
    /// An authority is to issue the certificate, and has not yet.
    pub is_awaited: bool,
    /// The certificate for clients, or why there is none: the files cannot be read, or do not match.
    pub shown: Result<Shown, String>,
}

/// A certificate that fits its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Shown {
    /// The hosts it is for, in lower case; `*.` stands for one label.
    pub names: Vec<String>,
    /// From when on it is good.
    pub not_before_unix_s: u64,
    /// Until when.
    pub not_after_unix_s: u64,
    /// How the certificates of its file hang together.
    pub chain: Chain,
}

impl Shown {
    /// Returns whether it is for this name, in lower case.
    pub(super) fn is_for(&self, name: &str) -> bool {
        let parent = name.split_once('.').map(|(_, parent)| parent);
        self.names.iter().any(|own| own == name || own.strip_prefix("*.").is_some_and(|own| Some(own) == parent))
    }
}

/// How the certificates of one file hang together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Chain {
    /// Each is issued by the one behind it.
    Whole,
    /// The server's certificate is self-signed.
    OwnSignature,
    /// The server's alone, without its issuer's.
    Alone,
    /// The one of this number, from 1 on, was not issued by the one behind it.
    Broken(usize),
}

/// The result of probing io_uring, and the settings that may forbid it.
#[derive(Debug, Clone)]
pub(super) struct Uring {
    /// A runtime on it: how it was set up, or why there is none.
    pub runtime: Result<String, String>,
    /// A ring for sending, proved.
    pub sending: Result<(), SendingFault>,
    /// `kernel.io_uring_disabled`: 0 allows it to all, 1 to the privileged, 2 to none.
    pub disabled: Option<u64>,
    /// The mode of seccomp that this process is under: 2 is a filter.
    pub seccomp: Option<u64>,
    /// Whether this process has `CAP_SYS_ADMIN`.
    pub is_admin: bool,
    /// How much memory may be locked; `None` is without limit. Kernels before 5.12 count rings as that.
    pub memlock_bytes: Option<u64>,
}

/// Why there is no ring for sending.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum SendingFault {
    /// The kernel refuses a ring with this `errno`.
    NoRing(i32),
    /// The proof could not be made or has failed.
    Unfit(String),
}

/// Limits of open files, of this process and of the system. No limit is `u64::MAX`.
#[derive(Debug, Clone)]
pub(super) struct Files {
    /// The hard limit; the daemon raises its own to it.
    pub hard: u64,
    /// How many a program of ours has open at its start.
    pub open: u64,
    /// The most that a hard limit can be: `fs.nr_open`.
    pub nr_open: Option<u64>,
    /// `fs.file-max` and how many are open in the system.
    pub system: Option<(u64, u64)>,
}

/// Settings of TCP.
#[derive(Debug, Clone)]
pub(super) struct Network {
    /// `net.core.somaxconn`
    pub somaxconn: Option<u64>,
    /// `net.ipv4.tcp_max_syn_backlog`
    pub syn_backlog: Option<u64>,
    /// `net.ipv4.tcp_syncookies`
    pub syncookies: Option<u64>,
    /// `net.ipv4.ip_local_port_range`
    pub port_range: Option<(u16, u16)>,
    /// `net.ipv4.ip_local_reserved_ports`: `8080,9000-9010`.
    pub reserved_ports: String,
    /// The last number of `net.ipv4.tcp_mem`, in bytes.
    pub tcp_memory_bytes: Option<u64>,
    /// The last number of `net.ipv4.tcp_wmem`.
    pub send_buffer_bytes_max: Option<u64>,
    /// `net.netfilter.nf_conntrack_max` and `nf_conntrack_count`.
    pub conntrack: Option<(u64, u64)>,
}

/// Processors.
#[derive(Debug, Clone)]
pub(super) struct Cores {
    /// On how many this process may run.
    pub allowed: usize,
    /// How many cores' worth of time its control groups leave it; none: all of it.
    pub quota: Option<f64>,
}

/// The result of trying to listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ListenResult {
    /// It can be done.
    Free,
    /// A daemon of ours listens there.
    Ours {
        /// Its process.
        pid: u32,
    },
    /// Another program listens: its name and pid, where they can be seen.
    InUse(Option<(String, u32)>),
    /// It needs privileges.
    NotAllowed,
    /// The address is another machine's.
    NotHere,
    /// Something else.
    Fault(String),
}

/// A path where a Unix socket is to be.
#[derive(Debug, Clone)]
pub(super) struct SocketPath {
    /// The setting: `link`, `control`.
    pub setting: &'static str,
    /// The path.
    pub path: PathBuf,
    /// The permission bits that it is to have.
    pub wanted_mode: u32,
    /// Its directory; `None` is none.
    pub directory: Option<SocketDirectory>,
    /// The present state of the path.
    pub there: PathState,
}

/// The directory of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SocketDirectory {
    /// Whether this process may make files in it.
    pub is_writable: bool,
    /// Its permission bits, the sticky one included.
    pub mode: u32,
}

/// The kind of file at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PathState {
    /// Nothing.
    Nothing,
    /// Something that is no socket.
    NoSocket,
    /// A socket without a listener.
    DeadSocket,
    /// A socket with a listener.
    Socket {
        /// Its permission bits.
        mode: u32,
    },
}

/// The file of a secret.
#[derive(Debug, Clone)]
pub(super) struct SecretFile {
    /// The path.
    pub path: PathBuf,
    /// Its permission bits, or why it cannot be read.
    pub mode: Result<u32, String>,
    /// How many bytes the secret has.
    pub bytes: usize,
}

#[cfg(test)]
impl Facts {
    /// A machine with nothing to complain of, for the settings that a daemon has by default.
    pub(super) fn fine() -> Self {
        Self {
            kernel: "6.8.0".to_owned(),
            uring: Uring {
                runtime: Ok("io_uring, single issuer".to_owned()),
                sending: Ok(()),
                disabled: Some(0),
                seccomp: Some(0),
                is_admin: false,
                memlock_bytes: None,
            },
            files: Files { hard: 1 << 20, open: 10, nr_open: Some(1 << 20), system: Some((u64::MAX, 1000)) },
            network: Network {
                somaxconn: Some(4096),
                syn_backlog: Some(4096),
                syncookies: Some(1),
                port_range: Some((32_768, 60_999)),
                reserved_ports: String::new(),
                tcp_memory_bytes: Some(2 << 30),
                send_buffer_bytes_max: Some(4 << 20),
                conntrack: None,
            },
            memory_available_bytes: Some(8 << 30),
            cores: Cores { allowed: 4, quota: None },
            listener: ListenResult::Free,
            sockets: Vec::new(),
            control_is_homeless: false,
            link_tcp: None,
            secret: Some(SecretFile { path: "/etc/pushring/secret".into(), mode: Ok(0o600), bytes: 32 }),
            hub_keys: None,
            secrets_fault: None,
            other_secrets: Vec::new(),
            tls_listener: None,
            side_listeners: Vec::new(),
            tls: Vec::new(),
            link_tls: Vec::new(),
            has_aes: true,
            now_unix_s: 1_700_000_000,
            fleet: None,
        }
    }
}
