use super::*;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, date_time_ymd};

fn made(names: &[&str], key: KeyPair) -> (String, String) {
    let names: Vec<String> = names.iter().map(|&name| name.into()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params.not_before = date_time_ymd(1999, 12, 31);
    params.not_after = date_time_ymd(2052, 2, 29);
    let certificate = params.self_signed(&key).unwrap();
    (certificate.pem(), key.serialize_pem())
}

#[test]
fn a_pair_tells_names_dates_and_price() {
    let (chain, key) = made(&["Example.com", "*.example.com"], KeyPair::generate().unwrap());
    let certificate = Certificate::from_pem(chain.as_bytes(), key.as_bytes()).unwrap();
    assert_eq!(certificate.names().collect::<Vec<_>>(), ["example.com", "*.example.com"]);
    // Seconds that `date -u -d` tells for these days.
    assert_eq!(certificate.not_before_unix_s(), 946_598_400);
    assert_eq!(certificate.not_after_unix_s(), 2_592_777_600);
    for (name, is_for) in
        [("example.com", true), ("a.example.com", true), ("a.b.example.com", false), (".example.com", false)]
    {
        assert_eq!(certificate.is_for(name), is_for, "{name}");
    }
    let dearer = |algorithm| {
        let (chain, key) = made(&["a"], KeyPair::generate_for(algorithm).unwrap());
        Certificate::from_pem(chain.as_bytes(), key.as_bytes()).unwrap().price_ns()
    };
    assert_eq!(
        (certificate.price_ns(), dearer(&PKCS_ED25519), dearer(&PKCS_ECDSA_P384_SHA384)),
        (119_000, 119_000, 230_000)
    );
}

/// Keys lose their line breaks in variables and templates. What is said of them goes to logs.
#[test]
fn nothing_of_a_broken_key_is_told() {
    let (chain, key) = made(&["a"], KeyPair::generate().unwrap());
    let words = "line breaks are lost";
    for broken in [key.replace('\n', "\\n"), key.replacen('\n', "", 1), key.replacen("-----\n", "----\n", 1)] {
        for (chain, key) in [(&chain, &broken), (&broken, &key), (&(chain.clone() + &broken), &key)] {
            let error = Certificate::from_pem(chain.as_bytes(), key.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(words) && error.len() < 250, "{error}");
        }
        let error = crate::tls::Trust::from_pem(broken.as_bytes()).unwrap_err().to_string();
        assert!(error.contains(words) && error.len() < 250, "{error}");
    }
    let cut_off = &key[..key.len() / 2];
    let error = Certificate::from_pem(chain.as_bytes(), cut_off.as_bytes()).unwrap_err().to_string();
    assert!(error.contains("cut off") && error.len() < 250, "{error}");
}

#[test]
fn a_bad_pair_says_what_is_wrong() {
    let (chain, key) = made(&["a"], KeyPair::generate().unwrap());
    let (_, other) = made(&["a"], KeyPair::generate().unwrap());
    let error = |chain: &str, key: &str| Certificate::from_pem(chain.as_bytes(), key.as_bytes()).unwrap_err();
    assert_eq!(error(&chain, &other), CertificateError::Mismatch);
    let (issuer, of_issuer) = made(&["b"], KeyPair::generate().unwrap());
    assert_eq!(error(&format!("{issuer}{chain}"), &key), CertificateError::NotFirst(2));
    assert_eq!(error(&format!("{chain}{issuer}"), &of_issuer), CertificateError::NotFirst(2));
    for encrypted in [
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIHs\n-----END ENCRYPTED PRIVATE KEY-----\n",
        "-----BEGIN EC PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\nMIHs\n-----END EC PRIVATE KEY-----\n",
    ] {
        assert_eq!(error(&chain, encrypted), CertificateError::Encrypted);
    }
    assert!(matches!(error(&key, &key), CertificateError::Chain(_)));
    assert!(matches!(error("", &key), CertificateError::Chain(_)));
    assert!(matches!(error(&chain, &chain), CertificateError::Key(_)));
    let none_of_ours = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
    assert_eq!(error(&chain, none_of_ours), CertificateError::Unsupported);
    let broken = chain.replace("MII", "MIA");
    assert!(matches!(error(&broken, &key), CertificateError::Chain(_)));
}
