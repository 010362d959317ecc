//! How figures are printed.

/// The form of figures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Format {
    /// For people
    Table,
    /// All figures
    Json,
    /// For spreadsheets
    Csv,
}

/// A line of cells; nothing in JSON.
pub(super) fn line(format: Format, cells: &[String]) -> String {
    match format {
        Format::Json => String::new(),
        Format::Csv => cells.join(",") + "\n",
        Format::Table => {
            let padded: Vec<String> = cells.iter().map(|cell| format!("{cell:>11}")).collect();
            padded.join(" ") + "\n"
        }
    }
}

/// As [`line`], of cells whose first is a name and whose last is a text.
pub(super) fn named_line(format: Format, cells: &[String]) -> String {
    let ([first, rest @ .., last], Format::Table) = (cells, format) else { return line(format, cells) };
    let rest: Vec<String> = rest.iter().map(|cell| format!("{cell:>11}")).collect();
    format!("{first:<16} {}  {last}\n", rest.join(" "))
}
