//! The listener, TCP's limits, the rules of entry, and the proxies in front.

use super::{Finding, Level};
use crate::daemon::config::{DaemonConfig, Redirect};
use crate::daemon::doctor::facts::{ListenResult, Network, SideListener};
use crate::daemon::plain::plain;
use crate::daemon::table::bytes;
use crate::daemon::units::{Size, Span};
use pushring::internals::driver::listen::BACKLOG;
use pushring::{FleetProbe, IpPrefix};
use std::net::SocketAddr;

/// The kernel's memory for a channel with data to send.
const CHANNEL_BYTES_MIN: u64 = 4 << 10;

/// How long proxies let a connection be silent, by default or as packages configure them, and the setting that says so.
const PROXIES: [(&str, u64, &str); 5] = [
    ("HAProxy", 50, "timeout tunnel (else timeout client and server)"),
    ("nginx", 60, "proxy_read_timeout"),
    ("AWS ALB", 60, "idle_timeout.timeout_seconds"),
    ("Cloudflare", 100, "not to be changed below the Enterprise plan"),
    ("Azure Load Balancer", 240, "idleTimeoutInMinutes"),
];

/// Whether the daemon can listen at `address`, as `setting` tells it to.
pub(super) fn listener(check: &'static str, setting: &str, address: SocketAddr, listener: &ListenResult) -> Finding {
    let port = address.port();
    let problem = |words: String, fix: String| Finding::new(Level::Problem, check, words, fix);
    match listener {
        ListenResult::Free => Finding::ok(check, format!("{address} is free")),
        ListenResult::Ours { pid } => Finding::ok(check, format!("{address} is served by pushring, process {pid}")),
        ListenResult::InUse(Some((name, pid))) => problem(
            format!("{address} is in use by {name}, process {pid}"),
            format!("stop it, or choose another --{setting}"),
        ),
        ListenResult::InUse(None) => problem(
            format!("{address} is in use by another program"),
            format!("find it with ss -ltnp 'sport = :{port}' as root and stop it, or choose another --{setting}"),
        ),
        ListenResult::NotAllowed => problem(
            format!("port {port} needs privileges"),
            format!(
                "AmbientCapabilities=CAP_NET_BIND_SERVICE in the unit, or sysctl -w net.ipv4.ip_unprivileged_port_start={port}"
            ),
        ),
        ListenResult::NotHere => problem(
            format!("{} is no address of this machine", address.ip()),
            format!("one of those that ip -brief address shows, or --{setting} 0.0.0.0:{port} for all"),
        ),
        ListenResult::Fault(why) => problem(why.clone(), format!("choose another --{setting}")),
    }
}

/// Whether operators or backends will be served.
pub(super) fn side_listener(side: &SideListener) -> Finding {
    let found = listener(side.check, side.flag, side.address, &side.result);
    Finding { level: found.level.min(Level::Warning), ..found }
}

/// Whether processes can attach over TCP, and whether third parties could read along.
pub(super) fn link_tcp(config: &DaemonConfig, state: &ListenResult) -> Option<Finding> {
    const CHECK: &str = "link_tcp";
    let address: SocketAddr = config.link_tcp.parse().ok()?;
    let finding = listener(CHECK, "link-tcp", address, state);
    let is_seen = !address.ip().to_canonical().is_loopback() && config.link_tls_certs.0.is_empty();
    if finding.level != Level::Ok || !is_seen {
        return Some(finding);
    }
    let words = format!("{address} is not encrypted: its token and all messages can be read on the network");
    let fix = format!(
        "--link-tls-certs CHAIN.pem:KEY.pem, --link-tcp 127.0.0.1:{} behind a tunnel, or --link for this machine",
        address.port()
    );
    Some(Finding::new(Level::Warning, CHECK, words, fix))
}

/// The system's settings of TCP.
pub(super) fn tcp(config: &DaemonConfig, network: &Network) -> Vec<Finding> {
    let findings = [
        backlog(network),
        syn_backlog(network),
        ports(config, network),
        reserved(config, network),
        conntrack(config, network),
        tcp_memory(config, network),
        send_buffer(config, network),
    ];
    let findings: Vec<_> = findings.into_iter().flatten().collect();
    if findings.is_empty() { vec![Finding::ok("tcp", "as it should be")] } else { findings }
}

