//! Peers that lie about RDMA, keep silent about it, or do not take what they are sent, and what a connection costs: on
//! this machine's card, or on Soft-RoCE in a guest kernel.
//!
//! Here owners lie about keys. What a reader's card then asks the owner's card for is what a reader that invents keys
//! would ask for, so both directions of distrust are tested by it.

#![cfg(feature = "rdma")]

use dflow_dataplane::transport::rdma::discover::Choice;
use dflow_dataplane::transport::{Completion, ConnectionId, Epoch, NodeId, Op, OpError, Region, Transport};
use dflow_hwtests::conformance::forge::{Forge, Forged, Said};
use dflow_hwtests::conformance::worlds::OnRdma;
use dflow_hwtests::conformance::{Bed, assert_read};
use dflow_hwtests::guest::{Place, card_counter, is_guest, place, place_with_cards};
use dflow_proto::wire::ErrorCode;
use dflow_proto::wire::pairing::{Aside, Key};
use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;
/// What a lease holds before a read that must not change it.
const UNTOUCHED: u8 = 0xEE;
const READER: NodeId = NodeId(1);
const LIAR: NodeId = NodeId(2);
const VAULT: NodeId = NodeId(3);

/// What the liar says of its segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lie {
    /// The truth.
    None,
    /// The key and address of the vault, whose transport has a security domain of its own.
    OtherDomain,
    /// A key that nobody has.
    Invented,
    /// The key of its registration before this one.
    Ended,
    /// An address so near the end of the segment that a read goes past it.
    PastTheEnd,
    /// A length that the segment does not have.
    Longer,
    /// Not that a registration has ended.
    Kept,
}

#[derive(Default)]
struct Lies {
    lie: Option<Lie>,
    vault: Option<Key>,
    first: Option<Key>,
}

impl Lies {
    fn say(&mut self, node: NodeId, aside: &Aside<'_>) -> Said {
        let lie = self.lie.unwrap_or(Lie::None);
        let key = match aside {
            Aside::Key(key) => *key,
            Aside::Revoke { .. } if node == LIAR && lie == Lie::Kept => return Said::Nothing,
            _ => return Said::AsItIs,
        };
        match node {
            VAULT => self.vault = Some(key),
            LIAR => {
                self.first.get_or_insert(key);
            }
            _ => {}
        }
        let said = match (node, lie) {
            (LIAR, Lie::OtherDomain) => {
                let vault = self.vault.expect("it has spoken");
                Key { address: vault.address, keys: vault.keys, ..key }
            }
            (LIAR, Lie::Invented) => Key { keys: key.keys.map(|key| Some(key? ^ 0x5a17_3c00)), ..key },
            (LIAR, Lie::Ended) => Key { keys: self.first.expect("noted above").keys, ..key },
            (LIAR, Lie::PastTheEnd) => Key { address: key.address + key.bytes - 64 * 1024, ..key },
            (LIAR, Lie::Longer) => Key { bytes: key.bytes + MIB, ..key },
            _ => return Said::AsItIs,
        };
        Said::Instead(Box::new(Aside::Key(said)))
    }
}

/// A bed of three nodes of which the second lies, and its lies.
fn bed_with_a_liar(choice: &Choice) -> (Bed<Forged>, Rc<RefCell<Lies>>) {
    let lies = Rc::new(RefCell::new(Lies::default()));
    let forge: Forge = Rc::new(RefCell::new({
        let lies = lies.clone();
        move |node, aside: &Aside<'_>| lies.borrow_mut().say(node, aside)
    }));
    (Bed::new(Forged(choice.clone(), forge), 3, |_| {}), lies)
}

fn transport_of<W>(bed: &Bed<W>, node: usize, connection: ConnectionId) -> &'static str
where
    W: dflow_hwtests::conformance::World,
{
    bed.nodes[node].transport.path(connection).map_or("none", |path| path.transport)
}

fn until_on_rdma<W>(bed: &mut Bed<W>, node: usize, connection: ConnectionId)
where
    W: dflow_hwtests::conformance::World,
{
    bed.until("RDMA is up", |bed| transport_of(bed, node, connection) == "rdma");
}

