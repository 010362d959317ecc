//! The trace in Chrome's JSON format, which Perfetto and `chrome://tracing` show.
//!
//! One process is the run, or its part on one node, with a lane for each slot that was in use: attempts, and in
//! them their phases. Another holds those that wait for a slot or a token. Arrows are data: from a seal (or, for
//! an object that is read while it grows, from its first byte) to the moment its reader went on.

use super::{Attempt, PhaseKind, Timeline, invocation_name, lanes};
use crate::history::RunRecord;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{self, Write};

/// The process of what waits to be started.
const QUEUE: u32 = 2;
/// The process of the first node; others follow.
const NODES: u32 = 10;
/// Arrows that are drawn; a viewer with more is of no use.
const ARROWS_MAX: usize = 100_000;
/// Lanes of waiting invocations that are drawn.
const QUEUE_LANES_MAX: u32 = 128;

/// Writes the trace of a run.
///
/// # Errors
/// Those of `out`.
pub fn write(record: &RunRecord, timeline: &Timeline, out: &mut impl Write) -> io::Result<()> {
    let mut events = Events { out, first: true };
    events.out.write_all(b"{\"traceEvents\":[")?;
    let summary = &record.summary;
    let title = format!("{} {}", summary.workflow, summary.run);
    events.name("process_name", QUEUE, 0, "waiting for a slot or a token")?;
    let slots = slots(record, timeline);
    let used: BTreeMap<u32, u32> = slots.iter().copied().collect::<BTreeSet<_>>().into_iter().collect();
    for (&pid, &last) in &used {
        let node = record.places.as_ref().map(|places| format!(" on {}", places.name((pid - NODES) as u16)));
        events.name("process_name", pid, 0, &format!("{title}{}", node.unwrap_or_default()))?;
        for tid in 1..=last {
            events.name("thread_name", pid, tid, &format!("slot {}", tid - 1))?;
            events.event(&json!({"ph": "M", "name": "thread_sort_index", "pid": pid, "tid": tid, "args": {"sort_index": tid - 1}}))?;
        }
    }
    for (attempt, at) in timeline.attempts.iter().zip(&slots) {
        attempt_events(record, timeline, attempt, *at, &mut events)?;
    }
    queue_events(record, timeline, &mut events)?;
    let arrows_dropped = arrows(timeline, &slots, &mut events)?;
    let other = json!({
        "run": summary.run,
        "workflow": summary.workflow,
        "outcome": summary.outcome.word(),
        "makespan_us": summary.makespan_us,
        "ideal_bound_us": timeline.bound.us(),
        "dflow": record.node.version,
        "events_dropped": record.events_dropped,
        "arrows_dropped": arrows_dropped,
    });
    write!(events.out, "],\n\"displayTimeUnit\":\"ms\",\n\"otherData\":{other}}}\n")
}

/// Process and lane of each attempt.
fn slots(record: &RunRecord, timeline: &Timeline) -> Vec<(u32, u32)> {
    let node = |attempt: &Attempt| {
        record.places.as_ref().map_or(0, |places| u32::from(places.node_of(attempt.step, attempt.item)))
    };
    let mut slots = vec![(0, 0); timeline.attempts.len()];
    let nodes: BTreeSet<u32> = timeline.attempts.iter().map(node).collect();
    for number in nodes {
        let mine = timeline.attempts.iter().enumerate().filter(|(_, attempt)| node(attempt) == number);
        let (indices, spans): (Vec<_>, Vec<_>) = mine.map(|(i, a)| (i, (a.started_us, a.ended_us))).unzip();
        for (index, lane) in indices.into_iter().zip(lanes(spans.into_iter())) {
            slots[index] = (NODES + number, lane + 1);
        }
    }
    slots
}

struct Events<'w, W> {
    out: &'w mut W,
    first: bool,
}

impl<W: Write> Events<'_, W> {
    fn event(&mut self, event: &Value) -> io::Result<()> {
        self.out.write_all(if std::mem::take(&mut self.first) { b"\n" } else { b",\n" })?;
        serde_json::to_writer(&mut *self.out, event).map_err(io::Error::from)
    }

    fn name(&mut self, what: &str, pid: u32, tid: u32, name: &str) -> io::Result<()> {
        self.event(&json!({"ph": "M", "name": what, "pid": pid, "tid": tid, "args": {"name": name}}))
    }

    fn slice(
        &mut self,
        name: &str,
        cat: &str,
        at: (u32, u32),
        span: (u64, u64),
        args: Value,
    ) -> io::Result<()> {
        self.event(&json!({
            "ph": "X", "name": name, "cat": cat, "pid": at.0, "tid": at.1, "ts": span.0, "dur": span.1 - span.0,
            "args": args,
        }))
    }
}

