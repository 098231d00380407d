//! Where text goes: how wide it may be, and whether it may have colours.

use std::io::{self, IsTerminal, Write};

use super::failure::Outcome;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    Plain,
    Bold,
    Dim,
    Good,
    Warn,
    Bad,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Screen {
    /// `None`: a pipe or a file, where nothing is cut.
    pub(super) width: Option<usize>,
    pub(super) height: Option<usize>,
    pub(super) colors: bool,
}

impl Screen {
    pub(super) fn of_stdout() -> Self {
        let terminal = io::stdout().is_terminal();
        let size = if terminal { terminal_size::terminal_size() } else { None };
        let columns = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
        Self {
            width: size.map(|(width, _)| usize::from(width.0)).or(columns).filter(|width| *width >= 20),
            height: size.map(|(_, height)| usize::from(height.0)),
            // https://no-color.org: present and not empty.
            colors: terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()),
        }
    }

    pub(super) fn paint(self, text: &str, style: Style) -> String {
        let code = match style {
            Style::Plain => return text.to_owned(),
            Style::Bold => "1",
            Style::Dim => "2",
            Style::Good => "32",
            Style::Warn => "33",
            Style::Bad => "31",
        };
        if self.colors { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// Words broken at the screen's width, lines after the first indented.
    pub(super) fn wrap(self, first: &str, text: &str) -> String {
        let indent = first.chars().count();
        let width = self.width.unwrap_or(usize::MAX);
        let mut out = first.to_owned();
        let mut column = indent;
        for (index, word) in text.split_whitespace().enumerate() {
            let length = word.chars().count();
            if index > 0 && column + 1 + length > width {
                out.push('\n');
                out.push_str(&" ".repeat(indent));
                column = indent;
            } else if index > 0 {
                out.push(' ');
                column += 1;
            }
            out.push_str(word);
            column += length;
        }
        out
    }

    #[allow(clippy::unused_self, reason = "the screen is what is printed to")]
    pub(super) fn print(self, text: &str) -> Outcome {
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())?;
        out.flush()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_wrap_under_the_first_and_long_words_stay_whole() {
        let narrow = Screen { width: Some(20), height: None, colors: false };
        assert_eq!(narrow.wrap("- ", "one two three four five"), "- one two three four\n  five");
        assert_eq!(narrow.wrap("- ", "a-word-wider-than-the-screen b"), "- a-word-wider-than-the-screen\n  b");
        let pipe = Screen { width: None, height: None, colors: false };
        assert_eq!(pipe.wrap("- ", "one two three four five"), "- one two three four five");
    }

    #[test]
    fn colours_only_where_wanted() {
        let screen = Screen { width: None, height: None, colors: true };
        assert_eq!(screen.paint("down", Style::Bad), "\x1b[31mdown\x1b[0m");
        assert_eq!(Screen { colors: false, ..screen }.paint("down", Style::Bad), "down");
    }
}
