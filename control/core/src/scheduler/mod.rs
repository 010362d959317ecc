//! DScheduler: decides when which invocation starts, and nothing else.
//!
//! A struct with two verbs: [`Scheduler::handle`] and [`Scheduler::deadline`]. No clock, no randomness, no
//! hash order: the same events give the same effects.
//!
//! # The scheduler's rule
//!
//! **Edges** come from references, conditions and `after`, and from nothing else.
//!
//! **Fate.** Each step runs or is skipped. It is *certain to run* once its `when` holds and every required
//! input comes from a step that is certain to run. It is skipped when its `when` is false or a required
//! input's source is skipped: that object can never exist. An optional input is then null. Nothing starts before it is
//! certain to run, so a condition never kills what has started; only a failure that is ignored can.
//!
//! **Decisions** (`when`, `switch`, the length of a JSON list) are taken on *settled* values only, so none is
//! ever taken back. `skipped(step)` is answered when the step's fate is known, or, where an ignored failure could
//! still skip it, when it is over. A step that is skipped counts for `after` as one that has ended.
//!
//! **Switch.** A switch is an alias for what it chose: no process, no copy, no own object. It reads only the
//! chosen branch: the others lose a reader. If what it chose is skipped, or no case holds, it is skipped. Its
//! readers wait for one source, so an exclusive join fires once. A producer that nobody chose still runs.
//!
//! **Start policy.** Always: certain to run, `after` resolved, and in a foreach the item begun. Then, counting only
//! inputs that come from steps (constants and run inputs are there from the start and say nothing) and are not null:
//!
//! | policy | starts when |
//! |---|---|
//! | `eager` | at once; in a foreach over a foreach when the item's producer has started |
//! | `first-byte` | the first byte of any one exists, or there is none to wait for |
//! | `first: k` | `k` of them are complete, or all if there are fewer |
//! | `all-ready` | all are complete |
//!
//! A list is one input: it begins with its first item, and is complete when pinned and all sealed.
//!
//! **Foreach** makes one invocation an item, as soon as the item exists (over a foreach: as soon as that has the item).
//! Zero items: the step is done and its list is empty, not skipped. A tolerated failure leaves its item out of all
//! lists made of it; a percentage is judged when the list is pinned. More than `max_items` fail the step.
//!
//! **Rollback.** An attempt that dies takes with it all that it put, and every started invocation with an input of
//! which something existed: a running one is stopped and started again (no retry of its own is used up), an ended one
//! loses its outputs and runs again, and so on. The attempt of a `deterministic` function leaves what it put: its
//! readers stay and the next attempt goes on; should that pin another count, the step fails. A step is *settled* when all
//! of it has ended and all it reads from is settled: then nothing can take it back, and what it read is let go. Objects are let go
//! earlier where only their own loss could take their reader back.
//!
//! **Release.** Readers are counted from the graph. Each object that was sealed is released exactly once: by its last
//! reader, when withdrawn, or when the run ends; run outputs by [`Scheduler::forget`].
//!
//! **Failure.** `retry` first; then `tolerate`; then `on_failure: ignore` skips the step; else the run fails:
//! all is stopped (or, `finish-started`, what can still end may), and [`Effect::RunEnded`] follows the last
//! [`Event::Ended`]. No invocation starts more than [`ATTEMPTS_MAX`] times.
//!
//! **Several nodes.** Who decides what, and what nodes tell each other: see the source of `word`.
//!
//! **Means.** Slots, workers, CPU tokens and the proof that early starters starve nobody: see the source of `pool`.
//!
//! **Strangers.** Events about unknown runs, stale attempts or things already known are ignored: they may be late.
//!
//! [`ATTEMPTS_MAX`]: dflow_proto::limits::ATTEMPTS_MAX

mod attempts;
mod data;
mod effect;
mod ending;
mod event;
mod foreach;
mod mirror;
mod part;
mod plan;
mod pool;
mod relink;
mod resolve;
mod rollback;
mod run;
mod steps;
mod word;

