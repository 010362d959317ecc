//! How the two ends of a stream come to trust each other.
//!
//! ```text
//! dialer                                        acceptor
//!   Hello      versions, cluster, who, nonce  →   refuses WrongVersion, WrongCluster
//!              ←  Challenge  version, who, nonce
//!   Proof      MAC over both, as dialer       →   refuses WrongSecret, StaleEpoch, Busy, WrongNode, NoSession
//!              ←  Welcome    MAC over both, as acceptor; session; limits
//! ```
//!
//! Both sides prove that they know the cluster's secret over both nonces, each under a label of its own, so a
//! proof can be neither replayed nor reflected. What the acceptor knows about epochs and load it says only to a
//! dialer that has proven itself. The first 4 bytes of a `Hello` body and all of `Refuse` never change between
//! versions; bytes that follow the known fields of a handshake frame are for later versions and ignored.

use super::reader::{Put, Reader};
use super::{CLUSTER_BYTES_MAX, Epoch, Frame, LANES_MAX, Malformed, NodeId, VERSION, VERSION_MIN};
use alloc::string::String;
use alloc::vec::Vec;

/// Length of nonces and proofs.
pub const PROOF_BYTES: usize = 32;

/// Makes message authentication codes with the cluster's secret (HMAC-SHA256 over the joined parts).
pub trait Prover {
    /// The code of all `parts`, one after the other.
    fn mac(&self, parts: &[&[u8]]) -> [u8; PROOF_BYTES];
}

/// Who a node says it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Name of the cluster; at most [`CLUSTER_BYTES_MAX`] bytes.
    pub cluster: String,
    /// The node.
    pub node: NodeId,
    /// Its incarnation.
    pub epoch: Epoch,
    /// Bits of [`capability`](super::capability).
    pub capabilities: u32,
}

/// What a stream is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The first stream of a new connection that will have so many lanes.
    Control {
        /// Bulk streams that will follow (one at least), each with the session that `Welcome` names.
        lanes: u16,
    },
    /// Lane `lane` (from 1) of the connection `session`.
    Lane {
        /// From the control stream's `Welcome`.
        session: u64,
        /// Its number.
        lane: u16,
    },
}

/// The dialer's first words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Oldest version the dialer speaks.
    pub version_min: u16,
    /// Newest version the dialer speaks.
    pub version_max: u16,
    /// Who dials.
    pub identity: Identity,
    /// Whom it wants; 0 for whoever answers.
    pub target: NodeId,
    /// What for.
    pub role: Role,
    /// Fresh random bytes.
    pub nonce: [u8; PROOF_BYTES],
}

/// The acceptor's answer to a hello it can work with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Challenge {
    /// The version to speak.
    pub version: u16,
    /// The acceptor's capabilities.
    pub capabilities: u32,
    /// Who answers.
    pub node: NodeId,
    /// Its incarnation.
    pub epoch: Epoch,
    /// Fresh random bytes.
    pub nonce: [u8; PROOF_BYTES],
}

/// The dialer's proof.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proof {
    /// See [`Prover`].
    pub mac: [u8; PROOF_BYTES],
}

/// The acceptor's proof, and the limits it sets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// See [`Prover`].
    pub mac: [u8; PROOF_BYTES],
    /// Names the connection when its lanes join.
    pub session: u64,
    /// Reads that may be unanswered at one time, each way.
    pub requests_max: u32,
    /// Bytes of message bodies that may be sent before the first `Credit`, each way.
    pub message_credit_bytes: u32,
}

/// Why an acceptor refuses a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No common version.
    #[error(
        "the peer speaks protocol versions {min} to {max}, this node {VERSION_MIN} to {VERSION}: upgrade the older one"
    )]
    WrongVersion {
        /// Oldest version the acceptor speaks.
        min: u16,
        /// Newest.
        max: u16,
    },
    /// Another cluster's node.
    #[error("the peer belongs to a cluster of another name: check `cluster` in both configurations")]
    WrongCluster,
    /// The proof does not hold.
    #[error("the peer has another secret: check `secret` in both configurations")]
    WrongSecret,
    /// The dialer's incarnation has been superseded.
    #[error("this node's epoch is over: the peer has seen epoch {have}")]
    StaleEpoch {
        /// The newest epoch that the acceptor has seen of the dialer.
        have: u64,
    },
    /// Too many connections.
    #[error("the peer is busy ({connections} connections): try again later")]
    Busy {
        /// How many it has.
        connections: u32,
    },
    /// The dialer wanted another node.
    #[error("node {have} answers at this address, not the one that was dialled")]
    WrongNode {
        /// Who answers.
        have: u64,
    },
    /// A lane of a connection that does not exist (any more).
    #[error("the connection that the lane belongs to is gone")]
    NoSession,
}

