//! What an attempt takes with it when it dies.

use super::plan::{Keep, NONE, Role};
use super::run::{Ask, Cx, Known, Object, Phase, Run, flag};
use super::{Effect, StopReason, Word};
use alloc::vec::Vec;
use dflow_proto::InvocationId;

impl Run {
    /// Withdraws all that an invocation has put: the objects go, and with them all that was built on them.
    pub(super) fn withdraw(&mut self, step: u32, item: u32, cx: &mut Cx<'_>) {
        let plan = self.plan.clone();
        let invocation = InvocationId { step, item };
        let leads = self.leads(step);
        let mut fresh = self.share.is_some();
        if fresh
            && leads
            && let Some(state) = self.invocation(invocation)
        {
            let attempt = state.attempt;
            fresh = attempt > state.void;
            state.void = attempt;
            if fresh {
                self.tell_as_lead(step, &Word::Withdrawn { invocation, attempt }, cx);
            }
        }
        for p in plan.ports_of(step) {
            let mut seen = false;
            let mut withdrawn = Vec::new();
            match plan.ports[p as usize].keep {
                Keep::List(l) => {
                    let list = core::mem::take(&mut self.steps[step as usize].lists[l as usize]);
                    seen = list.pinned || list.items.iter().any(|o| o.known != Known::Nothing);
                    let sealed = list.items.iter().enumerate().filter(|(_, o)| o.known == Known::Sealed);
                    withdrawn.extend(sealed.map(|(element, _)| element as u32));
                    (self.ports[p as usize].exist, self.ports[p as usize].sealed) = (0, 0);
                }
                Keep::One(_) => {
                    let object = *self.object(p, item, 0);
                    seen = object.known != Known::Nothing;
                    if seen {
                        *self.object(p, item, 0) = Object::default();
                    }
                    if object.known == Known::Sealed {
                        withdrawn.push(0);
                    }
                    self.ports[p as usize].exist -= u32::from(seen);
                    self.ports[p as usize].sealed -= u32::from(seen && object.known != Known::Exists);
                }
                Keep::Alias | Keep::Unread | Keep::RunInput(_) => {}
            }
            if seen {
                self.agenda.push(Ask::Port(p));
                self.take_back(p, item, cx);
            } else {
                self.relink(p, Some(item), cx);
                if fresh {
                    self.take_back_elsewhere(p, item, cx);
                }
            }
            // After their readers have been told to stop.
            for element in withdrawn {
                cx.effects.push(Effect::Release(self.key(step, item, plan.ports[p as usize].port, element)));
            }
        }
    }

    /// What readers made of port `p` (of item `item` of its step) is void.
    pub(super) fn take_back(&mut self, p: u32, item: u32, cx: &mut Cx<'_>) {
        let plan = self.plan.clone();
        let list = matches!(plan.ports[p as usize].keep, Keep::List(_));
        for reader in plan.readers(p) {
            match reader.role {
                Role::Input(_) => self.poison_all(reader.step, cx),
                Role::Items if list && self.leads(reader.step) => self.shrink(reader.step, cx),
                Role::Items if list => {
                    for instance in &mut self.steps[reader.step as usize].invocations {
                        instance.flags &= !(flag::ITEM | flag::ITEM_SEALED | flag::ITEM_DROPPED);
                    }
                    self.agenda.push(Ask::ReadyAll(reader.step));
                }
                Role::Items => {
                    if let Some(instance) = self.invocation(InvocationId { step: reader.step, item }) {
                        instance.flags &= !(flag::ITEM | flag::ITEM_SEALED | flag::ITEM_DROPPED);
                        self.roll_back(reader.step, item, cx);
                    }
                }
                Role::Case(case) if self.steps[reader.step as usize].chosen == u32::from(case) => {
                    // As deep as switches are chained, which the graph's check bounds.
                    self.take_back(plan.port(reader.step, 0), 0, cx);
                }
                _ => {}
            }
        }
    }

