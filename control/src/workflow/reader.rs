//! Reading typed values out of the tree, one diagnostic for each that is not what it should be.

use super::diagnostic::{Code, Diagnostics, Problem, Span, nearest, word};
use super::yaml::{Kind, Node};
use super::{reference, units};
use std::collections::HashMap;
use std::ops::RangeInclusive;

/// A map whose keys are the user's own names (steps, ports, labels, ...).
pub(super) type Entries<'n> = Vec<(&'n str, Span, &'n Node)>;

/// A map with known keys.
pub(super) struct Fields<'n> {
    /// What it describes, for messages: ``step `x` ``.
    pub(super) what: String,
    pub(super) span: Span,
    entries: Entries<'n>,
    /// Keys that mean nothing: what `need` misses may be among them, misspelt and reported.
    unknown: Vec<&'n str>,
}

/// The entries of a map, `None` if it is none. Keys that come twice are reported, the first counts.
pub(super) fn entries<'n>(d: &mut Diagnostics<'_>, node: &'n Node, what: &str) -> Option<Entries<'n>> {
    let Kind::Map(pairs) = &node.kind else {
        let message = format!("{what} must be a map, found {}", node.describe());
        d.error(Code::WrongType, node.span, message);
        return None;
    };
    let mut seen: HashMap<&str, ()> = HashMap::with_capacity(pairs.len());
    let mut entries = Vec::with_capacity(pairs.len());
    for (key, value) in pairs {
        let Some(name) = key.scalar() else {
            d.error(
                Code::WrongType,
                key.span,
                format!("a key of {what} must be a text, found {}", key.describe()),
            );
            continue;
        };
        if seen.insert(name, ()).is_some() {
            let message = format!("`{}` comes twice in {what}", word(name));
            d.error_help(Code::DuplicateKey, key.span, message, "remove or rename one of them");
            continue;
        }
        entries.push((name, key.span, value));
    }
    Some(entries)
}

/// The entries of a map of named things, without those whose name could not be referred to.
pub(super) fn named<'n>(d: &mut Diagnostics<'_>, node: &'n Node, what: &str) -> Option<Entries<'n>> {
    if node.is_null() {
        return Some(Vec::new());
    }
    let mut entries = entries(d, node, what)?;
    entries.retain(|(name, span, _)| {
        let good = reference::is_name(name);
        if !good {
            let message = format!("`{}` cannot be a name in {what}", word(name));
            let help = format!(
                "names are letters, digits, `_` and `-`, begin with a letter or `_`, and have at most {} characters",
                reference::NAME_BYTES_MAX
            );
            d.error_help(Code::BadValue, *span, message, help);
        }
        good
    });
    Some(entries)
}

