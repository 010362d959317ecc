//! Sleeping on a word of shared memory and waking its sleepers; and the [`Bell`] that wakes a node.
//!
//! The operations are the shared kind (not `FUTEX_PRIVATE`): the kernel then keys a word by its
//! file and offset, so that processes that map it at different addresses, or read-only, meet.

use core::sync::atomic::AtomicU32;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

/// Why [`wait`] returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Woke {
    /// Someone woke the word, or a signal arrived: look again.
    Woken,
    /// The word did not hold the expected value: look again.
    Changed,
    /// The time is over.
    TimedOut,
}

/// Sleeps while `word` holds `expected`, for at most `timeout`. May return early; the caller looks
/// at what it waits for again.
pub fn wait(word: &AtomicU32, expected: u32, timeout: Duration) -> Woke {
    let limit = libc::timespec {
        tv_sec: timeout.as_secs().min(i32::MAX as u64) as libc::time_t,
        tv_nsec: timeout.subsec_nanos() as libc::c_long,
    };
    // SAFETY: FUTEX_WAIT reads four aligned bytes at `word`, which the reference keeps valid for
    // the length of the call, and `limit`, which lives on this stack.
    let result = unsafe {
        libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAIT, expected, &raw const limit)
    };
    if result == 0 {
        return Woke::Woken;
    }
    match std::io::Error::last_os_error().raw_os_error() {
        Some(libc::ETIMEDOUT) => Woke::TimedOut,
        Some(libc::EAGAIN) => Woke::Changed,
        _ => Woke::Woken,
    }
}

/// Wakes up to `sleepers_max` sleepers of `word`; returns how many there were. Costs a system call
/// even when there is none, about 0.3 us.
pub fn wake(word: &AtomicU32, sleepers_max: u32) -> u32 {
    let count = sleepers_max.min(i32::MAX as u32) as i32;
    // SAFETY: FUTEX_WAKE only uses the address as a key; the reference keeps it mapped.
    let woken = unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, count) };
    u32::try_from(woken).unwrap_or(0)
}

/// Spins for up to `spin_us` microseconds until `done` holds; returns whether it does.
pub fn spin(spin_us: u32, mut done: impl FnMut() -> bool) -> bool {
    if done() {
        return true;
    }
    if spin_us == 0 {
        return false;
    }
    let end = Instant::now() + Duration::from_micros(u64::from(spin_us));
    loop {
        // The clock is read once in 32 turns: reading it costs as much as several looks.
        for _ in 0..32 {
            core::hint::spin_loop();
            if done() {
                return true;
            }
        }
        if Instant::now() >= end {
            return false;
        }
    }
}

/// An eventfd by which workers wake a node that sleeps in epoll: it becomes readable when rung.
#[derive(Debug)]
pub struct Bell {
    fd: OwnedFd,
}

impl Bell {
    /// A new bell; its reads never block.
    pub fn new() -> io::Result<Bell> {
        // SAFETY: eventfd makes a new descriptor and touches no memory.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and nobody else owns it.
        Ok(Bell { fd: unsafe { OwnedFd::from_raw_fd(fd) } })
    }

    /// A bell that another process made.
    pub fn from_fd(fd: OwnedFd) -> Bell {
        Bell { fd }
    }

    /// Makes it readable.
    pub fn ring(&self) {
        let one = 1_u64;
        // SAFETY: write reads the eight bytes of `one`, which lives on this stack. A full counter
        // (EAGAIN) means that it is readable anyway.
        unsafe { libc::write(self.fd.as_raw_fd(), (&raw const one).cast(), 8) };
    }

    /// Makes it unreadable; returns whether it had been rung.
    pub fn drain(&self) -> bool {
        let mut count = 0_u64;
        // SAFETY: read fills at most the eight bytes of `count`.
        unsafe { libc::read(self.fd.as_raw_fd(), (&raw mut count).cast(), 8) == 8 }
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::sync::atomic::Ordering;

    #[test]
    fn a_changed_word_is_not_slept_on() {
        let word = AtomicU32::new(1);
        assert_eq!(wait(&word, 0, Duration::from_secs(5)), Woke::Changed);
        assert_eq!(wait(&word, 1, Duration::from_millis(1)), Woke::TimedOut);
        assert_eq!(wake(&word, 10), 0);
    }

    #[test]
    fn a_sleeper_is_woken() {
        let word = AtomicU32::new(0);
        std::thread::scope(|scope| {
            let sleeper = scope.spawn(|| {
                while word.load(Ordering::Acquire) == 0 {
                    wait(&word, 0, Duration::from_secs(10));
                }
            });
            word.store(1, Ordering::Release);
            wake(&word, 1);
            sleeper.join().expect("the sleeper ends");
        });
        assert!(spin(1000, || word.load(Ordering::Relaxed) == 1));
        assert!(!spin(10, || false));
    }
}
