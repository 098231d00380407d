//! Charts of measurements as SVG: bars in groups, lines, latency by percentile.
//!
//! By hand, not with `plotters`: it has no grouped bars, and guesses the width of text unless a font
//! rasteriser comes along, for what are lines, rectangles and words. The colours are those of Okabe and
//! Ito (<https://jfly.uni-koeln.de/color/>), told apart also by the colour-blind; lines have marks of
//! different shape besides.

mod axis;
mod bars;
mod canvas;
mod lines;

use std::path::Path;

use anyhow::Context;

pub use bars::{Bar, Group, bars};
pub use lines::{Curve, Limit, Line, Scale, latency, lines};

/// What a chart says about itself.
#[derive(Debug, Clone, Default)]
pub struct Labels {
    pub title: String,
    /// How and where it was measured, in a smaller line below.
    pub subtitle: String,
    /// What the axis of values shows, with its unit.
    pub values: String,
    /// What the other axis shows; bars have names instead.
    pub along: String,
}

/// Makes the directory of charts: that it can't be is found out before anything is measured.
///
/// # Errors
/// It can't be made.
pub fn prepare(directory: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(directory).with_context(|| format!("{}: can't be made", directory.display()))
}

/// Writes charts into a directory, each `NAME.svg`; the directory is made where it is not there.
///
/// # Errors
/// A file can't be written.
pub fn write(directory: &Path, charts: &[(&str, String)]) -> anyhow::Result<()> {
    prepare(directory)?;
    for (name, svg) in charts {
        let path = directory.join(format!("{name}.svg"));
        std::fs::write(&path, svg).with_context(|| format!("{}: can't be written", path.display()))?;
        eprintln!("chart: {}", path.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests;
