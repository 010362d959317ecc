//! `dflow run` as a user would type it, on workflows that a test writes, in a folder of the test's own.
//!
//! Every process that a run starts inherits a mark in its environment, so that a test can see
//! whether one is left.

use std::fs;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Longest a run may take before the test gives it up, on a slow and busy machine.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long the last processes may take to go after `dflow` has ended.
const AFTERMATH: Duration = Duration::from_secs(10);
/// The variable that carries the mark.
const MARK: &str = "DFLOW_TEST_MARK";

/// A folder with workflow files and what they need.
pub struct Scene {
    folder: tempfile::TempDir,
    mark: String,
}

/// What came of a run.
#[derive(Debug)]
pub struct Ended {
    /// Its exit code; -1 if a signal ended it.
    pub code: i32,
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// Its standard error.
    pub stderr: String,
}

/// A run that goes on.
pub struct Going {
    /// The `dflow` process.
    pub child: Child,
}

impl Scene {
    /// An empty folder.
    pub fn new() -> Scene {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let mark = format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        Scene { folder: tempfile::tempdir().expect("a folder for the test"), mark }
    }

    /// A path in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file of the folder.
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, text).expect("the test's folder takes files");
        path
    }

    /// Compiles C source against `dflow.h` to `lib{name}.so`.
    pub fn compile(&self, name: &str, source: &str) {
        let source = self.write(&format!("{name}.c"), source);
        let include = root().join("ffi/include");
        let output = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-I"])
            .arg(include)
            .arg("-o")
            .arg(self.path(&format!("lib{name}.so")))
            .arg(source)
            .output()
            .expect("a C compiler (`./setup packages` installs gcc)");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// A command for `dflow` in this folder, marked.
    pub fn dflow(&self, args: &[&str]) -> Command {
        let mut command = Command::new(dflow());
        command.args(args).current_dir(self.folder.path()).env(MARK, &self.mark);
        command.env("DFLOW_SPILL", self.folder.path()).env("DFLOW_STATE", self.path("state"));
        command.stdin(Stdio::null());
        command
    }

    /// Writes `flow.yaml` with this body, runs it quietly with these arguments, and checks that no
    /// process is left.
    pub fn run(&self, body: &str, args: &[&str]) -> Ended {
        self.write_flow(body);
        let mut all = vec!["run", "-q", "flow.yaml"];
        all.extend_from_slice(args);
        let ended = self.start(&all).end();
        self.assert_nothing_left();
        ended
    }

    /// Writes `flow.yaml`: a header and this body.
    pub fn write_flow(&self, body: &str) {
        let head = "apiVersion: dflow/v1\nkind: Workflow\nmetadata: {name: test, version: \"1\"}\n";
        self.write("flow.yaml", &format!("{head}{body}"));
    }

    /// Starts `dflow` with these arguments.
    pub fn start(&self, args: &[&str]) -> Going {
        let mut command = self.dflow(args);
        // A group of its own, as a shell gives it: signals can go to all of it.
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        Going { child: command.spawn().expect("dflow starts") }
    }

    /// Marked processes that exist, with their command lines.
    pub fn processes(&self) -> Vec<(u32, String)> {
        let wanted = format!("{MARK}={}", self.mark);
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").expect("/proc").flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else { continue };
            let environ = fs::read(entry.path().join("environ")).unwrap_or_default();
            if environ.split(|b| *b == 0).any(|v| v == wanted.as_bytes()) {
                let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
                found.push((pid, String::from_utf8_lossy(&line).replace('\0', " ")));
            }
        }
        found
    }

    /// Fails unless all marked processes go within a moment, and their files in shared memory too.
    pub fn assert_nothing_left(&self) {
        let late = Instant::now() + AFTERMATH;
        loop {
            let left = self.processes();
            if left.is_empty() {
                break;
            }
            assert!(Instant::now() < late, "processes are left: {left:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Default for Scene {
    fn default() -> Self {
        Scene::new()
    }
}

impl Going {
    /// Waits for its end.
    pub fn end(mut self) -> Ended {
        let mut stdout = self.child.stdout.take().expect("piped");
        let mut stderr = self.child.stderr.take().expect("piped");
        let out = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            stdout.read_to_end(&mut bytes).map(|_| bytes).unwrap_or_default()
        });
        let err = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            stderr.read_to_end(&mut bytes).map(|_| bytes).unwrap_or_default()
        });
        let late = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("its own child") {
                break status;
            }
            if Instant::now() > late {
                self.child.kill().expect("its own child");
                let stderr = err.join().expect("no panic");
                panic!("no end after {PATIENCE:?}:\n{}", String::from_utf8_lossy(&stderr));
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let stderr = String::from_utf8_lossy(&err.join().expect("no panic")).into_owned();
        Ended { code: status.code().unwrap_or(-1), stdout: out.join().expect("no panic"), stderr }
    }
}

impl Ended {
    /// Fails unless it ended with `code` and said each of `words` on stderr.
    pub fn expect(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, code, "{self}");
        for word in words {
            assert!(self.stderr.contains(word), "{word:?} is missing:\n{self}");
        }
    }

    /// Its standard output as text, without the end of the last line. Fails unless it ended well.
    pub fn text(&self) -> String {
        assert_eq!(self.code, 0, "{self}");
        String::from_utf8_lossy(&self.stdout).trim_end().to_string()
    }
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let head = &self.stdout[..self.stdout.len().min(1000)];
        write!(
            f,
            "exit code {}\nstderr:\n{}\nstdout:\n{}",
            self.code,
            self.stderr,
            String::from_utf8_lossy(head)
        )
    }
}

/// The root of the source tree.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("hwtests lies in the root").to_path_buf()
}

/// The `dflow` that was built beside this test.
///
/// # Panics
/// If it is not built: a test that did not run must not look like one that passed.
pub fn dflow() -> PathBuf {
    let test = std::env::current_exe().expect("the path of this test");
    let folder = test.parent().and_then(Path::parent).expect("target/PROFILE/deps/TEST");
    let path = folder.join("dflow");
    assert!(
        path.exists() && folder.join("libdflow.so").exists(),
        "{} is not built; run `cargo build --workspace` first",
        path.display()
    );
    path
}

/// A Python interpreter that has numpy, if there is one.
pub fn python_with_numpy() -> Option<String> {
    ["python3", "/usr/bin/python3"].into_iter().map(String::from).find(|python| {
        let probe = Command::new(python).args(["-c", "import numpy"]).stderr(Stdio::null()).status();
        probe.is_ok_and(|status| status.success())
    })
}
