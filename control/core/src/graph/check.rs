//! The check that makes a [`Graph`] safe to run: after it, every index in the graph is in range.

use super::{Condition, Graph, PortKind, Source, Step, StepIndex, StepKind};
use alloc::{borrow::ToOwned, string::String, vec, vec::Vec};
use dflow_proto::limits;

/// Switches that may choose from one another in a row.
const SWITCHES_MAX: usize = 64;

/// Why a graph cannot be run. Names are the workflow's own; indices are given where a name is missing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GraphError {
    /// More of something than a workflow may have.
    #[error("{have} {what}, at most {max} are allowed: split the workflow")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many there are.
        have: usize,
        /// How many there may be.
        max: usize,
    },
    /// A reference to a step that does not exist.
    #[error("step {step} refers to step number {index}, there are {steps}")]
    NoSuchStep {
        /// Who refers to it.
        step: String,
        /// The index.
        index: u32,
        /// Number of steps.
        steps: usize,
    },
    /// A reference to a port that does not exist.
    #[error("step {step} refers to output {port} of step {of}, which has {ports}")]
    NoSuchPort {
        /// Who refers to it.
        step: String,
        /// The producing step.
        of: String,
        /// The port's index.
        port: u16,
        /// Number of its output ports.
        ports: usize,
    },
    /// A reference to a run input that does not exist.
    #[error("step {step} refers to run input {index}, there are {inputs}")]
    NoSuchInput {
        /// Who refers to it.
        step: String,
        /// The index.
        index: u16,
        /// Number of run inputs.
        inputs: usize,
    },
    /// A call of a function that does not exist.
    #[error("step {step} calls function {index}, there are {functions}")]
    NoSuchFunction {
        /// The caller.
        step: String,
        /// The index.
        index: u32,
        /// Number of functions.
        functions: usize,
    },
    /// `[*]` on a step without foreach, or none on a step with it.
    #[error("step {step} reads an output of {of}: write [*] for a step with foreach, and only there")]
    Gathering {
        /// Who refers to it.
        step: String,
        /// The producing step.
        of: String,
    },
    /// `[*]` on a `many` port.
    #[error(
        "step {step} gathers output {port} of {of}, which is a list already: lists of lists are not supported"
    )]
    ListOfList {
        /// Who refers to it.
        step: String,
        /// The producing step.
        of: String,
        /// The port's name.
        port: String,
    },
    /// `item` outside a foreach.
    #[error("step {step} refers to an item where there is none: only inputs of a step with foreach can")]
    NoItem {
        /// The step.
        step: String,
    },
    /// A foreach that cannot work.
    #[error("foreach of step {step}: {why}")]
    Foreach {
        /// The step.
        step: String,
        /// What is wrong, and what to do.
        why: &'static str,
    },
    /// A switch that cannot work.
    #[error("switch {step}: {why}")]
    Switch {
        /// The step.
        step: String,
        /// What is wrong, and what to do.
        why: &'static str,
    },
    /// A function that may have no worker.
    #[error("function {function} may have 0 workers: raise its pool's max")]
    NoWorkers {
        /// The function.
        function: String,
    },
    /// The steps wait for one another.
    #[error("steps wait for one another: {}", .path.join(" -> "))]
    Cycle {
        /// Names of the steps along the cycle; the last is the first again.
        path: Vec<String>,
    },
}

impl Graph {
    /// Checks indices, ports, shapes and limits, and that the edges (references, conditions,
    /// `after`) form no cycle. Time linear in the size of the graph.
    pub fn check(&self) -> Result<(), GraphError> {
        within("steps", self.steps.len(), limits::STEPS_MAX)?;
        within("run inputs", self.inputs.len(), u16::MAX as usize)?;
        within("run outputs", self.outputs.len(), u16::MAX as usize)?;
        for function in &self.functions {
            if function.workers_max == 0 {
                return Err(GraphError::NoWorkers { function: function.name.clone() });
            }
        }
        for step in &self.steps {
            self.check_step(step)?;
        }
        for output in &self.outputs {
            self.check_source("outputs", &output.source, false)?;
        }
        self.check_chains(&self.topological()?)
    }

