//! One contender under load, for one block of runs.

use super::cluster::Nodes;
use super::stats::Random;
use super::{Load, Subject};
use crate::node::{Journal, Node, OutputValue, RunHandle, RunResult, RunSpec, RunView, Spread, What};
use dflow_core::graph::StartPolicy;
use std::hash::{DefaultHasher, Hasher};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Runs of an open loop that may be under way; arrivals beyond wait, and their wait counts.
const UNDER_WAY_MAX: usize = 512;
/// How long an interrupt may go unseen.
const LOOK: Duration = Duration::from_millis(100);
/// How long a cancelled run may take to end: its processes are killed.
const CANCEL: Duration = Duration::from_secs(10);
/// Failures after each other upon which a contender is given up.
pub(super) const FAILURES_MAX: u32 = 5;

/// One run.
pub(super) struct Sample {
    /// Index of the workflow.
    pub(super) subject: usize,
    /// From when it was due (open loop) or begun to its result in the caller's hands.
    pub(super) latency_us: u64,
    /// From submission to end, by the node's clock.
    pub(super) makespan_us: u64,
    /// Bytes that its steps put.
    pub(super) bytes: u64,
    /// CPU time of its functions, by their own clocks.
    pub(super) cpu_us: u64,
    /// Invocations, by the journal.
    pub(super) invocations: u64,
    /// Its state and journal, if they are wanted.
    pub(super) trace: Option<(RunView, Journal)>,
    /// Of the contents of its outputs, if they are wanted.
    pub(super) digest: Option<u64>,
}

/// What a block runs on and with.
pub(super) struct Driver<'a> {
    pub(super) nodes: &'a Nodes,
    pub(super) subjects: &'a [Subject],
    pub(super) start: Option<StartPolicy>,
    pub(super) cold: bool,
    pub(super) patience: Duration,
    /// Once more than 0, runs are cancelled and no more begin.
    pub(super) interrupts: &'a AtomicU32,
    /// Runs that failed after each other just before.
    pub(super) in_a_row: u32,
    /// Runs of this block, by number, whose journal and digest are kept.
    pub(super) traced: u32,
}

/// What a block gave.
#[derive(Default)]
pub(super) struct Block {
    pub(super) samples: Vec<Sample>,
    /// Why runs failed, and of which workflow.
    pub(super) failures: Vec<(usize, String)>,
    /// Runs that failed after each other, up to its end and with those before it.
    pub(super) in_a_row: u32,
}

