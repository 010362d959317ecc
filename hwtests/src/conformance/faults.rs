//! What holds when peers misbehave, vanish or hang, and when faults are injected.

use super::raw::Raw;
use super::{Bed, World, assert_bytes, assert_read};
use dflow_dataplane::transport::{Broken, Config, NodeId, Op, OpError, Region, Transport};
use dflow_proto::wire::handshake::{Hello, Identity, Role};
use dflow_proto::wire::{Epoch, Frame, HEADER_BYTES, ReadRequest};
use std::collections::BTreeMap;

/// Times that make patience short.
fn hasty(config: &mut Config) {
    (config.ping_ms, config.silence_ms_max, config.handshake_ms_max) = (30, 150, 150);
}

/// Node 1 is still well served by node 2 while a third misbehaves.
fn assert_others_go_on<W: World>(bed: &mut Bed<W>) {
    let connection = match bed.nodes[0].connection_to(NodeId(2)) {
        Some(connection) => connection,
        None => bed.connect(0, 1),
    };
    let region = bed.region(1);
    bed.nodes[0].read(connection, region, 11, 0, 50_000);
    assert_read(&bed.settle(0)[0], NodeId(2), 11);
}

/// A peer that vanishes: every operation on it completes, and then the connection.
pub fn a_peer_dies<W: World>(world: W) {
    let mut bed = Bed::new(world, 3, |_| {});
    let connection = bed.connect(0, 2);
    bed.connect(0, 1);
    let region = bed.region(2);
    for index in 0..40 {
        bed.nodes[0].read(connection, region, 0, index << 20, 1 << 20);
        bed.nodes[0].read(connection, region, 0, index << 20, 100);
    }
    bed.until("bulk flows", |bed| bed.nodes[0].completions.len() > 3);
    drop(bed.nodes.remove(2));
    bed.until("it is noticed", |bed| bed.nodes[0].disconnected.contains_key(&connection));
    assert_eq!(bed.nodes[0].under_way(), 0);
    let failed = bed.nodes[0].completions.iter().filter(|c| c.result == Err(OpError::Disconnected)).count();
    assert!(failed > 0);
    bed.nodes[0].completions.clear();
    assert_others_go_on(&mut bed);
}

/// A peer that is stopped: operations end by their deadlines, the connection by its patience.
pub fn a_peer_hangs<W: World>(world: W) {
    let mut bed = Bed::new(world, 2, hasty);
    let connection = bed.connect(0, 1);
    let region = bed.region(1);
    for index in 0..20 {
        let (into, deadline) = (bed.nodes[0].room(index << 20, 1 << 20), bed.nodes[0].in_ms(40));
        bed.nodes[0].submit(Op::Read { connection, region, offset: 0, into, deadline, tag: 0 });
    }
    bed.until_without("deadlines pass", 1, |bed| bed.nodes[0].under_way() == 0);
    let timed_out =
        |result: &Result<_, _>| matches!(result, Err(OpError::TimedOut { bytes, .. }) if *bytes == 1 << 20);
    // One-sided reads need no living owner: some may have come in time.
    let one_sided = bed.nodes[0].transport.capabilities().one_sided;
    for completion in &bed.nodes[0].completions {
        let lease = completion.lease.as_ref().expect("comes back");
        assert_bytes(lease, NodeId(2), 0, completion.done_bytes);
        assert!(timed_out(&completion.result) || one_sided && completion.result.is_ok());
    }
    assert!(bed.nodes[0].connected.contains_key(&connection), "a late peer is not a dead one");
    bed.until_without("patience ends", 1, |bed| bed.nodes[0].disconnected.contains_key(&connection));
    assert_eq!(bed.nodes[0].disconnected[&connection], Broken::Silent { ms: 150 });
}

