//! Clocks of the kernel that `std` does not read.
//!
//! By libc and not by rustix, which ends the process where the vDSO lacks a function that it looks for, as that of a user-mode
//! kernel does: measurements run there, too.

/// Nanoseconds on the clock that all processes share; `CLOCK_MONOTONIC`.
pub(super) fn monotonic_ns() -> u64 {
    nanos(libc::CLOCK_MONOTONIC)
}

/// Processor time of this process, in seconds.
pub(super) fn cpu_seconds() -> f64 {
    nanos(libc::CLOCK_PROCESS_CPUTIME_ID) as f64 / 1e9
}

fn nanos(clock: libc::clockid_t) -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: clock_gettime fills the struct it is given, which lives for the call; every kernel has these clocks.
    unsafe { libc::clock_gettime(clock, &raw mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
