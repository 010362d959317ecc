//! Synthetic workflows made smaller, in time and in bytes.

use crate::workflow::{Runtime, Workflow};
use dflow_core::graph::{Source, StepKind};
use serde_json::Value;
use std::collections::BTreeSet;

/// Multiplies what the steps of the built-in function `synthetic` sleep, compute and write. What had
/// bytes keeps at least one. Returns how many steps were changed; others are left alone.
pub fn scale(workflow: &mut Workflow, time: f64, size: f64) -> usize {
    let graph = workflow.graph.clone();
    let mut specs = BTreeSet::new();
    let mut steps = 0;
    for step in &graph.steps {
        let StepKind::Call(function) = step.kind else { continue };
        if !matches!(workflow.functions[function as usize].runtime, Runtime::Builtin { .. }) {
            continue;
        }
        let spec = step.inputs.iter().find(|input| input.name == "spec").map(|input| &input.source);
        if let Some(Source::Const(index)) = spec {
            specs.insert(*index);
            steps += 1;
        }
    }
    for index in specs {
        let constant = &mut workflow.constants[index as usize];
        // What is no JSON is for the function to refuse.
        let Ok(mut spec) = serde_json::from_slice::<Value>(&constant.bytes) else { continue };
        for key in ["sleep_ms", "compute_ms", "pace_ms"] {
            if let Some(ms) = spec.get(key).and_then(Value::as_f64) {
                spec[key] = (ms * time).into();
            }
        }
        for output in spec.get_mut("out").and_then(Value::as_array_mut).into_iter().flatten() {
            if let Some(bytes) = output.get("bytes").and_then(Value::as_f64).filter(|bytes| *bytes > 0.0) {
                output["bytes"] = ((bytes * size).round() as u64).max(1).into();
            }
        }
        constant.bytes = spec.to_string().into_bytes();
    }
    steps
}