pub use effect::{Effect, Note, ObjectRef, ObjectState, Resolved, RunError, StopReason};
pub use event::{Event, Failure, Outcome, Put};
pub use word::Word;

use crate::graph::{Graph, Source, StartPolicy};
use crate::placement::Part;
use alloc::{boxed::Box, collections::BTreeMap, collections::BTreeSet, format, sync::Arc, vec::Vec};
use dflow_proto::{InvocationId, ObjectKey, RunId, Tick};
use plan::Plan;
use pool::Pool;
use run::{Cx, Fate, RUN, Run, Timer};

/// What a node offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// CPU tokens in thousandths of a core.
    pub cpu_milli: u32,
    /// Function processes that may exist at one time; 0 counts as 1.
    pub slots: u32,
}

/// What is in use, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// CPU tokens in use, in thousandths of a core. More than the capacity while some are on credit.
    pub cpu_milli_used: i64,
    /// Attempts that exist.
    pub slots_used: u32,
    /// Of these, how many still miss some input.
    pub early: u32,
    /// Of these, how many sleep in a get or a reserve.
    pub blocked: u32,
    /// Invocations that may start and wait for a token, a slot, a worker or a place.
    pub ready: u32,
    /// Runs that have not ended or not been forgotten.
    pub runs: u32,
}

/// The scheduler of one node.
pub struct Scheduler {
    pool: Pool,
    timers: BTreeSet<Timer>,
    runs: Vec<Option<Box<Run>>>,
    index: BTreeMap<RunId, u32>,
    submitted: u64,
}

impl Scheduler {
    /// A scheduler without runs.
    pub fn new(capacity: Capacity) -> Self {
        let (timers, index) = (BTreeSet::new(), BTreeMap::new());
        Scheduler { pool: Pool::new(capacity), timers, runs: Vec::new(), index, submitted: 0 }
    }

    /// Takes in what happened at `now` and appends what the driver must do, in order.
    pub fn handle(&mut self, now: Tick, event: Event, effects: &mut Vec<Effect>) {
        let mut cx = Cx { now, pool: &mut self.pool, timers: &mut self.timers, effects };
        let mut touched = None;
        if let Event::Submit { run, graph, start, part } = event {
            touched = self.submit(now, run, graph, start, part, effects);
        } else if let Some(slot) = event.run().and_then(|run| self.index.get(&run).copied())
            && let Some(run) = &mut self.runs[slot as usize]
            && !run.over
        {
            apply(run, event, &mut cx);
            run.settle_agenda(&mut cx);
            touched = Some(slot);
        }
        if let Some(slot) = touched {
            self.try_finish(now, slot, effects);
        }
        self.fire(now, effects);
        self.start_ready(now, effects);
    }

    /// The earliest time at which something happens by itself: a retry, a timeout, a run's deadline.
    pub fn deadline(&self) -> Option<Tick> {
        self.timers.first().map(|timer| timer.0)
    }

    /// What input `input` of an invocation is now. [`Resolved::Pending`] for strangers.
    pub fn resolve(&self, run: RunId, invocation: InvocationId, input: u16) -> Resolved {
        self.run(run).map_or(Resolved::Pending, |run| run.resolve_input(invocation, input))
    }

    /// What a source is now: for conditions and run outputs. [`Resolved::Null`] if it was skipped.
    pub fn resolve_source(&self, run: RunId, source: &Source) -> Resolved {
        self.run(run).map_or(Resolved::Pending, |run| run.resolve(source))
    }

    /// Whether a step was skipped, as a condition may ask.
    pub fn skipped(&self, run: RunId, step: u32) -> bool {
        let state = |run: &Run| run.steps.get(step as usize).is_some_and(|state| state.fate == Fate::Skipped);
        self.run(run).is_some_and(state)
    }

    /// Whether an object that another node puts is to be fetched to this one, since something here reads it.
    /// The putting node knows the same, and announces it by itself.
    pub fn wants(&self, key: ObjectKey) -> bool {
        self.run(key.run).is_some_and(|run| run.wants(key))
    }

