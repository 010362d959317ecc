//! Sizes and counts at their ends: nothing, a great many, more than there is room for.

use dflow_hwtests::run::Scene;
use std::fs;
use std::process::Command;

/// `make` (one object of `bytes`) -> `read` (checks and answers with `back` bytes).
fn hand_over(bytes: u64, back: u64) -> String {
    format!(
        "functions:\n  s: {{runtime: builtin, handler: synthetic, outputs: {{data: {{type: bytes}}}}}}\n\
         steps:\n  make: {{function: s, in: {{spec: {{value: {{out: [{{port: data, bytes: {bytes}}}]}}}}}}}}\n  \
         read: {{function: s, in: {{x: steps.make.data, spec: {{value: {{read: true, out: [{{port: data, bytes: {back}}}]}}}}}}}}\n\
         outputs:\n  result: {{from: steps.read.data}}\n"
    )
}

#[test]
fn an_object_of_no_bytes_is_an_object() {
    let ended = Scene::new().run(&hand_over(0, 0), &[]);
    assert_eq!((ended.code, ended.stdout.len()), (0, 0), "{ended}");
}

#[test]
fn an_object_of_three_gib_is_handed_over() {
    let ended = Scene::new().run(&hand_over(3 << 30, 10), &["--store", "4GiB"]);
    assert_eq!((ended.code, ended.stdout.len()), (0, 10), "{ended}");
}

#[test]
fn an_object_larger_than_the_store_goes_by_the_spill_directory() {
    let ended = Scene::new().run(&hand_over(200 << 20, 10), &["--store", "64MiB"]);
    assert_eq!((ended.code, ended.stdout.len()), (0, 10), "{ended}");
}

#[test]
fn an_object_larger_than_the_store_without_spilling_is_refused_with_numbers() {
    Scene::new()
        .run(&hand_over(200 << 20, 10), &["--store", "64MiB", "--spill", "none"])
        .expect(1, &["step make failed", "209715200 bytes", "store"]);
}

/// Objects that together exceed the store, all alive at once: they spill and come back.
#[test]
fn more_than_the_store_holds_spills_and_comes_back() {
    let body = "functions:\n  s: {runtime: builtin, handler: synthetic, outputs: {data: {type: bytes}}}\n\
        steps:\n  make: {function: s, foreach: {item: i, over: inputs.n}, in: {i: item.i, spec: {value: {out: [{port: data, bytes: 20000000}]}}}}\n  \
        read: {function: s, start: all-ready, in: {all: \"steps.make.data[*]\", spec: {value: {read: true, out: [{port: data, bytes: 7}]}}}}\n\
        inputs: {n: {type: list}}\noutputs:\n  result: {from: steps.read.data}\n";
    let ended = Scene::new().run(body, &["-i", "n=[1,2,3,4,5,6,7,8,9,10]", "--store", "96MiB"]);
    assert_eq!((ended.code, ended.stdout.len()), (0, 7), "{ended}");
}

/// A spill directory on a file system of its own that is much too small.
#[test]
fn a_full_disk_under_the_spill_directory_is_a_clear_error() {
    let scene = Scene::new();
    let small = scene.path("small");
    fs::create_dir(&small).expect("a folder");
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=16m", "tmpfs"]).arg(&small).output();
    if !mounted.is_ok_and(|o| o.status.success()) {
        println!("SKIP full disk: mounting a small file system needs root");
        return;
    }
    let ended = scene
        .run(&hand_over(200 << 20, 10), &["--store", "64MiB", "--spill", small.to_str().expect("UTF-8")]);
    let unmounted = Command::new("umount").arg(&small).status().expect("umount");
    assert!(unmounted.success());
    ended.expect(1, &["step make failed", "209715200 bytes", "no space left in the spill directory"]);
}

