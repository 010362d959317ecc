//! The runs of a node: who may begin, what becomes of them, and how long they can be asked about.
//!
//! ```text
//!   admit ──open──▶ Run ──begin──▶ engine ──result──▶ closer ──▶ recorder ──▶ history
//!     │              ▲ inputs                           │ outputs, until they are too old or too many
//!     └─▶ Busy, Draining                                ▼ clients
//! ```
//!
//! A run holds a permit from its admission until its record is with the recorder, so that every queue
//! behind has room for all runs there can be: nothing that was accepted is ever lost to a full queue.

use super::error::Refusal;
use super::metrics::Metrics;
use super::registry::{Deployed, Registry};
use super::run::{Ended, Phase, Run};
use crate::history::{InputFacts, Outcome, new_run_name, next_run_name, outcome_of};
use crate::node::{Given, LogLine, Node, RunResult};
use crate::workflow::Workflow;
use dflow_core::graph::StartPolicy;
use dflow_proto::RunId;
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::{Semaphore, mpsc};

/// How long an open run waits for its next input.
const OPEN_IDLE_MAX: Duration = Duration::from_secs(600);
/// Runs that have ended and can still be asked about without the history.
const ENDED_MAX: usize = 20_000;
/// How often what functions print is gathered, and what is too old goes.
const ROUND: Duration = Duration::from_millis(50);
/// Submissions that wait for the engine at one time; the others wait for these.
const SUBMITTERS: usize = 32;
/// When a client that was refused for now should come back. Seconds.
const RETRY_S: u64 = 1;

/// What is to run.
#[derive(Debug)]
pub struct Submission {
    /// `name@version`, or `name` for the version deployed last.
    pub workflow: String,
    /// Values by input name.
    pub inputs: Vec<(String, Given)>,
    /// Overrides the start policy of every step.
    pub start: Option<StartPolicy>,
}

/// The bounds on runs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) runs_max: usize,
    pub(super) keep: Duration,
    pub(super) keep_bytes: u64,
}

/// All runs of this node.
pub struct Runs {
    node: Arc<Node>,
    registry: Arc<Registry>,
    /// What follows the dot of run names: this node's name, if it has peers.
    home: Option<String>,
    own_name: String,
    bounds: Bounds,
    table: Mutex<Table>,
    permits: Arc<Semaphore>,
    submitters: Semaphore,
    /// To the closer.
    closing: mpsc::Sender<(Arc<Run>, RunResult)>,
    draining: AtomicBool,
    metrics: Arc<Metrics>,
}

#[derive(Default)]
struct Table {
    by_name: BTreeMap<String, Arc<Run>>,
    by_id: BTreeMap<RunId, Arc<Run>>,
    /// In the order of their ends, with the bytes they hold.
    ended: VecDeque<(Arc<Run>, u64)>,
    held_bytes: u64,
    last_name: String,
    /// When open runs were last looked at.
    looked: Option<Instant>,
}

/// The ends of the queues that [`Runs::serve`] drains.
pub(super) struct Queues {
    closing: mpsc::Receiver<(Arc<Run>, RunResult)>,
    recording: Option<mpsc::Sender<Arc<Run>>>,
}

