//! How `dflow bench workflow --nodes` ends before its time, by the real binary: whatever ends it, nothing is left
//! behind, and the next one starts as if nothing had been.

use dflow_hwtests::run::{Going, Scene};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use serde_json::Value;
use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// What is waited for on a slow and busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Long enough that nothing is over before the test does something.
const FLOW: &str = r#"
functions:
  make: {runtime: builtin, handler: synthetic, outputs: {piece: {type: bytes, many: true}}}
  work: {runtime: builtin, handler: synthetic, outputs: {sum: {type: bytes}}}
steps:
  make: {function: make, in: {spec: {value: {out: [{port: piece, bytes: 10000, items: 4}]}}}}
  work: {function: work, foreach: {item: piece, over: steps.make.piece}, in: {piece: item.piece, spec: {value: {sleep_ms: 100}}}}
  join: {function: work, in: {sums: "steps.work.sum[*]", spec: {value: {}}}}
outputs:
  sum: {from: steps.join.sum}
"#;

fn scene() -> Scene {
    let scene = Scene::new();
    scene.write_flow(FLOW);
    fs::create_dir(scene.path("tmp")).expect("a folder for temporary files");
    scene
}

/// Starts a measurement whose temporary files are in the scene.
fn start(scene: &Scene, args: &[&str]) -> Going {
    use std::os::unix::process::CommandExt;
    let all = [&["bench", "workflow", "flow.yaml", "--nodes", "3", "--store", "64MiB"], args].concat();
    let mut command = scene.dflow(&all);
    command.env("TMPDIR", scene.path("tmp")).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    Going { child: command.spawn().expect("dflow starts") }
}

/// With stores of all kinds, of which those that are not installed are left out.
const LONG: [&str; 6] = ["--baseline", "cflow,faasflow-redis,knix", "-n", "100000", "--json", "r.json"];

fn pid(going: &Going) -> Pid {
    Pid::from_raw(going.child.id() as i32).expect("a process has a number")
}

