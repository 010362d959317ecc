//! The scheduler's rule, one table a clause: what is told on the left, what must be done on the right.

mod rig;

use dflow_core::graph::*;
use dflow_core::scheduler::*;
use dflow_proto::{InvocationId, Tick};
use rig::*;
use std::sync::Arc;

#[test]
fn a_chain_runs_frees_what_was_read_and_keeps_outputs_until_forgotten() {
    let mut rig = rig(vec![step(&[Source::Input(0)]), step(&[from(0)])]);
    rig.graph.outputs.push(RunOutput { name: "o".into(), source: from(1) });
    rig.submit(&["start 0#1"]);
    rig.seal(0, 0, &["start 1#1"]);
    rig.end(0, 0, &["free in0"]);
    rig.seal(1, 0, &[]);
    rig.end(1, 0, &["free 0.0", "over"]);
    let key = put(1, 0, 0, 1).key;
    let kept = Resolved::Object(ObjectRef { key, state: ObjectState::Sealed });
    assert_eq!(rig.scheduler.resolve_source(RUN, &from(1)), kept);
    rig.forget(&["free 1.0"]);
}

#[test]
fn policies_start_when_they_say() {
    let steps = || vec![step(&[]), step(&[]), step(&[from(0), from(1), Source::Input(0), Source::Const(0)])];
    let policies = [
        // submit, first byte of 0, seal of 0, seal of 1
        (StartPolicy::Eager, [true, false, false, false]),
        (StartPolicy::FirstByte, [false, true, false, false]),
        (StartPolicy::First(1), [false, false, true, false]),
        (StartPolicy::First(9), [false, false, false, true]),
        (StartPolicy::AllReady, [false, false, false, true]),
    ];
    for (policy, when) in policies {
        let mut rig = rig(steps());
        rig.graph.steps[2].start = policy;
        let early = |at: usize| if at == 3 { "start 2#1" } else { "start 2#1!" };
        let starts = |at: usize| if when[at] { vec![early(at)] } else { vec![] };
        let started = |at: usize| when[..at].contains(&true);
        rig.submit(&[&["start 0#1", "start 1#1"][..], &starts(0)].concat());
        rig.begin(0, 0, &starts(1));
        rig.seal(0, 0, &if started(2) { vec!["relink 2.0"] } else { starts(2) });
        rig.seal(1, 0, &if started(3) { vec!["relink 2.1"] } else { starts(3) });
    }
}

#[test]
fn the_submission_overrides_every_policy() {
    let mut rig = rig(vec![step(&[]), step(&[from(0)])]);
    rig.submit_as(Some(StartPolicy::Eager), &["start 0#1", "start 1#1!"]);
}

#[test]
fn after_waits_for_the_end_without_data() {
    let mut rig = rig(vec![step(&[]), Step { after: vec![0], start: StartPolicy::Eager, ..step(&[]) }]);
    rig.submit(&["start 0#1"]);
    rig.seal(0, 0, &["free 0.0"]);
    rig.end(0, 0, &["start 1#1"]);
}

#[test]
fn a_false_condition_skips_and_the_skip_spreads() {
    let mut rig = rig(vec![
        step(&[]),
        Step { when: condition(vec![from(0)], vec![]), ..step(&[]) },
        step(&[from(1)]),
        Step { after: vec![2], ..step(&[from(0), from(2)]) },
        Step { when: condition(vec![], vec![1]), ..step(&[]) },
    ]);
    rig.graph.steps[3].inputs[1].optional = true;
    rig.graph.steps[3].start = StartPolicy::AllReady;
    rig.submit(&["start 0#1"]);
    rig.seal(0, 0, &[]);
    rig.end(0, 0, &["evaluate 1"]);
    rig.decide(1, 0, &["skip 1", "evaluate 4", "skip 2", "start 3#1"]);
    let input = |i| rig.scheduler.resolve(RUN, InvocationId { step: 3, item: 0 }, i);
    assert_eq!(input(1), Resolved::Null);
    assert!(rig.scheduler.skipped(RUN, 1));
    rig.decide(4, 1, &["start 4#1"]);
    rig.seal(3, 0, &["free 3.0"]);
    rig.end(3, 0, &["free 0.0"]);
    rig.seal(4, 0, &["free 4.0"]);
    rig.end(4, 0, &["over"]);
}

