//! Attempts: when they may start, how they end, what comes after.

use super::plan::{Keep, Over};
use super::pool::Entry;
use super::run::{Ask, Cx, Fate, Known, Phase, RUN, Run, flag};
use super::{Effect, Failure, Note, Outcome, RunError, StopReason, Word};
use crate::graph::{ErrorClass, OnFailure, Retry, Source, StartPolicy, Tolerate};
use alloc::{format, string::ToString};
use dflow_proto::{InvocationId, Tick, limits::ATTEMPTS_MAX};

impl Run {
    /// Whether the invocation may start now.
    pub(super) fn may_start(&self, step: u32, item: u32) -> bool {
        let state = &self.steps[step as usize];
        let plan = &self.plan.steps[step as usize];
        if state.fate != Fate::Runs || state.after > 0 || item >= state.items || self.ending.is_some() {
            return false;
        }
        let instance = &state.invocations[item as usize];
        let foreach = plan.over != Over::Nothing;
        let policy = self.policy(step);
        if foreach && !instance.is(flag::ITEM) {
            let begun = match plan.over {
                Over::Gather(p) => {
                    let of = &self.steps[self.plan.ports[p as usize].step as usize];
                    of.invocations.get(item as usize).is_some_and(|i| i.phase == Phase::Running)
                }
                _ => false,
            };
            if !(policy == StartPolicy::Eager && begun) {
                return false;
            }
        }
        if !self.leads(step) && !self.may_start_for_lead(step, item) {
            return false;
        }
        // A null input is no input.
        let inputs = plan.inputs - state.nulls;
        match policy {
            StartPolicy::Eager => true,
            StartPolicy::FirstByte => inputs == 0 || state.exist > 0 || plan.item_inputs > 0,
            StartPolicy::First(k) => {
                let sealed = if instance.is(flag::ITEM_SEALED) { plan.item_inputs } else { 0 };
                state.complete + sealed >= k.min(inputs + plan.item_inputs)
            }
            StartPolicy::AllReady => !self.is_early(step, item),
        }
    }

    /// What a lead knows of its step and a host elsewhere must see for itself: all that the lead has followed is
    /// followed here, no required input's source is skipped (then the step soon is), and the JSON list that it
    /// iterates is here.
    fn may_start_for_lead(&self, step: u32, item: u32) -> bool {
        if self.behind.iter().any(|behind| behind.id == InvocationId { step, item }) {
            return false;
        }
        let own = &self.graph.steps[step as usize];
        let skipped =
            |source: &Source| source.step().is_some_and(|of| self.steps[of as usize].fate == Fate::Skipped);
        if own.inputs.iter().any(|input| !input.optional && skipped(&input.source)) {
            return false;
        }
        let over = own.foreach.as_ref().filter(|each| each.json).map(|each| &each.over);
        let port = over.filter(|over| over.step().is_some()).and_then(|over| self.plan.source_port(over));
        port.is_none_or(|p| self.ports[p as usize].complete)
    }

    /// Whether some input is not complete.
    pub(super) fn is_early(&self, step: u32, item: u32) -> bool {
        let foreach = self.plan.steps[step as usize].over != Over::Nothing;
        let item = || self.steps[step as usize].invocations[item as usize].is(flag::ITEM_SEALED);
        !self.shared_complete(step) || (foreach && !item())
    }

