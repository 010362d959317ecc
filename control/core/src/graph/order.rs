//! Questions about a graph that several parts ask: who reads what, and how long the way to the end is.

use super::check::Edges;
use super::{Condition, Graph, GraphError, Source, Step, StepIndex, StepKind};
use alloc::{vec, vec::Vec};

/// Who reads a [`Source`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    /// Input `input` of `step`.
    Input {
        /// The step.
        step: StepIndex,
        /// Index of its input.
        input: u16,
    },
    /// `foreach.over` of the step.
    Over(StepIndex),
    /// A condition of the step (`when`, or a case of a switch).
    Condition(StepIndex),
    /// The value of a case of a switch.
    Case {
        /// The switch.
        step: StepIndex,
        /// Index of the case.
        case: u16,
    },
    /// A run output.
    Output(u16),
}

impl Source {
    /// The step it refers to, if it is an output of one.
    pub const fn step(&self) -> Option<StepIndex> {
        match *self {
            Source::Output { step, .. } | Source::Gather { step, .. } => Some(step),
            Source::Const(_) | Source::Input(_) | Source::Item => None,
        }
    }
}

impl Step {
    /// Calls `f` with each of its conditions: `when`, or those of a switch's cases.
    pub fn conditions<'a>(&'a self, mut f: impl FnMut(&'a Condition)) {
        if let Some(when) = &self.when {
            f(when);
        }
        if let StepKind::Switch(cases) = &self.kind {
            cases.iter().filter_map(|case| case.when.as_ref()).for_each(f);
        }
    }

    /// Calls `f` with every reference it makes: inputs, foreach, conditions, values of a switch.
    pub fn sources<'a>(&'a self, mut f: impl FnMut(&'a Source)) {
        self.inputs.iter().for_each(|input| f(&input.source));
        self.foreach.iter().for_each(|each| f(&each.over));
        if let StepKind::Switch(cases) = &self.kind {
            cases.iter().for_each(|case| f(&case.value));
        }
        self.conditions(|condition| condition.reads.iter().for_each(&mut f));
    }

    /// Index of the function it calls; a switch calls none.
    pub const fn function(&self) -> Option<u32> {
        match self.kind {
            StepKind::Call(function) => Some(function),
            StepKind::Switch(_) => None,
        }
    }
}

impl Graph {
    /// Calls `f` with each reference of the graph and who makes it, in file order.
    pub fn readers<'a>(&'a self, mut f: impl FnMut(&'a Source, Reader)) {
        for (index, step) in self.steps.iter().enumerate() {
            let step_index = index as StepIndex;
            for (i, input) in step.inputs.iter().enumerate() {
                f(&input.source, Reader::Input { step: step_index, input: i as u16 });
            }
            if let Some(each) = &step.foreach {
                f(&each.over, Reader::Over(step_index));
            }
            step.conditions(|condition| {
                condition.reads.iter().for_each(|read| f(read, Reader::Condition(step_index)));
            });
            if let StepKind::Switch(cases) = &step.kind {
                for (i, case) in cases.iter().enumerate() {
                    f(&case.value, Reader::Case { step: step_index, case: i as u16 });
                }
            }
        }
        for (i, output) in self.outputs.iter().enumerate() {
            f(&output.source, Reader::Output(i as u16));
        }
    }

    /// For each step the time from its start to the end of the run along the longest way, in
    /// microseconds: expected run times plus the time to move the hinted bytes of each output at
    /// `bandwidth` bytes per microsecond (0 for free). An unknown run time counts as 1 µs, so that
    /// depth decides where nothing else is known. Indices must be in range.
    pub fn critical_path(&self, bandwidth: u64) -> Result<Vec<u64>, GraphError> {
        self.longest_ways(|step| {
            let step = &self.steps[step as usize];
            let bytes = step.outputs.iter().fold(0u64, |sum, port| sum.saturating_add(port.hint_bytes));
            step.estimate_us.max(1).saturating_add(bytes.checked_div(bandwidth).unwrap_or(0))
        })
    }

    /// For each step the time from its start to the end of the run along the longest way, if a step with a function
    /// takes as long as `own` says; what has none takes no time. Indices must be in range.
    ///
    /// # Errors
    /// If there is a cycle.
    pub fn longest_ways(&self, own: impl Fn(StepIndex) -> u64) -> Result<Vec<u64>, GraphError> {
        let order = self.topological()?;
        let edges = Edges::new(self);
        let mut rank = vec![0u64; self.steps.len()];
        for &s in order.iter().rev() {
            let own = if self.steps[s as usize].function().is_some() { own(s) } else { 0 };
            let behind = edges.behind(s).iter().map(|&b| rank[b as usize]).max().unwrap_or(0);
            rank[s as usize] = behind.saturating_add(own);
        }
        Ok(rank)
    }
}