/// Node 0 reads `bytes` at `offset`, into memory that holds [`UNTOUCHED`].
fn read<W>(bed: &mut Bed<W>, connection: ConnectionId, region: Region, offset: u64, bytes: u64) -> Completion
where
    W: dflow_hwtests::conformance::World,
{
    let into = bed.nodes[0].room(0, bytes);
    into.copy_in(0, &vec![UNTOUCHED; bytes as usize]);
    let deadline = bed.nodes[0].in_ms(30_000);
    bed.nodes[0].submit(Op::Read { connection, region, offset, into, deadline, tag: offset });
    bed.settle(0).remove(0)
}

fn assert_untouched(completion: &Completion) {
    let lease = completion.lease.as_ref().expect("a read has a lease");
    let mut have = vec![0; lease.bytes()];
    lease.copy_out(0, &mut have);
    assert!(have.iter().all(|byte| *byte == UNTOUCHED), "bytes of the owner came with the refusal");
}

/// Node 0 reads by RDMA, nothing by streams; and the liar reads of node 0.
fn assert_rdma_works(bed: &mut Bed<Forged>, connection: ConnectionId, region: Region) {
    until_on_rdma(bed, 0, connection);
    let before = bed.nodes[0].transport.path(connection).expect("open");
    assert_read(&read(bed, connection, region, 7, 3 * MIB), LIAR, 7);
    let after = bed.nodes[0].transport.path(connection).expect("open");
    assert_eq!(after.rdma_bytes - before.rdma_bytes, 3 * MIB, "{after:?}");
    let (back, own) = (bed.nodes[1].connection_to(READER).expect("open"), bed.region(0));
    until_on_rdma(bed, 1, back);
    bed.nodes[1].read(back, own, 99, 0, MIB);
    assert_read(&bed.settle(1).remove(0), READER, 99);
}

#[test]
fn wrong_keys_open_nothing() {
    let Place::Here(choice) = place("wrong_keys_open_nothing", 1) else { return };
    for lie in
        [Lie::None, Lie::OtherDomain, Lie::Invented, Lie::Ended, Lie::PastTheEnd, Lie::Longer, Lie::Kept]
    {
        let (mut bed, lies) = bed_with_a_liar(&choice);
        let vault = bed.connect(2, 0);
        until_on_rdma(&mut bed, 2, vault);
        let mut region = bed.region(1);
        let (early, again) = (matches!(lie, Lie::Ended | Lie::Kept), lie == Lie::Ended);
        lies.borrow_mut().lie = (!early).then_some(lie);
        let connection = bed.connect(0, 1);
        until_on_rdma(&mut bed, 0, connection);
        let map = bed.nodes[1].map.clone();
        if early {
            assert_read(&read(&mut bed, connection, region, 7, MIB), LIAR, 7);
            lies.borrow_mut().lie = Some(lie);
            assert!(bed.nodes[1].transport.deregister(region));
        }
        if again {
            region = bed.nodes[1].transport.register(&map);
        }
        // The owner's words arrive before it is read.
        bed.pass(50);
        let before = bed.nodes[0].transport.path(connection).expect("open");
        let offset = if lie == Lie::Longer { region.bytes } else { 7 };
        let completion = read(&mut bed, connection, region, offset, MIB);
        let after = bed.nodes[0].transport.path(connection).expect("open");
        let by_card = after.rdma_bytes - before.rdma_bytes;
        println!(
            "rdma: {lie:?}: {:?}, {by_card} bytes by RDMA; now {}: {}",
            completion.result, after.transport, after.why
        );
        let refused = match lie {
            Lie::Longer => Some(ErrorCode::OutOfRange(region.bytes)),
            Lie::Kept => Some(ErrorCode::NoRegion),
            _ => None,
        };
        match refused {
            Some(code) => {
                assert_eq!(completion.result, Err(OpError::Remote(code)), "{lie:?}");
                assert_untouched(&completion);
            }
            None => assert_read(&completion, LIAR, 7),
        }
        let downgrades = bed.nodes[0].transport.stats().downgrades;
        if lie == Lie::None {
            assert_eq!((by_card, downgrades), (MIB, 0));
        } else {
            assert_eq!((by_card, downgrades), (0, 1), "the card refused, and the streams took over");
            assert!(after.why.contains("remote access error"), "{}", after.why);
        }
        lies.borrow_mut().lie = None;
        if lie == Lie::Kept {
            region = bed.nodes[1].transport.register(&map);
        }
        assert_rdma_works(&mut bed, connection, region);
        // The bystander's link never broke.
        assert_eq!((transport_of(&bed, 2, vault), bed.nodes[2].transport.stats().downgrades), ("rdma", 0));
    }
}

