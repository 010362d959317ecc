//! A run as the node's clients see it, from its opening to the day its outputs go.

use super::registry::Deployed;
use crate::history::{InputFacts, Outcome, Printed};
use crate::node::{LogLine, OpenRun, OutputValue, RunResult, RunView, Watch};
use bytes::Bytes;
use dflow_core::graph::StartPolicy;
use dflow_proto::RunId;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;
use tokio::sync::{Notify, OwnedSemaphorePermit};

/// Outputs of a run that together are smaller are copied, so that the store forgets the run at once.
const COPY_BYTES_MAX: usize = 64 << 10;
/// Lines of one run that are kept for its followers.
const LOG_LINES_MAX: usize = 20_000;
/// Their bytes.
const LOG_BYTES_MAX: usize = 2 << 20;

/// A run of this node.
pub struct Run {
    /// Its name; with other nodes about, its home's name follows a dot.
    pub name: String,
    /// What runs.
    pub workflow: Arc<Deployed>,
    /// Its number in the engine.
    pub id: RunId,
    /// Overrides the start policy of every step.
    pub start: Option<StartPolicy>,
    /// When it was opened.
    pub opened: Instant,
    /// The same, in microseconds since 1970, UTC.
    pub opened_unix_us: u64,
    state: Mutex<State>,
    watch: OnceLock<Watch>,
    log: Mutex<RunLog>,
    /// Something of it has changed: lines have come, or it has ended.
    pub changed: Notify,
    recorded: AtomicBool,
}

struct State {
    stage: Stage,
    inputs: Vec<InputFacts>,
    /// Its place among the runs under way.
    permit: Option<OwnedSemaphorePermit>,
    /// It has ended before its submitter had its watch.
    early: Option<RunResult>,
}

enum Stage {
    /// Takes inputs; nothing while one of them is being written.
    Open(Option<OpenRun>, Instant),
    Running,
    Ended(Ended),
}

/// How a run has ended.
#[derive(Clone, Debug)]
pub struct Ended {
    /// The word and the reason.
    pub outcome: Outcome,
    /// When.
    pub at: Instant,
    /// Its outputs in the order of the workflow; `None` once they have gone.
    pub outputs: Option<Arc<Vec<(String, Output)>>>,
}

/// An output that can be fetched.
#[derive(Clone, Debug)]
pub enum Output {
    /// Its source was skipped.
    Null,
    /// One object: its bytes, in the store's own memory unless they are few.
    Object(Bytes),
    /// An ordered list.
    List(Vec<Bytes>),
}

/// What functions have printed in a run: the last of it, numbered from its beginning.
#[derive(Debug, Default)]
struct RunLog {
    lines: VecDeque<LogLine>,
    /// The number of the first line that is kept.
    first: u64,
    bytes: usize,
    /// Lines that were lost before they came here.
    dropped: u64,
}

/// Where a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It takes inputs.
    Open,
    /// It runs.
    Running,
    /// It is over.
    Ended,
}