fn backlog(network: &Network) -> Option<Finding> {
    let somaxconn = network.somaxconn.filter(|max| *max < BACKLOG as u64)?;
    // Some distributions' old default; a few thousand clients that come back together do not fit.
    let level = if somaxconn < 1024 { Level::Warning } else { Level::Note };
    let words = format!("{somaxconn} clients may wait for a shard to accept them, where {BACKLOG} are asked for");
    Some(Finding::new(level, "backlog", words, format!("sysctl -w net.core.somaxconn={BACKLOG}")))
}

fn syn_backlog(network: &Network) -> Option<Finding> {
    const CHECK: &str = "half-open clients";
    if network.syncookies == Some(0) {
        let words = "without SYN cookies a flood of half-open clients keeps all others out";
        return Some(Finding::new(Level::Warning, CHECK, words, "sysctl -w net.ipv4.tcp_syncookies=1"));
    }
    let backlog = network.syn_backlog.filter(|backlog| *backlog < 1024)?;
    let words = format!("after {backlog} at a time clients connect by SYN cookies, without their TCP options");
    Some(Finding::new(Level::Note, CHECK, words, "sysctl -w net.ipv4.tcp_max_syn_backlog=4096"))
}

fn ports(config: &DaemonConfig, network: &Network) -> Option<Finding> {
    let (first, last) = network.port_range?;
    let count = (first..=last).filter(|port| !is_listed(&network.reserved_ports, *port)).count();
    if count >= config.connections_max {
        return None;
    }
    let words = format!(
        "a proxy on this machine opens at most {count} connections to one address of ours, of {}",
        config.connections_max
    );
    let fix = "sysctl -w net.ipv4.ip_local_port_range='1024 65535', and let it use several addresses \
               (nginx proxy_bind, 127.0.0.2 and on); nothing, without a proxy";
    Some(Finding::new(Level::Note, "ephemeral ports", words, fix))
}

fn reserved(config: &DaemonConfig, network: &Network) -> Option<Finding> {
    let (first, last) = network.port_range?;
    let link: Option<SocketAddr> = config.link_tcp.parse().ok();
    let ours = [Some(config.address().port()), link.map(|address| address.port())].into_iter().flatten();
    let is_open =
        |port: &u16| *port != 0 && (first..=last).contains(port) && !is_listed(&network.reserved_ports, *port);
    let ports: Vec<String> = ours.filter(is_open).map(|port| port.to_string()).collect();
    if ports.is_empty() {
        return None;
    }
    let words = format!("any outgoing connection may take port {} while the daemon is down", ports.join(" and "));
    let list = format!("{},{}", network.reserved_ports, ports.join(","));
    let fix = format!("sysctl -w net.ipv4.ip_local_reserved_ports={}", list.trim_start_matches(','));
    Some(Finding::new(Level::Note, "port", words, fix))
}

/// Returns whether `port` is in a list as `8080,9000-9010`.
fn is_listed(list: &str, port: u16) -> bool {
    let number = |text: &str| text.trim().parse::<u16>().ok();
    list.split(',').any(|range| match range.split_once('-') {
        Some((first, last)) => {
            number(first).zip(number(last)).is_some_and(|(first, last)| (first..=last).contains(&port))
        }
        None => number(range) == Some(port),
    })
}

fn conntrack(config: &DaemonConfig, network: &Network) -> Option<Finding> {
    let (max, tracked) = network.conntrack?;
    let wanted = config.connections_max as u64;
    if max.saturating_sub(tracked) >= wanted {
        return None;
    }
    let words = format!("the firewall tracks {tracked} connections of at most {max}: beyond that clients are dropped");
    let fix = format!("sysctl -w net.netfilter.nf_conntrack_max={}, or do not track our port", tracked + 2 * wanted);
    Some(Finding::new(Level::Warning, "conntrack", words, fix))
}

