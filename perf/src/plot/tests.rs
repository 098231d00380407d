use super::axis::{Axis, figure};
use super::canvas::{width, wrapped};
use super::*;

fn labels() -> Labels {
    Labels {
        title: "Pipeline over memory: hits <both ways>".into(),
        subtitle: "one core".into(),
        values: "ns per packet".into(),
        along: "flows".into(),
    }
}

/// The attribute of every element of a kind.
fn attributes(svg: &str, element: &str, attribute: &str) -> Vec<f64> {
    let (element, attribute) = (format!("<{element} "), format!("{attribute}=\""));
    let elements = svg.split(element.as_str()).skip(1);
    let values = elements.filter_map(|rest| rest.split_once(attribute.as_str()));
    values.map(|(_, rest)| rest.split('"').next().unwrap().parse().unwrap_or(f64::NAN)).collect()
}

#[test]
fn axes_end_on_round_numbers_and_hold_every_value() {
    let axis = Axis::over(Scale::Linear, [3.0, 47.0].into_iter());
    assert_eq!(axis.marks(), [0.0, 10.0, 20.0, 30.0, 40.0, 50.0]);
    assert_eq!((axis.at(0.0), axis.at(50.0), axis.at(25.0)), (Some(0.0), Some(1.0), Some(0.5)));
    let axis = Axis::over(Scale::Log, [1000.0, 1e6].into_iter());
    assert_eq!(axis.at(1000.0), Some(0.0));
    assert!((axis.at(1e6).unwrap() - 1.0).abs() < 1e-9);
    assert!((axis.at(31622.8).unwrap() - 0.5).abs() < 1e-4);
    assert_eq!(axis.at(0.0), None, "nought is nowhere on a logarithmic axis");
    assert_eq!(axis.marks().len(), 10, "{:?}", axis.marks());
    let wide = Axis::over(Scale::Log, [0.3, 2e6].into_iter());
    assert!(wide.marks().iter().all(|mark| (mark.log10() - mark.log10().round()).abs() < 1e-9), "{:?}", wide.marks());
    for nothing in [Axis::over(Scale::Linear, std::iter::empty()), Axis::over(Scale::Log, [f64::NAN].into_iter())] {
        assert!(nothing.marks().len() >= 2, "{nothing:?}");
        assert!(nothing.at(1.0).is_some_and(f64::is_finite));
    }
    let one = Axis::over(Scale::Log, [10.0, 10.0].into_iter());
    assert!(one.at(10.0).is_some_and(f64::is_finite));
}

#[test]
fn figures_are_short() {
    let written = [0.0, 0.04, 0.5, 1.25, 47.0, 47.13, 999.0, 1500.0, 20_000.0, 123_456.0, 1e6, 2.5e6, 3e9, -12.0];
    let expected =
        ["0", "0.04", "0.5", "1.25", "47", "47.1", "999", "1500", "20 k", "123 k", "1 M", "2.5 M", "3 G", "-12"];
    assert_eq!(written.map(figure), expected);
}

#[test]
fn bars_are_as_long_as_their_values() {
    let group = |name: &str, values: [f64; 2]| Group {
        name: name.into(),
        bars: values
            .iter()
            .map(|value| Some(Bar { value: *value, lowest: value * 0.9, highest: value * 1.1 }))
            .collect(),
    };
    let svg = bars(&labels(), &["Penstock", "bare"], &[group("1 k", [40.0, 20.0]), group("1 M", [80.0, 60.0])]);
    // The background, two of the legend, four bars.
    let widths = attributes(&svg, "rect", "width");
    assert_eq!(widths.len(), 7);
    let bar = &widths[3..];
    for (found, wanted) in bar.iter().zip([40.0, 20.0, 80.0, 60.0]) {
        assert!((found / bar[0] - wanted / 40.0).abs() < 0.01, "{bar:?}");
    }
    assert!(svg.contains("&lt;both ways&gt;") && !svg.contains("<both"), "text is escaped");
    assert!(svg.contains(">ns per packet<"));
}

#[test]
fn a_bar_that_is_not_there_says_so() {
    let groups = [Group { name: "ipvs".into(), bars: vec![None, Some(Bar::exact(f64::NAN))] }];
    let svg = bars(&labels(), &["a", "b"], &groups);
    assert_eq!(svg.matches(">none<").count(), 2);
    assert!(!svg.contains("NaN"), "{svg}");
}

