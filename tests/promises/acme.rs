//! A daemon gets its certificate from an authority that speaks ACME (RFC 8555): it proves over plain HTTP that the name
//! is its own, uses the certificate without a restart, and does not ask again while it has one. Against Pebble, Let's
//! Encrypt's authority for tests, where that is installed.

use crate::support;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use support::daemon::{Daemon, pushring};
use support::{PATIENCE, free_port};

const NAME: &str = "push.example.com";

/// A program that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A directory that goes with the test.
struct Directory(PathBuf);

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn start(program: &str, args: &[&str], envs: &[(&str, &str)]) -> Option<Running> {
    // `PEBBLE` names a directory with both programs.
    let places = std::env::var("PEBBLE").map_or_else(|_| String::new(), |place| place + ":");
    let path = format!("{places}{}", std::env::var("PATH").unwrap_or_default());
    let mut command = Command::new(program);
    command.env("PATH", path).args(args).envs(envs.iter().copied()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().ok().map(Running)
}

fn wait_for(what: &str, is_so: impl Fn() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < until, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The authority: its processes, its directory's URL. What it trusts of names is that all are this machine.
struct Authority {
    _resolver: Running,
    pebble: Option<Running>,
    args: [String; 4],
    port: u16,
    url: String,
    ca: PathBuf,
}

impl Authority {
    /// It starts, and knows nobody: what it is told it keeps in memory. Returns whether the program is there.
    fn start(&mut self) -> bool {
        self.pebble = None;
        // It waits some seconds before it validates, and refuses some nonces, to see that clients bear it: the latter
        // we keep.
        let args = self.args.each_ref().map(String::as_str);
        self.pebble = start("pebble", &args, &[("PEBBLE_VA_NOSLEEP", "1")]);
        let port = self.port;
        if self.pebble.is_some() {
            wait_for("the authority listens", || TcpStream::connect(("127.0.0.1", port)).is_ok());
        }
        self.pebble.is_some()
    }
}

fn authority(directory: &Path, http_port: u16) -> Option<Authority> {
    let key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let file = |name: &str| directory.join(name);
    std::fs::write(file("ca.pem"), ca.self_signed(&key).unwrap().pem()).unwrap();
    let own_key = KeyPair::generate().unwrap();
    let own = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let own = own.signed_by(&own_key, &Issuer::from_params(&ca, &key)).unwrap();
    std::fs::write(file("authority.pem"), own.pem()).unwrap();
    std::fs::write(file("authority.key"), own_key.serialize_pem()).unwrap();
    let [port, management, dns, dns_management] = [(); 4].map(|()| free_port());
    let settings = serde_json::json!({"pebble": {
        "listenAddress": format!("127.0.0.1:{port}"), "managementListenAddress": format!("127.0.0.1:{management}"),
        "certificate": file("authority.pem"), "privateKey": file("authority.key"),
        "httpPort": http_port, "tlsPort": free_port(), "ocspResponderURL": "", "externalAccountBindingRequired": false,
    }});
    std::fs::write(file("pebble.json"), settings.to_string()).unwrap();
    let (dns, dns_management) = (format!("127.0.0.1:{dns}"), format!("127.0.0.1:{dns_management}"));
    let resolver = ["-http01", "", "-https01", "", "-tlsalpn01", "", "-defaultIPv6", "", "-dns01", &dns];
    let resolver = start("pebble-challtestsrv", &[&resolver[..], &["-management", &dns_management]].concat(), &[])?;
    let args = ["-config".to_owned(), file("pebble.json").display().to_string(), "-dnsserver".to_owned(), dns];
    let (url, ca) = (format!("https://127.0.0.1:{port}/dir"), file("ca.pem"));
    let mut authority = Authority { _resolver: resolver, pebble: None, args, port, url, ca };
    authority.start().then_some(authority)
}

/// The flags of a daemon that gets its certificate there.
fn flags(authority: &Authority, http_port: u16, tls_port: u16, state: &Path) -> Vec<String> {
    [
        ("listen", format!("127.0.0.1:{http_port}")),
        ("tls-listen", format!("127.0.0.1:{tls_port}")),
        ("tls-redirect", "on".to_owned()),
        ("hosts", NAME.to_owned()),
        ("tls-acme", NAME.to_owned()),
        ("tls-acme-url", authority.url.clone()),
        ("tls-acme-ca", authority.ca.display().to_string()),
        ("tls-acme-contacts", "admin@example.com".to_owned()),
        ("tls-acme-state", state.display().to_string()),
        ("admin-listen", "off".to_owned()),
    ]
    .map(|(flag, value)| format!("--{flag}={value}"))
    .to_vec()
}

/// Takes any certificate.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        unreachable!("TLS 1.3 alone is offered")
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

/// The chain that a client is shown.
fn shown(port: u16) -> Vec<Vec<u8>> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider);
    let builder = builder.with_protocol_versions(&[&rustls::version::TLS13]).unwrap();
    let config = builder.dangerous().with_custom_certificate_verifier(Arc::new(Anybody)).with_no_client_auth();
    let mut client = ClientConnection::new(Arc::new(config), ServerName::try_from(NAME).unwrap()).unwrap();
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    while client.is_handshaking() {
        client.complete_io(&mut stream).unwrap();
    }
    client.peer_certificates().unwrap().iter().map(|certificate| certificate.to_vec()).collect()
}

