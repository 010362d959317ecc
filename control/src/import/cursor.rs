//! A JSON value that knows where in its file it is, for errors that say so.

use super::error::{ImportError, word};
use serde_json::Value;
use std::fmt::Write as _;

/// Longest name of a task, file or function in a source file, in bytes.
pub(super) const NAME_BYTES_MAX: usize = 4096;
/// Largest file or object, in bytes.
const SIZE_BYTES_MAX: u64 = 1 << 50;
/// Longest run time, in seconds: a year.
const TIME_S_MAX: f64 = 365.0 * 86_400.0;

/// A value and its place.
#[derive(Clone, Copy)]
pub(super) struct At<'v> {
    pub(super) value: &'v Value,
    format: &'static str,
    parent: Option<&'v At<'v>>,
    step: Step<'v>,
}

#[derive(Clone, Copy)]
enum Step<'v> {
    Root,
    Key(&'v str),
    Index(usize),
}

impl<'v> At<'v> {
    /// The whole of a file of this format.
    pub(super) fn root(value: &'v Value, format: &'static str) -> Self {
        At { value, format, parent: None, step: Step::Root }
    }

    /// Where it is.
    pub(super) fn path(&self) -> String {
        let mut text = self.parent.map(At::path).unwrap_or_default();
        match self.step {
            Step::Root => {}
            Step::Key(key) => {
                let dot = if text.is_empty() { "" } else { "." };
                // Writing to a String cannot fail.
                let _ = write!(text, "{dot}{}", word(key));
            }
            Step::Index(index) => {
                let _ = write!(text, "[{index}]");
            }
        }
        text
    }

    /// The path for a message's beginning.
    fn place(&self) -> String {
        let path = self.path();
        if path.is_empty() { "the file".into() } else { path }
    }

    /// The value under a key; `null` counts as absent.
    pub(super) fn get<'s>(&'s self, key: &'s str) -> Option<At<'s>> {
        let value = self.value.as_object()?.get(key).filter(|v| !v.is_null())?;
        Some(At { value, format: self.format, parent: Some(self), step: Step::Key(key) })
    }

    /// The first of several names for one thing.
    pub(super) fn first<'s>(&'s self, keys: &[&'s str]) -> Option<At<'s>> {
        keys.iter().find_map(|key| self.get(key))
    }

    /// The value under a key that must be there.
    pub(super) fn need<'s>(&'s self, key: &'static str) -> Result<At<'s>, ImportError> {
        self.map()?;
        let missing = || ImportError::Missing { path: self.place(), key, format: self.format };
        self.get(key).ok_or_else(missing)
    }

    /// The elements of a list.
    pub(super) fn items<'s>(
        &'s self,
    ) -> Result<impl ExactSizeIterator<Item = At<'s>> + use<'s, 'v>, ImportError> {
        let items = self.value.as_array().ok_or_else(|| self.wrong("a list"))?;
        let at = move |(index, value)| At {
            value,
            format: self.format,
            parent: Some(self),
            step: Step::Index(index),
        };
        Ok(items.iter().enumerate().map(at))
    }

    /// The elements of the list under a key; none if it is absent.
    pub(super) fn list<T>(
        &self,
        key: &str,
        mut read: impl FnMut(At<'_>) -> Result<T, ImportError>,
    ) -> Result<Vec<T>, ImportError> {
        match self.get(key) {
            Some(list) => list.items()?.map(&mut read).collect(),
            None => Ok(Vec::new()),
        }
    }

    /// The entries of a map.
    pub(super) fn entries<'s>(
        &'s self,
    ) -> Result<impl Iterator<Item = (&'s str, At<'s>)> + use<'s, 'v>, ImportError> {
        let map = self.map()?;
        let at = move |(key, value): (&'s String, &'s Value)| {
            (key.as_str(), At { value, format: self.format, parent: Some(self), step: Step::Key(key) })
        };
        Ok(map.iter().map(at))
    }

    fn map(&self) -> Result<&'v serde_json::Map<String, Value>, ImportError> {
        self.value.as_object().ok_or_else(|| self.wrong("a map"))
    }

    /// A text; a number counts as the text that it is written as.
    pub(super) fn text(&self) -> Result<String, ImportError> {
        match self.value {
            Value::String(text) => Ok(text.clone()),
            Value::Number(number) => Ok(number.to_string()),
            _ => Err(self.wrong("a text")),
        }
    }

    /// A text that names something.
    pub(super) fn name(&self) -> Result<String, ImportError> {
        let name = self.text()?;
        self.check_name(&name)?;
        Ok(name)
    }

    /// Whether `name`, which is here (perhaps as a key), can be a name.
    pub(super) fn check_name(&self, name: &str) -> Result<(), ImportError> {
        let have_bytes = name.len();
        if (1..=NAME_BYTES_MAX).contains(&have_bytes) {
            return Ok(());
        }
        Err(ImportError::NameLength { path: self.path(), have_bytes, max_bytes: NAME_BYTES_MAX })
    }

    /// A size in bytes.
    pub(super) fn size_bytes(&self) -> Result<u64, ImportError> {
        Ok(self.number(SIZE_BYTES_MAX as f64)?.round() as u64)
    }

    /// A time in seconds.
    pub(super) fn time_s(&self) -> Result<f64, ImportError> {
        self.number(TIME_S_MAX)
    }

    /// A number from 0 to `max`.
    pub(super) fn number(&self, max: f64) -> Result<f64, ImportError> {
        let number = self.value.as_f64().ok_or_else(|| self.wrong("a number"))?;
        if (0.0..=max).contains(&number) {
            return Ok(number);
        }
        Err(ImportError::OutOfRange { path: self.path(), max, found: self.value.to_string() })
    }

    pub(super) fn wrong(&self, expected: &'static str) -> ImportError {
        let found = match self.value {
            Value::Null => "nothing".into(),
            Value::Bool(b) => format!("`{b}`"),
            Value::Number(n) => format!("the number {n}"),
            Value::String(s) => format!("the text `{}`", word(s)),
            Value::Array(_) => "a list".into(),
            Value::Object(_) => "a map".into(),
        };
        ImportError::WrongType { path: self.place(), expected, found }
    }
}
