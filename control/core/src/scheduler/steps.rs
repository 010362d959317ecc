//! What becomes of steps: certain to run, skipped, wider, settled.

use super::plan::{NONE, Over, Role, because};
use super::run::{Ask, Cx, Fate, Phase, Run, flag};
use super::{Effect, Failure, Note, RunError, Word};
use crate::graph::{ErrorClass, OnFailure, Source, StartPolicy, StepKind};
use alloc::{string::String, string::ToString};
use dflow_proto::InvocationId;

impl Run {
    pub(super) fn note(&self, note: Note, cx: &mut Cx<'_>) {
        cx.effects.push(Effect::Note { run: self.id, note });
    }

    /// A step runs for certain when its condition holds and nothing it needs can be skipped by a condition.
    pub(super) fn decide_fate(&mut self, step: u32, cx: &mut Cx<'_>) {
        let state = &self.steps[step as usize];
        if state.fate != Fate::Unknown || !state.decided || state.undecided > 0 {
            return;
        }
        let plan = self.plan.clone();
        let switch = plan.steps[step as usize].function == NONE;
        if switch {
            match self.choice(step).and_then(Source::step).map(|of| self.steps[of as usize].fate) {
                Some(Fate::Unknown) => return,
                Some(Fate::Skipped) => return self.agenda.push(Ask::Skip(step)),
                Some(Fate::Runs) | None => {}
            }
        }
        self.runs(step, cx);
    }

    /// The step is certain to run.
    pub(super) fn runs(&mut self, step: u32, cx: &mut Cx<'_>) {
        let plan = self.plan.clone();
        self.steps[step as usize].fate = Fate::Runs;
        if !plan.steps[step as usize].sure {
            let chosen = self.steps[step as usize].chosen;
            self.tell_as_lead(step, &Word::Runs { step, chosen }, cx);
        }
        if plan.steps[step as usize].function == NONE {
            let alias = plan.port(step, 0);
            self.agenda.push(Ask::Port(alias));
            self.closing.push(Ask::Settled(step));
            self.relink(alias, None, cx);
            self.begun(step, cx);
        } else {
            self.measure(step, cx);
            if self.steps[step as usize].each.is_some() {
                for p in plan.ports_of(step) {
                    self.agenda.push(Ask::Port(p));
                    self.relink_whole(p, cx);
                }
            }
            self.agenda.push(Ask::ReadyAll(step));
            self.closing.push(Ask::Settled(step));
        }
        for dependent in plan.dependents(step) {
            let state = &mut self.steps[dependent.step as usize];
            if dependent.because & because::REQUIRED != 0 {
                state.undecided -= 1;
                self.agenda.push(Ask::Fate(dependent.step));
            }
            if dependent.because & because::VALUE != 0 {
                self.agenda.push(Ask::Fate(dependent.step));
            }
            if dependent.because & because::ASK != 0 && !plan.steps[step as usize].late_skip {
                self.steps[dependent.step as usize].conditions -= 1;
                self.evaluate(dependent.step, cx);
            }
        }
    }

    /// Asks the driver for the step's decision once all that it looks at is final.
    pub(super) fn evaluate(&mut self, step: u32, cx: &mut Cx<'_>) {
        let leads = self.leads(step);
        let state = &mut self.steps[step as usize];
        if !state.decided
            && !state.asked
            && state.conditions == 0
            && state.fate == Fate::Unknown
            && self.ending.is_none()
            && leads
        {
            state.asked = true;
            cx.effects.push(Effect::Evaluate { run: self.id, step });
        }
    }

    /// The driver's decision.
    pub(super) fn evaluated(&mut self, step: u32, result: Result<u32, String>, cx: &mut Cx<'_>) {
        let Some(state) = self.steps.get_mut(step as usize) else { return };
        if !state.asked || state.decided {
            return;
        }
        let result = match result {
            Ok(result) => result,
            Err(message) => {
                let class = ErrorClass::Error("Condition".to_string());
                return self.fail_step(step, None, class, message, cx);
            }
        };
        let graph = self.graph.clone();
        match &graph.steps[step as usize].kind {
            StepKind::Call(_) => {
                self.drop_decision_holds(step);
                self.agenda.push(if result == 0 { Ask::Skip(step) } else { Ask::Fate(step) });
            }
            StepKind::Switch(cases) => {
                let chosen = if (result as usize) < cases.len() { result } else { NONE };
                self.steps[step as usize].chosen = chosen;
                self.drop_decision_holds(step);
                if chosen == NONE {
                    return self.agenda.push(Ask::Skip(step));
                }
                for p in self.plan.ports_of(step) {
                    self.closing.push(Ask::Free(p));
                }
                self.agenda.push(Ask::Fate(step));
            }
        }
    }

