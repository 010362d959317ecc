//! Values that the node itself looks at: those of conditions, and JSON lists that a foreach iterates.

use super::Engine;
use crate::node::view::{Record, What};
use crate::workflow::{ValueType, element_bytes, list_elements};
use dflow_core::graph::{Case, Source, StepIndex, StepKind};
use dflow_core::placement::NodeIndex;
use dflow_core::scheduler::{Event, Resolved};
use dflow_proto::ids::Extent;
use dflow_proto::limits::CONDITION_BYTES_MAX;
use dflow_proto::store::{Lease, Leased};
use dflow_proto::{InvocationId, ObjectKey, RunId};
use std::ops::Range;

/// A question that waits until an object is back from disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Parked {
    /// `Effect::Evaluate`.
    Evaluate(RunId, StepIndex),
    /// `Effect::MeasureList`.
    Measure(RunId, StepIndex),
    /// An object that others are to fetch.
    Publish(ObjectKey, u32, Vec<NodeIndex>),
    /// The run has ended and its outputs are wanted.
    Deliver(RunId),
}

/// A JSON list that a foreach iterates.
#[derive(Default)]
pub(super) struct JsonList {
    bytes: Vec<u8>,
    /// Where each element is in `bytes`.
    elements: Vec<Range<usize>>,
}

/// The bytes of a source for the node's own eyes.
enum Looked {
    Bytes(Vec<u8>),
    Skipped,
    /// It is on its way back from disk.
    Later,
    Lost(String),
}

impl Engine {
    /// Answers a step's `when` or switch.
    pub(super) fn evaluate(&mut self, run: RunId, step: StepIndex) {
        match self.decide(run, step) {
            Some(result) => {
                if let (Ok(choice), Some(state)) = (&result, self.runs.get(&run)) {
                    let what = What::Decided { choice: *choice };
                    let invocation = InvocationId { step, item: 0 };
                    state.watch.record(Record { at: self.now(), invocation, attempt: 0, what });
                }
                self.events.push_back(Event::Evaluated { run, step, result });
            }
            None => self.parked.push(Parked::Evaluate(run, step)),
        }
    }

    /// `None` while a value is on its way.
    fn decide(&mut self, run: RunId, step: StepIndex) -> Option<Result<u32, String>> {
        let workflow = self.runs.get(&run)?.workflow.clone();
        let node = &workflow.graph.steps[step as usize];
        let cases: &[Case] = if let StepKind::Switch(cases) = &node.kind { cases } else { &[] };
        let conditions = node.when.iter().chain(cases.iter().filter_map(|c| c.when.as_ref()));
        let mut values: Vec<(&Source, Vec<u8>)> = Vec::new();
        for source in conditions.flat_map(|c| &c.reads) {
            match self.look(run, source, CONDITION_BYTES_MAX + 1) {
                Looked::Bytes(bytes) => values.push((source, bytes)),
                Looked::Skipped => {}
                Looked::Later => return None,
                Looked::Lost(why) => return Some(Err(why)),
            }
        }
        let value =
            |wanted: &Source| values.iter().find(|(source, _)| *source == wanted).map(|(_, bytes)| bytes);
        let skipped = |step| self.scheduler.skipped(run, step);
        Some(workflow.decide(step, value, skipped).map_err(|e| e.to_string()))
    }

    /// Answers how long a JSON list is, and keeps its elements.
    pub(super) fn measure_list(&mut self, run: RunId, step: StepIndex) {
        let Some(state) = self.runs.get(&run) else { return };
        let workflow = state.workflow.clone();
        let Some(foreach) = &workflow.graph.steps[step as usize].foreach else { return };
        let result = match self.look(run, &foreach.over, u64::MAX) {
            Looked::Bytes(bytes) => match list_elements(&bytes) {
                Ok(elements) => Ok(JsonList { bytes, elements }),
                Err(error) => Err(format!("what foreach iterates is no list: {error}")),
            },
            Looked::Skipped => Ok(JsonList::default()),
            Looked::Lost(why) => Err(why),
            Looked::Later => return self.parked.push(Parked::Measure(run, step)),
        };
        let result = result.map(|list| {
            let length = list.elements.len() as u32;
            if let Some(state) = self.runs.get_mut(&run) {
                state.lists.insert(step, list);
            }
            length
        });
        self.events.push_back(Event::ListLength { run, step, result });
    }

    /// Copies a value out, at most `bytes_max` of it. The scheduler asks only for what is sealed or
    /// skipped.
    fn look(&mut self, run: RunId, source: &Source, bytes_max: u64) -> Looked {
        match self.scheduler.resolve_source(run, source) {
            Resolved::Const(id) => {
                let constant = self.runs.get(&run).map(|s| s.workflow.constants[id as usize].bytes.clone());
                constant.map_or(Looked::Skipped, Looked::Bytes)
            }
            Resolved::Object(object) => match self.store.lease(object.key) {
                Leased::Ready(lease, extent) => {
                    let bytes = self.copy_out(Extent { bytes: extent.bytes.min(bytes_max), ..extent });
                    self.store.unlease(lease);
                    bytes.map_or_else(Looked::Lost, Looked::Bytes)
                }
                Leased::Restoring(lease) => {
                    self.restoring(lease);
                    Looked::Later
                }
                Leased::Missing => Looked::Lost("the value is no longer in the store".into()),
            },
            _ => Looked::Skipped,
        }
    }

    /// Asks the questions again that an object held up.
    pub(super) fn unpark(&mut self) {
        for parked in std::mem::take(&mut self.parked) {
            match parked {
                Parked::Evaluate(run, step) => self.evaluate(run, step),
                Parked::Measure(run, step) => self.measure_list(run, step),
                Parked::Publish(key, attempt, to) => self.publish_sealed(key, attempt, to),
                Parked::Deliver(run) => self.deliver(run, Ok(())),
            }
        }
    }

    /// Takes the list of a foreach apart that another node has measured.
    pub(super) fn know_list(&mut self, run: RunId, step: StepIndex) {
        let Some(state) = self.runs.get(&run).filter(|state| !state.lists.contains_key(&step)) else {
            return;
        };
        let workflow = state.workflow.clone();
        let Some(foreach) = &workflow.graph.steps[step as usize].foreach else { return };
        if let Looked::Bytes(bytes) = self.look(run, &foreach.over, u64::MAX)
            && let Ok(elements) = list_elements(&bytes)
            && let Some(state) = self.runs.get_mut(&run)
        {
            state.lists.insert(step, JsonList { bytes, elements });
        }
    }

    /// The element `index` of the list that `step` iterates, encoded as type `ty` wants it.
    pub(super) fn element(
        &self,
        run: RunId,
        step: StepIndex,
        index: u32,
        ty: ValueType,
    ) -> Result<Vec<u8>, String> {
        let list =
            self.runs.get(&run).and_then(|s| s.lists.get(&step)).ok_or("its list has not been measured")?;
        let range = list.elements.get(index as usize).ok_or("its list has no such element")?.clone();
        element_bytes(ty, &list.bytes[range]).map_err(|e| format!("element {index} of the list: {e}"))
    }

    /// A lease on an object that comes back from disk only to be looked at: it is kept until then.
    fn restoring(&mut self, lease: Lease) {
        self.restoring.push(lease);
    }
}
