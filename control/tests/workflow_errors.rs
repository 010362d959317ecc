//! What is said about mistakes, word for word.
//!
//! Each `workflows/bad/NAME.yaml` has its diagnostics in `NAME.txt` beside it. To accept changed
//! messages, run with `DFLOW_BLESS=1` and read the difference before committing it.

use dflow_control::workflow::{self, Code, DIAGNOSTICS_MAX, Report, Severity};
use proptest::prelude::*;
use std::path::Path;

fn report(text: &str) -> Report {
    match workflow::parse(text, "t.yaml", Path::new("flows")) {
        Ok(_) => panic!("no error in:\n{text}"),
        Err(report) => report,
    }
}

#[test]
fn mistakes_are_told_word_for_word() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/workflows/bad");
    let bless = std::env::var_os("DFLOW_BLESS").is_some();
    let mut seen = 0;
    let mut wrong = Vec::new();
    let entries = std::fs::read_dir(&dir).expect("the directory of bad workflows");
    for entry in entries {
        let path = entry.expect("a directory entry").path();
        if path.extension().is_none_or(|e| e != "yaml") {
            continue;
        }
        seen += 1;
        let name = path.file_name().expect("a file name").to_string_lossy().into_owned();
        let text = std::fs::read_to_string(&path).expect("a workflow");
        let said = match workflow::parse(&text, &name, Path::new("flows")) {
            Ok(_) => panic!("{name} has no error"),
            Err(report) => report.to_string(),
        };
        let expected_path = path.with_extension("txt");
        if bless {
            std::fs::write(&expected_path, &said).expect("a writable directory");
        }
        let expected = std::fs::read_to_string(&expected_path).unwrap_or_default();
        if said != expected {
            wrong.push(format!("== {name}: expected\n{expected}\n== said\n{said}"));
        }
    }
    assert!(seen >= 15, "only {seen} bad workflows found");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

const HEAD: &str = "apiVersion: dflow/v1\nkind: Workflow\nmetadata: {name: t}\n";

fn only_code(text: &str) -> Code {
    let report = report(text);
    assert_eq!(report.diagnostics.len(), 1, "{report}");
    report.diagnostics[0].code
}

#[test]
fn garbage_is_told_as_such() {
    assert_eq!(only_code(""), Code::Syntax);
    assert_eq!(only_code("   \n\n"), Code::Syntax);
    assert_eq!(only_code("\0\0\0"), Code::Syntax);
    assert_eq!(only_code("{[}"), Code::Syntax);
    assert_eq!(only_code("42"), Code::WrongType);
    assert_eq!(only_code(&"[".repeat(100_000)), Code::Syntax);
    assert_eq!(only_code("&a [*a]"), Code::Syntax);
    // Anchors that nest by aliases what may not nest by brackets.
    let mut text = "a0: &a0 [[[[[[[[x]]]]]]]]\n".to_owned();
    for i in 1..12 {
        text += &format!("a{i}: &a{i} [[[[[[[[*a{}]]]]]]]]\n", i - 1);
    }
    assert_eq!(only_code(&text), Code::Limit);
}

#[test]
fn huge_words_are_cut() {
    let name = "x".repeat(10 << 20);
    let text = format!("{HEAD}steps:\n  a: {{function: {name}}}\n");
    let said = report(&text).to_string();
    assert!(said.contains("there is no function `xxxx"), "{said}");
    assert!(said.len() < 2000, "{} bytes", said.len());
    let text = format!("{HEAD}steps:\n  ? {name}\n  : {{function: f}}\n");
    let said = report(&text).to_string();
    assert!(said.len() < 2000, "{} bytes", said.len());
    let text = format!("{HEAD}steps:\n  a: {{function: f, when: '{}'}}\n", "1 +".repeat(1 << 20));
    assert!(report(&text).diagnostics.iter().any(|d| d.code == Code::Limit));
}

#[test]
fn a_flood_of_mistakes_is_counted() {
    let mut text = format!("{HEAD}steps:\n");
    for i in 0..5000 {
        text += &format!("  s{i}: {{function: nope}}\n");
    }
    let report = report(&text);
    assert_eq!((report.diagnostics.len(), report.left_out), (DIAGNOSTICS_MAX, 4900));
    assert!(report.to_string().contains("... and 4900 more like these"));
}

#[test]
fn hostile_text_cannot_steer_the_terminal() {
    let said = report(&format!("{HEAD}steps:\n  a: {{function: \"\\e[2J\u{9b}31m\"}}\n")).to_string();
    assert!(said.chars().all(|c| c == '\n' || !c.is_control()), "{said:?}");
}