    /// Lets go of what a decision read, and of the branches that a switch did not choose.
    pub(super) fn drop_decision_holds(&mut self, step: u32) {
        self.steps[step as usize].decided = true;
        let graph = self.graph.clone();
        let chosen = self.steps[step as usize].chosen;
        let mut drop = |source: &Source, role: Role| {
            if let Some(p) = self.plan.source_port(source) {
                self.drop_hold_of(p, step, role);
            }
        };
        graph.steps[step as usize].conditions(|condition| {
            condition.reads.iter().for_each(|read| drop(read, Role::Condition));
        });
        if let StepKind::Switch(cases) = &graph.steps[step as usize].kind {
            cases
                .iter()
                .enumerate()
                .filter(|(i, _)| *i as u32 != chosen)
                .for_each(|(i, case)| drop(&case.value, Role::Case(i as u16)));
        }
    }

    /// The step fails on the data it was given. If that is ignored and the data may still be taken back,
    /// the verdict waits until it is settled, since a skip is for good.
    pub(super) fn fail_on_data(
        &mut self,
        step: u32,
        by: Option<(InvocationId, u32)>,
        failure: Failure,
        cx: &mut Cx<'_>,
    ) {
        let ignored = self.graph.steps[step as usize].on_failure == OnFailure::Ignore;
        if !ignored || self.steps[step as usize].unsettled == 0 {
            self.fail(step, by, failure, cx);
        }
    }

    /// The step fails for a reason that no retry can mend.
    pub(super) fn fail_step(
        &mut self,
        step: u32,
        by: Option<InvocationId>,
        class: ErrorClass,
        message: String,
        cx: &mut Cx<'_>,
    ) {
        let by = by.map(|id| (id, self.invocation(id).map_or(0, |invocation| invocation.attempt)));
        self.fail(step, by, Failure { class, message }, cx);
    }

    /// The step fails: the run with it, unless that is ignored.
    pub(super) fn fail(
        &mut self,
        step: u32,
        by: Option<(InvocationId, u32)>,
        failure: Failure,
        cx: &mut Cx<'_>,
    ) {
        let own = &self.graph.steps[step as usize];
        if !self.leads(step) {
            // Its lead mirrors what was wrong and judges by itself.
            return;
        }
        if own.on_failure == OnFailure::Ignore {
            return self.agenda.push(Ask::Skip(step));
        }
        let item = by.filter(|_| own.foreach.is_some()).map(|(id, _)| id.item);
        let attempt = by.map_or(0, |(_, attempt)| attempt);
        let error = RunError::Step { step: own.name.clone(), item, attempt, failure };
        let finish = self.graph.policy.finish_started;
        self.end(error, finish, cx);
    }

    /// The step is skipped: by its condition, for lack of an input, or since its failure is ignored.
    pub(super) fn skip(&mut self, step: u32, cx: &mut Cx<'_>) {
        let state = &mut self.steps[step as usize];
        if state.fate == Fate::Skipped || state.resolved {
            return;
        }
        let first = state.fate == Fate::Unknown;
        state.fate = Fate::Skipped;
        state.resolved = true;
        self.unresolved -= u32::from(self.counts(step));
        self.tell_as_lead(step, &Word::Skipped { step }, cx);
        // Attempts that have to be stopped must be gone before what comes after the step may start.
        if self.steps[step as usize].running.is_empty() {
            self.closing.push(Ask::Resolved(step));
        }
        self.note(Note::Skipped { step }, cx);
        let (graph, plan) = (self.graph.clone(), self.plan.clone());
        for item in 0..self.steps[step as usize].items {
            let dropped = self.steps[step as usize].invocations[item as usize].is(flag::ITEM_DROPPED);
            if dropped {
                self.drop_item(step, item, true, cx);
            }
            self.timer_unless_running(InvocationId { step, item }, cx);
            self.roll_back(step, item, cx);
            self.forget_mirrored(InvocationId { step, item }, cx);
        }
        self.let_go(step, true);
        if let Over::Many(p) | Over::Gather(p) = plan.steps[step as usize].over
            && self.hosts(step)
        {
            self.ports[p as usize].item_holds -= 1;
            self.closing.push(Ask::Free(p));
        }
        for p in plan.ports_of(step) {
            if self.ports[p as usize].begun {
                // Even an empty list is something to have read.
                self.take_back(p, NONE, cx);
            }
            self.check_port(p);
            for reader in plan.readers(p) {
                let Role::Input(input) = reader.role else { continue };
                if graph.steps[reader.step as usize].inputs[input as usize].optional {
                    self.steps[reader.step as usize].nulls += 1;
                    self.inputs_changed(reader.step, false);
                } else if !self.leads(reader.step) {
                    // Its lead skips it as well; until that is heard, nothing of it may start here.
                    self.agenda.push(Ask::ReadyAll(reader.step));
                }
            }
            self.relink(p, Some(NONE), cx);
        }
        self.begun(step, cx);
        for dependent in plan.dependents(step) {
            let chosen = || self.choice(dependent.step).and_then(Source::step) == Some(step);
            if dependent.because & because::REQUIRED != 0
                || (dependent.because & because::VALUE != 0 && chosen())
            {
                self.agenda.push(Ask::Skip(dependent.step));
            }
            if first && dependent.because & because::ASK != 0 && !plan.steps[step as usize].late_skip {
                self.steps[dependent.step as usize].conditions -= 1;
                self.evaluate(dependent.step, cx);
            }
        }
    }

