//! Foreach steps: how wide they are, which items count, and when too many have failed.

use super::plan::{Keep, NONE, Over, Role};
use super::run::{Ask, Cx, Fate, Invocation, Object, Phase, Run, flag};
use super::{Effect, Failure, Note, Word};
use crate::graph::{ErrorClass, Foreach, Tolerate};
use alloc::{format, string::String, string::ToString};
use dflow_proto::InvocationId;

impl Run {
    /// Asks the driver for the length of the JSON list once it is final.
    pub(super) fn measure(&mut self, step: u32, cx: &mut Cx<'_>) {
        let Over::Json(of) = self.plan.steps[step as usize].over else { return };
        let settled = of == NONE || self.steps[of as usize].resolved;
        let leads = self.leads(step);
        let state = &mut self.steps[step as usize];
        if settled && leads && state.fate == Fate::Runs && !state.measured && self.ending.is_none() {
            state.measured = true;
            cx.effects.push(Effect::MeasureList { run: self.id, step });
        }
    }

    /// The driver's answer.
    pub(super) fn list_length(&mut self, step: u32, result: Result<u32, String>, cx: &mut Cx<'_>) {
        let Some(state) = self.steps.get(step as usize) else { return };
        if !state.measured || state.pinned || state.fate != Fate::Runs {
            return;
        }
        match result {
            Ok(items) => {
                self.agenda.push(Ask::Pin(step));
                self.agenda.push(Ask::Grow(step, items));
            }
            Err(message) => {
                self.fail_step(step, None, ErrorClass::Error("NotAList".to_string()), message, cx)
            }
        }
    }

    /// The foreach step has at least `items` items.
    pub(super) fn grow(&mut self, step: u32, items: u32, cx: &mut Cx<'_>) {
        let plan = self.plan.clone();
        let own = &plan.steps[step as usize];
        let state = &mut self.steps[step as usize];
        if items <= state.items || state.fate == Fate::Skipped || state.pinned {
            return;
        }
        if items > own.items_max {
            let message = format!(
                "its list has {items} items or more, at most {} are allowed: raise max_items",
                own.items_max
            );
            if let Some(each) = &mut state.each {
                each.overflow = true;
            }
            let class = ErrorClass::Error("TooManyItems".to_string());
            return self.fail_on_data(step, None, Failure { class, message }, cx);
        }
        let from = core::mem::replace(&mut state.items, items);
        if state.invocations.len() < items as usize {
            state.invocations.resize_with(items as usize, || Invocation::NEW);
            state.objects.resize(items as usize * own.ones as usize, Object::default());
        }
        for item in from..items {
            self.inherit_item(step, item);
            self.agenda.push(Ask::Ready(step, item));
        }
        self.note(Note::Expanded { step, items, pinned: false }, cx);
        self.tell_as_lead(step, &Word::Width { step, items, pinned: false }, cx);
        self.tell_width(step, Some(items), cx);
    }

    /// What is already known of a new instance's item.
    pub(super) fn inherit_item(&mut self, step: u32, item: u32) {
        use super::run::Known;
        let over = self.plan.steps[step as usize].over;
        let mut flags = match over {
            Over::Json(_) => flag::ITEM | flag::ITEM_SEALED,
            _ => 0,
        };
        if let Over::Many(p) | Over::Gather(p) = over {
            let plan = &self.plan.ports[p as usize];
            let of = &self.steps[plan.step as usize];
            let object = match plan.keep {
                Keep::List(l) => of.lists[l as usize].items.get(item as usize),
                Keep::One(o) => of
                    .objects
                    .get(item as usize * self.plan.steps[plan.step as usize].ones as usize + o as usize),
                _ => None,
            };
            match object.map(|o| o.known) {
                None | Some(Known::Nothing) => {}
                Some(Known::Exists) => flags |= flag::ITEM,
                Some(_) => flags |= flag::ITEM | flag::ITEM_SEALED,
            }
        }
        let instance = &mut self.steps[step as usize].invocations[item as usize];
        instance.flags &= !(flag::ITEM | flag::ITEM_SEALED | flag::ITEM_DROPPED);
        instance.flags |= flags;
    }

