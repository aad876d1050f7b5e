//! Key sets as authorities write them, and tokens that must be refused.

use super::*;
use crate::gateway::{HubAccess, Secret, TokenAuthority};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA256, RsaKeyPair,
};
use hmac::{Hmac, KeyInit, Mac};
use proptest::prelude::*;
use serde_json::json;
use sha2::Sha256;
use std::sync::LazyLock;

const NOW: u64 = 1_000;

type Sign = Box<dyn Fn(&[u8]) -> Vec<u8> + Send + Sync>;

/// A signing key and its public half.
struct Signer {
    alg: &'static str,
    jwk: Value,
    sign: Sign,
}

impl Signer {
    fn rsa(kid: &str) -> Self {
        let pair = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
        // RFC 8017 A.1.1: a sequence of the modulus, 256 bytes behind a 0, and the exponent.
        let der = pair.public_key().as_ref().to_vec();
        let jwk = json!({
            "kty": "RSA", "use": "sig", "kid": kid, "n": BASE64URL.encode(&der[9..265]),
            "e": BASE64URL.encode(&der[der.len() - 3..]),
        });
        let sign = move |message: &[u8]| {
            let mut signature = vec![0; pair.public_modulus_len()];
            pair.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), message, &mut signature).unwrap();
            signature
        };
        Self { alg: "RS256", jwk, sign: Box::new(sign) }
    }

    fn p256(kid: &str) -> Self {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        let point = pair.public_key().as_ref().to_vec();
        let (x, y) = (BASE64URL.encode(&point[1..33]), BASE64URL.encode(&point[33..]));
        let jwk = json!({"kty": "EC", "crv": "P-256", "alg": "ES256", "kid": kid, "x": x, "y": y});
        let sign = move |message: &[u8]| pair.sign(&SystemRandom::new(), message).unwrap().as_ref().to_vec();
        Self { alg: "ES256", jwk, sign: Box::new(sign) }
    }

    fn ed25519(kid: &str) -> Self {
        let pair = Ed25519KeyPair::generate().unwrap();
        let x = BASE64URL.encode(pair.public_key().as_ref());
        let jwk = json!({"kty": "OKP", "crv": "Ed25519", "kid": kid, "x": x, "key_ops": ["verify"]});
        Self { alg: "EdDSA", jwk, sign: Box::new(move |message| pair.sign(message).as_ref().to_vec()) }
    }

    fn token(&self, header: &Value, claims: &Value) -> String {
        let signed = format!("{}.{}", BASE64URL.encode(header.to_string()), BASE64URL.encode(claims.to_string()));
        let signature = (self.sign)(signed.as_bytes());
        format!("{signed}.{}", BASE64URL.encode(signature))
    }

    fn good(&self) -> String {
        self.token(&json!({"alg": self.alg, "kid": self.jwk["kid"], "typ": "JWT"}), &claims())
    }
}

static SIGNERS: LazyLock<[Signer; 3]> = LazyLock::new(|| [Signer::rsa("r"), Signer::p256("p"), Signer::ed25519("e")]);

fn claims() -> Value {
    json!({"iss": "https://id.example", "aud": "hub", "sub": "ann", "exp": 2000, "may_subscribe": ["room.*"]})
}

fn set(keys: &[&Value]) -> KeySet {
    KeySet::parse(json!({ "keys": keys }).to_string().as_bytes(), None).unwrap()
}

fn whole() -> KeySet {
    set(&SIGNERS.each_ref().map(|signer| &signer.jwk))
}

fn access(keys: KeySet) -> HubAccess {
    let (issuer, audience) = ("https://id.example".to_owned(), "hub".to_owned());
    let authority = Some(TokenAuthority { issuer, audience, keys: Arc::new(keys) });
    HubAccess { secret: Some(Secret::new(b"a secret").unwrap()), authority, ..HubAccess::default() }
}

#[test]
fn each_kind_of_key_opens_what_it_has_signed() {
    let access = access(whole());
    for signer in SIGNERS.iter() {
        let grant = access.open(&signer.good(), NOW).unwrap();
        assert_eq!((grant.user.as_deref(), grant.expires_unix_s), (Some("ann"), Some(2000)), "{}", signer.alg);
        assert!(grant.may_subscribe("room.7"));
    }
    // RFC 9864's name.
    let named = SIGNERS[2].token(&json!({"alg": "Ed25519", "kid": "e"}), &claims());
    assert!(access.open(&named, NOW).is_ok());
    assert_eq!(format!("{access:?}").matches("KeySet(3 keys)").count(), 1);
}

