//! `penstock-perf scale --quick`: every experiment runs through, and its report adds up.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

const EXPERIMENTS: [&str; 7] = ["workers", "snapshot", "reload", "maglev", "table", "expiry", "memory"];

fn scale(arguments: &[&str], directory: &Path) -> (String, Value) {
    let json = directory.join("scale.json");
    let output = Command::new(env!("CARGO_BIN_EXE_penstock-perf"))
        .arg("scale")
        .args(arguments)
        .arg("--json")
        .arg(&json)
        .output()
        .expect("the program starts");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    let report = serde_json::from_slice(&std::fs::read(json).expect("--json writes")).expect("JSON");
    (text, report)
}

#[test]
fn quick_runs_through_and_its_report_adds_up() {
    let directory = tempfile::tempdir().expect("a directory");
    let charts = directory.path().join("charts");
    let (text, report) = scale(&["--quick", "--plot", charts.to_str().expect("UTF-8")], directory.path());
    let sections = report["sections"].as_array().expect("sections");
    assert_eq!(sections.iter().map(|section| section["name"].as_str().unwrap_or("")).collect::<Vec<_>>(), EXPERIMENTS);
    for section in sections {
        let figures = section["figures"].as_array().expect("figures");
        assert!(!figures.is_empty(), "{section}");
        for figure in figures {
            let value = figure["value"].as_f64().unwrap_or_else(|| panic!("no number: {figure}"));
            // What one thing adds to another may be less than nothing where both are noise.
            let difference = figure["what"].as_str().is_some_and(|what| what.contains("added by"));
            assert!(value.is_finite() && (value >= 0.0 || difference), "{figure}");
            assert!(text.contains(figure["what"].as_str().expect("a name")), "not in the table: {figure}");
            assert!(figure["target"].is_null(), "met by construction at this size: {figure}");
        }
    }
    assert!(text.contains("no target is held against so small sizes"), "{text}");
    let figure = |section: &str, what: &str| -> f64 {
        let section = sections.iter().find(|s| s["name"] == section).expect("a section");
        let figures = section["figures"].as_array().expect("figures");
        let found = figures.iter().find(|f| f["what"].as_str().is_some_and(|name| name.contains(what)));
        found.and_then(|f| f["value"].as_f64()).unwrap_or_else(|| panic!("no {what} in {section}"))
    };
    // What sizes and noise leave alone.
    assert_eq!(figure("table", "insertions refused"), 0.0);
    assert_eq!(figure("table", "packets refused"), 16.0);
    assert_eq!(figure("table", "embryos evicted"), 512.0);
    assert!((60.0..=128.0).contains(&figure("memory", "IPv4: mapped")), "{text}");
    assert!((90.0..=130.0).contains(&figure("memory", "IPv6: mapped")), "{text}");
    let pictures = std::fs::read_dir(charts).expect("charts").count();
    assert!(pictures >= 5, "{pictures} charts");
}

#[test]
fn one_experiment_may_be_chosen() {
    let directory = tempfile::tempdir().expect("a directory");
    let (text, report) = scale(&["--quick", "--only", "maglev"], directory.path());
    assert_eq!(report["sections"].as_array().map(Vec::len), Some(1));
    assert!(!text.contains("expiry"), "{text}");
}
