//! What people and records see of a run: a snapshot per step, and a journal of what happened.
//!
//! The engine writes both as it applies events; readers take snapshots. Nothing here decides.

use dflow_core::graph::Graph;
use dflow_core::placement::Placement;
use dflow_proto::link::{Times, Wait};
use dflow_proto::{InvocationId, RunId, Tick};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

/// Records one run may keep; what comes after is counted, not kept.
const RECORDS_MAX: usize = 4_000_000;
/// Failures one run may keep with their messages.
const FAILURES_MAX: usize = 1000;

/// The state of a run at one moment.
#[derive(Clone, Debug, Default)]
pub struct RunView {
    /// One entry a step, in the order of the graph.
    pub steps: Vec<StepView>,
    /// When it was submitted.
    pub submitted: Tick,
    /// When it ended.
    pub ended: Option<Tick>,
}

/// The state of one step.
#[derive(Clone, Debug, Default)]
pub struct StepView {
    /// Its name.
    pub name: String,
    /// Items known so far, for a foreach.
    pub items: Option<u32>,
    /// Waiting for a worker to be forked or a function to be loaded.
    pub warming: u32,
    /// Running a function.
    pub running: u32,
    /// Of those running, asleep until data appears.
    pub blocked: u32,
    /// Ended well.
    pub done: u32,
    /// Failed for good.
    pub failed: u32,
    /// Attempts that were or will be tried again.
    pub retried: u32,
    /// The step was skipped.
    pub skipped: bool,
    /// All of it has ended.
    pub complete: bool,
    /// Bytes sealed so far.
    pub bytes: u64,
    /// When its first invocation started.
    pub first_start: Option<Tick>,
    /// When its last invocation ended.
    pub last_end: Option<Tick>,
}

impl StepView {
    /// The one word for its state.
    pub fn state_word(&self) -> &'static str {
        if self.skipped {
            "skipped"
        } else if self.complete {
            if self.failed > 0 && self.done == 0 { "failed" } else { "done" }
        } else if self.failed > 0 {
            "failed"
        } else if self.running > 0 {
            if self.blocked == self.running { "waiting for data" } else { "running" }
        } else if self.warming > 0 {
            "warming"
        } else if self.first_start.is_some() {
            "queued"
        } else {
            "waiting"
        }
    }
}

/// A function's processes at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolView {
    /// The function.
    pub function: String,
    /// What runs it.
    pub runtime: &'static str,
    /// The folder of its workflow.
    pub dir: PathBuf,
    /// `cold`: nothing is loaded; `loading`; `serving`; `broken`: it could not be loaded.
    pub state: &'static str,
    /// Processes that exist or are being made.
    pub workers: u32,
    /// Of them, those without work.
    pub idle: u32,
    /// Invocations that wait for a process.
    pub queued: u32,
}

/// A node of the cluster, as this one knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerView {
    /// Its number.
    pub node: u64,
    /// Its name.
    pub name: String,
    /// It is connected.
    pub up: bool,
    /// CPU tokens in thousandths of a core; 0 if it has not said.
    pub cpu_milli: u32,
    /// Invocations that may exist there at one time.
    pub slots: u32,
    /// Memory of its store.
    pub store_bytes: u64,
    /// What runs have still to do there by what they cost before, as this node places by it: microseconds of one core.
    pub work_us: u64,
    /// What carries data between it and this one, while it is connected; `None` for this one.
    pub link: Option<LinkView>,
}

/// The way between this node and another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkView {
    /// `rdma`, `uring` or `tcp`.
    pub transport: String,
    /// Why it: what it was chosen for, or what became of RDMA.
    pub why: String,
    /// Bytes that this node read there over RDMA since the connection opened.
    pub rdma_bytes: u64,
    /// Bytes that it read over streams.
    pub stream_bytes: u64,
}

/// Messages that a node has heard of others' engines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Heard {
    /// What runs need: their beginning, what schedulers tell each other, their end.
    pub words: u64,
    /// What happened elsewhere in runs that were submitted here, for people.
    pub tidings: u64,
}

/// An object that has come from another node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// The node's name.
    pub peer: String,
    /// Its size.
    pub bytes: u64,
    /// From when its size was known here to its last byte, in microseconds.
    pub us: u64,
}

/// Which node executes what of a run.
#[derive(Clone, Debug)]
pub struct Nodes {
    /// Their names by their number in the placement; the home is the first.
    pub names: Vec<String>,
    /// Where each step lies.
    pub placement: Arc<Placement>,
}

impl Nodes {
    /// The name of the node that executes an invocation.
    pub fn of(&self, invocation: InvocationId) -> Option<&str> {
        let place = self.placement.steps.get(invocation.step as usize)?;
        self.names.get(usize::from(place.host(invocation.item))).map(String::as_str)
    }
}

/// Something that happened in a run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// When.
    pub at: Tick,
    /// To whom; a step without foreach has item 0.
    pub invocation: InvocationId,
    /// The try.
    pub attempt: u32,
    /// What.
    pub what: What,
}

