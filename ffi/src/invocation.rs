//! One invocation as the function sees it: what `dflow_ctx` points to.

use crate::abi::CInfo;
use crate::fault::{Code, Fault};
use crate::memory::{Memory, Slab};
use crate::node::{LONG_WAIT, Node, Urgency};
use crate::output::Outputs;
use crate::segments::lock;
use dflow_proto::limits::WAITS_MAX;
use dflow_proto::link::{InputValue, Invoke, Outcome, Report, Times, Wait};
use dflow_shm::page::PageWriter;
use dflow_shm::table::{BadTable, Found, Look, TableReader, WaitOn};
use std::ffi::CString;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::ThreadId;
use std::time::Instant;

/// A message of a function is cut to this when it travels to the node. Bytes.
const MESSAGE_MAX: usize = 8 << 10;
/// A seal that has begun ends within this unless the object is huge and pages are small: worth
/// spinning for. Microseconds.
const SEALING_SPIN_US: u32 = 50;

/// How a function came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Returned {
    /// It says all is well.
    Ok,
    /// With an error of its own.
    Error {
        /// Its class.
        name: String,
        /// What happened.
        message: String,
    },
    /// A program with this status.
    Exit(i32),
    /// A program, by this signal.
    Signal(i32),
}

/// One execution of a function. Shared by all threads of the function.
#[derive(Debug)]
pub struct Invocation {
    pub(crate) node: Arc<Node>,
    pub(crate) invoke: Invoke,
    pub(crate) table: Option<TableReader>,
    pub(crate) outputs: Mutex<Outputs>,
    /// The next item of each list input ([`Invocation::next`](crate::input)).
    pub(crate) cursors: Vec<AtomicU32>,
    pub(crate) texts: Mutex<Vec<(u32, CString)>>,
    about: CInfo,
    /// What `about` points to.
    _names: [CString; 2],
    failure: Mutex<Option<(String, String)>>,
    poisoned: AtomicBool,
    main: ThreadId,
    taken: Instant,
    began: Instant,
    cpu_us_before: u64,
    wait_us: AtomicU64,
    waits: Mutex<Vec<Wait>>,
    pub(crate) put_us: AtomicU64,
}

impl Invocation {
    /// Opens the allotment and the table, and tells the node that the function begins.
    pub(crate) fn begin(node: Arc<Node>, invoke: Invoke, taken: Instant) -> Result<Invocation, Fault> {
        let protocol = |what: &str| Fault::new(Code::Node, format!("the node sent {what}"));
        let segments = &node.segments;
        let main = std::thread::current().id();
        let part = segments.open(invoke.allotment)?;
        let page = PageWriter::attach(&part, invoke.outputs.len())
            .ok_or_else(|| protocol("an allotment without a page"))?;
        let reads_table = |v: &InputValue| matches!(v, InputValue::One { .. } | InputValue::List { .. });
        let table = if invoke.inputs.iter().any(|input| reads_table(&input.value)) {
            let part = segments.read(invoke.table.segment)?.part(invoke.table);
            let part = part.map_err(|e| protocol(&format!("a table out of bounds: {e}")))?;
            Some(TableReader::attach(part).ok_or_else(|| protocol("a table that is none"))?)
        } else {
            None
        };
        let outputs = Outputs::new(Memory::new(Slab::new(part)), page, &invoke.outputs);
        let cursors = invoke.inputs.iter().map(|_| AtomicU32::new(0)).collect();
        let name = |text: &str| CString::new(text.replace('\0', " ")).unwrap_or_default();
        let names = [name(&invoke.workflow), name(&invoke.step)];
        let about = CInfo {
            run: invoke.run.0,
            workflow: names[0].as_ptr(),
            step: names[1].as_ptr(),
            step_index: invoke.invocation.step,
            item: invoke.invocation.item,
            attempt: invoke.attempt,
            threads: invoke.threads,
            timeout_ms: invoke.timeout_ms,
        };
        node.report(&Report::Began, Urgency::Later)?;
        Ok(Invocation {
            table,
            outputs: Mutex::new(outputs),
            cursors,
            texts: Mutex::new(Vec::new()),
            about,
            _names: names,
            node,
            invoke,
            failure: Mutex::new(None),
            poisoned: AtomicBool::new(false),
            main,
            taken,
            began: Instant::now(),
            cpu_us_before: cpu_us(),
            wait_us: AtomicU64::new(0),
            waits: Mutex::default(),
            put_us: AtomicU64::new(0),
        })
    }

    /// Fails the invocation with class `error:name`, whatever the function returns. The first
    /// failure counts.
    pub fn fail(&self, name: &str, message: &str) {
        lock(&self.failure).get_or_insert_with(|| (name.to_owned(), message.to_owned()));
    }

    /// As [`Invocation::fail`], and the fault to return.
    pub(crate) fn failed(&self, name: &str, code: Code, message: String) -> Fault {
        self.fail(name, &message);
        Fault::new(code, message)
    }

    /// Whether the caller is the thread that the function was called on. Only it gives the CPU token
    /// back while it waits: what other threads do meanwhile is not known.
    pub(crate) fn is_main(&self) -> bool {
        std::thread::current().id() == self.main
    }

