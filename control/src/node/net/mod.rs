//! What moves objects and messages between nodes for the engine: it commands, and is told what came.
//!
//! A [`Courier`](courier::Courier) does it, with a mover over a transport. Who polls it depends on the machine.
//! Where processors are few, the engine does, in the place where it otherwise sleeps: a message then wakes one
//! thread on its way and not three. Where there are enough, a thread of its own does, so that copying bulk never
//! keeps the engine from scheduling.

mod apart;
mod courier;
mod kept;
mod message;

pub(crate) use kept::{Kept, Returned, Returns};
pub(crate) use message::{Facts, Fate, Join, Message, Reading};

use super::cluster::{ClusterConfig, NetThread, PeerConfig};
use super::view::PeerView;
use apart::Apart;
use courier::Courier;
use crossbeam::channel::Sender;
use dflow_dataplane::transfer::Moved;
use dflow_dataplane::transport::{NodeId, OpenError};
use dflow_proto::RunId;
use dflow_proto::ids::{Extent, ObjectKey, SegmentId};
use dflow_shm::segment::Map;
use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

/// With so many processors the network gets a thread of its own.
const PROCESSORS_FOR_A_THREAD: usize = 4;

/// What the engine wants.
pub(crate) enum Command {
    /// Another node exists.
    Peer(PeerConfig),
    /// Say something to a node's engine.
    Say { node: NodeId, message: Vec<u8> },
    /// Let nodes fetch an object, or the beginning of one.
    Publish { key: ObjectKey, publish: Publish, to: Vec<NodeId> },
    /// More of it can be read.
    Advance { key: ObjectKey, watermark: u64 },
    /// It is complete.
    Seal { key: ObjectKey, size: u64 },
    /// It is not needed here any more; those who were told may finish.
    Release { key: ObjectKey },
    /// It is void.
    Void { key: ObjectKey },
    /// Have it fetched, though no announcement has come.
    Fetch { key: ObjectKey },
    /// Ask a node for it.
    Ask { key: ObjectKey, node: NodeId },
    /// It is not wanted any more.
    Cancel { key: ObjectKey },
    /// The answer to [`Moved::Reserve`].
    Granted { key: ObjectKey, attempt: u32, landing: Option<(Arc<Map>, Extent, Kept)> },
    /// A run is over here.
    Drop { run: RunId },
    /// A segment's memory goes.
    Gone { segment: SegmentId },
    /// Answer with these, and what carries data to each.
    Links { views: Vec<PeerView>, reply: Sender<Vec<PeerView>> },
    /// End.
    Stop,
}

/// An object to be published.
pub(crate) struct Publish {
    /// Its producer's try, from 1.
    pub(crate) attempt: u32,
    /// Where it lies, as long as it may grow, and what keeps it there; `None` if all of it is in `inline`.
    pub(crate) place: Option<(Arc<Map>, Extent, Kept)>,
    /// Its size, once it is complete.
    pub(crate) size: Option<u64>,
    /// Bytes that are there.
    pub(crate) watermark: u64,
    /// All of it.
    pub(crate) inline: Vec<u8>,
}

/// What the engine learns.
#[derive(Debug)]
pub(crate) enum NetEvent {
    /// Of objects and messages.
    Moved(Moved),
    /// A node is gone for good, or has begun anew and forgotten all.
    Lost {
        /// Which.
        node: NodeId,
        /// How it went.
        why: String,
    },
}

/// The engine's end.
pub(crate) struct Net {
    polled: Polled,
    /// Where peers reach this node.
    pub(crate) address: Option<SocketAddr>,
}

/// By whom the courier is polled.
enum Polled {
    /// By the engine, as long as the network works.
    Here { courier: Box<Courier>, works: bool },
    /// By a thread of its own.
    Apart(Apart),
}

impl Net {
    /// Opens the transport. `main` is the arena's main segment; `doorbell` and `engine` wake the engine, one as it is
    /// rung, the other by being readable. A thread of its own looks for `spin_us` before it sleeps.
    pub(crate) fn start(
        config: &ClusterConfig,
        main: Arc<Map>,
        doorbell: Arc<OwnedFd>,
        engine: BorrowedFd<'_>,
        spin_us: u32,
    ) -> Result<Net, OpenError> {
        let apart = match config.net_thread {
            NetThread::Own => true,
            NetThread::Engine => false,
            NetThread::Auto => {
                std::thread::available_parallelism().is_ok_and(|have| have.get() >= PROCESSORS_FOR_A_THREAD)
            }
        };
        if apart {
            let (apart, address) = Apart::start(config, main, doorbell, spin_us)?;
            return Ok(Net { polled: Polled::Apart(apart), address });
        }
        // The engine itself looks as long as it is to look.
        let mut courier = Courier::open(config, main, 0)?;
        let copy = |source| OpenError::Os { what: "copy a descriptor", source };
        courier.watch(engine.try_clone_to_owned().map_err(copy)?)?;
        let address = courier.address();
        Ok(Net { polled: Polled::Here { courier: Box::new(courier), works: true }, address })
    }

    /// Has something done, soon.
    pub(crate) fn command(&mut self, command: Command) {
        match &mut self.polled {
            Polled::Here { courier, .. } => courier.command(command),
            Polled::Apart(apart) => apart.command(command),
        }
    }

    /// Sees to it that what was commanded is done though the engine may sleep in other places than here.
    pub(crate) fn ring(&mut self) {
        if let Polled::Apart(apart) = &mut self.polled {
            apart.ring();
        }
    }

    /// Waits in the network, if the engine polls it, until there is something to tell, the engine's descriptor is
    /// readable, or `wait` has passed; whether it did.
    pub(crate) fn poll(&mut self, wait: Duration) -> bool {
        let Polled::Here { courier, works: works @ true } = &mut self.polled else { return false };
        let wait = if courier.events.is_empty() { wait } else { Duration::ZERO };
        *works = courier.poll(wait).is_ok();
        true
    }

    /// Whether there is something to tell.
    pub(crate) fn has_news(&self) -> bool {
        match &self.polled {
            Polled::Here { courier, .. } => !courier.events.is_empty(),
            Polled::Apart(apart) => !apart.events.is_empty(),
        }
    }

    /// What there is to tell, `max` at most.
    pub(crate) fn take(&mut self, max: usize) -> Vec<NetEvent> {
        match &mut self.polled {
            Polled::Here { courier, .. } => {
                let count = courier.events.len().min(max);
                courier.events.drain(..count).collect()
            }
            Polled::Apart(apart) => apart.events.try_iter().take(max).collect(),
        }
    }
}
