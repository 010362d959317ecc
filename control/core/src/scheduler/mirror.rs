//! What a node makes of the words of others: mirrors of steps that it does not lead, and invocations that it
//! executes for another's lead or has executed elsewhere.
//!
//! ```text
//! lead of an item that another node executes     host of an item that another node leads
//!
//!   Waiting ──Invoke(n)──▶ Ready                    Waiting ──heard Invoke, inputs as its policy asks──▶ Ready
//!   Ready   ──heard Started(n)──▶ Running           Ready   ──started, Started(n)──▶ Running
//!   Ready, Running ──taken back, Withdrawn(n)──▶    invoked ──heard Withdrawn, Ended(n, stopped)──▶ Waiting
//!       Stopping                                    Running ──heard Withdrawn──▶ Stopping ──gone, Ended──▶ Waiting
//!   any of these ──heard Ended(n)──▶ as on one      Running ──over, Ended(n)──▶ Ended, or Waiting if it failed
//!       node                                        Ended   ──heard Withdrawn──▶ Waiting
//! ```
//!
//! Every `Invoke(n)` is answered by exactly one `Ended(n)`, so the lead knows when an attempt is gone.

use super::plan::{Keep, NONE, Role};
use super::pool::Entry;
use super::run::{Ask, Behind, Cx, Fate, Invocation, Object, Phase, Run, flag};
use super::{Effect, Failure, Outcome, StopReason, Word};
use crate::graph::ErrorClass;
use crate::placement::NodeIndex;
use alloc::{string::ToString, vec::Vec};
use dflow_proto::InvocationId;

impl Run {
    /// Another node has said something. What it has no right to say, or what can no longer be, is not heard.
    pub(super) fn heard(&mut self, from: NodeIndex, word: Word, cx: &mut Cx<'_>) {
        if self.share.is_none() {
            return;
        }
        match word {
            Word::Runs { step, chosen } if self.is_lead(from, step) => self.hear_runs(step, chosen, cx),
            Word::Skipped { step } if self.is_lead(from, step) => self.skip(step, cx),
            Word::Width { step, items, pinned } if self.is_lead(from, step) => {
                self.grow(step, items, cx);
                if pinned {
                    self.pin(step, cx);
                }
            }
            word if word.takes_back().is_some_and(|step| self.is_lead(from, step)) => {
                self.hear_taken_back(word, cx);
            }
            Word::Settled { step } if self.is_lead(from, step) => {
                self.steps[step as usize].told = true;
                self.closing.push(Ask::Settled(step));
            }
            Word::Invoke { invocation, attempt, after } if self.is_lead(from, invocation.step) => {
                self.hear_invoke(invocation, attempt, &after, cx);
            }
            Word::Started { invocation, attempt } if self.is_host(from, invocation) => {
                self.hear_started(invocation, attempt, cx);
            }
            Word::FirstByte(put) if self.is_host(from, put.key.invocation) => self.put(put, false, cx),
            Word::Sealed(put) if self.is_host(from, put.key.invocation) => self.put(put, true, cx),
            Word::Pinned { invocation, attempt, port, count } if self.is_host(from, invocation) => {
                self.pinned(invocation, attempt, port, count, cx);
            }
            Word::Ended { invocation, attempt, outcome } if self.is_host(from, invocation) => {
                self.hear_ended(invocation, attempt, outcome, cx);
            }
            word => self.heard_of_run(from, word, cx),
        }
    }

    fn is_lead(&self, from: NodeIndex, step: u32) -> bool {
        let place = |s: &super::part::Share| s.part.placement.of(step).lead() == from;
        (step as usize) < self.steps.len() && !self.leads(step) && self.share.as_deref().is_some_and(place)
    }

    fn is_host(&self, from: NodeIndex, id: InvocationId) -> bool {
        let place = |s: &super::part::Share| s.part.placement.of(id.step).host(id.item) == from;
        (id.step as usize) < self.steps.len()
            && id.item < self.plan.steps[id.step as usize].items_max
            && !self.is_here(id.step, id.item)
            && self.share.as_deref().is_some_and(place)
    }

    fn hear_taken_back(&mut self, word: Word, cx: &mut Cx<'_>) {
        self.count_taken_back(&word);
        match word {
            Word::Shrunk { step } => self.shrink(step, cx),
            Word::Withdrawn { invocation, attempt } => self.hear_withdrawn(invocation, attempt, cx),
            Word::Out { invocation, out, failed } => self.hear_out(invocation, out, failed, cx),
            _ => {}
        }
        // What was asked for by one who had followed it may start now.
        let steps = &self.steps;
        let agenda = &mut self.agenda;
        self.behind.retain(|behind| {
            let waits = steps[behind.step as usize].taken_back < behind.taken_back;
            if !waits {
                agenda.push(Ask::Ready(behind.id.step, behind.id.item));
            }
            waits
        });
    }