fn chain_in(file: &Path) -> Vec<Vec<u8>> {
    CertificateDer::pem_file_iter(file).unwrap().map(|certificate| certificate.unwrap().to_vec()).collect()
}

#[test]
fn a_certificate_is_asked_for_used_and_kept() {
    let (http_port, tls_port) = (free_port(), free_port());
    let directory = Directory(std::env::temp_dir().join(format!("pushring-acme-{}", std::process::id())));
    std::fs::create_dir_all(&directory.0).unwrap();
    let Some(authority) = authority(&directory.0, http_port) else {
        println!("NOT RUN: there is no pebble and pebble-challtestsrv (PEBBLE names their directory)");
        return;
    };
    let state = directory.0.join("state");
    let args = flags(&authority, http_port, tls_port, &state);
    let serve = || Daemon::spawn(pushring(&["serve"]).args(&args));
    let daemon = serve();
    // Before there is one, it shows one of its own making: nothing waits for an authority.
    let first = shown(tls_port);
    assert_eq!(first.len(), 1, "one that nobody else has signed");
    let certificate = state.join("certificate.pem");
    wait_for("a certificate is there", || certificate.exists());
    let issued = chain_in(&certificate);
    assert!(issued.len() > 1, "it comes with its issuer's");
    wait_for("it is used", || shown(tls_port) == issued);
    for (file, mode) in [("", 0o700), ("certificate.pem", 0o600), ("account.json", 0o600), ("placeholder.pem", 0o600)] {
        let found = std::fs::metadata(state.join(file)).unwrap().permissions().mode() & 0o777;
        assert_eq!(found, mode, "{file}");
    }
    // Challenges are no longer answered, and plain requests are redirected.
    let asked = daemon.get("/.well-known/acme-challenge/anything", &format!("X-Unused: {NAME}\r\n"));
    assert!(asked.starts_with("HTTP/1.1 308 "), "{asked}");
    daemon.signal("TERM");
    let (code, log) = daemon.wait();
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("a certificate was issued") && !log.contains("PRIVATE KEY"), "{log}");

    // The next daemon uses the stored certificate at once, and asks for nothing.
    let daemon = serve();
    assert_eq!(shown(tls_port), issued);
    daemon.signal("TERM");
    let (_, log) = daemon.wait();
    assert!(!log.contains("a certificate was issued") && !log.contains("no certificate"), "{log}");
    assert_eq!(chain_in(&certificate), issued);
}

