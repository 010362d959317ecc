//! `dflow bench workflow` and `dflow export`, by the real binary: contenders run side by side and deliver the
//! same, figures agree with each other, and a rival that dies takes nobody with it.

use dflow_hwtests::run::{Ended, Scene};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::time::{Duration, Instant};

/// A source, a list worked on item by item, a fan-in, and a stream that is read while it grows.
const FLOW: &str = r#"
functions:
  make: {runtime: builtin, handler: synthetic, outputs: {piece: {type: bytes, many: true}}}
  work: {runtime: builtin, handler: synthetic, outputs: {sum: {type: bytes}}}
  grow: {runtime: builtin, handler: synthetic, outputs: {data: {type: bytes, stream: true}}}
steps:
  make: {function: make, in: {spec: {value: {out: [{port: piece, bytes: 100000, items: 4}], pace_ms: 1}}}}
  work: {function: work, foreach: {item: piece, over: steps.make.piece}, in: {piece: item.piece, spec: {value: {sleep_ms: 1}}}}
  join: {function: work, in: {sums: "steps.work.sum[*]", spec: {value: {}}}}
  grow: {function: grow, in: {spec: {value: {out: [{port: data, bytes: 9000000}], pace_ms: 1}}}}
  last: {function: work, in: {data: steps.grow.data, sum: steps.join.sum, spec: {value: {}}}}
outputs:
  sum: {from: steps.last.sum}
"#;

/// Runs a measurement of `flow.yaml` and reads its figures.
fn bench(scene: &Scene, args: &[&str]) -> (Ended, Value) {
    let all = [&["bench", "workflow", "flow.yaml", "--json", "r.json", "--svg", "r.svg"], args].concat();
    let ended = scene.start(&all).end();
    let figures = std::fs::read_to_string(scene.path("r.json")).unwrap_or_else(|e| panic!("{e}: {ended}"));
    (ended, serde_json::from_str(&figures).expect("JSON"))
}

fn row<'v>(figures: &'v Value, contender: &str) -> &'v Value {
    let rows = figures["results"].as_array().expect("rows");
    rows.iter().find(|r| r["contender"] == contender).unwrap_or_else(|| panic!("no {contender}: {figures}"))
}

#[test]
fn contenders_deliver_the_same_and_figures_agree() {
    let scene = Scene::new();
    scene.write_flow(FLOW);
    let rivals = "same-store,cflow,faasflow,knix,faasflow-redis";
    let all = ["--without", "cold-start,fan-in,streaming,hand-over,trace", "--baseline", rivals];
    let load = ["-n", "6", "--cpus", "4", "--start", "eager,first:1", "--link", "500MB", "--store", "256MiB"];
    let (ended, figures) = bench(&scene, &[&all[..], &load].concat());
    let left_out = figures["left_out"].as_array().expect("a list");
    if left_out.iter().any(|l| l["contender"] == "faasflow-redis") {
        println!("SKIP faasflow-redis: {}", left_out[0]["why"]);
    } else {
        ended.expect(0, &["6 of 6 runs"]);
    }
    assert_eq!(figures["different_outputs"], serde_json::json!([]), "{ended}");
    assert_eq!(figures["first"], "dflow");
    for row in figures["results"].as_array().expect("rows") {
        let (latency, makespan) = (&row["latency_us"], &row["makespan_us"]);
        assert_eq!((&row["failed"], &latency["samples"]), (&0.into(), &6.into()), "{row}");
        let us = |of: &Value, q: &str| of[q].as_u64().expect("a time");
        let order = ["min", "p50", "p90", "p99", "p999", "max"].map(|q| us(latency, q));
        assert!(order.is_sorted() && order[0] > 0, "{row}");
        assert_eq!(latency["p99_is_sound"], false);
        assert!(us(latency, "max") >= us(makespan, "p50"), "{row}");
        assert!(row["bytes"].as_u64() >= Some(9_400_000), "{row}");
        if row["contender"] != "without-trace" {
            assert_eq!(row["invocations"], 8, "{row}");
            let bound = &row["bound_us"];
            assert!(us(bound, "critical_path") > 0 && us(bound, "ideal") <= us(makespan, "max"), "{row}");
        }
    }
    // What is imitated really happens: all objects go away and come back, and every start is a trigger.
    for central in ["cflow", "knix"] {
        let remote = &row(&figures, central)["remote"];
        assert!(remote["stored_bytes"].as_u64() >= Some(9_400_000), "{remote}");
        assert!(remote["fetched_bytes"].as_u64() >= Some(9_400_000), "{remote}");
        assert_eq!(remote["triggers"], 8, "{remote}");
    }
    assert!(row(&figures, "dflow")["remote"].is_null() && row(&figures, "same-store")["remote"].is_null());
    // Control flow shows no overlap of data.
    let streamed =
        |contender: &str| row(&figures, contender)["overlaps"][2]["count"].as_f64().expect("a count");
    assert_eq!((streamed("same-store"), streamed("without-streaming")), (0.0, 0.0), "{figures}");
    let chart = std::fs::read_to_string(scene.path("r.svg")).expect("a chart");
    assert!(chart.starts_with("<svg") && chart.contains("without-hand-over"), "{chart}");
    scene.assert_nothing_left();
}