#[test]
fn each_attempt_is_refused_for_its_reason() {
    let [rsa, p256, ed25519] = &*SIGNERS;
    let with = |change: &dyn Fn(&mut Value)| {
        let mut claims = claims();
        change(&mut claims);
        p256.token(&json!({"alg": "ES256", "kid": "p"}), &claims)
    };
    let of_header = |header: Value| p256.token(&header, &claims());
    let hs256 = |key: &[u8]| {
        let signed =
            format!("{}.{}", BASE64URL.encode(r#"{"alg":"HS256","kid":"r"}"#), BASE64URL.encode(claims().to_string()));
        let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap();
        mac.update(signed.as_bytes());
        format!("{signed}.{}", BASE64URL.encode(mac.finalize().into_bytes()))
    };
    let stranger = Signer::p256("p");
    let mut torn = p256.good();
    torn.replace_range(
        torn.len() - 10..torn.len() - 9,
        if torn.as_bytes()[torn.len() - 10] == b'A' { "B" } else { "A" },
    );
    let unsigned = |alg: &str| {
        let header = json!({"alg": alg, "kid": "p"}).to_string();
        format!("{}.{}.", BASE64URL.encode(header), BASE64URL.encode(claims().to_string()))
    };
    let access = access(whole());
    for (attempt, token, error) in [
        ("signed with the hub's secret", hs256(b"a secret"), TokenError::NoPublicKeyAlgorithm),
        (
            "with a public key for a secret",
            hs256(rsa.jwk["n"].to_string().as_bytes()),
            TokenError::NoPublicKeyAlgorithm,
        ),
        ("not signed", unsigned("none"), TokenError::NoPublicKeyAlgorithm),
        ("without its signature", unsigned("ES256"), TokenError::Signature),
        ("torn", torn, TokenError::Signature),
        ("by a stranger of the same name", stranger.good(), TokenError::Signature),
        ("a key that is not there", of_header(json!({"alg": "ES256", "kid": "q"})), TokenError::KeyUnknown),
        ("another key's name", of_header(json!({"alg": "ES256", "kid": "r"})), TokenError::KeyUnknown),
        ("another key's name and algorithm", of_header(json!({"alg": "RS256", "kid": "r"})), TokenError::Signature),
        ("another hash", rsa.token(&json!({"alg": "RS512", "kid": "r"}), &claims()), TokenError::NoPublicKeyAlgorithm),
        (
            "another padding",
            rsa.token(&json!({"alg": "PS256", "kid": "r"}), &claims()),
            TokenError::NoPublicKeyAlgorithm,
        ),
        (
            "a key of its own",
            {
                let jwk = &stranger.jwk;
                stranger
                    .token(&json!({"alg": "ES256", "kid": "x", "jwk": jwk, "jku": "https://evil.example"}), &claims())
            },
            TokenError::KeyUnknown,
        ),
        (
            "a critical extension",
            of_header(json!({"alg": "ES256", "kid": "p", "crit": ["b64"]})),
            TokenError::Malformed,
        ),
        ("no algorithm", of_header(json!({"kid": "p"})), TokenError::Malformed),
        ("another issuer", with(&|claims| claims["iss"] = "https://id.example/".into()), TokenError::Issuer),
        ("no issuer", with(&|claims| drop(claims.as_object_mut().unwrap().remove("iss"))), TokenError::Issuer),
        ("another audience", with(&|claims| claims["aud"] = "hubs".into()), TokenError::Audience),
        ("no audience", with(&|claims| drop(claims.as_object_mut().unwrap().remove("aud"))), TokenError::Audience),
        ("no end", with(&|claims| drop(claims.as_object_mut().unwrap().remove("exp"))), TokenError::Endless),
        ("expired", with(&|claims| claims["exp"] = NOW.into()), TokenError::Expired),
        ("not valid yet", with(&|claims| claims["nbf"] = (NOW + 1).into()), TokenError::NotYet),
        (
            "claims in a list",
            p256.token(&json!({"alg": "ES256", "kid": "p"}), &json!(["i", "hub"])),
            TokenError::Malformed,
        ),
        ("too long", with(&|claims| claims["x"] = "x".repeat(4096).into()), TokenError::TooLong),
        ("nothing", String::new(), TokenError::Malformed),
    ] {
        assert_eq!(access.open(&token, NOW), Err(error), "{attempt}");
    }
    let another_users = access.open(&with(&|claims| claims["topics"] = json!(["\u{1e}user/bob"])), NOW);
    assert!(matches!(another_users, Err(TokenError::Claim(which)) if which.starts_with("topics")), "{another_users:?}");
    assert!(access.open(&ed25519.good(), NOW).is_ok());
}

#[test]
fn a_key_that_left_the_set_opens_nothing() {
    let [rsa, p256, _] = &*SIGNERS;
    let (before, after) = (access(set(&[&rsa.jwk, &p256.jwk])), access(set(&[&rsa.jwk])));
    assert!(before.open(&p256.good(), NOW).is_ok());
    assert_eq!(after.open(&p256.good(), NOW), Err(TokenError::KeyUnknown));
    assert_eq!(access(set(&[])).open(&rsa.good(), NOW), Err(TokenError::KeyUnknown));
}

#[test]
fn a_token_without_a_key_name_needs_the_only_key() {
    let nameless = SIGNERS[1].token(&json!({"alg": "ES256"}), &claims());
    assert!(access(whole()).open(&nameless, NOW).is_ok(), "the others sign otherwise");
    let two = set(&[&Signer::p256("x").jwk, &SIGNERS[1].jwk]);
    assert_eq!(access(two).open(&nameless, NOW), Err(TokenError::KeyUnknown));
}

#[test]
fn unknown_keys_ring_once() {
    let wanted = Arc::new(KeysWanted::new(|| {}));
    let first = access(KeySet::none_yet(wanted.clone()));
    let token = SIGNERS[1].good();
    assert_eq!(first.open(&token, NOW), Err(TokenError::KeysPending));
    wanted.rest();
    assert_eq!(first.open(&token, NOW), Err(TokenError::KeysPending), "nobody knows of any key");
    let text = json!({"keys": [SIGNERS[0].jwk]}).to_string();
    let second = access(KeySet::parse(text.as_bytes(), Some(wanted.clone())).unwrap());
    assert_eq!(second.open(&token, NOW), Err(TokenError::KeyUnknown));
    wanted.end_rest();
    assert_eq!(second.open(&token, NOW), Err(TokenError::KeysPending));
    assert!(wanted.is_wanted() && second.open(&SIGNERS[0].good(), NOW).is_ok());
    assert_eq!(second.open("a.b.c", NOW), Err(TokenError::Malformed), "and only tokens ring");
}

#[test]
fn a_token_is_good_for_so_long_at_a_time() {
    let access = |lifetime_max_s| HubAccess { lifetime_max_s, ..access(whole()) };
    let end = |lifetime| access(lifetime).open(&SIGNERS[1].good(), NOW).unwrap().expires_unix_s;
    assert_eq!([end(None), end(Some(10)), end(Some(5000))], [Some(2000), Some(1010), Some(2000)]);
}

#[test]
fn keys_that_are_not_ours_are_left_out() {
    let good = &SIGNERS[1].jwk;
    let with = |name: &str, value: Value| {
        let mut key = good.clone();
        key[name] = value;
        key
    };
    for other in [
        json!({"kty": "oct", "kid": "p", "k": "AAAA"}),
        json!({"kty": "RSA", "n": "AQAB", "e": "AQAB"}),
        json!({"kty": "RSA", "n": BASE64URL.encode([255; 513]), "e": "AQAB"}),
        json!({"kty": "EC", "crv": "P-384", "x": "AA", "y": "AA"}),
        json!({"kty": "OKP", "crv": "Ed448", "x": "AA"}),
        json!({"kty": "OKP", "crv": "Ed25519", "x": "AA"}),
        json!({"kty": 7}),
        json!(["EC", "p", null, null, null, "P-256", null, null, good["x"], good["y"]]),
        json!(7),
        with("use", "enc".into()),
        with("key_ops", json!(["sign"])),
        with("alg", "ES384".into()),
        with("x", "AA".into()),
        with("y", Value::Null),
    ] {
        assert_eq!(set(&[&other]).usable_keys(), 0, "{other}");
        assert_eq!(set(&[&other, good]).usable_keys(), 1, "{other}");
    }
    for text in ["", "[]", "{}", r#"{"keys":{}}"#, r#"{"keys":null}"#] {
        assert!(matches!(KeySet::parse(text.as_bytes(), None), Err(SetError::Malformed(_))), "{text}");
    }
    let many = json!({"keys": vec![7; KEYS_MAX + 1]}).to_string();
    assert_eq!(KeySet::parse(many.as_bytes(), None).err(), Some(SetError::TooMany(KEYS_MAX + 1)));
    // No point of the curve is a key that has signed nothing.
    let nowhere = json!({"kty": "EC", "crv": "P-256", "kid": "p", "x": BASE64URL.encode([1; 32]), "y": BASE64URL.encode([1; 32])});
    assert_eq!(access(set(&[&nowhere])).open(&SIGNERS[1].good(), NOW), Err(TokenError::Signature));
}

#[test]
fn known_answers() {
    // RFC 7515 A.3 (ES256) and RFC 8037 A.4 (EdDSA): their claims are not ours, but their signatures hold.
    let p256 = json!({"kty": "EC", "crv": "P-256", "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU", "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"});
    let token = "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q";
    assert!(set(&[&p256]).payload(token).is_ok());
    let ed25519 = json!({"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"});
    let token = "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc.hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg";
    assert!(set(&[&ed25519]).payload(token).is_ok());
    assert!(set(&[&p256]).payload(token).is_err());
}

proptest! {
    #[test]
    fn nothing_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200), header in ".{0,80}", n in ".{0,20}") {
        let _ = KeySet::parse(&bytes, None);
        let key = json!({"kty": "RSA", "n": n, "e": "AQAB"});
        let _ = set(&[&key]).payload(&format!("{}.e30.AAAA", BASE64URL.encode(header)));
    }
}
