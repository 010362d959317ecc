//! Where objects are: what holders tell readers, in the body of [`Frame::Message`](super::Frame::Message).
//!
//! A message holds one or more notices back to back. A holder speaks only for its own copy, so a notice says
//! "I have", never "somebody has"; who speaks is known from the connection.

use super::reader::{Put, Reader};
use super::{ANNOUNCED_BYTES_MAX, Malformed, NodeId, Region};
use crate::ids::ObjectKey;
use alloc::vec::Vec;

/// Nodes that one announcement may ask its receiver to serve.
pub const RELAY_MAX: usize = 1024;
/// Notices of one message.
pub const NOTICES_MAX: usize = 4096;
/// Bytes of one [`Notice::Say`]; what is longer is said in several.
pub const SAY_BYTES_MAX: usize = 32 << 10;

/// What the sender holds of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announce {
    /// The object.
    pub key: ObjectKey,
    /// The producer's try. A higher one replaces all that was said about lower ones.
    pub attempt: u32,
    /// Exact size in bytes, if it is known already (always, once sealed).
    pub size: Option<u64>,
    /// An upper bound of the size: what a reader must have room for. Bytes.
    pub capacity_bytes: u64,
    /// The segment it lies in.
    pub region: Region,
    /// Its first byte in the region.
    pub offset: u64,
    /// Bytes readable so far.
    pub watermark: u64,
    /// Nodes that the receiver is to announce its own copy to, as soon as it has some of it. One object with
    /// many readers so becomes a tree, in which each node sends to few.
    pub relay: Vec<NodeId>,
    /// The whole object, if it is small and sealed; else empty.
    pub inline: Vec<u8>,
}

/// One notice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// The sender holds (part of) an object.
    Announce(Announce),
    /// More of it can be read from the sender.
    Progress {
        /// The object.
        key: ObjectKey,
        /// The producer's try.
        attempt: u32,
        /// Bytes readable so far.
        watermark: u64,
    },
    /// The sender holds all of it, and this is its size.
    Sealed {
        /// The object.
        key: ObjectKey,
        /// The producer's try.
        attempt: u32,
        /// Its size in bytes.
        size: u64,
    },
    /// The sender holds nothing of that attempt any more. `lost`: the attempt itself is void.
    Withdrawn {
        /// The object.
        key: ObjectKey,
        /// The producer's try.
        attempt: u32,
        /// The producer died: what was read of this attempt must not be used.
        lost: bool,
    },
    /// The sender needs the object and asks to be told what the receiver holds of it.
    Want {
        /// The object.
        key: ObjectKey,
    },
    /// The sender has read all it wanted from the receiver's copy.
    Finished {
        /// The object.
        key: ObjectKey,
    },
    /// A word of the sender's program to the receiver's, or a piece of one. Unlike other notices it survives a
    /// broken connection: it is said again until it is acknowledged.
    Say {
        /// Counts the pieces said to this peer, from 1; 0 for none, only an acknowledgement.
        seq: u64,
        /// The last piece heard from the receiver.
        ack: u64,
        /// The word ends here.
        last: bool,
        /// The piece, at most [`SAY_BYTES_MAX`].
        bytes: Vec<u8>,
    },
}