fn attempt_events<W: Write>(
    record: &RunRecord,
    timeline: &Timeline,
    attempt: &Attempt,
    at: (u32, u32),
    events: &mut Events<'_, W>,
) -> io::Result<()> {
    let mut name = invocation_name(&record.graph, attempt.step, attempt.item);
    if attempt.attempt > 1 {
        name = format!("{name} (attempt {})", attempt.attempt);
    }
    let written: u64 = attempt.puts.iter().map(|p| p.bytes).sum();
    let read: u64 = attempt.reads.iter().map(|r| timeline.lists.of(r).bytes).sum();
    let step = record.graph.steps.get(attempt.step as usize);
    let mut args = json!({
        "step": step.map_or("", |s| s.name.as_str()),
        "function": step.map_or("", |s| s.function.as_str()),
        "runtime": step.map_or("", |s| s.runtime.as_str()),
        "item": attempt.item,
        "attempt": attempt.attempt,
        "node": record.places.as_ref().map(|places| places.name(places.node_of(attempt.step, attempt.item))),
        "outcome": match attempt.ok { Some(true) => "ok", Some(false) => "failed", None => "unknown" },
        "cold": attempt.cold,
        "early": attempt.early,
        "bytes_read": read,
        "bytes_written": written,
        "setup_us": attempt.setup_us,
        "wait_us": attempt.wait_us,
        "put_us": attempt.put_us,
        "cpu_us": attempt.cpu_us,
    });
    let same = |f: &&crate::history::FailureFacts| {
        (f.step, f.item, f.attempt) == (attempt.step, attempt.item, attempt.attempt)
    };
    if let Some(failure) = record.failures.iter().find(same) {
        args["error"] = failure.message.as_str().into();
    }
    events.slice(&name, "attempt", at, (attempt.started_us, attempt.ended_us), args)?;
    for phase in attempt.phases.iter().filter(|p| p.kind != PhaseKind::Queue) {
        let args = match phase.kind {
            PhaseKind::Wait => waited(record, timeline, attempt, phase.from_us),
            PhaseKind::Put => put(record, attempt, phase.until_us),
            _ => json!({}),
        };
        events.slice(phase.kind.name(), "phase", at, (phase.from_us, phase.until_us), args)?;
    }
    Ok(())
}

/// The object whose seal ends a put.
fn put(record: &RunRecord, attempt: &Attempt, until_us: u64) -> Value {
    let Some(put) = attempt.puts.iter().find(|p| p.sealed_us == Some(until_us)) else { return json!({}) };
    let step = record.graph.steps.get(attempt.step as usize);
    let port = step.and_then(|s| s.outputs.get(usize::from(put.port))).map_or("", |p| p.name.as_str());
    json!({"output": port, "item": put.item, "bytes": put.bytes})
}

/// What the wait that begins at `from_us` was for.
fn waited(record: &RunRecord, timeline: &Timeline, attempt: &Attempt, from_us: u64) -> Value {
    let wait = attempt.waits.iter().find(|w| w.from_us == from_us);
    let Some((wait, input)) = wait.and_then(|w| Some((w, w.input?))) else { return json!({}) };
    let step = record.graph.steps.get(attempt.step as usize);
    let name = step.and_then(|s| s.inputs.get(usize::from(input))).map_or("", |(name, _)| name.as_str());
    let mut args = json!({"input": name});
    if let Some(item) = wait.item {
        args["item"] = item.into();
    }
    if let Some(object) = timeline.lists.waited_for(attempt, input, wait.item) {
        args["from"] = invocation_name(&record.graph, object.step, object.invocation).into();
        args["bytes"] = object.bytes.into();
    }
    args
}

fn queue_events<W: Write>(
    record: &RunRecord,
    timeline: &Timeline,
    events: &mut Events<'_, W>,
) -> io::Result<()> {
    let queued = timeline.attempts.iter().filter(|a| a.started_us > a.ready_us);
    let mut queued: Vec<&Attempt> = queued.collect();
    queued.sort_by_key(|a| a.ready_us);
    let rows = lanes(queued.iter().map(|a| (a.ready_us, a.started_us)));
    for (attempt, lane) in queued.into_iter().zip(rows).filter(|(_, lane)| *lane < QUEUE_LANES_MAX) {
        let name = invocation_name(&record.graph, attempt.step, attempt.item);
        let span = (attempt.ready_us, attempt.started_us);
        events.slice(&name, "queue", (QUEUE, lane + 1), span, json!({"phase": PhaseKind::Queue.name()}))?;
    }
    Ok(())
}

/// Draws arrows; returns how many there would be more.
fn arrows<W: Write>(
    timeline: &Timeline,
    slots: &[(u32, u32)],
    events: &mut Events<'_, W>,
) -> io::Result<u64> {
    let (mut id, mut dropped) = (0, 0);
    for (index, attempt) in timeline.attempts.iter().enumerate() {
        let Some(began_us) = attempt.began_us else { continue };
        let woken = attempt.waits.iter().filter_map(|w| {
            let object = timeline.lists.waited_for(attempt, w.input?, w.item)?;
            Some(((object.step, object.invocation, object.port, object.item), w.until_us))
        });
        let woken: HashMap<_, u64> = woken.collect();
        for read in &attempt.reads {
            for object in timeline.read_objects(read) {
                if id == ARROWS_MAX {
                    dropped += 1;
                    continue;
                }
                id += 1;
                let object = &timeline.objects[*object as usize];
                let producer = &timeline.attempts[object.producer as usize];
                let grew = object.first_us < began_us && began_us < object.sealed_us;
                let out_us = if grew { object.first_us } else { object.sealed_us };
                // The wait that this object ended, or the beginning, or, if neither fits, its coming.
                let woke = woken.get(&(object.step, object.invocation, object.port, object.item));
                let in_us = woke.copied().unwrap_or(began_us.max(out_us));
                let inside =
                    |us: u64, a: &Attempt| us.clamp(a.started_us, a.ended_us.max(a.started_us + 1) - 1);
                let (from, to) = (inside(out_us, producer), inside(in_us, attempt));
                let ((from_pid, from_tid), (to_pid, to_tid)) =
                    (slots[object.producer as usize], slots[index]);
                events.event(&json!({
                    "ph": "s", "id": id, "name": "data", "cat": "data", "pid": from_pid, "tid": from_tid,
                    "ts": from, "args": {"bytes": object.bytes},
                }))?;
                events.event(&json!({
                    "ph": "f", "bp": "e", "id": id, "name": "data", "cat": "data", "pid": to_pid, "tid": to_tid,
                    // An arrow that seemed to point back in time would not be drawn.
                    "ts": to.max(from), "args": {"bytes": object.bytes},
                }))?;
            }
        }
    }
    Ok(dropped)
}
