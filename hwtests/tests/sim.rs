//! Thousands of random workflows on one node and on several, under crashes, hangs, timeouts, few slots and a nearly full store, with words and objects that
//! take their time. Each seed runs
//! twice and must give the same effects; each run must end with the right outputs or the right error.
//!
//! `DFLOW_SIM_SEEDS=N` sets the number of seeds, `DFLOW_SIM_SEED=S` replays one.

use dflow_hwtests::sim::{STEPS_MAX, run_seed};

const SEEDS: u64 = 30_000;

/// Seeds beyond these that have found something on several nodes.
const CAUGHT: [u64; 2] = [70_880, 88_689];

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[expect(clippy::print_stdout, reason = "says how much was tried")]
fn try_seeds(nodes: fn(u64) -> u16) {
    if let Some(seed) = number("DFLOW_SIM_SEED") {
        run_seed(seed, STEPS_MAX, nodes(seed));
        return;
    }
    let (mut failed, mut attempts) = (0, 0);
    let seeds = number("DFLOW_SIM_SEEDS").unwrap_or(SEEDS);
    for seed in 0..seeds {
        match std::panic::catch_unwind(|| run_seed(seed, STEPS_MAX, nodes(seed))) {
            Ok(report) => {
                failed += u64::from(report.result.is_err());
                attempts += report.attempts;
            }
            Err(_) => panic!(
                "seed {seed} fails; replay it: DFLOW_SIM_SEED={seed} cargo test -p dflow-hwtests --test sim"
            ),
        }
    }
    println!("{seeds} seeds, {attempts} attempts, {failed} runs failed as they had to");
    assert!(failed < seeds / 2, "most runs should succeed, or little is tested: {failed} of {seeds} failed");
}

fn several(seed: u64) -> u16 {
    2 + (seed % 3) as u16
}

#[test]
fn random_workflows_end_as_they_should() {
    try_seeds(|_| 1);
}

#[test]
fn random_workflows_on_several_nodes_end_as_they_should() {
    try_seeds(several);
}

#[test]
fn what_seeds_have_found_stays_mended() {
    for seed in CAUGHT {
        run_seed(seed, STEPS_MAX, several(seed));
    }
}
