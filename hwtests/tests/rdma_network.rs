//! Networks that are not as they should be: ports with packets of different length, and a card without an address.
//! They are made so, which needs a guest; `DFLOW_GUEST` names one.

#![expect(clippy::print_stdout, reason = "its processes tell each other and the test on their stdout")]
#![cfg(feature = "rdma")]

use dflow_control::daemon::config::Settings;
use dflow_control::doctor::{Grade, examine};
use dflow_dataplane::transport::rdma::look;
use dflow_dataplane::transport::{Backend, Config, Epoch, NodeId, OpenError, Secret, Transport, open};
use dflow_hwtests::guest::{Place, card_counter, is_guest, place};
use dflow_hwtests::two_nodes::{BYTES, Owner, ROLE, Reader, be_the_owner, shell};
use std::path::Path;
use std::time::{Duration, Instant};

/// Whether this process is a test's, in a guest; else it was another's, or there is nothing to do.
fn in_the_guest(name: &str) -> bool {
    if std::env::var(ROLE).is_ok() {
        be_the_owner();
        return false;
    }
    let Place::Here(_) = place(name, 2) else { return false };
    if !is_guest() {
        println!("SKIP rdma {name}: it would change this machine's network; a guest is needed");
    }
    is_guest()
}

/// Gives the interfaces of nodes 0 and 1 these MTUs, and waits until their cards have followed.
fn set_mtu(of: [u32; 2]) {
    for (node, mtu) in of.iter().enumerate() {
        shell(&format!("on {node} ip link set eth0 mtu {mtu}"));
    }
    std::thread::sleep(Duration::from_millis(200));
}

/// The packet of either card is the largest of 256 to 4096 bytes that its interface can carry, and a link's is the
/// smaller of the two: the number of packets that bring the bytes tells which was agreed.
#[test]
fn unequal_packets() {
    if !in_the_guest("unequal_packets") {
        return;
    }
    for (mtu, packet) in
        [([4200, 4200], 4096), ([4200, 1500], 1024), ([1500, 4200], 1024), ([4200, 2200], 2048)]
    {
        set_mtu(mtu);
        let owner = Owner::start("unequal_packets");
        let mut reader = Reader::connect();
        reader.until_on_rdma();
        let before = card_counter("rxe0", "rcvd_pkts");
        let what = format!("MTU {} here, {} there", mtu[0], mtu[1]);
        let (card, _) = reader.read_through(&what, || None);
        assert_eq!(card, BYTES, "{what}: all by RDMA");
        let packets = card_counter("rxe0", "rcvd_pkts") - before;
        println!("rdma: {what}: {} bytes a packet", BYTES / packets);
        let least = BYTES / packet;
        assert!(
            (least..least + least / 4).contains(&packets),
            "{what}: {packets} packets, not {least} or some more"
        );
        assert_eq!(reader.transport.stats().downgrades, 0, "{what}");
        drop((reader, owner));
    }
}

/// A card on an interface without an address, beside the one that TCP uses.
#[test]
fn a_card_without_an_address() {
    if !in_the_guest("a_card_without_an_address") {
        return;
    }
    shell(
        "rdma link delete rxe0 && ip link add bare type dummy && ip link set bare up && \
         rdma link add rxe0 type rxe netdev bare",
    );
    let end = Instant::now() + Duration::from_secs(20);
    let why = loop {
        match look(None, None) {
            // Its table still has an address of the card before it, or the card is not listed yet.
            Err(error) if error.to_string().contains("rxe0") => break error.to_string(),
            other => assert!(Instant::now() < end, "{other:?}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    println!("rdma: a card without an address: {why}");
    assert!(why.contains("rxe0 port 1 has no address that belongs to this host"), "{why}");
    assert!(why.contains("give its interface one"), "{why}");

    let findings = examine(&Settings::default(), Path::new("python3"));
    let finding = findings.iter().find(|finding| finding.check == "RDMA").expect("doctor looks at it");
    assert_eq!(finding.grade, Grade::Warn);
    assert!(finding.found.contains(&why) && finding.means.contains("go over TCP"), "{finding:?}");

    let mut config = Config::new("faults", NodeId(7), Epoch(1), Secret::new("for tests"));
    config.listen = Some("10.77.0.1:7712".parse().expect("an address"));
    match open(config, Backend::Rdma) {
        Err(OpenError::Card(error)) => assert_eq!(error.to_string(), why),
        Err(error) => panic!("{error}"),
        Ok((_, chosen)) => panic!("{} was chosen: {}", chosen.name, chosen.reason),
    }

    let owner = Owner::start("a_card_without_an_address");
    let (mut reader, chosen) = Reader::connect_as_chosen();
    assert_ne!(chosen.name, "rdma");
    assert!(chosen.reason.contains(&format!("no RDMA: {why}")), "{}", chosen.reason);
    let (card, streams) = reader.read_through("a card without an address", || None);
    assert_eq!((card, streams), (0, BYTES));
    drop((reader, owner));

    shell("ip addr add 10.78.0.1/24 dev bare");
    let end = Instant::now() + Duration::from_secs(20);
    while let Err(error) = look(None, None) {
        assert!(Instant::now() < end, "an address mends it: {error}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