impl Run {
    pub(super) fn new(
        name: String,
        workflow: Arc<Deployed>,
        open: OpenRun,
        start: Option<StartPolicy>,
        permit: OwnedSemaphorePermit,
        opened_unix_us: u64,
    ) -> Run {
        let now = Instant::now();
        Run {
            name,
            workflow,
            id: open.id(),
            start,
            opened: now,
            opened_unix_us,
            state: Mutex::new(State {
                stage: Stage::Open(Some(open), now),
                inputs: Vec::new(),
                permit: Some(permit),
                early: None,
            }),
            watch: OnceLock::new(),
            log: Mutex::default(),
            changed: Notify::new(),
            recorded: AtomicBool::new(false),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each change is one assignment, so that a panic elsewhere leaves nothing half-done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn log(&self) -> MutexGuard<'_, RunLog> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where it is.
    pub fn phase(&self) -> Phase {
        match self.state().stage {
            Stage::Open(..) => Phase::Open,
            Stage::Running => Phase::Running,
            Stage::Ended(_) => Phase::Ended,
        }
    }

    /// How it has ended.
    pub fn ended(&self) -> Option<Ended> {
        match &self.state().stage {
            Stage::Ended(ended) => Some(ended.clone()),
            Stage::Open(..) | Stage::Running => None,
        }
    }

    /// The one word for its state.
    pub fn word(&self) -> &'static str {
        match &self.state().stage {
            Stage::Open(..) => "open",
            Stage::Running => "running",
            Stage::Ended(ended) => ended.outcome.word(),
        }
    }

    /// Its steps now; none before it has begun.
    pub fn view(&self) -> RunView {
        self.watch.get().map(Watch::view).unwrap_or_default()
    }

    /// Its watch, once it has begun.
    pub fn watch(&self) -> Option<&Watch> {
        self.watch.get()
    }

    /// Its inputs as far as they have been given.
    pub fn inputs(&self) -> Vec<InputFacts> {
        self.state().inputs.clone()
    }

    /// Whether its record has been written, or needs not be.
    pub fn is_recorded(&self) -> bool {
        self.recorded.load(Ordering::Acquire)
    }

    pub(super) fn set_recorded(&self) {
        self.recorded.store(true, Ordering::Release);
    }

    /// Takes the engine's side out to write an input or to begin; `None` if the run is not open, or
    /// somebody else has it.
    pub(super) fn take_open(&self) -> Option<OpenRun> {
        match &mut self.state().stage {
            Stage::Open(open, touched) => {
                *touched = Instant::now();
                open.take()
            }
            Stage::Running | Stage::Ended(_) => None,
        }
    }

    /// Gives it back. It is dropped, and with it what was written, if the run has ended meanwhile.
    pub(super) fn put_open(&self, run: OpenRun) {
        if let Stage::Open(open, touched) = &mut self.state().stage {
            *touched = Instant::now();
            *open = Some(run);
        }
    }

    /// Since when nobody has done anything with the open run; `None` if it is not open, or in use.
    pub(super) fn idle_since(&self) -> Option<Instant> {
        match &self.state().stage {
            Stage::Open(Some(_), touched) => Some(*touched),
            _ => None,
        }
    }

    pub(super) fn add_input(&self, facts: InputFacts) {
        let inputs = &mut self.state().inputs;
        inputs.retain(|i| i.name != facts.name);
        inputs.push(facts);
    }

    /// It has begun. Returns its result if that has come already.
    pub(super) fn begun(&self, watch: Watch) -> Option<RunResult> {
        let mut state = self.state();
        let _ = self.watch.set(watch);
        if let Stage::Open(..) = state.stage {
            state.stage = Stage::Running;
        }
        state.early.take()
    }

    /// Its result has come. Returns it unless the submitter has yet to say that the run has begun.
    pub(super) fn came(&self, result: RunResult) -> Option<RunResult> {
        let mut state = self.state();
        if self.watch.get().is_some() {
            return Some(result);
        }
        state.early = Some(result);
        None
    }

    /// It is over. Returns the bytes that its outputs hold of the store.
    pub(super) fn end(&self, outcome: Outcome, outputs: Vec<(String, OutputValue)>) -> u64 {
        let (outputs, held) = keep(outputs);
        let ended = Ended { outcome, at: Instant::now(), outputs: Some(Arc::new(outputs)) };
        let before = std::mem::replace(&mut self.state().stage, Stage::Ended(ended));
        // An open run gives its memory back here, which may wait for the engine: not under the lock.
        drop(before);
        self.changed.notify_waiters();
        held
    }

    /// Its outputs go.
    pub(super) fn release(&self) {
        let outputs = match &mut self.state().stage {
            Stage::Ended(ended) => ended.outputs.take(),
            Stage::Open(..) | Stage::Running => None,
        };
        drop(outputs);
    }

    /// Its place among the runs under way becomes free.
    pub(super) fn leave(&self) {
        let permit = self.state().permit.take();
        drop(permit);
    }

    pub(super) fn add_lines(&self, lines: impl Iterator<Item = LogLine>) {
        {
            let mut log = self.log();
            for line in lines {
                log.bytes += line.step.len() + line.text.len();
                log.lines.push_back(line);
            }
            while log.lines.len() > LOG_LINES_MAX || log.bytes > LOG_BYTES_MAX {
                let Some(line) = log.lines.pop_front() else { break };
                log.bytes -= line.step.len() + line.text.len();
                log.first += 1;
            }
        }
        self.changed.notify_waiters();
    }

    pub(super) fn lose_lines(&self, count: u64) {
        self.log().dropped += count;
    }

    /// At most `max` lines from number `from` on, and the number after the last of them. Numbers that
    /// are missing at the front are of lines that are no longer kept.
    pub fn lines(&self, from: u64, max: usize) -> (Vec<LogLine>, u64) {
        let log = self.log();
        let skip = from.saturating_sub(log.first) as usize;
        let lines: Vec<LogLine> = log.lines.iter().skip(skip).take(max).cloned().collect();
        let next = from.max(log.first) + lines.len() as u64;
        (lines, next)
    }

    /// Lines for the record.
    pub(super) fn printed(&self) -> Printed {
        let mut log = self.log();
        let mut printed = Printed::default();
        let lost = log.dropped + log.first;
        printed.add(log.lines.make_contiguous(), lost);
        printed
    }
}

/// Outputs as they are kept, and the bytes that they hold of the store: none if they were copied.
fn keep(outputs: Vec<(String, OutputValue)>) -> (Vec<(String, Output)>, u64) {
    let bytes_of = |value: &OutputValue| match value {
        OutputValue::Null => 0,
        OutputValue::Object(object) => object.len(),
        OutputValue::List(items) => items.iter().map(|item| item.len()).sum(),
    };
    let bytes: usize = outputs.iter().map(|(_, value)| bytes_of(value)).sum();
    let copy = bytes <= COPY_BYTES_MAX;
    let one = |object: crate::node::ObjectView| {
        if copy { Bytes::copy_from_slice(&object) } else { Bytes::from_owner(object) }
    };
    let kept = outputs.into_iter().map(|(name, value)| {
        let output = match value {
            OutputValue::Null => Output::Null,
            OutputValue::Object(object) => Output::Object(one(object)),
            OutputValue::List(items) => Output::List(items.into_iter().map(one).collect()),
        };
        (name, output)
    });
    (kept.collect(), if copy { 0 } else { bytes as u64 })
}