    pub(super) fn count_taken_back(&mut self, word: &Word) {
        if let Some(step) = word.takes_back() {
            self.steps[step as usize].taken_back += 1;
        }
    }

    /// Takes up those steps of others of which no word is needed to know that they run.
    pub(super) fn mirror_sure(&mut self, cx: &mut Cx<'_>) {
        for step in 0..self.plan.steps.len() as u32 {
            if self.plan.steps[step as usize].sure && self.is_told_of(step) {
                self.hear_runs(step, NONE, cx);
            }
        }
    }

    fn hear_runs(&mut self, step: u32, chosen: u32, cx: &mut Cx<'_>) {
        if self.steps[step as usize].fate != Fate::Unknown {
            return;
        }
        if self.plan.steps[step as usize].function == NONE {
            self.steps[step as usize].chosen = chosen;
            for p in self.plan.ports_of(step) {
                self.closing.push(Ask::Free(p));
            }
        }
        self.drop_decision_holds(step);
        self.runs(step, cx);
    }

    /// Makes room for an invocation whose step's width may not be known here yet.
    fn make_room(&mut self, id: InvocationId) {
        let ones = self.plan.steps[id.step as usize].ones as usize;
        let state = &mut self.steps[id.step as usize];
        if state.each.is_some() && state.invocations.len() <= id.item as usize {
            state.invocations.resize_with(id.item as usize + 1, || Invocation::NEW);
            state.objects.resize((id.item as usize + 1) * ones, Object::default());
        }
    }

    /// This node is to execute an attempt.
    fn hear_invoke(&mut self, id: InvocationId, attempt: u32, after: &[(u32, u32)], cx: &mut Cx<'_>) {
        if !self.is_here(id.step, id.item) || id.item >= self.plan.steps[id.step as usize].items_max {
            return;
        }
        self.grow(id.step, id.item + 1, cx);
        let Some(invocation) = self.invocation(id) else { return };
        if attempt > invocation.void && invocation.phase == Phase::Waiting {
            // It starts when its policy holds by what has arrived here, too.
            (invocation.attempt, invocation.invited) = (attempt - 1, attempt);
            let behind = |&&(step, taken_back): &&(u32, u32)| {
                self.steps.get(step as usize).is_some_and(|of| of.taken_back < taken_back)
            };
            let after = after.iter().filter(behind);
            self.behind.extend(after.map(|&(step, taken_back)| Behind { id, step, taken_back }));
            self.agenda.push(Ask::Ready(id.step, id.item));
        }
    }

    /// Asks the host of an invocation to execute its next attempt, or parks it until its step has a place.
    pub(super) fn invite(&mut self, entry: Entry, cx: &mut Cx<'_>) {
        if !self.has_place(&entry) {
            return;
        }
        let id = InvocationId { step: entry.step, item: entry.item };
        let state = &mut self.steps[id.step as usize];
        let invocation = &mut state.invocations[id.item as usize];
        invocation.attempt += 1;
        invocation.flags |= flag::INVITED;
        invocation.place = state.running.len() as u32;
        state.running.push(id.item);
        let attempt = invocation.attempt;
        let after = self.followed(id.step);
        self.tell_host(id, Word::Invoke { invocation: id, attempt, after }, cx);
    }

    /// How much of what the step reads this node has heard others take back. What it leads itself it tells in order.
    fn followed(&self, step: u32) -> Vec<(u32, u32)> {
        let states = self.steps.iter().enumerate().map(|(of, state)| (of as u32, state.taken_back));
        let taken_back = states.filter(|&(_, taken_back)| taken_back > 0);
        taken_back.filter(|&(of, _)| !self.leads(of) && self.is_read_by(of, step)).collect()
    }

    /// Whether `reader` depends on `step`, if only through a switch.
    fn is_read_by(&self, step: u32, reader: u32) -> bool {
        self.plan.dependents(step).iter().any(|dependent| {
            // As deep as switches are chained, which the graph's check bounds.
            let switch = self.plan.steps[dependent.step as usize].function == NONE;
            dependent.step == reader || (switch && self.is_read_by(dependent.step, reader))
        })
    }