#[test]
fn an_exclusive_join_fires_once_and_reads_only_its_branch() {
    let cases = vec![
        Case { when: condition(vec![Source::Input(0)], vec![]), value: from(0) },
        Case { when: None, value: from(1) },
    ];
    let mut rig = rig(vec![step(&[]), step(&[]), switch(cases), step(&[from(2)])]);
    rig.submit(&["evaluate 2", "start 0#1", "start 1#1"]);
    rig.seal(0, 0, &[]);
    rig.decide(2, 1, &["free 0.0", "free in0"]);
    rig.seal(1, 0, &["start 3#1"]);
    let id = InvocationId { step: 3, item: 0 };
    let chosen = Resolved::Object(ObjectRef { key: put(1, 0, 0, 1).key, state: ObjectState::Sealed });
    assert_eq!(rig.scheduler.resolve(RUN, id, 0), chosen);
    rig.end(0, 0, &[]);
    rig.end(1, 0, &[]);
    rig.seal(3, 0, &["free 3.0"]);
    rig.end(3, 0, &["free 1.0", "over"]);
}

#[test]
fn a_switch_without_a_case_that_holds_is_skipped() {
    let cases = vec![Case { when: condition(vec![], vec![]), value: from(0) }];
    let mut rig = rig(vec![step(&[]), switch(cases), step(&[from(1)])]);
    rig.submit(&["evaluate 1", "start 0#1"]);
    rig.decide(1, u32::MAX, &["skip 1", "skip 2"]);
    rig.seal(0, 0, &["free 0.0"]);
    rig.end(0, 0, &["over"]);
}

#[test]
fn items_start_as_they_appear_and_are_freed_one_by_one() {
    let mut rig = rig(vec![many(), each(from(0), &[Source::Item]), step(&[gather(1)])]);
    rig.graph.steps[2].start = StartPolicy::AllReady;
    rig.submit(&["start 0#1"]);
    rig.append(0, 0, &["start 1#1"]);
    rig.append(0, 1, &["start 1[1]#1"]);
    rig.seal(1, 0, &[]);
    rig.end(1, 0, &["free 0.0"]);
    rig.pin(0, 2, &[]);
    rig.end(0, 0, &[]);
    rig.seal(1, 1, &["start 2#1"]);
    rig.end(1, 1, &["free 0.0.1"]);
    rig.seal(2, 0, &["free 2.0"]);
    rig.end(2, 0, &["free 1.0", "free 1[1].0", "over"]);
}

#[test]
fn a_list_of_no_items_is_empty_and_not_skipped() {
    let mut rig = rig(vec![each(Source::Input(0), &[Source::Item]), step(&[gather(0)])]);
    rig.submit(&["measure 0"]);
    rig.measure(0, 0, &["free in0", "start 1#1"]);
    let id = InvocationId { step: 1, item: 0 };
    assert_eq!(rig.scheduler.resolve(RUN, id, 0), Resolved::List { items: vec![], pinned: true });
}

#[test]
fn parallel_max_and_workers_max_hold() {
    let mut rig = rig(vec![each(Source::Const(0), &[Source::Item]), each(Source::Const(0), &[Source::Item])]);
    rig.graph.steps[0].foreach.as_mut().unwrap().parallel_max = 2;
    rig.graph.functions[0].workers_max = 3;
    rig.submit(&["measure 0", "measure 1"]);
    rig.measure(0, 3, &["start 0#1", "start 0[1]#1"]);
    rig.measure(1, 2, &["start 1#1"]);
    rig.seal(0, 0, &["free 0.0"]);
    rig.end(0, 0, &["start 0[2]#1"]);
}