    /// Whether this node executes the invocation. Strangers are executed nowhere.
    pub fn executes(&self, run: RunId, invocation: InvocationId) -> bool {
        self.run(run).is_some_and(|run| {
            (invocation.step as usize) < run.steps.len() && run.is_here(invocation.step, invocation.item)
        })
    }

    /// Drops a run that has ended: releases the outputs it kept. A run that failed is forgotten by itself.
    pub fn forget(&mut self, run: RunId, effects: &mut Vec<Effect>) {
        let Some(&slot) = self.index.get(&run) else { return };
        let Some(state) = self.runs[slot as usize].as_mut().filter(|run| run.over) else { return };
        let mut cx = Cx { now: Tick(0), pool: &mut self.pool, timers: &mut self.timers, effects };
        let graph = state.graph.clone();
        for output in &graph.outputs {
            if let Some(p) = state.plan.source_port(&output.source) {
                state.drop_hold_of(p, plan::NONE, plan::Role::Output);
            }
        }
        state.settle_agenda(&mut cx);
        drop(graph);
        self.remove(slot);
    }

    /// What is in use now.
    pub fn load(&self) -> Load {
        self.pool.load(self.index.len() as u32)
    }

    fn run(&self, run: RunId) -> Option<&Run> {
        self.runs[*self.index.get(&run)? as usize].as_deref()
    }

    fn submit(
        &mut self,
        now: Tick,
        id: RunId,
        graph: Arc<Graph>,
        start: Option<StartPolicy>,
        part: Option<Part>,
        effects: &mut Vec<Effect>,
    ) -> Option<u32> {
        if self.index.contains_key(&id) {
            return None;
        }
        let part = part.filter(|part| part.placement.nodes > 1);
        assert!(
            part.as_ref().is_none_or(|p| p.me < p.placement.nodes && p.placement.fits(graph.steps.len())),
            "the placement does not fit the graph of {} steps",
            graph.steps.len()
        );
        let make = |graph: &Graph| {
            graph.check()?;
            Ok::<_, crate::graph::GraphError>(Plan::new(
                graph,
                &graph.topological()?,
                &graph.critical_path(plan::BANDWIDTH)?,
            ))
        };
        let home = match self.pool.intern(&graph, make) {
            Ok(home) => home,
            Err(error) => {
                effects
                    .extend((0..graph.inputs.len()).map(|i| Effect::Release(ObjectKey::input(id, i as u16))));
                let result = Err(RunError::Cancelled(format!("the workflow cannot run: {error}")));
                effects.push(Effect::RunEnded { run: id, result });
                return None;
            }
        };
        let known = self.pool.graphs[home as usize].as_mut()?;
        known.runs += 1;
        let plan = known.plan.clone();
        let slot = self.runs.iter().position(Option::is_none).unwrap_or_else(|| {
            self.runs.push(None);
            self.runs.len() - 1
        });
        self.submitted += 1;
        let mut cx = Cx { now, pool: &mut self.pool, timers: &mut self.timers, effects };
        let mut run =
            Box::new(Run::new(id, self.submitted, slot as u32, home, graph, plan, start, part, &mut cx));
        run.settle_agenda(&mut cx);
        self.runs[slot] = Some(run);
        self.index.insert(id, slot as u32);
        Some(slot as u32)
    }

    fn fire(&mut self, now: Tick, effects: &mut Vec<Effect>) {
        while let Some(&timer) = self.timers.first() {
            let (at, seq, slot, id) = timer;
            if at > now {
                break;
            }
            self.timers.remove(&timer);
            let mut cx = Cx { now, pool: &mut self.pool, timers: &mut self.timers, effects };
            if let Some(run) = &mut self.runs[slot as usize]
                && run.seq == seq
                && !run.over
            {
                run.wake(id, &mut cx);
                run.settle_agenda(&mut cx);
                self.try_finish(now, slot, effects);
            }
        }
    }

