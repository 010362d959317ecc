//! Round trips, garbage, and the handshake's table.

use super::handshake::*;
use super::notice::{self, Announce, Notice};
use super::*;
use crate::ids::{InvocationId, ObjectKey, RunId};
use alloc::string::ToString;
use alloc::vec;
use alloc::vec::Vec;
use proptest::prelude::*;

fn identity() -> impl Strategy<Value = Identity> {
    ("[a-z0-9-]{0,64}", any::<u64>(), any::<u64>(), any::<u32>()).prop_map(
        |(cluster, node, epoch, capabilities)| Identity {
            cluster,
            node: NodeId(node),
            epoch: Epoch(epoch),
            capabilities,
        },
    )
}

fn region() -> impl Strategy<Value = Region> {
    (any::<u32>(), any::<u32>(), any::<u64>(), any::<u64>())
        .prop_map(|(id, generation, epoch, bytes)| Region { id, generation, epoch: Epoch(epoch), bytes })
}

fn role() -> impl Strategy<Value = Role> {
    prop_oneof![
        (1..=LANES_MAX).prop_map(|lanes| Role::Control { lanes }),
        (any::<u64>(), 1..=LANES_MAX).prop_map(|(session, lane)| Role::Lane { session, lane }),
    ]
}

fn frame() -> impl Strategy<Value = Frame<'static>> {
    let payload: &'static [u8] = b"some bytes of an object";
    prop_oneof![
        (any::<(u16, u16)>(), identity(), any::<u64>(), role(), any::<[u8; 32]>()).prop_map(
            |((version_min, version_max), identity, target, role, nonce)| Frame::Hello(Hello {
                version_min,
                version_max,
                identity,
                target: NodeId(target),
                role,
                nonce
            })
        ),
        (any::<u16>(), any::<u32>(), any::<u64>(), any::<u64>(), any::<[u8; 32]>()).prop_map(
            |(version, capabilities, node, epoch, nonce)| Frame::Challenge(Challenge {
                version,
                capabilities,
                node: NodeId(node),
                epoch: Epoch(epoch),
                nonce
            })
        ),
        any::<[u8; 32]>().prop_map(|mac| Frame::Proof(Proof { mac })),
        (any::<[u8; 32]>(), any::<u64>(), any::<u32>(), any::<u32>()).prop_map(
            |(mac, session, requests_max, message_credit_bytes)| Frame::Welcome(Welcome {
                mac,
                session,
                requests_max,
                message_credit_bytes
            })
        ),
        any::<u64>().prop_map(|have| Frame::Refuse(Refusal::StaleEpoch { have })),
        (any::<u64>(), region(), any::<u64>(), 0..READ_BYTES_MAX as u32, 0..=LANES_MAX).prop_map(
            |(op, region, offset, bytes, lane)| Frame::Read(ReadRequest { op, region, offset, bytes, lane })
        ),
        (any::<u64>(), any::<u64>(), any::<Option<u32>>(), 0..payload.len()).prop_map(
            move |(op, offset, check, bytes)| Frame::Data { op, offset, check, payload: &payload[..bytes] }
        ),
        (any::<u64>(), any::<u64>())
            .prop_map(|(op, bytes)| Frame::Error { op, code: ErrorCode::OutOfRange(bytes) }),
        (0..payload.len()).prop_map(move |bytes| Frame::Message(&payload[..bytes])),
        any::<u64>().prop_map(|bytes| Frame::Credit { bytes }),
        any::<u64>().prop_map(|cookie| Frame::Ping { cookie }),
        any::<u64>().prop_map(|op| Frame::Cancel { op }),
        Just(Frame::Goodbye),
    ]
}

fn key(run: u64) -> ObjectKey {
    ObjectKey { run: RunId(run), invocation: InvocationId { step: 3, item: 1 }, port: 2, item: 9 }
}

