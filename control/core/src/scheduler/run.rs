//! The state of one run, and the agenda by which a change spreads through it.
//!
//! Every change of state pushes the questions it raises on the agenda; each question recomputes its answer
//! from state, so it may be asked late or twice. Only those whose answers are final (settled, freed) wait until
//! no other is left. A stack instead of recursion, since a graph may be 100,000 steps deep.

use super::part::Share;
use super::plan::{NONE, Plan};
use super::pool::{Entry, Gate, Pool};
use super::{Effect, Failure, RunError};
use crate::graph::{Graph, Source, StartPolicy};
use crate::placement::{HOME, Part};
use alloc::{boxed::Box, collections::BTreeSet, sync::Arc, vec::Vec};
use dflow_proto::{InvocationId, ObjectKey, RunId, Tick};

/// A deadline: when, of which run (its number and where it is kept), of what. [`RUN`] is the run's own.
pub(super) type Timer = (Tick, u64, u32, InvocationId);

/// Stands for the run itself in a [`Timer`].
pub(super) const RUN: InvocationId = InvocationId { step: NONE, item: 0 };

/// What all runs share while one event is handled.
pub(super) struct Cx<'a> {
    pub(super) now: Tick,
    pub(super) pool: &'a mut Pool,
    pub(super) timers: &'a mut BTreeSet<Timer>,
    pub(super) effects: &'a mut Vec<Effect>,
}

/// Whether a step runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Unknown,
    /// Nothing but an ignored failure can skip it any more.
    Runs,
    Skipped,
}

/// Where an invocation stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Its start policy does not hold yet.
    Waiting,
    /// In line.
    Ready,
    /// Until its next attempt.
    Backoff,
    Running,
    /// Being stopped; what it puts counts no more.
    Stopping,
    /// Ended well. May still be taken back while its step is not settled.
    Ended,
    /// Failed for good and tolerated.
    Failed,
    /// An item whose own item failed.
    LeftOut,
}

pub(super) mod flag {
    /// Some input was incomplete when it was put in line or started.
    pub(crate) const EARLY: u8 = 1;
    /// Holds its CPU tokens (is not blocked).
    pub(crate) const TOKEN: u8 = 2;
    /// It was told to stop since it took too long.
    pub(crate) const TIMED_OUT: u8 = 4;
    /// The first byte of its item exists.
    pub(crate) const ITEM: u8 = 8;
    /// Its item is sealed.
    pub(crate) const ITEM_SEALED: u8 = 16;
    /// It does not hold its item any more.
    pub(crate) const ITEM_DROPPED: u8 = 32;
    /// Another node has been asked to execute it and has not ended it yet.
    pub(crate) const INVITED: u8 = 64;
}

pub(super) struct Invocation {
    pub(super) phase: Phase,
    pub(super) flags: u8,
    pub(super) failures: u8,
    pub(super) attempt: u32,
    pub(super) ticket: u32,
    /// Index in the step's running list.
    pub(super) place: u32,
    /// Attempts up to this one are void, as the lead on another node has said.
    pub(super) void: u32,
    /// The attempt that the lead on another node has asked for and that has not started; 0 for none.
    pub(super) invited: u32,
    /// Its timer, `Tick(0)` for none.
    pub(super) timer: Tick,
}