impl Driver<'_> {
    /// Runs `runs` runs, beginning with number `first` (which decides whose turn it is).
    pub(super) fn block(&self, load: Load, first: u32, runs: u32, random: &mut Random) -> Block {
        let block = Mutex::new(Block::default());
        let in_a_row = AtomicU32::new(self.in_a_row);
        let one = |number: u32, due: Instant| {
            if in_a_row.load(Ordering::Relaxed) >= FAILURES_MAX || self.interrupted() {
                return;
            }
            let subject = (first + number) as usize % self.subjects.len();
            // Each workflow is submitted to each node.
            let node = (first + number) as usize / self.subjects.len() % self.nodes.all.len();
            let result = self.run(&self.nodes.all[node], subject, due, number < self.traced);
            let lock = || block.lock().unwrap_or_else(PoisonError::into_inner);
            match result {
                Ok(sample) => {
                    in_a_row.store(0, Ordering::Relaxed);
                    lock().samples.push(sample);
                }
                Err(message) => {
                    // Those that a lost node is not needed for would go on, and be of fewer nodes than it says.
                    let failures = if self.nodes.lost().is_some() { FAILURES_MAX } else { 1 };
                    in_a_row.fetch_add(failures, Ordering::Relaxed);
                    lock().failures.push((subject, message));
                }
            }
        };
        match load {
            Load::Closed { clients } => {
                let next = AtomicU32::new(0);
                std::thread::scope(|scope| {
                    for _ in 0..clients.clamp(1, runs.max(1)) {
                        scope.spawn(|| {
                            loop {
                                let number = next.fetch_add(1, Ordering::Relaxed);
                                if number >= runs {
                                    return;
                                }
                                if self.cold {
                                    self.nodes.cool();
                                }
                                one(number, Instant::now());
                            }
                        });
                    }
                });
            }
            Load::Open { per_s, poisson } => {
                let under_way = (Mutex::new(0_usize), Condvar::new());
                let lock = || under_way.0.lock().unwrap_or_else(PoisonError::into_inner);
                let begun = Instant::now();
                let mut due_s = 0.0;
                std::thread::scope(|scope| {
                    for number in 0..runs {
                        due_s += if poisson { random.gap_s(per_s) } else { 1.0 / per_s };
                        let due = begun + Duration::from_secs_f64(due_s);
                        while !self.interrupted() && Instant::now() < due {
                            std::thread::sleep(due.saturating_duration_since(Instant::now()).min(LOOK));
                        }
                        let mut count = lock();
                        while *count >= UNDER_WAY_MAX {
                            // Every run ends within its patience.
                            count = under_way.1.wait(count).unwrap_or_else(PoisonError::into_inner);
                        }
                        *count += 1;
                        drop(count);
                        let (one, under_way, lock) = (&one, &under_way, &lock);
                        scope.spawn(move || {
                            one(number, due);
                            *lock() -= 1;
                            under_way.1.notify_one();
                        });
                    }
                });
            }
        }
        let in_a_row = in_a_row.into_inner();
        Block { in_a_row, ..block.into_inner().unwrap_or_else(PoisonError::into_inner) }
    }

    fn run(&self, node: &Node, subject: usize, due: Instant, traced: bool) -> Result<Sample, String> {
        let Subject { workflow, inputs, .. } = &self.subjects[subject];
        let spec = RunSpec {
            workflow: workflow.clone(),
            inputs: inputs.clone(),
            start: self.start,
            spread: Spread::Auto,
        };
        let handle = node.submit(spec).map_err(|e| e.to_string())?;
        let result = self.end_of(&handle)?;
        let latency_us = due.elapsed().as_micros() as u64;
        let outputs = result.map_err(|e| e.to_string())?;
        let (view, journal) = (handle.watch().view(), handle.watch().take_journal());
        let ended = |what: &What| match what {
            What::Ended { times, .. } => Some(times.cpu_us),
            _ => None,
        };
        let ends: Vec<u64> = journal.records.iter().filter_map(|record| ended(&record.what)).collect();
        Ok(Sample {
            subject,
            latency_us,
            makespan_us: view.ended.map_or(latency_us, |ended| ended.since_us(view.submitted)),
            bytes: view.steps.iter().map(|step| step.bytes).sum(),
            cpu_us: ends.iter().sum(),
            invocations: ends.len() as u64,
            digest: traced.then(|| digest(&outputs)),
            trace: traced.then_some((view, journal)),
        })
    }
}

impl Driver<'_> {
    fn interrupted(&self) -> bool {
        self.interrupts.load(Ordering::Relaxed) > 0
    }

    /// A run's result, unless patience is over before or somebody wants an end.
    fn end_of(&self, handle: &RunHandle) -> Result<RunResult, String> {
        let late = Instant::now() + self.patience;
        let why = loop {
            let left = late.saturating_duration_since(Instant::now());
            if let Some(result) = handle.wait(Some(left.min(LOOK))) {
                return Ok(result);
            }
            if self.interrupted() {
                break "interrupted".to_owned();
            }
            if left.is_zero() {
                break format!("it did not end within {} s", self.patience.as_secs());
            }
        };
        handle.cancel(&why);
        // It has failed, whatever comes of it.
        let _ = handle.wait(Some(CANCEL));
        Err(why)
    }
}

/// Of names and contents.
fn digest(outputs: &[(String, OutputValue)]) -> u64 {
    let mut hasher = DefaultHasher::new();
    for (name, value) in outputs {
        hasher.write(name.as_bytes());
        match value {
            OutputValue::Null => hasher.write_u8(0),
            OutputValue::Object(view) => hasher.write(view),
            OutputValue::List(views) => views.iter().for_each(|view| {
                hasher.write_usize(view.len());
                hasher.write(view);
            }),
        }
    }
    hasher.finish()
}
