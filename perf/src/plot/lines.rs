//! Lines over a linear or logarithmic axis, and latency by percentile.

use super::Labels;
pub use super::axis::Scale;
use super::axis::{Axis, figure};
use super::canvas::{Anchor, BODY, COLOURS, Canvas, FAINT, GRID, INK, SMALL, width};

/// A named series of points, in the order of x.
#[derive(Debug, Clone)]
pub struct Line {
    pub name: String,
    pub points: Vec<(f64, f64)>,
}

/// A value drawn across the chart, with its name.
#[derive(Debug, Clone)]
pub struct Limit {
    pub name: String,
    pub value: f64,
}

/// Percentiles of one run: quantile (0.99) and value.
#[derive(Debug, Clone)]
pub struct Curve {
    pub name: String,
    pub points: Vec<(f64, f64)>,
}

const WIDTH: f64 = 940.0;
const TALL: f64 = 400.0;

/// Lines with marks, x and y each over its own scale.
#[must_use]
pub fn lines(labels: &Labels, x: Scale, y: Scale, series: &[Line], limits: &[Limit]) -> String {
    let over = Axis::over(x, series.iter().flat_map(|line| &line.points).map(|point| point.0));
    let marks = over.marks().into_iter().map(|mark| (mark, figure(mark))).collect();
    chart(labels, &over, marks, y, series, limits)
}

/// Latency by percentile, the tail spread out as HdrHistogram's plots do: each nine as far from the next.
#[must_use]
pub fn latency(labels: &Labels, curves: &[Curve], limits: &[Limit]) -> String {
    let beyond = |quantile: f64| 1.0 / (1.0 - quantile.min(0.999_999_9));
    let series: Vec<Line> = curves
        .iter()
        .map(|Curve { name, points }| {
            let points = points.iter().map(|(quantile, value)| (beyond(*quantile), *value)).collect();
            Line { name: name.clone(), points }
        })
        .collect();
    let farthest = series.iter().flat_map(|line| &line.points).map(|point| point.0).fold(10.0, f64::max);
    let over = Axis::over(Scale::Log, [1.0, farthest].into_iter());
    let named = [0.0, 0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999, 0.999_999];
    let marks = named.iter().map(|quantile| (beyond(*quantile), percent(*quantile)));
    let marks = marks.filter(|(at, _)| *at <= farthest * 1.01).collect();
    let labels = Labels { along: "percentile".into(), ..labels.clone() };
    chart(&labels, &over, marks, Scale::Log, &series, limits)
}

/// 0.999 as "99.9 %".
fn percent(quantile: f64) -> String {
    let digits = format!("{:.4}", quantile * 100.0);
    format!("{} %", digits.trim_end_matches('0').trim_end_matches('.'))
}

fn chart(
    labels: &Labels,
    over: &Axis,
    marks: Vec<(f64, String)>,
    scale: Scale,
    series: &[Line],
    limits: &[Limit],
) -> String {
    let mut canvas = Canvas::new(WIDTH);
    let head = canvas.head(&labels.title, &labels.subtitle);
    let names: Vec<&str> = series.iter().map(|line| line.name.as_str()).collect();
    let top = canvas.legend(&names, head, true) + 10.0;
    let shown = series.iter().flat_map(|line| &line.points).map(|point| point.1);
    let up = Axis::over(scale, shown.chain(limits.iter().map(|limit| limit.value)));
    let values: Vec<(f64, String)> = up.marks().into_iter().map(|mark| (mark, figure(mark))).collect();
    let widest = values.iter().map(|(_, text)| width(text, SMALL)).fold(0.0, f64::max);
    let (left, right, bottom) = (20.0 + BODY * 1.6 + widest + 10.0, WIDTH - 40.0, top + TALL);
    let place = |(x, y): (f64, f64)| {
        let (x, y) = (over.at(x)?, up.at(y)?);
        Some((left + x * (right - left), bottom - y * (bottom - top)))
    };
    for (mark, text) in &values {
        let Some(y) = up.at(*mark).map(|y| bottom - y * (bottom - top)) else { continue };
        canvas.line((left, y), (right, y), GRID, 1.0);
        canvas.text((left - 8.0, y + 4.0), SMALL, FAINT, Anchor::End, text);
    }
    for (mark, text) in &marks {
        let Some(x) = over.at(*mark).map(|x| left + x * (right - left)) else { continue };
        canvas.line((x, top), (x, bottom), GRID, 1.0);
        canvas.text((x, bottom + 17.0), SMALL, FAINT, Anchor::Middle, text);
    }
    canvas.line((left, top), (left, bottom), INK, 1.0);
    canvas.line((left, bottom), (right, bottom), INK, 1.0);
    for limit in limits {
        let Some(y) = up.at(limit.value).map(|y| bottom - y * (bottom - top)) else { continue };
        canvas.dashed((left, y), (right, y));
        canvas.text((right - 4.0, y - 5.0), SMALL, INK, Anchor::End, &limit.name);
    }
    for (n, line) in series.iter().enumerate() {
        let points: Vec<(f64, f64)> = line.points.iter().copied().filter_map(place).collect();
        canvas.path(&points, COLOURS[n % COLOURS.len()]);
        // Marks on more points than this would hide the line.
        if points.len() <= 40 {
            points.iter().for_each(|point| canvas.mark(n, *point));
        }
    }
    canvas.upright((20.0 + BODY * 0.8, f64::midpoint(top, bottom)), &labels.values);
    canvas.text((f64::midpoint(left, right), bottom + 40.0), BODY, INK, Anchor::Middle, &labels.along);
    canvas.finish(bottom + 56.0)
}
