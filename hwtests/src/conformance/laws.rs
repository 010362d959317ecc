//! What holds between peers that keep to the protocol.

use super::{Bed, World, assert_bytes, assert_read};
use dflow_dataplane::transport::{Broken, Config, Epoch, NodeId, Op, OpError, RefusedWhy, Secret, Transport};
use dflow_proto::wire::ErrorCode;
use dflow_proto::wire::handshake::{HandshakeError, Refusal};
use rustix::event::{EventfdFlags, eventfd};
use std::time::Duration;

fn defaults(_: &mut Config) {}

/// Reads of all sizes bring exactly the bytes asked for, and touch nothing beside them.
pub fn reads_bring_the_bytes<W: World>(world: W) {
    let mut bed = Bed::new(world, 2, |config| config.checksum = true);
    let connection = bed.connect(0, 1);
    let sizes = [0, 1, 7, 1000, 16 << 10, (16 << 10) + 1, 100_001, (1 << 20) + 3, 16 << 20];
    let region = bed.region(1);
    for (index, bytes) in sizes.into_iter().enumerate() {
        let offset = 13 * index as u64;
        let guard = bed.nodes[0].room(0, bytes + 16);
        guard.copy_in(0, &vec![0xEE; bytes as usize + 16]);
        bed.nodes[0].read(connection, region, offset, 5, bytes);
        let completions = bed.settle(0);
        assert_read(&completions[0], NodeId(2), offset);
        let mut around = vec![0; bytes as usize + 16];
        guard.copy_out(0, &mut around);
        assert!(around[..5].iter().chain(&around[5 + bytes as usize..]).all(|byte| *byte == 0xEE));
    }
    assert_eq!(bed.nodes[0].transport.stats().read_bytes, sizes.iter().sum::<u64>());
    if !bed.nodes[1].transport.capabilities().one_sided {
        assert_eq!(bed.nodes[1].transport.stats().served_bytes, sizes.iter().sum::<u64>());
    }
}

/// Both ends of one connection read at the same time.
pub fn both_ways<W: World>(world: W) {
    let mut bed = Bed::new(world, 2, defaults);
    let there = bed.connect(0, 1);
    let back = bed.nodes[1].connection_to(NodeId(1)).expect("connected");
    let regions = [bed.region(1), bed.region(0)];
    for index in 0..16 {
        let (at, bytes) = (index * 1_100_000, 1_000_001);
        bed.nodes[0].read(there, regions[0], at, at, bytes);
        bed.nodes[1].read(back, regions[1], at + 1, at, bytes);
    }
    for completion in bed.settle(0) {
        assert_read(&completion, NodeId(2), completion.tag);
    }
    for completion in bed.settle(1) {
        assert_read(&completion, NodeId(1), completion.tag);
    }
}

/// Ten thousand reads at a time, small and large, each complete once.
pub fn ten_thousand_reads<W: World>(world: W) {
    let mut bed = Bed::new(world, 2, defaults);
    let connection = bed.connect(0, 1);
    let region = bed.region(1);
    for index in 0..10_000_u64 {
        let bytes = if index % 100 == 0 { 20_000 } else { index % 3000 };
        bed.nodes[0].read(connection, region, index * 37, index * 4096 % (40 << 20), bytes);
    }
    assert_eq!(bed.nodes[0].under_way(), 10_000);
    // Their rooms overlap, so only what they report is checked.
    let completions = bed.settle(0);
    assert_eq!(completions.iter().filter(|completion| completion.result.is_ok()).count(), 10_000);
    let stats = bed.nodes[0].transport.stats();
    assert_eq!((stats.ops, stats.accepted, stats.completed), (0, 10_000, 10_000));
}

/// Messages arrive in order, whole, both ways, past the first credit.
pub fn messages_in_order<W: World>(world: W) {
    let mut bed = Bed::new(world, 2, |config| config.message_credit_bytes = 256 << 10);
    let there = bed.connect(0, 1);
    let back = bed.nodes[1].connection_to(NodeId(1)).expect("connected");
    let message = |index: u32, salt: u32| {
        let mut bytes = vec![salt as u8; (index as usize * 977) % 60_000];
        bytes.extend_from_slice(&index.to_le_bytes());
        bytes
    };
    for index in 0..300 {
        bed.nodes[0].send(there, message(index, 1));
        bed.nodes[1].send(back, message(index, 2));
    }
    bed.until("all arrive", |bed| bed.nodes.iter().all(|node| node.messages.len() == 300));
    for (node, salt) in [(0, 2), (1, 1)] {
        for (index, (_, bytes)) in bed.nodes[node].messages.iter().enumerate() {
            assert!(*bytes == message(index as u32, salt), "message {index} to node {node}");
        }
        assert!(bed.settle(node).iter().all(|completion| completion.result.is_ok()));
    }
}

