//! The demonstration's job on a small corpus: both forms, both ways of starting, the same right answer.

#![allow(clippy::print_stdout)]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Real text, but little of it: megabytes (10^6 bytes).
const CORPUS_MB: &str = "4";
/// Odd, so that pieces end at odd places.
const SHARDS: &str = "7";

fn workload(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("hwtests lies in the root")
        .join("benches/workloads/wordcount")
        .join(file)
}

/// `dflow` beside this test, if it is built and knows the command this test needs.
fn dflow() -> Option<PathBuf> {
    let test = std::env::current_exe().expect("the path of this test");
    let path = test.parent()?.parent()?.join("dflow");
    let help = Command::new(&path).args(["run", "--help"]).stdin(Stdio::null()).output().ok()?;
    String::from_utf8_lossy(&help.stdout).contains("--input").then_some(path)
}

/// Runs a command to its end; its output, all of it, if it failed.
fn run(command: &mut Command) -> Result<(), String> {
    let shown = format!("{command:?}");
    let output = command.stdin(Stdio::null()).output().map_err(|e| format!("{shown}: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    Err(format!("{shown}: {}\n{stdout}{stderr}", output.status))
}

/// What every form needs: the binary, text, and the native functions. `None` after saying what is missing.
fn prepare(folder: &Path) -> Option<(PathBuf, PathBuf)> {
    let Some(dflow) = dflow() else {
        println!("SKIP word count: no `dflow run` beside this test; `cargo build --workspace` first");
        return None;
    };
    let corpus = folder.join("corpus.txt");
    let gathered =
        run(Command::new(workload("gather")).arg(&corpus).args(["--mb", CORPUS_MB, "--mb-min", "0.1"]));
    if let Err(why) = gathered {
        println!("SKIP word count: no text on this machine: {}", why.replace('\n', " "));
        return None;
    }
    if let Err(why) = run(&mut Command::new(workload("native/build"))) {
        println!("SKIP word count: no C compiler: {}", why.replace('\n', " "));
        return None;
    }
    Some((dflow, corpus))
}

#[test]
fn every_form_counts_right() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let Some((dflow, corpus)) = prepare(folder.path()) else { return };
    for form in ["wordcount", "wordcount-native"] {
        for start in ["first-byte", "all-ready", "eager"] {
            let results = folder.path().join(format!("{form}-{start}"));
            let mut command = Command::new(&dflow);
            command.arg("run").arg(workload(&format!("{form}.yaml"))).args(["--start", start, "--input"]);
            command.arg(format!("text=@{}", corpus.display())).args([
                "--input",
                &format!("shards={SHARDS}"),
                "-o",
            ]);
            run(command.arg(&results)).unwrap_or_else(|why| panic!("{form}, {start}: {why}"));
            let checked = run(Command::new(workload("check")).arg(&corpus).arg(&results));
            checked.unwrap_or_else(|why| panic!("{form}, {start}: {why}"));
        }
    }
}

#[test]
fn a_wrong_table_is_told() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let corpus = folder.path().join("corpus.txt");
    std::fs::write(&corpus, "The cat, the hat. cat5cat").expect("a corpus");
    let right = ("cat 3\nhat 1\nthe 2\n", r#"{"words": 6, "distinct": 3, "top": [["cat", 3], ["the", 2]]}"#);
    let wrong_count = ("cat 2\nhat 1\nthe 2\n", right.1);
    let wrong_top = (right.0, r#"{"words": 6, "distinct": 3, "top": [["the", 2], ["cat", 3]]}"#);
    for ((counts, top), accepted) in [(right, true), (wrong_count, false), (wrong_top, false)] {
        std::fs::write(folder.path().join("counts"), counts).expect("a table");
        std::fs::write(folder.path().join("top"), top).expect("a summary");
        let checked = run(Command::new(workload("check")).arg(&corpus).arg(folder.path()));
        assert_eq!(checked.is_ok(), accepted, "{counts}{top}: {checked:?}");
    }
}