#[test]
fn a_region_of_another_epoch_is_not_read_by_the_card() {
    let Place::Here(choice) = place("a_region_of_another_epoch_is_not_read_by_the_card", 1) else { return };
    let mut bed = Bed::new(OnRdma(choice), 2, |_| {});
    let connection = bed.connect(0, 1);
    until_on_rdma(&mut bed, 0, connection);
    let stale = Region { epoch: Epoch(6), ..bed.region(1) };
    for bytes in [10, 4 * MIB] {
        let completion = read(&mut bed, connection, stale, 0, bytes);
        assert_eq!(completion.result, Err(OpError::Remote(ErrorCode::StaleEpoch(7))));
        assert_untouched(&completion);
    }
    let path = bed.nodes[0].transport.path(connection).expect("open");
    assert_eq!((path.transport, path.rdma_bytes), ("rdma", 0), "the link is not blamed");
    let region = bed.region(1);
    assert_read(&read(&mut bed, connection, region, 5, MIB), LIAR, 5);
    assert_eq!(bed.nodes[0].transport.stats().rdma_bytes, MIB);
}

/// A node that does not say one of the three words by which a link is made.
#[test]
fn silence_in_the_handshake_leaves_tcp() {
    let Place::Here(choice) = place("silence_in_the_handshake_leaves_tcp", 1) else { return };
    for word in ["offer", "answer", "ready"] {
        let silent = Rc::new(RefCell::new(true));
        let forge: Forge = Rc::new(RefCell::new({
            let silent = silent.clone();
            move |node: NodeId, aside: &Aside<'_>| {
                let unsaid = match aside {
                    Aside::Offer { .. } => word == "offer" && node == NodeId(1),
                    Aside::Answer { .. } => word == "answer" && node == NodeId(2),
                    Aside::Ready { .. } => word == "ready" && node == NodeId(1),
                    _ => false,
                };
                if unsaid && *silent.borrow() { Said::Nothing } else { Said::AsItIs }
            }
        }));
        let mut bed = Bed::new(Forged(choice.clone(), forge), 3, |_| {});
        let begin = Instant::now();
        let connection = bed.connect(0, 1);
        let told = begin.elapsed();
        assert!(told < Duration::from_secs(1), "the application is not kept waiting: {told:?}");
        let back = bed.nodes[1].connection_to(NodeId(1)).expect("open");
        assert_ne!(transport_of(&bed, 1, back), "rdma");
        // Reads begin before anybody has given up.
        let regions = [bed.region(0), bed.region(1)];
        for at in 0..4 {
            bed.nodes[0].read(connection, regions[1], at * MIB, at * MIB, MIB);
            bed.nodes[1].read(back, regions[0], at * MIB, at * MIB, MIB);
        }
        for (node, of) in [(0, NodeId(2)), (1, NodeId(1))] {
            let completions = bed.settle(node);
            assert_eq!(completions.len(), 4);
            completions.iter().for_each(|completion| assert_read(completion, of, completion.tag));
        }
        let path = bed.nodes[1].transport.path(back).expect("open");
        assert_eq!((path.rdma_bytes, path.stream_bytes), (0, 4 * MIB), "{path:?}");
        bed.until("it is given up", |bed| {
            let why = bed.nodes[0].transport.path(connection).expect("open").why;
            why.contains("in time") || why.contains("probe did not come back")
        });
        let gave_up = begin.elapsed();
        assert!(gave_up < Duration::from_secs(5), "{gave_up:?}");
        // With everybody else there is RDMA.
        let other = bed.connect(2, 0);
        until_on_rdma(&mut bed, 2, other);
        bed.nodes[2].read(other, regions[0], 3, 0, MIB);
        assert_read(&bed.settle(2).remove(0), NodeId(1), 3);
        assert_eq!(bed.nodes[2].transport.path(other).expect("open").rdma_bytes, MIB);
        let why = bed.nodes[0].transport.path(connection).expect("open").why;
        println!(
            "rdma: no {word}: connected after {} ms, given up after {} ms: {why}",
            told.as_millis(),
            gave_up.as_millis()
        );
        *silent.borrow_mut() = false;
        for (node, connection) in [(0, connection), (1, back)] {
            until_on_rdma(&mut bed, node, connection);
        }
        assert_read(&read(&mut bed, connection, regions[1], 11, MIB), NodeId(2), 11);
    }
}

