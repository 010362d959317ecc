//! What this machine takes for the two things that functions on it wait for most.

use super::Finding;
use crate::text::time_text;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

const PROCESSES: usize = 15;
const WAKES: usize = 300;
/// Slower than this is slower than any machine it was measured on.
const PROCESS_SLOW_US: f64 = 10_000.0;
const WAKE_SLOW_US: f64 = 200.0;
const WAKE_MAX: Duration = Duration::from_millis(100);

/// A process from its start to its end. A worker is forked without `exec`, and so takes less.
pub(super) fn start_of_a_process() -> Finding {
    const CHECK: &str = "process start";
    let mut times = Vec::with_capacity(PROCESSES);
    for _ in 0..PROCESSES {
        let begun = Instant::now();
        let status = Command::new("/bin/true").stdin(Stdio::null()).status();
        if !status.is_ok_and(|s| s.success()) {
            let means = "no figure for starting processes";
            return Finding::warn(CHECK, "/bin/true does not run", means, "sudo apt-get install coreutils");
        }
        times.push(begun.elapsed());
    }
    let us = median_us(&mut times);
    let found = format!("{} from fork to exit of /bin/true (median of {PROCESSES})", time_text(us as u64));
    judge(CHECK, found, us, PROCESS_SLOW_US, "cold starts are slow")
}

/// One thread wakes another through a futex, which wakes it in turn.
pub(super) fn wake() -> Finding {
    let words = Arc::new([AtomicU32::new(0), AtomicU32::new(0)]);
    let theirs = words.clone();
    let echo = std::thread::spawn(move || {
        for turn in 0..WAKES as u32 {
            await_turn(&theirs[0], turn);
            theirs[1].store(turn + 1, Ordering::Release);
            dflow_shm::futex::wake(&theirs[1], 1);
        }
    });
    let mut times = Vec::with_capacity(WAKES);
    for turn in 0..WAKES as u32 {
        // Time for the other side to fall asleep: waking one that is awake costs nothing.
        std::thread::sleep(Duration::from_micros(50));
        let begun = Instant::now();
        words[0].store(turn + 1, Ordering::Release);
        dflow_shm::futex::wake(&words[0], 1);
        await_turn(&words[1], turn);
        times.push(begun.elapsed() / 2);
    }
    // It ends by itself, having made as many turns.
    let _ = echo.join();
    let us = median_us(&mut times);
    let found = format!("{us:.1} us one way by futex between two threads (median of {WAKES})");
    judge("wake", found, us, WAKE_SLOW_US, "each hand-over to a reader that sleeps takes so long")
}

/// Sleeps until the word is past `turn`.
fn await_turn(word: &AtomicU32, turn: u32) {
    while word.load(Ordering::Acquire) == turn {
        dflow_shm::futex::wait(word, turn, WAKE_MAX);
    }
}

fn median_us(times: &mut [Duration]) -> f64 {
    times.sort_unstable();
    times[times.len() / 2].as_nanos() as f64 / 1000.0
}

fn judge(check: &'static str, found: String, us: f64, slow_us: f64, means: &str) -> Finding {
    if us <= slow_us {
        return Finding::ok(check, found).with(us);
    }
    let mend = "end what else runs on this machine, and use the performance governor: sudo cpupower frequency-set -g performance";
    Finding::warn(check, found, means, mend).with(us)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Grade;

    #[test]
    fn figures_are_positive_and_judged() {
        for finding in [start_of_a_process(), wake()] {
            assert!(finding.value.is_some_and(|us| us > 0.0), "{finding:?}");
        }
        assert_eq!(judge("x", String::new(), 5.0, 10.0, "").grade, Grade::Ok);
        assert_eq!(judge("x", String::new(), 50.0, 10.0, "").grade, Grade::Warn);
    }
}