    /// Puts an invocation in line, takes it out again, or promotes it, as its inputs are now.
    pub(super) fn check_ready(&mut self, step: u32, item: u32, cx: &mut Cx<'_>) {
        if item >= self.steps[step as usize].invocations.len() as u32 {
            return;
        }
        let (leads, here) = (self.leads(step), self.is_here(step, item));
        if item < self.steps[step as usize].items && leads {
            self.check_left_out(step, item, cx);
        }
        // What starts here for another's lead starts by that lead's word.
        let asked = leads || self.steps[step as usize].invocations[item as usize].invited > 0;
        let ready = asked && self.may_start(step, item);
        let early = self.is_early(step, item);
        let (home, function) = (self.home, self.plan.steps[step as usize].function);
        let invocation = &mut self.steps[step as usize].invocations[item as usize];
        match invocation.phase {
            Phase::Waiting if ready => {
                if invocation.attempt >= ATTEMPTS_MAX {
                    let message = format!(
                        "it was started {ATTEMPTS_MAX} times, since what it reads failed again and again"
                    );
                    let class = ErrorClass::Error("TooManyAttempts".to_string());
                    return self.fail_for_good(InvocationId { step, item }, Failure { class, message }, cx);
                }
                invocation.phase = Phase::Ready;
                cx.pool.ready += u32::from(here);
                self.enqueue(step, item, early && here, cx);
            }
            Phase::Ready if leads && !ready && invocation.is(flag::INVITED) => self.roll_back(step, item, cx),
            Phase::Ready if !ready => {
                invocation.phase = Phase::Waiting;
                cx.pool.ready -= u32::from(here);
            }
            Phase::Ready if here && invocation.is(flag::EARLY) != early => {
                self.enqueue(step, item, early, cx)
            }
            Phase::Running if invocation.is(flag::EARLY) && !early => {
                invocation.flags &= !flag::EARLY;
                cx.pool.promote(home, function);
            }
            _ => {}
        }
    }

    pub(super) fn enqueue(&mut self, step: u32, item: u32, early: bool, cx: &mut Cx<'_>) {
        self.tickets = self.tickets.wrapping_add(1);
        let (leads, here) = (self.leads(step), self.is_here(step, item));
        let plan = &self.plan.steps[step as usize];
        let entry = Entry {
            rank: plan.rank,
            seq: self.seq,
            step,
            item,
            ticket: self.tickets,
            slot: self.slot,
            graph: self.home,
            function: plan.function,
            // What another node executes needs no token of this one.
            cpu_milli: if here { cx.pool.clamp(self.graph.steps[step as usize].cpu_milli) } else { 0 },
            early,
        };
        let state = &mut self.steps[step as usize];
        let invocation = &mut state.invocations[item as usize];
        invocation.ticket = entry.ticket;
        invocation.flags =
            if early { invocation.flags | flag::EARLY } else { invocation.flags & !flag::EARLY };
        if !here {
            // Asked for when all that is to be taken back has been, as what starts here is.
            return self.invitations.push(entry);
        }
        match &mut state.each {
            Some(each) if leads && state.running.len() >= plan.parallel_max as usize => each.gate.park(entry),
            _ => cx.pool.line.push(entry),
        }
    }

    /// Whether the entry still stands for its invocation.
    pub(super) fn is_current(&self, entry: &Entry) -> bool {
        self.seq == entry.seq
            && self.ending.is_none()
            && self.steps[entry.step as usize].invocations.get(entry.item as usize).is_some_and(
                |invocation| {
                    let waits = invocation.phase == Phase::Ready && !invocation.is(flag::INVITED);
                    waits && invocation.ticket == entry.ticket
                },
            )
    }

    /// Whether the step may have one more running; else the entry is parked until it may.
    pub(super) fn has_place(&mut self, entry: &Entry) -> bool {
        let most = self.plan.steps[entry.step as usize].parallel_max;
        if !self.leads(entry.step) {
            return true;
        }
        let state = &mut self.steps[entry.step as usize];
        match &mut state.each {
            Some(each) if state.running.len() >= most as usize => {
                each.gate.park(*entry);
                false
            }
            _ => true,
        }
    }

    /// Lets the next of the step's parked instances try.
    pub(super) fn unpark(&mut self, step: u32, cx: &mut Cx<'_>) {
        if let Some(each) = &mut self.steps[step as usize].each {
            each.gate.unpark(&mut cx.pool.line);
        }
    }

