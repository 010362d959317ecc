//! What is compiled when a benchmark starts: its C functions, and the processes' own programs.

use anyhow::{Context, Result, bail, ensure};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A file of this crate.
pub(crate) fn own(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Where results of compilation go: beside this program.
fn built() -> Result<PathBuf> {
    let program = std::env::current_exe()?;
    let dir = program.parent().context("this program lies nowhere")?.join("bench-native");
    std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    Ok(dir)
}

fn compile(source: &str, name: &str, options: &[&str]) -> Result<PathBuf> {
    let output = built()?.join(name);
    let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    let mut command = Command::new(&compiler);
    command.args(["-std=c11", "-O2", "-Wall", "-Wextra", "-Werror"]).args(options);
    command.arg("-I").arg(own("../ffi/include")).arg("-o").arg(&output).arg(own(source));
    let status = command.status().with_context(|| format!("cannot start {}", compiler.display()))?;
    ensure!(status.success(), "{command:?} failed");
    Ok(output)
}

/// The library of `native/bench.c`. Its calls of libdflow stay undefined: the process that loads it
/// provides them.
pub(crate) fn library() -> Result<PathBuf> {
    compile("native/bench.c", "libbench.so", &["-fPIC", "-shared", "-fvisibility=hidden"])
}

/// The program of `native/fork.c`.
pub(crate) fn fork_program() -> Result<PathBuf> {
    compile("native/fork.c", "fork", &[])
}

/// Brings `dflow-zygote` and `libdflow.so` up to date: `cargo run -p dflow-benches` builds only what this
/// program is linked with, and stale function processes would be measured without a word.
pub(crate) fn build_function_processes() -> Result<()> {
    // Started by hand, what lies beside the program is taken as it is.
    let Some(cargo) = std::env::var_os("CARGO") else { return Ok(()) };
    let mut command = Command::new(cargo);
    command.args(["build", "--quiet", "--locked", "-p", "dflow-ffi", "--lib", "--bins"]);
    if !cfg!(debug_assertions) {
        command.arg("--release");
    }
    let status = command.current_dir(own("..")).stdin(Stdio::null()).status()?;
    if !status.success() {
        bail!("{command:?} failed");
    }
    Ok(())
}
