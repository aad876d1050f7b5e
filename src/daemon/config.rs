//! The daemon's settings, in one table: each is a flag (`--head-timeout`), an environment variable
//! (`PUSHRING_HEAD_TIMEOUT`) and a key of the file (`head_timeout`). Flags win over the environment, which wins over
//! the file, which wins over the defaults.
//!
//! Invariants: an unknown key of the file is an error that names it; no secret is part of the settings, only the path
//! of the file that holds one.

mod environment;
mod file;
mod hub_access;
mod links;
mod numbers;
mod redirect;
mod renamed;
mod sources;
mod values;

pub(crate) use environment::{check as check_environment, variable};
pub(crate) use file::write;
pub(crate) use renamed::{OldName, variable_in_use};
pub(crate) use sources::Sources;
pub(crate) use values::{
    AdminListen, DialectValue, DriverValue, Exposure, Listen, LogFormat, PolicyValue, Redirect, SocketMode, WordList,
    parse_address,
};

use super::control::ControlPath;
use super::fleet;
use super::memory::MemoryBudget;
use super::program::Secrets;
use super::units::{Size, Span};
use anyhow::{Context, bail, ensure};
use pushring::internals::admission;
use pushring::internals::gateway::{self, HostPolicy, IpPrefix, Settings};
use pushring::internals::http::Authority;
use pushring::internals::proto;
use pushring::node;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// Declares every setting once, with when a reload applies it; makes of it the effective settings and the command
/// line's [`SettingsFlags`].
macro_rules! settings {
    ($(
        [$group:literal]
        $( $(#[doc = $doc:literal])+ $(#[arg($($arg:tt)+)])? $name:ident: $type:ty = $default:expr => $when:ident; )+
    )+) => {
        /// Every setting as it is in force.
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub(crate) struct DaemonConfig {
            $($( $(#[doc = $doc])+ pub $name: $type, )+)+
            /// The source of each setting that was given.
            #[serde(skip)]
            pub sources: Sources,
        }

        impl Default for DaemonConfig {
            fn default() -> Self {
                Self { $($( $name: $default, )+)+ sources: Sources::default() }
            }
        }

        /// All settings, for help and documentation.
        pub(crate) const SETTINGS: &[SettingsGroup] = &[$( SettingsGroup {
            name: $group,
            settings: &[$( Setting {
                key: stringify!($name),
                doc: concat!($($doc, "\n"),+),
                when: TakesEffect::$when,
            }, )+],
        }, )+];

        /// The settings that flags or the environment give.
        #[derive(Debug, Clone, Default, clap::Args, Serialize)]
        pub(crate) struct SettingsFlags {
            $($(
                $(#[doc = $doc])+
                #[arg(long, help_heading = $group $(, $($arg)+)?)]
                #[serde(skip_serializing_if = "Option::is_none")]
                pub $name: Option<$type>,
            )+)+
        }
    };
}

/// Settings that belong together.
#[derive(Debug)]
pub(crate) struct SettingsGroup {
    /// Its subject.
    pub name: &'static str,
    /// In the order in which they are best read.
    pub settings: &'static [Setting],
}

/// A setting.
#[derive(Debug)]
pub(crate) struct Setting {
    /// Its key in the file.
    pub key: &'static str,
    /// Its description, in lines.
    pub doc: &'static str,
    /// When a change of it takes effect.
    pub when: TakesEffect,
}

/// When a changed setting takes effect in a daemon that reads its settings again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TakesEffect {
    /// From the reload on.
    Now,
    /// For clients that connect from then on: what is agreed on, or handed to a connection, when it begins.
    NewConnections,
    /// After a restart: listeners, threads, files and memory are made once.
    Restart,
}

/// When a change of the setting `key` takes effect; `None`: there is no such setting.
pub(crate) fn takes_effect(key: &str) -> Option<TakesEffect> {
    SETTINGS.iter().flat_map(|group| group.settings).find(|setting| setting.key == key).map(|setting| setting.when)
}

settings! {
    ["What is served"]
    /// The address for plain HTTP; port 0 picks a free one, off is for TLS alone.
    #[arg(value_name = "ADDRESS:PORT|off")]
    listen: Listen = Listen::at(([127, 0, 0, 1], 8080).into()) => Restart;
    /// The address for TLS 1.3 (https:// and wss://); needs tls_certs.
    #[arg(value_name = "ADDRESS:PORT|off")]
    tls_listen: Listen = Listen::default() => Restart;
    /// Certificates and their keys, PEM, as `CHAIN.pem:KEY.pem`; clients that name no host, or an unknown one, get the
    /// first. Read again on a reload and when the files change; a pair that cannot be used is logged, and the previous
    /// one stays.
    #[arg(value_name = "CHAIN:KEY,…")]
    tls_certs: WordList = WordList::default() => NewConnections;
    /// Whether requests without TLS are redirected to it (308), to the host that they name: on uses the port of
    /// tls_listen, a number that port, for clients that connect through another.
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "on", value_name = "on|off|PORT")]
    tls_redirect: Redirect = Redirect::Off => Now;
    /// Hosts for which certificates are obtained and renewed from an authority that speaks ACME; naming one agrees to
    /// the authority's terms. It validates them over plain HTTP at port 80, which must lead to `listen`.
    #[arg(value_name = "NAME,…")]
    tls_acme: WordList = WordList::default() => Restart;
    /// The authority: the URL of its directory.
    #[arg(value_name = "URL")]
    tls_acme_url: String = "https://acme-v02.api.letsencrypt.org/directory".to_owned() => Restart;
    /// The certificate of the authority's own server, PEM, if the system does not trust it.
    #[arg(value_name = "FILE")]
    tls_acme_ca: PathBuf = PathBuf::new() => Restart;
    /// Mail addresses at which the authority may reach the operator.
    #[arg(value_name = "ADDRESS,…")]
    tls_acme_contacts: WordList = WordList::default() => Restart;
    /// The directory for the account, the certificate and its key. Default: acme in $STATE_DIRECTORY or
    /// /var/lib/pushring.
    #[arg(value_name = "DIRECTORY")]
    tls_acme_state: PathBuf = PathBuf::new() => Restart;
    /// This node's name: the `username` of its tokens.
    node: String = "local.os".to_owned() => Restart;
    /// The node system: decides the name of the login cookie and the paths open to local clients.
    dialect: DialectValue = DialectValue::Kinode => Restart;
    /// The file with the secret that signs tokens; without one, requests that need a token are refused.
    #[arg(value_name = "FILE")]
    jwt_secret_file: PathBuf = PathBuf::new() => Now;
    /// The file with a second accepted secret, for changing secrets without a gap.
    #[arg(value_name = "FILE")]
    jwt_second_secret_file: PathBuf = PathBuf::new() => Now;

    ["Processes of other programs"]
    /// A Unix socket at which processes of other programs attach. Without it, and without link_tcp, none can.
    #[arg(value_name = "PATH")]
    link: PathBuf = PathBuf::new() => Restart;
    /// The group whose members may attach there beside this user: a name of /etc/group, or a number.
    #[arg(value_name = "GROUP")]
    link_group: String = String::new() => Restart;
    /// The permissions of that socket, as `0660`; auto is 0660 with a link_group, else 0600.
    #[arg(value_name = "MODE|auto")]
    link_mode: SocketMode = SocketMode::Auto => Restart;
    /// The address and port at which processes attach over TCP; needs a token. Nothing there is encrypted without
    /// link_tls_certs.
    #[arg(value_name = "ADDRESS")]
    link_tcp: String = String::new() => Restart;
    /// Certificates and their keys, as for tls_certs, with which link_tcp speaks TLS 1.3. Read again on a reload and
    /// when the files change.
    #[arg(value_name = "CHAIN:KEY,…")]
    link_tls_certs: WordList = WordList::default() => Restart;
    /// The file with the token required of processes over TCP: text of at least 16 bytes.
    #[arg(value_name = "FILE")]
    link_token_file: PathBuf = PathBuf::new() => Restart;
    /// The most attached processes and nodes of other programs; more are refused.
    link_peers_max: usize = pushring::link::LinkConfig::default().peers_max => Restart;
    /// How long the channels of a lost process are kept; then they are closed with 1012.
    owner_grace: Span = Span::seconds(10) => Restart;

    ["Publishing over HTTP"]
    /// The address at which backends publish over HTTP and query topics and channels, or off. Served only with a token
    /// (api_token_file). If the address is in use, a warning is logged and the daemon runs without.
    #[arg(value_name = "ADDRESS|off")]
    api_listen: AdminListen = AdminListen(Some(([127, 0, 0, 1], 9465).into())) => Restart;
    /// The file with the token that each of its requests needs: text of at least 16 bytes.
    #[arg(value_name = "FILE")]
    api_token_file: PathBuf = PathBuf::new() => Restart;
    /// Whether the main listener serves the same API, at /push:pushring:sys/api/, with the same token.
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "true|false")]
    api_on_listen: bool = false => Restart;

    ["The hub"]
    /// Whether the hub is served at /hub: clients subscribe to topics and publish as far as their tokens allow, and
    /// backends publish over HTTP.
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "true|false")]
    hub: bool = false => Restart;
    /// The file with the secret that signs the hub's tokens; must differ from jwt_secret_file's.
    #[arg(value_name = "FILE")]
    hub_secret_file: PathBuf = PathBuf::new() => Now;
    /// The `aud` required of tokens signed with it.
    hub_audience: String = "pushring-hub".to_owned() => NewConnections;
    /// The URL of the keys with which an authority signs the hub's tokens instead (a JSON Web Key Set; RS256, ES256 and
    /// EdDSA). Tokens signed with a secret are then refused.
    #[arg(value_name = "URL")]
    auth_jwks_url: String = String::new() => Restart;
    /// The file with such keys, instead of a URL. Read again when it changes.
    #[arg(value_name = "FILE")]
    auth_jwks_file: PathBuf = PathBuf::new() => Restart;
    /// The certificate of auth_jwks_url's server, PEM, if the system does not trust it.
    #[arg(value_name = "FILE")]
    auth_jwks_ca: PathBuf = PathBuf::new() => Restart;
    /// The interval at which the keys are fetched, at least 30s; tokens with an unknown key cause a fetch earlier.
    auth_jwks_refresh: Span = Span::seconds(300) => Restart;
    /// The `iss` required of the authority's tokens.
    #[arg(value_name = "NAME")]
    auth_issuer: String = String::new() => NewConnections;
    /// The `aud` required of the authority's tokens.
    #[arg(value_name = "NAME")]
    auth_audience: String = String::new() => NewConnections;
    /// How long a token is valid from its first use: its channel then ends, even before `exp`, unless the token is
    /// renewed. 0: until `exp`, or for ever without it.
    hub_token_lifetime_max: Span = Span::seconds(24 * 3600) => NewConnections;
    /// Whether clients without a token are let in, with the rights in hub_open_subscribe and hub_open_publish.
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "true|false")]
    hub_open: bool = false => NewConnections;
    /// Whether clients may open event streams (SSE) at /hub, to receive the topics named in the query.
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "true|false")]
    hub_sse: bool = false => Restart;
    /// Topics to which clients without a token may subscribe: names, or prefixes with `*`.
    #[arg(value_name = "PATTERN,…")]
    hub_open_subscribe: WordList = "public.*".parse().expect("a list") => NewConnections;
    /// Topics to which clients without a token may publish.
    #[arg(value_name = "PATTERN,…")]
    hub_open_publish: WordList = WordList::default() => NewConnections;
    /// The URL of a backend that receives events of the hub's clients by POST; needs hub_webhook_secret_file.
    #[arg(value_name = "URL")]
    hub_webhook_url: String = String::new() => Restart;
    /// The file with the secret that signs these requests: `whsec_` and base64, or any 24 bytes or more.
    #[arg(value_name = "FILE")]
    hub_webhook_secret_file: PathBuf = PathBuf::new() => Restart;
    /// The certificate of hub_webhook_url's server, PEM, if the system does not trust it.
    #[arg(value_name = "FILE")]
    hub_webhook_ca: PathBuf = PathBuf::new() => Restart;
    /// The events sent: opened, closed, subscribed (and unsubscribed), message (clients' messages that are no orders).
    #[arg(value_name = "EVENT,…")]
    hub_webhook_events: WordList = "opened,closed,subscribed,message".parse().expect("a list") => Restart;
    /// The most events that may wait; more are lost, and their number is sent.
    hub_webhook_events_max: usize = 10_000 => Restart;
    /// The most bytes of events that may wait; more are lost, likewise.
    hub_webhook_bytes_max: Size = Size(16 << 20) => Restart;
    /// How long a failed request is repeated before its events are given up.
    hub_webhook_give_up: Span = Span::seconds(300) => Restart;

    ["A fleet over NATS"]
    /// The fleet's NATS servers, as `nats://HOST:PORT` or `tls://HOST:PORT`; without one this daemon is in no fleet.
    #[arg(value_name = "URL,…")]
    fleet_nats: WordList = WordList::default() => Restart;
    /// The fleet's name: nodes with the same name form one.
    fleet_name: String = "main".to_owned() => Restart;
    /// This node's name in the fleet, which must be unique: letters, digits, `-` and `_`. Empty: `node`, with `-` for
    /// `.`.
    fleet_node: String = String::new() => Restart;
    /// The address at which clients reach this node alone, as wss://node-1.example.com; clients that resume a channel
    /// of this node at another are sent there. Empty: they are not.
    #[arg(value_name = "URL")]
    fleet_address: String = String::new() => Restart;
    /// The file with the credentials for NATS: as `nsc` makes it, the seed of an nkey, or a line USER:PASSWORD.
    #[arg(value_name = "FILE")]
    fleet_credentials_file: PathBuf = PathBuf::new() => Restart;
    /// Certificates of authorities for the NATS servers, beside those that the system trusts.
    #[arg(value_name = "FILE")]
    fleet_ca_file: PathBuf = PathBuf::new() => Restart;
    /// The most bytes that may wait for NATS; one process may hold a quarter of it.
    fleet_queue_bytes_max: Size = Size(fleet::QUEUE_BYTES_MAX_DEFAULT) => Restart;
    /// The most audiences that this daemon listens to at a time, and the most counts that it keeps of its own and of
    /// others'.
    fleet_subjects_max: usize = fleet::SUBJECTS_MAX_DEFAULT => Restart;

    ["Operators"]
    /// The Unix socket for `pushring stats` and the other operators' commands, for this user alone, or off. auto is
    /// pushring-PORT.sock in the first of $RUNTIME_DIRECTORY, $XDG_RUNTIME_DIR, /run/pushring and /tmp/pushring-UID
    /// that exists or can be created.
    #[arg(value_name = "PATH|auto|off")]
    control: ControlPath = ControlPath::Auto => Restart;

    /// The address at which `serve` answers probes, metrics and the admin page, or off. If the address is in use, a
    /// warning is logged and the daemon runs without.
    #[arg(value_name = "ADDRESS|off")]
    admin_listen: AdminListen = AdminListen::default() => Restart;
    /// The file with the token that its requests need, except probes and metrics on loopback: text of at least 16
    /// bytes.
    #[arg(value_name = "FILE")]
    admin_token_file: PathBuf = PathBuf::new() => Restart;
    /// Host names under which it is served, beside loopback addresses and localhost.
    #[arg(value_name = "NAME,…")]
    admin_hosts: WordList = WordList::default() => Restart;
    /// Conditions for /readyz to report that clients may be sent here: link, an attached process of another program.
    #[arg(value_name = "link")]
    ready_needs: WordList = WordList::default() => Restart;

    /// Whether metrics are also served at /metrics:pushring:sys/ of the main listener, to this machine alone.
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "true|false")]
    metrics: bool = false => Restart;

    ["Threads"]
    /// The number of shards: threads, each with its own connections; 0 is one for each core.
    shards: usize = 0 => Restart;
    /// Whether each shard is pinned to a core.
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "true|false")]
    pin: bool = true => Restart;
    /// The I/O driver; auto is io_uring where the kernel allows it, else epoll.
    driver: DriverValue = DriverValue::Auto => Restart;

    ["Access, and proxies"]
    /// Host names that are served beside addresses and localhost; `.example.com` is every name below it, `*` is any.
    /// Empty: no others on a loopback listener, and any elsewhere.
    #[arg(value_name = "NAME,…")]
    hosts: WordList = WordList::default() => Now;
    /// Origins of other sites' pages that may use this server's cookies, such as `https://app.example.com`.
    #[arg(value_name = "ORIGIN,…")]
    origins: WordList = WordList::default() => Now;
    /// Origins of pages under development, such as `http://localhost:3000`, whose development server forwards requests
    /// from this machine. Any page there can then use the session of any logged-in user.
    #[arg(value_name = "ORIGIN,…")]
    dev_origins: WordList = WordList::default() => Now;
    /// Proxies whose X-Forwarded-For is trusted when clients are counted: addresses, or ranges as `10.0.0.0/8`.
    #[arg(value_name = "RANGE,…")]
    trusted_proxies: WordList = WordList::default() => Now;
    /// Balancers that send a PROXY header (version 1 or 2) before the bytes of each client: addresses, or ranges as
    /// `10.0.0.0/8`. It is required from these, and gives the client's address; from others it is not read.
    #[arg(value_name = "RANGE,…")]
    proxy_protocol_from: WordList = WordList::default() => NewConnections;
    /// Whether a proxy in front terminates TLS: login cookies are then never sent without it.
    #[arg(alias = "tls", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "true|false")]
    behind_tls: bool = false => Now;
    /// Whether `local_only` paths, extensions and the RPC path are open to clients on this machine: as in nodes of the
    /// dialect (Kinode yes, Hyperdrive no), always, or never. An attached node may override it.
    #[arg(value_enum, num_args = 0..=1, require_equals = true, default_missing_value = "always", value_name = "WHEN")]
    expose_local: Exposure = Exposure::Dialect => Now;

    /// Subprotocols that clients may choose; the broker does not interpret them.
    #[arg(value_name = "NAME,…")]
    subprotocols: WordList = WordList::default() => NewConnections;

    ["Compression"]
    /// Whether compression (permessage-deflate) is offered on every path; otherwise only on paths whose process asks
    /// for it.
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "true|false")]
    deflate: bool = pushring::internals::shard::Deflate::default().everywhere => NewConnections;
    /// The compression level of broadcasts, which are compressed once for all channels: 1 is fast, 9 small.
    deflate_level: u8 = pushring::internals::shard::Deflate::default().level => Now;
    /// The compression level of messages to one channel: 1 is fast, 9 small.
    deflate_push_level: u8 = pushring::internals::shard::Deflate::default().push_level => Now;
    /// The smallest message that is compressed.
    deflate_bytes_min: Size = Size(pushring::internals::shard::Deflate::default().bytes_min) => Now;
    /// The window to which compressed messages may refer: 2 to the power of 9 to 15, in bytes.
    deflate_window_bits: u8 = pushring::internals::shard::Deflate::default().window_bits => NewConnections;
    /// The memory of each shard for context takeover, one window for each client that agrees on it, until it is used
    /// up. 0: no takeover.
    deflate_takeover_bytes_max: Size = Size(pushring::internals::shard::Deflate::default().takeover_bytes_max) => NewConnections;

    ["Limits"]
    /// The most connections in all; more are answered 503.
    connections_max: usize = 100_000 => Now;
    /// The most connections of one client: one IPv4 address, or one IPv6 /64; more are answered 503. 0 is no limit.
    connections_per_ip_max: u32 = 32_768 => Now;
    /// The most connections of one process: its channels, and requests that wait for it; more are answered 503. 0 is no
    /// limit, except that the last eighth of connections_max is for processes with less than an equal share.
    connections_per_process_max: usize = 0 => Now;
    /// The most upgrade requests of one client per second, and at once; more are answered 503. 0 is no limit.
    handshakes_per_ip_per_s_max: u32 = 20_000 => Now;
    /// Addresses exempt from the limits per client: addresses, or ranges as `10.0.0.0/8`.
    #[arg(value_name = "RANGE,…")]
    per_ip_exempt: WordList = WordList::default() => Now;
    /// The most clients over a limit that are answered at the same time; more are closed without an answer.
    turned_away_max: usize = 1024 => Now;
    /// The most topics of one channel, up to 65535; further subscriptions are refused.
    topics_per_channel_max: usize = pushring::internals::shard::ShardConfig::default().topics_per_channel_max => Now;
    /// The most subscriptions of channels to topics in all; more are refused. The last eighth is for processes with
    /// less than an equal share.
    subscriptions_max: usize = 1_600_000 => Now;
    /// The most memory that clients and processes may make the broker hold: frames, messages and requests that wait or
    /// are incomplete. A size, auto (half of what is available at the start), or unlimited.
    #[arg(value_name = "SIZE|auto|unlimited")]
    memory_budget: MemoryBudget = MemoryBudget::Auto => Restart;
    /// The largest message of a client.
    message_bytes_max: Size = Size(proto::MessageLimits::MESSAGE_BYTES_MAX_DEFAULT) => Now;
    /// The largest frame of a client; 0 is as large as a message.
    frame_bytes_max: Size = Size(0) => Now;
    /// The most fragments of one message; 0 is one for each 64 bytes of the largest.
    fragments_max: u32 = 0 => Now;
    /// Pings and pongs of one client per second; 0 is no limit.
    control_frames_per_s_max: u16 = 100 => Now;
    /// The most bytes that may wait for one channel whose client reads slowly.
    outbound_bytes_max: Size = Size(1 << 20) => Now;
    /// The policy for a message that would exceed outbound_bytes_max.
    policy: PolicyValue = PolicyValue(pushring::Policy::Close) => Now;
    /// How long a channel waits for its client to resume, on paths that allow it.
    resume_window: Span = Span::seconds(30) => Now;
    /// The most bytes sent to one such channel that are kept for it.
    resume_bytes_max: Size = Size(pushring::internals::shard::Resume::default().bytes_max) => Now;
    /// The most bytes that each shard keeps for all such channels; a broadcast counts once.
    resume_shard_bytes_max: Size = Size(pushring::internals::shard::Resume::default().shard_bytes_max) => Now;
    /// The most orders of processes that may wait in one shard's inbox.
    inbox_commands_max: u32 = 16 * 1024 => Restart;
    /// The most payload bytes of these orders; one process may hold a quarter of it.
    inbox_bytes_max: Size = Size(64 << 20) => Restart;
    /// The largest head of an HTTP request; where there is a link, 128KiB at most.
    head_bytes_max: Size = Size(16 << 10) => NewConnections;
    /// The most header fields of an HTTP request, 128 at most.
    header_count_max: usize = 100 => NewConnections;
    /// The largest body of an HTTP request.
    body_bytes_max: Size = Size(16 << 20) => NewConnections;
    /// The largest body of a logged-in client, at most half of memory_budget; 0 is body_bytes_max.
    body_bytes_max_logged_in: Size = Size(0) => Now;
    /// The most bytes of chunk extensions of an HTTP request, and of its trailer fields; both are ignored.
    chunk_extra_bytes_max: Size = Size(4 << 10) => NewConnections;
    /// The most bytes read ahead of pipelined HTTP requests.
    pipelined_bytes_max: Size = Size(64 << 10) => NewConnections;

    /// The most TLS handshakes for which one shard exchanges keys in one turn, some 0.12 ms each (1 ms and more with
    /// large RSA keys); more wait in their sockets.
    tls_handshakes_per_turn: u32 = pushring::internals::shard::ShardConfig::default().tls_handshakes_per_turn => Now;

    ["Deadlines"]
    /// How long a request head may take.
    head_timeout: Span = Span::seconds(10) => Now;
    /// How long a TLS handshake may take.
    tls_handshake_timeout: Span = Span::seconds(10) => NewConnections;
    /// How long a request body may take if it is slower than body_bytes_per_s_min.
    body_timeout: Span = Span::seconds(10) => Now;
    /// The least rate, in bytes per second, of a body that takes longer, and of a refused request's rest.
    body_bytes_per_s_min: Size = Size(1 << 10) => Now;
    /// How long a process may take to answer an HTTP request, in whole seconds.
    response_timeout: Span = Span::seconds(15) => Now;
    /// How long an HTTP connection may stay idle between requests.
    http_idle_timeout: Span = Span::seconds(75) => Now;
    /// How long a client that connected to `/` may take to register.
    register_timeout: Span = Span::seconds(10) => Now;
    /// How long a client may take to answer a close frame.
    close_timeout: Span = Span::seconds(5) => Now;
    /// How long a client may be silent before it is sent a ping; 0 is never.
    ping_interval: Span = Span::seconds(25) => Now;
    /// How many pings may be unanswered before the connection is closed.
    pings_unanswered_max: u8 = 2 => Now;
    /// How long a closing connection is still read after the last byte was sent, so that the client gets that rather
    /// than a reset.
    linger: Span = Span::seconds(2) => Now;
    /// How many bytes are still read then.
    linger_bytes_max: Size = Size(1 << 20) => Now;
    /// How long sent bytes may be unacknowledged before the connection is closed; 0 is the system's default.
    tcp_user_timeout: Span = Span::seconds(75) => Restart;
    /// The most unsent bytes in the kernel for one connection.
    tcp_notsent_lowat: Size = Size(128 << 10) => Restart;
    /// How long clients may take to answer the close frame when the daemon stops.
    stop_timeout: Span = Span::seconds(10) => Now;
    /// The time over which a stop closes channels one after another, so that clients reconnect evenly; 0 closes all at
    /// once.
    drain_over: Span = Span::seconds(0) => Now;
    /// How long such a stop first accepts new clients, while balancers turn away.
    drain_grace: Span = Span::seconds(5) => Now;

    ["Log"]
    /// The log's filter: error, warn, info, debug, trace or off, and modules with a level of their own, as
    /// `info,pushring::shard=debug`. RUST_LOG sets it too.
    #[arg(value_name = "FILTER")]
    log: String = "info".to_owned() => Now;
    /// The log's format.
    log_format: LogFormat = LogFormat::Text => Restart;
}