fn notice() -> impl Strategy<Value = Notice> {
    let announce = (any::<u64>(), 0_u64..1 << 40, 0_u64..1 << 40, any::<bool>(), 0_usize..5, 0_usize..300);
    prop_oneof![
        announce.prop_map(|(run, offset, size, sealed, relays, inline)| {
            let inline = if sealed { vec![7; inline] } else { Vec::new() };
            let size = if inline.is_empty() { size } else { inline.len() as u64 };
            Notice::Announce(Announce {
                key: key(run),
                attempt: 1,
                size: sealed.then_some(size),
                capacity_bytes: size,
                region: Region { bytes: offset + size, ..Region::default() },
                offset,
                watermark: size / 2,
                relay: (0..relays as u64).map(NodeId).collect(),
                inline,
            })
        }),
        any::<(u64, u32, u64)>().prop_map(|(run, attempt, watermark)| Notice::Progress {
            key: key(run),
            attempt,
            watermark
        }),
        any::<(u64, u32, u64)>().prop_map(|(run, attempt, size)| Notice::Sealed {
            key: key(run),
            attempt,
            size
        }),
        any::<(u64, u32, bool)>().prop_map(|(run, attempt, lost)| Notice::Withdrawn {
            key: key(run),
            attempt,
            lost
        }),
        any::<u64>().prop_map(|run| Notice::Want { key: key(run) }),
        any::<u64>().prop_map(|run| Notice::Finished { key: key(run) }),
        (any::<(u64, u64, bool)>(), prop::collection::vec(any::<u8>(), 0..300))
            .prop_map(|((seq, ack, last), bytes)| Notice::Say { seq, ack, last, bytes }),
    ]
}

proptest! {
    #[test]
    fn frames_come_back_as_they_went(frames in prop::collection::vec(frame(), 1..8), cut in any::<prop::sample::Index>()) {
        let mut bytes = Vec::new();
        frames.iter().for_each(|frame| frame.encode(&mut bytes));
        let mut rest = &bytes[..];
        for frame in &frames {
            let (have, used) = next_frame(rest).expect("well formed").expect("complete");
            prop_assert_eq!(&have, frame);
            prop_assert_eq!(next_frame(&rest[..cut.index(used)]).expect("a prefix is not malformed"), None);
            rest = &rest[used..];
        }
        prop_assert!(rest.is_empty());
    }

    #[test]
    fn notices_come_back_as_they_went(notices in prop::collection::vec(notice(), 0..6)) {
        let mut bytes = Vec::new();
        notices.iter().for_each(|notice| notice.encode(&mut bytes));
        prop_assert_eq!(notice::decode(&bytes).expect("well formed"), notices);
    }

    /// Valid bytes with a few of them changed reach deeper into the decoders than pure noise does.
    #[test]
    fn damaged_bytes_never_panic(
        frame in frame(),
        notice in notice(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let (mut bytes, mut body) = (Vec::new(), Vec::new());
        frame.encode(&mut bytes);
        notice.encode(&mut body);
        for (at, value) in damage {
            let (i, j) = (at.index(bytes.len()), at.index(body.len()));
            bytes[i] = value;
            body[j] = value;
        }
        if let Ok(Some((frame, used))) = next_frame(&bytes) {
            prop_assert!(used <= bytes.len());
            let mut again = Vec::new();
            frame.encode(&mut again);
            prop_assert!(again.len() <= used);
        }
        // Whatever decodes is consistent enough to encode again.
        if let Ok(notices) = notice::decode(&body) {
            let mut again = Vec::new();
            notices.iter().for_each(|notice| notice.encode(&mut again));
            prop_assert_eq!(again, body);
        }
    }

    #[test]
    fn noise_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = next_frame(&bytes);
        let _ = notice::decode(&bytes);
    }
}

/// A keyed sum: enough to tell secrets and transcripts apart in a test of the state machines.
struct Toy(u8);

impl Prover for Toy {
    fn mac(&self, parts: &[&[u8]]) -> [u8; PROOF_BYTES] {
        let mut mac = [self.0; PROOF_BYTES];
        for (index, byte) in parts.iter().flat_map(|part| part.iter()).enumerate() {
            let slot = &mut mac[index % PROOF_BYTES];
            *slot = slot.wrapping_mul(31).wrapping_add(*byte);
        }
        mac
    }
}

fn who(cluster: &str, node: u64) -> Identity {
    Identity { cluster: cluster.to_string(), node: NodeId(node), epoch: Epoch(5), capabilities: 1 }
}

