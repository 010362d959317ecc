//! How two nodes that are connected by streams agree to use RDMA as well.
//!
//! When both ends have [`capability::RDMA`](super::capability::RDMA), the body of each [`Frame::Message`] of
//! their connection is one [`Aside`]. The streams have proven who the peer is, so what is exchanged over them is
//! as authentic as they are.
//!
//! ```text
//! dialer                                        acceptor
//!   Offer      attempt, an end for each card  →
//!   Key        for each registered segment    →
//!              ←  Answer  attempt, its ends        (or Down)
//!              ←  Key     for each registered segment
//!   reads the acceptor's probes
//!   Ready      attempt, lanes                 →    reads the dialer's probes
//!   either end, when the link breaks: Down
//! ```
//!
//! A *lane* is one queue pair. Its number is the place of its end in the offer; the acceptor decides which of its own
//! cards, if any, is at the other end, and the dialer, having tried them, which lanes the link has. Both tell the keys
//! of a segment by lane, since each card has its own.
//!
//! The probe is a few random bytes that each end registers and names in its [`End`]: whoever reads them back over
//! RDMA has reached this peer and nobody else, so wrong addresses are found before data depends on them.
//!
//! Application messages are numbered, since they may go over RDMA as well as over the streams, and again over the
//! streams when RDMA broke: the receiver puts them in order and drops what it has seen.
//!
//! [`Frame::Message`]: super::Frame::Message

use super::Malformed;
use super::reader::{Put, Reader};
use alloc::vec::Vec;

/// Length of a probe.
pub const PROBE_BYTES: usize = 32;
/// What [`Aside::Message`] adds to the bytes of the application.
pub const MESSAGE_PREFIX_BYTES: usize = 9;

/// Lanes of one link.
pub const LANES_MAX: usize = 4;

/// Something of each lane that there is.
pub type Lanes<T> = [Option<T>; LANES_MAX];

/// Which lanes there are: one bit each, as [`Aside::Ready`] tells it.
pub fn lane_bits<T>(lanes: &Lanes<T>) -> u8 {
    lanes.iter().enumerate().fold(0, |bits, (lane, there)| bits | u8::from(there.is_some()) << lane)
}

/// One end of a queue pair: what the other needs to connect to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// Number of the queue pair.
    pub queue: u32,
    /// Where its packets begin to count; 24 bits.
    pub psn: u32,
    /// Address of its port.
    pub gid: [u8; 16],
    /// Short address of its port; 0 on Ethernet.
    pub lid: u16,
    /// The largest packet of its port: 128 bytes << this; 1 to 5.
    pub mtu: u8,
    /// Reads that it answers at a time.
    pub reads_max: u8,
    /// Address of its probe.
    pub probe_address: u64,
    /// Key of its probe.
    pub probe_key: u32,
    /// What must be found there.
    pub probe_bytes: [u8; PROBE_BYTES],
}

/// Why a node declines, or gives a link up. The numbers are part of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[repr(u8)]
pub enum DownReason {
    /// Its card is gone, or its port is down.
    #[error("the peer's card cannot be used")]
    NoCard = 1,
    /// It could not make or connect its end.
    #[error("the peer could not set up its queue pair")]
    SetUp = 2,
    /// The probe did not come back, or came from elsewhere.
    #[error("the peer's probe did not come back")]
    Probe = 3,
    /// Work on the queue pair failed.
    #[error("the peer's queue pair broke")]
    Broken = 4,
    /// Nothing is wrong with it: it is to be set up anew, over more cards for one.
    #[error("the peer gave the link up")]
    Unwanted = 5,
}

/// The key of a registered segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// The region's index.
    pub id: u32,
    /// The region's generation.
    pub generation: u32,
    /// Its length in bytes.
    pub bytes: u64,
    /// Address of its first byte, as the owner's cards know it.
    pub address: u64,
    /// What the card of each lane asks for; a card may have refused the segment.
    pub keys: Lanes<u32>,
}