impl DaemonConfig {
    /// The settings in force: `flags`, over the file, over the defaults.
    ///
    /// # Errors
    /// The file cannot be read, or says something that it cannot.
    pub(crate) fn load(path: Option<&Path>, flags: &SettingsFlags) -> anyhow::Result<Self> {
        let mut told = path.map(file::read).transpose()?.unwrap_or_default();
        let old_names = renamed::rename(&mut told);
        let sources = Sources::new(&told, path, flags, old_names)?;
        Ok(Self { sources, ..file::overlaid(told, flags)? })
    }

    /// The old names under which settings were given, for a warning.
    pub(crate) fn old_names(&self) -> Vec<OldName> {
        self.sources.old_names()
    }

    /// The settings that a file with this text and `flags` say.
    #[cfg(test)]
    pub(crate) fn layered(text: &str, flags: &SettingsFlags) -> anyhow::Result<Self> {
        let mut told = file::parse(text, "a file")?;
        renamed::rename(&mut told);
        file::overlaid(told, flags)
    }

    /// The broker's configuration.
    ///
    /// # Errors
    /// A value that cannot be applied, named by its key.
    pub(crate) fn broker(&self, secrets: Secrets) -> anyhow::Result<pushring::Config> {
        self.try_broker(secrets).map_err(|error| self.sources.locate(error))
    }

