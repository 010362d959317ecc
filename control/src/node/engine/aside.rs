//! What only measurements ask of the engine: overlaps switched off, and the ways of a baseline.
//!
//! ```text
//!   Start ─▶ memory ─▶ (fetch) ─▶ (wait for inputs) ─▶ process ─▶ (wait for inputs) ─▶ command
//!   Ended ─▶ (store) ─▶ the scheduler hears of outputs and end
//! ```
//! What stands in brackets happens only if the node's configuration asks for it. An attempt that is
//! held has given its CPU token back, as if it slept in a get.

use super::{Engine, Phase};
use crate::node::Crossing;
use crate::node::pool::Job;
use crate::node::remote::{Done, Errand};
use dflow_core::graph::{ErrorClass, Source, Step, StepKind};
use dflow_core::scheduler::{Event, Failure, ObjectRef, ObjectState, Outcome, Put, Resolved};
use dflow_proto::store::Leased;
use dflow_proto::{InvocationId, ObjectKey, RunId, WorkerId};
use std::collections::{BTreeMap, BTreeSet};

/// Of one attempt.
#[derive(Default)]
pub(super) struct Aside {
    /// It is held, and its token is free.
    held: bool,
    /// Its inputs have been fetched.
    fetched: bool,
    /// Its outputs, and what the scheduler is to hear once they are stored.
    put: Vec<ObjectKey>,
    withheld: Vec<Event>,
}

/// Of the engine.
#[derive(Default)]
pub(super) struct Holds {
    /// Who waits for inputs; with the process that was found for it, if that was not waited for.
    waiting: BTreeMap<Job, Option<WorkerId>>,
    /// Objects that exist at least in part, by the attempt that puts them.
    begun: BTreeSet<(ObjectKey, u32)>,
    /// Something has happened since those who wait were looked at.
    news: bool,
    /// Objects in the remote store, by run.
    stored: BTreeMap<RunId, Vec<ObjectKey>>,
}

/// What is asked of inputs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wanted {
    /// Something of each, and lists' lengths.
    Begun,
    /// All.
    Complete,
}

impl Engine {
    /// Tells the scheduler that an output appears, grows complete or is pinned; at the end of the
    /// attempt if it goes to a remote store first.
    pub(super) fn tell(&mut self, job: Job, event: Event) {
        let overlaps = self.config.overlaps;
        if let Event::FirstByte(put) | Event::Sealed(put) = &event
            && !(overlaps.fan_in && overlaps.hand_over)
        {
            self.holds.begun.insert((put.key, put.attempt));
        }
        let (Some(_), Some(attempt)) = (&self.remote, self.attempts.get_mut(&job)) else {
            self.events.push_back(event);
            if !overlaps.hand_over {
                self.relink_readers(job.0);
            }
            return;
        };
        if let Event::Sealed(Put { key, .. }) = event {
            attempt.aside.put.push(key);
        }
        attempt.aside.withheld.push(event);
    }

    /// An object exists at least in part, on another node.
    pub(super) fn note_begun(&mut self, put: Put) {
        if !(self.config.overlaps.fan_in && self.config.overlaps.hand_over) {
            self.holds.begun.insert((put.key, put.attempt));
        }
    }

    /// The scheduler is to hear of the attempt's outputs before it hears of the end.
    pub(super) fn tell_withheld(&mut self, aside: Aside) {
        self.events.extend(aside.withheld);
    }

    /// Something has happened that those who are held may wait for.
    pub(super) fn news(&mut self) {
        self.holds.news = true;
    }

    /// Without direct hand-over it is the node that shows readers what they wait for.
    fn relink_readers(&mut self, run: RunId) {
        let from = (run, InvocationId { step: 0, item: 0 });
        let to = (run, InvocationId { step: u32::MAX, item: u32::MAX });
        let Some(workflow) = self.workflow(run) else { return };
        for (job, attempt) in self.attempts.range(from..=to).filter(|(_, a)| a.table.is_some()) {
            for (index, input) in workflow.graph.steps[job.1.step as usize].inputs.iter().enumerate() {
                if !matches!(input.source, Source::Const(_) | Source::Input(_)) {
                    self.dirty.insert((run, job.1, index as u16), attempt.fresh_until);
                }
            }
        }
    }

    /// Whether a reader may be shown the page of an object's producer.
    pub(super) fn shows_page(&self, key: ObjectKey, attempt: u32) -> bool {
        self.config.overlaps.hand_over || self.holds.begun.contains(&(key, attempt))
    }

