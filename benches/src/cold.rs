//! Cold start: from an invocation's start, with no process for it, to its function's first line.

use crate::native::{self, own};
use crate::node::{self, Done, parse};
use crate::report::{Goal, Report, number};
use crate::stats::Samples;
use anyhow::{Context, Result, ensure};
use dflow_control::node::{NodeConfig, What};
use dflow_control::workflow::Workflow;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Forks of the reference before each group of cold starts, and cold starts of a group.
const GROUP: usize = 10;

/// One step whose worker is used once, so that each run needs a new one; its zygote stays.
fn workflow(function: &str) -> Result<Arc<Workflow>> {
    let body = format!(
        "\
functions:
  begin: {{{function}, pool: {{max_uses: 1}}, outputs: {{out: bytes}}}}
steps:
  begin: {{function: begin}}
outputs:
  out: {{from: steps.begin.out}}
"
    );
    Ok(parse("cold", &body, Path::new("."))?)
}

/// Cold starts by both clocks, in microseconds.
#[derive(Default)]
struct Found {
    /// On the node's own clock, from taking the submission, upon which it forks at once, to hearing of
    /// the first line: two messages and three wakes included.
    journal: Samples,
    /// From the caller's submission to the function's own clock in its first line.
    first_line: Samples,
    /// Runs left out: their process was there before it was asked for.
    ahead: usize,
}

impl Found {
    fn add(&mut self, done: &Done) -> Result<()> {
        let [first_line] = done.words("out")?;
        let find = |wanted: fn(&What) -> bool| done.journal.records.iter().find(|r| wanted(&r.what));
        let began = find(|what| matches!(what, What::Began)).context("the journal has no first line")?.at;
        if !done.waited_for_a_process() {
            // The worker that the submission forked was up before the scheduler had its turn.
            self.ahead += 1;
            return Ok(());
        }
        self.journal.push(began.since_us(done.view.submitted) as f64);
        self.first_line.push(first_line.saturating_sub(done.submitted_ns) as f64 / 1000.0);
        Ok(())
    }

    fn remark(&self, report: &mut Report) {
        if self.ahead > 0 {
            report
                .note(&format!("{} runs left out: their process was up before it was asked for", self.ahead));
        }
    }
}

/// `n` bare forks of a small process: to the child's first line, and to the end of the wait for it.
fn bare_forks(program: &Path, n: usize) -> Result<(Samples, Samples)> {
    let output = Command::new(program).arg(n.to_string()).stdin(Stdio::null()).output()?;
    ensure!(output.status.success(), "{} failed", program.display());
    let (mut first, mut whole) = (Samples::new(), Samples::new());
    for line in String::from_utf8(output.stdout)?.lines() {
        let (a, b) = line.split_once(' ').context("two numbers a line")?;
        first.push(a.parse::<f64>()? / 1000.0);
        whole.push(b.parse::<f64>()? / 1000.0);
    }
    Ok((first, whole))
}

/// The first run on a fresh node: the fork server is started and loads the function, too.
fn with_zygote(workflow: &Arc<Workflow>, n: usize) -> Result<Samples> {
    let mut samples = Samples::new();
    for _ in 0..n {
        let bench = node::start(NodeConfig::default())?;
        let mut found = Found::default();
        found.add(&bench.run(workflow, &[], None)?)?;
        samples.extend(&found.first_line);
    }
    Ok(samples)
}

/// The benchmark `cold`.
pub(crate) fn bench(report: &mut Report, n: Option<usize>) -> Result<()> {
    report.begin("cold");
    native(report, n)?;
    python(report, n)
}

fn native(report: &mut Report, n: Option<usize>) -> Result<()> {
    let fork = native::fork_program()?;
    let library = native::library()?;
    let workflow =
        workflow(&format!("runtime: native, library: {}, symbol: bench_begin", library.display()))?;
    let bench = node::start(NodeConfig::default())?;
    bench.run(&workflow, &[], None)?;
    let (mut first, mut whole, mut found) = (Samples::new(), Samples::new(), Found::default());
    for _ in 0..n.unwrap_or(200).div_ceil(GROUP) {
        let (a, b) = bare_forks(&fork, GROUP)?;
        first.extend(&a);
        whole.extend(&b);
        for _ in 0..GROUP {
            found.add(&bench.run(&workflow, &[], None)?)?;
            // The used worker's end is not part of the next one's start.
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    let goal = Goal::times(3.0, whole.median(), "bare fork");
    report.row("bare fork of a small process, to its first line", &first, "us", &Goal::None);
    report.row("bare fork of a small process, and wait", &whole, "us", &Goal::None);
    report.row("native: fork to first line", &found.journal, "us", &goal);
    report.row("native: submission to first line", &found.first_line, "us", &Goal::None);
    let (a, b) = (found.journal.median() / whole.median(), found.journal.median() / first.median());
    report.note(&format!("native: {} bare forks with wait, {} to first line", number(a), number(b)));
    found.remark(report);
    let samples = with_zygote(&workflow, n.unwrap_or(200).div_ceil(GROUP))?;
    report.row("native: submission to first line, no zygote yet", &samples, "us", &Goal::None);
    Ok(())
}

/// Milliseconds of a fresh interpreter that imports numpy and ends.
fn fresh_interpreter(python: &std::ffi::OsStr) -> Result<f64, String> {
    let begun = Instant::now();
    let output = Command::new(python).args(["-c", "import numpy"]).stdin(Stdio::null()).output();
    let elapsed = begun.elapsed().as_secs_f64() * 1e3;
    match output {
        Ok(output) if output.status.success() => Ok(elapsed),
        Ok(_) => {
            Err(format!("{} has no numpy; set DFLOW_PYTHON to an interpreter that has it", python.display()))
        }
        Err(error) => Err(format!("cannot start {}: {error}", python.display())),
    }
}

fn python(report: &mut Report, n: Option<usize>) -> Result<()> {
    let python = std::env::var_os("DFLOW_PYTHON").unwrap_or_else(|| "python3".into());
    if let Err(why) = fresh_interpreter(&python) {
        report.skip("python with numpy", &why);
        return Ok(());
    }
    let handler = own("python/bench_numpy.py");
    let workflow = workflow(&format!("runtime: python, handler: \"{}:begin\"", handler.display()))?;
    let bench = node::start(NodeConfig::default())?;
    bench.run(&workflow, &[], None)?;
    let (mut fresh, mut found) = (Samples::new(), Found::default());
    for _ in 0..n.unwrap_or(100).div_ceil(GROUP) {
        for _ in 0..2 {
            fresh.push(fresh_interpreter(&python).map_err(anyhow::Error::msg)?);
        }
        for _ in 0..GROUP {
            found.add(&bench.run(&workflow, &[], None)?)?;
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    let ms = |samples: &Samples| samples.map(|us| us / 1000.0);
    report.row("fresh interpreter: python3 -c 'import numpy'", &fresh, "ms", &Goal::None);
    report.row("python + numpy: fork to first line", &ms(&found.journal), "ms", &Goal::at_most(10.0));
    report.row("python + numpy: submission to first line", &ms(&found.first_line), "ms", &Goal::None);
    let ratio = fresh.median() / ms(&found.journal).median();
    report.note(&format!("python + numpy: {} times sooner than a fresh interpreter", number(ratio)));
    found.remark(report);
    let samples = with_zygote(&workflow, 5)?;
    report.row("python + numpy: submission to first line, no zygote", &ms(&samples), "ms", &Goal::None);
    Ok(())
}