    /// Where it listens: for plain HTTP, or where that is off for TLS.
    pub(crate) fn address(&self) -> SocketAddr {
        self.listen.0.or(self.tls_listen.0).unwrap_or(([127, 0, 0, 1], 0).into())
    }

    fn try_broker(&self, secrets: Secrets) -> anyhow::Result<pushring::Config> {
        self.check()?;
        Ok(pushring::Config {
            listen: self.address(),
            listens_plain: self.listen.0.is_some(),
            tls_listen: self.tls_listen.0,
            listener: None,
            opens_later: true,
            shards: self.shards,
            pin: self.pin,
            driver: self.driver.into(),
            settings: self.settings(secrets)?,
            admission: self.admission()?,
            memory_bytes_max: self.memory_budget.bytes()?,
            shard: self.shard(),
            inbox: pushring::internals::inbox::InboxLimits {
                commands_max: self.inbox_commands_max,
                bytes_max: self.inbox_bytes_max.0 as u64,
            },
            tcp: pushring::internals::driver::sys::TcpOptions {
                notsent_lowat_bytes: u32::try_from(self.tcp_notsent_lowat.0)
                    .context("tcp_notsent_lowat: under 4GiB")?,
                // The kernel takes it as an int (tcp(7)).
                user_timeout_ms: i32::try_from(self.tcp_user_timeout.0).context("tcp_user_timeout: at most 24 days")?
                    as u32,
            },
        })
    }