impl Runs {
    pub(super) fn new(
        node: Arc<Node>,
        registry: Arc<Registry>,
        (own_name, has_peers): (&str, bool),
        bounds: Bounds,
        metrics: Arc<Metrics>,
        recording: Option<mpsc::Sender<Arc<Run>>>,
    ) -> (Arc<Runs>, Queues) {
        let (closing_tx, closing) = mpsc::channel(bounds.runs_max);
        let runs = Runs {
            node,
            registry,
            home: has_peers.then(|| own_name.to_owned()),
            own_name: own_name.to_owned(),
            bounds,
            table: Mutex::default(),
            permits: Arc::new(Semaphore::new(bounds.runs_max)),
            submitters: Semaphore::new(SUBMITTERS),
            closing: closing_tx,
            draining: AtomicBool::new(false),
            metrics,
        };
        (Arc::new(runs), Queues { closing, recording })
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // What a panic could leave behind is a run in one index and not in the other, which only
        // makes it harder to find.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a run.
    ///
    /// # Errors
    /// When the workflow is not there, an input is wrong, or this node takes no more runs for now.
    pub async fn submit(self: &Arc<Self>, submission: Submission) -> Result<Arc<Run>, Refusal> {
        let mut runs = self.submit_all(vec![submission]).await;
        runs.pop().unwrap_or_else(|| unreachable!("one submission has one answer"))
    }

    /// Begins runs one after the other; each has its own answer.
    pub async fn submit_all(
        self: &Arc<Self>,
        submissions: Vec<Submission>,
    ) -> Vec<Result<Arc<Run>, Refusal>> {
        // Admission comes before any queue: who cannot be taken hears it at once.
        let admitted: Vec<_> = submissions
            .into_iter()
            .map(|submission| self.admit().map(|permit| (submission, permit)))
            .collect();
        let Ok(_turn) = self.submitters.acquire().await else { return Vec::new() };
        let runs = self.clone();
        let begin = move || {
            let one = |admitted: Result<(Submission, _), Refusal>| {
                let (Submission { workflow, inputs, start }, permit) = admitted?;
                let run = runs.open_with(&workflow, start, permit)?;
                let given = inputs.iter().try_for_each(|(name, given)| runs.put(&run, name, given));
                given.and_then(|()| runs.begin_blocking(&run)).inspect_err(|_| runs.forget(&run))?;
                Ok(run)
            };
            admitted.into_iter().map(one).collect()
        };
        blocking(begin).await
    }

    /// A run that is to get its inputs one by one.
    ///
    /// # Errors
    /// As of [`Runs::submit`].
    pub async fn open(
        self: &Arc<Self>,
        workflow: String,
        start: Option<StartPolicy>,
    ) -> Result<Arc<Run>, Refusal> {
        let permit = self.admit()?;
        let runs = self.clone();
        blocking(move || runs.open_with(&workflow, start, permit)).await
    }

    /// Begins an open run.
    ///
    /// # Errors
    /// When it is not open or one of its inputs is being written; it then stays as it is. When an input is
    /// missing; it is then forgotten.
    pub async fn begin(self: &Arc<Self>, run: &Arc<Run>) -> Result<(), Refusal> {
        let (runs, run) = (self.clone(), run.clone());
        blocking(move || {
            runs.begin_blocking(&run).inspect_err(|error| {
                if !matches!(error, Refusal::State { .. }) {
                    runs.forget(&run);
                }
            })
        })
        .await
    }

    fn admit(&self) -> Result<tokio::sync::OwnedSemaphorePermit, Refusal> {
        if self.draining.load(Ordering::Acquire) {
            return Err(Refusal::Draining { node: self.own_name.clone() });
        }
        self.permits.clone().try_acquire_owned().map_err(|_| {
            self.metrics.refused.inc();
            Refusal::Busy { runs: self.bounds.runs_max, retry_s: RETRY_S }
        })
    }

    fn open_with(
        &self,
        workflow: &str,
        start: Option<StartPolicy>,
        permit: tokio::sync::OwnedSemaphorePermit,
    ) -> Result<Arc<Run>, Refusal> {
        let deployed: Arc<Deployed> = self.registry.find(workflow)?;
        let open = self.node.open(deployed.workflow()?.clone())?;
        let now_unix_us = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros() as u64;
        let mut table = self.table();
        let name = table.new_name(self.home.as_deref());
        let run = Arc::new(Run::new(name.clone(), deployed, open, start, permit, now_unix_us));
        table.by_name.insert(name, run.clone());
        table.by_id.insert(run.id, run.clone());
        Ok(run)
    }

    /// Checks and writes an input that is at hand. Blocks.
    fn put(&self, run: &Run, name: &str, given: &Given) -> Result<(), Refusal> {
        let mut open = run.take_open().ok_or_else(|| not_open(run))?;
        let put = open.put(name, given);
        let facts = put.as_ref().ok().and_then(|()| {
            let inputs = crate::history::input_facts(open.workflow(), &[(name.to_owned(), given.clone())]);
            inputs.into_iter().find(|i| i.name == name)
        });
        run.put_open(open);
        put?;
        facts.into_iter().for_each(|facts| run.add_input(facts));
        Ok(())
    }

    fn begin_blocking(&self, run: &Arc<Run>) -> Result<(), Refusal> {
        let open = run.take_open().ok_or_else(|| not_open(run))?;
        for input in &open.workflow().inputs {
            if run.inputs().iter().all(|i| i.name != input.name) {
                let bytes = input.default.as_ref().map_or(0, Vec::len) as u64;
                run.add_input(InputFacts { name: input.name.clone(), bytes, file: None });
            }
        }
        let (ended, closing) = (run.clone(), self.closing.clone());
        let done = move |result: RunResult| match ended.came(result) {
            None => true,
            // There is room for as many as there are permits, and this run has one.
            Some(result) => closing.try_send((ended, result)).is_ok(),
        };
        let watch = open.begin(run.start, Box::new(done))?;
        self.metrics.submitted.inc();
        if let Some(result) = run.begun(watch) {
            // As above.
            let _ = self.closing.try_send((run.clone(), result));
        }
        Ok(())
    }

    /// Takes back a run that could not begin.
    fn forget(&self, run: &Arc<Run>) {
        let open = run.take_open();
        {
            let mut table = self.table();
            table.by_name.remove(&run.name);
            table.by_id.remove(&run.id);
        }
        run.leave();
        drop(open);
    }

    /// The run of this name, or whose name alone begins so; `last` for the newest, `last~N` for the Nth
    /// before that.
    ///
    /// # Errors
    /// When this node has none, or several.
    pub fn find(&self, name: &str) -> Result<Arc<Run>, Refusal> {
        let table = self.table();
        let none = || Refusal::NoRun { name: name.to_owned() };
        if let Some(run) = table.by_name.get(name) {
            return Ok(run.clone());
        }
        let before = if name == "last" { Some("0") } else { name.strip_prefix("last~") };
        if let Some(before) = before {
            let before: usize = before.parse().map_err(|_| none())?;
            return table.by_name.values().rev().nth(before).cloned().ok_or_else(none);
        }
        if name.is_empty() {
            return Err(none());
        }
        let starting = table.by_name.range(name.to_owned()..).take_while(|(n, _)| n.starts_with(name));
        let mut found: Vec<&Arc<Run>> = starting.map(|(_, run)| run).take(100).collect();
        match (found.pop(), found.len()) {
            (None, _) => Err(none()),
            (Some(run), 0) => Ok(run.clone()),
            (Some(_), more) => Err(Refusal::Ambiguous { name: name.to_owned(), count: more + 1 }),
        }
    }

    /// The newest `max` runs that the node still knows, newest first.
    pub fn list(&self, max: usize) -> Vec<Arc<Run>> {
        self.table().by_name.values().rev().take(max).cloned().collect()
    }

    /// Ends a run. One that has ended stays as it is.
    pub fn cancel(&self, run: &Arc<Run>, reason: &str) {
        if run.phase() == Phase::Open {
            let cancelled = Outcome::Cancelled(format!("cancelled: {reason}"));
            run.end(cancelled, Vec::new());
            run.leave();
            run.set_recorded();
            let mut table = self.table();
            table.by_id.remove(&run.id);
            table.ended.push_back((run.clone(), 0));
            return;
        }
        self.node.cancel(run.id, reason);
    }

    /// Runs that are open or under way.
    pub fn under_way(&self) -> usize {
        self.bounds.runs_max - self.permits.available_permits()
    }

    /// From now on no run is admitted.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Release);
    }