/// What is said on a connection beside, and around, the application's messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aside<'a> {
    /// A message of the application.
    Message {
        /// Counts from 1.
        number: u64,
        /// Its bytes.
        bytes: &'a [u8],
    },
    /// Let us use RDMA.
    Offer {
        /// Counts the dialer's attempts.
        attempt: u32,
        /// The dialer's ends.
        ends: Lanes<End>,
    },
    /// Yes.
    Answer {
        /// Of the offer.
        attempt: u32,
        /// The acceptor's ends, of the lanes that it takes.
        ends: Lanes<End>,
    },
    /// The dialer's probes came back: try yours.
    Ready {
        /// Of the offer.
        attempt: u32,
        /// Bits of the lanes that the link has.
        lanes: u8,
    },
    /// No, or not any more.
    Down {
        /// Of the offer.
        attempt: u32,
        /// Why.
        why: DownReason,
    },
    /// A segment can be read.
    Key(Key),
    /// A segment can be read no more.
    Revoke {
        /// The region's index.
        id: u32,
        /// The region's generation.
        generation: u32,
    },
}

impl<'a> Aside<'a> {
    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Aside::Message { number, bytes } => {
                out.reserve_exact(MESSAGE_PREFIX_BYTES + bytes.len());
                out.push(0);
                out.put_u64(*number);
                out.extend_from_slice(bytes);
            }
            Aside::Offer { attempt, ends } => {
                out.push(1);
                out.put_u32(*attempt);
                put_lanes(&mut out, ends, |out, end| end.encode(out));
            }
            Aside::Answer { attempt, ends } => {
                out.push(2);
                out.put_u32(*attempt);
                put_lanes(&mut out, ends, |out, end| end.encode(out));
            }
            Aside::Ready { attempt, lanes } => {
                out.push(3);
                out.put_u32(*attempt);
                out.push(*lanes);
            }
            Aside::Down { attempt, why } => {
                out.push(4);
                out.put_u32(*attempt);
                out.push(*why as u8);
            }
            Aside::Key(key) => {
                out.push(5);
                out.put_u32(key.id);
                out.put_u32(key.generation);
                out.put_u64(key.bytes);
                out.put_u64(key.address);
                put_lanes(&mut out, &key.keys, |out, key| out.put_u32(*key));
            }
            Aside::Revoke { id, generation } => {
                out.push(6);
                out.put_u32(*id);
                out.put_u32(*generation);
            }
        }
        out
    }

    /// What `bytes` say.
    pub fn decode(bytes: &'a [u8]) -> Result<Aside<'a>, Malformed> {
        let mut fields = Reader::new(bytes);
        let kind = fields.u8("kind of aside")?;
        if kind == 0 {
            let number = fields.u64("message number")?;
            return Ok(Aside::Message { number, bytes: &bytes[MESSAGE_PREFIX_BYTES..] });
        }
        let aside = match kind {
            1 => Aside::Offer { attempt: fields.u32("attempt")?, ends: lanes(&mut fields, End::decode)? },
            2 => Aside::Answer { attempt: fields.u32("attempt")?, ends: lanes(&mut fields, End::decode)? },
            3 => Aside::Ready { attempt: fields.u32("attempt")?, lanes: bits(&mut fields)? },
            4 => Aside::Down { attempt: fields.u32("attempt")?, why: reason(fields.u8("reason")?)? },
            5 => Aside::Key(Key {
                id: fields.u32("region")?,
                generation: fields.u32("generation")?,
                bytes: fields.u64("length")?,
                address: fields.u64("address")?,
                keys: lanes(&mut fields, |fields| fields.u32("key"))?,
            }),
            6 => Aside::Revoke { id: fields.u32("region")?, generation: fields.u32("generation")? },
            _ => return Err(Malformed::Unknown { what: "kind of aside", value: kind.into() }),
        };
        fields.end()?;
        Ok(aside)
    }
}

fn reason(code: u8) -> Result<DownReason, Malformed> {
    use DownReason::{Broken, NoCard, Probe, SetUp, Unwanted};
    let known = [NoCard, SetUp, Probe, Broken, Unwanted].into_iter().find(|why| *why as u8 == code);
    known.ok_or(Malformed::Unknown { what: "reason", value: code.into() })
}

/// Which lanes there are, then what is to be said of each.
fn put_lanes<T>(out: &mut Vec<u8>, lanes: &Lanes<T>, put: impl Fn(&mut Vec<u8>, &T)) {
    out.push(lane_bits(lanes));
    lanes.iter().flatten().for_each(|there| put(out, there));
}