    /// Readers of the step's ports learn of its width, or (`None`) that it is pinned.
    pub(super) fn tell_width(&mut self, step: u32, items: Option<u32>, cx: &mut Cx<'_>) {
        let plan = self.plan.clone();
        for p in plan.ports_of(step) {
            self.agenda.push(Ask::Port(p));
            for reader in plan.readers(p).iter().filter(|r| r.role == Role::Items) {
                self.agenda.push(match items {
                    Some(items) => Ask::Grow(reader.step, items),
                    None => Ask::Pin(reader.step),
                });
            }
            self.relink_whole(p, cx);
        }
    }

    /// No more items will come.
    pub(super) fn pin(&mut self, step: u32, cx: &mut Cx<'_>) {
        let state = &mut self.steps[step as usize];
        if state.pinned
            || state.fate == Fate::Skipped
            || state.each.as_ref().is_some_and(|each| each.overflow)
        {
            return;
        }
        state.pinned = true;
        let items = state.items;
        self.note(Note::Expanded { step, items, pinned: true }, cx);
        self.tell_as_lead(step, &Word::Width { step, items, pinned: true }, cx);
        self.tell_width(step, None, cx);
        self.closing.push(Ask::Settled(step));
        self.judge(step, cx);
    }

    /// The list was withdrawn: its instances vanish, to come again with a new one.
    pub(super) fn shrink(&mut self, step: u32, cx: &mut Cx<'_>) {
        let plan = self.plan.clone();
        self.tell_as_lead(step, &Word::Shrunk { step }, cx);
        for item in 0..self.steps[step as usize].items {
            let instance = &mut self.steps[step as usize].invocations[item as usize];
            instance.flags &= !(flag::ITEM | flag::ITEM_SEALED | flag::ITEM_DROPPED);
            if instance.phase == Phase::Backoff {
                instance.phase = Phase::Waiting;
                self.timer(InvocationId { step, item }, None, cx);
            }
            self.roll_back(step, item, cx);
        }
        let state = &mut self.steps[step as usize];
        state.items = 0;
        let seen = core::mem::replace(&mut state.pinned, false);
        if let Some(each) = &mut state.each {
            (each.failure, each.overflow) = (None, false);
        }
        for p in plan.ports_of(step) {
            self.agenda.push(Ask::Port(p));
            for reader in plan.readers(p).iter().filter(|r| r.role == Role::Items) {
                self.agenda.push(Ask::Shrink(reader.step));
            }
            if seen {
                // Its readers know a length that holds no more.
                self.take_back(p, NONE, cx);
            }
            self.relink_whole(p, cx);
        }
    }

    /// Whether more of the step has failed than it tolerates.
    pub(super) fn has_failed(&self, step: u32) -> bool {
        let state = &self.steps[step as usize];
        let (Some(each), Some(Foreach { tolerate, .. })) =
            (&state.each, &self.graph.steps[step as usize].foreach)
        else {
            return state.failed > 0;
        };
        each.overflow
            || match *tolerate {
                Tolerate::Count(most) => state.failed > most,
                Tolerate::Percent(share) => {
                    state.pinned && u64::from(state.failed) * 100 > u64::from(share) * u64::from(state.items)
                }
            }
    }

    /// Fails a foreach step if it has more failed items than it tolerates.
    pub(super) fn judge(&mut self, step: u32, cx: &mut Cx<'_>) {
        if !self.leads(step) || !self.has_failed(step) {
            return;
        }
        let each = self.steps[step as usize].each.as_ref();
        if let Some((item, attempt, failure)) = each.and_then(|each| each.failure.clone()) {
            let failed = (InvocationId { step, item }, attempt);
            self.fail_on_data(step, Some(failed), failure, cx);
        }
    }

    /// Whether the foreach item was left out of its list.
    pub(super) fn is_left_out(&self, step: u32, item: u32) -> bool {
        let Over::Gather(p) = self.plan.steps[step as usize].over else { return false };
        let of = &self.steps[self.plan.ports[p as usize].step as usize];
        item < of.items && matches!(of.invocations[item as usize].phase, Phase::Failed | Phase::LeftOut)
    }

