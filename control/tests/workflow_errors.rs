//! What is said about mistakes, word for word.
//!
//! Each `workflows/bad/NAME.yaml` has its diagnostics in `NAME.txt` beside it. To accept changed
//! messages, run with `DFLOW_BLESS=1` and read the difference before committing it.

use dflow_control::workflow::{self, Code, DIAGNOSTICS_MAX, Report, Severity};
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