fn tcp_memory(config: &DaemonConfig, network: &Network) -> Option<Finding> {
    let max = network.tcp_memory_bytes?;
    let wanted = config.connections_max as u64 * CHANNEL_BYTES_MIN;
    if max >= wanted {
        return None;
    }
    let words = format!(
        "all sockets together may hold {}, too little for {} that are written to",
        bytes(max),
        config.connections_max
    );
    let pages = wanted.div_ceil(4096);
    let fix =
        format!("sysctl -w net.ipv4.tcp_mem='{} {pages} {}', or a smaller --connections-max", pages / 2, pages * 2);
    Some(Finding::new(Level::Note, "tcp memory", words, fix))
}

fn send_buffer(config: &DaemonConfig, network: &Network) -> Option<Finding> {
    let max = network.send_buffer_bytes_max?;
    let wanted = config.tcp_notsent_lowat.0 as u64;
    if max >= wanted {
        return None;
    }
    let words =
        format!("a socket holds at most {}, less than --tcp-notsent-lowat {}", bytes(max), config.tcp_notsent_lowat);
    let fix = "sysctl -w net.ipv4.tcp_wmem='4096 16384 4194304'";
    Some(Finding::new(Level::Note, "send buffers", words, fix))
}

/// The clients that are let in, and the proxies that are trusted.
pub(super) fn entry(config: &DaemonConfig) -> Vec<Finding> {
    const CHECK: &str = "proxies";
    let mut findings = Vec::new();
    let is_loopback = config.address().ip().to_canonical().is_loopback();
    if is_loopback && config.hosts.0.is_empty() {
        let words =
            "on this address only localhost and IP addresses are answered: a proxy that passes another Host is refused";
        findings.push(Finding::new(
            Level::Note,
            CHECK,
            words,
            "--hosts example.com, with the names that clients use; nothing, without a proxy",
        ));
    }
    if !is_loopback && config.hosts.0.is_empty() {
        let words = "any Host is answered, so any site's name may be pointed here";
        findings.push(Finding::new(Level::Note, CHECK, words, "--hosts example.com, with the names that clients use"));
    }
    if config.trusted_proxies.0.is_empty() && config.proxy_protocol_from.0.is_empty() {
        let words = "X-Forwarded-For is not believed: behind a proxy all clients count as one";
        findings.push(Finding::new(
            Level::Note,
            CHECK,
            words,
            "--trusted-proxies 127.0.0.1, or what the proxy's address is; nothing, without one",
        ));
    }
    let is_anybody = |range: &&String| range.parse::<IpPrefix>().is_ok_and(|prefix| prefix.is_everybody());
    if let Some(range) = config.proxy_protocol_from.0.iter().find(is_anybody) {
        let words =
            format!("proxy_protocol_from holds {range}: any client there may claim any address in a PROXY header");
        findings.push(Finding::new(
            Level::Warning,
            CHECK,
            words,
            "--proxy-protocol-from 10.0.0.2, the balancer's address",
        ));
    }
    let is_plain = config.listen.0.is_some_and(|address| !address.ip().to_canonical().is_loopback());
    if is_plain && !config.behind_tls && config.tls_redirect == Redirect::Off {
        let words = "login cookies go over connections without TLS";
        let fix = "TLS in front, and --behind-tls; or --tls-listen, and --tls-redirect";
        findings.push(Finding::new(Level::Note, CHECK, words, fix));
    }
    findings
}

/// Proxies cut connections on which nothing moves.
pub(super) fn idle_timeouts(config: &DaemonConfig) -> Finding {
    const CHECK: &str = "idle timeouts";
    let interval = config.ping_interval;
    let cuts = |limit: &u64| interval.0 == 0 || Span::seconds(*limit).0 <= interval.0;
    let cutting: Vec<_> = PROXIES.iter().filter(|(_, limit, _)| cuts(limit)).collect();
    if cutting.is_empty() {
        let all = PROXIES.map(|(name, limit, _)| format!("{name} {limit} s")).join(", ");
        return Finding::ok(CHECK, format!("pings within {interval} keep silent channels alive ({all})"));
    }
    let names = cutting.iter().map(|(name, limit, setting)| format!("{name} after {limit} s ({setting})"));
    let names = names.collect::<Vec<_>>().join(", ");
    let pings = if interval.0 == 0 { "no pings".to_owned() } else { format!("pings only every {interval}") };
    Finding::new(Level::Warning, CHECK, format!("{pings}: silent channels are cut by {names}"), "--ping-interval 25s")
}