#[test]
fn foreach_over_nothing_is_an_empty_list() {
    let body = "functions:\n  s: {runtime: builtin, handler: synthetic, outputs: {data: {type: bytes}}}\n\
        steps:\n  each: {function: s, foreach: {item: i, over: inputs.n}, in: {i: item.i, spec: {value: {out: [{port: data, bytes: 1}]}}}}\n  \
        read: {function: s, in: {all: \"steps.each.data[*]\", spec: {value: {read: true, out: [{port: data, bytes: 3}]}}}}\n\
        inputs: {n: {type: list}}\noutputs:\n  result: {from: steps.read.data}\n";
    for start in ["eager", "first-byte", "all-ready"] {
        let ended = Scene::new().run(body, &["-i", "n=[]", "--start", start]);
        assert_eq!((ended.code, ended.stdout.len()), (0, 3), "{ended}");
    }
}

#[test]
fn foreach_over_a_hundred_thousand_items() {
    let scene = Scene::new();
    let list: Vec<String> = (0..100_000).map(|i: u32| i.to_string()).collect();
    scene.write("list", &format!("[{}]", list.join(",")));
    let body = "functions:\n  n: {runtime: builtin, handler: noop}\n\
        steps:\n  each: {function: n, foreach: {item: i, over: inputs.n, max_items: 100000}, in: {i: item.i}}\n\
        inputs: {n: {type: list}}\n";
    let ended = scene.run(body, &["-i", "n=@list", "-o", "json"]);
    assert_eq!(ended.code, 0, "{ended}");
    let summary: serde_json::Value = serde_json::from_slice(&ended.stdout).expect("JSON");
    assert_eq!(summary["steps"][0]["done"], 100_000);
}

#[test]
fn more_items_than_allowed_fail_the_step() {
    let body = "functions:\n  n: {runtime: builtin, handler: noop}\n\
        steps:\n  each: {function: n, foreach: {item: i, over: inputs.n, max_items: 3}, in: {i: item.i}}\n\
        inputs: {n: {type: list}}\n";
    Scene::new().run(body, &["-i", "n=[1,2,3,4]"]).expect(1, &["each", "3"]);
}

#[test]
fn a_condition_on_a_skipped_step_skips() {
    let body = "inputs: {go: {type: bool}}\n\
        functions:\n  s: {runtime: builtin, handler: synthetic, outputs: {data: {type: text}}}\n\
        steps:\n  a: {function: s, when: inputs.go, in: {spec: {value: {out: [{port: data, bytes: 5}]}}}}\n  \
        b: {function: s, when: \"size(steps.a.data) > 1\", in: {spec: {value: {out: [{port: data, bytes: 6}]}}}}\n  \
        c: {function: s, when: skipped(steps.b), in: {spec: {value: {out: [{port: data, bytes: 7}]}}}}\n  \
        pick: {switch: [{when: inputs.go, value: steps.b.data}, {default: true, value: steps.c.data}], output: it}\n\
        outputs:\n  result: {from: steps.pick.it}\n";
    let skipped = Scene::new().run(body, &["-i", "go=false"]);
    assert_eq!((skipped.code, skipped.stdout.len()), (0, 7), "{skipped}");
}

#[test]
fn an_output_directory_that_cannot_be_written_costs_no_run() {
    let scene = Scene::new();
    scene.write("file", "");
    scene.run(&hand_over(10, 10), &["-o", "file/below"]).expect(4, &["file/below", "-o DIR"]);
}

#[test]
fn a_workflow_file_of_garbage_is_refused() {
    let scene = Scene::new();
    scene.write("bad.yaml", "\u{0}\u{1}{{{{: - [");
    let ended = scene.start(&["run", "bad.yaml"]).end();
    ended.expect(2, &["bad.yaml", "error"]);
    scene.start(&["run", "missing.yaml"]).end().expect(2, &["missing.yaml"]);
}

#[test]
fn inputs_are_checked_before_anything_runs() {
    let body = "inputs: {n: {type: int, min: 1}}\nfunctions:\n  n: {runtime: builtin, handler: noop}\nsteps:\n  a: {function: n, in: {n: inputs.n}}\n";
    let scene = Scene::new();
    scene.run(body, &["-i", "n=0"]).expect(2, &["n"]);
    scene.run(body, &["-i", "n=many"]).expect(2, &["n"]);
    scene.run(body, &["-i", "m=1"]).expect(2, &["no input `m`"]);
    scene.run(body, &["-i", "n=@nowhere"]).expect(2, &["nowhere"]);
    scene.run(body, &[]).expect(2, &["n", "missing"]);
}