#[test]
fn a_long_chain_of_steps_is_no_deep_recursion() {
    let mut text = format!(
        "{HEAD}functions:\n  f: {{runtime: builtin, handler: synthetic, outputs: {{o: json}}}}\nsteps:\n"
    );
    let steps = 20_000;
    for i in 0..steps {
        text += &format!("  s{i}: {{function: f, in: {{x: steps.s{}.o}}}}\n", (i + 1) % steps);
    }
    let report = report(&text);
    assert_eq!(report.diagnostics[0].code, Code::Cycle);
    assert!(report.diagnostics[0].message.len() < 500);
}

#[test]
fn unreadable_files_are_told() {
    let dir = tempfile::tempdir().expect("a directory");
    let load = |path: &Path| workflow::load(path).map(|_| ()).expect_err("an error").diagnostics.remove(0);
    let absent = load(&dir.path().join("absent.yaml"));
    assert_eq!((absent.code, absent.severity), (Code::Io, Severity::Error));
    assert_eq!(load(dir.path()).code, Code::Io);
    let path = dir.path().join("binary.yaml");
    std::fs::write(&path, b"kind: x\n\xff\xfe").expect("a file");
    let binary = load(&path);
    assert_eq!(binary.message, "the file is no text: byte 8, on line 2, is not UTF-8");
}

#[test]
fn a_long_condition_is_no_deep_recursion() {
    for condition in
        ["1 + ".repeat(900) + "1 > 0", "!".repeat(3000) + "true", "(".repeat(1900) + "1" + &")".repeat(1900)]
    {
        let text = format!(
            "{HEAD}steps:\n  s: {{function: {{runtime: builtin, handler: noop}}, when: \"{condition}\"}}\n"
        );
        match workflow::parse(&text, "t.yaml", Path::new(".")) {
            Ok(workflow) => drop(workflow.decide(0, |_| None::<Vec<u8>>, |_| false)),
            Err(report) => {
                assert!(matches!(report.diagnostics[0].code, Code::Limit | Code::BadCondition), "{report}")
            }
        }
    }
}

/// A workflow with most of the format in it, to be mutated.
fn sample() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/workflows/video.yaml");
    std::fs::read_to_string(path).expect("the example")
}

/// Reads `text`; whatever it is, there is an answer, and the answer can be shown.
fn survives(text: &str) {
    match workflow::parse(text, "t.yaml", Path::new("flows")) {
        Ok(workflow) => {
            use dflow_control::graphview::{Format, render};
            for format in [Format::Ascii, Format::Dot, Format::Svg] {
                assert!(!render(&workflow, format).is_empty());
            }
        }
        Err(report) => {
            assert!(report.count(Severity::Error) > 0, "an error without a reason:\n{text}");
            assert!(!report.to_string().is_empty());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_text_has_an_answer(text in "\\PC{0,400}") {
        survives(&text);
    }

    #[test]
    fn any_yaml_like_text_has_an_answer(words in prop::collection::vec(
        prop::sample::select(vec![
            "\n", "\n  ", "\n    ", ": ", "- ", "[", "]", "{", "}", ", ", "*a", "&a ", "<<: ", "\"", "'", "|\n", ">\n", "# ", "---\n",
            "steps", "functions", "inputs", "a", "foreach", "over", "switch", "when", "steps.a.o", "inputs.a", "item.a", "[*]",
            "runtime", "builtin", "apiVersion: dflow/v1\n", "kind: Workflow\n", "1", "5s", "10%", "\u{85}", "é", "\t", "!x ", "? ",
        ]), 0..80)) {
        survives(&words.concat());
    }

    #[test]
    fn any_mutation_of_a_workflow_has_an_answer(
        edits in prop::collection::vec((any::<prop::sample::Index>(), 0usize..12, "[ -~\\n\u{e9}]{0,6}"), 1..4)
    ) {
        let mut text: Vec<char> = sample().chars().collect();
        for (at, removed, added) in edits {
            let at = at.index(text.len());
            let end = (at + removed).min(text.len());
            text.splice(at..end, added.chars());
        }
        survives(&text.into_iter().collect::<String>());
    }

    #[test]
    fn swapped_lines_have_an_answer(a in any::<prop::sample::Index>(), b in any::<prop::sample::Index>(), drop in any::<bool>()) {
        let sample = sample();
        let mut lines: Vec<&str> = sample.lines().collect();
        let (a, b) = (a.index(lines.len()), b.index(lines.len()));
        if drop { lines.remove(a); } else { lines.swap(a, b); }
        survives(&lines.join("\n"));
    }

    #[test]
    fn any_condition_has_an_answer(condition in "[a-z0-9.()\\[\\]\"'&|!<>=+*?:, {}-]{0,60}") {
        let quoted = serde_json::to_string(&condition).expect("a text");
        survives(&format!("{HEAD}inputs: {{a: json}}\nsteps:\n  s: {{function: {{runtime: builtin, handler: noop}}, when: {quoted}}}\n"));
    }
}
