//! Writes the records of runs that have ended, many in one transaction, on a thread of its own.

use super::metrics::Metrics;
use super::run::Run;
use crate::history::{Facts, History, RunRecord};
use crate::node::NodeConfig;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// Records of one transaction.
const BATCH_MAX: usize = 1024;
/// Transactions are at least so far apart: a commit waits for the disk.
const PAUSE: Duration = Duration::from_millis(100);

/// Starts the thread; it ends when all senders are gone and everything is written.
pub(super) fn start(
    history: History,
    config: NodeConfig,
    metrics: Arc<Metrics>,
    queue_max: usize,
) -> std::io::Result<(mpsc::Sender<Arc<Run>>, JoinHandle<()>)> {
    let (sender, mut runs) = mpsc::channel::<Arc<Run>>(queue_max);
    let thread = std::thread::Builder::new().name("dflow-recorder".into()).spawn(move || {
        let mut batch = Vec::new();
        while runs.blocking_recv_many(&mut batch, BATCH_MAX) > 0 {
            let begun = Instant::now();
            record(&history, &batch, &config, &metrics);
            batch.clear();
            // More comes together meanwhile; an idle node writes at once.
            std::thread::sleep(PAUSE.saturating_sub(begun.elapsed()));
        }
    })?;
    Ok((sender, thread))
}

fn record(history: &History, runs: &[Arc<Run>], config: &NodeConfig, metrics: &Metrics) {
    let records: Vec<RunRecord> = runs.iter().filter_map(|run| record_of(run, config, metrics)).collect();
    if let Err(error) = history.save_all(&records) {
        metrics.unrecorded.inc_by(records.len() as u64);
        tracing::error!(%error, runs = records.len(), "runs are not kept");
    }
    runs.iter().for_each(|run| run.set_recorded());
}

fn record_of(run: &Run, config: &NodeConfig, metrics: &Metrics) -> Option<RunRecord> {
    let (watch, ended) = (run.watch()?, run.ended()?);
    let journal = watch.take_journal();
    metrics.phases(&journal);
    let (workflow, graph) = (run.workflow.workflow().ok()?, run.workflow.graph().ok()?);
    let mut record = Facts {
        run: run.name.clone(),
        file: run.workflow.row.main.clone(),
        workflow,
        graph,
        start: run.start,
        inputs: run.inputs(),
        node: config,
        age: run.opened.elapsed(),
        view: &watch.view(),
        journal: &journal,
        failure: None,
        printed: run.printed(),
        nodes: watch.nodes(),
    }
    .record();
    record.summary.started_unix_us = run.opened_unix_us;
    record.summary.outcome = ended.outcome;
    Some(record)
}
