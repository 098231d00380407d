//! SVG's few elements that a chart is made of.

use std::fmt::Write as _;

/// Okabe and Ito's colours, those first that stand out most from white; yellow is left out for it.
pub const COLOURS: [&str; 7] = ["#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000"];
pub const INK: &str = "#222222";
pub const FAINT: &str = "#6a6a6a";
pub const GRID: &str = "#dddddd";

pub const TITLE: f64 = 17.0;
pub const BODY: f64 = 12.5;
pub const SMALL: f64 = 11.0;

/// Where text stands to its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Anchor {
    Start,
    Middle,
    End,
}

/// An SVG under construction.
pub struct Canvas {
    pub width: f64,
    body: String,
}

impl Canvas {
    pub fn new(width: f64) -> Self {
        Self { width, body: String::new() }
    }

    // `write!` to a `String` does not fail.
    pub fn text(&mut self, (x, y): (f64, f64), size: f64, colour: &str, anchor: Anchor, text: &str) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        let weight = if size >= TITLE { " font-weight=\"600\"" } else { "" };
        let _ = writeln!(
            self.body,
            "<text x=\"{x:.1}\" y=\"{y:.1}\" font-size=\"{size}\" fill=\"{colour}\" text-anchor=\"{anchor}\"{weight}>{}</text>",
            escaped(text)
        );
    }

    /// Text that reads upwards, its middle here.
    pub fn upright(&mut self, (x, y): (f64, f64), text: &str) {
        let _ = writeln!(
            self.body,
            "<text transform=\"translate({x:.1} {y:.1}) rotate(-90)\" font-size=\"{BODY}\" fill=\"{INK}\" \
             text-anchor=\"middle\">{}</text>",
            escaped(text)
        );
    }

    pub fn line(&mut self, (x1, y1): (f64, f64), (x2, y2): (f64, f64), colour: &str, width: f64) {
        let _ = writeln!(
            self.body,
            "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"{colour}\" stroke-width=\"{width}\"/>"
        );
    }

    pub fn dashed(&mut self, (x1, y1): (f64, f64), (x2, y2): (f64, f64)) {
        let _ = writeln!(
            self.body,
            "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"{INK}\" stroke-width=\"1.2\" \
             stroke-dasharray=\"6 4\"/>"
        );
    }

    pub fn rectangle(&mut self, (x, y): (f64, f64), (width, height): (f64, f64), colour: &str) {
        let _ = writeln!(
            self.body,
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" fill=\"{colour}\"/>"
        );
    }

    pub fn path(&mut self, points: &[(f64, f64)], colour: &str) {
        let places: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let _ = writeln!(
            self.body,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\" stroke-linejoin=\"round\"/>",
            places.join(" ")
        );
    }

    /// The n-th line's mark.
    pub fn mark(&mut self, n: usize, (x, y): (f64, f64)) {
        let colour = COLOURS[n % COLOURS.len()];
        let r = 4.0;
        let points = match n % 4 {
            0 => {
                let _ = writeln!(self.body, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{r}\" fill=\"{colour}\"/>");
                return;
            }
            1 => vec![(x - r, y - r), (x + r, y - r), (x + r, y + r), (x - r, y + r)],
            2 => vec![(x, y - r * 1.2), (x + r * 1.1, y + r), (x - r * 1.1, y + r)],
            _ => vec![(x, y - r * 1.3), (x + r * 1.3, y), (x, y + r * 1.3), (x - r * 1.3, y)],
        };
        let places: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let _ = writeln!(self.body, "<polygon points=\"{}\" fill=\"{colour}\"/>", places.join(" "));
    }

    /// Title and what is below it; returns where the chart goes on.
    pub fn head(&mut self, title: &str, subtitle: &str) -> f64 {
        let mut y = 10.0;
        for line in wrapped(title, TITLE * 1.05, self.width - 40.0) {
            y += TITLE * 1.3;
            self.text((20.0, y), TITLE, INK, Anchor::Start, &line);
        }
        for line in wrapped(subtitle, SMALL, self.width - 40.0) {
            y += SMALL * 1.5;
            self.text((20.0, y), SMALL, FAINT, Anchor::Start, &line);
        }
        y + 8.0
    }

    /// Names of the series with their colours, in as many lines as they need.
    pub fn legend(&mut self, names: &[&str], mut y: f64, lines: bool) -> f64 {
        if names.len() < 2 {
            return y;
        }
        let mut x = 20.0;
        y += 16.0;
        for (n, name) in names.iter().enumerate() {
            let wide = 26.0 + width(name, BODY) + 18.0;
            if x + wide > self.width - 10.0 && x > 20.0 {
                (x, y) = (20.0, y + 20.0);
            }
            let colour = COLOURS[n % COLOURS.len()];
            if lines {
                self.line((x, y - 4.0), (x + 20.0, y - 4.0), colour, 2.0);
                self.mark(n, (x + 10.0, y - 4.0));
            } else {
                self.rectangle((x + 4.0, y - 10.0), (12.0, 12.0), colour);
            }
            self.text((x + 26.0, y), BODY, INK, Anchor::Start, name);
            x += wide;
        }
        y + 12.0
    }

    pub fn finish(self, height: f64) -> String {
        let Self { width, body } = self;
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" \
             height=\"{height:.0}\" font-family=\"'DejaVu Sans', Verdana, Arial, sans-serif\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n{body}</svg>\n"
        )
    }
}

/// About how wide a text is: DejaVu Sans and Verdana, the widest of the fonts named.
pub fn width(text: &str, size: f64) -> f64 {
    let units: f64 = text
        .chars()
        .map(|c| match c {
            'i' | 'j' | 'l' | '.' | ',' | ':' | ';' | '|' | '\'' | ' ' => 0.34,
            'f' | 't' | 'r' | '(' | ')' | '-' | '/' | 'I' => 0.42,
            'm' | 'w' | 'M' | 'W' | '%' => 0.98,
            _ if c.is_uppercase() => 0.71,
            _ => 0.63,
        })
        .sum();
    units * size
}

/// Broken into lines at spaces.
pub fn wrapped(text: &str, size: f64, room: f64) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if width(line, size) + width(word, size) + size * 0.34 <= room => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
