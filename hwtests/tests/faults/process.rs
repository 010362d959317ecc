//! Programs as functions, and `dflow` itself interrupted or killed.

use dflow_hwtests::run::Scene;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use std::time::{Duration, Instant};

const SLEEPER: &str = "functions:\n  f: {runtime: exec, command: [sh, -c, \"sleep 1000 & sleep 1000\"], stdout: data, outputs: {data: {type: text}}}\n\
    steps:\n  a: {function: f}\noutputs:\n  result: {from: steps.a.data}\n";

/// Starts the sleeper and waits until its program runs.
fn sleeping(scene: &Scene) -> dflow_hwtests::run::Going {
    scene.write_flow(SLEEPER);
    let going = scene.start(&["run", "-q", "flow.yaml"]);
    let late = Instant::now() + Duration::from_secs(60);
    while !scene.processes().iter().any(|(_, line)| line.starts_with("sleep")) {
        assert!(Instant::now() < late, "the program never ran: {:?}", scene.processes());
        std::thread::sleep(Duration::from_millis(10));
    }
    going
}

/// Sends a signal to `dflow`, or (as a terminal does for Ctrl-C) to its whole process group.
fn signal(pid: u32, signal: Signal, group: bool) {
    let pid = Pid::from_raw(pid as i32).expect("a process has a number");
    let sent = if group { kill_process_group(pid, signal) } else { kill_process(pid, signal) };
    sent.expect("this test's own child, not yet reaped");
}

#[test]
fn ctrl_c_ends_the_run_and_all_its_processes() {
    let scene = Scene::new();
    let going = sleeping(&scene);
    signal(going.child.id(), Signal::INT, true);
    going.end().expect(130, &["cancelled", "Ctrl-C"]);
    scene.assert_nothing_left();
}

#[test]
fn kill_9_of_dflow_leaves_no_process() {
    let scene = Scene::new();
    let going = sleeping(&scene);
    signal(going.child.id(), Signal::KILL, false);
    assert_eq!(going.end().code, -1);
    scene.assert_nothing_left();
}

#[test]
fn a_program_that_is_missing_is_named() {
    let body =
        SLEEPER.replace("command: [sh, -c, \"sleep 1000 & sleep 1000\"]", "command: [no-such-program-here]");
    Scene::new().run(&body, &[]).expect(1, &["step a failed", "no-such-program-here"]);
}

#[test]
fn a_programs_status_and_last_words_are_told() {
    let body = SLEEPER.replace("sleep 1000 & sleep 1000", "echo what went wrong >&2; exit 3");
    Scene::new().run(&body, &[]).expect(1, &["status 3", "what went wrong"]);
}

#[test]
fn a_program_killed_by_a_signal_is_a_crash() {
    let body = SLEEPER
        .replace("sleep 1000 & sleep 1000", "kill -SEGV $$")
        .replace("{function: f}", "{function: f, retry: {max: 1, backoff: 1ms, on: [crash]}}");
    Scene::new().run(&body, &[]).expect(1, &["attempt 2", "SIGSEGV"]);
}

/// Files in, files out: a list of files, then each by standard input, then all as arguments.
#[test]
fn programs_read_and_write_files_of_the_store() {
    let scene = Scene::new();
    let text: String = (0..2000).map(|i| format!("word{i} and more\n")).collect();
    scene.write("text", &text);
    let body = r#"inputs:
  text: {type: bytes}
  n: {type: int, default: 4}
functions:
  split:
    runtime: exec
    command: [sh, -c, 'split -n l/$0 -d "$1" "$2/"', "{in.n}", "{in.text}", "{out.piece}"]
    outputs: {piece: {type: bytes, many: true}}
  count:
    runtime: exec
    command: [wc, -w]
    stdin: piece
    stdout: words
    outputs: {words: {type: text}}
  sum:
    runtime: exec
    command: [sh, -c, 'out=$1; shift; cat "$@" | awk "{s += \$1} END {print s}" > "$out"', sh, "{out.total}", "{in.words}"]
    outputs: {total: {type: text}}
steps:
  split: {function: split, in: {text: inputs.text, n: inputs.n}}
  count: {function: count, foreach: {item: p, over: steps.split.piece}, in: {piece: item.p}}
  sum: {function: sum, in: {words: "steps.count.words[*]"}}
outputs:
  total: {from: steps.sum.total}
"#;
    assert_eq!(scene.run(body, &["--input", "text=@text"]).text(), "6000");
    assert_eq!(scene.run(body, &["--input", "text=@text", "-i", "n=1"]).text(), "6000");
}

/// A script beside the workflow file, written with a `/`, run in a directory of the invocation's own.
#[test]
fn a_program_beside_the_workflow_is_found() {
    let scene = Scene::new();
    let script = scene.write(
        "say.sh",
        "#!/bin/sh\ntouch left-here\nls \"$DFLOW_WORKFLOW_DIR/say.sh\" > \"$DFLOW_OUT_DATA\"\n",
    );
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(script, mode).expect("its own file");
    let body = "functions:\n  f: {runtime: exec, command: [./say.sh], outputs: {data: {type: text}}}\n\
        steps:\n  a: {function: f}\noutputs:\n  result: {from: steps.a.data}\n";
    let text = scene.run(body, &[]).text();
    assert!(text.ends_with("/say.sh"), "{text}");
    assert!(!scene.path("left-here").exists(), "a program runs in a scratch directory");
}