impl Notice {
    /// Appends its bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Notice::Announce(announce) => {
                out.push(1);
                out.put_key(&announce.key);
                out.put_u32(announce.attempt);
                out.push(announce.size.is_some().into());
                out.put_u64(announce.size.unwrap_or(0));
                out.put_u64(announce.capacity_bytes);
                out.put_region(&announce.region);
                out.put_u64(announce.offset);
                out.put_u64(announce.watermark);
                let relay = &announce.relay[..announce.relay.len().min(RELAY_MAX)];
                out.put_u16(relay.len() as u16);
                relay.iter().for_each(|node| out.put_u64(node.0));
                out.put_u32(announce.inline.len() as u32);
                out.extend_from_slice(&announce.inline);
            }
            Notice::Progress { key, attempt, watermark } => {
                out.push(2);
                out.put_key(key);
                out.put_u32(*attempt);
                out.put_u64(*watermark);
            }
            Notice::Sealed { key, attempt, size } => {
                out.push(3);
                out.put_key(key);
                out.put_u32(*attempt);
                out.put_u64(*size);
            }
            Notice::Withdrawn { key, attempt, lost } => {
                out.push(4);
                out.put_key(key);
                out.put_u32(*attempt);
                out.push((*lost).into());
            }
            Notice::Want { key } => {
                out.push(5);
                out.put_key(key);
            }
            Notice::Finished { key } => {
                out.push(6);
                out.put_key(key);
            }
            Notice::Say { seq, ack, last, bytes } => {
                let bytes = &bytes[..bytes.len().min(SAY_BYTES_MAX)];
                out.push(7);
                out.put_u64(*seq);
                out.put_u64(*ack);
                out.push((*last).into());
                out.put_u32(bytes.len() as u32);
                out.extend_from_slice(bytes);
            }
        }
    }

    fn decode(fields: &mut Reader<'_>) -> Result<Notice, Malformed> {
        let kind = fields.u8("kind of notice")?;
        if kind == 7 {
            return Notice::decode_say(fields);
        }
        let key = fields.key()?;
        Ok(match kind {
            1 => Notice::Announce(Announce::decode(key, fields)?),
            2 => {
                Notice::Progress { key, attempt: fields.u32("attempt")?, watermark: fields.u64("watermark")? }
            }
            3 => Notice::Sealed { key, attempt: fields.u32("attempt")?, size: fields.u64("size")? },
            4 => Notice::Withdrawn { key, attempt: fields.u32("attempt")?, lost: flag(fields, "lost")? },
            5 => Notice::Want { key },
            6 => Notice::Finished { key },
            _ => return Err(Malformed::Unknown { what: "kind of notice", value: kind.into() }),
        })
    }

    fn decode_say(fields: &mut Reader<'_>) -> Result<Notice, Malformed> {
        let (seq, ack, last) = (fields.u64("seq")?, fields.u64("ack")?, flag(fields, "last")?);
        let length = fields.u32("length")? as usize;
        if length > SAY_BYTES_MAX {
            let (have, max) = (length as u64, SAY_BYTES_MAX as u64);
            return Err(Malformed::TooLong { what: "piece of a word", have, max });
        }
        let bytes = fields.take(length, "piece of a word")?.to_vec();
        Ok(Notice::Say { seq, ack, last, bytes })
    }
}

impl Announce {
    fn decode(key: ObjectKey, fields: &mut Reader<'_>) -> Result<Announce, Malformed> {
        let attempt = fields.u32("attempt")?;
        let size = match (flag(fields, "size")?, fields.u64("size")?) {
            (true, size) => Some(size),
            (false, 0) => None,
            (false, _) => return Err(Malformed::Inconsistent { what: "size" }),
        };
        let capacity_bytes = fields.u64("capacity")?;
        let region = fields.region()?;
        let (offset, watermark) = (fields.u64("offset")?, fields.u64("watermark")?);
        let relays = usize::from(fields.u16("relay")?);
        if relays > RELAY_MAX {
            return Err(Malformed::TooLong { what: "relay", have: relays as u64, max: RELAY_MAX as u64 });
        }
        let nodes = fields.take(relays * 8, "relay")?;
        let relay = nodes.as_chunks::<8>().0.iter().map(|node| NodeId(u64::from_le_bytes(*node))).collect();
        let length = fields.u32("inline length")? as usize;
        if length > ANNOUNCED_BYTES_MAX {
            let max = ANNOUNCED_BYTES_MAX as u64;
            return Err(Malformed::TooLong { what: "inline value", have: length as u64, max });
        }
        let inline = fields.take(length, "inline value")?.to_vec();
        let announce =
            Announce { key, attempt, size, capacity_bytes, region, offset, watermark, relay, inline };
        announce.check()?;
        Ok(announce)
    }

    /// What a holder says of one object must fit together; a reader computes addresses from it.
    fn check(&self) -> Result<(), Malformed> {
        if self.size.is_some_and(|size| size > self.capacity_bytes) || self.watermark > self.capacity_bytes {
            return Err(Malformed::Inconsistent { what: "capacity" });
        }
        if self.size.is_some_and(|size| self.watermark > size) {
            return Err(Malformed::Inconsistent { what: "watermark" });
        }
        if !self.inline.is_empty() {
            // The value is here: no region is needed.
            let whole = self.size == Some(self.inline.len() as u64);
            return if whole { Ok(()) } else { Err(Malformed::Inconsistent { what: "inline value" }) };
        }
        match self.offset.checked_add(self.capacity_bytes) {
            Some(end) if end <= self.region.bytes => Ok(()),
            _ => Err(Malformed::Inconsistent { what: "place in the region" }),
        }
    }
}

fn flag(fields: &mut Reader<'_>, what: &'static str) -> Result<bool, Malformed> {
    match fields.u8(what)? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(Malformed::Inconsistent { what }),
    }
}

/// All notices of a message.
pub fn decode(message: &[u8]) -> Result<Vec<Notice>, Malformed> {
    let mut fields = Reader::new(message);
    let mut notices = Vec::new();
    while !fields.is_empty() {
        if notices.len() == NOTICES_MAX {
            return Err(Malformed::TooLong {
                what: "message",
                have: message.len() as u64,
                max: NOTICES_MAX as u64,
            });
        }
        notices.push(Notice::decode(&mut fields)?);
    }
    Ok(notices)
}
