//! `penstock apply`: a snapshot by hand, as an owner of its own.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use penstock_configs::desired::Desired;
use penstock_configs::source;
use penstock_configs::validate::FILE_OWNER;

use super::failure::{Failure, Outcome};
use super::screen::Screen;
use super::units::count;
use crate::client::Dataplane;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// A config file (TOML; its services are taken) or a snapshot (JSON); - reads standard input
    #[arg(value_name = "FILE|-")]
    file: PathBuf,
    /// Whose snapshot it is; it replaces the one this owner has
    #[arg(long, value_name = "NAME")]
    owner: String,
    /// Wait until every worker runs it, for SECONDS at most
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "10", value_parser = super::seconds)]
    wait: Option<Duration>,
}

pub(super) async fn run(dataplane: &Dataplane, screen: &Screen, arguments: &Arguments) -> Outcome {
    if arguments.owner == FILE_OWNER {
        return Err(Failure::input(
            "owner `file` is the dataplane's own config file: edit that file and run `systemctl reload \
             penstock-dataplane`, or choose another --owner",
        ));
    }
    let document = read(&arguments.file)?;
    let mut desired = document.desired;
    let served = dataplane.desired(&arguments.owner).await?;
    if desired.generation == 0 {
        // No generation given: the next, or the same again if nothing changed.
        let held = served.as_ref().map_or(0, |served| served.generation);
        desired.generation = held;
        desired.term = desired.term.or_else(|| served.as_ref().and_then(|served| served.term));
        if served.as_ref() != Some(&desired) {
            desired.generation = held + 1;
        }
    }
    let accepted = dataplane.put_desired(&arguments.owner, &desired, arguments.wait).await?;
    let mut out = format!(
        "owner `{}`: generation {} with {} is {}\n",
        arguments.owner,
        desired.generation,
        count(desired.services.len(), "service"),
        if accepted.acknowledged { "served by every worker" } else { "accepted and on its way to the workers" }
    );
    if document.has_box {
        out.push_str(
            "only the services of the file were taken: [box], [[port]], [[snat]] and limits are the dataplane's own\n",
        );
    }
    for warning in &accepted.warnings {
        out.push_str(&screen.wrap("warning: ", warning));
        out.push('\n');
    }
    screen.print(&out)?;
    match arguments.wait {
        Some(wait) if !accepted.acknowledged => Err(Failure::failed(format!(
            "no acknowledgement by every worker within {} s; see `penstock status` and journalctl -u penstock-dataplane",
            wait.as_secs_f64()
        ))),
        _ => Ok(()),
    }
}

#[derive(Debug)]
pub(super) struct Document {
    pub(super) desired: Desired,
    /// It was a config file, of which the box's part is not the owner's.
    pub(super) has_box: bool,
}

/// A config file or a snapshot, by its first character: JSON begins with a brace, TOML never does.
pub(super) fn read(path: &Path) -> Outcome<Document> {
    let from_stdin = path == Path::new("-");
    let name = if from_stdin { "standard input".to_owned() } else { path.display().to_string() };
    let text = if from_stdin {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).map(|_| text)
    } else {
        fs::read_to_string(path)
    };
    let text = text.map_err(|error| Failure::input(format!("{name}: cannot be read: {error}")))?;
    if text.trim_start().starts_with('{') {
        let desired =
            serde_json::from_str(&text).map_err(|error| Failure::input(format!("{name}:{}: {error}", error.line())))?;
        return Ok(Document { desired, has_box: false });
    }
    let file = source::parse(&text, &name)
        .map_err(|faults| Failure::input(format!("{} in {name}:\n{faults}", count(faults.list.len(), "fault"))))?;
    Ok(Document { desired: file.desired(0), has_box: true })
}
