//! The 32 bytes before every body.

use super::{HANDSHAKE_BYTES_MAX, HEADER_BYTES, MAGIC, Malformed, READ_BYTES_MAX, WIRE_MESSAGE_BYTES_MAX};

/// What a frame is. The numbers are part of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Dialer's first words.
    Hello = 1,
    /// Acceptor's answer.
    Challenge = 2,
    /// Dialer's proof of the secret.
    Proof = 3,
    /// Acceptor's proof, and the limits of the connection.
    Welcome = 4,
    /// Acceptor's refusal.
    Refuse = 5,
    /// A request for bytes of a region.
    Read = 16,
    /// Bytes of a region.
    Data = 17,
    /// A read that was not served.
    Error = 18,
    /// A read is not wanted any more.
    Cancel = 19,
    /// Bytes for the peer's application.
    Message = 20,
    /// Room for more messages.
    Credit = 21,
    /// Are you there?
    Ping = 22,
    /// I am.
    Pong = 23,
    /// The sender will close.
    Goodbye = 24,
}

impl Kind {
    const ALL: [Kind; 14] = [
        Kind::Hello,
        Kind::Challenge,
        Kind::Proof,
        Kind::Welcome,
        Kind::Refuse,
        Kind::Read,
        Kind::Data,
        Kind::Error,
        Kind::Cancel,
        Kind::Message,
        Kind::Credit,
        Kind::Ping,
        Kind::Pong,
        Kind::Goodbye,
    ];

    fn from_byte(byte: u8) -> Result<Kind, Malformed> {
        let known = Self::ALL.into_iter().find(|kind| *kind as u8 == byte);
        known.ok_or(Malformed::Unknown { what: "kind of frame", value: byte.into() })
    }

    /// The longest body a frame of this kind may have.
    pub const fn body_bytes_max(self) -> usize {
        match self {
            Kind::Hello | Kind::Challenge | Kind::Proof | Kind::Welcome => HANDSHAKE_BYTES_MAX,
            Kind::Read => super::frame::READ_BODY_BYTES,
            Kind::Data => READ_BYTES_MAX,
            Kind::Message => WIRE_MESSAGE_BYTES_MAX,
            Kind::Refuse
            | Kind::Error
            | Kind::Cancel
            | Kind::Credit
            | Kind::Ping
            | Kind::Pong
            | Kind::Goodbye => 0,
        }
    }
}

/// The fixed part of a frame. What `op`, `offset`, `check` and `code` mean depends on the kind; those it does
/// not use are zero.
///
/// ```text
///  0       2      3      4            8         16        24       28     32
///  +-------+------+------+------------+---------+---------+--------+------+
///  | magic | kind | flags| body_bytes |   op    | offset  | check  | code |
///  +-------+------+------+------------+---------+---------+--------+------+
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What the frame is.
    pub kind: Kind,
    /// Bit 0: `check` is the crc32c of the body. Other bits are zero.
    pub flags: u8,
    /// Length of the body that follows.
    pub body_bytes: u32,
    /// Number of the read, chosen by the reader; or a cookie.
    pub op: u64,
    /// First byte in the region; or a number that explains an error.
    pub offset: u64,
    /// crc32c of the body if the flag says so.
    pub check: u32,
    /// Reason of an error or refusal.
    pub code: u32,
}

impl Header {
    /// The flag that says that `check` is there.
    pub const CHECKED: u8 = 1;

    /// A header of `kind` with all other fields zero.
    pub const fn new(kind: Kind) -> Header {
        Header { kind, flags: 0, body_bytes: 0, op: 0, offset: 0, check: 0, code: 0 }
    }

    /// Its bytes.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0..2].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[2] = self.kind as u8;
        bytes[3] = self.flags;
        bytes[4..8].copy_from_slice(&self.body_bytes.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.op.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.offset.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.check.to_le_bytes());
        bytes[28..32].copy_from_slice(&self.code.to_le_bytes());
        bytes
    }

    /// Reads a header and holds its body's length to the kind's limit.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Header, Malformed> {
        let mut fields = super::reader::Reader::new(bytes);
        let have = fields.u16("magic")?;
        if have != MAGIC {
            return Err(Malformed::Magic { have });
        }
        let header = Header {
            kind: Kind::from_byte(fields.u8("kind")?)?,
            flags: fields.u8("flags")?,
            body_bytes: fields.u32("body length")?,
            op: fields.u64("op")?,
            offset: fields.u64("offset")?,
            check: fields.u32("check")?,
            code: fields.u32("code")?,
        };
        fields.end()?;
        let max = header.kind.body_bytes_max();
        if header.body_bytes as usize > max {
            return Err(Malformed::TooLong { what: "body", have: header.body_bytes.into(), max: max as u64 });
        }
        let flags_allowed = if header.kind == Kind::Data { Self::CHECKED } else { 0 };
        if header.flags & !flags_allowed != 0 {
            return Err(Malformed::Inconsistent { what: "flags" });
        }
        if header.check != 0 && header.flags & Self::CHECKED == 0 {
            return Err(Malformed::Inconsistent { what: "checksum without its flag" });
        }
        Ok(header)
    }
}