#[test]
fn too_many_items_fail_with_the_remedy() {
    let mut rig = rig(vec![each(Source::Const(0), &[])]);
    rig.submit(&["measure 0"]);
    let why = "over: step s0 failed at attempt 0: its list has 101 items or more, at most 100 are allowed: raise max_items";
    rig.measure(0, 101, &[why]);
}

#[test]
fn tolerated_items_are_left_out() {
    let mut rig =
        rig(vec![each(Source::Const(0), &[]), each(gather(0), &[Source::Item]), step(&[gather(1)])]);
    rig.graph.steps[0].foreach.as_mut().unwrap().tolerate = Tolerate::Percent(50);
    rig.submit(&["measure 0"]);
    rig.measure(0, 2, &["start 0#1", "start 0[1]#1"]);
    rig.seal(0, 1, &["start 1[1]#1"]);
    rig.fail(0, 0, 1, &[]);
    rig.end(0, 1, &[]);
    rig.seal(1, 1, &["start 2#1"]);
    let id = InvocationId { step: 2, item: 0 };
    let Resolved::List { items, pinned: true } = rig.scheduler.resolve(RUN, id, 0) else { panic!("no list") };
    assert_eq!(items.iter().map(|item| item.key.invocation.item).collect::<Vec<_>>(), [1]);
}

#[test]
fn retries_back_off_by_class_and_end() {
    let mut rig = rig(vec![Step { retry: retry(3, ErrorClass::Crash), ..step(&[]) }]);
    rig.submit(&["start 0#1"]);
    rig.fail(0, 0, 1, &[]);
    rig.wake_at(10_000, &["start 0#2"]);
    rig.fail(0, 0, 2, &[]);
    // Twice as long would exceed the cap.
    rig.wake_at(25_000, &["start 0#3"]);
    let oom = Outcome::Failed(Failure { class: ErrorClass::Oom, message: "too big".into() });
    rig.end_as(0, 0, 3, oom, &["over: step s0 failed at attempt 3: too big"]);
}

#[test]
fn a_timeout_stops_and_counts_as_its_class() {
    let mut rig = rig(vec![Step { timeout_ms: 5, retry: retry(1, ErrorClass::Timeout), ..step(&[]) }]);
    rig.submit(&["start 0#1"]);
    rig.wake_at(5_000, &["stop 0 Timeout"]);
    rig.end_as(0, 0, 1, Outcome::Stopped, &[]);
    rig.wake_at(15_000, &["start 0#2"]);
    rig.tell(Event::Sealed(put(0, 0, 0, 2)), &["free 0.0"]);
    rig.end_as(0, 0, 2, Outcome::Ok, &["over"]);
}

#[test]
fn the_runs_deadline_stops_all() {
    let mut rig = rig(vec![step(&[]), step(&[from(0)])]);
    rig.graph.policy.deadline_ms = 3;
    rig.submit(&["start 0#1"]);
    rig.wake_at(3_000, &["stop 0 RunOver"]);
    rig.end_as(
        0,
        0,
        1,
        Outcome::Stopped,
        &["over: the run exceeded its deadline of 3 ms; unfinished: s0, s1"],
    );
}

#[test]
fn an_attempt_takes_with_it_what_was_built_on_it() {
    let again = || Step { retry: retry(1, ErrorClass::Crash), ..step(&[]) };
    let mut rig = rig(vec![again(), step(&[from(0)]), step(&[from(1)])]);
    rig.submit(&["start 0#1"]);
    rig.seal(0, 0, &["start 1#1"]);
    rig.seal(1, 0, &["start 2#1"]);
    rig.end(1, 0, &["free 0.0"]);
    rig.fail(0, 0, 1, &["stop 2 Poisoned", "free 1.0"]);
    rig.end_as(2, 0, 1, Outcome::Stopped, &[]);
    rig.wake_at(10_000, &["start 0#2"]);
    rig.tell(Event::Sealed(put(0, 0, 0, 2)), &["start 1#2"]);
}

