//! Settings as files, flags and the environment give them.

use super::*;
use crate::daemon::memory::tests::Root;
use pushring::link;

#[test]
fn what_is_printed_reads_back() {
    let config = DaemonConfig { origins: "https://a.b, https://c.d".parse().unwrap(), ..DaemonConfig::default() };
    assert_eq!(DaemonConfig::layered(&write(&config, false).unwrap(), &SettingsFlags::default()).unwrap(), config);
}

#[test]
fn flags_win_over_the_file() {
    let flags = SettingsFlags { shards: Some(2), hosts: Some("a.b".parse().unwrap()), ..SettingsFlags::default() };
    let file = "shards = 1\nnode = \"x.os\"\nhosts = [\"c.d\", \"e.f\"]\nhead_timeout = \"3s\"\nbody_bytes_max = 7";
    let config = DaemonConfig::layered(file, &flags).unwrap();
    assert_eq!((config.shards, config.node.as_str()), (2, "x.os"));
    assert_eq!(config.hosts.0, ["a.b"]);
    assert_eq!((config.head_timeout, config.body_bytes_max), (Span::seconds(3), Size(7)));
    assert_eq!(config.body_timeout, DaemonConfig::default().body_timeout);
}

#[test]
fn errors_name_the_key() {
    for (file, words) in [
        ("node = \"a;b\"", "node"),
        ("shards = 257", "shards"),
        ("shards = 2\nmemory_budget = \"7MiB\"", "memory_budget"),
        ("ping_interval = \"1s\"\nconnections_max = 0", "connections_max"),
        ("trusted_proxies = [\"10.0.0.0/33\"]", "10.0.0.0/33"),
        ("proxy_protocol_from = [\"balancer\"]", "proxy_protocol_from"),
        ("per_ip_exempt = [\"::/129\"]", "per_ip_exempt"),
        ("response_timeout = \"1500ms\"", "response_timeout"),
        ("response_timeout = \"11m\"", "response_timeout"),
        ("subprotocols = [\"chat v1\"]", "subprotocols"),
        ("origins = [\"app.example.com\"]", "origins"),
        ("origins = [\"https://app.example.com/page\"]", "origins"),
        ("hosts = [\"example.com:8080\"]", "hosts"),
        ("hosts = [\"http://example.com\"]", "hosts"),
        ("deflate_level = 0", "deflate_level"),
        ("deflate_push_level = 10", "deflate_push_level"),
        ("deflate_window_bits = 8", "deflate_window_bits"),
        ("tcp_user_timeout = \"600h\"", "tcp_user_timeout"),
        ("log = \"verbose\"", "verbose"),
    ] {
        let config = DaemonConfig::layered(file, &SettingsFlags::default()).unwrap();
        let error = config.broker(Secrets::default()).unwrap_err();
        assert!(format!("{error:#}").contains(words), "{error:#}");
    }
}

/// TOML's numbers are those of an i64.
#[test]
fn a_number_that_no_file_could_say_is_named() {
    let flags = SettingsFlags { connections_max: Some(usize::MAX), ..SettingsFlags::default() };
    for error in [DaemonConfig::layered("", &flags).unwrap_err(), DaemonConfig::load(None, &flags).unwrap_err()] {
        assert!(error.to_string().starts_with("connections_max: at most 9223372036854775807"), "{error:#}");
    }
}

#[test]
fn a_file_that_cannot_be_read_is_told_why() {
    let root = Root::new("settings", &[("there", "shards = 1")]);
    let latin = root.0.join("latin.toml");
    std::fs::write(&latin, b"node = \"\xe4.os\"").unwrap();
    for (file, words) in [("none", "pushring init"), (".", "directory"), ("latin.toml", "no text in UTF-8")] {
        let error = DaemonConfig::load(Some(&root.0.join(file)), &SettingsFlags::default()).unwrap_err();
        let error = format!("{error:#}");
        assert!(error.contains(words) && error.contains(root.0.to_str().unwrap()), "{error}");
        assert_eq!(error.contains("init"), file == "none", "{error}");
    }
}

#[test]
fn the_defaults_are_the_librarys_own() {
    let (ours, theirs) = (DaemonConfig::default().broker(Secrets::default()).unwrap(), pushring::Config::default());
    assert_eq!(format!("{:?}", ours.shard), format!("{:?}", theirs.shard));
    assert_eq!(format!("{:?}", ours.admission), format!("{:?}", theirs.admission));
    assert_eq!(format!("{:?}", ours.inbox), format!("{:?}", theirs.inbox));
    assert_eq!(format!("{:?}", ours.tcp), format!("{:?}", theirs.tcp));
}