/// Authorities may lose accounts, or close them.
#[test]
fn an_account_that_the_authority_does_not_know_is_replaced() {
    let (http_port, tls_port) = (free_port(), free_port());
    let directory = Directory(std::env::temp_dir().join(format!("pushring-acme-account-{}", std::process::id())));
    std::fs::create_dir_all(&directory.0).unwrap();
    let Some(mut authority) = authority(&directory.0, http_port) else {
        println!("NOT RUN: there is no pebble and pebble-challtestsrv (PEBBLE names their directory)");
        return;
    };
    let state = directory.0.join("state");
    let args = flags(&authority, http_port, tls_port, &state);
    let (certificate, account) = (state.join("certificate.pem"), state.join("account.json"));
    let mut accounts = Vec::new();
    for _ in 0..2 {
        let daemon = Daemon::spawn(pushring(&["serve"]).args(&args));
        wait_for("a certificate is there", || certificate.exists());
        wait_for("it is used", || shown(tls_port) == chain_in(&certificate));
        accounts.push(std::fs::read(&account).unwrap());
        daemon.signal("TERM");
        let (_, log) = daemon.wait();
        assert!(!log.contains("no certificate was issued"), "{log}");
        std::fs::remove_file(&certificate).unwrap();
        assert!(authority.start());
    }
    assert_ne!(accounts[0], accounts[1]);
}

/// An authority that is not there is told of, and nothing else happens. However often the daemon is started, it is
/// asked no more often for that, unless the operator says so.
#[test]
fn an_authority_that_fails_is_in_nobodys_way_and_is_left_alone() {
    const FAILED: &str = "no certificate was issued error=";
    let directory = Directory(std::env::temp_dir().join(format!("pushring-acme-none-{}", std::process::id())));
    let (tls_port, nobody) = (free_port(), free_port());
    let start = |name: &str| {
        let args: Vec<String> = [
            ("listen", "127.0.0.1:0".to_owned()),
            ("tls-listen", format!("127.0.0.1:{tls_port}")),
            ("tls-acme", name.to_owned()),
            ("tls-acme-url", format!("https://127.0.0.1:{nobody}/dir")),
            ("tls-acme-state", directory.0.display().to_string()),
            ("admin-listen", "off".to_owned()),
        ]
        .map(|(flag, value)| format!("--{flag}={value}"))
        .to_vec();
        Daemon::spawn(pushring(&["demo"]).args(&args))
    };
    // Five minutes and up to a tenth, less what the attempt itself took.
    let is_first = |log: &str| {
        let pause = log.split("again_in_s=").nth(1).unwrap().split_whitespace().next().unwrap();
        (200..=330).contains(&pause.parse::<u64>().unwrap())
    };
    let stop = |mut daemon: Daemon| {
        daemon.signal("TERM");
        assert_eq!(daemon.child.wait().unwrap().code(), Some(0));
    };
    let mut daemon = start(NAME);
    assert_eq!(shown(tls_port).len(), 1);
    let mut client = daemon.connect("/echo:pushring:sys/");
    support::send(&mut client, "served all the same");
    assert_eq!(support::recv(&mut client).into_text().unwrap(), "served all the same");
    let log = daemon.log_until(FAILED);
    assert!(is_first(&log), "{log}");
    stop(daemon);
    let mut daemon = start(NAME);
    let log = daemon.log_until("no certificate was issued before this start");
    assert!(!log.contains(FAILED) && log.contains("failures.json"), "{log}");
    stop(daemon);
    // Another name has not failed, and what the operator removes is forgotten.
    let mut daemon = start("other.example.com");
    daemon.log_until(FAILED);
    stop(daemon);
    std::fs::remove_file(directory.0.join("failures.json")).unwrap();
    let mut daemon = start(NAME);
    let log = daemon.log_until(FAILED);
    assert!(is_first(&log), "{log}");
    stop(daemon);
}
