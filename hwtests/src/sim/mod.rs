//! Deterministic simulation of the pure cores: random workflows, random faults, every law held at every step.
//!
//! A seed decides everything. [`run_seed`] makes a graph and conditions from it, runs it twice, and compares the
//! result with a naive model ([`truth`]).

pub mod generate;
mod laws;
mod process;
pub mod rng;
pub mod truth;
mod wire;
pub mod world;

use dflow_core::graph::{ErrorClass, Graph, StartPolicy};
use dflow_core::scheduler::{Capacity, RunError};
use rng::Rng;
use std::{collections::BTreeSet, sync::Arc};
use world::{Conditions, Report, simulate};

/// Steps of the largest random workflow.
pub const STEPS_MAX: u64 = 12;

/// What a seed stands for on so many nodes, with at most `steps_max` steps.
pub fn scenario(seed: u64, steps_max: u64, nodes: u16) -> (Arc<Graph>, Conditions) {
    let mut rng = Rng::new(seed);
    let graph = generate::graph(&mut rng, steps_max);
    let slots = if rng.chance(50) { 1 + rng.below(3) as u32 } else { 1 + rng.below(12) as u32 };
    let conditions = Conditions {
        nodes,
        capacity: Capacity { cpu_milli: *rng.pick(&[1000, 2000, 4000]), slots },
        crash: *rng.pick(&[0, 0, 2, 10]),
        hang: *rng.pick(&[0, 0, 1, 5]),
        store_bytes: *rng.pick(&[1_100, 5_000, 1_000_000]),
        start: match rng.below(8) {
            0 => Some(StartPolicy::Eager),
            1 => Some(StartPolicy::AllReady),
            _ => None,
        },
        trace: std::env::var_os("DFLOW_SIM_TRACE").is_some(),
    };
    (Arc::new(graph), conditions)
}

/// Runs a seed on so many nodes and checks all there is to check. Panics with what is wrong. Fewer steps make a smaller
/// counterexample.
pub fn run_seed(seed: u64, steps_max: u64, nodes: u16) -> Report {
    let (graph, conditions) = scenario(seed, steps_max, nodes);
    let report = simulate(&graph, seed, &conditions);
    let again = simulate(&graph, seed, &conditions);
    assert_eq!(report.hash, again.hash, "the same seed gave other effects");
    check(&graph, seed, &conditions, &report);
    report
}

/// Compares a run with the naive model.
pub fn check(graph: &Graph, seed: u64, conditions: &Conditions, report: &Report) {
    // Something that hangs may hold up others until they run out of time and of retries.
    let may_fail = |&(step, item): &(u32, u32)| {
        let impatient = graph.steps[step as usize].timeout_ms > 0 && conditions.hang > 0;
        truth::is_broken(seed, step, item) || impatient
    };
    match &report.result {
        Ok(()) => {
            let strange = report.failed.iter().find(|failed| !may_fail(failed));
            assert_eq!(strange, None, "failed for no reason\n{graph:#?}");
            let expected = match truth::expect(graph, &report.nonces, &report.failed) {
                Ok(expected) => expected,
                Err(why) => panic!("the run succeeded, yet {why}\n{graph:#?}"),
            };
            assert_eq!(report.skipped, expected.skipped, "skipped steps\n{graph:#?}");
            assert_eq!(report.outputs, expected.outputs, "run outputs\n{graph:#?}");
            // What was taken back after it had ended is not noted as such; the model knows.
            let mut ended = report.nonces.keys().copied().collect::<BTreeSet<_>>();
            ended.retain(|id| !expected.left_out.contains(id) && id.1 < expected.items[id.0 as usize]);
            assert_eq!(ended, expected.ended, "invocations\n{graph:#?}");
            let narrow =
                graph.steps.iter().filter_map(|step| step.foreach.as_ref()).any(|each| each.items_max < 4);
            // On several nodes an invocation may start on a word that is void before it has arrived.
            let alone = conditions.nodes == 1;
            if alone && conditions.crash + conditions.hang == 0 && report.failed.is_empty() && !narrow {
                let once = expected.ended.len() as u64;
                assert_eq!(report.attempts, once, "without faults nothing runs twice\n{graph:#?}");
            }
        }
        Err(RunError::Step { step, item, failure, .. }) => {
            let index = graph.steps.iter().position(|s| s.name == *step);
            let failed = index.is_some_and(|s| may_fail(&(s as u32, item.unwrap_or(0))));
            let each = index.and_then(|s| graph.steps[s].foreach.as_ref());
            let narrow = each.is_some_and(|each| each.items_max < 4);
            let too_many = failure.class == ErrorClass::Error("TooManyItems".into());
            let legitimate = if too_many { narrow } else { failed };
            assert!(legitimate, "the run failed for no reason: {step} {item:?} {failure:?}\n{graph:#?}");
        }
        Err(error) => panic!("the run failed for no reason: {error}\n{graph:#?}"),
    }
}