impl Invocation {
    pub(super) const NEW: Invocation = Invocation {
        phase: Phase::Waiting,
        flags: 0,
        failures: 0,
        attempt: 0,
        ticket: 0,
        place: 0,
        void: 0,
        invited: 0,
        timer: Tick(0),
    };
    pub(super) const fn is(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// What is known of an object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Known {
    #[default]
    Nothing,
    /// Its first byte.
    Exists,
    /// All of it; in the store.
    Sealed,
    /// All of it; freed since nobody will read it.
    Freed,
}

#[derive(Clone, Copy, Default)]
pub(super) struct Object {
    pub(super) known: Known,
    /// Sealed by an earlier attempt of a deterministic function, so a new one may seal it again.
    pub(super) repeatable: bool,
    /// Other nodes are fetching it.
    pub(super) away: bool,
    /// Foreach steps that are done with this item.
    pub(super) items_done: u32,
}

/// A `many` port.
#[derive(Default)]
pub(super) struct List {
    pub(super) items: Vec<Object>,
    pub(super) pinned: bool,
    /// Set as long as an attempt may still have to repeat it.
    pub(super) count: Option<u32>,
}

#[derive(Clone, Copy, Default)]
pub(super) struct Port {
    /// Readers that still hold all of it.
    pub(super) holds: u32,
    /// Foreach steps that hold items of it.
    pub(super) item_holds: u32,
    /// Objects of it that exist, and that are sealed.
    pub(super) exist: u32,
    pub(super) sealed: u32,
    /// Some byte exists: what `first-byte` waits for.
    pub(super) begun: bool,
    /// All of it is sealed (and pinned).
    pub(super) complete: bool,
}

pub(super) struct Step {
    pub(super) fate: Fate,
    /// Settled or skipped: its part of the run is over, for good.
    pub(super) resolved: bool,
    /// Its first attempt has started (a switch: has been decided), or it never will.
    pub(super) begun: bool,
    pub(super) asked: bool,
    /// Its condition has been answered (or it has none).
    pub(super) decided: bool,
    pub(super) measured: bool,
    /// No more items will come.
    pub(super) pinned: bool,
    /// Its lead, on another node, has said that it is settled.
    pub(super) told: bool,
    /// A switch has dropped what it chose.
    pub(super) dropped_choice: bool,
    /// Precursors it needs that may still be skipped.
    pub(super) undecided: u32,
    pub(super) conditions: u32,
    pub(super) after: u32,
    /// Precursors by data that are not resolved.
    pub(super) unsettled: u32,
    /// Precursors by data that have not begun.
    pub(super) unbegun: u32,
    /// Inputs from steps that exist, are complete, are null.
    pub(super) exist: u32,
    pub(super) complete: u32,
    pub(super) nulls: u32,
    /// Words of its lead that took something of it back: said here, or heard.
    pub(super) taken_back: u32,
    /// The case a switch chose.
    pub(super) chosen: u32,
    /// The one precursor whose outputs it let go before it was settled.
    pub(super) dropped: u32,
    /// Number of invocations; more may be kept below from withdrawn lists.
    pub(super) items: u32,
    /// Of these, how many are over, and how many of those left nothing.
    pub(super) ended: u32,
    pub(super) failed: u32,
    pub(super) left: u32,
    pub(super) invocations: Vec<Invocation>,
    pub(super) running: Vec<u32>,
    pub(super) objects: Vec<Object>,
    pub(super) lists: Vec<List>,
    pub(super) each: Option<Box<Each>>,
}

/// What only a foreach step needs.
#[derive(Default)]
pub(super) struct Each {
    pub(super) gate: Gate,
    /// The first tolerated failure, to tell if there are too many in the end.
    pub(super) failure: Option<(u32, u32, Failure)>,
    /// Its list is longer than it may be.
    pub(super) overflow: bool,
}

/// A question on the agenda.
#[derive(Clone, Copy, Debug)]
pub(super) enum Ask {
    /// Is it certain that the step runs?
    Fate(u32),
    /// May the invocation start, and is it early?
    Ready(u32, u32),
    /// The same for all of a step.
    ReadyAll(u32),
    /// Does the port begin, is it complete?
    Port(u32),
    /// May the port's objects be freed?
    Free(u32),
    /// Is all of the step over, with nothing left that could take it back?
    Settled(u32),
    /// Withdraw all outputs of the invocation.
    Withdraw(u32, u32),
    /// The step has this many items (so far).
    Grow(u32, u32),
    /// Take back all items of the step.
    Shrink(u32),
    /// No more items will come.
    Pin(u32),
    /// Skip the step.
    Skip(u32),
    /// The step is over: tell those that waited for it.
    Resolved(u32),
}

/// The lead of an invocation has followed more words that take back what it reads than this node, which executes it.
pub(super) struct Behind {
    pub(super) id: InvocationId,
    pub(super) step: u32,
    pub(super) taken_back: u32,
}

/// A run on its way out.
pub(super) struct Ending {
    pub(super) error: RunError,
    /// Whether what runs may end by itself.
    pub(super) finish: bool,
    pub(super) running: Vec<InvocationId>,
}

pub(super) struct Run {
    pub(super) id: RunId,
    /// Number in order of submission.
    pub(super) seq: u64,
    /// Where it is kept.
    pub(super) slot: u32,
    /// Where its graph is kept in the pool.
    pub(super) home: u32,
    pub(super) graph: Arc<Graph>,
    pub(super) plan: Arc<Plan>,
    pub(super) start: Option<StartPolicy>,
    pub(super) share: Option<Box<Share>>,
    pub(super) steps: Vec<Step>,
    pub(super) ports: Vec<Port>,
    /// Run inputs.
    pub(super) inputs: Vec<Object>,
    pub(super) unresolved: u32,
    pub(super) running: u32,
    pub(super) tickets: u32,
    pub(super) deadline: Tick,
    pub(super) agenda: Vec<Ask>,
    /// Questions whose answer is final; asked when the agenda is empty, so that all that has to be taken
    /// back is taken back before anything is settled or freed.
    pub(super) closing: Vec<Ask>,
    /// Ready invocations that other nodes execute.
    pub(super) invitations: Vec<Entry>,
    /// What invocations that this node was asked to execute have to wait for.
    pub(super) behind: Vec<Behind>,
    pub(super) ending: Option<Ending>,
    pub(super) over: bool,
}

impl Run {
    #[expect(clippy::too_many_arguments, reason = "made in one place, from what the scheduler has at hand")]
    pub(super) fn new(
        id: RunId,
        seq: u64,
        slot: u32,
        home: u32,
        graph: Arc<Graph>,
        plan: Arc<Plan>,
        start: Option<StartPolicy>,
        part: Option<Part>,
        cx: &mut Cx<'_>,
    ) -> Self {
        let ports =
            plan.ports.iter().map(|p| Port { holds: p.holds, item_holds: p.item_holds, ..Port::default() });
        let sealed = Object { known: Known::Sealed, ..Object::default() };
        let mut run = Run {
            id,
            seq,
            slot,
            home,
            start,
            share: None,
            steps: Vec::with_capacity(plan.steps.len()),
            ports: ports.collect(),
            inputs: alloc::vec![sealed; graph.inputs.len()],
            unresolved: plan.steps.len() as u32,
            running: 0,
            tickets: 0,
            deadline: Tick(0),
            agenda: Vec::new(),
            closing: Vec::new(),
            invitations: Vec::new(),
            behind: Vec::new(),
            ending: None,
            over: false,
            graph,
            plan,
        };
        if run.graph.policy.deadline_ms > 0 && part.as_ref().is_none_or(|part| part.me == HOME) {
            run.deadline = cx.now.after_ms(run.graph.policy.deadline_ms);
            cx.timers.insert((run.deadline, seq, slot, RUN));
        }
        let plan = run.plan.clone();
        for (s, step) in plan.steps.iter().enumerate() {
            let foreach = run.graph.steps[s].foreach.is_some();
            let call = step.function != NONE;
            let width = usize::from(call && !foreach);
            let mut invocations = Vec::with_capacity(width);
            invocations.extend((0..width).map(|_| Invocation::NEW));
            let mut lists = Vec::with_capacity(step.lists as usize);
            lists.extend((0..step.lists).map(|_| List::default()));
            run.steps.push(Step {
                fate: Fate::Unknown,
                resolved: false,
                begun: false,
                asked: false,
                decided: run.graph.steps[s].when.is_none() && call,
                measured: false,
                pinned: !foreach,
                told: false,
                dropped_choice: false,
                undecided: step.required,
                conditions: step.conditions,
                after: step.after,
                unsettled: step.data,
                unbegun: step.data,
                exist: 0,
                complete: 0,
                nulls: 0,
                taken_back: 0,
                chosen: NONE,
                dropped: NONE,
                items: width as u32,
                ended: 0,
                failed: 0,
                left: 0,
                invocations,
                running: Vec::new(),
                objects: alloc::vec![Object::default(); width * step.ones as usize],
                lists,
                each: foreach.then(Box::default),
            });
        }
        if let Some(part) = part {
            run.share_out(part, cx);
            run.mirror_sure(cx);
        }
        for s in (0..plan.steps.len() as u32).rev() {
            run.evaluate(s, cx);
            run.agenda.push(Ask::Fate(s));
        }
        for p in plan.run_inputs() {
            run.closing.push(Ask::Free(p));
        }
        run
    }

