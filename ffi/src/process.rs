//! The few facts about processes that std does not give.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};

/// User and system time in microseconds of `who` (`RUSAGE_SELF` or `RUSAGE_CHILDREN`).
pub(crate) fn rusage_us(who: i32) -> u64 {
    // SAFETY: an all-zero rusage is a valid value of that plain C struct.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: getrusage fills the struct it is given.
    unsafe { libc::getrusage(who, &raw mut usage) };
    time_us(&usage)
}

/// Nanoseconds of CLOCK_MONOTONIC, which all processes share.
pub(crate) fn now_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: clock_gettime fills the struct it is given.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

fn time_us(usage: &libc::rusage) -> u64 {
    let us = |time: libc::timeval| time.tv_sec as u64 * 1_000_000 + time.tv_usec as u64;
    us(usage.ru_utime) + us(usage.ru_stime)
}

/// Whether this process has no thread but the caller. False where the C library does not tell.
pub(crate) fn has_one_thread() -> bool {
    static FLAG: OnceLock<Option<&'static AtomicU8>> = OnceLock::new();
    let flag = FLAG.get_or_init(|| {
        // SAFETY: dlsym reads the name, a C string literal that lives for ever, and changes nothing.
        let flag = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"__libc_single_threaded".as_ptr()) };
        // SAFETY: glibc's flag is one byte that lives as long as the process. glibc clears it before a
        // second thread begins, from the only thread there is, so that thread sees it cleared.
        unsafe { flag.cast::<AtomicU8>().as_ref() }
    });
    flag.is_some_and(|flag| flag.load(Ordering::Relaxed) != 0)
}

/// A child that has ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reaped {
    pub(crate) pid: i32,
    /// As waitpid gives it.
    pub(crate) status: i32,
    pub(crate) maxrss_kib: u64,
    pub(crate) cpu_us: u64,
}

/// What [`reap`] found.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Children {
    /// One that had ended.
    Ended(Reaped),
    /// Some that live.
    Alive,
    /// None at all.
    None,
}

/// Reaps one child that has ended, if there is one. Never waits.
pub(crate) fn reap() -> Children {
    loop {
        let mut status = 0;
        // SAFETY: an all-zero rusage is a valid value of that plain C struct.
        let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
        // SAFETY: wait4 fills the two values it is given.
        let pid = unsafe { libc::wait4(-1, &raw mut status, libc::WNOHANG, &raw mut usage) };
        match pid {
            0 => return Children::Alive,
            1.. => {
                let maxrss_kib = usage.ru_maxrss.max(0) as u64;
                return Children::Ended(Reaped { pid, status, maxrss_kib, cpu_us: time_us(&usage) });
            }
            _ if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
            _ => return Children::None,
        }
    }
}

/// Reaps all children that have ended; whether any is left alive.
pub(crate) fn has_children() -> bool {
    loop {
        match reap() {
            Children::Ended(_) => {}
            Children::Alive => return true,
            Children::None => return false,
        }
    }
}

/// Kills a process, or with a negative number a process group. One that is gone already is fine.
pub(crate) fn kill(pid: i32) {
    // Signalling 0, -1 or init's group would reach processes that are not ours.
    assert!(pid.unsigned_abs() > 1, "kill of {pid}");
    // SAFETY: kill takes two numbers and touches no memory; whom it may hit is asserted above.
    unsafe { libc::kill(pid, libc::SIGKILL) };
}

/// A descriptor that is readable when the child `pid` has ended. `None` where the kernel has none.
pub(crate) fn pidfd(pid: u32) -> Option<OwnedFd> {
    // SAFETY: pidfd_open touches no memory; the pid is that of a child not waited for.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    // SAFETY: a non-negative result is a new descriptor that nobody else owns.
    (fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Waits up to `timeout_ms` (for ever if negative) until one of the descriptors is readable or
/// closed; which ones are. An interrupted wait is an early end.
pub(crate) fn poll(fds: &[Option<BorrowedFd<'_>>], timeout_ms: i32) -> Vec<bool> {
    let poll = |fd: &Option<BorrowedFd<'_>>| libc::pollfd {
        fd: fd.map_or(-1, |fd| fd.as_raw_fd()),
        events: libc::POLLIN,
        revents: 0,
    };
    let mut polls: Vec<libc::pollfd> = fds.iter().map(poll).collect();
    // SAFETY: `polls` is alive and as long as said; negative descriptors are skipped.
    unsafe { libc::poll(polls.as_mut_ptr(), polls.len() as libc::nfds_t, timeout_ms) };
    polls.iter().map(|poll| poll.revents != 0).collect()
}

/// Makes reads of a descriptor return at once when there is nothing.
pub(crate) fn nonblocking(fd: BorrowedFd<'_>) {
    // SAFETY: fcntl with these commands takes and returns ints.
    unsafe {
        let flags = libc::fcntl(fd.as_raw_fd(), libc::F_GETFL);
        libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK);
    }
}

/// Makes this process the leader of a session and a group of its own. Fails if it leads a group
/// already, which serves as well.
pub(crate) fn own_session() {
    // SAFETY: setsid touches no memory.
    unsafe { libc::setsid() };
}

/// Calls prctl with one number.
pub(crate) fn prctl(option: i32, value: libc::c_ulong) -> io::Result<()> {
    // SAFETY: the options used here (PDEATHSIG, CHILD_SUBREAPER) take a number and no pointer.
    match unsafe { libc::prctl(option, value, 0, 0, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Forks a child that sleeps and then ends; for the synthetic function's fault of leaving one behind.
pub(crate) fn leave_child(time: std::time::Duration) {
    // SAFETY: the child only calls nanosleep and _exit, which are safe after a fork whatever other
    // threads of the parent held.
    unsafe {
        if libc::fork() == 0 {
            let time = libc::timespec {
                tv_sec: time.as_secs() as libc::time_t,
                tv_nsec: time.subsec_nanos() as libc::c_long,
            };
            libc::nanosleep(&raw const time, std::ptr::null_mut());
            libc::_exit(0);
        }
    }
}

/// Ends this process as a wild pointer would.
pub(crate) fn crash() -> ! {
    // SAFETY: neither call touches memory; abort covers a blocked SIGSEGV.
    unsafe {
        libc::signal(libc::SIGSEGV, libc::SIG_DFL);
        libc::kill(libc::getpid(), libc::SIGSEGV);
    }
    std::process::abort()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_thread_is_noticed() {
        // The test runner has threads of its own.
        let seen = std::thread::spawn(has_one_thread).join().expect("no panic");
        assert!(!seen);
    }
}
