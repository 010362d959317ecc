//! What the two ends say to each other, as messages of the transport under test.

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
    /// The measurement is over.
    Done,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Answer {
    /// It is there; raw sockets are taken at this port.
    Own { region: Region, raw_port: u16 },
    /// In seconds.
    Cpu { seconds: f64 },
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
    let (mut events, until) = (Vec::new(), Instant::now() + Duration::from_millis(PATIENCE_MS));
    while Instant::now() < until {
        transport.poll(&mut events, Duration::from_millis(500))?;
        for event in events.drain(..) {
            match event {
                Event::Message { bytes, .. } => {
                    return match serde_json::from_slice(&bytes) {
                        Ok(Answer::Cannot { why }) => Err(TransferError::Peer(why)),
                        Ok(answer) => Ok(answer),
                        Err(error) => Err(TransferError::Peer(error.to_string())),
                    };
                }
                Event::Completed(completion) => completion.result?,
                Event::Disconnected { why, .. } => return Err(why.into()),
                Event::Connected { .. } => {}
            }
        }
    }
    Err(TransferError::Peer(format!("no answer for {PATIENCE_MS} ms")))
}
