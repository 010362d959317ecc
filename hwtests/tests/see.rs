//! Seeing a run: the history that `dflow run` leaves, traces, reports, and `dflow doctor`, by the
//! real binary.

use dflow_hwtests::run::{Ended, Scene};
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A list of which each item is read as it comes, a fan-in, and a stream that is read while it grows.
const FLOW: &str = r#"
functions:
  make: {runtime: builtin, handler: synthetic, outputs: {piece: {type: bytes, many: true}}}
  work: {runtime: builtin, handler: synthetic, outputs: {sum: {type: bytes}}}
  grow: {runtime: builtin, handler: synthetic, outputs: {data: {type: bytes, stream: true}}}
  say: {runtime: exec, command: [sh, -c, "echo '<img src=x onerror=\"document.title=1\">' >&2; cat {in.a} >/dev/null; echo {in.b} | wc -c"], stdout: text, outputs: {text: {type: text}}}
steps:
  make: {function: make, in: {spec: {value: {out: [{port: piece, bytes: 100000, items: 6}], pace_ms: 10}}}}
  work: {function: work, foreach: {item: piece, over: steps.make.piece}, in: {piece: item.piece, spec: {value: {compute_ms: 5}}}}
  join: {function: work, in: {sums: "steps.work.sum[*]", spec: {value: {}}}}
  grow: {function: grow, in: {spec: {value: {out: [{port: data, bytes: 20000000}], pace_ms: 10}}}}
  follow: {function: work, in: {data: steps.grow.data, spec: {value: {}}}}
  say: {function: say, in: {a: steps.join.sum, b: steps.follow.sum}}
outputs:
  text: {from: steps.say.text}
"#;

fn json(ended: &Ended) -> Value {
    serde_json::from_str(&ended.text()).unwrap_or_else(|e| panic!("{e}: {ended}"))
}

fn dflow(scene: &Scene, args: &[&str]) -> Ended {
    scene.start(args).end()
}

/// Enough tokens for all steps at once, whatever this machine has: readers then wait for data.
fn one_run(scene: &Scene) {
    scene.run(FLOW, &["-o", "out", "--start", "eager", "--cpus", "8"]).expect(0, &[]);
}

#[test]
fn a_run_can_be_looked_at_afterwards() {
    let scene = Scene::new();
    dflow(&scene, &["show"]).expect(2, &["no runs yet"]);
    one_run(&scene);
    let listed = json(&dflow(&scene, &["ps", "-o", "json"]));
    let run = listed[0]["run"].as_str().expect("a name").to_owned();
    assert_eq!((run.len(), listed.as_array().map(Vec::len)), (11, Some(1)), "{listed}");
    assert!(dflow(&scene, &["ps"]).text().contains(&run));
    let shown = json(&dflow(&scene, &["show", &run[..9], "-o", "json"]));
    assert_eq!((&shown["result"], &shown["workflow"]), (&"done".into(), &"test@1".into()), "{shown}");
    let steps = shown["steps_table"].as_array().expect("steps");
    assert!(steps.len() == 6 && steps.iter().all(|s| s["state"] == "done"), "{shown}");
    assert_eq!(steps[1]["items"], 6);
    let edge =
        |from: &str| shown["edges"].as_array().expect("edges").iter().find(|e| e["from"] == from).cloned();
    assert_eq!(edge("grow").expect("its edge")["bytes"], 20_000_000, "{shown}");
    let makespan = shown["makespan_us"].as_u64().expect("a time");
    let bound = shown["ideal_bound_us"].as_u64().expect("a time");
    assert!(0 < bound && bound <= makespan, "{bound} {makespan}");
    assert!(dflow(&scene, &["show"]).text().contains("grow"));
    let logs = dflow(&scene, &["logs", "last", "say"]).text();
    assert!(logs.starts_with("say | <img"), "{logs}");
    assert_eq!(dflow(&scene, &["logs", "last", "make"]).text(), "");
    dflow(&scene, &["logs", "last", "sya"]).expect(2, &["did you mean \"say\""]);
    dflow(&scene, &["show", "nosuchrun"]).expect(2, &["dflow ps"]);
}

#[test]
fn a_run_that_failed_or_was_interrupted_is_kept_with_its_reason() {
    let scene = Scene::new();
    let body = FLOW.replace("value: {compute_ms: 5}", "value: {fail: Oops}");
    scene.run(&body, &[]).expect(1, &["Oops"]);
    scene.write_flow(&FLOW.replace("cat {in.a} >/dev/null;", "sleep 1000;"));
    let going = scene.start(&["run", "flow.yaml"]);
    let late = Instant::now() + Duration::from_secs(60);
    while !scene.processes().iter().any(|(_, line)| line.starts_with("sleep")) {
        assert!(Instant::now() < late, "the program never ran: {:?}", scene.processes());
        std::thread::sleep(Duration::from_millis(10));
    }
    let group = Pid::from_raw(going.child.id() as i32).expect("a process has a number");
    kill_process_group(group, Signal::INT).expect("this test's own child, not yet reaped");
    going.end().expect(130, &["dflow report"]);
    let listed = json(&dflow(&scene, &["ps", "-o", "json"]));
    assert_eq!(
        (&listed[0]["result"], &listed[1]["result"]),
        (&"cancelled".into(), &"failed".into()),
        "{listed}"
    );
    let shown = dflow(&scene, &["show", "last~1"]).text();
    assert!(shown.contains("work[") && shown.contains("Oops"), "{shown}");
}

