//! A run made by hand: two producers, a fan-in that starts early, and a reader of a stream.

use super::*;
use crate::history::{
    Event, EventKind, GraphFacts, NodeFacts, Outcome, Places, PortFacts, RunRecord, SourceFacts, StepFacts,
    Summary,
};
use dflow_core::placement::{Place, Placement};
use serde_json::Value;
use std::collections::BTreeMap;

fn step(name: &str, inputs: &[(&str, u32)], stream: bool) -> StepFacts {
    let source = |step: u32| SourceFacts::Output { step, port: 0 };
    StepFacts {
        name: name.into(),
        inputs: inputs.iter().map(|(name, from)| ((*name).to_owned(), source(*from))).collect(),
        outputs: vec![PortFacts { name: "out".into(), many: false, stream }],
        cpu_milli: 1000,
        ..StepFacts::default()
    }
}

fn event(at_us: u64, step: u32, kind: EventKind) -> Event {
    Event { at_us, step, item: 0, attempt: 1, kind }
}

fn sealed(bytes: u64) -> EventKind {
    EventKind::Sealed { port: 0, item: 0, bytes }
}

fn ended(total_us: u64, wait_us: u64, put_us: u64) -> EventKind {
    EventKind::Ended { ok: true, setup_us: 10, wait_us, put_us, total_us, cpu_us: total_us - wait_us }
}

/// ```text
/// a      0 ....100 [works to 10,000]                seals x
/// b      0 ....100 [works, seals at 4,000, ends 4,100]
/// join   4,000 starts on b; waits 4,500..10,005 for a; works to 12,000
/// grow   starts at 0; first byte at 1,000, sealed at 9,000
/// follow starts at 1,000; reads 1,500..9,010, waiting 2,000..3,000
/// ```
fn record() -> RunRecord {
    use EventKind::*;
    let steps = vec![
        step("a", &[], false),
        step("b", &[], false),
        step("join", &[("left", 0), ("right", 1)], false),
        step("grow", &[], true),
        step("follow", &[("data", 3)], false),
    ];
    let wait = |input, from_us, until_us| Waited { input, item: None, from_us, until_us };
    let mut events = Vec::new();
    for first in [0, 1, 3] {
        events.push(event(0, first, Started { early: false }));
        events.push(event(50, first, Dispatched { cold: first == 0 }));
    }
    events.extend([
        event(1_000, 3, FirstByte { port: 0, item: 0 }),
        event(1_000, 4, Started { early: true }),
        event(1_200, 4, Dispatched { cold: true }),
        event(4_000, 1, sealed(400)),
        event(4_000, 2, Started { early: true }),
        event(4_010, 2, Dispatched { cold: false }),
        event(4_100, 1, ended(4_000, 0, 100)),
        // What the node heard of the wait, too late: it must not be believed.
        event(9_000, 2, Blocked),
        event(9_000, 3, sealed(9_000)),
        event(9_010, 3, ended(8_910, 0, 0)),
        event(9_010, 4, wait(0, 500, 1_500)),
        event(9_010, 4, ended(7_510, 1_000, 0)),
        event(10_000, 0, sealed(1_000)),
        event(10_000, 0, ended(9_900, 0, 0)),
        event(12_000, 2, Resumed),
        event(12_000, 2, wait(0, 400, 5_905)),
        event(12_000, 2, sealed(10)),
        event(12_000, 2, ended(7_900, 5_505, 50)),
    ]);
    RunRecord {
        summary: Summary {
            run: "00000000abc".into(),
            workflow: "hand@made".into(),
            file: "hand.yaml".into(),
            started_unix_us: 0,
            makespan_us: 12_050,
            outcome: Outcome::Done,
            steps: 5,
            attempts: 5,
            bytes: 10_410,
            record_bytes: 0,
        },
        inputs: Vec::new(),
        steps: Vec::new(),
        graph: GraphFacts { steps, ..GraphFacts::default() },
        node: NodeFacts { cpu_milli: 4000, slots: 8, ..NodeFacts::default() },
        start: None,
        events,
        places: None,
        events_dropped: 0,
        failures: Vec::new(),
        logs: Vec::new(),
        logs_dropped: 0,
    }
}

fn attempt(timeline: &Timeline, step: u32) -> &Attempt {
    timeline.attempts.iter().find(|a| a.step == step).expect("every step ran")
}