    /// An attempt has started elsewhere.
    fn hear_started(&mut self, id: InvocationId, attempt: u32, cx: &mut Cx<'_>) {
        if self.steps[id.step as usize].fate == Fate::Skipped {
            // The lead has taken it back already.
            return;
        }
        self.make_room(id);
        let leads = self.leads(id.step);
        let Some(invocation) = self.invocation(id) else { return };
        if attempt <= invocation.void || attempt < invocation.attempt {
            return;
        }
        if leads {
            if invocation.phase != Phase::Ready || invocation.attempt != attempt {
                return;
            }
        } else {
            if invocation.phase != Phase::Waiting {
                // The lead's word that the attempt before is void is still on its way.
                self.undo(id, cx);
            }
            if id.item >= self.steps[id.step as usize].items {
                self.grow(id.step, id.item + 1, cx);
            }
            let state = &mut self.steps[id.step as usize];
            let invocation = &mut state.invocations[id.item as usize];
            invocation.attempt = attempt;
            invocation.place = state.running.len() as u32;
            state.running.push(id.item);
        }
        if let Some(invocation) = self.invocation(id) {
            invocation.phase = Phase::Running;
        }
        self.begun(id.step, cx);
        self.tell_started(id, cx);
    }

    /// An attempt elsewhere is over.
    fn hear_ended(&mut self, id: InvocationId, attempt: u32, outcome: Outcome, cx: &mut Cx<'_>) {
        let leads = self.leads(id.step);
        let Some(invocation) = self.invocation(id) else { return };
        let phase = invocation.phase;
        let active = match phase {
            Phase::Running | Phase::Stopping => true,
            Phase::Ready => invocation.is(flag::INVITED),
            _ => false,
        };
        if invocation.attempt != attempt || !active {
            return;
        }
        if !leads {
            if outcome == Outcome::Ok {
                self.leave_running(id, cx);
                self.ended_well(id, cx);
            }
            return;
        }
        self.leave_running(id, cx);
        if phase == Phase::Stopping {
            self.steps[id.step as usize].invocations[id.item as usize].phase = Phase::Waiting;
            self.closing.push(Ask::Settled(id.step));
            return self.agenda.push(Ask::Ready(id.step, id.item));
        }
        match outcome {
            Outcome::Ok => self.ended_well(id, cx),
            Outcome::Failed(failure) => self.failed(id, failure, cx),
            Outcome::Stopped => {
                let message = "its node stopped it without being asked".to_string();
                self.failed(id, Failure { class: ErrorClass::Crash, message }, cx);
            }
        }
    }

    /// Takes an invocation off its step's running list.
    pub(super) fn leave_running(&mut self, id: InvocationId, cx: &mut Cx<'_>) {
        let state = &mut self.steps[id.step as usize];
        let invocation = &mut state.invocations[id.item as usize];
        invocation.flags &= !flag::INVITED;
        let place = invocation.place;
        state.running.swap_remove(place as usize);
        if let Some(&moved) = state.running.get(place as usize) {
            state.invocations[moved as usize].place = place;
        }
        let emptied = state.running.is_empty();
        self.unpark(id.step, cx);
        if emptied && self.steps[id.step as usize].fate == Fate::Skipped {
            self.closing.push(Ask::Resolved(id.step));
        }
    }

    /// The lead has made all attempts up to `attempt` void.
    fn hear_withdrawn(&mut self, id: InvocationId, attempt: u32, cx: &mut Cx<'_>) {
        if id.item >= self.plan.steps[id.step as usize].items_max {
            return;
        }
        self.make_room(id);
        let here = self.is_here(id.step, id.item);
        let run = self.id;
        let Some(invocation) = self.invocation(id) else { return };
        invocation.void = invocation.void.max(attempt);
        let invited = invocation.invited;
        if invocation.attempt.max(invited) > attempt {
            return;
        }
        match invocation.phase {
            _ if invited > 0 => {
                cx.pool.ready -= u32::from(invocation.phase == Phase::Ready);
                (invocation.phase, invocation.attempt, invocation.invited) = (Phase::Waiting, invited, 0);
                let ended = Word::Ended { invocation: id, attempt: invited, outcome: Outcome::Stopped };
                self.tell_lead(id.step, ended, cx);
            }
            Phase::Running if here => {
                invocation.phase = Phase::Stopping;
                if !invocation.is(flag::TIMED_OUT) {
                    let attempt = invocation.attempt;
                    cx.effects.push(Effect::Stop { run, invocation: id, attempt, why: StopReason::Poisoned });
                }
                self.agenda.push(Ask::Withdraw(id.step, id.item));
            }
            _ => self.undo(id, cx),
        }
    }

    /// A skipped step has nothing, also before its lead's word about each invocation has come.
    pub(super) fn forget_mirrored(&mut self, id: InvocationId, cx: &mut Cx<'_>) {
        if !self.leads(id.step)
            && let Some(invocation) = self.invocation(id)
        {
            let last = invocation.attempt.max(invocation.invited);
            self.hear_withdrawn(id, last, cx);
        }
    }