    /// Starts the invocation of an entry that is current and whose means are there.
    pub(super) fn start(&mut self, entry: &Entry, cx: &mut Cx<'_>) {
        let (step, item) = (entry.step, entry.item);
        let id = InvocationId { step, item };
        cx.pool.ready -= 1;
        cx.pool.take(entry.graph, entry.function, entry.cpu_milli, entry.early);
        let state = &mut self.steps[step as usize];
        let invocation = &mut state.invocations[item as usize];
        invocation.phase = Phase::Running;
        invocation.attempt += 1;
        invocation.invited = 0;
        invocation.flags = (invocation.flags | flag::TOKEN) & !flag::TIMED_OUT;
        invocation.place = state.running.len() as u32;
        let attempt = invocation.attempt;
        state.running.push(item);
        self.running += 1;
        let timeout_ms = self.graph.steps[step as usize].timeout_ms;
        if timeout_ms > 0 {
            self.timer(id, Some(cx.now.after_ms(timeout_ms)), cx);
        }
        cx.effects.push(Effect::Start { run: self.id, invocation: id, attempt, early: entry.early });
        self.tell_as_host(id, &Word::Started { invocation: id, attempt }, cx);
        self.begun(step, cx);
        self.tell_started(id, cx);
    }

    /// A running invocation sleeps, or is awake again.
    pub(super) fn blocked(&mut self, id: InvocationId, attempt: u32, blocked: bool, cx: &mut Cx<'_>) {
        let Some(invocation) = self.invocation(id) else { return };
        let alive =
            matches!(invocation.phase, Phase::Running | Phase::Stopping) && invocation.attempt == attempt;
        if !alive || invocation.is(flag::TOKEN) != blocked {
            return;
        }
        invocation.flags ^= flag::TOKEN;
        let cpu_milli = cx.pool.clamp(self.graph.steps[id.step as usize].cpu_milli);
        if blocked {
            cx.pool.blocked += 1;
            cx.pool.give(cpu_milli);
        } else {
            cx.pool.blocked -= 1;
            cx.pool.borrow(cpu_milli);
        }
    }

    /// An attempt is over.
    pub(super) fn ended(&mut self, id: InvocationId, attempt: u32, outcome: Outcome, cx: &mut Cx<'_>) {
        let Some(invocation) = self.invocation(id) else { return };
        let phase = invocation.phase;
        if invocation.attempt != attempt || !matches!(phase, Phase::Running | Phase::Stopping) {
            return;
        }
        let flags = invocation.flags;
        let cpu_milli = cx.pool.clamp(self.graph.steps[id.step as usize].cpu_milli);
        if flags & flag::TOKEN != 0 {
            cx.pool.give(cpu_milli);
        } else {
            cx.pool.blocked -= 1;
        }
        cx.pool.leave(self.home, self.plan.steps[id.step as usize].function, flags & flag::EARLY != 0);
        self.timer(id, None, cx);
        self.running -= 1;
        self.leave_running(id, cx);
        if phase == Phase::Stopping && self.leads(id.step) {
            if self.ending.is_some() {
                // Who is still allowed to end elsewhere must not wait for it.
                self.tell_as_lead(id.step, &Word::Withdrawn { invocation: id, attempt }, cx);
            }
            self.steps[id.step as usize].invocations[id.item as usize].phase = Phase::Waiting;
            self.closing.push(Ask::Settled(id.step));
            return self.agenda.push(Ask::Ready(id.step, id.item));
        }
        let failure = match outcome {
            _ if phase == Phase::Stopping => return self.ended_for_lead(id, Outcome::Stopped, cx),
            Outcome::Ok => match self.missing_output(id, cx) {
                None => return self.ended_well(id, cx),
                Some(failure) => failure,
            },
            Outcome::Failed(failure) => failure,
            Outcome::Stopped if flags & flag::TIMED_OUT != 0 => {
                let limit_ms = self.graph.steps[id.step as usize].timeout_ms;
                let message = format!(
                    "it exceeded its timeout of {limit_ms} ms: raise the step's timeout, or see where it waits"
                );
                Failure { class: ErrorClass::Timeout, message }
            }
            Outcome::Stopped => {
                Failure { class: ErrorClass::Crash, message: "it ended without a result".to_string() }
            }
        };
        if self.leads(id.step) {
            self.failed(id, failure, cx);
        } else {
            self.ended_for_lead(id, Outcome::Failed(failure), cx);
        }
    }