#[test]
fn phases_follow_the_workers_clock_without_gaps() {
    let timeline = Timeline::of(&record());
    let join = attempt(&timeline, 2);
    let phases: Vec<_> = join.phases.iter().map(|p| (p.kind, p.from_us, p.until_us)).collect();
    assert_eq!(
        phases,
        [
            (PhaseKind::Start, 4_000, 4_100),
            (PhaseKind::Compute, 4_100, 4_500),
            (PhaseKind::Wait, 4_500, 10_005),
            (PhaseKind::Compute, 10_005, 11_950),
            (PhaseKind::Put, 11_950, 12_000),
        ]
    );
    for attempt in &timeline.attempts {
        assert_eq!(attempt.phases.first().map(|p| p.from_us), Some(attempt.ready_us));
        assert_eq!(attempt.phases.last().map(|p| p.until_us), Some(attempt.ended_us));
        assert!(attempt.phases.windows(2).all(|w| w[0].until_us == w[1].from_us), "{attempt:?}");
    }
}

#[test]
fn the_critical_path_goes_through_what_was_waited_for() {
    let timeline = Timeline::of(&record());
    let stretch = |s: &Stretch| (timeline.attempts[s.attempt as usize].step, s.kind, s.from_us, s.until_us);
    let path: Vec<_> = timeline.critical.iter().map(stretch).collect();
    let work = StretchKind::Work;
    assert_eq!(path, [(2, work, 10_005, 12_000), (0, work, 100, 10_000), (0, StretchKind::Start, 0, 100)]);
}

#[test]
fn the_bound_counts_work_and_data_alone() {
    let bound = Timeline::of(&record()).bound;
    // `a` works 9,900, then `join` does what it did after it had waited for `a`.
    assert_eq!(bound.path_us, 9_900 + 1_995);
    assert_eq!(bound.work_us, (9_900 + 4_000 + 2_395 + 8_910 + 6_510) / 4);
}

#[test]
fn the_bound_counts_what_came_before_a_wait_for_readers_of_what_came_after_it() {
    use EventKind::*;
    let mut record = record();
    // `end` reads what `join` puts, and finds it there.
    record.graph.steps.push(step("end", &[("sum", 2)], false));
    record.events.extend([
        event(12_010, 5, Started { early: false }),
        event(12_020, 5, Dispatched { cold: false }),
        event(15_030, 5, ended(3_000, 0, 0)),
    ]);
    record.summary.makespan_us = 15_050;
    let bound = Timeline::of(&record).bound;
    // `join` could not have sealed before `a` was done, though it had begun long before.
    assert_eq!(bound.path_us, 9_900 + 1_995 + 3_000);
}

#[test]
fn an_object_crosses_once_to_each_node_that_reads_it() {
    let mut record = record();
    // `a` and `grow` on the second node, all else on the first.
    let on = |node| Place::On(node);
    let steps = vec![on(1), on(0), on(0), on(1), on(0)];
    let placement = Placement { nodes: 2, steps };
    record.places = Some(Places { nodes: vec!["ada".into(), "bob".into()], placement });
    let timeline = Timeline::of(&record);
    let links: Vec<_> = timeline.links.iter().map(|(way, link)| (*way, link.objects, link.bytes)).collect();
    assert_eq!(links, [((1, 0), 2, 1_000 + 9_000)]);

    let mut trace = Vec::new();
    chrome::write(&record, &timeline, &mut trace).expect("memory");
    let trace: Value = serde_json::from_slice(&trace).expect("JSON");
    let events = trace["traceEvents"].as_array().expect("a list");
    let node_of = |step: &str| {
        let found = events.iter().find(|e| e["cat"] == "attempt" && e["args"]["step"] == step);
        let pid = &found.expect("each step has one")["pid"];
        let name = events.iter().find(|e| e["name"] == "process_name" && e["pid"] == *pid).expect("a name");
        name["args"]["name"].as_str().expect("text").to_owned()
    };
    assert!(node_of("grow").ends_with("on bob") && node_of("follow").ends_with("on ada"));
    let page = crate::report::page(&record, &timeline);
    assert!(page.contains("Between nodes") && page.contains("to bob"), "{page}");
}

