//! The login page computes what nodes encrypt their keyfiles with: its own Argon2id, run by Node.js, gives the tags
//! that the reference implementation gives. Skipped, with a line that says so, where there is no Node.js.

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

#[test]
fn the_page_hashes_passwords_as_nodes_do() {
    if Command::new("node").arg("--version").output().is_err() {
        eprintln!("skipped: there is no `node` to run the page's script with");
        return;
    }
    let page = include_str!("../../src/gateway/login.html");
    let script = page.split("<script id=\"argon2id\">").nth(1).unwrap().split("</script>").next().unwrap();
    let calls: String = KNOWN
        .iter()
        .map(|(password, salt, passes, kibibytes, length, _)| {
            format!("console.log(await argon2id({password:?}, {salt:?}, {passes}, {kibibytes}, {length}, () => 0));\n")
        })
        .collect();
    let output =
        Command::new("node").arg("-e").arg(format!("{script}\n(async () => {{ {calls} }})();")).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    let tags: Vec<&str> = std::str::from_utf8(&output.stdout).unwrap().lines().collect();
    let expected: Vec<&str> = KNOWN.iter().map(|known| known.5).collect();
    assert_eq!(tags, expected, "{errors}");
}
