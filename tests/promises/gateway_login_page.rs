//! The login page computes what nodes encrypt their keyfiles with: its own Argon2id, run by Node.js, gives the tags
//! that the reference implementation gives. Skipped, with a line that says so, where there is no Node.js.

use pushring::node::Dialect;
use sha2::{Digest, Sha256};
use std::process::Command;

/// Password, salt, passes, KiB, length, and the tag, made with the reference implementation (argon2-cffi).
const KNOWN: &[(&str, &str, u32, u32, u32, &str)] = &[
    (
        "correct horse",
        "fake.osfake.os",
        2,
        19456,
        32,
        "e45301217bcb4cc1da2649e7ae668a53c0d4be7a68f07d48b7116b8f526a5b68",
    ),
    (
        "pässwörd ✓",
        "alice-long-name.os",
        2,
        19456,
        32,
        "236b25e2d0d052b02a050a29d333f107244d6d4200b04570afd2bb79fbb18b95",
    ),
    ("p", "somesalt", 3, 64, 32, "e4f27ccd0a2eb04dd8b4d9d791c80b8cba238814471f7218d7128cf8cea57331"),
    (
        "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
        "saltsalt",
        1,
        32,
        24,
        "f330d03db86e436978899e4b3d83af1e3111b294701122ff",
    ),
];

const PAGE: &str = include_str!("../../src/gateway/login.html");

/// One of the page's scripts.
fn script(id: &str) -> &'static str {
    PAGE.split(&format!("<script id=\"{id}\">")).nth(1).unwrap().split("</script>").next().unwrap()
}

/// The lines that a script prints, and what it complains of. None: there is no Node.js.
fn run(script: &str) -> Option<(Vec<String>, String)> {
    let Ok(output) = Command::new("node").arg("-e").arg(script).output() else {
        eprintln!("skipped: there is no `node` to run the page's script with");
        return None;
    };
    let printed = std::str::from_utf8(&output.stdout).unwrap().lines().map(str::to_owned).collect();
    Some((printed, String::from_utf8_lossy(&output.stderr).into_owned()))
}

fn sha256(text: &str) -> String {
    Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn the_page_hashes_passwords_as_nodes_do() {
    let calls: String = KNOWN
        .iter()
        .map(|(password, salt, passes, kibibytes, length, _)| {
            format!("console.log(await argon2id({password:?}, {salt:?}, {passes}, {kibibytes}, {length}, () => 0));\n")
        })
        .collect();
    let Some((tags, errors)) = run(&format!("{}\n(async () => {{ {calls} }})();", script("argon2id"))) else { return };
    let expected: Vec<&str> = KNOWN.iter().map(|known| known.5).collect();
    assert_eq!(tags, expected, "{errors}");

    let passwords: Vec<String> = (0..130).map(|length| "x".repeat(length)).chain(["pässwörd ✓".to_owned()]).collect();
    let calls = format!("{passwords:?}.forEach(text => console.log(sha256(new TextEncoder().encode(text))));");
    let Some((hashes, errors)) = run(&format!("{}\n{calls}", script("sha256"))) else { return };
    let expected: Vec<String> = passwords.iter().map(|password| sha256(password)).collect();
    assert_eq!(hashes, expected, "{errors}");
}

/// As much of a browser as the page needs. Every password is wrong; what is posted is printed.
const BROWSER: &str = r#"
const listeners = {}, elements = {};
const element = () => ({ addEventListener: (name, run) => listeners[name] = run, select() {}, value: "correct horse" });
const stands = (name, value) => Object.defineProperty(globalThis, name, { value, configurable: true });
stands("document", { getElementById: id => elements[id] ??= element() });
stands("location", { pathname: "/page", hostname: "localhost", search: "", hash: "", href: "http://localhost/page" });
stands("sessionStorage", { getItem: () => null, setItem() {}, removeItem() {} });
stands("fetch", async (_, { body }) => {
  if (!body) return { ok: false };
  console.log(JSON.parse(body).password_hash);
  return { ok: false, status: 401 };
});
"#;

#[test]
fn owners_whose_password_is_from_before_kinode_0_10_are_let_in() {
    let hashes = [format!("0x{}", KNOWN[0].5), format!("0x{}", sha256(KNOWN[0].0))];
    for (dialect, expected) in [(Dialect::Kinode, &hashes[..]), (Dialect::Hyperdrive, &hashes[..1])] {
        let settings = pushring::node::settings("fake.os", dialect);
        let page = script("page").replace("${node}", &settings.user);
        let page = page.replace("${sha256}", if settings.sha256_passwords { "true" } else { "false" });
        let submit = "(async () => { await listeners.submit({ preventDefault() {} }); })();";
        let scripts = [BROWSER, script("argon2id"), script("sha256"), &page, submit].join("\n");
        let Some((posted, errors)) = run(&scripts) else { return };
        assert_eq!(posted, expected, "{dialect:?}: {errors}");
    }
}