/// Whoever speaks as soon as it is connected is heard, after the connection itself, and however much it says.
pub fn a_greeting_is_heard<W: World>(world: W) {
    let mut bed = Bed::new(world, 2, |config| (config.lanes, config.message_credit_bytes) = (4, 128 << 10));
    let address = bed.nodes[1].transport.address().expect("all nodes listen");
    let words: Vec<Vec<u8>> = (0..8_u8).map(|word| vec![word; 50_000]).collect();
    for round in 0..10 {
        let deadline = bed.nodes[0].in_ms(20_000);
        let connection = bed.nodes[0].transport.connect(address, None, deadline);
        bed.until("the other end is connected", |bed| bed.nodes[1].connected.len() > round);
        let back = *bed.nodes[1].connected.keys().next_back().expect("connected");
        for word in &words {
            bed.nodes[1].send(back, word.clone());
        }
        bed.until("it is heard", |bed| bed.nodes[0].messages.len() == words.len());
        for (heard, word) in std::mem::take(&mut bed.nodes[0].messages).iter().zip(&words) {
            assert!(heard.0 == connection && heard.1 == *word, "in order, and whole");
        }
        assert!(bed.settle(1).iter().all(|completion| completion.result.is_ok()));
    }
}

/// A full transport gives operations back, and takes them later.
pub fn full_is_pressure<W: World>(world: W) {
    let mut bed = Bed::new(world, 2, |config| config.ops_max = 8);
    let connection = bed.connect(0, 1);
    let region = bed.region(1);
    for round in 0..3 {
        let mut accepted = 0;
        let refused = loop {
            let (into, deadline) = (bed.nodes[0].room(accepted * 4096, 4096), bed.nodes[0].in_ms(10_000));
            let op = Op::Read { connection, region, offset: 8 * round, into, deadline, tag: 0 };
            match bed.nodes[0].try_submit(op) {
                Ok(_) => accepted += 1,
                Err(refused) => break refused,
            }
        };
        assert_eq!((accepted, refused.why), (8, RefusedWhy::Full { ops: 8 }));
        assert!(matches!(*refused.op, Op::Read { ref into, .. } if into.bytes() == 4096));
        for completion in bed.settle(0) {
            assert_read(&completion, NodeId(2), 8 * round);
        }
    }
    assert_eq!(bed.nodes[0].transport.stats().refused_full, 3);
    let (into, deadline) = (bed.nodes[0].room(0, 17 << 20), bed.nodes[0].in_ms(10_000));
    let refused = bed.nodes[0].try_submit(Op::Read { connection, region, offset: 0, into, deadline, tag: 0 });
    assert!(matches!(refused.expect_err("too long").why, RefusedWhy::TooLong { max, .. } if max == 16 << 20));
}

/// What does not lie in a registered region of the owner's epoch is refused, and nothing else suffers.
pub fn regions_are_checked<W: World>(world: W) {
    let mut bed = Bed::new(world, 2, defaults);
    let connection = bed.connect(0, 1);
    let region = bed.region(1);
    let ask = |bed: &mut Bed<W>, region, offset, bytes| {
        bed.nodes[0].read(connection, region, offset, 0, bytes);
        bed.settle(0).remove(0).result
    };
    let bytes = region.bytes;
    let past = Err(OpError::Remote(ErrorCode::OutOfRange(bytes)));
    for (offset, length) in [(bytes, 1), (bytes - 99, 100), (u64::MAX, 1), (u64::MAX - 20_000, 20_000)] {
        assert_eq!(ask(&mut bed, region, offset, length), past, "{length} at {offset}");
    }
    assert_eq!(ask(&mut bed, region, bytes, 0), Ok(()));
    let mut stale = region;
    stale.epoch = Epoch(6);
    assert_eq!(ask(&mut bed, stale, 0, 10), Err(OpError::Remote(ErrorCode::StaleEpoch(7))));
    let mut other = region;
    other.generation += 1;
    assert_eq!(ask(&mut bed, other, 0, 10), Err(OpError::Remote(ErrorCode::NoRegion)));
    other.id = 99;
    assert_eq!(ask(&mut bed, other, 0, 100_000), Err(OpError::Remote(ErrorCode::NoRegion)));
    assert_eq!(ask(&mut bed, region, 0, 100_000), Ok(()));
    assert!(bed.nodes[1].transport.deregister(region));
    assert!(!bed.nodes[1].transport.deregister(region));
    assert_eq!(ask(&mut bed, region, 0, 10), Err(OpError::Remote(ErrorCode::NoRegion)));
    let map = bed.nodes[1].map.clone();
    let again = bed.nodes[1].transport.register(&map);
    assert_ne!(again, region);
    assert_eq!(ask(&mut bed, again, 0, 10), Ok(()));
    assert_eq!(ask(&mut bed, region, 0, 10), Err(OpError::Remote(ErrorCode::NoRegion)));
}