    /// Checks the node's name alone: tokens are made without a daemon.
    ///
    /// # Errors
    /// It is none.
    pub(crate) fn check_node(&self) -> anyhow::Result<()> {
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
        // It becomes part of a cookie's name (RFC 6265 section 4.1.1).
        ensure!(
            !self.node.is_empty() && self.node.bytes().all(is_name),
            "node: {:?} is no name of letters, digits, `.`, `-` and `_`",
            self.node
        );
        Ok(())
    }

    fn check(&self) -> anyhow::Result<()> {
        self.check_node()?;
        for name in &self.subprotocols.0 {
            // RFC 6455 section 4.1: a token of RFC 9110 section 5.6.2.
            let is_token =
                !name.is_empty() && name.bytes().all(|b| b.is_ascii_graphic() && !b"\"(),/:;<=>?@[\\]{}".contains(&b));
            ensure!(is_token, "subprotocols: {name:?} is not a token (RFC 9110)");
        }
        for origin in self.origins.0.iter().filter(|origin| *origin != "null") {
            // An extension's origin is of a scheme of its own: `chrome-extension://…`.
            let authority = origin.split_once("://").map(|(_, authority)| authority.trim_end_matches('/'));
            let is_origin = authority.is_some_and(|text| Authority::parse(text).is_some());
            ensure!(
                is_origin,
                "origins: {origin:?} is not an origin such as https://app.example.com or https://h:8443"
            );
        }
        for origin in &self.dev_origins.0 {
            ensure!(
                gateway::may_be_dev_origin(origin),
                "dev_origins: {origin:?} is no origin as http://localhost:3000; names below localhost are refused"
            );
        }
        for host in self.hosts.0.iter().filter(|host| *host != "*") {
            let name = host.strip_prefix('.').unwrap_or(host);
            let is_host = Authority::parse(name).is_some_and(|authority| authority.host == name);
            ensure!(is_host, "hosts: {host:?} is not a host name such as example.com, without a port");
        }
        ensure!(
            !self.api_on_listen || !self.api_token_file.as_os_str().is_empty(),
            "api_on_listen: publishers need a token: set api_token_file"
        );
        for need in &self.ready_needs.0 {
            ensure!(need == "link", "ready_needs: {need:?} is no condition; link is the only one");
        }
        self.check_listeners()?;
        super::log::parse_filter(&self.log)?;
        self.check_numbers()
    }

