//! What a command prints: a table for people, JSON for programs. Data goes to stdout, words to stderr.

use std::io::{self, IsTerminal, Write as _};

use serde::Serialize;

use super::error::CliError;

/// The form of a list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Form {
    /// Columns, for people.
    #[default]
    Table,
    /// JSON, for programs.
    Json,
}

/// `--output`, for every command that lists something.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct OutputArgs {
    /// How to print it
    #[arg(long, short, value_name = "FORM", value_enum, default_value_t)]
    pub output: Form,
}

impl OutputArgs {
    /// Prints `values` as JSON, or the table that is made of them.
    ///
    /// # Errors
    /// When stdout takes no more, but not because the reader has gone.
    pub fn print<T: Serialize>(
        self,
        values: &[T],
        table: impl FnOnce(&[T]) -> Table,
    ) -> Result<(), CliError> {
        let text = match self.output {
            Form::Table => table(values).render(colours(&io::stdout())),
            Form::Json => format!("{}\n", serde_json::to_string_pretty(values)?),
        };
        print(&text)
    }
}

/// Whether what goes there may have colours: to a terminal, unless NO_COLOR is set (no-color.org).
pub fn colours(out: &impl IsTerminal) -> bool {
    out.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty())
}

/// Writes to stdout. A reader that has seen enough (`| head`) is no failure.
///
/// # Errors
/// When stdout takes no more.
pub fn print(text: &str) -> Result<(), CliError> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(CliError::failed(format!("cannot write to stdout: {error}")))
        }
        _ => Ok(()),
    }
}

/// Rows under headings, in columns as wide as their widest cell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table without rows.
    pub fn new<const N: usize>(headings: [&str; N]) -> Self {
        Self { rows: vec![headings.map(str::to_owned).to_vec()] }
    }

    /// Adds a row. Control characters, which could come from another host and steer the terminal, are
    /// replaced; an empty cell becomes `-`, so that every column can be counted.
    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        let clean = |cell: String| {
            let cell = cell.replace(char::is_control, "?");
            if cell.is_empty() { "-".to_owned() } else { cell }
        };
        self.rows.push(cells.map(clean).to_vec());
    }

    /// The text; headings in bold if there are colours.
    pub fn render(&self, colours: bool) -> String {
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<_> = (0..self.rows[0].len()).map(width).collect();
        let mut text = String::new();
        for (number, row) in self.rows.iter().enumerate() {
            let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
            let line = cells.collect::<Vec<_>>().join("  ");
            let line = line.trim_end();
            match number {
                0 if colours => text.push_str(&format!("\x1b[1m{line}\x1b[0m\n")),
                _ => text.push_str(&format!("{line}\n")),
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_no_cell_steers_the_terminal() {
        let mut table = Table::new(["SUBNET", "NODE", "BACKEND"]);
        table.row(["10.42.7.0/24".into(), "ash".into(), "vxlan".into()]);
        table.row(["10.42.19.0/24".into(), String::new(), "\x1b[2Jx\n".into()]);
        assert_eq!(
            table.render(false),
            "\
SUBNET         NODE  BACKEND
10.42.7.0/24   ash   vxlan
10.42.19.0/24  -     ?[2Jx?
"
        );
        assert!(table.render(true).starts_with("\x1b[1mSUBNET         NODE  BACKEND\x1b[0m\n10.42.7.0/24"));
    }
}