    /// An output that an attempt left unsealed though it claims success; lists are pinned here if need be.
    pub(super) fn missing_output(&mut self, id: InvocationId, cx: &mut Cx<'_>) -> Option<Failure> {
        let plan = self.plan.clone();
        for p in plan.ports_of(id.step) {
            let complete = match plan.ports[p as usize].keep {
                Keep::One(o) => {
                    let at = id.item as usize * plan.steps[id.step as usize].ones as usize + o as usize;
                    let known = self.steps[id.step as usize].objects[at].known;
                    !matches!(known, Known::Nothing | Known::Exists)
                }
                Keep::List(l) => {
                    let list = &self.steps[id.step as usize].lists[l as usize];
                    let items = list.items.len() as u32;
                    if !list.pinned {
                        self.pin_list(id, p, l, items, cx);
                    }
                    self.ports[p as usize].sealed == items
                }
                Keep::Alias | Keep::Unread | Keep::RunInput(_) => true,
            };
            if !complete {
                let port = &self.graph.steps[id.step as usize].outputs[plan.ports[p as usize].port as usize];
                let message = format!(
                    "it ended without having put all of its output {}: put and seal it before the end",
                    port.name
                );
                return Some(Failure { class: ErrorClass::Error("OutputMissing".to_string()), message });
            }
        }
        None
    }

    pub(super) fn ended_well(&mut self, id: InvocationId, cx: &mut Cx<'_>) {
        let plan = self.plan.clone();
        let state = &mut self.steps[id.step as usize];
        let attempt = state.invocations[id.item as usize].attempt;
        state.invocations[id.item as usize].phase = Phase::Ended;
        state.ended += 1;
        self.tell_as_host(id, &Word::Ended { invocation: id, attempt, outcome: Outcome::Ok }, cx);
        let state = &mut self.steps[id.step as usize];
        if state.unsettled > 0 {
            if state.each.is_none() {
                self.drop_early(id.step, cx);
            } else if self.may_drop_items(id.step) {
                self.drop_item(id.step, id.item, false, cx);
            }
        } else if state.each.is_some() {
            self.drop_item(id.step, id.item, false, cx);
        }
        if plan.steps[id.step as usize].lists > 0 {
            for p in plan.ports_of(id.step) {
                self.relink_whole(p, cx);
            }
        }
        self.closing.push(Ask::Settled(id.step));
    }

    pub(super) fn failed(&mut self, id: InvocationId, failure: Failure, cx: &mut Cx<'_>) {
        let graph = self.graph.clone();
        let step = &graph.steps[id.step as usize];
        let run = self.id.0;
        let over = self.ending.is_some();
        let Some(invocation) = self.invocation(id) else { return };
        invocation.failures = invocation.failures.saturating_add(1);
        let (failures, attempt) = (u32::from(invocation.failures), invocation.attempt);
        let again = failures <= step.retry.retries_max
            && attempt < ATTEMPTS_MAX
            && retries(&step.retry, &failure.class);
        if !again || over {
            return self.fail_for_good(id, failure, cx);
        }
        let wait_us = backoff_us(&step.retry, failures, (run, id, attempt));
        let at = Tick(cx.now.0.saturating_add(wait_us));
        invocation.phase = Phase::Backoff;
        self.timer(id, Some(at), cx);
        self.note(Note::Retrying { invocation: id, attempt, failure, at }, cx);
        let deterministic = step.function().is_some_and(|f| graph.functions[f as usize].deterministic);
        // On several nodes its outputs go all the same: mirrors know objects by the attempt that put them.
        if deterministic && !self.has_audience(id.step) && self.is_here(id.step, id.item) {
            self.keep_outputs(id.step, id.item, cx);
        } else {
            self.withdraw(id.step, id.item, cx);
        }
    }

