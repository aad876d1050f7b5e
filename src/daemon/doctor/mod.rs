//! `pushring doctor`: examines the machine for a daemon, and reports what is wrong and how to fix it.
//!
//! `facts` are the data, `gather` collects them, `checks` turns them into findings: only `gather` does any I/O.

mod checks;
mod facts;
mod gather;
mod listeners;

use super::config::DaemonConfig;
use super::plain::plain;
use checks::{Finding, Level};
use std::path::Path;
use std::process::ExitCode;

/// The output, and the program's exit code: 0 where all is well, 1 with warnings, 2 with problems.
///
/// # Errors
/// A finding cannot be printed as JSON.
pub(crate) fn run(config: &DaemonConfig, json: bool) -> anyhow::Result<(String, ExitCode)> {
    let findings = checks::findings(config, &gather::gather(config, Path::new("/")));
    let text = match json {
        true => {
            findings.iter().map(|finding| Ok(serde_json::to_string(finding)? + "\n")).collect::<anyhow::Result<_>>()?
        }
        false => text(&findings),
    };
    Ok((text, ExitCode::from(exit_code(&findings))))
}

fn exit_code(findings: &[Finding]) -> u8 {
    match findings.iter().map(|finding| finding.level).max() {
        Some(Level::Problem) => 2,
        Some(Level::Warning) => 1,
        _ => 0,
    }
}

fn text(findings: &[Finding]) -> String {
    let width = findings.iter().map(|finding| finding.check.len()).max().unwrap_or(0);
    let mut text = String::new();
    for Finding { level, check, found, fix } in findings {
        text += &format!("{:<9}{check:<width$}  {}\n", name(*level), plain(found));
        if let Some(fix) = fix {
            text += &format!("{:<9}{:<width$}  fix: {}\n", "", "", plain(fix));
        }
    }
    let count = |level: Level| findings.iter().filter(|finding| finding.level == level).count();
    let [notes, warnings, problems] = [Level::Note, Level::Warning, Level::Problem].map(count);
    text + &format!("\nproblems: {problems}, warnings: {warnings}, notes: {notes}\n")
}

fn name(level: Level) -> &'static str {
    match level {
        Level::Ok => "ok",
        Level::Note => "note",
        Level::Warning => "WARNING",
        Level::Problem => "PROBLEM",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_finding_decides() {
        let finding = |level| Finding { level, check: "x", found: "y\u{1b}".to_owned(), fix: Some("z".to_owned()) };
        for (levels, code) in [
            (&[Level::Ok, Level::Note][..], 0),
            (&[Level::Warning, Level::Ok], 1),
            (&[Level::Warning, Level::Problem, Level::Note], 2),
        ] {
            let findings: Vec<_> = levels.iter().map(|level| finding(*level)).collect();
            assert_eq!(exit_code(&findings), code);
            let text = text(&findings);
            assert!(text.contains("x  y\\u{1b}\n") && text.contains("   fix: z\n"), "{text}");
        }
    }
}
