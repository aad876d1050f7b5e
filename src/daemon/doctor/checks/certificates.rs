//! The certificates of the TLS listener: whether clients will accept them, for how long and for which names, and which
//! users can read their keys.

use super::{Finding, Level};
use crate::daemon::config::DaemonConfig;
use crate::daemon::doctor::facts::{Chain, Facts, Shown, TlsFiles};
use std::net::IpAddr;

/// When an operator should hear of a certificate's end: what renews by itself has done so by then (Let's Encrypt's are
/// renewed with 30 days left).
const NEAR_END_S: u64 = 21 * DAY_S;
const DAY_S: u64 = 24 * 3600;

/// All that is found of certificates, their names and keys, and what TLS costs here.
pub(super) fn certificates(config: &DaemonConfig, facts: &Facts) -> Vec<Finding> {
    if config.tls_listen.0.is_none() {
        return Vec::new();
    }
    let (awaited, there): (Vec<_>, Vec<_>) = facts.tls.iter().partition(|files| files.is_awaited);
    let mut findings: Vec<_> = there.iter().flat_map(|files| of_files(files, facts.now_unix_s)).collect();
    findings.extend(awaited.iter().map(|_| not_issued(config)));
    let shown: Vec<&Shown> = there.iter().filter_map(|files| files.shown.as_ref().ok()).collect();
    if !shown.is_empty() {
        findings.extend(names(config, &shown));
    }
    findings.extend((!facts.has_aes).then(no_aes));
    findings.extend(validation(config));
    findings
}

/// Those of the link over TCP: processes pin them, so their issuers do not matter.
pub(super) fn of_link(facts: &Facts) -> Vec<Finding> {
    let of_pair = |files: &TlsFiles| match &files.shown {
        Ok(shown) => [Some(term(&files.chain.display().to_string(), shown, facts.now_unix_s)), key_mode(files)],
        Err(why) => {
            let fix = "mend the pair in --link-tls-certs";
            [Some(Finding::new(Level::Problem, "link's certificate", why.clone(), fix)), None]
        }
    };
    facts.link_tls.iter().flat_map(of_pair).flatten().collect()
}

fn of_files(files: &TlsFiles, now_unix_s: u64) -> Vec<Finding> {
    const CHECK: &str = "certificate";
    let name = files.chain.display();
    let shown = match &files.shown {
        Ok(shown) => shown,
        Err(why) => return vec![Finding::new(Level::Problem, CHECK, why.clone(), "mend the pair in --tls-certs")],
    };
    let mut findings = vec![term(&name.to_string(), shown, now_unix_s)];
    match shown.chain {
        Chain::Whole => {}
        Chain::OwnSignature => {
            let words = format!("{name} has signed itself: browsers refuse it, unless it was added to them");
            findings.push(Finding::new(Level::Warning, CHECK, words, "a certificate of an authority, or --tls-acme"));
        }
        Chain::Alone => {
            let words = format!("{name} holds no issuer's certificate: clients that do not have it by chance refuse");
            findings.push(Finding::new(Level::Warning, CHECK, words, "put the issuer's certificates behind it"));
        }
        Chain::Broken(at) => {
            let words = format!("in {name} certificate {at} was not issued by the one behind it: clients may refuse");
            findings.push(Finding::new(
                Level::Warning,
                CHECK,
                words,
                "the server's first, each one's issuer behind it",
            ));
        }
    }
    findings.extend(key_mode(files));
    findings
}

/// The daemon's own, of which nothing is to be mended.
fn not_issued(config: &DaemonConfig) -> Finding {
    let names = config.tls_acme.0.join(", ");
    let words = format!("none was issued for {names} yet: until then browsers refuse the daemon's own");
    Finding::new(
        Level::Note,
        "certificate",
        words,
        "start the daemon, which asks for one; its log says what came of it",
    )
}

/// From when and until when it is good.
fn term(name: &str, shown: &Shown, now_unix_s: u64) -> Finding {
    const CHECK: &str = "certificate";
    let new = |level, words: String| Finding::new(level, CHECK, words, "renew it; the daemon reads it by itself then");
    let names = shown.names.join(", ");
    if shown.not_before_unix_s > now_unix_s {
        let hours = (shown.not_before_unix_s - now_unix_s).div_ceil(3600);
        let words = format!("{name} ({names}) is good in {hours} hours only: clients refuse it until then");
        return Finding::new(Level::Problem, CHECK, words, "set this machine's clock, or wait");
    }
    let Some(left_s) = shown.not_after_unix_s.checked_sub(now_unix_s).filter(|&left_s| left_s > 0) else {
        let days = (now_unix_s - shown.not_after_unix_s) / DAY_S;
        return new(Level::Problem, format!("{name} ({names}) has expired {days} days ago: clients refuse it"));
    };
    match left_s {
        _ if left_s < NEAR_END_S => new(Level::Warning, format!("{name} ({names}) expires in {} days", left_s / DAY_S)),
        _ => Finding::ok(CHECK, format!("{name} ({names}) fits its key and is good for {} days", left_s / DAY_S)),
    }
}

