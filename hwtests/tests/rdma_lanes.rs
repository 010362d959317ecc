//! Nodes with two cards each, whose links go over both. Cards are taken away and networks cut, so it needs a guest;
//! `DFLOW_GUEST` names one.

#![expect(clippy::print_stdout, reason = "its processes tell each other and the test on their stdout")]
#![cfg(feature = "rdma")]

use dflow_control::daemon::config::Settings;
use dflow_control::doctor::{Grade, examine};
use dflow_dataplane::transport::Transport;
use dflow_hwtests::guest::{Place, card_counter, is_guest, place_with_cards};
use dflow_hwtests::two_nodes::{BYTES, Owner, ROLE, Reader, be_the_owner, shell};
use std::path::Path;
use std::time::{Duration, Instant};

/// Node 0's, each in a network of its own.
const CARDS: [&str; 2] = ["rxe0", "rxe0_1"];
/// What a packet carries at the guest's MTU.
const PACKET: u64 = 4096;
const BOTH: [bool; 2] = [true, true];
const FIRST: [bool; 2] = [true, false];
const SECOND: [bool; 2] = [false, true];

/// Whether this process is a test's, in a guest; else it was another's, or there is nothing to do.
fn in_the_guest(name: &str) -> bool {
    if std::env::var(ROLE).is_ok() {
        be_the_owner();
        return false;
    }
    let Place::Here(_) = place_with_cards(name, 2, 2) else { return false };
    if !is_guest() {
        println!("SKIP rdma {name}: it would change this machine's network; a guest is needed");
    }
    is_guest()
}

/// Which of the cards the link goes over, as the transport tells people.
fn lanes(reader: &Reader) -> [bool; 2] {
    let path = reader.transport.path(reader.connection).expect("connected");
    CARDS.map(|card| path.transport == "rdma" && path.why.contains(&format!("{card} port 1")))
}

fn until_lanes(reader: &mut Reader, wanted: [bool; 2]) {
    let end = Instant::now() + Duration::from_secs(40);
    while lanes(reader) != wanted {
        assert!(Instant::now() < end, "not over {wanted:?}: {:?}", reader.transport.path(reader.connection));
        reader.poll();
    }
}

fn packets() -> [u64; 2] {
    CARDS.map(|card| card_counter(card, "rcvd_pkts"))
}

/// Reads everything, twice, all of it by RDMA; what each card brought, as the card has counted it.
fn carried(reader: &mut Reader, what: &str) -> [u64; 2] {
    let before = packets();
    for _ in 0..2 {
        let (card, streams) = reader.read_through(what, || None);
        assert_eq!((card, streams), (BYTES, 0), "{what}");
    }
    let after = packets();
    let bytes = [0, 1].map(|card| (after[card] - before[card]) * PACKET);
    println!(
        "rdma: {what}: of {} bytes {} brought {}, {} {}",
        2 * BYTES,
        CARDS[0],
        bytes[0],
        CARDS[1],
        bytes[1]
    );
    bytes
}

fn assert_both_carry(reader: &mut Reader, what: &str) {
    let bytes = carried(reader, what);
    assert!(bytes.iter().all(|bytes| *bytes >= 2 * BYTES / 3), "a third at the least: {bytes:?}");
}

#[test]
fn two_cards_share_a_transfer() {
    if !in_the_guest("two_cards_share_a_transfer") {
        return;
    }
    let owner = Owner::start("two_cards_share_a_transfer");
    let mut reader = Reader::connect();
    until_lanes(&mut reader, BOTH);
    // Buffers and the page for probes of each card, and the segment with each.
    assert_eq!(reader.transport.stats().registrations, 6);
    assert_both_carry(&mut reader, "two cards");
    let stats = reader.transport.stats();
    assert_eq!((stats.registrations, stats.downgrades), (6, 0));

    let findings = examine(&Settings::default(), Path::new("python3"));
    let finding = findings.iter().find(|finding| finding.check == "RDMA").expect("doctor looks at it");
    println!("rdma: doctor: {}", finding.found);
    assert!(CARDS.iter().all(|card| finding.found.contains(&format!("{card} port 1"))), "{finding:?}");
    assert_eq!(finding.grade, Grade::Ok);
    drop(owner);
}

#[test]
fn one_of_two_cards_is_removed() {
    if !in_the_guest("one_of_two_cards_is_removed") {
        return;
    }
    let owner = Owner::start("one_of_two_cards_is_removed");
    let mut reader = Reader::connect();
    until_lanes(&mut reader, BOTH);
    for (gone, left) in [(1, FIRST), (0, SECOND)] {
        let card = CARDS[gone];
        let downgrades = reader.transport.stats().downgrades;
        let (by_card, streams) = reader.read_through(&format!("{card} removed"), || {
            shell(&format!("rdma link delete {card}"));
            None
        });
        assert!(by_card > 0 && streams > 0, "{by_card} by RDMA, {streams} by streams");
        assert!(reader.gap < Duration::from_secs(1), "{:?}", reader.gap);
        until_lanes(&mut reader, left);
        assert!(reader.transport.stats().downgrades > downgrades);
        for what in ["one card is left", "still"] {
            let (by_card, streams) = reader.read_through(what, || None);
            assert_eq!((by_card, streams), (BYTES, 0), "{what}");
        }
        shell(&format!("rdma link add {card} type rxe netdev eth{gone}"));
        until_lanes(&mut reader, BOTH);
        assert_both_carry(&mut reader, &format!("{card} added again"));
    }
    // The owner's card goes, which its own transport is told of and ours hears from it.
    let (by_card, streams) = reader.read_through("the owner's second card removed", || {
        shell("rdma link delete rxe1_1");
        None
    });
    assert!(by_card > 0 && streams > 0, "{by_card} by RDMA, {streams} by streams");
    until_lanes(&mut reader, FIRST);
    let bytes = carried(&mut reader, "one card is left there");
    assert!(bytes[1] == 0 && bytes[0] >= 2 * BYTES, "{bytes:?}");
    shell("on 1 rdma link add rxe1_1 type rxe netdev eth1");
    until_lanes(&mut reader, BOTH);
    drop(owner);
}

