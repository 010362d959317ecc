//! Whether a machine is fit for a node: each thing looked at, what it means, and the command that
//! mends it.
//!
//! Nothing is changed. A check judges the text of a kernel file or a measured figure by a function of
//! its own, so that every verdict can be tested without the machine that deserves it.

mod kernel;
mod limits;
mod measure;
mod programs;
mod transport;

use crate::daemon::config::Settings;
use dflow_dataplane::transport::Backend;
use std::path::Path;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Grade {
    /// As it should be.
    Ok,
    /// A node runs, but slower, or some functions cannot.
    Warn,
    /// No node can run, or not as it is configured.
    Fail,
}

impl Grade {
    /// One word.
    pub const fn word(self) -> &'static str {
        match self {
            Grade::Ok => "ok",
            Grade::Warn => "warn",
            Grade::Fail => "fail",
        }
    }
}

/// What was found about one thing.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    /// What was looked at.
    pub check: &'static str,
    /// How bad it is.
    pub grade: Grade,
    /// What was found.
    pub found: String,
    /// What that means for runs; empty if all is well.
    pub means: String,
    /// The command that mends it; empty if nothing needs to be, or nothing can.
    pub mend: String,
    /// The figure, where there is one: bytes, microseconds or a count.
    pub value: Option<f64>,
}

impl Finding {
    fn ok(check: &'static str, found: impl Into<String>) -> Finding {
        let (means, mend) = (String::new(), String::new());
        Finding { check, grade: Grade::Ok, found: found.into(), means, mend, value: None }
    }

    fn bad(
        check: &'static str,
        grade: Grade,
        found: impl Into<String>,
        means: impl Into<String>,
        mend: impl Into<String>,
    ) -> Finding {
        Finding { check, grade, found: found.into(), means: means.into(), mend: mend.into(), value: None }
    }

    fn warn(
        check: &'static str,
        found: impl Into<String>,
        means: impl Into<String>,
        mend: impl Into<String>,
    ) -> Finding {
        Finding::bad(check, Grade::Warn, found, means, mend)
    }

    fn with(self, value: f64) -> Finding {
        Finding { value: Some(value), ..self }
    }
}

/// Looks at everything, for a node of these settings. `python` is the interpreter that runs would use. Takes about a
/// tenth of a second.
pub fn examine(settings: &Settings, python: &Path) -> Vec<Finding> {
    let mut findings = vec![
        kernel::version(),
        kernel::huge_pages(),
        kernel::io_uring(settings.backend == Backend::Uring && !settings.peers.is_empty()),
        kernel::cgroups(),
        transport::rdma(settings),
        limits::memory(),
        limits::locked_memory(),
        limits::open_files(),
        limits::processes(),
        limits::shared_memory(),
        limits::spill(settings.node.spill_dir.as_deref().unwrap_or(Path::new("none"))),
        limits::history(),
    ];
    findings.extend(programs::libexec());
    findings.extend(programs::python(python));
    findings.push(measure::start_of_a_process());
    findings.push(measure::wake());
    findings
}
