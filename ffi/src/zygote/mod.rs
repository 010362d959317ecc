//! The zygote: loads a function's code once, forks workers on the node's word, and outlives all of
//! them to clean up, also when the node was killed.

mod child;
mod strays;

use crate::fault::{Code, Fault};
use crate::process::{self, Children};
use crate::worker::Worker;
use child::Inherited;
use dflow_proto::WorkerId;
use dflow_proto::zygote::{Exit, FromZygote, ToZygote};
use dflow_shm::pass::{Channel, PassError};
use dflow_shm::spawn::ZygoteArgs;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::DirBuilder;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::{Duration, Instant};
use strays::Strays;

/// How often the zygote looks for orphans of its workers while it has children. Milliseconds.
const SWEEP_MS: i32 = 1000;
/// And while some that were killed are not gone yet. Milliseconds.
const SWEEP_BUSY_MS: i32 = 10;
/// At its end, how long the zygote waits for killed processes to be gone.
const END_TIMEOUT: Duration = Duration::from_secs(10);
/// Messages to the node are cut to this. Bytes.
const TEXT_MAX: usize = 12 << 10;

#[derive(Debug)]
struct Child {
    pid: i32,
    /// Readable when the process has ended. Absent where the kernel has none; the sweep finds it then.
    pidfd: Option<OwnedFd>,
}

/// What [`Zygote::serve`] returns with.
pub enum Served {
    /// In the zygote: the node is gone and everything is cleaned up.
    NodeGone,
    /// In a new process: the worker.
    Worker(Box<Worker>),
}

/// How the taking of messages ended.
enum Taken {
    /// There are no more for now.
    All,
    /// The socket is closed.
    NodeGone,
    /// This process is a new worker.
    Forked(Inherited),
}

/// A fork server.
pub struct Zygote {
    args: ZygoteArgs,
    socket: Channel,
    started: Instant,
    workers: BTreeMap<WorkerId, Child>,
    strays: Strays,
}