fn lanes<'a, T>(
    fields: &mut Reader<'a>,
    take: impl Fn(&mut Reader<'a>) -> Result<T, Malformed>,
) -> Result<Lanes<T>, Malformed> {
    let bits = bits(fields)?;
    let mut lanes = [const { None }; LANES_MAX];
    for (lane, there) in lanes.iter_mut().enumerate() {
        if bits >> lane & 1 != 0 {
            *there = Some(take(fields)?);
        }
    }
    Ok(lanes)
}

fn bits(fields: &mut Reader<'_>) -> Result<u8, Malformed> {
    match fields.u8("lanes")? {
        bits if bits == 0 || bits >> LANES_MAX != 0 => {
            Err(Malformed::Unknown { what: "lanes", value: bits.into() })
        }
        bits => Ok(bits),
    }
}

impl End {
    fn encode(&self, out: &mut Vec<u8>) {
        out.put_u32(self.queue);
        out.put_u32(self.psn);
        out.extend_from_slice(&self.gid);
        out.put_u16(self.lid);
        out.push(self.mtu);
        out.push(self.reads_max);
        out.put_u64(self.probe_address);
        out.put_u32(self.probe_key);
        out.extend_from_slice(&self.probe_bytes);
    }

    fn decode(fields: &mut Reader<'_>) -> Result<End, Malformed> {
        let end = End {
            queue: fields.u32("queue pair")?,
            psn: fields.u32("packet number")?,
            gid: fields.array("address")?,
            lid: fields.u16("short address")?,
            mtu: fields.u8("packet size")?,
            reads_max: fields.u8("reads")?,
            probe_address: fields.u64("address of the probe")?,
            probe_key: fields.u32("key of the probe")?,
            probe_bytes: fields.array("probe")?,
        };
        if end.psn >> 24 != 0 || end.queue >> 24 != 0 {
            return Err(Malformed::Inconsistent { what: "numbers of a queue pair" });
        }
        if !(1..=5).contains(&end.mtu) {
            return Err(Malformed::Unknown { what: "packet size", value: end.mtu.into() });
        }
        Ok(end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples() -> [Aside<'static>; 7] {
        let end = End {
            queue: 17,
            psn: 0xab_cdef,
            gid: [7; 16],
            lid: 3,
            mtu: 5,
            reads_max: 16,
            probe_address: u64::MAX,
            probe_key: 9,
            probe_bytes: [5; PROBE_BYTES],
        };
        [
            Aside::Message { number: 3, bytes: b"bytes" },
            Aside::Offer { attempt: 1, ends: [Some(end), None, None, Some(End { queue: 18, ..end })] },
            Aside::Answer { attempt: 1, ends: [None, Some(end), None, None] },
            Aside::Ready { attempt: 2, lanes: 0b1001 },
            Aside::Down { attempt: 2, why: DownReason::Probe },
            Aside::Key(Key {
                id: 1,
                generation: 2,
                bytes: 3,
                address: 4,
                keys: [Some(5), None, Some(0), None],
            }),
            Aside::Revoke { id: 1, generation: 2 },
        ]
    }

    #[test]
    fn asides_come_back_as_they_were() {
        for aside in samples() {
            assert_eq!(Aside::decode(&aside.encode()), Ok(aside));
        }
        assert_eq!(samples()[0].encode().len(), MESSAGE_PREFIX_BYTES + 5);
    }

    #[test]
    fn garbage_is_refused() {
        for aside in samples() {
            let bytes = aside.encode();
            let whole = if bytes[0] == 0 { MESSAGE_PREFIX_BYTES } else { bytes.len() };
            for length in 0..whole {
                assert!(Aside::decode(&bytes[..length]).is_err(), "{aside:?} cut to {length}");
            }
        }
        assert!(Aside::decode(&[99]).is_err());
        assert!(Aside::decode(&[3, 0, 0, 0, 0, 1, 0]).is_err(), "a byte too many");
        assert!(Aside::decode(&[3, 0, 0, 0, 0, 0]).is_err(), "a link has a lane");
        assert!(Aside::decode(&[3, 0, 0, 0, 0, 16]).is_err(), "a fifth lane");
        assert!(Aside::decode(&[4, 0, 0, 0, 0, 77]).is_err(), "no such reason");
        let mut offer = samples()[1].encode();
        offer[13] = 0xff;
        assert!(Aside::decode(&offer).is_err(), "packet numbers have 24 bits");
    }
}
