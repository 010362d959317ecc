//! The licences of everything that is linked in, against the list in `.deny.toml`. `cargo deny`
//! checks more; this needs no further tool and no network.

use crate::{expect_none, root};
use serde_json::Value;
use std::process::Command;

/// The licences that `.deny.toml` allows.
fn allowed() -> Vec<String> {
    let text = std::fs::read_to_string(root().join(".deny.toml")).expect(".deny.toml");
    let list = text
        .split_once("\nallow = [")
        .and_then(|(_, rest)| rest.split_once(']'))
        .expect("a list of licences")
        .0;
    list.split('"').skip(1).step_by(2).map(str::to_owned).collect()
}

/// What `.deny.toml` says of crates that state no licence themselves, as (name@version, expression).
fn clarified() -> Vec<(String, String)> {
    let text = std::fs::read_to_string(root().join(".deny.toml")).expect(".deny.toml");
    let value = |block: &str, key: &str| {
        let line =
            block.lines().find_map(|line| line.strip_prefix(key)?.trim().strip_prefix('=').map(str::trim));
        line.map(|value| value.trim_matches('"').to_owned()).unwrap_or_default()
    };
    let blocks = text.split("[[licenses.clarify]]").skip(1);
    blocks.map(|block| (value(block, "crate"), value(block, "expression"))).collect()
}

/// Whether an SPDX expression can be met with `allowed` licences alone.
fn is_met(expression: &str, allowed: &[String]) -> bool {
    // The slash is how crates said OR before SPDX.
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut at = 0;
    let met = alternatives(&words, &mut at, allowed);
    met && at == words.len()
}

/// `all OR all OR ...`; AND binds tighter, as SPDX has it.
fn alternatives(words: &[&str], at: &mut usize, allowed: &[String]) -> bool {
    let mut met = all(words, at, allowed);
    while words.get(*at) == Some(&"OR") {
        *at += 1;
        met |= all(words, at, allowed);
    }
    met
}

/// `one AND one AND ...`
fn all(words: &[&str], at: &mut usize, allowed: &[String]) -> bool {
    let mut met = one(words, at, allowed);
    while words.get(*at) == Some(&"AND") {
        *at += 1;
        met &= one(words, at, allowed);
    }
    met
}

/// A licence, a licence WITH an exception, or an expression in parentheses.
fn one(words: &[&str], at: &mut usize, allowed: &[String]) -> bool {
    let Some(word) = words.get(*at) else { return false };
    *at += 1;
    if *word == "(" {
        let met = alternatives(words, at, allowed);
        *at += 1;
        return met;
    }
    let mut licence = word.to_string();
    if words.get(*at) == Some(&"WITH") {
        licence = format!("{licence} WITH {}", words.get(*at + 1).unwrap_or(&""));
        *at += 2;
    }
    allowed.contains(&licence)
}

#[test]
fn licences_are_allowed() {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let arguments = ["metadata", "--offline", "--format-version", "1", "--filter-platform"];
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let output =
        Command::new(cargo).args(arguments).arg(target).current_dir(root()).output().expect("cargo starts");
    if !output.status.success() {
        println!(
            "SKIP licences: not all crates are here: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        return;
    }
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo metadata is JSON");
    let (allowed, clarified) = (allowed(), clarified());
    let mut wrongs = Vec::new();
    for package in metadata["packages"].as_array().expect("packages") {
        let name = format!(
            "{}@{}",
            package["name"].as_str().unwrap_or_default(),
            package["version"].as_str().unwrap_or_default()
        );
        let said = clarified.iter().find(|(clarified, _)| *clarified == name).map(|(_, said)| said.as_str());
        let licence = package["license"].as_str().or(said).unwrap_or("none stated");
        if !is_met(licence, &allowed) {
            wrongs.push(format!("{} {}: {licence}", package["name"], package["version"]));
        }
    }
    expect_none("licences that .deny.toml does not allow:", &wrongs);
}

#[test]
fn expressions_are_understood() {
    let allowed = ["MIT".to_owned(), "Apache-2.0 WITH LLVM-exception".to_owned(), "BSD-3-Clause".to_owned()];
    for met in [
        "MIT",
        "GPL-3.0/MIT",
        "(GPL-3.0 OR MIT) AND BSD-3-Clause",
        "Apache-2.0 WITH LLVM-exception",
        "A AND B OR MIT",
    ] {
        assert!(is_met(met, &allowed), "{met}");
    }
    for unmet in [
        "GPL-3.0",
        "MIT AND GPL-3.0",
        "Apache-2.0",
        "",
        "MIT MIT",
        "none stated",
        "(MIT OR BSD-3-Clause) AND GPL-3.0",
    ] {
        assert!(!is_met(unmet, &allowed), "{unmet}");
    }
}