#[test]
fn the_overlaps_are_told_apart() {
    let overlaps = Timeline::of(&record()).overlaps;
    let counts = overlaps.shares.map(|s| s.count);
    assert_eq!(counts, [2, 1, 1, 2], "{overlaps:?}");
    // `join` 100 before its first line, `follow` 500; neither had all it needed.
    assert_eq!(overlaps.shares[0].total_us, 100 + 500);
    // `join` read `b` from 4,100 to 4,500 while `a` still worked.
    assert_eq!(overlaps.shares[1].total_us, 400);
    // `follow` worked on what `grow` was still writing, from 1,500 to 9,000 but for its wait.
    assert_eq!(overlaps.shares[2].total_us, 7_500 - 1_000);
}

#[test]
fn edges_tell_bytes() {
    let timeline = Timeline::of(&record());
    let edges: Vec<_> = timeline.edges.iter().map(|e| (e.from, e.to, e.objects, e.bytes)).collect();
    assert_eq!(edges, [(0, 2, 1, 1_000), (1, 2, 1, 400), (3, 4, 1, 9_000)]);
}

#[test]
fn an_attempt_cut_short_lasts_until_the_end() {
    let mut record = record();
    record
        .events
        .retain(|e| !(e.step == 2 && matches!(e.kind, EventKind::Ended { .. } | EventKind::Waited { .. })));
    let timeline = Timeline::of(&record);
    let join = attempt(&timeline, 2);
    assert_eq!((join.ok, join.ended_us), (None, 12_050));
}

#[test]
fn a_journal_of_nonsense_is_no_worse_than_wrong() {
    let mut record = record();
    for (index, event) in record.events.iter_mut().enumerate() {
        event.step = [0, 4, 77, u32::MAX][index % 4];
        event.at_us = event.at_us.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> (index % 60);
        event.attempt = index as u32 % 3;
    }
    let timeline = Timeline::of(&record);
    let mut out = Vec::new();
    chrome::write(&record, &timeline, &mut out).expect("memory takes it");
    crate::report::page(&record, &timeline);
}

/// Slices of a thread must nest, and an arrow must begin and end inside a slice.
#[test]
fn the_trace_is_what_viewers_expect() {
    let record = record();
    let mut out = Vec::new();
    chrome::write(&record, &Timeline::of(&record), &mut out).expect("memory takes it");
    let trace: Value = serde_json::from_slice(&out).expect("JSON");
    let events = trace["traceEvents"].as_array().expect("a list");
    let number = |e: &Value, key: &str| e[key].as_u64().unwrap_or_else(|| panic!("{key} of {e}"));
    let mut slices: BTreeMap<(u64, u64), Vec<(u64, u64)>> = BTreeMap::new();
    for e in events.iter().filter(|e| e["ph"] == "X") {
        let ts = number(e, "ts");
        slices.entry((number(e, "pid"), number(e, "tid"))).or_default().push((ts, ts + number(e, "dur")));
    }
    assert!(slices.values().map(Vec::len).sum::<usize>() > 15, "{slices:?}");
    for lane in slices.values() {
        for (i, a) in lane.iter().enumerate() {
            for b in &lane[i + 1..] {
                let apart = a.1 <= b.0 || b.1 <= a.0;
                let nested = (a.0 <= b.0 && b.1 <= a.1) || (b.0 <= a.0 && a.1 <= b.1);
                assert!(apart || nested, "{a:?} and {b:?} overlap");
            }
        }
    }
    let mut arrows: BTreeMap<u64, Vec<(String, u64)>> = BTreeMap::new();
    for e in events.iter().filter(|e| e["ph"] == "s" || e["ph"] == "f") {
        let ts = number(e, "ts");
        let lane = &slices[&(number(e, "pid"), number(e, "tid"))];
        assert!(lane.iter().any(|(from, until)| (*from..*until).contains(&ts)), "{e} is in no slice");
        arrows.entry(number(e, "id")).or_default().push((e["ph"].to_string(), ts));
    }
    assert_eq!(arrows.len(), 3);
    for ends in arrows.values() {
        assert!(
            matches!(&ends[..], [(s, from), (f, to)] if s == "\"s\"" && f == "\"f\"" && from <= to),
            "{ends:?}"
        );
    }
    assert_eq!(trace["otherData"]["makespan_us"], 12_050);
}