    /// Whether runs are admitted.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// Ends all runs.
    pub(super) fn cancel_all(&self, reason: &str) {
        let runs: Vec<_> = self.table().by_id.values().cloned().collect();
        runs.iter().filter(|run| run.phase() != Phase::Ended).for_each(|run| self.cancel(run, reason));
    }

    /// Closes runs that end, gathers what functions print, and lets go of what is too old, until all
    /// senders of results are gone.
    pub(super) async fn serve(self: Arc<Self>, mut queues: Queues) {
        let mut round = tokio::time::interval(ROUND);
        round.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut closing = Vec::new();
        loop {
            tokio::select! {
                count = queues.closing.recv_many(&mut closing, 256) => {
                    if count == 0 {
                        return;
                    }
                    // What a run has printed belongs to its record.
                    self.gather();
                    for (run, result) in closing.drain(..) {
                        self.close(&run, result, queues.recording.as_ref()).await;
                    }
                }
                _ = round.tick() => {
                    self.gather();
                    self.sweep();
                }
            }
        }
    }

    async fn close(&self, run: &Arc<Run>, result: RunResult, recording: Option<&mpsc::Sender<Arc<Run>>>) {
        let (outcome, outputs) = match result {
            Ok(outputs) => (Outcome::Done, outputs),
            Err(failure) => (outcome_of(Some(&failure)), Vec::new()),
        };
        self.metrics.ended(&outcome, run.opened.elapsed());
        if let Some(reason) = outcome.message() {
            tracing::info!(run = run.name, workflow = run.workflow.name, reason, "run {}", outcome.word());
        } else {
            tracing::debug!(run = run.name, workflow = run.workflow.name, "run done");
        }
        let held = run.end(outcome, outputs);
        {
            let mut table = self.table();
            table.by_id.remove(&run.id);
            table.held_bytes += held;
            table.ended.push_back((run.clone(), held));
        }
        match recording {
            // Waits if the recorder is behind; the permits of the runs that wait hold further ones back.
            Some(recording) => drop(recording.send(run.clone()).await),
            None => run.set_recorded(),
        }
        run.leave();
    }