#[test]
fn what_a_second_loss_could_ask_for_again_is_held() {
    let again = || Step { retry: retry(1, ErrorClass::Crash), ..step(&[]) };
    let all_ready = Step { start: StartPolicy::AllReady, ..step(&[from(0), from(1)]) };
    let mut rig = rig(vec![again(), again(), all_ready]);
    rig.submit(&["start 0#1", "start 1#1"]);
    rig.seal(0, 0, &[]);
    rig.seal(1, 0, &["start 2#1"]);
    rig.seal(2, 0, &["free 2.0"]);
    // Both producers still run: the loss of either would make step 2 read the other again.
    rig.end(2, 0, &[]);
    rig.fail(1, 0, 1, &["free 1.0"]);
    rig.wake_at(10_000, &["start 1#2"]);
    rig.tell(Event::Sealed(put(1, 0, 0, 2)), &["start 2#2"]);
    rig.tell(Event::Sealed(put(2, 0, 0, 2)), &["free 2.0"]);
    rig.end_as(2, 0, 2, Outcome::Ok, &[]);
    // Only the loss of step 0 could, and it would put its own object anew.
    rig.end_as(1, 0, 2, Outcome::Ok, &["free 0.0"]);
    rig.end(0, 0, &["free 1.0", "over"]);
}

#[test]
fn items_that_siblings_losses_could_ask_for_again_are_held() {
    let list = each(Source::Const(0), &[]);
    let mut pairs = each(gather(0), &[Source::Item, gather(0)]);
    pairs.start = StartPolicy::AllReady;
    let mut rig = rig(vec![list, pairs]);
    rig.submit(&["measure 0"]);
    rig.measure(0, 2, &["start 0#1", "start 0[1]#1"]);
    rig.seal(0, 0, &[]);
    rig.seal(0, 1, &["start 1#1", "start 1[1]#1"]);
    rig.seal(1, 0, &["free 1.0"]);
    rig.end(1, 0, &[]);
    rig.end(0, 0, &[]);
    rig.end(0, 1, &[]);
    rig.seal(1, 1, &["free 1[1].0"]);
    rig.end(1, 1, &["free 0.0", "free 0[1].0", "over"]);
}

#[test]
fn a_deterministic_function_leaves_what_it_put() {
    let again = Step { kind: StepKind::Call(1), retry: retry(1, ErrorClass::Crash), ..step(&[]) };
    let mut rig = rig(vec![again, step(&[from(0)])]);
    rig.submit(&["start 0#1"]);
    rig.seal(0, 0, &["start 1#1"]);
    rig.fail(0, 0, 1, &["relink 1.0"]);
    rig.wake_at(10_000, &["start 0#2", "relink 1.0"]);
    rig.tell(Event::Sealed(put(0, 0, 0, 2)), &[]);
    rig.seal(1, 0, &["free 1.0"]);
    rig.end(1, 0, &["free 0.0"]);
    rig.end_as(0, 0, 2, Outcome::Ok, &["over"]);
}

#[test]
fn a_deterministic_function_must_not_pin_another_count() {
    let again = Step { kind: StepKind::Call(1), retry: retry(1, ErrorClass::Crash), ..many() };
    let mut rig = rig(vec![again, step(&[from(0)])]);
    rig.submit(&["start 0#1"]);
    rig.pin(0, 0, &["start 1#1"]);
    rig.fail(0, 0, 1, &["relink 1.0"]);
    rig.wake_at(10_000, &["start 0#2", "relink 1.0"]);
    let invocation = InvocationId { step: 0, item: 0 };
    let pinned = Event::Pinned { run: RUN, invocation, attempt: 2, port: 0, count: 1 };
    rig.tell(pinned, &["stop 0 RunOver", "stop 1 RunOver"]);
}

#[test]
fn an_ignored_failure_skips_what_needs_it() {
    let mut rig = rig(vec![
        Step { on_failure: OnFailure::Ignore, ..step(&[]) },
        step(&[from(0)]),
        Step { when: condition(vec![], vec![0]), ..step(&[]) },
    ]);
    rig.submit(&["start 0#1"]);
    rig.begin(0, 0, &["start 1#1!"]);
    rig.fail(0, 0, 1, &["stop 1 Poisoned", "skip 0", "skip 1", "evaluate 2"]);
    rig.decide(2, 1, &["start 2#1"]);
}

