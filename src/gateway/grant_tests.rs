//! Attempts to enter the hub, each with its result.

use super::*;
use crate::gateway::{Claims as LoginClaims, mint};
use crate::http::{HttpConnection, HttpLimits, HttpStep};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL};
use hmac::{Hmac, KeyInit, Mac};
use proptest::prelude::*;
use sha2::Sha256;

const NOW: u64 = 1_000;
const KEY: &[u8] = b"the secret of the hub";

/// Signs any header and claims with `key`.
fn forge(key: &[u8], header: &str, claims: &str) -> String {
    let signed = format!("{}.{}", BASE64URL.encode(header), BASE64URL.encode(claims));
    let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap();
    mac.update(signed.as_bytes());
    format!("{signed}.{}", BASE64URL.encode(mac.finalize().into_bytes()))
}

fn access() -> HubAccess {
    HubAccess { secret: Some(Secret::new(KEY).unwrap()), audience: "pushring-hub".into(), ..HubAccess::default() }
}

const HS256: &str = r#"{"alg":"HS256","typ":"JWT"}"#;

#[test]
fn a_token_says_what_its_client_may_do() {
    let claims = r#"{"aud":["x","pushring-hub"],"sub":"ann","exp":2000.5,"nbf":1000,"iss":"anybody",
        "topics":["news"],"may_subscribe":["room.*","one"],"may_publish":["room.7"]}"#;
    let grant = access().open(&forge(KEY, HS256, claims), NOW).unwrap();
    assert_eq!((grant.user.as_deref(), grant.expires_unix_s), (Some("ann"), Some(2001)));
    for (name, subscribe, publish) in [
        ("news", true, false),
        ("room.7", true, true),
        ("room.70", true, false),
        ("room.", false, false),
        ("room", false, false),
        ("one", true, false),
        ("one.two", false, false),
        ("\u{1e}user/bob", false, false),
        ("", false, false),
    ] {
        assert_eq!((grant.may_subscribe(name), grant.may_publish(name)), (subscribe, publish), "{name:?}");
    }
    let least = access().open(&forge(KEY, HS256, r#"{"aud":"pushring-hub"}"#), NOW).unwrap();
    assert_eq!(least, Grant::default());
}

#[test]
fn each_attempt_is_refused_for_its_reason() {
    let good = r#"{"aud":"pushring-hub","sub":"ann","exp":2000}"#;
    let login = LoginClaims { username: "node.os".into(), subdomain: None, expiration: 2000 };
    let unsigned = format!("{}.{}.", BASE64URL.encode(r#"{"alg":"none"}"#), BASE64URL.encode(good));
    let many: Vec<String> = (0..65).map(|n| format!("\"t{n}\"")).collect();
    assert!(access().open(&forge(KEY, HS256, good), NOW).is_ok());
    for (attempt, token, error) in [
        ("a login token", mint(&Secret::new(b"the login secret").unwrap(), &login), TokenError::Signature),
        ("a login token of the same key", mint(&Secret::new(KEY).unwrap(), &login), TokenError::Audience),
        ("without a signature", unsigned, TokenError::Algorithm),
        ("another algorithm", forge(KEY, r#"{"alg":"RS256"}"#, good), TokenError::Algorithm),
        ("an algorithm in small letters", forge(KEY, r#"{"alg":"hs256"}"#, good), TokenError::Algorithm),
        ("a critical extension", forge(KEY, r#"{"alg":"HS256","crit":["b64"]}"#, good), TokenError::Malformed),
        ("another key", forge(b"guessed", HS256, good), TokenError::Signature),
        ("no audience", forge(KEY, HS256, r#"{"sub":"ann"}"#), TokenError::Audience),
        ("another audience", forge(KEY, HS256, &good.replace("-hub", "-hubs")), TokenError::Audience),
        ("an empty list of audiences", forge(KEY, HS256, r#"{"aud":[]}"#), TokenError::Audience),
        ("expired", forge(KEY, HS256, &good.replace("2000", "1000")), TokenError::Expired),
        ("not valid yet", forge(KEY, HS256, r#"{"aud":"pushring-hub","nbf":1001}"#), TokenError::NotYet),
        ("a user without a name", forge(KEY, HS256, &good.replace("ann", "")), WRONG_USER),
        ("a user of a long name", forge(KEY, HS256, &good.replace("ann", &"x".repeat(201))), WRONG_USER),
        ("a user that is no text", forge(KEY, HS256, &good.replace("\"ann\"", "7")), TokenError::Malformed),
        (
            "another user's topic",
            forge(KEY, HS256, r#"{"aud":"pushring-hub","topics":["\u001euser/bob"]}"#),
            WRONG_TOPICS,
        ),
        (
            "a pattern of other users' topics",
            forge(KEY, HS256, r#"{"aud":"pushring-hub","may_subscribe":["\u001euser/*"]}"#),
            WRONG_SUBSCRIBE,
        ),
        ("an empty pattern", forge(KEY, HS256, r#"{"aud":"pushring-hub","may_publish":[""]}"#), WRONG_PUBLISH),
        (
            "too many patterns",
            forge(KEY, HS256, &format!(r#"{{"aud":"pushring-hub","may_publish":[{}]}}"#, many.join(","))),
            WRONG_PUBLISH,
        ),
        (
            "rights that are no list",
            forge(KEY, HS256, r#"{"aud":"pushring-hub","may_publish":"*"}"#),
            TokenError::Malformed,
        ),
        ("claims that are no map", forge(KEY, HS256, "[]"), TokenError::Malformed),
        (
            "claims in a list",
            forge(KEY, HS256, r#"[null,"pushring-hub","ann",null,null,["x"],["*"],["*"]]"#),
            TokenError::Malformed,
        ),
        ("a header in a list", forge(KEY, r#"["HS256",null,null]"#, good), TokenError::Malformed),
        ("an extension that is nothing", forge(KEY, r#"{"alg":"HS256","crit":null}"#, good), TokenError::Malformed),
        ("a claim twice", forge(KEY, HS256, r#"{"aud":"pushring-hub","aud":"pushring-hub"}"#), TokenError::Malformed),
        ("no token", String::new(), TokenError::Malformed),
        ("a long one", "x".repeat(5000), TokenError::TooLong),
    ] {
        let refused = access().open(&token, NOW).unwrap_err();
        assert_eq!(refused, error, "{attempt}");
        assert!(token.is_empty() || !refused.to_string().contains(&token), "{attempt}");
    }
    let hub = forge(KEY, HS256, r#"{"aud":"pushring-hub","username":"node.os","expiration":2000}"#);
    let login_door = Secret::new(b"the login secret").unwrap();
    assert_eq!(login_door.verify(&hub, "node.os", NOW, |_| true), Err(TokenError::Signature));
    let shown = format!("{:?}", access());
    assert!(!shown.contains("the secret"), "{shown}");
    let none = HubAccess { secret: None, ..access() };
    assert_eq!(none.open(&forge(KEY, HS256, good), NOW), Err(TokenError::NoSecret));
}

/// The token that a request with these fields carries.
fn carried(fields: &str) -> Result<Option<(String, Carrier)>, TokenError> {
    let mut connection = HttpConnection::new(HttpLimits::default());
    let bytes = format!("GET /hub?token=in.the.url HTTP/1.1\r\nHost: x\r\n{fields}\r\n").into_bytes();
    match connection.feed(&bytes) {
        HttpStep::Request(request) => {
            token_of(&request.head).map(|found| found.map(|(token, carrier)| (token.to_owned(), carrier)))
        }
        _ => panic!("a whole request"),
    }
}

#[test]
fn a_token_comes_by_one_way_and_never_in_the_url() {
    let own = |token: &str| Ok(Some((token.to_owned(), Carrier::Own)));
    assert_eq!(carried(""), Ok(None));
    assert_eq!(carried("Sec-WebSocket-Protocol: pushring.1, bearer.a.b.c\r\n"), own("a.b.c"));
    assert_eq!(carried("Authorization: bearer a.b.c\r\n"), own("a.b.c"));
    assert_eq!(carried("Cookie: pushring-hub=a.b.c\r\n"), Ok(Some(("a.b.c".into(), Carrier::Cookie))));
    assert_eq!(carried("Authorization: Bearer a.b.c\r\nCookie: pushring-hub=x\r\n"), own("a.b.c"));
    assert_eq!(carried("Authorization: Basic a.b.c\r\n"), Ok(None));
    for doubled in [
        "Sec-WebSocket-Protocol: bearer.a, bearer.a\r\n",
        "Sec-WebSocket-Protocol: bearer.a\r\nAuthorization: Bearer a\r\n",
        "Cookie: pushring-hub=a; pushring-hub=b\r\n",
    ] {
        assert_eq!(carried(doubled), Err(TokenError::Doubled), "{doubled}");
    }
}

proptest! {
    #[test]
    fn a_pattern_matches_as_a_naive_twin_says(pattern in "[ab*\u{1e}]{0,4}", name in "[ab*\u{1e}]{0,5}") {
        let Some(parsed) = TopicPattern::parse(&pattern) else {
            let is_unlawful = pattern.is_empty() || pattern.starts_with('\u{1e}');
            prop_assert!(is_unlawful);
            return Ok(());
        };
        let expected = !name.starts_with('\u{1e}') && match pattern.strip_suffix('*') {
            Some(prefix) => name.starts_with(prefix) && name != prefix,
            None => name == pattern,
        };
        prop_assert_eq!(parsed.matches(&name), expected);
    }

    #[test]
    fn no_token_panics(token in ".{0,80}", claims in ".{0,80}") {
        let _ = access().open(&token, NOW);
        let _ = access().open(&forge(KEY, HS256, &claims), NOW);
    }
}