    /// A mirror forgets an attempt and what it put.
    pub(super) fn undo(&mut self, id: InvocationId, cx: &mut Cx<'_>) {
        let state = &mut self.steps[id.step as usize];
        let Some(invocation) = state.invocations.get_mut(id.item as usize) else { return };
        match invocation.phase {
            Phase::Running => {
                invocation.phase = Phase::Waiting;
                self.leave_running(id, cx);
            }
            Phase::Ended => {
                invocation.phase = Phase::Waiting;
                state.ended -= 1;
                self.hold_again(id.step);
            }
            Phase::Stopping => return,
            _ => {}
        }
        self.withdraw(id.step, id.item, cx);
    }

    /// An item is left out of its step's lists, or is in them again.
    fn hear_out(&mut self, id: InvocationId, out: bool, failed: bool, cx: &mut Cx<'_>) {
        if id.item >= self.plan.steps[id.step as usize].items_max {
            return;
        }
        self.make_room(id);
        let state = &mut self.steps[id.step as usize];
        let Some(invocation) = state.invocations.get_mut(id.item as usize) else { return };
        let was_out = matches!(invocation.phase, Phase::Failed | Phase::LeftOut);
        if was_out == out {
            return;
        }
        if out {
            invocation.phase = if failed { Phase::Failed } else { Phase::LeftOut };
            state.ended += 1;
            state.left += 1;
        } else {
            invocation.phase = Phase::Waiting;
            state.ended -= 1;
            state.left -= 1;
        }
        self.closing.push(Ask::Settled(id.step));
        self.item_left(id.step, id.item, cx);
        if !out {
            // A list without it may have been taken for complete.
            for p in self.plan.ports_of(id.step) {
                if self.ports[p as usize].begun {
                    self.take_back(p, NONE, cx);
                }
            }
        }
    }

    /// An attempt that this node executes for another's lead is over.
    pub(super) fn ended_for_lead(&mut self, id: InvocationId, outcome: Outcome, cx: &mut Cx<'_>) {
        let state = &mut self.steps[id.step as usize];
        let invocation = &mut state.invocations[id.item as usize];
        let attempt = invocation.attempt;
        let stopping = invocation.phase == Phase::Stopping;
        if outcome == Outcome::Ok && !stopping {
            return self.ended_well(id, cx);
        }
        invocation.phase = Phase::Waiting;
        let outcome = if stopping { Outcome::Stopped } else { outcome };
        self.closing.push(Ask::Settled(id.step));
        self.tell_lead(id.step, Word::Ended { invocation: id, attempt, outcome }, cx);
    }

    /// The lead has settled the step, and all that its hosts said of it has arrived.
    pub(super) fn check_mirror_settled(&mut self, step: u32, cx: &mut Cx<'_>) {
        let state = &self.steps[step as usize];
        if !state.told || state.resolved || state.fate != Fate::Runs {
            return;
        }
        let over = if self.plan.steps[step as usize].function == NONE {
            let of = self.choice(step).and_then(crate::graph::Source::step);
            of.is_none_or(|of| self.steps[of as usize].resolved)
        } else {
            state.ended == state.items && state.running.is_empty()
        };
        if over {
            self.settle(step, cx);
        }
    }

    /// Tells the readers here that an attempt has started.
    pub(super) fn tell_started(&mut self, id: InvocationId, cx: &mut Cx<'_>) {
        let plan = self.plan.clone();
        for p in plan.ports_of(id.step) {
            for reader in plan.readers(p).iter().filter(|r| r.role == Role::Items) {
                self.agenda.push(Ask::Ready(reader.step, id.item));
            }
            self.relink(p, Some(id.item), cx);
        }
    }

    /// All nodes that were to fetch an object have it.
    pub(super) fn delivered(&mut self, key: dflow_proto::ObjectKey, cx: &mut Cx<'_>) {
        let InvocationId { step, item } = key.invocation;
        let p = if step == dflow_proto::ObjectKey::INPUT_STEP {
            self.plan.run_inputs().nth(key.port.into())
        } else {
            let known = (step as usize) < self.steps.len() && item < self.steps[step as usize].items;
            let p = known.then(|| self.plan.port(step, key.port));
            p.filter(|p| self.plan.ports_of(step).contains(p))
        };
        let Some(p) = p else { return };
        let there = match self.plan.ports[p as usize].keep {
            Keep::List(l) => (key.item as usize) < self.steps[step as usize].lists[l as usize].items.len(),
            Keep::One(_) | Keep::RunInput(_) => true,
            Keep::Alias | Keep::Unread => false,
        };
        if there {
            self.object(p, item, key.item).away = false;
            self.free_object(p, item, key.item, cx);
        }
    }
}
