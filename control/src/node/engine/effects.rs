//! What the scheduler asks for, done.

use super::{Attempt, Engine, Phase, RunState};
use crate::node::view::{Failed, Record, What};
use crate::workflow::{FunctionSpec, Workflow};
use dflow_core::graph::ErrorClass;
use dflow_core::graph::StepKind;
use dflow_core::scheduler::{Effect, Event, Failure, Note, Outcome, RunError, StopReason};
use dflow_proto::store::{Owner, Sealed};
use dflow_proto::{InvocationId, RunId, Tick};
use dflow_shm::page::SlotState;

impl Engine {
    /// Does one effect. Anything that follows from it at once is queued as an event, so that the
    /// scheduler is never called from within itself.
    pub(super) fn apply(&mut self, effect: Effect) {
        match effect {
            Effect::Start { run, invocation, attempt, early } => self.start(run, invocation, attempt, early),
            Effect::Warm { run, function, workers } => self.warm(run, function, workers),
            Effect::Evaluate { run, step } => self.evaluate(run, step),
            Effect::MeasureList { run, step } => self.measure_list(run, step),
            Effect::Relink { run, invocation, input } => {
                let after = self.attempts.get(&(run, invocation)).map_or(Tick(0), |a| a.fresh_until);
                self.dirty.insert((run, invocation, input), after);
            }
            Effect::Stop { run, invocation, attempt, why } => self.stop(run, invocation, attempt, why),
            Effect::Release(key) => {
                self.unpublish(key);
                self.store.release(key);
            }
            Effect::Tell { run, to, word } => self.tell_node(run, to, word),
            Effect::Publish { key, attempt, to } => self.publish(key, attempt, to),
            Effect::Note { run, note } => self.note(run, &note),
            Effect::RunEnded { run, result } => self.end_run(run, result),
        }
    }

    fn start(&mut self, run: RunId, invocation: InvocationId, attempt: u32, early: bool) {
        let Some(state) = self.runs.get(&run) else { return };
        state.watch.record(Record { at: self.now(), invocation, attempt, what: What::Started { early } });
        let owner = Owner { run, invocation, attempt };
        let strict =
            self.config.strict || function_of(&state.workflow, invocation.step).is_some_and(|f| f.strict);
        self.attempts.insert((run, invocation), Attempt::new(attempt, strict));
        self.want_memory(owner);
    }

    fn warm(&mut self, run: RunId, function: u32, workers: u32) {
        if !self.config.overlaps.cold_start {
            return;
        }
        if let Some(state) = self.runs.get(&run) {
            let pool = state.pools[function as usize];
            self.pools.warm(pool, workers);
        }
    }

    /// Ends an attempt at once, whatever phase it is in.
    fn stop(&mut self, run: RunId, invocation: InvocationId, attempt: u32, why: StopReason) {
        let Some(state) = self.attempts.get_mut(&(run, invocation)) else { return };
        if state.attempt != attempt {
            return;
        }
        tracing::debug!(?run, ?invocation, attempt, ?why, "stop");
        match state.phase {
            // The scheduler stops only what it has started here.
            Phase::Elsewhere => {}
            Phase::Running(worker) => {
                state.stopping = true;
                self.pools.kill(worker);
            }
            Phase::Memory(ticket) => {
                self.store.cancel(ticket);
                self.waiting.remove(&ticket);
                self.ended(run, invocation, Outcome::Stopped);
            }
            Phase::Worker => {
                self.pools.withdraw((run, invocation));
                self.ended(run, invocation, Outcome::Stopped);
            }
        }
    }

    /// The attempt is over. The scheduler hears of it first and has the tables of its readers
    /// rewritten; only then ([`Engine::take_apart`]) are its page and memory given back.
    pub(super) fn ended(&mut self, run: RunId, invocation: InvocationId, outcome: Outcome) {
        let Some(mut state) = self.attempts.remove(&(run, invocation)) else { return };
        self.tell_withheld(std::mem::take(&mut state.aside));
        let ok = outcome == Outcome::Ok;
        let attempt = state.attempt;
        let at = self.now();
        if let Some(RunState { watch, .. }) = self.runs.get(&run) {
            if state.blocked {
                watch.record(Record { at, invocation, attempt, what: What::Resumed });
            }
            watch.record(Record { at, invocation, attempt, what: What::Ended { ok, times: state.times } });
        }
        if ok {
            self.work_off(run, state.times.total_us.saturating_sub(state.times.wait_us));
        } else {
            self.stop_growing(Owner { run, invocation, attempt });
        }
        self.retired.push((Owner { run, invocation, attempt }, ok, state));
        self.events.push_back(Event::Ended { run, invocation, attempt, outcome });
    }

    /// Gives back what attempts that are over had; false if there was none.
    pub(super) fn take_apart(&mut self) -> bool {
        let retired = std::mem::take(&mut self.retired);
        let any = !retired.is_empty();
        for (owner, ok, attempt) in retired {
            if let Some(page) = attempt.page.filter(|_| !ok) {
                // Readers that sleep on it look at their tables again.
                page.poke(SlotState::Moved);
            }
            if let Some(table) = attempt.table {
                self.drop_table(owner, table);
            }
            self.store.drop_owner(owner, Sealed::Keep);
        }
        any
    }

    /// An attempt that could not be executed at all.
    pub(super) fn fail(&mut self, run: RunId, invocation: InvocationId, name: &str, message: String) {
        let class = ErrorClass::Error(name.into());
        self.ended(run, invocation, Outcome::Failed(Failure { class, message }));
    }

    fn note(&mut self, run: RunId, note: &Note) {
        self.note_for_home(run, note);
        let Some(RunState { watch, .. }) = self.runs.get(&run) else { return };
        match note {
            Note::Expanded { step, items, .. } => watch.step(*step, |s| s.items = Some(*items)),
            Note::Skipped { step } => watch.step(*step, |s| s.skipped = true),
            Note::Retrying { invocation, attempt, failure, .. } => {
                watch.failed(failed(self.now(), *invocation, *attempt, failure, true));
                tracing::info!(?run, ?invocation, attempt, message = failure.message, "tried again");
                watch.step(invocation.step, |s| s.retried += 1);
            }
            Note::Failed { invocation, attempt, failure, tolerated } => {
                watch.failed(failed(self.now(), *invocation, *attempt, failure, false));
                tracing::info!(?run, ?invocation, attempt, message = failure.message, tolerated, "failed");
                watch.step(invocation.step, |s| s.failed += 1);
            }
            Note::StepDone { step } => watch.step(*step, |s| s.complete = true),
        }
    }

    fn end_run(&mut self, run: RunId, result: Result<(), RunError>) {
        let now = self.now();
        self.drop_load(run);
        if let Some(state) = self.runs.get(&run) {
            state.watch.end(now);
            match state.shared.as_ref().map(|shared| shared.is_home()) {
                Some(false) => {
                    self.tell_home(run);
                    self.forgotten.push(run);
                }
                Some(true) => {
                    self.forget_shared(run);
                    self.deliver(run, result);
                }
                None => self.deliver(run, result),
            }
        }
    }
}

fn failed(at: Tick, invocation: InvocationId, attempt: u32, failure: &Failure, retried: bool) -> Failed {
    Failed { at, invocation, attempt, message: failure.message.clone(), retried }
}

/// What runs a step; `None` for a switch.
fn function_of(workflow: &Workflow, step: u32) -> Option<&FunctionSpec> {
    match workflow.graph.steps[step as usize].kind {
        StepKind::Call(function) => workflow.functions.get(function as usize),
        StepKind::Switch(_) => None,
    }
}