/// More messages than the receiver has buffers for, while it does not poll.
#[test]
fn a_dry_receive_queue_loses_nothing() {
    const MESSAGES: u64 = 600;
    let Place::Here(choice) = place("a_dry_receive_queue_loses_nothing", 1) else { return };
    let device = choice.ports[0].device.clone();
    let refusals = || match is_guest() {
        true => card_counter(&device, "rcvd_rnr_err") + card_counter(&device, "send_rnr_err"),
        false => 0,
    };
    let mut bed = Bed::new(OnRdma(choice), 2, |_| {});
    let connection = bed.connect(0, 1);
    until_on_rdma(&mut bed, 0, connection);
    let back = bed.nodes[1].connection_to(NodeId(1)).expect("open");
    until_on_rdma(&mut bed, 1, back);
    let region = bed.region(1);
    let before = refusals();
    for number in 0..MESSAGES {
        // Short ones and long ones: some inside their work request, some from a buffer.
        let mut message = number.to_le_bytes().to_vec();
        message.resize(if number % 2 == 0 { 64 } else { 1024 }, number as u8);
        bed.nodes[0].send(connection, message);
        // What the card has no place for goes over the streams, so it is given time while it needs little.
        let until = Instant::now() + Duration::from_millis(5);
        bed.until_without("the card sends", 1, |bed| {
            bed.nodes[0].under_way() == 0 || Instant::now() >= until
        });
    }
    // A read behind them waits its turn.
    bed.nodes[0].read(connection, region, 77, 0, MIB);
    let until = Instant::now() + Duration::from_secs(2);
    bed.until_without("the receiver is stopped for a while", 1, |_| Instant::now() >= until);
    let (waiting, dry) = (bed.nodes[0].under_way(), refusals() - before);
    assert!(waiting > 0, "the receiver's buffers held everything: nothing is tested");
    assert!(dry > 0 || !is_guest(), "the card was never told to wait");
    let begin = Instant::now();
    bed.until("all messages arrive", |bed| bed.nodes[1].messages.len() as u64 == MESSAGES);
    let took = begin.elapsed();
    for (number, (_, message)) in bed.nodes[1].messages.iter().enumerate() {
        assert_eq!(message[..8], (number as u64).to_le_bytes(), "each once, in order");
        assert_eq!(message.len(), if number % 2 == 0 { 64 } else { 1024 });
        assert!(message[8..].iter().all(|byte| *byte == number as u8));
    }
    let completions = bed.settle(0);
    assert_eq!(completions.len() as u64, MESSAGES + 1);
    let reads: Vec<_> = completions.iter().filter(|completion| completion.lease.is_some()).collect();
    assert_read(reads[0], NodeId(2), 77);
    assert!(completions.iter().all(|completion| completion.result == Ok(())));
    println!(
        "rdma: receive queue dry for {MESSAGES} messages: {waiting} operations waited, the card was told to wait {dry} times, all \
         there {} ms after the receiver looked",
        took.as_millis()
    );
    assert_eq!((transport_of(&bed, 0, connection), bed.nodes[0].transport.stats().downgrades), ("rdma", 0));
    assert_read(&read(&mut bed, connection, region, 5, MIB), NodeId(2), 5);
}

