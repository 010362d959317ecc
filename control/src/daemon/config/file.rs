//! The configuration file: TOML, one line a key.

use super::KEYS;
use super::layer::{ConfigError, Line};
use std::path::Path;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Longest file that is read. Bytes.
const BYTES_MAX: u64 = 1 << 20;

/// The keys that the file sets, as text with their lines.
pub(super) fn read(path: &Path) -> Result<Vec<Line>, ConfigError> {
    let unreadable = |source| ConfigError::Unreadable { path: path.to_owned(), source };
    let length = std::fs::metadata(path).map_err(unreadable)?.len();
    if length > BYTES_MAX {
        let why = format!("{length} bytes; at most {BYTES_MAX} are read");
        return Err(unreadable(std::io::Error::new(std::io::ErrorKind::FileTooLarge, why)));
    }
    let text = std::fs::read_to_string(path).map_err(unreadable)?;
    parse(&text, path)
}

fn parse(text: &str, path: &Path) -> Result<Vec<Line>, ConfigError> {
    let line_of = |at: usize| text[..at.min(text.len())].matches('\n').count() + 1;
    let wrong =
        |at: usize, what: String| ConfigError::File { path: path.to_owned(), line: line_of(at), what };
    let table =
        DeTable::parse(text).map_err(|e| wrong(e.span().map_or(0, |s| s.start), e.message().to_owned()))?;
    let mut lines = Vec::new();
    for (key, value) in table.into_inner() {
        let at = key.span().start;
        let name = key.into_inner();
        if !KEYS.iter().any(|k| k.name == name) {
            return Err(wrong(at, unknown(&name)));
        }
        let value = match (name.as_ref(), value.get_ref()) {
            ("peers", DeValue::Table(table)) => {
                let peers: Result<Vec<_>, _> = table.iter().map(|(name, value)| peer(name, value)).collect();
                peers.map(|peers| peers.join(" "))
            }
            _ => scalar(&value),
        };
        let value = value.map_err(|(at, what)| wrong(at, format!("`{name}`: {what}")))?;
        lines.push(Line { key: name.into_owned(), value, line: line_of(at) });
    }
    Ok(lines)
}

/// What to say of a key that does not exist.
fn unknown(name: &str) -> String {
    let near = KEYS.iter().map(|k| (strsim::jaro_winkler(k.name, name), k.name));
    match near.max_by(|a, b| a.0.total_cmp(&b.0)).filter(|(similar, _)| *similar > 0.7) {
        Some((_, near)) => format!("there is no key `{name}`; did you mean `{near}`?"),
        None => format!("there is no key `{name}`; `dflow config show` lists them all"),
    }
}

type Wrong = (usize, String);

fn scalar(value: &Spanned<DeValue<'_>>) -> Result<String, Wrong> {
    match value.get_ref() {
        DeValue::String(text) => Ok(text.to_string()),
        DeValue::Integer(number) => Ok(number.to_string()),
        DeValue::Float(number) => Ok(number.to_string()),
        DeValue::Boolean(value) => Ok(value.to_string()),
        DeValue::Array(items) => {
            items.iter().map(scalar).collect::<Result<Vec<_>, _>>().map(|items| items.join(" "))
        }
        DeValue::Datetime(_) | DeValue::Table(_) => {
            Err((value.span().start, "it is a text, a number or `true`".to_owned()))
        }
    }
}

/// `b = "host:7401"`, or `b = { data = "host:7401", api = "host:7400" }`.
fn peer(name: &Spanned<std::borrow::Cow<'_, str>>, value: &Spanned<DeValue<'_>>) -> Result<String, Wrong> {
    let name = name.get_ref();
    let DeValue::Table(table) = value.get_ref() else { return Ok(format!("{name}={}", scalar(value)?)) };
    let mut data = None;
    let mut api = None;
    for (key, value) in table {
        match key.get_ref().as_ref() {
            "data" => data = Some(scalar(value)?),
            "api" => api = Some(scalar(value)?),
            other => return Err((key.span().start, format!("a peer has `data` and `api`, not `{other}`"))),
        }
    }
    let data = data.ok_or_else(|| (value.span().start, format!("peer `{name}` needs `data`")))?;
    Ok(api.map_or_else(|| format!("{name}={data}"), |api| format!("{name}={data},{api}")))
}
