//! What the two ends say to each other, as messages of the transport under test.

use super::raw::Ticket;
use super::{PATIENCE_MS, TransferError};
use dflow_dataplane::transport::{ConnectionId, Event, Op, Region, Transport};
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Ask {
    /// Own so much memory, filled.
    Own { bytes: u64 },
    /// Processor time used until now.
    Cpu,
    /// Read so many of my objects, while I read yours, `depth` at a time; the last ones are compared.
    Pull { region: Region, bytes: u64, depth: u64, times: u64 },
    /// Be the other end of this queue pair, with memory for objects of so many bytes.
    #[cfg(feature = "rdma")]
    Verbs { card: super::verbs::Card, bytes: u64 },
    /// The measurement is over.
    Done,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Answer {
    /// It is there; raw sockets are answered there.
    Own { region: Region, raw: Ticket },
    /// In seconds.
    Cpu { seconds: f64 },
    /// They were read, and are right.
    Pulled,
    /// The other end of the queue pair.
    #[cfg(feature = "rdma")]
    Verbs { card: super::verbs::Card },
    /// Why not.
    Cannot { why: String },
}

pub(super) fn send(
    transport: &mut dyn Transport,
    connection: ConnectionId,
    what: &impl Serialize,
) -> Result<(), TransferError> {
    let message = serde_json::to_vec(what).map_err(|e| TransferError::Peer(e.to_string()))?;
    let deadline = transport.now().after_ms(PATIENCE_MS);
    transport
        .submit(Op::Send { connection, message, deadline, tag: 0 })
        .map_err(|refused| TransferError::Refused(refused.why))?;
    Ok(())
}

/// Asks, and polls until the answer is there.
pub(super) fn ask(
    transport: &mut dyn Transport,
    connection: ConnectionId,
    what: &Ask,
) -> Result<Answer, TransferError> {
    send(transport, connection, what)?;
    answer(transport, Vec::new())
}

/// The answer to what was asked: among what was `heard` already, or what comes.
pub(super) fn answer(transport: &mut dyn Transport, heard: Vec<Vec<u8>>) -> Result<Answer, TransferError> {
    if let Some(bytes) = heard.into_iter().next() {
        return decode(&bytes);
    }
    let (mut events, until) = (Vec::new(), Instant::now() + Duration::from_millis(PATIENCE_MS));
    while Instant::now() < until {
        transport.poll(&mut events, Duration::from_millis(500))?;
        for event in events.drain(..) {
            match event {
                Event::Message { bytes, .. } => return decode(&bytes),
                Event::Completed(completion) => completion.result?,
                Event::Disconnected { why, .. } => return Err(why.into()),
                Event::Connected { .. } => {}
            }
        }
    }
    Err(TransferError::Peer(format!("no answer for {PATIENCE_MS} ms")))
}

fn decode(bytes: &[u8]) -> Result<Answer, TransferError> {
    match serde_json::from_slice(bytes) {
        Ok(Answer::Cannot { why }) => Err(TransferError::Peer(why)),
        Ok(answer) => Ok(answer),
        Err(error) => Err(TransferError::Peer(error.to_string())),
    }
}
