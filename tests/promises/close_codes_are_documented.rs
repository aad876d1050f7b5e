//! PROTOCOL.md lists every close code that the server itself sends, once, with what the client is to do.

use pushring::CLOSE_REASONS;

#[test]
fn the_pages_tables_are_the_codes_table() {
    let page = include_str!("../../docs/PROTOCOL.md");
    let rows: Vec<(u16, &str)> = page
        .lines()
        .filter_map(|line| {
            let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
            let code = cells.first()?.parse().ok()?;
            // Statuses of HTTP have three digits.
            (code >= 1000 && cells.len() == 3).then(|| (code, cells[2]))
        })
        .collect();
    for reason in CLOSE_REASONS {
        let told: Vec<_> = rows.iter().filter(|(code, _)| *code == reason.code).collect();
        let [(_, advice)] = told[..] else { panic!("{} stands {} times in PROTOCOL.md", reason.code, told.len()) };
        let words = reason.then.words();
        assert!(advice.starts_with(words), "{}: the page says {advice:?}, the table {words:?}", reason.code);
    }
    for (code, _) in rows {
        assert!(CLOSE_REASONS.iter().any(|reason| reason.code == code), "nobody sends {code}");
    }
}
