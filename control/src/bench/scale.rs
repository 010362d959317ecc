//! Synthetic workflows made smaller, in time and in bytes.

use crate::workflow::{self, Runtime, Workflow};
use dflow_core::graph::StepKind;
use serde_json::Value;

/// A workflow whose steps of the built-in function `synthetic` sleep, compute and write so much more or less (what had
/// bytes keeps at least one), and how many steps that are. The others, and a workflow without such steps, stay as they
/// are.
///
/// It has a text of its own, so that every node reads the same.
pub fn scale(workflow: Workflow, time: f64, size: f64) -> (Workflow, usize) {
    let builtin =
        |function: u32| matches!(workflow.functions[function as usize].runtime, Runtime::Builtin { .. });
    let Ok(mut document) = serde_saphyr::from_str::<Value>(&workflow.text) else { return (workflow, 0) };
    let mut changed = 0;
    for step in &workflow.graph.steps {
        if !matches!(step.kind, StepKind::Call(function) if builtin(function)) {
            continue;
        }
        let written = &mut document["steps"][&step.name];
        let Some(mut spec) = written.pointer_mut("/in/spec").filter(|spec| spec.is_object()) else {
            continue;
        };
        if spec.get("value").is_some_and(Value::is_object) {
            spec = &mut spec["value"];
        }
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
        if step.estimate_us > 0 {
            let ms = (step.estimate_us as f64 / 1000.0 * time).ceil() as u64;
            written["estimate"] = format!("{}ms", ms.max(1)).into();
        }
        changed += 1;
    }
    match workflow::parse(&document.to_string(), &workflow.file, &workflow.source_dir) {
        Ok(scaled) if changed > 0 => (scaled, changed),
        _ => (workflow, 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dflow_core::graph::Source;
    use std::path::Path;

    #[test]
    fn times_and_sizes_shrink_and_the_text_says_so() {
        let text = "apiVersion: dflow/v1\nkind: Workflow\nmetadata: {name: t}\nfunctions:\n  \
                    f: {runtime: builtin, handler: synthetic, outputs: {o: bytes}}\nsteps:\n  \
                    b: {function: f, estimate: 1s, in: {spec: {sleep_ms: 1000, out: [{port: o, bytes: 400}]}}}\n  \
                    a: {function: f, in: {spec: {value: {compute_ms: 3, out: [{port: o, bytes: 1}]}}, x: steps.b.o}}\n";
        let parse = |text: &str| workflow::parse(text, "t.yaml", Path::new(".")).expect("a workflow");
        let (scaled, steps) = scale(parse(text), 0.5, 0.01);
        assert_eq!(steps, 2);
        for workflow in [&scaled, &parse(&scaled.text)] {
            let spec = |name: &str| -> Value {
                let step = workflow.graph.steps.iter().find(|step| step.name == name).expect("a step");
                let input = step.inputs.iter().find(|input| input.name == "spec").expect("a spec");
                let Source::Const(constant) = input.source else { panic!("{input:?}") };
                serde_json::from_slice(&workflow.constants[constant as usize].bytes).expect("JSON")
            };
            assert_eq!(spec("b"), serde_json::json!({"sleep_ms": 500.0, "out": [{"port": "o", "bytes": 4}]}));
            assert_eq!(spec("a"), serde_json::json!({"compute_ms": 1.5, "out": [{"port": "o", "bytes": 1}]}));
            let estimates: Vec<_> = workflow.graph.steps.iter().map(|step| step.estimate_us).collect();
            assert!(estimates.contains(&500_000), "{estimates:?}");
        }
        let plain = "apiVersion: dflow/v1\nkind: Workflow\nmetadata: {name: t}\nsteps:\n  \
                     a: {function: {runtime: builtin, handler: noop}}\n";
        assert_eq!(scale(parse(plain), 0.5, 0.5).1, 0);
    }
}