    fn check_listeners(&self) -> anyhow::Result<()> {
        super::acme::check(self)?;
        super::certificates::link_pairs(self)?;
        ensure!(
            self.link_tls_certs.0.is_empty() || !self.link_tcp.is_empty(),
            "link_tls_certs: they are for the link over TCP (link_tcp), and there is none"
        );
        self.check_redirect()?;
        let has_certificates = self.sources.makes_certificate() || !super::certificates::pairs(self)?.is_empty();
        ensure!(
            self.tls_listen.0.is_none() || has_certificates,
            "tls_listen: TLS needs a certificate and its key (tls_certs)"
        );
        ensure!(
            self.listen.0.is_some() || self.tls_listen.0.is_some(),
            "listen: it is off, and so is tls_listen: set one of them"
        );
        Ok(())
    }

    fn check_numbers(&self) -> anyhow::Result<()> {
        ensure!(self.shards <= 256, "shards: at most 256, not {}", self.shards);
        if let MemoryBudget::Size(size) = self.memory_budget {
            let least = pushring::SHARD_MEMORY_BYTES_MIN * self.shards.max(1);
            ensure!(size.0 >= least, "memory_budget: at least {} for {} shards", Size(least), self.shards.max(1));
        }
        let positive = [
            ("connections_max", self.connections_max),
            ("message_bytes_max", self.message_bytes_max.0),
            ("header_count_max", self.header_count_max),
            ("tls_handshakes_per_turn", self.tls_handshakes_per_turn as usize),
            ("pipelined_bytes_max", self.pipelined_bytes_max.0),
            ("linger_bytes_max", self.linger_bytes_max.0),
            ("outbound_bytes_max", self.outbound_bytes_max.0),
            ("inbox_commands_max", self.inbox_commands_max as usize),
            ("inbox_bytes_max", self.inbox_bytes_max.0),
            ("head_bytes_max", self.head_bytes_max.0),
            ("tcp_notsent_lowat", self.tcp_notsent_lowat.0),
            ("pings_unanswered_max", self.pings_unanswered_max.into()),
            ("head_timeout", self.head_timeout.0 as usize),
            ("body_timeout", self.body_timeout.0 as usize),
            ("body_bytes_per_s_min", self.body_bytes_per_s_min.0),
            ("http_idle_timeout", self.http_idle_timeout.0 as usize),
            ("register_timeout", self.register_timeout.0 as usize),
            ("close_timeout", self.close_timeout.0 as usize),
        ];
        for (key, value) in positive {
            ensure!(value > 0, "{key}: must be more than 0");
        }
        ensure!((1..=9).contains(&self.deflate_level), "deflate_level: from 1 to 9");
        ensure!((1..=9).contains(&self.deflate_push_level), "deflate_push_level: from 1 to 9");
        ensure!((9..=15).contains(&self.deflate_window_bits), "deflate_window_bits: from 9 to 15");
        ensure!(
            self.header_count_max <= pushring::internals::http::HEADERS_MAX,
            "header_count_max: at most {}",
            pushring::internals::http::HEADERS_MAX
        );
        ensure!(self.resume_window.0 <= 24 * 3_600_000, "resume_window: at most 24h");
        ensure!(self.ping_interval.0 <= 24 * 3_600_000, "ping_interval: at most 24h");
        ensure!((1000..=600_000).contains(&self.response_timeout.0), "response_timeout: from 1s to 10m");
        Ok(())
    }