    pub(super) fn timer_unless_running(&mut self, id: InvocationId, cx: &mut Cx<'_>) {
        if let Some(invocation) = self.invocation(id)
            && invocation.phase == Phase::Backoff
        {
            invocation.phase = Phase::Waiting;
            self.timer(id, None, cx);
        }
    }

    /// Is all of the step over, with nothing left that could take it back?
    pub(super) fn check_settled(&mut self, step: u32, cx: &mut Cx<'_>) {
        if !self.leads(step) {
            return self.check_mirror_settled(step, cx);
        }
        let state = &self.steps[step as usize];
        let open = state.resolved || state.fate != Fate::Runs || state.unsettled > 0;
        if open || self.ending.is_some() {
            return;
        }
        if self.has_failed(step) {
            return self.agenda.push(Ask::Skip(step));
        }
        let state = &self.steps[step as usize];
        if !state.pinned {
            return;
        }
        let over = if self.plan.steps[step as usize].function == NONE {
            let of = self.choice(step).and_then(Source::step);
            of.is_none_or(|of| self.steps[of as usize].resolved && self.steps[of as usize].fate == Fate::Runs)
        } else {
            // Items that vanished may still have to be stopped.
            state.ended == state.items && state.running.is_empty()
        };
        if over {
            self.settle(step, cx);
        }
    }

    /// Nothing can take the step back any more.
    pub(super) fn settle(&mut self, step: u32, cx: &mut Cx<'_>) {
        self.steps[step as usize].resolved = true;
        self.unresolved -= u32::from(self.counts(step));
        self.tell_as_lead(step, &Word::Settled { step }, cx);
        self.note(Note::StepDone { step }, cx);
        self.begun(step, cx);
        if self.plan.steps[step as usize].function != NONE {
            for item in 0..self.steps[step as usize].items {
                self.drop_item(step, item, false, cx);
            }
            self.let_go(step, false);
        }
        self.resolved(step, cx);
    }

    /// Drops all that the step still holds. A switch holds what it chose for its own readers.
    pub(super) fn let_go(&mut self, step: u32, skipped: bool) {
        let graph = self.graph.clone();
        let dropped = self.steps[step as usize].dropped;
        for input in &graph.steps[step as usize].inputs {
            if input.source.step().is_some_and(|of| of == dropped) {
                continue;
            }
            if let Some(p) = self.plan.source_port(&input.source) {
                self.drop_hold_of(p, step, Role::Input(0));
            }
        }
        if let Some(each) = &graph.steps[step as usize].foreach
            && each.json
            && let Some(p) = self.plan.source_port(&each.over)
        {
            self.drop_hold_of(p, step, Role::List);
        }
        if !skipped {
            return;
        }
        if !self.steps[step as usize].decided {
            self.drop_decision_holds(step);
        }
        if let Some(p) = self.choice(step).and_then(|source| self.plan.source_port(source))
            && !core::mem::replace(&mut self.steps[step as usize].dropped_choice, true)
        {
            self.drop_hold_of(p, step, Role::Case(0));
        }
    }

