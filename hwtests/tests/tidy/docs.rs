//! Rules about the documentation.

use crate::{TextFile, expect_none, root, text_files};
use std::path::Path;

/// What a newcomer looks for.
const EXPECTED: [&str; 12] = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "LICENSE",
    ".ci/run",
    "setup",
    "docs/ARCHITECTURE.md",
    "docs/protocol.md",
    "docs/spec.md",
    "docs/testing.md",
    "docs/operations.md",
    "docs/decisions/README.md",
];

#[test]
fn expected_documents_exist() {
    let missing: Vec<String> =
        EXPECTED.iter().filter(|path| !root().join(path).exists()).map(|path| path.to_string()).collect();
    expect_none("these documents are promised:", &missing);
}

#[test]
fn links_lead_somewhere() {
    let mut wrongs = Vec::new();
    for file in text_files().iter().filter(|f| f.has_extension("md")) {
        let folder = root().join(&file.path).parent().expect("a file has a folder").to_path_buf();
        for (line, target) in links(file) {
            let (path, anchor) = target.split_once('#').unwrap_or((&target, ""));
            let target_file = if path.is_empty() { root().join(&file.path) } else { folder.join(path) };
            if !target_file.exists() {
                wrongs.push(format!("{}:{line}: no file {path}", file.path));
            } else if !anchor.is_empty() && !has_anchor(&target_file, anchor) {
                wrongs.push(format!(
                    "{}:{line}: no heading #{anchor} in {}",
                    file.path,
                    target_file.display()
                ));
            }
        }
    }
    expect_none("links that lead nowhere:", &wrongs);
}

/// (line, target) of each `[text](target)` that points into the repository, code excluded.
fn links(file: &TextFile) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut fenced = false;
    for (index, line) in file.text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        }
        if fenced {
            continue;
        }
        // Every second part between backticks is code.
        for prose in line.split('`').step_by(2) {
            for (at, _) in prose.match_indices("](") {
                let target = prose[at + 2..].split(')').next().unwrap_or_default();
                let outside = target.contains("://") || target.starts_with("mailto:");
                if !outside && !target.is_empty() {
                    found.push((index + 1, target.to_owned()));
                }
            }
        }
    }
    found
}

/// Whether a markdown file has a heading whose anchor is `anchor`.
fn has_anchor(path: &Path, anchor: &str) -> bool {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().filter(|line| line.starts_with('#')).any(|line| slug(line.trim_start_matches('#')) == anchor)
}

/// The anchor that a forge gives a heading.
fn slug(heading: &str) -> String {
    let kept = heading.trim().to_lowercase();
    kept.chars()
        .filter(|c| c.is_alphanumeric() || " -_".contains(*c))
        .map(|c| if c == ' ' { '-' } else { c })
        .collect()
}

#[test]
fn decisions_are_numbered_and_indexed() {
    let index =
        std::fs::read_to_string(root().join("docs/decisions/README.md")).expect("the index of decisions");
    let mut names: Vec<String> = std::fs::read_dir(root().join("docs/decisions"))
        .expect("docs/decisions")
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name != "README.md")
        .collect();
    names.sort();
    let mut wrongs = Vec::new();
    for (number, name) in (1..).zip(&names) {
        if !name.starts_with(&format!("{number:04}-")) {
            wrongs.push(format!("{name}: its number should be {number:04}"));
        }
        if !index.contains(&format!("({name})")) {
            wrongs.push(format!("{name}: not in docs/decisions/README.md"));
        }
    }
    expect_none("decisions are numbered without gaps and listed:", &wrongs);
}

#[test]
fn decisions_have_their_parts() {
    let mut wrongs = Vec::new();
    let is_decision = |f: &&TextFile| f.path.starts_with("docs/decisions/0");
    for file in text_files().iter().filter(is_decision) {
        for part in ["## Context", "## Decision", "## Consequences"] {
            if !file.text.contains(part) {
                wrongs.push(format!("{}: no `{part}`", file.path));
            }
        }
    }
    expect_none("a decision says what led to it, what it is, and what it costs:", &wrongs);
}
