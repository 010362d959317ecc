//! How a run fails: what runs is stopped or may finish, and nothing is left.

use super::plan::{Keep, NONE, Over};
use super::run::{Cx, Ending, Fate, Known, Phase, Run, flag};
use super::{Effect, RunError, StopReason};
use crate::graph::Source;
use alloc::vec::Vec;
use dflow_proto::InvocationId;

impl Run {
    /// The run fails: nothing starts any more, and what runs is stopped unless it may `finish`.
    pub(super) fn end(&mut self, error: RunError, finish: bool, cx: &mut Cx<'_>) {
        match &mut self.ending {
            Some(ending) if ending.finish && !finish => {
                ending.finish = false;
                self.tell_end(&error, finish, cx);
            }
            Some(_) => return,
            None => {
                self.tell_end(&error, finish, cx);
                self.ending = Some(Ending { error, finish, running: Vec::new() });
            }
        }
        let mut running = Vec::new();
        for s in 0..self.steps.len() as u32 {
            for item in 0..self.steps[s as usize].invocations.len() as u32 {
                let id = InvocationId { step: s, item };
                let here = self.is_here(s, item);
                let invocation = &mut self.steps[s as usize].invocations[item as usize];
                match invocation.phase {
                    // What others execute, they stop.
                    Phase::Ready | Phase::Running if !here => {}
                    Phase::Ready => {
                        invocation.phase = Phase::Waiting;
                        cx.pool.ready -= 1;
                    }
                    Phase::Backoff => {
                        invocation.phase = Phase::Waiting;
                        self.timer(id, None, cx);
                    }
                    Phase::Running if finish => running.push(id),
                    Phase::Running => self.stop(id, cx),
                    _ => {}
                }
            }
        }
        if let Some(ending) = &mut self.ending {
            ending.running = running;
        }
    }

    pub(super) fn stop(&mut self, id: InvocationId, cx: &mut Cx<'_>) {
        let run = self.id;
        let Some(invocation) = self.invocation(id) else { return };
        invocation.phase = Phase::Stopping;
        if !invocation.is(flag::TIMED_OUT) {
            let attempt = invocation.attempt;
            cx.effects.push(Effect::Stop { run, invocation: id, attempt, why: StopReason::RunOver });
        }
    }

    /// While a failed run lets its started invocations end: stops those that wait for what will never start.
    pub(super) fn stop_starved(&mut self, cx: &mut Cx<'_>) {
        let Some(ending) = &mut self.ending else { return };
        if !ending.finish {
            return;
        }
        let mut running = core::mem::take(&mut ending.running);
        loop {
            let before = running.len();
            running.retain(|&id| {
                let runs = self.invocation(id).is_some_and(|i| i.phase == Phase::Running);
                if runs && self.is_starved(id) {
                    self.stop(id, cx);
                    return false;
                }
                runs
            });
            if running.len() == before {
                break;
            }
        }
        if let Some(ending) = &mut self.ending {
            ending.running = running;
        }
    }

    pub(super) fn is_starved(&self, id: InvocationId) -> bool {
        self.graph.steps[id.step as usize].inputs.iter().any(|input| match input.source {
            Source::Item => match self.plan.steps[id.step as usize].over {
                Over::Many(p) | Over::Gather(p) => {
                    let sealed =
                        self.steps[id.step as usize].invocations[id.item as usize].is(flag::ITEM_SEALED);
                    !sealed && !self.is_running(self.plan.ports[p as usize].step, self.item_at(p, id.item).0)
                }
                Over::Nothing | Over::Json(_) => false,
            },
            _ => self.is_out_of_reach(&input.source),
        })
    }

    pub(super) fn is_running(&self, step: u32, item: u32) -> bool {
        self.steps[step as usize].invocations.get(item as usize).is_some_and(|i| i.phase == Phase::Running)
    }

    /// Whether a source is incomplete and some of it is not being produced.
    pub(super) fn is_out_of_reach(&self, source: &Source) -> bool {
        let Some(mut step) = source.step() else { return false };
        let Some(mut p) = self.plan.source_port(source) else { return false };
        while self.plan.steps[step as usize].function == NONE {
            if self.steps[step as usize].fate == Fate::Skipped {
                return false;
            }
            let Some(choice) = self.choice(step) else { return true };
            let (Some(next), Some(q)) = (choice.step(), self.plan.source_port(choice)) else { return false };
            (step, p) = (next, q);
        }
        let state = &self.steps[step as usize];
        if state.fate == Fate::Skipped || self.ports[p as usize].complete {
            return false;
        }
        let Keep::One(o) = self.plan.ports[p as usize].keep else { return !self.is_running(step, 0) };
        let ones = self.plan.steps[step as usize].ones as usize;
        let there = |item: u32| {
            let object = &state.objects[item as usize * ones + o as usize];
            let out = matches!(state.invocations[item as usize].phase, Phase::Failed | Phase::LeftOut);
            (out && state.each.is_some())
                || matches!(object.known, Known::Sealed | Known::Freed)
                || self.is_running(step, item)
        };
        !state.pinned || !(0..state.items).all(there)
    }

    /// Releases all that the run still has in the store.
    pub(super) fn release_all(&mut self, cx: &mut Cx<'_>) {
        for p in 0..self.ports.len() as u32 {
            self.ports[p as usize].holds = 0;
            self.ports[p as usize].item_holds = 0;
            if self.plan.ports[p as usize].keep != Keep::Alias {
                self.free(p, cx);
            }
        }
        debug_assert!(self.inputs.iter().all(|input| input.known == Known::Freed));
    }
}