#[test]
fn the_history_is_bounded_and_can_be_left_out() {
    let scene = Scene::new();
    let body = "steps:\n  a: {function: {runtime: builtin, handler: noop}}\n";
    for _ in 0..4 {
        scene.run(body, &["--history-runs", "2"]).expect(0, &[]);
    }
    scene.run(body, &["--no-history"]).expect(0, &[]);
    let listed = json(&dflow(&scene, &["ps", "-o", "json"]));
    assert_eq!(listed.as_array().map(Vec::len), Some(2), "{listed}");
}

#[test]
fn many_runs_at_once_are_all_kept() {
    let scene = Scene::new();
    scene.write_flow("steps:\n  a: {function: {runtime: builtin, handler: noop}}\n");
    let all: Vec<_> = (0..6).map(|_| scene.start(&["run", "-q", "flow.yaml"])).collect();
    for going in all {
        let ended = going.end();
        ended.expect(0, &[]);
        assert!(!ended.stderr.contains("warning"), "{ended}");
    }
    let listed = json(&dflow(&scene, &["ps", "-o", "json"]));
    assert_eq!(listed.as_array().map(Vec::len), Some(6), "{listed}");
}

#[test]
fn a_damaged_history_costs_a_warning_and_no_run() {
    let scene = Scene::new();
    std::fs::create_dir(scene.path("state")).expect("a folder");
    for content in ["this is no database", "", &"x".repeat(100_000)] {
        std::fs::write(scene.path("state/history.redb"), content).expect("a file");
        let ended = scene.run("steps:\n  a: {function: {runtime: builtin, handler: noop}}\n", &[]);
        // An empty file is what a crash before the first word leaves: it is begun anew.
        if content.is_empty() {
            ended.expect(0, &[]);
        } else {
            ended.expect(0, &["warning: this run is not kept", "damaged", "mv "]);
            dflow(&scene, &["ps"]).expect(3, &["damaged"]);
        }
    }
    std::fs::write(scene.path("blocked"), "a file where a folder should be").expect("a file");
    let mut command = scene.dflow(&["run", "-q", "flow.yaml", "--state", "blocked/state"]);
    let output = command.output().expect("dflow starts");
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("--state DIR"), "{output:?}");
}

#[test]
fn a_trace_shows_phases_and_data() {
    let scene = Scene::new();
    one_run(&scene);
    dflow(&scene, &["trace", "-o", "trace.json"]).expect(0, &[]);
    let text = std::fs::read_to_string(scene.path("trace.json")).expect("the trace");
    let trace: Value = serde_json::from_str(&text).expect("JSON");
    let events = trace["traceEvents"].as_array().expect("a list");
    let named = |name: &str| events.iter().filter(|e| e["name"] == name).count();
    for name in ["work[5]", "join", "compute", "waiting for data", "cold start"] {
        assert!(named(name) > 0, "no {name} in {trace:#}");
    }
    let of = |ph: &str| events.iter().filter(|e| e["ph"] == ph).collect::<Vec<_>>();
    // make to each work, each work to join, grow to follow, both to say.
    assert_eq!((of("s").len(), of("f").len()), (15, 15));
    let makespan = trace["otherData"]["makespan_us"].as_u64().expect("a time");
    let end = |e: &&Value| e["ts"].as_u64().unwrap_or(0) + e["dur"].as_u64().unwrap_or(0);
    assert!(of("X").iter().all(|e| end(e) <= makespan + 1000), "something lasts longer than {makespan}");
    // The pace of the producer makes its readers wait; that must show where it was.
    let follow = events.iter().find(|e| e["name"] == "follow" && e["ph"] == "X").expect("follow");
    assert!(follow["args"]["wait_us"].as_u64().expect("a time") > 1000, "{follow}");
}

/// Debian's name, and that of others.
fn chromium() -> Option<&'static str> {
    let works = |program: &&str| {
        let output = Command::new(program).arg("--version").stdin(Stdio::null()).output();
        output.is_ok_and(|o| o.status.success())
    };
    ["chromium", "chromium-browser", "google-chrome"].into_iter().find(works)
}

