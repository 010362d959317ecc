//! Frames as values, and their bytes.

use super::handshake::{Challenge, Hello, Proof, Refusal, Welcome};
use super::reader::{Put, Reader};
use super::{HEADER_BYTES, Header, Kind, LANES_MAX, Malformed, READ_BYTES_MAX, Region};
use alloc::vec::Vec;

/// Length of a read request's body.
pub(super) const READ_BODY_BYTES: usize = 32;

/// Why a read was not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ErrorCode {
    /// The region's epoch is not the owner's: the owner was restarted since.
    #[error("the region is of another epoch; the owner lives in epoch {0}")]
    StaleEpoch(u64),
    /// No such registration (any more).
    #[error("the region is not registered")]
    NoRegion,
    /// The range does not lie in the region.
    #[error("the range goes past the region's {0} bytes")]
    OutOfRange(u64),
    /// The reader cancelled it first.
    #[error("cancelled by the reader")]
    Cancelled,
    /// The owner is going down.
    #[error("the owner is closing")]
    Closing,
}

impl ErrorCode {
    const fn parts(self) -> (u32, u64) {
        match self {
            ErrorCode::StaleEpoch(epoch) => (1, epoch),
            ErrorCode::NoRegion => (2, 0),
            ErrorCode::OutOfRange(bytes) => (3, bytes),
            ErrorCode::Cancelled => (4, 0),
            ErrorCode::Closing => (5, 0),
        }
    }

    fn from_parts(code: u32, detail: u64) -> Result<ErrorCode, Malformed> {
        Ok(match (code, detail) {
            (1, epoch) => ErrorCode::StaleEpoch(epoch),
            (2, 0) => ErrorCode::NoRegion,
            (3, bytes) => ErrorCode::OutOfRange(bytes),
            (4, 0) => ErrorCode::Cancelled,
            (5, 0) => ErrorCode::Closing,
            _ => return Err(Malformed::Unknown { what: "error code", value: code.into() }),
        })
    }
}

/// A request for bytes of a region of the receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadRequest {
    /// Chosen by the reader, echoed in the answer.
    pub op: u64,
    /// Whose bytes.
    pub region: Region,
    /// First byte, from the start of the region.
    pub offset: u64,
    /// How many; at most [`READ_BYTES_MAX`].
    pub bytes: u32,
    /// The stream to answer on: 0 for control, else a lane.
    pub lane: u16,
}

/// A frame. `'a` is the buffer it was decoded from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// See [`handshake`](super::handshake).
    Hello(Hello),
    /// See [`handshake`](super::handshake).
    Challenge(Challenge),
    /// See [`handshake`](super::handshake).
    Proof(Proof),
    /// See [`handshake`](super::handshake).
    Welcome(Welcome),
    /// See [`handshake`](super::handshake).
    Refuse(Refusal),
    /// A request for bytes.
    Read(ReadRequest),
    /// The answer: as many bytes as were asked for.
    Data {
        /// The read.
        op: u64,
        /// First byte in the region.
        offset: u64,
        /// crc32c of the payload, when both ends agreed on checksums.
        check: Option<u32>,
        /// The bytes.
        payload: &'a [u8],
    },
    /// The other answer.
    Error {
        /// The read.
        op: u64,
        /// Why not.
        code: ErrorCode,
    },
    /// The read is not wanted. It is answered all the same, by an error or by data already under way.
    Cancel {
        /// The read.
        op: u64,
    },
    /// Bytes for the application.
    Message(&'a [u8]),
    /// The sender's application took messages: so many more body bytes may be sent to it.
    Credit {
        /// Additional bytes.
        bytes: u64,
    },
    /// To be answered by a pong with the same cookie.
    Ping {
        /// Any number.
        cookie: u64,
    },
    /// Answer to a ping.
    Pong {
        /// The ping's number.
        cookie: u64,
    },
    /// Nothing follows on this connection.
    Goodbye,
}