    pub(super) fn check_left_out(&mut self, step: u32, item: u32, cx: &mut Cx<'_>) {
        let (out, here) = (self.is_left_out(step, item), self.is_here(step, item));
        let state = &mut self.steps[step as usize];
        let invocation = &mut state.invocations[item as usize];
        match invocation.phase {
            Phase::Ready if out && invocation.is(flag::INVITED) => self.roll_back(step, item, cx),
            Phase::Waiting | Phase::Ready | Phase::Backoff if out => {
                cx.pool.ready -= u32::from(here && invocation.phase == Phase::Ready);
                invocation.phase = Phase::LeftOut;
                state.ended += 1;
                state.left += 1;
                self.timer(InvocationId { step, item }, None, cx);
                self.tell_out(InvocationId { step, item }, true, false, cx);
                self.item_left(step, item, cx);
                self.closing.push(Ask::Settled(step));
            }
            Phase::Running | Phase::Ended if out => self.roll_back(step, item, cx),
            Phase::LeftOut if !out => {
                invocation.phase = Phase::Waiting;
                state.ended -= 1;
                state.left -= 1;
                self.tell_out(InvocationId { step, item }, false, false, cx);
                self.item_left(step, item, cx);
            }
            _ => {}
        }
    }

    pub(super) fn tell_out(&mut self, invocation: InvocationId, out: bool, failed: bool, cx: &mut Cx<'_>) {
        self.tell_as_lead(invocation.step, &Word::Out { invocation, out, failed }, cx);
    }

    /// Item `item` of port `p` exists or is sealed: tells the foreach instances made of it.
    pub(super) fn item_known(&mut self, p: u32, item: u32, sealed: bool, cx: &mut Cx<'_>) {
        let plan = self.plan.clone();
        for reader in plan.readers(p).iter().filter(|r| r.role == Role::Items) {
            if self.steps[reader.step as usize].items <= item && self.leads(reader.step) {
                self.grow(reader.step, item + 1, cx);
            }
            let Some(instance) = self.invocation(InvocationId { step: reader.step, item }) else { continue };
            instance.flags |= flag::ITEM | if sealed { flag::ITEM_SEALED } else { 0 };
            let running = instance.phase == Phase::Running;
            if running && sealed && matches!(plan.steps[reader.step as usize].over, Over::Many(_)) {
                self.relink_item(reader.step, item, cx);
            }
            self.agenda.push(Ask::Ready(reader.step, item));
        }
    }

    /// A foreach instance is done with its item, or (`undo`) is not after all.
    pub(super) fn drop_item(&mut self, step: u32, item: u32, undo: bool, cx: &mut Cx<'_>) {
        let (Over::Many(p) | Over::Gather(p)) = self.plan.steps[step as usize].over else { return };
        if !self.is_here(step, item) {
            return;
        }
        let Some(instance) = self.invocation(InvocationId { step, item }) else { return };
        if instance.is(flag::ITEM_DROPPED) != undo {
            return;
        }
        instance.flags ^= flag::ITEM_DROPPED;
        let (owner, element) = self.item_at(p, item);
        let object = self.object(p, owner, element);
        object.items_done = if undo { object.items_done.saturating_sub(1) } else { object.items_done + 1 };
        if !undo {
            self.free_object(p, owner, element, cx);
        }
    }

    /// (item of the producing invocation, index in its list) of a foreach item.
    pub(super) fn item_at(&self, p: u32, item: u32) -> (u32, u32) {
        if matches!(self.plan.ports[p as usize].keep, Keep::List(_)) { (0, item) } else { (item, 0) }
    }

    /// An item has been left out of the step's lists, or is in them again.
    pub(super) fn item_left(&mut self, step: u32, item: u32, cx: &mut Cx<'_>) {
        let plan = self.plan.clone();
        for p in plan.ports_of(step) {
            self.agenda.push(Ask::Port(p));
            self.relink_whole(p, cx);
            for reader in plan.readers(p).iter().filter(|r| r.role == Role::Items) {
                self.agenda.push(Ask::Ready(reader.step, item));
            }
        }
    }
}