    /// A switch may choose what another switch chose, but not through any number of them.
    fn check_chains(&self, order: &[StepIndex]) -> Result<(), GraphError> {
        let mut depth = vec![0usize; self.steps.len()];
        for &s in order {
            let StepKind::Switch(cases) = &self.steps[s as usize].kind else { continue };
            let deepest = cases.iter().filter_map(|case| Some(depth[case.value.step()? as usize])).max();
            depth[s as usize] = deepest.unwrap_or(0) + 1;
            if depth[s as usize] > SWITCHES_MAX {
                let step = self.steps[s as usize].name.clone();
                return Err(GraphError::Switch {
                    step,
                    why: "more than 64 switches choose from one another in a row",
                });
            }
        }
        Ok(())
    }

    fn check_step(&self, step: &Step) -> Result<(), GraphError> {
        within("inputs of one step", step.inputs.len(), limits::PORTS_MAX)?;
        within("outputs of one step", step.outputs.len(), limits::PORTS_MAX)?;
        let foreach = step.foreach.is_some();
        for input in &step.inputs {
            self.check_source(&step.name, &input.source, foreach)?;
        }
        for &after in &step.after {
            self.check_index(&step.name, after)?;
        }
        if let Some(condition) = &step.when {
            self.check_condition(&step.name, condition)?;
        }
        if let Some(each) = &step.foreach {
            let wrong = |why| Err(GraphError::Foreach { step: step.name.clone(), why });
            self.check_source(&step.name, &each.over, false)?;
            if each.parallel_max == 0 {
                return wrong("max_parallel is 0, so nothing could start: use 1 or more");
            }
            let list = match each.over {
                Source::Gather { .. } => true,
                Source::Output { step: of, port } => {
                    let of = &self.steps[of as usize];
                    let many = of.outputs[port as usize].kind == PortKind::Many;
                    if many && matches!(of.kind, StepKind::Switch(_)) {
                        return wrong(
                            "a list chosen by a switch cannot be iterated: iterate each branch instead",
                        );
                    }
                    many
                }
                Source::Const(_) | Source::Input(_) | Source::Item => false,
            };
            if list == each.json {
                return wrong("it must iterate a list of objects, or a JSON list and be marked so");
            }
        }
        match &step.kind {
            StepKind::Call(function) if *function as usize >= self.functions.len() => {
                Err(GraphError::NoSuchFunction {
                    step: step.name.clone(),
                    index: *function,
                    functions: self.functions.len(),
                })
            }
            StepKind::Call(_) => Ok(()),
            StepKind::Switch(cases) => {
                let wrong = |why| Err(GraphError::Switch { step: step.name.clone(), why });
                if foreach {
                    return wrong("it cannot have foreach: put it on the steps it chooses from");
                }
                if step.when.is_some() {
                    return wrong("it cannot have `when`: add the condition to its cases");
                }
                if !step.inputs.is_empty() || step.outputs.len() != 1 {
                    return wrong("it has no inputs of its own and exactly one output");
                }
                if cases.is_empty() {
                    return wrong("it has no case: add one with `default: true`");
                }
                within("cases of one switch", cases.len(), limits::PORTS_MAX)?;
                for case in cases {
                    self.check_source(&step.name, &case.value, false)?;
                    if let Some(condition) = &case.when {
                        self.check_condition(&step.name, condition)?;
                    }
                }
                Ok(())
            }
        }
    }

    fn check_condition(&self, step: &str, condition: &Condition) -> Result<(), GraphError> {
        for &asked in &condition.asks {
            self.check_index(step, asked)?;
        }
        condition.reads.iter().try_for_each(|read| self.check_source(step, read, false))
    }

    fn check_index(&self, step: &str, index: StepIndex) -> Result<&Step, GraphError> {
        let steps = self.steps.len();
        self.steps.get(index as usize).ok_or(GraphError::NoSuchStep { step: step.to_owned(), index, steps })
    }