    /// The step is settled or skipped: those that waited for that go on.
    pub(super) fn resolved(&mut self, step: u32, cx: &mut Cx<'_>) {
        let plan = self.plan.clone();
        for dependent in plan.dependents(step) {
            let (of, why) = (dependent.step, dependent.because);
            let late = plan.steps[step as usize].late_skip;
            let looked_at = u32::from(why & because::READ != 0) + u32::from(why & because::ASK != 0 && late);
            if looked_at > 0 {
                self.steps[of as usize].conditions -= looked_at;
                self.evaluate(of, cx);
            }
            if why & because::AFTER != 0 {
                self.steps[of as usize].after -= 1;
                if self.steps[of as usize].after == 0 {
                    self.agenda.push(Ask::ReadyAll(of));
                }
            }
            if why & because::DATA != 0 {
                self.steps[of as usize].unsettled -= 1;
                self.closing.push(Ask::Settled(of));
                if !self.steps[of as usize].resolved {
                    self.drop_early(of, cx);
                }
            }
            if why & because::LIST != 0 {
                self.measure(of, cx);
            }
            if why & because::VALUE != 0 {
                self.closing.push(Ask::Settled(of));
                self.agenda.push(Ask::Fate(of));
            }
        }
    }

    /// Lets go of inputs before the step is settled, where nothing but the loss of those very inputs
    /// could make it run again: they would be put anew then. Without this a pipeline would keep every
    /// item until its head has ended.
    pub(super) fn drop_early(&mut self, step: u32, cx: &mut Cx<'_>) {
        let state = &self.steps[step as usize];
        if state.ended == 0 {
            return;
        }
        if state.each.is_some() {
            if self.may_drop_items(step) {
                for item in 0..self.steps[step as usize].items {
                    if self.steps[step as usize].invocations[item as usize].phase == Phase::Ended {
                        self.drop_item(step, item, false, cx);
                    }
                }
            }
            return;
        }
        if state.unsettled != 1 || state.dropped != NONE {
            return;
        }
        let plan = self.plan.clone();
        let graph = self.graph.clone();
        let inputs = &graph.steps[step as usize].inputs;
        let sources = || inputs.iter().filter_map(|input| input.source.step());
        let Some(of) = sources().find(|&of| !self.steps[of as usize].resolved) else { return };
        if plan.steps[of as usize].function == NONE || self.steps[of as usize].each.is_some() {
            return;
        }
        self.steps[step as usize].dropped = of;
        for input in inputs.iter().filter(|input| input.source.step() == Some(of)) {
            if let Some(p) = plan.source_port(&input.source) {
                self.drop_hold_of(p, step, Role::Input(0));
            }
        }
    }

    /// Whether an ended instance can be taken back only by the loss of its own item.
    pub(super) fn may_drop_items(&self, step: u32) -> bool {
        let own = &self.plan.steps[step as usize];
        let (Over::Many(p) | Over::Gather(p)) = own.over else { return false };
        let of = self.plan.ports[p as usize].step;
        let list = u32::from(!self.steps[of as usize].resolved && !own.over_shared);
        self.steps[step as usize].unsettled == list
    }

    /// The step's first attempt has started (or never will): its dependents may be warmed.
    pub(super) fn begun(&mut self, step: u32, cx: &mut Cx<'_>) {
        if core::mem::replace(&mut self.steps[step as usize].begun, true) {
            return;
        }
        let plan = self.plan.clone();
        for dependent in plan.dependents(step).iter().filter(|d| d.because & because::DATA != 0) {
            let here = self.hosts(dependent.step);
            let state = &mut self.steps[dependent.step as usize];
            state.unbegun -= 1;
            let own = &plan.steps[dependent.step as usize];
            let idle = state.unbegun == 0 && !state.begun && state.fate != Fate::Skipped;
            if idle && own.function != NONE && self.ending.is_none() && here {
                let most = self.graph.functions[own.function as usize].workers_max;
                let workers = own.parallel_max.min(state.items.max(1)).min(most);
                cx.effects.push(Effect::Warm { run: self.id, function: own.function, workers });
            }
        }
    }

    /// The inputs that all invocations of the step share have changed: asks again where that may matter.
    /// `less`: something that was there is gone.
    pub(super) fn inputs_changed(&mut self, step: u32, less: bool) {
        let own = &self.plan.steps[step as usize];
        if own.function == NONE {
            return;
        }
        let state = &self.steps[step as usize];
        if state.each.is_none() {
            return self.agenda.push(Ask::Ready(step, 0));
        }
        // An instance is looked at again only if its answer can have changed, since there may be many.
        let counts = matches!(self.policy(step), StartPolicy::First(_));
        if less || counts || state.exist <= 1 || self.shared_complete(step) {
            self.agenda.push(Ask::ReadyAll(step));
        }
    }
}