/// Any user that can read the key can impersonate this server.
fn key_mode(files: &TlsFiles) -> Option<Finding> {
    const CHECK: &str = "certificate's key";
    let (mode, path) = (files.key_mode?, files.key.display());
    let (words, fix) = match mode {
        _ if mode & 0o007 != 0 => (format!("every user of this machine may use {path} (mode {mode:03o})"), "600"),
        _ if mode & 0o030 != 0 => (format!("a group may change {path} (mode {mode:03o})"), "640"),
        _ => return None,
    };
    Some(Finding::new(Level::Warning, CHECK, words, format!("chmod {fix} {path}")))
}

/// Whether there is a certificate for each name that is answered, and for apps on subdomains of their own.
fn names(config: &DaemonConfig, shown: &[&Shown]) -> Vec<Finding> {
    const CHECK: &str = "certificate's names";
    let mut findings = Vec::new();
    // Addresses are answered without being named; whether a certificate is for one is not looked at.
    let is_name = |host: &&String| *host != "*" && host.trim_matches(['[', ']']).parse::<IpAddr>().is_err();
    for host in config.hosts.0.iter().filter(is_name) {
        let host = host.to_ascii_lowercase();
        let (wanted, probe) = match host.strip_prefix('.') {
            Some(parent) => (format!("*.{parent}"), format!("label.{parent}")),
            None => (host.clone(), host.clone()),
        };
        if !shown.iter().any(|shown| shown.is_for(&probe)) {
            let words =
                format!("no certificate is for {wanted}, which hosts names: clients refuse what they are shown");
            findings.push(Finding::new(Level::Warning, CHECK, words, format!("a certificate for {wanted}")));
        } else if !host.starts_with('.') && !shown.iter().any(|shown| shown.is_for(&format!("label.{host}"))) {
            let words =
                format!("no certificate is for *.{host}: apps that want a subdomain of their own cannot be opened");
            let fix = format!("a certificate for *.{host} too; nothing, if no app binds with secure_subdomain");
            findings.push(Finding::new(Level::Note, CHECK, words, fix));
        }
    }
    findings
}

fn no_aes() -> Finding {
    let words = "this processor has no instructions for AES: sealing costs several times as much";
    Finding::new(
        Level::Note,
        "TLS",
        words,
        "another machine, for many clients; they choose ChaCha20 where they prefer it",
    )
}