#[test]
fn a_steady_state_registers_nothing() {
    const ROUNDS: u64 = 16;
    let Place::Here(choice) = place("a_steady_state_registers_nothing", 1) else { return };
    let mut bed = Bed::new(OnRdma(choice), 2, |_| {});
    let connection = bed.connect(0, 1);
    until_on_rdma(&mut bed, 0, connection);
    let region = bed.region(1);
    let registrations =
        |bed: &Bed<OnRdma>| [0, 1].map(|node: usize| bed.nodes[node].transport.stats().registrations);
    let before = registrations(&bed);
    // The segment, the buffers for messages and the page for probes.
    assert_eq!(before, [3, 3]);
    for round in 0..ROUNDS {
        for (at, bytes) in [(0, 16 * MIB), (16 * MIB, 1000), (17 * MIB, 300_000)] {
            bed.nodes[0].read(connection, region, round, at, bytes);
        }
        bed.nodes[0].send(connection, vec![1; 100]);
        bed.nodes[0].send(connection, vec![2; 5000]);
        let completions = bed.settle(0);
        completions
            .iter()
            .filter(|completion| completion.lease.is_some())
            .for_each(|completion| assert_read(completion, NodeId(2), round));
    }
    let bytes = ROUNDS * (16 * MIB + 301_000);
    assert_eq!(bed.nodes[0].transport.stats().rdma_bytes, bytes, "all came by RDMA");
    assert_eq!(registrations(&bed), before, "{bytes} bytes were read without one");
    println!("rdma: registrations while {bytes} bytes were read: 0 at either end");
}

/// Bytes that the card's driver has mapped into this process.
fn mapped_by_the_driver() -> usize {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("a process can read its own maps");
    let of = |line: &str| {
        let (from, to) = line.split(' ').next()?.split_once('-')?;
        Some(usize::from_str_radix(to, 16).ok()? - usize::from_str_radix(from, 16).ok()?)
    };
    maps.lines().filter(|line| line.contains("/uverbs")).filter_map(of).sum()
}

#[test]
fn a_connection_takes_little_memory() {
    if let Place::Here(choice) = place("a_connection_takes_little_memory", 1) {
        take_little_memory(choice);
    }
}

/// As many lanes as a link may have: they share what one would take.
#[test]
fn a_connection_over_four_cards_takes_little_memory() {
    let Place::Here(choice) = place_with_cards("a_connection_over_four_cards_takes_little_memory", 1, 4)
    else {
        return;
    };
    match choice.ports.len() {
        1 => println!("SKIP rdma over several cards: there is one: {choice}"),
        _ => take_little_memory(choice),
    }
}

#[expect(clippy::print_stdout, reason = "it tells what it has measured")]
fn take_little_memory(choice: Choice) {
    const CONNECTIONS: usize = 12;
    const BYTES_MAX: usize = 64 << 10;
    let cards = choice.ports.len();
    let mut bed = Bed::new(OnRdma(choice), 2, |_| {});
    let region = bed.region(1);
    let before = mapped_by_the_driver();
    let connections: Vec<ConnectionId> = (0..CONNECTIONS)
        .map(|_| {
            let connection = bed.connect(0, 1);
            until_on_rdma(&mut bed, 0, connection);
            connection
        })
        .collect();
    // Used as much as they can be, so that what grows has grown.
    for connection in &connections {
        for at in 0..100 {
            bed.nodes[0].send(*connection, vec![at as u8; 100]);
            bed.nodes[0].read(*connection, region, at, at * 32, 32);
        }
        bed.settle(0);
    }
    // Both ends are in this process.
    let driver = (mapped_by_the_driver() - before) / (2 * CONNECTIONS);
    let own = connections
        .iter()
        .map(|connection| bed.nodes[0].transport.link_bytes(*connection).expect("open"))
        .max()
        .expect("some");
    println!(
        "rdma: a connection over {cards} cards takes {own} bytes of ours and {driver} of the driver's, {CONNECTIONS} \
         connections"
    );
    assert!(driver > 0 || !is_guest(), "Soft-RoCE maps its queues");
    assert!(own + driver <= BYTES_MAX, "{own} and {driver} bytes");
}