/// The answer of the fleet's NATS.
pub(super) fn fleet(config: &DaemonConfig, probed: &Result<FleetProbe, String>) -> Finding {
    let new = |level, words: String, fix: &str| Finding::new(level, "fleet", words, fix);
    let probed = match probed {
        Ok(probed) => probed,
        Err(why) => {
            let words = format!("NATS is not reached: {why}");
            return new(
                Level::Warning,
                words,
                "start it, or mend fleet_nats and fleet_credentials_file; until then others are not reached",
            );
        }
    };
    let FleetProbe { version, payload_bytes_max, round_trip, refused, nodes, spoken_elsewhere } = probed;
    if *refused > 0 {
        let words = format!("NATS does not permit what a node does ({refused} refused)");
        return new(Level::Problem, words, "the permissions of docs/FLEET.md for this node's name");
    }
    if let Some(spoken) = spoken_elsewhere {
        let words = format!("a node's messages are of version {spoken}, which this version does not speak");
        return new(Level::Problem, words, "bring all nodes to one version of pushring; `pushring fleet` names them");
    }
    let others: Vec<String> = nodes
        .iter()
        .filter(|(_, version)| *version != env!("CARGO_PKG_VERSION"))
        .map(|(node, version)| format!("{} ({})", plain(node), plain(version)))
        .collect();
    if !others.is_empty() {
        let words = format!("nodes of another version than {}: {}", env!("CARGO_PKG_VERSION"), others.join(", "));
        return new(Level::Note, words, "they understand each other; bring them to one version when you can");
    }
    let (message, most) = (config.message_bytes_max.0, *payload_bytes_max);
    if message > most {
        let words = format!("NATS takes messages of {} at most, channels of {}", Size(most), Size(message));
        return new(Level::Note, words, "max_payload in NATS' settings, if larger ones are to reach other nodes");
    }
    let (us, nodes) = (round_trip.as_micros(), nodes.len());
    Finding::ok("fleet", format!("nats-server {version}, there and back in {us} µs; {nodes} other nodes were heard"))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{expect, found};
    use super::*;

    #[test]
    fn listeners() {
        for (state, level, words, fix) in [
            (ListenResult::Ours { pid: 7 }, Level::Ok, "served by pushring, process 7", ""),
            (
                ListenResult::InUse(Some(("nginx".to_owned(), 7))),
                Level::Problem,
                "by nginx, process 7",
                "another --listen",
            ),
            (ListenResult::InUse(None), Level::Problem, "another program", "ss -ltnp 'sport = :8080'"),
            (ListenResult::NotAllowed, Level::Problem, "needs privileges", "CAP_NET_BIND_SERVICE"),
            (ListenResult::NotHere, Level::Problem, "127.0.0.1 is no address", "0.0.0.0:8080"),
            (ListenResult::Fault("odd".to_owned()), Level::Problem, "odd", "--listen"),
        ] {
            expect(level, words, fix, |_, facts| facts.listener = state);
        }
    }

    #[test]
    fn fleets() {
        let probe = FleetProbe {
            version: "2.10".to_owned(),
            payload_bytes_max: 64 << 20,
            round_trip: std::time::Duration::from_micros(90),
            refused: 0,
            nodes: [("b".to_owned(), env!("CARGO_PKG_VERSION").to_owned())].into(),
            spoken_elsewhere: None,
        };
        let with = |change: fn(&mut FleetProbe)| {
            let mut probe = probe.clone();
            change(&mut probe);
            probe
        };
        let other: fn(&mut FleetProbe) = |probe| drop(probe.nodes.insert("c".to_owned(), "0.0.1\u{1b}".to_owned()));
        for (change, level, words, fix) in [
            ((|_| {}) as fn(&mut FleetProbe), Level::Ok, "90 µs; 1 other nodes were heard", ""),
            (|probe| probe.refused = 2, Level::Problem, "2 refused", "permissions"),
            (|probe| probe.payload_bytes_max = 1, Level::Note, "NATS takes messages of", "max_payload"),
            (|probe| probe.spoken_elsewhere = Some(9), Level::Problem, "of version 9", "one version"),
            (other, Level::Note, "c (0.0.1\\u{1b})", "one version"),
        ] {
            let probe = with(change);
            expect(level, words, fix, |_, facts| facts.fleet = Some(Ok(probe)));
        }
        expect(Level::Warning, "not reached: no", "fleet_nats", |_, facts| facts.fleet = Some(Err("no".to_owned())));
    }

    #[test]
    fn settings_of_tcp() {
        expect(Level::Warning, "128 clients may wait", "net.core.somaxconn=4096", |_, facts| {
            facts.network.somaxconn = Some(128);
        });
        expect(Level::Note, "2048 clients", "somaxconn", |_, facts| facts.network.somaxconn = Some(2048));
        expect(Level::Warning, "SYN cookies", "tcp_syncookies=1", |_, facts| facts.network.syncookies = Some(0));
        expect(Level::Note, "after 128", "tcp_max_syn_backlog", |_, facts| facts.network.syn_backlog = Some(128));
        expect(Level::Note, "at most 1000 connections", "ip_local_port_range", |_, facts| {
            facts.network.port_range = Some((60_000, 60_999));
        });
        expect(Level::Warning, "tracks 5000", "nf_conntrack_max=205000", |_, facts| {
            facts.network.conntrack = Some((65_536, 5000));
        });
        expect(Level::Note, "64.0 MiB", "tcp_mem='50000 100000 200000'", |_, facts| {
            facts.network.tcp_memory_bytes = Some(64 << 20);
        });
        expect(Level::Note, "at most 64.0 KiB", "tcp_wmem", |_, facts| {
            facts.network.send_buffer_bytes_max = Some(64 << 10);
        });
    }

    #[test]
    fn ports_that_others_may_take() {
        let port = |port: u16, reserved: &str| {
            let (mut config, mut network) =
                (DaemonConfig::default(), crate::daemon::doctor::facts::Facts::fine().network);
            config.listen = crate::daemon::config::Listen::at(([127, 0, 0, 1], port).into());
            network.reserved_ports = reserved.to_owned();
            super::reserved(&config, &network).and_then(|finding| finding.fix)
        };
        let fix = |list: &str| Some(format!("sysctl -w net.ipv4.ip_local_reserved_ports={list}"));
        assert_eq!(port(40_000, ""), fix("40000"));
        assert_eq!(port(40_000, "9000-9010"), fix("9000-9010,40000"));
        assert_eq!(port(40_000, "9000,39000-41000"), None);
        assert_eq!((port(8080, ""), port(0, "")), (None, None));
        expect(Level::Note, "take port 40000 while", "ip_local_reserved_ports=8080,40000", |config, facts| {
            config.link_tcp = "127.0.0.1:40000".to_owned();
            config.link_token_file = "/etc/pushring/link-token".into();
            facts.network.reserved_ports = "8080".to_owned();
        });
        // Reserved ports are not available to a proxy's connections.
        let mut network = crate::daemon::doctor::facts::Facts::fine().network;
        network.reserved_ports = "32868-60999".to_owned();
        let finding = ports(&DaemonConfig { connections_max: 1000, ..DaemonConfig::default() }, &network).unwrap();
        assert!(finding.found.contains("at most 100 connections"), "{finding:?}");
    }

    #[test]
    fn the_link_over_tcp() {
        let with = |address: &str, state: ListenResult| {
            let config = DaemonConfig { link_tcp: address.to_owned(), ..DaemonConfig::default() };
            link_tcp(&config, &state).unwrap()
        };
        assert_eq!(with("127.0.0.1:9001", ListenResult::Free).level, Level::Ok);
        assert_eq!(with("127.0.0.1:9001", ListenResult::Ours { pid: 1 }).level, Level::Ok);
        let finding = with("0.0.0.0:9001", ListenResult::Free);
        assert!(finding.level == Level::Warning && finding.found.contains("not encrypted"), "{finding:?}");
        let link_tls_certs = "a:b".parse().unwrap();
        let config = DaemonConfig { link_tcp: "0.0.0.0:9001".to_owned(), link_tls_certs, ..DaemonConfig::default() };
        assert_eq!(link_tcp(&config, &ListenResult::Free).unwrap().level, Level::Ok);
        let finding = with("0.0.0.0:9001", ListenResult::InUse(None));
        assert!(finding.level == Level::Problem && finding.fix.unwrap().contains("--link-tcp"));
    }

    #[test]
    fn cookies_that_go_without_tls() {
        let is_told = |listen: Option<[u8; 4]>, tls: bool, redirect: Redirect| {
            let at = |ip: [u8; 4]| crate::daemon::config::Listen::at((ip, 8080).into());
            let config = DaemonConfig {
                listen: listen.map_or(crate::daemon::config::Listen(None), at),
                tls_listen: if tls { at([0; 4]) } else { crate::daemon::config::Listen(None) },
                tls_redirect: redirect,
                ..DaemonConfig::default()
            };
            entry(&config).iter().any(|finding| finding.found.contains("without TLS"))
        };
        assert!(is_told(Some([0; 4]), false, Redirect::Off) && is_told(Some([0; 4]), true, Redirect::Off));
        assert!(!is_told(Some([127, 0, 0, 1]), true, Redirect::Off));
        assert!(!is_told(Some([0; 4]), true, Redirect::On), "clients are sent on");
        assert!(!is_told(None, true, Redirect::Off), "there is TLS alone");
    }

    #[test]
    fn proxies_and_silence() {
        expect(Level::Warning, "no pings: silent channels are cut by HAProxy after 50 s", "25s", |config, _| {
            config.ping_interval = Span(0);
        });
        expect(Level::Warning, "AWS ALB after 60 s", "25s", |config, _| config.ping_interval = Span::seconds(60));
        let words = found(|config, _| config.ping_interval = Span::seconds(55)).found;
        assert!(words.contains("HAProxy") && !words.contains("nginx"), "{words}");
        expect(Level::Ok, "pings within 10s", "", |config, _| config.ping_interval = Span::seconds(10));
    }

    #[test]
    fn whoever_may_send_a_header_may_be_anybody() {
        for range in ["0.0.0.0/0", "::/0"] {
            expect(Level::Warning, range, "the balancer's address", |config, _| {
                config.trusted_proxies = "127.0.0.1".parse().unwrap();
                config.proxy_protocol_from = range.parse().unwrap();
            });
        }
    }

    #[test]
    fn who_is_answered_and_believed() {
        let all = |listen: &str, hosts: &str, proxies: &str, behind_tls: bool| {
            let config = DaemonConfig {
                listen: listen.parse().unwrap(),
                hosts: hosts.parse().unwrap(),
                trusted_proxies: proxies.parse().unwrap(),
                behind_tls,
                ..DaemonConfig::default()
            };
            let findings = entry(&config);
            assert!(findings.iter().all(|finding| finding.level == Level::Note && finding.fix.is_some()));
            findings.into_iter().map(|finding| finding.found).collect::<Vec<_>>().join("; ")
        };
        let told = all("127.0.0.1:80", "", "", false);
        assert!(told.contains("another Host is refused") && told.contains("count as one"), "{told}");
        let told = all("0.0.0.0:80", "", "", false);
        assert!(told.contains("any Host") && told.contains("without TLS"), "{told}");
        assert_eq!(all("0.0.0.0:80", "a.b", "10.0.0.0/8", true), "");
        assert_eq!(all("[::1]:80", "a.b", "::1", false), "");
    }
}