/// The conditions for an authority to validate the names.
fn validation(config: &DaemonConfig) -> Option<Finding> {
    const CHECK: &str = "ACME";
    let listen = config.listen.0.filter(|_| !config.tls_acme.0.is_empty())?;
    let names = config.tls_acme.0.join(", ");
    if listen.ip().to_canonical().is_loopback() {
        let words = format!("the authority asks port 80 of {names}, and --listen {listen} is for this machine alone");
        return Some(Finding::new(Level::Warning, CHECK, words, "forward port 80 to it, or --listen 0.0.0.0:80"));
    }
    if listen.port() != 80 {
        let words = format!("the authority asks port 80 of {names}, and --listen has port {}", listen.port());
        return Some(Finding::new(Level::Note, CHECK, words, format!("forward port 80 to {}", listen.port())));
    }
    Some(Finding::ok(CHECK, format!("the authority asks port 80 of {names}, which is ours where they lead here")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::config::Listen;

    fn shown(names: &[&str]) -> Shown {
        Shown {
            names: names.iter().map(|&name| name.to_owned()).collect(),
            not_before_unix_s: 0,
            not_after_unix_s: 1000 * DAY_S,
            chain: Chain::Whole,
        }
    }

    fn files(shown: Result<Shown, String>) -> TlsFiles {
        TlsFiles {
            chain: "/etc/chain.pem".into(),
            key: "/etc/key.pem".into(),
            key_mode: Some(0o600),
            is_awaited: false,
            shown,
        }
    }

    /// A daemon with this certificate, after 900 days.
    fn with(config: &mut DaemonConfig, facts: &mut Facts, files: TlsFiles) {
        config.tls_listen = Listen::at(([127, 0, 0, 1], 8443).into());
        config.tls_certs = "/etc/chain.pem:/etc/key.pem".parse().unwrap();
        (facts.now_unix_s, facts.tls) = (900 * DAY_S, vec![files]);
    }

    fn all(hosts: &str, change: impl FnOnce(&mut TlsFiles, &mut Facts)) -> Vec<Finding> {
        let (mut config, mut facts) =
            (DaemonConfig { hosts: hosts.parse().unwrap(), ..DaemonConfig::default() }, Facts::fine());
        let mut one = files(Ok(shown(&["example.com", "*.example.com"])));
        change(&mut one, &mut facts);
        with(&mut config, &mut facts, one);
        certificates(&config, &facts)
    }

    #[track_caller]
    fn worst(level: Level, words: &str, fix: &str, change: impl FnOnce(&mut TlsFiles, &mut Facts)) {
        let findings = all("example.com", change);
        let worst = findings.iter().max_by_key(|finding| finding.level).unwrap();
        let fixed = worst.fix.as_deref().unwrap_or("");
        assert!(worst.level == level && worst.found.contains(words) && fixed.contains(fix), "{findings:#?}");
    }

    #[test]
    fn without_tls_nothing_is_said_and_with_a_good_pair_it_is_good() {
        assert!(certificates(&DaemonConfig::default(), &Facts::fine()).is_empty());
        worst(Level::Ok, "fits its key and is good for 100 days", "", |_, _| {});
    }

    #[test]
    fn what_clients_refuse_or_will() {
        let change =
            |change: fn(&mut Shown)| move |files: &mut TlsFiles, _: &mut Facts| change(files.shown.as_mut().unwrap());
        worst(Level::Problem, "expired 5 days ago", "renew", change(|shown| shown.not_after_unix_s = 895 * DAY_S));
        worst(Level::Problem, "in 24 hours only", "clock", change(|shown| shown.not_before_unix_s = 901 * DAY_S));
        worst(Level::Warning, "expires in 20 days", "renew", change(|shown| shown.not_after_unix_s = 921 * DAY_S - 1));
        worst(Level::Ok, "good for 21 days", "", change(|shown| shown.not_after_unix_s = 921 * DAY_S));
        worst(Level::Warning, "signed itself", "--tls-acme", change(|shown| shown.chain = Chain::OwnSignature));
        worst(Level::Warning, "no issuer's", "behind it", change(|shown| shown.chain = Chain::Alone));
        worst(Level::Warning, "certificate 2 was not", "behind it", change(|shown| shown.chain = Chain::Broken(2)));
        worst(Level::Problem, "the key is not", "--tls-certs", |files, _| {
            files.shown = Err("the key is not its".to_owned())
        });
    }

    /// Who looks before the first start has nothing to mend.
    #[test]
    fn a_certificate_that_is_still_to_be_issued_is_no_fault() {
        for shown in [Err("placeholder.pem: No such file".to_owned()), Ok(shown(&["example.com"]))] {
            worst(Level::Note, "none was issued", "start the daemon", |files, _| {
                (files.is_awaited, files.shown, files.key_mode) = (true, shown, None);
            });
        }
    }

    #[test]
    fn keys_are_for_few_and_aes_is_quick() {
        for (mode, level, words) in [
            (0o600, Level::Ok, ""),
            (0o640, Level::Ok, ""),
            (0o400, Level::Ok, ""),
            (0o644, Level::Warning, "every user"),
            (0o601, Level::Warning, "every user"),
            (0o660, Level::Warning, "a group may change"),
        ] {
            worst(level, words, if level == Level::Ok { "" } else { "chmod 6" }, |files, _| {
                files.key_mode = Some(mode)
            });
        }
        worst(Level::Note, "AES", "ChaCha20", |_, facts| facts.has_aes = false);
    }

    #[test]
    fn each_name_has_a_certificate() {
        let words = |hosts: &str| {
            let findings = all(hosts, |_, _| {});
            findings.iter().filter_map(|finding| Some((finding.level, finding.fix.clone()?))).collect::<Vec<_>>()
        };
        assert_eq!(words("example.com, .example.com, *"), []);
        assert_eq!(words("192.0.2.7, ::1, [2001:db8::7]"), []);
        assert!(words("other.com")[0].1.contains("for other.com") && words("other.com")[0].0 == Level::Warning);
        assert!(words(".sub.example.com")[0].1.contains("*.sub.example.com"));
        let (level, fix) = &words("a.example.com")[0];
        assert!(*level == Level::Note && fix.contains("*.a.example.com too"), "{fix}");
    }

    #[test]
    fn what_an_authority_must_reach() {
        let words = |listen: &str| {
            let config = DaemonConfig {
                listen: Listen::at(listen.parse().unwrap()),
                tls_listen: Listen::at(([127, 0, 0, 1], 8443).into()),
                tls_acme: "example.com".parse().unwrap(),
                ..DaemonConfig::default()
            };
            validation(&config).unwrap()
        };
        assert_eq!(words("0.0.0.0:80").level, Level::Ok);
        assert!(words("0.0.0.0:8080").fix.unwrap().contains("forward port 80 to 8080"));
        assert_eq!(words("127.0.0.1:80").level, Level::Warning);
    }
}
