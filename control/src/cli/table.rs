//! Aligned columns that fit the screen: the column that may be cut gives way first.

use super::screen::{Screen, Style};

/// A cut column keeps at least this much.
const LEAST: usize = 8;
/// Names give way before words do, as long as they can be told apart.
const LEAST_NAME: usize = 14;
const GAP: &str = "  ";

#[derive(Debug, Clone)]
pub(super) struct Cell {
    text: String,
    style: Style,
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self { text, style: Style::Plain }
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        text.to_owned().into()
    }
}

pub(super) fn styled(text: impl Into<String>, style: Style) -> Cell {
    Cell { text: text.into(), style }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Column {
    Left,
    Right,
    /// Left, and cut with `…` when the screen is narrow.
    Cut,
    /// As `Cut`, in the middle: names of a cluster begin alike and end unlike.
    Name,
}

#[derive(Debug)]
pub(super) struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    pub(super) fn new(columns: &[(&str, Column)]) -> Self {
        let header = columns.iter().map(|(name, _)| styled(*name, Style::Dim)).collect();
        Self { columns: columns.iter().map(|(_, column)| *column).collect(), rows: vec![header] }
    }

    pub(super) fn row(&mut self, cells: Vec<Cell>) {
        debug_assert_eq!(cells.len(), self.columns.len(), "a cell for each column");
        self.rows.push(cells);
    }

    pub(super) fn render(&self, screen: &Screen) -> String {
        let widths = self.widths(screen.width);
        let mut out = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (index, ((cell, column), width)) in row.iter().zip(&self.columns).zip(&widths).enumerate() {
                let text = cut(&cell.text, *width, *column);
                let padding = " ".repeat(width - text.chars().count());
                let painted = screen.paint(&text, cell.style);
                if index > 0 {
                    line.push_str(GAP);
                }
                match column {
                    Column::Right => line.extend([padding.as_str(), painted.as_str()]),
                    Column::Left | Column::Cut | Column::Name => line.extend([painted.as_str(), padding.as_str()]),
                }
            }
            out.push_str(line.trim_end());
            out.push('\n');
        }
        out
    }

    fn widths(&self, screen: Option<usize>) -> Vec<usize> {
        let widest = |column: usize| {
            let lengths = self.rows.iter().map(|row| row.get(column).map_or(0, |cell| cell.text.chars().count()));
            lengths.max().unwrap_or(0)
        };
        let mut widths: Vec<usize> = (0..self.columns.len()).map(widest).collect();
        let Some(screen) = screen else { return widths };
        let used = |widths: &[usize]| widths.iter().sum::<usize>() + GAP.len() * (widths.len().max(1) - 1);
        for (kinds, least) in [(&[Column::Name][..], LEAST_NAME), (&[Column::Cut, Column::Name], LEAST)] {
            while used(&widths) > screen {
                let candidates = (0..widths.len()).filter(|i| kinds.contains(&self.columns[*i]) && widths[*i] > least);
                let Some(widest) = candidates.max_by_key(|i| widths[*i]) else { break };
                widths[widest] -= 1;
            }
        }
        widths
    }
}

fn cut(text: &str, width: usize, column: Column) -> String {
    let length = text.chars().count();
    if length <= width {
        return text.to_owned();
    }
    let kept = width.saturating_sub(1);
    let tail = if column == Column::Name { kept * 2 / 3 } else { 0 };
    let head = text.chars().take(kept - tail);
    head.chain(std::iter::once('…')).chain(text.chars().skip(length - tail)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new(&[("NAME", Column::Cut), ("RATE", Column::Right), ("WHY", Column::Cut)]);
        table.row(vec!["a-service-with-a-long-name".into(), "1.23M".into(), "fine".into()]);
        table.row(vec!["b".into(), "7".into(), "connection refused by the node".into()]);
        table
    }

    #[test]
    fn columns_align_and_nothing_is_cut_in_a_pipe() {
        let pipe = Screen { width: None, height: None, colors: false };
        let expected = "NAME                         RATE  WHY\n\
                        a-service-with-a-long-name  1.23M  fine\n\
                        b                               7  connection refused by the node\n";
        assert_eq!(table().render(&pipe), expected);
    }

    #[test]
    fn a_narrow_screen_is_never_overrun_while_there_is_something_to_cut() {
        for width in 30..90 {
            let screen = Screen { width: Some(width), height: None, colors: false };
            let text = table().render(&screen);
            assert!(text.lines().all(|line| line.chars().count() <= width), "at {width}:\n{text}");
            assert!(text.contains("1.23M"), "numbers are never cut");
        }
    }

    #[test]
    fn names_keep_what_tells_them_apart() {
        let mut table = Table::new(&[("NAME", Column::Name), ("WHY", Column::Cut)]);
        table.row(vec!["production/checkout-frontend-7:https".into(), "draining: new disk".into()]);
        let screen = Screen { width: Some(40), height: None, colors: false };
        assert_eq!(table.render(&screen).lines().nth(1), Some("product…tend-7:https  draining: new disk"));
    }

    #[test]
    fn colours_do_not_shift_columns() {
        let mut table = Table::new(&[("A", Column::Left), ("B", Column::Left)]);
        table.row(vec![styled("down", Style::Bad), "x".into()]);
        let screen = Screen { width: Some(80), height: None, colors: true };
        assert!(table.render(&screen).contains("\x1b[31mdown\x1b[0m  x"));
    }
}