    /// Hands out what functions have printed to the runs it is of.
    fn gather(&self) {
        let (lines, dropped) = self.node.logs().take();
        if lines.is_empty() && dropped == 0 {
            return;
        }
        let mut by_run: BTreeMap<RunId, Vec<LogLine>> = BTreeMap::new();
        for line in lines {
            if let Some(run) = line.run {
                by_run.entry(run).or_default().push(line);
            }
        }
        let table = self.table();
        for (id, lines) in by_run {
            if let Some(run) = table.by_id.get(&id) {
                run.lose_lines(dropped);
                run.add_lines(lines.into_iter());
            }
        }
    }

    /// Lets go of outputs and runs that are too old or too many, and of open runs that nobody fills.
    fn sweep(&self) {
        let mut gone = Vec::new();
        let mut table = self.table();
        let old = |ended: Option<Ended>| ended.is_none_or(|ended| ended.at.elapsed() > self.bounds.keep);
        while let Some((run, held)) = table.ended.front() {
            // The newest run's outputs stay, whatever their size: nobody could fetch them otherwise.
            let many = table.held_bytes > self.bounds.keep_bytes && table.ended.len() > 1;
            let crowded = many || table.ended.len() > ENDED_MAX;
            if !crowded && !old(run.ended()) {
                break;
            }
            let held = *held;
            if let Some((run, _)) = table.ended.pop_front() {
                table.held_bytes -= held;
                table.by_name.remove(&run.name);
                gone.push(run);
            }
        }
        let idle: Vec<_> = if table.looked.is_none_or(|looked| looked.elapsed() > OPEN_IDLE_MAX / 60) {
            table.looked = Some(Instant::now());
            let idle =
                |run: &&Arc<Run>| run.idle_since().is_some_and(|since| since.elapsed() > OPEN_IDLE_MAX);
            table.by_id.values().filter(idle).cloned().collect()
        } else {
            Vec::new()
        };
        drop(table);
        // Gives memory of the store back, which may wait for the engine: not under the lock.
        gone.iter().for_each(|run| run.release());
        idle.iter().for_each(|run| self.cancel(run, "no input came for ten minutes"));
    }

    /// What the engine can be asked.
    pub fn node(&self) -> &Arc<Node> {
        &self.node
    }
}

impl Table {
    /// A name that is later than all before it.
    fn new_name(&mut self, home: Option<&str>) -> String {
        let now = new_run_name();
        let now = home.map_or(now.clone(), |home| format!("{now}.{home}"));
        self.last_name = if now > self.last_name { now } else { next_run_name(&self.last_name) };
        self.last_name.clone()
    }
}

fn not_open(run: &Run) -> Refusal {
    let why = match run.phase() {
        Phase::Open => "has an input that is being written; begin it when that is done",
        Phase::Running => "has begun already",
        Phase::Ended => "has ended already",
    };
    Refusal::State { run: run.name.clone(), why: why.to_owned() }
}

/// Runs what may wait for the engine or the disk on a thread where that disturbs nobody.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// The input of an open run, being written.
pub struct Filling {
    runs: Arc<Runs>,
    run: Arc<Run>,
    open: Option<crate::node::OpenRun>,
}

impl Runs {
    /// The right to write inputs of an open run, for one writer at a time.
    ///
    /// # Errors
    /// When it is not open, or somebody else writes one of its inputs.
    pub fn fill(self: &Arc<Self>, run: &Arc<Run>) -> Result<Filling, Refusal> {
        let open = run.take_open().ok_or_else(|| match run.phase() {
            Phase::Open => {
                let why = "has another input that is being written; send one after the other".to_owned();
                Refusal::State { run: run.name.clone(), why }
            }
            _ => not_open(run),
        })?;
        Ok(Filling { runs: self.clone(), run: run.clone(), open: Some(open) })
    }
}

impl Filling {
    /// The run.
    pub fn open(&mut self) -> &mut crate::node::OpenRun {
        self.open.as_mut().unwrap_or_else(|| unreachable!("only the end takes it"))
    }

    /// What runs.
    pub fn workflow(&self) -> &Arc<Workflow> {
        self.open.as_ref().unwrap_or_else(|| unreachable!("only the end takes it")).workflow()
    }

    /// An input is whole.
    pub fn filled(&self, name: &str, bytes: u64) {
        self.run.add_input(InputFacts { name: name.to_owned(), bytes, file: None });
        self.runs.metrics.input_bytes.inc_by(bytes);
    }
}

impl Drop for Filling {
    fn drop(&mut self) {
        if let Some(open) = self.open.take() {
            self.run.put_open(open);
        }
    }
}