/// Who may not connect is told why, and learns nothing more.
pub fn strangers_are_refused<W: World>(world: W) {
    let mut bed = Bed::new(world, 2, |config| config.connections_max = 3);
    let address = bed.nodes[1].transport.address().expect("it listens");
    let refused = |broken: Broken| match broken {
        Broken::Handshake(HandshakeError::Refused(refusal)) => refusal,
        other => panic!("{other}"),
    };
    let stranger = |bed: &mut Bed<W>, adjust: &dyn Fn(&mut Config)| {
        let mut config = bed.config(3);
        adjust(&mut config);
        let index = bed.add(config);
        let broken = bed.fail_to_connect(index, address, 10_000);
        bed.nodes.remove(index);
        refused(broken)
    };
    assert_eq!(stranger(&mut bed, &|c| c.cluster = "another".to_owned()), Refusal::WrongCluster);
    assert_eq!(stranger(&mut bed, &|c| c.secret = Secret::new("guessed")), Refusal::WrongSecret);
    bed.connect(0, 1);
    let stale = stranger(&mut bed, &|c| (c.node, c.epoch) = (NodeId(1), Epoch(6)));
    assert_eq!(stale, Refusal::StaleEpoch { have: 7 });
    let deadline = bed.nodes[0].in_ms(10_000);
    let wrong = bed.nodes[0].transport.connect(address, Some(NodeId(9)), deadline);
    bed.until("refused", |bed| bed.nodes[0].disconnected.contains_key(&wrong));
    assert_eq!(refused(bed.nodes[0].disconnected[&wrong].clone()), Refusal::WrongNode { have: 2 });
    bed.connect(0, 1);
    bed.connect(0, 1);
    assert_eq!(stranger(&mut bed, &|_| {}), Refusal::Busy { connections: 3 });
}

/// A later incarnation of a node replaces the connections of the earlier one.
pub fn a_restarted_node_replaces_itself<W: World>(world: W) {
    let mut bed = Bed::new(world, 2, defaults);
    bed.connect(0, 1);
    let old = bed.nodes[1].connection_to(NodeId(1)).expect("connected");
    let mut config = bed.config(1);
    config.epoch = Epoch(8);
    let index = bed.add(config);
    let new = bed.connect(index, 1);
    bed.until("superseded", |bed| bed.nodes[1].disconnected.contains_key(&old));
    assert_eq!(bed.nodes[1].disconnected[&old], Broken::Superseded);
    let region = bed.region(1);
    bed.nodes[index].read(new, region, 3, 0, 100_000);
    assert_read(&bed.settle(index)[0], NodeId(2), 3);
}

/// Cancelled operations complete once, at any stage, and the connection goes on.
pub fn cancels<W: World>(world: W) {
    let mut bed = Bed::new(world, 2, |config| config.requests_max = 32);
    let connection = bed.connect(0, 1);
    let region = bed.region(1);
    for round in 0..8_u64 {
        let mut ops = Vec::new();
        for index in 0..64_u64 {
            let bytes = if index % 2 == 0 { 700_000 } else { 900 };
            ops.push(bed.nodes[0].read(connection, region, index, index * 700_000, bytes));
        }
        // Some are queued, some asked for, some half here.
        let enough = round * 4;
        bed.until("some are done", |bed| bed.nodes[0].completions.len() as u64 >= enough);
        for op in ops.iter().skip(round as usize % 3).step_by(3) {
            bed.nodes[0].transport.cancel(*op);
            bed.nodes[0].transport.cancel(*op);
        }
        let completions = bed.settle(0);
        assert_eq!(completions.len(), 64);
        for completion in completions {
            match completion.result {
                Ok(()) => assert_read(&completion, NodeId(2), completion.tag),
                Err(OpError::Cancelled) => {
                    let lease = completion.lease.as_ref().expect("comes back");
                    assert_bytes(lease, NodeId(2), completion.tag, completion.done_bytes);
                }
                Err(other) => panic!("{other}"),
            }
        }
    }
    assert!(bed.nodes[0].connected.contains_key(&connection));
}

