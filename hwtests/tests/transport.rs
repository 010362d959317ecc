//! Every transport is held to the same laws.

use dflow_dataplane::transport::faulty::Faults;
use dflow_hwtests::conformance::worlds::{Failing, OnTcp, OnUring, Sim};
use dflow_hwtests::conformance::{World, faults, laws};

/// One law in every world.
macro_rules! law {
    ($($module:ident::$law:ident),* $(,)?) => {
        mod on_sim {
            use super::*;
            $(#[test] fn $law() {
                for seed in 0..3 {
                    $module::$law(Sim::new(seed));
                }
            })*
        }
        mod on_tcp {
            use super::*;
            $(#[test] fn $law() {
                $module::$law(OnTcp);
            })*
        }
        mod on_uring {
            use super::*;
            $(#[test] fn $law() {
                if let Some(world) = OnUring::new() {
                    $module::$law(world);
                }
            })*
        }
        mod on_stalling_sim {
            use super::*;
            $(#[test] fn $law() {
                $module::$law(Failing(Sim::new(4), Faults::stalls(1)));
            })*
        }
        mod on_stalling_tcp {
            use super::*;
            $(#[test] fn $law() {
                $module::$law(Failing(OnTcp, Faults::stalls(2)));
            })*
        }
        mod on_stalling_uring {
            use super::*;
            $(#[test] fn $law() {
                if let Some(world) = OnUring::new() {
                    $module::$law(Failing(world, Faults::stalls(3)));
                }
            })*
        }
    };
}

law!(
    laws::reads_bring_the_bytes,
    laws::both_ways,
    laws::ten_thousand_reads,
    laws::messages_in_order,
    laws::full_is_pressure,
    laws::regions_are_checked,
    laws::strangers_are_refused,
    laws::a_restarted_node_replaces_itself,
    laws::cancels,
    laws::small_overtakes_bulk,
    laws::close_completes_everything,
    laws::a_waker_wakes,
    faults::a_peer_dies,
    faults::a_peer_hangs,
    faults::late_answers_are_dropped,
    faults::dials_end,
    faults::garbage_at_the_door,
    faults::misbehaviour_inside,
    faults::a_lying_owner,
    faults::severed_anywhere,
);

fn storm<W: World>(make: impl Fn() -> W, seeds: u64) {
    for seed in 1..=seeds {
        faults::a_storm_is_survived(Failing(make(), Faults::storm(seed)));
    }
}

#[test]
fn a_storm_in_simulation() {
    storm(|| Sim::new(9), 10);
}

#[test]
fn a_storm_over_tcp() {
    storm(|| OnTcp, 3);
}

#[test]
fn a_storm_over_uring() {
    if OnUring::new().is_some() {
        storm(|| OnUring::new().expect("it was there"), 3);
    }
}
