//! Bars in groups, lying: names of cases are long, and stand to their left in full.

use super::Labels;
use super::axis::{Axis, Scale, figure};
use super::canvas::{Anchor, BODY, COLOURS, Canvas, FAINT, GRID, INK, SMALL, width, wrapped};

/// One bar: a middle, and from where to where the runs went.
#[derive(Debug, Clone, Copy)]
pub struct Bar {
    pub value: f64,
    pub lowest: f64,
    pub highest: f64,
}

impl Bar {
    /// A value without spread.
    #[must_use]
    pub fn exact(value: f64) -> Self {
        Self { value, lowest: value, highest: value }
    }
}

/// A case, with a bar for each series; `None`: it has none (drawn as "none").
#[derive(Debug, Clone)]
pub struct Group {
    pub name: String,
    pub bars: Vec<Option<Bar>>,
}

const WIDTH: f64 = 940.0;
const THICK: f64 = 15.0;
const BETWEEN: f64 = 14.0;
/// Names wider than this are broken.
const NAME_ROOM: f64 = 260.0;

/// Grouped bars with spread marks, `series` naming each group's bars in order.
#[must_use]
pub fn bars(labels: &Labels, series: &[&str], groups: &[Group]) -> String {
    let mut canvas = Canvas::new(WIDTH);
    let head = canvas.head(&labels.title, &labels.subtitle);
    let top = canvas.legend(series, head, false) + 6.0;
    let names: Vec<Vec<String>> = groups.iter().map(|group| wrapped(&group.name, BODY, NAME_ROOM)).collect();
    let widest = names.iter().flatten().map(|line| width(line, BODY)).fold(60.0, f64::max);
    let left = 20.0 + widest + 12.0;
    let right = WIDTH - 86.0;
    let axis = Axis::over(Scale::Linear, groups.iter().flat_map(|group| &group.bars).flatten().map(|bar| bar.highest));
    let x = |value: f64| left + axis.at(value).unwrap_or(0.0) * (right - left);
    let heights: Vec<f64> = groups
        .iter()
        .zip(&names)
        .map(|(group, name)| (group.bars.len() as f64 * THICK).max(name.len() as f64 * BODY * 1.25) + BETWEEN)
        .collect();
    let bottom = top + heights.iter().sum::<f64>();
    for mark in axis.marks() {
        canvas.line((x(mark), top), (x(mark), bottom), GRID, 1.0);
        canvas.text((x(mark), bottom + 16.0), SMALL, FAINT, Anchor::Middle, &figure(mark));
    }
    let mut y = top;
    for ((group, name), height) in groups.iter().zip(&names).zip(&heights) {
        let middle = y + height / 2.0;
        let first = middle - (name.len() as f64 - 1.0) * BODY * 0.625 + BODY * 0.36;
        for (n, line) in name.iter().enumerate() {
            canvas.text((left - 10.0, first + n as f64 * BODY * 1.25), BODY, INK, Anchor::End, line);
        }
        let first = middle - group.bars.len() as f64 * THICK / 2.0;
        for (n, bar) in group.bars.iter().enumerate() {
            draw(&mut canvas, first + n as f64 * THICK, n, *bar, x);
        }
        y += height;
    }
    canvas.line((left, top), (left, bottom), INK, 1.0);
    canvas.text((f64::midpoint(left, right), bottom + 38.0), BODY, INK, Anchor::Middle, &labels.values);
    canvas.finish(bottom + 54.0)
}

fn draw(canvas: &mut Canvas, y: f64, n: usize, bar: Option<Bar>, x: impl Fn(f64) -> f64) {
    let middle = y + THICK / 2.0;
    let shown = bar.filter(|bar| bar.value.is_finite());
    let Some(Bar { value, lowest, highest }) = shown else {
        canvas.text((x(0.0) + 6.0, middle + 4.0), SMALL, FAINT, Anchor::Start, "none");
        return;
    };
    let zero = x(0.0);
    canvas.rectangle((zero.min(x(value)), y + 1.0), ((x(value) - zero).abs(), THICK - 2.0), COLOURS[n % COLOURS.len()]);
    if highest > lowest {
        canvas.line((x(lowest), middle), (x(highest), middle), INK, 1.2);
        for end in [lowest, highest] {
            canvas.line((x(end), middle - 3.5), (x(end), middle + 3.5), INK, 1.2);
        }
    }
    canvas.text((x(value.max(highest)) + 6.0, middle + 4.0), SMALL, INK, Anchor::Start, &figure(value));
}
