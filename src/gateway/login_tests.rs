use super::*;
use crate::gateway::settings::{LOGIN_PAGE, login_page};
use crate::http::HttpLimits;
use bytes::Bytes;

fn settings(tokens: SubdomainTokens) -> Settings {
    Settings::of_a_node("fake.os", tokens)
}

fn login(host: &str, target: &str, headers: &str) -> Result<LoginRequest, u16> {
    let text = format!("POST {target} HTTP/1.1\r\nHost: {host}\r\n{headers}\r\n");
    let (head, _) = Head::parse(text.as_bytes(), &HttpLimits::default()).unwrap().unwrap();
    LoginRequest::new(&head, ([127, 0, 0, 1], 1).into(), &settings(SubdomainTokens::Shared))
        .map_err(|response| response.status())
}

const POSTED: &str = r#"{"password_hash":"0xabc","subdomain":""}"#;
const POSTED_FOR_APP: &str = r#"{"password_hash":"0xabc","subdomain":"wsecho:wsecho:sys"}"#;

#[test]
fn bodies() {
    let login = login("localhost:8080", "/login", "").unwrap();
    let read = |body: &str| login.credentials(body.as_bytes()).map_err(|response| response.status());
    assert_eq!(read(POSTED), Ok(LoginCredentials { password_hash: "0xabc".into(), process: None }));
    assert_eq!(read(r#"{"password_hash":"","more":1}"#).unwrap().process, None);
    assert_eq!(read(r#"{"password_hash":"","subdomain":null}"#).unwrap().process, None);
    assert_eq!(read(POSTED_FOR_APP).unwrap().process, Some("wsecho:wsecho:sys".parse().unwrap()));
    for bad in ["", "{}", "[]", r#"{"password_hash":1}"#, r#"{"password_hash":"","subdomain":"x;y"}"#] {
        assert_eq!(read(bad), Err(400), "{bad}");
    }
    assert_eq!(read(&format!("{POSTED}{}", " ".repeat(LOGIN_BYTES_MAX))), Err(413));
    assert!(!format!("{:?}", read(POSTED)).contains("abc"));
}

#[test]
fn the_cookie_has_real_attributes() {
    let cookie = |tokens, host: &str, headers: &str, posted: &str| {
        let login = login(host, "/login", headers).unwrap();
        let credentials = login.credentials(posted.as_bytes()).unwrap();
        let response = login.accepted(&settings(tokens), &credentials, "a.b.c", "keyfile");
        assert_eq!((response.status(), &response.body()[..]), (200, &b"\"keyfile\""[..]));
        assert_eq!(response.find("content-type"), Some("application/json"));
        response.find("set-cookie").unwrap().to_owned()
    };
    assert_eq!(
        cookie(SubdomainTokens::Own, "localhost:80", "", POSTED),
        "kinode-auth_fake.os=a.b.c; Path=/; SameSite=Lax; HttpOnly"
    );
    assert_eq!(
        cookie(SubdomainTokens::Shared, "node.example:80", "X-Forwarded-Proto: https\r\n", POSTED),
        "hyperware-auth_fake.os=a.b.c; Path=/; SameSite=Lax; Domain=node.example; HttpOnly; Secure"
    );
    assert_eq!(
        cookie(SubdomainTokens::Shared, "127.0.0.1:80", "", POSTED),
        "hyperware-auth_fake.os=a.b.c; Path=/; SameSite=Lax; HttpOnly",
        "an address is no domain"
    );
    assert_eq!(
        cookie(SubdomainTokens::Shared, "wsecho-sys.localhost", "", POSTED_FOR_APP),
        "hyperware-auth_fake.os@wsecho:wsecho:sys=a.b.c; Path=/; SameSite=Lax; HttpOnly"
    );
}

#[test]
fn whom_the_token_is_for() {
    let claim = |tokens, host: &str, posted: &str| {
        let login = login(host, "/login", "").unwrap();
        let credentials = login.credentials(posted.as_bytes()).unwrap();
        login.claim(&settings(tokens), &credentials).map(ToString::to_string)
    };
    let app = Some("wsecho:wsecho:sys".to_owned());
    assert_eq!(claim(SubdomainTokens::Shared, "wsecho-sys.localhost", POSTED_FOR_APP), app);
    assert_eq!(claim(SubdomainTokens::Shared, "wsecho-sys.node.example", POSTED_FOR_APP), None);
    assert_eq!(claim(SubdomainTokens::Own, "wsecho-sys.node.example", POSTED_FOR_APP), app);
    assert_eq!(claim(SubdomainTokens::Own, "localhost", POSTED), None);
}

#[test]
fn redirects_stay_on_this_host() {
    let to = |redirect: &str| {
        let login = login("h", &format!("/login?x=1&redirect={redirect}"), "")?;
        let credentials = login.credentials(POSTED.as_bytes()).unwrap();
        let response = login.accepted(&settings(SubdomainTokens::Own), &credentials, "t", "");
        assert!(response.find("set-cookie").is_some());
        Ok((response.status(), response.find("location").map(str::to_owned)))
    };
    assert_eq!(to("/chess:chess:sys/"), Ok((303, Some("/chess:chess:sys/".into()))));
    assert_eq!(to("%2Fa%3Fb%3Dc"), Ok((303, Some("/a?b=c".into()))));
    for bad in
        ["", "x", "//evil.com", "/%5Cevil.com", "http://evil.com", "/%0D%0ASet-Cookie:x", "/%09/evil.com", "/%20"]
    {
        assert_eq!(to(bad), Err(400), "{bad}");
    }
}

#[test]
fn refusals_say_why_and_hold_nothing() {
    let response = login("h", "/login", "").unwrap().refused("Incorrect password");
    assert_eq!((response.status(), &response.body()[..]), (401, &b"\"Incorrect password\""[..]));
    assert!(response.find("set-cookie").is_none());
}

#[test]
fn the_page_names_the_node_and_cannot_be_broken_by_it() {
    let mut settings = settings(SubdomainTokens::Own);
    let text = |settings: &Settings| String::from_utf8(login_page(settings).to_vec()).unwrap();
    assert!(text(&settings).contains("fake.os") && !text(&settings).contains("${"));
    settings.user = "\"</script><script>alert(1)".into();
    assert!(!text(&settings).contains("alert(1)"));
    settings.login_page = Some(Bytes::from_static(b"<p>${node}"));
    settings.user = "alice.os".into();
    assert_eq!(text(&settings), "<p>alice.os");
}

#[test]
fn the_page_asks_nobody_else() {
    for other in ["http://", "https://", "//cdn", "@import", "src=", "<link"] {
        assert!(!LOGIN_PAGE.contains(other), "{other}");
    }
}
