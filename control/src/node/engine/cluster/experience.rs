//! What past runs teach of a workflow's steps: how long they are busy, how many invocations they have, and how much
//! they put. Placement goes by it; what has not been run yet is placed by the hints of its file.

use super::recent::Recent;
use crate::node::view::{Record, What};
use crate::workflow::Workflow;
use dflow_core::graph::Step;
use dflow_core::placement::Cost;

/// Steps of a workflow that is remembered.
const STEPS_MAX: usize = 20_000;
/// Of what is expected next, this much is what was expected before; one part more is what was seen.
const OLD_PARTS: u64 = 3;

/// Of each workflow, what its steps cost.
#[derive(Default)]
pub(super) struct Experience {
    workflows: Recent<Vec<Cost>>,
}

impl Experience {
    /// What its steps are expected to cost, in their order; empty if it has not been run here.
    pub(super) fn of(&mut self, workflow: &Workflow) -> &[Cost] {
        self.workflows.find(&workflow.digest).map_or(&[], |costs| costs)
    }

    /// Takes in what a run that ended well has shown.
    pub(super) fn learn(&mut self, workflow: &Workflow, records: &[Record]) {
        let steps = &workflow.graph.steps;
        if records.is_empty() || steps.len() > STEPS_MAX {
            return;
        }
        let seen = seen(steps, records);
        let costs = self.workflows.find_or(workflow.digest, Vec::new());
        if costs.len() == seen.len() {
            costs.iter_mut().zip(seen).for_each(|(known, seen)| blend(known, seen));
        } else {
            *costs = seen;
        }
    }
}

fn seen(steps: &[Step], records: &[Record]) -> Vec<Cost> {
    // A step that was skipped costs nothing, and its file knows better what it would.
    let mut costs: Vec<Cost> = steps.iter().map(Cost::hinted).collect();
    let mut busy_us = vec![0_u64; steps.len()];
    let mut ended = vec![0_u64; steps.len()];
    for record in records {
        let step = record.invocation.step as usize;
        if let What::Ended { ok: true, times } = record.what {
            if ended[step] == 0 {
                costs[step].bytes.fill(0);
            }
            ended[step] += 1;
            busy_us[step] += times.total_us.saturating_sub(times.wait_us);
        }
    }
    for record in records {
        let step = record.invocation.step as usize;
        if let What::Sealed { port, bytes, .. } = record.what
            && ended[step] > 0
            && let Some(sum) = costs[step].bytes.get_mut(usize::from(port))
        {
            *sum += bytes;
        }
    }
    for ((cost, busy_us), ended) in costs.iter_mut().zip(busy_us).zip(ended) {
        if let Some(mean_us) = busy_us.checked_div(ended) {
            cost.run_us = mean_us.max(1);
            cost.items = ended;
        }
    }
    costs
}

fn blend(known: &mut Cost, seen: Cost) {
    let mix = |known: &mut u64, seen: u64| {
        *known = (known.saturating_mul(OLD_PARTS).saturating_add(seen)).div_ceil(OLD_PARTS + 1);
    };
    mix(&mut known.run_us, seen.run_us);
    mix(&mut known.items, seen.items);
    known.bytes.iter_mut().zip(&seen.bytes).for_each(|(known, seen)| mix(known, *seen));
}

#[cfg(test)]
mod tests {
    use super::super::recent::WORKFLOWS_MAX;
    use super::*;
    use crate::workflow;
    use dflow_proto::link::Times;
    use dflow_proto::{InvocationId, Tick};
    use std::path::Path;

    fn record(step: u32, what: What) -> Record {
        Record { at: Tick(1), invocation: InvocationId { step, item: 0 }, attempt: 1, what }
    }

    fn run(total_us: u64, bytes: u64) -> [Record; 2] {
        let times = Times { total_us, wait_us: 100, ..Times::default() };
        [record(0, What::Sealed { port: 0, item: 0, bytes }), record(0, What::Ended { ok: true, times })]
    }

    #[test]
    fn runs_teach_and_the_last_ones_most() {
        let text = |estimate: &str| {
            format!(
                "apiVersion: dflow/v1\nkind: Workflow\nmetadata: {{name: t}}\nfunctions:\n  \
                 f: {{runtime: builtin, handler: noop, outputs: {{o: bytes}}}}\nsteps:\n  \
                 a: {{function: f, estimate: {estimate}}}\n  b: {{function: f, estimate: 7ms, after: [a]}}\n"
            )
        };
        let parse = |text: &str| workflow::parse(text, "t.yaml", Path::new(".")).expect("a workflow");
        let (mine, other) = (parse(&text("5ms")), parse(&text("6ms")));
        let mut experience = Experience::default();
        assert!(experience.of(&mine).is_empty());
        experience.learn(&mine, &run(1_100, 4_000));
        let costs = experience.of(&mine);
        assert_eq!((costs[0].run_us, costs[0].items, costs[0].bytes[0]), (1_000, 1, 4_000));
        assert_eq!(costs[1].run_us, 7_000, "it was skipped, so its file is believed");
        experience.learn(&mine, &run(5_100, 8_000));
        assert_eq!(experience.of(&mine)[0].run_us, 2_000);
        assert!(experience.of(&other).is_empty());
        for at in 0..2 * WORKFLOWS_MAX {
            experience.learn(&parse(&text(&format!("{}ms", at + 10))), &run(200, 1));
        }
        assert!(experience.of(&mine).is_empty() && experience.workflows.len() == WORKFLOWS_MAX);
    }
}