#[test]
fn a_link_is_where_it_is_told_to_be() {
    let link = |file: &str, token: Option<&str>| {
        let config = DaemonConfig::layered(file, &SettingsFlags::default()).unwrap();
        config.link(token.map(|text| link::LinkToken::new(text).unwrap())).map_err(|error| format!("{error:#}"))
    };
    assert!(link("", None).unwrap().is_none());
    let unix = link("link = \"/run/x\"\nowner_grace = \"3s\"\nbody_bytes_max = \"20MiB\"", None).unwrap().unwrap();
    assert_eq!((unix.path, unix.tcp), (Some("/run/x".into()), None));
    assert_eq!((unix.owner_grace.as_secs(), unix.blob_bytes_max), (3, 20 << 20));
    assert!(link("link_tcp = \"127.0.0.1:7\"", None).unwrap_err().contains("link_token_file"));
    assert!(link("link_tcp = \"localhost:9001\"", None).unwrap_err().contains("write 127.0.0.1:9001"));
    let tcp = "link_tcp = \"127.0.0.1:7\"\nlink_token_file = \"x\"";
    assert!(link(tcp, Some("0123456789abcdef")).unwrap().unwrap().token.is_some());
    assert!(link("link_peers_max = 0", None).unwrap_err().contains("link_peers_max"));
    assert!(link("head_bytes_max = \"129KiB\"", None).is_ok());
    assert!(link("link = \"x\"\nhead_bytes_max = \"128KiB\"", None).is_ok());
    assert!(link("link = \"x\"\nhead_bytes_max = \"129KiB\"", None).unwrap_err().contains("at most 128KiB"));
    assert!(link("link = \"x\"\nmessage_bytes_max = \"2049MiB\"", None).unwrap_err().contains("2GiB"));
    let (ours, theirs) = (link("link = \"x\"", None).unwrap().unwrap(), link::LinkConfig::default());
    assert_eq!((ours.owner_grace, ours.peers_max), (theirs.owner_grace, theirs.peers_max));
    assert_eq!((ours.blob_bytes_max, ours.beat), (theirs.blob_bytes_max, theirs.beat));
}

#[test]
fn who_may_attach() {
    let access = |file: &str| DaemonConfig::layered(file, &SettingsFlags::default()).unwrap().link_access();
    assert_eq!(access("").unwrap(), link::Access { mode: 0o600, group: None });
    assert_eq!(access("link_group = \"77\"").unwrap(), link::Access { mode: 0o660, group: Some(77) });
    assert_eq!(
        access("link_group = \"root\"\nlink_mode = \"0620\"").unwrap(),
        link::Access { mode: 0o620, group: Some(0) }
    );
    assert!(format!("{:#}", access("link_group = \"no such\"").unwrap_err()).contains("no such"));
    for mode in ["660", "0600", "auto"] {
        assert!(mode.parse::<SocketMode>().is_ok(), "{mode}");
    }
    for mode in ["", "0400", "7777", "rw", "0o600"] {
        assert!(mode.parse::<SocketMode>().unwrap_err().contains("0660"), "{mode}");
    }
}

#[test]
fn addresses_without_something_are_told_what() {
    assert!(parse_address("9000").unwrap_err().contains("write 127.0.0.1:9000"));
    assert!(parse_address(":9000").unwrap_err().contains("write 127.0.0.1:9000"));
    assert!(parse_address("localhost:9000").unwrap_err().contains("not looked up"));
    for without_port in ["127.0.0.1", "::1"] {
        assert!(parse_address(without_port).unwrap_err().contains("without a port"), "{without_port}");
    }
    assert!(parse_address("[::]:0").is_ok());
}

#[test]
fn hosts_depend_on_where_we_listen() {
    let policy = |listen: &str, hosts: &str| {
        let (listen, hosts): (SocketAddr, WordList) = (listen.parse().unwrap(), hosts.parse().unwrap());
        DaemonConfig { listen: Listen::at(listen), hosts, ..DaemonConfig::default() }
            .host_policy()
            .for_listener(listen.ip())
    };
    assert_eq!(policy("127.0.0.1:0", ""), HostPolicy::Listed(vec![]));
    assert_eq!(policy("[::1]:0", "a.b"), HostPolicy::Listed(vec!["a.b".into()]));
    assert_eq!(policy("127.0.0.1:0", "*"), HostPolicy::Any);
    assert_eq!(policy("0.0.0.0:0", ""), HostPolicy::Any);
    assert_eq!(policy("0.0.0.0:0", "a.b,c.d"), HostPolicy::Listed(vec!["a.b".into(), "c.d".into()]));
}
