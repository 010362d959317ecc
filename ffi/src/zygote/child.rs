//! What a process does right after it was forked as a worker.

use crate::fault::{Code, Fault};
use crate::process;
use crate::worker::Worker;
use dflow_shm::pass::Channel;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// What came with the fork message: link, socket, the pipe for stdout and stderr, the bell.
pub(super) struct Inherited {
    pub(super) fds: [OwnedFd; 4],
    /// The zygote's pid.
    pub(super) parent: u32,
}

/// Takes the socket to the node away from the number under which it was inherited, so that programs
/// started later do not inherit it. A number below 3 becomes `/dev/null`.
pub(super) fn take_socket(fd: i32) -> io::Result<Channel> {
    // SAFETY: F_DUPFD_CLOEXEC makes a new descriptor of a number at least 3; the result is checked.
    let copy = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) };
    if copy < 0 {
        return Err(io::Error::last_os_error());
    }
    if fd < 3 {
        onto(File::open("/dev/null")?.as_raw_fd(), fd)?;
    } else {
        // SAFETY: the node handed this number to this process for this use; nobody else here owns it.
        unsafe { libc::close(fd) };
    }
    // SAFETY: `copy` is new and nobody else owns it.
    Ok(Channel::from_fd(unsafe { OwnedFd::from_raw_fd(copy) }))
}

fn onto(from: i32, to: i32) -> io::Result<()> {
    // SAFETY: dup2 replaces one of the standard descriptors, which no owner in this process closes.
    if unsafe { libc::dup2(from, to) } < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Makes this process a worker.
pub(super) fn enter(inherited: Inherited, memory_bytes: u64) -> Result<Worker, Fault> {
    let Inherited { fds: [link, socket, output, bell], parent } = inherited;
    isolate(output, parent, memory_bytes)
        .map_err(|e| Fault::new(Code::Node, format!("cannot set up the worker: {e}")))?;
    Worker::start(link, socket, bell)
}

fn isolate(output: OwnedFd, parent: u32, memory_bytes: u64) -> io::Result<()> {
    // A group of its own, by which it is killed with all it starts; and no terminal.
    process::own_session();
    process::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong)?;
    // Orphans of this worker's children stay its own children and are seen at the invocation's end.
    process::prctl(libc::PR_SET_CHILD_SUBREAPER, 1)?;
    if std::os::unix::process::parent_id() != parent {
        return Err(io::Error::other("the zygote died"));
    }
    onto(File::open("/dev/null")?.as_raw_fd(), 0)?;
    onto(output.as_raw_fd(), 1)?;
    onto(output.as_raw_fd(), 2)?;
    if memory_bytes > 0 {
        // Private memory only: the arena is mapped whole and is not the function's.
        let limit = libc::rlimit { rlim_cur: memory_bytes, rlim_max: memory_bytes };
        // SAFETY: setrlimit reads the struct it is given.
        if unsafe { libc::setrlimit(libc::RLIMIT_DATA, &raw const limit) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}