    /// Answers the questions on the agenda until there are none.
    pub(super) fn settle_agenda(&mut self, cx: &mut Cx<'_>) {
        while let Some(ask) = self.agenda.pop().or_else(|| self.closing.pop()) {
            match ask {
                // Of a step that another node leads, its lead's word is awaited.
                Ask::Fate(step)
                | Ask::Grow(step, _)
                | Ask::Shrink(step)
                | Ask::Pin(step)
                | Ask::Skip(step)
                    if !self.leads(step) => {}
                Ask::Fate(step) => self.decide_fate(step, cx),
                Ask::Ready(step, item) => self.check_ready(step, item, cx),
                Ask::ReadyAll(step) => {
                    for item in 0..self.steps[step as usize].items {
                        self.check_ready(step, item, cx);
                    }
                }
                Ask::Port(port) => self.check_port(port),
                Ask::Free(port) => self.free(port, cx),
                Ask::Settled(step) => self.check_settled(step, cx),
                Ask::Withdraw(step, item) => self.withdraw(step, item, cx),
                Ask::Grow(step, items) => self.grow(step, items, cx),
                Ask::Shrink(step) => self.shrink(step, cx),
                Ask::Pin(step) => self.pin(step, cx),
                Ask::Skip(step) => self.skip(step, cx),
                Ask::Resolved(step) => self.resolved(step, cx),
            }
        }
        for entry in core::mem::take(&mut self.invitations) {
            if self.is_current(&entry) {
                self.invite(entry, cx);
            }
        }
    }