    /// Starts what is ready, first things first, as long as there are means.
    fn start_ready(&mut self, now: Tick, effects: &mut Vec<Effect>) {
        let mut without_cpu = false;
        while let Some(entry) = self.pool.first(without_cpu) {
            let run = self.runs.get_mut(entry.slot as usize).and_then(Option::as_mut);
            let run = run.filter(|run| run.seq == entry.seq);
            let Some(run) = run else {
                self.pool.pop(&entry);
                self.pool.unpark(entry.graph, entry.function);
                continue;
            };
            let mut cx = Cx { now, pool: &mut self.pool, timers: &mut self.timers, effects };
            if !run.is_current(&entry) {
                // Whoever it kept parked behind it may try instead.
                cx.pool.pop(&entry);
                run.unpark(entry.step, &mut cx);
                cx.pool.unpark(entry.graph, entry.function);
            } else if !run.is_here(entry.step, entry.item) {
                cx.pool.pop(&entry);
                run.invite(entry, &mut cx);
            } else if !cx.pool.affords(&entry) {
                // Strictly in order: a small step must not pass a large one for ever.
                without_cpu = true;
            } else {
                cx.pool.pop(&entry);
                if run.has_place(&entry) && cx.pool.has_worker(&entry) {
                    run.start(&entry, &mut cx);
                    run.settle_agenda(&mut cx);
                }
            }
        }
    }

    /// Ends the run if nothing of it is left to do.
    fn try_finish(&mut self, now: Tick, slot: u32, effects: &mut Vec<Effect>) {
        let Some(run) = &mut self.runs[slot as usize] else { return };
        let mut cx = Cx { now, pool: &mut self.pool, timers: &mut self.timers, effects };
        run.stop_starved(&mut cx);
        if run.over || !run.is_finished(&mut cx) {
            return;
        }
        run.over = true;
        run.close_parts(&mut cx);
        if run.deadline != Tick(0) {
            cx.timers.remove(&(run.deadline, run.seq, slot, RUN));
        }
        let id = run.id;
        // What a home hands on is kept until it is forgotten; a participant has nothing to hand on.
        let ending = run.ending.take();
        if ending.is_some() || !run.is_home() {
            run.release_all(&mut cx);
            self.remove(slot);
        }
        let result = ending.map_or(Ok(()), |ending| Err(ending.error));
        effects.push(Effect::RunEnded { run: id, result });
    }

    fn remove(&mut self, slot: u32) {
        if let Some(run) = self.runs[slot as usize].take() {
            self.index.remove(&run.id);
            if let Some(Some(known)) = self.pool.graphs.get_mut(run.home as usize) {
                known.runs -= 1;
            }
        }
        self.pool.prune();
    }
}

fn apply(run: &mut Run, event: Event, cx: &mut Cx<'_>) {
    match event {
        Event::Submit { .. } | Event::Wake => {}
        Event::Evaluated { step, result, .. } => run.evaluated(step, result, cx),
        Event::ListLength { step, result, .. } => run.list_length(step, result, cx),
        Event::FirstByte(put) => run.put(put, false, cx),
        Event::Sealed(put) => run.put(put, true, cx),
        Event::Pinned { invocation, attempt, port, count, .. } => {
            run.pinned(invocation, attempt, port, count, cx)
        }
        Event::Blocked { invocation, attempt, .. } => run.blocked(invocation, attempt, true, cx),
        Event::Resumed { invocation, attempt, .. } => run.blocked(invocation, attempt, false, cx),
        Event::Ended { invocation, attempt, outcome, .. } => run.ended(invocation, attempt, outcome, cx),
        Event::Cancel { reason, .. } => run.end(RunError::Cancelled(reason), false, cx),
        Event::Heard { from, word, .. } => run.heard(from, word, cx),
        Event::Delivered { key } => run.delivered(key, cx),
        Event::Lost { node, why, .. } => run.lost(node, why, cx),
    }
}
