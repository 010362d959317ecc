//! What exists: objects, lists, and who still holds them.

use super::plan::{Keep, Role};
use super::run::{Ask, Cx, Fate, Known, Object, Phase, Run};
use super::{Effect, Put, Word};
use crate::graph::ErrorClass;
use alloc::{format, string::ToString};
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
        if phase == Phase::Stopping && sealed && self.is_here(id.step, id.item) {
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
            Keep::Unread if sealed && self.is_here(id.step, id.item) => {
                cx.effects.push(Effect::Release(put.key));
            }
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

    pub(super) fn too_many(&mut self, id: InvocationId, port: u16, have: u32, max: u32, cx: &mut Cx<'_>) {
        let name = &self.graph.steps[id.step as usize].outputs[port as usize].name;
        let message =
            format!("output {name} has {have} items, at most {max} are allowed: raise its max_items");
        self.fail_step(id.step, Some(id), ErrorClass::Error("TooManyItems".to_string()), message, cx);
    }

    /// The object in state, lists growing as needed.
    pub(super) fn object(&mut self, p: u32, item: u32, element: u32) -> &mut Object {
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

    pub(super) fn put_object(
        &mut self,
        p: u32,
        id: InvocationId,
        element: u32,
        sealed: bool,
        cx: &mut Cx<'_>,
    ) {
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
        self.tell_put(p, id, element, (before == Known::Nothing, sealed), cx);
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

    /// An object that is put on one of several nodes: who reads it elsewhere is to fetch it, and is told; what
    /// only they read is not held here for its items' sake.
    fn tell_put(
        &mut self,
        p: u32,
        id: InvocationId,
        element: u32,
        (first, sealed): (bool, bool),
        cx: &mut Cx<'_>,
    ) {
        if self.share.is_none() {
            return;
        }
        let list = matches!(self.plan.ports[p as usize].keep, Keep::List(_));
        let reading = if list { element } else { id.item };
        if first {
            let plan = self.plan.clone();
            let readers = plan.readers(p).iter().filter(|r| r.role == Role::Items);
            let elsewhere = readers.filter(|r| self.reads_here(r) && !self.is_here(r.step, reading)).count();
            self.object(p, id.item, element).items_done += elsewhere as u32;
        }
        if !self.is_here(id.step, id.item) {
            return;
        }
        let Some(attempt) = self.invocation(id).map(|invocation| invocation.attempt) else { return };
        let key = self.key(id.step, id.item, self.plan.ports[p as usize].port, element);
        if first {
            let to = self.readers_elsewhere(p, reading);
            if !to.is_empty() {
                self.object(p, id.item, element).away = true;
                cx.effects.push(Effect::Publish { key, attempt, to });
            }
        }
        let put = Put { key, attempt, bytes: 0 };
        self.tell(id.step, &if sealed { Word::Sealed(put) } else { Word::FirstByte(put) }, cx);
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
        if let Some(attempt) = self.invocation(id).map(|invocation| invocation.attempt) {
            self.tell_as_host(id, &Word::Pinned { invocation: id, attempt, port, count }, cx);
        }
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
                Role::List if !self.leads(reader.step) => self.agenda.push(Ask::ReadyAll(reader.step)),
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
                    self.drop_hold_of(q, step, Role::Case(0));
                }
            }
        }
    }

    pub(super) fn free_object(&mut self, p: u32, item: u32, element: u32, cx: &mut Cx<'_>) {
        let port = self.ports[p as usize];
        let closed = self.share.as_ref().is_some_and(|share| share.closed);
        let object = self.object(p, item, element);
        let fetched = !object.away || closed;
        if object.known != Known::Sealed || port.holds > 0 || object.items_done < port.item_holds || !fetched
        {
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
}
