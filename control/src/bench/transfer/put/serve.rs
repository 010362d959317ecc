//! The end that gets, and puts back.

use super::super::raw::{self, Ticket};
use super::super::{TransferError, content};
use super::end::End;
use super::{ACK, BACK, ECHO, Word};
use dflow_dataplane::transfer::{Moved, Publication};
use dflow_dataplane::transport::{Backend, Config, NodeId, Region};
use dflow_proto::RunId;
use dflow_proto::ids::ObjectKey;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

/// Serves [`PutClient`](super::PutClient)s until the process ends; `ready` gets the address. One after the other.
pub fn serve_puts(
    config: Config,
    backend: Backend,
    ready: impl FnOnce(SocketAddr),
) -> Result<(), TransferError> {
    let me = config.node;
    let mut end = End::open(config, backend)?;
    let Some(address) = end.mover.address() else {
        return Err(TransferError::Peer("the transport listens nowhere".into()));
    };
    let raw = raw::beside(address)?;
    ready(address);
    let (mut server, mut moved) = (Server { me, raw, runs: BTreeSet::new(), acknowledged: None }, Vec::new());
    loop {
        end.poll(&mut moved, Duration::from_secs(1))?;
        for moved in moved.drain(..) {
            server.take(&mut end, moved);
        }
    }
}

struct Server {
    me: NodeId,
    raw: Ticket,
    /// Runs of the client that is there.
    runs: BTreeSet<RunId>,
    /// Bytes of the object that was acknowledged last, to be compared when its run is over.
    acknowledged: Option<u64>,
}

impl Server {
    fn take(&mut self, end: &mut End, moved: Moved) {
        match moved {
            Moved::Inline { key, bytes, .. } if key.port == ECHO => {
                self.runs.insert(key.run);
                let publication = Publication {
                    attempt: 1,
                    region: Region::default(),
                    offset: 0,
                    capacity_bytes: bytes.len() as u64,
                    size: Some(bytes.len() as u64),
                    watermark: bytes.len() as u64,
                    inline: bytes,
                    keep: None,
                };
                let back = self.back(key);
                end.mover.publish(back, publication);
                end.mover.announce(back, &[super::CLIENT]);
            }
            Moved::Inline { key, .. } => drop(self.runs.insert(key.run)),
            Moved::Arrived { key, size, .. } => {
                self.runs.insert(key.run);
                let target = end.target.clone();
                match key.port {
                    ECHO => end.put(self.back(key), &target, size, size, &[super::CLIENT]),
                    ACK => {
                        end.put(self.back(key), &target, 1, 1, &[super::CLIENT]);
                        self.acknowledged = Some(size);
                    }
                    _ => {}
                }
                end.mover.release(key);
            }
            Moved::Released { key } if key.port == BACK => end.mover.release(key),
            Moved::Said { node, bytes } => self.told(end, node, &bytes),
            Moved::Down { node, .. } if node == super::CLIENT => {
                std::mem::take(&mut self.runs).into_iter().for_each(|run| end.mover.drop_run(run));
            }
            _ => {}
        }
    }

    /// The name of what is put back, which several nodes may do.
    const fn back(&self, key: ObjectKey) -> ObjectKey {
        ObjectKey { port: BACK, item: self.me.0 as u32, ..key }
    }

    fn told(&mut self, end: &mut End, node: NodeId, word: &[u8]) {
        let done = match serde_json::from_slice(word) {
            Ok(Word::Room { bytes }) => end.room(0, bytes),
            Ok(Word::Nodes { nodes }) => {
                nodes.into_iter().for_each(|(node, address)| end.mover.add_peer(NodeId(node), address));
                Ok(())
            }
            Ok(Word::Over { run }) => {
                self.runs.remove(&run);
                end.mover.drop_run(run);
                self.acknowledged.take().map_or(Ok(()), |bytes| {
                    content::check(&end.target, 0, bytes).and_then(|()| content::clear(&end.target))
                })
            }
            Ok(other) => Err(TransferError::Peer(format!("{other:?}"))),
            Err(error) => Err(TransferError::Peer(error.to_string())),
        };
        let answer = match done {
            Ok(()) => Word::Done { raw: self.raw },
            Err(error) => Word::Cannot { why: error.to_string() },
        };
        // A client that does not listen is about to be gone.
        let _ = end.say(node, &answer);
    }
}