impl Refusal {
    pub(super) const fn parts(self) -> (u32, u64, u64) {
        match self {
            Refusal::WrongVersion { min, max } => (1, min as u64, max as u64),
            Refusal::WrongCluster => (2, 0, 0),
            Refusal::WrongSecret => (3, 0, 0),
            Refusal::StaleEpoch { have } => (4, have, 0),
            Refusal::Busy { connections } => (5, connections as u64, 0),
            Refusal::WrongNode { have } => (6, have, 0),
            Refusal::NoSession => (7, 0, 0),
        }
    }

    pub(super) fn from_parts(code: u32, a: u64, b: u64) -> Result<Refusal, Malformed> {
        let small =
            |value: u64| u16::try_from(value).map_err(|_| Malformed::Inconsistent { what: "version" });
        Ok(match code {
            1 => Refusal::WrongVersion { min: small(a)?, max: small(b)? },
            2 => Refusal::WrongCluster,
            3 => Refusal::WrongSecret,
            4 => Refusal::StaleEpoch { have: a },
            5 => Refusal::Busy { connections: u32::try_from(a).unwrap_or(u32::MAX) },
            6 => Refusal::WrongNode { have: a },
            7 => Refusal::NoSession,
            _ => return Err(Malformed::Unknown { what: "refusal", value: code.into() }),
        })
    }
}

impl Hello {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.put_u16(self.version_min);
        out.put_u16(self.version_max);
        out.put_u32(self.identity.capabilities);
        out.put_u64(self.identity.node.0);
        out.put_u64(self.identity.epoch.0);
        out.put_u64(self.target.0);
        let (session, lane, lanes) = match self.role {
            Role::Control { lanes } => (0, 0, lanes),
            Role::Lane { session, lane } => (session, lane, 0),
        };
        out.put_u64(session);
        out.put_u16(lane);
        out.put_u16(lanes);
        out.extend_from_slice(&self.nonce);
        let name = self.identity.cluster.as_bytes();
        let name = &name[..name.len().min(CLUSTER_BYTES_MAX)];
        out.push(name.len() as u8);
        out.extend_from_slice(name);
    }

    pub(super) fn decode(body: &[u8]) -> Result<Hello, Malformed> {
        let mut fields = Reader::new(body);
        let (version_min, version_max) = (fields.u16("version")?, fields.u16("version")?);
        let capabilities = fields.u32("capabilities")?;
        let (node, epoch) = (NodeId(fields.u64("node")?), Epoch(fields.u64("epoch")?));
        let target = NodeId(fields.u64("target")?);
        let (session, lane) = (fields.u64("session")?, fields.u16("lane")?);
        let lanes = fields.u16("lanes")?;
        let nonce = fields.array("nonce")?;
        let length = usize::from(fields.u8("length of the cluster's name")?);
        if length > CLUSTER_BYTES_MAX {
            let max = CLUSTER_BYTES_MAX as u64;
            return Err(Malformed::TooLong { what: "cluster's name", have: length as u64, max });
        }
        let cluster = core::str::from_utf8(fields.take(length, "cluster's name")?)
            .map_err(|_| Malformed::Inconsistent { what: "cluster's name" })?;
        let role = match (lane, lanes) {
            (0, lanes) if lanes > 0 && lanes <= LANES_MAX && session == 0 => Role::Control { lanes },
            (lane, 0) if lane > 0 && lane <= LANES_MAX => Role::Lane { session, lane },
            _ => return Err(Malformed::Inconsistent { what: "lanes" }),
        };
        let identity = Identity { cluster: cluster.into(), node, epoch, capabilities };
        Ok(Hello { version_min, version_max, identity, target, role, nonce })
    }
}