#[test]
fn lines_go_through_their_points_and_limits_across() {
    let line = Line { name: "Penstock".into(), points: vec![(1e3, 0.0), (1e6, 100.0)] };
    let limit = Limit { name: "target".into(), value: 50.0 };
    let svg = lines(&labels(), Scale::Log, Scale::Linear, &[line], &[limit]);
    let (_, points) = svg.split_once("points=\"").unwrap();
    let points: Vec<f64> = points.split('"').next().unwrap().split([' ', ',']).map(|n| n.parse().unwrap()).collect();
    let [x0, y0, x1, y1] = points[..] else { panic!("{points:?}") };
    assert!(x0 < x1 && y0 > y1, "{points:?}");
    let dashed = svg.lines().find(|line| line.contains("dasharray")).unwrap();
    let (_, y) = dashed.split_once("y1=\"").unwrap();
    let y: f64 = y.split('"').next().unwrap().parse().unwrap();
    assert!((y - (y0 + y1) / 2.0).abs() < 0.2, "half way up: {y}, {y0}..{y1}");
}

#[test]
fn each_nine_is_as_far_from_the_next() {
    let points = [0.5, 0.9, 0.99, 0.999].map(|quantile| (quantile, 10.0));
    let curve = Curve { name: "Penstock".into(), points: points.to_vec() };
    let svg = latency(&labels(), &[curve], &[]);
    let (_, places) = svg.split_once("points=\"").unwrap();
    let x: Vec<f64> =
        places.split('"').next().unwrap().split(' ').map(|at| at.split_once(',').unwrap().0.parse().unwrap()).collect();
    assert!((x[2] - x[1] - (x[3] - x[2])).abs() < 0.3, "{x:?}");
    assert!(svg.contains(">99.9 %<") && !svg.contains(">99.99 %<"));
}

#[test]
fn words_are_broken_where_they_end() {
    let lines = wrapped("hit-forward nat4 1M flows 10000 services", 12.0, 150.0);
    assert!(lines.len() > 1);
    assert_eq!(lines.join(" "), "hit-forward nat4 1M flows 10000 services");
    assert!(lines.iter().all(|line| width(line, 12.0) <= 150.0), "{lines:?}");
}

#[test]
fn charts_are_written_where_they_were_asked_for() {
    let directory = tempfile::tempdir().unwrap();
    let inside = directory.path().join("charts");
    write(&inside, &[("one", bars(&labels(), &["a"], &[]))]).unwrap();
    assert!(std::fs::read_to_string(inside.join("one.svg")).unwrap().starts_with("<svg"));
    std::fs::write(directory.path().join("file"), "").unwrap();
    let error = write(&directory.path().join("file"), &[]).unwrap_err();
    assert!(error.to_string().contains("file: can't be made"), "{error}");
}

/// Pictures to look at: `PLOT_SAMPLES=DIR cargo test -p penstock-perf plot::tests::samples`.
#[test]
fn samples() {
    let Some(directory) = std::env::var_os("PLOT_SAMPLES") else { return };
    let bar = |value: f64| Some(Bar { value, lowest: value * 0.93, highest: value * 1.12 });
    let groups: Vec<Group> = [
        "hit nat4 1k flows 100 services",
        "hit nat4 1M flows 100 services",
        "new dnat6 1M flows 10000 services, the longest of names",
    ]
    .iter()
    .zip([21.0, 43.0, 340.0])
    .map(|(name, value)| Group { name: (*name).into(), bars: vec![bar(value), bar(value / 2.0), None] })
    .collect();
    let series: Vec<Line> = ["Penstock", "bare forwarder", "kernel forwarding", "nftables NAT", "HAProxy"]
        .iter()
        .enumerate()
        .map(|(n, name)| {
            let points = [1e3_f64, 1e4, 1e5, 1e6].map(|x| (x, x.log10() * 8.0 + n as f64 * 9.0));
            Line { name: (*name).into(), points: points.to_vec() }
        })
        .collect();
    let curve = |name: &str, base: f64| Curve {
        name: name.into(),
        points: [0.0_f64, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 0.9999]
            .map(|q| (q, base / (1.0 - q).powf(0.6)))
            .to_vec(),
    };
    let charts = [
        ("bars", bars(&labels(), &["Penstock", "bare limit", "another"], &groups)),
        (
            "lines",
            lines(&labels(), Scale::Log, Scale::Linear, &series, &[Limit { name: "target 50".into(), value: 50.0 }]),
        ),
        ("latency", latency(&labels(), &[curve("quiet", 3.0), curve("reloading every second", 5.0)], &[])),
    ];
    write(Path::new(&directory), &charts).unwrap();
}
