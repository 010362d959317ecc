//! The laws of transports over RDMA: on this machine's card, or on Soft-RoCE in a guest kernel.
#![cfg(feature = "rdma")]

use dflow_dataplane::transport::faulty::Faults;
use dflow_dataplane::transport::uring::Probe;
use dflow_hwtests::conformance::worlds::{Failing, OnRdma, OnRdmaAndUring};
use dflow_hwtests::conformance::{World, faults, laws};
use dflow_hwtests::guest::{Place, place, place_with_cards};

/// All laws, one after the other, so that one guest serves them all.
macro_rules! laws {
    ($world:expr; $($module:ident::$law:ident),* $(,)?) => {
        $({
            let begin = std::time::Instant::now();
            $module::$law($world);
            println!("rdma: {} holds, {} ms", stringify!($law), begin.elapsed().as_millis());
        })*
    };
}

fn all_laws<W: World>(world: impl Fn() -> W) {
    laws!(world();
        laws::reads_bring_the_bytes,
        laws::both_ways,
        laws::ten_thousand_reads,
        laws::messages_in_order,
        laws::a_greeting_is_heard,
        laws::full_is_pressure,
        laws::regions_are_checked,
        laws::strangers_are_refused,
        laws::a_restarted_node_replaces_itself,
        laws::cancels,
        laws::small_overtakes_bulk,
        laws::close_completes_everything,
        laws::a_waker_wakes,
        laws::a_watched_descriptor_wakes,
        faults::a_peer_dies,
        faults::a_peer_hangs,
        faults::late_answers_are_dropped,
        faults::dials_end,
        faults::garbage_at_the_door,
        faults::misbehaviour_inside,
        faults::a_lying_owner,
        faults::severed_anywhere,
    );
}

#[test]
fn the_laws_hold_beside_sockets() {
    if let Place::Here(choice) = place("the_laws_hold_beside_sockets", 1) {
        all_laws(|| OnRdma(choice.clone()));
    }
}

#[test]
fn the_laws_hold_beside_io_uring() {
    if let Place::Here(choice) = place("the_laws_hold_beside_io_uring", 1) {
        match Probe::look() {
            Ok(probe) => all_laws(|| OnRdmaAndUring(choice.clone(), probe.clone())),
            Err(why) => println!("SKIP rdma beside io_uring: {why}"),
        }
    }
}

#[test]
fn the_laws_hold_when_completions_stall() {
    if let Place::Here(choice) = place("the_laws_hold_when_completions_stall", 1) {
        all_laws(|| Failing(OnRdma(choice.clone()), Faults::stalls(5)));
    }
}

#[test]
fn a_storm_over_rdma() {
    if let Place::Here(choice) = place("a_storm_over_rdma", 1) {
        for seed in 1..=2 {
            faults::a_storm_is_survived(Failing(OnRdma(choice.clone()), Faults::storm(seed)));
        }
    }
}

#[test]
fn the_laws_hold_over_two_cards() {
    let Place::Here(choice) = place_with_cards("the_laws_hold_over_two_cards", 1, 2) else { return };
    if choice.ports.len() < 2 {
        return println!("SKIP rdma over two cards: there is one: {choice}");
    }
    all_laws(|| OnRdma(choice.clone()));
    faults::a_storm_is_survived(Failing(OnRdma(choice.clone()), Faults::storm(3)));
}
