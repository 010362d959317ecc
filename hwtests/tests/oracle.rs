//! The scheduler against a naive model that recomputes a whole run: proptest looks for a random workflow on which
//! they differ, or on which a law breaks (start policies, tokens, slots, workers, releases, no deadlock with one to three
//! slots), and shrinks it to few steps.

use dflow_hwtests::sim::{STEPS_MAX, run_seed};
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn the_scheduler_does_what_the_model_says(seed in any::<u64>(), steps_max in 1..=STEPS_MAX) {
        run_seed(seed, steps_max, 1);
    }
}