    fn settings(&self, secrets: Secrets) -> anyhow::Result<Settings> {
        let mut settings = node::settings(&self.node, self.dialect.into());
        settings.hub = self.hub_access(&secrets)?;
        (settings.secret, settings.second_secret) = (secrets.first, secrets.second);
        settings.hosts = self.host_policy();
        settings.origins = self.origins.0.clone();
        settings.dev_origins = self.dev_origins.0.clone();
        settings.trusted_proxies = ranges("trusted_proxies", &self.trusted_proxies)?;
        settings.proxy_protocol_from = ranges("proxy_protocol_from", &self.proxy_protocol_from)?;
        settings.behind_tls = self.behind_tls;
        settings.redirect_to_tls = self.redirect_port();
        settings.expose_local = match self.expose_local {
            Exposure::Dialect => settings.expose_local,
            Exposure::Always => true,
            Exposure::Never => false,
        };
        if !self.response_timeout.0.is_multiple_of(1000) {
            bail!("response_timeout: whole seconds only");
        }
        settings.response_timeout_s = (self.response_timeout.0 / 1000) as u32;
        Ok(settings)
    }

    fn host_policy(&self) -> HostPolicy {
        match self.hosts.0.iter().any(|name| name == "*") {
            true => HostPolicy::Any,
            false => HostPolicy::ByListener(self.hosts.0.clone()),
        }
    }

    fn admission(&self) -> anyhow::Result<admission::ConnectionLimits> {
        ensure!(self.topics_per_channel_max <= usize::from(u16::MAX), "topics_per_channel_max: at most {}", u16::MAX);
        // A token bucket counts in microseconds.
        ensure!(self.handshakes_per_ip_per_s_max <= 1_000_000, "handshakes_per_ip_per_s_max: at most 1000000");
        Ok(admission::ConnectionLimits {
            connections_max: self.connections_max,
            connections_per_ip_max: self.connections_per_ip_max,
            connections_per_process_max: self.connections_per_process_max,
            handshakes_per_ip_per_s_max: self.handshakes_per_ip_per_s_max,
            per_ip_exempt: ranges("per_ip_exempt", &self.per_ip_exempt)?,
            turned_away_max: self.turned_away_max,
            subscriptions_max: self.subscriptions_max,
        })
    }
}

fn ranges(key: &str, list: &WordList) -> anyhow::Result<Vec<IpPrefix>> {
    list.0.iter().map(|range| range.parse().with_context(|| format!("{key}: {range:?}"))).collect()
}

#[cfg(test)]
mod tests;