impl<'a> Frame<'a> {
    /// Appends the frame's bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.resize(start + HEADER_BYTES, 0);
        let mut header = match self {
            Frame::Hello(hello) => {
                hello.encode(out);
                Header::new(Kind::Hello)
            }
            Frame::Challenge(challenge) => {
                challenge.encode(out);
                Header::new(Kind::Challenge)
            }
            Frame::Proof(proof) => {
                out.extend_from_slice(&proof.mac);
                Header::new(Kind::Proof)
            }
            Frame::Welcome(welcome) => {
                welcome.encode(out);
                Header::new(Kind::Welcome)
            }
            Frame::Refuse(refusal) => {
                let (code, op, offset) = refusal.parts();
                Header { code, op, offset, ..Header::new(Kind::Refuse) }
            }
            Frame::Read(read) => {
                out.put_region(&read.region);
                out.put_u32(read.bytes);
                out.put_u16(read.lane);
                out.put_u16(0);
                Header { op: read.op, offset: read.offset, ..Header::new(Kind::Read) }
            }
            Frame::Data { op, offset, check, payload } => {
                out.extend_from_slice(payload);
                Self::data_header(*op, *offset, *check, payload.len() as u32)
            }
            Frame::Error { op, code } => {
                let (code, offset) = code.parts();
                Header { op: *op, offset, code, ..Header::new(Kind::Error) }
            }
            Frame::Cancel { op } => Header { op: *op, ..Header::new(Kind::Cancel) },
            Frame::Message(bytes) => {
                out.extend_from_slice(bytes);
                Header::new(Kind::Message)
            }
            Frame::Credit { bytes } => Header { offset: *bytes, ..Header::new(Kind::Credit) },
            Frame::Ping { cookie } => Header { op: *cookie, ..Header::new(Kind::Ping) },
            Frame::Pong { cookie } => Header { op: *cookie, ..Header::new(Kind::Pong) },
            Frame::Goodbye => Header::new(Kind::Goodbye),
        };
        header.body_bytes = (out.len() - start - HEADER_BYTES) as u32;
        out[start..start + HEADER_BYTES].copy_from_slice(&header.encode());
    }

    /// The header of a data frame whose payload is sent from where it lies.
    pub const fn data_header(op: u64, offset: u64, check: Option<u32>, bytes: u32) -> Header {
        let (flags, check) = match check {
            Some(check) => (Header::CHECKED, check),
            None => (0, 0),
        };
        Header { flags, body_bytes: bytes, op, offset, check, ..Header::new(Kind::Data) }
    }

    /// The frame that `header` and the `body` behind it are.
    pub fn decode(header: &Header, body: &'a [u8]) -> Result<Frame<'a>, Malformed> {
        if body.len() != header.body_bytes as usize {
            return Err(Malformed::Short { what: "body" });
        }
        let mut fields = Reader::new(body);
        Ok(match header.kind {
            Kind::Hello => Frame::Hello(Hello::decode(body)?),
            Kind::Challenge => Frame::Challenge(Challenge::decode(body)?),
            Kind::Proof => Frame::Proof(Proof { mac: fields.array("proof")? }),
            Kind::Welcome => Frame::Welcome(Welcome::decode(body)?),
            Kind::Refuse => Frame::Refuse(Refusal::from_parts(header.code, header.op, header.offset)?),
            Kind::Read => {
                let region = fields.region()?;
                let (bytes, lane) = (fields.u32("read length")?, fields.u16("lane")?);
                let reserved = fields.u16("reserved")?;
                fields.end()?;
                if bytes as usize > READ_BYTES_MAX {
                    let max = READ_BYTES_MAX as u64;
                    return Err(Malformed::TooLong { what: "read", have: bytes.into(), max });
                }
                if lane > LANES_MAX || reserved != 0 {
                    return Err(Malformed::Inconsistent { what: "lane" });
                }
                Frame::Read(ReadRequest { op: header.op, region, offset: header.offset, bytes, lane })
            }
            Kind::Data => {
                let check = (header.flags & Header::CHECKED != 0).then_some(header.check);
                Frame::Data { op: header.op, offset: header.offset, check, payload: body }
            }
            Kind::Error => {
                Frame::Error { op: header.op, code: ErrorCode::from_parts(header.code, header.offset)? }
            }
            Kind::Cancel => Frame::Cancel { op: header.op },
            Kind::Message => Frame::Message(body),
            Kind::Credit => Frame::Credit { bytes: header.offset },
            Kind::Ping => Frame::Ping { cookie: header.op },
            Kind::Pong => Frame::Pong { cookie: header.op },
            Kind::Goodbye => Frame::Goodbye,
        })
    }
}

/// The first frame of `bytes` and its length, or `None` if it is not complete yet.
pub fn next_frame(bytes: &[u8]) -> Result<Option<(Frame<'_>, usize)>, Malformed> {
    let Some((header, rest)) = bytes.split_first_chunk::<HEADER_BYTES>() else { return Ok(None) };
    let header = Header::decode(header)?;
    match rest.get(..header.body_bytes as usize) {
        Some(body) => Ok(Some((Frame::decode(&header, body)?, HEADER_BYTES + body.len()))),
        None => Ok(None),
    }
}
