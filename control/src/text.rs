//! Figures and tables for people.

use std::fmt::Write as _;

/// A size: `3.2 MiB`.
pub(crate) fn bytes_text(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            return if unit == "B" { format!("{bytes} B") } else { format!("{value:.1} {unit}") };
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

/// A duration of microseconds: `870 us`, `12.3 ms`, `1.234 s`, `2 h 05 min`.
pub(crate) fn time_text(us: u64) -> String {
    match us {
        0..1_000 => format!("{us} us"),
        1_000..10_000 => format!("{:.2} ms", us as f64 / 1e3),
        10_000..1_000_000 => format!("{:.1} ms", us as f64 / 1e3),
        1_000_000..120_000_000 => format!("{:.3} s", us as f64 / 1e6),
        120_000_000..3_600_000_000 => format!("{} min {:02} s", us / 60_000_000, us / 1_000_000 % 60),
        _ => format!("{} h {:02} min", us / 3_600_000_000, us / 60_000_000 % 60),
    }
}

/// A moment in microseconds since 1970 as ISO 8601: `2026-11-23T07:14:09Z`.
pub(crate) fn utc_text(unix_us: u64) -> String {
    let seconds = unix_us / 1_000_000;
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Counting in 400-year cycles from a March makes the leap day the last of its year.
    let shifted = days + 719_468;
    let (era, day) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day_of_month:02}T{:02}:{:02}:{:02}Z",
        rest / 3_600,
        rest / 60 % 60,
        rest % 60
    )
}

/// Text for HTML, in elements and in quoted attributes.
pub(crate) fn html(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\n' | '\t' => out.push(c),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// Text on one line of a terminal: what a terminal would obey is shown instead.
pub(crate) fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c }).collect()
}

/// Rows in columns as wide as they need be. Columns whose head begins with `>` are aligned to the right.
pub(crate) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let right: Vec<bool> = head.iter().map(|h| h.starts_with('>')).collect();
    let head: Vec<String> = head.iter().map(|h| h.trim_start_matches('>').to_owned()).collect();
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.chain(head.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let mut out = String::new();
    for row in std::iter::once(&head).chain(rows) {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let width = widths[column];
            let _ = if right[column] {
                write!(line, "{cell:>width$}  ")
            } else {
                write!(line, "{cell:<width$}  ")
            };
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_well() {
        let texts: Vec<_> = [0, 1023, 1024, 5 << 20, 3 << 30, 2 << 40].map(bytes_text).into();
        assert_eq!(texts, ["0 B", "1023 B", "1.0 KiB", "5.0 MiB", "3.0 GiB", "2.0 TiB"]);
    }

    #[test]
    fn times_read_well() {
        let texts: Vec<_> = [7, 1_234, 56_789, 1_234_567, 754_000_000, 7_500_000_000].map(time_text).into();
        assert_eq!(texts, ["7 us", "1.23 ms", "56.8 ms", "1.235 s", "12 min 34 s", "2 h 05 min"]);
    }

    #[test]
    fn dates_are_right() {
        let texts: Vec<_> =
            [0, 951_782_400, 1_709_251_199, 4_102_444_800].map(|s| utc_text(s * 1_000_000)).into();
        let expected =
            ["1970-01-01T00:00:00Z", "2000-02-29T00:00:00Z", "2024-02-29T23:59:59Z", "2100-01-01T00:00:00Z"];
        assert_eq!(texts, expected);
    }

    #[test]
    fn markup_is_shown_and_not_obeyed() {
        assert_eq!(html("<b a='1' c=\"2\">&\u{1b}"), "&lt;b a=&#39;1&#39; c=&quot;2&quot;&gt;&amp;\u{fffd}");
        assert_eq!(plain("a\u{1b}[31mb\r"), "a\u{fffd}[31mb\u{fffd}");
    }

    #[test]
    fn columns_line_up() {
        let rows = [vec!["a".to_owned(), "10".to_owned()], vec!["long".to_owned(), "7".to_owned()]];
        assert_eq!(table(&["NAME", ">N"], &rows), "NAME   N\na     10\nlong   7\n");
    }
}