/// Programs have scratch directories, of which each node of a process must have its own; and the imitation of a
/// system without fork servers starts a runtime for each of its workers, and leaves none.
#[test]
fn contenders_run_programs_beside_each_other() {
    let scene = Scene::new();
    scene.write_flow(
        "functions:\n  f: {runtime: exec, command: [sh, -c, 'cat > here; cat here'], stdin: text, stdout: o,\n      \
         outputs: {o: bytes}}\n\
         inputs:\n  text: {type: string, default: twelve bytes}\n\
         steps:\n  s: {function: f, in: {text: inputs.text}}\n  t: {function: f, in: {text: steps.s.o}}\n\
         outputs:\n  o: {from: steps.t.o}\n",
    );
    for cold in [false, true] {
        let rivals = ["--baseline", "same-store,cflow,knix", "-n", "3", "--store", "256MiB"];
        let (ended, figures) = bench(&scene, &[&rivals[..], if cold { &["--cold"] } else { &[] }].concat());
        ended.expect(0, &[]);
        assert_eq!(figures["left_out"], serde_json::json!([]), "{figures}");
        assert_eq!(figures["different_outputs"], serde_json::json!([]), "{ended}");
        for contender in ["dflow", "same-store", "cflow", "knix"] {
            let row = row(&figures, contender);
            assert_eq!((&row["failed"], &row["latency_us"]["samples"]), (&0.into(), &3.into()), "{row}");
            if cold {
                assert!(row["cold_starts"].as_f64() > Some(0.9), "{row}");
            }
        }
        scene.assert_nothing_left();
    }
}

#[test]
fn open_loops_cold_pools_and_several_workflows() {
    let scene = Scene::new();
    scene.write_flow(FLOW);
    std::fs::copy(scene.path("flow.yaml"), scene.path("other.yaml")).expect("copied");
    let open = ["other.yaml", "--rate", "50", "--arrivals", "fixed", "-n", "8", "--store", "256MiB", "-q"];
    let (ended, figures) = bench(&scene, &open);
    ended.expect(0, &[]);
    let rows = figures["results"].as_array().expect("rows");
    let names: Vec<_> = rows.iter().map(|r| (&r["workflow"], &r["latency_us"]["samples"])).collect();
    assert_eq!(names, [(&"flow".into(), &4.into()), (&"other".into(), &4.into())], "{figures}");
    assert_eq!(figures["load"]["kind"], "open");

    let (ended, figures) = bench(&scene, &["--cold", "-n", "3", "--warmups", "0", "--store", "256MiB", "-q"]);
    ended.expect(0, &[]);
    assert!(row(&figures, "dflow")["cold_starts"].as_f64() > Some(0.9), "{figures}");
    let wrong = |args: &[&str], word: &str| {
        let all = [&["bench", "workflow", "flow.yaml"], args].concat();
        scene.start(&all).end().expect(2, &[word]);
    };
    wrong(&["--cold", "--closed", "2"], "--closed 1");
    wrong(&["-i", "nosuch=1"], "nosuch");
    wrong(&["--baseline", "cfow"], "cflow");
    wrong(&["--no-dflow"], "--baseline");
    scene.assert_nothing_left();
}