#[test]
fn finish_started_lets_end_what_can() {
    let mut rig = rig(vec![
        step(&[]),
        step(&[]),
        Step { start: StartPolicy::Eager, ..step(&[from(0)]) },
        step(&[from(1)]),
    ]);
    rig.graph.policy.finish_started = true;
    rig.submit(&["start 0#1", "start 1#1", "start 2#1!"]);
    rig.fail(0, 0, 1, &["relink 2.0", "stop 2 RunOver"]);
    rig.seal(1, 0, &[]);
    rig.end(1, 0, &[]);
    rig.end_as(2, 0, 1, Outcome::Stopped, &["free 1.0", "over: step s0 failed at attempt 1: killed"]);
}

#[test]
fn a_cancelled_run_ends_after_its_last_attempt() {
    let mut rig = rig(vec![step(&[]), step(&[from(0)])]);
    rig.submit(&["start 0#1"]);
    rig.seal(0, 0, &["start 1#1"]);
    rig.tell(Event::Cancel { run: RUN, reason: "enough".into() }, &["stop 0 RunOver", "stop 1 RunOver"]);
    rig.end_as(1, 0, 1, Outcome::Stopped, &[]);
    rig.end(0, 0, &["free 0.0", "over: cancelled: enough"]);
}

#[test]
fn tokens_are_given_back_while_blocked_and_lent_on_waking() {
    let wants = |cpu_milli| Step { cpu_milli, ..step(&[]) };
    let mut rig = rig(vec![wants(3000), wants(3000), wants(9000), wants(0)]);
    rig.submit(&["start 0#1", "start 3#1"]);
    let invocation = InvocationId { step: 0, item: 0 };
    rig.tell(Event::Blocked { run: RUN, invocation, attempt: 1 }, &["start 1#1"]);
    rig.tell(Event::Resumed { run: RUN, invocation, attempt: 1 }, &[]);
    assert_eq!(rig.scheduler.load().cpu_milli_used, 6000);
    rig.seal(1, 0, &["free 1.0"]);
    rig.end(1, 0, &[]);
    rig.seal(0, 0, &["free 0.0"]);
    // More than there is means all there is.
    rig.end(0, 0, &["start 2#1"]);
    assert_eq!(rig.scheduler.load().cpu_milli_used, 4000);
}

#[test]
fn early_starters_leave_a_slot() {
    let eager = |source| Step { start: StartPolicy::Eager, ..step(&[source]) };
    let steps = || vec![step(&[]), eager(from(0)), eager(from(1)), eager(from(2))];
    rig(steps()).slots(1).submit(&["start 0#1"]);
    rig(steps()).slots(2).submit(&["start 0#1", "start 1#1!"]);
    let mut rig = rig(steps()).slots(3);
    rig.graph.functions[0].workers_max = 2;
    // One function all along, so one worker stays for the producers.
    rig.submit(&["start 0#1", "start 1#1!"]);
    rig.seal(0, 0, &["relink 1.0"]);
    // Step 1 has all of its inputs: it is early no more, and the next may wait.
    rig.end(0, 0, &["start 2#1!"]);
}

#[test]
fn the_critical_path_goes_first() {
    let long = Step { estimate_us: 1000, ..step(&[from(1)]) };
    let mut rig = rig(vec![step(&[]), step(&[]), long]).slots(1);
    rig.submit(&["start 1#1"]);
}

#[test]
fn descendants_are_warmed_while_precursors_run() {
    let mut rig = rig(vec![step(&[]), each(gather(0), &[Source::Item])]);
    rig.graph.steps[0] = Step { name: "s0".into(), ..each(Source::Const(0), &[]) };
    rig.graph.steps[1].foreach.as_mut().unwrap().parallel_max = 3;
    let mut effects = Vec::new();
    let graph = Arc::new(rig.graph.clone());
    rig.scheduler.handle(Tick(0), Event::Submit { run: RUN, graph, start: None, part: None }, &mut effects);
    rig.scheduler.handle(Tick(0), Event::ListLength { run: RUN, step: 0, result: Ok(8) }, &mut effects);
    let warm: Vec<_> = effects.iter().filter(|e| matches!(e, Effect::Warm { .. })).collect();
    assert_eq!(warm, [&Effect::Warm { run: RUN, function: 0, workers: 3 }]);
}