impl Challenge {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.put_u16(self.version);
        out.put_u16(0);
        out.put_u32(self.capabilities);
        out.put_u64(self.node.0);
        out.put_u64(self.epoch.0);
        out.extend_from_slice(&self.nonce);
    }

    pub(super) fn decode(body: &[u8]) -> Result<Challenge, Malformed> {
        let mut fields = Reader::new(body);
        let version = fields.u16("version")?;
        fields.u16("reserved")?;
        Ok(Challenge {
            version,
            capabilities: fields.u32("capabilities")?,
            node: NodeId(fields.u64("node")?),
            epoch: Epoch(fields.u64("epoch")?),
            nonce: fields.array("nonce")?,
        })
    }
}

impl Welcome {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.mac);
        out.extend_from_slice(&self.limits());
    }

    fn limits(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.session.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.requests_max.to_le_bytes());
        bytes[12..].copy_from_slice(&self.message_credit_bytes.to_le_bytes());
        bytes
    }

    pub(super) fn decode(body: &[u8]) -> Result<Welcome, Malformed> {
        let mut fields = Reader::new(body);
        Ok(Welcome {
            mac: fields.array("proof")?,
            session: fields.u64("session")?,
            requests_max: fields.u32("limit of requests")?,
            message_credit_bytes: fields.u32("credit")?,
        })
    }
}

/// Why a handshake failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// The acceptor refused.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Not what is said at this point.
    #[error("the peer sent a frame that does not belong at this point of the handshake")]
    OutOfOrder,
    /// The acceptor could not prove that it knows the secret.
    #[error("the peer at this address does not know the cluster's secret: it is not one of ours")]
    Impostor,
    /// The acceptor chose a version that was not offered.
    #[error("the peer chose protocol version {have}, which was not offered")]
    Version {
        /// Its choice.
        have: u16,
    },
}

/// The other end, proven.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Agreed {
    /// The version that both speak.
    pub version: u16,
    /// Capabilities of both.
    pub capabilities: u32,
    /// Who it is.
    pub node: NodeId,
    /// Its incarnation.
    pub epoch: Epoch,
    /// The connection.
    pub session: u64,
    /// See [`Welcome::requests_max`].
    pub requests_max: u32,
    /// See [`Welcome::message_credit_bytes`].
    pub message_credit_bytes: u32,
}

/// What a dialer does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DialStep {
    /// Send this frame and wait for the answer.
    Send(Frame<'static>),
    /// The stream is open.
    Open(Agreed),
}

/// The dialing end of one stream's handshake.
#[derive(Debug)]
pub struct Dialer {
    hello: Hello,
    challenge: Option<Challenge>,
}

impl Dialer {
    /// Begins; the frame is to be sent first.
    pub fn new(
        identity: Identity,
        target: NodeId,
        role: Role,
        nonce: [u8; PROOF_BYTES],
    ) -> (Self, Frame<'static>) {
        let hello = Hello { version_min: VERSION_MIN, version_max: VERSION, identity, target, role, nonce };
        (Dialer { hello: hello.clone(), challenge: None }, Frame::Hello(hello))
    }

    /// Takes the acceptor's next frame.
    pub fn receive(&mut self, frame: &Frame<'_>, prover: &dyn Prover) -> Result<DialStep, HandshakeError> {
        match (frame, &self.challenge) {
            (Frame::Refuse(refusal), _) => Err(HandshakeError::Refused(*refusal)),
            (Frame::Challenge(challenge), None) => {
                if !(self.hello.version_min..=self.hello.version_max).contains(&challenge.version) {
                    return Err(HandshakeError::Version { have: challenge.version });
                }
                let mac = prove(prover, DIALER, &self.hello, challenge, &[]);
                self.challenge = Some(challenge.clone());
                Ok(DialStep::Send(Frame::Proof(Proof { mac })))
            }
            (Frame::Welcome(welcome), Some(challenge)) => {
                let expected = prove(prover, ACCEPTOR, &self.hello, challenge, &welcome.limits());
                if !same(&expected, &welcome.mac) {
                    return Err(HandshakeError::Impostor);
                }
                Ok(DialStep::Open(Agreed {
                    version: challenge.version,
                    capabilities: self.hello.identity.capabilities & challenge.capabilities,
                    node: challenge.node,
                    epoch: challenge.epoch,
                    session: welcome.session,
                    requests_max: welcome.requests_max,
                    message_credit_bytes: welcome.message_credit_bytes,
                }))
            }
            _ => Err(HandshakeError::OutOfOrder),
        }
    }
}