impl Zygote {
    /// Takes up the connection to the node that the arguments name.
    pub fn open(args: &[OsString]) -> Result<Zygote, Fault> {
        let started = Instant::now();
        let args = ZygoteArgs::parse(args).map_err(|e| Fault::new(Code::Argument, e.to_string()))?;
        let os = |what: &str, e: io::Error| Fault::new(Code::Node, format!("cannot {what}: {e}"));
        let socket = child::take_socket(args.socket).map_err(|e| os("use the socket to the node", e))?;
        // A terminal's Ctrl-C is for the node, which then ends its zygotes in order.
        process::own_session();
        // While user code loads nobody reads the socket: if the node dies then, so does this.
        process::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong)
            .map_err(|e| os("ask to die with the node", e))?;
        // Orphans of workers come to this process, which can then end them.
        process::prctl(libc::PR_SET_CHILD_SUBREAPER, 1).map_err(|e| os("become a subreaper", e))?;
        Ok(Zygote { args, socket, started, workers: BTreeMap::new(), strays: Strays::default() })
    }

    /// What it was told.
    pub fn args(&self) -> &ZygoteArgs {
        &self.args
    }

    /// Tells the node that the code cannot be loaded.
    pub fn failed(&self, message: &str, traceback: &str) -> Result<(), Fault> {
        let message = FromZygote::LoadFailed { message: cut(message), traceback: cut(traceback) };
        self.socket.send(&message, &[], true).map_err(|e| Fault::new(Code::Node, e.to_string()))
    }

    /// Serves until the node is gone. `fork` is fork(2), or what a language needs in its place.
    pub fn serve(mut self, mut fork: impl FnMut() -> io::Result<i32>) -> Result<Served, Fault> {
        let us = self.started.elapsed().as_micros() as u64;
        self.strays = Strays::spare_existing();
        // From here on the end of the socket is noticed, and cleaning up must come before dying. So
        // the scratch directory is made after this: one that died while loading leaves none.
        process::prctl(libc::PR_SET_PDEATHSIG, 0)
            .map_err(|e| Fault::new(Code::Node, format!("cannot outlive the node: {e}")))?;
        if let Some(scratch) = &self.args.scratch
            && let Err(error) = DirBuilder::new().mode(0o700).create(scratch)
        {
            let message = format!("cannot make the scratch directory {}: {error}", scratch.display());
            self.failed(&message, "")?;
            return Ok(Served::NodeGone);
        }
        if self.send(&FromZygote::Loaded { us }) {
            loop {
                self.wait();
                match self.take_messages(&mut fork) {
                    Taken::All => {}
                    Taken::NodeGone => break,
                    Taken::Forked(inherited) => return self.become_worker(inherited),
                }
                self.reap();
            }
        }
        self.end();
        Ok(Served::NodeGone)
    }

    /// Whether the node was there to take it.
    fn send(&self, message: &FromZygote) -> bool {
        self.socket.send(message, &[], true).is_ok()
    }

    fn wait(&self) {
        let pidfds = self.workers.values().map(|child| child.pidfd.as_ref().map(|pidfd| pidfd.as_fd()));
        let fds: Vec<_> = std::iter::once(Some(self.socket.as_fd())).chain(pidfds).collect();
        let timeout = match (self.strays.any_dying(), self.workers.is_empty()) {
            (true, _) => SWEEP_BUSY_MS,
            (false, false) => SWEEP_MS,
            (false, true) => -1,
        };
        process::poll(&fds, timeout);
    }

    /// Does what the node asks for.
    fn take_messages(&mut self, fork: &mut impl FnMut() -> io::Result<i32>) -> Taken {
        loop {
            match self.socket.receive::<ToZygote>(false) {
                Ok((ToZygote::Fork { worker }, fds)) => {
                    if let Some(inherited) = self.fork(worker, fds, fork) {
                        return Taken::Forked(inherited);
                    }
                }
                Ok((ToZygote::Kill { worker }, _)) => {
                    if let Some(child) = self.workers.get(&worker) {
                        // The process itself too: it may not have made its group yet.
                        process::kill(child.pid);
                        process::kill(-child.pid);
                    }
                }
                Err(PassError::NotReady) => return Taken::All,
                Err(_) => return Taken::NodeGone,
            }
        }
    }

    fn fork(
        &mut self,
        worker: WorkerId,
        fds: Vec<OwnedFd>,
        fork: &mut impl FnMut() -> io::Result<i32>,
    ) -> Option<Inherited> {
        let start = Instant::now();
        let Ok(fds) = <[OwnedFd; 4]>::try_from(fds) else {
            let message = "the message did not come with four descriptors".to_owned();
            self.send(&FromZygote::ForkFailed { worker, message });
            return None;
        };
        let parent = std::process::id();
        match fork() {
            Ok(0) => Some(Inherited { fds, parent }),
            Ok(pid) => {
                let us = start.elapsed().as_micros() as u64;
                self.workers.insert(worker, Child { pid, pidfd: process::pidfd(pid as u32) });
                self.send(&FromZygote::Forked { worker, pid: pid as u32, us });
                None
            }
            Err(error) => {
                let message = format!("fork: {error}; too many processes, or too little memory");
                self.send(&FromZygote::ForkFailed { worker, message });
                None
            }
        }
    }

    /// Continues as a worker: gives up what is the zygote's.
    fn become_worker(self, inherited: Inherited) -> Result<Served, Fault> {
        let memory_bytes = self.args.memory_bytes;
        // Closes the zygote's socket and its handles of other workers. The scratch directory stays.
        drop((self.socket, self.workers));
        child::enter(inherited, memory_bytes).map(|worker| Served::Worker(Box::new(worker)))
    }

    /// Takes leave of processes that have ended and ends those that nobody owns any more.
    fn reap(&mut self) {
        while let Children::Ended(reaped) = process::reap() {
            let found = self.workers.iter().find(|(_, child)| child.pid == reaped.pid).map(|(id, _)| *id);
            let Some(worker) = found else {
                self.strays.gone(reaped.pid);
                continue;
            };
            self.workers.remove(&worker);
            // What the worker left behind in its group goes with it.
            process::kill(-reaped.pid);
            let status = ExitStatus::from_raw(reaped.status);
            let exit = match status.code() {
                Some(code) => Exit::Code(code),
                None => Exit::Signal(status.signal().unwrap_or(libc::SIGKILL)),
            };
            let (maxrss_kib, cpu_us) = (reaped.maxrss_kib, reaped.cpu_us);
            self.send(&FromZygote::Exited { worker, exit, maxrss_kib, cpu_us });
        }
        self.strays.end_all_but(|pid| self.workers.values().any(|child| child.pid == pid));
    }

    /// Ends everything that descends from this process, and removes its files.
    fn end(&mut self) {
        for child in self.workers.values() {
            process::kill(child.pid);
            process::kill(-child.pid);
        }
        self.strays.spare_none();
        let late = Instant::now() + END_TIMEOUT;
        loop {
            let left = loop {
                match process::reap() {
                    Children::Ended(reaped) => process::kill(-reaped.pid),
                    Children::Alive => break true,
                    Children::None => break false,
                }
            };
            if !left || Instant::now() > late {
                break;
            }
            self.strays.end_all_but(|_| false);
            std::thread::sleep(Duration::from_millis(1));
        }
        self.remove_scratch();
    }

    fn remove_scratch(&self) {
        if let Some(scratch) = &self.args.scratch {
            // Whoever started this process may look for leftovers; here nobody is left to tell.
            let _ = std::fs::remove_dir_all(scratch);
        }
    }
}

fn cut(text: &str) -> String {
    // The end of a traceback says most.
    let mut from = text.len().saturating_sub(TEXT_MAX);
    while !text.is_char_boundary(from) {
        from += 1;
    }
    text[from..].to_owned()
}
