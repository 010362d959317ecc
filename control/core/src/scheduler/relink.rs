//! Telling running readers that what their tables say is out of date.

use super::Effect;
use super::plan::{NONE, Over, Role};
use super::run::{Cx, Phase, Run};
use crate::graph::Source;
use dflow_proto::InvocationId;

impl Run {
    /// Tells running readers of port `p` that something a table needs has changed. `item` is the
    /// producing invocation's, for the foreach instance made of it.
    pub(super) fn relink(&self, p: u32, item: Option<u32>, cx: &mut Cx<'_>) {
        for reader in self.plan.readers(p) {
            match reader.role {
                Role::Input(input) => {
                    for &i in &self.steps[reader.step as usize].running {
                        let invocation = InvocationId { step: reader.step, item: i };
                        if self.is_here(reader.step, i)
                            && self.steps[reader.step as usize].invocations[i as usize].phase
                                == Phase::Running
                        {
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
        if !self.is_here(step, item)
            || !self.steps[step as usize].invocations.get(item as usize).is_some_and(running)
        {
            return;
        }
        for (input, port) in self.graph.steps[step as usize].inputs.iter().enumerate() {
            if port.source == Source::Item {
                let invocation = InvocationId { step, item };
                cx.effects.push(Effect::Relink { run: self.id, invocation, input: input as u16 });
            }
        }
    }

    /// Relinks the readers of a whole list.
    pub(super) fn relink_whole(&self, p: u32, cx: &mut Cx<'_>) {
        if self.plan.readers(p).iter().any(|r| r.role != Role::Items) {
            self.relink(p, Some(NONE), cx);
        }
    }
}