/// What an acceptor does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AcceptStep {
    /// Send this frame and wait for the answer.
    Send(Frame<'static>),
    /// Send the refusal and close.
    Refuse(Refusal),
    /// The dialer has proven itself: admit it with [`Acceptor::welcome`], or refuse it.
    Proven,
}

/// The accepting end of one stream's handshake.
#[derive(Debug)]
pub struct Acceptor {
    identity: Identity,
    nonce: [u8; PROOF_BYTES],
    heard: Option<(Hello, Challenge)>,
}

impl Acceptor {
    /// Waits for a hello.
    pub fn new(identity: Identity, nonce: [u8; PROOF_BYTES]) -> Acceptor {
        Acceptor { identity, nonce, heard: None }
    }

    /// Takes the dialer's next frame.
    pub fn receive(&mut self, frame: &Frame<'_>, prover: &dyn Prover) -> Result<AcceptStep, HandshakeError> {
        match (frame, &self.heard) {
            (Frame::Hello(hello), None) => {
                let version = hello.version_max.min(VERSION);
                if version < hello.version_min.max(VERSION_MIN) {
                    return Ok(AcceptStep::Refuse(Refusal::WrongVersion { min: VERSION_MIN, max: VERSION }));
                }
                if hello.identity.cluster != self.identity.cluster {
                    return Ok(AcceptStep::Refuse(Refusal::WrongCluster));
                }
                let challenge = Challenge {
                    version,
                    capabilities: self.identity.capabilities,
                    node: self.identity.node,
                    epoch: self.identity.epoch,
                    nonce: self.nonce,
                };
                self.heard = Some((hello.clone(), challenge.clone()));
                Ok(AcceptStep::Send(Frame::Challenge(challenge)))
            }
            (Frame::Proof(proof), Some((hello, challenge))) => {
                let expected = prove(prover, DIALER, hello, challenge, &[]);
                if !same(&expected, &proof.mac) {
                    return Ok(AcceptStep::Refuse(Refusal::WrongSecret));
                }
                if hello.target != NodeId(0) && hello.target != self.identity.node {
                    return Ok(AcceptStep::Refuse(Refusal::WrongNode { have: self.identity.node.0 }));
                }
                Ok(AcceptStep::Proven)
            }
            _ => Err(HandshakeError::OutOfOrder),
        }
    }

    /// What the dialer said, once it has.
    pub fn hello(&self) -> Option<&Hello> {
        self.heard.as_ref().map(|(hello, _)| hello)
    }

    /// Admits a dialer after [`AcceptStep::Proven`]: the frame to send, and what was agreed. `None` before that.
    pub fn welcome(
        &self,
        session: u64,
        requests_max: u32,
        message_credit_bytes: u32,
        prover: &dyn Prover,
    ) -> Option<(Frame<'static>, Agreed)> {
        let (hello, challenge) = self.heard.as_ref()?;
        let mut welcome = Welcome { mac: [0; PROOF_BYTES], session, requests_max, message_credit_bytes };
        welcome.mac = prove(prover, ACCEPTOR, hello, challenge, &welcome.limits());
        let agreed = Agreed {
            version: challenge.version,
            capabilities: hello.identity.capabilities & self.identity.capabilities,
            node: hello.identity.node,
            epoch: hello.identity.epoch,
            session,
            requests_max,
            message_credit_bytes,
        };
        Some((Frame::Welcome(welcome), agreed))
    }
}

const DIALER: &[u8] = b"dflow stream dialer 1\0";
const ACCEPTOR: &[u8] = b"dflow stream acceptor 1\0";

fn prove(
    prover: &dyn Prover,
    label: &[u8],
    hello: &Hello,
    challenge: &Challenge,
    limits: &[u8],
) -> [u8; PROOF_BYTES] {
    let (mut said, mut answered) = (Vec::new(), Vec::new());
    hello.encode(&mut said);
    challenge.encode(&mut answered);
    // Lengths before contents, so that no two transcripts join to the same bytes.
    let lengths = [said.len() as u8, answered.len() as u8, limits.len() as u8];
    prover.mac(&[label, &lengths, &said, &answered, limits])
}

/// Compares in a time that does not depend on where the first difference is.
fn same(a: &[u8; PROOF_BYTES], b: &[u8; PROOF_BYTES]) -> bool {
    let different = a.iter().zip(b).fold(0, |sum, (a, b)| sum | (a ^ b));
    core::hint::black_box(different) == 0
}