    /// Holds an attempt that is about to ask for a process; false if it may go on.
    pub(super) fn hold_before_process(&mut self, job: Job, idle: bool) -> bool {
        if self.fetch(job) {
            return true;
        }
        let hold = !self.config.overlaps.cold_start && !idle && !self.inputs_are(job, Wanted::Complete);
        if hold {
            self.hold_aside(job);
            self.holds.waiting.insert(job, None);
        }
        hold
    }

    /// Holds an attempt that is about to be given to its process; false if it may go on.
    pub(super) fn hold_before_command(&mut self, job: Job, worker: WorkerId) -> bool {
        let hold = !self.config.overlaps.fan_in && !self.inputs_are(job, Wanted::Begun);
        if hold {
            self.hold_aside(job);
            self.holds.waiting.insert(job, Some(worker));
        }
        hold
    }

    fn hold_aside(&mut self, (run, invocation): Job) {
        if let Some(attempt) = self.attempts.get_mut(&(run, invocation))
            && !std::mem::replace(&mut attempt.aside.held, true)
        {
            self.events.push_back(Event::Blocked { run, invocation, attempt: attempt.attempt });
        }
    }

    fn unhold_aside(&mut self, (run, invocation): Job) {
        if let Some(attempt) = self.attempts.get_mut(&(run, invocation))
            && std::mem::take(&mut attempt.aside.held)
        {
            self.events.push_back(Event::Resumed { run, invocation, attempt: attempt.attempt });
        }
    }

    /// Lets those go on who have what they waited for; false if there is none.
    pub(super) fn release_held(&mut self) -> bool {
        if !std::mem::take(&mut self.holds.news) || self.holds.waiting.is_empty() {
            return false;
        }
        let mut any = false;
        let waiting: Vec<_> = self.holds.waiting.iter().map(|(job, worker)| (*job, *worker)).collect();
        for (job, worker) in waiting {
            let phase = self.attempts.get(&job).map(|a| a.phase);
            let expected = worker.map_or(Phase::Worker, Phase::Running);
            let wanted = if worker.is_some() { Wanted::Begun } else { Wanted::Complete };
            if phase != Some(expected) {
                // It was stopped, or its process died.
                self.holds.waiting.remove(&job);
            } else if self.inputs_are(job, wanted) {
                self.holds.waiting.remove(&job);
                self.unhold_aside(job);
                match worker {
                    Some(worker) => self.dispatch(worker, job),
                    None => self.want_worker(job),
                }
                any = true;
            }
        }
        any
    }

    /// Held attempts are not at work: nothing that they do can give memory back.
    pub(super) fn is_held(&self, job: &Job) -> bool {
        self.holds.waiting.contains_key(job)
    }

    fn inputs_are(&self, (run, invocation): Job, wanted: Wanted) -> bool {
        let Some(workflow) = self.workflow(run) else { return true };
        let there = |object: &ObjectRef| match object.state {
            ObjectState::Sealed => true,
            ObjectState::Running { attempt } => {
                wanted == Wanted::Begun && self.holds.begun.contains(&(object.key, attempt))
            }
            ObjectState::Pending => false,
        };
        let inputs = workflow.graph.steps[invocation.step as usize].inputs.len();
        (0..inputs).all(|input| match self.scheduler.resolve(run, invocation, input as u16) {
            Resolved::Const(_) | Resolved::Null | Resolved::Element { .. } => true,
            Resolved::Object(object) => there(&object),
            Resolved::List { items, pinned } => pinned && items.iter().all(there),
            Resolved::Follow { .. } | Resolved::Pending => false,
        })
    }

    /// Sends for what an attempt of a baseline needs from elsewhere; false if that is nothing or has
    /// come.
    fn fetch(&mut self, job: Job) -> bool {
        let (run, invocation) = job;
        let (Some(remote), Some(workflow)) = (&self.remote, self.workflow(run)) else { return false };
        let Some(attempt) = self.attempts.get_mut(&job) else { return false };
        if std::mem::replace(&mut attempt.aside.fetched, true) {
            return false;
        }
        let attempt = attempt.attempt;
        let crosses = |from: u32| remote.baseline.crosses(&workflow.name, from, invocation.step);
        let step = &workflow.graph.steps[invocation.step as usize];
        let precursors = step.inputs.iter().filter_map(|i| i.source.step()).chain(step.after.iter().copied());
        let precursors: Vec<u32> = precursors.collect();
        // The caller's own trigger crosses where every trigger does.
        let trigger = precursors.iter().any(|from| crosses(*from))
            || (precursors.is_empty() && remote.baseline.crossing == Crossing::Every);
        let mut keys = BTreeSet::new();
        for input in 0..step.inputs.len() {
            match self.scheduler.resolve(run, invocation, input as u16) {
                Resolved::Object(object) => keys.extend([object.key]),
                Resolved::List { items, .. } => keys.extend(items.iter().map(|item| item.key)),
                _ => {}
            }
        }
        // The caller's own inputs are where the run is.
        keys.retain(|key| key.invocation.step != ObjectKey::INPUT_STEP && crosses(key.invocation.step));
        let size = |key: ObjectKey| self.store.locate(key).map(|location| (key, location.bytes));
        let objects: Vec<_> = keys.into_iter().filter_map(size).collect();
        if !trigger && objects.is_empty() {
            return false;
        }
        if remote.send(Errand::Fetch { job, attempt, trigger, objects }) {
            self.hold_aside(job);
        } else {
            self.fail(run, invocation, "RemoteStore", "too many transfers wait; lower --slots".into());
        }
        true
    }

