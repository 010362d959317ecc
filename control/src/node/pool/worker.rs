//! One function process as the node sees it.

use super::launch::Zygote;
use super::{Job, PoolId};
use crate::node::logs::{Logs, Tail};
use dflow_dataplane::Arena;
use dflow_proto::zygote::{FromWorker, ToWorker, ToZygote};
use dflow_proto::{SegmentId, Tick, WorkerId};
use dflow_shm::link::NodeEnd;
use dflow_shm::pass::Channel;
use rustix::pipe::{PipeFlags, pipe_with};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// What a worker does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Being made; has not said `Ready`.
    Forking,
    /// Waits for a job.
    Idle {
        /// Since when.
        since: Tick,
    },
    /// Executes a job.
    Busy(Job),
    /// Being ended; its process may still be there.
    Dying {
        /// What it was busy with.
        job: Option<Job>,
        /// When asking is over and killing begins.
        kill_at: Option<Tick>,
    },
}

/// A function process.
pub(crate) struct Worker {
    pub(crate) pool: PoolId,
    pub(crate) state: State,
    /// Commands and reports.
    pub(crate) link: NodeEnd,
    /// What it printed of late.
    pub(crate) tail: Tail,
    /// Its process; 0 until the zygote has told.
    pub(crate) pid: u32,
    /// Jobs it was given.
    pub(crate) uses: u64,
    /// For what carries descriptors.
    socket: Channel,
    /// Segments it has been given, and whether to write.
    shown: BTreeMap<SegmentId, bool>,
}

impl Worker {
    /// Has the zygote make one.
    ///
    /// # Errors
    /// Text for the function's author: a resource of this machine is short, or the zygote is gone.
    pub(super) fn fork(
        id: WorkerId,
        pool: PoolId,
        zygote: &Zygote,
        arena: &Arena,
        doorbell: &OwnedFd,
        logs: &Logs,
        strict: bool,
    ) -> Result<Worker, String> {
        let text = |what: &str, e: &dyn std::fmt::Display| format!("cannot {what} for a worker: {e}");
        let (segment, link) = NodeEnd::create().map_err(|e| text("make a link", &e))?;
        let (socket, theirs) = Channel::pair().map_err(|e| text("make a socket", &e))?;
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).map_err(|e| text("make a pipe", &e))?;
        rustix::io::ioctl_fionbio(&reader, true).map_err(|e| text("set up a pipe", &e))?;
        let tail = logs.add(id.0, reader).map_err(|e| text("watch a pipe", &e))?;
        let fds = [segment.as_fd(), theirs.as_fd(), writer.as_fd(), doorbell.as_fd()];
        zygote.send(&ToZygote::Fork { worker: id }, &fds).map_err(|e| text("ask the fork server", &e))?;
        let shown = BTreeMap::new();
        let mut worker = Worker { pool, state: State::Forking, link, tail, pid: 0, uses: 0, socket, shown };
        let main = SegmentId(0);
        // A strict function is given no descriptor that it could write to others' memory by.
        let found = if strict { arena.segment_readonly(main) } else { arena.segment(main) };
        let (fd, bytes) = found.ok_or("the arena has no main segment")?;
        worker.show(main, fd.as_fd(), bytes, !strict).map_err(|e| text("share the arena", &e))?;
        Ok(worker)
    }

    /// What it is, or was last, busy with.
    pub(crate) fn job(&self) -> Option<Job> {
        match self.state {
            State::Busy(job) | State::Dying { job: Some(job), .. } => Some(job),
            State::Forking | State::Idle { .. } | State::Dying { job: None, .. } => None,
        }
    }

    pub(super) fn kill_due(&self, now: Tick) -> bool {
        matches!(self.state, State::Dying { kill_at: Some(at), .. } if at <= now)
    }

    /// Whether it has been given the segment, and to write if that is what matters.
    pub(crate) fn knows(&self, segment: SegmentId, writable: bool) -> bool {
        self.shown.get(&segment).is_some_and(|may_write| *may_write >= writable)
    }

    /// Gives it a segment; before anything that names it.
    pub(crate) fn show(
        &mut self,
        id: SegmentId,
        fd: BorrowedFd<'_>,
        bytes: u64,
        writable: bool,
    ) -> Result<(), dflow_shm::pass::PassError> {
        self.socket.send(&ToWorker::Segment { id, bytes, writable }, &[fd], false)?;
        self.shown.insert(id, writable);
        Ok(())
    }

    /// Takes a segment's descriptor back, so that its memory can go.
    pub(crate) fn hide(&mut self, id: SegmentId) {
        if self.shown.remove(&id).is_some() {
            // A worker that cannot be told is ending, and its descriptors with it.
            let _ = self.socket.send(&ToWorker::Gone { id }, &[], false);
        }
    }

    /// The file that came before the report with this ticket.
    pub(crate) fn take_file(&self, ticket: u32) -> Option<OwnedFd> {
        let (FromWorker::File { ticket: of }, fds) = self.socket.receive::<FromWorker>(false).ok()?;
        (of == ticket).then(|| fds.into_iter().next()).flatten()
    }
}
