//! Names of other systems made into names of steps, ports and inputs.

use std::collections::{HashMap, HashSet};

/// Longest name that is made, in bytes; room is left for a number behind it.
const BYTES_MAX: usize = 100;

/// Gives out names, none twice.
#[derive(Default)]
pub(super) struct Names {
    taken: HashSet<String>,
    /// The number to try next behind a name that was asked for more than once.
    next: HashMap<String, u32>,
}

impl Names {
    /// A name like `text` that is new: letters, digits, `_` and `-`, not beginning with a digit.
    pub(super) fn fresh(&mut self, text: &str) -> String {
        let base = sanitised(text);
        let mut name = base.clone();
        while self.taken.contains(&name) {
            let number = self.next.entry(base.clone()).or_insert(2);
            name = format!("{base}_{number}");
            *number += 1;
        }
        self.taken.insert(name.clone());
        name
    }
}

/// `text` with everything replaced that a name cannot have.
pub(super) fn sanitised(text: &str) -> String {
    let mut name = String::with_capacity(text.len().min(BYTES_MAX));
    for c in text.chars() {
        let c = if c.is_ascii_alphanumeric() || matches!(c, '_' | '-') { c } else { '_' };
        // Runs of what cannot stay become one `_`.
        if c != '_' || !name.ends_with('_') {
            name.push(c);
        }
        if name.len() >= BYTES_MAX {
            break;
        }
    }
    match name.chars().next() {
        Some(c) if c.is_ascii_alphabetic() || c == '_' => name,
        _ => format!("_{name}"),
    }
}

/// `text` as an identifier in conditions: no `-` either, and none of CEL's own words.
pub(super) fn identifier(text: &str) -> String {
    const RESERVED: [&str; 21] = [
        "as",
        "break",
        "const",
        "continue",
        "else",
        "false",
        "for",
        "function",
        "if",
        "import",
        "in",
        "let",
        "loop",
        "namespace",
        "null",
        "package",
        "return",
        "true",
        "var",
        "void",
        "while",
    ];
    let name = sanitised(text).replace('-', "_");
    if RESERVED.contains(&name.as_str()) { name + "_" } else { name }
}

/// What a task's name says about what it runs: the name without its number, `map_00000003` is `map`,
/// `individuals_ID0000001` is `individuals`, `FASTQC (sample 1)` is `FASTQC`.
pub(super) fn kind(name: &str) -> &str {
    let base = match name.split_once(" (") {
        Some((base, rest)) if rest.ends_with(')') => base.trim_end(),
        _ => name,
    };
    let stem = base.trim_end_matches(|c: char| c.is_ascii_digit());
    if stem.len() == base.len() {
        return base;
    }
    match stem.strip_suffix("ID").unwrap_or(stem).strip_suffix(['_', '-', '.']) {
        Some(stem) if !stem.is_empty() => stem,
        _ => base,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_lose_their_numbers() {
        let cases = [
            ("map_00000003", "map"),
            ("chr21_00000001", "chr21"),
            ("chr21", "chr21"),
            ("individuals_ID0000001", "individuals"),
            ("NFCORE:FASTQC (sample 1)", "NFCORE:FASTQC"),
            ("split.12", "split"),
            ("7", "7"),
            ("_7", "_7"),
            ("", ""),
            ("name_", "name_"),
        ];
        for (name, expected) in cases {
            assert_eq!(kind(name), expected, "{name}");
        }
    }

    #[test]
    fn names_are_valid_and_unique() {
        let mut names = Names::default();
        assert_eq!(names.fresh("a b"), "a_b");
        assert_eq!(names.fresh("a:b"), "a_b_2");
        assert_eq!(names.fresh("a_b_2"), "a_b_2_2");
        assert_eq!(names.fresh("9 lives"), "_9_lives");
        assert_eq!(names.fresh(""), "_");
        assert_eq!(names.fresh("-"), "_-");
        assert_eq!(names.fresh("naïve—name"), "na_ve_name");
        assert!(names.fresh(&"x".repeat(10_000)).len() <= 128);
        assert_eq!((identifier("split-now"), identifier("in")), ("split_now".into(), "in_".into()));
    }
}