/// Reads of many pieces, of which a slow network holds back every second one while the others come: when its card goes,
/// what came is not read again.
#[test]
fn gaps_are_filled_by_the_streams() {
    if !in_the_guest("gaps_are_filled_by_the_streams") {
        return;
    }
    shell("on 1 tc qdisc add dev eth1 root netem rate 100mbit");
    let owner = Owner::start("gaps_are_filled_by_the_streams");
    let mut reader = Reader::connect();
    reader.piece = 16 << 20;
    until_lanes(&mut reader, BOTH);
    let before = packets();
    let (by_card, streams) = reader.read_through("a slow network", || None);
    assert_eq!((by_card, streams), (BYTES, 0));
    let after = packets();
    let bytes = [0, 1].map(|card| (after[card] - before[card]) * PACKET);
    println!("rdma: a slow network: {} brought {}, {} {}", CARDS[0], bytes[0], CARDS[1], bytes[1]);
    assert!(bytes[0] > bytes[1], "the slower one gets less");
    for _ in 0..3 {
        // `read_through` asserts that no byte is counted twice, and looks at each.
        let (by_card, streams) = reader.read_through("the slow network's card removed", || {
            shell("rdma link delete rxe0_1");
            None
        });
        assert!(by_card > 0 && streams > 0, "{by_card} by RDMA, {streams} by streams");
        shell("rdma link add rxe0_1 type rxe netdev eth1");
        until_lanes(&mut reader, BOTH);
    }
    drop(owner);
}

#[test]
fn two_cards_against_one() {
    if !in_the_guest("two_cards_against_one") {
        return;
    }
    for (there, gone, wanted) in [("rxe1", 1, FIRST), ("rxe1_1", 0, SECOND)] {
        let card = ["rxe1", "rxe1_1"][gone];
        shell(&format!("rdma link delete {card}"));
        let owner = Owner::start("two_cards_against_one");
        let mut reader = Reader::connect();
        until_lanes(&mut reader, wanted);
        let bytes = carried(&mut reader, &format!("two cards against {there}"));
        assert!(bytes[gone] == 0 && bytes[1 - gone] >= 2 * BYTES, "{bytes:?}");
        assert_eq!(reader.transport.stats().downgrades, 0);
        drop((reader, owner));
        shell(&format!("on 1 rdma link add {card} type rxe netdev eth{gone}"));
    }
}

/// A network that loses everything, also when it is not even known any more where the peer is: the lane over it is left
/// out, and the other does not wait long.
#[test]
fn a_dead_network_costs_its_lane_only() {
    if !in_the_guest("a_dead_network_costs_its_lane_only") {
        return;
    }
    for known in [true, false] {
        if known {
            shell(
                "for n in 0 1; do mac=$(on $((1 - n)) cat /sys/class/net/eth1/address) && \
                 on $n ip neigh replace 10.78.0.$((2 - n)) lladdr $mac dev eth1 nud permanent || exit 1; done",
            );
        } else {
            shell("for n in 0 1; do on $n ip neigh del 10.78.0.$((2 - n)) dev eth1 || exit 1; done");
        }
        shell("for n in 0 1; do on $n tc qdisc add dev eth1 root netem loss 100% || exit 1; done");
        let owner = Owner::start("a_dead_network_costs_its_lane_only");
        let begin = Instant::now();
        let mut reader = Reader::connect();
        let told = begin.elapsed();
        until_lanes(&mut reader, FIRST);
        let why = reader.transport.path(reader.connection).expect("connected").why;
        println!(
            "rdma: second network dead, neighbours known: {known}: connected after {} ms, RDMA after {} ms, of which the \
             owner took some to start: {why}",
            told.as_millis(),
            begin.elapsed().as_millis()
        );
        let bytes = carried(&mut reader, "over the other network");
        let begin = Instant::now();
        assert!(bytes[0] >= 2 * BYTES, "{bytes:?}");
        assert_eq!(reader.transport.stats().downgrades, 0);
        shell("for n in 0 1; do on $n tc qdisc del dev eth1 root || exit 1; done");
        until_lanes(&mut reader, BOTH);
        println!("rdma: over both {} ms after the network was mended", begin.elapsed().as_millis());
        assert_both_carry(&mut reader, "mended");
        drop((reader, owner));
    }
}