    /// Sends an attempt's outputs away before it counts as ended.
    pub(super) fn store_remotely(&mut self, job: Job, outcome: &Outcome) {
        let Some(state) = self.attempts.get_mut(&job).filter(|_| *outcome == Outcome::Ok) else { return };
        let attempt = state.attempt;
        let keys = std::mem::take(&mut state.aside.put);
        let (Some(remote), Some(workflow)) = (&self.remote, self.workflow(job.0)) else { return };
        let baseline = remote.baseline.clone();
        let leaves = |from: u32| {
            let steps = workflow.graph.steps.iter().enumerate();
            let mut readers = steps.filter(|(_, step)| reads(step, from));
            readers.any(|(to, step)| {
                // Who reads what a switch chose is known only later.
                matches!(step.kind, StepKind::Switch(_)) || baseline.crosses(&workflow.name, from, to as u32)
            })
        };
        if baseline.crossing != Crossing::Every && !leaves(job.1.step) {
            return;
        }
        let mut objects = Vec::new();
        for key in keys {
            // What is on disk or gone has been let go of by everybody who could want it.
            match self.store.lease(key) {
                Leased::Ready(lease, extent) => match self.store.arena().view(extent) {
                    Ok(bytes) => objects.push((key, bytes, lease)),
                    Err(_) => self.store.unlease(lease),
                },
                Leased::Restoring(lease) => self.store.unlease(lease),
                Leased::Missing => {}
            }
        }
        self.holds.stored.entry(job.0).or_default().extend(objects.iter().map(|(key, _, _)| *key));
        let Some(remote) = self.remote.as_ref().filter(|_| !objects.is_empty()) else { return };
        if remote.send(Errand::Store { job, attempt, objects })
            && let Some(state) = self.attempts.get_mut(&job)
        {
            state.copies += 1;
        }
    }

    /// A thread has come back.
    pub(super) fn remote_done(&mut self, done: Done) {
        let Done { job, attempt, stored, result } = done;
        let was_store = stored.is_some();
        stored.into_iter().flatten().for_each(|lease| self.store.unlease(lease));
        let Some(state) = self.attempts.get_mut(&job).filter(|a| a.attempt == attempt) else { return };
        if was_store {
            state.copies -= 1;
            if let Err(error) = result {
                let class = ErrorClass::Error("RemoteStore".into());
                state.finish = Some(Outcome::Failed(Failure { class, message: error.to_string() }));
            }
            if state.copies == 0
                && let Some(outcome) = state.finish.take()
            {
                self.ended(job.0, job.1, outcome);
            }
            return;
        }
        match result {
            Ok(()) => {
                self.unhold_aside(job);
                self.want_worker(job);
            }
            Err(error) => self.fail(job.0, job.1, "RemoteStore", error.to_string()),
        }
    }

    /// A run is over: nothing of it is wanted elsewhere any more.
    pub(super) fn forget_aside(&mut self, run: RunId) {
        let first = ObjectKey { run, invocation: InvocationId { step: 0, item: 0 }, port: 0, item: 0 };
        let next = ObjectKey { run: RunId(run.0 + 1), ..first };
        let of_run: Vec<_> = self.holds.begun.range((first, 0)..(next, 0)).copied().collect();
        for key in &of_run {
            self.holds.begun.remove(key);
        }
        if let (Some(keys), Some(remote)) = (self.holds.stored.remove(&run), &self.remote)
            && !remote.send(Errand::Delete(keys))
        {
            tracing::warn!(?run, "objects of a run are left in the remote store");
        }
    }
}

/// Whether a step reads what another put. What a switch reads, its readers read.
fn reads(step: &Step, from: u32) -> bool {
    let of = |source: &Source| source.step() == Some(from);
    let mut reads =
        step.inputs.iter().any(|i| of(&i.source)) || step.foreach.iter().any(|each| of(&each.over));
    step.conditions(|condition| reads |= condition.reads.iter().any(of));
    if let StepKind::Switch(cases) = &step.kind {
        reads |= cases.iter().any(|case| of(&case.value));
    }
    reads
}