    fn check_source(&self, step: &str, source: &Source, item: bool) -> Result<(), GraphError> {
        match *source {
            Source::Const(_) => Ok(()),
            Source::Input(index) if (index as usize) < self.inputs.len() => Ok(()),
            Source::Input(index) => {
                Err(GraphError::NoSuchInput { step: step.to_owned(), index, inputs: self.inputs.len() })
            }
            Source::Item if item => Ok(()),
            Source::Item => Err(GraphError::NoItem { step: step.to_owned() }),
            Source::Output { step: of, port } | Source::Gather { step: of, port } => {
                let of = self.check_index(step, of)?;
                let Some(out) = of.outputs.get(port as usize) else {
                    let ports = of.outputs.len();
                    return Err(GraphError::NoSuchPort {
                        step: step.to_owned(),
                        of: of.name.clone(),
                        port,
                        ports,
                    });
                };
                let gather = matches!(source, Source::Gather { .. });
                if gather != of.foreach.is_some() {
                    return Err(GraphError::Gathering { step: step.to_owned(), of: of.name.clone() });
                }
                if gather && out.kind == PortKind::Many {
                    let port = out.name.clone();
                    return Err(GraphError::ListOfList { step: step.to_owned(), of: of.name.clone(), port });
                }
                Ok(())
            }
        }
    }

    /// The steps in an order in which each comes after all that it waits for, ties by file order; or
    /// the cycle that makes it impossible. Indices must be in range.
    pub fn topological(&self) -> Result<Vec<StepIndex>, GraphError> {
        let edges = Edges::new(self);
        let mut missing: Vec<u32> =
            (0..self.steps.len()).map(|s| edges.before(s as u32).len() as u32).collect();
        let mut order: Vec<StepIndex> =
            (0..self.steps.len() as u32).filter(|&s| missing[s as usize] == 0).collect();
        let mut at = 0;
        while at < order.len() {
            for &next in edges.behind(order[at]) {
                missing[next as usize] -= 1;
                if missing[next as usize] == 0 {
                    order.push(next);
                }
            }
            at += 1;
        }
        if order.len() == self.steps.len() {
            return Ok(order);
        }
        // Every step left has one left before it: walking backwards must meet itself.
        let mut place = vec![usize::MAX; self.steps.len()];
        let mut walk = Vec::new();
        let mut step = missing.iter().position(|&m| m > 0).unwrap_or(0) as u32;
        while place[step as usize] == usize::MAX {
            place[step as usize] = walk.len();
            walk.push(step);
            let before = edges.before(step).iter().find(|&&b| missing[b as usize] > 0);
            step = *before.unwrap_or(&step);
        }
        let mut path: Vec<String> =
            walk[place[step as usize]..].iter().rev().map(|&s| self.steps[s as usize].name.clone()).collect();
        path.extend(path.first().cloned());
        Err(GraphError::Cycle { path })
    }
}

fn within(what: &'static str, have: usize, max: usize) -> Result<(), GraphError> {
    if have > max { Err(GraphError::TooMany { what, have, max }) } else { Ok(()) }
}

/// Who waits for whom, each pair once, both ways, as flat arrays.
pub(crate) struct Edges {
    before: Vec<StepIndex>,
    before_start: Vec<u32>,
    behind: Vec<StepIndex>,
    behind_start: Vec<u32>,
}

impl Edges {
    pub(crate) fn new(graph: &Graph) -> Self {
        let steps = graph.steps.len();
        let (mut before, mut before_start) = (Vec::new(), Vec::with_capacity(steps + 1));
        let mut count = vec![0u32; steps + 1];
        let mut own = Vec::new();
        before_start.push(0);
        for step in &graph.steps {
            own.clear();
            step.sources(|source| own.extend(source.step()));
            own.extend_from_slice(&step.after);
            step.conditions(|condition| own.extend_from_slice(&condition.asks));
            own.sort_unstable();
            own.dedup();
            for &b in &own {
                count[b as usize + 1] += 1;
            }
            before.extend_from_slice(&own);
            before_start.push(before.len() as u32);
        }
        for s in 0..steps {
            count[s + 1] += count[s];
        }
        let behind_start = count.clone();
        let mut behind = vec![0; before.len()];
        for s in 0..steps {
            for &b in &before[before_start[s] as usize..before_start[s + 1] as usize] {
                behind[count[b as usize] as usize] = s as u32;
                count[b as usize] += 1;
            }
        }
        Edges { before, before_start, behind, behind_start }
    }
    /// What `step` waits for.
    pub(crate) fn before(&self, step: StepIndex) -> &[StepIndex] {
        let s = step as usize;
        &self.before[self.before_start[s] as usize..self.before_start[s + 1] as usize]
    }
    /// What waits for `step`.
    pub(crate) fn behind(&self, step: StepIndex) -> &[StepIndex] {
        let s = step as usize;
        &self.behind[self.behind_start[s] as usize..self.behind_start[s + 1] as usize]
    }
}