    /// Nothing of port `p` is known here; where its readers are executed, something may have been.
    fn take_back_elsewhere(&mut self, p: u32, item: u32, cx: &mut Cx<'_>) {
        let plan = self.plan.clone();
        let one = !matches!(plan.ports[p as usize].keep, Keep::List(_));
        for reader in plan.readers(p) {
            let items = match reader.role {
                Role::Items if one => item..item + 1,
                Role::Items | Role::Input(_) => 0..self.steps[reader.step as usize].items,
                Role::Case(case) if self.steps[reader.step as usize].chosen == u32::from(case) => {
                    self.take_back_elsewhere(plan.port(reader.step, 0), 0, cx);
                    continue;
                }
                _ => continue,
            };
            for item in items {
                let begun = self
                    .invocation(InvocationId { step: reader.step, item })
                    .is_some_and(|i| matches!(i.phase, Phase::Running | Phase::Ended) || i.is(flag::INVITED));
                if begun && !self.is_here(reader.step, item) {
                    self.roll_back(reader.step, item, cx);
                }
            }
        }
    }

    /// Takes back every started invocation of the step.
    pub(super) fn poison_all(&mut self, step: u32, cx: &mut Cx<'_>) {
        for item in 0..self.steps[step as usize].items {
            self.roll_back(step, item, cx);
        }
    }

    /// Takes an invocation back to its start, since data it was started on is void.
    pub(super) fn roll_back(&mut self, step: u32, item: u32, cx: &mut Cx<'_>) {
        let id = InvocationId { step, item };
        let run = self.id;
        if !self.leads(step) {
            // Its lead hears of the same loss, and takes it back by its word; what waits here may have to wait on.
            return self.agenda.push(Ask::Ready(step, item));
        }
        let state = &mut self.steps[step as usize];
        let Some(invocation) = state.invocations.get_mut(item as usize) else { return };
        let before = invocation.phase;
        match before {
            Phase::Stopping => return,
            Phase::Ready | Phase::Running if invocation.is(flag::INVITED) => {
                // Its host answers that it has ended.
                invocation.phase = Phase::Stopping;
                self.agenda.push(Ask::Withdraw(step, item));
            }
            // A deterministic function may have left outputs of an attempt before.
            Phase::Waiting | Phase::Ready | Phase::Backoff if invocation.attempt > 0 => {
                self.agenda.push(Ask::Withdraw(step, item));
            }
            Phase::Waiting | Phase::Ready | Phase::Backoff => {}
            Phase::Running => {
                invocation.phase = Phase::Stopping;
                if !invocation.is(flag::TIMED_OUT) {
                    let attempt = invocation.attempt;
                    cx.effects.push(Effect::Stop { run, invocation: id, attempt, why: StopReason::Poisoned });
                }
                self.agenda.push(Ask::Withdraw(step, item));
            }
            Phase::Ended | Phase::Failed | Phase::LeftOut => {
                invocation.phase = Phase::Waiting;
                state.ended -= 1;
                state.failed -= u32::from(before == Phase::Failed);
                state.left -= u32::from(before != Phase::Ended);
                if before == Phase::Ended {
                    self.hold_again(step);
                    self.agenda.push(Ask::Withdraw(step, item));
                } else {
                    self.tell_out(id, false, false, cx);
                    self.item_left(step, item, cx);
                }
            }
        }
        self.agenda.push(Ask::Ready(step, item));
    }

    /// Takes up the holds again that an ended step had let go before it was settled.
    pub(super) fn hold_again(&mut self, step: u32) {
        let dropped = core::mem::replace(&mut self.steps[step as usize].dropped, NONE);
        if dropped != NONE {
            let graph = self.graph.clone();
            for input in graph.steps[step as usize].inputs.iter().filter(|i| i.source.step() == Some(dropped))
            {
                if let Some(p) = self.plan.source_port(&input.source)
                    && self.hosts(step)
                {
                    self.ports[p as usize].holds += 1;
                }
            }
        }
    }

    /// A retry of a deterministic function: what is sealed stays, and what was freed may be sealed again.
    pub(super) fn keep_outputs(&mut self, step: u32, item: u32, cx: &mut Cx<'_>) {
        let plan = self.plan.clone();
        let again = |object: &mut Object| {
            object.repeatable = matches!(object.known, Known::Sealed | Known::Freed);
        };
        for p in plan.ports_of(step) {
            match plan.ports[p as usize].keep {
                Keep::One(_) => again(self.object(p, item, 0)),
                Keep::List(l) => {
                    let list = &mut self.steps[step as usize].lists[l as usize];
                    list.items.iter_mut().for_each(again);
                }
                Keep::Alias | Keep::Unread | Keep::RunInput(_) => {}
            }
            self.relink(p, Some(item), cx);
        }
    }
}
