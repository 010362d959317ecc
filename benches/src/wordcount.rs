//! Word Count on real text: starting by data against control flow on the same store, and both
//! against what the machine could do at best.

use crate::machine::cores;
use crate::native::own;
use crate::node::{self, Done};
use crate::report::{Goal, Report, number};
use crate::stats::Samples;
use anyhow::{Context, Result, bail, ensure};
use dflow_control::node::{Given, NodeConfig, What};
use dflow_control::workflow::{self, Workflow};
use dflow_core::graph::StartPolicy;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

const POLICIES: [(StartPolicy, &str); 3] = [
    (StartPolicy::FirstByte, "first-byte"),
    (StartPolicy::AllReady, "all-ready"),
    (StartPolicy::Eager, "eager"),
];
const FORMS: [&str; 2] = ["wordcount-native", "wordcount"];
/// How far above the least possible time a run may end.
const SLACK: f64 = 1.1;

/// Runs of one policy. Seconds.
#[derive(Default)]
struct Found {
    makespan: Samples,
    /// max(critical path, work / cores), from the CPU times of the run itself.
    least: Samples,
    ratio: Samples,
    work: Samples,
}

/// The corpus that `./setup corpus` gathers, or one that is gathered now.
fn corpus() -> Result<PathBuf> {
    let path = own("../data/wordcount/corpus.txt");
    if !path.exists() {
        let status =
            Command::new(own("workloads/wordcount/gather")).arg(&path).stdin(Stdio::null()).status()?;
        ensure!(
            status.success(),
            "too little text on this machine: run `./setup corpus`, which can fetch more"
        );
    }
    Ok(path)
}

fn load(form: &str) -> Result<Arc<Workflow>> {
    match workflow::load(&own(&format!("workloads/wordcount/{form}.yaml"))) {
        Ok(workflow) => Ok(Arc::new(workflow)),
        Err(report) => bail!("{report}"),
    }
}

/// The time in which no schedule could beat this run, from what its invocations computed, and all
/// they computed. An edge counts as a whole object here; a reader that follows its producer inside an
/// object could do better still. Seconds.
fn least(done: &Done) -> Result<(f64, f64)> {
    let mut longest: BTreeMap<u32, u64> = BTreeMap::new();
    let mut work_us = 0;
    for record in &done.journal.records {
        if let What::Ended { times, .. } = record.what {
            work_us += times.cpu_us;
            let longest = longest.entry(record.invocation.step).or_default();
            *longest = (*longest).max(times.cpu_us);
        }
    }
    ensure!(done.journal.dropped == 0 && work_us > 0, "the journal is not complete");
    // split -> count[i] -> merge: one path through each item, the longest through the longest count.
    let path_us: u64 = longest.values().sum();
    let work = work_us as f64 / 1e6;
    Ok(((path_us as f64 / 1e6).max(work / cores() as f64), work))
}

/// The benchmark `wordcount`.
pub(crate) fn bench(report: &mut Report, n: Option<usize>) -> Result<()> {
    report.begin("wordcount");
    let built = Command::new(own("workloads/wordcount/native/build")).stdin(Stdio::null()).status();
    ensure!(built.context("cannot start native/build")?.success(), "the native functions were not built");
    let corpus = corpus()?;
    let bytes = std::fs::metadata(&corpus)?.len();
    report.note(&format!("{:.1} MB of text", bytes as f64 / 1e6));
    for form in FORMS {
        one_form(report, n, form, &corpus)?;
    }
    Ok(())
}

fn one_form(report: &mut Report, n: Option<usize>, form: &str, corpus: &Path) -> Result<()> {
    let workflow = load(form)?;
    let bench = node::start(NodeConfig::default())?;
    let inputs = [("text", Given::File(corpus.into()))];
    let mut found: [Found; 3] = Default::default();
    let mut answer: Option<Vec<u8>> = None;
    // The first round warms pools and memory and does not count.
    for round in 0..=n.unwrap_or(7) {
        for turn in 0..POLICIES.len() {
            // Another one goes first each round: none always follows the same.
            let which = (round + turn) % POLICIES.len();
            let done = bench.run(&workflow, &inputs, Some(POLICIES[which].0))?;
            let counts = done.object("counts")?;
            match &answer {
                None => answer = Some(counts.to_vec()),
                Some(answer) => ensure!(answer[..] == counts[..], "{}: another result", POLICIES[which].1),
            }
            if round > 0 {
                let makespan = done.makespan_us() / 1e6;
                let (least, work) = least(&done)?;
                let found = &mut found[which];
                found.makespan.push(makespan);
                found.least.push(least);
                found.ratio.push(makespan / least);
                found.work.push(work);
            }
        }
    }
    let control_flow = found[1].makespan.median();
    for ((policy, name), found) in POLICIES.iter().zip(&found) {
        let goal = match policy {
            StartPolicy::AllReady => Goal::None,
            _ => Goal::AtMost(control_flow, format!("< all-ready = {}", number(control_flow))),
        };
        report.row(&format!("{form}, {name}: makespan"), &found.makespan, "s", &goal);
    }
    for ((policy, name), found) in POLICIES.iter().zip(&found) {
        let goal = if *policy == StartPolicy::AllReady { Goal::None } else { Goal::at_most(SLACK) };
        report.row(&format!("{form}, {name}: of max(path, work/cores)"), &found.ratio, "x", &goal);
    }
    for ((_, name), found) in POLICIES.iter().zip(&found) {
        report.note(&format!(
            "{form}, {name}: {} of all-ready; computed {} s in all, least possible {} s",
            number(found.makespan.median() / control_flow),
            number(found.work.median()),
            number(found.least.median()),
        ));
    }
    Ok(())
}
