use super::*;
use crate::report::CpuReport;

fn report(us_per_unit: f64, lost: u64) -> Report {
    let total = crate::proc::CpuUse { total_us: us_per_unit, user_us: 0.0, system_us: us_per_unit };
    let mut report = Report { cpu: Some(CpuReport::new(total, 1, 1.0)), per_second: 1000.0, ..Report::default() };
    report.accounting.lost = lost;
    report
}

fn cell() -> CellResult {
    let mut own = Series::new("ours");
    own.reports = vec![report(2.0, 0), report(1.0, 0), report(9.0, 0)];
    let mut other = Series::new("<other>");
    other.reports = vec![report(6.0, 3)];
    other.failures = vec!["it broke".into()];
    CellResult {
        key: "fanout-10x128-w1".into(),
        title: "10 clients".into(),
        metrics: vec![Metric::CpuPerUnit],
        series: vec![own, other],
    }
}

#[test]
fn the_table_shows_medians_ratios_and_faults() {
    let text = cell_table(&cell(), "ours");
    assert!(text.contains("2.00 µs CPU  [1.00 µs CPU – 9.00 µs CPU]   1.00 × ours"), "{text}");
    assert!(text.contains("3.00 × ours") && text.contains("NOT CLEAN"), "{text}");
    assert!(text.contains("it broke") && text.contains("lost 3"), "{text}");
}

#[test]
fn the_page_stands_alone_and_escapes_names() {
    let machine = Machine { kernel: "6".into(), cpu: "c".into(), cpus: 2, server_cpus: vec![0], client_cpus: vec![1] };
    let servers = vec!["ours".to_owned(), "<other>".to_owned()];
    let comparison =
        Comparison { machine, runs: 3, subject: "ours".into(), servers, cells: vec![cell()], stuck: Vec::new() };
    let page = html::page(&comparison);
    assert!(page.contains("<svg") && page.contains("&lt;other&gt;") && !page.contains("<other>"));
    for outside in ["http://", "https://", "<script", "src=", "@import", "url("] {
        assert!(!page.contains(outside), "{outside}");
    }
}

#[test]
fn other_servers_are_parsed() {
    use clap::Parser as _;
    #[derive(clap::Parser)]
    struct Only {
        #[command(flatten)]
        args: CompareArgs,
    }
    let args = Only::parse_from(["compare"]).args;
    let spec = parse_extra("uws=ws://127.0.0.1:9001/x@12+13", &args).unwrap();
    assert_eq!(spec.name, "uws");
    assert!(matches!(spec.launch, Launch::Listening { ref url, ref pids }
        if url == "ws://127.0.0.1:9001/x" && pids == &[12, 13]));
    assert!(parse_extra("uws", &args).is_err() && parse_extra("a=b@c", &args).is_err());
    let spec = parse_rival("uws=./rival", &args).unwrap();
    assert!(matches!(spec.launch, Launch::Start { ref program, .. } if program.ends_with("rival")));
    assert!(spec.name == "uws" && parse_rival("uws", &args).is_err());
}
