//! Where the time of a run went: attempts with their phases, the data between them, the chain of causes
//! that made the run as long as it was, and how much of DFlow's gain shows.
//!
//! [`Timeline::of`] computes all of it from a [`RunRecord`]; [`chrome`] writes it for Perfetto and
//! `chrome://tracing`, and [`report`](crate::report) for people.
//!
//! Times of the node (a start, a seal) and of the worker (a wait, the first line) come from two clocks
//! of which only differences are comparable; they are brought together at the attempt's end, which both
//! know. What the node hears late may thus be off by one wake, some tens of microseconds.

mod attempts;
pub mod chrome;
mod critical;
mod lanes;
mod links;
mod overlap;
mod reads;

pub use attempts::{Attempt, Object, Phase, PhaseKind, Put, Wait};
pub use critical::{Bound, Stretch, StretchKind};
pub use lanes::lanes;
pub use links::LinkBytes;
pub use overlap::{Overlaps, Shade, Share};
pub use reads::{EdgeBytes, Read};

use crate::history::{GraphFacts, RunRecord, StartFacts};
use reads::Lists;
use std::collections::BTreeMap;

/// A run, computed.
#[derive(Clone, Debug, Default)]
pub struct Timeline {
    /// All attempts in the order of their starts.
    pub attempts: Vec<Attempt>,
    /// All objects that were put, in the order of their first bytes.
    pub objects: Vec<Object>,
    /// From submission to end, in microseconds.
    pub makespan_us: u64,
    /// The chain of causes, from the run's end back to its beginning.
    pub critical: Vec<Stretch>,
    /// How short the run could have been.
    pub bound: Bound,
    /// What started early, and what it gained.
    pub overlaps: Overlaps,
    /// Bytes that each step read of each other.
    pub edges: Vec<EdgeBytes>,
    /// What crossed between nodes: by the numbers of the one that has it and the one that reads it.
    pub links: BTreeMap<(u16, u16), LinkBytes>,
    pub(crate) lists: Lists,
}

impl Timeline {
    /// Computes the timeline of a run.
    pub fn of(record: &RunRecord) -> Timeline {
        let makespan_us = record.summary.makespan_us;
        let (mut attempts, objects, decided) = attempts::read(record);
        let mut lists = Lists::new(&record.graph, &attempts, &objects, decided);
        for attempt in &mut attempts {
            attempt.reads = lists.reads_of(attempt.step, attempt.item);
        }
        for index in 0..attempts.len() {
            let ready_us = critical::ready(record, &attempts, &lists, index).0;
            let attempt = &mut attempts[index];
            attempt.ready_us = ready_us.min(attempt.started_us);
            attempt.phases = attempts::phases(attempt);
        }
        let mut timeline = Timeline { attempts, objects, makespan_us, lists, ..Timeline::default() };
        timeline.critical = critical::path(record, &timeline);
        timeline.bound = critical::bound(record, &timeline);
        timeline.overlaps = overlap::find(record, &timeline);
        timeline.edges = reads::edges(&timeline);
        timeline.links =
            record.places.as_ref().map(|places| links::find(places, &timeline)).unwrap_or_default();
        timeline
    }

    /// Step and item of the invocation that put what an attempt waited for.
    pub fn producer_of_wait(&self, attempt: &Attempt, wait: &Wait) -> Option<(u32, u32)> {
        let object = self.lists.waited_for(attempt, wait.input?, wait.item)?;
        Some((object.step, object.invocation))
    }

    /// The objects that an attempt read through one of its inputs.
    pub fn read_objects(&self, read: &Read) -> &[u32] {
        self.lists.objects(read.list)
    }
}

/// `step`, or `step[item]` for a foreach.
pub fn invocation_name(graph: &GraphFacts, step: u32, item: u32) -> String {
    match graph.steps.get(step as usize) {
        Some(facts) if facts.foreach.is_some() => format!("{}[{item}]", facts.name),
        Some(facts) => facts.name.clone(),
        None => format!("step {step}[{item}]"),
    }
}

/// The policy that decided when invocations of a step start.
pub(crate) fn policy(record: &RunRecord, step: u32) -> StartFacts {
    record
        .start
        .unwrap_or_else(|| record.graph.steps.get(step as usize).map_or(StartFacts::default(), |s| s.start))
}

#[cfg(test)]
mod tests;
