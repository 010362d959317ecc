//! What functions print: drained by a thread of its own, so that a function that floods its
//! stdout slows down itself and nothing else.

use dflow_proto::RunId;
use dflow_proto::limits::STDERR_TAIL_BYTES;
use rustix::event::epoll;
use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

/// Lines kept for a listener that is slow; older ones are dropped and counted.
const LINES_MAX: usize = 10_000;
/// Longest line handed on whole; longer ones are cut there.
const LINE_BYTES_MAX: usize = 4096;

/// The end of what one process printed since the last [`Tail::clear`].
#[derive(Clone, Debug, Default)]
pub(crate) struct Tail(Arc<Mutex<Printed>>);

#[derive(Debug, Default)]
struct Printed {
    /// The last bytes.
    bytes: VecDeque<u8>,
    /// The unfinished last line, for the listener.
    line: Vec<u8>,
    /// Whose lines these are.
    run: Option<RunId>,
    label: String,
}

/// Function output as lines, for whoever wants to show it.
#[derive(Clone, Debug, Default)]
pub struct LogLines(Arc<Mutex<(VecDeque<LogLine>, u64)>>);

/// One line that a function printed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// The run; none while a function is loaded.
    pub run: Option<RunId>,
    /// The step, with the item in brackets for a foreach.
    pub step: String,
    /// The line without its end.
    pub text: String,
}

impl LogLines {
    /// Takes what has come since the last call, and how many lines were dropped in between.
    pub fn take(&self) -> (Vec<LogLine>, u64) {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let dropped = std::mem::take(&mut lines.1);
        (lines.0.drain(..).collect(), dropped)
    }

    fn push(&self, run: Option<RunId>, step: &str, text: &[u8]) {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.0.len() == LINES_MAX {
            lines.0.pop_front();
            lines.1 += 1;
        }
        let text = String::from_utf8_lossy(text).into_owned();
        lines.0.push_back(LogLine { run, step: step.into(), text });
    }
}

impl Tail {
    /// Forgets what was printed; what comes now belongs to `label` of `run`.
    pub(crate) fn begin(&self, run: Option<RunId>, label: &str) {
        let mut printed = self.lock();
        printed.bytes.clear();
        printed.run = run;
        printed.label.clear();
        printed.label.push_str(label);
    }

    /// The last of what was printed, as text.
    pub(crate) fn text(&self) -> String {
        let printed = self.lock();
        let (a, b) = printed.bytes.as_slices();
        let mut bytes = a.to_vec();
        bytes.extend_from_slice(b);
        String::from_utf8_lossy(&bytes).trim_end().to_string()
    }

    fn add(&self, bytes: &[u8], lines: &LogLines) {
        let mut printed = self.lock();
        printed.bytes.extend(bytes);
        let excess = printed.bytes.len().saturating_sub(STDERR_TAIL_BYTES);
        printed.bytes.drain(..excess);
        for part in bytes.split_inclusive(|b| *b == b'\n') {
            let room = LINE_BYTES_MAX.saturating_sub(printed.line.len());
            printed.line.extend_from_slice(&part[..part.len().min(room)]);
            if part.ends_with(b"\n") {
                let line = std::mem::take(&mut printed.line);
                lines.push(printed.run, &printed.label, line.strip_suffix(b"\n").unwrap_or(&line));
            }
        }
    }

