//! Files and programs that function processes are made from.

use super::{Finding, Grade};
use crate::node::Libexec;
use std::path::Path;
use std::process::{Command, Stdio};

/// What the Python package is written for.
const PYTHON_NEEDED: (u32, u32) = (3, 9);

pub(super) fn libexec() -> Vec<Finding> {
    let files = Libexec::find();
    let file = |check: &'static str, path: &Path| {
        if path.is_file() {
            return Finding::ok(check, path.display().to_string());
        }
        let found = format!("{} is missing", path.display());
        let mend = "cargo build --release --workspace   (or set DFLOW_LIBEXEC to the folder that has it)";
        Finding::bad(check, Grade::Fail, found, "no node starts without it", mend)
    };
    let package = if files.python.join("dflow/__init__.py").is_file() {
        Finding::ok("package dflow", files.python.display().to_string())
    } else {
        let found = format!("{} has no package dflow", files.python.display());
        let mend = "export DFLOW_LIBEXEC=DIR   (the folder that has python/dflow)";
        Finding::warn("package dflow", found, "Python functions do not load", mend)
    };
    vec![file("dflow-zygote", &files.zygote), file("libdflow", &files.libdflow), package]
}

pub(super) fn python(program: &Path) -> Vec<Finding> {
    let ask = |code: &str| {
        let output = Command::new(program).args(["-c", code]).stdin(Stdio::null()).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let version = ask("import sys; print('%d.%d.%d' % sys.version_info[:3])");
    let mut findings = vec![judge_python(program, version.as_deref())];
    if findings[0].grade == Grade::Ok {
        findings.push(judge_numpy(program, ask("import numpy; print(numpy.__version__)").as_deref()));
    }
    findings
}

fn judge_python(program: &Path, version: Option<&str>) -> Finding {
    const CHECK: &str = "python";
    let (major, minor) = PYTHON_NEEDED;
    let means = format!("Python functions need {major}.{minor} or later; others do not");
    let Some(version) = version else {
        let found = format!("{} does not run", program.display());
        return Finding::warn(CHECK, found, means, "sudo apt-get install python3");
    };
    let mut parts = version.split('.').map(|n| n.parse::<u32>().unwrap_or(0));
    if (parts.next().unwrap_or(0), parts.next().unwrap_or(0)) >= PYTHON_NEEDED {
        Finding::ok(CHECK, format!("{} {version}", program.display()))
    } else {
        Finding::warn(
            CHECK,
            format!("{} {version}", program.display()),
            means,
            "sudo apt-get install python3",
        )
    }
}

fn judge_numpy(program: &Path, version: Option<&str>) -> Finding {
    match version {
        Some(version) => Finding::ok("numpy", version),
        None => Finding::warn(
            "numpy",
            format!("not for {}", program.display()),
            "functions that ask for arrays fail; bytes, text and JSON need none",
            "sudo apt-get install python3-numpy   (for an interpreter of your own: python3 -m pip install numpy)",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        let grade = |version| judge_python(Path::new("python3"), version).grade;
        assert_eq!(
            [grade(Some("3.8.20")), grade(Some("3.9.0")), grade(Some("3.11.2"))],
            [Grade::Warn, Grade::Ok, Grade::Ok]
        );
        assert_eq!(grade(None), Grade::Warn);
    }

    #[test]
    fn an_interpreter_that_is_not_there_is_told() {
        let findings = python(Path::new("/nonexistent/python9"));
        assert_eq!(findings.len(), 1);
        assert!(findings[0].found.contains("does not run"), "{findings:?}");
    }
}
