//! The files operators copy: each example is read, validated and held against the code.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use penstock_configs::file::ConfigFile;
use penstock_configs::source;
use penstock_configs::validate::warnings;

fn examples() -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let entries = std::fs::read_dir(dir).expect("configs/examples");
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    paths.retain(|path| path.extension().is_some_and(|ext| ext == "toml"));
    paths.sort();
    assert!(paths.len() >= 5, "examples are missing: {paths:?}");
    paths
}

#[test]
fn each_example_is_good_and_serves_somebody() {
    for path in examples() {
        let file = source::load(&path).unwrap_or_else(|faults| panic!("{faults}"));
        assert!(!file.services.is_empty(), "{} has no service", path.display());
        let warnings = warnings(&file.desired(1));
        assert!(warnings.is_empty(), "{}: {warnings:?}", path.display());
    }
}

const EVERY_OPTION: &str = include_str!("../examples/every-option.toml");

/// `key = value` lines, with their index.
fn settings() -> impl Iterator<Item = (usize, &'static str)> {
    EVERY_OPTION.lines().enumerate().filter_map(|(index, line)| {
        let (key, _) = line.split_once(" = ")?;
        (!key.starts_with('#')).then_some((index, key))
    })
}

fn without_line(index: usize) -> String {
    let kept = EVERY_OPTION.lines().enumerate().filter(|(at, _)| *at != index);
    kept.map(|(_, line)| format!("{line}\n")).collect()
}

/// A line that states a default changes nothing when it is taken away.
#[test]
fn every_option_states_the_defaults() {
    let whole: ConfigFile = toml::from_str(EVERY_OPTION).expect("the example");
    let states_default = |index| toml::from_str::<ConfigFile>(&without_line(index)).is_ok_and(|file| file == whole);
    let comment_says_example = |index: usize| {
        let above = EVERY_OPTION.lines().take(index).collect::<Vec<_>>();
        let comment = above.iter().rev().take_while(|line| line.starts_with('#'));
        comment.into_iter().any(|line| line.contains("xample") || line.contains("Required") || line.contains("..."))
    };
    for (index, key) in settings() {
        let is_default = states_default(index);
        // Below are examples throughout; above, a comment says of each key whether it is one.
        if key == "name" && EVERY_OPTION.lines().nth(index).is_some_and(|line| line.contains("worker-1")) {
            break;
        }
        assert_ne!(is_default, comment_says_example(index), "line {}: {key}: comment and code disagree", index + 1);
    }
    let defaults: BTreeSet<&str> = settings().filter(|(index, _)| states_default(*index)).map(|(_, key)| key).collect();
    for key in ["weight", "state", "mode", "scheduler", "source_ranges", "ports", "shared", "xdp", "zero_copy"] {
        assert!(defaults.contains(key), "{key} is not shown with its default");
    }
}

#[test]
fn tables_of_every_option_equal_the_codes_defaults() {
    let file: ConfigFile = toml::from_str(EVERY_OPTION).expect("the example");
    assert_eq!(file.the_box, penstock_configs::file::BoxConfig::default());
    assert_eq!(file.limits, penstock_configs::file::Limits::default());
    assert_eq!(file.timeouts, penstock_configs::file::Timeouts::default());
    let workers = penstock_configs::file::WorkersConfig { count: None, ..file.workers };
    assert_eq!(workers, penstock_configs::file::WorkersConfig::default());
}
