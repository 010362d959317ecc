//! What a source is at this moment.

use super::plan::{Keep, NONE, Over};
use super::run::{Fate, Known, Phase, Run};
use super::{ObjectRef, ObjectState, Resolved};
use crate::graph::Source;
use alloc::vec::Vec;
use dflow_proto::{InvocationId, ObjectKey};

impl Run {
    /// An input of an invocation.
    pub(super) fn resolve_input(&self, id: InvocationId, input: u16) -> Resolved {
        let Some(step) = self.graph.steps.get(id.step as usize) else { return Resolved::Pending };
        let Some(input) = step.inputs.get(input as usize) else { return Resolved::Pending };
        if input.source != Source::Item {
            return self.resolve(&input.source);
        }
        match (self.plan.steps[id.step as usize].over, &step.foreach) {
            (Over::Many(p) | Over::Gather(p), _) => {
                let (owner, element) = self.item_at(p, id.item);
                Resolved::Object(self.reference(p, owner, element))
            }
            (Over::Json(_), Some(each)) => Resolved::Element { list: each.over.clone(), index: id.item },
            _ => Resolved::Pending,
        }
    }

    /// Any source but an item.
    pub(super) fn resolve(&self, source: &Source) -> Resolved {
        let mut source = source;
        loop {
            match *source {
                Source::Const(constant) => return Resolved::Const(constant),
                Source::Item => return Resolved::Pending,
                Source::Input(i) => {
                    let key = ObjectKey::input(self.id, i);
                    return Resolved::Object(ObjectRef { key, state: ObjectState::Sealed });
                }
                Source::Output { step, .. } | Source::Gather { step, .. } => {
                    let Some(state) = self.steps.get(step as usize) else { return Resolved::Pending };
                    if state.fate == Fate::Skipped {
                        return Resolved::Null;
                    }
                    if self.plan.steps[step as usize].function != NONE {
                        return self.resolve_port(source);
                    }
                    match self.choice(step) {
                        Some(choice) => source = choice,
                        None => return Resolved::Pending,
                    }
                }
            }
        }
    }

    fn resolve_port(&self, source: &Source) -> Resolved {
        let (Some(step), Some(p)) = (source.step(), self.plan.source_port(source)) else {
            return Resolved::Pending;
        };
        let state = &self.steps[step as usize];
        match self.plan.ports.get(p as usize).map(|port| port.keep) {
            Some(Keep::One(_)) if state.each.is_some() && state.fate == Fate::Unknown => Resolved::Pending,
            Some(Keep::One(_)) if state.each.is_some() => {
                let out = |item: &u32| {
                    let phase = state.invocations[*item as usize].phase;
                    !matches!(phase, Phase::Failed | Phase::LeftOut)
                };
                let items = (0..state.items).filter(out).map(|item| self.reference(p, item, 0)).collect();
                Resolved::List { items, pinned: state.pinned }
            }
            Some(Keep::One(_)) => Resolved::Object(self.reference(p, 0, 0)),
            Some(Keep::List(l)) => {
                let (list, producer) = (&state.lists[l as usize], &state.invocations[0]);
                // A complete list needs nobody's index, and its producer may be an attempt that has to repeat it.
                if producer.phase == Phase::Running && !self.ports[p as usize].complete {
                    let port = self.plan.ports[p as usize].port;
                    let id = InvocationId { step, item: 0 };
                    return Resolved::Follow { producer: id, attempt: producer.attempt, port };
                }
                let items: Vec<_> = (0..list.items.len() as u32).map(|e| self.reference(p, 0, e)).collect();
                if items.is_empty() && !list.pinned {
                    return Resolved::Pending;
                }
                Resolved::List { items, pinned: list.pinned }
            }
            _ => Resolved::Pending,
        }
    }

    /// Object `element` of port `p`, put by invocation `item` of its step.
    fn reference(&self, p: u32, item: u32, element: u32) -> ObjectRef {
        let plan = &self.plan.ports[p as usize];
        let step = &self.steps[plan.step as usize];
        let object = match plan.keep {
            Keep::One(o) => {
                let ones = self.plan.steps[plan.step as usize].ones as usize;
                step.objects.get(item as usize * ones + o as usize)
            }
            Keep::List(l) => step.lists[l as usize].items.get(element as usize),
            Keep::Alias | Keep::Unread | Keep::RunInput(_) => None,
        };
        let state = match (object.map(|o| o.known), step.invocations.get(item as usize)) {
            (Some(Known::Sealed | Known::Freed), _) => ObjectState::Sealed,
            (_, Some(i)) if i.phase == Phase::Running => ObjectState::Running { attempt: i.attempt },
            _ => ObjectState::Pending,
        };
        ObjectRef { key: self.key(plan.step, item, plan.port, element), state }
    }
}
