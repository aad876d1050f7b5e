//! One table of close codes: PROTOCOL.md lists every code that the server itself sends, once, with its name, why, and
//! what the client is to do; and the client for JavaScript does that.

use pushring::{CLOSE_REASONS, ClientNext};

#[test]
fn the_pages_tables_are_the_codes_table() {
    let page = include_str!("../../docs/PROTOCOL.md");
    let rows: Vec<(u16, [&str; 3])> = page
        .lines()
        .filter_map(|line| {
            let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
            let code = cells.first()?.parse().ok()?;
            // Statuses of HTTP have three digits.
            (code >= 1000).then(|| (code, cells[1..].try_into().expect("a row of codes has four cells")))
        })
        .collect();
    for reason in CLOSE_REASONS {
        let told: Vec<_> = rows.iter().filter(|(code, _)| *code == reason.code).collect();
        let [(_, [name, why, advice])] = told[..] else {
            panic!("{} stands {} times in PROTOCOL.md", reason.code, told.len())
        };
        assert_eq!(*name, reason.name, "{}", reason.code);
        for (what, page, table) in [("why", why, reason.why), ("what to do", advice, reason.then.words())] {
            assert!(page.starts_with(table), "{}, {what}: the page says {page:?}, the table {table:?}", reason.code);
        }
    }
    for (code, _) in rows {
        assert!(CLOSE_REASONS.iter().any(|reason| reason.code == code), "nobody sends {code}");
    }
}

/// The numbers of `const NAME = [1, 2];`.
fn list(code: &str, name: &str) -> Vec<u16> {
    let (_, rest) = code.split_once(&format!("const {name} = [")).unwrap();
    let (list, _) = rest.split_once("];").unwrap();
    list.split(',').map(|number| number.trim().parse().unwrap()).collect()
}

#[test]
fn the_client_does_after_each_code_what_the_table_says() {
    let client = include_str!("../../clients/js/index.js");
    let (last, again) = (list(client, "FINAL"), list(client, "AGAIN"));
    assert!(client.contains("FINAL.includes(code) || (code >= 3000 && !AGAIN.includes(code))"), "its rule is another");
    for reason in CLOSE_REASONS {
        let does = match reason.code {
            4401 => ClientNext::LogIn,
            code if last.contains(&code) || (code >= 3000 && !again.contains(&code)) => ClientNext::Mend,
            _ => ClientNext::ConnectAgain,
        };
        assert_eq!(does, reason.then, "{}", reason.code);
    }
}