impl<'n> Fields<'n> {
    /// The map's fields; keys that are not in `known` are reported.
    pub(super) fn read(
        d: &mut Diagnostics<'_>,
        node: &'n Node,
        what: impl Into<String>,
        known: &[&str],
    ) -> Option<Fields<'n>> {
        let what = what.into();
        let mut entries = entries(d, node, &what)?;
        let mut unknown = Vec::new();
        entries.retain(|(key, span, _)| {
            let good = known.contains(key);
            if !good {
                unknown.push(*key);
                let message = format!("unknown key `{}` in {what}", word(key));
                d.problem(*span, Problem::near(Code::UnknownKey, message, key, known.iter().copied()));
            }
            good
        });
        Some(Fields { what, span: node.span, entries, unknown })
    }

    /// The value of a key that may be left out.
    pub(super) fn get(&self, key: &str) -> Option<&'n Node> {
        self.entries.iter().find(|(k, ..)| *k == key).map(|(.., node)| *node)
    }

    /// Where a key is; the whole map's place if it is not there.
    pub(super) fn key_span(&self, key: &str) -> Span {
        self.entries.iter().find(|(k, ..)| *k == key).map_or(self.span, |(_, span, _)| *span)
    }

    /// The value of a key that must be there; reported at `at` if it is not.
    pub(super) fn need(&self, d: &mut Diagnostics<'_>, key: &str, at: Span) -> Option<&'n Node> {
        let found = self.get(key);
        if found.is_none() && nearest(key, &self.unknown).is_none() {
            d.error(Code::MissingKey, at, format!("{} needs `{key}`", self.what));
        }
        found
    }

    fn wrong(&self, d: &mut Diagnostics<'_>, key: &str, expected: &str, node: &Node, help: Option<String>) {
        let message = format!("`{key}` of {} must be {expected}, found {}", self.what, node.describe());
        let mut problem = Problem::new(Code::WrongType, message);
        problem.help.extend(help);
        d.problem(node.span, problem);
    }

    /// A text: any scalar, as it is written.
    pub(super) fn text(&self, d: &mut Diagnostics<'_>, key: &str) -> Option<&'n str> {
        let node = self.get(key)?;
        match node.scalar() {
            Some(text) if !node.is_null() => Some(text),
            _ => {
                self.wrong(d, key, "a text", node, None);
                None
            }
        }
    }

    /// `true` or `false`.
    pub(super) fn boolean(&self, d: &mut Diagnostics<'_>, key: &str) -> Option<bool> {
        let node = self.get(key)?;
        let value = node.to_json().as_bool();
        if value.is_none() {
            self.wrong(d, key, "`true` or `false`", node, None);
        }
        value
    }

    /// A whole number in a range.
    pub(super) fn whole(
        &self,
        d: &mut Diagnostics<'_>,
        key: &str,
        range: RangeInclusive<u64>,
    ) -> Option<u64> {
        let node = self.get(key)?;
        let json = node.to_json();
        let (low, high) = (range.start(), range.end());
        match json.as_u64() {
            Some(n) if range.contains(&n) => Some(n),
            _ if json.is_number() => {
                let message = format!(
                    "`{key}` of {} must be a whole number from {low} to {high}, found {}",
                    self.what,
                    node.describe()
                );
                d.error(Code::BadValue, node.span, message);
                None
            }
            _ => {
                let quoted = json.as_str().is_some_and(|t| t.parse::<u64>().is_ok());
                let help = quoted.then(|| "remove the quotes".to_owned());
                self.wrong(d, key, "a whole number", node, help);
                None
            }
        }
    }

    /// A number in a range.
    pub(super) fn number(
        &self,
        d: &mut Diagnostics<'_>,
        key: &str,
        range: RangeInclusive<f64>,
    ) -> Option<f64> {
        let node = self.get(key)?;
        match node.to_json().as_f64() {
            Some(n) if range.contains(&n) => Some(n),
            Some(_) => {
                let (low, high) = (range.start(), range.end());
                let message = format!(
                    "`{key}` of {} must be from {low} to {high}, found {}",
                    self.what,
                    node.describe()
                );
                d.error(Code::BadValue, node.span, message);
                None
            }
            None => {
                self.wrong(d, key, "a number", node, None);
                None
            }
        }
    }

    /// A duration in milliseconds.
    pub(super) fn duration_ms(&self, d: &mut Diagnostics<'_>, key: &str) -> Option<u64> {
        self.measure(d, key, "a duration", units::duration_ms)
    }

    /// A size in bytes.
    pub(super) fn size_bytes(&self, d: &mut Diagnostics<'_>, key: &str) -> Option<u64> {
        self.measure(d, key, "a size", units::size_bytes)
    }

    /// A share of the processors in thousandths of a core.
    pub(super) fn cpu_milli(&self, d: &mut Diagnostics<'_>, key: &str) -> Option<u32> {
        self.measure(d, key, "a number of cores", units::cpu_milli)
    }

    fn measure<T>(
        &self,
        d: &mut Diagnostics<'_>,
        key: &str,
        expected: &str,
        read: fn(&str) -> Result<T, String>,
    ) -> Option<T> {
        let node = self.get(key)?;
        match node.scalar().map(read) {
            Some(Ok(value)) => Some(value),
            Some(Err(help)) => {
                self.wrong(d, key, expected, node, Some(help));
                None
            }
            None => {
                self.wrong(d, key, expected, node, None);
                None
            }
        }
    }

    /// One of some words.
    pub(super) fn choice<T: Copy>(
        &self,
        d: &mut Diagnostics<'_>,
        key: &str,
        choices: &[(&str, T)],
    ) -> Option<T> {
        let text = self.text(d, key)?;
        let chosen = choices.iter().find(|(name, _)| *name == text).map(|(_, value)| *value);
        if chosen.is_none() {
            let message = format!("`{key}` of {} cannot be `{}`", self.what, word(text));
            let names = choices.iter().map(|(name, _)| *name);
            d.problem(self.get(key)?.span, Problem::near(Code::BadValue, message, text, names));
        }
        chosen
    }

    /// A list; `None` if it is left out or none.
    pub(super) fn list(&self, d: &mut Diagnostics<'_>, key: &str) -> Option<&'n [Node]> {
        let node = self.get(key)?;
        match &node.kind {
            Kind::Seq(items) => Some(items),
            _ => {
                let help = node.scalar().map(|text| format!("write `{key}: [{}]`", word(text)));
                self.wrong(d, key, "a list", node, help);
                None
            }
        }
    }

    /// A list of texts.
    pub(super) fn texts(&self, d: &mut Diagnostics<'_>, key: &str) -> Option<Vec<(&'n str, Span)>> {
        let items = self.list(d, key)?;
        let mut texts = Vec::with_capacity(items.len());
        for item in items {
            match item.scalar() {
                Some(text) => texts.push((text, item.span)),
                None => {
                    let message = format!(
                        "`{key}` of {} must be a list of texts, found {} in it",
                        self.what,
                        item.describe()
                    );
                    d.error(Code::WrongType, item.span, message);
                }
            }
        }
        Some(texts)
    }

    /// A map from the user's words to texts.
    pub(super) fn text_map(
        &self,
        d: &mut Diagnostics<'_>,
        key: &str,
    ) -> std::collections::BTreeMap<String, String> {
        let what = format!("`{key}` of {}", self.what);
        let Some(found) = self.get(key).and_then(|node| entries(d, node, &what)) else {
            return Default::default();
        };
        let mut map = std::collections::BTreeMap::new();
        for (name, _, node) in found {
            match node.scalar() {
                Some(text) => {
                    map.insert(name.to_owned(), text.to_owned());
                }
                None => {
                    let message =
                        format!("`{}` in {what} must be a text, found {}", word(name), node.describe());
                    d.error(Code::WrongType, node.span, message);
                }
            }
        }
        map
    }
}
