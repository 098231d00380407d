//! Aligned columns that fit the screen: the column that may be cut gives way first.

use super::screen::{Screen, Style};

/// A cut column keeps at least this much.
const LEAST: usize = 8;
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
}

#[derive(Debug)]
pub(super) struct Table {
    indent: usize,
    columns: Vec<Column>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    pub(super) fn new(columns: &[(&str, Column)]) -> Self {
        let header = columns.iter().map(|(name, _)| styled(*name, Style::Dim)).collect();
        Self { indent: 0, columns: columns.iter().map(|(_, column)| *column).collect(), rows: vec![header] }
    }

    pub(super) fn indented(mut self, indent: usize) -> Self {
        self.indent = indent;
        self
    }

    pub(super) fn row(&mut self, cells: Vec<Cell>) {
        debug_assert_eq!(cells.len(), self.columns.len(), "a cell for each column");
        self.rows.push(cells);
    }

    pub(super) fn render(&self, screen: &Screen) -> String {
        let widths = self.widths(screen.width);
        let mut out = String::new();
        for row in &self.rows {
            let mut line = " ".repeat(self.indent);
            for (index, ((cell, column), width)) in row.iter().zip(&self.columns).zip(&widths).enumerate() {
                let text = cut(&cell.text, *width);
                let padding = " ".repeat(width - text.chars().count());
                let painted = screen.paint(&text, cell.style);
                if index > 0 {
                    line.push_str(GAP);
                }
                match column {
                    Column::Right => line.extend([padding.as_str(), painted.as_str()]),
                    Column::Left | Column::Cut => line.extend([painted.as_str(), padding.as_str()]),
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
        let used = |widths: &[usize]| self.indent + widths.iter().sum::<usize>() + GAP.len() * (widths.len().max(1) - 1);
        while used(&widths) > screen {
            let candidates = (0..widths.len()).filter(|i| self.columns[*i] == Column::Cut && widths[*i] > LEAST);
            let Some(widest) = candidates.max_by_key(|i| widths[*i]) else { break };
            widths[widest] -= 1;
        }
        widths
    }
}

fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let mut kept: String = text.chars().take(width.saturating_sub(1)).collect();
    kept.push('…');
    kept
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
    fn colours_do_not_shift_columns() {
        let mut table = Table::new(&[("A", Column::Left), ("B", Column::Left)]);
        table.row(vec![styled("down", Style::Bad), "x".into()]);
        let screen = Screen { width: Some(80), height: None, colors: true };
        assert!(table.render(&screen).contains("\x1b[31mdown\x1b[0m  x"));
    }
}