    fn end_line(&self, lines: &LogLines) {
        let mut printed = self.lock();
        if !printed.line.is_empty() {
            let line = std::mem::take(&mut printed.line);
            lines.push(printed.run, &printed.label, &line);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Printed> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The draining thread's side.
#[derive(Debug)]
struct Drain {
    epoll: OwnedFd,
    pipes: Mutex<BTreeMap<u64, (OwnedFd, Tail)>>,
    lines: LogLines,
}

/// Reads every function process's output.
#[derive(Clone, Debug)]
pub(crate) struct Logs(Arc<Drain>);

impl Logs {
    /// Starts the thread. It ends when the last pipe is closed after this handle is gone.
    pub(crate) fn start() -> std::io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let logs = Logs(Arc::new(Drain { epoll, pipes: Mutex::default(), lines: LogLines::default() }));
        let drain = Arc::downgrade(&logs.0);
        std::thread::Builder::new().name("dflow-logs".into()).spawn(move || {
            let mut events =
                [epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) }; 64];
            while let Some(drain) = drain.upgrade() {
                let timeout = rustix::event::Timespec { tv_sec: 0, tv_nsec: 200_000_000 };
                // The handle is given up while asleep would be ideal; a fifth of a second bounds how
                // long the thread outlives its node.
                match epoll::wait(&drain.epoll, events.as_mut_slice(), Some(&timeout)) {
                    Ok(n) => events[..n].iter().for_each(|e| drain.read(e.data.u64())),
                    Err(rustix::io::Errno::INTR) => {}
                    Err(_) => return,
                }
            }
        })?;
        Ok(logs)
    }

    /// What functions print, as lines.
    pub(crate) fn lines(&self) -> LogLines {
        self.0.lines.clone()
    }

    /// Drains `pipe` (non-blocking, the reading end) until its writers are gone.
    pub(crate) fn add(&self, id: u64, pipe: OwnedFd) -> rustix::io::Result<Tail> {
        let tail = Tail::default();
        let mut pipes = self.0.pipes.lock().unwrap_or_else(PoisonError::into_inner);
        epoll::add(&self.0.epoll, pipe.as_fd(), epoll::EventData::new_u64(id), epoll::EventFlags::IN)?;
        pipes.insert(id, (pipe, tail.clone()));
        Ok(tail)
    }

    /// Reads now what is still in the pipe and ends its last line: an error report has the last words,
    /// and what the process prints for its next invocation begins a line of its own.
    pub(crate) fn flush(&self, id: u64) {
        self.0.read(id);
        let pipes = self.0.pipes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, tail)) = pipes.get(&id) {
            tail.end_line(&self.0.lines);
        }
    }

    /// Closes the pipe, even if some escaped descendant still holds its writing end.
    pub(crate) fn remove(&self, id: u64) {
        self.0.pipes.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
    }
}

impl Drain {
    /// Reads at most 1 MiB, so that one flood does not starve the other pipes.
    fn read(&self, id: u64) {
        let mut pipes = self.pipes.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((pipe, tail)) = pipes.get(&id) else { return };
        let mut buffer = [0u8; 16 << 10];
        for _ in 0..64 {
            match rustix::io::read(pipe, &mut buffer) {
                Ok(0) => {
                    tail.end_line(&self.lines);
                    pipes.remove(&id);
                    return;
                }
                Ok(n) => tail.add(&buffer[..n], &self.lines),
                Err(_) => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::pipe::{PipeFlags, pipe_with};

    #[test]
    fn keeps_the_end_and_hands_on_lines() {
        let logs = Logs::start().expect("thread");
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).expect("pipe");
        let tail = logs.add(7, reader).expect("add");
        tail.begin(Some(RunId(5)), "count[3]");
        rustix::io::write(&writer, b"one\ntwo\nrest").expect("write");
        logs.flush(7);
        assert_eq!(tail.text(), "one\ntwo\nrest");
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(5);
        let mut lines = Vec::new();
        while lines.len() < 3 && std::time::Instant::now() < deadline {
            lines.extend(logs.lines().take().0);
        }
        let texts: Vec<_> = lines.iter().map(|l| (l.step.as_str(), l.text.as_str())).collect();
        assert_eq!(texts, [("count[3]", "one"), ("count[3]", "two"), ("count[3]", "rest")]);
    }

    #[test]
    fn a_flood_is_bounded() {
        let lines = LogLines::default();
        let tail = Tail::default();
        for i in 0..2 * LINES_MAX {
            tail.add(format!("{i}\n").as_bytes(), &lines);
        }
        assert!(tail.text().len() <= STDERR_TAIL_BYTES);
        let (kept, dropped) = lines.take();
        assert_eq!((kept.len(), dropped), (LINES_MAX, LINES_MAX as u64));
        assert_eq!(kept.last().map(|l| l.text.as_str()), Some("19999"));
    }
}
