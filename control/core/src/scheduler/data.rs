//! What exists: objects, lists, and who still holds them.

use super::plan::{Keep, NONE, Over, Role};
use super::run::{Ask, Cx, Fate, Known, Object, Phase, Run, flag};
use super::{Effect, Put, StopReason};
use crate::graph::{ErrorClass, Source};
use alloc::{format, string::ToString, vec::Vec};
use dflow_proto::InvocationId;

impl Run {
    /// An attempt announces or seals an object.
    pub(super) fn put(&mut self, put: Put, sealed: bool, cx: &mut Cx<'_>) {
        let id = put.key.invocation;
        let Some(invocation) = self.invocation(id) else { return };
        if invocation.attempt != put.attempt {
            return;
        }
        let phase = invocation.phase;
        if phase == Phase::Stopping && sealed {
            // The attempt counts no more, but the store has the object.
            cx.effects.push(Effect::Release(put.key));
        }
        if phase != Phase::Running
            || !self.plan.ports_of(id.step).contains(&self.plan.port(id.step, put.key.port))
        {
            return;
        }
        let p = self.plan.port(id.step, put.key.port);
        let (keep, items_max) = (self.plan.ports[p as usize].keep, self.plan.ports[p as usize].items_max);
        let element = put.key.item;
        match keep {
            Keep::Unread if sealed => cx.effects.push(Effect::Release(put.key)),
            Keep::One(_) if element != 0 => {}
            Keep::List(_) if element >= items_max => {
                if sealed {
                    cx.effects.push(Effect::Release(put.key));
                }
                self.too_many(id, put.key.port, element.saturating_add(1), items_max, cx);
            }
            Keep::One(_) | Keep::List(_) => self.put_object(p, id, element, sealed, cx),
            Keep::Unread | Keep::Alias | Keep::RunInput(_) => {}
        }
    }

    fn too_many(&mut self, id: InvocationId, port: u16, have: u32, max: u32, cx: &mut Cx<'_>) {
        let name = &self.graph.steps[id.step as usize].outputs[port as usize].name;
        let message =
            format!("output {name} has {have} items, at most {max} are allowed: raise its max_items");
        self.fail_step(id.step, Some(id), ErrorClass::Error("TooManyItems".to_string()), message, cx);
    }

    /// The object in state, lists growing as needed.
    fn object(&mut self, p: u32, item: u32, element: u32) -> &mut Object {
        let plan = &self.plan.ports[p as usize];
        if let Keep::RunInput(i) = plan.keep {
            return &mut self.inputs[i as usize];
        }
        let step = &mut self.steps[plan.step as usize];
        match plan.keep {
            Keep::List(l) => {
                let items = &mut step.lists[l as usize].items;
                if items.len() <= element as usize {
                    items.resize(element as usize + 1, Object::default());
                }
                &mut items[element as usize]
            }
            Keep::One(o) => {
                let ones = self.plan.steps[plan.step as usize].ones as usize;
                &mut step.objects[item as usize * ones + o as usize]
            }
            Keep::RunInput(_) | Keep::Alias | Keep::Unread => unreachable!("kept elsewhere"),
        }
    }

    fn put_object(&mut self, p: u32, id: InvocationId, element: u32, sealed: bool, cx: &mut Cx<'_>) {
        let object = self.object(p, id.item, element);
        let before = object.known;
        match (before, sealed) {
            (Known::Nothing, false) => object.known = Known::Exists,
            (Known::Nothing | Known::Exists, true) => object.known = Known::Sealed,
            (Known::Sealed | Known::Freed, true) => {
                // The same object again, from a new attempt: kept once, and freed again if it was.
                if core::mem::take(&mut object.repeatable) && before == Known::Freed {
                    let key = self.key(id.step, id.item, self.plan.ports[p as usize].port, element);
                    cx.effects.push(Effect::Release(key));
                }
                return;
            }
            _ => return,
        }
        let port = &mut self.ports[p as usize];
        port.exist += u32::from(before == Known::Nothing);
        port.sealed += u32::from(sealed);
        if sealed {
            self.free_object(p, id.item, element, cx);
        }
        let (begun, list) =
            (self.ports[p as usize].begun, matches!(self.plan.ports[p as usize].keep, Keep::List(_)));
        if sealed || !begun {
            self.check_port(p);
        }
        if self.plan.ports[p as usize].item_holds > 0 {
            let item = if list { element } else { id.item };
            self.item_known(p, item, sealed, cx);
        }
        // A reader of a whole list follows the producer's own index.
        if sealed && !list {
            self.relink(p, Some(id.item), cx);
        }
    }