#[test]
fn pools_of_all_nodes_are_cold() {
    let scene = Scene::new();
    scene.write_flow(FLOW);
    let nodes = ["--nodes", "3", "--no-dflow", "--start", "first-byte", "--baseline", "same-store,cflow"];
    let load = ["--cold", "-n", "3", "--warmups", "1", "--store", "64MiB", "-q"];
    let (ended, figures) = bench(&scene, &[&nodes[..], &load].concat());
    ended.expect(0, &[]);
    assert_eq!((&figures["cold"], &figures["nodes"]), (&true.into(), &3.into()), "{figures}");
    assert_eq!(figures["different_outputs"], serde_json::json!([]), "{ended}");
    for contender in ["first-byte", "same-store", "cflow"] {
        let row = row(&figures, contender);
        assert_eq!((&row["failed"], &row["latency_us"]["samples"]), (&0.into(), &3.into()), "{row}");
        assert!(row["cold_starts"].as_f64() > Some(0.9), "{row}");
    }
    scene.assert_nothing_left();
}

#[test]
fn a_store_that_is_killed_ends_its_contender_and_no_other() {
    let scene = Scene::new();
    scene.write_flow(FLOW);
    let args = ["bench", "workflow", "flow.yaml", "--baseline", "knix", "-n", "600", "--store", "256MiB"];
    let going = scene.start(&[&args[..], &["--json", "r.json"]].concat());
    let late = Instant::now() + Duration::from_secs(60);
    let store = loop {
        assert!(Instant::now() < late, "no store: {:?}", scene.processes());
        let found = scene.processes().into_iter().find(|(_, line)| line.contains("bench store"));
        match found {
            Some((pid, _)) => break pid,
            None => std::thread::sleep(Duration::from_millis(10)),
        }
    };
    let pid = Pid::from_raw(store as i32).expect("a process has a number");
    kill_process(pid, Signal::KILL).expect("a process of this test");
    let ended = going.end();
    ended.expect(1, &["knix"]);
    let figures = std::fs::read_to_string(scene.path("r.json")).unwrap_or_else(|e| panic!("{e}: {ended}"));
    let figures: Value = serde_json::from_str(&figures).expect("JSON");
    assert_eq!(row(&figures, "dflow")["latency_us"]["samples"], 600, "{ended}");
    let left_out = figures["left_out"].as_array().expect("a list");
    if left_out.is_empty() {
        let row = row(&figures, "knix");
        let whys = row["failures"].to_string();
        assert!(row["given_up"] == true && whys.contains("remote store"), "{row}");
    }
    scene.assert_nothing_left();
}

#[test]
fn a_missing_program_is_named_once_and_the_measurement_ends() {
    let scene = Scene::new();
    scene.write_flow(
        "functions:\n  f: {runtime: exec, command: [no-such-program-here], outputs: {o: bytes}}\n\
         steps:\n  s: {function: f}\noutputs:\n  o: {from: steps.s.o}\n",
    );
    let (ended, figures) = bench(&scene, &["-n", "100", "--store", "256MiB"]);
    ended.expect(1, &["no-such-program-here", "given up"]);
    assert_eq!(row(&figures, "dflow")["given_up"], true);
    scene.assert_nothing_left();
}

#[test]
fn a_past_run_is_exported_for_other_tools_and_read_back() {
    let scene = Scene::new();
    scene.run(FLOW, &[]).expect(0, &[]);
    let exported = scene.start(&["export", "last", "wfformat"]).end();
    let document: Value = serde_json::from_str(&exported.text()).expect("JSON");
    let tasks = document["workflow"]["specification"]["tasks"].as_array().expect("tasks");
    assert_eq!((tasks.len(), &document["schemaVersion"]), (8, &"1.5".into()), "{document}");
    scene.write("run.json", &exported.text());
    scene.start(&["import", "wfformat", "run.json", "-o", "again.yaml"]).end().expect(0, &["8 tasks"]);
    scene.start(&["lint", "again.yaml"]).end().expect(0, &[]);
    let dot = scene.start(&["export", "last", "dot"]).end().text();
    assert!(dot.starts_with("digraph") && dot.contains("8.6 MiB"), "{dot}");
    assert!(scene.start(&["export", "last", "svg"]).end().text().starts_with("<svg"));
    scene.start(&["export", "nosuchrun", "dot"]).end().expect(2, &["nosuchrun"]);
}