/// A small read does not wait for the large ones before it.
pub fn small_overtakes_bulk<W: World>(world: W) {
    let mut bed = Bed::new(world, 2, defaults);
    let connection = bed.connect(0, 1);
    let region = bed.region(1);
    for index in 0..40 {
        bed.nodes[0].read(connection, region, 0, index << 20, 1 << 20);
    }
    bed.until("bulk flows", |bed| !bed.nodes[0].completions.is_empty());
    let small = bed.nodes[0].read(connection, region, 7, 41 << 20, 1024);
    let completions = bed.settle(0);
    let at = completions.iter().position(|completion| completion.op == small).expect("it completed");
    assert!(at < 35, "it was number {at} of {}", completions.len());
}

/// Closing completes what is under way, tells the peer, and ends the connection on both sides.
pub fn close_completes_everything<W: World>(world: W) {
    let mut bed = Bed::new(world, 2, defaults);
    let connection = bed.connect(0, 1);
    let back = bed.nodes[1].connection_to(NodeId(1)).expect("connected");
    let region = bed.region(1);
    for index in 0..40 {
        bed.nodes[0].read(connection, region, 0, index << 20, 1 << 20);
    }
    bed.until("bulk flows", |bed| !bed.nodes[0].completions.is_empty());
    bed.nodes[0].transport.close(connection);
    bed.until("both ends know", |bed| {
        bed.nodes[0].disconnected.contains_key(&connection) && bed.nodes[1].disconnected.contains_key(&back)
    });
    assert_eq!(bed.nodes[0].under_way(), 0, "law 9: completions come before the end");
    assert_eq!(bed.nodes[0].disconnected[&connection], Broken::Closed);
    let told = &bed.nodes[1].disconnected[&back];
    assert!(matches!(told, Broken::Goodbye | Broken::Hangup | Broken::Io(_)), "{told}");
    let results = bed.nodes[0].completions.iter().map(|completion| &completion.result);
    assert!(results.into_iter().all(|result| matches!(result, Ok(()) | Err(OpError::Cancelled))));
    let (into, deadline) = (bed.nodes[0].room(0, 10), bed.nodes[0].in_ms(1000));
    let refused = bed.nodes[0].try_submit(Op::Read { connection, region, offset: 0, into, deadline, tag: 0 });
    assert_eq!(refused.expect_err("closed").why, RefusedWhy::NotConnected);
}

/// Another thread can end a poll that would sleep.
pub fn a_waker_wakes<W: World>(world: W) {
    let mut bed = Bed::new(world, 1, defaults);
    let transport = &mut bed.nodes[0].transport;
    if transport.capabilities().virtual_time {
        return;
    }
    let waker = transport.waker();
    let started = transport.now();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            waker.wake();
        });
        transport.poll(&mut Vec::new(), Duration::from_secs(20)).expect("polls");
    });
    assert!(transport.now().since_us(started) < 10_000_000);
}

/// So can a descriptor that becomes readable, and one that stays readable ends every poll.
pub fn a_watched_descriptor_wakes<W: World>(world: W) {
    let mut bed = Bed::new(world, 1, defaults);
    let transport = &mut bed.nodes[0].transport;
    if transport.capabilities().virtual_time {
        return;
    }
    let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).expect("an eventfd");
    transport.watch(bell.try_clone().expect("a descriptor")).expect("watched");
    let mut word = [0; 8];
    for _ in 0..3 {
        let started = transport.now();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(20));
                rustix::io::write(&bell, &1u64.to_ne_bytes()).expect("rings");
            });
            while rustix::io::read(&bell, &mut word).is_err() {
                transport.poll(&mut Vec::new(), Duration::from_secs(20)).expect("polls");
            }
        });
        assert!(transport.now().since_us(started) < 10_000_000, "it was not woken");
    }
    rustix::io::write(&bell, &1u64.to_ne_bytes()).expect("rings");
    let started = transport.now();
    for _ in 0..10 {
        transport.poll(&mut Vec::new(), Duration::from_secs(20)).expect("polls");
    }
    assert!(transport.now().since_us(started) < 10_000_000, "it slept while the bell rang");
}
