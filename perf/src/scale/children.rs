//! Experiments in processes of their own.

use std::process::{Command, Stdio};

use anyhow::{Context, ensure};
use clap::ValueEnum;

use super::Experiment;
use super::report::Section;

/// Runs one in a process of its own; its progress goes to this one's standard error.
pub fn section(experiment: Experiment, quick: bool) -> anyhow::Result<Section> {
    let name = experiment.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
    eprintln!("{name}: running");
    let mut child = this_program()?;
    child.args(["--alone", &name]).stderr(Stdio::inherit());
    if quick {
        child.arg("--quick");
    }
    let output = child.output().context("starting this program again")?;
    ensure!(output.status.success(), "the experiment {name} failed: {}", output.status);
    let text = String::from_utf8_lossy(&output.stdout);
    let last = text.lines().last().unwrap_or_default();
    serde_json::from_str(last).with_context(|| format!("the experiment {name} said: {text}"))
}

/// This program with the arguments up to the first option: those name the subcommand, however the binary
/// calls it.
pub fn this_program() -> anyhow::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(subcommand());
    Ok(command)
}

pub fn subcommand() -> impl Iterator<Item = String> {
    std::env::args().skip(1).take_while(|arg| !arg.starts_with("--"))
}
