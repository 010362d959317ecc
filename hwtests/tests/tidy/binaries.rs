//! Which shared libraries the built binaries need, read from their dynamic section.

use crate::expect_none;
use std::path::PathBuf;
use std::process::Command;

/// The C library and the compiler's runtime: on every machine.
const BASE: [&str; 4] = ["libc.so.6", "libgcc_s.so.1", "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"];

/// For each binary what it may need beyond [`BASE`]. A library here is a package that every user
/// must install, and in a function's process a guest in somebody else's program.
const BINARIES: [(&str, &[&str]); 3] =
    [("libdflow.so", &[]), ("dflow-zygote", &[]), ("dflow", &["libm.so.6", "libdl.so.2", "libpthread.so.0"])];

/// Where cargo put this test's siblings: `target/PROFILE`.
fn built() -> PathBuf {
    let test = std::env::current_exe().expect("the path of this test");
    test.parent().and_then(|deps| deps.parent()).expect("target/PROFILE/deps/test").to_path_buf()
}

#[test]
fn binaries_need_few_libraries() {
    let mut wrongs = Vec::new();
    for (name, beyond_base) in BINARIES {
        let path = built().join(name);
        if !path.exists() {
            println!("SKIP libraries of {name}: not built; `cargo build --workspace` first");
            continue;
        }
        let Ok(output) = Command::new("readelf").args(["--dynamic", "--wide"]).arg(&path).output() else {
            println!("SKIP libraries of {name}: no readelf; install binutils");
            continue;
        };
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && text.contains("Dynamic section"),
            "readelf {}: {text}",
            path.display()
        );
        for line in text.lines().filter(|line| line.contains("(NEEDED)")) {
            let library = line.split(['[', ']']).nth(1).unwrap_or(line);
            if !BASE.contains(&library) && !beyond_base.contains(&library) {
                wrongs.push(format!("{name} needs {library}"));
            }
        }
    }
    expect_none(
        "a binary needs a library it should not (BINARIES, hwtests/tests/tidy/binaries.rs):",
        &wrongs,
    );
}