/// Deadlines end operations of a live but slow peer, whose late answers harm nobody.
pub fn late_answers_are_dropped<W: World>(world: W) {
    let mut bed = Bed::new(world, 2, |_| {});
    let connection = bed.connect(0, 1);
    let region = bed.region(1);
    for index in 0..30 {
        let (into, deadline) = (bed.nodes[0].room(index << 20, 1 << 20), bed.nodes[0].in_ms(3));
        bed.nodes[0].submit(Op::Read { connection, region, offset: 5, into, deadline, tag: 0 });
    }
    bed.until_without("deadlines pass", 1, |bed| bed.nodes[0].under_way() == 0);
    let leases: Vec<_> = std::mem::take(&mut bed.nodes[0].completions);
    for completion in &leases {
        let lease = completion.lease.as_ref().expect("comes back");
        assert_bytes(lease, NodeId(2), 5, completion.done_bytes);
        lease.copy_in(0, &vec![0xAB; 1 << 20]);
    }
    // The peer answers now. The memory is ours again, so nothing may be written to it.
    bed.nodes[0].read(connection, region, 1, 40 << 20, 3 << 20);
    assert_read(&bed.settle(0)[0], NodeId(2), 1);
    bed.pass(50);
    for completion in &leases {
        let mut bytes = vec![0; 1 << 20];
        completion.lease.as_ref().expect("comes back").copy_out(0, &mut bytes);
        assert!(bytes.iter().all(|byte| *byte == 0xAB), "law 2: written to after it came back");
    }
}

/// Nobody listens there; somebody listens and says nothing.
pub fn dials_end<W: World>(world: W) {
    let mut bed = Bed::new(world, 1, |_| {});
    let mut raw = Raw::new(bed.world.raw());
    let silent = raw.listen(bed.world.any_address());
    let broken = bed.fail_to_connect(0, silent, 60);
    assert_eq!(broken, Broken::DialTimedOut);
    drop(raw);
    let nobody = std::net::SocketAddr::from(([127, 0, 0, 1], 1));
    let broken = bed.fail_to_connect(0, nobody, 5_000);
    assert!(matches!(broken, Broken::Dial { .. }), "{broken}");
}

/// Bytes before the handshake: garbage, a wrong version, half a hello and then silence.
pub fn garbage_at_the_door<W: World>(world: W) {
    let mut bed = Bed::new(world, 2, hasty);
    let address = bed.nodes[0].transport.address().expect("it listens");
    let mut raw = Raw::new(bed.world.raw());
    let mut hello = Vec::new();
    let identity =
        Identity { cluster: "conformance".to_owned(), node: NodeId(66), epoch: Epoch(1), capabilities: 0 };
    let said = Hello {
        version_min: 900,
        version_max: 901,
        identity,
        target: NodeId(0),
        role: Role::Control { lanes: 1 },
        nonce: [0; 32],
    };
    Frame::Hello(said).encode(&mut hello);
    let cases: [Vec<u8>; 6] = [
        b"GET / HTTP/1.1\r\nHost: somewhere\r\nAccept: everything\r\n\r\n".to_vec(),
        vec![0xFF; 4096],
        hello[..20].to_vec(),
        hello[..50].to_vec(),
        hello.clone(),
        Vec::new(),
    ];
    let streams: Vec<_> = cases
        .into_iter()
        .map(|bytes| {
            let stream = raw.dial(address);
            if !bytes.is_empty() {
                raw.send(stream, bytes);
            }
            stream
        })
        .collect();
    bed.until_raw(&mut raw, "all are turned away", |_, raw| {
        streams.iter().all(|stream| raw.state.get(stream).is_some_and(|state| state.ended))
    });
    let answer = &raw.state[&streams[4]].received;
    assert_eq!(answer.first_chunk::<3>(), Some(&[0x10, 0xDF, 5]), "a wrong version is told so");
    assert_others_go_on(&mut bed);
}