    /// Item `item` of port `p` exists or is sealed: tells the foreach instances made of it.
    fn item_known(&mut self, p: u32, item: u32, sealed: bool, cx: &mut Cx<'_>) {
        let plan = self.plan.clone();
        for reader in plan.readers(p).iter().filter(|r| r.role == Role::Items) {
            if self.steps[reader.step as usize].items <= item {
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

    /// The producer tells the length of a `many` port.
    pub(super) fn pinned(&mut self, id: InvocationId, attempt: u32, port: u16, count: u32, cx: &mut Cx<'_>) {
        let running = |i: &mut super::run::Invocation| i.attempt == attempt && i.phase == Phase::Running;
        if !self.invocation(id).is_some_and(running) {
            return;
        }
        let p = self.plan.port(id.step, port);
        if !self.plan.ports_of(id.step).contains(&p) {
            return;
        }
        if let Keep::List(l) = self.plan.ports[p as usize].keep {
            self.pin_list(id, p, l, count, cx);
        }
    }

    pub(super) fn pin_list(&mut self, id: InvocationId, p: u32, l: u16, count: u32, cx: &mut Cx<'_>) {
        let list = &mut self.steps[id.step as usize].lists[l as usize];
        let (have, before) = (list.items.len() as u32, list.count);
        let items_max = self.plan.ports[p as usize].items_max;
        let port = self.plan.ports[p as usize].port;
        if count > items_max {
            return self.too_many(id, port, count, items_max, cx);
        }
        if before.is_some_and(|b| b != count) || have > count {
            let name = &self.graph.steps[id.step as usize].outputs[port as usize].name;
            let message = format!(
                "output {name} has {count} items now and had {} before: the function is declared deterministic \
                 and is not, or puts items after it said how many there are",
                before.unwrap_or(have)
            );
            return self.fail_step(
                id.step,
                Some(id),
                ErrorClass::Error("ItemsChanged".to_string()),
                message,
                cx,
            );
        }
        if list.pinned {
            return;
        }
        list.pinned = true;
        list.count = Some(count);
        list.items.resize(count as usize, Object::default());
        self.check_port(p);
        let plan = self.plan.clone();
        for reader in plan.readers(p).iter().filter(|r| r.role == Role::Items) {
            self.agenda.push(Ask::Pin(reader.step));
            self.agenda.push(Ask::Grow(reader.step, count));
        }
    }

    /// Recomputes whether a port has begun and is complete, and tells its readers.
    pub(super) fn check_port(&mut self, p: u32) {
        let plan = self.plan.clone();
        let port = &plan.ports[p as usize];
        let state = &self.steps[port.step as usize];
        let now = &self.ports[p as usize];
        let (begun, complete) = match port.keep {
            // Until the step is certain to run, nothing says that its list exists, even if it would be empty.
            _ if state.fate != Fate::Runs => (false, false),
            Keep::Alias => match self.choice(port.step).and_then(|source| plan.source_port(source)) {
                Some(q) if !matches!(plan.ports[q as usize].keep, Keep::RunInput(_)) => {
                    (self.ports[q as usize].begun, self.ports[q as usize].complete)
                }
                _ => (true, true),
            },
            Keep::List(l) => {
                let list = &state.lists[l as usize];
                (list.pinned || now.exist > 0, list.pinned && now.sealed as usize == list.items.len())
            }
            Keep::One(_) if state.each.is_some() => {
                let complete = state.pinned && now.sealed == state.items - state.left;
                (complete || now.exist > 0, complete)
            }
            Keep::One(_) => (now.exist > 0, now.sealed > 0),
            Keep::Unread | Keep::RunInput(_) => return,
        };
        let now = &mut self.ports[p as usize];
        let change = |old: bool, new: bool| i32::from(new) - i32::from(old);
        let (more, done) = (change(now.begun, begun), change(now.complete, complete));
        (now.begun, now.complete) = (begun, complete);
        if more == 0 && done == 0 {
            return;
        }
        for reader in plan.readers(p) {
            match reader.role {
                Role::Input(_) => {
                    let state = &mut self.steps[reader.step as usize];
                    state.exist = state.exist.wrapping_add_signed(more);
                    state.complete = state.complete.wrapping_add_signed(done);
                    self.inputs_changed(reader.step, more < 0 || done < 0);
                }
                Role::Case(case) if self.steps[reader.step as usize].chosen == u32::from(case) => {
                    let alias = plan.port(reader.step, 0);
                    self.agenda.push(Ask::Port(alias));
                }
                _ => {}
            }
        }
    }

    /// Frees the port's sealed objects if nobody holds them. An alias lets go of what it stands for.
    pub(super) fn free(&mut self, p: u32, cx: &mut Cx<'_>) {
        if self.ports[p as usize].holds > 0 {
            return;
        }
        let (step, keep) = (self.plan.ports[p as usize].step, self.plan.ports[p as usize].keep);
        match keep {
            Keep::Unread => {}
            Keep::RunInput(_) => self.free_object(p, 0, 0, cx),
            Keep::List(l) => {
                for element in 0..self.steps[step as usize].lists[l as usize].items.len() as u32 {
                    self.free_object(p, 0, element, cx);
                }
            }
            Keep::One(_) => {
                for item in 0..self.steps[step as usize].items {
                    self.free_object(p, item, 0, cx);
                }
            }
            Keep::Alias => {
                if let Some(q) = self.choice(step).and_then(|source| self.plan.source_port(source))
                    && !core::mem::replace(&mut self.steps[step as usize].dropped_choice, true)
                {
                    self.drop_hold(q);
                }
            }
        }
    }

    fn free_object(&mut self, p: u32, item: u32, element: u32, cx: &mut Cx<'_>) {
        let port = self.ports[p as usize];
        let object = self.object(p, item, element);
        if object.known != Known::Sealed || port.holds > 0 || object.items_done < port.item_holds {
            return;
        }
        object.known = Known::Freed;
        let plan = &self.plan.ports[p as usize];
        let key = match plan.keep {
            Keep::RunInput(i) => dflow_proto::ObjectKey::input(self.id, i),
            _ => self.key(plan.step, item, plan.port, element),
        };
        cx.effects.push(Effect::Release(key));
    }

    /// One reader of the whole port is done.
    pub(super) fn drop_hold(&mut self, p: u32) {
        let port = &mut self.ports[p as usize];
        port.holds = port.holds.saturating_sub(1);
        if port.holds == 0 {
            self.closing.push(Ask::Free(p));
        }
    }

    /// A foreach instance is done with its item, or (`undo`) is not after all.
    pub(super) fn drop_item(&mut self, step: u32, item: u32, undo: bool, cx: &mut Cx<'_>) {
        let (Over::Many(p) | Over::Gather(p)) = self.plan.steps[step as usize].over else { return };
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

    /// Withdraws all that an invocation has put: the objects go, and with them all that was built on them.
    pub(super) fn withdraw(&mut self, step: u32, item: u32, cx: &mut Cx<'_>) {
        let plan = self.plan.clone();
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
            }
            // After their readers have been told to stop.
            for element in withdrawn {
                cx.effects.push(Effect::Release(self.key(step, item, plan.ports[p as usize].port, element)));
            }
        }
    }

    /// What readers made of port `p` (of item `item` of its step) is void.
    fn take_back(&mut self, p: u32, item: u32, cx: &mut Cx<'_>) {
        let plan = self.plan.clone();
        let list = matches!(plan.ports[p as usize].keep, Keep::List(_));
        for reader in plan.readers(p) {
            match reader.role {
                Role::Input(_) => self.poison_all(reader.step, cx),
                Role::Items if list => self.shrink(reader.step, cx),
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
        let state = &mut self.steps[step as usize];
        let Some(invocation) = state.invocations.get_mut(item as usize) else { return };
        let before = invocation.phase;
        match before {
            Phase::Stopping => return,
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
                    self.item_left(step, item, cx);
                }
            }
        }
        self.agenda.push(Ask::Ready(step, item));
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

    /// Takes up the holds again that an ended step had let go before it was settled.
    fn hold_again(&mut self, step: u32) {
        let dropped = core::mem::replace(&mut self.steps[step as usize].dropped, NONE);
        if dropped != NONE {
            let graph = self.graph.clone();
            for input in graph.steps[step as usize].inputs.iter().filter(|i| i.source.step() == Some(dropped))
            {
                if let Some(p) = self.plan.source_port(&input.source) {
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

    /// Tells running readers of port `p` that something a table needs has changed. `item` is the
    /// producing invocation's, for the foreach instance made of it.
    pub(super) fn relink(&self, p: u32, item: Option<u32>, cx: &mut Cx<'_>) {
        for reader in self.plan.readers(p) {
            match reader.role {
                Role::Input(input) => {
                    for &i in &self.steps[reader.step as usize].running {
                        let invocation = InvocationId { step: reader.step, item: i };
                        if self.steps[reader.step as usize].invocations[i as usize].phase == Phase::Running {
                            cx.effects.push(Effect::Relink { run: self.id, invocation, input });
                        }
                    }
                }
                Role::Case(case) if self.steps[reader.step as usize].chosen == u32::from(case) => {
                    self.relink(self.plan.port(reader.step, 0), None, cx);
                }
                Role::Items => match (item, self.plan.steps[reader.step as usize].over) {
                    (Some(item), Over::Gather(_)) => self.relink_item(reader.step, item, cx),
                    _ => {
                        // The list's producer itself has changed: each running instance reads from it.
                        for &i in &self.steps[reader.step as usize].running {
                            self.relink_item(reader.step, i, cx);
                        }
                    }
                },
                _ => {}
            }
        }
    }

    pub(super) fn relink_item(&self, step: u32, item: u32, cx: &mut Cx<'_>) {
        let running = |i: &super::run::Invocation| i.phase == Phase::Running;
        if !self.steps[step as usize].invocations.get(item as usize).is_some_and(running) {
            return;
        }
        for (input, port) in self.graph.steps[step as usize].inputs.iter().enumerate() {
            if port.source == Source::Item {
                let invocation = InvocationId { step, item };
                cx.effects.push(Effect::Relink { run: self.id, invocation, input: input as u16 });
            }
        }
    }
}
