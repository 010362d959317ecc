//! Native functions that misbehave.

use dflow_hwtests::run::{Ended, Scene};

fn scene() -> Scene {
    let scene = Scene::new();
    scene.compile("faults", include_str!("functions.c"));
    scene
}

/// Runs one step of one native function.
fn one(symbol: &str, step: &str) -> Ended {
    let body = format!(
        "functions:\n  f: {{runtime: native, library: libfaults.so, symbol: {symbol}, outputs: {{data: {{type: text}}}}}}\n\
         steps:\n  a: {{function: f{step}}}\noutputs:\n  result: {{from: steps.a.data}}\n"
    );
    scene().run(&body, &[])
}

#[test]
fn a_crash_tells_the_signal_and_the_last_words() {
    one("crash", "").expect(1, &["step a failed at attempt 1", "SIGABRT (6)", "about to crash"]);
}

#[test]
fn a_crash_is_tried_again_as_often_as_asked() {
    let retry = ", retry: {max: 2, backoff: 1ms, on: [crash]}";
    one("crash", retry).expect(1, &["step a failed at attempt 3", "SIGABRT"]);
}

#[test]
fn a_port_put_twice_is_an_error() {
    one("twice", "").expect(1, &["PutTwice", "\"data\""]);
}

#[test]
fn a_port_never_put_is_an_error() {
    one("never", "").expect(1, &["OutputMissing", "\"data\""]);
}

#[test]
fn writing_past_the_declared_size_is_an_error() {
    one("past", "").expect(1, &["OutputTooLarge", "100", "200"]);
}

#[test]
fn a_write_after_the_seal_faults_in_the_function_that_made_it() {
    one("stray", "").expect(1, &["SIGSEGV (11)"]);
}

#[test]
fn a_write_to_an_input_faults_in_the_function_that_made_it() {
    let body = "functions:\n  make: {runtime: builtin, handler: synthetic, outputs: {data: {type: bytes}}}\n  \
        f: {runtime: native, library: libfaults.so, symbol: vandal, outputs: {data: {type: text}}}\n\
        steps:\n  m: {function: make, in: {spec: {value: {out: [{port: data, bytes: 100000}]}}}}\n  \
        a: {function: f, in: {in: steps.m.data}}\noutputs:\n  result: {from: steps.a.data}\n";
    scene().run(body, &[]).expect(1, &["step a failed", "SIGSEGV (11)"]);
}

#[test]
fn a_status_is_a_class_of_its_own() {
    one("code", ", retry: {max: 1, backoff: 1ms, on: [\"exit:75\"]}").expect(1, &["attempt 2", "75"]);
    one("code", ", retry: {max: 1, backoff: 1ms, on: [\"exit:74\"]}").expect(1, &["attempt 1", "75"]);
}

#[test]
fn a_reported_error_keeps_its_name_and_words() {
    one("unlucky", ", retry: {max: 1, backoff: 1ms, on: [\"error:BadLuck\"]}")
        .expect(1, &["attempt 2", "BadLuck", "seven years"]);
}

#[test]
fn children_left_behind_do_not_outlive_the_run() {
    assert_eq!(one("leaver", "").text(), "x");
}

#[test]
fn a_function_that_hangs_is_ended_at_its_timeout() {
    one("stubborn", ", timeout: 300ms").expect(1, &["step a failed", "timeout of 300 ms"]);
}

#[test]
fn a_run_that_hangs_is_ended_at_its_deadline() {
    let body = "functions:\n  f: {runtime: native, library: libfaults.so, symbol: stubborn, outputs: {data: {type: text}}}\n\
        steps:\n  a: {function: f}\noutputs:\n  result: {from: steps.a.data}\npolicy: {deadline: 300ms}\n";
    scene().run(body, &[]).expect(124, &["deadline of 300 ms", "a"]);
}

#[test]
fn a_flood_of_output_harms_nobody() {
    assert_eq!(one("flood", "").text(), "x");
}

#[test]
fn memory_beyond_the_limit_is_its_own_error() {
    let limit = ", resources: {memory: 64MiB}";
    one("eat", limit).expect(1, &["step a failed", "resources.memory", "64 MiB"]);
}

#[test]
fn a_missing_symbol_or_library_says_which() {
    one("nothing", "").expect(1, &["libfaults.so", "nothing"]);
    let body = "functions:\n  f: {runtime: native, library: libnone.so, outputs: {data: {type: text}}}\n\
        steps:\n  a: {function: f}\noutputs:\n  result: {from: steps.a.data}\n";
    let ended = scene().run(body, &[]);
    assert!(ended.code == 1 || ended.code == 2, "{ended}");
    assert!(ended.stderr.contains("libnone.so"), "{ended}");
}

/// The reader sees the items of one attempt only, although it had begun with those of the first.
#[test]
fn a_reader_of_a_dead_attempt_runs_again() {
    let body = "functions:\n  h: {runtime: native, library: libfaults.so, symbol: halfway, outputs: {items: {type: text, many: true}}}\n  \
        j: {runtime: native, library: libfaults.so, symbol: join, outputs: {data: {type: text}}}\n\
        steps:\n  h: {function: h, retry: {max: 1, backoff: 1ms, on: [crash]}}\n  \
        j: {function: j, in: {items: steps.h.items}}\noutputs:\n  result: {from: steps.j.data}\n";
    for start in ["eager", "first-byte", "all-ready"] {
        assert_eq!(scene().run(body, &["--start", start]).text(), "0/2 1/2 2/2", "--start {start}");
    }
}

#[test]
fn strict_mode_gives_the_same_results_and_still_faults() {
    let body = |symbol: &str| {
        format!(
            "functions:\n  f: {{runtime: native, library: libfaults.so, symbol: {symbol}, outputs: {{data: {{type: bytes}}}}}}\n  \
             s: {{runtime: builtin, handler: synthetic, outputs: {{data: {{type: bytes}}}}}}\n\
             steps:\n  a: {{function: f}}\n  b: {{function: s, in: {{x: steps.a.data, spec: {{value: {{read: true, out: [{{port: data, bytes: 300000}}]}}}}}}}}\n\
             outputs:\n  result: {{from: steps.b.data}}\n"
        )
    };
    let ended = scene().run(&body("well"), &["--strict"]);
    assert_eq!((ended.code, ended.stdout.len()), (0, 300_000), "{ended}");
    scene().run(&body("stray"), &["--strict"]).expect(1, &["SIGSEGV"]);
}
