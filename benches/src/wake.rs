//! W: one futex wake, one way, between two processes on two cores.
//!
//! The sleeper is this program, started again. Before the wake the waker keeps its own core busy, as
//! a function does. Both read the same clock: the sample goes from before the waker's system call to
//! the sleeper's first instruction after its own.
//!
//! How long a core has been idle changes what it takes to wake it, so there are two: a sleeper that
//! waited for a function at work, and one that has only just fallen asleep, as in a chain of short steps.

use crate::machine::{pin, two_cores};
use crate::report::{Goal, Report};
use crate::stats::Samples;
use anyhow::{Context, Result, ensure};
use dflow_control::bench::one::now_ns;
use dflow_proto::ids::{Extent, SegmentId};
use dflow_shm::futex;
use dflow_shm::segment::{PartMut, Segment};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::Ordering::{Acquire, Release, SeqCst};
use std::time::Duration;

/// How long a reader has slept whose producer computes.
pub(crate) const LONG: Duration = Duration::from_millis(2);
/// How long one has slept in a chain of steps that do nothing.
pub(crate) const SHORT: Duration = Duration::from_micros(50);
/// A peer that is silent for this long is dead.
const PATIENCE: Duration = Duration::from_secs(10);

const BYTES: u64 = 4096;
// Words on lines of their own. The sleeper sleeps on PING, the waker on PONG.
const PING: usize = 0;
const PONG: usize = 64;
const READY: usize = 128;
const WOKEN_NS: usize = 192;

/// The reference of all hand-overs.
pub(crate) struct Wake {
    part: PartMut,
    peer: Child,
    cpu: usize,
    before: rustix::thread::CpuSet,
    asleep: Duration,
    turn: u32,
    /// Microseconds, of all turns so far.
    samples: Samples,
}

impl Wake {
    /// Starts the sleeper, which will have slept for `asleep` at each wake; `None` if this machine has
    /// only one core.
    pub(crate) fn start(asleep: Duration) -> Result<Option<Wake>> {
        let Some((mine, other)) = two_cores() else { return Ok(None) };
        let segment = Segment::create(SegmentId(0), "bench-wake", BYTES)?;
        let part = part(&segment)?;
        let path = format!("/proc/{}/fd/{}", std::process::id(), segment.as_fd().as_raw_fd());
        let peer = Command::new(std::env::current_exe()?)
            .args(["sleeper", &path, &other.to_string()])
            .stdin(Stdio::piped())
            .spawn()
            .context("cannot start the sleeping process")?;
        let before = rustix::thread::sched_getaffinity(None)?;
        let mut wake = Wake { part, peer, cpu: mine, before, asleep, turn: 0, samples: Samples::new() };
        // The segment's descriptor must stay open until the peer has mapped it.
        wake.measure(20)?;
        wake.samples = Samples::new();
        Ok(Some(wake))
    }

    /// Takes `n` samples and gives their median; they also count into [`Wake::samples`].
    pub(crate) fn measure(&mut self, n: usize) -> Result<f64> {
        pin(self.cpu)?;
        let taken = self.turns(n);
        rustix::thread::sched_setaffinity(None, &self.before)?;
        let taken = taken?;
        self.samples.extend(&taken);
        Ok(taken.median())
    }

    /// All samples so far, in microseconds.
    pub(crate) fn samples(&self) -> &Samples {
        &self.samples
    }

    fn turns(&mut self, n: usize) -> Result<Samples> {
        let mut taken = Samples::new();
        for _ in 0..n {
            self.turn += 1;
            self.await_word(READY, self.turn)?;
            let end = now_ns() + self.asleep.as_nanos() as u64;
            while now_ns() < end {
                std::hint::spin_loop();
            }
            let from = now_ns();
            self.part.word(PING).store(self.turn, Release);
            futex::wake(self.part.word(PING), 1);
            self.await_word(PONG, self.turn)?;
            let woken = self.part.double(WOKEN_NS).load(Acquire);
            taken.push(woken.saturating_sub(from) as f64 / 1000.0);
        }
        Ok(taken)
    }

    /// Spins until the peer has set a word to `value`.
    fn await_word(&self, at: usize, value: u32) -> Result<()> {
        let limit = PATIENCE.as_micros() as u32;
        let there = futex::spin(limit, || self.part.word(at).load(Acquire) == value);
        ensure!(there, "the sleeping process does not answer");
        Ok(())
    }
}

impl Drop for Wake {
    fn drop(&mut self) {
        // The peer ends by itself when its standard input does; a kill makes it sooner.
        let _ = self.peer.kill();
        let _ = self.peer.wait();
    }
}

/// The life of the other process.
pub(crate) fn sleeper(path: &str, cpu: usize) -> Result<()> {
    let file =
        File::options().read(true).write(true).open(path).with_context(|| format!("cannot open {path}"))?;
    let part = part(&Segment::from_fd(SegmentId(0), file.into(), BYTES)?)?;
    pin(cpu)?;
    let mut turn = 0;
    loop {
        part.word(READY).store(turn + 1, Release);
        while part.word(PING).load(Acquire) == turn {
            if futex::wait(part.word(PING), turn, PATIENCE) == futex::Woke::TimedOut && orphaned() {
                return Ok(());
            }
        }
        let woken = now_ns();
        turn = part.word(PING).load(SeqCst);
        part.double(WOKEN_NS).store(woken, Release);
        part.word(PONG).store(turn, Release);
    }
}

/// Whether the process that started this one is gone: its end of the pipe is closed.
fn orphaned() -> bool {
    let stdin = std::io::stdin();
    let mut poll = [rustix::event::PollFd::new(&stdin, rustix::event::PollFlags::IN)];
    let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    // Nobody ever writes to it, so that readable can only mean closed.
    rustix::event::poll(&mut poll, Some(&now)).is_ok_and(|n| n > 0)
}

fn part(segment: &Segment) -> Result<PartMut> {
    Ok(segment.map_node()?.part_mut(Extent { segment: SegmentId(0), offset: 0, bytes: BYTES })?)
}

/// The benchmark `wake`.
pub(crate) fn bench(report: &mut Report, n: Option<usize>) -> Result<()> {
    report.begin("wake");
    for (asleep, name) in [(LONG, "2 ms"), (SHORT, "50 us")] {
        let Some(mut wake) = Wake::start(asleep)? else {
            report.skip("W", "one core");
            return Ok(());
        };
        wake.measure(n.unwrap_or(1000))?;
        report.row(&format!("W: futex wake, one way, asleep for {name}"), wake.samples(), "us", &Goal::None);
    }
    Ok(())
}