/// A peer that knows the secret, and misbehaves all the same.
pub fn misbehaviour_inside<W: World>(world: W) {
    let mut bed = Bed::new(world, 2, hasty);
    let region = bed.region(0);
    let read = |op, bytes, lane| Frame::Read(ReadRequest { op, region, offset: 0, bytes, lane });
    let frames: Vec<Vec<Frame<'_>>> = vec![
        vec![Frame::Data { op: 1, offset: 0, check: None, payload: b"not asked for" }],
        vec![Frame::Data { op: (1 << 32) | 1, offset: 0, check: None, payload: b"" }],
        vec![Frame::Error { op: 3, code: dflow_proto::wire::ErrorCode::NoRegion }],
        vec![read(1, 100, 1)],
        vec![read(1, 1 << 20, 0)],
        vec![read(1, 1 << 20, 9)],
        vec![Frame::Credit { bytes: u64::MAX }],
        vec![Frame::Proof(dflow_proto::wire::handshake::Proof { mac: [0; 32] })],
        (0..3000).map(|op| read(op, 1 << 20, 1)).collect(),
    ];
    for frames in frames {
        let mut raw = Raw::new(bed.world.raw());
        let before = bed.nodes[0].transport.stats().misbehaved;
        let (control, session) = bed.shake_hands(&mut raw, Role::Control { lanes: 1 });
        bed.shake_hands(&mut raw, Role::Lane { session, lane: 1 });
        let mut bytes = Vec::new();
        frames.iter().for_each(|frame| frame.encode(&mut bytes));
        raw.send(control, bytes);
        bed.until_raw(&mut raw, "it is thrown out", |_, raw| raw.state[&control].ended);
        assert_eq!(bed.nodes[0].transport.stats().misbehaved, before + 1, "{:?}", frames[0]);
    }
    // Bytes that are no frame, on the control stream and on the lane.
    for on_lane in [false, true] {
        let mut raw = Raw::new(bed.world.raw());
        let (control, session) = bed.shake_hands(&mut raw, Role::Control { lanes: 1 });
        let (lane, _) = bed.shake_hands(&mut raw, Role::Lane { session, lane: 1 });
        raw.send(if on_lane { lane } else { control }, vec![0x77; HEADER_BYTES]);
        bed.until_raw(&mut raw, "it is thrown out", |_, raw| {
            raw.state[&control].ended && raw.state[&lane].ended
        });
    }
    // Half a frame, and then silence.
    let mut raw = Raw::new(bed.world.raw());
    let (control, session) = bed.shake_hands(&mut raw, Role::Control { lanes: 1 });
    bed.shake_hands(&mut raw, Role::Lane { session, lane: 1 });
    raw.send(control, Frame::data_header(1, 2, None, 3).encode()[..20].to_vec());
    bed.until_raw(&mut raw, "patience ends", |_, raw| raw.state[&control].ended);
    // Lanes of nobody's connection, and a second lane of that number.
    assert_others_go_on(&mut bed);
}

/// An owner that answers wrongly: damaged bytes, half a payload, more than was asked.
pub fn a_lying_owner<W: World>(world: W) {
    let mut bed = Bed::new(world, 2, |config| {
        (config.lanes, config.checksum) = (1, true);
        (config.ping_ms, config.silence_ms_max) = (30, 150);
    });
    let region = Region { id: 0, generation: 1, epoch: Epoch(1), bytes: 1 << 30 };
    for case in 0..4 {
        let mut raw = Raw::new(bed.world.raw());
        let (connection, control, lane) = bed.be_dialled(&mut raw);
        bed.nodes[0].read(connection, region, 64, 0, 100_000);
        let request = bed.next_request(&mut raw, control);
        assert_eq!((request.offset, request.bytes, request.lane), (64, 100_000, 1));
        let payload = vec![case as u8; 100_000];
        let check = crc_of(&payload);
        let mut bytes = Vec::new();
        let (op, offset) = (request.op, request.offset);
        match case {
            0 => Frame::Data { op, offset, check: Some(check ^ 1), payload: &payload }.encode(&mut bytes),
            1 => {
                Frame::Data { op, offset, check: Some(check), payload: &payload[..99_999] }.encode(&mut bytes)
            }
            _ => Frame::Data { op, offset, check: Some(check), payload: &payload }.encode(&mut bytes),
        }
        if case == 2 {
            bytes.truncate(40_000);
        }
        raw.send(lane, bytes);
        bed.until_raw(&mut raw, "the read ends", |bed, _| bed.nodes[0].under_way() == 0);
        let completion = bed.nodes[0].completions.remove(0);
        match case {
            0 => {
                assert!(matches!(completion.result, Err(OpError::Corrupt { want, .. }) if want == check ^ 1))
            }
            1 | 2 => assert_eq!(completion.result, Err(OpError::Disconnected)),
            _ => assert_eq!(completion.result, Ok(())),
        }
        if case == 2 {
            assert_eq!(completion.done_bytes, 40_000 - HEADER_BYTES, "what came before the end is told");
        }
        bed.nodes[0].transport.close(connection);
        bed.until_raw(&mut raw, "it ends", |bed, _| bed.nodes[0].disconnected.contains_key(&connection));
    }
    assert_others_go_on(&mut bed);
}