    /// Looks until there is something to see: spins, then sleeps where the change will show.
    /// `index` is the entry of the table and `item` the item of its list, for the record of the wait.
    pub(crate) fn block(
        &self,
        index: u32,
        item: Option<u32>,
        mut look: impl FnMut() -> Result<Look, BadTable>,
    ) -> Result<Found, Fault> {
        let mut next = || look().map_err(|e| Fault::new(Code::Node, e.to_string()));
        let mut wait = match next()? {
            Look::Ready(found) => return self.found(found),
            Look::Wait(wait) => wait,
        };
        let start = Instant::now();
        let yields = self.is_main();
        let mut slept = false;
        let found = loop {
            if !self.spin(&wait, start, slept) {
                if !slept && yields {
                    self.node.report(&Report::Blocked, Urgency::IfTokensWanted)?;
                }
                slept = true;
                wait.sleep(LONG_WAIT);
            }
            match next() {
                Ok(Look::Ready(found)) => break Ok(found),
                Ok(Look::Wait(again)) => wait = again,
                Err(fault) => break Err(fault),
            }
        };
        if slept && yields {
            self.node.report(&Report::Resumed, Urgency::IfTokensWanted)?;
        }
        let wait_us = start.elapsed().as_micros() as u64;
        self.wait_us.fetch_add(wait_us, Ordering::Relaxed);
        if yields && wait_us > 0 {
            self.note_wait(index, item, start.duration_since(self.began).as_micros() as u64, wait_us);
        }
        found.and_then(|found| self.found(found))
    }

    /// Keeps the wait if it is among the longest. Only the main thread's: others may wait while it
    /// computes.
    fn note_wait(&self, index: u32, item: Option<u32>, from_us: u64, wait_us: u64) {
        let here = |value: &InputValue| matches!(value, InputValue::One { index: i } | InputValue::List { index: i } if *i == index);
        let Some(input) = self.invoke.inputs.iter().position(|input| here(&input.value)) else { return };
        let wait = Wait { input: input as u16, item, from_us, until_us: from_us + wait_us };
        let mut waits = lock(&self.waits);
        if waits.len() < WAITS_MAX {
            waits.push(wait);
            return;
        }
        let shortest = waits.iter().enumerate().min_by_key(|(_, w)| w.until_us - w.from_us);
        if let Some((at, _)) = shortest.filter(|(_, w)| w.until_us - w.from_us < wait_us) {
            waits.remove(at);
            waits.push(wait);
        }
    }

    fn spin(&self, wait: &WaitOn, start: Instant, slept: bool) -> bool {
        let spent = start.elapsed().as_micros() as u64;
        // After a sleep the wake was for some other port of the page: back to sleep.
        let left = if slept { 0 } else { u64::from(self.invoke.spin_us).saturating_sub(spent) };
        let least = if wait.imminent { SEALING_SPIN_US } else { 0 };
        dflow_shm::futex::spin((left as u32).max(least), || wait.changed())
    }

    fn found(&self, found: Found) -> Result<Found, Fault> {
        if found == Found::Failed {
            self.poisoned.store(true, Ordering::Relaxed);
            let message =
                "the producer of this input is dead; return, the step will be run again or the run ends";
            return Err(Fault::new(Code::Input, message));
        }
        Ok(found)
    }

    /// Ends the invocation: closes lists, checks outputs, takes the memory away and tells the node.
    /// The process's own children are not the caller's to keep: `tainted` says there are some.
    pub(crate) fn end(&self, returned: Returned, tainted: bool) -> Result<(), Fault> {
        let mut outputs = lock(&self.outputs);
        let failure = lock(&self.failure).take();
        let outcome = match (failure, returned) {
            _ if self.poisoned.load(Ordering::Relaxed) => Outcome::Poisoned,
            (Some((name, message)), _) | (None, Returned::Error { name, message }) => {
                Outcome::Error { name, message: shorten(message) }
            }
            (None, Returned::Exit(code)) => Outcome::Exit { code },
            (None, Returned::Signal(signal)) => Outcome::Signal { signal },
            (None, Returned::Ok) => match outputs.finish(self)? {
                None => Outcome::Ok,
                Some(message) => Outcome::Error { name: "OutputMissing".into(), message },
            },
        };
        outputs.withdraw(&self.node)?;
        let waits = std::mem::take(&mut *lock(&self.waits));
        if !waits.is_empty() {
            self.node.report(&Report::Waited { waits }, Urgency::Later)?;
        }
        let total_us = self.began.elapsed().as_micros() as u64;
        let times = Times {
            setup_us: self.began.duration_since(self.taken).as_micros() as u64,
            wait_us: self.wait_us.load(Ordering::Relaxed),
            put_us: self.put_us.load(Ordering::Relaxed),
            total_us,
            cpu_us: cpu_us().saturating_sub(self.cpu_us_before),
        };
        self.node.report(&Report::Ended { outcome, times, tainted }, Urgency::Now)
    }

    /// What is being executed, for `dflow_about`.
    pub(crate) fn about(&self) -> &CInfo {
        &self.about
    }
}

/// Keeps the beginning and the end: the end of a traceback says most.
fn shorten(message: String) -> String {
    if message.len() <= MESSAGE_MAX {
        return message;
    }
    let head = floor(&message, MESSAGE_MAX / 4);
    let tail = floor(&message, message.len() - MESSAGE_MAX / 2);
    format!("{}\n[... {} bytes left out ...]\n{}", &message[..head], tail - head, &message[tail..])
}

fn floor(text: &str, mut at: usize) -> usize {
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

/// User and system time of this process and of the children it has waited for, in microseconds.
fn cpu_us() -> u64 {
    [libc::RUSAGE_SELF, libc::RUSAGE_CHILDREN].into_iter().map(crate::process::rusage_us).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_messages_keep_both_ends() {
        let long = format!("first {} last", "é".repeat(20_000));
        let short = shorten(long);
        assert!(short.len() < MESSAGE_MAX);
        assert!(short.starts_with("first") && short.ends_with("last") && short.contains("left out"));
        assert_eq!(shorten("as it is".into()), "as it is");
    }
}