fn browse(program: &str, folder: &Path, args: &[&str], page: &Path) -> String {
    let output = Command::new(program)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"])
        .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
        .arg(format!("--user-data-dir={}", folder.join("browser").display()))
        .args(["--window-size=1400,1600", "--virtual-time-budget=2000"])
        .args(args)
        .arg(format!("file://{}", page.display()))
        .stdin(Stdio::null())
        .output()
        .expect("the browser starts");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn a_report_shows_a_person_the_run() {
    let scene = Scene::new();
    one_run(&scene);
    dflow(&scene, &["report", "-o", "report.html"]).expect(0, &["wrote report.html"]);
    let page = std::fs::read_to_string(scene.path("report.html")).expect("the page");
    // Nothing is fetched from anywhere.
    for outside in ["src=\"", "href=", "@import", "url(http"] {
        let inside = page.matches(outside).count()
            - page.matches("&lt;img src").count().min(page.matches(outside).count());
        assert_eq!(inside, 0, "{outside} in the page");
    }
    assert!(page.contains("&lt;img src=x"), "what functions print is shown as text");
    let Some(program) = chromium() else {
        println!("SKIP chromium: the page is not looked at; apt-get install chromium");
        return;
    };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let dom = browse(program, folder.path(), &["--dump-dom"], &scene.path("report.html"));
    assert!(dom.contains("<title>test@1 "), "what a function printed has changed the title");
    assert!(!dom.contains("<img"), "what a function printed has become an element");
    for seen in ["critical path", "makespan", "ideal bound", "work[3]", "Bytes per edge", "waiting for data"]
    {
        assert!(dom.contains(seen), "no {seen:?} to be seen");
    }
    // The script has drawn the time axis anew.
    let axis =
        dom.split("class=\"axis\"").nth(1).and_then(|rest| rest.split("</g>").next()).expect("an axis");
    assert!(axis.matches("<text").count() >= 4 && axis.contains("ms"), "{axis}");
    for (scheme, flag) in
        [("light", "--disable-features=Dark"), ("dark", "--blink-settings=preferredColorScheme=0")]
    {
        let picture = folder.path().join(format!("{scheme}.png"));
        let argument = format!("--screenshot={}", picture.display());
        browse(program, folder.path(), &[flag, &argument], &scene.path("report.html"));
        let bytes = std::fs::metadata(&picture).map_or(0, |m| m.len());
        assert!(bytes > 30_000, "the {scheme} picture of {bytes} bytes is empty");
    }
}

#[test]
fn doctor_tells_what_to_mend() {
    let scene = Scene::new();
    let found = dflow(&scene, &["doctor", "-o", "json", "--spill", "/var/tmp"]);
    let found = json(&found);
    let grade = |check: &str| {
        let all = found.as_array().expect("a list");
        let one =
            all.iter().find(|f| f["check"] == check).unwrap_or_else(|| panic!("no {check} in {found:#}"));
        one["grade"].as_str().expect("a word").to_owned()
    };
    assert_eq!((grade("kernel"), grade("libdflow")), ("ok".into(), "ok".into()));
    for check in
        ["io_uring", "huge pages", "locked memory", "RDMA", "cgroups", "wake", "process start", "/dev/shm"]
    {
        grade(check);
    }
    for finding in found.as_array().expect("a list") {
        let silent = finding["mend"] == "" && finding["check"] != "huge pages";
        assert!(finding["grade"] == "ok" || !silent, "{finding} does not say what to do");
    }
    // It is read as a node would read it, from any of the places.
    scene.write("node.toml", "cards = \"nosuch_0\"\n");
    let told = json(&dflow(&scene, &["doctor", "-o", "json", "--config", "node.toml"]));
    let rdma = |found: &Value| {
        let all = found.as_array().expect("a list");
        all.iter().find(|f| f["check"] == "RDMA").expect("it looks at it").clone()
    };
    assert_eq!(rdma(&told)["grade"], "warn", "{told:#}");
    assert!(
        rdma(&told)["found"].as_str().is_some_and(|found| found.contains("cards = nosuch_0")),
        "{told:#}"
    );
    let peers = ["--peers", "b=127.0.0.1:7499", "--spill", "/var/tmp"];
    let only =
        [&["doctor", "-o", "json", "--config", "node.toml", "--transport", "rdma"], &peers[..]].concat();
    let told = dflow(&scene, &only);
    let found: Value = serde_json::from_slice(&told.stdout).unwrap_or_else(|e| panic!("{e}: {told}"));
    assert_eq!((told.code, &rdma(&found)["grade"]), (3, &"fail".into()), "{told}");
    scene.write("node.toml", "crads = \"mlx5_0\"\n");
    let typo = dflow(&scene, &["doctor", "--config", "node.toml"]);
    typo.expect(2, &["did you mean `cards`"]);
    let bad = dflow(&scene, &["doctor", "--spill", "/nonexistent/spill"]);
    assert_eq!(bad.code, 3, "{bad}");
    assert!(String::from_utf8_lossy(&bad.stdout).contains("mkdir -p /nonexistent/spill"), "{bad}");
}