fn entries(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// The namespaces of a measurement.
fn namespaces(owner: u32) -> Vec<String> {
    let mut all = entries(Path::new("/run/netns"));
    all.retain(|name| name.starts_with(&format!("dflow-{owner}-")));
    all
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let late = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < late, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A remote store and a fork server are there: nodes of at least one contender are up, and more are being made.
fn until_busy(scene: &Scene) {
    until("a store and a node", || {
        let lines: Vec<String> = scene.processes().into_iter().map(|(_, line)| line).collect();
        let has = |word: &str| lines.iter().any(|line| line.contains(word));
        has("bench store") && has("dflow-zygote")
    });
}

fn assert_gone(scene: &Scene, owner: u32) {
    scene.assert_nothing_left();
    // Whoever removes them outlives a measurement that was killed.
    until("the namespaces are gone", || namespaces(owner).is_empty());
}

#[test]
fn an_interrupt_leaves_nothing() {
    for (signal, to_all) in [(Signal::INT, true), (Signal::INT, false), (Signal::TERM, false)] {
        let scene = scene();
        let going = start(&scene, &LONG);
        let (pid, owner) = (pid(&going), going.child.id());
        until_busy(&scene);
        // From a terminal it comes to all processes of the group.
        let sent = if to_all { kill_process_group(pid, signal) } else { kill_process(pid, signal) };
        sent.expect("a process of this test");
        let ended = going.end();
        ended.expect(130, &["interrupted after", "nothing is written"]);
        assert_gone(&scene, owner);
        assert_eq!(entries(&scene.path("tmp")), [""; 0], "{signal:?}: {ended}");
        assert!(!scene.path("r.json").exists(), "{signal:?}");
    }
}

#[test]
fn what_a_killed_one_leaves_is_removed_by_the_next() {
    let scene = scene();
    let going = start(&scene, &LONG);
    let (pid, owner) = (pid(&going), going.child.id());
    until_busy(&scene);
    kill_process(pid, Signal::KILL).expect("a process of this test");
    assert_eq!(going.end().code, -1);
    assert_gone(&scene, owner);
    let going = start(&scene, &["--baseline", "cflow", "-n", "2", "--warmups", "0", "--json", "r.json"]);
    let owner = going.child.id();
    let ended = going.end();
    ended.expect(0, &["2 of 2 runs"]);
    assert_gone(&scene, owner);
    assert_eq!(entries(&scene.path("tmp")), [""; 0], "{ended}");
}

/// Everything that it says until it says `word`.
fn said_until(going: &mut Going, word: &str) -> String {
    let stderr = going.child.stderr.as_mut().expect("piped");
    let mut said = Vec::new();
    let mut byte = [0];
    while !String::from_utf8_lossy(&said).contains(word) {
        assert_eq!(stderr.read(&mut byte).expect("a pipe"), 1, "{}", String::from_utf8_lossy(&said));
        said.push(byte[0]);
    }
    String::from_utf8_lossy(&said).into_owned()
}

#[test]
fn a_lost_node_ends_its_contender_by_name() {
    let scene = scene();
    let mut going = start(&scene, &["-n", "600", "--warmups", "0", "--json", "r.json"]);
    let owner = going.child.id();
    let said = said_until(&mut going, "60 of 600 runs");
    let nodes = namespaces(owner);
    if nodes.is_empty() {
        println!("SKIP lost node: no network namespaces here: {said}");
        kill_process(pid(&going), Signal::TERM).expect("a process of this test");
        going.end().expect(130, &[]);
        return;
    }
    let cut = ["-n", &format!("dflow-{owner}-0-1"), "link", "set", "eth0", "down"];
    assert!(Command::new("ip").args(cut).status().expect("iproute2").success(), "{nodes:?}");
    let ended = going.end();
    ended.expect(1, &["dflow: node n1 is out of the others' reach"]);
    assert!(
        String::from_utf8_lossy(&ended.stdout).contains("node n1 is out of the others' reach"),
        "{ended}"
    );
    let text = fs::read_to_string(scene.path("r.json")).unwrap_or_else(|e| panic!("{e}: {ended}"));
    let figures: Value = serde_json::from_str(&text).expect("JSON");
    let row = &figures["results"][0];
    assert_eq!(row["given_up"], true, "{row}");
    assert!(row["lost"].as_str().is_some_and(|why| why.contains("n1")), "{row}");
    assert!(row["latency_us"]["samples"].as_u64() < Some(600), "{row}");
    assert_gone(&scene, owner);
}

#[test]
fn what_cannot_be_written_is_told_at_once_and_figures_are_not_lost() {
    let scene = scene();
    let ended = start(&scene, &["-n", "100000", "--json", "no/such/folder/r.json"]).end();
    ended.expect(4, &["cannot write no/such/folder/r.json"]);
    assert!(ended.stdout.is_empty() && !ended.stderr.contains("runs each"), "{ended}");
    let ended = start(&scene, &["-n", "2", "--warmups", "0", "--json", "/dev/full"]).end();
    ended.expect(4, &["cannot write /dev/full"]);
    assert!(String::from_utf8_lossy(&ended.stdout).contains("WORKFLOW"), "{ended}");
    scene.assert_nothing_left();
}

#[test]
fn a_store_that_is_too_small_is_told_with_what_it_lacks() {
    let scene = scene();
    let text = fs::read_to_string(scene.path("flow.yaml")).expect("it was written");
    scene.write("flow.yaml", &text.replace("bytes: 10000, items: 4", "bytes: 600000000, items: 4"));
    // Two runs a turn: it is given up over several.
    let ended = start(&scene, &["-n", "20", "--warmups", "0", "--json", "r.json"]).end();
    ended.expect(1, &["given up", "raise the store's size"]);
    let text = fs::read_to_string(scene.path("r.json")).unwrap_or_else(|e| panic!("{e}: {ended}"));
    let figures: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(figures["results"][0]["failed"], 5, "{ended}");
    scene.assert_nothing_left();
}