fn shake(dials: (Identity, u64, u8), accepts: (Identity, u8)) -> Result<(Agreed, Agreed), HandshakeError> {
    let (mut dialer, hello) =
        Dialer::new(dials.0, NodeId(dials.1), Role::Control { lanes: 2 }, [1; PROOF_BYTES]);
    let mut acceptor = Acceptor::new(accepts.0, [2; PROOF_BYTES]);
    let mut said = hello;
    loop {
        let (answer, agreed) = match acceptor.receive(&said, &Toy(accepts.1))? {
            AcceptStep::Send(frame) => (frame, None),
            AcceptStep::Refuse(refusal) => (Frame::Refuse(refusal), None),
            AcceptStep::Proven => {
                let (frame, agreed) = acceptor.welcome(77, 10, 20, &Toy(accepts.1)).expect("proven");
                (frame, Some(agreed))
            }
        };
        match dialer.receive(&answer, &Toy(dials.2))? {
            DialStep::Send(frame) => said = frame,
            DialStep::Open(open) => return Ok((open, agreed.expect("the acceptor admitted it"))),
        }
    }
}

#[test]
fn a_handshake_ends_in_agreement_or_a_reason() {
    let (dialer, acceptor) = shake((who("a", 1), 2, 9), (who("a", 2), 9)).expect("they agree");
    assert_eq!((dialer.node, acceptor.node), (NodeId(2), NodeId(1)));
    assert_eq!((dialer.session, acceptor.session, dialer.version), (77, 77, VERSION));
    let refused = |result: Result<_, HandshakeError>| match result {
        Err(HandshakeError::Refused(refusal)) => refusal,
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(shake((who("a", 1), 0, 9), (who("b", 2), 9))), Refusal::WrongCluster);
    assert_eq!(refused(shake((who("a", 1), 0, 9), (who("a", 2), 8))), Refusal::WrongSecret);
    assert_eq!(refused(shake((who("a", 1), 3, 9), (who("a", 2), 9))), Refusal::WrongNode { have: 2 });
}

#[test]
fn an_acceptor_without_the_secret_is_an_impostor() {
    let (mut dialer, hello) = Dialer::new(who("a", 1), NodeId(0), Role::Control { lanes: 0 }, [1; 32]);
    let mut acceptor = Acceptor::new(who("a", 2), [2; 32]);
    let AcceptStep::Send(challenge) = acceptor.receive(&hello, &Toy(1)).expect("in order") else { panic!() };
    dialer.receive(&challenge, &Toy(9)).expect("in order");
    let (welcome, _) = acceptor.welcome(1, 1, 1, &Toy(1)).expect("it heard a hello");
    assert_eq!(dialer.receive(&welcome, &Toy(9)), Err(HandshakeError::Impostor));
}

#[test]
fn versions_meet_or_are_refused() {
    let (_, hello) = Dialer::new(who("a", 1), NodeId(0), Role::Control { lanes: 0 }, [1; 32]);
    let Frame::Hello(mut hello) = hello else { panic!() };
    (hello.version_min, hello.version_max) = (VERSION + 1, VERSION + 4);
    let mut acceptor = Acceptor::new(who("a", 2), [2; 32]);
    let step = acceptor.receive(&Frame::Hello(hello.clone()), &Toy(1)).expect("in order");
    assert_eq!(step, AcceptStep::Refuse(Refusal::WrongVersion { min: VERSION_MIN, max: VERSION }));
    hello.version_min = VERSION_MIN;
    let step = acceptor.receive(&Frame::Hello(hello), &Toy(1)).expect("in order");
    assert!(matches!(step, AcceptStep::Send(Frame::Challenge(Challenge { version: VERSION, .. }))));
    let again = acceptor.receive(&Frame::Goodbye, &Toy(1));
    assert_eq!(again, Err(HandshakeError::OutOfOrder));
}

#[test]
fn a_header_is_thirty_two_bytes_of_known_places() {
    let header = Frame::data_header(0x1122, 0x3344, Some(0x5566), 7);
    let bytes = header.encode();
    assert_eq!(&bytes[..8], &[0x10, 0xDF, 17, 1, 7, 0, 0, 0]);
    assert_eq!((bytes[8], bytes[16], bytes[24]), (0x22, 0x44, 0x66));
    assert_eq!(Header::decode(&bytes), Ok(header));
}