/// Kinds of [`Record`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum What {
    /// The scheduler started the attempt (`early`: some input was incomplete).
    Started {
        /// Some input was incomplete.
        early: bool,
    },
    /// A worker took it; `cold` if one had to be forked or loaded for it.
    Dispatched {
        /// It waited for a process.
        cold: bool,
    },
    /// The function's first line.
    Began,
    /// The node had to make it wait for memory before it could be given to a worker, until now.
    Memory,
    /// It sleeps in a get. When the node heard of it, which may be later ([`What::Waited`]).
    Blocked,
    /// It is awake, as late.
    Resumed,
    /// It had waited for an input, by its own clock; told at the attempt's end.
    Waited(Wait),
    /// The first byte of an output exists.
    FirstByte {
        /// Output port.
        port: u16,
        /// Item of a `many` port.
        item: u32,
    },
    /// An output is complete.
    Sealed {
        /// Output port.
        port: u16,
        /// Item of a `many` port.
        item: u32,
        /// Its size.
        bytes: u64,
    },
    /// The step's condition or switch was decided (attempt 0).
    Decided {
        /// For a switch the index of the chosen case, one past the last if none; for `when` 1 if it holds.
        choice: u32,
    },
    /// The attempt is over.
    Ended {
        /// It ended well.
        ok: bool,
        /// Where its time went.
        times: Times,
    },
}

/// An attempt that failed, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed {
    /// When the scheduler decided what follows.
    pub at: Tick,
    /// Whose.
    pub invocation: InvocationId,
    /// The try.
    pub attempt: u32,
    /// For people: what, and what to do.
    pub message: String,
    /// It is tried again.
    pub retried: bool,
}

/// The records of one run, in order.
#[derive(Clone, Debug, Default)]
pub struct Journal {
    /// What happened.
    pub records: Vec<Record>,
    /// Records beyond the limit.
    pub dropped: u64,
    /// Failures with their messages, the first of them.
    pub failures: Vec<Failed>,
}

/// A run as its watchers hold it.
#[derive(Clone, Debug)]
pub struct Watch {
    /// The run.
    pub run: RunId,
    state: Arc<Mutex<(RunView, Journal)>>,
    nodes: Option<Arc<Nodes>>,
    /// Whether records are kept; the view is kept in any case.
    journal: bool,
}

impl Watch {
    /// A view of a run that has just been submitted.
    pub fn new(run: RunId, graph: &Graph, now: Tick, journal: bool) -> Self {
        let steps =
            graph.steps.iter().map(|s| StepView { name: s.name.clone(), ..StepView::default() }).collect();
        let view = RunView { steps, submitted: now, ended: None };
        Watch { run, state: Arc::new(Mutex::new((view, Journal::default()))), nodes: None, journal }
    }

    /// The state now.
    pub fn view(&self) -> RunView {
        self.lock().0.clone()
    }

    /// The same, over several nodes.
    pub(crate) fn over(self, nodes: Nodes) -> Self {
        Watch { nodes: Some(Arc::new(nodes)), ..self }
    }

    /// The nodes that the run is spread over; `None` if it lies on one.
    pub fn nodes(&self) -> Option<&Nodes> {
        self.nodes.as_deref()
    }

    /// Takes the journal out; meant for after the run's end. Empty if the node keeps none.
    pub fn take_journal(&self) -> Journal {
        let mut journal = std::mem::take(&mut self.lock().1);
        if self.nodes.is_some() {
            // Other nodes tell later what happened.
            journal.records.sort_by_key(|record| record.at);
        }
        journal
    }

    /// Looks at the journal as far as it is kept.
    pub(crate) fn with_records(&self, look: impl FnOnce(&[Record])) {
        look(&self.lock().1.records);
    }

    pub(crate) fn step(&self, step: u32, change: impl FnOnce(&mut StepView)) {
        change(&mut self.lock().0.steps[step as usize]);
    }

    pub(crate) fn end(&self, now: Tick) {
        self.lock().0.ended = Some(now);
    }

    /// Writes the record down and lets it move the step's counters.
    pub(crate) fn record(&self, record: Record) {
        let mut state = self.lock();
        let step = &mut state.0.steps[record.invocation.step as usize];
        match record.what {
            What::Started { .. } => {
                step.warming += 1;
                step.first_start.get_or_insert(record.at);
            }
            What::Dispatched { .. } => {
                step.warming = step.warming.saturating_sub(1);
                step.running += 1;
            }
            What::Blocked => step.blocked += 1,
            What::Resumed => step.blocked = step.blocked.saturating_sub(1),
            What::Sealed { bytes, .. } => step.bytes += bytes,
            What::Ended { ok, .. } => {
                step.running = step.running.saturating_sub(1);
                step.done += u32::from(ok);
                step.last_end = Some(record.at);
            }
            What::Began | What::Memory | What::FirstByte { .. } | What::Waited(_) | What::Decided { .. } => {}
        }
        if !self.journal {
            return;
        }
        let journal = &mut state.1;
        if journal.records.len() < RECORDS_MAX {
            journal.records.push(record);
        } else {
            journal.dropped += 1;
        }
    }

    /// Writes down why an attempt failed.
    pub(crate) fn failed(&self, failed: Failed) {
        let failures = &mut self.lock().1.failures;
        if failures.len() < FAILURES_MAX {
            failures.push(failed);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, (RunView, Journal)> {
        // Counters have no invariant that a panicking writer could have broken half-way.
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