    pub(super) const fn key(&self, step: u32, item: u32, port: u16, element: u32) -> ObjectKey {
        ObjectKey { run: self.id, invocation: InvocationId { step, item }, port, item: element }
    }

    /// The invocation, if there is one of that name now.
    pub(super) fn invocation(&mut self, id: InvocationId) -> Option<&mut Invocation> {
        self.steps.get_mut(id.step as usize)?.invocations.get_mut(id.item as usize)
    }

    /// The policy by which the step's invocations start.
    pub(super) fn policy(&self, step: u32) -> StartPolicy {
        self.start.unwrap_or(self.graph.steps[step as usize].start)
    }

    /// The value that a decided switch handed on.
    pub(super) fn choice(&self, step: u32) -> Option<&Source> {
        match &self.graph.steps[step as usize].kind {
            crate::graph::StepKind::Switch(cases) => {
                cases.get(self.steps[step as usize].chosen as usize).map(|case| &case.value)
            }
            crate::graph::StepKind::Call(_) => None,
        }
    }

    /// Whether all inputs that the whole step shares are complete.
    pub(super) fn shared_complete(&self, step: u32) -> bool {
        let state = &self.steps[step as usize];
        state.complete + state.nulls >= self.plan.steps[step as usize].inputs
    }

    pub(super) fn timer(&mut self, id: InvocationId, at: Option<Tick>, cx: &mut Cx<'_>) {
        let (seq, slot) = (self.seq, self.slot);
        let Some(invocation) = self.invocation(id) else { return };
        if invocation.timer != Tick(0) {
            cx.timers.remove(&(invocation.timer, seq, slot, id));
        }
        invocation.timer = at.unwrap_or(Tick(0));
        if let Some(at) = at {
            cx.timers.insert((at, seq, slot, id));
        }
    }
}