#[test]
fn success_without_an_output_is_a_failure() {
    let mut rig = rig(vec![step(&[])]);
    rig.submit(&["start 0#1"]);
    let why = "over: step s0 failed at attempt 1: it ended without having put all of its output out: put and seal it before the end";
    rig.end(0, 0, &[why]);
}

#[test]
fn strangers_are_ignored() {
    let mut rig = rig(vec![step(&[]), step(&[from(0)])]);
    rig.seal(0, 0, &[]);
    rig.submit(&["start 0#1"]);
    rig.submit(&[]);
    rig.tell(Event::Sealed(put(0, 0, 0, 2)), &[]);
    rig.tell(Event::Sealed(put(9, 9, 9, 1)), &[]);
    rig.end(1, 0, &[]);
    rig.seal(0, 0, &["start 1#1"]);
    rig.seal(0, 0, &[]);
    rig.end(0, 0, &[]);
    rig.end(0, 0, &[]);
    rig.decide(1, 0, &[]);
    rig.measure(0, 5, &[]);
    rig.seal(1, 0, &["free 1.0"]);
    rig.end(1, 0, &["free 0.0", "over"]);
    rig.seal(0, 0, &[]);
    rig.forget(&[]);
    rig.end(0, 0, &[]);
}

#[test]
fn graphs_that_cannot_run_are_refused() {
    let check = |steps| rig(steps).graph.check().map_err(|error| error.to_string());
    let cycle = vec![step(&[from(2)]), step(&[from(0)]), step(&[from(1)])];
    assert_eq!(check(cycle).unwrap_err(), "steps wait for one another: s1 -> s2 -> s0 -> s1");
    let no_step = check(vec![step(&[from(3)])]);
    assert_eq!(no_step.unwrap_err(), "step s0 refers to step number 3, there are 1");
    let list_of_list = vec![
        Step { outputs: vec![output(PortKind::Many)], ..each(Source::Const(0), &[]) },
        step(&[gather(0)]),
    ];
    assert!(check(list_of_list).unwrap_err().contains("lists of lists"));
    assert!(check(vec![step(&[]), step(&[gather(0)])]).unwrap_err().contains("[*]"));
    assert!(check(vec![step(&[Source::Item])]).unwrap_err().contains("item"));
    assert!(check(vec![switch(vec![])]).unwrap_err().contains("no case"));
    let after_itself = Step { after: vec![0], ..step(&[]) };
    assert!(check(vec![after_itself]).unwrap_err().contains("s0 -> s0"));
    assert_eq!(check(vec![many(), each(from(0), &[Source::Item])]), Ok(()));
}

#[test]
fn a_deep_graph_does_not_exhaust_the_stack() {
    let mut rig = rig((0..100_000u32)
        .map(|i| step(&i.checked_sub(1).map(from).into_iter().collect::<Vec<_>>()))
        .collect());
    rig.graph.steps[0].when = condition(vec![], vec![]);
    let graph = Arc::new(rig.graph.clone());
    let mut effects = Vec::new();
    rig.scheduler.handle(Tick(0), Event::Submit { run: RUN, graph, start: None, part: None }, &mut effects);
    effects.clear();
    rig.scheduler.handle(Tick(0), Event::Evaluated { run: RUN, step: 0, result: Ok(0) }, &mut effects);
    let skipped =
        effects.iter().filter(|e| matches!(e, Effect::Note { note: Note::Skipped { .. }, .. })).count();
    assert_eq!(skipped, 100_000);
    assert!(matches!(effects.last(), Some(Effect::RunEnded { result: Ok(()), .. })));
}