    /// No further attempt: a tolerated item is left out, else the step fails.
    pub(super) fn fail_for_good(&mut self, id: InvocationId, failure: Failure, cx: &mut Cx<'_>) {
        let graph = self.graph.clone();
        let step = &graph.steps[id.step as usize];
        let state = &mut self.steps[id.step as usize];
        let invocation = &mut state.invocations[id.item as usize];
        let attempt = invocation.attempt;
        invocation.phase = Phase::Failed;
        state.ended += 1;
        state.failed += 1;
        state.left += 1;
        let tolerated = step.on_failure == OnFailure::Ignore
            || step.foreach.as_ref().is_some_and(|each| match each.tolerate {
                Tolerate::Count(most) => state.failed <= most,
                Tolerate::Percent(share) => {
                    !state.pinned
                        || u64::from(state.failed) * 100 <= u64::from(share) * u64::from(state.items)
                }
            });
        self.note(Note::Failed { invocation: id, attempt, failure: failure.clone(), tolerated }, cx);
        self.withdraw(id.step, id.item, cx);
        if self.ending.is_some() {
            return;
        }
        match &mut self.steps[id.step as usize].each {
            None => self.fail_on_data(id.step, Some((id, attempt)), failure, cx),
            Some(each) => {
                each.failure.get_or_insert((id.item, attempt, failure));
                self.tell_out(id, true, true, cx);
                self.closing.push(Ask::Settled(id.step));
                self.item_left(id.step, id.item, cx);
                self.judge(id.step, cx);
            }
        }
    }

    /// A timer of the run has come.
    pub(super) fn wake(&mut self, id: InvocationId, cx: &mut Cx<'_>) {
        if id == RUN {
            self.deadline = Tick(0);
            let unfinished = self.steps.iter().zip(&self.graph.steps).filter(|(state, _)| !state.resolved);
            let error = RunError::Deadline {
                deadline_ms: self.graph.policy.deadline_ms,
                unfinished: unfinished.take(10).map(|(_, step)| step.name.clone()).collect(),
            };
            return self.end(error, false, cx);
        }
        let run = self.id;
        let Some(invocation) = self.invocation(id) else { return };
        invocation.timer = Tick(0);
        let attempt = invocation.attempt;
        match invocation.phase {
            Phase::Backoff => {
                invocation.phase = Phase::Waiting;
                self.agenda.push(Ask::Ready(id.step, id.item));
            }
            Phase::Running => {
                invocation.flags |= flag::TIMED_OUT;
                cx.effects.push(Effect::Stop { run, invocation: id, attempt, why: StopReason::Timeout });
            }
            _ => {}
        }
    }
}

fn retries(retry: &Retry, class: &ErrorClass) -> bool {
    retry.on.iter().any(|on| *on == ErrorClass::All || on == class)
}

/// Microseconds to wait after failure number `failures` (from 1), varied by who waits.
fn backoff_us(retry: &Retry, failures: u32, who: (u64, InvocationId, u32)) -> u64 {
    let most_us =
        if retry.backoff_ms_max == 0 { u64::MAX } else { retry.backoff_ms_max.saturating_mul(1000) };
    let factor = if retry.factor_milli == 0 { 1000 } else { u64::from(retry.factor_milli) };
    let mut wait_us = retry.backoff_ms.saturating_mul(1000).min(most_us);
    for _ in 1..failures {
        wait_us = (wait_us.saturating_mul(factor) / 1000).min(most_us);
    }
    let (run, id, attempt) = who;
    let mut hash =
        run ^ (u64::from(id.step) << 32 | u64::from(id.item)).rotate_left(17) ^ u64::from(attempt) << 48;
    // splitmix64's finaliser: neighbours must not wait alike.
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^= hash >> 31;
    let jitter = u64::from(retry.jitter_milli.min(1000));
    let most = wait_us / 1000 * jitter;
    let off = if most == 0 { 0 } else { hash % (2 * most + 1) };
    wait_us.saturating_add(off).saturating_sub(most).min(most_us)
}