fn crc_of(bytes: &[u8]) -> u32 {
    // crc32c by its definition, so that the transport's is checked against something else.
    let mut sum = !0_u32;
    for byte in bytes {
        sum ^= u32::from(*byte);
        for _ in 0..8 {
            sum = if sum & 1 == 1 { (sum >> 1) ^ 0x82F6_3B78 } else { sum >> 1 };
        }
    }
    !sum
}

/// A connection that breaks after any number of bytes.
pub fn severed_anywhere<W: World>(world: W) {
    let mut bed = Bed::new(world, 2, |_| {});
    let region = bed.region(1);
    for after in [0, 1, 31, 32, 33, 1000, 20_000, 65_536, 300_001, 1_048_607, 1_048_608, 2_500_000] {
        let connection = bed.connect(0, 1);
        bed.nodes[0].transport.sever(connection, after);
        for index in 0..6_u64 {
            let bytes = if index % 3 == 2 { 5000 } else { 1 << 20 };
            let (into, deadline) = (bed.nodes[0].room(index << 20, bytes), bed.nodes[0].in_ms(20_000));
            let op = Op::Read { connection, region, offset: index, into, deadline, tag: index };
            match bed.nodes[0].try_submit(op) {
                Ok(_) => {}
                Err(_) => assert_eq!(after, 0),
            }
        }
        bed.until("it breaks", |bed| bed.nodes[0].disconnected.contains_key(&connection));
        assert_eq!(bed.nodes[0].disconnected[&connection], Broken::Severed);
        assert_eq!(bed.nodes[0].under_way(), 0);
        for completion in std::mem::take(&mut bed.nodes[0].completions) {
            let lease = completion.lease.as_ref().expect("comes back");
            assert_bytes(lease, NodeId(2), completion.tag, completion.done_bytes);
            assert!(matches!(completion.result, Ok(()) | Err(OpError::Disconnected)));
        }
        bed.until("its peer knows", |bed| bed.nodes[1].connected.is_empty());
        assert_eq!(bed.nodes[1].transport.stats().ops, 0);
    }
}

/// Reads that are retried until they succeed, whatever is injected: all bytes come, each operation ends once.
pub fn a_storm_is_survived<W: World>(world: W) {
    let mut bed = Bed::new(world, 2, |_| {});
    let region = bed.region(1);
    let mut wanted: BTreeMap<u64, u64> = (0..400).map(|i| (i * 45_001, (i % 7) * 30_000 + 1)).collect();
    let (mut rounds, mut failures) = (0, 0);
    while !wanted.is_empty() {
        rounds += 1;
        assert!(rounds < 500, "{} reads never succeed", wanted.len());
        let address = bed.nodes[1].transport.address().expect("it listens");
        let deadline = bed.nodes[0].in_ms(20_000);
        let connection = match bed.nodes[0].connection_to(NodeId(2)) {
            Some(connection) => connection,
            None => bed.nodes[0].transport.connect(address, None, deadline),
        };
        bed.until("connected or not", |bed| {
            bed.nodes[0].connected.contains_key(&connection)
                || bed.nodes[0].disconnected.contains_key(&connection)
        });
        for (offset, bytes) in &wanted {
            let (into, deadline) =
                (bed.nodes[0].room(*offset % 40_000_000, *bytes), bed.nodes[0].in_ms(20_000));
            let op = Op::Read { connection, region, offset: *offset, into, deadline, tag: *offset };
            if bed.nodes[0].try_submit(op).is_err() || bed.nodes[0].under_way() >= 64 {
                break;
            }
        }
        for completion in bed.settle(0) {
            match completion.result {
                Ok(()) => drop(wanted.remove(&completion.tag)),
                Err(_) => failures += 1,
            }
        }
    }
    assert!(failures > 0, "the storm was no storm");
    let stats = bed.nodes[0].transport.stats();
    assert_eq!(stats.accepted, stats.completed);
}
